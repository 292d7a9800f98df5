# SPDX-License-Identifier: Apache-2.0
"""Detection with and without `resize.reduce_jpeg` on enlarged pictures: CPU time, share of decoding, and hmean.

    python -m ocdserve.perf.studies.reduced_jpeg --data DIR [--bundle NAME] [--times 3] [--of network|picture]

The labelled pictures of a folder are enlarged, by cubic interpolation, to so many times their size or that of the
network's content, get noise as of a camera, and are JPEG of quality 90. Both ways take turns in one thread.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from ocdserve.backend import Bundle, Detector
from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.formats import load_labels
from ocdserve.backend.evaluation.matching import match
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.stages.image import decode, decode_for
from ocdserve.perf.series.samples import cpu_timed, in_turns


def enlarged(picture: Path, times: float, of: Detector | None, noise: float) -> tuple[bytes, float]:
    """A JPEG file so many times as large as the picture, or as its content in a detector; and its enlargement."""
    pixels = cv2.imread(str(picture))
    height, width = pixels.shape[:2]
    if of is not None:
        content = of.spec.resize.sizes(height, width)[1]
        times *= max(content[0] / height, content[1] / width)
    large = cv2.resize(pixels, (round(width * times), round(height * times)), interpolation=cv2.INTER_CUBIC)
    if noise:
        large = np.clip(large + np.random.default_rng(0).normal(0, noise, large.shape), 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes(), times


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print, one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled pictures")
    parser.add_argument("--bundle", metavar="DIR", help="a bundle, or the name of a built-in one")
    parser.add_argument("--times", type=float, default=3, metavar="X", help="how many times as large")
    parser.add_argument("--of", choices=("picture", "network"), default="picture", help="as what")
    parser.add_argument("--noise", type=float, default=0, metavar="LEVELS", help="its standard deviation")
    parser.add_argument("--count", type=int, metavar="N", help="of pictures (default: all)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of each picture (default: 1)")
    args = parser.parse_args(words)
    cv2.setNumThreads(1)
    bundle = Bundle.load(args.bundle)
    network = load_network(bundle, RuntimeOptions(threads=1))
    whole, reduced = (
        Detector(
            replace(bundle, spec=replace(bundle.spec, resize=replace(bundle.spec.resize, reduce_jpeg=value))), network
        )
        for value in (False, True)
    )
    counts: dict[bool, list[Counts]] = {False: [], True: []}
    ratios: list[float] = []
    shares: list[float] = []
    smaller = 0
    for sample in load_labels(args.data)[: args.count]:
        data, times = enlarged(sample.image, args.times, whole if args.of == "network" else None, args.noise)
        for is_reduced, detector in ((False, whole), (True, reduced)):
            # The first detection of a size compiles it.
            counts[is_reduced].append(match(detector.detect(data).quads / times, sample.truth))
        pixels, size = decode_for(reduced.spec.resize, data)
        smaller += pixels.shape[:2] != size
        calls: dict[str, Callable[[], object]] = {
            "whole": partial(whole.detect, data),
            "reduced": partial(reduced.detect, data),
            "decoding": partial(decode, data),
        }
        timed = {name: cpu_timed(call) for name, call in calls.items()}
        for _ in range(args.rounds):
            took = {name: cpu_ms for name, _, cpu_ms in in_turns(timed, len(ratios))}
            ratios.append(took["reduced"] / took["whole"])
            shares.append(took["decoding"] / took["whole"])
    lines = (
        f"{len(ratios) // args.rounds} pictures, of which {smaller} were reduced",
        f"decoding, of the CPU time without: median {median(shares):.3f}",
        f"CPU time with / without: median {median(ratios):.3f}",
        f"hmean without {total(counts[False]).hmean:.4f}, with {total(counts[True]).hmean:.4f}",
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
