// How fast attention is, by level and type of the cache, beside a loop of nothing but
// multiply-adds.
//
//     latrt_bench_attention [tokens] [keys before them] [group] [head_dim]
//
// One thread and one KV head; all kernels run in turns. Of the rounds, the best tenth, and the
// median in brackets.
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/kernels.h"
#include "tests/bench.h"
#include "tests/check.h"

using namespace latrt;
using test::Entry;

namespace {

constexpr int kChains = 12, kSteps = 200000;

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) float multiply_adds() {
    __m256 sums[kChains], one = _mm256_set1_ps(1.0f);
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm256_setzero_ps();
    for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; ++j) {
            sums[j] = _mm256_fmadd_ps(one, one, sums[j]);
            asm volatile("" : "+x"(sums[j]));
        }
    }
    float total = 0;
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) total += _mm256_cvtss_f32(sums[j]);
    return total;
}
#endif

}  // namespace

int main(int argc, char** argv) {
    const int tokens = argc > 1 ? std::atoi(argv[1]) : 64,
              past = argc > 2 ? std::atoi(argv[2]) : 1024;
    const int group = argc > 3 ? std::atoi(argv[3]) : 8, dim = argc > 4 ? std::atoi(argv[4]) : 128;
    const int64_t places = round_up(past + tokens, kLanes), wide = round_up(dim, kLanes);
    test::Random random(1);
    const std::vector<float> q = random.floats(size_t(tokens) * group * dim);
    // Codes, halves and floats alike: small numbers, none of them subnormal or infinite.
    std::vector<uint32_t> k(size_t(places * dim)), v(size_t(places * wide));
    for (uint32_t& bits : k) bits = (random.bits() & 0x83ff83ffu) | 0x30003000u;
    for (uint32_t& bits : v) bits = (random.bits() & 0x83ff83ffu) | 0x30003000u;
    const std::vector<float> scales(size_t(places), 0.01f);
    std::vector<float> out(q.size()), mass(size_t(past + tokens));
    std::vector<float> scratch(size_t(attention_scratch(group, dim, past + tokens)));
    float sink = 0;
    std::vector<Entry> entries;
#if defined(__x86_64__)
    if (cpu_has(Isa::avx2)) {
        entries.push_back({"multiply-adds, AVX2",
                           0,
                           8.0 * kChains * kSteps,
                           [&](int) { sink += multiply_adds(); },
                           {}});
    }
#endif
    const double pairs = double(tokens) * past + double(tokens) * (tokens + 1) / 2;
    for (int i = 0; i < kNumIsas; ++i) {
        const Kernels* kernels = find_kernels(Isa(i));
        if (kernels == nullptr) continue;
        for (const KvType type : {KvType::f32, KvType::bf16, KvType::f16, KvType::int8}) {
            constexpr const char* kNames[] = {"f32", "bf16", "f16", "int8"};
            const int64_t row = int64_t{group} * dim;
            const float* scale = type == KvType::int8 ? scales.data() : nullptr;
            for (float* to : {static_cast<float*>(nullptr), mass.data()}) {
                const AttentionParams p = {q.data(),       k.data(), v.data(), out.data(), to,
                                           scratch.data(), type,     tokens,   group,      dim,
                                           past + 1,       true,     0.1f,     row,        row,
                                           scale,          scale};
                entries.push_back({std::string(isa_name(kernels->isa)) + " " + kNames[int(type)] +
                                       (to ? ", mass" : ""),
                                   0,
                                   2.0 * pairs * group * dim,
                                   [=](int) { kernels->attention(p); },
                                   {}});
            }
        }
    }
    test::measure(entries);
    std::printf("%d tokens, %d keys before them, group %d, head_dim %d\n", tokens, past, group,
                dim);
    for (const Entry& entry : entries) {
        const double work = 2 * entry.products / 1e9;
        std::printf("%-20s %7.1f (%6.1f) Gflop/s\n", entry.name.c_str(), work / entry.best(),
                    work / entry.median());
    }
    return sink == 42.0f;  // keeps the sums
}
