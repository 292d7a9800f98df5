# SPDX-License-Identifier: Apache-2.0
"""The images of `ocdserve detect` to their detections, in order; with a server, several concurrently."""

import argparse
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.cli.detect.detector import SingleDetector
from ocdserve.cli.sources import Source
from ocdserve.contract import OcdserveError
from ocdserve.results.detections import Detections
from ocdserve.results.pictures import LimitedImage
from ocdserve.results.second_look import second_look

if TYPE_CHECKING:
    from ocdserve.client import Outcome

# An image with its source, or why there is none.
_Part = tuple[Source, "bytes | NDArray[np.uint8] | OcdserveError"]


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


def answers_of(
    detector: SingleDetector, images: Iterator[_Part], overrides: dict[str, Any], args: argparse.Namespace
) -> Iterator[Answer]:
    """Detect in all images, in their order; with a server, several concurrently."""
    if args.url and args.tile is None:
        yield from _served(detector, images, overrides, args)
        return
    for source, image in images:
        begin = perf_counter()
        try:
            if isinstance(image, OcdserveError):
                raise image
            found = replace(_detected(detector, image, overrides, args), page=source.page)
            yield Answer(source, found, (perf_counter() - begin) * 1000, image)
        except OcdserveError as error:
            yield Answer(source, error)


def _served(
    detector: Any, images: Iterator[_Part], overrides: dict[str, Any], args: argparse.Namespace
) -> Iterator[Answer]:
    waiting: deque[_Part] = deque()

    def sent() -> Iterator[Any]:
        for part in images:
            waiting.append(part)
            if not isinstance(part[1], OcdserveError):
                yield part[1]

    def failed() -> Iterator[Answer]:
        while waiting and isinstance(error := waiting[0][1], OcdserveError):
            yield Answer(waiting.popleft()[0], error)

    for outcome in _many(detector, sent(), overrides, args):
        yield from failed()
        source, image = waiting.popleft()
        if outcome.error is not None:
            yield Answer(source, outcome.error)
        else:
            found = replace(outcome.result(), page=source.page)
            yield Answer(source, found, found.latency_ms or 0.0, image)
    yield from failed()


def _many(
    detector: Any, images: Iterable[Any], overrides: dict[str, Any], args: argparse.Namespace
) -> "Iterator[Outcome[Any]]":
    if args.max_side is None and not args.second_look:
        many: Iterator[Outcome[Any]] = detector.detect_many(images, concurrency=args.concurrency, **overrides)
        return many
    from ocdserve.results.many import outcomes

    def one(image: Any, _: threading.Event) -> Detections:
        return _detected(detector, image, overrides, args)

    return outcomes(images, one, args.concurrency, ordered=True)


def _detected(
    detector: Any, encoded: bytes | NDArray[np.uint8], overrides: dict[str, Any], args: argparse.Namespace
) -> Detections:
    if args.tile is None:
        detect: Callable[..., Detections] = detector.detect
        if args.second_look:
            detect = partial(second_look, detect)
        if args.max_side is None:
            return detect(encoded, **overrides)
        limited = LimitedImage.of(encoded, args.max_side)
        return limited.restore(detect(limited.image, **overrides))
    found: Detections = detector.detect_tiled(
        encoded, tile=args.tile, overlap=overlap_of(args), concurrency=args.concurrency, **overrides
    )
    return found


def overlap_of(args: argparse.Namespace) -> int:
    """The given overlap of tiles, else the default one as far as the tiles allow."""
    from ocdserve.results.tiles import DEFAULT_OVERLAP

    given: int | None = args.overlap
    return min(DEFAULT_OVERLAP, args.tile // 2) if given is None else given
