// Attention of whole sequences packed behind each other, and its gradients: nothing of size tokens² is kept.
//
// Queries, results and their gradients are [tokens, heads, D], keys and values [tokens, kv_heads, D]; sequence i has the
// tokens starts[i] to starts[i + 1]. A token sees itself and up to window - 1 tokens before it; with a window of 0 all of
// its sequence. log_sums and deltas are f32 [heads, tokens]. A block has four warps, each with 16 of its 64 rows; sums are f32 in a fixed order, so results
// are the same every time.
// After: Dao 2023 (arXiv 2307.08691).
#pragma once

#include "warp_tiles.cuh"

constexpr int ROWS = 64;
constexpr int THREADS = 128;
// Keys or queries that a step takes. There are two tiles of each: one is filled while the other is worked on.
constexpr int SEEN = 32;

// What all kernels know of the sequences.
struct Shape {
    const unsigned *starts;
    unsigned tokens, heads, kv_heads, window;
    float scale;
};

// A sequence: its first token and how many it has.
struct Span {
    unsigned start, length;
};

__device__ __forceinline__ Span span_of(const Shape &shape) {
    unsigned start = shape.starts[blockIdx.z];
    return {start, shape.starts[blockIdx.z + 1] - start};
}

// Which keys the queries of a sequence see, all counted from its beginning.
struct Sight {
    unsigned length, window;

    __device__ __forceinline__ bool sees(unsigned query, unsigned key) const {
        if (window == 0) return key < length;
        return key <= query && query - key < window;
    }

    // Whether every query of a run sees every key of another one.
    __device__ __forceinline__ bool all_see(unsigned query, unsigned queries, unsigned key, unsigned keys) const {
        if (window == 0) return key + keys <= length;
        return key + keys <= query + 1 && query + queries - key <= window;
    }

    // The first key that a query sees, a multiple of SEEN.
    __device__ __forceinline__ unsigned first_key(unsigned query) const {
        return window == 0 || query < window ? 0 : (query - window + 1) / SEEN * SEEN;
    }

    // Behind the last key that the queries of a tile see.
    __device__ __forceinline__ unsigned last_key(unsigned query) const {
        return window == 0 ? length : min(query + ROWS, length);
    }

    // The first query that sees a key of a tile, and behind the last one.
    __device__ __forceinline__ unsigned first_query(unsigned key) const { return window == 0 ? 0 : key; }
    __device__ __forceinline__ unsigned last_query(unsigned key) const {
        bool bounded = window > 0 && length - key > ROWS && length - key - ROWS >= window;
        return bounded ? key + ROWS + window - 1 : length;
    }
};

// out = softmax(q · kᵀ · scale) · v, and log_sums the logarithms of what shares were divided by.
// Blocks: [row tiles of the longest sequence, heads, sequences]; the last tiles, which see most, begin first.
template <typename T, int D>
__device__ __forceinline__ void attend(
    const T *q, const T *k, const T *v, const Shape shape, T *out, float *log_sums) {
    DYNAMIC_SHARED(T, queries);
    constexpr int TILE = SEEN * STRIDE<T, D>;
    T *keys = queries + ROWS * STRIDE<T, D>, *values = keys + 2 * TILE;
    Span span = span_of(shape);
    unsigned first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    if (first >= span.length) return;
    const Sight sight{span.length, shape.window};
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned own = threadIdx.x / WARP * 16;
    size_t step = size_t(shape.heads) * D, kv_step = size_t(shape.kv_heads) * D;
    size_t at = span.start * step + head * D;
    size_t kv_at = span.start * kv_step + head / (shape.heads / shape.kv_heads) * D;

    float mixed[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    auto fetch = [&](unsigned key) {
        unsigned tile = key / SEEN % 2 * TILE;
        load<T, D, SEEN>(keys + tile, k + kv_at, key, span.length, kv_step);
        load<T, D, SEEN>(values + tile, v + kv_at, key, span.length, kv_step);
    };
    unsigned begin = sight.first_key(first), end = sight.last_key(first);
    load<T, D, ROWS>(queries, q + at, first, span.length, step);
    fetch(begin);
    for (unsigned key = begin; key < end; key += SEEN) {
        unsigned tile = key / SEEN % 2 * TILE;
        arrived();
        __syncthreads();
        if (key + SEEN < end) fetch(key + SEEN);
        float shares[SEEN / 8][4];
        scores<D, SEEN>(shares, queries + own * STRIDE<T, D>, keys + tile);
        bool all = sight.all_see(first, ROWS, key, SEEN);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            unsigned query = first + own + g + 8 * row;
            float highest = top[row];
#pragma unroll
            for (int j = 0; j < SEEN / 8; j++)
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    float &score = shares[j][2 * row + side];
                    bool seen = all || sight.sees(query, key + 8 * j + 2 * t + side);
                    score = seen ? score * shape.scale : -INFINITY;
                    highest = fmaxf(highest, score);
                }
            highest = fmaxf(highest, __shfl_xor_sync(ALL, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(ALL, highest, 2));
            // A row that has seen nothing so far stays at zero.
            float base = highest == -INFINITY ? 0.0f : highest;
            float keep = power<T>(top[row] - base), part = 0;
#pragma unroll
            for (int j = 0; j < SEEN / 8; j++)
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    float &share = shares[j][2 * row + side];
                    share = power<T>(share - base);
                    part += share;
                }
            top[row] = highest;
            sum[row] = sum[row] * keep + part;
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                mixed[j][2 * row] *= keep;
                mixed[j][2 * row + 1] *= keep;
            }
        }
        mix<D, SEEN>(mixed, shares, values + tile);
    }
    float factor[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        sum[row] += __shfl_xor_sync(ALL, sum[row], 1);
        sum[row] += __shfl_xor_sync(ALL, sum[row], 2);
        factor[row] = 1.0f / sum[row];
        unsigned query = first + own + g + 8 * row;
        if (t == 0 && query < span.length)
            log_sums[size_t(head) * shape.tokens + span.start + query] = top[row] + logf(sum[row]);
    }
    write<T, D>(out + at, mixed, factor, first + own, span.length, step);
}

// deltas = Σ out · gradient of each head; a warp takes one token and head, a block four heads of a token.
template <typename T, int D>
__device__ __forceinline__ void deltas_of(
    const T *out, const T *gradient, unsigned tokens, unsigned heads, float *deltas) {
    unsigned token = blockIdx.x, head = blockIdx.y * (THREADS / WARP) + threadIdx.x / WARP;
    unsigned read = min(head, heads - 1);
    size_t at = (size_t(token) * heads + read) * D;
    float sum = 0;
    for (int i = threadIdx.x % WARP; i < D; i += WARP) sum += to_float(out[at + i]) * to_float(gradient[at + i]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0 && head < heads) deltas[size_t(head) * tokens + token] = sum;
}

// for_q = Σ over keys of share · (gradient · v - delta) · k · scale.
// Blocks as of the forward.
template <typename T, int D>
__device__ __forceinline__ void queries_back(
    const T *q, const T *k, const T *v, const T *gradient, const float *log_sums, const float *deltas,
    const Shape shape, T *for_q) {
    DYNAMIC_SHARED(T, queries);
    constexpr int TILE = SEEN * STRIDE<T, D>;
    T *gradients = queries + ROWS * STRIDE<T, D>, *keys = gradients + ROWS * STRIDE<T, D>, *values = keys + 2 * TILE;
    Span span = span_of(shape);
    unsigned first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    if (first >= span.length) return;
    const Sight sight{span.length, shape.window};
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned own = threadIdx.x / WARP * 16;
    size_t step = size_t(shape.heads) * D, kv_step = size_t(shape.kv_heads) * D;
    size_t at = span.start * step + head * D;
    size_t kv_at = span.start * kv_step + head / (shape.heads / shape.kv_heads) * D;

    float sum[D / 8][4] = {}, log_sum[2], delta[2];
#pragma unroll
    for (int row = 0; row < 2; row++) {
        unsigned query = min(first + own + g + 8 * row, span.length - 1);
        log_sum[row] = log_sums[size_t(head) * shape.tokens + span.start + query];
        delta[row] = deltas[size_t(head) * shape.tokens + span.start + query];
    }
    auto fetch = [&](unsigned key) {
        unsigned tile = key / SEEN % 2 * TILE;
        load<T, D, SEEN>(keys + tile, k + kv_at, key, span.length, kv_step);
        load<T, D, SEEN>(values + tile, v + kv_at, key, span.length, kv_step);
    };
    unsigned begin = sight.first_key(first), end = sight.last_key(first);
    load<T, D, ROWS>(queries, q + at, first, span.length, step);
    load<T, D, ROWS>(gradients, gradient + at, first, span.length, step);
    fetch(begin);
    for (unsigned key = begin; key < end; key += SEEN) {
        unsigned tile = key / SEEN % 2 * TILE;
        arrived();
        __syncthreads();
        if (key + SEEN < end) fetch(key + SEEN);
        float shares[SEEN / 8][4], slopes[SEEN / 8][4];
        scores<D, SEEN>(shares, queries + own * STRIDE<T, D>, keys + tile);
        scores<D, SEEN>(slopes, gradients + own * STRIDE<T, D>, values + tile);
        bool all = sight.all_see(first, ROWS, key, SEEN);
#pragma unroll
        for (int j = 0; j < SEEN / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                unsigned query = first + own + g + i / 2 * 8;
                bool seen = all || sight.sees(query, key + 8 * j + 2 * t + i % 2);
                float share = seen ? power<T>(shares[j][i] * shape.scale - log_sum[i / 2]) : 0.0f;
                slopes[j][i] = share * (slopes[j][i] - delta[i / 2]);
            }
        mix<D, SEEN>(sum, slopes, keys + tile);
    }
    float factor[2] = {shape.scale, shape.scale};
    write<T, D>(for_q + at, sum, factor, first + own, span.length, step);
}

// for_v = Σ over queries of share · gradient, for_k = Σ share · (gradient · v - delta) · q · scale; the queries are those
// of all heads that share the key.
// Blocks: [row tiles of the longest sequence, kv_heads, sequences].
template <typename T, int D>
__device__ __forceinline__ void keys_back(
    const T *q, const T *k, const T *v, const T *gradient, const float *log_sums, const float *deltas,
    const Shape shape, T *for_k, T *for_v) {
    DYNAMIC_SHARED(T, keys);
    constexpr int TILE = SEEN * STRIDE<T, D>;
    T *values = keys + ROWS * STRIDE<T, D>, *queries = values + ROWS * STRIDE<T, D>, *gradients = queries + 2 * TILE;
    __shared__ float log_sum[2][SEEN], delta[2][SEEN];
    Span span = span_of(shape);
    unsigned first = blockIdx.x * ROWS, kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    if (first >= span.length) return;
    const Sight sight{span.length, shape.window};
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned own = threadIdx.x / WARP * 16;
    size_t step = size_t(shape.heads) * D, kv_step = size_t(shape.kv_heads) * D;
    size_t kv_at = span.start * kv_step + kv_head * D;

    float key_sum[D / 8][4] = {}, value_sum[D / 8][4] = {};
    unsigned begin = sight.first_query(first), steps = (sight.last_query(first) - begin + SEEN - 1) / SEEN;
    // A step is one of a head of the group.
    auto fetch = [&](unsigned i) {
        unsigned head = kv_head * group + i / steps, query = begin + i % steps * SEEN, tile = i % 2 * TILE;
        size_t at = span.start * step + head * D;
        load<T, D, SEEN>(queries + tile, q + at, query, span.length, step);
        load<T, D, SEEN>(gradients + tile, gradient + at, query, span.length, step);
        if (threadIdx.x < SEEN) {
            unsigned read = min(query + threadIdx.x, span.length - 1);
            size_t from = size_t(head) * shape.tokens + span.start + read;
            copy<4>(&log_sum[i % 2][threadIdx.x], log_sums + from, true);
            copy<4>(&delta[i % 2][threadIdx.x], deltas + from, true);
        }
    };
    load<T, D, ROWS>(keys, k + kv_at, first, span.length, kv_step);
    load<T, D, ROWS>(values, v + kv_at, first, span.length, kv_step);
    fetch(0);
    for (unsigned i = 0; i < group * steps; i++) {
        unsigned query = begin + i % steps * SEEN, tile = i % 2 * TILE;
        arrived();
        __syncthreads();
        if (i + 1 < group * steps) fetch(i + 1);
        // Turned: rows are keys, columns queries.
        float shares[SEEN / 8][4], slopes[SEEN / 8][4];
        scores<D, SEEN>(shares, keys + own * STRIDE<T, D>, queries + tile);
        bool all = query + SEEN <= span.length && sight.all_see(query, SEEN, first, ROWS);
#pragma unroll
        for (int j = 0; j < SEEN / 8; j++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int column = 8 * j + 2 * t + n % 2;
                unsigned key = first + own + g + n / 2 * 8;
                bool seen = all || (query + column < span.length && sight.sees(query + column, key));
                shares[j][n] = seen ? power<T>(shares[j][n] * shape.scale - log_sum[i % 2][column]) : 0.0f;
            }
        mix<D, SEEN>(value_sum, shares, gradients + tile);
        scores<D, SEEN>(slopes, values + own * STRIDE<T, D>, gradients + tile);
#pragma unroll
        for (int j = 0; j < SEEN / 8; j++)
#pragma unroll
            for (int n = 0; n < 4; n++)
                slopes[j][n] = shares[j][n] * (slopes[j][n] - delta[i % 2][8 * j + 2 * t + n % 2]);
        mix<D, SEEN>(key_sum, slopes, queries + tile);
    }
    float factor[2] = {shape.scale, shape.scale}, one[2] = {1, 1};
    write<T, D>(for_k + kv_at, key_sum, factor, first + own, span.length, kv_step);
    write<T, D>(for_v + kv_at, value_sum, one, first + own, span.length, kv_step);
}

// The kernels of one number format and head size.
#define FLASH(T, NAME, D) \
    extern "C" __global__ void __launch_bounds__(THREADS) attend_##D##_##NAME( \
        const T *q, const T *k, const T *v, const unsigned *starts, unsigned tokens, unsigned heads, \
        unsigned kv_heads, unsigned window, float scale, T *out, float *log_sums) { \
        attend<T, D>(q, k, v, {starts, tokens, heads, kv_heads, window, scale}, out, log_sums); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) deltas_##D##_##NAME( \
        const T *out, const T *gradient, unsigned tokens, unsigned heads, float *deltas) { \
        deltas_of<T, D>(out, gradient, tokens, heads, deltas); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) queries_back_##D##_##NAME( \
        const T *q, const T *k, const T *v, const T *gradient, const float *log_sums, const float *deltas, \
        const unsigned *starts, unsigned tokens, unsigned heads, unsigned kv_heads, unsigned window, float scale, \
        T *for_q) { \
        queries_back<T, D>( \
            q, k, v, gradient, log_sums, deltas, {starts, tokens, heads, kv_heads, window, scale}, for_q); \
    } \
    extern "C" __global__ void __launch_bounds__(THREADS) keys_back_##D##_##NAME( \
        const T *q, const T *k, const T *v, const T *gradient, const float *log_sums, const float *deltas, \
        const unsigned *starts, unsigned tokens, unsigned heads, unsigned kv_heads, unsigned window, float scale, \
        T *for_k, T *for_v) { \
        keys_back<T, D>(q, k, v, gradient, log_sums, deltas, \
                        {starts, tokens, heads, kv_heads, window, scale}, for_k, for_v); \
    }
