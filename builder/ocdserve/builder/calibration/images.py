# SPDX-License-Identifier: Apache-2.0
"""Choice of images for calibration and for evaluation; disjoint as long as there are enough."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.evaluation.dataset import Truth
from ocdserve.backend.evaluation.formats import is_labelled, load_labels
from ocdserve.backend.stages.image import decode
from ocdserve.contract import IMAGE_SUFFIXES, InvalidInputError, is_image


@dataclass(frozen=True)
class DataConfig:
    """Images for calibration and evaluation.

    Attributes:
        calibration_images: Folder of photographs; None takes them from `evaluation`.
        calibration_files: Photographs to calibrate with, instead of a choice from folders.
        calibration_count: Number of photographs to choose; at most half of a folder that also serves for evaluation.
        seed: Seed of the choice.
        calibration_cache: Scales of an earlier calibration, instead of images.
        force: Use a cache that was made for another network.
        evaluation: Labelled images (`load_labels`), or a folder with images only; None takes the photographs that were
            not chosen for calibration. Images chosen for calibration are never used for evaluation, unless there are
            no others.
        evaluation_files: Photographs to evaluate with, instead of a folder.

    Raises:
        InvalidInputError: A folder or file does not exist, or a number is out of its range.
    """

    calibration_images: Path | None = None
    calibration_files: tuple[Path, ...] = ()
    calibration_count: int = 20
    seed: int = 0
    calibration_cache: Path | None = None
    force: bool = False
    evaluation: Path | None = None
    evaluation_files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.calibration_images is not None and not self.calibration_images.is_dir():
            raise InvalidInputError(f"calibration_images: there is no folder {str(self.calibration_images)!r}")
        if self.evaluation is not None and not self.evaluation.exists():
            raise InvalidInputError(f"evaluation: there is no folder {str(self.evaluation)!r}, nor a file")
        if self.calibration_cache is not None and not self.calibration_cache.is_file():
            raise InvalidInputError(f"calibration_cache: there is no file {str(self.calibration_cache)!r}")
        if self.calibration_count < 1:
            raise InvalidInputError(f"calibration_count must be at least 1; got {self.calibration_count}")


@dataclass(frozen=True)
class Images:
    """Images of a build.

    Attributes:
        calibration: Photographs to calibrate with, sorted by path.
        evaluation: Photographs to evaluate with, and their ground truth if all of them have one.
        seed: Seed of the choice.
        is_shared: Whether images are used for both, for lack of others.
        skipped: Files that cannot be read, with the reasons; none of them is in the others.
    """

    calibration: tuple[Path, ...]
    evaluation: dict[Path, Truth | None]
    seed: int
    is_shared: bool = False
    skipped: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What the report says about files that were left out."""
        if not self.skipped:
            return []
        return [f"{len(self.skipped)} images were left out, as they cannot be read: {'; '.join(self.skipped[:3])}"]

    def sha256(self) -> str:
        """Hash over names and contents of the calibration images, hexadecimal."""
        digest = hashlib.sha256()
        for path in self.calibration:
            digest.update(f"{path.name} {_sha256(path)}\n".encode())
        return digest.hexdigest()

    def record(self) -> dict[str, object]:
        """Their part of the report."""
        return {
            "seed": self.seed,
            "calibration": [{"name": path.name, "sha256": _sha256(path)} for path in self.calibration],
            "evaluation": [path.name for path in self.evaluation],
            "evaluated_on_calibration_images": self.is_shared,
        }


def pick_images(config: DataConfig, needed: bool, judged: bool = True) -> Images:
    """Choose the images of a build.

    Args:
        config: The available images.
        needed: Whether the build needs calibration images.
        judged: Whether images are held out for evaluation; otherwise all may be used for calibration.

    Raises:
        InvalidInputError: Images are needed and there are none, or a data set is malformed.
    """
    folder = config.calibration_images or config.evaluation
    chosen = config.calibration_files
    check = _Check()
    truths: dict[Path, Truth | None] = dict.fromkeys(config.evaluation_files) if judged else {}
    if judged and config.evaluation is not None:
        truths = _truths(config.evaluation, check)
    if not chosen and folder is not None:
        candidates = photographs(folder)
        if judged and config.evaluation is None:
            candidates = check.readable(candidates, folder)
        if judged and config.evaluation is None:
            truths = dict.fromkeys(candidates)
        count = config.calibration_count
        if truths and set(map(_sha256, candidates)) & set(map(_sha256, truths)):
            count = min(count, max(1, len(candidates) // 2))
        chosen = choose(candidates, count, config.seed) if needed else ()
        while not all(map(check.is_readable, chosen)):
            # Others take their places. Only images that are used are checked, which takes as long as to decode them.
            candidates = [path for path in candidates if path not in chosen or check.is_readable(path)]
            chosen = choose(check.some(candidates, folder), count, config.seed)
    elif not chosen and needed:
        raise InvalidInputError(
            "a build below FP32 needs photographs to measure ranges and accuracy with: set "
            "--calibration-images or --evaluate-data (20 typical pictures are enough)"
        )
    used = set(map(_sha256, chosen)) if truths else set()
    held_out = {path: truth for path, truth in truths.items() if _sha256(path) not in used}
    skipped = tuple(check.problems.values())
    return Images(chosen, held_out or truths, config.seed, bool(truths) and not held_out, skipped)


def choose(
    paths: Sequence[Path], count: int, seed: int, name: Callable[[Path], str] = lambda path: path.name
) -> tuple[Path, ...]:
    """Choose images, returned sorted by path.

    The choice is the same on every machine: it depends neither on the order of `paths` nor on a random generator.

    Args:
        paths: Images to choose from, in any order.
        count: Number of images to choose; all if there are fewer.
        seed: Seed of the choice.
        name: Name of an image that is the same on every machine.
    """

    def draw(path: Path) -> tuple[str, Path]:
        return hashlib.sha256(f"{seed} {name(path)}".encode()).hexdigest(), path

    return tuple(sorted(sorted(paths, key=draw)[:count]))


def photographs(folder: Path) -> list[Path]:
    """Images in a folder and its subfolders, or of a file of labels, sorted by path; hidden ones are left out."""
    if folder.is_file():
        return sorted(sample.image for sample in load_labels(folder))
    found = sorted(
        path
        for path in folder.rglob("*")
        if is_image(path) and path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InvalidInputError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def _truths(folder: Path, check: "_Check") -> dict[Path, Truth | None]:
    if is_labelled(folder):
        truths: dict[Path, Truth | None] = {sample.image: sample.truth for sample in load_labels(folder)}
    else:
        truths = dict.fromkeys(photographs(folder))
    return {path: truths[path] for path in check.readable(truths, folder)}


class _Check:
    """Which files are images that can be read; each is decoded once.

    Attributes:
        problems: By file that cannot be read, its name and the reason.
    """

    def __init__(self) -> None:
        self.problems: dict[Path, str] = {}
        self._readable: set[Path] = set()

    def is_readable(self, path: Path) -> bool:
        """Whether it can be read."""
        if path not in self._readable and path not in self.problems:
            try:
                decode(path.read_bytes())
                self._readable.add(path)
            except (InvalidInputError, OSError) as error:
                self.problems[path] = f"{path.name} ({error})"
        return path in self._readable

    def readable(self, paths: Iterable[Path], folder: Path) -> list[Path]:
        """Those that can be read, at least one.

        Raises:
            InvalidInputError: None of the folder's images can be read.
        """
        return self.some([path for path in paths if self.is_readable(path)], folder)

    def some(self, paths: list[Path], folder: Path) -> list[Path]:
        """The paths; raises InvalidInputError if there are none."""
        if not paths:
            raise InvalidInputError(f"no image in {folder} can be read: {next(iter(self.problems.values()))}")
        return paths


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
