// Low-rank changes of packed rows, each row by the adapter of its slot: inner = factor · x·Aᵀ, then out += inner·Bᵀ.
//
// A is [rank, input], B [output, rank], of any rank beside any other; their addresses stand in tables on the device. A
// block takes a tile of 16 rows and of these a run of one slot, or one after the other; rows without an adapter cost
// nothing. A number depends on its own row alone. Shapes: x [rows, input], inner [sites, rows, most_rank],
// out [rows, output].
// After: Punica (Chen et al. 2023, arXiv 2310.18547), S-LoRA (Sheng et al. 2023, arXiv 2311.03285).

#include "tables.cuh"
#include "tiles.cuh"

using bf16 = __nv_bfloat16;
constexpr unsigned WARPS = 8;
constexpr unsigned THREADS = WARPS * WARP;
constexpr unsigned ROWS = 16;
// Outputs of a warp.
constexpr unsigned OUTPUTS = 32;

// A run of rows of one slot, and what its adapter has at a site; count 0 ends the runs of a tile.
template <typename T> struct Run {
    unsigned first, count, rank = 0;
    float factor = 0;
    const T *a = nullptr, *b = nullptr;

    // Finds run `wanted` of the rows from `begin` on, in the whole warp.
    __device__ __forceinline__ Run(
        const unsigned *row_slots, unsigned begin, unsigned rows, unsigned wanted, unsigned site, unsigned most_rank,
        const Tables &tables) {
        unsigned lane = threadIdx.x % WARP, here = min(rows - begin, ROWS);
        unsigned slot = lane < here ? row_slots[begin + lane] : 0, before = __shfl_up_sync(ALL, slot, 1);
        bool starts = lane < here && (lane == 0 || slot != before);
        unsigned edges = __ballot_sync(ALL, starts), runs = __ballot_sync(ALL, starts && slot < tables.slots);
        for (unsigned i = 0; i < wanted; i++) runs &= runs - 1;
        unsigned start = runs ? __ffs(runs) - 1 : 0, later = edges & ~((2u << start) - 1);
        slot = __shfl_sync(ALL, slot, start);
        first = begin + start;
        count = runs ? (later ? __ffs(later) - 1 : here) - start : 0;
        if (count == 0) return;
        size_t at = size_t(slot) * tables.sites + site;
        a = reinterpret_cast<const T *>(tables.addresses[2 * at]);
        b = reinterpret_cast<const T *>(tables.addresses[2 * at + 1]);
        if (a && b) rank = min(tables.ranks[at], most_rank);
        factor = tables.factors[at];
    }
};

// Of up to three sites the one of the block.
__device__ __forceinline__ unsigned site_of(unsigned s0, unsigned s1, unsigned s2) {
    return blockIdx.z == 0 ? s0 : blockIdx.z == 1 ? s1 : s2;
}

// bf16: 8 · TILES ranks by tensor cores; the input is divided over the warps, whose sums are added in order.
template <int TILES>
__device__ __forceinline__ void shrink(
    const bf16 *x, const unsigned *row_slots, const Tables &tables, float *inner, unsigned site, unsigned rows,
    unsigned input, unsigned most_rank, unsigned parts) {
    __shared__ float sums_of[WARPS][ROWS][8 * TILES];
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, part = lane % 4 * 8;
    unsigned begin = blockIdx.x / parts * ROWS, first_rank = blockIdx.y * 8 * TILES;
    unsigned steps = (input + 31) / 32, share = (steps + WARPS - 1) / WARPS;
    for (unsigned wanted = blockIdx.x % parts;; wanted += parts) {
        Run<bf16> run(row_slots, begin, rows, wanted, site, most_rank, tables);
        if (run.count == 0) return;
        if (first_rank >= run.rank) continue;
        // Rows and ranks beyond the last are the last one again, and not written.
        Products<TILES, true, false, (TILES == 1 ? 8 : 4)> products = {};
        products.low = x + size_t(run.first + min(group, run.count - 1)) * input + part;
        products.high = x + size_t(run.first + min(group + 8, run.count - 1)) * input + part;
        for (int j = 0; j < TILES; j++)
            products.matrix[j] = run.a + size_t(min(first_rank + 8 * j + group, run.rank - 1)) * input + part;
        products.add(warp * share, min(steps, (warp + 1) * share), input, part);
        for (int j = 0; j < TILES; j++)
            for (int i = 0; i < 4; i++)
                sums_of[warp][group + i / 2 * 8][8 * j + lane % 4 * 2 + i % 2] = products.sum(j, i);
        __syncthreads();
        for (unsigned i = threadIdx.x; i < run.count * 8 * TILES; i += THREADS) {
            unsigned row = i / (8 * TILES), rank = i % (8 * TILES);
            if (first_rank + rank >= run.rank) continue;
            float sum = 0;
            for (unsigned from = 0; from < WARPS; from++) sum += sums_of[from][row][rank];
            inner[(size_t(blockIdx.z) * rows + run.first + row) * most_rank + first_rank + rank] = sum * run.factor;
        }
        __syncthreads();
    }
}

// f32: a warp a rank, row after row.
__device__ __forceinline__ void shrink_plain(
    const float *x, const unsigned *row_slots, const Tables &tables, float *inner, unsigned site, unsigned rows,
    unsigned input, unsigned most_rank, unsigned parts) {
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, rank = blockIdx.y * 8 + warp;
    unsigned begin = blockIdx.x / parts * ROWS;
    for (unsigned wanted = blockIdx.x % parts;; wanted += parts) {
        Run<float> run(row_slots, begin, rows, wanted, site, most_rank, tables);
        if (run.count == 0) return;
        if (rank >= run.rank) continue;
        for (unsigned row = run.first; row < run.first + run.count; row++) {
            float sum = 0;
            const float *own = x + size_t(row) * input, *matrix = run.a + size_t(rank) * input;
            for (unsigned k = lane; k < input; k += WARP) sum += own[k] * matrix[k];
            sum = warp_sum(sum);
            if (lane == 0) inner[(size_t(blockIdx.z) * rows + row) * most_rank + rank] = sum * run.factor;
        }
    }
}

// Eight numbers of a row of B from `at` on, zeros beyond the rank, as words.
__device__ __forceinline__ uint4 ranks_of(const bf16 *row, unsigned at, unsigned rank) {
    uint32_t words[4];
    for (unsigned i = 0; i < 4; i++) {
        uint32_t low = at + 2 * i < rank ? __bfloat16_as_ushort(row[at + 2 * i]) : 0;
        uint32_t high = at + 2 * i + 1 < rank ? __bfloat16_as_ushort(row[at + 2 * i + 1]) : 0;
        words[i] = low | (high << 16);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Eight numbers of a row of inner from `at` on, zeros beyond the rank: rounded, and what rounding left.
struct Halves {
    uint32_t high[4], low[4];

    __device__ __forceinline__ Halves(const float *row, unsigned at, unsigned rank) {
        float own[8];
        for (unsigned i = 0; i < 8; i++) own[i] = at + i < rank ? row[at + i] : 0.0f;
        for (unsigned i = 0; i < 4; i++) {
            high[i] = pack(own[2 * i], own[2 * i + 1]);
            low[i] = pack(own[2 * i] - low_half(high[i]), own[2 * i + 1] - high_half(high[i]));
        }
    }
};

// bf16: inner as the rows of a product, in two parts so that none of its digits are lost; a warp makes 32 outputs.
// Column c of tile j is output 8 · (c / 2) + 2j + c % 2, so that each lane has 8 that lie together.
template <typename O>
__device__ __forceinline__ void expand(
    const float *inner, const unsigned *row_slots, const Tables &tables, O *out, unsigned output, unsigned site,
    unsigned rows, unsigned most_rank, unsigned parts) {
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, part = lane % 4 * 8;
    unsigned begin = blockIdx.x / parts * ROWS, first = (blockIdx.y * WARPS + warp) * OUTPUTS, at = first + part;
    if (first >= output) return;
    bool together = by_eights(output, out);
    for (unsigned wanted = blockIdx.x % parts;; wanted += parts) {
        Run<bf16> run(row_slots, begin, rows, wanted, site, most_rank, tables);
        if (run.count == 0) return;
        if (run.rank == 0) continue;
        bool wide = by_eights(run.rank, run.b);
        // Rows and outputs beyond the last are the last one again, and not written.
        const float *row[2];
        O *to[2];
        Eight before[2] = {};
        for (unsigned i = 0; i < 2; i++) {
            unsigned own = run.first + min(group + 8 * i, run.count - 1);
            row[i] = inner + (size_t(blockIdx.z) * rows + own) * most_rank;
            to[i] = out + size_t(own) * output + at;
            if (together && at < output) before[i] = load8(to[i]);
        }
        const bf16 *matrix[4];
        for (unsigned j = 0; j < 4; j++)
            matrix[j] = run.b + size_t(min(first + group / 2 * 8 + 2 * j + group % 2, output - 1)) * run.rank;
        float sums[4][4] = {};
        for (unsigned k = part; k < run.rank + part; k += 32) {
            uint4 b[4];
            if (wide) {
                // Beyond the rank its last numbers, for which inner has zeros.
                unsigned from = min(k, run.rank - 8);
                for (unsigned j = 0; j < 4; j++) b[j] = *reinterpret_cast<const uint4 *>(matrix[j] + from);
            } else {
                for (unsigned j = 0; j < 4; j++) b[j] = ranks_of(matrix[j], k, run.rank);
            }
            Halves low(row[0], k, run.rank), high(row[1], k, run.rank);
            for (unsigned j = 0; j < 4; j++) {
                mma(sums[j], {low.high[0], high.high[0], low.high[1], high.high[1]}, {b[j].x, b[j].y});
                mma(sums[j], {low.high[2], high.high[2], low.high[3], high.high[3]}, {b[j].z, b[j].w});
                mma(sums[j], {low.low[0], high.low[0], low.low[1], high.low[1]}, {b[j].x, b[j].y});
                mma(sums[j], {low.low[2], high.low[2], low.low[3], high.low[3]}, {b[j].z, b[j].w});
            }
        }
        for (unsigned i = 0; i < 2; i++) {
            if (group + 8 * i >= run.count) continue;
            Eight sum;
            for (int j = 0; j < 8; j++) sum.at[j] = before[i].at[j] + sums[j / 2][2 * i + j % 2];
            if (together) {
                if (at < output) store8(to[i], sum);
            } else {
                for (unsigned j = 0; j < 8 && at + j < output; j++)
                    to[i][j] = from_float<O>(to_float(to[i][j]) + sum.at[j]);
            }
        }
        __syncwarp();
    }
}

// f32: a thread an output, row after row.
__device__ __forceinline__ void expand_plain(
    const float *inner, const unsigned *row_slots, const Tables &tables, float *out, unsigned output, unsigned site,
    unsigned rows, unsigned most_rank, unsigned parts) {
    unsigned begin = blockIdx.x / parts * ROWS, own = blockIdx.y * THREADS + threadIdx.x;
    for (unsigned wanted = blockIdx.x % parts;; wanted += parts) {
        Run<float> run(row_slots, begin, rows, wanted, site, most_rank, tables);
        if (run.count == 0) return;
        for (unsigned row = run.first; row < run.first + run.count && own < output; row++) {
            const float *of = inner + (size_t(blockIdx.z) * rows + row) * most_rank;
            float sum = 0;
            for (unsigned r = 0; r < run.rank; r++) sum += of[r] * run.b[size_t(own) * run.rank + r];
            out[size_t(row) * output + own] += sum;
        }
    }
}

#define SHRINK(name, T, function)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 2) name(                                                         \
        const T *x, const unsigned *row_slots, const long long *addresses, const unsigned *ranks,                      \
        const float *factors, float *inner, unsigned slots, unsigned sites, unsigned s0, unsigned s1, unsigned s2,     \
        unsigned rows, unsigned most_rank, unsigned parts, unsigned input) {                                           \
        Tables tables = {addresses, ranks, factors, slots, sites};                                                     \
        function(x, row_slots, tables, inner, site_of(s0, s1, s2), rows, input, most_rank, parts);                     \
    }

#define EXPAND(name, O, function)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 2) name(                                                         \
        const float *inner, const unsigned *row_slots, const long long *addresses, const unsigned *ranks,              \
        const float *factors, unsigned slots, unsigned sites, unsigned s0, unsigned s1, unsigned s2, unsigned rows,    \
        unsigned most_rank, unsigned parts, O *o0, O *o1, O *o2, unsigned n0, unsigned n1, unsigned n2) {              \
        Tables tables = {addresses, ranks, factors, slots, sites};                                                     \
        O *out = blockIdx.z == 0 ? o0 : blockIdx.z == 1 ? o1 : o2;                                                     \
        unsigned output = site_of(n0, n1, n2);                                                                         \
        function(inner, row_slots, tables, out, output, site_of(s0, s1, s2), rows, most_rank, parts);                  \
    }

SHRINK(shrink_bf16_few, bf16, shrink<1>)
SHRINK(shrink_bf16_many, bf16, shrink<4>)
SHRINK(shrink_f32, float, shrink_plain)
EXPAND(expand_bf16_bf16, bf16, expand)
EXPAND(expand_bf16_f32, float, expand)
EXPAND(expand_f32_f32, float, expand_plain)
