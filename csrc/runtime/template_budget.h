// What one rendering of a chat template may still spend.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "runtime/template_nodes.h"

namespace latrt {

inline size_t num_characters(const std::string& text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](unsigned char c) {
        return (c & 0xc0) != 0x80;  // not the rest of a character
    }));
}

// As in la_trt/processor/sandbox.py: the size of a value is its characters and items, those inside
// it included, and the bounds grow with the text that came in. Every value that is made or read is
// paid for, so that all of them together are bounded too; reading costs nothing there, so there is
// twice as much to pay with here. All members throw Error E_TEMPLATE beyond the bounds.
class TemplateBudget {
 public:
    using Value = TemplateValue;

    static constexpr size_t kItemSize = 8;

    explicit TemplateBudget(const Value::Mapping& variables) {
        size_t size = 0;
        for (const auto& [name, value] : variables) size += characters_of(value);
        max_size_ += kSizePerChar * size;
        work_ += kWorkPerChar * size;
    }

    // A step, and one more for every 16 things that it looks at.
    void spend(size_t looked_at = 0) {
        steps_ += 1 + looked_at / 16;
        if (steps_ > kMaxSteps) refuse_template("it runs too long");
    }

    void allow(size_t size) const {
        if (size > max_size_) refuse_template("it makes a value that is too large");
    }

    void pay(size_t amount) {
        if (amount > work_) refuse_template("it works on too much text");
        work_ -= amount;
    }

    // For a search; a long pattern may be compared again at every place.
    void pay_search(const std::string& text, const std::string& pattern) {
        pay(text.size() * (1 + pattern.size() / 64));
    }

    void write(const std::string& text) {
        written_ += num_characters(text);
        if (written_ > max_size_) refuse_template("it writes too much");
    }

    // The value, of a size that is allowed and paid for; `holder`: what may not be inside it.
    Value sized(Value value, const Value::Mapping* holder = nullptr) {
        size_t size = 0;
        weigh(value, holder, 0, size);
        pay(size);
        return value;
    }

 private:
    static constexpr size_t kMaxSteps = 2'000'000;
    static constexpr size_t kBaseSize = 1 << 20, kSizePerChar = 2;
    static constexpr size_t kBaseWork = 8 << 20, kWorkPerChar = 128;
    static constexpr int kMaxDepth = 32;

    static size_t characters_of(const Value& value) {
        size_t size = num_characters(value.string);
        if (value.is(Value::Kind::list)) {
            for (const Value& item : *value.list) size += characters_of(item);
        } else if (value.is(Value::Kind::mapping)) {
            for (const auto& [name, item] : *value.mapping) size += characters_of(item);
        }
        return size;
    }

    void weigh(const Value& value, const Value::Mapping* holder, int depth, size_t& size) const {
        if (depth > kMaxDepth) refuse_template("it nests values too deeply");
        size += 1 + num_characters(value.string);
        if (value.is(Value::Kind::list)) {
            allow(size += kItemSize * value.list->size());
            for (const Value& item : *value.list) weigh(item, holder, depth + 1, size);
        } else if (value.is(Value::Kind::mapping)) {
            if (value.mapping.get() == holder) refuse_template("it puts a namespace into itself");
            allow(size += kItemSize * value.mapping->size());
            for (const auto& [name, item] : *value.mapping) {
                size += 1 + num_characters(name);
                weigh(item, holder, depth + 1, size);
            }
        }
        allow(size);
    }

    size_t steps_ = 0, written_ = 0, max_size_ = kBaseSize, work_ = kBaseWork;
};

}  // namespace latrt
