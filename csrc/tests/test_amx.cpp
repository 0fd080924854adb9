// The AMX level, by its instructions where the processor has them, and emulated where it has
// AVX-512 at least.
#include "tests/pack.h"

namespace latrt::amx_emulated {
const Kernels& table();
}

using namespace latrt;

namespace {

struct Layer {
    test::Packed packed;
    std::vector<int8_t> codes;
    std::vector<float> scale, bias, before;
    std::vector<int32_t> sum;
    LinearParams params;
};

// A layer whose rows, outputs and inputs end within, at and behind the sizes of the tiles.
Layer make_layer(WeightType type, uint64_t seed, int m, int n, int k) {
    test::Random random(seed);
    Layer layer;
    const size_t blocks = size_t(num_blocks(k)), count = size_t(m) * blocks;
    const int64_t ldy = n + random.integer(0, 3);
    layer.packed = test::pack(random, type, n, k);
    layer.codes.resize(count * kBlock, 0);
    layer.sum.resize(count, 0);
    layer.scale = random.floats(count, 0.001f, 0.02f);
    if (random.integer(0, 9) == 0) layer.scale[count / 2] = std::nanf("");
    for (size_t at = 0; at < layer.codes.size(); ++at) {
        if (int(at / kBlock % blocks) * kBlock + int(at % kBlock) >= k) continue;
        layer.codes[at] = int8_t(random.integer(-127, 127));
        layer.sum[at / kBlock] += layer.codes[at];
    }
    if (random.integer(0, 1) == 1) layer.bias = random.floats(size_t(n));
    const bool accumulate = random.integer(0, 1) == 1;
    layer.before = accumulate ? random.floats(m * ldy) : test::poison(m * ldy);
    layer.params = {layer.packed.bytes.data(),
                    layer.packed.scale.data(),
                    layer.bias.empty() ? nullptr : layer.bias.data(),
                    nullptr,
                    layer.codes.data(),
                    layer.scale.data(),
                    layer.sum.data(),
                    nullptr,
                    m,
                    n,
                    k,
                    0,
                    ldy,
                    0,
                    num_tiles(n),
                    accumulate};
    return layer;
}

std::vector<float> answer(const Kernels& kernels, WeightType type, const Layer& layer) {
    std::vector<float> y = layer.before;
    LinearParams params = layer.params;
    params.y = y.data();
    const int tiles = params.tile_end;
    params.tile_end = tiles / 2;
    kernels.linear[int(type)](params);
    params.tile_begin = tiles / 2, params.tile_end = tiles;
    kernels.linear[int(type)](params);
    return y;
}

}  // namespace

TEST(amx_gives_the_bits_of_avx512) {
    const Kernels* avx512 = find_kernels(Isa::avx512);
    if (avx512 == nullptr) return;  // main.cpp names the level that is missing
    std::vector<const Kernels*> levels = {&amx_emulated::table()};
    if (const Kernels* real = find_kernels(Isa::amx)) levels.push_back(real);
    std::printf("compared: %s\n", levels.size() > 1 ? "emulated tiles, AMX" : "emulated tiles");
    constexpr int kRows[] = {1, 15, 16, 17, 32, 47, 127, 128, 129, 150, 271};
    constexpr int kInputs[] = {1, 31, 32, 33, 64, 96, 128, 129, 160, 1023, 1024, 1025, 1100, 2112};
    uint64_t seed = 0;
    for (const WeightType type : {WeightType::int8, WeightType::int4}) {
        for (const int m : kRows) {
            for (const int k : kInputs) {
                const Layer layer = make_layer(type, seed, m, 1 + int(seed % 50), k);
                const std::vector<float> want = answer(*avx512, type, layer);
                for (const Kernels* kernels : levels) {
                    const std::vector<float> got = answer(*kernels, type, layer);
                    if (std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) != 0) {
                        test::fail(__FILE__, __LINE__,
                                   "M=" + std::to_string(m) + " N=" +
                                       std::to_string(layer.params.n) + " K=" + std::to_string(k) +
                                       " type " + std::to_string(int(type)) + ": differs");
                    }
                }
                ++seed;
            }
        }
    }
}

TEST(amx_changes_two_kernels_only) {
    if (!cpu_has(Isa::avx512)) return;
    const Kernels &tiles = amx_emulated::table(), &vectors = *find_kernels(Isa::avx512);
    CHECK(tiles.isa == Isa::amx);
    for (const WeightType type : {WeightType::int8, WeightType::int4}) {
        CHECK(tiles.linear[int(type)] != vectors.linear[int(type)]);
    }
    CHECK(tiles.linear[int(WeightType::bf16)] == vectors.linear[int(WeightType::bf16)]);
    CHECK(tiles.attention == vectors.attention && tiles.quantise == vectors.quantise);
}
