// The entry points that TensorRT looks for when it loads the library.
#include "plugins/attention.h"

using latrt::plugins::Attention;
using latrt::plugins::Creator;

#define LATRT_EXPORT extern "C" __attribute__((visibility("default")))

LATRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static Creator<Attention> visual(Attention::kVisual), codes(Attention::kCodes),
        causal(Attention::kCausal);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&visual, &codes, &causal};
    count = static_cast<int32_t>(std::size(creators));
    return creators;
}

// The plugins log nothing: a refusal is a status, which TensorRT reports with the node's name.
LATRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
