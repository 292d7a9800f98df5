# SPDX-License-Identifier: Apache-2.0
"""The detector for ordinary code: one call from an image to its detections."""

import sys
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.client._base import DetectorBase
from ocdserve.client._images import Image, Sendable, load_image
from ocdserve.client._many import outcomes
from ocdserve.client._options import check_count
from ocdserve.client._outcomes import Capabilities, Health, Outcome, ServerHealth, capabilities_from
from ocdserve.client._sansio.calls import Pause, Probe, Register, Send, Step, Steps, Unregister
from ocdserve.client._tiling import DEFAULT_OVERLAP, DEFAULT_TILE, TiledImage
from ocdserve.client._transports import Transport, transport_for
from ocdserve.contract import OcdserveError, Overrides, UnavailableError
from ocdserve.results.detections import Detections

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TextDetector"]

T = TypeVar("T")
AnyImage = TypeVar("AnyImage", bound=Image)

# How soon a pausing call notices that nobody waits for it any more.
_NOTICED_S = 0.05


class TextDetector(DetectorBase[Transport]):
    """Detects text by asking a server, or several; a context manager.

    Keeps its connections open and may be used by several threads at once. After a fork, only a detector that has made
    no call yet can be used in the child.

    >>> with TextDetector("grpc://127.0.0.1:8001") as detector:
    ...     found = detector.detect("photo.jpg", box_thresh=0.6)
    """

    def detect(
        self,
        image: Image,
        *,
        bgr: bool = False,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Detections:
        """Detect the text in one image.

        Args:
            image: Encoded image (bytes); the path of one; an http:// or https:// URL; a binary file object; uint8
                (H, W, 3) RGB pixels; a picture of Pillow.
            bgr: Whether an array holds BGR pixels, as OpenCV reads them.
            request_id: What server logs call the request; None: a random one.
            traceparent: W3C trace context; None: that of OpenTelemetry's current span, if there is one.
            **overrides: Request parameters, see `Overrides`.

        Returns:
            Quads and scores in source pixels, best first; with `polygons=True` the polygons too.

        Raises:
            InvalidInputError: The image or a parameter is not valid.
            UnavailableError: No server answers, is ready and has time; or this object is closed.
            DeadlineError: No answer came in time; an UnavailableError too.
            AccessError: The server does not accept this client.
            ServerError: The server failed.
        """
        options = self._options(request_id, traceparent, overrides)
        return self._run(self._detection(self._loaded(image, bgr), options))

    def detect_batch(
        self,
        images: Sequence[Image],
        *,
        bgr: bool = False,
        request_id: str | None = None,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> list[Detections]:
        """Detect the text in several images by as few requests as possible: eight images of a kind share one.

        One bad image fails the call, and the message names its place in `images`. `detect_many` is for many images.

        Args:
            images: As for `detect`; encoded images and pixels may be mixed.
            bgr: As for `detect`.
            request_id: As for `detect`; the name of all requests.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Returns:
            The detections of each image, in the order of the images.

        Raises:
            OcdserveError: As for `detect`.
        """
        options = self._options(request_id, traceparent, overrides)
        return self._run(self._batch_detection([self._loaded(image, bgr) for image in images], options))

    def detect_many(
        self,
        images: Iterable[AnyImage],
        *,
        concurrency: int = 8,
        ordered: bool = True,
        bgr: bool = False,
        traceparent: str | None = None,
        **overrides: "Unpack[Overrides]",
    ) -> Generator[Outcome[AnyImage], None, None]:
        """Detect the text in any number of images, several at once.

        Images are taken from the iterable as outcomes are taken from the iterator, at most `2 * concurrency` ahead.
        An image that fails has its error in its outcome; the others go on. Each image has exactly one outcome. If the
        iterable itself raises, the images before are answered first. Closing the iterator gives up what is under way.

        Args:
            images: As for `detect`.
            concurrency: Requests at once.
            ordered: Whether outcomes come in the order of the images, else as they are there.
            bgr: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`.

        Raises:
            InvalidInputError: An option is not valid.
            UnavailableError: This object is closed.
        """
        check_count("concurrency", concurrency)
        options = self._options(None, traceparent, overrides)

        def one(image: AnyImage, stop: threading.Event) -> Detections:
            return self._run(self._detection(self._loaded(image, bgr), options), stop)

        return outcomes(images, one, concurrency, ordered)

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
        """Detect the text in a picture of any size, in tiles of its own scale that the server may batch.

        For pictures whose text is lost when they are scaled down to what the network takes. Text that the seams cut is
        put together again, and what two tiles see is told once. Text larger than a tile is not found.

        Args:
            image: As for `detect`. What is not pixels is decoded here, by Pillow; above Pillow's own limit of 179
                megapixels, give pixels.
            tile: Side of a tile in pixels.
            overlap: Least overlap of neighbouring tiles in pixels, at most half a tile; twice the height of the largest
                text is plenty.
            concurrency: Tiles at once.
            bgr: As for `detect`.
            traceparent: As for `detect`.
            **overrides: As for `detect`; each tile has them, so `max_candidates` counts by tile.

        Returns:
            Quads and scores in pixels of the picture, best first; `latency_ms` is that of all tiles together.

        Raises:
            InvalidInputError: The image, `tile`, `overlap` or a parameter is not valid.
            UnavailableError: As for `detect`, or the image must be decoded and Pillow is not installed.
            OcdserveError: As for `detect`; the first tile that fails ends the call.
        """
        begin = time.monotonic()
        tiled = TiledImage.of(self._loaded(image, bgr), tile, overlap)
        results = self.detect_many(tiled.tiles(), concurrency=concurrency, traceparent=traceparent, **overrides)
        with closing(results):
            found = [outcome.result() for outcome in results]
        return tiled.merge(found, (time.monotonic() - begin) * 1000)

    def capabilities(self) -> Capabilities:
        """What the first server that answers says that it can do.

        Raises:
            UnavailableError: No server answers.
        """
        failure: OcdserveError | None = None
        for endpoint, transport in zip(self._endpoints, self._connections(), strict=True):
            try:
                server = transport.describe(None, self._control_s)
                models = []
                for model in self._described_models():
                    try:
                        models.append(transport.describe(model, self._control_s))
                    except OcdserveError:
                        # It is not loaded.
                        continue
                return capabilities_from(endpoint.url, server, models)
            except UnavailableError as error:
                failure = error
        raise failure or UnavailableError("no server")

    def health(self, model: str | None = None) -> Health:
        """Ask every server whether a model is ready; a server that does not answer is reported, not raised.

        Args:
            model: The model; None: that of this detector, by default `ocdnet`.

        Raises:
            UnavailableError: This object is closed.
        """
        model = self._asked_model(model)
        rows = []
        left_out, under_way = self._calls.balancer.left_out(), self._calls.balancer.under_way()
        for number, transport in enumerate(self._connections()):
            try:
                ready = transport.ready(model, self._control_s)
                reason = None if ready else f"model {model!r} is not ready"
            except OcdserveError as error:
                ready, reason = False, str(error)
            url = self._endpoints[number].url
            rows.append(ServerHealth(url, ready, number in left_out, under_way[number], reason))
        return Health(model, tuple(rows))

    def ready(self) -> bool:
        """Whether a server answers and says that the model (by default `ocdnet`) is ready."""
        try:
            return self.health().ready
        except UnavailableError:
            return False

    def close(self) -> None:
        """Close the connections and release shared memory; calls under way fail. Calling it again does nothing."""
        transports = self._taken_down()
        try:
            if transports:
                self._run(self._calls.release(), transports=transports)
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

    def _loaded(self, image: Image, bgr: bool) -> Sendable:
        return load_image(image, bgr=bgr, downloads=self._downloads)

    def _run(
        self, steps: Steps[T], stop: threading.Event | None = None, transports: list[Transport] | None = None
    ) -> T:
        """Perform the steps of a call.

        Args:
            steps: The call.
            stop: Ends the call at its next pause.
            transports: Of the servers; None: the open ones.
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
            # Where something else went wrong, such as Ctrl-C, the course ends here, and tidies up.
            steps.close()

    def _perform(self, step: Step, transports: list[Transport], stop: threading.Event | None) -> Any:
        match step:
            case Send():
                return transports[step.server].infer(step.request)
            case Probe():
                return transports[step.server].ready(step.model, step.timeout_s)
            case Register():
                return transports[step.server].register(step.region, step.timeout_s)
            case Unregister():
                return transports[step.server].unregister(step.region, step.timeout_s)
            case Pause():
                return self._wait(step.seconds, stop)

    def _wait(self, seconds: float, stop: threading.Event | None) -> None:
        """Sleep, but not longer than the detector or the caller of `detect_many` has use for the answer."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closed or (stop is not None and stop.is_set()):
                raise UnavailableError(f"this TextDetector({self.url!r}) was closed during a call")
            time.sleep(min(left, _NOTICED_S))
