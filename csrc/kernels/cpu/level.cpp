#include "kernels/cpu/level.h"

#include "kernels/cpu/portable.h"

namespace latrt::LATRT_LEVEL {

const Kernels& table();

const Kernels& table() {
    static constexpr Kernels kTable = {
        Isa::LATRT_LEVEL,
        {linear_f32, linear_bf16, linear_int8, linear_int4},
        quantise,
#if defined(__AVX512VNNI__)
        pack_rows,
        {nullptr, nullptr, linear_int8_panels, linear_int4_panels},
#elif defined(__AVX2__)
        pack_rows,
        {nullptr, nullptr, nullptr, linear_int4_panels},
#else
        nullptr,
        {},
#endif
        nullptr,
        portable::unpack_row,
        attention,
        rms_norm,
        swiglu,
        portable::gelu,
        rotate,
        portable::kv_write,
        portable::kv_reinject,
        portable::top_k,
    };
    return kTable;
}

}  // namespace latrt::LATRT_LEVEL
