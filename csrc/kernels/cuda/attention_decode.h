// Attention of one token a sequence over the KV cache, keys split over thread blocks, with the
// visual mass from the same pass: the scores of the visual keys are kept and normalised once the
// softmax sum is known, so K is read once. Grouped queries share each read of K and V.
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

struct AttentionDecodeParams {
    const void* q;        // (T, H, D), tokens `ldq` apart, rotated               in
    void* out;            // (T, H, D), tokens `ldo` apart; idle rows untouched   out
    KvCache cache;        // this step's K and V already written                  in
    Sequences sequences;  // max_query_len 1
    MassParams mass;
    void* workspace;  // attention_decode_workspace(...) bytes                scratch
    ActType type;
    int num_heads;     // H, a multiple of K
    int num_sms;       // multiprocessors of the device
    float scale;       // 1 / sqrt(D)
    int64_t ldq, ldo;  // elements, multiples of 8
};

// Bytes of workspace; depends on B, H, K, D, N, max_kv_len and num_sms alone.
size_t attention_decode_workspace(const AttentionDecodeParams& p);

// cudaErrorInvalidValue for sizes and types without a kernel; cudaErrorNotSupported for bf16 before
// capability 8.0.
cudaError_t launch_attention_decode(const AttentionDecodeParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
