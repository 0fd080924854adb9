// The C API: arguments checked, exceptions turned into statuses, views of the runtime's objects.
#include "latrt/latrt.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "runtime/error.h"
#include "runtime/session.h"

#ifndef LATRT_VERSION
#define LATRT_VERSION "0.0.0"
#endif

struct latrt_model {
    std::shared_ptr<const latrt::Model> model;
};

struct latrt_session {
    latrt_session(std::shared_ptr<const latrt::Model> model, latrt::SessionOptions options)
        : session(std::move(model), std::move(options)) {}

    latrt::Session session;
    std::vector<latrt::Event> events;
    std::vector<latrt_event> views;
    std::string conclusion;
};

namespace {

using namespace latrt;

// A thread's last error. At the end of the main thread it is gone before static objects are, whose
// destructors may still call us: then there are no texts.
thread_local bool errors_gone = false;

struct Errors {
    std::string name, message;
    ~Errors() { errors_gone = true; }
};

thread_local Errors errors;

latrt_status fail(latrt_status status, const char* name, const char* message) noexcept {
    if (errors_gone) return status;
    try {
        errors.name = name, errors.message = message;
    } catch (...) {
        errors.name.clear(), errors.message.clear();
    }
    return status;
}

// Runs `body`; no exception passes.
template <class F>
latrt_status guarded(F&& body) noexcept {
    try {
        body();
        return LATRT_OK;
    } catch (const Error& error) {
        return fail(static_cast<latrt_status>(error.status()), error.name().c_str(), error.what());
    } catch (const std::bad_alloc&) {
        return fail(LATRT_MACHINE, "E_MEMORY", "no memory\nuse smaller images or fewer tokens");
    } catch (const std::system_error&) {
        return fail(LATRT_MACHINE, "E_ENVIRONMENT",
                    "the system gives no more threads or memory\nask for fewer threads");
    } catch (const std::exception& error) {
        return fail(LATRT_INTERNAL, "E_INTERNAL", error.what());
    } catch (...) {
        return fail(LATRT_INTERNAL, "E_INTERNAL", "an unknown exception");
    }
}

constexpr size_t kMaxStop = 4, kMaxImages = 8;
constexpr size_t kMaxEvents = 4;  // of one step
constexpr int32_t kMaxThreads = 1024;

void require(bool condition, const char* what) {
    if (!condition) throw Error(Status::usage, "E_USAGE", what);
}

template <class T>
std::vector<T> list(const T* values, size_t count, const char* what) {
    require(values || count == 0, what);
    return count ? std::vector<T>(values, values + count) : std::vector<T>();
}

Inject inject_named(const std::string& name) {
    if (name == "embed") return Inject::embed;
    if (name == "kv") return Inject::kv;
    throw Error(Status::usage, "E_POLICY", "inject: expected embed or kv");
}

Trigger trigger_named(const std::string& name) {
    if (name == "reflection") return Trigger::reflection;
    if (name == "every") return Trigger::every;
    if (name == "entropy") return Trigger::entropy;
    if (name == "none") return Trigger::none;
    throw Error(Status::usage, "E_POLICY", "trigger: expected reflection, every, entropy or none");
}

Policy policy_of(const latrt_session_options& o) {
    Policy policy = Policy::preset(o.policy ? o.policy : "copy");
    if (o.inject) policy.inject = inject_named(o.inject);
    if (o.trigger) policy.trigger = trigger_named(o.trigger);
    policy.percent = o.percent;
    policy.max_reflections = o.max_reflections;
    policy.every_tokens = o.every_tokens;
    policy.entropy_nats = o.entropy_nats;
    policy.min_gap = o.min_gap;
    return policy;
}

latrt::SessionOptions options_of(const latrt_session_options* given) {
    latrt_session_options o;
    latrt_session_options_init(&o);
    if (given) o = *given;
    latrt::SessionOptions out;
    out.policy = policy_of(o);
    out.sampling = {o.temperature, o.top_p, o.repetition_penalty, o.top_k, o.seed};
    out.max_tokens = o.max_tokens, out.sample = o.sample, out.reserve_tokens = o.reserve_tokens;
    // Limits come before the arrays, so that a wrong count is not read to its end.
    if (o.num_stop > kMaxStop) throw Error(Status::usage, "E_OPTION", "stop: at most 4 strings");
    for (const char* text : list(o.stop, o.num_stop, "stop: null")) {
        require(text != nullptr, "stop: null");
        out.stop.emplace_back(text);
    }
    out.stop_token_ids = list(o.stop_token_ids, o.num_stop_token_ids, "stop_token_ids: null");
    out.forced = list(o.forced, o.num_forced, "forced: null");
    out.speculate = o.speculate;
    out.ignore_eos = o.ignore_eos != 0, out.masses = o.masses != 0;
    return out;
}

RgbImage image_of(const latrt_image& image) {
    const int64_t stride = image.stride ? image.stride : int64_t{3} * image.width;
    return {image.rgb, image.width, image.height, stride};
}

const char* name_of(Finish finish) {
    constexpr const char* kNames[] = {"", "stop", "length", "numerical_error", "cancelled"};
    return kNames[static_cast<int>(finish)];
}

const char* name_of(Select select) {
    constexpr const char* kNames[] = {"all", "route", "random", "given"};
    return kNames[static_cast<int>(select)];
}

latrt_event view(const Event& e) {
    latrt_event out = {};
    out.kind = static_cast<latrt_event_kind>(static_cast<int>(e.kind) + 1);
    out.step = e.step;
    out.token_id = e.token_id;
    out.text = e.text.c_str(), out.text_size = e.text.size();
    out.logprob = e.logprob, out.forced = e.forced;
    out.index = e.index, out.opened = e.opened;
    out.inject = e.inject == Inject::kv ? "kv" : "embed", out.select = name_of(e.select);
    out.selected = e.selected.data(), out.num_selected = e.selected.size();
    out.ms = e.ms, out.skipped = e.skipped.c_str();
    out.finish_reason = name_of(e.finish);
    return out;
}

void show(latrt_session* s) {
    s->views.clear();
    for (const Event& event : s->events) s->views.push_back(view(event));
}

void step(latrt_session* s) {
    s->events.clear(), s->views.clear();
    s->views.reserve(kMaxEvents);  // before, so that no event is lost for want of memory
    s->session.step(s->events);
    show(s);
}

}  // namespace

extern "C" {

const char* latrt_error_name(void) {
    return errors_gone ? "" : errors.name.c_str();
}

const char* latrt_error_message(void) {
    return errors_gone ? "" : errors.message.c_str();
}

const char* latrt_version(void) {
    return LATRT_VERSION;
}

void latrt_model_options_init(latrt_model_options* options) {
    if (options) *options = {"auto", 0, 0, "auto", 0};
}

latrt_status latrt_open(const char* bundle, const latrt_model_options* options,
                        latrt_model** model) {
    return guarded([&] {
        require(bundle && model, "latrt_open: null");
        *model = nullptr;
        latrt_model_options o;
        latrt_model_options_init(&o);
        if (options) o = *options;
        require(o.threads >= 0 && o.threads <= kMaxThreads,
                "threads: expected 0 (all that the process may use) to 1024");
        require(!o.isa || *o.isa, "isa: empty");
        require(!o.kv_dtype || *o.kv_dtype, "kv_dtype: empty");
        latrt::ModelOptions made;
        made.isa = o.isa ? o.isa : "auto";
        made.threads = o.threads, made.max_len = o.max_len;
        made.kv_dtype = o.kv_dtype ? o.kv_dtype : "auto";
        made.verify = o.skip_verify == 0;
        *model = new latrt_model{std::make_shared<const latrt::Model>(bundle, made)};
    });
}

void latrt_close(latrt_model* model) {
    delete model;
}

latrt_status latrt_model_get_info(const latrt_model* model, latrt_model_info* info) {
    return guarded([&] {
        require(model && info, "latrt_model_get_info: null");
        const latrt::Model& m = *model->model;
        *info = {m.isa(),
                 m.dtype().c_str(),
                 m.kv_dtype(),
                 m.max_len(),
                 m.config().decoder.vocab_size,
                 m.config().patch_size,
                 m.config().merge_size,
                 m.config().image_token_id,
                 m.tokenizer().token_id("<REFLECTION>").value_or(-1),
                 m.tokenizer().token_id("</REFLECTION>").value_or(-1)};
    });
}

latrt_status latrt_tokenize(const latrt_model* model, const char* text, size_t size, int64_t* ids,
                            size_t* count) {
    return guarded([&] {
        require(model && (text || !size) && count && (ids || !*count), "latrt_tokenize: null");
        const auto out = model->model->tokenizer().encode({text ? text : "", size});
        std::copy_n(out.begin(), std::min(*count, out.size()), ids);
        *count = out.size();
    });
}

latrt_status latrt_token_bytes(const latrt_model* model, int64_t id, const char** bytes,
                               size_t* size) {
    return guarded([&] {
        require(model && bytes && size, "latrt_token_bytes: null");
        const std::string_view found = model->model->tokenizer().token_bytes(id);
        *bytes = found.data() ? found.data() : "", *size = found.size();
    });
}

void latrt_session_options_init(latrt_session_options* options) {
    if (!options) return;
    *options = {};
    const Policy policy;
    options->policy = "copy";
    options->percent = policy.percent;
    options->max_reflections = policy.max_reflections;
    options->every_tokens = policy.every_tokens;
    options->entropy_nats = policy.entropy_nats;
    options->min_gap = policy.min_gap;
    options->top_p = options->repetition_penalty = 1;
    options->max_tokens = 512;
}

latrt_status latrt_session_create(const latrt_model* model, const latrt_session_options* options,
                                  latrt_session** session) {
    return guarded([&] {
        require(model && session, "latrt_session_create: null");
        *session = nullptr;
        *session = new latrt_session(model->model, options_of(options));
    });
}

void latrt_session_destroy(latrt_session* session) {
    delete session;
}

latrt_status latrt_session_reset(latrt_session* session, const latrt_session_options* options) {
    return guarded([&] {
        require(session, "latrt_session_reset: null");
        session->session.reset(options_of(options));
        session->events.clear(), session->views.clear();
    });
}

latrt_status latrt_chat(latrt_session* session, const latrt_message* messages, size_t num_messages,
                        const latrt_image* images, size_t num_images) {
    return guarded([&] {
        require(session && (messages || !num_messages) && (images || !num_images),
                "latrt_chat: null");
        Prompt& prompt = session->session.prompt();
        std::vector<Message> turns;
        for (size_t i = 0; i < num_messages; ++i) {
            require(messages[i].role && messages[i].text, "latrt_chat: a message without text");
            turns.push_back({messages[i].role, messages[i].text, messages[i].num_images});
        }
        std::vector<RgbImage> pictures;
        if (num_images > kMaxImages)
            throw Error(Status::input, "E_IMAGE_COUNT", "images: at most 8 a request");
        for (size_t i = 0; i < num_images; ++i) pictures.push_back(image_of(images[i]));
        prompt = session->session.model().chat(turns, pictures);
    });
}

latrt_status latrt_ask(latrt_session* session, const latrt_image* images, size_t num_images,
                       const char* question, const char* system) {
    if (!question) return fail(LATRT_USAGE, "E_USAGE", "latrt_ask: null");
    const std::string_view text = question;
    if (num_images == 0 && text.find_first_not_of(" \t\r\n\f\v") == text.npos)
        return fail(LATRT_INPUT, "E_PROMPT", "prompt: empty\nask something");
    const latrt_message turns[2] = {{"system", system, 0},
                                    {"user", question, static_cast<int32_t>(num_images)}};
    return latrt_chat(session, turns + (system ? 0 : 1), system ? 2 : 1, images, num_images);
}

latrt_status latrt_append_tokens(latrt_session* session, const int64_t* ids, size_t count) {
    return guarded([&] {
        require(session && (ids || !count), "latrt_append_tokens: null");
        Prompt& prompt = session->session.prompt();
        const ModelConfig& config = session->session.model().config();
        for (size_t i = 0; i < count; ++i) {
            if (ids[i] < 0 || ids[i] >= config.decoder.vocab_size ||
                ids[i] == config.image_token_id)
                throw Error(Status::input, "E_PROMPT",
                            "token id " + std::to_string(ids[i]) +
                                ": outside the vocabulary, or one that only an image brings");
        }
        prompt.append(list(ids, count, "latrt_append_tokens: null"));
    });
}

latrt_status latrt_append_text(latrt_session* session, const char* text, size_t size) {
    return guarded([&] {
        require(session && (text || !size), "latrt_append_text: null");
        session->session.model().append_text(session->session.prompt(), {text ? text : "", size});
    });
}

latrt_status latrt_append_control(latrt_session* session, const char* token) {
    return guarded([&] {
        require(session && token, "latrt_append_control: null");
        session->session.model().append_control(session->session.prompt(), token);
    });
}

latrt_status latrt_append_image(latrt_session* session, const latrt_image* image) {
    return guarded([&] {
        require(session && image, "latrt_append_image: null");
        session->session.model().append_image(session->session.prompt(), image_of(*image));
    });
}

latrt_status latrt_step(latrt_session* session, const latrt_event** events, size_t* count) {
    return guarded([&] {
        require(session && events && count, "latrt_step: null");
        *events = nullptr, *count = 0;
        step(session);
        *events = session->views.data(), *count = session->views.size();
    });
}

latrt_status latrt_run(latrt_session* session, latrt_callback callback, void* user) {
    return guarded([&] {
        require(session, "latrt_run: null");
        bool cancelled = false;
        do {
            step(session);
            for (const latrt_event& event : session->views)
                cancelled = (callback && callback(&event, user) != 0) || cancelled;
            if (!cancelled || session->session.result().finish != Finish::none) continue;
            session->events.clear();
            session->session.cancel(session->events);
            show(session);
            for (const latrt_event& event : session->views) callback(&event, user);
        } while (session->session.result().finish == Finish::none);
    });
}

latrt_status latrt_cancel(latrt_session* session) {
    return guarded([&] {
        require(session, "latrt_cancel: null");
        session->events.clear(), session->views.clear();
        session->session.cancel(session->events);
    });
}

latrt_status latrt_reinject(latrt_session* session, const int64_t* selected, size_t count,
                            const char* inject) {
    return guarded([&] {
        require(selected || !count, "selected: null");
        require(session && inject, "latrt_reinject: null");
        std::optional<std::vector<int64_t>> given;
        if (selected) given = list(selected, count, "latrt_reinject: null");
        session->session.reinject(std::move(given), inject_named(inject));
    });
}

latrt_status latrt_get_result(latrt_session* session, latrt_result* result) {
    return guarded([&] {
        require(session && result, "latrt_get_result: null");
        const Result& r = session->session.result();
        session->conclusion = conclusion(r.text);
        *result = {};
        result->text = r.text.c_str(), result->text_size = r.text.size();
        result->conclusion = session->conclusion.c_str();
        result->conclusion_size = session->conclusion.size();
        result->finish_reason = name_of(r.finish);
        result->tokens = r.tokens.data(), result->num_tokens = r.tokens.size();
        result->prompt_tokens = r.prompt_tokens, result->visual_tokens = r.visual_tokens;
        for (const Event& event : r.reinjections)
            result->reinjected_tokens += static_cast<int64_t>(event.selected.size());
        result->num_reflections = r.num_reflections;
        result->num_reinjections = static_cast<int64_t>(r.reinjections.size());
        result->vision_ms = r.clock.vision_ms, result->prefill_ms = r.clock.prefill_ms;
        result->decode_ms = r.clock.decode_ms, result->reinject_ms = r.clock.reinject_ms;
        result->num_masses = r.step_masses.size();
        result->num_drafted = r.num_drafted, result->num_accepted = r.num_accepted;
    });
}

latrt_status latrt_get_mass(latrt_session* session, size_t index, const float** mass,
                            size_t* count) {
    return guarded([&] {
        require(session && mass && count, "latrt_get_mass: null");
        const auto& masses = session->session.result().step_masses;
        require(index < masses.size(), "latrt_get_mass: no such step");
        *mass = masses[index].data(), *count = masses[index].size();
    });
}

latrt_status latrt_get_prompt(latrt_session* session, const int64_t** ids, size_t* count) {
    return guarded([&] {
        require(session && ids && count, "latrt_get_prompt: null");
        const Prompt& prompt = session->session.asked();
        *ids = prompt.ids.data(), *count = prompt.ids.size();
    });
}

}  // extern "C"
