// SPDX-License-Identifier: Apache-2.0
#include "faults.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "scheduler.h"

namespace emulator {

namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGXCPU};
constexpr int signal_count = sizeof(signals) / sizeof(signals[0]);

// The stack that overflowed cannot carry the handler.
alignas(16) unsigned char handler_stack[65536];
struct sigaction previous_actions[signal_count];
stack_t previous_stack;
timer_t timer;
pthread_t launching_thread;
unsigned time_limit;

const void *instruction_of(void *context)
{
    const mcontext_t &registers = static_cast<ucontext_t *>(context)->uc_mcontext;
#if defined(__x86_64__)
    return reinterpret_cast<const void *>(registers.gregs[REG_RIP]);
#else
    return reinterpret_cast<const void *>(registers.pc);
#endif
}

void handle(int number, siginfo_t *info, void *context)
{
    if (!pthread_equal(pthread_self(), launching_thread)) {
        // Another thread's fault: let it happen again, for the previous handler.
        for (int i = 0; i < signal_count; ++i)
            if (signals[i] == number)
                sigaction(number, &previous_actions[i], nullptr);
        return;
    }
    char text[200];
    if (number == SIGXCPU)
        snprintf(text, sizeof text, "it ran for more than %u s", time_limit);
    else if (number == SIGFPE)
        snprintf(text, sizeof text, "integer division by zero, or of the lowest integer by -1");
    else if (number == SIGILL)
        snprintf(text, sizeof text, "illegal instruction");
    else if (is_stack_overflow(info->si_addr))
        snprintf(text, sizeof text, "its local variables overflow the emulator's stack of 256 KiB");
    else
        snprintf(text, sizeof text, "access to the address %p, which is not memory of a buffer", info->si_addr);
    fail_at(instruction_of(context), text);
}

}  // namespace

FaultGuard::FaultGuard(unsigned time_limit_s)
{
    launching_thread = pthread_self();
    time_limit = time_limit_s;
    stack_t stack = {};
    stack.ss_sp = handler_stack;
    stack.ss_size = sizeof handler_stack;
    sigaltstack(&stack, &previous_stack);
    struct sigaction action = {};
    action.sa_sigaction = handle;
    // The handler does not return, so the kernel must not block the signal until it does.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < signal_count; ++i)
        sigaction(signals[i], &action, &previous_actions[i]);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGXCPU;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    itimerspec limit = {};
    limit.it_value.tv_sec = time_limit_s;
    timer_settime(timer, 0, &limit, nullptr);
}

FaultGuard::~FaultGuard()
{
    timer_delete(timer);
    for (int i = 0; i < signal_count; ++i)
        sigaction(signals[i], &previous_actions[i], nullptr);
    sigaltstack(&previous_stack, nullptr);
}

}  // namespace emulator

// What the `assert` of <assert.h> calls.
extern "C" __attribute__((visibility("hidden"))) void __assert_fail(const char *condition, const char *file,
                                                                     unsigned line, const char *)
{
    emulator::fail("assert(%s) is false at %s:%u", condition, file, line);
}

// What `-fsanitize` calls. The first member of each kind of data is the place in the source.
namespace {

struct Place {
    const char *file;
    uint32_t line;
    uint32_t column;
};

[[noreturn]] void report(const void *data, const char *what)
{
    const Place &place = *static_cast<const Place *>(data);
    const char *slash = strrchr(place.file, '/');
    emulator::fail("%s at %s:%u:%u", what, slash == nullptr ? place.file : slash + 1, place.line, place.column);
}

}  // namespace

#define EMULATOR_CHECK(name, what) \
    extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name##_abort(const void *data) { report(data, what); }
EMULATOR_CHECK(out_of_bounds, "an index out of the bounds of its array")
EMULATOR_CHECK(type_mismatch_v1, "an access through a pointer that is null or not aligned as its type demands")
EMULATOR_CHECK(shift_out_of_bounds, "a shift by a negative count or by the operand's width or more")
EMULATOR_CHECK(divrem_overflow, "an integer division by zero, or of the lowest integer by -1")
EMULATOR_CHECK(float_cast_overflow, "a cast of a floating-point number that the integer type cannot hold")
EMULATOR_CHECK(add_overflow, "an overflow of signed integers")
EMULATOR_CHECK(sub_overflow, "an overflow of signed integers")
EMULATOR_CHECK(mul_overflow, "an overflow of signed integers")
EMULATOR_CHECK(negate_overflow, "an overflow of signed integers")
