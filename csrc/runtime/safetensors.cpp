#include "runtime/safetensors.h"

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

namespace latrt {
namespace {

constexpr uint64_t kMaxHeader = 16 << 20;

struct Format {
    const char* code;
    DType dtype;
    int64_t bytes;
};
constexpr Format kFormats[] = {
    {"F32", DType::f32, 4}, {"F16", DType::u16, 2}, {"BF16", DType::u16, 2}, {"U8", DType::u8, 1}};

}  // namespace

Safetensors::Safetensors(const MappedFile& file) {
    uint64_t length = 0;
    if (file.size() < 8) throw JsonError("truncated: no header");
    for (int i = 7; i >= 0; --i) length = length << 8 | file.data()[i];
    if (length > kMaxHeader) throw JsonError("header of " + std::to_string(length) + " bytes");
    if (8 + length > file.size()) throw JsonError("truncated: the header does not fit");
    const Json header =
        Json::parse({reinterpret_cast<const char*>(file.data()) + 8, static_cast<size_t>(length)});
    const int64_t base = 8 + static_cast<int64_t>(length);
    const int64_t room = static_cast<int64_t>(file.size()) - base;
    std::vector<std::tuple<int64_t, int64_t, std::string>> places;
    for (const auto& [name, entry] : header.object()) {
        if (name == "__metadata__") {
            for (const auto& [key, value] : entry.object()) metadata[key] = value.string();
            continue;
        }
        const std::string& code = entry.at("dtype").string();
        const auto format = std::find_if(std::begin(kFormats), std::end(kFormats),
                                         [&](const Format& f) { return code == f.code; });
        if (format == std::end(kFormats))
            throw JsonError("tensor " + json_quote(name) + ": dtype " + code + " is not supported");
        const auto& offsets = entry.at("data_offsets").array();
        if (offsets.size() != 2) throw JsonError("tensor " + json_quote(name) + ": data_offsets");
        const int64_t start = offsets[0].integer(0, room), stop = offsets[1].integer(start, room);
        Tensor tensor;
        tensor.dtype = format->dtype;
        int64_t bytes = format->bytes;
        for (const Json& size : entry.at("shape").array()) {
            tensor.shape.push_back(size.integer(0, room));
            bytes = tensor.shape.back() && bytes > room / tensor.shape.back()
                        ? room + 1
                        : bytes * tensor.shape.back();
        }
        if (stop - start != bytes)
            throw JsonError("tensor " + json_quote(name) + ": bytes do not fit its shape");
        tensor.data = file.data() + base + start;
        if ((base + start) % format->bytes != 0)
            throw JsonError("tensor " + json_quote(name) + ": not aligned");
        places.emplace_back(start, stop, name);
        tensors.emplace(name, std::move(tensor));
    }
    std::sort(places.begin(), places.end());
    int64_t end = 0;
    for (const auto& [start, stop, name] : places) {
        if (start != end)
            throw JsonError("tensor " + json_quote(name) + ": overlaps or leaves a gap");
        end = stop;
    }
    if (end != room) throw JsonError("bytes after the last tensor");
}

}  // namespace latrt
