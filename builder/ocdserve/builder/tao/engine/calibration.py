# SPDX-License-Identifier: Apache-2.0
"""Plan the calibration of gen_trt_engine: which images, or an existing cache."""

import os
from dataclasses import dataclass
from pathlib import Path

from ocdserve.builder.accuracy.gate import FEW_IMAGES
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.images import Images, choose
from ocdserve.builder.graph.exported import file_sha256
from ocdserve.builder.tao.actions import is_given
from ocdserve.builder.tao.inputs.dataset import is_archive
from ocdserve.builder.tao.spec import Spec
from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image

_SECTION = "gen_trt_engine.tensorrt.calibration"


@dataclass(frozen=True)
class Plan:
    """Source of the INT8 ranges.

    Attributes:
        images: Photographs to calibrate with; empty with a cache.
        judged: Photographs to judge the network with: others of the same folders, or those of the calibration where
            there are fewer others; without ground truth.
        cache: Existing cache to read scales from.
        save: File to write the scales to; None if there is none or the cache exists.
        warnings: For the user, a sentence each.
    """

    images: tuple[Path, ...] = ()
    judged: tuple[Path, ...] = ()
    cache: Path | None = None
    save: Path | None = None
    warnings: tuple[str, ...] = ()


def plan_calibration(spec: Spec) -> Plan:
    """Choose the cache or images of an INT8 build; for other precisions, images only check ranges and are optional.

    Raises:
        InvalidInputError: There is neither, there are too few images, or the cache is of another network.
    """
    settings = spec.gen_trt_engine.tensorrt.calibration
    is_int8 = spec.gen_trt_engine.tensorrt.data_type == "INT8"
    cache = Path(settings.cal_cache_file) if is_given(settings.cal_cache_file) else None
    if is_int8 and cache is not None and cache.is_file():
        return _with_cache(spec, cache)
    count = settings.cal_batch_size * settings.cal_batches
    folders = [Path(folder) for folder in settings.cal_image_dir if is_given(folder)]
    if not folders:
        if is_int8:
            raise InvalidInputError(
                f"INT8 needs photographs to calibrate with: set {_SECTION}.cal_image_dir to folders of them (a few "
                f"dozen typical ones), or {_SECTION}.cal_cache_file to the cache of an earlier calibration"
            )
        return Plan()
    if not is_int8:
        # FP32 and FP16 specs may have calibration paths that are placeholders.
        found = images_below(folders)
        chosen = _chosen(found, spec)
        return Plan(chosen, _judged(found, chosen, spec))
    found = find_images(folders)
    if len(found) < count:
        batch_size = min(settings.cal_batch_size, len(found))
        raise InvalidInputError(
            f"too few calibration images: cal_batch_size {settings.cal_batch_size} times cal_batches "
            f"{settings.cal_batches} asks for {count}, but {', '.join(map(str, folders))} hold "
            f"{len(found)}. Add images, or set {_SECTION}.cal_batches to {len(found) // batch_size}"
            f"{'' if batch_size == settings.cal_batch_size else f' with cal_batch_size {batch_size}'}."
        )
    chosen = _chosen(found, spec)
    return Plan(chosen, _judged(found, chosen, spec), save=cache and _writable(cache))


def _writable(path: Path) -> Path:
    """Return the path if a file can be written there; checked before the long work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{_SECTION}.cal_cache_file: {str(path)!r} cannot be written: {error.strerror}"
        ) from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidInputError(
            f"{_SECTION}.cal_cache_file: {str(path)!r} cannot be written; name a file in a folder of yours"
        )
    return path


def find_images(folders: list[Path]) -> list[Path]:
    """List all images in the folders, recursively, each once, sorted by path.

    Raises:
        InvalidInputError: A folder does not exist or is an archive, or there are no images.
    """
    for folder in folders:
        if folder.is_file():
            what = "is an archive; extract it first and name the folder" if is_archive(folder) else "is not a folder"
            raise InvalidInputError(f"{_SECTION}.cal_image_dir: {str(folder)!r} {what}")
        if not folder.is_dir():
            raise InvalidInputError(f"{_SECTION}.cal_image_dir: there is no folder {str(folder)!r}")
    found = images_below(folders)
    if not found:
        raise InvalidInputError(
            f"{_SECTION}.cal_image_dir: {', '.join(map(str, folders))} hold no images ({', '.join(IMAGE_SUFFIXES)})"
        )
    return found


def images_below(folders: list[Path]) -> list[Path]:
    """The same for folders that may be missing or empty. Hidden files are left out, as in data sets."""
    found = {
        path
        for folder in folders
        for path in folder.rglob("*")
        if is_image(path) and not path.name.startswith(".") and path.is_file()
    }
    return sorted(found)


def _chosen(paths: list[Path], spec: Spec) -> tuple[Path, ...]:
    """The spec's number of images; the same on every machine with the same names of files and their folders."""
    settings = spec.gen_trt_engine.tensorrt.calibration
    count = settings.cal_batch_size * settings.cal_batches
    return choose(paths, count, spec.ocdserve.seed, name=_name)


def _judged(found: list[Path], chosen: tuple[Path, ...], spec: Spec) -> tuple[Path, ...]:
    """Images to judge with: as many others as say something, unless the chosen ones are more."""
    others = choose(sorted(set(found) - set(chosen)), FEW_IMAGES, spec.ocdserve.seed, name=_name)
    return others if len(others) >= len(chosen) else chosen


def _name(path: Path) -> str:
    """The name of a file and its folder, which are the same on every machine."""
    return f"{path.parent.name}/{path.name}"


def _with_cache(spec: Spec, path: Path) -> Plan:
    content = CalibrationCache.load(path)
    onnx_sha256 = file_sha256(Path(spec.gen_trt_engine.onnx_file))
    if content.onnx_sha256 not in (None, onnx_sha256) and not spec.ocdserve.force_calibration_cache:
        raise InvalidInputError(
            f"the calibration cache {path} is stale: it was made for another network (SHA-256 of its ONNX "
            f"{content.onnx_sha256}, of this one {onnx_sha256}). Remove it or name another {_SECTION}.cal_cache_file "
            "to calibrate again, or set ocdserve.force_calibration_cache=true to use it as it is."
        )
    warnings = []
    settings = spec.gen_trt_engine.tensorrt.calibration
    found = images_below([Path(folder) for folder in settings.cal_image_dir if is_given(folder)])
    known = content.images_sha256
    chosen = _chosen(found, spec)
    if found and known is not None and Images(chosen, {}, 0).sha256() != known:
        warnings.append(
            f"the calibration cache {path} was made with other images than cal_image_dir, cal_batch_size and "
            "cal_batches now choose; remove it to calibrate again"
        )
    return Plan(judged=_judged(found, chosen, spec), cache=path, warnings=tuple(warnings))
