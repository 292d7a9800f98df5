// SPDX-License-Identifier: Apache-2.0
// Points and quads. x to the right, y downwards.
#pragma once

#include "postprocess.cuh"

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
