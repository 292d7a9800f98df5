# SPDX-License-Identifier: Apache-2.0
"""How many pixels of large images all processes of a server decode at the same time, which bounds their memory.

The processes share files in a directory. Who has locked one may decode so many pixels; the kernel unlocks the files of
a process that dies.
"""

import fcntl
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE
from ocdserve.backend.serve.process.ownership import shared_directory

# Pixels of a file. Images of no more need no lock: they are decoded in a fraction of a second, and only as many at a
# time as there are decoders.
LARGE_PIXELS = 4_000_000
_LOOK_S = 0.01
# Each check may be a call to Triton.
_CHECK_S = 0.25


class PixelsInFlight:
    """Makes large images wait for each other.

    Args:
        most: Pixels that are decoded at the same time; an image of more is decoded alone.
        directory: Shared by the processes; None: images of this process are decoded one at a time.
    """

    def __init__(self, most: int, directory: Path | None) -> None:
        self._files = max(1, most // LARGE_PIXELS)
        self._directory = directory
        self._turn = threading.Lock()

    @classmethod
    def of_server(cls, most: int, environment: Mapping[str, str] = os.environ) -> "PixelsInFlight":
        """That of the Triton that started this process."""
        named = environment.get(DIRECTORY_VARIABLE)
        return cls(most, Path(named) if named else shared_directory(os.getppid()))

    @contextmanager
    def taken(self, pixels: int, check: Callable[[], None]) -> Iterator[None]:
        """Wait until an image may be decoded, and let others wait meanwhile.

        Args:
            pixels: Of the image.
            check: Called while it waits; what it raises ends the waiting.
        """
        with ExitStack() as held:
            with ExitStack() as turn:
                while not self._turn.acquire(timeout=_CHECK_S):
                    check()
                turn.callback(self._turn.release)
                try:
                    self._lock(held, min(math.ceil(pixels / LARGE_PIXELS), self._files), check)
                except OSError:
                    # There is no directory, or it has gone with its launcher.
                    held.push(turn.pop_all())
            yield

    def _lock(self, held: ExitStack, count: int, check: Callable[[], None]) -> None:
        """Lock so many files: the first in line collects what others give back, so that it waits for those only."""
        with ExitStack() as line:
            while not self._is_locked(line, "next"):
                _wait(check)
            left = list(range(self._files))
            while True:
                locked: list[int] = []
                for number in left:
                    if len(locked) < count and self._is_locked(held, str(number)):
                        locked.append(number)
                count -= len(locked)
                if not count:
                    return
                left = [number for number in left if number not in locked]
                _wait(check)

    def _is_locked(self, held: ExitStack, name: str) -> bool:
        """Lock a file until `held` is closed, unless another has."""
        if self._directory is None:
            raise FileNotFoundError
        file = os.open(self._directory / f"decoding-{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                return False
            raise
        held.callback(os.close, file)
        return True


def _wait(check: Callable[[], None]) -> None:
    check()
    time.sleep(_LOOK_S)
