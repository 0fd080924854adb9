// What each instruction set's files define. Each is compiled once a level, in its own namespace
// LATRT_LEVEL, and includes no library code whose inline copies another level might then run.
#pragma once

#include "kernels/cpu/kernels.h"

namespace latrt::LATRT_LEVEL {

void linear_f32(const LinearParams& p);
void linear_bf16(const LinearParams& p);
void round_rows(const RoundRowsParams& p);  // AVX-512 with BF16 alone
void linear_int8(const LinearParams& p);
void linear_int4(const LinearParams& p);
void quantise(const QuantiseParams& p);
void pack_rows(const PackRowsParams& p);         // not plain
void linear_int8_panels(const LinearParams& p);  // AVX-512 alone
void linear_int4_panels(const LinearParams& p);  // not plain
void attention(const AttentionParams& p);
void rms_norm(const RmsNormParams& p);
void swiglu(const SwiGluParams& p);
void rotate(const RotateParams& p);

}  // namespace latrt::LATRT_LEVEL
