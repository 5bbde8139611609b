// Gates and activations, number by number, with their gradients: SiLU times another number, and GELU by erf.
//
// Computed in f32, eight numbers a thread. After: Shazeer 2020 (arXiv 2002.05202), Hendrycks and Gimpel 2016
// (arXiv 1606.08415).

#include "vector.cuh"

constexpr float ROOT_OF_HALF = 0.70710678118654752f;
// 1/√(2π).
constexpr float PEAK = 0.39894228040143268f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// gate·σ(gate)·up.
struct SiluMul {
    __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
        out[0] = in[0] * sigmoid(in[0]) * in[1];
    }
};

// The gradients of gate and up: g·up·(σ + gate·σ·(1 - σ)), g·gate·σ.
struct SiluMulBackward {
    __device__ __forceinline__ void operator()(const float (&in)[3], float (&out)[2]) const {
        float share = sigmoid(in[0]), silu = in[0] * share;
        out[0] = in[2] * in[1] * (share + silu * (1.0f - share));
        out[1] = in[2] * silu;
    }
};

// x·Φ(x).
struct Gelu {
    __device__ __forceinline__ void operator()(const float (&in)[1], float (&out)[1]) const {
        out[0] = 0.5f * in[0] * (1.0f + erff(in[0] * ROOT_OF_HALF));
    }
};

// g·(Φ(x) + x·φ(x)).
struct GeluBackward {
    __device__ __forceinline__ void operator()(const float (&in)[2], float (&out)[1]) const {
        float below = 0.5f * (1.0f + erff(in[0] * ROOT_OF_HALF));
        out[0] = in[1] * (below + in[0] * PEAK * expf(-0.5f * in[0] * in[0]));
    }
};

// Applies a function of N numbers with M results to each place of `count`.
template <typename F, typename T, int N, int M>
__device__ __forceinline__ void each(F function, const T *const (&in)[N], T *const (&out)[M], size_t count) {
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x, eights = count / 8;
    bool wide = true;
    for (int n = 0; n < N; n++) wide &= by_eights(8, in[n]);
    for (int m = 0; m < M; m++) wide &= by_eights(8, out[m]);
    if (!wide) eights = 0;
    if (i < eights) {
        Eight own[N], results[M];
        for (int n = 0; n < N; n++) own[n] = load8(in[n] + 8 * i);
        for (int j = 0; j < 8; j++) {
            float numbers[N], made[M];
            for (int n = 0; n < N; n++) numbers[n] = own[n].at[j];
            function(numbers, made);
            for (int m = 0; m < M; m++) results[m].at[j] = made[m];
        }
        for (int m = 0; m < M; m++) store8(out[m] + 8 * i, results[m]);
    }
    for (size_t rest = eights * 8 + i; rest < count; rest += size_t(gridDim.x) * blockDim.x) {
        float numbers[N], made[M];
        for (int n = 0; n < N; n++) numbers[n] = to_float(in[n][rest]);
        function(numbers, made);
        for (int m = 0; m < M; m++) out[m][rest] = from_float<T>(made[m]);
    }
}

#define GATES(format, T)                                                                                               \
    extern "C" __global__ void silu_mul_##format(const T *gate, const T *up, T *out, unsigned count) {                 \
        each(SiluMul(), {gate, up}, {out}, count);                                                                     \
    }                                                                                                                  \
    extern "C" __global__ void silu_mul_backward_##format(                                                             \
        const T *gate, const T *up, const T *gradient, T *for_gate, T *for_up, unsigned count) {                       \
        each(SiluMulBackward(), {gate, up, gradient}, {for_gate, for_up}, count);                                      \
    }                                                                                                                  \
    extern "C" __global__ void gelu_##format(const T *x, T *out, unsigned count) { each(Gelu(), {x}, {out}, count); }  \
    extern "C" __global__ void gelu_backward_##format(const T *x, const T *gradient, T *out, unsigned count) {         \
        each(GeluBackward(), {x, gradient}, {out}, count);                                                             \
    }

GATES(f32, float)
GATES(bf16, __nv_bfloat16)
