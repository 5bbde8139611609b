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
size_t used = 0, most_used = 0;
// Bytes of the host's memory whose pages are locked, by its address, and the copies that read it still.
std::map<uintptr_t, std::pair<size_t, int>> locked;

// The locked memory that a range of the host's lies in.
std::map<uintptr_t, std::pair<size_t, int>>::iterator locked_around(const void *from, size_t bytes) {
    auto address = reinterpret_cast<uintptr_t>(from);
    auto after = locked.upper_bound(address);
    if (after == locked.begin()) return locked.end();
    auto it = std::prev(after);
    return address + bytes <= it->first + it->second.first ? it : locked.end();
}

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
    bool full;
    {
        std::lock_guard held(lock);
        full = used + bytes > TOTAL;
    }
    // What is given back is there when the stream has come so far.
    if (full) settle(nullptr);
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
    most_used = std::max(most_used, used);
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
CUresult cuMemFree(CUdeviceptr address) {
    CUresult fault = settle(nullptr);
    CUresult own = give_back(address);
    return fault ? fault : own;
}
CUresult cuMemFreeAsync(CUdeviceptr address, CUstream stream) {
    if (recording()) return give_back(address);
    return submit(stream, [=] { return give_back(address); });
}
CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    *out = std::malloc(bytes);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void *address) {
    std::free(address);
    return CUDA_SUCCESS;
}
CUresult cuMemHostRegister(void *address, size_t bytes, unsigned) {
    if (CUresult fault = bound("pages are locked")) return fault;
    std::lock_guard held(lock);
    auto begin = reinterpret_cast<uintptr_t>(address);
    auto after = locked.upper_bound(begin);
    bool taken = after != locked.end() && after->first < begin + bytes;
    if (after != locked.begin() && std::prev(after)->first + std::prev(after)->second.first > begin) taken = true;
    if (taken) return refuse(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "pages were locked that are locked already");
    locked[begin] = {bytes, 0};
    return CUDA_SUCCESS;
}
CUresult cuMemHostUnregister(void *address) {
    if (CUresult fault = bound("pages are let go")) return fault;
    std::lock_guard held(lock);
    auto it = locked.find(reinterpret_cast<uintptr_t>(address));
    if (it == locked.end()) return refuse(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pages are let go that are not locked");
    if (it->second.second > 0) die("pages are let go while a copy reads them");
    locked.erase(it);
    return CUDA_SUCCESS;
}
// A pool that keeps nothing.
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *out, CUdevice) {
    *out = nullptr;
    return CUDA_SUCCESS;
}
CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute attribute, void *) {
    std::lock_guard held(lock);
    if (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH) most_used = used;
    return CUDA_SUCCESS;
}
CUresult cuMemPoolGetAttribute(CUmemoryPool, CUmemPool_attribute attribute, void *out) {
    settle(nullptr);
    std::lock_guard held(lock);
    *static_cast<uint64_t *>(out) = attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? most_used : used;
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo(size_t *free, size_t *total) {
    settle(nullptr);
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
    if (recording()) return copy_host(reinterpret_cast<void *>(to), from, bytes, to);
    CUresult fault = settle(nullptr);
    return fault ? fault : copy_host(reinterpret_cast<void *>(to), from, bytes, to);
}
// From locked memory the device copies by itself, later; else the driver has taken what it copies when it returns.
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    if (CUresult fault = bound("memory is copied")) return fault;
    if (bytes == 0) return CUDA_SUCCESS;
    if (recording()) return copy_host(reinterpret_cast<void *>(to), from, bytes, to);
    {
        std::unique_lock held(lock);
        auto it = locked_around(from, bytes);
        if (it != locked.end()) {
            it->second.second++;
            uintptr_t begin = it->first;
            held.unlock();
            return submit_late(
                stream,
                [=] {
                    CUresult fault = copy_host(reinterpret_cast<void *>(to), from, bytes, to);
                    std::lock_guard held(lock);
                    locked[begin].second--;
                    return fault;
                },
                true);
        }
    }
    auto taken = std::make_shared<std::vector<unsigned char>>(
        static_cast<const unsigned char *>(from), static_cast<const unsigned char *>(from) + bytes);
    return submit(stream, [=] { return copy_host(reinterpret_cast<void *>(to), taken->data(), bytes, to); });
}
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
    if (recording()) return copy_host(to, reinterpret_cast<const void *>(from), bytes, from);
    CUresult fault = settle(nullptr);
    return fault ? fault : copy_host(to, reinterpret_cast<const void *>(from), bytes, from);
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    if (recording()) return copy_host(to, reinterpret_cast<const void *>(from), bytes, from);
    CUresult fault = settle(stream);
    return fault ? fault : copy_host(to, reinterpret_cast<const void *>(from), bytes, from);
}
