// twin.h - what the tests of kernels share. A test is a .cu file that fills host arrays, runs the
// plain C function of the CPU and its cuda_ twin on the same bytes, and compares. The same file is
// built for the emulation (build/emu/cuda/) and, with make CUDA=1, for a device (build/cuda/cuda/).
#ifndef TWIN_H
#define TWIN_H
#ifdef __cplusplus
#include "device.h"
#include "scb.h"

static int twin_failures;

// a test's own stream; results are read after it is waited for
static inline cudaStream_t twin_stream(void) {
    static cudaStream_t s;
    if (!s) CUDA_OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}

// a copy of x (n) on the device, to be given to cudaFree
template <class T> static inline T *to_device(const T *x, size_t n) {
    T *p = NULL;
    CUDA_OK(cudaMalloc(&p, n * sizeof *p));
    CUDA_OK(cudaMemcpy(p, x, n * sizeof *p, cudaMemcpyHostToDevice));
    return p;
}
// n elements on the device that nobody has written
template <class T> static inline T *device_array(size_t n) {
    T *p = NULL;
    CUDA_OK(cudaMalloc(&p, n * sizeof *p));
    return p;
}
// n elements of zero bits
template <class T> static inline T *device_zeros(size_t n) {
    T *p = device_array<T>(n);
    CUDA_OK(cudaMemset(p, 0, n * sizeof *p));
    return p;
}
// x (n) <- the device, after everything in the test's stream
template <class T> static inline void from_device(T *x, const T *p, size_t n) {
    CUDA_OK(cudaMemcpyAsync(x, p, n * sizeof *p, cudaMemcpyDeviceToHost, twin_stream()));
    CUDA_OK(cudaStreamSynchronize(twin_stream()));
}

// uniform in [-1, 1), a function of seed and place alone
static inline float twin_value(uint64_t seed, size_t i) {
    return (float)(int32_t)(mix64(seed * 0x10001u + i) >> 40) * 0x1p-23f - 1.0f;
}
static inline void twin_fill(float *x, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) x[i] = twin_value(seed, i);
}

// |got - want| <= tol * (rms of want) everywhere; says where it is not
static inline void twin_near(const char *what, const float *got, const float *want, size_t n,
                             double tol) {
    double sum = 0, worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) sum += (double)want[i] * want[i];
    double rms = n ? sqrt(sum / (double)n) : 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]);
        if (!(d <= worst)) { worst = d; at = i; }
    }
    if (worst <= tol * rms) return;
    twin_failures++;
    printf("%s: element %zu is %.9g, on the CPU %.9g: off by %.3g, allowed are %.3g\n", what, at,
           (double)got[at], (double)want[at], worst, tol * rms);
}
template <class T>
static inline void twin_equal(const char *what, const T *got, const T *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(&got[i], &want[i], sizeof(T))) {
            twin_failures++;
            printf("%s: element %zu of %zu differs\n", what, i, n);
            return;
        }
}

// make try asks for times instead of results; the emulation has none to give
static inline bool twin_timing(void) {
#ifdef CUDA_EMU
    return false;
#else
    return getenv("TWIN_TIME") != NULL;
#endif
}
// one line: milliseconds of call(), which launches into the test's stream, and the label
template <class F> static inline void twin_time(const char *label, F call) {
    enum { RUNS = 20 };
    cudaEvent_t from, to;
    float best = 0;
    CUDA_OK(cudaEventCreate(&from));
    CUDA_OK(cudaEventCreate(&to));
    for (int i = 0; i < RUNS; i++) {
        float ms;
        CUDA_OK(cudaEventRecord(from, twin_stream()));
        call();
        CUDA_OK(cudaEventRecord(to, twin_stream()));
        CUDA_OK(cudaEventSynchronize(to));
        CUDA_OK(cudaEventElapsedTime(&ms, from, to));
        if (i == 0 || ms < best) best = ms;
    }
    printf("%.5f\t%s\n", (double)best, label);
    CUDA_OK(cudaEventDestroy(from));
    CUDA_OK(cudaEventDestroy(to));
}

// 0, or 77 with a sentence where a build for a device finds none
static inline int twin_begin(void) {
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0) return 0;
    puts("no GPU here: the emulation ran this test");
    return 77;
}
static inline int twin_end(const char *name) {
    CUDA_OK(cudaStreamSynchronize(twin_stream()));
    printf(twin_failures ? "%s: %d failures\n" : "%s: all as on the CPU\n", name, twin_failures);
    return twin_failures != 0;
}
#endif
#endif
