# SPDX-License-Identifier: Apache-2.0
"""Large images that wait for each other, in threads and in processes."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ocdserve.backend.serve.process.pixels_in_flight import PixelsInFlight

HOLDER = """
import sys, time
from pathlib import Path
from ocdserve.backend.serve.process.pixels_in_flight import PixelsInFlight
with PixelsInFlight(12_000_000, Path(sys.argv[1])).taken(80_000_000, lambda: None):
    print("taken", flush=True)
    time.sleep(60)
"""


class OverdueError(Exception):
    """Nobody waits any more."""


def never() -> None:
    """Somebody waits for ever."""


def overdue_after(seconds: float) -> Callable[[], None]:
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise OverdueError

    return check


def most_at_once(rooms: list[PixelsInFlight], sizes: list[int]) -> int:
    """Pixels in flight at the worst moment when images of these sizes come at once, to one room after the other."""
    lock, now, seen = threading.Lock(), [0], [0]

    def decode(index: int) -> None:
        with rooms[index % len(rooms)].taken(sizes[index], never):
            with lock:
                now[0] += sizes[index]
                seen.append(now[0])
            time.sleep(0.02)
            with lock:
                now[0] -= sizes[index]

    with ThreadPoolExecutor(len(sizes)) as pool:
        list(pool.map(decode, range(len(sizes))))
    assert len(seen) == 1 + len(sizes)
    return max(seen)


def test_no_more_pixels_than_allowed_are_in_flight(tmp_path: Path) -> None:
    # As two processes, which lock as two descriptors of one process do.
    rooms = [PixelsInFlight(12_000_000, tmp_path), PixelsInFlight(12_000_000, tmp_path)]
    assert 8_000_000 < most_at_once(rooms, [4_000_000, 8_000_000] * 5) <= 12_000_000
    assert most_at_once(rooms, [80_000_000] * 4) == 80_000_000


@pytest.mark.parametrize("directory", [None, Path("/nonexistent")])
def test_without_a_directory_one_image_is_decoded_at_a_time(directory: Path | None) -> None:
    assert most_at_once([PixelsInFlight(80_000_000, directory)], [4_000_000] * 4) == 4_000_000


def test_the_first_in_line_is_not_overtaken(tmp_path: Path) -> None:
    room, order = PixelsInFlight(12_000_000, tmp_path), list[int]()

    def decode(pixels: int) -> None:
        with room.taken(pixels, never):
            order.append(pixels)

    with ThreadPoolExecutor(2) as pool:
        with room.taken(4_000_000, never):
            first = pool.submit(decode, 12_000_000)
            time.sleep(0.05)
            # There would be room for it.
            second = pool.submit(decode, 4_000_001)
            time.sleep(0.05)
            assert order == []
        first.result(10)
        second.result(10)
    assert order == [12_000_000, 4_000_001]


@pytest.mark.parametrize("is_first", [True, False])
def test_who_does_not_wait_any_longer_takes_no_room(tmp_path: Path, is_first: bool) -> None:
    room, other = PixelsInFlight(12_000_000, tmp_path), PixelsInFlight(12_000_000, tmp_path)
    with ThreadPoolExecutor(1) as pool, room.taken(8_000_000, never):
        before = None if is_first else pool.submit(lambda: other.taken(12_000_000, overdue_after(0.6)).__enter__())
        time.sleep(0.05)
        with pytest.raises(OverdueError), other.taken(12_000_000, overdue_after(0.2)):
            raise AssertionError("there is no room")
        if before:
            with pytest.raises(OverdueError):
                before.result(10)
        with other.taken(4_000_000, never):
            pass


def test_a_killed_process_gives_its_room_back(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        room = PixelsInFlight(12_000_000, tmp_path)
        with pytest.raises(OverdueError), room.taken(4_000_001, overdue_after(0.05)):
            raise AssertionError("there is no room")
        holder.kill()
        with room.taken(80_000_000, overdue_after(10)):
            pass
