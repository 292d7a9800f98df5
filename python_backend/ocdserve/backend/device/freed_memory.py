# SPDX-License-Identifier: Apache-2.0
"""Memory that this process has freed, and glibc has kept."""

import ctypes


def return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
