# SPDX-License-Identifier: Apache-2.0
"""Networks and devices in forked processes, which have a copy of them, but none of their threads and no CUDA."""

import ctypes
import os
import weakref

from ocdserve.contract import UnavailableError

_owners: "weakref.WeakSet[object]" = weakref.WeakSet()


def bind_to_process(owner: object) -> int:
    """Never destroy an object's copies in forked children, where its runtime would wait for threads that are missing.

    Returns:
        Id of this process, for `check_process`.
    """
    _owners.add(owner)
    return os.getpid()


def check_process(process: int) -> None:
    """Raise UnavailableError in any other process than that of the id."""
    if os.getpid() != process:
        raise UnavailableError(
            f"this network was loaded in process {process} and is used in its child {os.getpid()}: the threads of its "
            "runtime do not survive a fork. Load a detector or reader in each process, after the fork, or start "
            'processes with the method "spawn".'
        )


def _keep_all() -> None:
    for owner in _owners:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    libc = ctypes.CDLL(None)
    if _owners and hasattr(libc, "on_exit"):
        # Runs before the exit handlers of the libraries loaded so far: ONNX Runtime's waits for its threads for ever.
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_keep_all)
