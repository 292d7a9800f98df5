# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ocdserve.builder.engine import layers, targets
from ocdserve.builder.engine.build import build_engine
from ocdserve.builder.engine.layers import (
    BuiltLayer,
    LayerTypes,
    built_layers,
    describe_layers,
    inspect_engine,
    layer_times,
)
from ocdserve.builder.engine.options import EngineConfig, EngineRuntime, ShapeProfile
from ocdserve.contract import InvalidInputError, UnavailableError

rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'ocdserve[tensorrt-rtx]'")

from rtx_as_tensorrt import RtxAsTensorRt  # noqa: E402  # imports it

PROFILE = ShapeProfile((1, 32, 32), (1, 64, 96), (2, 128, 128))
RTX: tuple[EngineRuntime, ShapeProfile] = ("tensorrt-rtx", PROFILE)
TENSORRT: tuple[EngineRuntime, ShapeProfile] = ("tensorrt", PROFILE)
CONFIG = EngineConfig(("sm_89",))


def network(
    nodes: list[onnx.NodeProto],
    shape: tuple[int | str, ...] = ("N", 3, "H", "W"),
    dtypes: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    **constants: Any,
) -> onnx.ModelProto:
    """A network from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtypes[0], shape)],
        [helper.make_tensor_value_info("y", dtypes[1], None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def weights(*shape: int) -> Any:
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def pixels_network(dtype: Any = np.float32) -> onnx.ModelProto:
    """uint8 pixels in, uint8 map out, a convolution with ReLU and one with a sigmoid between."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], "cast", to=element),
        helper.make_node("Transpose", ["float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1"], ["c1"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["c2"], "second", pads=[1] * 4),
        helper.make_node("Sigmoid", ["c2"], ["p"], "sigmoid"),
        helper.make_node("Mul", ["p", "255"], ["levels"], "levels"),
        helper.make_node("Cast", ["levels"], ["y"], "out", to=TensorProto.UINT8),
    ]
    constants = {"w1": weights(256, 3, 3, 3), "w2": weights(256, 256, 3, 3), "255": np.array(255)}
    typed = {name: value.astype(dtype) for name, value in constants.items()}
    return network(nodes, ("N", "H", "W", 3), (TensorProto.UINT8, TensorProto.UINT8), **typed)


def quantised_network() -> onnx.ModelProto:
    """Two convolutions; the second has quantised input and weights, one scale for each output channel."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"], "dq"),
        helper.make_node("QuantizeLinear", ["w2", "ws", "wz"], ["wq"], "wq", axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wdq"], "wdq", axis=0),
        helper.make_node("Conv", ["dq", "wdq"], ["c2"], "second", pads=[1] * 4),
        helper.make_node("Sigmoid", ["c2"], ["y"], "sigmoid"),
    ]
    return network(
        nodes,
        w1=weights(8, 3, 3, 3),
        w2=weights(8, 8, 3, 3),
        s=np.float32(0.05),
        z=np.int8(0),
        ws=np.full(8, 0.01, np.float32),
        wz=np.zeros(8, np.int8),
    )


class TestBuild:
    def test_builds_for_several_architectures_without_a_gpu(self) -> None:
        built = build_engine(pixels_network(), *RTX, EngineConfig(("sm_120", "sm_75")))
        # The magic number of TensorRT-RTX's plans, and the weights in FP32.
        assert built.plan[:4] == b"vtrt" and len(built.plan) > 4 * 256 * 256 * 9
        assert built.profile == PROFILE

    def test_the_types_of_the_graph_are_those_of_the_engine(self) -> None:
        weights_bytes = 256 * 256 * 9 + 256 * 3 * 9
        single, half = (build_engine(pixels_network(dtype), *RTX, CONFIG).plan for dtype in (np.float32, np.float16))
        assert len(single) - len(half) == pytest.approx(2 * weights_bytes, rel=0.1)

    def test_builds_what_is_quantised(self) -> None:
        assert build_engine(quantised_network().SerializeToString(), *RTX, CONFIG).plan[:4] == b"vtrt"

    def test_takes_the_network_of_the_bundle_with_its_normalisation(self, small_network: Any) -> None:
        from ocdserve.backend import PRESETS
        from ocdserve.backend.network.rewrite.fold import fold

        folded = fold(small_network(), PRESETS["ppocr"].network)  # BGR: its channels are reordered
        assert build_engine(folded, *RTX, CONFIG).plan[:4] == b"vtrt"

    def test_does_not_change_the_network(self) -> None:
        model = quantised_network()
        before = model.SerializeToString(deterministic=True)
        build_engine(model, *RTX, CONFIG)
        assert model.SerializeToString(deterministic=True) == before

    def test_keeps_warnings_and_prints_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        nodes = [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("Resize", ["r", "", "scales"], ["y"], mode="nearest"),
        ]
        model = network(nodes, scales=np.array([1, 1, 2, 2], np.float32))
        # Exporters write an optional input that is not used so; TensorRT warns of it.
        model.graph.initializer.add(name="empty", data_type=TensorProto.FLOAT, dims=[0])
        model.graph.node[1].input[1] = "empty"
        built = build_engine(model, *RTX, CONFIG)
        assert len(built.warnings) == 1 and "Empty initializer empty" in built.warnings[0]
        assert build_engine(quantised_network(), *RTX, CONFIG).warnings == ()
        assert capfd.readouterr() == ("", "")


class TestShapes:
    def test_a_static_dimension_wins(self) -> None:
        model = network([helper.make_node("Relu", ["x"], ["y"])], (1, 3, 64, "W"))
        assert build_engine(model, *RTX, CONFIG).profile == ShapeProfile((1, 64, 32), (1, 64, 96), (1, 64, 128))

    def test_a_static_network_builds(self) -> None:
        model = network([helper.make_node("Relu", ["x"], ["y"])], (2, 3, 64, 96))
        assert build_engine(model, *RTX, CONFIG).profile == ShapeProfile(*[(2, 64, 96)] * 3)

    def test_a_static_dimension_outside_the_profile_is_refused(self) -> None:
        model = network([helper.make_node("Relu", ["x"], ["y"])], ("N", 3, 64, 640))
        with pytest.raises(InvalidInputError, match=r"the network's width is fixed to 640, .* asks for 32 to 128"):
            build_engine(model, *RTX, CONFIG)

    @pytest.mark.parametrize("shape", [("N", 1, "H", "W"), ("N", "C", "H", "W"), ("N", 3, "L")])
    def test_an_input_that_is_not_an_image_is_refused(self, shape: tuple[int | str, ...]) -> None:
        with pytest.raises(InvalidInputError, match=r"input 'x' must be N x 3 x H x W.*got FLOAT \? x"):
            build_engine(network([helper.make_node("Relu", ["x"], ["y"])], shape), *RTX, CONFIG)

    def test_two_inputs_are_refused(self) -> None:
        model = network([helper.make_node("Add", ["x", "b"], ["y"])])
        model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3, "H", "W"]))
        with pytest.raises(InvalidInputError, match="must have one input; got 2"):
            build_engine(model, *RTX, CONFIG)


class TestRefusals:
    def test_a_deformable_convolution_must_be_lowered(self) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "w1"], ["o"], pads=[1] * 4),
            helper.make_node("DeformConv", ["x", "w2", "o"], ["y"], "layer2.0.conv2", pads=[1] * 4),
        ]
        with pytest.raises(
            InvalidInputError,
            match=r"node 'layer2.0.conv2' \(DeformConv\): .*not found.* Lower deformable convolutions",
        ):
            build_engine(network(nodes, w1=weights(18, 3, 3, 3), w2=weights(8, 3, 3, 3)), *RTX, CONFIG)

    def test_mixed_types_name_the_node(self) -> None:
        nodes = [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Add", ["x", "h"], ["y"], "mixed"),
        ]
        with pytest.raises(
            InvalidInputError, match=r"node 'mixed' \(Add\): .*Float and Half.* cast the inputs"
        ) as found:
            build_engine(network(nodes), *RTX, CONFIG)
        assert "CUDA driver" not in str(found.value)

    def test_uint8_pixels_must_be_cast_first(self) -> None:
        nodes = [
            helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["y"], to=TensorProto.FLOAT),
        ]
        model = network(nodes, ("N", "H", "W", 3), (TensorProto.UINT8, TensorProto.FLOAT))
        with pytest.raises(InvalidInputError, match=r"node 'planes' \(Transpose\): .*UInt8.* must be cast before"):
            build_engine(model, *RTX, CONFIG)

    def test_a_damaged_constant_is_named(self) -> None:
        model = network([helper.make_node("Add", ["x", "c"], ["y"])])
        model.graph.initializer.add(name="c", data_type=TensorProto.FLOAT, dims=[2], raw_data=bytes(4))
        with pytest.raises(InvalidInputError, match=r"does not take the network: .*Failed to import initializer: c\.$"):
            build_engine(model, *RTX, CONFIG)

    @pytest.mark.parametrize("data", [b"hello world", b""])
    def test_invalid_onnx_is_refused(self, data: bytes) -> None:
        with pytest.raises(InvalidInputError, match="not readable ONNX"):
            build_engine(data, *RTX, CONFIG)

    def test_a_failed_build_says_why(self) -> None:
        with pytest.raises(InvalidInputError, match=r"cannot build the network: .*workspace"):
            build_engine(pixels_network(), *RTX, replace(CONFIG, workspace_bytes=1))

    def test_an_architecture_that_is_not_offered_lists_those_that_are(self) -> None:
        with pytest.raises(InvalidInputError, match=r"builds for sm_75, sm_80, sm_86, sm_89, sm_120.*; got sm_90"):
            build_engine(quantised_network(), *RTX, EngineConfig(("sm_90",)))

    def test_the_current_architecture_needs_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none() -> tuple[str, str]:
            raise UnavailableError("this machine has no NVIDIA driver.")

        monkeypatch.setattr(targets, "present_gpu", none)
        with pytest.raises(UnavailableError, match=r"'current': this machine has no NVIDIA driver.*sm_89.*name one"):
            build_engine(quantised_network(), *RTX, EngineConfig(("current",)))

    def test_the_current_architecture_is_that_of_the_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets, "present_gpu", lambda: ("sm_86", "NVIDIA A10"))
        assert targets.architectures("tensorrt-rtx", EngineConfig(("current",))) == ("sm_86",)

    def test_a_runtime_that_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(UnavailableError, match=r"TensorRT cannot be loaded: .* Install the package tensorrt"):
            build_engine(quantised_network(), *TENSORRT, EngineConfig())


class TestLayers:
    def test_reports_the_requested_types(self) -> None:
        assert describe_layers(quantised_network(), "tensorrt-rtx") == [
            LayerTypes("first", "CONVOLUTION", ("FP32",), "FP32", "FP32 (requested)"),
            LayerTypes("relu", "ACTIVATION", ("FP32",), "FP32", "FP32 (requested)"),
            LayerTypes("second", "CONVOLUTION", ("INT8", "INT8"), "FP32", "INT8 (requested)"),
            LayerTypes("sigmoid", "ACTIVATION", ("FP32",), "FP32", "FP32 (requested)"),
        ]

    def test_quantised_data_with_other_weights_is_not_an_int8_layer(self) -> None:
        model = quantised_network()
        model.graph.node[6].input[1] = "w2"
        (second,) = (layer for layer in describe_layers(model, "tensorrt-rtx") if layer.name == "second")
        assert (second.inputs[0], second.precision) == ("INT8", "FP32 (requested)")

    def test_reports_half_precision(self) -> None:
        found = {layer.name: layer.precision for layer in describe_layers(pixels_network(np.float16), "tensorrt-rtx")}
        assert found["first"] == found["sigmoid"] == "FP16 (requested)"

    def test_inspecting_an_engine_needs_a_gpu(self) -> None:
        try:
            targets.present_gpu()
        except UnavailableError:
            with pytest.raises(UnavailableError, match="this machine has no"):
                inspect_engine(b"", "tensorrt-rtx")
        else:
            with pytest.raises(UnavailableError, match="cannot load the engine"):
                inspect_engine(b"", "tensorrt-rtx")


# As TensorRT's inspector writes it, cut short.
INFORMATION: dict[str, Any] = {
    "Layers": [
        {
            "Name": "Conv.1 + Relu.1",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "a", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "b", "Format/Datatype": "Half"}],
        },
        {"Name": "shape", "LayerType": "Shuffle"},
        "a name alone",
    ],
    "Bindings": ["NETWORK_IMAGE", "MAP"],
}


class TestBuiltLayers:
    def test_types_and_times_are_reported(self) -> None:
        assert built_layers(INFORMATION, {"Conv.1 + Relu.1": 0.25}) == [
            BuiltLayer(
                "Conv.1 + Relu.1",
                "CaskConvolution",
                "Thirty-two wide channel vectorized row major Int8 format -> Half",
                0.25,
            ),
            BuiltLayer("shape", "Shuffle", "", None),
            BuiltLayer("a name alone", "", "", None),
        ]

    def test_times_are_means_without_the_first_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorRT-RTX's own profiler class, and a runner that reports to it as TensorRT does."""
        monkeypatch.setattr(layers, "load", lambda runtime: targets.load("tensorrt-rtx"))

        class Runner:
            profiler: Any = None
            runs = 0

            def __init__(self, plan: bytes) -> None:
                assert plan == b"plan"

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            @property
            def context(self) -> Any:
                return self

            def infer(self, inputs: dict[str, Any]) -> None:
                assert inputs["NETWORK_IMAGE"].shape == (1, 4, 4, 3)
                self.runs += 1
                if self.profiler is not None:
                    self.profiler.report_layer_time("conv", 1.0 + self.runs)

        polygraphy = SimpleNamespace(TrtRunner=Runner, EngineFromBytes=lambda plan: plan)
        monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", polygraphy)
        # Runs 2 to 11 count: the mean of 3, 4, ... 12.
        assert layer_times(b"plan", np.zeros((4, 4, 3), np.uint8)) == {"conv": 7.5}


class TestCanExecute:
    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets, "present_gpu", lambda: ("sm_89", "NVIDIA L4"))

    def test_needs_the_gpu_that_the_engine_is_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets, "missing", lambda modules: [])
        assert targets.can_execute("tensorrt-rtx", ("sm_89", "sm_120"))
        assert not targets.can_execute("tensorrt-rtx", ("sm_120",))
        # Always built on the GPU of this machine.
        assert targets.can_execute("tensorrt", ("ampere_plus",))

    @pytest.mark.parametrize(("runtime", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
    def test_needs_all_that_serving_needs(
        self, monkeypatch: pytest.MonkeyPatch, runtime: EngineRuntime, module: str
    ) -> None:
        asked: list[str] = []
        monkeypatch.setattr(targets, "missing", lambda modules: asked.extend(modules) or ["pycuda is not installed"])
        assert not targets.can_execute(runtime, ("sm_89",))
        assert asked == [module]


class Record:
    """A progress that remembers: labels with totals, and the steps of each."""

    def __init__(self) -> None:
        self.totals: dict[str, int | None] = {}
        self.steps: dict[str, int] = {}
        self.notes: set[str] = set()

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Any]:
        self.totals[label] = total
        record = self

        class Task:
            def advance(self, steps: int = 1, note: str = "") -> None:
                record.steps[label] = record.steps.get(label, 0) + steps
                record.notes.add(note)

        yield Task()


class TestProgress:
    def test_names_the_build(self) -> None:
        record = Record()
        build_engine(quantised_network(), *RTX, EngineConfig(("sm_89", "sm_80")), record)
        assert next(iter(record.totals)) == "TensorRT-RTX engine for sm_80, sm_89"

    def test_an_error_in_the_progress_receiver_stops_the_builder(self) -> None:
        class Broken(Record):
            @contextmanager
            def task(self, label: str, total: int | None = None) -> Iterator[Any]:
                raise BrokenPipeError("nobody listens")
                yield

        with pytest.raises(BrokenPipeError):
            build_engine(quantised_network(), *RTX, CONFIG, Broken())
        assert "engine-builder" not in {thread.name for thread in threading.enumerate()}
        assert build_engine(quantised_network(), *RTX, CONFIG).plan

    def test_ctrl_c_ends_a_build(self) -> None:
        """A real signal to a real build, of a network that takes many seconds."""
        # Tests that a shell started in the background inherit an ignored signal, and so do their children.
        script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from contextlib import contextmanager
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from ocdserve.builder.engine.build import build_engine
from ocdserve.builder.engine.options import EngineConfig, ShapeProfile

class Progress:
    @contextmanager
    def task(self, label, total=None):
        print("building", flush=True)
        yield self
    def advance(self, steps=1, note=""):
        pass

nodes, constants, channels = [], [], 3
for i in range(150):
    wide = 8 + i % 37
    w = np.random.default_rng(i).normal(0, 0.1, (wide, channels, 3, 3)).astype(np.float32)
    constants.append(numpy_helper.from_array(w, f"w{{i}}"))
    nodes.append(helper.make_node("Conv", [f"t{{i}}", f"w{{i}}"], [f"t{{i + 1}}"], pads=[1] * 4))
    channels = wide
shape = ["N", 3, "H", "W"]
graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("t0", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("t150", TensorProto.FLOAT, None)], constants)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
profile = ShapeProfile({PROFILE.min}, {PROFILE.opt}, {PROFILE.max})
try:
    while True:  # so that no machine is too fast
        build_engine(model, "tensorrt-rtx", profile, EngineConfig(("sm_89",)), Progress())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "building\n"
            time.sleep(0.05)
            begin = time.monotonic()
            process.send_signal(2)
            rest = process.stdout.read()
            assert process.wait(timeout=60) == 7
        assert rest.endswith("interrupted\n")
        assert time.monotonic() - begin < 30


class TestTensorRT:
    """The path of `tensorrt`, which is the same code."""

    @pytest.mark.parametrize(
        ("version", "flags"),
        [("10.12.0.36", 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), ("11.4.0.106", 0)],
    )
    def test_is_strongly_typed(self, monkeypatch: pytest.MonkeyPatch, version: str, flags: int) -> None:
        tensorrt = RtxAsTensorRt(monkeypatch, version)
        build_engine(quantised_network(), *TENSORRT, EngineConfig())
        assert tensorrt.network_flags == [flags]

    @pytest.mark.parametrize(
        ("batches", "opt_batch", "profiles"),
        [
            # All shapes first: programs that select no profile get the first.
            ((1, 8, 8), None, [(1, 8, 8), (1, 1, 1)]),
            ((1, 4, 8), 4, [(1, 4, 8)]),
            ((2, 8, 8), None, [(2, 8, 8)]),
            ((1, 1, 1), None, [(1, 1, 1)]),
        ],
    )
    def test_kernels_are_chosen_for_the_largest_batch_and_for_single_images(
        self,
        monkeypatch: pytest.MonkeyPatch,
        batches: tuple[int, ...],
        opt_batch: int | None,
        profiles: list[tuple[int, ...]],
    ) -> None:
        tensorrt = RtxAsTensorRt(monkeypatch)
        shapes = [(batch, *sides) for batch, sides in zip(batches, ((32, 32), (64, 96), (128, 160)), strict=True)]
        built = build_engine(quantised_network(), "tensorrt", ShapeProfile(*shapes), EngineConfig(opt_batch=opt_batch))
        assert tensorrt.config.num_optimization_profiles == len(profiles)
        found = [[tuple(shape) for shape in profile.get_shape("x")] for profile in tensorrt.profiles]
        assert found == [[(low, 3, 32, 32), (opt, 3, 64, 96), (high, 3, 128, 160)] for low, opt, high in profiles]
        assert built.profile == ShapeProfile(*shapes)

    def test_a_network_of_one_batch_has_one_profile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensorrt = RtxAsTensorRt(monkeypatch)
        for batch in (1, 2):
            model = network([helper.make_node("Relu", ["x"], ["y"])], (batch, 3, "H", "W"))
            build_engine(model, *TENSORRT, EngineConfig())
        assert [profile.get_shape("x")[1][0] for profile in tensorrt.profiles] == [1, 2]

    def test_passes_the_settings_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensorrt = RtxAsTensorRt(monkeypatch)
        build_engine(
            quantised_network(),
            *TENSORRT,
            EngineConfig(("sm_89",), workspace_bytes=1 << 30, optimization_level=1),
        )
        assert tensorrt.config.builder_optimization_level == 1
        assert tensorrt.config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 1 << 30
        assert tensorrt.config.profiling_verbosity == rtx.ProfilingVerbosity.DETAILED
        assert tensorrt.config.num_compute_capabilities == 0
        assert not tensorrt.config.get_flag(rtx.BuilderFlag.VERSION_COMPATIBLE)

    def test_sets_version_compatibility(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensorrt = RtxAsTensorRt(monkeypatch)
        with pytest.raises(InvalidInputError, match="lean"):  # TensorRT-RTX comes without the lean runtime
            build_engine(quantised_network(), *TENSORRT, EngineConfig(version_compatible=True))
        assert tensorrt.config.get_flag(rtx.BuilderFlag.VERSION_COMPATIBLE)

    def test_refuses_another_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        RtxAsTensorRt(monkeypatch)
        with pytest.raises(InvalidInputError, match="for the GPU of this machine, sm_89, only; got sm_90"):
            build_engine(quantised_network(), *TENSORRT, EngineConfig(("sm_90",)))

    def test_describes_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        RtxAsTensorRt(monkeypatch)
        assert describe_layers(quantised_network(), "tensorrt")[2].precision == "INT8 (requested)"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (None, {b"mine"}),
            (b"older", {b"older", b"mine"}),
            (b"foreign", {b"mine"}),
            (b"not a cache", {b"mine"}),
        ],
    )
    def test_extends_the_timing_cache(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: bytes | None, after: set[bytes]
    ) -> None:
        RtxAsTensorRt(monkeypatch)
        path = tmp_path / "caches" / "times"
        if before is not None:
            path.parent.mkdir()
            path.write_bytes(before)
        build_engine(quantised_network(), *TENSORRT, EngineConfig(timing_cache=path))
        assert set(path.read_bytes().split()) == after
        assert list(path.parent.iterdir()) == [path]

    def test_keeps_times_that_a_concurrent_build_has_written(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = tmp_path / "times"
        RtxAsTensorRt(monkeypatch).while_building = lambda: path.write_bytes(b"theirs") and None
        build_engine(quantised_network(), *TENSORRT, EngineConfig(timing_cache=path))
        assert set(path.read_bytes().split()) == {b"mine", b"theirs"}

    def test_ctrl_c_makes_the_builder_give_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Interrupted(Record):
            @contextmanager
            def task(self, label: str, total: int | None = None) -> Iterator[Any]:
                raise KeyboardInterrupt
                yield

        tensorrt = RtxAsTensorRt(monkeypatch)
        tensorrt.plan = "not yet"
        tensorrt.while_building = lambda: until(lambda: tensorrt.config.progress_monitor.cancelled)
        with pytest.raises(KeyboardInterrupt):
            build_engine(quantised_network(), *TENSORRT, EngineConfig(), Interrupted())
        assert tensorrt.plan is None

    def test_reports_the_phase_with_many_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        record = Record()
        tensorrt = RtxAsTensorRt(monkeypatch)

        def phases() -> None:
            monitor = tensorrt.config.progress_monitor
            monitor.phase_start("Building Engine", None, 3)
            until(lambda: "Building Engine" in record.notes)
            monitor.phase_start("Timing graph nodes", "Building Engine", 20)
            monitor.phase_start("Timing tactics", "Timing graph nodes", 40)
            for step in range(12):
                monitor.step_complete("Timing graph nodes", step)
            until(lambda: record.steps.get("Timing graph nodes") == 12)
            monitor.phase_finish("Timing tactics")
            monitor.phase_finish("Timing graph nodes")

        tensorrt.while_building = phases
        build_engine(quantised_network(), *TENSORRT, EngineConfig(), record)
        assert record.totals["TensorRT engine for sm_89"] is None
        assert record.totals["Timing graph nodes"] == 20
        assert "Timing tactics" not in record.totals


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
