// Capability 7.5 has no copies in the background and no mma of depth 16 or of bf16: the same names
// over what it has. Plain C++ but for `mma_depth_8`, so that the emulation runs this very text.
#pragma once

#include <cstdint>
#include <cstring>

namespace latrt::cuda {

// 16 bytes from global to shared memory, at once; zeros, unread, where not `valid`.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
    *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void copy_async_4(void* to, const void* from, bool valid) {
    *static_cast<uint32_t*>(to) = valid ? *static_cast<const uint32_t*>(from) : 0;
}

__device__ __forceinline__ void commit_copies() {}

template <int kGroupsLeft>
__device__ __forceinline__ void wait_copies() {}

// c (16, 8) += a (16, 16) b (16, 8), as two products of half the depth. Words 0 and 1 of `a` and
// word 0 of `b` are those of depth below 8.
template <class Act>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_depth_8<Act>(c, a[0], a[1], b[0]);
    mma_depth_8<Act>(c, a[2], a[3], b[1]);
}

}  // namespace latrt::cuda
