# SPDX-License-Identifier: Apache-2.0
"""Atomics of every type that CUDA has them for, many threads at one address."""

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, Schedule, run_kernel

from ocdserve.contract import UnavailableError

pytestmark = pytest.mark.usefixtures("cuda_compiler")

SOURCE = r"""
extern "C" __global__ void integers(int* i, unsigned* u, unsigned long long* l) {
    const int t = threadIdx.x;
    atomicAdd(&i[0], t - 10);
    atomicSub(&i[1], t);
    atomicMin(&i[2], -t);
    atomicMax(&i[3], t);
    atomicAdd(&i[4], 0x7FFFFFFF);
    atomicAdd(&u[0], 1);
    atomicMin(&u[1], 5u + t);
    atomicMax(&u[2], 0x80000000u + t);
    atomicOr(&u[3], 1u << (t % 32));
    atomicAnd(&u[4], ~(1u << (t % 16)));
    atomicXor(&u[5], 1u << (t % 8));
    atomicInc(&u[6], 9u);
    atomicDec(&u[7], 9u);
    atomicAdd(&l[0], 1ull << 40);
    atomicMin(&l[1], 1ull << (t % 40));
    atomicMax(&l[2], 1ull << (t % 40));
}

extern "C" __global__ void floats(float* f, double* d) {
    atomicAdd(f, 0.5f);
    atomicAdd(d, 0.25);
}

extern "C" __global__ void chain(unsigned* first, unsigned* next, unsigned* seen) {
    next[threadIdx.x] = atomicExch(first, threadIdx.x);
    unsigned old = *seen, assumed;
    do {
        assumed = old;
        old = atomicCAS(seen, assumed, assumed + threadIdx.x);
    } while (old != assumed);
}
"""


@pytest.mark.parametrize("preemption", [0, 2])
def test_integers_of_many_threads(preemption: int) -> None:
    i = np.array([0, 0, 0, 0, 0], np.int32)
    u = np.array([0, 99, 0, 0, 2**32 - 1, 0, 0, 0], np.uint32)
    wide = np.array([0, 2**50, 0], np.uint64)

    run_kernel(SOURCE, "integers", 1, 64, i, u, wide, schedule=Schedule(seed=1, preemption=preemption))

    assert i.tolist() == [64 * 63 // 2 - 640, -64 * 63 // 2, -63, 63, -64]
    assert u.tolist() == [64, 5, 0x8000003F, 2**32 - 1, 0xFFFF0000, 0, 4, 6]
    assert wide.tolist() == [64 << 40, 1, 1 << 39]


def test_floating_point_sums() -> None:
    f, d = np.zeros(1, np.float32), np.zeros(1)

    run_kernel(SOURCE, "floats", 4, 32, f, d)

    assert (f[0], d[0]) == (64.0, 32.0)


@pytest.mark.parametrize("seed", range(3))
def test_exchange_links_all_threads_and_compare_and_swap_loses_none(seed: int) -> None:
    first, following, total = np.array([99], np.uint32), np.zeros(64, np.uint32), np.zeros(1, np.uint32)

    run_kernel(SOURCE, "chain", 1, 64, first, following, total, schedule=Schedule(seed=seed, preemption=2))

    order = [int(first[0])]
    while order[-1] != 99:
        order.append(int(following[order[-1]]))
    assert sorted(order) == [*range(64), 99]
    assert total[0] == 64 * 63 // 2


@pytest.mark.parametrize(
    "call", ["atomicAdd(reinterpret_cast<short*>(p), 1)", "atomicMin(reinterpret_cast<float*>(p), 1)"]
)
def test_atomics_that_cuda_has_not_do_not_compile(call: str) -> None:
    source = f'extern "C" __global__ void kernel(int* p) {{ {call}; }}\n'

    with pytest.raises(UnavailableError, match="CUDA has no atomic"):
        EmulatedDevice(sources={"x.cu": source}).module("x.cu")
