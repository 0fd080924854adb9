// "Device" memory of the emulation: a page that faults lies behind every buffer, and what no
// test wrote is poison. With LATRT_TEST_ON_DEVICE managed memory of a GPU: what lies behind a
// buffer then belongs to nobody, which compute-sanitizer watches.
#pragma once

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace latrt::test {

template <class T>
class Buffer {
 public:
    explicit Buffer(size_t count) : count_(count) {
        const size_t page = 4096, bytes = count * sizeof(T);
        used_ = (bytes + 15) / 16 * 16;
        pages_ = (used_ + page - 1) / page * page;
#ifdef LATRT_TEST_ON_DEVICE
        void* memory = nullptr;
        const bool failed = cudaMallocManaged(&memory, pages_ + (pages_ == 0)) != cudaSuccess;
        base_ = static_cast<uint8_t*>(memory);
        if (failed) {
#else
        void* memory = mmap(nullptr, pages_ + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        base_ = static_cast<uint8_t*>(memory);
        if (memory == MAP_FAILED || mprotect(base_ + pages_, page, PROT_NONE) != 0) {
#endif
            std::perror("buffer");
            std::abort();
        }
        std::memset(base_, 0xff, pages_);
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        if (!values.empty()) std::memcpy(data(), values.data(), values.size() * sizeof(T));
    }
#ifdef LATRT_TEST_ON_DEVICE
    ~Buffer() { cudaFree(base_); }
#else
    ~Buffer() { munmap(base_, pages_ + 4096); }
#endif
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() { return reinterpret_cast<T*>(base_ + pages_ - used_); }
    const T* data() const { return reinterpret_cast<const T*>(base_ + pages_ - used_); }
    size_t size() const { return count_; }
    T& operator[](size_t i) { return data()[i]; }
    const T& operator[](size_t i) const { return data()[i]; }
    // Whether every byte around the buffer is as it was made.
    bool edges_untouched() const {
        for (const uint8_t* byte = base_; byte < base_ + pages_; ++byte) {
            const auto* mine = reinterpret_cast<const uint8_t*>(data());
            if (byte >= mine && byte < mine + count_ * sizeof(T)) continue;
            if (*byte != 0xff) return false;
        }
        return true;
    }

 private:
    size_t count_, used_ = 0, pages_ = 0;
    uint8_t* base_ = nullptr;
};

}  // namespace latrt::test
