# SPDX-License-Identifier: Apache-2.0
"""Loading a bundle's network into one of the runtimes."""

import importlib
import importlib.util
from dataclasses import replace
from typing import Any

from ocdserve.backend.device.probe import missing
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.network.options import CPU_RUNTIMES, GPU_RUNTIMES, RUNTIMES, RuntimeOptions, gpu_runtime
from ocdserve.backend.network.protocols import DeviceNetwork, Network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.contract import InvalidInputError, UnavailableError, install_command


def load_network(bundle: Bundle, options: RuntimeOptions | None = None) -> Network:
    """Compile a bundle's network.

    A bundle of fixed network size is compiled for that one shape, others once for all shapes. Both in-process and
    served use come through here, so that they compile in the same mode: results of the two modes differ in
    their last digits.

    Raises:
        InvalidInputError: The runtime cannot execute the bundle's network.
        UnavailableError: The runtime is not installed, or the bundle was built for an engine.
    """
    options = options or RuntimeOptions()
    runtime = options.runtime or bundle.spec.runtime or next(filter(_installed, CPU_RUNTIMES), None)
    if runtime in GPU_RUNTIMES:
        if options.pixel_type != "uint8":
            raise InvalidInputError(f"networks on a GPU take uint8 pixels; got a request for {options.pixel_type}")
        from ocdserve.backend.network.host_network import HostNetwork

        return HostNetwork(*open_gpu_with_network(bundle, replace(options, runtime=runtime)), options.streams)
    if runtime is not None and runtime not in CPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for the runtime {runtime}, which this version does not know. "
            f"Name the one to execute its ONNX: {', '.join(RUNTIMES)}."
        )
    if runtime is None or not _installed(runtime):
        raise UnavailableError(
            f"the runtime {runtime or ' or '.join(CPU_RUNTIMES)} is not installed. "
            f"Run {install_command(RUNTIMES[runtime or CPU_RUNTIMES[0]].requirement)}."
        )
    network: Network = _maker(runtime)(bundle, options)
    return network


def check_executable(bundle: Bundle, runtime: str | None = None) -> None:
    """Raise UnavailableError where a bundle was built for a GPU and no runtime is named instead."""
    if runtime is None and bundle.spec.runtime in GPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for {bundle.spec.runtime}, which needs a GPU: say --gpu where "
            "there is one. To execute its ONNX on the CPU instead, name the runtime: "
            f"--runtime {' or --runtime '.join(CPU_RUNTIMES)}."
        )


def check_gpu(bundle: Bundle, runtime: str, device: int = 0) -> None:
    """Raise UnavailableError, with all that is missing, unless a GPU runtime can be used on this machine."""
    lacks = missing(device, [RUNTIMES[runtime].module])
    if lacks:
        raise UnavailableError(
            f"the runtime {runtime} of the detector {bundle.spec.name} needs a GPU, but {'; '.join(lacks)}. See "
            f"`ocdserve doctor`. To execute the network on the CPU, name its runtime: {' or '.join(CPU_RUNTIMES)}."
        )


def load_device_network(bundle: Bundle, options: RuntimeOptions, device: Device) -> DeviceNetwork:
    """Load a bundle's network into one of the GPU runtimes.

    Args:
        bundle: The detector.
        options: The runtime (None: see `gpu_runtime`) and the type of the maps.
        device: The GPU with the index that `options` names.

    Raises:
        InvalidInputError: The bundle has no network for that runtime.
        UnavailableError: The runtime is not installed, or cannot load the network on this GPU.
    """
    runtime = gpu_runtime(bundle, options.runtime)
    network: DeviceNetwork = _maker(runtime)(bundle, replace(options, runtime=runtime), device)
    return network


def open_gpu_with_network(bundle: Bundle, options: RuntimeOptions) -> tuple[Device, DeviceNetwork]:
    """The GPU that the options name, with the bundle's network on it.

    Raises:
        InvalidInputError: As `load_device_network`.
        UnavailableError: There is no such GPU, or something is not installed; the message lists what.
    """
    # Imported here: processes that use the CPU start faster without it.
    from ocdserve.backend.device.cuda import open_device

    check_gpu(bundle, gpu_runtime(bundle, options.runtime), options.device)
    device = open_device(options.device)
    try:
        return device, load_device_network(bundle, options, device)
    except BaseException:
        device.close()
        raise


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(RUNTIMES[runtime].module) is not None


def _maker(runtime: str) -> Any:
    """The factory of a runtime's network; imports the runtime's library."""
    module, _, name = RUNTIMES[runtime].network.partition(":")
    return getattr(importlib.import_module(f"ocdserve.backend.network.{module}"), name)
