// How fast the linear layers are beside what the machine can do: bytes of weights a second beside a
// plain read of as many bytes, products a second beside a loop of nothing but dot products.
//
//     latrt_bench [rows of activations] [threads] [huge|small] [peaks]
//
// `huge` puts the weights on huge pages, `peaks` leaves our kernels out. All kernels run in turns.
// Of the rounds, the best tenth, and the median in brackets.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "engine/runtime.h"
#include "tests/bench.h"
#include "tests/check.h"

#if defined(LATRT_AMX)
#define LATRT_LEVEL bench
#include "kernels/cpu/tiles.h"
#endif

using namespace latrt;
using test::Entry;

namespace {

// Not a power of two of outputs: rows of y would fall into the same few sets of the caches.
constexpr int kOutputs = 65584, kInputs = 2048;

#if defined(__x86_64__)
constexpr int kChains = 12, kDotSteps = 100000;

__attribute__((target("avx512f,avx512vnni"))) int dot_products() {
    __m512i sums[kChains];
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_setzero_si512();
    const __m512i ones = _mm512_set1_epi8(1);
    for (int i = 0; i < kDotSteps; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; ++j) {
            sums[j] = _mm512_dpbusd_epi32(sums[j], ones, ones);
            asm volatile("" : "+v"(sums[j]));
        }
    }
    int total = 0;
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
        total += _mm_cvtsi128_si32(_mm512_castsi512_si128(sums[j]));
    }
    return total;
}

// Sums of pairs of bf16: half of a dot product's operations.
__attribute__((target("avx512f,avx512bf16"))) float pair_products() {
    __m512 sums[kChains];
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_setzero_ps();
    const auto ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    for (int i = 0; i < kDotSteps; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; ++j) {
            sums[j] = _mm512_dpbf16_ps(sums[j], ones, ones);
            asm volatile("" : "+v"(sums[j]));
        }
    }
    float total = 0;
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) total += _mm512_cvtss_f32(sums[j]);
    return total;
}

// Products of bytes added up in 16 bits, which AVX2 has in the place of dot products: weights of 4
// bits leave room for it, those of 8 take two.
__attribute__((target("avx2"))) int byte_products() {
    __m256i sums[kChains], ones = _mm256_set1_epi8(1);
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) sums[j] = _mm256_setzero_si256();
    for (int i = 0; i < kDotSteps; ++i) {
#pragma GCC unroll 12
        for (int j = 0; j < kChains; ++j) {
            asm volatile("" : "+x"(ones));
            sums[j] = _mm256_add_epi16(sums[j], _mm256_maddubs_epi16(ones, ones));
            asm volatile("" : "+x"(sums[j]));
        }
    }
    int total = 0;
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
        total += _mm_cvtsi128_si32(_mm256_castsi256_si128(sums[j]));
    }
    return total;
}
#endif

#if defined(LATRT_AMX)
constexpr int kTileSteps = 20000, kTileChains = 4, kTileProducts = 16 * 16 * 64;

int tile_products() {
    using namespace bench;
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) shapes.set(i, 16, 64);
    alignas(64) int8_t ones[16 * 64];
    alignas(64) int32_t sums[16 * 16];
    std::fill(std::begin(ones), std::end(ones), int8_t(1));
    use_tiles(shapes);
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    load_tile<4>(ones, 64), load_tile<5>(ones, 64);
    load_tile<6>(ones, 64), load_tile<7>(ones, 64);
    for (int i = 0; i < kTileSteps; ++i) {
        dot_tiles<0, 4, 6>(), dot_tiles<1, 4, 7>(), dot_tiles<2, 5, 6>(), dot_tiles<3, 5, 7>();
    }
    store_tile<0>(sums, 64);
    release_tiles();
    return sums[0];
}
#endif

// Which is faster, reading alone or fetching a page ahead, depends on the processor.
template <bool kFetch>
uint64_t read_words(const uint64_t* words, size_t count) {
    uint64_t sum[8] = {};
    for (size_t j = 0; j + 8 <= count; j += 8) {
        if (kFetch) __builtin_prefetch(words + j + 512);
        for (int l = 0; l < 8; ++l) sum[l] ^= words[j + l];
    }
    for (int l = 1; l < 8; ++l) sum[0] ^= sum[l];
    return sum[0];
}

}  // namespace

int main(int argc, char** argv) {
    const int rows = argc > 1 ? std::atoi(argv[1]) : 1, threads = argc > 2 ? std::atoi(argv[2]) : 1;
    const bool huge = argc > 3 && std::strcmp(argv[3], "huge") == 0;
    test::Random random(1);
    const std::vector<float> x = random.floats(size_t(rows) * kInputs);
    std::vector<float> y(size_t(rows) * kOutputs);
    const size_t size = size_t(packed_bytes(WeightType::bf16, kOutputs, kInputs));
    const size_t scale_size = size_t(kOutputs) * num_blocks(kInputs) * sizeof(uint16_t);
    void* memory = mmap(nullptr, size + scale_size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    madvise(memory, size + scale_size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    auto* w = static_cast<uint8_t*>(memory);
    for (size_t i = 0; i < size; i += 4) {
        const uint32_t bits = random.bits() & 0x3f3f3f3f;
        std::memcpy(w + i, &bits, sizeof bits);
    }
    auto* scale = reinterpret_cast<uint16_t*>(w + size);
    std::fill(scale, scale + scale_size / 2, uint16_t(0x2000));
    std::vector<uint64_t> sums(size_t(threads) * 8);
    std::vector<Entry> entries;
    const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(threads);
    for (const bool fetch : {false, true}) {
        entries.push_back({fetch ? "fetched read" : "plain read",
                           double(size / 4),
                           0,
                           [&, fetch](int round) {
                               const size_t part = size / 4 / sizeof(uint64_t) / threads;
                               const auto read = fetch ? read_words<true> : read_words<false>;
                               pool->run(threads, [&](int task, int) {
                                   const auto* from = reinterpret_cast<const uint64_t*>(
                                       w + size / 4 * (size_t(round) % 4));
                                   sums[size_t(task) * 8] ^= read(from + task * part, part);
                               });
                           },
                           {}});
    }
#if defined(__x86_64__)
    if (cpu_has(Isa::avx2)) {
        const bool dots = cpu_has(Isa::avx512);
        const double products = (dots ? 64.0 : 32.0) * kChains * kDotSteps * threads;
        entries.push_back({"dot products",
                           0,
                           products,
                           [&, dots](int) {
                               pool->run(threads, [&](int task, int) {
                                   const int total = dots ? dot_products() : byte_products();
                                   sums[size_t(task) * 8] += uint64_t(total);
                               });
                           },
                           {}});
    }
    if (cpu_has(Isa::avx512_bf16)) {
        entries.push_back({"bf16 products",
                           0,
                           32.0 * kChains * kDotSteps * threads,
                           [&](int) {
                               pool->run(threads, [&](int task, int) {
                                   sums[size_t(task) * 8] += uint64_t(pair_products());
                               });
                           },
                           {}});
    }
#endif
#if defined(LATRT_AMX)
    if (cpu_has(Isa::amx)) {
        const double products = double(kTileProducts) * kTileChains * kTileSteps * threads;
        entries.push_back({"tile products",
                           0,
                           products,
                           [&](int) {
                               pool->run(threads, [&](int task, int) {
                                   sums[size_t(task) * 8] += uint64_t(tile_products());
                               });
                           },
                           {}});
    }
#endif
    std::vector<std::unique_ptr<Runtime>> runtimes;
    const bool peaks = argc > 4 && std::strcmp(argv[4], "peaks") == 0;
    for (int i = 0; i < kNumIsas && !peaks; ++i) {
        const Kernels* kernels = find_kernels(Isa(i));
        if (kernels == nullptr || kernels->isa == Isa::plain) continue;  // too slow to wait for
        runtimes.push_back(std::make_unique<Runtime>(*kernels, threads));
        Runtime* runtime = runtimes.back().get();
        struct Format {
            const char* name;
            WeightType type;
            int scale_run;
        };
        for (const Format format : {Format{"bf16", WeightType::bf16, 1},
                                    {"int8", WeightType::int8, 1},
                                    {"int8 128", WeightType::int8, kScaleRun},
                                    {"int4", WeightType::int4, 1},
                                    {"int4 128", WeightType::int4, kScaleRun}}) {
            const bool codes = format.type != WeightType::bf16;
            if (codes && kernels->isa == Isa::avx512_bf16) continue;  // as avx512
            const size_t bytes = size_t(packed_bytes(format.type, kOutputs, kInputs));
            entries.push_back({std::string(isa_name(kernels->isa)) + " " + format.name,
                               double(bytes + (codes ? scale_size / format.scale_run : 0)),
                               double(rows) * kOutputs * kInputs,
                               [&, bytes, runtime, format](int round) {
                                   const uint8_t* at = w + bytes * (size_t(round) % (size / bytes));
                                   const Matrix matrix = {format.type,     at,       scale,
                                                          nullptr,         kOutputs, kInputs,
                                                          format.scale_run};
                                   runtime->linear(matrix, x.data(), rows, y.data());
                               },
                               {}});
        }
    }
    test::measure(entries);
    std::printf("%d rows, %d threads, N=%d K=%d, %s pages; best tenth, median in brackets\n", rows,
                threads, kOutputs, kInputs, huge ? "huge" : "small");
    double peak = 0, read = 0;
    for (const Entry& entry : entries) {
        if (entry.name.ends_with("read")) read = std::max(read, entry.bytes / entry.best());
        if (entry.name.ends_with("products")) {
            peak = std::max(peak, entry.products / entry.best());
        }
    }
    for (const Entry& entry : entries) {
        std::printf("%-15s", entry.name.c_str());
        if (entry.bytes > 0) {
            const double rate = entry.bytes / entry.best();
            std::printf(" %6.1f (%5.1f) GB/s, %3.0f %% of the read", rate / 1e9,
                        entry.bytes / entry.median() / 1e9, 100 * rate / read);
        }
        if (entry.products > 0) {
            const double rate = entry.products / entry.best();
            std::printf(" %7.1f (%6.1f) Gop/s, %3.0f %% of the peak", 2 * rate / 1e9,
                        2 * entry.products / entry.median() / 1e9, 100 * rate / peak);
        }
        std::printf("\n");
    }
    return sums[0] == 42;  // keeps the sums
}
