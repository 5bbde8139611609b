// Chooses tokens from rows of logits, as the engine's sampler does: penalties and biases; temperature, min_p, top_k,
// top_p, and the token at which the running sum passes a draw.
//
// Nothing is sorted: thresholds are searched for on the bits of logits, in an order in which bits compare as numbers
// do, by counts and sums of what lies above. Sums of weights are f64, in a fixed order. One block of threads a row.
// Shapes: logits [rows, vocab]. After: FlashInfer's sampling without sorting (Ye et al. 2025, arXiv 2501.01005), by
// thresholds.

#include "vector.cuh"

constexpr unsigned WARPS = 32;
constexpr unsigned THREADS = WARPS * WARP;
// Tokens of a block of `penalise`, and those that `choose` keeps in shared memory.
constexpr unsigned PART = 8192;
constexpr unsigned FEW = 8192;
// Words of the settings of a row, as src/ops/cuda/sample.rs writes them.
enum Word { TEMPERATURE, LIMIT, MIN_P, TOP_K, DRAW, DRAW_ABOVE, REPETITION, FREQUENCY, PRESENCE, WORDS };

// Bits that compare as the numbers do.
__device__ __forceinline__ unsigned key_of(float x) {
    unsigned bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(unsigned key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Every thread gets the sums over the block.
template <int N> __device__ __forceinline__ void add_up(double (&x)[N]) {
    __shared__ double parts[WARPS][N];
    unsigned lane = threadIdx.x % WARP;
    for (int i = 0; i < N; i++)
        for (int step = WARP / 2; step > 0; step /= 2) x[i] += __shfl_xor_sync(ALL, x[i], step);
    __syncthreads();
    if (lane == 0)
        for (int i = 0; i < N; i++) parts[threadIdx.x / WARP][i] = x[i];
    __syncthreads();
    for (int i = 0; i < N; i++) {
        x[i] = parts[lane][i];
        for (int step = WARP / 2; step > 0; step /= 2) x[i] += __shfl_xor_sync(ALL, x[i], step);
    }
}

// Every thread gets the largest over the block.
__device__ __forceinline__ unsigned long long largest(unsigned long long x) {
    __shared__ unsigned long long parts[WARPS];
    unsigned lane = threadIdx.x % WARP;
    for (int step = WARP / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(ALL, x, step));
    __syncthreads();
    if (lane == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    x = parts[lane];
    for (int step = WARP / 2; step > 0; step /= 2) x = max(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// Calls `work(number, index)` for all numbers, each in one thread.
template <typename F> __device__ __forceinline__ void each(const float *values, unsigned count, F work) {
    if (reinterpret_cast<uintptr_t>(values) % 16 == 0 && count % 4 == 0) {
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < count / 4; i += THREADS) {
            Four four = load4(values + 4 * i);
            for (int j = 0; j < 4; j++) work(four.at[j], 4 * i + j);
        }
        return;
    }
    for (unsigned i = threadIdx.x; i < count; i += THREADS) work(values[i], i);
}

// Largest number of a row, the first place where it stands, and whether a number is not finite but -infinity.
struct Peak {
    float most;
    unsigned place;
    bool faulty;

    __device__ __forceinline__ Peak(const float *row, unsigned count) {
        unsigned long long best = 0;
        bool wrong = false;
        each(row, count, [&](float x, unsigned i) {
            wrong |= !(x < INFINITY);
            best = max(best, (static_cast<unsigned long long>(key_of(x)) << 32) | (ALL - i));
        });
        faulty = largest(wrong) != 0;
        best = largest(best);
        most = of_key(best >> 32);
        place = ALL - static_cast<unsigned>(best);
    }
};

// Weights of a row: exp((logit - largest) / temperature).
struct Scale {
    float most, temperature;

    __device__ __forceinline__ float weight(float logit) const { return expf((logit - most) / temperature); }

    // The smallest key whose weight is at least `least`; those that have a weight at all where that is 0.
    __device__ __forceinline__ unsigned floor_of(float least) const {
        unsigned below = key_of(-INFINITY), enough = key_of(most);
        if (least <= 0) return below + 1;
        while (enough - below > 1) {
            unsigned middle = below + (enough - below) / 2;
            if (weight(of_key(middle)) >= least) {
                enough = middle;
            } else {
                below = middle;
            }
        }
        return enough;
    }
};

// Four equal parts of what lies between two keys, for three measures at once: moves the two together until they are
// neighbours. `measure(keys, results)` gives the measures of three keys, `holds(result)` is true from some key on up;
// `no` is below that key.
template <typename M, typename H>
__device__ __forceinline__ unsigned search(unsigned no, unsigned yes, M measure, H holds) {
    while (yes - no > 1) {
        unsigned keys[3];
        unsigned long long between = yes - no;
        for (unsigned i = 0; i < 3; i++) keys[i] = no + static_cast<unsigned>(between * (i + 1) / 4);
        double results[3] = {};
        measure(keys, results);
        unsigned upper = yes;
        for (int i = 2; i >= 0; i--) {
            if (keys[i] == no) continue;
            if (holds(results[i])) {
                upper = keys[i];
            } else {
                no = keys[i];
                break;
            }
        }
        yes = upper;
    }
    return yes;
}

// The first place at which the running sum of `measure(number)` passes `target`; the last one that adds anything if
// none does.
template <typename F>
__device__ __forceinline__ unsigned walk(const float *row, unsigned count, double target, F measure) {
    __shared__ double sums[WARPS];
    __shared__ unsigned found;
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned begin = 0, end = count;
    double before = 0;
    // Twice a part in 32: the whole row, then the part that holds the place.
    for (int round = 0; round < 2; round++) {
        unsigned size = ((end - begin + WARPS - 1) / WARPS + WARP - 1) / WARP * WARP;
        unsigned from = min(begin + warp * size, end), to = min(from + size, end);
        double sum = 0;
        for (unsigned i = from + lane; i < to; i += WARP) sum += measure(row[i]);
        for (int step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(ALL, sum, step);
        __syncthreads();
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        unsigned chosen = 0;
        double running = before, of_chosen = before;
        for (unsigned i = 0; i < WARPS; i++) {
            if (sums[i] > 0) chosen = i, of_chosen = running;
            running += sums[i];
            if (sums[i] > 0 && running > target) break;
        }
        before = of_chosen;
        begin = min(begin + chosen * size, end);
        end = min(begin + size, end);
    }
    if (warp == 0) {
        unsigned last = begin;
        for (unsigned at = begin; at < end; at += WARP) {
            double own = at + lane < end ? measure(row[at + lane]) : 0, sum = own;
            for (int step = 1; step < WARP; step *= 2) {
                double lower = __shfl_up_sync(ALL, sum, step);
                if (lane >= step) sum += lower;
            }
            unsigned adding = __ballot_sync(ALL, own > 0), past = __ballot_sync(ALL, own > 0 && before + sum > target);
            before += __shfl_sync(ALL, sum, WARP - 1);
            if (adding) last = at + 31 - __clz(adding);
            if (past) {
                last = at + __ffs(past) - 1;
                break;
            }
        }
        if (lane == 0) found = last;
    }
    __syncthreads();
    return found;
}

// Writes to `few` what of the row has at least the key `floor`, in an order that does not depend on timing; there is
// room.
__device__ __forceinline__ void collect(const float *row, unsigned count, unsigned floor, float *few) {
    __shared__ unsigned parts[WARPS];
    unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, own = 0, place = 0;
    each(row, count, [&](float x, unsigned) { own += key_of(x) >= floor; });
    unsigned sum = own;
    for (int step = 1; step < WARP; step *= 2) {
        unsigned lower = __shfl_up_sync(ALL, sum, step);
        if (lane >= step) sum += lower;
    }
    __syncthreads();
    if (lane == WARP - 1) parts[warp] = sum;
    __syncthreads();
    for (unsigned i = 0; i < warp; i++) place += parts[i];
    place += sum - own;
    each(row, count, [&](float x, unsigned) {
        if (key_of(x) >= floor) few[place++] = x;
    });
    __syncthreads();
}

// The token of a row whose largest number is known, for a temperature above 0.
__device__ __forceinline__ unsigned draw_token(
    const float *row, unsigned count, const Peak &peak, const unsigned *settings) {
    __shared__ __align__(16) float few[FEW];
    Scale scale = {peak.most, __uint_as_float(settings[TEMPERATURE])};
    float limit = __uint_as_float(settings[LIMIT]);
    unsigned top_k = settings[TOP_K], lowest = scale.floor_of(__uint_as_float(settings[MIN_P]));
    double draw = __longlong_as_double(
        static_cast<long long>((static_cast<unsigned long long>(settings[DRAW_ABOVE]) << 32) | settings[DRAW]));
    auto weight = [&](float x) { return key_of(x) >= lowest ? static_cast<double>(scale.weight(x)) : 0.0; };
    bool by_rank = top_k > 0 && top_k < count, by_mass = limit > 0;

    // Where a few numbers are all that matters, only these are searched.
    const float *numbers = row;
    unsigned amount = count;
    if (by_rank || by_mass) {
        double all[2] = {}, counts[3] = {}, masses[3] = {};
        unsigned floors[3];
        for (int i = 0; i < 3; i++) floors[i] = max(lowest, key_of(scale.most - scale.temperature * (6 << i)));
        each(row, count, [&](float x, unsigned) {
            unsigned key = key_of(x);
            if (key < lowest) return;
            double own = scale.weight(x);
            all[0] += 1, all[1] += own;
            for (int i = 0; i < 3; i++)
                if (key >= floors[i]) counts[i] += 1, masses[i] += own;
        });
        add_up(all);
        add_up(counts);
        add_up(masses);
        by_rank &= top_k < all[0];
        unsigned from = 0;
#pragma unroll
        for (int i = 2; i >= 0; i--) {
            bool enough = by_rank ? counts[i] >= top_k : static_cast<float>((all[1] - masses[i]) / all[1]) <= limit;
            if (enough && counts[i] <= FEW) from = floors[i], amount = static_cast<unsigned>(counts[i]);
        }
        if (from > 0) {
            collect(row, count, from, few);
            numbers = few;
        }
    }

    if (by_rank) {
        // The largest key that top_k numbers reach: below the smallest that fewer do.
        lowest = search(
            lowest, key_of(scale.most) + 1,
            [&](const unsigned(&keys)[3], double(&results)[3]) {
                each(numbers, amount, [&](float x, unsigned) {
                    for (int i = 0; i < 3; i++) results[i] += key_of(x) >= keys[i];
                });
                add_up(results);
            },
            [&](double reached) { return reached < top_k; }) - 1;
    }
    // Without a rank what was left out counts too.
    double total[1] = {};
    each(by_rank ? numbers : row, by_rank ? amount : count, [&](float x, unsigned) { total[0] += weight(x); });
    add_up(total);
    if (!by_mass) return walk(row, count, draw * total[0], weight);

    // The weight above keys, and beside it the number of those with a key of its own.
    auto above = [&](const unsigned(&keys)[3], double(&results)[3]) {
        each(numbers, amount, [&](float x, unsigned) {
            unsigned key = key_of(x);
            if (key < lowest || key <= keys[0]) return;
            double own = scale.weight(x);
            for (int i = 0; i < 3; i++) results[i] += key > keys[i] ? own : 0;
        });
        add_up(results);
    };
    auto at = [&](unsigned key, double(&results)[2]) {
        each(numbers, amount, [&](float x, unsigned) {
            if (key_of(x) > key) results[0] += weight(x);
            results[1] += key_of(x) == key;
        });
        add_up(results);
    };
    // The nucleus ends with some of the numbers that have the key `last`.
    unsigned last = search(lowest - 1, key_of(scale.most), above, [&](double before) {
        return static_cast<float>((total[0] - before) / total[0]) > limit;
    });
    double of_last[2] = {};
    at(last, of_last);
    double own = scale.weight(of_key(last)), left = total[0] - of_last[0] - limit * total[0];
    double kept = own > 0 ? min(max(ceil(left / own), 1.0), of_last[1]) : min(1.0, of_last[1]);
    double target = draw * (of_last[0] + kept * own);
    unsigned chosen = search(last - 1, key_of(scale.most), above, [&](double before) { return before <= target; });
    double of_chosen[2] = {};
    at(chosen, of_chosen);
    if (of_chosen[1] < 1) return peak.place;
    double one = scale.weight(of_key(chosen)), rank = one > 0 ? floor((target - of_chosen[0]) / one) : 0;
    rank = min(rank, (chosen == last ? kept : of_chosen[1]) - 1);
    return walk(row, count, rank, [&](float x) { return key_of(x) == chosen ? 1.0 : 0.0; });
}

// Writes the token of each row, NONE where its logits are faulty or nothing is left, and its logarithmic probability
// among the logits as they were before adjustment.
extern "C" __global__ void __launch_bounds__(1024, 1) choose(
    const float *logits, const float *adjusted, const unsigned *settings, unsigned *tokens, float *logprobs,
    unsigned vocab) {
    size_t at = size_t(blockIdx.x) * vocab;
    const float *raw = logits + at, *row = adjusted + at;
    const unsigned *own = settings + blockIdx.x * WORDS;
    Peak of_raw(raw, vocab);
    Peak peak = of_raw;
    if (row != raw) peak = Peak(row, vocab);
    if (of_raw.faulty || !(peak.most > -INFINITY)) {
        if (threadIdx.x == 0) tokens[blockIdx.x] = ALL, logprobs[blockIdx.x] = 0;
        return;
    }
    double total[1] = {};
    each(raw, vocab, [&](float x, unsigned) { total[0] += expf(x - of_raw.most); });
    add_up(total);
    unsigned token = __uint_as_float(own[TEMPERATURE]) > 0 ? draw_token(row, vocab, peak, own) : peak.place;
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = token;
        logprobs[blockIdx.x] = static_cast<float>(raw[token] - of_raw.most - log(total[0]));
    }
}

// What is listed for a row: tokens [rows, most], each once, with numbers of them; and how many.
struct List {
    const unsigned *tokens, *numbers;
    unsigned count;

    __device__ __forceinline__ List(
        const unsigned *tokens, const unsigned *numbers, const unsigned *counts, unsigned most) :
        tokens(tokens + size_t(blockIdx.y) * most),
        numbers(numbers + size_t(blockIdx.y) * most),
        count(counts ? min(counts[blockIdx.y], most) : 0) {}

    // Calls `work(place, number)` for the tokens from `begin` to before `end`.
    template <typename F> __device__ __forceinline__ void each_in(unsigned begin, unsigned end, F work) const {
        for (unsigned i = threadIdx.x; i < count; i += blockDim.x)
            if (tokens[i] >= begin && tokens[i] < end) work(tokens[i], numbers[i]);
    }
};

// adjusted = logits with penalties of the tokens `seen` so far, as often as they are in the output, and with biases
// (bits of f32). A logit that leaves the range of f32 stays the largest number.
extern "C" __global__ void penalise(
    const float *logits, float *adjusted, const unsigned *settings, const unsigned *seen, const unsigned *often,
    const unsigned *seen_counts, unsigned most_seen, const unsigned *biased, const unsigned *biases,
    const unsigned *bias_counts, unsigned most_biased, unsigned vocab) {
    size_t at = size_t(blockIdx.y) * vocab;
    unsigned begin = blockIdx.x * PART, end = min(begin + PART, vocab);
    float *row = adjusted + at;
    if (adjusted != logits)
        for (unsigned i = begin + threadIdx.x; i < end; i += blockDim.x) row[i] = logits[at + i];
    __syncthreads();
    const unsigned *own = settings + blockIdx.y * WORDS;
    float repetition = __uint_as_float(own[REPETITION]);
    float frequency = __uint_as_float(own[FREQUENCY]), presence = __uint_as_float(own[PRESENCE]);
    List penalised(seen, often, seen_counts, most_seen), shifted(biased, biases, bias_counts, most_biased);
    penalised.each_in(begin, end, [&](unsigned token, unsigned count) {
        float logit = row[token];
        logit = logit > 0 ? logit / repetition : logit * repetition;
        logit -= frequency * count;
        row[token] = logit - (count > 0 ? presence : 0.0f);
    });
    __syncthreads();
    shifted.each_in(begin, end, [&](unsigned token, unsigned bias) { row[token] += __uint_as_float(bias); });
    __syncthreads();
    auto bound = [&](unsigned token, unsigned) { row[token] = fminf(row[token], 3.402823466e38f); };
    penalised.each_in(begin, end, bound);
    __syncthreads();
    shifted.each_in(begin, end, bound);
}
