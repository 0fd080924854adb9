// Contexts with their own stack and a switch between them.
#pragma once

#include <cstddef>

namespace latrt::emulation {

class Fiber {
 public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // From now on `entry` runs on this fiber's stack when it is resumed. It must not return.
    void prepare(void (*entry)());
    // Runs the fiber until it yields; called from outside of any fiber.
    void resume();
    // Goes back to where this fiber was resumed; called from inside of it.
    void yield();

 private:
    struct Context;
    Context* context_;
};

}  // namespace latrt::emulation
