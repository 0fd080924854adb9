// Tokens guessed ahead from what has been said, as la_trt/speculate.py does: n-gram speculative
// decoding (prompt lookup). A guess costs a row of a step and is kept only where the model says it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

namespace latrt {

inline constexpr int64_t kMaxSpeculate = 16;  // tokens guessed ahead in a step

// What followed the last occurrence of the last 8, 4 or 2 tokens, over all answers so far. Where
// few guesses come true, few are made.
class Drafter {
 public:
    Drafter();

    // A new answer: its tokens follow none of the one before.
    void begin();

    // The answer's next token. Where it throws (no memory), begin() must come before the next.
    void learn(int64_t token);

    // Up to `count` tokens that may follow the answer so far.
    std::vector<int64_t> guess(int64_t count);

    // Takes note of a step's guesses.
    void count(int64_t num_drafted, int64_t num_accepted);

 private:
    static constexpr size_t kLongest = 8;
    // The number of tokens, then they themselves, 0 behind them.
    using Context = std::array<int64_t, kLongest + 1>;
    struct Hash {
        size_t operator()(const Context& context) const;
    };
    using Answer = std::shared_ptr<std::vector<int64_t>>;
    struct Followed {
        Answer answer;
        size_t at;                         // where it goes on
        std::list<Context>::iterator age;  // its place in `ages_`
    };

    Context last(size_t num, size_t end) const;
    const Followed* find() const;

    Answer answer_;
    std::unordered_map<Context, Followed, Hash> following_;
    std::list<Context> ages_;  // the oldest first
    double gain_ = 1;          // mean tokens that came true of a step's guesses
    int num_held_back_ = 0;
};

}  // namespace latrt
