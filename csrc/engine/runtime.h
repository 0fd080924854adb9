// Kernels of one level, threads, and the linear layer that puts both together.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/huge_pages.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"

namespace latrt {

// A packed weight matrix (N, K); the memory belongs to someone else. Layout: kernels/cpu/linear.h.
struct Matrix {
    WeightType type = WeightType::f32;
    const void* w = nullptr;
    const uint16_t* scale = nullptr;  // int8, int4
    const float* bias = nullptr;      // (N) or null
    int n = 0, k = 0;
    int scale_run = 1;  // blocks of 32 that share a scale
};

struct Norm {
    const float* w;  // (E)
    float eps;
};

// Rows or tiles in pieces, one a task: of whole `unit`s of them, alike to one of them.
struct Pieces {
    int total, unit, units, count;

    // Several a thread, so that one that is held up leaves its share to the others, and so many
    // that none has more than `most` units.
    Pieces(int all, int per_unit, int threads, int most = INT_MAX)
        : total(all), unit(per_unit), units((all + per_unit - 1) / per_unit) {
        const int wanted = threads == 1 ? 1 : threads * 8;
        count = std::min(units, std::max(wanted, units / most + (units % most > 0)));
    }
    int begin(int i) const {
        return std::min(total, static_cast<int>(int64_t{units} * i / count) * unit);
    }
    int largest() const { return count > 0 ? (units + count - 1) / count * unit : 0; }
};

// Not thread-safe: one model runs one call at a time. Results do not depend on the threads.
class Runtime {
 public:
    Runtime(const Kernels& kernels, int num_threads);

    const Kernels& kernels() const { return kernels_; }
    int num_threads() const { return pool_->num_threads(); }

    // y (M, N) = x (M, K) W^T + bias, or y += with `accumulate`.
    void linear(const Matrix& matrix, const float* x, int m, float* y, bool accumulate = false);

    // The same of normed rows of x.
    void linear(const Norm& norm, const Matrix& matrix, const float* x, int m, float* y);

    // x (M, E) += (silu(gate) * up) W_down^T + bias, of the outputs of gate_up for normed rows of
    // x: gate (M, F), then up.
    void mlp(const Norm& norm, const Matrix& gate_up, const Matrix& down, float* x, int m);

    // y (M, E) = rms_norm(x (M, E)).
    void rms_norm(const Norm& norm, const float* x, float* y, int m, int width);

    // function(task, thread) for every task.
    template <class F>
    void tasks(int count, F&& function) {
        pool_->run(count, function);
    }

    // function(first, last, thread) for every piece.
    template <class F>
    void split(const Pieces& pieces, F&& function) {
        tasks(pieces.count,
              [&](int i, int thread) { function(pieces.begin(i), pieces.begin(i + 1), thread); });
    }

    // function(first, last) over pieces of [0, m).
    template <class F>
    void rows(int m, F&& function) {
        split(Pieces(m, 1, num_threads()),
              [&](int first, int last, int) { function(first, last); });
    }

 private:
    // What a linear layer reads where that is not x itself.
    struct Activations {
        Buffer<float> normed;      // all rows, or a few of each thread
        Buffer<uint16_t> rounded;  // to bf16
        Buffer<int8_t> codes;
        Buffer<float> scale;
        Buffer<int32_t> neg_sum;
        Buffer<PanelBlock> panels;
    };

    // Whether the matrix meets activations in another form than float: codes, or bf16.
    bool wants_encoded(const Matrix& matrix) const;
    // Room for that form of m rows.
    void reserve(const Matrix& matrix, int m, Activations& to) const;
    // Encodes `count` rows of `width` floats, `ldx` apart: inputs of the matrix from `at` on, the
    // first of a group, of the rows from `row` on.
    void encode(const Matrix& matrix, const float* x, int64_t ldx, int row, int count, int at,
                int width, Activations& to) const;
    bool wants_panels(const Matrix& matrix, int m) const;
    // The layer's call but for y, x normed and encoded if so wanted.
    LinearParams prepare(const Matrix& matrix, const Norm* norm, const float* x, int m,
                         Activations& to);
    void pack_rows(const Matrix& matrix, int m, int first, int last, Activations& to) const;
    LinearParams params(const Matrix& matrix, const float* x, int m, const Activations& from) const;
    void call(const Matrix& matrix, const LinearParams& params) const;
    void multiply(const Matrix& matrix, const LinearParams& params);

    const Kernels& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    Activations in_, between_;
    Buffer<float> gate_up_, gated_;
};

// A buffer that only grows, and does not copy what it held.
template <class T>
T* grown(Buffer<T>& buffer, size_t count) {
    if (buffer.size() < count) {
        buffer.clear();
        buffer.resize(count);
    }
    return buffer.data();
}

}  // namespace latrt
