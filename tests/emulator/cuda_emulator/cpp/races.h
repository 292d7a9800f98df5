// SPDX-License-Identifier: Apache-2.0
// Every access of a kernel, if its launch asks for it: whether it is inside of a buffer, and ordered with the others'.
// The kernel is then compiled for ThreadSanitizer, whose functions races.cpp has instead of its library.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

enum class Access { read, write, atomic };

// The last time that a byte was accessed in one way, by one thread or, unordered, by several.
struct Trace {
    uint32_t thread;    // block * 1024 + rank
    uint32_t barriers;  // that the block had passed
    uint32_t syncs;     // that the warp had passed
    uint32_t place : 30;  // in the library; 0: never
    uint32_t breadth : 2;
};

struct Cell {
    Trace write, read, atomic;
};

struct Request;

void begin_checks(const Request &request);
void end_checks();

// The calling thread is about to access memory; `return_address` is behind the call that says so.
void check_access(const void *address, size_t size, Access access, const void *return_address);

}  // namespace emulator
