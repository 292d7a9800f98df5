// SPDX-License-Identifier: Apache-2.0
// Convex hulls by the monotone chains of their two sides.
#pragma once

#include "points.cuh"
#include "warp.cuh"

// Vertices of a convex hull. The convex polygons with the most vertices on an n x n grid
// have about 3.5 n^(2/3) of them (Acketa and Zunic 1995): 900 for the largest maps, n = 4096.
constexpr int MOST_VERTICES = 1023;

// Drop what cannot be a vertex of a convex chain: points not strictly outside of the line through their neighbours.
// All are tested at once, in rounds; `add_to_chain` tests those that remain. Called by a whole warp.
__device__ int thin_out(int* points, int count, int lane) {
    for (int round = 0; round < 8 && count > 4; ++round) {
        int kept = 0;
        int before = points[0];
        for (int base = 0; base < count; base += 32) {
            const int index = base + lane;
            const int here = index < count ? points[index] : 0;
            const int next = index + 1 < count ? points[index + 1] : here;
            int previous = __shfl_up_sync(WARP, here, 1);
            if (lane == 0) previous = before;
            before = __shfl_sync(WARP, here, 31);
            // Of consecutive equal points the first is kept.
            const bool is_end = index == 0 || index == count - 1;
            const bool is_outside = here != previous &&
                                    (here == next || cross(unpack(previous), unpack(here), unpack(next)) > 0);
            const unsigned staying = __ballot_sync(WARP, index < count && (is_end || is_outside));
            __syncwarp();  // a vote does not order the reads above with the writes below
            if ((staying >> lane) & 1u) points[kept + __popc(staying & ((1u << lane) - 1u))] = here;
            kept += __popc(staying);
            __syncwarp();
        }
        if (kept == count) break;
        count = kept;
    }
    return count;
}

// Andrew's monotone chain in place: the strictly convex chain of points that go downwards (side 1, their right hull) or
// upwards (side -1, their left hull). Returns the number of vertices. Called by a whole warp.
__device__ __noinline__ int convex_chain(int* points, int count, int side, int lane) {
    count = thin_out(points, count, lane);
    int kept = 1;
    if (lane == 0) {
        for (int index = 1; index < count; ++index) {
            const Point point = unpack(points[index]);
            const Point top = unpack(points[kept - 1]);
            // In every row only the outermost point counts.
            if (point.y == top.y) {
                if (side * (point.x - top.x) <= 0) continue;
                if (kept > 1) --kept;
            }
            while (kept > 1 && cross(unpack(points[kept - 2]), unpack(points[kept - 1]), point) <= 0) --kept;
            points[kept++] = pack(point);
        }
    }
    __syncwarp();
    return __shfl_sync(WARP, kept, 0);
}

// A strictly convex polygon as two chains, clockwise as displayed, from its topmost point (the leftmost of several).
// The right chain ends where the left one begins, and vice versa.
struct Hull {
    const int* right;
    const int* left;
    int right_count, left_count;

    __device__ int count() const { return right_count + left_count - 2; }
    __device__ int at(int index) const {
        return index < right_count - 1 ? right[index] : left[index - (right_count - 1)];
    }
    // All vertices from `start` on, with the first one repeated at the end. Called by a whole warp.
    __device__ void write(int* vertices, int start, int lane) const {
        const int total = count();
        for (int index = lane; index <= total; index += 32)
            vertices[index] = at(total ? (index + start) % total : 0);
        __syncwarp();
    }
};
