#include "kernels/cpu/attention.h"

#include "kernels/cpu/level.h"
#include "kernels/cpu/vec.h"

namespace latrt::LATRT_LEVEL {
namespace {

constexpr float kLowest = -3.0e38f;

// Rows (token, head) that go through K and V together, and their running softmax.
struct Rows {
    int count, first_token;
    float* scores;    // (R, 64): scores of a block of keys, then exp(score - top)
    float* out;       // (R, Dp): weighted sum of values
    float* top;       // (R): largest score so far
    float* total;     // (R): sum of exp(score - top)
    float* shrink;    // (R): what the sums so far are multiplied by
    float* last;      // (G, blocks, 64): exponentials of the last token, where mass is wanted
    float* last_top;  // (G, blocks): the top that they were taken with
};

int keys_seen(const AttentionParams& p, int token) {
    return p.num_keys + (p.causal ? token : 0);
}

const float* query(const AttentionParams& p, const Rows& rows, int row) {
    const int token = rows.first_token + row / p.group;
    return p.q + token * p.ldq + int64_t{row % p.group} * p.head_dim;
}

// Scores of M rows on the 16 keys of each of some tiles (D, 16).
template <int M, int kTiles, class T>
void score_tiles(const AttentionParams& p, const Rows& rows, int row, const T* tile, int column,
                 const float* k_scale) {
    const float* q[M];
    for (int m = 0; m < M; ++m) q[m] = query(p, rows, row + m);
    const int64_t apart = int64_t{p.head_dim} * kLanes;
    Vec sums[M][kTiles][kParts] = {};
    for (int d = 0; d < p.head_dim; ++d, tile += kLanes) {
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
            Vec keys[kTiles];
#pragma GCC unroll 2
            for (int t = 0; t < kTiles; ++t) keys[t] = load(tile + t * apart + i * kWidth);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Vec number = splat(q[m][d]);
#pragma GCC unroll 2
                for (int t = 0; t < kTiles; ++t) sums[m][t][i] += keys[t] * number;
            }
        }
    }
    for (int m = 0; m < M; ++m) {
        float* to = rows.scores + int64_t{row + m} * kKeyBlock + column;
#pragma GCC unroll 4
        for (int i = 0; i < kTiles * kParts; ++i) {
            Vec score = sums[m][i / kParts][i % kParts] * p.scale;
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

// Turns the first `valid` scores of a row into exponentials, the rest into zeros.
void softmax_row(const Rows& rows, int row, int valid) {
    float* scores = rows.scores + int64_t{row} * kKeyBlock;
    rows.shrink[row] = 1.0f;
    float top = rows.top[row];
    for (int i = valid; i < kKeyBlock; ++i) scores[i] = kLowest;
    Vec tops = splat(top);
    for (int i = 0; i < kKeyBlock; i += kWidth) tops = max(load(scores + i), tops);
    top = max_lane(tops);
    if (top > rows.top[row]) {
        rows.shrink[row] = sum(exp(splat(rows.top[row] - top))) / static_cast<float>(kWidth);
        rows.top[row] = top;
    }
    Vec total = {};
    for (int i = 0; i < kKeyBlock; i += kWidth) {
        const Vec score = load(scores + i);
        const Vec e = select(score <= kLowest, Vec{}, exp(score - top));
        store(scores + i, e);
        total += e;
    }
    rows.total[row] = rows.total[row] * rows.shrink[row] + sum(total);
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
    const float* weights = rows.scores + int64_t{row} * kKeyBlock;
    for (int key = 0; key < count; ++key) {
#pragma GCC unroll 2
        for (int i = 0; i < kColumns; ++i) {
            const Vec value = load(values + key * stride + column + i * kWidth);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sums[m][i] += value * weights[m * kKeyBlock + key];
        }
    }
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
    const int most = keys_seen(p, last_token);
    for (int key = 0; key < most; key += kKeyBlock) {
        const int count = most - key < kKeyBlock ? most - key : kKeyBlock;
        score_block<T>(p, rows, key, count);
        for (int row = 0; row < rows.count; ++row) {
            const int seen = keys_seen(p, rows.first_token + row / p.group) - key;
            softmax_row(rows, row, seen < 0 ? 0 : seen < count ? seen : count);
        }
        if (keep) keep_last(p, rows, key);
        if constexpr (sizeof(T) == 1) scale_weights(p, rows, key, count);
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
    const int most = p.group > kRowBlock ? p.group : kRowBlock;
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
