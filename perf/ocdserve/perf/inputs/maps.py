# SPDX-License-Identifier: Apache-2.0
"""Probability maps to post-process: drawn ones, the same in every run, and the network's maps of photographs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdserve.backend import PRESETS, Bundle, Detector, PostprocessParams
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs import shapes
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.series.samples import Progress

Map = NDArray[Any]

PARAMS = PRESETS["ppocr"].postprocess

# Height and width of the network's input for a photograph of 720 x 1280.
_PHOTOGRAPH = (736, 1280)
_SEED = 4

# For each shape: low thresholds; dilation and polygons; no lower limit; only the best few.
_PARAMETERS = (
    PostprocessParams(box_thresh=0.2),
    PostprocessParams(box_thresh=0.2, dilation=True, polygons=True),
    PostprocessParams(thresh=0.5, box_thresh=0.0, min_size=0.0, unclip_ratio=0.7),
    PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=3),
)


@dataclass(frozen=True, eq=False)
class Case:
    """A probability map to post-process.

    Attributes:
        name: What it is; includes the seed of a generated one.
        probability: (h, w), uint8 as 255 times the probability, or float32 from 0 to 1.
        frame: Where the source image lies in the map.
        params: How to post-process it.
        group: What it is summed up with, such as a data set.
    """

    name: str
    probability: Map
    frame: Frame
    params: PostprocessParams = PARAMS
    group: str = ""


def dense_map(columns: int = 20, rows: int = 50, seed: int = 1) -> Case:
    """The map of a page full of words: columns x rows slightly rotated regions, none touching another."""
    random = np.random.default_rng(seed)
    cell_width, cell_height = 64, 26
    probability = np.zeros((rows * cell_height, columns * cell_width), np.float32)
    for row, column in np.ndindex(rows, columns):
        centre = ((column + 0.5) * cell_width, (row + 0.5) * cell_height)
        sides = (random.uniform(18, 48), random.uniform(8, 13))
        corners = cv2.boxPoints((centre, sides, random.uniform(-6, 6)))
        cv2.fillConvexPoly(probability, corners.astype(np.int32), (random.uniform(0.8, 1.0),))
    return _levels(f"dense, {columns * rows} words", cv2.GaussianBlur(probability, (3, 3), 0))


def empty_map(size: tuple[int, int] = _PHOTOGRAPH) -> Case:
    """The map of an image without text: below every threshold."""
    return _levels("empty", np.zeros(size, np.float32))


def noise_map(size: tuple[int, int] = _PHOTOGRAPH, seed: int = 1) -> Case:
    """The worst case: thousands of ragged specks above the threshold, hardly any of them a box."""
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    softened = cv2.GaussianBlur(noise, (0, 0), 1.2)
    # A tenth of the pixels is above 0.3, the usual threshold.
    softened = softened / np.quantile(softened, 0.9) * 0.3
    return _levels("noise", softened.clip(0, 1))


def page(kind: str, size: tuple[int, int], seed: int = 0) -> Map:
    """A page of words, uint8 (h, w).

    Args:
        kind: `sparse`, with some dozens of words in 736 x 1280 pixels, or `dense`, with about a thousand.
        size: Height and width, pixels.
        seed: Of the words.

    Raises:
        InvalidInputError: The kind is unknown.
    """
    pitches = {"sparse": 96, "dense": 18}
    if kind not in pitches:
        raise InvalidInputError(f"a page is one of {', '.join(pitches)}; got {kind!r}")
    return shapes.words(np.random.default_rng((_SEED, seed)), *size, pitch=pitches[kind])


def many_components(height: int, width: int, side: int = 3, gap: int = 3) -> Map:
    """Squares close together, uint8: 736 x 1280 pixels hold 26,000 of them."""
    rows, columns = (np.arange(length) % (side + gap) < side for length in (height, width))
    return np.outer(rows, columns).astype(np.uint8) * np.uint8(shapes.TEXT)


def generated(count: int, largest: tuple[int, int] = _PHOTOGRAPH) -> Iterator[Case]:
    """About `count` cases: each shape with each set of parameters, then pages, then noise of random sizes.

    Args:
        count: How many; shapes and pages are always complete.
        largest: Height and width of the pages, pixels.
    """
    fixed = [
        *(
            _case(f"shape {draw.__name__}, parameters {index}", draw(), (2.0, 3.0), params)
            for draw in shapes.SHAPES
            for index, params in enumerate(_PARAMETERS)
        ),
        *_pages(largest),
    ]
    yield from fixed
    yield from map(_noise, range(count - len(fixed)))


def network_maps(detector: Detector, images: Iterable[tuple[str, bytes]], group: str = "") -> Iterator[Case]:
    """The network's maps, a case per tile and overview, to be post-processed with the detector's parameters.

    Args:
        detector: Preprocesses the images and runs the network.
        images: Names and encoded images.
        group: That the cases belong to.
    """
    for name, encoded in images:
        pixels, frame = detector.preprocess(encoded)
        (probability,) = detector.infer([pixels], [frame])
        for each, part in zip(frame.cut(probability), frame.parts, strict=True):
            yield Case(name, np.ascontiguousarray(each), part, detector.spec.postprocess, group)


def real_maps(detector: Detector, data_sets: Sequence[DataSet], progress: Progress) -> Iterator[Case]:
    """The network's maps of all images of the data sets, grouped by data set."""
    images = [(data.name, image) for data in data_sets for image in data.images]
    for done, (group, image) in enumerate(images, 1):
        yield from network_maps(detector, [(image.name, image.encoded)], group)
        progress(done, len(images))


def compute_maps(images: Iterable[tuple[str, bytes]], policy: ResizePolicy | None = None) -> Iterator[Case]:
    """The default network's maps, to be post-processed with `PARAMS`.

    Args:
        images: Names and encoded images.
        policy: How images are resized; None: as in serving.

    Raises:
        UnavailableError: The network or its runtime is not installed.
    """
    bundle = Bundle.load()
    spec = replace(bundle.spec, resize=policy or bundle.spec.resize, postprocess=PARAMS)
    bundle = Bundle(spec, bundle.model_path)
    yield from network_maps(Detector(bundle, load_network(bundle, RuntimeOptions())), images)


def fixed_policy(size: tuple[int, int]) -> ResizePolicy:
    """Stretch every image to one height and width."""
    return ResizePolicy("fixed", height=size[0], width=size[1])


def _levels(name: str, probability: Map) -> Case:
    """A case of its own group; probabilities become whole levels from 0 to 255."""
    return replace(_case(name, np.round(probability * 255).astype(np.uint8), (1.0, 1.0), PARAMS), group=name)


def _case(name: str, probability: Map, scale: tuple[float, float], params: PostprocessParams) -> Case:
    """A case whose source is `scale` (y, x) times as large as its map."""
    height, width = probability.shape
    source = max(1, int(height * scale[0])), max(1, int(width * scale[1]))
    return Case(name, probability, Frame(source, (height, width), (height, width)), params)


def _pages(size: tuple[int, int]) -> Iterator[Case]:
    params, dilated = PostprocessParams(box_thresh=0.5), PostprocessParams(box_thresh=0.5, dilation=True)
    for kind in ("sparse", "dense"):
        for seed in range(3):
            yield _case(f"{kind} page, seed {seed}", page(kind, size, seed), (1.5, 1.5), params if seed else dilated)
    everything = PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=20_000)
    yield _case("10,000 components", many_components(*size, side=4, gap=5), (1.0, 1.0), everything)
    yield _case("26,000 components: more than the tables hold", many_components(*size), (1.0, 1.0), everything)
    levels = page("dense", size, 3)
    yield _case("dense page, float32", (levels / 255).astype(np.float32), (1.5, 1.5), params)


def _noise(seed: int) -> Case:
    rng = np.random.default_rng((_SEED, seed))
    height, width = (int(side) for side in rng.integers(1, 300, 2))
    probability: Map = shapes.noise(rng, height, width)
    if seed // 8 % 2:
        probability = (probability / 255).astype(np.float32)
    params = PostprocessParams(
        thresh=float(rng.uniform(0.2, 0.7)),
        box_thresh=float(rng.choice([0.0, 0.3, 0.5])),
        unclip_ratio=float(rng.uniform(0.5, 2.5)),
        min_size=float(rng.choice([0.0, 1.0, 3.0])),
        dilation=bool(rng.integers(2)),
        polygons=bool(rng.integers(4) == 0),
        max_candidates=int(rng.choice([3, 1000])),
    )
    scale = float(rng.uniform(0.3, 4)), float(rng.uniform(0.3, 4))
    return _case(f"noise, seed {seed}", probability, scale, params)
