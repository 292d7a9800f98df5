# SPDX-License-Identifier: Apache-2.0
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ocdserve.backend.spec.resize import Frame, ResizePolicy
from ocdserve.backend.stages.preprocess import preprocess
from ocdserve.contract import InvalidInputError

FIXED = ResizePolicy(kind="fixed", width=128, height=64)
LETTERBOX = ResizePolicy(kind="letterbox", width=128, height=64)
SHORT_SIDE = ResizePolicy(kind="short_side", side=96, largest_side=512)
LONG_SIDE = ResizePolicy(kind="long_side", side=96, largest_side=512)
POLICIES = [FIXED, LETTERBOX, SHORT_SIDE, LONG_SIDE]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    values = np.random.default_rng(height * 10_007 + width).integers(0, 256, (height, width, 3))
    return values.astype(np.uint8)


def resized(image: NDArray[np.uint8], height: int, width: int) -> NDArray[Any]:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


class TestFixed:
    def test_the_image_is_stretched_as_opencv_does(self) -> None:
        image = picture(50, 70)
        pixels, frame = preprocess(image, FIXED)
        np.testing.assert_array_equal(pixels, resized(image, 64, 128))
        assert frame == Frame(source=(50, 70), network=(64, 128), content=(64, 128))
        assert frame.scale == (70 / 128, 50 / 64)

    def test_an_image_of_the_network_s_size_passes_as_it_is(self) -> None:
        image = picture(64, 128)
        pixels, frame = preprocess(image, FIXED)
        np.testing.assert_array_equal(pixels, image)
        assert frame.scale == (1, 1)


class TestLetterbox:
    @pytest.mark.parametrize(
        ("source", "content"),
        [
            ((64, 128), (64, 128)),
            ((128, 128), (64, 64)),
            ((32, 128), (32, 128)),
            ((640, 320), (64, 32)),
            ((100, 300), (43, 128)),
            ((10, 10), (64, 64)),
        ],
    )
    def test_the_image_keeps_its_aspect_and_the_rest_is_black(
        self, source: tuple[int, int], content: tuple[int, int]
    ) -> None:
        image = picture(*source)
        pixels, frame = preprocess(image, LETTERBOX)
        assert frame == Frame(source, (64, 128), content)
        np.testing.assert_array_equal(pixels[: content[0], : content[1]], resized(image, *content))
        assert not pixels[content[0] :].any()
        assert not pixels[:, content[1] :].any()


class TestShortSide:
    @pytest.mark.parametrize(
        ("source", "network"),
        [
            ((96, 96), (96, 96)),
            ((48, 96), (96, 192)),  # enlarged to a short side of 96
            ((200, 300), (192, 288)),  # not shrunk, rounded to 32: 6.25 and 9.375 strides
            ((112, 112), (128, 128)),  # halves round up,
            ((144, 144), (160, 160)),  # to odd multiples too
            ((111, 111), (96, 96)),
            ((1000, 2000), (256, 512)),  # the longest side is capped
            ((48, 4800), (32, 512)),
        ],
    )
    def test_sizes(self, source: tuple[int, int], network: tuple[int, int]) -> None:
        assert SHORT_SIDE.sizes(*source) == (network, network)
        assert SHORT_SIDE.sizes(*source[::-1]) == (network[::-1], network[::-1])

    def test_only_larger_images_are_scaled_when_asked_to(self) -> None:
        policy = ResizePolicy(side=96, largest_side=512, enlarge=False, shrink=True)
        assert policy.sizes(48, 64)[0] == (64, 64)
        assert policy.sizes(192, 384)[0] == (96, 192)

    def test_the_pixels_are_those_of_opencv(self) -> None:
        image = picture(48, 101)
        pixels, frame = preprocess(image, SHORT_SIDE)
        np.testing.assert_array_equal(pixels, resized(image, 96, 192))
        assert frame == Frame((48, 101), (96, 192), (96, 192))


class TestLongSide:
    @pytest.mark.parametrize(
        ("source", "network"),
        [((48, 96), (64, 96)), ((24, 48), (64, 96)), ((200, 300), (192, 288)), ((400, 800), (256, 512))],
    )
    def test_sizes(self, source: tuple[int, int], network: tuple[int, int]) -> None:
        assert LONG_SIDE.sizes(*source) == (network, network)

    def test_images_shrink_when_asked_to(self) -> None:
        policy = ResizePolicy(kind="long_side", side=96, largest_side=512, shrink=True)
        assert policy.sizes(200, 400)[0] == (64, 96)

    def test_the_pixels_are_those_of_opencv(self) -> None:
        image = picture(30, 48)
        np.testing.assert_array_equal(preprocess(image, LONG_SIDE)[0], resized(image, 64, 96))


class TestBuckets:
    def test_sides_round_to_the_nearest_bucket(self) -> None:
        policy = ResizePolicy(side=736, largest_side=1600, bucket=64)
        # 720 x 1280 is enlarged to 736 x 1308.4: 11.5 and 20.4 buckets.
        assert policy.sizes(720, 1280)[0] == (768, 1280)
        assert policy.sizes(1500, 1000)[0] == (1472, 1024)

    @given(st.integers(1, 20_000), st.integers(1, 20_000))
    def test_requests_of_many_sizes_share_a_few_shapes(self, height: int, width: int) -> None:
        policy = ResizePolicy(side=736, largest_side=1600, bucket=64)
        (network_height, network_width), content = policy.sizes(height, width)
        assert content == (network_height, network_width)
        assert {network_height, network_width} <= set(range(64, 1601, 64))


class TestAnyImage:
    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("size", [(1, 1), (3, 10_000), (10_000, 3), (1, 100_000), (7, 5)])
    def test_extreme_sizes_are_images(self, policy: ResizePolicy, size: tuple[int, int]) -> None:
        pixels, frame = preprocess(picture(*size), policy)
        assert pixels.shape == (*frame.network, 3)
        assert pixels.dtype == np.uint8
        assert frame.source == size
        assert max(frame.network) <= 512

    @given(
        st.integers(1, 20_000),
        st.integers(1, 20_000),
        st.sampled_from(["fixed", "letterbox", "short_side", "long_side"]),
        st.sampled_from([(32, 32), (32, 64), (4, 20), (1, 1)]),
        st.booleans(),
        st.booleans(),
    )
    def test_sizes_are_whole_strides_and_the_content_is_inside(
        self, height: int, width: int, kind: Any, strides: tuple[int, int], enlarge: bool, shrink: bool
    ) -> None:
        stride, bucket = strides
        policy = ResizePolicy(
            kind, 640, 320, side=480, enlarge=enlarge, shrink=shrink, largest_side=1280, stride=stride, bucket=bucket
        )
        network, content = policy.sizes(height, width)
        assert all(side % stride == 0 and stride <= side <= 1280 for side in network)
        assert all(1 <= inner <= side for inner, side in zip(content, network, strict=True))

    @pytest.mark.parametrize("policy", POLICIES)
    def test_the_image_is_not_changed_and_the_pixels_are_contiguous(self, policy: ResizePolicy) -> None:
        image = picture(50, 70)
        before = image.copy()
        pixels, _ = preprocess(image, policy)
        np.testing.assert_array_equal(image, before)
        assert pixels.flags.c_contiguous

    def test_a_view_of_swapped_channels_is_an_image_too(self) -> None:
        image = picture(50, 70)
        swapped = preprocess(image[:, :, ::-1], FIXED)[0]
        np.testing.assert_array_equal(swapped, preprocess(image, FIXED)[0][:, :, ::-1])

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((4, 4), np.uint8), r"uint8 array of shape \(H, W, 3\), RGB; got uint8 \(4, 4\)"),
            (np.zeros((4, 4, 4), np.uint8), r"got uint8 \(4, 4, 4\)"),
            (np.zeros((4, 4, 3), np.float32), r"got float32 \(4, 4, 3\)"),
            (np.zeros((0, 4, 3), np.uint8), r"got uint8 \(0, 4, 3\)"),
            (np.zeros((1, 4, 4, 3), np.uint8), r"got uint8 \(1, 4, 4, 3\)"),
        ],
    )
    def test_anything_else_is_refused_with_its_dtype_and_shape(self, image: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            preprocess(image, FIXED)


class TestFrame:
    def test_the_array_holds_heights_before_widths(self) -> None:
        array = Frame((480, 640), (64, 128), (64, 86)).to_array()
        assert array.tolist() == [480, 640, 64, 128, 64, 86]
        assert array.dtype == np.int32

    @given(*[st.integers(1, 100_000)] * 4, st.data())
    def test_it_survives_the_wire(self, height: int, width: int, rows: int, columns: int, data: st.DataObject) -> None:
        content = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
        frame = Frame((height, width), (rows, columns), content)
        assert Frame.from_array(frame.to_array(), ResizePolicy()) == frame

    def test_scale_is_source_pixels_per_content_pixel_in_x_and_y(self) -> None:
        assert Frame((480, 640), (64, 128), (48, 64)).scale == (10, 10)
        assert Frame((48, 640), (64, 128), (48, 64)).scale == (10, 1)

    @pytest.mark.parametrize(
        "values",
        [[1, 2, 3], [0, 1, 1, 1, 1, 1], [9, 9, 4, 4, 5, 4], [9, 9, 4, 4, 4, 5], [9, 9, 4, 4, -1, 4], [1] * 7],
    )
    def test_an_array_that_is_no_frame_is_refused(self, values: list[int]) -> None:
        with pytest.raises(
            InvalidInputError, match=r"FRAME must hold six positive numbers .*got \[.*ocdnet_preprocess"
        ):
            Frame.from_array(np.array(values, np.int32), ResizePolicy())


class TestValidation:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {"kind": "stretch"},
                r"resize\.kind must be one of fixed, letterbox, short_side, long_side; got 'stretch'",
            ),
            ({"stride": 0}, r"resize\.stride must be .*from 1 to 256.*got 0"),
            ({"stride": 257}, r"resize\.stride .*got 257"),
            ({"kind": "fixed", "width": 1000}, r"resize\.width must be a multiple of the stride 32.*got 1000"),
            ({"kind": "letterbox", "height": 0}, r"resize\.height .*got 0"),
            ({"kind": "fixed", "height": 8192}, r"resize\.height .*at most 4096.*got 8192"),
            ({"largest_side": 100}, r"resize\.largest_side .*got 100"),
            ({"bucket": 48}, r"resize\.bucket must be a multiple of the stride 32.*got 48"),
            ({"side": 16}, r"resize\.side must be .*from 32 to 4096.*got 16"),
            ({"kind": "long_side", "side": 5000}, r"resize\.side .*got 5000"),
            ({"side": 736.5}, r"resize\.side .*got 736\.5"),
        ],
    )
    def test_a_bad_field_is_refused_by_name_rule_and_value(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            ResizePolicy(**values)

    def test_a_stride_of_64_needs_nothing_else_changed_for_a_policy_without_fixed_size(self) -> None:
        assert ResizePolicy(kind="short_side", stride=64, bucket=64).sizes(736, 736)[0] == (768, 768)
