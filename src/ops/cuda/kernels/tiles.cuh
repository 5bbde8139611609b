// Sums of products of up to 16 rows with rows of bf16 matrices, over a part of the input, by tensor cores.
//
// Made for matrices that are read once: many loads of 16 bytes are under way at the same time. Knows nothing of where
// sums go.
#pragma once

#include "vector.cuh"

// 16 rows of x, of which 8 or all are there (TALL), and 8 · TILES rows of matrices, of which MOST steps are loaded at
// once and, ONCE, for nobody else. A step has 32 numbers, over which two products sum; which is which of the 32 is
// free, so each lane takes 8 that lie together: `part` is 8 · (lane % 4). With g = lane / 4 `low` and `high` are the
// rows g and g + 8 of x, matrix[j] is row g of tile j, all from `part` on.
template <int TILES, bool TALL, bool ONCE, int MOST> struct Products {
    const __nv_bfloat16 *low, *high, *matrix[TILES];
    // Two sums for each tile, so that one product does not wait for the one before.
    float sums[TILES][2][4];

    // Adds steps from `begin` to before `end` of an input.
    __device__ __forceinline__ void add(unsigned begin, unsigned end, unsigned input, unsigned part) {
        unsigned step = begin, whole = min(end, input / 32);
        for (; step + MOST <= whole; step += MOST) add_whole<MOST>(step);
        if (MOST > 4 && step + 4 <= whole) add_whole<4>(step), step += 4;
        if (step + 2 <= whole) add_whole<2>(step), step += 2;
        for (; step < end; step++) {
            bool inside = 32 * step + part < input;
            uint4 own[TILES];
            for (int j = 0; j < TILES; j++) own[j] = inside ? load(matrix[j] + 32 * step) : make_uint4(0, 0, 0, 0);
            uint4 a = inside ? load_often(low + 32 * step) : make_uint4(0, 0, 0, 0);
            multiply(a, inside && TALL ? load_often(high + 32 * step) : make_uint4(0, 0, 0, 0), own);
        }
    }

    // Returns the sum in row g + i / 2 · 8 and column 8j + 2 · (lane % 4) + i % 2.
    __device__ __forceinline__ float sum(int j, int i) const { return sums[j][0][i] + sums[j][1][i]; }

  private:
    static __device__ __forceinline__ uint4 load_often(const __nv_bfloat16 *from) {
        return *reinterpret_cast<const uint4 *>(from);
    }
    static __device__ __forceinline__ uint4 load(const __nv_bfloat16 *from) {
        return ONCE ? load_once(from) : load_often(from);
    }

    template <int COUNT> __device__ __forceinline__ void add_whole(unsigned step) {
        uint4 own[COUNT][TILES];
#pragma unroll
        for (int u = 0; u < COUNT; u++)
#pragma unroll
            for (int j = 0; j < TILES; j++) own[u][j] = load(matrix[j] + 32 * step + 32 * u);
#pragma unroll
        for (int u = 0; u < COUNT; u++) {
            uint4 a = load_often(low + 32 * step + 32 * u);
            multiply(a, TALL ? load_often(high + 32 * step + 32 * u) : make_uint4(0, 0, 0, 0), own[u]);
        }
    }

    __device__ __forceinline__ void multiply(uint4 a, uint4 b, const uint4 (&own)[TILES]) {
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            mma(sums[j][0], {a.x, b.x, a.y, b.y}, {own[j].x, own[j].y});
            mma(sums[j][1], {a.z, b.z, a.w, b.w}, {own[j].z, own[j].w});
        }
    }
};
