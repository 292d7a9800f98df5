# SPDX-License-Identifier: Apache-2.0
"""Networks that compute in the memory of a GPU, behind one protocol."""

from typing import Protocol, get_args

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.cuda.device import Buffer, Device, Stream
from ocdserve.backend.network import GPU_RUNTIMES, MapType, RuntimeOptions
from ocdserve.backend.network.engine_library import EngineRuntime
from ocdserve.contract import InvalidInputError


class DeviceNetwork(Protocol):
    """A network on one GPU; usable from any thread, a stream by one at a time."""

    @property
    def map_type(self) -> MapType:
        """What the maps are made of."""
        ...

    def check(self, batch: int, height: int, width: int) -> None:
        """Raise InvalidInputError for a batch of a size in pixels that the network does not take."""
        ...

    def enqueue(self, stream: Stream, pixels: Buffer, maps: Buffer, batch: int, height: int, width: int) -> None:
        """Queue the network.

        The first call for a shape and a stream prepares the network for it: it must not be captured, later ones may.

        Args:
            stream: Where to queue it.
            pixels: uint8 (batch, height, width, 3) RGB.
            maps: (batch, height, width), 255 times the probability as uint8, or the probability as float32.
            batch: Images, computed independently of each other.
            height: Rows of each image.
            width: Columns of each image.

        Raises:
            InvalidInputError: The network does not take that shape.
            UnavailableError: The network's library cannot queue it, or has not the memory for it.
        """
        ...

    def release(self, stream: Stream, batch: int, height: int, width: int) -> None:
        """Give back what `enqueue` prepared for a shape; graphs that captured it must have been closed."""
        ...

    def close(self) -> None:
        """Give back all that it holds."""
        ...


def load_device_network(bundle: Bundle, options: RuntimeOptions, device: Device) -> DeviceNetwork:
    """Load a bundle's network into one of the GPU runtimes.

    Args:
        bundle: The detector.
        options: With the runtime, one of `GPU_RUNTIMES`, and what the maps are made of.
        device: The GPU with the index that `options` names.

    Raises:
        InvalidInputError: The bundle has no network for that runtime.
        UnavailableError: The runtime is not installed, or cannot load the network on this GPU.
    """
    if options.runtime == "onnxruntime-cuda":
        from ocdserve.backend.network.onnxruntime_cuda import OnnxRuntimeCudaNetwork

        return OnnxRuntimeCudaNetwork(bundle, options)
    from ocdserve.backend.network.tensorrt import TensorRtNetwork

    runtime: EngineRuntime | None = next((name for name in get_args(EngineRuntime) if name == options.runtime), None)
    if runtime is None:
        raise InvalidInputError(f"runtime must be one of {', '.join(GPU_RUNTIMES)}; got {options.runtime!r}")
    if bundle.engine_path is None or bundle.spec.runtime != runtime:
        holds = "none" if bundle.engine_path is None else f"one of {bundle.spec.runtime}"
        raise InvalidInputError(
            f"the bundle {bundle.spec.name} must hold an engine of {runtime} to be executed by it; it holds {holds}. "
            f"Build one: ocdserve build --runtime {runtime} ..., or name the runtime onnxruntime-cuda."
        )
    network = TensorRtNetwork(bundle.engine_path.read_bytes(), runtime, device, bundle.spec.name)
    if network.map_type != options.map_type:
        network.close()
        raise InvalidInputError(
            f"the engine of {bundle.spec.name} gives maps of {network.map_type}, and cannot give {options.map_type}"
        )
    return network
