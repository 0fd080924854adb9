#include "kernels/cpu/portable.h"

#include <cmath>
#include <cstddef>

#include "kernels/cpu/convert.h"

namespace latrt::portable {
namespace {

float decode(float value) {
    return value;
}
float decode(uint16_t value) {
    return bf16_to_float(value);
}
float decode(Half value) {
    return f16_to_float(value.bits);
}
float decode(int8_t code) {
    return code;
}

void encode(float value, float, float& to) {
    to = value;
}
void encode(float value, float, uint16_t& to) {
    to = float_to_bf16(value);
}
void encode(float value, float, Half& to) {
    to = {float_to_f16(value)};
}
void encode(float value, float inverse, int8_t& to) {
    to = static_cast<int8_t>(std::nearbyint(value * inverse));
}

// One over the scale of codes for n numbers value(i), max|value| / 127, which goes to `scale`.
// Where one is not finite: 0, and NaN to `scale`, so that all that is made of the codes is NaN.
template <class F>
float choose_scale(int n, F&& value, float& scale) {
    float top = 0, check = 0;
    for (int i = 0; i < n; ++i) {
        const float v = value(i);
        top = std::fabs(v) > top ? std::fabs(v) : top;
        check += v * 0.0f;
    }
    scale = top / 127.0f + check;
    return top > 1e-35f && check == 0.0f ? 127.0f / top : 0.0f;
}

// Writes n numbers value(i), `step` apart; codes get the scale `scale[at]`.
template <class T, class F>
void put(T* to, int64_t step, int n, F&& value, float* scale, int64_t at) {
    float inverse = 0;
    if constexpr (sizeof(T) == 1) {
        inverse = choose_scale(n, value, scale[at]);
        if (inverse == 0.0f) {
            for (int i = 0; i < n; ++i) to[i * step] = 0;
            return;
        }
    }
    for (int i = 0; i < n; ++i) encode(value(i), inverse, to[i * step]);
}

// Where component 0 of a key stands; component d follows d * 16 further on.
template <class T>
T* key_at(const KvSlot& slot, int head, int64_t position) {
    const int64_t tiles = slot.capacity / kLanes, tile = position / kLanes;
    return static_cast<T*>(slot.k) + ((head * tiles + tile) * slot.head_dim) * kLanes +
           position % kLanes;
}

template <class T>
T* value_at(const KvSlot& slot, int head, int64_t position) {
    const int64_t stride = round_up(slot.head_dim, kLanes);
    return static_cast<T*>(slot.v) + (int64_t{head} * slot.capacity + position) * stride;
}

constexpr int kAhead = 8;  // tokens that are fetched before they are written

template <class T>
void write(const KvWriteParams& p) {
    const int dim = p.slot.head_dim, padded = static_cast<int>(round_up(dim, kLanes));
    for (int head = 0; head < p.slot.num_heads; ++head) {
        for (int t = 0; t < p.num_tokens; ++t) {
            const float* k = p.k + t * p.ldx + int64_t{head} * dim;
            const float* v = p.v + t * p.ldx + int64_t{head} * dim;
            T* value = value_at<T>(p.slot, head, p.first + t);
            // Tokens may be pages apart, which the hardware does not fetch ahead.
            for (int d = 0; t + kAhead < p.num_tokens && d < dim; d += kLanes) {
                const int64_t next = kAhead * p.ldx + d;
                __builtin_prefetch(k + next), __builtin_prefetch(v + next);
            }
            const int64_t at = int64_t{head} * p.slot.capacity + p.first + t;
            const auto key_of = [&](int d) { return k[d]; };
            put(key_at<T>(p.slot, head, p.first + t), kLanes, dim, key_of, p.slot.k_scale, at);
            put(value, 1, dim, [&](int d) { return v[d]; }, p.slot.v_scale, at);
            for (int d = dim; d < padded; ++d) value[d] = T{};
        }
    }
}

template <class T>
void reinject(const KvReinjectParams& p) {
    const int dim = p.slot.head_dim, half = dim / 2;
    const size_t value_bytes = sizeof(T) * static_cast<size_t>(round_up(dim, kLanes));
    for (int head = 0; head < p.slot.num_heads; ++head) {
        for (int i = 0; i < p.count; ++i) {
            const int64_t source = p.source[i], target = int64_t{p.first} + i;
            const int64_t heads = int64_t{head} * p.slot.capacity;
            const T* from = key_at<T>(p.slot, head, source);
            const float scale = sizeof(T) == 1 ? p.slot.k_scale[heads + source] : 1.0f;
            const auto turned = [&](int d) {
                const int pair = d < half ? d : d - half;
                const float a = decode(from[pair * kLanes]) * scale;
                const float b = decode(from[(pair + half) * kLanes]) * scale;
                return d < half ? a * p.cos[pair] - b * p.sin[pair]
                                : b * p.cos[pair] + a * p.sin[pair];
            };
            T* to = key_at<T>(p.slot, head, target);
            put(to, kLanes, dim, turned, p.slot.k_scale, heads + target);
            std::memcpy(value_at<T>(p.slot, head, target), value_at<T>(p.slot, head, source),
                        value_bytes);
            if (sizeof(T) == 1) p.slot.v_scale[heads + target] = p.slot.v_scale[heads + source];
        }
    }
}

// Calls function(T{}) with the numbers that the cache holds.
template <class F>
void with_type(KvType type, F&& function) {
    switch (type) {
        case KvType::f32:
            return function(float{});
        case KvType::bf16:
            return function(uint16_t{});
        case KvType::f16:
            return function(Half{});
        case KvType::int8:
            return function(int8_t{});
    }
}

}  // namespace

void unpack_row(const UnpackRowParams& p) {
    const int64_t tile = p.row / kLanes, lane = p.row % kLanes;
    const auto* bytes = static_cast<const uint8_t*>(p.w) + packed_bytes(p.type, kLanes, p.k) * tile;
    const int64_t scales = num_scales(p.k, p.scale_run);
    const uint16_t* scale = p.w_scale + (p.w_scale ? tile * scales * kLanes + lane : 0);
    for (int k = 0; k < p.k; ++k) {
        const int block = k / kBlock, within = k % kBlock, scaled = block / p.scale_run;
        if (p.type == WeightType::f32) {
            std::memcpy(p.y + k, bytes + (int64_t{k} * kLanes + lane) * 4, 4);
        } else if (p.type == WeightType::bf16) {
            uint16_t value;
            std::memcpy(&value, bytes + ((k / 2) * kLanes + lane) * 4 + k % 2 * 2, 2);
            p.y[k] = bf16_to_float(value);
        } else if (p.type == WeightType::int8) {
            const int code = bytes[((block * 8 + within / 4) * kLanes + lane) * 4 + k % 4] - 128;
            p.y[k] = static_cast<float>(code) * f16_to_float(scale[scaled * kLanes]);
        } else {
            const int group = within % 16 / 4, shift = within / 16 * 4;
            const int byte = bytes[((block * 4 + group) * kLanes + lane) * 4 + k % 4];
            const int code = (byte >> shift & 15) - 8;
            p.y[k] = static_cast<float>(code) * f16_to_float(scale[scaled * kLanes]);
        }
    }
}

void gelu(const GeluParams& p) {
    for (int64_t i = 0; i < p.n; ++i) {
        p.x[i] = 0.5f * p.x[i] * (1.0f + std::erf(p.x[i] * 0.70710678f));
    }
}

void kv_write(const KvWriteParams& p) {
    with_type(p.slot.type, [&](auto number) { write<decltype(number)>(p); });
}

void kv_reinject(const KvReinjectParams& p) {
    with_type(p.slot.type, [&](auto number) { reinject<decltype(number)>(p); });
}

void top_k(TopKParams& p) {
    int kept = 0;
    float check = 0;
    for (int i = 0; i < p.n; ++i) {
        const float value = p.x[i];
        check += value * 0.0f;
        if (kept == p.k && !(value > p.values[kept - 1])) continue;
        int place = kept < p.k ? kept++ : kept - 1;
        for (; place > 0 && value > p.values[place - 1]; --place) {
            p.values[place] = p.values[place - 1];
            p.index[place] = p.index[place - 1];
        }
        p.values[place] = value;
        p.index[place] = i;
    }
    p.finite = check == 0.0f;
}

}  // namespace latrt::portable
