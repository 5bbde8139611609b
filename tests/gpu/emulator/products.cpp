// What of cuBLAS is called: products of matrices, batched ones too, with f32 sums (f64 of f64).
//
// Matrices lie column by column: C = alpha·op(A)·op(B) + beta·C, op(A) is [m, k], op(B) [k, n]. Enumerations are
// numbers here, since cuBLAS' headers are not at hand: those of cuBLAS 13.

#include "device.h"

namespace {

using namespace emulated;

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15, EXECUTION_FAILED = 13 };
enum Format { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };

struct Handle {
    CUstream stream = nullptr;
    int pointer_mode = 0;
};

size_t size_of(int format) { return format == F64 ? 8 : format == F32 ? 4 : 2; }

template <class S> S read(const void *from, int format, size_t at) {
    switch (format) {
    case F32: return S(static_cast<const float *>(from)[at]);
    case F64: return S(static_cast<const double *>(from)[at]);
    case F16: return S(__half2float(static_cast<const __half *>(from)[at]));
    default: return S(__bfloat162float(static_cast<const __nv_bfloat16 *>(from)[at]));
    }
}

template <class S> void write(void *to, int format, size_t at, S value) {
    switch (format) {
    case F32: static_cast<float *>(to)[at] = float(value); break;
    case F64: static_cast<double *>(to)[at] = double(value); break;
    case F16: static_cast<__half *>(to)[at] = __float2half(float(value)); break;
    default: static_cast<__nv_bfloat16 *>(to)[at] = __float2bfloat16(float(value));
    }
}

struct Matrix {
    const void *data;
    int format;
    bool turned;
    long leading;
    long long stride;
};

struct Product {
    int m, n, k;
    double alpha, beta;
    Matrix a, b, c;
    int batch;

    template <class S> void run(int index) const {
        auto at = [&](const Matrix &matrix) {
            return static_cast<const unsigned char *>(matrix.data) +
                   matrix.stride * index * (long long)(size_of(matrix.format));
        };
        // op(A)ᵀ and op(B) with rows of k, then sums along k.
        std::vector<S> left(size_t(m) * k), right(size_t(n) * k);
        for (int i = 0; i < m; i++)
            for (int p = 0; p < k; p++)
                left[size_t(i) * k + p] =
                    read<S>(at(a), a.format, a.turned ? size_t(i) * a.leading + p : size_t(p) * a.leading + i);
        for (int j = 0; j < n; j++)
            for (int p = 0; p < k; p++)
                right[size_t(j) * k + p] =
                    read<S>(at(b), b.format, b.turned ? size_t(p) * b.leading + j : size_t(j) * b.leading + p);
        void *out = const_cast<unsigned char *>(at(c));
        constexpr int WIDE = 16;
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                const S *x = &left[size_t(i) * k], *y = &right[size_t(j) * k];
                S sums[WIDE] = {};
                int p = 0;
                for (; p + WIDE <= k; p += WIDE)
                    for (int l = 0; l < WIDE; l++) sums[l] += x[p + l] * y[p + l];
                S sum = 0;
                for (; p < k; p++) sum += x[p] * y[p];
                for (S part : sums) sum += part;
                size_t to = size_t(j) * c.leading + i;
                // With beta = 0 what stands there is not read, as cuBLAS promises.
                S kept = beta == 0 ? S(0) : S(beta) * read<S>(out, c.format, to);
                write(out, c.format, to, S(alpha) * sum + kept);
            }
    }
};

// Tells whether every matrix of the batch lies in one allocation.
bool inside(const Matrix &matrix, int rows, int columns, int batch) {
    if (matrix.turned) std::swap(rows, columns);
    if (matrix.leading < rows || rows <= 0 || columns <= 0) return false;
    long long last = matrix.stride * (batch - 1) + (long long)(matrix.leading) * (columns - 1) + rows;
    return allocated(reinterpret_cast<CUdeviceptr>(matrix.data), size_t(last) * size_of(matrix.format));
}

int give(const Handle *handle, const Product &product) {
    for (const Matrix *matrix : {&product.a, &product.b, &product.c}) {
        int format = matrix->format;
        if (format != F32 && format != F64 && format != F16 && format != BF16) return NOT_SUPPORTED;
    }
    if (handle->pointer_mode != 0) return NOT_SUPPORTED;
    if (bound("a product is asked for")) return EXECUTION_FAILED;
    CUresult done = submit(handle->stream, [product] {
        const auto &[m, n, k, alpha, beta, a, b, c, batch] = product;
        if (!inside(a, m, k, batch) || !inside(b, k, n, batch) || !inside(c, m, n, batch))
            return refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "a product of [" + std::to_string(m) + ", " + std::to_string(k) +
                                                          "] and [" + std::to_string(k) + ", " + std::to_string(n) +
                                                          "] does not lie in memory of the device");
        for (int i = 0; i < batch; i++) c.format == F64 ? product.run<double>(i) : product.run<float>(i);
        return CUDA_SUCCESS;
    });
    return done == CUDA_SUCCESS ? SUCCESS : EXECUTION_FAILED;
}

// CUBLAS_COMPUTE_16F and CUBLAS_COMPUTE_16F_PEDANTIC take scalars of 16 bits, 64F of 64.
double scalar(const void *from, int compute) {
    if (compute == 64 || compute == 65) return __half2float(*static_cast<const __half *>(from));
    if (compute == 70 || compute == 71) return *static_cast<const double *>(from);
    return *static_cast<const float *>(from);
}

} // namespace

extern "C" {

int cublasCreate_v2(void **out) {
    if (recording()) return EXECUTION_FAILED;
    *out = new Handle;
    return SUCCESS;
}
int cublasDestroy_v2(void *handle) {
    delete static_cast<Handle *>(handle);
    return SUCCESS;
}
int cublasSetStream_v2(void *handle, CUstream stream) {
    static_cast<Handle *>(handle)->stream = stream;
    return SUCCESS;
}
int cublasSetWorkspace_v2(void *, void *, size_t) { return SUCCESS; }
int cublasSetMathMode(void *, int) { return SUCCESS; }
int cublasSetPointerMode_v2(void *handle, int mode) {
    static_cast<Handle *>(handle)->pointer_mode = mode;
    return SUCCESS;
}
int cublasGetPointerMode_v2(void *handle, int *mode) {
    *mode = static_cast<Handle *>(handle)->pointer_mode;
    return SUCCESS;
}

int cublasGemmStridedBatchedEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha,
                               const void *a, int format_a, int leading_a, long long stride_a, const void *b,
                               int format_b, int leading_b, long long stride_b, const void *beta, void *c, int format_c,
                               int leading_c, long long stride_c, int batch, int compute, int) {
    Product product{m,
                    n,
                    k,
                    scalar(alpha, compute),
                    scalar(beta, compute),
                    {a, format_a, turn_a != 0, leading_a, stride_a},
                    {b, format_b, turn_b != 0, leading_b, stride_b},
                    {c, format_c, false, leading_c, stride_c},
                    batch};
    return give(static_cast<Handle *>(handle), product);
}
int cublasGemmEx(void *handle, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a,
                 int format_a, int leading_a, const void *b, int format_b, int leading_b, const void *beta, void *c,
                 int format_c, int leading_c, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, format_a, leading_a, 0, b, format_b,
                                      leading_b, 0, beta, c, format_c, leading_c, 0, 1, compute, algorithm);
}
int cublasSgemm_v2(void *handle, int turn_a, int turn_b, int m, int n, int k, const float *alpha, const float *a,
                   int leading_a, const float *b, int leading_b, const float *beta, float *c, int leading_c) {
    return cublasGemmEx(handle, turn_a, turn_b, m, n, k, alpha, a, F32, leading_a, b, F32, leading_b, beta, c, F32,
                        leading_c, 68, 0);
}
int cublasSgemmStridedBatched(void *handle, int turn_a, int turn_b, int m, int n, int k, const float *alpha,
                              const float *a, int leading_a, long long stride_a, const float *b, int leading_b,
                              long long stride_b, const float *beta, float *c, int leading_c, long long stride_c,
                              int batch) {
    return cublasGemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, F32, leading_a, stride_a, b, F32,
                                      leading_b, stride_b, beta, c, F32, leading_c, stride_c, batch, 68, 0);
}
int cublasDgemmStridedBatched(void *handle, int turn_a, int turn_b, int m, int n, int k, const double *alpha,
                              const double *a, int leading_a, long long stride_a, const double *b, int leading_b,
                              long long stride_b, const double *beta, double *c, int leading_c, long long stride_c,
                              int batch) {
    return cublasGemmStridedBatchedEx(handle, turn_a, turn_b, m, n, k, alpha, a, F64, leading_a, stride_a, b, F64,
                                      leading_b, stride_b, beta, c, F64, leading_c, stride_c, batch, 70, 0);
}
}
