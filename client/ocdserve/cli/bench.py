# SPDX-License-Identifier: Apache-2.0
"""Measure speed, side by side with other ways to do the same.

sections (default: the first three, in this order):
  pipeline     this detector against RapidOCR over the same network: encoded image to boxes, one thread each
  postprocess  its post-processing against a plain loop over contours: a page of 1,000 words, and real maps
  serving      a server started for it against the detector in this process, and throughput with many clients
  analyzer     NVIDIA's perf_analyzer (fetched the first time) against a server that runs: give it with --url

All that is compared is measured in turns, so a busy machine changes the times more than the ratios.
"""

import argparse
import io
import json
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ocdserve.cli import UsageError
from ocdserve.contract import ENSEMBLE, InvalidInputError

if TYPE_CHECKING:
    from ocdserve.perf.data_sets import DataSet
    from ocdserve.perf.pipeline import PipelineResult
    from ocdserve.perf.postprocess import PostprocessResult
    from ocdserve.perf.serving import ServingResult

__all__ = ["SECTIONS", "Progress", "add_arguments", "run", "sections_of"]

SECTIONS = ("pipeline", "postprocess", "serving")
_ANALYZER = "analyzer"
_ANALYZER_OPTIONS = ("url", "image", "model", "concurrency", "args")
_PHOTOGRAPH = (1280, 720)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure, see above")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        nargs="+",
        action="extend",
        help="data sets (img/ and gt/), or folders of data sets (default: pictures that are drawn for it)",
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=1, help="measure N times as much (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write raw times there; - for stdout, instead of the tables")
    analyzer = parser.add_argument_group("only for the section analyzer")
    analyzer.add_argument("--url", help="the server: grpc://HOST:PORT or http://HOST:PORT")
    analyzer.add_argument("--image", metavar="FILE", type=Path, nargs="+", help="images to send (default: drawn ones)")
    analyzer.add_argument("--model", metavar="NAME", help=f"served model (default: {ENSEMBLE})")
    analyzer.add_argument("--concurrency", metavar="START[:END[:STEP]]", help="clients (default: 1:4)")
    analyzer.add_argument("--args", nargs=argparse.REMAINDER, help="all that follows goes to perf_analyzer")


def run(args: argparse.Namespace) -> int:
    """Measure; 1 when two ways that must agree found different boxes."""
    sections = sections_of(args.sections)
    given = [name for name in _ANALYZER_OPTIONS if getattr(args, name) is not None]
    if sections == (_ANALYZER,):
        return _analyze(args)
    if given:
        raise UsageError(f"--{given[0]} goes only with the section {_ANALYZER}; name it, or leave the option out")
    if args.rounds < 1:
        raise UsageError(f"--rounds must be at least 1; got {args.rounds}")
    return _measure(sections, args)


def sections_of(names: Sequence[str]) -> tuple[str, ...]:
    """The sections to run, in their fixed order; all but the analyzer where none is named.

    Raises:
        UsageError: A name is unknown, or the analyzer is named among others.
    """
    unknown = [name for name in names if name not in (*SECTIONS, _ANALYZER)]
    if unknown:
        raise UsageError(f"unknown section {unknown[0]!r}; known are {', '.join((*SECTIONS, _ANALYZER))}")
    if _ANALYZER in names:
        if set(names) != {_ANALYZER}:
            raise UsageError(f"the section {_ANALYZER} measures another server than the others; run it by itself")
        return (_ANALYZER,)
    return tuple(name for name in SECTIONS if name in names or not names)


class Progress:
    """Tells on stderr how far one section is, and how long the rest will take."""

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, section: str) -> None:
        self._section = section
        self._start = perf_counter()
        self._told = self._start

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        now = perf_counter()
        line = f"{self._section}: {done}/{total}, {(now - self._start) / done * (total - done):.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line:<60}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif now - self._told > self._SECONDS_BETWEEN_LINES or done == total:
            self._told = now
            print(line, file=sys.stderr, flush=True)


def _measure(sections: Sequence[str], args: argparse.Namespace) -> int:
    from ocdserve.perf import report
    from ocdserve.perf.environment import Environment

    if args.json and args.json != "-" and not Path(args.json).absolute().parent.is_dir():
        raise InvalidInputError(f"--json {args.json}: its folder does not exist; make it, or name another file")
    environment = Environment.current()
    data_sets = _data_sets(args.data)
    results = _Results(
        pipeline=_pipeline(data_sets, args.rounds) if "pipeline" in sections else None,
        postprocess=_postprocess(data_sets, args.rounds) if "postprocess" in sections else None,
        serving=_serving(data_sets, args.rounds) if "serving" in sections else None,
    )
    if args.json:
        document = report.to_json(environment, results.pipeline, results.postprocess, results.serving)
        if args.json == "-":
            print(json.dumps(document))
            return 0
        Path(args.json).write_text(json.dumps(document) + "\n", "utf-8")
    print(report.environment_text(environment))
    if results.pipeline:
        print(f"\n{report.pipeline_text(results.pipeline)}")
    if results.postprocess:
        print(f"\n{report.postprocess_text(results.postprocess)}")
    if results.serving:
        print(f"\n{report.serving_text(results.serving)}")
    return 0


@dataclass(frozen=True)
class _Results:
    pipeline: "PipelineResult | None"
    postprocess: "PostprocessResult | None"
    serving: "ServingResult | None"


def _pipeline(data_sets: "Sequence[DataSet]", rounds: int) -> "PipelineResult":
    from ocdserve.perf.pipeline import measure_pipelines, one_thread_detectors

    return measure_pipelines(one_thread_detectors(), data_sets, rounds, Progress("pipeline"))


def _postprocess(data_sets: "Sequence[DataSet]", rounds: int) -> "PostprocessResult":
    from ocdserve.backend import Detector
    from ocdserve.perf.postprocess import dense_map, measure_postprocess, real_maps

    detector = Detector.load()
    maps = [dense_map(), *real_maps(detector, data_sets, Progress("postprocess, maps"))]
    return measure_postprocess(maps, detector.spec.postprocess, 10 * rounds, Progress("postprocess"))


def _serving(data_sets: "Sequence[DataSet]", rounds: int) -> "ServingResult":
    from ocdserve.backend import Detector
    from ocdserve.perf.data_sets import first_jpeg
    from ocdserve.perf.serving import ServingPlan, measure_serving

    photograph = first_jpeg(data_sets, *_PHOTOGRAPH)
    name, encoded = (photograph.name, photograph.encoded) if photograph else ("drawn street", _street_jpeg())
    with _server() as grpc_url:
        return measure_serving(
            grpc_url,
            Detector.load(),
            encoded,
            f"{name} {_PHOTOGRAPH[0]}x{_PHOTOGRAPH[1]}",
            ServingPlan(rounds=20 * rounds, passes=3 * rounds),
            Progress("serving"),
        )


@contextmanager
def _server() -> Iterator[str]:
    """The real server with the default detector on free ports; gives its gRPC URL."""
    from ocdserve.backend.repository import PublishOptions, publish
    from ocdserve.backend.serve import ServeOptions, private_directory, running_server

    # SIGTERM has to stop the server too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    workspace = private_directory()
    try:
        repository = publish(PublishOptions(repository=workspace / "repository"))
        options = ServeOptions(repository, http_port=0, grpc_port=0, metrics_port=0, workspace=workspace)
        _say("serving: starting Triton")
        with running_server(options, _say) as server:
            yield server.grpc_url
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _analyze(args: argparse.Namespace) -> int:
    from ocdserve.perf.perf_analyzer import AnalyzerRun, analyze, levels_of

    if args.data or args.json or args.rounds != 1:
        raise UsageError(f"--data, --json and --rounds do not go with the section {_ANALYZER}; see --args")
    if not args.url:
        raise UsageError(f"the section {_ANALYZER} needs a server that runs: --url grpc://HOST:PORT")
    run_ = AnalyzerRun(
        url=args.url,
        images=tuple(_read(path) for path in args.image) if args.image else (_street_jpeg(),),
        model=args.model or ENSEMBLE,
        levels=levels_of(args.concurrency or "1:4"),
        arguments=tuple(args.args or ()),
    )
    return 1 if analyze(run_, _say) else 0


def _data_sets(folders: list[Path] | None) -> "tuple[DataSet, ...]":
    from ocdserve.backend.evaluation import Truth
    from ocdserve.cli.pictures import demo_pictures
    from ocdserve.perf.data_sets import DataSet, LabelledImage, load_data_sets

    if folders:
        return load_data_sets(folders)
    pictures = (
        LabelledImage(
            picture.name,
            picture.png(),
            Truth(tuple(quad.astype(float) for quad in picture.quads), (False,) * len(picture.quads)),
        )
        for picture in demo_pictures()
    )
    return (DataSet("drawn pictures", tuple(pictures)),)


def _street_jpeg() -> bytes:
    """A drawn picture of 1280 x 720 pixels."""
    from ocdserve.cli.pictures import street

    buffer = io.BytesIO()
    street().image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read the image file {str(path)!r}: {error.strerror}") from error


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
