# SPDX-License-Identifier: Apache-2.0
"""Build an INT8 bundle from an ONNX file: build_int8.py ONNX PHOTOGRAPHS OUTPUT

PHOTOGRAPHS holds images, preferably in img/ with ground truth in gt/: some of them calibrate, the others judge.
"""

import sys
from pathlib import Path

from ocdserve.backend import Detector
from ocdserve.builder import BuildConfig, DataConfig, GateError, TerminalProgress, build


def main(onnx: Path, photographs: Path, output: Path) -> None:
    config = BuildConfig(
        onnx,
        output,
        precision="int8",
        runtime="onnxruntime",
        data=DataConfig(evaluation=photographs, calibration_count=20),
    )
    try:
        build(config, TerminalProgress(sys.stderr))
    except GateError as error:  # nothing was written
        sys.exit(f"INT8 loses too much accuracy on these photographs: {error}")
    image = next(file for file in photographs.rglob("*") if file.suffix in (".jpg", ".png"))
    print(f"{output}: {len(Detector.load(output).detect(image))} texts in {image}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
