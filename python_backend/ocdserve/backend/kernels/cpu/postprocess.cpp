// SPDX-License-Identifier: Apache-2.0
// Post-processing on the CPU: a probability map to detections, by the rules of `ocdserve.backend.stages.postprocess`.
//
// One thread, no state between calls; arithmetic is shared with the GPU's kernels (`../shared/*.cuh`).

#include "hull.h"
#include "regions.h"

#include "../shared/growth.cuh"
#include "../shared/window.cuh"

namespace {

// Most points of a grown quad: an arc at the largest distance in the largest map takes about 900 per turn.
constexpr int MOST_GROWN_POINTS = 4096;

// The largest side of a map for which products of coordinates fit.
constexpr int LARGEST_SIDE = 4096;

constexpr int NO_MEMORY = -1, BAD_SIZE = -2;

struct Workspace {
    Array<Point> right, left, vertices;
    Point grown[MOST_GROWN_POINTS];

    bool reserve(int height) {
        const size_t most = max(static_cast<size_t>(height) + 4, static_cast<size_t>(MOST_GROWN_POINTS));
        return right.reserve(most) && left.reserve(most) && vertices.reserve(2 * most);
    }

    // The vertices of a hull from `start` on; for a single point, that point.
    void write(const Chain& right_chain, const Chain& left_chain, int start) {
        const int rights = right_chain.count() - 1, count = rights + left_chain.count() - 1;
        for (int i = 0; i < max(count, 1); ++i) {
            const int index = i + start < count ? i + start : max(i + start - count, 0);
            vertices[i] = index < rights ? right[index] : left[index - rights];
        }
    }
};

// The smallest rectangle around a candidate.
//
// OpenCV's calipers start from the hull vertex that the outline, as `findContours` traces it, reaches last (outer
// outlines, traced against the clock) or first (holes).
Rectangle rectangle_of_candidate(Workspace& work, const Candidate& candidate, const Span* rows, int width) {
    const int top = candidate.first_row, bottom = candidate.rows - 1;
    Chain right(work.right.data(), 1), left(work.left.data(), -1);
    right.add(Point{rows[0].first, top});
    for (int row = 0; row <= bottom; ++row) right.add(Point{rows[row].last, top + row});
    left.add(Point{rows[bottom].last, top + bottom});
    for (int row = bottom; row >= 0; --row) left.add(Point{rows[row].first, top + row});
    const int count = right.count() + left.count() - 2;
    int start = 0;
    if (count >= 3 && !candidate.is_hole) {
        start = 1;
    } else if (count >= 3) {
        const int lefts = left.count();
        const Point last = lefts > 1 ? work.left[lefts - 2] : work.right[right.count() - 2];
        const Point first_traced{column_of(candidate.root, width) - 1, row_of(candidate.root, width)};
        const bool traced_first = last.x == first_traced.x && last.y == first_traced.y;
        start = traced_first ? count - 1 : 0;
    }
    work.write(right, left, start);
    return smallest_rectangle(work.vertices.data(), count);
}

// The mean probability under a quad.
double score_of(const unsigned char* map, ptrdiff_t pitch, const Quad& quad, const Image& image) {
    const Window window = window_of(quad, image);
    uint64_t sum = 0;
    int64_t pixels = 0;
    for (int y = 0; y <= window.last.y; ++y) {
        const Span span = window.row(y);
        if (span.first > span.last) continue;
        const int count = span.last - span.first + 1;
        pixels += count;
        sum += sum_of(map + (window.origin.y + y) * pitch + window.origin.x + span.first, count);
    }
    return pixels ? static_cast<double>(sum) / static_cast<double>(pixels) / 255 : 0.0;
}

// Clipper's offset of a quad, clockwise as displayed. Returns the number of points; 0 if a corner is so nearly straight
// that Clipper takes another branch.
int grow(const Quad& quad, double distance, Point* points) {
    if (!(distance > 0)) return 0;
    Point corners[4];
    clockwise_corners(quad, corners);
    Vector normals[4];
    for (int i = 0; i < 4; ++i) normals[i] = normal_of(corners[i], corners[(i + 1) & 3]);
    for (int i = 0; i < 4; ++i)
        if (!(sine_of(normals[(i + 3) & 3], normals[i]) * distance >= 1.0)) return 0;
    const Arcs arcs(distance);
    int total = 0;
    for (int i = 0; i < 4; ++i) {
        const Vector before = normals[(i + 3) & 3];
        const int steps = arcs.steps(before, normals[i]);
        if (total + steps + 1 > MOST_GROWN_POINTS) return 0;
        Point* arc = points + total;
        arcs.draw(corners[i], before, normals[i], steps, [&](int place, Point point) { arc[place] = point; });
        total += steps + 1;
    }
    return total;
}

// The smallest rectangle around a grown quad. Its right chain goes from the topmost point (the leftmost of several) to
// the lowest (the rightmost of several).
Rectangle rectangle_of_grown(Workspace& work, int count) {
    const Point* points = work.grown;
    int top = 0, bottom = 0;
    for (int i = 1; i < count; ++i) {
        const Point point = points[i];
        if (point.y < points[top].y || (point.y == points[top].y && point.x < points[top].x)) top = i;
        if (point.y > points[bottom].y || (point.y == points[bottom].y && point.x > points[bottom].x)) bottom = i;
    }
    Chain right(work.right.data(), 1), left(work.left.data(), -1);
    const auto add = [&](Chain& chain, int first, int last) {
        for (int i = first;; i = i + 1 < count ? i + 1 : 0) {
            chain.add(points[i]);
            if (i == last) return;
        }
    };
    add(right, top, bottom);
    add(left, bottom, top);
    work.write(right, left, 0);
    return smallest_rectangle(work.vertices.data(), right.count() + left.count() - 2);
}

// A candidate's detection; its state is REJECTED if it is none.
Box measure(Workspace& work, const unsigned char* map, ptrdiff_t pitch, const Image& image, const Candidate& candidate,
            const Span* rows) {
    Box box{0.0, candidate.root, REJECTED, {}};
    const Rectangle rectangle = rectangle_of_candidate(work, candidate, rows, image.width);
    if (!large_enough(rectangle, image.min_size)) return box;
    Quad quad = ordered_corners<Double>(rectangle);
    box.score = score_of(map, pitch, quad, image);
    if (!(box.score >= image.box_thresh)) return box;
    const double distance = unclip_distance(quad, image.unclip_ratio);
    if (image.analytic) {
        if (expand(quad, distance) >= image.min_grown_size) box.state = ACCEPTED;
        to_source(quad, image);
    } else if (const int count = grow(quad, distance, work.grown)) {
        const Rectangle grown = rectangle_of_grown(work, count);
        if (large_enough(grown, image.min_grown_size)) box.state = ACCEPTED;
        quad = ordered_corners<Double>(grown);
        to_source(quad, image);
    } else {
        box.state = GROW_ON_HOST;
    }
    for (int i = 0; i < 4; ++i) {
        box.quad[2 * i] = quad.x[i];
        box.quad[2 * i + 1] = quad.y[i];
    }
    return box;
}

// Best first; ties in the order of `findContours`, from the end of the raster.
int compare(const void* first, const void* second) {
    const Box& a = *static_cast<const Box*>(first);
    const Box& b = *static_cast<const Box*>(second);
    if (a.score != b.score) return a.score > b.score ? -1 : 1;
    return (b.root > a.root) - (b.root < a.root);
}

}  // namespace

// What the library was compiled from: `digest` of compile.py, which looks for it in the file.
EXPORTED const char ocdserve_digest[] = OCDSERVE_DIGEST;

// Find the detections of a map of uint8, its rows `pitch` bytes apart, in the order of `compare`.
//
// Returns their number, of which the first `capacity` are in `rows`; negative if there is not enough memory, or a side
// of the map is out of its range.
EXPORTED int ocdserve_postprocess(const unsigned char* map, long long pitch, const Image* image, Row* rows,
                                  int capacity) {
    if (min(image->height, image->width) < 1 || max(image->height, image->width) > LARGEST_SIDE) return BAD_SIZE;
    Regions regions;
    Array<Box> boxes;
    if (!regions.find(map, pitch, *image)) return NO_MEMORY;
    if (regions.candidate_count == 0) return 0;
    if (!boxes.reserve(regions.candidate_count)) return NO_MEMORY;
    Workspace work;
    if (!work.reserve(image->height)) return NO_MEMORY;
    int count = 0;
    for (int i = 0; i < regions.candidate_count; ++i) {
        const Candidate& candidate = regions.candidates[i];
        const Box box = measure(work, map, pitch, *image, candidate, regions.rows.data() + candidate.offset);
        if (box.state != REJECTED) boxes[count++] = box;
    }
    if (count) qsort(boxes.data(), static_cast<size_t>(count), sizeof(Box), compare);
    for (int i = 0; i < min(count, capacity); ++i) {
        memcpy(rows[i].quad, boxes[i].quad, sizeof rows[i].quad);
        rows[i].score = static_cast<float>(boxes[i].score);
        rows[i].root = boxes[i].root;
        rows[i].state = boxes[i].state;
        rows[i].unused = 0;
    }
    return count;
}
