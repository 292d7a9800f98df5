# SPDX-License-Identifier: Apache-2.0
"""Calibration: ranges of a network's tensors, measured in FP32 on the CPU.

All images are used, in constant memory: extremes are reduced inside the runtime, histograms accumulated image by image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.builder.calibration.cache import HEADER, CalibrationCache
from ocdserve.builder.calibration.ranges import (
    LEVELS,
    Histogram,
    RangeMethod,
    check_method,
    clipping_range,
    magnitude_counts,
)
from ocdserve.builder.graph.execute import cpu_session, with_outputs
from ocdserve.builder.progress import SILENT, Progress
from ocdserve.contract import InvalidInputError

# Values counted at a time: intermediate arrays take 12 bytes per value and should stay in the processor's cache.
_CHUNK = 1 << 18
# The sum only serves to find NaN, which minimum and maximum may drop.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSum", "Size")
_PREFIX = "ocdserve.calibration/"


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        method: How ranges are chosen (see `ocdserve.builder.calibration.ranges`). `minmax` runs each image once, the
            others twice.
        percentile: Percentage of a tensor's values that is not clipped; for the method of that name.
        threads: Cores; None is all that this process may use. Ranges are bit-equal for an equal number.
        images: Preprocessing: `serving` as the detector's, `tao` as TAO Deploy's calibrator
            (`ocdserve.builder.calibration.inputs`).
        group_mib: Size of the tensors that are fetched at a time for their histograms, MiB; a larger one is fetched
            alone.

    Raises:
        InvalidInputError: A field is out of its range; the message names it.
    """

    method: RangeMethod = "minmax"
    percentile: float = 99.999
    threads: int | None = None
    images: Literal["serving", "tao"] = "serving"
    group_mib: int = 512

    def __post_init__(self) -> None:
        check_method(self.method, self.percentile)
        if self.threads is not None and self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1; got {self.threads}")
        if self.group_mib < 1:
            raise InvalidInputError(f"group_mib must be at least 1; got {self.group_mib}")


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest value of a tensor over all images, and its number of elements in the largest image."""

    low: float
    high: float
    elements: int

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        extremes: By tensor, in the requested order.
        ranges: By tensor, positive: larger magnitudes are clipped.
        options: How the ranges were chosen.
        images: Number of images.
    """

    extremes: Mapping[str, Extremes]
    ranges: Mapping[str, float]
    options: CalibrationOptions
    images: int

    def to_cache(self, onnx_sha256: str, images_sha256: str | None = None) -> CalibrationCache:
        """The calibration cache, bound to the ONNX file and the set of images with these hashes."""
        method: str = self.options.method
        if method == "percentile":
            method = f"{method}-{self.options.percentile:g}"
        scales = {name: float(np.float32(value / LEVELS)) for name, value in self.ranges.items()}
        return CalibrationCache(scales, HEADER, onnx_sha256, images_sha256, method)


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    options: CalibrationOptions = CalibrationOptions(),
    progress: Progress = SILENT,
    extremes: Mapping[str, Extremes] | None = None,
) -> Calibration:
    """Measure the ranges of tensors.

    Args:
        model: Folded network, with one input of uint8 (1, h, w, 3).
        tensors: Names of float32 tensors of the graph.
        images: uint8 (h, w, 3) each, of any sizes; iterated one or several times.
        options: How ranges are chosen.
        progress: Reports each image.
        extremes: Of the tensors, among others, on the same images, where they were measured before; saves a pass.

    Raises:
        InvalidInputError: There are no images, one is not valid, a tensor does not exist or is not float32, the network
            cannot be executed, or a tensor has values that are not finite; the message names it.
    """
    if extremes is None:
        extremes = measure_extremes(model, tensors, images, options, progress)
    else:
        extremes = {name: extremes[name] for name in tensors}
    if options.method == "minmax":
        histograms = {name: Histogram(np.ones(1, np.int64), found.amax) for name, found in extremes.items()}
    else:
        histograms = _histograms(model, extremes, images, options, progress)
    ranges = {
        name: clipping_range(histogram, options.method, options.percentile) for name, histogram in histograms.items()
    }
    return Calibration(extremes, ranges, options, len(images))


def measure_extremes(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    options: CalibrationOptions = CalibrationOptions(),
    progress: Progress = SILENT,
) -> dict[str, Extremes]:
    """Measure the smallest and largest value of each tensor; see `calibrate` for arguments and errors."""
    _check(model, tensors, images)
    tensors = list(dict.fromkeys(tensors))
    nodes, outputs = [], []
    for index, name in enumerate(tensors):
        for kind in _REDUCTIONS:
            output = f"{_PREFIX}{kind}/{index}"
            attributes: dict[str, Any] = {} if kind == "Size" else {"keepdims": 0}
            nodes.append(helper.make_node(kind, [name], [output], **attributes))
            element = TensorProto.INT64 if kind == "Size" else TensorProto.FLOAT
            outputs.append(helper.make_tensor_value_info(output, element, []))
    network = _Network(with_outputs(model, nodes, outputs), options)
    # Columns: lowest, highest, sum, elements.
    totals = np.tile([np.inf, -np.inf, 0, 0], (len(tensors), 1))
    with progress.task("calibration: extremes", len(images)) as task:
        for image in images:
            low, high, total, elements = np.array(network.run(image), np.float64).reshape(-1, len(_REDUCTIONS)).T
            bad = ~(np.isfinite(low) & np.isfinite(high)) | np.isnan(total)
            if bad.any():
                raise InvalidInputError(
                    f"tensor {tensors[int(bad.argmax())]!r} has values that are not finite on a calibration image of "
                    f"{image.shape[1]} x {image.shape[0]} pixels; the network is broken, export it again"
                )
            found = np.minimum(totals[:, 0], low), np.maximum(totals[:, 1], high), np.maximum(totals[:, 3], elements)
            totals[:, 0], totals[:, 1], totals[:, 3] = found
            task.advance()
    return {
        name: Extremes(float(low), float(high), int(elements))
        for name, (low, high, _, elements) in zip(tensors, totals, strict=True)
    }


def _histograms(
    model: onnx.ModelProto,
    extremes: Mapping[str, Extremes],
    images: Sequence[NDArray[np.uint8]],
    options: CalibrationOptions,
    progress: Progress,
) -> dict[str, Histogram]:
    """Histograms of magnitudes. Tensors are fetched in groups, to limit the memory."""
    groups = list(_groups(extremes, options.group_mib << 20))
    counts: dict[str, NDArray[np.int64]] = {}
    with progress.task("calibration: histograms", len(groups) * len(images)) as task:
        for group in groups:
            outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in group]
            network = _Network(with_outputs(model, [], outputs), options)
            for image in images:
                for name, values in zip(group, network.run(image), strict=True):
                    for start in range(0, values.size, _CHUNK):
                        found = magnitude_counts(values.reshape(-1)[start : start + _CHUNK], extremes[name].amax)
                        counts[name] = counts[name] + found if name in counts else found
                task.advance()
    return {name: Histogram(counts[name], found.amax) for name, found in extremes.items()}


def _groups(extremes: Mapping[str, Extremes], limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, found in extremes.items():
        if group and size + 4 * found.elements > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += 4 * found.elements
    yield group


class _Network:
    """A session that computes all outputs for one image."""

    def __init__(self, model: onnx.ModelProto, options: CalibrationOptions) -> None:
        try:
            # Without the arena, which keeps the largest of every size, and images differ in size.
            self._session = cpu_session(model, RuntimeOptions(threads=options.threads).thread_count, arena=False)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            reason = " ".join(str(error).split())[:300]
            raise InvalidInputError(f"the network cannot be calibrated: {reason}") from error
        self._input = self._session.get_inputs()[0].name

    def run(self, image: NDArray[np.uint8]) -> list[Any]:
        values: list[Any] = self._session.run(None, {self._input: image[None]})
        return values


def _check(model: onnx.ModelProto, tensors: Sequence[str], images: Sequence[NDArray[np.uint8]]) -> None:
    if not len(images):
        raise InvalidInputError("calibration needs at least one image; got none")
    if not tensors:
        raise InvalidInputError("calibration needs at least one tensor; got none")
    known = {value.name for value in model.graph.input} | {name for node in model.graph.node for name in node.output}
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise InvalidInputError(f"the network has no tensors {', '.join(unknown[:5])}; name tensors of its graph")
