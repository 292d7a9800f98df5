# SPDX-License-Identifier: Apache-2.0
"""Calls as steps: images into as few requests as possible, responses into results."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np

from ocdserve.client._sansio.machine import RequestMachine, new_request_id
from ocdserve.client._sansio.steps import Steps
from ocdserve.client._wire.codec import InferRequest, encode_batch
from ocdserve.client._wire.tasks import Found, Task
from ocdserve.contract import MAX_BATCH_SIZE, InvalidInputError, RequestParameters
from ocdserve.results.images import Loaded
from ocdserve.results.pictures import LimitedImage

# How the server names an image of a request that it refuses.
_IMAGE_NUMBER = re.compile(r"\bimage (\d+) of \d+\b")


@dataclass(frozen=True)
class CallOptions(Generic[Found]):
    """Validated options of one call.

    Attributes:
        task: What is asked.
        model: Served model; None: chosen by the kind of image.
        parameters: Request parameters.
        headers: Sent with the request.
        request_id: Chosen by the caller; None: a random one per request.
        max_side: To which the longer side of an image is scaled down first, in pixels; None: not at all.
        bgr: Whether arrays hold BGR pixels.
    """

    task: Task[Found]
    model: str | None
    parameters: RequestParameters
    headers: Mapping[str, str]
    request_id: str | None
    max_side: int | None = None
    bgr: bool = False

    def limited(self, image: Loaded) -> LimitedImage:
        """The image as it is sent.

        Raises:
            InvalidInputError: It must be decoded and cannot be.
            UnavailableError: It must be decoded and Pillow is not installed.
        """
        return LimitedImage.of(image, self.max_side, self.parameters.page)


def ask(machine: RequestMachine, image: LimitedImage, options: CallOptions[Found]) -> Steps[Found]:
    """Ask about one image."""
    [found] = yield from _infer(machine, [image], options)
    return found


def ask_batch(
    machine: RequestMachine, images: Sequence[LimitedImage], options: CallOptions[Found]
) -> Steps[list[Found]]:
    """Ask about several images, by as few requests as the server's batch limit and the kinds of images allow.

    Raises:
        InvalidInputError: An image is refused; the message names its index in `images`.
    """
    found: dict[int, Found] = {}
    for indices in _groups(images):
        try:
            results = yield from _infer(machine, [images[index] for index in indices], options)
        except InvalidInputError as error:
            raise _renumbered(error, indices, len(images)) from error
        found.update(zip(indices, results, strict=True))
    return [found[index] for index in range(len(images))]


def _request(images: Sequence[LimitedImage], options: CallOptions[Found]) -> InferRequest:
    parameters = options.parameters
    if images[0].page is not None:  # it has been decoded; pixels have no pages
        parameters = replace(parameters, page=None)
    return encode_batch([image.image for image in images], parameters, options.model, options.task, **identity(options))


def identity(options: CallOptions[Any]) -> dict[str, Any]:
    """Id and headers of a request, as fields of `InferRequest`."""
    request_id, headers = options.request_id or new_request_id(), options.headers
    if request_id.isascii() and request_id.isprintable():
        # For the logs of proxies, which do not read messages.
        headers = {"x-request-id": request_id, **headers}
    return {"request_id": request_id, "headers": headers}


def _infer(machine: RequestMachine, images: Sequence[LimitedImage], options: CallOptions[Found]) -> Steps[list[Found]]:
    request = _request(images, options)
    begin = time.perf_counter()
    tensors = yield from machine.infer(request, options.task.remedy)
    latency_ms = (time.perf_counter() - begin) * 1000
    found = options.task.decode(
        tensors, len(request), options.parameters, latency_ms=latency_ms, request_id=request.request_id
    )
    return [image.restore(each) for image, each in zip(images, found, strict=True)]


def _groups(images: Sequence[LimitedImage]) -> list[list[int]]:
    """Indices of images that may share a request: all encoded, or all pixels of one size."""
    kinds: dict[tuple[int, ...] | None, list[int]] = {}
    for index, one in enumerate(images):
        kinds.setdefault(one.image.shape if isinstance(one.image, np.ndarray) else None, []).append(index)
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
