# SPDX-License-Identifier: Apache-2.0
"""Publishing: a complete Triton model repository around a bundle."""

import errno
import importlib.resources
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ocdserve.backend.files import check_space, link_or_copy
from ocdserve.backend.network.load import check_executable
from ocdserve.backend.network.options import ANY_BUNDLE_ON_GPU, RUNTIMES, gpu_runtime
from ocdserve.backend.publish.configuration import BUNDLE_FOLDER, FUSED_MODELS, RECOGNISER_FOLDER, configure
from ocdserve.backend.publish.environment import ENVIRONMENT_FILE
from ocdserve.backend.publish.options import PublishOptions
from ocdserve.backend.spec.bundle import AnyBundle, Bundle, RecogniserBundle
from ocdserve.backend.spec.detector_spec import SPEC_FILE
from ocdserve.contract import (
    MODELS,
    NETWORK,
    OCR_FUSED,
    POSTPROCESS,
    PREPROCESS,
    READING_MODELS,
    RECOGNISE,
    InvalidInputError,
)

__all__ = ["PublishOptions", "publish", "template_repository"]

# Those without the network have detector.json alone.
_SPEC_ONLY = (PREPROCESS, POSTPROCESS)
# Somebody else's models of these names stay, unless there is a recogniser.
_READING = (*READING_MODELS, RECOGNISE)
# An ensemble's folder of its version is empty, and object stores have no empty folders.
_PLACEHOLDER = "README"
_PLACEHOLDER_TEXT = (
    "An ensemble is its configuration. This file keeps the folder of its version where there are no empty ones.\n"
)

# What `publish` writes besides the bundle and the environment.
_CONFIGURATION_BYTES = 1 << 20
_OTHER_DISK = "name a folder of another file system (temporary ones: TMPDIR)"


def publish(options: PublishOptions) -> Path:
    """Write the models and the bundle as a repository that a Triton can serve; returns its folder.

    The repository is self-contained: it can be moved or mounted. So is each model in it, unless there is an
    environment, which is one file for all; then Triton cannot serve it from an object store. The Python of the Triton
    that serves it needs `ocdserve[models]`, unless there is an environment.

    Raises:
        InvalidInputError: The bundle is not valid, or the folder holds something else or cannot be written.
        UnavailableError: The bundle was built for an engine, which Python does not execute, or there is no room for it.
    """
    bundle = Bundle.load(options.bundle, options.require_manifest)
    engine = _engine(bundle) if options.network == "tensorrt_plan" else None
    recogniser = RecogniserBundle.load(options.recogniser, options.require_manifest) if options.recogniser else None
    for each in (bundle, recogniser) if recogniser else (bundle,):
        if options.gpu:
            _check_gpu_bundle(each, options.runtime)
        elif engine is None or each is recogniser:
            check_executable(each, options.runtime)
    left_out = () if recogniser else _READING
    # The fused models execute the network themselves, in Python.
    models = [name for name in MODELS if name not in left_out and (engine is None or name not in FUSED_MODELS)]
    contents = _Contents(bundle, recogniser, engine, models)
    repository = options.repository
    if repository.exists() and not repository.is_dir():
        raise InvalidInputError(f"{repository} is a file. Name a folder to publish into.")
    others = (path for path in repository.glob("*") if path.name not in MODELS)
    strange = sorted(path.name for path in others if not (path / "config.pbtxt").is_file())
    if strange:
        raise InvalidInputError(
            f"{repository} holds {', '.join(strange)} and is no model repository; publish into an empty folder."
        )
    for name in MODELS:
        if name in models or name not in _READING:
            _check_replaceable(repository / name)
    absent = not repository.exists()
    packed = options.environment.path if options.environment else None
    files = [file for each in (bundle, recogniser) if each for file in (each.model_path, each.engine_path)]
    size = sum(path.stat().st_size for path in filter(None, (*files, packed)))
    check_space(_existing(repository), size + _CONFIGURATION_BYTES, "the model repository", _OTHER_DISK)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        _write(options, contents)
    except OSError as error:
        if absent:
            with suppress(OSError):
                repository.rmdir()
        # Of copytree: a list of what failed, each with its reason last.
        reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror
        raise InvalidInputError(f"cannot write the model repository {str(repository)!r}: {reason}") from error
    return repository


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


@dataclass(frozen=True)
class _Contents:
    """What is published.

    Attributes:
        bundle: The detector.
        recogniser: None: there is none.
        engine: The detector's engine, where Triton executes it.
        models: Names of the models.
    """

    bundle: Bundle
    recogniser: RecogniserBundle | None
    engine: Path | None
    models: Sequence[str]


def _write(options: PublishOptions, contents: _Contents) -> None:
    # Next to the repository, since a Triton may look into it; what is the root of a mounted volume has nothing next to
    # it that could be moved there.
    try:
        _write_by_draft(options, contents, options.repository.parent)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EROFS, errno.EACCES):
            raise
        _write_by_draft(options, contents, options.repository)


def _write_by_draft(options: PublishOptions, contents: _Contents, parent: Path) -> None:
    repository, templates = options.repository, template_repository()
    # Everything is written to a draft first: the bundle may be inside the repository that is replaced.
    with tempfile.TemporaryDirectory(prefix=f".{repository.name}-", dir=parent) as aside:
        draft = Path(aside)
        for name in contents.models:
            ignored = shutil.ignore_patterns("__pycache__", ".gitkeep")
            shutil.copytree(templates / name, draft / name, ignore=ignored)
            (draft / name / "1").mkdir(exist_ok=True)
            if not any((draft / name / "1").iterdir()):
                (draft / name / "1" / _PLACEHOLDER).write_text(_PLACEHOLDER_TEXT, "utf-8")
            path = draft / name / "config.pbtxt"
            config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
            configure(config, options, contents.bundle, contents.recogniser)
            path.write_text(text_format.MessageToString(config), "utf-8")
        contents.bundle.save(draft / NETWORK / BUNDLE_FOLDER)
        if contents.recogniser:
            contents.recogniser.save(draft / RECOGNISE / RECOGNISER_FOLDER)
        for name in contents.models:
            if name in _SPEC_ONLY:
                contents.bundle.save_spec(draft / name / BUNDLE_FOLDER)
            elif name in FUSED_MODELS:
                _link(draft / NETWORK / BUNDLE_FOLDER, draft / name / BUNDLE_FOLDER)
            if name == OCR_FUSED:
                _link(draft / RECOGNISE / RECOGNISER_FOLDER, draft / name / RECOGNISER_FOLDER)
        if options.environment:
            shutil.copyfile(options.environment.path, draft / NETWORK / ENVIRONMENT_FILE)
        if contents.engine is not None:
            shutil.copyfile(contents.engine, draft / NETWORK / "1" / "model.plan")
            (draft / NETWORK / "1" / "model.py").unlink()
        _exchange(repository, draft, contents.models)


def _link(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=link_or_copy)


def _exchange(repository: Path, draft: Path, models: Sequence[str]) -> None:
    """Move the models of the draft into the repository and ours that were there into `draft / "old"`: all, or none."""
    old = draft / "old"
    old.mkdir()
    ours = (name for name in MODELS if (repository / name).exists() and (name in models or _is_ours(repository / name)))
    moves = [(repository / name, old / name) for name in ours]
    moves += [(draft / name, repository / name) for name in models]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise


def template_repository() -> Path:
    """The `model_repository/` that ocdserve ships: in the package, or in the source tree of an editable install."""
    package = Path(str(importlib.resources.files("ocdserve.backend")))
    for candidate in (package / "model_repository", package.parents[2] / "model_repository"):
        if (candidate / NETWORK / "config.pbtxt").is_file():
            return candidate
    raise InvalidInputError(f"the model repository templates are missing from {package}. Install ocdserve again.")


def _check_replaceable(model: Path) -> None:
    """Raise InvalidInputError when a folder was not written by a publication."""
    if not _is_ours(model):
        raise InvalidInputError(
            f"{model} holds a model that ocdserve did not write. Rename it, or publish into another folder."
        )


def _is_ours(model: Path) -> bool:
    """Whether a folder was written by a publication, or holds nothing."""
    code, config = model / "1" / "model.py", model / "config.pbtxt"
    if code.is_file():
        return "ocdserve" in code.read_text("utf-8", "replace")
    if any(path.name != _PLACEHOLDER for path in model.glob("*/*")):
        # An engine has no code, but its bundle is next to it.
        return (model / BUNDLE_FOLDER / SPEC_FILE).is_file()
    if config.is_file():
        # An ensemble is its configuration.
        return f'"{NETWORK}"' in config.read_text("utf-8", "replace")
    return not model.is_file() and not any(path.is_file() for path in model.glob("*"))


def _engine(bundle: Bundle) -> Path:
    if bundle.engine_path is None:
        raise InvalidInputError(
            f"the bundle {bundle.spec.name} holds no TensorRT engine. Build one: ocdserve build --runtime tensorrt ..."
        )
    if bundle.spec.runtime != "tensorrt":
        raise InvalidInputError(
            f"Triton's TensorRT backend executes engines of TensorRT; the one of {bundle.spec.name} was made for "
            f"{bundle.spec.runtime}. Build with --runtime tensorrt, on a machine with the GPU that will serve."
        )
    return bundle.engine_path


def _check_gpu_bundle(bundle: AnyBundle[Any], asked: str | None) -> None:
    runtime = gpu_runtime(bundle, asked)
    if RUNTIMES[runtime].takes_engine and (bundle.engine_path is None or bundle.spec.runtime != runtime):
        raise InvalidInputError(
            f"the bundle {bundle.spec.name} holds no engine of {runtime}. Build one: ocdserve build --runtime "
            f"{runtime} ..., or publish with --runtime {ANY_BUNDLE_ON_GPU}."
        )
