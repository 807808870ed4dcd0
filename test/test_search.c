// test_search.c - the pattern search on one layer whose four query heads are planted: one looks at
// the first keys and a window, one at two bands of distances, one at scattered columns, one at one
// earlier tile per row block. Each must find its own pattern, by recall and by output, and the
// recall must be what a plain sum over a masked softmax in double gives.
#include "../scb.h"

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    printf("test_search.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    printf("\n"); \
    failures++; } } while (0)

enum { N = 1536, HEADS = 4, WIDTH = 64, SINKS = 64, LOCAL = 128, TILE = 64, LAST = 64 };
static const char *const head_name[HEADS] = { "window", "bands", "columns", "tiles" };
static const Candidate space[] = {
    { { HEAD_A_SHAPE, SINKS, LOCAL, 0 }, { HEAD_A_SHAPE, SINKS, LOCAL, 0 }, TILE },
    { { HEAD_VERTICAL_SLASH, 30, 250, 0 }, { HEAD_VERTICAL_SLASH, 30, 250, 0 }, TILE },
    { { HEAD_VERTICAL_SLASH, 250, 50, 0 }, { HEAD_VERTICAL_SLASH, 250, 50, 0 }, TILE },
    { { HEAD_BLOCK_SPARSE, 2, 0, 0 }, { HEAD_VERTICAL_SLASH, 1000, 6096, 0 }, TILE },
};
enum { CANDIDATES = COUNTOF(space) };

static float q[N][HEADS][WIDTH], k[N][WIDTH], v[N][WIDTH];
static bool column[N];
static int looks_at[N / TILE];          // the tile of a row block

static float sign(int tile, int c) { return mix64((uint64_t)(tile * 64 + c)) & 1 ? 1.0f : -1.0f; }

// channels: 0 first keys, 1 columns, 2-3 a slow wave, 4-35 tiles, 36-55 bands of distances
static void plant(void) {
    static const int band[2] = { 300, 700 };
    Rng rng = { 5 };
    for (int c = 0; c < 150; c++) column[rng_below(&rng, N)] = true;
    for (int r = 0; r < N / TILE; r++) looks_at[r] = (int)rng_below(&rng, (uint64_t)r + 1);
    for (int i = 0; i < N; i++) {
        double slow = i * 3.14159265358979 / N;
        k[i][0] = i < SINKS;
        k[i][1] = column[i];
        k[i][2] = (float)cos(slow);
        k[i][3] = (float)sin(slow);
        q[i][0][0] = 100.0f;                            // a window of deviation 50 at the peak 100
        q[i][0][2] = 100.0f * k[i][2];
        q[i][0][3] = 100.0f * k[i][3];
        q[i][2][1] = 14.0f;
        for (int c = 4; c < 36; c++) {
            k[i][c] = sign(i / TILE, c);
            q[i][3][c] = 0.6f * sign(looks_at[i / TILE], c);
        }
        for (int c = 0; c < 20; c += 2) {
            double w = 0.03 * pow(0.75, c % 10 / 2);
            double at = (i - band[c / 10]) * w;
            k[i][36 + c] = (float)cos(i * w);
            k[i][37 + c] = (float)sin(i * w);
            q[i][1][36 + c] = 5.0f * (float)cos(at);
            q[i][1][37 + c] = 5.0f * (float)sin(at);
        }
        for (int c = 0; c < WIDTH; c++)
            v[i][c] = (float)(rng_below(&rng, 2001)) * 1e-3f - 1.0f;
    }
}

// ---------------------------------------------------------------------------
// The oracle: recall by definition

static double prob[N];

static void softmax(int h, int i) {
    double sum = 0, max = -INFINITY;
    for (int j = 0; j <= i; j++) {
        prob[j] = 0;
        for (int c = 0; c < WIDTH; c++) prob[j] += (double)q[i][h][c] * k[j][c];
        if (prob[j] > max) max = prob[j];
    }
    for (int j = 0; j <= i; j++) sum += prob[j] = exp(prob[j] - max);
    for (int j = 0; j <= i; j++) prob[j] /= sum;
}

static const double *by_score;
static int larger_first(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (by_score[x] != by_score[y]) return by_score[x] > by_score[y] ? -1 : 1;
    return x - y;
}

// the n largest of x, the first 30 in any case
static void keep_largest(const double *x, int n, bool *kept) {
    static int order[N];
    static double forced[N];
    for (int j = 0; j < N; j++) forced[order[j] = j] = j < 30 ? INFINITY : x[j];
    by_score = forced;
    qsort(order, N, sizeof *order, larger_first);
    memset(kept, 0, N * sizeof *kept);
    for (int j = 0; j < n; j++) kept[order[j]] = true;
}

static void naive_recall(int h, double recall[CANDIDATES]) {
    static double columns[N], distances[N], tile[N / TILE];
    static bool vertical[CANDIDATES][N], slash[CANDIDATES][N], kept_tile[N];
    memset(columns, 0, sizeof columns);
    memset(distances, 0, sizeof distances);
    for (int i = N - LAST; i < N; i++) {
        softmax(h, i);
        for (int j = 0; j <= i; j++) columns[j] += prob[j], distances[i - j] += prob[j];
    }
    for (int c = 1; c < 3; c++) {
        keep_largest(columns, space[c].pattern.a, vertical[c]);
        keep_largest(distances, space[c].pattern.b, slash[c]);
    }
    for (int c = 0; c < CANDIDATES; c++) recall[c] = 0;
    for (int i = N / 2; i < N; i++) {
        int r = i / TILE;
        if (i == N / 2 || i % TILE == 0) {              // tiles by the product of the means
            memset(kept_tile, 0, sizeof kept_tile);
            for (int t = 0; t <= r; t++) {
                tile[t] = 0;
                for (int c = 0; c < WIDTH; c++) {
                    double mean_q = 0, mean_k = 0;
                    for (int x = 0; x < TILE; x++) {
                        mean_q += q[r * TILE + x][h][c];
                        mean_k += k[t * TILE + x][c];
                    }
                    tile[t] += mean_q * mean_k;
                }
            }
            for (int n = 0; n < space[3].pattern.a; n++) {
                int best = -1;
                for (int t = 0; t <= r; t++)
                    if (!kept_tile[t] && (best < 0 || tile[t] > tile[best])) best = t;
                kept_tile[best] = true;
            }
        }
        softmax(h, i);
        for (int j = 0; j <= i; j++) {
            if (j < SINKS || i - j < LOCAL) recall[0] += prob[j];
            for (int c = 1; c < 3; c++)
                if (vertical[c][j] || slash[c][i - j]) recall[c] += prob[j];
            if (kept_tile[j / TILE]) recall[3] += prob[j];
        }
    }
    for (int c = 0; c < CANDIDATES; c++) recall[c] /= N - N / 2;
}

// ---------------------------------------------------------------------------

static void search(const LayerSeen *seen, const Candidate *candidates, int n, bool output,
                   HeadPattern *found, double *share) {
    Search s;
    memset(&s, 0, sizeof s);
    s.space = candidates;
    s.n_space = n;
    s.n = N;
    s.output = output;
    s.found.n_layers = 1;
    s.found.n_heads = HEADS;
    s.found.head = found;
    s.share = share;
    search_layer(&s, seen);
    EXPECT(s.mem.used == 0, "%zu bytes are left", s.mem.used);
}

// pairs that attention computes under what was found
static int64_t computed(const LayerSeen *seen, const HeadPattern *found) {
    static float out[N][HEADS][WIDTH], last[HEADS][LAST][WIDTH];
    static int32_t pos[N];
    const AttnShape *s = seen->shape;
    Mem mem = { 0 };
    size_t panel = attn_panel_bytes(s) * CEIL_DIV(N, PANEL), each = attn_scratch_bytes(s) + 64;
    char *panels = (char *)mem_take(&mem, panel, 1, "panels");
    char *scratch = (char *)mem_take(&mem, each * (size_t)cpu_threads(), 1, "scratch");
    KeyList keys = { { k, k }, { v, v }, { pos, pos }, N, NULL, N, false, NULL };
    const void *at[1] = { panels };
    for (int i = 0; i < N; i++) pos[i] = i;
    for (int e = 0; e < N; e += PANEL) attn_pack(s, panels, &keys, e, e + PANEL, scratch);
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < LAST; i++) memcpy(last[h][i], q[N - LAST + i][h], sizeof last[h][i]);
    SparseLayer layer = { found, 0, s, &keys, at, N, &last[0][0][0], LAST };
    Sparse *lists = sparse_open(&mem, s);
    sparse_reserve(lists, N, N, 0);
    each &= ~(size_t)63;
    sparse_plan(lists, &layer, scratch, each);
    int64_t pairs = sparse_rows(lists, 0, N, &q[0][0][0], &out[0][0][0], NULL, 0, scratch, each);
    sparse_close(lists);
    mem_give(&mem, panels, panel);
    mem_give(&mem, scratch, (attn_scratch_bytes(s) + 64) * (size_t)cpu_threads());
    return pairs;
}

int main(void) {
    Err err = { "", 0 };
    HeadPattern found[HEADS];
    double share[HEADS];
    CHECK(!cpu_init(0, &err), "%s", err.msg);
    plant();
    AttnShape shape;
    memset(&shape, 0, sizeof shape);
    shape.kind = mul_kind(DT_F32);
    shape.head_dim = shape.rope_dim = WIDTH;
    shape.n_heads = HEADS;
    shape.n_kv_heads = 1;
    shape.elem = 4;
    shape.scale = 1.4426950408889634f;
    const void *keys[1] = { k }, *values[1] = { v };
    LayerSeen seen = { &shape, 0, N, &q[0][0][0], keys, values };

    for (int output = 0; output < 2; output++) {
        search(&seen, space, CANDIDATES, output, found, share);
        for (int h = 0; h < HEADS; h++) {
            const HeadPattern *want = &space[h].stored;
            double recall[CANDIDATES];
            EXPECT(found[h].kind == want->kind && found[h].a == want->a && found[h].b == want->b,
                   "by %s the %s head found kind %d (%d, %d)", output ? "output" : "recall",
                   head_name[h], found[h].kind, found[h].a, found[h].b);
            if (output) {
                EXPECT(found[h].score < 0.02, "the %s head: error %g", head_name[h],
                       found[h].score);
                continue;
            }
            naive_recall(h, recall);
            printf("%-8s recall %.4f (by definition %.4f; others", head_name[h], found[h].score,
                   recall[h]);
            for (int c = 0; c < CANDIDATES; c++) if (c != h) printf(" %.4f", recall[c]);
            printf("), share of the pairs %.3f\n", share[h]);
            EXPECT(fabs(found[h].score - recall[h]) < 1e-3, "recall %g, by definition %g",
                   found[h].score, recall[h]);
        }
        EXPECT(fabs(share[0] - 90.0 / 300) < 1e-12 && share[2] < 0.5, "shares %g, %g", share[0],
               share[2]);
        double all = 0;
        for (int h = 0; h < HEADS; h++) all += share[h];
        int64_t pairs = computed(&seen, found);
        EXPECT(fabs(all * (double)sparse_all_pairs(N, N) - (double)pairs) < 0.5,
               "shares of %g in all, attention computes %lld pairs", all, (long long)pairs);
        EXPECT(share[3] == 1, "a head of 6,096 distances computes %g of 1,536 tokens", share[3]);
    }

    // complete candidates: everything is recalled, the first of equals stays
    const Candidate all[] = {
        { { HEAD_A_SHAPE, 0, N, 0 }, { HEAD_A_SHAPE, 0, N, 0 }, TILE },
        { { HEAD_VERTICAL_SLASH, N, N, 0 }, { HEAD_VERTICAL_SLASH, N, N, 0 }, TILE },
        { { HEAD_BLOCK_SPARSE, N, 0, 0 }, { HEAD_BLOCK_SPARSE, N, 0, 0 }, TILE },
    };
    for (int output = 0; output < 2; output++)
        for (int c = 0; c < (int)COUNTOF(all); c++) {
            search(&seen, &all[c], 1, output, found, share);
            for (int h = 0; h < HEADS; h++) {
                double off = output ? found[h].score : fabs(found[h].score - 1);
                EXPECT(off < 1e-5 && share[h] == 1, "complete candidate %d, head %d: %g, share %g",
                       c, h, found[h].score, share[h]);
            }
        }
    printf("%d failures\n", failures);
    return failures != 0;
}
