// Sixteen 32-bit sums of four byte products each, with what the level has for it.
//
// `dot4(sums, w, x)`: sums[i] += w[4 i .. 4 i + 3] . x[0 .. 3], `x` a `quad` of activations. Codes
// of 4 bits come as they are (0 to 15). Bytes of 8-bit weights are code + 128: `bytes_of` makes of
// them what `dot8` takes. `start4` and `start8` are the sums to begin with, so that the result is
// that of the signed codes. `Sums4` are sums of int4 products on their way, for `kSums4Blocks`
// blocks at most; `ints_of` ends them. Where a group has more, `start4_ints` begins its sums, and
// those of its blocks are added.
//
// `kIntRows` rows of activations and tiles of outputs (`kTiles4`, `kTiles8`, by bits) run together;
// their sums fit the registers. What is best was measured: two tiles read two streams, which costs
// int4 more than it saves.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/convert.h"
#include "kernels/cpu/linear.h"

namespace latrt::LATRT_LEVEL {
namespace {

#if defined(__AVX2__)
// Keeps a number in its register: left alone, GCC moves loads, makes trees of chains of sums, and
// spills them.
template <class Vector>
void in_register(Vector& number) {
    asm("" : "+v"(number));
}
#endif

#if defined(__AVX512VNNI__)

using Bytes = __m512i;
using Ints = __m512i;
using Floats = __m512;

inline Bytes load_bytes(const uint8_t* from) {
    return _mm512_loadu_si512(from);
}
inline Bytes low_nibbles(Bytes b) {
    return _mm512_and_si512(b, _mm512_set1_epi8(15));
}
inline Bytes high_nibbles(Bytes b) {
    return low_nibbles(_mm512_srli_epi16(b, 4));
}
// Shifted as vectors: the number comes from memory and needs no register of its own.
inline Ints start4(const int32_t* x_neg_sum) {
    return _mm512_slli_epi32(_mm512_set1_epi32(*x_neg_sum), 3);
}
inline Ints start8(const int32_t* x_neg_sum) {
    return _mm512_slli_epi32(_mm512_set1_epi32(*x_neg_sum), 7);
}
inline Bytes bytes_of(Bytes stored) {
    return stored;
}
using Sums4 = Ints;
constexpr int kSums4Blocks = kScaleRun;
inline Ints ints_of(Sums4 sums) {
    return sums;
}
inline Ints start4_ints(const int32_t* x_neg_sum) {
    return start4(x_neg_sum);
}
inline void add_ints(Ints& sums, Ints more) {
    sums = _mm512_add_epi32(sums, more);
}

using Quad = __m512i;

inline Quad quad(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}
inline void dot4(Ints& sums, Bytes w, Quad x) {
    sums = _mm512_dpbusd_epi32(sums, w, x);
    in_register(sums);
}
inline void dot8(Ints& sums, Bytes w, Quad x) {
    dot4(sums, w, x);
}

inline Floats zeros() {
    return _mm512_setzero_ps();
}
inline Floats load_halves(const uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline void scale_add(Floats& sums, Ints ints, Floats w_scale, Floats x_scale) {
    sums = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), _mm512_mul_ps(w_scale, x_scale), sums);
}
inline void scale_add(Floats& sums, Ints ints, Floats w_scale, float x_scale) {
    scale_add(sums, ints, w_scale, _mm512_set1_ps(x_scale));
}
inline void store_floats(float* to, Floats sums) {
    _mm512_storeu_ps(to, sums);
}

constexpr int kIntRows = 8, kTiles4 = 1, kTiles8 = 2;

#elif defined(__AVX2__)

struct Bytes {
    __m256i v[2];
};
using Ints = Bytes;
struct Floats {
    __m256 v[2];
};

inline Bytes load_bytes(const uint8_t* from) {
    const auto* pieces = reinterpret_cast<const __m256i*>(from);
    return {{_mm256_loadu_si256(pieces), _mm256_loadu_si256(pieces + 1)}};
}
inline Bytes low_nibbles(Bytes b) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(b.v[0], mask), _mm256_and_si256(b.v[1], mask)}};
}
inline Bytes high_nibbles(Bytes b) {
    return low_nibbles({{_mm256_srli_epi16(b.v[0], 4), _mm256_srli_epi16(b.v[1], 4)}});
}
// 16 bits hold the sums of a block's 4-bit products, two to an output: each adds up to 16 products
// of codes 0 to 15 and -127 to 127, 30,480 at most. What is subtracted for the codes' offset of 8
// goes half to either, and leaves them as small: it is a product of 4 with every code of the block.
struct Sums4 {
    __m256i v[2];
};
constexpr int kSums4Blocks = 1;
inline Sums4 start4(const int32_t* x_neg_sum) {
    const __m256i value = _mm256_slli_epi16(_mm256_set1_epi16(static_cast<int16_t>(*x_neg_sum)), 2);
    return {{value, value}};
}
inline Ints ints_of(Sums4 sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {{_mm256_madd_epi16(sums.v[0], ones), _mm256_madd_epi16(sums.v[1], ones)}};
}
inline Ints start4_ints(const int32_t* x_neg_sum) {
    const __m256i value = _mm256_slli_epi32(_mm256_set1_epi32(*x_neg_sum), 3);
    return {{value, value}};
}
inline void add_ints(Ints& sums, Ints more) {
    for (int i = 0; i < 2; ++i) sums.v[i] = _mm256_add_epi32(sums.v[i], more.v[i]);
}
inline Ints start8(const int32_t*) {
    return {{_mm256_setzero_si256(), _mm256_setzero_si256()}};
}
inline Bytes bytes_of(Bytes stored) {
    const __m256i flip = _mm256_set1_epi8(-128);
    return {{_mm256_xor_si256(stored.v[0], flip), _mm256_xor_si256(stored.v[1], flip)}};
}

using Quad = __m256i;

inline Quad quad(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}
inline void dot4(Sums4& sums, Bytes w, Quad x) {
    for (int i = 0; i < 2; ++i) {
        sums.v[i] = _mm256_add_epi16(sums.v[i], _mm256_maddubs_epi16(w.v[i], x));
        in_register(sums.v[i]);
    }
}
// Unsigned times signed bytes: magnitudes times activations of their sign, two products in 16 bits.
inline void dot8(Ints& sums, Bytes w, Quad x) {
    for (int i = 0; i < 2; ++i) {
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(w.v[i]), _mm256_sign_epi8(x, w.v[i]));
        sums.v[i] = _mm256_add_epi32(sums.v[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        in_register(sums.v[i]);
    }
}

inline Floats zeros() {
    return {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
}
inline Floats load_halves(const uint16_t* from) {
    const auto* pieces = reinterpret_cast<const __m128i*>(from);
    return {
        {_mm256_cvtph_ps(_mm_loadu_si128(pieces)), _mm256_cvtph_ps(_mm_loadu_si128(pieces + 1))}};
}
inline void scale_add(Floats& sums, Ints ints, Floats w_scale, float x_scale) {
    for (int i = 0; i < 2; ++i) {
        const __m256 scale = _mm256_mul_ps(w_scale.v[i], _mm256_set1_ps(x_scale));
        sums.v[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints.v[i]), scale, sums.v[i]);
    }
}
inline void store_floats(float* to, Floats sums) {
    for (int i = 0; i < 2; ++i) _mm256_storeu_ps(to + 8 * i, sums.v[i]);
}

constexpr int kIntRows = 4, kTiles4 = 1, kTiles8 = 1;

#else

struct Bytes {
    uint8_t v[64];
};
struct Ints {
    int32_t v[kLanes];
};
struct Floats {
    float v[kLanes];
};

inline Bytes load_bytes(const uint8_t* from) {
    Bytes b;
    std::memcpy(b.v, from, sizeof b.v);
    return b;
}
inline Bytes low_nibbles(Bytes b) {
    for (uint8_t& byte : b.v) byte &= 15;
    return b;
}
inline Bytes high_nibbles(Bytes b) {
    for (uint8_t& byte : b.v) byte >>= 4;
    return b;
}
inline Ints start(int32_t value) {
    Ints ints;
    for (int32_t& lane : ints.v) lane = value;
    return ints;
}
inline Ints start4(const int32_t* x_neg_sum) {
    return start(8 * *x_neg_sum);
}
inline Ints start8(const int32_t* x_neg_sum) {
    return start(128 * *x_neg_sum);
}
inline Bytes bytes_of(Bytes stored) {
    return stored;
}
using Sums4 = Ints;
constexpr int kSums4Blocks = kScaleRun;
inline Ints ints_of(Sums4 sums) {
    return sums;
}
inline Ints start4_ints(const int32_t* x_neg_sum) {
    return start4(x_neg_sum);
}
inline void add_ints(Ints& sums, Ints more) {
    for (int i = 0; i < kLanes; ++i) sums.v[i] += more.v[i];
}

using Quad = const int8_t*;

inline Quad quad(const int8_t* x) {
    return x;
}
inline void dot4(Ints& sums, Bytes w, Quad x) {
    for (int i = 0; i < kLanes; ++i) {
        const uint8_t* four = w.v + 4 * i;
        sums.v[i] += four[0] * x[0] + four[1] * x[1] + four[2] * x[2] + four[3] * x[3];
    }
}
inline void dot8(Ints& sums, Bytes w, Quad x) {
    dot4(sums, w, x);
}

inline Floats zeros() {
    return {};
}
inline Floats load_halves(const uint16_t* from) {
    Floats floats;
    for (int i = 0; i < kLanes; ++i) floats.v[i] = f16_to_float(from[i]);
    return floats;
}
inline void scale_add(Floats& sums, Ints ints, Floats w_scale, float x_scale) {
    for (int i = 0; i < kLanes; ++i) {
        sums.v[i] += static_cast<float>(ints.v[i]) * (w_scale.v[i] * x_scale);
    }
}
inline void store_floats(float* to, Floats sums) {
    std::memcpy(to, sums.v, sizeof sums.v);
}

constexpr int kIntRows = 1, kTiles4 = 1, kTiles8 = 1;

#endif

}  // namespace
}  // namespace latrt::LATRT_LEVEL
