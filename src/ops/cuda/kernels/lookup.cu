// Rows that are looked up, chosen or given a bias: what stands before and behind the blocks of a model.
//
// One block of threads a row.

#include "common.cuh"

// out[row] = table[ids[row]]; the table is [entries, width], out f32 or of the table's format [rows, width].
template <typename T, typename Out>
__device__ void take(const T *table, const uint32_t *ids, Out *out, unsigned width) {
    const T *from = table + size_t(ids[blockIdx.x]) * width;
    out += size_t(blockIdx.x) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) out[i] = from_float<Out>(to_float(from[i]));
}

extern "C" __global__ void take_f32(const float *table, const uint32_t *ids, float *out, unsigned width) {
    take(table, ids, out, width);
}

extern "C" __global__ void take_bf16(const __nv_bfloat16 *table, const uint32_t *ids, float *out, unsigned width) {
    take(table, ids, out, width);
}

// x[row] += bias; x is [rows, width].
template <typename T> __device__ void add_bias(T *x, const T *bias, unsigned width) {
    x += size_t(blockIdx.x) * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x)
        x[i] = from_float<T>(to_float(x[i]) + to_float(bias[i]));
}

extern "C" __global__ void add_bias_f32(float *x, const float *bias, unsigned width) { add_bias(x, bias, width); }

extern "C" __global__ void add_bias_bf16(__nv_bfloat16 *x, const __nv_bfloat16 *bias, unsigned width) {
    add_bias(x, bias, width);
}
