# SPDX-License-Identifier: Apache-2.0
"""The part that goes through Triton: the real server, its kernels executed by the emulator, known maps for a network.

What only a GPU can show, tensors that pass between the steps in its memory, is not here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_emulator import EmulatedDevice

from ocdserve.backend import Bundle
from ocdserve.backend.network import load as opening
from ocdserve.contract import FUSED, NETWORK, UnavailableError
from ocdserve.perf.gpu_check import served
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.fake_network import MapNetwork, stand_in_bundle, use_maps
from ocdserve.perf.gpu_check.served import check_served, published

MakeSetting = Callable[..., Setting]

EMULATED = """
import sys
sys.path.insert(0, {emulator!r})
from cuda_emulator import EmulatedDevice
from ocdserve.backend.network import load as opening
opening.open_gpu = lambda index: EmulatedDevice()
"""


def _on_emulator(bundle: Bundle, repository: Path, probe: Path, kind: str) -> Path:
    """Publish; the fused model alone is left, with the emulator for a GPU."""
    published(bundle, repository, probe, kind)
    fused = repository / FUSED
    shutil.move(repository / NETWORK / "bundle", fused / "bundle")
    for model in repository.iterdir():
        if model != fused:
            shutil.rmtree(model)
    config = (fused / "config.pbtxt").read_text()
    (fused / "config.pbtxt").write_text(config.replace(f"../{NETWORK}/bundle", "bundle"))
    code = fused / "1" / "model.py"
    emulator = str(Path(__file__).resolve().parents[2] / "emulator")
    code.write_text(EMULATED.format(emulator=emulator) + code.read_text())
    return repository


@pytest.mark.triton
def test_the_fused_model_is_measured_through_the_real_server(
    make_setting: MakeSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytriton")
    monkeypatch.setattr(served, "published", _on_emulator)
    setting = make_setting("served")

    check_served(setting)

    for clients in (1, 2):
        assert (setting.record.value("images a second", f"no network, {FUSED}, {clients} clients") or 0) > 0
    absent = {absence.what for absence in setting.record.absences}
    assert "with instances that belong to the GPU (KIND_GPU)" in absent
    assert {"with a network", "ocdnet, 1 clients", "ocdnet, 2 clients", "where Triton puts the maps"} <= absent
    # The model's own name only, never that of the machine's folders.
    assert all(str(setting.files.work) not in figure.case for figure in setting.record.figures)


def test_without_triton_that_is_told(make_setting: MakeSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"nvidia-pytriton is not installed: collect\.sh carries it"):
        check_served(make_setting("served"))


def test_where_the_maps_lie_is_counted(make_setting: MakeSetting, tmp_path: Path) -> None:
    setting = make_setting("served")
    (tmp_path / "places.json").write_text("[false, false, true]")

    served._note_place(setting, tmp_path / "places.json")

    assert setting.record.value("maps that reach the last step on the GPU", "ocdnet") == 2
    assert setting.record.value("maps that reach the last step on the host", "ocdnet") == 1


def test_a_process_takes_known_maps_for_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ocdserve.backend.network.options import RuntimeOptions
    from ocdserve.perf.gpu_check.cases import page

    for name in ("check_gpu", "load_device_network", "open_gpu"):
        monkeypatch.setattr(opening, name, getattr(opening, name))
    bundle = stand_in_bundle(tmp_path / "stand-in", [page("dense", (96, 160))])
    use_maps(str(tmp_path / "stand-in"))
    monkeypatch.setattr(opening, "open_gpu", lambda index: EmulatedDevice())

    device, network = opening.open_gpu_with_network(bundle, RuntimeOptions("onnxruntime-cuda"))

    assert isinstance(network, MapNetwork)
    assert (bundle.spec.resize.height, bundle.spec.resize.width) == (96, 160)
    network.close()
    device.close()
