# SPDX-License-Identifier: Apache-2.0
"""Faults of the served models, and what they count and time."""

import importlib.metadata
import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_models import LARGE, NO_WORDS, ONE_WORD, RESIZE, TWO_WORDS, Pixels, Server, TinyNetwork, counts_of

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec


class TestFaultsOfTheServer:
    def test_a_failing_network_is_internal_and_shows_no_path(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Broken:
            def infer(self, images: list[Pixels]) -> list[Pixels]:
                if images[0].any():
                    raise RuntimeError("cannot map /srv/secret/weights.bin")
                return [image[..., 0] for image in images]

        monkeypatch.setattr("ocdserve.backend.triton.base_model.load_network", lambda *arguments: Broken())
        model = server.model("ocdnet_fused")
        requests = [server.request("ocdnet_fused", IMAGE=[image]) for image in (ONE_WORD, b"hello", TWO_WORDS)]
        first, bad, last = server.answers(model, "ocdnet_fused", *requests)
        for failed in (first, last):
            assert failed.code() == server.pb_utils.TritonError.INTERNAL
            assert failed.message() == (
                "ocdnet_fused failed with RuntimeError; the server's log has the details. "
                "This is a fault of the server, not of the request."
            )
        server.assert_invalid(bad)
        assert any("cannot map /srv/secret/weights.bin" in line for line in server.pb_utils.Logger.lines)

    def test_warnings_of_loading_are_in_tritons_log(
        self, server: Server, tmp_path: Path, tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging.getLogger("ocdserve"), "handlers", [])
        spec = DetectorSpec(network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)), resize=RESIZE)
        Bundle(spec, tiny_network(weights=(0, 0, 0))).save(tmp_path / "blind" / "bundle")
        config = {"name": "ocdnet_fused", "parameters": {"bundle": {"string_value": "bundle"}}}
        arguments = {"model_config": json.dumps(config), "model_repository": str(tmp_path / "blind")}
        served = importlib.import_module("ocdserve.backend.triton.entry").ServedFused()
        served.initialize({**arguments, "model_name": "ocdnet_fused"})
        served.finalize()
        assert [
            line for line in server.pb_utils.Logger.lines if line.startswith("ocdnet_fused: the network of detector ")
        ]

    def test_models_load_from_a_checkout_that_is_not_installed(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(name: str) -> str:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr("importlib.metadata.version", fail)
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[NO_WORDS]))
        assert answer["COUNT"].tolist() == [[0]]

    @pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
    def test_an_unforeseen_error_of_one_image_affects_only_its_request(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        works = getattr(Detector, stage)

        def fails_for_large(self: Any, *arguments: Any, **options: Any) -> Any:
            if (stage == "preprocess" and arguments[0] == LARGE) or (
                stage == "postprocess" and arguments[0].shape[0] > 64
            ):
                raise MemoryError("no room")
            return works(self, *arguments, **options)

        monkeypatch.setattr(Detector, stage, fails_for_large)
        model = server.model("ocdnet_fused")
        requests = [server.request("ocdnet_fused", IMAGE=[image]) for image in (ONE_WORD, LARGE, TWO_WORDS)]
        first, failed, last = server.answers(model, "ocdnet_fused", *requests)
        assert failed.code() == server.pb_utils.TritonError.INTERNAL
        assert (first["COUNT"].tolist(), last["COUNT"].tolist()) == ([[1]], [[2]])


class TestMetrics:
    def test_each_stage_is_timed_by_image_and_detections_are_counted(self, server: Server) -> None:
        server.pb_utils.MetricFamily.families.clear()
        model = server.model("ocdnet_fused")
        server.answers(
            model,
            "ocdnet_fused",
            server.request("ocdnet_fused", IMAGE=[TWO_WORDS, NO_WORDS]),
            server.request("ocdnet_fused", IMAGE=[LARGE]),
            server.request("ocdnet_fused", IMAGE=[b"hello"]),
        )
        # Answers do not wait for the metrics; the end of the model does.
        model.finalize()
        durations, detections = server.pb_utils.MetricFamily.families[:2]
        assert (durations.name, detections.name) == ("ocdserve_stage_duration_seconds", "ocdserve_detections_per_image")
        stages = {metric.labels["stage"]: metric for metric in durations.metrics}
        assert {stage: len(metric.observed) for stage, metric in stages.items()} == {
            "preprocess": 3,
            "network": 3,
            "postprocess": 3,
        }
        assert all(0 < value < 10 for metric in stages.values() for value in metric.observed)
        assert {metric.labels["model"] for metric in durations.metrics} == {"ocdnet_fused"}
        # The requests are answered in any order.
        assert [sorted(metric.observed) for metric in detections.metrics] == [[0, 2, 3]]

    @pytest.mark.parametrize("name", ["ocdnet_preprocess", "ocdnet_network", "ocdnet_postprocess"])
    def test_a_step_times_only_itself(self, server: Server, name: str) -> None:
        server.pb_utils.MetricFamily.families.clear()
        server.model(name)
        durations = server.pb_utils.MetricFamily.families[0]
        assert [metric.labels for metric in durations.metrics] == [
            {"model": name, "stage": name.removeprefix("ocdnet_")}
        ]

    def test_each_request_is_counted_once_by_the_model_that_was_asked_for(self, server: Server) -> None:
        pixels = np.zeros((1, 64, 64, 3), np.uint8)
        (late,) = server.answers(
            server.model("ocdnet_preprocess"),
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", timeout_us=1, IMAGE=[ONE_WORD]),
        )
        assert "before the stage preprocess could begin" in late.message()
        preprocess = server.model("ocdnet_preprocess")
        encoded, raw, *_ = server.answers(
            preprocess,
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", IMAGE=[ONE_WORD, TWO_WORDS]),
            server.request("ocdnet_preprocess", PIXELS=pixels),
            server.request("ocdnet_preprocess", IMAGE=[b"hello"]),
            server.request("ocdnet_preprocess", PIXELS=pixels, parameters={"thresh": 2}),
        )
        postprocess, steps = server.model("ocdnet_postprocess"), []
        for given in (encoded, raw):
            steps.append(
                {"MAP": given["NETWORK_IMAGE"][..., 0].copy(), "FRAME": given["FRAME"], "CONTEXT": given["CONTEXT"]}
            )
        overdue = encoded["CONTEXT"].copy()
        overdue[:, 0] = 1
        unknown = encoded["CONTEXT"].copy()
        unknown[:, 2] = 4
        server.answers(
            postprocess,
            "ocdnet_postprocess",
            *[server.request("ocdnet_postprocess", **step) for step in steps],
            server.request("ocdnet_postprocess", **{**steps[0], "CONTEXT": overdue}),
            server.request("ocdnet_postprocess", **{**steps[0], "CONTEXT": unknown}),
            server.request("ocdnet_postprocess", MAP=steps[0]["MAP"], FRAME=steps[0]["FRAME"]),
        )
        for model in server.running:
            model.finalize()
        durations = {
            metric.labels["model"]: metric.observed
            for family in server.pb_utils.MetricFamily.families
            for metric in family.metrics
            if family.name == "ocdserve_request_duration_seconds"
        }
        assert counts_of(server.pb_utils, "ocdserve_requests_total") == {
            ("ocdnet", "ok"): 1,
            ("ocdnet", "invalid"): 1,
            ("ocdnet", "expired"): 2,
            ("ocdnet_raw", "ok"): 1,
            ("ocdnet_raw", "invalid"): 1,
        }
        assert {model: len(values) for model, values in durations.items()} == {"ocdnet": 1, "ocdnet_raw": 1}
        assert all(0 < value < 60 for values in durations.values() for value in values)

    def test_a_request_that_claims_to_be_of_the_fused_model_harms_no_other(self, server: Server) -> None:
        (prepared,) = server.answers(
            server.model("ocdnet_preprocess"),
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", IMAGE=[ONE_WORD]),
        )
        steps: dict[str, dict[str, Any]] = {
            "ocdnet_network": {"NETWORK_IMAGE": prepared["NETWORK_IMAGE"]},
            "ocdnet_postprocess": {"MAP": prepared["NETWORK_IMAGE"][..., 0].copy()},
        }
        for name, inputs in steps.items():
            late, claims, other = server.answers(
                server.model(name),
                name,
                *[
                    server.request(name, **inputs, FRAME=prepared["FRAME"], CONTEXT=np.array([context], np.int64))
                    for context in ((1, 0, 3, 0), (0, 0, 3, 0), (0, 0, 1, 0))
                ],
            )
            assert late.code() == server.pb_utils.TritonError.UNAVAILABLE
            assert isinstance(claims, dict)
            assert isinstance(other, dict)

    def test_a_canary_of_the_launcher_is_answered_but_not_counted(self, server: Server) -> None:
        for name in ("ocdnet_fused", "ocdnet_preprocess"):
            request = server.request(name, IMAGE=[ONE_WORD])
            request.id = "ocdserve-canary"
            (answer,) = server.answers(server.model(name), name, request)
            assert answer["SIZE"].shape == (1, 2)
            # Nor by the next steps, to which no model is passed on.
            assert "CONTEXT" not in answer or answer["CONTEXT"][0, 2] == 0
        for model in server.running:
            model.finalize()
        assert counts_of(server.pb_utils, "ocdserve_requests_total") == {}

    def test_an_answer_that_cannot_be_sent_counts_as_failed(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise RuntimeError("Failed to increase the shared memory pool size")

        monkeypatch.setattr(server.pb_utils.ResponseSender, "send", fails)
        model = server.model("ocdnet_preprocess")
        model.execute([server.request("ocdnet_preprocess", IMAGE=[ONE_WORD])])
        model.finalize()
        assert counts_of(server.pb_utils, "ocdserve_requests_total") == {("ocdnet", "failed"): 1}

    def test_limits_are_shown_and_what_exceeds_them_is_counted(self, server: Server) -> None:
        model = server.model("ocdnet_fused", max_pixels="5000", max_parameters="2")
        server.answers(
            model,
            "ocdnet_fused",
            server.request("ocdnet_fused", IMAGE=[NO_WORDS, LARGE]),
            server.request("ocdnet_fused", IMAGE=[LARGE]),
            server.request("ocdnet_fused", IMAGE=[LARGE], parameters={"a": 1, "b": 2, "c": 3}),
        )
        model.finalize()
        assert counts_of(server.pb_utils, "ocdserve_limit_hits_total") == {("max_pixels",): 2, ("max_parameters",): 1}
        shown = counts_of(server.pb_utils, "ocdserve_limit")
        assert (shown["max_pixels",], shown["max_parameters",], shown["max_bytes",]) == (5000, 2, 67_108_864)

    @pytest.mark.parametrize("name", ["ocdnet_fused", "ocdnet_preprocess"])
    def test_the_queue_of_a_process_that_has_ended_is_empty(self, server: Server, name: str) -> None:
        model = server.model(name)
        model._metrics.beat(3, 1.5)
        model.finalize()
        assert counts_of(server.pb_utils, "ocdserve_queue_requests") == {}
        assert counts_of(server.pb_utils, "ocdserve_queue_oldest_seconds") == {}

    def test_one_process_raises_the_counters_to_the_totals_of_the_launcher(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ocdserve.backend.serve.process import metrics

        monkeypatch.setenv("OCDSERVE_HEALTH_DIRECTORY", str(tmp_path))
        launcher = metrics.LauncherCounters()
        launcher.count(metrics.RESTARTS, "process_died")
        launcher.publish(tmp_path)
        launcher.count(metrics.RESTARTS, "process_died")
        launcher.count(metrics.CANARIES, "ok")
        models = [server.model(name) for name in ("ocdnet_preprocess", "ocdnet_postprocess")]
        for model in models * 2:
            model.beat()
        for model in models:
            model.finalize()
            model.beat()  # by the thread of the heartbeat, which goes on until the process ends
        assert counts_of(server.pb_utils, "ocdserve_restarts_total") == {("process_died",): 2}
        assert counts_of(server.pb_utils, "ocdserve_canary_total") == {("ok",): 1}
