// Attention of one query row a sequence over the pool: the decode step, bound by reading keys and values.
//
// The pages that a row sees are divided over a fixed number of splits, those of a split over the 4 warps of a block;
// what they mix is joined in order, first in shared memory, then by a second kernel. Queries that share a head of keys
// go together. Shapes: q and out [rows, heads, head_dim], pool [blocks, kv_heads, PAGE, head_dim], lengths [rows],
// table [rows, most_blocks].
// After: vLLM's paged attention (Kwon et al. 2023), flash decoding (Dao et al. 2023).

#include "attention.cuh"

constexpr unsigned WARPS = 4;

struct Sizes {
    unsigned heads, kv_heads, head_dim, most_blocks, window, splits;
};

// The keys that a row sees: from `first` to before `length`, in the pages from `begin` to before `end`; and the pages
// of a split.
struct Seen {
    unsigned first, length, begin, end, share;

    __device__ __forceinline__ Seen(unsigned seen, const Sizes &sizes) {
        length = min(seen, sizes.most_blocks * PAGE);
        first = sizes.window && length > sizes.window ? length - sizes.window : 0;
        begin = first / PAGE;
        end = (length + PAGE - 1) / PAGE;
        share = max((end - begin + sizes.splits - 1) / sizes.splits, WARPS);
    }
    __device__ __forceinline__ unsigned live_splits() const { return (end - begin + share - 1) / share; }
};

// What splits leave behind: `mixed` [rows, heads, splits, head_dim], then maximum and total [rows, heads, splits, 2].
struct Partial {
    float *mixed, *marks;

    __device__ __forceinline__ Partial(
        float *scratch, const Sizes &sizes, unsigned row, unsigned head, unsigned split) {
        size_t at = (size_t(row) * sizes.heads + head) * sizes.splits + split;
        mixed = scratch + at * sizes.head_dim;
        marks = scratch + size_t(gridDim.z) * sizes.heads * sizes.splits * sizes.head_dim + at * 2;
    }
};

// Joins what the warps of a block mixed of one head, and writes it out: as the result if there is but one split.
template <typename T, int COUNT>
__device__ __forceinline__ void join(
    const float (&marks)[WARPS][2], const float (*mixed)[COUNT], size_t stride, const Sizes &sizes, unsigned row,
    unsigned head, float *scratch, T *out, unsigned thread, unsigned threads) {
    float most = NOTHING, total = 0, factors[WARPS];
    for (int i = 0; i < WARPS; i++) most = fmaxf(most, marks[i][0]);
    for (int i = 0; i < WARPS; i++) total += marks[i][1] * (factors[i] = correction(marks[i][0], most));
    Partial partial(scratch, sizes, row, head, blockIdx.x);
    float inverse = total > 0 ? 1 / total : 0;
    for (unsigned d = thread; d < sizes.head_dim; d += threads) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++) sum += mixed[i * stride][d] * factors[i];
        if (sizes.splits == 1) {
            out[(size_t(row) * sizes.heads + head) * sizes.head_dim + d] = from_float<T>(sum * inverse);
        } else {
            partial.mixed[d] = sum;
        }
    }
    if (sizes.splits > 1 && thread == 0) partial.marks[0] = most, partial.marks[1] = total;
}

// Queries of one head of keys, 8 · TILES at most, and the values that they mix, in a warp; 64 · SETS numbers of a head
// at most.
//
// Keys are the rows of a product, queries its columns; then the numbers of values are the rows and queries the columns
// again. So lane (g, t) holds scores of keys g and g + 8 for queries 2t and 2t + 1, and of what these mix the numbers
// 8g to 8g + 7 of each 64: word w of a set has 8g + 2w, 8g + 2w + 1.
template <int SETS, int TILES> struct Columns {
    uint4 queries[TILES][2 * SETS];
    float most[TILES][2], total[TILES][2] = {}, mixed[TILES][4 * SETS][4] = {};

    // Query g of each tile stands at `query(8 · tile + g)`.
    template <typename Q> __device__ __forceinline__ void load(Q query, unsigned head_dim) {
        unsigned group = threadIdx.x % WARP / 4, part = threadIdx.x % 4 * 8;
        for (int tile = 0; tile < TILES; tile++) {
            const bf16 *own = query(8 * tile + group);
            for (int s = 0; s < 2 * SETS; s++) {
                auto *from = reinterpret_cast<const uint4 *>(own + 32 * s + part);
                queries[tile][s] = 32 * s + part < head_dim ? *from : make_uint4(0, 0, 0, 0);
            }
            most[tile][0] = most[tile][1] = NOTHING;
        }
    }

    // Takes 16 keys: lane (g, t) has of keys g and g + 8 the numbers 8t to 8t + 7 of each 32, and whether they are
    // seen; of the values of keys 2t, 2t + 1, 2t + 8 and 2t + 9 the numbers 8g to 8g + 7 of each 64, zeros where
    // unseen.
    __device__ __forceinline__ void take(
        const uint4 (&keys)[2 * SETS][2], const bool (&seen)[2], const uint4 (&values)[SETS][4], float scale) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            float scores[4] = {};
            for (int s = 0; s < 2 * SETS; s++) {
                uint4 low = keys[s][0], high = keys[s][1], query = queries[tile][s];
                mma(scores, {low.x, high.x, low.y, high.y}, {query.x, query.y});
                mma(scores, {low.z, high.z, low.w, high.w}, {query.z, query.w});
            }
            for (int i = 0; i < 4; i++) scores[i] = seen[i / 2] ? scores[i] * scale : NOTHING;
            for (int j = 0; j < 2; j++) {
                float own = fmaxf(most[tile][j], fmaxf(scores[j], scores[j + 2]));
                for (int step = 4; step < WARP; step *= 2) own = fmaxf(own, __shfl_xor_sync(ALL, own, step));
                float down = correction(most[tile][j], own);
                most[tile][j] = own;
                total[tile][j] = total[tile][j] * down + (scores[j] = exp2f(scores[j] - own));
                total[tile][j] += scores[j + 2] = exp2f(scores[j + 2] - own);
                for (int i = 0; i < 4 * SETS; i++) mixed[tile][i][j] *= down, mixed[tile][i][j + 2] *= down;
            }
            mix(tile, pack(scores[0], scores[1]), pack(scores[2], scores[3]), values);
        }
    }

    // Shares of keys g and g + 8 for queries 2t and 2t + 1 become those of keys 2t, 2t + 1, 2t + 8 and 2t + 9 for query
    // g.
    __device__ __forceinline__ void mix(int tile, uint32_t first, uint32_t second, const uint4 (&values)[SETS][4]) {
        unsigned lane = threadIdx.x % WARP, from = lane % 4 * 8 + lane / 8;
        bool odd = lane / 4 % 2;
        uint32_t a = __shfl_sync(ALL, first, from), b = __shfl_sync(ALL, first, from + 4);
        uint32_t c = __shfl_sync(ALL, second, from), d = __shfl_sync(ALL, second, from + 4);
        uint32_t shares[2] = {odd ? upper(a, b) : lower(a, b), odd ? upper(c, d) : lower(c, d)};
        for (int set = 0; set < SETS; set++) {
            const uint4(&v)[4] = values[set];
            auto both = [&](int word, uint32_t p, uint32_t q, uint32_t r, uint32_t s) {
                mma(mixed[tile][4 * set + word], {lower(p, q), upper(p, q), lower(r, s), upper(r, s)}, shares);
            };
            both(0, v[0].x, v[1].x, v[2].x, v[3].x);
            both(1, v[0].y, v[1].y, v[2].y, v[3].y);
            both(2, v[0].z, v[1].z, v[2].z, v[3].z);
            both(3, v[0].w, v[1].w, v[2].w, v[3].w);
        }
    }

    // Leaves what was mixed in `to` [8 · TILES, 64 · SETS], and maximum and total of each query in `marks`.
    __device__ __forceinline__ void leave(float (*to)[64 * SETS], float (*marks)[WARPS][2], unsigned warp) {
        unsigned group = threadIdx.x % WARP / 4, part = threadIdx.x % 4;
        for (int tile = 0; tile < TILES; tile++)
            for (int j = 0; j < 2; j++) {
                for (int step = 4; step < WARP; step *= 2) total[tile][j] += __shfl_xor_sync(ALL, total[tile][j], step);
                unsigned query = 8 * tile + 2 * part + j;
                if (group == 0) marks[query][warp][0] = most[tile][j], marks[query][warp][1] = total[tile][j];
                for (int word = 0; word < 4 * SETS; word++)
                    for (int half = 0; half < 2; half++)
                        to[query][word / 4 * 64 + 8 * group + word % 4 * 2 + half] = mixed[tile][word][j + 2 * half];
            }
    }
};

// By tensor cores: a warp a page of 16 keys at a time, straight from the pool.
template <int SETS, int TILES>
__device__ __forceinline__ void attend_decode(
    const bf16 *q, const bf16 *keys, const bf16 *values, const unsigned *lengths, const unsigned *table, float *scratch,
    bf16 *out, Sizes sizes, float scale) {
    constexpr unsigned HEADS = 8 * TILES;
    __shared__ float joined[WARPS * HEADS][64 * SETS], marks[HEADS][WARPS][2];
    unsigned row = blockIdx.z, warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, part = threadIdx.x % 4;
    unsigned shared = sizes.heads / sizes.kv_heads, parts = (shared + HEADS - 1) / HEADS;
    unsigned kv_head = blockIdx.y / parts, chunk = blockIdx.y % parts;
    unsigned first_head = kv_head * shared + chunk * HEADS, count = min(shared - chunk * HEADS, HEADS);
    Seen seen(lengths[row], sizes);
    unsigned begin = seen.begin + blockIdx.x * seen.share, end = min(seen.end, begin + seen.share);
    if (begin >= end && sizes.splits > 1) return;

    Columns<SETS, TILES> columns;
    // Queries beyond the last are the last one again, and not written.
    const bf16 *own = q + (size_t(row) * sizes.heads + first_head) * sizes.head_dim;
    auto query = [&](unsigned i) { return own + min(i, count - 1) * sizes.head_dim; };
    columns.load(query, sizes.head_dim);
    unsigned key_at[2 * SETS], value_at[SETS];
    for (int s = 0; s < 2 * SETS; s++) key_at[s] = min(32 * s + 8 * part, sizes.head_dim - 8);
    for (int set = 0; set < SETS; set++) value_at[set] = min(64 * set + 8 * group, sizes.head_dim - 8);
    const unsigned *pages = table + size_t(row) * sizes.most_blocks;
    unsigned next = begin + warp < end ? pages[begin + warp] : 0;
    for (unsigned page = begin + warp; page < end; page += WARPS) {
        size_t base = (size_t(next) * sizes.kv_heads + kv_head) * PAGE * sizes.head_dim;
        const bf16 *own_keys = keys + base, *own_values = values + base;
        if (page + WARPS < end) next = pages[page + WARPS];
        // Loads have no conditions, so that all are under way at once. Numbers beyond a head are its last ones: queries
        // are zeros there, and what values add is not written. What is beyond the sequence may be anything.
        uint4 key[2 * SETS][2], value[SETS][4];
#pragma unroll
        for (int s = 0; s < 2 * SETS; s++)
#pragma unroll
            for (int i = 0; i < 2; i++) key[s][i] = load_once(own_keys + (group + 8 * i) * sizes.head_dim + key_at[s]);
#pragma unroll
        for (int set = 0; set < SETS; set++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                value[set][i] =
                    load_once(own_values + (2 * part + i % 2 + i / 2 * 8) * sizes.head_dim + value_at[set]);
        auto visible = [&](unsigned i) { return page * PAGE + i >= seen.first && page * PAGE + i < seen.length; };
        if (!visible(0) || !visible(PAGE - 1)) {
            for (int set = 0; set < SETS; set++)
                for (int i = 0; i < 4; i++)
                    if (!visible(2 * part + i % 2 + i / 2 * 8)) value[set][i] = make_uint4(0, 0, 0, 0);
        }
        columns.take(key, {visible(group), visible(group + 8)}, value, scale);
    }
    columns.leave(joined + warp * HEADS, marks, warp);
    __syncthreads();
    for (unsigned head = warp; head < count; head += WARPS)
        join(marks[head], joined + head, HEADS, sizes, row, first_head + head, scratch, out, threadIdx.x % WARP, WARP);
}

// One query, plain; PER · 32 numbers of a head at most.
template <typename T, int PER>
__device__ __forceinline__ void attend_decode_plain(
    const T *q, const T *keys, const T *values, const unsigned *lengths, const unsigned *table, float *scratch, T *out,
    Sizes sizes, float scale) {
    __shared__ float joined[WARPS][WARP * PER], marks[WARPS][2];
    unsigned row = blockIdx.z, head = blockIdx.y, kv_head = head / (sizes.heads / sizes.kv_heads);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Seen seen(lengths[row], sizes);
    unsigned begin = seen.begin + blockIdx.x * seen.share, end = min(seen.end, begin + seen.share);
    if (begin >= end && sizes.splits > 1) return;
    PlainMixture<PER> mixture;
    float query[PER];
    mixture.load(q + (size_t(row) * sizes.heads + head) * sizes.head_dim, sizes.head_dim, query);
    for (int i = 0; i < PER; i++) query[i] *= scale;
    for (unsigned page = begin + warp; page < end; page += WARPS) {
        unsigned block = table[size_t(row) * sizes.most_blocks + page];
        size_t base = (size_t(block) * sizes.kv_heads + kv_head) * PAGE * sizes.head_dim;
        unsigned from = max(seen.first, page * PAGE) - page * PAGE, to = min(seen.length - page * PAGE, PAGE);
        mixture.take(query, keys + base, values + base, from, to, sizes.head_dim);
    }
    for (int i = 0; i < PER; i++) joined[warp][lane + WARP * i] = mixture.mixed[i];
    if (lane == 0) marks[warp][0] = mixture.most, marks[warp][1] = mixture.total;
    __syncthreads();
    join(marks, joined, 1, sizes, row, head, scratch, out, threadIdx.x, WARPS * WARP);
}

// Joins the splits of a head of a row; rows that see nothing become zeros.
template <typename T>
__device__ __forceinline__ void join_splits(const unsigned *lengths, float *scratch, T *out, Sizes sizes) {
    unsigned row = blockIdx.z, head = blockIdx.y, splits = Seen(lengths[row], sizes).live_splits();
    Partial partial(scratch, sizes, row, head, 0);
    float most = NOTHING, total = 0;
    for (unsigned i = 0; i < splits; i++) most = fmaxf(most, partial.marks[2 * i]);
    for (unsigned i = 0; i < splits; i++) total += partial.marks[2 * i + 1] * exp2f(partial.marks[2 * i] - most);
    float inverse = total > 0 ? 1 / total : 0;
    for (unsigned d = threadIdx.x; d < sizes.head_dim; d += blockDim.x) {
        float sum = 0;
        for (unsigned i = 0; i < splits; i++)
            sum += partial.mixed[size_t(i) * sizes.head_dim + d] * exp2f(partial.marks[2 * i] - most);
        out[(size_t(row) * sizes.heads + head) * sizes.head_dim + d] = from_float<T>(sum * inverse);
    }
}

#define DECODE(name, T, blocks, function)                                                                              \
    extern "C" __global__ void __launch_bounds__(128, blocks) name(                                                    \
        const T *q, const T *keys, const T *values, const unsigned *lengths, const unsigned *table, float *scratch,    \
        T *out, unsigned heads, unsigned kv_heads, unsigned head_dim, unsigned most_blocks, unsigned window,           \
        unsigned splits, float scale) {                                                                                \
        Sizes sizes = {heads, kv_heads, head_dim, most_blocks, window, splits};                                        \
        function(q, keys, values, lengths, table, scratch, out, sizes, scale *LOG2_E);                                 \
    }

#define JOIN(name, T)                                                                                                  \
    extern "C" __global__ void name(                                                                                   \
        const unsigned *lengths, float *scratch, T *out, unsigned heads, unsigned kv_heads, unsigned head_dim,         \
        unsigned most_blocks, unsigned window, unsigned splits) {                                                      \
        join_splits(lengths, scratch, out, Sizes{heads, kv_heads, head_dim, most_blocks, window, splits});             \
    }

DECODE(attend_decode_bf16_64_8, bf16, 3, (attend_decode<1, 1>))
DECODE(attend_decode_bf16_64_16, bf16, 3, (attend_decode<1, 2>))
DECODE(attend_decode_bf16_128_8, bf16, 3, (attend_decode<2, 1>))
DECODE(attend_decode_bf16_128_16, bf16, 2, (attend_decode<2, 2>))
DECODE(attend_decode_plain_bf16, bf16, 3, (attend_decode_plain<bf16, 8>))
DECODE(attend_decode_plain_f32, float, 3, (attend_decode_plain<float, 8>))
JOIN(join_splits_f32, float)
JOIN(join_splits_bf16, bf16)
