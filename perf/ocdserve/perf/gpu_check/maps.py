# SPDX-License-Identifier: Apache-2.0
"""Maps and photographs for comparing the GPU with the CPU: generated ones, equal in every run, and real ones."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import PRESETS, Bundle, Detector
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext, Files
from ocdserve.perf.inputs import shapes

Map = NDArray[Any]

# Files of prebuilt maps: of photographs resized as they are served, and to one size.
SERVED_MAPS = "maps.npz"
FIXED_MAPS = "maps-of-one-size.npz"
PARAMS = PRESETS["ppocr"].postprocess

_SEED = 4
_LARGE = (736, 1280)
_SUFFIXES = (".jpg", ".jpeg")
_FEW = 8

# Parameters for each shape: low thresholds; dilation and outlines; no minimum size; few candidates.
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
        name: Identifies it, with the seed of a generated one.
        probability: (h, w) uint8 or float32.
        frame: Where the source image lies in the map.
        params: Parameters of the post-processing.
    """

    name: str
    probability: Map
    frame: Frame
    params: PostprocessParams


def generated(count: int, largest: tuple[int, int] = _LARGE) -> Iterator[Case]:
    """About `count` cases: all hard shapes with all parameters first, then pages, then noise of random sizes.

    Args:
        count: How many; shapes and pages are always complete.
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
    """Batches of 1 to `most` consecutive maps of one dtype and of mixed sizes."""
    rng = np.random.default_rng(_SEED)
    for _, group in groupby(cases, lambda case: (case.probability.dtype, max(case.probability.shape) > 500)):
        waiting = list(group)
        while waiting:
            size = int(rng.integers(1, most + 1))
            yield waiting[:size]
            waiting = waiting[size:]


def container_of(cases: Sequence[Case]) -> Map:
    """(n, h, w) array with each map in its top left corner; the padding is bright, and must have no effect."""
    height = max(case.probability.shape[0] for case in cases)
    width = max(case.probability.shape[1] for case in cases)
    dtype = cases[0].probability.dtype
    container = np.full((len(cases), height, width), 255 if dtype == np.uint8 else 1, dtype)
    for target, case in zip(container, cases, strict=True):
        rows, columns = case.probability.shape
        target[:rows, :columns] = case.probability
    return container


def save_maps(path: Path, cases: Sequence[Case]) -> None:
    """Save maps without their parameters."""
    frames = np.array([(case.frame.source, case.frame.network, case.frame.content) for case in cases], np.int64)
    maps = {f"map{index}": case.probability for index, case in enumerate(cases)}
    np.savez_compressed(path, names=np.array([case.name for case in cases]), frames=frames, **maps)


def load_maps(path: Path, params: PostprocessParams) -> list[Case]:
    """Load the maps of `save_maps`.

    Raises:
        InvalidInputError: The file has another content.
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


def photographs(files: Files) -> list[tuple[str, bytes]]:
    """Names and contents of the JPEG files of `data`, alternating between data sets."""
    if files.data is None:
        return []
    folders = [files.data / "img"] if (files.data / "img").is_dir() else sorted(files.data.glob("*/img"))
    found = [sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES) for folder in folders]
    longest = max((len(paths) for paths in found), default=0)
    in_turns = (paths[index] for index in range(longest) for paths in found if index < len(paths))
    return [(path.name, path.read_bytes()) for path in in_turns]


def drawn_photograph(size: tuple[int, int] = (720, 1280)) -> bytes:
    """A JPEG of a drawn page, in place of photographs."""
    levels = 255 - page("sparse", size)
    noise = np.random.default_rng(0).integers(0, 12, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[..., None] // 2 + noise + 60).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def fixed_policy(size: tuple[int, int]) -> ResizePolicy:
    """Resizes every image to one height and width."""
    return ResizePolicy("fixed", height=size[0], width=size[1])


def compute_maps(images: Sequence[tuple[str, bytes]], policy: ResizePolicy | None = None) -> Iterator[Case]:
    """The default network's maps of images, by the CPU.

    Args:
        images: Names and encoded images.
        policy: Resize policy; None for that of the default detector.

    Raises:
        UnavailableError: The network or its runtime is not installed.
    """
    bundle = Bundle.load()
    if policy is not None:
        bundle = Bundle(replace(bundle.spec, resize=policy), bundle.model_path)
    detector = Detector(bundle, load_network(bundle, RuntimeOptions()))
    for name, encoded in images:
        pixels, frame = detector.preprocess(encoded)
        (probability,) = detector.infer([pixels])
        yield Case(name, probability, frame, PARAMS)


def real_cases(context: CheckContext) -> list[Case]:
    """The maps of all photographs; noted as absent if there are none."""
    return _carried_or_computed(context, SERVED_MAPS, None, "real maps")


def timed_cases(context: CheckContext) -> dict[str, list[Case]]:
    """Maps of one size by kind: `sparse`, `real` (unless there are none) and `dense`."""
    size = context.effort.size
    drawn = {kind: [_drawn(kind, size, seed) for seed in range(_FEW)] for kind in ("sparse", "dense")}
    real = _carried_or_computed(context, FIXED_MAPS, fixed_policy(size), "real maps of one size")
    if any(case.probability.shape != size for case in real):
        context.absent("times on real maps", f"{FIXED_MAPS} holds maps of another size than {size}")
        real = []
    kinds = {"sparse": drawn["sparse"], "real": real, "dense": drawn["dense"]}
    return {kind: cases for kind, cases in kinds.items() if cases}


def timed_maps(context: CheckContext) -> list[NDArray[np.uint8]]:
    """Real maps of one size, or drawn ones if there are none."""
    cases = timed_cases(context)
    return [case.probability for case in cases.get("real", cases["sparse"])]


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


def _drawn(kind: str, size: tuple[int, int], seed: int) -> Case:
    return Case(f"{kind} page, seed {seed}", page(kind, size, seed), Frame(size, size, size), PARAMS)


def _carried_or_computed(context: CheckContext, name: str, policy: ResizePolicy | None, what: str) -> list[Case]:
    carried = context.files.carried
    if carried is not None and (carried / name).is_file():
        try:
            return load_maps(carried / name, PARAMS)
        except (InvalidInputError, OSError, ValueError) as error:
            context.absent(what, error)
            return []
    images = photographs(context.files)[:_FEW]
    if not images:
        context.absent(what, f"neither {name} is carried along nor are there photographs; give --data DIR")
        return []
    cases: list[Case] = []
    try:
        for case in compute_maps(images, policy):
            cases.append(case)
            if context.deadline.left_s < context.deadline.seconds / 2:
                break
    except UnavailableError as error:
        context.absent(what, error)
    return cases
