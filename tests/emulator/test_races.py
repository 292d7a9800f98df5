# SPDX-License-Identifier: Apache-2.0
"""Race detection: accesses that no barrier orders are an error, whatever the order of threads."""

from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, KernelFault, Schedule, run_kernel, without_barrier
from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("cuda_compiler")

ROTATION = r"""
extern "C" __global__ void rotate(int* values, int rounds) {
    __shared__ int shared[96];
    const int t = threadIdx.x;
    shared[t] = values[t];
    for (int i = 0; i < rounds; ++i) {
        __syncthreads();
        const int next = shared[(t + 1) % 96];
        __syncthreads();
        shared[t] = next;
    }
    values[t] = shared[t];
}
"""
SOURCE = r"""
extern "C" __global__ void in_a_warp(int* values, int synchronised) {
    __shared__ int shared[32];
    const int t = threadIdx.x;
    shared[t] = values[t];
    if (synchronised)
        __syncwarp();
    values[t] = shared[31 - t];
}

extern "C" __global__ void around_a_vote(int* values, int synchronised) {
    __shared__ int shared[32];
    const int t = threadIdx.x;
    shared[t] = values[t];
    __syncwarp();
    const int next = shared[(t + 1) % 32];
    const int are_all = __all_sync(0xffffffffu, next >= 0);
    if (synchronised)
        __syncwarp();
    shared[t] = next + are_all;
    values[t] = shared[t];
}

extern "C" __global__ void around_a_shuffle(int* values, int synchronised) {
    __shared__ int shared[32];
    const int t = threadIdx.x;
    shared[t] = values[t];
    __syncwarp();
    const int next = __shfl_sync(0xffffffffu, shared[(t + 1) % 32], t);
    if (synchronised)
        __syncwarp();
    shared[t] = next + 1;
    values[t] = shared[t];
}

extern "C" __global__ void between_blocks(int* values) {
    if (threadIdx.x == 0)
        values[blockIdx.x] = 1;
    else
        values[16 + blockIdx.x] = values[(blockIdx.x + 1) % gridDim.x];
}

extern "C" __global__ void bytes(unsigned char* values) { values[threadIdx.x] = threadIdx.x; }

extern "C" __global__ void same_flag(int* flag) { *flag = 1; }
extern "C" __global__ void same_volatile_flag(volatile int* flag) { *flag = 1; }
extern "C" __global__ void same_cached_flag(int* flag) { if (__ldcg(flag) == 0) __stcg(flag, 1); }
extern "C" __global__ void atomics(int* sum) { atomicAdd(sum, 1); }
extern "C" __global__ void atomics_and_reads(int* sum) { if (*sum < 1000) atomicAdd(sum, 1); }
extern "C" __global__ void atomics_and_a_write(int* sum) {
    if (threadIdx.x == 7) *sum = 1; else atomicAdd(sum, 1);
}

extern "C" __global__ void reads(const unsigned char* values, int i, unsigned char* out) { *out = values[i]; }
extern "C" __global__ void reads_shared(int i, int* out) {
    extern __shared__ int dynamic[];
    dynamic[0] = 1;
    *out = dynamic[i];
}
struct Many { int values[6]; };
extern "C" __global__ void copies(const Many* from, Many* to) { *to = *from; }
extern "C" __global__ void local_arrays(int* out) {
    int local[64];
    for (int i = 0; i < 64; ++i) local[i] = i;
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < 64; ++i) sum += local[(i * out[0]) % 64];
    __syncthreads();
    if (threadIdx.x == 0) out[0] = sum;
}
"""


def _check(kernel: str, block: int, *arguments: NDArray[Any] | np.generic, grid: int = 1, shared: int = 0) -> None:
    run_kernel(SOURCE, kernel, grid, block, *arguments, shared=shared, check_races=True)


@pytest.mark.parametrize("resident_blocks", [1, 2])
def test_barriers_order_what_threads_do(resident_blocks: int) -> None:
    values = np.arange(96, dtype=np.int32)
    schedule = Schedule(resident_blocks=resident_blocks)

    run_kernel(ROTATION, "rotate", 1, 96, values, np.int32(3), schedule=schedule, check_races=True)

    assert values.tolist() == [*range(3, 96), 0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", range(2))
def test_a_missing_barrier_shows_whatever_the_seed(n: int, seed: int) -> None:
    message = (
        r"^rotate, block \(0, 0, 0\), thread \(\d+, 0, 0\): a race: it (reads|writes) shared memory at x.cu:\d+, which "
        r"(thread \(\d+, 0, 0\) of block 0|several threads) (read|wrote) at x.cu:\d+, and nothing orders the two$"
    )
    sources = {"x.cu": without_barrier(ROTATION, n)}

    with pytest.raises(KernelFault, match=message):
        run_kernel(
            "x.cu",
            "rotate",
            1,
            96,
            np.zeros(96, np.int32),
            np.int32(3),
            schedule=Schedule(seed=seed),
            sources=sources,
            check_races=True,
        )


def test_a_warp_is_ordered_by_its_own_synchronisation_only() -> None:
    values = np.arange(32, dtype=np.int32)
    _check("in_a_warp", 32, values, np.int32(1))
    assert values.tolist() == list(range(31, -1, -1))

    with pytest.raises(KernelFault, match=r"a race: it .* shared memory"):
        _check("in_a_warp", 32, values, np.int32(0))


@pytest.mark.parametrize("kernel", ["around_a_vote", "around_a_shuffle"])
def test_votes_and_shuffles_order_no_accesses(kernel: str) -> None:
    values = np.arange(32, dtype=np.int32)
    _check(kernel, 32, values, np.int32(1))
    assert values.tolist() == [*range(2, 33), 1]

    with pytest.raises(KernelFault, match=r"a race: it writes shared memory"):
        _check(kernel, 32, values, np.int32(0))


def test_blocks_are_not_ordered() -> None:
    with pytest.raises(KernelFault, match=r"a race: it .* global memory .* of block [0-3] (wrote|read) at"):
        _check("between_blocks", 2, np.zeros(32, np.int32), grid=4)


def test_neighbouring_bytes_are_different_ones() -> None:
    values = np.zeros(64, np.uint8)

    _check("bytes", 64, values)

    assert values.tolist() == list(range(64))


@pytest.mark.parametrize(
    ("kernel", "is_race"),
    [
        ("same_flag", True),
        ("same_volatile_flag", False),
        ("same_cached_flag", False),
        ("atomics", False),
        ("atomics_and_reads", False),
        ("atomics_and_a_write", True),
    ],
)
def test_atomics_and_volatile_accesses_may_meet(kernel: str, is_race: bool) -> None:
    if is_race:
        with pytest.raises(KernelFault, match="a race"):
            _check(kernel, 64, np.zeros(1, np.int32), grid=2)
    else:
        _check(kernel, 64, np.zeros(1, np.int32), grid=2)


@pytest.mark.parametrize("index", [5, 6, -1, 4096])
def test_a_byte_outside_of_a_buffer_is_not_read(index: int) -> None:
    message = r"it reads 1 bytes at 0x\w+, which are not all inside of one buffer or of shared memory at kernel.cu:\d+"

    with pytest.raises(KernelFault, match=message):
        _check("reads", 1, np.zeros(5, np.uint8), np.int32(index), np.zeros(1, np.uint8))


def test_dynamic_shared_memory_ends_where_the_launch_says() -> None:
    out = np.zeros(1, np.int32)
    _check("reads_shared", 1, np.int32(9), out, shared=40)
    assert out.view(np.uint32)[0] == 0xCDCDCDCD

    with pytest.raises(KernelFault, match="it reads 4 bytes at"):
        _check("reads_shared", 1, np.int32(10), out, shared=40)


def test_structures_are_checked_as_a_whole() -> None:
    values, out = np.arange(6, dtype=np.int32), np.zeros(6, np.int32)
    _check("copies", 1, values, out)
    assert out.tolist() == [0, 1, 2, 3, 4, 5]

    with pytest.raises(KernelFault, match=r"it reads .* which are not all inside of one buffer"):
        _check("copies", 1, values[:5], out)


def test_local_arrays_are_each_threads_own() -> None:
    out = np.array([3], np.int32)

    _check("local_arrays", 33, out)

    assert out[0] == 64 * 63 // 2


def test_buffers_that_only_queued_work_uses_are_known() -> None:
    device = EmulatedDevice(sources={"x.cu": SOURCE}, check_races=True)
    stream, buffer, out = device.stream(), device.allocate(4), np.zeros(1, np.int32)
    stream.fill(buffer, 0, 4)
    stream.launch(device.module("x.cu").kernel("atomics"), (1, 1, 1), (8, 1, 1), [buffer])
    stream.to_host(out, buffer)
    buffer.close()

    stream.synchronize()

    assert out[0] == 8
