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

uint64_t offset_in_library(const void *instruction);

}  // namespace emulator
