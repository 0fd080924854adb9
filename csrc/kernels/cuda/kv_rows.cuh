// Rows of K or V from the cache to padded rows of 16-bit values in shared memory, copied in the
// background. Codes are copied as they are and decoded, with their scales, once they are there.
#pragma once

#include "kernels/cuda/numbers.cuh"

namespace latrt::cuda {

// Sequence b: its first token row, its new tokens, the keys that its last token sees.
struct Span {
    int first_row, query_len, kv_len;
};

__device__ __forceinline__ Span span_of(const Sequences& s, int b) {
    Span span;
    if (s.cu_seqlens != nullptr) {
        span.first_row = s.cu_seqlens[b];
        span.query_len = s.cu_seqlens[b + 1] - span.first_row;
    } else {
        span.first_row = b * s.max_query_len;
        span.query_len = s.query_len == nullptr ? s.max_query_len : s.query_len[b];
    }
    span.kv_len = s.kv_len[b] + s.kv_len_add;
    return span;
}

// `kRows` rows of K or V in shared memory, written by `kThreads` threads. The rows' stride is an
// odd number of 16-byte chunks, so that eight rows lie in different banks.
template <class Act, KvType kType, int kRows, int kDim, int kThreads>
struct KvRows {
    static constexpr bool kCodes = is_codes(kType);
    static constexpr int kStride = kDim + 8;  // values
    static constexpr int kBytes = kRows * kStride * 2;
    static constexpr int kChunkValues = kCodes ? 16 : 8;
    static constexpr int kChunks = kRows * kDim / kChunkValues;
    static constexpr int kRawBytes = kCodes ? kRows * kDim + kRows * 4 : 0;

    // Starts the copy of rows [row, row + kRows), `stride` values apart; from `end` on they become
    // zeros. Without codes `raw` is where the values go; with codes a place for kRawBytes.
    __device__ static void fetch(unsigned char* raw, const void* rows, const float* scales,
                                 int64_t stride, int row, int end, int thread) {
        constexpr int kValueBytes = kCodes ? 1 : 2;
#pragma unroll
        for (int first = 0; first < kChunks; first += kThreads) {
            const int chunk = first + thread;
            if (kChunks % kThreads != 0 && chunk >= kChunks) break;
            const int at = chunk / (kDim / kChunkValues), part = chunk % (kDim / kChunkValues);
            const int to = kCodes ? chunk * 16 : at * kStride * 2 + part * 16;
            const auto* from = static_cast<const unsigned char*>(rows) +
                               (row + at) * stride * kValueBytes + part * 16;
            copy_async_16(raw + to, from, row + at < end);
        }
        if constexpr (kCodes) {
            for (int at = thread; at < kRows; at += kThreads) {
                copy_async_4(raw + kRows * kDim + at * 4, scales + row + at, row + at < end);
            }
        }
    }

    // Decodes codes that are in `raw` to values.
    __device__ static void expand(Act* values, const unsigned char* raw, int thread) {
        const auto* scales = reinterpret_cast<const float*>(raw + kRows * kDim);
#pragma unroll
        for (int first = 0; first < kChunks; first += kThreads) {
            const int chunk = first + thread;
            if (kChunks % kThreads != 0 && chunk >= kChunks) break;
            const int at = chunk / (kDim / 16), part = chunk % (kDim / 16);
            const uint4 codes = *reinterpret_cast<const uint4*>(raw + chunk * 16);
            const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
            uint32_t packed[8];
            for (int i = 0; i < 4; ++i) {
                float four[4];
                decode<kType>(words[i], scales[at], four);
                packed[2 * i] = pack<Act>(four[0], four[1]);
                packed[2 * i + 1] = pack<Act>(four[2], four[3]);
            }
            auto* to = reinterpret_cast<uint4*>(values + at * kStride + part * 16);
            to[0] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
            to[1] = make_uint4(packed[4], packed[5], packed[6], packed[7]);
        }
    }
};

}  // namespace latrt::cuda
