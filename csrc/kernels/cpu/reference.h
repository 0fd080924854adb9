// Every kernel as its definition reads, on plain row-major arrays, summed in double.
#pragma once

#include <cstdint>
#include <vector>

namespace latrt::reference {

using Floats = std::vector<float>;

// y (M, N) = x (M, K) w (N, K)^T + bias; `bound` (M, N): the sum of the products' magnitudes.
void linear(const Floats& x, const Floats& w, const Floats& bias, int m, int n, int k, Floats& y,
            Floats& bound);

// codes (M, K) and scales (M, ceil(K / group)): scale = max|x| / largest, nearest code.
void quantise(const Floats& x, int m, int k, int largest, int group, std::vector<int>& codes,
              Floats& scale);

// Attention of T tokens and G heads over keys k (C, D), values v (C, D); token t sees
// `num_keys` + t keys, or `num_keys` where not `causal`. out (T, G, D); mass (C): the last
// token's probabilities summed over heads.
struct Attention {
    Floats q, k, v;
    int num_tokens, group, head_dim, num_keys;
    bool causal;
};
void attention(const Attention& a, float scale, Floats& out, Floats& mass);

// y (M, E) = x / sqrt(mean(x^2) + eps) * w.
Floats rms_norm(const Floats& x, const Floats& w, float eps);

// y (M, F) = silu(gate) * up of gate_up (M, 2 F).
Floats swiglu(const Floats& gate_up, int ffn);

// x (T, heads, D) turned by angles cos, sin (T, D/2).
Floats rotate(const Floats& x, const Floats& cos, const Floats& sin, int num_heads, int head_dim);

// Indices of the k largest, equal ones by lower index.
std::vector<int> top_k(const Floats& x, int k);

}  // namespace latrt::reference
