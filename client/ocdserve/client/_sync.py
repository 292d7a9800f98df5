# SPDX-License-Identifier: Apache-2.0
"""The synchronous client: a call's steps performed one after the other, several calls in threads."""

import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ocdserve.client._base import ClientBase
from ocdserve.client._health import Capabilities, Health
from ocdserve.client._sansio.calls import CallOptions, ask, ask_batch
from ocdserve.client._sansio.steps import Describe, Pause, Probe, Register, Send, Step, Steps, Unregister
from ocdserve.client._transports import Transport, transport_for
from ocdserve.client._wire.tasks import Found
from ocdserve.contract import OcdserveError, UnavailableError, check_count
from ocdserve.results.detections import Detections
from ocdserve.results.images import Image, Loaded, for_each, load_image
from ocdserve.results.many import Outcome, numbered, outcomes
from ocdserve.results.pages import pages_of
from ocdserve.results.pictures import LimitedImage
from ocdserve.results.tiles import TiledImage

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
Result = TypeVar("Result", bound=Detections)
AnyImage = TypeVar("AnyImage", bound=Image)

# How often a pausing call checks whether it was abandoned.
_POLL_S = 0.05


class SyncClient(ClientBase[Transport, Found]):
    """What `TextDetector` and `TextReader` share; they name the calls and describe their arguments."""

    def _one(self, image: Image, options: CallOptions[Result], stop: threading.Event | None = None) -> Result:
        return self._run(ask(self._machine, self._limited(image, options), options), stop)

    def _batch(self, images: Sequence[Image], options: CallOptions[Result]) -> list[Result]:
        limited = for_each(lambda image: self._limited(image, options), images)
        return self._run(ask_batch(self._machine, limited, options))

    def _many(
        self, images: Iterable[AnyImage], options: CallOptions[Any], concurrency: int, ordered: bool = True
    ) -> Generator[Outcome[AnyImage], None, None]:
        check_count("concurrency", concurrency)

        def one(image: AnyImage, stop: threading.Event) -> Detections:
            found: Detections = self._one(image, options, stop)
            return found

        return outcomes(images, one, concurrency, ordered, options.task.outcome)

    def _pages(
        self, image: Image, options: CallOptions[Any], pages: Sequence[int] | None, dpi: float, concurrency: int
    ) -> Generator[Any, None, None]:
        """The results of a file's pages, of the kind that the task has."""
        split = (page.image for page in pages_of(self._loaded(image, options.bgr), pages, dpi))
        return numbered(self._many(split, replace(options, bgr=False), concurrency), pages)

    def _tiles(self, tiled: TiledImage, options: CallOptions[Detections], concurrency: int) -> Detections:
        results = self._many(tiled.tiles(), replace(options, bgr=False), concurrency)
        with closing(results):
            found = [outcome.result() for outcome in results]
        return tiled.merge(found)

    def capabilities(self) -> Capabilities:
        """Metadata of the first server that answers.

        Raises:
            UnavailableError: No server answers.
        """
        return self._run(self._machine.capabilities(self._described_models()))

    def health(self, model: str | None = None) -> Health:
        """Whether a model is ready, per server; a server that does not answer is reported, not raised.

        Args:
            model: The model; None: this client's, by default the one for encoded images.

        Raises:
            UnavailableError: This object is closed.
        """
        model = self._model_for_health(model)
        return Health(model, tuple(self._run(row) for row in self._machine.health(model, self._task.remedy)))

    def ready(self) -> bool:
        """Whether at least one server reports the model (by default this client's) as ready."""
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

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connections(self) -> list[Transport]:
        return self._open(transport_for)

    def _loaded(self, image: Image, bgr: bool) -> Loaded:
        return load_image(image, bgr=bgr, downloads=self._downloads)

    def _limited(self, image: Image, options: CallOptions[Any]) -> LimitedImage:
        return options.limited(self._loaded(image, options.bgr))

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
        """Sleep, unless the client is closed or the caller of `_many` gives up."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closed or (stop is not None and stop.is_set()):
                raise UnavailableError(f"this {type(self).__name__}({self.url!r}) was closed during a call")
            time.sleep(min(left, _POLL_S))
