# SPDX-License-Identifier: Apache-2.0
"""The part through Triton: the real server, kernels on the emulator, known maps in place of a network.

Not tested: tensors that pass between the steps in the GPU's memory.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cuda_emulator import EmulatedDevice

from ocdserve.backend import Bundle
from ocdserve.backend.device import cuda
from ocdserve.backend.network import load
from ocdserve.contract import FUSED, NETWORK, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load import served
from ocdserve.perf.gpu_check.load.served import check_served, published
from ocdserve.perf.gpu_check.network.fake_network import MapNetwork
from ocdserve.perf.gpu_check.network.stand_ins import stand_in_bundle, use_stand_in
from ocdserve.perf.inputs.maps import page
from ocdserve.perf.series.measurement import find

MakeContext = Callable[..., CheckContext]

EMULATED = """
import sys
sys.path.insert(0, {emulator!r})
from cuda_emulator import EmulatedDevice
from ocdserve.backend.device import cuda
cuda.open_device = lambda index: EmulatedDevice()
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
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytriton")
    monkeypatch.setattr(served, "published", _on_emulator)
    context = make_context("served")

    check_served(context)

    for clients in (1, 2):
        factors = {"network": "no network", "concurrency": clients}
        (throughput,) = find(context.measurements.values(), subject=FUSED, unit="images/s", **factors)
        (latencies,) = find(context.measurements.values(), subject=FUSED, unit="ms", **factors)
        assert throughput.samples[0] > 0
        assert throughput.facts["errors"] == 0
        assert 0 < len(latencies.samples) <= 200
    absent = context.part.absences.keys()
    assert "with instances that belong to the GPU (KIND_GPU)" in absent
    assert {"with a network", "ocdnet, 1 clients", "ocdnet, 2 clients", "where Triton puts the maps"} <= absent
    # Names of networks, never of the machine's folders.
    assert all(str(context.files.work) not in str(one) for one in context.measurements.values())


def test_without_triton_the_package_is_named(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=r"nvidia-pytriton is not installed: pack\.sh carries it"):
        check_served(make_context("served"))


def test_maps_are_counted_by_where_triton_puts_them(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context("served")
    (tmp_path / "places.json").write_text("[false, false, true]")

    served._add_places(context, tmp_path / "places.json")

    (found,) = context.measurements.values()
    assert (found.subject, found.group, found.samples) == ("maps that reach the last step", "ocdnet", (3,))
    assert found.facts == {"on the GPU": 2, "on the host": 1}


def test_known_maps_replace_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ocdserve.backend.network.options import RuntimeOptions

    for name in ("check_gpu", "load_device_network"):
        monkeypatch.setattr(load, name, getattr(load, name))
    bundle = stand_in_bundle(tmp_path / "fake", [page("dense", (96, 160))])
    use_stand_in(str(tmp_path / "fake"))
    monkeypatch.setattr(cuda, "open_device", lambda index: EmulatedDevice())

    device, network = load.open_gpu_with_network(bundle, RuntimeOptions("onnxruntime-cuda"))

    assert isinstance(network, MapNetwork)
    assert (bundle.spec.resize.height, bundle.spec.resize.width) == (96, 160)
    network.close()
    device.close()
