# SPDX-License-Identifier: Apache-2.0
"""Errors of kernels and of the code that launches them."""

from ocdserve.backend.device.protocol import DeviceError

_LAUNCH_FAILED = 719  # CUDA_ERROR_LAUNCH_FAILED


class MisuseError(Exception):
    """The host code broke the device's rules.

    No `OcdserveError`, so that no code under test takes it for a failure to be handled, and no `AssertionError`, so
    that no test takes it for a wrong result.
    """


class KernelFault(DeviceError):  # noqa: N818 (CUDA's word)
    """A kernel did what a GPU would not do: the message names kernel, block and thread."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=_LAUNCH_FAILED, sticky=True)
