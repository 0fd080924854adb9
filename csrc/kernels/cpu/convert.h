// Half precision to float and back, for code that has no instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace latrt {

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float bf16_to_float(uint16_t half) {
    return bits_float(static_cast<uint32_t>(half) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
static inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline float f16_to_float(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t rest = half & 0x7fffu;
    if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Multiplying by 2^112 moves the exponent's bias, and makes subnormal halves normal.
    return bits_float(sign | float_bits(bits_float(rest << 13) * 0x1p112f));
}

// Round to nearest, ties to even; beyond the largest half is infinity, NaN stays NaN.
static inline uint16_t float_to_f16(float value) {
    const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (rest < 0x38800000u) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits
        const uint32_t sum = float_bits(bits_float(rest) + 0.5f);
        return static_cast<uint16_t>(sign | (sum - float_bits(0.5f)));
    }
    const uint32_t rounded = rest + 0xfffu + (rest >> 13 & 1u);
    return static_cast<uint16_t>(sign | (rounded - (112u << 23)) >> 13);
}

}  // namespace latrt
