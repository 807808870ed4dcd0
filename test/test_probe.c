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
    double got = probe_minor(&h, 1, row);
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
    EXPECT(fabs(probe_minor(&h, 1, row) - want / N) < 1e-9, "a head of one key: %g, not %g",
           probe_minor(&h, 1, row), want / N);
    EXPECT(fabs(probe_cosine(&h, 40, 36) - 1) < 1e-12 && fabs(probe_cosine(&h, 40, 39)) < 1e-12,
           "queries of period 4: %g at 4, %g at 1", probe_cosine(&h, 40, 36),
           probe_cosine(&h, 40, 39));
}

// queries that are one vector, rotated to their positions: alike in content wherever they stand
static void rotated_queries(void) {
    enum { HALF = 12 };
    static float inv[HALF];
    AttnShape s = shape_of(4);
    ProbeHead h = { &s, q, DIM, k, N };
    fill(9);
    s.rope_dim = 2 * HALF;
    s.inv_freq = inv;
    for (int i = 0; i < HALF; i++) inv[i] = (float)exp(-0.7 * i);
    for (int t = 1; t < N; t++)
        for (int i = 0; i < DIM; i++) {
            double c = cos((double)inv[i % HALF] * t), sn = sin((double)inv[i % HALF] * t);
            q[t * DIM + i] = i >= 2 * HALF ? q[i]
                           : i < HALF ? (float)(q[i] * c - q[i + HALF] * sn)
                                      : (float)(q[i - HALF] * sn + q[i] * c);
        }
    EXPECT(probe_cosine(&h, 60, 3) < 0.9, "rotation keeps %g", probe_cosine(&h, 60, 3));
    EXPECT(fabs(probe_cosine_content(&h, 60, 3) - 1) < 1e-5 &&
           fabs(probe_cosine_content(&h, 3, 60) - 1) < 1e-5, "one vector at two places: %g, %g",
           probe_cosine_content(&h, 60, 3), probe_cosine_content(&h, 3, 60));
    double some = probe_minor(&h, 7, row);
    double want = 0;
    int rows = 0;
    for (int t = N - 1; t >= 0; t -= 7, rows++) {
        int minor = 0;
        probe_row(&h, t, row);
        for (int j = 0; j <= t; j++) minor += row[j] * (float)(t + 1) < 1;
        want += (double)minor / (t + 1);
    }
    EXPECT(fabs(some - want / rows) < 1e-12, "every seventh query: %g, not %g", some, want / rows);
}

int main(void) {
    rotated_queries();
    fill(5);
    rows_are_softmax(4);
    rows_are_softmax(2);
    planted_heads();
    printf("%d failures\n", failures);
    return failures != 0;
}
