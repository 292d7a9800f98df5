// SPDX-License-Identifier: Apache-2.0
// Points, quads and what they need of a warp. x to the right, y downwards.
#pragma once

#include "postprocess.cuh"

constexpr unsigned WARP = 0xffffffffu;

struct Point {
    int x, y;
};

struct Quad {
    float x[4], y[4];
};

__device__ __forceinline__ int pack(Point point) { return point.y * 65536 + (point.x & 0xffff); }
__device__ __forceinline__ Point unpack(int packed) {
    return Point{static_cast<short>(packed & 0xffff), packed >> 16};
}

__device__ __forceinline__ int cross(Point origin, Point a, Point b) {
    return (a.x - origin.x) * (b.y - origin.y) - (a.y - origin.y) * (b.x - origin.x);
}

template <class Number>
__device__ Number warp_least(Number value) {
    for (int distance = 16; distance; distance /= 2) value = min(value, __shfl_xor_sync(WARP, value, distance));
    return value;
}
