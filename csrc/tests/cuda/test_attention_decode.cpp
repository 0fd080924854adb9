#include "kernels/cuda/attention_decode.h"

#include "tests/cuda/options.h"
#include "tests/cuda/sequences.h"

using namespace latrt;
using test::ActType;
using test::AttentionCase;
using test::KvType;

namespace {

// What the case launches, but for the workspace.
cuda::AttentionDecodeParams params(AttentionCase& c) {
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

void run(AttentionCase& c, cuda::AttentionDecodeParams p) {
    test::Buffer<uint8_t> workspace(cuda::attention_decode_workspace(p));
    p.workspace = workspace.data();
    CHECK(test::finished(cuda::launch_attention_decode(p, nullptr)) == cudaSuccess);
    c.check(__FILE__, __LINE__);
    CHECK(workspace.edges_untouched());
}

void check(uint64_t seed, int dim, int most_keys, int num_sms = 0) {
    AttentionCase c(seed, dim, 1, most_keys);
    if (num_sms != 0) c.num_sms = num_sms;
    run(c, params(c));
}

}  // namespace

TEST(attention_decode_equals_the_reference) {
    for (int i = 0; i < test::repeats(18); ++i) {
        const uint64_t seed = test::seed() + uint64_t(i);
        check(seed, std::vector<int>{64, 80, 128}[i / 3 % 3], i % 2 ? 700 : 90);
    }
}

TEST(attention_decode_of_many_splits) {
    // More splits than a warp has lanes: 32 times 64 keys and more.
    for (int i = 0; i < test::repeats(6); ++i) {
        check(test::seed() + 40 + uint64_t(i), 64, 4000, 132);
    }
}

TEST(attention_decode_keeps_the_scores_of_long_splits) {
    // One or few splits: a block writes its kept scores several times.
    for (int i = 0; i < test::repeats(6); ++i) {
        check(test::seed() + 80 + uint64_t(i), 64, 900, 1);
    }
}

TEST(attention_decode_of_no_visual_keys) {
    for (int i = 0; i < test::repeats(3); ++i) {
        AttentionCase c(test::seed() + 120 + uint64_t(i), 64, 1, 600);
        cuda::AttentionDecodeParams p = params(c);
        p.mass = c.empty_mass_params();
        run(c, p);
    }
}

#ifdef LATRT_EMULATED_TURING
TEST(attention_decode_refuses_bf16) {
    AttentionCase c(test::seed(), 64, 1, 30);
    c.type = ActType::bf16;
    c.k->type = c.v->type = KvType::bf16;
    cuda::AttentionDecodeParams p = params(c);
    test::Buffer<uint8_t> workspace(cuda::attention_decode_workspace(p));
    p.workspace = workspace.data();
    CHECK(test::finished(cuda::launch_attention_decode(p, nullptr)) == cudaErrorNotSupported);
}
#endif
