# SPDX-License-Identifier: Apache-2.0
"""The served models that read, with the small recogniser of coloured bars."""

import importlib
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import bars_recogniser
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from served_models import NO_WORDS, Server, counts_of, png

from ocdserve.backend import Reader
from ocdserve.backend.spec.bundle import RecogniserBundle, generation_number
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec

# A line of 80 x 48 pixels at (20, 8), and another one, half as large, below it.
PAGE = np.zeros((128, 192, 3), np.uint8)
PAGE[8:56, 20:100] = bars_recogniser.line("rgb")
PAGE[80:104, 40:92] = bars_recogniser.line("bbrg")[::2, ::2]
QUADS = np.array([[[20, 8], [100, 8], [100, 56], [20, 56]], [[40, 80], [92, 80], [92, 104], [40, 104]]], np.float32)
# A region is not grown here, so that it is the white rectangle of a line.
EXACT = {"box_thresh": 0.1, "unclip_ratio": 0}


@pytest.fixture
def recogniser(server: Server, tmp_path: Path) -> RecogniserBundle:
    onnx.save(bars_recogniser.network(), tmp_path / "bars.onnx")
    spec = RecogniserSpec(model="bars.onnx", characters=tuple(bars_recogniser.LETTERS), space_threshold=None)
    return RecogniserBundle(spec, tmp_path / "bars.onnx").save(server.folder / "recogniser")


@pytest.fixture
def reader(server: Server, recogniser: RecogniserBundle) -> Reader:
    return Reader.load(server.folder / "bundle", server.folder / "recogniser", threads=1)


def model_of(server: Server, name: str, **parameters: str) -> Any:
    return server.model(name, recogniser="recogniser", **parameters)


def texts_of(answer: dict[str, NDArray[Any]], image: int = 0) -> list[str]:
    return [text.decode() for text in answer["TEXTS"][image]]


@pytest.mark.usefixtures("recogniser")
class TestRecognise:
    def test_reads_the_lines_of_an_image_or_of_pixels(self, server: Server) -> None:
        model = model_of(server, "ocrnet_recognise")
        given = {"QUADS": QUADS[None], "SCORES": np.array([[0.75, 0.5]], np.float32)}
        for source in ({"IMAGE": [png(PAGE)]}, {"PIXELS": PAGE[None]}):
            (answer,) = server.answers(model, "ocrnet_recognise", server.request("ocrnet_recognise", **given, **source))
            assert texts_of(answer) == ["rgb", "bbrg"]
            assert answer["QUADS"].tolist() == [QUADS.tolist()]
            assert answer["SCORES"].tolist() == [[0.75, 0.5]]
            assert (answer["TEXT_SCORES"] > 0.9).all()
            assert answer["SIZE"].tolist() == [[128, 192]]
            assert answer["WORD_COUNTS"].tolist() == [[-1, -1]] and answer["WORD_TEXTS"].shape == (1, 0)
            assert answer["POINT_COUNTS"].tolist() == [[-1, -1]]

    def test_rows_past_the_count_are_not_read_and_images_of_a_request_may_have_different_numbers(
        self, server: Server
    ) -> None:
        (answer,) = server.answers(
            model_of(server, "ocrnet_recognise"),
            "ocrnet_recognise",
            server.request(
                "ocrnet_recognise",
                parameters={"words": True},
                IMAGE=[png(PAGE), NO_WORDS, png(PAGE)],
                QUADS=np.stack([QUADS, QUADS, QUADS[::-1]]),
                COUNT=np.array([[1], [0], [2]], np.int32),
            ),
        )
        assert [texts_of(answer, image) for image in range(3)] == [["rgb", ""], ["", ""], ["bbrg", "rgb"]]
        assert answer["COUNT"].tolist() == [[1], [0], [2]]
        assert answer["SCORES"].tolist() == [[0, 0]] * 3
        assert answer["WORD_COUNTS"].tolist() == [[1, 0], [0, 0], [1, 1]]
        assert [word.decode() for word in answer["WORD_TEXTS"][2]] == ["bbrg", "rgb"]
        left, upper = answer["WORD_QUADS"][0, 0].min(axis=0)
        assert abs(left - 28) <= 8 and abs(upper - 8) <= 1

    def test_polygons_stay_with_their_lines(self, server: Server) -> None:
        grey = PAGE.copy()
        grey[8:56, 20:100] = 128
        (answer,) = server.answers(
            model_of(server, "ocrnet_recognise"),
            "ocrnet_recognise",
            server.request(
                "ocrnet_recognise",
                PIXELS=grey[None],
                QUADS=QUADS[None],
                POINTS=np.arange(14, dtype=np.float32).reshape(1, 7, 2),
                POINT_COUNTS=np.array([[3, 4]], np.int32),
            ),
        )
        assert texts_of(answer) == ["bbrg"]
        assert answer["POINT_COUNTS"].tolist() == [[4]]
        assert answer["POINTS"].tolist() == [[[6, 7], [8, 9], [10, 11], [12, 13]]]

    def test_reads_crops_in_their_order_and_leaves_none_out(self, server: Server) -> None:
        crops = np.zeros((1, 4, 60, 120, 3), np.uint8)
        crops[0, 0, :48, :80] = bars_recogniser.line("rgb")
        crops[0, 1, :60, :100] = 128
        crops[0, 2, :24, :40] = bars_recogniser.line("rgb")[::2, ::2]
        sizes = np.array([[[48, 80], [60, 100], [24, 40], [0, 0]]], np.int32)
        (answer,) = server.answers(
            model_of(server, "ocrnet_recognise"),
            "ocrnet_recognise",
            server.request("ocrnet_recognise", parameters={"words": True}, CROPS=crops, CROP_SIZES=sizes),
        )
        assert texts_of(answer) == ["rgb", "", "rgb"]
        assert answer["COUNT"].tolist() == [[3]]
        assert answer["QUADS"][0, 0].tolist() == [[0, 0], [80, 0], [80, 48], [0, 48]]
        assert answer["WORD_COUNTS"].tolist() == [[1, 0, 1]]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"QUADS": None}, r"QUADS \(B, N, 4, 2\) is missing"),
            (
                {"QUADS": np.full((1, 2, 4, 2), np.nan, np.float32)},
                r"QUADS must be finite .*row 0 of image 0",
            ),
            ({"QUADS": np.full((1, 2, 4, 2), np.inf, np.float32)}, r"QUADS must be finite .*got \[\[inf"),
            ({"QUADS": np.full((1, 2, 4, 2), 1e9, np.float32)}, r"from -1000000 to 1000000; got \[\[1000000000"),
            ({"QUADS": np.zeros((2, 2, 4, 2), np.float32)}, "has 1 images; all its tensors must have as many rows"),
            ({"QUADS": np.zeros((1, 4001, 4, 2), np.float32)}, "has 4001 lines of text; at most 4000 are read"),
            ({"COUNT": np.array([[3]], np.int32)}, "COUNT must be from 0 to the 2 rows of QUADS; got 3 for image 0"),
            ({"COUNT": np.array([[-1]], np.int32)}, "COUNT must be from 0 .*; got -1"),
            ({"SCORES": np.zeros((1, 3), np.float32)}, "SCORES has 3 values per image and QUADS has 2"),
            ({"POINT_COUNTS": np.array([[1, 2]], np.int32)}, r"POINT_COUNTS must .* the 0 points .*got \[1, 2\]"),
            ({"PIXELS": PAGE[None]}, "exactly one of the inputs IMAGE .*; got IMAGE and PIXELS"),
            ({"IMAGE": None}, "exactly one of the inputs .*; got none"),
            ({"IMAGE": [b"x"]}, "not an image that can be read"),
            (
                {"IMAGE": None, "CROPS": np.zeros((1, 1, 48, 9, 3), np.uint8)},
                "as many rows of CROP_SIZES.*no CROP",
            ),
            (
                {
                    "IMAGE": None,
                    "CROPS": np.zeros((1, 1, 48, 9, 3), np.uint8),
                    "CROP_SIZES": np.array([[[48, 10]]], np.int32),
                },
                "CROP_SIZES must be heights from 1 to 48 and widths from 1 to 9, .*; got 48 x 10 in row 0 of image 0",
            ),
            (
                {
                    "IMAGE": None,
                    "CROPS": np.zeros((1, 2, 48, 9, 3), np.uint8),
                    "CROP_SIZES": np.array([[[0, 0], [48, 9]]], np.int32),
                },
                "or zeros after the last line; got 48 x 9 in row 1",
            ),
        ],
    )
    def test_bad_input_is_refused_and_hurts_nobody_else(
        self, server: Server, change: dict[str, Any], message: str
    ) -> None:
        good = {"IMAGE": [png(PAGE)], "QUADS": QUADS[None]}
        given = {name: value for name, value in {**good, **change}.items() if value is not None}
        model = model_of(server, "ocrnet_recognise")
        wrong, right = server.answers(
            model,
            "ocrnet_recognise",
            server.request("ocrnet_recognise", **given),
            server.request("ocrnet_recognise", **good),
        )
        assert re.search(message, server.assert_invalid(wrong))
        assert texts_of(right) == ["rgb", "bbrg"]

    def test_words_are_refused_among_some_outputs_without_the_parameter(self, server: Server) -> None:
        request = server.request(
            "ocrnet_recognise", outputs=["TEXTS", "WORD_TEXTS"], IMAGE=[png(PAGE)], QUADS=QUADS[None]
        )
        (answer,) = server.answers(model_of(server, "ocrnet_recognise"), "ocrnet_recognise", request)
        assert "WORD_QUADS and WORD_COUNTS are only computed with the request parameter words=true" in (
            server.assert_invalid(answer)
        )

    def test_limits_of_lines_and_pixels_hold(self, server: Server) -> None:
        model = model_of(server, "ocrnet_recognise", max_lines="1", max_pixels="30000")
        (answer,) = server.answers(
            model, "ocrnet_recognise", server.request("ocrnet_recognise", PIXELS=PAGE[None], QUADS=QUADS[None])
        )
        assert "has 2 lines of text; at most 1 are read (max_lines)" in server.assert_invalid(answer)
        wide = np.array([[[[0, 0], [192, 0], [192, 1], [0, 1]]]], np.float32)
        (answer,) = server.answers(
            model, "ocrnet_recognise", server.request("ocrnet_recognise", PIXELS=PAGE[None], QUADS=wide)
        )
        assert "take more than 30000 pixels once they are 48 pixels high" in server.assert_invalid(answer)


class TestFused:
    def test_answers_as_a_reader_in_process(self, server: Server, reader: Reader) -> None:
        images = [png(PAGE), NO_WORDS, png(PAGE[:, ::-1].copy())]
        wanted = [reader.read(image, words=True, **EXACT) for image in images]  # type: ignore[arg-type]
        assert wanted[0].texts and "rgb" in wanted[0].texts
        model = model_of(server, "ocr_fused")
        given = {"words": True, **EXACT}
        batch, *singles = server.answers(
            model,
            "ocr_fused",
            server.request("ocr_fused", parameters=given, IMAGE=images),
            *(server.request("ocr_fused", parameters=given, IMAGE=[image]) for image in images),
        )
        for index, (single, reading) in enumerate(zip(singles, wanted, strict=True)):
            for answer, row in ((single, 0), (batch, index)):
                count = len(reading)
                assert answer["COUNT"][row, 0] == count
                assert answer["QUADS"][row, :count].tobytes() == reading.quads.tobytes()
                assert texts_of(answer, row)[:count] == list(reading.texts)
                assert answer["TEXT_SCORES"][row, :count].tobytes() == reading.text_scores.tobytes()
                assert not any(texts_of(answer, row)[count:])
                words = [word for line in reading.words or () for word in line]
                assert [word.decode() for word in answer["WORD_TEXTS"][row]][: len(words)] == [
                    word.text for word in words
                ]

    def test_stages_lines_and_requests_are_measured(self, server: Server, reader: Reader) -> None:
        model = model_of(server, "ocr_fused")
        server.answers(
            model,
            "ocr_fused",
            server.request("ocr_fused", parameters=EXACT, IMAGE=[png(PAGE)]),
            server.request("ocr_fused", IMAGE=[b"x"]),
        )
        model.finalize()
        server.running.clear()
        families = server.pb_utils.MetricFamily.families
        observed = {
            tuple(metric.labels.values()): len(metric.observed)
            for family in families
            if family.name == "ocdserve_stage_duration_seconds"
            for metric in family.metrics
            if metric.observed
        }
        stages = ("preprocess", "network", "postprocess", "recognise")
        assert observed == {("ocr_fused", stage): 1 for stage in stages}
        assert counts_of(server.pb_utils, "ocdserve_requests_total") == {
            ("ocr_fused", "ok"): 1,
            ("ocr_fused", "invalid"): 1,
        }
        assert [
            metric.observed
            for family in families
            if family.name == "ocdserve_lines_per_image"
            for metric in family.metrics
        ] == [[2]]


class SlowNetwork:
    """Remembers the first pixel of each line that it reads."""

    def __init__(self, network: Any) -> None:
        self.network = network
        self.read: list[int] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def infer(self, lines: Sequence[NDArray[np.uint8]]) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        # Far longer than a thread takes to bring the next line, also on a busy machine.
        time.sleep(0.01)
        self.read += [int(line[0, 0, 0]) for line in lines]
        return self.network.infer(lines)


class TestTurns:
    def crops(self, count: int, mark: int) -> dict[str, Any]:
        crops = np.full((1, count, 48, 16, 3), mark, np.uint8)
        return {"CROPS": crops, "CROP_SIZES": np.full((1, count, 2), (48, 16), np.int32)}

    @pytest.fixture
    def slow(self, server: Server, recogniser: RecogniserBundle) -> Any:
        model = model_of(server, "ocrnet_recognise")
        network = SlowNetwork(model._turns._network)
        model._turns._network = network
        yield model, network
        network.go.set()

    def test_a_page_of_many_lines_takes_turns_with_those_that_come_later(self, server: Server, slow: Any) -> None:
        model, network = slow
        many, few = (
            server.request("ocrnet_recognise", parameters={"direction": False}, **self.crops(count, mark))
            for count, mark in ((40, 1), (3, 2))
        )
        model.execute([many])
        assert network.begun.wait(30)
        model.execute([few])
        deadline = time.monotonic() + 30
        while not model._turns._pool._work_queue.qsize() and time.monotonic() < deadline:
            time.sleep(0.01)
        network.go.set()
        assert all(request.get_response_sender().answered.wait(30) for request in (many, few))
        # The line in the network, and then by turns: without these, it would be the 43rd.
        assert [index for index, mark in enumerate(network.read) if mark == 2][-1] <= 20
        assert network.read.count(1) == 40

    def test_the_deadline_of_a_request_ends_it_between_two_lines(self, server: Server, slow: Any) -> None:
        model, network = slow
        late = server.request("ocrnet_recognise", timeout_us=100_000, **self.crops(40, 1))
        model.execute([late])
        assert network.begun.wait(30)
        time.sleep(0.15)
        network.go.set()
        assert late.get_response_sender().answered.wait(30)
        error = late.get_response_sender().response.error()
        assert error.code() == server.pb_utils.TritonError.UNAVAILABLE
        assert "before the stage recognise could begin" in error.message()
        assert len(network.read) == 1

    def test_what_another_detector_has_prepared_is_not_read(self, server: Server, slow: Any) -> None:
        model, network = slow
        network.go.set()
        context = np.array([[0, 1, 4, generation_number("00ff")]], np.int64)
        (answer,) = server.answers(
            model, "ocrnet_recognise", server.request("ocrnet_recognise", CONTEXT=context, **self.crops(1, 1))
        )
        assert answer.code() == server.pb_utils.TritonError.UNAVAILABLE
        assert "the server's detector was replaced meanwhile" in answer.message()


def test_an_ensemble_that_reads_is_counted_by_its_last_step(server: Server, recogniser: RecogniserBundle) -> None:
    first = server.model("ocdnet_preprocess", in_ensemble=True)
    # As the ensembles that read ask for it.
    outputs = ["NETWORK_IMAGE", "FRAME", "CONTEXT"]
    asked = server.request("ocdnet_preprocess", outputs, {"words": True}, IMAGE=[png(PAGE)])
    (prepared,) = server.answers(first, "ocdnet_preprocess", asked)
    assert prepared["CONTEXT"][0, 2] == 4
    maps = prepared["NETWORK_IMAGE"][..., 0].copy()
    step = {"MAP": maps, "FRAME": prepared["FRAME"], "CONTEXT": prepared["CONTEXT"]}
    (found,) = server.answers(
        server.model("ocdnet_postprocess"),
        "ocdnet_postprocess",
        server.request("ocdnet_postprocess", parameters={"words": True}, **step),
    )
    prepared["CONTEXT"][0, 3] = 0  # another bundle's, without a published digest
    inputs = {name: found[name] for name in ("QUADS", "SCORES", "COUNT", "POINTS", "POINT_COUNTS")}
    server.answers(
        model_of(server, "ocrnet_recognise"),
        "ocrnet_recognise",
        server.request("ocrnet_recognise", IMAGE=[png(PAGE)], CONTEXT=prepared["CONTEXT"], **inputs),
    )
    (refused,) = server.answers(
        first, "ocdnet_preprocess", server.request("ocdnet_preprocess", None, {"words": True}, IMAGE=[png(PAGE)])
    )
    assert "ask a model that reads" in server.assert_invalid(refused)
    for model in server.running:
        model.finalize()
    server.running.clear()
    assert counts_of(server.pb_utils, "ocdserve_requests_total") == {("ocr", "ok"): 1, ("ocdnet", "invalid"): 1}


def test_triton_finds_the_classes_of_all_entries(pb_utils: ModuleType, models: ModuleType) -> None:
    entry = importlib.import_module("ocdserve.backend.triton.entry")
    for name in ("ServedPreprocess", "ServedNetwork", "ServedPostprocess", "ServedFused", "ServedRecognise"):
        module, _, kind = getattr(entry, name)._on_cpu.partition(":")
        assert hasattr(importlib.import_module(f"ocdserve.backend.triton.{module}"), kind)
