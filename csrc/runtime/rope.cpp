#include "runtime/rope.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace latrt {
namespace {

constexpr double kVisionTheta = 10000.0;

// (t, t + row, t + col) of one image's tokens from `start` on, appended; the next free position.
int64_t append_image(Positions& out, Grid grid, int merge, int64_t start) {
    const int rows = grid.h / merge, cols = grid.w / merge;
    for (int i = 0; i < rows * cols; ++i) {
        out[0].push_back(start);
        out[1].push_back(start + i / cols);
        out[2].push_back(start + i % cols);
    }
    return start + std::max(rows, cols);
}

}  // namespace

std::vector<float> inverse_frequencies(double theta, int dim) {
    std::vector<float> out;
    for (int i = 0; i < dim; i += 2) {
        const float exponent = static_cast<float>(i) / static_cast<float>(dim);
        out.push_back(1.0f / static_cast<float>(std::pow(theta, double{exponent})));
    }
    return out;
}

Angles mrope_angles(const Positions& positions, const ModelConfig& config) {
    const std::vector<float> inverse =
        inverse_frequencies(static_cast<float>(config.rope_theta), config.decoder.head_dim);
    Angles out;
    for (size_t t = 0; t < positions[0].size(); ++t) {
        size_t pair = 0;
        for (size_t axis = 0; axis < 3; ++axis) {
            for (int i = 0; i < config.mrope_section[axis]; ++i, ++pair) {
                const float angle = static_cast<float>(positions[axis][t]) * inverse[pair];
                out.cos.push_back(static_cast<float>(std::cos(double{angle})));
                out.sin.push_back(static_cast<float>(std::sin(double{angle})));
            }
        }
    }
    return out;
}

Angles shift_angles(int64_t delta, const ModelConfig& config) {
    Angles out;
    for (const float inverse :
         inverse_frequencies(static_cast<float>(config.rope_theta), config.decoder.head_dim)) {
        const double angle = static_cast<double>(delta) * inverse;
        out.cos.push_back(static_cast<float>(std::cos(angle)));
        out.sin.push_back(static_cast<float>(std::sin(angle)));
    }
    return out;
}

Positions prompt_positions(const std::vector<int64_t>& visual_row, const std::vector<Grid>& grids,
                           int merge_size, int64_t& next) {
    Positions out;
    size_t image = 0;
    for (size_t token = 0; token < visual_row.size(); token = out[0].size()) {
        if (visual_row[token] >= 0) {
            next = append_image(out, grids[image++], merge_size, next);
            continue;
        }
        for (auto& axis : out) axis.push_back(next);
        ++next;
    }
    return out;
}

Positions injection_positions(const std::vector<Grid>& grids, int merge_size,
                              const std::vector<int64_t>& selected, int64_t& next) {
    Positions out;
    int64_t first = 0;
    size_t at = 0;
    for (const Grid grid : grids) {
        Positions whole;
        const int64_t after = append_image(whole, grid, merge_size, next);
        const int64_t end = first + static_cast<int64_t>(whole[0].size());
        bool any = false;
        for (; at < selected.size() && selected[at] < end; ++at, any = true) {
            const size_t inside = static_cast<size_t>(selected[at] - first);
            for (size_t axis = 0; axis < 3; ++axis) out[axis].push_back(whole[axis][inside]);
        }
        if (any) next = after;
        first = end;
    }
    return out;
}

VisionLayout vision_layout(Grid grid, const ModelConfig& config) {
    const int merge = config.merge_size, rows = grid.h / merge, cols = grid.w / merge;
    const int side = config.window_size / merge / config.patch_size;
    const int across = (cols + side - 1) / side;
    const auto window = [&](int64_t token) {
        return token / cols / side * across + token % cols / side;
    };
    VisionLayout out;
    out.token_order.resize(static_cast<size_t>(rows) * static_cast<size_t>(cols));
    std::iota(out.token_order.begin(), out.token_order.end(), int64_t{0});
    std::stable_sort(out.token_order.begin(), out.token_order.end(),
                     [&](int64_t a, int64_t b) { return window(a) < window(b); });
    out.windows.assign(static_cast<size_t>((rows + side - 1) / side * across), 0);
    const std::vector<float> inverse =
        inverse_frequencies(kVisionTheta, config.vision.head_dim / 2);
    for (const int64_t token : out.token_order) {
        out.windows[static_cast<size_t>(window(token))] += merge * merge;
        for (int inside = 0; inside < merge * merge; ++inside) {
            for (const int64_t place :
                 {token / cols * merge + inside / merge, token % cols * merge + inside % merge}) {
                for (const float frequency : inverse) {
                    const float angle = static_cast<float>(place) * frequency;
                    out.angles.cos.push_back(static_cast<float>(std::cos(double{angle})));
                    out.angles.sin.push_back(static_cast<float>(std::sin(double{angle})));
                }
            }
        }
    }
    return out;
}

}  // namespace latrt
