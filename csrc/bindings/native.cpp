// The Python module la_trt._native: decoder and vision tower over packed, mapped weights.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>

#include "bindings/weights.h"
#include "engine/decoder.h"
#include "engine/vision.h"

namespace latrt::bindings {
namespace {

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* what) {
    if (!condition) throw nb::value_error(what);
}

const Kernels& kernels_named(const std::string& name) {
    Isa isa;
    if (name == "auto") return best_kernels();
    if (!parse_isa(name.c_str(), isa))
        throw nb::value_error(("isa: unknown level " + name).c_str());
    const Kernels* kernels = find_kernels(isa);
    if (!kernels)
        throw nb::value_error(("isa: this processor or build lacks level " + name).c_str());
    return *kernels;
}

KvType kv_type_named(const std::string& name) {
    if (const auto type = parse_kv_type(name)) return *type;
    throw nb::value_error(("kv_dtype: unknown type " + name).c_str());
}

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (int i = 0; i < kNumIsas; ++i) {
        if (find_kernels(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
    }
    return names;
}

void check_floats(const char* name, const Floats& array, std::vector<int64_t> shape) {
    check_tensor(name, view(Array(array)), DType::f32, shape);
}

void check_floats(const char* name, const FloatsOut& array, std::vector<int64_t> shape) {
    check_tensor(name, view(Array(array)), DType::f32, shape);
}

// (slot, past, count, logits (V) or None, mass (past + count) or None)
using SequenceTuple = std::tuple<int, int, int, std::optional<FloatsOut>, std::optional<FloatsOut>>;

class PyDecoder {
 public:
    PyDecoder(const PyDecoder&) = delete;
    PyDecoder& operator=(const PyDecoder&) = delete;

    PyDecoder(const DecoderConfig& config, nb::dict arrays, const Kernels& kernels, int threads)
        : arrays_(arrays), decoder_(config, weights(arrays).decoder(config), kernels, threads) {}

    bool alloc(int slot, int64_t capacity) {
        require(slot >= 0 && capacity > 0 && capacity < 1 << 30, "alloc: slot or capacity");
        return decoder_.alloc(slot, capacity);
    }

    void free(int slot) {
        require(decoder_.fits(slot, 0), "free: slot");
        decoder_.free(slot);
    }

    void forward(Ints ids, std::optional<Ints> visual_row, std::optional<Floats> visual_embeds,
                 Floats cos, Floats sin, std::vector<SequenceTuple> sequences) {
        const DecoderConfig& c = decoder_.config();
        DecoderStep step = {};
        const int64_t tokens = static_cast<int64_t>(ids.size());
        require(tokens > 0 && tokens <= INT32_MAX, "input_ids: size");
        check_floats("cos", cos, {tokens, c.head_dim / 2});
        check_floats("sin", sin, {tokens, c.head_dim / 2});
        int64_t num_visual = 0;
        if (visual_embeds) {
            num_visual = static_cast<int64_t>(visual_embeds->shape(0));
            check_floats("visual_embeds", *visual_embeds, {num_visual, c.width});
            step.visual_embeds = visual_embeds->data();
        }
        if (visual_row) {
            require(static_cast<int64_t>(visual_row->size()) == tokens, "visual_row: size");
            step.visual_row = visual_row->data();
        }
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t row = step.visual_row ? step.visual_row[t] : -1;
            require(row < num_visual, "visual_row: beyond visual_embeds");
            const int64_t id = ids.data()[t];
            require(row >= 0 || (id >= 0 && id < c.vocab_size),
                    "input_ids: outside the vocabulary");
        }
        step.ids = ids.data(), step.cos = cos.data(), step.sin = sin.data();
        step.num_tokens = static_cast<int>(tokens);
        int64_t total = 0;
        for (SequenceTuple& s : sequences) {
            auto& [slot, past, count, logits, mass] = s;
            require(count > 0 && past >= 0, "sequences: count or past");
            if (logits) check_floats("logits", *logits, {c.vocab_size});
            const int64_t length = int64_t{past} + count;
            if (mass) check_floats("mass", *mass, {length});
            step.sequences.push_back({slot, past, count, logits ? logits->data() : nullptr,
                                      mass ? mass->data() : nullptr});
            require(decoder_.fits(slot, length), "sequences: slot not allocated or too small");
            total += count;
        }
        require(total == tokens, "sequences: counts do not add up to the tokens");
        nb::gil_scoped_release release;
        decoder_.forward(step);
    }

    void kv_reinject(int slot, Ints source, int first, Floats cos, Floats sin) {
        const DecoderConfig& c = decoder_.config();
        check_floats("cos", cos, {c.head_dim / 2});
        check_floats("sin", sin, {c.head_dim / 2});
        require(first >= 0 && decoder_.fits(slot, first + static_cast<int64_t>(source.size())),
                "kv_reinject: slot too small");
        const int count = static_cast<int>(source.size());
        for (int i = 0; i < count; ++i) {
            require(source.data()[i] >= 0 && source.data()[i] < first, "kv_reinject: source");
        }
        nb::gil_scoped_release release;
        decoder_.kv_reinject(slot, source.data(), count, first, cos.data(), sin.data());
    }

    void read_kv(int slot, int length, FloatsOut k, FloatsOut v) {
        const DecoderConfig& c = decoder_.config();
        for (const FloatsOut& out : {k, v}) {
            check_floats("read_kv", out, {c.num_layers, c.num_kv_heads, length, c.head_dim});
        }
        require(decoder_.fits(slot, length), "read_kv: length");
        int64_t at = 0;
        for (int layer = 0; layer < c.num_layers; ++layer) {
            for (int head = 0; head < c.num_kv_heads; ++head) {
                for (int i = 0; i < length; ++i, at += c.head_dim) {
                    decoder_.read_kv(slot, layer, head, i, k.data() + at, v.data() + at);
                }
            }
        }
    }

 private:
    nb::dict arrays_;
    Decoder decoder_;
};

class PyVision {
 public:
    PyVision(const PyVision&) = delete;
    PyVision& operator=(const PyVision&) = delete;

    PyVision(const VisionConfig& config, const std::vector<bool>& whole, nb::dict arrays,
             const Kernels& kernels, int threads)
        : arrays_(arrays),
          vision_(config, weights(arrays).vision(config, whole), kernels, threads) {}

    void forward(Floats pixel_values, Floats cos, Floats sin, std::vector<int> windows,
                 std::vector<int> frames, FloatsOut out) {
        const VisionConfig& c = vision_.config();
        const int64_t patches = static_cast<int64_t>(pixel_values.shape(0));
        check_floats("pixel_values", pixel_values, {patches, c.patch_dim});
        check_floats("cos", cos, {patches, c.head_dim / 2});
        check_floats("sin", sin, {patches, c.head_dim / 2});
        check_floats("out", out, {patches / c.merge_unit, c.out_width});
        require(patches % c.merge_unit == 0, "pixel_values: not whole merge units");
        for (const std::vector<int>* segments : {&windows, &frames}) {
            int64_t total = 0;
            for (const int length : *segments) {
                require(length > 0, "windows, frames: an empty one");
                total += length;
            }
            require(total == patches, "windows, frames: do not add up to the patches");
        }
        if (patches == 0) return;
        const VisionInput input = {pixel_values.data(), cos.data(),
                                   sin.data(),          static_cast<int>(patches),
                                   std::move(windows),  std::move(frames)};
        nb::gil_scoped_release release;
        vision_.forward(input, out.data());
    }

 private:
    nb::dict arrays_;
    Vision vision_;
};

}  // namespace

NB_MODULE(_native, module) {
    using namespace nb::literals;
    module.def("levels", &levels, "Instruction set levels that run here, slowest first.");
    module.def("best_level", [] { return std::string(isa_name(best_kernels().isa)); });
    module.def("allowed_threads", &allowed_threads);
    nb::class_<PyDecoder>(module, "Decoder")
        .def(
            "__init__",
            [](PyDecoder* self, nb::dict weights, int vocab_size, int width, int ffn,
               int num_layers, int num_heads, int num_kv_heads, int head_dim, float eps,
               const std::string& kv_dtype, const std::string& isa, int threads) {
                const DecoderConfig config = {vocab_size, width,     ffn,
                                              num_layers, num_heads, num_kv_heads,
                                              head_dim,   eps,       kv_type_named(kv_dtype)};
                new (self) PyDecoder(config, weights, kernels_named(isa), threads);
            },
            nb::kw_only(), "weights"_a, "vocab_size"_a, "width"_a, "ffn"_a, "num_layers"_a,
            "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "eps"_a, "kv_dtype"_a, "isa"_a,
            "threads"_a)
        .def("alloc", &PyDecoder::alloc, "slot"_a, "capacity"_a)
        .def("free", &PyDecoder::free, "slot"_a)
        .def("forward", &PyDecoder::forward, "ids"_a, "visual_row"_a.none(),
             "visual_embeds"_a.none(), "cos"_a, "sin"_a, "sequences"_a)
        .def("kv_reinject", &PyDecoder::kv_reinject, "slot"_a, "source"_a, "first"_a, "cos"_a,
             "sin"_a)
        .def("read_kv", &PyDecoder::read_kv, "slot"_a, "length"_a, "k"_a, "v"_a);
    nb::class_<PyVision>(module, "Vision")
        .def(
            "__init__",
            [](PyVision* self, nb::dict weights, int width, int ffn, int num_heads, int head_dim,
               int patch_dim, int merge_unit, int out_width, std::vector<bool> whole,
               const std::string& isa, int threads) {
                const VisionConfig config = {width,     ffn,        num_heads, head_dim,
                                             patch_dim, merge_unit, out_width};
                new (self) PyVision(config, whole, weights, kernels_named(isa), threads);
            },
            nb::kw_only(), "weights"_a, "width"_a, "ffn"_a, "num_heads"_a, "head_dim"_a,
            "patch_dim"_a, "merge_unit"_a, "out_width"_a, "whole"_a, "isa"_a, "threads"_a)
        .def("forward", &PyVision::forward, "pixel_values"_a, "cos"_a, "sin"_a, "windows"_a,
             "frames"_a, "out"_a);
}

}  // namespace latrt::bindings
