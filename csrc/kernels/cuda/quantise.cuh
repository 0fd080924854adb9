// A warp's row of D values as rotary pairs (i, i + D/2), and its way into a cache row.
#pragma once

#include "kernels/cuda/kv_rows.cuh"

namespace latrt::cuda {

// Lane l holds pairs 2 (l + 32 i) and the next: `low` the first halves, `high` the second.
template <int kDim>
struct Pairs {
    static constexpr int kCount = (kDim / 4 + 31) / 32;
    float low[kCount][2], high[kCount][2];
};

template <int kDim, class Visit>
__device__ __forceinline__ void for_words(int lane, Visit visit) {
#pragma unroll
    for (int i = 0; i < Pairs<kDim>::kCount; ++i) {
        const int word = lane + 32 * i;
        if (word < kDim / 4) visit(i, word);
    }
}

template <class Act, int kDim>
__device__ __forceinline__ void load_pairs(const Act* row, int lane, Pairs<kDim>& pairs) {
    const auto* words = reinterpret_cast<const uint32_t*>(row);
    for (int i = 0; i < Pairs<kDim>::kCount; ++i) {
        for (int j = 0; j < 2; ++j) pairs.low[i][j] = pairs.high[i][j] = 0;
    }
    for_words<kDim>(lane, [&](int i, int word) {
        const float2 low = unpack<Act>(words[word]), high = unpack<Act>(words[kDim / 4 + word]);
        pairs.low[i][0] = low.x, pairs.low[i][1] = low.y;
        pairs.high[i][0] = high.x, pairs.high[i][1] = high.y;
    });
}

// Pairs of a cache row: of values, or of codes times their scale.
template <class Act, KvType kType, int kDim>
__device__ __forceinline__ void load_row(const void* tensor, const float* scales, int64_t row,
                                         int lane, Pairs<kDim>& pairs) {
    if constexpr (!is_codes(kType)) {
        load_pairs<Act, kDim>(static_cast<const Act*>(tensor) + row * kDim, lane, pairs);
    } else {
        const auto* words =
            reinterpret_cast<const uint16_t*>(static_cast<const uint8_t*>(tensor) + row * kDim);
        const float scale = scales[row];
        for (int i = 0; i < Pairs<kDim>::kCount; ++i) {
            for (int j = 0; j < 2; ++j) pairs.low[i][j] = pairs.high[i][j] = 0;
        }
        for_words<kDim>(lane, [&](int i, int word) {
            float four[4];
            decode<kType>(words[word] | uint32_t{words[kDim / 4 + word]} << 16, scale, four);
            pairs.low[i][0] = four[0], pairs.low[i][1] = four[1];
            pairs.high[i][0] = four[2], pairs.high[i][1] = four[3];
        });
    }
}

template <class Act, int kDim>
__device__ __forceinline__ void store_pairs(Act* row, int lane, const Pairs<kDim>& pairs) {
    auto* words = reinterpret_cast<uint32_t*>(row);
    for_words<kDim>(lane, [&](int i, int word) {
        words[word] = pack<Act>(pairs.low[i][0], pairs.low[i][1]);
        words[kDim / 4 + word] = pack<Act>(pairs.high[i][0], pairs.high[i][1]);
    });
}

__device__ __forceinline__ void rotate(float& low, float& high, float cos, float sin) {
    const float turned = low * cos - high * sin;
    high = high * cos + low * sin;
    low = turned;
}

// The larger, NaN where one of them is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    return a != a || a > b ? a : b;
}

// Writes the pairs to row `row` of a cache tensor: as they are, or as codes under a new scale,
// the largest magnitude over the largest code. A NaN in the row makes the scale NaN.
template <class Act, KvType kType, int kDim>
__device__ __forceinline__ void store_row(void* tensor, float* scales, int64_t row, int lane,
                                          const Pairs<kDim>& pairs) {
    if constexpr (!is_codes(kType)) {
        store_pairs<Act, kDim>(static_cast<Act*>(tensor) + row * kDim, lane, pairs);
    } else {
        float top = 0;
        for (int i = 0; i < Pairs<kDim>::kCount; ++i) {
            for (int j = 0; j < 2; ++j) {
                top = max_or_nan(fabsf(pairs.low[i][j]), top);
                top = max_or_nan(fabsf(pairs.high[i][j]), top);
            }
        }
        for (int mask = 16; mask > 0; mask /= 2) top = max_or_nan(shuffle_xor(top, mask), top);
        const float factor = top < 0x1p-100f ? 0 : largest_code<kType>() / top;
        auto* words = reinterpret_cast<uint16_t*>(static_cast<uint8_t*>(tensor) + row * kDim);
        for_words<kDim>(lane, [&](int i, int word) {
            words[word] = static_cast<uint16_t>(encode<kType>(pairs.low[i][0] * factor) |
                                                encode<kType>(pairs.low[i][1] * factor) << 8);
            words[kDim / 4 + word] =
                static_cast<uint16_t>(encode<kType>(pairs.high[i][0] * factor) |
                                      encode<kType>(pairs.high[i][1] * factor) << 8);
        });
        if (lane == 0) scales[row] = top / largest_code<kType>();
    }
}

}  // namespace latrt::cuda
