#include "runtime/image.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "runtime/error.h"

namespace latrt {
namespace {

constexpr int kFractionBits = 22;  // of a weight; a sum of 8-bit products fits in 32 bits
constexpr double kSupport = 2.0;   // of the cubic, in source pixels when enlarging

double cubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// The source pixels of one output pixel and their fixed-point weights.
struct Taps {
    int first;
    std::vector<int32_t> weights;
};

std::vector<Taps> taps_of(int from, int to) {
    const double scale = static_cast<double>(from) / to, stretch = std::max(scale, 1.0);
    const double support = kSupport * stretch, shrink = 1.0 / stretch;
    std::vector<Taps> out;
    for (int i = 0; i < to; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int last = std::min(from, static_cast<int>(centre + support + 0.5));
        std::vector<double> exact;
        double sum = 0;
        for (int j = first; j < last; ++j) {
            exact.push_back(cubic((j - centre + 0.5) * shrink));
            sum += exact.back();
        }
        Taps taps{first, {}};
        for (double weight : exact) {
            if (sum != 0) weight /= sum;
            taps.weights.push_back(
                static_cast<int32_t>(weight * (1 << kFractionBits) + (weight < 0 ? -0.5 : 0.5)));
        }
        out.push_back(std::move(taps));
    }
    return out;
}

// One pixel: the weighted sum of pixels `step` bytes apart, rounded and cut to 8 bits.
void blend(const uint8_t* source, int64_t step, const Taps& taps, uint8_t* out) {
    int32_t sum[3] = {1 << (kFractionBits - 1), 1 << (kFractionBits - 1), 1 << (kFractionBits - 1)};
    for (const int32_t weight : taps.weights) {
        for (int c = 0; c < 3; ++c) sum[c] += source[c] * weight;
        source += step;
    }
    for (int c = 0; c < 3; ++c)
        out[c] = static_cast<uint8_t>(std::clamp(sum[c] >> kFractionBits, 0, 255));
}

std::vector<uint8_t> resize_across(const RgbImage& image, int width) {
    const int64_t wide = int64_t{3} * width;
    std::vector<uint8_t> out(static_cast<size_t>(wide * image.height));
    const std::vector<Taps> taps = taps_of(image.width, width);
    for (int y = 0; y < image.height; ++y) {
        const uint8_t* source = image.pixels + y * image.stride;
        uint8_t* row = out.data() + y * wide;
        if (width == image.width) {
            std::copy(source, source + wide, row);
            continue;
        }
        for (int x = 0; x < width; ++x) {
            const Taps& t = taps[static_cast<size_t>(x)];
            blend(source + 3 * t.first, 3, t, row + 3 * x);
        }
    }
    return out;
}

std::vector<uint8_t> resize_down(const RgbImage& image, int height) {
    const int64_t wide = int64_t{3} * image.width;
    std::vector<uint8_t> out(static_cast<size_t>(wide * height));
    const std::vector<Taps> taps = taps_of(image.height, height);
    for (int y = 0; y < height; ++y) {
        const Taps& t = taps[static_cast<size_t>(y)];
        const uint8_t* source = image.pixels + t.first * image.stride;
        uint8_t* row = out.data() + y * wide;
        if (height == image.height) {
            const uint8_t* same = image.pixels + y * image.stride;
            std::copy(same, same + wide, row);
            continue;
        }
        for (int x = 0; x < image.width; ++x) blend(source + 3 * x, image.stride, t, row + 3 * x);
    }
    return out;
}

int positive(const Json& json, const char* key, int otherwise) {
    const Json* found = json.find(key);
    return !found || found->is_null() ? otherwise : static_cast<int>(found->integer(1, 1 << 20));
}

std::array<double, 3> three(const Json& json, const char* key, std::array<double, 3> out) {
    const Json* found = json.find(key);
    if (!found || found->is_null()) return out;
    if (found->array().size() != 3) throw JsonError(std::string(key) + ": expected three numbers");
    for (size_t i = 0; i < 3; ++i) out[i] = found->array()[i].number();
    return out;
}

void read_bound(const Json& json, const char* key, const char* edge, int64_t& value) {
    const Json* size = json.find("size");
    for (const Json* found :
         {size && !size->is_null() ? size->find(key) : nullptr,
          size && !size->is_null() ? size->find(edge) : nullptr, json.find(key)}) {
        if (found && !found->is_null()) value = found->integer(1, int64_t{1} << 48);
    }
}

}  // namespace

ImageConfig ImageConfig::parse(const Json& json) {
    ImageConfig c;
    for (const char* step : {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"}) {
        const Json* found = json.find(step);
        if (found && found->is(Json::Kind::boolean) && !found->boolean())
            throw JsonError(std::string(step) + ": false is not supported");
    }
    read_bound(json, "min_pixels", "shortest_edge", c.min_pixels);
    read_bound(json, "max_pixels", "longest_edge", c.max_pixels);
    if (c.min_pixels > c.max_pixels) throw JsonError("min_pixels exceeds max_pixels");
    c.patch_size = positive(json, "patch_size", c.patch_size);
    c.temporal_patch_size = positive(json, "temporal_patch_size", c.temporal_patch_size);
    c.merge_size = positive(json, "merge_size", c.merge_size);
    c.mean = three(json, "image_mean", c.mean);
    c.std = three(json, "image_std", c.std);
    if (std::count(c.std.begin(), c.std.end(), 0.0)) throw JsonError("image_std: a zero");
    const Json* rescale = json.find("rescale_factor");
    if (rescale && !rescale->is_null()) c.rescale_factor = rescale->number();
    const Json* resample = json.find("resample");
    if (resample && !resample->is_null() && resample->integer() != 3)
        throw JsonError("resample: expected 3, bicubic");
    return c;
}

Size smart_resize(Size size, const ImageConfig& c) {
    const int height = size.height, width = size.width, factor = c.factor();
    if (std::max(height, width) > int64_t{200} * std::min(height, width)) {
        throw Error(Status::input, "E_IMAGE_ASPECT",
                    "image: " + std::to_string(width) + " x " + std::to_string(height) +
                        " pixels, one side more than 200 times the other\ncrop it");
    }
    const double area = static_cast<double>(height) * width;
    const auto nearest = [&](int side) {
        return static_cast<int64_t>(std::nearbyint(static_cast<double>(side) / factor)) * factor;
    };
    int64_t rows = nearest(height), cols = nearest(width);
    if (rows * cols > c.max_pixels) {
        const double shrink = std::sqrt(area / static_cast<double>(c.max_pixels));
        const auto below = [&](int side) {
            const double units = std::floor(side / shrink / factor);
            return std::max<int64_t>(factor, static_cast<int64_t>(units) * factor);
        };
        rows = below(height), cols = below(width);
    } else if (rows * cols < c.min_pixels) {
        const double grow = std::sqrt(static_cast<double>(c.min_pixels) / area);
        const auto above = [&](int side) {
            return static_cast<int64_t>(std::ceil(side * grow / factor)) * factor;
        };
        rows = above(height), cols = above(width);
    }
    return {static_cast<int>(rows), static_cast<int>(cols)};
}

// Pillow 13 shrinks the rows first where the height loses more than twice what the width does.
std::vector<uint8_t> resize_bicubic(const RgbImage& image, Size size) {
    const int lost = image.height - size.height;
    if (lost > 0 && lost > 2 * (image.width - size.width)) {
        const std::vector<uint8_t> rows = resize_down(image, size.height);
        return resize_across({rows.data(), image.width, size.height, int64_t{3} * image.width},
                             size.width);
    }
    const std::vector<uint8_t> cols = resize_across(image, size.width);
    return resize_down({cols.data(), size.width, image.height, int64_t{3} * size.width},
                       size.height);
}

Patches preprocess(const RgbImage& image, const ImageConfig& c) {
    const Size size = smart_resize({image.height, image.width}, c);
    const std::vector<uint8_t> pixels = resize_bicubic(image, size);
    const int patch = c.patch_size, merge = c.merge_size, side = patch * patch;
    float scale[3], offset[3];
    for (size_t i = 0; i < 3; ++i) {
        scale[i] = static_cast<float>(c.rescale_factor / c.std[i]);
        offset[i] = static_cast<float>(-c.mean[i] / c.std[i]);
    }
    Patches out = {{}, size.height / patch, size.width / patch};
    out.pixel_values.resize(static_cast<size_t>(out.grid_h) * static_cast<size_t>(out.grid_w) *
                            static_cast<size_t>(c.patch_dim()));
    float* to = out.pixel_values.data();
    const int cols = out.grid_w / merge;
    for (int index = 0; index < out.grid_h * out.grid_w; ++index) {
        const int token = index / (merge * merge), inside = index % (merge * merge);
        const int row = token / cols * merge + inside / merge;
        const int col = token % cols * merge + inside % merge;
        for (int channel = 0; channel < 3; ++channel) {
            float* first = to;
            for (int at = 0; at < side; ++at) {
                const int64_t y = row * patch + at / patch, x = col * patch + at % patch;
                const uint8_t value =
                    pixels[static_cast<size_t>((y * size.width + x) * 3 + channel)];
                *to++ = static_cast<float>(value) * scale[channel] + offset[channel];
            }
            for (int frame = 1; frame < c.temporal_patch_size; ++frame, to += side)
                std::copy(first, first + side, to);
        }
    }
    return out;
}

}  // namespace latrt
