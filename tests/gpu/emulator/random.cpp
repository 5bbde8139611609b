// What of cuRAND is called: uniform and normal numbers. They are others than NVIDIA's for the same seed.

#include <random>

#include "device.h"

namespace {

struct Generator {
    std::mt19937_64 numbers;
};

template <class T> int uniform(void *generator, T *out, size_t count) {
    auto &numbers = static_cast<Generator *>(generator)->numbers;
    std::uniform_real_distribution<T> distribution(0, 1);
    for (size_t i = 0; i < count; i++) out[i] = 1 - distribution(numbers);
    return 0;
}

template <class T> int normal(void *generator, T *out, size_t count, T mean, T deviation) {
    if (count % 2 == 1) return 105; // CURAND_STATUS_LENGTH_NOT_MULTIPLE
    auto &numbers = static_cast<Generator *>(generator)->numbers;
    std::normal_distribution<T> distribution(mean, deviation);
    for (size_t i = 0; i < count; i++) out[i] = distribution(numbers);
    return 0;
}

} // namespace

extern "C" {

int curandCreateGenerator(void **out, int) {
    *out = new Generator;
    return 0;
}
int curandDestroyGenerator(void *generator) {
    delete static_cast<Generator *>(generator);
    return 0;
}
int curandSetStream(void *, CUstream) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    static_cast<Generator *>(generator)->numbers.seed(seed);
    return 0;
}
int curandSetGeneratorOffset(void *, unsigned long long) { return 0; }
int curandGenerateUniform(void *generator, float *out, size_t count) { return uniform(generator, out, count); }
int curandGenerateUniformDouble(void *generator, double *out, size_t count) { return uniform(generator, out, count); }
int curandGenerateNormal(void *generator, float *out, size_t count, float mean, float deviation) {
    return normal(generator, out, count, mean, deviation);
}
int curandGenerateNormalDouble(void *generator, double *out, size_t count, double mean, double deviation) {
    return normal(generator, out, count, mean, deviation);
}
}
