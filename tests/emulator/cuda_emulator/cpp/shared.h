// SPDX-License-Identifier: Apache-2.0
// The shared memory of the block that runs: this library's thread-local variables.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <vector>

namespace emulator {

// To be called by a launch before the rest, from its system thread.
void find_shared(unsigned dynamic_size);

size_t shared_size();
void poison_shared();
void save_shared(std::vector<unsigned char> &copy);
void load_shared(const std::vector<unsigned char> &copy);
bool is_margin_intact(unsigned dynamic_size);

// Among `shared_size()` bytes; what is behind the dynamic array is not among them.
constexpr size_t not_shared = SIZE_MAX;
size_t offset_in_shared(const void *address);

// This library: its code and its variables that are not shared memory.
bool is_in_library(const void *address);
uint64_t offset_in_library(const void *instruction);

}  // namespace emulator
