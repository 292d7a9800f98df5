# SPDX-License-Identifier: Apache-2.0
"""INT8 quantisation by our builder and by other tools, on the same images.

    python -m ocdserve.perf.studies.quantisation --data DIR

All tools calibrate by MinMax with the images that our builder chooses, through the serving preprocessing, and are
evaluated on the other images in ONNX Runtime. Each runs in its own process, so that its peak memory can be measured.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdserve.contract import UnavailableError

_POLL_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a tool took, and the accuracy gate's figures for its network."""

    tool: str
    seconds: float
    peak_mib: float
    figures: dict[str, Any]


def _inputs(data: Path) -> Iterator[NDArray[np.float32]]:
    """Calibration images as the ONNX network takes them, float32 (1, 3, h, w)."""
    from ocdserve.backend import Bundle
    from ocdserve.builder import DataConfig
    from ocdserve.builder.calibration.images import pick_images
    from ocdserve.builder.calibration.inputs import ServingImages
    from ocdserve.builder.graph.execute import normalised

    spec = Bundle.load().spec
    for pixels in ServingImages(pick_images(DataConfig(evaluation=data), needed=True).calibration, spec):
        yield normalised([pixels], spec.network)


def _onnxruntime(source: Path, target: Path, data: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._images = _inputs(data)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._images, None)
            return None if image is None else {"x": image}

    quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True},
    )


def _modelopt(source: Path, target: Path, data: Path) -> None:
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise UnavailableError(f"not installed ({error})") from error
    # It takes one array, so all images are resized to the size of the first.
    import cv2

    first, *rest = _inputs(data)
    size = first.shape[3], first.shape[2]
    same = [first[0], *(cv2.resize(image[0].transpose(1, 2, 0), size).transpose(2, 0, 1) for image in rest)]
    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"x": np.stack(same)},
        calibration_method="max",
        calibration_eps=["cpu"],
        op_types_to_quantize=["Conv"],
        output_path=str(target),
    )


def _ours(source: Path, target: Path, data: Path) -> None:
    import shutil

    from ocdserve.backend import Bundle
    from ocdserve.builder import BuildConfig, DataConfig, build

    output = target.with_suffix("")
    build(
        BuildConfig(
            Bundle.load().model_path,
            output,
            precision="int8",
            runtime="onnxruntime",
            data=DataConfig(evaluation=data),
            gate=False,
        )
    )
    shutil.copy(output / "model.onnx", target)


TOOLS: dict[str, Callable[[Path, Path, Path], None]] = {
    "ocdserve build, no search": _ours,
    "onnxruntime.quantization": _onnxruntime,
    "NVIDIA ModelOpt": _modelopt,
}


def _timed(tool: str, source: Path, target: Path, data: Path, answers: Any) -> None:
    started = time.perf_counter()
    try:
        TOOLS[tool](source, target, data)
    except Exception as error:  # a failed tool is a row of the table
        answers.put(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answers.put((time.perf_counter() - started, peak))


def _answer(process: BaseProcess, answers: Any) -> Any:
    """The answer of a tool's process, or why there is none: tools have been killed for their memory."""
    while True:
        is_alive = process.is_alive()
        try:
            return answers.get(timeout=_POLL_S)
        except Empty:
            if not is_alive:
                return f"its process ended with exit code {process.exitcode} (-9: killed, perhaps for its memory)"


def measure(data: Path) -> Iterator[Outcome | tuple[str, str]]:
    """The outcome of each tool, or its name and why it failed."""
    import onnx

    from ocdserve.backend import Bundle
    from ocdserve.backend.network.rewrite.fold import fold
    from ocdserve.builder import SILENT, DataConfig
    from ocdserve.builder.accuracy.gate import compare, make_reference
    from ocdserve.builder.calibration.images import pick_images
    from ocdserve.builder.graph.describe import describe
    from ocdserve.builder.graph.execute import GraphNetwork

    description = describe(Bundle.load().model_path)
    network = description.spec.network
    images = pick_images(DataConfig(evaluation=data), needed=True).evaluation
    full = GraphNetwork(fold(description.model, network, "float32"))
    reference = make_reference(Bundle.load(), full, images, SILENT)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "normal_form.onnx"
        onnx.save(description.model, str(source))
        for index, tool in enumerate(TOOLS):
            target = Path(folder) / f"{index}.onnx"
            answers = context.Queue()
            process = context.Process(target=_timed, args=(tool, source, target, data, answers))
            process.start()
            answer = _answer(process, answers)
            process.join()
            if isinstance(answer, str):
                yield tool, answer
                continue
            candidate = GraphNetwork(fold(onnx.load(str(target)), network, "float32"))
            seconds, peak = answer
            yield Outcome(tool, seconds, peak, compare(reference, candidate, SILENT).to_dict())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m ocdserve.perf.studies.quantisation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", type=Path, required=True, help="folder with img/ and gt/")
    data = parser.parse_args(arguments).data
    write = sys.stdout.write
    write("| tool | s | peak MiB | hmean FP32 | hmean INT8 | loss, points | box agreement | map error |\n")
    write("|---|---|---|---|---|---|---|---|\n")
    for outcome in measure(data):
        if isinstance(outcome, tuple):
            write(f"| {outcome[0]} | {outcome[1]} |\n")
        else:
            found = outcome.figures
            write(
                f"| {outcome.tool} | {outcome.seconds:.0f} | {outcome.peak_mib:.0f} | {found['hmean_fp32']:.4f} | "
                f"{found['hmean']:.4f} | {found['hmean_loss']:.2f} | {found['agreement']:.4f} | "
                f"{found['map_error']:.6f} |\n"
            )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
