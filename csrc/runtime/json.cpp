#include "runtime/json.h"

#include <charconv>
#include <cstdio>
#include <unordered_set>

#include "runtime/unicode.h"

namespace latrt {

class JsonParser {
 public:
    JsonParser(std::string_view text, int max_depth) : text_(text), max_depth_(max_depth) {}

    Json document() {
        if (!is_utf8(text_)) fail("not UTF-8");
        Json value = parse(0);
        space();
        if (at_ != text_.size()) fail("text after the end");
        return value;
    }

 private:
    [[noreturn]] void fail(const std::string& what) const {
        throw JsonError("not valid JSON: " + what + " at byte " + std::to_string(at_));
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    void space() {
        while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos)
            ++at_;
    }

    void expect(char c) {
        if (peek() != c) fail(std::string("expected '") + c + "'");
        ++at_;
    }

    bool accept(char c) {
        space();
        if (peek() != c) return false;
        ++at_;
        return true;
    }

    Json parse(int depth) {
        space();
        Json value;
        const char c = peek();
        if (c == '{' || c == '[') {
            if (depth == max_depth_)
                fail("nested deeper than " + std::to_string(max_depth_) + " levels");
            ++at_;
            c == '{' ? object(value, depth + 1) : array(value, depth + 1);
        } else if (c == '"') {
            value.kind_ = Json::Kind::string;
            value.string_ = string();
        } else if (word("true") || word("false")) {
            value.kind_ = Json::Kind::boolean;
            value.integer_ = c == 't';
        } else if (!word("null")) {
            number(value);
        }
        return value;
    }

    bool word(std::string_view expected) {
        if (text_.substr(at_, expected.size()) != expected) return false;
        at_ += expected.size();
        return true;
    }

    void object(Json& value, int depth) {
        value.kind_ = Json::Kind::object;
        std::unordered_set<std::string> keys;
        if (accept('}')) return;
        do {
            space();
            std::string key = string();
            if (!keys.insert(key).second) fail("key " + json_quote(key) + " stands twice");
            space();
            expect(':');
            value.object_.emplace_back(std::move(key), parse(depth));
        } while (accept(','));
        expect('}');
    }

    void array(Json& value, int depth) {
        value.kind_ = Json::Kind::array;
        if (accept(']')) return;
        do {
            value.array_.push_back(parse(depth));
        } while (accept(','));
        expect(']');
    }

    size_t digits() {
        const size_t start = at_;
        while (peek() >= '0' && peek() <= '9') ++at_;
        if (at_ == start) fail("expected a value");
        return at_ - start;
    }

    void number(Json& value) {
        const size_t start = at_;
        if (peek() == '-') ++at_;
        const bool zero = peek() == '0';
        if (digits() > 1 && zero) fail("a number with leading zeros");
        bool whole = true;
        if (peek() == '.') ++at_, digits(), whole = false;
        if (peek() == 'e' || peek() == 'E') {
            ++at_, whole = false;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        const char *first = text_.data() + start, *last = text_.data() + at_;
        if (std::from_chars(first, last, value.number_).ec != std::errc())
            fail("a number out of range");
        value.kind_ = Json::Kind::number;
        if (whole && std::from_chars(first, last, value.integer_).ec == std::errc())
            value.kind_ = Json::Kind::integer;
    }

    std::string string() {
        expect('"');
        std::string out;
        while (true) {
            const size_t start = at_;
            while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
                   static_cast<unsigned char>(text_[at_]) >= 0x20)
                ++at_;
            out.append(text_.substr(start, at_ - start));
            if (peek() == '"' && at_ < text_.size()) break;
            if (peek() != '\\') fail("a string that does not end");
            ++at_;
            escape(out);
        }
        ++at_;
        return out;
    }

    void escape(std::string& out) {
        constexpr std::string_view kNames = "\"\\/bfnrt", kMeans = "\"\\/\b\f\n\r\t";
        const char c = peek();
        const size_t known = c ? kNames.find(c) : kNames.npos;
        ++at_;
        if (known != kNames.npos) {
            out += kMeans[known];
        } else if (c == 'u') {
            char32_t code = hex();
            if (code >= 0xd800 && code < 0xdc00 && text_.substr(at_, 2) == "\\u") {
                at_ += 2;
                const char32_t low = hex();
                if (low < 0xdc00 || low >= 0xe000) fail("half of a surrogate pair");
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            if (code >= 0xd800 && code < 0xe000) fail("half of a surrogate pair");
            append_utf8(out, code);
        } else {
            fail("an unknown escape");
        }
    }

    char32_t hex() {
        const std::string_view four = text_.substr(at_, 4);
        unsigned code = 0;
        const auto end = std::from_chars(four.data(), four.data() + four.size(), code, 16);
        if (four.size() < 4 || end.ptr != four.data() + 4) fail("expected four hexadecimal digits");
        at_ += 4;
        return code;
    }

    std::string_view text_;
    size_t at_ = 0;
    int max_depth_;
};

Json Json::parse(std::string_view text, int max_depth) {
    return JsonParser(text, max_depth).document();
}

bool Json::boolean() const {
    if (kind_ != Kind::boolean) throw JsonError("expected true or false");
    return integer_ != 0;
}

int64_t Json::integer() const {
    if (kind_ != Kind::integer) throw JsonError("expected an integer");
    return integer_;
}

int64_t Json::integer(int64_t low, int64_t high) const {
    if (integer() < low || integer_ > high) {
        throw JsonError("expected an integer from " + std::to_string(low) + " to " +
                        std::to_string(high) + ", got " + std::to_string(integer_));
    }
    return integer_;
}

double Json::number() const {
    if (kind_ != Kind::integer && kind_ != Kind::number) throw JsonError("expected a number");
    return number_;
}

const std::string& Json::string() const {
    if (kind_ != Kind::string) throw JsonError("expected a string");
    return string_;
}

const std::vector<Json>& Json::array() const {
    if (kind_ != Kind::array) throw JsonError("expected an array");
    return array_;
}

const std::vector<Json::Member>& Json::object() const {
    if (kind_ != Kind::object) throw JsonError("expected an object");
    return object_;
}

const Json* Json::find(std::string_view key) const {
    for (const Member& member : object()) {
        if (member.first == key) return &member.second;
    }
    return nullptr;
}

const Json& Json::at(std::string_view key) const {
    const Json* found = find(key);
    if (!found) throw JsonError("field " + json_quote(key) + " is missing");
    return *found;
}

std::string json_quote(std::string_view text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            out += '\\', out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
            out += code;
        } else {
            out += c;
        }
    }
    return out + "\"";
}

}  // namespace latrt
