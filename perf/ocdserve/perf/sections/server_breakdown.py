# SPDX-License-Identifier: Apache-2.0
"""Breakdown of a served request: the parts of each step by Triton's statistics, and the rest of the latency.

The statistics are sums. Requests are sent one at a time and the sums are read after each, so that their difference is
the time of one request. See Triton's statistics extension of the KServe protocol. Of models that answer from threads of
their own, `ocdnet_preprocess` and `ocdnet_fused`, they hold only the time of the hand-over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

from ocdserve.client import TextDetector
from ocdserve.contract import ENSEMBLE, NETWORK, POSTPROCESS, PREPROCESS, OcdserveError

# Models that a request to a model executes, in order.
STEPS: Mapping[str, tuple[str, ...]] = {ENSEMBLE: (PREPROCESS, NETWORK, POSTPROCESS)}
# Parts of a step: waiting, copying in, executing, copying out.
PARTS = {"queue": "queue", "input": "compute_input", "infer": "compute_infer", "output": "compute_output"}
# The rest of the latency: the client's work, transport, hand-over between steps, and preprocessing. It can be 0, since
# Triton sends an answer before it ends the time of its step.
REST = "client, transport and preprocessing"

_PATIENCE_S = 2.0
_POLL_S = 0.002
# More than a canary takes.
_CANARY_S = 1.0


class StatisticsError(OcdserveError):
    """The server's statistics do not show exactly one request."""


@dataclass(frozen=True)
class Sums:
    """Statistics of one model since the start of the server.

    Attributes:
        count: Executed requests.
        ns: Nanoseconds by part.
    """

    count: int
    ns: Mapping[str, int]


class ServedStages:
    """A served model as a subject of `measure_stages`; the server must have no other clients meanwhile.

    Args:
        grpc_url: `grpc://HOST:PORT` of a server that is ready.
        model: A key of `STEPS`.
    """

    def __init__(self, grpc_url: str, model: str) -> None:
        import tritonclient.grpc

        self._steps = STEPS[model]
        self._detector = TextDetector(grpc_url, model=model)
        self._statistics: Any = tritonclient.grpc.InferenceServerClient(grpc_url.removeprefix("grpc://"))

    def __call__(self, encoded: bytes) -> Mapping[str, float]:
        """Milliseconds of one request by stage.

        Raises:
            StatisticsError: A step did not execute exactly once.
        """
        try:
            return self._measure(encoded)
        except StatisticsError:
            # The launcher sent a canary inference in between, which may still be in a later step; it sends none to a
            # model that was just used.
            sleep(_CANARY_S)
            return self._measure(encoded)

    def _measure(self, encoded: bytes) -> Mapping[str, float]:
        before = self._sums()
        begin = perf_counter()
        self._detector.detect(encoded)
        total = (perf_counter() - begin) * 1000
        return stages_of(before, self._after(before), self._steps, total)

    def close(self) -> None:
        """Close the connections."""
        self._detector.close()
        self._statistics.close()

    def _after(self, before: Mapping[str, Sums]) -> Mapping[str, Sums]:
        """Statistics once they include the request, which may be shortly after the answer."""
        deadline = perf_counter() + _PATIENCE_S
        while True:
            after = self._sums()
            if all(after[step].count > before[step].count for step in self._steps) or perf_counter() > deadline:
                return after
            sleep(_POLL_S)

    def _sums(self) -> Mapping[str, Sums]:
        answer = self._statistics.get_inference_statistics()
        return sums_of(answer.model_stats, self._steps)


def sums_of(model_stats: Sequence[Any], steps: Sequence[str]) -> dict[str, Sums]:
    """Statistics of the steps, summed over all versions of a model."""
    sums = {step: Sums(0, dict.fromkeys(PARTS, 0)) for step in steps}
    for model in model_stats:
        if model.name in sums:
            stats, known = model.inference_stats, sums[model.name]
            ns = {part: known.ns[part] + getattr(stats, field).ns for part, field in PARTS.items()}
            sums[model.name] = Sums(known.count + stats.compute_infer.count, ns)
    return sums


def stages_of(
    before: Mapping[str, Sums], after: Mapping[str, Sums], steps: Sequence[str], total_ms: float
) -> dict[str, float]:
    """Milliseconds of each part of each step in one request, and the rest of the latency.

    Raises:
        StatisticsError: A step did not execute exactly once.
    """
    stages = {}
    for step in steps:
        count = after[step].count - before[step].count
        if count != 1:
            raise StatisticsError(
                f"{step} executed {count} times for one request; the server must serve no other client "
                "meanwhile, and must not answer from a cache"
            )
        for part in PARTS:
            stages[f"{step} {part}"] = (after[step].ns[part] - before[step].ns[part]) / 1e6
    return stages | {REST: max(0.0, total_ms - sum(stages.values()))}
