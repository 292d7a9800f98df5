// SPDX-License-Identifier: Apache-2.0
// Growing of quads by a warp.
#pragma once

#include "growth.cuh"
#include "warp.cuh"

// Most points of a grown quad.
constexpr int MOST_GROWN_POINTS = 512;

// Range of the coordinates of packed points, with a margin for rounding.
constexpr float FARTHEST = 32000.0f;

// Grow a quad by its `unclip_distance`, as Clipper offsets with round joins (ClipperOffset::DoOffset and DoRound of
// Clipper 6), to packed points clockwise as displayed: each corner's arc and its end. Returns their number; 0 if a
// corner is so nearly straight that Clipper takes another branch, or if there are more than MOST_GROWN_POINTS. Called by
// a whole warp, four lanes of which work on a corner each.
__device__ __noinline__ int grow_in_double(const Quad& quad, double ratio, int* points, int lane) {
    const double distance = unclip_distance(quad, ratio);
    float farthest = 0;
    for (int i = 0; i < 4; ++i) farthest = fmaxf(farthest, fmaxf(fabsf(quad.x[i]), fabsf(quad.y[i])));
    if (!(distance > 0) || farthest + distance > FARTHEST) return 0;
    Point corners[4];
    clockwise_corners(quad, corners);
    const int own = lane & 3;
    const Point here = corners[own];
    const Vector after = normal_of(here, corners[(own + 1) & 3]);
    const Vector before{__shfl_sync(WARP, after.x, (lane + 3) & 3), __shfl_sync(WARP, after.y, (lane + 3) & 3)};
    const Arcs arcs(distance);
    if (!__all_sync(WARP, sine_of(before, after) * distance >= 1.0)) return 0;
    const int steps = arcs.steps(before, after);
    int place = 0, total = 0;
    for (int i = 0; i < 4; ++i) {
        const int count = __shfl_sync(WARP, steps, i) + 1;
        if (i < own) place += count;
        total += count;
    }
    if (total > MOST_GROWN_POINTS) return 0;
    const auto put = [&](int step, Point point) { points[place + step] = pack(point); };
    if (lane < 4) arcs.draw(here, before, after, steps, put);
    __syncwarp();
    return total;
}

// The same in single precision, with a bound of the error of each number that is compared or rounded
// (docs/decisions/0068). Many GPUs compute 64 times slower in double precision.
constexpr int UNDECIDED = -1;

// 2^-24, the largest relative error of an operation.
constexpr float ULP = 5.9604645e-8f;

// A number and the largest difference from what double precision computes.
struct Estimate {
    float value, error;
};

// The sum over the four lanes of a group.
__device__ __forceinline__ float sum_of_four(float value) {
    value += __shfl_xor_sync(WARP, value, 1);
    return value + __shfl_xor_sync(WARP, value, 2);
}

// `unclip_distance`, each lane with an edge.
__device__ __forceinline__ Estimate estimated_distance(const Quad& quad, float ratio, int own) {
    const int next = (own + 1) & 3;
    const float dx = quad.x[next] - quad.x[own], dy = quad.y[next] - quad.y[own];
    const float x = quad.x[own] - quad.x[0], y = quad.y[own] - quad.y[0];
    const float next_x = quad.x[next] - quad.x[0], next_y = quad.y[next] - quad.y[0];
    const float one = x * next_y, other = y * next_x;
    const float perimeter = sum_of_four(sqrtf(dx * dx + dy * dy));
    const float area = sum_of_four(one - other), products = sum_of_four(fabsf(one) + fabsf(other));
    const float distance = 0.5f * fabsf(area) * ratio / perimeter;
    return Estimate{distance, ULP * (9 * distance + 4 * products * ratio / perimeter)};
}

// Whether all numbers that far from a value round to the same whole number.
__device__ __forceinline__ bool is_decided(float value, float error) {
    return fabsf(value - rintf(value)) + error < 0.5f;
}

// Returns UNDECIDED if a comparison or a rounding could have another result in double precision, or if `distance` is
// outside the range that the bounds are proven for.
__device__ __forceinline__ int grow_in_single(const Quad& quad, float ratio, int* points, int lane) {
    const int own = lane & 3;
    const Estimate distance = estimated_distance(quad, ratio, own);
    const float farthest = fmaxf(fabsf(quad.x[own]), fabsf(quad.y[own]));
    // From 2 on, an arc's tolerance and not its length limits its steps.
    const bool is_simple = distance.value >= 2.01f && distance.error <= 1e-4f * distance.value &&
                           farthest + distance.value < FARTHEST - 1;
    if (!__all_sync(WARP, is_simple)) return UNDECIDED;
    Point corners[4];
    clockwise_corners(quad, corners);
    const Point here = corners[own], next = corners[(own + 1) & 3];
    const float dx = static_cast<float>(next.x - here.x), dy = static_cast<float>(next.y - here.y);
    const float length = sqrtf(dx * dx + dy * dy);
    const float after_x = dy / fmaxf(length, 1.0f), after_y = -dx / fmaxf(length, 1.0f);
    float x = __shfl_sync(WARP, after_x, (lane + 3) & 3), y = __shfl_sync(WARP, after_y, (lane + 3) & 3);
    const float sine = x * after_y - y * after_x, cosine = x * after_x + y * after_y;
    const float d = distance.value, error = distance.error + 10 * ULP * d;
    // Sine and cosine of a step: the double of the angle whose cosine is 1 - part.
    const float part = 0.25f / d, square = part * (2.0f - part);
    const float step_sin = 2.0f * sqrtf(square) * (1.0f - part), step_cos = 1.0f - 2.0f * square;
    const float per_step = atan2f(step_sin, step_cos);
    const float exact_steps = atan2f(fminf(sine, 1.0f), cosine) / per_step;
    const float steps_error = (32 * ULP + exact_steps * (distance.error / d + 12 * ULP)) / per_step;
    const int steps = max(static_cast<int>(rintf(exact_steps)), 1);
    const bool is_clear = sine * d - 1.0f > error + ULP * d && is_decided(exact_steps, steps_error) && steps <= 64;
    if (!__all_sync(WARP, is_clear)) return UNDECIDED;
    int place = 0, total = 0;
    for (int i = 0; i < 4; ++i) {
        const int count = __shfl_sync(WARP, steps, i) + 1;
        if (i < own) place += count;
        total += count;
    }
    bool is_sure = is_decided(after_x * d, error) && is_decided(after_y * d, error);
    const auto put = [&](int step, float across, float down) {
        const Point point{here.x + static_cast<int>(rintf(across * d)), here.y + static_cast<int>(rintf(down * d))};
        if (lane < 4) points[place + step] = pack(point);
    };
    for (int step = 0; step < steps; ++step) {
        const float so_far = (step + 1) * error;
        is_sure = is_sure && is_decided(x * d, so_far) && is_decided(y * d, so_far);
        put(step, x, y);
        const float turned_x = x * step_cos - step_sin * y;
        y = x * step_sin + y * step_cos;
        x = turned_x;
    }
    put(steps, after_x, after_y);
    return __all_sync(WARP, is_sure) ? total : UNDECIDED;
}

// Grow a quad; see `grow_in_double`. Called by a whole warp.
__device__ __forceinline__ int grow(const Quad& quad, double ratio, int* points, int lane) {
    const int count = grow_in_single(quad, static_cast<float>(ratio), points, lane);
    return count != UNDECIDED ? count : grow_in_double(quad, ratio, points, lane);
}
