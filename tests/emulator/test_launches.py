# SPDX-License-Identifier: Apache-2.0
"""A launch that does not fit its kernel is rejected before it is queued."""

from typing import Any

import numpy as np
import pytest
from cuda_emulator import EmulatedDevice, MisuseError, run_kernel
from cuda_emulator.launching import Parameter

SOURCE = r"""
struct Pair { int a; float b; };
template <int n>
__device__ int of_template(int v) { __shared__ volatile int values[n]; values[0] = v; return values[0]; }
namespace {
__device__ int dynamic(int i) { extern __shared__ int all[]; all[i] = i; return all[i]; }
}

/* extern "C" __global__ void commented(int n) {} */
extern "C" __global__ void every(const float* p, bool b, signed char c, unsigned short h, int i, unsigned u,
                                 long long l, float f, double d, const Pair pair, void* q) {
    float* out = static_cast<float*>(q);
    out[0] = p[0] + b + c + h + i + u + l + f + d + pair.a + pair.b;
}
extern "C" __global__ __launch_bounds__(2 * 32) void bounded_before(int* out) { *out = 1; }
extern "C" __global__ void __launch_bounds__(sizeof(Pair) * 8, 2) bounded_after(int* out) { *out = 2; }
extern "C"
__global__
void shared_of_all_kinds(int* out) {
    __shared__ volatile double own[1000];
    own[0] = of_template<100>(3) + dynamic(2);
    *out = static_cast<int>(own[0]);
}
extern "C" __global__ void nothing() {}
"""
PAIR = np.dtype([("a", np.int32), ("b", np.float32)])


@pytest.fixture
def device(cuda_compiler: None) -> EmulatedDevice:
    return EmulatedDevice(sources={"x.cu": SOURCE})


def _every(**replaced: Any) -> list[Any]:
    arguments = {
        "p": np.uint64(0),
        "b": np.bool_(True),
        "c": np.int8(-3),
        "h": np.uint16(5),
        "i": np.int32(-7),
        "u": np.uint32(11),
        "l": np.int64(-13),
        "f": np.float32(0.5),
        "d": np.float64(0.25),
        "pair": np.void((100, 0.125), PAIR),
        "q": np.uint64(0),
    }
    return list((arguments | replaced).values())


def test_parameters_are_those_that_the_compiler_sees(device: EmulatedDevice) -> None:
    assert device.module("x.cu").kernel("every").parameters == tuple(
        Parameter(size, kind) for size, kind in zip((8, 1, 1, 2, 4, 4, 8, 4, 8, 8, 8), "PbiuiuiffVP", strict=True)
    )


def test_arguments_of_every_kind_arrive() -> None:
    out = np.zeros(1, np.float32)

    run_kernel(SOURCE, "every", 1, 1, np.array([1000], np.float32), *_every()[1:-1], out)

    assert out[0] == 1094.875


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"i": np.int64(1)}, "argument 4 must be signed of 4 bytes .got int64 1."),
        ({"i": np.float32(1)}, "argument 4 must be signed of 4 bytes .got float32 1.0."),
        ({"i": np.uint32(1)}, None),
        ({"u": np.int32(1)}, None),
        ({"u": np.int32(-1)}, "argument 5 must be unsigned of 4 bytes .got int32 -1."),
        ({"f": np.float64(1)}, "argument 7 must be floating-point of 4 bytes .got float64 1.0."),
        ({"f": np.int32(1)}, "argument 7 must be floating-point of 4 bytes"),
        ({"b": np.uint8(1)}, "argument 1 must be bool of 1 bytes"),
        ({"pair": np.void((1, 2.0, 3), [("a", "i4"), ("b", "f4"), ("c", "i4")])}, "argument 9 must be structure of 8"),
        ({"p": np.int64(0)}, "argument 0 must be pointer of 8 bytes"),
        ({"p": np.uint64(4096)}, "argument 0: the address 0x1000 is in no buffer of this device"),
        ({"p": 0}, "argument 0: the buffer must be one of this device .got 0."),
    ],
)
def test_an_argument_of_another_kind_or_size_is_refused(
    device: EmulatedDevice, replaced: dict[str, Any], message: str | None
) -> None:
    kernel, stream = device.module("x.cu").kernel("every"), device.stream()

    def launch() -> None:
        stream.launch(kernel, (1, 1, 1), (1, 1, 1), _every(**replaced))

    if message is None:
        launch()
    else:
        with pytest.raises(MisuseError, match=f"^every: {message}"):
            launch()


def test_a_buffer_is_no_number(device: EmulatedDevice) -> None:
    kernel, buffer = device.module("x.cu").kernel("every"), device.allocate(4)

    with pytest.raises(MisuseError, match="every: argument 6 is no pointer, but got a buffer"):
        device.stream().launch(kernel, (1, 1, 1), (1, 1, 1), _every(l=buffer))


@pytest.mark.parametrize("count", [0, 10, 12])
def test_the_number_of_arguments_must_be_right(device: EmulatedDevice, count: int) -> None:
    arguments = (_every() * 2)[:count]

    with pytest.raises(MisuseError, match=rf"every: takes 11 arguments \(got {count}\)"):
        device.stream().launch(device.module("x.cu").kernel("every"), (1, 1, 1), (1, 1, 1), arguments)


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0, 1, 1), (1, 1, 1), r"grid must be within 1 and \(2147483647, 65535, 65535\) \(got \(0, 1, 1\)\)"),
        ((1, 65536, 1), (1, 1, 1), r"grid must be within .* \(got \(1, 65536, 1\)\)"),
        ((1, 1, 65536), (1, 1, 1), r"grid must be within"),
        ((1, 1, 1), (1025, 1, 1), r"block must be within 1 and \(1024, 1024, 64\) \(got \(1025, 1, 1\)\)"),
        ((1, 1, 1), (1, 1, 65), r"block must be within"),
        ((1, 1, 1), (32, 33, 1), r"a block must have at most 1024 threads \(got \(32, 33, 1\): 1056\)"),
    ],
)
def test_grids_and_blocks_have_the_limits_of_cuda(
    device: EmulatedDevice, grid: tuple[int, int, int], block: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(MisuseError, match=f"nothing: {message}"):
        device.stream().launch(device.module("x.cu").kernel("nothing"), grid, block, [])


@pytest.mark.parametrize("kernel", ["bounded_before", "bounded_after"])
def test_launch_bounds_hold(kernel: str) -> None:
    run_kernel(SOURCE, kernel, 1, 64, np.zeros(1, np.int32))

    with pytest.raises(MisuseError, match=rf"{kernel}: a block must have at most 64 threads \(got \(65, 1, 1\): 65\)"):
        run_kernel(SOURCE, kernel, 1, 65, np.zeros(1, np.int32))


def test_shared_memory_of_functions_counts_too() -> None:
    out = np.zeros(1, np.int32)
    own = 8000 + 400

    run_kernel(SOURCE, "shared_of_all_kinds", 1, 1, out, shared=49152 - own)

    assert out[0] == 5
    with pytest.raises(MisuseError, match=r"at most 49152 bytes \(got 40753 dynamic and 8400 static\)"):
        run_kernel(SOURCE, "shared_of_all_kinds", 1, 1, out, shared=49152 - own + 1)
