// SPDX-License-Identifier: Apache-2.0
// Smallest rectangles around convex hulls, by a warp.
#pragma once

#include "rectangle.cuh"
#include "single.cuh"
#include "warp.cuh"

// The state of the calipers after they turned to an edge.
struct Turn {
    Extent extent;
    int order;  // of the turn
    int left, low;

    __device__ bool beats(float other_area, int other_order) const {
        return extent.area < other_area || (extent.area == other_area && order > other_order);
    }
};

__device__ __forceinline__ Point turned_edge(const int* vertices, int index, int side) {
    const Point from = unpack(vertices[index]), to = unpack(vertices[index + 1]);
    return turned(Point{to.x - from.x, to.y - from.y}, side);
}

// Smallest rectangle around a hull by rotating calipers (Toussaint 1983), in OpenCV's arithmetic and with its choice
// in a tie: the smallest that the calipers reach last.
//
// The calipers make one turn per edge, each to the nearest edge of any side (the first in a tie). So each lane
// computes independently what they touch after they have turned to its edges. During the last right angle they may
// reach again an edge that another side has reached at first: such edges count for both. Called by a whole warp;
// `vertices` repeats the first of its `count` vertices after the last.
__device__ __noinline__ Rectangle smallest_rectangle(const int* vertices, int count, int lane) {
    Rectangle found;
    if (count <= 2) {
        found = rectangle_along<Single>(unpack(vertices[max(count - 1, 0)]), unpack(vertices[0]));
    } else {
        // The first vertex that each side touches (the first in a tie): value and index in one key.
        int keys[4] = {INT_MAX, INT_MAX, INT_MAX, INT_MAX};
        for (int index = lane; index < count; index += 32) {
            const Point point = unpack(vertices[index]);
            keys[0] = min(keys[0], point.y * 1024 + index);
            keys[1] = min(keys[1], -point.x * 1024 + index);
            keys[2] = min(keys[2], -point.y * 1024 + index);
            keys[3] = min(keys[3], point.x * 1024 + index);
        }
        int first[4], length[4];
        int edges = 0;
        for (int side = 0; side < 4; ++side) first[side] = warp_least(keys[side]) & 1023;
        for (int side = 0; side < 4; ++side) {
            const int end = first[(side + 1) & 3];
            const Point beyond = turned_edge(vertices, end, side);
            length[side] = end - first[side];
            if (length[side] < 0) length[side] += count;
            length[side] += beyond.x == 0 && beyond.y > 0;
            edges += length[side];
        }
        Turn best{{3.402823466e+38f, 0, 0, 0, 0}, -1, 0, 0};
        for (int edge = lane; edge < edges; edge += 32) {
            int own_side = 0, own_place = edge;
            while (own_place >= length[own_side]) own_place -= length[own_side++];
            const Point own = turned_edge(vertices, (first[own_side] + own_place) % count, own_side);
            const float own_x = static_cast<float>(own.x), own_y = static_cast<float>(own.y);
            int order = 0;
            int touched[4];
            for (int side = 0; side < 4; ++side) {
                int passed = 0;
                for (int place = 0, index = first[side]; place < length[side]; ++place) {
                    const Point other = turned_edge(vertices, index, side);
                    const float turn = static_cast<float>(other.y) * own_x + -static_cast<float>(other.x) * own_y;
                    passed += turn < 0.0f || (turn == 0.0f && side <= own_side);
                    index = index + 1 < count ? index + 1 : 0;
                }
                order += passed;
                touched[side] = (first[side] + passed) % count;
            }
            if (order > count) continue;
            Turn turn;
            turn.order = order;
            turn.low = vertices[touched[0]];
            turn.left = vertices[touched[3]];
            turn.extent = extent_of<Single>(own_x, own_y, unpack(turn.low), unpack(vertices[touched[1]]),
                                    unpack(vertices[touched[2]]), unpack(turn.left));
            if (turn.beats(best.extent.area, best.order)) best = turn;
        }
        float area = best.extent.area;
        int order = best.order;
        for (int distance = 16; distance; distance /= 2) {
            const float other_area = __shfl_xor_sync(WARP, area, distance);
            const int other_order = __shfl_xor_sync(WARP, order, distance);
            if (other_area < area || (other_area == area && other_order > order)) {
                area = other_area;
                order = other_order;
            }
        }
        const int winner = __ffs(__ballot_sync(WARP, best.order == order)) - 1;
        const float a = __shfl_sync(WARP, best.extent.a, winner), b = __shfl_sync(WARP, best.extent.b, winner);
        const float width = __shfl_sync(WARP, best.extent.width, winner);
        const float height = __shfl_sync(WARP, best.extent.height, winner);
        const Point left = unpack(__shfl_sync(WARP, best.left, winner));
        const Point low = unpack(__shfl_sync(WARP, best.low, winner));
        found = rectangle_at<Single>(a, b, width, height, left, low);
    }
    return found;
}
