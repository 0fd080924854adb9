// Number formats and the two tile sizes that all kernels share.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace latrt {

inline constexpr int kLanes = 16;  // outputs of a weight tile, keys of a K tile
inline constexpr int kBlock = 32;  // weights along the input whose products are summed exactly

enum class WeightType : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };
enum class KvType : int { f32 = 0, bf16 = 1, f16 = 2, int8 = 3 };

struct Half {  // the bits of an f16, so that they are no bf16
    uint16_t bits;
};

inline constexpr int kNumWeightTypes = 4, kNumKvTypes = 4;

constexpr const char* kv_type_name(KvType type) {
    constexpr const char* kNames[kNumKvTypes] = {"float32", "bfloat16", "float16", "int8"};
    return kNames[static_cast<int>(type)];
}

constexpr std::optional<KvType> parse_kv_type(std::string_view name) {
    for (int i = 0; i < kNumKvTypes; ++i) {
        if (name == kv_type_name(static_cast<KvType>(i))) return static_cast<KvType>(i);
    }
    return std::nullopt;
}

constexpr int64_t kv_bytes(KvType type) {
    constexpr int64_t kBytes[kNumKvTypes] = {4, 2, 2, 1};
    return kBytes[static_cast<int>(type)];
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace latrt
