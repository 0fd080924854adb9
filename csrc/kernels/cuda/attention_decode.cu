#include "kernels/cuda/attention_decode.h"

#include "kernels/cuda/attention_finish.cuh"

namespace latrt::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpKeys = 16;                      // keys of a warp's tile: rows of an mma
constexpr int kStepKeys = kWarps * kWarpKeys;      // keys of a block's step
constexpr int kHeads = 8;                          // query heads of a block: columns of an mma
constexpr int kKeptSteps = 4;                      // steps whose scores are kept before they are
constexpr int kKeptKeys = kKeptSteps * kStepKeys;  // written out
constexpr int kKeptStride = kKeptKeys + 4;         // banks: four pairs of heads by eight keys

// Shared memory of a warp: stages of copies, of codes or of the values themselves.
template <class Act, KvType kType, int kDim>
struct WarpTile {
    using Rows = KvRows<Act, kType, kWarpKeys, kDim, 32>;
    static constexpr int kStageBytes = 2 * (Rows::kCodes ? Rows::kRawBytes : Rows::kBytes);
    static constexpr int kDecodedBytes = Rows::kCodes ? 2 * Rows::kBytes : 0;
    static constexpr int kBytes = kCopyStages * kStageBytes + kDecodedBytes;
    static_assert(kStageBytes + kDecodedBytes >= kHeads * kDim * 4,
                  "the partial sums take this place at the end");

    unsigned char* base;
    const void *k, *v;
    const float *k_scale, *v_scale;

    __device__ unsigned char* stage(int i) const { return base + i % kCopyStages * kStageBytes; }
    __device__ void fetch(int i, int row, int end, int lane) const {
        if (row < end) {
            Rows::fetch(stage(i), k, k_scale, kDim, row, end, lane);
            Rows::fetch(stage(i) + kStageBytes / 2, v, v_scale, kDim, row, end, lane);
        }
        commit_copies();
    }
    // K and V of stage i, (kWarpKeys, Rows::kStride) each, once its copies have landed.
    __device__ Act* keys(int i, int lane) const {
        if constexpr (!Rows::kCodes) return reinterpret_cast<Act*>(stage(i));
        auto* to = reinterpret_cast<Act*>(base + kCopyStages * kStageBytes);
        if constexpr (Rows::kCodes) {
            Rows::expand(to, stage(i), lane);
            Rows::expand(to + kWarpKeys * Rows::kStride, stage(i) + kStageBytes / 2, lane);
            sync_warp();
        }
        return to;
    }
};

// The heads of a block, and the running softmax of a warp: each lane holds heads 2 (lane % 4)
// and the next. The sums are (D, heads), as mma leaves them.
template <int kDim>
struct Softmax {
    float top[2] = {kMinusInfinity, kMinusInfinity};
    float total[2] = {0, 0};  // of this lane's keys
    float sums[kDim / 16][4] = {};
};

// score (keys lane / 4 and 8 further, two heads each) = K q, in units of log 2.
template <class Act, int kDim>
__device__ __forceinline__ void score_keys(const Act* keys, const uint32_t (&q)[kDim / 16][2],
                                           float scale, int lane, float (&score)[4]) {
    const Act* row = keys + (lane % 16) * (kDim + 8) + lane / 16 * 8;
    for (int i = 0; i < 4; ++i) score[i] = 0;
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
        uint32_t a[4];
        load_matrices(a, row + j * 16);
        mma<Act>(score, a, q[j]);
    }
    for (int i = 0; i < 4; ++i) score[i] *= scale;
}

template <class Act, int kDim>
__device__ __forceinline__ void add_keys(Softmax<kDim>& softmax, const Act* values,
                                         const float (&score)[4], int lane) {
    float weight[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float top = fmaxf(score[i], score[2 + i]);
        for (int mask = 4; mask < 32; mask *= 2) top = fmaxf(top, shuffle_xor(top, mask));
        top = fmaxf(top, softmax.top[i]);
        const float shrink = exp2_fast(softmax.top[i] - top);
        softmax.top[i] = top;
        weight[i] = exp2_fast(score[i] - top);
        weight[2 + i] = exp2_fast(score[2 + i] - top);
        softmax.total[i] = softmax.total[i] * shrink + weight[i] + weight[2 + i];
        for (int j = 0; j < kDim / 16; ++j) {
            softmax.sums[j][i] *= shrink;
            softmax.sums[j][2 + i] *= shrink;
        }
    }
    const uint32_t b[2] = {transpose_matrix(pack<Act>(weight[0], weight[1])),
                           transpose_matrix(pack<Act>(weight[2], weight[3]))};
    const Act* row = values + (lane % 8 + lane / 16 * 8) * (kDim + 8) + lane / 8 % 2 * 8;
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
        uint32_t a[4];
        load_matrices_transposed(a, row + j * 16);
        mma<Act>(softmax.sums[j], a, b);
    }
}

// Writes the kept scores of the keys that are visual: (B, H, N).
__device__ inline void write_scores(const float* kept, const MassParams& mass, float* to, int b,
                                    int head, int num_heads_here, int num_heads, int first_key,
                                    int count) {
    for (int n = threadIdx.x; n < mass.num_visual; n += kWarps * 32) {
        const int64_t key =
            mass.visual_index[static_cast<int64_t>(b) * mass.num_visual + n] - first_key;
        if (key < 0 || key >= count) continue;
        const int64_t row = static_cast<int64_t>(b) * num_heads + head;
        for (int i = 0; i < num_heads_here; ++i) {
            to[(row + i) * mass.num_visual + n] = kept[i * kKeptStride + key];
        }
    }
}

// The block's part of the softmax from its warps': sums (heads, D) and (top, total).
template <int kDim>
__device__ void write_partial(Softmax<kDim>& softmax, unsigned char* tiles, int tile_bytes,
                              float2* stats, const Partial& partial, int64_t first_row,
                              int num_heads) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < 2; ++i) {
        float total = softmax.total[i];
        for (int mask = 4; mask < 32; mask *= 2) total += shuffle_xor(total, mask);
        if (lane < 4) stats[warp * kHeads + lane * 2 + i] = make_float2(softmax.top[i], total);
    }
    sync_warp();  // every lane has read the tile that its sums overwrite
    auto* own = reinterpret_cast<float*>(tiles + warp * tile_bytes);
    for (int j = 0; j < kDim / 16; ++j) {
        for (int i = 0; i < 4; ++i) {
            const int head = lane % 4 * 2 + i % 2, d = j * 16 + lane / 4 + i / 2 * 8;
            own[head * kDim + d] = softmax.sums[j][i];
        }
    }
    sync_threads();
    for (int at = threadIdx.x; at < num_heads * kDim; at += kWarps * 32) {
        const int head = at / kDim;
        float top = kMinusInfinity, total = 0, sum = 0;
        for (int w = 0; w < kWarps; ++w) top = fmaxf(top, stats[w * kHeads + head].x);
        for (int w = 0; w < kWarps; ++w) {
            const float2 stat = stats[w * kHeads + head];
            const float factor = exp2_fast(stat.x - top);
            total += stat.y * factor;
            sum += reinterpret_cast<const float*>(tiles + w * tile_bytes)[at] * factor;
        }
        partial.out[first_row * kDim + at] = sum;
        if (at % kDim == 0) partial.stat[first_row + head] = make_float2(top, total);
    }
}

// Grid (splits, K * head blocks, B): a block takes up to 8 query heads of a KV head through
// their part of the keys; each of its warps has its own tiles and its own softmax till the end.
template <class Act, KvType kType, int kDim>
__global__ void __launch_bounds__(kWarps * 32, 2)
    attention_decode(AttentionDecodeParams p, Partial partial) {
    using Tile = WarpTile<Act, kType, kDim>;
    const int split = blockIdx.x, b = blockIdx.z, group = p.num_heads / p.cache.num_kv_heads;
    const int head_blocks = ceil_div(group, kHeads);
    const int kv_head = blockIdx.y / head_blocks, head_in_group = blockIdx.y % head_blocks * kHeads;
    const int head = kv_head * group + head_in_group;
    const int num_heads = group - head_in_group < kHeads ? group - head_in_group : kHeads;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Span span = span_of(p.sequences, b);
    if (span.query_len == 0) return;
    const int64_t stat_row = (static_cast<int64_t>(split) * gridDim.z + b) * p.num_heads + head;
    const int share = keys_per_split(span.kv_len, partial.num_splits, kStepKeys);
    const int first = split * share;
    const int end = first + share < span.kv_len ? first + share : span.kv_len;
    if (first >= end) {
        if (static_cast<int>(threadIdx.x) < num_heads) {
            partial.stat[stat_row + threadIdx.x] = make_float2(kMinusInfinity, 0);
        }
        return;
    }

    uint32_t q[kDim / 16][2];
    const auto* query = static_cast<const Act*>(p.q) + span.first_row * p.ldq +
                        (head + lane / 4) * kDim + lane % 4 * 2;
    for (int j = 0; j < kDim / 16; ++j) {
        for (int i = 0; i < 2; ++i) {
            const bool real = lane / 4 < num_heads;
            q[j][i] = real ? *reinterpret_cast<const uint32_t*>(query + j * 16 + i * 8) : 0;
        }
    }

    unsigned char* tiles = dynamic_shared();
    auto* stats = reinterpret_cast<float2*>(tiles + kWarps * Tile::kBytes);  // (warps, heads)
    auto* kept = reinterpret_cast<float*>(stats + kWarps * kHeads);
    const int64_t rows = b * p.cache.batch_rows + kv_head * p.cache.head_rows;
    const int64_t offset = rows * kDim * (is_codes(kType) ? 1 : 2);
    const Tile tile = {tiles + warp * Tile::kBytes,
                       static_cast<const unsigned char*>(p.cache.k) + offset,
                       static_cast<const unsigned char*>(p.cache.v) + offset,
                       is_codes(kType) ? p.cache.k_scale + rows : nullptr,
                       is_codes(kType) ? p.cache.v_scale + rows : nullptr};
    const bool keep = has_mass(p.mass);
    const int steps = ceil_div(end - first, kStepKeys), own = first + warp * kWarpKeys;
    Softmax<kDim> softmax;
    constexpr int kAhead = kCopyStages - 1;
    for (int i = 0; i < kAhead; ++i) tile.fetch(i, own + i * kStepKeys, end, lane);
    for (int step = 0; step < steps; ++step) {
        const int key = own + step * kStepKeys;
        tile.fetch(step + kAhead, key + kAhead * kStepKeys, end, lane);
        wait_copies<kAhead>();
        sync_warp();
        if (key < end) {
            const Act* keys = tile.keys(step, lane);
            const Act* values = is_codes(kType) ? keys + kWarpKeys * Tile::Rows::kStride
                                                : keys + Tile::kStageBytes / 4;
            float score[4];
            score_keys<Act, kDim>(keys, q, p.scale * kLog2E, lane, score);
            for (int i = 0; i < 4; ++i) {
                if (key + lane / 4 + i / 2 * 8 >= end) score[i] = kMinusInfinity;
            }
            if (keep) {
                float* to = kept + step % kKeptSteps * kStepKeys + warp * kWarpKeys + lane / 4;
                for (int i = 0; i < 4; ++i) {
                    to[(lane % 4 * 2 + i % 2) * kKeptStride + i / 2 * 8] = score[i];
                }
            }
            add_keys<Act, kDim>(softmax, values, score, lane);
        }
        sync_warp();  // before the next copy into this stage
        if (keep && (step % kKeptSteps == kKeptSteps - 1 || step == steps - 1)) {
            const int kept_first = first + step / kKeptSteps * kKeptKeys;
            const int rest = end - kept_first;
            sync_threads();
            write_scores(kept, p.mass, partial.score, b, head, num_heads, p.num_heads, kept_first,
                         rest < kKeptKeys ? rest : kKeptKeys);
            sync_threads();
        }
    }
    write_partial<kDim>(softmax, tiles, Tile::kBytes, stats, partial, stat_row, num_heads);
}

// Blocks for twice the multiprocessors, whatever the batch, so that a sequence's result does not
// depend on those beside it.
int num_splits(const AttentionDecodeParams& p) {
    const int group = p.num_heads / p.cache.num_kv_heads;
    const int most = ceil_div(p.sequences.max_kv_len, kStepKeys);
    const int wanted = 2 * p.num_sms / (p.cache.num_kv_heads * ceil_div(group, kHeads));
    return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

struct Layout {
    size_t stat, score, bytes;  // offsets; partial sums come first
};

Layout workspace_layout(const AttentionDecodeParams& p) {
    const size_t rows = static_cast<size_t>(num_splits(p)) * p.sequences.batch * p.num_heads;
    const size_t scores = static_cast<size_t>(p.sequences.batch) * p.num_heads * p.mass.num_visual;
    const size_t stat = rows * p.cache.head_dim * sizeof(float);
    const size_t score = stat + rows * sizeof(float2);
    return {stat, score, score + scores * sizeof(float)};
}

template <class Act, KvType kType, int kDim>
cudaError_t run(const AttentionDecodeParams& p, cudaStream_t stream) {
    auto* workspace = static_cast<unsigned char*>(p.workspace);
    const Layout layout = workspace_layout(p);
    const Partial partial = {reinterpret_cast<float*>(workspace),
                             reinterpret_cast<float2*>(workspace + layout.stat),
                             reinterpret_cast<float*>(workspace + layout.score),
                             num_splits(p),
                             p.num_heads,
                             p.mass.num_visual,
                             false};
    const int group = p.num_heads / p.cache.num_kv_heads;
    const dim3 grid(static_cast<unsigned>(partial.num_splits),
                    static_cast<unsigned>(p.cache.num_kv_heads * ceil_div(group, kHeads)),
                    static_cast<unsigned>(p.sequences.batch));
    const size_t kept = has_mass(p.mass) ? kHeads * kKeptStride * sizeof(float) : 0;
    using Tile = WarpTile<Act, kType, kDim>;  // whose kBytes are not those of every device
    const int tile_bytes = copy_stages() * Tile::kStageBytes + Tile::kDecodedBytes;
    const size_t shared = kWarps * tile_bytes + kWarps * kHeads * sizeof(float2) + kept;
    const cudaError_t error = launch(attention_decode<Act, kType, kDim>, grid, dim3(kWarps * 32),
                                     shared, stream, p, partial);
    if (error != cudaSuccess) return error;
    return launch_finish<Act>(partial, p.sequences, p.mass, p.out, p.ldo, p.num_heads, kDim,
                              stream);
}

template <class Act, KvType kType>
cudaError_t run_type(const AttentionDecodeParams& p, cudaStream_t stream) {
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
cudaError_t run_act(const AttentionDecodeParams& p, cudaStream_t stream) {
    if (p.cache.type == KvType::int8) return run_type<Act, KvType::int8>(p, stream);
    if (p.cache.type == KvType::e4m3) return run_type<Act, KvType::e4m3>(p, stream);
    return p.cache.type == kPlain ? run_type<Act, kPlain>(p, stream) : cudaErrorInvalidValue;
}

}  // namespace

size_t attention_decode_workspace(const AttentionDecodeParams& p) {
    return workspace_layout(p).bytes;
}

cudaError_t launch_attention_decode(const AttentionDecodeParams& p, cudaStream_t stream) {
    if (p.sequences.batch == 0) return cudaSuccess;
    if (p.sequences.max_query_len != 1 || p.num_heads % p.cache.num_kv_heads != 0 ||
        p.sequences.max_kv_len < 1 || p.ldq % 8 != 0 || p.ldo % 8 != 0) {
        return cudaErrorInvalidValue;
    }
    if (!multiplies(p.type)) return cudaErrorNotSupported;
    return p.type == ActType::f16 ? run_act<__half, KvType::f16>(p, stream)
                                  : run_act<__nv_bfloat16, KvType::bf16>(p, stream);
}

}  // namespace latrt::cuda
