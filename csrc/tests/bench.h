// What the benchmarks share: calls that run in turns, some milliseconds each, so that what disturbs
// the machine disturbs all alike. On a shared machine only the best tenth of the rounds says what a
// kernel can do.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace latrt::test {

inline constexpr int kRounds = 40;

struct Entry {
    std::string name;
    double bytes, products;  // of one call
    std::function<void(int round)> call;
    std::vector<double> seconds;

    double best() const { return seconds[seconds.size() / 10]; }
    double median() const { return seconds[seconds.size() / 2]; }
};

// Fills the seconds of all entries, in order; one round more warms up.
inline void measure(std::vector<Entry>& entries) {
    for (int round = -1; round < kRounds; ++round) {
        for (Entry& entry : entries) {
            const auto start = std::chrono::steady_clock::now();
            entry.call(round + 1);
            const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
            if (round >= 0) entry.seconds.push_back(took.count());
        }
    }
    for (Entry& entry : entries) std::sort(entry.seconds.begin(), entry.seconds.end());
}

}  // namespace latrt::test
