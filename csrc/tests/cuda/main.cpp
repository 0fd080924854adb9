// Runs the emulated CUDA kernels' tests whose names begin with an argument, or all of them.
//   --seed N         inputs and the order of threads
//   --effort N       N times as many cases
//   --without SITE   one synchronisation, "file:line", does nothing: the tests must fail
//   --sites          print every synchronisation that ran
//   --shared         print the most dynamic shared memory of a launch, in bytes
//   --stop           no further case after the first failure
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/check.h"
#include "tests/cuda/options.h"
#include "tests/emulation/emulation.h"

namespace {
uint64_t first_seed = 0;
int effort = 1;
bool stop = false;
}  // namespace

uint64_t latrt::test::seed() {
    emulation::options.seed += 1;  // another order of threads for every case
    return first_seed;
}

int latrt::test::repeats(int few) {
    return stop && failures() != 0 ? 0 : few * effort;
}

int main(int argc, char** argv) {
    using namespace latrt;
    std::vector<const char*> prefixes;
    bool print_sites = false, print_shared = false;
    for (int i = 1; i < argc; ++i) {
        const bool more = i + 1 < argc;
        if (more && !std::strcmp(argv[i], "--seed")) {
            first_seed = emulation::options.seed = std::strtoull(argv[++i], nullptr, 10);
        } else if (more && !std::strcmp(argv[i], "--effort")) {
            effort = std::atoi(argv[++i]);
        } else if (more && !std::strcmp(argv[i], "--without")) {
            emulation::options.without = argv[++i];
        } else if (!std::strcmp(argv[i], "--sites")) {
            print_sites = true;
        } else if (!std::strcmp(argv[i], "--shared")) {
            print_shared = true;
        } else if (!std::strcmp(argv[i], "--stop")) {
            stop = true;
        } else {
            prefixes.push_back(argv[i]);
        }
    }
    int ran = 0;
    for (const test::Case& entry : test::cases()) {
        bool wanted = prefixes.empty();
        for (const char* prefix : prefixes) {
            wanted |= std::strncmp(entry.name, prefix, std::strlen(prefix)) == 0;
        }
        if (!wanted) continue;
        if (stop && test::failures() != 0) break;
        const int before = test::failures();
        entry.function();
        std::printf("%s %s\n", test::failures() == before ? "ok  " : "FAIL", entry.name);
        ++ran;
    }
    if (print_sites) {
        for (const std::string& site : emulation::sites()) std::printf("site %s\n", site.c_str());
    }
    if (print_shared) std::printf("shared %zu\n", emulation::most_shared_bytes());
    std::printf("%d tests, %d failures\n", ran, test::failures());
    return ran == 0 || test::failures() != 0;
}
