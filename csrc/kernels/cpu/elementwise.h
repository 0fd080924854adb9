// The kernels between the matrix products.
#pragma once

#include "kernels/cpu/types.h"

namespace latrt {

// y = x / rms(x) * w, row by row.
struct RmsNormParams {
    float* x;               // (M, E), rows E apart; x += residual first     inout
    const float* residual;  // (M, E) or null                                in
    const float* w;         // (E)                                           in
    float* y;               // (M, E)                                        out
    int m, width;
    float eps;
};

// y = silu(gate) * up.
struct SwiGluParams {
    const float *gate, *up;  // (M, F), rows `ldx` apart   in
    float* y;                // (M, F), rows `ldy` apart   out
    int m, ffn;
    int64_t ldx, ldy;
};

// Turns every pair (i, i + D/2) of every head by the token's angle i, in place.
struct RotateParams {
    float* x;                // (T, heads, D), tokens `ldx` apart   inout
    const float *cos, *sin;  // (T, D/2)                            in
    int num_tokens, num_heads, head_dim;
    int64_t ldx;
};

// One layer's cache of one sequence; the layout of a KV head is that of attention.h.
struct KvSlot {
    void* k;  // (heads, C/16, D, 16)
    void* v;  // (heads, C, Dp)
    KvType type;
    int num_heads, head_dim;
    int capacity;              // C, a multiple of 16
    float* k_scale = nullptr;  // (heads, C): a key is its codes times this; int8
    float* v_scale = nullptr;  // (heads, C); int8
};

// Appends keys (rotated already) and values of T tokens at `first`.
struct KvWriteParams {
    KvSlot slot;     //                                   inout
    const float* k;  // (T, heads, D), tokens `ldx` apart in
    const float* v;  // (T, heads, D), tokens `ldx` apart in
    int num_tokens, first;
    int64_t ldx;
};

// Appends copies of cached keys, turned by one angle for each pair, and values as they are.
struct KvReinjectParams {
    KvSlot slot;             //                        inout
    const int64_t* source;   // (N), each below first  in
    const float *cos, *sin;  // (D/2)                  in
    int count, first;
};

// The k largest of n numbers, largest first, equal ones by lower index.
struct TopKParams {
    const float* x;  // (N)   in
    float* values;   // (k)   out
    int32_t* index;  // (k)   out
    int n, k;
    bool finite;  // out: whether all n numbers are; otherwise the rest is not to be used
};

// y = gelu(x) with the error function, in place.
struct GeluParams {
    float* x;  // (N)  inout
    int64_t n;
};

}  // namespace latrt
