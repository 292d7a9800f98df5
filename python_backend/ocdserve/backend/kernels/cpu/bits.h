// SPDX-License-Identifier: Apache-2.0
// Rows of bytes, many at a time: bits above a threshold, and sums.
#pragma once

#include "cpu.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

constexpr int WORD = 64;

#if defined(__SSE2__)

// Which of 64 bytes are above `level`, the first in the lowest bit.
inline uint64_t bits_above(const unsigned char* bytes, int level) {
    const __m128i levels = _mm_set1_epi8(static_cast<char>(level));
    const __m128i zero = _mm_setzero_si128();
    uint64_t bits = 0;
    for (int i = 0; i < 4; ++i) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + 16 * i));
        const __m128i at_most = _mm_cmpeq_epi8(_mm_subs_epu8(sixteen, levels), zero);
        bits |= static_cast<uint64_t>(~_mm_movemask_epi8(at_most) & 0xffff) << (16 * i);
    }
    return bits;
}

inline uint64_t sum_of(const unsigned char* bytes, int count) {
    __m128i sums = _mm_setzero_si128();
    const __m128i zero = _mm_setzero_si128();
    int i = 0;
    for (; i + 16 <= count; i += 16)
        sums = _mm_add_epi64(sums, _mm_sad_epu8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i)), zero));
    if (i + 8 <= count) {
        sums = _mm_add_epi64(sums, _mm_sad_epu8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i)), zero));
        i += 8;
    }
    uint64_t halves[2];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(halves), sums);
    uint64_t sum = halves[0] + halves[1];
    for (; i < count; ++i) sum += bytes[i];
    return sum;
}

#else

inline uint64_t bits_above(const unsigned char* bytes, int level) {
    constexpr uint64_t ones = 0x0101010101010101u, sevens = 0x7f * ones, high = 0x80 * ones;
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) {
        uint64_t eight;
        memcpy(&eight, bytes + 8 * i, sizeof eight);
        // The highest bit of each byte: whether its lower seven bits carry over, then what its own highest bit says.
        const uint64_t carried = (eight & sevens) + (0x7f - (level & 0x7f)) * ones;
        const uint64_t above = (level < 128 ? carried | eight : carried & eight) & high;
        // The product gathers the eight highest bits in its highest byte.
        bits |= ((above >> 7) * 0x0102040810204080u >> 56) << (8 * i);
    }
    return bits;
}

inline uint64_t sum_of(const unsigned char* bytes, int count) {
    uint64_t sum = 0;
    for (int i = 0; i < count; ++i) sum += bytes[i];
    return sum;
}

#endif

// The same for the last `count` bytes of a row; bits beyond them are 0.
inline uint64_t bits_above(const unsigned char* bytes, int level, int count) {
    if (count >= WORD) return bits_above(bytes, level);
    unsigned char padded[WORD] = {};
    memcpy(padded, bytes, static_cast<size_t>(count));
    return bits_above(padded, level);
}
