// SPDX-License-Identifier: Apache-2.0
// Words of a binarised map, the segments in them, and their unions: within a tile in shared memory, between tiles in the
// parents of the whole map.
#pragma once

#include "postprocess.cuh"

// A tile of a map: a block of `binarise` works on it, a thread on a word.
constexpr int TILE_ROWS = 32;
constexpr int TILE_WORDS = 4;

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

// First bits of the runs of set bits.
__device__ __forceinline__ unsigned first_bits(unsigned run) { return run & ~(run << 1); }

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
        for (unsigned starts = first_bits(run); starts; starts &= starts - 1) {
            const int bit = __ffs(starts) - 1;
            visit(node_at(tables, y, word, bit), y, 32 * word + bit, 32 * word + run_end(run, bit));
        }
    }
}

// Parents of the whole map. They change under the threads that follow them, so they are read and written past the L1
// caches.
struct MapParents {
    int* nodes;

    __device__ int load(int node) const { return __ldcg(nodes + node); }
    __device__ void store(int node, int parent) const { __stcg(nodes + node, parent); }
    __device__ int lower(int node, int parent) const { return atomicMin(nodes + node, parent); }
};

// Parents of a tile, in shared memory. The nodes of neighbouring words are 33 places apart, in different banks.
struct TileParents {
    int* places;

    __device__ int* place(int node) const { return places + node + node / 32; }
    __device__ int load(int node) const { return *static_cast<volatile int*>(place(node)); }
    __device__ void store(int node, int parent) const { *static_cast<volatile int*>(place(node)) = parent; }
    __device__ int lower(int node, int parent) const { return atomicMin(place(node), parent); }
};

// Root of a node, its path halved on the way. Stores may race with unions: a lost store leaves a longer path, and
// an old parent still leads to a node of the same region.
template <class Parents>
__device__ __forceinline__ int find_and_halve(const Parents& parents, int node) {
    for (;;) {
        const int parent = parents.load(node);
        if (parent == node) return node;
        const int grandparent = parents.load(parent);
        if (grandparent == parent) return parent;
        parents.store(node, grandparent);
        node = grandparent;
    }
}

template <class Parents>
__device__ void unite(const Parents& parents, int a, int b) {
    for (;;) {
        a = find_and_halve(parents, a);
        b = find_and_halve(parents, b);
        if (a == b) return;
        const int low = min(a, b);
        const int high = max(a, b);
        const int seen = parents.lower(high, low);
        if (seen == high) return;
        // Another thread has set `high`'s parent first: that parent must be united with `low` as well.
        a = seen;
        b = low;
    }
}

// A tile, its words and nodes counted from its top left corner. Its nodes are in the order of the map's, so that a
// region's smallest node here is its smallest in this part of the map.
struct Tile {
    unsigned phases[2][TILE_ROWS][TILE_WORDS];
    int places[33 * TILE_ROWS * TILE_WORDS];

    __device__ TileParents parents() { return TileParents{places}; }
    __device__ unsigned phase(int y, int word, unsigned phase) const {
        return y < 0 || word < 0 || word >= TILE_WORDS ? 0u : phases[phase][y][word];
    }
    __device__ int node_at(int y, int word, int bit) const { return 32 * (TILE_WORDS * y + word) + bit; }
    __device__ int node(int y, int word, unsigned run, int bit) const { return node_at(y, word, run_start(run, bit)); }
};

// Join a word's segments with those to the left and above: all of them, or with `across` only those of other tiles.
template <class Words, class Parents>
__device__ void join(const Words& words, const Parents& parents, int y, int word, bool across) {
    const bool up = !across || y % TILE_ROWS == 0;
    const bool leftward = !across || word % TILE_WORDS == 0;
    const bool rightward = !across || word % TILE_WORDS == TILE_WORDS - 1;
    if (!up && !leftward && !rightward) return;
    for (unsigned phase = 0; phase < 2; ++phase) {
        const unsigned here = words.phase(y, word, phase);
        if (!here) continue;
        const unsigned left = words.phase(y, word - 1, phase);
        const unsigned above = words.phase(y - 1, word, phase);
        const unsigned carried = (left & words.phase(y - 1, word - 1, phase)) >> 31;
        // Where two tiles touch in several rows of the same two regions, the first row makes the union.
        if (leftward && here & 1u & (left >> 31) && (up || !(above & carried)))
            unite(parents, words.node(y, word, here, 0), words.node(y, word - 1, left, 31));
        if (!up) continue;
        // One union per run of pixels set in both rows; if it continues from the left, the word there makes the union.
        const unsigned both = here & above;
        for (unsigned starts = both & ~((both << 1) | carried); starts; starts &= starts - 1) {
            const int bit = __ffs(starts) - 1;
            unite(parents, words.node(y, word, here, bit), words.node(y - 1, word, above, bit));
        }
    }
    // Diagonal contacts of the foreground that no straight contact has joined.
    const unsigned here = words.phase(y, word, 1), above = words.phase(y - 1, word, 1);
    const unsigned left = words.phase(y, word - 1, 1), right = words.phase(y, word + 1, 1);
    const unsigned above_left = words.phase(y - 1, word - 1, 1), above_right = words.phase(y - 1, word + 1, 1);
    const unsigned before = (here << 1) | (left >> 31), after = (here >> 1) | (right << 31);
    const unsigned above_before = (above << 1) | (above_left >> 31);
    const unsigned above_after = (above >> 1) | (above_right << 31);
    const unsigned alone = here & ~above;
    const unsigned on_the_left = up ? ~0u : leftward ? 1u : 0u, on_the_right = up ? ~0u : rightward ? 1u << 31 : 0u;
    for (unsigned bits = alone & above_before & ~before & on_the_left; bits; bits &= bits - 1) {
        const int bit = __ffs(bits) - 1;
        const int other = bit ? words.node(y - 1, word, above, bit - 1) : words.node(y - 1, word - 1, above_left, 31);
        unite(parents, words.node(y, word, here, bit), other);
    }
    for (unsigned bits = alone & above_after & ~after & on_the_right; bits; bits &= bits - 1) {
        const int bit = __ffs(bits) - 1;
        const int other =
            bit < 31 ? words.node(y - 1, word, above, bit + 1) : words.node(y - 1, word + 1, above_right, 0);
        unite(parents, words.node(y, word, here, bit), other);
    }
}

// Join a word's background at the border of the map with what lies outside.
__device__ void join_outside(const Mask& mask, const MapParents& parents, int y, int word) {
    const Image& image = mask.image;
    const int last = image.width - 1 - 32 * word;
    const unsigned columns = (word == 0 ? 1u : 0u) | (last >= 0 && last < 32 ? 1u << last : 0u);
    const bool is_row = y == 0 || y == image.height - 1;
    if (!is_row && !columns) return;
    const unsigned background = mask.phase(y, word, 0);
    // In the columns, only a vertical run's first pixel in the tile makes the union: the tile has joined the others.
    const unsigned known = y % TILE_ROWS == 0 ? 0u : mask.phase(y - 1, word, 0);
    unsigned border = background & (is_row ? ~0u : columns & ~known);
    while (border) {
        const int bit = __ffs(border) - 1, end = run_end(background, bit);
        unite(parents, mask.node(y, word, background, bit), 0);
        // One union serves the whole run.
        border &= end < 31 ? ~0u << (end + 1) : 0u;
    }
}
