#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <thread>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/check.h"

using latrt::ThreadPool;

TEST(threads_run_every_task_once) {
    for (int num_threads : {1, 2, 3, 8}) {
        ThreadPool pool(num_threads);
        CHECK(pool.num_threads() == num_threads);
        for (int num_tasks : {0, 1, 2, 19, 111}) {
            std::vector<std::atomic<int>> count(static_cast<size_t>(num_tasks));
            std::atomic<int> bad_thread{0};
            pool.run(num_tasks, [&](int task, int thread) {
                count[static_cast<size_t>(task)]++;
                if (thread < 0 || thread >= num_threads) bad_thread++;
            });
            for (const auto& n : count) CHECK(n == 1);
            CHECK(bad_thread == 0);
        }
    }
}

TEST(threads_run_calls_back_to_back) {
    ThreadPool pool(3);
    std::vector<int> values(64, 0);
    for (int round = 0; round < 2000; ++round) {
        pool.run(static_cast<int>(values.size()),
                 [&](int task, int) { values[static_cast<size_t>(task)]++; });
    }
    for (int value : values) CHECK(value == 2000);
}

TEST(threads_wake_after_sleeping) {
    ThreadPool pool(2);
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(3));
        std::atomic<int> sum{0};
        pool.run(10, [&](int task, int) { sum += task; });
        CHECK(sum == 45);
    }
}

TEST(threads_number_is_never_shared) {
    ThreadPool pool(4);
    std::vector<std::atomic<int>> busy(4);
    std::atomic<int> clashes{0};
    for (int round = 0; round < 50; ++round) {
        pool.run(40, [&](int, int thread) {
            if (busy[static_cast<size_t>(thread)]++ != 0) clashes++;
            busy[static_cast<size_t>(thread)]--;
        });
    }
    CHECK(clashes == 0);
}

TEST(threads_serve_two_callers_and_a_task_that_calls) {
    const auto pool = ThreadPool::shared(2);
    CHECK(pool == ThreadPool::shared(2));
    CHECK(pool != ThreadPool::shared(3));
    std::atomic<int> sum{0};
    const auto call = [&] {
        for (int round = 0; round < 200; ++round) pool->run(7, [&](int task, int) { sum += task; });
    };
    std::thread other(call);
    call();
    other.join();
    CHECK(sum == 2 * 200 * 21);
    sum = 0;
    pool->run(3, [&](int, int) { pool->run(7, [&](int task, int) { sum += task; }); });
    CHECK(sum == 3 * 21);
}

TEST(threads_default_to_what_is_allowed) {
    CHECK(latrt::allowed_threads() >= 1);
    CHECK(ThreadPool(0).num_threads() == latrt::allowed_threads());
}

TEST(threads_keep_to_the_quota_of_every_cgroup_above) {
    char root[] = "/tmp/latrt_cgroup_XXXXXX";
    CHECK(mkdtemp(root) != nullptr);
    const std::filesystem::path at(root), groups = at / "sys/fs/cgroup";
    const auto write = [](const std::filesystem::path& path, const char* text) {
        std::filesystem::create_directories(path.parent_path());
        std::ofstream(path) << text;
    };
    CHECK(latrt::cgroup_cpus(root) == 0);
    write(at / "proc/self/cgroup", "0::/job/step\n");
    write(groups / "job/step/cpu.max", "max 100000\n");
    CHECK(latrt::cgroup_cpus(root) == 0);
    write(groups / "job/cpu.max", "150000 100000\n");
    CHECK(latrt::cgroup_cpus(root) == 1.5);
    write(groups / "cpu.max", "50000 100000\n");
    CHECK(latrt::cgroup_cpus(root) == 0.5);
    // Version 1, seen from inside a container: the path of the host is not there.
    write(at / "proc/self/cgroup", "4:memory:/m\n3:cpuset:/s\n2:cpu,cpuacct:/docker/1\n");
    write(groups / "cpu/cpu.cfs_quota_us", "-1\n");
    write(groups / "cpu/cpu.cfs_period_us", "100000\n");
    CHECK(latrt::cgroup_cpus(root) == 0);
    write(groups / "cpu/cpu.cfs_quota_us", "200000\n");
    CHECK(latrt::cgroup_cpus(root) == 2);
    std::filesystem::remove_all(at);
}

// What follows, sanitizers do not allow: little address space, threads of a forked child.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

TEST(threads_that_cannot_start_end_the_others) {
    rlimit before;
    getrlimit(RLIMIT_AS, &before);
    const rlimit little = {rlim_t{1} << 30, before.rlim_max};
    CHECK(setrlimit(RLIMIT_AS, &little) == 0);
    bool threw = false;
    try {
        ThreadPool pool(4000);  // 8 MiB of stack each
    } catch (const std::system_error&) {
        threw = true;
    }
    setrlimit(RLIMIT_AS, &before);
    CHECK(threw);
}

// In the first round the workers spin while the process forks, then they sleep.
TEST(threads_of_a_forked_child_are_its_own) {
    for (int round = 0; round < 10; ++round) {
        auto pool = std::make_unique<ThreadPool>(4);
        const auto shared = ThreadPool::shared(3);
        if (round > 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        const pid_t child = fork();
        if (child == 0) {
            alarm(20);
            int sum = 0;
            for (int call = 0; call < 3; ++call) pool->run(9, [&](int task, int) { sum += task; });
            const auto own = ThreadPool::shared(3);
            std::atomic<int> num_tasks{0};
            own->run(9, [&](int, int) { ++num_tasks; });
            pool.reset();
            _exit(sum == 3 * 36 && num_tasks == 9 && own != shared ? 0 : 1);
        }
        int status = -1;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

#endif

TEST(isa_names_are_read_back) {
    using latrt::Isa;
    for (int i = 0; i < latrt::kNumIsas; ++i) {
        Isa isa = Isa::plain;
        CHECK(latrt::parse_isa(latrt::isa_name(static_cast<Isa>(i)), isa));
        CHECK(isa == static_cast<Isa>(i));
    }
    Isa isa = Isa::avx2;
    CHECK(!latrt::parse_isa("sse9", isa) && isa == Isa::avx2);
    CHECK(latrt::cpu_has(Isa::plain));
    CHECK(!latrt::cpu_has(Isa::avx512) || latrt::cpu_has(Isa::avx2));
    CHECK(!latrt::cpu_has(Isa::avx512_bf16) || latrt::cpu_has(Isa::avx512));
    CHECK(!latrt::cpu_has(Isa::amx) || latrt::cpu_has(Isa::avx512_bf16));
}

// Calls follow each other at once, as layers do: a worker that sees one being prepared must not
// take it for seen. Each call's two tasks wait for each other.
TEST(threads_no_worker_misses_a_call) {
    ThreadPool pool(2);
    int missed = 0;
    for (int call = 0; call < 20000 && missed == 0; ++call) {
        std::atomic<int> arrived{0};
        pool.run(2, [&](int, int) {
            ++arrived;
            const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
            while (arrived < 2 && std::chrono::steady_clock::now() < deadline) {
                std::this_thread::yield();
            }
            if (arrived < 2) ++missed;
        });
    }
    CHECK(missed == 0);
}
