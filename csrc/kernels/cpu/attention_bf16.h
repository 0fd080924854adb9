// What `attention.cpp` does with a cache of bf16 where the processor multiplies pairs of bf16.
// Queries and softmax weights are rounded to bf16 as well; sums stay float32.
#pragma once

#include "kernels/cpu/pairs_bf16.h"

namespace latrt::LATRT_LEVEL {
namespace {

// Pair i is numbers i of both halves.
inline __m512bh pair_up(__m256i first, __m256i second) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    return (__m512bh)_mm512_permutexvar_epi16(order, both);
}

// As the one for floats, two steps at a time. Behind the numbers of an odd count is a zero.
template <int M, int V>
inline void add_products(Vec (&sums)[M][V], const uint16_t* const (&numbers)[M],
                         const uint16_t* vectors, int64_t apart, int64_t step, int count) {
    for (int i = 0; i < count; i += 2, vectors += 2 * step) {
        __m512bh pairs[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            const uint16_t* from = vectors + v * apart;
            const bool two = i + 1 < count;
            pairs[v] = pair_up(load_as<__m256i>(from),
                               two ? load_as<__m256i>(from + step) : _mm256_setzero_si256());
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512bh pair = splat_pair(numbers[m] + i);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sums[m][v] = add_pairs(sums[m][v], pairs[v], pair);
        }
    }
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
