# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels of TensorRT-RTX from one process to the next; kernels are words of the imaginary library."""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imaginary_tensorrt import ImaginaryTensorRt, RuntimeConfig

from ocdserve.backend.network import rtx_kernels
from ocdserve.backend.network.rtx_kernels import RtxKernels
from ocdserve.backend.network.tensorrt import TensorRtNetwork


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


def execute(trt: ImaginaryTensorRt, *heights: int) -> list[str]:
    """What a new process compiles for images of those heights."""
    trt.compilations.clear()
    network, stream = TensorRtNetwork(b"plan", "tensorrt-rtx", trt.device, "mine"), trt.device.stream()
    for height in heights:
        source, target = trt.device.allocate(height * 64 * 3), trt.device.allocate(height * 64)
        for _ in range(2):
            network.enqueue(stream, source, target, 1, height, 64)
    network.close()
    return [word.decode() for word in trt.compilations]


def files(root: Path) -> list[Path]:
    return sorted(root.iterdir())


def test_a_process_takes_the_kernels_of_earlier_ones(trt: ImaginaryTensorRt, root: Path) -> None:
    assert execute(trt, 32, 64) == ["1x32x64x3", "1x64x64x3"]
    assert execute(trt, 32, 96, 64) == ["1x96x64x3"]
    assert execute(trt, 96, 64, 32) == []
    assert len(files(root)) == 1


def test_kernels_are_stored_behind_the_first_execution_of_a_shape(trt: ImaginaryTensorRt, root: Path) -> None:
    network, stream = TensorRtNetwork(b"plan", "tensorrt-rtx", trt.device, "mine"), trt.device.stream()
    source, target = trt.device.allocate(64 * 64 * 3), trt.device.allocate(64 * 64)
    network.enqueue(stream, source, target, 1, 64, 64)
    (file,) = files(root)
    written = file.stat()
    for _ in range(3):
        network.enqueue(stream, source, target, 1, 64, 64)
    assert file.stat() == written
    # The process is killed: it does not close the network.
    assert execute(trt, 64) == []


def test_tensorrt_has_no_such_file(trt: ImaginaryTensorRt, root: Path) -> None:
    network, stream = TensorRtNetwork(b"plan", "tensorrt", trt.device, "mine"), trt.device.stream()
    network.enqueue(stream, trt.device.allocate(64 * 64 * 3), trt.device.allocate(64 * 64), 1, 64, 64)
    network.close()
    assert not root.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes(1 << 16),
    ],
)
def test_a_damaged_file_is_never_given_to_the_library_and_is_replaced(
    trt: ImaginaryTensorRt, root: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(trt, 32)
    (file,) = files(root)
    file.write_bytes(damage(file.read_bytes()))
    with monkeypatch.context() as patch:
        patch.setattr("imaginary_tensorrt.Cache.deserialize", None)  # calling it would fail
        assert execute(trt, 32) == ["1x32x64x3"]
    assert execute(trt, 32) == []


def test_kernels_that_the_library_refuses_are_replaced(trt: ImaginaryTensorRt) -> None:
    execute(trt, 32, 64, 96)
    trt.driver = b"driver-590"
    # Fewer than were stored, but of the driver that is there.
    assert execute(trt, 32) == ["1x32x64x3"]
    assert execute(trt, 32, 64) == ["1x64x64x3"]


@pytest.mark.parametrize(
    "other", [(b"another plan", "1.7.1", "L40S"), (b"plan", "1.7.2", "L40S"), (b"plan", "1.7.1", "L4")]
)
def test_an_engine_a_release_and_a_gpu_have_files_of_their_own(
    trt: ImaginaryTensorRt, root: Path, other: tuple[bytes, str, str]
) -> None:
    for key in ((b"plan", "1.7.1", "L40S"), other):
        store(trt, root, *key, words=[b"kernel"])
    assert len(files(root)) == 2


def store(
    trt: ImaginaryTensorRt,
    root: Path,
    plan: bytes = b"plan",
    version: str = "1",
    gpu: str = "L4",
    *,
    words: list[bytes],
) -> None:
    kernels, config = RtxKernels(plan, version, gpu, root), RuntimeConfig(trt)
    with trt.device.current():
        kernels.use(config)
    cache = config.get_runtime_cache()
    assert cache is not None
    for word in words:
        cache._compiled(word)
    kernels.save()


def test_what_knows_more_stays(trt: ImaginaryTensorRt, root: Path) -> None:
    """Two processes that both found nothing: the one with fewer kernels does not replace those of the other."""
    first, second = (RtxKernels(b"plan", "1", "L4", root) for _ in range(2))
    configs = RuntimeConfig(trt), RuntimeConfig(trt)
    for kernels, config, words in ((first, configs[0], [b"a", b"b"]), (second, configs[1], [b"c"])):
        kernels.use(config)
        for word in words:
            config.get_runtime_cache()._compiled(word)  # type: ignore[union-attr]
    first.save()
    second.save()
    assert files(root)[0].read_bytes()[32:] == b"driver-580 a b"


def test_processes_that_store_at_once_leave_a_whole_file(trt: ImaginaryTensorRt, root: Path) -> None:
    begin = threading.Barrier(4)

    def work(number: int) -> None:
        kernels, config = RtxKernels(b"plan", "1", "L4", root), RuntimeConfig(trt)
        kernels.use(config)
        begin.wait()
        for index in range(10):
            config.get_runtime_cache()._compiled(f"{number}-{index}".encode() * 1000)  # type: ignore[union-attr]
            kernels.save()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = files(root)
    # The library takes it, so its hash is right; one of the processes stored all of its kernels.
    assert len(file.read_bytes()) == 32 + len("driver-580") + 10 * (1 + 3000)


def test_only_so_many_files_are_kept_and_those_in_use_stay(trt: ImaginaryTensorRt, root: Path) -> None:
    for number in range(16):
        store(trt, root, f"plan {number}".encode(), words=[b"kernel"])
        for path in files(root):
            os.utime(path, (path.stat().st_atime - 100, path.stat().st_mtime - 100))
    (root / "ours.cubin").write_bytes(b"of another cache")
    oldest = min(root.glob("*.rtx"), key=lambda path: path.stat().st_mtime)
    store(trt, root, b"plan 0", words=[b"kernel"])  # used again
    store(trt, root, b"plan 16", words=[b"kernel"])
    assert len(list(root.glob("*.rtx"))) == 16
    assert oldest.exists() and (root / "ours.cubin").exists()


def test_a_file_that_would_be_too_large_is_not_written(
    trt: ImaginaryTensorRt, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx_kernels, "_MOST_BYTES", 20)
    store(trt, root, words=[b"kernel"])
    store(trt, root, words=[b"kernel", b"another"])
    assert files(root)[0].read_bytes()[32:] == b"driver-580 kernel"


def test_a_folder_that_cannot_be_written_costs_compilations_only(trt: ImaginaryTensorRt, tmp_path: Path) -> None:
    (tmp_path / "kernels").write_bytes(b"a file")
    for _ in range(2):
        assert execute(trt, 32) == ["1x32x64x3"]


def test_a_library_without_a_cache_is_executed_without(trt: ImaginaryTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RuntimeConfig, "create_runtime_cache", lambda self: None)
    for _ in range(2):
        assert execute(trt, 32) == []
    assert np.all([context._executed == 2 for context in trt.contexts])
