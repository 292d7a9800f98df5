# SPDX-License-Identifier: Apache-2.0
"""Rectification on the GPU: text lines of any images to one batch for the recogniser, in one launch.

A line has the bytes of `ocdserve.backend.stages.rectify` on the CPU. Its speed on a GPU is not measured yet.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, KernelArgument, Stream
from ocdserve.backend.gpu.preprocess import THREADS, TILE_HEIGHT, TILE_WIDTH
from ocdserve.contract import InvalidInputError
from ocdserve.results.reading.lines import LINE


class GpuRectify:
    """Rectification for one stream: one batch at a time, one thread at a time.

    Args:
        device: The GPU.
        most: Most lines per batch.

    Raises:
        UnavailableError: The kernel cannot be compiled or loaded.
    """

    def __init__(self, device: Device, most: int) -> None:
        self._kernel = device.module("preprocess.cu").kernel("rectify_lines")
        self._lines = device.host_array(most, LINE)
        self._device_lines = device.allocate(self._lines.nbytes)

    def stage(self, lines: NDArray[Any]) -> None:
        """Set the lines up for `launch`, once the previous batch is complete.

        Args:
            lines: `LINE` (N,), with the address of its image's pixels on the GPU.

        Raises:
            InvalidInputError: There are none or too many.
        """
        if not 1 <= len(lines) <= len(self._lines):
            raise InvalidInputError(f"a batch must be of 1 to {len(self._lines)} lines; got {len(lines)}")
        # Those that fill the batch up are without any width.
        self._lines[:] = np.zeros((), LINE)
        self._lines[: len(lines)] = lines

    def launch(self, stream: Stream, output: Buffer, count: int, height: int, width: int, fill: int) -> None:
        """Queue the kernel for what was staged last; it may be captured.

        Args:
            stream: Where to queue it.
            output: uint8 (count, height, width, 3) RGB.
            count: Lines of the batch; those not staged are `fill` all over.
            height: Rows of each line.
            width: Columns of each line; what does not fit is cropped.
            fill: Value of all pixels beside a line.
        """
        stream.to_device(self._device_lines, self._lines)
        grid = (-(-width // TILE_WIDTH), -(-height // TILE_HEIGHT), count)
        size: list[KernelArgument] = [np.int32(height), np.int32(width)]
        arguments = [self._device_lines, output, *size, np.uint8(fill)]
        stream.launch(self._kernel, grid, (THREADS, 1, 1), arguments)

    def close(self) -> None:
        """Release all memory; calling it again does nothing."""
        self._device_lines.close()
