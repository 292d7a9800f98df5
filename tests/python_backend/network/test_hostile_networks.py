# SPDX-License-Identifier: Apache-2.0
"""Networks that would hang, exhaust memory or detect nothing are refused or reported when they are loaded."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend import Bundle, Detector, DetectorSpec, ResizePolicy
from ocdserve.backend.network import load
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import CPU_RUNTIMES, RuntimeOptions
from ocdserve.contract import InvalidInputError, UnavailableError

Write = Callable[..., Bundle]


def value(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def looping() -> onnx.GraphProto:
    """The body of an ONNX Loop that never ends."""
    return helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v")],
        [value("again", TensorProto.BOOL, []), value("w")],
    )


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])


def call(kind: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node(kind, [source], [target], domain="local")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a network that reads the red channel into `red` and goes on with the given nodes to `p`."""

    def written(
        *nodes: onnx.NodeProto, functions: Sequence[onnx.FunctionProto] = (), policy: Any = None, **constants: Any
    ) -> Bundle:
        constants["weights"] = np.array([1 / 255, 0, 0], np.float32).reshape(1, 3, 1, 1)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "weights"], ["red"], kernel_shape=[1, 1]), *nodes],
            "hostile",
            [value("x", shape=("N", 3, "H", "W"))],
            [value("p", shape=("N", 1, None, None))],
            [numpy_helper.from_array(np.array(content), name) for name, content in constants.items()],
        )
        domains = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        model = helper.make_model(graph, opset_imports=domains, ir_version=9, functions=functions)
        onnx.save(model, tmp_path / "model.onnx")
        return Bundle(DetectorSpec(resize=policy or ResizePolicy()), tmp_path / "model.onnx")

    return written


def fails(bundle: Bundle, runtime: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidInputError, match=message):
        load_network(bundle, RuntimeOptions(runtime, threads=1))
    assert time.monotonic() - started < 10


@pytest.fixture(params=CPU_RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestStructure:
    def test_a_cycle_is_refused(self, write: Write, runtime: str) -> None:
        nodes = [helper.make_node("Add", ["red", "c"], ["b"]), helper.make_node("Identity", ["b"], ["c"])]
        fails(write(*nodes, helper.make_node("Identity", ["c"], ["p"])), runtime, "nodes that wait for each other")

    def test_nodes_in_any_order_are_accepted(self, write: Write) -> None:
        bundle = write(helper.make_node("Identity", ["a"], ["p"]), helper.make_node("Identity", ["red"], ["a"]))
        assert load_network(bundle, RuntimeOptions("openvino", threads=1)).infer([np.zeros((32, 32, 3), np.uint8)])

    def test_a_node_after_its_user_in_a_branch_is_no_cycle(self, write: Write) -> None:
        branch = helper.make_graph([helper.make_node("Identity", ["red"], ["o"])], "then", [], [value("o")])
        nodes = [helper.make_node("If", ["yes"], ["p"], then_branch=branch, else_branch=branch)]
        bundle = write(*nodes, yes=True)
        assert load_network(bundle, RuntimeOptions("onnxruntime", threads=1)).infer([np.zeros((32, 32, 3), np.uint8)])

    def test_a_cycle_through_a_branch_is_refused(self, write: Write, runtime: str) -> None:
        branch = helper.make_graph([helper.make_node("Identity", ["p"], ["o"])], "then", [], [value("o")])
        nodes = [helper.make_node("If", ["yes"], ["p"], then_branch=branch, else_branch=branch)]
        fails(write(*nodes, yes=True), runtime, "nodes that wait for each other")

    def test_too_many_nodes_are_refused(self, write: Write, runtime: str) -> None:
        names = ["red", *(f"i{index}" for index in range(30_000)), "p"]
        nodes = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
        fails(write(*nodes), runtime, "more than 10000 nodes")

    def test_a_loop_is_refused(self, write: Write, runtime: str) -> None:
        bundle = write(helper.make_node("Loop", ["", "yes", "red"], ["p"], body=looping()), yes=True)
        fails(bundle, runtime, "a Loop, which may never end")

    def test_a_loop_in_a_function_is_refused(self, write: Write, runtime: str) -> None:
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        inner = helper.make_node("Loop", ["", "yes", "a"], ["b"], body=looping())
        fails(write(call("F", "red", "p"), functions=[function("F", yes, inner)]), runtime, "a Loop, which may never")

    def test_functions_that_call_each_other_are_refused(self, write: Write, runtime: str) -> None:
        functions = [function("F", call("G", "a", "b")), function("G", call("F", "a", "b"))]
        fails(write(call("F", "red", "p"), functions=functions), runtime, "calls itself")

    def test_functions_that_grow_without_bound_are_refused(self, write: Write, runtime: str) -> None:
        functions = [function("F0", helper.make_node("Identity", ["a"], ["b"]))]
        for level in range(1, 40):
            inner = f"F{level - 1}"
            functions.append(function(f"F{level}", call(inner, "a", "c"), call(inner, "c", "b")))
        bundle = write(call("F39", "red", "p"), functions=functions)
        fails(bundle, runtime, "more than 10000 nodes")

    @pytest.mark.parametrize("sides", [(50_000, 60_000), (2**40, 2**40)])
    def test_tensors_of_gigabytes_are_refused(self, write: Write, runtime: str, sides: tuple[int, int]) -> None:
        nodes = [
            helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
            helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=1),
            helper.make_node("Add", ["red", "most"], ["p"]),
        ]
        fails(write(*nodes, shape=np.array([1, 1, *sides], np.int64)), runtime, "of float32 .* at most")

    def test_an_enlargement_to_gigabytes_is_refused(self, write: Write, runtime: str) -> None:
        nodes = [
            helper.make_node("Resize", ["red", "", "scales"], ["large"]),
            helper.make_node("MaxPool", ["large"], ["p"], kernel_shape=[1, 1], strides=[1000, 1000]),
        ]
        fails(write(*nodes, scales=np.array([1, 1, 1000, 1000], np.float32)), runtime, "of float32 .* at most")

    def test_a_tensor_whose_data_does_not_fit_its_shape_is_refused(self, write: Write, runtime: str) -> None:
        bundle = write(helper.make_node("Identity", ["red"], ["p"]))
        model = onnx.load(bundle.model_path)
        model.graph.initializer[0].dims[:] = [1, 2**40, 1, 1]
        bundle.model_path.write_bytes(model.SerializeToString())
        fails(bundle, runtime, "its tensor 'weights' is malformed")

    @pytest.mark.parametrize("inputs", [["red"], ["red"] * 3])
    def test_a_node_with_too_few_or_too_many_inputs_is_refused(
        self, write: Write, runtime: str, inputs: list[str]
    ) -> None:
        fails(write(helper.make_node("Add", inputs, ["p"])), runtime, r"Add of \['p'\] has \d inputs and 1 outputs")

    def test_a_node_without_an_attribute_is_refused(self, write: Write, runtime: str) -> None:
        node = helper.make_node("Concat", ["red", "red"], ["p"])
        fails(write(node), runtime, r"Concat of \['p'\] lacks the attribute axis")

    def test_an_output_of_an_unknown_type_is_refused(self, write: Write, runtime: str) -> None:
        bundle = write(helper.make_node("Identity", ["red"], ["p"]))
        model = onnx.load(bundle.model_path)
        model.graph.output[0].type.tensor_type.elem_type = 127
        bundle.model_path.write_bytes(model.SerializeToString())
        fails(bundle, runtime, "output 'p' must be float32 N x 1 x H x W; got 127")

    def test_a_name_that_is_no_text_is_refused(self, write: Write, runtime: str) -> None:
        bundle = write(helper.make_node("Identity", ["red"], ["p"], name="name-of-a-node"))
        bundle.model_path.write_bytes(bundle.model_path.read_bytes().replace(b"name-of-a-node", b"name-of-\xff-node"))
        fails(bundle, runtime, "is no text|no readable ONNX")

    def test_an_unknown_operation_is_refused(self, write: Write, runtime: str) -> None:
        for domain in ("", "local", "elsewhere"):
            fails(write(helper.make_node("Magic", ["red"], ["p"], domain=domain)), runtime, "Magic|cannot compile")


class TestTrial:
    def test_a_map_of_another_size_is_refused(self, write: Write, runtime: str) -> None:
        node = helper.make_node("MaxPool", ["red"], ["p"], kernel_shape=[4, 4], strides=[4, 4])
        fails(write(node), runtime, r"map of 32 x 32 .* picture of 128 x 128")

    def test_a_network_that_fails_is_refused(self, write: Write, runtime: str) -> None:
        node = helper.make_node("Add", ["red", "odd"], ["p"])
        fails(write(node, odd=np.zeros((1, 1, 7, 7), np.float32)), runtime, "fails on a picture|returns a map of 7 x 7")

    @pytest.mark.parametrize("factor", [np.nan, 0.0])
    def test_a_network_that_finds_nothing_is_said(
        self, write: Write, runtime: str, factor: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        for options in (RuntimeOptions(runtime, threads=1), RuntimeOptions(runtime, threads=1, map_type="float32")):
            caplog.clear()
            load_network(write(helper.make_node("Mul", ["red", "factor"], ["p"]), factor=np.float32(factor)), options)
            (record,) = caplog.records
            assert record.levelname == "WARNING"
            assert "the network of detector returns" in record.message
            assert "for every pixel of a picture with a word" in record.message

    @pytest.mark.parametrize("policy", [ResizePolicy(), ResizePolicy("fixed", width=96, height=64)])
    def test_a_good_network_is_loaded_in_silence(
        self, write: Write, runtime: str, policy: ResizePolicy, caplog: pytest.LogCaptureFixture
    ) -> None:
        load_network(write(helper.make_node("Identity", ["red"], ["p"]), policy=policy), RuntimeOptions(runtime))
        assert caplog.records == []

    def test_what_fails_later_is_an_error_of_ours(self, write: Write, runtime: str) -> None:
        # Only pictures as large as that of the trial.
        bundle = write(helper.make_node("Reshape", ["red", "shape"], ["p"]), shape=np.array([1, 1, 128, 128]))
        detector = Detector(bundle, load_network(bundle, RuntimeOptions(runtime, threads=1)))
        with pytest.raises(UnavailableError, match=r"cannot execute the network|returned a map of 128 x 128"):
            detector.infer([np.zeros((32, 64, 3), np.uint8)])


class TestTimeLimit:
    def test_loading_ends_after_a_time(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(load, "_maker", lambda runtime: lambda *_: time.sleep(30))
        monkeypatch.setattr(load, "LOAD_S", 0.3)
        started = time.monotonic()
        with pytest.raises(InvalidInputError, match=r"model.onnx was not loaded within 0\.3 s"):
            load_network(write(helper.make_node("Identity", ["red"], ["p"])))
        assert time.monotonic() - started < 5

    def test_the_process_can_end_while_a_network_hangs(self, write: Write) -> None:
        names = ["red", *(f"i{index}" for index in range(9_000)), "p"]
        nodes = [helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)]
        bundle = write(*nodes)
        folder = bundle.save(bundle.model_path.parent / "bundle").model_path.parent
        # It ends while OpenVINO still reads the file (8 s): its own threads, of later, can abort a process that ends.
        code = (
            "from ocdserve.backend import Detector; from ocdserve.backend.network import load; load.LOAD_S = 0.2\n"
            f"try: Detector.load({str(folder)!r}, 'openvino')\nexcept Exception as error: print(type(error).__name__)"
        )
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert (ended.returncode, ended.stdout.strip()) == (0, "InvalidInputError"), ended.stderr
