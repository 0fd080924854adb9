// The model that a bundle holds: sizes, rotary settings, special tokens.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <vector>

#include "engine/decoder.h"
#include "engine/vision.h"
#include "runtime/json.h"

namespace latrt {

struct ModelConfig {
    DecoderConfig decoder;
    VisionConfig vision;
    std::vector<bool> whole;  // for each block of the tower: attends over whole frames
    double rope_theta;
    std::array<int, 3> mrope_section;
    int max_position_embeddings;
    int patch_size, merge_size, temporal_patch_size, window_size;
    int64_t image_token_id;
    std::set<int64_t> eos_token_ids;

    // The "config" of a bundle.json. Throws JsonError naming the field.
    static ModelConfig parse(const Json& json);
};

// Token ids of an eos_token_id field: one, several, or none (null or not there).
std::set<int64_t> read_token_ids(const Json* json);

}  // namespace latrt
