// What both kinds of attention over the pool share: the running softmax, plain and, of 16 queries, by tensor cores
// (bf16, heads of at most 64 · SETS numbers).
//
// Scores are scaled for powers of two. After: Milakov and Gimelshein 2018 (arXiv 1805.02867), Dao 2023 (arXiv
// 2307.08691).
#pragma once

#include "pages.cuh"
#include "vector.cuh"

using bf16 = __nv_bfloat16;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float NOTHING = -INFINITY;

// The factor of a correction from one maximum to a larger one; none of them may be there yet.
__device__ __forceinline__ float correction(float from, float to) { return from == NOTHING ? 0.0f : exp2f(from - to); }

// Queries, 16 at a time, as the rows of a product: lane (g, t) holds of rows g and g + 8 the numbers 8t to 8t + 7 of
// each 32.
template <int SETS> struct Queries {
    uint4 low[2 * SETS], high[2 * SETS];

    __device__ __forceinline__ void load(const bf16 *first, const bf16 *second, unsigned head_dim) {
        unsigned part = threadIdx.x % 4 * 8;
        for (int s = 0; s < 2 * SETS; s++) {
            bool inside = 32 * s + part < head_dim;
            low[s] = inside ? *reinterpret_cast<const uint4 *>(first + 32 * s + part) : make_uint4(0, 0, 0, 0);
            high[s] = inside ? *reinterpret_cast<const uint4 *>(second + 32 * s + part) : make_uint4(0, 0, 0, 0);
        }
    }

    // Adds the products with 8 keys to scores [16, 8]: `key` holds of key g the numbers 8t to 8t + 7 of the 32 at `s`.
    __device__ __forceinline__ void multiply(int s, uint4 key, float (&scores)[4]) const {
        mma(scores, {low[s].x, high[s].x, low[s].y, high[s].y}, {key.x, key.y});
        mma(scores, {low[s].z, high[s].z, low[s].w, high[s].w}, {key.z, key.w});
    }
};

// Words of the lower and of the upper halves of two.
__device__ __forceinline__ uint32_t lower(uint32_t a, uint32_t b) { return (a & 0xffffu) | (b << 16); }
__device__ __forceinline__ uint32_t upper(uint32_t a, uint32_t b) { return (a >> 16) | (b & 0xffff0000u); }

// The running softmax of 16 queries and the mixed values [16, 64 · SETS] of a warp: tile j of set s has in column n the
// number 64s + 8n + j, so that lane (g, t) holds of row g the numbers 64s + 16t to 64s + 16t + 15.
template <int SETS> struct Mixture {
    float most[2] = {NOTHING, NOTHING};
    // Of the lane's own columns; `finish` adds up.
    float total[2] = {0, 0};
    float mixed[8 * SETS][4] = {};

    // Turns COUNT tiles of scores of 16 queries and 8 keys into shares, and corrects what was mixed before.
    template <int COUNT> __device__ __forceinline__ void take(float (&scores)[COUNT][4]) {
        for (int half = 0; half < 2; half++) {
            float own = most[half];
            for (int i = 0; i < COUNT; i++) own = fmaxf(own, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
            own = fmaxf(own, __shfl_xor_sync(ALL, own, 1));
            own = fmaxf(own, __shfl_xor_sync(ALL, own, 2));
            float down = correction(most[half], own), zero = own == NOTHING ? 0.0f : own;
            most[half] = own;
            total[half] *= down;
            for (int i = 0; i < COUNT; i++)
                for (int j = 2 * half; j < 2 * half + 2; j++) total[half] += scores[i][j] = exp2f(scores[i][j] - zero);
            for (int j = 0; j < 8 * SETS; j++) mixed[j][2 * half] *= down, mixed[j][2 * half + 1] *= down;
        }
    }

    // Mixes a set of the values of 16 keys, of which lane (g, t) holds four with the numbers 8g to 8g + 7: those of
    // columns 2t and 2t + 1 of the first and of the second tile of shares.
    __device__ __forceinline__ void mix(
        int set, const float (&first)[4], const float (&second)[4], const uint4 (&values)[4]) {
        uint32_t shares[4] = {
            pack(first[0], first[1]), pack(first[2], first[3]), pack(second[0], second[1]), pack(second[2], second[3])};
        auto both = [&](int word, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
            mma(mixed[8 * set + 2 * word], shares, {lower(a, b), lower(c, d)});
            mma(mixed[8 * set + 2 * word + 1], shares, {upper(a, b), upper(c, d)});
        };
        both(0, values[0].x, values[1].x, values[2].x, values[3].x);
        both(1, values[0].y, values[1].y, values[2].y, values[3].y);
        both(2, values[0].z, values[1].z, values[2].z, values[3].z);
        both(3, values[0].w, values[1].w, values[2].w, values[3].w);
    }

    __device__ __forceinline__ void finish() {
        for (int half = 0; half < 2; half++) {
            total[half] += __shfl_xor_sync(ALL, total[half], 1);
            total[half] += __shfl_xor_sync(ALL, total[half], 2);
        }
    }

    // The numbers 64 · set + 16t + 8 · second to 7 more of row g or, upper, of row g + 8.
    __device__ __forceinline__ Eight eight(int set, int upper, int second) const {
        Eight own;
        for (int j = 0; j < 8; j++) own.at[j] = mixed[8 * set + j][2 * upper + second];
        return own;
    }
};

// The same of one query, plain: lane l of a warp holds the numbers l + 32i of a head, PER of them.
template <int PER> struct PlainMixture {
    float most = NOTHING, total = 0;
    float mixed[PER] = {};

    template <typename T> __device__ __forceinline__ void load(const T *from, unsigned head_dim, float (&to)[PER]) {
        for (int i = 0; i < PER; i++) {
            unsigned at = threadIdx.x % WARP + WARP * i;
            to[i] = at < head_dim ? to_float(from[at]) : 0.0f;
        }
    }

    // Takes the keys and values from `begin` to before `end` of a page.
    template <typename T>
    __device__ __forceinline__ void take(
        const float (&query)[PER], const T *keys, const T *values, unsigned begin, unsigned end, unsigned head_dim) {
        for (unsigned at = begin; at < end; at++) {
            float key[PER], value[PER], product = 0;
            load(keys + size_t(at) * head_dim, head_dim, key);
            load(values + size_t(at) * head_dim, head_dim, value);
            for (int i = 0; i < PER; i++) product += query[i] * key[i];
            float score = warp_sum(product), larger = fmaxf(most, score);
            float down = correction(most, larger), share = exp2f(score - larger);
            most = larger;
            total = total * down + share;
            for (int i = 0; i < PER; i++) mixed[i] = mixed[i] * down + share * value[i];
        }
    }
};
