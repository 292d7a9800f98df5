# SPDX-License-Identifier: Apache-2.0
"""How a served model reports to the launcher that its process cannot serve any more, though it is alive.

A GPU that failed stays failed for the process that used it. Triton 2.51 asks no model whether it is ready, so the
model writes a note to a directory of the launcher, which then kills the process and reloads the model.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from ocdserve.backend.files import write_atomically

# Set by the launcher for the server and all of its Python processes.
DIRECTORY_VARIABLE = "OCDSERVE_HEALTH_DIRECTORY"


def report_failure(reason: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Write a note about this process; returns whether there is a launcher to read it."""
    directory = environment.get(DIRECTORY_VARIABLE)
    if not directory:
        return False
    try:
        write_atomically(Path(directory) / str(os.getpid()), reason.encode())
    except OSError:
        # The launcher has ended or is about to, and Triton with it.
        return False
    return True


def take_failures(directory: Path) -> dict[int, str]:
    """Read and remove the notes: reasons by process id."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for note in directory.iterdir():
            if note.name.isdigit():
                found[int(note.name)] = note.read_text("utf-8")
                note.unlink()
    return found
