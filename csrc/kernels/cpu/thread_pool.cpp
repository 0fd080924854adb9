#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>

#if defined(__linux__)
#include <sched.h>
#endif
#include <pthread.h>

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

// Numbers at the start of a file; none where it cannot be read.
std::vector<double> numbers_in(const std::string& path) {
    std::vector<double> numbers;
    std::ifstream file(path);
    for (double number; file >> number;) numbers.push_back(number);
    return numbers;
}

// The quota that is set in one directory, or 0.
double directory_cpus(const std::string& directory, bool version2) {
    std::vector<double> quota;
    if (version2) {
        quota = numbers_in(directory + "/cpu.max");  // "max" is no number
    } else {
        quota = numbers_in(directory + "/cpu.cfs_quota_us");
        const std::vector<double> period = numbers_in(directory + "/cpu.cfs_period_us");
        quota.insert(quota.end(), period.begin(), period.end());
    }
    return quota.size() == 2 && quota[0] > 0 && quota[1] > 0 ? quota[0] / quota[1] : 0;
}

bool names_cpu(const std::string& controllers) {
    return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

// Forks of this process and of those it comes from, and what is locked while one takes place.
std::atomic<unsigned> num_forks{0};
std::mutex pools_mutex;

void count_forks() {
    static const int registered =
        pthread_atfork([] { pools_mutex.lock(); }, [] { pools_mutex.unlock(); },
                       [] {
                           pools_mutex.unlock();
                           ++num_forks;
                       });
    static_cast<void>(registered);
}

}  // namespace

double cgroup_cpus(const std::string& root) {
    double least = 0;
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {  // number:controllers:path
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool version2 = controllers.empty();
        if (!version2 && !names_cpu(controllers)) continue;
        const std::string top = root + "/sys/fs/cgroup" + (version2 ? "" : "/cpu");
        std::string path = line.substr(second + 1);
        for (;;) {
            const double cpus = directory_cpus(top + path, version2);
            if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
            const size_t parent = path.rfind('/');
            if (parent == std::string::npos) break;
            path.resize(parent);
        }
    }
    return least;
}

int allowed_threads() {
    const int threads = affinity_threads();
    const double quota = cgroup_cpus();
    const int limit = quota > 0 ? static_cast<int>(quota + 0.999) : threads;
    return std::max(1, std::min(threads, limit));
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads < 1 ? allowed_threads() : num_threads),
      ticket_(make_ticket(0, kClosed)),
      sleep_(std::make_unique<Sleep>()) {
    count_forks();
    num_forks_ = num_forks;
    try {
        for (int i = 1; i < num_threads_; ++i) {
            workers_.emplace_back([this, i] { work(i); });
        }
    } catch (...) {
        join_workers();
        throw;
    }
}

ThreadPool::~ThreadPool() {
    if (!forked()) {
        join_workers();
        return;
    }
    for (std::thread& worker : workers_) worker.detach();
    // Not destroyed: that would wait for the workers that slept when the process was forked.
    static_cast<void>(sleep_.release());
}

bool ThreadPool::forked() const {
    return num_forks_ != num_forks;
}

void ThreadPool::join_workers() {
    {
        std::lock_guard lock(sleep_->mutex);
        stop_ = true;
    }
    sleep_->wake.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

std::shared_ptr<ThreadPool> ThreadPool::shared(int num_threads) {
    // Never destroyed: a session may still run when static objects go.
    static auto& pools = *new std::map<int, std::weak_ptr<ThreadPool>>;
    const int size = num_threads < 1 ? allowed_threads() : num_threads;
    count_forks();
    std::lock_guard lock(pools_mutex);
    std::shared_ptr<ThreadPool> pool = pools[size].lock();
    if (!pool || pool->forked()) pools[size] = pool = std::make_shared<ThreadPool>(size);
    return pool;
}

void ThreadPool::run(int num_tasks, Task task, void* context) {
    if (num_threads_ == 1 || num_tasks <= 1 || forked() || running_.exchange(true)) {
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
        std::lock_guard sleep_lock(sleep_->mutex);
        sleep_->wake.notify_all();
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
    std::unique_lock<std::mutex> lock(sleep_->mutex);
    num_sleeping_.fetch_add(1);
    sleep_->wake.wait(lock, [&] { return stop_.load() || changed(); });
    num_sleeping_.fetch_sub(1);
    return !stop_.load();
}

}  // namespace latrt
