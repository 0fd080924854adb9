// UTF-8, the character classes of the pre-tokeniser, and normal form C.
#pragma once

#include <string>
#include <string_view>

namespace latrt {

bool is_utf8(std::string_view text);

// Code points of valid UTF-8. Throws Error E_TEXT where it is not valid.
std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view text);
void append_utf8(std::string& out, char32_t code);

// \p{L}, \p{N} and \s of the `tokenizers` library.
bool is_letter(char32_t code);
bool is_number(char32_t code);
bool is_space(char32_t code);

// Canonical composition, as the `tokenizers` library does it.
std::u32string nfc(std::u32string_view text);

// Decodes bytes that come in pieces; each maximal part that is no UTF-8 becomes one U+FFFD.
class Utf8Stream {
 public:
    // The characters that are complete now.
    std::string push(std::string_view bytes);

    // U+FFFD for an unfinished character, else nothing.
    std::string finish();

 private:
    std::string held_;
};

}  // namespace latrt
