// The CUDA thread model on a CPU: blocks in turn, a fiber for each thread of a block. Barriers
// and warp collectives are rendezvous; a rendezvous that some thread never reaches aborts, as
// does a write beyond dynamic shared memory. Which fiber runs next is drawn from a seed.
//
// Blocks run one after another, so races between blocks stay hidden; so does the memory model.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

namespace latrt::emulation {

using Site = std::source_location;

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

// Of the running fiber. Read-only for kernels.
struct Current {
    Index thread, block, block_dim, grid_dim;
};
extern Current current;

// How grids run. `without`: "file:line" of a synchronisation that does nothing, set before the
// first grid.
struct Options {
    uint64_t seed = 0;
    std::string without;
};
extern Options options;

// Every synchronisation that ran so far, as "file:line".
const std::vector<std::string>& sites();

// The most dynamic shared memory that a grid was launched with.
size_t most_shared_bytes();

// Whether the synchronisation at this place takes effect; remembers the place.
bool takes_effect(const Site& site);

void sync_threads(const Site& site);
void sync_warp(const Site& site);

// Waits for the 32 lanes of the warp, all at the same site; the last to arrive runs `work` on
// the operands of all lanes.
void collective(const Site& site, void* operands, void (*work)(void* const* operands));

// An asynchronous copy that lands at a random time before the wait for its group.
void copy_async(void* to, const void* from, int bytes, int valid_bytes);
void commit_copies();
void wait_copies(int newest_groups_left);

// Aborts where the address is no multiple of `bytes`.
void check_aligned(const void* address, int bytes);

void* dynamic_shared();

// Runs every thread of every block. Aborts where the device would refuse the launch.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

}  // namespace latrt::emulation
