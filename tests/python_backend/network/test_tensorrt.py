# SPDX-License-Identifier: Apache-2.0
"""The engine's network with a fake TensorRT, whose engines return the red channel; needs no GPU."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imaginary_tensorrt import WIDE, Engine, ImaginaryTensorRt, Profile
from numpy.typing import NDArray

from ocdserve.backend import Bundle, DetectorSpec
from ocdserve.backend.network.host_network import HostNetwork
from ocdserve.backend.network.load import load_device_network
from ocdserve.backend.network.options import RuntimeOptions
from ocdserve.backend.network.tensorrt import TensorRtNetwork
from ocdserve.contract import InvalidInputError, UnavailableError


def network_of(trt: ImaginaryTensorRt, runtime: Any = "tensorrt") -> TensorRtNetwork:
    return TensorRtNetwork(b"plan", runtime, trt.device, "mine")


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)


def maps_of(trt: ImaginaryTensorRt, network: TensorRtNetwork, pixels: NDArray[np.uint8], stream: Any) -> Any:
    batch, height, width, _ = pixels.shape
    source, target = trt.device.allocate(pixels.nbytes), trt.device.allocate(batch * height * width)
    stream.to_device(source, pixels)
    network.enqueue(stream, source, target, batch, height, width)
    found = trt.memory(target.pointer, batch, height, width).copy()
    source.close()
    target.close()
    return found


@pytest.mark.parametrize(
    ("batch", "parts"), [(1, [1]), (3, [3]), (4, [4]), (6, [2, 4]), (8, [4]), (9, [1, 4])], ids=str
)
def test_a_batch_larger_than_the_engine_takes_is_executed_in_parts(
    trt: ImaginaryTensorRt, batch: int, parts: list[int]
) -> None:
    pixels = noise(batch, 64, 96, 3)
    np.testing.assert_array_equal(maps_of(trt, network_of(trt), pixels, trt.device.stream()), pixels[..., 0])
    assert sorted(context._shape[0] for context in trt.contexts) == parts
    assert sum(context._shape[0] * context._executed for context in trt.contexts) == batch


def test_a_shape_is_prepared_once_for_a_stream_and_released(trt: ImaginaryTensorRt) -> None:
    network, first, second = network_of(trt), trt.device.stream(), trt.device.stream()
    for stream in (first, first, second):
        maps_of(trt, network, noise(2, 64, 64, 3), stream)
    assert len(trt.contexts) == 2
    assert len({context._memory for context in trt.contexts}) == 2
    network.release(first, 2, 64, 64)
    network.release(first, 2, 64, 64)
    assert trt.device.allocated == 2 * 64 * 64 * 3 * 10
    maps_of(trt, network, noise(2, 64, 64, 3), first)
    assert len(trt.contexts) == 3
    network.close()
    assert trt.device.allocated == 0


def test_shapes_of_one_stream_share_memory_and_a_larger_one_leaves_theirs_in_place(trt: ImaginaryTensorRt) -> None:
    network, stream = network_of(trt), trt.device.stream()
    for batch, height in ((2, 64), (1, 64), (1, 128), (4, 128), (1, 32)):
        maps_of(trt, network, noise(batch, height, 64, 3), stream)
    memories = [context._memory for context in trt.contexts]
    assert memories[0] == memories[1] == memories[2]
    assert memories[3] == memories[4] != memories[0]
    for batch, height in ((2, 64), (1, 64), (1, 128)):
        network.release(stream, batch, height, 64)
    assert trt.device.allocated == 4 * 128 * 64 * 3 * 10


def test_the_profile_that_takes_the_shape_is_chosen(trt: ImaginaryTensorRt) -> None:
    trt.engine = Engine(trt, [((1, 32, 32), (1, 64, 64)), ((1, 32, 32), (8, 256, 256))])
    network, stream = network_of(trt), trt.device.stream()
    for height in (64, 256):
        pixels = noise(1, height, 64, 3)
        np.testing.assert_array_equal(maps_of(trt, network, pixels, stream), pixels[..., 0])
    assert [context._profile for context in trt.contexts] == [0, 1]
    network.check(8, 64, 64)
    with pytest.raises(InvalidInputError, match="32 x 32 to 64 x 64 or 32 x 32 to 256 x 256 pixels"):
        network.check(1, 288, 64)


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_profiles_the_one_tuned_nearest_is_chosen(trt: ImaginaryTensorRt, first: int) -> None:
    profiles: list[Profile] = [
        ((1, 32, 32), (8, 256, 256), (8, 128, 192)),
        ((1, 32, 32), (1, 256, 256), (1, 128, 192)),
    ]
    trt.engine = Engine(trt, profiles if first == 0 else profiles[::-1])
    network, stream = network_of(trt), trt.device.stream()
    # A batch of 9 is one of 8 and a single image.
    for batch, height in ((1, 128), (8, 128), (2, 256), (1, 32), (9, 64)):
        maps_of(trt, network, noise(batch, height, 64, 3), stream)
    chosen = {(context._shape[:2], context._profile ^ first) for context in trt.contexts}
    assert chosen == {((1, 128), 1), ((8, 128), 0), ((2, 256), 0), ((1, 32), 1), ((8, 64), 0), ((1, 64), 1)}


def test_the_distance_to_a_tuned_shape_counts_ratios(trt: ImaginaryTensorRt) -> None:
    # 4 images of 64 x 64 are twice 2 images of 64 x 64, and a quarter of 4 images of 128 x 128.
    trt.engine = Engine(trt, [((1, 32, 32), (8, 256, 256), (4, 128, 128)), ((1, 32, 32), (8, 256, 256), (2, 64, 64))])
    maps_of(trt, network_of(trt), noise(4, 64, 64, 3), trt.device.stream())
    assert trt.contexts[0]._profile == 1


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_layers_are_not_marked_for_profilers(trt: ImaginaryTensorRt, runtime: str) -> None:
    maps_of(trt, network_of(trt, runtime), noise(1, 64, 64, 3), trt.device.stream())
    assert [context.nvtx_verbosity for context in trt.contexts] == ["none"]


def test_a_shape_whose_memory_is_not_found_gets_that_of_its_profile(trt: ImaginaryTensorRt) -> None:
    trt.memory_of = lambda shape: 0
    maps_of(trt, network_of(trt), noise(2, 64, 64, 3), trt.device.stream())
    # The fake's profile up to 4 x 256 x 256, 40 bytes a pixel.
    assert trt.contexts[0]._memory_size == 10_485_760


def test_memory_that_the_library_refuses_is_not_executed_in(trt: ImaginaryTensorRt) -> None:
    network, stream = network_of(trt), trt.device.stream()
    sizes = iter([1000, 2000])  # asked for, then needed
    trt.memory_of = lambda shape: next(sizes)
    with pytest.raises(UnavailableError, match=r"cannot prepare 1 x 64 x 64 of mine: the memory is too small$"):
        maps_of(trt, network, noise(1, 64, 64, 3), stream)
    assert trt.contexts[0]._executed == 0
    assert not network._prepared and not network._scratch


def test_a_reason_is_never_that_of_an_earlier_failure(trt: ImaginaryTensorRt) -> None:
    network, stream = network_of(trt), trt.device.stream()
    trt.log("an old error")
    trt.fails = True
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"of mine: an illegal memory access was encountered$"):
            maps_of(trt, network, noise(1, 64, 64, 3), stream)
    trt.log = lambda text: None
    with pytest.raises(UnavailableError, match=r"of mine: it gave no reason$"):
        maps_of(trt, network, noise(1, 64, 64, 3), stream)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_stream_whose_shape_is_prepared_does_not_wait_for_another(trt: ImaginaryTensorRt, runtime: str) -> None:
    network, ready, fresh = network_of(trt, runtime), trt.device.stream(), trt.device.stream()
    maps_of(trt, network, noise(1, 64, 64, 3), ready)
    creating, proceed = threading.Event(), threading.Event()

    def wait() -> None:
        creating.set()
        assert proceed.wait(60)

    trt.while_creating = wait
    other = threading.Thread(target=maps_of, args=(trt, network, noise(1, 64, 64, 3), fresh))
    other.start()
    try:
        assert creating.wait(60)
        trt.while_creating = lambda: None
        done = threading.Thread(target=maps_of, args=(trt, network, noise(1, 64, 64, 3), ready))
        done.start()
        done.join(30)
        assert not done.is_alive()
    finally:
        proceed.set()
        other.join()
    assert [context._executed for context in trt.contexts] == [2, 1]


@pytest.mark.parametrize(
    ("profile", "shape", "message"),
    [
        (WIDE, (1, 288, 64), r"takes images of 32 x 32 to 256 x 256 pixels .*; got 288 x 64\. Choose a resize policy"),
        (WIDE, (1, 64, 16), r"got 64 x 16"),
        (((4, 64, 64), (4, 64, 64)), (6, 64, 64), r"takes 4 to 4 images of 64 x 64 pixels at once; 6 leave 2"),
        (((1, 20, 20), (4, 64, 64)), (5, 20, 20), r"cannot be executed in parts: .* no multiple of 256\. Send 4"),
    ],
)
def test_a_shape_outside_of_the_profile_is_refused_with_the_rule(
    trt: ImaginaryTensorRt, profile: Profile, shape: tuple[int, int, int], message: str
) -> None:
    trt.engine = Engine(trt, [profile])
    with pytest.raises(InvalidInputError, match=message):
        network_of(trt).check(*shape)
    with pytest.raises(InvalidInputError, match=message):
        maps_of(trt, network_of(trt), noise(*shape, 3), trt.device.stream())


def test_memory_that_is_not_there_leaves_nothing_behind(
    trt: ImaginaryTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, stream, allocate = network_of(trt), trt.device.stream(), trt.device.allocate

    def refuse(size: int) -> Any:
        if size > 500_000:
            raise UnavailableError("not that much")
        return allocate(size)

    monkeypatch.setattr(trt.device, "allocate", refuse)
    # The part of two images finds room, that of four does not, whichever comes first.
    source, target = allocate(6 * 64 * 64 * 3), allocate(6 * 64 * 64)
    trt.memory_of = lambda shape: 200_000 * shape[0]
    with pytest.raises(UnavailableError, match="not that much"):
        network.enqueue(stream, source, target, 6, 64, 64)
    assert trt.device.allocated == source.size + target.size


def test_an_execution_that_fails_says_why(trt: ImaginaryTensorRt) -> None:
    network, stream = network_of(trt), trt.device.stream()
    trt.fails = True
    with pytest.raises(
        UnavailableError, match=r"TensorRT 11\.4\.0 cannot execute 1 x 64 x 64 of mine: an illegal memory access"
    ):
        maps_of(trt, network, noise(1, 64, 64, 3), stream)


def test_an_engine_of_another_gpu_is_refused_with_the_reason(trt: ImaginaryTensorRt) -> None:
    with pytest.raises(
        UnavailableError, match=r"cannot load the engine of mine on this GPU \(NVIDIA Imaginary\): the plan was built"
    ):
        TensorRtNetwork(b"other", "tensorrt", trt.device, "mine")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": "float32", "y": "float32"}, r"must have the tensors NETWORK_IMAGE \(uint8\) and MAP; it has x"),
        ({"NETWORK_IMAGE": "float32", "MAP": "uint8"}, r"NETWORK_IMAGE \(float32\)"),
        ({"NETWORK_IMAGE": "uint8", "MAP": "float16"}, r"maps of uint8 or float32; got float16"),
    ],
)
def test_an_engine_of_something_else_is_refused(trt: ImaginaryTensorRt, tensors: dict[str, str], message: str) -> None:
    trt.tensors = tensors
    with pytest.raises(InvalidInputError, match=message):
        network_of(trt)


def test_tensorrt_rtx_compiles_kernels_for_the_shape_before_a_graph_could_capture_others(
    trt: ImaginaryTensorRt,
) -> None:
    network = network_of(trt, "tensorrt-rtx")
    maps_of(trt, network, noise(1, 64, 64, 3), trt.device.stream())
    config = trt.contexts[0]._strategy
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert config.get_execution_context_allocation_strategy() == "user"


class TestHostNetwork:
    def test_images_of_several_sizes_are_computed_one_by_one(self, trt: ImaginaryTensorRt) -> None:
        network = HostNetwork(trt.device, network_of(trt), streams=2)
        images = [noise(64, 96, 3), noise(32, 32, 3), noise(64, 96, 3)]
        for image, found in zip(images, network.infer(images), strict=True):
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, image[..., 0])

    def test_only_so_many_shapes_stay_prepared(self, trt: ImaginaryTensorRt) -> None:
        network = network_of(trt)
        host = HostNetwork(trt.device, network)
        shapes = [(height, width) for height in (32, 64, 96, 128, 160) for width in (32, 64, 96, 128)]
        for height, width in shapes:
            host.infer([noise(height, width, 3)])
        assert len(network._prepared) == 16
        host.infer([noise(160, 128, 3)])
        assert len(trt.contexts) == len(shapes)

    def test_it_is_freed_without_the_garbage_collector(self, trt: ImaginaryTensorRt) -> None:
        host = HostNetwork(trt.device, network_of(trt))
        host.infer([np.zeros((64, 64, 3), np.uint8)])
        alive = weakref.ref(host)
        gc.disable()
        try:
            del host
            assert alive() is None
        finally:
            gc.enable()

    def test_closing_releases_network_and_device(self, trt: ImaginaryTensorRt) -> None:
        host = HostNetwork(trt.device, network_of(trt))
        host.infer([noise(64, 96, 3)])
        for _ in range(2):
            host.close()
        assert (trt.device.allocated, trt.device.is_closed) == (0, True)


class TestLoading:
    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Bundle:
        (tmp_path / "model.plan").write_bytes(b"plan")
        return Bundle(DetectorSpec(name="mine", engine="model.plan", runtime="tensorrt"), tmp_path / "model.onnx")

    def test_the_engine_of_a_bundle_is_loaded(self, trt: ImaginaryTensorRt, bundle: Bundle) -> None:
        network = load_device_network(bundle, RuntimeOptions("tensorrt"), trt.device)
        assert isinstance(network, TensorRtNetwork)

    def test_a_map_of_another_type_is_refused(self, trt: ImaginaryTensorRt, bundle: Bundle) -> None:
        with pytest.raises(InvalidInputError, match="returns maps of uint8, and cannot return float32"):
            load_device_network(bundle, RuntimeOptions("tensorrt", map_type="float32"), trt.device)

    @pytest.mark.parametrize(
        ("engine", "built_for", "message"),
        [
            (None, None, r"must hold an engine of tensorrt .*; it holds none\. Build one: ocdserve build"),
            ("model.plan", "tensorrt-rtx", r"it holds one of tensorrt-rtx"),
        ],
    )
    def test_a_bundle_without_such_an_engine_is_refused(
        self, trt: ImaginaryTensorRt, bundle: Bundle, engine: Any, built_for: Any, message: str
    ) -> None:
        other = Bundle(DetectorSpec(engine=engine, runtime=built_for), bundle.model_path)
        with pytest.raises(InvalidInputError, match=message):
            load_device_network(other, RuntimeOptions("tensorrt"), trt.device)
