# SPDX-License-Identifier: Apache-2.0
import errno
import math
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.builder.calibration.cache import CalibrationCache
from ocdserve.contract import InvalidInputError

# 3f800000 is 1, 3c010204 is 1 / 127, 40490fdb is pi, each as float32.
FROM_TENSORRT_8 = "TRT-8601-EntropyCalibration2\ndata: 3c010204\n(Unnamed Layer* 3) [Constant]_output: 3f800000\n"

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1).filter(str.strip)
FLOATS = st.floats(width=32, allow_subnormal=True)


def bits(scales: dict[str, float]) -> dict[str, bytes]:
    """Values that can be compared although some are not a number."""
    return {name: struct.pack(">f", scale) for name, scale in scales.items()}


def as_onnxruntime_reads(text: str) -> dict[str, float]:
    """What ONNX Runtime's TensorRT provider takes from a line: the name up to the first colon, then strtoul."""
    found = {}
    for line in text.splitlines()[1:]:
        name, digits = line.split(":")[:2]
        found[name] = struct.unpack("f", int(digits, 16).to_bytes(4, sys.byteorder))[0]
    return found


class TestParse:
    def test_a_cache_of_tensorrt(self) -> None:
        cache = CalibrationCache.parse(FROM_TENSORRT_8)
        assert cache.header == "TRT-8601-EntropyCalibration2"
        assert cache.scales == {
            "data": pytest.approx(1 / 127, rel=1e-7),
            "(Unnamed Layer* 3) [Constant]_output": 1.0,
        }
        assert cache.onnx_sha256 is None and cache.images_sha256 is None and cache.method is None

    @pytest.mark.parametrize(
        "text",
        [FROM_TENSORRT_8.replace("\n", "\r\n"), FROM_TENSORRT_8.rstrip(), FROM_TENSORRT_8 + "\n\n"],
        ids=["windows", "no_last_line_end", "empty_lines"],
    )
    def test_line_ends_do_not_matter(self, text: str) -> None:
        assert CalibrationCache.parse(text.encode()) == CalibrationCache.parse(FROM_TENSORRT_8)

    def test_leading_zeros_may_be_missing(self) -> None:
        cache = CalibrationCache.parse("TRT-8601-EntropyCalibration2\na: 0\nb: 1\n")
        assert cache.scales == {"a": 0.0, "b": 2.0**-149}

    @pytest.mark.parametrize("name", ["a:0", "a: 3f800000", ":", "x::y:", "a\u2028b", "a\x85b", " a "])
    def test_names_with_separators(self, name: str) -> None:
        assert CalibrationCache.parse(f"TRT-8601-EntropyCalibration2\n{name}: 40490fdb\n").scales == {
            name: pytest.approx(math.pi, rel=1e-7)
        }

    @pytest.mark.parametrize(
        ("digits", "usable"),
        [
            ("7fc00000", False),
            ("ffc00000", False),
            ("7f800000", False),
            ("bf800000", False),
            ("00000000", False),
            ("00000001", True),
            ("3f800000", True),
        ],
    )
    def test_invalid_scales_are_kept_and_named(self, digits: str, usable: bool) -> None:
        cache = CalibrationCache.parse(f"TRT-8601-EntropyCalibration2\na: {digits}\nb: 3f800000\n")
        assert list(cache.scales) == ["a", "b"]
        assert cache.unusable == (() if usable else ("a",))
        assert f"a: {digits}\n" in cache.to_text()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "line 1 must be like"),
            ("data: 3f800000\n", "line 1 must be like .* got 'data: 3f800000'"),
            ("\nTRT-8601-EntropyCalibration2\n", "line 1"),
            ("TRT-8601-EntropyCalibration2\na: 3f800000\nb 3f800000\n", "line 3 .* got 'b 3f800000'"),
            ("TRT-8601-EntropyCalibration2\n\na: xyz\n", "line 3"),
            ("TRT-8601-EntropyCalibration2\na: 3f8000000\n", "line 2"),
            ("TRT-8601-EntropyCalibration2\na: \n", "line 2"),
            ("TRT-8601-EntropyCalibration2\n: 3f800000\n", "line 2"),
            ("TRT-8601-EntropyCalibration2\na: 1\nb: 1\na: 2\n", "line 4 .* 'a' has a scale already"),
            (
                "TRT-101200-EntropyCalibration2\nocdserve.calibration/method/mse: 3f800000\n"
                "ocdserve.calibration/method/minmax: 3f800000\n",
                "line 3 .* scale already",
            ),
            (b"TRT-8601-EntropyCalibration2\n\xff: 3f800000\n", "not UTF-8"),
        ],
    )
    def test_invalid_content_is_refused_with_its_line(self, text: str | bytes, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            CalibrationCache.parse(text)

    @given(st.text() | st.binary() | st.text().map(lambda text: FROM_TENSORRT_8 + text))
    def test_any_content_is_parsed_or_refused(self, content: str | bytes) -> None:
        try:
            cache = CalibrationCache.parse(content)
        except InvalidInputError:
            return
        assert cache.header.startswith("TRT-")


class TestToText:
    def test_is_what_tensorrt_writes_with_notes_in_front(self) -> None:
        cache = CalibrationCache(
            {"x": 1 / 127, "y:0": 1.0}, "TRT-8601-EntropyCalibration2", "ab12", images_sha256="cd", method="mse"
        )
        assert cache.to_text() == (
            "TRT-8601-EntropyCalibration2\n"
            "ocdserve.calibration/onnx-sha256/ab12: 3f800000\n"
            "ocdserve.calibration/images-sha256/cd: 3f800000\n"
            "ocdserve.calibration/method/mse: 3f800000\n"
            "x: 3c010204\n"
            "y:0: 3f800000\n"
        )

    def test_onnxruntimes_reader_finds_the_scales(self) -> None:
        scales = {"network/Conv_0": 0.0123, "relu.1": 3.5e-5, "large": 1e30}
        found = as_onnxruntime_reads(CalibrationCache(scales, onnx_sha256="ab").to_text())
        assert {name: found[name] for name in scales} == pytest.approx(scales, rel=1e-7)

    @given(
        st.dictionaries(NAMES, FLOATS),
        st.from_regex(r"[0-9a-f]{64}", fullmatch=True) | st.none(),
        st.from_regex(r"[0-9a-f]{64}", fullmatch=True) | st.none(),
        st.sampled_from([None, "minmax", "percentile-99.99"]),
    )
    def test_parsing_returns_what_was_written(
        self, scales: dict[str, float], network: str | None, images: str | None, method: str | None
    ) -> None:
        cache = CalibrationCache(scales, "TRT-101200-EntropyCalibration2", network, images, method)
        again = CalibrationCache.parse(cache.to_text().encode())
        assert bits(dict(again.scales)) == bits(scales) and list(again.scales) == list(scales)
        assert (again.header, again.onnx_sha256, again.images_sha256, again.method) == (
            "TRT-101200-EntropyCalibration2",
            network,
            images,
            method,
        )
        assert again.to_text() == cache.to_text()

    @pytest.mark.parametrize("name", ["", " ", "a\nb", "a\rb"])
    def test_a_name_that_the_format_cannot_hold_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidInputError, match="cannot hold"):
            CalibrationCache({name: 1.0}).to_text()

    def test_a_scale_beyond_float32_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="'a' is too large"):
            CalibrationCache({"a": 1e39}).to_text()


class TestCheckBoundTo:
    CACHE = CalibrationCache({"a": 1.0, "b": 2.0, "nan": math.nan, "zero": 0.0}, onnx_sha256="ab12")

    def test_accepts_its_own_network(self) -> None:
        self.CACHE.check_bound_to("ab12", ["a", "b"])

    def test_refuses_another_network_unless_forced(self) -> None:
        with pytest.raises(InvalidInputError, match=r"SHA-256 ab12; this one has cd34.*--force"):
            self.CACHE.check_bound_to("cd34", ["a"])
        self.CACHE.check_bound_to("cd34", ["a"], force=True)

    def test_a_cache_without_a_network_must_have_all_scales(self) -> None:
        foreign = CalibrationCache.parse(FROM_TENSORRT_8)
        foreign.check_bound_to("cd34", ["data"])
        with pytest.raises(InvalidInputError, match="no scale for 2 of the 3 tensors that need one: p, q"):
            foreign.check_bound_to("cd34", ["p", "data", "q", "p"])

    def test_force_does_not_make_up_for_missing_scales(self) -> None:
        with pytest.raises(InvalidInputError, match="no scale for 1 of the 1"):
            self.CACHE.check_bound_to("cd34", ["c"], force=True)

    def test_invalid_scales_matter_only_where_they_are_needed(self) -> None:
        with pytest.raises(InvalidInputError, match=r"for 2 of the 3 .*: zero \(0\), nan \(nan\)"):
            self.CACHE.check_bound_to("ab12", ["zero", "a", "nan"])

    def test_a_long_list_is_cut(self) -> None:
        with pytest.raises(InvalidInputError, match=r"9 of the 9 .*: t0, t1, t2, t3, t4, \.\.\.\."):
            self.CACHE.check_bound_to("ab12", [f"t{index}" for index in range(9)])


class TestFile:
    CACHE = CalibrationCache({"a": 1.0}, onnx_sha256="ab12")

    def test_loading_returns_what_was_saved(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.cache"
        path.write_text("old")
        self.CACHE.save(path)
        assert CalibrationCache.load(path) == self.CACHE
        assert [item.name for item in tmp_path.iterdir()] == ["calibration.cache"]

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.cache"
        with pytest.raises(InvalidInputError, match=r"cannot read .*calibration\.cache.*No such file"):
            CalibrationCache.load(path)
        path.write_text("TRT-8601-EntropyCalibration2\nbroken\n")
        with pytest.raises(InvalidInputError, match=r"calibration\.cache: line 2"):
            CalibrationCache.load(path)

    def test_a_failure_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "calibration.cache"
        path.write_text("old")

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            self.CACHE.save(path)
        assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_killed_at_any_step_the_file_is_the_old_one(self, tmp_path: Path, step: str) -> None:
        path = tmp_path / "calibration.cache"
        path.write_text("old")
        script = (
            "import os, pathlib, signal, sys\n"
            "from ocdserve.builder.calibration.cache import CalibrationCache\n"
            f"os.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "CalibrationCache({'a': 1.0}).save(pathlib.Path(sys.argv[1]))\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
