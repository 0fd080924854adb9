// What `linear_panels.cpp` does with a block, with AVX-512's dot products and five eighths of them.
//
// Four bits leave room in a byte. With it, one dot product does the work of two (Winograd 1968, "A
// new algorithm for inner product"): for inputs i and j, codes of activations a and of weights w,
//
//     a_i w_i + a_j w_j = (a_i + w_j) (a_j + w_i) - a_i a_j - w_i w_j
//
// where the last two products are the same for all outputs and for all rows. The two sums go to
// other ports than dot products do: on a processor that starts one dot product and two sums a
// cycle, 3 instructions in 1.5 cycles for what took 2; on one that starts two and four, in half of
// that. A quarter of the inputs goes without it, which leaves either kind of port as much to do.
// Weights of 8 bits leave no room: all of their products are made one by one.
// Sums of integers stay exact, and what is done in float is what `linear_int4` does in the same
// order, so the bits are the same.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec_int.h"

namespace latrt::LATRT_LEVEL {
namespace {

constexpr int kPairs = kBlock / 2;   // inputs i of a block; j is 16 further on
constexpr int kGroups = kPairs / 4;  // of 4 inputs i and 4 inputs j

// Groups of a block, the first, whose products are made one by one.
constexpr int direct_groups(int bits) {
    return bits == 4 ? 1 : kGroups;
}

// Up to `kPanelBlocks` blocks of a tile of outputs, ready for every row.
struct alignas(64) Weights {
    struct Group {
        // w_j + 128, so that the first factor is unsigned; w_i, signed. Direct: the codes as
        // stored, which are unsigned.
        Bytes j, i;
    };
    Group groups[kPanelBlocks][kGroups];
    // Of a group, in its first block.
    Ints start[kPanelBlocks];  // the products w_i w_j, subtracted; int4
    Floats scale[kPanelBlocks];
};

using Totals = Floats[kPanelRows];

template <int kBits, int kRun>
void unpack(const uint8_t* codes, const uint16_t* scales, int blocks, Weights& to) {
    Ints products = _mm512_setzero_si512();
    for (int b = 0; b < blocks; ++b) {
        if (b % kRun == 0) to.scale[b] = load_halves(scales + b / kRun * kLanes);
        if constexpr (kBits == 8) {
#pragma GCC unroll 4
            for (int g = 0; g < kGroups; ++g) {
                const uint8_t* i = codes + (b * kBlock + 4 * g) * kLanes;
                to.groups[b][g] = {load_bytes(i + kPairs * kLanes), load_bytes(i)};
            }
            continue;
        }
        if (b % kRun == 0) products = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g, codes += 64) {
            const Bytes pair = load_bytes(codes);
            Bytes i = low_nibbles(pair), j = high_nibbles(pair);
            if (g >= direct_groups(kBits)) {
                i = _mm512_sub_epi8(i, _mm512_set1_epi8(8));
                j = _mm512_add_epi8(j, _mm512_set1_epi8(128 - 8));
                dot4(products, j, i);
            }
            to.groups[b][g] = {j, i};
        }
        to.start[b / kRun * kRun] = _mm512_sub_epi32(_mm512_setzero_si512(), products);
    }
}

// Adds `blocks` blocks of `kRows` rows of a panel, from `kRow` on, to the totals of T tiles;
// fetches what lies at `ahead`, `kLines` lines of the cache a block. The sums fill the registers;
// totals wait in the L1 cache.
template <int kBits, int T, int kRow, int kRows, int kLines, int kRun>
void multiply_rows(const Weights* w, const PanelBlock* x, int blocks, Totals* totals,
                   const char* ahead) {
    for (int b = 0; b < blocks;) {
        const int first = b, end = kRun == 1 || kRun < blocks - b ? b + kRun : blocks;
        const PanelBlock* of_group = x;
        Ints sums[T][kRows];
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
            Ints start = _mm512_set1_epi32(x->start[kRow + m]);
            in_register(start);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                sums[t][m] = kBits == 8 ? start : _mm512_add_epi32(start, w[t].start[first]);
            }
        }
        do {
#pragma GCC unroll 4
            for (int line = 0; line < kLines; ++line) __builtin_prefetch(ahead + 64 * line);
#pragma GCC unroll 4
            for (int g = 0; g < kGroups; ++g) {
                Weights::Group group[T];
#pragma GCC unroll 4
                for (int t = 0; t < T; ++t) {
                    group[t] = w[t].groups[b][g];
                    in_register(group[t].i), in_register(group[t].j);
                }
#pragma GCC unroll 8
                for (int m = 0; m < kRows; ++m) {
                    Bytes i = quad(x->codes[g][kRow + m]),
                          j = quad(x->codes[g + kGroups][kRow + m]);
                    in_register(i), in_register(j);
#pragma GCC unroll 4
                    for (int t = 0; t < T; ++t) {
                        if (g < direct_groups(kBits)) {
                            dot4(sums[t][m], group[t].j, j);
                            dot4(sums[t][m], group[t].i, i);
                        } else {
                            dot4(sums[t][m], _mm512_add_epi8(i, group[t].j),
                                 _mm512_add_epi8(j, group[t].i));
                        }
                    }
                }
            }
            ++x, ahead += 64 * kLines;
        } while (++b < end);
        asm volatile("" ::: "memory");  // no totals before: GCC would spill sums for them
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
            Floats x_scale = _mm512_set1_ps(of_group->scale[kRow + m]);
            in_register(x_scale);
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
                scale_add(totals[t][kRow + m], sums[t][m], w[t].scale[first], x_scale);
            }
        }
    }
}

// Adds `blocks` blocks of a panel, from the first of a group on, to its totals with `kTiles` tiles
// or with fewer; fetches what lies at `ahead`, 384 bytes a block. By four, tiles share broadcasts
// and rows share weights: a processor starts two loads a cycle, and may do four sums or two dot
// products and two sums.
template <int kBits, int kRun>
void multiply(const Weights* w, int tiles, const PanelBlock* x, int blocks, Totals* totals,
              const char* ahead) {
    if (tiles == kTiles) {
        multiply_rows<kBits, kTiles, 0, 4, 3, kRun>(w, x, blocks, totals, ahead);
        multiply_rows<kBits, kTiles, 4, 4, 3, kRun>(w, x, blocks, totals, ahead + 192 * blocks);
        return;
    }
    for (int t = 0; t < tiles; ++t) {
        multiply_rows<kBits, 1, 0, kPanelRows, 2, kRun>(w + t, x, blocks, totals + t, ahead);
        ahead += 128 * blocks;
    }
}

// Rows m and m + 1 of a panel, 32 codes each.
inline __m512i two_rows(const int8_t* const* rows, int m) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[m]));
    const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[m + 1]));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// Interleaves the codes of 8 rows by fours. What a row's sums begin with is the same for every
// output, subtracted: the products of its inputs with each other and with the 128, and of those
// that go without with the codes' offset of 8 or 128.
template <int kBits, int kRun>
void pack_block(const int8_t* const* rows, PanelBlock& to) {
    const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
    const __m512i r01 = two_rows(rows, 0), r23 = two_rows(rows, 2);
    const __m512i r45 = two_rows(rows, 4), r67 = two_rows(rows, 6);
    // Inputs i are fours 0 to 3, inputs j fours 4 to 7; of four rows, then of all.
    const __m512i i_0123 = _mm512_permutex2var_epi32(r01, low, r23);
    const __m512i i_4567 = _mm512_permutex2var_epi32(r45, low, r67);
    const __m512i j_0123 = _mm512_permutex2var_epi32(r01, high, r23);
    const __m512i j_4567 = _mm512_permutex2var_epi32(r45, high, r67);
    const __m512i i[2] = {_mm512_permutex2var_epi32(i_0123, front, i_4567),
                          _mm512_permutex2var_epi32(i_0123, back, i_4567)};
    const __m512i j[2] = {_mm512_permutex2var_epi32(j_0123, front, j_4567),
                          _mm512_permutex2var_epi32(j_0123, back, j_4567)};
    const __m512i flip = _mm512_set1_epi8(-128);  // adds 128
    Ints products = _mm512_setzero_si512();
    for (int half = 0; half < 2; ++half) {
        _mm512_storeu_si512(to.codes[2 * half], i[half]);
        _mm512_storeu_si512(to.codes[kGroups + 2 * half], j[half]);
        // 8 lanes of each group, the direct ones first.
        constexpr uint64_t kDirect = (uint64_t{1} << 8 * direct_groups(kBits)) - 1;
        const auto direct = static_cast<__mmask16>(kDirect >> 16 * half);
        const Bytes offset = _mm512_set1_epi8(kBits == 8 ? -128 : 8);
        const Bytes factor = _mm512_mask_mov_epi32(_mm512_xor_si512(i[half], flip), direct, offset);
        dot4(products, factor, j[half]);
        products = _mm512_mask_dpbusd_epi32(products, direct, factor, i[half]);
    }
    const __m256i sums =
        _mm256_add_epi32(_mm512_castsi512_si256(products), _mm512_extracti64x4_epi64(products, 1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.start),
                        _mm256_sub_epi32(_mm256_setzero_si256(), sums));
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
