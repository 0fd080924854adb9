// Damaged bundles through the C API: latrt_fuzz [COUNT [FIRST]]. Each is refused with a status of
// the contract, or opens and answers; a sanitizer says the rest. The seed of a case is its number.
#include <latrt/latrt.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "runtime/sha256.h"
#include "tests/check.h"

namespace {

namespace fs = std::filesystem;
using latrt::test::Random;

const char* const kFiles[] = {"bundle.json", "native.safetensors", "preprocessor_config.json",
                              "tokenizer.json"};
const char* const kNumbers[] = {
    "0",    "-1",   "1e999", "4294967296", "9223372036854775807", "18446744073709551616", "1e-300",
    "null", "true", "\"x\"", "[]"};

std::string read(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write(const fs::path& path, const std::string& data) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << data;
}

size_t below(Random& random, size_t bound) {
    return bound ? random.bits() % bound : 0;
}

// Puts one of kNumbers in the place of a run of digits.
void replace_number(Random& random, std::string& data, size_t reach) {
    const size_t at = data.find_first_of("0123456789", below(random, reach));
    if (at == std::string::npos) return;
    const size_t end = data.find_first_not_of("0123456789", at);
    const size_t count = (end == std::string::npos ? data.size() : end) - at;
    data.replace(at, count, kNumbers[below(random, std::size(kNumbers))]);
}

// One change, within the first `reach` bytes.
void change(Random& random, std::string& data, size_t reach) {
    const size_t at = below(random, reach), size = 1 + below(random, 40);
    switch (below(random, 7)) {
        case 0:
            data[at] = static_cast<char>(data[at] ^ (1 << below(random, 8)));
            break;
        case 1:
            data[at] = static_cast<char>(random.bits());
            break;
        case 2:
            data.erase(at, size);
            break;
        case 3:
            data.insert(at, data.substr(below(random, reach), size));
            break;
        case 4:
            data.resize(at);
            break;
        case 5:
            data.insert(at, size, "\0\xff[{\"9\\"[below(random, 7)]);
            break;
        default:
            replace_number(random, data, reach);
    }
}

// The manifest with a digest that is right for the rest of it.
std::string sealed(const std::string& manifest) {
    const size_t line = manifest.find(" \"digest\": ");
    if (line == std::string::npos) return manifest;
    const size_t end = manifest.find('\n', line);
    if (end == std::string::npos) return manifest;
    const std::string rest = manifest.substr(0, line) + manifest.substr(end + 1);
    latrt::Sha256 digest;
    digest.update(rest.data(), rest.size());
    const std::string seal = " \"digest\": \"" + digest.finish() + "\",\n";
    return rest.substr(0, line) + seal + rest.substr(line);
}

// What the manifest says of a file's size.
void tell_size(std::string& manifest, const std::string& name, size_t size) {
    const size_t entry = manifest.find("\"path\": \"" + name + "\"");
    const size_t at = manifest.find("\"size\": ", entry) + 8;
    const size_t end = manifest.find_first_not_of("0123456789", at);
    manifest.replace(at, end - at, std::to_string(size));
}

struct Outcome {
    latrt_status status;
    std::string name;
};

// Opens, asks about a picture, and takes a few tokens.
Outcome use(const std::string& path, bool verify) {
    latrt_model_options options;
    latrt_model_options_init(&options);
    options.threads = 1, options.skip_verify = !verify, options.max_len = 128;
    latrt_model* model = nullptr;
    latrt_status status = latrt_open(path.c_str(), &options, &model);
    latrt_session* session = nullptr;
    latrt_session_options wanted;
    latrt_session_options_init(&wanted);
    wanted.max_tokens = 3, wanted.ignore_eos = 1, wanted.policy = "route";
    if (status == LATRT_OK) status = latrt_session_create(model, &wanted, &session);
    if (status == LATRT_OK) {
        const std::string rgb(56 * 56 * 3, '\x7f');
        const latrt_image image = {reinterpret_cast<const uint8_t*>(rgb.data()), 56, 56, 0};
        status = latrt_ask(session, &image, 1, "How many <b>\xc3\xa9</b> 12?", nullptr);
    }
    if (status == LATRT_OK) status = latrt_run(session, nullptr, nullptr);
    const Outcome outcome = {status, status == LATRT_OK ? "" : latrt_error_name()};
    latrt_session_destroy(session);
    latrt_close(model);
    return outcome;
}

}  // namespace

int main(int argc, char** argv) {
    const long count = argc > 1 ? std::atol(argv[1]) : 10000;
    const long first = argc > 2 ? std::atol(argv[2]) : 0;
    const fs::path path = fs::temp_directory_path() / ("latrt_fuzz_" + std::to_string(::getpid()));
    fs::remove_all(path);
    fs::copy(fs::path(LATRT_GOLDEN) / "bundle", path);
    std::map<std::string, std::string> whole;
    for (const char* name : kFiles) whole[name] = read(path / name);
    std::map<std::string, long> seen;
    int bad = 0;
    for (long number = first; number < first + count; ++number) {
        Random random(static_cast<uint64_t>(number) + 1);
        const std::string name = kFiles[below(random, std::size(kFiles))];
        std::string data = whole[name], manifest = whole["bundle.json"];
        // Half of the changes of weights are in their header.
        const bool head = name == "native.safetensors" && random.bits() % 2;
        for (size_t i = 1 + below(random, 3); i > 0 && !data.empty(); --i)
            change(random, data, std::min<size_t>(data.size(), head ? 4096 : data.size()));
        const bool honest = random.bits() % 8 == 0;  // no more than the file itself is changed
        if (name == "bundle.json") {
            manifest = honest ? data : sealed(data);
        } else {
            write(path / name, data);
            if (!honest) tell_size(manifest, name, data.size()), manifest = sealed(manifest);
        }
        write(path / "bundle.json", manifest);
        const Outcome outcome = use(path.string(), honest);
        ++seen[outcome.status == LATRT_OK ? "answered" : outcome.name];
        const bool changed = name == "bundle.json" ? manifest != whole[name] : data != whole[name];
        if (outcome.status == LATRT_INTERNAL || (honest && changed && outcome.status == LATRT_OK)) {
            std::printf("case %ld (%s): %s\n", number, name.c_str(), latrt_error_message());
            ++bad;
        }
        write(path / name, whole[name]);
        write(path / "bundle.json", whole["bundle.json"]);
    }
    fs::remove_all(path);
    for (const auto& [name, times] : seen) std::printf("%8ld %s\n", times, name.c_str());
    // Both the parsers and what stands behind them must have been met.
    const long answered = seen["answered"];
    if (count >= 1000 && (answered < count / 50 || count - answered < count / 4)) ++bad;
    std::printf("%ld bundles, %d bad\n", count, bad);
    return bad != 0;
}
