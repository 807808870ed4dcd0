// test_rules.cu - methods of the cache stage on the device against the same on the CPU, on a small
// random model: which rows stay, logits, named and dropped rows, bytes; the same bits when repeated.
// Scores differ a little between the two (evict.cu, flash.cu), so rows whose numbers nearly tie may
// change places; they are counted and bounded. Logits of one choice lie within NEAR of each other,
// in units of their spread; where a choice differed, and only there, further apart.
#include "twin.h"

enum { LAYERS = 2, KEPT = 48 };
static int vocab = 128, groups = 2;

static void need(int rc, const Err *err) {
    if (!rc) return;
    printf("%s\n", err->msg);
    exit(1);
}

static Model *opened(bool device) {
    Config c;
    ModelOpts opts = { 64, false, 0, device };
    Err err;
    memset(&c, 0, sizeof c);
    c.arch = ARCH_LLAMA;
    c.vocab_size = vocab;
    c.dim = c.hidden_dim = 64;
    c.n_layers = LAYERS;
    c.n_heads = 2 * groups;
    c.n_kv_heads = groups;
    c.head_dim = c.rope_dim = 64;
    c.max_ctx = 4096;
    c.norm_eps = 1e-5f;
    c.rope_theta = 10000;
    c.rope_factor = c.rope_low_freq_factor = c.rope_high_freq_factor = 1;
    c.rope_orig_ctx = 128;
    Model *m = model_random(&c, &opts, 7, &err);
    need(m ? 0 : -1, &err);
    return m;
}

static int32_t id_at(int seed, int i) {
    return (int32_t)(mix64((uint64_t)seed * 1000003u + (uint64_t)i) % (uint64_t)vocab);
}

typedef struct {                // what a play left, in the order it came
    float *logits;              // (n, V)
    int n;
    IntVec rows;                // of each moment, layer and list: how many, and their positions
    IntVec stats;               // of each moment: rows named, shortest and longest list, KB of rows
} Trace;

static void keep(Trace *t, const Branch *b, const Method *m) {
    BranchStats s = branch_stats(b);
    int lists = method_wide(m) ? 2 * groups : groups;
    CHECK(t->n < KEPT, "a trace of %d", t->n);
    memcpy(t->logits + (size_t)t->n++ * vocab, branch_logits(b), (size_t)vocab * sizeof(float));
    for (int l = 0; l < LAYERS; l++)
        for (int g = 0; g < lists; g++) {
            const int32_t *pos;
            int n = branch_rows(b, l, g, &pos);
            ints_push(&t->rows, n);
            ints_add(&t->rows, pos, (size_t)n);
        }
    ints_push(&t->stats, (int32_t)s.evictable);
    ints_push(&t->stats, s.rows_min);
    ints_push(&t->stats, s.rows_max);
    ints_push(&t->stats, (int32_t)s.kv_live_bytes);
    ints_push(&t->stats, (int32_t)s.kv_alloc_bytes);
    ints_push(&t->stats, s.shared);
}

static void feed(Branch *b, const Method *m, int seed, int n, unsigned flags, Trace *t) {
    Err err;
    int32_t *ids = (int32_t *)xrealloc(NULL, ((size_t)n + 1) * sizeof *ids);
    for (int i = 0; i < n; i++) ids[i] = id_at(seed, i);
    need(branch_feed(b, ids, n, flags, &err), &err);
    keep(t, b, m);
    free(ids);
}

static void steps(Branch *b, const Method *m, int seed, int n, Trace *t) {
    Err err;
    for (int i = 0; i < n; i++) {
        need(branch_step(b, id_at(seed, i), &err), &err);
        keep(t, b, m);
    }
}

// a root of its own: feeds longer and shorter than the window, steps, a mark that is rewound, a
// fork, a cut
static void root(Model *m, const Method *method, Trace *t) {
    Err err;
    Branch *b = branch_open(m, NULL, method, 4, &err);
    need(b ? 0 : -1, &err);
    feed(b, method, 1, 100, FEED_FIRST, t);
    steps(b, method, 2, 2, t);
    Mark *k = branch_mark(b);
    feed(b, method, 3, 21, 0, t);
    steps(b, method, 4, 2, t);
    branch_rewind(b, k);
    feed(b, method, 5, 5, 0, t);
    Branch *f = branch_fork(b, 4, &err);
    need(f ? 0 : -1, &err);
    steps(f, method, 6, 2, t);
    steps(b, method, 7, 3, t);
    branch_drop(f);
    branch_cut(b, 106);
    feed(b, method, 8, 4, 0, t);
    branch_drop(b);
}

// requests on one context that answer together, then one without a question of its own
static void shared(Model *m, const Method *method, Trace *t) {
    enum { N = 2 };
    Err err;
    Branch *b[N];
    int32_t ids[100];
    Needs needs = { 0, 0, GROUP_MEAN };
    method_needs(method, &needs);
    for (int i = 0; i < 80; i++) ids[i] = id_at(11, i);
    Context *c = context_open(m, ids, 80, &needs, &err);
    need(c ? 0 : -1, &err);
    for (int i = 0; i < N; i++) {
        b[i] = branch_open(m, c, method, 8, &err);
        need(b[i] ? 0 : -1, &err);
        feed(b[i], method, 12 + i, i ? 0 : 7, FEED_FIRST | (i ? FEED_NO_LOGITS : 0), t);
    }
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < N; i++) ids[i] = id_at(20 + i, k);
        need(branches_step(b, ids, N, &err), &err);
        for (int i = 0; i < N; i++) keep(t, b[i], method);
    }
    feed(b[1], method, 15, 9, 0, t);
    for (int i = 0; i < N; i++) branch_drop(b[i]);
    context_drop(c);
}

typedef void (*Play)(Model *m, const Method *method, Trace *t);

static Trace played(Model *m, Play play, const Method *method) {
    Trace t = { (float *)xrealloc(NULL, sizeof(float) * KEPT * (size_t)vocab), 0, { 0, 0, 0 },
                { 0, 0, 0 } };
    memset(t.logits, 0, sizeof(float) * KEPT * (size_t)vocab);
    play(m, method, &t);
    return t;
}
static void trace_free(Trace *t) {
    free(t->logits);
    free(t->rows.p);
    free(t->stats.p);
}

// worst difference of a row of logits, in units of the row's spread
static double apart(const float *a, const float *b) {
    double sum = 0, worst = 0;
    for (int i = 0; i < vocab; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d;
        sum += (double)b[i] * b[i];
    }
    return sum > 0 ? worst / sqrt(sum / vocab) : worst;
}

// rows that one side has and the other has not, in all lists of the moments; *all: rows there are
static int rows_apart(const IntVec *a, const IntVec *b, int *all) {
    size_t i = 0, j = 0;
    int count = 0;
    *all = 0;
    while (i < a->n && j < b->n) {
        size_t x = i + 1, y = j + 1;
        i = x + (size_t)a->p[i];
        j = y + (size_t)b->p[j];
        *all += (int)(i - x);
        while (x < i || y < j) {
            bool take = y == j || (x < i && a->p[x] <= b->p[y]),
                 both = take && y < j && a->p[x] == b->p[y];
            count += !both;
            x += take;
            y += both || !take;
        }
    }
    return count;
}

typedef struct {
    const char *name, *set;     // "key=value key=value"
    int budget;
    bool scores;                // chosen by them, not by place
    int positions;              // -1: the method's own
    int group, every_turn;      // group: -1: the method's own
} Case;

static Method method_of(const Case *k) {
    Method m;
    Err err;
    char set[128], *at = NULL;
    need(method_find(k->name, &m, &err), &err);
    snprintf(set, sizeof set, "%s", k->set ? k->set : "");
    for (char *s = strtok_r(set, " ", &at); s; s = strtok_r(NULL, " ", &at)) {
        char *value = strchr(s, '=');
        *value = 0;
        need(method_set(&m, s, value + 1, &err), &err);
    }
    if (k->group >= 0) m.set.group = (Group)k->group;
    if (k->every_turn) m.set.every_turn = 1;
    need(method_resolve(&m, PRESET_SCBENCH, 160, k->budget, k->positions, &err), &err);
    return m;
}

#define NEAR 0.06
#define ROWS_APART 0.04         // share of the rows that scores chose, in moments that build on
#define MOMENTS_APART 0.4       // each other; share of the moments whose logits are not near

static void compare(const Case *k, const char *what, Model *cpu, Model *gpu, Play play) {
    Method method = method_of(k);
    Trace want = played(cpu, play, &method), got = played(gpu, play, &method);
    double worst = 0;
    int all, differ = rows_apart(&want.rows, &got.rows, &all), far = 0;
    for (int i = 0; i < want.n; i++) {
        double d = apart(got.logits + (size_t)i * vocab, want.logits + (size_t)i * vocab);
        if (!(d <= worst)) worst = d;
        far += !(d <= NEAR);
    }
    printf("%s%s%s, %s: logits within %.2g, %d of %d beyond %g; %d of %d rows differ\n", k->name,
           k->set ? " " : "", k->set ? k->set : "", what, worst, far, want.n, NEAR, differ, all);
    if (!(worst <= (k->scores ? 1 : NEAR)) || far > (k->scores ? MOMENTS_APART * want.n : 0) ||
        differ > (k->scores && method_evicts(&method) ? ROWS_APART * all : 0)) {
        printf("that is too far apart\n");
        twin_failures++;
    }
    if (play == root) {
        Trace again = played(gpu, play, &method);
        CHECK(again.rows.n == got.rows.n, "%s: other rows when repeated", k->name);
        twin_equal("logits when repeated", again.logits, got.logits, (size_t)got.n * vocab);
        twin_equal("rows when repeated", again.rows.p, got.rows.p, got.rows.n);
        trace_free(&again);
    }
    if (method_budget(&method))                 // else they follow from the rows
        twin_equal("named rows, lengths and bytes", got.stats.p, want.stats.p, want.stats.n);
    trace_free(&want);
    trace_free(&got);
}

int main(int argc, char **argv) {
    int rc = twin_begin();
    Err err;
    if (rc) return rc;
    need(cpu_init(1, &err), &err);
    static const Case cases[] = {
        { "keep-last", NULL, 48, false, -1, -1, 0 },
        { "streamingllm", NULL, 48, false, POSITIONS_CACHE, -1, 0 },
        { "streamingllm", "prefill=stream:40", 48, false, POSITIONS_CACHE, -1, 0 },
        { "random", NULL, 48, false, POSITIONS_CACHE, GROUP_QUERY_HEAD, 0 },
        { "snapkv", "pool=max", 48, true, -1, GROUP_MAX, 0 },
        { "snapkv", NULL, 48, true, POSITIONS_CACHE, GROUP_QUERY_HEAD, 0 },
        { "pyramidkv", NULL, 48, true, -1, GROUP_SUM, 1 },
        { "corm", "window=2 protect=12", 0, true, POSITIONS_CACHE, -1, 0 },
        { "h2o", NULL, 48, true, -1, -1, 0 },
        { "h2o", NULL, 48, true, POSITIONS_CACHE, GROUP_QUERY_HEAD, 0 },
        { "roco", NULL, 48, true, -1, GROUP_MAX, 0 },
        { "scissorhands", "history=40", 48, true, -1, -1, 0 },
        { "tova", NULL, 48, true, -1, -1, 0 },
        { "quest", "page=8", 32, true, -1, -1, 0 },
        { "quest", "page=8", 32, true, -1, GROUP_QUERY_HEAD, 0 },
        { "topk", NULL, 32, true, -1, GROUP_MAX, 0 },
        { "topk", NULL, 32, true, -1, GROUP_QUERY_HEAD, 0 },
    };
    const char *only = argc > 1 ? argv[1] : NULL;
    Model *cpu = opened(false), *gpu = opened(true);
    for (size_t i = 0; i < COUNTOF(cases); i++) {
        if (only && strcmp(only, cases[i].name)) continue;
        compare(&cases[i], "root", cpu, gpu, root);
        if (!method_of(&cases[i]).size.stream) compare(&cases[i], "shared", cpu, gpu, shared);
    }
    model_close(cpu);
    model_close(gpu);
    return twin_end("rules");
}
