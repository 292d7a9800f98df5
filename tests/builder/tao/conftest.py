# SPDX-License-Identifier: Apache-2.0
"""An exported network whose answer is known, and pictures that it answers for."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import yaml

if TYPE_CHECKING:
    from numpy.typing import NDArray

BlueNetwork = Callable[..., Path]
Ocdnet = Callable[..., "Run"]

# TAO's mean of the first channel, blue in BGR, over 255.
_BLUE_MEAN = 122.67891434 / 255


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Raw networks are not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCDSERVE_ONNX_CACHE", str(tmp_path_factory.mktemp("onnx-cache")))
        yield


@dataclass(frozen=True)
class Run:
    """What an action has done: its exit code and its result files and messages.

    Attributes:
        code: 0 or 1.
        folder: Where its results are.
        messages: Warnings and the error, one per line.
        kpi: Figures of its result.
    """

    code: int
    folder: Path
    messages: str
    kpi: Any = None

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text("utf-8"))


@pytest.fixture
def blue_network(tmp_path: Path) -> BlueNetwork:
    """Writer of ONNX files as TAO exports them, whose probability is the first channel they get: blue in BGR.

    Args of the writer: the (height, width) of a static input.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def write(size: tuple[int, int] | None = None, name: str = "blue.onnx") -> Path:
        height, width = size or ("H", "W")
        weights = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
        graph = helper.make_graph(
            [helper.make_node("Conv", ["input", "w", "b"], ["pred"], "head", kernel_shape=[1, 1])],
            "blue",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, height, width])],
            [helper.make_tensor_value_info("pred", TensorProto.FLOAT, ["batch", 1, height, width])],
            [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([_BLUE_MEAN], np.float32), "b")],
        )
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
        return path

    return write


@pytest.fixture
def blue_bundle(blue_network: BlueNetwork, tmp_path: Path) -> Path:
    """The network of `blue_network` as a bundle with TAO's preprocessing, which opens faster than an ONNX file."""
    from ocdserve.backend import Bundle
    from ocdserve.backend.spec.presets import PRESETS

    folder = tmp_path / "blue.bundle"
    Bundle(PRESETS["ocdnet"], blue_network()).save(folder)
    return folder


@pytest.fixture
def ocdnet(tmp_path: Path) -> Ocdnet:
    """Runs an action on the defaults with `dotted.key=value` over them, without the command's reading of specs.

    Its results go to `results` in the test's folder.
    """
    from ocdserve.builder.progress import SILENT
    from ocdserve.builder.tao.actions import ACTIONS, Context
    from ocdserve.builder.tao.spec import Spec
    from ocdserve.builder.tao.status import StatusLog
    from ocdserve.contract import OcdserveError

    def run(action: str, *overrides: str) -> Run:
        folder = tmp_path / "results"
        spec: Any = Spec()
        for override in overrides:
            key, _, value = override.partition("=")
            spec = _with(spec, key.split("."), yaml.safe_load(value))
        messages: list[str] = []
        context = Context(folder, StatusLog(folder), SILENT, messages.append, messages.append)
        try:
            result = ACTIONS[action].run(spec, context)
        except OcdserveError as error:
            return Run(1, folder, "\n".join([*messages, str(error)]))
        return Run(0, folder, "\n".join(messages), result.kpi)

    return run


def _with(section: Any, keys: Sequence[str], value: Any) -> Any:
    """A section of the spec with one value replaced, in the type that the loader would give it."""
    from ocdserve.builder.tao.spec import PreProcess

    if len(keys) > 1:
        value = _with(getattr(section, keys[0]), keys[1:], value)
    elif keys[0] == "pre_processes":
        value = tuple(PreProcess(**step) for step in value)
    elif isinstance(value, list):
        value = tuple(value)
    return dataclasses.replace(section, **{keys[0]: value})


def picture(path: Path, words: Sequence[tuple[int, int, int, int, float]], size: tuple[int, int] = (256, 160)) -> Path:
    """Write a PNG, size (width, height), whose blue channel is text of a probability at (x, y, width, height)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for x, y, width, height, value in words:
        pixels[y : y + height, x : x + width] = (round(value * 255), 90, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def label(folder: Path, stem: str, lines: Sequence[str]) -> Path:
    """Write gt/gt_<stem>.txt."""
    path = folder / "gt" / f"gt_{stem}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def line_of(quad: "NDArray[Any] | Sequence[Sequence[float]]", text: str) -> str:
    """A line of a label file."""
    return f"{','.join(f'{value:g}' for value in np.asarray(quad).reshape(-1))},{text}"


def random_data_set(folder: Path, images: int, seed: int) -> Path:
    """Images of several sizes with turned words, and labels that fit, nearly fit, are don't-care, or are of nothing."""
    random = np.random.default_rng(seed)
    for index in range(images):
        width, height = int(random.integers(150, 420)), int(random.integers(120, 300))
        canvas = np.zeros((height, width, 3), np.uint8)
        lines = []
        for _ in range(int(random.integers(1, 9))):
            centre = (float(random.uniform(20, width - 20)), float(random.uniform(15, height - 15)))
            size = (float(random.uniform(25, 80)), float(random.uniform(8, 20)))
            angle = float(random.choice([0, random.uniform(-40, 40)]))
            value = round(float(random.uniform(0.45, 1)) * 255)
            if random.random() < 0.9:
                region = cv2.boxPoints((centre, size, angle)).astype(np.int32)
                cv2.fillPoly(canvas, [region], (value, int(random.integers(256)), 0))
            jitter = random.uniform(-6, 6, (4, 2))
            quad = cv2.boxPoints((centre, (size[0] + 12, size[1] + 10), angle)) + jitter
            text = str(random.choice(["word", "###", "*", "a,b", ""], p=[0.6, 0.15, 0.05, 0.1, 0.1]))
            if random.random() < 0.9:
                lines.append(line_of(quad.round(1), text))
        (folder / "img").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / "img" / f"img_{index}.png"), canvas)
        label(folder, f"img_{index}", lines)
    return folder
