# SPDX-License-Identifier: Apache-2.0
"""Data sets of TAO's specs: folders with img/ and gt/, lists of image and label, folders of images."""

import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocdserve.backend.evaluation.formats import list_fields, list_path, named
from ocdserve.builder.tao.inputs.labels import LabelFormat, LabelRules, Labels, read_labels
from ocdserve.builder.tao.spec.dataset import Dataset, TrainDataset, ValidateDataset
from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image

_FORMATS: dict[str, LabelFormat] = {"ICDAR2015Dataset": "icdar", "UberDataset": "uber"}
_PREFIXES: dict[LabelFormat, str] = {"icdar": "gt_", "uber": "truth_"}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
_TAO_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG", ".bmp")
# Of PyTorch, Lightning and TAO, encrypted ones included.
_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".tlt", ".etlt", ".uff", ".hdf5")
# Start of a file that PyTorch wrote before version 1.6; later ones are zip archives.
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclass(frozen=True)
class Sample:
    """One image with its labels."""

    image: Path
    labels: Labels


@dataclass(frozen=True)
class DataSet:
    """The images to evaluate.

    Attributes:
        samples: In natural order of their paths, so that `img_10` follows `img_9`.
        notes: Files that were left out and why, one sentence each.
    """

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]


def label_format(data: TrainDataset | ValidateDataset) -> LabelFormat:
    """Return the format of a section's labels, by its `data_name`."""
    if data.data_name not in _FORMATS:
        section = "train_dataset" if isinstance(data, TrainDataset) else "validate_dataset"
        raise InvalidInputError(
            f"dataset.{section}.data_name must be one of {', '.join(_FORMATS)}; got {data.data_name!r}"
        )
    return _FORMATS[data.data_name]


def load_data_set(data_path: Sequence[str], rules: LabelRules, section: str = "validate_dataset") -> DataSet:
    """Find all images of `data_path` and read all label files before any image is decoded.

    Args:
        data_path: Folders with `img/` and `gt/` (`gt_<stem>.txt`, Uber-Text: `truth_<stem>.txt`), or UTF-8 files with
            lines of image, tab, label file. Relative paths of a list start at the working directory, else at the
            list's folder.
        rules: How labels are read. With `rules.tao` the stem ends at the first dot of the name, missing files of a
            list are skipped, and images without a text instance are left out.
        section: Of `dataset`, for messages.

    Raises:
        InvalidInputError: A path is missing, an archive or no data set, a label file is missing or malformed; the
            message names it.
    """
    if not data_path:
        raise InvalidInputError(
            f"dataset.{section}.data_path is empty: name at least one folder with img/ and gt/, or a list file"
        )
    pairs: list[tuple[Path, Path]] = []
    notes: list[str] = []
    for entry in data_path:
        path = Path(os.path.expandvars(entry)).expanduser()
        check_extracted(path)
        found, remarks = _listed(path, rules) if path.is_file() else _in_folder(path, rules)
        pairs += found
        notes += remarks
    if not pairs:
        raise InvalidInputError(": ".join([f"there are no images to evaluate in {', '.join(data_path)}", *notes]))
    pairs.sort(key=lambda pair: natural_key(pair[0]))
    samples = [Sample(image, read_labels(label, rules)) for image, label in pairs]
    if rules.tao:
        empty = [sample for sample in samples if not sample.labels.instances]
        samples = [sample for sample in samples if sample.labels.instances]
        if empty:
            notes.append(f"left out as TAO does, without a text instance: {named(s.image for s in empty)}")
        if not samples:
            raise InvalidInputError(f"no label file of {', '.join(data_path)} holds a text instance")
    return DataSet(tuple(samples), (*notes, *(note for sample in samples for note in sample.labels.notes)))


def find_images(folder: Path, tao: bool = False) -> list[Path]:
    """List the images of a folder, without its subfolders, in natural order.

    Args:
        folder: Where to look.
        tao: Whether to accept the suffixes that TAO accepts, in its upper and lower case.

    Raises:
        InvalidInputError: It is missing, an archive, or holds no images.
    """
    check_extracted(folder)
    if not folder.is_dir():
        raise InvalidInputError(
            f"the image folder {folder} does not exist"
            if not folder.exists()
            else f"{folder} is a file; name the folder with the images"
        )
    is_image = _is_tao_image if tao else _is_image
    found = sorted((path for path in folder.iterdir() if is_image(path) and path.is_file()), key=natural_key)
    if not found:
        raise InvalidInputError(f"{folder} holds no images ({', '.join(_TAO_SUFFIXES if tao else IMAGE_SUFFIXES)})")
    return found


def check_data(data: Dataset) -> None:
    """Raise InvalidInputError if a path of the section `dataset` is an archive."""
    for key, paths in (
        ("train_dataset.data_path", data.train_dataset.data_path),
        ("validate_dataset.data_path", data.validate_dataset.data_path),
        ("quant_calibration_dataset.images_dir", (data.quant_calibration_dataset.images_dir,)),
    ):
        for path in filter(None, paths):
            try:
                check_extracted(Path(path))
            except InvalidInputError as error:
                raise InvalidInputError(f"dataset.{key}: {error}") from error


def check_extracted(path: Path) -> None:
    """Raise InvalidInputError if a path is an archive instead of the folder that it contains."""
    if path.is_file() and (path.name.lower().endswith(_ARCHIVES) or is_archive(path)):
        raise InvalidInputError(f"{path} is an archive, not a folder: extract it first, then name the folder")


def is_archive(path: Path) -> bool:
    """Whether a file is a tar (compressed or not) or zip archive."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def checkpoint_kind(path: Path) -> str | None:
    """Return the suffix of a checkpoint of PyTorch or TAO, `PyTorch` if only its content shows it; None for others."""
    if path.suffix.lower() in _CHECKPOINTS:
        return path.suffix
    with path.open("rb") as file:
        is_torch = file.read(len(_TORCH_MAGIC)) == _TORCH_MAGIC
    if not is_torch and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_torch = any(name.endswith("/data.pkl") for name in archive.namelist())
    return "PyTorch" if is_torch else None


def natural_key(path: Path) -> list[Any]:
    """Sort key that compares numbers in names by value."""
    parts = re.split(r"(\d+)", str(path))
    # Texts and numbers alternate, so the types at equal indices are equal.
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def tao_stem(name: str) -> str:
    """Return the stem by the rule of TAO Deploy's evaluation: all before the first dot."""
    return name.split(".", 1)[0]


def _in_folder(path: Path, rules: LabelRules) -> tuple[list[tuple[Path, Path]], list[str]]:
    if not path.is_dir():
        raise InvalidInputError(f"the data set {path} does not exist; name a folder with img/ and gt/, or a list file")
    for name in ("img", "gt"):
        check_extracted(path / name)
        if not (path / name).is_dir():
            raise InvalidInputError(f"the data set {path} needs the folders img/ and gt/; {name}/ is missing")
    visible = sorted((file for file in (path / "img").iterdir() if not file.name.startswith(".")), key=natural_key)
    images = [file for file in visible if _is_image(file)]
    others = [file for file in visible if not _is_image(file)]
    if not images:
        raise InvalidInputError(f"{path / 'img'} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    stem: Callable[[Path], str] = (lambda file: tao_stem(file.name)) if rules.tao else (lambda file: file.stem)
    pairs = [(image, path / "gt" / f"{_PREFIXES[rules.format]}{stem(image)}.txt") for image in images]
    missing = [label for _, label in pairs if not label.is_file()]
    if missing:
        raise InvalidInputError(
            f"label files are missing: {named(missing)}. Write an empty one for an image without text."
        )
    return pairs, [f"no images, left out: {named(others)}"] if others else []


def _listed(path: Path, rules: LabelRules) -> tuple[list[tuple[Path, Path]], list[str]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the list {path} is not UTF-8 text: {error}. data_path takes folders, and lists of image<tab>label file."
        ) from error
    pairs, missing, skipped = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = _list_fields(line, rules.tao)
        if len(fields) < 2:
            if not rules.tao:
                raise InvalidInputError(f"{path}:{number}: expected an image, a tab and its label file; got {line!r}")
            skipped.append(f"no tab (line {number})")
        elif "" in fields[:2]:
            skipped.append(f"an empty field, of two tabs or a blank and a tab (line {number})")
        else:
            image, label = (list_path(field, path.parent) for field in fields[:2])
            absent = [file for file in (image, label) if not file.is_file() or (rules.tao and not file.stat().st_size)]
            missing += [f"{file} (line {number})" for file in absent]
            skipped += [f"{file} is {'empty' if file.is_file() else 'missing'} (line {number})" for file in absent]
            if not absent:
                pairs.append((image, label))
    if missing and not rules.tao:
        raise InvalidInputError(f"the list {path} names files that do not exist: {named(missing)}")
    return pairs, [f"{path.name}, skipped as TAO does: {named(skipped)}"] if skipped else []


def _list_fields(line: str, tao: bool) -> list[str]:
    """The fields of a line of a list file; TAO's blank after .jpg is a tab of its own, even before another."""
    return [field.strip() for field in line.replace(".jpg ", ".jpg\t").split("\t")] if tao else list_fields(line)


def _is_image(path: Path) -> bool:
    return is_image(path) and not path.name.startswith(".")


def _is_tao_image(path: Path) -> bool:
    return path.suffix in _TAO_SUFFIXES and not path.name.startswith(".")
