#include "kernels/cuda/route_select.h"

#include <algorithm>
#include <numeric>

#include "tests/check.h"
#include "tests/cuda/buffer.h"
#include "tests/cuda/options.h"

using namespace latrt;
using test::Buffer;

namespace {

// The `count` of most mass, ties to the lower index, ascending: a stable sort, as defined.
std::vector<int64_t> best(const double* mass, int num_visual, int count) {
    std::vector<int64_t> order(size_t(num_visual), 0);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return mass[a] > mass[b]; });
    order.resize(size_t(count));
    std::sort(order.begin(), order.end());
    return order;
}

void check_select(uint64_t seed) {
    test::Random random(seed);
    const int batch = random.integer(1, 3), num_visual = random.size(1200);
    const int count = random.integer(0, num_visual);
    const int kinds = random.integer(0, 2);  // few values: many ties
    Buffer<double> mass(size_t(batch * num_visual));
    for (size_t i = 0; i < mass.size(); ++i) {
        mass[i] = kinds == 0   ? double(random.uniform(0, 1)) * 1e-3
                  : kinds == 1 ? random.integer(0, 3) * 0.25
                               : random.integer(-1, 1) * 0.0;
    }
    Buffer<int64_t> selected(size_t(batch * count));
    CHECK(test::finished(cuda::launch_route_select(
              {mass.data(), selected.data(), batch, num_visual, count}, nullptr)) == cudaSuccess);
    for (int b = 0; b < batch; ++b) {
        const auto want = best(&mass[size_t(b * num_visual)], num_visual, count);
        for (int i = 0; i < count; ++i) {
            if (selected[size_t(b * count + i)] == want[size_t(i)]) continue;
            char text[120];
            std::snprintf(text, sizeof text,
                          "seed %d M=%d count=%d: [%d, %d] is %lld, expected %lld", int(seed),
                          num_visual, count, b, i,
                          static_cast<long long>(selected[size_t(b * count + i)]),
                          static_cast<long long>(want[size_t(i)]));
            return test::fail(__FILE__, __LINE__, text);
        }
    }
    CHECK(selected.edges_untouched());
}

void check_add(uint64_t seed) {
    test::Random random(seed);
    const int batch = random.integer(1, 3), keys = random.size(700), sources = random.size(400);
    Buffer<float> mass(size_t(batch * keys));
    Buffer<int64_t> source(size_t(batch * keys));
    Buffer<double> sum(size_t(batch * sources));
    std::vector<double> want, step(size_t(batch * sources), 0.0);
    for (size_t i = 0; i < sum.size(); ++i) want.push_back(sum[i] = double(random.uniform(0, 1)));
    for (size_t i = 0; i < mass.size(); ++i) {
        mass[i] = random.uniform(0, 1);
        source[i] = random.integer(-1, sources - 1);
        const size_t b = i / size_t(keys);
        if (source[i] >= 0) step[b * size_t(sources) + size_t(source[i])] += double(mass[i]);
    }
    CHECK(test::finished(cuda::launch_mass_add(
              {mass.data(), source.data(), sum.data(), batch, keys, sources, 0.5}, nullptr)) ==
          cudaSuccess);
    for (size_t i = 0; i < sum.size(); ++i) CHECK(sum[i] == want[i] + step[i] * 0.5);
    CHECK(sum.edges_untouched());
}

}  // namespace

TEST(route_select_equals_a_stable_sort) {
    for (int i = 0; i < test::repeats(20); ++i) check_select(test::seed() + uint64_t(i));
}

TEST(route_select_refuses_more_than_there_are) {
    CHECK(test::finished(cuda::launch_route_select({nullptr, nullptr, 1, 3, 4}, nullptr)) ==
          cudaErrorInvalidValue);
}

TEST(mass_add_counts_copies_for_their_source) {
    for (int i = 0; i < test::repeats(20); ++i) check_add(test::seed() + uint64_t(i));
}
