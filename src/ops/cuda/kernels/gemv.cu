// Products of a few rows with up to three weight matrices of the same input, in one launch: bound by reading the
// weights.
//
// out = x·Wᵀ; x is [rows, input] with at most 16 rows, W [output, input], out [rows, output]. A block of 8 warps makes
// a tile of outputs, whose input is divided over the warps; their sums are added in order. So a number depends neither
// on the other rows nor on how many there are.

#include "tiles.cuh"

constexpr int WARPS = 8;
constexpr unsigned ROWS = 16;

// Of up to three matrices: the one that a block works on, and its first output.
template <typename W, typename O> struct Tile {
    const W *weight;
    O *out;
    unsigned outputs, first;

    __device__ __forceinline__ Tile(
        const W *w0, const W *w1, const W *w2, O *o0, O *o1, O *o2, unsigned n0, unsigned n1, unsigned n2,
        unsigned size) {
        unsigned tile = blockIdx.x, tiles0 = (n0 + size - 1) / size, tiles1 = (n1 + size - 1) / size;
        weight = w0, out = o0, outputs = n0;
        if (tile >= tiles0 + tiles1) {
            tile -= tiles0 + tiles1;
            weight = w2, out = o2, outputs = n2;
        } else if (tile >= tiles0) {
            tile -= tiles0;
            weight = w1, out = o1, outputs = n1;
        }
        first = tile * size;
    }
};

// bf16: tensor cores, with up to 16 rows of x.
template <int TILES, bool TALL, typename O>
__device__ __forceinline__ void small_product(
    const __nv_bfloat16 *x, const Tile<__nv_bfloat16, O> &tile, unsigned rows, unsigned input) {
    __shared__ float parts[WARPS][ROWS][TILES * 8];
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, part = lane % 4 * 8;
    // Rows and outputs beyond the last are the last one again, and not written.
    Products<TILES, TALL, true> products = {};
    products.low = x + size_t(min(group, rows - 1)) * input + part;
    products.high = x + size_t(min(group + 8, rows - 1)) * input + part;
    for (int j = 0; j < TILES; j++)
        products.matrix[j] = tile.weight + size_t(min(tile.first + 8 * j + group, tile.outputs - 1)) * input + part;
    unsigned steps = (input + 31) / 32, share = (steps + WARPS - 1) / WARPS;
    products.add(warp * share, min(steps, (warp + 1) * share), input, part);
    for (int j = 0; j < TILES; j++)
        for (int i = 0; i < 4; i++)
            parts[warp][group + i / 2 * 8][8 * j + lane % 4 * 2 + i % 2] = products.sum(j, i);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < rows * TILES * 8; i += WARPS * WARP) {
        unsigned row = i / (TILES * 8), column = i % (TILES * 8);
        if (tile.first + column >= tile.outputs) continue;
        float sum = 0;
        for (int from = 0; from < WARPS; from++) sum += parts[from][row][column];
        tile.out[size_t(row) * tile.outputs + tile.first + column] = from_float<O>(sum);
    }
}

// f32: a warp an output, for up to MOST rows.
template <int MOST>
__device__ __forceinline__ void small_product(
    const float *x, const Tile<float, float> &tile, unsigned rows, unsigned input) {
    unsigned lane = threadIdx.x % WARP, output = tile.first + threadIdx.x / WARP;
    if (output >= tile.outputs) return;
    const float *weight = tile.weight + size_t(output) * input;
    float sums[MOST] = {};
    for (unsigned k = lane * 4; k < input; k += 4 * WARP) {
        Four w = load4(weight + k);
#pragma unroll
        for (int row = 0; row < MOST; row++) {
            Four own = load4(x + size_t(min(unsigned(row), rows - 1)) * input + k);
            for (int j = 0; j < 4; j++) sums[row] += own.at[j] * w.at[j];
        }
    }
#pragma unroll
    for (int row = 0; row < MOST; row++) {
        float sum = warp_sum(sums[row]);
        if (lane == 0 && row < rows) tile.out[size_t(row) * tile.outputs + output] = sum;
    }
}

#define PARAMETERS(W, O)                                                                                               \
    const W *x, const W *w0, const W *w1, const W *w2, O *o0, O *o1, O *o2, unsigned n0, unsigned n1, unsigned n2,     \
        unsigned rows, unsigned input

#define OF_HALVES(name, TILES, TALL, O)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, TALL ? 2 : 3) name(PARAMETERS(__nv_bfloat16, O)) {         \
        Tile<__nv_bfloat16, O> tile(w0, w1, w2, o0, o1, o2, n0, n1, n2, TILES * 8);                                    \
        small_product<TILES, TALL>(x, tile, rows, input);                                                              \
    }

#define OF_FLOATS(name, MOST)                                                                                          \
    extern "C" __global__ void name(PARAMETERS(float, float)) {                                                        \
        Tile<float, float> tile(w0, w1, w2, o0, o1, o2, n0, n1, n2, WARPS);                                            \
        small_product<MOST>(x, tile, rows, input);                                                                     \
    }

OF_HALVES(small_product_bf16_bf16_1_8, 1, false, __nv_bfloat16)
OF_HALVES(small_product_bf16_bf16_2_8, 2, false, __nv_bfloat16)
OF_HALVES(small_product_bf16_bf16_1_16, 1, true, __nv_bfloat16)
OF_HALVES(small_product_bf16_bf16_2_16, 2, true, __nv_bfloat16)
OF_HALVES(small_product_bf16_f32_1_8, 1, false, float)
OF_HALVES(small_product_bf16_f32_2_8, 2, false, float)
OF_HALVES(small_product_bf16_f32_1_16, 1, true, float)
OF_HALVES(small_product_bf16_f32_2_16, 2, true, float)
OF_FLOATS(small_product_f32_f32_1_1, 1)
OF_FLOATS(small_product_f32_f32_1_8, 8)
OF_FLOATS(small_product_f32_f32_1_16, 16)
