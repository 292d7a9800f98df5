# SPDX-License-Identifier: Apache-2.0
"""A program that calls a library compiled with sanitizers, which abort it on an error; prints the number of boxes."""

import sys
from pathlib import Path

import numpy as np

from ocdserve.backend.kernels.cpu.library import Library
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.perf.inputs import shapes


def main() -> None:
    library = Library(Path(sys.argv[1]))
    rng = np.random.default_rng()
    boxes = 0
    drawn = [draw() for draw in shapes.SHAPES]
    for index in range(2000):
        height, width = (int(side) for side in rng.integers(1, 200, 2))
        kind = rng.integers(3)
        if index < len(drawn):
            probability = drawn[index]
        elif kind == 0:
            probability = rng.integers(0, 256, (height, width), np.uint8)
        else:
            probability = shapes.noise(rng, height, width)
        height, width = probability.shape
        # A copy of its own size, so that a byte behind it is not the map's.
        probability = probability.copy()
        params = PostprocessParams(
            thresh=float(rng.uniform(0, 1)),
            box_thresh=float(rng.choice([0, 0.5])),
            unclip_ratio=float(rng.choice([0, 1.5, 10])),
            max_candidates=int(rng.choice([1, 10, 100_000])),
            min_size=float(rng.choice([0, 3])),
            dilation=bool(rng.integers(2)),
            unclip=rng.choice(["exact", "analytic"]),
        )
        rows = library.rows(probability, Frame((height, 2 * width), (height, width), (height, width)), params)
        assert rows is not None
        boxes += len(rows)
    sys.stdout.write(f"{boxes}\n")


if __name__ == "__main__":
    main()
