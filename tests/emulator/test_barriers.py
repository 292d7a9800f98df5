# SPDX-License-Identifier: Apache-2.0
"""Barriers, and the detection of missing ones."""

import numpy as np
import pytest
from cuda_emulator import KernelFault, MisuseError, Schedule, run_kernel, without_barrier

pytestmark = pytest.mark.usefixtures("cuda_compiler")

SEEDS = range(4)
REDUCTION = r"""
// One sum for each block; not __syncthreads(); in a comment.
extern "C" __global__ void __launch_bounds__(256) total(const unsigned* values, int n, unsigned* sums) {
    __shared__ unsigned partial[256];
    const int t = threadIdx.x;
    for (int round = blockIdx.x; round < 6; round += gridDim.x) {
        const int i = round * blockDim.x + t;
        partial[t] = i < n ? values[i] : 0;
        __syncthreads();
        for (int half = blockDim.x / 2; half > 0; half /= 2) {
            if (t < half)
                partial[t] += partial[t + half];
            __syncthreads();
        }
        const unsigned sum = partial[0];
        __syncthreads();
        if (t == 100)
            sums[round] = sum;
    }
}
"""
OTHERS = r"""
extern "C" __global__ void answers(int* out) {
    int* row = out + 4 * threadIdx.x;
    row[0] = __syncthreads_count(threadIdx.x % 3 == 0);
    row[1] = __syncthreads_and(threadIdx.x < 40);
    row[2] = __syncthreads_and(threadIdx.x != 17);
    row[3] = __syncthreads_or(threadIdx.x == 39) + 2 * __syncthreads_or(0);
}

extern "C" __global__ void ends_early(int* out) {
    __shared__ int shared;
    if (threadIdx.x >= 7)
        return;
    if (threadIdx.x == 3)
        shared = 42;
    __syncthreads();
    out[threadIdx.x] = shared + __syncthreads_count(1);
}

extern "C" __global__ void at_different_places(int n) {
    if (threadIdx.x < n)
        __syncthreads();
    else
        __syncthreads();
}

extern "C" __global__ void of_different_kinds(int n) {
    if (threadIdx.x < n) __syncthreads(); else __syncthreads_or(1);
}

extern "C" __global__ void in_a_loop(int n) {
    for (int i = 0; i < (threadIdx.x == 5 ? n : 1); ++i)
        __syncthreads();
    __syncwarp();
}

extern "C" __global__ void wide(int* out) {
    out[(threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x] =
        __syncthreads_count(threadIdx.z == 1) * 10000 + threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z +
        1000 * (blockIdx.x + blockIdx.y + blockIdx.z);
}
"""


def _sums(source: str, seed: int) -> list[int] | str:
    values, sums = np.arange(1500, dtype=np.uint32), np.zeros(6, np.uint32)
    try:
        run_kernel(source, "total", 2, 256, values, np.int32(1500), sums, schedule=Schedule(seed=seed))
    except KernelFault as error:
        return str(error)
    result: list[int] = sums.tolist()
    return result


EXPECTED = [32640, 98176, 163712, 229248, 294784, 305690]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reduction_with_its_barriers_is_right(seed: int) -> None:
    assert _sums(REDUCTION, seed) == EXPECTED


@pytest.mark.parametrize("n", range(3))
def test_a_reduction_without_one_of_its_barriers_is_wrong(n: int) -> None:
    source = without_barrier(REDUCTION, n)

    assert [seed for seed in SEEDS if _sums(source, seed) != EXPECTED] != []


def test_the_nth_barrier_is_removed_and_comments_are_ignored() -> None:
    source = without_barrier(REDUCTION, 1)

    assert source.count("__syncthreads();") == 3
    assert source.splitlines()[12].strip() == ";"
    assert [line for line in source.splitlines() if "comment" in line] == [REDUCTION.splitlines()[1]]


@pytest.mark.parametrize("n", [-1, 3])
def test_a_missing_barrier_cannot_be_removed(n: int) -> None:
    with pytest.raises(MisuseError, match=rf"the source has 3 __syncthreads\(\); n must be below \(got {n}\)"):
        without_barrier(REDUCTION, n)


@pytest.mark.parametrize("seed", SEEDS)
def test_barriers_answer_what_all_threads_said(seed: int) -> None:
    out = np.zeros((40, 4), np.int32)

    run_kernel(OTHERS, "answers", 1, 40, out, schedule=Schedule(seed=seed))

    assert np.unique(out, axis=0).tolist() == [[14, 1, 0, 1]]


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_that_have_ended_are_not_waited_for(seed: int) -> None:
    out = np.zeros(40, np.int32)

    run_kernel(OTHERS, "ends_early", 1, 40, out, schedule=Schedule(seed=seed))

    assert out.tolist() == [49] * 7 + [0] * 33


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", ["at_different_places", "of_different_kinds"])
def test_threads_at_different_barriers_are_an_error(kernel: str, seed: int) -> None:
    message = (
        rf"^{kernel}, block \(0, 0, 0\), thread \(\d+, 0, 0\): it comes to __syncthreads(_or)? at kernel.cu:\d+, "
        r"while thread \(\d+, 0, 0\) waits in __syncthreads(_or)? at kernel.cu:\d+$"
    )

    with pytest.raises(KernelFault, match=message):
        run_kernel(OTHERS, kernel, 1, 64, np.int32(20), schedule=Schedule(seed=seed))


def test_a_thread_alone_at_a_barrier_is_an_error() -> None:
    message = r"no thread can go on; .*thread \(5, 0, 0\) waits in __syncthreads at kernel.cu:33"

    with pytest.raises(KernelFault, match=message):
        run_kernel(OTHERS, "in_a_loop", 1, 32, np.int32(2))


@pytest.mark.parametrize("resident_blocks", [1, 3])
def test_threads_know_their_place_in_three_dimensions(resident_blocks: int) -> None:
    out = np.zeros((2, 3, 4), np.int32)

    run_kernel(OTHERS, "wide", (1, 1, 1), (4, 3, 2), out, schedule=Schedule(resident_blocks=resident_blocks))

    assert out.tolist() == [[[120000 + x + 10 * y + 100 * z for x in range(4)] for y in range(3)] for z in range(2)]
