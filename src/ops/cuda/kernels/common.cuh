// What all kernels share: number formats, and sums over a warp and over a block.
//
// Compiled by nvcc to PTX, and by a C++ compiler for the emulated device of tests/gpu.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16(x); }

// Every lane gets the sum over the warp.
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// Every thread gets the sum over the block, which has at most 1024 threads in one dimension, whole warps.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? parts[lane] : 0.0f);
}

#ifdef __CUDACC__
// Shared memory of the size that the launch names.
#define DYNAMIC_SHARED(type, name)                                          \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];         \
    type *name = reinterpret_cast<type *>(dynamic_shared)
#endif

// d += a·b by the whole warp: a is [16, 16], b [16, 8], d [16, 8], bf16 with f32 sums. Each lane holds pieces of them; with
// g = lane / 4 and t = 2 · (lane % 4), and two numbers in a word, the even column or row in its low half:
// a: (row g, columns t, t + 1), (g + 8, t, t + 1), (g, t + 8, t + 9), (g + 8, t + 8, t + 9);
// b: (rows t, t + 1, column g), (t + 8, t + 9, g); d: (row g, columns t and t + 1), (g + 8, t and t + 1).
// After: PTX ISA 9.0, mma.m16n8k16.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const emulated::Slots &slots = emulated::exchange(words, sizeof words);
    auto number = [&](int lane, int word, int half) {
        uint32_t bits = reinterpret_cast<const uint32_t *>(slots[lane])[word];
        return __uint_as_float(half ? bits & 0xffff0000u : bits << 16);
    };
    int lane = emulated::lane();
    for (int i = 0; i < 4; i++) {
        int row = lane / 4, lower = i / 2, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++)
            d[i] += number(row * 4 + k % 8 / 2, k / 8 * 2 + lower, k % 2) * number(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    }
#endif
}
