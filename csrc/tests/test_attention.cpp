#include "kernels/cpu/reference.h"
#include "tests/pack.h"

using namespace latrt;
using reference::Attention;
using test::poison;

namespace {

// A cache of one sequence whose unused places are poisoned: NaN in every type, codes by their
// scale.
struct Cache {
    std::vector<uint8_t> k, v;
    std::vector<float> k_scale, v_scale;
    KvSlot slot;

    Cache(KvType type, int heads, int dim, int capacity) {
        const size_t places = size_t(heads) * capacity, bytes = size_t(kv_bytes(type));
        k.assign(places * dim * bytes, 0xff),
            v.assign(places * round_up(dim, kLanes) * bytes, 0xff);
        k_scale = poison(places), v_scale = poison(places);
        slot = {k.data(), v.data(), type, heads, dim, capacity, k_scale.data(), v_scale.data()};
        if (type != KvType::int8) slot.k_scale = slot.v_scale = nullptr;
    }
    float key(int head, int position, int d) const {
        const int64_t place = int64_t{head} * slot.capacity + position;
        return read(slot.k, (place - position % 16) * slot.head_dim + d * 16 + position % 16,
                    k_scale[size_t(place)]);
    }
    float value(int head, int position, int d) const {
        const int64_t place = int64_t{head} * slot.capacity + position;
        return read(slot.v, place * round_up(slot.head_dim, kLanes) + d, v_scale[size_t(place)]);
    }

 private:
    float read(const void* base, int64_t index, float scale) const {
        const auto* halves = static_cast<const uint16_t*>(base);
        switch (slot.type) {
            case KvType::f32:
                return static_cast<const float*>(base)[index];
            case KvType::bf16:
                return bf16_to_float(halves[index]);
            case KvType::f16:
                return f16_to_float(halves[index]);
            default:
                return float(static_cast<const int8_t*>(base)[index]) * scale;
        }
    }
};

// Rows of `dim` numbers as a cache of that type holds them.
std::vector<float> rounded(std::vector<float> values, KvType type, int dim) {
    for (size_t first = 0; first < values.size(); first += size_t(dim)) {
        float top = 0;
        for (int d = 0; d < dim; ++d) top = std::max(top, std::fabs(values[first + d]));
        for (int d = 0; d < dim; ++d) {
            float& value = values[first + d];
            if (type == KvType::bf16) value = bf16_to_float(float_to_bf16(value));
            if (type == KvType::f16) value = f16_to_float(float_to_f16(value));
            if (type == KvType::int8) {
                value = top == 0 ? 0 : std::nearbyint(value * (127 / top)) * (top / 127);
            }
        }
    }
    return values;
}

// How far a number of size `value` may be off, written anew in a row whose largest is `top`.
float rounding(KvType type, float value, float top) {
    constexpr float kParts[kNumKvTypes] = {0, 0.004f, 0.0005f, 0};
    return std::fabs(value) * kParts[int(type)] + (type == KvType::int8 ? top / 250 : 0) + 1e-6f;
}

void check_attention(const Kernels& kernels, KvType type, uint64_t seed) {
    test::Random random(seed);
    const int tokens = random.integer(0, 1) ? 1 : random.size(70), group = random.size(9);
    const int dim = random.size(80), past = random.integer(0, 200);
    const bool causal = random.integer(0, 4) > 0;
    const int first_keys = causal ? past + 1 : past + tokens, keys = past + tokens;
    const float sharp = random.uniform(0.5f, 6);
    Attention a = {random.floats(size_t(tokens) * group * dim, -sharp, sharp),
                   rounded(random.floats(size_t(keys) * dim), type, dim),
                   rounded(random.floats(size_t(keys) * dim), type, dim),
                   tokens,
                   group,
                   dim,
                   first_keys,
                   causal};
    Cache cache(type, 1, dim, int(round_up(keys, kLanes)));
    kernels.kv_write({cache.slot, a.k.data(), a.v.data(), keys, 0, dim});
    std::vector<float> out = poison(a.q.size()), mass(size_t(keys), 0.25f);
    std::vector<float> scratch = poison(size_t(attention_scratch(group, dim, keys)));
    const int64_t ld = int64_t{group} * dim;
    const float scale = 1 / std::sqrt(float(dim));
    kernels.attention({a.q.data(), cache.slot.k, cache.slot.v, out.data(),
                       causal ? mass.data() : nullptr, scratch.data(), type, tokens, group, dim,
                       first_keys, causal, scale, ld, ld, cache.slot.k_scale, cache.slot.v_scale});
    // Where products of bf16 are made, queries and softmax weights are rounded to it.
    const bool rounds = type == KvType::bf16 && kernels.isa >= Isa::avx512_bf16;
    if (rounds) a.q = rounded(a.q, type, dim);
    std::vector<float> want, want_mass, bound, unused;
    reference::attention(a, scale, want, want_mass);
    for (float& value : a.v) value = std::fabs(value);
    reference::attention(a, scale, bound, unused);
    for (float& value : bound) value = 2e-5f + (rounds ? value / 256 : 0);
    char what[160];
    std::snprintf(what, sizeof what, "%s T=%d G=%d D=%d keys=%d causal=%d kv=%d seed %d",
                  isa_name(kernels.isa), tokens, group, dim, first_keys, causal, int(type),
                  int(seed));
    CHECK_NEAR(what, out, want, bound, size_t(dim));
    if (!causal) return;
    for (float& value : want_mass) value += 0.25f;
    CHECK_NEAR(what, mass, want_mass, std::vector<float>(mass.size(), 5e-6f * float(group)),
               mass.size());
}

}  // namespace

TEST(attention_equals_the_reference) {
    for (const Kernels* kernels : test::levels()) {
        for (uint64_t seed = 0; seed < 100; ++seed) {
            for (int type = 0; type < kNumKvTypes; ++type) {
                check_attention(*kernels, KvType(type), seed + 1000 * uint64_t(type));
            }
        }
    }
}

TEST(attention_reports_numbers_that_are_not_finite) {
    for (const Kernels* kernels : test::levels()) {
        for (int type = 0; type < kNumKvTypes; ++type) {
            test::Random random(5);
            const std::vector<float> q = random.floats(8), v = random.floats(24);
            std::vector<float> k = random.floats(24);
            k[9] = std::nanf("");
            Cache cache(KvType(type), 1, 8, 16);
            kernels->kv_write({cache.slot, k.data(), v.data(), 3, 0, 8});
            std::vector<float> out(8, 0.0f), scratch(size_t(attention_scratch(1, 8, 3)));
            kernels->attention({q.data(), cache.slot.k, cache.slot.v, out.data(), nullptr,
                                scratch.data(), KvType(type), 1, 1, 8, 3, false, 1.0f, 8, 8,
                                cache.slot.k_scale, cache.slot.v_scale});
            for (float value : out) CHECK(std::isnan(value));
        }
    }
}

TEST(attention_halves_round_to_the_nearest) {
    for (uint32_t half = 0; half < 0x10000; ++half) {
        const float value = f16_to_float(uint16_t(half));
        CHECK(float_to_f16(value) == half || std::isnan(value));
        if ((half & 0x7fffu) >= 0x7bffu) continue;  // the next is infinity
        const float next = f16_to_float(uint16_t(half + 1)), middle = (value + next) / 2;
        CHECK(float_to_f16(middle) == (half % 2 == 0 ? half : half + 1));
        CHECK(float_to_f16(std::nextafter(middle, next)) == half + 1);
        CHECK(float_to_f16(std::nextafter(middle, value)) == half);
    }
    CHECK(std::isnan(f16_to_float(float_to_f16(std::nanf("")))));
    CHECK(float_to_f16(65519.0f) == 0x7bff && float_to_f16(65520.0f) == 0x7c00);
}

TEST(attention_scores_far_apart_do_not_overflow) {
    for (const Kernels* kernels : test::levels()) {
        const std::vector<float> q(4, 1.0f), v = {1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
        const std::vector<float> k = {-1e4f, 0, 0, 0, 1e4f, 0, 0, 0, 9e3f, 0, 0, 0};
        Cache cache(KvType::f32, 1, 4, 16);
        kernels->kv_write({cache.slot, k.data(), v.data(), 3, 0, 4});
        std::vector<float> out = poison(4), mass(3, 0.0f);
        std::vector<float> scratch(size_t(attention_scratch(1, 4, 3)));
        kernels->attention({q.data(), cache.slot.k, cache.slot.v, out.data(), mass.data(),
                            scratch.data(), KvType::f32, 1, 1, 4, 3, true, 1.0f, 4, 4});
        for (float value : out) CHECK(value == 2.0f);
        CHECK(mass[1] == 1.0f && mass[0] < 1e-30f && mass[2] < 1e-30f);
    }
}

TEST(attention_copies_of_keys_turn_and_values_stay) {
    for (const Kernels* kernels : test::levels()) {
        for (uint64_t seed = 0; seed < 60; ++seed) {
            test::Random random(seed);
            const KvType type = KvType(seed % kNumKvTypes);
            const int heads = random.size(3), dim = 2 * random.size(40), first = random.size(70);
            const int count = random.size(40), capacity = int(round_up(first + count, kLanes));
            const int64_t ld = int64_t{heads} * dim;
            const auto k = rounded(random.floats(size_t(first * ld)), type, dim);
            const auto v = rounded(random.floats(size_t(first * ld)), type, dim);
            Cache cache(type, heads, dim, capacity);
            kernels->kv_write({cache.slot, k.data(), v.data(), first, 0, ld});
            std::vector<float> cos, sin, k_from, want_cos, want_sin;
            for (int i = 0; i < dim / 2; ++i) {
                cos.push_back(std::cos(0.7f * float(i))), sin.push_back(std::sin(0.7f * float(i)));
            }
            std::vector<int64_t> source;
            for (int i = 0; i < count; ++i) {
                source.push_back(random.integer(0, first - 1));
                k_from.insert(k_from.end(), &k[size_t(source[i] * ld)],
                              &k[size_t(source[i] * ld)] + ld);
                want_cos.insert(want_cos.end(), cos.begin(), cos.end());
                want_sin.insert(want_sin.end(), sin.begin(), sin.end());
            }
            kernels->kv_reinject({cache.slot, source.data(), cos.data(), sin.data(), count, first});
            const auto want = reference::rotate(k_from, want_cos, want_sin, heads, dim);
            std::vector<float> got, bound;
            bool values_kept = true, sources_kept = true;
            for (int i = 0; i < count; ++i) {
                for (int j = 0; j < ld; ++j) {
                    const int head = j / dim, d = j % dim;
                    got.push_back(cache.key(head, first + i, d));
                    const int from = int(source[i]);
                    values_kept &= cache.value(head, first + i, d) == cache.value(head, from, d);
                    const size_t at = size_t(from) * ld + j;
                    const float off = type == KvType::int8 ? 1e-6f : 0.0f;
                    sources_kept &= std::fabs(cache.key(head, from, d) - k[at]) <= off;
                    sources_kept &= std::fabs(cache.value(head, from, d) - v[at]) <= off;
                }
            }
            // A turned pair is at most sqrt(2) times the largest number, which is below 1.
            for (float value : want) bound.push_back(rounding(type, value, 1.42f));
            CHECK_NEAR("reinject", got, want, bound, size_t(ld));
            CHECK(values_kept && sources_kept);
        }
    }
}
