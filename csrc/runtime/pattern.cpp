#include "runtime/pattern.h"

#include <algorithm>
#include <string>

#include "runtime/error.h"
#include "runtime/unicode.h"

namespace latrt {

// Groups are not repeated, so an alternative with a group is as many alternatives without one.
class PatternParser {
 public:
    explicit PatternParser(std::u32string_view source) : source_(source) {}

    std::vector<Pattern::Alternative> parse() {
        auto out = alternatives(false);
        if (at_ != source_.size()) fail("an unexpected )");
        return out;
    }

 private:
    using Set = Pattern::Set;
    using Part = Set::Part;
    using Alternatives = std::vector<Pattern::Alternative>;

    [[noreturn]] void fail(const std::string& what) const {
        throw Error(Status::bundle, "E_TOKENIZER",
                    "pre_tokenizer: its regular expression has " + what + " at character " +
                        std::to_string(at_) + ", not supported");
    }

    bool accept(std::u32string_view expected) {
        if (source_.substr(at_, expected.size()) != expected) return false;
        at_ += expected.size();
        return true;
    }

    bool ended() const { return at_ == source_.size(); }

    Alternatives alternatives(bool fold) {
        Alternatives out;
        do {
            for (auto& one : sequence(fold)) out.push_back(std::move(one));
        } while (accept(U"|"));
        return out;
    }

    Alternatives sequence(bool fold) {
        Alternatives out(1);
        while (!ended() && source_[at_] != U'|' && source_[at_] != U')') {
            Alternatives next;
            if (accept(U"(?!")) {
                next = {{look(fold, Pattern::Item::Look::not_ahead)}};
            } else if (accept(U"(?=")) {
                next = {{look(fold, Pattern::Item::Look::ahead)}};
            } else if (accept(U"(?i:")) {
                next = group(true);
            } else if (accept(U"(?:")) {
                next = group(fold);
            } else if (source_[at_] == U'(') {
                fail("a capturing group");
            } else {
                Pattern::Item item{set(fold)};
                repeat(item);
                next = {{item}};
            }
            Alternatives both;
            for (const auto& first : out) {
                for (const auto& second : next) {
                    both.push_back(first);
                    both.back().insert(both.back().end(), second.begin(), second.end());
                }
            }
            if (both.size() > 1000) fail("too many alternatives");
            out = std::move(both);
        }
        return out;
    }

    Alternatives group(bool fold) {
        if (++depth_ > 20) fail("groups too deep");
        Alternatives out = alternatives(fold);
        if (!accept(U")")) fail("an open group");
        if (!ended() && std::u32string_view(U"?*+{").find(source_[at_]) != source_.npos)
            fail("a repeated group");
        --depth_;
        return out;
    }

    Pattern::Item look(bool fold, Pattern::Item::Look kind) {
        Pattern::Item item{set(fold)};
        item.look = kind;
        if (!accept(U")")) fail("a look-ahead of more than one character");
        return item;
    }

    void repeat(Pattern::Item& item) {
        if (accept(U"?")) {
            item.least = 0;
        } else if (accept(U"*")) {
            item.least = 0, item.most = Pattern::kNone;
        } else if (accept(U"+")) {
            item.most = Pattern::kNone;
        } else if (accept(U"{")) {
            item.least = item.most = number();
            if (accept(U",")) item.most = accept(U"}") ? (--at_, Pattern::kNone) : number();
            if (!accept(U"}") || item.most < item.least) fail("a wrong repetition");
        } else {
            return;
        }
        if (!ended() && std::u32string_view(U"?*+{").find(source_[at_]) != source_.npos)
            fail("a lazy or possessive repetition");
    }

    size_t number() {
        size_t value = 0;
        const size_t start = at_;
        while (!ended() && source_[at_] >= U'0' && source_[at_] <= U'9' && value < 100000)
            value = value * 10 + (source_[at_++] - U'0');
        if (at_ == start) fail("a wrong repetition");
        return value;
    }

    Set set(bool fold) {
        Set out;
        if (!accept(U"[")) {
            if (std::u32string_view(U".^$?*+{").find(source_[at_]) != source_.npos)
                fail("this operator");
            add(out, one(), fold);
            return out;
        }
        out.negated = accept(U"^");
        while (!accept(U"]")) {
            if (ended() || source_[at_] == U'[' || source_.substr(at_, 2) == U"&&")
                fail("this character class");
            Part part = one();
            if (part.kind == Part::Kind::range && source_.substr(at_, 1) == U"-" &&
                source_.substr(at_ + 1, 1) != U"]") {
                ++at_;
                const Part end = one();
                if (end.kind != Part::Kind::range || end.first < part.first) fail("a wrong range");
                part.last = end.first;
            }
            add(out, part, fold);
        }
        return out;
    }

    // One character or escape, which is there.
    Part one() {
        const char32_t c = source_[at_++];
        if (c != U'\\') return {Part::Kind::range, false, c, c};
        if (ended()) fail("a lone backslash");
        const char32_t name = source_[at_++];
        const auto control = [](char32_t code) {
            return Part{Part::Kind::range, false, code, code};
        };
        if (name == U'r') return control(U'\r');
        if (name == U'n') return control(U'\n');
        if (name == U't') return control(U'\t');
        if (name == U's' || name == U'S') return {Part::Kind::space, name == U'S', 0, 0};
        if (name == U'p' || name == U'P') {
            if (accept(U"{L}")) return {Part::Kind::letter, name == U'P', 0, 0};
            if (accept(U"{N}")) return {Part::Kind::number, name == U'P', 0, 0};
        } else if (name < 0x80 && !is_letter(name) && !is_number(name)) {
            return control(name);
        }
        --at_;
        fail("this escape");
    }

    // Simple case folding of ASCII letters, and the two characters that fold to one.
    void add(Set& set, const Part& part, bool fold) {
        set.parts.push_back(part);
        if (!fold || part.kind != Part::Kind::range) return;
        if (part.first != part.last || part.first >= 0x80) fail("a folded range");
        const char32_t lower = part.first | 0x20;
        if (lower < U'a' || lower > U'z') return;
        const char32_t upper = lower - 0x20;
        const char32_t other = lower == U's' ? 0x17f : lower == U'k' ? 0x212a : lower;
        for (const char32_t c : {lower, upper, other}) {
            set.parts.push_back({Part::Kind::range, false, c, c});
        }
    }

    std::u32string_view source_;
    size_t at_ = 0;
    int depth_ = 0;
};

Pattern::Pattern(std::u32string_view source) : alternatives_(PatternParser(source).parse()) {}

bool Pattern::Set::contains(char32_t code) const {
    const auto inside = [code](const Part& part) {
        switch (part.kind) {
            case Part::Kind::letter:
                return is_letter(code) != part.negated;
            case Part::Kind::number:
                return is_number(code) != part.negated;
            case Part::Kind::space:
                return is_space(code) != part.negated;
            default:
                return code >= part.first && code <= part.last;
        }
    };
    return std::any_of(parts.begin(), parts.end(), inside) != negated;
}

size_t Pattern::match(const Alternative& items, size_t item, std::u32string_view text, size_t at) {
    if (item == items.size()) return at;
    const Item& now = items[item];
    if (now.look != Item::Look::none) {
        const bool there = at < text.size() && now.set.contains(text[at]);
        if (there != (now.look == Item::Look::ahead)) return kNone;
        return match(items, item + 1, text, at);
    }
    size_t count = 0;
    while (count < now.most && at + count < text.size() && now.set.contains(text[at + count]))
        ++count;
    for (++count; count-- > now.least;) {
        const size_t end = match(items, item + 1, text, at + count);
        if (end != kNone) return end;
    }
    return kNone;
}

std::vector<size_t> Pattern::split(std::u32string_view text) const {
    std::vector<size_t> ends;
    size_t piece = 0;
    for (size_t at = 0; at < text.size();) {
        size_t end = kNone;
        for (const Alternative& items : alternatives_) {
            end = match(items, 0, text, at);
            if (end != kNone) break;
        }
        if (end == kNone || end == at) {
            ++at;
            continue;
        }
        if (at > piece) ends.push_back(at);
        ends.push_back(end);
        at = piece = end;
    }
    if (piece < text.size()) ends.push_back(text.size());
    return ends;
}

}  // namespace latrt
