// Norms of rows, and the sums that stand before them: what lies between two blocks.
//
// One block of threads a row; sums are f32 whatever the formats. Names end in the formats of x and of the rest.
// After: Zhang and Sennrich 2019 (arXiv 1910.07467), Ba et al. 2016 (arXiv 1607.06450).

#include "vector.cuh"

// out = x / sqrt(mean(x²) + eps) · weight; x and out are [rows, width]. With a delta [rows, width] x becomes x + delta
// before.
template <typename X, typename W>
__device__ __forceinline__ void rms_norm(
    X *x, const W *delta, const W *weight, W *out, unsigned width, float eps) {
    bool wide = by_eights(width, x, delta, weight, out);
    x += size_t(blockIdx.x) * width;
    out += size_t(blockIdx.x) * width;
    if (delta) delta += size_t(blockIdx.x) * width;
    float squares = 0;
    if (wide) {
        // Rows of up to 8 numbers a thread stay in registers.
        Eight first = {};
        for (unsigned i = threadIdx.x; i < width / 8; i += blockDim.x) {
            Eight own = load8(x + 8 * i);
            if (delta) {
                Eight more = load8(delta + 8 * i);
                for (int j = 0; j < 8; j++) own.at[j] += more.at[j];
                store8(x + 8 * i, own);
            }
            for (int j = 0; j < 8; j++) squares += own.at[j] * own.at[j];
            if (i == threadIdx.x) first = own;
        }
        float inverse = rsqrtf(block_sum(squares) / width + eps);
        for (unsigned i = threadIdx.x; i < width / 8; i += blockDim.x) {
            Eight own = i == threadIdx.x ? first : load8(x + 8 * i);
            Eight factor = load8(weight + 8 * i);
            for (int j = 0; j < 8; j++) own.at[j] *= inverse * factor.at[j];
            store8(out + 8 * i, own);
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float own = to_float(x[i]);
        if (delta) {
            own += to_float(delta[i]);
            x[i] = from_float<X>(own);
        }
        squares += own * own;
    }
    float inverse = rsqrtf(block_sum(squares) / width + eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        out[i] = from_float<W>(to_float(x[i]) * inverse * to_float(weight[i]));
}

// out = (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias; x and out are [rows, width].
template <typename X, typename W>
__device__ __forceinline__ void layer_norm(
    const X *x, const W *weight, const W *bias, W *out, unsigned width, float eps) {
    x += size_t(blockIdx.x) * width;
    out += size_t(blockIdx.x) * width;
    float sum = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) sum += to_float(x[i]);
    float mean = block_sum(sum) / width;
    float squares = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float centred = to_float(x[i]) - mean;
        squares += centred * centred;
    }
    float inverse = rsqrtf(block_sum(squares) / width + eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        out[i] = from_float<W>((to_float(x[i]) - mean) * inverse * to_float(weight[i]) + to_float(bias[i]));
}

// x += delta, `count` numbers.
template <typename W> __device__ __forceinline__ void add_rows(float *x, const W *delta, unsigned count) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (by_eights(count, x, delta)) {
        if (i >= count / 8) return;
        Eight own = load8(x + 8 * size_t(i)), more = load8(delta + 8 * size_t(i));
        for (int j = 0; j < 8; j++) own.at[j] += more.at[j];
        store8(x + 8 * size_t(i), own);
        return;
    }
    for (unsigned step = gridDim.x * blockDim.x; i < count; i += step) x[i] += to_float(delta[i]);
}

#define NORMS(name, X, W)                                                                                              \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_##name(                                                \
        X *x, const W *weight, W *out, unsigned width, float eps) {                                                    \
        rms_norm<X, W>(x, nullptr, weight, out, width, eps);                                                           \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024) layer_norm_##name(                                              \
        const X *x, const W *weight, const W *bias, W *out, unsigned width, float eps) {                               \
        layer_norm(x, weight, bias, out, width, eps);                                                                  \
    }

#define SUMS(name, W)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024) add_rms_norm_##name(                                            \
        float *x, const W *delta, const W *weight, W *out, unsigned width, float eps) {                                \
        rms_norm<float, W>(x, delta, weight, out, width, eps);                                                         \
    }                                                                                                                  \
    extern "C" __global__ void add_rows_##name(float *x, const W *delta, unsigned count) { add_rows(x, delta, count); }

NORMS(f32_f32, float, float)
NORMS(f32_bf16, float, __nv_bfloat16)
NORMS(bf16_f32, __nv_bfloat16, float)
NORMS(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
SUMS(f32, float)
SUMS(bf16, __nv_bfloat16)
