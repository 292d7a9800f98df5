// SPDX-License-Identifier: Apache-2.0
// Sorting of detections. Grid: x over candidates, z over images.

#include "postprocess.cuh"

constexpr int THREADS = 128;

// Sort the detections: best score first, ties in the order of `findContours`, from the end of the raster. A detection's
// place is the number of detections that come before it. Behind the counts of all images are their heads: the best
// `tables.heads` detections of each, copied to the host with the counts; all others are in `tails`.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    order_boxes(const Box* boxes, Row* tails, Counts* counts, Tables tables) {
    __shared__ double scores[THREADS];
    __shared__ int roots[THREADS];
    Counts& count = counts[blockIdx.z];
    if (is_void(count, tables)) return;
    boxes += static_cast<size_t>(blockIdx.z) * tables.candidates;
    Row* heads = reinterpret_cast<Row*>(counts + gridDim.z) + static_cast<size_t>(blockIdx.z) * tables.heads;
    tails += static_cast<size_t>(blockIdx.z) * tables.candidates;
    const int first = blockIdx.x * THREADS;
    if (first >= count.candidates) return;
    const int index = first + threadIdx.x;
    const bool wanted = index < count.candidates && boxes[index].state != REJECTED;
    const double score = wanted ? boxes[index].score : 0.0;
    const int root = wanted ? boxes[index].root : 0;
    int place = 0;
    for (int start = 0; start < count.candidates; start += THREADS) {
        const int other = start + threadIdx.x;
        const bool counts_too = other < count.candidates && boxes[other].state != REJECTED;
        __syncthreads();
        scores[threadIdx.x] = counts_too ? boxes[other].score : -1.0;
        roots[threadIdx.x] = counts_too ? boxes[other].root : 0;
        __syncthreads();
        for (int i = 0; i < THREADS; ++i) place += scores[i] > score || (scores[i] == score && roots[i] > root);
    }
    if (!wanted) return;
    atomicAdd(&count.accepted, 1);
    Row& row = place < tables.heads ? heads[place] : tails[place];
    for (int i = 0; i < 8; ++i) row.quad[i] = boxes[index].quad[i];
    row.score = static_cast<float>(score);
    row.root = root;
    row.state = boxes[index].state;
    row.unused = 0;
}
