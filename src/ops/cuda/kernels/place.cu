// Copies matrices to other memory, turned and in another format: many in one launch.
//
// An order is four numbers: where a matrix lies, f32 [rows, columns], where its transpose goes, rows and columns. A
// block takes squares of one matrix, one after the other.

#include "vector.cuh"

using bf16 = __nv_bfloat16;
constexpr unsigned SIDE = 32;

template <typename T> __device__ __forceinline__ void place(const long long *orders) {
    __shared__ float square[SIDE][SIDE + 1];
    const long long *order = orders + 4 * blockIdx.y;
    const float *from = reinterpret_cast<const float *>(order[0]);
    T *to = reinterpret_cast<T *>(order[1]);
    unsigned rows = order[2], columns = order[3], across = (columns + SIDE - 1) / SIDE;
    if (rows == 1 || columns == 1) {
        // Turned, it lies as it is.
        unsigned step = gridDim.x * blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
        for (unsigned i = blockIdx.x * blockDim.x * blockDim.y + thread; i < rows * columns; i += step)
            to[i] = from_float<T>(from[i]);
        return;
    }
    unsigned squares = across * ((rows + SIDE - 1) / SIDE);
    for (unsigned own = blockIdx.x; own < squares; own += gridDim.x) {
        unsigned top = own / across * SIDE, left = own % across * SIDE;
        for (unsigned y = threadIdx.y; y < SIDE; y += blockDim.y)
            if (top + y < rows && left + threadIdx.x < columns)
                square[y][threadIdx.x] = from[size_t(top + y) * columns + left + threadIdx.x];
        __syncthreads();
        for (unsigned x = threadIdx.y; x < SIDE; x += blockDim.y)
            if (left + x < columns && top + threadIdx.x < rows)
                to[size_t(left + x) * rows + top + threadIdx.x] = from_float<T>(square[threadIdx.x][x]);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(256) place_f32(const long long *orders) { place<float>(orders); }
extern "C" __global__ void __launch_bounds__(256) place_bf16(const long long *orders) { place<bf16>(orders); }
