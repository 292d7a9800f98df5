# SPDX-License-Identifier: Apache-2.0
"""Which requests are admitted: as many as will be answered within the queue time."""

import mmap
import os
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE
from ocdserve.backend.serve.process.ownership import shared_directory
from ocdserve.backend.triton.waiter import OverloadError, Waiter
from ocdserve.contract import MAX_BATCH_SIZE

# Fewer images are no queue, however long they take: one batch is worked on, and one waits.
_NO_QUEUE = 2 * MAX_BATCH_SIZE
# Requests whose time per image is remembered. Its median counts, so that a few slow images shut nobody out.
_REMEMBERED = 31
# The time that a request is expected to take is a median: the rest of the queue time is for what takes longer.
_SHARE_OF_QUEUE_TIME = 0.75
# A request that was passed on is lost when it takes longer than this and twice what was expected.
_LOST_NS = 2_000_000_000
_LOOK_NS = 1_000_000_000
_PAGE_BYTES = 16


class LastAnswer:
    """A page of memory by which the later steps of an ensemble tell the first one how far they are.

    It holds the arrival of the youngest request that was answered, and when it was; 0 for the latter if by an error.
    Times are nanoseconds of the monotonic clock.
    """

    def __init__(self, directory: Path) -> None:
        """Share the page with all processes that name this directory; the first one makes its file there."""
        self._path = directory / "answered"
        self._file: tuple[int, int] | None = None
        self._looked = -_LOOK_NS
        self._page = memoryview(bytearray(_PAGE_BYTES)).cast("q")

    @classmethod
    def of_server(cls, environment: Mapping[str, str] = os.environ) -> "LastAnswer | None":
        """The page of the Triton that started this process; None if there is no place for it."""
        named = environment.get(DIRECTORY_VARIABLE)
        directory = Path(named) if named else shared_directory(os.getppid())
        return cls(directory) if directory else None

    def read(self, now: int) -> tuple[int, int]:
        """Arrival and answer; zeros while another process writes."""
        page = self._shared(now)
        arrival, answered = page[0], page[1]
        return (arrival, answered) if page[0] == arrival else (0, 0)

    def write(self, arrival: int, now: int, is_error: bool) -> None:
        """Note that a request is being answered."""
        page = self._shared(now)
        if page[0] < arrival <= now:
            page[0] = 0
            page[1] = 0 if is_error else now
            page[0] = arrival

    def _shared(self, now: int) -> memoryview:
        if now - self._looked >= _LOOK_NS:
            self._looked = now
            # Without the file each process has a page of its own, and the first step only its own queue.
            with suppress(OSError):
                self._open()
        return self._page

    def _open(self) -> None:
        """Map the file, unless it is the one that is mapped: the launcher makes a lost directory again."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "r+b", closefd=True) as file:
            status = os.fstat(descriptor)
            if self._file != (status.st_dev, status.st_ino):
                # A hole in the file would end the process on a full disk.
                os.posix_fallocate(descriptor, 0, _PAGE_BYTES)
                self._page = memoryview(mmap.mmap(file.fileno(), _PAGE_BYTES)).cast("q")
                self._file = (status.st_dev, status.st_ino)


@dataclass
class _Place:
    """A request in the pipeline.

    Attributes:
        images: Its images.
        among: Images in the pipeline when it was admitted, its own included.
        patience: Nanoseconds after which it is lost, from when it was passed on.
        passed_on: When that was.
    """

    images: int
    among: int
    patience: float
    passed_on: int = 0


class Admission:
    """The queue of a pipeline: of this process, or of an ensemble whose first step it is.

    The time that a request will take is that per image times the images in the pipeline, its own included; the time per
    image is what the last requests took, divided by the images among which they were (Little's law).
    """

    def __init__(
        self, name: str, working: int, queue_size: int, queue_time_ms: int, last_answer: LastAnswer | None = None
    ) -> None:
        """Begin with an empty queue.

        Args:
            name: Of the model, for messages.
            working: Requests that are worked on at the same time, in this process.
            queue_size: Requests that may wait, in addition to those.
            queue_time_ms: How long an admitted request may take, in milliseconds, unless there is no queue.
            last_answer: Where later steps report; None: this process answers.
        """
        self._name = name
        self._queue_size = queue_size
        self._requests = working + queue_size
        self._no_queue = max(working, _NO_QUEUE)
        self._queue_time_ns = queue_time_ms * 1_000_000
        self._last_answer = last_answer
        self._lock = threading.Lock()
        self._here: dict[Waiter, _Place] = {}
        # By arrival.
        self._passed_on: dict[int, _Place] = {}
        # Those that were taken for lost, or whose steps were taken for dead: an answer may still say what they took.
        self._overdue: dict[int, _Place] = {}
        # Arrival of the youngest answered request, when it was heard of, and whether later steps report at all.
        self._answered = 0
        self._heard = 0
        self._is_heard = True
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._cost = 0.0

    def enter(self, waiter: Waiter, images: int) -> None:
        """Admit a request that has just arrived.

        Raises:
            OverloadError: It is not admitted.
        """
        now = waiter.arrival_here
        with self._lock:
            self._hear(now)
            places = [*self._here.values(), *self._passed_on.values()]
            before = sum(place.images for place in places)
            expected = self._cost * (before + images)
            if len(places) >= self._requests:
                raise OverloadError(
                    f"{self._queue_size} requests wait for {self._name}, the most that its queue holds. "
                    "Try again later, or publish with a larger queue_size."
                )
            if before >= self._no_queue:
                self._check_time(waiter, before, expected)
            self._here[waiter] = _Place(images, before + images, _LOST_NS + 2 * expected)

    def leave(self, waiter: Waiter, now: int, is_error: bool) -> None:
        """Note that this process is about to answer a request that was admitted."""
        with self._lock:
            place = self._here.pop(waiter)
            if is_error:
                return
            if self._last_answer is None:
                self._learn(now - waiter.arrival_here, place)
            elif self._is_heard:
                place.passed_on = now
                self._passed_on[waiter.arrival] = place

    def waiting(self, now: int) -> tuple[int, float]:
        """Admitted requests that are not answered, and for how many seconds the oldest has been waiting."""
        with self._lock:
            self._hear(now)
            arrivals = [*(waiter.arrival_here for waiter in self._here), *self._passed_on]
        return len(arrivals), (now - min(arrivals, default=now)) / 1e9

    def _check_time(self, waiter: Waiter, before: int, expected: float) -> None:
        text = f"{before} images wait for {self._name}, which takes about {expected / 1e9:.1f} s"
        if expected > _SHARE_OF_QUEUE_TIME * self._queue_time_ns:
            raise OverloadError(
                f"{text}, too long for its queue time of {self._queue_time_ns / 1e9:g} s. "
                "Try again later, or publish with a larger queue_time_ms."
            )
        if waiter.deadline and waiter.arrival_here + expected > waiter.deadline:
            raise OverloadError(f"{text}, more than the request's timeout. Allow more time, or try again later.")

    def _hear(self, now: int) -> None:
        """Forget what the later steps have answered or lost."""
        if self._last_answer is None:
            return
        arrival, answered = self._last_answer.read(now)
        if arrival > self._answered:
            self._answered, self._heard, self._is_heard = arrival, now, True
            if answered and (place := {**self._overdue, **self._passed_on}.get(arrival)):
                self._learn(answered - arrival, place)
        # The steps keep the order, more or less: whatever is older was answered too, or dropped.
        left = {key: place for key, place in self._passed_on.items() if key > self._answered}
        lost = [key for key, place in left.items() if now - place.passed_on > place.patience]
        if any(left[key].passed_on > self._heard for key in lost):
            # The later steps are dead, or cannot report: until they do, only the queue of this process counts.
            lost, self._is_heard = [*left], False
        overdue = {key: place for key, place in self._overdue.items() if key > self._answered}
        self._overdue = {**overdue, **{key: left.pop(key) for key in lost}}
        self._passed_on = left

    def _learn(self, took: int, place: _Place) -> None:
        self._costs.append(took / place.among)
        self._cost = median(self._costs)
