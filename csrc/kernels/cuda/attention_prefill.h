// Attention of a chunk of tokens over the KV cache that they were appended to: a prompt, or
// visual embeddings injected in the middle of an answer. Causal to the bottom right: the last
// token sees every key. The visual mass is that of each sequence's last token.
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

struct AttentionPrefillParams {
    const void* q;  // (T, H, D), tokens `ldq` apart, rotated                       in
    void* out;      // (T, H, D), tokens `ldo` apart; rows of no token untouched    out
    KvCache cache;  // the chunk's K and V already written                          in
    Sequences sequences;
    MassParams mass;
    void* workspace;  // attention_prefill_workspace(...) bytes                       scratch
    ActType type;
    int num_heads;     // H, a multiple of K
    int num_sms;       // multiprocessors of the device
    float scale;       // 1 / sqrt(D)
    int64_t ldq, ldo;  // elements, multiples of 8
};

// Bytes of workspace; depends on B, S, H, K, D, N, max_kv_len and num_sms alone.
size_t attention_prefill_workspace(const AttentionPrefillParams& p);

// cudaErrorInvalidValue for sizes and types without a kernel; cudaErrorNotSupported for bf16 before
// capability 8.0.
cudaError_t launch_attention_prefill(const AttentionPrefillParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
