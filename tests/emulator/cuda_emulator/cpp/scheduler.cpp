// SPDX-License-Identifier: Apache-2.0
// Executes a grid: a few blocks at a time (one, if not asked for more), their threads in a seeded order. A thread runs
// until it must wait for others; then any thread that can run goes on, on its own stack. A thread that never waits
// costs a function call, because the next one begins on the same stack.
#include "scheduler.h"

#include <algorithm>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <vector>

#include "faults.h"
#include "fibre.h"
#include "launch.h"
#include "shared.h"

namespace emulator {

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;
unsigned preemption;

namespace {

struct Block;

struct Thread {
    Fibre *fibre;
    Block *block;
    unsigned rank;
    Barrier barrier;
    int answer;
    Exchange *exchange;
    Site site;
};

struct Block {
    uint3 index;
    unsigned live;
    unsigned at_barrier;
    unsigned true_predicates;
    const Thread *first_at_barrier;
    std::vector<Thread> threads;
    std::vector<unsigned> live_lanes;     // of each warp
    std::vector<Exchange *> incomplete;   // of each warp
    std::vector<Thread *> ready;
    std::vector<unsigned char> shared;    // while another block has the shared memory
};

const Request *request;
Result *result;
std::vector<Block> blocks;
std::vector<uint3> thread_indices;
std::vector<unsigned> order;  // of the blocks, from its end
std::vector<Exchange *> unused_exchanges;
Fibre system_thread;
Fibre *running_fibre;
Thread *running;
Block *active;  // owner of the shared memory
uint64_t state;

uint64_t random_bits()
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

unsigned random_below(size_t limit)
{
    return static_cast<unsigned>((random_bits() >> 32) * static_cast<uint64_t>(limit) >> 32);
}

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

void enter(Thread *thread)
{
    if (thread->block != active) {
        if (blocks.size() > 1) {
            if (active != nullptr)
                save_shared(active->shared);
            load_shared(thread->block->shared);
        }
        active = thread->block;
        blockIdx = active->index;
    }
    running = thread;
    threadIdx = thread_indices[thread->rank];
}

void start(Block &block)
{
    const unsigned linear = order.back();
    order.pop_back();
    block.index = {linear % gridDim.x, linear / gridDim.x % gridDim.y, linear / gridDim.x / gridDim.y};
    const unsigned count = static_cast<unsigned>(block.threads.size());
    block.live = count;
    block.at_barrier = block.true_predicates = 0;
    block.first_at_barrier = nullptr;
    for (unsigned rank = 0; rank < count; ++rank) {
        block.threads[rank] = {nullptr, &block, rank, Barrier::none, 0, nullptr, {nullptr, 0}};
        block.ready.push_back(&block.threads[rank]);
    }
    for (size_t warp = 0; warp < block.live_lanes.size(); ++warp) {
        const unsigned lanes = std::min(32u, count - 32 * static_cast<unsigned>(warp));
        block.live_lanes[warp] = lanes == 32 ? 0xFFFFFFFF : (1u << lanes) - 1;
    }
    if (blocks.size() > 1)
        std::fill(block.shared.begin(), block.shared.end(), garbage);
    else
        poison_shared();
    if (active == &block)
        active = nullptr;
}

// Mostly of the same block, so that changing the shared memory's owner stays rare.
Thread *next_ready()
{
    Block *chosen = active;
    if (blocks.size() > 1 && (chosen == nullptr || chosen->ready.empty() || random_below(16) == 0)) {
        const unsigned first = random_below(blocks.size());
        for (size_t i = 0; i < blocks.size(); ++i) {
            chosen = &blocks[(first + i) % blocks.size()];
            if (!chosen->ready.empty())
                break;
        }
    } else if (chosen == nullptr) {
        chosen = &blocks[0];
    }
    if (chosen->ready.empty())
        return nullptr;
    std::swap(chosen->ready[random_below(chosen->ready.size())], chosen->ready.back());
    Thread *thread = chosen->ready.back();
    chosen->ready.pop_back();
    return thread;
}

void body();

void change_to(Fibre *fibre)
{
    Fibre *from = running_fibre;
    running_fibre = fibre;
    change_fibre(from, fibre);
}

void go_on_with(Thread *thread)
{
    enter(thread);
    if (thread->fibre == nullptr)
        thread->fibre = take_fibre(body);
    change_to(thread->fibre);
}

// The running thread is at a barrier, in an exchange or among the ready ones.
void wait()
{
    Thread *next = next_ready();
    if (next == nullptr)
        fail_of_deadlock();
    if (next != running)
        go_on_with(next);
}

void release_barrier(Block &block)
{
    const unsigned yes = block.true_predicates;
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
    exchange->readers = static_cast<unsigned>(__builtin_popcount(exchange->arrived));
    for (unsigned lane = 0; lane < 32; ++lane)
        if ((exchange->arrived >> lane & 1) != 0)
            block.ready.push_back(&block.threads[32 * warp + lane]);
    return true;
}

void end(Thread &thread)
{
    Block &block = *thread.block;
    const unsigned warp = thread.rank / 32;
    block.live_lanes[warp] &= ~(1u << thread.rank % 32);
    for (Exchange **link = &block.incomplete[warp]; *link != nullptr;)
        if (!completes(block, warp, link))
            link = &(*link)->next;
    if (--block.live == block.at_barrier && block.live != 0)
        release_barrier(block);
    if (block.live == 0) {
        if (!is_margin_intact(request->dynamic_shared))
            fail("a thread of this block wrote past the %u bytes of dynamic shared memory", request->dynamic_shared);
        if (!order.empty())
            start(block);
    }
}

bool is_any_live()
{
    return std::any_of(blocks.begin(), blocks.end(), [](const Block &block) { return block.live != 0; });
}

// Of every fibre: runs threads from their beginning, until one is next that has a stack of its own.
void body()
{
    for (;;) {
        request->kernel->call(request->arguments);
        Fibre *own = running_fibre;
        end(*running);
        Thread *next = next_ready();
        if (next == nullptr && is_any_live())
            fail_of_deadlock();
        if (next != nullptr && next->fibre == nullptr) {
            next->fibre = own;
            enter(next);
            continue;
        }
        give_back_fibre(own);
        if (next == nullptr)
            change_to(&system_thread);
        else
            go_on_with(next);
    }
}

void prepare()
{
    gridDim = {request->grid[0], request->grid[1], request->grid[2]};
    blockDim = {request->block[0], request->block[1], request->block[2]};
    preemption = request->preemption;
    state = request->seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D;
    if (state == 0)
        state = 1;
    running = nullptr;
    running_fibre = &system_thread;
    active = nullptr;
    const unsigned grid = gridDim.x * gridDim.y * gridDim.z;
    const unsigned count = blockDim.x * blockDim.y * blockDim.z;
    thread_indices.resize(count);
    for (unsigned i = 0; i < count; ++i)
        thread_indices[i] = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    order.resize(grid);
    for (unsigned i = 0; i < grid; ++i) {
        order[i] = i;
        std::swap(order[i], order[random_below(i + 1)]);
    }
    find_shared(request->dynamic_shared);
    blocks.clear();
    blocks.resize(std::min(grid, std::max(1u, request->resident_blocks)));
    for (Block &block : blocks) {
        block.threads.resize(count);
        block.live_lanes.resize((count + 31) / 32);
        block.incomplete.assign((count + 31) / 32, nullptr);
        block.ready.reserve(count);
        if (blocks.size() > 1)
            block.shared.resize(shared_size());
        start(block);
    }
}

}  // namespace

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
    if (first.barrier != kind || first.site.line != site.line || strcmp(first.site.file, site.file) != 0) {
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

void preempt()
{
    if (random_below(preemption) != 0)
        return;
    running->block->ready.push_back(running);
    wait();
}

void fail_at(const void *instruction, const char *text)
{
    const uint3 block = blockIdx;
    const uint3 thread = threadIdx;
    snprintf(result->message, sizeof result->message, "%s, block (%u, %u, %u), thread (%u, %u, %u): %s",
             request->kernel->name, block.x, block.y, block.z, thread.x, thread.y, thread.z, text);
    result->fault_offset = offset_in_library(instruction);
    Fibre abandoned;
    change_fibre(&abandoned, &system_thread);
    __builtin_unreachable();
}

void fail(const char *format, ...)
{
    char text[3000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail_at(nullptr, text);
}

bool is_stack_overflow(const void *address) { return is_in_guard_page(running_fibre, address); }

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_launch(const emulator::Request *request,
                                                                       emulator::Result *result)
{
    using namespace emulator;
    emulator::request = request;
    emulator::result = result;
    result->message[0] = '\0';
    result->fault_offset = 0;
    prepare();
    {
        FaultGuard guard(request->time_limit_s);
        go_on_with(next_ready());
    }
    if (result->message[0] != '\0')
        forget_fibres(body);
}
