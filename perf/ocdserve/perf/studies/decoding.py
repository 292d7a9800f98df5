# SPDX-License-Identifier: Apache-2.0
"""JPEG decoding: its CPU time, what it makes other threads wait, and how it scales over threads.

    python -m ocdserve.perf.studies.decoding --receipts DIR --scenes DIR [--rounds N]

Three decoders take turns: ours, Pillow alone (which still decodes all other formats), and OpenCV; each in a process of
its own, because a good part of the time goes into new pages of memory, and what one allocates another would use. Where
memory is used again, as after a large image, ours and OpenCV take the same time, about three quarters of Pillow's.
Lateness and scaling need an idle machine; CPU times hardly do.
"""

import argparse
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.image import decode
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.results.decoding import array_of, upright_rgb
from ocdserve.results.pages import open_encoded

LARGE = (7680, 4320)
CORES, THREADS, RECEIPTS = 2, 4, 24
# Milliseconds; of Pillow's CPU time; of OpenCV's; times as fast as one thread.
MOST_LATE, MOST_OF_PILLOW, MOST_OF_OPENCV, LEAST_SCALING = 6.0, 0.65, 1.05, 1.75

Decode = Callable[[bytes], NDArray[np.uint8]]


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    """All of it by Pillow."""
    return array_of(upright_rgb(open_encoded(data)))


def by_opencv(data: bytes) -> NDArray[np.uint8]:
    """BGR, and damaged files half grey: what decoding costs at least."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.uint8)


DECODERS: Mapping[str, Decode] = {"ocdserve": decode, "Pillow": by_pillow, "OpenCV": by_opencv}


def latest_ms(work: Callable[[], object]) -> float:
    """By how many milliseconds a thread that wakes every millisecond is late at most while `work` runs."""
    late, done = [0.0], threading.Event()

    def wake() -> None:
        due = time.perf_counter() + 0.001
        while not done.is_set():
            time.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            late.append(now - due)
            due = now + 0.001

    thread = threading.Thread(target=wake)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(late) * 1000


def decode_and_resize(decoder: str, files: Sequence[bytes], pool: ThreadPoolExecutor) -> None:
    """Decode and resize all files."""
    policy = ResizePolicy()
    for _ in pool.map(lambda data: preprocess(DECODERS[decoder](data), policy)[0].shape, files):
        pass


class Worker:
    """A process that works with one decoder only: how its memory is used again is its own affair."""

    def __init__(self, decoder: str) -> None:
        self._decoder = decoder
        self._process = ProcessPoolExecutor(1, get_context("spawn"), cv2.setNumThreads, (1,))

    def __call__(self, measured: Callable[..., float], *arguments: object) -> float:
        """What is measured there."""
        return self._process.submit(measured, self._decoder, *arguments).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


def lateness(decoder: str, data: bytes) -> float:
    """See `latest_ms`, of one file."""
    return latest_ms(partial(DECODERS[decoder], data))


def cpu_time(decoder: str, files: Sequence[bytes]) -> float:
    """Mean CPU time of a file in milliseconds, in threads, as detectors decode."""

    def timed(data: bytes) -> float:
        begin = time.thread_time()
        DECODERS[decoder](data)
        return time.thread_time() - begin

    return mean(_pool(CORES).map(timed, files)) * 1000


def scaling(decoder: str, files: Sequence[bytes]) -> float:
    """How many times as fast several threads decode and resize the files as one."""
    took = []
    for pool in (_pool(1), _pool(THREADS)):
        begin = time.perf_counter()
        decode_and_resize(decoder, files, pool)
        took.append(time.perf_counter() - begin)
    return took[0] / took[1]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def in_turns(
    workers: Mapping[str, Worker], measured: Callable[..., float], argument: object, rounds: int
) -> dict[str, list[float]]:
    """What is measured of each decoder in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in workers}
    for round_ in range(rounds + 1):
        for name, worker in workers.items():
            value = worker(measured, argument)
            if round_:
                found[name].append(value)
    return found


def report(receipts: Sequence[bytes], scenes: Sequence[bytes], rounds: int) -> Iterator[str]:
    """The lines of the report, each when it is measured."""
    workers = {name: Worker(name) for name in DECODERS}
    ours, *others = DECODERS
    stream = io.BytesIO()
    Image.open(io.BytesIO(scenes[0])).resize(LARGE).save(stream, "JPEG", quality=90)

    times = in_turns(workers, cpu_time, scenes, 3 * rounds)
    for name, values in times.items():
        yield f"CPU time, 1280 x 720, {name}: median {median(values):.2f} ms"
    for name, most in zip(others, (MOST_OF_PILLOW, MOST_OF_OPENCV), strict=True):
        ratio = median(a / b for a, b in zip(times[ours], times[name], strict=True))
        yield f"CPU time, {ours} / {name}: {ratio:.3f}, at most {most}: {_yes(ratio <= most)}"
    for name, values in in_turns(workers, scaling, receipts, rounds).items():
        yield f"scaling, {len(receipts)} receipts, {THREADS} threads on {CORES} cores, {name}: {median(values):.2f}"
        if name == ours:
            yield f"scaling of {ours}, at least {LEAST_SCALING}: {_yes(median(values) >= LEAST_SCALING)}"
    for name, values in in_turns(workers, lateness, stream.getvalue(), rounds).items():
        yield f"lateness, {LARGE[0]} x {LARGE[1]}, {name}: median {median(values):.1f} ms, most {max(values):.1f} ms"
        if name == ours:
            yield f"lateness of {ours}, at most {MOST_LATE} ms: {_yes(median(values) <= MOST_LATE)}"
    for worker in workers.values():
        worker.close()


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def main(words: Sequence[str] | None = None) -> None:
    """Measure on the first cores of this process, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receipts", type=Path, required=True, metavar="DIR", help="folder of JPEG files")
    parser.add_argument("--scenes", type=Path, required=True, metavar="DIR", help="folder of JPEG files of 1280 x 720")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds that count (default: %(default)s)")
    args = parser.parse_args(words)
    receipts, scenes = (
        [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))] for folder in (args.receipts, args.scenes)
    )
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    for line in report(receipts[:RECEIPTS], scenes, args.rounds):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
