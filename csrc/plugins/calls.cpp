// Kernels that run between two passes of an engine, callable from Python through ctypes. Each
// returns a cudaError_t; pointers are device memory unless said otherwise.
#include "kernels/cuda/launchers.h"

#define LATRT_EXPORT extern "C" __attribute__((visibility("default")))

// Copies of cached keys and values behind position `first` of sequence `slot`, in every layer. `k`
// and `v` are host arrays of `num_layers` caches (B, K, C, D), the scales of (B, K, C) or null;
// `type`: a KvType.
LATRT_EXPORT int latrt_kv_reinject(void* const* k, void* const* v, float* const* k_scale,
                                   float* const* v_scale, const int64_t* source_index,
                                   const float* cos, const float* sin, int type, int num_layers,
                                   int num_kv_heads, int head_dim, int capacity, int slot,
                                   int num_tokens, int first, void* stream) {
    latrt::cuda::KvReinjectParams p{};
    p.k = k;
    p.v = v;
    p.k_scale = k_scale;
    p.v_scale = v_scale;
    p.source_index = source_index;
    p.cos = cos;
    p.sin = sin;
    p.type = static_cast<latrt::cuda::KvType>(type);
    p.num_layers = num_layers;
    p.num_kv_heads = num_kv_heads;
    p.head_dim = head_dim;
    p.batch_rows = static_cast<int64_t>(num_kv_heads) * capacity;
    p.head_rows = capacity;
    p.batch_index = slot;
    p.num_tokens = num_tokens;
    p.first = first;
    return launch_kv_reinject(p, static_cast<cudaStream_t>(stream));
}

// A token for each row of logits (B, V), greedy or drawn, and its probability: `SampleParams`.
LATRT_EXPORT int latrt_sample(const float* logits, const double* uniform, const float* temperature,
                              const int32_t* top_k, const float* top_p, const int64_t* banned,
                              int64_t* token, float* logprob, int batch, int vocab_size,
                              void* stream) {
    latrt::cuda::SampleParams p{};
    p.logits = logits;
    p.uniform = uniform;
    p.temperature = temperature;
    p.top_k = top_k;
    p.top_p = top_p;
    p.banned = banned;
    p.token = token;
    p.logprob = logprob;
    p.batch = batch;
    p.vocab_size = vocab_size;
    p.ld = vocab_size;
    return launch_sample(p, static_cast<cudaStream_t>(stream));
}
