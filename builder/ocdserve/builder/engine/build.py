# SPDX-License-Identifier: Apache-2.0
"""Build a serialised engine from a typed ONNX network, with TensorRT or TensorRT-RTX.

Both runtimes are used strongly typed only: the graph's casts and QuantizeLinear/DequantizeLinear pairs determine FP16
and INT8, never a flag.
"""

import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from ocdserve.backend.files import write_atomically
from ocdserve.backend.network.engine_library import Watch
from ocdserve.backend.network.options import RUNTIMES
from ocdserve.builder.engine.options import EngineConfig, EngineRuntime, ShapeProfile
from ocdserve.builder.engine.targets import Library, architectures, load
from ocdserve.builder.progress import SILENT, Progress, Task
from ocdserve.contract import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from tensorrt import Builder, IBuilderConfig, IHostMemory, INetworkDefinition, OnnxParser, ParserError

_POLL_S = 0.1

# A phase of fewer steps only groups others; only longer ones are reported with a percentage.
_COUNTED_STEPS = 10

# Remedies, by a part of the operator's name or of the runtime's reason in lower case.
_ADVICE = {
    "deformconv": "Lower deformable convolutions to standard operators first.",
    "uint8": "A uint8 input must be cast before any other operator, and a uint8 output must come from a cast.",
    "same input types": "Strongly typed networks convert nothing by themselves: cast the inputs to one type.",
}


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        plan: The serialised engine. Two builds of one network differ, so never compare them.
        profile: Input shapes; static dimensions of the network take precedence over the requested ones. Of several
            profiles the one with all shapes.
        warnings: Warnings of the runtime during the build.
        build_s: Duration of the build, seconds.
    """

    plan: bytes = field(repr=False)
    profile: ShapeProfile
    warnings: tuple[str, ...]
    build_s: float


def serialised(model: onnx.ModelProto | bytes) -> bytes:
    """The network as bytes, equal for equal networks."""
    if isinstance(model, bytes):
        return model
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def build_engine(
    model: onnx.ModelProto | bytes,
    runtime: EngineRuntime,
    profile: ShapeProfile,
    config: EngineConfig,
    progress: Progress = SILENT,
) -> Engine:
    """Build an engine; Ctrl-C stops the builder at its next step.

    Args:
        model: Typed network with one input, N x 3 x H x W or uint8 N x H x W x 3 pixels, dynamic or static.
        runtime: `tensorrt` builds on the GPU that it is for, `tensorrt-rtx` ahead of time and without one.
        profile: Input shapes.
        config: GPUs and settings, and whether there is a profile for single images; the other batches and the store
            are for the caller.
        progress: Reports the phases of the builder.

    Raises:
        InvalidInputError: The network is not valid ONNX, has an unsupported operator or shape, or cannot be built with
            this configuration; the message names the node and the runtime's reason.
        UnavailableError: The runtime is not installed, or this machine lacks the GPU that it needs.
    """
    built_for = architectures(runtime, config)
    library = load(runtime)
    begin = time.monotonic()
    with library.lock:
        parsed = parse(model, library)
        settings = _settings(parsed.builder, runtime, config, built_for, library.trt)
        profile = _add_profiles(parsed, settings, profile, config)
        cache = _TimingCache(settings, config.timing_cache) if config.timing_cache else None
        label = f"{RUNTIMES[runtime].title} engine for {', '.join(built_for)}"
        watch = library.watch()
        host_memory = _run(parsed, settings, library.trt, progress, label)
        if host_memory is None:
            reason = watch.reason()
            failed = UnavailableError if "Cuda Runtime" in reason else InvalidInputError
            raise failed(f"{library.title} cannot build the network: {reason}")
        if cache:
            cache.save()
        return Engine(bytes(host_memory), profile, parsed.watch.warnings(), time.monotonic() - begin)


@dataclass(frozen=True)
class Parsed:
    """A network in the runtime's representation. The parser owns the weights: keep it as long as the network.

    Attributes:
        watch: What the library says from the parsing on.
    """

    builder: "Builder"
    network: "INetworkDefinition"
    parser: "OnnxParser"
    watch: Watch


def parse(model: onnx.ModelProto | bytes, library: Library) -> Parsed:
    """Parse a network.

    Raises:
        InvalidInputError: It is not an ONNX network, or has a node that the runtime does not support.
    """
    data = serialised(model)
    try:
        graph = onnx.load_from_string(data).graph
    except Exception as error:  # protobuf raises exceptions of its own
        raise InvalidInputError(f"the network is not readable ONNX: {error}") from error
    if not graph.output:
        raise InvalidInputError("the network is not readable ONNX: it has no outputs")
    watch = library.watch()
    trt = library.trt
    builder = trt.Builder(library.logger)
    network = builder.create_network(_network_flags(library))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(data) or parser.num_errors:
        raise InvalidInputError(_parser_message(parser, graph, library.title, watch))
    return Parsed(builder, network, parser, watch)


def _network_flags(library: Library) -> int:
    """Strong typing is an option before TensorRT 11, and the only mode since and in TensorRT-RTX."""
    if library.runtime == "tensorrt" and int(library.version.split(".")[0]) < 11:
        return 1 << int(library.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _parser_message(parser: "OnnxParser", graph: onnx.GraphProto, title: str, watch: Watch) -> str:
    lines = [_parser_error(parser.get_error(index), graph) for index in range(parser.num_errors)]
    return f"{title} does not take the network: " + " ".join(lines or [watch.reason()])


def _parser_error(error: "ParserError", graph: onnx.GraphProto) -> str:
    # Without a GPU the library also reports that, in lines with this prefix.
    reason = " ".join(line for line in error.desc().splitlines() if not line.startswith("[checkMacros")).rstrip(".")
    if not 0 <= error.node() < len(graph.node):
        return f"{reason}."
    node = graph.node[error.node()]
    name = error.node_name() or node.name or ", ".join(node.output)
    operator = error.node_operator() or node.op_type
    advice = {text for key, text in _ADVICE.items() if key in f"{operator} {reason}".lower()}
    return " ".join([f"node {name!r} ({operator}): {reason}.", *sorted(advice)])


def _settings(
    builder: "Builder", runtime: EngineRuntime, config: EngineConfig, built_for: tuple[str, ...], trt: Any
) -> "IBuilderConfig":
    settings = builder.create_builder_config()
    settings.builder_optimization_level = config.optimization_level
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Lets a context take the memory for its own shape instead of the largest.
    settings.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if config.workspace_bytes is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_bytes)
    if config.hardware_compatibility != "none":
        level = getattr(trt.HardwareCompatibilityLevel, config.hardware_compatibility.upper())
        settings.hardware_compatibility_level = level
    if config.version_compatible:
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if runtime == "tensorrt-rtx":
        # An execution that allocates memory cannot be captured in a CUDA graph.
        settings.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        settings.num_compute_capabilities = len(built_for)
        for index, name in enumerate(built_for):
            settings.set_compute_capability(getattr(trt.ComputeCapability, name.replace("sm_", "SM")), index)
    return settings


def _add_profiles(
    parsed: Parsed, settings: "IBuilderConfig", wanted: ShapeProfile, config: EngineConfig
) -> ShapeProfile:
    """Add the profiles; returns the first, which has all shapes."""
    if parsed.network.num_inputs != 1:
        raise InvalidInputError(f"the network must have one input; got {parsed.network.num_inputs}")
    source = parsed.network.get_input(0)
    shape = tuple(source.shape)
    channel = 1 if len(shape) == 4 and shape[1] == 3 and source.dtype.name != "UINT8" else 3
    if len(shape) != 4 or shape[channel] != 3:
        raise InvalidInputError(
            f"input {source.name!r} must be N x 3 x H x W, or uint8 N x H x W x 3, with its three channels fixed; "
            f"got {source.dtype.name} {' x '.join('?' if length < 0 else str(length) for length in shape)}"
        )
    static = [length for axis, length in enumerate(shape) if axis != channel]
    profile = _fitted(wanted, static)
    for each in config.profiles(profile):
        shapes = []
        for free in (each.min, each.opt, each.max):
            full = list(free)
            full.insert(channel, 3)
            shapes.append(tuple(full))
        added = parsed.builder.create_optimization_profile()
        added.set_shape(source.name, *shapes)
        settings.add_optimization_profile(added)
    return profile


def _fitted(profile: ShapeProfile, static: list[int]) -> ShapeProfile:
    """The profile with the network's static dimensions; negative ones are dynamic."""
    for name, length, low, high in zip(("batch", "height", "width"), static, profile.min, profile.max, strict=True):
        if length >= 0 and not low <= length <= high:
            raise InvalidInputError(
                f"the network's {name} is fixed to {length}, but the profile asks for {low} to {high}; "
                "export it with a dynamic one, or choose a resize policy and batch that agree"
            )
    shapes = (
        tuple(free if length < 0 else length for free, length in zip(shape, static, strict=True))
        for shape in (profile.min, profile.opt, profile.max)
    )
    return ShapeProfile(*shapes)  # type: ignore[arg-type]  # three each, by the line above


def _run(parsed: Parsed, settings: "IBuilderConfig", trt: Any, progress: Progress, label: str) -> "IHostMemory | None":
    """Run the builder in a thread, because the main thread does not handle Ctrl-C inside a C call."""
    monitor = _monitor(trt)
    settings.progress_monitor = monitor
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(parsed.builder.build_serialized_network(parsed.network, settings))
        except BaseException as error:
            future.set_exception(error)

    # A daemon, so that a second Ctrl-C ends the process without waiting for the builder's next step.
    threading.Thread(target=work, name="engine-builder", daemon=True).start()
    try:
        with progress.task(label) as task:
            while not _done(future):
                _follow(monitor, task, progress, future)
    except BaseException:
        monitor.cancelled = True
        wait([future])
        raise
    return future.result()


def _done(future: "Future[Any]") -> bool:
    return bool(wait([future], _POLL_S).done)


def _follow(monitor: Any, task: Task, progress: Progress, future: "Future[Any]") -> None:
    """Report a counted phase until it ends, or else the name of the current phase."""
    phases: tuple[_Phase, ...] = monitor.phases
    counted = next((phase for phase in phases if phase.steps >= _COUNTED_STEPS), None)
    if counted is None:
        task.advance(0, phases[-1].name if phases else "")
        return
    with progress.task(counted.name, counted.steps) as part:
        reported = 0
        while counted in monitor.phases and not _done(future):
            steps, reported = counted.finished - reported, counted.finished
            part.advance(steps)


@dataclass(eq=False)
class _Phase:
    name: str
    steps: int
    finished: int = 0


def _monitor(trt: Any) -> Any:
    """A monitor that tracks the open phases, outermost first; the builder calls it from its own threads."""
    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]  # known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self.phases: tuple[_Phase, ...] = ()
            self.cancelled = False
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self.phases = (*self.phases, _Phase(phase_name, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                ended = self._newest(phase_name)
                self.phases = tuple(phase for phase in self.phases if phase is not ended)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phase = self._newest(phase_name)
            if phase is not None:
                phase.finished = step + 1
            return not self.cancelled

        def _newest(self, name: str) -> _Phase | None:
            return next((phase for phase in reversed(self.phases) if phase.name == name), None)

    return Monitor()


class _TimingCache:
    """Measured kernel times in a file shared by several builds."""

    def __init__(self, settings: "IBuilderConfig", path: Path) -> None:
        self._settings = settings
        self._path = path
        self._cache = settings.create_timing_cache(self._stored())
        # A cache of another GPU or release is ignored and later replaced.
        if self._cache is None or not settings.set_timing_cache(self._cache, False):
            self._cache = settings.create_timing_cache(b"")
            settings.set_timing_cache(self._cache, False)

    def save(self) -> None:
        """Write the times of this build, merged with those that other builds have written meanwhile."""
        stored = self._stored()
        other = self._settings.create_timing_cache(stored) if stored else None
        if other is not None:
            self._cache.combine(other, False)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, bytes(self._cache.serialize()))

    def _stored(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
