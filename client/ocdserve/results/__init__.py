# SPDX-License-Identifier: Apache-2.0
"""`Detections` and what is made of them: pure functions over quads and scores, which its methods call.

Also what `TextDetector` and the detectors in process share: kinds of images, tiles, bounded concurrency.
NumPy only; decoding, drawing and cropping need Pillow (`pip install 'ocdserve[images]'`).
"""

from ocdserve.results.crops import Crops, crop
from ocdserve.results.exchange import (
    coco_dataset,
    from_dict,
    from_json,
    to_coco,
    to_icdar,
    to_json,
    to_labelme,
    to_rows,
)
from ocdserve.results.order import lines, merged_quads, paragraphs, reading_order
from ocdserve.results.pictures import Image, draw, picture_of, pixels_of
from ocdserve.results.quads import quad_areas, quad_sizes
from ocdserve.results.second_look import second_look

__all__ = [
    "Crops",
    "Image",
    "coco_dataset",
    "crop",
    "draw",
    "from_dict",
    "from_json",
    "lines",
    "merged_quads",
    "paragraphs",
    "picture_of",
    "pixels_of",
    "quad_areas",
    "quad_sizes",
    "reading_order",
    "second_look",
    "to_coco",
    "to_icdar",
    "to_json",
    "to_labelme",
    "to_rows",
]
