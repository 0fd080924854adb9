// In place of the kernels where only engines are built, never run: every launch is refused. An
// engine records the hash of the plugin library that it was built with and runs with no other.
#include "kernels/cuda/launchers.h"

namespace latrt::cuda {

size_t attention_decode_workspace(const AttentionDecodeParams&) {
    return 0;
}
size_t attention_prefill_workspace(const AttentionPrefillParams&) {
    return 0;
}

cudaError_t launch_rope_write_kv(const RopeWriteKvParams&, cudaStream_t) {
    return cudaErrorNotSupported;
}
cudaError_t launch_attention_decode(const AttentionDecodeParams&, cudaStream_t) {
    return cudaErrorNotSupported;
}
cudaError_t launch_attention_prefill(const AttentionPrefillParams&, cudaStream_t) {
    return cudaErrorNotSupported;
}
cudaError_t launch_kv_reinject(const KvReinjectParams&, cudaStream_t) {
    return cudaErrorNotSupported;
}
cudaError_t launch_sample(const SampleParams&, cudaStream_t) {
    return cudaErrorNotSupported;
}

}  // namespace latrt::cuda

// The two calls of the runtime that the plugins make themselves.
extern "C" cudaError_t cudaGetDevice(int*) {
    return cudaErrorNotSupported;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) {
    return cudaErrorNotSupported;
}
