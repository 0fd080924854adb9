#include "tests/cuda/sequences.h"

namespace latrt::test {

AttentionCase::AttentionCase(uint64_t seed, int head_dim, int most_tokens, int most_keys) {
    Random random(seed);
    const int batch = random.integer(1, 3);
    dim = head_dim;
    type = random.bits() % 2 || !kBf16 ? ActType::f16 : ActType::bf16;
    const KvType plain = type == ActType::f16 ? KvType::f16 : KvType::bf16;
    const KvType kv = std::vector<KvType>{plain, KvType::int8, KvType::e4m3}[seed % 3];
    num_kv_heads = random.integer(1, 2);
    num_heads = num_kv_heads * random.integer(1, 10);
    num_sms = random.integer(0, 3) ? random.integer(1, 16) : 132;
    const bool packed = random.bits() % 2;
    int longest = 0, most_kv = 0;
    num_rows = 0;
    for (int b = 0; b < batch; ++b) {
        const bool idle = random.integer(0, 4) == 0;
        const int tokens = idle ? 0 : most_tokens == 1 ? 1 : random.size(most_tokens);
        query_len.push_back(tokens);
        kv_len.push_back(
            std::min(most_keys, tokens + (random.bits() % 4 ? random.size(most_keys) : 0)));
        longest = std::max(longest, tokens);
        most_kv = std::max(most_kv, kv_len.back());
    }
    const int spread = most_tokens == 1 ? 1 : std::max(1, longest + random.integer(0, 2));
    for (int b = 0; b < batch; ++b) {
        first_row.push_back(packed ? num_rows : b * spread);
        num_rows = packed ? num_rows + query_len[size_t(b)] : (b + 1) * spread;
    }
    const int add = random.integer(0, 1);
    std::vector<int32_t> cu(first_row.begin(), first_row.end());
    cu.push_back(num_rows);
    cu_seqlens = std::make_unique<Buffer<int32_t>>(cu);
    query_lens =
        std::make_unique<Buffer<int32_t>>(std::vector<int32_t>(query_len.begin(), query_len.end()));
    std::vector<int32_t> kv_less;
    for (int length : kv_len) kv_less.push_back(length - add);
    kv_lens = std::make_unique<Buffer<int32_t>>(kv_less);
    capacity = std::max(1, most_kv) + random.integer(0, 20);
    sequences = {batch,
                 spread,
                 random.integer(std::max(1, most_kv), capacity),
                 packed ? cu_seqlens->data() : nullptr,
                 packed ? nullptr : query_lens->data(),
                 kv_lens->data(),
                 add};

    const int gap = random.integer(0, 3);
    k = std::make_unique<CacheTensor>(kv, batch, num_kv_heads, dim, capacity, gap);
    v = std::make_unique<CacheTensor>(kv, batch, num_kv_heads, dim, capacity, gap);
    for (int b = 0; b < batch; ++b) {
        for (int head = 0; head < num_kv_heads; ++head) {
            for (int c = 0; c < kv_len[size_t(b)]; ++c) {
                k->fill(random, k->row(b, head, c), 1);
                v->fill(random, v->row(b, head, c), 2);
            }
        }
    }
    const size_t columns = size_t(num_heads) * dim;
    q = std::make_unique<Acts>(type, num_rows, columns, columns + 8 * random.integer(0, 2));
    q->fill(random, random.uniform(0.5f, 6.0f));
    out = std::make_unique<Acts>(type, num_rows, columns, columns + 8 * random.integer(0, 2));

    const int visual = random.integer(0, 4) == 0 ? 0 : random.size(300);
    std::vector<int64_t> index;
    for (int b = 0; b < batch; ++b) {
        const int begin = random.integer(0, std::max(0, kv_len[size_t(b)] - 1));
        for (int n = 0; n < visual; ++n) {
            const bool run = random.integer(0, 7) > 0;  // runs, as images make them
            index.push_back(run ? (begin + n) % std::max(1, kv_len[size_t(b)])
                                : random.integer(-2, sequences.max_kv_len + 2));
            if (n == 3) index.back() = kv_len[size_t(b)];  // the first that is none
        }
    }
    visual_index = std::make_unique<Buffer<int64_t>>(index);
    mass = std::make_unique<Buffer<float>>(index.size());
    char text[200];
    std::snprintf(text, sizeof text, "seed %d B=%d H=%d K=%d D=%d %s kv %s N=%d %s sms=%d",
                  int(seed), batch, num_heads, num_kv_heads, dim, name(type), name(kv), visual,
                  packed ? "packed" : "padded", num_sms);
    what = text;
}

void AttentionCase::check(const char* file, int line) const {
    for (int b = 0; b < sequences.batch; ++b) check_sequence(file, line, b);
    std::vector<bool> real(size_t(num_rows), false);
    for (int b = 0; b < sequences.batch; ++b) {
        for (int t = 0; t < query_len[size_t(b)]; ++t)
            real[size_t(first_row[size_t(b)] + t)] = true;
    }
    for (int row = 0; row < num_rows; ++row) {
        if (!real[size_t(row)] && !out->untouched(size_t(row))) {
            fail(file, line, what + ": wrote row " + std::to_string(row) + ", which is no token");
        }
    }
    if (!out->bits.edges_untouched() || !mass->edges_untouched()) {
        fail(file, line, what + ": wrote beside the outputs");
    }
}

void AttentionCase::check_sequence(const char* file, int line, int b) const {
    const int tokens = query_len[size_t(b)], keys = kv_len[size_t(b)],
              group = num_heads / num_kv_heads;
    const std::string here = what + " sequence " + std::to_string(b) +
                             " S=" + std::to_string(tokens) + " keys=" + std::to_string(keys);
    std::vector<float> want_mass(size_t(keys), 0.0f);
    for (int kv_head = 0; kv_head < num_kv_heads && tokens > 0; ++kv_head) {
        reference::Attention a = {{}, {}, {}, tokens, group, dim, keys - tokens + 1, true};
        for (int t = 0; t < tokens; ++t) {
            for (int i = 0; i < group * dim; ++i) {
                a.q.push_back(
                    q->at(size_t(first_row[size_t(b)] + t), size_t(kv_head * group * dim + i)));
            }
        }
        for (int c = 0; c < keys; ++c) {
            for (int d = 0; d < dim; ++d) {  // codes are decoded to the activations' type
                a.k.push_back(from_act(to_act(k->get(k->row(b, kv_head, c), d), type), type));
                a.v.push_back(from_act(to_act(v->get(v->row(b, kv_head, c), d), type), type));
            }
        }
        std::vector<float> want, head_mass, magnitude, unused, got, bound;
        const float scale = 1 / std::sqrt(float(dim));
        reference::attention(a, scale, want, head_mass);
        for (float& value : a.v) value = std::fabs(value);
        reference::attention(a, scale, magnitude, unused);
        for (int t = 0; t < tokens; ++t) {
            for (int i = 0; i < group * dim; ++i) {
                const size_t at = got.size();
                got.push_back(
                    out->at(size_t(first_row[size_t(b)] + t), size_t(kv_head * group * dim + i)));
                // Probabilities are rounded once, the result once.
                bound.push_back(roundoff(type) * (magnitude[at] + std::fabs(want[at])) + 1e-5f);
            }
        }
        check_near(file, line, here + " kv head " + std::to_string(kv_head), got, want, bound,
                   size_t(group * dim));
        for (int c = 0; c < keys; ++c) want_mass[size_t(c)] += head_mass[size_t(c)];
    }
    std::vector<float> got, want;
    for (int n = 0; n < num_visual(); ++n) {
        const size_t at = size_t(b * num_visual() + n);
        const int64_t index = (*visual_index)[at];
        got.push_back((*mass)[at]);
        want.push_back(index < 0 || index >= keys ? 0 : want_mass[size_t(index)]);
    }
    check_near(file, line, here + " mass", got, want,
               std::vector<float>(want.size(), 1e-5f * float(num_heads)), want.size());
}

}  // namespace latrt::test
