// Memory of the emulated device: that of the process, watched.
//
// New memory is 0xFF, which is NaN in every floating format, so that what reads unwritten memory shows. Guards on both
// sides of an allocation find what was written beside it.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "device.h"

namespace emulated {
namespace {

constexpr size_t TOTAL = size_t(8) << 30;
// Bytes of the guard before an allocation; that behind is as long as the allocation, within bounds.
constexpr size_t GUARD = 2048;
constexpr size_t MOST_BEHIND = 64 << 10;
constexpr unsigned char MARK = 0xa5;

std::mutex lock;
// Bytes of each allocation, by its address.
std::map<CUdeviceptr, size_t> allocations;
size_t used = 0;

size_t behind(size_t bytes) { return std::min(std::max(bytes, GUARD), MOST_BEHIND); }

bool guarded(CUdeviceptr address, size_t bytes) {
    static const std::string marks(MOST_BEHIND, char(MARK));
    auto *at = reinterpret_cast<const unsigned char *>(address);
    return std::memcmp(at - GUARD, marks.data(), GUARD) == 0 &&
           std::memcmp(at + bytes, marks.data(), behind(bytes)) == 0;
}

// The allocation that an address lies in.
std::map<CUdeviceptr, size_t>::const_iterator around(CUdeviceptr address) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return allocations.end();
    auto it = std::prev(after);
    return address < it->first + it->second ? it : allocations.end();
}

} // namespace

CUresult refuse(CUresult error, const std::string &why) {
    std::fprintf(stderr, "emulated device: %s (error %d)\n", why.c_str(), int(error));
    return error;
}

void die(const std::string &why) {
    std::fprintf(stderr, "emulated device: %s\n", why.c_str());
    std::abort();
}

CUresult take(CUdeviceptr *out, size_t bytes) {
    if (bytes == 0) return refuse(CUDA_ERROR_INVALID_VALUE, "memory of no bytes was asked for");
    if (recording())
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "memory was asked for while a stream records");
    std::lock_guard held(lock);
    if (used + bytes > TOTAL) return refuse(CUDA_ERROR_OUT_OF_MEMORY, "no memory is left");
    auto *base = static_cast<unsigned char *>(
        std::aligned_alloc(GUARD, (bytes + behind(bytes) + 2 * GUARD - 1) / GUARD * GUARD));
    if (!base) return CUDA_ERROR_OUT_OF_MEMORY;
    std::memset(base, MARK, GUARD);
    std::memset(base + GUARD, 0xff, bytes);
    std::memset(base + GUARD + bytes, MARK, behind(bytes));
    *out = reinterpret_cast<CUdeviceptr>(base + GUARD);
    allocations[*out] = bytes;
    used += bytes;
    return CUDA_SUCCESS;
}

CUresult give_back(CUdeviceptr address) {
    if (address == 0) return CUDA_SUCCESS;
    std::lock_guard held(lock);
    auto it = allocations.find(address);
    if (it == allocations.end()) return refuse(CUDA_ERROR_INVALID_VALUE, "memory was given back that was not taken");
    if (!guarded(address, it->second))
        die("something was written beside an allocation of " + std::to_string(it->second) + " bytes");
    used -= it->second;
    allocations.erase(it);
    std::free(reinterpret_cast<unsigned char *>(address) - GUARD);
    return CUDA_SUCCESS;
}

bool allocated(CUdeviceptr address, size_t bytes) {
    std::lock_guard held(lock);
    auto it = around(address);
    return it != allocations.end() && address + bytes <= it->first + it->second;
}

void check_guards(const void *address, const std::string &who) {
    std::lock_guard held(lock);
    auto it = around(reinterpret_cast<CUdeviceptr>(address));
    if (it == allocations.end()) return;
    if (!guarded(it->first, it->second))
        die(who + " wrote beside an allocation of " + std::to_string(it->second) + " bytes");
}

void memory(size_t *free, size_t *total) {
    std::lock_guard held(lock);
    *total = TOTAL;
    *free = TOTAL - used;
}

} // namespace emulated

using namespace emulated;

CUresult cuMemAlloc(CUdeviceptr *out, size_t bytes) {
    if (CUresult fault = bound("memory is taken")) return fault;
    return take(out, bytes);
}
CUresult cuMemAllocAsync(CUdeviceptr *out, size_t bytes, CUstream) { return cuMemAlloc(out, bytes); }
CUresult cuMemFree(CUdeviceptr address) { return give_back(address); }
CUresult cuMemFreeAsync(CUdeviceptr address, CUstream) { return give_back(address); }
CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    *out = std::malloc(bytes);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void *address) {
    std::free(address);
    return CUDA_SUCCESS;
}
// A pool that keeps nothing.
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *out, CUdevice) {
    *out = nullptr;
    return CUDA_SUCCESS;
}
CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void *) { return CUDA_SUCCESS; }
CUresult cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute, void *out) {
    *static_cast<uint64_t *>(out) = 0;
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo(size_t *free, size_t *total) {
    memory(free, total);
    return CUDA_SUCCESS;
}

namespace {

CUresult inside(CUdeviceptr address, size_t bytes) {
    if (allocated(address, bytes)) return CUDA_SUCCESS;
    return refuse(CUDA_ERROR_INVALID_VALUE,
                  "a copy of " + std::to_string(bytes) + " bytes is not inside one allocation");
}

CUresult set(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
    if (CUresult fault = bound("memory is set")) return fault;
    if (bytes == 0) return CUDA_SUCCESS;
    return submit(stream, [=] {
        if (CUresult fault = inside(address, bytes)) return fault;
        std::memset(reinterpret_cast<void *>(address), value, bytes);
        return CUDA_SUCCESS;
    });
}

CUresult copy(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    if (CUresult fault = bound("memory is copied")) return fault;
    if (bytes == 0) return CUDA_SUCCESS;
    return submit(stream, [=] {
        if (CUresult fault = inside(to, bytes)) return fault;
        if (CUresult fault = inside(from, bytes)) return fault;
        std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
        return CUDA_SUCCESS;
    });
}

// A copy from or to memory of the host, which a recording would read and write long after.
CUresult copy_host(void *to, const void *from, size_t bytes, CUdeviceptr device) {
    if (CUresult fault = bound("memory is copied")) return fault;
    if (bytes == 0) return CUDA_SUCCESS;
    if (recording())
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy of the host's memory while a stream records");
    if (CUresult fault = inside(device, bytes)) return fault;
    std::memcpy(to, from, bytes);
    return CUDA_SUCCESS;
}

} // namespace

CUresult cuMemsetD8(CUdeviceptr address, unsigned char value, size_t bytes) {
    return set(address, value, bytes, nullptr);
}
CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, CUstream stream) {
    return set(address, value, bytes, stream);
}
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return copy(to, from, bytes, nullptr); }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy(to, from, bytes, stream);
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
    return copy_host(reinterpret_cast<void *>(to), from, bytes, to);
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream) {
    return cuMemcpyHtoD(to, from, bytes);
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    return copy_host(to, reinterpret_cast<const void *>(from), bytes, from);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream) { return cuMemcpyDtoH(to, from, bytes); }
