# SPDX-License-Identifier: Apache-2.0
"""From JPEG bytes to quads on the GPU under load, in this process and through the real Triton."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ocdserve.backend import Bundle
from ocdserve.backend.device.protocol import Device
from ocdserve.backend.gpu.decode import DecoderKind
from ocdserve.backend.gpu.detector import GpuDetector
from ocdserve.backend.gpu.options import GpuOptions
from ocdserve.backend.network.protocols import DeviceNetwork
from ocdserve.contract import ENSEMBLE, FUSED, NETWORK, POSTPROCESS, OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.engines import opened, ready_bundles
from ocdserve.perf.gpu_check.fake_network import MapNetwork, fake_bundle, serve_maps
from ocdserve.perf.gpu_check.maps import drawn_photograph, timed_maps
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS, EncodedImage, ImageSet
from ocdserve.perf.load.drivers import Target, run_load
from ocdserve.perf.load.drivers.sdk import closed_loop
from ocdserve.perf.load.loads import LoadResult
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.load.served import Served, serving
from ocdserve.perf.report.targets import NO_NETWORK

_SLOTS = 3
_MAX_BATCH = 8
_CODEC = "nvidia.nvimgcodec"
_IMAGES = 32
# Latencies that are kept of each load.
_LATENCIES = 200

# Replaces the model's own file: writes once whether its maps are in host memory, then does what the model does.
_PROBE = """
import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from ocdserve.backend.triton import ServedPostprocess


class TritonPythonModel(ServedPostprocess):
    _written = False

    def execute(self, requests):
        if not self._written:
            on_cpu = [pb_utils.get_input_tensor_by_name(request, "MAP").is_cpu() for request in requests]
            Path({file!r}).write_text(json.dumps(on_cpu))
            self._written = True
        super().execute(requests)
"""


def check_end_to_end(context: CheckContext) -> None:
    """Measure the whole detector in this process, with the fastest networks that ran and without a network."""
    images = [encoded for _, encoded in photographs(context.files.data)] or [drawn_photograph()]
    decoders: list[DecoderKind] = ["cpu"]
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec(_CODEC):
        decoders.append("gpu")
    else:
        context.absent("JPEG decoded on the GPU", "nvImageCodec is not installed")
    bundles = list(ready_bundles(context.files.work))[:2]
    if not bundles:
        context.absent("with a network", "no network ran in the part 'networks'")
    maps = timed_maps(context)
    fake = fake_bundle(context.files.work / "fake-network", maps)
    for bundle in (*bundles, fake):
        for decoder in decoders:
            try:
                device = context.open_device()
                network = MapNetwork(device, maps) if bundle is fake else opened(bundle, device)
                _load_in_process(context, device, bundle, network, images, decoder)
            except OcdserveError as error:
                context.absent(f"{_name(bundle)}, JPEG by the {decoder}", error)


def check_served(context: CheckContext) -> None:
    """Measure the fused model and the ensemble, and where Triton puts the ensemble's tensors.

    If no network runs on this GPU, known maps replace it.

    Raises:
        UnavailableError: Triton is not installed, or does not start.
    """
    for module, package in (("pytriton", "nvidia-pytriton"), ("tritonclient", "tritonclient[grpc]")):
        if importlib.util.find_spec(module) is None:
            raise UnavailableError(f"{package} is not installed: collect.sh carries it in the group triton")
    bundle = next(ready_bundles(context.files.work), None)
    if bundle is None:
        context.absent("with a network", "no network ran in the part 'networks'")
        bundle = fake_bundle(context.files.work / "fake-network", timed_maps(context))
    found = photographs(context.files.data)[:_IMAGES] or [("drawn page", drawn_photograph())]
    images = ImageSet(PHOTOGRAPHS, tuple(EncodedImage(name, encoded) for name, encoded in found))
    context.absent("by perf_analyzer", "its program is fetched from the network; the clients are the SDK's")
    probe = context.files.work / "places.json"
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(TemporaryDirectory()))

        def served(kind: str) -> Served:
            repository = published(bundle, workspace / kind, probe, kind)
            start_s = max(5.0, context.deadline.left_s / 3)
            # In the part's session: the server ends if the part is killed.
            return stack.enter_context(serving(repository, start_s, own_session=False))

        try:
            server = served("KIND_GPU")
        except UnavailableError as error:
            # A Triton that sees no GPU itself: its Python models may still use one.
            context.absent("with instances that belong to the GPU (KIND_GPU)", error)
            server = served("KIND_CPU")
        for model in (FUSED, ENSEMBLE):
            for clients in context.effort.concurrencies:
                context.checkpoint(f"{model}, {clients} clients")
                scenario = Scenario(
                    "gpu-check", PHOTOGRAPHS, model=model, concurrency=clients, duration_s=_load_s(context)
                )
                try:
                    result = run_load(
                        "sdk",
                        Target(scenario, images, server.grpc_url),
                        warm=clients == context.effort.concurrencies[0],
                    )
                    _add_load(context, model, result, {"network": _name(bundle)})
                except OcdserveError as error:
                    context.absent(f"{model}, {clients} clients", error)
        _add_places(context, probe)


def published(bundle: Bundle, repository: Path, probe: Path, kind: str) -> Path:
    """Publish a repository whose models compute on the GPU.

    Args:
        bundle: The detector.
        repository: Folder of the repository.
        probe: File in which the ensemble's last step writes whether its maps are in host memory.
        kind: Triton's kind of the models' instances.
    """
    from ocdserve.backend.publish.repository import PublishOptions, publish

    runtime = bundle.spec.runtime or "onnxruntime-cuda"
    publish(PublishOptions(repository, bundle.model_path.parent, runtime=runtime, gpu=True))
    if bundle.spec.name == NO_NETWORK:
        for model in (FUSED, NETWORK):
            serve_maps(repository / model, bundle.model_path.parent)
    (repository / POSTPROCESS / "1" / "model.py").write_text(_PROBE.format(file=str(probe)), "utf-8")
    for path in repository.glob("*/config.pbtxt"):
        path.write_text(path.read_text("utf-8").replace("KIND_GPU", kind), "utf-8")
    return repository


def _name(bundle: Bundle) -> str:
    return bundle.spec.name if bundle.spec.name == NO_NETWORK else bundle.model_path.parent.name


def _load_s(context: CheckContext) -> float:
    return max(0.01, min(context.effort.load_s, context.deadline.left_s / 4))


def _load_in_process(
    context: CheckContext,
    device: Device,
    bundle: Bundle,
    network: DeviceNetwork,
    images: Sequence[bytes],
    decoder: DecoderKind,
) -> None:
    """Measure one detector, and close it with its device."""
    options = GpuOptions(slots=_SLOTS, max_batch=_MAX_BATCH, decoder=decoder)
    with GpuDetector(bundle, device, network, options) as detector:
        detector.warm_up([(720, 1280)], (1, 2, 4, _MAX_BATCH))
        for callers in context.effort.concurrencies:
            for batch in (1, _MAX_BATCH):
                context.checkpoint(f"{_name(bundle)}, JPEG by the {decoder}, {callers} callers, batch {batch}")
                scenario = Scenario(
                    "gpu-check", PHOTOGRAPHS, concurrency=callers, duration_s=_load_s(context), batch=batch
                )
                call = _call(detector, images, batch)
                closed_loop(call, callers, callers)
                answers = closed_loop(call, callers, None, scenario.duration_s)
                result = LoadResult("in process", scenario, "", answers)
                _add_load(context, _name(bundle), result, {"JPEG by": decoder, "batch": batch})


def _call(detector: GpuDetector, images: Sequence[bytes], batch: int) -> Callable[[int], None]:
    def call(number: int) -> None:
        detector.detect_batch([images[(number + index) % len(images)] for index in range(batch)])

    return call


def _add_load(context: CheckContext, subject: str, result: LoadResult, factors: dict[str, str | int | float]) -> None:
    """Add throughput and latencies of a load.

    Raises:
        UnavailableError: No request was answered.
    """
    result.percentile_ms(50)
    factors = {**factors, "driver": result.driver, "concurrency": result.scenario.concurrency or 0}
    facts = {"images": len(result.latencies_ms) * result.scenario.batch, "errors": sum(result.errors.values())}
    context.add(subject, PHOTOGRAPHS, "images/s", [result.images_per_second], factors, facts)
    context.add(subject, PHOTOGRAPHS, "ms", result.latencies_ms[:_LATENCIES], factors, facts)
    if result.errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
        context.part.findings.append(f"{subject}, {result.scenario.concurrency} callers: requests failed: {kinds}")


def _add_places(context: CheckContext, probe: Path) -> None:
    if not probe.is_file():
        context.absent("where Triton puts the maps", "the ensemble's last step was never executed")
        return
    on_cpu = json.loads(probe.read_text("utf-8"))
    facts = {"on the GPU": on_cpu.count(False), "on the host": on_cpu.count(True)}
    context.add("maps that reach the last step", ENSEMBLE, "cases", [len(on_cpu)], facts=facts)
