// Pairs of bf16, whose products AVX512_BF16 adds to sums of float32.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/vec.h"

namespace latrt::LATRT_LEVEL {
namespace {

// `count` floats to bf16, and zeros behind them up to a multiple of 16.
inline void round_row(const float* from, int count, uint16_t* to) {
    for (int i = 0; i < count; i += kLanes) {
        const int rest = count - i;
        const auto mask = static_cast<__mmask16>(rest < kLanes ? (1 << rest) - 1 : 0xffff);
        const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + i));
        __builtin_memcpy(to + i, &rounded, sizeof rounded);
    }
}

// The two numbers at `from` in every lane.
inline __m512bh splat_pair(const uint16_t* from) {
    return (__m512bh)_mm512_set1_epi32(load_as<int32_t>(from));
}

inline Vec add_pairs(Vec sums, __m512bh a, __m512bh b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sums, a, b);
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
