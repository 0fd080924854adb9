#include "kernels/cpu/reference.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace latrt::reference {

void linear(const Floats& x, const Floats& w, const Floats& bias, int m, int n, int k, Floats& y,
            Floats& bound) {
    y.assign(size_t(m) * n, 0);
    bound.assign(size_t(m) * n, 0);
    for (int i = 0; i < m; ++i) {
        for (int j = 0; j < n; ++j) {
            double sum = bias.empty() ? 0.0 : bias[j], magnitude = std::fabs(sum);
            for (int l = 0; l < k; ++l) {
                const double product = double(x[size_t(i) * k + l]) * w[size_t(j) * k + l];
                sum += product;
                magnitude += std::fabs(product);
            }
            y[size_t(i) * n + j] = float(sum);
            bound[size_t(i) * n + j] = float(magnitude);
        }
    }
}

void quantise(const Floats& x, int m, int k, int largest, int group, std::vector<int>& codes,
              Floats& scale) {
    codes.assign(size_t(m) * k, 0);
    scale.clear();
    for (int i = 0; i < m; ++i) {
        for (int first = 0; first < k; first += group) {
            const int last = std::min(k, first + group);
            double top = 0;
            for (int l = first; l < last; ++l) top = std::max(top, std::fabs(double(x[i * k + l])));
            scale.push_back(float(top / largest));
            for (int l = first; l < last && top > 0; ++l) {
                codes[i * k + l] = int(std::nearbyint(x[i * k + l] * largest / top));
            }
        }
    }
}

void attention(const Attention& a, float scale, Floats& out, Floats& mass) {
    const int dim = a.head_dim, most = a.num_keys + (a.causal ? a.num_tokens - 1 : 0);
    out.assign(size_t(a.num_tokens) * a.group * dim, 0);
    mass.assign(size_t(most), 0);
    for (int row = 0; row < a.num_tokens * a.group; ++row) {
        const int token = row / a.group, keys = a.num_keys + (a.causal ? token : 0);
        std::vector<double> p(size_t(keys), 0.0);
        for (int c = 0; c < keys; ++c) {
            for (int d = 0; d < dim; ++d) p[c] += double(a.q[row * dim + d]) * a.k[c * dim + d];
            p[c] *= scale;
        }
        const double top = *std::max_element(p.begin(), p.end());
        double total = 0;
        for (double& e : p) total += e = std::exp(e - top);
        for (int d = 0; d < dim; ++d) {
            double sum = 0;
            for (int c = 0; c < keys; ++c) sum += p[c] / total * a.v[c * dim + d];
            out[size_t(row) * dim + d] = float(sum);
        }
        for (int c = 0; c < keys && token == a.num_tokens - 1; ++c) mass[c] += float(p[c] / total);
    }
}

Floats rms_norm(const Floats& x, const Floats& w, float eps) {
    Floats y(x.size());
    const size_t width = w.size();
    for (size_t row = 0; row < x.size(); row += width) {
        double squares = 0;
        for (size_t i = 0; i < width; ++i) squares += double(x[row + i]) * x[row + i];
        const double factor = 1 / std::sqrt(squares / double(width) + eps);
        for (size_t i = 0; i < width; ++i) y[row + i] = float(x[row + i] * factor * w[i]);
    }
    return y;
}

Floats swiglu(const Floats& gate_up, int ffn) {
    Floats y;
    for (size_t row = 0; row < gate_up.size(); row += 2 * size_t(ffn)) {
        for (int i = 0; i < ffn; ++i) {
            const double gate = gate_up[row + i], up = gate_up[row + ffn + i];
            y.push_back(float(gate / (1 + std::exp(-gate)) * up));
        }
    }
    return y;
}

Floats rotate(const Floats& x, const Floats& cos, const Floats& sin, int num_heads, int head_dim) {
    Floats y(x.size());
    const int half = head_dim / 2;
    for (size_t i = 0; i < x.size(); ++i) {
        const size_t token = i / (size_t(num_heads) * head_dim), d = i % head_dim;
        const size_t angle = token * half + d % half;
        const double other = d < size_t(half) ? -double(x[i + half]) : x[i - half];
        y[i] = float(x[i] * double(cos[angle]) + other * sin[angle]);
    }
    return y;
}

std::vector<int> top_k(const Floats& x, int k) {
    std::vector<int> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return x[a] > x[b]; });
    order.resize(size_t(k));
    return order;
}

}  // namespace latrt::reference
