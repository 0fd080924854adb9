#include "runtime/model.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/safetensors.h"
#include "runtime/unicode.h"

namespace latrt {
namespace {

constexpr int64_t kDefaultMaxLen = 8192;
constexpr int64_t kMaxImagePixels = 50'000'000, kMaxRequestPixels = 100'000'000;
constexpr size_t kMaxImages = 8;
constexpr char kWeights[] = "native.safetensors", kImagePad[] = "<|image_pad|>";

const Kernels* kernels_named(const std::string& name) {
    Isa isa;
    if (name == "auto" || name.empty()) {
        try {
            return &best_kernels();
        } catch (const std::invalid_argument& error) {
            throw Error(Status::usage, "E_USAGE", error.what());
        }
    }
    const Kernels* found = parse_isa(name.c_str(), isa) ? find_kernels(isa) : nullptr;
    if (!found) {
        throw Error(Status::usage, "E_USAGE",
                    "isa: expected auto or a level that this processor has, got '" +
                        name.substr(0, 40) + "'");
    }
    return found;
}

KvType kv_type_named(const std::string& name, const std::string& weights) {
    if (name == "auto") return weights == "float32" ? KvType::f32 : KvType::bf16;
    if (const auto type = parse_kv_type(name)) return *type;
    throw Error(Status::usage, "E_USAGE",
                "kv_dtype: expected auto, float32, bfloat16, float16 or int8, got '" +
                    name.substr(0, 40) + "'");
}

// The template in a JSON file: a string, or the one named "default" of a list.
const std::string* named_template(const Json& json) {
    const Json* found = json.find("chat_template");
    if (!found || found->is_null()) return nullptr;
    if (!found->is(Json::Kind::array)) return &found->string();
    for (const Json& one : found->array()) {
        if (one.at("name").string() == "default") return &one.at("template").string();
    }
    return nullptr;
}

void check_image(const RgbImage& image) {
    const auto refuse = [&](const char* name, const std::string& what) {
        throw Error(Status::input, name,
                    "image: " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                        " pixels" + what);
    };
    if (!image.pixels || image.width < 1 || image.height < 1)
        refuse("E_IMAGE_DECODE", ", expected at least 1 x 1 and a pointer to them");
    if (image.stride < int64_t{3} * image.width)
        refuse("E_IMAGE_DECODE", ", but a row has only " + std::to_string(image.stride) + " bytes");
    if (int64_t{image.width} * image.height > kMaxImagePixels)
        refuse("E_IMAGE_TOO_LARGE", ", at most 50000000 are allowed\nscale it down");
}

// Room for `count` more, so that appending them cannot fail; grows as push_back does.
template <class T>
void make_room(std::vector<T>& to, size_t count) {
    const size_t needed = to.size() + count;
    if (needed > to.capacity()) to.reserve(std::max(needed, 2 * to.size()));
}

}  // namespace

int64_t Prompt::num_visual() const {
    return std::count_if(visual_row.begin(), visual_row.end(),
                         [](int64_t row) { return row >= 0; });
}

void Prompt::append(const std::vector<int64_t>& tokens) {
    make_room(ids, tokens.size());
    make_room(visual_row, tokens.size());
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    visual_row.resize(ids.size(), -1);
}

Model::Model(const std::string& path, const ModelOptions& options)
    : bundle_(Bundle::open(path, options.verify)), threads_(options.threads) {
    const int64_t longest = bundle_.max_model_len;
    max_len_ = options.max_len ? options.max_len : std::min(kDefaultMaxLen, longest);
    if (max_len_ < 1 || max_len_ > longest) {
        throw Error(Status::usage, "E_USAGE",
                    "max_len: expected 1 to " + std::to_string(longest) + " (the bundle's)");
    }
    read_processor();
    read_weights(options);
}

void Model::read_processor() {
    std::string file = "tokenizer.json";
    try {
        tokenizer_ = std::make_unique<Tokenizer>(Json::parse(bundle_.text(file)));
        file = "preprocessor_config.json";
        image_config_ = ImageConfig::parse(Json::parse(bundle_.text(file)));
        std::string source = kDefaultTemplate;
        for (const char* name :
             {"chat_template.json", "chat_template.jinja", "tokenizer_config.json"}) {
            if (!bundle_.texts.count(file = name)) continue;
            if (file == "chat_template.jinja") {
                source = bundle_.texts[file];
                break;
            }
            const Json json = Json::parse(bundle_.texts[file]);
            if (const std::string* found = named_template(json)) {
                source = *found;
                break;
            }
        }
        template_ = std::make_unique<ChatTemplate>(source);
        end_tokens_ = config().eos_token_ids;
        if (bundle_.texts.count(file = "generation_config.json")) {
            const Json json = Json::parse(bundle_.texts[file]);
            const std::set<int64_t> named = read_token_ids(json.find("eos_token_id"));
            if (!named.empty()) end_tokens_ = named;
        }
    } catch (const JsonError& error) {
        throw bundle_.refused("E_JSON", file, error.what());
    } catch (const Error& error) {
        if (error.status() != Status::bundle || error.name() == "E_MISSING_FILE") throw;
        throw bundle_.refused(error.name(), file, error.what());
    }
    if (const auto turn_end = tokenizer_->control_id("<|im_end|>")) end_tokens_.insert(*turn_end);
    if (end_tokens_.empty()) throw bundle_.refused("E_CONFIG", file, "no token ends an answer");
    const ModelConfig& c = config();
    const bool same = c.patch_size == image_config_.patch_size &&
                      c.temporal_patch_size == image_config_.temporal_patch_size &&
                      c.merge_size == image_config_.merge_size &&
                      tokenizer_->control_id(kImagePad) == c.image_token_id &&
                      tokenizer_->size() <= c.decoder.vocab_size;
    if (!same)
        throw bundle_.refused("E_CONFIG", "bundle.json",
                              "the tokenizer or preprocessor is of another model");
}

void Model::read_weights(const ModelOptions& options) {
    try {
        Safetensors file(*bundle_.weights);
        if (file.metadata["layout"] != "1" || file.metadata["decoder"].empty())
            throw JsonError("layout '" + file.metadata["layout"].substr(0, 40) + "', expected '1'");
        dtype_ = file.metadata["decoder"];
        bundle_.config.decoder.kv_type = kv_type_named(options.kv_dtype, dtype_);
        const Weights weights(std::move(file.tensors));
        decoder_weights_ = weights.decoder(config().decoder);
        vision_weights_ = weights.vision(config().vision, config().whole);
    } catch (const JsonError& error) {
        throw bundle_.refused("E_NATIVE", kWeights, error.what());
    } catch (const std::invalid_argument& error) {
        throw bundle_.refused("E_NATIVE", kWeights, error.what());
    }
    kernels_ = kernels_named(options.isa);
}

std::unique_ptr<Decoder> Model::make_decoder() const {
    return std::make_unique<Decoder>(config().decoder, decoder_weights_, *kernels_, threads_);
}

std::unique_ptr<Vision> Model::make_vision() const {
    return std::make_unique<Vision>(config().vision, vision_weights_, *kernels_, threads_);
}

void Model::append_text(Prompt& prompt, std::string_view text) const {
    prompt.append(tokenizer_->encode(text));
}

void Model::append_control(Prompt& prompt, const std::string& token) const {
    const auto id = tokenizer_->control_id(token);
    if (!id || *id == config().image_token_id) {
        throw Error(Status::input, "E_PROMPT",
                    "control token '" + token.substr(0, 80) +
                        "': not one of the checkpoint's, or one that only an image brings");
    }
    prompt.append({*id});
}

void Model::append_image(Prompt& prompt, const RgbImage& image) const {
    check_image(image);
    if (prompt.grids.size() == kMaxImages)
        throw Error(Status::input, "E_IMAGE_COUNT", "images: at most 8 a request");
    Patches patches = preprocess(image, image_config_);
    const int merge = image_config_.merge_size;
    const int64_t row = prompt.num_visual();
    const int64_t tokens = int64_t{patches.grid_h} * patches.grid_w / (merge * merge);
    auto& pixels = prompt.pixel_values;
    make_room(prompt.ids, static_cast<size_t>(tokens));
    make_room(prompt.visual_row, static_cast<size_t>(tokens));
    make_room(prompt.grids, 1);
    if (!pixels.empty()) make_room(pixels, patches.pixel_values.size());
    for (int64_t i = 0; i < tokens; ++i) {
        prompt.ids.push_back(config().image_token_id);
        prompt.visual_row.push_back(row + i);
    }
    prompt.grids.push_back({patches.grid_h, patches.grid_w});
    if (pixels.empty()) {
        pixels = std::move(patches.pixel_values);
    } else {
        pixels.insert(pixels.end(), patches.pixel_values.begin(), patches.pixel_values.end());
    }
}

std::string Model::render(const std::vector<Message>& messages) const {
    TemplateValue::List list;
    for (const Message& message : messages) {
        TemplateValue content = message.text;
        if (message.num_images) {
            TemplateValue::List parts;
            for (int i = 0; i < message.num_images; ++i)
                parts.push_back(TemplateValue::Mapping{{"type", "image"}});
            parts.push_back(TemplateValue::Mapping{{"type", "text"}, {"text", message.text}});
            content = parts;
        }
        list.push_back(TemplateValue::Mapping{{"role", message.role}, {"content", content}});
    }
    return template_->render({{"messages", list},
                              {"tools", TemplateValue::none()},
                              {"documents", TemplateValue::none()},
                              {"add_generation_prompt", true}});
}

// Characters of control tokens in the texts are swapped for private ones before the template sees
// them, and back after the rendered text was cut at the template's own control tokens.
Prompt Model::chat(const std::vector<Message>& messages,
                   const std::vector<RgbImage>& images) const {
    int64_t slots = 0, pixels = 0;
    std::set<char32_t> taken, control;
    const auto add = [](std::set<char32_t>& to, const std::string& text) {
        for (const char32_t c : decode_utf8(text)) to.insert(c);
    };
    for (const auto& [text, id] : tokenizer_->controls()) add(control, text);
    taken = control;
    add(taken, template_->source());
    for (size_t i = 0; i < messages.size(); ++i) {
        const Message& message = messages[i];
        const bool user = message.role == "user";
        if (!user && message.role != "system" && message.role != "assistant" &&
            message.role != "tool")
            throw Error(Status::input, "E_MESSAGES",
                        "role: expected system, user, assistant or tool");
        if (message.role == "system" && i > 0)
            throw Error(Status::input, "E_MESSAGES", "a system message may only stand first");
        if (message.num_images < 0 || (message.num_images && !user))
            throw Error(Status::input, "E_MESSAGES", "only a user message may hold images");
        slots += message.num_images;
        add(taken, message.text);
    }
    if (messages.empty()) throw Error(Status::input, "E_PROMPT", "prompt: empty\nask something");
    if (slots != static_cast<int64_t>(images.size()))
        throw Error(Status::input, "E_MESSAGES", "images: more or fewer than the messages hold");
    for (const RgbImage& image : images) {
        check_image(image);
        pixels += int64_t{image.width} * image.height;
    }
    if (pixels > kMaxRequestPixels) {
        throw Error(Status::input, "E_IMAGE_TOO_LARGE",
                    "images: more than 100000000 pixels together\nscale them down");
    }
    std::u32string hidden(control.begin(), control.end()), stand_ins;
    for (char32_t free = 0xf0000; stand_ins.size() < hidden.size(); ++free) {
        if (free > 0x10fffd)
            throw Error(Status::input, "E_TEXT", "text: uses every private character of Unicode");
        if (!taken.count(free)) stand_ins += free;
    }
    const auto swapped = [](const std::string& text, const std::u32string& from,
                            const std::u32string& to) {
        std::u32string codes = decode_utf8(text);
        for (char32_t& c : codes) {
            const size_t at = from.find(c);
            if (at != from.npos) c = to[at];
        }
        return encode_utf8(codes);
    };
    std::vector<Message> shielded = messages;
    for (Message& message : shielded) message.text = swapped(message.text, hidden, stand_ins);
    Prompt prompt;
    size_t image = 0;
    for (const Tokenizer::Piece& piece : tokenizer_->split_controls(render(shielded))) {
        if (piece.control < 0) {
            append_text(prompt, swapped(piece.text, stand_ins, hidden));
        } else if (piece.control != config().image_token_id) {
            append_control(prompt, piece.text);
        } else {
            if (image < images.size()) append_image(prompt, images[image]);
            ++image;
        }
    }
    if (image != images.size() || prompt.ids.empty())
        throw bundle_.refused("E_TEMPLATE", "tokenizer_config.json",
                              "chat template: made " + std::to_string(image) + " image slots for " +
                                  std::to_string(images.size()) + " images");
    return prompt;
}

}  // namespace latrt
