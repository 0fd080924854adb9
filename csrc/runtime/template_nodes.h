// The parsed form of a chat template.
#pragma once

#include <string>
#include <vector>

#include "runtime/template_value.h"

namespace latrt {

struct TemplateExpr {
    enum class Op {
        literal,
        name,
        list,
        get,
        slice,
        call,
        method,
        filter,
        test,
        negate,
        invert,
        both,
        either,
        choose,
        compare,
        inside,
        add,
        subtract,
        concat
    } op;
    std::string name;     // variable, attribute, function, method, filter, test, operator
    TemplateValue value;  // of a literal
    std::vector<TemplateExpr> args;
    std::vector<std::string> keywords = {};  // names of the last arguments of a call
};

struct TemplateNode {
    enum class Kind { text, output, branch, loop, set } kind;
    std::string name;                                    // text, loop variable, or what is set
    std::string attribute = {};                          // of a namespace that is set
    std::vector<TemplateExpr> exprs = {};                // output, conditions, what is looped over
    std::vector<std::vector<TemplateNode>> bodies = {};  // one a condition, then the else
};

// Throws Error E_TEMPLATE.
std::vector<TemplateNode> parse_template(const std::string& source);

[[noreturn]] void refuse_template(const std::string& what);

}  // namespace latrt
