# SPDX-License-Identifier: Apache-2.0
"""Photographs and the network's maps of them: carried along, or computed by the CPU where there is time."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import PRESETS, Bundle, Detector
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check.cases import Case, load_maps, page
from ocdserve.perf.gpu_check.check_context import Files, Setting

SERVED_MAPS = "maps.npz"
FIXED_MAPS = "maps-of-one-size.npz"
PARAMS = PRESETS["ppocr"].postprocess

_SUFFIXES = (".jpg", ".jpeg")
_FEW = 8


def photographs(files: Files) -> list[tuple[str, bytes]]:
    """Names and contents of the JPEG files of `data`, of all data sets in turns."""
    if files.data is None:
        return []
    folders = [files.data / "img"] if (files.data / "img").is_dir() else sorted(files.data.glob("*/img"))
    found = [sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES) for folder in folders]
    longest = max((len(paths) for paths in found), default=0)
    in_turns = (paths[index] for index in range(longest) for paths in found if index < len(paths))
    return [(path.name, path.read_bytes()) for path in in_turns]


def drawn_photograph(size: tuple[int, int] = (720, 1280)) -> bytes:
    """A JPEG of a drawn page, where there are no photographs."""
    levels = 255 - page("sparse", size)
    noise = np.random.default_rng(0).integers(0, 12, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels[..., None] // 2 + noise + 60).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def fixed_policy(size: tuple[int, int]) -> ResizePolicy:
    """Every image stretched to one height and width."""
    return ResizePolicy("fixed", height=size[0], width=size[1])


def compute_maps(images: Sequence[tuple[str, bytes]], policy: ResizePolicy | None = None) -> Iterator[Case]:
    """The default network's maps, one after the other.

    Args:
        images: Names and encoded images.
        policy: How they get their size; None: as they are served.

    Raises:
        UnavailableError: Network or runtime are not installed.
    """
    bundle = Bundle.load()
    if policy is not None:
        bundle = Bundle(replace(bundle.spec, resize=policy), bundle.model_path)
    detector = Detector(bundle, load_network(bundle, RuntimeOptions()))
    for name, encoded in images:
        pixels, frame = detector.preprocess(encoded)
        (probability,) = detector.infer([pixels])
        yield Case(name, probability, frame, PARAMS)


def real_cases(setting: Setting) -> list[Case]:
    """The maps of all photographs; where there are none, that is noted."""
    return _carried_or_computed(setting, SERVED_MAPS, None, "real maps")


def timed_cases(setting: Setting) -> dict[str, list[Case]]:
    """Maps of one size by kind: `sparse`, `real` and `dense`; no `real` ones where there are none."""
    size = setting.effort.size
    drawn = {kind: [_drawn(kind, size, seed) for seed in range(_FEW)] for kind in ("sparse", "dense")}
    real = _carried_or_computed(setting, FIXED_MAPS, fixed_policy(size), "real maps of one size")
    if any(case.probability.shape != size for case in real):
        setting.record.absent("times on real maps", f"{FIXED_MAPS} holds maps of another size than {size}")
        real = []
    kinds = {"sparse": drawn["sparse"], "real": real, "dense": drawn["dense"]}
    return {kind: cases for kind, cases in kinds.items() if cases}


def timed_maps(setting: Setting) -> list[NDArray[np.uint8]]:
    """Real maps of one size, or drawn ones where there are none."""
    cases = timed_cases(setting)
    return [case.probability for case in cases.get("real", cases["sparse"])]


def _drawn(kind: str, size: tuple[int, int], seed: int) -> Case:
    return Case(f"{kind} page, seed {seed}", page(kind, size, seed), Frame(size, size, size), PARAMS)


def _carried_or_computed(setting: Setting, name: str, policy: ResizePolicy | None, what: str) -> list[Case]:
    carried = setting.files.carried
    if carried is not None and (carried / name).is_file():
        try:
            return load_maps(carried / name, PARAMS)
        except (InvalidInputError, OSError, ValueError) as error:
            setting.record.absent(what, error)
            return []
    images = photographs(setting.files)[:_FEW]
    if not images:
        setting.record.absent(what, f"neither {name} is carried along nor are there photographs: name --data DIR")
        return []
    cases: list[Case] = []
    try:
        for case in compute_maps(images, policy):
            cases.append(case)
            if setting.deadline.left_s < setting.deadline.seconds / 2:
                break
    except UnavailableError as error:
        setting.record.absent(what, error)
    return cases
