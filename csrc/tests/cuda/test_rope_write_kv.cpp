#include "kernels/cuda/rope_write_kv.h"

#include "tests/cuda/options.h"
#include "tests/cuda/sequences.h"

using namespace latrt;
using cuda::ActType;
using cuda::KvType;
using test::Acts;
using test::AttentionCase;
using test::Buffer;

namespace {

enum class Angles { none, chosen, by_position };

// Angles as M-RoPE defines them: pair i of token t turns by position (axis of i, t) * theta_i.
struct Rope {
    Angles kind;
    int tokens, dim, section[3];
    Buffer<float> cos, sin;
    Buffer<int64_t> position_ids;
    std::vector<float> want_cos, want_sin;  // (T, D/2)

    static constexpr int kPositions = 50;

    Rope(test::Random& random, Angles angles, int num_tokens, int head_dim)
        : kind(angles),
          tokens(num_tokens),
          dim(head_dim),
          cos(size_t(angles == Angles::by_position ? kPositions : num_tokens) * head_dim / 2),
          sin(cos.size()),
          position_ids(size_t(3 * num_tokens)) {
        section[0] = random.integer(1, dim / 4);
        section[1] = random.integer(1, dim / 4 - 1);
        section[2] = dim / 2 - section[0] - section[1];
        for (size_t i = 0; i < position_ids.size(); ++i) {
            position_ids[i] = random.integer(0, kPositions - 1);
        }
        const int half = dim / 2;
        for (int t = 0; t < tokens; ++t) {
            for (int i = 0; i < half; ++i) {
                const int axis = i < section[0] ? 0 : i < section[0] + section[1] ? 1 : 2;
                const int64_t position = position_ids[size_t(axis * tokens + t)];
                const float c = std::cos(angle(position, i)), s = std::sin(angle(position, i));
                want_cos.push_back(kind == Angles::none ? 1 : c);
                want_sin.push_back(kind == Angles::none ? 0 : s);
                if (kind == Angles::chosen) {
                    cos[size_t(t * half + i)] = c, sin[size_t(t * half + i)] = s;
                }
            }
        }
        for (int p = 0; p < kPositions && kind == Angles::by_position; ++p) {
            for (int i = 0; i < half; ++i) {
                cos[size_t(p * half + i)] = std::cos(angle(p, i));
                sin[size_t(p * half + i)] = std::sin(angle(p, i));
            }
        }
    }
    float angle(int64_t position, int pair) const {
        return float(position) * std::pow(10000.0f, -2.0f * float(pair) / float(dim));
    }
};

// The largest error of a value that was rotated, then rounded to `act` or to codes.
float bound_of(float want, float top, ActType act, KvType kv, bool cached) {
    const float rounded = std::fabs(want) * test::roundoff(act) + 2e-6f;
    if (!cached || !test::is_codes(kv)) return rounded;
    if (kv == KvType::int8) return top / 127 * 0.501f + 1e-6f;
    return std::fabs(want) * 0.0626f + top / 448 * 0x1p-10f + 1e-6f;
}

void check(uint64_t seed, int dim) {
    AttentionCase c(seed, dim, 9, 60);
    test::Random random(seed + 1);
    const Angles kind =
        std::vector<Angles>{Angles::none, Angles::chosen, Angles::by_position}[random.bits() % 3];
    const int rows = c.num_rows, heads = random.integer(0, 4) ? c.num_heads : 0;
    Rope rope(random, kind, rows, dim);
    Acts k(c.type, rows, size_t(c.num_kv_heads) * dim, size_t(c.num_kv_heads) * dim + 8);
    Acts v(c.type, rows, k.columns, k.columns);
    k.fill(random, 3), v.fill(random, 3);
    const bool in_place = random.bits() % 2;
    Acts& q_out = in_place ? *c.q : *c.out;
    std::vector<float> q_before;
    for (int t = 0; t < rows; ++t) {
        for (size_t i = 0; i < c.q->columns; ++i) q_before.push_back(c.q->at(size_t(t), i));
    }
    test::CacheTensor& kc = *c.k;
    std::vector<uint8_t> k_before(kc.bytes.data(), kc.bytes.data() + kc.bytes.size());
    cuda::RopeWriteKvParams p = {};
    p.q = c.q->bits.data(), p.q_out = q_out.bits.data();
    p.k = k.bits.data(), p.v = v.bits.data();
    p.cache = c.cache(), p.sequences = c.sequences;
    if (kind != Angles::none) p.cos = rope.cos.data(), p.sin = rope.sin.data();
    if (kind == Angles::by_position) p.position_ids = rope.position_ids.data();
    for (int i = 0; i < 3; ++i) p.mrope_section[i] = rope.section[i];
    p.num_tokens = rows, p.type = c.type, p.num_heads = heads;
    p.ldq = int64_t(c.q->ld), p.ldq_out = int64_t(q_out.ld);
    p.ldk = int64_t(k.ld), p.ldv = int64_t(v.ld);
    CHECK(test::finished(cuda::launch_rope_write_kv(p, nullptr)) == cudaSuccess);

    const int half = dim / 2;
    std::vector<float> got, want, bound;
    std::vector<bool> written(kc.bytes.size() / size_t(kc.bytes.size() ? dim : 1), false);
    const auto expect = [&](float value, float exact, float top, bool cached) {
        got.push_back(value), want.push_back(exact);
        bound.push_back(bound_of(exact, top, c.type, kc.type, cached));
    };
    // One row x of D values that turned into what `read` gives.
    const auto expect_row = [&](auto x, int t, bool turns, bool cached, auto read) {
        std::vector<float> turned;
        float top = 0;
        for (int d = 0; d < dim; ++d) {
            const size_t at = size_t(t * half + d % half);
            const float cos = turns ? rope.want_cos[at] : 1, sin = turns ? rope.want_sin[at] : 0;
            turned.push_back(d < half ? x(d) * cos - x(d + half) * sin
                                      : x(d) * cos + x(d - half) * sin);
            top = std::max(top, std::fabs(turned.back()));
        }
        for (int d = 0; d < dim; ++d) expect(read(d), turned[size_t(d)], top, cached);
    };
    for (int b = 0; b < c.sequences.batch; ++b) {
        for (int i = 0; i < c.query_len[size_t(b)]; ++i) {
            const int t = c.first_row[size_t(b)] + i;
            const int position = c.kv_len[size_t(b)] - c.query_len[size_t(b)] + i;
            for (int h = 0; h < heads; ++h) {
                expect_row([&](int d) { return q_before[size_t(t) * c.q->columns + h * dim + d]; },
                           t, true, false,
                           [&](int d) { return q_out.at(size_t(t), size_t(h * dim + d)); });
            }
            for (int h = 0; h < c.num_kv_heads; ++h) {
                const int64_t place = kc.row(b, h, position);
                expect_row([&](int d) { return k.at(size_t(t), size_t(h * dim + d)); }, t, true,
                           true, [&](int d) { return kc.get(place, d); });
                expect_row([&](int d) { return v.at(size_t(t), size_t(h * dim + d)); }, t, false,
                           true, [&](int d) { return c.v->get(place, d); });
                for (int byte = 0; byte < dim * (test::is_codes(kc.type) ? 1 : 2); ++byte) {
                    k_before[size_t(place * dim * (test::is_codes(kc.type) ? 1 : 2) + byte)] =
                        kc.bytes[size_t(place * dim * (test::is_codes(kc.type) ? 1 : 2) + byte)];
                }
            }
        }
    }
    CHECK_NEAR(c.what + " angles " + std::to_string(int(kind)), got, want, bound, size_t(dim));
    CHECK(std::equal(k_before.begin(), k_before.end(), kc.bytes.data()));  // nothing else written
    CHECK(kc.bytes.edges_untouched() && c.v->bytes.edges_untouched() &&
          q_out.bits.edges_untouched());
}

}  // namespace

TEST(rope_write_kv_equals_the_definition) {
    for (int i = 0; i < test::repeats(60); ++i) {
        check(test::seed() + uint64_t(i), std::vector<int>{64, 80, 128}[i / 3 % 3]);
    }
}

TEST(rope_write_kv_keeps_what_is_no_number) {
    for (const KvType kv : {KvType::f16, KvType::int8, KvType::e4m3}) {
        Acts k(ActType::f16, 2, 64, 64), v(ActType::f16, 2, 64, 64);
        test::Random random(3);
        k.fill(random, 1), v.fill(random, 1);
        k.bits[5] = 0x7e00;                               // a NaN in the first key
        for (size_t d = 64; d < 128; ++d) v.bits[d] = 0;  // and a value of zeros
        test::CacheTensor kc(kv, 1, 1, 64, 2, 0), vc(kv, 1, 1, 64, 2, 0);
        Buffer<int32_t> kv_len(std::vector<int32_t>{2});
        cuda::RopeWriteKvParams p = {};
        p.k = k.bits.data(), p.v = v.bits.data();
        p.cache = {
            kc.bytes.data(), vc.bytes.data(), kc.scale.data(), vc.scale.data(), kv, 1, 64, 2, 2, 2};
        p.sequences = {1, 2, 2, nullptr, nullptr, kv_len.data(), 0};
        p.num_tokens = 2, p.type = ActType::f16, p.ldk = p.ldv = 64;
        CHECK(test::finished(cuda::launch_rope_write_kv(p, nullptr)) == cudaSuccess);
        CHECK(std::isnan(kc.get(0, 5)));
        for (int d = 0; d < 64; ++d) CHECK(vc.get(1, d) == 0 && std::isfinite(kc.get(1, d)));
    }
}
