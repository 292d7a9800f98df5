# SPDX-License-Identifier: Apache-2.0
"""Which requests the served models take, refuse and drop, and in which order they work on them."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_models import LARGE, NO_WORDS, ONE_WORD, TWO_WORDS, Server, page, png

from ocdserve.backend import Detector
from ocdserve.backend.spec.bundle import generation_number
from ocdserve.results.decoding import upright_pixels


class TestAdmission:
    """One thread: three decoders, and with the one in the network four requests in work."""

    @pytest.fixture
    def decoding(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """While it is not set, no image is decoded."""
        go, real = threading.Event(), Detector.preprocess
        self.begun: list[object] = []

        def preprocess(detector: Any, image: Any, *arguments: Any, **options: Any) -> Any:
            self.begun.append(image)
            assert go.wait(30)
            return real(detector, image, *arguments, **options)

        monkeypatch.setattr(Detector, "preprocess", preprocess)
        yield go
        go.set()

    @pytest.mark.parametrize("name", ["ocdnet_fused", "ocdnet_preprocess"])
    def test_what_finds_no_place_is_refused_unread(self, server: Server, name: str, decoding: threading.Event) -> None:
        model = server.model(name, queue_size="2")
        admitted = [server.request(name, IMAGE=[ONE_WORD]) for _ in range(6)]
        refused = [server.request(name, IMAGE=[b"hello"]) for _ in range(2)]
        model.execute(admitted)
        for answer in server.answers(model, name, *refused):
            assert answer.code() == server.pb_utils.TritonError.UNAVAILABLE
            assert answer.message().startswith(f"2 requests wait for {name}, the most that its queue holds.")
        assert not any(request.get_response_sender().answered.is_set() for request in admitted)
        decoding.set()
        model.finalize()
        server.running.clear()
        assert [request.get_response_sender().response.error() for request in admitted] == [None] * 6
        assert self.begun == [ONE_WORD] * 6

    def test_a_place_is_free_as_soon_as_its_answer_is_there(self, server: Server) -> None:
        model = server.model("ocdnet_fused", queue_size="1")
        for _ in range(8):
            for answer in server.answers(
                model, "ocdnet_fused", *[server.request("ocdnet_fused", IMAGE=[ONE_WORD]) for _ in range(5)]
            ):
                assert isinstance(answer, dict)

    def test_the_queue_of_an_earlier_repository_is_as_long_as_that_of_triton_was(self, server: Server) -> None:
        config = {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 7}}}
        arguments = {"model_config": json.dumps(config), "model_repository": "."}
        assert server.options.from_triton(arguments).queue_size == 7

    @pytest.mark.parametrize("name", ["ocdnet_fused", "ocdnet_preprocess"])
    def test_what_is_overdue_or_cancelled_is_not_decoded(
        self, server: Server, name: str, decoding: threading.Event
    ) -> None:
        model = server.model(name)
        first = [server.request(name, IMAGE=[ONE_WORD]) for _ in range(4)]
        late = server.request(name, timeout_us=1000, IMAGE=[TWO_WORDS])
        cancelled = server.request(name, IMAGE=[LARGE])
        in_time = server.request(name, timeout_us=60_000_000, IMAGE=[NO_WORDS])
        model.execute([*first, late, cancelled, in_time])
        cancelled.cancelled = True
        time.sleep(0.06)
        decoding.set()
        senders = [request.get_response_sender() for request in (late, cancelled, in_time)]
        assert all(sender.answered.wait(30) for sender in senders)
        errors = [sender.response.error() for sender in senders]
        assert [error and error.code() for error in errors] == [
            server.pb_utils.TritonError.UNAVAILABLE,
            server.pb_utils.TritonError.CANCELLED,
            None,
        ]
        assert "before the stage preprocess could begin" in errors[0].message()
        assert sorted(self.begun) == sorted([ONE_WORD] * 4 + [NO_WORDS])

    def test_the_queue_of_an_ensemble_is_that_of_all_its_steps(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OCDSERVE_HEALTH_DIRECTORY", str(tmp_path))
        first, network, last = (
            server.model(f"ocdnet_{step}", in_ensemble=True, **({"queue_size": "2"} if step == "preprocess" else {}))
            for step in ("preprocess", "network", "postprocess")
        )

        def admitted(number: int) -> list[Any]:
            requests = [server.request("ocdnet_preprocess", IMAGE=[ONE_WORD]) for _ in range(number)]
            answers = server.answers(first, "ocdnet_preprocess", *requests)
            assert all("2 requests wait" in each.message() for each in answers if not isinstance(each, dict))
            return sorted((each for each in answers if isinstance(each, dict)), key=lambda each: each["CONTEXT"][0, 1])

        waiting = admitted(8)
        assert len(waiting) == 6
        assert admitted(2) == []
        late = {key: waiting[2][key] for key in ("NETWORK_IMAGE", "FRAME", "CONTEXT")}
        late["CONTEXT"] = late["CONTEXT"] * [0, 1, 1, 1] + [1, 0, 0, 0]
        (refused,) = server.answers(network, "ocdnet_network", server.request("ocdnet_network", **late))
        assert "before the stage network could begin" in refused.message()
        # And the two before it.
        assert len(admitted(8)) == 3
        inputs = {"MAP": waiting[5]["NETWORK_IMAGE"][..., 0].copy(), **waiting[5]}
        answered = server.request(
            "ocdnet_postprocess", MAP=inputs["MAP"], FRAME=inputs["FRAME"], CONTEXT=inputs["CONTEXT"]
        )
        assert isinstance(server.answers(last, "ocdnet_postprocess", answered)[0], dict)
        assert len(admitted(8)) == 3
        # A step that a client calls itself is no part of the queue.
        alone = server.request("ocdnet_postprocess", MAP=inputs["MAP"], FRAME=inputs["FRAME"])
        assert isinstance(server.answers(last, "ocdnet_postprocess", alone)[0], dict)
        assert admitted(2) == []

    def test_the_later_steps_stop_at_the_deadline_that_the_first_passes_on(self, server: Server) -> None:
        model = server.model("ocdnet_preprocess")
        limited, endless = server.answers(
            model,
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", timeout_us=60_000_000, IMAGE=[ONE_WORD, TWO_WORDS]),
            server.request("ocdnet_preprocess", IMAGE=[ONE_WORD, TWO_WORDS]),
        )
        (longest,) = server.answers(
            model, "ocdnet_preprocess", server.request("ocdnet_preprocess", timeout_us=2**64 - 1, IMAGE=[ONE_WORD])
        )
        assert longest["CONTEXT"][:, 0].tolist() == [2**63 - 1]
        assert endless["CONTEXT"][:, 0].tolist() == [0, 0]
        assert limited["CONTEXT"].shape == (2, 4)
        assert 0 < limited["CONTEXT"][0, 0] - time.monotonic_ns() < 60_000_000_000
        steps: dict[str, dict[str, Any]] = {
            "ocdnet_network": {"NETWORK_IMAGE": endless["NETWORK_IMAGE"]},
            "ocdnet_postprocess": {"MAP": endless["NETWORK_IMAGE"][..., 0].copy()},
        }
        for name, inputs in steps.items():
            late, good, unlimited = server.answers(
                server.model(name),
                name,
                *[
                    server.request(name, **inputs, FRAME=endless["FRAME"], **given)
                    for given in (
                        {"CONTEXT": np.ones((2, 1), np.int64)},
                        {"CONTEXT": limited["CONTEXT"]},
                        {"CONTEXT": np.ones((0, 1), np.int64)},
                    )
                ],
            )
            assert late.code() == server.pb_utils.TritonError.UNAVAILABLE
            assert f"before the stage {name.removeprefix('ocdnet_')} could begin" in late.message()
            assert isinstance(good, dict)
            assert isinstance(unlimited, dict)

    def test_a_step_does_not_continue_the_work_of_another_detector(self, server: Server) -> None:
        (prepared,) = server.answers(
            server.model("ocdnet_preprocess"),
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", IMAGE=[ONE_WORD, TWO_WORDS]),
        )
        own, other = prepared["CONTEXT"], prepared["CONTEXT"].copy()
        assert own[:, 3].tolist() == [generation_number(server.bundle.digest())] * 2
        other[:, 3] += 1
        steps: dict[str, dict[str, Any]] = {
            "ocdnet_network": {"NETWORK_IMAGE": prepared["NETWORK_IMAGE"]},
            "ocdnet_postprocess": {"MAP": prepared["NETWORK_IMAGE"][..., 0].copy()},
        }
        for name, inputs in steps.items():
            same, refused, unknown = server.answers(
                server.model(name),
                name,
                *[
                    server.request(name, **inputs, FRAME=prepared["FRAME"], **given)
                    for given in ({"CONTEXT": own}, {"CONTEXT": other}, {"CONTEXT": own[:, :3]})
                ],
            )
            assert isinstance(same, dict)
            assert isinstance(unknown, dict)
            assert refused.code() == server.pb_utils.TritonError.UNAVAILABLE
            assert refused.message() == (
                f"another detector has prepared the image than the one of {name}: the server's detector was replaced "
                "meanwhile. Send the request again."
            )


class TestLargeImages:
    """One of more than four megapixels fills the bound of these servers, on all images that are being decoded."""

    HUGE = png(page((200, 100, 255), height=2000, width=2001))

    @pytest.fixture
    def decoding(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """While it is not set, no large image is decoded to its end."""
        monkeypatch.setenv("OCDSERVE_HEALTH_DIRECTORY", str(tmp_path))
        go, lock, real = threading.Event(), threading.Lock(), upright_pixels
        self.now = 0
        self.seen: list[int] = []

        def decode(image: Any, *rest: Any) -> Any:
            if image.width < 2000:
                return real(image, *rest)
            with lock:
                self.now += 1
                self.seen.append(self.now)
            assert go.wait(30)
            try:
                return real(image, *rest)
            finally:
                with lock:
                    self.now -= 1

        monkeypatch.setattr("ocdserve.backend.stages.image.upright_pixels", decode)
        yield go
        go.set()

    def test_they_are_decoded_one_after_the_other_and_others_meanwhile(
        self, server: Server, decoding: threading.Event
    ) -> None:
        models = {name: server.model(name, max_pixels_in_flight="1") for name in ("ocdnet_fused", "ocdnet_preprocess")}
        large = [(name, server.request(name, IMAGE=[ONE_WORD, self.HUGE])) for name in models for _ in range(6)]
        for name, request in large:
            models[name].execute([request])
        while not self.seen:
            time.sleep(0.01)
        for name, model in models.items():
            late, cancelled = (
                server.request(name, timeout_us=200_000, IMAGE=[self.HUGE]),
                server.request(name, IMAGE=[self.HUGE]),
            )
            model.execute([cancelled])
            cancelled.cancelled = True
            small = server.answers(model, name, *(server.request(name, IMAGE=[ONE_WORD]) for _ in range(8)))
            assert all(isinstance(answer, dict) for answer in small)
            (refused,) = server.answers(model, name, late)
            assert "before the stage preprocess could begin" in refused.message()
            assert cancelled.get_response_sender().answered.wait(30)
            assert cancelled.get_response_sender().response.error().code() == server.pb_utils.TritonError.CANCELLED
        assert self.seen == [1]
        decoding.set()
        for _, request in large:
            assert request.get_response_sender().answered.wait(30)
            assert request.get_response_sender().response.error() is None
        assert self.seen == [1] * 12

    def test_their_answer_is_that_of_the_detector(
        self, server: Server, detector: Detector, decoding: threading.Event
    ) -> None:
        decoding.set()
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[self.HUGE, TWO_WORDS]))
        for index, image in enumerate((self.HUGE, TWO_WORDS)):
            np.testing.assert_array_equal(
                answer["QUADS"][index, : answer["COUNT"][index, 0]], detector.detect(image).quads
            )
        assert self.seen == [1, 1]

    def test_what_is_too_large_is_refused_at_once(self, server: Server, decoding: threading.Event) -> None:
        model = server.model("ocdnet_fused", max_pixels="4001999")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[ONE_WORD, self.HUGE]))
        assert server.assert_invalid(answer).startswith(
            "image 1 of 2 (counted from 0): the image has 2001 x 2000 = 4002000 pixels; at most 4001999 are served."
        )
        (answer,) = server.answers(
            model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[b"no image", self.HUGE])
        )
        assert "image 0 of 2 (counted from 0): not an image that can be read" in server.assert_invalid(answer)
        assert self.seen == []
