# SPDX-License-Identifier: Apache-2.0
"""Maps to hold post-processing on the GPU against the CPU's: generated, the same in every run, and real ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame
from ocdserve.contract import InvalidInputError
from ocdserve.perf.inputs import shapes

Map = NDArray[Any]

_SEED = 4
_LARGE = (736, 1280)

# With each shape: all that passes, dilation and outlines, no lower limit, few best.
_PARAMETERS = (
    PostprocessParams(box_thresh=0.2),
    PostprocessParams(box_thresh=0.2, dilation=True, polygons=True),
    PostprocessParams(thresh=0.5, box_thresh=0.0, min_size=0.0, unclip_ratio=0.7),
    PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=3),
)


@dataclass(frozen=True, eq=False)
class Case:
    """One map to post-process.

    Attributes:
        name: Tells how to make it again: what it is, and the number of its seed.
        probability: (h, w) uint8 or float32.
        frame: Where the source lies.
        params: How to post-process.
    """

    name: str
    probability: Map
    frame: Frame
    params: PostprocessParams


def generated(count: int, largest: tuple[int, int] = _LARGE) -> Iterator[Case]:
    """About `count` cases: all hard shapes with all parameters first, then pages, then noise of any size.

    Args:
        count: How many; the shapes are not cut short.
        largest: Height and width of the pages, pixels.
    """
    made = 0
    for draw in shapes.SHAPES:
        for index, params in enumerate(_PARAMETERS):
            yield _case(f"shape {draw.__name__}, parameters {index}", draw(), (2.0, 3.0), params)
            made += 1
    for case in _pages(largest):
        yield case
        made += 1
    for seed in range(max(0, count - made)):
        yield _noise(seed)


def many_components(height: int, width: int, side: int = 3, gap: int = 3) -> Map:
    """Squares close together: 736 x 1280 pixels hold 26,000 of them."""
    probability = np.zeros((height, width), np.uint8)
    pitch = side + gap
    rows, columns = np.arange(height) % pitch, np.arange(width) % pitch
    inside = (rows[:, None] < side) & (columns[None] < side)
    probability[inside] = shapes.TEXT
    return probability


def page(kind: str, size: tuple[int, int], seed: int = 0) -> Map:
    """A page of words: `sparse` has some dozens in 736 x 1280 pixels, `dense` about a thousand."""
    pitches = {"sparse": 96, "dense": 18}
    if kind not in pitches:
        raise InvalidInputError(f"a page is one of {', '.join(pitches)}; got {kind!r}")
    return shapes.words(np.random.default_rng((_SEED, seed)), *size, pitch=pitches[kind])


def in_batches(cases: Sequence[Case], most: int = 8) -> Iterator[list[Case]]:
    """Neighbours of one type of map, one to `most` at a time, their sizes mixed."""
    rng = np.random.default_rng(_SEED)
    for _, group in groupby(cases, lambda case: (case.probability.dtype, max(case.probability.shape) > 500)):
        waiting = list(group)
        while waiting:
            size = int(rng.integers(1, most + 1))
            yield waiting[:size]
            waiting = waiting[size:]


def container_of(cases: Sequence[Case]) -> Map:
    """All maps in one array, each in its top left corner; what lies around them is bright, and must not count."""
    height = max(case.probability.shape[0] for case in cases)
    width = max(case.probability.shape[1] for case in cases)
    dtype = cases[0].probability.dtype
    container = np.full((len(cases), height, width), 255 if dtype == np.uint8 else 1, dtype)
    for target, case in zip(container, cases, strict=True):
        rows, columns = case.probability.shape
        target[:rows, :columns] = case.probability
    return container


def save_maps(path: Path, cases: Sequence[Case]) -> None:
    """Keep maps in a file; parameters are not kept."""
    frames = np.array([(case.frame.source, case.frame.network, case.frame.content) for case in cases], np.int64)
    maps = {f"map{index}": case.probability for index, case in enumerate(cases)}
    np.savez_compressed(path, names=np.array([case.name for case in cases]), frames=frames, **maps)


def load_maps(path: Path, params: PostprocessParams) -> list[Case]:
    """Maps from `save_maps`.

    Raises:
        InvalidInputError: The file holds something else.
    """
    with np.load(path, allow_pickle=False) as file:
        if "names" not in file or "frames" not in file:
            raise InvalidInputError(f"{path} holds no maps; perf/gpu_check/collect.sh makes such a file")
        frames = [Frame(*(tuple(map(int, size)) for size in sizes)) for sizes in file["frames"]]  # type: ignore[arg-type]
        names = file["names"].tolist()
        return [
            Case(name, file[f"map{index}"], frame, params)
            for index, (name, frame) in enumerate(zip(names, frames, strict=True))
        ]


def _case(name: str, probability: Map, scale: tuple[float, float], params: PostprocessParams) -> Case:
    """A case whose source is `scale` (y, x) times as large as its map."""
    height, width = probability.shape
    source = max(1, int(height * scale[0])), max(1, int(width * scale[1]))
    return Case(name, probability, Frame(source, (height, width), (height, width)), params)


def _pages(size: tuple[int, int]) -> Iterator[Case]:
    plain, dilated = PostprocessParams(box_thresh=0.5), PostprocessParams(box_thresh=0.5, dilation=True)
    for kind in ("sparse", "dense"):
        for seed in range(3):
            yield _case(f"{kind} page, seed {seed}", page(kind, size, seed), (1.5, 1.5), plain if seed else dilated)
    everything = PostprocessParams(box_thresh=0.0, min_size=0.0, max_candidates=20_000)
    yield _case("10,000 components", many_components(*size, side=4, gap=5), (1.0, 1.0), everything)
    yield _case("26,000 components: more than the tables hold", many_components(*size), (1.0, 1.0), everything)
    levels = page("dense", size, 3)
    yield _case("dense page, float32", (levels / 255).astype(np.float32), (1.5, 1.5), plain)


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
