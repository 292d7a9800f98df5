# SPDX-License-Identifier: Apache-2.0
"""The files of all calls share batches of nvImageCodec, with a stand-in for the library on the emulated device."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice
from numpy.typing import NDArray

from ocdserve.backend.device.protocol import DeviceError
from ocdserve.backend.gpu import nvimagecodec
from ocdserve.backend.gpu.device_image import DeviceImage
from ocdserve.backend.gpu.nvimagecodec import NvImageCodec, gpu_backends

WIDTH = 4


class Library:
    """A file is its height, a byte, and its content, a byte per row; the library can be held and can fail.

    Attributes:
        batches: The contents of the files of each call.
        running: Is set while the library decodes.
        go_on: Cleared, the library waits inside of a call.
        fails_at: Calls with a file of this content fail.
    """

    __version__ = "0"
    NVIMGCODEC_DEVICE_CURRENT = -1

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails_at: int | None = None
        self.streams: dict[int, Any] = {}
        self.arguments: dict[str, Any] = {}
        self.BackendKind = SimpleNamespace(HW_GPU_ONLY="hardware", GPU_ONLY="cores", HYBRID_CPU_GPU="hybrid")
        self.LoadHintPolicy = SimpleNamespace(ADAPTIVE_MINIMIZE_IDLE_TIME="adaptive")
        self.SampleFormat = SimpleNamespace(I_RGB="RGB")
        self.Backend, self.DecodeParams = self._backend, self._parameters
        self.CodeStream, self.Decoder = self._open, self._decoder
        self._inside = threading.Lock()

    def _backend(self, kind: str, **hints: Any) -> tuple[Any, ...]:
        return (kind, *hints.values())

    def _parameters(self, **values: Any) -> dict[str, Any]:
        return values

    def _open(self, data: bytes) -> Any:
        if len(data) < 2:
            raise RuntimeError("Failed to get image info")
        return SimpleNamespace(height=data[0], width=WIDTH, content=data[1])

    def _decoder(self, **arguments: Any) -> Any:
        self.arguments = arguments
        return self

    def decode(self, streams: Sequence[Any], params: dict[str, Any], cuda_stream: int) -> list[Any]:
        assert params == {"apply_exif_orientation": True, "sample_format": "RGB"}
        # A decoder has one state: it takes one call at a time.
        assert self._inside.acquire(blocking=False)
        try:
            self.batches.append([stream.content for stream in streams])
            self.running.set()
            assert self.go_on.wait(30)
            self.running.clear()
            if self.fails_at in self.batches[-1]:
                raise RuntimeError("out of memory")
            return [self._image(stream, self.streams[cuda_stream]) for stream in streams]
        finally:
            self._inside.release()

    def _image(self, stream: Any, cuda_stream: Any) -> Any:
        if stream.content == 0:
            return None
        pixels = np.full((stream.height, WIDTH, 3), stream.content, np.uint8)
        buffer = cuda_stream.device.allocate(pixels.nbytes)
        # Its pixels are there when the stream has come to this point, not before.
        cuda_stream.fill(buffer, stream.content, pixels.nbytes)
        interface = {"shape": pixels.shape, "typestr": "|u1", "data": (buffer.pointer, False), "version": 3}
        return SimpleNamespace(__cuda_array_interface__=interface, buffer=buffer)


class Device(EmulatedDevice):
    """Tells the library of its streams."""

    def __init__(self, library: Library) -> None:
        super().__init__()
        self._library = library

    def stream(self) -> Any:
        stream = super().stream()
        stream.device = self  # type: ignore[attr-defined]
        self._library.streams[stream.handle] = stream
        return stream


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", library)  # type: ignore[arg-type]
    return library


@pytest.fixture
def codec(library: Library) -> Iterator[NvImageCodec]:
    codec = NvImageCodec(Device(library), threads=3)
    yield codec
    library.go_on.set()
    codec.close()


def file(content: int, height: int = 2) -> bytes:
    return bytes([height, content])


def pixels(image: Any) -> NDArray[np.uint8]:
    """What the GPU's memory holds now."""
    assert isinstance(image, DeviceImage)
    owner: Any = image.owner
    return np.asarray(owner.buffer.array((image.height, image.width, 3), np.uint8))


def contents(images: Sequence[Any]) -> list[int | None]:
    found = [None if image is None else np.unique(pixels(image)).tolist() for image in images]
    assert all(each is None or len(each) == 1 for each in found)
    return [each and each[0] for each in found]


def decoding(library: Library, codec: NvImageCodec, calls: Sequence[Sequence[bytes]]) -> list[Any]:
    """Answers to calls that all wait while the library decodes a file of content 99."""
    library.go_on.clear()
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        first = pool.submit(codec.decode, [file(99)])
        assert library.running.wait(30)
        answers = []
        for number, call in enumerate(calls, 1):
            answers.append(pool.submit(codec.decode, call))
            files = sum(len(data) == 2 for given in calls[:number] for data in given)
            wait_until(lambda files=files: len(codec._waiting) == files)  # type: ignore[misc]
        library.go_on.set()
        assert contents(first.result()) == [99]
        return [answer.result() for answer in answers]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_call_to_an_idle_decoder_is_decoded_at_once_and_as_a_whole(library: Library, codec: NvImageCodec) -> None:
    assert contents(codec.decode([file(1), file(2), file(3)])) == [1, 2, 3]
    assert codec.decode([]) == []
    assert library.batches == [[1, 2, 3]]


def test_calls_that_wait_share_a_batch_and_each_gets_its_own_images(library: Library, codec: NvImageCodec) -> None:
    found = decoding(library, codec, [[file(1), file(2)], [file(3)], [file(4), file(5), file(6)]])

    assert library.batches == [[99], [1, 2, 3, 4, 5, 6]]
    assert [contents(images) for images in found] == [[1, 2], [3], [4, 5, 6]]


def test_images_are_complete_when_a_call_returns(codec: NvImageCodec) -> None:
    # The device executes nothing before somebody waits for it, and memory is garbage until then.
    (image,) = codec.decode([file(7, height=5)])
    assert image is not None
    np.testing.assert_array_equal(pixels(image), np.full((5, WIDTH, 3), 7, np.uint8))


def test_a_batch_has_at_most_64_files(library: Library, codec: NvImageCodec) -> None:
    calls = [[file(content) for content in range(start, start + 50)] for start in (1, 101)]

    found = decoding(library, codec, calls)

    assert [len(batch) for batch in library.batches] == [1, 64, 36]
    assert [contents(images) for images in found] == [list(range(1, 51)), list(range(101, 151))]


def test_a_batch_of_large_images_has_fewer_files(
    library: Library, codec: NvImageCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvimagecodec, "_MOST_PIXELS", 40 * WIDTH)

    (found,) = decoding(library, codec, [[file(1, 20), file(2, 20), file(3, 1), file(4, 200), file(5, 1)]])

    # One that is larger than that is decoded by itself.
    assert library.batches == [[99], [1, 2], [3], [4], [5]]
    assert contents(found) == [1, 2, 3, 4, 5]


def test_a_damaged_file_harms_no_other(library: Library, codec: NvImageCodec) -> None:
    unreadable, undecodable = b"x", file(0)

    found = decoding(library, codec, [[file(1), unreadable], [undecodable, file(2)]])

    assert [contents(images) for images in found] == [[1, None], [None, 2]]
    assert library.batches == [[99], [1, 0, 2]]


def test_a_batch_that_fails_as_a_whole_is_divided(
    library: Library, codec: NvImageCodec, caplog: pytest.LogCaptureFixture
) -> None:
    library.fails_at = 3

    found = decoding(library, codec, [[file(1), file(2)], [file(3), file(4)]])

    assert [contents(images) for images in found] == [[1, 2], [None, 4]]
    assert caplog.messages == ["nvImageCodec failed at 1 images, the CPU decodes them: out of memory"]


def test_many_threads_get_the_images_of_their_files(codec: NvImageCodec, rng: np.random.Generator) -> None:
    calls = [rng.integers(1, 255, rng.integers(1, 9)).tolist() for _ in range(200)]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda call: contents(codec.decode([file(content) for content in call])), calls))

    assert found == calls


def test_close_decodes_what_waits_and_releases_the_stream(library: Library, codec: NvImageCodec) -> None:
    library.go_on.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(codec.decode, [file(1)])
        assert library.running.wait(30)
        second = pool.submit(codec.decode, [file(2)])

        def is_queued() -> bool:
            with codec._lock:
                return bool(codec._waiting)

        wait_until(is_queued)
        closing = pool.submit(codec.close)
        library.go_on.set()
        closing.result()
        assert [contents(answer.result()) for answer in (first, second)] == [[1], [2]]
    codec.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        codec.decode([file(1)])


def test_a_library_that_returns_too_few_images_fails_the_call(
    library: Library, codec: NvImageCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "decode", lambda *args, **kwargs: [None])
    with pytest.raises(ValueError, match="shorter"):
        codec.decode([file(1), file(2)])


def test_a_gpu_that_failed_fails_the_calls(library: Library, codec: NvImageCodec) -> None:
    device: Any = codec._device
    device._failure = DeviceError("an illegal address was accessed", 700, sticky=True)
    with pytest.raises(DeviceError, match="illegal address"):
        codec.decode([file(1)])


def test_hardware_decoders_come_first_and_leave_a_share_to_the_cores(library: Library, codec: NvImageCodec) -> None:
    assert library.arguments == {
        "device_id": -1,
        "max_num_cpu_threads": 3,
        "backends": [("hardware", 0.75, "adaptive"), ("cores",), ("hybrid",)],
    }


def test_the_real_library_has_these_backends() -> None:
    real = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")
    first, *others = gpu_backends(real)
    assert (first.backend_kind, first.load_hint) == (real.BackendKind.HW_GPU_ONLY, 0.75)
    assert [each.load_hint for each in others] == [1.0, 1.0]
