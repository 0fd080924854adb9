// Grouped-query attention of one KV head over its cache, with the attention mass of the last
// token from the same pass. Online softmax: K and V are read once, no matrix is kept.
//
// The cache of one KV head, C a multiple of 16 and Dp = D rounded up to 16:
//   K (C/16, D, 16): tiles of 16 keys, so that scores need no sum across lanes
//   V (C, Dp): zeros behind D
// in f32, bf16 or f16, or as int8 codes with one scale for each key and one for each value. All is
// done in float32, but where the processor multiplies pairs of bf16 (level avx512_bf16 and above):
// there a cache of bf16 is met by queries and softmax weights that are rounded to bf16.
#pragma once

#include "kernels/cpu/types.h"

namespace latrt {

struct AttentionParams {
    const float* q;  // (T, G, D), tokens `ldq` apart, rotated              in
    const void* k;   // (C/16, D, 16)                                       in
    const void* v;   // (C, Dp)                                             in
    float* out;      // (T, G, D), tokens `ldo` apart                       out
    float* mass;     // (num_keys + T - 1) or null: += the last token's probability, summed
                     // over the G heads; only with `causal`                inout
    float* scratch;  // attention_scratch(...) floats
    KvType type;
    int num_tokens, group, head_dim;
    int num_keys;  // that the first token sees; at least 1
    bool causal;   // token t sees num_keys + t; otherwise all see num_keys
    float scale;
    int64_t ldq, ldo;
    const float* k_scale = nullptr;  // (C); int8                           in
    const float* v_scale = nullptr;  // (C); int8                           in
};

inline constexpr int kKeyBlock = 64;
inline constexpr int kRowBlock = 32;  // rows (token, head) that share a pass over K and V

// The rows of a pass, at most, in whole vectors.
constexpr int64_t attention_rows(int group) {
    return round_up(group > kRowBlock ? group : kRowBlock, kLanes);
}

// Floats of scratch memory that a call with these sizes needs.
constexpr int64_t attention_scratch(int group, int head_dim, int64_t num_keys_last) {
    const int64_t row = kKeyBlock + round_up(head_dim, kLanes);
    const int64_t blocks = (num_keys_last + kKeyBlock - 1) / kKeyBlock;
    return attention_rows(group) * (row + row / 2 + 4) + group * blocks * (kKeyBlock + 1);
}

}  // namespace latrt
