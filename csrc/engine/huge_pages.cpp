#include "engine/huge_pages.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace latrt {
namespace {

constexpr size_t kLine = 64, kPage = size_t{1} << 21;

std::align_val_t alignment(size_t bytes) {
    return std::align_val_t{bytes < kPage ? kLine : kPage};
}

}  // namespace

void* allocate_pages(size_t bytes) {
    void* memory = ::operator new(bytes, alignment(bytes));
#if defined(__linux__)
    // A wish. The last page, of which only a part is ours, stays as it is.
    if (bytes >= kPage) ::madvise(memory, bytes / kPage * kPage, MADV_HUGEPAGE);
#endif
    return memory;
}

void release_pages(void* memory, size_t bytes) {
    ::operator delete(memory, alignment(bytes));
}

}  // namespace latrt
