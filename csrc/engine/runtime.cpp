#include "engine/runtime.h"

#include <algorithm>

namespace latrt {

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

void Runtime::linear(const Matrix& matrix, const float* x, int m, float* y, bool accumulate,
                     int64_t ldy) {
    const bool codes = matrix.type == WeightType::int8 || matrix.type == WeightType::int4;
    if (codes) quantise(matrix, x, m);
    const bool panels = matrix.type == WeightType::int4 && m >= kPanelsFrom &&
                        kernels_.linear_int4_panels != nullptr;
    if (panels) pack_rows(matrix, m);
    const LinearParams all = {matrix.w,
                              matrix.scale,
                              matrix.bias,
                              x,
                              codes_.data(),
                              scale_.data(),
                              neg_sum_.data(),
                              y,
                              m,
                              matrix.n,
                              matrix.k,
                              matrix.k,
                              ldy > 0 ? ldy : matrix.n,
                              0,
                              num_tiles(matrix.n),
                              accumulate,
                              panels_.data(),
                              matrix.scale_run};
    // Several pieces a thread, so that one that is held up leaves its share to the others; of whole
    // fours, which kernels take together.
    const int tiles = all.tile_end, threads = num_threads();
    const int piece =
        threads == 1 ? tiles : (std::max(1, tiles / (threads * 8)) + 3) / 4 * 4;
    pool_->run((tiles + piece - 1) / piece, [&](int i, int) {
        LinearParams part = all;
        part.tile_begin = i * piece;
        part.tile_end = std::min(tiles, (i + 1) * piece);
        panels ? kernels_.linear_int4_panels(part)
               : kernels_.linear[static_cast<int>(matrix.type)](part);
    });
}

void Runtime::rms_norm(float* x, const float* w, float* y, int m, int width, float eps) {
    rows(m, [&](int first, int last) {
        const int64_t at = int64_t{first} * width;
        kernels_.rms_norm({x + at, nullptr, w, y + at, last - first, width, eps});
    });
}

void Runtime::swiglu(const float* gate_up, float* y, int m, int ffn, int64_t ldx) {
    rows(m, [&](int first, int last) {
        kernels_.swiglu(
            {gate_up + first * ldx, y + int64_t{first} * ffn, last - first, ffn, ldx});
    });
}

}  // namespace latrt
