# SPDX-License-Identifier: Apache-2.0
"""The served models on a CPU: read tensors, call the stages, write tensors."""

from concurrent.futures import Future
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ocdserve.backend.detector import results_of
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.backend.triton.base_model import Model, Outputs
from ocdserve.backend.triton.image_model import DecodingModel
from ocdserve.backend.triton.packing import (
    pack_images,
    stacked,
    unpack_images,
)
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import InvalidInputError, RequestParameters


class PreprocessModel(DecodingModel):
    """Model `ocdnet_preprocess`: encoded images or pixels to the network's pixels."""

    stages = ("preprocess",)

    def read(self, request: Any, waiter: Waiter) -> tuple[list[Any], int | None]:
        """Images of the request, bytes each or uint8 (H, W, 3), and the chosen page."""
        page = self._parameters(request, waiter).page
        return list(tensor(request, "PIXELS")) if has_pixels(request) else encoded_images(request), page

    def start(
        self, inputs: tuple[list[Any], int | None], waiter: Waiter
    ) -> list[Future[tuple[NDArray[np.uint8], Frame]]]:
        """See `Model.start`."""
        return self._submit_images(*inputs, waiter)

    def finish(self, job: list[Future[tuple[NDArray[np.uint8], Frame]]], waiter: Waiter) -> Outputs:
        """See `Model.finish`."""
        return {**pack_images(results_of(job)), **waiter.passed_on(len(job), self._generation)}


class NetworkModel(Model):
    """Model `ocdnet_network`: network pixels to probability maps."""

    stages = ("network",)

    def read(self, request: Any, waiter: Waiter) -> list[tuple[NDArray[np.uint8], Frame]]:
        """The request's images, cut out of their common container, with their frames."""
        resize = self._detector.spec.resize
        frames = frames_of(request, resize)
        for level in (level for frame in frames for level in frame.levels):
            resize.check_network_size(*level.network)
        images = unpack_images(tensor(request, "NETWORK_IMAGE"), frames)
        return list(zip(images, frames, strict=True))

    def start(self, inputs: list[tuple[NDArray[np.uint8], Frame]], waiter: Waiter) -> Future[list[NDArray[Any]]]:
        """See `Model.start`."""
        return self._runner.submit(self._infer, inputs, waiter)

    def finish(self, job: Future[list[NDArray[Any]]], waiter: Waiter) -> Outputs:
        """See `Model.finish`."""
        return {"MAP": stacked(job.result())}


class PostprocessModel(Model):
    """Model `ocdnet_postprocess`: probability maps to detections."""

    stages = ("postprocess",)

    def read(
        self, request: Any, waiter: Waiter
    ) -> tuple[list[tuple[NDArray[np.uint8], Frame]], RequestParameters, bool]:
        """Maps with their frames, parameters, and whether polygon tensors are wanted."""
        frames = frames_of(request, self._detector.spec.resize)
        maps = unpack_images(tensor(request, "MAP"), frames)
        return list(zip(maps, frames, strict=True)), *self._wanted(request, waiter)

    def finish(
        self, job: tuple[list[tuple[NDArray[np.uint8], Frame]], RequestParameters, bool], waiter: Waiter
    ) -> Outputs:
        """See `Model.finish`."""
        return self._detections(*job, waiter)


class FusedModel(DecodingModel):
    """Model `ocdnet_fused`: encoded images to detections in one process."""

    stages = ("preprocess", "network", "postprocess")

    def read(self, request: Any, waiter: Waiter) -> tuple[list[bytes], RequestParameters, bool]:
        """Encoded images, parameters, and whether polygon tensors are wanted."""
        parameters, polygons = self._wanted(request, waiter)
        return encoded_images(request), parameters, polygons

    def start(self, inputs: tuple[list[bytes], RequestParameters, bool], waiter: Waiter) -> Any:
        """See `Model.start`."""
        images, parameters, polygons = inputs
        return self._submit_images(images, parameters.page, waiter), parameters, polygons

    def finish(self, job: Any, waiter: Waiter) -> Outputs:
        """See `Model.finish`: the network begins when all images of the request are decoded."""
        decoding, parameters, polygons = job
        images = results_of(decoding)
        frames = [frame for _, frame in images]
        maps = self._runner.submit(self._infer, images, waiter).result()
        found = self._detections(list(zip(maps, frames, strict=True)), parameters, polygons, waiter)
        return {**found, "SIZE": np.array([frame.source for frame in frames], np.int32)}


def encoded_images(request: Any) -> list[bytes]:
    return [bytes(image) for image in tensor(request, "IMAGE").reshape(-1)]


def has_pixels(request: Any) -> bool:
    """Whether a request of `ocdnet_preprocess` has PIXELS, not IMAGE; raises InvalidInputError for both or none."""
    encoded, pixels = (pb_utils.get_input_tensor_by_name(request, name) for name in ("IMAGE", "PIXELS"))
    if (encoded is None) == (pixels is None):
        raise InvalidInputError("give exactly one of the inputs IMAGE (encoded) and PIXELS (uint8 RGB)")
    return pixels is not None


def frames_of(request: Any, policy: ResizePolicy) -> list[Frame]:
    return [Frame.from_array(row, policy) for row in tensor(request, "FRAME")]


def tensor(request: Any, name: str) -> NDArray[Any]:
    values: NDArray[Any] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return values
