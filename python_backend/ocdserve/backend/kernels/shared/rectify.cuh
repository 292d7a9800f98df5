// SPDX-License-Identifier: Apache-2.0
// A pixel of a text line, cut out of an RGB image through a perspective; `ocdserve.results.reading.lines` has the
// definition. Compiled for the CPU too (`ocdserve.backend.kernels.cpu`).
#pragma once

// One line; the layout of its LINE. A pixel (x, y) of the line shows the point (X / Z, Y / Z) of the reduced
// image, where X, Y and Z are `across`, `down` and `depth` times (x, y, 1), and 0 is the centre of the first pixel.
struct Line {
    double across[3], down[3], depth[3];
    const unsigned char* pixels;  // RGB, row after row
    long long pitch;              // bytes from row to row
    int last_x, last_y;           // of the image
    int height, width;            // of the line
    int reduction;                // side of the squares of pixels whose means are the reduced image
    int upside_down;              // whether the line is turned by 180 degrees
};

constexpr int kLineChannels = 3;
// Positions are rounded to this part of a pixel, and so are weights.
constexpr unsigned int kLineSteps = 32;
// A square has at most this many samples along each side.
constexpr int kMostSamples = 8;

// A position in steps, rounded and kept within the image; what is no number becomes 0.
__device__ __forceinline__ unsigned int line_place(double place, int last) {
    const double most = static_cast<double>(last) * kLineSteps;
    const double positive = place > 0 ? place : 0.0;
    return static_cast<unsigned int>(static_cast<int>((positive < most ? positive : most) + 0.5));
}

// Where the reduced image has a pixel of a line, in steps.
struct LinePosition {
    unsigned int x, y;
};

// `kReduced` says whether the line's `reduction` is above 1.
template <bool kReduced>
__device__ __forceinline__ LinePosition line_position(const Line& line, int x, int y) {
    if (line.upside_down) {
        x = line.width - 1 - x;
        y = line.height - 1 - y;
    }
    const double scale = kLineSteps / (line.depth[0] * x + line.depth[1] * y + line.depth[2]);
    const double* across = line.across;
    const double* down = line.down;
    LinePosition position;
    position.x = line_place((across[0] * x + across[1] * y + across[2]) * scale,
                            kReduced ? line.last_x / line.reduction : line.last_x);
    position.y = line_place((down[0] * x + down[1] * y + down[2]) * scale,
                            kReduced ? line.last_y / line.reduction : line.last_y);
    return position;
}

// A pixel of the reduced image: the mean of a square of pixels, repeated beyond the image's edge.
template <bool kReduced>
__device__ __forceinline__ void line_mean(const Line& line, int column, int row, unsigned int mean[kLineChannels]) {
    if (!kReduced) {
        const unsigned char* pixel = line.pixels + row * line.pitch + kLineChannels * static_cast<long long>(column);
        for (int c = 0; c < kLineChannels; ++c) mean[c] = pixel[c];
        return;
    }
    const int step = (line.reduction + kMostSamples - 1) / kMostSamples;
    unsigned int sum[kLineChannels] = {0, 0, 0}, count = 0;
    for (int i = 0; i < line.reduction; i += step) {
        const unsigned char* pixels = line.pixels + min(row * line.reduction + i, line.last_y) * line.pitch;
        for (int j = 0; j < line.reduction; j += step) {
            const long long x = min(column * line.reduction + j, line.last_x);
            for (int c = 0; c < kLineChannels; ++c) sum[c] += pixels[kLineChannels * x + c];
            ++count;
        }
    }
    for (int c = 0; c < kLineChannels; ++c) mean[c] = (2 * sum[c] + count) / (2 * count);
}

// The pixel of a line at a position.
template <bool kReduced>
__device__ __forceinline__ void line_pixel(const Line& line, LinePosition position, unsigned char pixel[kLineChannels]) {
    const int last_column = kReduced ? line.last_x / line.reduction : line.last_x;
    const int last_row = kReduced ? line.last_y / line.reduction : line.last_y;
    const int left = static_cast<int>(position.x / kLineSteps), right = min(left + 1, last_column);
    const int upper = static_cast<int>(position.y / kLineSteps), lower = min(upper + 1, last_row);
    const unsigned int to_right = position.x % kLineSteps, to_lower = position.y % kLineSteps;
    unsigned int corners[4][kLineChannels];
    line_mean<kReduced>(line, left, upper, corners[0]);
    line_mean<kReduced>(line, right, upper, corners[1]);
    line_mean<kReduced>(line, left, lower, corners[2]);
    line_mean<kReduced>(line, right, lower, corners[3]);
    for (int c = 0; c < kLineChannels; ++c) {
        const unsigned int above = corners[0][c] * (kLineSteps - to_right) + corners[1][c] * to_right;
        const unsigned int below = corners[2][c] * (kLineSteps - to_right) + corners[3][c] * to_right;
        const unsigned int sum = above * (kLineSteps - to_lower) + below * to_lower;
        pixel[c] = static_cast<unsigned char>((sum + kLineSteps * kLineSteps / 2) / (kLineSteps * kLineSteps));
    }
}
