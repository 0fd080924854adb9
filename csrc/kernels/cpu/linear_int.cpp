#include "kernels/cpu/level.h"
#include "kernels/cpu/linear_finish.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_int.h"

namespace latrt::LATRT_LEVEL {
namespace {

// One block of 32 inputs for M rows; `xq` and `x_sum` of the first row, strides to the next.
template <int M>
void block_int4(Ints (&sums)[M], const uint8_t* w, const int8_t* xq, int64_t stride,
                const int32_t* x_sum, int blocks) {
    for (int m = 0; m < M; ++m) sums[m] = splat_int(-8 * x_sum[m * blocks]);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
        const Bytes pair = load_bytes(w + g * 64);
        const Bytes low = low_nibbles(pair), high = high_nibbles(pair);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            dot4(sums[m], low, xq + m * stride + g * 4);
            dot4(sums[m], high, xq + m * stride + 16 + g * 4);
        }
    }
}

template <int M>
void block_int8(Ints (&sums)[M], const uint8_t* w, const int8_t* xq, int64_t stride,
                const int32_t* x_sum, int blocks) {
    for (int m = 0; m < M; ++m) sums[m] = start8(x_sum[m * blocks]);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
        const Bytes bytes = bytes_of(load_bytes(w + g * 64));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) dot8(sums[m], bytes, xq + m * stride + g * 4);
    }
}

// Bytes to fetch ahead: a page, which is where the hardware's own prefetching ends. Tiles lie one
// behind the other, so this reaches into the next; beyond the last it fetches nothing harmful.
constexpr int kAhead = 4096;

template <int M, int kBits>
void rows(const LinearParams& p, int row, int tile) {
    const int blocks = num_blocks(p.k);
    const int64_t stride = int64_t{blocks} * kBlock;
    constexpr int kBlockBytes = kLanes * kBlock * kBits / 8;
    const uint8_t* w = static_cast<const uint8_t*>(p.w) + int64_t{tile} * blocks * kBlockBytes;
    const uint16_t* w_scale = p.w_scale + int64_t{tile} * blocks * kLanes;
    const int8_t* xq = p.xq + row * stride;
    const int32_t* x_sum = p.x_sum + int64_t{row} * blocks;
    const float* x_scale = p.x_scale + int64_t{row} * blocks;
    Floats totals[M];
    for (Floats& total : totals) total = zeros();
    for (int b = 0; b < blocks; ++b) {
        for (int line = 0; line < kBlockBytes; line += 64) __builtin_prefetch(w + kAhead + line);
        Ints sums[M];
        if constexpr (kBits == 4) {
            block_int4<M>(sums, w, xq, stride, x_sum + b, blocks);
        } else {
            block_int8<M>(sums, w, xq, stride, x_sum + b, blocks);
        }
        const Floats scale = load_halves(w_scale);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) scale_add(totals[m], sums[m], scale, x_scale[m * blocks + b]);
        w += kBlockBytes;
        w_scale += kLanes;
        xq += kBlock;
    }
    alignas(64) float out[M * kLanes];
    for (int m = 0; m < M; ++m) store_floats(out + m * kLanes, totals[m]);
    finish<M>(p, out, row, tile);
}

// Tile by tile, so that a tile's weights stay in cache for all rows.
template <int kBits>
void run(const LinearParams& p) {
    for (int tile = p.tile_begin; tile < p.tile_end; ++tile) {
        int row = 0;
        for (; row + kIntRows <= p.m; row += kIntRows) rows<kIntRows, kBits>(p, row, tile);
        if constexpr (kIntRows > 1) {
            for (; row < p.m; ++row) rows<1, kBits>(p, row, tile);
        }
    }
}

// Codes of the 32 numbers at `x`; returns their sum.
int32_t quantise_block(const float* x, int8_t* codes, float& scale) {
    Vec largest = {}, check = {};
    for (int i = 0; i < kBlock; i += kWidth) {
        const Vec v = load(x + i);
        largest = max(max(v, -v), largest);
        check += v * 0.0f;  // NaN where v is not finite
    }
    const float top = max_lane(largest);
    const float inverse = top > 1e-35f ? 127.0f / top : 0.0f;
    scale = top / 127.0f + sum(check);
    int32_t rounded[kBlock], total = 0;
    for (int i = 0; i < kBlock; i += kWidth) {
        const UintVec bits = (UintVec)(load(x + i) * inverse + kRounder) - 0x4b400000u;
        __builtin_memcpy(rounded + i, &bits, sizeof bits);
    }
    for (int i = 0; i < kBlock; ++i) {
        codes[i] = static_cast<int8_t>(rounded[i]);
        total += codes[i];
    }
    return total;
}

}  // namespace

void quantise(const QuantiseParams& p) {
    const int blocks = num_blocks(p.k);
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
            p.x_sum[at] = quantise_block(from, p.xq + at * kBlock, p.x_scale[at]);
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
