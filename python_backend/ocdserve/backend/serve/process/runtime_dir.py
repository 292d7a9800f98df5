# SPDX-License-Identifier: Apache-2.0
"""The files that a tritonserver process needs: binary, backends, caches, libpython, empty directory."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.publish.environment import ENVIRONMENT_PARAMETER
from ocdserve.backend.serve import preflight
from ocdserve.backend.serve.options import ServeOptions
from ocdserve.backend.serve.process.health import TRITON_VERSION_VARIABLE
from ocdserve.backend.serve.process.processes import STUB
from ocdserve.contract import UnavailableError

# The version that nvidia-pytriton 0.7 contains, and this image too.
TRITON_VERSION = "2.51.0"
CONTAINER_IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
# In the configuration of a model that runs on a GPU.
KIND_GPU = "KIND_GPU"
STANDARD_BACKENDS = Path("/opt/tritonserver/backends")
# By default glibc maps and faults in every tensor between the steps anew, which cost a fused request 14 ms. Allocations
# above the threshold are the network's: they are kept and grow with the largest image; in the heap each growth would
# leave a hole (1.1 GB after a mix of sizes that needs 0.6).
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


@dataclass(frozen=True)
class Runtime:
    """A tritonserver that can be started.

    Attributes:
        binary: The executable.
        backends: Its `--backend-directory`.
        caches: Its `--cache-directory`; None leaves Triton's default.
        directory: Empty directory to start in, because a stub's sys.path begins with the current directory.
        environment: Environment to start with.
    """

    binary: Path
    backends: Path
    caches: Path | None
    directory: Path
    environment: Mapping[str, str]


def prepare_runtime(options: ServeOptions, workspace: Path, environment: Mapping[str, str] = os.environ) -> Runtime:
    """Make the runtime below workspace and check that it works.

    Raises:
        UnavailableError: Something is missing on this machine; the message says what and how to get it.
    """
    directory = workspace / "cwd"
    directory.mkdir()
    if options.tritonserver is not None:
        return _other_installation(options, directory, {**environment, **_MALLOC})
    preflight.check_python()
    source = preflight.pytriton_directory()
    preflight.check_glibc()
    preflight.check_numpy()
    # Links, not copies: the binaries find their libraries relative to where their links point.
    runtime = link_pytriton(source, workspace / "triton")
    libraries = [str(workspace / "triton" / "lib"), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
    # Triton's embedded Python finds its virtual environment through the first python3 on PATH only.
    path = [str(Path(sys.executable).parent), environment.get("PATH") or os.defpath]
    changes = {
        **_MALLOC,
        TRITON_VERSION_VARIABLE: TRITON_VERSION,
        "PATH": os.pathsep.join(path),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
    }
    full = {**environment, **changes}
    preflight.check_stub(runtime / "backends" / "python" / STUB, full)
    return Runtime(runtime / "tritonserver", runtime / "backends", runtime / "caches", directory, full)


def link_pytriton(source: Path, target: Path) -> Path:
    """Lay out nvidia-pytriton's files as tritonserver expects them, with this Python's stub; returns target."""
    python = target / "backends" / "python"
    python.mkdir(parents=True)
    (target / "lib").mkdir()
    (target / "tritonserver").symlink_to(source / "bin" / "tritonserver")
    (target / "caches").symlink_to(source / "caches")
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (python / name).symlink_to(source / "backends" / "python" / name)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (python / STUB).symlink_to(source / "python_backend_stubs" / version / STUB)
    library = preflight.find_libpython()
    if library is not None:
        (target / "lib" / library.name).symlink_to(library)
    return target


def container_command(options: ServeOptions, image: str = CONTAINER_IMAGE) -> str:
    """The command that serves the repository in NVIDIA's container."""
    ports = " ".join(
        f"-p {options.host}:{port or default}:{default}"
        for port, default in ((options.http_port, 8000), (options.grpc_port, 8001), (options.metrics_port, 8002))
    )
    texts = preflight.configurations(options.repository).values()
    gpu = any(KIND_GPU in text for text in texts)
    # Without the last option Triton starts each model's process twice, to ask it for its configuration.
    serve = "tritonserver --model-repository=/models --disable-auto-complete-config"
    if gpu:
        serve += f" --cuda-memory-pool-byte-size=0:{options.cuda_pool_bytes}"
    if not any(ENVIRONMENT_PARAMETER in text for text in texts):
        serve = f"sh -c \"pip install 'ocdserve[{'gpu' if gpu else 'models'}]' && {serve}\""
    volume = shlex.quote(f"{options.repository}:/models")
    return f"docker run --rm {'--gpus all ' if gpu else ''}--shm-size=1g {ports} -v {volume} {image} {serve}"


def _other_installation(options: ServeOptions, directory: Path, environment: Mapping[str, str]) -> Runtime:
    assert options.tritonserver is not None
    binary = options.tritonserver.absolute()
    reason = f"{binary} is not an executable file"
    if binary.is_file() and os.access(binary, os.X_OK):
        for backends in (binary.parent.parent / "backends", STANDARD_BACKENDS):
            if (backends / "python").is_dir():
                caches = backends.parent / "caches"
                return Runtime(binary, backends, caches if caches.is_dir() else None, directory, environment)
        reason = f"no backends/python next to {binary.parent} nor at {STANDARD_BACKENDS}"
    raise UnavailableError(
        f"--tritonserver: {reason}. Leave the option out to use nvidia-pytriton's server, or run a container:\n"
        f"  {container_command(options)}"
    )
