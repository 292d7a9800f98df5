// SPDX-License-Identifier: Apache-2.0
// Atomics. Threads only change places where the scheduler is called, so plain reads and writes are indivisible;
// before and after each of them another thread may take over, if the launch asks for it.
#pragma once

#include "scheduler.h"

namespace emulator {

// Keeps the argument out of deduction, so that `atomicAdd(&counter, 1)` compiles for an unsigned counter.
template <class T>
struct Exactly {
    using type = T;
};

template <class T, class... Allowed>
constexpr bool is_one_of = (__is_same(T, Allowed) || ...);

template <class T, class Operation>
EMULATOR_UNCHECKED T exchange_with(T *address, Operation result_of)
{
    EMULATOR_CHECK_ATOMIC(address, sizeof(T));
    preemption_point();
    take_turn();
    const T old = *address;
    *address = result_of(old);
    preemption_point();
    return old;
}

}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression, ...)                                                           \
    template <class T>                                                                                   \
    T name(T *address, typename emulator::Exactly<T>::type value)                                        \
    {                                                                                                    \
        static_assert(emulator::is_one_of<T, __VA_ARGS__>, "CUDA has no " #name " of this type");        \
        return emulator::exchange_with(address, [value](T old) -> T { return expression; });             \
    }

// What wraps around on the GPU is computed without a sign, because overflow of a signed one is undefined in C++.
namespace emulator {
template <class T>
constexpr T wrapping_sum(T a, T b)
{
    if constexpr (__is_same(T, int))
        return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
    else
        return a + b;
}
}  // namespace emulator

EMULATOR_ATOMIC(atomicAdd, emulator::wrapping_sum(old, value), int, unsigned, unsigned long long, float, double)
EMULATOR_ATOMIC(atomicSub, emulator::wrapping_sum(old, static_cast<T>(0u - static_cast<unsigned>(value))), int, unsigned)
EMULATOR_ATOMIC(atomicExch, ((void)old, value), int, unsigned, unsigned long long, float)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long, unsigned long long)
EMULATOR_ATOMIC(atomicMax, value > old ? value : old, int, unsigned, long long, unsigned long long)
EMULATOR_ATOMIC(atomicAnd, old & value, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1, unsigned)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1, unsigned)
#undef EMULATOR_ATOMIC

template <class T>
T atomicCAS(T *address, typename emulator::Exactly<T>::type expected, typename emulator::Exactly<T>::type value)
{
    static_assert(emulator::is_one_of<T, int, unsigned, unsigned long long, unsigned short>,
                  "CUDA has no atomicCAS of this type");
    return emulator::exchange_with(address, [=](T old) { return old == expected ? value : old; });
}
