// SPDX-License-Identifier: Apache-2.0
// Stacks that one system thread changes between.
#pragma once

#include <stddef.h>

namespace emulator {

struct Fibre {
    void *stack_pointer = nullptr;
    unsigned char *memory = nullptr;  // a guard page, then the stack; none for the system thread's own
    size_t colour = 0;  // how far from the memory's end the stack begins
    Fibre *next = nullptr;
};

// A fibre that nobody uses: a new one, which will begin with `body`, or one that was given back inside of `body`.
Fibre *take_fibre(void (*body)());
void give_back_fibre(Fibre *fibre);

// After a launch that ended in the middle of its threads: all fibres begin anew.
void forget_fibres(void (*body)());

// Saves the caller as `from` and goes on where `to` was saved.
void change_fibre(Fibre *from, Fibre *to);

bool is_in_guard_page(const Fibre *fibre, const void *address);
bool is_in_stack(const Fibre *fibre, const void *address);

}  // namespace emulator
