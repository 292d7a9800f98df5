// SPDX-License-Identifier: Apache-2.0
// Where threads wait for each other: barriers and warp intrinsics.
#include <stdio.h>
#include <string.h>

#include "threads.h"

namespace emulator {

namespace {

std::vector<Exchange *> unused_exchanges;

const char *name_of(Barrier kind)
{
    const char *names[] = {"", "__syncthreads", "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"};
    return names[static_cast<int>(kind)];
}

const char *name_of(Collective kind)
{
    const char *names[] = {"", "__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",
                           "a vote", "__match_any_sync", "__reduce_*_sync"};
    return names[static_cast<int>(kind)];
}

const char *base_name(const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash == nullptr ? file : slash + 1;
}

void describe(const Thread &thread, char *text, size_t size)
{
    const uint3 at = thread_indices[thread.rank];
    const uint3 block = thread.block->index;
    int used = 0;
    if (blocks.size() > 1)
        used = snprintf(text, size, "of block (%u, %u, %u) ", block.x, block.y, block.z);
    used += snprintf(text + used, size - used, "thread (%u, %u, %u) waits in ", at.x, at.y, at.z);
    const char *file = base_name(thread.site.file);
    if (thread.barrier != Barrier::none)
        snprintf(text + used, size - used, "%s at %s:%d", name_of(thread.barrier), file, thread.site.line);
    else
        snprintf(text + used, size - used, "%s at %s:%d, whose mask 0x%08X lacks lanes 0x%08X",
                 name_of(thread.exchange->kind), file, thread.site.line, thread.exchange->mask,
                 thread.exchange->mask & thread.block->live_lanes[thread.rank / 32] & ~thread.exchange->arrived);
}

void release_barrier(Block &block)
{
    const unsigned yes = block.true_predicates;
    ++block.barriers;
    for (Thread &thread : block.threads) {
        if (thread.barrier == Barrier::none)
            continue;
        thread.answer = thread.barrier == Barrier::count ? static_cast<int>(yes)
                        : thread.barrier == Barrier::all ? yes == block.at_barrier
                                                         : yes != 0;
        thread.barrier = Barrier::none;
        block.ready.push_back(&thread);
    }
    block.at_barrier = block.true_predicates = 0;
    block.first_at_barrier = nullptr;
}

// `link` is where the list of incomplete exchanges points to it.
bool completes(Block &block, unsigned warp, Exchange **link)
{
    Exchange *exchange = *link;
    if ((exchange->mask & block.live_lanes[warp] & ~exchange->arrived) != 0)
        return false;
    *link = exchange->next;
    // Votes and shuffles order no accesses to memory (CUDA C++ Programming Guide, "Warp Vote Functions"). Of a part of
    // the warp it orders only that part, which is not kept account of.
    if (exchange->kind == Collective::sync && exchange->arrived == block.live_lanes[warp])
        ++block.syncs[warp];
    exchange->readers = static_cast<unsigned>(__builtin_popcount(exchange->arrived));
    for (unsigned lane = 0; lane < 32; ++lane)
        if ((exchange->arrived >> lane & 1) != 0)
            block.ready.push_back(&block.threads[32 * warp + lane]);
    return true;
}

}  // namespace

[[noreturn]] void fail_of_deadlock()
{
    char text[2000];
    int used = snprintf(text, sizeof text, "no thread can go on");
    int described = 0;
    for (const Block &block : blocks) {
        const Thread *previous = nullptr;
        for (const Thread &thread : block.threads) {
            if (thread.barrier == Barrier::none && thread.exchange == nullptr)
                continue;
            // One of those that wait at the same place is enough.
            if (previous != nullptr && previous->site.line == thread.site.line && previous->barrier == thread.barrier)
                continue;
            previous = &thread;
            if (++described > 6)
                break;
            char one[250];
            describe(thread, one, sizeof one);
            used += snprintf(text + used, sizeof text - used, "; %s", one);
        }
    }
    fail("%s", text);
}

void release_waiting_for(Thread &thread)
{
    Block &block = *thread.block;
    const unsigned warp = thread.rank / 32;
    block.live_lanes[warp] &= ~(1u << thread.rank % 32);
    for (Exchange **link = &block.incomplete[warp]; *link != nullptr;)
        if (!completes(block, warp, link))
            link = &(*link)->next;
    if (--block.live == block.at_barrier && block.live != 0)
        release_barrier(block);
}

unsigned lane() { return running->rank % 32; }

int barrier(Barrier kind, int predicate, Site site)
{
    Thread &thread = *running;
    Block &block = *thread.block;
    thread.barrier = kind;
    thread.site = site;
    if (block.at_barrier == 0)
        block.first_at_barrier = &thread;
    const Thread &first = *block.first_at_barrier;
    if (first.barrier != kind || first.site.line != site.line ||
        (first.site.file != site.file && strcmp(first.site.file, site.file) != 0)) {
        char other[250];
        describe(first, other, sizeof other);
        fail("it comes to %s at %s:%d, while %s", name_of(kind), base_name(site.file), site.line, other);
    }
    block.true_predicates += predicate != 0;
    if (++block.at_barrier == block.live)
        release_barrier(block);
    wait();
    return thread.answer;
}

const Exchange &exchange(Collective kind, unsigned mask, uint64_t value, Site site)
{
    Thread &thread = *running;
    Block &block = *thread.block;
    const unsigned warp = thread.rank / 32;
    const unsigned own = thread.rank % 32;
    if ((mask >> own & 1) == 0)
        fail("the mask 0x%08X of %s at %s:%d lacks the calling lane %u", mask, name_of(kind), base_name(site.file),
             site.line, own);
    Exchange **link = &block.incomplete[warp];
    while (*link != nullptr && ((*link)->kind != kind || (*link)->mask != mask))
        link = &(*link)->next;
    if (*link == nullptr) {
        if (unused_exchanges.empty())
            unused_exchanges.push_back(new Exchange);
        *link = unused_exchanges.back();
        unused_exchanges.pop_back();
        (*link)->kind = kind;
        (*link)->mask = mask;
        (*link)->arrived = 0;
        (*link)->next = nullptr;
    }
    Exchange *joined = *link;
    joined->values[own] = value;
    joined->arrived |= 1u << own;
    thread.exchange = joined;
    thread.site = site;
    completes(block, warp, link);
    wait();
    thread.exchange = nullptr;
    // The others write into it only once this thread has called the scheduler again.
    if (--joined->readers == 0)
        unused_exchanges.push_back(joined);
    return *joined;
}

}  // namespace emulator
