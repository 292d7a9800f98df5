# SPDX-License-Identifier: Apache-2.0
"""Networks that see many sizes: memory is bounded, maps stay the same, and every request is answered."""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bars_recogniser
import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray

from ocdserve.backend import Bundle, DetectorSpec
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.recogniser import load_recogniser
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec
from ocdserve.contract import InvalidInputError

TinyNetwork = Callable[..., Path]

# Prints the resident memory in MB after each network size.
PROGRAM = """
import json, sys
import numpy as np
from ocdserve.backend import Bundle
from ocdserve.backend.network import openvino
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions

runtime, most, sizes = json.load(sys.stdin)
openvino._MOST_SIZES = most or openvino._MOST_SIZES
network = load_network(Bundle.load(), RuntimeOptions(runtime, threads=1))
for size in sizes:
    network.infer([np.full((*size, 3), 255, np.uint8)])
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(int(status["VmRSS"].split()[0]) * 1024 / 1e6)
"""


def growth_mb(runtime: str, first: int, sizes: list[tuple[int, int]], most: int | None = None) -> float:
    """What the default network takes for sizes, at the most, above what it takes for the first ones of them."""
    given = json.dumps((runtime, most, random.Random(1).sample(sizes, len(sizes))))
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, check=True)
    resident = [float(line) for line in done.stdout.split()]
    return max(resident[first - 1 :]) - resident[first - 1]


def test_openvino_keeps_memory_for_a_number_of_sizes() -> None:
    # Without the limit it is 130 MB.
    assert growth_mb("openvino", 6, list(itertools.product(range(32, 193, 32), repeat=2)), most=6) < 80


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_200_sizes_take_at_most_300_mb_more_than_20(runtime: str) -> None:
    sides = itertools.product(range(16, 3000, 16), repeat=2)
    sizes = sorted({Bundle.load().spec.resize.sizes(*size)[0] for size in sides})
    assert len(sizes) > 400
    assert growth_mb(runtime, 20, random.Random(1).sample(sizes, 200)) < 300


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is compiled, with room for two sizes."""
    compiled: list[Any] = []
    compile_model = openvino.Core.compile_model

    def recording(*arguments: Any) -> Any:
        compiled.append(arguments)
        return compile_model(*arguments)

    monkeypatch.setattr(openvino.Core, "compile_model", recording)
    monkeypatch.setattr("ocdserve.backend.network.openvino._MOST_SIZES", 2)
    # The trial's size would count too.
    monkeypatch.setattr("ocdserve.backend.network.load._tried", lambda network, *_: network)
    return compiled


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_maps_are_the_same_bit_for_bit_after_a_network_is_compiled_again(compilations: list[Any]) -> None:
    network = load_network(Bundle.load(), RuntimeOptions("openvino", threads=1, map_type="float32"))
    images = [noise(64, 64), noise(64, 96), noise(96, 64)]
    before = network.infer(images[:2])
    assert len(compilations) == 1
    before += network.infer(images[2:])
    assert len(compilations) == 2
    for image, expected in zip(images, before, strict=True):
        np.testing.assert_array_equal(network.infer([image])[0], expected)
    assert len(compilations) == 3
    assert np.ptp(before[0]) > 0


def test_sizes_that_are_kept_do_not_compile_again(compilations: list[Any], tiny_network: TinyNetwork) -> None:
    network = load_network(Bundle(DetectorSpec(), tiny_network()), RuntimeOptions("openvino", threads=1))
    for _ in range(3):
        network.infer([noise(32, 32), noise(32, 64), noise(32, 32)])
    assert len(compilations) == 1


def test_a_network_is_compiled_again_without_its_file(compilations: list[Any], tiny_network: TinyNetwork) -> None:
    path = tiny_network()
    network = load_network(Bundle(DetectorSpec(), path), RuntimeOptions("openvino", threads=1))
    path.unlink()
    assert len(network.infer([noise(32, side) for side in (32, 64, 96)])) == 3
    assert len(compilations) == 2


@pytest.mark.parametrize("streams", [1, 3])
def test_threads_get_their_own_answers_while_a_network_is_compiled_again(
    streams: int, compilations: list[Any], tiny_network: TinyNetwork
) -> None:
    options = RuntimeOptions("openvino", threads=streams, streams=streams)
    network = load_network(Bundle(DetectorSpec(), tiny_network(weights=(0.2, 0.3, 0.4))), options)
    images = [noise(32, 32 * side) for side in range(1, 6)] * 5
    expected = [network.infer([image])[0] for image in images[:5]] * 5
    compilations.clear()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda image: network.infer([image])[0], images, timeout=60))
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(answers, expected, strict=True))
    assert len(compilations) > 3


def test_after_a_compilation_that_fails_the_next_request_tries_again(
    compilations: list[Any], tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_network(Bundle(DetectorSpec(), tiny_network()), RuntimeOptions("openvino", threads=1))
    known, other = noise(32, 32), noise(32, 96)
    expected = network.infer([known, noise(32, 64)])[0]

    def out_of_memory(*_: Any) -> Any:
        raise RuntimeError("std::bad_alloc")

    with monkeypatch.context() as failing:
        failing.setattr(openvino.Core, "compile_model", out_of_memory)
        for image in (other, known):
            with pytest.raises(InvalidInputError, match=r"OpenVINO cannot compile model\.onnx: std::bad_alloc"):
                network.infer([image])
    np.testing.assert_array_equal(network.infer([known])[0], expected)
    assert network.infer([other])[0].shape == (32, 96)


def test_lines_read_the_same_after_a_recogniser_is_compiled_again(
    compilations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocdserve.backend.network.openvino._MOST_WIDTHS", 2)
    onnx.save(bars_recogniser.network(), tmp_path / "bars.onnx")
    bundle = RecogniserBundle(RecogniserSpec(characters=("r", "g", "b")), tmp_path / "bars.onnx")
    network = load_recogniser(bundle, RuntimeOptions("openvino", threads=1))
    assert len(compilations) == 1
    # The trial's width counts too.
    lines = [bars_recogniser.line("rgb" * count) for count in (1, 2, 3)]
    together = network.infer(lines)
    assert len(compilations) == 2
    for line, steps in zip(lines, together, strict=True):
        (alone,) = network.infer([line])
        np.testing.assert_array_equal(alone.classes, steps.classes)
        np.testing.assert_array_equal(alone.probabilities, steps.probabilities)
    assert len(compilations) > 2
