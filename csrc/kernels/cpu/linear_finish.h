// The last step of every linear kernel: bias, padding cut off, result written or added.
#pragma once

#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec.h"

namespace latrt::LATRT_LEVEL {
namespace {

// Fetches where `finish` will write, while there is something else to do: rows lie far apart, and
// writing one that no cache has waits for memory.
inline void fetch_results(const LinearParams& p, int row, int count, int tile) {
    for (int m = 0; m < count; ++m) {
        __builtin_prefetch(p.y + (row + m) * p.ldy + tile * kLanes, 1);
    }
}

// Writes M rows of 16 outputs; `sums` (M, 16).
template <int M>
void finish(const LinearParams& p, const float* sums, int row, int tile) {
    const int first = tile * kLanes;
    const int count = p.n - first < kLanes ? p.n - first : kLanes;
    for (int m = 0; m < M; ++m) {
        float* y = p.y + (row + m) * p.ldy + first;
        if (count == kLanes) {
            for (int i = 0; i < kLanes; i += kWidth) {
                Vec value = load(sums + m * kLanes + i);
                if (p.bias != nullptr) value += load(p.bias + first + i);
                store(y + i, p.accumulate ? load(y + i) + value : value);
            }
            continue;
        }
        for (int i = 0; i < count; ++i) {
            float value = sums[m * kLanes + i];
            if (p.bias != nullptr) value += p.bias[first + i];
            y[i] = p.accumulate ? y[i] + value : value;
        }
    }
}

}  // namespace
}  // namespace latrt::LATRT_LEVEL
