// SPDX-License-Identifier: Apache-2.0
// Warp intrinsics, each computed from the values that the lanes of its mask passed.
#pragma once

#include <string.h>

#include "scheduler.h"

namespace emulator {

template <class T>
uint64_t bits_of(T value)
{
    static_assert(sizeof(T) <= 8, "a lane gives at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

// What `lane` gave; garbage, as from the GPU, if it is not in the mask or has ended.
template <class T>
EMULATOR_UNCHECKED T value_of(const Exchange &all, unsigned lane)
{
    const uint64_t bits = (all.arrived >> lane & 1) != 0 ? all.values[lane] : 0xCDCDCDCDCDCDCDCD;
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline bool is_width(int width) { return width > 0 && width <= 32 && (width & (width - 1)) == 0; }

template <class T>
T shuffle(Collective kind, unsigned mask, T value, int operand, int width, Site site)
{
    static_assert(__is_same(T, int) || __is_same(T, unsigned) || __is_same(T, long) || __is_same(T, unsigned long) ||
                      __is_same(T, long long) || __is_same(T, unsigned long long) || __is_same(T, float) ||
                      __is_same(T, double),
                  "CUDA has no shuffle of this type");
    if (!is_width(width))
        fail("a shuffle's width must be a power of two up to 32, not %d, at %s:%d", width, site.file, site.line);
    const Exchange &all = exchange(kind, mask, bits_of(value), site);
    const int own = static_cast<int>(lane());
    const int first = own & ~(width - 1);
    int source = own;
    if (kind == Collective::shfl)
        source = first + (operand & (width - 1));
    else if (kind == Collective::shfl_up)
        source = own - operand < first ? own : own - operand;
    else if (kind == Collective::shfl_down)
        source = own + operand >= first + width ? own : own + operand;
    else
        source = (own ^ operand) >= first + width ? own : own ^ operand;
    return value_of<T>(all, static_cast<unsigned>(source) & 31);
}

EMULATOR_UNCHECKED inline unsigned ballot(unsigned mask, int predicate, Site site)
{
    const Exchange &all = exchange(Collective::vote, mask, predicate != 0, site);
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; ++i)
        if ((all.arrived >> i & 1) != 0 && all.values[i] != 0)
            votes |= 1u << i;
    return votes;
}

template <class T, class Operation>
EMULATOR_UNCHECKED T reduce(unsigned mask, T value, Operation combine, Site site)
{
    static_assert(__is_same(T, int) || __is_same(T, unsigned), "CUDA reduces int and unsigned");
    const Exchange &all = exchange(Collective::reduce, mask, bits_of(value), site);
    bool first = true;
    T result = value;
    for (unsigned i = 0; i < 32; ++i) {
        if ((all.arrived >> i & 1) == 0)
            continue;
        result = first ? value_of<T>(all, i) : combine(result, value_of<T>(all, i));
        first = false;
    }
    return result;
}

}  // namespace emulator

#define EMULATOR_SITE emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, EMULATOR_SITE)
{
    emulator::exchange(emulator::Collective::sync, mask, 0, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE)
{
    return emulator::shuffle(emulator::Collective::shfl, mask, value, source, width, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE)
{
    return emulator::shuffle(emulator::Collective::shfl_up, mask, value, static_cast<int>(delta), width, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE)
{
    return emulator::shuffle(emulator::Collective::shfl_down, mask, value, static_cast<int>(delta), width, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMULATOR_SITE)
{
    return emulator::shuffle(emulator::Collective::shfl_xor, mask, value, lane_mask, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE)
{
    return emulator::ballot(mask, predicate, site);
}

inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE)
{
    return emulator::ballot(mask, predicate, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE)
{
    return emulator::ballot(mask, predicate == 0, site) == 0;
}

// The lanes of the mask that passed the same value.
template <class T>
EMULATOR_UNCHECKED unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE)
{
    static_assert(sizeof(T) >= 4, "CUDA compares 4 or 8 bytes");
    const emulator::Exchange &all = emulator::exchange(emulator::Collective::match, mask, emulator::bits_of(value), site);
    unsigned same = 0;
    for (unsigned i = 0; i < 32; ++i)
        if ((all.arrived >> i & 1) != 0 && all.values[i] == emulator::bits_of(value))
            same |= 1u << i;
    return same;
}

#define EMULATOR_REDUCE(name, expression)                                                       \
    template <class T>                                                                          \
    T name(unsigned mask, T value, EMULATOR_SITE)                                               \
    {                                                                                           \
        return emulator::reduce(mask, value, [](T a, T b) -> T { return expression; }, site);   \
    }
EMULATOR_REDUCE(__reduce_add_sync, static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
EMULATOR_REDUCE(__reduce_min_sync, a < b ? a : b)
EMULATOR_REDUCE(__reduce_max_sync, a > b ? a : b)
EMULATOR_REDUCE(__reduce_and_sync, a & b)
EMULATOR_REDUCE(__reduce_or_sync, a | b)
EMULATOR_REDUCE(__reduce_xor_sync, a ^ b)
#undef EMULATOR_REDUCE
#undef EMULATOR_SITE
