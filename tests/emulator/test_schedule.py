# SPDX-License-Identifier: Apache-2.0
"""The seed determines the order of threads, which reveals what depends on it."""

import time
from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, MisuseError, Schedule, run_kernel

from ocdserve.backend.device.protocol import KernelArgument

pytestmark = pytest.mark.usefixtures("cuda_compiler")

SOURCE = r"""
extern "C" __global__ void order(int* next, int* out) {
    out[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}

extern "C" __global__ void order_after_barrier(int* next, int* out) {
    __syncthreads();
    out[atomicAdd(next, 1)] = threadIdx.x;
}

// Loses additions when another thread adds between the two atomics.
extern "C" __global__ void not_atomic(int* sum) {
    const int before = atomicAdd(sum, 0);
    atomicExch(sum, before + 1);
}

// Waits for the block before.
extern "C" __global__ void in_turn(volatile int* turn, int* out) {
    __shared__ int own;
    if (threadIdx.x == 0) {
        own = blockIdx.x;
        while (*turn != static_cast<int>(blockIdx.x))
            __nanosleep(100);
        out[blockIdx.x] = own;
        *turn = blockIdx.x + 1;
    }
}

// Follows a list from each thread's own place to its end.
extern "C" __global__ void follow(const int* next, int* ends) {
    const int own = blockIdx.x * blockDim.x + threadIdx.x;
    int place = own;
    for (int following; (following = __ldcg(next + place)) != place;)
        place = following;
    ends[own] = place;
}

extern "C" __global__ void shared_is_new(int* out) {
    __shared__ int values[4];
    extern __shared__ int dynamic[];
    if (threadIdx.x == 0) {
        out[2 * blockIdx.x] = values[3];
        out[2 * blockIdx.x + 1] = dynamic[gridDim.x];
        values[3] = dynamic[gridDim.x] = 1;
    }
}

extern "C" __global__ void untouched(const float* in, float* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        out[i] = __fmul_rn(in[i], 2.0f);
}
"""


def _order(seed: int, kernel: str = "order") -> list[int]:
    out = np.zeros(64, np.int32)
    grid = 4 if kernel == "order" else 1
    run_kernel(SOURCE, kernel, grid, 64 // grid, np.zeros(1, np.int32), out, schedule=Schedule(seed=seed))
    result: list[int] = out.tolist()
    return result


@pytest.mark.parametrize("kernel", ["order", "order_after_barrier"])
def test_a_seed_gives_one_order_and_another_seed_another(kernel: str) -> None:
    orders = [_order(seed, kernel) for seed in range(4)]

    assert orders == [_order(seed, kernel) for seed in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(64)) for order in orders)


def test_blocks_come_in_a_shuffled_order_one_after_another() -> None:
    blocks = [thread // 16 for thread in _order(0)]

    assert blocks == sorted(blocks, key=blocks.index)
    assert {tuple(dict.fromkeys(thread // 16 for thread in _order(seed))) for seed in range(8)} != {(0, 1, 2, 3)}


def test_each_launch_of_a_device_has_another_order_and_a_second_device_repeats_them() -> None:
    def orders() -> list[list[int]]:
        device = EmulatedDevice(Schedule(seed=5), deferred=False, sources={"x.cu": SOURCE})
        stream, following, out = device.stream(), device.allocate(4), device.allocate(256)
        result = []
        for _ in range(3):
            stream.fill(following, 0, 4)
            stream.launch(device.module("x.cu").kernel("order"), (1, 1, 1), (64, 1, 1), [following, out])
            result.append(out.array(64, np.int32).tolist())
        return result

    first = orders()
    assert len({tuple(order) for order in first}) == 3
    assert orders() == first


def test_preemption_at_atomics_shows_what_is_not_atomic() -> None:
    sums = []
    for schedule in (Schedule(), Schedule(preemption=4)):
        total = np.zeros(1, np.int32)
        run_kernel(SOURCE, "not_atomic", 1, 64, total, schedule=schedule)
        sums.append(int(total[0]))

    assert sums[0] == 64
    assert sums[1] < 64


@pytest.mark.parametrize("seed", range(3))
def test_resident_blocks_take_turns_each_with_its_shared_memory(seed: int) -> None:
    turn, out = np.zeros(1, np.int32), np.zeros(8, np.int32)

    run_kernel(SOURCE, "in_turn", 8, 4, turn, out, schedule=Schedule(seed=seed, preemption=1, resident_blocks=8))

    assert (turn[0], out.tolist()) == (8, list(range(8)))


def test_in_lockstep_a_launch_has_the_rounds_of_its_longest_chain() -> None:
    device = EmulatedDevice(Schedule(lockstep=True), deferred=False, sources={"x.cu": SOURCE})
    stream, follow = device.stream(), device.module("x.cu").kernel("follow")
    following, ends = device.allocate(4 * 96), device.allocate(4 * 96)

    # Each place of a block leads to the one before it: its last thread makes 32 reads, the last one of its first place.
    stream.to_device(following, np.array([i - (i % 32 > 0) for i in range(96)], np.int32))
    stream.launch(follow, (3, 1, 1), (32, 1, 1), [following, ends])

    assert ends.array(96, np.int32).tolist() == [0] * 32 + [32] * 32 + [64] * 32
    assert follow.rounds == 32


def test_in_lockstep_all_threads_take_part_in_a_round() -> None:
    device = EmulatedDevice(Schedule(lockstep=True), deferred=False, sources={"x.cu": SOURCE})
    stream, kernel, total = device.stream(), device.module("x.cu").kernel("not_atomic"), device.allocate(4)
    stream.fill(total, 0, 4)

    stream.launch(kernel, (5, 1, 1), (64, 1, 1), [total])

    assert total.array(1, np.int32).tolist() == [1]
    assert kernel.rounds == 2


@pytest.mark.parametrize("resident_blocks", [1, 3])
def test_shared_memory_of_every_block_begins_as_garbage(resident_blocks: int) -> None:
    out = np.zeros((10, 2), np.int32)
    schedule = Schedule(resident_blocks=resident_blocks)

    run_kernel(SOURCE, "shared_is_new", 10, 32, out, shared=64, schedule=schedule)

    assert np.unique(out.view(np.uint32)).tolist() == [0xCDCDCDCD]


def test_threads_that_do_not_wait_cost_little_more_than_calls() -> None:
    device = EmulatedDevice(deferred=False, sources={"x.cu": SOURCE})
    stream, kernel = device.stream(), device.module("x.cu").kernel("untouched")
    buffer = device.allocate(4 * 30_000)
    stream.fill(buffer, 0, 4 * 30_000)
    arguments: list[KernelArgument] = [buffer, buffer, np.int32(30_000)]
    times_s = []
    for _ in range(5):
        start_s = time.process_time()
        for _ in range(8):
            stream.launch(kernel, (118, 1, 1), (256, 1, 1), arguments)
        times_s.append(time.process_time() - start_s)

    # 0.004 s on one core of a 2 GHz server, a tenth of what a change of stacks for each thread would cost.
    assert min(times_s) < 0.05


@pytest.mark.parametrize(
    ("option", "value", "least"), [("seed", -1, 0), ("preemption", -1, 0), ("resident_blocks", 0, 1)]
)
def test_an_invalid_schedule_is_refused(option: str, value: int, least: int) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(MisuseError, match=rf"^Schedule.{option}: must be at least {least} \(got {value}\)$"):
        Schedule(**options)
