// Attention of several query rows a sequence over the pool, each seeing its own key and those before it: chunks of
// prompts.
//
// A block of 4 warps takes 64 queries, 16 a warp, of the heads that share a head of keys, and walks over the keys by 64,
// which lie in shared memory; nothing of size queries × keys is kept. Shapes: q and out [rows, heads, head_dim], pool
// [blocks, kv_heads, PAGE, head_dim], starts [sequences + 1], pasts [sequences], table [sequences, most_blocks].
// After: Dao 2023 (arXiv 2307.08691), FlashAttention's packing of grouped queries.

#include "attention.cuh"

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP;
constexpr unsigned KEYS = 64;
constexpr unsigned QUERIES = 16 * WARPS;

struct Sizes {
    unsigned heads, kv_heads, head_dim, most_blocks, window;
};

// The queries of a block of threads: `count` of a sequence from `first` on, whose first row is `row` of all and stands at
// `position`. Query i is that of head i % shared of row i / shared: heads that share keys go together.
struct Part {
    unsigned row, position, first, count, shared;
    const unsigned *pages;

    // The blocks with the most keys begin first.
    __device__ __forceinline__ Part(
        const unsigned *starts, const unsigned *pasts, const unsigned *table, const Sizes &sizes, unsigned size,
        unsigned shared) :
        shared(shared) {
        unsigned sequence = blockIdx.z;
        row = starts[sequence], position = pasts[sequence];
        unsigned all = (starts[sequence + 1] - row) * shared;
        first = (gridDim.x - 1 - blockIdx.x) * size;
        count = first < all ? min(size, all - first) : 0;
        pages = table + size_t(sequence) * sizes.most_blocks;
    }
    __device__ __forceinline__ unsigned position_of(unsigned i) const { return position + (first + i) / shared; }
};

// The first key that a position sees.
__device__ __forceinline__ unsigned first_seen(unsigned position, unsigned window) {
    return window && position >= window ? position + 1 - window : 0;
}

// Copies the rows of KEYS keys from `begin` on to shared memory; those from `end` on become zeros. Numbers beyond a
// head are its last ones: queries are zeros there, and what values add is not written.
template <int SETS>
__device__ __forceinline__ void stage(
    const bf16 *from, const unsigned *pages, unsigned begin, unsigned end, unsigned kv_head, const Sizes &sizes,
    bf16 *to, unsigned stride) {
    constexpr unsigned EIGHTS = 8 * SETS, AT_ONCE = THREADS / EIGHTS, COUNT = KEYS / AT_ONCE;
    unsigned first = threadIdx.x / EIGHTS, part = threadIdx.x % EIGHTS * 8, at = min(part, sizes.head_dim - 8);
    uint4 own[COUNT];
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) {
        unsigned key = i * AT_ONCE + first;
        size_t block = pages[min(begin + i * AT_ONCE, end - 1) / PAGE];
        own[i] = *reinterpret_cast<const uint4 *>(
            from + ((block * sizes.kv_heads + kv_head) * PAGE + key % PAGE) * sizes.head_dim + at);
    }
#pragma unroll
    for (unsigned i = 0; i < COUNT; i++) {
        unsigned key = i * AT_ONCE + first;
        if (begin + key >= end) own[i] = make_uint4(0, 0, 0, 0);
        *reinterpret_cast<uint4 *>(to + key * stride + part) = own[i];
    }
}

template <int SETS>
__device__ __forceinline__ void attend_rows(
    const bf16 *q, const bf16 *keys, const bf16 *values, const Part &part, bf16 *out, const Sizes &sizes, float scale) {
    // Paddings that keep the 16 bytes of neighbouring lanes in different banks.
    constexpr unsigned WIDTH = 64 * SETS, KEY_STRIDE = WIDTH + 8, VALUE_STRIDE = WIDTH + 16;
    __shared__ __align__(16) bf16 own_keys[KEYS * KEY_STRIDE], own_values[KEYS * VALUE_STRIDE];
    if (part.count == 0) return;
    unsigned kv_head = blockIdx.y, of_warp = threadIdx.x / WARP * 16;
    unsigned group = threadIdx.x % WARP / 4, lane = threadIdx.x % 4;

    // Where the numbers of a query begin. Queries beyond the last are the last one again, and not written.
    auto place_of = [&](unsigned i) {
        i = part.first + min(i, part.count - 1);
        size_t row = part.row + i / part.shared;
        return (row * sizes.heads + kv_head * part.shared + i % part.shared) * sizes.head_dim;
    };
    Queries<SETS> queries;
    queries.load(q + place_of(of_warp + group), q + place_of(of_warp + group + 8), sizes.head_dim);
    Mixture<SETS> mixture;
    unsigned low = part.position_of(of_warp + group), high = part.position_of(of_warp + group + 8);
    unsigned low_first = first_seen(low, sizes.window), high_first = first_seen(high, sizes.window);
    unsigned warp_first = first_seen(part.position_of(of_warp), sizes.window);
    unsigned warp_last = part.position_of(of_warp + 15);

    unsigned end = min(part.position_of(part.count - 1) + 1, sizes.most_blocks * PAGE);
    for (unsigned begin = first_seen(part.position_of(0), sizes.window) / PAGE * PAGE; begin < end; begin += KEYS) {
        __syncthreads();
        stage<SETS>(keys, part.pages, begin, end, kv_head, sizes, own_keys, KEY_STRIDE);
        stage<SETS>(values, part.pages, begin, end, kv_head, sizes, own_values, VALUE_STRIDE);
        __syncthreads();
        if (of_warp >= part.count || begin > warp_last || begin + KEYS <= warp_first) continue;

        // Column 2t of tile 2c + u is key 16c + 8u + t, column 2t + 1 the one 4 later.
        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; tile++) {
            const bf16 *key = own_keys + (8 * tile + group / 2 + group % 2 * 4) * KEY_STRIDE + 8 * lane;
            for (int s = 0; s < 2 * SETS; s++)
                queries.multiply(s, *reinterpret_cast<const uint4 *>(key + 32 * s), scores[tile]);
            for (int i = 0; i < 4; i++) {
                unsigned at = begin + 8 * tile + lane + i % 2 * 4, first = i < 2 ? low_first : high_first;
                bool seen = at >= first && at <= (i < 2 ? low : high) && at < end;
                scores[tile][i] = seen ? scores[tile][i] * scale : NOTHING;
            }
        }
        mixture.take(scores);
        for (int c = 0; c < KEYS / 16; c++)
            for (int set = 0; set < SETS; set++) {
                uint4 four[4];
                for (int i = 0; i < 4; i++)
                    four[i] = *reinterpret_cast<const uint4 *>(
                        own_values + (16 * c + lane + 4 * i) * VALUE_STRIDE + 64 * set + 8 * group);
                mixture.mix(set, scores[2 * c], scores[2 * c + 1], four);
            }
    }
    mixture.finish();
    for (int upper = 0; upper < 2; upper++) {
        unsigned i = of_warp + group + 8 * upper;
        float inverse = mixture.total[upper] > 0 ? 1 / mixture.total[upper] : 0;
        for (int set = 0; set < SETS; set++)
            for (int second = 0; second < 2; second++) {
                unsigned at = 64 * set + 16 * lane + 8 * second;
                Eight own = mixture.eight(set, upper, second);
                for (int j = 0; j < 8; j++) own.at[j] *= inverse;
                if (i < part.count && at < sizes.head_dim) store8(out + place_of(i) + at, own);
            }
    }
}

// Plain: a warp a query row; PER · 32 numbers of a head at most.
template <typename T, int PER>
__device__ __forceinline__ void attend_rows_plain(
    const T *q, const T *keys, const T *values, const Part &part, T *out, const Sizes &sizes, float scale) {
    unsigned head = blockIdx.y, kv_head = head / (sizes.heads / sizes.kv_heads);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (warp >= part.count) return;
    size_t own = (size_t(part.row + part.first + warp) * sizes.heads + head) * sizes.head_dim;
    PlainMixture<PER> mixture;
    float query[PER];
    mixture.load(q + own, sizes.head_dim, query);
    for (int i = 0; i < PER; i++) query[i] *= scale;
    unsigned position = part.position_of(warp), first = first_seen(position, sizes.window);
    unsigned end = min(position + 1, sizes.most_blocks * PAGE);
    for (unsigned begin = first / PAGE * PAGE; begin < end; begin += PAGE) {
        size_t base = (size_t(part.pages[begin / PAGE]) * sizes.kv_heads + kv_head) * PAGE * sizes.head_dim;
        unsigned from = max(first, begin) - begin, to = min(end - begin, PAGE);
        mixture.take(query, keys + base, values + base, from, to, sizes.head_dim);
    }
    float inverse = mixture.total > 0 ? 1 / mixture.total : 0;
    for (int i = 0; i < PER; i++)
        if (lane + WARP * i < sizes.head_dim) out[own + lane + WARP * i] = from_float<T>(mixture.mixed[i] * inverse);
}

#define ROWS(name, T, size, shared, function)                                                                          \
    extern "C" __global__ void __launch_bounds__(128, 2) name(                                                         \
        const T *q, const T *keys, const T *values, const unsigned *starts, const unsigned *pasts,                     \
        const unsigned *table, T *out, unsigned heads, unsigned kv_heads, unsigned head_dim, unsigned most_blocks,     \
        unsigned window, float scale) {                                                                                \
        Sizes sizes = {heads, kv_heads, head_dim, most_blocks, window};                                                \
        function(q, keys, values, Part(starts, pasts, table, sizes, size, shared), out, sizes, scale *LOG2_E);         \
    }

ROWS(attend_rows_bf16_64, bf16, QUERIES, heads / kv_heads, attend_rows<1>)
ROWS(attend_rows_bf16_128, bf16, QUERIES, heads / kv_heads, attend_rows<2>)
ROWS(attend_rows_plain_bf16, bf16, WARPS, 1, (attend_rows_plain<bf16, 8>))
ROWS(attend_rows_plain_f32, float, WARPS, 1, (attend_rows_plain<float, 8>))
