// SPDX-License-Identifier: Apache-2.0
// Turns what would kill the process into the end of a launch.
#pragma once

#include "launch.h"

namespace emulator {

// While it lives, bad accesses, divisions by zero and the time limit end the launch of this system thread.
class FaultGuard {
public:
    explicit FaultGuard(unsigned time_limit_s);
    ~FaultGuard();
    FaultGuard(const FaultGuard &) = delete;
    FaultGuard &operator=(const FaultGuard &) = delete;
};

// Of the scheduler: ends the launch; `instruction` may be null.
[[noreturn]] void fail_at(const void *instruction, const char *text);
bool is_stack_overflow(const void *address);
bool is_own_stack(const void *address);

}  // namespace emulator
