// SPDX-License-Identifier: Apache-2.0
// Growing of quads by a warp.
#pragma once

#include "growth.cuh"
#include "warp.cuh"

// Most points of a grown quad.
constexpr int MOST_GROWN_POINTS = 512;

// Range of the coordinates of packed points, with a margin for rounding.
constexpr float FARTHEST = 32000.0f;

// Grow a quad by its `unclip_distance`, as Clipper offsets with round joins (ClipperOffset::DoOffset and DoRound of
// Clipper 6), to packed points clockwise as displayed: each corner's arc and its end. Returns their number; 0 if a
// corner is so nearly straight that Clipper takes another branch, or if there are more than MOST_GROWN_POINTS. Called by
// a whole warp, four lanes of which work on a corner each.
__device__ int grow(const Quad& quad, double ratio, int* points, int lane) {
    const double distance = unclip_distance(quad, ratio);
    float farthest = 0;
    for (int i = 0; i < 4; ++i) farthest = fmaxf(farthest, fmaxf(fabsf(quad.x[i]), fabsf(quad.y[i])));
    if (!(distance > 0) || farthest + distance > FARTHEST) return 0;
    Point corners[4];
    clockwise_corners(quad, corners);
    const int own = lane & 3;
    const Point here = corners[own];
    const Vector after = normal_of(here, corners[(own + 1) & 3]);
    const Vector before{__shfl_sync(WARP, after.x, (lane + 3) & 3), __shfl_sync(WARP, after.y, (lane + 3) & 3)};
    const Arcs arcs(distance);
    if (!__all_sync(WARP, sine_of(before, after) * distance >= 1.0)) return 0;
    const int steps = arcs.steps(before, after);
    int place = 0, total = 0;
    for (int i = 0; i < 4; ++i) {
        const int count = __shfl_sync(WARP, steps, i) + 1;
        if (i < own) place += count;
        total += count;
    }
    if (total > MOST_GROWN_POINTS) return 0;
    const auto put = [&](int step, Point point) { points[place + step] = pack(point); };
    if (lane < 4) arcs.draw(here, before, after, steps, put);
    __syncwarp();
    return total;
}
