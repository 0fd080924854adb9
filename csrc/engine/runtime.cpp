#include "engine/runtime.h"

#include <algorithm>

namespace latrt {
namespace {

constexpr int kGatedFloats = 1 << 16;  // of gate and up that a thread holds, if rows allow it

// Tiles of a task: several tasks a thread, so that one that is held up leaves its share to the
// others; of whole fours, which kernels take together.
int piece_of(int tiles, int threads) {
    return threads == 1 ? tiles : (std::max(1, tiles / (threads * 8)) + 3) / 4 * 4;
}

// The layer of the tiles [first, last) alone.
LinearParams outputs_from(LinearParams p, const Matrix& matrix, int first, int last) {
    p.w = static_cast<const uint8_t*>(p.w) + first * packed_bytes(matrix.type, kLanes, p.k);
    if (p.w_scale != nullptr) {
        p.w_scale += int64_t{first} * num_scales(p.k, p.scale_run) * kLanes;
    }
    if (p.bias != nullptr) p.bias += first * kLanes;
    p.n = std::min(p.n - first * kLanes, (last - first) * kLanes);
    p.tile_begin = 0, p.tile_end = last - first;
    return p;
}

}  // namespace

Runtime::Runtime(const Kernels& kernels, int num_threads)
    : kernels_(kernels), pool_(ThreadPool::shared(num_threads)) {}

void Runtime::quantise(const Matrix& matrix, const float* x, int m) {
    const int64_t groups = num_scales(matrix.k, matrix.scale_run);
    const int64_t codes = row_codes(matrix.k, matrix.scale_run);
    grown(codes_, static_cast<size_t>(m * codes));
    grown(scale_, static_cast<size_t>(m * groups));
    grown(neg_sum_, static_cast<size_t>(m * groups));
    rows(m, [&](int first, int last) {
        const int64_t at = first * groups;
        kernels_.quantise({x + int64_t{first} * matrix.k, codes_.data() + first * codes,
                           scale_.data() + at, neg_sum_.data() + at, last - first, matrix.k,
                           matrix.k, largest_code(matrix.type), matrix.scale_run});
    });
}

void Runtime::pack_rows(const Matrix& matrix, int m) {
    const int panels = num_panels(m);
    grown(panels_, static_cast<size_t>(panels) * num_blocks(matrix.k));
    rows(panels, [&](int first, int last) {
        kernels_.pack_rows({codes_.data(), scale_.data(), panels_.data(), m, matrix.k, first, last,
                            matrix.scale_run});
    });
}

LinearParams Runtime::prepare(const Matrix& matrix, const float* x, int m) {
    const bool codes = matrix.type == WeightType::int8 || matrix.type == WeightType::int4;
    if (codes) quantise(matrix, x, m);
    const bool panels = matrix.type == WeightType::int4 && m >= kPanelsFrom &&
                        kernels_.linear_int4_panels != nullptr;
    if (panels) pack_rows(matrix, m);
    return {matrix.w,
            matrix.scale,
            matrix.bias,
            x,
            codes_.data(),
            scale_.data(),
            neg_sum_.data(),
            nullptr,
            m,
            matrix.n,
            matrix.k,
            matrix.k,
            matrix.n,
            0,
            num_tiles(matrix.n),
            false,
            panels ? panels_.data() : nullptr,
            matrix.scale_run};
}

void Runtime::call(const Matrix& matrix, const LinearParams& params) {
    params.panels != nullptr ? kernels_.linear_int4_panels(params)
                             : kernels_.linear[static_cast<int>(matrix.type)](params);
}

void Runtime::linear(const Matrix& matrix, const float* x, int m, float* y, bool accumulate) {
    LinearParams all = prepare(matrix, x, m);
    all.y = y, all.accumulate = accumulate;
    const int tiles = all.tile_end, piece = piece_of(tiles, num_threads());
    pool_->run((tiles + piece - 1) / piece, [&](int i, int) {
        LinearParams part = all;
        part.tile_begin = i * piece;
        part.tile_end = std::min(tiles, (i + 1) * piece);
        call(matrix, part);
    });
}

// Every task makes some outputs of both halves, which stay in the L2 cache until they are one.
void Runtime::gated(const Matrix& matrix, const float* x, int m, float* y) {
    const LinearParams all = prepare(matrix, x, m);
    const int ffn = matrix.n / 2, tiles = num_tiles(ffn);
    const int shift = ffn % kLanes;  // of up's outputs in their tiles: gate's last tile has the first
    const int fit = std::max(1, kGatedFloats / (2 * kLanes * m)), least = shift > 0 ? 16 : 4;
    const int piece =
        std::min(piece_of(tiles, num_threads()), std::max(least, fit / 4 * 4));
    const int64_t up_at = int64_t{piece} * kLanes, ldx = 2 * up_at + (shift > 0 ? kLanes : 0);
    grown(gate_up_, static_cast<size_t>(ldx * m * num_threads()));
    pool_->run((tiles + piece - 1) / piece, [&](int i, int thread) {
        float* both = gate_up_.data() + ldx * m * thread;
        const int first = i * piece, last = std::min(tiles, first + piece);
        const int outputs = std::min(ffn, last * kLanes) - first * kLanes;
        LinearParams gate = outputs_from(all, matrix, first, last);
        gate.y = both, gate.ldy = ldx;
        call(matrix, gate);
        const int from = ffn / kLanes + first;
        LinearParams up = outputs_from(all, matrix, from, from + num_tiles(shift + outputs));
        up.y = both + up_at, up.ldy = ldx;
        call(matrix, up);
        kernels_.swiglu({both, both + up_at + shift, y + first * kLanes, m, outputs, ldx, ffn});
    });
}

void Runtime::rms_norm(float* x, const float* w, float* y, int m, int width, float eps) {
    rows(m, [&](int first, int last) {
        const int64_t at = int64_t{first} * width;
        kernels_.rms_norm({x + at, nullptr, w, y + at, last - first, width, eps});
    });
}

}  // namespace latrt
