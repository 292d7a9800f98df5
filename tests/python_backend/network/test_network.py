# SPDX-License-Identifier: Apache-2.0
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec, ResizePolicy
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import Network
from ocdserve.contract import InvalidInputError, UnavailableError

TinyNetwork = Callable[..., Path]

RUNTIMES = ["openvino", "onnxruntime"]

# A probability of 0.2 R + 0.3 G + 0.4 B of the normalised channels, were the channels in that order.
WEIGHTS = (0.2, 0.3, 0.4)
MEAN, STD = (10.0, 20.0, 30.0), (300.0, 400.0, 500.0)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(30, 256, (height, width, 3)).astype(np.uint8)


def expected_of(image: NDArray[np.uint8], color: str) -> NDArray[np.float64]:
    """The result of the tiny network with WEIGHTS, MEAN and STD, computed in NumPy."""
    ordered = image[..., ::-1] if color == "BGR" else image
    normalised = (ordered.astype(np.float64) - MEAN) / STD
    return normalised @ np.array(WEIGHTS)


def loaded(
    path: Path, runtime: Any, resize: ResizePolicy | None = None, map_type: Any = "uint8", **network: Any
) -> Network:
    spec = DetectorSpec(network=NetworkSpec(**{"mean": MEAN, "std": STD, **network}), resize=resize or ResizePolicy())
    return load_network(Bundle(spec, path), RuntimeOptions(runtime, threads=1, map_type=map_type))


@pytest.mark.parametrize(("bias", "level"), [(-0.5, 0), (1.5, 255)])
def test_openvino_limits_what_is_no_probability(bias: float, level: int, tiny_network: TinyNetwork) -> None:
    path = tiny_network(weights=(0, 0, 0), bias=bias)
    assert (loaded(path, "openvino").infer([np.zeros((32, 32, 3), np.uint8)])[0] == level).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
class TestFolding:
    @pytest.mark.parametrize("color", ["BGR", "RGB"])
    def test_normalisation_and_channel_order_are_those_of_the_bundle(
        self, runtime: str, color: str, tiny_network: TinyNetwork
    ) -> None:
        image = noise(32, 64)
        (probability,) = loaded(tiny_network(weights=WEIGHTS), runtime, map_type="float32", color=color).infer([image])
        assert probability.dtype == np.float32
        np.testing.assert_allclose(probability, expected_of(image, color), atol=1e-6)

    def test_the_channels_matter(self, runtime: str, tiny_network: TinyNetwork) -> None:
        red = np.zeros((32, 32, 3), np.uint8)
        red[..., 0] = 255
        first = tiny_network(weights=(1, 0, 0))
        plain = {"mean": (0, 0, 0), "std": (255, 255, 255)}
        assert (loaded(first, runtime, color="RGB", **plain).infer([red])[0] == 255).all()
        assert (loaded(first, runtime, color="BGR", **plain).infer([red])[0] == 0).all()

    def test_a_map_of_uint8_is_255_times_the_probability_rounded(self, runtime: str, tiny_network: TinyNetwork) -> None:
        image = noise(32, 64)
        (levels,) = loaded(tiny_network(weights=WEIGHTS), runtime).infer([image])
        assert levels.dtype == np.uint8
        exact = expected_of(image, "BGR") * 255
        assert np.abs(levels - exact).max() <= 0.5 + 1e-4
        assert len(np.unique(levels)) > 50

    def test_probabilities_0_and_1_are_0_and_255(self, runtime: str, tiny_network: TinyNetwork) -> None:
        image = np.zeros((32, 32, 3), np.uint8)
        for bias, level in ((0.0, 0), (1.0, 255)):
            path = tiny_network(weights=(0, 0, 0), bias=bias)
            assert (loaded(path, runtime).infer([image])[0] == level).all()

    def test_a_network_of_fixed_size_is_served(self, runtime: str, tiny_network: TinyNetwork) -> None:
        path = tiny_network(weights=WEIGHTS, shape=(1, 3, 64, 96))
        network = loaded(path, runtime, ResizePolicy("fixed", 96, 64), map_type="float32")
        images = [noise(64, 96, seed) for seed in range(3)]
        for image, probability in zip(images, network.infer(images), strict=True):
            np.testing.assert_allclose(probability, expected_of(image, "BGR"), atol=1e-6)

    def test_answers_of_a_batch_of_mixed_sizes_are_those_of_single_images(
        self, runtime: str, tiny_network: TinyNetwork
    ) -> None:
        network = loaded(tiny_network(weights=WEIGHTS), runtime)
        images = [noise(32, 64, 1), noise(96, 32, 2), noise(32, 64, 3), noise(64, 64, 4)]
        together = network.infer(images)
        assert [probability.shape for probability in together] == [(32, 64), (96, 32), (32, 64), (64, 64)]
        for image, probability in zip(images, together, strict=True):
            np.testing.assert_array_equal(probability, network.infer([image])[0])

    def test_results_stay_unchanged_when_the_network_runs_again(self, runtime: str, tiny_network: TinyNetwork) -> None:
        network = loaded(tiny_network(weights=WEIGHTS), runtime)
        (first,) = network.infer([noise(32, 64, 1)])
        before = first.copy()
        network.infer([noise(32, 64, 2)])
        np.testing.assert_array_equal(first, before)

    def test_no_images_have_no_maps(self, runtime: str, tiny_network: TinyNetwork) -> None:
        assert loaded(tiny_network(), runtime).infer([]) == []

    def test_an_image_that_is_a_view_is_read_as_it_looks(self, runtime: str, tiny_network: TinyNetwork) -> None:
        network = loaded(tiny_network(weights=WEIGHTS), runtime)
        wide = noise(32, 128)
        np.testing.assert_array_equal(
            network.infer([wide[:, ::2]])[0], network.infer([np.ascontiguousarray(wide[:, ::2])])[0]
        )

    def test_after_an_image_that_fails_the_next_is_answered_rightly(
        self, runtime: str, tiny_network: TinyNetwork
    ) -> None:
        path = tiny_network(weights=WEIGHTS, shape=(1, 3, 64, 96))
        network = loaded(path, runtime, ResizePolicy("fixed", 96, 64))
        good = noise(64, 96)
        expected = network.infer([good])[0]
        with pytest.raises(Exception, match=r"(?i)shape|dimension"):
            network.infer([noise(64, 96, 5), noise(32, 32), good])
        np.testing.assert_array_equal(network.infer([good])[0], expected)

    def test_threads_that_share_a_network_get_their_own_answers(self, runtime: str, tiny_network: TinyNetwork) -> None:
        network = loaded(tiny_network(weights=WEIGHTS), runtime)
        images = [noise(64, 64, seed) for seed in range(60)]
        expected = [network.infer([image])[0] for image in images]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda image: network.infer([image])[0], images))
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(answers, expected, strict=True))

    @pytest.mark.parametrize(("name", "flipped"), [("p", False), ("q", True)])
    def test_of_two_outputs_the_named_one_is_the_map(
        self, runtime: str, name: str, flipped: bool, tiny_network: TinyNetwork
    ) -> None:
        image = noise(32, 32)
        path = tiny_network(weights=WEIGHTS, inverse_outputs=("q",))
        (probability,) = loaded(path, runtime, output=name, map_type="float32").infer([image])
        expected = expected_of(image, "BGR")
        np.testing.assert_allclose(probability, 1 - expected if flipped else expected, atol=1e-6)

    def test_the_input_may_be_named(self, runtime: str, tiny_network: TinyNetwork) -> None:
        assert len(loaded(tiny_network(), runtime, input="x").infer([noise(32, 32)])) == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
class TestWrongNetworks:
    def test_no_file(self, runtime: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"nowhere\.onnx is no readable ONNX file"):
            loaded(tmp_path / "nowhere.onnx", runtime)

    @pytest.mark.parametrize("content", [b"this is text, not a network", b"", b"\x08\x07", b"\xff" * 100])
    def test_a_file_of_something_else(self, runtime: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"model\.onnx is no (readable ONNX file|ONNX network)"):
            loaded(path, runtime)

    @pytest.mark.parametrize("shape", [(1, 3, 64), ("N", 4, "H", "W"), ("N", 1, "H", "W"), ("N", "H", "W", 3, 1)])
    def test_an_input_of_another_shape(self, runtime: str, shape: Any, tiny_network: TinyNetwork) -> None:
        with pytest.raises(InvalidInputError, match=r"input 'x' must be float32 N x 3 x H x W; got FLOAT \["):
            loaded(tiny_network(shape=shape), runtime)

    @pytest.mark.parametrize(
        ("element", "name"),
        [(TensorProto.UINT8, "UINT8"), (TensorProto.DOUBLE, "DOUBLE"), (TensorProto.FLOAT16, "FLOAT16")],
    )
    def test_an_input_of_another_type(self, runtime: str, element: int, name: str, tiny_network: TinyNetwork) -> None:
        with pytest.raises(InvalidInputError, match=rf"input 'x' must be float32 .*got {name} "):
            loaded(tiny_network(element=element), runtime)

    def test_two_outputs_and_no_name(self, runtime: str, tiny_network: TinyNetwork) -> None:
        with pytest.raises(InvalidInputError, match=r"network\.output must be one of .*\['p', 'q'\]; got None"):
            loaded(tiny_network(inverse_outputs=("q",)), runtime)

    @pytest.mark.parametrize("field", ["input", "output"])
    def test_an_unknown_name(self, runtime: str, field: str, tiny_network: TinyNetwork) -> None:
        with pytest.raises(InvalidInputError, match=rf"network\.{field} must be one of .*got 'nowhere'"):
            loaded(tiny_network(), runtime, **{field: "nowhere"})

    def test_an_old_opset(self, runtime: str, tiny_network: TinyNetwork) -> None:
        with pytest.raises(InvalidInputError, match="opset 10 is too old, export with opset 11 or later"):
            loaded(tiny_network(opset=10), runtime)

    def test_an_output_that_is_no_map(self, runtime: str, tmp_path: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0)],
            "classifier",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
            [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", 3])],
        )
        path = tmp_path / "classifier.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
        with pytest.raises(InvalidInputError, match=r"output 'mean' must be .*N x 1 x H x W"):
            loaded(path, runtime)

    def test_a_graph_that_the_runtime_cannot_execute(self, runtime: str, tmp_path: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node("ModulatedDeformConv2d", ["x"], ["p"], domain="some.plugin")],
            "plugin",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("some.plugin", 1)]
        path = tmp_path / "plugin.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
        with pytest.raises(InvalidInputError, match=r"cannot (load|compile) plugin\.onnx: "):
            loaded(path, runtime)


class TestRuntimeOptions:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"runtime": "caffe"}, r"runtime must be one of openvino, onnxruntime, tensorrt, .*; got \'caffe\'"),
            ({"threads": 0}, r"threads must be at least 1; got 0"),
            ({"threads": 2, "streams": 3}, r"streams must be from 1 to the 2 threads; got 3"),
            ({"threads": 2, "streams": 0}, r"streams must be from 1 to the 2 threads; got 0"),
            ({"map_type": "float16"}, r"map_type must be one of uint8, float32; got 'float16'"),
            ({"device": -1}, r"device must be the index of a GPU, counted from 0; got -1"),
        ],
    )
    def test_a_bad_option_is_refused_by_name_rule_and_value(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            RuntimeOptions(**values)

    def test_threads_default_to_the_cores_of_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3, 5})
        assert RuntimeOptions().thread_count == 3
        assert RuntimeOptions(threads=2).thread_count == 2

    @pytest.mark.parametrize(
        ("missing", "runtime", "expected"),
        [
            ({"openvino"}, None, "OnnxRuntimeNetwork"),
            (set(), None, "OpenVinoNetwork"),
            ({"openvino", "onnxruntime"}, None, r"the runtime openvino or onnxruntime is not installed"),
            (
                {"openvino"},
                "openvino",
                r"the runtime openvino is not installed\. Run `pip install 'ocdserve\[server\]'`",
            ),
        ],
    )
    def test_the_fastest_runtime_that_is_installed_is_taken(
        self, missing: set[str], runtime: Any, expected: str, tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in missing else find_spec(name, *rest)
        )
        bundle = Bundle(DetectorSpec(), tiny_network())
        options = RuntimeOptions(runtime, threads=1)
        if " " in expected:
            with pytest.raises(UnavailableError, match=expected):
                load_network(bundle, options)
        else:
            assert type(load_network(bundle, options)).__name__ == expected


class TestDefaultNetwork:
    @pytest.fixture
    def image(self) -> NDArray[np.uint8]:
        """Black bars on white, which the network takes for words."""
        pixels = np.full((192, 320, 3), 255, np.uint8)
        for row in range(20, 180, 40):
            for column in range(20, 280, 14):
                pixels[row : row + 16, column : column + 3 + (column * row) % 6] = 20
        return pixels

    def test_both_runtimes_agree_within_one_level_in_float32(self, image: NDArray[np.uint8]) -> None:
        exact = Bundle.load("default-fp32")
        networks = (load_network(exact, RuntimeOptions(runtime, threads=2)) for runtime in RUNTIMES)
        ours, theirs = (network.infer([image])[0].astype(int) for network in networks)
        assert ours.shape == (192, 320)
        assert ours.max() > 150
        assert np.abs(ours - theirs).max() <= 1

    def test_the_map_of_uint8_is_that_of_float32_rounded(
        self, default_detector: Detector, image: NDArray[np.uint8]
    ) -> None:
        exact = load_network(Bundle.load(), RuntimeOptions("openvino", threads=2, map_type="float32")).infer([image])[0]
        levels = default_detector.infer([image])[0]
        assert exact.dtype == np.float32
        assert np.abs(levels - exact.astype(np.float64) * 255).max() <= 0.5 + 1e-2

    def test_it_computes_in_bfloat16_where_the_processor_can_unless_its_name_says_float32(
        self, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        openvino = pytest.importorskip("openvino")

        def found(name: str) -> NDArray[Any]:
            return load_network(Bundle.load(name), RuntimeOptions("openvino", threads=2)).infer([image])[0].astype(int)

        usual, exact = found("default"), found("default-fp32")
        has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert np.array_equal(usual, exact) != has_bfloat16
        assert np.abs(usual - exact).mean() < 1
        monkeypatch.setattr("ocdserve.backend.network.openvino._has_bfloat16", lambda core: False)
        assert np.array_equal(found("default"), exact)

    def test_detect_takes_bytes_a_path_and_pixels_and_returns_one_answer(
        self, default_detector: Detector, image: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        import cv2

        data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        path = tmp_path / "words.png"
        path.write_bytes(data)
        answers = [default_detector.detect(each) for each in (image, data, path)]
        assert len(answers[0]) > 0
        assert answers[0].polygons is None
        assert (answers[0].width, answers[0].height) == (320, 192)
        assert len({found.quads.tobytes() + found.scores.tobytes() for found in answers}) == 1

    def test_detect_honours_request_parameters(self, default_detector: Detector, image: NDArray[np.uint8]) -> None:
        assert len(default_detector.detect(image, box_thresh=1.0)) == 0
        found = default_detector.detect(image, max_candidates=1, polygons=True)
        assert len(found) == 1
        assert found.polygons is not None
        with pytest.raises(InvalidInputError, match="unknown request parameter 'tresh'"):
            default_detector.detect(image, tresh=0.3)

    def test_detect_names_a_file_that_is_not_there(self, default_detector: Detector, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"cannot read the image file '.*nowhere\.jpg': No such file"):
            default_detector.detect(tmp_path / "nowhere.jpg")

    def test_a_detector_without_a_network_says_so(self) -> None:
        with pytest.raises(UnavailableError, match="made without a network"):
            Detector(Bundle.load(), None).infer([np.zeros((32, 32, 3), np.uint8)])


def test_ctrl_c_still_interrupts_after_networks_came_and_went() -> None:
    """OpenVINO leaves a freed signal stack in the thread that used it; a signal there is a segmentation fault."""
    program = """
import gc, signal
import numpy as np
from ocdserve.backend import Detector
image = np.zeros((64, 64, 3), np.uint8)
first, second = Detector.load(runtime="openvino"), Detector.load(runtime="openvino")
first.infer([image]), second.infer([image])
del first
gc.collect()
third = Detector.load(runtime="openvino")
third.infer([image])
del second, third
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr


def test_after_an_array_that_fails_no_further_ones_are_begun() -> None:
    from ocdserve.backend.network.openvino import OpenVinoModel

    begun: list[int] = []

    class Compiled:
        def create_infer_request(self) -> "Compiled":
            return self

        def infer(self, inputs: dict[int, NDArray[Any]], share_inputs: bool, share_outputs: bool) -> Any:
            begun.append(int(inputs[0][0, 0]))
            if begun[-1] == 2:
                raise RuntimeError("no memory")
            return SimpleNamespace(to_tuple=lambda: (np.array([begun[-1:]]),))

    model = OpenVinoModel(Compiled, 1, 50)
    with pytest.raises(UnavailableError, match="OpenVINO cannot execute the network: no memory"):
        model.infer([np.array([value]) for value in range(9)], np.copy)
    assert begun == [0, 1, 2]
    assert [found.tolist() for found in model.infer([np.array([7]), np.array([8])], np.copy)] == [[7], [8]]
