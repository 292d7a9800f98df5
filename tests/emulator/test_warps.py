# SPDX-License-Identifier: Apache-2.0
"""Warp intrinsics, full and partial warps, and what happens when lanes are missing."""

import numpy as np
import pytest
from cuda_emulator import KernelFault, Schedule, run_kernel

pytestmark = pytest.mark.usefixtures("cuda_compiler")

SOURCE = r"""
extern "C" __global__ void shuffles(int* out) {
    const unsigned all = 0xFFFFFFFF;
    const int t = threadIdx.x, lane = t % 32;
    int* row = out + 8 * t;
    row[0] = __shfl_sync(all, t, 5);
    row[1] = __shfl_sync(all, t, lane + 1, 8);
    row[2] = __shfl_up_sync(all, t, 3);
    row[3] = __shfl_down_sync(all, t, 3);
    row[4] = __shfl_xor_sync(all, t, 1);
    row[5] = __shfl_down_sync(all, t, 1, 4);
    row[6] = __shfl_up_sync(all, t, 1, 4);
    row[7] = static_cast<int>(__shfl_sync(all, 0.5 * t, 31) * 2);
}

extern "C" __global__ void votes(unsigned* out) {
    const unsigned all = 0xFFFFFFFF;
    const int lane = threadIdx.x % 32;
    unsigned* row = out + 8 * threadIdx.x;
    row[0] = __ballot_sync(all, lane % 3 == 0);
    row[1] = __any_sync(all, lane == 7);
    row[2] = __any_sync(all, 0);
    row[3] = __all_sync(all, lane < 32);
    row[4] = __all_sync(all, lane != 9);
    row[5] = __match_any_sync(all, lane / 8);
    row[6] = __reduce_add_sync(all, 1u) + __reduce_max_sync(all, lane) - __reduce_min_sync(all, lane + 2);
    row[7] = __reduce_or_sync(all, 1u << lane) ^ __reduce_and_sync(all, 0xF0u | lane) ^ __reduce_xor_sync(all, 4u);
}

extern "C" __global__ void halves(unsigned* out) {
    // Both halves of the warp are under way at the same time, each with its own mask.
    const unsigned mask = threadIdx.x < 16 ? 0x0000FFFF : 0xFFFF0000;
    unsigned sum = 1;
    for (int step = 8; step > 0; step /= 2)
        sum += __shfl_xor_sync(mask, sum, step);
    out[threadIdx.x] = sum + __ballot_sync(mask, threadIdx.x % 16 == 0);
}

extern "C" __global__ void ends_early(int* out) {
    if (threadIdx.x % 2 == 1)
        return;
    out[threadIdx.x] = __popc(__ballot_sync(0xFFFFFFFF, 1));
}

extern "C" __global__ void from_absent(unsigned* out) {
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_down_sync(0x0000FFFF, threadIdx.x, 8);
}

extern "C" __global__ void without_own_lane(int* out) { out[threadIdx.x] = __ballot_sync(0x0000FFFF, 1); }

extern "C" __global__ void with_missing_lanes(int* out) {
    if (threadIdx.x < 16)
        out[threadIdx.x] = __ballot_sync(0xFFFFFFFF, 1);
    else
        __syncthreads();
}

extern "C" __global__ void with_other_mask(int* out) {
    const unsigned mask = threadIdx.x < 16 ? 0xFFFFFFFF : 0xFFFF0000;
    out[threadIdx.x] = __any_sync(mask, 1);
    __syncthreads();
}

extern "C" __global__ void odd_width(int* out) { out[threadIdx.x] = __shfl_sync(0xFFFFFFFF, 1, 0, 12); }

extern "C" __global__ void handed_over(int* out) {
    __shared__ int values[64];
    const int t = threadIdx.x;
    values[t] = t;
    __syncwarp();
    const int other = values[t ^ 1];
    __syncwarp();
    values[t] = other;
    __syncwarp();
    out[t] = values[t ^ 1];
}
"""


@pytest.mark.parametrize("seed", range(3))
def test_shuffles_stay_inside_of_warp_and_width(seed: int) -> None:
    out = np.zeros((64, 8), np.int32)

    run_kernel(SOURCE, "shuffles", 1, 64, out, schedule=Schedule(seed=seed))

    assert out[0].tolist() == [5, 1, 0, 3, 1, 1, 0, 31]
    assert out[7].tolist() == [5, 0, 4, 10, 6, 7, 6, 31]
    assert out[31].tolist() == [5, 24, 28, 31, 30, 31, 30, 31]
    assert out[32].tolist() == [37, 33, 32, 35, 33, 33, 32, 63]
    assert out[62].tolist() == [37, 63, 59, 62, 63, 63, 61, 63]


def test_votes_matches_and_reductions() -> None:
    out = np.zeros((64, 8), np.uint32)

    run_kernel(SOURCE, "votes", 1, 64, out)

    assert out[0].tolist() == [0x49249249, 1, 0, 1, 0, 0x000000FF, 32 + 31 - 2, 0xFFFFFFFF ^ 0xF0]
    assert out[63].tolist() == [0x49249249, 1, 0, 1, 0, 0xFF000000, 32 + 31 - 2, 0xFFFFFFFF ^ 0xF0]


def test_parts_of_a_warp_work_side_by_side() -> None:
    out = np.zeros(32, np.uint32)

    run_kernel(SOURCE, "halves", 1, 32, out)

    assert out.tolist() == [17] * 16 + [0x10010] * 16


def test_lanes_that_have_ended_or_never_were_do_not_count() -> None:
    out = np.zeros(40, np.int32)

    run_kernel(SOURCE, "ends_early", 1, 40, out)

    assert out[::2].tolist() == [16] * 16 + [4] * 4
    assert out[1::2].tolist() == [0] * 20


def test_a_missing_lane_returns_garbage() -> None:
    out = np.zeros(32, np.uint32)

    run_kernel(SOURCE, "from_absent", 1, 32, out)

    assert out[:16].tolist() == [*range(8, 16), *[0xCDCDCDCD] * 8]


@pytest.mark.parametrize("seed", range(3))
def test_shared_memory_is_handed_over_by_syncwarp(seed: int) -> None:
    out = np.zeros(64, np.int32)

    run_kernel(SOURCE, "handed_over", 1, 64, out, schedule=Schedule(seed=seed))

    assert out.tolist() == list(range(64))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            "without_own_lane",
            r"(1[6-9]|2\d|3[01]), 0, 0\): the mask 0x0000FFFF of a vote at kernel.cu:\d+ lacks the calling lane",
        ),
        (
            "with_missing_lanes",
            r"no thread can go on; thread \(0, 0, 0\) waits in a vote at kernel.cu:\d+, whose mask 0xFFFFFFFF lacks "
            r"lanes 0xFFFF0000; thread \(16, 0, 0\) waits in __syncthreads at kernel.cu:\d+",
        ),
        (
            "with_other_mask",
            r"thread \(0, 0, 0\) waits in a vote at kernel.cu:\d+, whose mask .* lacks lanes 0xFFFF0000",
        ),
        ("odd_width", r"a shuffle's width must be a power of two up to 32, not 12, at kernel.cu:\d+"),
    ],
)
def test_missing_lanes_and_wrong_masks_are_errors(kernel: str, message: str) -> None:
    with pytest.raises(KernelFault, match=rf"^{kernel}, block \(0, 0, 0\), thread \(.*{message}"):
        run_kernel(SOURCE, kernel, 1, 32, np.zeros(32, np.int32))
