# SPDX-License-Identifier: Apache-2.0
"""Publishing: a complete Triton model repository around a bundle."""

import errno
import importlib.resources
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ocdserve.backend.files import check_space, link_or_copy
from ocdserve.backend.gpu.decode import decoder_kind
from ocdserve.backend.network.load import check_executable
from ocdserve.backend.network.options import ANY_BUNDLE_ON_GPU, GPU_RUNTIMES, RUNTIMES, gpu_runtime
from ocdserve.backend.publish.environment import (
    ENVIRONMENT_FILE,
    ENVIRONMENT_PARAMETER,
    ENVIRONMENT_PATH,
    PackedEnvironment,
)
from ocdserve.backend.publish.tuning import Tuning
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.detector_spec import SPEC_FILE
from ocdserve.contract import (
    FUSED,
    GENERATION_PARAMETER,
    MODELS,
    NETWORK,
    NETWORK_IMAGE,
    POSTPROCESS,
    PREPROCESS,
    READING_MODELS,
    RECOGNISE,
    REQUEST_DEFAULTS,
    InvalidInputError,
    Limits,
    not_one_of,
)

NetworkPlatform = Literal["python", "tensorrt_plan"]

# Folder of what a model needs of the bundle, in the model's own: a Triton that reads a repository from an object store
# copies each model to a folder of its own. Those without the network have detector.json alone.
_BUNDLE_FOLDER = "bundle"
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

# Batches on the GPU at the same time by default: one is copied while the other computes.
_SLOTS = 2


@dataclass(frozen=True)
class PublishOptions:
    """What to publish, and where.

    Attributes:
        repository: Folder to write; it may hold an earlier publication, which is replaced, and other models, which
            stay.
        bundle: Bundle folder; None for the default detector.
        runtime: Runtime of the network; None: the fastest that is installed on the server.
        threads: Cores for the network, on a GPU for decoding; None: all that the server has.
        streams: Images in the network at the same time; on a GPU batches, where 1 means 2.
        network: What executes the network: `python`, our model in Triton's Python backend, or `tensorrt_plan`,
            Triton's TensorRT backend with the engine of the bundle.
        gpu: All stages on the server's GPUs, one instance of each model on each of them.
        decoder: JPEG decoder on a GPU (see `ocdserve.backend.gpu.decode.make_decoder`).
        instances: Processes of each model that holds the network; see `Tuning`, also for
            the next three.
        queue_size: Requests that may wait for each model.
        queue_delay_us: How long a request waits for others to share its batch, in microseconds.
        queue_time_ms: How long a request may take when there is a queue, in milliseconds.
        require_manifest: Whether to refuse a bundle without a manifest.
        limits: Limits of images and parameters.
        environment: Packages of the models for a Triton whose Python lacks them, which becomes part of the repository;
            None: its Python has them.

    Raises:
        InvalidInputError: An option is out of its range, or they contradict each other.
    """

    repository: Path
    bundle: Path | None = None
    runtime: str | None = None
    threads: int | None = None
    streams: int = 1
    network: NetworkPlatform = "python"
    gpu: bool = False
    decoder: str = "cpu"
    instances: int = 1
    queue_size: int = 256
    queue_delay_us: int = 0
    queue_time_ms: int = 1000
    require_manifest: bool = False
    limits: Limits = field(default_factory=Limits)
    environment: PackedEnvironment | None = None

    def __post_init__(self) -> None:
        Tuning(**{item.name: getattr(self, item.name) for item in fields(Tuning)})
        if decoder_kind(self.decoder) != "cpu" and not self.gpu:
            raise InvalidInputError(f"the decoder {self.decoder} needs a GPU; publish with --gpu, or leave it out")
        if self.runtime is not None and (self.runtime in GPU_RUNTIMES) != self.gpu:
            raise InvalidInputError(
                f"the runtime {self.runtime} computes on the {'CPU' if self.gpu else 'GPU'}; publish "
                f"{'without' if self.gpu else 'with'} --gpu, or name another runtime"
            )
        if self.network not in get_args(NetworkPlatform):
            raise not_one_of("network", self.network, get_args(NetworkPlatform))

    @classmethod
    def tuned(cls, repository: Path, bundle: Path | None, tuning: Tuning, **more: Any) -> "PublishOptions":
        """Options with the values of a tuning; `more` are the other fields."""
        return cls(repository, bundle, **asdict(tuning), **more)


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
    if options.gpu:
        _check_gpu_bundle(bundle, options.runtime)
    elif engine is None:
        check_executable(bundle, options.runtime)
    # The fused model executes the network itself, in Python.
    models = [name for name in MODELS if name not in _READING and (engine is None or name != FUSED)]
    repository = options.repository
    if repository.exists() and not repository.is_dir():
        raise InvalidInputError(f"{repository} is a file. Name a folder to publish into.")
    others = (path for path in repository.glob("*") if path.name not in MODELS)
    strange = sorted(path.name for path in others if not (path / "config.pbtxt").is_file())
    if strange:
        raise InvalidInputError(
            f"{repository} holds {', '.join(strange)} and is no model repository; publish into an empty folder."
        )
    replaced = [name for name in MODELS if name not in _READING or name in models or _is_ours(repository / name)]
    for name in replaced:
        _check_replaceable(repository / name)
    absent = not repository.exists()
    packed = options.environment.path if options.environment else None
    size = sum(path.stat().st_size for path in filter(None, (bundle.model_path, bundle.engine_path, packed)))
    check_space(_existing(repository), size + _CONFIGURATION_BYTES, "the model repository", _OTHER_DISK)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        _write(options, bundle, engine, models, replaced)
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


def _write(
    options: PublishOptions, bundle: Bundle, engine: Path | None, models: Sequence[str], replaced: Sequence[str]
) -> None:
    # Next to the repository, since a Triton may look into it; what is the root of a mounted volume has nothing next to
    # it that could be moved there.
    try:
        _write_by_draft(options, bundle, engine, models, replaced, options.repository.parent)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EROFS, errno.EACCES):
            raise
        _write_by_draft(options, bundle, engine, models, replaced, options.repository)


def _write_by_draft(
    options: PublishOptions,
    bundle: Bundle,
    engine: Path | None,
    models: Sequence[str],
    replaced: Sequence[str],
    parent: Path,
) -> None:
    repository, templates = options.repository, template_repository()
    # Everything is written to a draft first: the bundle may be inside the repository that is replaced.
    with tempfile.TemporaryDirectory(prefix=f".{repository.name}-", dir=parent) as aside:
        draft = Path(aside)
        for name in models:
            ignored = shutil.ignore_patterns("__pycache__", ".gitkeep")
            shutil.copytree(templates / name, draft / name, ignore=ignored)
            (draft / name / "1").mkdir(exist_ok=True)
            if not any((draft / name / "1").iterdir()):
                (draft / name / "1" / _PLACEHOLDER).write_text(_PLACEHOLDER_TEXT, "utf-8")
            path = draft / name / "config.pbtxt"
            config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
            _set_parameters(config, options, bundle)
            if engine is not None:
                _use_engine(config)
            _set_queue(config, options)
            path.write_text(text_format.MessageToString(config), "utf-8")
        bundle.save(draft / NETWORK / _BUNDLE_FOLDER)
        for name in models:
            if name in _SPEC_ONLY:
                bundle.save_spec(draft / name / _BUNDLE_FOLDER)
            elif name == FUSED:
                source = draft / NETWORK / _BUNDLE_FOLDER
                shutil.copytree(source, draft / name / _BUNDLE_FOLDER, copy_function=link_or_copy)
        if options.environment:
            shutil.copyfile(options.environment.path, draft / NETWORK / ENVIRONMENT_FILE)
        if engine is not None:
            shutil.copyfile(engine, draft / NETWORK / "1" / "model.plan")
            (draft / NETWORK / "1" / "model.py").unlink()
        _exchange(repository, draft, models, replaced)


def _exchange(repository: Path, draft: Path, models: Sequence[str], replaced: Sequence[str]) -> None:
    """Move the models of the draft into the repository and those replaced into `draft / "old"`: all, or none."""
    old = draft / "old"
    old.mkdir()
    moves = [(repository / name, old / name) for name in replaced if (repository / name).exists()]
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
        return (model / _BUNDLE_FOLDER / SPEC_FILE).is_file()
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


def _use_engine(config: model_config_pb2.ModelConfig) -> None:
    """Have Triton's TensorRT backend execute the network, without the inputs that an engine does not have."""
    not_images = {tensor.name for tensor in MODELS[NETWORK].inputs} - {NETWORK_IMAGE.name}
    for step in config.ensemble_scheduling.step:
        if step.model_name == NETWORK:
            for name in not_images:
                del step.input_map[name]
    if config.name != NETWORK:
        return
    config.backend = ""
    config.platform = "tensorrt_plan"
    kept = [tensor for tensor in config.input if tensor.name not in not_images]
    del config.input[:]
    config.input.extend(kept)
    for tensor in config.input:
        tensor.allow_ragged_batch = False  # an engine takes one array: images of one size share an execution
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1)
    config.parameters.clear()


def _set_parameters(config: model_config_pb2.ModelConfig, options: PublishOptions, bundle: Bundle) -> None:
    values = {
        "bundle": _BUNDLE_FOLDER,
        "runtime": options.runtime or "",
        "threads": str(options.threads or 0),
        "streams": str(options.streams),
        # Each of the processes has a queue of its own.
        "queue_size": str(-(-options.queue_size // (options.instances if config.name == FUSED else 1))),
        "queue_time_ms": str(options.queue_time_ms),
        GENERATION_PARAMETER: bundle.digest(),
        REQUEST_DEFAULTS: json.dumps(bundle.spec.postprocess.request_defaults()),
    }
    if options.gpu and config.backend == "python":
        _put_on_gpu(config)
        values["runtime"] = gpu_runtime(bundle, options.runtime)
        values["gpu"] = "true"
        values["slots"] = str(options.streams if options.streams > 1 else _SLOTS)
        values["decoder"] = options.decoder
        if config.name == FUSED:
            config.parameters["queue_delay_us"].string_value = ""
            values["queue_delay_us"] = str(options.queue_delay_us)
        # Otherwise Triton copies every tensor to the host before a Python model sees it.
        values["FORCE_CPU_ONLY_INPUT_TENSORS"] = "no"
    for name in config.parameters:
        config.parameters[name].string_value = values[name]
    if config.backend == "python":
        config.parameters[GENERATION_PARAMETER].string_value = values[GENERATION_PARAMETER]
        if options.environment:
            config.parameters[ENVIRONMENT_PARAMETER].string_value = ENVIRONMENT_PATH
        for name, value in asdict(options.limits).items():
            if value != getattr(Limits(), name):
                config.parameters[name].string_value = str(value)


def _set_queue(config: model_config_pb2.ModelConfig, options: PublishOptions) -> None:
    """Set the instances of the models that hold the network, and the delay of the queues that are Triton's."""
    if config.name in (FUSED, NETWORK):
        for group in config.instance_group:
            group.count = options.instances
    if config.HasField("dynamic_batching"):
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us


def _put_on_gpu(config: model_config_pb2.ModelConfig) -> None:
    """Set one instance on each GPU, and the additional parameters of a model on a GPU."""
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_GPU, count=1)
    if "streams" in config.parameters:
        del config.parameters["streams"]
    for name in ("gpu", "slots", "decoder", "FORCE_CPU_ONLY_INPUT_TENSORS"):
        config.parameters[name].string_value = ""


def _check_gpu_bundle(bundle: Bundle, asked: str | None) -> None:
    runtime = gpu_runtime(bundle, asked)
    if RUNTIMES[runtime].takes_engine and (bundle.engine_path is None or bundle.spec.runtime != runtime):
        raise InvalidInputError(
            f"the bundle {bundle.spec.name} holds no engine of {runtime}. Build one: ocdserve build --runtime "
            f"{runtime} ..., or publish with --runtime {ANY_BUNDLE_ON_GPU}."
        )
