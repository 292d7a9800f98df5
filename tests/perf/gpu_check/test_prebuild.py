# SPDX-License-Identifier: Apache-2.0
"""Maps and networks that are built ahead of a check, and found by it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ocdserve.backend import Bundle
from ocdserve.contract import InvalidInputError
from ocdserve.perf.gpu_check import prebuild
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.maps import drawn_photograph, real_cases, timed_cases
from ocdserve.perf.gpu_check.network.engines import macs
from ocdserve.perf.gpu_check.timing import Effort

MakeContext = Callable[..., CheckContext]


def test_prebuilt_maps_and_networks_are_found_by_the_check(
    tmp_path: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / "sets" / name / "img").mkdir(parents=True)
        (tmp_path / "sets" / name / "img" / f"{name}.jpg").write_bytes(drawn_photograph((192, 320)))
    size = make_context("exactness").effort.size
    monkeypatch.setattr(prebuild, "Effort", lambda: Effort(size=size, cases=1))
    built: list[str] = []

    def build_network(target: Path, precision: str, images: Path, engines: bool) -> None:
        # Not those of the first set alone, which may show no text.
        assert sorted(path.name for path in images.iterdir()) == ["first.jpg", "second.jpg"]
        built.append(precision)
        if precision == "int8":
            raise InvalidInputError("no images to calibrate with")
        target.mkdir(parents=True)
        engine = {"engine": "model.engine", "runtime": "tensorrt-rtx"} if engines and precision != "fp32" else {}
        (target / "detector.json").write_text(replace(Bundle.load().spec, model="model.onnx", **engine).to_json())

    monkeypatch.setattr(prebuild, "build_network", build_network)
    said: list[str] = []

    prebuild.prebuild(tmp_path / "carried", tmp_path / "sets", said.append)

    context = make_context("exactness", carried=tmp_path / "carried", data=tmp_path / "carried" / "data")
    assert [case.name for case in real_cases(context)] == ["first.jpg", "second.jpg"]
    assert [case.probability.shape for case in timed_cases(context)["real"]] == [size, size]
    assert context.part.absences == {}
    assert built == ["fp32", "fp16", "int8"]
    assert "no network in int8: no images to calibrate with" in said
    # 10 thousand million for 736 x 1280, in proportion to the pixels.
    assert macs(tmp_path / "carried") == pytest.approx(162e6, rel=0.05)
    said.clear()
    prebuild.prebuild(tmp_path / "carried", tmp_path / "sets", said.append)
    assert said == ["network in int8", "no network in int8: no images to calibrate with"]
    # Networks without engines do not pass for those with them, nor the other way round.
    for engines, again in ((True, ["fp16"]), (True, []), (False, ["fp16"])):
        built.clear()
        prebuild.prebuild(tmp_path / "carried", tmp_path / "sets", said.append, ("fp32", "fp16"), engines)
        assert built == again


def test_a_folder_without_photographs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebuild.main([str(tmp_path / "carried"), "--data", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no JPEG files in img/ or */img/" in capsys.readouterr().err


@pytest.mark.long
def test_the_default_network_is_built_in_fp16(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    images = tmp_path / "data" / "img"
    images.mkdir(parents=True)
    for index in range(2):
        (images / f"{index}.jpg").write_bytes(drawn_photograph((192, 320)))

    prebuild.build_network(tmp_path / "fp16", "fp16", images, engines=True)

    bundle = Bundle.load(tmp_path / "fp16")
    assert (bundle.spec.precision, bundle.spec.runtime) == ("fp16", "tensorrt-rtx")
    assert bundle.engine_path is not None and bundle.engine_path.stat().st_size > 1e6
