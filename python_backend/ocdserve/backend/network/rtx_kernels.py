# SPDX-License-Identifier: Apache-2.0
"""Kernels that TensorRT-RTX compiled for an engine's shapes, in a file that the next process loads.

TensorRT-RTX compiles when a shape is first executed, which takes seconds. Its own cache is checked by the library
against GPU, driver and release; the file adds a hash, since the library reads what it is given.
"""

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ocdserve.backend.files import cache_folder, write_atomically
from ocdserve.backend.kernels.gpu.cubin_cache import ROOT_VARIABLE

if TYPE_CHECKING:
    from tensorrt_rtx import IRuntimeCache, IRuntimeConfig

_SUFFIX = ".rtx"
_DIGEST_BYTES = hashlib.sha256().digest_size

# Files of engines that were replaced stay until newer ones need their place.
_MOST_FILES = 16
_MOST_BYTES = 256 << 20


class RtxKernels:
    """The compiled kernels of one engine; contexts are made and first executed while `lock` is held.

    Several processes may share the file: each loads what another stored, and one that knows more replaces it.

    Args:
        plan: The engine's plan.
        version: Of TensorRT-RTX.
        gpu: The GPU's model.
        root: The folder; None takes that of the kernels which we compile, `OCDSERVE_KERNEL_CACHE` or `ocdserve/kernels`
            in the user's cache folder.

    Attributes:
        lock: The library does not say that its cache may be stored while it grows.
    """

    def __init__(self, plan: bytes, version: str, gpu: str, root: Path | None = None) -> None:
        name = hashlib.sha256("\0".join((version, gpu, _sha256(plan).hex())).encode()).hexdigest()
        self._file = (root or cache_folder("kernels", ROOT_VARIABLE)) / f"{name}{_SUFFIX}"
        self._cache: IRuntimeCache | None = None
        self._refused = b""
        self.lock = threading.Lock()

    def use(self, config: "IRuntimeConfig") -> None:
        """Let contexts of that configuration take kernels from the cache and add to it; the GPU is current."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Store the kernels if there are more than in the file; a folder that cannot be written costs compilations."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        stored = self._stored()
        if len(data) > _MOST_BYTES or (stored not in (b"", self._refused) and len(stored) >= len(data)):
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, _sha256(data) + data)
            self._remove_oldest()

    def close(self) -> None:
        """Release the library's cache, before its engine."""
        self._cache = None

    def _load(self) -> None:
        stored = self._stored()
        if not stored or self._cache is None:
            return
        if self._cache.deserialize(stored):
            with contextlib.suppress(OSError):
                os.utime(self._file)  # so that it is not among the oldest, which are removed
        else:
            self._refused = stored  # of another driver, for example

    def _stored(self) -> bytes:
        """What the file holds; empty if it is missing or damaged."""
        try:
            content = self._file.read_bytes()
        except OSError:
            return b""
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return data if digest == _sha256(data) else b""

    def _remove_oldest(self) -> None:
        files = sorted(self._file.parent.glob(f"*{_SUFFIX}"), key=_modified, reverse=True)
        for path in files[_MOST_FILES:]:
            path.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
