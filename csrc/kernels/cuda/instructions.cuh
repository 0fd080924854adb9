// The device's synchronisation, warp and matrix instructions under plain names. Compiled with
// LATRT_HOST_EMULATION the same names run on a CPU (tests/emulation).
#pragma once

// Capability 7.5, which lacks some of them (turing.cuh).
#if defined(LATRT_EMULATED_TURING) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
#define LATRT_TURING 1
#else
#define LATRT_TURING 0
#endif

#ifdef LATRT_HOST_EMULATION
#include "tests/emulation/instructions.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace latrt::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffff;

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char latrt_shared[];
    return latrt_shared;
}

// The current device's compute capability, 75 for 7.5; 0 where there is none.
inline int capability() {
    int device = 0, major = 0, minor = 0;
    const bool found =
        cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
    return found ? 10 * major + minor : 0;
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Args&... args) {
    if (shared_bytes > 48 * 1024) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
    return cudaGetLastError();
}

__device__ __forceinline__ void sync_threads() {
    __syncthreads();
}

__device__ __forceinline__ void sync_warp() {
    __syncwarp();
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#if !LATRT_TURING
// 16 bytes from global to shared memory in the background; zeros, unread, where not `valid`.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
                 "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_async_4(void* to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(to)),
                 "l"(from), "r"(valid ? 4 : 0)
                 : "memory");
}

// Makes a group of the copies since the last one.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most the newest `kGroupsLeft` groups of this thread are under way.
template <int kGroupsLeft>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
}
#endif

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
    return __shfl_sync(kAllLanes, value, lane);
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(kAllLanes, value, mask);
}

// The value `delta` lanes below; lanes without one keep their own.
template <class T>
__device__ __forceinline__ T shuffle_up(T value, int delta) {
    return __shfl_up_sync(kAllLanes, value, delta);
}

__device__ __forceinline__ uint32_t ballot(bool bit) {
    return __ballot_sync(kAllLanes, bit);
}

__device__ __forceinline__ int population(uint32_t bits) {
    return __popc(bits);
}

template <class T>
__device__ __forceinline__ T atomic_add(T* to, T value) {
    return atomicAdd(to, value);
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

// Four 8 x 8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8
// of matrix l / 8 and gets elements (l / 4, l % 4 * 2) and the next of each.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// An 8 x 8 matrix held as load_matrices gives it, transposed across the warp.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t word) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(transposed) : "r"(word));
    return transposed;
}

#if LATRT_TURING
// c (16, 8) += a (16, 8) b (8, 8), float32 sums; fragments as in the PTX ISA. There is no such
// product of bf16: its kernels are never launched there (`multiplies`).
template <class Act>
__device__ __forceinline__ void mma_depth_8(float (&)[4], uint32_t, uint32_t, uint32_t) {
    __trap();
}

template <>
__device__ __forceinline__ void mma_depth_8<__half>(float (&c)[4], uint32_t a0, uint32_t a1,
                                                    uint32_t b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}
#else
// c (16, 8) += a (16, 16) b (16, 8), float32 sums; fragments as in the PTX ISA.
template <class Act>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma<__half>(float (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace latrt::cuda
#endif

#if LATRT_TURING
#include "kernels/cuda/turing.cuh"
#endif

#include "kernels/cuda/types.h"

namespace latrt::cuda {

// Stages of copies that are worth their memory: one where each is done before the next begins.
inline constexpr int kCopyStages = LATRT_TURING ? 1 : 2;

// kCopyStages of the kernels that the current device runs, for the host.
inline int copy_stages() {
    return capability() < 80 ? 1 : 2;
}

// Whether the current device multiplies matrices of the type.
inline bool multiplies(ActType type) {
    return type == ActType::f16 || capability() >= 80;
}

}  // namespace latrt::cuda
