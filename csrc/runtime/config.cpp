#include "runtime/config.h"

#include <algorithm>
#include <cmath>

namespace latrt {
namespace {

constexpr int64_t kMaxSize = 1 << 20, kMaxVocabulary = 1 << 24, kMaxLayers = 1024;

int size(const Json& json, const char* key, int64_t most = kMaxSize) {
    try {
        return static_cast<int>(json.at(key).integer(1, most));
    } catch (const JsonError& error) {
        throw JsonError(std::string(key) + ": " + error.what());
    }
}

void require(bool condition, const char* what) {
    if (!condition) throw JsonError(std::string("inconsistent sizes: ") + what);
}

DecoderConfig decoder_config(const Json& json) {
    DecoderConfig c = {};
    c.vocab_size = size(json, "vocab_size", kMaxVocabulary);
    c.width = size(json, "hidden_size");
    c.ffn = size(json, "intermediate_size");
    c.num_layers = size(json, "num_hidden_layers", kMaxLayers);
    c.num_heads = size(json, "num_attention_heads");
    c.num_kv_heads = size(json, "num_key_value_heads");
    c.head_dim = size(json, "head_dim");
    c.eps = static_cast<float>(json.at("rms_norm_eps").number());
    require(c.num_heads % c.num_kv_heads == 0, "num_attention_heads % num_key_value_heads");
    require(int64_t{c.num_heads} * c.head_dim <= kMaxSize, "num_attention_heads * head_dim");
    require(c.eps > 0, "rms_norm_eps > 0");
    return c;
}

VisionConfig vision_config(const Json& json, int merge) {
    VisionConfig c = {};
    c.width = size(json, "hidden_size");
    c.ffn = size(json, "intermediate_size");
    c.num_heads = size(json, "num_heads");
    c.out_width = size(json, "out_hidden_size");
    require(c.width % c.num_heads == 0, "vision hidden_size % num_heads");
    c.head_dim = c.width / c.num_heads;
    require(c.head_dim % 4 == 0, "vision head_dim % 4");
    const int64_t patch = size(json, "patch_size"), frames = size(json, "temporal_patch_size", 64);
    const int64_t values = size(json, "in_channels", 4) * frames * patch * patch;
    require(patch <= 1024 && values <= kMaxSize, "values of a patch");
    require(int64_t{c.width} * merge * merge <= kMaxSize, "vision hidden_size * merge^2");
    c.patch_dim = static_cast<int>(values);
    c.merge_unit = merge * merge;
    return c;
}

}  // namespace

ModelConfig ModelConfig::parse(const Json& json) {
    ModelConfig c = {};
    if (json.at("model_type").string() != "qwen2_5_vl")
        throw JsonError("model_type: expected qwen2_5_vl");
    c.decoder = decoder_config(json);
    const Json& vision = json.at("vision_config");
    c.merge_size = size(vision, "spatial_merge_size", 64);
    c.vision = vision_config(vision, c.merge_size);
    c.patch_size = size(vision, "patch_size");
    c.temporal_patch_size = size(vision, "temporal_patch_size");
    c.window_size = size(vision, "window_size");
    require(size(vision, "in_channels") == 3, "in_channels is 3");
    require(c.window_size >= c.patch_size * c.merge_size, "window_size holds a merged patch");
    require(c.vision.out_width == c.decoder.width, "vision out_hidden_size is hidden_size");
    c.whole.assign(static_cast<size_t>(size(vision, "depth", kMaxLayers)), false);
    for (const Json& block : vision.at("fullatt_block_indexes").array()) {
        const int64_t index = block.integer(0, 1 << 20);
        if (index < static_cast<int64_t>(c.whole.size()))
            c.whole[static_cast<size_t>(index)] = true;
    }
    c.rope_theta = json.at("rope_theta").number();
    require(c.rope_theta > 0, "rope_theta > 0");
    const auto& section = json.at("rope_scaling").at("mrope_section").array();
    require(section.size() == 3, "three of mrope_section");
    for (size_t i = 0; i < 3; ++i)
        c.mrope_section[i] = static_cast<int>(section[i].integer(0, kMaxSize));
    require(
        (c.mrope_section[0] + c.mrope_section[1] + c.mrope_section[2]) * 2 == c.decoder.head_dim,
        "mrope_section sums to head_dim / 2");
    c.max_position_embeddings = size(json, "max_position_embeddings", 1 << 30);
    c.image_token_id = json.at("image_token_id").integer(0, c.decoder.vocab_size - 1);
    c.eos_token_ids = read_token_ids(json.find("eos_token_id"));
    return c;
}

std::set<int64_t> read_token_ids(const Json* json) {
    std::set<int64_t> ids;
    if (!json || json->is_null()) return ids;
    if (!json->is(Json::Kind::array)) return {json->integer(0, kMaxVocabulary)};
    for (const Json& id : json->array()) ids.insert(id.integer(0, kMaxVocabulary));
    return ids;
}

}  // namespace latrt
