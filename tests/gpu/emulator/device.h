// What the parts of the emulated device share. Knows CUDA's names of errors, nothing of kernels' sources.
#pragma once

#include <cuda.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emulate.h"

#pragma GCC visibility push(hidden)
namespace emulated {

// Shape of a launch.
struct Grid {
    uint3 blocks, threads;
    unsigned shared;
};

// Runs every thread of every block.
void run(const Call &call, const Grid &grid);

// Returns the kernel of a name, or nothing.
const Kernel *kernel(const std::string &name);

// Says on stderr what was wrong, since callers see an error's number alone.
CUresult refuse(CUresult error, const std::string &why);
// The same, and ends the process: memory is no longer what it should be.
[[noreturn]] void die(const std::string &why);

// Refuses a call of a thread that has no device yet: `cuCtxSetCurrent` comes first, in each.
CUresult bound(const std::string &what);

// Device memory: 0xFF at first, which is NaN in every format, between guards.
CUresult take(CUdeviceptr *out, size_t bytes);
CUresult give_back(CUdeviceptr address);
// Tells whether so many bytes from the address on lie in one allocation.
bool allocated(CUdeviceptr address, size_t bytes);
// Dies when something was written beside the allocation of an address; `who` did it last.
void check_guards(const void *address, const std::string &who);
void memory(size_t *free, size_t *total);

using Operation = std::function<CUresult()>;
// Runs an operation, or keeps it while the stream records or holds something back.
CUresult submit(CUstream stream, Operation operation);
// Holds an operation back until somebody waits for it; `eager` ones may also run as soon as all that they wait for is done.
CUresult submit_late(CUstream stream, Operation operation, bool eager);
// Does what a stream, or all where it has no handle of its own, holds back; returns its first fault.
CUresult settle(CUstream stream);
// Tells whether a stream of this thread records.
bool recording();

} // namespace emulated
#pragma GCC visibility pop
