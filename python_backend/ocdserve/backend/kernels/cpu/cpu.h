// SPDX-License-Identifier: Apache-2.0
// The part of CUDA C++ that the headers shared with the GPU's kernels use, for one thread of a CPU.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bits of a map are collected from words whose lowest byte comes first"
#endif

// Constants of postprocess.cuh.
#undef INT_MAX
#undef INT_MIN

#define __device__
#define __forceinline__ inline
#define __noinline__

template <class Number>
inline Number min(Number a, Number b) {
    return b < a ? b : a;
}

template <class Number>
inline Number max(Number a, Number b) {
    return a < b ? b : a;
}

// A function of the library.
#define EXPORTED extern "C" __attribute__((visibility("default")))
