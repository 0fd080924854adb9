#include "kernels/cuda/route_select.h"

#include "kernels/cuda/select.cuh"

namespace latrt::cuda {
namespace {

constexpr int kThreads = 256;

// Smaller for more mass; equal masses have equal keys, zeros of either sign too.
__device__ __forceinline__ uint64_t mass_key(double mass) {
    const double value = mass + 0.0;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits >> 63 != 0 ? bits : ~bits & (~uint64_t{0} >> 1);
}

// Grid (B): the key of the last token to take, then the tokens above it and the first of those
// that equal it, in order.
__global__ void __launch_bounds__(kThreads) route_select(RouteSelectParams p) {
    auto& shared = *reinterpret_cast<SelectShared*>(dynamic_shared());
    auto* counts = reinterpret_cast<int*>(&shared + 1);
    const double* mass = p.mass + static_cast<int64_t>(blockIdx.x) * p.num_visual;
    int64_t* selected = p.selected + static_cast<int64_t>(blockIdx.x) * p.count;
    const auto last = select_key<uint64_t>(shared, static_cast<Weight>(p.count), [&](auto add) {
        for (int i = threadIdx.x; i < p.num_visual; i += kThreads) add(mass_key(mass[i]), 1);
    });
    const int num_equal = p.count - static_cast<int>(last.below);
    int above_before = 0, equal_before = 0;
    for (int first = 0; first < p.num_visual; first += kThreads) {
        const int i = first + static_cast<int>(threadIdx.x);
        const uint64_t key = i < p.num_visual ? mass_key(mass[i]) : ~uint64_t{0};
        const bool above = i < p.num_visual && key < last.key;
        const bool equal = i < p.num_visual && key == last.key;
        int num_above, num_equal_here;
        const int above_at = above_before + count_before(above, counts, num_above);
        const int equal_at = equal_before + count_before(equal, counts, num_equal_here);
        if (above || (equal && equal_at < num_equal)) {
            selected[above_at + (equal_at < num_equal ? equal_at : num_equal)] = i;
        }
        above_before += num_above;
        equal_before += num_equal_here;
    }
}

// Grid (M / kThreads, B): a thread adds up what belongs to its source token, in the keys' order.
__global__ void __launch_bounds__(kThreads) mass_add(MassAddParams p) {
    auto* source = reinterpret_cast<int64_t*>(dynamic_shared());
    auto* mass = reinterpret_cast<float*>(source + kThreads);
    const int thread = threadIdx.x, m = blockIdx.x * kThreads + thread;
    const int64_t keys = static_cast<int64_t>(blockIdx.y) * p.num_keys;
    double sum = 0;
    for (int first = 0; first < p.num_keys; first += kThreads) {
        const int rest = p.num_keys - first, count = rest < kThreads ? rest : kThreads;
        if (thread < count) {
            source[thread] = p.source[keys + first + thread];
            mass[thread] = p.mass[keys + first + thread];
        }
        sync_threads();
        for (int i = 0; i < count; ++i) {
            if (source[i] == m) sum += mass[i];
        }
        sync_threads();
    }
    if (m < p.num_visual) {
        p.sum[static_cast<int64_t>(blockIdx.y) * p.num_visual + m] += sum * p.factor;
    }
}

}  // namespace

cudaError_t launch_route_select(const RouteSelectParams& p, cudaStream_t stream) {
    if (p.count < 0 || p.count > p.num_visual) return cudaErrorInvalidValue;
    if (p.count == 0 || p.batch == 0) return cudaSuccess;
    const size_t shared = sizeof(SelectShared) + kThreads / 32 * sizeof(int);
    return launch(route_select, dim3(static_cast<unsigned>(p.batch)), dim3(kThreads), shared,
                  stream, p);
}

cudaError_t launch_mass_add(const MassAddParams& p, cudaStream_t stream) {
    if (p.num_keys == 0 || p.num_visual == 0 || p.batch == 0) return cudaSuccess;
    const dim3 grid(static_cast<unsigned>((p.num_visual + kThreads - 1) / kThreads),
                    static_cast<unsigned>(p.batch));
    return launch(mass_add, grid, dim3(kThreads), kThreads * (sizeof(int64_t) + sizeof(float)),
                  stream, p);
}

}  // namespace latrt::cuda
