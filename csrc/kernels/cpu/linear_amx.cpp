// int8 and int4 linear layers of many rows on AMX tiles; all else is the level avx512.
//
// A block of 32 inputs has scales of its own, so its products are summed exactly in a tile and then
// scaled and added up in float by vectors, in avx512's order: both levels give the same bits, so
// that the number of rows that happen to come together changes no answer.
#include <immintrin.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/linear_finish.h"
#include "kernels/cpu/tiles.h"

namespace latrt {

namespace avx512 {
const Kernels& table();
}

namespace LATRT_LEVEL {
namespace {

constexpr int kTileRows = 16;            // rows of activations in a tile
constexpr int kCodes = kLanes * kBlock;  // signed bytes of a block of 16 outputs
constexpr int kGroup = 4;                // blocks whose products are under way together
constexpr int kChunk = 32;               // blocks unpacked together: 16 KiB, in L1
constexpr int kPanels = 8;               // of 16 rows that share what is unpacked
constexpr int kRows = 4, kColumns = 6;   // tile registers behind the sums: two each
constexpr int kSumBytes = kLanes * sizeof(int32_t);

constexpr TileShapes shapes() {
    TileShapes all;
    for (int i = 0; i < kGroup; ++i) all.set(i, kTileRows, kSumBytes);
    for (int i = 0; i < 2; ++i) {
        all.set(kRows + i, kTileRows, kBlock);
        all.set(kColumns + i, kBlock / 4, kSumBytes);
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

template <int kSlot>
void multiply_block(const int8_t* xq, int64_t stride, const int8_t* codes) {
    constexpr int kOdd = kSlot % 2;
    zero_tile<kSlot>();
    load_tile<kRows + kOdd>(xq + kSlot * kBlock, stride);
    load_tile<kColumns + kOdd>(codes + kSlot * kCodes, kSumBytes);
    dot_tiles<kSlot, kRows + kOdd, kColumns + kOdd>();
}

// The products of up to four blocks; they overlap, as each has sums of its own.
void multiply(const int8_t* xq, int64_t stride, const int8_t* codes, int count,
              Products* products) {
    multiply_block<0>(xq, stride, codes);
    if (count > 1) multiply_block<1>(xq, stride, codes);
    if (count > 2) multiply_block<2>(xq, stride, codes);
    if (count > 3) multiply_block<3>(xq, stride, codes);
    store_tile<0>(products[0], kSumBytes);
    if (count > 1) store_tile<1>(products[1], kSumBytes);
    if (count > 2) store_tile<2>(products[2], kSumBytes);
    if (count > 3) store_tile<3>(products[3], kSumBytes);
}

void scale_add(__m512 (&totals)[kTileRows], const Products& products, const uint16_t* w_scale,
               const float* x_scale, int64_t blocks) {
    const auto* halves = reinterpret_cast<const __m256i*>(w_scale);
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) {
        const __m512 sums = _mm512_cvtepi32_ps(_mm512_load_si512(products + m * kLanes));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(*x_scale));
        totals[m] = _mm512_fmadd_ps(sums, both, totals[m]);
        x_scale += blocks;
        asm("" : "+r"(x_scale));  // GCC would keep sixteen pointers, which do not fit the registers
    }
}

// Adds `count` blocks to the totals (16, 16) of 16 rows. Scaling is one group behind multiplying,
// so that it finds its products stored.
void add_blocks(const LinearParams& p, int row, int tile, int first_block, int count,
                const int8_t* codes, float* out) {
    const int64_t blocks = num_blocks(p.k), stride = blocks * kBlock;
    const int8_t* xq = p.xq + row * stride + first_block * kBlock;
    const float* x_scale = p.x_scale + row * blocks + first_block;
    const int64_t scales = num_scales(p.k, p.scale_run);
    const uint16_t* w_scale = p.w_scale + (tile * scales + first_block / p.scale_run) * kLanes;
    alignas(64) Products products[2][kGroup];
    __m512 totals[kTileRows];
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) totals[m] = _mm512_load_ps(out + m * kLanes);
    for (int b = 0; b < count + kGroup; b += kGroup) {
        if (b < count) {
            const int rest = count - b < kGroup ? count - b : kGroup;
            multiply(xq + b * kBlock, stride, codes + b * kCodes, rest, products[b / kGroup % 2]);
        }
        for (int i = b - kGroup; i >= 0 && i < b && i < count; ++i) {
            scale_add(totals, products[i / kGroup % 2][i % kGroup],
                      w_scale + i / p.scale_run * kLanes, x_scale + i, blocks);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kTileRows; ++m) _mm512_store_ps(out + m * kLanes, totals[m]);
}

// `panels` times 16 rows of one tile of outputs.
template <int kBits>
void multiply_tile(const LinearParams& p, int row, int panels, int tile) {
    const int blocks = num_blocks(p.k);
    const auto* w = static_cast<const uint8_t*>(p.w) + int64_t{tile} * blocks * kCodes * kBits / 8;
    alignas(64) int8_t codes[kChunk * kCodes];
    alignas(64) float totals[kPanels][kTileRows * kLanes] = {};
    for (int first = 0; first < blocks; first += kChunk) {
        const int count = blocks - first < kChunk ? blocks - first : kChunk;
        unpack<kBits>(w + int64_t{first} * kCodes * kBits / 8, count, codes);
        for (int i = 0; i < panels; ++i) {
            add_blocks(p, row + i * kTileRows, tile, first, count, codes, totals[i]);
        }
    }
    for (int i = 0; i < panels; ++i) finish<kTileRows>(p, totals[i], row + i * kTileRows, tile);
}

// The rows from `row` on, of one tile of outputs, by avx512.
void remaining_rows(const LinearParams& p, int row, int tile, WeightType type) {
    const int64_t blocks = num_blocks(p.k);
    LinearParams rest = p;
    rest.xq += row * blocks * kBlock, rest.x_scale += row * blocks, rest.x_neg_sum += row * blocks;
    rest.y += row * p.ldy, rest.m -= row;
    rest.tile_begin = tile, rest.tile_end = tile + 1;
    avx512::table().linear[static_cast<int>(type)](rest);
}

template <int kBits>
void run(const LinearParams& p) {
    constexpr WeightType kType = kBits == 4 ? WeightType::int4 : WeightType::int8;
    if (p.m < kTileRows) return avx512::table().linear[static_cast<int>(kType)](p);
    constexpr TileShapes kShapes = shapes();
    use_tiles(kShapes);
    for (int tile = p.tile_begin; tile < p.tile_end; ++tile) {
        int row = 0;
        while (row + kTileRows <= p.m) {
            const int whole = (p.m - row) / kTileRows, panels = whole < kPanels ? whole : kPanels;
            multiply_tile<kBits>(p, row, panels, tile);
            row += panels * kTileRows;
        }
        if (row < p.m) remaining_rows(p, row, tile, kType);
    }
    release_tiles();
}

void linear_int8(const LinearParams& p) {
    run<8>(p);
}

void linear_int4(const LinearParams& p) {
    run<4>(p);
}

}  // namespace

const Kernels& table();

const Kernels& table() {
    static const Kernels kTable = [] {
        Kernels all = avx512::table();
        all.isa = Isa::amx;
        all.linear[static_cast<int>(WeightType::int8)] = linear_int8;
        all.linear[static_cast<int>(WeightType::int4)] = linear_int4;
        all.pack_rows = nullptr;  // tiles take many rows as they are
        all.linear_int4_panels = nullptr;
        return all;
    }();
    return kTable;
}

}  // namespace LATRT_LEVEL
}  // namespace latrt
