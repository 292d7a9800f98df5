# SPDX-License-Identifier: Apache-2.0
"""Work on the simulated driver: launches, copies, graphs, events."""

import gc

import numpy as np
import pytest
import simulation

from ocdserve.backend.device.cuda import CudaDevice, open_device
from ocdserve.backend.device.protocol import DeviceError
from ocdserve.contract import InvalidInputError


def test_the_gpu_is_described(device: CudaDevice) -> None:
    assert (device.name, device.multiprocessors, device.context.architecture) == ("Simulated GPU 0", 132, "sm_90")
    assert device.context.compute_capability == (9, 0)


def test_work_goes_there_and_back(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(1000)
    there, back = device.host_array(1000, np.uint8), device.host_array((10, 100), np.uint8)
    assert there.sum() == 0
    there[:] = np.arange(1000) % 200

    stream.to_device(buffer, there)
    simulation.add(device, stream, source, buffer, 3)
    stream.to_host(back, buffer)
    assert back.sum() == 0  # nobody waited yet
    stream.synchronize()

    np.testing.assert_array_equal(back.ravel(), np.arange(1000) % 200 + 3)
    assert simulation.launches() == b"add(13 bytes, 1024 threads)\n"


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


def test_memory_of_another_gpu_is_fetched(device: CudaDevice) -> None:
    other = open_device(1)
    source, stream, back = other.allocate(16), other.stream(), np.zeros(12, np.uint8)
    stream.to_device(source, np.arange(16, dtype=np.uint8))
    stream.synchronize()

    fetched = device.fetch(source, 12, 1)
    device.stream().to_host(back, fetched)

    assert (fetched.size, back.tolist()) == (12, list(range(12)))
    other.close()
    # Memory of another GPU is none of this one's.
    with pytest.raises(DeviceError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.fetch(fetched, 12, 1)


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
    stream.launch(
        device.module(source).kernel("add"), simulation.GRID, simulation.BLOCK, [device.allocate(4), np.int32(0), value]
    )
    stream.synchronize()

    # Aligned to its own size, as the compiler lays parameters out.
    expected = 12 + size if size < 8 else 24
    assert simulation.launches().decode() == f"add({expected} bytes, 1024 threads)\n"


def test_more_shared_memory_is_asked_for(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(4)
    kernel = device.module(source).kernel("add")
    arguments = [buffer, np.int32(4), np.uint8(1)]

    stream.launch(kernel, simulation.GRID, simulation.BLOCK, arguments, shared=100 * 1024)
    stream.synchronize()
    with pytest.raises(DeviceError, match=r"cuFuncSetAttribute \(add\): CUDA_ERROR_INVALID_VALUE"):
        stream.launch(kernel, simulation.GRID, simulation.BLOCK, arguments, shared=300 * 1024)

    assert not device.failed


def test_a_graph_repeats_with_what_the_host_arrays_then_hold(device: CudaDevice, source: str) -> None:
    stream, buffer = device.stream(), device.allocate(100)
    there, back = device.host_array(100, np.uint8), device.host_array(100, np.uint8)
    device.module(source).kernel("add")

    with stream.capture() as capture:
        with pytest.raises(InvalidInputError, match="once the `with` block"):
            _ = capture.graph
        stream.to_device(buffer, there)
        simulation.add(device, stream, source, buffer, 1)
        stream.to_host(back, buffer)
    stream.synchronize()
    assert simulation.launches() == b""  # recorded, not done

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
        simulation.add(device, side, source, buffer, 2)
        stream.wait(side.record())
        simulation.add(device, stream, source, buffer, 1)
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

    simulation.add(device, stream, source, buffer, 1)
    stream.synchronize()
    assert not device.failed


def test_events_measure_the_time_between_them(device: CudaDevice) -> None:
    stream = device.stream()
    first = stream.record()
    stream.fill(device.allocate(1 << 20), 1, 1 << 20)
    second = stream.record()

    assert 0 < second.elapsed_ms(first) < 1000
    second.close()
    with pytest.raises(DeviceError, match="the event is closed"):
        second.synchronize()
