#include "tests/emulation/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace latrt::emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;

// A stack whose lowest page faults, so that an overflow is no silent corruption.
uint8_t* new_stack() {
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, kGuardBytes, PROT_NONE) != 0) {
        std::perror("emulation: stack");
        std::abort();
    }
    return static_cast<uint8_t*>(stack);
}

}  // namespace

#if defined(__x86_64__)

// Saves the callee-saved registers on the running stack, its top in *rdi, and goes on at rsi.
extern "C" void latrt_switch(void** save, void* load);
asm(R"(
.text
.globl latrt_switch
.type latrt_switch, @function
latrt_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size latrt_switch, .-latrt_switch
)");

struct Fiber::Context {
    uint8_t* stack = new_stack();
    void *inside = nullptr, *outside = nullptr;
};

void Fiber::prepare(void (*entry)()) {
    void** top = reinterpret_cast<void**>(context_->stack + kStackBytes) - 2;
    *top = reinterpret_cast<void*>(entry);  // the address that `ret` takes
    context_->inside = top - 6;             // six registers of any value
}

void Fiber::resume() {
    latrt_switch(&context_->outside, context_->inside);
}

void Fiber::yield() {
    latrt_switch(&context_->inside, context_->outside);
}

#else

struct Fiber::Context {
    uint8_t* stack = new_stack();
    ucontext_t inside, outside;
};

void Fiber::prepare(void (*entry)()) {
    getcontext(&context_->inside);
    context_->inside.uc_stack.ss_sp = context_->stack;
    context_->inside.uc_stack.ss_size = kStackBytes;
    context_->inside.uc_link = nullptr;
    makecontext(&context_->inside, entry, 0);
}

void Fiber::resume() {
    swapcontext(&context_->outside, &context_->inside);
}

void Fiber::yield() {
    swapcontext(&context_->inside, &context_->outside);
}

#endif

Fiber::Fiber() : context_(new Context) {}

Fiber::~Fiber() {
    munmap(context_->stack, kStackBytes);
    delete context_;
}

}  // namespace latrt::emulation
