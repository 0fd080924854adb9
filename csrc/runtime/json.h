// JSON from files that nobody vouches for: bounded, without duplicate keys, finite numbers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latrt {

struct JsonError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// One value. The accessors throw JsonError naming what was expected.
class Json {
 public:
    enum class Kind { null, boolean, integer, number, string, array, object };
    using Member = std::pair<std::string, Json>;

    // Throws JsonError; `max_depth` counts nested arrays and objects.
    static Json parse(std::string_view text, int max_depth = 100);

    Kind kind() const { return kind_; }
    bool is(Kind kind) const { return kind_ == kind; }
    bool is_null() const { return kind_ == Kind::null; }

    bool boolean() const;
    int64_t integer() const;
    int64_t integer(int64_t low, int64_t high) const;
    double number() const;  // integers too
    const std::string& string() const;
    const std::vector<Json>& array() const;
    const std::vector<Member>& object() const;  // in the order of the text

    // A member of an object: null if it has none; throws JsonError if it has none.
    const Json* find(std::string_view key) const;
    const Json& at(std::string_view key) const;

 private:
    friend class JsonParser;

    Kind kind_ = Kind::null;
    int64_t integer_ = 0;
    double number_ = 0;
    std::string string_;
    std::vector<Json> array_;
    std::vector<Member> object_;
};

// `text` (UTF-8) between quotes, as JSON wants it.
std::string json_quote(std::string_view text);

}  // namespace latrt
