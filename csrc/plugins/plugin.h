// What every TensorRT plugin of this library shares: one object that is core, build and run time.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace latrt::plugins {

constexpr char kNamespace[] = "lookagain";
constexpr char kVersion[] = "1";

// The integer attributes of a node, by name; the same list is what the plan stores.
class Attributes {
 public:
    struct Entry {
        const char* name;
        int32_t value;
    };

    explicit Attributes(std::vector<Entry> entries) : entries_(std::move(entries)) { point(); }
    Attributes(const Attributes& other) : entries_(other.entries_) { point(); }
    Attributes& operator=(const Attributes&) = delete;

    int32_t operator[](std::string_view name) const;
    // Takes the values of `fields`. False where one is missing or is no positive integer.
    bool read(const nvinfer1::PluginFieldCollection& fields);
    const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
    void point();

    std::vector<Entry> entries_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

// The parts that do not differ between the plugins. None of them calls CUDA.
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::v_2_0::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
    using Descs = nvinfer1::PluginTensorDesc const*;
    using DynamicDescs = nvinfer1::DynamicPluginTensorDesc const*;

    Plugin(const char* name, Attributes attributes)
        : name_(name), attributes_(std::move(attributes)) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    const char* getPluginName() const noexcept override { return name_; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        return attributes_.collection();
    }
    int32_t configurePlugin(DynamicDescs, int32_t, DynamicDescs, int32_t) noexcept override {
        return 0;
    }
    int32_t onShapeChange(Descs, int32_t, Descs, int32_t) noexcept override { return 0; }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
        return clone();
    }

 protected:
    Plugin(const Plugin&) = default;

    const char* name_;
    Attributes attributes_;
};

// Makes plugins of class P, which has a static `attributes()` and a constructor from them.
template <class P>
class Creator : public nvinfer1::IPluginCreatorV3One {
 public:
    explicit Creator(const char* name) : name_(name), fields_(P::attributes()) {}

    const char* getPluginName() const noexcept override { return name_; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
        return fields_.collection();
    }
    nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        Attributes attributes = P::attributes();
        if (fields == nullptr || !attributes.read(*fields)) return nullptr;
        return new P(name_, attributes);
    }

 private:
    const char* name_;
    Attributes fields_;
};

}  // namespace latrt::plugins
