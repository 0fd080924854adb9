// A block's share of an attention: 64 query rows over a range of keys, 64 keys at a time, by
// tensor cores with an online softmax. Four warps of 16 rows; K and V pass through shared memory,
// V in flight while scores are computed and the next K while values are summed.
#pragma once

#include "kernels/cuda/kv_rows.cuh"

namespace latrt::cuda {

inline constexpr int kTileRows = 64;
inline constexpr int kTileKeys = 64;
inline constexpr int kTileThreads = kTileRows / 16 * 32;

// K and V of a head; rows of D values, `k_stride` and `v_stride` values apart.
struct KeySource {
    const void *k, *v;
    const float *k_scale, *v_scale;  // for codes
    int64_t k_stride, v_stride;
};

// What a warp holds of its 16 rows: each lane rows lane / 4 and 8 further, of every 8 columns
// 2 (lane % 4) and the next. Probabilities are exp2(score - top) / total.
template <int kDim>
struct RowSums {
    float top[2] = {kMinusInfinity, kMinusInfinity};
    float total[2] = {0, 0};
    float sums[kDim / 8][4] = {};
};

// The row of the block's 64 that the lane holds first; the second is 8 further.
__device__ __forceinline__ int lane_row() {
    return static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
}

template <class Act, KvType kType, int kDim>
struct TileAttention {
    using Keys = KvRows<Act, kType, kTileKeys, kDim, kTileThreads>;
    static constexpr int kStride = Keys::kStride;
    static constexpr int kSharedBytes = 2 * Keys::kBytes + 2 * Keys::kRawBytes;

    // Scores of a warp's rows on a tile's keys (64, kStride), in units of log 2.
    __device__ static void score(const Act* keys, const uint32_t (&q)[kDim / 16][4], float scale,
                                 float (&scores)[kTileKeys / 8][4]) {
        const int lane = threadIdx.x % 32;
        const Act* row = keys + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
            for (int i = 0; i < 4; ++i) scores[n][i] = 0;
        }
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
#pragma unroll
            for (int n = 0; n < kTileKeys / 8; n += 2) {
                uint32_t words[4];
                load_matrices(words, row + n * 8 * kStride + j * 16);
                const uint32_t b[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
                mma<Act>(scores[n], q[j], b[0]);
                mma<Act>(scores[n + 1], q[j], b[1]);
            }
        }
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
            for (int i = 0; i < 4; ++i) scores[n][i] *= scale;
        }
    }

    // Turns scores into exponentials against the new top, and shrinks the sums to it.
    __device__ static void soften(float (&scores)[kTileKeys / 8][4], RowSums<kDim>& rows) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float top = rows.top[i];
#pragma unroll
            for (int n = 0; n < kTileKeys / 8; ++n) {
                top = fmaxf(top, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
            }
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            const float base = top == kMinusInfinity ? 0 : top;  // a row that saw no key yet
            const float shrink = exp2_fast(rows.top[i] - base);
            rows.top[i] = top;
            float total = 0;
#pragma unroll
            for (int n = 0; n < kTileKeys / 8; ++n) {
                for (int k = 2 * i; k < 2 * i + 2; ++k) {
                    scores[n][k] = exp2_fast(scores[n][k] - base);
                    total += scores[n][k];
                }
            }
            rows.total[i] = rows.total[i] * shrink + total;
#pragma unroll
            for (int n = 0; n < kDim / 8; ++n) {
                rows.sums[n][2 * i] *= shrink;
                rows.sums[n][2 * i + 1] *= shrink;
            }
        }
    }

    __device__ static void add_values(const Act* values, const float (&weights)[kTileKeys / 8][4],
                                      RowSums<kDim>& rows) {
        const int lane = threadIdx.x % 32;
        const Act* row = values + lane % 16 * kStride + lane / 16 * 8;
#pragma unroll
        for (int j = 0; j < kTileKeys / 16; ++j) {
            const uint32_t a[4] = {pack<Act>(weights[2 * j][0], weights[2 * j][1]),
                                   pack<Act>(weights[2 * j][2], weights[2 * j][3]),
                                   pack<Act>(weights[2 * j + 1][0], weights[2 * j + 1][1]),
                                   pack<Act>(weights[2 * j + 1][2], weights[2 * j + 1][3])};
#pragma unroll
            for (int n = 0; n < kDim / 8; n += 2) {
                uint32_t words[4];
                load_matrices_transposed(words, row + j * 16 * kStride + n * 8);
                const uint32_t b[2][2] = {{words[0], words[1]}, {words[2], words[3]}};
                mma<Act>(rows.sums[n], a, b[0]);
                mma<Act>(rows.sums[n + 1], a, b[1]);
            }
        }
    }

    // The lane's rows over keys [first, end), row i of them over keys below limit[i]; every
    // limit of the block is at least `least`. `query` holds the two rows' D values, null for
    // rows that are none. Scores go to kept[i][key] where that is not null.
    __device__ static void run(const Act* const (&query)[2], const KeySource& source, int first,
                               int end, const int (&limit)[2], int least, float scale,
                               float* const (&kept)[2], RowSums<kDim>& rows) {
        const int thread = threadIdx.x, column = thread % 4 * 2;
        uint32_t q[kDim / 16][4];
#pragma unroll
        for (int j = 0; j < kDim / 16; ++j) {
            for (int i = 0; i < 4; ++i) {
                const Act* from = query[i % 2];
                const int at = j * 16 + i / 2 * 8 + column;
                q[j][i] = from == nullptr ? 0 : *reinterpret_cast<const uint32_t*>(from + at);
            }
        }
        unsigned char* k_tile = dynamic_shared();
        unsigned char* v_tile = k_tile + Keys::kBytes;
        unsigned char* k_raw = Keys::kCodes ? v_tile + Keys::kBytes : k_tile;
        unsigned char* v_raw = Keys::kCodes ? k_raw + Keys::kRawBytes : v_tile;
        Keys::fetch(k_raw, source.k, source.k_scale, source.k_stride, first, end, thread);
        commit_copies();
        for (int key = first; key < end; key += kTileKeys) {
            wait_copies<0>();
            sync_threads();  // K is there, and nobody reads the last V
            Keys::fetch(v_raw, source.v, source.v_scale, source.v_stride, key, end, thread);
            commit_copies();
            if constexpr (Keys::kCodes) {
                Keys::expand(reinterpret_cast<Act*>(k_tile), k_raw, thread);
                sync_threads();
            }
            float scores[kTileKeys / 8][4];
            score(reinterpret_cast<const Act*>(k_tile), q, scale * kLog2E, scores);
            if (key + kTileKeys > least || key + kTileKeys > end) {
                hide(scores, key + column, limit, end);
            }
            for (int i = 0; i < 2; ++i) {
                if (kept[i] != nullptr) keep(scores, i, kept[i], key + column, end);
            }
            wait_copies<0>();
            sync_threads();  // V is there, and nobody reads this K
            if (key + kTileKeys < end) {
                Keys::fetch(k_raw, source.k, source.k_scale, source.k_stride, key + kTileKeys, end,
                            thread);
                commit_copies();
            }
            if constexpr (Keys::kCodes) {
                Keys::expand(reinterpret_cast<Act*>(v_tile), v_raw, thread);
                sync_threads();
            }
            soften(scores, rows);
            add_values(reinterpret_cast<const Act*>(v_tile), scores, rows);
        }
        for (float& total : rows.total) {
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
        }
    }

 private:
    __device__ static void hide(float (&scores)[kTileKeys / 8][4], int key, const int (&limit)[2],
                                int end) {
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
            for (int i = 0; i < 4; ++i) {
                const int at = key + n * 8 + i % 2;
                if (at >= limit[i / 2] || at >= end) scores[n][i] = kMinusInfinity;
            }
        }
    }

    __device__ static void keep(const float (&scores)[kTileKeys / 8][4], int row, float* to,
                                int key, int end) {
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
            for (int i = 0; i < 2; ++i) {
                const int at = key + n * 8 + i;
                if (at < end) to[at] = scores[n][2 * row + i];
            }
        }
    }
};

// The lane's part of a row: out (D) = sums / total.
template <class Act, int kDim>
__device__ __forceinline__ void write_row(const RowSums<kDim>& rows, int i, Act* out) {
    const float share = 1 / rows.total[i];
    auto* words = reinterpret_cast<uint32_t*>(out + threadIdx.x % 4 * 2);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
        words[n * 4] = pack<Act>(rows.sums[n][2 * i] * share, rows.sums[n][2 * i + 1] * share);
    }
}

}  // namespace latrt::cuda
