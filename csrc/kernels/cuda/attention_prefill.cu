#include "kernels/cuda/attention_prefill.h"

#include "kernels/cuda/attention_finish.cuh"
#include "kernels/cuda/attention_tile.cuh"

namespace latrt::cuda {
namespace {

constexpr int kMaxSplits = 16;
constexpr int kMinSplitKeys = 256;

// The lane's sums of a row, to be combined with those of other splits.
template <int kDim>
__device__ __forceinline__ void write_partial(const RowSums<kDim>& rows, int i,
                                              const Partial& partial, int64_t row) {
    auto* pairs = reinterpret_cast<float2*>(partial.out + row * kDim + threadIdx.x % 4 * 2);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
        pairs[n * 4] = make_float2(rows.sums[n][2 * i], rows.sums[n][2 * i + 1]);
    }
}

// Grid (row tiles * splits, K, B). The rows of a KV head are its tokens times its group of query
// heads, the heads of a token together, so that a tile's K and V serve them all. The last tiles
// see most keys and go first.
template <class Act, KvType kType, int kDim>
__global__ void __launch_bounds__(kTileThreads, 1)
    attention_prefill(AttentionPrefillParams p, Partial partial) {
    const int b = blockIdx.z, kv_head = blockIdx.y, group = p.num_heads / p.cache.num_kv_heads;
    const int split = blockIdx.x % partial.num_splits;
    const int tile = (gridDim.x - 1 - blockIdx.x) / partial.num_splits;
    const Span span = span_of(p.sequences, b);
    const int past = span.kv_len - span.query_len, num_rows = span.query_len * group;
    const int first_row = tile * kTileRows;
    if (first_row >= num_rows) return;
    const int last_row = first_row + kTileRows < num_rows ? first_row + kTileRows : num_rows;
    const int share = keys_per_split(span.kv_len, partial.num_splits, kTileKeys);
    const int first = split * share;
    const int most = past + (last_row - 1) / group + 1;
    const int end = first + share < most ? first + share : most;

    const Act* query[2];
    float* kept[2];
    int limit[2], token[2], head[2];
    for (int i = 0; i < 2; ++i) {
        const int row = first_row + lane_row() + 8 * i;
        token[i] = row / group;
        head[i] = kv_head * group + row % group;
        const bool real = row < num_rows;
        limit[i] = past + token[i] + 1;
        query[i] = real ? static_cast<const Act*>(p.q) + (span.first_row + token[i]) * p.ldq +
                              head[i] * kDim
                        : nullptr;
        const bool keep = real && token[i] == span.query_len - 1 && has_mass(p.mass);
        kept[i] = keep ? partial.score + (static_cast<int64_t>(b) * p.num_heads + head[i]) *
                                             partial.score_stride
                       : nullptr;
    }
    const int64_t rows = b * p.cache.batch_rows + kv_head * p.cache.head_rows;
    const int64_t offset = rows * kDim * (is_codes(kType) ? 1 : 2);
    const KeySource source = {static_cast<const unsigned char*>(p.cache.k) + offset,
                              static_cast<const unsigned char*>(p.cache.v) + offset,
                              is_codes(kType) ? p.cache.k_scale + rows : nullptr,
                              is_codes(kType) ? p.cache.v_scale + rows : nullptr,
                              kDim,
                              kDim};
    RowSums<kDim> sums;
    if (first < end) {
        TileAttention<Act, kType, kDim>::run(query, source, first, end, limit,
                                             past + first_row / group + 1, p.scale, kept, sums);
    }
    for (int i = 0; i < 2; ++i) {
        if (query[i] == nullptr) continue;
        const int64_t stat_row = (static_cast<int64_t>(split) * gridDim.z + b) * partial.rows +
                                 token[i] * p.num_heads + head[i];
        if (threadIdx.x % 4 == 0) {
            partial.stat[stat_row] = make_float2(sums.top[i], sums.total[i]);
        }
        if (partial.out != nullptr) {
            if (sums.top[i] != kMinusInfinity) write_partial<kDim>(sums, i, partial, stat_row);
        } else {
            write_row<Act, kDim>(
                sums, i,
                static_cast<Act*>(p.out) + (span.first_row + token[i]) * p.ldo + head[i] * kDim);
        }
    }
}

int num_tiles(const AttentionPrefillParams& p) {
    return ceil_div(p.sequences.max_query_len * (p.num_heads / p.cache.num_kv_heads), kTileRows);
}

// Keys are split where the rows of one sequence alone would leave multiprocessors idle.
int num_splits(const AttentionPrefillParams& p) {
    const int most = ceil_div(p.sequences.max_kv_len, kMinSplitKeys);
    const int wanted = 2 * p.num_sms / (num_tiles(p) * p.cache.num_kv_heads);
    const int bound = most < kMaxSplits ? most : kMaxSplits;
    return wanted < 1 ? 1 : wanted < bound ? wanted : bound;
}

struct Layout {
    size_t stat, score, bytes;  // offsets; partial sums come first
};

Layout workspace_layout(const AttentionPrefillParams& p) {
    const size_t splits = static_cast<size_t>(num_splits(p));
    const size_t rows = splits * p.sequences.batch * p.sequences.max_query_len * p.num_heads;
    const size_t scores = p.mass.num_visual == 0 ? 0
                                                 : static_cast<size_t>(p.sequences.batch) *
                                                       p.num_heads * p.sequences.max_kv_len;
    const size_t stat = splits == 1 ? 0 : rows * p.cache.head_dim * sizeof(float);
    const size_t score = stat + rows * sizeof(float2);
    return {stat, score, score + scores * sizeof(float)};
}

template <class Act, KvType kType, int kDim>
cudaError_t run(const AttentionPrefillParams& p, cudaStream_t stream) {
    auto* workspace = static_cast<unsigned char*>(p.workspace);
    const Layout layout = workspace_layout(p);
    const int splits = num_splits(p);
    const Partial partial = {splits == 1 ? nullptr : reinterpret_cast<float*>(workspace),
                             reinterpret_cast<float2*>(workspace + layout.stat),
                             reinterpret_cast<float*>(workspace + layout.score),
                             splits,
                             p.sequences.max_query_len * p.num_heads,
                             p.sequences.max_kv_len,
                             true};
    const dim3 grid(static_cast<unsigned>(num_tiles(p) * splits),
                    static_cast<unsigned>(p.cache.num_kv_heads),
                    static_cast<unsigned>(p.sequences.batch));
    const cudaError_t error =
        launch(attention_prefill<Act, kType, kDim>, grid, dim3(kTileThreads),
               TileAttention<Act, kType, kDim>::kSharedBytes, stream, p, partial);
    if (error != cudaSuccess) return error;
    return launch_finish<Act>(partial, p.sequences, p.mass, p.out, p.ldo, p.num_heads, kDim,
                              stream);
}

template <class Act, KvType kType>
cudaError_t run_type(const AttentionPrefillParams& p, cudaStream_t stream) {
    switch (p.cache.head_dim) {
        case 64:
            return run<Act, kType, 64>(p, stream);
        case 80:
            return run<Act, kType, 80>(p, stream);
        case 128:
            return run<Act, kType, 128>(p, stream);
        default:
            return cudaErrorInvalidValue;
    }
}

template <class Act, KvType kPlain>
cudaError_t run_act(const AttentionPrefillParams& p, cudaStream_t stream) {
    if (p.cache.type == KvType::int8) return run_type<Act, KvType::int8>(p, stream);
    if (p.cache.type == KvType::e4m3) return run_type<Act, KvType::e4m3>(p, stream);
    return p.cache.type == kPlain ? run_type<Act, kPlain>(p, stream) : cudaErrorInvalidValue;
}

}  // namespace

size_t attention_prefill_workspace(const AttentionPrefillParams& p) {
    return workspace_layout(p).bytes;
}

cudaError_t launch_attention_prefill(const AttentionPrefillParams& p, cudaStream_t stream) {
    if (p.sequences.batch == 0 || p.sequences.max_query_len == 0) return cudaSuccess;
    if (p.num_heads % p.cache.num_kv_heads != 0 || p.sequences.max_kv_len < 1 || p.ldq % 8 != 0 ||
        p.ldo % 8 != 0) {
        return cudaErrorInvalidValue;
    }
    if (!multiplies(p.type)) return cudaErrorNotSupported;
    return p.type == ActType::f16 ? run_act<__half, KvType::f16>(p, stream)
                                  : run_act<__nv_bfloat16, KvType::bf16>(p, stream);
}

}  // namespace latrt::cuda
