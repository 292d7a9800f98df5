# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from host_device import HostDevice, memory
from onnx import helper

from ocdserve.backend import PRESETS, Bundle, Detector, ResizePolicy
from ocdserve.backend.device.probe import gpu_count
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import Network
from ocdserve.backend.network.rewrite.fold import fold, load_onnx
from ocdserve.builder import BuildConfig, CalibrationOptions, DataConfig, EngineConfig, GateError, GateLimits, build
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.config import Precision
from ocdserve.builder.engine.layers import LayerTypes, describe_layers
from ocdserve.builder.explain import explain
from ocdserve.builder.graph.describe import describe
from ocdserve.builder.graph.execute import GraphNetwork
from ocdserve.contract import InvalidInputError, UnavailableError

# The package's name for it is the function.
build_module = importlib.import_module("ocdserve.builder.build")
# A network of random weights finds random boxes only: its builds show that the parts fit together.
NO_LIMITS = GateLimits(100, 0)
# The layers that the search excludes for the default network on the receipts (see perf/results) in two minutes.
KEPT = ("Conv.1", "Conv.3", "Conv.11", "Conv.12")
RECEIPTS = Path(__file__).parents[3] / "shared" / "data" / "receipts"


@pytest.fixture
def config(tmp_path: Path, small_network: Callable[..., onnx.ModelProto], pictures: Path) -> Callable[..., BuildConfig]:
    """Configuration of a build of the small network; keyword arguments replace fields."""

    def make(**fields: object) -> BuildConfig:
        path = tmp_path / "small.onnx"
        if not path.exists():
            onnx.save(small_network(scale=float(fields.pop("scale", 1.0))), str(path))
        data = DataConfig(calibration_images=pictures, calibration_count=3)
        engine = EngineConfig(architectures=("sm_89",), max_batch=2, store=tmp_path / "engines")
        given = {
            "data": data,
            "engine": engine,
            "limits": NO_LIMITS,
            "threads": 1,
            "output": tmp_path / "bundle",
            "trial": False,
        }
        return BuildConfig(onnx=path, **({"preset": "dbnet"} | given | fields))  # type: ignore[arg-type]

    return make


def report(bundle: Bundle) -> dict[str, object]:
    content: dict[str, object] = json.loads(bundle.model_path.with_name("report.json").read_text("utf-8"))
    return content


def requested(bundle: Bundle) -> list[LayerTypes]:
    """What TensorRT-RTX's own parser reads from the bundle's ONNX."""
    return describe_layers(fold(load_onnx(bundle.model_path), bundle.spec.network), "tensorrt-rtx")


def precisions(bundle: Bundle) -> dict[str, str]:
    layers = report(bundle)["layers"]
    assert isinstance(layers, list)
    return {layer["name"]: layer["precision"] for layer in layers}


class TestBuild:
    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_a_bundle_of_every_precision_runs_on_the_cpu(
        self, config: Callable[..., BuildConfig], precision: Precision, runtime: str
    ) -> None:
        bundle = build(config(precision=precision, runtime=runtime))
        assert (bundle.spec.precision, bundle.spec.runtime) == (precision, runtime)
        pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        (found,) = load_network(bundle, RuntimeOptions(map_type="float32")).infer([pixels])
        exported = Bundle(replace(bundle.spec, runtime=None), config(output=bundle.model_path / "none").onnx)
        (expected,) = load_network(exported, RuntimeOptions("onnxruntime", map_type="float32")).infer([pixels])
        tolerance = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.1}[precision]
        assert np.abs(found - expected).max() < tolerance

    def test_int8_excludes_the_sensitive_layers(self, config: Callable[..., BuildConfig]) -> None:
        bundle = build(config(precision="int8", runtime="onnxruntime"))
        assert precisions(bundle) == {
            "stem": "fp32",
            "dw": "fp32",
            "a": "int8",
            "b": "int8",
            "residual": "fp32",
            "c": "int8",
            "head": "fp32",
        }
        written = report(bundle)
        assert written["quantised_macs"] == pytest.approx((64 + 576 + 128) / (216 + 72 + 64 + 576 + 128 + 32))
        gate = written["gate"]
        assert isinstance(gate, dict)
        assert gate["images"] == 5 and gate["is_certain"] is True and gate["hmean_loss_interval"] is None
        assert {"matches_lost", "matches_won", "agreement_interval"} <= gate.keys()
        assert "only 5 images were judged; fewer than 40 say little about others" in written["notes"]  # type: ignore[operator]

    def test_named_layers_stay_fp32(self, config: Callable[..., BuildConfig]) -> None:
        bundle = build(config(precision="int8", runtime="onnxruntime", keep=("b",)))
        assert precisions(bundle)["b"] == "fp32"

    def test_the_same_images_and_seed_give_the_same_cache(
        self, config: Callable[..., BuildConfig], tmp_path: Path
    ) -> None:
        caches = []
        for name in ("first", "second"):
            bundle = build(config(precision="int8", output=tmp_path / name))
            caches.append(bundle.model_path.with_name("calibration.cache").read_bytes())
        assert caches[0] == caches[1]

    def test_a_cache_replaces_the_images(self, config: Callable[..., BuildConfig], tmp_path: Path) -> None:
        first = build(config(precision="int8"))
        cache = first.model_path.with_name("calibration.cache")
        again = build(
            config(precision="int8", output=tmp_path / "again", data=DataConfig(calibration_cache=cache), gate=False)
        )
        assert again.model_path.read_bytes() == first.model_path.read_bytes()

    def test_a_cache_of_another_tool_may_name_tensors_as_exported(
        self, config: Callable[..., BuildConfig], tmp_path: Path
    ) -> None:
        # d1 is the Identity behind d0; 3c010a14 is 1 / 127.
        cache = tmp_path / "tao.cache"
        cache.write_text(
            "TRT-8601-EntropyCalibration2\nd1: 3c010a14\na1: 3c010a14\nj: 3c010a14\n(Unnamed) 7: 3f800000\n"
        )
        bundle = build(config(precision="int8", data=DataConfig(calibration_cache=cache), gate=False))
        constants = {tensor.name: tensor for tensor in onnx.load(str(bundle.model_path)).graph.initializer}
        assert onnx.numpy_helper.to_array(constants["d0/scale"]) == pytest.approx(1 / 127, rel=1e-3)

    def test_a_cache_of_another_network_is_refused(self, config: Callable[..., BuildConfig], tmp_path: Path) -> None:
        cache = tmp_path / "other.cache"
        CalibrationCache({"d0": 0.1, "a1": 0.1, "j": 0.1}, onnx_sha256="ab" * 32).save(cache)
        data = DataConfig(calibration_cache=cache)
        with pytest.raises(InvalidInputError, match="another network"):
            build(config(precision="int8", data=data, gate=False))
        forced = build(config(precision="int8", data=replace(data, force=True), gate=False))
        assert f"these scales were made for another network (SHA-256 {'ab' * 32}), as forced" in report(forced)["notes"]  # type: ignore[operator]

    def test_a_cache_that_lacks_a_tensor_is_refused(self, config: Callable[..., BuildConfig], tmp_path: Path) -> None:
        cache = tmp_path / "short.cache"
        cache.write_text("TRT-8601-EntropyCalibration2\nd0: 3c010a14\n")
        with pytest.raises(InvalidInputError, match="a1"):
            build(config(precision="int8", data=DataConfig(calibration_cache=cache), gate=False))

    @pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
    def test_other_methods_clip(self, config: Callable[..., BuildConfig], tmp_path: Path, method: str) -> None:
        scales = []
        for name in ("minmax", method):
            options = CalibrationOptions(name)  # type: ignore[arg-type]
            bundle = build(config(precision="int8", calibration=options, output=tmp_path / name, gate=False))
            scales.append(CalibrationCache.load(bundle.model_path.with_name("calibration.cache")).scales)
        assert all(scales[1][name] <= scales[0][name] for name in scales[0])
        assert scales[0] != scales[1]

    def test_a_lower_precision_needs_images(self, config: Callable[..., BuildConfig]) -> None:
        with pytest.raises(InvalidInputError, match="needs photographs"):
            build(config(precision="fp16", data=DataConfig()))

    def test_missing_images_are_reported_before_the_network_is_loaded(
        self, config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build_module, "describe", lambda *_: pytest.fail("loaded"))
        with pytest.raises(InvalidInputError, match="needs photographs"):
            build(config(precision="int8", data=DataConfig()))

    def test_nodes_that_overflow_fp16_stay_fp32(
        self, config: Callable[..., BuildConfig], small_network: Callable[..., onnx.ModelProto]
    ) -> None:
        # The stem's values are near 65504, the next layer scales them back.
        setup = config(precision="fp16")
        model = small_network()
        for tensor in model.graph.initializer:
            if tensor.name in ("gamma", "dw_w"):
                factor = 1e4 if tensor.name == "gamma" else 1e-4
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(
                        (onnx.numpy_helper.to_array(tensor) * factor).astype(np.float32), tensor.name
                    )
                )
        onnx.save(model, str(setup.onnx))
        written = report(build(setup))
        assert {"stem", "stem_relu", "residual"} <= set(written["kept_float32"])  # type: ignore[call-overload]
        gate = written["gate"]
        assert isinstance(gate, dict) and gate["map_error"] < 0.01

    def test_folded_networks_take_pixels(self, config: Callable[..., BuildConfig], tmp_path: Path) -> None:
        folded = build(config(fold=True))
        plain = build(config(output=tmp_path / "plain"))
        pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        maps = [load_network(bundle, RuntimeOptions("onnxruntime")).infer([pixels])[0] for bundle in (folded, plain)]
        assert np.array_equal(maps[0], maps[1])
        with pytest.raises(InvalidInputError, match="folded at build time"):
            load_network(folded, RuntimeOptions("onnxruntime", map_type="float32"))

    def test_explain_lists_every_layer_and_draws_a_plot(self, config: Callable[..., BuildConfig]) -> None:
        bundle = build(config(precision="int8", runtime="onnxruntime", explain=True))
        text = explain(bundle)
        assert all(name in text for name in ("stem", "dw", "residual", "head"))
        assert "map error alone" in text and "was not measured" not in text
        assert bundle.model_path.with_name("damage.png").read_bytes().startswith(b"\x89PNG")


class TestTrial:
    """Text drawn on a page must be found."""

    def test_a_network_that_finds_nothing_is_refused(self, config: Callable[..., BuildConfig]) -> None:
        setup = config(trial=True)
        with pytest.raises(InvalidInputError, match=r"small.onnx is not fit to serve: it finds less than.*--no-trial"):
            build(setup)
        assert not setup.output.exists()
        notes = report(build(replace(setup, trial=False)))["notes"]
        assert "not fit to serve: it finds less than half" in " ".join(notes)  # type: ignore[arg-type]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_network_that_returns_nan_is_always_refused(
        self, config: Callable[..., BuildConfig], small_network: Callable[..., onnx.ModelProto], bad: float
    ) -> None:
        setup = config()
        model = small_network()
        for tensor in model.graph.initializer:
            if tensor.name == "head_b":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([bad], np.float32), "head_b"))
        if bad > 0:
            model.graph.node[-1].op_type = "Identity"
        onnx.save(model, str(setup.onnx))
        with pytest.raises(InvalidInputError, match=r"not finite \(NaN or infinite\) in 100.0% of the map"):
            build(setup)

    def test_nan_for_one_kind_of_page_is_found(
        self, config: Callable[..., BuildConfig], small_network: Callable[..., onnx.ModelProto]
    ) -> None:
        """Dividing by the deviation of the pixels fails on a page of one colour only."""
        setup = config()
        model = small_network()
        for node, name in (
            (helper.make_node("ReduceMax", ["x"], ["hi"], "hi", axes=[1, 2, 3]), "hi"),
            (helper.make_node("ReduceMin", ["x"], ["lo"], "lo", axes=[1, 2, 3]), "lo"),
            (helper.make_node("Sub", ["hi", "lo"], ["range"], "range"), "range"),
        ):
            model.graph.node.insert(("hi", "lo", "range").index(name), node)
        # Black pixels are one value per channel: the three differ, the first channel's spread does not.
        model.graph.node.insert(0, helper.make_node("Slice", ["x", "k0", "k1", "k1"], ["red"], "red"))
        for name, value in (("k0", [0]), ("k1", [1])):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
        model.graph.node[1].input[0] = model.graph.node[2].input[0] = "red"
        model.graph.node.append(helper.make_node("Div", ["range", "range"], ["unit"], "unit"))
        model.graph.node.append(helper.make_node("Mul", ["p", "unit"], ["scaled"], "scaled"))
        model.graph.output[0].name = "scaled"
        model.opset_import[0].version = 13
        onnx.save(model, str(setup.onnx))
        with pytest.raises(InvalidInputError, match=r"not finite \(NaN or infinite\) in 33.3% of the map"):
            build(setup)

    def test_a_lower_precision_that_finds_nothing_is_refused(
        self, config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build_module, "describe", lambda *given: replace(describe(*given), finds_text=True))
        setup = config(precision="int8", runtime="onnxruntime", gate=False, trial=True)
        setup = replace(setup, data=DataConfig(calibration_cache=_useless_cache(setup.onnx.parent)))
        with pytest.raises(GateError, match="in int8 the network is not fit to serve, though it is in FP32"):
            build(setup)
        assert not setup.output.exists()

    def test_an_export_with_other_ends_finds_the_same(self, tmp_path: Path, pictures: Path) -> None:
        """The default network as others export it: uint8 N x H x W x 3 in, N x H x W logits out."""
        model = describe(Bundle.load().model_path).model
        graph = model.graph
        (sigmoid,) = (node for node in graph.node if graph.output[0].name in node.output)
        assert sigmoid.op_type == "Sigmoid"
        for index, (operation, attributes, inputs, output) in enumerate(
            [
                ("Transpose", {"perm": [0, 3, 1, 2]}, ["raw"], "planes"),
                ("Cast", {"to": onnx.TensorProto.FLOAT}, ["planes"], "float"),
                ("Sub", {}, ["float", "half"], "centred"),
                ("Div", {}, ["centred", "half"], graph.input[0].name),
            ]
        ):
            graph.node.insert(index, helper.make_node(operation, inputs, [output], output, **attributes))
        graph.node.append(helper.make_node("Squeeze", [sigmoid.input[0], "axis"], ["logits"], "flat"))
        constants = {"half": np.array(127.5, np.float32), "axis": np.array([1], np.int64)}
        graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
        raw = helper.make_tensor_value_info("raw", onnx.TensorProto.UINT8, ["n", "h", "w", 3])
        graph.input[0].CopyFrom(raw)
        graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", "h", "w"]))
        onnx.save(model, str(tmp_path / "other.onnx"))
        build(BuildConfig(tmp_path / "other.onnx", tmp_path / "bundle", preset="ppocr"))
        picture = pictures / "picture_0.png"
        found, expected = (Detector.load(bundle).detect(picture) for bundle in (tmp_path / "bundle", "default-fp32"))
        assert len(expected) == 4
        np.testing.assert_allclose(found.quads, expected.quads, atol=1e-3)


class TestGate:
    @pytest.mark.parametrize(("precision", "expected"), [("fp32", "bf16"), ("int8", "int8")])
    def test_a_candidate_is_judged_in_the_precision_of_the_bundle(
        self, config: Callable[..., BuildConfig], precision: str, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        judged: list[str] = []

        def load(bundle: Bundle, options: RuntimeOptions) -> Network:
            judged.append(bundle.spec.precision)
            return load_network(bundle, options)

        monkeypatch.setattr(build_module, "load_network", load)
        spec = replace(PRESETS["dbnet"], precision="bf16")
        built = build(config(precision=precision, preset=None, detector=spec, runtime="openvino", search=False))
        assert {*judged, built.spec.precision} == {expected}

    def test_a_network_that_loses_too_much_is_refused(self, config: Callable[..., BuildConfig]) -> None:
        setup = config(precision="int8", runtime="onnxruntime", limits=GateLimits(0, 1), search=False, scale=1000.0)
        data = replace(setup.data, calibration_cache=_useless_cache(setup.onnx.parent))
        with pytest.raises(GateError, match=r"(?s)refuses this int8 network.*box agreement.*Nothing was written"):
            build(replace(setup, data=data))
        assert not setup.output.exists()

    def test_the_search_names_the_most_sensitive_layers(self, config: Callable[..., BuildConfig]) -> None:
        setup = config(precision="int8", runtime="onnxruntime", limits=GateLimits(0, 1), scale=1000.0)
        data = replace(setup.data, calibration_cache=_useless_cache(setup.onnx.parent))
        with pytest.raises(GateError, match=r"(?s)Most sensitive layers.*\bb\b"):
            build(replace(setup, data=data))


def _useless_cache(folder: Path) -> Path:
    """Scales so large that all values round to zero."""
    path = folder / "useless.cache"
    CalibrationCache({"d0": 1e9, "a1": 1e9, "j": 1e9}).save(path)
    return path


@pytest.fixture(scope="module")
def ocdnet(tmp_path_factory: pytest.TempPathFactory, ocdnet_torch: ModuleType) -> Path:
    """An export with deformable convolutions, as PyTorch makes it."""
    path = tmp_path_factory.mktemp("exported") / "ocdnet.onnx"
    ocdnet_torch.export_ocdnet(path, height=64, width=96, width_factor=0.25)
    return path


@pytest.fixture(scope="module")
def two_pictures(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """One for calibration, one for the accuracy gate."""
    folder = tmp_path_factory.mktemp("two")
    for picture in sorted(pictures.iterdir())[:2]:
        shutil.copy(picture, folder)
    return folder


class TestDeformable:
    """A network with deformable convolutions as PyTorch exports it, and the runtimes that have no such operator."""

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tensorrt-rtx"])
    def test_every_precision_on_every_runtime(
        self, ocdnet: Path, two_pictures: Path, tmp_path: Path, precision: Precision, runtime: str
    ) -> None:
        if runtime == "tensorrt-rtx":
            pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")
        bundle = build(
            BuildConfig(
                ocdnet,
                tmp_path / "bundle",
                # At the size of the preset each image takes a second.
                detector=replace(PRESETS["ocdnet"], resize=ResizePolicy(kind="fixed", width=320, height=192)),
                precision=precision,
                runtime=runtime,
                data=DataConfig(calibration_images=two_pictures, calibration_count=1),
                limits=NO_LIMITS,
                trial=False,
                engine=EngineConfig(architectures=("sm_89",), max_batch=1, store=tmp_path / "engines"),
            )
        )
        assert (bundle.engine_path is not None) == (runtime == "tensorrt-rtx")
        pixels = np.random.default_rng(0).integers(0, 256, (736, 1280, 3), np.uint8)
        (found,) = load_network(bundle, RuntimeOptions("onnxruntime")).infer([pixels])
        assert found.shape == (736, 1280)


class TestEngines:
    @pytest.fixture(autouse=True)
    def _rtx(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8-experimental"])
    def test_an_engine_of_every_precision(self, config: Callable[..., BuildConfig], precision: Precision) -> None:
        bundle = build(config(precision=precision, runtime="tensorrt-rtx"))
        assert bundle.engine_path is not None and bundle.engine_path.stat().st_size > 1000
        engine = report(bundle)["engine"]
        assert isinstance(engine, dict)
        assert engine["targets"] == ["sm_89"] and engine["reused"] is False
        assert engine["profile"]["max"] == [2, 1600, 1600]
        # As served, and for single images.
        assert (engine["profile"]["opt"][0], engine["profiles"]) == (2, 2)

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_an_engine_of_the_default_network(self, pictures: Path, tmp_path: Path, precision: Precision) -> None:
        default = Bundle.load()
        bundle = build(
            BuildConfig(
                default.model_path,
                tmp_path / "bundle",
                detector=replace(default.spec, resize=ResizePolicy(kind="short_side", side=160)),
                precision=precision,
                runtime="tensorrt-rtx",
                data=DataConfig(calibration_images=pictures, calibration_count=1),
                gate=False,
                engine=EngineConfig(architectures=("sm_89",), store=tmp_path / "engines"),
            )
        )
        assert bundle.engine_path is not None
        # The network has 2.4 million weights, and code comes on top of them.
        assert bundle.engine_path.stat().st_size > 2_400_000 * {"fp32": 4, "fp16": 2, "int8": 1}[precision]
        found = {row.name: row.precision for row in requested(bundle) if row.kind == "CONVOLUTION"}
        # Every layer that the report counts as INT8 is one, and no other.
        for name, kind in precisions(bundle).items():
            assert found.get(f"network/{name}", f"{kind.upper()} (requested)") == f"{kind.upper()} (requested)", name
        assert len(found) > 80
        assert len([kind for kind in found.values() if kind.startswith("INT8")]) == (39 if precision == "int8" else 0)

    def test_an_equal_engine_is_reused(self, config: Callable[..., BuildConfig], tmp_path: Path) -> None:
        first = build(config(runtime="tensorrt-rtx"))
        second = build(config(runtime="tensorrt-rtx", output=tmp_path / "second"))
        other = build(config(runtime="tensorrt-rtx", precision="fp16", output=tmp_path / "other"))
        reused = [report(bundle)["engine"]["reused"] for bundle in (first, second, other)]  # type: ignore[index]
        assert reused == [False, True, False]

    def test_the_requested_types_are_explained(self, config: Callable[..., BuildConfig]) -> None:
        text = explain(build(config(precision="int8", runtime="tensorrt-rtx")))
        assert "was not measured" in text and "map error alone" not in text
        assert "requested of tensorrt-rtx" in text and "INT8 (requested)" in text

    def test_the_cpu_is_not_a_silent_fallback(self, config: Callable[..., BuildConfig]) -> None:
        bundle = build(config(runtime="tensorrt-rtx"))
        if gpu_count():
            pytest.skip("this machine has a GPU")
        with pytest.raises(
            UnavailableError, match=r"the runtime tensorrt-rtx of the detector .* needs a GPU, but this"
        ):
            load_network(bundle)
        load_network(bundle, RuntimeOptions("onnxruntime"))


class GraphOnHost:
    """A bundle's ONNX as a network of a device whose memory is the host's; its maps are wrong by `error` levels."""

    map_type = "uint8"

    def __init__(self, bundle: Bundle, error: int) -> None:
        assert bundle.engine_path is not None and bundle.engine_path.stat().st_size > 1000
        self.network = GraphNetwork(fold(load_onnx(bundle.model_path), bundle.spec.network))
        self.error = error
        self.closed = False

    def check(self, batch: int, height: int, width: int) -> None:
        assert batch == 1

    def enqueue(self, stream: object, pixels: Any, maps: Any, batch: int, height: int, width: int) -> None:
        found = self.network.infer_batch(memory(pixels.pointer, batch, height, width, 3))
        memory(maps.pointer, batch, height, width)[:] = found - found.clip(0, self.error)

    def release(self, stream: object, batch: int, height: int, width: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class TestEngineGate:
    """The gate on an engine, on an imaginary GPU that opens as it does for serving."""

    @pytest.fixture(autouse=True)
    def _rtx(self) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (extra tensorrt-rtx)")

    def opened(self, monkeypatch: pytest.MonkeyPatch, error: int = 0) -> list[tuple[HostDevice, GraphOnHost]]:
        """The devices that a build opens, with their networks."""
        found: list[tuple[HostDevice, GraphOnHost]] = []

        def open_gpu(bundle: Bundle, options: RuntimeOptions) -> tuple[HostDevice, GraphOnHost]:
            found.append((HostDevice(), GraphOnHost(bundle, error)))
            return found[-1]

        monkeypatch.setattr(build_module, "can_execute", lambda runtime, targets: targets == ("sm_89",))
        monkeypatch.setattr(build_module, "open_gpu_with_network", open_gpu)
        return found

    def test_the_engine_itself_is_judged(
        self, config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = self.opened(monkeypatch)
        gate = report(build(config(precision="fp16", runtime="tensorrt-rtx")))["gate"]
        assert isinstance(gate, dict)
        assert gate["executed_by"] == "the target" and gate["images"] == 5
        # Levels are 1 / 255 apart, rounded or cut off.
        assert gate["map_error_max"] < 1 / 255 + 1e-3
        ((device, network),) = opened
        assert network.closed and device.is_closed and device.allocated == 0

    def test_an_engine_that_loses_too_much_is_refused(
        self, config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = self.opened(monkeypatch, error=255)
        setup = config(precision="fp16", runtime="tensorrt-rtx", limits=GateLimits(0, 0.9), scale=1000.0)
        with pytest.raises(GateError, match=r"refuses this fp16 network: its box agreement must be at least 0\.9"):
            build(setup)
        assert not setup.output.exists()
        ((device, network),) = opened
        assert network.closed and device.is_closed

    def test_a_graph_is_judged_if_the_engine_cannot_be_executed(self, config: Callable[..., BuildConfig]) -> None:
        if gpu_count():
            pytest.skip("there is a GPU, which may execute it")
        gate = report(build(config(precision="fp16", runtime="tensorrt-rtx")))["gate"]
        assert isinstance(gate, dict) and gate["executed_by"] == "ONNX Runtime, rounding as the target does"

    def test_a_gpu_without_the_packages_of_serving_is_reported(
        self, config: Callable[..., BuildConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(build_module, "can_execute", lambda runtime, targets: False)
        monkeypatch.setattr(build_module, "gpu_count", lambda: 1)
        monkeypatch.setattr(build_module, "missing", lambda modules: ["the module pycuda is not installed"])
        notes = report(build(config(precision="fp16", runtime="tensorrt-rtx")))["notes"]
        assert isinstance(notes, list)
        assert any(note.endswith("the module pycuda is not installed. Install ocdserve[gpu].") for note in notes)

    @pytest.mark.gpu
    @pytest.mark.skipif(not gpu_count(), reason="there is no NVIDIA GPU")
    def test_polygraphy_executes_an_engine_as_serving_does(self, config: Callable[..., BuildConfig]) -> None:
        pytest.importorskip("tensorrt", reason="TensorRT is not installed (extra gpu)")
        pytest.importorskip("pycuda", reason="pycuda is not installed (extra gpu)")
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        engine = EngineConfig(max_batch=1, store=config().output.with_name("engines"))
        bundle = build(config(precision="fp16", runtime="tensorrt", engine=engine))
        assert report(bundle)["gate"]["executed_by"] == "the target"  # type: ignore[index]
        assert bundle.engine_path is not None
        pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        (served,) = load_network(bundle).infer([pixels])
        with TrtRunner(EngineFromBytes(bundle.engine_path.read_bytes())) as runner:
            second = np.asarray(runner.infer({"NETWORK_IMAGE": pixels[None]})["MAP"])[0]
        assert np.array_equal(served, second)


@pytest.mark.skipif(not RECEIPTS.is_dir(), reason="the receipts of ../shared/data are not there")
class TestDefaultNetwork:
    @pytest.mark.parametrize("photographs", [10, pytest.param(40, marks=[pytest.mark.long, pytest.mark.timeout(1200)])])
    def test_int8_loses_at_most_half_a_point(self, tmp_path: Path, photographs: int) -> None:
        data = some_receipts(tmp_path / "receipts", photographs)
        bundle = build(
            BuildConfig(
                Bundle.load().model_path,
                tmp_path / "int8",
                precision="int8",
                runtime="onnxruntime",
                data=DataConfig(evaluation=data, calibration_count=20),
                keep=KEPT,
            )
        )
        written = report(bundle)
        gate = written["gate"]
        assert isinstance(gate, dict)
        assert gate["images"] == photographs // 2 and gate["hmean_loss"] <= 0.5
        assert written["quantised_macs"] >= 0.6  # type: ignore[operator]
        assert Detector.load(tmp_path / "int8").detect(next(iter((RECEIPTS / "img").iterdir()))).scores.size > 10


def some_receipts(folder: Path, count: int) -> Path:
    """Evenly chosen receipts with their ground truth, as links."""
    images = sorted((RECEIPTS / "img").iterdir())
    for kind in ("img", "gt"):
        (folder / kind).mkdir(parents=True)
    for image in images[:: len(images) // count]:
        (folder / "img" / image.name).symlink_to(image)
        truth = f"gt_{image.stem}.txt"
        (folder / "gt" / truth).symlink_to(RECEIPTS / "gt" / truth)
    return folder
