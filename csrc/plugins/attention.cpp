#include "plugins/attention.h"

#include <algorithm>
#include <cstring>

#include "plugins/attention_shapes.h"

namespace latrt::plugins {

using nvinfer1::DataType;
using nvinfer1::Dims;

namespace {

enum Input {
    kQuery,
    kKey,
    kValue,
    kPastKey,
    kPastValue,
    kLast,
    kAppended,
    kTotal,
    kIndex,
    kPastKeyScale,
    kPastValueScale
};
enum Output { kY, kPresentKey, kPresentValue, kMass, kPresentKeyScale, kPresentValueScale };

cuda::KvType kv_type_of(DataType type) {
    switch (type) {
        case DataType::kINT8:
            return cuda::KvType::int8;
        case DataType::kFP8:
            return cuda::KvType::e4m3;
        case DataType::kBF16:
            return cuda::KvType::bf16;
        default:
            return cuda::KvType::f16;
    }
}

AttentionShapes shapes_of(const Dims& query, const Dims& past, const Dims* index, DataType type,
                          DataType kv_type, int num_heads, int num_kv_heads) {
    return {static_cast<int>(query.d[0]),
            static_cast<int>(query.d[1]),
            num_heads,
            num_kv_heads,
            static_cast<int>(past.d[3]),
            static_cast<int>(past.d[2]),
            index == nullptr ? 0 : static_cast<int>(index->d[1]),
            type == DataType::kHALF ? cuda::ActType::f16 : cuda::ActType::bf16,
            kv_type_of(kv_type)};
}

int multiprocessors() {
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
        return 0;
    }
    return std::min(count, kMaxSms);
}

}  // namespace

Attributes Attention::attributes() {
    return Attributes({{"num_heads", 0}, {"kv_num_heads", 0}});
}

Attention::Attention(const char* name, const Attributes& attributes)
    : Plugin(name, attributes),
      mass_(std::strcmp(name, kCausal) != 0),
      codes_(std::strcmp(name, kCodes) == 0),
      num_heads_(attributes["num_heads"]),
      num_kv_heads_(attributes["kv_num_heads"]) {}

Attention* Attention::clone() noexcept {
    return new Attention(*this);
}

int32_t Attention::getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                                      int32_t) const noexcept {
    outputs[kY] = inputs[kQuery];
    outputs[kPresentKey] = inputs[kPastKey];
    outputs[kPresentValue] = inputs[kPastValue];
    if (mass_) outputs[kMass] = DataType::kFLOAT;
    if (codes_) outputs[kPresentKeyScale] = outputs[kPresentValueScale] = DataType::kFLOAT;
    return 0;
}

int32_t Attention::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                   const nvinfer1::DimsExprs*, int32_t,
                                   nvinfer1::DimsExprs* outputs, int32_t,
                                   nvinfer1::IExprBuilder&) noexcept {
    if (num_inputs != this->num_inputs()) return -1;
    outputs[kY] = inputs[kQuery];
    outputs[kPresentKey] = inputs[kPastKey];
    outputs[kPresentValue] = inputs[kPastValue];
    if (mass_) outputs[kMass] = inputs[kIndex];
    if (codes_) outputs[kPresentKeyScale] = inputs[kPastKeyScale];
    if (codes_) outputs[kPresentValueScale] = inputs[kPastValueScale];
    return 0;
}

bool Attention::supportsFormatCombination(int32_t position, DynamicDescs descs, int32_t num_inputs,
                                          int32_t) noexcept {
    const nvinfer1::PluginTensorDesc& desc = descs[position].desc;
    if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    const DataType act = descs[kQuery].desc.type, cache = descs[kPastKey].desc.type;
    if (position >= num_inputs) {
        switch (position - num_inputs) {
            case kY:
                return desc.type == act;
            case kPresentKey:
            case kPresentValue:
                return desc.type == cache;
            default:
                return desc.type == DataType::kFLOAT;
        }
    }
    switch (position) {
        case kQuery:
            return act == DataType::kHALF || act == DataType::kBF16;
        case kKey:
        case kValue:
            return desc.type == act;
        case kPastKey:
            return codes_ ? cache == DataType::kINT8 || cache == DataType::kFP8 : cache == act;
        case kPastValue:
            return desc.type == cache;
        case kLast:
        case kAppended:
        case kTotal:
            return desc.type == DataType::kINT32;
        case kIndex:
            return desc.type == DataType::kINT64;
        default:
            return desc.type == DataType::kFLOAT;
    }
}

int32_t Attention::getAliasedInput(int32_t output) noexcept {
    switch (output) {
        case kPresentKey:
            return kPastKey;
        case kPresentValue:
            return kPastValue;
        case kPresentKeyScale:
            return kPastKeyScale;
        case kPresentValueScale:
            return kPastValueScale;
        default:
            return -1;
    }
}

int32_t Attention::onShapeChange(Descs inputs, int32_t num_inputs, Descs, int32_t) noexcept {
    if (num_inputs != this->num_inputs()) return -1;
    const Dims &query = inputs[kQuery].dims, &past = inputs[kPastKey].dims;
    const Dims& key = inputs[kKey].dims;
    const bool fits = query.nbDims == 3 && key.nbDims == 3 && past.nbDims == 4 &&
                      past.d[0] == query.d[0] && past.d[1] == num_kv_heads_ &&
                      query.d[2] == num_heads_ * past.d[3] && key.d[2] == num_kv_heads_ * past.d[3];
    if (!fits) return -1;
    for (int i = kPastKeyScale; codes_ && i <= kPastValueScale; ++i) {
        const Dims& scale = inputs[i].dims;
        if (scale.nbDims != 3 || !std::equal(scale.d, scale.d + 3, past.d)) return -1;
    }
    return 0;
}

size_t Attention::getWorkspaceSize(DynamicDescs inputs, int32_t, DynamicDescs,
                                   int32_t) const noexcept {
    const AttentionShapes shapes =
        shapes_of(inputs[kQuery].max, inputs[kPastKey].max, mass_ ? &inputs[kIndex].max : nullptr,
                  inputs[kQuery].desc.type, inputs[kPastKey].desc.type, num_heads_, num_kv_heads_);
    return shapes.valid() ? largest_workspace(shapes) : 0;
}

int32_t Attention::enqueue(Descs inputs, Descs, const void* const* in, void* const* out,
                           void* workspace, cudaStream_t stream) noexcept {
    const AttentionShapes shapes = shapes_of(
        inputs[kQuery].dims, inputs[kPastKey].dims, mass_ ? &inputs[kIndex].dims : nullptr,
        inputs[kQuery].type, inputs[kPastKey].type, num_heads_, num_kv_heads_);
    const int num_sms = multiprocessors();
    if (!shapes.valid() || num_sms == 0) return -1;
    // The cache is written where it is read; an engine that gave other memory would lose it.
    if (in[kPastKey] != out[kPresentKey] || in[kPastValue] != out[kPresentValue]) return -1;

    cuda::KvCache cache = shapes.cache();
    cache.k = out[kPresentKey];
    cache.v = out[kPresentValue];
    if (codes_) {
        if (in[kPastKeyScale] != out[kPresentKeyScale]) return -1;
        if (in[kPastValueScale] != out[kPresentValueScale]) return -1;
        cache.k_scale = static_cast<float*>(out[kPresentKeyScale]);
        cache.v_scale = static_cast<float*>(out[kPresentValueScale]);
    }
    cuda::Sequences sequences = shapes.sequences();
    sequences.query_len = static_cast<const int32_t*>(in[kAppended]);
    sequences.kv_len = static_cast<const int32_t*>(in[kLast]);

    cuda::RopeWriteKvParams write{};  // q and k are rotated already
    write.k = in[kKey];
    write.v = in[kValue];
    write.cache = cache;
    write.sequences = sequences;
    write.num_tokens = shapes.batch * shapes.length;
    write.type = shapes.type;
    write.ldk = write.ldv = static_cast<int64_t>(num_kv_heads_) * shapes.head_dim;
    if (cuda::launch_rope_write_kv(write, stream) != cudaSuccess) return -1;

    const auto attend = [&](auto params, auto launch) {
        params.q = in[kQuery];
        params.out = out[kY];
        params.cache = cache;
        params.sequences = sequences;
        params.workspace = workspace;
        if (shapes.num_visual > 0) {
            params.mass.visual_index = static_cast<const int64_t*>(in[kIndex]);
            params.mass.mass = static_cast<float*>(out[kMass]);
        }
        return launch(params, stream) == cudaSuccess ? 0 : -1;
    };
    if (shapes.decodes()) {
        return attend(shapes.attention<cuda::AttentionDecodeParams>(num_sms),
                      cuda::launch_attention_decode);
    }
    return attend(shapes.attention<cuda::AttentionPrefillParams>(num_sms),
                  cuda::launch_attention_prefill);
}

}  // namespace latrt::plugins
