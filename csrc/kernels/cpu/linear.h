// y = x W^T + bias for packed weights: matrix-vector for decode, matrix-matrix for prefill.
//
// Weights are tiles of 16 outputs, the same for every instruction set; N is padded with zeros:
//   f32   (N/16, K, 16) float
//   bf16  (N/16, K/2, 16, 2) uint16: pairs along K
//   int8  (N/16, K/32, 8, 16, 4) uint8: code + 128, fours along K
//   int4  (N/16, K/32, 4, 16, 4) uint8: code + 8; the low nibble of [g] belongs to inputs
//         4 g .. 4 g + 3 of the block, the high one to those 16 further on
// with scales f16 for int8 and int4, weight = code * scale: (N/16, K/32, 16), or (N/16, K/128, 16)
// where four blocks are a group that shares one (`scale_run`). Float weights meet the activations
// as they are, or rounded to bf16 if the weights are and the processor multiplies pairs of bf16
// (`Kernels::round_rows`); int8 and int4 meet them quantised to int8 in the same groups: the
// products of a group are summed as integers, and multiplied by both scales. Where there are many
// rows of them, some levels want them in panels (`Kernels::pack_rows`), and answer with the same
// bits.
#pragma once

#include "kernels/cpu/types.h"

namespace latrt {

// The largest code of an activation that meets weights of this type. For int4 it leaves room for
// the sum of an activation's code and a weight's in a byte (panels_avx512.h).
constexpr int largest_code(WeightType type) {
    return type == WeightType::int4 ? 120 : 127;
}

inline constexpr int kScaleRun = 4;  // blocks of a group; else a block is a group by itself

// Rows that make packing them worth it, where a level has panels.
constexpr int panels_from(WeightType type) {
    return type == WeightType::int4 ? 48 : 128;
}

inline constexpr int kPanelRows = 8;
inline constexpr int kPanelBlocks = 8;  // of a panel that stand one behind the other

// 32 inputs of 8 rows of activations for int8 or int4 weights.
struct PanelBlock {
    int8_t codes[kBlock / 4][kPanelRows][4];  // fours along K
    int32_t start[kPanelRows];  // what a row's sums of a group begin with, in its first block
    float scale[kPanelRows];
};

// Panels are (K/32/8, M/8, 8) blocks, 8 along K together, at the end as many as are left. Behind
// row M are zeros.
struct PackRowsParams {
    const int8_t* xq;      // as in LinearParams, codes up to `largest_code`   in
    const float* x_scale;  // (M, groups)                                      in
    PanelBlock* panels;    // all of them                                      out
    int m, k;
    int panel_begin, panel_end;  // of 8 rows, to pack
    WeightType type;             // that they are to meet
    int scale_run = 1;
};

struct LinearParams {
    const void* w;             // packed tiles                                    in
    const uint16_t* w_scale;   // (N/16, scales, 16) f16; int8, int4              in
    const float* bias;         // (N) or null                                     in
    const float* x;            // (M, K), rows `ldx` apart; f32, bf16             in
    const int8_t* xq;          // (M, groups, scale_run, 32); int8, int4          in
    const float* x_scale;      // (M, groups); int8, int4                         in
    const int32_t* x_neg_sum;  // (M, groups): minus a group's sum of codes       in
    float* y;                  // (M, N), rows `ldy` apart                        out
    int m, n, k;               // k as it is, not rounded up to whole blocks
    int64_t ldx, ldy;
    int tile_begin, tile_end;            // tiles of 16 outputs to compute
    bool accumulate;                     // y += instead of y =
    const PanelBlock* panels = nullptr;  // for `Kernels::linear_panels`          in
    int scale_run = 1;                   // blocks of a group: 1 or `kScaleRun`
    // (M, K) as `Kernels::round_rows` writes them, rows `rounded_row(K)` apart; bf16      in
    const uint16_t* x_bf16 = nullptr;
};

// Rows of float to int8 codes in groups: x = code * scale, scale = max|x| / largest. A group with
// a number that is not finite gets the scale NaN, so that its outputs are NaN.
struct QuantiseParams {
    const float* x;      // (M, K), rows `ldx` apart                     in
    int8_t* xq;          // (M, groups, scale_run, 32), zeros behind K   out
    float* x_scale;      // (M, groups)                                  out
    int32_t* x_neg_sum;  // (M, groups): minus a group's sum of codes    out
    int m, k;
    int64_t ldx;
    int largest = 127;  // code, `largest_code`
    int scale_run = 1;
    int64_t ld_groups = 0;  // groups that rows of codes, scales and sums are apart; 0: as k has
};

// Rows of float to bf16, zeros behind K up to a multiple of 16.
struct RoundRowsParams {
    const float* x;  // (M, K), rows `ldx` apart   in
    uint16_t* y;     // (M, K), rows `ldy` apart   out
    int m, k;
    int64_t ldx, ldy;
};

// One row of packed weights as floats: the embedding of a token.
struct UnpackRowParams {
    const void* w;            // packed tiles         in
    const uint16_t* w_scale;  // int8, int4           in
    float* y;                 // (K)                  out
    WeightType type;
    int row, k;
    int scale_run = 1;  // as in LinearParams
};

constexpr int num_tiles(int n) {
    return (n + kLanes - 1) / kLanes;
}
constexpr int num_blocks(int k) {
    return (k + kBlock - 1) / kBlock;
}
constexpr int num_panels(int m) {
    return (m + kPanelRows - 1) / kPanelRows;
}
// Groups, each with a scale, of an output's weights and of a row of activations.
constexpr int num_scales(int k, int scale_run) {
    return (num_blocks(k) + scale_run - 1) / scale_run;
}
// Codes of a row of activations: whole groups.
constexpr int64_t row_codes(int k, int scale_run) {
    return int64_t{num_scales(k, scale_run)} * scale_run * kBlock;
}
// Numbers that rows of bf16 activations are apart: never a power of two, which would crowd all rows
// into some lines of the caches.
constexpr int64_t rounded_row(int k) {
    return round_up(k, 64) + 32;
}
// Where block `block` of panel `panel` stands.
constexpr int64_t panel_at(int m, int k, int panel, int block) {
    const int first = block / kPanelBlocks * kPanelBlocks, rest = num_blocks(k) - first;
    const int together = rest < kPanelBlocks ? rest : kPanelBlocks;
    return int64_t{first} * num_panels(m) + int64_t{panel} * together + (block - first);
}

// Bytes of the packed weights, without scales.
constexpr int64_t packed_bytes(WeightType type, int n, int k) {
    const int64_t tiles = num_tiles(n);
    switch (type) {
        case WeightType::f32:
            return tiles * kLanes * k * 4;
        case WeightType::bf16:
            return tiles * kLanes * round_up(k, 2) * 2;
        case WeightType::int8:
            return tiles * kLanes * round_up(k, kBlock);
        default:
            return tiles * kLanes * round_up(k, kBlock) / 2;
    }
}

}  // namespace latrt
