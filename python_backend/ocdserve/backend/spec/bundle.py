# SPDX-License-Identifier: Apache-2.0
"""The bundle: a folder with a detector, `detector.json` next to its network.

`detector.json` is the contract of a network: tensor names, layout, colour order, normalisation, resize policy
and default post-processing. Calibration, evaluation and serving all read this one file.

`manifest.json` holds the hashes of the folder's files: a network is executed like code, so one that was changed, or
copied in part, is refused. It is no signature: who can write the folder can write the manifest too.
"""

import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ocdserve.backend.spec.detector_spec import SPEC_FILE, DetectorSpec
from ocdserve.backend.spec.onnx_files import external_files, is_file_of
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.contract import InvalidInputError, UnavailableError, did_you_mean, install_command

# Files that a build may write next to the network.
_COMPANIONS = ("report.json", "calibration.cache", "damage.png")

MANIFEST_FILE = "manifest.json"
_MANIFEST_SCHEMA = 1
# Bytes hashed at a time.
_PIECE = 1 << 20

_DEFAULT_MODEL_PACKAGE = "rapidocr"
_DEFAULT_MODEL_FILE = "models/PP-OCRv6_det_small.onnx"
# Names of the built-in detectors, and their presets.
BUILT_IN = {"default": "ppocr", "fast": "ppocr-fast"}


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A detector ready to load: its contract and the file with its network."""

    spec: DetectorSpec
    model_path: Path

    @classmethod
    def load(
        cls, directory: Path | str | None = None, require_manifest: bool = False, spec_only: bool = False
    ) -> "Bundle":
        """Open a bundle: a folder, or one with the network of the `rapidocr` package.

        Args:
            directory: The folder; None or `default` for the default detector, `fast` for the same network on less than
                half the pixels. A folder of such a name takes precedence.
            require_manifest: Whether to refuse a folder without a manifest, instead of logging a warning.
            spec_only: Whether the folder may hold `detector.json` alone, for those who need no network.

        Raises:
            InvalidInputError: The folder is not a valid bundle, or its files are not those of its manifest.
            UnavailableError: The default network is not installed.
        """
        if directory is None:
            return cls(PRESETS[BUILT_IN["default"]], _default_model())
        path = Path(directory) / SPEC_FILE
        if not path.is_file():
            if str(directory) in BUILT_IN:
                return cls(PRESETS[BUILT_IN[str(directory)]], _default_model())
            raise InvalidInputError(
                f"{directory} is no bundle: it holds no detector.json. Name a folder made by a build, or a built-in "
                f"detector: {', '.join(BUILT_IN)}{did_you_mean(str(directory), BUILT_IN)}"
            )
        try:
            spec = DetectorSpec.from_json(path.read_text("utf-8"))
        except (InvalidInputError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: {error}") from error
        files = [] if spec_only else [file for file in (spec.model, spec.engine) if file]
        for file in files:
            if not _exists(path.parent / file):
                raise InvalidInputError(f"{path}: the network {file!r} is not next to it. Copy the bundle as a whole.")
        _check_manifest(path.parent, [SPEC_FILE, *files], require_manifest)
        return cls(spec, path.parent / spec.model)

    def save(self, directory: Path) -> "Bundle":
        """Write the bundle to a folder, with the other files of its build; returns the copy.

        Raises:
            InvalidInputError: The network refers to a file outside of its folder.
        """
        model = directory / self.spec.model
        files = [(self.model_path, model)]
        files += [(self.model_path.parent / name, directory / name) for name in external_files(self.model_path)]
        if self.engine_path is not None:
            files.append((self.engine_path, directory / self.engine_path.name))
        if (self.model_path.parent / SPEC_FILE).is_file():
            companions = (self.model_path.parent / name for name in _COMPANIONS)
            files += [(path, directory / path.name) for path in companions if path.is_file()]
        for source, target in files:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
        return self.save_spec(directory)

    def save_spec(self, directory: Path) -> "Bundle":
        """Write `detector.json` to a folder, and the manifest of what is there; returns the copy."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / SPEC_FILE).write_text(self.spec.to_json(), "utf-8")
        copy = Bundle(self.spec, directory / self.spec.model)
        copy.write_manifest()
        return copy

    def write_manifest(self) -> None:
        """Write the hashes of the folder's files, once they are all there."""
        folder = self.model_path.parent
        more = external_files(self.model_path) if self.model_path.is_file() else ()
        names = (SPEC_FILE, self.spec.model, self.spec.engine, *_COMPANIONS, *more)
        hashes = {name: _sha256(folder / name) for name in names if name and (folder / name).is_file()}
        text = json.dumps({"schema_version": _MANIFEST_SCHEMA, "sha256": hashes}, indent=2) + "\n"
        (folder / MANIFEST_FILE).write_text(text, "utf-8")

    @property
    def engine_path(self) -> Path | None:
        """File of the TensorRT engine, if there is one."""
        return None if self.spec.engine is None else self.model_path.with_name(self.spec.engine)

    def digest(self) -> str:
        """Hash of all that decides on answers: detector.json, network and engine; 64 bits, hexadecimal."""
        files = filter(None, (self.model_path, self.engine_path))
        parts = [hashlib.sha256(self.spec.to_json().encode()).hexdigest(), *map(_sha256, files)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def sha256(self) -> str:
        """Hash of the network file, hexadecimal."""
        return _sha256(self.model_path)


def generation_number(digest: str) -> int:
    """A bundle's digest as a number from 1 that fits INT64."""
    return (int(digest, 16) >> 1) | 1


def _check_manifest(directory: Path, names: Sequence[str], require: bool) -> None:
    """Raise InvalidInputError if one of the files is not that of the manifest."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        if require:
            raise InvalidInputError(f"{directory} holds no {MANIFEST_FILE}; `ocdserve build` and `publish` write one.")
        _logger.warning("%s holds no %s: its files were not verified", directory, MANIFEST_FILE)
        return
    try:
        hashes = json.loads(path.read_text("utf-8"))["sha256"]
        # What else is listed is data of the network in files of its own.
        names = [*names, *sorted(set(hashes).difference(names, _COMPANIONS))]
        absent = [name for name in names if not is_file_of(directory, name)]
        changed = [] if absent else [name for name in names if _sha256(directory / name) != hashes.get(name)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(f"{path} is no manifest ({error}). Copy the bundle as a whole.") from error
    if absent:
        raise InvalidInputError(f"{path}: the file {absent[0]!r} is not next to it. Copy the bundle as a whole.")
    if changed:
        raise InvalidInputError(
            f"{directory}: {', '.join(changed)} changed since {MANIFEST_FILE} was written. Copy the bundle again; if "
            "the change is yours, remove the manifest."
        )


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file, such as one that is too long
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _default_model() -> Path:
    found = importlib.util.find_spec(_DEFAULT_MODEL_PACKAGE)
    for location in (found.submodule_search_locations if found else None) or ():
        path = Path(location) / _DEFAULT_MODEL_FILE
        if path.is_file():
            return path
    raise UnavailableError(
        "the default network is not installed: it comes with the package rapidocr>=3.10. "
        f"Run {install_command('ocdserve[server]')}, or name a bundle of your own."
    )
