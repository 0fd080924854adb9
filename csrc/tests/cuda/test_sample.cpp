#include "kernels/cuda/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/check.h"
#include "tests/cuda/buffer.h"
#include "tests/cuda/options.h"

using namespace latrt;
using test::Buffer;

namespace {

// The logarithm of a token's share of all at temperature 1.
double log_share(const float* logits, int vocab, int64_t token) {
    const double best = *std::max_element(logits, logits + vocab);
    double total = 0;
    for (int i = 0; i < vocab; ++i) total += std::exp(logits[i] - best);
    return logits[token] - best - std::log(total);
}

// Every token but the banned one.
std::vector<int> all_but(int vocab, int64_t banned) {
    std::vector<int> order(static_cast<size_t>(vocab));
    std::iota(order.begin(), order.end(), 0);
    std::erase(order, static_cast<int>(banned));
    return order;
}

// What can be drawn, as the definitions read: (token, probability) ascending by token. The order
// is temperature, top-k, top-p; ties to the lower index.
std::vector<std::pair<int, double>> candidates(const float* logits, std::vector<int> order,
                                               double temperature, int top_k, double top_p) {
    float best = logits[order[0]];
    for (int i : order) best = std::max(best, logits[i]);
    const int vocab = static_cast<int>(order.size());
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return logits[a] > logits[b]; });
    if (top_k > 0 && top_k < vocab) order.resize(size_t(top_k));
    const auto weight = [&](int i) { return std::exp((double(logits[i]) - best) / temperature); };
    double total = 0, sum = 0;
    for (int i : order) total += weight(i);
    size_t kept = 0;
    while (kept < order.size() && (top_p >= 1 || sum < top_p * total)) sum += weight(order[kept++]);
    order.resize(kept);
    std::sort(order.begin(), order.end());
    std::vector<std::pair<int, double>> result;
    for (int i : order) result.emplace_back(i, weight(i) / sum);
    return result;
}

// The token may be off by rounding where `uniform` lies on a boundary: then a neighbour is right.
bool allowed(const std::vector<std::pair<int, double>>& tokens, double uniform, int64_t token) {
    double before = 0;
    for (const auto& [index, probability] : tokens) {
        if (index == token) {
            return uniform >= before - 1e-5 && uniform < before + probability + 1e-5;
        }
        before += probability;
    }
    return false;
}

void check(uint64_t seed) {
    test::Random random(seed);
    const int batch = random.integer(1, 3);
    const int vocab = random.integer(0, 3) ? 1 + random.size(400) : 3000;
    const size_t ld = size_t(vocab + random.integer(0, 5));
    const size_t num_rows = size_t(batch);
    Buffer<float> logits(num_rows * ld), temperature(num_rows), top_p(num_rows), logprob(num_rows);
    Buffer<double> uniform(num_rows);
    Buffer<int32_t> top_k(num_rows);
    Buffer<int64_t> token(num_rows), banned(num_rows);
    const bool ties = random.bits() % 3 == 0;
    for (int b = 0; b < batch; ++b) {
        const float spread = random.uniform(0.5f, 12);
        for (int i = 0; i < vocab; ++i) {
            logits[size_t(b) * ld + size_t(i)] =
                ties ? float(random.integer(0, 4)) : random.uniform(-spread, spread);
        }
        temperature[size_t(b)] = random.integer(0, 3) ? random.uniform(0.2f, 2) : 0;
        top_k[size_t(b)] = random.integer(0, 2) ? random.size(60) : 0;
        top_p[size_t(b)] = random.integer(0, 2) ? float(random.integer(1, 97)) * 0.0101f : 1;
        uniform[size_t(b)] = double(random.uniform(0, 1));
        const float* row = &logits[size_t(b) * ld];
        const int64_t kinds[] = {-1, std::max_element(row, row + vocab) - row,
                                 random.integer(0, vocab - 1)};
        banned[size_t(b)] = kinds[random.integer(0, 2)];
    }
    CHECK(test::finished(cuda::launch_sample(
              {logits.data(), uniform.data(), temperature.data(), top_k.data(), top_p.data(),
               banned.data(), token.data(), logprob.data(), batch, vocab, int64_t(ld)},
              nullptr)) == cudaSuccess);
    for (int b = 0; b < batch; ++b) {
        const float* row = &logits[size_t(b) * ld];
        const int64_t got = token[size_t(b)];
        const std::vector<int> order = all_but(vocab, banned[size_t(b)]);
        const bool greedy = temperature[size_t(b)] == 0;
        bool right = greedy
                         ? got == *std::max_element(order.begin(), order.end(),
                                                    [&](int i, int j) { return row[i] < row[j]; })
                         : allowed(candidates(row, order, double(temperature[size_t(b)]),
                                              top_k[size_t(b)], double(top_p[size_t(b)])),
                                   uniform[size_t(b)], got);
        right = right && std::fabs(logprob[size_t(b)] - log_share(row, vocab, got)) < 3e-6;
        if (right) continue;
        char text[160];
        std::snprintf(text, sizeof text, "seed %d row %d V=%d T=%g k=%d p=%g u=%g: token %lld",
                      int(seed), b, vocab, double(temperature[size_t(b)]), top_k[size_t(b)],
                      double(top_p[size_t(b)]), uniform[size_t(b)], static_cast<long long>(got));
        test::fail(__FILE__, __LINE__, text);
    }
    CHECK(token.edges_untouched() && logprob.edges_untouched());
}

}  // namespace

TEST(sample_draws_what_the_definition_draws) {
    for (int i = 0; i < test::repeats(12); ++i) check(test::seed() + uint64_t(i));
}

TEST(sample_counts_ties_in_the_order_of_indices) {
    // Five equal scores of 40: top-k 3 keeps the first three, each with a third.
    Buffer<float> logits(size_t{40}), temperature(std::vector<float>{1});
    for (size_t i = 0; i < 40; ++i) logits[i] = i % 8 == 1 ? 2.0f : -1.0f;
    Buffer<int32_t> top_k(std::vector<int32_t>{3});
    Buffer<int64_t> token(size_t{1});
    const double draws[] = {0, 0.3, 0.34, 0.6, 0.67, 0.999};
    const int64_t want[] = {1, 1, 9, 9, 17, 17};
    for (int i = 0; i < 6; ++i) {
        Buffer<double> uniform(std::vector<double>{draws[i]});
        CHECK(test::finished(cuda::launch_sample(
                  {logits.data(), uniform.data(), temperature.data(), top_k.data(), nullptr,
                   nullptr, token.data(), nullptr, 1, 40, 40},
                  nullptr)) == cudaSuccess);
        CHECK(token[0] == want[i]);
    }
}

TEST(sample_takes_no_more_ties_than_top_k_leaves) {
    // Two best of 3000, far apart, and the first 32 of all others: equal, and in every warp's
    // range.
    Buffer<float> logits(size_t{3000}), temperature(std::vector<float>{1});
    for (size_t i = 0; i < 3000; ++i) logits[i] = i == 90 || i == 2500 ? 1.0f : 0.0f;
    Buffer<int32_t> top_k(std::vector<int32_t>{34});
    Buffer<int64_t> token(size_t{1});
    const double best = std::exp(1.0), total = 32 + 2 * best;
    const double draws[] = {
        0.5, 31.5, 32 + 0.1 * best, 32 + 0.9 * best, 32 + 1.1 * best, 32 + 1.9 * best};
    const int64_t want[] = {0, 31, 90, 90, 2500, 2500};
    for (int i = 0; i < 6; ++i) {
        Buffer<double> uniform(std::vector<double>{draws[i] / total});
        CHECK(test::finished(cuda::launch_sample(
                  {logits.data(), uniform.data(), temperature.data(), top_k.data(), nullptr,
                   nullptr, token.data(), nullptr, 1, 3000, 3000},
                  nullptr)) == cudaSuccess);
        CHECK(token[0] == want[i]);
    }
}

TEST(sample_gives_no_token_for_what_is_no_number) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float bad : {std::nanf(""), infinity, -infinity}) {
        for (const int64_t ban : {-1, 1, 2}) {  // the banned token's own logit counts too
            Buffer<float> logits(std::vector<float>{1, 2, bad, 3}), logprob(size_t{1});
            Buffer<int64_t> token(size_t{1}), banned(std::vector<int64_t>{ban});
            logprob[0] = 0;
            CHECK(test::finished(
                      cuda::launch_sample({logits.data(), nullptr, nullptr, nullptr, nullptr,
                                           banned.data(), token.data(), logprob.data(), 1, 4, 4},
                                          nullptr)) == cudaSuccess);
            CHECK(token[0] == -1 && std::isnan(logprob[0]));
        }
    }
}

TEST(sample_takes_nothing_where_the_only_token_is_banned) {
    Buffer<float> logits(std::vector<float>{1});
    Buffer<int64_t> token(size_t{1}), banned(std::vector<int64_t>{0});
    CHECK(test::finished(cuda::launch_sample({logits.data(), nullptr, nullptr, nullptr, nullptr,
                                              banned.data(), token.data(), nullptr, 1, 1, 1},
                                             nullptr)) == cudaSuccess);
    CHECK(token[0] == -1);
}
