// Losses with the gradients that they hand back to the logits.
//
// logits and gradient are [rows, classes] of one format and may be the same memory; a gradient may be missing. losses are
// f32 [rows]. One block a row; sums are f32.

#include "common.cuh"

// Every thread gets the largest number of the block, which has whole warps in one dimension.
__device__ __forceinline__ float largest(float x) {
    __shared__ float parts[WARP];
    int lane = threadIdx.x % WARP;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(lane < blockDim.x / WARP ? parts[lane] : -INFINITY);
}

// losses = -log softmax(logits)[target]; gradient = weight · (softmax(logits) - 1 at the target).
template <typename T>
__device__ void cross_entropy(
    const T *logits, const unsigned *targets, float *losses, T *gradient, unsigned classes, float weight) {
    logits += size_t(blockIdx.x) * classes;
    unsigned target = targets[blockIdx.x];
    float at_target = to_float(logits[target]);
    float top = -INFINITY, sum = 0;
    for (unsigned i = threadIdx.x; i < classes; i += blockDim.x) {
        float x = to_float(logits[i]);
        if (x > top) {
            sum = sum * expf(top - x) + 1.0f;
            top = x;
        } else {
            sum += expf(x - top);
        }
    }
    float highest = largest(top);
    sum = block_sum(top == -INFINITY ? sum : sum * expf(top - highest));
    if (gradient) {
        gradient += size_t(blockIdx.x) * classes;
        float factor = weight / sum;
        for (unsigned i = threadIdx.x; i < classes; i += blockDim.x) {
            float share = expf(to_float(logits[i]) - highest) * factor;
            gradient[i] = from_float<T>(i == target ? share - weight : share);
        }
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = highest - at_target + logf(sum);
}

// losses = mean over classes of max(x, 0) - x·t + log(1 + exp(-|x|)); gradient = (σ(x) - t) · weight / classes.
template <typename T>
__device__ void binary_cross_entropy(
    const T *logits, const float *targets, float *losses, T *gradient, unsigned classes, float weight) {
    size_t at = size_t(blockIdx.x) * classes;
    float sum = 0;
    for (unsigned i = threadIdx.x; i < classes; i += blockDim.x) {
        float x = to_float(logits[at + i]), target = targets[at + i];
        sum += fmaxf(x, 0.0f) - x * target + log1pf(expf(-fabsf(x)));
        if (gradient) gradient[at + i] = from_float<T>((1.0f / (1.0f + expf(-x)) - target) * weight / classes);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum / classes;
}

#define LOSSES(T, NAME) \
    extern "C" __global__ void __launch_bounds__(512) cross_entropy_##NAME( \
        const T *logits, const unsigned *targets, float *losses, T *gradient, unsigned classes, float weight) { \
        cross_entropy(logits, targets, losses, gradient, classes, weight); \
    } \
    extern "C" __global__ void __launch_bounds__(512) binary_cross_entropy_##NAME( \
        const T *logits, const float *targets, float *losses, T *gradient, unsigned classes, float weight) { \
        binary_cross_entropy(logits, targets, losses, gradient, classes, weight); \
    }

LOSSES(float, f32)
LOSSES(__nv_bfloat16, bf16)
