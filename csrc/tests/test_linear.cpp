#include <cstdlib>
#include <stdexcept>

#include "engine/runtime.h"
#include "kernels/cpu/reference.h"
#include "tests/layer.h"

using namespace latrt;
using test::poison;

namespace {

struct Shape {
    int m, n, k;
    bool bias, accumulate;
    int extra;  // floats between rows
};

std::string describe(const Kernels& kernels, WeightType type, const Shape& s, uint64_t seed) {
    constexpr const char* kTypes[] = {"f32", "bf16", "int8", "int4"};
    char text[160];
    std::snprintf(text, sizeof text, "%s %s M=%d N=%d K=%d bias=%d add=%d seed %d",
                  isa_name(kernels.isa), kTypes[int(type)], s.m, s.n, s.k, s.bias, s.accumulate,
                  int(seed));
    return text;
}

// Activations as the kernel gets them, and as the floats they stand for.
struct Input {
    std::vector<float> x, scale, meant;
    std::vector<uint16_t> x_bf16;
    std::vector<int8_t> codes;
    std::vector<int32_t> neg_sum;
};

Input make_input(test::Random& random, const Kernels& kernels, WeightType type, const Shape& s,
                 int scale_run) {
    Input input;
    const bool rounds = type == WeightType::bf16 && kernels.round_rows != nullptr;
    const size_t ldx = size_t(s.k) + s.extra, size = size_t(scale_run) * kBlock;
    const size_t groups = size_t(num_scales(s.k, scale_run));
    input.x = poison(s.m * ldx);
    input.codes.resize(s.m * groups * size, 0);
    input.neg_sum.resize(s.m * groups, 0);
    input.scale = random.floats(s.m * groups, 0.001f, 0.02f);
    for (int row = 0; row < s.m; ++row) {
        for (int i = 0; i < s.k; ++i) {
            const size_t group = row * groups + i / size;
            float value = random.uniform(-1, 1);
            if (type == WeightType::int8 || type == WeightType::int4) {
                const int most = largest_code(type), code = random.integer(-most, most);
                input.codes[group * size + i % size] = int8_t(code);
                input.neg_sum[group] -= code;
                value = float(code) * input.scale[group];
            }
            input.x[row * ldx + i] = value;
            input.meant.push_back(rounds ? bf16_to_float(float_to_bf16(value)) : value);
        }
    }
    if (rounds) {
        const int64_t ldy = rounded_row(s.k);
        input.x_bf16.assign(size_t(s.m * ldy), 0xffff);
        kernels.round_rows({input.x.data(), input.x_bf16.data(), s.m, s.k, int64_t(ldx), ldy});
    }
    return input;
}

void check_linear(const Kernels& kernels, WeightType type, uint64_t seed) {
    test::Random random(seed);
    const int most_inputs = seed % 5 == 0 ? 1300 : 300;  // more than a piece of any kernel
    const Shape s = {random.size(20),           random.size(140),          random.size(most_inputs),
                     random.integer(0, 1) == 1, random.integer(0, 1) == 1, random.integer(0, 3)};
    const int scale_run = seed / 4 % 2 == 0 ? kScaleRun : 1;
    const test::Packed packed = test::pack(random, type, s.n, s.k, scale_run);
    const Input input = make_input(random, kernels, type, s, scale_run);
    const std::vector<float> bias = random.floats(s.bias ? size_t(s.n) : 0);
    const size_t ldy = size_t(s.n) + s.extra;
    std::vector<float> y = s.accumulate ? random.floats(s.m * ldy) : poison(s.m * ldy);
    const std::vector<float> before = y;
    LinearParams p = {packed.bytes.data(),
                      packed.scale.data(),
                      s.bias ? bias.data() : nullptr,
                      input.x.data(),
                      input.codes.data(),
                      input.scale.data(),
                      input.neg_sum.data(),
                      y.data(),
                      s.m,
                      s.n,
                      s.k,
                      int64_t(s.k) + s.extra,
                      int64_t(ldy),
                      0,
                      0,
                      s.accumulate};
    p.scale_run = scale_run;
    p.x_bf16 = input.x_bf16.data();
    const int tiles = num_tiles(s.n), split = random.integer(0, tiles);
    p.tile_end = split;
    kernels.linear[int(type)](p);
    p.tile_begin = split, p.tile_end = tiles;
    kernels.linear[int(type)](p);
    std::vector<float> want, bound, got;
    reference::linear(input.meant, packed.w, bias, s.m, s.n, s.k, want, bound);
    bool outside_kept = true;
    for (size_t i = 0; i < y.size(); ++i) {
        if (i % ldy < size_t(s.n)) {
            const size_t at = got.size();
            if (s.accumulate) want[at] += before[i], bound[at] += std::fabs(before[i]);
            bound[at] = bound[at] * 3e-6f + 1e-6f;
            got.push_back(y[i]);
        } else {
            outside_kept &= std::memcmp(&y[i], &before[i], 4) == 0;
        }
    }
    const std::string what = describe(kernels, type, s, seed);
    CHECK_NEAR(what, got, want, bound, size_t(s.n));
    if (!outside_kept) test::fail(__FILE__, __LINE__, what + ": wrote between rows");
}

}  // namespace

TEST(linear_equals_the_reference) {
    for (const Kernels* kernels : test::levels()) {
        for (int type = 0; type < kNumWeightTypes; ++type) {
            for (uint64_t seed = 0; seed < 60; ++seed) {
                check_linear(*kernels, WeightType(type), seed * 4 + type);
            }
        }
    }
}

TEST(linear_int_is_exact_at_the_largest_codes) {
    for (const Kernels* kernels : test::levels()) {
        for (const int sign_run : {-1, 1, -kScaleRun, kScaleRun}) {
            const int sign = sign_run < 0 ? -1 : 1, run = sign_run * sign;
            const int size = run * kBlock, k = 2 * size, blocks = num_blocks(k);
            const std::vector<uint8_t> w8(16 * k, uint8_t(sign * 127 + 128));
            const std::vector<uint8_t> w4(16 * k / 2, sign < 0 ? 0x00 : 0xff);
            const std::vector<uint16_t> one(16 * 2, 0x3c00);
            std::vector<int8_t> x(k, 127);
            const std::vector<float> scale(2, 1.0f);
            std::vector<int32_t> neg_sum(2, -size * 127);
            std::vector<float> y = poison(16);
            LinearParams p = {
                w8.data(), one.data(), nullptr, nullptr, x.data(), scale.data(), neg_sum.data(),
                y.data(),  1,          16,      k,       k,        16,           0,
                1,         false};
            p.scale_run = run;
            kernels->linear[int(WeightType::int8)](p);
            for (float value : y) CHECK(value == float(sign * 127 * 127 * k));
            p.w = w4.data();
            kernels->linear[int(WeightType::int4)](p);
            for (float value : y) CHECK(value == float((sign < 0 ? -8 : 7) * 127 * k));
            for (const int8_t code : {int8_t(120), int8_t(-120)}) {
                std::fill(x.begin(), x.end(), code);
                std::fill(neg_sum.begin(), neg_sum.end(), -size * code);
                kernels->linear[int(WeightType::int4)](p);
                const float want = float((sign < 0 ? -8 : 7) * code * k);
                for (float value : y) CHECK(value == want);
                if (kernels->linear_panels[int(WeightType::int4)] == nullptr) continue;
                std::vector<PanelBlock> panels(static_cast<size_t>(blocks));
                kernels->pack_rows(
                    {x.data(), scale.data(), panels.data(), 1, k, 0, 1, WeightType::int4, run});
                p.panels = panels.data();
                y = poison(16);
                p.y = y.data();
                kernels->linear_panels[int(WeightType::int4)](p);
                for (float value : y) CHECK(value == want);
            }
        }
    }
}

// Some levels add a block's products up in 16 bits, two sums to an output: inputs whose number is 0
// or 1 of four, and those whose number is 2 or 3. Whatever the signs, neither may overflow.
TEST(linear_int4_sums_of_a_block_do_not_overflow) {
    for (const Kernels* kernels : test::levels()) {
        for (int bits = 0; bits < 32; ++bits) {
            const int run = bits < 16 ? 1 : kScaleRun, inputs = run * kBlock;
            for (const int most : {127, largest_code(WeightType::int4)}) {
                std::vector<int8_t> x;
                int x_neg_sum = 0, total = 0;
                uint8_t nibbles[2];
                for (int half = 0; half < 2; ++half) {
                    const int code = (bits >> half & 1) != 0 ? most : -most;
                    const int w = (bits >> (2 + half) & 1) != 0 ? 7 : -8;
                    nibbles[half] = uint8_t((w + 8) * 0x11);
                    x_neg_sum -= code * inputs / 2, total += code * w * inputs / 2;
                }
                for (int i = 0; i < inputs; ++i) {
                    x.push_back(int8_t((bits >> (i / 2 % 2) & 1) != 0 ? most : -most));
                }
                std::vector<uint8_t> w(16 * inputs / 2);
                for (size_t i = 0; i < w.size(); ++i) w[i] = nibbles[i / 2 % 2];
                const std::vector<uint16_t> one(16, 0x3c00);
                const float scale = 1.0f;
                std::vector<float> y = poison(16);
                LinearParams p = {w.data(),   one.data(), nullptr, nullptr, x.data(), &scale,
                                  &x_neg_sum, y.data(),   1,       16,      inputs,   inputs,
                                  16,         0,          1,       false};
                p.scale_run = run;
                kernels->linear[int(WeightType::int4)](p);
                for (float value : y) CHECK(value == float(total));
                if (kernels->linear_panels[int(WeightType::int4)] == nullptr || most == 127)
                    continue;
                PanelBlock panel[kScaleRun];
                kernels->pack_rows(
                    {x.data(), &scale, panel, 1, inputs, 0, 1, WeightType::int4, run});
                p.panels = panel;
                y = poison(16);
                p.y = y.data();
                kernels->linear_panels[int(WeightType::int4)](p);
                for (float value : y) CHECK(value == float(total));
            }
        }
    }
}

namespace {

void check_panels(const Kernels& kernels, int type, uint64_t seed, int m, int k) {
    const int n = 1 + int(seed * 13 % 150), panels = num_panels(m);
    test::Layer layer = test::make_layer(WeightType(type), seed, m, n, k);
    const std::vector<float> want = test::answer(kernels.linear[type], layer);
    std::vector<PanelBlock> packed(size_t(panels) * num_blocks(k));
    std::memset(static_cast<void*>(packed.data()), 0xff, packed.size() * sizeof(PanelBlock));
    PackRowsParams rows = {layer.codes.data(), layer.scale.data(), packed.data(),         m, k, 0,
                           panels / 2,         WeightType(type),   layer.params.scale_run};
    kernels.pack_rows(rows);
    rows.panel_begin = panels / 2, rows.panel_end = panels;
    kernels.pack_rows(rows);
    layer.params.panels = packed.data();
    const std::vector<float> got = test::answer(kernels.linear_panels[type], layer);
    if (std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) != 0) {
        test::fail(__FILE__, __LINE__,
                   "type " + std::to_string(type) + " M=" + std::to_string(m) +
                       " N=" + std::to_string(n) + " K=" + std::to_string(k) + ": differs");
    }
}

}  // namespace

TEST(linear_panels_give_the_bits_of_rows) {
    constexpr int kRows[] = {1, 7, 8, 9, 48, 100, 255, 256, 257, 300, 512, 530};
    constexpr int kInputs[] = {1, 31, 32, 33, 64, 255, 256, 257, 288, 511, 512, 513, 1100};
    for (const Kernels* kernels : test::levels()) {
        uint64_t seed = 0;
        for (int type = 0; type < kNumWeightTypes; ++type) {
            if (kernels->linear_panels[type] == nullptr) continue;
            for (const int m : kRows) {
                for (const int k : kInputs) check_panels(*kernels, type, seed++, m, k);
            }
        }
    }
}

TEST(linear_of_floats_gives_a_row_the_same_bits_among_others) {
    constexpr int kRows[] = {2, 7, 8, 13, 128, 129, 300}, kInputs[] = {1, 33, 511, 513, 1100};
    for (const Kernels* kernels : test::levels()) {
        if (kernels->isa == Isa::plain) continue;  // too slow to wait for
        for (const WeightType type : {WeightType::f32, WeightType::bf16}) {
            for (const int m : kRows) {
                for (const int k : kInputs) {
                    test::Random random{uint64_t(m * k)};
                    const int n = random.size(70);
                    const test::Packed packed = test::pack(random, type, n, k);
                    const std::vector<float> x = random.floats(size_t(m) * k);
                    const Matrix matrix = {type, packed.bytes.data(), nullptr, nullptr, n, k};
                    std::vector<float> together = poison(size_t(m) * n), alone = together;
                    Runtime runtime(*kernels, 1);
                    runtime.linear(matrix, x.data(), m, together.data());
                    for (int row = 0; row < m; ++row) {
                        runtime.linear(matrix, &x[size_t(row) * k], 1, &alone[size_t(row) * n]);
                    }
                    CHECK(std::memcmp(alone.data(), together.data(), alone.size() * 4) == 0);
                }
            }
        }
    }
}

// Rows, hidden units and threads of every kind of piece; none may show in the bits.
TEST(linear_mlp_gives_the_bits_of_its_parts) {
    constexpr int kRows[] = {1, 3, 8, 50, 130}, kUnits[] = {8, 16, 100, 172, 688, 1100};
    constexpr int kWidth = 96, kRuns[] = {1, kScaleRun};
    for (const Kernels* kernels : test::levels()) {
        uint64_t seed = 0;
        for (int i = 0; i < kNumWeightTypes; ++i) {
            const auto type = WeightType(i);
            for (const int ffn : kUnits) {
                if (kernels->isa == Isa::plain && ffn > 200) continue;  // too slow to wait for
                for (const int m : kRows) {
                    test::Random random(++seed);
                    const int run = type == WeightType::int8 || type == WeightType::int4
                                        ? kRuns[seed / 2 % 2]
                                        : 1;
                    const test::Packed in = test::pack(random, type, 2 * ffn, kWidth, run);
                    const test::Packed out = test::pack(random, type, kWidth, ffn, run);
                    const std::vector<float> bias = random.floats(size_t(2) * ffn);
                    const std::vector<float> norm_w = random.floats(kWidth, 0.5f, 2.0f);
                    const std::vector<float> before = random.floats(size_t(m) * kWidth, -2, 2);
                    const Matrix gate_up = {type,
                                            in.bytes.data(),
                                            in.scale.data(),
                                            seed % 2 == 0 ? bias.data() : nullptr,
                                            2 * ffn,
                                            kWidth,
                                            run};
                    const Matrix down = {
                        type, out.bytes.data(), out.scale.data(), nullptr, kWidth, ffn, run};
                    const Norm norm = {norm_w.data(), 1e-6f};

                    Runtime parts(*kernels, 1);
                    std::vector<float> want = before, normed(want.size());
                    std::vector<float> both(size_t(m) * 2 * ffn), gated(size_t(m) * ffn);
                    parts.rms_norm(norm, want.data(), normed.data(), m, kWidth);
                    parts.linear(gate_up, normed.data(), m, both.data());
                    kernels->swiglu({both.data(), both.data() + ffn, gated.data(), m, ffn,
                                     int64_t{2} * ffn, ffn});
                    parts.linear(down, gated.data(), m, want.data(), true);
                    for (const int threads : {1, 2, 3}) {
                        std::vector<float> got = before;
                        Runtime(*kernels, threads).mlp(norm, gate_up, down, got.data(), m);
                        if (std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) != 0) {
                            test::fail(__FILE__, __LINE__,
                                       "type " + std::to_string(i) + " M=" + std::to_string(m) +
                                           " F=" + std::to_string(ffn) +
                                           " threads=" + std::to_string(threads) + ": differs");
                        }
                    }
                }
            }
        }
    }
}

TEST(isa_is_capped_by_the_environment) {
    setenv("LATRT_ISA", "avx2", 1);
    CHECK(int(best_kernels().isa) <= int(Isa::avx2));
    setenv("LATRT_ISA", "plain", 1);
    CHECK(best_kernels().isa == Isa::plain);
    setenv("LATRT_ISA", "sse9", 1);
    bool refused = false;
    try {
        best_kernels();
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
    unsetenv("LATRT_ISA");
    CHECK(&best_kernels() == test::levels().back());
}

TEST(linear_quantise_rounds_to_the_nearest_code) {
    for (const Kernels* kernels : test::levels()) {
        for (uint64_t seed = 0; seed < 60; ++seed) {
            test::Random random(seed);
            const int largest = largest_code(seed % 2 == 0 ? WeightType::int8 : WeightType::int4);
            const int run = seed / 2 % 2 == 0 ? 1 : kScaleRun, size = run * kBlock;
            const int m = random.size(5), k = random.size(300), groups = num_scales(k, run);
            const std::vector<float> x = random.floats(size_t(m) * k, -3, 3);
            std::vector<int8_t> codes(size_t(m) * groups * size, 99);
            std::vector<float> scale = poison(size_t(m) * groups);
            std::vector<int32_t> neg_sum(size_t(m) * groups, -1);
            kernels->quantise(
                {x.data(), codes.data(), scale.data(), neg_sum.data(), m, k, k, largest, run});
            std::vector<int> want;
            std::vector<float> want_scale;
            reference::quantise(x, m, k, largest, size, want, want_scale);
            for (int row = 0; row < m; ++row) {
                for (int i = 0; i < groups * size; ++i) {
                    const size_t group = size_t(row) * groups + i / size;
                    const int code = codes[group * size + i % size];
                    neg_sum[group] += code;
                    CHECK(std::abs(code) <= largest);
                    const float value = i < k ? x[size_t(row) * k + i] : 0.0f;
                    CHECK(std::fabs(value - float(code) * scale[group]) <= 0.5001f * scale[group]);
                    if (i < k) CHECK(std::abs(code - want[size_t(row) * k + i]) <= 1);
                    CHECK(std::fabs(scale[group] - want_scale[group]) <= 1e-6f * scale[group]);
                }
            }
            for (int32_t rest : neg_sum) CHECK(rest == 0);
        }
    }
}

TEST(linear_quantise_of_zeros_and_of_what_is_not_finite) {
    for (const Kernels* kernels : test::levels()) {
        for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
            std::vector<float> x(96, 0.0f);
            x[40] = bad;
            std::vector<int8_t> codes(96, 99);
            std::vector<float> scale(3, -1);
            std::vector<int32_t> neg_sum(3, -1);
            kernels->quantise({x.data(), codes.data(), scale.data(), neg_sum.data(), 1, 96, 96});
            CHECK(scale[0] == 0 && scale[2] == 0 && std::isnan(scale[1]));
            for (int i = 0; i < 32; ++i) CHECK(codes[i] == 0);
            codes.resize(128, 99);
            kernels->quantise(
                {x.data(), codes.data(), scale.data(), neg_sum.data(), 1, 96, 96, 127, kScaleRun});
            CHECK(std::isnan(scale[0]) && scale[2] == 0);
        }
    }
}

TEST(linear_rows_unpack_to_the_weights) {
    for (const Kernels* kernels : test::levels()) {
        for (int type = 0; type < kNumWeightTypes; ++type) {
            for (uint64_t seed = 0; seed < 10; ++seed) {
                test::Random random(seed);
                const int n = random.size(70), k = random.size(100);
                const int scale_run = seed % 2 == 0 ? 4 : 1;
                const test::Packed packed = test::pack(random, WeightType(type), n, k, scale_run);
                for (int row = 0; row < n; ++row) {
                    std::vector<float> y = poison(size_t(k));
                    kernels->unpack_row({packed.bytes.data(), packed.scale.data(), y.data(),
                                         WeightType(type), row, k, scale_run});
                    CHECK(std::equal(y.begin(), y.end(), packed.w.begin() + int64_t{row} * k));
                }
            }
        }
    }
}
