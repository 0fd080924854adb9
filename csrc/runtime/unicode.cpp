#include "runtime/unicode.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>

#include "runtime/error.h"

namespace latrt {
namespace {

struct Range {
    char32_t first, last;
};
struct ClassRange {
    char32_t first, last;
    uint32_t value;
};
struct Decomposition {
    char32_t code, parts[4];
};
struct Composition {
    char32_t first, second, composite;
};

#include "runtime/unicode_tables.inc"

// Hangul syllables are composed by arithmetic: Unicode, section 3.12.
constexpr char32_t kSyllable = 0xac00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11a7;
constexpr char32_t kLeads = 19, kVowels = 21, kTails = 28, kSyllables = kLeads * kVowels * kTails;
constexpr std::string_view kReplacement = "\xef\xbf\xbd";

template <class Row, size_t N>
const Row* row_of(const Row (&rows)[N], char32_t code) {
    const Row* found = std::lower_bound(std::begin(rows), std::end(rows), code,
                                        [](const Row& r, char32_t c) { return r.last < c; });
    return found != std::end(rows) && found->first <= code ? found : nullptr;
}

uint32_t combining_class(char32_t code) {
    const ClassRange* found = code < 0x300 ? nullptr : row_of(kCombining, code);
    return found ? found->value : 0;
}

void decompose(char32_t code, std::u32string& out) {
    if (code >= kSyllable && code < kSyllable + kSyllables) {
        const char32_t index = code - kSyllable, tail = index % kTails;
        out += kLead + index / (kVowels * kTails);
        out += kVowel + index % (kVowels * kTails) / kTails;
        if (tail) out += kTail + tail;
        return;
    }
    const auto* found =
        std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
                         [](const Decomposition& d, char32_t c) { return d.code < c; });
    if (found == std::end(kDecompositions) || found->code != code) {
        out += code;
        return;
    }
    for (const char32_t part : found->parts) {
        if (part) out += part;
    }
}

// The composite of two characters, 0 if there is none.
char32_t compose(char32_t first, char32_t second) {
    if (first >= kLead && first < kLead + kLeads && second >= kVowel && second < kVowel + kVowels)
        return kSyllable + ((first - kLead) * kVowels + (second - kVowel)) * kTails;
    if (first >= kSyllable && first < kSyllable + kSyllables && (first - kSyllable) % kTails == 0 &&
        second > kTail && second < kTail + kTails)
        return first + (second - kTail);
    const auto* found = std::lower_bound(
        std::begin(kCompositions), std::end(kCompositions), std::pair(first, second),
        [](const Composition& c, const auto& pair) { return std::pair(c.first, c.second) < pair; });
    const bool same =
        found != std::end(kCompositions) && found->first == first && found->second == second;
    return same ? found->composite : 0;
}

// Bytes of the character that `lead` begins; 0 where none does.
int sequence_length(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

bool continues(unsigned char lead, int place, unsigned char byte) {
    if (place == 1) {
        if (lead == 0xe0) return byte >= 0xa0 && byte < 0xc0;
        if (lead == 0xed) return byte >= 0x80 && byte < 0xa0;
        if (lead == 0xf0) return byte >= 0x90 && byte < 0xc0;
        if (lead == 0xf4) return byte >= 0x80 && byte < 0x90;
    }
    return byte >= 0x80 && byte < 0xc0;
}

// The longest well-formed start of a character at the front of `text`, and whether it is whole.
struct Front {
    size_t size;
    bool whole, may_go_on;
};

Front front_of(std::string_view text) {
    const unsigned char lead = static_cast<unsigned char>(text[0]);
    const int length = sequence_length(lead);
    if (length == 0) return {1, false, false};
    int size = 1;
    while (size < length && static_cast<size_t>(size) < text.size() &&
           continues(lead, size, static_cast<unsigned char>(text[static_cast<size_t>(size)])))
        ++size;
    return {static_cast<size_t>(size), size == length, static_cast<size_t>(size) == text.size()};
}

}  // namespace

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const Front front = front_of(text);
        if (!front.whole) return false;
        text.remove_prefix(front.size);
    }
    return true;
}

std::u32string decode_utf8(std::string_view text) {
    std::u32string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
        const Front front = front_of(text.substr(at));
        if (!front.whole) {
            throw Error(Status::input, "E_TEXT",
                        "text: byte " + std::to_string(at) +
                            " is not valid UTF-8\nremove it or send the text as UTF-8");
        }
        const unsigned char lead = static_cast<unsigned char>(text[at]);
        char32_t code = front.size == 1 ? lead : lead & (0x7fu >> front.size);
        for (size_t i = 1; i < front.size; ++i)
            code = code << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3fu);
        out += code;
        at += front.size;
    }
    return out;
}

void append_utf8(std::string& out, char32_t code) {
    const auto byte = [&](char32_t bits) { out += static_cast<char>(bits); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) {
        byte(0xc0 | code >> 6);
    } else if (code < 0x10000) {
        byte(0xe0 | code >> 12), byte(0x80 | (code >> 6 & 0x3f));
    } else {
        byte(0xf0 | code >> 18), byte(0x80 | (code >> 12 & 0x3f)), byte(0x80 | (code >> 6 & 0x3f));
    }
    byte(0x80 | (code & 0x3f));
}

std::string encode_utf8(std::u32string_view text) {
    std::string out;
    for (const char32_t code : text) append_utf8(out, code);
    return out;
}

bool is_letter(char32_t code) {
    return row_of(kLetters, code) != nullptr;
}

bool is_number(char32_t code) {
    return row_of(kNumbers, code) != nullptr;
}

bool is_space(char32_t code) {
    return row_of(kSpaces, code) != nullptr;
}

std::u32string nfc(std::u32string_view text) {
    std::u32string parts;
    for (const char32_t code : text) {
        code < 0xc0 ? void(parts += code) : decompose(code, parts);
    }
    for (size_t i = 0; i < parts.size(); ++i) {  // marks in the order of their classes
        const size_t first = i;
        while (i < parts.size() && combining_class(parts[i])) ++i;
        std::stable_sort(
            parts.begin() + static_cast<std::ptrdiff_t>(first),
            parts.begin() + static_cast<std::ptrdiff_t>(i),
            [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    }
    std::u32string out;
    size_t starter = std::u32string::npos;
    uint32_t last = 0;  // class of what stands between the starter and this character
    for (const char32_t part : parts) {
        const uint32_t kind = combining_class(part);
        const bool blocked =
            starter == std::u32string::npos || (starter + 1 != out.size() && last >= kind);
        const char32_t composite = blocked ? 0 : compose(out[starter], part);
        if (composite) {
            out[starter] = composite;
            continue;
        }
        if (kind == 0) starter = out.size();
        last = kind;
        out += part;
    }
    return out;
}

std::string Utf8Stream::push(std::string_view bytes) {
    held_ += bytes;
    std::string out;
    std::string_view rest = held_;
    while (!rest.empty()) {
        const Front front = front_of(rest);
        if (!front.whole && front.may_go_on && sequence_length(static_cast<unsigned char>(rest[0])))
            break;
        out += front.whole ? rest.substr(0, front.size) : kReplacement;
        rest.remove_prefix(front.size);
    }
    held_ = std::string(rest);
    return out;
}

std::string Utf8Stream::finish() {
    const bool open = !held_.empty();
    held_.clear();
    return std::string(open ? kReplacement : "");
}

}  // namespace latrt
