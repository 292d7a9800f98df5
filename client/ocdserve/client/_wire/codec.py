# SPDX-License-Identifier: Apache-2.0
"""Images to request tensors, response tensors to `Detections`. Pure: no files, no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._errors import ServerError
from ocdserve.contract import DETECTING_MODELS, ENSEMBLE, ENSEMBLE_RAW, MODELS, InvalidInputError, RequestParameters
from ocdserve.results.detections import Detections
from ocdserve.results.images import check_encoded, check_rgb

# Requested by name: without names Triton returns the polygon outputs too, an error without `polygons`.
_RESULTS = ("QUADS", "SCORES", "COUNT", "SIZE")
_POLYGONS = ("POINTS", "POINT_COUNTS")


@dataclass(frozen=True)
class SharedRegion:
    """Registered shared memory that holds a request's input.

    Attributes:
        name: As registered with the server.
        nbytes: Bytes of the input, from the start of the region.
    """

    name: str
    nbytes: int


@dataclass(frozen=True, eq=False)
class InferRequest:
    """One inference request of one or several images, independent of the protocol.

    Attributes:
        model: Name of the served model.
        input_name: "IMAGE" or "PIXELS".
        datatype: Triton data type of the input: "BYTES" or "UINT8".
        array: The input, B images: object (B, 1) holding bytes, or uint8 (B, H, W, 3) RGB.
        outputs: Names of the requested outputs.
        parameters: KServe request parameters.
        request_id: Returned by the server and written to its log; "" for none.
        headers: HTTP headers, or gRPC metadata in lower case.
        timeout_s: Time limit of this attempt, in seconds.
        region: Shared memory that holds the input; None: `array` is sent with the request.
    """

    model: str
    input_name: str
    datatype: str
    array: NDArray[Any]
    outputs: tuple[str, ...]
    parameters: Mapping[str, float | int | bool]
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0
    region: SharedRegion | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.array)

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        if self.datatype == "BYTES":
            return sum(len(image) for image in self.array.flat)
        return self.array.nbytes


def encode_batch(
    images: Sequence[bytes | NDArray[np.uint8]], parameters: RequestParameters, model: str | None = None
) -> InferRequest:
    """Build one request for several images: all encoded, or all pixels of one size.

    Args:
        images: At least one: encoded, or uint8 (H, W, 3) RGB pixels.
        parameters: Parameters for all of them.
        model: Served model; None chooses by the kind of image.

    Raises:
        InvalidInputError: An image is empty or has another type, dtype or shape, or `model` does not accept it.
    """
    array: NDArray[Any]
    if isinstance(images[0], np.ndarray):
        name, datatype, array = "PIXELS", "UINT8", _pixels(images)
    else:
        name, datatype, array = "IMAGE", "BYTES", _encoded(images)
    chosen = model or (ENSEMBLE if name == "IMAGE" else ENSEMBLE_RAW)
    _check_model(chosen, name)
    outputs = _RESULTS + _POLYGONS if parameters.polygons else _RESULTS
    return InferRequest(chosen, name, datatype, array, outputs, parameters.given())


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
    quads = _tensor(tensors, "QUADS", (images, None, 4, 2))
    rows = quads.shape[1]
    scores = _tensor(tensors, "SCORES", (images, rows))
    counts = _tensor(tensors, "COUNT", (images, 1))[:, 0].tolist()
    sizes = _tensor(tensors, "SIZE", (images, 2)).tolist()
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
            polygons=_decode_polygons(tensors, images, rows, index, count) if polygons else None,
            latency_ms=latency_ms,
            request_id=request_id,
            page=page,
        )
        for index, count in enumerate(counts)
    ]


def _encoded(images: Sequence[Any]) -> NDArray[np.object_]:
    array = np.empty((len(images), 1), np.object_)
    for index, image in enumerate(images):
        check_encoded(image)
        array[index, 0] = image
    return array


def _pixels(images: Sequence[Any]) -> NDArray[np.uint8]:
    for image in images:
        check_rgb(image)
    return np.ascontiguousarray(images[0])[np.newaxis] if len(images) == 1 else np.stack(images)


def _check_model(model: str, input_name: str) -> None:
    """Refuse a model of the contract that cannot serve this request; other names are left to the server."""
    contract = MODELS.get(model)
    if contract is None:
        return
    inputs = [spec.name for spec in contract.inputs]
    if model not in DETECTING_MODELS:
        raise InvalidInputError(
            f"model {model!r} is a step and returns no detections; use {', '.join(DETECTING_MODELS)}"
        )
    if input_name not in inputs:
        kind = "encoded images" if input_name == "IMAGE" else "raw pixels"
        raise InvalidInputError(
            f"model {model!r} takes {' or '.join(inputs)}, not {kind} ({input_name}); "
            "leave out `model` to have it chosen by the kind of image"
        )


def _tensor(tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The tensor of that name; None in `shape` matches any length."""
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
    return array


def _decode_polygons(
    tensors: Mapping[str, NDArray[Any]], images: int, rows: int, index: int, count: int
) -> tuple[NDArray[np.float32], ...]:
    points = _tensor(tensors, "POINTS", (images, None, 2))[index]
    lengths = _tensor(tensors, "POINT_COUNTS", (images, rows))[index, :count]
    if (lengths < 0).any() or int(lengths.sum()) > len(points):
        raise ServerError(
            f"the server's POINT_COUNTS must add up to at most the {len(points)} rows of POINTS; got {lengths.tolist()}"
        )
    ends = np.cumsum(lengths, dtype=np.int64)
    return tuple(np.array(points[end - length : end], np.float32) for end, length in zip(ends, lengths, strict=True))
