// SPDX-License-Identifier: Apache-2.0
// Executes a grid: a few blocks at a time (one, if not asked for more), their threads in a seeded order. A thread runs
// until it must wait for others; then any thread that can run goes on, on its own stack. A thread that never waits
// costs a function call, because the next one begins on the same stack. In lockstep, all blocks are resident and all
// threads take part in a round before the next one begins.
#include "scheduler.h"

#include <algorithm>
#include <stdarg.h>
#include <stdio.h>

#include "faults.h"
#include "shared.h"
#include "threads.h"

namespace emulator {

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;
unsigned preemption;
bool is_lockstep;
std::vector<Block> blocks;
std::vector<uint3> thread_indices;
Thread *running;

namespace {

const Request *request;
Result *result;
std::vector<unsigned> order;  // of the blocks, from its end
Fibre system_thread;
Fibre *running_fibre;
Block *active;  // owner of the shared memory
uint64_t state;
std::vector<Thread *> of_next_round;

uint64_t random_bits()
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
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
    block.linear = linear;
    block.live = count;
    block.barriers = 0;
    std::fill(block.syncs.begin(), block.syncs.end(), 0);
    std::fill(block.shared_cells.begin(), block.shared_cells.end(), Cell{});
    block.at_barrier = block.true_predicates = 0;
    block.first_at_barrier = nullptr;
    for (unsigned rank = 0; rank < count; ++rank) {
        block.threads[rank] = {nullptr, &block, rank, Barrier::none, nullptr, {nullptr, 0}, 0};
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
Thread *next_of_round()
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

Thread *next_ready()
{
    Thread *next = next_of_round();
    if (next != nullptr || of_next_round.empty())
        return next;
    ++result->rounds;
    for (Thread *thread : of_next_round)
        thread->block->ready.push_back(thread);
    of_next_round.clear();
    return next_of_round();
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

void end(Thread &thread)
{
    Block &block = *thread.block;
    release_waiting_for(thread);
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
    is_lockstep = request->lockstep != 0;
    of_next_round.clear();
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
    blocks.resize(is_lockstep ? grid : std::min(grid, std::max(1u, request->resident_blocks)));
    for (Block &block : blocks) {
        block.threads.resize(count);
        block.live_lanes.resize((count + 31) / 32);
        block.syncs.resize((count + 31) / 32);
        if (request->check_races != 0)
            block.shared_cells.resize(shared_size());
        block.incomplete.assign((count + 31) / 32, nullptr);
        block.ready.reserve(count);
        if (blocks.size() > 1)
            block.shared.resize(shared_size());
        start(block);
    }
}

}  // namespace

unsigned random_below(size_t limit)
{
    return static_cast<unsigned>((random_bits() >> 32) * static_cast<uint64_t>(limit) >> 32);
}

void wait()
{
    Thread *next = next_ready();
    if (next == nullptr)
        fail_of_deadlock();
    if (next != running)
        go_on_with(next);
}

void preempt()
{
    if (random_below(preemption) != 0)
        return;
    running->block->ready.push_back(running);
    wait();
}

void wait_for_next_round()
{
    of_next_round.push_back(running);
    wait();
}

void fail_at(const void *instruction, const char *text)
{
    const uint3 block = blockIdx;
    const uint3 thread = threadIdx;
    char place[30] = "";
    if (is_in_library(instruction))
        snprintf(place, sizeof place, "@0x%zx", static_cast<size_t>(offset_in_library(instruction)));
    snprintf(result->message, sizeof result->message, "%s, block (%u, %u, %u), thread (%u, %u, %u): %s%s",
             request->kernel->name, block.x, block.y, block.z, thread.x, thread.y, thread.z, text, place);
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

bool is_own_stack(const void *address) { return is_in_stack(running_fibre, address); }

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_launch(const emulator::Request *request,
                                                                       emulator::Result *result)
{
    using namespace emulator;
    emulator::request = request;
    emulator::result = result;
    result->message[0] = '\0';
    result->rounds = 0;
    prepare();
    {
        FaultGuard guard(request->time_limit_s);
        begin_checks(*request);
        go_on_with(next_ready());
        end_checks();
    }
    if (result->message[0] != '\0')
        forget_fibres(body);
}
