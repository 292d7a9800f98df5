# SPDX-License-Identifier: Apache-2.0
"""Answers of the served models behind a stand-in for Triton's module; the network's probability is the brightness."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served_models import (
    ALL_BUT_SIZE,
    LARGE,
    NO_WORDS,
    ONE_WORD,
    TALL,
    TOWER,
    TWO_WORDS,
    Pixels,
    Server,
    TinyNetwork,
    page,
    png,
    tiff,
)

from ocdserve.backend import Bundle, Detector, DetectorSpec, ResizePolicy
from ocdserve.contract import MODELS, InvalidInputError


class TestFused:
    def test_one_image_is_answered_with_its_quad(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[ONE_WORD]))
        np.testing.assert_allclose(answer["QUADS"], [[[[15, 5], [64, 5], [64, 24], [15, 24]]]], atol=1e-4)
        assert answer["SCORES"].tolist() == [[1.0]]
        assert answer["COUNT"].tolist() == [[1]]
        assert answer["SIZE"].tolist() == [[64, 128]]

    def test_an_image_without_text_is_answered_with_none(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[NO_WORDS]))
        assert answer["QUADS"].shape == (1, 0, 4, 2)
        assert answer["SCORES"].shape == (1, 0)
        assert answer["COUNT"].tolist() == [[0]]

    def test_images_of_a_request_share_tensors_as_long_as_the_longest(self, server: Server, detector: Detector) -> None:
        images = [ONE_WORD, LARGE, NO_WORDS, TWO_WORDS]
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=images))
        assert answer["COUNT"].tolist() == [[1], [3], [0], [2]]
        assert answer["SIZE"].tolist() == [[64, 128], [192, 224], [64, 128], [64, 128]]
        assert answer["QUADS"].shape == (4, 3, 4, 2)
        for row, image in enumerate(images):
            found = detector.detect(image)
            np.testing.assert_array_equal(answer["QUADS"][row, : len(found)], found.quads)
            np.testing.assert_array_equal(answer["SCORES"][row, : len(found)], found.scores)
            assert not answer["QUADS"][row, len(found) :].any()
            assert not answer["SCORES"][row, len(found) :].any()

    def test_an_elongated_image_is_answered_as_in_process(self, server: Server, detector: Detector) -> None:
        assert detector.preprocess(TALL)[0].shape == (4 * 256, 64, 3)
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[TWO_WORDS, TALL]))
        assert answer["COUNT"].tolist() == [[2], [8]]
        assert answer["SIZE"].tolist() == [[64, 128], [840, 54]]
        found = detector.detect(TALL)
        np.testing.assert_array_equal(answer["QUADS"][1], found.quads)
        np.testing.assert_array_equal(answer["SCORES"][1], found.scores)

    def test_the_overview_of_an_elongated_image_is_as_in_process(self, server: Server, detector: Detector) -> None:
        # Six tiles of 256 x 160 pixels, and the overview in two of 256 x 64.
        assert detector.preprocess(TOWER)[0].shape == (8 * 256, 160, 3)
        found = detector.detect(TOWER)
        assert len(found) == 2
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[TWO_WORDS, TOWER]))
        np.testing.assert_array_equal(answer["QUADS"][1], found.quads)

    def test_requests_of_mixed_sizes_and_parameters_share_an_execution(
        self, server: Server, detector: Detector
    ) -> None:
        model = server.model("ocdnet_fused")
        cases: list[tuple[bytes, dict[str, Any]]] = [
            (TWO_WORDS, {}),
            (TWO_WORDS, {"box_thresh": 0.9}),
            (LARGE, {"max_candidates": 1}),
            (TWO_WORDS, {"thresh": 0.99}),
            (LARGE, {"unclip_ratio": "0.5", "min_size": 5}),
        ]
        requests = [server.request("ocdnet_fused", IMAGE=[image], parameters=given) for image, given in cases]
        answers = server.answers(model, "ocdnet_fused", *requests)
        assert [answer["COUNT"].tolist() for answer in answers] == [[[2]], [[1]], [[1]], [[1]], [[3]]]
        for (image, given), answer in zip(cases, answers, strict=True):
            found = detector.detect(image, **given)
            np.testing.assert_array_equal(answer["QUADS"][0], found.quads)
            np.testing.assert_array_equal(answer["SCORES"][0], found.scores)

    @pytest.mark.parametrize(
        ("images", "parameters", "message"),
        [
            ([b""], {}, r"the image is empty"),
            ([ONE_WORD[:60]], {}, r"truncated or damaged"),
            ([b"hello"], {}, r"not an image that can be read"),
            ([ONE_WORD, NO_WORDS, b"hello"], {}, r"image 2 of 3 \(counted from 0\): not an image"),
            ([ONE_WORD], {"box_tresh": 0.5}, r"unknown request parameter 'box_tresh'"),
            ([ONE_WORD], {"box_thresh": 2}, r"'box_thresh' must be a number from 0 to 1 .*got 2"),
            ([ONE_WORD], {"max_candidates": "9" * 400}, r"'max_candidates' must be a whole number"),
        ],
    )
    def test_a_bad_request_affects_only_itself(
        self, server: Server, images: list[bytes], parameters: dict[str, Any], message: str
    ) -> None:
        model = server.model("ocdnet_fused")
        good, other = (server.request("ocdnet_fused", IMAGE=[image]) for image in (ONE_WORD, TWO_WORDS))
        bad = server.request("ocdnet_fused", IMAGE=images, parameters=parameters)
        first, refused, last = server.answers(model, "ocdnet_fused", good, bad, other)
        assert re.search(message, server.assert_invalid(refused))
        assert (first["COUNT"].tolist(), last["COUNT"].tolist()) == ([[1]], [[2]])

    @pytest.mark.parametrize("name", ["ocdnet_fused", "ocdnet_preprocess"])
    def test_the_limits_of_the_configuration_hold(self, server: Server, name: str) -> None:
        model = server.model(name, max_side="64", max_parameters="2", max_parameter_bytes="60")
        requests = [
            server.request(name, IMAGE=[ONE_WORD]),
            server.request(name, IMAGE=[ONE_WORD], parameters={"thresh": 0.3, "box_thresh": 0.6, "page": 1}),
            server.request(name, IMAGE=[ONE_WORD], parameters={"thresh": "x" * 60}),
        ]
        messages = [server.assert_invalid(answer) for answer in server.answers(model, name, *requests)]
        assert "at most 64 are served" in messages[0]
        assert "has 3 parameters; at most 2" in messages[1]
        assert "bytes of JSON; at most 60" in messages[2]

    def test_a_batch_of_bad_requests_only_is_answered(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        requests = [server.request("ocdnet_fused", IMAGE=[b"hello"]) for _ in range(3)]
        for answer in server.answers(model, "ocdnet_fused", *requests):
            server.assert_invalid(answer)


@pytest.mark.parametrize("request_parameters", [{"unclip_ratio": 0}, {"min_size": 0}, {"min_size": 0, "box_thresh": 0}])
def test_the_lowest_parameters_are_no_fault_of_the_server(server: Server, request_parameters: dict[str, Any]) -> None:
    speck = page((20, 10, 255))
    speck[40, 90] = 255
    model = server.model("ocdnet_fused")
    request = server.request("ocdnet_fused", IMAGE=[png(speck)], parameters=request_parameters)
    (answer,) = server.answers(model, "ocdnet_fused", request)
    assert answer["COUNT"].tolist() == [[1]]


def test_jpeg_is_reduced_as_in_process_unless_it_will_be_read(server: Server, bundle: Bundle) -> None:
    spec = replace(bundle.spec, resize=replace(bundle.spec.resize, reduce_jpeg=True))
    reduced = Bundle(spec, bundle.model_path).save(server.folder / "reduced")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (300, 900, 3), np.uint8)).save(stream, "JPEG")
    name = "ocdnet_preprocess"
    every = [spec.name for spec in MODELS[name].outputs]
    # Of the ensembles those that read take SIZE from another step.
    detected, read = server.answers(
        server.model(name, bundle="reduced"),
        name,
        *(
            server.request(name, outputs=outputs, IMAGE=[stream.getvalue()])
            for outputs in (every, [output for output in every if output != "SIZE"])
        ),
    )
    for answer, whole in ((detected, False), (read, True)):
        pixels, frame = Detector(reduced, None).preprocess(stream.getvalue(), whole=whole)
        np.testing.assert_array_equal(answer["NETWORK_IMAGE"][0], pixels)
        np.testing.assert_array_equal(answer["FRAME"][0], frame.to_array())
    assert (detected["NETWORK_IMAGE"] != read["NETWORK_IMAGE"]).any()


class TestPages:
    @pytest.mark.parametrize("name", ["ocdnet_fused", "ocdnet_preprocess"])
    def test_a_page_is_detected_as_if_it_were_sent_alone(self, server: Server, name: str) -> None:
        scan = tiff(ONE_WORD, LARGE, TWO_WORDS)
        model = server.model(name)
        for page_number, alone in enumerate((ONE_WORD, LARGE, TWO_WORDS), 1):
            chosen, expected = server.answers(
                model,
                name,
                server.request(name, IMAGE=[scan, scan], parameters={"page": page_number}),
                server.request(name, IMAGE=[alone, alone]),
            )
            for key, values in expected.items():
                # But for the times of arrival.
                compared = (..., [0, 2, 3]) if key == "CONTEXT" else ...
                np.testing.assert_array_equal(chosen[key][compared], values[compared])

    @pytest.mark.parametrize("name", ["ocdnet_fused", "ocdnet_preprocess"])
    def test_several_pages_without_a_choice_and_pages_out_of_range_are_invalid(self, server: Server, name: str) -> None:
        scan = tiff(ONE_WORD, TWO_WORDS)
        answers = server.answers(
            server.model(name),
            name,
            server.request(name, IMAGE=[scan]),
            server.request(name, IMAGE=[scan], parameters={"page": 3}),
            server.request(name, IMAGE=[ONE_WORD], parameters={"page": 2}),
            server.request(name, IMAGE=[b"%PDF-1.7"], parameters={"page": 1}),
            server.request(name, IMAGE=[scan], parameters={"page": 2}),
        )
        reasons = [server.assert_invalid(answer) for answer in answers[:4]]
        for reason, part in zip(
            reasons,
            (
                "the TIFF file has 2 pages, and one image is detected at a time. Choose one by page=1 to page=2",
                "page must be from 1 to 2, the pages of this TIFF file; got 3",
                "page must be 1, the only page of this PNG file; got 2",
                "this is a PDF document",
            ),
            strict=True,
        ):
            assert part in reason
        assert len(answers[4]["SIZE"]) == 1

    def test_pixels_have_no_pages(self, server: Server) -> None:
        first, second = server.answers(
            server.model("ocdnet_preprocess"),
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", PIXELS=page()[None], parameters={"page": 1}),
            server.request("ocdnet_preprocess", PIXELS=page()[None], parameters={"page": 2}),
        )
        assert first["SIZE"].tolist() == [[64, 128]]
        assert "pixels are one image without pages" in server.assert_invalid(second)

    def test_the_other_steps_ignore_the_page_that_an_ensemble_hands_on(self, server: Server) -> None:
        maps = np.zeros((1, 64, 128), np.uint8)
        frame = np.array([[64, 128, 64, 128, 64, 128]], np.int32)
        (answer,) = server.answers(
            server.model("ocdnet_postprocess"),
            "ocdnet_postprocess",
            server.request("ocdnet_postprocess", MAP=maps, FRAME=frame, parameters={"page": 2}),
        )
        assert answer["COUNT"].tolist() == [[0]]


class TestPolygons:
    def test_polygons_come_one_after_the_other_and_their_counts_cut_them_apart(
        self, server: Server, detector: Detector
    ) -> None:
        model = server.model("ocdnet_fused")
        images = [TWO_WORDS, NO_WORDS, LARGE]
        request = server.request("ocdnet_fused", IMAGE=images, parameters={"polygons": True})
        (answer,) = server.answers(model, "ocdnet_fused", request)
        assert answer["POINT_COUNTS"].shape == (3, 3)
        for row, image in enumerate(images):
            found = detector.detect(image, polygons=True)
            assert found.polygons is not None
            counts = answer["POINT_COUNTS"][row]
            assert counts.tolist() == [*map(len, found.polygons)] + [0] * (3 - len(found))
            points = answer["POINTS"][row, : counts.sum()]
            np.testing.assert_array_equal(points, np.concatenate([np.empty((0, 2)), *found.polygons]))
            assert not answer["POINTS"][row, counts.sum() :].any()

    def test_a_request_for_everything_without_polygons_gets_none(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        (answer,) = server.answers(model, "ocdnet_fused", server.request("ocdnet_fused", IMAGE=[TWO_WORDS]))
        assert answer["POINTS"].shape == (1, 0, 2)
        assert answer["POINT_COUNTS"].tolist() == [[-1, -1]]

    @pytest.mark.parametrize("outputs", [["QUADS", "POINTS"], ["POINT_COUNTS"]])
    @pytest.mark.parametrize("parameters", [{}, {"polygons": False}, {"polygons": "false"}])
    def test_asking_for_them_without_the_parameter_is_refused(
        self, server: Server, outputs: list[str], parameters: dict[str, Any]
    ) -> None:
        model = server.model("ocdnet_fused")
        bad = server.request("ocdnet_fused", outputs, parameters, IMAGE=[ONE_WORD])
        good = server.request("ocdnet_fused", IMAGE=[ONE_WORD])
        refused, answer = server.answers(model, "ocdnet_fused", bad, good)
        assert "Set polygons to true or leave these outputs out" in server.assert_invalid(refused)
        assert answer["COUNT"].tolist() == [[1]]

    def test_they_are_left_out_where_other_outputs_are_named(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        named = [*ALL_BUT_SIZE]
        request = server.request("ocdnet_fused", named, {"polygons": True}, IMAGE=[ONE_WORD])
        (answer,) = server.answers(model, "ocdnet_fused", request)
        assert set(named) <= set(answer)
        assert not {"POINTS", "POINT_COUNTS"} & set(answer)


class TestSteps:
    def test_the_three_steps_give_the_bytes_of_the_fused_model(self, server: Server) -> None:
        cases: list[tuple[list[bytes], dict[str, Any]]] = [
            ([LARGE, ONE_WORD], {}),
            ([TWO_WORDS], {"box_thresh": 0.9}),
            ([NO_WORDS, TWO_WORDS, LARGE], {"polygons": True}),
            ([TALL], {}),
            ([TWO_WORDS, TALL, LARGE], {"polygons": True}),
            ([TOWER, TWO_WORDS], {"polygons": True}),
        ]
        fused = server.answers(
            server.model("ocdnet_fused"),
            "ocdnet_fused",
            *[server.request("ocdnet_fused", IMAGE=images, parameters=given) for images, given in cases],
        )
        prepared = server.answers(
            server.model("ocdnet_preprocess"),
            "ocdnet_preprocess",
            *[server.request("ocdnet_preprocess", IMAGE=images, parameters=given) for images, given in cases],
        )
        maps = server.answers(
            server.model("ocdnet_network"),
            "ocdnet_network",
            *[
                server.request(
                    "ocdnet_network", NETWORK_IMAGE=each["NETWORK_IMAGE"], FRAME=each["FRAME"], parameters=given
                )
                for each, (_, given) in zip(prepared, cases, strict=True)
            ],
        )
        found = server.answers(
            server.model("ocdnet_postprocess"),
            "ocdnet_postprocess",
            *[
                server.request("ocdnet_postprocess", MAP=each["MAP"], FRAME=before["FRAME"], parameters=given)
                for each, before, (_, given) in zip(maps, prepared, cases, strict=True)
            ],
        )
        for whole, first, last in zip(fused, prepared, found, strict=True):
            assert whole["SIZE"].tobytes() == first["SIZE"].tobytes()
            assert set(last) == set(whole) - {"SIZE"}
            for name, values in last.items():
                assert (values.shape, values.tobytes()) == (whole[name].shape, whole[name].tobytes()), name

    def test_pixels_are_preprocessed_as_the_encoded_image_is(self, server: Server) -> None:
        model = server.model("ocdnet_preprocess")
        pixels = page((20, 10, 255), height=90, width=133)
        encoded, raw = server.answers(
            model,
            "ocdnet_preprocess",
            server.request("ocdnet_preprocess", IMAGE=[png(pixels)]),
            server.request("ocdnet_preprocess", PIXELS=pixels[None]),
        )
        # The models that were asked for.
        assert (encoded.pop("CONTEXT")[:, 2].tolist(), raw.pop("CONTEXT")[:, 2].tolist()) == ([1], [2])
        assert {name: values.tolist() for name, values in encoded.items()} == {
            name: values.tolist() for name, values in raw.items()
        }
        assert raw["FRAME"].tolist() == [[90, 133, 96, 128, 96, 128]]
        assert raw["SIZE"].tolist() == [[90, 133]]

    @pytest.mark.parametrize("inputs", [{}, {"IMAGE": [ONE_WORD], "PIXELS": page()[None]}])
    def test_preprocessing_wants_exactly_one_input(self, server: Server, inputs: dict[str, Any]) -> None:
        model = server.model("ocdnet_preprocess")
        bad, good = server.request("ocdnet_preprocess", **inputs), server.request("ocdnet_preprocess", IMAGE=[ONE_WORD])
        refused, answer = server.answers(model, "ocdnet_preprocess", bad, good)
        assert "exactly one of the inputs IMAGE (encoded) and PIXELS" in server.assert_invalid(refused)
        assert answer["SIZE"].tolist() == [[64, 128]]

    def test_preprocessing_refuses_a_bad_parameter_before_the_network_has_run(self, server: Server) -> None:
        model = server.model("ocdnet_preprocess")
        request = server.request("ocdnet_preprocess", IMAGE=[ONE_WORD], parameters={"thresh": 7})
        assert "'thresh'" in server.assert_invalid(server.answers(model, "ocdnet_preprocess", request)[0])

    @pytest.mark.parametrize(
        ("frame", "message"),
        [
            ([64, 128, 96, 128, 96, 128], "FRAME says 96 x 128 network pixels, more than the tensor's 64 x 128"),
            ([64, 128, 0, 128, 64, 128], "FRAME must hold six positive numbers"),
            ([64, 128, 64, 128, 65, 128], "the content no larger than the network"),
        ],
    )
    @pytest.mark.parametrize("name", ["ocdnet_network", "ocdnet_postprocess"])
    def test_a_frame_that_does_not_fit_is_refused(
        self, server: Server, name: str, frame: list[int], message: str
    ) -> None:
        model = server.model(name)
        key = MODELS[name].inputs[0].name
        values = np.zeros((1, 64, 128, 3) if key == "NETWORK_IMAGE" else (1, 64, 128), np.uint8)
        bad = server.request(name, **{key: values, "FRAME": np.array([frame], np.int32)})
        good = server.request(name, **{key: values, "FRAME": np.array([[64, 128] * 3], np.int32)})
        refused, answer = server.answers(model, name, bad, good)
        assert message in server.assert_invalid(refused)
        assert isinstance(answer, dict)

    def test_an_image_of_a_size_that_the_network_was_not_compiled_for_affects_only_itself(
        self, models: ModuleType, pb_utils: ModuleType, tmp_path: Path, tiny_network: TinyNetwork
    ) -> None:
        spec = DetectorSpec(resize=ResizePolicy("fixed", 128, 64))
        bundle = Bundle(spec, tiny_network(shape=(1, 3, 64, 128))).save(tmp_path / "fixed" / "bundle")
        server = Server(models, pb_utils, tmp_path / "fixed", bundle)
        model = server.model("ocdnet_network")
        good = server.request("ocdnet_network", NETWORK_IMAGE=page()[None], FRAME=np.array([[64, 128] * 3], np.int32))
        bad = server.request(
            "ocdnet_network", NETWORK_IMAGE=page(height=32)[None], FRAME=np.array([[32, 128] * 3], np.int32)
        )
        answer, refused = server.answers(model, "ocdnet_network", good, bad)
        model.finalize()
        assert isinstance(answer, dict)
        assert "64 x 128" in server.assert_invalid(refused)


class TestInitialize:
    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"threads": "two"}, "parameter threads must be a whole number; got 'two'"),
            ({"streams": "1.5"}, "parameter streams must be a whole number; got '1.5'"),
            ({"threads": "-1"}, "threads must be at least 1; got -1"),
            ({"threads": "1", "streams": "2"}, "streams must be from 1 to the 1 threads; got 2"),
            ({"runtime": "caffe"}, "runtime must be one of openvino, onnxruntime, tensorrt, .*; got 'caffe'"),
            ({"bundle": "nowhere"}, "nowhere is no bundle"),
            ({"max_scans": "1_0"}, r"max_scans \(scans of a JPEG file\) must be a whole number .*; got '1_0'"),
        ],
    )
    def test_a_bad_setting_is_refused_by_name(self, server: Server, parameters: dict[str, str], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            server.model("ocdnet_fused", **parameters)

    def test_empty_settings_are_the_defaults(self, server: Server, tmp_path: Path) -> None:
        options = server.options.from_triton(
            {
                "model_config": json.dumps(
                    {"parameters": {name: {"string_value": ""} for name in ("bundle", "runtime", "threads", "streams")}}
                ),
                "model_repository": str(tmp_path),
            }
        )
        assert options.bundle is None
        assert (options.runtime.runtime, options.runtime.threads, options.runtime.streams) == (None, None, 1)

    def test_the_network_has_seen_its_warm_up_sizes_before_it_is_ready(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []

        class Recorder:
            def infer(self, images: list[Pixels]) -> list[Pixels]:
                seen.extend(image.shape for image in images)
                return [image[..., 0] for image in images]

        monkeypatch.setattr("ocdserve.backend.triton.base_model.load_network", lambda *arguments: Recorder())
        server.model("ocdnet_network")
        # 720 x 1280 by this bundle's policy: no side longer than 256.
        assert seen == [(160, 256, 3)]
