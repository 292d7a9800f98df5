// SPDX-License-Identifier: Apache-2.0
// What a kernel's thread asks of the scheduler.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "races.h"
#include "vectors.h"

namespace emulator {

// Of the thread that runs; nothing but the scheduler writes them.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

// A place in the source. Threads that wait for each other must do so at the same one.
struct Site {
    const char *file;
    int line;
};

enum class Barrier { none, plain, count, all, any };

// Waits until every thread of the block that has not ended is here; gives what `kind` makes of the predicates.
int barrier(Barrier kind, int predicate, Site site);

enum class Collective { none, sync, shfl, shfl_up, shfl_down, shfl_xor, vote, match, reduce };

// The values that the lanes of a mask passed to one warp intrinsic.
struct Exchange {
    Collective kind;
    unsigned mask;
    unsigned arrived;
    unsigned readers;
    uint64_t values[32];
    Exchange *next;
};

// Waits until all lanes of `mask` that have not ended are here. Valid until the thread's next call to the scheduler.
const Exchange &exchange(Collective kind, unsigned mask, uint64_t value, Site site);

unsigned lane();

// Ends the launch with an error that names kernel, block and thread.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Of the emulator's own accesses, which are no accesses of the kernel.
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("thread")))
#if defined(EMULATOR_RACES)
#define EMULATOR_CHECK_ATOMIC(address, size) \
    emulator::check_access(address, size, emulator::Access::atomic, __builtin_return_address(0))
#else
#define EMULATOR_CHECK_ATOMIC(address, size) static_cast<void>(0)
#endif

extern unsigned preemption;
void preempt();

// Where another thread may take over, if the launch asked for it.
inline void preemption_point()
{
    asm volatile("" ::: "memory");
    if (preemption != 0)
        preempt();
}

extern bool is_lockstep;
void wait_for_next_round();

// Before an access whose result the thread waits for: in lockstep, it makes one in a round.
inline void take_turn()
{
    if (is_lockstep)
        wait_for_next_round();
}

}  // namespace emulator
