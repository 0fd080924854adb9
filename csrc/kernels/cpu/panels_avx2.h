// What `linear_panels.cpp` does with a block, with AVX2's products of bytes: the sums of a block
// stay in 16 bits (`Sums4`), so that a product of 4 bits takes a quarter of what one in float does.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec_int.h"

namespace latrt::LATRT_LEVEL {
namespace {

constexpr int kGroups = kBlock / 4;  // of inputs of a block
constexpr int kRows = 4;             // of a panel whose sums fit the registers

// Up to `kPanelBlocks` blocks of a tile of outputs, ready for every row.
struct alignas(64) Weights {
    Bytes groups[kPanelBlocks][kGroups];
    Floats scale[kPanelBlocks];
};

using Totals = Floats[kPanelRows];

void unpack(const uint8_t* codes, const uint16_t* scales, int scale_run, int blocks, Weights& to) {
    for (int b = 0; b < blocks; ++b) {
        for (int g = 0; g < kGroups / 2; ++g, codes += 64) {
            const Bytes pair = load_bytes(codes);
            to.groups[b][g] = low_nibbles(pair);
            to.groups[b][kGroups / 2 + g] = high_nibbles(pair);
        }
        to.scale[b] = load_halves(scales + b / scale_run * kLanes);
    }
}

// Adds `blocks` blocks of `kRows` rows of a panel, from `kRow` on.
template <int kRow>
void multiply_rows(const Weights& w, const PanelBlock* x, int blocks, Totals& totals,
                   const char* ahead) {
    Floats total[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) total[m] = totals[kRow + m];
    for (int b = 0; b < blocks; ++b, ++x, ahead += 64) {
        __builtin_prefetch(ahead);
        Sums4 sums[kRows];
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
            const __m256i start = _mm256_set1_epi32(x->start[kRow + m]);
            sums[m] = {{start, start}};
        }
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) {
            const Bytes group = w.groups[b][g];
#pragma GCC unroll 4
            for (int m = 0; m < kRows; ++m) dot4(sums[m], group, quad(x->codes[g][kRow + m]));
        }
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
            scale_add(total[m], ints_of(sums[m]), w.scale[b], x->scale[kRow + m]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) totals[kRow + m] = total[m];
}

// Adds `blocks` blocks of a panel to its totals with one tile; fetches what lies at `ahead`, 128
// bytes a block.
void multiply(const Weights& w, const PanelBlock* x, int blocks, Totals& totals,
              const char* ahead) {
    static_assert(kPanelRows == 2 * kRows);
    multiply_rows<0>(w, x, blocks, totals, ahead);
    multiply_rows<kRows>(w, x, blocks, totals, ahead + int64_t{64} * blocks);
}

// Words i of 8 rows to row i of 8 words.
inline void transpose(__m256i (&rows)[8]) {
    __m256i pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        for (int half = 0; half < 2; ++half) {
            fours[i + 2 * half] = _mm256_unpacklo_epi64(pairs[i + half], pairs[i + half + 2]);
            fours[i + 2 * half + 1] = _mm256_unpackhi_epi64(pairs[i + half], pairs[i + half + 2]);
        }
    }
    for (int i = 0; i < 4; ++i) {
        rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
}

// Interleaves the codes of 8 rows by fours.
void pack_block(const int8_t* const* rows, PanelBlock& to) {
    __m256i groups[kGroups];
    for (int m = 0; m < kPanelRows; ++m) {
        groups[m] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[m]));
    }
    transpose(groups);
    __m256i sums = _mm256_setzero_si256();  // of 8 rows' codes, two 16-bit halves each
    for (int g = 0; g < kGroups; ++g) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.codes[g]), groups[g]);
        sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(1), groups[g]));
    }
    // As `start4` has it: minus 4 times the sum of both halves, in either.
    const __m256i turned =
        _mm256_or_si256(_mm256_slli_epi32(sums, 16), _mm256_srli_epi32(sums, 16));
    const __m256i four_times = _mm256_slli_epi16(_mm256_add_epi16(sums, turned), 2);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.start),
                        _mm256_sub_epi16(_mm256_setzero_si256(), four_times));
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
