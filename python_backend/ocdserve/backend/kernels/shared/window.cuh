// SPDX-License-Identifier: Apache-2.0
// A quad's pixels in the map, and its corners in the source. Compiled for the CPU too (`ocdserve.backend.kernels.cpu`).
#pragma once

#include "fill.cuh"

// Corners truncated to whole pixels of the quad's window in the map, in map coordinates.
__device__ void whole_corners(const Quad& quad, const Image& image, Point corners[4]) {
    const float least_x = fminf(fminf(quad.x[0], quad.x[1]), fminf(quad.x[2], quad.x[3]));
    const float least_y = fminf(fminf(quad.y[0], quad.y[1]), fminf(quad.y[2], quad.y[3]));
    const float x = fminf(fmaxf(floorf(least_x), 0.0f), static_cast<float>(image.width - 1));
    const float y = fminf(fmaxf(floorf(least_y), 0.0f), static_cast<float>(image.height - 1));
    for (int i = 0; i < 4; ++i) {
        corners[i].x = static_cast<int>(truncf(quad.x[i] - x)) + static_cast<int>(x);
        corners[i].y = static_cast<int>(truncf(quad.y[i] - y)) + static_cast<int>(y);
    }
}

// The part of a map that a quad's pixels lie in, and its corners in whole pixels from the window's origin.
struct Window {
    Point origin, last;
    Point corners[4];
    bool cut;  // whether the quad reaches beyond the map

    __device__ Span row(int y) const { return cut ? cut_filled_row(corners, last, y) : filled_row(corners, y); }
};

__device__ Window window_of(const Quad& quad, const Image& image) {
    Window window;
    whole_corners(quad, image, window.corners);
    Point* corners = window.corners;
    Point least = corners[0], most = corners[0];
    for (int i = 1; i < 4; ++i) {
        least = Point{min(least.x, corners[i].x), min(least.y, corners[i].y)};
        most = Point{max(most.x, corners[i].x), max(most.y, corners[i].y)};
    }
    const Point end{image.width - 1, image.height - 1};
    window.cut = least.x < 0 || least.y < 0 || most.x > end.x || most.y > end.y;
    window.origin = Point{min(max(least.x, 0), end.x), min(max(least.y, 0), end.y)};
    window.last = Point{min(max(most.x, 0), end.x) - window.origin.x, min(max(most.y, 0), end.y) - window.origin.y};
    for (int i = 0; i < 4; ++i) {
        corners[i].x -= window.origin.x;
        corners[i].y -= window.origin.y;
    }
    return window;
}

// The corner that begins a quad's upper edge; `upper_edge_first` of `ocdserve.results.quads`.
__device__ __forceinline__ int upper_left(const double x[4], const double y[4]) {
    constexpr double STEEPEST = 5.0;
    const double across = x[1] - x[0], down = y[1] - y[0];
    const bool on_a_corner = x[1] == x[3] && down < 0 && y[2] - y[1] <= STEEPEST * (x[2] - x[1]);
    return -down > STEEPEST * across || on_a_corner ? 1 : down > STEEPEST * across ? 3 : 0;
}

// Network to source pixels, beginning with the upper edge, kept inside the source image.
__device__ void to_source(Quad& quad, const Image& image) {
    double x[4], y[4];
    for (int i = 0; i < 4; ++i) {
        x[i] = quad.x[i] * image.scale_x;
        y[i] = quad.y[i] * image.scale_y;
    }
    const int first = upper_left(x, y);
    for (int i = 0; i < 4; ++i) {
        const int corner = (first + i) & 3;
        quad.x[i] = static_cast<float>(fmin(fmax(x[corner], 0.0), static_cast<double>(image.source_width)));
        quad.y[i] = static_cast<float>(fmin(fmax(y[corner], 0.0), static_cast<double>(image.source_height)));
    }
}
