// Rotates q and k by M-RoPE and appends k and v to the cache, quantising where the cache is int8
// or e4m3: one scale for each token and head, its largest magnitude over 127 or 448.
// Rotary pairs are (i, i + D/2); pair i takes temporal, height or width by `mrope_section`.
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

struct RopeWriteKvParams {
    const void* q;        // (T, H, D), tokens `ldq` apart; null with H = 0                   in
    void* q_out;          // (T, H, D), tokens `ldq_out` apart; may be q                      out
    const void* k;        // (T, K, D), tokens `ldk` apart                                    in
    const void* v;        // (T, K, D), tokens `ldv` apart                                    in
    KvCache cache;        //                                                                  out
    Sequences sequences;  // token t of b goes to position kv_len - query_len + t
    const float* cos;     // (T, D/2) chosen by section, or with position_ids a table         in
    const float* sin;     //   (positions, D/2); null: q and k are rotated already            in
    const int64_t* position_ids;  // (3, T) rows of the table: temporal, height, width; or null in
    int num_tokens;               // T: rows of q, k and v, padding included
    int mrope_section[3];         // rotary pairs of each axis; sum D/2; with position_ids
    ActType type;
    int num_heads;                   // H; 0: k and v alone
    int64_t ldq, ldq_out, ldk, ldv;  // elements, multiples of 8
};

cudaError_t launch_rope_write_kv(const RopeWriteKvParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
