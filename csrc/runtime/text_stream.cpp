#include "runtime/text_stream.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace latrt {

std::string TextStream::push(std::string_view bytes) {
    held_ += characters_.push(bytes);
    return release();
}

std::string TextStream::flush() {
    if (stopped_) return "";
    held_ += characters_.finish();
    std::string out = release();
    if (!stopped_) out += emit(std::exchange(held_, ""));
    return out;
}

std::string TextStream::release() {
    size_t found = std::string::npos, kept = 0;
    for (const std::string& stop : stop_) {
        found = std::min(found, held_.find(stop));
        for (size_t size = std::min(stop.size() - 1, held_.size()); size > kept; --size) {
            if (held_.compare(held_.size() - size, size, stop, 0, size) == 0) kept = size;
        }
    }
    if (found != std::string::npos) {
        stopped_ = true;
        return emit(held_.substr(0, found));
    }
    std::string out = held_.substr(0, held_.size() - kept);
    held_.erase(0, out.size());
    return emit(std::move(out));
}

std::string TextStream::emit(std::string text) {
    text_ += text;
    return text;
}

// Tags neither nest nor overlap: an opening tag inside an open section starts afresh, a closing
// tag that does not match closes nothing.
std::string conclusion(std::string_view text) {
    constexpr std::string_view kNames[] = {"SUMMARY", "CAPTION", "REASONING", "REFLECTION",
                                           "CONCLUSION"};
    std::string_view open_name, body;
    size_t open_end = 0;
    for (size_t at = text.find('<'); at != text.npos; at = text.find('<', at + 1)) {
        const bool closing = text.substr(at + 1, 1) == "/";
        const std::string_view rest = text.substr(at + 1 + closing);
        const auto name = std::find_if(std::begin(kNames), std::end(kNames), [&](auto n) {
            return rest.substr(0, n.size()) == n && rest.substr(n.size(), 1) == ">";
        });
        if (name == std::end(kNames)) continue;
        if (!closing) {
            open_name = *name, open_end = at + name->size() + 2;
        } else if (*name == open_name) {
            if (open_name == "CONCLUSION") body = text.substr(open_end, at - open_end);
            open_name = {};
        }
    }
    std::u32string codes = decode_utf8(body);
    const auto white = [](char32_t c) { return is_space(c) || (c >= 0x1c && c <= 0x1f); };
    while (!codes.empty() && white(codes.back())) codes.pop_back();
    codes.erase(codes.begin(), std::find_if_not(codes.begin(), codes.end(), white));
    return encode_utf8(codes);
}

}  // namespace latrt
