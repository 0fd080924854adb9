// Appends copies of cached keys and values of one sequence in every layer, one launch: values
// bit by bit, keys rotated by one angle a rotary pair (a shift of temporal, height and width
// alike). An int8 or e4m3 key is decoded, rotated and quantised anew.
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

inline constexpr int kMaxReinjectLayers = 96;

struct KvReinjectParams {
    // Host arrays of `num_layers` device pointers, as in KvCache; read before the call returns.
    void* const* k;               // each (B, K, C, D)                            inout
    void* const* v;               //                                              inout
    float* const* k_scale;        // each (B, K, C); null for f16 and bf16        inout
    float* const* v_scale;        //                                              inout
    const int64_t* source_index;  // (N) KV positions below `first`           in
    const float* cos;             // (D/2) of the angles to rotate by             in
    const float* sin;             // (D/2)                                        in
    KvType type;
    int num_layers;  // at most kMaxReinjectLayers
    int num_kv_heads, head_dim;
    int64_t batch_rows, head_rows;  // as in KvCache
    int batch_index;                // the sequence b
    int num_tokens;                 // N
    int first;                      // position of the first copy; first + N <= C
};

cudaError_t launch_kv_reinject(const KvReinjectParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
