#include "kernels/cpu/isa.h"

#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace latrt {
namespace {

// The operating system gives the tile registers to processes that ask; a virtual machine may show
// a processor that has them and refuse.
bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
    constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
    if ((edx & kTiles) == 0 || (edx & kInt8) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

const char* isa_name(Isa isa) {
    constexpr const char* kNames[kNumIsas] = {"plain", "avx2", "avx512", "avx512_bf16", "amx"};
    return kNames[static_cast<int>(isa)];
}

bool parse_isa(const char* name, Isa& isa) {
    for (int i = 0; i < kNumIsas; ++i) {
        if (std::strcmp(name, isa_name(static_cast<Isa>(i))) == 0) {
            isa = static_cast<Isa>(i);
            return true;
        }
    }
    return false;
}

bool cpu_has(Isa isa) {
    if (isa == Isa::plain) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();  // checks the operating system's support of the registers too
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (isa == Isa::avx2) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (isa == Isa::avx512 || !avx512) return avx512;
    const bool bf16 = __builtin_cpu_supports("avx512bf16");
    if (isa == Isa::avx512_bf16 || !bf16) return bf16;
    static const bool granted = tiles_granted();
    return granted;
#else
    return false;
#endif
}

}  // namespace latrt
