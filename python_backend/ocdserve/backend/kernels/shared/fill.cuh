// SPDX-License-Identifier: Apache-2.0
// The pixels of filled quads, row by row, as `cv2.fillPoly` of OpenCV 4.11 sets them. Compiled for the CPU too
// (`ocdserve.backend.kernels.cpu`).
#pragma once

#include "points.cuh"

__device__ __forceinline__ int floor_div(int a, int b) {
    const int quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

// Widen a span by the pixels of row y on Bresenham's line between two points, drawn from the left end to the right.
__device__ void add_line(Span& span, Point a, Point b, int y) {
    if (y < min(a.y, b.y) || y > max(a.y, b.y)) return;
    const Point left = a.x > b.x ? b : a, right = a.x > b.x ? a : b;
    const int run = right.x - left.x, rise = right.y - left.y;
    const int steps = rise < 0 ? -rise : rise;
    int low = 0, high = run;
    if (steps > 0) {
        // After i rows from the left end a steep line has moved by ceil(i run / steps - 1/2) columns; a shallow one
        // stays in a row for all columns that round to it.
        const int row = rise < 0 ? left.y - y : y - left.y;
        if (steps > run) {
            low = high = max(-floor_div(steps - 2 * run * row, 2 * steps), 0);
        } else {
            low = max(floor_div(2 * run * row - run, 2 * steps) + 1, 0);
            high = min(floor_div(2 * run * row + run, 2 * steps), run);
        }
    }
    span.first = min(span.first, left.x + low);
    span.last = max(span.last, left.x + high);
}

// Pixels of row y that `cv2.fillPoly` sets for a convex polygon of four whole-pixel corners inside of the image: the
// span between the extremes of its outline.
__device__ Span filled_row(const Point corners[4], int y) {
    Span span{INT_MAX, INT_MIN};
#pragma unroll 1
    for (int i = 0; i < 4; ++i) add_line(span, corners[i], corners[(i + 1) & 3], y);
    return span;
}

// Which sides of a window from (0, 0) to `last` a point lies beyond: 1 left, 2 right, 4 above, 8 below.
__device__ __forceinline__ int beyond(long long x, long long y, Point last) {
    return (x < 0) + 2 * (x > last.x) + 4 * (y < 0) + 8 * (y > last.y);
}

// Cut a line to a window, as `cv2.clipLine` rounds; false if nothing of it is left.
__device__ bool cut_line(Point& a, Point& b, Point last) {
    long long x[2] = {a.x, b.x}, y[2] = {a.y, b.y};
    int sides[2] = {beyond(x[0], y[0], last), beyond(x[1], y[1], last)};
    if ((sides[0] & sides[1]) == 0 && (sides[0] | sides[1]) != 0) {
#pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            if (!(sides[i] & 12)) continue;
            const long long edge = sides[i] < 8 ? 0 : last.y;
            x[i] += static_cast<long long>(static_cast<double>(edge - y[i]) * (x[1] - x[0]) / (y[1] - y[0]));
            y[i] = edge;
            sides[i] = beyond(x[i], 0, Point{last.x, 0});
        }
        if ((sides[0] & sides[1]) == 0 && (sides[0] | sides[1]) != 0) {
#pragma unroll 1
            for (int i = 0; i < 2; ++i) {
                if (!sides[i]) continue;
                const long long edge = sides[i] == 1 ? 0 : last.x;
                y[i] += static_cast<long long>(static_cast<double>(edge - x[i]) * (y[1] - y[0]) / (x[1] - x[0]));
                x[i] = edge;
                sides[i] = 0;
            }
        }
    }
    a = Point{static_cast<int>(x[0]), static_cast<int>(y[0])};
    b = Point{static_cast<int>(x[1]), static_cast<int>(y[1])};
    return (sides[0] | sides[1]) == 0;
}

// The same for a polygon that reaches beyond the image of `last` + 1 pixels: OpenCV cuts the lines of the
// outline to the image before it draws them, and fills between edges through the cut ends.
__device__ Span cut_filled_row(const Point corners[4], Point last, int y) {
    Span span{INT_MAX, INT_MIN};
    long long least = 0, most = 0;
    bool crossed = false;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        const Point a = corners[i], b = corners[(i + 1) & 3];
        Point cut_a = a, cut_b = b;
        if (cut_line(cut_a, cut_b, last)) add_line(span, cut_a, cut_b, y);
        if (y < min(a.y, b.y) || y >= max(a.y, b.y)) continue;
        // 16 fractional bits, one step of x per row.
        const long long ax = 65536LL * cut_a.x, bx = 65536LL * cut_b.x;
        const bool rows_cut = cut_a.y != cut_b.y;
        const int ay = rows_cut ? cut_a.y : a.y, by = rows_cut ? cut_b.y : b.y;
        const long long step = (bx - ax) / (by - ay);
        const long long x = a.y < b.y ? ax + (y - ay) * step : bx + (y - by) * step;
        least = crossed ? min(least, x) : x;
        most = crossed ? max(most, x) : x;
        crossed = true;
    }
    if (crossed) {
        const int first = static_cast<int>((least + 65535) >> 16), end = static_cast<int>(most >> 16);
        if (first <= end && first <= last.x && end >= 0) {
            span.first = min(span.first, max(first, 0));
            span.last = max(span.last, min(end, last.x));
        }
    }
    return span;
}
