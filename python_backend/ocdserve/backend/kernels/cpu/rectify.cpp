// SPDX-License-Identifier: Apache-2.0
// Cutting text lines out of an image; `ocdserve.results.reading.lines` has the definition.

#include "cpu.h"

#include "../shared/rectify.cuh"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace {

// Pixels whose positions are computed together, several by one instruction.
constexpr int kRun = 256;

// Of neighbouring pixels, see LinePosition.
struct Run {
    unsigned int x[kRun], y[kRun];
};

template <bool kReduced>
void find_positions(const Line& line, int x, int y, int count, Run& run) {
    for (int i = 0; i < count; ++i) {
        const LinePosition position = line_position<kReduced>(line, x + i, y);
        run.x[i] = position.x;
        run.y[i] = position.y;
    }
}

template <bool kReduced>
void interpolate(const Line& line, const Run& run, int count, unsigned char* pixels, const unsigned char*) {
    for (int i = 0; i < count; ++i, pixels += kLineChannels)
        line_pixel<kReduced>(line, {run.x[i], run.y[i]}, pixels);
}

#ifdef __SSE2__

// Bytes that `mix` reads at each of two places, and that it writes.
constexpr int kRead = 8, kWritten = 4;

// A pixel and the one right of it, channel by channel, 16 bits each.
inline __m128i neighbours(const unsigned char* pixel) {
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel));
    const __m128i alternating = _mm_unpacklo_epi8(both, _mm_srli_epi64(both, 8 * kLineChannels));
    return _mm_unpacklo_epi8(alternating, _mm_setzero_si128());
}

inline __m128i weights(unsigned int to_neighbour) {
    return _mm_set1_epi32(static_cast<int>((kLineSteps - to_neighbour) | to_neighbour << 16));
}

// `line_pixel` between the pixels at `upper`, at `lower`, and right of them.
inline void mix(const unsigned char* upper, const unsigned char* lower, unsigned int to_right, unsigned int to_lower,
                unsigned char* pixel) {
    const __m128i across = weights(to_right);
    const __m128i above = _mm_madd_epi16(neighbours(upper), across);
    const __m128i below = _mm_madd_epi16(neighbours(lower), across);
    const __m128i sum = _mm_madd_epi16(_mm_or_si128(above, _mm_slli_epi32(below, 16)), weights(to_lower));
    const __m128i half = _mm_set1_epi32(kLineSteps * kLineSteps / 2);
    const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(sum, half), 10);
    const __m128i narrow = _mm_packs_epi32(rounded, rounded);
    const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(narrow, narrow));
    memcpy(pixel, &bytes, kWritten);
}

template <>
void interpolate<false>(const Line& line, const Run& run, int count, unsigned char* pixels, const unsigned char* end) {
    const long long last = line.last_y * line.pitch + kLineChannels * (line.last_x + 1LL) - kRead;
    for (int i = 0; i < count; ++i, pixels += kLineChannels) {
        const int row = static_cast<int>(run.y[i] / kLineSteps), column = static_cast<int>(run.x[i] / kLineSteps);
        const long long upper = row * line.pitch + kLineChannels * static_cast<long long>(column);
        // What is read beyond the last column has no weight.
        const long long lower = upper + (row < line.last_y ? line.pitch : 0);
        if (lower <= last && end - pixels >= kWritten)
            mix(line.pixels + upper, line.pixels + lower, run.x[i] % kLineSteps, run.y[i] % kLineSteps, pixels);
        else
            line_pixel<false>(line, {run.x[i], run.y[i]}, pixels);
    }
}

#endif

template <bool kReduced>
void rectify(const Line& line, unsigned char* pixels) {
    Run run;
    const unsigned char* end = pixels + kLineChannels * static_cast<size_t>(line.height) * line.width;
    for (int y = 0; y < line.height; ++y) {
        for (int x = 0; x < line.width; x += kRun) {
            const int count = min(kRun, line.width - x);
            find_positions<kReduced>(line, x, y, count, run);
            interpolate<kReduced>(line, run, count, pixels, end);
            pixels += kLineChannels * count;
        }
    }
}

}  // namespace

// Write a line's pixels, uint8 (height, width, 3) RGB.
EXPORTED void ocdserve_rectify(const Line* line, unsigned char* pixels) {
    if (line->reduction > 1)
        rectify<true>(*line, pixels);
    else
        rectify<false>(*line, pixels);
}
