// The C API with C++ ownership: objects that close themselves, errors as exceptions.
#pragma once

#include <latrt/latrt.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latrt {

class Error : public std::runtime_error {
 public:
    explicit Error(latrt_status status)
        : std::runtime_error(latrt_error_message()), status_(status), name_(latrt_error_name()) {}

    latrt_status status() const { return status_; }
    const std::string& name() const { return name_; }

 private:
    latrt_status status_;
    std::string name_;
};

inline void check(latrt_status status) {
    if (status != LATRT_OK) throw Error(status);
}

struct ModelOptions : latrt_model_options {
    ModelOptions() { latrt_model_options_init(this); }
};

struct SessionOptions : latrt_session_options {
    SessionOptions() { latrt_session_options_init(this); }
};

// An open bundle; copies share it.
class Model {
 public:
    explicit Model(const std::string& bundle, const ModelOptions& options = {}) {
        latrt_model* model = nullptr;
        check(latrt_open(bundle.c_str(), &options, &model));
        model_.reset(model, latrt_close);
    }

    const latrt_model* get() const { return model_.get(); }

    latrt_model_info info() const {
        latrt_model_info out;
        check(latrt_model_get_info(get(), &out));
        return out;
    }

    std::vector<int64_t> tokenize(std::string_view text) const {
        std::vector<int64_t> ids(text.size() + 16);
        while (true) {
            size_t count = ids.size();
            check(latrt_tokenize(get(), text.data(), text.size(), ids.data(), &count));
            const bool fits = count <= ids.size();
            ids.resize(count);
            if (fits) return ids;
        }
    }

 private:
    std::shared_ptr<latrt_model> model_;
};

// One prompt and its answer. Move-only; one thread at a time.
class Session {
 public:
    // Returns false to cancel the answer.
    using Callback = std::function<bool(const latrt_event&)>;

    explicit Session(const Model& model, const SessionOptions& options = {}) {
        latrt_session* session = nullptr;
        check(latrt_session_create(model.get(), &options, &session));
        session_.reset(session);
    }

    latrt_session* get() const { return session_.get(); }

    void reset(const SessionOptions& options = {}) { check(latrt_session_reset(get(), &options)); }

    void ask(const std::vector<latrt_image>& images, const std::string& question,
             const char* system = nullptr) {
        check(latrt_ask(get(), images.data(), images.size(), question.c_str(), system));
    }

    void chat(const std::vector<latrt_message>& messages, const std::vector<latrt_image>& images) {
        check(latrt_chat(get(), messages.data(), messages.size(), images.data(), images.size()));
    }

    void append_tokens(const std::vector<int64_t>& ids) {
        check(latrt_append_tokens(get(), ids.data(), ids.size()));
    }
    void append_text(std::string_view text) {
        check(latrt_append_text(get(), text.data(), text.size()));
    }
    void append_control(const std::string& token) {
        check(latrt_append_control(get(), token.c_str()));
    }
    void append_image(const latrt_image& image) { check(latrt_append_image(get(), &image)); }

    // The events of the next token; none once the answer has ended. Valid until the next call.
    std::pair<const latrt_event*, size_t> step() {
        const latrt_event* events = nullptr;
        size_t count = 0;
        check(latrt_step(get(), &events, &count));
        return {events, count};
    }

    // Steps to the end. An exception of the callback cancels the answer and is thrown again.
    void run(const Callback& callback) {
        struct Context {
            const Callback& callback;
            std::exception_ptr error;
        } context{callback, nullptr};
        const auto forward = [](const latrt_event* event, void* user) -> int32_t {
            Context& c = *static_cast<Context*>(user);
            if (c.error) return 1;
            try {
                return c.callback(*event) ? 0 : 1;
            } catch (...) {
                c.error = std::current_exception();
                return 1;
            }
        };
        const latrt_status status = latrt_run(get(), forward, &context);
        if (context.error) std::rethrow_exception(context.error);
        check(status);
    }

    void cancel() { check(latrt_cancel(get())); }

    // All visual tokens where `selected` is empty.
    void reinject(const std::vector<int64_t>& selected = {}, const char* inject = "embed") {
        check(latrt_reinject(get(), selected.empty() ? nullptr : selected.data(), selected.size(),
                             inject));
    }

    latrt_result result() const {
        latrt_result out;
        check(latrt_get_result(get(), &out));
        return out;
    }

    std::string text() const {
        const latrt_result out = result();
        return {out.text, out.text_size};
    }

    std::vector<float> mass(size_t index) const {
        const float* mass = nullptr;
        size_t count = 0;
        check(latrt_get_mass(get(), index, &mass, &count));
        return {mass, mass + count};
    }

 private:
    struct Destroy {
        void operator()(latrt_session* session) const { latrt_session_destroy(session); }
    };
    std::unique_ptr<latrt_session, Destroy> session_;
};

}  // namespace latrt
