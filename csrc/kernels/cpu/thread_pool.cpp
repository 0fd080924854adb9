#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>

#if defined(__linux__)
#include <sched.h>
#endif
#include <unistd.h>

namespace latrt {
namespace {

constexpr uint32_t kClosed = 0xffffffffu;
constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr int kSpinsBetweenClocks = 64;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

uint32_t generation_of(uint64_t ticket) {
    return static_cast<uint32_t>(ticket >> 32);
}
uint32_t next_of(uint64_t ticket) {
    return static_cast<uint32_t>(ticket);
}
uint64_t make_ticket(uint32_t generation, uint32_t next) {
    return static_cast<uint64_t>(generation) << 32 | next;
}

int affinity_threads() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

// Quota in CPUs of the cgroup, or 0 where there is none.
double cgroup_cpus() {
    double quota = 0, period = 0;
    if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
        const int fields = std::fscanf(file, "%lf %lf", &quota, &period);
        std::fclose(file);
        return fields == 2 && period > 0 ? quota / period : 0;
    }
    const char* const kNames[2] = {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
                                   "/sys/fs/cgroup/cpu/cpu.cfs_period_us"};
    double* const values[2] = {&quota, &period};
    for (int i = 0; i < 2; ++i) {
        std::FILE* file = std::fopen(kNames[i], "r");
        if (file == nullptr) return 0;
        const int fields = std::fscanf(file, "%lf", values[i]);
        std::fclose(file);
        if (fields != 1) return 0;
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

}  // namespace

int allowed_threads() {
    const int threads = affinity_threads();
    const double quota = cgroup_cpus();
    const int limit = quota > 0 ? static_cast<int>(quota + 0.999) : threads;
    return std::max(1, std::min(threads, limit));
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads < 1 ? allowed_threads() : num_threads),
      owner_pid_(getpid()),
      ticket_(make_ticket(0, kClosed)) {
    for (int i = 1; i < num_threads_; ++i) {
        workers_.emplace_back([this, i] { work(i); });
    }
}

ThreadPool::~ThreadPool() {
    if (getpid() != owner_pid_) {  // a forked child has no workers to join
        for (std::thread& worker : workers_) worker.detach();
        return;
    }
    {
        std::lock_guard lock(sleep_mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

std::shared_ptr<ThreadPool> ThreadPool::shared(int num_threads) {
    static std::mutex mutex;
    static std::map<int, std::weak_ptr<ThreadPool>> pools;
    const int size = num_threads < 1 ? allowed_threads() : num_threads;
    std::lock_guard lock(mutex);
    std::shared_ptr<ThreadPool> pool = pools[size].lock();
    if (!pool) pools[size] = pool = std::make_shared<ThreadPool>(size);
    return pool;
}

void ThreadPool::run(int num_tasks, Task task, void* context) {
    if (num_threads_ == 1 || num_tasks <= 1 || running_.exchange(true)) {
        for (int i = 0; i < num_tasks; ++i) task(context, i, 0);
        return;
    }
    // Closed first: a worker that read an older ticket cannot then take a task of a newer call.
    const uint32_t generation = generation_of(ticket_.load()) + 1;
    ticket_.store(make_ticket(generation, kClosed));
    task_.store(task);
    context_.store(context);
    num_tasks_.store(static_cast<uint32_t>(num_tasks));
    num_done_.store(0);
    ticket_.store(make_ticket(generation, 0));
    if (num_sleeping_.load() > 0) {
        std::lock_guard sleep_lock(sleep_mutex_);
        wake_.notify_all();
    }
    take_tasks(0);
    for (int spins = 0; num_done_.load(std::memory_order_acquire) != num_tasks_; ++spins) {
        if (spins < 4096) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
    running_.store(false);
}

void ThreadPool::take_tasks(int thread) {
    for (;;) {
        uint64_t ticket = ticket_.load();
        const Task task = task_.load();
        void* const context = context_.load();
        if (next_of(ticket) >= num_tasks_.load()) return;  // kClosed is larger than any count
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
        task(context, static_cast<int>(next_of(ticket)), thread);
        num_done_.fetch_add(1, std::memory_order_release);
    }
}

void ThreadPool::work(int thread) {
    uint32_t generation = 0;
    while (wait_for_ticket(generation)) take_tasks(thread);
}

bool ThreadPool::wait_for_ticket(uint32_t& generation) {
    // A call that is still closed does not count: who took it for seen would miss it once it opens.
    const auto changed = [&] {
        const uint64_t ticket = ticket_.load();
        if (generation_of(ticket) == generation || next_of(ticket) == kClosed) return false;
        generation = generation_of(ticket);
        return true;
    };
    const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
    do {
        for (int i = 0; i < kSpinsBetweenClocks; ++i) {
            if (stop_.load(std::memory_order_relaxed)) return false;
            if (changed()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < deadline);
    std::unique_lock<std::mutex> lock(sleep_mutex_);
    num_sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return stop_.load() || changed(); });
    num_sleeping_.fetch_sub(1);
    return !stop_.load();
}

}  // namespace latrt
