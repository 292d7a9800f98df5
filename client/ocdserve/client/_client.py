# SPDX-License-Identifier: Apache-2.0
"""The synchronous detector: one call from an image to its detections."""

import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.client._base import DetectorBase
from ocdserve.client._health import Capabilities, Health
from ocdserve.client._sansio.detection import detect, detect_batch
from ocdserve.client._sansio.steps import Describe, Pause, Probe, Register, Send, Step, Steps, Unregister
from ocdserve.client._transports import Transport, transport_for
from ocdserve.contract import OcdserveError, Overrides, UnavailableError, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, Loaded, for_each, load_image
from ocdserve.results.many import Outcome, numbered, outcomes
from ocdserve.results.pages import DEFAULT_DPI, pages_of
from ocdserve.results.tiles import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
AnyImage = TypeVar("AnyImage", bound=Image)

# How often a pausing call checks whether it was abandoned.
_POLL_S = 0.05


class TextDetector(DetectorBase[Transport]):
    """Detects text through a server, or several; a context manager.

    Thread-safe; keeps its connections open. After a fork, the child can only use a detector that has made no call yet.

    >>> with TextDetector("grpc://127.0.0.1:8001") as detector:
    ...     found = detector.detect("photo.jpg", box_thresh=0.6)
    """

    def detect(
        self,
        image: Image,
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """Detect the text in one image.

        Args:
            image: Encoded image (bytes); a path; an http:// or https:// URL where `downloads` allows it; a binary file
                object; uint8 (H, W, 3) RGB pixels; a Pillow image. Of a file of several pages one must be chosen by
                `page`; of an animation the first frame is taken.
            bgr: Whether an array holds BGR pixels, as OpenCV reads them.
            max_side: Scale larger images down to a longer side of so many pixels first, by Pillow; results are in
                pixels of the image before. None: the detector scales them.
            request_id: Id of the request in server logs; None: a random one.
            traceparent: W3C trace context; None: that of OpenTelemetry's current span, if there is one.
            **overrides: Request parameters, see `Overrides`.

        Returns:
            Quads float32 (N, 4, 2) and scores float32 (N,) in source pixels, best first; with `polygons=True` the
            polygons too.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: No server is reachable, ready and able to take the request; or this object is closed.
            DeadlineError: No response in time; also an UnavailableError.
            AccessError: The server rejects this client's credentials.
            ServerError: The server failed.
        """
        options = self._options(request_id, traceparent, overrides, max_side)
        return self._run(detect(self._machine, options.limited(self._loaded(image, bgr)), options))

    def detect_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        max_side: int | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> list[Detections]:
        """Detect the text in several images by as few requests as possible: up to eight images of a kind share one.

        One invalid image fails the call, and the message names its index in `images`. For many images, use
        `detect_many`.

        Args:
            images: As for `detect`; encoded images and pixels may be mixed.
            bgr: As for `detect`.
            max_side: As for `detect`.
            request_id: As for `detect`; shared by all requests.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            The detections of each image, in the order of the images.

        Raises:
            OcdserveError: As for `detect`.
        """
        options = self._options(request_id, traceparent, overrides, max_side)
        limited = for_each(lambda image: options.limited(self._loaded(image, bgr)), images)
        return self._run(detect_batch(self._machine, limited, options))

    def detect_many(
        self,
        images: Iterable[AnyImage],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Outcome[AnyImage], None, None]:
        """Detect the text in any number of images, several at once.

        Images are read as outcomes are consumed, at most `2 * concurrency` ahead. Each image has exactly one outcome; a
        failed one holds its error, and the others continue. If the iterable itself raises, the images before it are
        answered first. Closing the iterator cancels what is in flight.

        Args:
            images: As for `detect`.
            concurrency: Number of concurrent requests.
            ordered: Whether outcomes come in the order of the images, else as they complete.
            bgr: As for `detect`.
            max_side: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Raises:
            InvalidInputError: An option is not valid.
            UnavailableError: This object is closed.
        """
        check_count("concurrency", concurrency)
        options = self._options(None, traceparent, overrides, max_side)

        def one(image: AnyImage, stop: threading.Event) -> Detections:
            return self._run(detect(self._machine, options.limited(self._loaded(image, bgr)), options), stop)

        return outcomes(images, one, concurrency, ordered)

    def detect_pages(
        self,
        image: Image,
        *,
        pages: Sequence[int] | None = None,
        dpi: float = DEFAULT_DPI,
        concurrency: int = 4,
        bgr: bool = False,
        max_side: int | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Detections, None, None]:
        """Detect the text in every page of a TIFF or PDF file, or frame of an animation, several at once.

        The file is split here, by Pillow or pypdfium2, as results are consumed; a file of one page is sent as it is.

        Args:
            image: As for `detect`, and a PDF (`pip install 'ocdserve[pdf]'`).
            pages: Numbers of the pages, from 1; None: all.
            dpi: Resolution at which PDF pages are rendered, in pixels per inch.
            concurrency: Number of concurrent requests.
            bgr: As for `detect`.
            max_side: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            Detections whose `page` is their page, in the order of the pages.

        Raises:
            InvalidInputError: The file, one of its pages or a parameter is not valid.
            UnavailableError: As for `detect`; or Pillow or pypdfium2 is needed and not installed.
            OcdserveError: As for `detect`; the first page that fails ends the call.
        """
        split = (page.image for page in pages_of(self._loaded(image, bgr), pages, dpi))
        results = self.detect_many(
            split, concurrency=concurrency, max_side=max_side, traceparent=traceparent, **overrides
        )
        return numbered(results, pages)

    def detect_tiled(
        self,
        image: Image,
        *,
        tile: int = DEFAULT_TILE,
        overlap: int = DEFAULT_OVERLAP,
        concurrency: int = 8,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """Detect the text in an image of any size, in unscaled tiles that the server may batch.

        For images whose text is lost when they are scaled down to the network's size. Text cut by a seam is merged, and
        duplicates across tiles are removed. Text larger than a tile is not found.

        Args:
            image: As for `detect`. Anything but pixels is decoded here, by Pillow; above Pillow's own limit of 179
                megapixels, pass pixels.
            tile: Side of a tile in pixels.
            overlap: Minimum overlap of neighbouring tiles in pixels, at most half a tile; twice the height of the
                largest text is enough.
            concurrency: Number of concurrent tiles.
            bgr: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`; they apply per tile, `max_candidates` too.

        Returns:
            Quads and scores in pixels of the whole image, best first; `latency_ms` covers all tiles.

        Raises:
            InvalidInputError: The image, `tile`, `overlap` or a parameter is not valid.
            UnavailableError: As for `detect`, or the image must be decoded and Pillow is not installed.
            OcdserveError: As for `detect`; the first tile that fails ends the call.
        """
        begin = time.monotonic()
        tiled = TiledImage.of(self._loaded(image, bgr), tile, overlap, overrides.pop("page", None))
        results = self.detect_many(tiled.tiles(), concurrency=concurrency, traceparent=traceparent, **overrides)
        with closing(results):
            found = [outcome.result() for outcome in results]
        return tiled.merge(found, (time.monotonic() - begin) * 1000)

    def capabilities(self) -> Capabilities:
        """Metadata of the first server that answers.

        Raises:
            UnavailableError: No server answers.
        """
        return self._run(self._machine.capabilities(self._described_models()))

    def health(self, model: str | None = None) -> Health:
        """Whether a model is ready, per server; a server that does not answer is reported, not raised.

        Args:
            model: The model; None: this detector's, by default `ocdnet`.

        Raises:
            UnavailableError: This object is closed.
        """
        model = self._model_for_health(model)
        return Health(model, tuple(self._run(row) for row in self._machine.health(model)))

    def ready(self) -> bool:
        """Whether at least one server reports the model (by default `ocdnet`) as ready."""
        try:
            return self.health().ready
        except UnavailableError:
            return False

    def close(self) -> None:
        """Close the connections and release shared memory; calls in flight fail. Idempotent."""
        transports = self._shut_down()
        try:
            if transports:
                self._run(self._machine.release(), transports=transports)
        finally:
            for transport in transports:
                transport.close()

    def __enter__(self) -> "TextDetector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connections(self) -> list[Transport]:
        return self._open(transport_for)

    def _loaded(self, image: Image, bgr: bool) -> Loaded:
        return load_image(image, bgr=bgr, downloads=self._downloads)

    def _run(
        self, steps: Steps[T], stop: threading.Event | None = None, transports: list[Transport] | None = None
    ) -> T:
        """Perform the steps of a call.

        Args:
            steps: The call.
            stop: Aborts the call at its next pause.
            transports: One per server; None: the open ones.
        """
        transports = transports or self._connections()
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._perform(step, transports, stop)
                except OcdserveError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            # On any other exception, such as Ctrl-C, the generator cleans up here.
            steps.close()

    def _perform(self, step: Step, transports: list[Transport], stop: threading.Event | None) -> Any:
        match step:
            case Send():
                return transports[step.server].infer(step.request)
            case Probe():
                return transports[step.server].ready(step.model, step.timeout_s)
            case Describe():
                return transports[step.server].describe(step.model, step.timeout_s)
            case Register():
                return transports[step.server].register(step.region, step.timeout_s)
            case Unregister():
                return transports[step.server].unregister(step.region, step.timeout_s)
            case Pause():
                return self._wait(step.seconds, stop)

    def _wait(self, seconds: float, stop: threading.Event | None) -> None:
        """Sleep, unless the detector is closed or the caller of `detect_many` gives up."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closed or (stop is not None and stop.is_set()):
                raise UnavailableError(f"this TextDetector({self.url!r}) was closed during a call")
            time.sleep(min(left, _POLL_S))
