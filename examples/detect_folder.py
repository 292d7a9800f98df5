# SPDX-License-Identifier: Apache-2.0
"""Detect text in all images of a folder and write one JSON object per image: detect_folder.py FOLDER OUTPUT."""

import json
import sys
from pathlib import Path

from ocdserve.backend import Detector
from ocdserve.contract import OcdserveError, is_image


def main(folder: Path, output: Path) -> None:
    detector = Detector.load()
    with output.open("w", encoding="utf-8") as lines:
        for file in sorted(filter(is_image, folder.rglob("*"))):
            record = {"image": str(file)}
            try:
                record |= detector.detect(file).to_dict()
            except OcdserveError as error:  # a damaged image does not stop the others
                record["error"] = str(error)
            lines.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
