# SPDX-License-Identifier: Apache-2.0
"""Images to request tensors. Pure: no files, no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.client._wire.tasks import DETECT, Task
from ocdserve.contract import MODELS, InvalidInputError, RequestParameters
from ocdserve.results.images import check_encoded, check_rgb


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
        more: Further inputs by name, int32.
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
    more: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

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
    images: Sequence[bytes | NDArray[np.uint8]],
    parameters: RequestParameters,
    model: str | None = None,
    task: Task[Any] = DETECT,
    **known: Any,
) -> InferRequest:
    """Build one request for several images: all encoded, or all pixels of one size.

    Args:
        images: At least one: encoded, or uint8 (H, W, 3) RGB pixels.
        parameters: Parameters for all of them.
        model: Served model; None chooses by the kind of image.
        task: What is asked of the model.
        **known: Further fields of the request.

    Raises:
        InvalidInputError: An image is empty or has another type, dtype or shape, or `model` does not accept it.
    """
    array: NDArray[Any]
    if isinstance(images[0], np.ndarray):
        name, datatype, array = "PIXELS", "UINT8", _pixels(images)
    else:
        name, datatype, array = "IMAGE", "BYTES", _encoded(images)
    chosen = model or (task.encoded if name == "IMAGE" else task.pixels)
    _check_model(chosen, name, task)
    return InferRequest(chosen, name, datatype, array, task.outputs(parameters), parameters.given(), **known)


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


def _check_model(model: str, input_name: str, task: Task[Any]) -> None:
    """Refuse a model of the contract that cannot serve this request; other names are left to the server."""
    contract = MODELS.get(model)
    if contract is None:
        return
    inputs = [spec.name for spec in contract.inputs]
    if model not in task.models:
        kind = "" if model in DETECT.models else "is a step and "
        raise InvalidInputError(f"model {model!r} {kind}returns no {task.returns}; use {', '.join(task.models)}")
    if input_name not in inputs:
        kind = "encoded images" if input_name == "IMAGE" else "raw pixels"
        raise InvalidInputError(
            f"model {model!r} takes {' or '.join(inputs)}, not {kind} ({input_name}); "
            "leave out `model` to have it chosen by the kind of image"
        )
