// What the CUDA kernels share: number formats, how sequences are laid out, the KV cache.
// Every pointer is device memory, 16-byte aligned; a launcher neither allocates nor waits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace latrt::cuda {

enum class ActType : int { f16 = 0, bf16 = 1 };
// f16 and bf16 caches hold the activations' own type. int8 and e4m3 are codes with one scale
// for each row of D: value = code * scale.
enum class KvType : int { f16 = 0, bf16 = 1, int8 = 2, e4m3 = 3 };

// The tokens of B sequences and the KV positions that they see. Sequence b appends its tokens
// to its cache; token t of query_len sees kv_len - query_len + t + 1 keys.
// Packed: tokens of b are rows cu_seqlens[b] to cu_seqlens[b + 1]. Padded: they begin at row b * S.
struct Sequences {
    int batch;                  // B
    int max_query_len;          // S, of the longest sequence; rows between two padded sequences
    int max_kv_len;             // bound on kv_len, at most C: sizes grid and workspace
    const int32_t* cu_seqlens;  // (B + 1), or null: padded                              in
    const int32_t* query_len;   // (B), 0 for an idle row, or null: all S; padded only   in
    const int32_t* kv_len;      // (B) positions in use, this step's tokens included     in
    int kv_len_add;             // added to every kv_len: 1 where it is `seqlens_k`
};

// One layer's cache. A row is D contiguous elements; rows of successive positions are adjacent.
struct KvCache {
    void* k;                   // (B, K, C, D)                               inout
    void* v;                   // (B, K, C, D)                               inout
    float *k_scale, *v_scale;  // (B, K, C); null for f16 and bf16           inout
    KvType type;
    int num_kv_heads, head_dim;  // K; D: 64, 80 or 128
    int capacity;                // C
    int64_t batch_rows;          // rows from one sequence to the next: K * C where contiguous
    int64_t head_rows;           // rows from one head to the next: C where contiguous
};

// Visual attention mass: how much of the last token's probability lies on each listed key, summed
// over the H query heads of the layer. An index outside [0, kv_len) gets 0.
struct MassParams {
    const int64_t* visual_index;  // (B, N) KV positions, in any order; null: no mass    in
    float* mass;                  // (B, N); zeros for an idle row                       out
    int num_visual;               // N; 0: no mass
};

}  // namespace latrt::cuda
