#include "kernels/cuda/attention_vision.h"

#include "kernels/cuda/attention_tile.cuh"

namespace latrt::cuda {
namespace {

// Grid (row tiles, H, W).
template <class Act, int kDim>
__global__ void __launch_bounds__(kTileThreads) attention_vision(AttentionVisionParams p) {
    constexpr KvType kType = KvType::f16;  // 16-bit values as they are, of either type
    const int window = blockIdx.z, head = blockIdx.y;
    const bool packed = p.cu_seqlens != nullptr;
    const int64_t start = packed ? p.cu_seqlens[window] : window * int64_t{p.max_len};
    const int length = packed                ? p.cu_seqlens[window + 1] - p.cu_seqlens[window]
                       : p.length == nullptr ? p.max_len
                                             : p.length[window];
    if (static_cast<int>(blockIdx.x) * kTileRows >= length) return;
    const Act* query[2];
    float* const kept[2] = {nullptr, nullptr};
    const int limit[2] = {length, length};
    int row[2];
    for (int i = 0; i < 2; ++i) {
        row[i] = blockIdx.x * kTileRows + lane_row() + 8 * i;
        query[i] = row[i] < length
                       ? static_cast<const Act*>(p.q) + (start + row[i]) * p.ldq + head * kDim
                       : nullptr;
    }
    const KeySource source = {static_cast<const Act*>(p.k) + start * p.ldk + head * kDim,
                              static_cast<const Act*>(p.v) + start * p.ldv + head * kDim,
                              nullptr,
                              nullptr,
                              p.ldk,
                              p.ldv};
    RowSums<kDim> sums;
    TileAttention<Act, kType, kDim>::run(query, source, 0, length, limit, length, p.scale, kept,
                                         sums);
    for (int i = 0; i < 2; ++i) {
        if (query[i] == nullptr) continue;
        write_row<Act, kDim>(sums, i,
                             static_cast<Act*>(p.out) + (start + row[i]) * p.ldo + head * kDim);
    }
}

template <class Act, int kDim>
cudaError_t run(const AttentionVisionParams& p, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.max_len, kTileRows)),
                    static_cast<unsigned>(p.num_heads), static_cast<unsigned>(p.num_windows));
    return launch(attention_vision<Act, kDim>, grid, dim3(kTileThreads),
                  TileAttention<Act, KvType::f16, kDim>::kSharedBytes, stream, p);
}

template <class Act>
cudaError_t run_act(const AttentionVisionParams& p, cudaStream_t stream) {
    switch (p.head_dim) {
        case 64:
            return run<Act, 64>(p, stream);
        case 80:
            return run<Act, 80>(p, stream);
        case 128:
            return run<Act, 128>(p, stream);
        default:
            return cudaErrorInvalidValue;
    }
}

}  // namespace

cudaError_t launch_attention_vision(const AttentionVisionParams& p, cudaStream_t stream) {
    if (p.num_windows == 0 || p.max_len == 0) return cudaSuccess;
    if (p.ldq % 8 != 0 || p.ldk % 8 != 0 || p.ldv % 8 != 0 || p.ldo % 8 != 0) {
        return cudaErrorInvalidValue;
    }
    if (!multiplies(p.type)) return cudaErrorNotSupported;
    return p.type == ActType::f16 ? run_act<__half>(p, stream) : run_act<__nv_bfloat16>(p, stream);
}

}  // namespace latrt::cuda
