# SPDX-License-Identifier: Apache-2.0
"""Work is executed when it is waited for, in the order of its stream and no other."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, MisuseError
from cuda_emulator.streams import EmulatedStream

SOURCES = {"add.cu": 'extern "C" __global__ void add(int* out, int n) { out[threadIdx.x] += n; }\n'}
GARBAGE = int(np.int32(np.uint32(0xCDCDCDCD).view(np.int32)))


@pytest.fixture
def device(cuda_compiler: None) -> EmulatedDevice:
    return EmulatedDevice(sources=SOURCES)


@pytest.fixture
def add(device: EmulatedDevice) -> Callable[[EmulatedStream, Any, int], None]:
    kernel = device.module("add.cu").kernel("add")

    def add(stream: EmulatedStream, buffer: Any, n: int) -> None:
        stream.launch(kernel, (1, 1, 1), (2, 1, 1), [buffer, np.int32(n)])

    return add


def test_results_are_garbage_until_they_are_waited_for(device: EmulatedDevice, add: Any) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    out = np.array([1, 2], np.int32)
    stream.fill(buffer, 0, 8)
    add(stream, buffer, 5)
    stream.to_host(out, buffer)

    assert out.tolist() == [GARBAGE, GARBAGE]
    stream.synchronize()
    assert out.tolist() == [5, 5]


def test_without_deferral_work_is_executed_at_once() -> None:
    device = EmulatedDevice(deferred=False)
    stream, buffer, out = device.stream(), device.allocate(4), np.zeros(1, np.int32)

    stream.fill(buffer, 1, 4)
    stream.to_host(out, buffer)

    assert out[0] == 0x01010101


def test_a_page_locked_array_is_read_when_the_copy_is_executed(device: EmulatedDevice) -> None:
    stream, buffer, out = device.stream(), device.allocate(8), np.zeros(2, np.int32)
    pinned, plain = device.host_array(4, np.int32), np.array([1], np.int32)
    part = pinned[2:3]
    part[0] = 1
    stream.to_device(buffer, part)
    stream.to_device(buffer, plain, 4)

    part[0] = plain[0] = 2
    stream.to_host(out, buffer)
    stream.synchronize()

    assert out.tolist() == [2, 1]


def test_an_array_may_be_source_and_then_target(device: EmulatedDevice, add: Any) -> None:
    stream, buffer, pinned = device.stream(), device.allocate(8), device.host_array(2, np.int32)
    pinned[:] = (10, 20)

    stream.to_device(buffer, pinned)
    add(stream, buffer, 1)
    stream.to_host(pinned, buffer)
    stream.synchronize()

    assert pinned.tolist() == [11, 21]


@pytest.mark.parametrize("is_source", [True, False])
def test_a_page_locked_array_must_live_until_the_copy(device: EmulatedDevice, is_source: bool) -> None:
    stream, buffer, pinned = device.stream(), device.allocate(8), device.host_array(2, np.int32)
    if is_source:
        stream.to_device(buffer, pinned)
    else:
        stream.to_host(pinned, buffer)

    del pinned
    gc.collect()

    with pytest.raises(MisuseError, match="a host array of a copy is gone before the copy happened"):
        stream.synchronize()


@pytest.mark.parametrize(("offset", "size"), [(1, 8), (-1, 4), (8, 4)])
def test_copies_and_fills_stay_inside_of_the_buffer(device: EmulatedDevice, offset: int, size: int) -> None:
    stream, buffer, other = device.stream(), device.allocate(8), device.allocate(64)
    array = np.zeros(size, np.uint8)
    message = f"bytes {offset} to {offset + size} are outside of a buffer of 8 bytes"

    calls: list[Callable[[], None]] = [
        lambda: stream.to_device(buffer, array, offset),
        lambda: stream.to_host(array, buffer, offset),
        lambda: stream.fill(buffer, 0, size, offset),
        lambda: stream.copy(buffer, other, size, offset),
        lambda: stream.copy(other, buffer, size, 0, offset),
    ]
    for queue in calls:
        with pytest.raises(MisuseError, match=message):
            queue()


def test_arrays_of_copies_must_be_contiguous_and_targets_writeable(device: EmulatedDevice) -> None:
    stream, buffer, array = device.stream(), device.allocate(8), np.zeros((4, 4), np.uint8)

    with pytest.raises(MisuseError, match=r"host arrays of copies must be C-contiguous \(got strides \(4, 1\)\)"):
        stream.to_device(buffer, array[:, :2])
    array.setflags(write=False)
    with pytest.raises(MisuseError, match="the target of to_host must be writeable"):
        stream.to_host(array[0], buffer)


def test_parts_of_buffers_are_copied(device: EmulatedDevice) -> None:
    stream, source, target, out = device.stream(), device.allocate(8), device.allocate(8), np.zeros(8, np.uint8)
    stream.to_device(source, np.arange(8, dtype=np.uint8))
    stream.fill(target, 9, 8)

    stream.copy(target, source, 3, target_offset=1, source_offset=4)
    stream.copy(target, source, 0)
    stream.to_host(out, target)
    stream.synchronize()

    assert out.tolist() == [9, 4, 5, 6, 9, 9, 9, 9]
    with pytest.raises(MisuseError, match="overlap"):
        stream.copy(source, source, 5, 0, 3)


def test_empty_copies_are_allowed(device: EmulatedDevice) -> None:
    stream, buffer = device.stream(), device.allocate(0)

    stream.to_device(buffer, np.zeros((0, 3), np.float32))
    stream.to_host(np.zeros(0), buffer)
    stream.fill(buffer, 0, 0)
    stream.synchronize()


def test_a_buffer_may_be_closed_while_work_on_it_is_queued(device: EmulatedDevice) -> None:
    stream, buffer, out = device.stream(), device.allocate(4), np.zeros(1, np.int32)
    stream.fill(buffer, 2, 4)
    stream.to_host(out, buffer)

    buffer.close()
    assert device.allocated == 0
    stream.synchronize()

    assert out[0] == 0x02020202


def test_streams_do_not_wait_for_each_other_without_an_event(device: EmulatedDevice) -> None:
    first, second, buffer = device.stream(), device.stream(), device.allocate(4)
    early, late = np.zeros(1, np.uint8), np.zeros(1, np.uint8)
    first.fill(buffer, 7, 4)
    event = first.record()
    first.fill(buffer, 8, 4)

    second.to_host(early, buffer)
    second.wait(event)
    second.to_host(late, buffer)
    second.synchronize()

    assert (early[0], late[0]) == (0xCD, 7)
    assert first.handle != second.handle


def test_events_measure_and_wait(device: EmulatedDevice) -> None:
    stream, buffer = device.stream(), device.allocate(4)
    start = stream.record()
    stream.fill(buffer, 1, 4)
    end = stream.record()
    stream.fill(buffer, 2, 4)

    end.synchronize()

    assert buffer.array(4, np.uint8).tolist() == [1] * 4
    assert 0 < end.elapsed_ms(start) < 10_000
    end.close()
    end.close()
    with pytest.raises(MisuseError, match="the event is closed"):
        end.synchronize()


def test_python_code_can_stand_for_a_library(device: EmulatedDevice) -> None:
    stream, buffer, out = device.stream(), device.allocate(8), np.zeros(2, np.int32)
    stream.fill(buffer, 0, 8)

    def invert() -> None:
        buffer.array(2, np.int32)[:] = (3, 4)

    stream.call(invert, buffer)
    stream.to_host(out, buffer)
    stream.synchronize()

    assert out.tolist() == [3, 4]


def test_a_graph_reads_and_writes_the_arrays_as_they_are_when_it_runs(device: EmulatedDevice, add: Any) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    source, target = device.host_array(2, np.int32), device.host_array(2, np.int32)
    with stream.capture() as capture:
        stream.to_device(buffer, source)
        add(stream, buffer, 100)
        stream.to_host(target, buffer)
    stream.synchronize()
    assert (target.tolist(), buffer.array(2, np.int32).tolist()) == ([0, 0], [GARBAGE, GARBAGE])

    answers = []
    for value in (1, 2):
        source[:] = value
        capture.graph.launch(stream)
        assert target.tolist() == [GARBAGE, GARBAGE]
        stream.synchronize()
        answers.append(target.tolist())

    assert answers == [[101, 101], [102, 102]]


def test_a_graph_keeps_its_arrays_but_no_closed_buffer(device: EmulatedDevice) -> None:
    stream, buffer = device.stream(), device.allocate(8)
    pinned = device.host_array(8, np.uint8)
    pinned[:] = 3
    with stream.capture() as capture:
        stream.to_device(buffer, pinned)
    del pinned
    gc.collect()

    capture.graph.launch(stream)
    stream.synchronize()
    assert buffer.array(8, np.uint8).tolist() == [3] * 8

    buffer.close()
    with pytest.raises(MisuseError, match="a graph uses a buffer of 8 bytes that is closed"):
        capture.graph.launch(stream)


def test_a_closed_graph_cannot_be_launched(device: EmulatedDevice) -> None:
    stream = device.stream()
    with stream.capture() as capture:
        stream.fill(device.allocate(4), 0, 4)
    assert len(device.graphs) == 1

    capture.graph.close()
    capture.graph.close()

    assert len(device.graphs) == 0
    with pytest.raises(MisuseError, match="the graph is closed"):
        capture.graph.launch(stream)


def test_a_capture_does_not_wait_nor_nest_and_has_no_graph_before_its_end(device: EmulatedDevice) -> None:
    stream, other = device.stream(), device.stream()
    outside = other.record()

    with stream.capture() as capture:
        with pytest.raises(MisuseError, match="the graph of a capture is there once"):
            _ = capture.graph
        with pytest.raises(MisuseError, match="the stream is being captured"):
            stream.synchronize()
        with pytest.raises(MisuseError, match="already being captured"), stream.capture():
            pass
        with pytest.raises(MisuseError, match="a capture can wait only for events of its own"):
            stream.wait(outside)
        stream.wait(stream.record())


def test_a_capture_that_fails_leaves_no_graph(device: EmulatedDevice) -> None:
    stream = device.stream()

    with pytest.raises(ZeroDivisionError), stream.capture() as capture:
        _ = 1 / 0

    with pytest.raises(MisuseError, match="the graph of a capture is there once"):
        _ = capture.graph
    stream.synchronize()


def test_closing_a_stream_executes_its_work(device: EmulatedDevice) -> None:
    stream, buffer = device.stream(), device.allocate(4)
    stream.fill(buffer, 5, 4)

    stream.close()
    stream.close()

    assert buffer.array(4, np.uint8).tolist() == [5] * 4
    with pytest.raises(MisuseError, match="the stream is closed"):
        stream.synchronize()
