// SPDX-License-Identifier: Apache-2.0
// A probability map to regions and the row extremes of their outlines.
//
// Regions are components of the text (8-connected) and holes (4-connected background that touches no border), labelled
// at once by union-find over runs of equal pixels (two-pass labelling: Rosenfeld and Pfaltz 1966; runs: He, Chao and
// Suzuki, IEEE TIP 2008). A region's root is its first run in raster order.
#pragma once

#include "array.h"
#include "bits.h"

#include "../shared/postprocess.cuh"

struct RunRegion {
    int first_y, first_run_x;
    int is_hole;
    int first_x, last_x, last_y;
    int row_base;  // row y of the region is entry row_base + y of the row table; else NO_ROWS
};

class Regions {
public:
    Array<Candidate> candidates;
    Array<Span> rows;
    int candidate_count = 0;

    // False if there is not enough memory.
    bool find(const unsigned char* map, ptrdiff_t pitch, const Image& image) {
        return trace(map, pitch, image) && list(image) && pick(image) && mark(image);
    }

private:
    // Where each run begins, row after row. A row begins with a run of background, empty where its first pixel is text,
    // colours alternate, and the map's width ends it. Run 0 represents everything outside of the map.
    Array<int> begins_;
    Array<int> parents_;    // of runs; later the region of each, 0 for what lies outside
    Array<int> row_starts_; // first run of each row, and the end
    Array<RunRegion> regions_;
    int region_count_ = 1;
    size_t row_count_ = 0;

    bool trace(const unsigned char* map, ptrdiff_t pitch, const Image& image) {
        const int height = image.height, width = image.width;
        const int words = (width + WORD - 1) / WORD;
        Array<uint64_t> lines;  // two for dilation
        const size_t most = static_cast<size_t>(width) + 2;
        if (!row_starts_.reserve(static_cast<size_t>(height) + 1) || !lines.reserve(2 * static_cast<size_t>(words)))
            return false;
        const uint64_t inside = width % WORD ? (uint64_t{1} << (width % WORD)) - 1 : ~uint64_t{0};
        uint64_t* line = lines.data();
        uint64_t* above = lines.data() + words;
        memset(above, 0, sizeof(uint64_t) * static_cast<size_t>(words));
        int used = 1;
        if (!begins_.reserve(4096) || !parents_.reserve(4096)) return false;
        begins_[0] = parents_[0] = 0;
        for (int y = 0; y < height; ++y) {
            if (!begins_.reserve(used + most) || !parents_.reserve(used + most)) return false;
            row_starts_[y] = used;
            int* end = begins_.data() + used;
            *end++ = 0;
            const unsigned char* bytes = map + y * pitch;
            uint64_t text_before = 0, wide_before = 0;  // highest bit: the pixel before the word
            for (int word = 0; word < words; ++word) {
                uint64_t text = bits_above(bytes + WORD * word, image.level, width - WORD * word);
                if (image.dilate) {
                    // Each pixel grows to the right and down.
                    const uint64_t wide = text | text << 1 | wide_before >> 63;
                    wide_before = text;
                    text = wide | above[word];
                    line[word] = wide;
                    if (word == words - 1) text &= inside;
                }
                for (uint64_t changes = text ^ (text << 1 | text_before >> 63); changes; changes &= changes - 1)
                    *end++ = WORD * word + __builtin_ctzll(changes);
                text_before = text;
            }
            uint64_t* const free_line = above;
            above = line;
            line = free_line;
            if (end[-1] != width) *end++ = width;
            const int count = static_cast<int>(end - begins_.data()) - used - 1;
            start_runs(used, count, y == 0 || y == height - 1);
            if (y > 0) join(row_starts_[y - 1], used, width);
            used += count + 1;
        }
        row_starts_[height] = used;
        return true;
    }

    // Each run begins as a region of its own; background at the border is outside.
    void start_runs(int first, int count, bool at_border) {
        int* parents = parents_.data() + first;
        for (int run = 0; run < count; ++run) parents[run] = first + run;
        parents[0] = 0;
        if (count % 2) parents[count - 1] = 0;
        for (int run = 0; at_border && run < count; run += 2) parents[run] = 0;
        parents[count] = 0;
    }

    int root(int run) {
        int* parents = parents_.data();
        while (parents[run] != run) {
            parents[run] = parents[parents[run]];
            run = parents[run];
        }
        return run;
    }

    void unite(int a, int b) {
        a = root(a);
        b = root(b);
        if (a < b)
            parents_[b] = a;
        else
            parents_[a] = b;
    }

    // Unite a row's runs with those of the row above.
    void join(int above, int here, int width) {
        const int* begins = begins_.data();
        int a = above, b = here;
        for (;;) {
            const int a_end = begins[a + 1], b_end = begins[b + 1];
            if (a_end < b_end) {
                ++a;
            } else if (b_end < a_end) {
                ++b;
            } else {
                if (a_end == width) return;
                // Text that meets at a corner.
                const bool a_is_text = (a - above) & 1, b_is_text = (b - here) & 1;
                if (a_is_text != b_is_text) unite(a + b_is_text, b + a_is_text);
                ++a;
                ++b;
            }
            if (((a - above) ^ (b - here)) & 1) continue;
            unite(a, b);
        }
    }

    // Number the regions and bound them.
    bool list(const Image& image) {
        int* labels = parents_.data();
        const int* begins = begins_.data();
        for (int y = 0; y < image.height; ++y) {
            const int first = row_starts_[y], end = row_starts_[y + 1] - 1;
            for (int run = first; run < end; ++run) {
                // Of runs before this one `labels` holds the region.
                if (labels[run] != run) {
                    const int id = labels[run] = labels[labels[run]];
                    if (id == 0) continue;
                    RunRegion& region = regions_[id];
                    region.first_x = min(region.first_x, begins[run]);
                    region.last_x = max(region.last_x, begins[run + 1] - 1);
                    region.last_y = y;
                    continue;
                }
                if (!regions_.reserve(static_cast<size_t>(region_count_) + 1)) return false;
                const int is_hole = !((run - first) & 1);
                const int first_x = begins[run], last_x = begins[run + 1] - 1;
                regions_[region_count_] = RunRegion{y, first_x, is_hole, first_x, last_x, y, NO_ROWS};
                labels[run] = region_count_++;
            }
        }
        return true;
    }

    // Regions that may hold a rectangle of the wanted size become candidates with rows of their own. A rectangle around
    // whole pixels whose bounding box is at most 2 wide cannot have two sides of 3 or more.
    bool pick(const Image& image) {
        for (int id = 1; id < region_count_; ++id) {
            RunRegion& region = regions_[id];
            const int extent = min(region.last_x - region.first_x, region.last_y - region.first_y) + 2 * region.is_hole;
            if (image.min_size >= 3.0f && extent <= 2) continue;
            if (!candidates.reserve(static_cast<size_t>(candidate_count) + 1)) return false;
            const int root = region.first_y * image.width + region.first_run_x + 1;
            const int first_row = region.first_y - region.is_hole;
            const int height = region.last_y + region.is_hole - first_row + 1;
            const int offset = static_cast<int>(row_count_);
            candidates[candidate_count++] = Candidate{root, region.is_hole, first_row, height, offset};
            region.row_base = offset - first_row;
            row_count_ += height;
        }
        if (!rows.reserve(row_count_)) return false;
        for (size_t row = 0; row < row_count_; ++row) rows[row] = Span{INT_MAX, INT_MIN};
        return true;
    }

    // First and last x of each row of the candidates' outlines. The outline of a hole is made of the pixels to its left
    // and right, above and below.
    bool mark(const Image& image) {
        const int* labels = parents_.data();
        const int* begins = begins_.data();
        for (int y = 0; candidate_count && y < image.height; ++y) {
            const int end = row_starts_[y + 1] - 1;
            for (int run = row_starts_[y]; run < end; ++run) {
                const int id = labels[run];
                if (id == 0 || regions_[id].row_base == NO_ROWS) continue;
                const int is_hole = regions_[id].is_hole;
                Span* row = rows.data() + (regions_[id].row_base + y);
                const int first = begins[run], last = begins[run + 1] - 1;
                widen(row[0], first - is_hole, last + is_hole);
                if (!is_hole) continue;
                widen(row[-1], first, last);
                widen(row[1], first, last);
            }
        }
        return true;
    }

    static void widen(Span& span, int first, int last) {
        span.first = min(span.first, first);
        span.last = max(span.last, last);
    }
};
