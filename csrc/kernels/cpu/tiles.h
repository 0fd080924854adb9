// The eight tile registers of AMX: 16 rows of 64 bytes each, and the product of two of them.
//
// With LATRT_EMULATE_TILES plain C++ stands in for the instructions, so that what is built on them
// is tested on processors that lack them.
#pragma once

#include <cstdint>
#include <cstring>

namespace latrt::LATRT_LEVEL {
namespace {

// Rows and bytes a row of every tile register, as `ldtilecfg` reads them.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr void set(int tile, int num_rows, int num_bytes) {
        rows[tile] = static_cast<uint8_t>(num_rows);
        bytes[tile] = static_cast<uint16_t>(num_bytes);
    }
};
static_assert(sizeof(TileShapes) == 64);

#if !defined(LATRT_EMULATE_TILES)

// Inline assembly: GCC 12 tells its own intrinsic for `ldtilecfg` that 8 of the 64 bytes are read.
inline void use_tiles(const TileShapes& shapes) {
    asm volatile("ldtilecfg %0" ::"m"(shapes));
}
inline void release_tiles() {
    asm volatile("tilerelease");
}
template <int kTile>
inline void zero_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Rows `stride` bytes apart.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
}
// sums[m][n] += rows[m][4 k .. 4 k + 3] . columns[k][4 n .. 4 n + 3], summed over k; signed bytes.
template <int kSums, int kRows, int kColumns>
inline void dot_tiles() {
    static_assert(kSums != kRows && kSums != kColumns && kRows != kColumns);
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kColumns));
}

#else

struct TileRegister {
    int rows, bytes;  // 0 until shaped: any use before that is seen
    uint8_t data[16][64];
};
thread_local TileRegister tile_registers[8];

// What the processor answers with a fault.
inline void expect_tile(bool holds) {
    if (!holds) __builtin_trap();
}
inline TileRegister& shaped_tile(int tile) {
    expect_tile(tile_registers[tile].rows > 0);
    return tile_registers[tile];
}
inline void use_tiles(const TileShapes& shapes) {
    expect_tile(shapes.palette == 1 && shapes.start_row == 0);
    for (uint8_t byte : shapes.reserved) expect_tile(byte == 0);
    for (int i = 8; i < 16; ++i) expect_tile(shapes.rows[i] == 0 && shapes.bytes[i] == 0);
    for (int i = 0; i < 8; ++i) {
        expect_tile(shapes.rows[i] <= 16 && shapes.bytes[i] <= 64);
        expect_tile((shapes.rows[i] == 0) == (shapes.bytes[i] == 0));
        tile_registers[i] = {shapes.rows[i], shapes.bytes[i], {}};
    }
}
inline void release_tiles() {
    for (TileRegister& tile : tile_registers) tile = {};
}
template <int kTile>
inline void zero_tile() {
    std::memset(shaped_tile(kTile).data, 0, sizeof(TileRegister::data));
}
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
    TileRegister& tile = shaped_tile(kTile);
    for (int row = 0; row < tile.rows; ++row) {
        const auto* at = static_cast<const uint8_t*>(from) + row * stride;
        std::memcpy(tile.data[row], at, static_cast<size_t>(tile.bytes));
    }
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
    const TileRegister& tile = shaped_tile(kTile);
    for (int row = 0; row < tile.rows; ++row) {
        auto* at = static_cast<uint8_t*>(to) + row * stride;
        std::memcpy(at, tile.data[row], static_cast<size_t>(tile.bytes));
    }
}
template <int kSums, int kRows, int kColumns>
inline void dot_tiles() {
    static_assert(kSums != kRows && kSums != kColumns && kRows != kColumns);
    TileRegister& sums = shaped_tile(kSums);
    const TileRegister &rows = shaped_tile(kRows), &columns = shaped_tile(kColumns);
    expect_tile(sums.rows == rows.rows && sums.bytes == columns.bytes);
    expect_tile(rows.bytes == 4 * columns.rows && sums.bytes % 4 == 0);
    for (int m = 0; m < sums.rows; ++m) {
        for (int n = 0; n < sums.bytes / 4; ++n) {
            int32_t sum;
            std::memcpy(&sum, &sums.data[m][4 * n], sizeof sum);
            for (int k = 0; k < columns.rows; ++k) {
                for (int i = 0; i < 4; ++i) {
                    sum += static_cast<int8_t>(rows.data[m][4 * k + i]) *
                           static_cast<int8_t>(columns.data[k][4 * n + i]);
                }
            }
            std::memcpy(&sums.data[m][4 * n], &sum, sizeof sum);
        }
    }
}

#endif

}  // namespace
}  // namespace latrt::LATRT_LEVEL
