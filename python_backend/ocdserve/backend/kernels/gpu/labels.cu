// SPDX-License-Identifier: Apache-2.0
// Probability maps to regions and the row extremes of their outlines.
//
// Labelling is by union-find over segments of 32-pixel words, foreground (8-connected) and background (4-connected) at
// once: one thread handles a word by bit operations, as in the strip methods of Hennequin, Cabaret and Lacassagne
// (DASIP 2018), with the lock-free unions of Playne and Hawick (2018). A root is the smallest node of its region, so
// that labels do not depend on the scheduling of threads.
//
// Grids: x over the words (or regions) of an image, z over images.

#include "segments.cuh"

namespace {

// Parents change under the threads that follow them, so they are read and written past the caches of a multiprocessor.

// Root of a node. A negative parent marks a root that already has a region.
__device__ __forceinline__ int find(const int* parents, int node) {
    for (;;) {
        const int parent = __ldcg(parents + node);
        if (parent < 0 || parent == node) return node;
        node = parent;
    }
}

// Root of a node, its path halved on the way. Stores may race with unions: a lost store leaves a longer path, and
// an old parent still leads to a node of the same region.
__device__ __forceinline__ int find_and_halve(int* parents, int node) {
    for (;;) {
        const int parent = __ldcg(parents + node);
        if (parent == node) return node;
        const int grandparent = __ldcg(parents + parent);
        if (grandparent == parent) return parent;
        __stcg(parents + node, grandparent);
        node = grandparent;
    }
}

__device__ void unite(int* parents, int a, int b) {
    for (;;) {
        a = find_and_halve(parents, a);
        b = find_and_halve(parents, b);
        if (a == b) return;
        const int low = min(a, b);
        const int high = max(a, b);
        const int seen = atomicMin(&parents[high], low);
        if (seen == high) return;
        // Another thread has set `high`'s parent first: that parent must be united with `low` as well.
        a = seen;
        b = low;
    }
}

// Bits x0 .. x0 + 31 of a row of the map: above the threshold, and inside the image.
__device__ unsigned threshold_word(const unsigned char* row, int x0, const Image& image) {
    unsigned bits = 0;
    const int end = min(32, image.width - x0);
    if (end == 32 && (reinterpret_cast<unsigned long long>(row + x0) & 3) == 0) {
        const unsigned* quads = reinterpret_cast<const unsigned*>(row + x0);
        for (int i = 0; i < 8; ++i) {
            const unsigned four = __ldg(quads + i);
            for (int j = 0; j < 4; ++j)
                bits |= static_cast<unsigned>(static_cast<int>((four >> (8 * j)) & 255u) > image.level) << (4 * i + j);
        }
        return bits;
    }
    for (int i = 0; i < end; ++i) bits |= static_cast<unsigned>(row[x0 + i] > image.level) << i;
    return bits;
}

__device__ unsigned threshold_word(const float* row, int x0, const Image& image) {
    unsigned bits = 0;
    const int end = min(32, image.width - x0);
    for (int i = 0; i < end; ++i) bits |= static_cast<unsigned>(row[x0 + i] > image.thresh) << i;
    return bits;
}

__device__ __forceinline__ bool is_text(unsigned char value, const Image& image) { return value > image.level; }
__device__ __forceinline__ bool is_text(float value, const Image& image) { return value > image.thresh; }

// A row's word grown to the right by one pixel.
template <class Value>
__device__ unsigned widened_word(const Value* row, int x0, const Image& image) {
    const unsigned bits = threshold_word(row, x0, image);
    const unsigned carried = x0 > 0 && is_text(row[x0 - 1], image);
    return bits | (bits << 1) | carried;
}

template <class Value>
__device__ void binarise(const Value* maps, const Image* images, unsigned* masks, int* parents, const Tables& tables) {
    int y, word;
    if (!locate(tables, y, word)) return;
    const Image image = images[blockIdx.z];
    const size_t pixels = static_cast<size_t>(tables.height) * tables.width;
    unsigned* mask = masks + static_cast<size_t>(blockIdx.z) * tables.height * tables.words;
    int* parent = parents + blockIdx.z * (pixels + 1);
    if (y == 0 && word == 0) parent[0] = 0;
    const unsigned inside = y < image.height ? inside_bits(word, image.width) : 0u;
    unsigned bits = 0;
    if (inside) {
        const Value* row = maps + blockIdx.z * pixels + static_cast<size_t>(y) * tables.width;
        if (image.dilate) {
            bits = widened_word(row, 32 * word, image);
            if (y > 0) bits |= widened_word(row - tables.width, 32 * word, image);
            bits &= inside;
        } else {
            bits = threshold_word(row, 32 * word, image);
        }
    }
    mask[y * tables.words + word] = bits;
    // Each segment starts as a region of its own.
    for (unsigned phase = 0; phase < 2; ++phase) {
        const unsigned run = (phase ? bits : ~bits) & inside;
        for (unsigned starts = run & ~(run << 1); starts; starts &= starts - 1) {
            const int node = node_at(tables, y, word, __ffs(starts) - 1);
            parent[node] = node;
        }
    }
}

// Join a word's segments with those to the left, above, and, at the border, with what lies outside.
__device__ void join(const View& view, int y, int word) {
    const Mask& mask = view.mask;
    const unsigned foreground = mask.phase(y, word, 1);
    const unsigned above_foreground = mask.phase(y - 1, word, 1);
    for (unsigned phase = 0; phase < 2; ++phase) {
        const unsigned here = mask.phase(y, word, phase);
        if (!here) continue;
        const unsigned left = mask.phase(y, word - 1, phase);
        const unsigned above = mask.phase(y - 1, word, phase);
        const unsigned above_left = mask.phase(y - 1, word - 1, phase);
        if (here & 1u & (left >> 31))
            unite(view.parents, mask.node(y, word, here, 0), mask.node(y, word - 1, left, 31));
        // One union per run of pixels set in both rows; if it continues from the left, the word there makes the union.
        const unsigned both = here & above;
        const unsigned carried = (left & above_left) >> 31;
        for (unsigned starts = both & ~((both << 1) | carried); starts; starts &= starts - 1) {
            const int bit = __ffs(starts) - 1;
            unite(view.parents, mask.node(y, word, here, bit), mask.node(y - 1, word, above, bit));
        }
    }
    // Diagonal contacts of the foreground that no straight contact has joined.
    const unsigned left = mask.phase(y, word - 1, 1), right = mask.phase(y, word + 1, 1);
    const unsigned above_left = mask.phase(y - 1, word - 1, 1), above_right = mask.phase(y - 1, word + 1, 1);
    const unsigned before = (foreground << 1) | (left >> 31), after = (foreground >> 1) | (right << 31);
    const unsigned above_before = (above_foreground << 1) | (above_left >> 31);
    const unsigned above_after = (above_foreground >> 1) | (above_right << 31);
    for (unsigned bits = foreground & ~above_foreground & above_before & ~before; bits; bits &= bits - 1) {
        const int bit = __ffs(bits) - 1;
        const int other = bit ? mask.node(y - 1, word, above_foreground, bit - 1)
                              : mask.node(y - 1, word - 1, above_left, 31);
        unite(view.parents, mask.node(y, word, foreground, bit), other);
    }
    for (unsigned bits = foreground & ~above_foreground & above_after & ~after; bits; bits &= bits - 1) {
        const int bit = __ffs(bits) - 1;
        const int other = bit < 31 ? mask.node(y - 1, word, above_foreground, bit + 1)
                                   : mask.node(y - 1, word + 1, above_right, 0);
        unite(view.parents, mask.node(y, word, foreground, bit), other);
    }
    const unsigned background = mask.phase(y, word, 0);
    const Image& image = mask.image;
    unsigned border = y == 0 || y == image.height - 1 ? background : 0u;
    if (word == 0) border |= background & 1u;
    const int last = image.width - 1 - 32 * word;
    if (last >= 0 && last < 32) border |= background & (1u << last);
    for (; border; border &= border - 1) {
        const int start = run_start(background, __ffs(border) - 1);
        unite(view.parents, node_at(mask.tables, y, word, start), 0);
    }
}

}  // namespace

extern "C" __global__ void binarise_uint8(const unsigned char* maps, const Image* images, unsigned* masks,
                                          int* parents, Tables tables) {
    binarise(maps, images, masks, parents, tables);
}

extern "C" __global__ void binarise_float32(const float* maps, const Image* images, unsigned* masks, int* parents,
                                            Tables tables) {
    binarise(maps, images, masks, parents, tables);
}

extern "C" __global__ void join_segments(const unsigned* masks, const Image* images, int* parents, Tables tables) {
    int y, word;
    const View view(masks, parents, images, tables);
    if (locate(tables, y, word) && y < view.mask.image.height) join(view, y, word);
}

// Point every segment to its root, and assign a region to every root except the outside's.
extern "C" __global__ void list_regions(const unsigned* masks, const Image* images, int* parents, Region* regions,
                                        Counts* counts, Tables tables) {
    const View view(masks, parents, images, tables);
    regions += static_cast<size_t>(blockIdx.z) * tables.regions;
    each_segment(view, [&](int node, int y, int first, int last) {
        const int root = find(view.parents, node);
        if (root != node) {
            __stcg(view.parents + node, root);
            return;
        }
        const int id = atomicAdd(&counts[blockIdx.z].regions, 1);
        if (id < tables.regions) regions[id] = Region{root, first, last, y, NO_ROWS};
        __stcg(view.parents + node, -min(id, tables.regions - 1) - 1);
    });
}

extern "C" __global__ void bound_regions(const unsigned* masks, const Image* images, int* parents, Region* regions,
                                         Tables tables) {
    const View view(masks, parents, images, tables);
    regions += static_cast<size_t>(blockIdx.z) * tables.regions;
    each_segment(view, [&](int node, int y, int first, int last) {
        const int id = view.region_of(node);
        if (id < 0) return;
        Region& region = regions[id];
        if (first < region.first_x) atomicMin(&region.first_x, first);
        if (last > region.last_x) atomicMax(&region.last_x, last);
        if (y > region.last_y) atomicMax(&region.last_y, y);
    });
}

// Regions that may hold a rectangle of the wanted size become candidates with rows of their own. A rectangle around
// whole pixels whose bounding box is at most 2 wide cannot have two sides of 3 or more.
extern "C" __global__ void pick_candidates(const unsigned* masks, const Image* images, Region* regions,
                                           Candidate* candidates, Span* rows, Counts* counts, Tables tables) {
    Counts& count = counts[blockIdx.z];
    const int id = blockIdx.x * blockDim.x + threadIdx.x;
    if (count.regions > tables.regions || id >= count.regions) return;
    const Image image = images[blockIdx.z];
    Region& region = regions[static_cast<size_t>(blockIdx.z) * tables.regions + id];
    const int first_y = row_of(region.root, tables.width);
    const int x = column_of(region.root, tables.width);
    const unsigned word = masks[(static_cast<size_t>(blockIdx.z) * tables.height + first_y) * tables.words + x / 32];
    const int is_hole = !((word >> (x % 32)) & 1u);
    const int extent = min(region.last_x - region.first_x, region.last_y - first_y) + 2 * is_hole;
    if (!image.box_wanted || (image.min_size >= 3.0f && extent <= 2)) return;
    const int height = region.last_y - first_y + 1 + 2 * is_hole;
    const int slot = atomicAdd(&count.candidates, 1);
    const int offset = atomicAdd(&count.rows, height);
    if (slot >= tables.candidates || offset > tables.rows - height) return;
    const int first_row = first_y - is_hole;
    candidates[static_cast<size_t>(blockIdx.z) * tables.candidates + slot] =
        Candidate{region.root, is_hole, first_row, height, offset};
    region.row_base = offset - first_row;
    rows += static_cast<size_t>(blockIdx.z) * tables.rows;
    for (int row = 0; row < height; ++row) rows[offset + row] = Span{INT_MAX, INT_MIN};
}

// First and last x of each row of the candidates' outlines. The outline of a hole is made of the pixels to its left
// and right, above and below.
extern "C" __global__ void mark_rows(const unsigned* masks, const Image* images, int* parents, const Region* regions,
                                     Span* rows, const Counts* counts, Tables tables) {
    if (is_void(counts[blockIdx.z], tables)) return;
    const View view(masks, parents, images, tables);
    regions += static_cast<size_t>(blockIdx.z) * tables.regions;
    rows += static_cast<size_t>(blockIdx.z) * tables.rows;
    each_segment(view, [&](int node, int y, int first, int last) {
        const int id = view.region_of(node);
        if (id < 0 || regions[id].row_base == NO_ROWS) return;
        Span* row = rows + regions[id].row_base + y;
        const int is_hole = !(view.mask.phase(y, first / 32, 1) >> (first % 32) & 1u);
        atomicMin(&row->first, first - is_hole);
        atomicMax(&row->last, last + is_hole);
        if (!is_hole) return;
        for (int step = -1; step <= 1; step += 2) {
            atomicMin(&row[step].first, first);
            atomicMax(&row[step].last, last);
        }
    });
}
