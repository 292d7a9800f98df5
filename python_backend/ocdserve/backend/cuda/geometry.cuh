// SPDX-License-Identifier: Apache-2.0
// Geometry of one candidate: convex hull, smallest rectangle, filled rows and Clipper's offset.
//
// Each gives what OpenCV 4.11 or Clipper 6 gives (`ocdserve.backend.geometry` on the CPU), so the types and the
// order of operations matter: float where they use float, no fused multiply-add. x to the right, y downwards.
#pragma once

#include "postprocess.cuh"

constexpr unsigned WARP = 0xffffffffu;

// Vertices of a convex hull, and points of a grown quad. The convex polygons with the most vertices on an n x n grid
// have about 3.5 n^(2/3) of them (Acketa and Zunic 1995): 900 for the largest maps, n = 4096.
constexpr int MOST_VERTICES = 1023;
constexpr int MOST_GROWN_POINTS = 512;

struct Point {
    int x, y;
};

struct Quad {
    float x[4], y[4];
};

// A rotated rectangle as `cv2.minAreaRect` describes it; angle in degrees.
struct Rectangle {
    float x, y, width, height, angle;
};

__device__ __forceinline__ int pack(Point point) { return point.y * 65536 + (point.x & 0xffff); }
__device__ __forceinline__ Point unpack(int packed) {
    return Point{static_cast<short>(packed & 0xffff), packed >> 16};
}

__device__ __forceinline__ int cross(Point origin, Point a, Point b) {
    return (a.x - origin.x) * (b.y - origin.y) - (a.y - origin.y) * (b.x - origin.x);
}

template <class Number>
__device__ Number warp_least(Number value) {
    for (int distance = 16; distance; distance /= 2) value = min(value, __shfl_xor_sync(WARP, value, distance));
    return value;
}

// Drop what cannot be a vertex of a convex chain: points not strictly outside of the line through their neighbours.
// All are judged at once, round after round; `add_to_chain` judges those that are left. Called by a whole warp.
__device__ int thin_out(int* points, int count, int lane) {
    for (int round = 0; round < 8 && count > 4; ++round) {
        int kept = 0;
        int before = points[0];
        for (int base = 0; base < count; base += 32) {
            const int index = base + lane;
            const int here = index < count ? points[index] : 0;
            const int next = index + 1 < count ? points[index + 1] : here;
            int previous = __shfl_up_sync(WARP, here, 1);
            if (lane == 0) previous = before;
            before = __shfl_sync(WARP, here, 31);
            // Of equal points that follow each other the first stays.
            const bool is_end = index == 0 || index == count - 1;
            const bool is_outside = here != previous &&
                                    (here == next || cross(unpack(previous), unpack(here), unpack(next)) > 0);
            const unsigned staying = __ballot_sync(WARP, index < count && (is_end || is_outside));
            if ((staying >> lane) & 1u) points[kept + __popc(staying & ((1u << lane) - 1u))] = here;
            kept += __popc(staying);
            __syncwarp();
        }
        if (kept == count) break;
        count = kept;
    }
    return count;
}

// Andrew's monotone chain in place: the strictly convex chain of points that go downwards (side 1, their right hull) or
// upwards (side -1, their left hull). Returns how many are left. Called by a whole warp.
__device__ __noinline__ int convex_chain(int* points, int count, int side, int lane) {
    count = thin_out(points, count, lane);
    int kept = 1;
    if (lane == 0) {
        for (int index = 1; index < count; ++index) {
            const Point point = unpack(points[index]);
            const Point top = unpack(points[kept - 1]);
            // In every row only the outermost point counts.
            if (point.y == top.y) {
                if (side * (point.x - top.x) <= 0) continue;
                if (kept > 1) --kept;
            }
            while (kept > 1 && cross(unpack(points[kept - 2]), unpack(points[kept - 1]), point) <= 0) --kept;
            points[kept++] = pack(point);
        }
    }
    __syncwarp();
    return __shfl_sync(WARP, kept, 0);
}

// A strictly convex polygon as two chains, clockwise as displayed, from its topmost, there leftmost point. The right
// chain ends where the left begins and the other way round.
struct Hull {
    const int* right;
    const int* left;
    int right_count, left_count;

    __device__ int count() const { return right_count + left_count - 2; }
    __device__ int at(int index) const {
        return index < right_count - 1 ? right[index] : left[index - (right_count - 1)];
    }
    // All vertices from `start` on, and the first of them again. Called by a whole warp.
    __device__ void write(int* vertices, int start, int lane) const {
        const int total = count();
        for (int index = lane; index <= total; index += 32)
            vertices[index] = at(total ? (index + start) % total : 0);
        __syncwarp();
    }
};

__device__ __forceinline__ Rectangle rectangle_of(float corner_x, float corner_y, float ax, float ay, float bx,
                                                  float by) {
    Rectangle rectangle;
    rectangle.x = corner_x + (ax + bx) * 0.5f;
    rectangle.y = corner_y + (ay + by) * 0.5f;
    rectangle.width = static_cast<float>(sqrt(static_cast<double>(ax) * ax + static_cast<double>(ay) * ay));
    rectangle.height = static_cast<float>(sqrt(static_cast<double>(bx) * bx + static_cast<double>(by) * by));
    rectangle.angle = static_cast<float>(atan2(static_cast<double>(ay), static_cast<double>(ax)));
    return rectangle;
}

// What the calipers found when they turned to an edge.
struct Turn {
    float area;
    int order;  // of the turn
    float a, b; // direction of the edge, as the first side of the rectangle sees it
    float width, height;
    int left, low;

    __device__ bool beats(float other_area, int other_order) const {
        return area < other_area || (area == other_area && order > other_order);
    }
};

// An edge's direction, turned to the first of the four sides: 0 lowest y, 1 highest x, 2 highest y, 3 lowest x.
__device__ __forceinline__ Point turned_edge(const int* vertices, int index, int side) {
    const Point from = unpack(vertices[index]), to = unpack(vertices[index + 1]);
    const int x = to.x - from.x, y = to.y - from.y;
    return side == 0 ? Point{x, y} : side == 1 ? Point{y, -x} : side == 2 ? Point{-x, -y} : Point{-y, x};
}

// Smallest rectangle around a hull by rotating calipers (Toussaint 1983), in OpenCV's arithmetic and with its choice
// among equals: of the smallest the one that the calipers reach last.
//
// The calipers make as many turns as there are edges, each to the edge of a side that turns them the least, of equals to
// the lowest side's. So each lane finds on its own what they touch when they have turned to its edges. Turned by the
// last right angle, they may reach again what another side has reached at first: such edges count for both. Called by a
// whole warp; `vertices` holds the first of `count` vertices again behind the last.
__device__ __noinline__ Rectangle smallest_rectangle(const int* vertices, int count, int lane) {
    Rectangle found{};
    if (count <= 2) {
        // From the right end to the left one.
        Point a = unpack(vertices[max(count - 1, 0)]), b = unpack(vertices[0]);
        if (b.x > a.x) {
            const Point right = b;
            b = a;
            a = right;
        }
        const float dx = static_cast<float>(b.x - a.x), dy = static_cast<float>(b.y - a.y);
        found = rectangle_of(static_cast<float>(a.x), static_cast<float>(a.y), dx, dy, 0.0f, 0.0f);
    } else {
        // The first vertex that each side touches, the first of equals: value and index in one key.
        int keys[4] = {INT_MAX, INT_MAX, INT_MAX, INT_MAX};
        for (int index = lane; index < count; index += 32) {
            const Point point = unpack(vertices[index]);
            keys[0] = min(keys[0], point.y * 1024 + index);
            keys[1] = min(keys[1], -point.x * 1024 + index);
            keys[2] = min(keys[2], -point.y * 1024 + index);
            keys[3] = min(keys[3], point.x * 1024 + index);
        }
        int first[4], length[4];
        int edges = 0;
        for (int side = 0; side < 4; ++side) first[side] = warp_least(keys[side]) & 1023;
        for (int side = 0; side < 4; ++side) {
            const int end = first[(side + 1) & 3];
            const Point beyond = turned_edge(vertices, end, side);
            length[side] = end - first[side];
            if (length[side] < 0) length[side] += count;
            length[side] += beyond.x == 0 && beyond.y > 0;
            edges += length[side];
        }
        Turn best{3.402823466e+38f, -1, 0, 0, 0, 0, 0, 0};
        for (int edge = lane; edge < edges; edge += 32) {
            int own_side = 0, own_place = edge;
            while (own_place >= length[own_side]) own_place -= length[own_side++];
            const Point own = turned_edge(vertices, (first[own_side] + own_place) % count, own_side);
            const float own_x = static_cast<float>(own.x), own_y = static_cast<float>(own.y);
            int order = 0;
            int touched[4];
            for (int side = 0; side < 4; ++side) {
                int passed = 0;
                for (int place = 0, index = first[side]; place < length[side]; ++place) {
                    const Point other = turned_edge(vertices, index, side);
                    const float turn = static_cast<float>(other.y) * own_x + -static_cast<float>(other.x) * own_y;
                    passed += turn < 0.0f || (turn == 0.0f && side <= own_side);
                    index = index + 1 < count ? index + 1 : 0;
                }
                order += passed;
                touched[side] = (first[side] + passed) % count;
            }
            if (order > count) continue;
            const double dx = own_x, dy = own_y;
            const float inverse = static_cast<float>(1.0 / sqrt(dx * dx + dy * dy));
            Turn turn;
            turn.order = order;
            turn.a = own_x * inverse;
            turn.b = own_y * inverse;
            turn.low = vertices[touched[0]];
            turn.left = vertices[touched[3]];
            const Point low = unpack(turn.low), right = unpack(vertices[touched[1]]);
            const Point high = unpack(vertices[touched[2]]), left = unpack(turn.left);
            turn.width = static_cast<float>(right.x - left.x) * turn.a + static_cast<float>(right.y - left.y) * turn.b;
            turn.height = -static_cast<float>(high.x - low.x) * turn.b + static_cast<float>(high.y - low.y) * turn.a;
            turn.area = turn.width * turn.height;
            if (turn.beats(best.area, best.order)) best = turn;
        }
        float area = best.area;
        int order = best.order;
        for (int distance = 16; distance; distance /= 2) {
            const float other_area = __shfl_xor_sync(WARP, area, distance);
            const int other_order = __shfl_xor_sync(WARP, order, distance);
            if (other_area < area || (other_area == area && other_order > order)) {
                area = other_area;
                order = other_order;
            }
        }
        const int winner = __ffs(__ballot_sync(WARP, best.order == order)) - 1;
        const float a1 = __shfl_sync(WARP, best.a, winner), b1 = __shfl_sync(WARP, best.b, winner);
        const float width = __shfl_sync(WARP, best.width, winner), height = __shfl_sync(WARP, best.height, winner);
        const Point left = unpack(__shfl_sync(WARP, best.left, winner));
        const Point low = unpack(__shfl_sync(WARP, best.low, winner));
        // Where the sides through the leftmost and the lowest point meet.
        const float a2 = -b1, b2 = a1;
        const float c1 = a1 * static_cast<float>(left.x) + static_cast<float>(left.y) * b1;
        const float c2 = a2 * static_cast<float>(low.x) + static_cast<float>(low.y) * b2;
        const float inverse = 1.0f / (a1 * b2 - a2 * b1);
        found = rectangle_of((c1 * b2 - c2 * b1) * inverse, (a1 * c2 - a2 * c1) * inverse, a1 * width, b1 * width,
                             a2 * height, b2 * height);
    }
    found.angle = static_cast<float>(found.angle * 180 / 3.1415926535897932384626433832795);
    return found;
}

// Corners as `cv2.boxPoints` gives them, ordered clockwise from the top left: of the two leftmost corners the upper is
// the top left one, of the two rightmost the upper the top right one.
__device__ __noinline__ Quad ordered_corners(const Rectangle& rectangle) {
    const double angle = rectangle.angle * (3.14159265358979323846 / 180.0);
    const float half_cos = static_cast<float>(cos(angle)) * 0.5f;
    const float half_sin = static_cast<float>(sin(angle)) * 0.5f;
    float x[4], y[4];
    x[0] = rectangle.x - half_sin * rectangle.height - half_cos * rectangle.width;
    y[0] = rectangle.y + half_cos * rectangle.height - half_sin * rectangle.width;
    x[1] = rectangle.x + half_sin * rectangle.height - half_cos * rectangle.width;
    y[1] = rectangle.y - half_cos * rectangle.height - half_sin * rectangle.width;
    x[2] = 2.0f * rectangle.x - x[0];
    y[2] = 2.0f * rectangle.y - y[0];
    x[3] = 2.0f * rectangle.x - x[1];
    y[3] = 2.0f * rectangle.y - y[1];
    // By x; equal ones keep their order.
    for (int i = 1; i < 4; ++i) {
        for (int j = i; j > 0 && x[j] < x[j - 1]; --j) {
            const float other_x = x[j], other_y = y[j];
            x[j] = x[j - 1];
            y[j] = y[j - 1];
            x[j - 1] = other_x;
            y[j - 1] = other_y;
        }
    }
    const int top_left = y[1] > y[0] ? 0 : 1;
    const int top_right = y[3] > y[2] ? 2 : 3;
    const int order[4] = {top_left, top_right, 5 - top_right, 1 - top_left};
    Quad quad;
    for (int i = 0; i < 4; ++i) {
        quad.x[i] = x[order[i]];
        quad.y[i] = y[order[i]];
    }
    return quad;
}

__device__ __forceinline__ int floor_div(int a, int b) {
    const int quotient = a / b;
    return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

// Widen a span by the pixels of row y on Bresenham's line between two points, drawn from the left end to the right.
__device__ void add_line(Span& span, Point a, Point b, int y) {
    if (y < min(a.y, b.y) || y > max(a.y, b.y)) return;
    const Point left = a.x > b.x ? b : a, right = a.x > b.x ? a : b;
    const int run = right.x - left.x, rise = right.y - left.y;
    const int steps = rise < 0 ? -rise : rise;
    int low = 0, high = run;
    if (steps > 0) {
        // After i rows from the left end a steep line has moved by ceil(i run / steps - 1/2) columns; a shallow one
        // stays in a row for all columns that round to it.
        const int row = rise < 0 ? left.y - y : y - left.y;
        if (steps > run) {
            low = high = max(-floor_div(steps - 2 * run * row, 2 * steps), 0);
        } else {
            low = max(floor_div(2 * run * row - run, 2 * steps) + 1, 0);
            high = min(floor_div(2 * run * row + run, 2 * steps), run);
        }
    }
    span.first = min(span.first, left.x + low);
    span.last = max(span.last, left.x + high);
}

// Pixels of row y that `cv2.fillPoly` sets for a convex polygon of four whole-pixel corners inside of the image: the
// span between the extremes of its outline.
__device__ Span filled_row(const Point corners[4], int y) {
    Span span{INT_MAX, INT_MIN};
#pragma unroll 1
    for (int i = 0; i < 4; ++i) add_line(span, corners[i], corners[(i + 1) & 3], y);
    return span;
}

// Which sides of a window from (0, 0) to `last` a point lies beyond: 1 left, 2 right, 4 above, 8 below.
__device__ __forceinline__ int beyond(long long x, long long y, Point last) {
    return (x < 0) + 2 * (x > last.x) + 4 * (y < 0) + 8 * (y > last.y);
}

// Cut a line to a window, as `cv2.clipLine` rounds; false where nothing of it is left.
__device__ bool cut_line(Point& a, Point& b, Point last) {
    long long x[2] = {a.x, b.x}, y[2] = {a.y, b.y};
    int sides[2] = {beyond(x[0], y[0], last), beyond(x[1], y[1], last)};
    if ((sides[0] & sides[1]) == 0 && (sides[0] | sides[1]) != 0) {
#pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            if (!(sides[i] & 12)) continue;
            const long long edge = sides[i] < 8 ? 0 : last.y;
            x[i] += static_cast<long long>(static_cast<double>(edge - y[i]) * (x[1] - x[0]) / (y[1] - y[0]));
            y[i] = edge;
            sides[i] = beyond(x[i], 0, Point{last.x, 0});
        }
        if ((sides[0] & sides[1]) == 0 && (sides[0] | sides[1]) != 0) {
#pragma unroll 1
            for (int i = 0; i < 2; ++i) {
                if (!sides[i]) continue;
                const long long edge = sides[i] == 1 ? 0 : last.x;
                y[i] += static_cast<long long>(static_cast<double>(edge - x[i]) * (y[1] - y[0]) / (x[1] - x[0]));
                x[i] = edge;
                sides[i] = 0;
            }
        }
    }
    a = Point{static_cast<int>(x[0]), static_cast<int>(y[0])};
    b = Point{static_cast<int>(x[1]), static_cast<int>(y[1])};
    return (sides[0] | sides[1]) == 0;
}

// The same for a polygon that reaches out of the image, which is `last` + 1 pixels: OpenCV cuts the lines of the
// outline to the image before it draws them, and fills between edges through the cut ends.
__device__ Span cut_filled_row(const Point corners[4], Point last, int y) {
    Span span{INT_MAX, INT_MIN};
    long long least = 0, most = 0;
    bool crossed = false;
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        const Point a = corners[i], b = corners[(i + 1) & 3];
        Point cut_a = a, cut_b = b;
        if (cut_line(cut_a, cut_b, last)) add_line(span, cut_a, cut_b, y);
        if (y < min(a.y, b.y) || y >= max(a.y, b.y)) continue;
        // 16 bits of fraction, a whole step of x a row.
        const long long ax = static_cast<long long>(cut_a.x) << 16, bx = static_cast<long long>(cut_b.x) << 16;
        const bool rows_cut = cut_a.y != cut_b.y;
        const int ay = rows_cut ? cut_a.y : a.y, by = rows_cut ? cut_b.y : b.y;
        const long long step = (bx - ax) / (by - ay);
        const long long x = a.y < b.y ? ax + (y - ay) * step : bx + (y - by) * step;
        least = crossed ? min(least, x) : x;
        most = crossed ? max(most, x) : x;
        crossed = true;
    }
    if (crossed) {
        const int first = static_cast<int>((least + 65535) >> 16), end = static_cast<int>(most >> 16);
        if (first <= end && first <= last.x && end >= 0) {
            span.first = min(span.first, max(first, 0));
            span.last = max(span.last, min(end, last.x));
        }
    }
    return span;
}

__device__ __forceinline__ int round_half_away(double value) {
    return static_cast<int>(trunc(value + copysign(0.5, value)));
}

// How far a quad grows: area * ratio / perimeter.
__device__ double unclip_distance(const Quad& quad, double ratio) {
    double x[4], y[4], area = 0, perimeter = 0;
    // Seen from the first corner: products of large coordinates would lose digits.
    for (int i = 0; i < 4; ++i) {
        x[i] = static_cast<double>(quad.x[i]) - static_cast<double>(quad.x[0]);
        y[i] = static_cast<double>(quad.y[i]) - static_cast<double>(quad.y[0]);
    }
#pragma unroll 1
    for (int i = 0; i < 4; ++i) {
        const int next = (i + 1) & 3;
        const double dx = x[next] - x[i], dy = y[next] - y[i];
        area += x[i] * y[next] - y[i] * x[next];
        perimeter += sqrt(dx * dx + dy * dy);
    }
    return perimeter > 0 ? fabs(area) / 2.0 * ratio / perimeter : 0.0;
}

// Move the sides of a rectangle outwards, `expand_rectangles` on the CPU; returns the shorter side.
__device__ float expand(Quad& quad, double distance) {
    const double x = quad.x[0], y = quad.y[0];
    double across_x = quad.x[1] - x, across_y = quad.y[1] - y;
    double down_x = quad.x[3] - x, down_y = quad.y[3] - y;
    const double width = sqrt(across_x * across_x + across_y * across_y);
    const double height = sqrt(down_x * down_x + down_y * down_y);
    across_x /= width > 0 ? width : 1;
    across_y /= width > 0 ? width : 1;
    down_x /= height > 0 ? height : 1;
    down_y /= height > 0 ? height : 1;
    for (int i = 0; i < 4; ++i) {
        const double a = i == 1 || i == 2 ? 1 : -1, b = i >= 2 ? 1 : -1;
        quad.x[i] = static_cast<float>(quad.x[i] + (a * across_x + b * down_x) * distance);
        quad.y[i] = static_cast<float>(quad.y[i] + (a * across_y + b * down_y) * distance);
    }
    return static_cast<float>(fmin(width, height) + 2 * distance);
}

__device__ __forceinline__ int rounded_point(double x, double y) {
    return pack(Point{round_half_away(x), round_half_away(y)});
}

// Clipper's offset of a quad with round joins (ClipperOffset::DoOffset and DoRound of Clipper 6), packed points
// clockwise as displayed: each corner's arc and its end. Returns how many; 0 where a corner is bent so little that
// Clipper takes another branch, or where there are more than MOST_GROWN_POINTS. Called by a whole warp, four lanes of
// which work on a corner each; `distance` is above zero.
__device__ int grown_points(const Quad& quad, double distance, int* points, int lane) {
    Point corner[4];
    for (int i = 0; i < 4; ++i)
        corner[i] = Point{static_cast<int>(truncf(quad.x[i])), static_cast<int>(truncf(quad.y[i]))};
    const bool reversed = cross(corner[0], corner[1], corner[2]) < 0;
    const int own = lane & 3;
    const Point here = corner[reversed ? 3 - own : own];
    const Point next = corner[reversed ? (6 - own) & 3 : (own + 1) & 3];
    // Unit normal of the edge that follows a corner, and of the one before.
    const double dx = next.x - here.x, dy = next.y - here.y;
    const double length = fmax(sqrt(dx * dx + dy * dy), 1.0);
    const double normal_x = dy / length, normal_y = -dx / length;
    const double before_x = __shfl_sync(WARP, normal_x, (lane + 3) & 3);
    const double before_y = __shfl_sync(WARP, normal_y, (lane + 3) & 3);
    const double pi = 3.14159265358979323846;
    const double tolerance = fmin(0.25, distance * 0.25);
    const double per_turn = fmin(pi / acos(1.0 - tolerance / distance), distance * pi);
    const double step_sin = sin(2 * pi / per_turn), step_cos = cos(2 * pi / per_turn);
    const double sine = before_x * normal_y - before_y * normal_x;
    const double cosine = before_x * normal_x + before_y * normal_y;
    if (!__all_sync(WARP, sine * distance >= 1.0)) return 0;
    const int steps = max(round_half_away(per_turn / (2 * pi) * atan2(fmin(sine, 1.0), cosine)), 1);
    int place = 0, total = 0;
    for (int i = 0; i < 4; ++i) {
        const int count = __shfl_sync(WARP, steps, i) + 1;
        if (i < own) place += count;
        total += count;
    }
    if (total > MOST_GROWN_POINTS) return 0;
    if (lane < 4) {
        double x = before_x, y = before_y;
        for (int step = 0; step < steps; ++step) {
            points[place + step] = rounded_point(here.x + x * distance, here.y + y * distance);
            const double turned = x * step_cos - step_sin * y;
            y = x * step_sin + y * step_cos;
            x = turned;
        }
        points[place + steps] = rounded_point(here.x + normal_x * distance, here.y + normal_y * distance);
    }
    __syncwarp();
    return total;
}
