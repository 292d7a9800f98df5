# SPDX-License-Identifier: Apache-2.0
"""Computes maps and the CPU's answers, and builds networks, for a check on another machine; needs no GPU.

`python -m ocdserve.perf.gpu_check.prebuild FOLDER --data DIR [--engines]`; `perf/gpu_check/pack.sh` calls it.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ocdserve.backend import Bundle
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.contract import InvalidInputError, OcdserveError
from ocdserve.perf.gpu_check.maps import (
    ANSWERED_MAPS,
    FIXED_MAPS,
    REAL,
    answer_of,
    save_answered,
    save_maps,
)
from ocdserve.perf.gpu_check.network.engines import NETWORKS, RECOGNISER, WORK
from ocdserve.perf.gpu_check.timing import Effort
from ocdserve.perf.inputs.data_sets import photographs
from ocdserve.perf.inputs.maps import compute_maps, fixed_policy, generated

# Of TensorRT-RTX's engines: those of today's servers and workstations.
_ARCHITECTURES = ("sm_89", "sm_120")
_CALIBRATION_IMAGES = 8
_PRECISIONS = ("fp32", "fp16", "int8")
_WITHOUT_ENGINE = "fp32"
# Maps of one size: those of the largest batch.
_FIXED = 32


def prebuild(
    folder: Path, data: Path, say: Callable[[str], None], precisions: Sequence[str] = _PRECISIONS, engines: bool = False
) -> None:
    """Put photographs, maps and networks into a folder; those that exist are kept.

    Args:
        folder: The folder that run.sh gets.
        data: Photographs: `img/`, or folders that have one.
        say: Called with what is made next.
        precisions: Of the networks.
        engines: Build engines of TensorRT-RTX too, which no GPU of A100's or H100's kind loads.

    Raises:
        InvalidInputError: There are no photographs.
    """
    size = Effort().size
    images = photographs(data)
    if not images:
        raise InvalidInputError(f"{data} holds no JPEG files in img/ or */img/")
    copied = folder / "data" / "img"
    copied.mkdir(parents=True, exist_ok=True)
    for name, encoded in images:
        (copied / name).write_bytes(encoded)
    if not (folder / FIXED_MAPS).is_file():
        say(f"maps of one size of {len(images[:_FIXED])} photographs")
        save_maps(folder / FIXED_MAPS, list(compute_maps(images[:_FIXED], fixed_policy(size))))
    if not (folder / ANSWERED_MAPS).is_file():
        say(f"the CPU's answers to maps of {len(images)} photographs and to generated ones")
        real = compute_maps(images, None)
        cases = [*generated(Effort().cases, size), *(replace(case, group=REAL) for case in real)]
        save_answered(folder / ANSWERED_MAPS, [(case, answer_of(case)) for case in cases])
    for precision in precisions:
        target = folder / NETWORKS / precision
        if not target.is_dir() or _has_engine(target) != (engines and precision != _WITHOUT_ENGINE):
            say(f"network in {precision}")
            shutil.rmtree(target, ignore_errors=True)
            try:
                build_network(target, precision, copied, engines)
            except (OcdserveError, ImportError) as error:
                say(f"no network in {precision}: {error}")
    if _WITHOUT_ENGINE in precisions and not (folder / NETWORKS / RECOGNISER).is_dir():
        say("the recogniser")
        RecogniserBundle.load().save(folder / NETWORKS / RECOGNISER)
    (folder / NETWORKS).mkdir(exist_ok=True)
    (folder / NETWORKS / WORK).write_text(json.dumps({"size": size, "macs": count_macs(size)}), "utf-8")


def build_network(target: Path, precision: str, images: Path, engines: bool = False) -> None:
    """Build the default network in a precision, without the accuracy gate: the check compares maps itself.

    Args:
        target: Folder of the bundle.
        precision: One of `_PRECISIONS`.
        images: Folder of the photographs to calibrate with, of text for the most part.
        engines: See `prebuild`.

    Raises:
        OcdserveError: It cannot be built; the target does not exist then.
    """
    from ocdserve.builder import BuildConfig, DataConfig, EngineConfig, build

    build(
        BuildConfig(
            Bundle.load().model_path,
            target,
            precision=precision,  # type: ignore[arg-type]  # validated there
            runtime="tensorrt-rtx" if engines and precision != _WITHOUT_ENGINE else None,
            data=DataConfig(calibration_images=images, calibration_count=_CALIBRATION_IMAGES),
            gate=False,
            engine=EngineConfig(architectures=_ARCHITECTURES, store=target.parent / ".engines"),
        )
    )
    shutil.rmtree(target.parent / ".engines", ignore_errors=True)


def _has_engine(bundle: Path) -> bool:
    return Bundle.load(bundle, spec_only=True).spec.engine is not None


def count_macs(size: tuple[int, int]) -> int:
    """Multiply-accumulate operations of the default network's convolutions per image of a height and width."""
    from ocdserve.backend.network.rewrite.fold import PREFIX, fold
    from ocdserve.builder.graph.describe import describe
    from ocdserve.builder.graph.execute import tensor_shapes
    from ocdserve.builder.graph.quantise import layers

    description = describe(Bundle.load().model_path)
    graph = description.model.graph
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    names = list(dict.fromkeys(name for node in convolutions for name in (node.input[0], node.output[0])))
    folded = fold(description.model, description.spec.network, "float32")
    shapes = tensor_shapes(folded, [PREFIX + name for name in names], np.zeros((*size, 3), np.uint8))
    return sum(layer.macs for layer in layers(description.model, {name: shapes[PREFIX + name] for name in names}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 without photographs."""
    parser = argparse.ArgumentParser(prog="python -m ocdserve.perf.gpu_check.prebuild", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--data", metavar="DIR", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", choices=_PRECISIONS, default=_PRECISIONS, help="(default: all)")
    parser.add_argument("--engines", action="store_true", help="of TensorRT-RTX")
    options = parser.parse_args(arguments)
    try:
        prebuild(options.folder, options.data, _say, options.precisions, options.engines)
    except OcdserveError as error:
        sys.stderr.write(f"prebuild: {error}\n")
        return 2
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"prebuild: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
