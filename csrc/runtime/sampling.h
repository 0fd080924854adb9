// From logits to a token: greedy, temperature, top-k, top-p, repetition penalty.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "runtime/random.h"

namespace latrt {

// Temperature 0 is greedy; top_k 0 and top_p 1 are off. Penalty, temperature, top-k, top-p.
struct SamplingParams {
    double temperature = 0, top_p = 1, repetition_penalty = 1;
    int64_t top_k = 0, seed = 0;

    // Throws Error E_SAMPLING naming the field.
    void check() const;
};

// log(sum(exp(logits))) of finite logits; a log-probability is a logit less this.
double log_partition(const std::vector<float>& logits);

// Entropy at temperature 1.
double entropy_nats(const std::vector<float>& logits);

// Draws the tokens of one sequence as la_trt.sampling.Sampler does.
class Sampler {
 public:
    // `stream` tells samples of one prompt apart under one seed.
    Sampler(const SamplingParams& params, const std::vector<int64_t>& prompt_ids, uint64_t stream);

    // The next token from finite logits; never `banned` (-1: nothing is).
    int64_t draw(const std::vector<float>& logits, int64_t banned);

    // Notes a token of the answer, drawn or forced.
    void accept(int64_t token);

 private:
    int64_t categorical(std::vector<double> scores);

    SamplingParams params_;
    Random random_;
    std::set<int64_t> seen_;
};

}  // namespace latrt
