# SPDX-License-Identifier: Apache-2.0
"""Formats of result files: their table, the options that choose them, what an earlier run has written."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdserve.cli import one_line, one_of
from ocdserve.cli.completion import completes
from ocdserve.cli.formats.files import STDOUT, Format, Target
from ocdserve.cli.formats.writers import Coco, Csv, Files, Folder, JsonLines, Parquet
from ocdserve.contract import InvalidInputError, UsageError
from ocdserve.results.detections import Detections


@dataclass(frozen=True)
class Outputs:
    """What a command can write, and the options that choose it.

    Attributes:
        command: Its name, for messages.
        formats: The formats.
        shorthands: Those that also have an option: --NAME FILE.
        default: Format of stdout, and of a folder, where the options name none; None: a table is printed instead.
    """

    command: str
    formats: tuple[Format, ...]
    shorthands: tuple[str, ...] = ()
    default: str | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options that `targets` reads."""
        if self.default is None:
            usual, place = "by its suffix", "write the results there; - for stdout, instead of the table"
        else:
            usual, place = f"by its suffix, else {self.default}", "write there; - for stdout (default)"
        parser.add_argument("--output", metavar="PATH", default=self.default and STDOUT, help=place)
        meanings = "; ".join(f"{form.name}: {form.meaning}" for form in self.formats)
        option = parser.add_argument(
            "--format",
            metavar="NAME",
            type=one_of(self._by_name),
            help=f"format of --output (default: {usual}) or, without it, of stdout; {meanings}",
        )
        completes(option, self._by_name)
        for name in self.shorthands:
            parser.add_argument(f"--{name}", metavar="FILE", help=f"short for --format {name} --output FILE")
        parser.add_argument(
            "--resume",
            action="store_true",
            help=f"skip images that are already in the file of {self._json}, or the folder",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace existing result files")

    def targets(self, args: argparse.Namespace) -> list[Target]:
        """Where the results go besides the table.

        Raises:
            UsageError: The options contradict each other, or do not suit the format.
        """
        named = [(name, getattr(args, name), f"--{name}") for name in self.shorthands]
        if args.output or args.format:
            named.append((args.format or self._format_of(args.output), args.output or STDOUT, "--output"))
        columns = getattr(args, "columns", False)
        targets = [
            Target(self._by_name[name], path, option, args.resume, args.overwrite, columns)
            for name, path, option in named
            if path
        ]
        for target in targets:
            form = target.format
            if target.path == STDOUT and not form.to_stdout:
                place = "folder" if form.naming else "file"
                raise UsageError(f"{form.name} does not go to stdout; name a {place} with {target.option}")
            if target.is_folder and Path(target.path).is_file():
                raise UsageError(f"{target.option} must be a folder for {form.name}; {target.path!r} is a file")
        paths = [os.path.realpath(target.path) if target.path != STDOUT else STDOUT for target in targets]
        if len(set(paths)) < len(paths):
            raise UsageError(f"{' and '.join(target.option for target in targets)} must name different files")
        if args.resume:
            self._check_resumable(targets, args)
        return targets

    def done_before(
        self, targets: list[Target], stems: Mapping[str, str]
    ) -> dict[tuple[str, int | None], Detections | None]:
        """Names and pages of images that an earlier run has done, with their detections where its files hold them.

        Args:
            targets: What is resumed.
            stems: Names of result files by image.

        Raises:
            InvalidInputError: A file cannot be read or truncated, or has other content.
        """
        for target in targets:
            if target.is_json_file:
                from ocdserve.results import from_dict

                parsed: Callable[[Any], Detections] = from_dict
                if self.command == "read":
                    from ocdserve.results.reading import Reading

                    parsed = Reading.from_dict
                return dict(_done_lines(Path(target.path), f"`ocdserve {self.command} {self._json}`", parsed))
        return dict.fromkeys(Folder(targets[0], stems).written())

    @property
    def _by_name(self) -> dict[str, Format]:
        return {form.name: form for form in self.formats}

    @property
    def _json(self) -> str:
        """The option for JSON Lines."""
        return "--json" if "json" in self.shorthands else "--format json"

    def _check_resumable(self, targets: list[Target], args: argparse.Namespace) -> None:
        if args.overwrite:
            raise UsageError("--resume continues what --overwrite replaces; leave one of them out")
        is_continued = any(target.is_json_file for target in targets)
        if not is_continued and [target.is_folder for target in targets] != [True]:
            folders = " or ".join(form.name for form in self.formats if form.naming)
            raise UsageError(
                f"--resume continues the file of {self._json}, or a folder of {folders} alone; name that file"
            )

    def _format_of(self, path: str) -> str:
        suffix = Path(path).suffix.lower()
        for form in self.formats:
            if suffix in form.suffixes:
                return form.name
        if self.default is not None and (path == STDOUT or not suffix):
            return self.default
        raise UsageError(f"--format must say what to write to {path!r}: {', '.join(self._by_name)}")


DETECTIONS = Outputs(
    "detect",
    (
        Format("json", "JSON Lines, an object per image", JsonLines, (".jsonl", ".ndjson")),
        Format("csv", "a row per detection", Csv, (".csv",), has_polygons=False),
        Format("coco", "one COCO file", Coco),
        Format("icdar", "a folder with res_NAME.txt per image", Files, (), False, "res_{}.txt", has_polygons=False),
        Format("labelme", "a folder with NAME.json per image", Files, (), False, "{}.json"),
        Format("parquet", "a row per detection, needs pyarrow", Parquet, (".parquet",), False, has_polygons=False),
    ),
    shorthands=("json", "parquet"),
)


def is_resumable(target: Target) -> bool:
    """Whether --resume can continue what is there."""
    return target.is_json_file or target.is_folder


def _done_lines(
    file: Path, command: str, parsed: Callable[[Any], Detections]
) -> dict[tuple[str, int | None], Detections]:
    """Detections, as `parsed` makes them, in the JSON lines of an earlier run; an incomplete last line is cut off."""
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
    whole = content[: content.rfind(b"\n") + 1]
    if content[len(whole) :] and not content.startswith(b'{"image":'):
        raise InvalidInputError(f"{file} is not what {command} writes; give another file, or leave out --resume")
    done = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            result = json.loads(line)
            name = result["image"]
            if "error" not in result:
                found = parsed(result)
                done[name, found.page] = found
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{file}, line {number}, is not what {command} writes ({one_line(error)}); "
                "give another file, or leave out --resume"
            ) from error
    try:
        if len(whole) < len(content):
            os.truncate(file, len(whole))
    except OSError as error:
        raise InvalidInputError(f"cannot continue the file {str(file)!r}: {error.strerror}") from error
    return done
