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
    Floats scale[kPanelBlocks];  // of a group, in its first block
};

using Totals = Floats[kPanelRows];

template <int kBits, int kRun>
void unpack(const uint8_t* codes, const uint16_t* scales, int blocks, Weights& to) {
    for (int b = 0; b < blocks; ++b) {
        for (int g = 0; g < kGroups / 2; ++g, codes += 64) {
            const Bytes pair = load_bytes(codes);
            to.groups[b][g] = low_nibbles(pair);
            to.groups[b][kGroups / 2 + g] = high_nibbles(pair);
        }
        if (b % kRun == 0) to.scale[b] = load_halves(scales + b / kRun * kLanes);
    }
}

// Adds `blocks` blocks of `kRows` rows of a panel, from `kRow` on. A block by itself begins with
// what is subtracted for it in 16 bits; a group ends with what is for all of it, in 32.
template <int kRow, int kRun>
void multiply_rows(const Weights& w, const PanelBlock* x, int blocks, Totals& totals,
                   const char* ahead) {
    Floats total[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) total[m] = totals[kRow + m];
    for (int b = 0; b < blocks;) {
        const int first = b, end = kRun == 1 || kRun < blocks - b ? b + kRun : blocks;
        const PanelBlock* of_group = x;
        Ints ints[kRows] = {};
        do {
            __builtin_prefetch(ahead);
            Sums4 sums[kRows];
#pragma GCC unroll 4
            for (int m = 0; m < kRows; ++m) {
                const __m256i start = _mm256_set1_epi32(kRun == 1 ? x->start[kRow + m] : 0);
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
                kRun == 1 ? void(ints[m] = ints_of(sums[m])) : add_ints(ints[m], ints_of(sums[m]));
            }
            ++x, ahead += 64;
        } while (++b < end);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
            if (kRun > 1) {
                const __m256i start = _mm256_set1_epi32(of_group->start[kRow + m]);
                add_ints(ints[m], {{start, start}});
            }
            scale_add(total[m], ints[m], w.scale[first], of_group->scale[kRow + m]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) totals[kRow + m] = total[m];
}

// Adds `blocks` blocks of a panel, from the first of a group on, to its totals with each tile;
// fetches what lies at `ahead`, 128 bytes a block and tile.
template <int kBits, int kRun>
void multiply(const Weights* w, int tiles, const PanelBlock* x, int blocks, Totals* totals,
              const char* ahead) {
    static_assert(kBits == 4 && kPanelRows == 2 * kRows);
    for (int t = 0; t < tiles; ++t, ahead += 128 * blocks) {
        multiply_rows<0, kRun>(w[t], x, blocks, totals[t], ahead);
        multiply_rows<kRows, kRun>(w[t], x, blocks, totals[t], ahead + 64 * blocks);
    }
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
template <int kBits, int kRun>
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
    const __m256i none = _mm256_setzero_si256();
    __m256i start;
    if constexpr (kRun == 1) {
        // As `start4` has it: minus 4 times the sum of both halves, in either.
        const __m256i turned =
            _mm256_or_si256(_mm256_slli_epi32(sums, 16), _mm256_srli_epi32(sums, 16));
        const __m256i four_times = _mm256_slli_epi16(_mm256_add_epi16(sums, turned), 2);
        start = _mm256_sub_epi16(none, four_times);
    } else {
        const __m256i both = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
        start = _mm256_sub_epi32(none, _mm256_slli_epi32(both, 3));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.start), start);
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
