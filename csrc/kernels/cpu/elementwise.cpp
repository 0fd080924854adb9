#include "kernels/cpu/elementwise.h"

#include "kernels/cpu/level.h"
#include "kernels/cpu/vec.h"

namespace latrt::LATRT_LEVEL {
namespace {

void add(float* x, const float* y, int n) {
    int i = 0;
    for (; i + kWidth <= n; i += kWidth) store(x + i, load(x + i) + load(y + i));
    for (; i < n; ++i) x[i] += y[i];
}

float sum_of_squares(const float* x, int n) {
    Vec total[2] = {};
    int i = 0;
    for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
        const Vec a = load(x + i), b = load(x + i + kWidth);
        total[0] += a * a;
        total[1] += b * b;
    }
    float result = sum(total[0] + total[1]);
    for (; i < n; ++i) result += x[i] * x[i];
    return result;
}

// A vector of the `n` < kWidth numbers at `from`, zeros behind them.
Vec load_some(const float* from, int n) {
    float lanes[kWidth] = {};
    for (int i = 0; i < n; ++i) lanes[i] = from[i];
    return load(lanes);
}

Vec gated(Vec gate, Vec up) {
    return gate / (1.0f + exp(-gate)) * up;
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
    for (int row = 0; row < p.m; ++row) {
        float* x = p.x + int64_t{row} * p.width;
        float* y = p.y + int64_t{row} * p.width;
        if (p.residual != nullptr) add(x, p.residual + int64_t{row} * p.width, p.width);
        const float mean = sum_of_squares(x, p.width) / static_cast<float>(p.width);
        const float factor = 1.0f / __builtin_sqrtf(mean + p.eps);
        int i = 0;
        for (; i + kWidth <= p.width; i += kWidth) {
            store(y + i, load(x + i) * factor * load(p.w + i));
        }
        for (; i < p.width; ++i) y[i] = x[i] * factor * p.w[i];
    }
}

void swiglu(const SwiGluParams& p) {
    for (int row = 0; row < p.m; ++row) {
        const float *gate = p.gate + row * p.ldx, *up = p.up + row * p.ldx;
        float* y = p.y + row * p.ldy;
        int i = 0;
        for (; i + kWidth <= p.ffn; i += kWidth) {
            // Rows may be too short for the hardware to fetch ahead.
            __builtin_prefetch(gate + 2 * p.ldx + i), __builtin_prefetch(up + 2 * p.ldx + i);
            store(y + i, gated(load(gate + i), load(up + i)));
        }
        if (const int rest = p.ffn - i; rest > 0) {
            float lanes[kWidth];
            store(lanes, gated(load_some(gate + i, rest), load_some(up + i, rest)));
            for (int j = 0; j < rest; ++j) y[i + j] = lanes[j];
        }
    }
}

void rotate(const RotateParams& p) {
    const int half = p.head_dim / 2;
    for (int t = 0; t < p.num_tokens; ++t) {
        const float* cos = p.cos + int64_t{t} * half;
        const float* sin = p.sin + int64_t{t} * half;
        for (int head = 0; head < p.num_heads; ++head) {
            float* first = p.x + t * p.ldx + int64_t{head} * p.head_dim;
            float* second = first + half;
            int i = 0;
            for (; i + kWidth <= half; i += kWidth) {
                const Vec a = load(first + i), b = load(second + i);
                const Vec c = load(cos + i), s = load(sin + i);
                store(first + i, a * c - b * s);
                store(second + i, b * c + a * s);
            }
            for (; i < half; ++i) {
                const float a = first[i], b = second[i];
                first[i] = a * cos[i] - b * sin[i];
                second[i] = b * cos[i] + a * sin[i];
            }
        }
    }
}

}  // namespace latrt::LATRT_LEVEL
