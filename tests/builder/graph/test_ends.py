# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder import ExportOptions
from ocdserve.builder.graph.describe import Description, describe
from ocdserve.builder.graph.ends import form_of, with_values
from ocdserve.contract import InvalidInputError

SmallNetwork = Callable[..., onnx.ModelProto]
FLOAT, FLOAT16, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
HEIGHT, WIDTH = 96, 160


def run(model: onnx.ModelProto, name: str, images: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, {name: images})[0]
    return result


def append(model: onnx.ModelProto, element: int, shape: list[Any], *nodes: tuple[str, dict[str, Any], Any]) -> None:
    """Append nodes with a constant each to the output."""
    last = model.graph.output[0].name
    for index, (operation, attributes, constant) in enumerate(nodes):
        inputs = [last]
        if constant is not None:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), f"k{index}"))
            inputs.append(f"k{index}")
        last = f"out{index}"
        model.graph.node.append(helper.make_node(operation, inputs, [last], f"added{index}", **attributes))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, element, shape))


def nhwc_input(model: onnx.ModelProto, element: int = FLOAT, shape: list[Any] | None = None) -> None:
    transpose = helper.make_node("Transpose", ["pixels"], ["moved"], "to_nchw", perm=[0, 3, 1, 2])
    cast = helper.make_node("Cast", ["moved"], ["x"], "to_float", to=FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.node.insert(0, transpose)
    described = helper.make_tensor_value_info("pixels", element, ["N", "H", "W", 3] if shape is None else shape)
    model.graph.input[0].CopyFrom(described)


def logits(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]
    model.graph.output[0].name = "h"


def smaller(model: onnx.ModelProto) -> None:
    pool = ("AveragePool", {"kernel_shape": [4, 4], "strides": [4, 4]}, None)
    append(model, FLOAT, ["N", 1, "h", "w"], pool)


def three_channels(model: onnx.ModelProto) -> None:
    other = helper.make_node("Sub", ["one", "p"], ["q"], "threshold")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    joined = helper.make_node("Concat", ["p", "q", "q"], ["all"], "maps", axis=1)
    model.graph.node.extend([other, joined])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("all", FLOAT, ["N", 3, "H", "W"]))


def without_channel(model: onnx.ModelProto) -> None:
    append(model, FLOAT, ["N", "H", "W"], ("Squeeze", {}, np.array([1], np.int64)))


def channel_last(model: onnx.ModelProto) -> None:
    append(model, FLOAT, ["N", "H", "W", 1], ("Transpose", {"perm": [0, 2, 3, 1]}, None))


def levels(model: onnx.ModelProto) -> None:
    append(model, FLOAT, ["N", 1, "H", "W"], ("Mul", {}, np.float32(255)))


def levels_uint8(model: onnx.ModelProto) -> None:
    append(model, UINT8, ["N", 1, "H", "W"], ("Mul", {}, np.float32(255)), ("Cast", {"to": UINT8}, None))


def float16(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = FLOAT16


def uint8_nhwc(model: onnx.ModelProto) -> None:
    nhwc_input(model, UINT8)


def unknown_nhwc(model: onnx.ModelProto) -> None:
    nhwc_input(model, shape=["a", "b", "c", "d"])


@pytest.fixture
def saved(tmp_path: Path, small_network: SmallNetwork) -> Callable[..., Path]:
    def save(change: Callable[[onnx.ModelProto], None]) -> Path:
        model = small_network()
        change(model)
        onnx.save(model, str(tmp_path / "mine.onnx"))
        return tmp_path / "mine.onnx"

    return save


def normal(found: Description, images: NDArray[np.float32]) -> NDArray[Any]:
    network = found.spec.network
    assert network.input is not None
    (source,), (target,) = found.model.graph.input, found.model.graph.output
    assert (source.name, target.name) == (network.input, network.output)
    for value, channels in ((source, 3), (target, 1)):
        assert value.type.tensor_type.elem_type == FLOAT
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [0, channels, 0, 0]
    return run(found.model, network.input, images)


class TestForms:
    @pytest.mark.parametrize(
        ("change", "note", "tolerance"),
        [
            (logits, "the output holds logits: a sigmoid was added", 1e-6),
            (three_channels, "the output has 3 channels: the first is taken", 1e-6),
            (without_channel, "the map is N x H x W: made N x 1 x H x W", 1e-6),
            (channel_last, "the map is N x H x W x C: made N x 1 x H x W", 1e-6),
            (levels, "the map was divided by 255", 1e-6),
            (levels_uint8, "the map was divided by 255", 1.01 / 255),
            (float16, "the export is FP16: brought to FP32, which a build may lower again", 5e-3),
            (nhwc_input, "the input is N x H x W x 3: made N x 3 x H x W", 1e-6),
            (unknown_nhwc, "the input is N x H x W x 3: made N x 3 x H x W", 1e-6),
            (uint8_nhwc, "the input is uint8: pixels are not normalised outside of the network", 1e-6),
        ],
    )
    def test_is_recognised_and_computes_the_same(
        self,
        saved: Callable[..., Path],
        small_network: SmallNetwork,
        change: Callable[[onnx.ModelProto], None],
        note: str,
        tolerance: float,
    ) -> None:
        found = describe(saved(change), preset="dbnet")
        assert note in found.notes
        images = np.random.default_rng(1).integers(0, 3, (2, 3, HEIGHT, WIDTH)).astype(np.float32)
        assert np.abs(normal(found, images) - run(small_network(), "x", images)).max() <= tolerance
        raw = found.spec.network.mean == (0.0, 0.0, 0.0) and found.spec.network.std == (1.0, 1.0, 1.0)
        assert raw == (change is uint8_nhwc)

    def test_a_smaller_map_is_interpolated(self, saved: Callable[..., Path], small_network: SmallNetwork) -> None:
        path = saved(smaller)
        found = describe(path, preset="dbnet")
        assert "the map has 1/4 of the image's sides: it is interpolated" in found.notes
        images = np.random.default_rng(1).normal(size=(1, 3, HEIGHT, WIDTH)).astype(np.float32)
        small = run(onnx.load(str(path)), "x", images)[0, 0]
        assert small.shape == (HEIGHT // 4, WIDTH // 4)
        expected = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        assert np.abs(normal(found, images)[0, 0] - expected).max() < 1e-5

    def test_an_input_that_must_be_uint8_is_cast(self, saved: Callable[..., Path]) -> None:
        def quantised(model: onnx.ModelProto) -> None:
            scale = numpy_helper.from_array(np.float32(0.5), "in_scale")
            zero = numpy_helper.from_array(np.uint8(3), "in_zero")
            model.graph.initializer.extend([scale, zero])
            node = helper.make_node("DequantizeLinear", ["raw", "in_scale", "in_zero"], ["x"], "dequantise")
            model.graph.node.insert(0, node)
            model.graph.input[0].CopyFrom(helper.make_tensor_value_info("raw", UINT8, ["N", 3, "H", "W"]))

        path = saved(quantised)
        found = describe(path, preset="dbnet")
        images = np.random.default_rng(1).integers(0, 256, (1, 3, HEIGHT, WIDTH), np.uint8)
        expected = run(onnx.load(str(path)), "raw", images)
        assert np.abs(normal(found, images.astype(np.float32)) - expected).max() < 1e-4


class TestUncertain:
    @pytest.mark.parametrize(
        ("low", "high", "values"),
        [(0.0, 1.0, "probability"), (-9.0, 4.0, "logits"), (-9.0, -2.0, "logits"), (0.0, 254.0, "levels")],
    )
    def test_values_that_are_certain(self, low: float, high: float, values: str) -> None:
        raw = np.linspace(low, high, 64, dtype=np.float32).reshape(1, 1, 8, 8)
        assert with_values(form_of(raw, 8, 8), raw, None).values == values

    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.5), (-0.1, 1.0), (0.0, 1000.0)])
    def test_values_that_are_not(self, low: float, high: float) -> None:
        raw = np.linspace(low, high, 64, dtype=np.float32).reshape(1, 1, 8, 8)
        with pytest.raises(InvalidInputError, match="name what they are with --output-values"):
            with_values(form_of(raw, 8, 8), raw, None)
        assert with_values(form_of(raw, 8, 8), raw, "logits").values == "logits"

    def test_a_claim_that_is_wrong_is_refused(self, saved: Callable[..., Path]) -> None:
        with pytest.raises(InvalidInputError, match=r"must be probabilities from 0 to 1; got .* --output-values"):
            describe(saved(logits), preset="dbnet", export=ExportOptions(values="probability"))

    @pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 1, 1, 8), (1, 8), (1, 1, 9, 8)])
    def test_what_is_no_map(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InvalidInputError, match=r"must have the input's height and width.*--output-tensor"):
            form_of(np.zeros(shape, np.float32), 8, 8)

    def test_a_wrong_layout_is_named(self, saved: Callable[..., Path]) -> None:
        def fixed(model: onnx.ModelProto) -> None:
            nhwc_input(model, shape=[1, 64, 96, 3])

        with pytest.raises(InvalidInputError, match="which is not --input-layout nchw"):
            describe(saved(fixed), preset="dbnet", export=ExportOptions(layout="nchw"))
        with pytest.raises(InvalidInputError, match=r"cannot be executed with images N x 3 x H x W \(--input-layout\)"):
            describe(saved(unknown_nhwc), preset="dbnet", export=ExportOptions(layout="nchw"))

    @pytest.mark.parametrize(
        ("element", "shape", "message"),
        [
            (FLOAT, ["N", 1, "H", "W"], "must take 3 channels"),
            (TensorProto.INT32, ["N", 3, "H", "W"], "must be float32, float16 or uint8; got INT32"),
            (FLOAT, ["N", 3], "must be float32 N x 3 x H x W, or N x H x W x 3"),
        ],
    )
    def test_an_input_that_is_no_image(
        self, saved: Callable[..., Path], element: int, shape: list[Any], message: str
    ) -> None:
        def change(model: onnx.ModelProto) -> None:
            model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", element, shape))

        with pytest.raises(InvalidInputError, match=message):
            describe(saved(change), preset="dbnet")

    def test_uint8_takes_no_normalisation(self, saved: Callable[..., Path]) -> None:
        with pytest.raises(InvalidInputError, match="normalises itself: drop --mean and --std"):
            describe(saved(uint8_nhwc), preset="dbnet", export=ExportOptions(mean=(1.0, 2.0, 3.0)))


class TestOptions:
    def test_replace_the_preset(self, saved: Callable[..., Path]) -> None:
        options = ExportOptions(
            color="BGR", scale=0.5, mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0), resize="letterbox:640x320"
        )
        spec = describe(saved(lambda model: None), preset="dbnet", export=options).spec
        assert spec.network.color == "BGR"
        assert (spec.network.mean, spec.network.std) == ((20.0, 40.0, 60.0), (2.0, 4.0, 8.0))
        assert (spec.resize.kind, spec.resize.width, spec.resize.height) == ("letterbox", 640, 320)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"color": "GRAY"}, "--color must be one of BGR, RGB"),
            ({"layout": "chw"}, "--input-layout must be one of nchw, nhwc"),
            ({"values": "scores"}, "--output-values must be one of probability, logits, levels"),
            ({"mean": (1.0,)}, "--mean must be three numbers"),
            ({"std": (1.0, 0.0, 1.0)}, "--std must be positive"),
            ({"std": (0.229, 0.224, 0.225)}, "--scale 0.00392156862745098"),
            ({"scale": 0.0}, "--scale must be positive"),
        ],
    )
    def test_wrong_ones_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            ExportOptions(**options)

    @pytest.mark.parametrize(
        ("resize", "message"),
        [("fixed:640", "--resize must be fixed:WIDTHxHEIGHT"), ("fixed:641x640", "--resize fixed:641x640: .*multiple")],
    )
    def test_a_wrong_policy_is_refused(self, saved: Callable[..., Path], resize: str, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            describe(saved(lambda model: None), preset="dbnet", export=ExportOptions(resize=resize))
