// AdamW over many tensors in one launch, and the sums of squares of their gradients.
//
// Each block takes CHUNK values of one tensor and finds it in the table; entries are in the order of their blocks.
// Weights, gradients and moments are f32.
// After: Loshchilov and Hutter 2019 (arXiv 1711.05101), torch `optim/adamw.py`.

#include "common.cuh"

constexpr unsigned CHUNK = 1 << 14;

// A tensor: addresses, number of values, whether it decays, its first block.
struct Entry {
    float *weight;
    const float *gradient;
    float *m, *v;
    unsigned count, decays, block, unused;
};

// Returns the entry that this block works for.
__device__ __forceinline__ unsigned entry_of(const Entry *table, unsigned tensors) {
    unsigned low = 0, high = tensors;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (table[middle].block <= blockIdx.x) low = middle;
        else high = middle;
    }
    return low;
}

// g ← factor·g; m ← β₁·m + (1-β₁)·g; v ← β₂·v + (1-β₂)·g²; w ← keep·w - step·m / (√v / root + ε), keep where it decays.
extern "C" __global__ void __launch_bounds__(512) adamw(
    const Entry *table, unsigned tensors, float factor, float beta1, float rest1, float beta2, float rest2, float keep,
    float step, float root, float epsilon) {
    Entry entry = table[entry_of(table, tensors)];
    unsigned first = (blockIdx.x - entry.block) * CHUNK, end = min(entry.count - first, CHUNK) + first;
    float stays = entry.decays ? keep : 1.0f;
    for (unsigned i = first + threadIdx.x; i < end; i += blockDim.x) {
        float g = entry.gradient[i] * factor;
        float m = beta1 * entry.m[i] + rest1 * g, v = beta2 * entry.v[i] + rest2 * (g * g);
        entry.m[i] = m;
        entry.v[i] = v;
        entry.weight[i] = stays * entry.weight[i] - step * m / (sqrtf(v) / root + epsilon);
    }
}

// parts[block] = Σ g² of its values.
extern "C" __global__ void __launch_bounds__(512) squares(const Entry *table, unsigned tensors, float *parts) {
    Entry entry = table[entry_of(table, tensors)];
    unsigned first = (blockIdx.x - entry.block) * CHUNK, end = min(entry.count - first, CHUNK) + first;
    float sum = 0;
    for (unsigned i = first + threadIdx.x; i < end; i += blockDim.x) sum += entry.gradient[i] * entry.gradient[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// sums[tensor] = Σ of its parts. One block a tensor.
extern "C" __global__ void __launch_bounds__(512) square_sums(const Entry *table, unsigned tensors, const float *parts, float *sums) {
    Entry entry = table[blockIdx.x];
    unsigned blocks = (entry.count + CHUNK - 1) / CHUNK;
    float sum = 0;
    for (unsigned i = threadIdx.x; i < blocks; i += blockDim.x) sum += parts[entry.block + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
