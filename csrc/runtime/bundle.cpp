#include "runtime/bundle.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/sha256.h"

namespace latrt {
namespace {

constexpr char kManifest[] = "bundle.json", kWeights[] = "native.safetensors";
constexpr char kRebuild[] = "\nrebuild with la-trt build --ckpt DIR --output DIR";
constexpr size_t kMaxManifest = 4 << 20, kMaxText = 128 << 20, kMaxFiles = 1000;
constexpr int kMaxReplaced = 5;  // times that a build may replace the bundle while it is opened
const std::set<std::string> kTexts = {"tokenizer.json",           "tokenizer_config.json",
                                      "preprocessor_config.json", "chat_template.jinja",
                                      "chat_template.json",       "generation_config.json"};

struct Entry {
    std::string path, sha256;
    int64_t size;
};

[[noreturn]] void refuse(const char* name, const std::string& what) {
    throw Error(Status::bundle, name, what + kRebuild);
}

[[noreturn]] void refuse_errno(const std::string& path) {
    if (errno == ENOENT) refuse("E_MISSING_FILE", path + ": no such file");
    refuse("E_UNREADABLE_FILE", path + ": cannot be read (" + std::strerror(errno) + ")");
}

class Descriptor {
 public:
    explicit Descriptor(int value) : value_(value) {}
    ~Descriptor() {
        if (value_ >= 0) ::close(value_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return value_; }
    int release() { return std::exchange(value_, -1); }

 private:
    int value_;
};

// Whether `name` may stand in a bundle: up to four parts of letters, digits, '.', '_' and '-'.
bool plain_path(const std::string& name) {
    size_t parts = 0, start = 0;
    while (start <= name.size()) {
        const size_t end = std::min(name.find('/', start), name.size());
        const std::string part = name.substr(start, end - start);
        constexpr char kAllowed[] =
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
        if (part.empty() || part.size() > 128 || part[0] == '.' || part[0] == '-' ||
            part.find_first_not_of(kAllowed) != std::string::npos || ++parts > 4)
            return false;
        start = end + 1;
    }
    return name != kManifest;
}

// A regular, unlinked file below the open directory, and its size.
int open_entry(int directory, const std::string& name, const std::string& where, int64_t& size) {
    struct stat status;
    if (::fstatat(directory, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) refuse_errno(where);
    if (S_ISLNK(status.st_mode)) refuse("E_LINK", where + ": a symbolic link");
    if (!S_ISREG(status.st_mode)) refuse("E_SPECIAL_FILE", where + ": not a regular file");
    const int file =
        ::openat(directory, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 || ::fstat(file, &status) != 0) {
        if (file >= 0) ::close(file);
        refuse_errno(where);
    }
    if (!S_ISREG(status.st_mode) || status.st_nlink > 1) {
        ::close(file);
        refuse("E_LINK", where + ": a hard link");
    }
    size = status.st_size;
    return file;
}

// The file's sha256 if `digest` is there, and its bytes if `bytes` is.
void read_all(int file, const std::string& where, std::string* bytes, Sha256* digest) {
    std::vector<char> buffer(1 << 20);
    while (true) {
        const ssize_t got = ::read(file, buffer.data(), buffer.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) refuse_errno(where);
        if (got == 0) return;
        if (digest) digest->update(buffer.data(), static_cast<size_t>(got));
        if (bytes) bytes->append(buffer.data(), static_cast<size_t>(got));
    }
}

// bundle.json is one byte sequence; its digest is the sha256 of the rest of it.
void check_digest(const std::string& data, const std::string& digest, const std::string& where) {
    const std::string line = " \"digest\": " + json_quote(digest) + ",\n";
    const size_t at = data.find(line);
    Sha256 rest;
    if (at != std::string::npos) {
        rest.update(data.data(), at);
        rest.update(data.data() + at + line.size(), data.size() - at - line.size());
    }
    if (at == std::string::npos || rest.finish() != digest)
        refuse("E_MANIFEST", where + ": changed after it was written (digest or layout differs)");
}

std::vector<Entry> read_entries(const Json& json) {
    std::vector<Entry> out;
    std::set<std::string> seen;
    for (const Json& entry : json.array()) {
        Entry next = {entry.at("path").string(), entry.at("sha256").string(),
                      entry.at("size").integer(0, INT64_MAX)};
        if (!plain_path(next.path))
            throw JsonError("files: " + json_quote(next.path) + " is no plain path");
        if (!seen.insert(next.path).second) throw JsonError("files: one is listed twice");
        out.push_back(std::move(next));
    }
    if (out.empty() || out.size() > kMaxFiles) throw JsonError("files: expected 1 to 1000 entries");
    return out;
}

// Refuses everything in the directory that is neither listed nor on the way to a listed file.
void check_listing(int directory, const std::string& prefix, const std::set<std::string>& listed,
                   const std::string& root) {
    Descriptor own(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    DIR* open = own.get() < 0 ? nullptr : ::fdopendir(own.get());
    if (!open) refuse_errno(root + "/" + prefix);
    const int copy = own.release();
    const std::unique_ptr<DIR, int (*)(DIR*)> close(open, ::closedir);
    errno = 0;
    while (const dirent* entry = ::readdir(open)) {
        const std::string base = entry->d_name, name = prefix + base, where = root + "/" + name;
        if (base == "." || base == ".." || name == kManifest) continue;
        struct stat status;
        if (::fstatat(copy, base.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) refuse_errno(where);
        if (S_ISLNK(status.st_mode)) refuse("E_LINK", where + ": a symbolic link");
        if (!S_ISDIR(status.st_mode)) {
            if (!listed.count(name))
                refuse("E_UNLISTED_FILE", where + ": not listed in bundle.json");
            continue;
        }
        const auto inside = listed.lower_bound(name + "/");
        if (inside == listed.end() || inside->compare(0, name.size() + 1, name + "/") != 0)
            refuse("E_UNLISTED_FILE", where + ": not listed in bundle.json");
        const Descriptor below(
            ::openat(copy, base.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        if (below.get() < 0) refuse_errno(where);
        check_listing(below.get(), name + "/", listed, root);
        errno = 0;
    }
    if (errno != 0) refuse_errno(root + "/" + prefix);
}

Json read_manifest(int directory, const std::string& where) {
    int64_t size = 0;
    const Descriptor file(open_entry(directory, kManifest, where, size));
    if (size > static_cast<int64_t>(kMaxManifest)) refuse("E_MANIFEST", where + ": too large");
    std::string data;
    read_all(file.get(), where, &data, nullptr);
    try {
        Json json = Json::parse(data);
        const Json& version = json.at("format_version");
        if (!version.is(Json::Kind::integer) || version.integer() != 1)
            refuse("E_FORMAT_VERSION", where + ": this library reads format_version 1");
        check_digest(data, json.at("digest").string(), where);
        return json;
    } catch (const JsonError& error) {
        refuse("E_MANIFEST", where + ": " + error.what());
    }
}

Bundle open_once(int directory, const std::string& path, bool verify) {
    Bundle bundle;
    bundle.path = path;
    const std::string where = path + "/" + kManifest;
    const Json json = read_manifest(directory, where);
    std::vector<Entry> entries;
    try {
        bundle.config = ModelConfig::parse(json.at("config"));
        bundle.max_model_len = json.at("limits").at("max_model_len").integer(1, 1 << 30);
        entries = read_entries(json.at("files"));
    } catch (const JsonError& error) {
        refuse("E_MANIFEST", where + ": " + error.what());
    }
    std::set<std::string> listed;
    for (const Entry& entry : entries) listed.insert(entry.path);
    check_listing(directory, "", listed, path);
    for (const Entry& entry : entries) {
        const std::string file_path = path + "/" + entry.path;
        int64_t size = 0;
        const Descriptor file(open_entry(directory, entry.path, file_path, size));
        if (size != entry.size)
            refuse("E_SIZE", file_path + ": " + std::to_string(size) + " bytes, bundle.json says " +
                                 std::to_string(entry.size));
        std::string bytes;
        const bool wanted = kTexts.count(entry.path) != 0;
        if (wanted && size > static_cast<int64_t>(kMaxText)) refuse("E_TOO_LARGE", file_path);
        Sha256 digest;
        if (verify || wanted) read_all(file.get(), file_path, wanted ? &bytes : nullptr, &digest);
        if (verify && digest.finish() != entry.sha256)
            refuse("E_HASH", file_path + ": sha256 differs from bundle.json");
        if (wanted) bundle.texts[entry.path] = std::move(bytes);
        if (entry.path != kWeights) continue;
        try {
            bundle.weights =
                std::make_shared<MappedFile>(file.get(), static_cast<size_t>(entry.size));
        } catch (const std::system_error& error) {
            throw Error(Status::machine, "E_MEMORY", file_path + ": " + error.what());
        }
    }
    if (!bundle.weights) {
        refuse("E_MISSING_FILE", path + ": no native.safetensors, nothing for the CPU engine here");
    }
    return bundle;
}

bool replaced(int directory, const std::string& path) {
    struct stat ours, theirs;
    return ::fstat(directory, &ours) == 0 && ::stat(path.c_str(), &theirs) == 0 &&
           (ours.st_dev != theirs.st_dev || ours.st_ino != theirs.st_ino);
}

}  // namespace

MappedFile::MappedFile(int descriptor, size_t size) : size_(size) {
    void* data = size ? ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0) : MAP_FAILED;
    if (data == MAP_FAILED)
        throw std::system_error(size ? errno : EINVAL, std::generic_category(), "cannot be mapped");
#if defined(MADV_HUGEPAGE)
    ::madvise(data, size, MADV_HUGEPAGE);  // a wish: memory serves huge pages faster
#endif
    data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() {
    ::munmap(const_cast<uint8_t*>(data_), size_);
}

Bundle Bundle::open(const std::string& path, bool verify) {
    for (int i = 0; i < kMaxReplaced; ++i) {
        const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (directory.get() < 0) {
            if (errno == ENOTDIR) refuse("E_MISSING_FILE", path + ": not a bundle directory");
            refuse_errno(path);
        }
        try {
            return open_once(directory.get(), path, verify);
        } catch (const Error&) {
            if (!replaced(directory.get(), path)) throw;
        }
    }
    throw Error(Status::bundle, "E_BUSY", path + ": replaced again and again\nwait for the builds");
}

const std::string& Bundle::text(const std::string& name) const {
    const auto found = texts.find(name);
    if (found == texts.end()) refuse("E_MISSING_FILE", path + "/" + name + ": not in this bundle");
    return found->second;
}

Error Bundle::refused(const std::string& name, const std::string& file,
                      const std::string& what) const {
    return Error(Status::bundle, name, path + "/" + file + ": " + what + kRebuild);
}

}  // namespace latrt
