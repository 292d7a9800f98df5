# SPDX-License-Identifier: Apache-2.0
"""Read the text in images and PDF files: in this process, or through a running server with --url.

Prints the text; of several inputs, each below a line with its name. --output writes it to a file or, with a path that
has no suffix, to a folder with a file per input, in a format of the suffix or of --format. The formats are documents
with all pages of an input, but for json: JSON Lines, one object per image or page, those of `ocdserve detect` with
"text", "text_score" and, with --words, "words" in each detection. An input that fails is reported, the others are
processed, and the exit code is 1.
"""

import argparse

from ocdserve.cli.detect.command import add_image_arguments, run_images
from ocdserve.cli.detect.detector import (
    add_detector_arguments,
    add_parameter_arguments,
    check_detector_choice,
    chosen_reader,
    given_parameters,
)
from ocdserve.cli.formats.documents import READINGS
from ocdserve.cli.tuning import add_recogniser_argument
from ocdserve.contract import OCR, OCR_FUSED, READING_PARAMETERS, ReadingParameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="+",
        help="image or PDF file, folder of them, pattern such as 'scans/**/*.jpg', http(s) URL, or -",
    )
    add_detector_arguments(parser, (OCR, OCR_FUSED))
    add_recogniser_argument(parser, "recogniser to load")
    add_image_arguments(parser, READINGS)
    parser.add_argument(
        "--columns", action="store_true", help="text: read columns one after the other; else rows cross the whole page"
    )
    add_parameter_arguments(parser, READING_PARAMETERS)


def run(args: argparse.Namespace) -> int:
    """Read every image; returns 1 if one failed."""
    check_detector_choice(args)
    return run_images(args, READINGS, given_parameters(args, ReadingParameters), chosen_reader)
