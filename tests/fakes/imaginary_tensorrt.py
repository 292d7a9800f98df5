# SPDX-License-Identifier: Apache-2.0
"""The parts of TensorRT that execute engines, and need no GPU.

A detector's engine returns the red channel. A recogniser's has a step for 8 columns, whose class is the red and whose
probability is the green of the first pixel.

A class names the one of TensorRT that it stands for. `tests/python_backend/network/test_tensorrt_contract.py` holds it
to that: it has no public member that the real one lacks, and takes what that takes.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Shape = tuple[int, int, int]
# Smallest and largest shape, and the tuned one where it is not the largest.
Profile = tuple[Shape, Shape] | tuple[Shape, Shape, Shape]
WIDE: Profile = ((1, 32, 32), (4, 256, 256))


class Cache:
    """TensorRT-RTX's compiled kernels: words."""

    stands_for = "IRuntimeCache"

    def __init__(self, trt: "ImaginaryTensorRt") -> None:
        self._trt = trt
        self._words: list[bytes] = []

    def _compiled(self, word: bytes) -> None:
        if word not in self._words:
            self._words.append(word)
            self._trt.compilations.append(word)

    def deserialize(self, blob: bytes) -> bool:
        assert self._trt.device.is_current
        words = blob.split()
        if words[0] != self._trt.driver:
            return False
        self._words = words[1:]
        return True

    def serialize(self) -> bytes:
        return b" ".join([self._trt.driver, *self._words])


class RuntimeConfig:
    stands_for = "IRuntimeConfig"

    def __init__(self, trt: "ImaginaryTensorRt") -> None:
        self._trt = trt
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self._strategy: Any = None
        self._cache: Cache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def create_runtime_cache(self) -> Cache:
        return Cache(self._trt)

    def set_runtime_cache(self, cache: Cache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> Cache | None:
        return self._cache


class Engine:
    """Keeps the contexts that it creates."""

    stands_for = "ICudaEngine"

    def __init__(self, trt: "ImaginaryTensorRt", profiles: list[Profile]) -> None:
        self._trt = trt
        self._profiles = profiles
        self._contexts: list[Context] = []

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self._trt.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._trt.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.tensors[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name == next(iter(self._trt.tensors))
        low, high, *tuned = self._profiles[profile_index]
        return [(*low, 3), (*(tuned or [high])[0], 3), (*high, 3)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return int(np.prod(self._profiles[profile_index][1])) * 40

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self._trt)

    def create_execution_context(self, strategy: Any) -> "Context":
        assert self._trt.device.is_current
        self._trt.while_creating()
        self._contexts.append(Context(self._trt, self._profiles, strategy))
        return self._contexts[-1]


class Context:
    """`strategy` is the configuration of TensorRT-RTX."""

    stands_for = "IExecutionContext"

    def __init__(self, trt: "ImaginaryTensorRt", profiles: list[Profile], strategy: Any) -> None:
        self._trt = trt
        self._profiles = profiles
        self._strategy = strategy
        self._shape: tuple[int, ...] = ()
        self._profile: Any = None
        self._memory: Any = None
        self._memory_size = 0
        self._addresses: dict[str, int] = {}
        self._executed = 0
        self.nvtx_verbosity: Any = "as built"

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high, *_ = self._profiles[self._profile]
        assert all(a <= b <= c for a, b, c in zip(low, shape, high, strict=False))
        self._shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._shape[0], self._shape[2] // 8)

    def update_device_memory_size_for_shapes(self) -> int:
        return self._trt.memory_of(self._shape)

    def set_device_memory(self, memory: int, size: int) -> None:
        if size < self.update_device_memory_size_for_shapes():
            self._trt.log("the memory is too small")
        self._memory, self._memory_size = memory, size

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory % 256 == 0
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        trt = self._trt
        assert trt.device.is_current
        assert self._memory is not None
        if isinstance(self._strategy, RuntimeConfig) and (cache := self._strategy.get_runtime_cache()):
            cache._compiled("x".join(map(str, self._shape)).encode())
        if trt.fails:
            trt.log("an illegal memory access was encountered")
            return False
        pixels = trt.memory(self._addresses[next(iter(trt.tensors))], *self._shape)
        if "MAP" in trt.tensors:
            trt.memory(self._addresses["MAP"], *self._shape[:3])[:] = pixels[..., 0]
        else:
            steps, shape = pixels[:, 0, ::8], self.get_tensor_shape("CLASSES")
            for channel, (name, element) in enumerate((("CLASSES", np.int32), ("PROBABILITIES", np.float32))):
                found = trt.memory(self._addresses[name], 4 * shape[0] * shape[1]).view(element)
                found[:] = steps[..., channel].ravel()
        self._executed += 1
        return True


class Runtime:
    stands_for = "Runtime"

    def __init__(self, trt: "ImaginaryTensorRt") -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        assert self._trt.device.is_current
        if serialized_engine == b"plan":
            return self._trt.engine
        self._trt.log("the plan was built for another GPU")
        return None


class ImaginaryTensorRt:
    """The module.

    Attributes:
        log: Takes the errors that the real one would log.
        memory_of: Scratch memory that a shape needs, in bytes.
        driver: Driver that runtime caches are bound to.
        compilations: What TensorRT-RTX compiled, in order.
    """

    uint8, int32, float32, float16 = "uint8", "int32", "float32", "float16"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    ProfilingVerbosity = SimpleNamespace(NONE="none")
    __version__ = "11.4.0"

    def __init__(self, device: Any, memory: Any, log: Callable[[str], None]) -> None:
        self.device = device
        self.memory = memory
        self.log = log
        self.tensors: dict[str, str] = {"NETWORK_IMAGE": "uint8", "MAP": "uint8"}
        self.engine = Engine(self, [WIDE])
        self.fails = False
        self.memory_of: Callable[[tuple[int, ...]], int] = lambda shape: int(np.prod(shape)) * 10
        self.while_creating: Callable[[], None] = lambda: None
        self.driver = b"driver-580"
        self.compilations: list[bytes] = []

    @property
    def contexts(self) -> list[Context]:
        return self.engine._contexts

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self)


STAND_INS = (Cache, RuntimeConfig, Engine, Context, Runtime)
# Of the module, what the real one has too; the rest is how tests look into it.
NAMES = (
    "uint8",
    "int32",
    "float32",
    "float16",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "ProfilingVerbosity.NONE",
    "Runtime",
)
