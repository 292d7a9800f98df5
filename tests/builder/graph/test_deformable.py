# SPDX-License-Identifier: Apache-2.0
"""Deformable convolutions: custom nodes are imported, and every form computes what ONNX Runtime's DeformConv does."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder.graph.deformable import Form, coordinate_nodes, import_deformable, lower_deformable
from ocdserve.contract import InvalidInputError

Arrays = dict[str, NDArray[np.float32]]
NAME = "/backbone/layer2.0/conv2/Deform"


def one_node(node: onnx.NodeProto, arrays: Arrays, *, dynamic: str = "", opset: int = 19) -> onnx.ModelProto:
    """A model of one node; weight and bias are constants, the others inputs of dynamic batch, height ("h"), width."""

    def value(name: str, array: NDArray[np.float32]) -> onnx.ValueInfoProto:
        symbols = ["n", None, *(f"{name}_{side}" if side in dynamic else None for side in "hw")]
        shape = [symbol or size for symbol, size in zip(symbols, array.shape, strict=True)]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    constants = [numpy_helper.from_array(arrays[name], name) for name in ("weight", "bias") if name in arrays]
    inputs = [value(name, array) for name, array in arrays.items() if name not in ("weight", "bias")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)
    graph = helper.make_graph([node], "one", inputs, [output], constants)
    opsets = [helper.make_opsetid("", opset)] + [helper.make_opsetid(node.domain, 1)] * bool(node.domain)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def deform_conv(arrays: Arrays, *, dynamic: str = "", name: str = NAME, **attributes: Any) -> onnx.ModelProto:
    inputs = ["x", "weight", "offset", "bias" if "bias" in arrays else "", "mask" if "mask" in arrays else ""]
    node = helper.make_node("DeformConv", inputs, ["y"], name, **attributes)
    return one_node(node, arrays, dynamic=dynamic)


def custom(
    arrays: Arrays, *, op: str = "ModulatedDeformConv2d", opset: int = 17, domain: str = "", **attributes: Any
) -> onnx.ModelProto:
    inputs = [name for name in ("x", "offset", "mask", "weight", "bias") if name in arrays]
    node = helper.make_node(op, inputs, ["y"], NAME, domain=domain, **attributes)
    return one_node(node, arrays, opset=opset)


def run(model: onnx.ModelProto, arrays: Arrays) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {value.name: arrays[value.name] for value in model.graph.input})
    return result


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-3))


def layer(*, groups: int = 1, offset_groups: int = 1, seed: int = 0, size: int = 6) -> Arrays:
    """A 3 x 3 layer of stride and padding 1."""
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (2, 4, size, size),
        "offset": (2, 18 * offset_groups, size, size),
        "mask": (2, 9 * offset_groups, size, size),
        "weight": (6, 4 // groups, 3, 3),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


PLAIN = {"pads": [1, 1, 1, 1]}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Arrays, dict[str, Any]]:
    def pair(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)), draw(st.integers(low, high))]

    kernel, strides, dilations, pads = pair(1, 3), pair(1, 3), pair(1, 2), pair(0, 2) + pair(0, 2)
    group, offset_group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 4]))
    smallest = [
        max(1, d * (k - 1) + 1 - pads[i] - pads[i + 2]) for i, (k, d) in enumerate(zip(kernel, dilations, strict=True))
    ]
    size = [low + draw(st.integers(0, 5)) for low in smallest]
    out = [(size[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in (0, 1)]
    batch, taps = draw(st.integers(1, 3)), kernel[0] * kernel[1]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    offset = rng.normal(scale=draw(st.sampled_from([0.3, 2.0, 1e4])), size=(batch, 2 * offset_group * taps, *out))
    if draw(st.booleans()):  # on pixels and borders, and exactly one pixel outside
        offset = np.round(offset)
    arrays = {
        "x": rng.normal(size=(batch, 4, *size)),
        "offset": offset,
        "weight": rng.normal(size=(2 * group, 4 // group, *kernel)),
    }
    if draw(st.booleans()):
        arrays["mask"] = rng.uniform(size=(batch, offset_group * taps, *out))
    if draw(st.booleans()):
        arrays["bias"] = rng.normal(size=2 * group)
    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return {k: v.astype(np.float32) for k, v in arrays.items()}, {**attributes, "offset_group": offset_group}


@given(case=cases(), dynamic=st.sampled_from(["", "h", "w", "hw"]))
def test_the_standard_form_computes_what_onnxruntimes_deform_conv_computes(
    case: tuple[Arrays, dict[str, Any]], dynamic: str
) -> None:
    arrays, attributes = case
    model = deform_conv(arrays, dynamic=dynamic, **attributes)
    lowered = lower_deformable(model, "standard")
    assert not any(node.op_type == "DeformConv" for node in lowered.graph.node)
    assert relative_error(run(lowered, arrays), run(model, arrays)) < 1e-4


def test_offsets_are_row_then_column_and_zeros_lie_outside() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    offset = np.zeros((1, 2, 3, 4), np.float32)
    offset[:, 0], offset[:, 1] = 1.0, -0.5  # one row down, half a column to the left
    arrays = {"x": image, "offset": offset, "mask": np.full((1, 1, 3, 4), 2, np.float32)}
    arrays["weight"] = np.ones((1, 1, 1, 1), np.float32)
    expected = [[4, 9, 11, 13], [8, 17, 19, 21], [0, 0, 0, 0]]
    for form in ("onnx", "standard"):
        result = run(lower_deformable(import_deformable(custom(arrays)), form), arrays)
        assert result[0, 0].tolist() == expected, form


@pytest.mark.parametrize("opset", [11, 17, 19, 21])
@pytest.mark.parametrize(
    ("op", "domain", "group", "offset_group"),
    [
        ("ModulatedDeformConv2d", "", "group", "deformable_group"),
        ("MMCVModulatedDeformConv2d", "mmdeploy", "groups", "deform_groups"),
        ("MMCVModulatedDeformConv2d", "mmcv", "groups", "deform_groups"),
    ],
)
def test_custom_nodes_become_deform_conv(op: str, domain: str, group: str, offset_group: str, opset: int) -> None:
    arrays = layer(groups=2, offset_groups=2) | {"bias": np.arange(6, dtype=np.float32)}
    attributes = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], group: 2, offset_group: 2}
    model = custom(arrays, op=op, domain=domain, opset=opset, **attributes)
    imported = import_deformable(model)
    assert [(item.domain, item.version) for item in imported.opset_import] == [("", max(opset, 19))]
    assert (imported.graph.node[0].name, imported.graph.node[0].op_type) == (NAME, "DeformConv")
    expected = run(deform_conv(arrays, pads=[1] * 4, group=2, offset_group=2), arrays)
    np.testing.assert_array_equal(run(imported, arrays), expected)
    assert relative_error(run(lower_deformable(imported, "standard"), arrays), expected) < 1e-4


def test_pairs_of_a_custom_node_are_height_then_width_and_one_number_stands_for_both() -> None:
    arrays = layer()
    arrays["offset"], arrays["mask"] = arrays["offset"][:, :, :3], arrays["mask"][:, :, :3]
    model = import_deformable(custom(arrays, stride=[2, 1], padding=[1, 2], dilation=[1, 2]))
    expected = run(deform_conv(arrays, strides=[2, 1], pads=[1, 2, 1, 2], dilations=[1, 2]), arrays)
    np.testing.assert_array_equal(run(model, arrays), expected)
    arrays = layer()
    result = run(import_deformable(custom(arrays, stride=1, padding=1, dilation=1)), arrays)
    np.testing.assert_array_equal(result, run(deform_conv(arrays, **PLAIN), arrays))


def test_constants_listed_as_inputs_and_constant_nodes_are_found() -> None:
    arrays = layer()
    listed = deform_conv(arrays, **PLAIN)
    listed.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, arrays["weight"].shape))
    held = deform_conv(arrays, **PLAIN)
    node = helper.make_node("Constant", [], ["weight"], value=held.graph.initializer.pop())
    held.graph.node.insert(0, node)
    expected = run(deform_conv(arrays, **PLAIN), arrays)
    for model in (listed, held):
        lowered = lower_deformable(model, "standard")
        assert relative_error(run(lowered, arrays), expected) < 1e-4
        assert "weight" not in {tensor.name for tensor in lowered.graph.initializer}


@pytest.mark.parametrize("step", [import_deformable, lambda model: lower_deformable(model, "standard")])
def test_a_model_without_deformable_convolutions_is_returned_equal(step: Any) -> None:
    node = helper.make_node("Conv", ["x", "weight"], ["y"], "conv")
    model = one_node(node, {name: layer()[name] for name in ("x", "weight")}, opset=17)
    result = step(model)
    assert result == model and result is not model


def test_the_given_models_are_not_modified() -> None:
    model = custom(layer(), padding=[1, 1])
    before = model.SerializeToString(deterministic=True)
    imported = import_deformable(model)
    assert model.SerializeToString(deterministic=True) == before
    before = imported.SerializeToString(deterministic=True)
    forms: tuple[Form, ...] = ("onnx", "standard", "plugin")
    first, second = ([lower_deformable(imported, form) for form in forms] for _ in range(2))
    assert imported.SerializeToString(deterministic=True) == before
    assert first == second and first[0] == imported


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": ["x", "offset", "mask"]}, "must take x, offset, mask, weight and perhaps bias"),
        ({"inputs": ["x", "offset", "", "weight"]}, "must take x, offset, mask, weight and perhaps bias"),
        ({"stride": [1, 1, 1]}, r"stride must be 2 whole number\(s\) of at least 1; got \[1, 1, 1\]"),
        ({"stride": 0}, "stride must be .* at least 1; got 0"),
        ({"padding": [-1, 1]}, "padding must be .* at least 0"),
        ({"dilation": 1.5}, "dilation must be"),
        ({"group": [1, 2]}, "group must be 1 whole number"),
        ({"group": 4}, "must be multiples of their groups"),
        ({"deformable_group": 3}, "must be multiples of their groups"),
        ({"deformable_group": 2}, r"offset must be \['\?', 36, 6, 6\].*got \['n', 18, 6, 6\]"),
        ({"padding": 0}, r"offset must be \['\?', 18, 4, 4\]"),
    ],
)
def test_malformed_custom_nodes_are_refused(change: dict[str, Any], message: str) -> None:
    inputs = change.pop("inputs", ["x", "offset", "mask", "weight"])
    node = helper.make_node("ModulatedDeformConv2d", inputs, ["y"], NAME, **({"padding": [1, 1]} | change))
    with pytest.raises(InvalidInputError, match=message) as caught:
        import_deformable(one_node(node, layer()))
    assert NAME in str(caught.value)


def test_a_mask_of_another_size_and_weights_that_do_not_fit_are_refused() -> None:
    arrays = layer()
    with pytest.raises(InvalidInputError, match=r"mask must be \['\?', 9, 6, 6\]"):
        import_deformable(custom(arrays | {"mask": arrays["mask"][:, :8]}, padding=1))
    with pytest.raises(InvalidInputError, match=r"x must be \['\?', 3, '\?', '\?'\]"):
        import_deformable(custom(arrays | {"weight": arrays["weight"][:, :3]}, padding=1))


def test_a_network_that_cannot_be_converted_is_refused() -> None:
    model = custom(layer(), padding=1)
    model.graph.node.append(helper.make_node("NoSuchOperator", ["y"], ["z"]))
    with pytest.raises(InvalidInputError, match="cannot be converted from opset 17 to 19"):
        import_deformable(model)


def test_weights_that_are_not_float32_constants_are_refused() -> None:
    model = deform_conv(layer(), **PLAIN)
    model.graph.initializer[0].name = "stored"
    model.graph.node.insert(0, helper.make_node("Identity", ["stored"], ["weight"]))
    with pytest.raises(InvalidInputError, match="the weight must be a float32 constant"):
        lower_deformable(model, "standard")
    half = deform_conv(layer(), **PLAIN)
    half.graph.initializer[0].CopyFrom(numpy_helper.from_array(layer()["weight"].astype(np.float16), "weight"))
    with pytest.raises(InvalidInputError, match="the weight must be a float32 constant"):
        lower_deformable(half, "standard")


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="form must be one of onnx, standard, plugin; got 'cuda'"):
        lower_deformable(deform_conv(layer(), **PLAIN), "cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "prefix"), [(NAME, NAME), ("", "y")])
def test_the_convolution_keeps_its_names_and_the_other_nodes_begin_with_them(name: str, prefix: str) -> None:
    nodes = lower_deformable(deform_conv(layer(), name=name, **PLAIN), "standard").graph.node
    assert (nodes[-1].op_type, nodes[-1].name, list(nodes[-1].output)) == ("Conv", name, ["y"])
    assert all(node.name.startswith(f"{prefix}/") for node in nodes[:-1])
    assert len({node.name for node in nodes}) == len(nodes)


@pytest.mark.parametrize("dynamic", ["", "hw"])
def test_coordinate_nodes_are_all_between_offset_and_grid_sample(dynamic: str) -> None:
    arrays = layer(offset_groups=2)
    model = lower_deformable(deform_conv(arrays, dynamic=dynamic, offset_group=2, **PLAIN), "standard")
    producers = {output: node for node in model.graph.node for output in node.output}
    (sample,) = (node for node in model.graph.node if node.op_type == "GridSample")
    names, pending = {sample.name}, [sample.input[1]]
    while pending:
        node = producers.get(pending.pop())
        if node is not None:
            names.add(node.name)
            pending += node.input
    assert coordinate_nodes(model) == names
    assert NAME not in names and len(names) >= 10


def test_fixed_sizes_make_the_coordinates_constant() -> None:
    sizes = {"Shape", "Range", "Cast"}
    static = lower_deformable(deform_conv(layer(), **PLAIN), "standard")
    dynamic = lower_deformable(deform_conv(layer(), dynamic="hw", **PLAIN), "standard")
    assert not sizes & {node.op_type for node in static.graph.node}
    assert sizes <= {node.op_type for node in dynamic.graph.node}
    larger = layer(size=9, seed=1) | {"weight": layer()["weight"]}
    assert relative_error(run(dynamic, larger), run(deform_conv(larger, **PLAIN), larger)) < 1e-4


def test_the_plugin_form_is_the_node_that_tensorrts_plugin_describes() -> None:
    arrays = layer() | {"bias": np.zeros(6, np.float32)}
    model = lower_deformable(import_deformable(custom(arrays, padding=1)), "plugin")
    onnx.checker.check_model(model, full_check=True)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, node.name) == ("ModulatedDeformConv2d", "trt.plugins", NAME)
    assert list(node.input) == ["x", "offset", "mask", "weight", "bias"] and list(node.output) == ["y"]
    assert {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute} == {
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "group": 1,
        "deformable_group": 1,
        "plugin_version": b"2",
        "plugin_namespace": b"",
    }


def test_the_plugin_form_can_be_imported_again() -> None:
    arrays = layer()
    model = deform_conv(arrays, **PLAIN)
    again = import_deformable(lower_deformable(model, "plugin"))
    np.testing.assert_array_equal(run(again, arrays), run(model, arrays))


@pytest.mark.parametrize("difference", [{"pads": [1, 1, 0, 0]}, {"strides": [1, 2]}, {"dilations": [2, 1]}, "mask"])
def test_the_plugin_form_refuses_what_the_plugin_cannot_do(difference: Any) -> None:
    arrays = layer()
    if difference == "mask":
        del arrays["mask"]
        difference = {}
    model = deform_conv(arrays, dynamic="hw", **(PLAIN | difference))
    del model.graph.input[1].type.tensor_type.shape.dim[2:]
    model.graph.input[1].type.tensor_type.ClearField("shape")
    with pytest.raises(InvalidInputError, match="Use the form 'standard'"):
        lower_deformable(model, "plugin")


def test_openvino_runs_the_standard_form() -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is part of the extra 'server'")
    arrays = layer(offset_groups=2)
    model = deform_conv(arrays, dynamic="hw", offset_group=2, **PLAIN)
    core = openvino.Core()
    network = core.read_model(lower_deformable(model, "standard").SerializeToString())
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled({name: arrays[name] for name in ("x", "offset", "mask")})[0]
    assert relative_error(result, run(model, arrays)) < 1e-4


@pytest.mark.parametrize("dynamic", ["", "hw"])
def test_tensorrt_rtx_builds_the_standard_form(dynamic: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; it builds without a GPU")
    arrays = layer(offset_groups=2)
    model = lower_deformable(deform_conv(arrays, dynamic=dynamic, offset_group=2, **PLAIN), "standard")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for name in ("x", "offset", "mask"):
        channels, size = arrays[name].shape[1:3]
        bounds = ((1, 4), (2, 6), (4, 12)) if dynamic else ((1, size), (2, size), (4, size))
        profile.set_shape(name, *((batch, channels, side, side) for batch, side in bounds))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize(("opset", "dynamic_size"), [(11, False), (17, False), (17, True)])
def test_an_exported_ocdnet_computes_what_pytorch_computes(
    ocdnet_torch: ModuleType, tmp_path: Path, rng: np.random.Generator, opset: int, dynamic_size: bool
) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "ocdnet.onnx"
    options = {"width_factor": 0.125, "opset": opset, "dynamic_size": dynamic_size}
    network = ocdnet_torch.export_ocdnet(path, height=64, width=96, **options)
    imported = import_deformable(onnx.load(str(path)))
    assert sum(node.op_type == "DeformConv" for node in imported.graph.node) == 6
    size = (96, 128) if dynamic_size else (64, 96)
    blots = rng.uniform(-0.5, 0.5, (2, 3, size[0] // 8, size[1] // 8)).astype(np.float32)
    image = blots.repeat(8, axis=2).repeat(8, axis=3)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    assert expected.shape == (2, 1, *size) and expected.std() > 0.1
    for form in ("onnx", "standard"):
        result = run(lower_deformable(imported, form), {"input": image})
        assert np.abs(result - expected).max() < 1e-4, form
