# SPDX-License-Identifier: Apache-2.0
"""Loading a bundle's network into one of the runtimes."""

import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import Any, TypeVar

import cv2
import numpy as np

from ocdserve.backend.device.probe import missing
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.network.options import CPU_RUNTIMES, GPU_RUNTIMES, RUNTIMES, RuntimeOptions, gpu_runtime
from ocdserve.backend.network.protocols import DeviceNetwork, DeviceRecogniser, Network
from ocdserve.backend.spec.bundle import AnyBundle, Bundle, RecogniserBundle
from ocdserve.contract import InvalidInputError, UnavailableError, install_command

# How long a runtime of the CPU may take to load a network, in seconds: the default one takes about one.
LOAD_S = 60.0
_TRIAL_SIDE = 128

_T = TypeVar("_T")
_Bundle = TypeVar("_Bundle", bound=AnyBundle[Any])
_logger = logging.getLogger(__name__)


def load_network(bundle: Bundle, options: RuntimeOptions | None = None) -> Network:
    """Compile a bundle's network; a log record says if it finds nothing in a picture with a word.

    A bundle of fixed network size is compiled for that one shape, others once for all shapes. Both in-process and
    served use come through here, so that they compile in the same mode: results of the two modes differ in
    their last digits.

    Raises:
        InvalidInputError: The runtime cannot execute the bundle's network, or not load it within `LOAD_S`; the thread
            that loads it then goes on until the process ends.
        UnavailableError: The runtime is not installed, or the bundle was built for an engine.
    """
    options = options or RuntimeOptions()
    runtime = chosen_runtime(bundle, options.runtime)
    if runtime in GPU_RUNTIMES:
        if options.pixel_type != "uint8":
            raise InvalidInputError(f"networks on a GPU take uint8 pixels; got a request for {options.pixel_type}")
        from ocdserve.backend.network.host_network import HostNetwork

        return HostNetwork(*open_gpu_with_network(bundle, replace(options, runtime=runtime)), options.streams)
    maker = maker_on_cpu(bundle, runtime)
    return load_in_time(bundle, lambda: _tried(maker(bundle, options), bundle, options))


def maker_on_cpu(bundle: AnyBundle[Any], runtime: str | None) -> Any:
    """The factory of the network of a bundle's kind for a runtime of the CPU; imports the runtime's library.

    Raises:
        UnavailableError: The runtime is not known or not installed.
    """
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
    return _maker(_factory(bundle, runtime))


def load_in_time(bundle: AnyBundle[Any], load: Callable[[], _T]) -> _T:
    """The result of a function that loads a bundle's network, in a thread which does not keep the process from ending.

    Raises:
        InvalidInputError: It takes more than `LOAD_S`; the thread then goes on until the process ends.
    """
    try:
        return _in_time(load)
    except FutureTimeoutError as error:
        raise InvalidInputError(
            f"{bundle.model_path.name} was not loaded within {LOAD_S:g} s: it is no {bundle.kind}'s network, or this "
            "machine is too busy for it."
        ) from error


def chosen_runtime(bundle: AnyBundle[Any], asked: str | None, on_gpu: bool = False) -> str | None:
    """The runtime that executes a bundle's network; None if none is installed."""
    if on_gpu:
        return gpu_runtime(bundle, asked)
    return asked or bundle.spec.runtime or next(filter(_installed, CPU_RUNTIMES), None)


def _in_time(load: Callable[[], _T]) -> _T:
    """The result of a function that runs in a thread, which does not keep the process from ending."""
    loaded: Future[_T] = Future()

    def run() -> None:
        try:
            loaded.set_result(load())
        except BaseException as error:
            loaded.set_exception(error)

    threading.Thread(target=run, name="load-network", daemon=True).start()
    return loaded.result(LOAD_S)


def _tried(network: Network, bundle: Bundle, options: RuntimeOptions) -> Network:
    """The network, once it has answered a picture of a word.

    Raises:
        InvalidInputError: It cannot, or its map is not of the picture's size.
    """
    resize, name = bundle.spec.resize, bundle.model_path.name
    side = -(-_TRIAL_SIDE // resize.stride) * resize.stride
    height, width = (resize.height, resize.width) if resize.has_one_size else (side, side)
    picture = np.full((height, width, 3), 255, np.uint8)
    origin = (width // 16, height * 5 // 8)
    cv2.putText(picture, "Text", origin, cv2.FONT_HERSHEY_SIMPLEX, min(height, width) / 100, (0, 0, 0), 2, cv2.LINE_AA)
    try:
        found = network.infer([picture.astype(options.pixel_type)])[0]
    except UnavailableError as error:
        raise InvalidInputError(f"{name} fails on a picture of {height} x {width} pixels: {error}") from error
    if found.shape != (height, width):
        raise InvalidInputError(
            f"{name} returns a map of {' x '.join(map(str, found.shape))} for a picture of {height} x {width} pixels; "
            "they must have the same size."
        )
    if not found.min() < found.max():  # also where both are NaN
        _logger.warning(
            "the network of %s returns %s for every pixel of a picture with a word: it is damaged, or network.mean and "
            "network.std of detector.json are not what it was trained with",
            bundle.spec.name,
            found.min(),
        )
    return network


def check_executable(bundle: AnyBundle[Any], runtime: str | None = None) -> None:
    """Raise UnavailableError where a bundle was built for a GPU and no runtime is named instead."""
    if runtime is None and bundle.spec.runtime in GPU_RUNTIMES:
        raise UnavailableError(
            f"the bundle {bundle.spec.name} was built for {bundle.spec.runtime}, which needs a GPU: say --gpu where "
            "there is one. To execute its ONNX on the CPU instead, name the runtime: "
            f"--runtime {' or --runtime '.join(CPU_RUNTIMES)}."
        )


def check_gpu(bundle: AnyBundle[Any], runtime: str, device: int = 0) -> None:
    """Raise UnavailableError, with all that is missing, unless a GPU runtime can be used on this machine."""
    lacks = missing(device, [RUNTIMES[runtime].module])
    if lacks:
        raise UnavailableError(
            f"the runtime {runtime} of the {bundle.kind} {bundle.spec.name} needs a GPU, but {'; '.join(lacks)}. See "
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
    return _device_network(bundle, options, device)  # type: ignore[no-any-return]


def load_device_recogniser(bundle: RecogniserBundle, options: RuntimeOptions, device: Device) -> DeviceRecogniser:
    """Load a recogniser's network into one of the GPU runtimes; see `load_device_network`."""
    return _device_network(bundle, options, device)  # type: ignore[no-any-return]


def _device_network(bundle: AnyBundle[Any], options: RuntimeOptions, device: Device) -> Any:
    runtime = gpu_runtime(bundle, options.runtime)
    return _maker(_factory(bundle, runtime))(bundle, replace(options, runtime=runtime), device)


def open_gpu_with_network(bundle: Bundle, options: RuntimeOptions) -> tuple[Device, DeviceNetwork]:
    """The GPU that the options name, with the bundle's network on it.

    Raises:
        InvalidInputError: As `load_device_network`.
        UnavailableError: There is no such GPU, or something is not installed; the message lists what.
    """
    return _on_open_gpu(bundle, options, load_device_network)


def open_gpu_with_recogniser(bundle: RecogniserBundle, options: RuntimeOptions) -> tuple[Device, DeviceRecogniser]:
    """The GPU that the options name, with a recogniser's network on it; see `open_gpu_with_network`."""
    return _on_open_gpu(bundle, options, load_device_recogniser)


def _on_open_gpu(
    bundle: _Bundle, options: RuntimeOptions, load: Callable[[_Bundle, RuntimeOptions, Device], _T]
) -> tuple[Device, _T]:
    # Imported here: processes that use the CPU start faster without it.
    from ocdserve.backend.device.cuda import open_device

    check_gpu(bundle, gpu_runtime(bundle, options.runtime), options.device)
    device = open_device(options.device)
    try:
        return device, load(bundle, options, device)
    except BaseException:
        device.close()
        raise


def _installed(runtime: str) -> bool:
    return importlib.util.find_spec(RUNTIMES[runtime].module) is not None


def _factory(bundle: AnyBundle[Any], runtime: str) -> str:
    return RUNTIMES[runtime].network if isinstance(bundle, Bundle) else RUNTIMES[runtime].recogniser


def _maker(factory: str) -> Any:
    """A factory of the table of runtimes; imports the runtime's library."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(f"ocdserve.backend.network.{module}"), name)
