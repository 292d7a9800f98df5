# SPDX-License-Identifier: Apache-2.0
"""Convert nvOCDR's `spec.json` (of the Triton sample of NVIDIA's C++ library) to the settings of our detector.

nvOCDR feeds BGR and subtracts the blue mean from blue, unlike TAO's own BGR mode, which assigns means by channel index.
Its post-processing has the same four parameters as ours.
"""

import json
import re
from pathlib import Path
from typing import Any

from ocdserve.backend import ResizePolicy
from ocdserve.backend.spec.detector_spec import DetectorSpec, NetworkSpec
from ocdserve.backend.spec.params import PostprocessParams
from ocdserve.contract import InvalidInputError

_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
_RECOGNITION = ("ocrnet_", "upsidedown", "rotation_threshold", "font_", "input_data_format")


def import_nvocdr(path: Path) -> tuple[DetectorSpec, list[str]]:
    """Read a spec.json.

    Returns:
        The settings of the detector, without the network's file; and notes on the settings without a counterpart and
        what replaces them, a sentence each.

    Raises:
        InvalidInputError: The file cannot be read, is not such a spec, or a value is out of range.
    """
    values = _read(path)
    height, width = _size(values, path)
    notes = []
    is_tiled = bool(values.get("is_high_resolution_input", False))
    keeps_aspect = is_tiled or bool(values.get("resize_keep_aspect_ratio", False))
    if is_tiled:
        overlap = round(float(_number(values, "overlapRate", 0.5, path)) * width)
        notes.append(
            "is_high_resolution_input cuts images into tiles: ask for that with each image, "
            f"`ocdserve detect --tile {width}` or detect_tiled(tile={width}, overlap={overlap})"
        )
    if any(name.startswith(_RECOGNITION) for name in values):
        notes.append(
            "the keys of text recognition (ocrnet_..., upsidedown, font_...) were left out: this is the detector"
        )
    if "ocdnet_trt_engine_path" in values:
        notes.append(
            "the engine ocdnet_trt_engine_path was left out: an engine serves one release of TensorRT and one GPU "
            "only; build from the ONNX that it was made of"
        )
    postprocess = PostprocessParams(
        thresh=_number(values, "ocdnet_binarize_threshold", 0.3, path),
        box_thresh=_number(values, "ocdnet_polygon_threshold", 0.1, path),
        unclip_ratio=_number(values, "ocdnet_unclip_ratio", 1.5, path),
        max_candidates=int(_number(values, "ocdnet_max_candidate", 1000, path)),
    )
    detector = DetectorSpec(
        name="nvocdr",
        network=NetworkSpec(color="BGR", mean=_MEAN_BGR, std=(255.0, 255.0, 255.0)),
        resize=ResizePolicy(kind="letterbox" if keeps_aspect else "fixed", width=width, height=height),
        postprocess=postprocess,
    )
    return detector, notes


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read nvOCDR's spec {str(path)!r}: {error}") from error
    try:
        values = json.loads(text)
    except ValueError as error:
        template = re.search(r"\bOCD_INPUT_[HW]\b", text)
        hint = f" Put a number in the place of {template[0]}, as its build script does." if template else ""
        raise InvalidInputError(f"{path} is not valid JSON: {error}.{hint}") from error
    if not isinstance(values, dict) or "ocdnet_infer_input_shape" not in values:
        raise InvalidInputError(f"{path} is not an nvOCDR spec: it must be a JSON object with ocdnet_infer_input_shape")
    return values


def _size(values: dict[str, Any], path: Path) -> tuple[int, int]:
    shape = values["ocdnet_infer_input_shape"]
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int for side in shape) or shape[0] != 3:
        raise InvalidInputError(f"{path}: ocdnet_infer_input_shape must be [3, height, width]; got {shape!r}")
    return shape[1], shape[2]


def _number(values: dict[str, Any], name: str, default: float, path: Path) -> float:
    value = values.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidInputError(f"{path}: {name} must be a number; got {value!r}")
    return value
