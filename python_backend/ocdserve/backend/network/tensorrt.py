# SPDX-License-Identifier: Apache-2.0
"""Networks as engines of TensorRT or TensorRT-RTX."""

import contextlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ocdserve.backend.device.protocol import Buffer, Device, Stream
from ocdserve.backend.network.engine_library import Library, Watch, load
from ocdserve.backend.network.options import ANY_BUNDLE_ON_GPU, MapType, RuntimeOptions
from ocdserve.backend.network.rtx_kernels import RtxKernels
from ocdserve.backend.spec.bundle import AnyBundle, Bundle
from ocdserve.contract import MAP, NETWORK_IMAGE, InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from tensorrt import ICudaEngine, IExecutionContext, Runtime

# Alignment that TensorRT requires of tensor addresses, in bytes.
_ALIGNMENT = 256

_Shape = tuple[int, int, int]
# Name, memory, and bytes of an image, of an output.
_Target: TypeAlias = tuple[str, Buffer, int]
# Stream, batch, height, width.
_Key = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Profile:
    """Smallest and largest (batch, height, width) of one optimization profile, and the one it is tuned for."""

    index: int
    smallest: _Shape
    tuned: _Shape
    largest: _Shape

    def takes(self, *shape: int) -> bool:
        return all(low <= length <= high for low, length, high in zip(self.smallest, shape, self.largest, strict=True))

    def distance(self, *shape: int) -> float:
        """How far a shape is from the tuned one: the sum of the logarithms of the dimensions' ratios."""
        return sum(abs(math.log(length / tuned)) for length, tuned in zip(shape, self.tuned, strict=True))


@dataclass
class _Scratch:
    """Scratch memory of an engine; contexts of one stream run one after the other and share it."""

    buffer: Buffer
    users: int = 0


@dataclass(frozen=True)
class _Prepared:
    """Contexts for one shape on one stream, by the number of images that one execution takes."""

    contexts: "dict[int, IExecutionContext]" = field(default_factory=dict)
    scratches: list[_Scratch] = field(default_factory=list)


class EngineNetwork:
    """An engine, with an execution context for each shape and stream.

    Args:
        plan: The serialised engine, of a folded network.
        runtime: Runtime that built it.
        device: The GPU.
        name: The bundle's, for messages.

    Attributes:
        source: Name of the engine's input.

    Raises:
        InvalidInputError: The engine is not that of a folded network of this kind.
        UnavailableError: The runtime is not installed, or does not load the engine here.
    """

    source: str

    def __init__(self, plan: bytes, runtime: str, device: Device, name: str) -> None:
        self._library = load(runtime)
        self._device = device
        self._name = name
        self._prepared: dict[_Key, _Prepared] = {}
        self._scratch: dict[int, _Scratch] = {}
        self._lock = threading.Lock()
        self._kernels: RtxKernels | None = None
        if runtime == "tensorrt-rtx":
            self._kernels = RtxKernels(plan, self._library.version, device.name)
        watch = self._library.watch()
        with device.current():
            self._runtime: Runtime = self._library.trt.Runtime(self._library.logger)
            self._engine: ICudaEngine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UnavailableError(
                f"{self._library.title} cannot load the engine of {name} on this GPU ({device.name}): "
                f"{watch.reason()}. Build it with this release, for this GPU."
            )
        self._check_tensors()
        self._profiles = tuple(map(self._profile, range(self._engine.num_optimization_profiles)))

    def check(self, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.check`."""
        self._parts(batch, height, width)

    def _enqueue(
        self, stream: Stream, pixels: Buffer, targets: Sequence[_Target], batch: int, height: int, width: int
    ) -> None:
        key = (stream.handle, batch, height, width)
        with self._device.current():
            prepared = self._prepared.get(key)
            if prepared is None:
                # Not `_lock`, which streams whose shapes are prepared take: contexts are made in milliseconds, and
                # kernels compiled in seconds.
                with self._kernels.lock if self._kernels else contextlib.nullcontext():
                    prepared = self._prepare(stream, batch, height, width)
                    self._execute(prepared, stream, pixels, targets, batch, height, width)
                    if self._kernels:
                        self._kernels.save()
            else:
                self._execute(prepared, stream, pixels, targets, batch, height, width)

    def _execute(
        self,
        prepared: _Prepared,
        stream: Stream,
        pixels: Buffer,
        targets: Sequence[_Target],
        batch: int,
        height: int,
        width: int,
    ) -> None:
        done = 0
        for images in self._parts(batch, height, width):
            context = prepared.contexts[images]
            watch = self._library.watch()
            context.set_tensor_address(self.source, pixels.pointer + done * height * width * 3)
            for name, target, share in targets:
                context.set_tensor_address(name, target.pointer + done * share)
            if not context.execute_async_v3(stream.handle):
                raise self._failed(f"execute {images} x {height} x {width}", watch)
            done += images

    def unrecordable(self) -> str:
        """See `DeviceNetwork.unrecordable`."""
        return ""

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.release`."""
        with self._device.current(), self._lock:
            prepared = self._prepared.pop((stream.handle, batch, height, width), None)
            if prepared is not None:
                self._release_scratch(prepared)

    def close(self) -> None:
        """See `DeviceNetwork.close`."""
        with self._device.current(), self._lock:
            for prepared in self._prepared.values():
                self._release_scratch(prepared)
            self._prepared.clear()
            if self._kernels:
                self._kernels.close()
            self._engine = self._runtime = None

    def _tensors(self) -> dict[str, Any]:
        """Name and type of each of the engine's tensors."""
        engine: ICudaEngine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {tensor: engine.get_tensor_dtype(tensor) for tensor in names}

    def _check_tensors(self) -> None:
        """Raise InvalidInputError unless the engine has the tensors of a network of this kind."""
        raise NotImplementedError

    def _failed(self, what: str, watch: Watch) -> UnavailableError:
        return UnavailableError(f"{self._library.title} cannot {what} of {self._name}: {watch.reason()}")

    def _profile(self, index: int) -> _Profile:
        shapes = self._engine.get_tensor_profile_shape(self.source, index)
        smallest, tuned, largest = (tuple(int(length) for length in shape)[:3] for shape in shapes)
        return _Profile(index, smallest, tuned, largest)  # type: ignore[arg-type]  # three of four dimensions

    def _parts(self, batch: int, height: int, width: int) -> list[int]:
        """Images of each execution; all but the last have the engine's largest batch."""
        fitting = [profile for profile in self._profiles if profile.takes(profile.largest[0], height, width)]
        if not fitting:
            sizes = " or ".join(
                f"{low[1]} x {low[2]} to {high[1]} x {high[2]}"
                for low, high in ((profile.smallest, profile.largest) for profile in self._profiles)
            )
            raise InvalidInputError(
                f"the engine of {self._name} takes images of {sizes} pixels (height x width); got {height} x {width}. "
                "Choose a resize policy within that, or build an engine for the sizes."
            )
        most = max(profile.largest[0] for profile in fitting)
        parts = [most] * (batch // most) + [batch % most] * (batch % most > 0)
        for images in set(parts):
            if not any(profile.takes(images, height, width) for profile in fitting):
                least = min(profile.smallest[0] for profile in fitting)
                raise InvalidInputError(
                    f"the engine of {self._name} takes {least} to {most} images of {height} x {width} pixels at once; "
                    f"{batch} leave {images}. Build an engine that takes single images."
                )
        if len(parts) > 1 and height * width % _ALIGNMENT:
            raise InvalidInputError(
                f"the engine of {self._name} takes {most} images at once, and {batch} of {height} x {width} pixels "
                f"cannot be executed in parts: their pixels are no multiple of {_ALIGNMENT}. Send {most} at a time."
            )
        return parts

    def _prepare(self, stream: Stream, batch: int, height: int, width: int) -> _Prepared:
        prepared = _Prepared()
        try:
            for images in set(self._parts(batch, height, width)):
                prepared.contexts[images] = self._context(stream, prepared, images, height, width)
        except BaseException:
            with self._lock:
                self._release_scratch(prepared)
            raise
        with self._lock:
            self._prepared[(stream.handle, batch, height, width)] = prepared
        return prepared

    def _shaped(self, stream: Stream, *shape: int) -> "IExecutionContext":
        """A context for a shape, without memory of its own."""
        watch = self._library.watch()
        context = _new_context(self._engine, self._library, self._kernels)
        if (
            context is None
            or not context.set_optimization_profile_async(self._nearest(*shape).index, stream.handle)
            or not context.set_input_shape(self.source, (*shape, 3))
        ):
            raise self._failed(_preparing(shape), watch)
        return context

    def _nearest(self, *shape: int) -> _Profile:
        """Of the profiles that take a shape, the one that is tuned nearest to it."""
        fitting = (profile for profile in self._profiles if profile.takes(*shape))
        return min(fitting, key=lambda profile: profile.distance(*shape))

    def _context(self, stream: Stream, prepared: _Prepared, *shape: int) -> "IExecutionContext":
        context: IExecutionContext = self._shaped(stream, *shape)
        # 0 also says that the shape's size could not be found; the profile's is enough for every shape in it.
        size = int(
            context.update_device_memory_size_for_shapes()
            or self._engine.get_device_memory_size_for_profile_v2(self._nearest(*shape).index)
        )
        scratch = self._scratch_of(stream, size)
        prepared.scratches.append(scratch)
        watch = self._library.watch()
        context.set_device_memory(scratch.buffer.pointer, scratch.buffer.size)
        if watch.errors():  # it returns nothing
            raise self._failed(_preparing(shape), watch)
        return context

    def _scratch_of(self, stream: Stream, size: int) -> _Scratch:
        """The stream's scratch memory, with one more user; only the stream's thread asks for it."""
        scratch = self._scratch.get(stream.handle)
        if scratch is None or scratch.buffer.size < size:
            # Captured graphs hold the address of the smaller one, so it lives as long as its users do.
            scratch = _Scratch(self._device.allocate(max(size, 1)))
        with self._lock:
            self._scratch[stream.handle] = scratch
            scratch.users += 1
        return scratch

    def _release_scratch(self, prepared: _Prepared) -> None:
        prepared.contexts.clear()
        for scratch in prepared.scratches:
            scratch.users -= 1
            if not scratch.users:
                scratch.buffer.close()
        self._scratch = {handle: scratch for handle, scratch in self._scratch.items() if scratch.users}


class TensorRtNetwork(EngineNetwork):
    """A detector's engine; a `DeviceNetwork`. A batch larger than it takes is executed in parts, one after the other.

    Attributes:
        map_type: Type of the maps.
    """

    source = NETWORK_IMAGE.name
    map_type: MapType

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """See `DeviceNetwork.enqueue`."""
        share = height * width * (1 if self.map_type == "uint8" else 4)
        self._enqueue(stream, pixels, [(MAP.name, maps, share)], batch, height, width)

    def _check_tensors(self) -> None:
        self.map_type = _map_type(self._tensors(), self._library, self._name)


def _preparing(shape: Sequence[int]) -> str:
    return f"prepare {' x '.join(map(str, shape))}"


def load_engine(bundle: Bundle, options: RuntimeOptions, device: Device) -> TensorRtNetwork:
    """The engine of a bundle on a GPU.

    Raises:
        InvalidInputError: The bundle has no engine of the runtime that the options name, or one with maps of another
            type than theirs.
        UnavailableError: The runtime is not installed, or does not load the engine here.
    """
    network = TensorRtNetwork(*engine_of(bundle, options), device, bundle.spec.name)
    if network.map_type != options.map_type:
        network.close()
        raise InvalidInputError(
            f"the engine of {bundle.spec.name} returns maps of {network.map_type}, and cannot return {options.map_type}"
        )
    return network


def engine_of(bundle: AnyBundle[Any], options: RuntimeOptions) -> tuple[bytes, str]:
    """The serialised engine of a bundle, and its runtime.

    Raises:
        InvalidInputError: The bundle has no engine of the runtime that the options name.
    """
    runtime = str(options.runtime)
    if bundle.engine_path is None or bundle.spec.runtime != runtime:
        holds = "none" if bundle.engine_path is None else f"one of {bundle.spec.runtime}"
        raise InvalidInputError(
            f"the bundle {bundle.spec.name} must hold an engine of {runtime} to be executed by it; it holds {holds}. "
            f"Build one: ocdserve build --runtime {runtime} ..., or name the runtime {ANY_BUNDLE_ON_GPU}."
        )
    return bundle.engine_path.read_bytes(), runtime


def _new_context(engine: "ICudaEngine", library: Library, kernels: RtxKernels | None) -> "IExecutionContext | None":
    """A context without memory of its own, or None; `kernels` are those of TensorRT-RTX."""
    trt = library.trt
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if kernels is None:
        context = engine.create_execution_context(strategy)
    else:
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        # Kernels for the shape are compiled by the first execution: a graph must not capture the fallback kernels that
        # run until then.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        kernels.use(config)
        context = engine.create_execution_context(config)
    if context is not None:
        # An engine that describes its layers also marks each of them for profilers, whenever it is queued.
        context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    return context


def _map_type(tensors: dict[str, Any], library: Library, name: str) -> MapType:
    """Type of an engine's maps; checks that it is the engine of a folded network."""
    trt = library.trt
    types: dict[Any, MapType] = {trt.uint8: "uint8", trt.float32: "float32"}
    if set(tensors) != {NETWORK_IMAGE.name, MAP.name} or tensors[NETWORK_IMAGE.name] != trt.uint8:
        raise InvalidInputError(
            f"the engine of {name} must have the tensors {NETWORK_IMAGE.name} (uint8) and {MAP.name}; it has "
            f"{listed(tensors)}. Build it with `ocdserve build`."
        )
    if tensors[MAP.name] not in types:
        raise InvalidInputError(f"the engine of {name} must return maps of uint8 or float32; got {tensors[MAP.name]}")
    return types[tensors[MAP.name]]


def listed(tensors: dict[str, Any]) -> str:
    """Names and types of tensors, for messages."""
    return ", ".join(f"{tensor} ({dtype})" for tensor, dtype in tensors.items())
