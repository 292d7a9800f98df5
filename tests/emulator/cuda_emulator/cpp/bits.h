// SPDX-License-Identifier: Apache-2.0
// Integer intrinsics and loads.
#pragma once

#include <stdint.h>

#include "scheduler.h"

inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }

inline unsigned __brev(unsigned value)
{
    value = (value & 0x55555555u) << 1 | (value >> 1 & 0x55555555u);
    value = (value & 0x33333333u) << 2 | (value >> 2 & 0x33333333u);
    value = (value & 0x0F0F0F0Fu) << 4 | (value >> 4 & 0x0F0F0F0Fu);
    return __builtin_bswap32(value);
}

inline unsigned long long __brevll(unsigned long long value)
{
    const unsigned long long low = __brev(static_cast<unsigned>(value));
    return low << 32 | __brev(static_cast<unsigned>(value >> 32));
}

inline unsigned __umulhi(unsigned a, unsigned b)
{
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}

inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline long long __mul64hi(long long a, long long b)
{
    return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31) >> 32);
}

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned choice = selector >> (4 * i);
        const unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7))) & 0xFF;
        // The selector's fourth bit asks for the byte's sign instead of the byte.
        result |= ((choice & 8) == 0 ? byte : (byte >> 7) * 0xFFu) << (8 * i);
    }
    return result;
}

#define EMULATOR_LOAD(name)         \
    template <class T>              \
    T name(const T *address)        \
    {                               \
        return *address;            \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcs)
#undef EMULATOR_LOAD

// Past the first cache, in which another block's writes are not seen: for what blocks say to each other.
template <class T>
EMULATOR_UNCHECKED T __ldcg(const T *address)
{
    EMULATOR_CHECK_ATOMIC(address, sizeof(T));
    emulator::take_turn();
    return *address;
}

template <class T>
EMULATOR_UNCHECKED void __stcg(T *address, T value)
{
    EMULATOR_CHECK_ATOMIC(address, sizeof(T));
    *address = value;
}

template <class T>
void __stcs(T *address, T value)
{
    *address = value;
}
