#include "engine/weights.h"

#include <stdexcept>

namespace latrt {
namespace {

// As runtime/config.cpp and la_trt/config.py bound them; all sums and products below fit.
constexpr int64_t kMaxSize = 1 << 20, kMaxVocabulary = 1 << 24, kMaxLayers = 1024;

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("sizes do not agree: ") + what);
}

void check_size(const char* name, int64_t size, int64_t most = kMaxSize) {
    if (size >= 1 && size <= most) return;
    throw std::invalid_argument(std::string("sizes: ") + name + " is " + std::to_string(size) +
                                ", expected 1 to " + std::to_string(most));
}

void check_sizes(const DecoderConfig& c) {
    check_size("vocab_size", c.vocab_size, kMaxVocabulary);
    check_size("hidden_size", c.width);
    check_size("intermediate_size", c.ffn);
    check_size("num_hidden_layers", c.num_layers, kMaxLayers);
    check_size("num_attention_heads", c.num_heads);
    check_size("num_key_value_heads", c.num_kv_heads);
    check_size("head_dim", c.head_dim);
    check_size("num_attention_heads * head_dim", int64_t{c.num_heads} * c.head_dim);
    require(c.num_heads % c.num_kv_heads == 0, "num_attention_heads % num_key_value_heads");
}

void check_sizes(const VisionConfig& c, size_t depth) {
    check_size("vision depth", static_cast<int64_t>(depth), kMaxLayers);
    check_size("vision hidden_size", c.width);
    check_size("vision intermediate_size", c.ffn);
    check_size("vision out_hidden_size", c.out_width);
    check_size("vision num_heads", c.num_heads);
    check_size("values of a patch", c.patch_dim);
    check_size("vision merge^2", c.merge_unit);
    check_size("vision hidden_size * merge^2", int64_t{c.width} * c.merge_unit);
    require(int64_t{c.num_heads} * c.head_dim == c.width, "vision num_heads * head_dim");
}

const char* name_of(DType dtype) {
    constexpr const char* kNames[] = {"f32", "u16", "u8", "?"};
    return kNames[static_cast<int>(dtype)];
}

}  // namespace

std::string describe(DType dtype, const std::vector<int64_t>& shape) {
    std::string text = std::string(name_of(dtype)) + " [";
    for (size_t i = 0; i < shape.size(); ++i) {
        text += (i ? ", " : "") + std::to_string(shape[i]);
    }
    return text + "]";
}

void check_tensor(const std::string& name, const Tensor& tensor, DType dtype,
                  const std::vector<int64_t>& shape) {
    if (tensor.dtype == dtype && tensor.shape == shape) return;
    throw std::invalid_argument(name + ": expected " + describe(dtype, shape) + ", got " +
                                describe(tensor.dtype, tensor.shape));
}

const Tensor& Weights::tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw std::invalid_argument(name + ": missing");
    return found->second;
}

const float* Weights::vector(const std::string& name, int n) const {
    const Tensor& found = tensor(name);
    check_tensor(name, found, DType::f32, {n});
    return static_cast<const float*>(found.data);
}

Matrix Weights::matrix(const std::string& name, int n, int k, bool bias) const {
    const std::string weight = name + ".weight";
    const Tensor& found = tensor(weight);
    Matrix matrix;
    matrix.n = n, matrix.k = k, matrix.w = found.data;
    const int64_t tiles = num_tiles(n), blocks = num_blocks(k);
    if (found.dtype == DType::f32) {
        check_tensor(weight, found, DType::f32, {tiles, k, kLanes});
    } else if (found.dtype == DType::u16) {
        matrix.type = WeightType::bf16;
        check_tensor(weight, found, DType::u16, {tiles, (k + 1) / 2, kLanes, 2});
    } else {
        const bool bits8 = found.shape.size() == 5 && found.shape[2] == 8;
        matrix.type = bits8 ? WeightType::int8 : WeightType::int4;
        check_tensor(weight, found, DType::u8, {tiles, blocks, bits8 ? 8 : 4, kLanes, 4});
        const Tensor& scale = tensor(name + ".scale");
        const int64_t shared = num_scales(k, kScaleRun);
        const bool runs = scale.shape.size() == 3 && scale.shape[1] == shared && shared < blocks;
        if (runs) matrix.scale_run = kScaleRun;
        check_tensor(name + ".scale", scale, DType::u16, {tiles, runs ? shared : blocks, kLanes});
        matrix.scale = static_cast<const uint16_t*>(scale.data);
    }
    if (bias) matrix.bias = vector(name + ".bias", n);
    return matrix;
}

DecoderWeights Weights::decoder(const DecoderConfig& c) const {
    check_sizes(c);
    DecoderWeights out;
    const int q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
    out.embed = matrix("model.embed_tokens", c.vocab_size, c.width, false);
    out.head = tensors_.count("lm_head.weight") ? matrix("lm_head", c.vocab_size, c.width, false)
                                                : out.embed;
    out.norm = vector("model.norm.weight", c.width);
    for (int i = 0; i < c.num_layers; ++i) {
        const std::string name = "model.layers." + std::to_string(i) + ".";
        DecoderLayer layer;
        layer.input_norm = vector(name + "input_layernorm.weight", c.width);
        layer.qkv = matrix(name + "self_attn.qkv_proj", q + 2 * kv, c.width, true);
        layer.o = matrix(name + "self_attn.o_proj", c.width, q, false);
        layer.post_norm = vector(name + "post_attention_layernorm.weight", c.width);
        layer.gate_up = matrix(name + "mlp.gate_up_proj", 2 * c.ffn, c.width, false);
        layer.down = matrix(name + "mlp.down_proj", c.width, c.ffn, false);
        out.layers.push_back(layer);
    }
    return out;
}

VisionWeights Weights::vision(const VisionConfig& c, const std::vector<bool>& whole) const {
    check_sizes(c, whole.size());
    VisionWeights out;
    out.patch_embed = matrix("visual.patch_embed.proj", c.width, c.patch_dim, false);
    for (size_t i = 0; i < whole.size(); ++i) {
        const std::string name = "visual.blocks." + std::to_string(i) + ".";
        VisionBlock block;
        block.norm1 = vector(name + "norm1.weight", c.width);
        block.qkv = matrix(name + "attn.qkv", 3 * c.width, c.width, true);
        block.proj = matrix(name + "attn.proj", c.width, c.width, true);
        block.norm2 = vector(name + "norm2.weight", c.width);
        block.gate_up = matrix(name + "mlp.gate_up_proj", 2 * c.ffn, c.width, true);
        block.down = matrix(name + "mlp.down_proj", c.width, c.ffn, true);
        block.whole = whole[i];
        out.blocks.push_back(block);
    }
    const int merged = c.width * c.merge_unit;
    out.merger_norm = vector("visual.merger.ln_q.weight", c.width);
    out.merger_in = matrix("visual.merger.mlp.0", merged, merged, true);
    out.merger_out = matrix("visual.merger.mlp.2", c.out_width, merged, true);
    return out;
}

}  // namespace latrt
