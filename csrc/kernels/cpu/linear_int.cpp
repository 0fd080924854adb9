#include "kernels/cpu/level.h"
#include "kernels/cpu/linear_finish.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_int.h"

namespace latrt::LATRT_LEVEL {
namespace {

// Where the weights of T tiles and the activations of M rows stand, moved on block by block.
template <int kBits>
struct Cursor {
    static constexpr int kBytes = kLanes * kBlock * kBits / 8;  // of a block of a tile

    const uint8_t* w;
    const uint16_t* w_scale;
    const int8_t* xq;
    const float* x_scale;
    const int32_t* x_neg_sum;
    int blocks, scales, run, left;  // left: blocks that the present scale still has

    Cursor(const LinearParams& p, int row, int tile)
        : blocks(num_blocks(p.k)),
          scales(num_scales(p.k, p.scale_run)),
          run(p.scale_run),
          left(p.scale_run) {
        w = static_cast<const uint8_t*>(p.w) + int64_t{tile} * blocks * kBytes;
        w_scale = p.w_scale + int64_t{tile} * scales * kLanes;
        xq = p.xq + int64_t{row} * blocks * kBlock;
        x_scale = p.x_scale + int64_t{row} * blocks;
        x_neg_sum = p.x_neg_sum + int64_t{row} * blocks;
    }
    const uint8_t* codes(int t) const { return w + int64_t{t} * blocks * kBytes; }
    Floats scale(int t) const { return load_halves(w_scale + int64_t{t} * scales * kLanes); }
    const int8_t* row(int m) const { return xq + int64_t{m} * blocks * kBlock; }
    void next() {
        w += kBytes, xq += kBlock, ++x_scale, ++x_neg_sum;
        if (--left == 0) w_scale += kLanes, left = run;
    }
};

// Bytes to fetch ahead: a page, which is where the hardware's own prefetching ends. Tiles lie one
// behind the other, so this reaches into the next; beyond the last it fetches nothing harmful.
constexpr int kAhead = 4096;

template <int T, int kBits>
void fetch_ahead(const Cursor<kBits>& at, int block) {
    constexpr int kBlocks = kAhead / Cursor<kBits>::kBytes;
    // Behind the last block of the T tiles begin the next T.
    const bool last = block + kBlocks >= at.blocks;
    const int64_t skip = last ? int64_t{T - 1} * at.blocks : 0;
    const int64_t skip_scales = last ? int64_t{T - 1} * at.scales : 0;
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
        const uint8_t* w = at.codes(t) + (skip + kBlocks) * Cursor<kBits>::kBytes;
        for (int line = 0; line < Cursor<kBits>::kBytes; line += 64) __builtin_prefetch(w + line);
        // A cache line holds two scales of 16 outputs.
        const int64_t ahead = skip_scales + kBlocks / at.run;
        __builtin_prefetch(at.w_scale + (int64_t{t} * at.scales + ahead) * kLanes);
    }
}

// Adds the products of 4 inputs of a block of T tiles and M rows.
template <int T, int M>
void add_dots(Sums4 (&sums)[T][M], const Cursor<4>& at, int group) {
    Bytes low[T], high[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
        const Bytes pair = load_bytes(at.codes(t) + group * 64);
        low[t] = low_nibbles(pair), high[t] = high_nibbles(pair);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Quad first = quad(at.row(m) + group * 4), second = quad(at.row(m) + 16 + group * 4);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            dot4(sums[t][m], low[t], first);
            dot4(sums[t][m], high[t], second);
        }
    }
}

template <int T, int M>
void add_dots(Ints (&sums)[T][M], const Cursor<8>& at, int group) {
    Bytes w[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) w[t] = bytes_of(load_bytes(at.codes(t) + group * 64));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Quad x = quad(at.row(m) + group * 4);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) dot8(sums[t][m], w[t], x);
    }
}

// The sums of a block's products, from their start to their end.
template <int kBits>
struct Dots {
    using Sums = Ints;
    static Sums start(const int32_t* x_neg_sum) { return start8(x_neg_sum); }
    static Ints end(Sums sums) { return sums; }
};
template <>
struct Dots<4> {
    using Sums = Sums4;
    static Sums start(const int32_t* x_neg_sum) { return start4(x_neg_sum); }
    static Ints end(Sums sums) { return ints_of(sums); }
};

// T tiles of M rows. Every sum is made in the same order whatever T and M are.
template <int T, int M, int kBits>
void panel(const LinearParams& p, int row, int tile) {
    Cursor<kBits> at(p, row, tile);
    Floats totals[T][M];
    for (auto& of_tile : totals) {
        for (Floats& total : of_tile) total = zeros();
    }
    for (int b = 0; b < at.blocks; ++b, at.next()) {
        fetch_ahead<T>(at, b);
        typename Dots<kBits>::Sums sums[T][M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto first = Dots<kBits>::start(at.x_neg_sum + int64_t{m} * at.blocks);
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[t][m] = first;
        }
#pragma GCC unroll 8
        for (int group = 0; group < kBits; ++group) add_dots<T, M>(sums, at, group);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            const Floats scale = at.scale(t);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                scale_add(totals[t][m], Dots<kBits>::end(sums[t][m]), scale,
                          at.x_scale[int64_t{m} * at.blocks]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        alignas(64) float out[M * kLanes];
        for (int m = 0; m < M; ++m) store_floats(out + m * kLanes, totals[t][m]);
        finish<M>(p, out, row, tile + t);
    }
}

// All rows of T tiles, whose weights stay in cache; M rows at a time, then half of that.
template <int T, int M, int kBits>
void all_rows(const LinearParams& p, int row, int tile) {
    for (; row + M <= p.m; row += M) panel<T, M, kBits>(p, row, tile);
    if constexpr (M > 1) all_rows<T, M / 2, kBits>(p, row, tile);
}

// One row streams its weights: one tile at a time is one stream, which memory serves best.
template <int kBits>
void run(const LinearParams& p) {
    constexpr int kTiles = kBits == 4 ? kTiles4 : kTiles8;
    int tile = p.tile_begin;
    if constexpr (kTiles > 1) {
        for (; p.m > 1 && tile + kTiles <= p.tile_end; tile += kTiles) {
            all_rows<kTiles, kIntRows, kBits>(p, 0, tile);
        }
    }
    for (; tile < p.tile_end; ++tile) all_rows<1, kIntRows, kBits>(p, 0, tile);
}

// Codes of the 32 numbers at `x`; returns minus their sum.
int32_t quantise_block(const float* x, float most, int8_t* codes, float& scale) {
    // |x| by its bits, which order as the numbers do; what is not finite is above all others.
    constexpr int32_t kInfinity = 0x7f800000;
    IntVec largest = {};
    for (int i = 0; i < kBlock; i += kWidth) {
        const IntVec magnitude = (IntVec)load(x + i) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    int32_t lanes[kWidth], bits = 0;
    __builtin_memcpy(lanes, &largest, sizeof largest);
    for (const int32_t lane : lanes) bits = lane > bits ? lane : bits;
    float top;
    __builtin_memcpy(&top, &bits, sizeof top);
    const float inverse = top > 1e-35f && bits < kInfinity ? most / top : 0.0f;
    scale = bits < kInfinity ? top / most : __builtin_nanf("");
    int32_t rounded[kBlock], total = 0;
    for (int i = 0; i < kBlock; i += kWidth) {
        const UintVec bits = (UintVec)(load(x + i) * inverse + kRounder) - 0x4b400000u;
        __builtin_memcpy(rounded + i, &bits, sizeof bits);
    }
    for (int i = 0; i < kBlock; ++i) {
        codes[i] = static_cast<int8_t>(rounded[i]);
        total -= codes[i];
    }
    return total;
}

}  // namespace

void quantise(const QuantiseParams& p) {
    const int blocks = num_blocks(p.k);
    const float most = static_cast<float>(p.largest);
    for (int row = 0; row < p.m; ++row) {
        const float* x = p.x + row * p.ldx;
        for (int b = 0; b < blocks; ++b) {
            const int64_t at = int64_t{row} * blocks + b;
            float padded[kBlock] = {};
            const int rest = p.k - b * kBlock;
            if (rest < kBlock) {
                for (int i = 0; i < rest; ++i) padded[i] = x[b * kBlock + i];
            }
            const float* from = rest < kBlock ? padded : x + b * kBlock;
            p.x_neg_sum[at] = quantise_block(from, most, p.xq + at * kBlock, p.x_scale[at]);
        }
    }
}

void linear_int8(const LinearParams& p) {
    run<8>(p);
}

void linear_int4(const LinearParams& p) {
    run<4>(p);
}

}  // namespace latrt::LATRT_LEVEL
