// Gradients of RMS norm and layer norm.
//
// x, gradient and for_x are [rows, width] of one format with weight and bias [width]; sums are f32 in a fixed order.
// statistics are f32 [rows, 2]: the mean (0 for RMS norm) and the factor that makes x̂ of x - mean.
// After: Ba et al. 2016, Zhang and Sennrich 2019.

#include "common.cuh"

// Rows whose share of a weight's gradient is summed by one block, and columns of that block.
constexpr int SHARE = 128;
constexpr int COLUMNS = WARP;
constexpr int LINES = 8;

// Every thread gets mean and factor of a row.
template <typename T, bool CENTRED>
__device__ float2 statistics_of(const T *x, unsigned width, float eps) {
    float mean = 0;
    if (CENTRED) {
        float sum = 0;
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) sum += to_float(x[i]);
        mean = block_sum(sum) / width;
    }
    float squares = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float centred = to_float(x[i]) - mean;
        squares += centred * centred;
    }
    return make_float2(mean, rsqrtf(block_sum(squares) / width + eps));
}

// for_x = factor · (w·g - mean(w·g) - x̂·mean(w·g·x̂)) + beside, without the first mean for RMS norm; beside and
// statistics may be missing. One block a row.
template <typename T, bool CENTRED>
__device__ void back(
    const T *x, const T *weight, const T *gradient, const T *beside, T *for_x, float *statistics, unsigned width,
    float eps) {
    size_t at = size_t(blockIdx.x) * width;
    float2 row = statistics_of<T, CENTRED>(x + at, width, eps);
    float plain = 0, along = 0;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float weighted = to_float(gradient[at + i]) * to_float(weight[i]);
        plain += weighted;
        along += weighted * (to_float(x[at + i]) - row.x) * row.y;
    }
    plain = CENTRED ? block_sum(plain) / width : 0;
    along = block_sum(along) / width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float weighted = to_float(gradient[at + i]) * to_float(weight[i]);
        float unit = (to_float(x[at + i]) - row.x) * row.y;
        float sum = row.y * (weighted - plain - unit * along);
        if (beside) sum += to_float(beside[at + i]);
        for_x[at + i] = from_float<T>(sum);
    }
    if (statistics && threadIdx.x == 0) {
        statistics[2 * size_t(blockIdx.x)] = row.x;
        statistics[2 * size_t(blockIdx.x) + 1] = row.y;
    }
}

// shares[part] = Σ g·x̂ and Σ g over the rows of a part, f32 [parts, 2, width]. Blocks: [columns / COLUMNS, parts].
template <typename T>
__device__ void weight_shares(
    const T *x, const T *gradient, const float *statistics, float *shares, unsigned rows, unsigned width) {
    __shared__ float sums[2][LINES][COLUMNS];
    unsigned column = blockIdx.x * COLUMNS + threadIdx.x % COLUMNS, line = threadIdx.x / COLUMNS;
    unsigned end = min((blockIdx.y + 1) * SHARE, rows);
    float weight = 0, bias = 0;
    if (column < width)
        for (unsigned row = blockIdx.y * SHARE + line; row < end; row += LINES) {
            float of = to_float(gradient[size_t(row) * width + column]);
            float centred = to_float(x[size_t(row) * width + column]) - statistics[2 * size_t(row)];
            weight += of * centred * statistics[2 * size_t(row) + 1];
            bias += of;
        }
    sums[0][line][threadIdx.x % COLUMNS] = weight;
    sums[1][line][threadIdx.x % COLUMNS] = bias;
    __syncthreads();
    if (line < 2 && column < width) {
        float sum = 0;
        for (int i = 0; i < LINES; i++) sum += sums[line][i][threadIdx.x % COLUMNS];
        shares[(size_t(blockIdx.y) * 2 + line) * width + column] = sum;
    }
}

// for_weight and for_bias, which may be missing: the sums of their shares, f32 [width]. A thread a column.
extern "C" __global__ void weight_sums(
    const float *shares, float *for_weight, float *for_bias, unsigned parts, unsigned width) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float weight = 0, bias = 0;
    for (unsigned part = 0; part < parts; part++) {
        weight += shares[size_t(part) * 2 * width + column];
        bias += shares[(size_t(part) * 2 + 1) * width + column];
    }
    if (for_weight) for_weight[column] = weight;
    if (for_bias) for_bias[column] = bias;
}

#define NORMS(T, NAME) \
    extern "C" __global__ void rms_norm_back_##NAME( \
        const T *x, const T *weight, const T *gradient, const T *beside, T *for_x, float *statistics, \
        unsigned width, float eps) { \
        back<T, false>(x, weight, gradient, beside, for_x, statistics, width, eps); \
    } \
    extern "C" __global__ void layer_norm_back_##NAME( \
        const T *x, const T *weight, const T *gradient, const T *beside, T *for_x, float *statistics, \
        unsigned width, float eps) { \
        back<T, true>(x, weight, gradient, beside, for_x, statistics, width, eps); \
    } \
    extern "C" __global__ void weight_shares_##NAME( \
        const T *x, const T *gradient, const float *statistics, float *shares, unsigned rows, unsigned width) { \
        weight_shares(x, gradient, statistics, shares, rows, width); \
    }

NORMS(float, f32)
NORMS(__nv_bfloat16, bf16)
