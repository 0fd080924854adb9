// The random stream of numpy.random.default_rng([seed, ...]): SeedSequence and PCG64.
#pragma once

#include <cstdint>
#include <vector>

namespace latrt {

// O'Neill's PCG XSL-RR 128/64, seeded as NumPy seeds it, so that both draw the same numbers.
class Random {
 public:
    explicit Random(const std::vector<uint64_t>& seed);

    // 0 <= result < 1, 53 bits.
    double uniform();

    // 0, 1, ..., n - 1 in random order.
    std::vector<int64_t> permutation(int64_t n);

 private:
    uint64_t bits64();
    uint32_t bits32();
    uint64_t below(uint64_t end);  // 0 <= result < end

    struct Wide {
        uint64_t high, low;
    };
    void step();

    Wide state_ = {0, 0}, increment_ = {0, 0};
    bool has_half_ = false;
    uint32_t half_ = 0;
};

}  // namespace latrt
