# SPDX-License-Identifier: Apache-2.0
"""Find the text in images: in this process, or through a running server with --url.

Prints a table, one row an image. With --json it writes one JSON object a line, one line an image:
  {"image": NAME, "width": W, "height": H, "ms": T, "detections": [{"quad": [[x, y] x 4], "score": S}, ...]}
and {"image": NAME, "error": MESSAGE} for an image that failed; the others are still done, and the exit code is 1.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ocdserve.cli import UsageError, one_line
from ocdserve.contract import (
    PARAMETERS,
    Detections,
    InvalidInputError,
    OcdserveError,
    RequestParameters,
    UnavailableError,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ocdserve.cli.draw import Drawings
    from ocdserve.client import Overrides

__all__ = [
    "SingleDetector",
    "Source",
    "add_arguments",
    "check_detector_choice",
    "chosen_detector",
    "run",
    "sources_of",
    "timed_detect",
]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_STDIN = "-"


class SingleDetector(Protocol):
    """What `ocdserve.client.TextDetector` and `ocdserve.backend.Detector` have in common."""

    def detect(self, image: bytes, **overrides: "Unpack[Overrides]") -> Detections:
        """Detect the text in one encoded image."""


@dataclass(frozen=True)
class Source:
    """One image to be done.

    Attributes:
        name: As the user knows it.
        path: The file; None for standard input.
    """

    name: str
    path: Path | None

    @property
    def stem(self) -> str:
        """Base of the names of result files."""
        return self.path.stem if self.path else "stdin"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            InvalidInputError: The file cannot be read.
        """
        if self.path is None:
            return sys.stdin.buffer.read()
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise InvalidInputError(f"cannot read the file: {error.strerror}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image file, folder of images, or - for stdin")
    parser.add_argument("--url", help="ask this server: grpc://HOST:PORT or http://HOST:PORT")
    parser.add_argument("--model", metavar="NAME", help="served model (default: ocdnet); only with --url")
    parser.add_argument("--bundle", metavar="DIR", type=Path, help="detector to load (default: the built-in one)")
    parser.add_argument("--runtime", metavar="NAME", help="what runs the network (default: the best one here)")
    parser.add_argument("--json", metavar="FILE", help="write JSON lines there; - for stdout, instead of the table")
    parser.add_argument("--draw", metavar="DIR", type=Path, help="write each image with its boxes there, as PNG")
    for name, spec in PARAMETERS.items():
        flag = "--" + name.replace("_", "-")
        if spec.type is bool:
            parser.add_argument(flag, action="store_true", help=spec.meaning)
        else:
            parser.add_argument(flag, metavar="X", type=_parameter(name), help=f"{spec.meaning}; {spec.rule}")


def run(args: argparse.Namespace) -> int:
    """Detect in every image; 1 when one failed."""
    check_detector_choice(args)
    overrides = RequestParameters(**{name: getattr(args, name) for name in PARAMETERS}).given()
    sources = list(sources_of(args.images))
    with ExitStack() as stack:
        detector = chosen_detector(args, stack)
        report = _Report(args, sources, stack)
        failures = 0
        for source in sources:
            try:
                encoded = source.read()
                found, ms = timed_detect(detector, encoded, overrides)
            except OcdserveError as error:
                failures += 1
                report.failed(source, error)
                continue
            report.found(source, found, ms)
            try:
                report.draw(source, encoded, found)
            except OcdserveError as error:
                failures += 1
                report.complain(source, error)
    return 1 if failures else 0


def sources_of(arguments: list[str]) -> Iterator[Source]:
    """The images that the arguments name: files, the images of folders in natural order, "-" for stdin.

    Raises:
        InvalidInputError: A folder holds no image or cannot be read.
    """
    for argument in arguments:
        path = Path(argument)
        if argument == _STDIN:
            yield Source(_STDIN, None)
        elif path.is_dir():
            yield from (Source(str(file), file) for file in _images_in(path))
        else:
            yield Source(argument, path)


def timed_detect(detector: SingleDetector, encoded: bytes, overrides: dict[str, Any]) -> tuple[Detections, float]:
    """Detect in one image; returns what was found and how many milliseconds it took."""
    start = perf_counter()
    found = detector.detect(encoded, **overrides)
    return found, (perf_counter() - start) * 1000


def check_detector_choice(args: argparse.Namespace) -> None:
    """Raise UsageError where the options of a server and of this process are mixed."""
    if args.url and (args.bundle or args.runtime):
        raise UsageError("--bundle and --runtime choose the detector of this process; leave them out with --url")
    if args.model and not args.url:
        raise UsageError("--model names a model of a server; give the server with --url, or leave it out")


def chosen_detector(args: argparse.Namespace, stack: ExitStack) -> SingleDetector:
    """The detector that --url, --model, --bundle and --runtime name; a client is closed with `stack`."""
    if args.url:
        return _remote_detector(args.url, args.model, stack)
    return _in_process_detector(args.bundle, args.runtime)


def _remote_detector(url: str, model: str | None, stack: ExitStack) -> SingleDetector:
    """A client of the server at `url`, closed with `stack`.

    Raises:
        UnavailableError: No server with a ready model answers there.
    """
    from ocdserve.client import TextDetector

    detector = stack.enter_context(TextDetector(url, model=model))
    if not detector.ready():
        raise UnavailableError(
            f"no server with a ready model {model or 'ocdnet'!r} answers at {url}; "
            "start one with `ocdserve serve`, or correct --url"
        )
    return detector


def _in_process_detector(bundle: Path | None, runtime: str | None) -> SingleDetector:
    """The detector in this process: of a bundle (None: the default one) in a runtime (None: the best)."""
    from ocdserve.backend import Detector

    detector: SingleDetector = Detector.load(bundle=bundle, runtime=runtime)
    return detector


class _Report:
    """Where results go: a table or JSON lines, and pictures."""

    def __init__(self, args: argparse.Namespace, sources: list[Source], stack: ExitStack) -> None:
        self._json: TextIO | None = None
        self._drawings = _drawings(args.draw, sources) if args.draw else None
        self._name_width = max(len("image"), *(len(source.name) for source in sources))
        if args.json:
            self._json = sys.stdout if args.json == _STDIN else stack.enter_context(_opened(args.json))
        if self._json is not sys.stdout:
            print(f"{'image':{self._name_width}}  {'size':>11}  {'boxes':>5}  {'ms':>8}")

    def found(self, source: Source, found: Detections, ms: float) -> None:
        self._write({"image": source.name, **found.to_dict(), "ms": round(ms, 3)})
        if self._json is not sys.stdout:
            size = f"{found.width}x{found.height}"
            print(f"{source.name:{self._name_width}}  {size:>11}  {len(found):>5}  {ms:>8.1f}", flush=True)

    def failed(self, source: Source, error: OcdserveError) -> None:
        self._write({"image": source.name, "error": one_line(error)})
        self.complain(source, error)

    def complain(self, source: Source, error: OcdserveError) -> None:
        print(f"ocdserve detect: {source.name}: {one_line(error)}", file=sys.stderr, flush=True)

    def draw(self, source: Source, encoded: bytes, found: Detections) -> None:
        if self._drawings is not None:
            self._drawings.save(source.stem, encoded, found)

    def _write(self, result: dict[str, Any]) -> None:
        if self._json is not None:
            print(json.dumps(result, ensure_ascii=False), file=self._json, flush=True)


def _drawings(folder: Path, sources: list[Source]) -> "Drawings":
    # Here, because only --draw needs Pillow; a client without it still prints and writes JSON.
    from ocdserve.cli.draw import Drawings

    return Drawings(folder, [source.path for source in sources if source.path])


def _parameter(name: str) -> Callable[[str], Any]:
    """A converter for argparse that applies the contract's rule."""

    def convert(text: str) -> Any:
        try:
            return getattr(RequestParameters.parse({name: text}), name)
        except InvalidInputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _opened(file: str) -> TextIO:
    try:
        return open(file, "w", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"cannot write the file {file!r} of --json: {error.strerror}") from error


def _images_in(folder: Path) -> list[Path]:
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES]
    except OSError as error:
        raise InvalidInputError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from error
    if not files:
        raise InvalidInputError(f"no image in the folder {str(folder)!r}; looked for {', '.join(sorted(_SUFFIXES))}")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which img_2 comes before img_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.lower())]
