# SPDX-License-Identifier: Apache-2.0
"""Images to what is found in them, in order; with a server, several concurrently."""

import argparse
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.batch.sources import Part, Source, found_in
from ocdserve.contract import OcdserveError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import LimitedImage
from ocdserve.results.second_look import second_look

if TYPE_CHECKING:
    from ocdserve.client import Outcome


@dataclass(frozen=True)
class Answer:
    """Outcome of one image.

    Attributes:
        source: The image.
        found: The detections, or the error.
        ms: Duration in milliseconds.
        image: What it was found in.
    """

    source: Source
    found: Detections | OcdserveError
    ms: float = 0.0
    image: Any = None


@dataclass(frozen=True)
class Calls:
    """The calls for images that the options choose.

    Attributes:
        subject: A detector, or a reader.
        verb: Name of its call for one image, "detect" or "read"; those for several and for tiles begin with it.
        overrides: Request parameters.
        args: The options of `add_image_arguments`.
    """

    subject: Any
    verb: str
    overrides: Mapping[str, Any]
    args: argparse.Namespace

    def answers(self, images: Iterator[Part]) -> Iterator[Answer]:
        """The answers for all images, in their order; with a server, several concurrently."""
        if self.args.url and self.args.tile is None:
            yield from self._served(images)
            return
        for source, image in images:
            begin = perf_counter()
            try:
                if isinstance(image, OcdserveError):
                    raise image
                found = replace(self._one(image), page=source.page)
                yield Answer(source, found, (perf_counter() - begin) * 1000, image)
            except OcdserveError as error:
                yield Answer(source, error)

    def _served(self, images: Iterator[Part]) -> Iterator[Answer]:
        for (source, image), found in found_in(images, self._many):
            if isinstance(found, OcdserveError):
                yield Answer(source, found)
            else:
                yield Answer(source, found, found.latency_ms or 0.0, image)

    def _many(self, images: Iterable[Any]) -> "Iterator[Outcome[Any]]":
        if self.args.max_side is None and not self.args.second_look:
            many: Iterator[Outcome[Any]] = self._call("_many")(
                images, concurrency=self.args.concurrency, **self.overrides
            )
            return many
        from ocdserve.results.many import outcomes

        def one(image: Any, _: threading.Event) -> Detections:
            return self._one(image)

        return outcomes(images, one, self.args.concurrency, ordered=True)

    def _one(self, encoded: bytes | NDArray[np.uint8]) -> Detections:
        args = self.args
        if args.tile is None:
            call: Callable[..., Detections] = self._call()
            if args.second_look:
                call = partial(second_look, call)
            if args.max_side is None:
                return call(encoded, **self.overrides)
            limited = LimitedImage.of(encoded, args.max_side)
            return limited.restore(call(limited.image, **self.overrides))
        tiles = {"tile": args.tile, "overlap": overlap_of(args), "concurrency": args.concurrency}
        found: Detections = self._call("_tiled")(encoded, **tiles, **self.overrides)
        return found

    def _call(self, kind: str = "") -> Callable[..., Any]:
        call: Callable[..., Any] = getattr(self.subject, f"{self.verb}{kind}")
        return call


def overlap_of(args: argparse.Namespace) -> int:
    """The given overlap of tiles, else the default one as far as the tiles allow."""
    from ocdserve.results.tiles import DEFAULT_OVERLAP

    given: int | None = args.overlap
    return min(DEFAULT_OVERLAP, args.tile // 2) if given is None else given
