# SPDX-License-Identifier: Apache-2.0
"""The actions `evaluate` and `inference` of a checkpoint, which PyTorch executes.

All around the network is as for engines and ONNX files: data sets, measures, files and pictures. Like TAO's training
image, and unlike TAO Deploy, `evaluate` reports the best of nine thresholds of the bitmap.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.evaluate.evaluate import evaluate_network, report_outcome
from ocdserve.builder.tao.evaluate.report import Outcome
from ocdserve.builder.tao.infer.inference import infer
from ocdserve.builder.tao.inputs.prepare import Prepared, Request
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.training.network import network_of_checkpoint
from ocdserve.builder.tao.training.trainer.validation import TorchNetwork, postprocess_params, read_options
from ocdserve.contract import InvalidInputError, UnavailableError


def run_evaluate(spec: Spec, context: Context) -> ActionResult:
    """Evaluate a checkpoint.

    The figures of nine thresholds of the bitmap are TAO's lines in the status. The best is chosen on the very images
    that it is reported for, so the files and the last line have the figures at the spec's threshold beside it.

    Raises:
        InvalidInputError: A key, the data set or the checkpoint is invalid; or images could not be read, which is
            reported after all others are evaluated and all files are written.
    """
    path = Path(spec.evaluate.checkpoint)
    context.status.write("RUNNING", f"Loading checkpoint: {path}")
    outcome = evaluate_network(spec, path, context, partial(_opened, spec=spec, key="evaluate.checkpoint"))
    best = _report_sweep(outcome, context)
    result = report_outcome(outcome, spec, context)
    # TAO's capital names are those of the best threshold, the others those of the spec's.
    fixed = {name: value for name, value in result.kpi.items() if name.islower()}
    return replace(result, kpi={**fixed, **best})


def run_inference(spec: Spec, context: Context) -> ActionResult:
    """Detect text in the images of a folder with a checkpoint.

    Boxes are in source pixels. With `ocdserve.compat=tao` they are in the network's, as TAO's training image writes and
    draws them.

    Raises:
        InvalidInputError: A key, the folder or the checkpoint is invalid; or images could not be read, which is
            reported after all others are done.
    """
    path = Path(spec.inference.checkpoint)
    context.status.write("RUNNING", f"Loading checkpoint: {path}")
    is_tao = spec.ocdserve.compat == "tao"
    opener = partial(_opened, spec=spec, key="inference.checkpoint")
    return infer(spec, path, context, opener, in_network_pixels=is_tao)


def _opened(request: Request, spec: Spec, key: str) -> Prepared:
    """The network of a checkpoint, ready to run, and how images are read for it and maps are post-processed."""
    is_tao = request.ocdserve.compat == "tao"
    if is_tao and request.img_mode == "GRAY":
        raise InvalidInputError(
            "img_mode GRAY fails in TAO, so ocdserve.compat=tao has nothing to reproduce. Leave one of them out."
        )
    if request.resize is None:
        raise InvalidInputError(
            f"{request.size_key} needs a Resize2D: the network of a checkpoint has no size of its own, and takes sides "
            "of multiples of 32 pixels only"
        )
    device = _device(request)
    network = TorchNetwork(network_of_checkpoint(spec, request.path, key).to(device), device)
    read = read_options(request.resize, request.img_mode, is_tao)
    params = replace(postprocess_params(request.post_processing, is_tao), polygons=request.polygons)
    return Prepared(network, read, params, max(1, request.batch_size), notes=())


def _device(request: Request) -> torch.device:
    chosen = request.ocdserve.device
    if chosen == "cpu" or (chosen == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if request.device >= torch.cuda.device_count():
        raise UnavailableError(
            f"there is no GPU {request.device} for PyTorch here: it sees {torch.cuda.device_count()}. Name another in "
            "gpu_ids, or set ocdserve.device=cpu"
        )
    return torch.device("cuda", request.device)


def _report_sweep(outcome: Outcome, context: Context) -> dict[str, float | int | str | None]:
    """Write TAO's lines, and return the best figures by its names; none if nothing matches at any threshold."""
    sweep = outcome.bitmap_sweep()
    for row in sweep:
        context.status.write(
            "RUNNING",
            f"thresh: {row['thresh']}, recall: {row['recall']}, precision: {row['precision']}, hmean: {row['hmean']}",
        )
    best = max(sweep, key=lambda row: row["hmean"], default=None)
    kpi: dict[str, float | int | str | None] = {}
    if best is not None and best["hmean"] > 0:
        kpi = {
            "Thresh": best["thresh"],
            "Recall": best["recall"],
            "Precision": best["precision"],
            "Hmean": best["hmean"],
        }
    context.status.write("RUNNING", "Test metrics generated.", kpi=kpi)
    return kpi
