// The loop: prefill, decode, look again, for one answer at a time.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/drafter.h"
#include "runtime/events.h"
#include "runtime/model.h"
#include "runtime/policy.h"
#include "runtime/sampling.h"
#include "runtime/text_stream.h"

namespace latrt {

// As GenerationOptions in Python. `sample` tells answers to one prompt apart under one seed.
// `reserve_tokens`: KV positions kept for Session::reinject besides the policy's own. `speculate`:
// tokens guessed ahead in a pass, out of this answer and the session's earlier ones; they change no
// answer.
struct SessionOptions {
    Policy policy;
    SamplingParams sampling;
    int64_t max_tokens = 512, sample = 0, reserve_tokens = 0, speculate = 0;
    std::vector<std::string> stop;
    std::vector<int64_t> stop_token_ids, forced;
    bool ignore_eos = false, masses = false;

    // Throws Error E_OPTION, E_POLICY, E_SAMPLING.
    void check() const;
};

// One prompt and its answer, with an engine of its own: sessions of one model may run on
// different threads at once, one session on one thread at a time.
class Session {
 public:
    Session(std::shared_ptr<const Model> model, SessionOptions options);

    // The prompt, before the first step. Throws Error E_STATE afterwards.
    Prompt& prompt();

    // The same at any time; its pixel values are gone once they were seen.
    const Prompt& asked() const { return prompt_; }

    // Another answer from nothing: prompt, KV cache and result are forgotten. What answers said is
    // remembered for guesses, as long as `speculate` is not 0.
    void reset(SessionOptions options);

    // Runs until the next token (the first time: vision tower and prompt too; not at all where a
    // pass before has run a guess that came true) and appends its events; false once the answer
    // has ended. Throws Error E_CONTEXT_LENGTH, E_PROMPT, E_MEMORY.
    // Where it throws before the first forward pass it may be called again; a later failure ends
    // the answer, cancelled.
    bool step(std::vector<Event>& events);

    // Puts visual tokens in before the next forward pass, whatever the policy: those given
    // (ascending, no repeats), or all of them. The next step reports it. Throws Error E_REINJECT.
    void reinject(std::optional<std::vector<int64_t>> selected, Inject inject);

    // Ends the answer here; the last event holds the text that was held back.
    void cancel(std::vector<Event>& events);

    const Result& result() const { return result_; }
    const Model& model() const { return *model_; }

    // Key and value at a layer, KV head and position (D) each; tests hold engines together by it.
    void read_kv(int layer, int head, int position, float* k, float* v) const;
    int64_t length() const { return length_; }

 private:
    struct Chunk {
        std::vector<int64_t> ids, visual_row;
        Positions positions;
    };
    struct Given {
        std::vector<int64_t> selected;
        Inject inject;
    };
    // A token that ran behind the last one, before anyone knew whether it comes.
    struct Guess {
        int64_t token;
        std::vector<float> logits, mass;  // of the pass, as logits_ and mass_
    };

    void start();
    void see();
    void prepare();
    bool fires(int64_t token, int64_t step) const;
    void inject(int64_t step);
    std::string obstacle(int64_t count) const;
    void place(const std::vector<int64_t>& selected, Inject inject);
    void place_kv(const std::vector<int64_t>& selected, const Positions& positions);
    void append_keys(const std::vector<int64_t>& selected, int64_t first);
    std::vector<int64_t> draft();
    void forward(const std::vector<int64_t>& drafted);
    std::vector<float> mass_by_token(const std::vector<float>& mass_by_key) const;
    bool follow();
    void settle();
    bool wants_mass() const;
    void note_mass();
    void spend(double ms);
    void accept(std::vector<Event>& events);
    int64_t next_token(bool& forced);
    std::string advance_text(int64_t token);
    void finish(Finish how, std::vector<Event>& events);

    std::shared_ptr<const Model> model_;
    SessionOptions options_;
    std::unique_ptr<Decoder> decoder_;
    std::optional<int64_t> reflection_open_, reflection_close_;
    std::set<int64_t> tags_;            // shown, special or not
    std::unique_ptr<Drafter> drafter_;  // where `speculate` is not 0

    // Of one answer.
    bool started_ = false;
    Prompt prompt_;
    Positions prompt_positions_;
    int64_t capacity_ = 0, length_ = 0, next_position_ = 0, num_visual_ = 0;
    std::vector<float> visual_embeds_, logits_, mass_;
    std::vector<int64_t> key_index_, key_source_;  // visual keys of the slot, copies included
    Chunk queue_;
    std::deque<Guess> guesses_;  // whose passes have run; their keys lie behind length_
    int64_t num_drafted_ = 0;    // of the last pass
    std::optional<Sampler> sampler_;
    std::optional<Random> select_random_;
    std::optional<TextStream> stream_;
    std::vector<float> first_pass_;
    std::vector<int64_t> open_reflections_;
    double entropy_ = 0;
    int64_t fired_at_ = -1, num_injected_ = 0;
    std::optional<Given> given_;
    std::optional<Event> reinject_;
    Result result_;
};

}  // namespace latrt
