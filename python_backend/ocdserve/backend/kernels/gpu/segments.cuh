// SPDX-License-Identifier: Apache-2.0
// Words of a binarised map and the segments in them.
#pragma once

#include "postprocess.cuh"

// Word coordinates of a thread; false beyond the container.
__device__ __forceinline__ bool locate(const Tables& tables, int& y, int& word) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    y = index / tables.words;
    word = index - y * tables.words;
    return y < tables.height;
}

// Bits of a word that lie inside an image `width` pixels wide.
__device__ __forceinline__ unsigned inside_bits(int word, int width) {
    const int left = width - 32 * word;
    return left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
}

// First bit of the run of set bits in `run` that holds `bit`.
__device__ __forceinline__ int run_start(unsigned run, int bit) {
    const unsigned clear_below = ~run & ((1u << bit) - 1u);
    return 32 - __clz(clear_below);
}

// Last bit of the run of set bits in `run` that holds `bit`.
__device__ __forceinline__ int run_end(unsigned run, int bit) {
    const unsigned clear_above = ~run & ~((2u << bit) - 1u);
    return clear_above ? __ffs(clear_above) - 2 : 31;
}

__device__ __forceinline__ int node_at(const Tables& tables, int y, int word, int bit) {
    return y * tables.width + 32 * word + bit + 1;
}

// The words of a mask, and those of one phase of it.
struct Mask {
    const unsigned* words;
    const Image& image;
    const Tables& tables;

    // Foreground (phase 1) or background (phase 0) of a word; nothing outside of the image.
    __device__ unsigned phase(int y, int word, unsigned phase) const {
        if (y < 0 || y >= image.height || word < 0 || word >= tables.words) return 0;
        const unsigned bits = words[y * tables.words + word];
        return (phase ? bits : ~bits) & inside_bits(word, image.width);
    }
    __device__ int node(int y, int word, unsigned run, int bit) const {
        return node_at(tables, y, word, run_start(run, bit));
    }
};

// The mask, parents and counts of this thread's image.
struct View {
    Mask mask;
    int* parents;

    __device__ View(const unsigned* masks, int* all_parents, const Image* images, const Tables& tables)
        : mask{masks + static_cast<size_t>(blockIdx.z) * tables.height * tables.words, images[blockIdx.z], tables},
          parents(all_parents + blockIdx.z * (static_cast<size_t>(tables.height) * tables.width + 1)) {}

    // Region of a segment's node; -1 for the outside.
    __device__ int region_of(int node) const {
        int parent = parents[node];
        if (parent == 0) return -1;
        if (parent > 0) parent = parents[parent];
        return -parent - 1;
    }
};

// Visit the segments of a thread's word: visit(node, y, first x, last x).
template <class Visit>
__device__ __forceinline__ void each_segment(const View& view, Visit visit) {
    const Tables& tables = view.mask.tables;
    int y, word;
    if (!locate(tables, y, word) || y >= view.mask.image.height) return;
    for (unsigned phase = 0; phase < 2; ++phase) {
        const unsigned run = view.mask.phase(y, word, phase);
        for (unsigned starts = run & ~(run << 1); starts; starts &= starts - 1) {
            const int bit = __ffs(starts) - 1;
            visit(node_at(tables, y, word, bit), y, 32 * word + bit, 32 * word + run_end(run, bit));
        }
    }
}
