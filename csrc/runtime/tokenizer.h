// The byte-level BPE of a tokenizer.json: text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "runtime/json.h"
#include "runtime/pattern.h"

namespace latrt {

// Every entry of added_tokens is a control token, and plain text never yields one. Immutable; safe
// to share between threads.
class Tokenizer {
 public:
    // Throws Error E_TOKENIZER naming what is wrong or not supported.
    explicit Tokenizer(const Json& json);

    // Ids of plain text. Throws Error E_TEXT where it is not UTF-8.
    std::vector<int64_t> encode(std::string_view text) const;

    // The text cut at every control token: plain pieces (id -1) and control tokens, the longest
    // one first at each place.
    struct Piece {
        std::string text;
        int64_t control = -1;
    };
    std::vector<Piece> split_controls(std::string_view text) const;

    // The id of a control token, or of a vocabulary entry as it is spelt there.
    std::optional<int64_t> token_id(const std::string& token) const;
    std::optional<int64_t> control_id(const std::string& token) const;
    const std::unordered_map<std::string, int64_t>& controls() const { return controls_; }

    // The UTF-8 bytes that a token stands for; empty for an id without one.
    std::string_view token_bytes(int64_t id) const;

    // Control tokens that are not part of a visible answer.
    bool special(int64_t id) const { return special_.count(id) != 0; }

    // One more than the largest id.
    int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

 private:
    struct Merge {
        int rank;
        int64_t id;
    };

    void read_added(const Json& added);
    void read_model(const Json& model);
    void read_merges(const Json& merges);
    void read_normalizer(const Json& json);
    void read_pre_tokenizer(const Json& json);
    void merge(std::string_view bytes, std::vector<int64_t>& out) const;

    std::unordered_map<std::string, int64_t> controls_, vocab_;
    std::unordered_set<int64_t> special_, control_ids_;
    std::vector<std::string> control_texts_;  // longest first
    std::unordered_map<uint64_t, Merge> merges_;
    std::vector<int64_t> byte_ids_;
    std::vector<std::string> bytes_;
    std::vector<Pattern> splits_;
    bool nfc_ = false, byte_level_ = false, whole_words_ = false;
};

}  // namespace latrt
