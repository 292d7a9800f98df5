# SPDX-License-Identifier: Apache-2.0
"""The images of `ocdserve detect` to their detections, in order; with a server, several concurrently."""

import argparse
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.batch.sources import Part, Source, found_in
from ocdserve.cli.detect.detector import SingleDetector
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


def answers_of(
    detector: SingleDetector, images: Iterator[Part], overrides: dict[str, Any], args: argparse.Namespace
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
    detector: Any, images: Iterator[Part], overrides: dict[str, Any], args: argparse.Namespace
) -> Iterator[Answer]:
    def many(images: Iterator[Any]) -> "Iterator[Outcome[Any]]":
        return _many(detector, images, overrides, args)

    for (source, image), found in found_in(images, many):
        if isinstance(found, OcdserveError):
            yield Answer(source, found)
        else:
            yield Answer(source, found, found.latency_ms or 0.0, image)


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
