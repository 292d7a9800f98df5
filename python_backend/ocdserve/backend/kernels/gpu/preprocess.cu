// SPDX-License-Identifier: Apache-2.0
// A batch of images for a network, in one launch: differently sized RGB images resized into one container
// (`preprocess.py` launches it), or text lines cut out of images (`rectify.py`).
//
// A block computes 128 x 8 pixels. Neighbouring lanes compute neighbouring pixels, so that a warp's reads fall into few
// cache lines; a block's output is collected in shared memory and written in pieces of 16 bytes.
#include <cuda_fp16.h>

#include "bilinear.cuh"
#include "rectify.cuh"

namespace {

constexpr int kTileWidth = 128;
constexpr int kTileHeight = 8;
constexpr int kThreads = 256;
constexpr int kLanes = 32;
constexpr int kPixelsPerThread = kTileWidth / kLanes;

// Network value of channel c: (pixel - mean[c]) * scale[c]; `swap` puts blue first. The layout of `preprocess.py`'s
// NORMALISATION.
struct Normalisation {
    float mean[kChannels];
    float scale[kChannels];
    int swap;
};

// Layout of a pixel: interleaved uint8, or normalised values in planes.
struct Pixels {
    using Element = unsigned char;
    static constexpr int kPlanes = 1;
    static constexpr int kElements = kChannels;  // of one pixel in one plane

    template <typename Value>
    static __device__ void put(Element* tile, int row, int column, const Value (&values)[kChannels],
                               const Normalisation&) {
        Element* pixel = tile + (row * kTileWidth + column) * kChannels;
        for (int c = 0; c < kChannels; c++) pixel[c] = static_cast<Element>(values[c]);
    }
};

__device__ void round_to(float& target, float value) { target = value; }

__device__ void round_to(unsigned short& target, float value) { target = __half_as_ushort(__float2half_rn(value)); }

template <typename Number>
struct Planes {
    using Element = Number;
    static constexpr int kPlanes = kChannels;
    static constexpr int kElements = 1;

    template <typename Value>
    static __device__ void put(Element* tile, int row, int column, const Value (&values)[kChannels],
                               const Normalisation& to) {
        for (int c = 0; c < kChannels; c++) {
            const float value = static_cast<float>(to.swap ? values[kChannels - 1 - c] : values[c]);
            round_to(tile[(c * kTileHeight + row) * kTileWidth + column], (value - to.mean[c]) * to.scale[c]);
        }
    }
};

// Compute this thread's pixels of a row of the tile. All reads are issued before the first is used.
template <typename Form, typename Weight>
__device__ void fill(const Source& source, const Columns<Weight>* columns, const Rows<Weight>& y,
                     typename Form::Element* tile, const Normalisation& to) {
    const int row = threadIdx.x / kLanes;
    const int lane = threadIdx.x % kLanes;
    unsigned long long upper[kPixelsPerThread], lower[kPixelsPerThread];
    if (y.whole) {
#pragma unroll
        for (int i = 0; i < kPixelsPerThread; i++) {
            const int offset = columns[i * kLanes + lane].offset;
            upper[i] = pair_of_words(y.upper + offset);
            lower[i] = pair_of_words(y.lower + offset);
        }
    } else {
        const long long row_bytes = kChannels * static_cast<long long>(source.width);
#pragma unroll
        for (int i = 0; i < kPixelsPerThread; i++) {
            const int offset = columns[i * kLanes + lane].offset;
            upper[i] = pair_of_bytes(y.upper + offset, y.upper + row_bytes);
            lower[i] = pair_of_bytes(y.lower + offset, y.lower + row_bytes);
        }
    }
#pragma unroll
    for (int i = 0; i < kPixelsPerThread; i++) {
        const int column = i * kLanes + lane;
        Weight values[kChannels];
#pragma unroll
        for (int c = 0; c < kChannels; c++) values[c] = blend(upper[i], lower[i], c, columns[column], y);
        Form::put(tile, row, column, values, to);
    }
}

template <typename Form>
__device__ void pad(typename Form::Element* tile, const Normalisation& to) {
    const int black[kChannels] = {0, 0, 0};
    for (int i = 0; i < kPixelsPerThread; i++)
        Form::put(tile, threadIdx.x / kLanes, i * kLanes + threadIdx.x % kLanes, black, to);
}

// Write the part of a tile inside the container; in pieces of 16 bytes if all rows are aligned to that.
template <typename Form>
__device__ void store(const typename Form::Element* tile, typename Form::Element* output, int height, int width,
                      int x0, int y0) {
    using Element = typename Form::Element;
    constexpr int kRow = kTileWidth * Form::kElements;
    constexpr int kPiece = sizeof(uint4) / sizeof(Element);
    const long long pitch = static_cast<long long>(width) * Form::kElements;
    const int used = Form::kElements * (width - x0 < kTileWidth ? width - x0 : kTileWidth);
    const bool aligned = pitch % kPiece == 0 && reinterpret_cast<unsigned long long>(output) % sizeof(uint4) == 0;
    const int step = aligned ? kPiece : 1;
    const int steps = kRow / step;
    for (int i = threadIdx.x; i < Form::kPlanes * kTileHeight * steps; i += kThreads) {
        const int row = i / steps;
        const int from = i % steps * step;
        const int y = y0 + row % kTileHeight;
        if (y >= height || from >= used) continue;
        const long long plane = static_cast<long long>(blockIdx.z) * Form::kPlanes + row / kTileHeight;
        Element* target = output + (plane * height + y) * pitch + static_cast<long long>(x0) * Form::kElements + from;
        const Element* piece = tile + row * kRow + from;
        if (aligned)
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(piece);
        else
            *target = *piece;
    }
}

// Shared memory of a block: the tables of its columns and rows, and its output.
template <bool kExact, typename Form>
struct Tile {
    using Weight = typename WeightOf<kExact>::Type;
    static constexpr int kElements = Form::kPlanes * kTileHeight * kTileWidth * Form::kElements;

    uint4 pieces[kElements * sizeof(typename Form::Element) / sizeof(uint4)];
    Columns<Weight> columns[kTileWidth];
    Rows<Weight> rows[kTileHeight];
};

template <bool kExact, typename Form>
__device__ void resize(Tile<kExact, Form>& tile, const Source* sources, typename Form::Element* output, int height,
                       int width, const Normalisation& to) {
    typename Form::Element* elements = reinterpret_cast<typename Form::Element*>(tile.pieces);
    const Source source = sources[blockIdx.z];
    const int thread = threadIdx.x;
    const int x0 = blockIdx.x * kTileWidth;
    const int y0 = blockIdx.y * kTileHeight;
    if (x0 >= source.filled_width || y0 >= source.filled_height) {
        pad<Form>(elements, to);
    } else {
        if (thread < kTileWidth)
            tile.columns[thread] = columns_of<kExact>(source, x0 + thread);
        else if (thread < kTileWidth + kTileHeight)
            tile.rows[thread - kTileWidth] = rows_of<kExact>(source, y0 + thread - kTileWidth);
        __syncthreads();
        fill<Form>(source, tile.columns, tile.rows[thread / kLanes], elements, to);
    }
    __syncthreads();
    store<Form>(elements, output, height, width, x0, y0);
}

// Compute this thread's pixels of a row of the tile, from column x on, of a line or beside it.
__device__ void cut(const Line& line, int x, int y, unsigned char* tile, unsigned char fill) {
    for (int i = 0; i < kPixelsPerThread; i++) {
        const int column = i * kLanes + threadIdx.x % kLanes;
        unsigned char pixel[kChannels] = {fill, fill, fill};
        if (x + column < line.width && y < line.height) {
            if (line.reduction > 1)
                line_pixel<true>(line, line_position<true>(line, x + column, y), pixel);
            else
                line_pixel<false>(line, line_position<false>(line, x + column, y), pixel);
        }
        Pixels::put(tile, threadIdx.x / kLanes, column, pixel, Normalisation());
    }
}

using HalfPlanes = Planes<unsigned short>;
using FloatPlanes = Planes<float>;

}  // namespace

// All kernels: blocks of 256 threads, a grid of (ceil(width / 128), ceil(height / 8), images); the container is
// height x width pixels.

// To uint8 (images, height, width, 3) RGB, black outside of what is filled.
extern "C" __global__ void __launch_bounds__(kThreads)
    resize_to_pixels(const Source* sources, unsigned char* output, int height, int width) {
    __shared__ Tile<true, Pixels> tile;
    resize(tile, sources, output, height, width, Normalisation());
}

// The others: to normalised (images, 3, height, width); black becomes (0 - mean) * scale.
extern "C" __global__ void __launch_bounds__(kThreads)
    resize_to_half_planes(const Source* sources, unsigned short* output, int height, int width, Normalisation to) {
    __shared__ Tile<true, HalfPlanes> tile;
    resize(tile, sources, output, height, width, to);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    resize_to_float_planes(const Source* sources, float* output, int height, int width, Normalisation to) {
    __shared__ Tile<true, FloatPlanes> tile;
    resize(tile, sources, output, height, width, to);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    interpolate_to_half_planes(const Source* sources, unsigned short* output, int height, int width, Normalisation to) {
    __shared__ Tile<false, HalfPlanes> tile;
    resize(tile, sources, output, height, width, to);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    interpolate_to_float_planes(const Source* sources, float* output, int height, int width, Normalisation to) {
    __shared__ Tile<false, FloatPlanes> tile;
    resize(tile, sources, output, height, width, to);
}

// Text lines to uint8 (lines, height, width, 3) RGB, `fill` beside each.
extern "C" __global__ void __launch_bounds__(kThreads)
    rectify_lines(const Line* lines, unsigned char* output, int height, int width, unsigned char fill) {
    __shared__ uint4 pieces[kTileHeight * kTileWidth * kChannels / sizeof(uint4)];
    unsigned char* tile = reinterpret_cast<unsigned char*>(pieces);
    const int x = blockIdx.x * kTileWidth, y = blockIdx.y * kTileHeight;
    cut(lines[blockIdx.z], x, y + threadIdx.x / kLanes, tile, fill);
    __syncthreads();
    store<Pixels>(tile, output, height, width, x, y);
}
