// Products of a few rows with up to three weight matrices of the same input, in one launch: bound by reading the
// weights.
//
// out = x·Wᵀ; x is [rows, input] with at most 16 rows, W [output, input], out [rows, output]. A block of 8 warps makes
// a tile of outputs, whose input is divided over the warps; their sums are added in order. So a number depends neither
// on the other rows nor on how many there are.

#include "tables.cuh"
#include "tiles.cuh"

constexpr int WARPS = 8;
constexpr unsigned ROWS = 16;

// Of up to three matrices the one that a block works on, what is added to its products, and its first output.
template <typename W, typename O> struct Tile {
    const W *weight;
    O *out;
    unsigned outputs, first;
    Additions<W> additions;
};

// bf16: tensor cores, with up to 16 rows of x, of which 8 or all are there (TALL). Leaves sums in order for `sum_of`.
template <int TILES, bool TALL> struct Halves {
    using Parts = float[WARPS][ROWS][TILES * 8];
    const __nv_bfloat16 *x;
    unsigned rows, input;

    // Tile j begins at weight[j], an address of 8 rows of which `there[j]` are there.
    __device__ __forceinline__ void multiply(
        const __nv_bfloat16 *const (&weight)[TILES], const unsigned (&there)[TILES], Parts &parts) const {
        unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = lane / 4, part = lane % 4 * 8;
        // Rows and outputs beyond the last are the last one again, and not written.
        Products<TILES, TALL, true, (TILES == 1 && !TALL ? 8 : 4)> products = {};
        products.low = x + size_t(min(group, rows - 1)) * input + part;
        products.high = x + size_t(min(group + 8, rows - 1)) * input + part;
        for (int j = 0; j < TILES; j++)
            products.matrix[j] = weight[j] + size_t(min(group, there[j] - 1)) * input + part;
        unsigned steps = (input + 31) / 32, share = (steps + WARPS - 1) / WARPS;
        products.add(warp * share, min(steps, (warp + 1) * share), input, part);
        for (int j = 0; j < TILES; j++)
            for (int i = 0; i < 4; i++)
                parts[warp][group + i / 2 * 8][8 * j + lane % 4 * 2 + i % 2] = products.sum(j, i);
        __syncthreads();
    }

    static __device__ __forceinline__ float sum_of(const Parts &parts, unsigned row, unsigned column) {
        float sum = 0;
        for (int from = 0; from < WARPS; from++) sum += parts[from][row][column];
        return sum;
    }
};

// x·Wᵀ with additions; bf16.
template <int TILES, bool TALL, typename O>
__device__ __forceinline__ void small_product(
    const __nv_bfloat16 *x, const Tile<__nv_bfloat16, O> &tile, unsigned rows, unsigned input) {
    using Form = Halves<TILES, TALL>;
    __shared__ typename Form::Parts parts;
    const __nv_bfloat16 *weight[TILES];
    unsigned there[TILES], left = tile.outputs - tile.first;
    for (unsigned j = 0; j < TILES; j++) {
        // A tile beyond the last output is the first one again.
        bool inside = 8 * j < left;
        weight[j] = tile.weight + size_t(tile.first + (inside ? 8 * j : 0)) * input;
        there[j] = min(inside ? left - 8 * j : left, 8u);
    }
    Form{x, rows, input}.multiply(weight, there, parts);
    unsigned row = threadIdx.x / (TILES * 8), column = threadIdx.x % (TILES * 8);
    if (row >= rows || column >= left) return;
    float sum = tile.additions(Form::sum_of(parts, row, column), row, tile.first + column);
    tile.out[size_t(row) * tile.outputs + tile.first + column] = from_float<O>(sum);
}

// silu(x·Gᵀ) · (x·Uᵀ), each with additions; bf16. A block makes 8 outputs.
template <bool TALL>
__device__ __forceinline__ void gated_product(
    const __nv_bfloat16 *x, const Tile<__nv_bfloat16, __nv_bfloat16> &gate,
    const Tile<__nv_bfloat16, __nv_bfloat16> &up, unsigned rows, unsigned input) {
    using Form = Halves<2, TALL>;
    __shared__ typename Form::Parts parts;
    unsigned there = min(gate.outputs - gate.first, 8u);
    size_t from = size_t(gate.first) * input;
    Form{x, rows, input}.multiply({gate.weight + from, up.weight + from}, {there, there}, parts);
    unsigned row = threadIdx.x / 8, column = threadIdx.x % 8, output = gate.first + column;
    if (row >= rows || column >= there) return;
    float g = gate.additions(Form::sum_of(parts, row, column), row, output);
    float u = up.additions(Form::sum_of(parts, row, 8 + column), row, output);
    gate.out[size_t(row) * gate.outputs + output] = __float2bfloat16(g / (1.0f + expf(-g)) * u);
}

// Sums of a warp for one output and up to MOST rows; f32.
template <int MOST>
__device__ __forceinline__ void sums_of(
    const float *x, const float *weight, unsigned rows, unsigned input, float (&sums)[MOST]) {
    for (int row = 0; row < MOST; row++) sums[row] = 0;
    for (unsigned k = threadIdx.x % WARP * 4; k < input; k += 4 * WARP) {
        Four w = load4(weight + k);
#pragma unroll
        for (int row = 0; row < MOST; row++) {
            Four own = load4(x + size_t(min(unsigned(row), rows - 1)) * input + k);
            for (int j = 0; j < 4; j++) sums[row] = fmaf(own.at[j], w.at[j], sums[row]);
        }
    }
#pragma unroll
    for (int row = 0; row < MOST; row++) sums[row] = warp_sum(sums[row]);
}

// x·Wᵀ with additions; f32, a warp an output.
template <int MOST>
__device__ __forceinline__ void small_product(
    const float *x, const Tile<float, float> &tile, unsigned rows, unsigned input) {
    unsigned output = tile.first + threadIdx.x / WARP;
    if (output >= tile.outputs) return;
    float sums[MOST];
    sums_of(x, tile.weight + size_t(output) * input, rows, input, sums);
#pragma unroll
    for (int row = 0; row < MOST; row++)
        if (threadIdx.x % WARP == row && row < rows)
            tile.out[size_t(row) * tile.outputs + output] = tile.additions(sums[row], row, output);
}

// silu(x·Gᵀ) · (x·Uᵀ), each with additions; f32, a warp an output.
__device__ __forceinline__ void gated_product(
    const float *x, const Tile<float, float> &gate, const Tile<float, float> &up, unsigned rows, unsigned input) {
    unsigned output = gate.first + threadIdx.x / WARP;
    if (output >= gate.outputs) return;
    float of_gate[ROWS], of_up[ROWS];
    sums_of(x, gate.weight + size_t(output) * input, rows, input, of_gate);
    sums_of(x, up.weight + size_t(output) * input, rows, input, of_up);
#pragma unroll
    for (int row = 0; row < ROWS; row++)
        if (threadIdx.x % WARP == row && row < rows) {
            float g = gate.additions(of_gate[row], row, output), u = up.additions(of_up[row], row, output);
            gate.out[size_t(row) * gate.outputs + output] = g / (1.0f + expf(-g)) * u;
        }
}

// Of three the one with an index.
template <typename T> __device__ __forceinline__ T one_of(unsigned index, T a, T b, T c) {
    return index == 0 ? a : index == 1 ? b : c;
}

#define PARAMETERS(W, O)                                                                                               \
    const W *x, unsigned rows, unsigned input, const W *w0, const W *w1, const W *w2, const W *b0, const W *b1,        \
        const W *b2, O *o0, O *o1, O *o2, unsigned n0, unsigned n1, unsigned n2, const float *inner,                   \
        const unsigned *row_slots, const long long *addresses, const unsigned *ranks, const float *factors,            \
        unsigned slots, unsigned sites, unsigned s0, unsigned s1, unsigned s2, unsigned most_rank

// Tile `tile` of `size` outputs of weight `index`; inner is [weights, rows, most_rank].
#define TILE(W, O, index, tile, size)                                                                                  \
    Tile<W, O> {                                                                                                       \
        one_of(index, w0, w1, w2), one_of(index, o0, o1, o2), one_of(index, n0, n1, n2), (tile) * (size), {            \
            one_of(index, b0, b1, b2), inner ? inner + size_t(index) * rows * most_rank : nullptr, row_slots,          \
                Tables{addresses, ranks, factors, slots, sites}, one_of(index, s0, s1, s2), most_rank                  \
        }                                                                                                              \
    }

#define PRODUCT(name, W, O, blocks, size, function)                                                                    \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(PARAMETERS(W, O)) {                                 \
        unsigned first = (n0 + size - 1) / size, both = first + (n1 + size - 1) / size, tile = blockIdx.x;             \
        unsigned index = tile < first ? 0 : tile < both ? 1 : 2;                                                       \
        tile -= one_of(index, 0u, first, both);                                                                        \
        function(x, TILE(W, O, index, tile, size), rows, input);                                                       \
    }

#define GATED(name, W, blocks, function)                                                                               \
    extern "C" __global__ void __launch_bounds__(256, blocks) name(PARAMETERS(W, W)) {                                 \
        function(x, TILE(W, W, 0u, blockIdx.x, 8), TILE(W, W, 1u, blockIdx.x, 8), rows, input);                        \
    }

PRODUCT(small_product_bf16_bf16_1_8, __nv_bfloat16, __nv_bfloat16, 3, 8, (small_product<1, false>))
PRODUCT(small_product_bf16_bf16_2_8, __nv_bfloat16, __nv_bfloat16, 3, 16, (small_product<2, false>))
PRODUCT(small_product_bf16_bf16_1_16, __nv_bfloat16, __nv_bfloat16, 2, 8, (small_product<1, true>))
PRODUCT(small_product_bf16_bf16_2_16, __nv_bfloat16, __nv_bfloat16, 2, 16, (small_product<2, true>))
PRODUCT(small_product_bf16_f32_1_8, __nv_bfloat16, float, 3, 8, (small_product<1, false>))
PRODUCT(small_product_bf16_f32_2_8, __nv_bfloat16, float, 3, 16, (small_product<2, false>))
PRODUCT(small_product_bf16_f32_1_16, __nv_bfloat16, float, 2, 8, (small_product<1, true>))
PRODUCT(small_product_bf16_f32_2_16, __nv_bfloat16, float, 2, 16, (small_product<2, true>))
PRODUCT(small_product_f32_f32_1_1, float, float, 2, 8, small_product<1>)
PRODUCT(small_product_f32_f32_1_8, float, float, 2, 8, small_product<8>)
PRODUCT(small_product_f32_f32_1_16, float, float, 2, 8, small_product<16>)
GATED(gated_product_bf16_8, __nv_bfloat16, 3, gated_product<false>)
GATED(gated_product_bf16_16, __nv_bfloat16, 2, gated_product<true>)
GATED(gated_product_f32_16, float, 1, gated_product)
