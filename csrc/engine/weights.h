// Packed tensors by name, checked against a model's sizes and put where the engine reads them.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/decoder.h"
#include "engine/vision.h"

namespace latrt {

enum class DType { f32, u16, u8, other };  // u16: the bits of a half or a bfloat16

// A view; the memory belongs to someone else.
struct Tensor {
    DType dtype = DType::other;
    std::vector<int64_t> shape;
    const void* data = nullptr;
};

// "f32 [3, 16]"
std::string describe(DType dtype, const std::vector<int64_t>& shape);

// Throws std::invalid_argument: "k: expected f32 [3, 16], got f32 [3, 8]".
void check_tensor(const std::string& name, const Tensor& tensor, DType dtype,
                  const std::vector<int64_t>& shape);

// Named tensors in the layout of native.safetensors. Throw std::invalid_argument naming one that
// is missing or of another shape.
class Weights {
 public:
    using Map = std::unordered_map<std::string, Tensor>;

    explicit Weights(Map tensors) : tensors_(std::move(tensors)) {}

    // `whole`: for each block, whether it attends over whole frames.
    DecoderWeights decoder(const DecoderConfig& config) const;
    VisionWeights vision(const VisionConfig& config, const std::vector<bool>& whole) const;

 private:
    const Tensor& tensor(const std::string& name) const;
    const float* vector(const std::string& name, int n) const;
    Matrix matrix(const std::string& name, int n, int k, bool bias) const;

    Map tensors_;
};

}  // namespace latrt
