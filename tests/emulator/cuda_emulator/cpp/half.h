// SPDX-License-Identifier: Apache-2.0
// Half precision as a storage format: conversions, and no arithmetic.
#pragma once

#include "conversions.h"
#include "vectors.h"

struct alignas(2) __half {
    unsigned short bits;
};

struct alignas(4) __half2 {
    __half x, y;
};

using half = __half;
using half2 = __half2;

inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }

// To nearest, ties to even; what is too large becomes infinity.
inline __half __float2half_rn(float value)
{
    const unsigned all = __float_as_uint(value);
    const unsigned sign = all >> 16 & 0x8000u;
    const unsigned magnitude = all & 0x7FFFFFFFu;
    unsigned result;
    if (magnitude > 0x7F800000u)
        return {0x7FFF};  // the NaN that the GPU gives
    if (magnitude >= 0x47800000u) {
        result = 0x7C00u;  // 65536 and more
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14: adding 0.5 leaves a subnormal's ten bits, rounded, at the end of the sum's fraction.
        result = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3F000000u;
    } else {
        // The carry of the rounding may run into the exponent, and from 65504 into infinity.
        result = (magnitude - 0x38000000u + 0x0FFFu + (magnitude >> 13 & 1)) >> 13;
    }
    return {static_cast<unsigned short>(sign | result)};
}

inline float __half2float(__half value)
{
    const unsigned sign = (value.bits & 0x8000u) << 16;
    const unsigned magnitude = value.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u)
        return __uint_as_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
    if (magnitude >= 0x0400u)
        return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return __uint_as_float(sign | __float_as_uint(subnormal));
}

inline __half __float2half(float value) { return __float2half_rn(value); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline __half __low2half(__half2 value) { return value.x; }
inline __half __high2half(__half2 value) { return value.y; }
