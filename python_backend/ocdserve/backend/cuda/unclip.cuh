// SPDX-License-Identifier: Apache-2.0
// How quads grow.
//
// Each function gives what Clipper 6 gives (`ocdserve.backend.geometry` on the CPU), so the types and the
// order of operations matter: float where they use float, no fused multiply-add.
#pragma once

#include "points.cuh"

// Most points of a grown quad.
constexpr int MOST_GROWN_POINTS = 512;

__device__ __forceinline__ int round_half_away(double value) {
    return static_cast<int>(trunc(value + copysign(0.5, value)));
}

// How far a quad grows: area * ratio / perimeter.
__device__ double unclip_distance(const Quad& quad, double ratio) {
    double x[4], y[4], area = 0, perimeter = 0;
    // Seen from the first corner: products of large coordinates would lose digits.
    for (int i = 0; i < 4; ++i) {
        x[i] = static_cast<double>(quad.x[i]) - static_cast<double>(quad.x[0]);
        y[i] = static_cast<double>(quad.y[i]) - static_cast<double>(quad.y[0]);
    }
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        const int next = (i + 1) & 3;
        const double dx = x[next] - x[i], dy = y[next] - y[i];
        area += x[i] * y[next] - y[i] * x[next];
        perimeter += sqrt(dx * dx + dy * dy);
    }
    return perimeter > 0 ? fabs(area) / 2.0 * ratio / perimeter : 0.0;
}

// Move the sides of a rectangle outwards, `expand_rectangles` on the CPU; returns the shorter side.
__device__ float expand(Quad& quad, double distance) {
    const double x = quad.x[0], y = quad.y[0];
    double across_x = quad.x[1] - x, across_y = quad.y[1] - y;
    double down_x = quad.x[3] - x, down_y = quad.y[3] - y;
    const double width = sqrt(across_x * across_x + across_y * across_y);
    const double height = sqrt(down_x * down_x + down_y * down_y);
    across_x /= width > 0 ? width : 1;
    across_y /= width > 0 ? width : 1;
    down_x /= height > 0 ? height : 1;
    down_y /= height > 0 ? height : 1;
    for (int i = 0; i < 4; ++i) {
        const double a = i == 1 || i == 2 ? 1 : -1, b = i >= 2 ? 1 : -1;
        quad.x[i] = static_cast<float>(quad.x[i] + (a * across_x + b * down_x) * distance);
        quad.y[i] = static_cast<float>(quad.y[i] + (a * across_y + b * down_y) * distance);
    }
    return static_cast<float>(fmin(width, height) + 2 * distance);
}

__device__ __forceinline__ int rounded_point(double x, double y) {
    return pack(Point{round_half_away(x), round_half_away(y)});
}

// Clipper's offset of a quad with round joins (ClipperOffset::DoOffset and DoRound of Clipper 6), packed points
// clockwise as displayed: each corner's arc and its end. Returns how many; 0 where a corner is bent so little that
// Clipper takes another branch, or where there are more than MOST_GROWN_POINTS. Called by a whole warp, four lanes of
// which work on a corner each; `distance` is above zero.
__device__ int grown_points(const Quad& quad, double distance, int* points, int lane) {
    Point corner[4];
    for (int i = 0; i < 4; ++i)
        corner[i] = Point{static_cast<int>(truncf(quad.x[i])), static_cast<int>(truncf(quad.y[i]))};
    const bool reversed = cross(corner[0], corner[1], corner[2]) < 0;
    const int own = lane & 3;
    const Point here = corner[reversed ? 3 - own : own];
    const Point next = corner[reversed ? (6 - own) & 3 : (own + 1) & 3];
    // Unit normal of the edge that follows a corner, and of the one before.
    const double dx = next.x - here.x, dy = next.y - here.y;
    const double length = fmax(sqrt(dx * dx + dy * dy), 1.0);
    const double normal_x = dy / length, normal_y = -dx / length;
    const double before_x = __shfl_sync(WARP, normal_x, (lane + 3) & 3);
    const double before_y = __shfl_sync(WARP, normal_y, (lane + 3) & 3);
    const double pi = 3.14159265358979323846;
    const double tolerance = fmin(0.25, distance * 0.25);
    const double per_turn = fmin(pi / acos(1.0 - tolerance / distance), distance * pi);
    const double step_sin = sin(2 * pi / per_turn), step_cos = cos(2 * pi / per_turn);
    const double sine = before_x * normal_y - before_y * normal_x;
    const double cosine = before_x * normal_x + before_y * normal_y;
    if (!__all_sync(WARP, sine * distance >= 1.0)) return 0;
    const int steps = max(round_half_away(per_turn / (2 * pi) * atan2(fmin(sine, 1.0), cosine)), 1);
    int place = 0, total = 0;
    for (int i = 0; i < 4; ++i) {
        const int count = __shfl_sync(WARP, steps, i) + 1;
        if (i < own) place += count;
        total += count;
    }
    if (total > MOST_GROWN_POINTS) return 0;
    if (lane < 4) {
        double x = before_x, y = before_y;
        for (int step = 0; step < steps; ++step) {
            points[place + step] = rounded_point(here.x + x * distance, here.y + y * distance);
            const double turned = x * step_cos - step_sin * y;
            y = x * step_sin + y * step_cos;
            x = turned;
        }
        points[place + steps] = rounded_point(here.x + normal_x * distance, here.y + normal_y * distance);
    }
    __syncwarp();
    return total;
}
