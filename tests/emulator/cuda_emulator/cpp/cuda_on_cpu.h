// SPDX-License-Identifier: Apache-2.0
// The part of CUDA C++ that the kernels use, for g++: put in front of a `.cu` file by `-include`.
// What is not declared here or in the headers below does not compile, as with NVRTC.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "atomics.h"
#include "bits.h"
#include "conversions.h"
#include "half.h"
#include "minmax.h"
#include "rounding.h"
#include "scheduler.h"
#include "vectors.h"
#include "warp.h"

#undef assert
#define assert(condition) \
    ((condition) ? static_cast<void>(0) : emulator::fail("assert(%s) is false at %s:%d", #condition, __FILE__, __LINE__))

#define __global__
#define __device__
#define __host__
#define __constant__
// The storage of one block: blocks run one after another in one system thread, which fills it with garbage in between.
// `thread_local` and not `static`, because `extern __shared__ float tile[];` must be valid, too.
#define __shared__ thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

#define CUDART_INF_F __builtin_huge_valf()
#define CUDART_INF __builtin_huge_val()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_NAN __builtin_nan("")

using emulator::blockDim;
using emulator::blockIdx;
using emulator::gridDim;
using emulator::threadIdx;
constexpr int warpSize = 32;

inline void __syncthreads(emulator::Site site = {__builtin_FILE(), __builtin_LINE()})
{
    emulator::barrier(emulator::Barrier::plain, 0, site);
}

inline int __syncthreads_count(int predicate, emulator::Site site = {__builtin_FILE(), __builtin_LINE()})
{
    return emulator::barrier(emulator::Barrier::count, predicate, site);
}

inline int __syncthreads_and(int predicate, emulator::Site site = {__builtin_FILE(), __builtin_LINE()})
{
    return emulator::barrier(emulator::Barrier::all, predicate, site);
}

inline int __syncthreads_or(int predicate, emulator::Site site = {__builtin_FILE(), __builtin_LINE()})
{
    return emulator::barrier(emulator::Barrier::any, predicate, site);
}

// Only one system thread executes a kernel, so that only the compiler could reorder its memory accesses.
inline void __threadfence_block() { asm volatile("" ::: "memory"); }
inline void __threadfence() { emulator::preemption_point(); }
inline void __threadfence_system() { emulator::preemption_point(); }
inline void __nanosleep(unsigned) { emulator::preemption_point(); }

[[noreturn]] inline void __trap() { emulator::fail("__trap()"); }
