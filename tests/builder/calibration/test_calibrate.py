# SPDX-License-Identifier: Apache-2.0
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ocdserve.backend.detector import Detector
from ocdserve.backend.network.rewrite.fold import INPUT, PREFIX, fold, folded_network
from ocdserve.backend.spec.bundle import Bundle
from ocdserve.backend.spec.detector_spec import DetectorSpec
from ocdserve.backend.spec.presets import PRESETS
from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.builder.calibration.calibrate import CalibrationOptions, calibrate, measure_extremes
from ocdserve.builder.calibration.inputs import ServingImages
from ocdserve.builder.calibration.ranges import RangeMethod
from ocdserve.contract import InvalidInputError

SmallNetwork = Callable[..., onnx.ModelProto]

SMALL = DetectorSpec(resize=ResizePolicy(kind="short_side", side=64))
TENSORS = [f"{PREFIX}{name}" for name in ("x", "s2", "a1", "r1", "j", "c2", "h")]
HISTOGRAM_METHODS: tuple[RangeMethod, ...] = ("percentile", "mse", "entropy")

# Size (height, width) that a picture of 300 x 500 gets, and BGR or RGB pixels to the network's numbers.
SERVED: dict[str, tuple[tuple[int, int], Callable[[NDArray[np.uint8]], NDArray[np.float64]]]] = {
    "ppocr": ((736, 1216), lambda bgr: (bgr / 255 - 0.5) / 0.5),
    "ppocr-fast": ((480, 800), lambda bgr: (bgr / 255 - 0.5) / 0.5),
    "ocdnet": ((736, 1280), lambda bgr: (bgr - [122.67891434, 116.66876762, 104.00698793]) / 255),
    "dbnet": (
        (768, 1216),
        lambda bgr: (bgr[..., ::-1] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    ),
}


class Recorder:
    """A network that records its inputs."""

    def __init__(self) -> None:
        self.images: list[NDArray[np.uint8]] = []

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[Any]]:
        self.images += images
        return [np.zeros(image.shape[:2], np.uint8) for image in images]


class Counter:
    """Progress that keeps the label, the total and the steps of each task."""

    def __init__(self) -> None:
        self.tasks: list[list[Any]] = []

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator["Counter"]:
        self.tasks.append([label, total, 0])
        yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.tasks[-1][2] += steps


def values_of(model: onnx.ModelProto, name: str, feed: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """A tensor of a network, from ONNX Runtime without any optimisation."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    if name in feed:
        return feed[name]
    del probe.graph.output[:]
    probe.graph.output.append(onnx.ValueInfoProto(name=name))
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run([name], feed)[0]
    return found


@pytest.fixture
def network(small_network: SmallNetwork) -> onnx.ModelProto:
    return fold(small_network(), SMALL.network, "float32")


@pytest.fixture
def images(pictures: Path) -> ServingImages:
    return ServingImages(sorted(pictures.iterdir())[:4], SMALL)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """Mostly red, so that swapped colours show."""
    random = np.random.default_rng(5)
    bgr = random.integers([0, 40, 120], [90, 160, 256], (300, 500, 3)).astype(np.uint8)
    path = tmp_path / "photograph.png"
    cv2.imwrite(str(path), bgr)
    return path


class TestServingPreprocessing:
    @pytest.mark.parametrize("preset", SERVED)
    def test_calibration_feeds_the_network_the_values_that_serving_feeds(
        self, preset: str, photograph: Path, small_network: SmallNetwork
    ) -> None:
        spec, (size, numbers) = PRESETS[preset], SERVED[preset]
        model = small_network()
        found = measure_extremes(
            fold(model, spec.network, "float32"), [f"{PREFIX}x", f"{PREFIX}s0"], ServingImages([photograph], spec)
        )
        bgr = cv2.resize(cv2.imread(str(photograph)), size[::-1], interpolation=cv2.INTER_LINEAR)
        expected = numbers(bgr).transpose(2, 0, 1)[None].astype(np.float32)
        assert found[f"{PREFIX}x"].amax == pytest.approx(np.abs(expected).max(), rel=1e-5)
        assert found[f"{PREFIX}x"].elements == 3 * size[0] * size[1]
        # The first convolution distinguishes the channels even where all are normalised alike.
        stem = np.abs(values_of(model, "s0", {"x": expected})).max()
        swapped = np.abs(values_of(model, "s0", {"x": np.ascontiguousarray(expected[:, ::-1])})).max()
        assert found[f"{PREFIX}s0"].amax == pytest.approx(stem, rel=1e-5)
        assert swapped != pytest.approx(stem, rel=1e-3)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_pixels_are_those_that_detection_infers(self, preset: str, pictures: Path) -> None:
        paths = sorted(pictures.iterdir())[:3]
        recorder = Recorder()
        detector = Detector(Bundle(PRESETS[preset], Path("unused")), recorder)
        for path in paths:
            detector.detect(path)
        calibrated = ServingImages(paths, PRESETS[preset])
        assert len(calibrated) == len(recorder.images) == 3
        for found, served in zip(calibrated, recorder.images, strict=True):
            np.testing.assert_array_equal(found, served)

    def test_every_preset_is_compared(self) -> None:
        assert SERVED.keys() == PRESETS.keys()

    def test_a_slice_is_lazy(self, pictures: Path, tmp_path: Path) -> None:
        picture = next(iter(sorted(pictures.iterdir())))
        some = ServingImages([tmp_path / "missing.png", picture, picture], SMALL)[1:]
        assert len(some) == 2 and some[0].shape == some[-1].shape

    def test_a_file_that_is_not_an_image_is_named(self, tmp_path: Path, network: onnx.ModelProto) -> None:
        path = tmp_path / "notes.jpg"
        path.write_text("no image")
        with pytest.raises(InvalidInputError, match=r"notes\.jpg: .* Remove it from the calibration images"):
            calibrate(network, TENSORS, ServingImages([path], SMALL))


class TestCalibrate:
    @pytest.mark.parametrize("opset", [11, 13, 18, 19])
    def test_extremes_are_those_of_all_images(
        self, opset: int, small_network: SmallNetwork, images: ServingImages
    ) -> None:
        network = fold(small_network(opset), SMALL.network, "float32")
        found = calibrate(network, TENSORS, images)
        assert list(found.extremes) == list(found.ranges) == TENSORS and found.images == 4
        for name in TENSORS:
            values = [values_of(network, name, {INPUT: image[None]}) for image in images]
            extremes = found.extremes[name]
            assert extremes.low == pytest.approx(min(item.min() for item in values), rel=1e-4, abs=1e-5)
            assert extremes.high == pytest.approx(max(item.max() for item in values), rel=1e-4, abs=1e-5)
            assert extremes.elements == max(item.size for item in values)
            assert found.ranges[name] == extremes.amax

    @pytest.mark.parametrize("percentile", [90.0, 99.9])
    def test_percentile_is_the_quantile_of_all_images(
        self, percentile: float, network: onnx.ModelProto, images: ServingImages
    ) -> None:
        found = calibrate(network, TENSORS, images, CalibrationOptions("percentile", percentile))
        for name in TENSORS:
            values = np.concatenate(
                [np.abs(values_of(network, name, {INPUT: image[None]})).ravel() for image in images]
            )
            exact = np.quantile(values, percentile / 100, method="inverted_cdf")
            assert found.ranges[name] == pytest.approx(exact, abs=1.5 * values.max() / 2048)

    @pytest.mark.parametrize("method", HISTOGRAM_METHODS)
    def test_groups_do_not_change_the_ranges(
        self, method: RangeMethod, network: onnx.ModelProto, images: ServingImages, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = calibrate(network, TENSORS, images, CalibrationOptions(method))
        monkeypatch.setattr("ocdserve.builder.calibration.calibrate._CHUNK", 1000)
        monkeypatch.setattr(
            "ocdserve.builder.calibration.calibrate._groups", lambda extremes, _: [[name] for name in extremes]
        )
        assert calibrate(network, TENSORS, images, CalibrationOptions(method)).ranges == pytest.approx(whole.ranges)
        assert all(0 < whole.ranges[name] <= whole.extremes[name].amax for name in TENSORS)

    def test_tensors_leave_the_runtime_in_groups_of_limited_size(
        self, network: onnx.ModelProto, rng: np.random.Generator
    ) -> None:
        images = list(rng.integers(0, 256, (2, 512, 640, 3)).astype(np.uint8))
        # Half the sides, 8 channels, float32: 2.5 MiB each; `j` has twice as many channels.
        tensors = [f"{PREFIX}{name}" for name in ("s2", "a1", "j", "r1")]
        for limit, groups in ((1, 4), (5, 3), (6, 3), (8, 2), (13, 1)):
            progress = Counter()
            calibrate(network, tensors, images, CalibrationOptions("mse", group_mib=limit), progress)
            assert progress.tasks == [
                ["calibration: extremes", 2, 2],
                ["calibration: histograms", 2 * groups, 2 * groups],
            ]

    def test_at_most_two_images_are_in_memory(self, network: onnx.ModelProto, rng: np.random.Generator) -> None:
        class Lazy(Sequence[NDArray[np.uint8]]):
            alive = most = 0

            def __len__(self) -> int:
                return 8

            def __getitem__(self, index: Any) -> Any:
                if index >= len(self):
                    raise IndexError(index)
                image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
                self.alive += 1
                self.most = max(self.most, self.alive)
                weakref.finalize(image, self.freed)
                return image

            def freed(self) -> None:
                self.alive -= 1

        images = Lazy()
        calibrate(network, TENSORS, images, CalibrationOptions("mse"))
        assert images.most <= 2

    def test_a_tensor_requested_twice_is_measured_once(self, network: onnx.ModelProto, images: ServingImages) -> None:
        assert list(calibrate(network, TENSORS[:1] * 2, images).ranges) == TENSORS[:1]

    def test_a_tensor_of_zeros_has_the_range_one(self, small_network: SmallNetwork, images: ServingImages) -> None:
        network = fold(small_network(scale=0.0), SMALL.network, "float32")
        for method in ("minmax", *HISTOGRAM_METHODS):
            found = calibrate(network, [f"{PREFIX}s0"], images[:1], CalibrationOptions(method))
            assert found.ranges == {f"{PREFIX}s0": 1.0}

    @pytest.mark.parametrize("kind", ["Sqrt", "Log"])
    def test_a_tensor_with_values_that_are_not_finite_is_named(self, kind: str) -> None:
        # The square root of a few negative numbers is not a number, the logarithm of zero infinite.
        nodes = [
            helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["real", "shift"], ["shifted"]),
            helper.make_node(kind, ["shifted"], ["bad"]),
        ]
        graph = helper.make_graph(
            nodes,
            "bad",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, "H", "W", 3])],
            [helper.make_tensor_value_info("bad", TensorProto.FLOAT, [1, "H", "W", 3])],
            [helper.make_tensor("shift", TensorProto.FLOAT, [], [1.0])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8)
        picture = np.full((16, 24, 3), 5, np.uint8)
        assert calibrate(model, ["shifted", "bad"], [picture]).ranges["shifted"] == 4.0
        picture[7, 7, 1] = 0 if kind == "Sqrt" else 1
        with pytest.raises(InvalidInputError, match=r"'bad' has values that are not finite .* 24 x 16 pixels"):
            calibrate(model, ["shifted", "bad"], [picture])

    def test_what_cannot_be_calibrated_is_refused(self, network: onnx.ModelProto, images: ServingImages) -> None:
        with pytest.raises(InvalidInputError, match="at least one image"):
            calibrate(network, TENSORS, images[:0])
        with pytest.raises(InvalidInputError, match="at least one tensor"):
            calibrate(network, [], images)
        with pytest.raises(InvalidInputError, match="no tensors nowhere"):
            calibrate(network, [*TENSORS, "nowhere"], images)
        with pytest.raises(InvalidInputError, match="cannot be calibrated"):
            calibrate(network, [INPUT], images)

    def test_the_network_is_not_modified(self, network: onnx.ModelProto, images: ServingImages) -> None:
        before = network.SerializeToString(deterministic=True)
        calibrate(network, TENSORS, images[:1], CalibrationOptions("mse"))
        assert network.SerializeToString(deterministic=True) == before


class TestCache:
    def test_scales_are_a_127th_of_the_ranges(self, network: onnx.ModelProto, images: ServingImages) -> None:
        found = calibrate(network, TENSORS, images[:1])
        cache = CalibrationCache.parse(found.to_cache("ab12", "cd34").to_text())
        assert (cache.onnx_sha256, cache.images_sha256, cache.method) == ("ab12", "cd34", "minmax")
        for name in TENSORS:
            assert cache.scales[name] == np.float32(found.extremes[name].amax / 127)

    def test_the_percentile_is_noted(self, network: onnx.ModelProto, images: ServingImages) -> None:
        found = calibrate(network, TENSORS[:1], images[:1], CalibrationOptions("percentile", 99.5))
        assert found.to_cache("ab12").method == "percentile-99.5"

    @pytest.mark.parametrize("method", ["minmax", "entropy"])
    def test_the_cache_of_the_default_network_is_deterministic(self, method: RangeMethod, pictures: Path) -> None:
        first, second = (cache_of_the_default_network(method, 2, pictures).to_text() for _ in range(2))
        assert first == second and len(first.splitlines()) > 80

    def test_the_number_of_threads_changes_no_scale_by_a_thousandth(self, pictures: Path) -> None:
        """Sums come in another order, as they do on another processor."""
        one, two = (cache_of_the_default_network("minmax", threads, pictures).scales for threads in (1, 2))
        assert one == pytest.approx(two, rel=1e-3)


def cache_of_the_default_network(method: RangeMethod, threads: int, pictures: Path) -> CalibrationCache:
    bundle = Bundle.load()
    spec = replace(bundle.spec, resize=ResizePolicy(kind="short_side", side=160))
    model = onnx.load_from_string(folded_network(bundle.model_path, spec.network, "float32"))
    tensors = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv"))
    images = ServingImages(sorted(pictures.iterdir())[:2], spec)
    return calibrate(model, tensors, images, CalibrationOptions(method, threads=threads)).to_cache("ab12")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "max"}, "method must be one of"),
        ({"percentile": 0.0}, "percentile"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"group_mib": 0}, "group_mib must be at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CalibrationOptions(**options)
