#include "bindings/weights.h"

#include <nanobind/stl/string.h>

#include <utility>

namespace latrt::bindings {

Tensor view(const Array& array) {
    Tensor out;
    if (array.dtype() == nb::dtype<float>()) out.dtype = DType::f32;
    if (array.dtype() == nb::dtype<uint16_t>()) out.dtype = DType::u16;
    if (array.dtype() == nb::dtype<uint8_t>()) out.dtype = DType::u8;
    for (size_t i = 0; i < array.ndim(); ++i) {
        out.shape.push_back(static_cast<int64_t>(array.shape(i)));
    }
    out.data = array.data();
    return out;
}

Weights weights(nb::dict arrays) {
    Weights::Map map;
    for (const auto& [name, array] : arrays) {
        map.emplace(nb::cast<std::string>(name), view(nb::cast<Array>(array)));
    }
    return Weights(std::move(map));
}

}  // namespace latrt::bindings
