# SPDX-License-Identifier: Apache-2.0
"""Publishing: a complete Triton model repository around a bundle."""

import importlib.resources
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.network import RuntimeOptions
from ocdserve.contract import MODELS, NETWORK, InvalidInputError

# Where the bundle lies in a published repository, seen from the folder of any model.
_BUNDLE_FOLDER = "bundle"
_BUNDLE_PARAMETER = f"../{NETWORK}/{_BUNDLE_FOLDER}"


@dataclass(frozen=True)
class PublishOptions:
    """What to publish, and where.

    Attributes:
        repository: Folder to write; it must be absent or empty, or hold an earlier publication.
        bundle: Bundle folder; None for the default detector.
        runtime: Runtime of the network; None lets each server take the fastest that it has.
        threads: Cores for the network; None: all that the server has.
        streams: Images in the network at the same time.

    Raises:
        InvalidInputError: An option is out of its range.
    """

    repository: Path
    bundle: Path | None = None
    runtime: str | None = None
    threads: int | None = None
    streams: int = 1

    def __post_init__(self) -> None:
        RuntimeOptions(self.runtime, self.threads, self.streams)


def publish(options: PublishOptions) -> Path:
    """Write the models and the bundle as a repository that a Triton can serve; returns its folder.

    The repository refers to nothing outside of itself, it can be moved or mounted. The Python of the Triton
    that serves it needs `ocdserve[server]`.

    Raises:
        InvalidInputError: The bundle is not valid, or the folder holds something else.
    """
    bundle = Bundle.load(options.bundle)
    repository = options.repository
    if repository.exists() and not repository.is_dir():
        raise InvalidInputError(f"{repository} is a file. Name a folder to publish into.")
    strange = sorted(path.name for path in repository.glob("*") if path.name not in MODELS)
    if strange:
        raise InvalidInputError(f"{repository} holds {', '.join(strange)}; publish into an empty folder.")
    for name in MODELS:
        _check_replaceable(repository / name)
    repository.mkdir(parents=True, exist_ok=True)
    templates = template_repository()
    # All is written aside first: the bundle may lie in the very repository that is replaced.
    with tempfile.TemporaryDirectory(prefix=f".{repository.name}-", dir=repository.parent) as aside:
        draft = Path(aside)
        for name in MODELS:
            ignored = shutil.ignore_patterns("__pycache__", ".gitkeep")
            shutil.copytree(templates / name, draft / name, ignore=ignored)
            (draft / name / "1").mkdir(exist_ok=True)
            _configure(draft / name / "config.pbtxt", options)
        bundle.save(draft / NETWORK / _BUNDLE_FOLDER)
        for name in MODELS:
            shutil.rmtree(repository / name, ignore_errors=True)
            (draft / name).rename(repository / name)
    return repository


def template_repository() -> Path:
    """The `model_repository/` that ocdserve ships: in the package, or in the source tree of an editable install."""
    package = Path(str(importlib.resources.files("ocdserve.backend")))
    for candidate in (package / "model_repository", package.parents[2] / "model_repository"):
        if (candidate / NETWORK / "config.pbtxt").is_file():
            return candidate
    raise InvalidInputError(f"the model repository templates are missing from {package}. Install ocdserve again.")


def _check_replaceable(model: Path) -> None:
    """Raise InvalidInputError when a folder was not written by a publication."""
    code = model / "1" / "model.py"
    ours = "ocdserve" in code.read_text("utf-8", "replace") if code.is_file() else not any(model.glob("*/*"))
    if not ours:
        raise InvalidInputError(f"{model} holds a model that is not ours; publish into an empty folder.")


def _configure(path: Path, options: PublishOptions) -> None:
    config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
    values = {
        "bundle": _BUNDLE_PARAMETER,
        "runtime": options.runtime or "",
        "threads": str(options.threads or 0),
        "streams": str(options.streams),
    }
    for name in config.parameters:
        config.parameters[name].string_value = values[name]
    path.write_text(text_format.MessageToString(config), "utf-8")
