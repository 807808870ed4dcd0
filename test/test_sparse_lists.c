// test_sparse_lists.c - which keys a query may look at in a sparse prefill, and what follows from
// it. First the definitions of oracle_sparse.h: the vectors and the properties that the index
// conversion of the released MInference was shown to have, and a sparse prefill with complete lists
// against the dense one.
#include "oracle_sparse.h"
#include "pair.h"

static int failures;
static long checks;

__attribute__((format(printf, 2, 3)))
static void expect(bool good, const char *fmt, ...) {
    va_list ap;
    checks++;
    if (good || failures++ > 20) return;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf("\n");
}

// ---------------------------------------------------------------------------
// Vertical-slash lists

static void expect_pieces(const NaiveIndex *x, int r, int N, const char *blocks, int columns) {
    int starts[64], last, count = 0;
    StrBuf got = { 0 };
    uint8_t *in = (uint8_t *)xrealloc(NULL, (size_t)N);
    int n = naive_slash_intervals(x, r, N, starts, in, &last);
    for (int i = 0; i < n; i++) str_fmt(&got, "%s%d", i ? " " : "", starts[i]);
    for (int i = 0; i < x->n_vertical; i++)
        count += x->vertical[i] < last && !in[x->vertical[i]] && x->vertical[i] == count;
    expect(!strcmp(got.p, blocks) && count == columns,
           "row block %d: blocks %s, columns 0..%d; released code: %s, 0..%d", r, got.p, count - 1,
           blocks, columns - 1);
    free(got.p);
    free(in);
}

static void slash_vectors(void) {
    int vertical[] = { 0, 1, 2, 3, 130, 250, 300 }, slash[] = { 0, 1, 2, 100, 101, 200 };
    NaiveIndex x = { .n_vertical = 7, .n_slash = 6, .vertical = vertical, .slash = slash };
    expect_pieces(&x, 5, 512, "120 219 283 347", 4);
    int near[100];
    for (int i = 0; i < 100; i++) near[i] = i;
    NaiveIndex y = { .n_vertical = 30, .n_slash = 100, .vertical = near, .slash = near };
    expect_pieces(&y, 0, 13000, "0", 0);
    expect_pieces(&y, 1, 13000, "0 64", 0);
    expect_pieces(&y, 2, 13000, "29 93 157", 29);
    expect_pieces(&y, 3, 13000, "93 157 221", 30);
    expect_pieces(&y, 200, 13000, "12701 12765 12829", 30);
}

static int *random_set(Rng *r, int n, int k, bool clustered) {
    float *score = naive_floats((size_t)n);
    for (int i = 0; i < n; i++) score[i] = (float)rng_below(r, clustered ? 5 : 1 << 20);
    for (int i = 1; clustered && i < n; i++) score[i] += 0.9f * score[i - 1];
    int *set = naive_pick(score, n, k);
    free(score);
    return set;
}

// what was proved of the conversion, on random columns and distances
static void slash_properties(int cases) {
    for (int at = 0; at < cases; at++) {
        Rng rng = { (uint64_t)at };
        int N = 64 + (int)rng_below(&rng, at % 10 ? 500 : 3000), starts[64], last;
        NaiveIndex x = { 0 };
        NaivePattern p = { .shape = NAIVE_SLASHES };
        x.n_vertical = 1 + (int)rng_below(&rng, (uint64_t)(N < 60 ? N : 60));
        x.n_slash = 1 + (int)rng_below(&rng, (uint64_t)(at % 3 ? 20 : N / 2));
        x.vertical = random_set(&rng, N, x.n_vertical, at & 1);
        x.slash = random_set(&rng, N, x.n_slash, at & 2);
        x.slash[0] = 0;
        uint8_t *in = (uint8_t *)xrealloc(NULL, (size_t)N), *listed = in;
        int r = (int)rng_below(&rng, (uint64_t)CEIL_DIV(N, NAIVE_TILE)), s = r * NAIVE_TILE;
        int n = naive_slash_intervals(&x, r, N, starts, in, &last);
        expect(n <= x.n_slash && starts[0] <= s && last <= s + 2 * NAIVE_TILE - 1,
               "case %d: %d pieces from %d to %d for %d distances", at, n, starts[0], last,
               x.n_slash);
        for (int i = 1; i < n; i++)
            expect(starts[i] >= starts[i - 1] + NAIVE_TILE, "case %d: pieces at %d and %d", at,
                   starts[i - 1], starts[i]);
        for (int i = 0; i < x.n_vertical; i++)
            expect(x.vertical[i] >= last || in[x.vertical[i]] || x.vertical[i] < s,
                   "case %d: column %d of row block %d is alone", at, x.vertical[i], r);
        naive_list(&p, &x, r, N, listed);
        int missed = 0;
        for (int i = s; i < s + NAIVE_TILE && i < N; i++) {
            for (int k = 0; k < x.n_slash; k++)
                missed += x.slash[k] <= i && !listed[i - x.slash[k]];
            for (int k = 0; k < x.n_vertical; k++)
                missed += x.vertical[k] <= i && !listed[x.vertical[k]];
        }
        expect(!missed, "case %d: %d chosen pairs are not listed", at, missed);
        naive_index_free(&x);
        free(in);
    }
}

// ---------------------------------------------------------------------------
// The other shapes

// tiles of 128 + 3968 keys over all tiles of the causal triangle, as the released kernels visit
// them, less the tiles of the sinks that are wholly masked: 8K 75.6 %
static void shape_share(void) {
    static const struct { int N; double percent; } v[] = { { 8192, 75.6 }, { 32768, 23.8 } };
    NaivePattern p = { .shape = NAIVE_A_SHAPE, .sinks = 128, .local = 3968 };
    for (size_t i = 0; i < COUNTOF(v); i++) {
        int N = v[i].N, tiles = N / NAIVE_TILE;
        uint8_t *listed = (uint8_t *)xrealloc(NULL, (size_t)N);
        double sum = 0, all = (double)tiles * (tiles + 1) / 2 * NAIVE_TILE;
        for (int r = 0; r < tiles; r++) {
            naive_list(&p, NULL, r, N, listed);
            for (int j = 0; j < N; j++) sum += listed[j];
        }
        expect(fabs(100 * sum / all - v[i].percent) < 0.1, "a-shape at %d: %.2f %% of the tiles", N,
               100 * sum / all);
        free(listed);
    }
}

// each shape by its one-line definition
static void shape_rules(void) {
    for (int at = 0; at < 300; at++) {
        Rng rng = { (uint64_t)at + 5000 };
        int N = 1 + (int)rng_below(&rng, 400);
        NaivePattern p = { .shape = at & 1 ? NAIVE_A_SHAPE : NAIVE_TRI_SHAPE,
                           .sinks = (int)rng_below(&rng, 150),
                           .local = 1 + (int)rng_below(&rng, 200),
                           .dense = (int)rng_below(&rng, 130) };
        uint8_t *listed = (uint8_t *)xrealloc(NULL, (size_t)N);
        int wrong = 0;
        for (int i = 0; i < N; i++) {
            if (i % NAIVE_TILE == 0) naive_list(&p, NULL, i / NAIVE_TILE, N, listed);
            bool dense = N < 2 || (p.shape == NAIVE_TRI_SHAPE && (i >= N - p.dense) && i > 0);
            for (int j = 0; j < N; j++) {
                bool want = j <= i && (dense || i - j < p.local || j < p.sinks);
                wrong += want != (listed[j] && naive_sees(&p, i, j, N));
            }
        }
        expect(!wrong, "case %d, N %d: %d pairs are not by the definition", at, N, wrong);
        free(listed);
    }
}

// ---------------------------------------------------------------------------
// Choices

static void probe_sums(void) {
    for (int at = 0; at < 20; at++) {
        Rng rng = { (uint64_t)at + 900 };
        NaiveModel m = { .hd = 32, .rounded = true };
        int N = 1 + (int)rng_below(&rng, 300), probes = N < 64 ? N : 64;
        float *q = naive_floats((size_t)(N * 32)), *k = naive_floats((size_t)(N * 32));
        float *column = naive_floats((size_t)N), *distance = naive_floats((size_t)N);
        double columns = 0, distances = 0;
        for (int i = 0; i < N * 32; i++) {
            q[i] = round_bf16((float)rng_below(&rng, 2000) / 500 - 2);
            k[i] = round_bf16((float)rng_below(&rng, 2000) / 500 - 2);
        }
        naive_probe(&m, q, k, N, column, distance);
        for (int j = 0; j < N; j++) {
            columns += (double)column[j];
            distances += (double)distance[j];
        }
        expect(fabs(columns - probes) < 1e-3 && fabs(distances - probes) < 1e-3,
               "%d rows of probabilities sum to %g and %g", probes, columns, distances);
        NaivePattern p = { .shape = NAIVE_SLASHES, .verticals = 40, .slashes = 20 };
        NaiveIndex x = { 0 };
        naive_choose_slashes(&x, &p, column, distance, N);
        int band = x.n_slash < 100 ? x.n_slash : 100, columns0 = N < 30 ? N : 30;
        expect(x.slash[0] == 0 && x.slash[band - 1] == band - 1 &&
               x.vertical[columns0 - 1] == columns0 - 1 && x.n_slash == (N < 50 ? N : 50) &&
               x.n_vertical == (N < 40 ? N : 40), "forced columns or distances are missing");
        naive_index_free(&x);
        float *all[] = { q, k, column, distance };
        for (size_t i = 0; i < COUNTOF(all); i++) free(all[i]);
    }
}

// ---------------------------------------------------------------------------
// A prefill whose lists hold everything is the dense prefill

static void complete_lists(const NaiveModel *m, int N) {
    static const NaivePattern complete[] = {
        { .shape = NAIVE_DENSE },
        { .shape = NAIVE_A_SHAPE, .sinks = 4, .local = 5000 },
        { .shape = NAIVE_TRI_SHAPE, .sinks = 4, .local = 5000, .dense = 3 },
        { .shape = NAIVE_SLASHES, .verticals = 30, .slashes = 5000 },
        { .shape = NAIVE_BLOCKS, .blocks = 100 },
    };
    int32_t ids[1500];
    Rng rng = { (uint64_t)N };
    for (int i = 0; i < N; i++) ids[i] = (int32_t)rng_below(&rng, 256);
    NaiveMethod full = { .kind = NAIVE_FULL };
    NaiveBranch *dense = naive_branch(m, full);
    naive_append(dense, ids, N);
    for (size_t c = 0; c < COUNTOF(complete); c++) {
        NaiveBranch *b = naive_branch(m, full);
        NaivePattern pattern[16];
        for (int i = 0; i < m->L * m->H; i++) pattern[i] = complete[c];
        NaiveSparse x = { .pattern = pattern };
        naive_append_sparse(b, ids, N, &x);
        expect(!memcmp(b->x, dense->x, (size_t)m->E * sizeof *b->x), "complete lists, shape %d, "
               "%d tokens: not the dense prefill", (int)c, N);
        expect(x.pairs == (uint64_t)(m->L * m->H) * (uint64_t)N * (uint64_t)(N + 1) / 2,
               "complete lists, shape %d: %zu pairs", (int)c, (size_t)x.pairs);
        naive_drop(b);
    }
    naive_drop(dense);
}

int main(void) {
    pair_init();
    naive_ftz();
    slash_vectors();
    slash_properties(2000);
    shape_share();
    shape_rules();
    probe_sums();
    TinySpec spec = { .dim = 32, .hidden_dim = 40, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2,
                      .head_dim = 32, .dtype = DT_BF16, .tied = true, .seed = 3, .sharp = 3 };
    PairModel m;
    pair_open(&m, &spec, 64);
    static const int length[] = { 1, 2, 63, 64, 65, 200, 600 };
    for (size_t i = 0; i < COUNTOF(length); i++) complete_lists(m.slow, length[i]);
    pair_close(&m);
    printf("%ld checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
