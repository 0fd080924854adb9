// RGB pixels as the vision tower's patches: resize, rescale, normalise, patchify.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/json.h"

namespace latrt {

// An image of the caller's: rows of 8-bit RGB, `stride` bytes apart.
struct RgbImage {
    const uint8_t* pixels;
    int width, height;
    int64_t stride;
};

// As preprocessor_config.json says; pixel bounds count h * w.
struct ImageConfig {
    int64_t min_pixels = 56 * 56, max_pixels = 28 * 28 * 16384;
    int patch_size = 14, temporal_patch_size = 2, merge_size = 2;
    std::array<double, 3> mean = {0.48145466, 0.4578275, 0.40821073};
    std::array<double, 3> std = {0.26862954, 0.26130258, 0.27577711};
    double rescale_factor = 1.0 / 255;

    int factor() const { return patch_size * merge_size; }
    int patch_dim() const { return 3 * temporal_patch_size * patch_size * patch_size; }

    // Throws JsonError naming the field. Resampling must be bicubic (3).
    static ImageConfig parse(const Json& json);
};

struct Size {
    int height, width;
};

// Multiples of factor, area within the bounds, ratio about kept (Qwen2-VL's rule). Throws Error
// E_IMAGE_ASPECT where one side is more than 200 times the other.
Size smart_resize(Size size, const ImageConfig& config);

// Antialiased bicubic resize as Pillow 13 does it, to the bit: (h, w, 3).
std::vector<uint8_t> resize_bicubic(const RgbImage& image, Size size);

// `pixel_values` (P, patch_dim): patches of one merged token together, tokens row-major; in a
// patch channel, time, row, column. The grid is in patches.
struct Patches {
    std::vector<float> pixel_values;
    int grid_h, grid_w;
};

// Throws Error E_IMAGE_ASPECT.
Patches preprocess(const RgbImage& image, const ImageConfig& config);

}  // namespace latrt
