# SPDX-License-Identifier: Apache-2.0
"""Opening a GPU and loading a network onto it; all that is missing is said at once."""

from dataclasses import replace

from ocdserve.backend.bundle import Bundle
from ocdserve.backend.cuda.device import Device
from ocdserve.backend.cuda.options import gpu_runtime
from ocdserve.backend.network import RuntimeOptions, check_gpu
from ocdserve.backend.network.device_network import DeviceNetwork, load_device_network


def open_gpu(index: int) -> Device:
    """One of this machine's GPUs.

    Raises:
        UnavailableError: There is no such GPU, or something is not installed; the message says what.
    """
    # It needs the driver, which is why nothing else imports it.
    from ocdserve.backend.cuda.runtime import open_device

    return open_device(index)


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
