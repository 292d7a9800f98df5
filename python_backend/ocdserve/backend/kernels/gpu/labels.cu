// SPDX-License-Identifier: Apache-2.0
// Probability maps to regions and the row extremes of their outlines.
//
// Labelling is by union-find over segments of 32-pixel words, foreground (8-connected) and background (4-connected) at
// once: one thread handles a word by bit operations, as in the strip methods of Hennequin, Cabaret and Lacassagne
// (DASIP 2018), with the lock-free unions of Playne and Hawick (2018). A root is the smallest node of its region, so
// that labels do not depend on the scheduling of threads.
//
// Segments are joined within tiles first, in shared memory, so that few unions remain that wait for the L2 cache.
//
// Grids: x over the words (or regions) of an image, of `binarise` x and y over its tiles; z over images.

#include "segments.cuh"
#include "warp.cuh"

namespace {

// Root of a node. A negative parent marks a root that already has a region.
__device__ __forceinline__ int find(const int* parents, int node) {
    for (;;) {
        const int parent = __ldcg(parents + node);
        if (parent < 0 || parent == node) return node;
        node = parent;
    }
}

__device__ __forceinline__ bool is_text(unsigned char value, const Image& image) { return value > image.level; }
__device__ __forceinline__ bool is_text(float value, const Image& image) { return value > image.thresh; }

// Which pixels of 16 bytes of a map are text, the lowest bit leftmost: 16 pixels of a uint8 map, 4 of a float32 map.
__device__ __forceinline__ unsigned text_bits(const uint4& bytes, const unsigned char*, const Image& image) {
    const unsigned quads[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    unsigned bits = 0;
    for (int i = 0; i < 16; ++i) {
        const auto value = static_cast<unsigned char>(quads[i / 4] >> (8 * (i % 4)));
        bits |= static_cast<unsigned>(is_text(value, image)) << i;
    }
    return bits;
}

__device__ __forceinline__ unsigned text_bits(const uint4& bytes, const float*, const Image& image) {
    const unsigned values[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    unsigned bits = 0;
    for (int i = 0; i < 4; ++i) bits |= static_cast<unsigned>(is_text(__uint_as_float(values[i]), image)) << i;
    return bits;
}

// Bits x0 .. x0 + 31 of a row of the map: above the threshold, and inside the image.
template <class Value>
__device__ unsigned threshold_word(const Value* row, int x0, const Image& image) {
    constexpr int STEP = 16 / sizeof(Value);
    unsigned bits = 0;
    const int end = min(32, image.width - x0);
    if (end == 32 && (reinterpret_cast<unsigned long long>(row + x0) & 15) == 0) {
        const uint4* loads = reinterpret_cast<const uint4*>(row + x0);
        for (int i = 0; i < 32 / STEP; ++i) bits |= text_bits(__ldg(loads + i), row, image) << (STEP * i);
        return bits;
    }
    for (int i = 0; i < end; ++i) bits |= static_cast<unsigned>(is_text(row[x0 + i], image)) << i;
    return bits;
}

// A row's word grown to the right by one pixel.
template <class Value>
__device__ unsigned widened_word(const Value* row, int x0, const Image& image) {
    const unsigned bits = threshold_word(row, x0, image);
    const unsigned carried = x0 > 0 && is_text(row[x0 - 1], image);
    return bits | (bits << 1) | carried;
}

// The words of the map, and the regions of each tile: the parent of a segment is the first one of its region in the tile.
template <class Value>
__device__ void binarise(const Value* maps, const Image* images, unsigned* masks, int* parents, const Tables& tables) {
    __shared__ Tile tile;
    const int row = threadIdx.x / TILE_WORDS, column = threadIdx.x % TILE_WORDS;
    const int first_y = blockIdx.y * TILE_ROWS, first_word = blockIdx.x * TILE_WORDS;
    const int y = first_y + row, word = first_word + column;
    const Image image = images[blockIdx.z];
    const size_t pixels = static_cast<size_t>(tables.height) * tables.width;
    int* parent = parents + blockIdx.z * (pixels + 1);
    if (y == 0 && word == 0) parent[0] = 0;
    const unsigned inside = y < image.height ? inside_bits(word, image.width) : 0u;
    unsigned bits = 0;
    if (inside) {
        const Value* line = maps + blockIdx.z * pixels + static_cast<size_t>(y) * tables.width;
        if (image.dilate) {
            bits = widened_word(line, 32 * word, image);
            if (y > 0) bits |= widened_word(line - tables.width, 32 * word, image);
            bits &= inside;
        } else {
            bits = threshold_word(line, 32 * word, image);
        }
    }
    if (y < tables.height && word < tables.words)
        masks[(static_cast<size_t>(blockIdx.z) * tables.height + y) * tables.words + word] = bits;
    tile.phases[0][row][column] = ~bits & inside;
    tile.phases[1][row][column] = bits;
    // Each segment starts as a region of its own.
    const unsigned starts = first_bits(bits) | first_bits(~bits & inside);
    const TileParents in_tile = tile.parents();
    for (unsigned rest = starts; rest; rest &= rest - 1) {
        const int node = tile.node_at(row, column, __ffs(rest) - 1);
        in_tile.store(node, node);
    }
    __syncthreads();
    join(tile, in_tile, row, column, false);
    __syncthreads();
    for (unsigned rest = starts; rest; rest &= rest - 1) {
        const int bit = __ffs(rest) - 1;
        const int root = find_and_halve(in_tile, tile.node_at(row, column, bit));
        const int root_y = first_y + root / (32 * TILE_WORDS), root_x = 32 * first_word + root % (32 * TILE_WORDS);
        parent[node_at(tables, y, word, bit)] = root_y * tables.width + root_x + 1;
    }
}

constexpr Candidate NONE = {};

// The candidate that a region becomes, without its place in the row table; `NONE` if it is too small.
__device__ Candidate candidate_of(const Region& region, const unsigned* mask, const Image& image, const Tables& tables) {
    const int first_y = row_of(region.root, tables.width);
    const int x = column_of(region.root, tables.width);
    const int is_hole = !((mask[first_y * tables.words + x / 32] >> (x % 32)) & 1u);
    const int extent = min(region.last_x - region.first_x, region.last_y - first_y) + 2 * is_hole;
    if (!image.box_wanted || (image.min_size >= 3.0f && extent <= 2)) return NONE;
    return Candidate{region.root, is_hole, first_y - is_hole, region.last_y - first_y + 1 + 2 * is_hole, 0};
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
    if (!locate(tables, y, word) || y >= view.mask.image.height) return;
    join(view.mask, MapParents{view.parents}, y, word, true);
    join_outside(view.mask, MapParents{view.parents}, y, word);
}

// Point every segment to its root, and assign a region to every root except the outside's.
extern "C" __global__ void list_regions(const unsigned* masks, const Image* images, int* parents, Region* regions,
                                        Counts* counts, Tables tables) {
    const View view(masks, parents, images, tables);
    regions += static_cast<size_t>(blockIdx.z) * tables.regions;
    // Neighbours often have the same parent, and so the same root.
    int last_parent = -1, last_root = -1;
    each_segment(view, [&](int node, int y, int first, int last) {
        const int parent = __ldcg(view.parents + node);
        if (parent != node) {
            if (parent != last_parent) last_root = find(view.parents, parent);
            last_parent = parent;
            __stcg(view.parents + node, last_root);
            return;
        }
        const int id = atomicAdd(&counts[blockIdx.z].regions, 1);
        if (id < tables.regions) regions[id] = Region{node, first, last, y, NO_ROWS};
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
    const int id = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
    // A warp stays together: its lanes clear the rows of all of its candidates.
    if (count.regions > tables.regions || id - lane >= count.regions) return;
    regions += static_cast<size_t>(blockIdx.z) * tables.regions;
    const unsigned* mask = masks + static_cast<size_t>(blockIdx.z) * tables.height * tables.words;
    const Candidate candidate = id < count.regions ? candidate_of(regions[id], mask, images[blockIdx.z], tables) : NONE;
    const unsigned picked = __ballot_sync(WARP, candidate.rows > 0);
    const int rows_to_here = warp_prefix_sum(candidate.rows, lane);
    int slot = 0, offset = 0;
    if (lane == 31 && picked) {
        slot = atomicAdd(&count.candidates, __popc(picked));
        offset = atomicAdd(&count.rows, rows_to_here);
    }
    slot = __shfl_sync(WARP, slot, 31) + __popc(picked & ((1u << lane) - 1));
    offset = __shfl_sync(WARP, offset, 31);
    rows += static_cast<size_t>(blockIdx.z) * tables.rows;
    const int end = min(offset + __shfl_sync(WARP, rows_to_here, 31), tables.rows);
    for (int row = offset + lane; row < end; row += 32) rows[row] = Span{INT_MAX, INT_MIN};
    offset += rows_to_here - candidate.rows;
    if (!candidate.rows || slot >= tables.candidates || offset > tables.rows - candidate.rows) return;
    Candidate& target = candidates[static_cast<size_t>(blockIdx.z) * tables.candidates + slot];
    target = candidate;
    target.offset = offset;
    regions[id].row_base = offset - candidate.first_row;
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
