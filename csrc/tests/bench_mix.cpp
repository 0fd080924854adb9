// What bounds a batch of a few rows on AVX2: how many vector instructions a core starts a cycle in
// the mixes that the int4 and int8 kernels are made of, and what these kernels do with all their
// data in the L1 cache.
//
//     latrt_bench_mix
//
// One core. All run in turns; of the rounds, the best tenth, and the median in brackets.
#include "tests/bench.h"
#include "tests/layer.h"

using namespace latrt;
using test::Entry;

namespace {

constexpr int kSteps = 20000;

#if defined(__x86_64__)
// A loop in assembly, so that no compiler changes the mix. Sums are ymm0 to 3 and ymm10 to 13.
#define LATRT_LOOP(name, body)                                                                     \
    void name(const char* data) {                                                                  \
        long left = kSteps;                                                                        \
        asm volatile(".p2align 6\n1:\n" body "dec %0\njnz 1b\nvzeroupper\n"                        \
                     : "+r"(left)                                                                  \
                     : "r"(data)                                                                   \
                     : "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8",     \
                       "ymm9", "ymm10", "ymm11", "ymm12", "ymm13", "ymm14", "ymm15", "rax", "cc"); \
    }
#define LATRT_EACH_SUM(body) ".irp i,0,1,2,3,10,11,12,13\n" body ".endr\n"

LATRT_LOOP(clock_chain, ".rept 16\nadd $1, %%rax\n.endr\n")
LATRT_LOOP(additions, LATRT_EACH_SUM("vpaddw %%ymm15, %%ymm\\i, %%ymm\\i\n"))
LATRT_LOOP(products, LATRT_EACH_SUM("vpmaddubsw %%ymm14, %%ymm15, %%ymm\\i\n"))
LATRT_LOOP(both, LATRT_EACH_SUM("vpmaddubsw %%ymm14, %%ymm15, %%ymm4\n"
                                "vpaddw %%ymm4, %%ymm\\i, %%ymm\\i\n"))

// The products of 4 rows, 16 outputs and 32 inputs, as the kernels have them: weights ready for
// use (int8 as numbers and as magnitudes), activations broadcast.
LATRT_LOOP(int4_rows,
           ".irp g,0,1,2,3,4,5,6,7\n"
           "vmovdqa 64*\\g(%1), %%ymm4\n"
           "vmovdqa 64*\\g+32(%1), %%ymm5\n"
           ".irp m,0,1,2,3\n"
           "vpbroadcastd 1024+16*\\g+4*\\m(%1), %%ymm6\n"
           "vpmaddubsw %%ymm6, %%ymm4, %%ymm7\n"
           "vpaddw %%ymm7, %%ymm\\m, %%ymm\\m\n"
           "vpmaddubsw %%ymm6, %%ymm5, %%ymm8\n"
           "vpaddw %%ymm8, %%ymm1\\m, %%ymm1\\m\n"
           ".endr\n"
           ".endr\n")
LATRT_LOOP(int8_rows,
           ".irp g,0,1,2,3,4,5,6,7\n"
           "vmovdqa 128*\\g(%1), %%ymm4\n"
           "vmovdqa 128*\\g+32(%1), %%ymm5\n"
           "vmovdqa 128*\\g+64(%1), %%ymm14\n"
           "vmovdqa 128*\\g+96(%1), %%ymm15\n"
           ".irp m,0,1,2,3\n"
           "vpbroadcastd 1024+16*\\g+4*\\m(%1), %%ymm6\n"
           "vpsignb %%ymm4, %%ymm6, %%ymm7\n"
           "vpmaddubsw %%ymm7, %%ymm14, %%ymm7\n"
           "vpmaddwd %%ymm9, %%ymm7, %%ymm7\n"
           "vpaddd %%ymm7, %%ymm\\m, %%ymm\\m\n"
           "vpsignb %%ymm5, %%ymm6, %%ymm8\n"
           "vpmaddubsw %%ymm8, %%ymm15, %%ymm8\n"
           "vpmaddwd %%ymm9, %%ymm8, %%ymm8\n"
           "vpaddd %%ymm8, %%ymm1\\m, %%ymm1\\m\n"
           ".endr\n"
           ".endr\n")

struct Mix {
    const char* name;
    void (*loop)(const char*);
    int instructions;   // of vectors, in one step; not counted: loads, broadcasts
    double operations;  // in one step, a product and its sum being two
};
constexpr Mix kMixes[] = {
    {"additions of 16 bits", additions, 8, 0},
    {"products of bytes", products, 8, 8 * 64},
    {"product and addition", both, 16, 8 * 64},
    {"int4, 4 rows by 16 outputs", int4_rows, 128, 4096},
    {"int8, 4 rows by 16 outputs", int8_rows, 256, 4096},
};
#endif

constexpr int kRows = 8, kInputs = 1024, kCalls = 500;

}  // namespace

int main() {
    std::vector<Entry> entries;
    size_t mixes = 0;
#if defined(__x86_64__)
    alignas(64) static char data[2048];
    if (cpu_has(Isa::avx2)) {
        entries.push_back({"clock", 0, 16.0 * kSteps, [](int) { clock_chain(data); }, {}});
        for (const Mix& mix : kMixes) {
            entries.push_back(
                {mix.name, 0, mix.operations / 2 * kSteps, [&mix](int) { mix.loop(data); }, {}});
        }
        mixes = entries.size();
    }
#endif
    std::vector<std::vector<float>> results;
    std::vector<test::Layer> layers;
    constexpr WeightType kTypes[] = {WeightType::int8, WeightType::int4};
    constexpr const char* kNames[] = {" int8", " int4"};
    for (const WeightType type : kTypes) {
        layers.push_back(test::make_layer(type, 1, kRows, kLanes, kInputs));
        results.push_back(layers.back().before);
        layers.back().params.y = results.back().data();
    }
    for (int i = 0; i < kNumIsas; ++i) {
        const Kernels* kernels = find_kernels(Isa(i));
        if (kernels == nullptr || kernels->isa == Isa::plain) continue;  // too slow to wait for
        if (kernels->isa == Isa::avx512_bf16) continue;                  // as avx512
        for (size_t j = 0; j < layers.size(); ++j) {
            const auto linear = kernels->linear[int(kTypes[j])];
            entries.push_back({std::string(isa_name(kernels->isa)) + kNames[j],
                               0,
                               double(kCalls) * kRows * kLanes * kInputs,
                               [=, &layers](int) {
                                   for (int c = 0; c < kCalls; ++c) linear(layers[j].params);
                               },
                               {}});
        }
    }
    test::measure(entries);
    size_t at = 0;
#if defined(__x86_64__)
    if (mixes > 0) {
        const Entry& clock = entries[at++];
        const double hertz = clock.products / clock.best();
        std::printf("one core, %.2f GHz (%.2f) by a chain of additions\n\n", hertz / 1e9,
                    clock.products / clock.median() / 1e9);
        std::printf("%-28s%-24s%s\n", "loop", "instructions a cycle", "Gop/s");
        for (; at < mixes; ++at) {
            const Entry& entry = entries[at];
            const double count = double(kMixes[at - 1].instructions) * kSteps;
            std::printf("%-28s%.2f (%.2f)", entry.name.c_str(), count / entry.best() / hertz,
                        count / entry.median() / hertz);
            if (entry.products > 0) {
                std::printf("%15.0f (%.0f)", 2 * entry.products / entry.best() / 1e9,
                            2 * entry.products / entry.median() / 1e9);
            }
            std::printf("\n");
        }
        std::printf("\n");
    }
#endif
    std::printf("kernels in the L1 cache, %d rows, N=%d K=%d\n", kRows, kLanes, kInputs);
    for (; at < entries.size(); ++at) {
        const Entry& entry = entries[at];
        std::printf("%-28s%27.0f (%.0f)\n", entry.name.c_str(),
                    2 * entry.products / entry.best() / 1e9,
                    2 * entry.products / entry.median() / 1e9);
    }
}
