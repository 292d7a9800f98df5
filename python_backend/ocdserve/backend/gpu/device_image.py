# SPDX-License-Identifier: Apache-2.0
"""An RGB image in the GPU's memory: decoded there, or put there by the client (CUDA shared memory)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import InvalidInputError


@dataclass(frozen=True)
class DeviceImage:
    """An RGB image in the GPU's memory, uint8 (height, width, 3).

    Attributes:
        pointer: Device address of the first pixel; any alignment.
        height: Rows.
        width: Pixels of a row.
        pitch: Bytes from one row to the next; None: rows are contiguous.
        owner: Keeps the memory alive; it is referenced as long as work on the image may be in flight.

    Raises:
        InvalidInputError: A field is out of its range.
    """

    pointer: int
    height: int
    width: int
    pitch: int | None = None
    owner: object = None

    def __post_init__(self) -> None:
        if min(self.pointer, self.height, self.width) < 1:
            raise InvalidInputError(
                "an image on the GPU must have an address and at least one pixel; "
                f"got {self.height} x {self.width} (height x width) at {self.pointer:#x}"
            )
        if self.row_step < 3 * self.width:
            raise InvalidInputError(f"pitch must be at least {3 * self.width}, a row's bytes; got {self.pitch}")

    @property
    def row_step(self) -> int:
        """Bytes from one row to the next."""
        return 3 * self.width if self.pitch is None else self.pitch

    @classmethod
    def of(cls, array: Any) -> "DeviceImage":
        """The image in an object with `__cuda_array_interface__`; it is referenced, not copied.

        Raises:
            InvalidInputError: It is not uint8 (height, width, 3) with contiguous pixels in each row.
        """
        interface = array.__cuda_array_interface__
        shape, strides = tuple(interface["shape"]), interface.get("strides")
        if interface["typestr"] != "|u1" or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise InvalidInputError(
                f"an image on the GPU must be |u1 of shape (height, width, 3); got {interface['typestr']} {shape}"
            )
        if strides is not None and (tuple(strides[1:]) != (3, 1) or strides[0] < 3 * shape[1]):
            raise InvalidInputError(
                f"an image on the GPU must have contiguous pixels in each row, and rows in order; got strides {strides}"
            )
        return cls(interface["data"][0], shape[0], shape[1], None if strides is None else strides[0], array)


def size_of(image: NDArray[np.uint8] | DeviceImage) -> tuple[int, int]:
    """Height and width of an image on the host or on the GPU, in pixels."""
    return (image.height, image.width) if isinstance(image, DeviceImage) else (image.shape[0], image.shape[1])
