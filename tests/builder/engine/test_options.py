# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdserve.backend.spec.resize import ResizePolicy
from ocdserve.builder.engine.options import EngineConfig, ShapeProfile, parse_bytes, profile_of
from ocdserve.contract import InvalidInputError


class TestShapeProfile:
    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (((1, 64, 64), (1, 32, 64), (1, 64, 64)), "the height must grow.*got 64, 32, 64"),
            (((2, 64, 64), (1, 64, 64), (4, 64, 64)), "the batch must grow"),
            (((0, 64, 64), (1, 64, 64), (1, 64, 64)), "profile.min must be"),
            (((1, 64, 64), (1, 64), (1, 64, 64)), "profile.opt must be"),
            (((1, 64, 64), (1, 64, 64), (1, 64, 64.0)), "profile.max must be"),
        ],
    )
    def test_refuses_invalid_shapes(self, shapes: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            ShapeProfile(*shapes)


class TestProfileOf:
    def test_a_fixed_size_policy_has_one_shape(self) -> None:
        policy = ResizePolicy(kind="letterbox", width=1280, height=736)
        assert profile_of(policy, max_batch=8, opt_batch=2) == ShapeProfile(
            (1, 736, 1280), (2, 736, 1280), (8, 736, 1280)
        )

    def test_other_policies_allow_multiples_of_the_stride_up_to_the_largest_side(self) -> None:
        policy = ResizePolicy(kind="short_side", side=736, largest_side=1600, stride=32, bucket=64)
        # A picture of 720 x 1280 becomes 736 x 1308, rounded to 64: 768 (half goes up) x 1280.
        assert profile_of(policy, max_batch=4) == ShapeProfile((1, 32, 32), (1, 768, 1280), (4, 1600, 1600))

    @given(
        kind=st.sampled_from(["short_side", "long_side"]),
        side=st.integers(32, 2000),
        largest=st.integers(1, 64),
        enlarge=st.booleans(),
        shrink=st.booleans(),
        height=st.integers(1, 8000),
        width=st.integers(1, 8000),
    )
    def test_every_image_fits(
        self, kind: Any, side: int, largest: int, enlarge: bool, shrink: bool, height: int, width: int
    ) -> None:
        policy = ResizePolicy(kind=kind, side=side, largest_side=32 * largest, enlarge=enlarge, shrink=shrink)
        profile = profile_of(policy)
        (network_height, network_width), _ = policy.sizes(height, width)
        assert profile.min[1] <= network_height <= profile.max[1]
        assert profile.min[2] <= network_width <= profile.max[2]

    def test_the_tuned_batch_is_no_larger_than_the_largest(self) -> None:
        with pytest.raises(InvalidInputError, match="the batch must grow from min over opt to max; got 1, 4, 2"):
            profile_of(ResizePolicy(), max_batch=2, opt_batch=4)


class TestParseBytes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1000000", 1_000_000),
            ("7B", 7),
            ("512MB", 512_000_000),
            ("512 MiB", 536_870_912),
            ("2GiB", 2_147_483_648),
            ("1.5kib", 1536),
            (" 0.25 TiB ", 274_877_906_944),
        ],
    )
    def test_units_are_powers_of_1000_or_1024(self, text: str, size: int) -> None:
        assert parse_bytes(text) == size

    @pytest.mark.parametrize("text", ["", "GiB", "1G", "1 gigabyte", "-1MB", "1e9", "0x10", "1,5GB", "٣MB"])
    def test_refuses_other_texts(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match="a size must be a number with B, kB"):
            parse_bytes(text)

    @pytest.mark.parametrize("text", ["0", "0.5", "1.0001kB"])
    def test_refuses_fractions_of_bytes_and_zero(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match="positive whole number of bytes"):
            parse_bytes(text)

    @given(st.integers(1, 10**15))
    def test_a_bare_number_is_bytes(self, size: int) -> None:
        assert parse_bytes(str(size)) == size


class TestEngineConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"runtime": "trt"}, "runtime must be one of tensorrt, tensorrt-rtx; got 'trt'"),
            ({"optimization_level": 6}, "optimization_level must be from 0 to 5; got 6"),
            ({"optimization_level": True}, "optimization_level"),
            ({"workspace_bytes": 0}, "workspace_bytes must be a positive whole number; got 0"),
            ({"hardware_compatibility": "all"}, "hardware_compatibility must be one of none, same_compute"),
            ({"architectures": ()}, "got none"),
            ({"architectures": ("sm89",)}, "architectures must be names such as 'sm_89'.*got 'sm89'"),
            ({"architectures": "sm_89"}, "architectures must be names"),
            ({"architectures": ("sm_89", "sm_89")}, "must be different names"),
            ({"architectures": ("current", "sm_89")}, "'current' alone"),
            ({"runtime": "tensorrt", "architectures": ("sm_80", "sm_89")}, "a TensorRT engine is for one GPU"),
            ({"hardware_compatibility": "ampere_plus"}, "TensorRT-RTX has no hardware-compatible mode"),
            ({"version_compatible": True}, "TensorRT-RTX has no version-compatible mode"),
            ({"timing_cache": Path("times")}, "TensorRT-RTX uses no timing cache"),
        ],
    )
    def test_refuses_invalid_settings(self, changes: dict[str, Any], message: str) -> None:
        runtime = changes.pop("runtime", "tensorrt-rtx")
        with pytest.raises(InvalidInputError, match=message):
            EngineConfig(**changes).check(runtime)

    def test_accepts_for_tensorrt_what_rtx_lacks(self) -> None:
        config = EngineConfig(hardware_compatibility="ampere_plus", version_compatible=True, timing_cache=Path("t"))
        config.check("tensorrt")
        assert config.architectures == ("current",)
