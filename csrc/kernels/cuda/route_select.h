// The visual tokens of most mass, ties to the lower index, in image order (paper, equation 5).
#pragma once

#include "kernels/cuda/types.h"

namespace latrt::cuda {

struct RouteSelectParams {
    const double* mass;  // (B, M) sum or mean over the tokens so far; finite         in
    int64_t* selected;   // (B, count) ascending indices in [0, M)                    out
    int batch;           // B
    int num_visual;      // M
    int count;           // tokens to take, 0 <= count <= M
};

cudaError_t launch_route_select(const RouteSelectParams& p, cudaStream_t stream);

// Adds a step's mass to the running sum of the source tokens: copies count for their source.
struct MassAddParams {
    const float* mass;      // (B, N) of the listed keys                                 in
    const int64_t* source;  // (B, N) source token of each, in [0, M); below 0: padding  in
    double* sum;            // (B, M)                                                    inout
    int batch;              // B
    int num_keys;           // N
    int num_visual;         // M
    double factor;          // 1 where `mass` is the mean already, 1 / (layers * H) where a sum
};

cudaError_t launch_mass_add(const MassAddParams& p, cudaStream_t stream);

}  // namespace latrt::cuda
