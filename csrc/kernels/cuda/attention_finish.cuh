// The end of an attention whose keys were split: partial results become outputs, and the kept
// scores of the last token become the visual mass.
#pragma once

#include "kernels/cuda/kv_rows.cuh"

namespace latrt::cuda {

inline constexpr int kFinishThreads = 256;

// Scores are in units of log 2: probabilities are exp2(score - top) / total. Row r of sequence b
// is (t * H + h), R = S * H of them. A split that saw no key of a row has top -inf and total 0.
struct Partial {
    float* out;    // (splits, B, R, D): sums of exp2(score - top) * value; null: no combination
    float2* stat;  // (splits, B, R): top, total
    float* score;  // (B, H, score_stride) of the last token, by visual key or by KV position
    int num_splits, rows, score_stride;
    bool score_by_position;
};

// Keys that each split takes, a multiple of `step`, so that `num_splits` of them suffice.
__host__ __device__ constexpr int keys_per_split(int num_keys, int num_splits, int step) {
    return ceil_div(ceil_div(num_keys, num_splits), step) * step;
}

// Whether the scores of the last token are kept: an empty list of keys may have a pointer, and
// takes no workspace.
__host__ __device__ inline bool has_mass(const MassParams& mass) {
    return mass.num_visual > 0 && mass.visual_index != nullptr;
}

struct MaxOf {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct SumOf {
    __device__ float operator()(float a, float b) const { return a + b; }
};

template <class Reduce>
__device__ __forceinline__ float warp_reduce(float value, Reduce reduce) {
    for (int mask = 16; mask > 0; mask /= 2) value = reduce(value, shuffle_xor(value, mask));
    return value;
}

// The same value for every thread; `shared` has a float for each warp.
template <class Reduce>
__device__ __forceinline__ float block_reduce(float value, float* shared, Reduce reduce) {
    value = warp_reduce(value, reduce);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    sync_threads();
    value = shared[0];
    for (int i = 1; i < static_cast<int>(blockDim.x / 32); ++i) value = reduce(value, shared[i]);
    sync_threads();
    return value;
}

// Shared floats that finish_attention takes.
inline size_t finish_shared_bytes(int num_splits, int num_heads) {
    const int weights = num_splits > num_heads ? num_splits : num_heads;
    return (weights + kFinishThreads / 32 + kFinishThreads * 4) * sizeof(float);
}

// out (D) of row `row` of sequence b.
template <class Act>
__device__ void combine(const Partial& partial, int b, int row, int dim, Act* out) {
    auto* sums = reinterpret_cast<float4*>(dynamic_shared());
    auto* reduced = reinterpret_cast<float*>(sums + kFinishThreads);
    float* weight = reduced + kFinishThreads / 32;  // (splits)
    const int thread = threadIdx.x;
    const int64_t split_rows = static_cast<int64_t>(gridDim.y) * partial.rows;
    const int64_t first = static_cast<int64_t>(b) * partial.rows + row;
    float top = kMinusInfinity, total = 0;
    for (int i = thread; i < partial.num_splits; i += kFinishThreads) {
        top = fmaxf(top, partial.stat[i * split_rows + first].x);
    }
    top = block_reduce(top, reduced, MaxOf());
    for (int i = thread; i < partial.num_splits; i += kFinishThreads) {
        const float2 stat = partial.stat[i * split_rows + first];
        weight[i] = exp2_fast(stat.x - top);
        total += stat.y * weight[i];
    }
    total = block_reduce(total, reduced, SumOf());
    const int lanes = dim / 4, groups = kFinishThreads / lanes;
    const int group = thread / lanes, lane = thread % lanes;
    float4 sum = {0, 0, 0, 0};
    if (group < groups) {
        for (int i = group; i < partial.num_splits; i += groups) {
            const float factor = weight[i];
            if (factor == 0) continue;  // its part of `out` may not be written
            const auto* from =
                reinterpret_cast<const float4*>(partial.out + (i * split_rows + first) * dim);
            const float4 part = from[lane];
            sum.x += part.x * factor, sum.y += part.y * factor;
            sum.z += part.z * factor, sum.w += part.w * factor;
        }
        sums[thread] = sum;
    }
    sync_threads();
    if (thread >= lanes) return;
    sum = sums[thread];
    for (int i = 1; i < groups; ++i) {
        const float4 part = sums[i * lanes + thread];
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    const float share = 1 / total;
    reinterpret_cast<uint2*>(out)[thread] = make_uint2(pack<Act>(sum.x * share, sum.y * share),
                                                       pack<Act>(sum.z * share, sum.w * share));
}

// mass of the visual keys [first, first + kFinishThreads) of sequence b.
__device__ inline void finish_mass(const Partial& partial, const MassParams& mass, const Span& span,
                                   int b, int num_heads, int first) {
    auto* log_total = reinterpret_cast<float*>(dynamic_shared());  // (H): top + log2(total)
    const int lane = threadIdx.x % 32, n = first + static_cast<int>(threadIdx.x);
    const int64_t split_rows = static_cast<int64_t>(gridDim.y) * partial.rows;
    const int64_t row = static_cast<int64_t>(b) * partial.rows + (span.query_len - 1) * num_heads;
    for (int head = threadIdx.x / 32; head < num_heads; head += kFinishThreads / 32) {
        float top = kMinusInfinity, total = 0;
        for (int i = lane; i < partial.num_splits; i += 32) {
            top = fmaxf(top, partial.stat[i * split_rows + row + head].x);
        }
        top = warp_reduce(top, MaxOf());
        for (int i = lane; i < partial.num_splits; i += 32) {
            const float2 stat = partial.stat[i * split_rows + row + head];
            total += stat.y * exp2_fast(stat.x - top);
        }
        total = warp_reduce(total, SumOf());
        if (lane == 0) log_total[head] = top + log2f(total);
    }
    sync_threads();
    if (n >= mass.num_visual) return;
    const int64_t position = mass.visual_index[static_cast<int64_t>(b) * mass.num_visual + n];
    float sum = 0;
    if (position >= 0 && position < span.kv_len) {
        const int64_t at = partial.score_by_position ? position : n;
        const float* score =
            partial.score + static_cast<int64_t>(b) * num_heads * partial.score_stride + at;
        for (int head = 0; head < num_heads; ++head, score += partial.score_stride) {
            sum += exp2_fast(*score - log_total[head]);
        }
    }
    mass.mass[static_cast<int64_t>(b) * mass.num_visual + n] = sum;
}

// Grid (row blocks + mass blocks, B): a block for each row where partial.out is given, then one
// for every kFinishThreads visual keys.
template <class Act>
__global__ void __launch_bounds__(kFinishThreads)
    finish_attention(Partial partial, Sequences sequences, MassParams mass, Act* out, int64_t ldo,
                     int num_heads, int dim) {
    const int b = blockIdx.y, row_blocks = partial.out == nullptr ? 0 : partial.rows;
    const Span span = span_of(sequences, b);
    const int row = blockIdx.x;
    if (row < row_blocks) {
        const int token = row / num_heads, head = row % num_heads;
        if (token >= span.query_len) return;
        combine(partial, b, row, dim, out + (span.first_row + token) * ldo + head * dim);
    } else {
        const int first = (row - row_blocks) * kFinishThreads;
        if (span.query_len > 0) return finish_mass(partial, mass, span, b, num_heads, first);
        const int n = first + static_cast<int>(threadIdx.x);
        if (n < mass.num_visual) mass.mass[static_cast<int64_t>(b) * mass.num_visual + n] = 0;
    }
}

template <class Act>
cudaError_t launch_finish(const Partial& partial, const Sequences& sequences,
                          const MassParams& mass, void* out, int64_t ldo, int num_heads, int dim,
                          cudaStream_t stream) {
    const int blocks = (partial.out == nullptr ? 0 : partial.rows) +
                       (has_mass(mass) ? ceil_div(mass.num_visual, kFinishThreads) : 0);
    if (blocks == 0) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(sequences.batch));
    return launch(finish_attention<Act>, grid, dim3(kFinishThreads),
                  finish_shared_bytes(partial.num_splits, num_heads), stream, partial, sequences,
                  mass, static_cast<Act*>(out), ldo, num_heads, dim);
}

}  // namespace latrt::cuda
