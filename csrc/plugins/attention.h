// VisualAttention, VisualAttentionOfCodes and CausalAttention: the nodes of decoder.onnx that need
// a kernel of ours.
//
// Inputs, as the model-local functions in build_engines/functions.py and attention_codes.py name
// them:
//   query          (B, S, H * D)  T: float16 or bfloat16, already rotated
//   key, value     (B, S, K * D)  T
//   past_key, past_value          (B, K, C, D) T, of codes int8 or e4m3; written in place
//   seqlens_k      (B) int32      KV positions after this step, less one
//   query_seqlens  (B) int32      tokens that are appended; 0: an idle row
//   total_sequence_length (1) int32, not read: ONNX Runtime wants it
//   visual_index   (B, N) int64   not CausalAttention
//   past_key_scale, past_value_scale (B, K, C) float32, VisualAttentionOfCodes alone: a row's
//                                 values are its codes times its scale; written in place
// Outputs: y (B, S, H * D) T; present_key, present_value: the memory of past_*;
//   mass (B, N) float32, not CausalAttention: what row S - 1 puts on the keys, summed over heads;
//   present_key_scale, present_value_scale: the memory of past_*_scale.
#pragma once

#include "plugins/plugin.h"

namespace latrt::plugins {

class Attention : public Plugin {
 public:
    static constexpr char kVisual[] = "VisualAttention";
    static constexpr char kCodes[] = "VisualAttentionOfCodes";
    static constexpr char kCausal[] = "CausalAttention";

    static Attributes attributes();
    Attention(const char* name, const Attributes& attributes);

    Attention* clone() noexcept override;
    int32_t getNbOutputs() const noexcept override { return 3 + mass_ + 2 * codes_; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t num_outputs,
                               const nvinfer1::DataType* inputs,
                               int32_t num_inputs) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                            const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                            int32_t num_outputs, nvinfer1::IExprBuilder&) noexcept override;
    bool supportsFormatCombination(int32_t position, DynamicDescs descs, int32_t num_inputs,
                                   int32_t num_outputs) noexcept override;
    int32_t getAliasedInput(int32_t output) noexcept override;
    int32_t onShapeChange(Descs inputs, int32_t num_inputs, Descs outputs,
                          int32_t num_outputs) noexcept override;
    size_t getWorkspaceSize(DynamicDescs inputs, int32_t num_inputs, DynamicDescs outputs,
                            int32_t num_outputs) const noexcept override;
    int32_t enqueue(Descs inputs, Descs outputs, const void* const* in, void* const* out,
                    void* workspace, cudaStream_t stream) noexcept override;

 private:
    Attention(const Attention&) = default;

    int32_t num_inputs() const { return 8 + mass_ + 2 * codes_; }

    bool mass_, codes_;
    int32_t num_heads_, num_kv_heads_;
};

}  // namespace latrt::plugins
