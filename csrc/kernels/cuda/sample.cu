#include "kernels/cuda/sample.h"

#include "kernels/cuda/select.cuh"

namespace latrt::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr float kInfinity = __builtin_huge_valf();

// How far a score lies below the best, in units of 2^-27 temperatures, at most 32 temperatures.
// Scores of one distance are ties; those at the bound have no chance.
using Distance = uint32_t;
constexpr Distance kFarthest = 0xffffffff;

struct Best {
    float score;
    int index;
};

struct Shared {
    SelectShared select;
    Best best[kWarps];
    Weight weight[kWarps];
    int ties[kWarps];
    Weight total;
    Weight plain_total;
};

// The scores of a row at a temperature, those of the banned token at the far end.
struct Row {
    const float* logits;
    float best, per_temperature;
    int banned;  // -1: none

    __device__ Distance distance(int i) const {
        if (i == banned) return kFarthest;
        const float below = (best - logits[i]) * per_temperature;
        return below < 32 ? static_cast<Distance>(below * 0x1p27f) : kFarthest;
    }
};

// exp(-distance) in units of 2^-40.
__device__ __forceinline__ Weight weight_of(Distance distance) {
    if (distance == kFarthest) return 0;
    return static_cast<Weight>(expf(static_cast<float>(distance) * -0x1p-27f) * 0x1p40f);
}

// The higher score, of equal ones the lower index; NaN before all.
__device__ __forceinline__ Best better(Best a, Best b) {
    const bool a_nan = a.score != a.score, b_nan = b.score != b.score;
    if (a_nan || b_nan) return a_nan ? a : b;
    const bool first = a.score > b.score || (a.score == b.score && a.index < b.index);
    return first ? a : b;
}

// The best that is not banned; NaN where any logit is not finite.
__device__ Best best_of(const float* logits, int count, int banned, Shared& shared) {
    Best best = {-kInfinity, count};
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const bool finite = fabsf(logits[i]) < kInfinity;
        if (i != banned || !finite) best = better(best, {finite ? logits[i] : nanf(""), i});
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        const Best other = {shuffle_xor(best.score, mask), shuffle_xor(best.index, mask)};
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) shared.best[threadIdx.x / 32] = best;
    sync_threads();
    best = shared.best[0];
    for (int i = 1; i < kWarps; ++i) best = better(best, shared.best[i]);
    return best;
}

// Which tokens can be drawn: those nearer than `last`, and the first `num_ties` of those at it.
struct Cut {
    Distance last;
    int num_ties;
};

// The `top_k` nearest.
__device__ Cut cut_by_count(const Row& row, int count, int top_k, Shared& shared) {
    const auto found =
        select_key<Distance>(shared.select, static_cast<Weight>(top_k), [&](auto add) {
            for (int i = threadIdx.x; i < count; i += kThreads) add(row.distance(i), 1);
        });
    return {found.key, top_k - static_cast<int>(found.below)};
}

// Sum of the weights of the tokens nearer than `last`, by way of `shared_sum`.
__device__ Weight weight_before(const Row& row, int count, Distance last, Weight& shared_sum) {
    if (threadIdx.x == 0) shared_sum = 0;
    sync_threads();
    Weight sum = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const Distance distance = row.distance(i);
        if (distance < last) sum += weight_of(distance);
    }
    for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) atomic_add(&shared_sum, sum);
    sync_threads();
    return shared_sum;
}

// Where the results of a row go. `total`: of all weights at temperature 1, against `best`.
struct Result {
    int64_t* token;
    float* logprob;  // or null
    const float* logits;
    float best;
    Weight total;

    __device__ void write(int index) const {
        *token = index;
        if (logprob == nullptr) return;
        *logprob = logits[index] - best - logf(static_cast<float>(total) * 0x1p-40f);
    }
    __device__ void write_none() const {
        *token = -1;
        if (logprob != nullptr) *logprob = nanf("");
    }
};

// The fewest nearest tokens within `cut`, whose weight is `total`, that have `top_p` of it.
__device__ Cut cut_by_weight(const Row& row, int count, Cut cut, Weight total, float top_p,
                             Shared& shared) {
    const double wanted = ceil(static_cast<double>(top_p) * static_cast<double>(total));
    const Weight target = wanted < 1 ? 1 : wanted > total ? total : static_cast<Weight>(wanted);
    const auto found = select_key<Distance>(shared.select, target, [&](auto add) {
        for (int i = threadIdx.x; i < count; i += kThreads) {
            const Distance distance = row.distance(i);
            if (distance < cut.last) add(distance, weight_of(distance));
        }
        if (threadIdx.x == 0) add(cut.last, weight_of(cut.last) * cut.num_ties);
    });
    const Weight each = weight_of(found.key);
    return {found.key, static_cast<int>((target - found.below + each - 1) / each)};
}

// The token at which the weights within `cut`, summed in the order of indices, exceed `drawn`.
// Each warp has a range of indices; the one that holds the token searches it.
__device__ void find_drawn(const Row& row, int count, Cut cut, Weight drawn, Shared& shared,
                           const Result& result) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int share = (count + kThreads - 1) / kThreads * 32;
    const int first = warp * share, end = first + share < count ? first + share : count;
    Weight nearer = 0;
    int ties = 0;
    for (int i = first + lane; i < end; i += 32) {
        const Distance distance = row.distance(i);
        nearer += distance < cut.last ? weight_of(distance) : 0;
        ties += distance == cut.last;
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        nearer += shuffle_xor(nearer, mask);
        ties += shuffle_xor(ties, mask);
    }
    if (lane == 0) shared.weight[warp] = nearer, shared.ties[warp] = ties;
    sync_threads();
    const Weight each = weight_of(cut.last);
    Weight before = 0, mine = 0;
    int ties_left = cut.num_ties;
    for (int i = 0; i <= warp; ++i) {
        before += mine;
        const int taken = shared.ties[i] < ties_left ? shared.ties[i] : ties_left;
        mine = shared.weight[i] + each * taken;
        ties_left -= i < warp ? taken : 0;
    }
    if (drawn < before || drawn >= before + mine) return;
    for (int i = first + lane; i - lane < end; i += 32) {
        const Distance distance = i < end ? row.distance(i) : kFarthest;
        const bool tie = i < end && distance == cut.last;
        const uint32_t tied = ballot(tie);
        const bool taken = population(tied & ((1u << lane) - 1)) < ties_left;
        const Weight own = distance < cut.last || (tie && taken) ? weight_of(distance) : 0;
        Weight upto = own;
        for (int delta = 1; delta < 32; delta *= 2) {
            const Weight other = shuffle_up(upto, delta);
            upto += lane >= delta ? other : 0;
        }
        if (drawn >= before + upto - own && drawn < before + upto) result.write(i);
        before += shuffle(upto, 31);
        ties_left -= population(tied);
        if (ties_left < 0) ties_left = 0;
    }
}

// Grid (B).
__global__ void __launch_bounds__(kThreads, 1) sample(SampleParams p) {
    auto& shared = *reinterpret_cast<Shared*>(dynamic_shared());
    const int b = blockIdx.x, count = p.vocab_size;
    const float* logits = p.logits + b * p.ld;
    const int banned = p.banned == nullptr ? -1 : static_cast<int>(p.banned[b]);
    const Best best = best_of(logits, count, banned, shared);
    const float temperature = p.temperature == nullptr ? 0 : p.temperature[b];
    const bool usable = best.score > -kInfinity && best.score < kInfinity;
    Result result = {p.token + b, p.logprob == nullptr ? nullptr : p.logprob + b, logits,
                     best.score, 0};
    if (!usable) {
        if (threadIdx.x == 0) result.write_none();
        return;
    }
    if (p.logprob != nullptr) {
        if (banned >= 0 && logits[banned] > best.score) result.best = logits[banned];
        const Row plain = {logits, result.best, 1, -1};
        result.total = weight_before(plain, count, kFarthest, shared.plain_total);
    }
    if (temperature == 0) {
        if (threadIdx.x == 0) result.write(best.index);
        return;
    }
    const Row row = {logits, best.score, 1 / temperature, banned};
    const int top_k = p.top_k == nullptr ? 0 : p.top_k[b];
    const float top_p = p.top_p == nullptr ? 1 : p.top_p[b];
    Cut cut = {kFarthest, 0};
    if (top_k > 0 && top_k < count) cut = cut_by_count(row, count, top_k, shared);
    Weight total =
        weight_before(row, count, cut.last, shared.total) + weight_of(cut.last) * cut.num_ties;
    if (top_p < 1) {
        cut = cut_by_weight(row, count, cut, total, top_p, shared);
        total =
            weight_before(row, count, cut.last, shared.total) + weight_of(cut.last) * cut.num_ties;
    }
    Weight drawn = static_cast<Weight>(p.uniform[b] * static_cast<double>(total));
    if (drawn >= total) drawn = total - 1;
    find_drawn(row, count, cut, drawn, shared, result);
}

}  // namespace

cudaError_t launch_sample(const SampleParams& p, cudaStream_t stream) {
    if (p.batch == 0) return cudaSuccess;
    if (p.vocab_size < 1 || (p.temperature != nullptr && p.uniform == nullptr)) {
        return cudaErrorInvalidValue;
    }
    return launch(sample, dim3(static_cast<unsigned>(p.batch)), dim3(kThreads), sizeof(Shared),
                  stream, p);
}

}  // namespace latrt::cuda
