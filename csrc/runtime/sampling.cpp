#include "runtime/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "runtime/error.h"

namespace latrt {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// A logit less the largest, at least -200, whose exponential is 0.
std::vector<float> below_top(const std::vector<float>& logits) {
    const float top = *std::max_element(logits.begin(), logits.end());
    std::vector<float> out;
    out.reserve(logits.size());
    const bool wide = std::fabs(top) >= 1e6f;
    for (const float x : logits) {
        const float below = wide ? static_cast<float>(std::max(double{x} - top, -200.0)) : x - top;
        out.push_back(std::max(below, -200.0f));
    }
    return out;
}

// Indices of the `count` largest in ascending order, ties to the lower index.
std::vector<size_t> best(const std::vector<double>& scores, size_t count) {
    std::vector<size_t> order(scores.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto better = [&](size_t a, size_t b) {
        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    };
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count) - 1,
                     order.end(), better);
    order.resize(count);
    std::sort(order.begin(), order.end());
    return order;
}

// Indices (ascending) of the fewest most probable whose sum reaches `top_p`.
std::vector<size_t> nucleus(const std::vector<double>& probs, double top_p) {
    std::vector<size_t> order(probs.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return probs[a] > probs[b]; });
    double sum = 0;
    size_t count = 0;
    while (count < order.size()) {
        sum += probs[order[count++]];
        if (sum >= top_p) break;
    }
    order.resize(count);
    std::sort(order.begin(), order.end());
    return order;
}

template <class T>
std::vector<T> picked(const std::vector<T>& values, const std::vector<size_t>& indices) {
    std::vector<T> out;
    for (const size_t i : indices) out.push_back(values[i]);
    return out;
}

}  // namespace

void SamplingParams::check() const {
    const auto refuse = [](const char* what) { throw Error(Status::usage, "E_SAMPLING", what); };
    if (!(temperature >= 0 && temperature <= 100)) refuse("temperature: expected 0 to 100");
    if (top_k < 0) refuse("top_k: expected an integer >= 0");
    if (!(top_p > 0 && top_p <= 1)) refuse("top_p: expected a number above 0 and at most 1");
    if (!(repetition_penalty > 0 && repetition_penalty <= 100))
        refuse("repetition_penalty: expected a number above 0 and at most 100");
    if (seed < 0) refuse("seed: expected an integer >= 0");
}

double log_partition(const std::vector<float>& logits) {
    double total = 0;
    for (const float x : below_top(logits)) total += std::exp(x);
    return *std::max_element(logits.begin(), logits.end()) + std::log(total);
}

double entropy_nats(const std::vector<float>& logits) {
    double total = 0, weighted = 0;
    for (const float x : below_top(logits)) {
        const float weight = std::exp(x);
        total += weight;
        weighted += weight * x;
    }
    return std::log(total) - weighted / total;
}

Sampler::Sampler(const SamplingParams& params, const std::vector<int64_t>& prompt_ids,
                 uint64_t stream)
    : params_(params), random_({static_cast<uint64_t>(params.seed), stream}) {
    if (params.repetition_penalty != 1) seen_.insert(prompt_ids.begin(), prompt_ids.end());
}

int64_t Sampler::draw(const std::vector<float>& logits, int64_t banned) {
    std::vector<double> scores(logits.begin(), logits.end());
    for (const int64_t id : seen_) {
        if (id >= static_cast<int64_t>(scores.size())) continue;
        double& score = scores[static_cast<size_t>(id)];
        score = score > 0 ? score / params_.repetition_penalty : score * params_.repetition_penalty;
    }
    if (banned >= 0) scores[static_cast<size_t>(banned)] = kNever;
    const auto top = std::max_element(scores.begin(), scores.end());
    if (params_.temperature == 0 || params_.top_k == 1) return top - scores.begin();
    const double highest = *top;
    for (double& score : scores) score = (score - highest) / params_.temperature;
    return categorical(std::move(scores));
}

void Sampler::accept(int64_t token) {
    if (params_.repetition_penalty != 1) seen_.insert(token);
}

// A draw from scores whose maximum is 0.
int64_t Sampler::categorical(std::vector<double> scores) {
    std::vector<size_t> candidates(scores.size());
    std::iota(candidates.begin(), candidates.end(), size_t{0});
    if (params_.top_k > 0 && params_.top_k < static_cast<int64_t>(scores.size())) {
        candidates = best(scores, static_cast<size_t>(params_.top_k));
        scores = picked(scores, candidates);
    }
    std::vector<double> probs;
    for (const double score : scores) probs.push_back(std::exp(static_cast<float>(score)));
    if (params_.top_p < 1) {
        const double total = std::accumulate(probs.begin(), probs.end(), 0.0);
        std::vector<double> shares;
        for (const double p : probs) shares.push_back(p / total);
        const std::vector<size_t> kept = nucleus(shares, params_.top_p);
        candidates = picked(candidates, kept);
        probs = picked(probs, kept);
    }
    std::vector<double> cumulative(probs.size());
    std::partial_sum(probs.begin(), probs.end(), cumulative.begin());
    const double drawn = random_.uniform() * cumulative.back();
    const auto above = std::upper_bound(cumulative.begin(), cumulative.end(), drawn);
    size_t index = static_cast<size_t>(above - cumulative.begin());
    if (above == cumulative.end()) {  // rounding at the very end: the last that is possible
        index = probs.size() - 1;
        while (index > 0 && probs[index] == 0) --index;
    }
    return static_cast<int64_t>(candidates[index]);
}

}  // namespace latrt
