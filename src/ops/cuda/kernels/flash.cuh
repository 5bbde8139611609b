// Attention of whole sequences packed behind each other, and its gradients: nothing of size tokens² is kept.
//
// Queries, results and their gradients are [tokens, heads, D], keys and values [tokens, kv_heads, D]; sequence i has the
// tokens starts[i] to starts[i + 1]. A token sees itself and up to window - 1 tokens before it. log_sums and deltas are
// f32 [heads, tokens]. A block has four warps, each with 16 of its 64 rows; sums are f32 in a fixed order, so results
// are the same every time.
// After: Dao 2023 (arXiv 2307.08691).
#pragma once

#include "tiles.cuh"

constexpr int ROWS = 64;
constexpr int THREADS = 128;
// Keys or queries that a step takes: of the forward, and of the backward, which holds more besides.
constexpr int SEEN = 64;
constexpr int SEEN_BACK = 32;

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

// Whether a query sees a key, both counted from the beginning of their sequence.
__device__ __forceinline__ bool sees(unsigned query, unsigned key, unsigned window) {
    return key <= query && query - key < window;
}

// Whether every query of a run sees every key of another one.
__device__ __forceinline__ bool all_see(
    unsigned query, unsigned queries, unsigned key, unsigned keys, unsigned window) {
    return key + keys <= query + 1 && query + queries - key <= window;
}

// The first key that a query sees, a multiple of `step`.
__device__ __forceinline__ unsigned first_seen(unsigned query, unsigned window, unsigned step) {
    return query < window ? 0 : (query - window + 1) / step * step;
}

// out = softmax(q · kᵀ · scale) · v, and log_sums the logarithms of what shares were divided by.
// Blocks: [row tiles of the longest sequence, heads, sequences]; the last tiles, which see most, begin first.
template <typename T, int D>
__device__ __forceinline__ void attend(
    const T *q, const T *k, const T *v, const Shape shape, T *out, float *log_sums) {
    DYNAMIC_SHARED(T, queries);
    T *keys = queries + ROWS * STRIDE<T, D>, *values = keys + SEEN * STRIDE<T, D>;
    Span span = span_of(shape);
    unsigned first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    if (first >= span.length) return;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned own = threadIdx.x / WARP * 16;
    size_t step = size_t(shape.heads) * D, kv_step = size_t(shape.kv_heads) * D;
    size_t at = span.start * step + head * D;
    size_t kv_at = span.start * kv_step + head / (shape.heads / shape.kv_heads) * D;

    float mixed[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    load<T, D, ROWS>(queries, q + at, first, span.length, step);
    unsigned end = min(first + ROWS, span.length);
    for (unsigned key = first_seen(first, shape.window, SEEN); key < end; key += SEEN) {
        __syncthreads();
        load<T, D, SEEN>(keys, k + kv_at, key, span.length, kv_step);
        load<T, D, SEEN>(values, v + kv_at, key, span.length, kv_step);
        __syncthreads();
        float shares[SEEN / 8][4];
        scores<D, SEEN>(shares, queries + own * STRIDE<T, D>, keys);
        bool all = all_see(first, ROWS, key, SEEN, shape.window);
#pragma unroll
        for (int row = 0; row < 2; row++) {
            unsigned query = first + own + g + 8 * row;
            float highest = top[row];
#pragma unroll
            for (int j = 0; j < SEEN / 8; j++)
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    float &score = shares[j][2 * row + side];
                    bool seen = all || sees(query, key + 8 * j + 2 * t + side, shape.window);
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
        mix<D, SEEN>(mixed, shares, values);
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
    T *gradients = queries + ROWS * STRIDE<T, D>, *keys = gradients + ROWS * STRIDE<T, D>;
    T *values = keys + SEEN_BACK * STRIDE<T, D>;
    Span span = span_of(shape);
    unsigned first = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y;
    if (first >= span.length) return;
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
    load<T, D, ROWS>(queries, q + at, first, span.length, step);
    load<T, D, ROWS>(gradients, gradient + at, first, span.length, step);
    unsigned end = min(first + ROWS, span.length);
    for (unsigned key = first_seen(first, shape.window, SEEN_BACK); key < end; key += SEEN_BACK) {
        __syncthreads();
        load<T, D, SEEN_BACK>(keys, k + kv_at, key, span.length, kv_step);
        load<T, D, SEEN_BACK>(values, v + kv_at, key, span.length, kv_step);
        __syncthreads();
        float shares[SEEN_BACK / 8][4], slopes[SEEN_BACK / 8][4];
        scores<D, SEEN_BACK>(shares, queries + own * STRIDE<T, D>, keys);
        scores<D, SEEN_BACK>(slopes, gradients + own * STRIDE<T, D>, values);
        bool all = all_see(first, ROWS, key, SEEN_BACK, shape.window);
#pragma unroll
        for (int j = 0; j < SEEN_BACK / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                unsigned query = first + own + g + i / 2 * 8;
                bool seen = all || sees(query, key + 8 * j + 2 * t + i % 2, shape.window);
                float share = seen ? power<T>(shares[j][i] * shape.scale - log_sum[i / 2]) : 0.0f;
                slopes[j][i] = share * (slopes[j][i] - delta[i / 2]);
            }
        mix<D, SEEN_BACK>(sum, slopes, keys);
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
    T *values = keys + ROWS * STRIDE<T, D>, *queries = values + ROWS * STRIDE<T, D>;
    T *gradients = queries + SEEN_BACK * STRIDE<T, D>;
    __shared__ float log_sum[SEEN_BACK], delta[SEEN_BACK];
    Span span = span_of(shape);
    unsigned first = blockIdx.x * ROWS, kv_head = blockIdx.y, group = shape.heads / shape.kv_heads;
    if (first >= span.length) return;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned own = threadIdx.x / WARP * 16;
    size_t step = size_t(shape.heads) * D, kv_step = size_t(shape.kv_heads) * D;
    size_t kv_at = span.start * kv_step + kv_head * D;

    float key_sum[D / 8][4] = {}, value_sum[D / 8][4] = {};
    load<T, D, ROWS>(keys, k + kv_at, first, span.length, kv_step);
    load<T, D, ROWS>(values, v + kv_at, first, span.length, kv_step);
    // Behind the last query that sees the last key.
    unsigned end = span.length - first > ROWS && span.length - first - ROWS >= shape.window
        ? first + ROWS + shape.window - 1
        : span.length;
    for (unsigned head = kv_head * group; head < (kv_head + 1) * group; head++) {
        size_t at = span.start * step + head * D;
        for (unsigned query = first; query < end; query += SEEN_BACK) {
            __syncthreads();
            load<T, D, SEEN_BACK>(queries, q + at, query, span.length, step);
            load<T, D, SEEN_BACK>(gradients, gradient + at, query, span.length, step);
            if (threadIdx.x < SEEN_BACK) {
                unsigned read = min(query + threadIdx.x, span.length - 1);
                log_sum[threadIdx.x] = log_sums[size_t(head) * shape.tokens + span.start + read];
                delta[threadIdx.x] = deltas[size_t(head) * shape.tokens + span.start + read];
            }
            __syncthreads();
            // Turned: rows are keys, columns queries.
            float shares[SEEN_BACK / 8][4], slopes[SEEN_BACK / 8][4];
            scores<D, SEEN_BACK>(shares, keys + own * STRIDE<T, D>, queries);
            bool all = query + SEEN_BACK <= span.length && all_see(query, SEEN_BACK, first, ROWS, shape.window);
#pragma unroll
            for (int j = 0; j < SEEN_BACK / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = 8 * j + 2 * t + i % 2;
                    unsigned key = first + own + g + i / 2 * 8;
                    bool seen = all
                        || (query + column < span.length && sees(query + column, key, shape.window));
                    shares[j][i] = seen ? power<T>(shares[j][i] * shape.scale - log_sum[column]) : 0.0f;
                }
            mix<D, SEEN_BACK>(value_sum, shares, gradients);
            scores<D, SEEN_BACK>(slopes, values + own * STRIDE<T, D>, gradients);
#pragma unroll
            for (int j = 0; j < SEEN_BACK / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    slopes[j][i] = shares[j][i] * (slopes[j][i] - delta[8 * j + 2 * t + i % 2]);
            mix<D, SEEN_BACK>(key_sum, slopes, queries);
        }
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
