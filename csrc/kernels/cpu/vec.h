// The widest float vector of the level being compiled, as the compiler's own vector type: the
// same source gives AVX-512, AVX2, SSE2 or NEON.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels/cpu/types.h"

namespace latrt::LATRT_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr int kWidth = kVectorBytes / 4;
constexpr int kParts = kLanes / kWidth;     // vectors of 16 numbers
constexpr int kMaxRows = kVectorBytes / 8;  // rows of accumulators that fit the registers

typedef float Vec __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UintVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));
typedef int8_t ByteVec __attribute__((vector_size(kVectorBytes / 4)));

template <class V, class T>
inline V load_as(const T* from) {
    V vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

inline Vec load(const float* from) {
    return load_as<Vec>(from);
}

// bf16 is the upper half of a float. (GCC 12 by itself widens in three times the instructions.)
inline Vec load(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_as<__m256i>(from)), 16);
#elif defined(__AVX2__)
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_as<__m128i>(from)), 16);
#else
    return (Vec)(__builtin_convertvector(load_as<HalfVec>(from), UintVec) << 16);
#endif
}

inline Vec load(const int8_t* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(from)));
#elif defined(__AVX2__)
    int64_t codes;
    __builtin_memcpy(&codes, from, sizeof codes);
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(codes)));
#else
    const IntVec codes = __builtin_convertvector(load_as<ByteVec>(from), IntVec);
    return __builtin_convertvector(codes, Vec);
#endif
}

inline Vec load(const Half* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(load_as<__m256i>(from));
#elif defined(__AVX2__) && defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(load_as<__m128i>(from));
#else
    const UintVec bits = __builtin_convertvector(load_as<HalfVec>(from), UintVec);
    const UintVec sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    // Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
    const UintVec finite = (UintVec)((Vec)(rest << 13) * 0x1p112f);
    const UintVec special = 0x7f800000u | (rest & 0x3ffu) << 13;
    const UintVec is_special = (UintVec)(rest >= 0x7c00u);
    return (Vec)(sign | (finite & ~is_special) | (special & is_special));
#endif
}

inline void store(float* to, Vec vector) {
    __builtin_memcpy(to, &vector, sizeof vector);
}

// Into the L2 cache. What lies behind the end of an array may be asked for.
inline void fetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
    }
}

inline Vec splat(float value) {
    return value - Vec{};
}

inline Vec select(IntVec mask, Vec a, Vec b) {
    return mask ? a : b;
}

// `b` where one is NaN. (GCC by itself compares and selects.)
inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select(a > b, a, b);
#endif
}

inline Vec min(Vec a, Vec b) {
    return select(a < b, a, b);
}

inline float sum(Vec vector) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)vector);
#else
    float parts[kWidth], total = 0;
    store(parts, vector);
    for (float part : parts) total += part;
    return total;
#endif
}

inline float max_lane(Vec vector) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)vector);
#else
    float parts[kWidth];
    store(parts, vector);
    float largest = parts[0];
    for (float part : parts) largest = part > largest ? part : largest;
    return largest;
#endif
}

// Adding 1.5 * 2^23 rounds to an integer (nearest, even), which then stands in the low bits.
constexpr float kRounder = 12582912.0f;

// e^x, relative error 2e-7 (the polynomial is Cephes' expf); e^-87 below -87, NaN of NaN.
inline Vec exp(Vec x) {
    x = max(splat(-87.0f), min(splat(88.0f), x));
    const Vec shifted = x * 1.44269504088896341f + kRounder;
    const Vec n = shifted - kRounder;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const UintVec exponent = ((UintVec)shifted - 0x4b400000u + 127u) << 23;
    return y * (Vec)exponent;
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
