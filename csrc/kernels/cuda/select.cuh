// Selection by radix over integer keys, smallest first: the key at which the weights, summed from
// the smallest key on, reach a target. Integer sums, so the order of threads changes nothing.
#pragma once

#include "kernels/cuda/instructions.cuh"

namespace latrt::cuda {

using Weight = unsigned long long;

inline constexpr int kBins = 256;

// Shared memory of a selection.
struct SelectShared {
    Weight bins[kBins];
    Weight below;
    int bin;
};

template <class Key>
struct Selected {
    Key key;       // the smallest key with sum of weights of keys <= it at least the target
    Weight below;  // the sum of weights of smaller keys
};

// By all threads of a block. `visit(add)` calls add(key, weight) for this thread's share of the
// items, the same in every pass; the weights' sum is at least `target`, which is at least 1.
template <class Key, class Visit>
__device__ Selected<Key> select_key(SelectShared& shared, Weight target, Visit visit) {
    Selected<Key> found = {0, 0};
    for (int shift = static_cast<int>(sizeof(Key)) * 8 - 8; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < kBins; i += blockDim.x) shared.bins[i] = 0;
        sync_threads();
        visit([&](Key key, Weight weight) {
            const bool same = shift == static_cast<int>(sizeof(Key)) * 8 - 8 ||
                              key >> (shift + 8) == found.key >> (shift + 8);
            if (same && weight != 0) atomic_add(&shared.bins[key >> shift & 0xff], weight);
        });
        sync_threads();
        if (threadIdx.x == 0) {
            int bin = 0;
            Weight below = found.below;
            while (bin < kBins - 1 && below + shared.bins[bin] < target)
                below += shared.bins[bin++];
            shared.bin = bin;
            shared.below = below;
        }
        sync_threads();
        found.key |= static_cast<Key>(shared.bin) << shift;
        found.below = shared.below;
    }
    return found;
}

// How many threads of the block before this one have the bit; `total` of all. `counts` has an
// int for each warp.
__device__ inline int count_before(bool bit, int* counts, int& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t bits = ballot(bit);
    if (lane == 0) counts[warp] = population(bits);
    sync_threads();
    int before = population(bits & ((1u << lane) - 1));
    total = 0;
    for (int i = 0; i < static_cast<int>(blockDim.x / 32); ++i) {
        before += i < warp ? counts[i] : 0;
        total += counts[i];
    }
    sync_threads();
    return before;
}

}  // namespace latrt::cuda
