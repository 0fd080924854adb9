#include "runtime/tokenizer.h"

#include <algorithm>
#include <array>
#include <queue>
#include <tuple>

#include "runtime/error.h"
#include "runtime/unicode.h"

namespace latrt {
namespace {

constexpr int64_t kMaxId = 1 << 24;
// What ByteLevel splits by when it is asked to (Radford et al. 2019).
constexpr std::u32string_view kByteLevelPattern =
    U"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

[[noreturn]] void refuse(const std::string& what) {
    throw Error(Status::bundle, "E_TOKENIZER", what);
}

// The 256 characters by which byte-level BPE spells bytes.
std::array<char32_t, 256> byte_symbols() {
    std::array<char32_t, 256> symbols;
    char32_t other = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool printable = (byte >= 0x21 && byte < 0x7f) || (byte >= 0xa1 && byte != 0xad);
        symbols[byte] = printable ? byte : other++;
    }
    return symbols;
}

const std::array<char32_t, 256> kSymbols = byte_symbols();

// The bytes that a vocabulary entry spells; itself where it has other characters.
std::string spelt_bytes(const std::string& token) {
    std::string out;
    for (const char32_t c : decode_utf8(token)) {
        const auto found = std::find(kSymbols.begin(), kSymbols.end(), c);
        if (found == kSymbols.end()) return token;
        out += static_cast<char>(found - kSymbols.begin());
    }
    return out;
}

bool flag(const Json& json, std::string_view key, bool otherwise) {
    const Json* found = json.find(key);
    return !found || found->is_null() ? otherwise : found->boolean();
}

bool blank(const Json& json, std::string_view key) {
    const Json* found = json.find(key);
    return !found || found->is_null() || (found->is(Json::Kind::string) && found->string().empty());
}

uint64_t pair_key(int64_t first, int64_t second) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(second);
}

}  // namespace

Tokenizer::Tokenizer(const Json& json) {
    try {
        const Json* added = json.find("added_tokens");
        if (added && !added->is_null()) read_added(*added);
        read_model(json.at("model"));
        const Json* normalizer = json.find("normalizer");
        if (normalizer && !normalizer->is_null()) read_normalizer(*normalizer);
        read_pre_tokenizer(json.at("pre_tokenizer"));
    } catch (const JsonError& error) {
        refuse(error.what());
    }
    if (!byte_level_) refuse("pre_tokenizer is not byte-level");
}

void Tokenizer::read_added(const Json& added) {
    for (const Json& token : added.array()) {
        const std::string& text = token.at("content").string();
        const int64_t id = token.at("id").integer(0, kMaxId);
        if (text.empty()) refuse("added_tokens: an empty token");
        for (const char* key : {"single_word", "lstrip", "rstrip"}) {
            if (flag(token, key, false)) {
                refuse("added_tokens: " + json_quote(text) + " uses " + key + ", not supported");
            }
        }
        if (!controls_.emplace(text, id).second || !control_ids_.insert(id).second)
            refuse("added_tokens: " + json_quote(text) + " appears twice");
        if (flag(token, "special", false)) special_.insert(id);
        control_texts_.push_back(text);
    }
    std::stable_sort(control_texts_.begin(), control_texts_.end(),
                     [](const auto& a, const auto& b) { return a.size() > b.size(); });
}

void Tokenizer::read_model(const Json& model) {
    const Json* type = model.find("type");
    if (!type || type->string() != "BPE") refuse("model type: expected byte-level BPE");
    for (const char* key :
         {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
        if (!blank(model, key)) refuse(std::string("model: ") + key + " is not supported");
    }
    if (flag(model, "byte_fallback", false)) refuse("model: byte_fallback is not supported");
    whole_words_ = flag(model, "ignore_merges", false);
    int64_t last = -1;
    for (const auto& [id, text] : [&] {
             std::vector<std::pair<int64_t, std::string>> all;
             for (const auto& [text, id] : controls_) all.emplace_back(id, text);
             for (const auto& [text, value] : model.at("vocab").object()) {
                 if (controls_.count(text)) continue;
                 const int64_t id = value.integer(0, kMaxId);
                 if (control_ids_.count(id))
                     refuse("id " + std::to_string(id) +
                            " belongs to a control token and to an ordinary one");
                 vocab_.emplace(text, id);
                 all.emplace_back(id, spelt_bytes(text));
             }
             return all;
         }()) {
        last = std::max(last, id);
        if (bytes_.size() <= static_cast<size_t>(last))
            bytes_.resize(static_cast<size_t>(last) + 1);
        bytes_[static_cast<size_t>(id)] = text;
    }
    for (unsigned byte = 0; byte < 256; ++byte) {
        std::string symbol;
        append_utf8(symbol, kSymbols[byte]);
        const auto found = vocab_.find(symbol);
        const bool in_utf8 = byte != 0xc0 && byte != 0xc1 && byte < 0xf5;
        if (found == vocab_.end() && in_utf8)
            refuse("the vocabulary cannot spell byte " + std::to_string(byte));
        byte_ids_.push_back(found == vocab_.end() ? -1 : found->second);
    }
    read_merges(model.at("merges"));
}

void Tokenizer::read_merges(const Json& merges) {
    int rank = 0;
    for (const Json& merge : merges.array()) {
        std::string first, second;
        if (merge.is(Json::Kind::string)) {
            const size_t space = merge.string().find(' ');
            if (space == std::string::npos) refuse("merges: an entry of one part");
            first = merge.string().substr(0, space), second = merge.string().substr(space + 1);
        } else {
            if (merge.array().size() != 2) refuse("merges: expected pairs");
            first = merge.array()[0].string(), second = merge.array()[1].string();
        }
        const auto a = vocab_.find(first), b = vocab_.find(second),
                   both = vocab_.find(first + second);
        if (a == vocab_.end() || b == vocab_.end() || both == vocab_.end())
            refuse("merges: " + json_quote(first + " " + second) + " is not in the vocabulary");
        merges_[pair_key(a->second, b->second)] = {rank++, both->second};
    }
}

void Tokenizer::read_normalizer(const Json& json) {
    const std::string& type = json.at("type").string();
    if (type == "NFC") {
        nfc_ = true;
    } else if (type == "Sequence") {
        for (const Json& part : json.at("normalizers").array()) read_normalizer(part);
    } else {
        refuse("normalizer " + json_quote(type) + " is not supported, expected NFC");
    }
}

void Tokenizer::read_pre_tokenizer(const Json& json) {
    const std::string& type = json.at("type").string();
    if (byte_level_) refuse("pre_tokenizer: steps after ByteLevel are not supported");
    if (type == "Sequence") {
        for (const Json& part : json.at("pretokenizers").array()) read_pre_tokenizer(part);
    } else if (type == "ByteLevel") {
        if (flag(json, "add_prefix_space", true))
            refuse("pre_tokenizer: add_prefix_space is not supported");
        if (flag(json, "use_regex", true)) splits_.emplace_back(kByteLevelPattern);
        byte_level_ = true;
    } else if (type == "Split") {
        const Json* regex = json.at("pattern").find("Regex");
        if (!regex || json.at("behavior").string() != "Isolated" || flag(json, "invert", false))
            refuse("pre_tokenizer: expected Split by a Regex, Isolated, not inverted");
        splits_.emplace_back(decode_utf8(regex->string()));
    } else {
        refuse("pre_tokenizer " + json_quote(type) + " is not supported");
    }
}

std::vector<int64_t> Tokenizer::encode(std::string_view text) const {
    std::u32string codes = decode_utf8(text);
    if (nfc_) codes = nfc(codes);
    std::vector<std::u32string_view> words;
    if (!codes.empty()) words.push_back(codes);
    for (const Pattern& pattern : splits_) {
        std::vector<std::u32string_view> parts;
        for (const std::u32string_view word : words) {
            size_t start = 0;
            for (const size_t end : pattern.split(word)) {
                parts.push_back(word.substr(start, end - start));
                start = end;
            }
        }
        words = std::move(parts);
    }
    std::vector<int64_t> out;
    for (const std::u32string_view word : words) merge(encode_utf8(word), out);
    return out;
}

// Joins neighbours by the rank of their merge, the leftmost first among equals.
void Tokenizer::merge(std::string_view bytes, std::vector<int64_t>& out) const {
    if (whole_words_) {
        std::string symbols;
        for (const char byte : bytes) append_utf8(symbols, kSymbols[static_cast<uint8_t>(byte)]);
        const auto found = vocab_.find(symbols);
        if (found != vocab_.end()) return out.push_back(found->second);
    }
    const size_t none = bytes.size();
    std::vector<int64_t> ids;
    std::vector<size_t> next, previous;
    for (size_t i = 0; i < none; ++i) {
        ids.push_back(byte_ids_[static_cast<uint8_t>(bytes[i])]);
        next.push_back(i + 1);
        previous.push_back(i ? i - 1 : none);
    }
    using Candidate = std::tuple<int, size_t, int64_t>;  // rank, left, the id it makes
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto offer = [&](size_t left) {
        if (left == none || next[left] == none) return;
        const auto found = merges_.find(pair_key(ids[left], ids[next[left]]));
        if (found != merges_.end()) queue.emplace(found->second.rank, left, found->second.id);
    };
    for (size_t i = 0; i < none; ++i) offer(i);
    while (!queue.empty()) {
        const auto [rank, left, id] = queue.top();
        queue.pop();
        if (ids[left] < 0 || next[left] == none) continue;
        const size_t right = next[left];
        const auto found = merges_.find(pair_key(ids[left], ids[right]));
        if (found == merges_.end() || found->second.rank != rank) continue;
        ids[left] = id, ids[right] = -1;
        next[left] = next[right];
        if (next[left] != none) previous[next[left]] = left;
        offer(left);
        offer(previous[left]);
    }
    for (size_t i = 0; i < none; i = next[i]) out.push_back(ids[i]);
}

std::vector<Tokenizer::Piece> Tokenizer::split_controls(std::string_view text) const {
    std::vector<Piece> out;
    std::string plain;
    const auto flush = [&] {
        if (!plain.empty()) out.push_back({plain, -1});
        plain.clear();
    };
    for (size_t at = 0; at < text.size();) {
        const auto found =
            std::find_if(control_texts_.begin(), control_texts_.end(),
                         [&](const std::string& c) { return text.substr(at, c.size()) == c; });
        if (found == control_texts_.end()) {
            plain += text[at++];
            continue;
        }
        flush();
        out.push_back({*found, controls_.at(*found)});
        at += found->size();
    }
    flush();
    return out;
}

std::optional<int64_t> Tokenizer::control_id(const std::string& token) const {
    const auto found = controls_.find(token);
    return found == controls_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<int64_t> Tokenizer::token_id(const std::string& token) const {
    if (const auto control = control_id(token)) return control;
    const auto found = vocab_.find(token);
    return found == vocab_.end() ? std::nullopt : std::optional(found->second);
}

std::string_view Tokenizer::token_bytes(int64_t id) const {
    const bool known = id >= 0 && id < size();
    return known ? std::string_view(bytes_[static_cast<size_t>(id)]) : std::string_view();
}

}  // namespace latrt
