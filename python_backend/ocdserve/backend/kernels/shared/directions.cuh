// SPDX-License-Identifier: Apache-2.0
// Lengths and angles of vectors, and vectors of angles, as OpenCV 4.11 computes them: in double precision, rounded to
// float. Compiled for the CPU too (`ocdserve.backend.kernels.cpu`); GPUs have `Single` first, in single.cuh.
#pragma once

struct SineAndCosine {
    float sine, cosine;
};

struct Double {
    // Length of a vector.
    __device__ static float length(float x, float y) {
        return static_cast<float>(sqrt(static_cast<double>(x) * x + static_cast<double>(y) * y));
    }

    // 1 / length of a vector of whole numbers below 2^17.
    __device__ static float inverse_length(float x, float y) {
        const double dx = x, dy = y;
        return static_cast<float>(1.0 / sqrt(dx * dx + dy * dy));
    }

    // Angle of a vector, in radians.
    __device__ static float radians(float y, float x) {
        return static_cast<float>(atan2(static_cast<double>(y), static_cast<double>(x)));
    }

    __device__ static float degrees(float radians) {
        return static_cast<float>(radians * 180 / 3.1415926535897932384626433832795);
    }

    __device__ static SineAndCosine sine_and_cosine(float degrees) {
        const double angle = degrees * (3.14159265358979323846 / 180.0);
        return SineAndCosine{static_cast<float>(sin(angle)), static_cast<float>(cos(angle))};
    }
};
