# SPDX-License-Identifier: Apache-2.0
"""Formats of result files: their table, the options that choose them, what an earlier run has written."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ocdserve.cli import one_line, one_of
from ocdserve.cli.completion import completes
from ocdserve.cli.formats.files import STDOUT, Target
from ocdserve.cli.formats.writers import Coco, Csv, Files, JsonLines, Parquet, Writer
from ocdserve.contract import InvalidInputError, UsageError
from ocdserve.results.detections import Detections


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        meaning: For the help text.
        writer: Makes the writer from the target, the names of result files by image, and the stack that closes it.
        suffixes: Of files that have the format unless --format says otherwise.
        to_stdout: Whether it can be written to stdout.
        is_folder: Whether it is a folder with a file per image.
        has_polygons: Whether it has a place for polygons.
    """

    meaning: str
    writer: Callable[[Target, Mapping[str, str], ExitStack], Writer]
    suffixes: tuple[str, ...] = ()
    to_stdout: bool = True
    is_folder: bool = False
    has_polygons: bool = True


FORMATS = {
    "json": Format("JSON Lines, an object per image", JsonLines, (".jsonl", ".ndjson")),
    "csv": Format("a row per detection", Csv, (".csv",), has_polygons=False),
    "coco": Format("one COCO file", Coco),
    "icdar": Format("a folder with res_NAME.txt per image", Files, (), False, is_folder=True, has_polygons=False),
    "labelme": Format("a folder with NAME.json per image", Files, (), False, is_folder=True),
    "parquet": Format("a row per detection, needs pyarrow", Parquet, (".parquet",), False, has_polygons=False),
}


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `targets_of` reads."""
    meanings = "; ".join(f"{name}: {one.meaning}" for name, one in FORMATS.items())
    parser.add_argument("--output", metavar="PATH", help="write the results there; - for stdout, instead of the table")
    form = parser.add_argument(
        "--format",
        metavar="NAME",
        type=one_of(FORMATS),
        help=f"format of --output (default: by its suffix) or, without it, of stdout; {meanings}",
    )
    completes(form, FORMATS)
    parser.add_argument("--json", metavar="FILE", help="short for --format json --output FILE")
    parser.add_argument("--parquet", metavar="FILE", help="short for --format parquet --output FILE")
    parser.add_argument(
        "--resume", action="store_true", help="skip images that are already in the file of --json, or the folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing result files")


def targets_of(args: argparse.Namespace) -> list[Target]:
    """Where the results go besides the table.

    Raises:
        UsageError: The options contradict each other, or do not suit the format.
    """
    named = [("json", args.json, "--json"), ("parquet", args.parquet, "--parquet")]
    if args.output or args.format:
        named.append((args.format or _format_of(args.output), args.output or STDOUT, "--output"))
    targets = [Target(name, path, option, args.resume, args.overwrite) for name, path, option in named if path]
    for target in targets:
        form = FORMATS[target.format]
        if target.path == STDOUT and not form.to_stdout:
            place = "folder" if form.is_folder else "file"
            raise UsageError(f"{target.format} does not go to stdout; name a {place} with {target.option}")
        if form.is_folder and Path(target.path).is_file():
            raise UsageError(f"{target.option} must be a folder for {target.format}; {target.path!r} is a file")
    paths = [os.path.realpath(target.path) if target.path != STDOUT else STDOUT for target in targets]
    if len(set(paths)) < len(paths):
        raise UsageError(f"{' and '.join(target.option for target in targets)} must name different files")
    if args.resume:
        _check_resumable(targets, args)
    return targets


def is_resumable(target: Target) -> bool:
    """Whether --resume can continue what is there."""
    return target.path != STDOUT and (target.format == "json" or FORMATS[target.format].is_folder)


def _check_resumable(targets: list[Target], args: argparse.Namespace) -> None:
    if args.overwrite:
        raise UsageError("--resume continues what --overwrite replaces; leave one of them out")
    is_continued = any(target.format == "json" and target.path != STDOUT for target in targets)
    if not is_continued and [FORMATS[target.format].is_folder for target in targets] != [True]:
        folders = " or ".join(name for name, form in FORMATS.items() if form.is_folder)
        raise UsageError(f"--resume continues the file of --json, or a folder of {folders} alone; name that file")


def _format_of(path: str) -> str:
    suffix = Path(path).suffix.lower()
    for name, form in FORMATS.items():
        if suffix in form.suffixes:
            return name
    raise UsageError(f"--format must say what to write to {path!r}: {', '.join(FORMATS)}")


def done_before(targets: list[Target], stems: Mapping[str, str]) -> dict[tuple[str, int | None], Detections | None]:
    """Names and pages of images that an earlier run has done, with their detections where its files hold them.

    Args:
        targets: What is resumed.
        stems: Names of result files by image.

    Raises:
        InvalidInputError: A file cannot be read or truncated, or has other content.
    """
    for target in targets:
        if target.format == "json" and target.path != STDOUT:
            return dict(_done_lines(Path(target.path)))
    with ExitStack() as stack:
        files = Files(targets[0], stems, stack)
        return dict.fromkeys(files.written())


def _done_lines(file: Path) -> dict[tuple[str, int | None], Detections]:
    """Detections in the JSON lines of an earlier run; an incomplete last line is cut off the file."""
    from ocdserve.results import from_dict

    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    if content[len(whole) :] and not content.startswith(b'{"image":'):
        raise InvalidInputError(
            f"{file} is not what `ocdserve detect --json` writes; give another file, or leave out --resume"
        )
    done = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            result = json.loads(line)
            name = result["image"]
            if "error" not in result:
                found = from_dict(result)
                done[name, found.page] = found
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{file}, line {number}, is not what `ocdserve detect --json` writes ({one_line(error)}); "
                "give another file, or leave out --resume"
            ) from error
    try:
        if len(whole) < len(content):
            os.truncate(file, len(whole))
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
    return done
