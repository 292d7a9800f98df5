// SPDX-License-Identifier: Apache-2.0
#include "fibre.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

// void emulator_change_stack(void **saved, void *loaded): keeps what the ABI lets a function call keep.
#if defined(__x86_64__)
asm(R"(
    .text
    .hidden emulator_change_stack
    .globl emulator_change_stack
    .type emulator_change_stack, @function
emulator_change_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_change_stack, .-emulator_change_stack
)");
constexpr size_t saved_words = 6;
constexpr size_t return_word = 6;
constexpr size_t frame_words = 8;  // the return address and a word for the alignment that a function entry has
#elif defined(__aarch64__)
asm(R"(
    .text
    .hidden emulator_change_stack
    .globl emulator_change_stack
    .type emulator_change_stack, %function
emulator_change_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_change_stack, .-emulator_change_stack
)");
constexpr size_t saved_words = 20;
constexpr size_t return_word = 11;
constexpr size_t frame_words = 20;
#else
#error "the emulator's change of stacks is written for x86-64 and aarch64"
#endif

extern "C" void emulator_change_stack(void **saved, void *loaded);

namespace emulator {

namespace {

constexpr size_t guard_size = 65536;  // a multiple of every page size
constexpr size_t stack_size = 256 * 1024;
// Fibres beyond these have no guard page: each splits a mapping, and Linux allows a process 65,530 mappings.
constexpr size_t most_guards = 16384;

std::vector<Fibre *> all_fibres;
Fibre *unused = nullptr;

void begin_with(Fibre *fibre, void (*body)())
{
    void **top = reinterpret_cast<void **>(fibre->memory + guard_size + stack_size - fibre->colour);
    void **frame = top - frame_words;
    for (size_t i = 0; i < saved_words; ++i)
        frame[i] = nullptr;
    frame[return_word] = reinterpret_cast<void *>(body);
    fibre->stack_pointer = frame;
}

}  // namespace

Fibre *take_fibre(void (*body)())
{
    if (unused == nullptr) {
        Fibre *fibre = new Fibre;
        void *memory = mmap(nullptr, guard_size + stack_size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (memory == MAP_FAILED)
            abort();
        if (all_fibres.size() < most_guards && mprotect(memory, guard_size, PROT_NONE) != 0)
            abort();
        fibre->memory = static_cast<unsigned char *>(memory);
        // Tops that were all as far from a page's end would share a few lines of the cache.
        fibre->colour = all_fibres.size() * 5 % 128 * 64;
        begin_with(fibre, body);
        all_fibres.push_back(fibre);
        return fibre;
    }
    Fibre *fibre = unused;
    unused = fibre->next;
    return fibre;
}

void give_back_fibre(Fibre *fibre)
{
    fibre->next = unused;
    unused = fibre;
}

void forget_fibres(void (*body)())
{
    unused = nullptr;
    for (Fibre *fibre : all_fibres) {
        begin_with(fibre, body);
        give_back_fibre(fibre);
    }
}

void change_fibre(Fibre *from, Fibre *to) { emulator_change_stack(&from->stack_pointer, to->stack_pointer); }

bool is_in_guard_page(const Fibre *fibre, const void *address)
{
    const auto at = reinterpret_cast<uintptr_t>(address);
    const auto guard = reinterpret_cast<uintptr_t>(fibre->memory);
    return fibre->memory != nullptr && at >= guard && at < guard + guard_size;
}

bool is_in_stack(const Fibre *fibre, const void *address)
{
    return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(fibre->memory) - guard_size < stack_size;
}

}  // namespace emulator
