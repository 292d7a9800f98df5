// SPDX-License-Identifier: Apache-2.0
// Geometry of one candidate: convex hull, smallest rectangle, filled rows and Clipper's offset.
//
// Each function gives what OpenCV 4.11 or Clipper 6 gives (`ocdserve.backend.geometry` on the CPU), so the types and the
// order of operations matter: float where they use float, no fused multiply-add. x to the right, y downwards.
#pragma once

#include "postprocess.cuh"

// Vertices of one side of a convex hull. The convex polygons with the most vertices on an n x n grid have about
// 3.5 n^(2/3) of them (Acketa and Zunic 1995): 900 for n = 4096, both sides together.
constexpr int CHAIN = 512;

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

// One side of a convex hull under construction, Andrew's monotone chain; points come row by row.
struct Chain {
    int* points;  // CHAIN packed points
    int count;
    int side;     // 1: right, downwards; -1: left, upwards
    bool overflow;

    // In every row only the outermost point counts.
    __device__ void add(Point point) {
        const Point top = unpack(points[count - 1]);
        if (point.y == top.y) {
            if (side * (point.x - top.x) <= 0) return;
            if (count > 1) --count;
        }
        while (count > 1 && cross(unpack(points[count - 2]), unpack(points[count - 1]), point) <= 0) --count;
        if (count < CHAIN)
            points[count++] = pack(point);
        else
            overflow = true;
    }
};

// A strictly convex polygon, clockwise as displayed, from its topmost, there leftmost point. The right chain ends
// where the left begins and the other way round.
struct Hull {
    const int* right;
    const int* left;
    int right_count, left_count;

    __device__ int count() const { return right_count + left_count - 2; }
    __device__ Point at(int index) const {
        return unpack(index < right_count - 1 ? right[index] : left[index - (right_count - 1)]);
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

// Smallest rectangle around a hull by rotating calipers (Toussaint 1983), in OpenCV's arithmetic and with its choice
// among equals: edges are visited from vertex `start`, and the last of the smallest wins.
__device__ Rectangle smallest_rectangle(const Hull& hull, int start) {
    const int count = hull.count();
    Rectangle found{};
    if (count <= 2) {
        // From the right end to the left one.
        Point a = hull.at(max(count - 1, 0)), b = hull.at(0);
        if (b.x > a.x) {
            const Point right = b;
            b = a;
            a = right;
        }
        const float dx = static_cast<float>(b.x - a.x), dy = static_cast<float>(b.y - a.y);
        found = rectangle_of(static_cast<float>(a.x), static_cast<float>(a.y), dx, dy, 0.0f, 0.0f);
    } else {
        const auto vertex = [&](int index) { return hull.at(index + start < count ? index + start : index + start - count); };
        const auto edge = [&](int index) {
            const Point a = vertex(index), b = vertex(index + 1 < count ? index + 1 : 0);
            return Point{b.x - a.x, b.y - a.y};
        };
        // Vertices that the four sides touch: lowest y, highest x, highest y, lowest x; the first of equals.
        int touched[4] = {0, 0, 0, 0};
        for (int i = 1; i < count; ++i) {
            const Point point = vertex(i);
            if (point.y < vertex(touched[0]).y) touched[0] = i;
            if (point.x > vertex(touched[1]).x) touched[1] = i;
            if (point.y > vertex(touched[2]).y) touched[2] = i;
            if (point.x < vertex(touched[3]).x) touched[3] = i;
        }
        float smallest = 3.402823466e+38f;
        float best_a = 0, best_b = 0, best_width = 0, best_height = 0;
        Point best_left{}, best_low{};
        for (int turn = 0; turn < count; ++turn) {
            // Turned to the first side, the next edge of which side turns the least?
            int side = 0;
            float least_x = 0, least_y = 0;
            for (int i = 0; i < 4; ++i) {
                const Point next = edge(touched[i]);
                const float x = static_cast<float>(i == 0 ? next.x : i == 1 ? next.y : i == 2 ? -next.x : -next.y);
                const float y = static_cast<float>(i == 0 ? next.y : i == 1 ? -next.x : i == 2 ? -next.y : next.x);
                if (i == 0 || y * least_x + -x * least_y < 0.0f) {
                    side = i;
                    least_x = x;
                    least_y = y;
                }
            }
            const Point lead = edge(touched[side]);
            const double dx = lead.x, dy = lead.y;
            const float inverse = static_cast<float>(1.0 / sqrt(dx * dx + dy * dy));
            const float a = least_x * inverse, b = least_y * inverse;
            touched[side] = touched[side] + 1 < count ? touched[side] + 1 : 0;
            const Point low = vertex(touched[0]), right = vertex(touched[1]);
            const Point high = vertex(touched[2]), left = vertex(touched[3]);
            const float width = static_cast<float>(right.x - left.x) * a + static_cast<float>(right.y - left.y) * b;
            const float height = -static_cast<float>(high.x - low.x) * b + static_cast<float>(high.y - low.y) * a;
            const float area = width * height;
            if (area <= smallest) {
                smallest = area;
                best_a = a;
                best_b = b;
                best_width = width;
                best_height = height;
                best_left = left;
                best_low = low;
            }
        }
        // Where the sides through the leftmost and the lowest point meet.
        const float a1 = best_a, b1 = best_b, a2 = -best_b, b2 = best_a;
        const float c1 = a1 * static_cast<float>(best_left.x) + static_cast<float>(best_left.y) * b1;
        const float c2 = a2 * static_cast<float>(best_low.x) + static_cast<float>(best_low.y) * b2;
        const float inverse = 1.0f / (a1 * b2 - a2 * b1);
        found = rectangle_of((c1 * b2 - c2 * b1) * inverse, (a1 * c2 - a2 * c1) * inverse, a1 * best_width,
                             b1 * best_width, a2 * best_height, b2 * best_height);
    }
    found.angle = static_cast<float>(found.angle * 180 / 3.1415926535897932384626433832795);
    return found;
}

// Corners as `cv2.boxPoints` gives them, ordered clockwise from the top left: of the two leftmost corners the upper is
// the top left one, of the two rightmost the upper the top right one.
__device__ Quad ordered_corners(const Rectangle& rectangle) {
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
        for (int i = 0; i < 2; ++i) {
            if (!(sides[i] & 12)) continue;
            const long long edge = sides[i] < 8 ? 0 : last.y;
            x[i] += static_cast<long long>(static_cast<double>(edge - y[i]) * (x[1] - x[0]) / (y[1] - y[0]));
            y[i] = edge;
            sides[i] = beyond(x[i], 0, Point{last.x, 0});
        }
        if ((sides[0] & sides[1]) == 0 && (sides[0] | sides[1]) != 0) {
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
    for (int i = 0; i < 4; ++i) {
        const int next = (i + 1) & 3;
        const double dx = x[next] - x[i], dy = y[next] - y[i];
        area += x[i] * y[next] - y[i] * x[next];
        perimeter += sqrt(dx * dx + dy * dy);
    }
    return perimeter > 0 ? fabs(area) / 2.0 * ratio / perimeter : 0.0;
}

// Clipper's offset of a quad with round joins (ClipperOffset::DoOffset and DoRound of Clipper 6).
struct Offset {
    Point corner[4];           // cut to whole pixels, clockwise as displayed
    double normal_x[4], normal_y[4];  // unit normal of the edge that follows each corner
    double distance;
    double step_sin, step_cos;
    int steps[4];              // points of each corner's arc, its end not counted
    bool clear;                // whether every corner is bent enough for this branch of Clipper

    __device__ void prepare(const Quad& quad, double by) {
        distance = by;
        for (int i = 0; i < 4; ++i) {
            corner[i].x = static_cast<int>(truncf(quad.x[i]));
            corner[i].y = static_cast<int>(truncf(quad.y[i]));
        }
        if (cross(corner[0], corner[1], corner[2]) < 0) {
            const Point first = corner[0], second = corner[1];
            corner[0] = corner[3];
            corner[1] = corner[2];
            corner[2] = second;
            corner[3] = first;
        }
        for (int i = 0; i < 4; ++i) {
            const Point next = corner[(i + 1) & 3];
            const double dx = next.x - corner[i].x, dy = next.y - corner[i].y;
            const double length = fmax(sqrt(dx * dx + dy * dy), 1.0);
            normal_x[i] = dy / length;
            normal_y[i] = -dx / length;
        }
        const double tolerance = fmin(0.25, distance * 0.25);
        const double pi = 3.14159265358979323846;
        const double per_turn = fmin(pi / acos(1.0 - tolerance / distance), distance * pi);
        step_sin = sin(2 * pi / per_turn);
        step_cos = cos(2 * pi / per_turn);
        clear = true;
        for (int i = 0; i < 4; ++i) {
            const int before = (i + 3) & 3;
            const double sine = normal_x[before] * normal_y[i] - normal_y[before] * normal_x[i];
            clear = clear && sine * distance >= 1.0;
            const double cosine = normal_x[before] * normal_x[i] + normal_y[before] * normal_y[i];
            steps[i] = max(round_half_away(per_turn / (2 * pi) * atan2(fmin(sine, 1.0), cosine)), 1);
        }
    }

    // All points, packed, each corner's arc and its end; returns how many. The caller has room for `point_count()`.
    __device__ int point_count() const { return steps[0] + steps[1] + steps[2] + steps[3] + 4; }
    __device__ void write(int* points) const {
        for (int i = 0; i < 4; ++i) {
            const int before = (i + 3) & 3;
            double x = normal_x[before], y = normal_y[before];
            for (int step = 0; step < steps[i]; ++step) {
                *points++ = rounded(corner[i].x + x * distance, corner[i].y + y * distance);
                const double turned = x * step_cos - step_sin * y;
                y = x * step_sin + y * step_cos;
                x = turned;
            }
            *points++ = rounded(corner[i].x + normal_x[i] * distance, corner[i].y + normal_y[i] * distance);
        }
    }
    __device__ static int rounded(double x, double y) { return pack(Point{round_half_away(x), round_half_away(y)}); }
};
