// SPDX-License-Identifier: Apache-2.0
// Conversions with a stated rounding, saturating as `cvt` of PTX does, and reinterpretations.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace emulator {

// `whole` has no fraction. C++ leaves what is out of range undefined; PTX saturates, and NaN gives 0 when source and
// target have 32 bits, else the target's highest bit alone.
template <class Integer, class Float>
Integer saturated(Float whole)
{
    constexpr int bits = 8 * sizeof(Integer);
    constexpr bool is_signed = static_cast<Integer>(-1) < 0;
    constexpr Integer highest_bit = static_cast<Integer>(1ull << (bits - 1));
    constexpr Integer lowest = is_signed ? highest_bit : 0;
    constexpr Integer highest = static_cast<Integer>(~lowest);
    if (isnan(whole))
        return bits == 32 && sizeof(Float) == 4 ? 0 : highest_bit;
    if (whole >= ldexp(Float{1}, bits - is_signed))
        return highest;
    if (whole < (is_signed ? -ldexp(Float{1}, bits - 1) : Float{0}))
        return lowest;
    return static_cast<Integer>(whole);
}

template <class To, class From>
To reinterpreted(From value)
{
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

}  // namespace emulator

// The emulator never changes the rounding mode, so `rint` rounds to nearest, ties to even.
#define EMULATOR_TO_INTEGER(source, source_name, target, target_name)                                                  \
    inline target __##source_name##2##target_name##_rn(source value) { return emulator::saturated<target>(rint(value)); }  \
    inline target __##source_name##2##target_name##_rz(source value) { return emulator::saturated<target>(trunc(value)); } \
    inline target __##source_name##2##target_name##_rd(source value) { return emulator::saturated<target>(floor(value)); } \
    inline target __##source_name##2##target_name##_ru(source value) { return emulator::saturated<target>(ceil(value)); }
EMULATOR_TO_INTEGER(float, float, int, int)
EMULATOR_TO_INTEGER(float, float, unsigned, uint)
EMULATOR_TO_INTEGER(float, float, long long, ll)
EMULATOR_TO_INTEGER(float, float, unsigned long long, ull)
EMULATOR_TO_INTEGER(double, double, int, int)
EMULATOR_TO_INTEGER(double, double, unsigned, uint)
EMULATOR_TO_INTEGER(double, double, long long, ll)
EMULATOR_TO_INTEGER(double, double, unsigned long long, ull)
#undef EMULATOR_TO_INTEGER

inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
inline float __ll2float_rn(long long value) { return static_cast<float>(value); }
inline float __ull2float_rn(unsigned long long value) { return static_cast<float>(value); }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline double __int2double_rn(int value) { return value; }
inline double __uint2double_rn(unsigned value) { return value; }
inline double __ll2double_rn(long long value) { return static_cast<double>(value); }
inline double __ull2double_rn(unsigned long long value) { return static_cast<double>(value); }

inline int __float_as_int(float value) { return emulator::reinterpreted<int>(value); }
inline unsigned __float_as_uint(float value) { return emulator::reinterpreted<unsigned>(value); }
inline float __int_as_float(int value) { return emulator::reinterpreted<float>(value); }
inline float __uint_as_float(unsigned value) { return emulator::reinterpreted<float>(value); }
inline long long __double_as_longlong(double value) { return emulator::reinterpreted<long long>(value); }
inline double __longlong_as_double(long long value) { return emulator::reinterpreted<double>(value); }
