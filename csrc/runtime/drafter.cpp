#include "runtime/drafter.h"

#include <algorithm>

namespace latrt {
namespace {

constexpr size_t kContexts[] = {8, 4, 2};  // tokens that a guess has behind it, the most first
constexpr double kLeastGain = 0.25;   // tokens that guessing adds to a step, below which it costs
constexpr double kMemory = 1.0 / 16;  // weight of the last step in that mean
constexpr int kTryAgain = 8;          // while it costs more, one in so many guesses is still made
constexpr size_t kMaxContexts = size_t{1} << 17;  // remembered, some 30 MB

}  // namespace

Drafter::Drafter() {
    begin();
}

void Drafter::begin() {
    answer_ = std::make_shared<std::vector<int64_t>>();
}

size_t Drafter::Hash::operator()(const Context& context) const {
    uint64_t hash = 0;
    for (const int64_t value : context) {  // splitmix64, chained
        hash += static_cast<uint64_t>(value) + 0x9e3779b97f4a7c15u;
        hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
        hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
        hash ^= hash >> 31;
    }
    return static_cast<size_t>(hash);
}

// The `num` tokens before `end`.
Drafter::Context Drafter::last(size_t num, size_t end) const {
    Context context = {static_cast<int64_t>(num)};
    std::copy_n(answer_->begin() + static_cast<std::ptrdiff_t>(end - num), num,
                context.begin() + 1);
    return context;
}

void Drafter::learn(int64_t token) {
    const size_t at = answer_->size();
    answer_->push_back(token);
    for (const size_t num : kContexts) {
        if (num > at) continue;
        const Context context = last(num, at);
        const auto found = following_.find(context);
        if (found != following_.end()) {
            found->second.answer = answer_, found->second.at = at;
            ages_.splice(ages_.end(), ages_, found->second.age);
            continue;
        }
        const auto age = ages_.insert(ages_.end(), context);
        try {
            following_.emplace(context, Followed{answer_, at, age});
        } catch (...) {
            ages_.erase(age);
            throw;
        }
    }
    while (following_.size() > kMaxContexts) {
        following_.erase(ages_.front());
        ages_.pop_front();
    }
}

const Drafter::Followed* Drafter::find() const {
    for (const size_t num : kContexts) {
        if (num > answer_->size()) continue;
        const auto found = following_.find(last(num, answer_->size()));
        if (found != following_.end()) return &found->second;
    }
    return nullptr;
}

std::vector<int64_t> Drafter::guess(int64_t count) {
    const Followed* found = count > 0 ? find() : nullptr;
    if (!found) return {};
    if (gain_ < kLeastGain) {
        num_held_back_ = (num_held_back_ + 1) % kTryAgain;
        if (num_held_back_) return {};
    }
    const auto from = found->answer->begin() + static_cast<std::ptrdiff_t>(found->at);
    return {from, from + std::min<int64_t>(count, found->answer->end() - from)};
}

void Drafter::count(int64_t num_drafted, int64_t num_accepted) {
    if (num_drafted) gain_ += (static_cast<double>(num_accepted) - gain_) * kMemory;
}

}  // namespace latrt
