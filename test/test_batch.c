// test_batch.c - branches that step together give the bits they give alone: forks of one root and
// roots on one context, of any mix of methods, that leave the batch one by one; and what a batch
// reads: the shared panels once.
#include "tinymodel.h"

enum { MOST = 12, CONTEXT = 1100, QUESTION = 40, STEPS = 14, WINDOW = 24 };
static const Needs needs = { .window = WINDOW };

static int failures, checks;

__attribute__((format(printf, 1, 2)))
static void fail(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    if (failures++ < 20) {
        vprintf(fmt, ap);
        puts("");
    }
    va_end(ap);
}

static void must(int rc, const Err *err) { if (rc) die_code(EXIT_USER, "%s", err->msg); }

typedef struct { ModelFile file; Model *m; char path[64]; } Tiny;

static void tiny_open(Tiny *t, const TinySpec *spec) {
    Err err = { 0 };
    memset(t, 0, sizeof *t);
    strcpy(t->path, "/tmp/scbench-batch-XXXXXX");
    int fd = mkstemp(t->path);
    CHECK(fd >= 0, "mkstemp: %s", strerror(errno));
    close(fd);
    tiny_write(spec, t->path);
    must(file_open(&t->file, t->path, false, &err), &err);
    unlink(t->path);
    CHECK((t->m = model_open(&t->file, NULL, &err)) != NULL, "%s", err.msg);
}

static void tiny_close(Tiny *t) {
    model_close(t->m);
    file_close(&t->file);
}

static Method method_of(const char *name, int ctx, int budget) {
    Method m;
    Err err = { 0 };
    must(method_find(name, &m, &err), &err);
    if (!strcmp(name, "corm")) {
        must(method_set(&m, "window", "24", &err), &err);
        must(method_set(&m, "protect", "8", &err), &err);
    }
    must(method_resolve(&m, PRESET_SCBENCH, ctx, method_has_budget(&m) ? budget : 0, -1, &err),
         &err);
    return m;
}

static void ids_of(int32_t *ids, int n, uint64_t seed) {
    Rng r = { seed };
    for (int i = 0; i < n; i++) ids[i] = (int32_t)rng_below(&r, TINY_VOCAB);
}

// everything a caller can see of two branches
static void compare(const char *what, int i, int step, Branch *a, Branch *b, const Config *c) {
    BranchStats x = branch_stats(a), y = branch_stats(b);
    checks++;
    if (memcmp(branch_logits(a), branch_logits(b), sizeof(float) * (size_t)c->vocab_size))
        fail("%s: branch %d, step %d: other logits than alone", what, i, step);
    if (x.pos != y.pos || x.rows_min != y.rows_min || x.rows_max != y.rows_max ||
        x.evictable != y.evictable)
        fail("%s: branch %d, step %d: other rows than alone", what, i, step);
    for (int h = 0; h < c->n_layers * c->n_kv_heads; h++) {
        static int32_t first[CONTEXT + QUESTION + STEPS];
        const int32_t *pos;
        int n = branch_rows(a, h / c->n_kv_heads, h % c->n_kv_heads, &pos);
        memcpy(first, pos, (size_t)n * sizeof *pos);
        if (branch_rows(b, h / c->n_kv_heads, h % c->n_kv_heads, &pos) != n ||
            memcmp(first, pos, (size_t)n * sizeof *pos))
            fail("%s: branch %d, step %d, head %d: other positions than alone", what, i, step, h);
    }
}

// steps the n branches together and their twins alone; branch i leaves after STEPS - i steps
static void play(const char *what, Model *m, Branch **together, Branch **alone, int n) {
    Err err = { 0 };
    for (int step = 0; step < STEPS; step++) {
        Branch *b[MOST];
        int32_t id[MOST];
        int k = 0;
        for (int i = 0; i < n; i++) {
            if (step >= STEPS - i) continue;
            id[k] = (int32_t)((branch_argmax(alone[i]) + i) % TINY_VOCAB);
            must(branch_step(alone[i], id[k], &err), &err);
            b[k++] = together[i];
        }
        if (k) must(branches_step(b, id, k, &err), &err);
    }
    for (int i = 0; i < n; i++) compare(what, i, STEPS, together[i], alone[i], model_config(m));
    for (int i = 0; i < n; i++) {
        branch_drop(together[i]);
        branch_drop(alone[i]);
    }
}

static const char *const names[] = { "full", "keep-last", "streamingllm", "corm" };

// requests of one root
static void forks(Model *m, const char *method, int n, bool on_context) {
    int32_t ids[CONTEXT], question[QUESTION];
    Err err = { 0 };
    Method how = method_of(method, CONTEXT, 700);
    char what[80];
    Branch *together[MOST], *alone[MOST];
    ids_of(ids, CONTEXT, 7);
    Context *ctx = on_context ? context_open(m, ids, CONTEXT, &needs, &err) : NULL;
    Branch *root = branch_open(m, ctx, &how, 0, &err);
    CHECK(root, "%s", err.msg);
    must(branch_feed(root, ids, on_context ? 0 : CONTEXT, FEED_FIRST | FEED_NO_LOGITS, &err), &err);
    for (int i = 0; i < n; i++) {
        ids_of(question, QUESTION, 100 + (uint64_t)i);
        for (int k = 0; k < 2; k++) {
            Branch *b = branch_fork(root, i % 2 ? QUESTION + STEPS : 3, &err);
            CHECK(b, "%s", err.msg);
            must(branch_feed(b, question, QUESTION - i, 0, &err), &err);
            (k ? together : alone)[i] = b;
        }
    }
    snprintf(what, sizeof what, "%d forks of %s%s", n, method, on_context ? " on a context" : "");
    play(what, m, together, alone, n);
    branch_drop(root);
    context_drop(ctx);
}

// roots of every method on one context
static void roots(Model *m, int n) {
    int32_t ids[CONTEXT], question[QUESTION];
    Err err = { 0 };
    Branch *together[MOST], *alone[MOST];
    ids_of(ids, CONTEXT, 7);
    Context *ctx = context_open(m, ids, CONTEXT, &needs, &err);
    for (int i = 0; i < n; i++) {
        Method how = method_of(names[i % (int)COUNTOF(names)], CONTEXT, 600 + 100 * i);
        ids_of(question, QUESTION, 100 + (uint64_t)i);
        for (int k = 0; k < 2; k++) {
            Branch *b = branch_open(m, ctx, &how, 10, &err);
            CHECK(b, "%s", err.msg);
            must(branch_feed(b, question, QUESTION, FEED_FIRST, &err), &err);
            (k ? together : alone)[i] = b;
        }
    }
    play("roots of every method", m, together, alone, n);
    context_drop(ctx);
}

// bytes that a step of n forks of full reads: the context's whole panels once, all else per fork
static void bytes(Model *m) {
    int32_t ids[CONTEXT], id[MOST] = { 0 };
    Err err = { 0 };
    Method full = method_of("full", CONTEXT, 0);
    const Config *c = model_config(m);
    size_t heads = (size_t)c->n_layers * c->n_kv_heads, row = config_row_bytes(c);
    ids_of(ids, CONTEXT, 7);
    Context *ctx = context_open(m, ids, CONTEXT, &needs, &err);
    Branch *b[MOST];
    for (int i = 0; i < MOST; i++) CHECK(b[i] = branch_open(m, ctx, &full, 8, &err), "%s", err.msg);
    for (int n = 1; n <= MOST; n++) {
        model_phases(m);
        must(branches_step(b, id, n, &err), &err);
        Phases p = model_phases(m);
        size_t own = 0;
        for (int i = 0; i < n; i++)
            own += (size_t)branch_stats(b[i]).rows_max - CONTEXT / 512 * 512;
        double rows = (double)(CONTEXT / 512 * 512 + own);
        checks++;
        if (p.kv_bytes != rows * (double)(heads * row))
            fail("a step of %d forks read %.0f bytes of rows, want %.0f", n, p.kv_bytes,
                 rows * (double)(heads * row));
        if (p.weight_bytes > (double)model_weight_bytes(m))
            fail("a step of %d forks read %.0f bytes of weights, the model has %zu", n,
                 p.weight_bytes, model_weight_bytes(m));
    }
    for (int i = 0; i < MOST; i++) branch_drop(b[i]);
    context_drop(ctx);
}

int main(void) {
    // rows of a strip: 3 x 5, more than one tile (4 x 6), more than one strip (8 x 12)
    static const TinySpec specs[] = {
        { .dim = 48, .hidden_dim = 64, .n_layers = 2, .n_heads = 6, .n_kv_heads = 2, .head_dim = 32,
          .dtype = DT_BF16, .qkv_bias = true, .sharp = 3 },
        { .dim = 32, .hidden_dim = 64, .n_layers = 1, .n_heads = 8, .n_kv_heads = 2, .head_dim = 64,
          .dtype = DT_Q8, .tied = true, .sharp = 4 },
        { .dim = 32, .hidden_dim = 40, .n_layers = 1, .n_heads = 8, .n_kv_heads = 1, .head_dim = 48,
          .dtype = DT_F32, .tied = true, .sharp = 5 },
    };
    static const int sizes[] = { 5, 6, MOST };
    Err err = { 0 };
    const char *threads = getenv("THREADS");        // small models: more only wait for each other
    must(cpu_init(threads ? atoi(threads) : 1, &err), &err);
    for (size_t s = 0; s < (SANITIZED ? 1 : COUNTOF(specs)); s++) {
        Tiny t;
        TinySpec spec = specs[s];
        spec.seed = 11 + s;
        tiny_open(&t, &spec);
        for (size_t k = 0; k < COUNTOF(names); k++) {
            forks(t.m, names[k], sizes[s], true);
            forks(t.m, names[k], sizes[s], false);
        }
        roots(t.m, sizes[s]);
        bytes(t.m);
        tiny_close(&t);
    }
    printf("%d comparisons, %d differ\n", checks, failures);
    return failures != 0;
}
