// SPDX-License-Identifier: Apache-2.0
#include "races.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>

#include "faults.h"
#include "shared.h"
#include "threads.h"

namespace emulator {

namespace {

enum Breadth : unsigned { one_thread, one_warp, one_block, whole_grid };

struct Region {
    uintptr_t begin;
    size_t size;
    Cell *cells;  // of each byte; zero where it was not accessed
};

std::vector<Region> regions;  // by address
bool is_checking = false;

bool are_ordered(const Trace &earlier, const Trace &now)
{
    if (earlier.breadth == whole_grid || earlier.thread / 1024 != now.thread / 1024)
        return false;
    if (earlier.barriers != now.barriers)
        return true;
    if (earlier.breadth == one_block || earlier.thread / 32 != now.thread / 32)
        return false;
    if (earlier.syncs != now.syncs)
        return true;
    return earlier.breadth == one_thread && earlier.thread == now.thread;
}

void add(Trace &trace, const Trace &now)
{
    unsigned breadth = one_thread;
    if (trace.place != 0 && !are_ordered(trace, now)) {
        if (trace.thread / 1024 != now.thread / 1024)
            breadth = whole_grid;
        else if (trace.thread / 32 != now.thread / 32)
            breadth = one_block;
        else
            breadth = one_warp;
        breadth = std::max<unsigned>(breadth, trace.breadth);
    }
    trace = now;
    trace.breadth = breadth & 3;
}

[[noreturn]] void fail_of_race(const Trace &earlier, const char *did, const char *does, const char *memory,
                               const void *instruction)
{
    char who[100];
    const uint3 at = thread_indices[earlier.thread % 1024];
    if (earlier.breadth == one_thread)
        snprintf(who, sizeof who, "thread (%u, %u, %u) of block %u", at.x, at.y, at.z, earlier.thread / 1024);
    else
        snprintf(who, sizeof who, "several threads");
    char text[400];
    snprintf(text, sizeof text, "a race: it %s %s memory@0x%zx, which %s %s@0x%x, and nothing orders the two", does, memory,
             static_cast<size_t>(offset_in_library(instruction)), who, did, earlier.place);
    fail("%s", text);
}

void check_cell(Cell &cell, Access access, const Trace &now, const char *memory, const void *instruction)
{
    const auto is_race = [&now](const Trace &trace) { return trace.place != 0 && !are_ordered(trace, now); };
    const char *does = access == Access::read ? "reads" : access == Access::write ? "writes" : "accesses atomically";
    if (is_race(cell.write))
        fail_of_race(cell.write, "wrote", does, memory, instruction);
    // Reading concurrently with an atomic, as a union-find search does, is allowed: it reads one value or the other.
    if (access == Access::read) {
        add(cell.read, now);
    } else if (access == Access::atomic) {
        add(cell.atomic, now);
    } else {
        if (is_race(cell.read))
            fail_of_race(cell.read, "read", does, memory, instruction);
        if (is_race(cell.atomic))
            fail_of_race(cell.atomic, "accessed atomically", does, memory, instruction);
        cell = {now, {}, {}};
    }
}

const Region *region_of(uintptr_t address)
{
    auto next = std::upper_bound(regions.begin(), regions.end(), address,
                                 [](uintptr_t value, const Region &region) { return value < region.begin; });
    return next == regions.begin() ? nullptr : &*(next - 1);
}

}  // namespace

void begin_checks(const Request &request)
{
    is_checking = request.check_races != 0;
    if (!is_checking)
        return;
    for (unsigned i = 0; i < request.buffer_count; ++i) {
        const Range &buffer = request.buffers[i];
        void *cells = mmap(nullptr, buffer.size * sizeof(Cell), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (cells == MAP_FAILED)
            abort();
        regions.push_back({reinterpret_cast<uintptr_t>(buffer.begin), buffer.size, static_cast<Cell *>(cells)});
    }
    std::sort(regions.begin(), regions.end(), [](const Region &a, const Region &b) { return a.begin < b.begin; });
}

void end_checks()
{
    for (const Region &region : regions)
        munmap(region.cells, region.size * sizeof(Cell));
    regions.clear();
    is_checking = false;
}

void check_access(const void *address, size_t size, Access access, const void *return_address)
{
    const void *instruction = static_cast<const char *>(return_address) - 1;
    if (!is_checking || size == 0 || is_own_stack(address) || is_in_library(address))
        return;
    Block &block = *running->block;
    const auto at = reinterpret_cast<uintptr_t>(address);
    const size_t offset = offset_in_shared(address);
    Cell *cells = nullptr;
    const char *memory = "shared";
    if (offset != not_shared) {
        if (offset + size <= block.shared_cells.size())
            cells = &block.shared_cells[offset];
    } else {
        memory = "global";
        const Region *region = region_of(at);
        if (region != nullptr && at - region->begin + size <= region->size)
            cells = region->cells + (at - region->begin);
    }
    if (cells == nullptr) {
        char text[200];
        snprintf(text, sizeof text, "it %s %zu bytes at %p, which are not all inside of one buffer or of shared memory",
                 access == Access::read ? "reads" : "writes", size, address);
        fail_at(instruction, text);
    }
    const Trace now = {block.linear * 1024 + running->rank, block.barriers, block.syncs[running->rank / 32],
                       static_cast<uint32_t>(offset_in_library(instruction)) & 0x3FFFFFFF, one_thread};
    for (size_t i = 0; i < size; ++i)
        check_cell(cells[i], access, now, memory, instruction);
    preemption_point();
}

}  // namespace emulator

// What `-fsanitize=thread` calls before each access. A volatile one is meant to be seen by other threads.
#define EMULATOR_HOOK(name, size, access)                                                          \
    extern "C" void __tsan_##name(const void *address)                                             \
    {                                                                                              \
        emulator::check_access(address, size, emulator::Access::access, __builtin_return_address(0)); \
    }
#define EMULATOR_HOOKS(size)                            \
    EMULATOR_HOOK(read##size, size, read)               \
    EMULATOR_HOOK(write##size, size, write)             \
    EMULATOR_HOOK(volatile_read##size, size, atomic)    \
    EMULATOR_HOOK(volatile_write##size, size, atomic)
#define EMULATOR_UNALIGNED_HOOKS(size)                            \
    EMULATOR_HOOK(unaligned_read##size, size, read)               \
    EMULATOR_HOOK(unaligned_write##size, size, write)             \
    EMULATOR_HOOK(unaligned_volatile_read##size, size, atomic)    \
    EMULATOR_HOOK(unaligned_volatile_write##size, size, atomic)
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
EMULATOR_UNALIGNED_HOOKS(2)
EMULATOR_UNALIGNED_HOOKS(4)
EMULATOR_UNALIGNED_HOOKS(8)
EMULATOR_UNALIGNED_HOOKS(16)

extern "C" void __tsan_read_range(const void *address, size_t size)
{
    emulator::check_access(address, size, emulator::Access::read, __builtin_return_address(0));
}

extern "C" void __tsan_write_range(const void *address, size_t size)
{
    emulator::check_access(address, size, emulator::Access::write, __builtin_return_address(0));
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(const void *) {}
extern "C" void __tsan_func_exit() {}
