# SPDX-License-Identifier: Apache-2.0
"""The emulated device behind the protocols that the GPU stages know."""

from cuda_emulator import EmulatedDevice

from ocdserve.backend.cuda.device import Device


def test_it_is_a_device(emulated_device: EmulatedDevice) -> None:
    device: Device = emulated_device

    assert device.name == "CUDA emulator"
