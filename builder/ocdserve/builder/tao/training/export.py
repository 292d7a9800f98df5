# SPDX-License-Identifier: Apache-2.0
"""The action `export`: a checkpoint's network as ONNX."""

from pathlib import Path
from typing import cast

import onnx

from ocdserve.builder.tao.actions import ActionResult, Context
from ocdserve.builder.tao.spec import Spec
from ocdserve.builder.tao.training.network import network_of_checkpoint
from ocdserve.builder.train.export import ExportForm, export_onnx, oldest_opset
from ocdserve.contract import InvalidInputError


def run(spec: Spec, context: Context) -> ActionResult:
    """Export.

    The graph takes images of any size in multiples of 32 pixels, so `export.width` and `export.height` are not used; an
    engine gets its size from `gen_trt_engine`. An `export.opset_version` that is too old, as TAO's default is, gives
    way to that of `export_onnx`.

    Raises:
        InvalidInputError: The checkpoint is of another network, or the file exists.
    """
    settings = spec.export
    checkpoint = Path(settings.checkpoint)
    path = Path(settings.onnx_file) if settings.onnx_file else checkpoint.with_suffix(".onnx")
    if path.exists():
        # Begins as TAO's message does, for programs that look for it.
        raise InvalidInputError(
            f"Output file already exists at {path}. Move it away, or name another file as export.onnx_file"
        )
    network = network_of_checkpoint(spec, checkpoint, "export.checkpoint")
    form = cast(ExportForm, spec.ocdserve.export_form)
    asked = settings.opset_version
    exported = export_onnx(network, path, form, None if asked < oldest_opset(network, form) else asked)
    if settings.verbose:
        context.say(onnx.printer.to_text(exported.model.graph))
    context.say(f"Model exported to {path}")
    older = "" if exported.opset == asked else f" (export.opset_version {asked} is older than this network can have)"
    return ActionResult(
        f"wrote {path} in opset {exported.opset}{older}, for images of any size in multiples of 32 pixels; on an image "
        f"of noise, ONNX Runtime and PyTorch differ by at most {exported.difference:.1g}",
        {"opset": exported.opset, "largest_difference": exported.difference},
    )
