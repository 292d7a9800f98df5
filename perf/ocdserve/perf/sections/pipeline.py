# SPDX-License-Identifier: Apache-2.0
"""Our detector beside others: from the encoded image to boxes, on the same threads, with the accuracy of each."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import process_time
from typing import Any

from numpy.typing import NDArray

from ocdserve.backend.evaluation.figures import Counts, total
from ocdserve.backend.evaluation.matching import match
from ocdserve.contract import UnavailableError
from ocdserve.perf.inputs.data_sets import DataSet
from ocdserve.perf.series.measurement import OURS, Measurement, case_of
from ocdserve.perf.series.samples import Progress, in_turns
from ocdserve.perf.series.threads import opencv_threads
from ocdserve.perf.subjects import Peer

# The fact that names what could not be measured, and why.
NOT_MEASURED = "not measured"


class _Series:
    """What one detector did in one data set so far."""

    def __init__(self) -> None:
        self.cases: list[str] = []
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.results: list[Counts] = []


def measure_pipelines(
    peers: Sequence[Peer], data_sets: Sequence[DataSet], rounds: int, threads: int, progress: Progress
) -> tuple[Measurement, ...]:
    """Run all detectors over all images, taking turns image by image.

    Before a data set is measured, each detector sees its first image once without being timed. A network
    that compiles for each size of image does so within the measurement, as it would in use.

    Args:
        peers: The detectors, ours among them.
        data_sets: What to detect in.
        rounds: How often each image is measured.
        threads: Threads of OpenCV; those of the networks are the detectors' own.
        progress: Is told of images done.

    Returns:
        A series for each data set and detector, and where there are several data sets one for all of them together.
        Detectors that are not available, or fail at an image, are left out; the fact `not measured` says why. The fact
        `CPU ms` is the median of this process' CPU time: far below the time, the machine was busy with other work.

    Raises:
        UnavailableError: Ours is not available.
        Exception: Ours failed at an image.
    """
    present, missing = _available(peers)
    found: dict[tuple[str, str], _Series] = {}
    total, done = rounds * sum(len(data.images) for data in data_sets), 0
    with opencv_threads(threads):
        for data in data_sets:
            for peer in [*present]:
                found[data.name, peer.name] = _Series()
                _try(peer, data.images[0].encoded, present, missing)
            for round_, (index, image) in itertools.product(range(rounds), enumerate(data.images)):
                calls = {peer.name: _bound(peer, image.encoded, present, missing) for peer in present}
                for name, ms, (quads, cpu_ms) in in_turns(calls, index + round_):
                    if quads is None:
                        continue
                    series = found[data.name, name]
                    series.cases.append(case_of(image.name, round_))
                    series.ms.append(ms)
                    series.cpu_ms.append(cpu_ms)
                    if round_ == 0:
                        series.results.append(match(quads, image.truth))
                done += 1
                progress(done, total)
    groups = [data.name for data in data_sets]
    if len(groups) > 1:
        together = " + ".join(groups)
        found |= {(together, peer.name): _joined(groups, peer.name, found) for peer in present}
        groups.append(together)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return tuple(
        _measurement(group, peer.name, found[group, peer.name], threads, reasons)
        for group in groups
        for peer in present
    )


def _available(peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, str]]:
    present, missing = [], {}
    for peer in peers:
        reason = peer.available()
        if reason is None:
            present.append(peer)
        elif peer.name == OURS:
            raise UnavailableError(f"{OURS} is not available: {reason}")
        else:
            missing[peer.name] = reason
    return present, missing


def _try(peer: Peer, encoded: bytes, present: list[Peer], missing: dict[str, str]) -> NDArray[Any] | None:
    """Detect; another's detector that fails is measured no further, and None is what it found."""
    try:
        return peer.detect(encoded)
    except Exception as error:  # whatever other people's code raises
        if peer.name == OURS:
            raise
        present.remove(peer)
        missing[peer.name] = f"it failed: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return None


def _bound(
    peer: Peer, encoded: bytes, present: list[Peer], missing: dict[str, str]
) -> Callable[[], tuple[NDArray[Any] | None, float]]:
    """A call that gives what was found, and the milliseconds of CPU time that it took."""

    def call() -> tuple[NDArray[Any] | None, float]:
        begin = process_time()
        quads = _try(peer, encoded, present, missing)
        return quads, (process_time() - begin) * 1000

    return call


def _joined(groups: Sequence[str], name: str, found: Mapping[tuple[str, str], _Series]) -> _Series:
    joined = _Series()
    for group in groups:
        series = found[group, name]
        joined.cases += [f"{group}/{case}" for case in series.cases]
        joined.ms += series.ms
        joined.cpu_ms += series.cpu_ms
        joined.results += series.results
    return joined


def _measurement(group: str, name: str, series: _Series, threads: int, missing: str) -> Measurement:
    counts = total(series.results)
    facts: dict[str, str | int | float] = {
        "boxes": counts.detections,
        "precision": counts.precision,
        "recall": counts.recall,
        "hmean": counts.hmean,
        "CPU ms": median(series.cpu_ms),
    }
    if missing:
        facts[NOT_MEASURED] = missing
    return Measurement(
        section="pipeline",
        subject=name,
        group=group,
        unit="ms",
        samples=tuple(series.ms),
        cases=tuple(series.cases),
        factors={"threads": threads},
        facts=facts,
        baseline=OURS,
    )
