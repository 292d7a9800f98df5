# SPDX-License-Identifier: Apache-2.0
"""Detect text in images: in this process, or through a running server with --url.

Prints a table with one row per image. --output writes the results to a file or folder in a format of its suffix or of
--format; --format alone prints them instead of the table. The format json is JSON Lines, one object per image:
  {"image": NAME, "width": W, "height": H, "ms": T, "detections": [{"quad": [[x, y] x 4], "score": S}, ...]}
and {"image": NAME, "error": MESSAGE} for an image that failed; the others are processed, and the exit code is 1. Of
PDF and TIFF files of several pages, and of animations, each page is an image, with "page": NUMBER.
"""

import argparse
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from ocdserve.cli import parameter, resolution, whole_number
from ocdserve.cli.completion import completes
from ocdserve.cli.formats import FORMATS, add_output_arguments, done_before, is_resumable, targets_of
from ocdserve.cli.formats.files import STDOUT, Target
from ocdserve.cli.reports import Drawings, Progress, Report
from ocdserve.cli.sources import STDIN, Source, images_of, sources_of, stems_of
from ocdserve.cli.tuning import add_bundle_argument, add_runtime_argument
from ocdserve.contract import (
    ENSEMBLE,
    FUSED,
    MODELS,
    PARAMETERS,
    InvalidInputError,
    OcdserveError,
    RequestParameters,
    UnavailableError,
    UsageError,
    did_you_mean,
    is_url,
)
from ocdserve.results.detections import Detections
from ocdserve.results.pdf import DEFAULT_DPI
from ocdserve.results.pictures import LimitedImage
from ocdserve.results.second_look import second_look

if TYPE_CHECKING:
    from ocdserve.client import Outcome, TextDetector

# Concurrent requests to a server.
_CONCURRENCY = 4
# Of the messages of the C library and of gRPC about a host name without an address.
_UNRESOLVED = "Name or service not known|name resolution|errors resolving|hostname lookup"


class SingleDetector(Protocol):
    """The common interface of `ocdserve.client.TextDetector` and `ocdserve.backend.Detector`."""

    @property
    def detect(self) -> Callable[..., Detections]:
        """Detect the text in one encoded image; keywords are request parameters."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image file, folder of images, pattern such as 'scans/**/*.jpg', http(s) URL, or -",
    )
    add_detector_arguments(parser)
    parser.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="search the folders in a folder (default: yes); hidden ones are skipped",
    )
    parser.add_argument(
        "--allow-urls", action="store_true", help="fetch images given as URLs, up to 64 MiB and 30 s each"
    )
    add_output_arguments(parser)
    parser.add_argument(
        "--draw", metavar="DIR", type=Path, help="write each image with its boxes there, as PNG; other files stay"
    )
    parser.add_argument(
        "--max-side",
        metavar="N",
        type=whole_number(32),
        help="scale images down to a longer side of N pixels first; boxes are in pixels of the original",
    )
    parser.add_argument(
        "--dpi",
        metavar="N",
        type=resolution,
        default=DEFAULT_DPI,
        help=f"pixels per inch of PDF pages (default: {DEFAULT_DPI:g})",
    )
    parser.add_argument("--tile", metavar="N", type=int, help="detect large images in tiles of N pixels")
    parser.add_argument("--overlap", metavar="N", type=int, help="minimum overlap of tiles in pixels (default: 192)")
    parser.add_argument(
        "--second-look",
        action="store_true",
        help="where nothing is found, look again at what was rejected: a line on a large blank page, a huge word",
    )
    parser.add_argument(
        "--concurrency",
        metavar="N",
        type=whole_number(1),
        default=_CONCURRENCY,
        help="concurrent requests (default: %(default)s)",
    )
    parser.add_argument(
        "--progress", action=argparse.BooleanOptionalAction, help="show a progress line (default: on a terminal)"
    )
    for name, spec in PARAMETERS.items():
        flag = "--" + name.replace("_", "-")
        if spec.type is bool:
            parser.add_argument(flag, action="store_true", help=spec.meaning)
        else:
            parser.add_argument(flag, metavar="X", type=parameter(name), help=f"{spec.meaning}; {spec.rule}")


def run(args: argparse.Namespace) -> int:
    """Detect in every image; returns 1 if one failed."""
    targets = _checked(args)
    overrides = RequestParameters(**{name: getattr(args, name) for name in PARAMETERS}).given()
    note = _silent if args.quiet else _note
    for target in targets:
        if args.polygons and not FORMATS[target.format].has_polygons:
            note(f"{target.format} has no place for polygons; it gets the quads")
    named = list(
        sources_of(args.images, recursive=args.recursive, allow_urls=args.allow_urls, left_out=args.draw, note=note)
    )
    stems = stems_of([source for source in named if source.problem is None])
    done = done_before(targets, stems) if args.resume else {}
    sources = [source for source in named if source.name == STDIN or (source.name, None) not in done]
    images = [source for source in sources if source.problem is None]
    with ExitStack() as stack:
        # What can fail at once does so before the network is loaded.
        progress = Progress(len(sources), False if args.quiet else args.progress)
        drawings = Drawings(args.draw, (source.path for source in sources if source.path)) if args.draw else None
        writers = [FORMATS[target.format].writer(target, stems, stack) for target in targets]
        has_table = STDOUT not in [target.path for target in targets]
        report = Report(
            sources,
            progress,
            writers,
            has_table=has_table,
            can_resume=any(is_resumable(target) for target in targets),
            is_quiet=args.quiet,
        )
        detector = chosen_detector(args, stack) if images else None
        if args.resume:
            done_text = f"{len(named) - len(sources)} of {len(named)} images are already done"
            print(done_text, file=sys.stdout if has_table else sys.stderr)
        by_name = {source.name: source for source in named}
        report.begin(
            {
                replace(by_name[name], page=page): found
                for (name, page), found in done.items()
                if found is not None and name in by_name
            }
        )
        failures = 0
        try:
            for source in sources:
                if source.problem is not None:
                    report.failed(source, InvalidInputError(source.problem))
                    failures += 1
            page = overrides.pop("page", None)
            parts = images_of(images, ahead=args.concurrency, page=page, dpi=args.dpi, done=done, expect=report.expect)
            for answer in _answers(detector, parts, overrides, args):
                failures += not _reported(answer, report, drawings, stems[answer.source.name])
        except KeyboardInterrupt:
            report.interrupted()
            raise
        report.finish()
    return 1 if failures else 0


def _checked(args: argparse.Namespace) -> list[Target]:
    """Where the results go; raises UsageError if options contradict each other."""
    check_detector_choice(args)
    targets = targets_of(args)
    for name in args.images:
        if "labelme" in [target.format for target in targets] and (name == STDIN or is_url(name)):
            raise UsageError(f"labelme's files name an image file, and {name} is none; choose another --format")
    if args.overlap is not None and args.tile is None:
        raise UsageError("--overlap applies to tiles; give their side with --tile, or leave it out")
    if args.tile is not None and args.max_side is not None:
        raise UsageError("--max-side scales large images down, --tile does not; leave one of them out")
    if args.second_look and args.tile is not None:
        raise UsageError("--second-look is for whole images, --tile for parts; leave one of them out")
    if args.tile is not None:
        from ocdserve.results.tiles import tile_boxes

        try:
            tile_boxes(1, 1, args.tile, _overlap(args))
        except InvalidInputError as error:
            raise UsageError(f"--{error}") from error
    return targets


def _overlap(args: argparse.Namespace) -> int:
    """The given overlap of tiles, else the default one as far as the tiles allow."""
    from ocdserve.results.tiles import DEFAULT_OVERLAP

    given: int | None = args.overlap
    return min(DEFAULT_OVERLAP, args.tile // 2) if given is None else given


def _note(message: str) -> None:
    print(f"ocdserve detect: {message}", file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    """Print nothing."""


# An image with its source, or why there is none.
_Part = tuple[Source, "bytes | NDArray[np.uint8] | OcdserveError"]


@dataclass(frozen=True)
class _Answer:
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


def _answers(
    detector: SingleDetector | None, images: Iterator[_Part], overrides: dict[str, Any], args: argparse.Namespace
) -> Iterator[_Answer]:
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
            yield _Answer(source, found, (perf_counter() - begin) * 1000, image)
        except OcdserveError as error:
            yield _Answer(source, error)


def _served(
    detector: Any, images: Iterator[_Part], overrides: dict[str, Any], args: argparse.Namespace
) -> Iterator[_Answer]:
    waiting: deque[_Part] = deque()

    def sent() -> Iterator[Any]:
        for part in images:
            waiting.append(part)
            if not isinstance(part[1], OcdserveError):
                yield part[1]

    def failed() -> Iterator[_Answer]:
        while waiting and isinstance(error := waiting[0][1], OcdserveError):
            yield _Answer(waiting.popleft()[0], error)

    for outcome in _many(detector, sent(), overrides, args):
        yield from failed()
        source, image = waiting.popleft()
        if outcome.error is not None:
            yield _Answer(source, outcome.error)
        else:
            found = replace(outcome.result(), page=source.page)
            yield _Answer(source, found, found.latency_ms or 0.0, image)
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
        encoded, tile=args.tile, overlap=_overlap(args), concurrency=args.concurrency, **overrides
    )
    return found


def _reported(answer: _Answer, report: Report, drawings: Drawings | None, stem: str) -> bool:
    """Report and draw one image; returns whether detecting and drawing succeeded."""
    if isinstance(answer.found, OcdserveError):
        report.failed(answer.source, answer.found)
        return False
    report.found(answer.source, answer.found, answer.ms)
    try:
        if drawings is not None:
            stem = f"{stem}{answer.source.page_suffix}"
            path = drawings.save(stem, answer.image, answer.found, answer.source.label)
            if path.stem != stem:
                report.note(f"{answer.source.label} is drawn as {path}, as the name is taken")
    except OcdserveError as error:
        report.complain(answer.source, error)
        return False
    return True


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `chosen_detector` reads."""
    parser.add_argument("--url", help="ask this server: grpc://HOST:PORT or http://HOST:PORT")
    model = parser.add_argument("--model", metavar="NAME", help="served model (default: ocdnet); only with --url")
    completes(model, (ENSEMBLE, FUSED))
    add_bundle_argument(parser, "load")
    add_runtime_argument(parser, "the fastest")
    parser.add_argument("--threads", metavar="N", type=whole_number(1), help="cores for the network (default: all)")


def check_detector_choice(args: argparse.Namespace) -> None:
    """Raise UsageError if options for a server and for this process are mixed."""
    if args.url and (args.bundle or args.runtime):
        raise UsageError("--bundle and --runtime choose the detector of this process; leave them out with --url")
    if args.url and args.threads:
        raise UsageError("--threads is for the network in this process; leave it out with --url")
    if args.model and not args.url:
        raise UsageError("--model names a model of a server; give the server with --url, or leave it out")


def chosen_detector(args: argparse.Namespace, stack: ExitStack) -> SingleDetector:
    """The detector selected by --url, --model, --bundle and --runtime; a client is closed with `stack`.

    Raises:
        UnavailableError: No server with a ready model answers at --url.
    """
    if not args.url:
        from ocdserve.backend import Detector

        more = {} if args.threads is None else {"threads": args.threads}
        in_process: SingleDetector = Detector.load(bundle=args.bundle, runtime=args.runtime, **more)
        return in_process
    from ocdserve.client import TextDetector

    detector = stack.enter_context(TextDetector(args.url, model=args.model))
    if not detector.ready():
        _explain(detector, args.url, args.model or ENSEMBLE)
        raise UnavailableError(
            f"no server with a ready model {args.model or 'ocdnet'!r} answers at {args.url}; "
            "start one with `ocdserve serve`, or correct --url"
        )
    return detector


def _explain(detector: "TextDetector", url: str, model: str) -> None:
    """Raise UnavailableError if the host is unknown, or if a server answers: what it serves instead of the model."""
    reason = str(detector.health().servers[0].reason)
    if re.search(_UNRESOLVED, reason):
        raise UnavailableError(f"the host {urlsplit(url).hostname!r} of --url is unknown; correct it")
    if "the server answered" in reason:
        raise UnavailableError(reason)
    if not reason.endswith("is not ready"):
        return
    ready = [name for name in MODELS if name != model and detector.health(name).ready]
    if ready:
        near = did_you_mean(model, ready)
        raise UnavailableError(f"the server at {url} has no ready model {model!r}{near}; ready are {', '.join(ready)}")
