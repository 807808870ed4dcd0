// base.h - what every file leans on and that knows nothing of models: errors, numbers, memory,
// time.
//
// Everything here is static inline and valid as C11, as C++17 and for nvcc. The functions under
// "numbers" are the only definitions of exp2, log2, sincos and bf16 rounding in the program: the
// same logits on every machine depend on them, so no libm result enters a computed value.
#ifndef BASE_H
#define BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifdef __cplusplus
#define EXTERN_C_BEGIN extern "C" {
#define EXTERN_C_END }
#else
#define EXTERN_C_BEGIN
#define EXTERN_C_END
#endif
#ifdef __CUDACC__
#define HD __host__ __device__
#else
#define HD
#endif

#define COUNTOF(a) (sizeof(a) / sizeof *(a))
#define CEIL_DIV(a, b) (((a) + (b) - 1) / (b))

// ---------------------------------------------------------------------------
// Errors. A user or file error is a sentence in an Err, returned upward and printed once by main.
// A broken invariant is a CHECK, always compiled in. Exit codes: DESIGN 11.
enum { EXIT_USER = 1, EXIT_USAGE = 2, EXIT_MEMORY = 3, EXIT_INTERRUPTED = 130 };

typedef struct {
    char msg[1024];     // one sentence: names the file, field or option, and what to do
    int code;           // exit code it asks for; 0 means EXIT_USER
} Err;

// fills *err and returns -1, for: return FAIL(err, "...");
__attribute__((format(printf, 3, 4)))
static inline int err_set(Err *err, int code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    err->code = code;
    return -1;
}
#define FAIL(err, ...) err_set(err, 0, __VA_ARGS__)
#define FAIL_CODE(err, c, ...) err_set(err, c, __VA_ARGS__)

__attribute__((noreturn, format(printf, 2, 3)))
static inline void die_code(int code, const char *fmt, ...) {
    va_list ap;
    fflush(stdout);
    fputs("scbench: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(code);
}
#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (!(cond)) die_code(EXIT_USER, "internal error: " __VA_ARGS__);                          \
    } while (0)

// ---------------------------------------------------------------------------
// Numbers. fp32 unless a name says otherwise; FTZ and DAZ are on in every thread (cpu_init).

HD static inline float bits_f32(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
HD static inline uint32_t f32_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

// bf16 is the top half of an fp32
HD static inline float bf16_f32(uint16_t b) { return bits_f32((uint32_t)b << 16); }

// fp32 -> bf16: denormals to zero, then nearest even (what VCVTNEPS2BF16 computes)
HD static inline uint16_t f32_bf16(float f) {
    uint32_t u = f32_bits(f);
    uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    r = (u & 0x7f800000u) == 0 ? (u >> 16) & 0x8000u : r;
    r = (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : r;
    return (uint16_t)r;
}
HD static inline float round_bf16(float f) { return bf16_f32(f32_bf16(f)); }

HD static inline float f16_f32(uint16_t h) {
    uint32_t s = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 1023u;
    if (e == 31) return bits_f32(s | 0x7f800000u | (m << 13));
    if (e) return bits_f32(s | ((e + 112u) << 23) | (m << 13));
    return bits_f32(s | f32_bits((float)m * 5.9604644775390625e-8f));
}

// 2^x. exp2(0) = 1, arguments below -126 give +0, above 128 +inf. Nearest-even split x = n + r,
// |r| <= 1/2, 2^r = 1 + r Q(r) with Q of degree 5 (minimax in the relative error, 2e-9 in exact
// arithmetic, about 1 ulp as evaluated), then an exponent add.
HD static inline float fexp2(float x) {
    float c = x < -126.0f ? -126.0f : x;
    c = c > 128.0f ? 128.0f : c;
    float t = c + 12582912.0f;                       // 1.5 * 2^23: rounds to an integer
    float n = t - 12582912.0f, r = c - n, q = 1.5353349e-4f;
    q = fmaf(q, r, 1.3398875e-3f);
    q = fmaf(q, r, 9.6184378e-3f);
    q = fmaf(q, r, 5.5503324e-2f);
    q = fmaf(q, r, 2.4022648e-1f);
    q = fmaf(q, r, 6.9314718e-1f);
    float p = fmaf(q, r, 1.0f);
    float y = p * bits_f32((f32_bits(t) - 0x4b400000u + 127u) << 23);
    return x < -126.0f ? 0.0f : y;
}

// log2 of a positive normal number. x = 2^e m with m in [sqrt(1/2), sqrt(2)); log2(1+t) = t P(t),
// P of degree 10. log2 of a power of two is exact.
HD static inline float flog2(float x) {
    uint32_t u = f32_bits(x);
    int32_t e = (int32_t)(u - 0x3f3504f3u) >> 23;
    float t = bits_f32(u - ((uint32_t)e << 23)) - 1.0f, p = 9.9724047e-2f;
    p = fmaf(p, t, -1.7069501e-1f);
    p = fmaf(p, t, 1.7166145e-1f);
    p = fmaf(p, t, -1.7857282e-1f);
    p = fmaf(p, t, 2.0505650e-1f);
    p = fmaf(p, t, -2.4049072e-1f);
    p = fmaf(p, t, 2.8857636e-1f);
    p = fmaf(p, t, -3.6067352e-1f);
    p = fmaf(p, t, 4.8089787e-1f);
    p = fmaf(p, t, -7.2134751e-1f);
    p = fmaf(p, t, 1.4426950e0f);
    return fmaf(p, t, (float)e);
}

// silu(x) = x / (1 + e^-x)
HD static inline float fsilu(float x) { return x / (1.0f + fexp2(x * -1.44269504f)); }

// log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|; log(1 + u) = log(w) u / (w - 1) with w = 1 + u
// as rounded (Kahan), which keeps small u's digits
HD static inline float fsoftplus(float x) {
    float u = fexp2(fabsf(x) * -1.44269504f), w = 1.0f + u, d = w - 1.0f;
    float l = flog2(w) * 0.693147181f * (u / (d > 0.0f ? d : 1.0f));
    return (x > 0.0f ? x : 0.0f) + (d > 0.0f ? l : u);
}

// double 2^x and log2(x), about 1e-15: for tables made once (RoPE frequencies)
static inline double dexp2(double x) {
    double n = rint(x), z = (x - n) * 0.69314718055994530942, p = 1.0;
    for (int k = 15; k > 0; k--) p = fma(p, z / k, 1.0);
    return ldexp(p, (int)n);
}
static inline double dlog2(double x) {
    int e;
    double m = frexp(x, &e);
    if (m < 0.70710678118654752440) { m *= 2; e--; }
    double s = (m - 1) / (m + 1), s2 = s * s, p = 0;
    for (int k = 25; k > 0; k -= 2) p = fma(p, s2, 1.0 / k);
    return e + 2.8853900817779268147 * s * p;
}

// sin and cos of an fp32 angle, |a| < 2^24: reduced by multiples of pi/2 in double, then Taylor
HD static inline void fsincos(float a, float *s, float *c) {
    double k = rint((double)a * 0.63661977236758134308);
    double r = fma(-k, 1.57079632679489655800, (double)a);
    r = fma(-k, 6.12323399573676603587e-17, r);
    double z = r * r, ps = 0, pc = 0;
    for (int i = 17; i > 1; i -= 2) ps = (1.0 - ps) * z / ((double)i * (i - 1));
    for (int i = 18; i > 1; i -= 2) pc = (1.0 - pc) * z / ((double)i * (i - 1));
    double sn = r * (1.0 - ps), cs = 1.0 - pc;
    int q = (int)((int64_t)k & 3);
    double ss = q & 1 ? cs : sn, cc = q & 1 ? sn : cs;
    *s = (float)(q & 2 ? -ss : ss);
    *c = (float)(q == 1 || q == 2 ? -cc : cc);
}

enum { LANES = 16 };

// the fixed tree of every reduction that is not a product: i += i+8, +4, +2, +1
HD static inline float lanes_sum(float *lane) {
    for (int s = 8; s; s >>= 1)
        for (int i = 0; i < s; i++) lane[i] += lane[i + s];
    return lane[0];
}

// ---------------------------------------------------------------------------
// Memory. Every block that grows with the model or the context goes through one account, so that
// used and high are true; the owner keeps pointer and size. Blocks are 64-byte aligned and zeroed.
// An account may be of a device's memory, which only mem_put, mem_get and mem_copy reach.
typedef struct {                // of memory that is not this machine's own (device.cu)
    void *(*take)(void *device, size_t bytes);          // zeroed; NULL: there is none
    void (*give)(void *device, void *p);
    void (*put)(void *device, void *to, const void *from, size_t bytes);    // from host memory
    void (*get)(void *device, void *to, const void *from, size_t bytes);    // to host memory
    void (*copy)(void *device, void *to, const void *from, size_t bytes);   // disjoint blocks
} MemOps;

typedef struct {
    size_t used, high;      // bytes now, high-water mark
    size_t limit;           // refuse beyond this (0: none)
    const MemOps *ops;      // NULL: host memory
    void *device;
} Mem;

enum { MEM_MAP_FROM = 1 << 20, MEM_HUGE_FROM = 4 << 20 };

static inline void *mem_take(Mem *m, size_t count, size_t size, const char *what) {
    size_t bytes;
    void *p = NULL;
    if (__builtin_mul_overflow(count, size, &bytes))
        die_code(EXIT_MEMORY, "%s: %zu x %zu bytes overflow", what, count, size);
    if (bytes == 0) return NULL;
    if (m->limit && bytes > m->limit - (m->used < m->limit ? m->used : m->limit))
        die_code(EXIT_MEMORY,
                 "not enough memory for %s: %zu MB wanted, %zu of %zu MB in use; "
                 "try a smaller --ctx or --budget, or see --plan",
                 what, bytes >> 20, m->used >> 20, m->limit >> 20);
    if (m->ops) {
        p = m->ops->take(m->device, bytes);
    } else if (bytes >= MEM_MAP_FROM) {
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
        if (p == MAP_FAILED) p = NULL;
        else if (bytes >= MEM_HUGE_FROM) madvise(p, bytes, MADV_HUGEPAGE);
    } else {
        p = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        if (p) memset(p, 0, (bytes + 63) & ~(size_t)63);
    }
    if (!p)
        die_code(EXIT_MEMORY, "not enough memory for %s: the %s refused %zu MB", what,
                 m->ops ? "GPU" : "system", bytes >> 20);
    m->used += bytes;
    if (m->used > m->high) m->high = m->used;
    return p;
}

static inline void mem_give(Mem *m, void *p, size_t bytes) {
    if (!p) return;
    m->used -= bytes;
    if (m->ops) m->ops->give(m->device, p);
    else if (bytes >= MEM_MAP_FROM) munmap(p, bytes);
    else free(p);
}

// bytes from host memory into a block of the account, from there to host memory, between two blocks
static inline void mem_put(const Mem *m, void *to, const void *from, size_t bytes) {
    if (m->ops && bytes) m->ops->put(m->device, to, from, bytes);
    else if (bytes) memcpy(to, from, bytes);
}
static inline void mem_get(const Mem *m, void *to, const void *from, size_t bytes) {
    if (m->ops && bytes) m->ops->get(m->device, to, from, bytes);
    else if (bytes) memcpy(to, from, bytes);
}
static inline void mem_copy(const Mem *m, void *to, const void *from, size_t bytes) {
    if (m->ops && bytes) m->ops->copy(m->device, to, from, bytes);
    else if (bytes) memmove(to, from, bytes);
}

#define TAKE(mem, type, count, what) ((type *)mem_take(mem, (size_t)(count), sizeof(type), what))

static inline void *xrealloc(void *p, size_t bytes) {
    p = realloc(p, bytes);
    if (!p) die_code(EXIT_MEMORY, "not enough memory: the system refused %zu bytes", bytes);
    return p;
}

// growing lists for text and ids; zero-initialised is empty, free(x.p) ends them
typedef struct { int32_t *p; size_t n, cap; } IntVec;
typedef struct { char *p; size_t n, cap; } StrBuf;     // p[n] is always 0 once something was added

static inline void ints_add(IntVec *v, const int32_t *a, size_t n) {
    if (v->n + n > v->cap) {
        v->cap = (v->n + n) * 2;
        v->p = (int32_t *)xrealloc(v->p, v->cap * sizeof *v->p);
    }
    if (n) memcpy(v->p + v->n, a, n * sizeof *a);
    v->n += n;
}
static inline void ints_push(IntVec *v, int32_t x) { ints_add(v, &x, 1); }

static inline void str_add(StrBuf *s, const char *a, size_t n) {
    if (s->n + n + 1 > s->cap) {
        s->cap = (s->n + n + 1) * 2;
        s->p = (char *)xrealloc(s->p, s->cap);
    }
    if (n) memcpy(s->p + s->n, a, n);
    s->n += n;
    s->p[s->n] = 0;
}
static inline void str_puts(StrBuf *s, const char *a) { str_add(s, a, strlen(a)); }

__attribute__((format(printf, 2, 3)))
static inline void str_fmt(StrBuf *s, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    str_add(s, NULL, 0);
    if (s->n + (size_t)n + 1 > s->cap) {
        s->cap = (s->n + (size_t)n + 1) * 2;
        s->p = (char *)xrealloc(s->p, s->cap);
    }
    va_start(ap, fmt);
    vsnprintf(s->p + s->n, (size_t)n + 1, fmt, ap);
    va_end(ap);
    s->n += (size_t)n;
}

// ---------------------------------------------------------------------------
// Time and seeded numbers

static inline double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// splitmix64: a counter-based generator, so the i-th number needs no state (Steele et al. 2014)
HD static inline uint64_t mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

typedef struct { uint64_t s; } Rng;
static inline uint64_t rng_next(Rng *r) { r->s += 0x9e3779b97f4a7c15ull; return mix64(r->s); }
static inline uint64_t rng_below(Rng *r, uint64_t n) {
    return (uint64_t)(((unsigned __int128)rng_next(r) * n) >> 64);
}

#endif
