# SPDX-License-Identifier: Apache-2.0
"""The CUDA provider's network, executed by ONNX Runtime's CPU provider on tensors bound by their address."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import bars_recogniser
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ocdserve.backend import Bundle, DetectorSpec, NetworkSpec
from ocdserve.backend.network import load
from ocdserve.backend.network.host_network import HostNetwork, HostRecogniser
from ocdserve.backend.network.load import load_device_network, load_device_recogniser, load_network
from ocdserve.backend.network.onnxruntime_cuda import PROVIDER, OnnxRuntimeCudaNetwork, OnnxRuntimeCudaRecogniser
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.network.rewrite.fold_recogniser import fold_recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.contract import InvalidInputError, UnavailableError

TinyNetwork = Callable[..., Path]


class _OnTheCpu:
    """The same calls, with the CPU's provider instead of CUDA's."""

    _memory = "cpu"

    def _check_provider(self) -> None:
        pass

    def _providers(self, handle: int | None) -> list[tuple[str, dict[str, str]]]:
        return [("CPUExecutionProvider", {})]


class OnTheCpu(_OnTheCpu, OnnxRuntimeCudaNetwork):
    pass


class RecogniserOnTheCpu(_OnTheCpu, OnnxRuntimeCudaRecogniser):
    pass


class Described(OnnxRuntimeCudaNetwork):
    """Its providers, in an ONNX Runtime without CUDA."""

    def _check_provider(self) -> None:
        pass


@pytest.fixture
def bundle(tiny_network: TinyNetwork) -> Bundle:
    return Bundle(DetectorSpec(network=NetworkSpec(std=(300, 400, 500))), tiny_network(weights=(0.2, 0.3, 0.4)))


@pytest.mark.parametrize("map_type", ["uint8", "float32"])
def test_maps_are_written_where_they_are_wanted(bundle: Bundle, device: Any, map_type: Any) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3)).astype(np.uint8) for seed in range(3)]
    expected = load_network(bundle, RuntimeOptions("onnxruntime", threads=1, map_type=map_type)).infer(images)
    network, stream = OnTheCpu(bundle, RuntimeOptions(map_type=map_type)), device.stream()
    found = np.zeros((3, 64, 96), map_type)
    pixels, maps = device.allocate(3 * 64 * 96 * 3), device.allocate(found.nbytes)
    stream.to_device(pixels, np.stack(images))
    network.check(3, 64, 96)
    network.enqueue(stream, pixels, maps, 3, 64, 96)
    stream.to_host(found, maps)
    np.testing.assert_array_equal(found, np.stack(expected))


def test_a_stream_has_its_own_session_for_all_shapes(bundle: Bundle, device: Any) -> None:
    network = OnTheCpu(bundle, RuntimeOptions())
    host = HostNetwork(device, network, streams=2)
    for height in (32, 64, 32, 96):
        assert host.infer([np.zeros((height, 64, 3), np.uint8)])[0].shape == (height, 64)
    assert len(network._sessions) == 2
    network.release(device.stream(), 1, 32, 64)
    network.close()
    assert network._sessions == {}


def test_an_execution_that_fails_says_why(tiny_network: TinyNetwork, device: Any) -> None:
    bundle = Bundle(DetectorSpec(), tiny_network(shape=(1, 3, 64, 96)))
    pixels = device.allocate(32 * 32 * 3)
    with pytest.raises(UnavailableError, match=r"(?s)cannot execute model\.onnx on 1 x 32 x 32 pixels: .*imension"):
        OnTheCpu(bundle, RuntimeOptions()).enqueue(device.stream(), pixels, pixels, 1, 32, 32)


class TestRecogniser:
    @pytest.fixture
    def recogniser(self, tmp_path: Path) -> RecogniserBundle:
        onnx.save(bars_recogniser.network(), tmp_path / "model.onnx")
        return RecogniserBundle(RecogniserSpec(characters=tuple("rgb")), tmp_path / "model.onnx")

    def test_classes_and_probabilities_are_written_where_they_are_wanted(
        self, recogniser: RecogniserBundle, device: Any
    ) -> None:
        lines = np.stack([bars_recogniser.line(text) for text in ("rgb", "bbr", "grg")])
        expected = load_recogniser(recogniser, RuntimeOptions("onnxruntime", threads=1)).infer(lines)
        network, stream = RecogniserOnTheCpu(recogniser, RuntimeOptions()), device.stream()
        assert (network.steps(stream, 48, 80), network.steps(stream, 48, 320)) == (10, 40)
        network.check(3, 48, 80)
        classes, probabilities = np.zeros((3, 10), np.int32), np.zeros((3, 10), np.float32)
        source, *targets = (device.allocate(each.nbytes) for each in (lines, classes, probabilities))
        stream.to_device(source, lines)
        network.enqueue(stream, source, *targets, 3, 48, 80)
        for array, target in zip((classes, probabilities), targets, strict=True):
            stream.to_host(array, target)
        np.testing.assert_array_equal(classes, [each.classes for each in expected])
        np.testing.assert_allclose(probabilities, [each.probabilities for each in expected], atol=1e-6)

    def test_lines_on_the_host_are_read_by_it(self, recogniser: RecogniserBundle, device: Any) -> None:
        lines = [bars_recogniser.line(text) for text in ("rgb", "b", "grgb", "rgb")]
        expected = load_recogniser(recogniser, RuntimeOptions("onnxruntime", threads=1)).infer(lines)
        host = HostRecogniser(device, RecogniserOnTheCpu(recogniser, RuntimeOptions()))
        for found, other in zip(host.infer(lines), expected, strict=True):
            assert found.classes.tolist() == other.classes.tolist()
            np.testing.assert_allclose(found.probabilities, other.probabilities, atol=1e-6)
        assert device.allocated == 0
        host.close()
        assert device.is_closed

    def test_without_a_gpu_all_that_is_missing_is_named(
        self, recogniser: RecogniserBundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(load, "missing", lambda device, modules: ["this machine has no NVIDIA driver"])
        with pytest.raises(
            UnavailableError, match=r"^the runtime onnxruntime-cuda of the recogniser recogniser needs a"
        ):
            load_recogniser(recogniser, RuntimeOptions("onnxruntime-cuda"))

    def test_a_size_that_it_does_not_take_is_named(self, recogniser: RecogniserBundle, device: Any) -> None:
        with pytest.raises(UnavailableError, match=r"cannot execute model\.onnx on 1 x 40 x 80 pixels"):
            RecogniserOnTheCpu(recogniser, RuntimeOptions()).steps(device.stream(), 40, 80)

    def test_a_network_folded_for_a_cpu_is_refused(self, recogniser: RecogniserBundle) -> None:
        folded = fold_recogniser(bars_recogniser.network(), recogniser.spec.network, reduced=False)
        onnx.save(folded, recogniser.model_path)
        spec = replace(recogniser.spec, network=replace(recogniser.spec.network, folded=True))
        with pytest.raises(InvalidInputError, match=r"^model\.onnx was folded without the choice of classes"):
            RecogniserOnTheCpu(RecogniserBundle(spec, recogniser.model_path), RuntimeOptions())
        onnx.save(fold_recogniser(bars_recogniser.network(), spec.network), recogniser.model_path)
        RecogniserOnTheCpu(RecogniserBundle(spec, recogniser.model_path), RuntimeOptions())

    @pytest.mark.skipif(PROVIDER in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed")
    def test_it_is_the_runtime_of_any_recogniser_on_a_gpu(self, recogniser: RecogniserBundle, device: Any) -> None:
        with pytest.raises(UnavailableError, match="has no CUDAExecutionProvider"):
            load_device_recogniser(recogniser, RuntimeOptions(), device)


def test_a_network_that_is_none_is_refused(tmp_path: Path, device: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"text")
    with pytest.raises(InvalidInputError, match=r"model\.onnx is no"):
        OnTheCpu(Bundle(DetectorSpec(), tmp_path / "model.onnx"), RuntimeOptions())


@pytest.mark.skipif(PROVIDER in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed")
def test_an_onnxruntime_without_cuda_is_named(bundle: Bundle, device: Any) -> None:
    with pytest.raises(UnavailableError, match=r"has no CUDAExecutionProvider; .*Replace the package onnxruntime by"):
        load_device_network(bundle, RuntimeOptions("onnxruntime-cuda"), device)


def test_a_provider_that_falls_back_to_the_cpu_is_refused(
    bundle: Bundle, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FallsBack(OnTheCpu):
        def _providers(self, handle: int | None) -> list[tuple[str, dict[str, str]]]:
            return [(PROVIDER, {})]

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda model, settings, providers: real(model, settings, providers=["CPUExecutionProvider"]),
    )
    buffer = device.allocate(64)
    with pytest.raises(UnavailableError, match="CUDAExecutionProvider does not start here"):
        FallsBack(bundle, RuntimeOptions()).enqueue(device.stream(), buffer, buffer, 1, 32, 32)


def test_the_stream_and_the_gpu_are_those_that_were_asked_for(bundle: Bundle, device: Any) -> None:
    (name, settings), _ = Described(bundle, RuntimeOptions(device=2))._providers(77)
    assert (name, settings["device_id"], settings["user_compute_stream"]) == (PROVIDER, "2", "77")


def test_a_stream_with_the_handle_of_another_has_its_own_session(bundle: Bundle, device: Any) -> None:
    network, pixels, maps = OnTheCpu(bundle, RuntimeOptions()), device.allocate(3 * 32 * 32), device.allocate(32 * 32)
    first, second = device.stream(), device.stream()
    second.handle = first.handle
    for stream in (first, second):
        network.enqueue(stream, pixels, maps, 1, 32, 32)
    assert len(network._sessions) == 2
    del first, stream
    gc.collect()
    assert list(network._sessions) == [second]


@pytest.mark.parametrize("kind", ["constant", "node", "other"])
def test_fp16_prefers_nhwc_and_fp32_is_computed_without_tf32(
    bundle: Bundle, tmp_path: Path, kind: Literal["constant", "node", "other"]
) -> None:
    """The names and values are those of ONNX Runtime's documentation."""
    (_, settings), _ = Described(bundle, RuntimeOptions())._providers(77)
    assert settings == {
        "device_id": "0",
        "user_compute_stream": "77",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    half = Bundle(bundle.spec, halved(bundle.model_path, tmp_path / f"{kind}.onnx", kind))
    (_, settings), _ = Described(half, RuntimeOptions())._providers(77)
    fast = {"prefer_nhwc": "1", "fuse_conv_bias": "1"}
    assert settings == {
        "device_id": "0",
        "user_compute_stream": "77",
        "cudnn_conv_algo_search": "HEURISTIC",
        **({"use_tf32": "0"} if kind == "other" else fast),
    }


def halved(source: Path, target: Path, kind: str) -> Path:
    """The network with its convolution in FP16, the weights as initialiser or node; or with another FP16 constant."""
    model = onnx.load(source)
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == conv.input[1]]
    values = numpy_helper.to_array(weights).astype(np.float16)
    half = numpy_helper.from_array(values if kind != "other" else values.reshape(-1), "half")
    nodes = [helper.make_node("Constant", [], ["half"], value=half)] if kind == "node" else []
    if kind != "node":
        model.graph.initializer.append(half)
    for node in model.graph.node:
        if node is conv and kind != "other":
            nodes.append(helper.make_node("Cast", [conv.input[0]], ["pixels"], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Conv", ["pixels", "half"], ["result"]))
            nodes[-1].attribute.extend(conv.attribute)
            nodes.append(helper.make_node("Cast", ["result"], [conv.output[0]], to=TensorProto.FLOAT))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)
    return target


class TestRecording:
    """Which networks may be recorded: sessions are recorded instead of opened."""

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, str]]]:
        opened: list[tuple[Any, dict[str, str]]] = []
        refuses = self.refuses = [""]

        class Session:
            def __init__(self, model: bytes, settings: Any, providers: list[Any]) -> None:
                opened.append((settings, providers[0][1]))
                if refuses[0]:
                    raise RuntimeError(refuses[0])

            def get_providers(self) -> list[str]:
                return [PROVIDER]

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return opened

    @pytest.mark.parametrize(("version", "records"), [("1.30.0", False), ("1.31.0", True), ("2.0.1rc1", True)])
    def test_a_version_that_reuses_the_source_of_copies_is_not_recorded(
        self, bundle: Bundle, opened: list[Any], version: str, records: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnxruntime, "__version__", version)
        reason = Described(bundle, RuntimeOptions()).unrecordable()
        assert (reason == "", len(opened)) == (records, int(records))
        if not records:
            assert reason == "ONNX Runtime 1.30.0 is too old for it, install onnxruntime-gpu 1.31 or newer"

    def test_onnxruntime_is_asked_once_whether_a_graph_may_hold_the_network(
        self, bundle: Bundle, opened: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
        self.refuses[0] = "all compute graph nodes have not been partitioned to the CUDAExecutionProvider"
        network = Described(bundle, RuntimeOptions())
        for _ in range(2):
            assert "have not been partitioned to the CUDAExecutionProvider" in network.unrecordable()
        ((_, asked),) = opened
        assert asked["enable_cuda_graph"] == "1" and "user_compute_stream" not in asked

    def test_sessions_make_no_memory_patterns(self, bundle: Bundle, device: Any, opened: list[Any]) -> None:
        Described(bundle, RuntimeOptions())._session(device.stream())
        ((settings, options),) = opened
        assert not settings.enable_mem_pattern and "enable_cuda_graph" not in options
