#include "kernels/cpu/level.h"
#include "kernels/cpu/linear_finish.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_int.h"

namespace latrt::LATRT_LEVEL {
namespace {

// Where the weights of T tiles and the activations of M rows stand, moved on block by block and
// group by group, of kRun blocks each.
template <int kBits, int kRun>
struct Cursor {
    static constexpr int kBytes = kLanes * kBlock * kBits / 8;  // of a block of a tile

    const uint8_t* w;
    const uint16_t* w_scale;
    const int8_t* xq;
    const float* x_scale;
    const int32_t* x_neg_sum;
    int blocks, groups;

    Cursor(const LinearParams& p, int row, int tile)
        : blocks(num_blocks(p.k)), groups(num_scales(p.k, kRun)) {
        w = static_cast<const uint8_t*>(p.w) + int64_t{tile} * blocks * kBytes;
        w_scale = p.w_scale + int64_t{tile} * groups * kLanes;
        xq = p.xq + row * row_codes(p.k, kRun);
        x_scale = p.x_scale + int64_t{row} * groups;
        x_neg_sum = p.x_neg_sum + int64_t{row} * groups;
    }
    const uint8_t* codes(int t) const { return w + int64_t{t} * blocks * kBytes; }
    Floats scale(int t) const { return load_halves(w_scale + int64_t{t} * groups * kLanes); }
    const int8_t* row(int m) const { return xq + int64_t{m} * groups * (kRun * kBlock); }
    void next_block() { w += kBytes, xq += kBlock; }
    void next_group() { w_scale += kLanes, ++x_scale, ++x_neg_sum; }
};

// Fetches weights while those of `block` are used. One tile streams by itself: a page ahead, which
// is where the hardware's own prefetching ends. Tiles together would be as many streams, which
// memory serves badly: the next ones are fetched as they lie, one behind the other, into the L2
// cache. Beyond the last tile this fetches nothing harmful.
template <int T, int kBits, int kRun>
void fetch_ahead(const Cursor<kBits, kRun>& at, int block) {
    constexpr int kBytes = Cursor<kBits, kRun>::kBytes, kAhead = 4096 / kBytes;
    const int group = block / kRun;
    const uint8_t* w = T == 1 ? at.w + kAhead * kBytes
                              : at.w + (int64_t{T} * at.blocks + (T - 1) * block) * kBytes;
    const uint16_t* scale = T == 1
                                ? at.w_scale + kAhead / kRun * kLanes
                                : at.w_scale + (int64_t{T} * at.groups + (T - 1) * group) * kLanes;
    for (int line = 0; line < T * kBytes; line += 64)
        __builtin_prefetch(w + line, 0, T == 1 ? 3 : 2);
    __builtin_prefetch(scale, 0, T == 1 ? 3 : 2);
}

// Adds the products of 4 inputs of a block of T tiles and M rows.
template <int T, int M, int kRun>
void add_dots(Sums4 (&sums)[T][M], const Cursor<4, kRun>& at, int group) {
    Bytes low[T], high[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
        const Bytes pair = load_bytes(at.codes(t) + group * 64);
        low[t] = low_nibbles(pair), high[t] = high_nibbles(pair);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Quad first = quad(at.row(m) + group * 4), second = quad(at.row(m) + 16 + group * 4);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            dot4(sums[t][m], low[t], first);
            dot4(sums[t][m], high[t], second);
        }
    }
}

template <int T, int M, int kRun>
void add_dots(Ints (&sums)[T][M], const Cursor<8, kRun>& at, int group) {
    Bytes w[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) w[t] = bytes_of(load_bytes(at.codes(t) + group * 64));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Quad x = quad(at.row(m) + group * 4);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) dot8(sums[t][m], w[t], x);
    }
}

// Adds the products of a block.
template <int kBits, int T, int M, class Sums, class At>
void add_block(Sums (&sums)[T][M], const At& at) {
#pragma GCC unroll 8
    for (int group = 0; group < kBits; ++group) add_dots<T, M>(sums, at, group);
}

// The sums of a group's products, from their start over its blocks to their end.
template <int kBits, int kRun>
struct Dots {
    using Sums = Ints;
    static Sums start(const int32_t* x_neg_sum) { return start8(x_neg_sum); }
    template <int T, int M, class At>
    static void add(Sums (&sums)[T][M], const At& at) {
        add_block<kBits, T, M>(sums, at);
    }
    static Ints end(Sums sums) { return sums; }
};
template <int kRun>
    requires(kRun <= kSums4Blocks)
struct Dots<4, kRun> {
    using Sums = Sums4;
    static Sums start(const int32_t* x_neg_sum) { return start4(x_neg_sum); }
    template <int T, int M, class At>
    static void add(Sums (&sums)[T][M], const At& at) {
        add_block<4, T, M>(sums, at);
    }
    static Ints end(Sums sums) { return ints_of(sums); }
};
// Where `Sums4` hold no group, each block's are ended.
template <int kRun>
    requires(kRun > kSums4Blocks)
struct Dots<4, kRun> {
    using Sums = Ints;
    static Sums start(const int32_t* x_neg_sum) { return start4_ints(x_neg_sum); }
    template <int T, int M, class At>
    static void add(Sums (&sums)[T][M], const At& at) {
        Sums4 of_block[T][M] = {};
        add_block<4, T, M>(of_block, at);
        for (int t = 0; t < T; ++t) {
            for (int m = 0; m < M; ++m) add_ints(sums[t][m], ints_of(of_block[t][m]));
        }
    }
    static Ints end(Sums sums) { return sums; }
};

// T tiles of M rows. Every sum is made in the same order whatever T and M are.
template <int T, int M, int kBits, int kRun>
void panel(const LinearParams& p, int row, int tile) {
    using Group = Dots<kBits, kRun>;
    Cursor<kBits, kRun> at(p, row, tile);
    Floats totals[T][M];
    for (auto& of_tile : totals) {
        for (Floats& total : of_tile) total = zeros();
    }
    if constexpr (M > 1) {
        for (int t = 0; t < T; ++t) fetch_results(p, row, M, tile + t);
    }
    for (int b = 0; b < at.blocks; at.next_group()) {
        typename Group::Sums sums[T][M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const auto first = Group::start(at.x_neg_sum + int64_t{m} * at.groups);
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) sums[t][m] = first;
        }
        const int end = kRun == 1 || kRun < at.blocks - b ? b + kRun : at.blocks;
        do {
            fetch_ahead<T>(at, b);
            Group::template add<T, M>(sums, at);
            at.next_block();
        } while (++b < end);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) {
            const Floats scale = at.scale(t);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                scale_add(totals[t][m], Group::end(sums[t][m]), scale,
                          at.x_scale[int64_t{m} * at.groups]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        alignas(64) float out[M * kLanes];
        for (int m = 0; m < M; ++m) store_floats(out + m * kLanes, totals[t][m]);
        finish<M>(p, out, row, tile + t);
    }
}

// All rows of T tiles, whose weights stay in cache; M rows at a time, then half of that.
template <int T, int M, int kBits, int kRun>
void all_rows(const LinearParams& p, int row, int tile) {
    for (; row + M <= p.m; row += M) panel<T, M, kBits, kRun>(p, row, tile);
    if constexpr (M > 1) all_rows<T, M / 2, kBits, kRun>(p, row, tile);
}

// Few rows wait for their weights: one tile at a time is one stream, which memory serves best.
template <int kBits, int kRun>
void run(const LinearParams& p) {
    constexpr int kTiles = kBits == 4 ? kTiles4 : kTiles8;
    int tile = p.tile_begin;
    if constexpr (kTiles > 1) {
        for (; p.m >= kIntRows && tile + kTiles <= p.tile_end; tile += kTiles) {
            all_rows<kTiles, kIntRows, kBits, kRun>(p, 0, tile);
        }
    }
    for (; tile < p.tile_end; ++tile) all_rows<1, kIntRows, kBits, kRun>(p, 0, tile);
}

inline int32_t largest_lane(IntVec vector) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_epi32((__m512i)vector);
#else
    int32_t lanes[kWidth], largest = 0;
    __builtin_memcpy(lanes, &vector, sizeof vector);
    for (const int32_t lane : lanes) largest = lane > largest ? lane : largest;
    return largest;
#endif
}

// Writes the codes of the groups' blocks, one after the other, and adds them up.
class Codes {
 public:
    explicit Codes(int8_t* to) : to_(to) {}

    void add_block(const IntVec (&codes)[kBlock / kWidth]) {
#if defined(__AVX512VNNI__)
        const __m256i block = _mm256_set_m128i(_mm512_cvtepi32_epi8((__m512i)codes[1]),
                                               _mm512_cvtepi32_epi8((__m512i)codes[0]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to_), block);
        sums_ = _mm256_dpbusd_epi32(sums_, _mm256_set1_epi8(1), block);
#else
        int32_t numbers[kBlock];
        __builtin_memcpy(numbers, codes, sizeof numbers);
        for (int i = 0; i < kBlock; ++i) {
            to_[i] = static_cast<int8_t>(numbers[i]);
            sums_ += to_[i];
        }
#endif
        to_ += kBlock;
    }
#if defined(__AVX512VNNI__)
    int32_t sum() const { return _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums_)); }
#else
    int32_t sum() const { return sums_; }
#endif

 private:
    int8_t* to_;
#if defined(__AVX512VNNI__)
    __m256i sums_ = _mm256_setzero_si256();
#else
    int32_t sums_ = 0;
#endif
};

// Codes of a group of `count` numbers at `x`, a multiple of 32; returns minus their sum.
inline int32_t quantise_group(const float* x, int count, float most, int8_t* codes, float& scale) {
    // |x| by its bits, which order as the numbers do; what is not finite is above all others.
    constexpr int32_t kInfinity = 0x7f800000;
    IntVec largest = {};
    for (int i = 0; i < count; i += kWidth) {
        const IntVec magnitude = (IntVec)load(x + i) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    const int32_t bits = largest_lane(largest);
    float top;
    __builtin_memcpy(&top, &bits, sizeof top);
    const float inverse = top > 1e-35f && bits < kInfinity ? most / top : 0.0f;
    scale = bits < kInfinity ? top / most : __builtin_nanf("");
    Codes written(codes);
    for (int block = 0; block < count; block += kBlock) {
        IntVec rounded[kBlock / kWidth];
        for (int i = 0; i < kBlock; i += kWidth) {
            rounded[i / kWidth] =
                (IntVec)((UintVec)(load(x + block + i) * inverse + kRounder) - 0x4b400000u);
        }
        written.add_block(rounded);
    }
    return -written.sum();
}

template <int kRun>
void quantise_rows(const QuantiseParams& p) {
    constexpr int kGroup = kRun * kBlock;
    const int groups = num_scales(p.k, kRun);
    const int64_t apart = p.ld_groups > 0 ? p.ld_groups : groups;
    const float most = static_cast<float>(p.largest);
    for (int row = 0; row < p.m; ++row) {
        const float* x = p.x + row * p.ldx;
        for (int g = 0; g < groups; ++g) {
            const int64_t at = row * apart + g;
            // Rows may be too short for the hardware to fetch ahead.
            const float* next = x + 2 * p.ldx + g * kGroup;
            for (int i = 0; i < kGroup; i += 16) __builtin_prefetch(next + i);
            float padded[kGroup] = {};
            const int rest = p.k - g * kGroup;
            if (rest < kGroup) {
                for (int i = 0; i < rest; ++i) padded[i] = x[g * kGroup + i];
            }
            const float* from = rest < kGroup ? padded : x + g * kGroup;
            p.x_neg_sum[at] = quantise_group(from, kGroup, most, p.xq + at * kGroup, p.x_scale[at]);
        }
    }
}

}  // namespace

void quantise(const QuantiseParams& p) {
    p.scale_run == 1 ? quantise_rows<1>(p) : quantise_rows<kScaleRun>(p);
}

void linear_int8(const LinearParams& p) {
    p.scale_run == 1 ? run<8, 1>(p) : run<8, kScaleRun>(p);
}

void linear_int4(const LinearParams& p) {
    p.scale_run == 1 ? run<4, 1>(p) : run<4, kScaleRun>(p);
}

}  // namespace latrt::LATRT_LEVEL
