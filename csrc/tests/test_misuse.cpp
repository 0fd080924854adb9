// Wrong calls of the C API, one by one: each is refused with a name and a message, and hurts
// nobody.
#include <latrt/latrt.h>

#include <climits>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/check.h"

namespace {

const std::string kBundle = std::string(LATRT_GOLDEN) + "/bundle";
const double kNan = std::nan(""), kInf = HUGE_VAL;
const char* const kNotUtf8[] = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                                "a\xe2\x82"};

struct Fixture {
    latrt_model* model = nullptr;
    latrt_session* session = nullptr;
    std::vector<uint8_t> rgb = std::vector<uint8_t>(70 * 60 * 3, 90);
    latrt_image image = {rgb.data(), 70, 60, 0};
    int num_cases = 0;

    Fixture() {
        latrt_model_options options;
        latrt_model_options_init(&options);
        options.threads = 1;
        CHECK(latrt_open(kBundle.c_str(), &options, &model) == LATRT_OK);
        const latrt_session_options wanted = good();
        CHECK(latrt_session_create(model, &wanted, &session) == LATRT_OK);
    }
    ~Fixture() {
        latrt_session_destroy(session);
        latrt_close(model);
    }
    Fixture(const Fixture&) = delete;
    Fixture& operator=(const Fixture&) = delete;

    static latrt_session_options good() {
        latrt_session_options options;
        latrt_session_options_init(&options);
        options.max_tokens = 3, options.ignore_eos = 1, options.reserve_tokens = 8;
        return options;
    }
    void reset() {
        const latrt_session_options options = good();
        CHECK(latrt_session_reset(session, &options) == LATRT_OK);
    }
    // A case: the call must fail as the caller's fault and say why.
    void refused(const std::string& what, latrt_status status) {
        ++num_cases;
        const bool known = status == LATRT_USAGE || status == LATRT_INPUT ||
                           status == LATRT_BUNDLE || status == LATRT_MACHINE;
        const bool told = std::strncmp(latrt_error_name(), "E_", 2) == 0 && *latrt_error_message();
        if (!known || !told)
            latrt::test::fail(__FILE__, __LINE__, what + ": status " + std::to_string(status));
    }
    // Afterwards all is as before.
    void still_answers() {
        reset();
        CHECK(latrt_ask(session, &image, 1, "How many?", nullptr) == LATRT_OK);
        CHECK(latrt_run(session, nullptr, nullptr) == LATRT_OK);
        latrt_result result;
        CHECK(latrt_get_result(session, &result) == LATRT_OK && result.num_tokens == 3);
        reset();
    }
};

// Options that no session may have.
std::vector<std::function<void(latrt_session_options&)>> bad_options() {
    using O = latrt_session_options;
    std::vector<std::function<void(O&)>> out;
    const auto doubles = [&](double O::* field, std::vector<double> values, const char* trigger) {
        for (const double value : values)
            out.push_back([=](O& o) { o.*field = value, o.trigger = trigger, o.policy = "route"; });
    };
    doubles(&O::percent, {-1, -1e-9, 100.5, 1e300, kNan, kInf, -kInf}, nullptr);
    doubles(&O::entropy_nats, {-1, kNan, kInf, -kInf}, "entropy");
    doubles(&O::temperature, {-1, -1e-9, kNan, kInf, -kInf}, nullptr);
    doubles(&O::top_p, {0, -1, 1.0001, 2, kNan, kInf, -kInf}, nullptr);
    doubles(&O::repetition_penalty, {0, -1, kNan, kInf, -kInf}, nullptr);
    const auto integers = [&](int64_t O::* field, std::vector<int64_t> values,
                              const char* trigger) {
        for (const int64_t value : values)
            out.push_back([=](O& o) { o.*field = value, o.trigger = trigger; });
    };
    integers(&O::max_reflections, {-1, INT64_MIN}, nullptr);
    integers(&O::every_tokens, {0, -1, INT64_MIN}, "every");
    integers(&O::min_gap, {-1, INT64_MIN}, "entropy");
    integers(&O::top_k, {-1, INT64_MIN}, nullptr);
    integers(&O::seed, {-1, INT64_MIN}, nullptr);
    integers(&O::sample, {-1, INT64_MIN}, nullptr);
    integers(&O::max_tokens, {0, -1, INT64_MIN}, nullptr);
    integers(&O::reserve_tokens, {-1, INT64_MIN}, nullptr);
    integers(&O::speculate, {-1, 17, INT64_MIN, INT64_MAX}, nullptr);
    const auto texts = [&](const char* O::* field, std::vector<const char*> values) {
        for (const char* value : values) out.push_back([=](O& o) { o.*field = value; });
    };
    texts(&O::policy, {"", "COPY", "copy ", "nothing", "a.yaml", "\xff"});
    texts(&O::inject, {"", "both", "EMBED", "\xff"});
    texts(&O::trigger, {"", "always", "Every", "\xff"});
    static const std::string longer(257, 'x');
    static const char* const five[] = {"a", "b", "c", "d", "e"};
    static const char* const empty[] = {""};
    static const char* const too_long[] = {longer.c_str()};
    static const char* const nothing[] = {nullptr};
    static const char* const broken[] = {"\xff"};
    const auto stops = [&](const char* const* stop, size_t count) {
        out.push_back([=](O& o) { o.stop = stop, o.num_stop = count; });
    };
    stops(five, 5), stops(empty, 1), stops(too_long, 1), stops(nothing, 1), stops(broken, 1);
    stops(nullptr, 1), stops(nullptr, SIZE_MAX), stops(five, SIZE_MAX);
    static const int64_t ids[] = {-1, INT64_MIN, 1 << 20, INT64_MAX};
    for (size_t i = 0; i < std::size(ids); ++i) {
        out.push_back([=](O& o) { o.forced = ids + i, o.num_forced = 1; });
        if (ids[i] < 0)
            out.push_back([=](O& o) { o.stop_token_ids = ids + i, o.num_stop_token_ids = 1; });
    }
    out.push_back([](O& o) { o.num_forced = 1; });
    out.push_back([](O& o) { o.num_stop_token_ids = 1; });
    return out;
}

std::vector<latrt_image> bad_images(const Fixture& f) {
    const uint8_t* rgb = f.rgb.data();
    std::vector<latrt_image> out = {{nullptr, 70, 60, 0}, {rgb, 1000, 2, 0}, {rgb, 1, 201, 0}};
    for (const int32_t side : {0, -1, INT_MIN}) {
        out.push_back({rgb, side, 60, 0});
        out.push_back({rgb, 70, side, 0});
    }
    for (const int64_t stride : {int64_t{1}, int64_t{209}, int64_t{-1}, int64_t{-210}, INT64_MIN})
        out.push_back({rgb, 70, 60, stride});
    out.push_back({rgb, 10000, 10000, 0});  // over 50 megapixels: refused before a byte is read
    out.push_back({rgb, INT_MAX, INT_MAX, 0});
    out.push_back({rgb, INT_MAX, INT_MAX, INT64_MAX});
    return out;
}

void wrong_models(Fixture& f) {
    latrt_model* model = nullptr;
    for (const char* path : {"", "/no/such", "/dev/null", "/", "relative/nowhere", "\xff"})
        f.refused(std::string("open ") + path, latrt_open(path, nullptr, &model));
    const std::string file = kBundle + "/bundle.json";
    f.refused("open a file", latrt_open(file.c_str(), nullptr, &model));
    f.refused("open null", latrt_open(nullptr, nullptr, &model));
    f.refused("open into null", latrt_open(kBundle.c_str(), nullptr, nullptr));
    latrt_model_options options;
    const auto with = [&](const std::function<void()>& set) {
        latrt_model_options_init(&options);
        set();
        f.refused("model options", latrt_open(kBundle.c_str(), &options, &model));
    };
    for (const char* isa : {"", "sse9", "AVX2", "avx2 ", "\xff"}) with([&] { options.isa = isa; });
    for (const int32_t n : {-1, INT_MIN, 1025, INT_MAX}) with([&] { options.threads = n; });
    for (const int64_t n : {int64_t{-1}, INT64_MIN, int64_t{513}, INT64_MAX})
        with([&] { options.max_len = n; });
    CHECK(model == nullptr);
    latrt_model_info info;
    f.refused("info of null", latrt_model_get_info(nullptr, &info));
    f.refused("info into null", latrt_model_get_info(f.model, nullptr));
    int64_t ids[4];
    size_t count = 4;
    f.refused("tokenize null model", latrt_tokenize(nullptr, "a", 1, ids, &count));
    f.refused("tokenize null text", latrt_tokenize(f.model, nullptr, 1, ids, &count));
    f.refused("tokenize null count", latrt_tokenize(f.model, "a", 1, ids, nullptr));
    f.refused("tokenize null ids", latrt_tokenize(f.model, "a", 1, nullptr, &(count = 4)));
    for (const char* text : kNotUtf8)
        f.refused("tokenize", latrt_tokenize(f.model, text, std::strlen(text), ids, &(count = 4)));
    const char* bytes;
    f.refused("bytes of null", latrt_token_bytes(nullptr, 1, &bytes, &count));
    f.refused("bytes into null", latrt_token_bytes(f.model, 1, nullptr, &count));
    f.refused("size into null", latrt_token_bytes(f.model, 1, &bytes, nullptr));
}

void wrong_options(Fixture& f) {
    int number = 0;
    for (const auto& spoil : bad_options()) {
        latrt_session_options options = Fixture::good();
        spoil(options);
        latrt_session* session = nullptr;
        const std::string what = "options " + std::to_string(number++);
        f.refused(what, latrt_session_create(f.model, &options, &session));
        CHECK(session == nullptr);
        f.refused(what + " at reset", latrt_session_reset(f.session, &options));
    }
    const latrt_session_options options = Fixture::good();
    latrt_session* session = nullptr;
    f.refused("create of null", latrt_session_create(nullptr, &options, &session));
    f.refused("create into null", latrt_session_create(f.model, &options, nullptr));
    f.refused("reset of null", latrt_session_reset(nullptr, &options));
}

void wrong_images(Fixture& f) {
    int number = 0;
    for (const latrt_image& image : bad_images(f)) {
        const std::string what = "image " + std::to_string(number++);
        const latrt_message message = {"user", "How many?", 1};
        f.refused(what + " appended", latrt_append_image(f.session, &image));
        f.refused(what + " asked", latrt_ask(f.session, &image, 1, "How many?", nullptr));
        f.refused(what + " in chat", latrt_chat(f.session, &message, 1, &image, 1));
        const latrt_image two[] = {f.image, image};
        f.refused(what + " second", latrt_ask(f.session, two, 2, "How many?", nullptr));
    }
    f.refused("image null", latrt_append_image(f.session, nullptr));
    f.refused("image of null", latrt_append_image(nullptr, &f.image));
}

void wrong_prompts(Fixture& f) {
    const std::vector<latrt_image> nine(9, f.image);
    const auto ask = [&](const latrt_image* images, size_t count, const char* text,
                         const char* system) {
        f.refused("ask", latrt_ask(f.session, images, count, text, system));
    };
    ask(nullptr, 1, "a", nullptr), ask(nine.data(), 9, "a", nullptr);
    ask(nine.data(), SIZE_MAX, "a", nullptr), ask(nullptr, 0, nullptr, nullptr);
    ask(nullptr, 0, "", nullptr), ask(nullptr, 0, " \n", nullptr);
    for (const char* text : kNotUtf8) ask(nullptr, 0, text, nullptr), ask(nullptr, 0, "a", text);
    f.refused("ask null", latrt_ask(nullptr, nullptr, 0, "a", nullptr));
    const auto chat = [&](latrt_message message, const latrt_image* images, size_t count) {
        f.refused("chat", latrt_chat(f.session, &message, 1, images, count));
    };
    for (const char* role : {"", "robot", "User", "\xff"}) chat({role, "a", 0}, nullptr, 0);
    chat({nullptr, "a", 0}, nullptr, 0), chat({"user", nullptr, 0}, nullptr, 0);
    for (const char* text : kNotUtf8) chat({"user", text, 0}, nullptr, 0);
    for (const int32_t n : {-1, 2, INT_MAX, INT_MIN, 0}) chat({"user", "a", n}, &f.image, 1);
    chat({"user", "a", 1}, nullptr, 1), chat({"user", "a", 9}, nine.data(), 9);
    f.refused("chat null", latrt_chat(nullptr, nullptr, 0, nullptr, 0));
    f.refused("chat of none", latrt_chat(f.session, nullptr, 0, nullptr, 0));
    f.refused("chat of null", latrt_chat(f.session, nullptr, 1, nullptr, 0));
    for (const int64_t id : {int64_t{-1}, INT64_MIN, INT64_MAX, int64_t{1} << 20})
        f.refused("token", latrt_append_tokens(f.session, &id, 1));
    f.refused("tokens null", latrt_append_tokens(f.session, nullptr, 1));
    f.refused("tokens of null", latrt_append_tokens(nullptr, nullptr, 0));
    for (const char* text : kNotUtf8)
        f.refused("text", latrt_append_text(f.session, text, std::strlen(text)));
    f.refused("text null", latrt_append_text(f.session, nullptr, 1));
    f.refused("text of null", latrt_append_text(nullptr, "a", 1));
    for (const char* token : {"", "hi", "<|image_pad|>", "<|nothing|>", "<|im_start|> ", "\xff"})
        f.refused("control", latrt_append_control(f.session, token));
    f.refused("control null", latrt_append_control(f.session, nullptr));
    f.refused("control of null", latrt_append_control(nullptr, "<|im_start|>"));
}

void wrong_times(Fixture& f) {
    const latrt_event* events;
    const int64_t* ids;
    const float* mass;
    size_t count;
    latrt_result result;
    f.reset();
    f.refused("step without a prompt", latrt_step(f.session, &events, &count));
    f.refused("run without a prompt", latrt_run(f.session, nullptr, nullptr));
    f.refused("reinject before", latrt_reinject(f.session, nullptr, 0, "kv"));
    f.refused("mass before", latrt_get_mass(f.session, 0, &mass, &count));
    f.refused("step of null", latrt_step(nullptr, &events, &count));
    f.refused("run of null", latrt_run(nullptr, nullptr, nullptr));
    f.refused("cancel of null", latrt_cancel(nullptr));
    f.refused("reinject of null", latrt_reinject(nullptr, nullptr, 0, "kv"));
    f.refused("result of null", latrt_get_result(nullptr, &result));
    f.refused("mass of null", latrt_get_mass(nullptr, 0, &mass, &count));
    f.refused("prompt of null", latrt_get_prompt(nullptr, &ids, &count));
    CHECK(latrt_ask(f.session, &f.image, 1, "How many?", nullptr) == LATRT_OK);
    f.refused("events into null", latrt_step(f.session, nullptr, &count));
    f.refused("count into null", latrt_step(f.session, &events, nullptr));
    CHECK(latrt_step(f.session, &events, &count) == LATRT_OK);
    f.refused("result into null", latrt_get_result(f.session, nullptr));
    f.refused("mass into null", latrt_get_mass(f.session, 0, nullptr, &count));
    f.refused("prompt into null", latrt_get_prompt(f.session, nullptr, &count));
    f.refused("size into null", latrt_get_prompt(f.session, &ids, nullptr));
    const int64_t wrong[][2] = {{1, 1}, {2, 1}, {-1, 0}, {0, 1000}, {INT64_MIN, 0}, {0, INT64_MAX}};
    for (const auto& pair : wrong) {
        f.refused("reinject", latrt_reinject(f.session, pair, 2, "kv"));
        f.refused("reinject", latrt_reinject(f.session, pair, 2, "embed"));
    }
    for (const char* inject : {"", "both", "KV", "\xff"})
        f.refused("inject", latrt_reinject(f.session, nullptr, 0, inject));
    f.refused("inject null", latrt_reinject(f.session, nullptr, 0, nullptr));
    f.refused("selected null", latrt_reinject(f.session, nullptr, 3, "kv"));
    f.refused("text while it runs", latrt_append_text(f.session, "a", 1));
    f.refused("image while it runs", latrt_append_image(f.session, &f.image));
    f.refused("token while it runs", latrt_append_tokens(f.session, ids = wrong[0], 1));
    f.refused("control while it runs", latrt_append_control(f.session, "<|im_end|>"));
    f.refused("question while it runs", latrt_ask(f.session, nullptr, 0, "a", nullptr));
    CHECK(latrt_run(f.session, nullptr, nullptr) == LATRT_OK);
    f.refused("reinject after the end", latrt_reinject(f.session, nullptr, 0, "kv"));
    f.refused("mass out of range", latrt_get_mass(f.session, SIZE_MAX, &mass, &count));
}

}  // namespace

TEST(misuse_is_refused_300_times) {
    Fixture f;
    for (const auto& part :
         {wrong_models, wrong_options, wrong_images, wrong_prompts, wrong_times}) {
        part(f);
        f.still_answers();
    }
    latrt_close(nullptr), latrt_session_destroy(nullptr);
    std::printf("%d wrong calls\n", f.num_cases);
    CHECK(f.num_cases >= 300);
}
