# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of CUDA that C++ lacks, in one thread: each against values from CUDA's documentation or by hand."""

import numpy as np
import pytest
from cuda_emulator import run_kernel

pytestmark = pytest.mark.usefixtures("cuda_compiler")

INT_MIN, INT_MAX, UINT_MAX = -(2**31), 2**31 - 1, 2**32 - 1
LL_MIN, LL_MAX, ULL_MAX = -(2**63), 2**63 - 1, 2**64 - 1
NAN, INFINITY = float("nan"), float("inf")

SOURCE = r"""
#include <cuda_fp16.h>

extern "C" __global__ void bits(const int* in, int n, int* out) {
    for (int i = 0; i < n; ++i) {
        const int v = in[i];
        const long long wide = static_cast<long long>(v) * 65536;
        int* row = out + 8 * i;
        row[0] = __clz(v);
        row[1] = __clzll(wide);
        row[2] = __ffs(v);
        row[3] = __ffsll(wide);
        row[4] = __popc(v);
        row[5] = __popcll(wide);
        row[6] = __brev(v);
        row[7] = static_cast<int>(__brevll(wide) >> 16);
    }
}

extern "C" __global__ void products(unsigned* out, unsigned long long* wide) {
    out[0] = __umulhi(0x80000000u, 6u);
    out[1] = __mulhi(-2, 5);
    out[2] = __funnelshift_l(0x12345678u, 0x9ABCDEF0u, 8);
    out[3] = __funnelshift_r(0x12345678u, 0x9ABCDEF0u, 8);
    out[4] = __byte_perm(0x33221100u, 0x77665544u, 0x7531u);
    out[5] = __byte_perm(0x80000000u, 0u, 0x000Bu);
    wide[0] = __umul64hi(1ull << 63, 6);
    wide[1] = __mul64hi(-2, 5);
}

extern "C" __global__ void from_float(const float* in, int n, int* i, unsigned* u, long long* l,
                                      unsigned long long* ul) {
    for (int k = 0; k < n; ++k) {
        const float v = in[k];
        i[4 * k] = __float2int_rn(v);
        i[4 * k + 1] = __float2int_rz(v);
        i[4 * k + 2] = __float2int_rd(v);
        i[4 * k + 3] = __float2int_ru(v);
        u[k] = __float2uint_rn(v);
        l[k] = __float2ll_rn(v);
        ul[k] = __float2ull_rn(v);
    }
}

extern "C" __global__ void from_double(const double* in, int n, int* i, unsigned* u, long long* l) {
    for (int k = 0; k < n; ++k) {
        const double v = in[k];
        i[4 * k] = __double2int_rn(v);
        i[4 * k + 1] = __double2int_rz(v);
        i[4 * k + 2] = __double2int_rd(v);
        i[4 * k + 3] = __double2int_ru(v);
        u[k] = __double2uint_rz(v);
        l[k] = __double2ll_rd(v);
    }
}

extern "C" __global__ void to_float(float* f, double* d, int* bits) {
    f[0] = __int2float_rn(16777217);
    f[1] = __uint2float_rn(4294967295u);
    f[2] = __ll2float_rn(-9007199254740993ll);
    f[3] = __double2float_rn(0.1);
    f[4] = __int_as_float(0x3F800000);
    f[5] = __uint_as_float(0xC0000000u);
    d[0] = __int2double_rn(-7);
    d[1] = __ll2double_rn(9007199254740993ll);
    d[2] = __longlong_as_double(0x4000000000000000ll);
    bits[0] = __float_as_int(-0.0f);
    bits[1] = __float_as_uint(1.5f);
    bits[2] = static_cast<int>(__double_as_longlong(1.0) >> 32);
}

extern "C" __global__ void rounded(float* f, double* d) {
    // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: the last term is lost when the product is rounded.
    const float a = 1.000244140625f;
    f[0] = __fsub_rn(__fmul_rn(a, a), 1.00048828125f);
    f[1] = a * a - 1.00048828125f;
    f[2] = __fmaf_rn(a, a, -1.00048828125f);
    f[3] = __fadd_rn(16777216.0f, 1.0f);
    f[4] = __fdiv_rn(1.0f, 3.0f);
    f[5] = __fsqrt_rn(2.0f);
    f[6] = __frcp_rn(3.0f);
    f[7] = __saturatef(-1.0f) + __saturatef(0.25f) + __saturatef(7.0f);
    d[0] = __dadd_rn(0.1, 0.2);
    d[1] = __dsub_rn(0.3, 0.1);
    d[2] = __dmul_rn(0.1, 3.0);
    d[3] = __ddiv_rn(1.0, 3.0);
    d[4] = __dsqrt_rn(2.0);
    d[5] = __fma_rn(0.1, 10.0, -1.0);
}

extern "C" __global__ void extremes(int* i, unsigned* u, float* f, double* d) {
    i[0] = min(-3, 2);
    i[1] = max(-3, 2);
    u[0] = min(3u, 0xFFFFFFFFu);
    u[1] = max(-1, 2u);
    f[0] = min(1.5f, CUDART_NAN_F);
    f[1] = max(-CUDART_INF_F, -2.0f);
    d[0] = min(0.5f, 0.25);
    d[1] = max(3.0, CUDART_INF);
    d[2] = min(1ull, 2ull) + max(-5ll, -6ll);
}

extern "C" __global__ void to_half(const float* in, int n, unsigned short* bits, float* back, __half2* pair) {
    for (int k = 0; k < n; ++k) {
        const __half half = __float2half_rn(in[k]);
        bits[k] = __half_as_ushort(half);
        back[k] = __half2float(half);
    }
    *pair = __floats2half2_rn(1.0f, -2.0f);
}

extern "C" __global__ void vectors(uchar4* bytes, float2* floats, int4* ints, unsigned* sizes) {
    bytes[0] = make_uchar4(1, 2, 3, 4);
    floats[0] = make_float2(0.5f, 1.5f);
    ints[0] = make_int4(1, 2, 3, 4);
    const uint3 three = {1, 2, 3};
    const dim3 shape(three);
    sizes[0] = sizeof(uchar3);
    sizes[1] = alignof(uchar4);
    sizes[2] = alignof(float2);
    sizes[3] = alignof(float4);
    sizes[4] = alignof(double4);
    sizes[5] = sizeof(short2);
    sizes[6] = shape.x + shape.y + shape.z + dim3(5).y;
    sizes[7] = __ldg(reinterpret_cast<const uchar4*>(bytes)).w;
}

extern "C" __global__ void functions(float* f, int* i) {
    f[0] = rintf(2.5f);
    f[1] = rint(-1.5f);
    f[2] = floorf(-0.5f);
    f[3] = ceilf(0.25f);
    f[4] = fabsf(-3.0f);
    f[5] = fminf(1.0f, 2.0f);
    f[6] = hypotf(3.0f, 4.0f);
    f[7] = copysignf(2.0f, -1.0f);
    i[0] = abs(-4);
    i[1] = isnan(CUDART_NAN_F);
    i[2] = isinf(CUDART_INF_F);
    i[3] = lrintf(3.5f);
    i[4] = warpSize;
}
"""


def test_bit_counts_and_reversals_also_of_zero() -> None:
    out = np.zeros((4, 8), np.int32)

    run_kernel(SOURCE, "bits", 1, 1, np.array([0, 1, 0x00F0, -1], np.int32), np.int32(4), out)

    assert out.tolist() == [
        [32, 64, 0, 0, 0, 0, 0, 0],
        [31, 47, 1, 17, 1, 1, INT_MIN, INT_MIN],
        [24, 40, 5, 21, 4, 4, 0x0F000000, 0x0F000000],
        [0, 0, 1, 17, 32, 48, -1, -1],
    ]


def test_high_products_shifts_and_permutations() -> None:
    out, wide = np.zeros(6, np.uint32), np.zeros(2, np.uint64)

    run_kernel(SOURCE, "products", 1, 1, out, wide)

    assert out.tolist() == [3, UINT_MAX, 0xBCDEF012, 0xF0123456, 0x77553311, 0x000000FF]
    assert wide.tolist() == [3, ULL_MAX]


def test_conversions_of_float_round_as_specified_and_saturate() -> None:
    values = np.array([2.5, -2.5, 3.7, -0.2, 3e9, -3e9, 1e20, INFINITY, -INFINITY, NAN], np.float32)
    i = np.zeros((10, 4), np.int32)
    u, wide, wide_u = np.zeros(10, np.uint32), np.zeros(10, np.int64), np.zeros(10, np.uint64)

    run_kernel(SOURCE, "from_float", 1, 1, values, np.int32(10), i, u, wide, wide_u)

    assert i.tolist() == [
        [2, 2, 2, 3],
        [-2, -2, -3, -2],
        [4, 3, 3, 4],
        [0, 0, -1, 0],
        [INT_MAX] * 4,
        [INT_MIN] * 4,
        [INT_MAX] * 4,
        [INT_MAX] * 4,
        [INT_MIN] * 4,
        [0] * 4,
    ]
    assert u.tolist() == [2, 0, 4, 0, 3_000_000_000, 0, UINT_MAX, UINT_MAX, 0, 0]
    assert wide.tolist() == [2, -2, 4, 0, 3_000_000_000, -3_000_000_000, LL_MAX, LL_MAX, LL_MIN, LL_MIN]
    assert wide_u.tolist() == [2, 0, 4, 0, 3_000_000_000, 0, ULL_MAX, ULL_MAX, 0, 2**63]


def test_conversions_of_double_round_as_specified_and_saturate() -> None:
    values = np.array([0.5, 1.5, -1.5, 2147483647.5, -2147483648.5, 1e300, NAN])
    i = np.zeros((7, 4), np.int32)
    u, wide = np.zeros(7, np.uint32), np.zeros(7, np.int64)

    run_kernel(SOURCE, "from_double", 1, 1, values, np.int32(7), i, u, wide)

    assert i.tolist() == [
        [0, 0, 0, 1],
        [2, 1, 1, 2],
        [-2, -1, -2, -1],
        [INT_MAX, INT_MAX, INT_MAX, INT_MAX],
        [INT_MIN, INT_MIN, INT_MIN, INT_MIN],
        [INT_MAX] * 4,
        [INT_MIN] * 4,
    ]
    assert u.tolist() == [0, 1, 0, 2147483647, 0, UINT_MAX, 2**31]
    assert wide.tolist() == [0, 1, -2, 2147483647, -2147483649, LL_MAX, LL_MIN]


def test_conversions_to_floating_point_and_reinterpretations() -> None:
    f, d, bits = np.zeros(6, np.float32), np.zeros(3), np.zeros(3, np.int32)

    run_kernel(SOURCE, "to_float", 1, 1, f, d, bits)

    assert f.tolist() == [16777216.0, 4294967296.0, -9007199254740992.0, float(np.float32(0.1)), 1.0, -2.0]
    assert d.tolist() == [-7.0, 9007199254740992.0, 2.0]
    assert bits.tolist() == [INT_MIN, 0x3FC00000, 0x3FF00000]


def test_products_and_sums_are_rounded_one_by_one() -> None:
    f, d = np.zeros(8, np.float32), np.zeros(6)

    run_kernel(SOURCE, "rounded", 1, 1, f, d)

    assert f.tolist() == [
        0.0,
        0.0,
        2.0**-24,
        16777216.0,
        0.3333333432674408,
        1.4142135381698608,
        0.3333333432674408,
        1.25,
    ]
    assert d.tolist() == [
        0.30000000000000004,
        0.19999999999999998,
        0.30000000000000004,
        0.3333333333333333,
        1.4142135623730951,
        5.551115123125783e-17,
    ]


def test_extremes_convert_as_in_cuda_and_pass_over_nan() -> None:
    i, u, f, d = np.zeros(2, np.int32), np.zeros(2, np.uint32), np.zeros(2, np.float32), np.zeros(3)

    run_kernel(SOURCE, "extremes", 1, 1, i, u, f, d)

    assert i.tolist() == [-3, 2]
    assert u.tolist() == [3, UINT_MAX]
    assert f.tolist() == [1.5, -2.0]
    assert d[:2].tolist() == [0.25, INFINITY]
    assert d[2] == 2.0**64 - 4


def test_half_precision_rounds_to_nearest_even() -> None:
    small = [2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 6.0e-5]
    ties = [1.0 + 2.0**-11, 1.0 + 3 * 2.0**-11, -(2.0**-14) * (1 - 2.0**-11)]
    values = np.array(
        [0.0, -0.0, 1.0, 1 / 3, 65504.0, 65519.9, 65520.0, *small, INFINITY, NAN, *ties],
        np.float32,
    )
    bits, back, pair = np.zeros(16, np.uint16), np.zeros(16, np.float32), np.zeros(2, np.float16)

    run_kernel(SOURCE, "to_half", 1, 1, values, np.int32(16), bits, back, pair)

    assert [hex(value) for value in bits] == [
        *("0x0", "0x8000", "0x3c00", "0x3555", "0x7bff", "0x7bff", "0x7c00", "0x1", "0x0", "0x1", "0x3ef", "0x7c00"),
        *("0x7fff", "0x3c00", "0x3c02", "0x8400"),
    ]
    assert np.array_equal(back, bits.view(np.float16).astype(np.float32), equal_nan=True)
    assert pair.tolist() == [1.0, -2.0]


def test_every_float_becomes_numpys_half() -> None:
    # Every half, the middle to its successor, and what is next to that middle.
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    values = np.concatenate([halves, middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf)])
    values = np.concatenate([values, -values]).astype(np.float32)
    bits, back, pair = np.zeros(len(values), np.uint16), np.zeros(len(values), np.float32), np.zeros(2, np.float16)

    run_kernel(SOURCE, "to_half", 1, 1, values, np.int32(len(values)), bits, back, pair)

    assert np.array_equal(bits, values.astype(np.float16).view(np.uint16))


def test_vector_types_have_the_layout_of_cuda() -> None:
    data, floats, ints = np.zeros(4, np.uint8), np.zeros(2, np.float32), np.zeros(4, np.int32)
    sizes = np.zeros(8, np.uint32)

    run_kernel(SOURCE, "vectors", 1, 1, data, floats, ints, sizes)

    assert (data.tolist(), floats.tolist(), ints.tolist()) == ([1, 2, 3, 4], [0.5, 1.5], [1, 2, 3, 4])
    assert sizes.tolist() == [3, 4, 8, 16, 16, 4, 7, 4]


def test_functions_of_the_mathematical_library() -> None:
    f, i = np.zeros(8, np.float32), np.zeros(5, np.int32)

    run_kernel(SOURCE, "functions", 1, 1, f, i)

    assert f.tolist() == [2.0, -2.0, -1.0, 1.0, 3.0, 1.0, 5.0, -2.0]
    assert i.tolist() == [4, 1, 1, 4, 32]
