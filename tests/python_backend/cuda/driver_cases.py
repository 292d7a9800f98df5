# SPDX-License-Identifier: Apache-2.0
"""What `runtime` does on the simulated driver; `test_runtime.py` runs this in a process that has that driver.

The real pycuda and the real cuda.bindings are in between, so that their calls and their clean-up are tried as well.
"""

import ctypes
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.backend.cuda.buffers import ForeignBuffer
from ocdserve.backend.cuda.device import DeviceError, DeviceMemoryError
from ocdserve.backend.cuda.dlpack import DeviceTensor, from_dlpack
from ocdserve.backend.cuda.runtime import CudaDevice, open_device
from ocdserve.contract import InvalidInputError, UnavailableError

GRID, BLOCK = (4, 1, 1), (256, 1, 1)

_driver = ctypes.CDLL("libcuda.so.1")
_driver.fake_left.restype = ctypes.c_char_p
_driver.fake_launches.restype = ctypes.c_char_p
_driver.fake_capacity.argtypes = [ctypes.c_uint64]


def left() -> str:
    """What was not given back to the driver."""
    text: bytes = _driver.fake_left()
    return text.decode()


def fail(call: str, code: int, skip: int = 0) -> None:
    """Let a call of the driver fail, after `skip` that do not."""
    _driver.fake_inject(call.encode(), code, skip)


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    """A device on a driver that is well; afterwards everything must be back."""
    _driver.fake_heal()
    opened = open_device()
    yield opened
    opened.close()
    if not opened.failed:
        assert left() == ""


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Kernels whose names the simulated driver knows, as a file that `module` takes."""
    path: Path = tmp_path_factory.mktemp("kernels") / "simulated.cu"
    path.write_text(
        'extern "C" __global__ void add(unsigned char* values, int count, unsigned char amount) {\n'
        "    const int index = blockIdx.x * blockDim.x + threadIdx.x;\n"
        "    if (index < count) values[index] += amount;\n"
        "}\n"
        'extern "C" __global__ void fault(unsigned char* values) { values[1ll << 50] = 1; }\n',
        encoding="utf-8",
    )
    return str(path)


def add(device: CudaDevice, stream: Any, source: str, buffer: Any, amount: int) -> None:
    kernel = device.module(source).kernel("add")
    stream.launch(kernel, GRID, BLOCK, [buffer, np.int32(buffer.size), np.uint8(amount)])


def test_the_gpu_is_described(device: CudaDevice) -> None:
    assert (device.name, device.multiprocessors, device.architecture) == ("Simulated GPU 0", 132, "sm_90")
    assert device.compute_capability == (9, 0)


def test_another_gpu_is_another_context(device: CudaDevice, source: str) -> None:
    other = open_device(1)
    assert (other.name, other.architecture) == ("Simulated GPU 1", "sm_75")
    with device.current(), other.current():
        stream = device.stream()
        buffer = device.allocate(8)
        add(device, stream, source, buffer, 1)
        stream.synchronize()
    other.close()


def test_a_gpu_that_is_not_there_is_named(device: CudaDevice) -> None:
    with pytest.raises(UnavailableError, match="no GPU 2; it has 2"):
        open_device(2)


def test_work_goes_there_and_back(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(1000)
    there, back = device.host_array(1000, np.uint8), device.host_array((10, 100), np.uint8)
    assert there.sum() == 0
    there[:] = np.arange(1000) % 200

    stream.to_device(buffer, there)
    add(device, stream, source, buffer, 3)
    stream.to_host(back, buffer)
    assert back.sum() == 0  # nobody waited yet
    stream.synchronize()

    np.testing.assert_array_equal(back.ravel(), np.arange(1000) % 200 + 3)
    assert _driver.fake_launches() == b"add(13 bytes, 1024 threads)\n"


def test_offsets_fill_and_copies_between_buffers(device: CudaDevice) -> None:
    stream, first, second = device.stream(), device.allocate(16), device.allocate(16)
    back = device.host_array(4, np.int32)

    stream.fill(first, 1, 16)
    stream.to_device(first, np.array([7], np.int32), offset=4)
    stream.fill(second, 0, 16)
    stream.copy(second, first, 8, target_offset=8, source_offset=0)
    stream.to_host(back, second)
    stream.synchronize()

    assert back.tolist() == [0, 0, 0x01010101, 7]


def test_what_does_not_fit_is_refused(device: CudaDevice) -> None:
    stream, buffer = device.stream(), device.allocate(16)

    with pytest.raises(InvalidInputError, match="target has 16 bytes; got 16 bytes from 1 on"):
        stream.to_device(buffer, np.zeros(16, np.uint8), offset=1)
    with pytest.raises(InvalidInputError, match="source has 16 bytes; got 17 bytes"):
        stream.to_host(np.zeros(17, np.uint8), buffer)
    with pytest.raises(InvalidInputError, match="must be C-contiguous"):
        stream.to_device(buffer, np.zeros((4, 8), np.uint8)[:, ::2])
    with pytest.raises(InvalidInputError, match="target has 16 bytes; got 32 bytes"):
        stream.fill(buffer, 0, 32)


def test_nothing_at_all_may_be_copied(device: CudaDevice) -> None:
    stream, buffer = device.stream(), device.allocate(0)

    stream.to_device(buffer, np.zeros((0, 4), np.uint8))
    stream.to_host(device.host_array((0, 3), np.float32), buffer)
    stream.fill(buffer, 0, 0)
    stream.synchronize()


@pytest.mark.parametrize(
    ("value", "size"),
    [(np.int8(1), 1), (np.bool_(True), 1), (np.int16(1), 2), (np.float32(1), 4), (np.uint64(1), 8), (np.float64(1), 8)],
)
def test_a_scalar_has_the_width_of_its_type(device: CudaDevice, source: str, value: np.generic, size: int) -> None:
    stream = device.stream()
    stream.launch(device.module(source).kernel("add"), GRID, BLOCK, [device.allocate(4), np.int32(0), value])
    stream.synchronize()

    # Aligned to its own size, as the compiler lays parameters out.
    expected = 12 + size if size < 8 else 24
    assert _driver.fake_launches().decode() == f"add({expected} bytes, 1024 threads)\n"


def test_more_shared_memory_is_asked_for(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(4)
    kernel = device.module(source).kernel("add")
    arguments = [buffer, np.int32(4), np.uint8(1)]

    stream.launch(kernel, GRID, BLOCK, arguments, shared=100 * 1024)
    stream.synchronize()
    with pytest.raises(DeviceError, match=r"cuFuncSetAttribute \(add\): CUDA_ERROR_INVALID_VALUE"):
        stream.launch(kernel, GRID, BLOCK, arguments, shared=300 * 1024)

    assert not device.failed


def test_a_kernel_that_is_not_there_is_named(device: CudaDevice, source: str) -> None:
    with pytest.raises(UnavailableError, match=r"has no kernel 'subtract': .*CUDA_ERROR_NOT_FOUND"):
        device.module(source).kernel("subtract")


def test_a_graph_repeats_with_what_the_host_arrays_then_hold(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(100)
    there, back = device.host_array(100, np.uint8), device.host_array(100, np.uint8)
    device.module(source).kernel("add")

    with stream.capture() as capture:
        with pytest.raises(InvalidInputError, match="once the `with` block"):
            _ = capture.graph
        stream.to_device(buffer, there)
        add(device, stream, source, buffer, 1)
        stream.to_host(back, buffer)
    stream.synchronize()
    assert _driver.fake_launches() == b""  # recorded, not done

    other = device.stream()
    for value, on in ((5, stream), (9, other)):
        there[:] = value
        capture.graph.launch(on)
        on.synchronize()
        assert set(back.tolist()) == {value + 1}

    capture.graph.close()
    capture.graph.close()
    with pytest.raises(DeviceError, match="the graph is closed"):
        capture.graph.launch(stream)


def test_a_graph_holds_on_to_its_host_arrays(device: CudaDevice) -> None:
    stream, buffer = device.stream(), device.allocate(100)
    there = device.host_array(100, np.uint8)
    there[:] = 3
    with stream.capture() as capture:
        stream.to_device(buffer, there)
    del there
    gc.collect()
    back = np.zeros(100, np.uint8)

    capture.graph.launch(stream)
    stream.to_host(back, buffer)
    stream.synchronize()

    assert set(back.tolist()) == {3}


def test_other_streams_join_a_capture_and_come_back(device: CudaDevice, source: str) -> None:
    stream, side, buffer = device.stream(), device.stream(), device.allocate(10)
    stream.fill(buffer, 0, 10)
    device.module(source).kernel("add")
    with stream.capture() as capture:
        side.wait(stream.record())
        add(device, side, source, buffer, 2)
        stream.wait(side.record())
        add(device, stream, source, buffer, 1)
    back = np.zeros(10, np.uint8)

    capture.graph.launch(stream)
    stream.to_host(back, buffer)

    assert set(back.tolist()) == {3}


def test_a_capture_that_fails_leaves_the_stream_usable(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(10)

    def record_half() -> None:
        with stream.capture():
            stream.fill(buffer, 1, 10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record_half()
    with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), stream.capture():
        stream.synchronize()
    forked = device.stream()
    with pytest.raises(DeviceError, match="CUDA_ERROR_STREAM_CAPTURE_UNJOINED"), stream.capture():
        forked.wait(stream.record())

    add(device, stream, source, buffer, 1)
    stream.synchronize()
    assert not device.failed


def test_nothing_is_given_back_while_a_stream_records(device: CudaDevice) -> None:
    stream, other = device.stream(), device.stream()
    buffer, array, event = device.allocate(10), device.host_array(10, np.uint8), other.record()

    with stream.capture() as capture:
        stream.fill(buffer, 1, 10)
        gone = device.allocate(10)
        gone.close()
        del array
        event.close()
        thread = threading.Thread(target=other.close)
        thread.start()
        thread.join()
        gc.collect()
        assert "3 streams" in left() or "4 streams" in left()

    capture.graph.launch(stream)
    stream.synchronize()
    assert "host memory" not in left()


def test_memory_is_used_again_only_behind_the_work_that_used_it(device: CudaDevice, source: str) -> None:
    first, second = device.stream(), device.stream()
    buffer = device.allocate(100)
    first.fill(buffer, 1, 100)
    second.wait(first.record())
    add(device, second, source, buffer, 1)

    buffer.close()
    buffer.close()
    device.allocate(100).close()
    second.synchronize()  # had the memory gone, the kernel would have failed

    assert not device.failed


def test_memory_is_given_back(device: CudaDevice) -> None:
    buffers = [device.allocate(1000) for _ in range(10)]
    assert device.used_bytes == 10_000
    for buffer in buffers[:5]:
        buffer.close()
    del buffers, buffer
    gc.collect()

    with pytest.raises(DeviceMemoryError, match=r"4096\.0 MiB of GPU memory .*1024\.0 of 1024\.0 MiB are free, 0\.0"):
        device.allocate(1 << 32)
    assert device.used_bytes == 0


def test_memory_on_its_way_back_is_waited_for_when_there_is_no_other(device: CudaDevice) -> None:
    stream = device.stream()
    buffer = device.allocate(800 << 20)
    stream.fill(buffer, 1, 10)
    buffer.close()

    assert device.allocate(800 << 20).size == 800 << 20


def test_host_arrays_outlive_their_views_and_the_device(device: CudaDevice) -> None:
    array = device.host_array((4, 5), np.float32)
    view = array[1:, ::2].T
    array[:] = 2.5
    del array
    gc.collect()
    assert "host memory" in left()

    device.close()

    assert left() == ""
    assert set(view.ravel().tolist()) == {2.5}


def test_events_tell_the_time_between_them(device: CudaDevice) -> None:
    stream = device.stream()
    first = stream.record()
    stream.fill(device.allocate(1 << 20), 1, 1 << 20)
    second = stream.record()

    assert 0 < second.elapsed_ms(first) < 1000
    second.close()
    with pytest.raises(DeviceError, match="the event is closed"):
        second.synchronize()


def test_a_closed_stream_says_so(device: CudaDevice) -> None:
    stream = device.stream()
    stream.close()
    stream.close()

    with pytest.raises(DeviceError, match="the stream is closed"):
        stream.synchronize()


def test_everything_works_from_any_thread(device: CudaDevice, source: str) -> None:
    buffer = device.allocate(64)
    main = device.stream()
    main.fill(buffer, 0, 64)
    main.synchronize()
    errors = []

    def work() -> None:
        try:
            stream = device.stream()
            own = device.allocate(64)
            for _ in range(50):
                add(device, stream, source, own, 1)
            stream.synchronize()
            with device.current():
                stream.close()
            device.host_array(10, np.uint8)
        except Exception as error:  # an exception of a thread would get lost
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert "stack" not in left()


@pytest.mark.parametrize("where", ["same", "other"])
def test_the_device_is_closed_in_any_thread_and_then_says_so(device: CudaDevice, where: str) -> None:
    stream, _kept = device.stream(), device.allocate(10)
    stream.fill(_kept, 1, 10)
    if where == "same":
        device.close()
    else:
        thread = threading.Thread(target=device.close)
        thread.start()
        thread.join()

    assert left() == ""
    with pytest.raises(DeviceError, match=r"Simulated GPU 0 is closed: open it again with open_device\(0\)"):
        stream.synchronize()
    stream.close()
    _kept.close()


def test_a_device_made_in_a_thread_that_ended_is_closed_elsewhere() -> None:
    _driver.fake_heal()
    made: list[CudaDevice] = []
    thread = threading.Thread(target=lambda: made.append(open_device()))
    thread.start()
    thread.join()
    made[0].allocate(10)

    made[0].close()

    assert left() == ""


def test_closing_leaves_the_contexts_of_others_in_place(device: CudaDevice) -> None:
    pycuda = device.libraries.pycuda
    foreign = pycuda.Device(0).retain_primary_context()
    foreign.push()
    try:
        device.allocate(10)
        device.close()
        assert left() == "1 contexts, 1 on the stack of this thread, "
        pycuda.mem_get_info()
    finally:
        pycuda.Context.pop()
        foreign.detach()
        cuda = device.libraries.bindings
        cuda.cuCtxPopCurrent()  # pycuda leaves it there


def test_a_device_is_not_closed_inside_its_own_context(device: CudaDevice) -> None:
    with device.current(), pytest.raises(DeviceError, match="cannot be closed inside its own current"):
        device.close()


def test_closing_waits_for_a_thread_that_is_inside(device: CudaDevice) -> None:
    inside, go = threading.Event(), threading.Event()
    seen = []

    def work() -> None:
        with device.current():
            inside.set()
            go.wait()
            seen.append(left())

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    closer = threading.Thread(target=device.close)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go.set()
    closer.join()
    thread.join()

    assert "1 pools" in seen[0]
    assert left() == ""


def test_a_kernel_that_faults_makes_the_device_unusable_at_once(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(10)
    stream.launch(device.module(source).kernel("fault"), GRID, BLOCK, [buffer])
    assert not device.failed

    with pytest.raises(
        DeviceError,
        match=r"cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS \(700\): an illegal memory access was encountered\. "
        r"No GPU work is possible in this process any more: start it anew",
    ) as info:
        stream.synchronize()

    assert device.failed and info.value.sticky and info.value.code == 700
    for call in (stream.synchronize, lambda: device.allocate(1), device.stream, lambda: stream.fill(buffer, 0, 1)):
        with pytest.raises(DeviceError, match="Simulated GPU 0 failed before: cuStreamSynchronize") as info:
            call()
        assert info.value.sticky
    buffer.close()
    stream.close()


@pytest.mark.parametrize(
    ("call", "code", "sticky"),
    [("cuLaunchKernel", 700, True), ("cuLaunchKernel", 719, True), ("cuLaunchKernel", 1, False)],
)
def test_a_launch_that_fails_is_sticky_by_its_code(
    device: CudaDevice, source: str, call: str, code: int, sticky: bool
) -> None:
    stream, buffer = device.stream(), device.allocate(10)
    fail(call, code)

    with pytest.raises(DeviceError, match=rf"{call} \(add\): CUDA_ERROR_\w+ \({code}\)") as info:
        add(device, stream, source, buffer, 1)

    assert (device.failed, info.value.sticky, info.value.code) == (sticky, sticky, code)


@pytest.mark.parametrize("call", ["cuMemAllocFromPoolAsync", "cuMemHostRegister", "cuGraphInstantiateWithFlags"])
def test_too_little_memory_is_no_failure_of_the_device(device: CudaDevice, call: str) -> None:
    stream = device.stream()
    _driver.fake_capacity(1 << 30)

    def allocate() -> None:
        if call == "cuMemAllocFromPoolAsync":
            device.allocate(2 << 30)
        elif call == "cuMemHostRegister":
            device.host_array(10, np.uint8)
        else:
            with stream.capture():
                pass

    fail(call, 2)
    with pytest.raises(DeviceMemoryError):
        allocate()

    assert not device.failed
    stream.synchronize()


def test_a_failed_opening_leaves_nothing_behind() -> None:
    _driver.fake_heal()
    fail("cuMemPoolCreate", 1)

    with pytest.raises(DeviceError, match="cuMemPoolCreate: CUDA_ERROR_INVALID_VALUE"):
        open_device()

    assert left() == ""


def test_an_image_that_does_not_load_is_named(device: CudaDevice, source: str) -> None:
    fail("cuModuleLoadDataEx", 209)

    with pytest.raises(
        UnavailableError, match=r"simulated\.cu, compiled for sm_90, cannot be loaded: .*NO_BINARY_FOR_GPU.*remove"
    ):
        device.module(source)

    device.module(source)


def test_a_tensor_is_given_and_taken_by_dlpack(device: CudaDevice) -> None:
    stream, buffer = device.stream(), device.allocate(24)
    stream.to_device(buffer, np.arange(6, dtype=np.float32))
    given = DeviceTensor(buffer, (2, 3), np.dtype(np.float32), stream=stream)
    other = device.stream()

    taken = from_dlpack(given, other)
    back = np.zeros((2, 3), np.float32)
    other.to_host(back, taken.buffer)

    assert given.__dlpack_device__() == (2, 0)
    assert (taken.shape, taken.dtype, taken.buffer) == ((2, 3), np.dtype("f4"), ForeignBuffer(buffer.pointer, 24))
    assert back.tolist() == [[0, 1, 2], [3, 4, 5]]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-p", "no:cacheprovider"]))
