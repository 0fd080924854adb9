// The kernels of one instruction set as a table of functions.
#pragma once

#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear.h"

namespace latrt {

struct Kernels {
    Isa isa;
    void (*linear[kNumWeightTypes])(const LinearParams&);
    void (*quantise)(const QuantiseParams&);
    // With many rows, `panels_from` or more; null where `linear` is as good.
    void (*pack_rows)(const PackRowsParams&);
    void (*linear_panels[kNumWeightTypes])(const LinearParams&);
    // What bf16 weights meet; null where they meet floats.
    void (*round_rows)(const RoundRowsParams&);
    void (*unpack_row)(const UnpackRowParams&);
    void (*attention)(const AttentionParams&);
    void (*rms_norm)(const RmsNormParams&);
    void (*swiglu)(const SwiGluParams&);
    void (*gelu)(const GeluParams&);
    void (*rotate)(const RotateParams&);
    void (*kv_write)(const KvWriteParams&);
    void (*kv_reinject)(const KvReinjectParams&);
    void (*top_k)(TopKParams&);
};

// The table of a level; null where this build or this processor lacks it.
const Kernels* find_kernels(Isa isa);

// The highest level there is here, no higher than the one that the environment variable LATRT_ISA
// names. Throws std::invalid_argument where that names none.
const Kernels& best_kernels();

}  // namespace latrt
