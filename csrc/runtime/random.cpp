#include "runtime/random.h"

#include <cstddef>
#include <numeric>
#include <utility>

namespace latrt {
namespace {

// The pool of NumPy's SeedSequence, and eight words drawn from it.
std::vector<uint32_t> seed_words(const std::vector<uint64_t>& seed) {
    std::vector<uint32_t> entropy;
    for (const uint64_t value : seed) {
        entropy.push_back(static_cast<uint32_t>(value));
        if (value >> 32) entropy.push_back(static_cast<uint32_t>(value >> 32));
    }
    uint32_t constant = 0x43b0d7e5;
    const auto hash = [&constant](uint32_t value, uint32_t multiplier) {
        value ^= constant;
        constant *= multiplier;
        value *= constant;
        return value ^ value >> 16;
    };
    const auto mix = [&](uint32_t x, uint32_t y) {
        const uint32_t mixed = 0xca01f9ddu * x - 0x4973f715u * hash(y, 0x931e8875);
        return mixed ^ mixed >> 16;
    };
    uint32_t pool[4];
    for (size_t i = 0; i < 4; ++i) pool[i] = hash(i < entropy.size() ? entropy[i] : 0, 0x931e8875);
    for (size_t from = 0; from < 4; ++from) {
        for (size_t to = 0; to < 4; ++to) {
            if (from != to) pool[to] = mix(pool[to], pool[from]);
        }
    }
    for (size_t i = 4; i < entropy.size(); ++i) {
        for (uint32_t& word : pool) word = mix(word, entropy[i]);
    }
    constant = 0x8b51f9dd;
    std::vector<uint32_t> words;
    for (size_t i = 0; i < 8; ++i) words.push_back(hash(pool[i % 4], 0x58f38ded));
    return words;
}

}  // namespace

Random::Random(const std::vector<uint64_t>& seed) {
    const std::vector<uint32_t> words = seed_words(seed);
    const auto word = [&](size_t i) { return words[2 * i] | uint64_t{words[2 * i + 1]} << 32; };
    const Wide start = {word(0), word(1)}, stream = {word(2), word(3)};
    increment_ = {stream.high << 1 | stream.low >> 63, stream.low << 1 | 1};
    step();
    const uint64_t low = state_.low + start.low;
    state_ = {state_.high + start.high + (low < start.low), low};
    step();
}

void Random::step() {
    constexpr uint64_t kHigh = 0x2360ed051fc65da4, kLow = 0x4385df649fccf645;
    // 64 x 64 -> 128 bits by halves.
    const uint64_t a = state_.low >> 32, b = state_.low & 0xffffffff;
    const uint64_t c = kLow >> 32, d = kLow & 0xffffffff;
    const uint64_t bd = b * d, ad = a * d, bc = b * c;
    const uint64_t middle = (bd >> 32) + (ad & 0xffffffff) + (bc & 0xffffffff);
    uint64_t low = (bd & 0xffffffff) | middle << 32;
    uint64_t high = a * c + (ad >> 32) + (bc >> 32) + (middle >> 32);
    high += state_.high * kLow + state_.low * kHigh;
    low += increment_.low;
    high += increment_.high + (low < increment_.low);
    state_ = {high, low};
}

uint64_t Random::bits64() {
    step();
    const uint64_t value = state_.high ^ state_.low;
    const int by = static_cast<int>(state_.high >> 58);
    return value >> by | value << (-by & 63);
}

uint32_t Random::bits32() {
    if (has_half_) {
        has_half_ = false;
        return half_;
    }
    const uint64_t value = bits64();
    has_half_ = true, half_ = static_cast<uint32_t>(value >> 32);
    return static_cast<uint32_t>(value);
}

double Random::uniform() {
    return static_cast<double>(bits64() >> 11) * 0x1p-53;
}

// As many bits as the largest result has, drawn again while they exceed it.
uint64_t Random::below(uint64_t end) {
    uint64_t mask = end - 1;
    for (int by = 1; by < 32; by *= 2) mask |= mask >> by;
    uint64_t value = end;
    while (value >= end) value = bits32() & mask;
    return value;
}

std::vector<int64_t> Random::permutation(int64_t n) {
    std::vector<int64_t> out(static_cast<size_t>(n));
    std::iota(out.begin(), out.end(), int64_t{0});
    for (size_t i = out.size(); i-- > 1;) std::swap(out[i], out[below(i + 1)]);
    return out;
}

}  // namespace latrt
