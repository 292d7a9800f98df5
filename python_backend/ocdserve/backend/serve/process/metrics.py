# SPDX-License-Identifier: Apache-2.0
"""The metrics, declared once, and the counters of the launcher, which the models' processes show on Triton's endpoint.

The launcher writes its totals to a file in its directory of health notes. One process of the models, whichever holds
the lock next to it, raises Triton's counters to them; so they survive a restart of that process and of Triton.
"""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from ocdserve.backend.files import write_atomically
from ocdserve.contract import (
    ASKED_MODELS,
    FUSED,
    MODELS,
    OCR_FUSED,
    POSTPROCESS,
    PREPROCESS,
    RECOGNISE,
    InvalidInputError,
    Limits,
)

Outcome = Literal["ok", "invalid", "shed", "expired", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "invalid", "shed", "expired", "failed")
LIMITS = tuple(item.name for item in fields(Limits))

# Of the launcher's canary inferences, which are not counted as requests.
CANARY_ID = "ocdserve-canary"

_TOTALS, _LOCK = "totals.json", "totals.lock"


@dataclass(frozen=True)
class Family:
    """A metric.

    Attributes:
        name: As Prometheus has it.
        kind: Its type.
        meaning: What it is, for its help text.
        labels: Each label's name and values; none: any.
        buckets: Upper ends of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: Mapping[str, tuple[str, ...]]
    buckets: tuple[float, ...] = ()


_TO_1000 = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_TO_5_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SERVED = tuple(name for name, contract in MODELS.items() if not contract.is_ensemble)

STAGE_DURATION = Family(
    "ocdserve_stage_duration_seconds",
    "histogram",
    "Time an image spends in a stage",
    # The fused model on a GPU cannot time the stages one by one: `decode`, and `gpu` for all the others.
    {"model": _SERVED, "stage": ("preprocess", "network", "postprocess", "recognise", "decode", "gpu")},
    _TO_5_S,
)
DETECTIONS = Family(
    "ocdserve_detections_per_image",
    "histogram",
    "Text regions found in an image",
    {"model": (FUSED, POSTPROCESS, OCR_FUSED)},
    _TO_1000,
)
LINES = Family(
    "ocdserve_lines_per_image",
    "histogram",
    "Lines read in an image, those left out for their score too",
    {"model": (OCR_FUSED, RECOGNISE)},
    _TO_1000,
)
REQUESTS = Family(
    "ocdserve_requests_total", "counter", "Requests answered", {"model": ASKED_MODELS, "outcome": OUTCOMES}
)
REQUEST_DURATION = Family(
    "ocdserve_request_duration_seconds",
    "histogram",
    "Time from a request's arrival to its answer, if that is ok",
    {"model": ASKED_MODELS},
    (*_TO_5_S, 10.0, 20.0, 60.0),
)
LIMIT_HITS = Family("ocdserve_limit_hits_total", "counter", "Requests refused because of a limit", {"limit": LIMITS})
LIMIT = Family("ocdserve_limit", "gauge", "Value of a limit", {"limit": LIMITS})
# An instance is named by Triton.
_QUEUES: Mapping[str, tuple[str, ...]] = {"instance": (), "model": (PREPROCESS, FUSED, OCR_FUSED, RECOGNISE)}
QUEUE_LENGTH = Family("ocdserve_queue_requests", "gauge", "Requests admitted and not answered", _QUEUES)
QUEUE_AGE = Family("ocdserve_queue_oldest_seconds", "gauge", "How long the oldest of them has waited", _QUEUES)
RELOADS = Family("ocdserve_reloads_total", "counter", "Reloads of the bundle", {"outcome": ("ok", "failed")})
RESTARTS = Family(
    "ocdserve_restarts_total",
    "counter",
    "Models loaded again and starts of Triton after the first, by what happened before",
    {
        "reason": (
            "process_died",
            "process_hung",
            "process_failed",
            "canary_failed",
            "server_died",
            "server_hung",
            "server_lost",
            "load_stuck",
        )
    },
)
CANARIES = Family(
    "ocdserve_canary_total", "counter", "Canary inferences", {"outcome": ("ok", "busy", "silent", "wrong")}
)
BUILD_INFO = Family(
    "ocdserve_build_info",
    "gauge",
    "1 for what is served",
    dict.fromkeys(("bundle", "runtime", "triton", "version"), ()),
)
SHARED_MEMORY_BYTES = Family(
    "ocdserve_shm_bytes", "gauge", "Size of /dev/shm, and what is used of it", {"state": ("size", "used")}
)
# Counted by the launcher; each has one label.
LAUNCHER_FAMILIES = (RELOADS, RESTARTS, CANARIES)
FAMILIES = (
    REQUESTS,
    REQUEST_DURATION,
    STAGE_DURATION,
    DETECTIONS,
    LINES,
    LIMIT,
    LIMIT_HITS,
    QUEUE_LENGTH,
    QUEUE_AGE,
    *LAUNCHER_FAMILIES,
    SHARED_MEMORY_BYTES,
    BUILD_INFO,
)

Totals = dict[str, dict[str, int]]


@dataclass
class LauncherCounters:
    """Counters of the launcher. Thread-safe; the totals are kept when the directory is lost."""

    _totals: Totals = field(
        default_factory=lambda: {
            family.name: dict.fromkeys(next(iter(family.labels.values())), 0) for family in LAUNCHER_FAMILIES
        }
    )
    _directory: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def publish(self, directory: Path) -> None:
        """Write the totals to a directory, now and whenever they change."""
        with self._lock:
            self._directory = directory
            self._write()

    def count(self, family: Family, value: str) -> None:
        """Count one more.

        Args:
            family: One of `LAUNCHER_FAMILIES`.
            value: Of its label.
        """
        with self._lock:
            if value not in self._totals[family.name]:
                raise InvalidInputError(
                    f"{family.name} has the values {', '.join(self._totals[family.name])}; got {value!r}. Declare it."
                )
            self._totals[family.name][value] += 1
            self._write()

    def _write(self) -> None:
        # It may be lost, and is then made again with the next start of Triton.
        if self._directory is not None:
            with contextlib.suppress(OSError):
                write_atomically(self._directory / _TOTALS, json.dumps(self._totals).encode())


class TotalsReader:
    """A model's process that may show the launcher's totals: one at a time does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock: int | None = None

    def read(self) -> Totals | None:
        """The totals, if this process is the one that shows them."""
        with contextlib.suppress(OSError):
            if self._lock is None:
                lock = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    # Released with the process, however it ends.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(lock)
                    return None
                self._lock = lock
            totals: Totals = json.loads((self._directory / _TOTALS).read_bytes())
            return totals
        return None

    def close(self) -> None:
        """Leave it to another process."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
