#include "kernels/cuda/rope_write_kv.h"

#include "kernels/cuda/quantise.cuh"

namespace latrt::cuda {
namespace {

constexpr int kThreads = 128;

// Row of the cos and sin tables for rotary pair `pair` of token `t`.
__device__ __forceinline__ int64_t angle_row(const RopeWriteKvParams& p, int t, int pair) {
    if (p.position_ids == nullptr) return t;
    const int axis = pair < p.mrope_section[0]                        ? 0
                     : pair < p.mrope_section[0] + p.mrope_section[1] ? 1
                                                                      : 2;
    return p.position_ids[static_cast<int64_t>(axis) * p.num_tokens + t];
}

// The lane's pairs of a row x (D), rotated where there are angles.
template <class Act, int kDim>
__device__ __forceinline__ void rotated(const RopeWriteKvParams& p, const Act* x, int t, int lane,
                                        bool turn, Pairs<kDim>& pairs) {
    load_pairs<Act, kDim>(x, lane, pairs);
    if (!turn) return;
    for (int i = 0; i < Pairs<kDim>::kCount; ++i) {
        for (int j = 0; j < 2; ++j) {
            const int pair = 2 * (lane + 32 * i) + j;
            if (pair >= kDim / 2) continue;
            const int64_t at = angle_row(p, t, pair) * (kDim / 2) + pair;
            rotate(pairs.low[i][j], pairs.high[i][j], p.cos[at], p.sin[at]);
        }
    }
}

// The sequence of token row t; false where the row is padding.
__device__ inline bool find_token(const Sequences& s, int t, int& b, int& position) {
    for (b = 0; b < s.batch; ++b) {
        const Span span = span_of(s, b);
        const int index = t - span.first_row;
        if (index < 0 || index >= span.query_len) continue;
        position = span.kv_len - span.query_len + index;
        return true;
    }
    return false;
}

// Grid (T): a warp takes a row of D at a time, of q's H heads, then k's K and v's K.
template <class Act, KvType kType, int kDim>
__global__ void __launch_bounds__(kThreads) rope_write_kv(RopeWriteKvParams p) {
    const int t = blockIdx.x, lane = threadIdx.x % 32, kv_heads = p.cache.num_kv_heads;
    int b, position;
    if (!find_token(p.sequences, t, b, position)) return;
    for (int row = threadIdx.x / 32; row < p.num_heads + 2 * kv_heads; row += kThreads / 32) {
        const bool is_q = row < p.num_heads, is_k = !is_q && row < p.num_heads + kv_heads;
        const int head = is_q ? row : is_k ? row - p.num_heads : row - p.num_heads - kv_heads;
        const Act* from = is_q   ? static_cast<const Act*>(p.q) + t * p.ldq
                          : is_k ? static_cast<const Act*>(p.k) + t * p.ldk
                                 : static_cast<const Act*>(p.v) + t * p.ldv;
        Pairs<kDim> pairs;
        rotated<Act, kDim>(p, from + head * kDim, t, lane, p.cos != nullptr && (is_q || is_k),
                           pairs);
        if (is_q) {
            Act* to = static_cast<Act*>(p.q_out) + t * p.ldq_out + head * kDim;
            store_pairs<Act, kDim>(to, lane, pairs);
            continue;
        }
        const int64_t place = b * p.cache.batch_rows + head * p.cache.head_rows + position;
        store_row<Act, kType, kDim>(is_k ? p.cache.k : p.cache.v,
                                    is_k ? p.cache.k_scale : p.cache.v_scale, place, lane, pairs);
    }
}

template <class Act, KvType kType>
cudaError_t run_type(const RopeWriteKvParams& p, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(p.num_tokens));
    switch (p.cache.head_dim) {
        case 64:
            return launch(rope_write_kv<Act, kType, 64>, grid, dim3(kThreads), 0, stream, p);
        case 80:
            return launch(rope_write_kv<Act, kType, 80>, grid, dim3(kThreads), 0, stream, p);
        case 128:
            return launch(rope_write_kv<Act, kType, 128>, grid, dim3(kThreads), 0, stream, p);
        default:
            return cudaErrorInvalidValue;
    }
}

template <class Act, KvType kPlain>
cudaError_t run_act(const RopeWriteKvParams& p, cudaStream_t stream) {
    if (p.cache.type == KvType::int8) return run_type<Act, KvType::int8>(p, stream);
    if (p.cache.type == KvType::e4m3) return run_type<Act, KvType::e4m3>(p, stream);
    return p.cache.type == kPlain ? run_type<Act, kPlain>(p, stream) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_rope_write_kv(const RopeWriteKvParams& p, cudaStream_t stream) {
    if (p.num_tokens == 0 || p.sequences.batch == 0) return cudaSuccess;
    const int* section = p.mrope_section;
    if (p.ldq % 8 != 0 || p.ldq_out % 8 != 0 || p.ldk % 8 != 0 || p.ldv % 8 != 0 ||
        (p.position_ids != nullptr &&
         section[0] + section[1] + section[2] != p.cache.head_dim / 2)) {
        return cudaErrorInvalidValue;
    }
    return p.type == ActType::f16 ? run_act<__half, KvType::f16>(p, stream)
                                  : run_act<__nv_bfloat16, KvType::bf16>(p, stream);
}

}  // namespace latrt::cuda
