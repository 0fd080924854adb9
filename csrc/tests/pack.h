// Packs weights as kernels/cpu/linear.h says, number by number; and what the tests share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/kernels.h"
#include "tests/check.h"

namespace latrt::test {

// Packed weights and the row-major floats (N, K) that they stand for.
struct Packed {
    std::vector<uint8_t> bytes;
    std::vector<uint16_t> scale;
    std::vector<float> w;
};

// Rounds to the nearest half; for scales, so zero and normal halves only.
inline uint16_t to_f16(float value) {
    if (value == 0) return 0;
    const uint32_t bits = float_bits(value) + 0x1000u;
    return static_cast<uint16_t>((bits >> 16 & 0x8000u) |
                                 ((bits & 0x7fffffffu) - (112u << 23)) >> 13);
}

inline Packed pack_float(Random& random, WeightType type, int n, int k) {
    Packed packed;
    packed.bytes.resize(static_cast<size_t>(packed_bytes(type, n, k)), 0);
    packed.w = random.floats(static_cast<size_t>(n) * k);
    for (int row = 0; row < n; ++row) {
        for (int i = 0; i < k; ++i) {
            float& value = packed.w[static_cast<size_t>(row) * k + i];
            const int64_t tile = row / kLanes, lane = row % kLanes;
            if (type == WeightType::f32) {
                const int64_t at = ((tile * k + i) * kLanes + lane) * 4;
                std::memcpy(&packed.bytes[static_cast<size_t>(at)], &value, 4);
            } else {
                const uint16_t half = float_to_bf16(value);
                value = bf16_to_float(half);
                const int64_t pairs = round_up(k, 2) / 2;
                const int64_t at = (((tile * pairs + i / 2) * kLanes + lane) * 2 + i % 2) * 2;
                std::memcpy(&packed.bytes[static_cast<size_t>(at)], &half, 2);
            }
        }
    }
    return packed;
}

inline Packed pack_codes(Random& random, WeightType type, int n, int k, int scale_run) {
    Packed packed;
    const int bits = type == WeightType::int4 ? 4 : 8, blocks = num_blocks(k);
    const int scales = num_scales(k, scale_run);
    packed.bytes.resize(static_cast<size_t>(packed_bytes(type, n, k)), 0);
    packed.scale.resize(static_cast<size_t>(num_tiles(n)) * scales * kLanes, 0);
    packed.w.resize(static_cast<size_t>(n) * k);
    for (int row = 0; row < n; ++row) {
        const int64_t tile = row / kLanes, lane = row % kLanes;
        for (int i = 0; i < k; ++i) {
            const int64_t block = tile * blocks + i / kBlock;
            const int within = i % kBlock;
            const int64_t scaled = tile * scales + i / kBlock / scale_run;
            uint16_t& scale = packed.scale[static_cast<size_t>(scaled * kLanes + lane)];
            if (i % (kBlock * scale_run) == 0)
                scale = to_f16(random.uniform(0.001f, 0.02f) * random.integer(-1, 1));
            const int code = bits == 4 ? random.integer(-8, 7) : random.integer(-127, 127);
            packed.w[static_cast<size_t>(row) * k + i] = float(code) * f16_to_float(scale);
            const int64_t group = bits == 4 ? block * 4 + within % 16 / 4 : block * 8 + within / 4;
            uint8_t& byte = packed.bytes[static_cast<size_t>((group * kLanes + lane) * 4 + i % 4)];
            byte =
                static_cast<uint8_t>(bits == 8 ? code + 128 : byte | (code + 8) << within / 16 * 4);
        }
    }
    return packed;
}

inline Packed pack(Random& random, WeightType type, int n, int k, int scale_run = 1) {
    const bool floats = type == WeightType::f32 || type == WeightType::bf16;
    return floats ? pack_float(random, type, n, k) : pack_codes(random, type, n, k, scale_run);
}

// Every level that runs here.
inline std::vector<const Kernels*> levels() {
    std::vector<const Kernels*> found;
    for (int i = 0; i < kNumIsas; ++i) {
        if (const Kernels* kernels = find_kernels(static_cast<Isa>(i))) found.push_back(kernels);
    }
    return found;
}

}  // namespace latrt::test
