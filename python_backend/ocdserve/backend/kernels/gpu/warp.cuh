// SPDX-License-Identifier: Apache-2.0
// Results computed by a whole warp.
#pragma once

constexpr unsigned WARP = 0xffffffffu;

template <class Number>
__device__ Number warp_least(Number value) {
    for (int distance = 16; distance; distance /= 2) value = min(value, __shfl_xor_sync(WARP, value, distance));
    return value;
}

// Sum of the values of this lane and those before it.
__device__ __forceinline__ int warp_prefix_sum(int value, int lane) {
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(WARP, value, distance);
        if (lane >= distance) value += before;
    }
    return value;
}
