// Tables on the device of the adapters that are in slots, and the change that one of them makes to one number.
#pragma once

#include "vector.cuh"

// By slot and site: addresses of A and B [slots, sites, 2], ranks and factors [slots, sites].
struct Tables {
    const long long *addresses;
    const unsigned *ranks;
    const float *factors;
    unsigned slots, sites;
};

// What is added to the products with one weight: a bias, and inner·Bᵀ by the adapter of each row; either may be
// missing. inner [rows, most_rank] is factor · x·Aᵀ at the site.
template <typename W> struct Additions {
    const W *bias;
    const float *inner;
    const unsigned *row_slots;
    Tables tables;
    unsigned site, most_rank;

    __device__ __forceinline__ float operator()(float sum, unsigned row, unsigned output) const {
        if (bias) sum += to_float(bias[output]);
        unsigned slot = inner ? row_slots[row] : tables.slots;
        if (slot >= tables.slots) return sum;
        size_t at = size_t(slot) * tables.sites + site;
        const W *b = reinterpret_cast<const W *>(tables.addresses[2 * at + 1]);
        unsigned rank = min(tables.ranks[at], most_rank);
        if (!b || !tables.addresses[2 * at]) return sum;
        const float *own = inner + size_t(row) * most_rank;
        const W *factors = b + size_t(output) * rank;
        float change = 0;
        if (by_eights(rank, b)) {
#pragma unroll 2
            for (unsigned r = 0; r < rank; r += 8) {
                Eight eight = load8(factors + r);
#pragma unroll
                for (unsigned i = 0; i < 8; i++) change += own[r + i] * eight.at[i];
            }
        } else {
            for (unsigned r = 0; r < rank; r++) change += own[r] * to_float(factors[r]);
        }
        return sum + change;
    }
};
