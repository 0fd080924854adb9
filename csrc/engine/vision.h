// The vision tower and merger of Qwen2.5-VL: patches in window order to visual embeddings.
#pragma once

#include <vector>

#include "engine/runtime.h"

namespace latrt {

struct VisionConfig {
    int width, ffn, num_heads, head_dim, patch_dim, merge_unit, out_width;
};

struct VisionBlock {
    const float* norm1;  // (E)
    Matrix qkv;          // (3 E, E)
    Matrix proj;         // (E, E)
    const float* norm2;  // (E)
    Matrix gate_up;      // (2 F, E): gate, then up
    Matrix down;         // (E, F)
    bool whole;          // attends over whole frames, not windows
};

struct VisionWeights {
    Matrix patch_embed;  // (E, patch_dim)
    std::vector<VisionBlock> blocks;
    const float* merger_norm;  // (E)
    Matrix merger_in;          // (unit E, unit E)
    Matrix merger_out;         // (out, unit E)
};

struct VisionInput {
    const float* pixel_values;  // (P, patch_dim), windows one after another
    const float *cos, *sin;     // (P, D/2)
    int num_patches;
    std::vector<int> windows, frames;  // patches of each; both sum to P
};

class Vision {
 public:
    Vision(const VisionConfig& config, VisionWeights weights, const Kernels& kernels,
           int num_threads);

    const VisionConfig& config() const { return config_; }

    // out (P / unit, out_width), in the order of the input.
    void forward(const VisionInput& input, float* out);

 private:
    void attend(const std::vector<int>& segments);

    VisionConfig config_;
    VisionWeights weights_;
    Runtime runtime_;
    // Of the keys and values of a call: bf16 where that is faster and the weights are rounded too.
    KvType kv_type_;
    Buffer<float> x_, normed_, qkv_, heads_, merged_, scratch_;
};

}  // namespace latrt
