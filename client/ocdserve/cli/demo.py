# SPDX-License-Identifier: Apache-2.0
"""Try everything at once: start the real Triton server, read text over gRPC and over HTTP, stop the server.

Draws its own images when none is given. Writes for each image STEM.png (with the boxes drawn in), STEM.json, STEM.txt
and, where the extra `pdf` is installed, STEM.pdf, in which the text can be searched.
"""

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from ocdserve.batch.sources import sources_of
from ocdserve.cli import one_line
from ocdserve.cli.detect.reports import Drawings
from ocdserve.contract import InvalidInputError, OcdserveError
from ocdserve.results.reading import Reading, to_text

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Of an image's text: printed lines, and their width in characters.
_MOST_LINES, _MOST_WIDTH = 3, 64

# Reads the text in an encoded image; keywords are request parameters.
Read = Callable[..., Reading]


@dataclass(frozen=True)
class DemoImage:
    """One image of the demo.

    Attributes:
        name: For the table.
        stem: Stem of the result files' names.
        read: Returns the encoded image.
    """

    name: str
    stem: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Served:
    """Calls to one running server, by each protocol."""

    grpc: Read
    http: Read


class Clock:
    """Prints progress to stderr, with the seconds since the start."""

    def __init__(self) -> None:
        self._start = perf_counter()

    def seconds(self) -> float:
        """Seconds since the start."""
        return perf_counter() - self._start

    def say(self, message: str) -> None:
        """Print one line."""
        print(f"[{self.seconds():5.1f} s] {message}", file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="image file or folder (default: drawn images)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("out/demo"), help="for the results (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; 1 when an image failed or the protocols disagreed."""
    clock = Clock()
    with _stop_signals_as_ctrl_c():
        if args.images:
            sources = list(sources_of(args.images))
            images = [DemoImage(source.name, source.stem, source.read) for source in sources]
            inputs = [source.path for source in sources if source.path]
        else:
            clock.say("drawing images")
            images, inputs = _own_images(), []
        return show(images, Drawings(args.output, inputs), _server(clock), clock)


def show(images: Sequence[DemoImage], drawings: Drawings, server: AbstractContextManager[Served], clock: Clock) -> int:
    """Read every image over both protocols, print the table with the first lines of each, write the results.

    Args:
        images: What to read.
        drawings: Folder for the results, JSON files next to the images.
        server: Starts the server on entry and stops it on exit.
        clock: Prints progress.

    Returns:
        0, or 1 when an image failed or the protocols returned different results.
    """
    first_result_s = 0.0
    written: list[list[str]] = []
    failures = 0
    with server as served:
        width = max(len("image"), *(len(image.name) for image in images))
        print(f"{'image':{width}}  {'size':>11}  {'boxes':>5}  {'ms gRPC':>8}  {'ms HTTP':>8}")
        for image in images:
            try:
                encoded = image.read()
                found, grpc_ms = _timed(served.grpc, encoded)
                first_result_s = first_result_s or clock.seconds()
                over_http, http_ms = _timed(served.http, encoded)
                size = f"{found.width}x{found.height}"
                row = f"{image.name:{width}}  {size:>11}  {len(found):>5}  {grpc_ms:>8.1f}  {http_ms:>8.1f}"
                print(row, *_first_lines(found), sep="\n", flush=True)
                written.append(_write(image, encoded, found, drawings, {"ms_grpc": grpc_ms, "ms_http": http_ms}))
                _check_equal(found, over_http)
            except OcdserveError as error:
                failures += 1
                print(f"ocdserve demo: {image.name}: {one_line(error)}", file=sys.stderr, flush=True)
    if written:
        print(f"first result {first_result_s:.1f} s after the start, the server's start included")
        for first, *others, last in written:
            print(f"wrote {', '.join([first, *others])} and {last}")
    if not failures:
        print(f"gRPC and HTTP gave the same answer for {len(images)} of {len(images)} images")
    return 1 if failures else 0


def _timed(read: Read, encoded: bytes) -> tuple[Reading, float]:
    """What was read, with words, which the PDF needs, and the duration in milliseconds."""
    start = perf_counter()
    found = read(encoded, words=True)
    return found, (perf_counter() - start) * 1000


def _first_lines(found: Reading) -> list[str]:
    lines = found.text.splitlines()
    more = [f"... {len(lines) - _MOST_LINES} more lines"] if len(lines) > _MOST_LINES else []
    shown = [line if len(line) <= _MOST_WIDTH else f"{line[: _MOST_WIDTH - 3]}..." for line in lines[:_MOST_LINES]]
    return [f"    {line}" for line in shown + more]


def _own_images() -> list[DemoImage]:
    from ocdserve.perf.inputs.pictures import demo_pictures

    return [DemoImage(picture.name, picture.name, picture.png) for picture in demo_pictures()]


@contextmanager
def _server(clock: Clock) -> Iterator[Served]:
    """The real server with the default detector and recogniser on free ports, and a client for each protocol."""
    from ocdserve.backend.publish.repository import PublishOptions, publish
    from ocdserve.backend.serve import ServeOptions, private_directory, running_server
    from ocdserve.client import TextReader

    workspace = private_directory()
    try:
        clock.say("writing the model repository")
        repository = publish(
            PublishOptions(bundle=None, recogniser=Path("default"), repository=workspace / "repository")
        )
        options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0, workspace=workspace)
        clock.say("starting Triton")
        with (
            running_server(options, clock.say) as server,
            TextReader(server.grpc_url) as over_grpc,
            TextReader(server.http_url) as over_http,
            _stop_undisturbed(clock),
        ):
            for reader in (over_grpc, over_http):
                # Opens the connection, so that the first image's time does not include it.
                reader.ready()
            clock.say(f"serving at {server.grpc_url} and {server.http_url}")
            yield Served(over_grpc.read, over_http.read)
        clock.say("stopped")
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def _stop_signals_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that the server is stopped; restores both handlers."""
    previous = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    for number, handler in previous.items():
        # In a shell's background job SIGINT is ignored, and stays so.
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _stop_undisturbed(clock: Clock) -> Iterator[None]:
    """Ignore stop signals after the block, while the server is being stopped, which takes seconds."""
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        clock.say("stopping the server")


def _write(
    image: DemoImage, encoded: bytes, found: Reading, drawings: Drawings, times: Mapping[str, float]
) -> list[str]:
    """Write the results of one image; the names of the files, the first with its folder."""
    from ocdserve.backend.files import write_atomically

    picture = drawings.save(image.stem, encoded, found, image.name)
    rounded = {name: round(ms, 3) for name, ms in times.items()}
    result = json.dumps({"image": image.name, **found.to_dict(), **rounded}, ensure_ascii=False)
    contents = {".json": f"{result}\n".encode(), ".txt": to_text(found).encode()}
    if find_spec("pikepdf"):
        contents[".pdf"] = found.to_searchable_pdf(encoded)
    for suffix, content in contents.items():
        file = picture.with_suffix(suffix)
        try:
            write_atomically(file, content)
        except OSError as error:
            raise InvalidInputError(f"cannot write the file {str(file)!r}: {error.strerror}") from error
    return [str(picture), *(picture.with_suffix(suffix).name for suffix in contents)]


def _check_equal(over_grpc: Reading, over_http: Reading) -> None:
    # All that was found but how long it took: boxes, scores, texts and words.
    first, second = (replace(found, latency_ms=None, request_id=None).to_dict() for found in (over_grpc, over_http))
    if first != second:
        raise _DisagreementError(
            f"gRPC and HTTP gave different answers ({len(over_grpc)} and {len(over_http)} boxes); "
            "both must be the same to the last digit, please report this"
        )


class _DisagreementError(OcdserveError):
    """The two protocols returned different readings of one image."""
