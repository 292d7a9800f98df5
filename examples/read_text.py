# SPDX-License-Identifier: Apache-2.0
"""Print the text in a picture: our detector, RapidOCR's recogniser. read_text.py IMAGE

For RapidOCR's own pipeline with our detector in it, `ocdserve.client.adapters.rapidocr` is shorter; this is what to do
for any other recogniser.
"""

import sys

import numpy as np
from rapidocr import RapidOCR

from ocdserve.backend import Detector

LOWEST_SCORE = 0.5


def main(image: str) -> None:
    found = Detector.load().detect(image).reading_order()
    # Rectified lines of text, 48 pixels high, RGB; RapidOCR takes BGR.
    crops = [np.ascontiguousarray(crop[..., ::-1]) for crop in found.crop(image, height=48)]
    recognise = RapidOCR(params={"Global.log_level": "error"})
    for crop, quad in zip(crops, found.quads, strict=True):
        result = recognise(crop, use_det=False, use_cls=False, use_rec=True)
        if result.txts and result.scores[0] >= LOWEST_SCORE:
            x, y = quad[0].round().astype(int)
            print(f"{x:5} {y:5}  {result.txts[0]}")


if __name__ == "__main__":
    main(sys.argv[1])
