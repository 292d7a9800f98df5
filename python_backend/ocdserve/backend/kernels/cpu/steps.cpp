// SPDX-License-Identifier: Apache-2.0
// The best class of each time step of a recogniser; `ocdserve.backend.stages.ctc` has the definition.
//
// A line has megabytes of probabilities, most of which the processor's nearest caches do not hold: little is read.

#include "cpu.h"

namespace {

// A larger probability is the largest of its step, even where rounding makes all of them add up to a little more than 1.
constexpr float kCertain = 0.51f;
// Classes whose largest probability is found together, several by one instruction. PaddleOCR's first are ASCII.
constexpr int kBlock = 256;

// An integer in the order of the numbers: of floats, compilers find no maximum by SIMD instructions.
inline int32_t ordered(float value) {
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

// Of equals the first.
int largest(const float* scores, int classes) {
    int32_t most = ordered(scores[0]);
    int first = 0;
    for (int begin = 0; begin < classes && !(scores[first] > kCertain); begin += kBlock) {
        const int end = min(begin + kBlock, classes);
        int32_t found = most;
        for (int i = begin; i < end; ++i) found = max(found, ordered(scores[i]));
        if (found == most) continue;
        most = found;
        for (first = begin; ordered(scores[first]) != most;) ++first;
    }
    return first;
}

}  // namespace

// `scores` are (steps, classes) probabilities; `found` gets the best classes (steps,) and then their probabilities, as
// bits. `space` is -1 without a class for spaces that take the place of blanks above `threshold`.
EXPORTED void ocdserve_best_steps(const float* scores, int steps, int classes, int blank, int space, float threshold,
                                  int* found) {
    for (int step = 0; step < steps; ++step, scores += classes) {
        int best = scores[blank] > kCertain ? blank : largest(scores, classes);
        if (best == blank && space >= 0 && scores[space] > threshold) best = space;
        found[step] = best;
        memcpy(found + steps + step, scores + best, sizeof *scores);
    }
}
