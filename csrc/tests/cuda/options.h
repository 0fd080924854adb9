// How much the tests of the CUDA kernels run, and from which seed: set by main.
#pragma once

#include <cstdint>

namespace latrt::test {

uint64_t seed();
// `few` in the ordinary run; times `--effort`. None once a case failed, with `--stop`.
int repeats(int few);

}  // namespace latrt::test
