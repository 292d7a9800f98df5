// SPDX-License-Identifier: Apache-2.0
// Growing of quads.
//
// Each function returns what Clipper 6 returns (`ocdserve.backend.stages.geometry` on the CPU), so the types and the
// order of operations matter: float where they use float, no fused multiply-add.
// Compiled for the CPU too (`ocdserve.backend.kernels.cpu`).
#pragma once

#include "points.cuh"

__device__ __forceinline__ int round_half_away(double value) {
    return static_cast<int>(trunc(value + copysign(0.5, value)));
}

// How far a quad grows: area * ratio / perimeter.
__device__ double unclip_distance(const Quad& quad, double ratio) {
    double x[4], y[4], area = 0, perimeter = 0;
    // Relative to the first corner: products of large coordinates would lose digits.
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

struct Vector {
    double x, y;
};

// Outer unit normal of the edge between two corners of a polygon that goes clockwise as displayed.
__device__ __forceinline__ Vector normal_of(Point here, Point next) {
    const double dx = next.x - here.x, dy = next.y - here.y;
    const double length = fmax(sqrt(dx * dx + dy * dy), 1.0);
    return Vector{dy / length, -dx / length};
}

__device__ __forceinline__ double sine_of(Vector before, Vector after) {
    return before.x * after.y - before.y * after.x;
}

// How Clipper draws arcs (ClipperOffset::DoOffset and DoRound of Clipper 6) at a distance above zero.
struct Arcs {
    double distance;
    double per_turn;  // steps of a full circle
    double step_sin, step_cos;

    __device__ explicit Arcs(double distance_) : distance(distance_) {
        const double pi = 3.14159265358979323846;
        const double tolerance = fmin(0.25, distance * 0.25);
        per_turn = fmin(pi / acos(1.0 - tolerance / distance), distance * pi);
        step_sin = sin(2 * pi / per_turn);
        step_cos = cos(2 * pi / per_turn);
    }

    // Steps of the arc between two normals.
    __device__ int steps(Vector before, Vector after) const {
        const double pi = 3.14159265358979323846;
        const double cosine = before.x * after.x + before.y * after.y;
        return max(round_half_away(per_turn / (2 * pi) * atan2(fmin(sine_of(before, after), 1.0), cosine)), 1);
    }

    // Points of the arc around a corner, and its end: put(place, point) for places 0 .. steps.
    template <class Put>
    __device__ void draw(Point corner, Vector before, Vector after, int steps, Put put) const {
        Vector normal = before;
        for (int step = 0; step < steps; ++step) {
            put(step, rounded(corner, normal));
            normal = Vector{normal.x * step_cos - step_sin * normal.y, normal.x * step_sin + normal.y * step_cos};
        }
        put(steps, rounded(corner, after));
    }

    __device__ Point rounded(Point corner, Vector normal) const {
        return Point{round_half_away(corner.x + normal.x * distance), round_half_away(corner.y + normal.y * distance)};
    }
};

// Corners truncated to whole pixels, clockwise as displayed.
__device__ __forceinline__ void clockwise_corners(const Quad& quad, Point corners[4]) {
    Point cut[4];
    for (int i = 0; i < 4; ++i)
        cut[i] = Point{static_cast<int>(truncf(quad.x[i])), static_cast<int>(truncf(quad.y[i]))};
    const bool reversed = cross(cut[0], cut[1], cut[2]) < 0;
    for (int i = 0; i < 4; ++i) corners[i] = cut[reversed ? 3 - i : i];
}
