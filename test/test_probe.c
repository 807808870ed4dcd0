// test_probe.c - what probe.c measures, against sums in double, and what it says of planted heads
#include "probe.h"

enum { DIM = 40, N = 97 };
static int failures;
#define EXPECT(cond, ...) do { if (!(cond) && ++failures <= 12) { \
    printf("test_probe.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static float q[N * 2 * DIM], k[N * DIM], row[N];
static uint16_t k16[N * DIM];

static AttnShape shape_of(size_t elem) {
    AttnShape s;
    memset(&s, 0, sizeof s);
    s.head_dim = DIM;
    s.elem = elem;
    s.scale = (float)(1.4426950408889634 / sqrt((double)DIM));
    return s;
}

static void fill(uint64_t seed) {
    Rng rng = { seed };
    for (int i = 0; i < N * 2 * DIM; i++) q[i] = (float)rng_below(&rng, 2001) * 1e-3f - 1;
    for (int i = 0; i < N * DIM; i++) {
        k16[i] = f32_bf16((float)rng_below(&rng, 2001) * 1e-3f - 1);
        k[i] = bf16_f32(k16[i]);
    }
}

static void rows_are_softmax(size_t elem) {
    AttnShape s = shape_of(elem);
    ProbeHead h = { &s, q + DIM, 2 * DIM, elem == 4 ? (void *)k : (void *)k16, N };
    double share = 0;
    for (int t = 0; t < N; t++) {
        double a[N], sum = 0, total = 0;
        int minor = 0;
        for (int j = 0; j <= t; j++) {
            double dot = 0;
            for (int i = 0; i < DIM; i++)
                dot += (double)q[(2 * t + 1) * DIM + i] * (double)k[j * DIM + i];
            sum += a[j] = exp(dot / sqrt((double)DIM));
        }
        probe_row(&h, t, row);
        for (int j = 0; j <= t; j++) {
            EXPECT(fabs((double)row[j] - a[j] / sum) < 1e-6, "a[%d][%d] is %g, not %g", t, j,
                   (double)row[j], a[j] / sum);
            total += (double)row[j];
            minor += a[j] / sum < 1.0 / (t + 1);
        }
        EXPECT(fabs(total - 1) < 1e-5, "row %d sums to %g", t, total);
        share += (double)minor / (t + 1);
    }
    double got = probe_minor(&h, 0, row);
    EXPECT(fabs(got - share / N) < 1e-3, "%g of the keys are minor, not %g", got, share / N);
}

// one key takes everything: all others are minor. Queries that repeat are alike.
static void planted_heads(void) {
    AttnShape s = shape_of(4);
    ProbeHead h = { &s, q, DIM, k, N };
    memset(q, 0, sizeof q);
    memset(k, 0, sizeof k);
    for (int t = 0; t < N; t++) q[t * DIM + t % 4] = 50;
    for (int i = 0; i < 4; i++) k[i] = 50;                      // key 0 answers every query
    double want = 0;
    for (int t = 0; t < N; t++) want += (double)t / (t + 1);
    EXPECT(fabs(probe_minor(&h, 0, row) - want / N) < 1e-9, "a head of one key: %g, not %g",
           probe_minor(&h, 0, row), want / N);
    EXPECT(fabs(probe_cosine(&h, 40, 36) - 1) < 1e-12 && fabs(probe_cosine(&h, 40, 39)) < 1e-12,
           "queries of period 4: %g at 4, %g at 1", probe_cosine(&h, 40, 36),
           probe_cosine(&h, 40, 39));
}

int main(void) {
    fill(5);
    rows_are_softmax(4);
    rows_are_softmax(2);
    planted_heads();
    printf("%d failures\n", failures);
    return failures != 0;
}
