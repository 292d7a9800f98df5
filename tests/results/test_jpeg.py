# SPDX-License-Identifier: Apache-2.0
"""JPEG files are decoded by simplejpeg or by Pillow: the same pixels, or the same error, whichever does it."""

import base64
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.backend.stages.image import decode, decode_for
from ocdserve.contract import InvalidInputError, Limits
from ocdserve.results import decoding, pixels_of

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ORIENTATION = 0x0112

# Files of 23 x 19 pixels that neither Pillow nor OpenCV writes; by libjpeg-turbo, of settings that the names say.
WRITTEN_BY_LIBJPEG = {
    "arithmetic": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6////////////////////////////////////////////
        ////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////////////////////////////////////yQARCAATABcD
        ASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD7WUnAg5A08pmo4Tz979ix4beOfu9LhzfxGY0D12cFF5Pmiiwn/vLWUxUFeHDhnM/1
        +GgTHL63uBHEFe8HrbHI0DddUZ4/x3gU43f/2Q==
    """,
    "arithmetic, progressive": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6////////////////////////////////////////////
        ////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////////////////////////////////////ygARCAATABcD
        ASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAfZvKpeuDK4sccD/zAAEEAX/2gAIAQEAAQUClWoEvMD/zAAEEQX/2gAIAQMBAT8B3+D/zAAE
        EQX/2gAIAQIBAT8B+8L/zAAEEAX/2gAIAQEABj8Cz/D/zAAEEAX/2gAIAQEAAT8hZ2nnSdenM2tZ7ku94P/aAAwDAQACAAMAAAAQ+wxB/8wABBEF
        /9oACAEDAQE/EEy1UXrzY7P/zAAEEQX/2gAIAQIBAT8QgH7p06+h/8wABBAF/9oACAEBAAE/ENRzuFuRPc/XGtbfAoutfh6Gz+DvIOmwLbvJLCzY
        /9k=
    """,
    "4:1:0": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6////////////////////////////////////////////
        ////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////////////////////////////////////wAARCAATABcD
        AUIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB
        kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ
        mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQF
        BgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5
        OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX
        2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCIRspySMDmnGTeNo6n1pV/dnLdOnFFMBcnDZx34pxCgZTG7tg0LljiTp78UUuZon1H
        t90/SoovvipJfuj60UUUUUxx6eh//9k=
    """,
    "4:4:1": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6////////////////////////////////////////////
        ////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////////////////////////////////////wAARCAATABcD
        ARQAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB
        kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ
        mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQF
        BgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5
        OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX
        2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCIRspySMDmgFycNnHfipW+6fpRSuZp3GGTeNo6n1oIUDKY3dsGmxffFFNqxdraj1/d
        nLdOnFIuWOJOnvxTpfuj60Uk2+rBan//2Q==
    """,
    "3:1": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6////////////////////////////////////////////
        ////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////////////////////////////////////wAARCAATABcD
        ATEAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB
        kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ
        mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQF
        BgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5
        OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX
        2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCIRspySMDmnGTeNo6n1pV/dnLdOnFCm0Tvr30GAuThs478U4hQMpjd2waFyxxJ09+K
        ljX/AA3qPb7p+lRRffFSS/dH1p9F6iWy9T//2Q==
    """,
    "a scan per colour": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAGRFS1hLP2RYUVhxamR3lvqjloqKlv/b57X6////////////////////////////////////////////
        ////////2wBDAWpxcZaDlv+jo///////////////////////////////////////////////////////////////////////////wAARCAATABcD
        ASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKB
        kaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZ
        mqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/90ABAAC/9oACAEBAAA/AIhGynJIwOacZN42
        jqfWv//Qav7s5bp04pgLk4bOO/Ff/9FhCgZTG7tg0LljiTp78V//0hvun6VFF98V/9NJfuj61//EAB8BAAMBAQEBAQEBAQEAAAAAAAABAgMEBQYH
        CAkKC//EALURAAIBAgQEAwQHBQQEAAECdwABAgMRBAUhMQYSQVEHYXETIjKBCBRCkaGxwQkjM1LwFWJy0QoWJDThJfEXGBkaJicoKSo1Njc4OTpD
        REVGR0hJSlNUVVZXWFlaY2RlZmdoaWpzdHV2d3h5eoKDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ
        2uLj5OXm5+jp6vLz9PX29/j5+v/aAAgBAhEAPwBXYcz6n//QFsxR2P/aAAgBAxEAPwCfUdl1/A//0Jjsy47H/9k=
    """,
    "16-bit quantisation": """
        /9j/4AAQSkZJRgABAQAAAQABAAD/2wCDEAMgAiYCWAK8AlgB9AMgArwCigK8A4QDUgMgA7YEsAfQBRQEsARMBEwEsAmSBtYHOgWqB9ALVAn2C+oL
        uAsiCfYK8Aq+DIAOEBH4DzwMgA1IEP4Negq+CvAPoBVKD9IQ/hKOEyQUHhRQFB4MHA8KFhIXohXgE4gXcBH4E7oUHhNW/9sAgxEDUgOEA4QEsAQa
        BLAJLgUUBRQJLhNWDOQK8AzkE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNW
        E1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVhNWE1YTVv/BABEIABMAFwMBIQACEQEDEQH/xAAfAAABBQEBAQEBAQAAAAAAAAAAAQIDBAUGBwgJ
        Cgv/xAC1EAACAQMDAgQDBQUEBAAAAX0BAgMABBEFEiExQQYTUWEHInEUMoGRoQgjQrHBFVLR8CQzYnKCCQoWFxgZGiUmJygpKjQ1Njc4OTpDREVG
        R0hJSlNUVVZXWFlaY2RlZmdoaWpzdHV2d3h5eoOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4eLj
        5OXm5+jp6vHy8/T19vf4+fr/xAAfAQADAQEBAQEBAQEBAAAAAAAAAQIDBAUGBwgJCgv/xAC1EQACAQIEBAMEBwUEBAABAncAAQIDEQQFITEGEkFR
        B2FxEyIygQgUQpGhscEJIzNS8BVictEKFiQ04SXxFxgZGiYnKCkqNTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqCg4SFhoeI
        iYqSk5SVlpeYmZqio6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2dri4+Tl5ufo6ery8/T19vf4+fr/2gAMAwEAAhEDEQA/AEpaADpR
        QAlLQAUUAFIKAFNFAH//2Q==
    """,
}


def picture(width: int = 77, height: int = 53) -> Image.Image:
    """Smooth, of many colours, and not of whole blocks."""
    coarse = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(picture(), exif=exif)


def by_opencv(*options: int) -> bytes:
    return cv2.imencode(".jpg", np.asarray(picture()), options)[1].tobytes()


def without_jfif(data: bytes) -> bytes:
    """Without its first segment, so that only the numbers of the components tell the colours."""
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


GREY = Image.new("RGB", (64, 48), (128, 128, 128))
GREY.paste(picture(20, 20), (3, 4))

# Decoded by simplejpeg.
ORDINARY = {
    "4:2:0": saved(picture()),
    "4:2:2": saved(picture(), subsampling=1),
    "4:4:4": saved(picture(), subsampling=0),
    "4:1:1": by_opencv(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    "4:4:0": by_opencv(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
    "grey": saved(picture().convert("L")),
    "progressive": saved(picture(), progressive=True),
    "progressive, 4:4:4": saved(picture(), progressive=True, subsampling=0, quality=95),
    "progressive, grey": saved(picture().convert("L"), progressive=True),
    "restart markers": saved(picture(), restart_marker_blocks=2),
    "progressive, restart markers": saved(picture(), progressive=True, restart_marker_rows=1),
    "optimised": saved(picture(), optimize=True, quality=98),
    "of one pixel": saved(picture(1, 1)),
    "of one column": saved(picture(1, 40)),
    "RGB by Adobe's marker": saved(picture(), keep_rgb=True),
    "RGB by its components": without_jfif(by_opencv()),
    "upright": oriented(1),
    "of no orientation that there is": oriented(9),
    "several pictures": saved(picture(), "MPO", save_all=True, append_images=[GREY]),
    "bytes behind its end": saved(picture()) + b"\0\xff\xd8\xff trailing \xff\xd9",
    "bytes before its end": saved(picture())[:-2] + b"more\xff\xd9",
    "grey in its last corner": saved(GREY),
    **{
        name: base64.b64decode(WRITTEN_BY_LIBJPEG[name])
        for name in ("arithmetic", "arithmetic, progressive", "a scan per colour", "16-bit quantisation")
    },
}
# Left to Pillow.
OTHERS = {
    **{name: base64.b64decode(WRITTEN_BY_LIBJPEG[name]) for name in ("4:1:0", "4:4:1", "3:1")},
    **{f"orientation {number}": oriented(number) for number in range(2, 9)},
    "CMYK": saved(picture().convert("CMYK")),
}
SOUND = {**ORDINARY, **OTHERS}


class Recorder:
    """simplejpeg, and how often it has returned pixels."""

    def __init__(self) -> None:
        self.decoded = 0
        self.decode_jpeg_header: Callable[..., Any] = simplejpeg.decode_jpeg_header

    def decode_jpeg(self, *args: Any, **options: Any) -> Any:
        pixels = simplejpeg.decode_jpeg(*args, **options)
        self.decoded += 1
        return pixels


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(decoding, "_simplejpeg", lambda: recorder)
    return recorder


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))


def outcome(data: bytes) -> NDArray[np.uint8] | str:
    try:
        return decode(data)
    except InvalidInputError as error:
        return str(error)


def assert_same_as_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file is refused, by both or by neither."""
    found = outcome(data)
    with monkeypatch.context() as without:
        without.setattr(decoding, "_simplejpeg", lambda: None)
        expected = outcome(data)
    if isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)
    return isinstance(expected, str)


class TestSoundFiles:
    @pytest.mark.parametrize("read", [decode, pixels_of])
    @pytest.mark.parametrize("name", ORDINARY)
    def test_an_ordinary_file_is_decoded_to_pillow_s_pixels_without_pillow(
        self, read: Callable[[bytes], NDArray[np.uint8]], name: str, library: Recorder
    ) -> None:
        pixels = read(ORDINARY[name])

        assert library.decoded == 1
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, by_pillow(ORDINARY[name]))

    @pytest.mark.parametrize("name", OTHERS)
    def test_other_files_are_left_to_pillow(self, name: str, library: Recorder) -> None:
        np.testing.assert_array_equal(decode(OTHERS[name]), by_pillow(OTHERS[name]))
        assert library.decoded == 0

    def test_photographs_have_pillow_s_pixels(self, library: Recorder) -> None:
        files = sorted(path for path in DATA.rglob("*.jp*g") if "exif" not in path.name)
        if not files:
            pytest.skip("there is no shared/data next to the repository")
        for path in files:
            np.testing.assert_array_equal(decode(path.read_bytes()), by_pillow(path.read_bytes()), path.name)
        assert library.decoded == len(files)

    def test_without_the_package_pillow_decodes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
        decoding._simplejpeg.cache_clear()
        try:
            assert decoding._simplejpeg() is None
            np.testing.assert_array_equal(decode(ORDINARY["4:2:0"]), by_pillow(ORDINARY["4:2:0"]))
        finally:
            decoding._simplejpeg.cache_clear()


class TestRefusedFiles:
    def test_twelve_bits_are_refused_as_by_pillow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        deep = ORDINARY["4:2:0"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c")
        assert assert_same_as_pillow(deep, monkeypatch)

    @pytest.mark.parametrize("name", SOUND)
    def test_a_file_that_ends_early_has_pillow_s_error_or_pixels(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = SOUND[name]
        for share in (0.05, 0.5, 0.9, 0.99):
            cut = data[: int(len(data) * share)]
            assert_same_as_pillow(cut, monkeypatch)
            assert_same_as_pillow(cut + b"\xff\xd9", monkeypatch)

    def test_a_file_cut_and_closed_is_refused(self, library: Recorder) -> None:
        """libjpeg fills its rows with grey, and only warns of them."""
        data = saved(picture(400, 300))
        with pytest.raises(InvalidInputError, match="truncated or damaged"):
            decode(data[: len(data) // 2] + b"\xff\xd9")
        assert library.decoded == 0

    def test_damaged_files_have_pillow_s_error_or_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert_damage_is_treated_as_by_pillow(400, monkeypatch)

    @pytest.mark.long
    def test_many_damaged_files_have_pillow_s_error_or_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert_damage_is_treated_as_by_pillow(30_000, monkeypatch)

    def test_a_large_picture_is_refused_before_it_is_decoded(self, library: Recorder) -> None:
        with pytest.raises(InvalidInputError, match="77 x 53 = 4081 pixels; at most 4080 are served"):
            decode(ORDINARY["4:2:0"], Limits(max_pixels=4080))
        assert library.decoded == 0

    def test_where_the_library_reads_another_size_pillow_decodes(self, library: Recorder) -> None:
        library.decode_jpeg_header = lambda data: (60_000, 60_000, "YCbCr", "420")
        np.testing.assert_array_equal(decode(ORDINARY["4:2:0"]), by_pillow(ORDINARY["4:2:0"]))
        assert library.decoded == 0


class TestReduced:
    """For a content of 16 x 12 pixels: at least four times as large are upright files of 77 x 53."""

    POLICY = ResizePolicy(kind="fixed", width=16, height=12, stride=1, reduce_jpeg=True)

    @pytest.mark.parametrize("name", sorted({*ORDINARY, "orientation 3"} - {*WRITTEN_BY_LIBJPEG, "of one column"}))
    def test_a_file_has_the_pixels_that_opencv_decodes_at_that_scale(self, name: str) -> None:
        data = SOUND[name]
        flag = cv2.IMREAD_COLOR if name == "of one pixel" else cv2.IMREAD_REDUCED_COLOR_4
        pixels, size = decode_for(self.POLICY, data)
        np.testing.assert_array_equal(pixels, cv2.imdecode(np.frombuffer(data, np.uint8), flag)[..., ::-1])
        assert size == decode(data).shape[:2]

    @pytest.mark.parametrize("name", SOUND)
    def test_pillow_decodes_the_same_pixels(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels, size = decode_for(self.POLICY, SOUND[name])
        monkeypatch.setattr(decoding, "_simplejpeg", lambda: None)
        np.testing.assert_array_equal(pixels, decode_for(self.POLICY, SOUND[name])[0])
        assert size == by_pillow(SOUND[name]).shape[:2]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_both_sides_are_large_enough_as_the_picture_is_seen(self, orientation: int) -> None:
        pixels, size = decode_for(self.POLICY, oriented(orientation))
        # 53 x 77 pixels: a half of 53, because a quarter would be less than 16.
        upright, turned = ((14, 20, 3), (53, 77)), ((39, 27, 3), (77, 53))
        assert (pixels.shape, size) == (turned if orientation >= 5 else upright)

    @pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
    def test_other_formats_and_other_policies_are_whole(self, form: str) -> None:
        data = saved(picture(), form)
        np.testing.assert_array_equal(decode_for(self.POLICY, data)[0], decode(data))
        pixels, size = decode_for(ResizePolicy(kind="fixed", width=16, height=12, stride=1), ORDINARY["4:2:0"])
        np.testing.assert_array_equal(pixels, decode(ORDINARY["4:2:0"]))
        assert size == (53, 77)

    @pytest.mark.parametrize("name", ["4:2:0", "progressive", "orientation 6"])
    def test_a_file_that_is_refused_has_the_error_of_the_whole_one(self, name: str) -> None:
        cut = SOUND[name][: len(SOUND[name]) // 2] + b"\xff\xd9"
        for data, limits in ((cut, None), (SOUND[name], Limits(max_pixels=4080))):
            with pytest.raises(InvalidInputError, match=r"77 x 53") as whole:
                decode(data, limits)
            with pytest.raises(InvalidInputError) as reduced:
                decode_for(self.POLICY, data, limits)
            assert str(reduced.value) == str(whole.value)

    def test_where_the_library_reads_another_size_pillow_decodes(self, library: Recorder) -> None:
        library.decode_jpeg_header = lambda data: (60_000, 60_000, "YCbCr", "420")
        assert decode_for(self.POLICY, ORDINARY["4:2:0"])[0].shape == (14, 20, 3)
        assert library.decoded == 0


class TestMemory:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("side", [50, 2100])
    def test_the_pixels_are_put_where_the_caller_wants_them(self, form: str, side: int) -> None:
        data = saved(picture(side, side), form, quality=60)
        arrays: list[NDArray[np.uint8]] = []

        def allocate(height: int, width: int) -> NDArray[np.uint8]:
            arrays.append(np.zeros((height, width, 3), np.uint8))
            return arrays[-1]

        pixels = decode(data, allocate=allocate)

        assert len(arrays) == 1 and pixels is arrays[0]
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    def test_a_large_file_takes_little_more_than_its_pixels(self, bytes_per_pixel: Callable[..., float]) -> None:
        assert bytes_per_pixel("JPEG") < 3.5

    def test_a_progressive_file_takes_its_coefficients_besides(self, bytes_per_pixel: Callable[..., float]) -> None:
        """Two bytes each, three a pixel; Pillow takes 17 bytes for it."""
        assert bytes_per_pixel("JPEG", progressive=True, subsampling=0) < 9.5


def assert_damage_is_treated_as_by_pillow(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, files = random.Random(7), list(SOUND.values())
    refused = sum(assert_same_as_pillow(damaged(chance.choice(files), chance), monkeypatch) for _ in range(count))
    # The files are neither all refused nor all sound.
    assert count / 4 < refused < 3 * count / 4


def damaged(data: bytes, chance: random.Random) -> bytes:
    """With other bytes, without some, with more of them, or with segments that are there twice or of another kind."""
    changed = bytearray(data)
    header = data.find(b"\xff\xda") + 14
    segments = [
        place for place in range(2, header - 14) if data[place] == 0xFF and data[place + 1] in range(0xC0, 0xF0)
    ]
    place = chance.randrange(len(data))
    match chance.randrange(8):
        case 0:
            changed[place] = chance.randrange(256)
        case 1:
            del changed[place : place + chance.randrange(1, 40)]
        case 2:
            del changed[max(place, 3) :]
        case 3:
            changed[max(place, 3) :] = b"\xff\xd9"
        case 4:
            changed[place:place] = chance.choice(
                [b"\xff\xd9", b"\xff\xd3", b"\xff\x01", b"\xff\xda", b"\xff\xde", b"\xff\xdc\0\4\0\x20", b"\xff\xff"]
            )
        case 5:
            changed[chance.randrange(2, header)] = chance.choice([0, 1, 2, 3, 4, 8, 12, 17, 18, 33, 34, 65, 255])
        case 6:
            first, second = chance.choice(segments), chance.choice(segments)
            end = first + 2 + int.from_bytes(data[first + 2 : first + 4], "big")
            changed[second:second] = data[first:end]
        case 7:
            changed[chance.choice(segments) + 1] = chance.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xDE, 0xEE])
    return bytes(changed)
