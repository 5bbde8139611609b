// Rotary embedding: pairs (i, i + head_dim/2) of a head turn by an angle that grows with the position.
//
// Angles, sines and cosines are f32. After: Su et al. 2021 (arXiv 2104.09864), paired as transformers pairs them.

#include "pages.cuh"
#include "vector.cuh"

// Pairs of a head at most.
constexpr unsigned PAIRS = 128;
// Heads of one block of threads.
constexpr unsigned PART = 8;

// Turns four pairs: (a, b) becomes (a·cos - b·sin, b·cos + a·sin).
__device__ __forceinline__ void turn(Four &a, Four &b, const float *cosines, const float *sines) {
    for (int j = 0; j < 4; j++) {
        float first = a.at[j], second = b.at[j];
        a.at[j] = first * cosines[j] - second * sines[j];
        b.at[j] = second * cosines[j] + first * sines[j];
    }
}

// Turns q [rows, heads, head_dim] in place, and writes k, turned, and v [rows, kv_heads, head_dim] to the places of the
// pool that `slots` names; a row whose slot is not of the pool's is not stored. One block of threads: PART heads of a
// row, counted through q, k and v.
template <typename T>
__device__ __forceinline__ void rope_and_store(
    T *q, const T *k, const T *v, const unsigned *positions, const unsigned *slots, const float *frequencies, T *keys,
    T *values, unsigned blocks, unsigned heads, unsigned kv_heads, unsigned head_dim) {
    __shared__ float cosines[PAIRS], sines[PAIRS];
    unsigned row = blockIdx.x, half = head_dim / 2;
    float position = float(positions[row]);
    for (unsigned i = threadIdx.x; i < half; i += blockDim.x)
        sincosf(position * frequencies[i], &sines[i], &cosines[i]);
    __syncthreads();
    unsigned slot = slots[row];
    bool stored = slot / PAGE < blocks;
    unsigned fours = half / 4, first = blockIdx.y * PART;
    for (unsigned item = threadIdx.x; item < PART * fours; item += blockDim.x) {
        unsigned head = first + item / fours, i = item % fours * 4;
        if (head < heads) {
            T *own = q + (size_t(row) * heads + head) * head_dim;
            Four a = load4(own + i), b = load4(own + half + i);
            turn(a, b, cosines + i, sines + i);
            store4(own + i, a);
            store4(own + half + i, b);
        } else if (head < heads + 2 * kv_heads && stored) {
            bool key = head < heads + kv_heads;
            unsigned kv_head = (head - heads) % kv_heads;
            const T *own = (key ? k : v) + (size_t(row) * kv_heads + kv_head) * head_dim;
            T *to = (key ? keys : values) + place(slot, kv_head, kv_heads, head_dim);
            Four a = load4(own + i), b = load4(own + half + i);
            if (key) turn(a, b, cosines + i, sines + i);
            store4(to + i, a);
            store4(to + half + i, b);
        }
    }
}

// out = x turned; both are [tokens, heads, head_dim], cosines and sines [tokens, head_dim/2]; direction -1 turns back.
template <typename T, typename A>
__device__ __forceinline__ void rope(
    const T *x, const A *cosines, const A *sines, T *out, unsigned heads, unsigned head_dim, float direction) {
    unsigned token = blockIdx.x, half = head_dim / 2;
    for (unsigned item = threadIdx.x; item < heads * half; item += blockDim.x) {
        unsigned i = item % half;
        size_t at = (size_t(token) * heads + item / half) * head_dim + i;
        float cosine = to_float(cosines[size_t(token) * half + i]);
        float sine = direction * to_float(sines[size_t(token) * half + i]);
        float first = to_float(x[at]), second = to_float(x[at + half]);
        out[at] = from_float<T>(first * cosine - second * sine);
        out[at + half] = from_float<T>(second * cosine + first * sine);
    }
}

#define ROPE_AND_STORE(name, T)                                                                                        \
    extern "C" __global__ void name(                                                                                   \
        T *q, const T *k, const T *v, const unsigned *positions, const unsigned *slots, const float *frequencies,      \
        T *keys, T *values, unsigned blocks, unsigned heads, unsigned kv_heads, unsigned head_dim) {                   \
        rope_and_store(                                                                                                \
            q, k, v, positions, slots, frequencies, keys, values, blocks, heads, kv_heads, head_dim);                  \
    }

#define ROPE(name, T, A)                                                                                               \
    extern "C" __global__ void name(                                                                                   \
        const T *x, const A *cosines, const A *sines, T *out, unsigned heads, unsigned head_dim, float direction) {    \
        rope(x, cosines, sines, out, heads, head_dim, direction);                                                      \
    }

ROPE_AND_STORE(rope_and_store_f32, float)
ROPE_AND_STORE(rope_and_store_bf16, __nv_bfloat16)
ROPE(rope_f32_f32, float, float)
ROPE(rope_bf16_bf16, __nv_bfloat16, __nv_bfloat16)
ROPE(rope_bf16_f32, __nv_bfloat16, float)
