// The AMX level, by its instructions where the processor has them, and emulated where it has
// AVX-512 at least.
#include "tests/layer.h"

namespace latrt::amx_emulated {
const Kernels& table();
}

using namespace latrt;

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
                const test::Layer layer = test::make_layer(type, seed, m, 1 + int(seed % 50), k);
                const std::vector<float> want = test::answer(avx512->linear[int(type)], layer);
                for (const Kernels* kernels : levels) {
                    const std::vector<float> got = test::answer(kernels->linear[int(type)], layer);
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
    if (!cpu_has(Isa::avx512_bf16)) return;
    const Kernels &tiles = amx_emulated::table(), &vectors = *find_kernels(Isa::avx512_bf16);
    CHECK(tiles.isa == Isa::amx);
    for (const WeightType type : {WeightType::int8, WeightType::int4}) {
        CHECK(tiles.linear[int(type)] != vectors.linear[int(type)]);
    }
    CHECK(tiles.linear[int(WeightType::bf16)] == vectors.linear[int(WeightType::bf16)]);
    CHECK(tiles.attention == vectors.attention && tiles.quantise == vectors.quantise);
}
