#include "tests/emulation/emulation.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>

#include "tests/emulation/fiber.h"

namespace latrt::emulation {

Current current;
Options options;

namespace {

constexpr int kWarp = 32;
constexpr size_t kMaxSharedBytes = 99 << 10;  // the smallest opt-in limit of the targets
constexpr uint8_t kPoison = 0xff;             // a NaN in every float format
constexpr size_t kCanaryBytes = 4096;

struct Copy {
    void* to;
    const void* from;
    int bytes, valid_bytes;
};

struct Thread {
    Fiber fiber;
    Index index;
    bool done = false;
    uint32_t priority = 0;
    const char* waits_at = nullptr;
    unsigned waits_line = 0;
    std::deque<std::vector<Copy>> groups;  // committed copies that have not landed
    std::vector<Copy> open;                // copies of the group that is not committed yet
};

// Threads that meet: a block or a warp.
struct Meeting {
    int expected = 0;
    std::vector<int> waiting;
    std::vector<void*> operands;
    const char* file = nullptr;
    unsigned line = 0;
};

// A place in the source, by the address of its file's name; the same name may have several.
struct KnownSite {
    const char* file;
    unsigned line;
    size_t number;
};

// Who runs as far as it can before others run: nobody, warps in random order, threads in random
// order. The last two let some get far ahead where a barrier is missing.
enum class Order { any, by_warp, by_thread };

struct Block {
    Order order = Order::any;
    std::vector<int> runnable;
    std::vector<Meeting> warps;
    Meeting all;
    int running = 0;
    const std::function<void()>* body = nullptr;
};

std::vector<std::unique_ptr<Thread>> threads;
std::vector<uint8_t> shared;
std::vector<std::string> seen_sites;
std::vector<KnownSite> known_sites;
size_t without = SIZE_MAX;  // the number of the seen site that options.without names
size_t most_shared = 0;
Block block;
uint64_t random_state = 1;

uint32_t draw(size_t below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<uint32_t>((random_state >> 32) % below);
}

[[noreturn, gnu::format(printf, 1, 2)]] void refuse(const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::printf("emulation: block (%u, %u, %u): ", current.block.x, current.block.y,
                current.block.z);
    std::vprintf(format, values);
    std::printf("\n");
    va_end(values);
    std::fflush(stdout);
    std::abort();
}

std::string name(const Site& site) {
    const std::string file = site.file_name();
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

void land(const Copy& copy) {
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.valid_bytes));
    std::memset(static_cast<uint8_t*>(copy.to) + copy.valid_bytes, 0,
                static_cast<size_t>(copy.bytes - copy.valid_bytes));
}

void land(std::vector<Copy>& copies) {
    for (const Copy& copy : copies) land(copy);
    copies.clear();
}

// Waits until everyone has come; true for the last, who runs on.
bool meet(Meeting& meeting, const Site& site, void* operands, int slot) {
    if (meeting.waiting.empty()) {
        meeting.file = site.file_name();
        meeting.line = site.line();
    } else if (meeting.line != site.line() || std::strcmp(meeting.file, site.file_name()) != 0) {
        refuse("thread %d waits at %s, others at %s:%u", block.running, name(site).c_str(),
               meeting.file, meeting.line);
    }
    if (!meeting.operands.empty()) meeting.operands[static_cast<size_t>(slot)] = operands;
    Thread& self = *threads[static_cast<size_t>(block.running)];
    if (static_cast<int>(meeting.waiting.size()) + 1 == meeting.expected) return true;
    meeting.waiting.push_back(block.running);
    self.waits_at = site.file_name();
    self.waits_line = site.line();
    self.fiber.yield();
    self.waits_at = nullptr;
    return false;
}

void release(Meeting& meeting) {
    block.runnable.insert(block.runnable.end(), meeting.waiting.begin(), meeting.waiting.end());
    meeting.waiting.clear();
}

void thread_main() {
    (*block.body)();
    Thread& self = *threads[static_cast<size_t>(block.running)];
    for (auto& group : self.groups) land(group);
    self.groups.clear();
    land(self.open);
    self.done = true;
    self.fiber.yield();
}

void prepare_threads(int num_threads) {
    const Order order = block.order = static_cast<Order>(draw(3));
    block.runnable.clear();
    for (int i = 0; i < num_threads; ++i) {
        Thread& thread = *threads[static_cast<size_t>(i)];
        thread.fiber.prepare(thread_main);
        thread.done = false;
        const Thread& first = *threads[static_cast<size_t>(i / kWarp * kWarp)];
        const bool own = order == Order::by_thread || (order == Order::by_warp && i % kWarp == 0);
        thread.priority = order == Order::any ? 0 : own ? draw(SIZE_MAX) : first.priority;
        block.runnable.push_back(i);
    }
}

// Takes the next thread: of the highest priority, and among equals at random.
int take_runnable() {
    std::vector<int>& ready = block.runnable;
    size_t best = draw(ready.size());
    for (size_t i = 0; i < ready.size() && block.order != Order::any; ++i) {
        const auto priority = [&](size_t at) {
            return threads[static_cast<size_t>(ready[at])]->priority;
        };
        if (priority(i) > priority(best)) best = i;
    }
    std::swap(ready[best], ready.back());
    const int thread = ready.back();
    ready.pop_back();
    return thread;
}

void run_block(int num_threads) {
    prepare_threads(num_threads);
    int left = num_threads;
    while (!block.runnable.empty()) {
        block.running = take_runnable();
        Thread& thread = *threads[static_cast<size_t>(block.running)];
        current.thread = thread.index;
        thread.fiber.resume();
        left -= thread.done;
    }
    if (left == 0) return;
    for (int i = 0; i < num_threads; ++i) {
        const Thread& thread = *threads[static_cast<size_t>(i)];
        if (!thread.done) {
            refuse("divergent: thread %d and %d more wait at %s:%u for ever", i, left - 1,
                   thread.waits_at, thread.waits_line);
        }
    }
}

}  // namespace

const std::vector<std::string>& sites() {
    return seen_sites;
}

size_t most_shared_bytes() {
    return most_shared;
}

bool takes_effect(const Site& site) {
    for (const KnownSite& known : known_sites) {
        if (known.file == site.file_name() && known.line == site.line()) {
            return known.number != without;
        }
    }
    const std::string here = name(site);
    const auto found = std::find(seen_sites.begin(), seen_sites.end(), here);
    const size_t number = static_cast<size_t>(found - seen_sites.begin());
    if (found == seen_sites.end()) seen_sites.push_back(here);
    known_sites.push_back({site.file_name(), site.line(), number});
    if (here == options.without) without = number;
    return number != without;
}

void sync_threads(const Site& site) {
    if (!takes_effect(site)) return;
    if (meet(block.all, site, nullptr, 0)) release(block.all);
}

void sync_warp(const Site& site) {
    if (!takes_effect(site)) return;
    Meeting& warp = block.warps[static_cast<size_t>(block.running / kWarp)];
    if (meet(warp, site, nullptr, block.running % kWarp)) release(warp);
}

void collective(const Site& site, void* operands, void (*work)(void* const*)) {
    Meeting& warp = block.warps[static_cast<size_t>(block.running / kWarp)];
    if (!meet(warp, site, operands, block.running % kWarp)) return;
    work(warp.operands.data());
    release(warp);
}

void copy_async(void* to, const void* from, int bytes, int valid_bytes) {
    check_aligned(to, bytes);
    check_aligned(from, bytes);
    const Copy copy = {to, from, bytes, valid_bytes};
    if (draw(2)) return land(copy);
    threads[static_cast<size_t>(block.running)]->open.push_back(copy);
}

void commit_copies() {
    Thread& self = *threads[static_cast<size_t>(block.running)];
    self.groups.push_back(std::move(self.open));
    self.open.clear();
}

void wait_copies(int newest_groups_left) {
    Thread& self = *threads[static_cast<size_t>(block.running)];
    while (static_cast<int>(self.groups.size()) > newest_groups_left) {
        land(self.groups.front());
        self.groups.pop_front();
    }
}

void check_aligned(const void* address, int bytes) {
    if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) != 0) {
        refuse("thread %d: address %p is no multiple of %d", block.running, address, bytes);
    }
}

void* dynamic_shared() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(shared.data());
    return reinterpret_cast<void*>((address + 127) / 128 * 128);
}

void run_grid(dim3 grid, dim3 dims, size_t shared_bytes, const std::function<void()>& thread) {
    const size_t num_threads = size_t{dims.x} * dims.y * dims.z;
    if (num_threads == 0 || num_threads > 1024 || num_threads % kWarp != 0 ||
        shared_bytes > kMaxSharedBytes || grid.x == 0 || grid.y - 1 >= 65535 ||
        grid.z - 1 >= 65535) {
        refuse("launch of %zu threads, %zu bytes shared, grid (%u, %u, %u)", num_threads,
               shared_bytes, grid.x, grid.y, grid.z);
    }
    most_shared = std::max(most_shared, shared_bytes);
    while (threads.size() < num_threads) threads.push_back(std::make_unique<Thread>());
    for (size_t i = 0; i < num_threads; ++i) {
        const unsigned at = static_cast<unsigned>(i);
        threads[i]->index = {at % dims.x, at / dims.x % dims.y, at / (dims.x * dims.y)};
    }
    random_state = (options.seed + 1) * 0x9e3779b97f4a7c15ull;
    block.body = &thread;
    block.all.expected = static_cast<int>(num_threads);
    block.warps.assign(num_threads / kWarp, Meeting{kWarp, {}, std::vector<void*>(kWarp), {}, 0});
    current.block_dim = {dims.x, dims.y, dims.z};
    current.grid_dim = {grid.x, grid.y, grid.z};
    std::vector<uint64_t> order(size_t{grid.x} * grid.y * grid.z);
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw(i)]);
    for (const uint64_t at : order) {
        current.block = {static_cast<unsigned>(at % grid.x),
                         static_cast<unsigned>(at / grid.x % grid.y),
                         static_cast<unsigned>(at / grid.x / grid.y)};
        shared.assign(shared_bytes + 128 + kCanaryBytes, kPoison);
        run_block(static_cast<int>(num_threads));
        const uint8_t* end = static_cast<uint8_t*>(dynamic_shared()) + shared_bytes;
        for (const uint8_t* byte = end; byte < shared.data() + shared.size(); ++byte) {
            if (*byte != kPoison) refuse("wrote %td bytes beyond shared memory", byte - end);
        }
    }
}

}  // namespace latrt::emulation
