// int8 and int4 linear layers of many rows: rows in panels, weights unpacked once for many rows.
// What is done with a block is the level's own, `panels_avx512.h` and `panels_avx2.h`: sums of
// integers stay exact, and what is done in float is what `linear_int8` and `linear_int4` do in the
// same order, so the bits are the same.
#include "kernels/cpu/level.h"
#include "kernels/cpu/linear_finish.h"

namespace latrt::LATRT_LEVEL {
namespace {
constexpr int kTiles = 4;  // of outputs, that share a panel in the L1 cache
}
}  // namespace latrt::LATRT_LEVEL

#if defined(__AVX512VNNI__)
#include "kernels/cpu/panels_avx512.h"
#else
#include "kernels/cpu/panels_avx2.h"
#endif

namespace latrt::LATRT_LEVEL {
namespace {

constexpr int kPanels = 64;  // whose sums stay in the L2 cache meanwhile

// Writes the outputs of a panel from `row` on. (Inlined, it spoils GCC's code around it.)
__attribute__((noinline)) void finish_panel(const LinearParams& p, const Totals* totals, int row,
                                            int tile, int tiles) {
    const int count = p.m - row < kPanelRows ? p.m - row : kPanelRows;
    for (int m = 0; m < count; ++m) {
        for (int t = 0; t < tiles; ++t) {
            alignas(64) float out[kLanes];
            store_floats(out, totals[t][m]);
            finish<1>(p, out, row + m, tile + t);
        }
    }
}

// `tiles` tiles of outputs from `tile` on, the panels [begin, end).
template <int kBits, int kRun>
void multiply_piece(const LinearParams& p, int tile, int tiles, int begin, int end) {
    static_assert(kPanelBlocks % kRun == 0);
    constexpr int kBytes = kLanes * kBlock * kBits / 8;  // of a block of a tile
    const int blocks = num_blocks(p.k), scales = num_scales(p.k, kRun);
    const auto* w = static_cast<const uint8_t*>(p.w);
    Weights weights[kTiles];
    Totals totals[kPanels][kTiles];
    for (int first = 0; first < blocks; first += kPanelBlocks) {
        const int count = blocks - first < kPanelBlocks ? blocks - first : kPanelBlocks;
        const bool last = first + count == blocks;
        for (int t = 0; t < tiles; ++t) {
            const uint8_t* codes = w + (int64_t{tile + t} * blocks + first) * kBytes;
            const uint16_t* scale =
                p.w_scale + (int64_t{tile + t} * scales + first / kRun) * kLanes;
            unpack<kBits, kRun>(codes, scale, count, weights[t]);
            const int64_t skip = last ? tiles - 1 : 0;  // to the next tiles' first blocks
            fetch(codes + (skip * blocks + count) * kBytes, kPanelBlocks * kBytes);
            fetch(scale + (skip * scales + count / kRun) * kLanes,
                  kPanelBlocks * kLanes * 2 / kRun);
        }
        for (int panel = begin; panel < end; ++panel) {
            const PanelBlock* x = p.panels + panel_at(p.m, p.k, panel, first);
            const auto* ahead = reinterpret_cast<const char*>(x + count);
            Totals* of_panel = totals[panel - begin];
            if (first == 0) __builtin_memset(of_panel, 0, sizeof totals[0]);
            if (last) {
                for (int t = 0; t < tiles; ++t) {
                    fetch_results(p, panel * kPanelRows, kPanelRows, tile + t);
                }
            }
            multiply<kBits, kRun>(weights, tiles, x, count, of_panel, ahead);
            if (last) finish_panel(p, of_panel, panel * kPanelRows, tile, tiles);
        }
    }
}

template <int kBits, int kRun>
void pack_panels(const PackRowsParams& p) {
    constexpr int8_t kNone[kBlock] = {};
    const int blocks = num_blocks(p.k), groups = num_scales(p.k, kRun);
    for (int panel = p.panel_begin; panel < p.panel_end; ++panel) {
        PanelBlock* first = nullptr;  // of a group
        for (int b = 0; b < blocks; ++b) {
            PanelBlock& to = p.panels[panel_at(p.m, p.k, panel, b)];
            const int8_t* rows[kPanelRows];
            for (int m = 0; m < kPanelRows; ++m) {
                const int64_t row = int64_t{panel} * kPanelRows + m;
                rows[m] = row < p.m ? p.xq + row * row_codes(p.k, kRun) + b * kBlock : kNone;
                to.scale[m] = row < p.m ? p.x_scale[row * groups + b / kRun] : 0.0f;
            }
            pack_block<kBits, kRun>(rows, to);
            if (b % kRun == 0) {
                first = &to;
            } else {
                for (int m = 0; m < kPanelRows; ++m) first->start[m] += to.start[m];
            }
        }
    }
}

template <int kBits, int kRun>
void run(const LinearParams& p) {
    const int panels = num_panels(p.m);
    for (int begin = 0; begin < panels; begin += kPanels) {
        const int end = begin + kPanels < panels ? begin + kPanels : panels;
        for (int tile = p.tile_begin; tile < p.tile_end; tile += kTiles) {
            const int tiles = p.tile_end - tile < kTiles ? p.tile_end - tile : kTiles;
            multiply_piece<kBits, kRun>(p, tile, tiles, begin, end);
        }
    }
}

template <int kBits>
void pack(const PackRowsParams& p) {
    p.scale_run == 1 ? pack_panels<kBits, 1>(p) : pack_panels<kBits, kScaleRun>(p);
}

}  // namespace

#if defined(__AVX512VNNI__)
void pack_rows(const PackRowsParams& p) {
    p.type == WeightType::int8 ? pack<8>(p) : pack<4>(p);
}

void linear_int8_panels(const LinearParams& p) {
    p.scale_run == 1 ? run<8, 1>(p) : run<8, kScaleRun>(p);
}
#else
void pack_rows(const PackRowsParams& p) {
    pack<4>(p);
}
#endif

void linear_int4_panels(const LinearParams& p) {
    p.scale_run == 1 ? run<4, 1>(p) : run<4, kScaleRun>(p);
}

}  // namespace latrt::LATRT_LEVEL
