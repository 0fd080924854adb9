// What a bundle becomes once: weights, tokenizer, template, image settings. Shared by sessions.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "runtime/bundle.h"
#include "runtime/image.h"
#include "runtime/rope.h"
#include "runtime/template.h"
#include "runtime/tokenizer.h"

namespace latrt {

// `isa`: "auto" or a level's name. `threads` below 1: all that the process may use. `max_len`:
// KV positions of a session, 0 for the smaller of 8192 and the bundle's. `kv_dtype`: a KvType's
// name, or "auto", which is float32 beside float32 weights and bfloat16 beside others.
struct ModelOptions {
    std::string isa = "auto";
    int threads = 0;
    int64_t max_len = 0;
    std::string kv_dtype = "auto";
    bool verify = true;
};

// One turn: images (the next of the request's) stand before the text.
struct Message {
    std::string role, text;
    int num_images = 0;
};

// A request as tokens: `visual_row` is -1 for text, else a row of the visual embeddings.
struct Prompt {
    std::vector<int64_t> ids, visual_row;
    std::vector<Grid> grids;
    std::vector<float> pixel_values;

    int64_t num_visual() const;

    // Appends tokens of text, all or none.
    void append(const std::vector<int64_t>& tokens);
};

// Immutable once made, so that any number of threads may read it.
class Model {
 public:
    // Throws Error.
    Model(const std::string& path, const ModelOptions& options);

    const ModelConfig& config() const { return bundle_.config; }
    const Tokenizer& tokenizer() const { return *tokenizer_; }
    const std::set<int64_t>& end_tokens() const { return end_tokens_; }
    int64_t max_len() const { return max_len_; }
    const char* isa() const { return isa_name(kernels_->isa); }
    const std::string& dtype() const { return dtype_; }
    const char* kv_dtype() const { return kv_type_name(config().decoder.kv_type); }

    // An engine of its own for one thread; the weights are shared.
    std::unique_ptr<Decoder> make_decoder() const;
    std::unique_ptr<Vision> make_vision() const;

    // Tokens of messages by the bundle's chat template, ready for an answer. Texts never yield a
    // control token. Throws Error E_PROMPT, E_MESSAGES, E_IMAGE_*, E_TEXT, E_TEMPLATE.
    Prompt chat(const std::vector<Message>& messages, const std::vector<RgbImage>& images) const;

    // Appends plain text, a control token, an image's patches and pads, all or nothing. Throw
    // Error.
    void append_text(Prompt& prompt, std::string_view text) const;
    void append_control(Prompt& prompt, const std::string& token) const;
    void append_image(Prompt& prompt, const RgbImage& image) const;

 private:
    void read_processor();
    void read_weights(const ModelOptions& options);
    std::string render(const std::vector<Message>& messages) const;

    Bundle bundle_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::unique_ptr<ChatTemplate> template_;
    ImageConfig image_config_;
    std::set<int64_t> end_tokens_;
    DecoderWeights decoder_weights_;
    VisionWeights vision_weights_;
    const Kernels* kernels_ = nullptr;
    std::string dtype_;
    int threads_;
    int64_t max_len_;
};

}  // namespace latrt
