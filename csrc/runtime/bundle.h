// A bundle that was checked as a whole before anything in it is parsed.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "engine/weights.h"
#include "runtime/config.h"
#include "runtime/error.h"

namespace latrt {

// A file mapped for reading. Replace such a file, do not rewrite it in place: one that is cut
// short while it is mapped ends the process.
class MappedFile {
 public:
    MappedFile(int descriptor, size_t size);  // throws std::system_error
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const uint8_t* data() const { return data_; }
    size_t size() const { return size_; }

 private:
    const uint8_t* data_ = nullptr;
    size_t size_;
};

// `texts`: the small files by name; `weights`: native.safetensors, mapped.
struct Bundle {
    std::string path;
    ModelConfig config;
    int64_t max_model_len = 0;
    std::map<std::string, std::string> texts;
    std::shared_ptr<const MappedFile> weights;

    // Throws Error (status bundle) E_MISSING_FILE, E_MANIFEST, E_FORMAT_VERSION, E_LINK,
    // E_SPECIAL_FILE, E_UNLISTED_FILE, E_SIZE, E_HASH. Without `verify` nothing is hashed but
    // bundle.json; names, kinds and sizes are checked all the same.
    static Bundle open(const std::string& path, bool verify);

    // The small file of that name. Throws Error E_MISSING_FILE.
    const std::string& text(const std::string& name) const;

    // The message of an Error about one file, with its path and what to do.
    Error refused(const std::string& name, const std::string& file, const std::string& what) const;
};

}  // namespace latrt
