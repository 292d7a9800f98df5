// SPDX-License-Identifier: Apache-2.0
// What passes between Python, a module's table of kernels and the scheduler; launching.py has the same structures.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

struct Parameter {
    unsigned size;
    char kind;  // of NumPy: 'b', 'i', 'u', 'f'; 'P' for a pointer, 'V' for a structure
};

struct Kernel {
    const char *name;
    void (*call)(void **arguments);
    const Parameter *parameters;
    unsigned parameter_count;
    unsigned largest_block;  // of `__launch_bounds__`; 0 without
};

struct Range {
    unsigned char *begin;
    size_t size;
};

struct Request {
    const Kernel *kernel;
    void **arguments;
    unsigned grid[3];
    unsigned block[3];
    unsigned dynamic_shared;
    unsigned resident_blocks;  // how many take turns; more than one only shows what blocks do to each other
    unsigned preemption;       // an atomic lets another thread take over once in so many times; 0: never
    unsigned time_limit_s;
    unsigned check_races;      // the module is then compiled for it
    unsigned lockstep;         // all blocks are resident, and a thread waits for one access in a round
    unsigned buffer_count;
    const Range *buffers;  // all that a kernel may access
    uint64_t seed;
};

struct Result {
    char message[4000];  // empty after success; `@` and a number are an instruction's place in this library
    unsigned rounds;     // in lockstep
};

// Memory that all names of `extern __shared__` stand for, with a margin that no kernel may write to.
constexpr size_t dynamic_shared_limit = 48 * 1024;
constexpr size_t dynamic_shared_margin = 256;
constexpr unsigned char garbage = 0xCD;

// Of the calling system thread; a module without such an array has none.
Range dynamic_shared();

}  // namespace emulator
