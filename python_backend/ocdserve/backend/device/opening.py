# SPDX-License-Identifier: Apache-2.0
"""Opening a GPU."""

from ocdserve.backend.device.protocol import Device


def open_gpu(index: int) -> Device:
    """One of this machine's GPUs.

    Raises:
        UnavailableError: There is no such GPU, or something is not installed; the message says what.
    """
    # Imported here, because it needs the driver.
    from ocdserve.backend.device.cuda import open_device

    return open_device(index)
