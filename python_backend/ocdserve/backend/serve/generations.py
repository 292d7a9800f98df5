# SPDX-License-Identifier: Apache-2.0
"""The folder that Triton serves: links to the models of one generation, and to the models of others.

A generation is a copy of our models as a repository held them at one moment, so that nobody changes what is served.
While the detector is replaced there are two: the models of the new one are served under names of their own, too, and
`relays`, ensembles of one step that cost no process, stand in for models that are not loaded. Everything happens below
a model's name, which Triton loads in the background when it is served already: readiness never changes.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ocdserve.backend.publish.environment import ENVIRONMENT_FILE, ENVIRONMENT_PARAMETER
from ocdserve.backend.serve.log_lines import BROKEN
from ocdserve.backend.spec.bundle import Bundle, RecogniserBundle, served_digest
from ocdserve.contract import GENERATION_PARAMETER, MODELS, NETWORK, NEXT, RECOGNISE, InvalidInputError

_CONFIG = "config.pbtxt"
# Folders of bundles, and the model whose copy is the one for all.
_BUNDLES = {"bundle": NETWORK, "recogniser": RECOGNISE}


@dataclass(frozen=True)
class Generation:
    """One generation's models: a folder with a folder of each.

    Attributes:
        folder: Where they are; `relays` below it holds stand-ins.
        models: Names of those that have processes or an engine.
        ensembles: Names of the others.
        digest: Of the bundles.
    """

    folder: Path
    models: tuple[str, ...]
    ensembles: tuple[str, ...]
    digest: str

    @property
    def relays(self) -> Path:
        """A stand-in for each of the models, which hands requests on to the same one under its other name."""
        return self.folder / "relays"


class Generations:
    """Copies a repository's models, and links to what is to be served.

    Attributes:
        served: The folder of links, for Triton.
        current: What a start of Triton serves.
        lock: Held by whoever changes links or `current`.
    """

    def __init__(self, directory: Path, source: Path, keep_environment: bool = False) -> None:
        """Copy `source`, a model repository, into the directory, which is created, as the first generation.

        The packed environment of a repository is left out unless it is to be kept: Triton unpacks it at each start, and
        the models run in this Python as well.
        """
        self._keep_environment = keep_environment
        self._directory = directory
        self._source = source
        self._count = 0
        self._moment = 0
        self.lock = threading.RLock()
        self.served = directory / "served"
        self.served.mkdir(parents=True)
        self.current = self.add()
        ours = (*self.current.models, *self.current.ensembles)
        for path in source.iterdir():
            if path.name not in ours and not path.name.startswith("."):
                (self.served / path.name).symlink_to(path.absolute())
        self.settle()

    def add(self) -> Generation:
        """Copy the models of the repository as it is now.

        Raises:
            InvalidInputError: It cannot be read.
        """
        self._count += 1
        folder = self._directory / str(self._count)
        try:
            return self._copy(folder)
        except (OSError, UnicodeError, text_format.ParseError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InvalidInputError(f"cannot read the model repository {str(self._source)!r}: {error}") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _copy(self, folder: Path) -> Generation:
        folder.mkdir()
        configs: dict[str, ModelConfig] = {}
        for name in MODELS:
            model = self._source / name
            if (model / _CONFIG).is_file():
                left_out = () if self._keep_environment else (ENVIRONMENT_FILE,)
                copies = {bundle: owner for bundle, owner in _BUNDLES.items() if self._is_copy(name, owner, bundle)}
                ignored = shutil.ignore_patterns("__pycache__", *left_out, *copies)
                shutil.copytree(model, folder / name, ignore=ignored)
                for bundle, owner in copies.items():
                    # One for all, whatever was changed in the repository.
                    (folder / name / bundle).symlink_to(folder / owner / bundle)
                configs[name] = text_format.Parse((model / _CONFIG).read_text("utf-8"), ModelConfig())
                (folder / name / "1").mkdir(exist_ok=True)
                if left_out and ENVIRONMENT_PARAMETER in configs[name].parameters:
                    del configs[name].parameters[ENVIRONMENT_PARAMETER]
                    _write(folder / name, configs[name])
        ensembles = tuple(name for name, config in configs.items() if config.HasField("ensemble_scheduling"))
        models = tuple(name for name in configs if name not in ensembles)
        digest = _digest(folder)
        generation = Generation(folder, models, ensembles, digest)
        for name in models:
            if digest and GENERATION_PARAMETER in configs[name].parameters:
                configs[name].parameters[GENERATION_PARAMETER].string_value = digest
                _write(folder / name, configs[name])
            # Bytecode that Python adds to a folder makes Triton load its model again: here it cannot be written.
            (folder / name / "1" / "__pycache__").touch()
            _write(folder / f"{name}{NEXT}", _renamed(configs[name]))
            (folder / f"{name}{NEXT}" / "1").rmdir()
            for path in (folder / name).iterdir():
                if path.name != _CONFIG:
                    (folder / f"{name}{NEXT}" / path.name).symlink_to(path)
            _write(generation.relays / name, _relay(configs[name], name, f"{name}{NEXT}"))
            _write(generation.relays / f"{name}{NEXT}", _relay(configs[name], f"{name}{NEXT}", name))
        for name in ensembles:
            if digest:
                configs[name].parameters[GENERATION_PARAMETER].string_value = digest
            _write(folder / name, configs[name])
            for step in configs[name].ensemble_scheduling.step:
                step.model_name += NEXT if step.model_name in models else ""
            _write(generation.relays / name, configs[name])
            _write(folder / f"{name}{NEXT}", _renamed(configs[name]))
        return generation

    def _is_copy(self, name: str, owner: str, bundle: str) -> bool:
        return name != owner and all((self._source / each / bundle).is_dir() for each in (name, owner))

    def link(self, name: str, folder: Path) -> None:
        """Serve a model from a folder from its next load on."""
        # Triton takes for changed what is newer than before, by the time of files and folders.
        self._moment = max(time.time_ns(), self._moment + 1)
        for path in (folder / _CONFIG, folder / "1", *(folder / "1").iterdir(), folder):
            os.utime(path, ns=(self._moment, self._moment))
        draft = self._directory / "link"
        draft.unlink(missing_ok=True)
        draft.symlink_to(folder)
        draft.replace(self.served / name)

    @contextmanager
    def broken_model(self) -> Iterator[str]:
        """Within the block, a model that cannot be loaded: Triton is not ready once it has tried, and serves on."""
        folder = self.served / BROKEN
        _write(folder, ModelConfig(name=BROKEN, backend=BROKEN))
        try:
            yield BROKEN
        finally:
            # A start of Triton would fail because of it.
            shutil.rmtree(folder, ignore_errors=True)

    def unlink(self, name: str) -> None:
        """Serve a model no more."""
        (self.served / name).unlink(missing_ok=True)

    def remove(self, generation: Generation) -> None:
        """Remove a generation's files, which are not served any more."""
        shutil.rmtree(generation.folder, ignore_errors=True)

    def settle(self) -> None:
        """Serve the current generation alone, from the next start of Triton on."""
        for path in self.served.glob(f"*{NEXT}"):
            path.unlink()
        for name in (*self.current.models, *self.current.ensembles):
            self.link(name, self.current.folder / name)


def _digest(folder: Path) -> str:
    bundle, recogniser = (folder / owner / name for name, owner in _BUNDLES.items())
    if not bundle.is_dir():
        return ""
    return served_digest(Bundle.load(bundle), RecogniserBundle.load(recogniser) if recogniser.is_dir() else None)


def _write(folder: Path, config: ModelConfig) -> None:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(text_format.MessageToString(config), "utf-8")


def _renamed(config: ModelConfig) -> ModelConfig:
    """The same model under its other name."""
    copy = ModelConfig()
    copy.CopyFrom(config)
    copy.name = f"{config.name}{NEXT}"
    return copy


def _relay(config: ModelConfig, name: str, target: str) -> ModelConfig:
    """An ensemble with the inputs and outputs of a model, which another one answers."""
    relay = ModelConfig(name=name, platform="ensemble", max_batch_size=config.max_batch_size)
    relay.input.extend(config.input)
    relay.output.extend(config.output)
    step = relay.ensemble_scheduling.step.add(model_name=target, model_version=-1)
    for tensor in relay.input:
        tensor.allow_ragged_batch = False
        step.input_map[tensor.name] = tensor.name
    for tensor in relay.output:
        step.output_map[tensor.name] = tensor.name
    return relay
