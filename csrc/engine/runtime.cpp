#include "engine/runtime.h"

namespace latrt {
namespace {

constexpr int kUnit = 4;                // tiles that kernels take together
constexpr int kGateUpFloats = 1 << 16;  // that a thread holds at a time, if rows allow it

// Without a residual, x is read alone.
void normalise(const Kernels& kernels, const Norm& norm, const float* x, float* y, int m,
               int width) {
    kernels.rms_norm({const_cast<float*>(x), nullptr, norm.w, y, m, width, norm.eps});
}

bool wants_codes(const Matrix& matrix) {
    return matrix.type == WeightType::int8 || matrix.type == WeightType::int4;
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

bool Runtime::wants_encoded(const Matrix& matrix) const {
    const bool rounds = matrix.type == WeightType::bf16 && kernels_.round_rows != nullptr;
    return rounds || wants_codes(matrix);
}

void Runtime::reserve(const Matrix& matrix, int m, Activations& to) const {
    if (!wants_encoded(matrix)) return;
    if (!wants_codes(matrix)) {
        grown(to.rounded, static_cast<size_t>(m * rounded_row(matrix.k)));
        return;
    }
    const int64_t groups = num_scales(matrix.k, matrix.scale_run);
    const size_t count = static_cast<size_t>(m * groups);
    grown(to.codes, static_cast<size_t>(m * row_codes(matrix.k, matrix.scale_run)));
    grown(to.scale, count);
    grown(to.neg_sum, count);
    if (wants_panels(matrix, m)) {
        grown(to.panels, static_cast<size_t>(num_panels(m)) * num_blocks(matrix.k));
    }
}

void Runtime::encode(const Matrix& matrix, const float* x, int64_t ldx, int row, int count, int at,
                     int width, Activations& to) const {
    if (!wants_codes(matrix)) {
        const int64_t ldy = rounded_row(matrix.k);
        kernels_.round_rows({x, to.rounded.data() + row * ldy + at, count, width, ldx, ldy});
        return;
    }
    const int64_t groups = num_scales(matrix.k, matrix.scale_run);
    const int64_t size = int64_t{matrix.scale_run} * kBlock, group = row * groups + at / size;
    kernels_.quantise({x, to.codes.data() + group * size, to.scale.data() + group,
                       to.neg_sum.data() + group, count, width, ldx, largest_code(matrix.type),
                       matrix.scale_run, groups});
}

// The panels that rows [first, last) are in, `first` the first of one.
void Runtime::pack_rows(const Matrix& matrix, int m, int first, int last, Activations& to) const {
    kernels_.pack_rows({to.codes.data(), to.scale.data(), to.panels.data(), m, matrix.k,
                        num_panels(first), num_panels(last), matrix.type, matrix.scale_run});
}

// Some rows at a time go all the way, so that every step finds them in the L1 or L2 cache.
LinearParams Runtime::prepare(const Matrix& matrix, const Norm* norm, const float* x, int m,
                              Activations& to) {
    const bool encoded = wants_encoded(matrix), panels = wants_panels(matrix, m);
    if (!encoded && norm == nullptr) return params(matrix, x, m, to);
    reserve(matrix, m, to);
    const int64_t k = matrix.k;
    const int kept = encoded ? kPanelRows * num_threads() : m;
    float* normed = norm ? grown(to.normed, static_cast<size_t>(kept * k)) : nullptr;
    const Pieces pieces(m, panels ? kPanelRows : 1, num_threads());
    split(pieces, [&](int first, int last, int thread) {
        for (int row = first; row < last; row += kPanelRows) {
            const int count = std::min(kPanelRows, last - row);
            const float* from = x + row * k;
            if (norm != nullptr) {
                float* some = normed + (encoded ? kPanelRows * thread : row) * k;
                normalise(kernels_, *norm, from, some, count, matrix.k);
                from = some;
            }
            if (encoded) encode(matrix, from, k, row, count, 0, matrix.k, to);
        }
        if (panels) pack_rows(matrix, m, first, last, to);
    });
    return params(matrix, norm ? normed : x, m, to);
}

bool Runtime::wants_panels(const Matrix& matrix, int m) const {
    return m >= panels_from(matrix.type) &&
           kernels_.linear_panels[static_cast<int>(matrix.type)] != nullptr;
}

LinearParams Runtime::params(const Matrix& matrix, const float* x, int m,
                             const Activations& from) const {
    return {matrix.w,
            matrix.scale,
            matrix.bias,
            x,
            from.codes.data(),
            from.scale.data(),
            from.neg_sum.data(),
            nullptr,
            m,
            matrix.n,
            matrix.k,
            matrix.k,
            matrix.n,
            0,
            num_tiles(matrix.n),
            false,
            wants_panels(matrix, m) ? from.panels.data() : nullptr,
            matrix.scale_run,
            from.rounded.data()};
}

void Runtime::call(const Matrix& matrix, const LinearParams& params) const {
    const auto& linear = params.panels != nullptr ? kernels_.linear_panels : kernels_.linear;
    linear[static_cast<int>(matrix.type)](params);
}

void Runtime::multiply(const Matrix& matrix, const LinearParams& all) {
    split(Pieces(all.tile_end, kUnit, num_threads()), [&](int first, int last, int) {
        LinearParams part = all;
        part.tile_begin = first, part.tile_end = last;
        call(matrix, part);
    });
}

void Runtime::linear(const Matrix& matrix, const float* x, int m, float* y, bool accumulate) {
    LinearParams all = prepare(matrix, nullptr, x, m, in_);
    all.y = y, all.accumulate = accumulate;
    multiply(matrix, all);
}

void Runtime::linear(const Norm& norm, const Matrix& matrix, const float* x, int m, float* y) {
    LinearParams all = prepare(matrix, &norm, x, m, in_);
    all.y = y;
    multiply(matrix, all);
}

// Every task makes some outputs of gate and of up, which stay in the L2 cache until they are the
// codes that `down` reads, or floats.
void Runtime::mlp(const Norm& norm, const Matrix& gate_up, const Matrix& down, float* x, int m) {
    const LinearParams all = prepare(gate_up, &norm, x, m, in_);
    const int ffn = down.k, tiles = num_tiles(ffn);
    const int shift = ffn % kLanes;  // up begins within a tile, of which gate has the first outputs
    const bool encoded = wants_encoded(down);
    const int unit = std::max(kUnit, 2 * down.scale_run);  // whole groups
    const int fit = kGateUpFloats / (2 * kLanes * m * unit), least = shift > 0 ? 16 / unit : 1;
    const Pieces pieces(tiles, unit, num_threads(), std::max(least, fit));
    const int64_t up_at = int64_t{pieces.largest()} * kLanes;
    const int64_t ldx = 2 * up_at + (shift > 0 ? kLanes : 0);
    grown(gate_up_, static_cast<size_t>(ldx * m * num_threads()));
    reserve(down, m, between_);
    float* gated = encoded ? nullptr : grown(gated_, static_cast<size_t>(m) * ffn);
    split(pieces, [&](int first, int last, int thread) {
        float* both = gate_up_.data() + ldx * m * thread;
        const int outputs = std::min(ffn, last * kLanes) - first * kLanes;
        LinearParams gate = outputs_from(all, gate_up, first, last);
        gate.y = both, gate.ldy = ldx;
        call(gate_up, gate);
        const int from = ffn / kLanes + first;
        LinearParams up = outputs_from(all, gate_up, from, from + num_tiles(shift + outputs));
        up.y = both + up_at, up.ldy = ldx;
        call(gate_up, up);
        float* to = encoded ? both : gated + first * kLanes;
        kernels_.swiglu(
            {both, both + up_at + shift, to, m, outputs, ldx, encoded ? ldx : int64_t{ffn}});
        if (encoded) encode(down, both, ldx, 0, m, first * kLanes, outputs, between_);
    });
    if (wants_panels(down, m)) {
        split(Pieces(m, kPanelRows, num_threads()),
              [&](int some, int end, int) { pack_rows(down, m, some, end, between_); });
    }
    LinearParams last = params(down, gated, m, between_);
    last.y = x, last.accumulate = true;
    multiply(down, last);
}

void Runtime::rms_norm(const Norm& norm, const float* x, float* y, int m, int width) {
    rows(m, [&](int first, int last) {
        const int64_t at = int64_t{first} * width;
        normalise(kernels_, norm, x + at, y + at, last - first, width);
    });
}

}  // namespace latrt
