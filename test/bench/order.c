// order.c - what the fixed order of additions costs. The matrix unit adds in that order by itself;
// in plain C the alternative is one chain of fused multiply-adds per output over all of k, in
// whatever order is fastest, instead of two chains restarted in every block of 32. Interleaved
// rounds, medians.
#include "../../matmul.cu"

enum { M = 64, N = 512, K = 2048, ROUNDS = 15 };

// the same blocking and loads as mul_c; one running sum per output, or one for even and one for odd
// k
static void mul_free(bool two, float *y, size_t ldy, const float *a, const void *half,
                     size_t b_step, int kb) {
    float acc[ROWS][16] = { { 0 } }, odd[ROWS][16] = { { 0 } }, be[16], bo[16];
    for (int b = 0; b < kb; b++)
        for (int r = 0; r < 16; r++) {
            const uint32_t *w = (const uint32_t *)(const void *)((const char *)half + (size_t)b *
                                                                 b_step) + r * 16;
            for (int c = 0; c < 16; c++) {
                be[c] = bits_f32(w[c] << 16);
                bo[c] = bits_f32(w[c] & 0xffff0000u);
            }
            for (int i = 0; i < ROWS; i++) {
                const float *x = a + (size_t)b * 16 * BLK + i * BLK + 2 * r;
                for (int c = 0; c < 16; c++) acc[i][c] = fmaf(x[0], be[c], acc[i][c]);
                if (two) for (int c = 0; c < 16; c++) odd[i][c] = fmaf(x[1], bo[c], odd[i][c]);
                else for (int c = 0; c < 16; c++) acc[i][c] = fmaf(x[1], bo[c], acc[i][c]);
            }
        }
    for (int i = 0; i < ROWS; i++)
        for (int c = 0; c < 16; c++) y[(size_t)i * ldy + c] = acc[i][c] + odd[i][c];
}

enum { FIXED, ONE_CHAIN, TWO_CHAINS, KINDS };

static double run(int kind, float *y, const float *a, const char *tiles) {
    int kb = K / BLK;
    double t = now_s();
    for (int c = 0; c < N; c += 16)
        for (int i = 0; i < M; i += ROWS) {
            const float *ai = a + (size_t)(i / 16) * kb * 16 * BLK + (i % 16) * BLK;
            const char *half =
                tiles + (size_t)(c / 32) * kb * 2 * TILE_BYTES + (size_t)(c / 16 % 2) * TILE_BYTES;
            float *yi = y + (size_t)i * N + c;
            if (kind == FIXED)
                mul_c(MUL_BF16, yi, N, ai, ROWS, half, 2 * TILE_BYTES, 16, kb, false);
            else if (kind == ONE_CHAIN) mul_free(false, yi, N, ai, half, 2 * TILE_BYTES, kb);
            else mul_free(true, yi, N, ai, half, 2 * TILE_BYTES, kb);
        }
    return now_s() - t;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(void) {
    Err err;
    double t[KINDS][ROUNDS];
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    Mem mem = { 0, 0, 0, NULL, NULL };
    float *a = TAKE(&mem, float, M * K, "activations"), *y = TAKE(&mem, float, M * N, "results");
    uint16_t *w = TAKE(&mem, uint16_t, N * K, "weights");
    for (int i = 0; i < M * K; i++)
        a[i] = round_bf16((float)(mix64((uint64_t)i) >> 40) * 0x1p-24f - 0.5f);
    for (int i = 0; i < N * K; i++)
        w[i] = f32_bf16((float)(mix64((uint64_t)i + 7) >> 40) * 0x1p-24f - 0.5f);
    run(FIXED, y, a, (const char *)w);
    for (int r = 0; r < ROUNDS; r++)
        for (int k = 0; k < KINDS; k++) t[k][r] = run(k, y, a, (const char *)w);
    for (int k = 0; k < KINDS; k++) qsort(t[k], ROUNDS, sizeof t[k][0], by_value);
    double work = 2.0 * M * N * K * 1e-9, fixed = t[FIXED][ROUNDS / 2];
    double best = t[ONE_CHAIN][ROUNDS / 2] < t[TWO_CHAINS][ROUNDS / 2] ? t[ONE_CHAIN][ROUNDS / 2] : t[TWO_CHAINS][ROUNDS / 2];
    printf("plain C product, one thread, %d x %d x %d, medians: fixed order %.1f GF/s, free order %.1f GF/s, "
           "fixed takes %.2f of the time\n", M, N, K, work / fixed, work / best, fixed / best);
    return 0;
}
