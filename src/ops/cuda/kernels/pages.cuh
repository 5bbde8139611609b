// The pool of keys and values of one layer: `[blocks, kv_heads, PAGE, head_dim]`.
//
// A block of the pool holds PAGE tokens of one sequence; the numbers of one head lie together.
#pragma once

// Tokens of a block of the pool.
constexpr unsigned PAGE = 16;
// No token: u32::MAX.
constexpr unsigned NONE = 0xffffffffu;

// Where a token of one head begins; slot = block · PAGE + place in it.
__device__ __forceinline__ size_t place(unsigned slot, unsigned head, unsigned kv_heads, unsigned head_dim) {
    return ((size_t(slot / PAGE) * kv_heads + head) * PAGE + slot % PAGE) * head_dim;
}
