#include "engine/vision.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace latrt {
namespace {

constexpr float kEps = 1e-6f;

}  // namespace

Vision::Vision(const VisionConfig& config, VisionWeights weights, const Kernels& kernels,
               int num_threads)
    : config_(config),
      weights_(std::move(weights)),
      runtime_(kernels, num_threads),
      kv_type_(kernels.isa >= Isa::avx512_bf16 && weights_.blocks[0].qkv.type != WeightType::f32
                   ? KvType::bf16
                   : KvType::f32) {}

void Vision::attend(const std::vector<int>& segments) {
    const int dim = config_.head_dim, heads = config_.num_heads;
    const int longest = *std::max_element(segments.begin(), segments.end());
    const int64_t places = round_up(longest, kLanes), padded = round_up(dim, kLanes);
    const int64_t room = places * (dim + padded) + attention_scratch(1, dim, longest);
    grown(scratch_, static_cast<size_t>(room * runtime_.num_threads()));
    std::vector<int> starts;
    int start = 0;
    for (const int length : segments) starts.push_back(start), start += length;
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const int64_t ldx = int64_t{3} * config_.width;
    runtime_.tasks(static_cast<int>(segments.size()) * heads, [&](int i, int thread) {
        const size_t segment = static_cast<size_t>(i / heads);
        const int head = i % heads, length = segments[segment];
        const float* q = qkv_.data() + starts[segment] * ldx + int64_t{head} * dim;
        float* k = scratch_.data() + thread * room;
        float* v = k + places * dim;
        const KvSlot cache = {k, v, kv_type_, 1, dim, static_cast<int>(places)};
        runtime_.kernels().kv_write(
            {cache, q + config_.width, q + 2 * config_.width, length, 0, ldx});
        float* out = heads_.data() + int64_t{starts[segment]} * config_.width + head * dim;
        runtime_.kernels().attention({q, k, v, out, nullptr, v + places * padded, kv_type_, length,
                                      1, dim, length, false, scale, ldx, config_.width});
    });
}

void Vision::forward(const VisionInput& input, float* out) {
    const VisionConfig& c = config_;
    const int m = input.num_patches;
    const size_t patches = static_cast<size_t>(m), width = static_cast<size_t>(c.width);
    float* x = grown(x_, patches * width);
    float* qkv = grown(qkv_, patches * 3 * width);
    float* heads = grown(heads_, patches * width);
    runtime_.linear(weights_.patch_embed, input.pixel_values, m, x);
    for (const VisionBlock& block : weights_.blocks) {
        runtime_.linear({block.norm1, kEps}, block.qkv, x, m, qkv);
        runtime_.rows(m, [&](int first, int last) {
            const int64_t ldq = int64_t{3} * c.width, angle = int64_t{first} * (c.head_dim / 2);
            runtime_.kernels().rotate({qkv + first * ldq, input.cos + angle, input.sin + angle,
                                       last - first, 2 * c.num_heads, c.head_dim, ldq});
        });
        attend(block.whole ? input.frames : input.windows);
        runtime_.linear(block.proj, heads, m, x, true);
        runtime_.mlp({block.norm2, kEps}, block.gate_up, block.down, x, m);
    }
    float* normed = grown(normed_, patches * width);
    runtime_.rms_norm({weights_.merger_norm, kEps}, x, normed, m, c.width);
    const int merged = m / c.merge_unit, merged_width = c.width * c.merge_unit;
    float* hidden = grown(merged_, patches * width);
    runtime_.linear(weights_.merger_in, normed, merged, hidden);
    runtime_.rows(merged, [&](int first, int last) {
        runtime_.kernels().gelu(
            {hidden + int64_t{first} * merged_width, int64_t{last - first} * merged_width});
    });
    runtime_.linear(weights_.merger_out, hidden, merged, out);
}

}  // namespace latrt
