# SPDX-License-Identifier: Apache-2.0
"""Opening, closing, failures and release, on the simulated driver."""

import gc
import threading

import numpy as np
import pytest
import simulation

from ocdserve.backend.device.buffers import ForeignBuffer
from ocdserve.backend.device.cuda import CudaDevice, open_device
from ocdserve.backend.device.dlpack import DeviceTensor, from_dlpack
from ocdserve.backend.device.protocol import DeviceError, DeviceMemoryError
from ocdserve.backend.gpu.memory import ImagePool, locked_bytes
from ocdserve.contract import UnavailableError


def test_another_gpu_is_another_context(device: CudaDevice, source: str) -> None:
    other = open_device(1)
    assert (other.name, other.context.architecture) == ("Simulated GPU 1", "sm_75")
    with device.current(), other.current():
        stream = device.stream()
        buffer = device.allocate(8)
        simulation.add(device, stream, source, buffer, 1)
        stream.synchronize()
    other.close()


def test_a_missing_gpu_is_named(device: CudaDevice) -> None:
    with pytest.raises(UnavailableError, match="no GPU 2; it has 2"):
        open_device(2)


def test_a_missing_kernel_is_named(device: CudaDevice, source: str) -> None:
    with pytest.raises(UnavailableError, match=r"has no kernel 'subtract': .*CUDA_ERROR_NOT_FOUND"):
        device.module(source).kernel("subtract")


def test_nothing_is_released_while_a_stream_records(device: CudaDevice) -> None:
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
        assert "3 streams" in simulation.left() or "4 streams" in simulation.left()

    capture.graph.launch(stream)
    stream.synchronize()
    assert "host memory" not in simulation.left()


def test_memory_is_used_again_only_behind_the_work_that_used_it(device: CudaDevice, source: str) -> None:
    first, second = device.stream(), device.stream()
    buffer = device.allocate(100)
    first.fill(buffer, 1, 100)
    second.wait(first.record())
    simulation.add(device, second, source, buffer, 1)

    buffer.close()
    buffer.close()
    device.allocate(100).close()
    second.synchronize()  # had the memory gone, the kernel would have failed

    assert not device.failed


def test_an_allocation_never_waits_for_the_work_of_other_streams(device: CudaDevice) -> None:
    assert "1 pools" in simulation.left()
    assert simulation.waiting_pools() == 0


def used_bytes(device: CudaDevice) -> int:
    """Device memory that is allocated, in bytes."""
    with device.current():
        return device._pool.used()


def test_memory_is_released(device: CudaDevice) -> None:
    buffers = [device.allocate(1000) for _ in range(10)]
    assert used_bytes(device) == 10_000
    for buffer in buffers[:5]:
        buffer.close()
    del buffers, buffer
    gc.collect()

    with pytest.raises(DeviceMemoryError, match=r"4096\.0 MiB of GPU memory .*1024\.0 of 1024\.0 MiB are free, 0\.0"):
        device.allocate(1 << 32)
    assert used_bytes(device) == 0


def test_an_allocation_waits_for_pending_frees_when_memory_is_short(device: CudaDevice) -> None:
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
    assert "host memory" in simulation.left()

    device.close()

    assert simulation.left() == ""
    assert set(view.ravel().tolist()) == {2.5}


def test_memory_of_images_is_locked_once_and_unlocked_with_the_device(device: CudaDevice) -> None:
    pool, stream, buffer = ImagePool(device), device.stream(), device.allocate(30_003)
    addresses, back = set(), device.host_array(30_003, np.uint8)
    for value in range(4):
        image = pool.array(100, 100)
        addresses.add(image.ctypes.data)
        image[:] = value
        part = locked_bytes(image)
        assert part is not None
        stream.to_device(buffer, part)
        stream.to_host(back, buffer)
        stream.synchronize()
        assert set(back[:30_000].tolist()) == {value}
        del image, part
    assert len(addresses) == 1

    kept = pool.array(100, 100)
    kept[:] = 8
    pool.close()
    device.close()

    assert simulation.left() == ""
    assert set(kept.ravel().tolist()) == {8}


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
                simulation.add(device, stream, source, own, 1)
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
    assert "stack" not in simulation.left()


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

    assert simulation.left() == ""
    with pytest.raises(DeviceError, match=r"Simulated GPU 0 is closed: open it again with open_device\(0\)"):
        stream.synchronize()
    stream.close()
    _kept.close()


def test_a_device_made_in_a_thread_that_ended_is_closed_elsewhere() -> None:
    simulation.heal()
    made: list[CudaDevice] = []
    thread = threading.Thread(target=lambda: made.append(open_device()))
    thread.start()
    thread.join()
    made[0].allocate(10)

    made[0].close()

    assert simulation.left() == ""


def test_closing_leaves_the_contexts_of_others_in_place(device: CudaDevice) -> None:
    pycuda = device.context.libraries.pycuda
    foreign = pycuda.Device(0).retain_primary_context()
    foreign.push()
    try:
        device.allocate(10)
        device.close()
        assert simulation.left() == "1 contexts, 1 on the stack of this thread, "
        pycuda.mem_get_info()
    finally:
        pycuda.Context.pop()
        foreign.detach()
        cuda = device.context.libraries.bindings
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
            seen.append(simulation.left())

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
    assert simulation.left() == ""


def test_a_kernel_that_faults_makes_the_device_unusable_at_once(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(10)
    stream.launch(device.module(source).kernel("fault"), simulation.GRID, simulation.BLOCK, [buffer])
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
    simulation.fail(call, code)

    with pytest.raises(DeviceError, match=rf"{call} \(add\): CUDA_ERROR_\w+ \({code}\)") as info:
        simulation.add(device, stream, source, buffer, 1)

    assert (device.failed, info.value.sticky, info.value.code) == (sticky, sticky, code)


@pytest.mark.parametrize("call", ["cuMemAllocFromPoolAsync", "cuMemHostRegister", "cuGraphInstantiateWithFlags"])
def test_too_little_memory_is_no_failure_of_the_device(device: CudaDevice, call: str) -> None:
    stream = device.stream()

    def allocate() -> None:
        if call == "cuMemAllocFromPoolAsync":
            device.allocate(2 << 30)
        elif call == "cuMemHostRegister":
            device.host_array(10, np.uint8)
        else:
            with stream.capture():
                pass

    simulation.fail(call, 2)
    with pytest.raises(DeviceMemoryError):
        allocate()

    assert not device.failed
    stream.synchronize()


def test_a_failed_opening_leaves_nothing_behind() -> None:
    simulation.heal()
    simulation.fail("cuMemPoolCreate", 1)

    with pytest.raises(DeviceError, match="cuMemPoolCreate: CUDA_ERROR_INVALID_VALUE"):
        open_device()

    assert simulation.left() == ""


def test_an_image_that_does_not_load_is_named(device: CudaDevice, source: str) -> None:
    simulation.fail("cuModuleLoadDataEx", 209)

    with pytest.raises(
        UnavailableError, match=r"simulated\.cu, compiled for sm_90, cannot be loaded: .*NO_BINARY_FOR_GPU.*remove"
    ):
        device.module(source)

    device.module(source)


def test_a_tensor_is_exported_and_imported_by_dlpack(device: CudaDevice) -> None:
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
