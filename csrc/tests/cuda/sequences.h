// Random sequences over a random cache for the attention kernels, and what is expected of them.
#pragma once

#include <memory>

#include "kernels/cpu/reference.h"
#include "tests/cuda/formats.h"

namespace latrt::test {

struct AttentionCase {
    ActType type;
    cuda::Sequences sequences;
    int num_heads, num_kv_heads, dim, capacity, num_sms, num_rows;
    std::vector<int> first_row, query_len, kv_len;
    std::unique_ptr<CacheTensor> k, v;
    std::unique_ptr<Acts> q, out;
    std::unique_ptr<Buffer<int32_t>> cu_seqlens, query_lens, kv_lens;
    std::unique_ptr<Buffer<int64_t>> visual_index;
    std::unique_ptr<Buffer<float>> mass;
    std::string what;

    // Every sequence appends up to `most_tokens`, to caches of up to `most_keys`.
    AttentionCase(uint64_t seed, int head_dim, int most_tokens, int most_keys);

    cuda::KvCache cache() const {
        const bool codes = is_codes(k->type);
        return {k->bytes.data(),
                v->bytes.data(),
                codes ? k->scale.data() : nullptr,
                codes ? v->scale.data() : nullptr,
                k->type,
                num_kv_heads,
                dim,
                capacity,
                k->batch_rows,
                capacity};
    }
    cuda::MassParams mass_params(int num_visual) const {
        if (num_visual == 0) return {nullptr, nullptr, 0};
        return {visual_index->data(), mass->data(), num_visual};
    }
    // N = 0 with pointers, as an empty input has them; `mass_params(0)` is of an absent one.
    cuda::MassParams empty_mass_params() {
        visual_index = std::make_unique<Buffer<int64_t>>(0);
        mass = std::make_unique<Buffer<float>>(0);
        return {visual_index->data(), mass->data(), 0};
    }
    int num_visual() const { return int(mass->size()) / sequences.batch; }
    void check(const char* file, int line) const;

 private:
    void check_sequence(const char* file, int line, int b) const;
};

}  // namespace latrt::test
