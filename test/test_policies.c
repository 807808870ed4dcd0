// test_policies.c - every policy. First the rules alone (oracle_policies.h) on scores given by
// hand, with the vectors of the papers' released code; nothing there depends on a model. Then the
// runtime against its slow twin, policy by policy: random small models, first feeds below, at and
// above the budget, turns, marks, forks, a cut; dead rows are NaN all the while.
//   test_policies [POLICY [SEED]]
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

// "0 2-4": the rows that stay
static const char *text_of(const uint8_t *keep, int n) {
    static char text[400];
    size_t at = 0;
    text[0] = 0;
    for (int i = 0, j; i < n; i = j + 1) {
        j = i;
        if (!keep[i]) continue;
        while (j + 1 < n && keep[j + 1]) j++;
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%d", at ? " " : "", i);
        if (j > i)
            at += (size_t)snprintf(text + at, sizeof text - at, "%s%d", j > i + 1 ? "-" : " ", j);
    }
    return text;
}

static void expect_rows(const char *what, const uint8_t *keep, int n, const char *want) {
    expect(!strcmp(text_of(keep, n), want), "%s: keeps %s, by hand %s", what, text_of(keep, n),
           want);
}

// the schedule of the released code: rows beside the window of layers 0, 1 and the last, and of all
// layers together
static void pyramid_vectors(void) {
    static const struct { int layers, cap, window, n, first, second, last, all; } v[] = {
        { 32, 4096, 32, 131072, 7925, 7676, 206, 130096 },
        { 32, 2048, 32, 131072, 3932, 3809, 119, 64816 },
        { 32, 2048, 32, 4031, 2016, 2016, 2016, 64512 },
        { 32, 128, 8, 3500, 234, 227, 17, 4016 },
        { 80, 4096, 32, 131072, 7925, 7828, 262, 327480 },
        { 1, 2048, 32, 131072, 2016, 2016, 2016, 2016 },
    };
    for (size_t i = 0; i < COUNTOF(v); i++) {
        NaiveMethod p = { .kind = NAIVE_PYRAMIDKV, .budget = v[i].cap, .window = v[i].window,
                          .beta = 20 };
        int L = v[i].layers, all = 0;
        int first = naive_pyramid(&p, 0, L, v[i].n), last = naive_pyramid(&p, L - 1, L, v[i].n);
        int second = L > 1 ? naive_pyramid(&p, 1, L, v[i].n) : first;
        for (int l = 0; l < L; l++) all += naive_pyramid(&p, l, L, v[i].n);
        expect(first == v[i].first && second == v[i].second && last == v[i].last && all == v[i].all,
               "pyramidkv of %d layers, cap %d, %d tokens: %d, %d .. %d, %d in all", L, v[i].cap,
               v[i].n, first, second, last, all);
    }
}

static void keep_of(const NaiveMethod *p, int t, const NaiveRow *row, int n, const float *score,
                    const char *what, const char *want) {
    uint8_t keep[64];
    NaiveMoment at = { .layers = 2, .t = t };
    naive_keep(p, &at, row, n, score, keep);
    expect_rows(what, keep, n, want);
}

static void window_by_hand(void) {
    // two heads, two window rows, eight rows of which the last two are the window
    static const float prob[2][2][8] = {
        { { 0, 0, 8, 0, 0, 0, 0, 0 }, { 0, 0, 2, 0, 0, 1, 0, 0 } },
        { { 1, 0, 0, 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0, 4, 9, 9 } },
    };
    static const float mean[] = { 5.5f, 5.5f, 5, 7.5f, 7.5f, 2.5f };    // pooled, times 5
    NaiveMethod p = { .kind = NAIVE_SNAPKV, .budget = 5, .window = 2, .kernel = 5 };
    float score[8];
    naive_window_scores(&p, &prob[0][0][0], 2, 2, 8, score);
    for (int j = 0; j < 6; j++) {
        // columns 0 and 1 pool 0..2 and 0..3; column 2 pools 0..4: each has 0.5 and 5
        float want = j < 3 ? 5.5f : mean[j];
        expect(score[j] == want / 5, "snapkv, column %d: %g, by hand %g", j, (double)score[j],
               (double)(want / 5));
    }
    keep_of(&p, 8, NULL, 8, score, "snapkv 3 + 2", "0 3 4 6 7");        // 0 of the equal 0, 1, 2
    p.pool_max = true;
    p.kernel = 3;
    naive_window_scores(&p, &prob[0][0][0], 2, 2, 8, score);
    keep_of(&p, 8, NULL, 8, score, "snapkv, max of 3", "1-3 6 7");
    p.group = NAIVE_MAX;                                                // 1 0 10 0 0 4
    p.kernel = 1;
    naive_window_scores(&p, &prob[0][0][0], 2, 2, 8, score);
    keep_of(&p, 8, NULL, 8, score, "snapkv, max of heads", "0 2 5-7");
    keep_of(&p, 5, NULL, 5, score, "snapkv, as many rows as the budget", "0-4");
    p.kind = NAIVE_PYRAMIDKV;                                           // c 3: max 6, min 0
    p.beta = 20;
    keep_of(&p, 8, NULL, 8, score, "pyramidkv, layer 0 of 2", "0-7");
}

static void counts_by_hand(void) {
    NaiveMethod p = { .kind = NAIVE_H2O, .budget = 4, .recent = 2, .group = NAIVE_MEAN };
    NaiveRow row[48];
    // means of two heads
    static const float s[2][3] = { { 0, -1, -2 }, { 0, -1, -1 } }, lse2[2] = { 0, 0 };
    memset(row, 0, sizeof row);
    naive_observe(&p, row, 3, &s[0][0], lse2, 2, 3);
    expect(row[0].sum == 1 && row[1].sum == 0.5f && row[2].sum == 0.375f, "h2o: sums %g %g %g",
           (double)row[0].sum, (double)row[1].sum, (double)row[2].sum);
    for (int j = 0; j < 8; j++) row[j].sum = (float)((j * 5 + 3) % 8);  // 3 0 5 2 7 4 | 1 6
    keep_of(&p, 8, row, 8, NULL, "h2o 2 + 2", "2 4 6 7");
    keep_of(&p, 4, row, 4, NULL, "h2o within its budget", "0-3");

    p = (NaiveMethod){ .kind = NAIVE_ROCO, .budget = 32, .recent = 9, .protect = 10 };
    memset(row, 0, sizeof row);
    naive_observe(&p, row, 3, &s[0][0], lse2, 2, 3);
    expect(row[2].sum == 0.375f && row[2].squares == 0.140625f && row[2].seen == 1,
           "roco: %g %g %d", (double)row[2].sum, (double)row[2].squares, row[2].seen);
    for (int j = 0; j < 41; j++) row[j] = (NaiveRow){ .seen = 2, .sum = 2, .squares = 2 };
    row[1] = (NaiveRow){ .seen = 2, .sum = 0.5f, .squares = 20 };       // little, but unsteady
    row[2].sum = row[3].sum = 1.5f;
    row[32].sum = 0.1f;                                                 // among the newest ten
    // 23 are feasible: row 25 goes while the steady ones fill them, then 2, 3 and at last 1
    keep_of(&p, 36, row, 36, NULL, "roco, four rows", "0 4-24 26-35");
    p.budget = 40;
    p.recent = 12;                                                      // 28 of 31
    keep_of(&p, 41, row, 41, NULL, "roco, one row", "0-29 31-40");

    p = (NaiveMethod){ .kind = NAIVE_SCISSORHANDS, .budget = 4, .recent = 1, .window = 4 };
    memset(row, 0, sizeof row);
    for (int t = 1; t <= 7; t++) {      // row 0 matters until step 3, row 2 from step 4 on
        float at[8], zero = 0;
        for (int j = 0; j < t; j++) at[j] = (j == 0 && t <= 3) || (j == 2 && t >= 4) ? 0 : -9;
        naive_observe(&p, row, t, at, &zero, 1, t);
        if (t == 6) keep_of(&p, 6, row, 6, NULL, "scissorhands, steps 3-6", "0 2 4 5");
    }
    keep_of(&p, 7, row, 7, NULL, "scissorhands, steps 4-7", "2 4-6");
}

static void reads_by_hand(void) {
    float k[20], q[2] = { 2, -1 }, s[2][5] = { { 1, 2, 3, 4, 5 }, { 5, 4, 3, 2, 2 } };
    uint8_t keep[16];
    for (int j = 0; j < 10; j++) {      // channel 0 rises, channel 1 is 3 in row 2 only
        k[2 * j] = (float)j;
        k[2 * j + 1] = j == 2 ? 3 : 4;
    }
    NaiveMethod p = { .kind = NAIVE_QUEST, .budget = 4, .page = 2 };
    naive_quest(&p, k, 10, q, 1, 2, keep);      // 2 max_0 - min_1: -2, 3, 6, 10, 14
    expect_rows("quest, three pages at least", keep, 10, "4-9");
    k[1] = -40;
    naive_quest(&p, k, 9, q, 1, 2, keep);       // 42, 3, 6, 10, 12: the last page has one row
    expect_rows("quest, a page not full yet", keep, 9, "0 1 6-8");
    k[16] = -9;                                 // its key is now the least wanted of all
    naive_quest(&p, k, 9, q, 1, 2, keep);
    expect_rows("quest, the token's own page", keep, 9, "0 1 6-8");
    p = (NaiveMethod){ .kind = NAIVE_TOPK, .budget = 2 };
    naive_topk(&p, &s[0][0], 5, 2, keep);       // 6 6 6 6 7
    expect_rows("topk", keep, 5, "0 4");
    p.group = NAIVE_MAX;                        // 5 4 3 4 5
    p.budget = 3;
    naive_topk(&p, &s[0][0], 5, 2, keep);
    expect_rows("topk, max", keep, 5, "0 1 4");
}

// ---------------------------------------------------------------------------
// The runtime

typedef struct { int group, kv_heads, layers, hd, dim, hidden; DType dtype; bool bias; } Shape;
static const Shape shapes[] = {
    { 1, 2, 2, 32, 40, 48, DT_BF16, false },
    { 3, 1, 2, 32, 36, 64, DT_BF16, true },
    { 2, 2, 3, 64, 48, 40, DT_Q8, false },
    { 4, 2, 1, 32, 64, 72, DT_BF16, false },
    { 2, 1, 2, 80, 33, 65, DT_F32, true },
};

typedef struct {
    PairModel m;
    Rng rng;
    int shape, seed;
} World;

static int below(World *w, int n) { return (int)rng_below(&w->rng, (uint64_t)n); }

static void random_ids(World *w, int32_t *ids, int n) {
    for (int i = 0; i < n; i++) ids[i] = below(w, TINY_VOCAB);
}

static void turns(World *w, Pair *p) {
    int32_t ids[60];
    random_ids(w, ids, 60);
    for (int i = below(w, 4); i > 0; i--) pair_step(p, naive_argmax(p->slow));
    pair_feed(p, ids, 1 + below(w, 40));
    PairMark k = pair_mark(p);                  // an answer that is forgotten
    for (int i = below(w, 6); i > 0; i--) pair_step(p, below(w, TINY_VOCAB));
    PairMark inner = pair_mark(p);
    pair_feed(p, ids + 20, 1 + below(w, 10));
    pair_rewind(p, inner);
    pair_step(p, below(w, TINY_VOCAB));
    pair_rewind(p, k);
    pair_feed(p, ids + 40, 1 + below(w, 8));    // shorter than most windows
    Pair a = pair_fork(p, 4);
    Pair *both[] = { p, &a };
    pair_step(p, below(w, TINY_VOCAB));
    pair_batch(both, ids + 50, 2);
    pair_feed(&a, ids + 10, 1 + below(w, 30));
    pair_step(&a, below(w, TINY_VOCAB));
    pair_drop(&a);
    for (int i = below(w, 4); i > 0; i--) pair_step(p, below(w, TINY_VOCAB));
    pair_feed(p, ids, 1 + below(w, 20));
    pair_step(p, below(w, TINY_VOCAB));
}

static void run_policy(World *w, NaiveKind kind) {
    static const int lengths[] = { 1, 5, 33, 64, 90, 140, 300, 540 };
    int32_t ids[540];
    int n = lengths[below(w, 8)] - below(w, 2), shared;
    if (n < 1) n = 1;
    random_ids(w, ids, n);
    shared = below(w, 3) == 0 ? 0 : below(w, 3) == 0 ? n : below(w, n + 1);
    NaiveMethod full = { .kind = NAIVE_FULL }, method = pair_random_method(&w->rng, kind, n);
    NaiveBranch *base = naive_branch(w->m.slow, full);
    naive_append(base, ids, n);
    char what[200];
    int at = snprintf(what, sizeof what, "seed %d, %d of %d shared: ", w->seed, shared, n);
    pair_describe(&method, what + at, sizeof what - (size_t)at);
    Err err = { 0 };
    Context *ctx = NULL;
    if (shared) {
        Method fast = pair_method(&method, n);
        Needs needs = { 0 };
        method_needs(&fast, &needs);
        ctx = context_open(w->m.fast, ids, shared, &needs, &err);
        pair_must(!ctx, &err, "context_open");
    }
    pair_poison = below(w, 4) > 0;
    Pair p = pair_first(&w->m, base, &method, ctx, ids, below(w, 20), what);
    if (ctx) context_drop(ctx);
    if (n > 6 && below(w, 3) == 0) pair_cut(&p, 1 + below(w, 5));       // aware of what it forgets
    turns(w, &p);
    pair_drop(&p);
    naive_drop(base);
}

// a budget that nothing exceeds: the bits of a cache that keeps everything
static void run_roomy(World *w, NaiveKind kind) {
    int32_t ids[200];
    int n = 1 + below(w, 200);
    random_ids(w, ids, n);
    NaiveMethod full = { .kind = NAIVE_FULL }, method = pair_random_method(&w->rng, kind, n);
    NaiveBranch *base = naive_branch(w->m.slow, full);
    if (method.group == NAIVE_QUERY_HEAD) method.group = NAIVE_MAX;     // as many lists as full has
    method.budget = 1000;
    if (kind == NAIVE_STREAM) method.recent = 1000 - method.sinks;
    if (kind == NAIVE_CORM) method.window = 1000;
    method.signs = false;               // that code drops a page where the last one is not full
    naive_append(base, ids, n);
    char what[200];
    int at = snprintf(what, sizeof what, "seed %d, %d tokens against full: ", w->seed, n);
    pair_describe(&method, what + at, sizeof what - (size_t)at);
    pair_poison = true;
    NaiveMethod as_full = method;
    as_full.kind = NAIVE_FULL;
    Pair p = pair_first_as(&w->m, base, &method, &as_full, NULL, ids, 0, what);
    turns(w, &p);
    pair_drop(&p);
    naive_drop(base);
}

// SinkCache of 8 rows and 2 sinks: where keys and query stand after some steps, by its own code
static void sinks_by_hand(void) {
    static const struct { int fed, steps, query, key[8]; } v[] = {
        { 3, 5, 7, { 0, 1, 1, 2, 3, 4, 5, 7 } }, { 3, 10, 8, { 0, 1, 2, 4, 5, 6, 7, 8 } },
        { 20, 1, 20, { 0, 1, 14, 15, 16, 17, 18, 20 } },
        { 20, 2, 8, { 0, 1, 14, 15, 16, 17, 19, 8 } },
    };
    static PairModel m;
    TinySpec spec = { .dim = 32, .hidden_dim = 32, .n_layers = 1, .n_heads = 1, .n_kv_heads = 1,
                      .head_dim = 32, .dtype = DT_BF16, .tied = true, .seed = 5, .sharp = 3 };
    NaiveMethod full = { .kind = NAIVE_FULL },
                sink = { .kind = NAIVE_STREAM, .budget = 8, .sinks = 2, .recent = 6, .sink = true };
    int32_t ids[20] = { 1, 2, 3, 4, 5 };
    pair_open(&m, &spec, 64);
    for (size_t i = 0; i < COUNTOF(v); i++) {
        NaiveBranch *base = naive_branch(m.slow, full);
        naive_append(base, ids, v[i].fed);
        Pair p = pair_first(&m, base, &sink, NULL, ids, 0, "sinkcache by hand");
        for (int k = 0; k < v[i].steps; k++) pair_step(&p, k);
        const NaiveHead *a = &p.slow->head[0];
        expect(a->n == 8, "sinkcache, %d + %d tokens: %d rows", v[i].fed, v[i].steps, a->n);
        for (int j = 0; j < a->n && j < 8; j++)
            expect(a->row[j].pos + a->row[j].turn == v[i].key[j],
                   "sinkcache, %d + %d tokens: key %d stands at %d, by hand %d", v[i].fed,
                   v[i].steps, j, a->row[j].pos + a->row[j].turn, v[i].key[j]);
        pair_drop(&p);
        naive_drop(base);
    }
    pair_close(&m);
}

// two queries with opposite signs in channel 0: 2 k_1 alone decides, under the first query with 1,
// under the second with 3; ten keys in pages of two
static void signs_by_hand(void) {
    static const float q[4] = { 5, 1, -4, 3 };
    float k[20];
    uint8_t keep[10];
    NaiveMethod p = { .kind = NAIVE_QUEST, .budget = 6, .page = 2, .signs = true };
    for (int j = 0; j < 10; j++) {
        k[2 * j] = j == 0 ? 99 : 0;
        k[2 * j + 1] = (float)((j * 7) % 10);           // 0 7 4 1 8 5 2 9 6 3: 7 4 8 9 6 per page
    }
    naive_signs(&p, k, 10, q, 2, 2, 0, 9, 2, keep);
    expect_rows("quest by signs, 3 of 5 pages", keep, 10, "0 1 4-7");
    naive_signs(&p, k, 10, q, 2, 2, 1, 7, 2, keep);
    expect_rows("quest by signs, what a token may see", keep, 10, "0 1 4-6");
    naive_signs(&p, k, 9, q, 2, 1, 0, 9, 2, keep);      // q 5 1: the key of 99, then channel 1
    expect_rows("quest by signs, one query", keep, 9, "0 1 4-7");
    p.budget = 100;
    naive_signs(&p, k, 9, q, 2, 1, 0, 9, 2, keep);      // 9 / 2: four of five pages
    expect_rows("quest by signs, a list within the budget", keep, 9, "0 1 4-8");
}

int main(int argc, char **argv) {
    static World world;
    World *w = &world;
    const char *only = argc > 1 ? argv[1] : NULL;
    int from = argc > 2 ? atoi(argv[2]) : 0, count = getenv("SOAK") ? 2000 : SANITIZED ? 2 : 40;
    pair_init();
    naive_ftz();
    pyramid_vectors();
    window_by_hand();
    counts_by_hand();
    reads_by_hand();
    signs_by_hand();
    sinks_by_hand();
    printf("%ld checks by hand, %d failed\n", checks, failures);
    for (int kind = NAIVE_KEEP_LAST; kind < NAIVE_KINDS; kind++) {
        long before = pair_checks;
        int failed = pair_failures;
        if (only && strcmp(only, naive_names[kind])) continue;
        if (!pair_has((NaiveKind)kind)) continue;
        for (w->seed = from; w->seed < (argc > 2 ? from + 1 : count); w->seed++) {
            const Shape *s = &shapes[w->seed % (int)COUNTOF(shapes)];
            w->rng.s = mix64((uint64_t)w->seed * 100 + (uint64_t)kind);
            TinySpec spec = { .dim = s->dim, .hidden_dim = s->hidden, .n_layers = s->layers,
                              .n_heads = s->group * s->kv_heads, .n_kv_heads = s->kv_heads,
                              .head_dim = s->hd, .dtype = s->dtype, .tied = true,
                              .qkv_bias = s->bias, .seed = (uint64_t)w->seed,
                              .sharp = 2 + (float)below(w, 5) };
            pair_open(&w->m, &spec, 1 << below(w, 9));
            run_policy(w, (NaiveKind)kind);
            if (w->seed % 4 == 0) run_roomy(w, (NaiveKind)kind);
            pair_close(&w->m);
        }
        printf("%-13s %6ld comparisons, %d differ\n", naive_names[kind], pair_checks - before,
               pair_failures - failed);
    }
    return failures || pair_failures ? 1 : 0;
}
