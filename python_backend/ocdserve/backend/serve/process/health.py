# SPDX-License-Identifier: Apache-2.0
"""How a served model tells the launcher that its process cannot serve any more, though it lives.

A GPU that failed stays failed for the process that used it. Triton 2.51 asks no model whether it is ready, so the
model leaves a note in a directory of the launcher's, which then ends the process and loads the model again.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from ocdserve.backend.files import write_atomically

# Set by the launcher for the server and all of its Python processes.
DIRECTORY_VARIABLE = "OCDSERVE_HEALTH_DIRECTORY"


def report_failure(reason: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Leave a note about this process; returns whether a launcher is there to read it."""
    directory = environment.get(DIRECTORY_VARIABLE)
    if not directory:
        return False
    try:
        write_atomically(Path(directory) / str(os.getpid()), reason.encode())
    except OSError:
        # The launcher is gone or about to go, and Triton with it.
        return False
    return True


def take_failures(directory: Path) -> dict[int, str]:
    """The notes, removed: reasons by process id."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for note in directory.iterdir():
            if note.name.isdigit():
                found[int(note.name)] = note.read_text("utf-8")
                note.unlink()
    return found
