# SPDX-License-Identifier: Apache-2.0
"""Image to request tensors, response tensors to `Detections`. Pure: no file, no network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._errors import ServerError
from ocdserve.contract import ENSEMBLE, ENSEMBLE_RAW, MODELS, Detections, InvalidInputError, RequestParameters

__all__ = ["InferRequest", "decode_response", "encode_request"]

# Asked for by name: an unnamed request makes Triton return the polygon outputs too, an error without `polygons`.
_RESULTS = ("QUADS", "SCORES", "COUNT", "SIZE")
_POLYGONS = ("POINTS", "POINT_COUNTS")


@dataclass(frozen=True, eq=False)
class InferRequest:
    """One inference request of one image, independent of the protocol.

    Attributes:
        model: Name of the served model.
        input_name: "IMAGE" or "PIXELS".
        datatype: Triton data type of the input: "BYTES" or "UINT8".
        array: The input with its batch dimension of 1: object (1, 1) holding bytes, or uint8 (1, H, W, 3) RGB.
        outputs: Names of the wanted outputs.
        parameters: KServe request parameters.
    """

    model: str
    input_name: str
    datatype: str
    array: NDArray[Any]
    outputs: tuple[str, ...]
    parameters: Mapping[str, float | int | bool]


def encode_request(
    image: bytes | NDArray[np.uint8], parameters: RequestParameters, model: str | None = None
) -> InferRequest:
    """Build the request for one image.

    Args:
        image: Encoded image (JPEG, PNG, WebP, BMP or TIFF), or uint8 (H, W, 3) RGB pixels.
        parameters: Per-request parameters.
        model: Served model; None chooses by the kind of image.

    Raises:
        InvalidInputError: The image is empty or has another type, dtype or shape, or `model` does not take it.
    """
    array: NDArray[Any]
    if isinstance(image, np.ndarray):
        name, datatype, array = "PIXELS", "UINT8", _pixels(image)
    elif isinstance(image, bytes):
        name, datatype, array = "IMAGE", "BYTES", _encoded(image)
    else:
        raise InvalidInputError(
            f"image must be encoded bytes or a uint8 (H, W, 3) RGB array; got {type(image).__name__}"
        )
    outputs = _RESULTS + _POLYGONS if parameters.polygons else _RESULTS
    chosen = model or (ENSEMBLE if name == "IMAGE" else ENSEMBLE_RAW)
    _check_model(chosen, name)
    return InferRequest(chosen, name, datatype, array, outputs, parameters.given())


def decode_response(tensors: Mapping[str, NDArray[Any]], *, polygons: bool = False) -> Detections:
    """Read the result of one image.

    Args:
        tensors: Output arrays by name, with their batch dimension of 1, as in design "serving contract": QUADS
            (1, N, 4, 2), SCORES (1, N), COUNT (1, 1), SIZE (1, 2), and with `polygons` POINTS (1, M, 2) and
            POINT_COUNTS (1, N). Rows past COUNT are padding.
        polygons: Whether polygons were asked for.

    Raises:
        ServerError: A tensor is missing, or the tensors do not fit together.
    """
    quads = _tensor(tensors, "QUADS", (1, None, 4, 2))[0]
    scores = _tensor(tensors, "SCORES", (1, len(quads)))[0]
    count = int(_tensor(tensors, "COUNT", (1, 1))[0, 0])
    height, width = (int(side) for side in _tensor(tensors, "SIZE", (1, 2))[0])
    if not 0 <= count <= len(quads):
        raise ServerError(f"the server's COUNT must be from 0 to the {len(quads)} rows of QUADS; got {count}")
    return Detections(
        quads=np.array(quads[:count], np.float32),
        scores=np.array(scores[:count], np.float32),
        width=width,
        height=height,
        polygons=_decode_polygons(tensors, len(quads), count) if polygons else None,
    )


def _encoded(image: bytes) -> NDArray[np.object_]:
    if not image:
        raise InvalidInputError("image is empty (0 bytes); send an encoded JPEG, PNG, WebP, BMP or TIFF")
    array = np.empty((1, 1), np.object_)
    array[0, 0] = image
    return array


def _pixels(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidInputError(
            f"pixels must be a non-empty uint8 array of shape (H, W, 3), RGB; got {image.dtype} {image.shape}. "
            "Convert them, or send the encoded image instead."
        )
    return np.ascontiguousarray(image)[np.newaxis]


def _check_model(model: str, input_name: str) -> None:
    """Refuse a model of the contract that cannot serve this request; other names are the server's business."""
    contract = MODELS.get(model)
    if contract is None:
        return
    inputs = [spec.name for spec in contract.inputs]
    if not {spec.name for spec in contract.outputs}.issuperset(_RESULTS):
        raise InvalidInputError(
            f"model {model!r} is a step and returns no detections; use {', '.join(_detecting_models())}"
        )
    if input_name not in inputs:
        kind = "encoded images" if input_name == "IMAGE" else "raw pixels"
        raise InvalidInputError(
            f"model {model!r} takes {' or '.join(inputs)}, not {kind} ({input_name}); "
            "leave out `model` to have it chosen by the kind of image"
        )


def _detecting_models() -> list[str]:
    return [name for name, model in MODELS.items() if {spec.name for spec in model.outputs}.issuperset(_RESULTS)]


def _tensor(tensors: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """The tensor of that name; None in `shape` stands for any length."""
    array = tensors.get(name)
    if array is None:
        raise ServerError(f"the server's answer lacks the output {name}; it has {', '.join(tensors) or 'none'}")
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("N" if side is None else str(side) for side in shape)
        raise ServerError(f"the server's output {name} must have shape ({wanted}); got {array.shape}")
    return array


def _decode_polygons(tensors: Mapping[str, NDArray[Any]], rows: int, count: int) -> tuple[NDArray[np.float32], ...]:
    points = _tensor(tensors, "POINTS", (1, None, 2))[0]
    lengths = _tensor(tensors, "POINT_COUNTS", (1, rows))[0, :count]
    if (lengths < 0).any() or int(lengths.sum()) > len(points):
        raise ServerError(
            f"the server's POINT_COUNTS must add up to at most the {len(points)} rows of POINTS; got {lengths.tolist()}"
        )
    ends = np.cumsum(lengths, dtype=np.int64)
    return tuple(np.array(points[end - length : end], np.float32) for end, length in zip(ends, lengths, strict=True))
