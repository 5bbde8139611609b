// CUDA C++ as C++: what a kernel file sees when it is compiled for the emulated device. Included before each of them,
// outside the namespace that it is put into: whatever header of C++ or CUDA a kernel file names stands here too.
//
// A thread of a block is a fiber (fibers.cpp); blocks run one after the other. Shared memory is `thread_local`, so that
// several operating-system threads can run kernels at once. What is here is what our kernels and candle's use of CUDA.
// After: CUDA C++ Programming Guide 13.0, chapter 10; math functions are those of the C library.
#pragma once

#include <math.h>
#include <stdint.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

#include <cuda.h>
#include <cuda/std/limits>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <vector_functions.h>

#define __CUDA_ARCH__ 900
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#define __global__ __attribute__((used))
#define __device__
#define __host__
#define __shared__ static thread_local
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulated::dynamic_shared())

constexpr int warpSize = 32;

#pragma GCC visibility push(hidden)
namespace emulated {

constexpr int LANES = 32;
constexpr int SLOT = 64;
using Slots = unsigned char[LANES][SLOT];

// What a thread knows of its place.
struct Registers {
    uint3 thread, block, threads, blocks;
    int lane;
};
extern __thread Registers registers;

// What a launch does with its arguments, once for each thread.
struct Call {
    virtual ~Call() = default;
    virtual void run() const = 0;
    // Returns the arguments that are addresses, and how many there are.
    virtual int addresses(const void **out) const = 0;
};

// A kernel: binds the arguments of a launch, whose bytes are copied.
struct Kernel {
    virtual ~Kernel() = default;
    virtual std::unique_ptr<Call> bind(void **arguments) const = 0;
    // Bytes of each argument.
    virtual std::vector<size_t> sizes() const = 0;
};

void register_kernel(const char *name, const Kernel *kernel);
void *dynamic_shared();
void wait_for_block();
void wait_for_warp();
inline int lane() { return registers.lane; }
// Gives the bytes to the warp and returns those of all lanes; valid until the lane's next but one exchange.
const Slots &exchange(const void *bytes, size_t size);

template <class... A> struct KernelOf final : Kernel {
    void (*function)(A...);
    explicit KernelOf(void (*function)(A...)) : function(function) {}

    struct Bound final : Call {
        void (*function)(A...);
        std::tuple<std::remove_cv_t<A>...> arguments;
        void run() const override { std::apply(function, arguments); }
        int addresses(const void **out) const override {
            int count = 0;
            auto take = [&](auto value) {
                if constexpr (std::is_pointer_v<decltype(value)>) out[count++] = reinterpret_cast<const void *>(value);
            };
            std::apply([&](auto... values) { (take(values), ...); }, arguments);
            return count;
        }
    };

    std::vector<size_t> sizes() const override { return {sizeof(A)...}; }

    std::unique_ptr<Call> bind(void **given) const override {
        auto bound = std::make_unique<Bound>();
        bound->function = function;
        std::apply([&](auto &...to) { (std::memcpy(static_cast<void *>(&to), *given++, sizeof to), ...); },
                   bound->arguments);
        return bound;
    }
};

struct Registered {
    template <class... A> Registered(const char *name, void (*function)(A...)) {
        register_kernel(name, new KernelOf<A...>(function));
    }
};

template <class T> inline T of_lane(const Slots &slots, int lane) {
    T value;
    std::memcpy(static_cast<void *>(&value), slots[lane], sizeof value);
    return value;
}

// Gives a value to the warp and returns that of the lane that `source` names to this one.
template <class T, class Source> inline T shuffle(T value, Source source) {
    static_assert(sizeof(T) <= SLOT);
    const Slots &slots = exchange(&value, sizeof value);
    return of_lane<T>(slots, source(lane()));
}

} // namespace emulated
#pragma GCC visibility pop

#define threadIdx (emulated::registers.thread)
#define blockIdx (emulated::registers.block)
#define blockDim (emulated::registers.threads)
#define gridDim (emulated::registers.blocks)

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { emulated::wait_for_warp(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> inline T __shfl_sync(unsigned, T value, int source, int width = 32) {
    return emulated::shuffle(value, [=](int lane) { return (lane & ~(width - 1)) | (source & (width - 1)); });
}
template <class T> inline T __shfl_xor_sync(unsigned, T value, int mask, int width = 32) {
    return emulated::shuffle(
        value, [=](int lane) { return (lane ^ mask) < (lane & ~(width - 1)) + width ? lane ^ mask : lane; });
}
template <class T> inline T __shfl_down_sync(unsigned, T value, unsigned step, int width = 32) {
    return emulated::shuffle(
        value, [=](int lane) { return int((lane & (width - 1)) + step) < width ? lane + int(step) : lane; });
}
template <class T> inline T __shfl_up_sync(unsigned, T value, unsigned step, int width = 32) {
    return emulated::shuffle(value,
                             [=](int lane) { return (lane & (width - 1)) >= int(step) ? lane - int(step) : lane; });
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    const emulated::Slots &slots = emulated::exchange(&predicate, sizeof predicate);
    unsigned votes = 0;
    for (int lane = 0; lane < emulated::LANES; lane++)
        votes |= unsigned(emulated::of_lane<int>(slots, lane) != 0) << lane;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == ~0u; }
inline unsigned __activemask() { return ~0u; }

template <class T> inline T atomicAdd(T *to, std::common_type_t<T> value) {
    T old = *to;
    *to = old + value;
    return old;
}
template <class T> inline T atomicMax(T *to, std::common_type_t<T> value) {
    T old = *to;
    if (value > old) *to = value;
    return old;
}
template <class T> inline T atomicMin(T *to, std::common_type_t<T> value) {
    T old = *to;
    if (value < old) *to = value;
    return old;
}
template <class T> inline T atomicCAS(T *to, std::common_type_t<T> compare, std::common_type_t<T> value) {
    T old = *to;
    if (old == compare) *to = value;
    return old;
}

template <class T> inline T __ldg(const T *from) { return *from; }
template <class T> inline T __ldcs(const T *from) { return *from; }
template <class T> inline T __ldcg(const T *from) { return *from; }
template <class T> inline void __stcs(T *to, T value) { *to = value; }
template <class T> inline void __stcg(T *to, T value) { *to = value; }

template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? b : a;
}
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    return std::common_type_t<A, B>(b) < std::common_type_t<A, B>(a) ? b : a;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.7071067811865476); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

template <class To, class From> inline To emulated_bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &value, sizeof to);
    return to;
}
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return emulated_bits<double>(x); }
inline long long __double_as_longlong(double x) { return emulated_bits<long long>(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Four signed bytes of a word each.
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int(int8_t(b >> i));
    return sum;
}
inline unsigned __vsubss4(unsigned a, unsigned b) {
    unsigned out = 0;
    for (int i = 0; i < 32; i += 8) {
        int difference = int(int8_t(a >> i)) - int(int8_t(b >> i));
        out |= unsigned(uint8_t(difference < -128 ? -128 : difference > 127 ? 127 : difference)) << i;
    }
    return out;
}

// Functions of 16-bit numbers that the headers give to nvcc alone.
#define EMULATED_OF_16_BITS(name, function)                                          \
    inline __half name(__half x) { return __float2half(function(__half2float(x))); } \
    inline __nv_bfloat16 name(__nv_bfloat16 x) { return __float2bfloat16(function(__bfloat162float(x))); }
EMULATED_OF_16_BITS(hexp, expf)
EMULATED_OF_16_BITS(hlog, logf)
EMULATED_OF_16_BITS(hsqrt, sqrtf)
EMULATED_OF_16_BITS(hrsqrt, rsqrtf)
EMULATED_OF_16_BITS(hcos, cosf)
EMULATED_OF_16_BITS(hsin, sinf)
EMULATED_OF_16_BITS(hrcp, __frcp_rn)
#undef EMULATED_OF_16_BITS
