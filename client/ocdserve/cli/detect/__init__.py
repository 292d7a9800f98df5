# SPDX-License-Identifier: Apache-2.0
"""Detect text in images: in this process, or through a running server with --url.

Prints a table with one row per image. --output writes the results to a file or folder in a format of its suffix or of
--format; --format alone prints them instead of the table. The format json is JSON Lines, one object per image:
  {"image": NAME, "width": W, "height": H, "ms": T, "detections": [{"quad": [[x, y] x 4], "score": S}, ...]}
and {"image": NAME, "error": MESSAGE} for an image that failed; the others are processed, and the exit code is 1. Of
PDF and TIFF files of several pages, and of animations, each page is an image, with "page": NUMBER.
"""

import argparse

from ocdserve.cli.detect.command import add_image_arguments, run_images
from ocdserve.cli.detect.detector import (
    add_detector_arguments,
    add_parameter_arguments,
    check_detector_choice,
    chosen_detector,
    given_parameters,
)
from ocdserve.cli.formats import DETECTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image file, folder of images, pattern such as 'scans/**/*.jpg', http(s) URL, or -",
    )
    add_detector_arguments(parser)
    add_image_arguments(parser, DETECTIONS)
    add_parameter_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Detect in every image; returns 1 if one failed."""
    check_detector_choice(args)
    return run_images(args, DETECTIONS, given_parameters(args), chosen_detector)
