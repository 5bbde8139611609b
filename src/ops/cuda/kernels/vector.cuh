// Several neighbouring numbers at once, as f32 in registers: loads and stores of up to 16 bytes of either format.
//
// Addresses are multiples of the bytes that are moved.
#pragma once

#include "common.cuh"

template <int N> struct Numbers {
    float at[N];
};
using Four = Numbers<4>;
using Eight = Numbers<8>;

// The two bf16 numbers of a word, the lower half first.
__device__ __forceinline__ float low_half(uint32_t word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }

// A word of two numbers, rounded to bf16.
__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t below = __bfloat16_as_ushort(__float2bfloat16(low)), above = __bfloat16_as_ushort(__float2bfloat16(high));
    return below | (above << 16);
}

// What is read once: it shall not displace what is read again.
__device__ __forceinline__ uint4 load_once(const void *from) {
#ifdef __CUDACC__
    return __ldcs(reinterpret_cast<const uint4 *>(from));
#else
    return *reinterpret_cast<const uint4 *>(from);
#endif
}

__device__ __forceinline__ Eight unpack(uint4 words) {
    return {low_half(words.x), high_half(words.x), low_half(words.y), high_half(words.y),
            low_half(words.z), high_half(words.z), low_half(words.w), high_half(words.w)};
}

__device__ __forceinline__ Four load4(const float *from) {
    float4 x = *reinterpret_cast<const float4 *>(from);
    return {x.x, x.y, x.z, x.w};
}
__device__ __forceinline__ Four load4(const __nv_bfloat16 *from) {
    uint2 x = *reinterpret_cast<const uint2 *>(from);
    return {low_half(x.x), high_half(x.x), low_half(x.y), high_half(x.y)};
}
__device__ __forceinline__ Eight load8(const float *from) {
    Four a = load4(from), b = load4(from + 4);
    return {a.at[0], a.at[1], a.at[2], a.at[3], b.at[0], b.at[1], b.at[2], b.at[3]};
}
__device__ __forceinline__ Eight load8(const __nv_bfloat16 *from) {
    return unpack(*reinterpret_cast<const uint4 *>(from));
}

__device__ __forceinline__ void store4(float *to, const Four &x) {
    *reinterpret_cast<float4 *>(to) = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
}
__device__ __forceinline__ void store4(__nv_bfloat16 *to, const Four &x) {
    *reinterpret_cast<uint2 *>(to) = make_uint2(pack(x.at[0], x.at[1]), pack(x.at[2], x.at[3]));
}
__device__ __forceinline__ void store8(float *to, const Eight &x) {
    store4(to, {x.at[0], x.at[1], x.at[2], x.at[3]});
    store4(to + 4, {x.at[4], x.at[5], x.at[6], x.at[7]});
}
__device__ __forceinline__ void store8(__nv_bfloat16 *to, const Eight &x) {
    *reinterpret_cast<uint4 *>(to) = make_uint4(
        pack(x.at[0], x.at[1]), pack(x.at[2], x.at[3]), pack(x.at[4], x.at[5]), pack(x.at[6], x.at[7]));
}

// Whether rows of a width can be read and written eight numbers at a time.
template <typename... P> __device__ __forceinline__ bool by_eights(unsigned width, const P *...addresses) {
    return ((reinterpret_cast<uintptr_t>(addresses) | ...) % 16 == 0) && width % 8 == 0;
}
