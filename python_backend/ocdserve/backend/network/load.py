# SPDX-License-Identifier: Apache-2.0
"""Loading a bundle's network into one of the runtimes."""

import importlib.util
from dataclasses import replace
from typing import get_args

from ocdserve.backend.device.opening import open_gpu
from ocdserve.backend.device.probe import missing
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.network.engine_library import EngineRuntime
from ocdserve.backend.network.options import (
    CPU_RUNTIMES,
    GPU_MODULES,
    GPU_RUNTIMES,
    RUNTIMES,
    RuntimeOptions,
    gpu_runtime,
)
from ocdserve.backend.network.protocols import DeviceNetwork, Network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError, UnavailableError


def load_network(bundle: Bundle, options: RuntimeOptions | None = None) -> Network:
    """Compile a bundle's network.

    A bundle of fixed network size is compiled for that one shape, others once for all shapes. In-process and
    served use come through here, so that they compile in the same mode: results of the two modes differ in
    their last digits.

    Raises:
        InvalidInputError: The bundle's network is not one that the runtime can execute.
        UnavailableError: The runtime is not installed, or the bundle was built for an engine.
    """
    options = options or RuntimeOptions()
    runtime = options.runtime or bundle.spec.runtime or next((name for name in CPU_RUNTIMES if _installed(name)), None)
    if runtime in GPU_RUNTIMES:
        return _load_gpu_network(bundle, replace(options, runtime=runtime))
    if runtime is not None and runtime not in CPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for the runtime {runtime}, which this version does not know. "
            f"Name the one to execute its ONNX: {', '.join(RUNTIMES)}."
        )
    if runtime is None or not _installed(runtime):
        raise UnavailableError(
            f"the runtime {runtime or ' or '.join(CPU_RUNTIMES)} is not installed. "
            "Run `pip install 'ocdserve[server]'`."
        )
    if runtime == "openvino":
        from ocdserve.backend.network.openvino import OpenVinoNetwork

        return OpenVinoNetwork(bundle, options)
    from ocdserve.backend.network.onnxruntime import OnnxRuntimeNetwork

    return OnnxRuntimeNetwork(bundle, options)


def check_executable(bundle: Bundle, runtime: str | None = None) -> None:
    """Raise UnavailableError where a bundle was built for a GPU and no runtime is named to take its place."""
    if runtime is None and bundle.spec.runtime in GPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for {bundle.spec.runtime}, which needs a GPU: say --gpu where "
            "there is one. To execute its ONNX on the CPU instead, name the runtime: "
            f"--runtime {' or --runtime '.join(CPU_RUNTIMES)}."
        )


def check_gpu(bundle: Bundle, runtime: str, device: int = 0) -> None:
    """Raise UnavailableError, with all that is missing, unless a GPU runtime can be used on this machine."""
    lacks = missing(device, [GPU_MODULES[runtime]])
    if lacks:
        raise UnavailableError(
            f"the runtime {runtime} of the detector {bundle.spec.name} needs a GPU, but {'; '.join(lacks)}. See "
            f"`ocdserve doctor`. To execute the network on the CPU, name its runtime: {' or '.join(CPU_RUNTIMES)}."
        )


def _load_gpu_network(bundle: Bundle, options: RuntimeOptions) -> Network:
    if options.pixel_type != "uint8":
        raise InvalidInputError(f"networks on a GPU take uint8 pixels; got a request for {options.pixel_type}")
    from ocdserve.backend.network.host_network import HostNetwork

    return HostNetwork(*open_gpu_with_network(bundle, options), options.streams)


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(runtime) is not None


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


def open_gpu_network(bundle: Bundle, options: RuntimeOptions, device: Device) -> DeviceNetwork:
    """The bundle's network on a GPU; without a runtime in the options, in the one that `gpu_runtime` says.

    Raises:
        InvalidInputError: The bundle has no network for the runtime.
        UnavailableError: The runtime is not installed, or cannot load the network on this GPU.
    """
    return load_device_network(bundle, replace(options, runtime=gpu_runtime(bundle, options.runtime)), device)


def open_gpu_with_network(bundle: Bundle, options: RuntimeOptions) -> tuple[Device, DeviceNetwork]:
    """The GPU that the options name, with the bundle's network on it.

    Raises:
        InvalidInputError: As `open_gpu_network`.
        UnavailableError: There is no such GPU, or something that it needs is not installed; all that is named.
    """
    check_gpu(bundle, gpu_runtime(bundle, options.runtime), options.device)
    device = open_gpu(options.device)
    try:
        return device, open_gpu_network(bundle, options, device)
    except BaseException:
        device.close()
        raise
