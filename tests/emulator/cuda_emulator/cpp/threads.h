// SPDX-License-Identifier: Apache-2.0
// The scheduler's view of threads and blocks, for those who make threads wait.
#pragma once

#include <vector>

#include "fibre.h"
#include "launch.h"
#include "races.h"
#include "scheduler.h"

namespace emulator {

struct Block;

struct Thread {
    Fibre *fibre;
    Block *block;
    unsigned rank;  // in the block; a warp is 32 consecutive ones
    // What it waits for, and where.
    Barrier barrier;
    Exchange *exchange;
    Site site;
    int answer;  // of the barrier
};

struct Block {
    uint3 index;
    unsigned linear;  // its place in the grid
    unsigned live;  // threads that have not ended
    unsigned at_barrier;
    unsigned true_predicates;
    const Thread *first_at_barrier;
    std::vector<Thread> threads;
    std::vector<unsigned> live_lanes;    // of each warp
    std::vector<Exchange *> incomplete;  // of each warp
    std::vector<Thread *> ready;
    std::vector<unsigned char> shared;  // while another block has the shared memory
    // What orders accesses, and who accessed the shared memory.
    unsigned barriers;
    std::vector<unsigned> syncs;  // of each warp
    std::vector<Cell> shared_cells;
};

extern std::vector<Block> blocks;
extern std::vector<uint3> thread_indices;  // of each rank
extern Thread *running;

unsigned random_below(size_t limit);

// Lets another thread run; this one is at a barrier, in an exchange or among the ready ones.
void wait();

// A thread ended: those that waited for it may be able to go on.
void release_waiting_for(Thread &thread);

[[noreturn]] void fail_of_deadlock();

}  // namespace emulator
