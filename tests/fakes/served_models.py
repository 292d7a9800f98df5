# SPDX-License-Identifier: Apache-2.0
"""The served models in this process: requests to them, their answers, and small pictures with words."""

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend import Bundle, ResizePolicy
from ocdserve.contract import MODELS

TinyNetwork = Callable[..., Path]
Pixels = NDArray[np.uint8]

NUMPY_DTYPES = {"BYTES": np.object_, "FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
RESIZE = ResizePolicy(kind="short_side", side=64, largest_side=256)
CLASSES = {
    "ocdnet_fused": "FusedModel",
    "ocdnet_preprocess": "PreprocessModel",
    "ocdnet_network": "NetworkModel",
    "ocdnet_postprocess": "PostprocessModel",
}
# Of the module `reading`.
READING_CLASSES = {"ocr_fused": "ReadingFusedModel", "ocrnet_recognise": "RecogniseModel"}


class Server:
    """Makes models of one bundle, and requests to them."""

    def __init__(self, models: ModuleType, pb_utils: ModuleType, folder: Path, bundle: Bundle) -> None:
        self.models = models
        self.pb_utils = pb_utils
        self.folder = folder
        self.bundle = bundle
        self.running: list[Any] = []
        self.options = importlib.import_module("ocdserve.backend.triton.options").ServingOptions

    def model(self, name: str, in_ensemble: bool = False, **parameters: str) -> Any:
        """The initialised model of that name; one that belongs to an ensemble has a configuration with tensors."""
        if name in READING_CLASSES:
            made = importlib.import_module("ocdserve.backend.triton.reading")
            model = getattr(made, READING_CLASSES[name])()
        else:
            model = getattr(self.models, CLASSES[name])()
        values = {"bundle": "bundle", "threads": "1", **parameters}
        config: dict[str, Any] = {"name": name}
        config["parameters"] = {key: {"string_value": value} for key, value in values.items()}
        if in_ensemble:
            config["input"] = [{"name": spec.name} for spec in MODELS[name].inputs]
            config["output"] = [{"name": spec.name} for spec in MODELS[name].outputs]
        model.initialize({"model_config": json.dumps(config), "model_repository": str(self.folder)})
        self.running.append(model)
        return model

    def request(
        self,
        name: str,
        outputs: list[str] | None = None,
        parameters: dict[str, Any] | None = None,
        timeout_us: int = 0,
        **inputs: Any,
    ) -> Any:
        """A request for some outputs, all without `outputs`; lists of bytes become BYTES tensors."""
        tensors = {
            key: np.array([[item] for item in value], object) if isinstance(value, list) else value
            for key, value in inputs.items()
        }
        wanted = [spec.name for spec in MODELS[name].outputs] if outputs is None else outputs
        return self.pb_utils.InferenceRequest(tensors, wanted, parameters, timeout_us)

    def answers(self, model: Any, name: str, *requests: Any) -> list[dict[str, NDArray[Any]] | Any]:
        """One answer per request: its tensors, checked against the contract, or its error."""
        assert model.execute(list(requests)) is None
        senders = [request.get_response_sender() for request in requests]
        assert all(sender.answered.wait(30) for sender in senders)
        responses = [sender.response for sender in senders]
        specs = {spec.name: spec for spec in MODELS[name].outputs}
        answers: list[Any] = []
        for response in responses:
            if response.error() is not None:
                answers.append(response.error())
                continue
            tensors = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
            for key, array in tensors.items():
                assert array.dtype == NUMPY_DTYPES[specs[key].dtype], key
                assert array.ndim == 1 + len(specs[key].dims), key
                assert all(dim in (-1, side) for dim, side in zip(specs[key].dims, array.shape[1:], strict=True)), key
            assert len({len(array) for array in tensors.values()}) == 1
            answers.append(tensors)
        return answers

    def assert_invalid(self, answer: Any) -> str:
        """It is an error of the client; returns its message."""
        assert answer.code() == self.pb_utils.TritonError.INVALID_ARG, answer.message()
        return str(answer.message())


def page(*words: tuple[int, int, int], height: int = 64, width: int = 128) -> Pixels:
    """Black, with words of 40 x 10 pixels at (x, y) in a brightness."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y, brightness in words:
        pixels[y : y + 10, x : x + 40] = brightness
    return pixels


def large(height: int = 129, width: int = 1290) -> Pixels:
    """Black, with two words of five letters of 29 x 90 pixels, one apart: in the overview each word is one text."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x in (*range(301, 450, 30), *range(901, 1050, 30)):
        pixels[20:110, x : x + 29] = 255
    return pixels


def png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


ONE_WORD = png(page((20, 10, 255)))
TWO_WORDS = png(page((20, 10, 204), (70, 40, 255)))
NO_WORDS = png(page())
LARGE = png(page((20, 10, 255), (20, 80, 230), (120, 150, 250), height=192, width=224))
# 1:15, in three tiles or more: a word of 20 x 40 pixels every 100, the last across the end of the second tile.
TALL = png(np.rot90(page(*((x, 20, 255) for x in range(30, 800, 100)), height=54, width=840)).copy())
TOWER = png(np.rot90(large()).copy())
ALL_BUT_SIZE = ("QUADS", "SCORES", "COUNT")


def tiff(*encoded: bytes) -> bytes:
    """A TIFF of these PNG files, one per page."""
    first, *others = (Image.open(io.BytesIO(each)) for each in encoded)
    stream = io.BytesIO()
    first.save(stream, "TIFF", save_all=True, append_images=others)
    return stream.getvalue()


def counts_of(pb_utils: ModuleType, name: str) -> dict[tuple[str, ...], float]:
    """Values of a family's metrics that are not 0, by the values of their labels, over all processes."""
    families = [family for family in pb_utils.MetricFamily.families if family.name == name]
    return {tuple(one.labels.values()): one.total for family in families for one in family.metrics if one.total}
