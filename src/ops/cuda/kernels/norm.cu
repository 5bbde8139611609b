// RMS norm of rows, and the same behind a sum: what stands between two blocks.
//
// One block of threads a row; sums are f32 whatever the format.
// After: Zhang and Sennrich 2019 (arXiv 1910.07467).

#include "common.cuh"

// out = x / sqrt(mean(x²) + eps) · weight; x and out are [rows, width].
template <typename X, typename W>
__device__ void rms_norm(const X *x, const W *weight, W *out, unsigned width, float eps) {
    x += size_t(blockIdx.x) * width;
    out += size_t(blockIdx.x) * width;
    float squares = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) squares += to_float(x[i]) * to_float(x[i]);
    float inverse = rsqrtf(block_sum(squares) / width + eps);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        out[i] = from_float<W>(to_float(x[i]) * inverse * to_float(weight[i]));
}

extern "C" __global__ void rms_norm_f32(const float *x, const float *weight, float *out, unsigned width, float eps) {
    rms_norm(x, weight, out, width, eps);
}

extern "C" __global__ void rms_norm_bf16(
    const __nv_bfloat16 *x, const __nv_bfloat16 *weight, __nv_bfloat16 *out, unsigned width, float eps) {
    rms_norm(x, weight, out, width, eps);
}
