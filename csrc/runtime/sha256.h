// SHA-256 (FIPS 180-4) of bytes that come in pieces.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace latrt {

class Sha256 {
 public:
    // `instructions`: with the processor's SHA instructions where it has them.
    explicit Sha256(bool instructions = true);

    static bool has_instructions();

    void update(const void* data, size_t size);

    // 64 hexadecimal digits; nothing may be added afterwards.
    std::string finish();

 private:
    void (*blocks_)(uint32_t* state, const uint8_t* data, size_t count);
    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> held_;
    size_t num_held_ = 0;
    uint64_t total_ = 0;
};

}  // namespace latrt
