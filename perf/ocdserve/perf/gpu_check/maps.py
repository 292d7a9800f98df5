# SPDX-License-Identifier: Apache-2.0
"""Maps and photographs for comparing the GPU with the CPU: generated ones, equal in every run, and real ones."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.backend.stages.postprocess import postprocess
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.maps import PARAMS, Case, Map, compute_maps, fixed_policy, page
from ocdserve.perf.inputs.pictures import encoded
from ocdserve.results.detections import Detections

# Files of prebuilt maps: of photographs resized as they are served, and to one size.
SERVED_MAPS = "maps.npz"
FIXED_MAPS = "maps-of-one-size.npz"

# Maps with the CPU's answers, computed where the versions of OpenCV and NumPy are those that the tests prove: OpenCV 5
# chooses other rectangles than OpenCV 4 where several are equally small, so a machine's own OpenCV is no reference.
ANSWERED_MAPS = "answered-maps.npz"
# Group of the maps of photographs.
REAL = "real maps"

# A map, and the CPU's answer if it is known.
Answered = tuple[Case, Detections | None]

_SEED = 4
_FEW = 8


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
            raise InvalidInputError(f"{path} holds no maps; perf/gpu_check/pack.sh makes such a file")
        frames = [Frame(*(tuple(map(int, size)) for size in sizes)) for sizes in file["frames"]]  # type: ignore[arg-type]
        names = file["names"].tolist()
        return [
            Case(name, file[f"map{index}"], frame, params)
            for index, (name, frame) in enumerate(zip(names, frames, strict=True))
        ]


def answer_of(case: Case) -> Detections:
    """The CPU's answer, by NumPy and OpenCV."""
    return postprocess(case.probability, case.frame, case.params, compiled=False)


def save_answered(path: Path, pairs: Sequence[tuple[Case, Detections]]) -> None:
    """Save maps with their parameters and answers."""
    arrays: dict[str, NDArray[Any]] = {}
    described = []
    for index, (case, answer) in enumerate(pairs):
        frame = (case.frame.source, case.frame.network, case.frame.content)
        lengths = None if answer.polygons is None else [len(polygon) for polygon in answer.polygons]
        described.append((case.name, case.group, frame, asdict(case.params), lengths))
        arrays |= {f"map{index}": case.probability, f"quads{index}": answer.quads, f"scores{index}": answer.scores}
        if answer.polygons is not None:
            arrays[f"points{index}"] = np.concatenate([*answer.polygons, np.empty((0, 2), np.float32)])
    np.savez_compressed(path, described=np.array(json.dumps(described)), **arrays)


def load_answered(path: Path) -> list[Answered]:
    """Load what `save_answered` saved."""
    with np.load(path, allow_pickle=False) as file:
        pairs: list[Answered] = []
        for index, (name, group, sizes, params, lengths) in enumerate(json.loads(str(file["described"]))):
            frame = Frame(*(tuple(size) for size in sizes))  # type: ignore[arg-type]  # three of them
            case = Case(name, file[f"map{index}"], frame, PostprocessParams(**params), group)
            polygons = None
            if lengths is not None:
                polygons = tuple(np.split(file[f"points{index}"], np.cumsum(lengths)[:-1])) if lengths else ()
            height, width = frame.source
            answer = Detections(file[f"quads{index}"], file[f"scores{index}"], width, height, polygons)
            pairs.append((case, answer))
        return pairs


def drawn_photograph(size: tuple[int, int] = (720, 1280)) -> bytes:
    """A JPEG of a drawn page, in place of photographs."""
    levels = 255 - page("sparse", size)
    noise = np.random.default_rng(0).integers(0, 12, (*size, 3), np.uint8)
    return encoded(Image.fromarray(levels[..., None] // 2 + noise + 60))


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
    images = photographs(context.files.data)[:_FEW]
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
