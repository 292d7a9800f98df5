# SPDX-License-Identifier: Apache-2.0
"""Networks and the whole detector on the emulated device, with fake networks."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice

from ocdserve.backend import PRESETS, Bundle
from ocdserve.contract import InvalidInputError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load import end_to_end, in_process, networks
from ocdserve.perf.gpu_check.load.end_to_end import check_end_to_end
from ocdserve.perf.gpu_check.load.in_process import measure_in_process
from ocdserve.perf.gpu_check.load.networks import check_networks
from ocdserve.perf.gpu_check.maps import FIXED_MAPS, drawn_photograph, load_maps, save_maps
from ocdserve.perf.gpu_check.network import engines, fake_network
from ocdserve.perf.gpu_check.network.engines import Candidate, note_speed, ready_bundles
from ocdserve.perf.gpu_check.network.stand_ins import stand_in
from ocdserve.perf.inputs.maps import PARAMS, compute_maps, fixed_policy
from ocdserve.perf.report.targets import NO_NETWORK, targets
from ocdserve.perf.series.environment import Environment
from ocdserve.perf.series.estimates import Estimate
from ocdserve.perf.series.measurement import find
from ocdserve.perf.series.results import Part, Results

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "red_network.py"
MakeContext = Callable[..., CheckContext]
SIZE = (96, 160)


@pytest.fixture(scope="module")
def red() -> ModuleType:
    specification = importlib.util.spec_from_file_location("red_network", FAKE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def context(make_context: MakeContext, tmp_path: Path, red: ModuleType) -> CheckContext:
    photographs = tmp_path / "data" / "img"
    photographs.mkdir(parents=True)
    (photographs / "page.jpg").write_bytes(drawn_photograph((192, 320)))
    made = make_context("networks", data=tmp_path / "data", carried=tmp_path)
    made.open_device = lambda: EmulatedDevice(sources=red.SOURCES)
    return made


def _bundle(folder: Path) -> Bundle:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    spec = replace(PRESETS["ppocr"], resize=fixed_policy(SIZE))
    (folder / "detector.json").write_text(spec.to_json())
    return Bundle.load(folder)


def test_a_network_that_fails_does_not_hide_the_next(
    context: CheckContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, red: ModuleType
) -> None:
    def prepared(context: CheckContext, candidate: Candidate) -> Bundle:
        if candidate.runtime == "tensorrt":
            raise InvalidInputError("the engine is of another GPU")
        return _bundle(context.files.work / "bundles" / "red")

    def opened(bundle: Bundle, device: Any) -> Any:
        return red.RedNetwork(device)

    monkeypatch.setattr(networks, "prepared", prepared)
    monkeypatch.setattr(networks, "opened", opened)
    # The reference is the red channel too, with one pixel that differs by 51 of 255.
    (case,) = compute_maps([("page.jpg", (tmp_path / "data" / "img" / "page.jpg").read_bytes())], fixed_policy(SIZE))
    pixels = networks.pictures_of(context)[0].pixels[..., 0].copy()
    pixels[5, 5] = pixels[5, 5] + 51 if pixels[5, 5] < 128 else pixels[5, 5] - 51
    save_maps(tmp_path / FIXED_MAPS, [replace(case, probability=pixels)])

    monkeypatch.setattr(networks, "measure_in_process", lambda context, bundles: None)
    check_networks(context, (Candidate("tensorrt", "fp16"), Candidate("tensorrt-rtx", "fp16", prebuilt=True)))

    assert next(iter(context.part.absences.items())) == ("tensorrt fp16", "the engine is of another GPU")
    name = "tensorrt-rtx fp16, prebuilt"
    for batch in (1, 2):
        (times,) = find(context.measurements.values(), subject=name, unit="µs", batch=batch, executed="in a row")
        assert times.facts["map error, mean absolute"] == pytest.approx(0.2 / (SIZE[0] * SIZE[1]))
        assert times.facts["images/s"] == pytest.approx(2e6 * batch / sum(times.samples))
    assert [bundle.model_path.parent.name for bundle in ready_bundles(context.files.work)] == ["red"]


def test_the_default_candidates_are_all_tried(context: CheckContext) -> None:
    check_networks(context)

    assert {candidate.name for candidate in engines.CANDIDATES} <= context.part.absences.keys()


def test_the_fastest_bundles_come_first(tmp_path: Path) -> None:
    for name, speed in (("slow", 10.0), ("fast", 30.0), ("middle", 20.0)):
        note_speed(tmp_path, _bundle(tmp_path / "bundles" / name), speed)
    assert [bundle.model_path.parent.name for bundle in ready_bundles(tmp_path)] == ["fast", "middle", "slow"]
    assert list(ready_bundles(tmp_path / "nowhere")) == []


def test_a_missing_prebuilt_engine_is_reported(context: CheckContext) -> None:
    with pytest.raises(Exception, match=r"no network in int8 is carried along"):
        engines.prepared(context, Candidate("tensorrt", "int8"))
    carried = context.files.carried
    assert carried is not None
    _bundle(carried / "networks" / "fp16")
    with pytest.raises(Exception, match=r"no engine of tensorrt-rtx is carried along"):
        engines.prepared(context, Candidate("tensorrt-rtx", "fp16", prebuilt=True))


def test_the_whole_detector_is_measured_with_and_without_a_network(
    context: CheckContext, monkeypatch: pytest.MonkeyPatch, red: ModuleType
) -> None:
    def opened(bundle: Bundle, device: Any) -> Any:
        return stand_in(bundle, device) if bundle.spec.name == NO_NETWORK else red.RedNetwork(device)

    def unavailable(*arguments: Any) -> Any:
        raise UnavailableError("PyTorch cannot be imported")

    in_several: list[str] = []
    monkeypatch.setattr(in_process, "opened", opened)
    monkeypatch.setattr(end_to_end, "stand_in", unavailable)
    monkeypatch.setattr(end_to_end, "measure_processes", lambda context, bundle: in_several.append(bundle.spec.name))
    context.part = Part("gpu-end-to-end")

    check_end_to_end(context)
    measure_in_process(context, [_bundle(context.files.work / "bundles" / "red")])

    assert context.part.absences["pytorch resnet18 fp16"] == "PyTorch cannot be imported"
    assert in_several == ["no network"]
    series = tuple(context.measurements.values())
    for name in ("red", "no network"):
        for callers in (1, 2):
            for batch in (1, 8):
                factors = {"JPEG by": "cpu", "concurrency": callers, "batch": batch}
                (throughput,) = find(series, subject=name, unit="images/s", **factors)
                assert throughput.samples[0] > 0
                assert throughput.facts["errors"] == 0
    fastest = max(one.samples[0] for one in find(series, subject="red", unit="images/s"))
    judged = {target.what: target for target in targets(Results("", Environment.current(), series))}
    assert judged["most images per second, JPEG to quads"].measured == Estimate(fastest, None, None, 0)


def test_tensorrt_rtx_is_tried_on_its_gpus_only(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "present_gpu", lambda: ("sm_90", "NVIDIA H200"))
    with pytest.raises(UnavailableError, match=r"TensorRT-RTX is for .*sm_89.*, not for sm_90 \(NVIDIA H200\)"):
        engines.prepared(context, Candidate("tensorrt-rtx", "fp32"))


def test_known_maps_replace_a_network(red: ModuleType) -> None:
    device = EmulatedDevice()
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 256, (4, 6), np.uint8) for _ in range(3)]
    network = fake_network.MapNetwork(device, maps)
    stream, target = device.stream(), device.allocate(5 * 24)
    found = np.empty((5, 4, 6), np.uint8)

    network.enqueue(stream, target, target, 5, 4, 6)
    stream.to_host(found, target)
    stream.synchronize()

    np.testing.assert_array_equal(found, [maps[0], maps[1], maps[2], maps[0], maps[1]])
    network.close()
    target.close()
    assert device.allocated == 0


def test_maps_are_computed_if_none_are_prebuilt(context: CheckContext, tmp_path: Path) -> None:
    encoded = (tmp_path / "data" / "img" / "page.jpg").read_bytes()
    (case,) = compute_maps([("page.jpg", encoded)], fixed_policy(SIZE))
    assert case.probability.shape == SIZE
    assert case.frame.source == (192, 320)
    save_maps(tmp_path / FIXED_MAPS, [case])
    (again,) = load_maps(tmp_path / FIXED_MAPS, PARAMS)
    np.testing.assert_array_equal(again.probability, case.probability)
