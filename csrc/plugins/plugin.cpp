#include "plugins/plugin.h"

#include <cstring>
#include <limits>

namespace latrt::plugins {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

// The field's integer, or 0 where it holds none that is positive and fits.
int32_t positive(const PluginField& field) {
    if (field.data == nullptr || field.length != 1) return 0;
    int64_t value = 0;
    if (field.type == PluginFieldType::kINT32) {
        int32_t narrow;
        std::memcpy(&narrow, field.data, sizeof narrow);
        value = narrow;
    } else if (field.type == PluginFieldType::kINT64) {
        std::memcpy(&value, field.data, sizeof value);
    }
    return value > 0 && value <= std::numeric_limits<int32_t>::max() ? static_cast<int32_t>(value)
                                                                     : 0;
}

}  // namespace

int32_t Attributes::operator[](std::string_view name) const {
    for (const Entry& entry : entries_) {
        if (name == entry.name) return entry.value;
    }
    return 0;
}

bool Attributes::read(const nvinfer1::PluginFieldCollection& fields) {
    for (Entry& entry : entries_) {
        entry.value = 0;
        for (int32_t i = 0; i < fields.nbFields; ++i) {
            const PluginField& field = fields.fields[i];
            if (std::strcmp(field.name, entry.name) == 0) entry.value = positive(field);
        }
        if (entry.value == 0) return false;
    }
    return true;
}

void Attributes::point() {
    fields_.clear();
    for (const Entry& entry : entries_) {
        fields_.emplace_back(entry.name, &entry.value, PluginFieldType::kINT32, 1);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::v_2_0::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

}  // namespace latrt::plugins
