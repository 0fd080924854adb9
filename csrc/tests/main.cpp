// Runs the tests whose names begin with one of the arguments; all of them without arguments.
#include <cstring>

#include "kernels/cpu/kernels.h"
#include "tests/check.h"

int main(int argc, char** argv) {
    using namespace latrt;
    for (int i = 0; i < kNumIsas; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (find_kernels(isa) == nullptr) {
            const char* who = cpu_has(isa) ? "build" : "processor";
            std::printf("skipped: level %s, this %s lacks it\n", isa_name(isa), who);
        }
    }
    int ran = 0;
    for (const test::Case& entry : test::cases()) {
        bool wanted = argc == 1;
        for (int i = 1; i < argc; ++i) {
            wanted |= std::strncmp(entry.name, argv[i], std::strlen(argv[i])) == 0;
        }
        if (!wanted) continue;
        const int before = test::failures();
        entry.function();
        std::printf("%s %s\n", test::failures() == before ? "ok  " : "FAIL", entry.name);
        ++ran;
    }
    std::printf("%d tests, %d failures\n", ran, test::failures());
    return ran == 0 || test::failures() != 0;
}
