// The tensors of a mapped safetensors file, its header checked to the last byte.
#pragma once

#include <map>
#include <string>

#include "engine/weights.h"
#include "runtime/bundle.h"

namespace latrt {

struct Safetensors {
    Weights::Map tensors;  // views of the mapped file
    std::map<std::string, std::string> metadata;

    // Throws JsonError saying what is wrong.
    explicit Safetensors(const MappedFile& file);
};

}  // namespace latrt
