// pair.h - the runtime and its slow twin side by side: the same call on both, then everything a
// caller can see is compared. A difference is printed and counted in pair_failures.
#ifndef PAIR_H
#define PAIR_H
#include "oracle.h"
#include "tinymodel.h"

typedef struct {
    char path[64];
    ModelFile file, again;      // one per reader: which records were asked for is part of the file
    Model *fast;
    NaiveModel *slow;
} PairModel;

typedef struct {
    Branch *fast;
    NaiveBranch *slow;
    const Config *config;
    const char *what;           // names the case in a report
    int shared;                 // tokens of its context
} Pair;

static int pair_failures;
static bool pair_poison;                // after every call dead rows become NaN: nothing may change
static long pair_checks, pair_near;     // near: f32 logits within 1e-5 of the largest, not equal

__attribute__((format(printf, 1, 2)))
static inline void pair_fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    if (pair_failures++ < 20) {
        vprintf(fmt, ap);
        printf("\n");
        fflush(stdout);
    }
    va_end(ap);
}

static inline void pair_must(int rc, const Err *err, const char *what) {
    if (rc) die_code(EXIT_USER, "%s: %s", what, err->msg);
}

// The models are so small that more threads only wait for each other; THREADS=N in the environment
// tries them all the same: the results do not depend on it.
static inline void pair_init(void) {
    Err err = { 0 };
    const char *threads = getenv("THREADS");
    pair_must(cpu_init(threads ? atoi(threads) : 1, &err), &err, "cpu_init");
}

static inline void pair_open_fast(PairModel *p, int chunk) {
    Err err = { 0 };
    ModelOpts opts = { .chunk = chunk };
    if (p->fast) model_close(p->fast);
    p->fast = model_open(&p->file, &opts, &err);
    pair_must(!p->fast, &err, "model_open");
}

static inline void pair_open(PairModel *p, const TinySpec *s, int chunk) {
    Err err = { 0 };
    memset(p, 0, sizeof *p);
    strcpy(p->path, P_tmpdir "/scbench-test-XXXXXX");
    int fd = mkstemp(p->path);
    CHECK(fd >= 0, "mkstemp: %s", strerror(errno));
    close(fd);
    tiny_write(s, p->path);
    pair_must(file_open(&p->file, p->path, true, &err), &err, "file_open");
    pair_must(file_open(&p->again, p->path, false, &err), &err, "file_open");
    unlink(p->path);            // both mappings stay
    p->slow = naive_open(&p->again);
    pair_open_fast(p, chunk);
}

static inline void pair_close(PairModel *p) {
    model_close(p->fast);
    naive_close(p->slow);
    file_close(&p->file);
    file_close(&p->again);
}

static inline void pair_set(Method *m, const char *name, int value) {
    Err err = { 0 };
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    pair_must(method_set(m, name, text, &err), &err, name);
}

// the runtime has the policy
static inline bool pair_has(NaiveKind kind) {
    Err err = { 0 };
    Method m;
    return method_find(naive_names[kind], &m, &err) == 0;
}

// policies that reduce a group of query heads by a rule one may choose
static inline bool pair_has_group(NaiveKind kind) {
    return kind > NAIVE_CORM && kind != NAIVE_SCISSORHANDS && kind != NAIVE_RANDOM;
}

// naive_groups in the runtime's words
static const Group pair_groups[] = { GROUP_MEAN, GROUP_MAX, GROUP_SUM, GROUP_QUERY_HEAD };

// the runtime's method with the sizes of the slow one; stage: the name of a sparse prefill before
// it, with its sizes and, if not NULL, a table of heads
static inline Method pair_method_after(const NaiveMethod *n, int ctx, const char *stage,
                                       const PrefillSizes *z, PatternFile *heads) {
    static const struct { const char *name; size_t at; unsigned kinds; } sizes[] = {
#define IN(kind) (1u << (kind))
        { "budget", offsetof(NaiveMethod, budget),
          ~(IN(NAIVE_FULL) | IN(NAIVE_STREAM) | IN(NAIVE_CORM)) },
        { "sinks", offsetof(NaiveMethod, sinks), IN(NAIVE_STREAM) },
        { "recent", offsetof(NaiveMethod, recent),
          IN(NAIVE_STREAM) | IN(NAIVE_H2O) | IN(NAIVE_SCISSORHANDS) | IN(NAIVE_ROCO) },
        { "window", offsetof(NaiveMethod, window),
          IN(NAIVE_CORM) | IN(NAIVE_SNAPKV) | IN(NAIVE_PYRAMIDKV) },
        { "history", offsetof(NaiveMethod, window), IN(NAIVE_SCISSORHANDS) },
        { "protect", offsetof(NaiveMethod, protect), IN(NAIVE_CORM) | IN(NAIVE_ROCO) },
        { "kernel", offsetof(NaiveMethod, kernel), IN(NAIVE_SNAPKV) | IN(NAIVE_PYRAMIDKV) },
        { "beta", offsetof(NaiveMethod, beta), IN(NAIVE_PYRAMIDKV) },
        { "page", offsetof(NaiveMethod, page), IN(NAIVE_QUEST) },
    };
    Err err = { 0 };
    Method m;
    memset(&m, 0, sizeof m);
    char name[64];
    snprintf(name, sizeof name, "%s%s%s", stage ? stage : "", stage && n->kind ? "+" : "",
             stage && !n->kind ? "" : naive_names[n->kind]);
    pair_must(method_find(name, &m, &err), &err, name);
    for (size_t i = 0; i < COUNTOF(sizes); i++)
        if (sizes[i].kinds & IN(n->kind)) {
            const void *at = (const char *)n + sizes[i].at;
            pair_set(&m, sizes[i].name, *(const int *)at);
        }
#undef IN
    if (n->kind == NAIVE_SNAPKV || n->kind == NAIVE_PYRAMIDKV) {
        pair_must(method_set(&m, "pool", n->pool_max ? "max" : "avg", &err), &err, "pool");
        m.set.every_turn = n->every_turn;
    }
    if (n->kind == NAIVE_STREAM)
        pair_must(method_set(&m, "positions",
                             n->sink ? "sinkcache" : n->cache ? "cache" : "original",
                             &err), &err, "positions");
    if (pair_has_group(n->kind)) m.set.group = pair_groups[n->group];
    m.seed = n->seed;
    m.session = n->session;
    if (stage) {
        m.prefill_set = *z;
        m.pattern = heads;
    }
    pair_must(method_resolve(&m, PRESET_SCBENCH, ctx, 0, -1, &err), &err, "method_resolve");
    m.size.signs = n->signs;
    return m;
}

static inline Method pair_method(const NaiveMethod *n, int ctx) {
    return pair_method_after(n, ctx, NULL, NULL, NULL);
}

// sizes around n rows, from 32 on
static inline NaiveMethod pair_random_method(Rng *r, NaiveKind kind, int n) {
    static const int around[] = { -40, -9, -1, 0, 1, 30 };
    NaiveMethod p = { .kind = kind, .group = NAIVE_MEAN, .kernel = 5, .beta = 20, .page = 16 };
    int budget = rng_below(r, 3) ? 32 + (int)rng_below(r, 40) : n + around[rng_below(r, 6)];
    p.budget = budget < 32 ? 32 : budget;
    if (kind == NAIVE_STREAM) {
        p.sinks = 1 + (int)rng_below(r, 8);
        p.recent = p.budget - p.sinks;
        int rule = (int)rng_below(r, 3);
        p.cache = rule == 1;
        p.sink = rule == 2;
    }
    if (kind == NAIVE_CORM) {
        p.window = 1 + (int)rng_below(r, 1 + rng_below(r, 30));
        p.protect = 1 + (int)rng_below(r, 1 + rng_below(r, 30));
    }
    if (kind == NAIVE_SNAPKV || kind == NAIVE_PYRAMIDKV) {
        p.window = 1 + (int)rng_below(r, rng_below(r, 2) ? 8 : 31);
        p.kernel = 1 + 2 * (int)rng_below(r, 4);
        p.pool_max = rng_below(r, 2);
        p.beta = 1 + (int)rng_below(r, 20);
    }
    if (kind == NAIVE_H2O || kind == NAIVE_SCISSORHANDS)
        p.recent = 1 + (int)rng_below(r, (uint64_t)p.budget - 1);
    if (kind == NAIVE_ROCO) {
        p.recent = 3 * p.budget / 10;
        p.protect = 10;
    }
    if (kind == NAIVE_SCISSORHANDS) p.window = 1 + (int)rng_below(r, NAIVE_HISTORY);
    if (kind == NAIVE_QUEST) p.page = 1 << rng_below(r, 6);
    if (kind == NAIVE_RANDOM) p.seed = rng_next(r) >> 33;
    if (pair_has_group(kind)) p.group = (NaiveGroup)rng_below(r, NAIVE_GROUPS);
    if (kind == NAIVE_QUEST && rng_below(r, 3) == 0) {
        p.group = NAIVE_QUERY_HEAD;
        p.signs = true;
    }
    return p;
}

// the method and its sizes, those that are not 0
static inline void pair_describe(const NaiveMethod *p, char *text, size_t size) {
    const struct { const char *name; int value; } v[] = {
        { "B", p->budget }, { "S", p->sinks }, { "R", p->recent }, { "w", p->window },
        { "r", p->protect }, { "kernel", p->kernel }, { "beta", p->beta }, { "page", p->page },
    };
    int at = snprintf(text, size, "%s", naive_names[p->kind]);
    for (size_t i = 0; i < COUNTOF(v); i++)
        if (v[i].value && at < (int)size)
            at += snprintf(text + at, size - (size_t)at, " %s %d", v[i].name, v[i].value);
    if (at < (int)size)
        snprintf(text + at, size - (size_t)at, " %s%s%s%s%s", naive_groups[p->group],
                 p->pool_max ? " max" : "", p->every_turn ? " every-turn" : "",
                 p->cache ? " cache" : p->sink ? " sinkcache" : "", p->signs ? " signs" : "");
}

static inline void pair_check_logits(const Pair *p, const char *call) {
    const NaiveModel *m = p->slow->m;
    const float *a = branch_logits(p->fast), *b = p->slow->logits;
    float worst = 0, largest = 0;
    int differ = 0, first = -1;
    for (int i = 0; i < m->V; i++) {
        float d = fabsf(a[i] - b[i]);
        bool equal = a[i] == b[i];
        if (!equal && first < 0) first = i;
        differ += !equal;
        worst = d > worst || d != d ? d : worst;
        largest = fabsf(b[i]) > largest ? fabsf(b[i]) : largest;
    }
    pair_checks++;
    if (differ && !m->rounded && worst <= 1e-5f * largest) pair_near++;
    else if (differ)
        pair_fail("%s, %s at %d tokens: %d of %d logits differ, first %d: %.9g, oracle %.9g, "
                  "worst %g", p->what, call, p->slow->pos, differ, m->V, first, (double)a[first],
                  (double)b[first], (double)worst);
    if (!differ && branch_argmax(p->fast) != naive_argmax(p->slow))
        pair_fail("%s, %s: argmax %d, oracle %d", p->what, call, branch_argmax(p->fast),
                  naive_argmax(p->slow));
}

// rows that some list names: query heads with rows of their own may name the same row of a context
static inline size_t pair_named(const Pair *p) {
    const NaiveModel *m = p->slow->m;
    size_t named = 0;
    int spread = p->slow->heads / m->G;
    for (int i = 0; i < m->L * m->G; i++)
        for (int h = 0; h < spread; h++) {
            const NaiveHead *a = &p->slow->head[i * spread + h];
            for (int j = 0; j < a->n; j++) {
                bool again = false;
                for (int o = 0; o < h && a->row[j].pos < p->shared; o++) {
                    const NaiveHead *b = &p->slow->head[i * spread + o];
                    for (int k = 0; k < b->n; k++) again |= b->row[k].pos == a->row[j].pos;
                }
                named += !again;
            }
        }
    return named;
}

static inline void pair_check_rows(const Pair *p, const char *call) {
    const NaiveModel *m = p->slow->m;
    BranchStats s = branch_stats(p->fast);
    int min = INT_MAX, max = 0;
    size_t sum = 0;
    for (int i = 0; i < m->L * p->slow->heads; i++) {
        const NaiveHead *a = &p->slow->head[i];
        const int32_t *pos;
        int layer = i / p->slow->heads, g = i % p->slow->heads, at = 0;
        int n = branch_rows(p->fast, layer, g, &pos);
        while (at < n && at < a->n && pos[at] == a->row[at].pos) at++;
        if (n != a->n || at < n)
            pair_fail("%s, %s at %d tokens, layer %d, KV head %d: %d rows, oracle %d; entry %d is "
                      "%d, oracle %d", p->what, call, p->slow->pos, layer, g, n, a->n, at,
                      at < n ? pos[at] : -1, at < a->n ? a->row[at].pos : -1);
        min = a->n < min ? a->n : min;
        max = a->n > max ? a->n : max;
        sum += (size_t)a->n;
    }
    double mean = (double)sum / (m->L * p->slow->heads);
    if (s.pos != p->slow->pos || s.rows_min != min || s.rows_max != max ||
        fabs(s.rows_mean - mean) > 1e-6 * mean)
        pair_fail("%s, %s: stats say pos %d, rows %d to %d, mean %g; oracle %d, %d to %d, %g",
                  p->what, call, (int)s.pos, s.rows_min, s.rows_max, s.rows_mean, p->slow->pos,
                  min, max, mean);
    size_t named = pair_named(p);
    if (s.kv_live_bytes != named * config_row_bytes(p->config) ||
        s.kv_alloc_bytes < s.kv_live_bytes)
        pair_fail("%s, %s: %zu live bytes of %zu for %zu rows of %zu", p->what, call,
                  s.kv_live_bytes, s.kv_alloc_bytes, named, config_row_bytes(p->config));
    pair_checks++;
    if (pair_poison) branch_poison(p->fast);
}

// The first feed: ids as many as base holds rows of, those beyond ctx are fed. base: the slow rows
// of the first feed before its end, copied. ctx NULL: all ids go to an empty branch. slow: what the
// slow twin does instead of method.
static inline Pair pair_first_as(PairModel *m, const NaiveBranch *base, const NaiveMethod *method,
                                 const NaiveMethod *slow, Context *ctx, const int32_t *ids,
                                 int reserve, const char *what) {
    Err err = { 0 };
    Method fast = pair_method(method, base->pos);
    int shared = ctx ? context_len(ctx) : 0, n = base->pos - shared;
    Pair p = { .config = model_config(m->fast), .what = what, .shared = shared };
    p.fast = branch_open(m->fast, ctx, &fast, reserve, &err);
    pair_must(!p.fast, &err, "branch_open");
    pair_must(branch_feed(p.fast, ids + shared, n, FEED_FIRST, &err), &err, "branch_feed");
    p.slow = naive_adopt(base, *slow);
    naive_end(p.slow, false);
    if (n) pair_check_logits(&p, "first feed");
    pair_check_rows(&p, "first feed");
    return p;
}

static inline Pair pair_first(PairModel *m, const NaiveBranch *base, const NaiveMethod *method,
                              Context *ctx, const int32_t *ids, int reserve, const char *what) {
    return pair_first_as(m, base, method, method, ctx, ids, reserve, what);
}

static inline void pair_feed(Pair *p, const int32_t *ids, int n) {
    Err err = { 0 };
    pair_must(branch_feed(p->fast, ids, n, 0, &err), &err, "branch_feed");
    naive_feed(p->slow, ids, n);
    pair_check_logits(p, "feed");
    pair_check_rows(p, "feed");
}

static inline void pair_step(Pair *p, int32_t id) {
    Err err = { 0 };
    pair_must(branch_step(p->fast, id, &err), &err, "branch_step");
    naive_step(p->slow, id);
    pair_check_logits(p, "step");
    pair_check_rows(p, "step");
}

enum { PAIR_BATCH = 8 };

// one id on each of n pairs, the fast ones as one batch
static inline void pair_batch(Pair **p, const int32_t *id, int n) {
    Err err = { 0 };
    Branch *fast[PAIR_BATCH];
    for (int i = 0; i < n; i++) fast[i] = p[i]->fast;
    pair_must(branches_step(fast, id, n, &err), &err, "branches_step");
    for (int i = 0; i < n; i++) naive_step(p[i]->slow, id[i]);
    for (int i = 0; i < n; i++) {
        pair_check_logits(p[i], "batch");
        pair_check_rows(p[i], "batch");
    }
}

// forgets the newest n tokens
static inline void pair_cut(Pair *p, int n) {
    branch_cut(p->fast, p->slow->pos - n);
    naive_cut(p->slow, p->slow->pos - n);
    if (p->slow->pos < p->shared) p->shared = p->slow->pos;     // what comes there is its own
    pair_check_rows(p, "cut");
}

static inline Pair pair_fork(const Pair *p, int reserve) {
    Err err = { 0 };
    Pair c = { .config = p->config, .what = p->what, .shared = p->shared };
    c.fast = branch_fork(p->fast, reserve, &err);
    pair_must(!c.fast, &err, "branch_fork");
    c.slow = naive_copy(p->slow);
    pair_check_rows(&c, "fork");
    return c;
}

static inline void pair_drop(Pair *p) {
    branch_drop(p->fast);
    naive_drop(p->slow);
    memset(p, 0, sizeof *p);
}

typedef struct { Mark *fast; NaiveBranch *slow; } PairMark;

static inline PairMark pair_mark(const Pair *p) {
    PairMark k = { branch_mark(p->fast), naive_copy(p->slow) };
    return k;
}
static inline void pair_rewind(Pair *p, PairMark k) {
    branch_rewind(p->fast, k.fast);
    naive_drop(p->slow);
    p->slow = k.slow;
    pair_check_rows(p, "rewind");
}
static inline void pair_mark_drop(Pair *p, PairMark k) {
    mark_drop(p->fast, k.fast);
    naive_drop(k.slow);
    pair_check_rows(p, "mark drop");
}

#endif
