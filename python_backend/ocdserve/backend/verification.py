# SPDX-License-Identifier: Apache-2.0
"""Whether a published repository works in a Triton that knows nothing of this environment."""

import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ocdserve.backend.publish.environment import PackedEnvironment
from ocdserve.backend.serve.canary import canary_models, run_canary
from ocdserve.backend.serve.options import ServeOptions
from ocdserve.backend.serve.process.command import choose_ports, gpus_used
from ocdserve.backend.serve.process.guarded import GuardedProcess, GuardSpec
from ocdserve.backend.serve.process.ownership import new_prefix
from ocdserve.backend.serve.process.processes import PROC, LoadWatch, ProcessStat, Stub, find_dead, find_stubs
from ocdserve.backend.serve.process.runtime_dir import Runtime, prepare_runtime
from ocdserve.backend.serve.repository_api import RepositoryApi
from ocdserve.backend.serve.server import describe_end
from ocdserve.backend.serve.server_log import ServerLog
from ocdserve.contract import InvalidInputError, UnavailableError

# Unpacking an environment took 20 s of one core; the rest is for slow disks.
VERIFY_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1
_HOST = "127.0.0.1"
# Of this process' environment; all else could help the models to packages that they will not have.
_KEPT = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")

Quads = dict[str, list[list[float]]]


def verify(
    repository: Path,
    environment: PackedEnvironment | None = None,
    tritonserver: Path | None = None,
    timeout_s: float = VERIFY_TIMEOUT_S,
) -> Quads:
    """Load a published repository in a second Triton, as it is, and detect one small picture with it.

    Args:
        repository: Folder that `publish` wrote.
        environment: What it was published with.
        tritonserver: Binary of another installation; None: the one of nvidia-pytriton.
        timeout_s: How long loading may take, in seconds.

    Returns:
        The corners of each text area that a model found, x and y in turns, by the model's name.

    Raises:
        InvalidInputError: The packed environment is for another Python than this one, whose Triton it is.
        UnavailableError: It does not load, in time, or answers wrongly; with the reason of Triton's log.
    """
    try:
        with second_triton(repository, environment, tritonserver, timeout_s) as port:
            api = RepositoryApi(_HOST, port, "", timeout_s)
            return {name: run_canary(api, name) for name in canary_models(repository)}
    except UnavailableError as error:
        raise UnavailableError(f"{repository} does not work in another Triton: {error}") from error


@contextmanager
def second_triton(
    repository: Path, environment: PackedEnvironment | None, tritonserver: Path | None, timeout_s: float
) -> Iterator[int]:
    """Serve a repository by a Triton that is started as by others, until the end of the block; gives its HTTP port.

    It starts with a cleared environment. If the repository has a packed environment, PATH has only what the system has;
    otherwise its models run in the Python of this process. Arguments and errors are those of `verify`.
    """
    if environment and tritonserver is None:
        _check_python(environment)
    options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0, tritonserver=tritonserver)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="ocdserve-verify-") as folder:
        workspace = Path(folder)
        runtime = prepare_runtime(options, workspace, {"PATH": os.defpath, **kept})
        if environment:
            runtime = replace(runtime, environment={**runtime.environment, "PATH": os.defpath})
        port, prefix = choose_ports(options).http, new_prefix()
        log = ServerLog(workspace / "server.log")
        process = GuardedProcess(
            GuardSpec(
                command=_command(options, runtime, port, prefix),
                environment=runtime.environment,
                directory=runtime.directory,
                log=log.path,
                segment_prefix=prefix,
                workspace=workspace,
                stop_timeout_s=_STOP_TIMEOUT_S,
            )
        )
        ready = False
        try:
            _wait(process, RepositoryApi(_HOST, port, "", timeout_s), log, timeout_s)
            ready = True
            yield port
        finally:
            unpacked = _unpacked(process.pid)
            if not ready:
                # While it loads, Triton ignores signals.
                process.kill()
            process.stop()
            # Triton removes them when it stops, unless that takes longer than it is given.
            for path in unpacked:
                shutil.rmtree(path, ignore_errors=True)


def _check_python(environment: PackedEnvironment) -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(environment.interpreter)
    if environment.python == here and interpreter.exists():
        return
    found = f"Python {environment.python}" + (f" at {interpreter}" if environment.interpreter else "")
    raise InvalidInputError(
        f"{environment.path} is for {found}, and this is {here}: verify it inside the container in which it was made "
        "(--tritonserver /opt/tritonserver/bin/tritonserver)"
    )


def _command(options: ServeOptions, runtime: Runtime, port: int, prefix: str) -> list[str]:
    return [
        str(runtime.binary),
        f"--model-repository={options.repository}",
        f"--backend-directory={runtime.backends}",
        # Other models of the repository may need what this Triton lacks.
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in canary_models(options.repository)),
        "--disable-auto-complete-config",
        f"--http-address={_HOST}",
        f"--http-port={port}",
        "--allow-grpc=0",
        "--allow-metrics=0",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        *(f"--cuda-memory-pool-byte-size={gpu}:{options.cuda_pool_bytes}" for gpu in range(gpus_used(options))),
    ]


def _wait(process: GuardedProcess, api: RepositoryApi, log: ServerLog, timeout_s: float) -> None:
    """Return when all models are ready."""
    watch, known = LoadWatch(), dict[int, Stub]()
    deadline = time.monotonic() + timeout_s
    while not api.ready():
        status = process.exit_status()
        if status is not None:
            raise UnavailableError(f"{describe_end(status)} while it loaded the models:\n{log.excerpt()}")
        known.update({stub.pid: stub for stub in find_stubs(process.pid)})
        loading: dict[str, list[Stub]] = {}
        for stub in (*known.values(), *find_dead(process.pid, known)):
            loading.setdefault(stub.model, []).append(stub)
        if watch.stuck(loading, time.monotonic()):
            raise UnavailableError(f"a model's process ended while it started:\n{log.excerpt()}")
        if time.monotonic() > deadline:
            raise UnavailableError(f"the models were not ready within {timeout_s:g} s:\n{log.excerpt()}")
        time.sleep(_POLL_S)


def _unpacked(server_pid: int) -> set[str]:
    """Folders of environments that a Triton has unpacked, which it makes in /tmp, whatever TMPDIR says.

    They are its current directory while it unpacks, on the command line of the shell that activates one, and in the
    environment of a model's process after that.
    """
    shown = []
    with suppress(OSError):
        shown.append(os.readlink(PROC / str(server_pid) / "cwd"))
    for entry in PROC.iterdir():
        with suppress(OSError):
            stat = ProcessStat.read(int(entry.name)) if entry.name.isdigit() else None
            if stat is not None and stat.parent == server_pid:
                shown += [(entry / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ")]
    return {match for text in shown for match in re.findall(r"/tmp/python_env_\w{6}", text)}
