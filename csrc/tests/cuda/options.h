// How much the tests of the CUDA kernels run, and from which seed: set by main.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace latrt::test {

uint64_t seed();
// `few` in the ordinary run; times `--effort`. None once a case failed, with `--stop`.
int repeats(int few);

// The status of a launch whose work is done: on a device this waits.
inline cudaError_t finished(cudaError_t launched) {
#ifdef LATRT_TEST_ON_DEVICE
    return launched == cudaSuccess ? cudaDeviceSynchronize() : launched;
#else
    return launched;
#endif
}

}  // namespace latrt::test
