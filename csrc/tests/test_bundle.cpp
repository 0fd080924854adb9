// A good bundle opens; whatever was changed in it is refused by name.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "runtime/model.h"
#include "runtime/safetensors.h"
#include "tests/check.h"

namespace {

namespace fs = std::filesystem;
using latrt::Bundle;

// A copy of the golden bundle that `change` has changed: the E_NAME that opening it throws.
std::string opening(const std::function<void(const fs::path&)>& change, bool verify = true) {
    const fs::path path = fs::temp_directory_path() / ("latrt_" + std::to_string(::getpid()));
    fs::remove_all(path);
    fs::copy(fs::path(LATRT_GOLDEN) / "bundle", path);
    change(path);
    std::string name;
    try {
        Bundle::open(path.string(), verify);
    } catch (const latrt::Error& error) {
        name = error.name();
    }
    fs::remove_all(path);
    return name;
}

void rewrite(const fs::path& path, const std::string& from, const std::string& to) {
    std::ifstream in(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(in), {}};
    in.close();
    const size_t at = text.find(from);
    if (at != std::string::npos) text.replace(at, from.size(), to);
    std::ofstream(path, std::ios::binary) << text;
}

}  // namespace

TEST(bundle_opens_as_it_was_written) {
    CHECK(opening([](const fs::path&) {}).empty());
    const latrt::Model model(std::string(LATRT_GOLDEN) + "/bundle", {});
    CHECK(model.config().decoder.num_layers == 2 && model.max_len() == 512);
    CHECK(model.tokenizer().control_id("<|image_pad|>") == model.config().image_token_id);
    CHECK(model.dtype() == "float32");
}

TEST(bundle_refuses_what_was_changed) {
    const auto manifest = [](const char* from, const char* to) {
        return opening([=](const fs::path& p) { rewrite(p / "bundle.json", from, to); });
    };
    CHECK(manifest("\"none\"", "\"int8\"") == "E_MANIFEST");
    CHECK(manifest("{\n", "{\n\n") == "E_MANIFEST");
    CHECK(manifest("\"format_version\": 1", "\"format_version\": 2") == "E_FORMAT_VERSION");
    CHECK(manifest("{", "[") == "E_MANIFEST");
    const std::string weights = "native.safetensors", tokenizer = "tokenizer.json";
    CHECK(opening([&](const fs::path& p) { rewrite(p / weights, "model.norm", "model.n0rm"); }) ==
          "E_HASH");
    CHECK(opening([&](const fs::path& p) { rewrite(p / tokenizer, "vocab", "v0cab"); }, false)
              .empty());  // for who asked not to verify
    CHECK(opening([&](const fs::path& p) { fs::resize_file(p / weights, 100); }, false) ==
          "E_SIZE");
    CHECK(opening([&](const fs::path& p) { fs::remove(p / tokenizer); }) == "E_MISSING_FILE");
    CHECK(opening([&](const fs::path& p) { fs::remove_all(p); }) == "E_MISSING_FILE");
    CHECK(opening([](const fs::path& p) { std::ofstream(p / "more") << "x"; }) ==
          "E_UNLISTED_FILE");
    CHECK(opening([](const fs::path& p) { fs::create_directory(p / "more"); }) ==
          "E_UNLISTED_FILE");
    CHECK(opening([&](const fs::path& p) {
              fs::rename(p / tokenizer, p / "other");
              fs::create_symlink("other", p / tokenizer);
          }) == "E_LINK");
    CHECK(opening([&](const fs::path& p) {
              fs::create_hard_link(p / tokenizer, fs::path(p).concat("_link"));
              // the second name lies outside, and is removed with the next copy
          }) == "E_LINK");
    fs::remove(fs::temp_directory_path() / ("latrt_" + std::to_string(::getpid()) + "_link"));
}

TEST(bundle_headers_of_weights_are_checked) {
    const auto reading = [](const std::string& header, const std::string& data) {
        const fs::path path = fs::temp_directory_path() / ("latrt_" + std::to_string(::getpid()));
        std::string length(8, '\0');
        length[0] = static_cast<char>(header.size());
        std::ofstream(path, std::ios::binary) << length + header + data;
        std::FILE* file = std::fopen(path.c_str(), "rb");
        const latrt::MappedFile mapped(fileno(file), fs::file_size(path));
        std::fclose(file);
        fs::remove(path);
        try {
            return std::to_string(latrt::Safetensors(mapped).tensors.size());
        } catch (const latrt::JsonError&) {
            return std::string("refused");
        }
    };
    const auto entry = [](const char* dtype, const char* shape, const char* offsets) {
        return std::string("{\"a\":{\"dtype\":\"") + dtype + "\",\"shape\":" + shape +
               ",\"data_offsets\":" + offsets + "}}";
    };
    const std::string four(4, 'x');
    CHECK(reading(entry("U8", "[2,2]", "[0,4]"), four) == "1");
    CHECK(reading(entry("U8", "[2,3]", "[0,4]"), four) == "refused");
    CHECK(reading(entry("U8", "[2,2]", "[1,5]"), four) == "refused");
    CHECK(reading(entry("U8", "[3]", "[1,4]"), four) == "refused");
    CHECK(reading(entry("U8", "[3]", "[0,3]"), four) == "refused");
    CHECK(reading(entry("I64", "[0]", "[0,0]"), "") == "refused");
    CHECK(reading(entry("U8", "[4294967296,4294967296]", "[0,4]"), four) == "refused");
    CHECK(reading(entry("F32", "[-1]", "[0,4]"), four) == "refused");
    CHECK(reading("{}", four) == "refused" && reading("[]", "") == "refused");
}
