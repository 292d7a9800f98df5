# SPDX-License-Identifier: Apache-2.0
"""One request's times out of Triton's sums."""

from typing import Any

import pytest

from ocdserve.perf.sections.server_breakdown import REST, StatisticsError, Sums, stages_of, sums_of

service_pb2: Any = pytest.importorskip("tritonclient.grpc.service_pb2")


def statistics(name: str, count: int, queue: int, input_: int, infer: int, output: int) -> Any:
    """One model's entry in the server's answer; nanoseconds."""
    part = service_pb2.StatisticDuration
    return service_pb2.ModelStatistics(
        name=name,
        inference_stats=service_pb2.InferStatistics(
            queue=part(count=count, ns=queue),
            compute_input=part(count=count, ns=input_),
            compute_infer=part(count=count, ns=infer),
            compute_output=part(count=count, ns=output),
        ),
    )


def test_versions_of_a_step_are_summed_and_other_models_left_out() -> None:
    answer = [statistics("a", 2, 10, 20, 30, 40), statistics("other", 9, 9, 9, 9, 9), statistics("a", 1, 1, 2, 3, 4)]
    assert sums_of(answer, ("a", "b")) == {
        "a": Sums(3, {"queue": 11, "input": 22, "infer": 33, "output": 44}),
        "b": Sums(0, {"queue": 0, "input": 0, "infer": 0, "output": 0}),
    }


def test_the_difference_of_the_sums_is_the_time_of_one_request() -> None:
    before = sums_of([statistics("a", 5, 1_000_000, 0, 50_000_000, 0)], ("a",))
    after = sums_of([statistics("a", 6, 3_000_000, 500_000, 60_000_000, 250_000)], ("a",))
    stages = stages_of(before, after, ("a",), total_ms=20.0)
    assert stages == {"a queue": 2.0, "a input": 0.5, "a infer": 10.0, "a output": 0.25, REST: 7.25}
    assert list(stages)[-1] == REST


def test_the_rest_is_never_below_zero() -> None:
    before, after = (sums_of([statistics("a", count, 0, 0, count * 10_000_000, 0)], ("a",)) for count in (1, 2))
    assert stages_of(before, after, ("a",), total_ms=9.0)[REST] == 0


@pytest.mark.parametrize("executed", [0, 2])
def test_other_requests_and_cached_answers_are_detected(executed: int) -> None:
    before, after = (sums_of([statistics("a", count, 0, 0, 0, 0)], ("a",)) for count in (5, 5 + executed))
    with pytest.raises(StatisticsError, match=f"a executed {executed} times for one request; the server must serve"):
        stages_of(before, after, ("a",), total_ms=1.0)
