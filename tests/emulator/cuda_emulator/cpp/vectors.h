// SPDX-License-Identifier: Apache-2.0
// CUDA's vector types, with the alignment that the GPU demands of a pointer to them.
#pragma once

#define EMULATOR_VECTORS(type, name)                                                                            \
    struct name##1 { type x; };                                                                                 \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                                    \
    struct name##3 { type x, y, z; };                                                                           \
    struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; };                 \
    constexpr name##1 make_##name##1(type x) { return {x}; }                                                    \
    constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                                         \
    constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                              \
    constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

EMULATOR_VECTORS(signed char, char)
EMULATOR_VECTORS(unsigned char, uchar)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(unsigned short, ushort)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)
EMULATOR_VECTORS(long long, longlong)
EMULATOR_VECTORS(unsigned long long, ulonglong)
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
#undef EMULATOR_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
