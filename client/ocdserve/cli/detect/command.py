# SPDX-License-Identifier: Apache-2.0
"""What `ocdserve detect` and `ocdserve read` share: images to results, one by one, as a table or in files."""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ocdserve.batch.sources import STDIN, images_of, sources_of, stems_of
from ocdserve.batch.storage import is_remote
from ocdserve.cli import whole_number
from ocdserve.cli.detect.answers import Answer, Calls, overlap_of
from ocdserve.cli.detect.detector import add_size_arguments
from ocdserve.cli.detect.reports import Drawings, Progress, Report
from ocdserve.cli.formats import Outputs, is_resumable
from ocdserve.cli.formats.files import STDOUT, Target
from ocdserve.contract import InvalidInputError, OcdserveError, UsageError, is_url

# Concurrent requests to a server.
_CONCURRENCY = 4


def add_image_arguments(parser: argparse.ArgumentParser, outputs: Outputs) -> None:
    """Declare the options that `run_images` reads, but for the images and the request parameters."""
    parser.add_argument(
        "--recursive",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="search the folders in a folder (default: yes); hidden ones are skipped",
    )
    parser.add_argument(
        "--allow-urls", action="store_true", help="fetch images given as URLs, up to 64 MiB and 30 s each"
    )
    outputs.add_arguments(parser)
    parser.add_argument(
        "--draw", metavar="DIR", type=Path, help="write each image with its boxes there, as PNG; other files stay"
    )
    add_size_arguments(parser)
    parser.add_argument("--tile", metavar="N", type=int, help=f"{outputs.command} large images in tiles of N pixels")
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


def run_images(
    args: argparse.Namespace,
    outputs: Outputs,
    overrides: dict[str, Any],
    load: Callable[[argparse.Namespace, ExitStack], Any],
) -> int:
    """Take every image; returns 1 if one failed.

    Args:
        args: The options.
        outputs: Of the command, "detect" or "read"; so are the calls of what `load` returns.
        overrides: Request parameters.
        load: Loads the detector or reader that the options choose; a client is closed with the stack.

    Raises:
        UsageError: Options contradict each other.
    """
    targets = outputs.targets(args)
    _check(args, targets)
    note = _silent if args.quiet else partial(_note, outputs.command)
    overrides = _completed(overrides, targets, note)
    named = list(
        sources_of(args.images, recursive=args.recursive, allow_urls=args.allow_urls, left_out=args.draw, note=note)
    )
    stems = stems_of([source for source in named if source.problem is None])
    done = outputs.done_before(targets, stems) if args.resume else {}
    sources = [source for source in named if source.name == STDIN or (source.name, None) not in done]
    images = [source for source in sources if source.problem is None]
    with ExitStack() as stack:
        # What can fail at once does so before the network is loaded.
        progress = Progress(len(sources), False if args.quiet else args.progress)
        drawings = Drawings(args.draw, (source.path for source in sources if source.path)) if args.draw else None
        has_table = outputs.default is None and STDOUT not in [target.path for target in targets]
        report = Report(
            outputs.command,
            sources,
            progress,
            [target.format.writer(target, stems, stack) for target in targets],
            has_table=has_table,
            can_resume=any(is_resumable(target) for target in targets),
            is_quiet=args.quiet,
        )
        loaded = load(args, stack) if images else None
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
            calls = Calls(loaded, outputs.command, overrides, args)
            for answer in calls.answers(parts) if loaded else ():
                failures += not _reported(answer, report, drawings, stems[answer.source.name])
        except KeyboardInterrupt:
            report.interrupted()
            raise
        report.finish()
    return 1 if failures else 0


def _check(args: argparse.Namespace, targets: list[Target]) -> None:
    """Raise UsageError if options contradict each other."""
    for name in args.images:
        if "labelme" in [target.format.name for target in targets] and (
            name == STDIN or is_url(name) or is_remote(name)
        ):
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


def _completed(overrides: dict[str, Any], targets: list[Target], note: Callable[[str], None]) -> dict[str, Any]:
    """The request parameters with those that the formats need; notes what a format has no place for."""
    for target in targets:
        overrides = {**overrides, **target.format.parameters}
        if overrides.get("polygons") and not target.format.has_polygons:
            note(f"{target.format.name} has no place for polygons; it gets the quads")
    return overrides


def _note(command: str, message: str) -> None:
    print(f"ocdserve {command}: {message}", file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    """Print nothing."""


def _reported(answer: Answer, report: Report, drawings: Drawings | None, stem: str) -> bool:
    """Report and draw one image; returns whether that and its answer succeeded."""
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
