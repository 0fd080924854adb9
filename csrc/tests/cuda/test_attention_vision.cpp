#include "kernels/cuda/attention_vision.h"

#include "kernels/cpu/reference.h"
#include "tests/cuda/formats.h"
#include "tests/cuda/options.h"

using namespace latrt;
using cuda::ActType;
using test::Acts;
using test::Buffer;

namespace {

void check(uint64_t seed, int dim) {
    test::Random random(seed);
    const ActType type = random.bits() % 2 || !test::kBf16 ? ActType::f16 : ActType::bf16;
    const int windows = random.integer(1, 4), heads = random.integer(1, 3);
    const bool packed = random.bits() % 2;
    std::vector<int32_t> lengths, starts;
    int longest = 1;
    for (int w = 0; w < windows; ++w) {
        lengths.push_back(random.integer(0, 5) ? random.size(150) : 0);
        longest = std::max(longest, int(lengths.back()));
    }
    int rows = 0;
    for (int w = 0; w < windows; ++w) {
        starts.push_back(packed ? rows : w * longest);
        rows = packed ? rows + lengths[size_t(w)] : (w + 1) * longest;
    }
    std::vector<int32_t> cu = starts;
    cu.push_back(rows);
    Buffer<int32_t> cu_seqlens(cu), length(lengths);
    const size_t columns = size_t(heads * dim);
    Acts q(type, rows, columns, columns * 3), k(type, rows, columns, columns + 8);
    Acts v(type, rows, columns, columns), out(type, rows, columns, columns + 16);
    q.fill(random, random.uniform(0.5f, 5)), k.fill(random, 1), v.fill(random, 2);
    const float scale = 1 / std::sqrt(float(dim));
    CHECK(test::finished(cuda::launch_attention_vision(
              {q.bits.data(), k.bits.data(), v.bits.data(), out.bits.data(),
               packed ? cu_seqlens.data() : nullptr, packed ? nullptr : length.data(), type,
               windows, longest, heads, dim, scale, int64_t(q.ld), int64_t(k.ld), int64_t(v.ld),
               int64_t(out.ld)},
              nullptr)) == cudaSuccess);
    std::vector<bool> real(size_t(rows), false);
    for (int w = 0; w < windows; ++w) {
        const int count = lengths[size_t(w)], start = starts[size_t(w)];
        for (int h = 0; h < heads && count > 0; ++h) {
            reference::Attention a = {{}, {}, {}, count, 1, dim, count, false};
            std::vector<float> got, bound, want, magnitude, unused;
            for (int t = start; t < start + count; ++t) {
                real[size_t(t)] = true;
                for (int d = 0; d < dim; ++d) {
                    const size_t row = size_t(t), column = size_t(h * dim + d);
                    a.q.push_back(q.at(row, column)), a.k.push_back(k.at(row, column));
                    a.v.push_back(v.at(row, column)), got.push_back(out.at(row, column));
                }
            }
            reference::attention(a, scale, want, unused);
            for (float& value : a.v) value = std::fabs(value);
            reference::attention(a, scale, magnitude, unused);
            for (size_t i = 0; i < want.size(); ++i) {
                bound.push_back(test::roundoff(type) * (magnitude[i] + std::fabs(want[i])) + 1e-5f);
            }
            char what[120];
            std::snprintf(what, sizeof what, "seed %d %s D=%d window %d of %d rows, head %d",
                          int(seed), test::name(type), dim, w, count, h);
            CHECK_NEAR(what, got, want, bound, size_t(dim));
        }
    }
    for (int t = 0; t < rows; ++t) CHECK(real[size_t(t)] || out.untouched(size_t(t)));
    CHECK(out.bits.edges_untouched());
}

}  // namespace

TEST(attention_vision_equals_the_reference) {
    for (int i = 0; i < test::repeats(9); ++i) {
        check(test::seed() + uint64_t(i), std::vector<int>{64, 80, 128}[i % 3]);
    }
}

TEST(attention_vision_refuses_bf16_where_nothing_multiplies_it) {
    Buffer<uint16_t> rows(size_t{64});
    const auto status = test::finished(
        cuda::launch_attention_vision({rows.data(), rows.data(), rows.data(), rows.data(), nullptr,
                                       nullptr, ActType::bf16, 1, 1, 1, 64, 0.125f, 64, 64, 64, 64},
                                      nullptr));
    CHECK(status == (test::kBf16 ? cudaSuccess : cudaErrorNotSupported));
}
