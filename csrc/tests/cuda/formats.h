// Activations and KV caches of every format, as the tests write and read them: by the toolkit's
// own host conversions, not the kernels'.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>

#include "kernels/cuda/types.h"
#include "tests/check.h"
#include "tests/cuda/buffer.h"

namespace latrt::test {

using cuda::ActType;
using cuda::KvType;

inline uint16_t to_act(float value, ActType type) {
    if (type == ActType::f16) return __half_raw(__float2half_rn(value)).x;
    return __nv_bfloat16_raw(__float2bfloat16_rn(value)).x;
}

inline float from_act(uint16_t bits, ActType type) {
    if (type == ActType::f16) {
        __half_raw raw;
        raw.x = bits;
        return __half2float(__half(raw));
    }
    __nv_bfloat16_raw raw;
    raw.x = bits;
    return __bfloat162float(__nv_bfloat16(raw));
}

// Half the distance between neighbours, relative.
inline float roundoff(ActType type) {
    return type == ActType::f16 ? 0x1p-11f : 0x1p-8f;
}

// (rows, columns) values in [-high, high] of the type, rows `ld` apart, poison between them.
struct Acts {
    ActType type;
    size_t columns, ld;
    Buffer<uint16_t> bits;

    Acts(ActType t, size_t rows, size_t cols, size_t stride)
        : type(t), columns(cols), ld(stride), bits(rows == 0 ? 0 : (rows - 1) * stride + cols) {}

    void fill(Random& random, float high) {
        for (size_t i = 0; i < bits.size(); ++i) {
            if (i % ld < columns) bits[i] = to_act(random.uniform(-high, high), type);
        }
    }
    float at(size_t row, size_t column) const { return from_act(bits[row * ld + column], type); }
    bool untouched(size_t row) const {
        for (size_t i = 0; i < columns; ++i) {
            if (bits[row * ld + i] != 0xffff) return false;
        }
        return true;
    }
};

// Whether the device that is emulated multiplies bf16; else cases with it are f16.
#ifdef LATRT_EMULATED_TURING
inline constexpr bool kBf16 = false;
#else
inline constexpr bool kBf16 = true;
#endif

inline bool is_codes(KvType type) {
    return type == KvType::int8 || type == KvType::e4m3;
}

// K or V of a cache (B, K, C, D) with gaps between sequences, everything poison at first.
struct CacheTensor {
    KvType type;
    int heads, dim, capacity;
    int64_t batch_rows;
    Buffer<uint8_t> bytes;
    Buffer<float> scale;

    CacheTensor(KvType t, int batch, int num_heads, int head_dim, int places, int gap)
        : type(t),
          heads(num_heads),
          dim(head_dim),
          capacity(places),
          batch_rows(int64_t{num_heads} * places + gap),
          bytes(size_t(batch * batch_rows * head_dim * (is_codes(t) ? 1 : 2))),
          scale(is_codes(t) ? size_t(batch * batch_rows) : 0) {}

    int64_t row(int b, int head, int position) const {
        return b * batch_rows + int64_t{head} * capacity + position;
    }
    ActType act() const { return type == KvType::f16 ? ActType::f16 : ActType::bf16; }

    float get(int64_t row, int d) const {
        const int64_t at = row * dim + d;
        if (type == KvType::int8) {
            return float(static_cast<int8_t>(bytes[size_t(at)])) * scale[size_t(row)];
        }
        if (type == KvType::e4m3) {
            __nv_fp8_e4m3 value;
            value.__x = bytes[size_t(at)];
            return float(value) * scale[size_t(row)];
        }
        uint16_t bits;
        std::memcpy(&bits, &bytes[size_t(at) * 2], 2);
        return from_act(bits, act());
    }
    // Any values within the format: for codes a scale that differs from row to row.
    void fill(Random& random, int64_t row, float high) {
        if (is_codes(type)) scale[size_t(row)] = random.uniform(0.2f, 1.0f) * high / top();
        for (int d = 0; d < dim; ++d) set(row, d, random.uniform(-high, high));
    }
    float top() const { return type == KvType::int8 ? 127.0f : 448.0f; }

 private:
    void set(int64_t row, int d, float value) {
        const size_t at = size_t(row * dim + d);
        if (is_codes(type)) {
            const float code = std::clamp(value / scale[size_t(row)], -top(), top());
            bytes[at] = type == KvType::int8 ? uint8_t(int8_t(std::nearbyint(code)))
                                             : __nv_fp8_e4m3(code).__x;
        } else {
            const uint16_t bits = to_act(value, act());
            std::memcpy(&bytes[at * 2], &bits, 2);
        }
    }
};

inline const char* name(ActType type) {
    return type == ActType::f16 ? "f16" : "bf16";
}

inline const char* name(KvType type) {
    constexpr const char* kNames[] = {"f16", "bf16", "int8", "e4m3"};
    return kNames[int(type)];
}

}  // namespace latrt::test
