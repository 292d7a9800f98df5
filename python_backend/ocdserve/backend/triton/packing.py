# SPDX-License-Identifier: Apache-2.0
"""Packing results of several images into the rectangular tensors of one response, and back; pure functions."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.resize import Frame, container_of
from ocdserve.contract import InvalidInputError, Limits
from ocdserve.results.detections import Detections

if TYPE_CHECKING:
    from ocdserve.results.reading import Reading

# Quads may reach beyond an image, but not further than any image is large.
_MOST_COORDINATE = 1_000_000


def stacked(arrays: Sequence[NDArray[Any]], padding: Any = 0) -> NDArray[Any]:
    """Arrays of equal rank and dtype as one (B, ...) array, padded to the largest."""
    if len(arrays) == 1:
        return arrays[0][None]
    shape = np.max([array.shape for array in arrays], axis=0)
    result = np.full((len(arrays), *shape), padding, arrays[0].dtype)
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


def pack_readings(found: "Sequence[Reading]", polygons: bool, words: bool) -> dict[str, NDArray[Any]]:
    """Readings as `pack_detections` does, with TEXTS (B, N), TEXT_SCORES (B, N), SIZE (B, 2) and, if wanted, WORD_*.

    Where word tensors are wanted but none were computed, they have no rows and WORD_COUNTS is -1.
    """
    outputs = {
        **pack_detections(found, polygons),
        "SIZE": np.array([(item.height, item.width) for item in found], np.int32),
        "TEXTS": stacked([_texts(item.texts) for item in found], b""),
        "TEXT_SCORES": stacked([item.text_scores for item in found]),
    }
    if words:
        read = [[word for line in item.words or () for word in line] for item in found]
        quads = [np.array([word.quad for word in each], np.float32).reshape(-1, 4, 2) for each in read]
        counts = [[-1] * len(item) if item.words is None else [*map(len, item.words)] for item in found]
        outputs["WORD_TEXTS"] = stacked([_texts([word.text for word in each]) for each in read], b"")
        outputs["WORD_SCORES"] = stacked([np.array([word.score for word in each], np.float32) for each in read])
        outputs["WORD_QUADS"] = stacked(quads)
        outputs["WORD_COUNTS"] = stacked([np.array(each, np.int32) for each in counts])
    return outputs


def unpack_detections(
    tensors: Mapping[str, NDArray[Any] | None], count: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32], tuple[NDArray[np.float32], ...] | None]]:
    """Quads (N, 4, 2), scores (N,) and polygons (None: there are none) of each of `count` images.

    Args:
        tensors: Those of `pack_detections` by name, None where the request left one out: scores are zero then, and all
            quads count.
        count: Images of the request.

    Raises:
        InvalidInputError: QUADS is not there or has impossible coordinates, or another tensor contradicts it.
    """
    quads = tensors["QUADS"]
    if quads is None:
        raise InvalidInputError("QUADS (B, N, 4, 2) is missing: the corners of the lines to read in IMAGE or PIXELS")
    rows = quads.shape[1]
    scores, counts, points, lengths = (tensors[name] for name in ("SCORES", "COUNT", "POINTS", "POINT_COUNTS"))
    scores = np.zeros((len(quads), rows), np.float32) if scores is None else scores
    counts = np.full((len(quads), 1), rows, np.int32) if counts is None else counts
    lengths = np.full((len(quads), rows), -1, np.int32) if lengths is None else lengths
    points = np.empty((len(quads), 0, 2), np.float32) if points is None else points
    for name, values in (("SCORES", scores), ("POINT_COUNTS", lengths)):
        if values.shape[1] != rows:
            raise InvalidInputError(f"{name} has {values.shape[1]} values per image and QUADS has {rows}; give as many")
    if not len(quads) == len(scores) == len(counts) == len(points) == len(lengths) == count:
        raise InvalidInputError(f"the request has {count} images; all its tensors must have as many rows")
    unpacked = []
    for index, (number,) in enumerate(counts.tolist()):
        if not 0 <= number <= rows:
            raise InvalidInputError(f"COUNT must be from 0 to the {rows} rows of QUADS; got {number} for image {index}")
        chosen = quads[index, :number]
        # NaN is no number, and not within.
        if not (np.abs(chosen) <= _MOST_COORDINATE).all():
            wrong = int(np.argmin((np.abs(chosen) <= _MOST_COORDINATE).all(axis=(1, 2))))
            raise InvalidInputError(
                f"QUADS must be finite coordinates from -{_MOST_COORDINATE} to {_MOST_COORDINATE}; got "
                f"{chosen[wrong].tolist()} in row {wrong} of image {index}"
            )
        polygons = _polygons(points[index], lengths[index, :number], index)
        unpacked.append((chosen, scores[index, :number], polygons))
    return unpacked


def unpack_crops(
    crops: NDArray[np.uint8], sizes: NDArray[np.int32] | None, limits: Limits
) -> list[list[NDArray[np.uint8]]]:
    """The lines (h, w, 3) of each image of CROPS (B, N, H, W, 3) by CROP_SIZES (B, N, 2); rows of zeros end them.

    Raises:
        InvalidInputError: A size is missing or none within CROPS, or a line is larger than the limits allow.
    """
    if sizes is None or sizes.shape[:2] != crops.shape[:2]:
        given = "no CROP_SIZES" if sizes is None else f"CROP_SIZES of {' x '.join(map(str, sizes.shape))}"
        raise InvalidInputError(
            f"CROPS of {' x '.join(map(str, crops.shape))} needs as many rows of CROP_SIZES, height and width; "
            f"got {given}"
        )
    unpacked = []
    for index, (lines, rows) in enumerate(zip(crops, sizes.tolist(), strict=True)):
        count = next((place for place, row in enumerate(rows) if row == [0, 0]), len(rows))
        for place, (height, width) in enumerate(rows):
            within = 0 < height <= crops.shape[2] and 0 < width <= crops.shape[3]
            if not within if place < count else (height, width) != (0, 0):
                raise InvalidInputError(
                    f"CROP_SIZES must be heights from 1 to {crops.shape[2]} and widths from 1 to {crops.shape[3]}, the "
                    f"sides of CROPS, or zeros after the last line; got {height} x {width} in row {place} of image "
                    f"{index}"
                )
            limits.check(width, height)
        unpacked.append([line[:height, :width] for line, (height, width) in zip(lines, rows[:count], strict=False)])
    return unpacked


def _polygons(
    points: NDArray[np.float32], lengths: NDArray[np.int32], image: int
) -> tuple[NDArray[np.float32], ...] | None:
    if (lengths == -1).all() and len(lengths):
        return None
    if (lengths < 0).any() or lengths.sum(dtype=np.int64) > len(points):
        raise InvalidInputError(
            f"POINT_COUNTS must be -1 everywhere, or divide the {len(points)} points of POINTS; got "
            f"{lengths[:10].tolist()} for image {image}"
        )
    return tuple(np.split(points[: lengths.sum()], np.cumsum(lengths)[:-1])) if len(lengths) else ()


def _texts(texts: Sequence[str]) -> NDArray[np.object_]:
    return np.array([text.encode() for text in texts], object)


def _points(found: Detections) -> NDArray[np.float32]:
    return np.concatenate([np.empty((0, 2), np.float32), *(found.polygons or ())])


def _point_counts(found: Detections) -> NDArray[np.int32]:
    if found.polygons is None:
        return np.full(len(found), -1, np.int32)
    return np.array([len(polygon) for polygon in found.polygons], np.int32)
