// Token bytes become text piece by piece: whole characters only, stop strings never shown.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/unicode.h"

namespace latrt {

class TextStream {
 public:
    explicit TextStream(std::vector<std::string> stop) : stop_(std::move(stop)) {}

    // All text emitted so far.
    const std::string& text() const { return text_; }

    // Whether a stop string was found; nothing may be pushed after it.
    bool stopped() const { return stopped_; }

    // The text that became certain with these bytes.
    std::string push(std::string_view bytes);

    // What is still held back, when nothing more comes.
    std::string flush();

 private:
    std::string release();
    std::string emit(std::string text);

    std::vector<std::string> stop_;
    Utf8Stream characters_;
    std::string held_, text_;
    bool stopped_ = false;
};

// The trimmed text inside the last complete <CONCLUSION>, "" where there is none.
std::string conclusion(std::string_view text);

}  // namespace latrt
