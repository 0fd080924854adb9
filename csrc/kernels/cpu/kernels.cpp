#include "kernels/cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace latrt {

namespace plain {
const Kernels& table();
}
#if defined(LATRT_X86)
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace avx512_bf16 {
const Kernels& table();
}
#if defined(LATRT_AMX)
namespace amx {
const Kernels& table();
}
#endif
#endif

const Kernels* find_kernels(Isa isa) {
    if (!cpu_has(isa)) return nullptr;
#if defined(LATRT_AMX)
    if (isa == Isa::amx) return &amx::table();
#endif
#if defined(LATRT_X86)
    if (isa == Isa::avx512_bf16) return &avx512_bf16::table();
    if (isa == Isa::avx512) return &avx512::table();
    if (isa == Isa::avx2) return &avx2::table();
#endif
    return isa == Isa::plain ? &plain::table() : nullptr;
}

const Kernels& best_kernels() {
    Isa highest = static_cast<Isa>(kNumIsas - 1);
    const char* name = std::getenv("LATRT_ISA");
    if (name != nullptr && *name != '\0' && !parse_isa(name, highest)) {
        throw std::invalid_argument(
            "LATRT_ISA: expected plain, avx2, avx512, avx512_bf16 or amx, got '" +
            std::string(name).substr(0, 40) + "'");
    }
    for (int i = static_cast<int>(highest); i > 0; --i) {
        if (const Kernels* kernels = find_kernels(static_cast<Isa>(i))) return *kernels;
    }
    return plain::table();
}

}  // namespace latrt
