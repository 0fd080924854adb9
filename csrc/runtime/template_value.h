// The values of a chat template.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace latrt {

struct TemplateValue {
    enum class Kind { undefined, none, boolean, integer, string, list, mapping };
    using List = std::vector<TemplateValue>;
    using Mapping = std::vector<std::pair<std::string, TemplateValue>>;

    Kind kind = Kind::undefined;
    int64_t integer = 0;  // of a boolean too
    std::string string;
    std::shared_ptr<List> list;
    std::shared_ptr<Mapping> mapping;  // a namespace is one that is shared

    TemplateValue() = default;
    TemplateValue(bool value) : kind(Kind::boolean), integer(value) {}
    TemplateValue(int64_t value) : kind(Kind::integer), integer(value) {}
    TemplateValue(std::string value) : kind(Kind::string), string(std::move(value)) {}
    TemplateValue(const char* value) : kind(Kind::string), string(value) {}
    TemplateValue(List value) : kind(Kind::list), list(std::make_shared<List>(std::move(value))) {}
    TemplateValue(Mapping value)
        : kind(Kind::mapping), mapping(std::make_shared<Mapping>(std::move(value))) {}
    static TemplateValue none();

    bool is(Kind other) const { return kind == other; }
    bool truth() const;
    size_t size() const;        // of a string (characters), list or mapping, else 0
    std::string print() const;  // what {{ value }} writes; lists and mappings are refused
    bool equals(const TemplateValue& other) const;
    const TemplateValue* find(const std::string& key) const;  // of a mapping
};

}  // namespace latrt
