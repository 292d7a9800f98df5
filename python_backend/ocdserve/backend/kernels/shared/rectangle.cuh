// SPDX-License-Identifier: Apache-2.0
// Rotated rectangles: from what calipers touch to a rectangle, and from a rectangle to corners in their order.
//
// Each function returns what OpenCV 4.11 returns (`ocdserve.backend.stages.geometry` on the CPU), so the types and the
// order of operations matter: float where they use float, no fused multiply-add. `Directions` is `Double`, or what gives
// the same floats (directions.cuh).
// Compiled for the CPU too (`ocdserve.backend.kernels.cpu`).
#pragma once

#include "directions.cuh"
#include "points.cuh"

// A rotated rectangle as `cv2.minAreaRect` describes it; angle in degrees.
struct Rectangle {
    float x, y, width, height, angle;
};

template <class Directions>
__device__ __forceinline__ Rectangle rectangle_of(float corner_x, float corner_y, float ax, float ay, float bx,
                                                  float by) {
    Rectangle rectangle;
    rectangle.x = corner_x + (ax + bx) * 0.5f;
    rectangle.y = corner_y + (ay + by) * 0.5f;
    rectangle.width = Directions::length(ax, ay);
    rectangle.height = Directions::length(bx, by);
    rectangle.angle = Directions::degrees(Directions::radians(ay, ax));
    return rectangle;
}

// A rectangle of no height from the right one of two points to the left one.
template <class Directions>
__device__ __forceinline__ Rectangle rectangle_along(Point a, Point b) {
    if (b.x > a.x) {
        const Point right = b;
        b = a;
        a = right;
    }
    const float dx = static_cast<float>(b.x - a.x), dy = static_cast<float>(b.y - a.y);
    return rectangle_of<Directions>(static_cast<float>(a.x), static_cast<float>(a.y), dx, dy, 0.0f, 0.0f);
}

// The direction of an edge, turned to the first of the four sides: 0 lowest y, 1 highest x, 2 highest y, 3 lowest x.
__device__ __forceinline__ Point turned(Point edge, int side) {
    const int x = edge.x, y = edge.y;
    return side == 0 ? Point{x, y} : side == 1 ? Point{y, -x} : side == 2 ? Point{-x, -y} : Point{-y, x};
}

// The rectangle whose first side has a given direction.
struct Extent {
    float area;
    float a, b;  // direction of the first side, a unit vector
    float width, height;
};

// From the direction of its first side (not of unit length) and the points that its sides touch.
template <class Directions>
__device__ __forceinline__ Extent extent_of(float x, float y, Point low, Point right, Point high, Point left) {
    const float inverse = Directions::inverse_length(x, y);
    Extent extent;
    extent.a = x * inverse;
    extent.b = y * inverse;
    extent.width = static_cast<float>(right.x - left.x) * extent.a + static_cast<float>(right.y - left.y) * extent.b;
    extent.height = -static_cast<float>(high.x - low.x) * extent.b + static_cast<float>(high.y - low.y) * extent.a;
    extent.area = extent.width * extent.height;
    return extent;
}

template <class Directions>
__device__ __forceinline__ Rectangle rectangle_at(float a1, float b1, float width, float height, Point left,
                                                  Point low) {
    // Where the sides through the leftmost and the lowest point meet.
    const float a2 = -b1, b2 = a1;
    const float c1 = a1 * static_cast<float>(left.x) + static_cast<float>(left.y) * b1;
    const float c2 = a2 * static_cast<float>(low.x) + static_cast<float>(low.y) * b2;
    const float inverse = 1.0f / (a1 * b2 - a2 * b1);
    return rectangle_of<Directions>((c1 * b2 - c2 * b1) * inverse, (a1 * c2 - a2 * c1) * inverse, a1 * width,
                                    b1 * width, a2 * height, b2 * height);
}

__device__ __forceinline__ bool large_enough(const Rectangle& rectangle, float size) {
    return fminf(rectangle.width, rectangle.height) >= size;
}

// Corners as `cv2.boxPoints` returns them, ordered clockwise: first the upper of the two leftmost corners, then that of
// the two rightmost. `to_source` may let them begin elsewhere.
template <class Directions>
__device__ __noinline__ Quad ordered_corners(const Rectangle& rectangle) {
    const SineAndCosine direction = Directions::sine_and_cosine(rectangle.angle);
    const float half_cos = direction.cosine * 0.5f, half_sin = direction.sine * 0.5f;
    float x[4], y[4];
    x[0] = rectangle.x - half_sin * rectangle.height - half_cos * rectangle.width;
    y[0] = rectangle.y + half_cos * rectangle.height - half_sin * rectangle.width;
    x[1] = rectangle.x + half_sin * rectangle.height - half_cos * rectangle.width;
    y[1] = rectangle.y - half_cos * rectangle.height - half_sin * rectangle.width;
    x[2] = 2.0f * rectangle.x - x[0];
    y[2] = 2.0f * rectangle.y - y[0];
    x[3] = 2.0f * rectangle.x - x[1];
    y[3] = 2.0f * rectangle.y - y[1];
    // Sorted by x, stably.
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
