// SPDX-License-Identifier: Apache-2.0
// Smallest rectangles around convex hulls.
//
// Each gives what OpenCV 4.11 gives (`ocdserve.backend.geometry` on the CPU), so the types and the
// order of operations matter: float where they use float, no fused multiply-add.
#pragma once

#include "points.cuh"

// A rotated rectangle as `cv2.minAreaRect` describes it; angle in degrees.
struct Rectangle {
    float x, y, width, height, angle;
};

__device__ __forceinline__ Rectangle rectangle_of(float corner_x, float corner_y, float ax, float ay, float bx,
                                                  float by) {
    Rectangle rectangle;
    rectangle.x = corner_x + (ax + bx) * 0.5f;
    rectangle.y = corner_y + (ay + by) * 0.5f;
    rectangle.width = static_cast<float>(sqrt(static_cast<double>(ax) * ax + static_cast<double>(ay) * ay));
    rectangle.height = static_cast<float>(sqrt(static_cast<double>(bx) * bx + static_cast<double>(by) * by));
    rectangle.angle = static_cast<float>(atan2(static_cast<double>(ay), static_cast<double>(ax)));
    return rectangle;
}

// What the calipers found when they turned to an edge.
struct Turn {
    float area;
    int order;  // of the turn
    float a, b; // direction of the edge, as the first side of the rectangle sees it
    float width, height;
    int left, low;

    __device__ bool beats(float other_area, int other_order) const {
        return area < other_area || (area == other_area && order > other_order);
    }
};

// An edge's direction, turned to the first of the four sides: 0 lowest y, 1 highest x, 2 highest y, 3 lowest x.
__device__ __forceinline__ Point turned_edge(const int* vertices, int index, int side) {
    const Point from = unpack(vertices[index]), to = unpack(vertices[index + 1]);
    const int x = to.x - from.x, y = to.y - from.y;
    return side == 0 ? Point{x, y} : side == 1 ? Point{y, -x} : side == 2 ? Point{-x, -y} : Point{-y, x};
}

// Smallest rectangle around a hull by rotating calipers (Toussaint 1983), in OpenCV's arithmetic and with its choice
// among equals: of the smallest the one that the calipers reach last.
//
// The calipers make as many turns as there are edges, each to the edge of a side that turns them the least, of equals to
// the lowest side's. So each lane finds on its own what they touch when they have turned to its edges. Turned by the
// last right angle, they may reach again what another side has reached at first: such edges count for both. Called by a
// whole warp; `vertices` holds the first of `count` vertices again behind the last.
__device__ __noinline__ Rectangle smallest_rectangle(const int* vertices, int count, int lane) {
    Rectangle found{};
    if (count <= 2) {
        // From the right end to the left one.
        Point a = unpack(vertices[max(count - 1, 0)]), b = unpack(vertices[0]);
        if (b.x > a.x) {
            const Point right = b;
            b = a;
            a = right;
        }
        const float dx = static_cast<float>(b.x - a.x), dy = static_cast<float>(b.y - a.y);
        found = rectangle_of(static_cast<float>(a.x), static_cast<float>(a.y), dx, dy, 0.0f, 0.0f);
    } else {
        // The first vertex that each side touches, the first of equals: value and index in one key.
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
        Turn best{3.402823466e+38f, -1, 0, 0, 0, 0, 0, 0};
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
            const double dx = own_x, dy = own_y;
            const float inverse = static_cast<float>(1.0 / sqrt(dx * dx + dy * dy));
            Turn turn;
            turn.order = order;
            turn.a = own_x * inverse;
            turn.b = own_y * inverse;
            turn.low = vertices[touched[0]];
            turn.left = vertices[touched[3]];
            const Point low = unpack(turn.low), right = unpack(vertices[touched[1]]);
            const Point high = unpack(vertices[touched[2]]), left = unpack(turn.left);
            turn.width = static_cast<float>(right.x - left.x) * turn.a + static_cast<float>(right.y - left.y) * turn.b;
            turn.height = -static_cast<float>(high.x - low.x) * turn.b + static_cast<float>(high.y - low.y) * turn.a;
            turn.area = turn.width * turn.height;
            if (turn.beats(best.area, best.order)) best = turn;
        }
        float area = best.area;
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
        const float a1 = __shfl_sync(WARP, best.a, winner), b1 = __shfl_sync(WARP, best.b, winner);
        const float width = __shfl_sync(WARP, best.width, winner), height = __shfl_sync(WARP, best.height, winner);
        const Point left = unpack(__shfl_sync(WARP, best.left, winner));
        const Point low = unpack(__shfl_sync(WARP, best.low, winner));
        // Where the sides through the leftmost and the lowest point meet.
        const float a2 = -b1, b2 = a1;
        const float c1 = a1 * static_cast<float>(left.x) + static_cast<float>(left.y) * b1;
        const float c2 = a2 * static_cast<float>(low.x) + static_cast<float>(low.y) * b2;
        const float inverse = 1.0f / (a1 * b2 - a2 * b1);
        found = rectangle_of((c1 * b2 - c2 * b1) * inverse, (a1 * c2 - a2 * c1) * inverse, a1 * width, b1 * width,
                             a2 * height, b2 * height);
    }
    found.angle = static_cast<float>(found.angle * 180 / 3.1415926535897932384626433832795);
    return found;
}

// Corners as `cv2.boxPoints` gives them, ordered clockwise from the top left: of the two leftmost corners the upper is
// the top left one, of the two rightmost the upper the top right one.
__device__ __noinline__ Quad ordered_corners(const Rectangle& rectangle) {
    const double angle = rectangle.angle * (3.14159265358979323846 / 180.0);
    const float half_cos = static_cast<float>(cos(angle)) * 0.5f;
    const float half_sin = static_cast<float>(sin(angle)) * 0.5f;
    float x[4], y[4];
    x[0] = rectangle.x - half_sin * rectangle.height - half_cos * rectangle.width;
    y[0] = rectangle.y + half_cos * rectangle.height - half_sin * rectangle.width;
    x[1] = rectangle.x + half_sin * rectangle.height - half_cos * rectangle.width;
    y[1] = rectangle.y - half_cos * rectangle.height - half_sin * rectangle.width;
    x[2] = 2.0f * rectangle.x - x[0];
    y[2] = 2.0f * rectangle.y - y[0];
    x[3] = 2.0f * rectangle.x - x[1];
    y[3] = 2.0f * rectangle.y - y[1];
    // By x; equal ones keep their order.
    for (int i = 1; i < 4; ++i) {
        for (int j = i; j > 0 && x[j] < x[j - 1]; --j) {
            const float other_x = x[j], other_y = y[j];
            x[j] = x[j - 1];
            y[j] = y[j - 1];
            x[j - 1] = other_x;
            y[j - 1] = other_y;
        }
    }
    const int top_left = y[1] > y[0] ? 0 : 1;
    const int top_right = y[3] > y[2] ? 2 : 3;
    const int order[4] = {top_left, top_right, 5 - top_right, 1 - top_left};
    Quad quad;
    for (int i = 0; i < 4; ++i) {
        quad.x[i] = x[order[i]];
        quad.y[i] = y[order[i]];
    }
    return quad;
}
