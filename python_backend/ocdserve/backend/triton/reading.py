# SPDX-License-Identifier: Apache-2.0
"""The served models that read, on a CPU: read tensors, call the stages, write tensors."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from ocdserve.backend.detector import results_of
from ocdserve.backend.network.recogniser import for_lines, load_recogniser
from ocdserve.backend.recogniser import ReadLine, Recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.backend.stages.rectify import LineImage, rectify
from ocdserve.backend.triton.base_model import ONLY_WITH, Outputs
from ocdserve.backend.triton.image_model import DecodingModel
from ocdserve.backend.triton.models import encoded_images
from ocdserve.backend.triton.options import ServingOptions
from ocdserve.backend.triton.packing import pack_readings, unpack_crops, unpack_detections
from ocdserve.backend.triton.turns import LineTurns
from ocdserve.backend.triton.waiter import Waiter
from ocdserve.contract import CONTEXT, InvalidInputError, Limits, ReadingParameters, exceeded
from ocdserve.results.detections import Detections
from ocdserve.results.images import check_rgb
from ocdserve.results.pages import check_only_page
from ocdserve.results.reading import Reading

# Pages that are read at the same time: they share the network line by line, so that a slow one delays no others.
_PAGES = 16
# Lines that are cut out between two looks at the deadline and at what they take.
_LINES_AT_A_TIME = 32


@dataclass(frozen=True, eq=False)
class _Page:
    """An image whose lines are cut out.

    Attributes:
        found: Its detections.
        lines: The line of each detection.
        is_all_kept: Whether a line that reads badly keeps its place, without its text.
    """

    found: Detections
    lines: Sequence[LineImage]
    is_all_kept: bool = False


# Makes the page of an image.
_Cut = Callable[[Waiter], _Page]


class ReadingModel(DecodingModel):
    """Base of the models that read: requests share the network of the recogniser, see `LineTurns`."""

    def _load_recogniser(self, bundle: RecogniserBundle, options: ServingOptions) -> None:
        runtime = for_lines(options.runtime)
        self._recogniser = bundle
        self._turns = LineTurns(load_recogniser(bundle, runtime), runtime.streams)

    def _open_queue(self, threads: int, working: int, options: ServingOptions) -> None:
        super()._open_queue(max(threads, _PAGES), max(working, _PAGES), options)

    def finalize(self) -> None:
        """See `Model.finalize`."""
        super().finalize()
        self._close_recogniser()

    def _close_recogniser(self) -> None:
        self._turns.close()

    def _reads(self, waiter: Waiter) -> Recogniser:
        """What reads the lines of a request."""
        return Recogniser(self._recogniser, self._turns.of(waiter))

    def finish(self, job: tuple[list[Future[_Page]], ReadingParameters, set[str]], waiter: Waiter) -> Outputs:
        """See `Model.finish`: reading begins when the lines of all images are cut out."""
        pages, parameters, asked = results_of(job[0]), *job[1:]
        self._limits.check_lines(sum(len(page.lines) for page in pages))
        return pack_readings(self._read_lines(pages, parameters, waiter), *wanted_outputs(asked))

    def _parameters(self, request: Any, waiter: Waiter) -> ReadingParameters:
        return ReadingParameters.from_json(request.parameters(), self._limits)

    def _cut(self, pixels: NDArray[np.uint8], found: Detections, waiter: Waiter) -> _Page:
        """The lines of an image; its pixels are needed no more."""
        lines: list[LineImage] = []
        taken = 0
        for start in range(0, len(found), _LINES_AT_A_TIME):
            waiter.check("recognise")
            lines += self._rectified(pixels, found.quads[start : start + _LINES_AT_A_TIME])
            taken += sum(line.pixels.size // 3 for line in lines[start:])
            if taken > self._limits.max_pixels:
                raise exceeded(
                    "max_pixels",
                    f"the lines of an image take more than {self._limits.max_pixels} pixels once they are "
                    f"{self._recogniser.spec.height} pixels high. Send the image in tiles.",
                )
        return _Page(found, lines)

    def _rectified(self, pixels: NDArray[np.uint8], quads: NDArray[np.float32]) -> list[LineImage]:
        spec = self._recogniser.spec
        return rectify(pixels, quads, spec.height, spec.widths.largest)

    def _read_lines(self, pages: Sequence[_Page], parameters: ReadingParameters, waiter: Waiter) -> list[Reading]:
        """What the lines of a request's images say."""
        recogniser = self._reads(waiter)
        with self._metrics.stage("recognise", len(pages)):
            read = recogniser.read_pages([page.lines for page in pages], parameters.direction)
            found = [self._reading(recogniser, *each, parameters) for each in zip(pages, read, strict=True)]
        for page in pages:
            self._metrics.observe_lines(len(page.lines))
        return found

    def _reading(
        self, recogniser: Recogniser, page: _Page, read: Sequence[ReadLine], parameters: ReadingParameters
    ) -> Reading:
        if not page.is_all_kept:
            return recogniser.reading(page.found, page.lines, read, parameters)
        everything = recogniser.reading(page.found, page.lines, read, replace(parameters, min_text_score=0.0))
        given, own = parameters.min_text_score, recogniser.spec.min_text_score
        kept = everything.text_scores >= np.float32(own if given is None else given)
        texts = tuple(text if is_kept else "" for text, is_kept in zip(everything.texts, kept, strict=True))
        words = everything.words
        if words is not None:
            words = tuple(each if is_kept else () for each, is_kept in zip(words, kept, strict=True))
        return replace(everything, texts=texts, words=words)


class ReadingFusedModel(ReadingModel):
    """Model `ocr_fused`: encoded images to text in one process."""

    stages = ("preprocess", "network", "postprocess", "recognise")

    def _load(self, bundle: Any, options: ServingOptions) -> None:
        self._load_recogniser(RecogniserBundle.load(options.recogniser), options)
        super()._load(bundle, options)

    def read(self, request: Any, waiter: Waiter) -> tuple[list[bytes], ReadingParameters, set[str]]:
        """Encoded images, parameters, and the outputs that are wanted."""
        parameters = self._parameters(request, waiter)
        self._check_outputs(request, parameters)
        return encoded_images(request), parameters, {*request.requested_output_names()}

    def start(self, inputs: tuple[list[bytes], ReadingParameters, set[str]], waiter: Waiter) -> Any:
        """See `Model.start`: an image's pixels are kept until its lines are cut out."""
        images, parameters, asked = inputs
        pool = self._large_images if waiter.may_wait else self._pool
        return [pool.submit(self._detect, image, parameters, waiter) for image in images], parameters, asked

    def _detect(self, image: bytes, parameters: ReadingParameters, waiter: Waiter) -> _Page:
        def work(limits: Limits) -> _Page:
            with self._metrics.stage("preprocess"):
                pixels = decode(image, limits, parameters.page)
                prepared, frame = preprocess(pixels, self._detector.spec.resize)
            (probability,) = self._infer([(prepared, frame)], waiter)
            waiter.check("postprocess")
            found = self._postprocess(probability, frame, parameters)
            self._limits.check_lines(len(found))
            return self._cut(pixels, found, waiter)

        return self._in_room(image, work, waiter)


class RecogniseModel(ReadingModel):
    """Model `ocrnet_recognise`: lines of text in images, or cut out of them, to text."""

    stages = ("recognise",)

    def _opened(self, options: ServingOptions, spec_only: bool) -> Any:
        return RecogniserBundle.load(options.recogniser)

    def _load(self, bundle: RecogniserBundle, options: ServingOptions) -> None:
        self._open_pools(options)
        self._load_recogniser(bundle, options)
        self._open_queue(_PAGES, _PAGES, options)

    def _waiter(self, request: Any) -> Waiter:
        """Who waits, by what the steps before have passed on."""
        context = pb_utils.get_input_tensor_by_name(request, CONTEXT.name)
        if context is None:
            return Waiter.limited(request.timeout(), request.is_cancelled, None, request.request_id())
        return Waiter.behind(context.as_numpy(), request.request_id(), request.is_cancelled)

    def read(self, request: Any, waiter: Waiter) -> tuple[list[_Cut], ReadingParameters, set[str]]:
        """How to make each image's page, parameters, and the outputs that are wanted."""
        parameters = self._parameters(request, waiter)
        self._check_outputs(request, parameters, ("words",))
        given = {spec.name: pb_utils.get_input_tensor_by_name(request, spec.name) for spec in self._contract.inputs}
        tensors: dict[str, Any] = {name: tensor and tensor.as_numpy() for name, tensor in given.items()}
        sources = [name for name in ("IMAGE", "PIXELS", "CROPS") if tensors[name] is not None]
        if len(sources) != 1:
            raise InvalidInputError(
                "give exactly one of the inputs IMAGE (encoded), PIXELS (uint8 RGB) and CROPS (lines, uint8 RGB); got "
                f"{' and '.join(sources) or 'none'}"
            )
        if tensors["CROPS"] is not None:
            crops = unpack_crops(tensors["CROPS"], tensors["CROP_SIZES"], self._limits)
            cuts: list[_Cut] = [partial(self._taken, each) for each in crops]
            counts = list(map(len, crops))
        else:
            images = encoded_images(request) if sources == ["IMAGE"] else list(tensors["PIXELS"])
            found = unpack_detections(tensors, len(images))
            cuts = [
                partial(self._cut_out, image, *each, parameters.page) for image, each in zip(images, found, strict=True)
            ]
            counts = [len(quads) for quads, _, _ in found]
        self._limits.check_lines(sum(counts))
        return cuts, parameters, {*request.requested_output_names()}

    def start(self, inputs: tuple[list[_Cut], ReadingParameters, set[str]], waiter: Waiter) -> Any:
        """See `Model.start`."""
        cuts, parameters, asked = inputs
        pool = self._large_images if waiter.may_wait else self._pool
        return [pool.submit(cut, waiter) for cut in cuts], parameters, asked

    def _cut_out(
        self,
        image: Any,
        quads: NDArray[np.float32],
        scores: NDArray[np.float32],
        polygons: tuple[NDArray[np.float32], ...] | None,
        page: int | None,
        waiter: Waiter,
    ) -> _Page:
        """The lines of an image, bytes or uint8 (H, W, 3)."""

        def work(limits: Limits) -> _Page:
            pixels = decode(image, limits, page) if isinstance(image, bytes) else _checked(image, limits, page)
            height, width = pixels.shape[:2]
            return self._cut(pixels, Detections(quads, scores, width, height, polygons), waiter)

        return self._in_room(image, work, waiter)

    def _taken(self, crops: Sequence[NDArray[np.uint8]], waiter: Waiter) -> _Page:
        """Lines that are cut out already: those of the recogniser's height pixel for pixel."""
        waiter.check("recognise")
        sizes = ((crop.shape[1], crop.shape[0]) for crop in crops)
        quads = np.array([[(0, 0), (w, 0), (w, h), (0, h)] for w, h in sizes], np.float32).reshape(-1, 4, 2)
        lines: list[LineImage] = []
        for crop, quad in zip(crops, quads, strict=True):
            if len(crop) == self._recogniser.spec.height:
                lines.append(
                    LineImage((crop.shape[0], crop.shape[1]), quad, False, np.eye(3), np.ascontiguousarray(crop))
                )
            else:
                lines += self._rectified(crop, quad[None])
        found = Detections(quads, np.zeros(len(quads), np.float32), 0, 0)
        return _Page(found, lines, is_all_kept=True)


def wanted_outputs(asked: set[str]) -> tuple[bool, bool]:
    """Whether outputs of polygons, and of words, belong in an answer."""
    return bool(ONLY_WITH["polygons"] & asked), bool(ONLY_WITH["words"] & asked)


def _checked(pixels: NDArray[np.uint8], limits: Limits, page: int | None) -> NDArray[np.uint8]:
    check_rgb(pixels)
    check_only_page(page)
    limits.check(pixels.shape[1], pixels.shape[0])
    return pixels
