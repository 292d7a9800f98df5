# SPDX-License-Identifier: Apache-2.0
"""Response tensors to `Detections`; what a server sends is checked before it is used. Pure: no files, no network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._errors import ServerError
from ocdserve.results.detections import Detections

_KINDS = {"f": "FP32", "i": "INT32", "O": "BYTES"}


def decode_batch(
    tensors: Mapping[str, NDArray[Any]],
    images: int,
    *,
    polygons: bool = False,
    latency_ms: float | None = None,
    request_id: str | None = None,
    page: int | None = None,
) -> list[Detections]:
    """Decode the response to a request of several images.

    Args:
        tensors: Output tensors by name: QUADS float32 (B, N, 4, 2), SCORES float32 (B, N), COUNT int32 (B, 1), SIZE
            int32 (B, 2); with polygons POINTS float32 (B, M, 2) and POINT_COUNTS int32 (B, N).
        images: Number of images in the request, B.
        polygons: Whether the request asked for polygons.
        latency_ms: Duration of the request, for the results.
        request_id: Id of the request, for the results.
        page: Page that the request chose, for the results.

    Raises:
        ServerError: A tensor is missing or the tensors do not fit together.
    """
    quads = tensor(tensors, "QUADS", (images, None, 4, 2))
    rows = quads.shape[1]
    scores = tensor(tensors, "SCORES", (images, rows))
    counts = tensor(tensors, "COUNT", (images, 1), "i")[:, 0].tolist()
    sizes = tensor(tensors, "SIZE", (images, 2), "i").tolist()
    for count in counts:
        if not 0 <= count <= rows:
            raise ServerError(f"the server's COUNT must be from 0 to the {rows} rows of QUADS; got {count}")
    if min(map(min, sizes)) < 1:
        raise ServerError(f"the server's SIZE must be heights and widths of at least 1 pixel; got {sizes}")
    return [
        Detections(
            quads=np.array(quads[index, :count], np.float32),
            scores=np.array(scores[index, :count], np.float32),
            width=int(sizes[index][1]),
            height=int(sizes[index][0]),
            polygons=_polygons(tensors, images, rows, index, count) if polygons else None,
            latency_ms=latency_ms,
            request_id=request_id,
            page=page,
        )
        for index, count in enumerate(counts)
    ]


def tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...], kind: str = "f"
) -> NDArray[Any]:
    """A tensor of a response, checked.

    Args:
        tensors: Those of the response, by name.
        name: Of the tensor.
        shape: It must have; None matches any length.
        kind: Of its dtype: "f" (finite numbers), "i" (whole numbers) or "O" (bytes).

    Raises:
        ServerError: It is missing or another one.
    """
    array = tensors.get(name)
    if array is None:
        raise ServerError(f"the server's answer lacks the output {name}; it has {', '.join(tensors) or 'none'}")
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if fits and array.dtype == np.float32 and not np.isfinite(array).all():
        raise ServerError(f"the server's output {name} has values that are not finite")
    if not fits:
        wanted = ", ".join("N" if side is None else str(side) for side in shape)
        raise ServerError(f"the server's output {name} must have shape ({wanted}); got {array.shape}")
    if array.dtype.kind != kind:
        raise ServerError(f"the server's output {name} must be {_KINDS[kind]}; got {array.dtype}")
    return array


def _polygons(
    tensors: Mapping[str, NDArray[Any]], images: int, rows: int, index: int, count: int
) -> tuple[NDArray[np.float32], ...]:
    points = tensor(tensors, "POINTS", (images, None, 2))[index]
    lengths = tensor(tensors, "POINT_COUNTS", (images, rows), "i")[index, :count]
    if (lengths < 0).any() or int(lengths.sum()) > len(points):
        raise ServerError(
            f"the server's POINT_COUNTS must add up to at most the {len(points)} rows of POINTS; got {lengths.tolist()}"
        )
    ends = np.cumsum(lengths, dtype=np.int64)
    return tuple(np.array(points[end - length : end], np.float32) for end, length in zip(ends, lengths, strict=True))
