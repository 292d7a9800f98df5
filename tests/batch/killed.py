# SPDX-License-Identifier: Apache-2.0
"""Runs `ocdserve batch` in children that are killed at given points, and says how each ended.

A program of one thread, so that it can fork: arguments are the folder of inputs, the folder of the jobs, and in JSON a
list of jobs, each a name and the points of its runs, `[event, number]`, at whose number-th event the run is killed by
SIGKILL; the last run of a job is not. Prints the signals, and how often each event came in the first job's only run.
"""

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pyarrow.parquet

from ocdserve import backend
from ocdserve.batch import detect, job, storage, work
from ocdserve.cli import batch, main
from ocdserve.results.detections import Detections
from ocdserve.results.many import Outcome

# What the command imports late, once for all children.
IMPORTED = (PIL.Image, PIL.TiffImagePlugin, pyarrow.parquet, batch, job, work)


class Events:
    """Counts what happens, and ends the process at one of them."""

    def __init__(self, event: str, number: int) -> None:
        self._event, self._number = event, number
        self.counts: Counter[str] = Counter()

    def came(self, event: str) -> None:
        self.counts |= {event: self.counts[event] + 1, "any": self.counts["any"] + 1}
        if self.counts[self._event] == self._number and self._event in (event, "any"):
            os.kill(os.getpid(), signal.SIGKILL)


class FakeDetector:
    """Finds as many words as an image has bytes, at most 9; of a page, as many as it has rows of pixels."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def detect_many(self, images: Iterable[Any], **_: Any) -> Iterator[Outcome[Any]]:
        for index, image in enumerate(images):
            self._events.came("detect")
            count = min(len(image), 9)
            quads = np.arange(count * 8, dtype=np.float32).reshape(count, 4, 2)
            yield Outcome(index, image, detections=Detections(quads, np.ones(count, np.float32), 80, 60))


def watch(events: Events) -> None:
    """Make the detector a fake one, and events of what storage does; what is written is written in two pieces."""
    vars(backend)["Bundle"] = SimpleNamespace(load=lambda _: SimpleNamespace(digest=lambda: "0123456789abcdef"))
    vars(detect)["_detector"] = lambda *_: FakeDetector(events)
    link, fsync, unlink, names = os.link, os.fsync, Path.unlink, storage.Folder.names

    def watched_link(source: Path, target: Path) -> None:
        events.came("before a link")
        link(source, target)
        events.came("after a link")

    def watched_fsync(number: int) -> None:
        events.came("before fsync")
        fsync(number)

    def watched_unlink(self: Path, missing_ok: bool = False) -> None:
        events.came("before unlink")
        unlink(self, missing_ok)

    def watched_names(self: storage.Folder) -> set[str]:
        events.came("before listing")
        return names(self)

    class InPieces:
        def __init__(self, path: Path, mode: str) -> None:
            self._file = open(path, mode)  # noqa: SIM115 closed by __exit__

        def __enter__(self) -> "InPieces":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> None:
            events.came("before writing")
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            events.came("half written")
            self._file.write(data[len(data) // 2 :])

    os.link, os.fsync = watched_link, watched_fsync  # type: ignore[assignment]
    Path.unlink, storage.Folder.names = watched_unlink, watched_names  # type: ignore[method-assign]
    vars(storage)["open"] = InPieces


def run(source: str, output: Path, event: str = "", number: int = 0) -> "tuple[int, Counter[str]]":
    """Run the command in a child; returns the signal or exit code that ended it, and its events."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        events = Events(event, number)
        watch(events)
        code = main(["batch", source, "--output", str(output), "--shard-size", "4", "--quiet"])
        os.write(writer, json.dumps(events.counts).encode())
        os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        counts = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Counter(json.loads(counts or b"{}"))


if __name__ == "__main__":
    inputs, folder = sys.argv[1], Path(sys.argv[2])
    answers: dict[str, Any] = {}
    for name, points in json.loads(sys.argv[3]):
        ends = [run(inputs, folder / name, *point)[0] for point in points]
        end, counted = run(inputs, folder / name)
        answers[name] = [*ends, end]
        answers.setdefault("counts", counted)
    print(json.dumps(answers))  # noqa: T201
