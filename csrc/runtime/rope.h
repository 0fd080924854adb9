// Rotary angles and M-RoPE positions, computed on the host.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "runtime/config.h"

namespace latrt {

// An image's patches: rows and columns, multiples of merge_size.
struct Grid {
    int h, w;
};

using Positions = std::array<std::vector<int64_t>, 3>;  // temporal, height, width of each token

// theta ** (-2 i / dim), (dim / 2).
std::vector<float> inverse_frequencies(double theta, int dim);

// cos and sin (T, D / 2): pair i takes the position that its M-RoPE section says.
struct Angles {
    std::vector<float> cos, sin;
};
Angles mrope_angles(const Positions& positions, const ModelConfig& config);

// cos and sin (D / 2) of keys that move by `delta` positions on all axes.
Angles shift_angles(int64_t delta, const ModelConfig& config);

// Positions of a prompt. `visual_row` (T) is -1 for text; images stand in one piece each, in
// order. `next` is one more than the largest position used.
Positions prompt_positions(const std::vector<int64_t>& visual_row, const std::vector<Grid>& grids,
                           int merge_size, int64_t& next);

// Positions of copies of `selected` visual tokens (of all images together, ascending) from `next`
// on; an image without a selected token takes no positions.
Positions injection_positions(const std::vector<Grid>& grids, int merge_size,
                              const std::vector<int64_t>& selected, int64_t& next);

// Window order of the tower's patches for one image. `token_order` (M): the merged token at each
// place; `cos`, `sin` (P, D / 2) in that order; `windows`: patches of each.
struct VisionLayout {
    std::vector<int64_t> token_order;
    Angles angles;
    std::vector<int> windows;
};
VisionLayout vision_layout(Grid grid, const ModelConfig& config);

}  // namespace latrt
