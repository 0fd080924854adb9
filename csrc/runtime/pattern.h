// The regular expressions of byte-level pre-tokenisers, matched over code points.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace latrt {

// What they use of the syntax: alternatives, (?:...), (?i:...), (?!c), (?=c), classes with ranges,
// \p{L} \p{N} \s \S \r \n \t, and the greedy ? * + {m,n} after a character or class.
class Pattern {
 public:
    // Throws Error E_TOKENIZER at anything else.
    explicit Pattern(std::u32string_view source);

    // The ends of the pieces of `text`: every match, and every gap between two of them.
    std::vector<size_t> split(std::u32string_view text) const;

 private:
    friend class PatternParser;

    struct Set {
        struct Part {
            enum class Kind { range, letter, number, space } kind;
            bool negated = false;
            char32_t first = 0, last = 0;
        };
        std::vector<Part> parts;
        bool negated = false;
        bool contains(char32_t code) const;
    };
    struct Item {
        Set set;
        size_t least = 1, most = 1;
        enum class Look { none, ahead, not_ahead } look = Look::none;
    };
    using Alternative = std::vector<Item>;

    static constexpr size_t kNone = static_cast<size_t>(-1);

    // Where the items from `item` on end when they match at `at`, or kNone.
    static size_t match(const Alternative& items, size_t item, std::u32string_view text, size_t at);

    std::vector<Alternative> alternatives_;
};

}  // namespace latrt
