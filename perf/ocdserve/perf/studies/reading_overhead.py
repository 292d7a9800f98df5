# SPDX-License-Identifier: Apache-2.0
"""What reading costs beyond its network: CPU time over that of the bare recogniser in OpenVINO, on one thread.

    python -m ocdserve.perf.studies.reading_overhead --data DIR [--images 8] [--turns 9] [--recogniser NAME]

The boxes are given. The bare network is the recogniser's ONNX file, compiled with the same settings; it is given ready
float32 tensors of the same padded lines, and nobody looks at its output: once in the order of the boxes,
as a loop over them would do, once with lines of one width after each other, as ours reads them. The rows between are
parts of reading; what has the processor's caches to itself takes less time there than within it.

Subjects alternate page by page. The ratio of a turn is that of the CPU times of all its pages; the table has the median
over the turns and its 95 % interval.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Reader
from ocdserve.backend.evaluation.formats import load_labels
from ocdserve.backend.network.openvino import compiler
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.network.rewrite.fold_recogniser import folded_recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.stages import ctc
from ocdserve.backend.stages.image import decode
from ocdserve.contract import ReadingParameters
from ocdserve.perf.series.estimates import ratio
from ocdserve.perf.series.measurement import Measurement, case_of
from ocdserve.perf.series.samples import cpu_timed, in_turns
from ocdserve.perf.series.threads import opencv_threads

BARE, BY_WIDTH = "bare network", "bare network, by width"
PIXELS, CLASSES = "network of pixels, by width", "network and classes, by width"
CUT, DECODED = "rectification", "decoding"
WITHOUT_DIRECTIONS, READING = "reading without directions", "reading"


@dataclass(frozen=True, eq=False)
class Page:
    """The work on one picture, by subject."""

    lines: int
    work: Mapping[str, Callable[[], object]]


def pages_of(reader: Reader, bundle: RecogniserBundle, pictures: Sequence[NDArray[np.uint8]]) -> list[Page]:
    """The work on pictures, once their text is detected.

    Args:
        reader: On one thread, in OpenVINO.
        bundle: Its recogniser's.
        pictures: uint8 (H, W, 3) RGB.
    """
    spec, recogniser = bundle.spec, reader.recogniser
    options = RuntimeOptions("openvino", threads=1)
    bare, folded = (
        compiler(bundle, content, shape, options)().create_infer_request()
        for content, shape in (
            (bundle.model_path.read_bytes(), [1, 3, spec.height, -1]),
            (folded_recogniser(bundle.model_path, spec.network), [1, spec.height, -1, 3]),
        )
    )
    network = load_recogniser(bundle, options)

    def page_of(pixels: NDArray[np.uint8]) -> Page:
        found = reader.detector.detect(pixels)
        lines = [recogniser.fitted(line.pixels) for line in recogniser.cut(pixels, found)]
        by_width = sorted(lines, key=lambda line: -line.shape[1])
        steps = network.infer(by_width)
        ready, sorted_ready = ([_normalised(line, bundle) for line in some] for some in (lines, by_width))
        upright, any_way = (ReadingParameters(direction=direction) for direction in (False, True))
        return Page(
            len(lines),
            {
                BARE: lambda: _all_through(bare, ready),
                BY_WIDTH: lambda: _all_through(bare, sorted_ready),
                PIXELS: lambda: _all_through(folded, [line[None] for line in by_width]),
                CLASSES: lambda: network.infer(by_width),
                CUT: lambda: recogniser.cut(pixels, found),
                DECODED: lambda: [ctc.greedy(*each, spec.characters, spec.network.blank) for each in steps],
                WITHOUT_DIRECTIONS: lambda: recogniser.recognise(pixels, found, upright),
                READING: lambda: recogniser.recognise(pixels, found, any_way),
            },
        )

    return [page_of(pixels) for pixels in pictures]


def measured(pages: Sequence[Page], turns: int) -> dict[str, Measurement]:
    """Milliseconds of CPU time of all pages by turn, of each subject; after a turn that does not count."""
    spent: dict[str, list[float]] = {name: [0.0] * (turns + 1) for name in pages[0].work}
    for turn in range(turns + 1):
        for index, page in enumerate(pages):
            timed = {name: cpu_timed(work) for name, work in page.work.items()}
            for name, _, cpu_ms in in_turns(timed, turn + index):
                spent[name][turn] += cpu_ms
    cases = tuple(case_of("pages", turn) for turn in range(turns))
    return {
        name: Measurement("reading", name, "pages", "ms", tuple(times[1:]), cases=cases)
        for name, times in spent.items()
    }


def table(pages: Sequence[Page], series: Mapping[str, Measurement]) -> list[str]:
    """A row per subject."""
    lines = sum(page.lines for page in pages)
    rows = [
        f"{lines} lines of {len(pages)} pages, {len(series[BARE].samples)} turns.",
        "",
        f"| what | ms a line | over the {BARE} | 95 % interval | over the {BY_WIDTH} | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in series.items():
        cells = []
        for base in (BARE, BY_WIDTH):
            found = ratio(one, series[base])
            ends = "" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"
            cells += [f"{found.value:.3f}", ends]
        rows.append(f"| {name} | {np.median(one.samples) / lines:.3f} | {' | '.join(cells)} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a labelled folder, whose labels are not used")
    parser.add_argument("--images", type=int, default=8, help="the first so many of them")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--recogniser", help="a bundle or a built-in one (default: the default one)")
    options = parser.parse_args(arguments)
    reader = Reader.load(recogniser=options.recogniser, runtime="openvino", threads=1)
    samples = sorted(load_labels(options.data), key=lambda sample: sample.image)[: options.images]
    with opencv_threads(1):
        pictures = [decode(sample.image.read_bytes()) for sample in samples]
        pages = pages_of(reader, RecogniserBundle.load(options.recogniser), pictures)
        sys.stdout.write("\n".join(table(pages, measured(pages, options.turns))) + "\n")
    return 0


def _all_through(request: Any, inputs: Sequence[NDArray[Any]]) -> None:
    for each in inputs:
        request.infer({0: each}, share_inputs=True, share_outputs=True)


def _normalised(line: NDArray[np.uint8], bundle: RecogniserBundle) -> NDArray[np.float32]:
    """What the bare network takes, (1, 3, height, width)."""
    network = bundle.spec.network
    ordered = line[..., ::-1] if network.color == "BGR" else line
    values = (ordered - np.array(network.mean, np.float32)) / np.array(network.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)


if __name__ == "__main__":
    raise SystemExit(main())
