// SPDX-License-Identifier: Apache-2.0
// What `Double` computes, in single precision where its rounding to float is certain; many GPUs compute 64 times slower
// in double precision. The bounds of the errors are proven in docs/decisions/0068.
#pragma once

#include "directions.cuh"

// An unevaluated sum of two floats.
struct Pair {
    float high, low;
};

__device__ __forceinline__ Pair product(float a, float b) {
    const float high = a * b;
    return Pair{high, fmaf(a, b, -high)};
}

// Knuth's sum, exact for all magnitudes.
__device__ __forceinline__ Pair sum(float a, float b) {
    const float high = a + b, rest = high - a;
    return Pair{high, (a - (high - rest)) + (b - rest)};
}

__device__ __forceinline__ Pair quotient(Pair a, Pair b) {
    const float high = a.high / b.high;
    return Pair{high, (fmaf(-high, b.high, a.high) + (a.low - high * b.low)) / b.high};
}

// Whether all numbers within `error` of a pair have the same float nearest to them, which `nearest` is then.
__device__ __forceinline__ bool rounds(Pair value, float error, float& nearest) {
    nearest = value.high + (value.low + error);
    return nearest == value.high + (value.low - error);
}

// x * x + y * y; its error is below 2^-46 of it where it is not near the least float.
__device__ __forceinline__ Pair squared_length(float x, float y) {
    const Pair xx = product(x, x), yy = product(y, y), total = sum(xx.high, yy.high);
    return Pair{total.high, total.low + (xx.low + yy.low)};
}

constexpr Pair PI = {0x1.921fb6p1f, -0x1.777a5cp-24f}, HALF_PI = {0x1.921fb6p0f, -0x1.777a5cp-25f};
constexpr Pair DEGREE = {0x1.1df46ap-6f, 0x1.294e9cp-33f}, PER_PI = {0x1.45f306p-2f, 0x1.b9391p-27f};

// atan(i / 32).
__constant__ const Pair ARC_TANGENTS[33] = {
    {0.0f, 0.0f}, {0x1.ffd55cp-6f, -0x1.15a276p-32f}, {0x1.ff55bcp-5f, -0x1.1a6042p-30f},
    {0x1.7ee182p-4f, 0x1.80bc44p-30f}, {0x1.fd5baap-4f, -0x1.54f424p-30f}, {0x1.3d6eeep-3f, 0x1.18cc4ep-28f},
    {0x1.7b97b4p-3f, 0x1.79cb6p-28f}, {0x1.b90d76p-3f, -0x1.adb3ecp-28f}, {0x1.f5b76p-3f, -0x1.b4dfc8p-29f},
    {0x1.18bf5ap-2f, 0x1.85f8bcp-29f}, {0x1.362774p-2f, -0x1.1f0286p-27f}, {0x1.530adap-2f, -0x1.ab8caep-28f},
    {0x1.6f6194p-2f, 0x1.e4defp-30f}, {0x1.8b24d4p-2f, -0x1.ad7936p-28f}, {0x1.a64eecp-2f, 0x1.e611fep-29f},
    {0x1.c0db4cp-2f, 0x1.29d93ep-27f}, {0x1.dac67p-2f, 0x1.586ed4p-28f}, {0x1.f40ddp-2f, 0x1.6a8282p-27f},
    {0x1.0657eap-1f, -0x1.6499e6p-26f}, {0x1.1255dap-1f, -0x1.010b56p-27f}, {0x1.1e00bap-1f, 0x1.7bdfd6p-26f},
    {0x1.2958e6p-1f, -0x1.b3dc74p-27f}, {0x1.345f02p-1f, -0x1.98e422p-28f}, {0x1.3f13fcp-1f, -0x1.d85a42p-27f},
    {0x1.4978fap-1f, 0x1.934f7p-28f}, {0x1.538f58p-1f, -0x1.1dbe78p-27f}, {0x1.5d5898p-1f, 0x1.c5a6c6p-27f},
    {0x1.66d664p-1f, -0x1.b707dep-27f}, {0x1.700a7cp-1f, 0x1.5e118cp-27f}, {0x1.78f6bcp-1f, -0x1.51675p-28f},
    {0x1.819d0cp-1f, -0x1.1d4eb6p-26f}, {0x1.89ff6p-1f, -0x1.501c1p-30f}, {0x1.921fb6p-1f, -0x1.777a5cp-26f}};

// sin(i * pi / 64).
__constant__ const Pair SINES[33] = {
    {0.0f, 0.0f}, {0x1.91f66p-5f, -0x1.de44fep-30f}, {0x1.917a6cp-4f, -0x1.eb25eap-31f},
    {0x1.2c8106p-3f, 0x1.d1cc28p-28f}, {0x1.8f8b84p-3f, -0x1.cb2cfap-30f}, {0x1.f19f98p-3f, -0x1.37a83ap-29f},
    {0x1.294062p-2f, 0x1.dab3ep-27f}, {0x1.58f9a8p-2f, -0x1.4a9c04p-27f}, {0x1.87de2ap-2f, 0x1.abaa58p-28f},
    {0x1.b5d1p-2f, 0x1.3c2b98p-27f}, {0x1.e2b5d4p-2f, -0x1.fe4272p-28f}, {0x1.07387ap-1f, -0x1.b74004p-27f},
    {0x1.1c73b4p-1f, -0x1.9465cep-27f}, {0x1.30ff8p-1f, -0x1.8f47e6p-28f}, {0x1.44cf32p-1f, 0x1.424776p-27f},
    {0x1.57d694p-1f, -0x1.6e626cp-26f}, {0x1.6a09e6p-1f, 0x1.9fcef4p-27f}, {0x1.7b5df2p-1f, 0x1.3557d8p-28f},
    {0x1.8bc806p-1f, 0x1.62a2e8p-26f}, {0x1.9b3e04p-1f, 0x1.fce1dp-27f}, {0x1.a9b662p-1f, 0x1.21d434p-26f},
    {0x1.b72834p-1f, 0x1.465b9p-27f}, {0x1.c38b3p-1f, -0x1.cfe84ap-26f}, {0x1.ced7bp-1f, -0x1.786712p-26f},
    {0x1.d906bcp-1f, 0x1.e651a8p-26f}, {0x1.e2121p-1f, 0x1.3da1bap-27f}, {0x1.e9f416p-1f, -0x1.273a44p-26f},
    {0x1.f0a7fp-1f, -0x1.1b73cap-27f}, {0x1.f6297cp-1f, 0x1.feeb96p-26f}, {0x1.fa7558p-1f, -0x1.eeb5d2p-30f},
    {0x1.fd88dap-1f, 0x1.e89292p-28f}, {0x1.ff621ep-1f, 0x1.bcb6bep-28f}, {0x1p0f, 0.0f}};

// angle of a vector within the first octant, 0 <= y <= x; its error is below 2^-33 of it.
__device__ __forceinline__ Pair octant_angle(float y, float x) {
    const int index = static_cast<int>(rintf(32.0f * (y / x)));
    const float tangent = index * 0.03125f;
    // The tangent of what is left after a turn by atan(tangent): below 1/64.
    const Pair across = product(tangent, x), along = product(tangent, y);
    const Pair down = sum(y, -across.high), length = sum(x, along.high);
    const Pair turned = sum(down.high, down.low - across.low);
    const Pair rest = quotient(turned, Pair{length.high, length.low + along.low});
    const float square = rest.high * rest.high;
    const float tail = rest.high * square * (-1.0f / 3.0f + square * (0.2f - square * (1.0f / 7.0f)));
    const Pair arc = ARC_TANGENTS[index], angle = sum(arc.high, rest.high);
    return sum(angle.high, angle.low + (arc.low + (rest.low + tail)));
}

// sin(SINES' angle of that index + rest); `cosine_less_one` and `sine` are those of the rest.
__device__ __forceinline__ Pair sine_of_sum(Pair from, Pair to, Pair cosine_less_one, Pair sine) {
    const Pair turned = product(to.high, sine.high), shrunk = product(from.high, cosine_less_one.high);
    const Pair first = sum(from.high, turned.high), second = sum(first.high, shrunk.high);
    const float low = turned.low + shrunk.low + from.low + (from.high * cosine_less_one.low + to.high * sine.low) +
                      (from.low * cosine_less_one.high + to.low * sine.high);
    return sum(second.high, first.low + second.low + low);
}

// Sine and cosine of at most 45 degrees, not of 0; the errors are below 2^-33 of them.
__device__ __forceinline__ void turned(float degrees, Pair& sine, Pair& cosine) {
    const float step = rintf(degrees * (16.0f / 45.0f)), rest = degrees - 2.8125f * step;
    const int index = abs(static_cast<int>(step));
    Pair from = SINES[index];
    const Pair to = SINES[32 - index];
    if (step < 0) from = Pair{-from.high, -from.low};
    Pair angle = product(rest, DEGREE.high);
    angle.low += rest * DEGREE.low;
    const Pair square = product(angle.high, angle.high);
    const float cube = angle.high * square.high, fourth = square.high * square.high;
    const Pair little{angle.high, angle.low + cube * (-1.0f / 6.0f + square.high * (1.0f / 120.0f))};
    const Pair less{-0.5f * square.high, fourth * (1.0f / 24.0f) - 0.5f * square.low - angle.high * angle.low};
    sine = sine_of_sum(from, to, less, little);
    cosine = sine_of_sum(to, Pair{-from.high, -from.low}, less, little);
}

// For vectors of numbers below 2^17: with much larger ones, intermediate results leave the range of floats.
struct Single {
    __device__ __forceinline__ static float length(float x, float y) {
        const Pair square = squared_length(x, y);
        const float root = sqrtf(square.high);
        const Pair value{root, (fmaf(-root, root, square.high) + square.low) / (2.0f * root)};
        float nearest;
        if (square.high > 1e-20f && rounds(value, 0x1p-43f * root, nearest)) return nearest;
        return x == 0 && y == 0 ? 0.0f : Double::length(x, y);
    }

    __device__ __forceinline__ static float inverse_length(float x, float y) {
        const Pair square = squared_length(x, y);
        const float inverse = 1.0f / sqrtf(square.high);
        const Pair shrunk = product(inverse, inverse);
        const float rest =
            fmaf(-square.high, shrunk.high, 1.0f) - (square.high * shrunk.low + square.low * shrunk.high);
        float nearest;
        const bool is_sure = rounds(Pair{inverse, 0.5f * inverse * rest}, 0x1p-42f * inverse, nearest);
        return is_sure && square.high >= 1.0f ? nearest : Double::inverse_length(x, y);
    }

    __device__ __noinline__ static float radians(float y, float x) {
        const float down = fabsf(y), across = fabsf(x), least = fminf(across, down), most = fmaxf(across, down);
        if (most > 1e-6f && (least > 1e-15f || least == 0)) {
            Pair angle = octant_angle(least, most);
            float error = 0x1p-33f * angle.high;
            const auto subtract_from = [&](Pair whole) {
                const Pair rest = sum(whole.high, -angle.high);
                angle = sum(rest.high, rest.low + (whole.low - angle.low));
                error += 0x1p-41f;
            };
            if (down > across) subtract_from(HALF_PI);
            if (x < 0) subtract_from(PI);
            float nearest;
            if (rounds(angle, error, nearest)) return copysignf(nearest, y);
        }
        return Double::radians(y, x);
    }

    __device__ __forceinline__ static float degrees(float radians) {
        const float turns = radians * 180;
        const Pair value = product(turns, PER_PI.high);
        float nearest;
        const bool is_sure = rounds(Pair{value.high, value.low + turns * PER_PI.low}, 0x1p-43f * fabsf(turns), nearest);
        return is_sure && fabsf(turns) > 1e-20f ? nearest : Double::degrees(radians);
    }

    __device__ __noinline__ static SineAndCosine sine_and_cosine(float degrees) {
        const float quarters = rintf(degrees * (1.0f / 90.0f)), in_quarter = degrees - 90.0f * quarters;
        const int quarter = static_cast<int>(quarters) & 3;
        float sine, cosine = 1.0f;
        bool is_sure = fabsf(degrees) < 181.0f;
        if (in_quarter == 0) {
            // Not quite zero: `Double`'s angle is less than the right angles by that.
            sine = quarters == 0 ? degrees : -quarters * 6.123233995736766e-17f;
        } else {
            Pair turned_sine, turned_cosine;
            turned(in_quarter, turned_sine, turned_cosine);
            is_sure = rounds(turned_sine, 0x1p-33f * fabsf(turned_sine.high) + 0x1p-49f, sine) && is_sure;
            is_sure = rounds(turned_cosine, 0x1p-33f * turned_cosine.high + 0x1p-49f, cosine) && is_sure;
        }
        if (!is_sure) return Double::sine_and_cosine(degrees);
        if (quarter & 1) {
            const float other = sine;
            sine = cosine;
            cosine = -other;
        }
        return quarter & 2 ? SineAndCosine{-sine, -cosine} : SineAndCosine{sine, cosine};
    }
};
