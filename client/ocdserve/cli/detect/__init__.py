# SPDX-License-Identifier: Apache-2.0
"""Detect text in images: in this process, or through a running server with --url.

Prints a table with one row per image. --output writes the results to a file or folder in a format of its suffix or of
--format; --format alone prints them instead of the table. The format json is JSON Lines, one object per image:
  {"image": NAME, "width": W, "height": H, "ms": T, "detections": [{"quad": [[x, y] x 4], "score": S}, ...]}
and {"image": NAME, "error": MESSAGE} for an image that failed; the others are processed, and the exit code is 1. Of
PDF and TIFF files of several pages, and of animations, each page is an image, with "page": NUMBER.
"""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ocdserve.batch.sources import STDIN, images_of, sources_of, stems_of
from ocdserve.batch.storage import is_remote
from ocdserve.cli import whole_number
from ocdserve.cli.detect.answers import Answer, answers_of, overlap_of
from ocdserve.cli.detect.detector import (
    add_detector_arguments,
    add_parameter_arguments,
    add_size_arguments,
    check_detector_choice,
    chosen_detector,
)
from ocdserve.cli.detect.reports import Drawings, Progress, Report
from ocdserve.cli.formats import FORMATS, add_output_arguments, done_before, is_resumable, targets_of
from ocdserve.cli.formats.files import STDOUT, Target
from ocdserve.contract import PARAMETERS, InvalidInputError, OcdserveError, RequestParameters, UsageError, is_url

# Concurrent requests to a server.
_CONCURRENCY = 4


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
    add_size_arguments(parser)
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
    add_parameter_arguments(parser)


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
            for answer in answers_of(detector, parts, overrides, args) if detector else ():
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
        if "labelme" in [target.format for target in targets] and (name == STDIN or is_url(name) or is_remote(name)):
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
            tile_boxes(1, 1, args.tile, overlap_of(args))
        except InvalidInputError as error:
            raise UsageError(f"--{error}") from error
    return targets


def _note(message: str) -> None:
    print(f"ocdserve detect: {message}", file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    """Print nothing."""


def _reported(answer: Answer, report: Report, drawings: Drawings | None, stem: str) -> bool:
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
