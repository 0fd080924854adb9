// The level avx512_bf16: bf16 weights, and attention over a cache of bf16; all else is the level
// avx512.
#include "kernels/cpu/level.h"

namespace latrt {
namespace avx512 {
const Kernels& table();
}
namespace LATRT_LEVEL {

const Kernels& table();

const Kernels& table() {
    static const Kernels kTable = [] {
        Kernels all = avx512::table();
        all.isa = Isa::avx512_bf16;
        all.linear[static_cast<int>(WeightType::bf16)] = linear_bf16;
        all.round_rows = round_rows;
        all.attention = attention;
        return all;
    }();
    return kTable;
}

}  // namespace LATRT_LEVEL
}  // namespace latrt
