#include "runtime/session.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "runtime/error.h"

namespace latrt {
namespace {

constexpr size_t kTokensAtOnce = 256;
constexpr int64_t kDraftRows = 4;  // as la_trt/engines/native.py: beyond these a row costs much

double now_ms() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(time).count();
}

bool all_finite(const std::vector<float>& values) {
    return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
}

void append(std::vector<int64_t>& to, const std::vector<int64_t>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

[[noreturn]] void refuse(Status status, const char* name, const std::string& what) {
    throw Error(status, name, what);
}

}  // namespace

void SessionOptions::check() const {
    policy.check();
    sampling.check();
    if (max_tokens < 1 || max_tokens > 1 << 30)
        refuse(Status::usage, "E_OPTION", "max_tokens: expected an integer >= 1");
    if (sample < 0) refuse(Status::usage, "E_OPTION", "sample: expected an integer >= 0");
    if (reserve_tokens < 0 || reserve_tokens > 1 << 30)
        refuse(Status::usage, "E_OPTION", "reserve_tokens: expected an integer >= 0");
    if (speculate < 0 || speculate > kMaxSpeculate)
        refuse(Status::usage, "E_OPTION", "speculate: expected 0 to 16 tokens");
    if (stop.size() > 4) refuse(Status::usage, "E_OPTION", "stop: at most 4 strings");
    for (const std::string& text : stop) {
        const size_t size = decode_utf8(text).size();
        if (size < 1 || size > 256)
            refuse(Status::usage, "E_OPTION", "stop: strings of 1 to 256 characters");
    }
    for (const auto* ids : {&stop_token_ids, &forced}) {
        if (std::any_of(ids->begin(), ids->end(), [](int64_t id) { return id < 0; }))
            refuse(Status::usage, "E_OPTION", "stop_token_ids, forced: token ids >= 0");
    }
}

Session::Session(std::shared_ptr<const Model> model, SessionOptions options)
    : model_(std::move(model)),
      decoder_(model_->make_decoder()),
      reflection_open_(model_->tokenizer().token_id("<REFLECTION>")),
      reflection_close_(model_->tokenizer().token_id("</REFLECTION>")) {
    for (const std::string name :
         {"SUMMARY>", "CAPTION>", "REASONING>", "REFLECTION>", "CONCLUSION>"}) {
        for (const std::string open : {"<", "</"}) {
            if (const auto id = model_->tokenizer().token_id(open + name)) tags_.insert(*id);
        }
    }
    reset(std::move(options));
}

void Session::reset(SessionOptions options) {
    options.check();
    const int64_t vocab_size = model_->config().decoder.vocab_size;
    for (const int64_t id : options.forced) {
        if (id >= vocab_size)
            refuse(Status::usage, "E_OPTION",
                   "forced: token ids must be below " + std::to_string(vocab_size));
    }
    if (options.speculate && !drafter_) drafter_ = std::make_unique<Drafter>();
    if (!options.speculate) drafter_.reset();
    if (decoder_->fits(0, 0)) decoder_->free(0);
    started_ = false;
    options_ = std::move(options);
    prompt_ = {};
    queue_ = {};
    visual_embeds_.clear(), first_pass_.clear(), open_reflections_.clear();
    key_index_.clear(), key_source_.clear();
    entropy_ = 0, length_ = 0, next_position_ = 0, num_visual_ = 0;
    fired_at_ = -1, num_injected_ = 0;
    given_.reset(), reinject_.reset();
    guesses_.clear(), num_drafted_ = 0;
    sampler_.reset(), select_random_.reset(), stream_.reset();
    logits_.clear(), mass_.clear();
    result_ = {};
}

Prompt& Session::prompt() {
    if (started_)
        refuse(Status::usage, "E_STATE",
               "the answer has begun\nreset the session for a new prompt");
    return prompt_;
}

// Everything before the first forward pass. May be called again where it throws.
void Session::start() {
    const int64_t length = static_cast<int64_t>(prompt_.ids.size());
    if (length == 0) refuse(Status::input, "E_PROMPT", "prompt: no tokens");
    if (length + options_.max_tokens > model_->max_len()) {
        refuse(Status::input, "E_CONTEXT_LENGTH",
               "context length: prompt of " + std::to_string(length) + " tokens and max_tokens " +
                   std::to_string(options_.max_tokens) + " exceed " +
                   std::to_string(model_->max_len()) +
                   "\nuse a smaller image, a shorter prompt or fewer tokens");
    }
    num_visual_ = prompt_.num_visual();
    const Policy& policy = options_.policy;
    int64_t needed = length + options_.max_tokens + options_.reserve_tokens;
    if (policy.injects()) {
        needed += policy.num_selected(num_visual_) *
                  std::min(policy.max_reflections, options_.max_tokens);
    }
    capacity_ = std::min(needed, model_->max_len());
    if (!decoder_->alloc(0, capacity_)) {
        refuse(Status::machine, "E_MEMORY",
               "no memory for the KV cache of " + std::to_string(capacity_) +
                   " tokens\nask for fewer tokens");
    }
    next_position_ = 0;
    prompt_positions_ = prompt_positions(prompt_.visual_row, prompt_.grids,
                                         model_->config().merge_size, next_position_);
    queue_ = {prompt_.ids, prompt_.visual_row, prompt_positions_};
    key_index_.clear();
    for (int64_t i = 0; i < length; ++i) {
        if (prompt_.visual_row[static_cast<size_t>(i)] >= 0) key_index_.push_back(i);
    }
    key_source_.resize(key_index_.size());
    std::iota(key_source_.begin(), key_source_.end(), int64_t{0});
    sampler_.emplace(options_.sampling, prompt_.ids, static_cast<uint64_t>(options_.sample));
    select_random_.emplace(std::vector<uint64_t>{static_cast<uint64_t>(options_.sampling.seed),
                                                 static_cast<uint64_t>(options_.sample), 1});
    stream_.emplace(options_.stop);
    if (drafter_) drafter_->begin();
    see();
    result_.prompt_tokens = length, result_.visual_tokens = num_visual_;
    started_ = true;
}

// The vision tower over all images at once, and its embeddings in the order of the images.
void Session::see() {
    if (prompt_.grids.empty()) return;
    const double started = now_ms();
    const ModelConfig& config = model_->config();
    const size_t unit = static_cast<size_t>(config.vision.merge_unit);
    const size_t values = static_cast<size_t>(config.vision.patch_dim) * unit;
    const size_t width = static_cast<size_t>(config.vision.out_width);
    std::vector<float> pixels;
    std::vector<size_t> order;
    Angles angles;
    VisionInput input = {};
    for (const Grid grid : prompt_.grids) {
        const VisionLayout layout = vision_layout(grid, config);
        const size_t first = order.size();
        for (const int64_t token : layout.token_order) {
            order.push_back(first + static_cast<size_t>(token));
            const float* source = prompt_.pixel_values.data() + order.back() * values;
            pixels.insert(pixels.end(), source, source + values);
        }
        angles.cos.insert(angles.cos.end(), layout.angles.cos.begin(), layout.angles.cos.end());
        angles.sin.insert(angles.sin.end(), layout.angles.sin.begin(), layout.angles.sin.end());
        input.windows.insert(input.windows.end(), layout.windows.begin(), layout.windows.end());
        input.frames.push_back(grid.h * grid.w);
    }
    input.pixel_values = pixels.data();
    input.cos = angles.cos.data(), input.sin = angles.sin.data();
    input.num_patches = static_cast<int>(order.size() * unit);
    std::vector<float> embeds(order.size() * width);
    model_->make_vision()->forward(input, embeds.data());
    visual_embeds_.resize(embeds.size());
    for (size_t i = 0; i < order.size(); ++i) {
        std::copy_n(embeds.begin() + static_cast<std::ptrdiff_t>(i * width), width,
                    visual_embeds_.begin() + static_cast<std::ptrdiff_t>(order[i] * width));
    }
    prompt_.pixel_values = {};
    result_.clock.vision_ms = now_ms() - started;
}

bool Session::step(std::vector<Event>& events) {
    if (result_.finish != Finish::none) return false;
    if (!started_) start();
    try {
        if (!follow()) {
            const double started = now_ms();
            prepare();
            forward(draft());
            spend(now_ms() - started);
        }
        accept(events);
    } catch (...) {  // no memory: what the KV cache holds is unknown
        result_.finish = Finish::cancelled;
        throw;
    }
    return result_.finish == Finish::none;
}

// Fills the queue with the last token, after the visual tokens that go before it.
void Session::prepare() {
    if (!queue_.ids.empty()) return;
    const int64_t token = result_.tokens.back();
    const int64_t step = static_cast<int64_t>(result_.tokens.size()) - 1;
    if (given_) {
        inject(step);
    } else if (fires(token, step)) {
        fired_at_ = step;
        inject(step);
    }
    queue_.ids.push_back(token);
    queue_.visual_row.push_back(-1);
    for (auto& axis : queue_.positions) axis.push_back(next_position_);
    ++next_position_;
}

bool Session::fires(int64_t token, int64_t step) const {
    return options_.policy.fires(step, reflection_open_ == token, entropy_,
                                 fired_at_ < 0 ? -1 : step - fired_at_);
}

void Session::inject(int64_t step) {
    const double started = now_ms();
    const Policy& policy = options_.policy;
    Event event{Event::Kind::reinject, step};
    event.inject = given_ ? given_->inject : policy.inject;
    event.select = given_ ? Select::given : policy.select;
    event.skipped = obstacle(given_ ? static_cast<int64_t>(given_->selected.size())
                                    : policy.num_selected(num_visual_));
    if (event.skipped.empty()) {
        event.selected = given_ ? given_->selected
                                : select_tokens(policy, num_visual_, result_.step_masses,
                                                first_pass_, *select_random_);
        if (!given_) ++num_injected_;
        place(event.selected, event.inject);
    }
    if (event.inject == Inject::kv || !event.skipped.empty()) event.ms = now_ms() - started;
    given_.reset();
    reinject_ = std::move(event);
}

// Why nothing can be injected now. Every token still promised by max_tokens must keep its room.
std::string Session::obstacle(int64_t count) const {
    if (count == 0) return "no_visual_tokens";
    if (!given_ && num_injected_ >= options_.policy.max_reflections) return "max_reflections";
    const int64_t promised =
        options_.max_tokens - (static_cast<int64_t>(result_.tokens.size()) - 1);
    return length_ + count + promised > capacity_ ? "no_room" : "";
}

void Session::place(const std::vector<int64_t>& selected, Inject inject) {
    const ModelConfig& config = model_->config();
    const int64_t first = length_;
    const Positions positions =
        injection_positions(prompt_.grids, config.merge_size, selected, next_position_);
    if (inject == Inject::embed) {
        queue_.ids.assign(selected.size(), config.image_token_id);
        queue_.visual_row = selected;
        queue_.positions = positions;
    } else {
        place_kv(selected, positions);
    }
    append_keys(selected, first);
}

// One call for each image with a selected token: all of its copies move by the same.
void Session::place_kv(const std::vector<int64_t>& selected, const Positions& positions) {
    std::vector<int64_t> originals;
    for (const int64_t source : selected)
        originals.push_back(key_index_[static_cast<size_t>(source)]);
    for (size_t begin = 0, end; begin < selected.size(); begin = end) {
        const auto delta_at = [&](size_t i) {
            return positions[0][i] - prompt_positions_[0][static_cast<size_t>(originals[i])];
        };
        const int64_t delta = delta_at(begin);
        for (end = begin; end < selected.size() && delta_at(end) == delta;) ++end;
        const Angles angles = shift_angles(delta, model_->config());
        const int count = static_cast<int>(end - begin);
        decoder_->kv_reinject(0, originals.data() + begin, count, static_cast<int>(length_),
                              angles.cos.data(), angles.sin.data());
        length_ += count;
    }
}

void Session::append_keys(const std::vector<int64_t>& selected, int64_t first) {
    for (size_t i = 0; i < selected.size(); ++i)
        key_index_.push_back(first + static_cast<int64_t>(i));
    append(key_source_, selected);
}

bool Session::wants_mass() const {
    if (num_visual_ == 0) return false;
    return options_.policy.needs_mass() || (options_.masses && !result_.tokens.empty());
}

// What may follow the token just prepared, as far as max_tokens would let it be answered.
std::vector<int64_t> Session::draft() {
    if (!drafter_ || result_.tokens.empty()) return {};
    const int64_t left = options_.max_tokens - static_cast<int64_t>(result_.tokens.size()) - 1;
    return drafter_->guess(std::min({options_.speculate, kDraftRows - 1, left}));
}

// Whether the last token is the one that ran as a guess, with nothing to go in before it. If so
// it counts as prepared and forwarded; if not, what ran behind it is forgotten.
bool Session::follow() {
    if (guesses_.empty()) return false;
    const int64_t token = result_.tokens.back();
    const int64_t step = static_cast<int64_t>(result_.tokens.size()) - 1;
    if (given_ || guesses_.front().token != token || fires(token, step)) {
        settle();
        return false;
    }
    ++next_position_, ++length_;
    logits_.swap(guesses_.front().logits), mass_.swap(guesses_.front().mass);
    guesses_.pop_front();
    if (guesses_.empty()) settle();
    return true;
}

// Counts the guesses of the last pass; those that were not followed were wrong.
void Session::settle() {
    const int64_t accepted = num_drafted_ - static_cast<int64_t>(guesses_.size());
    if (drafter_) drafter_->count(num_drafted_, accepted);
    result_.num_drafted += num_drafted_, result_.num_accepted += accepted;
    guesses_.clear(), num_drafted_ = 0;
}

// Runs the whole queue, at most 256 tokens at a time, then the guesses beside the last of them;
// logits and mass are of the queue's last token, those of the guesses are kept.
void Session::forward(const std::vector<int64_t>& drafted) {
    const ModelConfig& config = model_->config();
    const size_t total = queue_.ids.size(), vocab = static_cast<size_t>(config.decoder.vocab_size);
    const bool with_mass = wants_mass();
    for (size_t i = 0; i < drafted.size(); ++i) {
        queue_.ids.push_back(drafted[i]), queue_.visual_row.push_back(-1);
        for (auto& axis : queue_.positions)
            axis.push_back(next_position_ + static_cast<int64_t>(i));
        guesses_.push_back({drafted[i], std::vector<float>(vocab), {}});
    }
    num_drafted_ = static_cast<int64_t>(drafted.size());
    logits_.resize(vocab);
    std::vector<float> mass;
    for (size_t low = 0; low < total; low += kTokensAtOnce) {
        const size_t own = std::min(total, low + kTokensAtOnce);
        const bool last = own == total;
        const size_t high = own + (last ? drafted.size() : 0);
        Positions part;
        for (size_t axis = 0; axis < 3; ++axis) {
            const auto begin = queue_.positions[axis].begin();
            part[axis].assign(begin + static_cast<std::ptrdiff_t>(low),
                              begin + static_cast<std::ptrdiff_t>(high));
        }
        const Angles angles = mrope_angles(part, config);
        const int past = static_cast<int>(length_), count = static_cast<int>(own - low);
        if (last && with_mass) mass.resize(static_cast<size_t>(past + count));
        DecoderStep step = {};
        step.ids = queue_.ids.data() + low;
        if (!visual_embeds_.empty()) {
            step.visual_row = queue_.visual_row.data() + low;
            step.visual_embeds = visual_embeds_.data();
        }
        step.cos = angles.cos.data(), step.sin = angles.sin.data();
        step.num_tokens = static_cast<int>(high - low);
        step.sequences.push_back({0, past, count, last ? logits_.data() : nullptr,
                                  mass.empty() ? nullptr : mass.data()});
        for (size_t i = 0; last && i < guesses_.size(); ++i) {
            Guess& guess = guesses_[i];
            const int before = past + count + static_cast<int>(i);
            if (with_mass) guess.mass.resize(static_cast<size_t>(before + 1));
            step.sequences.push_back(
                {0, before, 1, guess.logits.data(), with_mass ? guess.mass.data() : nullptr});
        }
        decoder_->forward(step);
        length_ += count;
    }
    queue_ = {};
    mass_.clear();
    if (!with_mass) return;
    mass_ = mass_by_token(mass);
    for (Guess& guess : guesses_) guess.mass = mass_by_token(guess.mass);
}

// A copy's share counts for its source.
std::vector<float> Session::mass_by_token(const std::vector<float>& mass_by_key) const {
    std::vector<double> sums(static_cast<size_t>(num_visual_));
    for (size_t i = 0; i < key_index_.size(); ++i) {
        sums[static_cast<size_t>(key_source_[i])] +=
            mass_by_key[static_cast<size_t>(key_index_[i])];
    }
    return {sums.begin(), sums.end()};
}

// Counts the time of a step in the stage that the answer is in.
void Session::spend(double ms) {
    Clock& clock = result_.clock;
    if (result_.tokens.empty()) {
        clock.prefill_ms += ms;
    } else if (!reinject_ || !reinject_->skipped.empty()) {
        clock.decode_ms += ms;
    } else if (reinject_->inject == Inject::embed) {
        clock.reinject_ms += ms;
        reinject_->ms += ms;
    } else {
        clock.reinject_ms += reinject_->ms;
        clock.decode_ms += ms - reinject_->ms;
    }
}

void Session::accept(std::vector<Event>& events) {
    if (reinject_) {
        result_.reinjections.push_back(*reinject_);
        events.push_back(std::move(*reinject_));
        reinject_.reset();
    }
    const bool finite = all_finite(logits_) && all_finite(mass_);
    note_mass();
    if (!finite) {
        stream_->flush();
        return finish(Finish::numerical_error, events);
    }
    if (options_.policy.trigger == Trigger::entropy) entropy_ = entropy_nats(logits_);
    Event event{Event::Kind::token, static_cast<int64_t>(result_.tokens.size())};
    const int64_t token = event.token_id = next_token(event.forced);
    sampler_->accept(token);
    result_.tokens.push_back(token);
    if (drafter_) drafter_->learn(token);
    event.logprob = logits_[static_cast<size_t>(token)] - log_partition(logits_);
    event.text = advance_text(token);
    events.push_back(event);
    const bool opened = reflection_open_ == token;
    if (opened) {
        open_reflections_.push_back(result_.num_reflections++);
    }
    if (opened || (reflection_close_ == token && !open_reflections_.empty())) {
        Event reflection{Event::Kind::reflection, event.step};
        reflection.index = open_reflections_.back(), reflection.opened = opened;
        if (!opened) open_reflections_.pop_back();
        events.push_back(std::move(reflection));
    }
    if (result_.finish != Finish::none) finish(result_.finish, events);
}

void Session::note_mass() {
    if (mass_.empty()) return;
    if (result_.tokens.empty()) {
        first_pass_ = mass_;
    } else {
        result_.step_masses.push_back(mass_);
    }
}

int64_t Session::next_token(bool& forced) {
    const size_t step = result_.tokens.size();
    forced = true;
    if (step < options_.forced.size()) return options_.forced[step];
    if (options_.policy.close_at_once && step && reflection_open_ == result_.tokens.back() &&
        reflection_close_)
        return *reflection_close_;
    forced = false;
    const bool banned = !options_.policy.allow_reflection && reflection_open_;
    return sampler_->draw(logits_, banned ? *reflection_open_ : -1);
}

// The text that became printable; decides whether the answer ends here.
std::string Session::advance_text(int64_t token) {
    const auto& stops = options_.stop_token_ids;
    const bool ends = std::find(stops.begin(), stops.end(), token) != stops.end() ||
                      (model_->end_tokens().count(token) && !options_.ignore_eos);
    std::string text;
    const bool skip = model_->tokenizer().special(token) && !tags_.count(token);
    if (!ends) text = stream_->push(skip ? "" : model_->tokenizer().token_bytes(token));
    if (ends || stream_->stopped()) {
        result_.finish = Finish::stop;
    } else if (static_cast<int64_t>(result_.tokens.size()) >= options_.max_tokens) {
        result_.finish = Finish::length;
    }
    if (result_.finish != Finish::none) text += stream_->flush();
    if (stream_->stopped()) result_.finish = Finish::stop;
    result_.text = stream_->text();
    return text;
}

void Session::finish(Finish how, std::vector<Event>& events) {
    settle();
    result_.text = stream_ ? stream_->text() : "";
    Event event{Event::Kind::done, static_cast<int64_t>(result_.tokens.size())};
    event.finish = how;
    events.push_back(std::move(event));
    result_.finish = how;
}

void Session::reinject(std::optional<std::vector<int64_t>> selected, Inject inject) {
    const int64_t num_visual = started_ ? num_visual_ : prompt_.num_visual();
    if (!started_ || result_.finish != Finish::none)
        refuse(Status::usage, "E_REINJECT", "reinject: between the first step and the last");
    if (!selected) {
        selected.emplace(static_cast<size_t>(num_visual));
        std::iota(selected->begin(), selected->end(), int64_t{0});
    }
    int64_t last = -1;
    for (const int64_t index : *selected) {
        if (index <= last || index >= num_visual)
            refuse(
                Status::usage, "E_REINJECT",
                "reinject: expected ascending visual tokens below " + std::to_string(num_visual));
        last = index;
    }
    given_ = Given{std::move(*selected), inject};
}

void Session::cancel(std::vector<Event>& events) {
    if (result_.finish != Finish::none) return;
    const std::string rest = stream_ ? stream_->flush() : "";
    finish(Finish::cancelled, events);
    events.back().text = rest;
}

void Session::read_kv(int layer, int head, int position, float* k, float* v) const {
    decoder_->read_kv(0, layer, head, position, k, v);
}

}  // namespace latrt
