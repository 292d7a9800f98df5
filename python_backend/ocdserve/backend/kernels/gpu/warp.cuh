// SPDX-License-Identifier: Apache-2.0
// Results computed by a whole warp.
#pragma once

constexpr unsigned WARP = 0xffffffffu;

template <class Number>
__device__ Number warp_least(Number value) {
    for (int distance = 16; distance; distance /= 2) value = min(value, __shfl_xor_sync(WARP, value, distance));
    return value;
}
