// Which instruction sets this processor and this build have. One binary holds every level.
#pragma once

namespace latrt {

// Ordered: a higher level needs everything that a lower one needs, and is faster.
// `avx2` comes with FMA and F16C; `avx512` is F, BW, DQ, VL and VNNI; `avx512_bf16` is BF16 too;
// `amx` is its tiles of int8.
enum class Isa : int { plain = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

inline constexpr int kNumIsas = 5;

// "plain", "avx2", "avx512", "avx512_bf16" or "amx".
const char* isa_name(Isa isa);

// The level of that name in `isa`; false for an unknown name.
bool parse_isa(const char* name, Isa& isa);

// Whether this processor and its operating system run the level. Asking for `amx` asks Linux for
// the tile registers, for the whole process: its signal stacks must be larger from then on.
bool cpu_has(Isa isa);

}  // namespace latrt
