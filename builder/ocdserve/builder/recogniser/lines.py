# SPDX-License-Identifier: Apache-2.0
"""Lines of text cut out of labelled images, or of photographs by the default detector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import Detector
from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.formats import is_labelled, load_labels
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.rectify import LineImage, rectify
from ocdserve.builder.calibration.images import DataConfig
from ocdserve.builder.progress import Progress
from ocdserve.contract import InvalidInputError
from ocdserve.results.quads import order_corners, smallest_rectangle

# Enough for the extremes of a network's tensors; a receipt has fifty.
CALIBRATION_LINES = 200
# Width over height.
_USUAL = 320 / 48


@dataclass(frozen=True)
class Page:
    """Lines of one image.

    Attributes:
        lines: As they were cut out.
        texts: Transcription of each; None where it is not known.
    """

    lines: tuple[LineImage, ...]
    texts: tuple[str | None, ...]


def cut_pages(
    images: Mapping[Path, Truth | None],
    spec: RecogniserSpec,
    threads: int | None,
    progress: Progress,
    most: int | None = None,
) -> list[Page]:
    """Cut the lines out of images: where the labels say, else where the default detector finds any.

    Args:
        images: Image files and their labels.
        spec: The recogniser that reads them.
        threads: Cores for the detector; None is all.
        progress: Reports each image.
        most: Lines of each image, evenly chosen; None is all.

    Raises:
        InvalidInputError: An image cannot be decoded.
    """
    # In float32: the same lines on every processor.
    detector = cache(lambda: Detector.load("default-fp32", threads=threads))
    pages = []
    with progress.task("lines of the images", len(images)) as task:
        for path, truth in images.items():
            try:
                pixels = decode(path.read_bytes())
            except (InvalidInputError, OSError) as error:
                raise InvalidInputError(f"{path}: {error} Remove it from the images or fix it.") from error
            pages.append(_page(pixels, truth, spec, detector, most))
            task.advance()
    return pages


def labels_of(data: DataConfig, paths: Sequence[Path]) -> dict[Path, Truth | None]:
    """Images to calibrate with, and their labels where their folder has any."""
    known: dict[Path, Truth] = {}
    for folder in filter(None, (data.calibration_images, data.evaluation)):
        if is_labelled(folder):
            known |= {sample.image: sample.truth for sample in load_labels(folder)}
    return {path: known.get(path) for path in paths}


def typical_line(spec: RecogniserSpec) -> tuple[int, int]:
    """(height, width) in pixels of a line of usual length, for figures such as multiplications, and for engines."""
    return spec.height, spec.widths.fitted(round(_USUAL * spec.height))


def _page(
    pixels: NDArray[np.uint8],
    truth: Truth | None,
    spec: RecogniserSpec,
    detector: Callable[[], Detector],
    most: int | None,
) -> Page:
    if truth is None:
        quads = detector().detect(pixels).quads
        texts: Sequence[str | None] = [None] * len(quads)
    else:
        kept = [index for index, ignored in enumerate(truth.ignored) if not ignored]
        found = [_quad(truth.polygons[index]) for index in kept]
        quads = np.array(found, np.float32).reshape(-1, 4, 2)
        texts = [truth.texts[index] if truth.texts else None for index in kept]
    if most is not None and len(quads) > most:
        chosen = np.linspace(0, len(quads) - 1, most).round().astype(int)
        quads, texts = quads[chosen], [texts[index] for index in chosen]
    return Page(tuple(rectify(pixels, quads, spec.height, spec.widths.largest)), tuple(texts))


def _quad(polygon: NDArray[np.float64]) -> NDArray[np.float32]:
    """The corners of a label, or of the smallest rectangle around one of more corners, in the detector's order.

    Annotators begin at any corner and go either way round: their own order would turn or mirror the text.
    """
    return order_corners(polygon) if len(polygon) == 4 else smallest_rectangle(polygon)
