// Memory that begins with a line of the cache and, where it is large, lies on huge pages if the
// system has them: a linear layer writes some columns of every row, and rows are pages of 4 KiB
// apart.
#pragma once

#include <cstddef>
#include <vector>

namespace latrt {

// Throws std::bad_alloc. `release_pages` takes the same size.
void* allocate_pages(size_t bytes);
void release_pages(void* memory, size_t bytes);

template <class T>
struct HugePages {
    using value_type = T;

    HugePages() = default;
    template <class U>
    HugePages(const HugePages<U>&) {}

    T* allocate(size_t count) { return static_cast<T*>(allocate_pages(count * sizeof(T))); }
    void deallocate(T* memory, size_t count) { release_pages(memory, count * sizeof(T)); }
    bool operator==(const HugePages&) const = default;
};

template <class T>
using Buffer = std::vector<T, HugePages<T>>;

}  // namespace latrt
