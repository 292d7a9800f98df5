# SPDX-License-Identifier: Apache-2.0
"""The emulated device's memory, modules and closing, through the protocols of the GPU stages."""

import gc

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, KernelFault, MisuseError
from cuda_emulator.events import EmulatedEvent
from cuda_emulator.launching import EmulatedKernel, EmulatedModule
from cuda_emulator.streams import EmulatedCapture, EmulatedGraph, EmulatedStream

from ocdserve.backend.device.protocol import (
    Buffer,
    Capture,
    Device,
    DeviceError,
    DeviceMemoryError,
    Event,
    Graph,
    Kernel,
    Module,
    Stream,
)
from ocdserve.contract import UnavailableError

SOURCES = {
    "own.cu": '#include "own.cuh"\nextern "C" __global__ void set(int* out) { *out = VALUE; }\n',
    "own.cuh": "#define VALUE 42\n",
    "none.cu": "__device__ int unused() { return 1; }\n",
    "trap.cu": 'extern "C" __global__ void trap() { __trap(); }\n',
}


@pytest.fixture
def device(cuda_compiler: None) -> EmulatedDevice:
    return EmulatedDevice(sources=SOURCES)


def _implement(
    stream: type[EmulatedStream],
    event: type[EmulatedEvent],
    graph: type[EmulatedGraph],
    capture: type[EmulatedCapture],
    module: type[EmulatedModule],
    kernel: type[EmulatedKernel],
) -> tuple[type[Stream], type[Event], type[Graph], type[Capture], type[Module], type[Kernel]]:
    """For the type checker alone."""
    return stream, event, graph, capture, module, kernel


def test_it_is_a_device(device: EmulatedDevice) -> None:
    emulated: Device = device
    buffer: Buffer = emulated.allocate(3)

    assert (emulated.name, emulated.multiprocessors, emulated.failed) == ("CUDA emulator", 2, False)
    assert (buffer.size, buffer.pointer % 16) == (3, 0)


def test_memory_is_garbage_until_it_is_written(device: EmulatedDevice) -> None:
    buffer = device.allocate(12)

    assert buffer.array(3, np.uint32).tolist() == [0xCDCDCDCD] * 3


def test_memory_that_was_released_is_no_longer_counted(device: EmulatedDevice) -> None:
    first, second = device.allocate(1000), device.allocate(24)
    assert (device.allocated, device.buffers) == (1024, (first, second))

    first.close()
    first.close()

    assert (device.allocated, device.buffers) == (24, (second,))


def test_a_leaked_buffer_is_still_counted(device: EmulatedDevice) -> None:
    device.allocate(1000)
    gc.collect()

    assert device.allocated == 1000


def test_more_memory_than_available_cannot_be_allocated() -> None:
    device = EmulatedDevice(memory_size=1000)
    device.allocate(600)

    with pytest.raises(DeviceMemoryError, match=r"^500 bytes asked for, 400 of 1000 are free$"):
        device.allocate(500)
    assert not device.failed


def test_a_closed_buffer_cannot_be_used(device: EmulatedDevice) -> None:
    buffer, stream = device.allocate(16), device.stream()
    buffer.close()

    with pytest.raises(MisuseError, match="a buffer of 16 bytes is used after it was closed"):
        _ = buffer.pointer
    with pytest.raises(MisuseError, match="is used after it was closed"):
        stream.fill(buffer, 0, 16)
    with pytest.raises(MisuseError, match="is used after it was closed"):
        stream.launch(device.module("own.cu").kernel("set"), (1, 1, 1), (1, 1, 1), [buffer])


def test_a_buffer_of_another_device_cannot_be_used(device: EmulatedDevice) -> None:
    buffer = EmulatedDevice().allocate(16)

    with pytest.raises(MisuseError, match="fill: the buffer must be one of this device"):
        device.stream().fill(buffer, 0, 16)


def test_host_arrays_are_zeroed(device: EmulatedDevice) -> None:
    array = device.host_array((2, 3), np.float32)

    assert (array.dtype.name, array.tolist()) == ("float32", [[0.0] * 3] * 2)


def test_a_module_has_headers_and_kernels_of_its_own(device: EmulatedDevice) -> None:
    buffer, stream, out = device.allocate(4), device.stream(), np.zeros(1, np.int32)
    kernel = device.module("own.cu").kernel("set")

    stream.launch(kernel, (1, 1, 1), (1, 1, 1), [buffer])
    stream.to_host(out, buffer)
    stream.synchronize()

    assert (kernel.name, out[0]) == ("set", 42)


@pytest.mark.parametrize(
    ("source", "kernel", "message"),
    [
        ("absent.cu", "set", "there is no source 'absent.cu'. There are: .*own.cu"),
        ("own.cu", "absent", "own.cu: there is no kernel 'absent'. There are: set."),
        ("none.cu", "unused", "none.cu: there is no kernel 'unused'. There are: none."),
    ],
)
def test_what_is_missing_is_named(device: EmulatedDevice, source: str, kernel: str, message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        device.module(source).kernel(kernel)


def test_after_a_fault_every_call_fails(device: EmulatedDevice) -> None:
    stream, other, buffer = device.stream(), device.stream(), device.allocate(4)
    kernel = device.module("trap.cu").kernel("trap")
    stream.launch(kernel, (1, 1, 1), (1, 1, 1), [])
    assert not device.failed

    with pytest.raises(KernelFault, match="trap, block") as caught:
        stream.synchronize()

    assert (device.failed, caught.value.sticky) == (True, True)
    for again in (stream.synchronize, other.synchronize, device.stream, lambda: device.allocate(1)):
        with pytest.raises(DeviceError, match="the device is unusable since earlier work failed: trap, block"):
            again()
    buffer.close()
    stream.close()
    device.close()


def test_a_failure_can_be_requested(device: EmulatedDevice) -> None:
    stream = device.stream()

    device.fail("fell off the bus")

    with pytest.raises(DeviceError, match="fell off the bus") as caught:
        stream.synchronize()
    assert caught.value.sticky


def test_a_closed_device_holds_nothing_and_does_nothing(device: EmulatedDevice) -> None:
    device.allocate(100)
    stream = device.stream()

    device.close()
    device.close()

    assert device.allocated == 0
    with pytest.raises(MisuseError, match="the device is closed"):
        device.allocate(1)
    with pytest.raises(MisuseError, match="the device is closed"):
        stream.synchronize()
