# SPDX-License-Identifier: Apache-2.0
"""Cache of compiled kernels, one file per module, named after the hash of everything that it depends on.

Files are written atomically; a damaged one is never used, but replaced. A folder that cannot be written only costs a
compilation in every process.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ocdserve.backend.files import cache_folder, write_atomically

ROOT_VARIABLE = "OCDSERVE_KERNEL_CACHE"

# 1: first version.
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class KernelResources:
    """Resources of one kernel, as ptxas reports them, including device functions that were not inlined.

    Attributes:
        registers: Of each thread.
        spill_bytes: Stored and loaded by each thread because its registers did not suffice.
        stack_bytes: Local memory of each thread.
        shared_bytes: Static shared memory of each block.
    """

    name: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class CompiledModule:
    """A `.cu` file, compiled.

    Attributes:
        image: Cubin, or PTX for the driver to compile.
        target: What it is compiled for, `sm_90`; of PTX, `compute_120`.
        kernels: Its kernels by name; empty for PTX, whose registers the driver decides.
    """

    image: bytes
    target: str
    kernels: tuple[KernelResources, ...]


@dataclass(frozen=True)
class CubinKey:
    """Everything that a compiled module depends on.

    Attributes:
        source: Text of the `.cu` file.
        headers: Name and text of each file that it includes.
        options: All of the compiler's options, the architecture among them.
        compiler: The compiler's version; empty for cubins of a release, which are looked up without it.
        toolkit: Version of CUDA's own headers where they are included; else empty, and for a release.
    """

    source: str
    headers: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    compiler: str
    toolkit: str

    def sha256(self) -> str:
        """Equal keys give equal hashes."""
        text = json.dumps({"schema_version": _SCHEMA_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class CubinCache:
    """Compiled modules in a folder that several processes may share.

    Args:
        root: The folder; None takes `OCDSERVE_KERNEL_CACHE`, else `ocdserve/kernels` in the user's cache folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder("kernels", ROOT_VARIABLE)

    def file(self, key: CubinKey) -> Path:
        """Where the key's module is, or would be."""
        return self.root / f"{key.sha256()}.cubin"

    def get(self, key: CubinKey) -> CompiledModule | None:
        """The key's module; None if there is no intact one."""
        try:
            described, _, image = self.file(key).read_bytes().partition(b"\n")
            description = json.loads(described)
            kernels = tuple(KernelResources(**values) for values in description["kernels"])
            whole = description["sha256"] == _sha256(image)
            return CompiledModule(image, str(description["target"]), kernels) if whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: CubinKey, module: CompiledModule) -> None:
        """Store a module, replacing a damaged one."""
        description = {
            "target": module.target,
            "kernels": [asdict(kernel) for kernel in module.kernels],
            "sha256": _sha256(module.image),
        }
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file(key), json.dumps(description).encode() + b"\n" + module.image)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
