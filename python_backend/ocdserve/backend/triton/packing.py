# SPDX-License-Identifier: Apache-2.0
"""Packing results of several images into the rectangular tensors of one response, and back; pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.resize import Frame, container_of
from ocdserve.contract import InvalidInputError
from ocdserve.results.detections import Detections


def stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of equal rank and dtype as one (B, ...) array, zero-padded to the largest."""
    if len(arrays) == 1:
        return arrays[0][None]
    shape = np.max([array.shape for array in arrays], axis=0)
    result = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for target, array in zip(result, arrays, strict=True):
        target[tuple(slice(0, length) for length in array.shape)] = array
    return result


def pack_images(images: Sequence[tuple[NDArray[np.uint8], Frame]]) -> dict[str, NDArray[Any]]:
    """Preprocessed images as NETWORK_IMAGE (B, H, W, 3), FRAME (B, 6) and SIZE (B, 2).

    Raises:
        InvalidInputError: See `container_of`.
    """
    container_of([frame for _, frame in images])
    return {
        "NETWORK_IMAGE": stacked([pixels for pixels, _ in images]),
        **pack_frames([frame for _, frame in images]),
    }


def pack_frames(frames: Sequence[Frame]) -> dict[str, NDArray[Any]]:
    """Frames as FRAME (B, 6) and SIZE (B, 2)."""
    return {
        "FRAME": np.stack([frame.to_array() for frame in frames]),
        "SIZE": np.array([frame.source for frame in frames], np.int32),
    }


def unpack_images(container: NDArray[Any], frames: Sequence[Frame]) -> list[NDArray[Any]]:
    """Each image's own part (H, W, ...) of a container (B, H, W, ...), with all its tiles; C-contiguous.

    Raises:
        InvalidInputError: A frame does not fit the container.
    """
    check_frames(container.shape, frames)
    return [
        np.ascontiguousarray(image[: frame.container[0], : frame.container[1]])
        for image, frame in zip(container, frames, strict=True)
    ]


def check_frames(container: Sequence[int], frames: Sequence[Frame]) -> None:
    """Raise InvalidInputError unless the frames fit a container of that shape (B, H, W, ...)."""
    for frame in frames:
        height, width = frame.container
        if height > container[1] or width > container[2]:
            raise InvalidInputError(
                f"FRAME says {height} x {width} network pixels, more than the tensor's "
                f"{container[1]} x {container[2]}. Pass on what the step before returned."
            )


def pack_detections(found: Sequence[Detections], polygons: bool) -> dict[str, NDArray[Any]]:
    """Detections as QUADS (B, N, 4, 2), SCORES (B, N), COUNT (B, 1) and, if wanted, POINTS and POINT_COUNTS.

    Where polygon tensors are wanted but none were computed, POINTS has no rows and POINT_COUNTS is -1.
    """
    outputs = {
        "QUADS": stacked([item.quads for item in found]),
        "SCORES": stacked([item.scores for item in found]),
        "COUNT": np.array([[len(item)] for item in found], np.int32),
    }
    if polygons:
        outputs["POINTS"] = stacked([_points(item) for item in found])
        outputs["POINT_COUNTS"] = stacked([_point_counts(item) for item in found])
    return outputs


def _points(found: Detections) -> NDArray[np.float32]:
    return np.concatenate([np.empty((0, 2), np.float32), *(found.polygons or ())])


def _point_counts(found: Detections) -> NDArray[np.int32]:
    if found.polygons is None:
        return np.full(len(found), -1, np.int32)
    return np.array([len(polygon) for polygon in found.polygons], np.int32)
