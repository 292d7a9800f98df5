// SPDX-License-Identifier: Apache-2.0
// Candidates to detections: smallest rectangle, score, growth, order.
//
// A block works on one candidate at a time. Sums of a uint8 map are whole numbers, those of a float32 map are added in
// a fixed order, so that answers do not depend on how threads run.

#include "geometry.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;

// Outermost coordinates that fit a packed point, with room for what rounding adds.
constexpr float FARTHEST = 32000.0f;

// Sum of a row's pixels first .. last, shared out over the lanes of a warp.
__device__ unsigned long long lane_sum(const unsigned char* row, Span span, int lane, unsigned long long sum) {
    if (reinterpret_cast<unsigned long long>(row) & 3) {
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

__device__ double lane_sum(const float* row, Span span, int lane, double sum) {
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

// Corners cut to whole pixels of the quad's window in the map, in map coordinates.
__device__ void whole_corners(const Quad& quad, const Image& image, Point corners[4]) {
    const float least_x = fminf(fminf(quad.x[0], quad.x[1]), fminf(quad.x[2], quad.x[3]));
    const float least_y = fminf(fminf(quad.y[0], quad.y[1]), fminf(quad.y[2], quad.y[3]));
    const float x = fminf(fmaxf(floorf(least_x), 0.0f), static_cast<float>(image.width - 1));
    const float y = fminf(fmaxf(floorf(least_y), 0.0f), static_cast<float>(image.height - 1));
    for (int i = 0; i < 4; ++i) {
        corners[i].x = static_cast<int>(truncf(quad.x[i] - x)) + static_cast<int>(x);
        corners[i].y = static_cast<int>(truncf(quad.y[i] - y)) + static_cast<int>(y);
    }
}

// The part of a map that a quad's pixels lie in, and its corners in whole pixels from the window's origin.
struct Window {
    Point origin, last;
    Point corners[4];
    bool cut;  // whether the quad reaches out of the map

    __device__ Span row(int y) const { return cut ? cut_filled_row(corners, last, y) : filled_row(corners, y); }
};

__device__ Window window_of(const Quad& quad, const Image& image) {
    Window window;
    whole_corners(quad, image, window.corners);
    Point* corners = window.corners;
    Point least = corners[0], most = corners[0];
    for (int i = 1; i < 4; ++i) {
        least = Point{min(least.x, corners[i].x), min(least.y, corners[i].y)};
        most = Point{max(most.x, corners[i].x), max(most.y, corners[i].y)};
    }
    const Point end{image.width - 1, image.height - 1};
    window.cut = least.x < 0 || least.y < 0 || most.x > end.x || most.y > end.y;
    window.origin = Point{min(max(least.x, 0), end.x), min(max(least.y, 0), end.y)};
    window.last = Point{min(max(most.x, 0), end.x) - window.origin.x, min(max(most.y, 0), end.y) - window.origin.y};
    for (int i = 0; i < 4; ++i) {
        corners[i].x -= window.origin.x;
        corners[i].y -= window.origin.y;
    }
    return window;
}

// What a block knows of its candidate.
struct Work {
    int right[CHAIN], left[CHAIN], grown[CHAIN];
    int right_count, left_count;
    int wanted;
    Quad quad;
    Window window;
    Span spans[THREADS];
    int warp_pixels[WARPS];
};

// Both chains of the hull around a candidate's rows; `rows` holds the first x of each in the low half, the last x in
// the high half.
__device__ void chain_rows(Work& work, const int* rows, const Candidate& candidate, Counts& counts) {
    const auto row_first = [&](int row) { return unpack(rows[row]).x; };
    const auto row_last = [&](int row) { return unpack(rows[row]).y; };
    const int bottom = candidate.rows - 1;
    if (threadIdx.x == 0) {
        Chain chain{work.right, 1, 1, false};
        work.right[0] = pack(Point{row_first(0), candidate.first_row});
        for (int row = 0; row <= bottom; ++row) chain.add(Point{row_last(row), candidate.first_row + row});
        work.right_count = chain.count;
        if (chain.overflow) counts.overflow = 1;
    } else if (threadIdx.x == 32) {
        Chain chain{work.left, 1, -1, false};
        work.left[0] = pack(Point{row_last(bottom), candidate.first_row + bottom});
        for (int row = bottom; row >= 0; --row) chain.add(Point{row_first(row), candidate.first_row + row});
        work.left_count = chain.count;
        if (chain.overflow) counts.overflow = 1;
    }
}

// Which vertex OpenCV's calipers start from: the hull vertex that the outline, as `findContours` traces it, reaches
// last (outer outlines, traced against the clock) or first (holes).
__device__ int start_vertex(const Hull& hull, const Candidate& candidate, int width) {
    const int count = hull.count();
    if (count < 3) return 0;
    if (!candidate.is_hole) return 1;
    const Point last = hull.at(count - 1);
    const bool traced_first = last.x == column_of(candidate.root, width) - 1 && last.y == row_of(candidate.root, width);
    return traced_first ? count - 1 : 0;
}

__device__ __forceinline__ bool large_enough(const Rectangle& rectangle, float size) {
    return fminf(rectangle.width, rectangle.height) >= size;
}

// Grow the quad; its verdict, and the grown rectangle's corners or, for the host, the quad itself.
__device__ Verdict grow(Work& work, const Image& image, Counts& counts, Quad& result) {
    result = work.quad;
    const double distance = unclip_distance(work.quad, image.unclip_ratio);
    float farthest = 0;
    for (int i = 0; i < 4; ++i) farthest = fmaxf(farthest, fmaxf(fabsf(work.quad.x[i]), fabsf(work.quad.y[i])));
    if (!(distance > 0) || farthest + distance > FARTHEST) return GROW_ON_HOST;
    Offset offset;
    offset.prepare(work.quad, distance);
    const int count = offset.point_count();
    if (!offset.clear || count > CHAIN) return GROW_ON_HOST;
    offset.write(work.grown);
    int top = 0, bottom = 0;
    for (int i = 1; i < count; ++i) {
        const Point point = unpack(work.grown[i]);
        const Point highest = unpack(work.grown[top]), lowest = unpack(work.grown[bottom]);
        if (point.y < highest.y || (point.y == highest.y && point.x < highest.x)) top = i;
        if (point.y > lowest.y || (point.y == lowest.y && point.x > lowest.x)) bottom = i;
    }
    Chain right{work.right, 1, 1, false}, left{work.left, 1, -1, false};
    work.right[0] = work.grown[top];
    work.left[0] = work.grown[bottom];
    for (int i = top; i != bottom;) {
        i = i + 1 < count ? i + 1 : 0;
        right.add(unpack(work.grown[i]));
    }
    for (int i = bottom; i != top;) {
        i = i + 1 < count ? i + 1 : 0;
        left.add(unpack(work.grown[i]));
    }
    if (right.overflow || left.overflow) counts.overflow = 1;
    const Rectangle rectangle = smallest_rectangle(Hull{work.right, work.left, right.count, left.count}, 0);
    if (!large_enough(rectangle, image.min_grown_size)) return REJECTED;
    result = ordered_corners(rectangle);
    return ACCEPTED;
}

// Network to source pixels, kept inside the source image.
__device__ __forceinline__ float to_source(float value, double scale, int length) {
    return static_cast<float>(fmin(fmax(value * scale, 0.0), static_cast<double>(length)));
}

template <class Value>
__device__ void measure(const Value* map, const Image& image, const Candidate* candidates, const Span* rows, Box* boxes,
                        Counts& counts, const Tables& tables) {
    extern __shared__ int staged[];  // a candidate's rows: tables.height + 2 at most
    __shared__ Work work;
    using Sum = decltype(zero_sum(map));
    __shared__ Sum warp_sums[WARPS];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    for (int index = blockIdx.x; index < counts.candidates; index += gridDim.x) {
        const Candidate candidate = candidates[index];
        for (int row = thread; row < candidate.rows; row += THREADS) {
            const Span span = rows[candidate.offset + row];
            staged[row] = pack(Point{span.first, span.last});
        }
        __syncthreads();
        chain_rows(work, staged, candidate, counts);
        __syncthreads();
        if (thread == 0) {
            const Hull hull{work.right, work.left, work.right_count, work.left_count};
            const Rectangle rectangle = smallest_rectangle(hull, start_vertex(hull, candidate, tables.width));
            work.wanted = large_enough(rectangle, image.min_size);
            if (work.wanted) {
                work.quad = ordered_corners(rectangle);
                work.window = window_of(work.quad, image);
            } else {
                boxes[index].state = REJECTED;
            }
        }
        __syncthreads();
        if (!work.wanted) continue;

        const Window& window = work.window;
        const Value* lines = map + static_cast<size_t>(window.origin.y) * tables.width;
        Sum sum = zero_sum(map);
        int pixels = 0;
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
                if (span.first <= span.last) sum = lane_sum(line, span, lane, sum);
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
        if (thread == 0) {
            for (int i = 1; i < WARPS; ++i) {
                sum += warp_sums[i];
                pixels += work.warp_pixels[i];
            }
            const double mean = pixels ? static_cast<double>(sum) / pixels : 0.0;
            Box box{to_score(mean, map), candidate.root, REJECTED, {}};
            if (box.score >= image.box_thresh) {
                Quad quad;
                box.state = grow(work, image, counts, quad);
                const bool done = box.state == ACCEPTED;
                for (int i = 0; i < 4; ++i) {
                    box.quad[2 * i] = done ? to_source(quad.x[i], image.scale_x, image.source_width) : quad.x[i];
                    box.quad[2 * i + 1] = done ? to_source(quad.y[i], image.scale_y, image.source_height) : quad.y[i];
                }
            }
            boxes[index] = box;
        }
        __syncthreads();
    }
}

}  // namespace

// Grid: x over candidates, in strides; z over images. Dynamic shared memory: tables.height + 2 ints.
extern "C" __global__ void __launch_bounds__(THREADS)
    measure_uint8(const unsigned char* maps, const Image* images, const Candidate* candidates, const Span* rows,
                  Box* boxes, Counts* counts, Tables tables) {
    const size_t image = blockIdx.z;
    if (is_void(counts[image], tables)) return;
    measure(maps + image * tables.height * tables.width, images[image], candidates + image * tables.candidates,
            rows + image * tables.rows, boxes + image * tables.candidates, counts[image], tables);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    measure_float32(const float* maps, const Image* images, const Candidate* candidates, const Span* rows, Box* boxes,
                    Counts* counts, Tables tables) {
    const size_t image = blockIdx.z;
    if (is_void(counts[image], tables)) return;
    measure(maps + image * tables.height * tables.width, images[image], candidates + image * tables.candidates,
            rows + image * tables.rows, boxes + image * tables.candidates, counts[image], tables);
}

// Put the detections in order: best score first, equal ones in the order in which `findContours` lists them, from the
// end of the raster. A detection's place is the number of those that come before it.
extern "C" __global__ void __launch_bounds__(THREADS)
    order_boxes(const Box* boxes, Row* heads, Row* tails, Counts* counts, Tables tables) {
    __shared__ double scores[THREADS];
    __shared__ int roots[THREADS];
    Counts& count = counts[blockIdx.z];
    if (is_void(count, tables)) return;
    boxes += static_cast<size_t>(blockIdx.z) * tables.candidates;
    heads += static_cast<size_t>(blockIdx.z) * tables.heads;
    tails += static_cast<size_t>(blockIdx.z) * tables.candidates;
    const int first = blockIdx.x * THREADS;
    if (first >= count.candidates) return;
    const int index = first + threadIdx.x;
    const bool wanted = index < count.candidates && boxes[index].state != REJECTED;
    const double score = wanted ? boxes[index].score : 0.0;
    const int root = wanted ? boxes[index].root : 0;
    int place = 0;
    for (int start = 0; start < count.candidates; start += THREADS) {
        const int other = start + threadIdx.x;
        const bool counts_too = other < count.candidates && boxes[other].state != REJECTED;
        __syncthreads();
        scores[threadIdx.x] = counts_too ? boxes[other].score : -1.0;
        roots[threadIdx.x] = counts_too ? boxes[other].root : 0;
        __syncthreads();
        for (int i = 0; i < THREADS; ++i) place += scores[i] > score || (scores[i] == score && roots[i] > root);
    }
    if (!wanted) return;
    atomicAdd(&count.accepted, 1);
    Row& row = place < tables.heads ? heads[place] : tails[place];
    for (int i = 0; i < 8; ++i) row.quad[i] = boxes[index].quad[i];
    row.score = static_cast<float>(score);
    row.root = root;
    row.state = boxes[index].state;
    row.unused = 0;
}
