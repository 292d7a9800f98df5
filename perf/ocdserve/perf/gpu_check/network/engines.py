# SPDX-License-Identifier: Apache-2.0
"""Bundles of the default network for the runtimes of a GPU, from carried networks; engines are built or loaded."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ocdserve.backend import Bundle
from ocdserve.backend.device.probe import present_gpu
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.network.load import load_device_network
from ocdserve.backend.network.options import EngineRuntime, RuntimeOptions
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.backend.network.rewrite.fold import fold, load_onnx
from ocdserve.contract import UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.network.stand_ins import STAND_INS, stand_in
from ocdserve.perf.inputs.maps import fixed_policy

# NVIDIA's support matrix of TensorRT-RTX 1.5: GeForce and RTX, not A100, H100, H200 or B200.
RTX_ARCHITECTURES = ("sm_75", "sm_86", "sm_89", "sm_120", "sm_121")

NETWORKS = "networks"
RECOGNISER = "recogniser"
WORK = "work.json"
_BUNDLES = "bundles"
_PLAN = "model.plan"
_ENGINE_BATCH = 8


@dataclass(frozen=True)
class Candidate:
    """A runtime and a precision for the default network.

    Attributes:
        runtime: The runtime.
        precision: The precision.
        prebuilt: Whether its engine was built on another machine.
    """

    runtime: str
    precision: str
    prebuilt: bool = False

    @property
    def name(self) -> str:
        """Name in the report."""
        return f"{self.runtime} {self.precision}{', prebuilt' if self.prebuilt else ''}"


# The most important first, since the time may not suffice for all.
CANDIDATES = (
    Candidate("tensorrt", "fp16"),
    Candidate("tensorrt", "int8"),
    Candidate("tensorrt-rtx", "fp16", prebuilt=True),
    Candidate("tensorrt-rtx", "fp16"),
    Candidate("tensorrt-rtx", "int8"),
    Candidate("onnxruntime-cuda", "fp16"),
    Candidate("onnxruntime-cuda", "fp32"),
    Candidate("tensorrt", "fp32"),
)


def prepared(context: CheckContext, candidate: Candidate) -> Bundle:
    """Make a bundle for the candidate in the work folder, with an engine if it needs one.

    Raises:
        OcdserveError: It cannot be made here.
    """
    source = _source(context, candidate.precision)
    size = context.effort.size
    folder = bundle_folder(context.files.work, candidate.name)
    folder.mkdir(parents=True, exist_ok=True)
    spec = replace(source.spec, resize=fixed_policy(size), runtime=None, engine=None)
    if candidate.runtime == "tensorrt-rtx":
        _check_rtx()
    if candidate.runtime != "onnxruntime-cuda":
        spec = replace(spec, runtime=candidate.runtime, engine=_PLAN)
        if candidate.prebuilt:
            if source.engine_path is None or source.spec.runtime != candidate.runtime:
                raise UnavailableError(f"no engine of {candidate.runtime} is carried along")
            shutil.copyfile(source.engine_path, folder / _PLAN)
        else:
            (folder / _PLAN).write_bytes(_built(context, source, candidate))
    shutil.copyfile(source.model_path, folder / spec.model)
    (folder / "detector.json").write_text(spec.to_json(), "utf-8")
    return Bundle.load(folder)


def opened(bundle: Bundle, device: Device) -> DeviceNetwork:
    """Load the bundle's network, or what stands in for it, onto the GPU.

    Raises:
        OcdserveError: Its runtime is not installed, or cannot load it.
    """
    if bundle.spec.name in STAND_INS:
        return stand_in(bundle, device)
    return load_device_network(bundle, RuntimeOptions(bundle.spec.runtime or "onnxruntime-cuda"), device)


def bundle_folder(work: Path, name: str) -> Path:
    """Where the bundle of a network is made."""
    return work / _BUNDLES / name.replace(", ", "-").replace(" ", "-")


def ready_bundles(work: Path) -> Iterator[Bundle]:
    """The bundles whose networks ran, fastest first."""
    try:
        speeds: dict[str, float] = json.loads((work / _BUNDLES / "speeds.json").read_text("utf-8"))
    except FileNotFoundError:
        return
    for folder in sorted(speeds, key=lambda name: -speeds[name]):
        yield Bundle.load(work / _BUNDLES / folder)


def note_speed(work: Path, bundle: Bundle, per_second: float) -> None:
    """Record that a bundle's network ran, and its speed in images per second."""
    path = work / _BUNDLES / "speeds.json"
    speeds = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    speeds[bundle.model_path.parent.name] = per_second
    path.write_text(json.dumps(speeds), "utf-8")


def macs(carried: Path | None) -> int | None:
    """Multiply-accumulate operations of the default network per image of the measured size, if carried along."""
    if carried is None or not (carried / NETWORKS / WORK).is_file():
        return None
    return int(json.loads((carried / NETWORKS / WORK).read_text("utf-8"))["macs"])


def _check_rtx() -> None:
    try:
        architecture, model = present_gpu()
    except UnavailableError:
        return
    if architecture not in RTX_ARCHITECTURES:
        raise UnavailableError(f"TensorRT-RTX is for {', '.join(RTX_ARCHITECTURES)}, not for {architecture} ({model})")


def _source(context: CheckContext, precision: str) -> Bundle:
    folder = context.files.carried / NETWORKS / precision if context.files.carried else None
    if folder is None or not folder.is_dir():
        if precision == "fp32":
            return Bundle.load("default-fp32")
        raise UnavailableError(f"no network in {precision} is carried along (perf/gpu_check/pack.sh makes it)")
    return Bundle.load(folder)


def _built(context: CheckContext, source: Bundle, candidate: Candidate) -> bytes:
    from ocdserve.builder.engine.build import build_engine
    from ocdserve.builder.engine.options import EngineConfig, ShapeProfile

    runtime: EngineRuntime = "tensorrt" if candidate.runtime == "tensorrt" else "tensorrt-rtx"
    largest = (_ENGINE_BATCH, *context.effort.size)
    profile = ShapeProfile((1, *context.effort.size), largest, largest)
    model = load_onnx(source.model_path)
    if not source.spec.network.folded:
        model = fold(model, source.spec.network)
    begin = time.perf_counter()
    engine = build_engine(model, runtime, profile, EngineConfig())
    milliseconds = 1000 * (time.perf_counter() - begin)
    context.add(candidate.name, "engine build", "ms", [milliseconds], facts={"bytes": len(engine.plan)})
    return engine.plan
