# SPDX-License-Identifier: Apache-2.0
"""Known maps in place of a network, to measure everything else on any GPU."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.options import MapType
from ocdserve.contract import MAX_BATCH_SIZE


class MapNetwork:
    """A `DeviceNetwork` whose output does not depend on its input.

    Args:
        device: The GPU.
        maps: (h, w) uint8, all of one size; image i of a batch gets map i, modulo their number.
    """

    map_type: MapType = "uint8"

    def __init__(self, device: Device, maps: Sequence[NDArray[np.uint8]]) -> None:
        batch = np.stack([maps[index % len(maps)] for index in range(MAX_BATCH_SIZE)])
        self._maps = device.allocate(batch.nbytes)
        stream = device.stream()
        stream.to_device(self._maps, batch)
        stream.synchronize()
        stream.close()

    def check(self, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.check`."""

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.enqueue`."""
        stream.copy(maps, self._maps, batch * height * width)

    def unrecordable(self) -> str:
        """See `DeviceNetwork.unrecordable`."""
        return ""

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`."""

    def close(self) -> None:
        """See `DeviceNetwork.close`."""
        self._maps.close()
