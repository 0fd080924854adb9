#include "kernels/cuda/attention_prefill.h"

#include "plugins/attention_shapes.h"
#include "tests/cuda/options.h"
#include "tests/cuda/sequences.h"

using namespace latrt;
using plugins::AttentionShapes;
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

// `guard_bytes` behind the workspace must stay as they are, as must what lies further: it faults.
void run(AttentionCase& c, cuda::AttentionPrefillParams p, size_t guard_bytes = 0) {
    const size_t bytes = cuda::attention_prefill_workspace(p);
    test::Buffer<uint8_t> workspace(bytes + guard_bytes);
    p.workspace = workspace.data();
    CHECK(test::finished(cuda::launch_attention_prefill(p, nullptr)) == cudaSuccess);
    c.check(__FILE__, __LINE__);
    CHECK(workspace.edges_untouched());
    for (size_t i = bytes; i < bytes + guard_bytes; ++i) {
        if (workspace[i] == 0xff) continue;
        return test::fail(__FILE__, __LINE__, c.what + ": wrote behind its workspace");
    }
}

void check(uint64_t seed, int dim, int most_tokens, int most_keys) {
    AttentionCase c(seed, dim, most_tokens, most_keys);
    run(c, params(c));
}

// The plugin's promise to TensorRT: its workspace is enough for every smaller problem.
void check_smaller(const AttentionShapes& largest) {
    const size_t bytes = plugins::largest_workspace(largest);
    for (AttentionShapes s = largest; s.batch > 0; --s.batch) {
        for (s.length = largest.length; s.length > 0; --s.length) {
            for (int num_sms : {1, 20, 108, 132, 188, plugins::kMaxSms}) {
                const size_t needed = s.workspace(num_sms);
                if (needed <= bytes) continue;
                char text[200];
                std::snprintf(text, sizeof text,
                              "H=%d K=%d B=%d S=%d sms=%d: %zu bytes, but %zu for up to S=%d",
                              s.num_heads, s.num_kv_heads, s.batch, s.length, num_sms, needed,
                              bytes, largest.length);
                return test::fail(__FILE__, __LINE__, text);
            }
        }
    }
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

TEST(attention_prefill_of_no_visual_keys_stays_in_its_workspace) {
    for (int i = 0; i < test::repeats(3); ++i) {
        AttentionCase c(test::seed() + 500 + uint64_t(i), 64, 8, 600);
        cuda::AttentionPrefillParams p = params(c);
        p.mass = c.empty_mass_params();
        run(c, p, 1 << 16);
    }
}

TEST(attention_prefill_of_every_smaller_problem_fits_the_plugins_workspace) {
    const std::pair<int, int> heads[] = {{16, 2}, {28, 4}, {40, 8}, {64, 8}};  // 3B, 7B, 32B, 72B
    for (const auto& [num_heads, num_kv_heads] : heads) {
        for (int length : {1, 64, 512, 640, 2048, 4096}) {
            AttentionShapes s{};
            s.batch = 3;
            s.length = length;
            s.num_heads = num_heads;
            s.num_kv_heads = num_kv_heads;
            s.head_dim = 128;
            s.capacity = s.num_visual = 8192;
            check_smaller(s);
        }
    }
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
