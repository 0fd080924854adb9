#include "kernels/cuda/kv_reinject.h"

#include <memory>

#include "tests/cuda/formats.h"
#include "tests/cuda/options.h"

using namespace latrt;
using cuda::KvType;
using test::Buffer;
using test::CacheTensor;

namespace {

void check(uint64_t seed) {
    test::Random random(seed);
    const KvType type = static_cast<KvType>(seed % 4);
    const int dim = std::vector<int>{64, 80, 128}[seed / 4 % 3], heads = random.integer(1, 3);
    const int layers = random.integer(1, 4), batch = random.integer(1, 2), b = batch - 1;
    const int first = random.size(60), count = random.size(30);
    const int capacity = first + count + random.integer(0, 3), bytes = test::is_codes(type) ? 1 : 2;
    std::vector<std::unique_ptr<CacheTensor>> k, v;
    std::vector<void*> k_data, v_data;
    std::vector<float*> k_scale, v_scale;
    std::vector<std::vector<uint8_t>> before;
    for (int i = 0; i < layers; ++i) {
        k.push_back(std::make_unique<CacheTensor>(type, batch, heads, dim, capacity, 2));
        v.push_back(std::make_unique<CacheTensor>(type, batch, heads, dim, capacity, 2));
        for (int h = 0; h < heads; ++h) {
            for (int c = 0; c < first; ++c) {
                k.back()->fill(random, k.back()->row(b, h, c), 2);
                v.back()->fill(random, v.back()->row(b, h, c), 2);
            }
        }
        k_data.push_back(k.back()->bytes.data()), v_data.push_back(v.back()->bytes.data());
        k_scale.push_back(k.back()->scale.data()), v_scale.push_back(v.back()->scale.data());
        before.emplace_back(k.back()->bytes.data(),
                            k.back()->bytes.data() + k.back()->bytes.size());
    }
    std::vector<int64_t> source;
    for (int i = 0; i < count; ++i) source.push_back(random.integer(0, first - 1));
    Buffer<int64_t> sources(source);
    Buffer<float> cos(size_t(dim / 2)), sin(size_t(dim / 2));
    for (size_t i = 0; i < cos.size(); ++i) {
        const float angle = random.uniform(-3, 3);
        cos[i] = std::cos(angle), sin[i] = std::sin(angle);
    }
    const bool codes = test::is_codes(type);
    const cuda::KvReinjectParams p = {k_data.data(),
                                      v_data.data(),
                                      codes ? k_scale.data() : nullptr,
                                      codes ? v_scale.data() : nullptr,
                                      sources.data(),
                                      cos.data(),
                                      sin.data(),
                                      type,
                                      layers,
                                      heads,
                                      dim,
                                      k[0]->batch_rows,
                                      capacity,
                                      b,
                                      count,
                                      first};
    CHECK(test::finished(cuda::launch_kv_reinject(p, nullptr)) == cudaSuccess);
    char what[120];
    std::snprintf(what, sizeof what, "seed %d %s D=%d K=%d L=%d N=%d first=%d", int(seed),
                  test::name(type), dim, heads, layers, count, first);
    for (int layer = 0; layer < layers; ++layer) {
        CacheTensor &keys = *k[size_t(layer)], &values = *v[size_t(layer)];
        std::vector<float> got, want, bound;
        bool values_kept = true;
        for (int h = 0; h < heads; ++h) {
            for (int i = 0; i < count; ++i) {
                const int64_t from = keys.row(b, h, int(source[size_t(i)]));
                const int64_t to = keys.row(b, h, first + i);
                float top = 0;
                const size_t begin = want.size();
                for (int d = 0; d < dim; ++d) {
                    const int half = dim / 2, other = d < half ? d + half : d - half;
                    const float sign = d < half ? -1.0f : 1.0f;
                    want.push_back(keys.get(from, d) * cos[size_t(d % half)] +
                                   sign * keys.get(from, other) * sin[size_t(d % half)]);
                    got.push_back(keys.get(to, d));
                    top = std::max(top, std::fabs(want.back()));
                }
                for (size_t d = begin; d < want.size(); ++d) {
                    const float size = std::fabs(want[d]);
                    bound.push_back(type == KvType::int8 ? top / 127 * 0.501f + 1e-6f
                                    : type == KvType::e4m3
                                        ? size * 0.0626f + top / 448 * 0x1p-10f + 1e-6f
                                        : size * test::roundoff(keys.act()) + 2e-6f);
                }
                values_kept &=
                    !std::memcmp(&values.bytes[size_t(from * dim * bytes)],
                                 &values.bytes[size_t(to * dim * bytes)], size_t(dim * bytes));
                if (codes) {
                    values_kept &= values.scale[size_t(from)] == values.scale[size_t(to)];
                }
                std::memcpy(&before[size_t(layer)][size_t(to * dim * bytes)],
                            &keys.bytes[size_t(to * dim * bytes)], size_t(dim * bytes));
            }
        }
        CHECK_NEAR(what, got, want, bound, size_t(dim));
        CHECK(values_kept);
        CHECK(std::equal(before[size_t(layer)].begin(), before[size_t(layer)].end(),
                         keys.bytes.data()));  // no other key was written
        CHECK(keys.bytes.edges_untouched() && values.bytes.edges_untouched());
    }
}

}  // namespace

TEST(kv_reinject_turns_keys_and_copies_values) {
    for (int i = 0; i < test::repeats(48); ++i) check(test::seed() + uint64_t(i));
}

TEST(kv_reinject_refuses_too_many_layers) {
    cuda::KvReinjectParams p = {};
    p.num_layers = cuda::kMaxReinjectLayers + 1;
    p.num_tokens = 1;
    CHECK(test::finished(cuda::launch_kv_reinject(p, nullptr)) == cudaErrorInvalidValue);
}
