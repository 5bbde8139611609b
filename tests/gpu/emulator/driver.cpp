// The device itself, its context, modules and launches, as the driver's interface gives them.
//
// A module's text is PTX: it is read for names and the threads that a kernel was compiled for, and a function runs the
// kernel of that name that was compiled into this library. Limits of a launch are those of compute capability 9.0; that
// of registers is known where EVENKEEL_EMULATOR_KERNELS names a table as ../check.sh writes it, from ptxas.

#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>

#include "device.h"

struct CUctx_st {};

struct CUfunc_st {
    std::string name;
    const emulated::Kernel *kernel;
    // Threads that it was compiled for, registers of a thread and bytes of shared memory that it has itself.
    unsigned threads = 1024, registers = 0;
    int own = 0;
    // Bytes of shared memory that a launch may ask for.
    int shared = 48 << 10;
};

struct CUmod_st {
    std::string text;
    std::map<std::string, CUfunc_st> functions = {};
    std::mutex lock = {};
};

namespace emulated {
namespace {

CUctx_st primary;
thread_local CUcontext current = nullptr;

std::map<std::string, const Kernel *> &kernels() {
    static std::map<std::string, const Kernel *> kernels;
    return kernels;
}

// Registers and own shared memory of kernels, by name.
const std::map<std::string, std::pair<unsigned, int>> &measured() {
    static const auto measured = [] {
        std::map<std::string, std::pair<unsigned, int>> table;
        const char *path = std::getenv("EVENKEEL_EMULATOR_KERNELS");
        std::ifstream lines(path ? path : "");
        std::string file, name;
        unsigned registers;
        int spilled, shared;
        while (lines >> file >> name >> registers >> spilled >> shared) table[name] = {registers, shared};
        return table;
    }();
    return measured;
}

// Bytes of each parameter of a kernel, whose head in PTX has lines like `.param .u64 .ptr .align 1 name_param_0,` and
// `.param .align 8 .b8 name_param_1[16]`.
std::vector<size_t> parameters(const std::string &head) {
    std::vector<size_t> sizes;
    for (size_t at = head.find(".param "); at != std::string::npos; at = head.find(".param ", at + 1)) {
        std::string line = head.substr(at, head.find('\n', at) - at);
        size_t type = line.find_first_of("usfb", line.find(" .", line.compare(7, 6, ".align") == 0 ? 13 : 6) + 2);
        size_t bytes = std::stoul(line.substr(type + 1)) / 8, many = line.find('[');
        sizes.push_back(many == std::string::npos ? bytes : bytes * std::stoul(line.substr(many + 1)));
    }
    return sizes;
}

// What is known of a kernel; `head` is its PTX up to the body.
CUfunc_st function_of(const std::string &name, const Kernel *kernel, const std::string &head) {
    CUfunc_st function{name, kernel};
    size_t bound = head.find(".maxntid ");
    if (bound != std::string::npos) function.threads = unsigned(std::stoul(head.substr(bound + 9)));
    auto it = measured().find(name);
    if (it != measured().end()) std::tie(function.registers, function.own) = it->second;
    function.shared -= function.own;
    return function;
}

} // namespace

void register_kernel(const char *name, const Kernel *kernel) {
    if (!kernels().emplace(name, kernel).second) die(std::string("there are two kernels ") + name);
}

CUresult bound(const std::string &what) {
    return current ? CUDA_SUCCESS : refuse(CUDA_ERROR_INVALID_CONTEXT, what + " in a thread that has no device");
}

const Kernel *kernel(const std::string &name) {
    auto it = kernels().find(name);
    return it == kernels().end() ? nullptr : it->second;
}

} // namespace emulated

using namespace emulated;

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *count) {
    *count = 1;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int index) {
    *device = index;
    return index == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice) {
    std::strncpy(name, "emulated device", size_t(size));
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice) {
    std::memset(uuid, 0, sizeof *uuid);
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice) {
    size_t free;
    memory(&free, bytes);
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 4; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = LANES; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 << 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 << 10; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
    *context = &primary;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = current;
    return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
    current = context;
    return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
    if (recording())
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "the device was waited for while a stream records");
    return settle(nullptr);
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    static const std::map<CUresult, const char *> names = {
        {CUDA_SUCCESS, "CUDA_SUCCESS"},
        {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE"},
        {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
        {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY"},
        {CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
        {CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
        {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"},
    };
    auto it = names.find(error);
    *name = it == names.end() ? "an error of the emulated device" : it->second;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    if (recording())
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
                      "a module was loaded while a stream records: run it before");
    *module = new CUmod_st{static_cast<const char *>(image)};
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) {
    delete module;
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    if (CUresult fault = bound("a kernel is looked up")) return fault;
    std::lock_guard held(module->lock);
    auto it = module->functions.find(name);
    if (it == module->functions.end()) {
        size_t entry = module->text.find(std::string(".entry ") + name + "(");
        if (entry == std::string::npos)
            return refuse(CUDA_ERROR_NOT_FOUND, std::string("the module has no kernel ") + name);
        const Kernel *found = kernel(name);
        if (!found)
            return refuse(CUDA_ERROR_NOT_FOUND, std::string("the emulator was built without the kernel ") + name);
        std::string head = module->text.substr(entry, module->text.find('{', entry) - entry);
        if (parameters(head) != found->sizes())
            return refuse(CUDA_ERROR_INVALID_IMAGE,
                          std::string(name) + ": the emulator was built from another version of this kernel");
        it = module->functions.emplace(name, function_of(name, found, head)).first;
    }
    *function = &it->second;
    return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function->shared; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value + function->own > 227 << 10)
        return refuse(CUDA_ERROR_INVALID_VALUE, function->name + " asks for more shared memory than there is");
    function->shared = value;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction, int, size_t, unsigned) {
    *blocks = 1;
    return CUDA_SUCCESS;
}

// Tells whether the registers of a multiprocessor are enough: each warp gets multiples of 256, and there are multiples
// of four warps.
static bool has_registers(const CUfunc_st &function, unsigned threads) {
    unsigned warps = (threads + 4 * LANES - 1) / (4 * LANES) * 4;
    return warps * ((function.registers * LANES + 255) / 256 * 256) <= 65536;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **arguments,
                        void **) {
    const std::string &name = function->name;
    if (CUresult fault = bound(name + " is launched")) return fault;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535 ||
        block_x * block_y * block_z == 0 || block_x * block_y * block_z > 1024 || block_z > 64)
        return refuse(CUDA_ERROR_INVALID_VALUE, name + " is launched with blocks or threads that no device has");
    if (block_x * block_y * block_z > function->threads)
        return refuse(CUDA_ERROR_INVALID_VALUE, name + " is launched with more threads than it was compiled for");
    if (!has_registers(*function, block_x * block_y * block_z))
        return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                      name + " is launched with more threads than there are registers for");
    if (int(shared) > function->shared)
        return refuse(CUDA_ERROR_INVALID_VALUE, name + " is launched with too much shared memory");
    std::shared_ptr<const Call> call = function->kernel->bind(arguments);
    Grid grid{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared};
    return submit(stream, [=] {
        const void *addresses[64];
        int count = call->addresses(addresses);
        for (int i = 0; i < count; i++)
            if (addresses[i] && !allocated(reinterpret_cast<CUdeviceptr>(addresses[i]), 1))
                return refuse(CUDA_ERROR_ILLEGAL_ADDRESS,
                              name + ": address " + std::to_string(i) + " is of no memory of the device");
        run(*call, grid);
        for (int i = 0; i < count; i++) check_guards(addresses[i], name);
        return CUDA_SUCCESS;
    });
}
