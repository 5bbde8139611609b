// Products of tiles in shared memory by one warp: bf16 on tensor cores, f32 exact. Attention of whole sequences is made
// of them.
//
// A tile is rows of D numbers, each row PAD<T> numbers longer than D so that rows begin in different banks. A result of
// 16 rows lies in registers as tensor cores leave it: lane 4·g + t has of every 8 columns the columns 2t and 2t + 1 of
// the rows g (numbers 0, 1) and g + 8 (numbers 2, 3).
// After: the PTX ISA, `mma.m16n8k16` and `ldmatrix`.
#pragma once

#include "common.cuh"

template <typename T> constexpr int PAD = 16 / sizeof(T);
template <typename T, int D> constexpr int STRIDE = D + PAD<T>;

// Two numbers rounded to bf16, the first in the lower half.
__device__ __forceinline__ uint32_t packed(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&both);
}

// Reads 16 rows × 16 columns of a tile as the left side of a product.
__device__ __forceinline__ void read_left(uint32_t (&out)[4], const __nv_bfloat16 *tile, int stride) {
    int lane = threadIdx.x % WARP;
#ifdef __CUDACC__
    unsigned at = __cvta_generic_to_shared(tile + lane % 16 * stride + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at));
#else
    for (int i = 0; i < 4; i++)
        out[i] = *reinterpret_cast<const uint32_t *>(
            tile + (lane / 4 + i % 2 * 8) * stride + lane % 4 * 2 + i / 2 * 8);
#endif
}

// Reads 16 rows × 16 columns as the right sides of two products whose columns are the tile's rows.
__device__ __forceinline__ void read_right(uint32_t (&out)[2][2], const __nv_bfloat16 *tile, int stride) {
    int lane = threadIdx.x % WARP;
#ifdef __CUDACC__
    unsigned at = __cvta_generic_to_shared(tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0][0]), "=r"(out[0][1]), "=r"(out[1][0]), "=r"(out[1][1])
                 : "r"(at));
#else
    for (int i = 0; i < 4; i++)
        out[i / 2][i % 2] = *reinterpret_cast<const uint32_t *>(
            tile + (lane / 4 + i / 2 * 8) * stride + lane % 4 * 2 + i % 2 * 8);
#endif
}

// Reads 16 rows × 16 columns as the right sides of two products whose columns are the tile's columns.
__device__ __forceinline__ void read_turned(uint32_t (&out)[2][2], const __nv_bfloat16 *tile, int stride) {
    int lane = threadIdx.x % WARP;
#ifdef __CUDACC__
    unsigned at = __cvta_generic_to_shared(tile + lane % 16 * stride + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0][0]), "=r"(out[0][1]), "=r"(out[1][0]), "=r"(out[1][1])
                 : "r"(at));
#else
    for (int i = 0; i < 4; i++) {
        const __nv_bfloat16 *from = tile + (lane % 4 * 2 + i % 2 * 8) * stride + lane / 4 + i / 2 * 8;
        out[i / 2][i % 2] = packed(to_float(from[0]), to_float(from[stride]));
    }
#endif
}

// Begins to copy 16 bytes or 4 to shared memory, or zeros where nothing is there. They are there for the thread that asked
// behind `arrived`, and for the others behind a barrier after that.
template <int BYTES> __device__ __forceinline__ void copy(void *to, const void *from, bool there) {
#ifdef __CUDACC__
    unsigned at = __cvta_generic_to_shared(to), bytes = there ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#else
    for (int i = 0; i < BYTES / 4; i++)
        static_cast<uint32_t *>(to)[i] = there ? static_cast<const uint32_t *>(from)[i] : 0;
#endif
}

__device__ __forceinline__ void arrived() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Begins to copy `COUNT` rows of D numbers to a tile by all threads of the block; rows from `end` on become zeros. Row i of
// the source begins at i · step.
template <typename T, int D, int COUNT>
__device__ __forceinline__ void load(T *tile, const T *from, unsigned first, unsigned end, size_t step) {
    constexpr int PIECES = D / PAD<T>;
    for (int i = threadIdx.x; i < COUNT * PIECES; i += blockDim.x) {
        int row = i / PIECES, column = i % PIECES * PAD<T>;
        bool there = first + row < end;
        copy<16>(tile + row * STRIDE<T, D> + column, from + (there ? first + row : 0) * step + column, there);
    }
}

// out = a · bᵀ of 16 rows of one tile and N rows of another.
template <int D, int N>
__device__ __forceinline__ void scores(float (&out)[N / 8][4], const __nv_bfloat16 *a, const __nv_bfloat16 *b) {
    constexpr int STEP = STRIDE<__nv_bfloat16, D>;
#pragma unroll
    for (int j = 0; j < N / 8; j++) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4], right[2][2];
        read_left(left, a + k, STEP);
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            read_right(right, b + j * 8 * STEP + k, STEP);
            mma(out[j], left, right[0]);
            mma(out[j + 1], left, right[1]);
        }
    }
}

template <int D, int N>
__device__ __forceinline__ void scores(float (&out)[N / 8][4], const float *a, const float *b) {
    constexpr int STEP = STRIDE<float, D>;
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
#pragma unroll 1
    for (int k = 0; k < D; k += 4) {
        float4 left[2] = {*reinterpret_cast<const float4 *>(a + g * STEP + k),
                          *reinterpret_cast<const float4 *>(a + (g + 8) * STEP + k)};
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float4 right = *reinterpret_cast<const float4 *>(b + (8 * j + 2 * t + side) * STEP + k);
#pragma unroll
                for (int row = 0; row < 2; row++)
                    out[j][2 * row + side] += left[row].x * right.x + left[row].y * right.y
                        + left[row].z * right.z + left[row].w * right.w;
            }
    }
}

// out += p · b of 16 rows of N numbers in registers and a tile of N rows of D.
template <int D, int N>
__device__ __forceinline__ void mix(float (&out)[D / 8][4], const float (&p)[N / 8][4], const __nv_bfloat16 *b) {
    constexpr int STEP = STRIDE<__nv_bfloat16, D>;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const float(&low)[4] = p[2 * k], (&high)[4] = p[2 * k + 1];
        uint32_t left[4] = {packed(low[0], low[1]), packed(low[2], low[3]), packed(high[0], high[1]),
                            packed(high[2], high[3])};
        uint32_t right[2][2];
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            read_turned(right, b + k * 16 * STEP + j * 8, STEP);
            mma(out[j], left, right[0]);
            mma(out[j + 1], left, right[1]);
        }
    }
}

template <int D, int N>
__device__ __forceinline__ void mix(float (&out)[D / 8][4], const float (&p)[N / 8][4], const float *b) {
    constexpr int STEP = STRIDE<float, D>;
    int lane = threadIdx.x % WARP, t = lane % 4;
#pragma unroll
    for (int block = 0; block < N / 8; block++)
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int from = lane / 4 * 4 + k / 2;
            float upper = __shfl_sync(ALL, p[block][k % 2], from);
            float lower = __shfl_sync(ALL, p[block][2 + k % 2], from);
            const float *row = b + (8 * block + k) * STEP + 2 * t;
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                float2 right = *reinterpret_cast<const float2 *>(row + 8 * j);
                out[j][0] += upper * right.x;
                out[j][1] += upper * right.y;
                out[j][2] += lower * right.x;
                out[j][3] += lower * right.y;
            }
        }
}

// Writes two neighbouring numbers.
__device__ __forceinline__ void store(__nv_bfloat16 *to, float first, float second) {
    *reinterpret_cast<uint32_t *>(to) = packed(first, second);
}
__device__ __forceinline__ void store(float *to, float first, float second) {
    *reinterpret_cast<float2 *>(to) = make_float2(first, second);
}

// Writes 16 rows in registers times `factor[0]` (rows g) and `factor[1]` (rows g + 8) to rows `first` to `end`; row i
// begins at i · step.
template <typename T, int D>
__device__ __forceinline__ void write(
    T *to, const float (&x)[D / 8][4], const float (&factor)[2], unsigned first, unsigned end, size_t step) {
    int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int row = 0; row < 2; row++) {
        unsigned at = first + g + 8 * row;
        if (at >= end) continue;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            store(to + at * step + 8 * j + 2 * t, x[j][2 * row] * factor[row], x[j][2 * row + 1] * factor[row]);
    }
}

// exp, as exact as the format is worth.
template <typename T> __device__ __forceinline__ float power(float x) { return __expf(x); }
template <> __device__ __forceinline__ float power<float>(float x) { return expf(x); }
