# SPDX-License-Identifier: Apache-2.0
"""A program that cuts out lines and chooses their classes by a library compiled with sanitizers, which abort it; prints
how many lines."""

import sys
from pathlib import Path

import numpy as np

from ocdserve.backend.kernels.cpu.library import Library
from ocdserve.backend.stages.rectify import LinePlan


def main() -> None:
    library = Library(Path(sys.argv[1]))
    rng = np.random.default_rng()
    lines = 0
    for _ in range(600):
        size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
        height = int(rng.integers(1, 9))
        # From quads inside of the image to those that reach far beyond all numbers of pixels.
        quads = rng.normal(0, 1, (20, 4, 2)) * 10.0 ** rng.integers(-6, 38, (20, 1, 1))
        quads[::2] = rng.uniform(-5, 65, (10, 4, 2))
        quads[::5] = np.round(quads[::5])
        plan = LinePlan.of(quads.astype(np.float32), height, size)
        # A copy of its own size, so that a byte behind it is not the image's.
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        plan.lines["pixels"], plan.lines["pitch"] = pixels.ctypes.data, pixels.strides[0]
        for index in range(len(quads)):
            library.rectify(plan.lines[index : index + 1], np.empty((height, plan.lines["width"][index], 3), np.uint8))
            lines += 1
        scores = rng.dirichlet(np.full(int(rng.integers(2, 600)), 0.05), int(rng.integers(1, 9))).astype(np.float32)
        library.best_steps(scores, 0, (scores.shape[1] - 1, 0.1))
    sys.stdout.write(f"{lines}\n")


if __name__ == "__main__":
    main()
