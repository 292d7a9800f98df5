# SPDX-License-Identifier: Apache-2.0
"""Networks on any device, computed by kernels, that check their use.

A detector's map is the red channel. A recogniser has a step for 8 columns: its class is the red of their first pixel
modulo the number of classes, its probability the green of it.
"""

import threading
from typing import Any

import numpy as np

from ocdserve.contract import InvalidInputError, UnavailableError

SOURCE = """
extern "C" __global__ void red(const unsigned char* pixels, unsigned char* maps, int count) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) {
        maps[index] = pixels[3 * index];
    }
}
"""
READING = """
extern "C" __global__ void steps(const unsigned char* lines, int* classes, float* probabilities, int height, int width,
                                 int most, int count) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < count) {
        const int steps = width / 8;
        const unsigned char* pixel = lines + 3LL * ((index / steps) * height * width + index % steps * 8);
        classes[index] = pixel[0] % most;
        probabilities[index] = pixel[1] / 255.0f;
    }
}
"""
SOURCES = {"red.cu": SOURCE, "steps.cu": READING}


class _Network:
    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._lock = threading.Lock()
        self.prepared: set[tuple[int, int, int, int]] = set()
        self.batches: list[tuple[int, int, int]] = []
        self.closed = False
        self._streams: set[Any] = set()
        # What `enqueue` does in place of its work; None: its work.
        self.fault: Any = None
        # Why it is not recorded.
        self.reason = ""

    def check(self, batch: int, height: int, width: int) -> None:
        if max(height, width) > self._largest:
            raise InvalidInputError(f"images of at most {self._largest} pixels a side; got {height} x {width}")

    def _use(self, stream: Any, batch: int, height: int, width: int) -> None:
        assert not self.closed
        self.check(batch, height, width)
        if self.fault is not None:
            self.fault(stream)
        with self._lock:
            self.prepared.add((stream.handle, batch, height, width))
            self._streams.add(stream)
            self.batches.append((batch, height, width))

    def unrecordable(self) -> str:
        return self.reason

    def release(self, stream: Any, batch: int, height: int, width: int) -> None:
        with self._lock:
            self.prepared.discard((stream.handle, batch, height, width))

    def close(self) -> None:
        for stream in self._streams:
            # Must be open still, as a session of ONNX Runtime is bound to its stream.
            stream.synchronize()
        self.closed = True


class RedNetwork(_Network):
    map_type = "uint8"

    def __init__(self, device: Any, largest: int = 4096) -> None:
        super().__init__(largest)
        self._kernel = device.module("red.cu").kernel("red")

    def enqueue(self, stream: Any, pixels: Any, maps: Any, batch: int, height: int, width: int) -> None:
        self._use(stream, batch, height, width)
        count = batch * height * width
        stream.launch(self._kernel, (-(-count // 256), 1, 1), (256, 1, 1), [pixels, maps, np.int32(count)])


class RedRecogniser(_Network):
    def __init__(self, device: Any, classes: int, largest_batch: int = 4096) -> None:
        super().__init__(4096)
        self._kernel = device.module("steps.cu").kernel("steps")
        self._classes = classes
        self._largest_batch = largest_batch

    def check(self, batch: int, height: int, width: int) -> None:
        super().check(batch, height, width)
        if batch > self._largest_batch:
            raise InvalidInputError(f"at most {self._largest_batch} lines; got {batch}")

    def steps(self, stream: Any, height: int, width: int) -> int:
        assert getattr(stream, "_capture", None) is None
        return width // 8

    def enqueue(
        self, stream: Any, lines: Any, classes: Any, probabilities: Any, batch: int, height: int, width: int
    ) -> None:
        self._use(stream, batch, height, width)
        count = batch * (width // 8)
        sizes = [np.int32(value) for value in (height, width, self._classes, count)]
        stream.launch(self._kernel, (-(-count // 256), 1, 1), (256, 1, 1), [lines, classes, probabilities, *sizes])


def refuses_capture(stream: Any) -> None:
    """A faulty network, like a library that allocates memory in each call."""
    if getattr(stream, "_capture", None) is not None:
        raise UnavailableError("operation not permitted when stream is capturing")
