// Chat templates: the part of Jinja that they use, over values of bounded size.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/template_value.h"

namespace latrt {

struct TemplateNode;

// Statements if, for, set; expressions with and, or, not, in, is, comparisons, + - ~, x if c else
// y, subscripts, slices, namespace(), raise_exception(), the methods strip, startswith, endswith
// and split, the filters trim, length, first, last, string and default. Immutable.
class ChatTemplate {
 public:
    // Throws Error E_TEMPLATE (status bundle) at anything else.
    explicit ChatTemplate(const std::string& source);

    // The text for these variables. Throws Error E_TEMPLATE where it fails or passes its bounds,
    // and E_MESSAGES (status input) where the template refuses the messages.
    std::string render(const TemplateValue::Mapping& variables) const;

    const std::string& source() const { return source_; }

 private:
    std::string source_;
    std::shared_ptr<const std::vector<TemplateNode>> body_;
};

// The format of Qwen2.5-VL: ChatML, a default system prompt, one slot an image.
extern const char* const kDefaultTemplate;

}  // namespace latrt
