// Python arrays as the engine's tensors.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "engine/weights.h"

namespace latrt::bindings {

namespace nb = nanobind;

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

// A view of the array, which the caller keeps alive.
Tensor view(const Array& array);

// Views of the arrays of a dictionary, which the caller keeps alive.
Weights weights(nb::dict arrays);

}  // namespace latrt::bindings
