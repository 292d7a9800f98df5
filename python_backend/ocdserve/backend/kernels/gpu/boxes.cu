// SPDX-License-Identifier: Apache-2.0
// Candidates to detections: smallest rectangle, score, growth.
//
// A block works on one candidate at a time. Sums of a uint8 map are whole numbers, those of a float32 map are added in
// a fixed order, so that results do not depend on how threads are scheduled.

#include "calipers.cuh"
#include "fill.cuh"
#include "hull.cuh"
#include "unclip.cuh"
#include "window.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

// Sum of a row's pixels first .. last, distributed over the lanes of a warp; rows are `width` pixels apart.
__device__ unsigned long long lane_sum(const unsigned char* row, int width, Span span, int lane,
                                       unsigned long long sum) {
    // Four at a time only where that stays inside the last row.
    if ((width | static_cast<int>(reinterpret_cast<unsigned long long>(row) & 3)) & 3) {
        for (int x = span.first + lane; x <= span.last; x += 32) sum += row[x];
        return sum;
    }
    for (int x = (span.first & ~3) + 4 * lane; x <= span.last; x += 128) {
        unsigned four = __ldg(reinterpret_cast<const unsigned*>(row + x));
        if (x < span.first) four &= 0xffffffffu << (8 * (span.first - x));
        if (x + 3 > span.last) four &= 0xffffffffu >> (8 * (x + 3 - span.last));
        const unsigned pairs = (four & 0x00ff00ffu) + ((four >> 8) & 0x00ff00ffu);
        sum += (pairs & 0xffffu) + (pairs >> 16);
    }
    return sum;
}

__device__ double lane_sum(const float* row, int, Span span, int lane, double sum) {
    for (int x = span.first + lane; x <= span.last; x += 32) sum += row[x];
    return sum;
}

__device__ __forceinline__ unsigned long long zero_sum(const unsigned char*) { return 0; }
__device__ __forceinline__ double zero_sum(const float*) { return 0; }
__device__ __forceinline__ double to_score(double mean, const unsigned char*) { return mean / 255; }
__device__ __forceinline__ double to_score(double mean, const float*) { return mean; }

template <class Number>
__device__ Number warp_sum(Number value) {
    for (int distance = 16; distance; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
    return value;
}

// A block's data of its candidate.
struct Work {
    int vertices[MOST_VERTICES + 1];
    int grown[MOST_GROWN_POINTS];
    int right_count, left_count, grown_count;
    int wanted;
    double score;
    Quad quad;
    Window window;
    Span spans[THREADS];
    int warp_pixels[WARPS];
};

// The outermost points of a candidate's rows, downwards on the right, upwards on the left, as far as they are vertices
// of its convex hull. Called by two warps, each for its chain.
__device__ void chain_rows(Work& work, const Candidate& candidate, const Span* rows, int* right, int* left) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int bottom = candidate.rows - 1;
    if (warp == 0) {
        if (lane == 0) right[0] = pack(Point{rows[0].first, candidate.first_row});
        for (int row = lane; row <= bottom; row += 32)
            right[row + 1] = pack(Point{rows[row].last, candidate.first_row + row});
        __syncwarp();
        const int count = convex_chain(right, candidate.rows + 1, 1, lane);
        if (lane == 0) work.right_count = count;
    } else if (warp == 1) {
        if (lane == 0) left[0] = pack(Point{rows[bottom].last, candidate.first_row + bottom});
        for (int row = lane; row <= bottom; row += 32)
            left[bottom - row + 1] = pack(Point{rows[row].first, candidate.first_row + row});
        __syncwarp();
        const int count = convex_chain(left, candidate.rows + 1, -1, lane);
        if (lane == 0) work.left_count = count;
    }
}

// The same for the points of the grown quad: the right chain goes from the topmost point (the leftmost of
// several) to the lowest (the rightmost of several).
__device__ void chain_grown(Work& work, int* right, int* left) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp > 1) return;
    const int count = work.grown_count;
    // Packed points, their x made positive, compare as y, then x.
    int top = INT_MAX, bottom = INT_MAX;
    for (int index = lane; index < count; index += 32) {
        const Point point = unpack(work.grown[index]);
        top = min(top, point.y * 65536 + point.x + 32768);
        bottom = min(bottom, -1 - (point.y * 65536 + point.x + 32768));
    }
    top = warp_least(top);
    bottom = -1 - warp_least(bottom);
    int top_index = INT_MAX, bottom_index = INT_MAX;
    for (int index = lane; index < count; index += 32) {
        const Point point = unpack(work.grown[index]);
        const int key = point.y * 65536 + point.x + 32768;
        if (key == top) top_index = min(top_index, index);
        if (key == bottom) bottom_index = min(bottom_index, index);
    }
    top_index = warp_least(top_index);
    bottom_index = warp_least(bottom_index);
    const int start = warp == 0 ? top_index : bottom_index, end = warp == 0 ? bottom_index : top_index;
    int* chain = warp == 0 ? right : left;
    const int length = (end >= start ? end - start : end - start + count) + 1;
    for (int place = lane; place < length; place += 32) chain[place] = work.grown[(start + place) % count];
    __syncwarp();
    const int kept = convex_chain(chain, length, warp == 0 ? 1 : -1, lane);
    if (lane == 0) (warp == 0 ? work.right_count : work.left_count) = kept;
}

// The vertex that OpenCV's calipers start from: the hull vertex that the outline, as `findContours` traces it, reaches
// last (outer outlines, traced against the clock) or first (holes).
__device__ int start_vertex(const Hull& hull, const Candidate& candidate, int width) {
    const int count = hull.count();
    if (count < 3) return 0;
    if (!candidate.is_hole) return 1;
    const Point last = unpack(hull.at(count - 1));
    const bool traced_first = last.x == column_of(candidate.root, width) - 1 && last.y == row_of(candidate.root, width);
    return traced_first ? count - 1 : 0;
}

// Sum and number of the pixels under the quad; thread 0 has the totals of the block.
template <class Value, class Sum>
__device__ void add_up(const Value* map, Work& work, Sum* warp_sums, const Tables& tables, Sum& sum, int& pixels) {
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const Window& window = work.window;
    const Value* lines = map + static_cast<size_t>(window.origin.y) * tables.width;
    for (int first_row = 0; first_row <= window.last.y; first_row += THREADS) {
        if (first_row + thread <= window.last.y) {
            Span span = window.row(first_row + thread);
            if (span.first <= span.last) {
                pixels += span.last - span.first + 1;
                span.first += window.origin.x;
                span.last += window.origin.x;
            }
            work.spans[thread] = span;
        }
        __syncthreads();
        const int count = min(window.last.y - first_row + 1, THREADS);
        for (int row = warp; row < count; row += WARPS) {
            const Span span = work.spans[row];
            const Value* line = lines + static_cast<size_t>(first_row + row) * tables.width;
            if (span.first <= span.last) sum = lane_sum(line, tables.width, span, lane, sum);
        }
        __syncthreads();
    }
    sum = warp_sum(sum);
    pixels = warp_sum(pixels);
    if (lane == 0) {
        warp_sums[warp] = sum;
        work.warp_pixels[warp] = pixels;
    }
    __syncthreads();
    for (int i = 1; i < WARPS && thread == 0; ++i) {
        sum += warp_sums[i];
        pixels += work.warp_pixels[i];
    }
}

// Decide by the first rectangle of a candidate, from its chains, whether it is large enough. Called by a whole warp.
__device__ void find_quad(Work& work, const Hull& hull, const Candidate& candidate, const Image& image, int width,
                          int lane) {
    hull.write(work.vertices, start_vertex(hull, candidate, width), lane);
    const Rectangle rectangle = smallest_rectangle(work.vertices, hull.count(), lane);
    if (lane) return;
    work.wanted = large_enough(rectangle, image.min_size);
    if (work.wanted) {
        work.quad = ordered_corners<Single>(rectangle);
        work.window = window_of(work.quad, image);
    }
}

// Decide by its mean probability whether a candidate is text. Called by the block.
template <class Value>
__device__ void find_score(Work& work, const Value* map, const Image& image, const Tables& tables) {
    using Sum = decltype(zero_sum(map));
    __shared__ Sum warp_sums[WARPS];
    Sum sum = zero_sum(map);
    int pixels = 0;
    add_up(map, work, warp_sums, tables, sum, pixels);
    if (threadIdx.x == 0) {
        work.score = to_score(pixels ? static_cast<double>(sum) / pixels : 0.0, map);
        work.wanted = work.score >= image.box_thresh;
    }
}

// Grow the quad of a candidate; returns its verdict, and changes `quad` to the detection's, both in the first warp.
// Called by the block.
__device__ int grow_quad(Work& work, Quad& quad, const Image& image, int* right, int* left) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int verdict = REJECTED;
    if (image.analytic) {
        if (warp) return verdict;
        if (expand(quad, unclip_distance(quad, image.unclip_ratio)) >= image.min_grown_size) verdict = ACCEPTED;
        to_source(quad, image);
        return verdict;
    }
    if (warp == 0) {
        const int count = grow(work.quad, image.unclip_ratio, work.grown, lane);
        if (lane == 0) work.grown_count = count;
    }
    __syncthreads();
    if (work.grown_count == 0) return GROW_ON_HOST;
    chain_grown(work, right, left);
    __syncthreads();
    if (warp) return verdict;
    const Hull hull{right, left, work.right_count, work.left_count};
    hull.write(work.vertices, 0, lane);
    const Rectangle rectangle = smallest_rectangle(work.vertices, hull.count(), lane);
    quad = ordered_corners<Single>(rectangle);
    to_source(quad, image);
    return large_enough(rectangle, image.min_grown_size) ? ACCEPTED : REJECTED;
}

// Measure one candidate. Called by the block.
template <class Value>
__device__ void measure(const Value* map, const Image& image, const Candidate& candidate, const Span* rows, Box& target,
                        const Tables& tables) {
    extern __shared__ int chains[];  // two of tables.chain points
    __shared__ Work work;
    int* right = chains;
    int* left = chains + tables.chain;
    chain_rows(work, candidate, rows, right, left);
    __syncthreads();
    if (threadIdx.x < 32) {
        const Hull hull{right, left, work.right_count, work.left_count};
        find_quad(work, hull, candidate, image, tables.width, threadIdx.x);
    }
    __syncthreads();
    Box box{0.0, candidate.root, REJECTED, {}};
    if (work.wanted) {
        find_score(work, map, image, tables);
        __syncthreads();
    }
    if (work.wanted) {
        box.score = work.score;
        Quad quad = work.quad;
        box.state = grow_quad(work, quad, image, right, left);
        for (int i = 0; i < 4; ++i) {
            box.quad[2 * i] = quad.x[i];
            box.quad[2 * i + 1] = quad.y[i];
        }
    }
    if (threadIdx.x == 0) target = box;
    __syncthreads();
}

// Measure the candidates of all images, in strides of the grid.
template <class Value>
__device__ void measure_all(const Value* maps, const Image* images, const Candidate* candidates, const Span* rows,
                            Box* boxes, const Counts* counts, const Tables& tables) {
    int image = 0, before = 0;  // candidates of the images before
    for (int number = blockIdx.x;; number += gridDim.x) {
        for (; image < tables.images; ++image) {
            const int own = is_void(counts[image], tables) ? 0 : counts[image].candidates;
            if (number - before < own) break;
            before += own;
        }
        if (image == tables.images) return;
        const size_t place = image, index = place * tables.candidates + (number - before);
        const Candidate candidate = candidates[index];
        measure(maps + place * tables.height * tables.width, images[image], candidate,
                rows + place * tables.rows + candidate.offset, boxes[index], tables);
    }
}

}  // namespace

// Grid: x over the candidates of all images, in strides. Dynamic shared memory: 2 * tables.chain ints.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    measure_uint8(const unsigned char* maps, const Image* images, const Candidate* candidates, const Span* rows,
                  Box* boxes, const Counts* counts, Tables tables) {
    measure_all(maps, images, candidates, rows, boxes, counts, tables);
}

extern "C" __global__ void __launch_bounds__(THREADS, 4)
    measure_float32(const float* maps, const Image* images, const Candidate* candidates, const Span* rows, Box* boxes,
                    const Counts* counts, Tables tables) {
    measure_all(maps, images, candidates, rows, boxes, counts, tables);
}
