// int8 and int4 linear layers of many rows on AMX tiles; all else is the level avx512_bf16.
//
// The products of a group of inputs are summed exactly in a tile, then scaled and added up in float
// by vectors, in avx512's order: both levels give the same bits, so that the number of rows that
// happen to come together changes no answer. A group of one block fills half of a tile's depth; one
// of four is two tiles deep.
#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/linear_finish.h"
#include "kernels/cpu/tiles.h"

namespace latrt {

namespace avx512_bf16 {
const Kernels& table();
}

namespace LATRT_LEVEL {
namespace {

constexpr int kTileRows = 16;            // rows of activations in a tile
constexpr int kCodes = kLanes * kBlock;  // signed bytes of a block of 16 outputs
constexpr int kSlots = 4;                // groups whose products are under way together
constexpr int kChunk = 32;               // blocks unpacked together: 16 KiB, in L1
constexpr int kPanels = 8;               // of 16 rows that share what is unpacked
constexpr int kRows = 4, kColumns = 6;   // tile registers behind the sums: two each
constexpr int kSumBytes = kLanes * sizeof(int32_t);

// Blocks that a tile is deep.
constexpr int depth(int run) {
    return run == 1 ? 1 : 2;
}

constexpr TileShapes shapes(int run) {
    TileShapes all;
    for (int i = 0; i < kSlots; ++i) all.set(i, kTileRows, kSumBytes);
    for (int i = 0; i < 2; ++i) {
        all.set(kRows + i, kTileRows, depth(run) * kBlock);
        all.set(kColumns + i, depth(run) * kBlock / 4, kSumBytes);
    }
    return all;
}

// Signed codes of `count` blocks of one tile of outputs, (count, 8, 16, 4).
template <int kBits>
void unpack(const uint8_t* from, int count, int8_t* to) {
    constexpr int kHalf = kCodes / 2;
    for (int b = 0; b < count; ++b, from += kCodes * kBits / 8, to += kCodes) {
        if constexpr (kBits == 8) {
            const __m512i flip = _mm512_set1_epi8(-128);
            for (int i = 0; i < kCodes; i += 64) {
                _mm512_store_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(from + i), flip));
            }
        } else {
            const __m512i mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
            for (int i = 0; i < kHalf; i += 64) {
                const __m512i pair = _mm512_loadu_si512(from + i);
                const __m512i low = _mm512_and_si512(pair, mask);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(pair, 4), mask);
                _mm512_store_si512(to + i, _mm512_sub_epi8(low, eight));
                _mm512_store_si512(to + kHalf + i, _mm512_sub_epi8(high, eight));
            }
        }
    }
}

using Products = int32_t[kTileRows * kLanes];  // of 16 rows with a block of 16 outputs

template <int kSlot, int kOdd>
void add_products(const int8_t* xq, int64_t stride, const int8_t* codes) {
    load_tile<kRows + kOdd>(xq, stride);
    load_tile<kColumns + kOdd>(codes, kSumBytes);
    dot_tiles<kSlot, kRows + kOdd, kColumns + kOdd>();
}

// The products of a group, the first of whose blocks is block kSlot * kRun of `count`.
template <int kSlot, int kRun>
void multiply_group(const int8_t* xq, int64_t stride, const int8_t* codes, int count) {
    constexpr int kFirst = kSlot * kRun, kDepth = depth(kRun);
    xq += kFirst * kBlock, codes += kFirst * kCodes;
    zero_tile<kSlot>();
    add_products<kSlot, kRun == 1 ? kSlot % 2 : 0>(xq, stride, codes);
    if constexpr (kRun > kDepth) {
        static_assert(kRun <= 2 * kDepth);
        if (count <= kFirst + kDepth) return;
        add_products<kSlot, 1>(xq + kDepth * kBlock, stride, codes + kDepth * kCodes);
    }
}

// The products of up to four groups, `count` blocks; they overlap, as each has sums of its own.
template <int kRun>
void multiply(const int8_t* xq, int64_t stride, const int8_t* codes, int count,
              Products* products) {
    multiply_group<0, kRun>(xq, stride, codes, count);
    if (count > kRun) multiply_group<1, kRun>(xq, stride, codes, count);
    if (count > 2 * kRun) multiply_group<2, kRun>(xq, stride, codes, count);
    if (count > 3 * kRun) multiply_group<3, kRun>(xq, stride, codes, count);
    store_tile<0>(products[0], kSumBytes);
    if (count > kRun) store_tile<1>(products[1], kSumBytes);
    if (count > 2 * kRun) store_tile<2>(products[2], kSumBytes);
    if (count > 3 * kRun) store_tile<3>(products[3], kSumBytes);
}

void scale_add(__m512 (&totals)[kTileRows], const Products& products, const uint16_t* w_scale,
               const float* x_scale, int64_t groups) {
    const auto* halves = reinterpret_cast<const __m256i*>(w_scale);
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) {
        const __m512 sums = _mm512_cvtepi32_ps(_mm512_load_si512(products + m * kLanes));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(*x_scale));
        totals[m] = _mm512_fmadd_ps(sums, both, totals[m]);
        x_scale += groups;
        asm("" : "+r"(x_scale));  // GCC would keep sixteen pointers, which do not fit the registers
    }
}

// Adds `count` blocks, whole groups but the last of a row, to the totals (16, 16) of 16 rows.
// Scaling is four groups behind multiplying, so that it finds its products stored.
template <int kRun>
void add_blocks(const LinearParams& p, int row, int tile, int first_block, int count,
                const int8_t* codes, float* out) {
    const int64_t all_groups = num_scales(p.k, kRun), stride = row_codes(p.k, kRun);
    const int8_t* xq = p.xq + row * stride + first_block * kBlock;
    const float* x_scale = p.x_scale + row * all_groups + first_block / kRun;
    const uint16_t* w_scale = p.w_scale + (tile * all_groups + first_block / kRun) * kLanes;
    alignas(64) Products products[2][kSlots];
    __m512 totals[kTileRows];
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) totals[m] = _mm512_load_ps(out + m * kLanes);
    const int groups = (count + kRun - 1) / kRun;
    for (int g = 0; g < groups + kSlots; g += kSlots) {
        const int b = g * kRun;
        if (b < count) {
            multiply<kRun>(xq + b * kBlock, stride, codes + b * kCodes, count - b,
                           products[g / kSlots % 2]);
        }
        for (int i = g - kSlots; i >= 0 && i < g && i < groups; ++i) {
            scale_add(totals, products[i / kSlots % 2][i % kSlots], w_scale + i * kLanes,
                      x_scale + i, all_groups);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) _mm512_store_ps(out + m * kLanes, totals[m]);
}

// `panels` times 16 rows of one tile of outputs.
template <int kBits, int kRun>
void multiply_tile(const LinearParams& p, int row, int panels, int tile) {
    static_assert(kChunk % kRun == 0);
    const int blocks = num_blocks(p.k);
    const auto* w = static_cast<const uint8_t*>(p.w) + int64_t{tile} * blocks * kCodes * kBits / 8;
    alignas(64) int8_t codes[kChunk * kCodes];
    alignas(64) float totals[kPanels][kTileRows * kLanes] = {};
    for (int first = 0; first < blocks; first += kChunk) {
        const int count = blocks - first < kChunk ? blocks - first : kChunk;
        unpack<kBits>(w + int64_t{first} * kCodes * kBits / 8, count, codes);
        // A last tile of half the depth: it meets activations of zero.
        if (count % depth(kRun) != 0) __builtin_memset(codes + count * kCodes, 0, kCodes);
        for (int i = 0; i < panels; ++i) {
            add_blocks<kRun>(p, row + i * kTileRows, tile, first, count, codes, totals[i]);
        }
    }
    for (int i = 0; i < panels; ++i) finish<kTileRows>(p, totals[i], row + i * kTileRows, tile);
}

// The rows from `row` on, of one tile of outputs, by vectors.
void remaining_rows(const LinearParams& p, int row, int tile, WeightType type) {
    const int64_t groups = num_scales(p.k, p.scale_run);
    LinearParams rest = p;
    rest.xq += row * row_codes(p.k, p.scale_run);
    rest.x_scale += row * groups, rest.x_neg_sum += row * groups;
    rest.y += row * p.ldy, rest.m -= row;
    rest.tile_begin = tile, rest.tile_end = tile + 1;
    avx512_bf16::table().linear[static_cast<int>(type)](rest);
}

template <int kBits, int kRun>
void run(const LinearParams& p) {
    constexpr WeightType kType = kBits == 4 ? WeightType::int4 : WeightType::int8;
    if (p.m < kTileRows) return avx512_bf16::table().linear[static_cast<int>(kType)](p);
    constexpr TileShapes kShapes = shapes(kRun);
    use_tiles(kShapes);
    for (int tile = p.tile_begin; tile < p.tile_end; ++tile) {
        int row = 0;
        while (row + kTileRows <= p.m) {
            const int whole = (p.m - row) / kTileRows, panels = whole < kPanels ? whole : kPanels;
            multiply_tile<kBits, kRun>(p, row, panels, tile);
            row += panels * kTileRows;
        }
        if (row < p.m) remaining_rows(p, row, tile, kType);
    }
    release_tiles();
}

void linear_int8(const LinearParams& p) {
    p.scale_run == 1 ? run<8, 1>(p) : run<8, kScaleRun>(p);
}

void linear_int4(const LinearParams& p) {
    p.scale_run == 1 ? run<4, 1>(p) : run<4, kScaleRun>(p);
}

}  // namespace

const Kernels& table();

const Kernels& table() {
    static const Kernels kTable = [] {
        Kernels all = avx512_bf16::table();
        all.isa = Isa::amx;
        all.linear[static_cast<int>(WeightType::int8)] = linear_int8;
        all.linear[static_cast<int>(WeightType::int4)] = linear_int4;
        all.pack_rows = nullptr;  // tiles take many rows as they are
        for (auto& linear : all.linear_panels) linear = nullptr;
        return all;
    }();
    return kTable;
}

}  // namespace LATRT_LEVEL
}  // namespace latrt
