# SPDX-License-Identifier: Apache-2.0
"""Labelled images in the formats of annotation tools, recognised by their content."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ocdserve.backend.evaluation.dataset import Sample, load_dataset, read_lines, read_truth
from ocdserve.backend.evaluation.json_labels import Entry, coco, label_studio, labelme
from ocdserve.contract import InvalidInputError

_ACCEPTED = (
    "a folder with img/ and gt/, a list of image<tab>label file, a COCO file, Label Studio's JSON export, or a folder "
    "of labelme's JSON files"
)
# Where images are looked for, relative to the JSON file's folder; CVAT's COCO file lies in a folder next to images/.
_IMAGE_FOLDERS = (".", "images", "img", "..", "../images")
# How many files a message names.
_NAMED = 5


def load_labels(path: Path) -> list[Sample]:
    """Read labelled images; those that are labelled and have no text are kept.

    Accepted are

    - a folder with `img/` and `gt/` (`load_dataset`);
    - a list with lines of image, tab, label file, as of TAO's specs;
    - a COCO file, its images next to it or in `images/`: `segmentation` or `bbox`, all categories; `iscrowd` is
      don't-care;
    - Label Studio's export "JSON": rectangles, also rotated ones, and polygons of the first annotation of each task
      that was not skipped; tasks without one are left out, since nobody has labelled them;
    - one file of labelme, or a folder of them: polygons and rectangles;
    - a folder with one COCO file or export of Label Studio, or with `annotations/` that holds one.

    In the three JSON formats a label, category, flag or transcription of `###`, `ignore` or `ignored` is don't-care,
    and regions without an area, as of a stray click, are left out.

    Args:
        path: The folder or the file.

    Raises:
        InvalidInputError: It is in none of these formats, malformed, holds no labelled image, or names an image that
            is missing; the message names the file and the place in it.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InvalidInputError(f"there is no data set {path}; give {_ACCEPTED}")
    with path.open("rb") as file:
        beginning = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if beginning.startswith((b"{", b"[")):
        content = _content(path)
        return _samples(_kind(path, content)(path, content))
    if b"\x00" in beginning or beginning.startswith(b"PK"):
        raise InvalidInputError(f"{path} is a binary file or an archive; give {_ACCEPTED}")
    return _listed(path)


def is_labelled(path: Path) -> bool:
    """Whether `load_labels` is to read a path: a file, or a folder with gt/ or with JSON files of labels."""
    if path.is_file() or (path / "gt").is_dir():
        return True
    for file in _json_files(path)[:1]:
        try:
            return bool(_kind(file, _content(file)))
        except InvalidInputError:
            break
    return False


def list_fields(line: str) -> list[str]:
    """The fields of a line of a list file, stripped, without empty ones; a blank after `.jpg` is a tab."""
    if "\t" not in line:
        line = line.replace(".jpg ", ".jpg\t")
    return [stripped for field in line.split("\t") if (stripped := field.strip())]


def list_path(name: str, folder: Path) -> Path:
    """A path of a list file, with variables and `~`; relative to the working directory, else to the list's folder."""
    path = Path(os.path.expandvars(name)).expanduser()
    return path if path.exists() or path.is_absolute() else folder / path


def named(items: Iterable[Path | str]) -> str:
    """The first files of several, and how many there are in all."""
    files = [str(item) for item in items]
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{', '.join(files[:_NAMED])}{more} ({len(files)} in all)" if more else ", ".join(files)


def _folder(folder: Path) -> list[Sample]:
    files = _json_files(folder)
    if (folder / "gt").is_dir() or ((folder / "img").is_dir() and not files):
        return load_dataset(folder)
    if not files:
        raise InvalidInputError(f"{folder} holds neither img/ and gt/ nor a JSON file; give {_ACCEPTED}")
    entries: list[Entry] = []
    for file in files:
        content = _content(file)
        kind = _kind(file, content)
        if kind is not labelme and len(files) > 1:
            raise InvalidInputError(
                f"{file} holds a whole data set, and is one of {len(files)} JSON files of its folder; name the file"
            )
        entries += kind(file, content)
    return _samples(entries)


def _json_files(folder: Path) -> list[Path]:
    """The JSON files of a folder, otherwise those of its folder annotations/, sorted by name."""
    files = sorted(folder.glob("*.json")) or sorted(folder.glob("annotations/*.json"))
    return [file for file in files if not file.name.startswith(".")]


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise InvalidInputError(f"{file} is not JSON: {error}") from error


def _kind(file: Path, content: Any) -> Callable[[Path, Any], list[Entry]]:
    """What reads the content of a JSON file."""
    if isinstance(content, dict):
        if "images" in content and "annotations" in content:
            return coco
        if "shapes" in content:
            return labelme
        found = f"an object with {named(content) or 'no keys'}"
    elif isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        if all("data" in item and "annotations" in item for item in content):
            return label_studio
        found = f"a list of objects with {named(content[0]) or 'no keys'}"
        if "image_id" in content[0]:
            found += ", which are COCO's results without the images: give the whole file"
        elif "image" in content[0]:
            found += ", perhaps Label Studio's export JSON-MIN: export as JSON"
    else:
        found = "an empty list" if content == [] else f"a {type(content).__name__} without objects"
    raise InvalidInputError(f"{file} holds {found}; give {_ACCEPTED}")


def _samples(entries: Sequence[Entry]) -> list[Sample]:
    """Entries with their images found.

    Raises:
        InvalidInputError: There is none, images are missing, or two entries have the same image.
    """
    if not entries:
        raise InvalidInputError("the labels name no labelled image")
    samples, missing = {}, []
    for entry in entries:
        image = _image(entry)
        if image is None:
            missing.append(entry.image)
        elif image in samples:
            raise InvalidInputError(f"{entry.file} labels {image} twice; each picture must be there once")
        else:
            samples[image] = Sample(image, entry.truth)
    if missing:
        raise InvalidInputError(
            f"{entries[0].file} names pictures that are not there: {named(missing)}; put them next to it or in images/"
        )
    return list(samples.values())


def _image(entry: Entry) -> Path | None:
    """The image of an entry: its name, or the end of it, relative to a folder of images."""
    folders = [entry.file.parent / folder for folder in _IMAGE_FOLDERS]
    for name in entry.names:
        for folder in folders:
            if (folder / name).is_file():
                return Path(os.path.normpath(folder / name))
    return None


def _listed(file: Path) -> list[Sample]:
    samples, missing = [], []
    for number, line in read_lines(file):
        fields = list_fields(line)
        if len(fields) < 2:
            raise InvalidInputError(
                f"{file}:{number}: expected an image, a tab and its label file; got {line[:80]!r}. "
                f"Data may be {_ACCEPTED}"
            )
        image, label = (list_path(field, file.parent) for field in fields[:2])
        absent = [f"{path} (line {number})" for path in (image, label) if not path.is_file()]
        missing += absent
        if not absent:
            samples.append(Sample(image, read_truth(label)))
    if missing:
        raise InvalidInputError(f"the list {file} names files that do not exist: {named(missing)}")
    if not samples:
        raise InvalidInputError(f"the list {file} is empty; data may be {_ACCEPTED}")
    return samples
