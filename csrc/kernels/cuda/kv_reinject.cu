#include "kernels/cuda/kv_reinject.h"

#include "kernels/cuda/quantise.cuh"

namespace latrt::cuda {
namespace {

constexpr int kThreads = 128;

struct Layers {
    void *k[kMaxReinjectLayers], *v[kMaxReinjectLayers];
    float *k_scale[kMaxReinjectLayers], *v_scale[kMaxReinjectLayers];
};

// Grid (tokens / 4, K, layers): a warp takes a token of a head. Copies lie behind every source,
// so that no row is read and written by the same launch.
template <class Act, KvType kType, int kDim>
__global__ void __launch_bounds__(kThreads) kv_reinject(KvReinjectParams p, Layers layers) {
    constexpr int kChunks = kDim * (is_codes(kType) ? 1 : 2) / 16;
    const int lane = threadIdx.x % 32, head = blockIdx.y, layer = blockIdx.z;
    const int token = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
    if (token >= p.num_tokens) return;
    const int64_t rows = p.batch_index * p.batch_rows + head * p.head_rows;
    const int64_t from = rows + p.source_index[token], to = rows + p.first + token;
    Pairs<kDim> pairs;
    load_row<Act, kType, kDim>(layers.k[layer], layers.k_scale[layer], from, lane, pairs);
    for_words<kDim>(lane, [&](int i, int word) {
        for (int j = 0; j < 2; ++j) {
            rotate(pairs.low[i][j], pairs.high[i][j], p.cos[2 * word + j], p.sin[2 * word + j]);
        }
    });
    store_row<Act, kType, kDim>(layers.k[layer], layers.k_scale[layer], to, lane, pairs);
    auto* values = static_cast<uint4*>(layers.v[layer]);
    if (lane < kChunks) values[to * kChunks + lane] = values[from * kChunks + lane];
    if (is_codes(kType) && lane == 0) layers.v_scale[layer][to] = layers.v_scale[layer][from];
}

template <class Act, KvType kType>
cudaError_t run(const KvReinjectParams& p, const Layers& layers, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.num_tokens, kThreads / 32)),
                    static_cast<unsigned>(p.num_kv_heads), static_cast<unsigned>(p.num_layers));
    const dim3 block(kThreads);
    switch (p.head_dim) {
        case 64:
            return launch(kv_reinject<Act, kType, 64>, grid, block, 0, stream, p, layers);
        case 80:
            return launch(kv_reinject<Act, kType, 80>, grid, block, 0, stream, p, layers);
        case 128:
            return launch(kv_reinject<Act, kType, 128>, grid, block, 0, stream, p, layers);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace

cudaError_t launch_kv_reinject(const KvReinjectParams& p, cudaStream_t stream) {
    if (p.num_layers < 0 || p.num_layers > kMaxReinjectLayers) return cudaErrorInvalidValue;
    if (p.num_tokens == 0 || p.num_layers == 0) return cudaSuccess;
    Layers layers = {};
    for (int i = 0; i < p.num_layers; ++i) {
        layers.k[i] = p.k[i], layers.v[i] = p.v[i];
        if (is_codes(p.type)) layers.k_scale[i] = p.k_scale[i], layers.v_scale[i] = p.v_scale[i];
    }
    switch (p.type) {
        case KvType::f16:
            return run<__half, KvType::f16>(p, layers, stream);
        case KvType::bf16:
            return run<__nv_bfloat16, KvType::bf16>(p, layers, stream);
        case KvType::int8:
            return run<__half, KvType::int8>(p, layers, stream);
        case KvType::e4m3:
            return run<__half, KvType::e4m3>(p, layers, stream);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace latrt::cuda
