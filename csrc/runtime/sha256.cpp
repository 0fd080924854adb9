#include "runtime/sha256.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace latrt {
namespace {

// FIPS 180-4, section 4.2.2.
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t turn(uint32_t x, int by) {
    return x >> by | x << (32 - by);
}

void plain_blocks(uint32_t* state, const uint8_t* data, size_t count) {
    for (; count > 0; --count, data += 64) {
        uint32_t w[64];
        for (int i = 0; i < 16; ++i) {
            w[i] = static_cast<uint32_t>(data[4 * i]) << 24 |
                   static_cast<uint32_t>(data[4 * i + 1]) << 16 |
                   static_cast<uint32_t>(data[4 * i + 2]) << 8 | data[4 * i + 3];
        }
        for (int i = 16; i < 64; ++i) {
            const uint32_t a = w[i - 15], b = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) +
                   (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 64; ++i) {
            const uint32_t first = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) +
                                   ((e & f) ^ (~e & g)) + kRound[i] + w[i];
            const uint32_t second =
                (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
        }
        const uint32_t add[8] = {a, b, c, d, e, f, g, h};
        for (int i = 0; i < 8; ++i) state[i] += add[i];
    }
}

#if defined(__x86_64__)
bool cpu_has_sha() {
    constexpr unsigned kSha = 1u << 29;  // of leaf 7, EBX
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (ebx & kSha) == 0) return false;
    __builtin_cpu_init();
    return __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1");
}

// The state stands in two registers, words named from the highest: ABEF and CDGH. SHA256RNDS2
// makes the next ABEF of two rounds out of both; the next CDGH is the ABEF before.
__attribute__((target("sha,sse4.1,ssse3"))) void sha_blocks(uint32_t* state, const uint8_t* data,
                                                            size_t count) {
    const auto word = [&](int i) { return static_cast<int>(state[i]); };
    __m128i abef = _mm_set_epi32(word(0), word(1), word(4), word(5));
    __m128i cdgh = _mm_set_epi32(word(2), word(3), word(6), word(7));
    const __m128i big_endian = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    for (; count > 0; --count, data += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        const __m128i* const from = reinterpret_cast<const __m128i*>(data);
        __m128i w0 = _mm_shuffle_epi8(_mm_loadu_si128(from), big_endian);
        __m128i w1 = _mm_shuffle_epi8(_mm_loadu_si128(from + 1), big_endian);
        __m128i w2 = _mm_shuffle_epi8(_mm_loadu_si128(from + 2), big_endian);
        __m128i w3 = _mm_shuffle_epi8(_mm_loadu_si128(from + 3), big_endian);
        for (int i = 0; i < 64; i += 4) {  // four rounds with the words of w0
            const __m128i k = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kRound + i));
            const __m128i sum = _mm_add_epi32(w0, k);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            // Words 16 to 19 from here: MSG1 adds the first sigma, MSG2 the second.
            const __m128i seven_before = _mm_alignr_epi8(w3, w2, 4);
            const __m128i next =
                _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), seven_before), w3);
            w0 = w1, w1 = w2, w2 = w3, w3 = next;
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    uint32_t out[8];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), abef);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 4), cdgh);
    constexpr int kPlace[8] = {3, 2, 7, 6, 1, 0, 5, 4};  // of A to H
    for (int i = 0; i < 8; ++i) state[i] = out[kPlace[i]];
}
#endif

}  // namespace

bool Sha256::has_instructions() {
#if defined(__x86_64__)
    static const bool has = cpu_has_sha();
    return has;
#else
    return false;
#endif
}

Sha256::Sha256(bool instructions) : blocks_(plain_blocks) {
#if defined(__x86_64__)
    if (instructions && has_instructions()) blocks_ = sha_blocks;
#else
    (void)instructions;
#endif
}

void Sha256::update(const void* data, size_t size) {
    const uint8_t* bytes = static_cast<const uint8_t*>(data);
    total_ += size;
    while (size > 0) {
        if (num_held_ == 0 && size >= 64) {
            blocks_(state_.data(), bytes, size / 64);
            bytes += size / 64 * 64, size %= 64;
            continue;
        }
        const size_t take = std::min(size, 64 - num_held_);
        std::memcpy(held_.data() + num_held_, bytes, take);
        num_held_ += take, bytes += take, size -= take;
        if (num_held_ == 64) blocks_(state_.data(), held_.data(), 1), num_held_ = 0;
    }
}

std::string Sha256::finish() {
    const uint64_t bits = total_ * 8;
    const uint8_t one = 0x80, zero = 0;
    update(&one, 1);
    while (num_held_ != 56) update(&zero, 1);
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    update(length, 8);
    std::string out;
    for (const uint32_t word : state_) {
        char text[9];
        std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(word));
        out += text;
    }
    return out;
}

}  // namespace latrt
