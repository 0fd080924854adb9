// The C API from outside: statuses, lifetimes, re-injection by hand, sessions on many threads.
#include <latrt/latrt.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/check.h"

namespace {

const std::string kBundle = std::string(LATRT_GOLDEN) + "/bundle";

using Model = std::unique_ptr<latrt_model, void (*)(latrt_model*)>;
using Session = std::unique_ptr<latrt_session, void (*)(latrt_session*)>;

Model open_model() {
    latrt_model* model = nullptr;
    latrt_model_options options;
    latrt_model_options_init(&options);
    options.threads = 2;
    CHECK(latrt_open(kBundle.c_str(), &options, &model) == LATRT_OK);
    return {model, latrt_close};
}

latrt_session_options greedy(int64_t max_tokens) {
    latrt_session_options options;
    latrt_session_options_init(&options);
    options.max_tokens = max_tokens;
    options.ignore_eos = 1;
    return options;
}

Session start(const Model& model, const latrt_session_options& options) {
    latrt_session* session = nullptr;
    CHECK(latrt_session_create(model.get(), &options, &session) == LATRT_OK);
    return {session, latrt_session_destroy};
}

struct Picture {
    std::vector<uint8_t> rgb = std::vector<uint8_t>(70 * 60 * 3);
    latrt_image image;
    Picture() {
        for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>(i * 37 % 251);
        image = {rgb.data(), 70, 60, 0};
    }
};

std::vector<int64_t> run(latrt_session* session) {
    CHECK(latrt_run(session, nullptr, nullptr) == LATRT_OK);
    latrt_result result;
    CHECK(latrt_get_result(session, &result) == LATRT_OK);
    return {result.tokens, result.tokens + result.num_tokens};
}

bool failed(latrt_status got, latrt_status want, const char* name) {
    return got == want && std::strcmp(latrt_error_name(), name) == 0 && *latrt_error_message();
}

// A static object that calls us before main and after it, when this thread's error texts are gone.
struct Static {
    Static() {
        if (!failed(open(), LATRT_BUNDLE, "E_MISSING_FILE")) leave("before");
    }
    ~Static() {
        // Its model's threads, too, were there after this object was.
        if (session && (ask(session) != LATRT_OK || latrt_run(session, nullptr, nullptr)))
            leave("answered after");
        latrt_session_destroy(session);
        latrt_close(model);
        if (open() != LATRT_BUNDLE || *latrt_error_name() || *latrt_error_message()) leave("after");
    }
    static latrt_status open() {
        latrt_model* model = nullptr;
        return latrt_open("/no/such/bundle/of/a/name/too/long/to/be/kept/in/a/string", nullptr,
                          &model);
    }
    latrt_model* model = nullptr;
    latrt_session* session = nullptr;

    static latrt_status ask(latrt_session* session) {
        const Picture picture;
        return latrt_ask(session, &picture.image, 1, "What?", nullptr);
    }
    [[noreturn]] static void leave(const char* when) {
        std::printf("FAILED: a call %s main: %s\n", when, latrt_error_name());
        std::fflush(stdout);
        std::_Exit(1);
    }
};

Static kept;

}  // namespace

TEST(capi_answers_after_main) {
    Model model = open_model();
    kept.session = start(model, greedy(4)).release();
    kept.model = model.release();
}

TEST(capi_refuses_wrong_calls) {
    latrt_model* model = nullptr;
    CHECK(failed(latrt_open("/no/such/bundle", nullptr, &model), LATRT_BUNDLE, "E_MISSING_FILE"));
    CHECK(model == nullptr);
    CHECK(failed(latrt_open(nullptr, nullptr, &model), LATRT_USAGE, "E_USAGE"));
    latrt_model_options slow = {"sse9", 1, 0, "auto", 0};
    CHECK(failed(latrt_open(kBundle.c_str(), &slow, &model), LATRT_USAGE, "E_USAGE"));
    latrt_model_options narrow_kv = {"auto", 1, 0, "int4", 0};
    CHECK(failed(latrt_open(kBundle.c_str(), &narrow_kv, &model), LATRT_USAGE, "E_USAGE"));
    latrt_model_options longer = {"auto", 1, 513, "auto", 0};
    CHECK(failed(latrt_open(kBundle.c_str(), &longer, &model), LATRT_USAGE, "E_USAGE"));
    const Model good = open_model();
    latrt_session_options options = greedy(4);
    latrt_session* session = nullptr;
    options.policy = "nothing";
    CHECK(failed(latrt_session_create(good.get(), &options, &session), LATRT_USAGE, "E_POLICY"));
    options = greedy(0);
    CHECK(failed(latrt_session_create(good.get(), &options, &session), LATRT_USAGE, "E_OPTION"));
    const Session s = start(good, greedy(4));
    const latrt_event* events;
    size_t count;
    CHECK(failed(latrt_step(s.get(), &events, &count), LATRT_INPUT, "E_PROMPT"));
    const Picture picture;
    latrt_image thin = {picture.rgb.data(), 1000, 2, 0};
    CHECK(failed(latrt_append_image(s.get(), &thin), LATRT_INPUT, "E_IMAGE_ASPECT"));
    latrt_image narrow = {picture.rgb.data(), 70, 60, 100};
    CHECK(failed(latrt_append_image(s.get(), &narrow), LATRT_INPUT, "E_IMAGE_DECODE"));
    CHECK(failed(latrt_append_text(s.get(), "\xff", 1), LATRT_INPUT, "E_TEXT"));
    CHECK(failed(latrt_append_control(s.get(), "<|image_pad|>"), LATRT_INPUT, "E_PROMPT"));
    const int64_t outside = 1 << 20;
    CHECK(failed(latrt_append_tokens(s.get(), &outside, 1), LATRT_INPUT, "E_PROMPT"));
    CHECK(failed(latrt_ask(s.get(), nullptr, 0, " ", nullptr), LATRT_INPUT, "E_PROMPT"));
    CHECK(failed(latrt_reinject(s.get(), nullptr, 0, "embed"), LATRT_USAGE, "E_REINJECT"));
    const std::string words(3000, 'x');
    CHECK(latrt_append_text(s.get(), words.data(), words.size()) == LATRT_OK);
    CHECK(failed(latrt_step(s.get(), &events, &count), LATRT_INPUT, "E_CONTEXT_LENGTH"));
    options = greedy(4);
    CHECK(latrt_session_reset(s.get(), &options) == LATRT_OK);  // and it goes on
    CHECK(latrt_append_text(s.get(), "hi", 2) == LATRT_OK);
    CHECK(latrt_step(s.get(), &events, &count) == LATRT_OK && count >= 1);
    CHECK(failed(latrt_append_text(s.get(), "x", 1), LATRT_USAGE, "E_STATE"));
}

TEST(capi_pieces_make_the_same_prompt_as_a_question) {
    const Model model = open_model();
    const Picture picture;
    const Session asked = start(model, greedy(6)), built = start(model, greedy(6));
    CHECK(latrt_ask(asked.get(), &picture.image, 1, "How many?", "Be brief.") == LATRT_OK);
    const auto text = [&](const std::string& t) {
        CHECK(latrt_append_text(built.get(), t.data(), t.size()) == LATRT_OK);
    };
    const auto control = [&](const char* c) {
        CHECK(latrt_append_control(built.get(), c) == LATRT_OK);
    };
    control("<|im_start|>"), text("system\nBe brief."), control("<|im_end|>"), text("\n");
    control("<|im_start|>"), text("user\n"), control("<|vision_start|>");
    CHECK(latrt_append_image(built.get(), &picture.image) == LATRT_OK);
    control("<|vision_end|>"), text("How many?"), control("<|im_end|>"), text("\n");
    control("<|im_start|>"), text("assistant\n");
    const int64_t *first, *second;
    size_t size, other;
    CHECK(latrt_get_prompt(asked.get(), &first, &size) == LATRT_OK);
    CHECK(latrt_get_prompt(built.get(), &second, &other) == LATRT_OK);
    CHECK(size == other && std::memcmp(first, second, size * sizeof *first) == 0);
    CHECK(run(asked.get()) == run(built.get()));
}

TEST(capi_reinjects_by_hand_where_it_fits) {
    const Model model = open_model();
    const Picture picture;
    latrt_session_options options = greedy(8);
    options.policy = "text", options.reserve_tokens = 4, options.masses = 1;
    const Session s = start(model, options);
    CHECK(latrt_ask(s.get(), &picture.image, 1, "How many?", nullptr) == LATRT_OK);
    const latrt_event* events;
    size_t count;
    CHECK(latrt_step(s.get(), &events, &count) == LATRT_OK);
    const int64_t some[] = {0, 2, 3}, wrong[] = {2, 2}, far[] = {1000};
    CHECK(failed(latrt_reinject(s.get(), wrong, 2, "kv"), LATRT_USAGE, "E_REINJECT"));
    CHECK(failed(latrt_reinject(s.get(), far, 1, "kv"), LATRT_USAGE, "E_REINJECT"));
    CHECK(latrt_reinject(s.get(), some, 3, "kv") == LATRT_OK);
    CHECK(latrt_step(s.get(), &events, &count) == LATRT_OK && count >= 2);
    CHECK(events[0].kind == LATRT_EVENT_REINJECT && events[0].num_selected == 3);
    CHECK(!*events[0].skipped && std::strcmp(events[0].select, "given") == 0);
    CHECK(latrt_reinject(s.get(), nullptr, 0, "embed") == LATRT_OK);  // all of them: no room
    CHECK(latrt_step(s.get(), &events, &count) == LATRT_OK);
    CHECK(std::strcmp(events[0].skipped, "no_room") == 0);
    run(s.get());
    latrt_result result;
    CHECK(latrt_get_result(s.get(), &result) == LATRT_OK);
    CHECK(result.num_reinjections == 2 && result.reinjected_tokens == 3);
    CHECK(result.num_masses == 7 && std::strcmp(result.finish_reason, "length") == 0);
    const float* mass;
    CHECK(latrt_get_mass(s.get(), 6, &mass, &count) == LATRT_OK);
    CHECK(static_cast<int64_t>(count) == result.visual_tokens);
    float sum = 0;
    for (size_t i = 0; i < count; ++i) sum += mass[i];
    CHECK(sum > 0 && sum < 1);
    CHECK(failed(latrt_get_mass(s.get(), 7, &mass, &count), LATRT_USAGE, "E_USAGE"));
}

TEST(capi_keys_and_values_are_of_the_type_asked_for) {
    const auto caches = [](const char* asked) {
        latrt_model* opened = nullptr;
        const latrt_model_options options = {"auto", 1, 0, asked, 0};
        CHECK(latrt_open(kBundle.c_str(), &options, &opened) == LATRT_OK);
        const Model model(opened, latrt_close);
        latrt_model_info info;
        CHECK(latrt_model_get_info(model.get(), &info) == LATRT_OK);
        latrt_session_options masses = greedy(2);
        masses.masses = 1;
        const Session s = start(model, masses);
        const Picture picture;
        CHECK(latrt_ask(s.get(), &picture.image, 1, "How many?", nullptr) == LATRT_OK);
        run(s.get());
        const float* mass;
        size_t count;
        CHECK(latrt_get_mass(s.get(), 0, &mass, &count) == LATRT_OK);
        return std::make_pair(std::string(info.kv_dtype), std::vector<float>(mass, mass + count));
    };
    const auto [name, exact] = caches("float32");
    CHECK(name == "float32" && caches("auto") == std::make_pair(name, exact));  // as the weights
    CHECK(caches(nullptr).first == "float32");
    for (const char* type : {"bfloat16", "float16", "int8"}) {
        const auto [narrow, mass] = caches(type);
        CHECK(narrow == type && mass != exact && mass.size() == exact.size());
        for (size_t i = 0; i < exact.size(); ++i) CHECK(std::abs(mass[i] - exact[i]) < 0.02f);
    }
}

TEST(capi_callbacks_cancel) {
    const Model model = open_model();
    const Session s = start(model, greedy(40));
    CHECK(latrt_ask(s.get(), nullptr, 0, "How many?", nullptr) == LATRT_OK);
    struct Seen {
        int tokens = 0, done = 0;
    } seen;
    const auto callback = [](const latrt_event* event, void* user) -> int32_t {
        Seen& s = *static_cast<Seen*>(user);
        s.tokens += event->kind == LATRT_EVENT_TOKEN;
        s.done += event->kind == LATRT_EVENT_DONE;
        return s.tokens == 3;
    };
    CHECK(latrt_run(s.get(), callback, &seen) == LATRT_OK);
    CHECK(seen.tokens == 3 && seen.done == 1);
    latrt_result result;
    CHECK(latrt_get_result(s.get(), &result) == LATRT_OK);
    CHECK(std::strcmp(result.finish_reason, "cancelled") == 0 && result.num_tokens == 3);
    const latrt_event* events;
    size_t count = 1;
    CHECK(latrt_step(s.get(), &events, &count) == LATRT_OK && count == 0);
}

TEST(capi_reset_forgets_the_answer) {
    const Model model = open_model();
    const latrt_session_options options = greedy(8);
    const Session s = start(model, options);
    latrt_result result;
    CHECK(latrt_ask(s.get(), nullptr, 0, "A private question", nullptr) == LATRT_OK);
    run(s.get());
    CHECK(latrt_get_result(s.get(), &result) == LATRT_OK && result.text_size > 0);
    CHECK(latrt_session_reset(s.get(), &options) == LATRT_OK);
    CHECK(latrt_ask(s.get(), nullptr, 0, "Another", nullptr) == LATRT_OK);
    CHECK(latrt_cancel(s.get()) == LATRT_OK);  // before its first step
    CHECK(latrt_get_result(s.get(), &result) == LATRT_OK);
    CHECK(result.text_size == 0 && std::strcmp(result.finish_reason, "cancelled") == 0);
}

TEST(capi_sessions_outlive_their_model_and_share_it) {
    Model model = open_model();
    const Picture picture;
    std::vector<Session> sessions;
    for (int i = 0; i < 4; ++i) sessions.push_back(start(model, greedy(12)));
    latrt_session_options other = greedy(12);
    other.temperature = 1, other.seed = 3;
    const Session alone = start(model, greedy(12));
    model.reset();
    CHECK(latrt_ask(alone.get(), &picture.image, 1, "How many?", nullptr) == LATRT_OK);
    const std::vector<int64_t> want = run(alone.get());
    std::vector<std::thread> threads;
    std::vector<std::vector<int64_t>> got(sessions.size());
    for (size_t i = 0; i < sessions.size(); ++i) {
        threads.emplace_back([&, i] {
            latrt_session* session = sessions[i].get();
            for (int round = 0; round < 2; ++round) {  // once something else, then the question
                const latrt_session_options options = round ? greedy(12) : other;
                latrt_session_reset(session, &options);
                latrt_ask(session, &picture.image, 1, round ? "How many?" : "What?", nullptr);
                latrt_run(session, nullptr, nullptr);
            }
            latrt_result result;
            latrt_get_result(session, &result);
            got[i].assign(result.tokens, result.tokens + result.num_tokens);
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& tokens : got) CHECK(tokens == want);
}

TEST(capi_guesses_change_no_answer) {
    const Model model = open_model();
    const Picture picture;
    latrt_session_options options = greedy(24);
    options.policy = "route", options.reserve_tokens = 64;
    // Visual tokens go in by hand after five tokens, whether or not guesses have run by then.
    const auto answer = [&](latrt_session* s) {
        CHECK(latrt_ask(s, &picture.image, 1, "How many?", nullptr) == LATRT_OK);
        const latrt_event* events = nullptr;
        size_t count = 0;
        for (int i = 0; i < 5; ++i) CHECK(latrt_step(s, &events, &count) == LATRT_OK);
        CHECK(latrt_reinject(s, nullptr, 0, "embed") == LATRT_OK);
        return run(s);
    };
    const auto result_of = [](latrt_session* s) {
        latrt_result result;
        CHECK(latrt_get_result(s, &result) == LATRT_OK);
        return result;
    };
    const Session plain = start(model, options);
    const std::vector<int64_t> want = answer(plain.get());
    CHECK(want.size() == 24 && result_of(plain.get()).num_drafted == 0);
    latrt_session_options sampled = options;
    sampled.temperature = 3, sampled.seed = 5;
    CHECK(latrt_session_reset(plain.get(), &sampled) == LATRT_OK);
    const std::vector<int64_t> other = answer(plain.get());
    CHECK(other != want);

    options.speculate = sampled.speculate = 3;
    const Session guessing = start(model, options);
    CHECK(answer(guessing.get()) == want);
    CHECK(latrt_session_reset(guessing.get(), &options) == LATRT_OK);
    CHECK(answer(guessing.get()) == want);  // as the answer before says
    const latrt_result right = result_of(guessing.get());
    CHECK(right.num_accepted > 10 && right.num_drafted >= right.num_accepted);
    CHECK(right.num_reinjections == 1);
    CHECK(latrt_session_reset(guessing.get(), &sampled) == LATRT_OK);
    CHECK(answer(guessing.get()) == other);  // where the answers before say otherwise
    latrt_session_options none = options;
    none.speculate = 0;
    CHECK(latrt_session_reset(guessing.get(), &none) == LATRT_OK);
    CHECK(answer(guessing.get()) == want && result_of(guessing.get()).num_drafted == 0);
}
