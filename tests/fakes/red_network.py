# SPDX-License-Identifier: Apache-2.0
"""A network on any device whose map is the red channel, computed by a kernel; it checks its use."""

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
SOURCES = {"red.cu": SOURCE}


class RedNetwork:
    map_type = "uint8"

    def __init__(self, device: Any, largest: int = 4096) -> None:
        self._kernel = device.module("red.cu").kernel("red")
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

    def enqueue(self, stream: Any, pixels: Any, maps: Any, batch: int, height: int, width: int) -> None:
        assert not self.closed
        self.check(batch, height, width)
        if self.fault is not None:
            self.fault(stream)
        with self._lock:
            self.prepared.add((stream.handle, batch, height, width))
            self._streams.add(stream)
            self.batches.append((batch, height, width))
        count = batch * height * width
        stream.launch(self._kernel, (-(-count // 256), 1, 1), (256, 1, 1), [pixels, maps, np.int32(count)])

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


def refuses_capture(stream: Any) -> None:
    """A faulty network, like a library that allocates memory in each call."""
    if getattr(stream, "_capture", None) is not None:
        raise UnavailableError("operation not permitted when stream is capturing")
