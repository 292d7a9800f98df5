# SPDX-License-Identifier: Apache-2.0
"""Detection as steps: images into as few requests as possible, responses into `Detections`."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ocdserve.client._sansio.machine import RequestMachine, new_request_id
from ocdserve.client._sansio.steps import Steps
from ocdserve.client._wire.codec import InferRequest, decode_batch, encode_batch
from ocdserve.contract import MAX_BATCH_SIZE, InvalidInputError, RequestParameters
from ocdserve.results.detections import Detections
from ocdserve.results.images import Loaded

# How the server names an image of a request that it refuses.
_IMAGE_NUMBER = re.compile(r"\bimage (\d+) of \d+\b")


@dataclass(frozen=True)
class CallOptions:
    """Validated options of one call.

    Attributes:
        model: Served model; None: chosen by the kind of image.
        parameters: Request parameters.
        headers: Sent with the request.
        request_id: Chosen by the caller; None: a random one per request.
    """

    model: str | None
    parameters: RequestParameters
    headers: Mapping[str, str]
    request_id: str | None


def detect(machine: RequestMachine, image: Loaded, options: CallOptions) -> Steps[Detections]:
    """Detect in one image."""
    [found] = yield from _infer(machine, _request([image], options), options)
    return found


def detect_batch(machine: RequestMachine, images: Sequence[Loaded], options: CallOptions) -> Steps[list[Detections]]:
    """Detect in several images, by as few requests as the server's batch limit and the kinds of images allow.

    Raises:
        InvalidInputError: An image is refused; the message names its index in `images`.
    """
    found: dict[int, Detections] = {}
    for indices in _groups(images):
        request = _request([images[index] for index in indices], options)
        try:
            results = yield from _infer(machine, request, options)
        except InvalidInputError as error:
            raise _renumbered(error, indices, len(images)) from error
        found.update(zip(indices, results, strict=True))
    return [found[index] for index in range(len(images))]


def _request(images: Sequence[Loaded], options: CallOptions) -> InferRequest:
    request = encode_batch(images, options.parameters, options.model)
    request_id, headers = options.request_id or new_request_id(), options.headers
    if request_id.isascii() and request_id.isprintable():
        # For the logs of proxies, which do not read messages.
        headers = {"x-request-id": request_id, **headers}
    return replace(request, request_id=request_id, headers=headers)


def _infer(machine: RequestMachine, request: InferRequest, options: CallOptions) -> Steps[list[Detections]]:
    begin = time.perf_counter()
    tensors = yield from machine.infer(request)
    return decode_batch(
        tensors,
        len(request),
        polygons=options.parameters.polygons,
        latency_ms=(time.perf_counter() - begin) * 1000,
        request_id=request.request_id,
        page=options.parameters.page,
    )


def _groups(images: Sequence[Loaded]) -> list[list[int]]:
    """Indices of images that may share a request: all encoded, or all pixels of one size."""
    kinds: dict[tuple[int, ...] | None, list[int]] = {}
    for index, image in enumerate(images):
        kinds.setdefault(image.shape if isinstance(image, np.ndarray) else None, []).append(index)
    size = MAX_BATCH_SIZE
    return [indices[begin : begin + size] for indices in kinds.values() for begin in range(0, len(indices), size)]


def _renumbered(error: InvalidInputError, indices: Sequence[int], images: int) -> InvalidInputError:
    """The server's refusal, with the caller's image index instead of the request's."""

    def renumber(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"image {indices[number]} of {images}" if number < len(indices) else found[0]

    renamed = InvalidInputError(_IMAGE_NUMBER.sub(renumber, str(error), count=1))
    renamed.url, renamed.status, renamed.request_id = error.url, error.status, error.request_id
    return renamed
