# SPDX-License-Identifier: Apache-2.0
"""The steps of the ensemble on a GPU: the tensors between them stay on the GPU."""

from concurrent.futures import Future
from typing import Any

import numpy as np

from ocdserve.backend.device.dlpack import DeviceTensor
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.backend.gpu.inputs import Image
from ocdserve.backend.gpu.steps import NetworkStep, PostprocessStep, PreprocessStep, Tensor
from ocdserve.backend.network import load
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.resize import Frame
from ocdserve.backend.triton.base_model import Outputs
from ocdserve.backend.triton.gpu_model import GpuModel
from ocdserve.backend.triton.image_model import ImageModel
from ocdserve.backend.triton.models import encoded_images, frames_of, has_pixels
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.packing import check_frames, pack_detections, pack_frames
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import RequestParameters
from ocdserve.results.detections import Detections


class GpuPreprocessModel(ImageModel, GpuModel):
    """Model `ocdnet_preprocess`; NETWORK_IMAGE is a tensor on the GPU."""

    stages = ("preprocess",)

    def _open(self, bundle: Bundle, options: ServingOptions) -> None:
        self._step: PreprocessStep = PreprocessStep(
            self._device,
            self._index,
            bundle.spec.resize,
            options.slots,
            options.limits,
            decoder=options.decoder,
            threads=options.runtime.threads,
        )
        for frame in _warm_up_frames(bundle, options):
            made, _ = self._step.run([np.zeros((*frame.source, 3), np.uint8)])
            made.buffer.close()

    def read(self, request: Any, waiter: Waiter) -> tuple[list[Image], int | None]:
        """Images of the request, bytes each or pixels on the host or on the GPU, and the chosen page."""
        page = self._parameters(request, waiter).page
        if not has_pixels(request):
            return list(encoded_images(request)), page
        tensor = self._input(request, "PIXELS")
        if not isinstance(tensor, DeviceTensor):
            return list(tensor), page
        count, height, width, _ = tensor.shape
        size = 3 * height * width
        images = [DeviceImage(tensor.buffer.pointer + size * i, height, width, owner=tensor) for i in range(count)]
        return list(images), page

    def execute(self, requests: list[Any]) -> None:
        """See `ImageModel.execute`; Triton frees tensors on the GPU when it returns, so these are answered before."""
        for request, sender, waiter in self._admitted(requests):
            if all(tensor.is_cpu() for tensor in request.inputs()):
                self._requests.submit(self._answer, request, sender, waiter)
            else:
                self._answer(request, sender, waiter)

    def finish(self, job: tuple[list[Image], int | None], waiter: Waiter) -> Outputs:
        """See `Model.finish`."""
        images, page = job
        with self._metrics.stage("preprocess", len(images)):
            tensor, frames = self._step.run(images, page)
        return {"NETWORK_IMAGE": tensor, **pack_frames(frames), **waiter.passed_on(len(frames), self._generation)}


class GpuNetworkModel(GpuModel):
    """Model `ocdnet_network`: NETWORK_IMAGE may be on the host or on the GPU, MAP is on the GPU."""

    stages = ("network",)

    def _open(self, bundle: Bundle, options: ServingOptions) -> None:
        network = load.load_device_network(bundle, options.runtime, self._device)
        self._step: NetworkStep = NetworkStep(self._device, self._index, network)
        for frame in _warm_up_frames(bundle, options):
            (made,) = self._step.run([(np.zeros((1, *frame.container, 3), np.uint8), [frame])])
            made.buffer.close()

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for each batch; images of one size share batches, even across requests."""
        accepted = list(self._read_all(requests))
        results = self._guarded(self._run, [inputs for _, inputs, _ in accepted]) if accepted else []
        for index, (sender, _, waiter) in enumerate(accepted):
            self._send(sender, results if isinstance(results, Exception) else {"MAP": results[index]}, waiter)

    def read(self, request: Any, waiter: Waiter) -> tuple[Tensor, list[Frame]]:
        """The request's container and frames."""
        frames = frames_of(request, self._bundle.spec.resize)
        tensor = self._input(request, "NETWORK_IMAGE")
        check_frames(tensor.shape, frames)
        for level in (level for frame in frames for level in frame.levels):
            self._bundle.spec.resize.check_network_size(*level.network)
            self._step.check(*level.network)
        return tensor, frames

    def _run(self, inputs: list[tuple[Tensor, list[Frame]]]) -> list[DeviceTensor]:
        with self._metrics.stage("network", sum(len(frames) for _, frames in inputs)):
            return self._step.run(inputs)


class GpuPostprocessModel(GpuModel):
    """Model `ocdnet_postprocess`: MAP may be on the host or on the GPU."""

    stages = ("postprocess",)

    def _open(self, bundle: Bundle, options: ServingOptions) -> None:
        self._step: PostprocessStep = PostprocessStep(self._device, options.slots)
        for frame in _warm_up_frames(bundle, options):
            for _ in range(options.slots):
                self._step.run(np.zeros((1, *frame.container), np.uint8), [(frame, bundle.spec.postprocess)])

    def read(self, request: Any, waiter: Waiter) -> tuple[Tensor, list[Frame], RequestParameters, bool]:
        """The container with the maps, their frames, parameters, and whether polygon tensors are wanted."""
        frames = frames_of(request, self._bundle.spec.resize)
        tensor = self._input(request, "MAP")
        check_frames(tensor.shape, frames)
        return tensor, frames, *self._wanted(request, waiter)

    def start(
        self, inputs: tuple[Tensor, list[Frame], RequestParameters, bool], waiter: Waiter
    ) -> tuple[Future[Any], bool]:
        """See `Model.start`."""
        maps, frames, parameters, polygons = inputs
        return self._runner.submit(self._run, maps, frames, parameters), polygons

    def finish(self, job: tuple[Future[Any], bool], waiter: Waiter) -> Outputs:
        """See `Model.finish`."""
        found, polygons = job
        return pack_detections(found.result(), polygons)

    def _run(self, maps: Tensor, frames: list[Frame], parameters: RequestParameters) -> list[Detections]:
        chosen = self._bundle.spec.postprocess.overridden(parameters)
        with self._metrics.stage("postprocess", len(frames)):
            found = self._step.run(maps, [(frame, chosen) for frame in frames])
        for each in found:
            self._metrics.observe_detections(len(each))
        return found


def _warm_up_frames(bundle: Bundle, options: ServingOptions) -> list[Frame]:
    return [Frame.of(height, width, bundle.spec.resize) for height, width in options.warm_up_sizes]
