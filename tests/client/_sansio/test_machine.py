# SPDX-License-Identifier: Apache-2.0
"""The request state machine, step by step, with a fake clock and without any transport."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocdserve.client import (
    DeadlineError,
    ErrorEvent,
    Hooks,
    InvalidInputError,
    RequestEvent,
    ResponseEvent,
    Retry,
    ServerError,
    SharedMemory,
    Timeout,
    UnavailableError,
)
from ocdserve.client._endpoint import Endpoint
from ocdserve.client._errors import error_from_status
from ocdserve.client._sansio.machine import RequestMachine
from ocdserve.client._sansio.settings import Settings
from ocdserve.client._sansio.steps import Pause, Probe, Register, Send, Step, Unregister
from ocdserve.client._wire.codec import InferRequest, encode_batch
from ocdserve.contract import OcdserveError, RequestParameters

TENSORS = {"COUNT": np.array([[0]], np.int32)}
REQUEST = encode_batch([b"jpeg"], RequestParameters())
PIXELS = encode_batch([np.zeros((20, 30, 3), np.uint8)], RequestParameters())
EXACT = Retry(attempts=4, backoff_s=1.0, longest_s=3.0, jitter=0.0)


class Bench:
    """Performs the steps by a function, advances the clock, and records what was done."""

    def __init__(self, answer: Callable[[Step], Any], *, servers: int = 1, **options: Any) -> None:
        self.now = 100.0
        self.done: list[Step] = []
        self._answer = answer
        endpoints = tuple(Endpoint("grpc", f"s{number}", 1) for number in range(servers))
        self.machine = RequestMachine(Settings(endpoints, **{"retry": EXACT, **options}), lambda: self.now, lambda: 0.5)

    def infer(self, request: InferRequest = REQUEST) -> Any:
        steps = self.machine.infer(request)
        return self.run(steps)

    def run(self, steps: Any) -> Any:
        try:
            step = next(steps)
            while True:
                self.done.append(step)
                try:
                    if isinstance(step, Pause):
                        self.now += step.seconds
                        answer = None
                    else:
                        answer = self._answer(step)
                except OcdserveError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value

    @property
    def servers(self) -> list[int]:
        return [step.server for step in self.done if isinstance(step, Send)]

    @property
    def pauses(self) -> list[float]:
        return [step.seconds for step in self.done if isinstance(step, Pause)]


def fails(status: str, message: str = "why", times: int = 1000) -> Callable[[Step], Any]:
    """The first sends fail, the others succeed."""
    left = [times]

    def answer(step: Step) -> Any:
        if isinstance(step, Send) and left[0]:
            left[0] -= 1
            raise error_from_status("grpc://s:1", step.request.timeout_s, status, message)
        return TENSORS

    return answer


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("UNAVAILABLE", "Socket closed"),
        ("503", "queue full"),
        ("502", "bad gateway"),
        ("INTERNAL", "Stub process 'ocdnet_network_0_0' is not healthy."),
        ("500", "Stub process 'ocdnet_network_0_0' is not healthy."),
        ("NOT_FOUND", "Request for unknown model: 'ocdnet' has no available versions"),
        ("404", "Request for unknown model: 'ocdnet' has no available versions"),
        ("400", "Request for unknown model: 'ocdnet' has no available versions"),
    ],
)
def test_transient_failures_are_retried_with_growing_pauses(status: str, message: str) -> None:
    bench = Bench(fails(status, message, times=3))
    assert bench.infer() is TENSORS
    assert bench.servers == [0, 0, 0, 0]
    assert bench.pauses == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("INVALID_ARGUMENT", "not an image", InvalidInputError),
        ("INTERNAL", "CUDA error", ServerError),
        ("NOT_FOUND", "unknown model: 'x' is not found", UnavailableError),
        ("RESOURCE_EXHAUSTED", "message too large", UnavailableError),
        ("DEADLINE_EXCEEDED", None, DeadlineError),
    ],
)
def test_permanent_failures_are_sent_once(status: str, message: str, kind: type[OcdserveError]) -> None:
    bench = Bench(fails(status, message))
    with pytest.raises(kind):
        bench.infer()
    assert bench.servers == [0]


def test_the_last_error_is_raised_when_all_attempts_fail() -> None:
    bench = Bench(fails("UNAVAILABLE", "queue full"))
    with pytest.raises(UnavailableError, match="queue full"):
        bench.infer()
    assert len(bench.servers) == 4


def test_no_pause_exceeds_the_time_limit_of_the_call() -> None:
    bench = Bench(fails("UNAVAILABLE"), timeout=Timeout(total=2.5))
    with pytest.raises(UnavailableError, match="why"):
        bench.infer()
    assert bench.pauses == [1.0]
    limits = [step.request.timeout_s for step in bench.done if isinstance(step, Send)]
    assert limits == [2.5, 1.5]


def test_an_attempt_is_limited_by_the_read_timeout_or_the_time_left() -> None:
    bench = Bench(fails("503", times=2), timeout=Timeout(total=4.0, read=2.0))
    bench.infer()
    limits = [step.request.timeout_s for step in bench.done if isinstance(step, Send)]
    assert limits == [2.0, 2.0, 1.0]


def test_jitter_shortens_a_pause_by_at_most_its_share() -> None:
    retry = Retry(backoff_s=1.0, jitter=0.4, longest_s=10)
    assert [retry.pause_s(attempt, 0.0) for attempt in (1, 2, 3, 4, 5, 2000)] == [1, 2, 4, 8, 10, 10]
    assert retry.pause_s(1, 1.0) == pytest.approx(0.6)


def test_another_server_is_tried_at_once_and_pauses_begin_when_all_have_failed() -> None:
    bench = Bench(fails("UNAVAILABLE", times=3), servers=2)
    bench.infer()
    assert bench.servers == [0, 1, 0, 1]
    assert bench.pauses == [1.0]


def test_servers_take_turns_and_the_idle_one_is_preferred() -> None:
    bench = Bench(fails("", times=0), servers=3)
    for _ in range(4):
        bench.infer()
    assert bench.servers == [0, 1, 2, 0]
    waiting = bench.machine.infer(REQUEST)
    assert isinstance(next(waiting), Send)  # Server 1, which does not answer.
    bench.done.clear()
    for _ in range(3):
        bench.infer()
    assert bench.servers == [2, 0, 2]
    assert bench.machine.balancer.under_way() == (0, 1, 0)
    waiting.close()
    assert bench.machine.balancer.under_way() == (0, 0, 0)


def test_a_server_that_fails_three_times_is_left_out_and_probed_after_a_pause_that_doubles() -> None:
    up = [False]

    def answer(step: Step) -> Any:
        if isinstance(step, Send | Probe) and step.server == 0 and not up[0]:
            raise error_from_status("grpc://s0:1", 1.0, "UNAVAILABLE", "refused")
        return True if isinstance(step, Probe) else TENSORS

    bench = Bench(answer, servers=2)
    for _ in range(6):
        bench.infer()
    assert bench.servers == [0, 1, 0, 1, 0, 1, 1, 1, 1]
    assert bench.machine.balancer.left_out() == (0,)
    bench.done.clear()
    for seconds, probes in ((0.5, 0), (0.6, 1), (1.9, 0), (0.2, 1)):
        bench.now += seconds
        bench.infer()
        assert len([step for step in bench.done if isinstance(step, Probe)]) == probes
        bench.done.clear()
    up[0] = True
    bench.now += 4.1
    bench.infer()
    assert bench.machine.balancer.left_out() == ()
    bench.infer()
    assert set(bench.servers) == {0, 1}


def test_a_hanging_probe_leaves_time_for_the_call() -> None:
    def answer(step: Step) -> Any:
        if isinstance(step, Probe):
            bench.now += step.timeout_s
            raise error_from_status("grpc://s0:1", step.timeout_s, "DEADLINE_EXCEEDED", None)
        if isinstance(step, Send) and step.server == 0:
            raise error_from_status("grpc://s0:1", 1.0, "UNAVAILABLE", "refused")
        return TENSORS

    bench = Bench(answer, servers=2, timeout=Timeout(total=4.0, connect=5.0))
    for _ in range(6):
        bench.infer()
    bench.now += 1.1
    assert bench.infer() is TENSORS
    assert [step.timeout_s for step in bench.done if isinstance(step, Probe)] == [2.0]


def test_bad_input_does_not_count_as_a_server_failure() -> None:
    bench = Bench(fails("INVALID_ARGUMENT"), servers=2)
    for _ in range(8):
        with pytest.raises(InvalidInputError):
            bench.infer()
    assert bench.machine.balancer.left_out() == ()


def test_a_single_server_is_never_left_out() -> None:
    bench = Bench(fails("UNAVAILABLE"))
    for _ in range(3):
        with pytest.raises(UnavailableError):
            bench.infer()
    assert bench.machine.balancer.left_out() == ()


def test_hooks_are_called_for_every_attempt() -> None:
    heard: list[Any] = []
    bench = Bench(fails("503", times=1), hooks=Hooks(heard.append, heard.append, heard.append))
    bench.infer()
    assert [type(event) for event in heard] == [RequestEvent, ErrorEvent, RequestEvent, ResponseEvent]
    assert heard[0] == RequestEvent("", "grpc://s0:1", "ocdnet", 1, 4, 1)
    assert (heard[1].request, heard[1].retry_in_s, heard[1].error.status) == (heard[0], 1.0, "503")
    assert heard[3].request.attempt == 2


def test_an_error_raised_by_a_hook_reaches_the_caller_and_blames_no_server() -> None:
    def refuse(event: RequestEvent) -> None:
        raise UnavailableError("the quota is used up")

    bench = Bench(fails("", times=0), servers=2, hooks=Hooks(on_request=refuse))
    for _ in range(8):
        with pytest.raises(UnavailableError, match="the quota is used up"):
            bench.infer()
    assert bench.machine.balancer.left_out() == ()
    assert bench.machine.balancer.under_way() == (0, 0)


def test_pixels_are_registered_once_and_sent_by_region_name() -> None:
    bench = Bench(fails("", times=0), shared_memory=SharedMemory(regions=1))
    bench.infer(PIXELS)
    bench.infer(PIXELS)
    bench.infer(REQUEST)
    kinds = [type(step) for step in bench.done]
    assert kinds == [Register, Send, Send, Send]
    regions = [step.request.region for step in bench.done if isinstance(step, Send)]
    assert regions[0] is not None and regions[0] == regions[1] and regions[0].nbytes == 1800
    assert regions[2] is None
    bench.run(bench.machine.release())
    assert isinstance(bench.done[-1], Unregister)
    assert bench.done[-1].region.name == regions[0].name


def test_a_larger_image_replaces_a_smaller_region() -> None:
    bench = Bench(fails("", times=0), shared_memory=SharedMemory(regions=1))
    bench.infer(PIXELS)
    bench.infer(encode_batch([np.zeros((200, 300, 3), np.uint8)], RequestParameters()))
    assert [type(step) for step in bench.done] == [Register, Send, Unregister, Register, Send]
    bench.run(bench.machine.release())


def test_pixels_are_sent_in_the_request_when_all_regions_are_in_use() -> None:
    bench = Bench(fails("", times=0), shared_memory=SharedMemory(regions=1))
    waiting = bench.machine.infer(PIXELS)
    assert isinstance(next(waiting), Register)
    bench.infer(PIXELS)
    [step] = bench.done
    assert isinstance(step, Send) and step.request.region is None
    waiting.close()
    bench.run(bench.machine.release())


def test_a_region_is_registered_again_when_the_server_has_lost_it() -> None:
    forgot = [True]

    def answer(step: Step) -> Any:
        if isinstance(step, Send) and forgot[0]:
            forgot[0] = False
            raise error_from_status("u", 1.0, "NOT_FOUND", "Unable to find shared memory region: 'x'")
        return TENSORS

    bench = Bench(answer, shared_memory=SharedMemory())
    assert bench.infer(PIXELS) is TENSORS
    assert [type(step) for step in bench.done] == [Register, Send, Register, Send]
    bench.run(bench.machine.release())


def test_registration_is_limited_by_the_time_left() -> None:
    forgot = [True]

    def answer(step: Step) -> Any:
        bench.now += 0.5
        if isinstance(step, Send) and forgot[0]:
            forgot[0] = False
            raise error_from_status("u", 1.0, "NOT_FOUND", "Unable to find shared memory region: 'x'")
        return TENSORS

    bench = Bench(answer, shared_memory=SharedMemory(), timeout=Timeout(total=2.0))
    bench.infer(PIXELS)
    limits = [
        step.request.timeout_s if isinstance(step, Send) else step.timeout_s
        for step in bench.done
        if isinstance(step, Send | Register)
    ]
    assert limits == [2.0, 1.5, 1.0, 0.5]
    bench.run(bench.machine.release())


def test_an_interrupted_release_leaks_no_memory() -> None:
    bench = Bench(fails("", times=0), servers=2, shared_memory=SharedMemory())
    bench.infer(PIXELS)
    bench.infer(PIXELS)
    keys = [step.region.memory.handle() for step in bench.done if isinstance(step, Register)]
    assert len(keys) == 2 and all(Path("/dev/shm" + key).exists() for key in keys)
    closing = bench.machine.release()
    assert isinstance(next(closing), Unregister)
    closing.close()
    assert not any(Path("/dev/shm" + key).exists() for key in keys)


def test_a_remote_server_that_cannot_open_the_memory_is_reported() -> None:
    def answer(step: Step) -> Any:
        if isinstance(step, Register):
            raise error_from_status("u", 1.0, "INTERNAL", "Unable to open shared memory region: '/x'")
        return TENSORS

    bench = Bench(answer, shared_memory=SharedMemory())
    with pytest.raises(InvalidInputError, match=r"must run on this machine.*leave out `shared_memory`"):
        bench.infer(PIXELS)
    bench.run(bench.machine.release())


def test_cuda_memory_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "tritonclient.utils.cuda_shared_memory", raising=False)
    bench = Bench(fails("", times=0), shared_memory=SharedMemory("cuda"))
    with pytest.raises(UnavailableError, match=r"needs the package 'cuda.*pip install"):
        bench.infer(PIXELS)
