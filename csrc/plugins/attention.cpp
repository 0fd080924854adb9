#include "plugins/attention.h"

#include <cstring>

namespace latrt::plugins {

using nvinfer1::DataType;

namespace {

enum Input { kQuery, kKey, kValue, kPastKey, kPastValue, kLast, kAppended, kTotal, kIndex };
enum Output { kY, kPresentKey, kPresentValue, kMass };
constexpr int32_t kNumInputs = 8;  // and the visual index where there is a mass

}  // namespace

Attributes Attention::attributes() { return Attributes({{"num_heads", 0}, {"kv_num_heads", 0}}); }

Attention::Attention(const char* name, const Attributes& attributes)
    : Plugin(name, attributes),
      mass_(std::strcmp(name, kVisual) == 0),
      num_heads_(attributes["num_heads"]),
      num_kv_heads_(attributes["kv_num_heads"]) {}

Attention* Attention::clone() noexcept { return new Attention(*this); }

int32_t Attention::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                                      int32_t) const noexcept {
    outputs[kY] = inputs[kQuery];
    outputs[kPresentKey] = inputs[kPastKey];
    outputs[kPresentValue] = inputs[kPastValue];
    if (mass_) outputs[kMass] = DataType::kFLOAT;
    return 0;
}

int32_t Attention::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                   const nvinfer1::DimsExprs*, int32_t,
                                   nvinfer1::DimsExprs* outputs, int32_t,
                                   nvinfer1::IExprBuilder&) noexcept {
    if (num_inputs != kNumInputs + mass_) return -1;
    outputs[kY] = inputs[kQuery];
    outputs[kPresentKey] = inputs[kPastKey];
    outputs[kPresentValue] = inputs[kPastValue];
    if (mass_) outputs[kMass] = inputs[kIndex];
    return 0;
}

bool Attention::supportsFormatCombination(int32_t position, DynamicDescs descs, int32_t num_inputs,
                                          int32_t) noexcept {
    const nvinfer1::PluginTensorDesc& desc = descs[position].desc;
    if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    switch (position) {  // outputs come after kTotal
        case kLast:
        case kAppended:
        case kTotal:
            return desc.type == DataType::kINT32;
        default:
            break;
    }
    if (position == kIndex && mass_) return desc.type == DataType::kINT64;
    if (position == num_inputs + kMass) return desc.type == DataType::kFLOAT;
    if (position == kQuery) return desc.type == DataType::kHALF || desc.type == DataType::kBF16;
    return desc.type == descs[kQuery].desc.type;
}

int32_t Attention::getAliasedInput(int32_t output) noexcept {
    switch (output) {
        case kPresentKey:
            return kPastKey;
        case kPresentValue:
            return kPastValue;
        default:
            return -1;
    }
}

int32_t Attention::onShapeChange(Descs, int32_t, Descs, int32_t) noexcept { return 0; }

size_t Attention::getWorkspaceSize(DynamicDescs, int32_t, DynamicDescs, int32_t) const noexcept {
    return 0;
}

int32_t Attention::enqueue(Descs, Descs, const void* const*, void* const*, void*,
                           cudaStream_t) noexcept {
    return -1;
}

}  // namespace latrt::plugins
