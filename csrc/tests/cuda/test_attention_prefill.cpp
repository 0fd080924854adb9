#include "kernels/cuda/attention_prefill.h"

#include "tests/cuda/options.h"
#include "tests/cuda/sequences.h"

using namespace latrt;
using test::ActType;
using test::AttentionCase;
using test::KvType;

namespace {

// What the case launches, but for the workspace.
cuda::AttentionPrefillParams params(AttentionCase& c) {
    return {c.q->bits.data(),
            c.out->bits.data(),
            c.cache(),
            c.sequences,
            c.mass_params(c.num_visual()),
            nullptr,
            c.type,
            c.num_heads,
            c.num_sms,
            1 / std::sqrt(float(c.dim)),
            int64_t(c.q->ld),
            int64_t(c.out->ld)};
}

void check(uint64_t seed, int dim, int most_tokens, int most_keys) {
    AttentionCase c(seed, dim, most_tokens, most_keys);
    cuda::AttentionPrefillParams p = params(c);
    test::Buffer<uint8_t> workspace(cuda::attention_prefill_workspace(p));
    p.workspace = workspace.data();
    CHECK(test::finished(cuda::launch_attention_prefill(p, nullptr)) == cudaSuccess);
    c.check(__FILE__, __LINE__);
    CHECK(workspace.edges_untouched());
}

}  // namespace

TEST(attention_prefill_equals_the_reference) {
    for (int i = 0; i < test::repeats(12); ++i) {
        const uint64_t seed = test::seed() + uint64_t(i);
        check(seed, std::vector<int>{64, 80, 128}[i / 3 % 3], 40, 200);
    }
}

TEST(attention_prefill_of_a_chunk_splits_the_keys) {
    for (int i = 0; i < test::repeats(4); ++i) check(test::seed() + 300 + uint64_t(i), 64, 8, 700);
}

TEST(attention_prefill_takes_one_token_too) {
    for (int i = 0; i < test::repeats(2); ++i) check(test::seed() + 400 + uint64_t(i), 64, 1, 100);
}

#ifdef LATRT_EMULATED_TURING
TEST(attention_prefill_refuses_bf16) {
    AttentionCase c(test::seed(), 64, 7, 30);
    c.type = ActType::bf16;
    c.k->type = c.v->type = KvType::bf16;
    cuda::AttentionPrefillParams p = params(c);
    test::Buffer<uint8_t> workspace(cuda::attention_prefill_workspace(p));
    p.workspace = workspace.data();
    CHECK(test::finished(cuda::launch_attention_prefill(p, nullptr)) == cudaErrorNotSupported);
}
#endif
