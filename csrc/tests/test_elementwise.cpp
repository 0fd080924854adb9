#include "kernels/cpu/reference.h"
#include "tests/pack.h"

using namespace latrt;
using test::poison;

namespace {

std::vector<float> relative(const std::vector<float>& want, float factor) {
    std::vector<float> bound;
    for (float value : want) bound.push_back(std::fabs(value) * factor + 1e-6f);
    return bound;
}

template <class F>
void each_level_and_seed(F&& check) {
    for (const Kernels* kernels : test::levels()) {
        for (uint64_t seed = 0; seed < 60; ++seed) {
            test::Random random(seed);
            check(*kernels, random);
        }
    }
}

}  // namespace

TEST(elementwise_rms_norm) {
    each_level_and_seed([](const Kernels& kernels, test::Random& random) {
        const int m = random.size(5), width = random.size(300);
        const size_t count = size_t(m) * width;
        const auto before = random.floats(count, -4, 4), residual = random.floats(count);
        const auto w = random.floats(size_t(width));
        const bool add = random.integer(0, 1);
        auto x = before, y = poison(count), sum = before;
        for (size_t i = 0; i < count && add; ++i) sum[i] += residual[i];
        kernels.rms_norm(
            {x.data(), add ? residual.data() : nullptr, w.data(), y.data(), m, width, 1e-5f});
        CHECK(x == sum);
        const auto want = reference::rms_norm(sum, w, 1e-5f);
        CHECK_NEAR("rms_norm", y, want, relative(want, 2e-6f), size_t(width));
    });
}

TEST(elementwise_swiglu) {
    each_level_and_seed([](const Kernels& kernels, test::Random& random) {
        const int m = random.size(5), ffn = random.size(200);
        auto gate_up = random.floats(size_t(m) * 2 * ffn, -20, 20);
        gate_up[0] = random.integer(0, 1) ? -1000.0f : 1000.0f;
        const int ldx = 2 * ffn + random.integer(0, 20), ldy = ffn + random.integer(0, 3);
        auto rows = poison(size_t(m) * ldx);
        for (int row = 0; row < m; ++row) {
            std::copy_n(&gate_up[size_t(row) * 2 * ffn], 2 * ffn, &rows[size_t(row) * ldx]);
        }
        auto y = poison(size_t(m) * ldy);
        kernels.swiglu({rows.data(), &rows[size_t(ffn)], y.data(), m, ffn, ldx, ldy});
        std::vector<float> got;
        for (int row = 0; row < m; ++row) {
            got.insert(got.end(), &y[size_t(row) * ldy], &y[size_t(row) * ldy] + ffn);
            for (int i = ffn; i < ldy; ++i) CHECK(std::isnan(y[size_t(row) * ldy + i]));
        }
        const auto want = reference::swiglu(gate_up, ffn);
        CHECK_NEAR("swiglu", got, want, relative(want, 2e-6f), size_t(ffn));
        rows[0] = std::nanf("");
        kernels.swiglu({rows.data(), &rows[size_t(ffn)], y.data(), m, ffn, ldx, ldy});
        CHECK(std::isnan(y[0]));
    });
}

TEST(elementwise_rotate) {
    each_level_and_seed([](const Kernels& kernels, test::Random& random) {
        const int tokens = random.size(5), heads = random.size(5), dim = 2 * random.size(64);
        const int64_t ldx = int64_t{heads} * dim + random.integer(0, 5);
        const auto x = random.floats(size_t(tokens) * heads * dim);
        const auto cos = random.floats(size_t(tokens) * dim / 2);
        const auto sin = random.floats(size_t(tokens) * dim / 2);
        auto y = poison(size_t(tokens * ldx));
        for (size_t i = 0; i < x.size(); ++i) y[i / (heads * dim) * ldx + i % (heads * dim)] = x[i];
        kernels.rotate({y.data(), cos.data(), sin.data(), tokens, heads, dim, ldx});
        std::vector<float> got;
        for (size_t i = 0; i < x.size(); ++i)
            got.push_back(y[i / (heads * dim) * ldx + i % (heads * dim)]);
        const auto want = reference::rotate(x, cos, sin, heads, dim);
        CHECK_NEAR("rotate", got, want, relative(want, 1e-6f), size_t(dim));
    });
}

TEST(elementwise_gelu) {
    std::vector<float> x = {-30, -1, -0.5f, 0, 0.5f, 1, 30};
    const std::vector<float> want = {0, -0.158655254f, -0.154268769f, 0, 0.345731231f, 0.841344746f,
                                     30};
    best_kernels().gelu({x.data(), int64_t(x.size())});
    CHECK_NEAR("gelu", x, want, relative(want, 1e-6f), 1);
}

TEST(elementwise_top_k) {
    each_level_and_seed([](const Kernels& kernels, test::Random& random) {
        const int n = random.size(300), k = random.integer(1, std::min(n, 40));
        auto x = random.floats(size_t(n));
        for (float& value : x) value = std::round(value * 20);  // many are equal
        auto values = poison(size_t(k));
        std::vector<int32_t> index(size_t(k), -1);
        TopKParams p = {x.data(), values.data(), index.data(), n, k, false};
        kernels.top_k(p);
        const auto want = reference::top_k(x, k);
        CHECK(p.finite && std::equal(want.begin(), want.end(), index.begin()));
        for (int i = 0; i < k; ++i) CHECK(values[i] == x[size_t(want[i])]);
        x[size_t(random.integer(0, n - 1))] = random.integer(0, 1) ? std::nanf("") : -HUGE_VALF;
        kernels.top_k(p);
        CHECK(!p.finite);
    });
}
