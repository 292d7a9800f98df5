# SPDX-License-Identifier: Apache-2.0
"""The served models behind a stand-in for Triton's module, with a network whose probability is the brightness."""

import importlib.util
import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec, ResizePolicy
from ocdserve.backend.network.load import load_network
from ocdserve.contract import MODELS, InvalidInputError
from ocdserve.results.decoding import upright_rgb

TinyNetwork = Callable[..., Path]
Pixels = NDArray[np.uint8]

NUMPY_DTYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
RESIZE = ResizePolicy(kind="short_side", side=64, largest_side=256)
CLASSES = {
    "ocdnet_fused": "FusedModel",
    "ocdnet_preprocess": "PreprocessModel",
    "ocdnet_network": "NetworkModel",
    "ocdnet_postprocess": "PostprocessModel",
}


class Server:
    """Makes models of one bundle, and requests to them."""

    def __init__(self, models: ModuleType, pb_utils: ModuleType, folder: Path, bundle: Bundle) -> None:
        self.models = models
        self.pb_utils = pb_utils
        self.folder = folder
        self.bundle = bundle
        self.running: list[Any] = []
        self.options = importlib.import_module("ocdserve.backend.triton.options").ServingOptions

    def model(self, name: str, in_ensemble: bool = False, **parameters: str) -> Any:
        """The initialised model of that name; one that belongs to an ensemble has a configuration with tensors."""
        model = getattr(self.models, CLASSES[name])()
        values = {"bundle": "bundle", "threads": "1", **parameters}
        config: dict[str, Any] = {"name": name}
        config["parameters"] = {key: {"string_value": value} for key, value in values.items()}
        if in_ensemble:
            config["input"] = [{"name": spec.name} for spec in MODELS[name].inputs]
            config["output"] = [{"name": spec.name} for spec in MODELS[name].outputs]
        model.initialize({"model_config": json.dumps(config), "model_repository": str(self.folder)})
        self.running.append(model)
        return model

    def request(
        self,
        name: str,
        outputs: list[str] | None = None,
        parameters: dict[str, Any] | None = None,
        timeout_us: int = 0,
        **inputs: Any,
    ) -> Any:
        """A request for some outputs, all without `outputs`; lists of bytes become BYTES tensors."""
        tensors = {
            key: np.array([[item] for item in value], object) if isinstance(value, list) else value
            for key, value in inputs.items()
        }
        wanted = [spec.name for spec in MODELS[name].outputs] if outputs is None else outputs
        return self.pb_utils.InferenceRequest(tensors, wanted, parameters, timeout_us)

    def answers(self, model: Any, name: str, *requests: Any) -> list[dict[str, NDArray[Any]] | Any]:
        """One answer per request: its tensors, checked against the contract, or its error."""
        assert model.execute(list(requests)) is None
        senders = [request.get_response_sender() for request in requests]
        assert all(sender.answered.wait(30) for sender in senders)
        responses = [sender.response for sender in senders]
        specs = {spec.name: spec for spec in MODELS[name].outputs}
        answers: list[Any] = []
        for response in responses:
            if response.error() is not None:
                answers.append(response.error())
                continue
            tensors = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            for key, array in tensors.items():
                assert array.dtype == NUMPY_DTYPES[specs[key].dtype], key
                assert array.ndim == 1 + len(specs[key].dims), key
                assert all(dim in (-1, side) for dim, side in zip(specs[key].dims, array.shape[1:], strict=True)), key
            assert len({len(array) for array in tensors.values()}) == 1
            answers.append(tensors)
        return answers

    def assert_invalid(self, answer: Any) -> str:
        """It is an error of the client; returns its message."""
        assert answer.code() == self.pb_utils.TritonError.INVALID_ARG, answer.message()
        return str(answer.message())


@pytest.fixture
def bundle(tmp_path: Path, tiny_network: TinyNetwork) -> Bundle:
    network = NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255))
    spec = DetectorSpec(network=network, resize=RESIZE)
    return Bundle(spec, tiny_network(weights=(1 / 3, 1 / 3, 1 / 3))).save(tmp_path / "model" / "bundle")


@pytest.fixture
def server(models: ModuleType, pb_utils: ModuleType, bundle: Bundle, tmp_path: Path) -> Iterator[Server]:
    server = Server(models, pb_utils, tmp_path / "model", bundle)
    yield server
    for model in server.running:
        model.finalize()


@pytest.fixture
def detector(bundle: Bundle) -> Detector:
    return Detector(bundle, load_network(bundle))


def page(*words: tuple[int, int, int], height: int = 64, width: int = 128) -> Pixels:
    """Black, with words of 40 x 10 pixels at (x, y) in a brightness."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y, brightness in words:
        pixels[y : y + 10, x : x + 40] = brightness
    return pixels


def large(height: int = 129, width: int = 1290) -> Pixels:
    """Black, with two words of five letters of 29 x 90 pixels, one apart: in the overview each word is one text."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x in (*range(301, 450, 30), *range(901, 1050, 30)):
        pixels[20:110, x : x + 29] = 255
    return pixels


def png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


ONE_WORD = png(page((20, 10, 255)))
TWO_WORDS = png(page((20, 10, 204), (70, 40, 255)))
NO_WORDS = png(page())
LARGE = png(page((20, 10, 255), (20, 80, 230), (120, 150, 250), height=192, width=224))
# 1:15, in three tiles or more: a word of 20 x 40 pixels every 100, the last across the end of the second tile.
TALL = png(np.rot90(page(*((x, 20, 255) for x in range(30, 800, 100)), height=54, width=840)).copy())
TOWER = png(np.rot90(large()).copy())
ALL_BUT_SIZE = ("QUADS", "SCORES", "COUNT")


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


def tiff(*encoded: bytes) -> bytes:
    """A TIFF of these PNG files, one per page."""
    first, *others = (Image.open(io.BytesIO(each)) for each in encoded)
    stream = io.BytesIO()
    first.save(stream, "TIFF", save_all=True, append_images=others)
    return stream.getvalue()


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


class TestAdmission:
    """One thread: three decoders, and with the one in the network four requests in work."""

    @pytest.fixture
    def decoding(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """While it is not set, no image is decoded."""
        go, real = threading.Event(), Detector.preprocess
        self.begun: list[object] = []

        def preprocess(detector: Any, image: Any, *arguments: Any) -> Any:
            self.begun.append(image)
            assert go.wait(30)
            return real(detector, image, *arguments)

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
        assert own[:, 3].tolist() == [server.bundle.generation()] * 2
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
        go, lock, real = threading.Event(), threading.Lock(), upright_rgb
        self.now = 0
        self.seen: list[int] = []

        def decode(image: Any) -> Any:
            if image.width < 2000:
                return real(image)
            with lock:
                self.now += 1
                self.seen.append(self.now)
            assert go.wait(30)
            try:
                return real(image)
            finally:
                with lock:
                    self.now -= 1

        monkeypatch.setattr("ocdserve.backend.stages.image.upright_rgb", decode)
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

    @pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
    def test_an_unforeseen_error_of_one_image_affects_only_its_request(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        works = getattr(Detector, stage)

        def fails_for_large(self: Any, *arguments: Any) -> Any:
            if (stage == "preprocess" and arguments[0] == LARGE) or (
                stage == "postprocess" and arguments[0].shape[0] > 64
            ):
                raise MemoryError("no room")
            return works(self, *arguments)

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


def counts_of(pb_utils: ModuleType, name: str) -> dict[tuple[str, ...], float]:
    """Values of a family's metrics that are not 0, by the values of their labels, over all processes."""
    families = [family for family in pb_utils.MetricFamily.families if family.name == name]
    return {tuple(one.labels.values()): one.total for family in families for one in family.metrics if one.total}


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
