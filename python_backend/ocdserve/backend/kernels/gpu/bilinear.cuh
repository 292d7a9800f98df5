// SPDX-License-Identifier: Apache-2.0
// Bilinear interpolation of 8-bit RGB: where a target pixel lies between four source pixels, reading and blending them.
//
// The exact form produces the bytes of cv2.resize(..., INTER_LINEAR) for 8-bit images (OpenCV 4.11, imgproc/src/
// resize.cpp: hal::resize and the HResizeLinear and VResizeLinear that it picks for uchar; Intel's library is not
// used for 8-bit linear). Its arithmetic, with all products and sums rounded one by one:
//   - the centre of target pixel d lies at (d + 0.5) * scale - 0.5 of the source: double, then rounded to float;
//   - its distance from the pixel before becomes two weights of 11 bits, each rounded half to even;
//   - columns outside of the source have the weight of the outermost column alone, rows outside keep their weights
//     and are moved inside, which is not the same after rounding;
//   - a row's sum loses 4 bits, its product with the row's weight 16, the sum of both rows is rounded by 2 bits.
// Equal sizes (OpenCV copies) and exact halves (it averages four pixels) come out of the same arithmetic.
// The other form interpolates in float and rounds nothing to 8 bits.
#pragma once

constexpr int kChannels = 3;
constexpr float kWeightOne = 2048.0f;

// One image of the batch, or a tile of the scaled image; the layout of `preprocess.py`'s SOURCE. An image with empty
// content is all padding.
struct Source {
    const unsigned char* pixels;  // RGB, row after row
    long long pitch;              // bytes from row to row
    double scale_x;               // source pixels per content pixel
    double scale_y;
    int height;  // source pixels
    int width;
    int content_height;  // container pixels that the image covers, from the top left
    int content_width;
    int filled_height;  // container pixels that are not black: the content or, repeating its edge, more
    int filled_width;
    int spare;  // readable bytes after the last pixel
    int top;    // where the tile begins in the scaled image
    int left;
    int unused;
};

template <bool kExact>
struct WeightOf {
    using Type = int;
};
template <>
struct WeightOf<false> {
    using Type = float;
};

// Two neighbouring source columns: byte offset of the left one in its row, and their weights; without any weight a
// pixel is black, as outside of what is filled.
template <typename Weight>
struct Columns {
    int offset;
    Weight left;
    Weight right;
};

// Two neighbouring source rows and their weights; `whole`: see `pair_of_words`.
template <typename Weight>
struct Rows {
    const unsigned char* upper;
    const unsigned char* lower;
    Weight above;
    Weight below;
    bool whole;
};

__device__ int clamped(int value, int last) { return value < 0 ? 0 : value > last ? last : value; }

// The source pixel before target pixel `index` along one axis, and the distance from it.
template <bool kExact>
__device__ int before(int index, double scale, float& distance) {
    const double position = (index + 0.5) * scale - 0.5;
    if (kExact) {
        const float rounded = static_cast<float>(position);
        const float whole = floorf(rounded);
        distance = rounded - whole;
        return static_cast<int>(whole);
    }
    const double whole = floor(position);
    distance = static_cast<float>(position - whole);
    return static_cast<int>(whole);
}

__device__ void weigh(float distance, int& first, int& second) {
    first = static_cast<int>(rintf((1.0f - distance) * kWeightOne));
    second = static_cast<int>(rintf(distance * kWeightOne));
}

__device__ void weigh(float distance, float& first, float& second) {
    first = 1.0f - distance;
    second = distance;
}

template <bool kExact>
__device__ Columns<typename WeightOf<kExact>::Type> columns_of(const Source& source, int x) {
    float distance;
    int first = before<kExact>(source.left + clamped(x, source.content_width - 1), source.scale_x, distance);
    if (first < 0) {
        first = 0;
        distance = 0.0f;
    }
    // The right-hand edge is the second of two columns, so that two can be read everywhere.
    if (first > source.width - 2 && source.width > 1) {
        first = source.width - 2;
        distance = 1.0f;
    }
    Columns<typename WeightOf<kExact>::Type> columns;
    columns.offset = kChannels * (source.width > 1 ? first : 0);
    weigh(source.width > 1 ? distance : 0.0f, columns.left, columns.right);
    if (x >= source.filled_width) columns.left = columns.right = 0;
    return columns;
}

template <bool kExact>
__device__ Rows<typename WeightOf<kExact>::Type> rows_of(const Source& source, int y) {
    float distance;
    const int first = before<kExact>(source.top + clamped(y, source.content_height - 1), source.scale_y, distance);
    const int last = source.height - 1;
    const long long row_bytes = kChannels * static_cast<long long>(source.width);
    Rows<typename WeightOf<kExact>::Type> rows;
    rows.upper = source.pixels + clamped(first, last) * source.pitch;
    rows.lower = source.pixels + clamped(first + 1, last) * source.pitch;
    weigh(distance, rows.above, rows.below);
    if (y >= source.filled_height) rows.above = rows.below = 0;
    // The word that holds a row's last byte may extend three bytes beyond it.
    const unsigned char* end = source.pixels + last * source.pitch + row_bytes + source.spare;
    rows.whole = source.width > 1 && rows.lower + row_bytes + 3 <= end;
    return rows;
}

// Six bytes from `first`, the lowest first, by aligned words: two, or three where they begin on a word's last byte.
__device__ unsigned long long pair_of_words(const unsigned char* first) {
    const unsigned long long address = reinterpret_cast<unsigned long long>(first);
    const unsigned int shift = static_cast<unsigned int>(address & 3);
    const unsigned int* words = reinterpret_cast<const unsigned int*>(address - shift);
    const unsigned long long low = __ldg(words);
    const unsigned long long high = __ldg(words + 1);
    const unsigned long long rest = shift == 3 ? __ldg(words + 2) : 0;
    return (high << 32 | low) >> (8 * shift) | rest << 40;
}

// The same by bytes, where a word would reach beyond the image; bytes from `end` on count as 0.
__device__ unsigned long long pair_of_bytes(const unsigned char* first, const unsigned char* end) {
    unsigned long long pair = 0;
    // Not unrolled: this rare case would need more registers than the common one, and lower the occupancy.
#pragma unroll 1
    for (int i = 0; i < 2 * kChannels && first + i < end; i++)
        pair |= static_cast<unsigned long long>(__ldg(first + i)) << (8 * i);
    return pair;
}

__device__ int channel_of(unsigned long long pair, int index) { return static_cast<int>(pair >> (8 * index)) & 255; }

__device__ int blend(unsigned long long upper, unsigned long long lower, int channel, const Columns<int>& x,
                     const Rows<int>& y) {
    const int top = channel_of(upper, channel) * x.left + channel_of(upper, channel + kChannels) * x.right;
    const int bottom = channel_of(lower, channel) * x.left + channel_of(lower, channel + kChannels) * x.right;
    return (((top >> 4) * y.above >> 16) + ((bottom >> 4) * y.below >> 16) + 2) >> 2;
}

__device__ float blend(unsigned long long upper, unsigned long long lower, int channel, const Columns<float>& x,
                       const Rows<float>& y) {
    const float top = channel_of(upper, channel) * x.left + channel_of(upper, channel + kChannels) * x.right;
    const float bottom = channel_of(lower, channel) * x.left + channel_of(lower, channel + kChannels) * x.right;
    return top * y.above + bottom * y.below;
}
