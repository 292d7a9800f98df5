# SPDX-License-Identifier: Apache-2.0
"""Images in the GPU's memory, described by the arrays of other libraries."""

from typing import Any

import pytest

from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.contract import InvalidInputError


class Foreign:
    """Another library's array with its `__cuda_array_interface__`."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, typestr: str = "|u1") -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (4096, False),
            "strides": strides,
            "version": 3,
        }


@pytest.mark.parametrize(("strides", "pitch"), [(None, 60), ((60, 3, 1), 60), ((256, 3, 1), 256)])
def test_an_array_of_another_library_is_taken_without_a_copy(strides: tuple[int, ...] | None, pitch: int) -> None:
    array = Foreign((10, 20, 3), strides)

    image = DeviceImage.of(array)

    assert (image.pointer, image.height, image.width, image.row_step) == (4096, 10, 20, pitch)
    assert image.owner is array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (Foreign((10, 20, 3), typestr="<f4"), r"must be \|u1 of shape \(height, width, 3\); got <f4 \(10, 20, 3\)"),
        (Foreign((10, 20)), r"got \|u1 \(10, 20\)"),
        (Foreign((10, 20, 4)), r"got \|u1 \(10, 20, 4\)"),
        (Foreign((0, 20, 3)), r"got \|u1 \(0, 20, 3\)"),
        (Foreign((10, 20, 3), (80, 4, 1)), r"contiguous pixels in each row.*got strides \(80, 4, 1\)"),
        (Foreign((10, 20, 3), (1, 10, 200)), r"got strides \(1, 10, 200\)"),
        (Foreign((10, 20, 3), (-60, 3, 1)), r"got strides \(-60, 3, 1\)"),
    ],
)
def test_another_library_s_array_that_is_no_rgb_image_is_refused(array: Foreign, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DeviceImage.of(array)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pointer": 0}, "an address and at least one pixel; got 10 x 20 .* at 0x0"),
        ({"height": 0}, "got 0 x 20"),
        ({"width": -1}, "got 10 x -1"),
        ({"pitch": 59}, "pitch must be at least 60, a row's bytes; got 59"),
    ],
)
def test_an_image_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        DeviceImage(**{"pointer": 4096, "height": 10, "width": 20} | fields)
