# SPDX-License-Identifier: Apache-2.0
"""Every decoder returns upright images, keeps the limits, and reports errors with the CPU code's messages."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_device import HostDevice
from numpy.typing import NDArray
from PIL import Image

from ocdserve.backend.device.protocol import DeviceError
from ocdserve.backend.gpu.decode import ImageDecoder, make_decoder
from ocdserve.backend.gpu.memory import locked_bytes
from ocdserve.backend.gpu.nvimagecodec import NvImageCodec
from ocdserve.backend.stages.image import decode
from ocdserve.contract import InvalidInputError, Limits, UnavailableError

NO_DEVICE: Any = None


class FakeCodec:
    """Returns prepared images, and records the requests."""

    files_ahead = 0

    def __init__(self, answer: Callable[[bytes], NDArray[np.uint8] | None]) -> None:
        self.asked: list[bytes] = []
        self.closed = False
        self._answer = answer

    def decode(self, files: Sequence[bytes]) -> list[Any]:
        self.asked += files
        return [self._answer(data) for data in files]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((90, 50), Image.Resampling.BICUBIC)


@pytest.fixture(params=["cpu", "nvImageCodec on the CPU"])
def decoder(request: pytest.FixtureRequest) -> Iterator[ImageDecoder]:
    codec = None
    if request.param != "cpu":
        try:
            codec = NvImageCodec(None)
        except UnavailableError as error:
            pytest.skip(str(error))
    decoder = ImageDecoder(Limits(max_pixels=10_000), threads=2, codec=codec)
    yield decoder
    decoder.close()


def _encoded(image: Image.Image, kind: str = "JPEG", orientation: int | None = None, **options: Any) -> bytes:
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_kind_of_file_has_the_pixels_of_the_cpu_code(decoder: ImageDecoder, picture: Image.Image) -> None:
    files = [
        _encoded(picture),
        _encoded(picture, progressive=True),
        _encoded(picture, quality=95, subsampling=0),
        _encoded(picture.convert("L")),
        _encoded(picture.convert("CMYK")),
        *(_encoded(picture, orientation=orientation) for orientation in range(10)),
        _encoded(picture) + b"rest",
        _encoded(picture, "PNG"),
        _encoded(picture, "WEBP"),
    ]

    found = decoder.decode(files)

    for data, pixels in zip(files, found, strict=True):
        assert isinstance(pixels, np.ndarray)
        np.testing.assert_array_equal(pixels, decode(data))


def test_the_cpu_decodes_every_format_into_page_locked_memory(picture: Image.Image) -> None:
    decoder = make_decoder("cpu", HostDevice())
    files = [_encoded(picture), _encoded(picture, orientation=6), _encoded(picture, "PNG"), _encoded(picture, "WEBP")]

    found = decoder.decode(files)

    for data, pixels in zip(files, found, strict=True):
        assert isinstance(pixels, np.ndarray) and locked_bytes(pixels) is not None
        np.testing.assert_array_equal(pixels, decode(data))
    decoder.close()


def test_a_gpu_that_does_not_lock_memory_is_no_fault_of_the_image(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Any:
        raise DeviceError("cuMemHostRegister failed")

    monkeypatch.setattr(HostDevice, "host_array", failing)
    decoder = make_decoder("cpu", HostDevice())

    with pytest.raises(DeviceError, match="cuMemHostRegister"):
        decoder.decode([_encoded(picture)])
    decoder.close()


def test_each_bad_file_of_a_batch_has_the_cpu_code_s_error(decoder: ImageDecoder, picture: Image.Image) -> None:
    files = [b"", b"text", _encoded(picture)[:700], _encoded(picture.resize((101, 100))), _encoded(picture)]

    *errors, pixels = decoder.decode(files)

    assert isinstance(pixels, np.ndarray)
    messages = ["is empty", "not an image", "truncated or damaged", "101 x 100 = 10100 pixels; at most 10000"]
    for error, message in zip(errors, messages, strict=True):
        assert isinstance(error, InvalidInputError)
        assert message in str(error)


def test_only_ordinary_jpeg_goes_to_the_codec(picture: Image.Image) -> None:
    marked = np.full((50, 90, 3), 7, np.uint8)
    codec = FakeCodec(lambda data: marked)
    decoder = ImageDecoder(Limits(max_pixels=10_000), codec=codec)
    ordinary = [_encoded(picture), _encoded(picture, progressive=True), _encoded(picture.convert("L"))]
    others = [
        _encoded(picture, "PNG"),
        _encoded(picture.convert("CMYK")),
        _encoded(picture)[:-2],
        _encoded(picture.resize((101, 100))),
    ]

    found = decoder.decode([*ordinary, *others])

    assert codec.asked == ordinary
    assert all(np.array_equal(np.asarray(pixels), marked) for pixels in found[:3])
    assert not any(np.array_equal(np.asarray(pixels), marked) for pixels in found[3:])
    decoder.close()
    assert codec.closed


@pytest.mark.parametrize("answer", [None, np.zeros((90, 50, 3), np.uint8)], ids=["nothing", "not turned upright"])
def test_what_the_codec_fails_at_is_decoded_by_the_cpu(picture: Image.Image, answer: NDArray[np.uint8] | None) -> None:
    decoder = ImageDecoder(codec=FakeCodec(lambda data: answer))
    files = [_encoded(picture), _encoded(picture, orientation=3)]

    found = decoder.decode(files)

    for data, pixels in zip(files, found, strict=True):
        np.testing.assert_array_equal(np.asarray(pixels), decode(data))
    decoder.close()


@pytest.mark.parametrize("orientation", [6, 8])
def test_the_codec_s_image_must_be_turned_upright(picture: Image.Image, orientation: int) -> None:
    upright = np.full((90, 50, 3), 7, np.uint8)
    decoder = ImageDecoder(codec=FakeCodec(lambda data: upright))

    (found,) = decoder.decode([_encoded(picture, orientation=orientation)])

    assert found is upright
    decoder.close()


def test_only_a_codec_gains_by_more_files_at_a_time() -> None:
    codec = FakeCodec(lambda data: None)
    codec.files_ahead = 64
    for decoder, expected in ((ImageDecoder(threads=1), 0), (ImageDecoder(threads=1, codec=codec), 64)):
        assert decoder.files_ahead == expected
        decoder.close()


def test_the_cpu_is_the_default(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)  # not to be imported

    for kind in ("cpu", "auto"):
        decoder = make_decoder(kind, HostDevice())  # type: ignore[arg-type]
        (found,) = decoder.decode([_encoded(picture)])
        np.testing.assert_array_equal(np.asarray(found), decode(_encoded(picture)))
        decoder.close()
    with pytest.raises(UnavailableError, match=r"needs nvImageCodec: `pip install 'ocdserve\[gpu-jpeg\]'`"):
        make_decoder("gpu", NO_DEVICE)


def test_a_failure_of_nvimagecodec_s_leaves_the_images_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    # Stands in for the library: its name is imported, its decoder fails.
    library = SimpleNamespace(
        __version__="0",
        DecodeParams=lambda **_: None,
        SampleFormat=SimpleNamespace(I_RGB=0),
        Backend=lambda kind: kind,
        BackendKind=SimpleNamespace(CPU_ONLY=0),
        NVIMGCODEC_DEVICE_CPU_ONLY=0,
        Decoder=lambda **_: SimpleNamespace(decode=_fail),
        CodeStream=lambda data: SimpleNamespace(height=50, width=90),
    )
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", library)
    decoder = ImageDecoder(codec=NvImageCodec(None))

    (found,) = decoder.decode([_encoded(picture)])

    np.testing.assert_array_equal(np.asarray(found), decode(_encoded(picture)))
    assert "nvImageCodec failed at 1 images, the CPU decodes them: out of memory" in caplog.text
    decoder.close()


def _fail(*arguments: Any, **named: Any) -> None:
    raise RuntimeError("out of memory")


def test_a_decoder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="decoder must be one of auto, cpu, gpu; got 'tpu'"):
        make_decoder("tpu", NO_DEVICE)  # type: ignore[arg-type]
