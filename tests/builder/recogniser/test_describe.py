# SPDX-License-Identifier: Apache-2.0
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bars_recogniser
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.builder import ExportOptions
from ocdserve.builder.recogniser.config import RecogniserBuildConfig
from ocdserve.builder.recogniser.describe import RecogniserDescription, describe_recogniser
from ocdserve.builder.recogniser.ends import is_recogniser
from ocdserve.builder.recogniser.trial import GraphRecogniser, drawn_texts, fault, recogniser_of, whole_line
from ocdserve.contract import InvalidInputError

Describe = Callable[..., RecogniserDescription]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Describes a network; keyword arguments are fields of the configuration."""

    def described(model: onnx.ModelProto, **fields: Any) -> RecogniserDescription:
        path = tmp_path / "bars.onnx"
        onnx.save(model, str(path))
        return describe_recogniser(RecogniserBuildConfig(path, tmp_path / "bundle", threads=1, **fields))

    return described


def read(description: RecogniserDescription, *lines: np.ndarray) -> list[str]:
    """What a described network reads."""
    spec = description.spec
    recogniser = recogniser_of(spec, GraphRecogniser(description.model, spec, 1))
    return [each.text for each in recogniser.read_lines([whole_line(line) for line in lines], direction=False)]


class TestDescribeRecogniser:
    def test_paddles_export_has_its_characters_in_its_file(self, describe: Describe) -> None:
        found = describe(bars_recogniser.network())
        assert found.spec.characters == ("r", "g", "b")
        assert (found.spec.name, found.spec.height, found.spec.network.color) == ("bars", 48, "BGR")
        assert found.spec.network.mean == found.spec.network.std == (127.5, 127.5, 127.5)
        assert (found.spec.widths.fit, found.batch, found.fault) == ("pad", None, None)
        assert read(found, bars_recogniser.line("rgb"), bars_recogniser.line("brrgbrgbrgbrgbrgbg")) == [
            "rgb",
            "brrgbrgbrgbrgbrgbg",
        ]
        onnx.checker.check_model(found.model, full_check=True)

    @pytest.mark.parametrize(
        ("network", "fields", "note"),
        [
            (bars_recogniser.network(output="logits"), {}, "the output holds logits: a softmax was added"),
            (bars_recogniser.network(gray=True), {}, "the network takes gray lines: made from RGB"),
            (bars_recogniser.network(width=160), {}, "the graph allows one width only: 160 pixels"),
            (bars_recogniser.network(batch=1), {}, "the graph allows one line at a time only"),
            (bars_recogniser.network(opset=13), {}, "opset raised from 13 to 19"),
        ],
        ids=["logits", "gray", "width", "batch", "opset"],
    )
    def test_what_exports_differ_in(
        self, describe: Describe, network: onnx.ModelProto, fields: dict[str, Any], note: str
    ) -> None:
        found = describe(network, **fields)
        assert note in " ".join(found.notes)
        assert read(found, bars_recogniser.line("rgb"), bars_recogniser.line("gbrbr")) == ["rgb", "gbrbr"]

    def test_steps_before_lines_as_pytorch_has_them(self, describe: Describe) -> None:
        model = bars_recogniser.network()
        model.graph.node.append(helper.make_node("Transpose", ["softmax"], ["steps_first"], perm=[1, 0, 2]))
        model.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("steps_first", TensorProto.FLOAT, ["T", "N", 4]),
        )
        found = describe(model)
        assert "the output is steps x N x classes: made N x steps x classes" in found.notes
        assert read(found, bars_recogniser.line("rgb")) == ["rgb"]

    @pytest.mark.parametrize("gray", [True, False])
    def test_ocrnet_gives_classes_and_stretches_lines(self, describe: Describe, tmp_path: Path, gray: bool) -> None:
        listed = tmp_path / "character_list"
        listed.write_text("r\ng\nb\n")
        model = bars_recogniser.network("ids", gray, height=32, width=104, characters=None)
        if not gray:
            # TAO trains in RGB.
            weights = next(item for item in model.graph.initializer if item.name == "stem_w")
            values = onnx.numpy_helper.to_array(weights)[:, ::-1].copy()
            weights.CopyFrom(onnx.numpy_helper.from_array(values, "stem_w"))
        found = describe(model, characters=listed)
        assert (found.spec.height, found.spec.widths.fit, found.spec.network.color) == (32, "stretch", "RGB")
        assert found.spec.widths.smallest == found.spec.widths.largest == 104
        assert "the output holds chosen classes: the scores before the choice are taken" in found.notes
        # 56 and 104 pixels wide: the first is stretched to about twice its width.
        lines = bars_recogniser.line("gb", 32), bars_recogniser.line("rgbg", 32)
        assert read(found, *lines) == ["gb", "rgbg"]

    def test_an_attention_decoder_is_refused(self, describe: Describe) -> None:
        network = bars_recogniser.network("attention", height=32, width=104, classes=5)
        with pytest.raises(
            InvalidInputError, match=r"has 5 classes for 3 characters .* attention decoder .*prediction=CTC"
        ):
            describe(network)

    def test_a_space_follows_the_characters_if_a_class_is_left(self, describe: Describe) -> None:
        assert describe(bars_recogniser.network(classes=5)).spec.characters == ("r", "g", "b", " ")

    def test_of_two_spaces_the_appended_one_is_read(self, describe: Describe) -> None:
        """PaddleOCR's English list ends with a space, and its networks have a class more for another."""
        found = describe(bars_recogniser.network(classes=6, characters=("r", "g", "b", " ")))
        assert found.spec.characters == ("r", "g", "b", " ", " ")
        assert found.spec.space == (5, 0.1)

    def test_a_line_end_after_the_last_character_is_none(self, describe: Describe) -> None:
        assert describe(bars_recogniser.network(characters=("r", "g", "b", ""))).spec.characters == ("r", "g", "b")

    @pytest.mark.parametrize(
        ("network", "fields", "message"),
        [
            (
                bars_recogniser.network(classes=8),
                {},
                "has 8 classes, a blank and 7 characters (or 6 and a space), but the network's metadata lists 3",
            ),
            (bars_recogniser.network(characters=None), {}, "name a file with one a line"),
            (bars_recogniser.network(), {"height": 32}, "takes lines of 48 pixels only; got --height 32. Drop it."),
            (
                bars_recogniser.network(),
                {"export": ExportOptions(output="y")},
                "has the outputs ['softmax']; got --output-tensor y",
            ),
            (
                bars_recogniser.network("logits"),
                {"export": ExportOptions(values="probability")},
                "must be probabilities, which sum to 1, or logits",
            ),
            (
                bars_recogniser.network(),
                {"export": ExportOptions(values="logits")},
                "got sums from 1 to 1. Drop --output-values, which says logits.",
            ),
            (
                bars_recogniser.network(gray=True),
                {"export": ExportOptions(mean=(1, 2, 3))},
                "the network takes gray lines: --mean and --std must be the same number three times",
            ),
            (bars_recogniser.network(scale=float("nan")), {}, "values that are not finite (NaN or infinite) in 100.0%"),
        ],
    )
    def test_a_message_names_cause_and_option(
        self, describe: Describe, network: onnx.ModelProto, fields: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InvalidInputError, match=re.escape(message)) as refused:
            describe(network, **fields)
        assert str(refused.value).startswith("bars.onnx: ")

    def test_a_graph_of_any_height_needs_the_option(self, describe: Describe) -> None:
        model = bars_recogniser.network()
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
        with pytest.raises(InvalidInputError, match="any height: name the one that it was trained with by --height"):
            describe(model)
        assert describe(model, height=48).spec.height == 48

    def test_normalisation_may_be_given(self, describe: Describe) -> None:
        options = ExportOptions(color="RGB", scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="stretch")
        spec = describe(bars_recogniser.network(), export=options).spec
        assert (spec.network.color, spec.widths.fit) == ("RGB", "stretch")
        assert spec.network.mean == pytest.approx((127.5, 127.5, 127.5))


class TestCharacters:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("list.txt", "r\ng\nb\n"),
            ("list.txt", "\ufeffr\r\ng\r\nb"),
            ("inference.yml", "PostProcess:\n  name: CTCLabelDecode\n  character_dict:\n  - r\n  - g\n  - b\n"),
        ],
    )
    def test_a_file_lists_them(self, describe: Describe, tmp_path: Path, name: str, content: str) -> None:
        (tmp_path / name).write_bytes(content.encode())
        network = bars_recogniser.network(characters=None)
        assert describe(network, characters=tmp_path / name).spec.characters == ("r", "g", "b")

    def test_characters_that_end_lines_elsewhere_are_kept(self, describe: Describe, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("\u2028\n \n\u3000\n")
        network = bars_recogniser.network(characters=None)
        assert describe(network, characters=tmp_path / "list.txt").spec.characters == ("\u2028", " ", "\u3000")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("list.txt", b"r\n\nb\n", "line 2 of .* is empty"),
            ("list.txt", b"\xff\xfe", "is not UTF-8 text"),
            ("inference.yml", b"Global: {}\n", "has no list PostProcess.character_dict"),
            ("inference.yml", b"PostProcess:\n  character_dict: [1, 2]\n", "must be a list of characters"),
        ],
    )
    def test_malformed_files(self, describe: Describe, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            describe(bars_recogniser.network(characters=None), characters=tmp_path / name)
        with pytest.raises(InvalidInputError, match="cannot read"):
            describe(bars_recogniser.network(characters=None), characters=tmp_path / "none.txt")


class TestIsRecogniser:
    @pytest.mark.parametrize(
        ("network", "expected"),
        [
            (bars_recogniser.network(), True),
            (bars_recogniser.network(characters=None), True),
            (bars_recogniser.network("ids", characters=None), True),
            (bars_recogniser.network(characters=None, height=640), False),
        ],
    )
    def test_by_its_characters_or_the_shapes_of_its_ends(self, network: onnx.ModelProto, expected: bool) -> None:
        assert is_recogniser(network) is expected

    def test_detectors_are_none(self, small_network: Callable[..., onnx.ModelProto]) -> None:
        assert not is_recogniser(small_network())
        # A small fixed image, and a map without channels.
        model = small_network(size=(64, 64))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 64, 64]))
        assert not is_recogniser(model)


class TestTrial:
    def test_letters_decide_what_is_drawn(self) -> None:
        digits = "0123456789"
        assert drawn_texts("PagefoTxtSumd." + digits)[0] == "Text 25"
        assert drawn_texts("TEXPAGOFSUM" + digits)[0] == "TEXT 25"
        assert drawn_texts(digits) == ("258", "1049", "16340")
        assert drawn_texts("漢字") == ()

    def test_the_default_recogniser_reads_drawn_lines_unless_its_pixels_are_wrong(self) -> None:
        bundle = RecogniserBundle.load()
        found = describe_recogniser(RecogniserBuildConfig(bundle.model_path, Path("none"), threads=1))
        assert found.fault is None
        assert found.spec.characters == bundle.spec.characters
        shifted = replace(found.spec, characters=found.spec.characters[1:] + found.spec.characters[:1])
        network = GraphRecogniser(found.model, shifted, 1)
        message = fault(recogniser_of(shifted, network))
        assert message is not None and message.startswith("it misreads more than half of the letters of drawn lines")
        assert "'Text 25' as " in message
