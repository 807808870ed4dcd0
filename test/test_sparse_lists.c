// test_sparse_lists.c - which keys a query may look at in a sparse prefill, and what follows from
// it. First the definitions of oracle_sparse.h: the vectors and the properties that the index
// conversion of the released MInference was shown to have, and a sparse prefill with complete lists
// against the dense one. Then the runtime: its lists, and whole prefills of every pattern under
// every cache policy, logits to the bit; what a list leaves out has no influence at all, what it
// finds is there.
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

// ---------------------------------------------------------------------------
// The runtime's lists

// spans of attn_list as marks; they must ascend, be apart and end where the block ends
static void mark_spans(const KeySpan *span, int n, int end, uint8_t *in, const char *what) {
    memset(in, 0, (size_t)end);
    for (int i = 0, at = -1; i < n; i++) {
        bool good = span[i].n > 0 && span[i].at > at && span[i].at + span[i].n <= end;
        expect(good, "%s: span %d is [%d, %d) after %d, of %d", what, i, span[i].at,
               span[i].at + span[i].n, at, end);
        if (!good) return;
        memset(in + span[i].at, 1, (size_t)span[i].n);
        at = span[i].at + span[i].n;
    }
}

static void compare_list(const HeadLists *h, const NaivePattern *p, const NaiveIndex *x, int r,
                         const char *what) {
    int N = h->len, end = (r + 1) * NAIVE_TILE < N ? (r + 1) * NAIVE_TILE : N;
    size_t room = (size_t)(h->n_vertical + N / NAIVE_TILE + 3);
    KeySpan *span = (KeySpan *)xrealloc(NULL, room * sizeof *span);
    uint8_t *want = (uint8_t *)xrealloc(NULL, (size_t)N);
    uint8_t *got = (uint8_t *)xrealloc(NULL, (size_t)N);
    int n = attn_list(h, r, NULL, span, NULL), at = 0;
    naive_list(p, x, r, N, want);
    mark_spans(span, n, end, got, what);
    while (at < end && want[at] == got[at]) at++;
    expect(at == end, "%s, %d keys, row block %d: key %d is %slisted", what, N, r, at,
           at < end && got[at] ? "" : "not ");
    free(span);
    free(want);
    free(got);
}

static void runtime_lists(int cases) {
    for (int at = 0; at < cases; at++) {
        Rng rng = { (uint64_t)at + 70000 };
        int N = 2 + (int)rng_below(&rng, at % 10 ? 500 : 3000);
        int r = (int)rng_below(&rng, (uint64_t)CEIL_DIV(N, NAIVE_TILE));
        HeadLists h = { .len = N, .n = N };
        NaivePattern p = { .shape = NAIVE_SLASHES };
        NaiveIndex x = { 0 };
        uint64_t *bits = (uint64_t *)xrealloc(NULL, (size_t)(N / 64 + 1) * sizeof *bits);
        char what[60];
        snprintf(what, sizeof what, "case %d", at);
        memset(bits, 0, (size_t)(N / 64 + 1) * sizeof *bits);
        if (at % 4 < 2) {
            x.n_vertical = 1 + (int)rng_below(&rng, (uint64_t)(N < 60 ? N : 60));
            x.n_slash = 1 + (int)rng_below(&rng, (uint64_t)(N < 20 || at % 3 == 0 ? N / 2 : 20));
            x.vertical = random_set(&rng, N, x.n_vertical, at & 4);
            x.slash = random_set(&rng, N, x.n_slash, at & 8);
            x.slash[0] = 0;
            h.kind = HEAD_VERTICAL_SLASH;
            h.n_vertical = x.n_vertical;
            for (int i = 0; i < x.n_slash; i++) bits[x.slash[i] / 64] |= 1ull << x.slash[i] % 64;
        } else {
            p.shape = NAIVE_TRI_SHAPE;
            p.sinks = h.sinks = (int)rng_below(&rng, 200);
            p.local = h.local = 1 + (int)rng_below(&rng, 300);
            p.dense = at & 1 ? 0 : (int)rng_below(&rng, 150);
            h.dense_rows = p.dense < N - 1 ? p.dense : N - 1;
            h.kind = HEAD_A_SHAPE;
        }
        h.vertical = x.vertical;
        h.slash = bits;
        compare_list(&h, &p, &x, r, what);
        naive_index_free(&x);
        free(bits);
    }
}

static void runtime_vectors(void) {
    int32_t vertical[100];
    uint64_t bits[13000 / 64 + 1] = { 0 };
    static const int some[] = { 0, 1, 2, 3, 130, 250, 300 }, far[] = { 0, 1, 2, 100, 101, 200 };
    static const KeySpan want[] = { { 0, 4 }, { 120, 64 }, { 219, 165 } };
    KeySpan span[300];
    for (int i = 0; i < 7; i++) vertical[i] = some[i];
    for (int i = 0; i < 6; i++) bits[far[i] / 64] |= 1ull << far[i] % 64;
    HeadLists h = { .kind = HEAD_VERTICAL_SLASH, .len = 512, .n = 512, .n_vertical = 7,
                    .vertical = vertical, .slash = bits };
    int n = attn_list(&h, 5, NULL, span, NULL);   // 120, then 219 283 347 cut at the end, 384
    expect(n == 3, "%d spans in row block 5, by hand 3", n);
    for (int i = 0; i < 3 && i < n; i++)
        expect(span[i].at == want[i].at && span[i].n == want[i].n, "span %d is %d + %d", i,
               span[i].at, span[i].n);
}

// ---------------------------------------------------------------------------
// Whole prefills

static NaivePattern random_pattern(Rng *r, int N) {
    NaivePattern p = { .shape = (NaiveShape)(NAIVE_SLASHES + rng_below(r, 3)) };
    if (p.shape > NAIVE_BLOCKS) p.shape = NAIVE_A_SHAPE;
    p.sinks = (int)rng_below(r, rng_below(r, 4) ? 40 : 150);
    p.local = 1 + (int)rng_below(r, rng_below(r, 4) ? 130 : (uint64_t)N + 40);
    p.verticals = 1 + (int)rng_below(r, 80);
    p.slashes = 1 + (int)rng_below(r, rng_below(r, 3) ? 150 : (uint64_t)N + 10);
    p.blocks = 1 + (int)rng_below(r, 6);
    return p;
}

static HeadPattern head_of(const NaivePattern *p) {
    if (p->shape == NAIVE_A_SHAPE) return (HeadPattern){ HEAD_A_SHAPE, p->sinks, p->local, 0 };
    if (p->shape == NAIVE_BLOCKS) return (HeadPattern){ HEAD_BLOCK_SPARSE, p->blocks, 0, 0 };
    return (HeadPattern){ HEAD_VERTICAL_SLASH, p->verticals, p->slashes, 0 };
}

typedef struct {
    PairModel m;
    Rng rng;
    NaivePattern pattern[16];   // (L, H)
    HeadPattern head[16];
    PatternFile file;
    int whole, estimated;       // vertical-slash heads whose lists hang on sizes alone, others
} World;

// every head its own pattern (minference with a table), or one for all
static Method random_prefill(World *w, const NaiveMethod *cache, int N) {
    static const char *const stages[] = { "a-shape", "tri-shape", "minference" };
    const NaiveModel *m = w->m.slow;
    int stage = (int)rng_below(&w->rng, 5);
    NaivePattern p = random_pattern(&w->rng, N);
    PrefillSizes z;
    memset(&z, -1, sizeof z);
    p.dense = stage == 1 ? (int)rng_below(&w->rng, 150) : 0;
    if (stage < 2) p.shape = stage ? NAIVE_TRI_SHAPE : NAIVE_A_SHAPE;
    w->file = (PatternFile){ m->L, m->H, "test", w->head };
    for (int i = 0; i < m->L * m->H; i++) {
        w->pattern[i] = stage > 2 ? random_pattern(&w->rng, N) : p;
        w->head[i] = head_of(&w->pattern[i]);
    }
    z.sinks = p.sinks;
    z.local = p.local;
    z.dense_rows = p.dense;
    z.verticals = p.verticals;
    z.slashes = p.slashes;
    z.blocks = p.blocks;
    z.head = w->head[0].kind;
    return pair_method_after(cache, N, stages[stage < 2 ? stage : 2], &z,
                             stage > 2 ? &w->file : NULL);
}

static void run_prefill(World *w, int seed) {
    static const int lengths[] = { 1, 2, 63, 64, 65, 100, 128, 190, 256, 320, 470, 650 };
    int32_t ids[700];
    int N = lengths[rng_below(&w->rng, COUNTOF(lengths))];
    const NaiveModel *m = w->m.slow;
    NaiveMethod full = { .kind = NAIVE_FULL }, cache = full;
    if (rng_below(&w->rng, 2))
        cache = pair_random_method(&w->rng, (NaiveKind)rng_below(&w->rng, NAIVE_KINDS), N);
    // sinks is a name of both stages
    if (!pair_has(cache.kind) || cache.kind == NAIVE_STREAM) cache = full;
    for (int i = 0; i < N + 30; i++) ids[i] = (int32_t)rng_below(&w->rng, 256);
    Method fast = random_prefill(w, &cache, N);
    char what[200];
    for (int i = 0; i < m->L * m->H; i++)
        if (w->pattern[i].shape == NAIVE_SLASHES)
            ++*(sparse_estimates(&w->head[i], 1, N, N) ? &w->estimated : &w->whole);
    snprintf(what, sizeof what, "seed %d, %d tokens, %s, first head %d (%d %d)", seed, N, fast.name,
             (int)w->head[0].kind, w->head[0].a, w->head[0].b);

    NaiveSparse sparse = { .pattern = w->pattern };
    NaiveBranch *base = naive_branch(m, full);
    naive_append_sparse(base, ids, N, &sparse);
    Err err = { 0 };
    Context *ctx = NULL;
    Needs needs = { 0 };
    method_needs(&fast, &needs);
    if (rng_below(&w->rng, 2)) {
        ctx = context_open_sparse(w->m.fast, &fast, ids, N, &needs, &err);
        pair_must(!ctx, &err, "context_open_sparse");
    }
    pair_poison = true;
    Pair p = { .config = model_config(w->m.fast), .what = what, .shared = ctx ? N : 0 };
    p.fast = branch_open(w->m.fast, ctx, &fast, 8, &err);
    pair_must(!p.fast, &err, "branch_open");
    pair_must(branch_feed(p.fast, ids, ctx ? 0 : N, FEED_FIRST, &err), &err, "branch_feed");
    p.slow = naive_adopt(base, cache);
    naive_end(p.slow, false);
    uint64_t all = 0;                   // rows of a block x keys up to its end
    for (int i = 0; i < N; i++)
        all += (uint64_t)((i / NAIVE_TILE + 1) * NAIVE_TILE < N ? (i / NAIVE_TILE + 1) * NAIVE_TILE
                                                                : N);
    double share = (double)sparse.listed / (double)(all * (uint64_t)(m->L * m->H));
    BranchStats s = branch_stats(p.fast);
    if (fabs(s.pairs_ratio - share) > 1e-9)
        pair_fail("%s: pairs_ratio %.9f, the index's count %.9f", what, s.pairs_ratio, share);
    pair_check_logits(&p, "sparse feed");
    pair_check_rows(&p, "sparse feed");
    PairMark k = pair_mark(&p);         // dense from here on, over what is left
    pair_step(&p, naive_argmax(p.slow));
    pair_feed(&p, ids + N, 20);
    pair_rewind(&p, k);
    pair_feed(&p, ids + N + 3, 27);
    pair_step(&p, ids[0]);
    pair_drop(&p);
    if (ctx) context_drop(ctx);
    naive_drop(base);
}

static void prefills(int cases, int only) {
    static const TinySpec specs[] = {
        { .dim = 40, .hidden_dim = 48, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32,
          .dtype = DT_BF16, .tied = true, .sharp = 4 },
        { .dim = 36, .hidden_dim = 40, .n_layers = 2, .n_heads = 3, .n_kv_heads = 1, .head_dim = 80,
          .dtype = DT_Q8, .tied = true, .qkv_bias = true, .sharp = 3 },
        { .dim = 32, .hidden_dim = 36, .n_layers = 3, .n_heads = 2, .n_kv_heads = 2, .head_dim = 64,
          .dtype = DT_BF16, .sharp = 6 },
        { .dim = 32, .hidden_dim = 36, .n_layers = 1, .n_heads = 4, .n_kv_heads = 1, .head_dim = 32,
          .dtype = DT_F32, .tied = true, .sharp = 3 },
    };
    static const int chunk[] = { 64, 128, 512 };
    static World world;
    World *w = &world;
    for (int seed = only < 0 ? 0 : only; seed < (only < 0 ? cases : only + 1); seed++) {
        TinySpec spec = specs[seed % (int)COUNTOF(specs)];
        spec.seed = (uint64_t)seed;
        w->rng.s = mix64((uint64_t)seed + 31);
        pair_open(&w->m, &spec, chunk[seed % 3]);
        run_prefill(w, seed);
        pair_close(&w->m);
    }
    printf("%d vertical-slash heads estimated, %d whole by their sizes\n", w->estimated, w->whole);
    expect(cases < 100 || only >= 0 || (w->whole > 20 && w->estimated > 20),
           "%d heads estimated, %d not", w->estimated, w->whole);
}

// ---------------------------------------------------------------------------
// What a list leaves out, and what it finds

// logits of the last token of a first feed
static void last_logits(Model *m, const char *name, const PrefillSizes *z, const int32_t *ids,
                        int N, float *out) {
    Err err = { 0 };
    NaiveMethod full = { .kind = NAIVE_FULL };
    Method method = name ? pair_method_after(&full, N, name, z, NULL) : pair_method(&full, N);
    Branch *b = branch_open(m, NULL, &method, 0, &err);
    pair_must(!b, &err, "branch_open");
    pair_must(branch_feed(b, ids, N, FEED_FIRST, &err), &err, "branch_feed");
    memcpy(out, branch_logits(b), (size_t)model_config(m)->vocab_size * sizeof *out);
    branch_drop(b);
}

// one layer: the last token hangs on the keys it sees and on no others
static void outside_the_window(void) {
    enum { N = 333, SINKS = 7, LOCAL = 70 };
    TinySpec spec = { .dim = 32, .hidden_dim = 40, .n_layers = 1, .n_heads = 4, .n_kv_heads = 2,
                      .head_dim = 32, .dtype = DT_BF16, .tied = true, .seed = 8 };
    PairModel m;
    PrefillSizes z;
    float one[TINY_VOCAB], other[TINY_VOCAB];
    int32_t ids[N];
    int weight = 0;
    Rng rng = { 4 };
    pair_open(&m, &spec, 64);
    memset(&z, -1, sizeof z);
    z.sinks = SINKS;
    z.local = LOCAL;
    z.dense_rows = 1;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)rng_below(&rng, 200);
    last_logits(m.fast, "a-shape", &z, ids, N, one);
    for (int j = 0; j < N - 1; j++) {
        bool seen = j < SINKS || j > N - 1 - LOCAL;
        if (j > 20 && j < N - LOCAL - 20 && j % 7) continue;
        ids[j] ^= 1;
        last_logits(m.fast, "a-shape", &z, ids, N, other);
        bool moved = memcmp(one, other, sizeof one) != 0;
        expect(seen || !moved, "a-shape: key %d is outside the window and has influence", j);
        weight += seen && moved;        // of those inside a few may be lost in the rounding
        ids[j] ^= 1;
    }
    expect(weight > (SINKS + LOCAL) * 9 / 10, "a-shape: only %d keys in the window count", weight);
    ids[100] ^= 1;      // the one dense row of tri-shape sees it
    last_logits(m.fast, "tri-shape", &z, ids, N, other);
    ids[100] ^= 1;
    last_logits(m.fast, "tri-shape", &z, ids, N, one);
    expect(memcmp(one, other, sizeof one) != 0, "tri-shape: the dense row does not see key 100");
    pair_close(&m);
}

// '.' nothing, 'N' a needle whose value is its own letter, 'n' looks for needles alone
static float needle_weight(const char *name, int row, int col) {
    static const char letters[] = ".Nn";
    const char *part = strrchr(name, '.'), *at = row && row < 256 ? strchr(letters, row) : NULL;
    if (strstr(name, "norm")) return 1;
    if (!strcmp(name, "embed")) return at && at - letters == col ? 1 : 0;
    if (!strcmp(part, ".wk")) return row == 8 && col == 1 ? 3 : 0;
    if (!strcmp(part, ".wq")) return row == 8 && col == 2 ? 3 : 0;
    if (!strcmp(part, ".wv")) return row == 3 && col == 1 ? 1 : 0;
    if (!strcmp(part, ".wo")) return row == 1 && col == 3 ? 1 : 0;
    return 0;
}

static void needle(void) {
    enum { N = 900, AT = 321 };
    TinySpec spec = { .dim = 32, .hidden_dim = 32, .n_layers = 1, .n_heads = 1, .n_kv_heads = 1,
                      .head_dim = 32, .dtype = DT_BF16, .tied = true, .rope_theta = 1e30,
                      .weight = needle_weight };
    PairModel m;
    PrefillSizes z;
    float dense[TINY_VOCAB], got[TINY_VOCAB];
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = i == AT ? 'N' : i < N - 20 ? '.' : 'n';
    pair_open(&m, &spec, 128);
    memset(&z, -1, sizeof z);
    z.sinks = z.local = 64;
    z.head = HEAD_VERTICAL_SLASH;
    z.slashes = 100;
    z.verticals = 31;
    last_logits(m.fast, NULL, NULL, ids, N, dense);
    expect(dense['N'] > 1, "the dense prefill does not find the needle: %g", (double)dense['N']);
    last_logits(m.fast, "minference", &z, ids, N, got);
    expect(!memcmp(dense, got, sizeof got), "one column to choose: the needle is worth %g, "
           "dense %g", (double)got['N'], (double)dense['N']);
    z.verticals = 30;                                   // the first 30, no choice
    last_logits(m.fast, "minference", &z, ids, N, got);
    expect(got['N'] == 0, "no column to choose, and the needle is worth %g", (double)got['N']);
    last_logits(m.fast, "a-shape", &z, ids, N, got);
    expect(got['N'] == 0, "a-shape: the needle is outside and worth %g", (double)got['N']);
    pair_close(&m);
}

int main(int argc, char **argv) {
    int only = argc > 1 ? atoi(argv[1]) : -1;
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
    runtime_vectors();
    runtime_lists(SANITIZED ? 100 : 2000);
    outside_the_window();
    needle();
    printf("%ld checks of lists and rows, %d failed\n", checks, failures);
    prefills(getenv("SOAK") ? 4000 : SANITIZED ? 4 : 120, only);
    printf("%ld comparisons of prefills, %d differ\n", pair_checks, pair_failures);
    return failures || pair_failures ? 1 : 0;
}
