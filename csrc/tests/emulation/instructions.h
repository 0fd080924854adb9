// What kernels/cuda/instructions.cuh offers, on the emulated thread model. Warp-wide matrix
// instructions work on the fragments that the PTX ISA documents, lane by lane.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "tests/emulation/emulation.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::latrt::emulation::current.thread)
#define blockIdx (::latrt::emulation::current.block)
#define blockDim (::latrt::emulation::current.block_dim)
#define gridDim (::latrt::emulation::current.grid_dim)

namespace latrt::cuda {

using emulation::Site;

inline unsigned char* dynamic_shared() {
    return static_cast<unsigned char*>(emulation::dynamic_shared());
}

template <class Kernel, class... Args>
cudaError_t launch(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   const Args&... args) {
    emulation::run_grid(grid, block, shared_bytes, [&] { kernel(args...); });
    return cudaSuccess;
}

inline void sync_threads(Site site = Site::current()) {
    emulation::sync_threads(site);
}

inline void sync_warp(Site site = Site::current()) {
    emulation::sync_warp(site);
}

// The capability that is emulated: 7.5 or any from 8.0 on.
inline int capability() {
    return LATRT_TURING ? 75 : 80;
}

#if !LATRT_TURING
inline void copy_async_16(void* to, const void* from, bool valid) {
    emulation::copy_async(to, from, 16, valid ? 16 : 0);
}

inline void copy_async_4(void* to, const void* from, bool valid) {
    emulation::copy_async(to, from, 4, valid ? 4 : 0);
}

inline void commit_copies() {
    emulation::commit_copies();
}

template <int kGroupsLeft>
void wait_copies(Site site = Site::current()) {
    if (emulation::takes_effect(site)) emulation::wait_copies(kGroupsLeft);
}
#endif

template <class T>
struct Shuffle {
    T value, result;
    int lane;
};

template <class T>
T shuffle_from(T value, int lane, Site site) {
    Shuffle<T> operand = {value, value, lane};
    emulation::collective(site, &operand, [](void* const* lanes) {
        for (int i = 0; i < 32; ++i) {
            auto* to = static_cast<Shuffle<T>*>(lanes[i]);
            to->result = static_cast<const Shuffle<T>*>(lanes[to->lane & 31])->value;
        }
    });
    return operand.result;
}

template <class T>
T shuffle(T value, int lane, Site site = Site::current()) {
    return shuffle_from(value, lane, site);
}

template <class T>
T shuffle_xor(T value, int mask, Site site = Site::current()) {
    return shuffle_from(value, static_cast<int>(threadIdx.x % 32) ^ mask, site);
}

// The value `delta` lanes below; lanes without one keep their own.
template <class T>
T shuffle_up(T value, int delta, Site site = Site::current()) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return shuffle_from(value, lane < delta ? lane : lane - delta, site);
}

inline uint32_t ballot(bool bit, Site site = Site::current()) {
    std::pair<bool, uint32_t> operand = {bit, 0};
    emulation::collective(site, &operand, [](void* const* lanes) {
        uint32_t bits = 0;
        for (int i = 0; i < 32; ++i) {
            bits |= uint32_t{static_cast<std::pair<bool, uint32_t>*>(lanes[i])->first} << i;
        }
        for (int i = 0; i < 32; ++i) {
            static_cast<std::pair<bool, uint32_t>*>(lanes[i])->second = bits;
        }
    });
    return operand.second;
}

inline int population(uint32_t bits) {
    return std::popcount(bits);
}

template <class T>
T atomic_add(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}

inline float exp2_fast(float x) {
    return std::exp2(x);
}

inline float act_to_float(__half, uint16_t bits) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
}

inline float act_to_float(__nv_bfloat16, uint16_t bits) {
    return std::bit_cast<float>(uint32_t{bits} << 16);
}

// Row and column of half-word `part` (0, 1) of a lane's word in an 8 x 8 matrix of 16-bit values.
struct Cell {
    int row, column;
};
inline Cell cell(int lane, int part) {
    return {lane / 4, lane % 4 * 2 + part};
}

// A lane's row is read when that lane arrives: what another lane writes before it arrives itself
// is seen only by those that were told to wait for it.
struct LoadMatrix {
    uint16_t row[8];
    uint32_t words[4];
};

template <bool kTranspose>
void load_matrices(uint32_t (&words)[4], const void* row, Site site) {
    emulation::check_aligned(row, 16);
    LoadMatrix operand = {};
    std::memcpy(operand.row, row, sizeof operand.row);
    emulation::collective(site, &operand, [](void* const* lanes) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int m = 0; m < 4; ++m) {
                uint32_t word = 0;
                for (int part = 0; part < 2; ++part) {
                    Cell at = cell(lane, part);
                    if (kTranspose) std::swap(at.row, at.column);
                    const auto* from = static_cast<const LoadMatrix*>(lanes[m * 8 + at.row]);
                    word |= uint32_t{from->row[at.column]} << (16 * part);
                }
                static_cast<LoadMatrix*>(lanes[lane])->words[m] = word;
            }
        }
    });
    std::memcpy(words, operand.words, sizeof words);
}

inline void load_matrices(uint32_t (&words)[4], const void* row, Site site = Site::current()) {
    load_matrices<false>(words, row, site);
}

inline void load_matrices_transposed(uint32_t (&words)[4], const void* row,
                                     Site site = Site::current()) {
    load_matrices<true>(words, row, site);
}

inline uint32_t transpose_matrix(uint32_t word, Site site = Site::current()) {
    std::pair<uint32_t, uint32_t> operand = {word, 0};
    emulation::collective(site, &operand, [](void* const* lanes) {
        for (int lane = 0; lane < 32; ++lane) {
            auto* to = static_cast<std::pair<uint32_t, uint32_t>*>(lanes[lane]);
            to->second = 0;
            for (int part = 0; part < 2; ++part) {
                const Cell at = cell(lane, part);  // transposed: row and column change places
                const int from = at.column * 4 + at.row / 2;
                const uint32_t value =
                    static_cast<std::pair<uint32_t, uint32_t>*>(lanes[from])->first >>
                    (16 * (at.row % 2));
                to->second |= (value & 0xffff) << (16 * part);
            }
        }
    });
    return operand.second;
}

template <class Act>
struct Mma {
    const uint32_t *a, *b;
    float* c;
};

// c (16, 8) += a (16, kDepth) b (kDepth, 8), float32 sums. Row and column of element i of a lane:
// a: lane / 4 + 8 (i / 2 % 2), lane % 4 * 2 + i % 2 + 8 (i / 4); b: row lane % 4 * 2 + i % 2 +
// 8 (i / 2), column lane / 4; c: row lane / 4 + 8 (i / 2), column lane % 4 * 2 + i % 2.
template <class Act, int kDepth>
void multiply(float* c, const uint32_t* a, const uint32_t* b, Site site) {
    Mma<Act> operand = {a, b, c};
    emulation::collective(site, &operand, [](void* const* lanes) {
        float left[16][kDepth], right[8][kDepth];
        for (int lane = 0; lane < 32; ++lane) {
            const auto* from = static_cast<const Mma<Act>*>(lanes[lane]);
            for (int i = 0; i < kDepth / 2; ++i) {
                const uint16_t bits = static_cast<uint16_t>(from->a[i / 2] >> (16 * (i % 2)));
                left[lane / 4 + 8 * (i / 2 % 2)][lane % 4 * 2 + i % 2 + 8 * (i / 4)] =
                    act_to_float(Act(), bits);
            }
            for (int i = 0; i < kDepth / 4; ++i) {
                const uint16_t bits = static_cast<uint16_t>(from->b[i / 2] >> (16 * (i % 2)));
                right[lane / 4][lane % 4 * 2 + i % 2 + 8 * (i / 2)] = act_to_float(Act(), bits);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            float* to = static_cast<const Mma<Act>*>(lanes[lane])->c;
            for (int i = 0; i < 4; ++i) {
                const float* row = left[lane / 4 + 8 * (i / 2)];
                const float* column = right[lane % 4 * 2 + i % 2];
                for (int k = 0; k < kDepth; ++k) to[i] += row[k] * column[k];
            }
        }
    });
}

#if LATRT_TURING
template <class Act>
void mma_depth_8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b, Site site = Site::current()) {
    static_assert(sizeof(Act) == 2);
    const uint32_t a[2] = {a0, a1};
    multiply<Act, 8>(c, a, &b, site);
}
#else
template <class Act>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         Site site = Site::current()) {
    multiply<Act, 16>(c, a, b, site);
}
#endif

}  // namespace latrt::cuda
