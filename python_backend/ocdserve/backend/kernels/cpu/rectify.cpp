// SPDX-License-Identifier: Apache-2.0
// Cutting text lines out of an image; `ocdserve.results.reading.lines` has the definition.

#include "cpu.h"

#include "../shared/rectify.cuh"

namespace {

template <bool kReduced>
void rectify(const Line& line, unsigned char* pixels) {
    for (int y = 0; y < line.height; ++y)
        for (int x = 0; x < line.width; ++x, pixels += kLineChannels) line_pixel<kReduced>(line, x, y, pixels);
}

}  // namespace

// Write a line's pixels, uint8 (height, width, 3) RGB.
EXPORTED void ocdserve_rectify(const Line* line, unsigned char* pixels) {
    if (line->reduction > 1)
        rectify<true>(*line, pixels);
    else
        rectify<false>(*line, pixels);
}
