# SPDX-License-Identifier: Apache-2.0
"""The bundle: a folder with a detector, `detector.json` next to its network, or a recogniser, `recogniser.json`.

This file is the contract of a network: of a detector tensor names, layout, colour order, normalisation, resize policy
and default post-processing. Calibration, evaluation and serving all read this one file.

`manifest.json` holds the hashes of the folder's files: a network is executed like code, so one that was changed, or
copied in part, is refused. It is no signature: who can write the folder can write the manifest too.
"""

import hashlib
import importlib.util
import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from ocdserve.backend.spec import detector_spec, recogniser_spec
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.backend.spec.onnx_files import external_files, is_file_of, metadata
from ocdserve.backend.spec.presets import PRESETS, RECOGNISER_PRESETS
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.contract import InvalidInputError, UnavailableError, did_you_mean, install_command

# Files that a build may write next to the network.
_COMPANIONS = ("report.json", "calibration.cache", "damage.png")

MANIFEST_FILE = "manifest.json"
_MANIFEST_SCHEMA = 1
# Bytes hashed at a time.
_PIECE = 1 << 20

_DEFAULT_MODEL_PACKAGE = "rapidocr"
_DEFAULT_DETECTOR = "models/PP-OCRv6_det_small.onnx"
_DEFAULT_RECOGNISER = "models/PP-OCRv6_rec_small.onnx"
# Bundles that come with this package, a folder for each detector of `BUILT_IN` but the default one.
_SHIPPED = Path(__file__).parents[1] / "weights"
# Names of the built-in detectors; with this after one, it is computed in float32 on every processor.
BUILT_IN = ("default", "fast", "lite")
IN_FLOAT32 = "-fp32"
# Those of the recognisers, with their presets.
BUILT_IN_RECOGNISERS = {"default": "ppocr", "fast": "ppocr-fast"}
# Key of the characters, one a line, in the metadata of PaddleOCR's recognisers; a space follows the last one.
_CHARACTERS = "character"

_Spec = TypeVar("_Spec", bound=DetectorSpec | RecogniserSpec)
_Bundle = TypeVar("_Bundle", bound="AnyBundle[Any]")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnyBundle(ABC, Generic[_Spec]):
    """A network ready to load: its contract and the file that holds it.

    Attributes:
        spec: The contract.
        model_path: File of the network.
        kind: What the network is, in messages.
        spec_file: Name of the contract's file.
        built_in: Names of the bundles that need no folder.
    """

    spec: _Spec
    model_path: Path
    kind: ClassVar[str]
    spec_file: ClassVar[str]
    built_in: ClassVar[Collection[str]]

    @classmethod
    def load(
        cls: type[_Bundle],
        directory: Path | str | None = None,
        require_manifest: bool = False,
        spec_only: bool = False,
    ) -> _Bundle:
        """Open a bundle: a folder, or a built-in one, of this package or with a network of the `rapidocr` package.

        Args:
            directory: The folder, or the name of a built-in one (`built_in`); None: `default`. A folder of such a name
                takes precedence.
            require_manifest: Whether to refuse a folder without a manifest, instead of logging a warning.
            spec_only: Whether the folder may hold the contract alone, for those who need no network.

        Raises:
            InvalidInputError: The folder is not a valid bundle of this kind, or its files are not those of its
                manifest.
            UnavailableError: The built-in network is not installed.
        """
        if directory is None:
            return cls._built_in("default")
        path = Path(directory) / cls.spec_file
        if not path.is_file():
            if str(directory) in cls.built_in:
                return cls._built_in(str(directory))
            raise _no_bundle(cls, directory)
        try:
            spec = cls._read(path.read_text("utf-8"))
        except (InvalidInputError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: {error}") from error
        files = [] if spec_only else [file for file in (spec.model, spec.engine) if file]
        for file in files:
            if not _exists(path.parent / file):
                raise InvalidInputError(f"{path}: the network {file!r} is not next to it. Copy the bundle as a whole.")
        _check_manifest(path.parent, [cls.spec_file, *files], require_manifest)
        return cls(spec, path.parent / spec.model)

    @staticmethod
    @abstractmethod
    def _read(text: str) -> Any:
        """The contract in a text."""

    @classmethod
    @abstractmethod
    def _built_in(cls: type[_Bundle], name: str) -> _Bundle:
        """The built-in bundle of this name."""

    def save(self: _Bundle, directory: Path) -> _Bundle:
        """Write the bundle to a folder, with the other files of its build; returns the copy.

        Raises:
            InvalidInputError: The network refers to a file outside of its folder.
        """
        model = directory / self.spec.model
        files = [(self.model_path, model)]
        files += [(self.model_path.parent / name, directory / name) for name in external_files(self.model_path)]
        if self.engine_path is not None:
            files.append((self.engine_path, directory / self.engine_path.name))
        if (self.model_path.parent / self.spec_file).is_file():
            companions = (self.model_path.parent / name for name in _COMPANIONS)
            files += [(path, directory / path.name) for path in companions if path.is_file()]
        for source, target in files:
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
        return self.save_spec(directory)

    def save_spec(self: _Bundle, directory: Path) -> _Bundle:
        """Write the contract to a folder, and the manifest of what is there; returns the copy."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / self.spec_file).write_text(self.spec.to_json(), "utf-8")
        copy = type(self)(self.spec, directory / self.spec.model)
        copy.write_manifest()
        return copy

    def write_manifest(self) -> None:
        """Write the hashes of the folder's files, once they are all there."""
        folder = self.model_path.parent
        more = external_files(self.model_path) if self.model_path.is_file() else ()
        names = (self.spec_file, self.spec.model, self.spec.engine, *_COMPANIONS, *more)
        hashes = {name: _sha256(folder / name) for name in names if name and (folder / name).is_file()}
        text = json.dumps({"schema_version": _MANIFEST_SCHEMA, "sha256": hashes}, indent=2) + "\n"
        (folder / MANIFEST_FILE).write_text(text, "utf-8")

    @property
    def engine_path(self) -> Path | None:
        """File of the TensorRT engine, if there is one."""
        return None if self.spec.engine is None else self.model_path.with_name(self.spec.engine)

    def digest(self) -> str:
        """Hash of all that decides on answers: contract, network and engine; 64 bits, hexadecimal."""
        files = filter(None, (self.model_path, self.engine_path))
        parts = [hashlib.sha256(self.spec.to_json().encode()).hexdigest(), *map(_sha256, files)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def sha256(self) -> str:
        """Hash of the network file, hexadecimal."""
        return _sha256(self.model_path)


@dataclass(frozen=True)
class Bundle(AnyBundle[DetectorSpec]):
    """A detector; built in are `default`, and `fast` and `lite`, trained further to see less than half the pixels.

    They compute in bfloat16 where the processor has it; `default-fp32`, `fast-fp32` and `lite-fp32` do so nowhere.
    """

    kind = "detector"
    spec_file = detector_spec.SPEC_FILE
    built_in = (*BUILT_IN, *(f"{name}{IN_FLOAT32}" for name in BUILT_IN))

    @staticmethod
    def _read(text: str) -> DetectorSpec:
        return DetectorSpec.from_json(text)

    @classmethod
    def _built_in(cls, name: str) -> "Bundle":
        if name.endswith(IN_FLOAT32):
            return cls._built_in(name.removesuffix(IN_FLOAT32)).in_float32()
        if name == "default":
            return cls(replace(PRESETS["ppocr"], precision="bf16"), _installed_model(_DEFAULT_DETECTOR, cls.kind))
        return cls.load(_SHIPPED / name, require_manifest=True)

    def in_float32(self) -> "Bundle":
        """The same FP32 network, computed in float32 on every processor."""
        return replace(self, spec=replace(self.spec, precision="fp32"))


@dataclass(frozen=True)
class RecogniserBundle(AnyBundle[RecogniserSpec]):
    """A recogniser; built in are `default` and `fast`."""

    kind = "recogniser"
    spec_file = recogniser_spec.SPEC_FILE
    built_in = BUILT_IN_RECOGNISERS

    @staticmethod
    def _read(text: str) -> RecogniserSpec:
        return RecogniserSpec.from_json(text)

    @classmethod
    def _built_in(cls, name: str) -> "RecogniserBundle":
        path = _installed_model(_DEFAULT_RECOGNISER, cls.kind)
        spec = RECOGNISER_PRESETS[BUILT_IN_RECOGNISERS[name]]
        return cls(replace(spec, characters=paddle_characters(path)), path)


def paddle_characters(model_path: Path) -> tuple[str, ...]:
    """The characters in the metadata of a recogniser of PaddleOCR, in the order of its classes from 1 on; or none."""
    listed = metadata(model_path).get(_CHARACTERS)
    return () if listed is None else (*listed.split("\n"), " ")


def served_digest(bundle: Bundle, recogniser: RecogniserBundle | None = None) -> str:
    """Hash of all that decides on a server's answers; without a recogniser that of the detector."""
    if recogniser is None:
        return bundle.digest()
    return hashlib.sha256(f"{bundle.digest()} {recogniser.digest()}".encode()).hexdigest()[:16]


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


def _no_bundle(wanted: type[AnyBundle[Any]], directory: Path | str) -> InvalidInputError:
    for other in (Bundle, RecogniserBundle):
        if other is not wanted and (Path(directory) / other.spec_file).is_file():
            return InvalidInputError(
                f"{directory} is the bundle of a {other.kind}; a {wanted.kind}'s, with {wanted.spec_file}, is needed "
                f"here. Give it as the {other.kind} instead."
            )
    return InvalidInputError(
        f"{directory} is no bundle: it holds no {wanted.spec_file}. Name a folder made by a build, or a built-in "
        f"{wanted.kind}: {', '.join(wanted.built_in)}{did_you_mean(str(directory), wanted.built_in)}"
    )


def _installed_model(file: str, kind: str) -> Path:
    found = importlib.util.find_spec(_DEFAULT_MODEL_PACKAGE)
    for location in (found.submodule_search_locations if found else None) or ():
        path = Path(location) / file
        if path.is_file():
            return path
    name = "network" if kind == Bundle.kind else f"{kind}'s network"
    raise UnavailableError(
        f"the default {name} is not installed: it comes with the package rapidocr>=3.10. "
        f"Run {install_command('ocdserve[server]')}, or name a bundle of your own."
    )
