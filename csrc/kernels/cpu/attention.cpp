#include "kernels/cpu/attention.h"

#include "kernels/cpu/level.h"
#include "kernels/cpu/vec.h"
#if defined(__AVX512BF16__)
#include "kernels/cpu/attention_bf16.h"
#endif

namespace latrt::LATRT_LEVEL {
namespace {

constexpr float kLowest = -3.0e38f;

// What queries and softmax weights are when they meet a cache of T.
template <class T>
struct NumberOf {
    using Type = float;
};
#if defined(__AVX512BF16__)
template <>
struct NumberOf<uint16_t> {
    using Type = uint16_t;
};
#endif
template <class T>
using Number = typename NumberOf<T>::Type;
template <class T>
constexpr bool kRounds = sizeof(Number<T>) < sizeof(float);

// Rows (token, head) that go through K and V together, and their running softmax.
struct Rows {
    int count, first_token;
    float* scores;        // (R, 64): scores of a block of keys, then exp(score - top)
    float* out;           // (R, Dp): weighted sum of values
    float* top;           // (R): largest score so far
    float* total;         // (R): sum of exp(score - top)
    float* shrink;        // (R): what the sums so far are multiplied by
    float* last;          // (G, blocks, 64): exponentials of the last token, where mass is wanted
    float* last_top;      // (G, blocks): the top that they were taken with
    uint16_t* rounded_q;  // (R, Dp) bf16; `kRounds`
    uint16_t* rounded_weights;  // (R, 64) bf16: of `scores`; `kRounds`
};

int keys_seen(const AttentionParams& p, int token) {
    return p.num_keys + (p.causal ? token : 0);
}

const float* query(const AttentionParams& p, const Rows& rows, int row) {
    const int token = rows.first_token + row / p.group;
    return p.q + token * p.ldq + int64_t{row % p.group} * p.head_dim;
}

// sums[m][v] += the sum over i < count of numbers[m][i] * vector v of step i.
template <int M, int V, class T>
inline void add_products(Vec (&sums)[M][V], const float* const (&numbers)[M], const T* vectors,
                         int64_t apart, int64_t step, int count) {
    for (int i = 0; i < count; ++i, vectors += step) {
        Vec loaded[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) loaded[v] = load(vectors + v * apart);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec number = splat(numbers[m][i]);
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sums[m][v] += loaded[v] * number;
        }
    }
}

// Scores of M rows on the 16 keys of each of some tiles (D, 16).
template <int M, int kTiles, class T>
void score_tiles(const AttentionParams& p, const Rows& rows, int row, const T* tile, int column,
                 const float* k_scale) {
    static_assert(kTiles == 1 || kParts == 1);
    const Number<T>* q[M];
    for (int m = 0; m < M; ++m) {
        if constexpr (kRounds<T>) {
            q[m] = rows.rounded_q + (row + m) * round_up(p.head_dim, kLanes);
        } else {
            q[m] = query(p, rows, row + m);
        }
    }
    constexpr int kVectors = kTiles * kParts;
    const int64_t apart = kParts > 1 ? kWidth : int64_t{p.head_dim} * kLanes;
    Vec sums[M][kVectors];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) sums[m][i] = Vec{};
    }
    add_products(sums, q, tile, apart, kLanes, p.head_dim);
    for (int m = 0; m < M; ++m) {
        float* to = rows.scores + int64_t{row + m} * kKeyBlock + column;
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
            Vec score = sums[m][i] * p.scale;
            if constexpr (sizeof(T) == 1) score *= load(k_scale + i * kWidth);
            store(to + i * kWidth, score);
        }
    }
}

// M rows at a time, then half of that.
template <int M, int kTiles, class T>
void score_rows(const AttentionParams& p, const Rows& rows, int row, const T* tile, int column,
                const float* k_scale) {
    for (; row + M <= rows.count; row += M) {
        score_tiles<M, kTiles>(p, rows, row, tile, column, k_scale);
    }
    if constexpr (M > 1) score_rows<M / 2, kTiles>(p, rows, row, tile, column, k_scale);
}

// Scores of a block of keys, whose values are fetched meanwhile: a step finds neither in a cache.
template <class T>
void score_block(const AttentionParams& p, const Rows& rows, int first_key, int count) {
    constexpr int kTiles = kParts == 1 ? 2 : 1;  // whose sums fit the registers
    const int64_t width = round_up(p.head_dim, kLanes);
    for (int column = 0; column < count;) {
        const int keys = column + (kTiles - 1) * kLanes < count ? kTiles * kLanes : kLanes;
        const T* values = static_cast<const T*>(p.v) + (first_key + column) * width;
        fetch(values, keys * width * int64_t{sizeof(T)});
        const T* tile = static_cast<const T*>(p.k) + int64_t{first_key + column} * p.head_dim;
        const float* k_scale = sizeof(T) == 1 ? p.k_scale + first_key + column : nullptr;
        keys > kLanes ? score_rows<kMaxRows, kTiles>(p, rows, 0, tile, column, k_scale)
                      : score_rows<kMaxRows, 1>(p, rows, 0, tile, column, k_scale);
        column += keys;
    }
}

// Turns the scores of a block of keys into exponentials, those of keys that a row does not see into
// zeros. In three passes over the rows: in one, a row would wait for its largest score.
void softmax_block(const AttentionParams& p, const Rows& rows, int first_key) {
    for (int row = 0; row < rows.count; ++row) {
        float* scores = rows.scores + int64_t{row} * kKeyBlock;
        const int seen = keys_seen(p, rows.first_token + row / p.group) - first_key;
        for (int i = seen < 0 ? 0 : seen; i < kKeyBlock; ++i) scores[i] = kLowest;
        Vec tops = splat(rows.top[row]);
        for (int i = 0; i < kKeyBlock; i += kWidth) tops = max(load(scores + i), tops);
        rows.shrink[row] = max_lane(tops);
    }
    for (int row = 0; row < rows.count; row += kWidth) {
        const Vec top = load(rows.shrink + row);
        store(rows.shrink + row, exp(load(rows.top + row) - top));
        store(rows.top + row, top);
    }
    for (int row = 0; row < rows.count; ++row) {
        float* scores = rows.scores + int64_t{row} * kKeyBlock;
        Vec total = {};
        for (int i = 0; i < kKeyBlock; i += kWidth) {
            const Vec score = load(scores + i);
            const Vec e = select(score <= kLowest, Vec{}, exp(score - rows.top[row]));
            store(scores + i, e);
            total += e;
        }
        rows.total[row] = rows.total[row] * rows.shrink[row] + sum(total);
    }
}

// Values are codes times a scale: the weights take the scale.
void scale_weights(const AttentionParams& p, const Rows& rows, int first_key, int count) {
    for (int row = 0; row < rows.count; ++row) {
        float* weights = rows.scores + int64_t{row} * kKeyBlock;
        for (int i = 0; i < count; ++i) weights[i] *= p.v_scale[first_key + i];
    }
}

// out = out * shrink + weights . values, for M rows and `kColumns` vectors of components.
template <int M, int kColumns, class T>
void add_values(const AttentionParams& p, const Rows& rows, int row, int column, const T* values,
                int count) {
    const int64_t stride = round_up(p.head_dim, kLanes);
    Vec sums[M][kColumns];
    for (int m = 0; m < M; ++m) {
        const float* out = rows.out + (row + m) * stride + column;
        for (int i = 0; i < kColumns; ++i) {
            sums[m][i] = load(out + i * kWidth) * rows.shrink[row + m];
        }
    }
    const Number<T>* weights[M];
    for (int m = 0; m < M; ++m) {
        const int64_t at = int64_t{row + m} * kKeyBlock;
        if constexpr (kRounds<T>) {
            weights[m] = rows.rounded_weights + at;
        } else {
            weights[m] = rows.scores + at;
        }
    }
    add_products(sums, weights, values + column, kWidth, stride, count);
    for (int m = 0; m < M; ++m) {
        float* out = rows.out + (row + m) * stride + column;
        for (int i = 0; i < kColumns; ++i) store(out + i * kWidth, sums[m][i]);
    }
}

template <int M, int kColumns, class T>
void add_rows(const AttentionParams& p, const Rows& rows, int row, int column, const T* values,
              int count) {
    for (; row + M <= rows.count; row += M) {
        add_values<M, kColumns>(p, rows, row, column, values, count);
    }
    if constexpr (M > 1) add_rows<M / 2, kColumns>(p, rows, row, column, values, count);
}

// Adds the values of a block of keys, and fetches the keys behind them.
template <class T>
void value_block(const AttentionParams& p, const Rows& rows, int first_key, int count) {
    const int width = static_cast<int>(round_up(p.head_dim, kLanes));
    const T* values = static_cast<const T*>(p.v) + int64_t{first_key} * width;
    const T* next = static_cast<const T*>(p.k) + int64_t{first_key + kKeyBlock} * p.head_dim;
    int column = 0;
    for (; column + 2 * kWidth <= width; column += 2 * kWidth) {
        fetch(next + column * kKeyBlock, int64_t{sizeof(T)} * 2 * kWidth * kKeyBlock);
        add_rows<kMaxRows, 2>(p, rows, 0, column, values, count);
    }
    if (column < width) add_rows<kMaxRows, 1>(p, rows, 0, column, values, count);
}

// Keeps the exponentials of the last token's rows: the mass needs the final top and total.
void keep_last(const AttentionParams& p, const Rows& rows, int first_key) {
    const int blocks = (keys_seen(p, p.num_tokens - 1) + kKeyBlock - 1) / kKeyBlock;
    const int block = first_key / kKeyBlock;
    for (int head = 0; head < p.group; ++head) {
        const int row = rows.count - p.group + head;
        const float* from = rows.scores + int64_t{row} * kKeyBlock;
        float* to = rows.last + (int64_t{head} * blocks + block) * kKeyBlock;
        __builtin_memcpy(to, from, kKeyBlock * sizeof(float));
        rows.last_top[int64_t{head} * blocks + block] = rows.top[row];
    }
}

void add_mass(const AttentionParams& p, const Rows& rows) {
    const int keys = keys_seen(p, p.num_tokens - 1);
    const int blocks = (keys + kKeyBlock - 1) / kKeyBlock;
    for (int head = 0; head < p.group; ++head) {
        const int row = rows.count - p.group + head;
        for (int block = 0; block < blocks; ++block) {
            const int64_t at = int64_t{head} * blocks + block;
            const float grown = sum(exp(splat(rows.last_top[at] - rows.top[row])));
            const float factor = grown / (static_cast<float>(kWidth) * rows.total[row]);
            const float* from = rows.last + at * kKeyBlock;
            float* to = p.mass + int64_t{block} * kKeyBlock;
            const int rest = keys - block * kKeyBlock, count = rest < kKeyBlock ? rest : kKeyBlock;
            for (int i = 0; i < count; ++i) to[i] += from[i] * factor;
        }
    }
}

template <class T>
void attend(const AttentionParams& p, const Rows& rows) {
    const int last_token = rows.first_token + rows.count / p.group - 1;
    const bool keep = p.mass != nullptr && last_token == p.num_tokens - 1;
    const int64_t stride = round_up(p.head_dim, kLanes);
    for (int row = 0; row < rows.count; ++row) rows.top[row] = kLowest, rows.total[row] = 0;
    __builtin_memset(rows.out, 0, sizeof(float) * rows.count * stride);
    if constexpr (kRounds<T>) {
        Number<T>* to = rows.rounded_q;
        for (int row = 0; row < rows.count; ++row, to += stride) {
            round_row(query(p, rows, row), p.head_dim, to);
        }
    }
    const int most = keys_seen(p, last_token);
    for (int key = 0; key < most; key += kKeyBlock) {
        const int count = most - key < kKeyBlock ? most - key : kKeyBlock;
        score_block<T>(p, rows, key, count);
        softmax_block(p, rows, key);
        if (keep) keep_last(p, rows, key);
        if constexpr (sizeof(T) == 1) scale_weights(p, rows, key, count);
        if constexpr (kRounds<T>) {
            Number<T>* to = rows.rounded_weights;
            round_row(rows.scores, rows.count * kKeyBlock, to);
        }
        value_block<T>(p, rows, key, count);
    }
    for (int row = 0; row < rows.count; ++row) {
        const int token = rows.first_token + row / p.group;
        float* out = p.out + token * p.ldo + int64_t{row % p.group} * p.head_dim;
        const float* sums = rows.out + row * stride;
        const float factor = 1.0f / rows.total[row];
        for (int d = 0; d < p.head_dim; ++d) out[d] = sums[d] * factor;
    }
    if (keep) add_mass(p, rows);
}

}  // namespace

void attention(const AttentionParams& p) {
    const int64_t most = attention_rows(p.group);
    const int tokens = most / p.group;
    const int64_t stride = round_up(p.head_dim, kLanes);
    const int64_t blocks = (keys_seen(p, p.num_tokens - 1) + kKeyBlock - 1) / kKeyBlock;
    Rows rows = {};
    rows.scores = p.scratch;
    rows.out = rows.scores + int64_t{most} * kKeyBlock;
    rows.top = rows.out + most * stride;
    rows.total = rows.top + most;
    rows.shrink = rows.total + most;
    rows.last = rows.shrink + most;
    rows.last_top = rows.last + p.group * blocks * kKeyBlock;
    rows.rounded_q = reinterpret_cast<uint16_t*>(rows.last_top + p.group * blocks);
    rows.rounded_weights = rows.rounded_q + most * stride;
    for (int first = 0; first < p.num_tokens; first += tokens) {
        const int count = p.num_tokens - first < tokens ? p.num_tokens - first : tokens;
        rows.first_token = first;
        rows.count = count * p.group;
        switch (p.type) {
            case KvType::f32:
                attend<float>(p, rows);
                break;
            case KvType::bf16:
                attend<uint16_t>(p, rows);
                break;
            case KvType::f16:
                attend<Half>(p, rows);
                break;
            case KvType::int8:
                attend<int8_t>(p, rows);
        }
    }
}

}  // namespace latrt::LATRT_LEVEL
