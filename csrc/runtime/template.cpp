#include "runtime/template.h"

#include <algorithm>
#include <cstdlib>

#include "runtime/error.h"
#include "runtime/template_budget.h"
#include "runtime/template_nodes.h"
#include "runtime/unicode.h"

namespace latrt {

const char* const kDefaultTemplate =
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

TemplateValue TemplateValue::none() {
    TemplateValue out;
    out.kind = Kind::none;
    return out;
}

bool TemplateValue::truth() const {
    return is(Kind::string) ? !string.empty() : size() > 0 || integer != 0;
}

size_t TemplateValue::size() const {
    if (is(Kind::string)) return num_characters(string);
    return is(Kind::list) ? list->size() : is(Kind::mapping) ? mapping->size() : 0;
}

std::string TemplateValue::print() const {
    if (is(Kind::list) || is(Kind::mapping)) refuse_template("it prints a list or a mapping");
    if (is(Kind::boolean)) return integer ? "True" : "False";
    if (is(Kind::integer)) return std::to_string(integer);
    return is(Kind::none) ? "None" : string;
}

bool TemplateValue::equals(const TemplateValue& other) const {
    const bool numbers = (is(Kind::boolean) || is(Kind::integer)) &&
                         (other.is(Kind::boolean) || other.is(Kind::integer));
    if (numbers) return integer == other.integer;
    if (is(Kind::list) || is(Kind::mapping)) refuse_template("it compares lists or mappings");
    return kind == other.kind && string == other.string;
}

const TemplateValue* TemplateValue::find(const std::string& key) const {
    for (const auto& [name, value] : *mapping) {
        if (name == key) return &value;
    }
    return nullptr;
}

namespace {

using Value = TemplateValue;
using Kind = Value::Kind;
using Expr = TemplateExpr;
using Op = Expr::Op;

std::string stripped(const std::string& text) {
    std::u32string codes = decode_utf8(text);
    const auto white = [](char32_t c) { return is_space(c) || (c >= 0x1c && c <= 0x1f); };
    while (!codes.empty() && white(codes.back())) codes.pop_back();
    codes.erase(codes.begin(), std::find_if_not(codes.begin(), codes.end(), white));
    return encode_utf8(codes);
}

class Renderer {
 public:
    explicit Renderer(const Value::Mapping& variables) : scope_(variables), budget_(variables) {}

    void run(const std::vector<TemplateNode>& nodes) {
        for (const TemplateNode& node : nodes) run(node);
    }

    std::string take() { return std::move(out_); }

 private:
    void write(const std::string& text) {
        budget_.write(text);
        out_ += text;
    }

    void run(const TemplateNode& node) {
        budget_.spend();
        switch (node.kind) {
            case TemplateNode::Kind::text:
                write(node.name);
                break;
            case TemplateNode::Kind::output:
                write(eval(node.exprs[0]).print());
                break;
            case TemplateNode::Kind::branch: {
                size_t i = 0;
                while (i < node.exprs.size() && !eval(node.exprs[i]).truth()) ++i;
                if (i < node.bodies.size()) run(node.bodies[i]);
                break;
            }
            case TemplateNode::Kind::loop:
                loop(node);
                break;
            case TemplateNode::Kind::set:
                assign(node);
                break;
        }
    }

    // What is set inside a loop ends with the iteration, as in Jinja.
    void loop(const TemplateNode& node) {
        const Value over = eval(node.exprs[0]);
        if (!over.is(Kind::list) && !over.is(Kind::undefined))
            refuse_template("it loops over something that is no list");
        const int64_t count = static_cast<int64_t>(over.size());
        if (count == 0 && node.bodies.size() > 1) run(node.bodies[1]);
        const size_t outer = frame_, depth = scope_.size();
        frame_ = depth;
        for (int64_t i = 0; i < count; ++i) {
            budget_.spend();
            budget_.pay((*over.list)[static_cast<size_t>(i)].string.size());
            scope_.emplace_back(node.name, (*over.list)[static_cast<size_t>(i)]);
            scope_.emplace_back("loop", Value::Mapping{{"first", i == 0},
                                                       {"last", i == count - 1},
                                                       {"index", i + 1},
                                                       {"index0", i},
                                                       {"length", count}});
            run(node.bodies[0]);
            scope_.resize(depth);
        }
        frame_ = outer;
    }

    void assign(const TemplateNode& node) {
        Value value = eval(node.exprs[0]);
        if (node.attribute.empty()) {
            budget_.spend(scope_.size() - frame_);
            for (size_t i = frame_; i < scope_.size(); ++i) {
                if (scope_[i].first != node.name) continue;
                scope_[i].second = std::move(value);
                return;
            }
            scope_.emplace_back(node.name, std::move(value));
            return;
        }
        const Value target = lookup(node.name);
        if (!target.is(Kind::mapping)) refuse_template("it sets an attribute of no namespace");
        value = budget_.sized(std::move(value), target.mapping.get());
        budget_.spend(target.mapping->size());
        for (auto& [name, old] : *target.mapping) {
            if (name == node.attribute) {
                old = std::move(value);
                return;
            }
        }
        target.mapping->emplace_back(node.attribute, std::move(value));
    }

    Value lookup(const std::string& name) {
        budget_.spend(scope_.size());
        for (size_t i = scope_.size(); i-- > 0;) {
            if (scope_[i].first == name) return scope_[i].second;
        }
        return {};
    }

    Value eval(const Expr& e) {
        budget_.spend();
        Value value = evaluated(e);
        if (value.is(Kind::string)) return budget_.sized(std::move(value));
        return value;
    }

    Value evaluated(const Expr& e) {
        switch (e.op) {
            case Op::literal:
                return e.value;
            case Op::name:
                return lookup(e.name);
            case Op::list: {
                Value::List values;
                for (const Expr& arg : e.args) values.push_back(eval(arg));
                return budget_.sized(std::move(values));
            }
            case Op::get:
                return get(eval(e.args[0]), eval(e.args[1]));
            case Op::slice:
                return slice(eval(e.args[0]), eval(e.args[1]), eval(e.args[2]));
            case Op::call:
                return call(e);
            case Op::method:
                return method(e);
            case Op::filter:
                return filter(e);
            case Op::test:
                return test(e.name, eval(e.args[0]));
            case Op::negate:
                return -number(eval(e.args[0]));
            case Op::invert:
                return !eval(e.args[0]).truth();
            case Op::both: {
                Value left = eval(e.args[0]);
                return left.truth() ? eval(e.args[1]) : left;
            }
            case Op::either: {
                Value left = eval(e.args[0]);
                return left.truth() ? left : eval(e.args[1]);
            }
            case Op::choose:
                return eval(e.args[eval(e.args[0]).truth() ? 1 : 2]);
            case Op::compare:
                return compare(e.name, eval(e.args[0]), eval(e.args[1]));
            case Op::inside:
                return inside(eval(e.args[0]), eval(e.args[1]));
            case Op::concat:
                return eval(e.args[0]).print() + eval(e.args[1]).print();
            case Op::subtract:
                return number(eval(e.args[0])) - number(eval(e.args[1]));
            case Op::add: {
                const Value left = eval(e.args[0]), right = eval(e.args[1]);
                if (left.is(Kind::string) && right.is(Kind::string))
                    return left.string + right.string;
                return number(left) + number(right);
            }
        }
        return {};
    }

    static int64_t number(const Value& value) {
        if (!value.is(Kind::integer) || std::abs(value.integer) > 1 << 30)
            refuse_template("it computes with something that is no small integer");
        return value.integer;
    }

    Value get(const Value& base, const Value& key) {
        if (base.is(Kind::mapping) && key.is(Kind::string)) {
            budget_.spend(base.mapping->size());
            const Value* found = base.find(key.string);
            return found ? *found : Value();
        }
        if (base.is(Kind::list) && key.is(Kind::integer)) {
            const int64_t count = static_cast<int64_t>(base.list->size());
            const int64_t at = key.integer < 0 ? key.integer + count : key.integer;
            return at >= 0 && at < count ? (*base.list)[static_cast<size_t>(at)] : Value();
        }
        if (base.is(Kind::undefined)) refuse_template("it asks something undefined for a part");
        if (key.is(Kind::integer)) refuse_template("it takes single characters of a text");
        return {};
    }

    Value slice(const Value& base, const Value& first, const Value& last) {
        if (!base.is(Kind::list)) refuse_template("it slices something that is no list");
        const int64_t count = static_cast<int64_t>(base.list->size());
        const auto place = [count](const Value& value, int64_t otherwise) {
            if (value.is(Kind::none)) return otherwise;
            const int64_t at = number(value);
            return std::clamp<int64_t>(at < 0 ? at + count : at, 0, count);
        };
        const int64_t from = place(first, 0), to = std::max(from, place(last, count));
        return budget_.sized(Value::List(base.list->begin() + from, base.list->begin() + to));
    }

    static bool compare(const std::string& symbol, const Value& left, const Value& right) {
        if (symbol == "==") return left.equals(right);
        if (symbol == "!=") return !left.equals(right);
        const int64_t a = number(left), b = number(right);
        return symbol == "<" ? a < b : symbol == ">" ? a > b : symbol == "<=" ? a <= b : a >= b;
    }

    bool inside(const Value& value, const Value& where) {
        if (where.is(Kind::list)) {
            budget_.pay(TemplateBudget::kItemSize * where.list->size());
            return std::any_of(where.list->begin(), where.list->end(),
                               [&](const Value& one) { return one.equals(value); });
        }
        if (where.is(Kind::mapping)) {
            budget_.spend(where.mapping->size());
            return value.is(Kind::string) && where.find(value.string);
        }
        if (where.is(Kind::string) && value.is(Kind::string)) {
            budget_.pay_search(where.string, value.string);
            return where.string.find(value.string) != std::string::npos;
        }
        refuse_template("'in' needs a list, a mapping or two texts");
    }

    static bool test(const std::string& name, const Value& value) {
        if (name == "defined") return !value.is(Kind::undefined);
        if (name == "undefined") return value.is(Kind::undefined);
        if (name == "none") return value.is(Kind::none);
        if (name == "string") return value.is(Kind::string);
        if (name == "mapping") return value.is(Kind::mapping);
        if (name == "iterable" || name == "sequence")
            return value.is(Kind::string) || value.is(Kind::list) || value.is(Kind::mapping);
        if (name == "boolean") return value.is(Kind::boolean);
        if (name == "integer") return value.is(Kind::integer);
        if (name == "number") return value.is(Kind::integer) || value.is(Kind::boolean);
        if (name == "true") return value.is(Kind::boolean) && value.integer;
        if (name == "false") return value.is(Kind::boolean) && !value.integer;
        refuse_template("the test " + name.substr(0, 40) + " is not supported");
    }

    Value call(const Expr& e) {
        if (e.name == "namespace" && e.keywords.size() == e.args.size()) {
            Value::Mapping values;
            for (size_t i = 0; i < e.args.size(); ++i)
                values.emplace_back(e.keywords[i], eval(e.args[i]));
            return budget_.sized(std::move(values));
        }
        if (e.name == "raise_exception" && e.args.size() == 1) {
            throw Error(Status::input, "E_MESSAGES",
                        "messages: refused by the chat template: " +
                            eval(e.args[0]).print().substr(0, 200));
        }
        refuse_template("the function " + e.name.substr(0, 40) + " is not supported");
    }

    Value method(const Expr& e) {
        const Value base = eval(e.args[0]);
        if (base.is(Kind::string) && e.keywords.empty()) {
            if (e.name == "strip" && e.args.size() == 1) return stripped(base.string);
            const Value arg = e.args.size() == 2 ? eval(e.args[1]) : Value();
            if (arg.is(Kind::string) && e.name == "startswith")
                return base.string.compare(0, arg.string.size(), arg.string) == 0;
            if (arg.is(Kind::string) && e.name == "endswith")
                return base.string.size() >= arg.string.size() &&
                       base.string.compare(base.string.size() - arg.string.size(),
                                           arg.string.size(), arg.string) == 0;
            if (arg.is(Kind::string) && e.name == "split" && !arg.string.empty()) {
                Value::List parts;
                size_t start = 0, end;
                budget_.pay_search(base.string, arg.string);
                while ((end = base.string.find(arg.string, start)) != std::string::npos) {
                    parts.emplace_back(base.string.substr(start, end - start));
                    start = end + arg.string.size();
                    budget_.allow(TemplateBudget::kItemSize * parts.size());
                }
                parts.emplace_back(base.string.substr(start));
                return budget_.sized(std::move(parts));
            }
        }
        refuse_template("the method " + e.name.substr(0, 40) + " is not supported here");
    }

    Value filter(const Expr& e) {
        const Value base = eval(e.args[0]);
        if (e.name == "default" && e.args.size() == 2 && e.keywords.empty())
            return base.is(Kind::undefined) ? eval(e.args[1]) : base;
        if (e.args.size() == 1) {
            if (e.name == "trim") return stripped(base.print());
            if (e.name == "string") return base.print();
            if (e.name == "length" || e.name == "count") return static_cast<int64_t>(base.size());
            if (base.is(Kind::list) && e.name == "first") return get(base, int64_t{0});
            if (base.is(Kind::list) && e.name == "last") return get(base, int64_t{-1});
        }
        refuse_template("the filter " + e.name.substr(0, 40) + " is not supported here");
    }

    Value::Mapping scope_;  // inner loops last
    size_t frame_ = 0;      // where the variables of the innermost loop begin
    std::string out_;
    TemplateBudget budget_;
};

}  // namespace

ChatTemplate::ChatTemplate(const std::string& source)
    : source_(source),
      body_(std::make_shared<const std::vector<TemplateNode>>(parse_template(source))) {}

std::string ChatTemplate::render(const TemplateValue::Mapping& variables) const {
    Renderer renderer(variables);
    renderer.run(*body_);
    return renderer.take();
}

}  // namespace latrt
