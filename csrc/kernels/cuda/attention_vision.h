// Full attention within windows or whole images of packed patches. Packed: window w is rows
// cu_seqlens[w] to cu_seqlens[w + 1]. Padded: it begins at row w * S and has length[w] rows.
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

struct AttentionVisionParams {
    const void* q;              // (P, H, D), patches `ldq` apart, rotated                  in
    const void* k;              // (P, H, D), patches `ldk` apart, rotated                  in
    const void* v;              // (P, H, D), patches `ldv` apart                           in
    void* out;                  // (P, H, D), patches `ldo` apart; rows of none untouched   out
    const int32_t* cu_seqlens;  // (W + 1), or null: padded                                 in
    const int32_t* length;      // (W), or null: all S; padded only                         in
    ActType type;
    int num_windows;             // W
    int max_len;                 // S, rows of the longest window
    int num_heads, head_dim;     // H; D: 64, 80 or 128
    float scale;                 // 1 / sqrt(D)
    int64_t ldq, ldk, ldv, ldo;  // elements, multiples of 8
};

// cudaErrorInvalidValue for sizes without a kernel; cudaErrorNotSupported for bf16 before
// capability 8.0.
cudaError_t launch_attention_vision(const AttentionVisionParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
