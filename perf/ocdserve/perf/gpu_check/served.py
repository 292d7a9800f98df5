# SPDX-License-Identifier: Apache-2.0
"""The GPU path through the real Triton: throughput of the fused model and of the ensemble, and where tensors lie."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ocdserve.backend import Bundle
from ocdserve.contract import ENSEMBLE, FUSED, NETWORK, POSTPROCESS, OcdserveError, UnavailableError
from ocdserve.perf.gpu_check.check_context import Setting
from ocdserve.perf.gpu_check.engines import ready_bundles
from ocdserve.perf.gpu_check.fake_network import NO_NETWORK, serve_maps, stand_in_bundle
from ocdserve.perf.gpu_check.load import keep_busy
from ocdserve.perf.gpu_check.real_maps import drawn_photograph, photographs, timed_maps

_LOG_END = 1500

# In place of the model's own file: says once where its maps lie, and does what the model does.
_PROBE = """
import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from ocdserve.backend.triton import ServedPostprocess


class TritonPythonModel(ServedPostprocess):
    _told = False

    def execute(self, requests):
        if not self._told:
            places = [pb_utils.get_input_tensor_by_name(request, "MAP").is_cpu() for request in requests]
            Path({file!r}).write_text(json.dumps(places))
            self._told = True
        super().execute(requests)
"""


def check_served(setting: Setting) -> None:
    """The whole part.

    Where no network runs on this GPU, known maps stand in for one.

    Raises:
        UnavailableError: Triton is not installed, or does not start.
    """
    for module, package in (("pytriton", "nvidia-pytriton"), ("tritonclient", "tritonclient[grpc]")):
        if importlib.util.find_spec(module) is None:
            raise UnavailableError(f"{package} is not installed: collect.sh carries it in the group triton")
    bundle = next(ready_bundles(setting.files.work), None)
    if bundle is None:
        setting.record.absent("with a network", "no network ran in the part 'networks'")
        bundle = stand_in_bundle(setting.files.work / "stand-in", timed_maps(setting))
    images = [encoded for _, encoded in photographs(setting.files)[:32]] or [drawn_photograph()]
    setting.record.absent("by perf_analyzer", "its program is fetched from the network; the clients are the SDK's")
    with ExitStack() as stack:
        try:
            grpc_url, probe = stack.enter_context(_serving(setting, bundle, "KIND_GPU"))
        except UnavailableError as error:
            # A Triton that sees no GPU itself: its Python models may still use one.
            setting.record.absent("with instances that belong to the GPU (KIND_GPU)", error)
            grpc_url, probe = stack.enter_context(_serving(setting, bundle, "KIND_CPU"))
        for model in (FUSED, ENSEMBLE):
            for clients in setting.effort.concurrencies:
                setting.go_on(f"{model}, {clients} clients")
                try:
                    _measure(setting, grpc_url, model, f"{_name(bundle)}, {model}, {clients} clients", clients, images)
                except OcdserveError as error:
                    setting.record.absent(f"{model}, {clients} clients", error)
        _note_place(setting, probe)


@contextmanager
def _serving(setting: Setting, bundle: Bundle, kind: str) -> Iterator[tuple[str, Path]]:
    """A ready server; gives its gRPC URL, and the file in which the probe says where the maps lie."""
    from ocdserve.backend.serve import ServeOptions, private_directory, running_server

    workspace = private_directory()
    probe, log = setting.files.work / "places.json", setting.files.work / "triton.log"
    options = ServeOptions(
        published(bundle, workspace / "repository", probe, kind),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        workspace=workspace,
        log_file=log,
        ready_timeout_s=max(5.0, setting.deadline.left_s / 3),
    )
    try:
        with running_server(options, lambda message: None) as server:
            yield server.grpc_url, probe
    except UnavailableError as error:
        tail = log.read_text("utf-8", "replace")[-_LOG_END:] if log.is_file() else ""
        raise UnavailableError(f"{error} {tail}") from error


def published(bundle: Bundle, repository: Path, probe: Path, kind: str) -> Path:
    """A repository whose models compute on the GPU.

    Args:
        bundle: What to serve.
        repository: Its folder.
        probe: File that the ensemble's last step writes to, where its maps lie.
        kind: Of the models' instances, as Triton calls it.
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


def _measure(setting: Setting, grpc_url: str, model: str, label: str, clients: int, images: Sequence[bytes]) -> None:
    from ocdserve.client import TextDetector

    with ExitStack() as stack:
        calls = []
        for client in range(clients):
            detector = stack.enter_context(TextDetector(grpc_url, model=model))
            image = images[client % len(images)]
            calls.append(lambda detector=detector, image=image: detector.detect(image))
        load = keep_busy(calls, 1, min(setting.effort.load_s, setting.deadline.left_s / 4))
    note = f"{load.images} images; clients are threads of one Python process, which bounds them too"
    setting.record.count("images a second", label, load.per_second, "images/s", note)
    setting.record.time("request", label, [1000 * latency for latency in load.latencies_ms[:200]])


def _note_place(setting: Setting, probe: Path) -> None:
    if not probe.is_file():
        setting.record.absent("where Triton puts the maps", "the ensemble's last step was never executed")
        return
    on_cpu = json.loads(probe.read_text("utf-8"))
    note = "of the first requests of the ensemble; on the GPU is what is wanted"
    setting.record.count("maps that reach the last step on the GPU", ENSEMBLE, on_cpu.count(False), "", note)
    setting.record.count("maps that reach the last step on the host", ENSEMBLE, on_cpu.count(True), "", note)
