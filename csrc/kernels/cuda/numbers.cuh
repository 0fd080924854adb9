// Conversions between float and the formats of activations and KV caches, packed by words.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "kernels/cuda/instructions.cuh"
#include "kernels/cuda/types.h"

namespace latrt::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

__host__ __device__ constexpr bool is_codes(KvType type) {
    return type == KvType::int8 || type == KvType::e4m3;
}

__host__ __device__ constexpr int ceil_div(int value, int divisor) {
    return (value + divisor - 1) / divisor;
}

union Word {
    uint32_t bits;
    __half2_raw f16;
    __nv_bfloat162_raw bf16;
};

template <class Act>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    Word word;
    if constexpr (std::is_same_v<Act, __half>) {
        word.f16 = __floats2half2_rn(low, high);
    } else {
        word.bf16 = __floats2bfloat162_rn(low, high);
    }
    return word.bits;
}

template <class Act>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
    Word word;
    word.bits = bits;
    if constexpr (std::is_same_v<Act, __half>) {
        return __half22float2(__half2(word.f16));
    } else {
        return __bfloat1622float2(__nv_bfloat162(word.bf16));
    }
}

// Four codes of a word, times `scale`.
template <KvType kType>
__device__ __forceinline__ void decode(uint32_t codes, float scale, float (&values)[4]) {
    if constexpr (kType == KvType::int8) {
        for (int i = 0; i < 4; ++i) {
            values[i] = static_cast<float>(static_cast<int8_t>(codes >> (8 * i))) * scale;
        }
    } else {
        // Sign, exponent and mantissa moved into f16 give the value over 2^8, subnormals too.
        for (int i = 0; i < 2; ++i) {
            const uint32_t pair = codes >> (16 * i);
            const uint32_t spread = (pair & 0xff) | (pair & 0xff00) << 8;
            const float2 two = unpack<__half>((spread & 0x800080) << 8 | (spread & 0x7f007f) << 7);
            values[2 * i] = two.x * (scale * 256.0f);
            values[2 * i + 1] = two.y * (scale * 256.0f);
        }
    }
}

// The largest magnitude that a code stands for with scale 1.
template <KvType kType>
__device__ __forceinline__ constexpr float largest_code() {
    return kType == KvType::int8 ? 127.0f : 448.0f;
}

// The nearest code of a value of magnitude at most largest_code, ties to even.
template <KvType kType>
__device__ __forceinline__ uint32_t encode(float value) {
    if constexpr (kType == KvType::int8) {
        return static_cast<uint32_t>(static_cast<int>(rintf(value))) & 0xff;
    } else {
        return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
    }
}

}  // namespace latrt::cuda
