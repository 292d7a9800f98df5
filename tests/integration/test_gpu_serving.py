# SPDX-License-Identifier: Apache-2.0
"""The fused model for a GPU in the real server, its kernels executed by the emulator: there is no GPU here.

What only a GPU can show, tensors that pass between the steps in its memory, is not here.
"""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_emulator import require_compiler
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ocdserve.backend import Bundle, Detector, DetectorSpec, NetworkSpec, ResizePolicy
from ocdserve.backend.network.load import load_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.publish.repository import PublishOptions, publish
from ocdserve.backend.serve import TritonServer
from ocdserve.client import TextDetector
from ocdserve.contract import InvalidInputError, OcdserveError
from ocdserve.results.detections import Detections

pytestmark = pytest.mark.triton

TESTS = Path(__file__).resolve().parents[1]
RunningServer = Callable[..., AbstractContextManager[TritonServer]]

# An image of this brightness makes the GPU fail.
MODEL = """
import sys
sys.path[:0] = [{emulator!r}, {fakes!r}]
import numpy as np
import red_network
from cuda_emulator import EmulatedDevice
from ocdserve.backend.device import cuda
from ocdserve.backend.network import load as opening
from pathlib import Path


def load_red(bundle, options, device):
    network = red_network.RedNetwork(device)
    scratch = device.allocate(16)

    def illegal(stream):
        if Path({flag!r}).exists():
            stream.launch(network._kernel, (1, 1, 1), (256, 1, 1), [scratch, scratch, np.int32(256)])

    network.fault = illegal
    return network


opening.check_gpu = lambda *arguments: None
cuda.open_device = lambda index: EmulatedDevice(sources=red_network.SOURCES)
opening.load_device_network = load_red

from ocdserve.backend.triton import ServedFused as TritonPythonModel
"""


def png(words: list[tuple[int, int, int]], height: int = 64, width: int = 128) -> bytes:
    """Black, with words of 40 x 10 pixels at (x, y) in a brightness."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y, brightness in words:
        pixels[y : y + 10, x : x + 40] = brightness
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [
    png([(20, 10, 255)]),
    png([(20, 10, 204), (70, 40, 255)]),
    png([]),
    png([(20, 10, 255), (20, 80, 230), (120, 150, 250)], height=192, width=224),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network whose map is the red channel."""
    folder = tmp_path_factory.mktemp("bundle")
    weights = numpy_helper.from_array(np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1), "weights")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weights"], ["p"], kernel_shape=[1, 1])],
        "red",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 1, "H", "W"])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "red.onnx")
    spec = DetectorSpec(
        network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)), resize=ResizePolicy(side=64, largest_side=256)
    )
    return Bundle(spec, folder / "red.onnx").save(folder / "bundle")


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> list[Detections]:
    detector = Detector(bundle, load_network(bundle, RuntimeOptions("onnxruntime", threads=1)))
    return [detector.detect(image) for image in IMAGES]


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As long as this file exists, the GPU fails."""
    return tmp_path_factory.mktemp("flag") / "fail"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, flag: Path) -> Path:
    require_compiler()
    repository = publish(PublishOptions(tmp_path_factory.mktemp("gpu") / "models", bundle.model_path.parent, gpu=True))
    fused = repository / "ocdnet_fused"
    for model in repository.iterdir():
        if model != fused:
            shutil.rmtree(model)
    config = (fused / "config.pbtxt").read_text()
    assert "KIND_GPU" in config
    (fused / "config.pbtxt").write_text(config.replace("KIND_GPU", "KIND_CPU"))
    (fused / "1" / "model.py").write_text(
        MODEL.format(emulator=str(TESTS / "emulator"), fakes=str(TESTS / "fakes"), flag=str(flag))
    )
    return repository


@pytest.fixture(scope="module")
def messages() -> list[str]:
    return []


@pytest.fixture(scope="module")
def server(repository: Path, running_server: RunningServer, messages: list[str]) -> Iterator[TritonServer]:
    with running_server(repository, messages) as running:
        yield running
        running.kill()


def assert_equal(ours: Detections, theirs: Detections) -> None:
    assert (ours.width, ours.height, len(ours)) == (theirs.width, theirs.height, len(theirs))
    np.testing.assert_allclose(ours.quads, theirs.quads, atol=0.01)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def test_clients_at_once_get_the_answers_of_the_cpu(server: TritonServer, expected: list[Detections]) -> None:
    def ask(index: int) -> None:
        with TextDetector(server.grpc_url, model="ocdnet_fused") as detector:
            for step in range(8):
                which = (index + step) % len(IMAGES)
                assert_equal(detector.detect(IMAGES[which]), expected[which])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_a_bad_request_affects_only_itself(server: TritonServer, expected: list[Detections]) -> None:
    def ask(index: int) -> Any:
        with TextDetector(server.http_url, model="ocdnet_fused") as detector:
            if index % 2:
                with pytest.raises(InvalidInputError, match="not an image"):
                    detector.detect(b"hello")
            else:
                assert_equal(detector.detect(IMAGES[1]), expected[1])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(12)))


def test_after_the_gpu_failed_the_model_is_loaded_again_in_a_process_of_its_own(
    server: TritonServer, expected: list[Detections], flag: Path, messages: list[str]
) -> None:
    (old,) = [stub.pid for stub in server.stubs() if stub.alive()]
    flag.touch()
    with TextDetector(server.grpc_url, model="ocdnet_fused") as detector:
        with pytest.raises(OcdserveError):
            # Of a size that no graph was recorded for: a graph replays what worked.
            detector.detect(png([(20, 10, 255)], height=96, width=160))
        flag.unlink()
        deadline = time.monotonic() + 20
        while True:
            try:
                found = detector.detect(IMAGES[1])
                break
            except OcdserveError:
                assert time.monotonic() < deadline, messages
                time.sleep(0.1)
    assert_equal(found, expected[1])
    (new,) = [stub.pid for stub in server.stubs() if stub.alive()]
    assert new != old
    reason = next(message for message in messages if "the GPU failed" in message)
    assert reason.startswith("ocdnet_fused: the GPU failed (")
    assert reason.endswith(f"its process {old} is ended")
