// The decoder of Qwen2.5-VL over KV slots: packed new tokens to logits and visual mass.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "engine/runtime.h"

namespace latrt {

struct DecoderConfig {
    int vocab_size, width, ffn, num_layers, num_heads, num_kv_heads, head_dim;
    float eps;
    KvType kv_type;
};

struct DecoderLayer {
    const float* input_norm;  // (E)
    Matrix qkv;               // ((H + 2 K) D, E)
    Matrix o;                 // (E, H D)
    const float* post_norm;   // (E)
    Matrix gate_up;           // (2 F, E): gate, then up
    Matrix down;              // (E, F)
};

struct DecoderWeights {
    Matrix embed, head;  // (V, E); the same memory where they are tied
    const float* norm;   // (E)
    std::vector<DecoderLayer> layers;
};

// The next `count` tokens of the step belong to `slot`, which holds `past` tokens before.
struct Sequence {
    int slot, past, count;
    float* logits;  // (V) of the last token, or null   out
    float* mass;    // (past + count): the last token's attention probability on each key, mean
                    // over layers and query heads, or null   out
};

struct DecoderStep {
    const int64_t* ids;          // (T)
    const int64_t* visual_row;   // (T) rows of visual_embeds, below 0: the id's embedding; or null
    const float* visual_embeds;  // (M, E)
    const float *cos, *sin;      // (T, D/2): M-RoPE, chosen by section
    std::vector<Sequence> sequences;
    int num_tokens;
};

class Decoder {
 public:
    Decoder(const DecoderConfig& config, DecoderWeights weights, const Kernels& kernels,
            int num_threads);

    const DecoderConfig& config() const { return config_; }

    // Memory for a slot; pages are touched only as it fills. False where there is none.
    bool alloc(int slot, int64_t capacity);
    void free(int slot);

    // Whether the slot is allocated and has room for `length` tokens.
    bool fits(int slot, int64_t length) const;

    // Appends the step's tokens to their slots, whose capacities suffice.
    void forward(const DecoderStep& step);

    // Appends copies of keys and values at `first`, keys turned by the angles cos, sin (D/2).
    void kv_reinject(int slot, const int64_t* source, int count, int first, const float* cos,
                     const float* sin);

    // Key and value at a position of a layer and KV head, (D) each.
    void read_kv(int slot, int layer, int head, int position, float* k, float* v) const;

 private:
    struct Release {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    struct Slot {
        std::unique_ptr<uint8_t, Release> memory;
        int capacity = 0;
    };

    KvSlot layer_cache(int slot, int layer) const;
    void embed(const DecoderStep& step);
    // Turns queries and keys of the step's tokens, and writes keys and values.
    void remember(const DecoderStep& step, int layer);
    // The last layer asks only for tokens whose output is read.
    void attend(const DecoderStep& step, int layer);
    // Moves the tokens whose logits are asked for to the front of x and heads; their number.
    int keep_asked(const DecoderStep& step);
    void finish(const DecoderStep& step);

    DecoderConfig config_;
    DecoderWeights weights_;
    Runtime runtime_;
    std::vector<Slot> slots_;
    Buffer<float> x_, qkv_, heads_, scratch_, mass_, logits_;
};

}  // namespace latrt
