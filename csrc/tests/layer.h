// A linear layer of int8 or int4 weights with activations as codes, for kernels that must give the
// same bits.
#pragma once

#include "tests/pack.h"

namespace latrt::test {

struct Layer {
    Packed packed;
    std::vector<int8_t> codes;
    std::vector<float> scale, bias, before;
    std::vector<int32_t> neg_sum;
    LinearParams params;
};

// A layer whose rows, outputs and inputs end within, at and behind the sizes of the tiles.
inline Layer make_layer(WeightType type, uint64_t seed, int m, int n, int k) {
    Random random(seed);
    Layer layer;
    const int scale_run = seed % 2 == 0 ? kScaleRun : 1;
    const size_t group = size_t(scale_run) * kBlock, row = size_t(row_codes(k, scale_run));
    const size_t count = m * row / group;
    const int64_t ldy = n + random.integer(0, 3);
    layer.packed = pack(random, type, n, k, scale_run);
    layer.codes.resize(m * row, 0);
    layer.neg_sum.resize(count, 0);
    layer.scale = random.floats(count, 0.001f, 0.02f);
    if (random.integer(0, 9) == 0) layer.scale[count / 2] = std::nanf("");
    for (size_t at = 0; at < layer.codes.size(); ++at) {
        if (int(at % row) >= k) continue;
        layer.codes[at] = int8_t(random.integer(-largest_code(type), largest_code(type)));
        layer.neg_sum[at / group] -= layer.codes[at];
    }
    if (random.integer(0, 1) == 1) layer.bias = random.floats(size_t(n));
    const bool accumulate = random.integer(0, 1) == 1;
    layer.before = accumulate ? random.floats(m * ldy) : poison(m * ldy);
    layer.params = {layer.packed.bytes.data(),
                    layer.packed.scale.data(),
                    layer.bias.empty() ? nullptr : layer.bias.data(),
                    nullptr,
                    layer.codes.data(),
                    layer.scale.data(),
                    layer.neg_sum.data(),
                    nullptr,
                    m,
                    n,
                    k,
                    0,
                    ldy,
                    0,
                    num_tiles(n),
                    accumulate};
    layer.params.scale_run = scale_run;
    return layer;
}

// What `linear` writes, called for half of the tiles at a time.
inline std::vector<float> answer(void (*linear)(const LinearParams&), const Layer& layer) {
    std::vector<float> y = layer.before;
    LinearParams params = layer.params;
    params.y = y.data();
    const int tiles = params.tile_end;
    params.tile_end = tiles / 2;
    linear(params);
    params.tile_begin = tiles / 2, params.tile_end = tiles;
    linear(params);
    return y;
}

}  // namespace latrt::test
