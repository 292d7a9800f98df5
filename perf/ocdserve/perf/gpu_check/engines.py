# SPDX-License-Identifier: Apache-2.0
"""Networks for the GPU: engines of what was carried along, built or loaded here, each tried by itself."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ocdserve.backend import Bundle
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.network.engine_library import EngineRuntime
from ocdserve.backend.network.load import load_device_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.rewrite.fold import fold, load_onnx
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.real_maps import fixed_policy

NETWORKS = "networks"
WORK = "work.json"
_BUNDLES = "bundles"
_PLAN = "model.plan"
_ENGINE_BATCH = 8


@dataclass(frozen=True)
class Candidate:
    """A way to execute the default network.

    Attributes:
        runtime: What executes it.
        precision: What it computes in.
        ahead: The engine was built ahead, on another machine; else here.
    """

    runtime: str
    precision: str
    ahead: bool = False

    @property
    def name(self) -> str:
        """For the report."""
        return f"{self.runtime} {self.precision}{', built ahead' if self.ahead else ''}"


# The most important first: time may be up before the last.
CANDIDATES = (
    Candidate("tensorrt", "fp16"),
    Candidate("tensorrt", "int8"),
    Candidate("tensorrt-rtx", "fp16", ahead=True),
    Candidate("tensorrt-rtx", "fp16"),
    Candidate("tensorrt-rtx", "int8"),
    Candidate("onnxruntime-cuda", "fp16"),
    Candidate("onnxruntime-cuda", "fp32"),
    Candidate("tensorrt", "fp32"),
)


def prepared(setting: Setting, candidate: Candidate) -> Bundle:
    """A bundle for the candidate, in the work folder; an engine is built where it is needed.

    Raises:
        OcdserveError: It cannot be made here; the message says why.
    """
    source = _source(setting, candidate.precision)
    size = setting.effort.size
    folder = setting.files.work / _BUNDLES / candidate.name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    spec = replace(source.spec, resize=fixed_policy(size), runtime=None, engine=None)
    if candidate.runtime != "onnxruntime-cuda":
        spec = replace(spec, runtime=candidate.runtime, engine=_PLAN)
        if candidate.ahead:
            if source.engine_path is None or source.spec.runtime != candidate.runtime:
                raise UnavailableError(f"no engine of {candidate.runtime} is carried along")
            shutil.copyfile(source.engine_path, folder / _PLAN)
        else:
            (folder / _PLAN).write_bytes(_built(setting, source, candidate))
    shutil.copyfile(source.model_path, folder / spec.model)
    (folder / "detector.json").write_text(spec.to_json(), "utf-8")
    return Bundle.load(folder)


def opened(bundle: Bundle, device: Device) -> DeviceNetwork:
    """The bundle's network on the GPU.

    Raises:
        OcdserveError: Its runtime is not installed, or does not load it here.
    """
    return load_device_network(bundle, RuntimeOptions(bundle.spec.runtime or "onnxruntime-cuda"), device)


def ready_bundles(work: Path) -> Iterator[Bundle]:
    """The bundles whose networks ran, the fastest first."""
    try:
        speeds: dict[str, float] = json.loads((work / _BUNDLES / "speeds.json").read_text("utf-8"))
    except FileNotFoundError:
        return
    for folder in sorted(speeds, key=lambda name: -speeds[name]):
        yield Bundle.load(work / _BUNDLES / folder)


def note_speed(work: Path, bundle: Bundle, per_second: float) -> None:
    """Remember that a bundle's network runs, and how fast."""
    path = work / _BUNDLES / "speeds.json"
    speeds = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    speeds[bundle.model_path.parent.name] = per_second
    path.write_text(json.dumps(speeds), "utf-8")


def macs(carried: Path | None) -> int | None:
    """Multiplications of the default network for one image of the size that is measured, if that is carried along."""
    if carried is None or not (carried / NETWORKS / WORK).is_file():
        return None
    return int(json.loads((carried / NETWORKS / WORK).read_text("utf-8"))["macs"])


def _source(setting: Setting, precision: str) -> Bundle:
    folder = setting.files.carried / NETWORKS / precision if setting.files.carried else None
    if folder is None or not folder.is_dir():
        if precision == "fp32":
            return Bundle.load()
        raise UnavailableError(
            f"no network in {precision} is carried along (perf/gpu_check/collect.sh makes it where there is --data)"
        )
    return Bundle.load(folder)


def _built(setting: Setting, source: Bundle, candidate: Candidate) -> bytes:
    from ocdserve.builder.engine.build import build_engine
    from ocdserve.builder.engine.options import EngineOptions, ShapeProfile

    runtime: EngineRuntime = "tensorrt" if candidate.runtime == "tensorrt" else "tensorrt-rtx"
    largest = (_ENGINE_BATCH, *setting.effort.size)
    options = EngineOptions(runtime, ShapeProfile((1, *setting.effort.size), largest, largest))
    model = load_onnx(source.model_path)
    if not source.spec.network.folded:
        model = fold(model, source.spec.network)
    begin = time.perf_counter()
    engine = build_engine(model, options)
    record = setting.record
    record.count("engine built", candidate.name, time.perf_counter() - begin, "s", f"{len(engine.plan)} bytes")
    return engine.plan
