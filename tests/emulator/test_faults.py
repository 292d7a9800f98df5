# SPDX-License-Identifier: Apache-2.0
"""What a kernel must not do ends its launch with an error that says where, and leaves the process alive."""

import faulthandler
import signal
import threading

import numpy as np
import pytest
from cuda_emulator import KernelFault, Schedule, run_kernel

pytestmark = pytest.mark.usefixtures("cuda_compiler")

SOURCE = r"""
#include <assert.h>

extern "C" __global__ void reads(const int* values, int i, int* out) { *out = values[i]; }
extern "C" __global__ void writes(unsigned char* values, int i) { values[i] = 1; }
extern "C" __global__ void one_of_many(int* values, int n, int bad) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) values[i] = 1;
    if (i == bad) values[1 << 20] = 1;
}
extern "C" __global__ void misaligned(const float* values, int i, float* out) {
    *out = reinterpret_cast<const float4*>(values + i)->x;
}
extern "C" __global__ void beyond_an_array(int i, int* out) {
    __shared__ int values[8];
    values[i] = 3;
    *out = values[0];
}
extern "C" __global__ void beyond_dynamic(int i) {
    extern __shared__ int dynamic[];
    dynamic[i] = 3;
}
extern "C" __global__ void shifts(int by, int* out) { *out = 1 << by; }
extern "C" __global__ void casts(float value, int* out) { *out = static_cast<int>(value); }
extern "C" __global__ void divides(int by, int* out) { *out = 7 / by; }
extern "C" __global__ void overflows(int by, int* out) { *out = 0x7FFFFFFF + by; }
extern "C" __global__ void asserts(int n) { assert(static_cast<int>(threadIdx.x) < n); }
extern "C" __global__ void traps() { __trap(); }
extern "C" __global__ void never_ends(volatile int* flag) { while (*flag == 0) {} }
__device__ int deep(int n) {
    volatile int local[1000];
    local[n % 1000] = n;
    return n == 0 ? 0 : deep(n - 1) + local[n % 1000];
}
extern "C" __global__ void recurses(int n, int* out) { *out = deep(n); }
"""
ONE = np.zeros(1, np.int32)


@pytest.mark.parametrize(
    ("kernel", "arguments", "message"),
    [
        (
            "reads",
            (ONE, np.int32(4), ONE),
            r"access to the address 0x\w+, which is not memory of a buffer at kernel.cu:4",
        ),
        ("writes", (np.zeros(5, np.uint8), np.int32(16)), "is not memory of a buffer at kernel.cu:5"),
        (
            "misaligned",
            (np.zeros(8, np.float32), np.int32(1), ONE.view("f4")),
            "not aligned as its type .* kernel.cu:12:",
        ),
        ("beyond_an_array", (np.int32(8), ONE), "an index out of the bounds of its array at kernel.cu:16:"),
        ("shifts", (np.int32(32), ONE), "a shift by a negative count .* at kernel.cu:23:"),
        ("casts", (np.float32(3e9), ONE), "the integer type cannot hold at kernel.cu:24:"),
        ("casts", (np.float32("nan"), ONE), "the integer type cannot hold at kernel.cu:24:"),
        ("divides", (np.int32(0), ONE), "an integer division by zero"),
        ("overflows", (np.int32(1), ONE), "an overflow of signed integers at kernel.cu:26:"),
        ("asserts", (np.int32(0),), r"assert.*threadIdx.* at kernel.cu:27"),
        ("traps", (), r"__trap\(\)"),
        ("recurses", (np.int32(1000), ONE), "its local variables overflow the emulator's stack of 256 KiB"),
    ],
)
def test_what_a_gpu_would_not_do_names_kernel_and_line(
    kernel: str, arguments: tuple[np.generic, ...], message: str
) -> None:
    with pytest.raises(KernelFault, match=rf"^{kernel}, block \(0, 0, 0\), thread \(0, 0, 0\): .*{message}") as caught:
        run_kernel(SOURCE, kernel, 1, 1, *arguments)

    assert caught.value.sticky


@pytest.mark.parametrize("seed", range(3))
def test_the_one_bad_thread_of_many_is_named(seed: int) -> None:
    with pytest.raises(KernelFault, match=r"one_of_many, block \(2, 0, 0\), thread \(37, 0, 0\)"):
        run_kernel(
            SOURCE,
            "one_of_many",
            4,
            64,
            np.zeros(256, "i4"),
            np.int32(256),
            np.int32(165),
            schedule=Schedule(seed=seed),
        )


@pytest.mark.parametrize(
    ("size", "index", "message"),
    [
        (5, 5, "writes wrote 0 bytes behind the end of a buffer of 5 bytes"),
        (5, 14, "writes wrote 9 bytes behind the end of a buffer of 5 bytes"),
        (5, -1, "writes wrote 1 bytes in front of a buffer of 5 bytes"),
        (5, -3000, "writes wrote 3000 bytes in front of a buffer of 5 bytes"),
        (32, 32, "is not memory of a buffer"),
        (32, -9000, "is not memory of a buffer"),
    ],
)
def test_writing_next_to_a_buffer_is_an_error(size: int, index: int, message: str) -> None:
    with pytest.raises(KernelFault, match=message):
        run_kernel(SOURCE, "writes", 1, 1, np.zeros(size, np.uint8), np.int32(index))


def test_writing_past_the_dynamic_shared_memory_is_an_error() -> None:
    run_kernel(SOURCE, "beyond_dynamic", 1, 1, np.int32(9), shared=40)

    with pytest.raises(KernelFault, match="wrote past the 40 bytes of dynamic shared memory"):
        run_kernel(SOURCE, "beyond_dynamic", 1, 1, np.int32(10), shared=40)


def test_a_kernel_that_does_not_end_is_stopped() -> None:
    with pytest.raises(KernelFault, match=r"never_ends, .*: it ran for more than 1 s at kernel.cu:29"):
        run_kernel(SOURCE, "never_ends", 1, 1, ONE, schedule=Schedule(time_limit_s=1))


def test_the_emulator_works_on_after_faults() -> None:
    out = np.zeros(1, np.int32)
    for _ in range(200):
        with pytest.raises(KernelFault):
            run_kernel(SOURCE, "reads", 1, 64, ONE, np.int32(1 << 16), out)

    run_kernel(SOURCE, "divides", 1, 1, np.int32(2), out)

    assert out[0] == 3


def test_faults_in_another_thread_are_caught_too() -> None:
    caught: list[str] = []

    def work() -> None:
        try:
            run_kernel(SOURCE, "reads", 1, 1, ONE, np.int32(4), ONE)
        except KernelFault as error:
            caught.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(caught) == 4


def test_signals_are_handled_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGSEGV, signal.SIGFPE, signal.SIGXCPU)]
    was_enabled = faulthandler.is_enabled()

    with pytest.raises(KernelFault):
        run_kernel(SOURCE, "reads", 1, 1, ONE, np.int32(4), ONE)

    assert [signal.getsignal(number) for number in (signal.SIGSEGV, signal.SIGFPE, signal.SIGXCPU)] == before
    assert faulthandler.is_enabled() == was_enabled
