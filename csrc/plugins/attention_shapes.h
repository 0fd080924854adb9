// What the attention plugin knows from shapes alone, without TensorRT's types: the parameters of
// the kernels and the workspace that an engine needs.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cuda/launchers.h"

namespace latrt::plugins {

// The workspace is sized when the engine is built, where the device is not known; a device of more
// multiprocessors is used as if it had as many.
inline constexpr int kMaxSms = 256;

struct AttentionShapes {
    int batch, length, num_heads, num_kv_heads, head_dim, capacity, num_visual;
    cuda::ActType type;
    cuda::KvType kv_type;

    bool valid() const {
        return batch > 0 && length > 0 && head_dim > 0 && num_heads % num_kv_heads == 0;
    }
    bool decodes() const { return length == 1; }  // rather than prefills
    cuda::Sequences sequences() const {
        return {batch, length, capacity, nullptr, nullptr, nullptr, 1};  // kv_len is `seqlens_k`
    }
    cuda::KvCache cache() const {
        const int64_t head_rows = capacity;
        return {nullptr,  nullptr,  nullptr,
                nullptr,  kv_type,  num_kv_heads,
                head_dim, capacity, num_kv_heads * head_rows,
                head_rows};
    }
    // AttentionDecodeParams or AttentionPrefillParams; pointers are null.
    template <class Params>
    Params attention(int num_sms) const {
        Params p{};
        p.cache = cache();
        p.sequences = sequences();
        p.mass.num_visual = num_visual;
        p.type = type;
        p.num_heads = num_heads;
        p.num_sms = num_sms;
        p.scale = 1 / std::sqrt(static_cast<float>(head_dim));
        p.ldq = p.ldo = static_cast<int64_t>(num_heads) * head_dim;
        return p;
    }
    // Bytes that attention of exactly these shapes takes.
    size_t workspace(int num_sms) const {
        return decodes() ? cuda::attention_decode_workspace(
                               attention<cuda::AttentionDecodeParams>(num_sms))
                         : cuda::attention_prefill_workspace(
                               attention<cuda::AttentionPrefillParams>(num_sms));
    }
};

// Enough for every batch and length up to the given ones on every device. A short chunk, whose keys
// are split, may need more than a long one, whose keys are not; more sequences and more
// multiprocessors never need less.
inline size_t largest_workspace(const AttentionShapes& largest) {
    size_t bytes = 0;
    for (AttentionShapes s = largest; s.length > 0; --s.length) {
        bytes = std::max(bytes, s.workspace(kMaxSms));
    }
    return bytes;
}

}  // namespace latrt::plugins
