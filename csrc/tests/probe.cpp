// Answers JSON requests, one a line, with one line each, so that tests in Python hold the C++ to
// the Python: latrt_probe < requests > answers. Or, without Python, latrt_probe THREADS < lines of
// {"request", "answer"}: every thread asks everything and compares.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "latrt/latrt.h"
#include "runtime/error.h"
#include "runtime/image.h"
#include "runtime/json.h"
#include "runtime/random.h"
#include "runtime/sampling.h"
#include "runtime/template.h"
#include "runtime/tokenizer.h"

namespace {

using latrt::Json;
using latrt::json_quote;

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

std::string show(double value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.17g", value);
    return text;
}
std::string show(float value) {
    return show(double{value});
}
std::string show(int64_t value) {
    return std::to_string(value);
}

template <class T>
std::string array(const T* values, size_t count) {
    std::string out = "[";
    for (size_t i = 0; i < count; ++i) {
        if (i) out += ',';
        out += show(values[i]);
    }
    return out + "]";
}

template <class T>
std::string array(const std::vector<T>& values) {
    return array(values.data(), values.size());
}

std::vector<int64_t> integers(const Json& json) {
    std::vector<int64_t> out;
    for (const Json& value : json.array()) out.push_back(value.integer());
    return out;
}

double number(const Json& json, const char* key, double otherwise) {
    const Json* found = json.find(key);
    return found ? found->number() : otherwise;
}

std::string encode(const Json& request) {
    const latrt::Tokenizer tokenizer(Json::parse(read_file(request.at("tokenizer").string())));
    std::string out = "[";
    for (const Json& text : request.at("texts").array()) {
        if (out.size() > 1) out += ',';
        out += array(tokenizer.encode(text.string()));
    }
    return out + "]";
}

// Writes the patches to a file; answers their grid.
std::string pixels(const Json& request) {
    const auto config = latrt::ImageConfig::parse(request.at("config"));
    const std::string rgb = read_file(request.at("rgb").string());
    const int width = static_cast<int>(request.at("width").integer());
    const int height = static_cast<int>(request.at("height").integer());
    const auto out = latrt::preprocess(
        {reinterpret_cast<const uint8_t*>(rgb.data()), width, height, int64_t{3} * width}, config);
    std::ofstream file(request.at("out").string(), std::ios::binary);
    file.write(reinterpret_cast<const char*>(out.pixel_values.data()),
               static_cast<std::streamsize>(out.pixel_values.size() * sizeof(float)));
    return array(std::vector<int64_t>{out.grid_h, out.grid_w});
}

std::string random(const Json& request) {
    std::vector<uint64_t> seed;
    for (const int64_t value : integers(request.at("seed")))
        seed.push_back(static_cast<uint64_t>(value));
    latrt::Random generator(seed);
    std::string out = "[";
    for (const int64_t count : integers(request.at("draws"))) {  // -1: a number from 0 to 1
        out += out.size() > 1 ? "," : "";
        out += count < 0 ? show(generator.uniform()) : array(generator.permutation(count));
    }
    return out + "]";
}

std::string draw(const Json& request) {
    latrt::SamplingParams params;
    params.temperature = number(request, "temperature", 0);
    params.top_p = number(request, "top_p", 1);
    params.repetition_penalty = number(request, "repetition_penalty", 1);
    params.top_k = static_cast<int64_t>(number(request, "top_k", 0));
    params.seed = request.at("seed").integer();
    std::vector<float> logits;
    for (const Json& value : request.at("logits").array())
        logits.push_back(static_cast<float>(value.number()));
    latrt::Sampler sampler(params, integers(request.at("prompt")), 0);
    std::vector<int64_t> tokens;
    for (int64_t i = request.at("count").integer(); i > 0; --i) {
        tokens.push_back(sampler.draw(logits, request.at("banned").integer()));
        sampler.accept(tokens.back());
    }
    return "[" + array(tokens) + "," + show(latrt::log_partition(logits)) + "," +
           show(latrt::entropy_nats(logits)) + "]";
}

latrt::TemplateValue value_of(const Json& json) {
    using Value = latrt::TemplateValue;
    switch (json.kind()) {
        case Json::Kind::boolean:
            return json.boolean();
        case Json::Kind::integer:
            return json.integer();
        case Json::Kind::string:
            return json.string();
        case Json::Kind::array: {
            Value::List list;
            for (const Json& one : json.array()) list.push_back(value_of(one));
            return list;
        }
        case Json::Kind::object: {
            Value::Mapping mapping;
            for (const auto& [key, one] : json.object()) mapping.emplace_back(key, value_of(one));
            return mapping;
        }
        default:
            return Value::none();
    }
}

std::string render(const Json& request) {
    const latrt::ChatTemplate chat(request.at("template").string());
    return json_quote(chat.render(*value_of(request.at("variables")).mapping));
}

// The C API from here on.

void check(latrt_status status) {
    if (status != LATRT_OK)
        throw latrt::Error(static_cast<latrt::Status>(status), latrt_error_name(),
                           latrt_error_message());
}

struct Options {
    std::vector<std::string> stop;
    std::vector<const char*> stop_views;
    std::vector<int64_t> forced, stop_ids;
    std::string policy, inject, trigger;
    latrt_session_options o;

    explicit Options(const Json& json) {
        latrt_session_options_init(&o);
        const auto name = [&](const char* key, std::string& to, const char*& field) {
            if (const Json* found = json.find(key)) to = found->string(), field = to.c_str();
        };
        name("policy", policy, o.policy);
        name("inject", inject, o.inject);
        name("trigger", trigger, o.trigger);
        o.percent = number(json, "percent", o.percent);
        o.entropy_nats = number(json, "entropy_nats", o.entropy_nats);
        o.temperature = number(json, "temperature", 0);
        o.top_p = number(json, "top_p", 1);
        o.repetition_penalty = number(json, "repetition_penalty", 1);
        const auto whole = [&](const char* key, int64_t& field) {
            if (const Json* found = json.find(key)) field = found->integer();
        };
        whole("max_reflections", o.max_reflections), whole("every_tokens", o.every_tokens);
        whole("min_gap", o.min_gap), whole("top_k", o.top_k), whole("seed", o.seed);
        whole("sample", o.sample), whole("max_tokens", o.max_tokens);
        whole("reserve_tokens", o.reserve_tokens), whole("speculate", o.speculate);
        o.masses = json.find("masses") && json.at("masses").boolean();
        o.ignore_eos = json.find("ignore_eos") && json.at("ignore_eos").boolean();
        if (const Json* found = json.find("forced")) forced = integers(*found);
        if (const Json* found = json.find("stop_token_ids")) stop_ids = integers(*found);
        if (const Json* found = json.find("stop")) {
            for (const Json& text : found->array()) stop.push_back(text.string());
        }
        for (const std::string& text : stop) stop_views.push_back(text.c_str());
        o.forced = forced.data(), o.num_forced = forced.size();
        o.stop_token_ids = stop_ids.data(), o.num_stop_token_ids = stop_ids.size();
        o.stop = stop_views.data(), o.num_stop = stop_views.size();
    }
};

std::string show_event(const latrt_event& e) {
    const std::string step = ",\"step\":" + show(e.step) + "}";
    switch (e.kind) {
        case LATRT_EVENT_TOKEN:
            return "{\"kind\":\"token\",\"id\":" + show(e.token_id) +
                   ",\"text\":" + json_quote({e.text, e.text_size}) +
                   ",\"logprob\":" + show(e.logprob) +
                   ",\"forced\":" + (e.forced ? "true" : "false") + step;
        case LATRT_EVENT_REFLECTION:
            return "{\"kind\":\"reflection\",\"index\":" + show(e.index) +
                   ",\"opened\":" + (e.opened ? "true" : "false") + step;
        case LATRT_EVENT_REINJECT:
            return "{\"kind\":\"reinject\",\"inject\":" + json_quote(e.inject) +
                   ",\"select\":" + json_quote(e.select) +
                   ",\"selected\":" + array(e.selected, e.num_selected) +
                   ",\"skipped\":" + json_quote(e.skipped) + step;
        default:
            return "{\"kind\":\"done\",\"finish\":" + json_quote(e.finish_reason) + step;
    }
}

// Opened once for all requests about it.
const latrt_model* model_at(const std::string& path, int threads) {
    static std::vector<std::pair<std::string, std::unique_ptr<latrt_model, void (*)(latrt_model*)>>>
        open;
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    const std::string key = path + ":" + std::to_string(threads);
    for (const auto& [name, model] : open) {
        if (name == key) return model.get();
    }
    latrt_model_options options;
    latrt_model_options_init(&options);
    options.threads = threads;
    latrt_model* model = nullptr;
    check(latrt_open(path.c_str(), &options, &model));
    open.emplace_back(key,
                      std::unique_ptr<latrt_model, void (*)(latrt_model*)>(model, latrt_close));
    return model;
}

void ask(latrt_session* session, const Json& request, const std::vector<latrt_image>& images) {
    const Json* system = request.find("system");
    check(latrt_ask(session, images.data(), images.size(), request.at("question").string().c_str(),
                    system ? system->string().c_str() : nullptr));
}

// The answer; the last of several in one session, where the request says how many are `before`.
// `speculate`: for requests whose options name none.
std::string trace(const Json& request, int64_t speculate, int64_t before) {
    Options options(request.at("options"));
    if (!request.at("options").find("speculate")) options.o.speculate = speculate;
    if (const Json* found = request.find("before")) before = found->integer();
    latrt_session* made = nullptr;
    check(latrt_session_create(
        model_at(request.at("bundle").string(), static_cast<int>(number(request, "threads", 1))),
        &options.o, &made));
    const std::unique_ptr<latrt_session, void (*)(latrt_session*)> session(made,
                                                                           latrt_session_destroy);
    std::vector<std::string> files;
    std::vector<latrt_image> images;
    for (const Json& image : request.at("images").array())
        files.push_back(read_file(image.at("rgb").string()));
    for (size_t i = 0; i < files.size(); ++i) {
        const Json& image = request.at("images").array()[i];
        images.push_back({reinterpret_cast<const uint8_t*>(files[i].data()),
                          static_cast<int32_t>(image.at("width").integer()),
                          static_cast<int32_t>(image.at("height").integer()), 0});
    }
    for (; before > 0; --before) {
        ask(made, request, images);
        check(latrt_run(made, nullptr, nullptr));
        check(latrt_session_reset(made, &options.o));
    }
    ask(made, request, images);
    const Json* reinject = request.find("reinject");
    const latrt_event* events = nullptr;
    size_t count = 0;
    std::string all;
    for (int64_t step = 0;; ++step) {
        if (reinject && reinject->at("before").integer() == step) {
            const std::vector<int64_t> selected = integers(reinject->at("selected"));
            check(latrt_reinject(made, selected.data(), selected.size(),
                                 reinject->at("inject").string().c_str()));
        }
        check(latrt_step(made, &events, &count));
        if (count == 0) break;
        for (size_t i = 0; i < count; ++i) {
            if (!all.empty()) all += ',';
            all += show_event(events[i]);
        }
    }
    latrt_result r;
    check(latrt_get_result(made, &r));
    const int64_t* prompt = nullptr;
    size_t prompt_count = 0;
    check(latrt_get_prompt(made, &prompt, &prompt_count));
    std::string masses;
    for (size_t i = 0; i < r.num_masses; ++i) {
        const float* mass = nullptr;
        check(latrt_get_mass(made, i, &mass, &count));
        if (i) masses += ',';
        masses += array(mass, count);
    }
    return "{\"prompt\":" + array(prompt, prompt_count) + ",\"events\":[" + all +
           "],\"tokens\":" + array(r.tokens, r.num_tokens) +
           ",\"text\":" + json_quote({r.text, r.text_size}) +
           ",\"conclusion\":" + json_quote({r.conclusion, r.conclusion_size}) +
           ",\"finish\":" + json_quote(r.finish_reason) +
           ",\"visual_tokens\":" + show(r.visual_tokens) +
           ",\"reinjected_tokens\":" + show(r.reinjected_tokens) +
           ",\"num_reflections\":" + show(r.num_reflections) +
           (options.o.speculate
                ? ",\"drafted\":" + show(r.num_drafted) + ",\"accepted\":" + show(r.num_accepted)
                : "") +
           ",\"masses\":[" + masses + "]}";
}

std::string answer(const Json& request, int64_t speculate = 0) {
    const std::string& op = request.at("op").string();
    if (op == "encode") return encode(request);
    if (op == "pixels") return pixels(request);
    if (op == "random") return random(request);
    if (op == "draw") return draw(request);
    if (op == "render") return render(request);
    if (op == "trace") return trace(request, speculate, speculate ? 1 : 0);
    throw std::runtime_error("unknown op " + op);
}

// Where two values differ, "" where they are the same; numbers with a fraction up to rounding.
std::string difference(const Json& got, const Json& want, const std::string& where) {
    const auto is = [&](Json::Kind kind) { return got.is(kind) && want.is(kind); };
    std::string found;
    if (is(Json::Kind::object)) {
        for (const auto& [key, value] : want.object()) {
            const Json* other = got.find(key);
            if (found.empty())
                found = other ? difference(*other, value, where + "." + key) : where + "." + key;
        }
    } else if (is(Json::Kind::array) && got.array().size() == want.array().size()) {
        for (size_t i = 0; i < got.array().size() && found.empty(); ++i)
            found = difference(got.array()[i], want.array()[i],
                               where + "[" + show(static_cast<int64_t>(i)) + "]");
    } else if (want.is(Json::Kind::number) && !got.is(Json::Kind::string)) {
        const double bound = 2e-4 + 1e-4 * std::fabs(want.number());
        if (!(std::fabs(got.number() - want.number()) <= bound)) found = where;
    } else if (is(Json::Kind::integer)) {
        if (got.integer() != want.integer()) found = where;
    } else if (is(Json::Kind::string)) {
        if (got.string() != want.string()) found = where;
    } else if (is(Json::Kind::boolean)) {
        if (got.boolean() != want.boolean()) found = where;
    } else if (!(got.is_null() && want.is_null())) {
        found = where;
    }
    return found;
}

// Asks every line of standard input in every thread; the number of wrong answers. The first thread
// guesses nothing, the next one token ahead, and so on, having heard each answer once.
int compare_all(int num_threads) {
    std::vector<Json> lines;
    for (std::string line; std::getline(std::cin, line);) lines.push_back(Json::parse(line));
    std::mutex mutex;
    int wrong = lines.empty();
    const auto ask_all = [&](int64_t speculate) {
        for (size_t i = 0; i < lines.size(); ++i) {
            std::string found;
            try {
                const Json got = Json::parse(answer(lines[i].at("request"), speculate));
                found = difference(got, lines[i].at("answer"), "answer");
            } catch (const std::exception& error) {
                found = error.what();
            }
            if (found.empty()) continue;
            const std::lock_guard<std::mutex> lock(mutex);
            std::cout << "line " << i + 1 << ": " << found << std::endl;
            ++wrong;
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(ask_all, std::min(i, 3));
    for (std::thread& thread : threads) thread.join();
    std::cout << lines.size() << " requests in each of " << num_threads << " threads, " << wrong
              << " wrong" << std::endl;
    return wrong;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1) return compare_all(std::max(1, std::atoi(argv[1]))) != 0;
    std::string line;
    while (std::getline(std::cin, line)) {
        std::string out;
        try {
            out = answer(Json::parse(line));
        } catch (const latrt::Error& error) {
            out = "{\"error\":" + json_quote(error.name()) +
                  ",\"status\":" + std::to_string(static_cast<int>(error.status())) +
                  ",\"message\":" + json_quote(error.what()) + "}";
        } catch (const std::exception& error) {
            out = "{\"error\":\"\",\"message\":" + json_quote(error.what()) + "}";
        }
        std::cout << out << std::endl;
    }
}
