#include "engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/cpu/convert.h"

namespace latrt {
namespace {

constexpr int kTokensPerTask = 64;

struct AttentionTask {
    const Sequence* sequence;
    int kv_head, first_token, first, count;  // token of the step; first and count in the sequence
    float* mass;
};

// Bytes of one layer's keys, values and scales of them, for all KV heads of a slot.
struct LayerBytes {
    int64_t k, v, scale;

    LayerBytes(const DecoderConfig& c, int64_t capacity) {
        const int64_t places = capacity * c.num_kv_heads;
        k = places * c.head_dim * kv_bytes(c.kv_type);
        v = places * round_up(c.head_dim, kLanes) * kv_bytes(c.kv_type);
        scale = c.kv_type == KvType::int8 ? places * int64_t{sizeof(float)} : 0;
    }
    int64_t all() const { return k + v + 2 * scale; }
};

float read_number(KvType type, const void* base, int64_t index, const float* scale, int64_t row) {
    switch (type) {
        case KvType::f32:
            return static_cast<const float*>(base)[index];
        case KvType::bf16:
            return bf16_to_float(static_cast<const uint16_t*>(base)[index]);
        case KvType::f16:
            return f16_to_float(static_cast<const uint16_t*>(base)[index]);
        default:
            return static_cast<float>(static_cast<const int8_t*>(base)[index]) * scale[row];
    }
}

}  // namespace

Decoder::Decoder(const DecoderConfig& config, DecoderWeights weights, const Kernels& kernels,
                 int num_threads)
    : config_(config), weights_(std::move(weights)), runtime_(kernels, num_threads) {}

bool Decoder::alloc(int slot, int64_t capacity) {
    if (static_cast<size_t>(slot) >= slots_.size()) slots_.resize(static_cast<size_t>(slot) + 1);
    const int64_t places = round_up(capacity, kLanes);
    const int64_t bytes = LayerBytes(config_, places).all() * config_.num_layers;
    Slot fresh;
    fresh.memory.reset(static_cast<uint8_t*>(std::calloc(static_cast<size_t>(bytes), 1)));
    fresh.capacity = static_cast<int>(places);
    if (!fresh.memory) return false;
    slots_[static_cast<size_t>(slot)] = std::move(fresh);
    return true;
}

void Decoder::free(int slot) {
    slots_[static_cast<size_t>(slot)] = Slot{};
}

bool Decoder::fits(int slot, int64_t length) const {
    return slot >= 0 && static_cast<size_t>(slot) < slots_.size() && length >= 0 &&
           length <= slots_[static_cast<size_t>(slot)].capacity;
}

KvSlot Decoder::layer_cache(int slot, int layer) const {
    const Slot& s = slots_[static_cast<size_t>(slot)];
    const LayerBytes bytes(config_, s.capacity);
    uint8_t* k = s.memory.get() + layer * bytes.all();
    uint8_t* v = k + bytes.k;
    KvSlot cache = {k, v, config_.kv_type, config_.num_kv_heads, config_.head_dim, s.capacity};
    if (bytes.scale > 0) {
        cache.k_scale = reinterpret_cast<float*>(v + bytes.v);
        cache.v_scale = cache.k_scale + int64_t{config_.num_kv_heads} * s.capacity;
    }
    return cache;
}

void Decoder::embed(const DecoderStep& step) {
    float* x = grown(x_, static_cast<size_t>(step.num_tokens) * config_.width);
    runtime_.rows(step.num_tokens, [&](int first, int last) {
        for (int t = first; t < last; ++t) {
            float* y = x + int64_t{t} * config_.width;
            if (step.visual_row != nullptr && step.visual_row[t] >= 0) {
                std::memcpy(y, step.visual_embeds + step.visual_row[t] * config_.width,
                            sizeof(float) * static_cast<size_t>(config_.width));
            } else {
                const Matrix& table = weights_.embed;
                runtime_.kernels().unpack_row({table.w, table.scale, y, table.type,
                                               static_cast<int>(step.ids[t]), config_.width,
                                               table.scale_run});
            }
        }
    });
}

void Decoder::remember(const DecoderStep& step, int layer) {
    struct Piece {
        const Sequence* sequence;
        int token, first, count;  // token of the step; first and count in the sequence
    };
    const DecoderConfig& c = config_;
    const int64_t ldq = int64_t{c.num_heads + 2 * c.num_kv_heads} * c.head_dim;
    const int64_t k_at = int64_t{c.num_heads} * c.head_dim;
    const int64_t v_at = k_at + int64_t{c.num_kv_heads} * c.head_dim;
    std::vector<Piece> pieces;
    int token = 0;
    for (const Sequence& s : step.sequences) {
        for (int first = 0; first < s.count; first += kTokensPerTask) {
            pieces.push_back({&s, token + first, first, std::min(kTokensPerTask, s.count - first)});
        }
        token += s.count;
    }
    runtime_.tasks(static_cast<int>(pieces.size()), [&](int i, int) {
        const auto [sequence, at, first, count] = pieces[static_cast<size_t>(i)];
        float* qkv = qkv_.data() + at * ldq;
        const int64_t angle = int64_t{at} * (c.head_dim / 2);
        runtime_.kernels().rotate({qkv, step.cos + angle, step.sin + angle, count,
                                   c.num_heads + c.num_kv_heads, c.head_dim, ldq});
        runtime_.kernels().kv_write({layer_cache(sequence->slot, layer), qkv + k_at, qkv + v_at,
                                     count, sequence->past + first, ldq});
    });
}

void Decoder::attend(const DecoderStep& step, int layer) {
    const DecoderConfig& c = config_;
    const int group = c.num_heads / c.num_kv_heads;
    const int64_t ldq = int64_t{c.num_heads + 2 * c.num_kv_heads} * c.head_dim;
    const int64_t k_at = int64_t{c.num_heads} * c.head_dim;
    std::vector<AttentionTask> tasks;
    int token = 0, most = 0;
    float* mass = mass_.data();
    const bool last_layer = layer == c.num_layers - 1;
    for (const Sequence& s : step.sequences) {
        const bool asked = s.logits != nullptr || s.mass != nullptr;
        const int unread = last_layer ? s.count - (asked ? 1 : 0) : 0;
        for (int head = 0; head < c.num_kv_heads; ++head) {
            for (int first = unread; first < s.count; first += kTokensPerTask) {
                const int count = std::min(kTokensPerTask, s.count - first);
                const bool last = s.mass != nullptr && first + count == s.count;
                tasks.push_back({&s, head, token, first, count, last ? mass : nullptr});
            }
            if (s.mass != nullptr) mass += s.past + s.count;
        }
        token += s.count;
        most = std::max(most, s.past + s.count);
    }
    // The longest first: a thread that ends early finds short ones left.
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const AttentionTask& a, const AttentionTask& b) {
                         return a.sequence->past + a.first > b.sequence->past + b.first;
                     });
    const int64_t room = attention_scratch(group, c.head_dim, most);
    grown(scratch_, static_cast<size_t>(room * runtime_.num_threads()));
    const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    runtime_.tasks(static_cast<int>(tasks.size()), [&](int i, int thread) {
        const AttentionTask& task = tasks[static_cast<size_t>(i)];
        const KvSlot cache = layer_cache(task.sequence->slot, layer);
        const int64_t keys = int64_t{task.kv_head} * cache.capacity;
        const int64_t row = task.first_token + task.first;
        const int64_t head_at = int64_t{task.kv_head} * group * c.head_dim,
                      bytes = kv_bytes(c.kv_type);
        runtime_.kernels().attention(
            {qkv_.data() + row * ldq + head_at,
             static_cast<const uint8_t*>(cache.k) + keys * c.head_dim * bytes,
             static_cast<const uint8_t*>(cache.v) + keys * round_up(c.head_dim, kLanes) * bytes,
             heads_.data() + row * k_at + head_at, task.mass, scratch_.data() + thread * room,
             c.kv_type, task.count, group, c.head_dim, task.sequence->past + task.first + 1, true,
             scale, ldq, k_at, cache.k_scale ? cache.k_scale + keys : nullptr,
             cache.v_scale ? cache.v_scale + keys : nullptr});
    });
}

void Decoder::forward(const DecoderStep& step) {
    const DecoderConfig& c = config_;
    const size_t tokens = static_cast<size_t>(step.num_tokens);
    const int qkv_heads = c.num_heads + 2 * c.num_kv_heads;
    size_t mass_count = 0;
    for (const Sequence& s : step.sequences) {
        if (s.mass != nullptr)
            mass_count += static_cast<size_t>(c.num_kv_heads) * (s.past + s.count);
    }
    mass_.assign(mass_count, 0.0f);
    embed(step);
    float* x = x_.data();
    float* qkv = grown(qkv_, tokens * qkv_heads * c.head_dim);
    float* heads = grown(heads_, tokens * c.num_heads * c.head_dim);
    for (int i = 0; i < c.num_layers; ++i) {
        const DecoderLayer& layer = weights_.layers[static_cast<size_t>(i)];
        runtime_.linear({layer.input_norm, c.eps}, layer.qkv, x, step.num_tokens, qkv);
        remember(step, i);
        attend(step, i);
        const int rows = i + 1 < c.num_layers ? step.num_tokens : keep_asked(step);
        if (rows == 0) break;
        runtime_.linear(layer.o, heads, rows, x, true);
        runtime_.mlp({layer.post_norm, c.eps}, layer.gate_up, layer.down, x, rows);
    }
    finish(step);
}

int Decoder::keep_asked(const DecoderStep& step) {
    const size_t width = static_cast<size_t>(config_.width),
                 heads = static_cast<size_t>(config_.num_heads) * config_.head_dim;
    size_t token = 0, kept = 0;
    for (const Sequence& s : step.sequences) {
        token += static_cast<size_t>(s.count);
        if (s.logits == nullptr) continue;
        std::memmove(&x_[kept * width], &x_[(token - 1) * width], width * sizeof(float));
        std::memmove(&heads_[kept * heads], &heads_[(token - 1) * heads], heads * sizeof(float));
        ++kept;
    }
    return static_cast<int>(kept);
}

void Decoder::finish(const DecoderStep& step) {
    const DecoderConfig& c = config_;
    std::vector<float*> out;
    const float* mass = mass_.data();
    for (const Sequence& s : step.sequences) {
        if (s.logits != nullptr) out.push_back(s.logits);
        if (s.mass == nullptr) continue;
        const int keys = s.past + s.count;
        const float share = 1.0f / static_cast<float>(c.num_layers * c.num_heads);
        for (int key = 0; key < keys; ++key) {
            float sum = 0;
            for (int head = 0; head < c.num_kv_heads; ++head)
                sum += mass[int64_t{head} * keys + key];
            s.mass[key] = sum * share;
        }
        mass += int64_t{c.num_kv_heads} * keys;
    }
    if (out.empty()) return;
    const int rows = static_cast<int>(out.size());
    const Norm norm = {weights_.norm, c.eps};
    if (rows == 1) return runtime_.linear(norm, weights_.head, x_.data(), 1, out[0]);
    float* logits = grown(logits_, out.size() * static_cast<size_t>(c.vocab_size));
    runtime_.linear(norm, weights_.head, x_.data(), rows, logits);
    for (size_t i = 0; i < out.size(); ++i) {
        std::memcpy(out[i], logits + i * static_cast<size_t>(c.vocab_size),
                    sizeof(float) * static_cast<size_t>(c.vocab_size));
    }
}

void Decoder::kv_reinject(int slot, const int64_t* source, int count, int first, const float* cos,
                          const float* sin) {
    runtime_.tasks(config_.num_layers, [&](int layer, int) {
        runtime_.kernels().kv_reinject({layer_cache(slot, layer), source, cos, sin, count, first});
    });
}

void Decoder::read_kv(int slot, int layer, int head, int position, float* k, float* v) const {
    const KvSlot cache = layer_cache(slot, layer);
    const int64_t at = int64_t{head} * cache.capacity;
    const int64_t k_at = (at + position / kLanes * kLanes) * cache.head_dim + position % kLanes;
    const int64_t v_at = (at + position) * round_up(cache.head_dim, kLanes);
    for (int d = 0; d < cache.head_dim; ++d) {
        k[d] = read_number(cache.type, cache.k, k_at + d * kLanes, cache.k_scale, at + position);
        v[d] = read_number(cache.type, cache.v, v_at + d, cache.v_scale, at + position);
    }
}

}  // namespace latrt
