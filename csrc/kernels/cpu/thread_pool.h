// Threads that share the tasks of one call, spin briefly between calls, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace latrt {

// CPUs that this process may use: its affinity, cut to its cgroups' quota; at least 1.
int allowed_threads();

// The least quota, in CPUs, of this process' cgroup and those above it, of version 1 or 2; 0 where
// there is none. `root` stands before /proc and /sys.
double cgroup_cpus(const std::string& root = "");

// `run` may be called from several threads, and from a task: who finds the workers busy does its
// tasks alone, so that no call waits for another and no more threads run than were asked for.
// A call is over when its tasks are done, not when every worker has woken: a worker that the
// system keeps from running delays nobody, unless it holds a task. In a forked child, which has no
// workers, the caller does all tasks.
class ThreadPool {
 public:
    using Task = void (*)(void* context, int task, int thread);

    // `num_threads` counts the caller; below 1: `allowed_threads()`. Throws std::system_error where
    // the system has no more threads.
    explicit ThreadPool(int num_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // The pool of that size, shared by all of a process who hold it.
    static std::shared_ptr<ThreadPool> shared(int num_threads);

    int num_threads() const { return num_threads_; }

    // Calls task(context, i, thread) once for every i below `num_tasks`, 0 <= thread <
    // `num_threads()`; no two tasks of a call run at a time under one number. Tasks do not throw.
    void run(int num_tasks, Task task, void* context);

    // The same for a callable (task, thread).
    template <class F>
    void run(int num_tasks, F&& function) {
        using Function = std::remove_reference_t<F>;
        run(
            num_tasks,
            [](void* context, int task, int thread) {
                (*static_cast<Function*>(context))(task, thread);
            },
            const_cast<void*>(static_cast<const void*>(&function)));
    }

 private:
    struct Sleep {
        std::mutex mutex;
        std::condition_variable wake;
    };

    bool forked() const;
    void join_workers();
    void work(int thread);
    void take_tasks(int thread);
    // Until a call newer than `generation` is open, which is then its number; false at the end.
    bool wait_for_ticket(uint32_t& generation);

    int num_threads_;
    std::vector<std::thread> workers_;
    std::atomic<bool> running_{false};
    unsigned num_forks_;

    // High half: number of the call. Low half: its next task, or kClosed.
    std::atomic<uint64_t> ticket_;
    std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<uint32_t> num_tasks_{0};
    std::atomic<uint32_t> num_done_{0};
    std::atomic<bool> stop_{false};

    std::unique_ptr<Sleep> sleep_;
    std::atomic<int> num_sleeping_{0};
};

}  // namespace latrt
