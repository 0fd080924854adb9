// A token for each row of logits: greedy, or drawn after temperature, top-k and top-p, in this
// order; and its probability. Ties go to the lower index. Sums are 64-bit fixed point, so that the
// order of threads never changes the token.
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

struct SampleParams {
    const float* logits;       // (B, V), rows `ld` apart                                    in
    const double* uniform;     // (B) in [0, 1): one draw each; null where all are greedy    in
    const float* temperature;  // (B), 0: greedy; null: all greedy                           in
    const int32_t* top_k;      // (B), 0: off; null: off                                     in
    const float* top_p;        // (B), above 0, 1: off; null: off                            in
    const int64_t* banned;     // (B) a token that is never taken, -1: none; null: none      in
    int64_t* token;            // (B); -1 where a logit is not finite, or none is left       out
    float* logprob;            // (B) log of the token's share at temperature 1, before      out
                               // top-k, top-p and ban; NaN with token -1; null: not wanted
    int batch, vocab_size;     // B, V
    int64_t ld;
};

cudaError_t launch_sample(const SampleParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
