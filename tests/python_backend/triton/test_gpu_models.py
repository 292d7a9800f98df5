# SPDX-License-Identifier: Apache-2.0
"""The served models on the emulated device, against those of the CPU on the same requests.

Triton is a stand-in; the network is one whose map is the red channel.
"""

import importlib.util
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import bars_recogniser
import numpy as np
import onnx
import pytest
from cuda_emulator import EmulatedDevice, require_compiler
from numpy.typing import NDArray
from PIL import Image
from served_models import LARGE, NO_WORDS, ONE_WORD, TALL, TOWER, TWO_WORDS, TinyNetwork, large, page, png

from ocdserve.backend import Bundle, DetectorSpec, NetworkSpec, PostprocessParams, ResizePolicy
from ocdserve.backend.device import cuda
from ocdserve.backend.device.buffers import ForeignBuffer
from ocdserve.backend.device.dlpack import DeviceTensor
from ocdserve.backend.device.protocol import DeviceMemoryError
from ocdserve.backend.gpu import reader as gpu_reader
from ocdserve.backend.network import load as loading
from ocdserve.backend.serve.process.health import DIRECTORY_VARIABLE, take_failures
from ocdserve.backend.spec.bundle import RecogniserBundle
from ocdserve.backend.spec.recogniser_spec import RecogniserSpec, WidthPolicy
from ocdserve.backend.stages.rectify import rectify
from ocdserve.contract import MODELS, UnavailableError

FAKES = Path(__file__).resolve().parents[2] / "fakes"
CLASSES = {
    "ocdnet_fused": "ServedFused",
    "ocdnet_preprocess": "ServedPreprocess",
    "ocdnet_network": "ServedNetwork",
    "ocdnet_postprocess": "ServedPostprocess",
}
READING_CLASSES = {"ocr_fused": "ServedReadingFused", "ocrnet_recognise": "ServedRecognise"}


def imported(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, FAKES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Gpu(EmulatedDevice):
    """One that also takes memory by its address, as a real one does: the tensors that Triton hands over."""

    def memory_of(self, buffer: Any, where: str) -> Any:
        if isinstance(buffer, ForeignBuffer):
            return self.memory_at(buffer.pointer, where)
        return super().memory_of(buffer, where)

    def fetched(self, tensor: DeviceTensor) -> NDArray[Any]:
        """A copy on the host."""
        array, stream = np.empty(tensor.shape, tensor.dtype), self.stream()
        stream.to_host(array, tensor.buffer)
        stream.synchronize()
        stream.close()
        return array

    def sent(self, array: NDArray[Any], index: int = 3) -> DeviceTensor:
        """A copy on the device, as a tensor of the GPU with that index."""
        buffer, stream = self.allocate(array.nbytes), self.stream()
        stream.to_device(buffer, np.ascontiguousarray(array))
        stream.synchronize()
        stream.close()
        return DeviceTensor(buffer, array.shape, array.dtype, index)


class Server:
    """Makes models of one bundle on the CPU and on a GPU, and requests to them."""

    def __init__(self, triton: ModuleType, pb_utils: ModuleType, folder: Path) -> None:
        self.triton = triton
        self.pb_utils = pb_utils
        self.folder = folder
        self.gpus: list[Gpu] = []
        self.networks: list[Any] = []
        self.running: list[Any] = []

    def model(self, name: str, gpu: bool = True, in_ensemble: bool = False, **parameters: str) -> Any:
        """The initialised model of that name; one that belongs to an ensemble has a configuration with tensors."""
        model = getattr(self.triton, {**CLASSES, **READING_CLASSES}[name])()
        values = {"bundle": "bundle", "threads": "1", "runtime": "onnxruntime"}
        if gpu:
            values = {"bundle": "bundle", "gpu": "true", "slots": "2", "runtime": "tensorrt"}
        values |= parameters
        config: dict[str, Any] = {"name": name}
        config["parameters"] = {key: {"string_value": value} for key, value in values.items()}
        if in_ensemble:
            config["input"] = [{"name": spec.name} for spec in MODELS[name].inputs]
            config["output"] = [{"name": spec.name} for spec in MODELS[name].outputs]
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(self.folder),
                "model_instance_kind": "GPU",
                "model_instance_device_id": "3",
            }
        )
        self.running.append(model)
        return model

    def request(self, name: str, parameters: dict[str, Any] | None = None, timeout_us: int = 0, **inputs: Any) -> Any:
        """A request for all outputs; lists of bytes become BYTES tensors."""
        tensors = {
            key: np.array([[item] for item in value], object) if isinstance(value, list) else value
            for key, value in inputs.items()
        }
        return self.pb_utils.InferenceRequest(
            tensors, [spec.name for spec in MODELS[name].outputs], parameters, timeout_us
        )

    def answers(self, model: Any, *requests: Any) -> list[Any]:
        """One answer per request: its tensors, fetched from the GPU, or its error."""
        arrived = threading.Event()
        fetched: dict[int, dict[str, NDArray[Any]]] = {}
        on_gpu: dict[int, set[str]] = {}
        left = [len(requests)]
        lock = threading.Lock()
        for request in requests:
            sender = request.get_response_sender()

            def send(response: Any, flags: int = 0, sender: Any = sender, real: Any = sender.send) -> None:
                # As Triton does: it copies before `send` returns.
                tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
                on_gpu[id(sender)] = {name for name, tensor in tensors.items() if not tensor.is_cpu()}
                fetched[id(sender)] = {
                    name: tensor.as_numpy() if tensor.is_cpu() else self.gpus[-1].fetched(tensor._on_gpu)
                    for name, tensor in tensors.items()
                }
                real(response, flags)
                with lock:
                    left[0] -= 1
                    if not left[0]:
                        arrived.set()

            sender.send = send
        assert model.execute(list(requests)) is None
        assert arrived.wait(60)
        senders = [request.get_response_sender() for request in requests]
        self.on_gpu = [on_gpu[id(sender)] for sender in senders]
        return [sender.response.error() or fetched[id(sender)] for sender in senders]


@pytest.fixture(scope="module")
def red() -> ModuleType:
    return imported("red_network")


@pytest.fixture
def server(
    red: ModuleType, tmp_path: Path, tiny_network: TinyNetwork, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    require_compiler()
    spec = DetectorSpec(
        network=NetworkSpec(mean=(0, 0, 0), std=(255, 255, 255)),
        resize=ResizePolicy(kind="short_side", side=64, largest_side=256),
        postprocess=PostprocessParams(box_thresh=0.5),
    )
    Bundle(spec, tiny_network(weights=(0, 0, 1))).save(tmp_path / "model" / "bundle")
    pb_utils = imported("pb_utils")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("ocdserve.backend.triton")]:
            del sys.modules[name]

    forget()
    server = Server(importlib.import_module("ocdserve.backend.triton"), pb_utils, tmp_path / "model")

    def open_device(index: int) -> Gpu:
        assert index == 3
        server.gpus.append(Gpu(sources=red.SOURCES))
        return server.gpus[-1]

    def load(bundle: Bundle, options: Any, device: Any) -> Any:
        assert (options.runtime, options.device) == ("tensorrt", 3)
        server.networks.append(red.RedNetwork(device))
        return server.networks[-1]

    monkeypatch.setattr(cuda, "open_device", open_device)
    monkeypatch.setattr(loading, "check_gpu", lambda *arguments: None)
    monkeypatch.setattr(loading, "load_device_network", load)
    yield server
    for model in server.running:
        model.finalize()
    forget()


BANNER = png(large())
CASES: list[tuple[list[bytes], dict[str, Any]]] = [
    ([LARGE, ONE_WORD], {}),
    ([TWO_WORDS], {"box_thresh": 0.9}),
    ([NO_WORDS, TWO_WORDS, LARGE], {"polygons": True}),
    ([NO_WORDS], {}),
    ([TALL], {}),
    ([BANNER], {}),
    ([BANNER, ONE_WORD, TOWER], {"polygons": True}),
    ([LARGE, TALL, TWO_WORDS], {"polygons": True}),
]


def assert_equal(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> None:
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (values.dtype, values.shape), name
        if name == "CONTEXT":
            # The requests arrived at different times.
            assert (ours[name][:, [0, 2]].tolist(), ours[name].shape) == (values[:, [0, 2]].tolist(), values.shape)
            continue
        np.testing.assert_allclose(ours[name], values, atol=0.01 if values.dtype == np.float32 else 0, err_msg=name)


class TestFused:
    def test_requests_are_answered_as_on_the_cpu(self, server: Server) -> None:
        requests = [
            [server.request("ocdnet_fused", IMAGE=images, parameters=given) for images, given in CASES]
            for _ in range(3)
        ]
        expected = server.answers(server.model("ocdnet_fused", gpu=False), *requests[0])
        model = server.model("ocdnet_fused")
        for request in requests[1:]:
            for ours, theirs in zip(server.answers(model, *request), expected, strict=True):
                assert_equal(ours, theirs)

    def test_pages_are_chosen_and_refused_as_on_the_cpu(self, server: Server) -> None:
        stream = io.BytesIO()
        pages = [Image.open(io.BytesIO(each)) for each in (ONE_WORD, TWO_WORDS)]
        pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
        scan = stream.getvalue()
        for name in ("ocdnet_fused", "ocdnet_preprocess"):
            requests = [
                [
                    server.request(name, IMAGE=[scan], parameters={"page": 2}),
                    server.request(name, IMAGE=[scan]),
                    server.request(name, IMAGE=[scan], parameters={"page": 3}),
                ]
                for _ in range(2)
            ]
            expected = server.answers(server.model(name, gpu=False), *requests[0])
            chosen, *refused = server.answers(server.model(name), *requests[1])
            assert_equal(chosen, expected[0])
            assert [each.message() for each in refused] == [each.message() for each in expected[1:]]

    def test_requests_of_one_execution_share_batches(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        (network,) = server.networks
        network.batches.clear()
        server.answers(model, *[server.request("ocdnet_fused", IMAGE=[ONE_WORD] * 2) for _ in range(2)])
        assert set(network.batches) == {(4, 64, 128)}

    def test_every_size_of_a_batch_is_recorded_before_it_is_ready(self, server: Server) -> None:
        server.model("ocdnet_fused")
        (network,) = server.networks
        # Two batches and a recording for each of two slots.
        assert sorted(batch for batch, _, _ in network.batches) == sorted([1, 2, 4, 8] * 3 * 2)

    def test_execute_returns_before_the_answers_are_there(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        held = model._model._detector._slots
        slots = [held.get() for _ in range(2)]
        requests = [server.request("ocdnet_fused", IMAGE=[image]) for image in (ONE_WORD, TWO_WORDS)]
        for request in requests:
            assert model.execute([request]) is None
            assert request.get_response_sender().response is None
        for slot in slots:
            held.put(slot)
        model.finalize()
        server.running.clear()
        counts = [request.get_response_sender().response.output_tensors()[2].as_numpy() for request in requests]
        assert [count.tolist() for count in counts] == [[[1]], [[2]]]

    def hold(self, model: Any) -> Callable[[], None]:
        """Let one more batch begin and none end; returns what ends this. `submitted` has the requests of each batch."""
        gather, slots = model._free, model._detector._slots
        self.submitted: list[int] = []
        real = model._submit

        def submit(batch: list[Any]) -> None:
            self.submitted.append(len(batch))
            real(batch)

        model._submit = submit
        # The gatherer has the third place, for what comes first.
        for _ in range(2):
            gather.acquire()
        held = [slots.get() for _ in range(2)]

        def release() -> None:
            for slot in held:
                slots.put(slot)
            for _ in range(2):
                gather.release()

        return release

    def test_requests_that_wait_share_a_batch(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        release = self.hold(model._model)
        (network,) = server.networks
        network.batches.clear()
        requests = [server.request("ocdnet_fused", IMAGE=[image]) for image in (NO_WORDS, *[ONE_WORD, TWO_WORDS] * 4)]
        model.execute(requests[:1])
        while not self.submitted:
            time.sleep(0.01)
        for request in requests[1:]:
            model.execute([request])
        release()
        senders = [request.get_response_sender() for request in requests]
        assert all(sender.answered.wait(60) for sender in senders)
        counts = [sender.response.output_tensors()[2].as_numpy().tolist() for sender in senders]
        assert counts == [[[0]], *[[[1]], [[2]]] * 4]
        assert self.submitted == [1, 8]
        assert set(network.batches) == {(1, 64, 128), (8, 64, 128)}

    def test_a_request_that_does_not_fit_begins_the_next_batch(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        release = self.hold(model._model)
        requests = [server.request("ocdnet_fused", IMAGE=[ONE_WORD] * count) for count in (1, 3, 4, 2, 8)]
        model.execute(requests[:1])
        while not self.submitted:
            time.sleep(0.01)
        for request in requests[1:]:
            model.execute([request])
        release()
        senders = [request.get_response_sender() for request in requests]
        assert all(sender.answered.wait(60) for sender in senders)
        counts = [sender.response.output_tensors()[2].as_numpy().shape for sender in senders]
        assert counts == [(1, 1), (3, 1), (4, 1), (2, 1), (8, 1)]
        assert self.submitted == [1, 2, 1, 1]

    def test_what_would_take_too_long_is_refused_unread(self, server: Server) -> None:
        model = server.model("ocdnet_fused", queue_time_ms="1")
        server.answers(model, server.request("ocdnet_fused", IMAGE=[NO_WORDS]))
        release = self.hold(model._model)
        # Three batches are what two slots work on.
        admitted = [server.request("ocdnet_fused", IMAGE=[NO_WORDS] * 8) for _ in range(3)]
        model.execute(admitted)
        (refused,) = server.answers(model, server.request("ocdnet_fused", IMAGE=[b"hello"]))
        assert refused.code() == server.pb_utils.TritonError.UNAVAILABLE
        assert refused.message().startswith("24 images wait for ocdnet_fused")
        assert "too long for its queue time of 0.001 s" in refused.message()
        for request in admitted:
            request.cancelled = True
        time.sleep(0.06)
        release()
        assert all(request.get_response_sender().answered.wait(60) for request in admitted)
        assert isinstance(server.answers(model, server.request("ocdnet_fused", IMAGE=[NO_WORDS]))[0], dict)

    def test_what_is_overdue_while_it_waits_is_not_decoded(self, server: Server) -> None:
        server.pb_utils.MetricFamily.families.clear()
        model = server.model("ocdnet_fused")
        release = self.hold(model._model)
        first = server.request("ocdnet_fused", IMAGE=[ONE_WORD])
        late = server.request("ocdnet_fused", timeout_us=1000, IMAGE=[TWO_WORDS])
        cancelled = server.request("ocdnet_fused", IMAGE=[TWO_WORDS])
        model.execute([first])
        while not self.submitted:
            time.sleep(0.01)
        model.execute([late, cancelled])
        cancelled.cancelled = True
        time.sleep(0.06)
        release()
        model.finalize()
        server.running.clear()
        codes = [request.get_response_sender().response.error().code() for request in (late, cancelled)]
        assert codes == [server.pb_utils.TritonError.UNAVAILABLE, server.pb_utils.TritonError.CANCELLED]
        assert first.get_response_sender().response.error() is None
        durations = server.pb_utils.MetricFamily.families[0]
        assert [len(metric.observed) for metric in durations.metrics] == [1, 1]

    def test_a_bad_request_affects_only_itself(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        first, bad, several, last = server.answers(
            model,
            server.request("ocdnet_fused", IMAGE=[ONE_WORD]),
            server.request("ocdnet_fused", IMAGE=[ONE_WORD], parameters={"thresh": 2}),
            server.request("ocdnet_fused", IMAGE=[ONE_WORD, b"hello"]),
            server.request("ocdnet_fused", IMAGE=[TWO_WORDS]),
        )
        assert (first["COUNT"].tolist(), last["COUNT"].tolist()) == ([[1]], [[2]])
        assert bad.code() == several.code() == server.pb_utils.TritonError.INVALID_ARG
        assert several.message().startswith("image 1 of 2 (counted from 0): not an image")
        assert server.answers(model, server.request("ocdnet_fused", IMAGE=[b"hello"]))[0].code() == bad.code()

    def test_both_parts_are_timed_and_detections_counted(self, server: Server) -> None:
        server.pb_utils.MetricFamily.families.clear()
        model = server.model("ocdnet_fused")
        server.answers(model, server.request("ocdnet_fused", IMAGE=[TWO_WORDS, NO_WORDS]))
        model.finalize()
        server.running.clear()
        durations, detections = server.pb_utils.MetricFamily.families[:2]
        stages = {metric.labels["stage"]: len(metric.observed) for metric in durations.metrics}
        assert stages == {"decode": 2, "gpu": 2}
        assert [sorted(metric.observed) for metric in detections.metrics] == [[0, 2]]


class TestSteps:
    @pytest.mark.parametrize("between", ["on the GPU", "on the host"])
    def test_the_steps_give_what_those_of_the_cpu_give(self, server: Server, between: str) -> None:
        def three(gpu: bool) -> list[list[dict[str, NDArray[Any]]]]:
            def passed_on(values: NDArray[Any]) -> Any:
                return server.gpus[-1].sent(values) if gpu and between == "on the GPU" else values

            prepared = server.answers(
                server.model("ocdnet_preprocess", gpu),
                *[server.request("ocdnet_preprocess", IMAGE=images, parameters=given) for images, given in CASES],
            )
            if gpu:
                assert server.on_gpu == [{"NETWORK_IMAGE"}] * len(CASES)
            network = server.model("ocdnet_network", gpu)
            maps = server.answers(
                network,
                *[
                    server.request(
                        "ocdnet_network", NETWORK_IMAGE=passed_on(each["NETWORK_IMAGE"]), FRAME=each["FRAME"]
                    )
                    for each in prepared
                ],
            )
            if gpu:
                assert server.on_gpu == [{"MAP"}] * len(CASES)
            last = server.model("ocdnet_postprocess", gpu)
            found = server.answers(
                last,
                *[
                    server.request(
                        "ocdnet_postprocess", MAP=passed_on(each["MAP"]), FRAME=one["FRAME"], parameters=given
                    )
                    for each, one, (_, given) in zip(maps, prepared, CASES, strict=True)
                ],
            )
            return [prepared, maps, found]

        for ours, theirs in zip(three(gpu=True), three(gpu=False), strict=True):
            for mine, other in zip(ours, theirs, strict=True):
                assert_equal(mine, other)

    def test_pixels_on_the_gpu_are_answered_before_triton_frees_them(self, server: Server) -> None:
        model = server.model("ocdnet_preprocess")
        pixels = server.gpus[-1].sent(np.stack([page((20, 10, 255))]))
        request = server.request("ocdnet_preprocess", PIXELS=pixels)
        model.execute([request])
        assert request.get_response_sender().response.error() is None

    def test_pixels_may_be_on_the_gpu(self, server: Server) -> None:
        images = np.stack([page((20, 10, 255), height=90, width=133), page(height=90, width=133)])
        expected = server.answers(
            server.model("ocdnet_preprocess", gpu=False), server.request("ocdnet_preprocess", PIXELS=images)
        )[0]
        model = server.model("ocdnet_preprocess")
        for pixels in (images, server.gpus[-1].sent(images)):
            assert_equal(server.answers(model, server.request("ocdnet_preprocess", PIXELS=pixels))[0], expected)

    def test_a_tensor_of_another_gpu_is_fetched_first(self, server: Server) -> None:
        model = server.model("ocdnet_network")
        pixels = page((20, 10, 255))[None]
        frame = np.array([[64, 128] * 3], np.int32)
        far = server.gpus[-1].sent(pixels, index=1)
        (answer,) = server.answers(model, server.request("ocdnet_network", NETWORK_IMAGE=far, FRAME=frame))
        np.testing.assert_array_equal(answer["MAP"], pixels[..., 0])

    def test_images_of_one_size_share_batches_also_those_of_other_requests(self, server: Server) -> None:
        model = server.model("ocdnet_network")
        (network,) = server.networks
        network.batches.clear()
        frame = np.array([[64, 128] * 3], np.int32)
        pixels = page((20, 10, 255))
        requests = [
            server.request(
                "ocdnet_network", NETWORK_IMAGE=np.stack([pixels] * count), FRAME=np.repeat(frame, count, axis=0)
            )
            for count in (1, 3)
        ]
        for answer in server.answers(model, *requests):
            np.testing.assert_array_equal(answer["MAP"], np.stack([pixels[..., 0]] * len(answer["MAP"])))
        assert network.batches == [(4, 64, 128)]

    @pytest.mark.parametrize("name", ["ocdnet_network", "ocdnet_postprocess"])
    def test_a_frame_that_does_not_fit_affects_only_its_request(self, server: Server, name: str) -> None:
        model = server.model(name)
        key = MODELS[name].inputs[0].name
        values = server.gpus[-1].sent(np.zeros((1, 64, 128, 3) if key == "NETWORK_IMAGE" else (1, 64, 128), np.uint8))
        bad = server.request(name, **{key: values, "FRAME": np.array([[64, 128, 96, 128, 96, 128]], np.int32)})
        good = server.request(name, **{key: values, "FRAME": np.array([[64, 128] * 3], np.int32)})
        refused, answer = server.answers(model, bad, good)
        assert "FRAME says 96 x 128 network pixels, more than the tensor's 64 x 128" in refused.message()
        assert isinstance(answer, dict)

    def test_a_size_that_the_network_does_not_take_affects_only_its_request(self, server: Server) -> None:
        model = server.model("ocdnet_network")
        server.networks[-1]._largest = 128
        requests = [
            server.request(
                "ocdnet_network",
                NETWORK_IMAGE=np.zeros((1, 64, width, 3), np.uint8),
                FRAME=np.array([[64, width] * 3], np.int32),
            )
            for width in (128, 160)
        ]
        good, bad = server.answers(model, *requests)
        assert isinstance(good, dict)
        assert (bad.code(), bad.message()) == (
            server.pb_utils.TritonError.INVALID_ARG,
            "images of at most 128 pixels a side; got 64 x 160",
        )

    @pytest.mark.parametrize("name", ["ocdnet_network", "ocdnet_postprocess"])
    def test_what_is_overdue_is_not_computed(self, server: Server, name: str) -> None:
        key, frame = MODELS[name].inputs[0].name, np.array([[64, 128] * 3], np.int32)
        values = np.zeros((1, 64, 128, 3) if key == "NETWORK_IMAGE" else (1, 64, 128), np.uint8)
        late, good = server.answers(
            server.model(name),
            server.request(name, **{key: values, "FRAME": frame, "CONTEXT": np.array([[1]])}),
            server.request(name, **{key: values, "FRAME": frame, "CONTEXT": np.array([[0]])}),
        )
        assert late.code() == server.pb_utils.TritonError.UNAVAILABLE
        assert isinstance(good, dict)

    @pytest.mark.parametrize("name", ["ocdnet_network", "ocdnet_postprocess"])
    def test_a_step_does_not_continue_the_work_of_another_detector(self, server: Server, name: str) -> None:
        (prepared,) = server.answers(
            server.model("ocdnet_preprocess"), server.request("ocdnet_preprocess", IMAGE=[ONE_WORD])
        )
        key, frame = MODELS[name].inputs[0].name, np.array([[64, 128] * 3], np.int32)
        values = np.zeros((1, 64, 128, 3) if key == "NETWORK_IMAGE" else (1, 64, 128), np.uint8)
        same, other = server.answers(
            server.model(name),
            *[
                server.request(
                    name, **{key: values, "FRAME": frame, "CONTEXT": prepared["CONTEXT"] + np.array([0, 0, 0, more])}
                )
                for more in (0, 1)
            ],
        )
        assert isinstance(same, dict)
        assert other.code() == server.pb_utils.TritonError.UNAVAILABLE

    def test_preprocessing_names_the_bad_image(self, server: Server) -> None:
        model = server.model("ocdnet_preprocess")
        (bad,) = server.answers(model, server.request("ocdnet_preprocess", IMAGE=[ONE_WORD, b"hello"]))
        assert bad.message().startswith("image 1 of 2 (counted from 0): not an image")
        (none,) = server.answers(model, server.request("ocdnet_preprocess"))
        assert "exactly one of the inputs" in none.message()

    def test_nothing_stays_on_the_gpu(self, server: Server) -> None:
        self.test_the_steps_give_what_those_of_the_cpu_give(server, "on the host")
        left = []
        for gpu in server.gpus:
            close = gpu.close
            gpu.close = lambda gpu=gpu, close=close: (left.append(gpu.allocated), close())  # type: ignore[method-assign]
        for model in server.running:
            model.finalize()
        server.running.clear()
        assert left == [0, 0, 0]

    def test_the_queue_of_an_ensemble_is_that_of_all_its_steps(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "health").mkdir()
        monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "health"))
        network = server.model("ocdnet_network", in_ensemble=True)
        first = server.model("ocdnet_preprocess", in_ensemble=True, queue_size="1")

        def admitted() -> list[dict[str, Any]]:
            asked = [server.request("ocdnet_preprocess", IMAGE=[ONE_WORD]) for _ in range(20)]
            return [each for each in server.answers(first, *asked) if isinstance(each, dict)]

        waiting = admitted()
        assert 0 < len(waiting) < 20
        assert admitted() == []
        newest = max(waiting, key=lambda each: each["CONTEXT"][0, 1])
        # The network refuses it, because it is overdue: it, and whatever is older, has left.
        context = newest["CONTEXT"] * [0, 1, 1, 1] + [1, 0, 0, 0]
        inputs = {key: newest[key] for key in ("NETWORK_IMAGE", "FRAME")}
        (late,) = server.answers(network, server.request("ocdnet_network", **inputs, CONTEXT=context))
        assert late.code() == server.pb_utils.TritonError.UNAVAILABLE
        assert len(admitted()) == len(waiting)


class TestFailure:
    def ask(self, server: Server, name: str) -> Any:
        frame = np.array([[64, 128] * 3], np.int32)
        inputs: dict[str, Any] = {
            "ocdnet_fused": {"IMAGE": [ONE_WORD]},
            "ocdnet_preprocess": {"IMAGE": [ONE_WORD]},
            "ocdnet_network": {"NETWORK_IMAGE": page()[None], "FRAME": frame},
            "ocdnet_postprocess": {"MAP": page()[None, ..., 0], "FRAME": frame},
        }[name]
        return server.request(name, **inputs)

    @pytest.mark.parametrize("name", sorted(CLASSES))
    def test_a_gpu_that_failed_makes_the_model_unready_and_is_reported_once(
        self, server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "health").mkdir()
        monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "health"))
        model = server.model(name)
        gpu = server.gpus[-1]
        assert isinstance(server.answers(model, self.ask(server, name))[0], dict)
        assert model.is_ready()
        from cuda_emulator import KernelFault

        gpu._failure = KernelFault("an illegal memory access was encountered")
        for _ in range(2):
            (failed,) = server.answers(model, self.ask(server, name))
            assert failed.code() == server.pb_utils.TritonError.INTERNAL
            assert "fault of the server" in failed.message()
        # The model tells the launcher after it has answered.
        for thread in threading.enumerate():
            if thread.name.startswith("ThreadPoolExecutor"):
                thread.join(0.1)
        assert not model.is_ready()
        (reason,) = take_failures(tmp_path / "health").values()
        assert reason.startswith("the GPU failed (")
        assert "illegal memory access" in reason

    def test_too_little_memory_is_reported_as_temporary(self, server: Server) -> None:
        model = server.model("ocdnet_fused")
        gpu = server.gpus[-1]
        before, gpu._memory_size = gpu._memory_size, 1
        (refused,) = server.answers(model, server.request("ocdnet_fused", IMAGE=[LARGE]))
        assert refused.code() == server.pb_utils.TritonError.UNAVAILABLE
        gpu._memory_size = before
        assert model.is_ready()
        assert isinstance(server.answers(model, server.request("ocdnet_fused", IMAGE=[LARGE]))[0], dict)

    def test_a_failure_of_the_library_leaves_the_model_ready(self, server: Server) -> None:
        model = server.model("ocdnet_network")

        def fails(stream: Any) -> None:
            raise UnavailableError("the library cannot")

        server.networks[-1].fault = fails
        (failed,) = server.answers(model, self.ask(server, "ocdnet_network"))
        assert failed.code() == server.pb_utils.TritonError.INTERNAL
        assert model.is_ready()
        assert not isinstance(failed, DeviceMemoryError)


def test_models_on_the_cpu_are_always_ready(server: Server) -> None:
    assert server.model("ocdnet_postprocess", gpu=False).is_ready()
    assert server.gpus == []


class TestReading:
    """Lines of 16 pixels whose letters the first row's red says, as the network in `red_network` reads them."""

    QUADS = np.array([[[[20, 8], [68, 8], [68, 24], [20, 24]], [[10, 40], [74, 40], [74, 56], [10, 56]]]], np.float32)

    @pytest.fixture
    def reading(self, server: Server, red: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
        onnx.save(bars_recogniser.network(height=16), tmp_path / "bars.onnx")
        spec = RecogniserSpec(
            model="bars.onnx",
            height=16,
            characters=("a", "b", "c", " ", "d"),
            widths=WidthPolicy(((64, 16), (256, 32)), 16),
            min_text_score=0.0,
        )
        RecogniserBundle(spec, tmp_path / "bars.onnx").save(server.folder / "recogniser")

        def load(bundle: RecogniserBundle, options: Any, device: Any) -> Any:
            assert (options.runtime, options.device) == ("tensorrt", 3)
            return red.RedRecogniser(device, 6)

        monkeypatch.setattr(loading, "load_device_recogniser", load)
        monkeypatch.setattr(gpu_reader, "load_device_recogniser", load)
        return server

    def expected(self, red: ModuleType, pixels: NDArray[np.uint8], quads: NDArray[np.float32]) -> list[str]:
        texts = []
        for line in rectify(pixels, quads, 16):
            classes = line.pixels[0, ::8, 0].astype(int) % 6
            kept = [int(each) for n, each in enumerate(classes) if each and (n == 0 or each != classes[n - 1])]
            texts.append("".join("abc d"[each - 1] for each in kept).strip())
        return texts

    def test_lines_of_images_and_crops_are_read(
        self, reading: Server, red: ModuleType, rng: np.random.Generator
    ) -> None:
        pixels = rng.integers(0, 256, (64, 128, 3), np.uint8)
        model = reading.model("ocrnet_recognise", recogniser="recogniser")
        given = {"parameters": {"direction": False, "words": True}}
        crops = np.stack([pixels[8:24, 20:68], pixels[40:56, 10:58]])[None]
        whole, cut = reading.answers(
            model,
            reading.request("ocrnet_recognise", **given, PIXELS=pixels[None], QUADS=self.QUADS),
            reading.request(
                "ocrnet_recognise", **given, CROPS=crops, CROP_SIZES=np.full((1, 2, 2), (16, 48), np.int32)
            ),
        )
        assert whole["COUNT"].tolist() == [[2]] and cut["COUNT"].tolist() == [[2]]
        texts = [text.decode() for text in whole["TEXTS"][0]]
        assert texts == self.expected(red, pixels, self.QUADS[0])
        assert cut["TEXTS"][0, 0].decode() == texts[0]

    def test_the_fused_model_answers_with_texts(self, reading: Server, rng: np.random.Generator) -> None:
        pixels = rng.integers(0, 256, (64, 128, 3), np.uint8)
        pixels[..., 0] = 0
        pixels[10:22, 20:60, 0] = 230
        model = reading.model("ocr_fused", recogniser="recogniser")
        answer, wrong = reading.answers(
            model,
            reading.request("ocr_fused", {"direction": False}, IMAGE=[png(pixels), NO_WORDS]),
            reading.request("ocr_fused", {"words": 7}, IMAGE=[png(pixels)]),
        )
        assert answer["COUNT"].tolist() == [[1], [0]]
        assert answer["SIZE"].tolist()[0] == [64, 128]
        (text,) = self.texts_in(answer)
        assert text and set(text) <= set("abc d")
        assert answer["WORD_COUNTS"].tolist()[0] == [-1]
        assert "'words' must be true or false" in wrong.message()

    def texts_in(self, answer: dict[str, Any]) -> list[str]:
        return [text.decode() for text in answer["TEXTS"][0]]
