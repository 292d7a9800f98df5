# SPDX-License-Identifier: Apache-2.0
"""Opening a GPU and loading a network onto it; all that is missing is said at once."""

from ocdserve.backend.device.protocol import Device


def open_gpu(index: int) -> Device:
    """One of this machine's GPUs.

    Raises:
        UnavailableError: There is no such GPU, or something is not installed; the message says what.
    """
    # It needs the driver, which is why nothing else imports it.
    from ocdserve.backend.device.cuda import open_device

    return open_device(index)
