// bf16 linear layers where the processor multiplies pairs of bf16: activations are rounded to bf16,
// sums stay float32. Every output is the sum of its pairs one after the other, however many rows
// there are, so the bits do not depend on them.
#include "kernels/cpu/level.h"
#include "kernels/cpu/linear_finish.h"
#include "kernels/cpu/pairs_bf16.h"

namespace latrt::LATRT_LEVEL {
namespace {

constexpr int kTiles = 2;     // of outputs that run together
constexpr int kPass = 128;    // rows that share a tile's weights while the L1 cache has them
constexpr int kChunk = 256;   // pairs along K of them: 16 KiB a tile
constexpr int kAhead = 2048;  // numbers, a page: where the hardware's own prefetching ends

using Totals = Vec[kTiles];

// Adds the products of `pairs` pairs of M rows with T tiles, the weights of a tile `apart` from
// those of the next; with kFetch, fetches those behind.
template <int M, int T, bool kFetch>
void multiply(const uint16_t* x, int64_t ldx, const uint16_t* w, int64_t apart, int pairs,
              Totals* totals) {
    Vec sums[M][T];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) sums[m][t] = totals[m][t];
    }
    for (int i = 0; i < pairs; ++i, x += 2, w += 2 * kLanes) {
        __m512bh weights[T];
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            weights[t] = load_as<__m512bh>(w + t * apart);
            if (kFetch) __builtin_prefetch(w + t * apart + kAhead, 0, 2);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512bh pair = splat_pair(x + m * ldx);
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[m][t] = add_pairs(sums[m][t], weights[t], pair);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) totals[m][t] = sums[m][t];
    }
}

// M rows at a time, then half of that; the first ones fetch.
template <int M, int T, bool kFetch>
void multiply_rows(const uint16_t* x, int64_t ldx, int rows, const uint16_t* w, int64_t apart,
                   int pairs, Totals* totals) {
    if (rows >= M) {
        multiply<M, T, kFetch>(x, ldx, w, apart, pairs, totals);
        multiply_rows<M, T, false>(x + M * ldx, ldx, rows - M, w, apart, pairs, totals + M);
    } else if constexpr (M > 1) {
        multiply_rows<M / 2, T, kFetch>(x, ldx, rows, w, apart, pairs, totals);
    }
}

template <int T>
void multiply_tiles(const LinearParams& p, int row, int rows, int tile) {
    const int64_t ldx = rounded_row(p.k), pairs = round_up(p.k, 2) / 2;
    const uint16_t* x = p.x_bf16 + row * ldx;
    const uint16_t* w = static_cast<const uint16_t*>(p.w) + tile * pairs * 2 * kLanes;
    Totals totals[kPass];
    for (int m = 0; m < rows; ++m) {
        for (int t = 0; t < T; ++t) totals[m][t] = Vec{};
    }
    for (int first = 0; first < pairs; first += kChunk) {
        const int count = pairs - first < kChunk ? static_cast<int>(pairs - first) : kChunk;
        multiply_rows<kMaxRows, T, true>(x + 2 * first, ldx, rows, w + int64_t{first} * 2 * kLanes,
                                         pairs * 2 * kLanes, count, totals);
    }
    for (int m = 0; m < rows; ++m) {
        for (int t = 0; t < T; ++t) {
            alignas(64) float sums[kLanes];
            store(sums, totals[m][t]);
            finish<1>(p, sums, row + m, tile + t);
        }
    }
}

}  // namespace

void round_rows(const RoundRowsParams& p) {
    for (int row = 0; row < p.m; ++row) round_row(p.x + row * p.ldx, p.k, p.y + row * p.ldy);
}

void linear_bf16(const LinearParams& p) {
    for (int row = 0; row < p.m; row += kPass) {
        const int rows = p.m - row < kPass ? p.m - row : kPass;
        int tile = p.tile_begin;  // one row reads one tile at a time: memory likes it better
        for (; rows > 1 && tile + kTiles <= p.tile_end; tile += kTiles) {
            multiply_tiles<kTiles>(p, row, rows, tile);
        }
        for (; tile < p.tile_end; ++tile) multiply_tiles<1>(p, row, rows, tile);
    }
}

}  // namespace latrt::LATRT_LEVEL
