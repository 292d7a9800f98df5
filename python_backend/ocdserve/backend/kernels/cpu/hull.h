// SPDX-License-Identifier: Apache-2.0
// Convex hulls by the monotone chains of their two sides, and the smallest rectangles around them.
#pragma once

#include "cpu.h"

#include "../shared/rectangle.cuh"

inline int64_t wide_cross(Point origin, Point a, Point b) {
    return static_cast<int64_t>(a.x - origin.x) * (b.y - origin.y) -
           static_cast<int64_t>(a.y - origin.y) * (b.x - origin.x);
}

// Andrew's monotone chain: the strictly convex chain of points that go downwards (side 1, their right hull) or upwards
// (side -1, their left hull), added one after the other.
class Chain {
public:
    Chain(Point* points, int side) : points_(points), side_(side) {}

    void add(Point point) {
        // In every row only the outermost point counts.
        if (count_ && point.y == points_[count_ - 1].y) {
            if (side_ * (point.x - points_[count_ - 1].x) <= 0) return;
            if (count_ > 1) --count_;
        }
        while (count_ > 1 && wide_cross(points_[count_ - 2], points_[count_ - 1], point) <= 0) --count_;
        points_[count_++] = point;
    }

    int count() const { return count_; }

private:
    Point* points_;
    int side_;
    int count_ = 0;
};

// Smallest rectangle around a strictly convex polygon, clockwise as displayed, by rotating calipers (Toussaint 1983),
// in OpenCV's arithmetic and with its choice in a tie: the smallest that the calipers reach last.
inline Rectangle smallest_rectangle(const Point* vertices, int count) {
    if (count <= 2) return rectangle_along<Double>(vertices[max(count - 1, 0)], vertices[0]);
    // The vertex that each side touches: lowest y, highest x, highest y, lowest x; the first of equal ones.
    int touched[4] = {0, 0, 0, 0};
    for (int i = 1; i < count; ++i) {
        if (vertices[i].y < vertices[touched[0]].y) touched[0] = i;
        if (vertices[i].x > vertices[touched[1]].x) touched[1] = i;
        if (vertices[i].y > vertices[touched[2]].y) touched[2] = i;
        if (vertices[i].x < vertices[touched[3]].x) touched[3] = i;
    }
    float edge_x[4], edge_y[4];
    const auto look_ahead = [&](int side) {
        const Point from = vertices[touched[side]];
        const Point to = vertices[touched[side] + 1 < count ? touched[side] + 1 : 0];
        const Point edge = turned(Point{to.x - from.x, to.y - from.y}, side);
        edge_x[side] = static_cast<float>(edge.x);
        edge_y[side] = static_cast<float>(edge.y);
    };
    for (int side = 0; side < 4; ++side) look_ahead(side);
    Extent best{3.402823466e+38f, 0, 0, 0, 0};
    Point best_left{0, 0}, best_low{0, 0};
    for (int turn = 0; turn < count; ++turn) {
        // The side that reaches its edge first; the first side in a tie.
        int main = 0;
        for (int side = 1; side < 4; ++side)
            if (edge_y[side] * edge_x[main] + -edge_x[side] * edge_y[main] < 0.0f) main = side;
        const float x = edge_x[main], y = edge_y[main];
        touched[main] = touched[main] + 1 < count ? touched[main] + 1 : 0;
        look_ahead(main);
        const Point low = vertices[touched[0]], left = vertices[touched[3]];
        const Extent extent = extent_of<Double>(x, y, low, vertices[touched[1]], vertices[touched[2]], left);
        if (extent.area <= best.area) {
            best = extent;
            best_left = left;
            best_low = low;
        }
    }
    return rectangle_at<Double>(best.a, best.b, best.width, best.height, best_left, best_low);
}
