# SPDX-License-Identifier: Apache-2.0
"""From JPEG bytes to quads on the GPU under load, in this process and through the real Triton."""

import importlib.util
import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from ocdserve.backend import Bundle
from ocdserve.contract import ENSEMBLE, FUSED, NETWORK, POSTPROCESS, OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import CheckContext
from ocdserve.perf.gpu_check.load.in_process import add_load, load_s, name_of
from ocdserve.perf.gpu_check.maps import drawn_photograph, timed_maps
from ocdserve.perf.gpu_check.network.engines import ready_bundles
from ocdserve.perf.gpu_check.network.stand_ins import STAND_INS, serve_stand_in, stand_in_bundle
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.image_sets import PHOTOGRAPHS, EncodedImage, ImageSet
from ocdserve.perf.load.drivers import Target, run_load
from ocdserve.perf.load.scenarios import Scenario
from ocdserve.perf.load.served import Served, serving

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


def check_served(context: CheckContext) -> None:
    """Measure the fused model and the ensemble, and where Triton puts the ensemble's tensors.

    If no network runs on this GPU, known maps replace it.

    Raises:
        UnavailableError: Triton is not installed, or does not start.
    """
    for module, package in (("pytriton", "nvidia-pytriton"), ("tritonclient", "tritonclient[grpc]")):
        if importlib.util.find_spec(module) is None:
            raise UnavailableError(f"{package} is not installed: pack.sh carries it in the group triton")
    bundle = next(ready_bundles(context.files.work), None)
    if bundle is None:
        context.absent("with a network", "no network ran in the part 'networks'")
        bundle = stand_in_bundle(context.files.work / "fake-network", timed_maps(context))
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
                    "gpu-check", PHOTOGRAPHS, model=model, concurrency=clients, duration_s=load_s(context)
                )
                try:
                    result = run_load(
                        "sdk",
                        Target(scenario, images, server.grpc_url),
                        warm=clients == context.effort.concurrencies[0],
                    )
                    add_load(context, model, result, {"network": name_of(bundle)})
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
    if bundle.spec.name in STAND_INS:
        for model in (FUSED, NETWORK):
            serve_stand_in(repository / model, bundle.model_path.parent)
    (repository / POSTPROCESS / "1" / "model.py").write_text(_PROBE.format(file=str(probe)), "utf-8")
    for path in repository.glob("*/config.pbtxt"):
        path.write_text(path.read_text("utf-8").replace("KIND_GPU", kind), "utf-8")
    return repository


def _add_places(context: CheckContext, probe: Path) -> None:
    if not probe.is_file():
        context.absent("where Triton puts the maps", "the ensemble's last step was never executed")
        return
    on_cpu = json.loads(probe.read_text("utf-8"))
    facts = {"on the GPU": on_cpu.count(False), "on the host": on_cpu.count(True)}
    context.add("maps that reach the last step", ENSEMBLE, "cases", [len(on_cpu)], facts=facts)
