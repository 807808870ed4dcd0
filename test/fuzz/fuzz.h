// fuzz.h - a main for the fuzz targets where libFuzzer is not: replays files, or mutates a seed for
// some seconds. With clang, -DLIBFUZZER -fsanitize=fuzzer,address takes its place.
//
//     fuzz_x FILE...             each file once: to look at what a fuzzer found
//     fuzz_x [SECONDS [SEED]]    mutations of the target's own seed input; default 2 s
#ifndef FUZZ_H
#define FUZZ_H
#include "scb.h"

EXTERN_C_BEGIN
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
EXTERN_C_END

#ifdef LIBFUZZER
#define FUZZ_MAIN(seed)
#else
#define FUZZ_MAIN(seed) \
    int main(int argc, char **argv) { return fuzz_main(argc, argv, seed); }

// flips, overwrites with edge values, copies of a stretch, cuts and growth, 1 to 8 at a time
static inline size_t fuzz_mutate(Rng *r, uint8_t *p, size_t n, size_t cap) {
    static const uint64_t edges[] = { 0, 1, 63, 64, 0x7f, 0xff, 0x7fffffff, 0xffffffff,
                                      1ull << 32, INT64_MAX, UINT64_MAX, UINT64_MAX - 63 };
    for (uint64_t k = 1 + rng_below(r, 8); k > 0; k--) {
        uint64_t at = n ? rng_below(r, n) : 0, left = n - at, len = 1 + rng_below(r, 64);
        len = len < left ? len : left;
        switch (rng_below(r, 16)) {
        case 0:
            n = at;
            break;
        case 1:
            len = rng_below(r, 64) < cap - n ? 1 + rng_below(r, cap - n > 63 ? 63 : cap - n) : 0;
            for (uint64_t i = 0; i < len; i++) p[n + i] = (uint8_t)rng_next(r);
            n += len;
            break;
        case 2: case 3: case 4:
            if (len) memmove(p + rng_below(r, n - len + 1), p + at, len);
            break;
        case 5: case 6: case 7: case 8: case 9: {
            size_t bytes = (size_t)1 << rng_below(r, 4);
            at &= ~(uint64_t)(bytes - 1);
            uint64_t edge = edges[rng_below(r, COUNTOF(edges))];
            if (at + bytes <= n) memcpy(p + at, &edge, bytes);
            break;
        }
        default:
            if (n) p[at] ^= (uint8_t)(1 << rng_below(r, 8));
        }
    }
    return n;
}

static inline int fuzz_main(int argc, char **argv, StrBuf (*seed_input)(void)) {
    char *end = NULL;
    double seconds = argc > 1 ? strtod(argv[1], &end) : 2;
    Rng r = { argc > 2 ? strtoull(argv[2], NULL, 10) : 1 };
    if (argc > 1 && *end) {
        for (int i = 1; i < argc; i++) {
            StrBuf bytes = { 0 };
            char part[4096];
            FILE *in = fopen(argv[i], "rb");
            CHECK(in, "%s: %s", argv[i], strerror(errno));
            for (size_t n; (n = fread(part, 1, sizeof part, in)) > 0;) str_add(&bytes, part, n);
            fclose(in);
            LLVMFuzzerTestOneInput((const uint8_t *)bytes.p, bytes.n);
            free(bytes.p);
        }
        return 0;
    }
    StrBuf seed = seed_input();
    size_t cap = seed.n + 4096;
    uint8_t *p = (uint8_t *)xrealloc(NULL, cap);
    long long runs = 0;
    LLVMFuzzerTestOneInput((const uint8_t *)seed.p, seed.n);
    for (double until = now_s() + seconds; now_s() < until; runs++) {
        memcpy(p, seed.p, seed.n);
        size_t n = fuzz_mutate(&r, p, seed.n, cap);
        uint8_t *exact = (uint8_t *)xrealloc(NULL, n + 1);      // a sanitizer sees its end
        memcpy(exact, p, n);
        LLVMFuzzerTestOneInput(exact, n);
        free(exact);
    }
    printf("%lld inputs\n", runs);
    free(p);
    free(seed.p);
    return 0;
}
#endif
#endif
