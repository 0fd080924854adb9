// What a session reports while it generates, and the finished answer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/policy.h"

namespace latrt {

enum class Finish { none, stop, length, numerical_error, cancelled };

// One event. `step` counts the generated tokens from 0.
struct Event {
    enum class Kind { token, reflection, reinject, done } kind;
    int64_t step = 0;

    // token: `text` is what became printable with it (cancelled: what was held back)
    int64_t token_id = 0;
    std::string text = {};
    double logprob = 0;
    bool forced = false;

    // reflection: opened or closed
    int64_t index = 0;
    bool opened = false;

    // reinject: before token `step`; `skipped` is why not, "" if it took place
    Inject inject = Inject::embed;
    Select select = Select::all;
    std::vector<int64_t> selected = {};
    double ms = 0;
    std::string skipped = {};

    Finish finish = Finish::none;  // done
};

// Milliseconds of the engine by stage.
struct Clock {
    double vision_ms = 0, prefill_ms = 0, decode_ms = 0, reinject_ms = 0;
};

struct Result {
    std::string text;
    Finish finish = Finish::none;
    std::vector<int64_t> tokens;
    std::vector<Event> reinjections;
    std::vector<std::vector<float>> step_masses;  // of each generated token that was forwarded
    int64_t prompt_tokens = 0, visual_tokens = 0, num_reflections = 0;
    int64_t num_drafted = 0, num_accepted = 0;  // guesses, and those that came true
    Clock clock;
};

}  // namespace latrt
