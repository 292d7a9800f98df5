// SPDX-License-Identifier: Apache-2.0
// What the post-processing kernels share: the tables of one image, as `rows.py` and `postprocess.py` lay them out.
//
// Pixels of a map are numbered in raster order of the container, `y * width + x`. A map is binarised to words of 32
// pixels, the lowest bit leftmost; a segment is a run of equal pixels inside one word, its node is the number of its
// first pixel plus one. Node 0 represents everything outside of the map.
#pragma once

// Parameters of one image; `IMAGE` in rows.py.
struct Image {
    double box_thresh;
    double unclip_ratio;
    double scale_x, scale_y;            // source pixels per network pixel
    int height, width;                  // the image's own part of the container, top left
    int source_height, source_width;
    int level;                          // uint8 maps: text is above this
    float thresh;                       // float32 maps: text is above this
    float min_size, min_grown_size;     // shortest side of a rectangle, before and after growing
    int dilate;                         // by 2 x 2 pixels
    int box_wanted;                     // 0: leave this image out
    int analytic;                       // grow rectangles by their sides, not by Clipper's rules
};

// Counts of one image; if one exceeds its capacity, the image's results are invalid.
struct Counts {
    int regions;
    int candidates;
    int rows;
    int accepted;
};

// Foreground components (8-connected) and holes (4-connected background that touches no border).
struct Region {
    int root;                           // node of the first pixel in raster order
    int first_x, last_x;                // of the component's or the hole's own pixels
    int last_y;
    int row_base;                       // row y of the region is entry row_base + y of the row table; else NO_ROWS
};

// A region large enough for a rectangle. Its rows are those of the outline: of a hole, the pixels around it.
struct Candidate {
    int root;
    int is_hole;
    int first_row;                      // y
    int rows;
    int offset;                         // of the first row in the row table
};

// Pixels of a row, ends included.
struct Span {
    int first, last;
};

// A detection before sorting.
struct Box {
    double score;
    int root;
    int state;                          // of Verdict
    float quad[8];
};

// A detection; `ROW` in rows.py.
struct Row {
    float quad[8];
    float score;
    int root;
    int state;
    int unused;
};

enum Verdict { REJECTED = 0, ACCEPTED = 1, GROW_ON_HOST = 2 };

// Sizes common to all images of a launch.
struct Tables {
    int height, width;                  // container
    int words;                          // 32-pixel words of a row
    int regions, candidates, rows;      // capacities
    int heads;                          // detections of an image that are copied to the host with the counts
    int chain;                          // points of one side of an outline
    int images;                         // of the batch
};

constexpr int INT_MAX = 2147483647;
constexpr int INT_MIN = -INT_MAX - 1;
constexpr int NO_ROWS = INT_MIN;

// Whether a table was too small: the host then computes the image.
__device__ __forceinline__ bool is_void(const Counts& counts, const Tables& tables) {
    return counts.regions > tables.regions || counts.candidates > tables.candidates || counts.rows > tables.rows;
}

__device__ __forceinline__ int row_of(int node, int width) { return (node - 1) / width; }
__device__ __forceinline__ int column_of(int node, int width) { return (node - 1) % width; }
