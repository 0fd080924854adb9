// A machine that refuses memory or a thread, at every place where it can: no call breaks its
// object.
#include <dlfcn.h>
#include <latrt/latrt.h>
#include <pthread.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "tests/check.h"

namespace {

thread_local int64_t allocations_left = -1;  // below 0: no limit; the one after the last fails
bool no_threads = false;

void* allocate(size_t size) noexcept {
    if (allocations_left >= 0 && allocations_left-- == 0) return nullptr;
    return std::malloc(size ? size : 1);
}

}  // namespace

void* operator new(size_t size) {
    if (void* memory = allocate(size)) return memory;
    throw std::bad_alloc();
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
    return allocate(size);
}
void operator delete(void* memory) noexcept {
    std::free(memory);
}
void operator delete(void* memory, size_t) noexcept {
    std::free(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
    std::free(memory);
}

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LATRT_REFUSES_THREADS
// Stands before the system's.
extern "C" __attribute__((visibility("default"))) int pthread_create(
    pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
    void* argument) noexcept {
    if (no_threads) return EAGAIN;
    using Function = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    static const Function real = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "pthread_create"));
    return real(thread, attributes, start, argument);
}
#endif

namespace {

const std::string kBundle = std::string(LATRT_GOLDEN) + "/bundle";
const std::vector<uint8_t> kPixels(70 * 60 * 3, 90);
const latrt_image kImage = {kPixels.data(), 70, 60, 0};
const std::vector<int64_t> kMany(300, 7);
const std::string kWords(90, 'x');

latrt_model* open_model(int32_t threads) {
    latrt_model* model = nullptr;
    latrt_model_options options;
    latrt_model_options_init(&options);
    options.threads = threads, options.skip_verify = 1;
    CHECK(latrt_open(kBundle.c_str(), &options, &model) == LATRT_OK);
    return model;
}

struct Walk {
    latrt_model* model = open_model(1);
    latrt_session* session = nullptr;

    Walk() { CHECK(latrt_session_create(model, nullptr, &session) == LATRT_OK); }
    ~Walk() { latrt_session_destroy(session), latrt_close(model); }
    Walk(const Walk&) = delete;
    Walk& operator=(const Walk&) = delete;

    // A short prompt with one image, which the calls under test lengthen.
    void begin() {
        latrt_session_options options;
        latrt_session_options_init(&options);
        options.max_tokens = 3, options.ignore_eos = 1, options.policy = "route";
        const int64_t ids[] = {1, 2, 3};
        CHECK(latrt_session_reset(session, &options) == LATRT_OK);
        CHECK(latrt_append_tokens(session, ids, 3) == LATRT_OK);
        CHECK(latrt_append_image(session, &kImage) == LATRT_OK);
    }
    size_t prompt_size() {
        const int64_t* ids;
        size_t count = 0;
        CHECK(latrt_get_prompt(session, &ids, &count) == LATRT_OK);
        return count;
    }
    std::vector<int64_t> answer() {
        CHECK(latrt_run(session, nullptr, nullptr) == LATRT_OK);
        latrt_result r;
        CHECK(latrt_get_result(session, &r) == LATRT_OK);
        return {r.tokens, r.tokens + r.num_tokens};
    }
    bool cancelled() {
        latrt_result r;
        CHECK(latrt_get_result(session, &r) == LATRT_OK);
        return std::strcmp(r.finish_reason, "cancelled") == 0;
    }

    // Fails each allocation of `call` in turn. Afterwards the call works, and the answer is the
    // one of a session where nothing failed; or the answer has ended, which only a step may do.
    void over(const char* what, bool is_step, const std::function<latrt_status()>& call) {
        begin();
        const size_t before = prompt_size();
        CHECK(call() == LATRT_OK);
        const std::vector<int64_t> want = answer();
        int failed = 0, ended = 0;
        for (int64_t n = 0;; ++n) {
            begin();
            allocations_left = n;
            const latrt_status status = call();
            const bool reached = allocations_left < 0;
            allocations_left = -1;
            if (!reached) break;
            if (status == LATRT_OK) continue;  // std::stable_sort does with less
            ++failed;
            const std::string where = std::string(what) + ", allocation " + std::to_string(n);
            if (status != LATRT_MACHINE || prompt_size() != before)
                latrt::test::fail(__FILE__, __LINE__, where + ": changed, or another status");
            if (is_step && cancelled()) {
                ++ended;
                CHECK(answer().size() <= 1);
            } else if (call() != LATRT_OK || answer() != want) {
                latrt::test::fail(__FILE__, __LINE__, where + ": the answer differs");
            }
        }
        CHECK(answer() == want);
        std::printf("%s: %d allocations failed, %d ended the answer\n", what, failed, ended);
        CHECK(failed > 0 && ended < failed);
    }
};

}  // namespace

TEST(scarce_memory_changes_nothing) {
    Walk walk;
    latrt_session* const s = walk.session;
    walk.over("tokens", false, [&] { return latrt_append_tokens(s, kMany.data(), kMany.size()); });
    walk.over("text", false, [&] { return latrt_append_text(s, kWords.data(), kWords.size()); });
    walk.over("control", false, [&] { return latrt_append_control(s, "<|im_start|>"); });
    walk.over("image", false, [&] { return latrt_append_image(s, &kImage); });
    const latrt_event* events;
    size_t count;
    walk.over("step", true, [&] { return latrt_step(s, &events, &count); });
}

TEST(scarce_memory_leaves_the_guesses_usable) {
    Walk walk;
    latrt_session_options options;
    latrt_session_options_init(&options);
    options.max_tokens = 12, options.ignore_eos = 1, options.speculate = 3;
    const int64_t ids[] = {1, 2, 3};
    const auto begin = [&] {
        CHECK(latrt_session_reset(walk.session, &options) == LATRT_OK);
        CHECK(latrt_append_tokens(walk.session, ids, 3) == LATRT_OK);
    };
    begin();
    const std::vector<int64_t> want = walk.answer();
    int failed = 0;
    for (int64_t n = 0;; ++n) {
        begin();
        allocations_left = n;
        const latrt_status status = latrt_run(walk.session, nullptr, nullptr);
        const bool reached = allocations_left < 0;
        allocations_left = -1;
        if (!reached) break;
        failed += status != LATRT_OK;
        begin();
        if (walk.answer() != want)
            latrt::test::fail(__FILE__, __LINE__, "allocation " + std::to_string(n));
    }
    latrt_result r;
    CHECK(latrt_get_result(walk.session, &r) == LATRT_OK);
    std::printf("%d allocations failed\n", failed);
    CHECK(failed > 0 && r.num_accepted > 0);
}

TEST(scarce_threads_are_the_machines_fault) {
#if defined(LATRT_REFUSES_THREADS)
    latrt_model* model = open_model(7);  // a pool that nobody has yet
    latrt_session* session = nullptr;
    no_threads = true;
    const latrt_status status = latrt_session_create(model, nullptr, &session);
    no_threads = false;
    CHECK(status == LATRT_MACHINE && std::strcmp(latrt_error_name(), "E_ENVIRONMENT") == 0);
    CHECK(session == nullptr);
    CHECK(latrt_session_create(model, nullptr, &session) == LATRT_OK);
    latrt_session_destroy(session), latrt_close(model);
#else
    (void)no_threads;
    std::printf("skipped: a sanitizer has its own threads\n");
#endif
}
