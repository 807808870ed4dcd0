// test_prefill.cu - sparse prefill of whole models on the device against the CPU: what the heads
// look at, logits and pairs, on roots, forks and shared contexts; the same bits when repeated.
#include "cache.h"
#include "kernels.h"
#include "model.h"
#include "twin.h"

static void need(int rc, const Err *err) {
    if (!rc) return;
    printf("%s\n", err->msg);
    exit(1);
}

enum { LAYERS = 2, HEADS = 4, VOCAB = 96, FIRST = 300, LATER = 90, KEPT = 8, LISTS = 4 };
enum { MOST_LISTS = LISTS * LAYERS * HEADS };

static const Config shape = { .arch = ARCH_LLAMA, .vocab_size = VOCAB, .dim = 128,
                              .hidden_dim = 128, .n_layers = LAYERS, .n_heads = HEADS,
                              .n_kv_heads = 2, .head_dim = 64, .max_ctx = 4096, .norm_eps = 1e-5f,
                              .rope_theta = 10000, .rope_dim = 64, .rope_factor = 1,
                              .dtype = DT_BF16 };
// every kind of head in one layer; sizes as in a file of MInference's
static HeadPattern heads[LAYERS * HEADS] = {
    { HEAD_VERTICAL_SLASH, 40, 70, 0 }, { HEAD_BLOCK_SPARSE, 2, 0, 0 },
    { HEAD_A_SHAPE, 30, 80, 0 }, { HEAD_VERTICAL_SLASH, 100, 50, 0 },
    { HEAD_A_SHAPE, 64, 64, 0 }, { HEAD_A_SHAPE, 1, 200, 0 },
    { HEAD_BLOCK_SPARSE, 3, 0, 0 }, { HEAD_BLOCK_SPARSE, 100, 0, 0 },
};
static PatternFile pattern = { LAYERS, HEADS, "0123456789abcdef", heads };

typedef struct {
    const char *name, *set;
    bool file, shared, estimated;       // estimated: lists depend on sums of attention
} Case;
static const Case cases[] = {       // (prefill, sizes)
    { "a-shape", "sinks=64 local=100", false, false, false },
    { "a-shape", "sinks=10 local=64 feeds=every", false, false, false },
    { "tri-shape", "sinks=64 local=64 dense_rows=30", false, true, false },
    { "minference", "verticals=40 slashes=70", false, false, true },
    { "minference", "verticals=40 slashes=70 feeds=every", false, true, true },
    { "minference", "head=block-sparse blocks=2 feeds=every dense_below=310", false, false, false },
    { "minference", "feeds=every", true, false, true },
    // what a policy sees of it
    { "a-shape+h2o", "sinks=64 local=64 budget=80", false, false, false },
    { "minference+scissorhands", "verticals=40 slashes=70 budget=80", false, true, true },
    { "minference+roco", "head=block-sparse blocks=2 feeds=every budget=80", false, false, false },
    { "tri-shape+quest", "sinks=64 local=64 dense_rows=30 budget=80", false, false, false },
    { "tri-shape+snapkv", "sinks=64 local=64 dense_rows=30 budget=80", false, true, false },
    { "streamingllm+a-shape", "sinks=20 local=64 feeds=every budget=120", false, false, false },
};

typedef struct {                // a play: logits and shares of pairs in the order they came, and
    float logits[KEPT][VOCAB];  // what vertical-slash heads look at
    double ratio[KEPT];
    int n, n_lists, len[MOST_LISTS];
    IntVec list[MOST_LISTS];    // columns, then len + distances
    IntVec rows[LAYERS * HEADS];        // kept in the end, by list
} Seen;

static Seen *seen;              // of the play under way
static Model *watched;

// a layer has been fed: its lists are still there
static void lists_seen(void *user, int layer, int first, int n, const float *x) {
    KVWork *w = watched->work;
    static HeadLists head[HEADS];
    (void)user; (void)layer; (void)first; (void)n; (void)x;
    if (w->device) mem_get(w->mem, head, device_sparse_lists(w)->plan.head, sizeof head);
    for (int h = 0; h < HEADS; h++) {
        const HeadLists *l = w->device ? &head[h] : sparse_head(w->sparse, h);
        IntVec *to = &seen->list[seen->n_lists], columns = { 0 };
        CHECK(seen->n_lists < MOST_LISTS, "more than %d lists", MOST_LISTS);
        seen->len[seen->n_lists++] = l->len;
        if (l->kind != HEAD_VERTICAL_SLASH) continue;
        size_t words = (size_t)CEIL_DIV(l->len, 64);
        uint64_t *bits = (uint64_t *)xrealloc(NULL, words * sizeof *bits);
        mem_get(w->mem, bits, l->slash, words * sizeof *bits);
        ints_add(to, ints_seen(w->mem, l->vertical, l->n_vertical, &columns),
                 (size_t)l->n_vertical);
        for (int d = 0; d < l->len; d++) if (bits[d / 64] >> d % 64 & 1) ints_push(to, l->len + d);
        free(bits);
        free(columns.p);
    }
}

static void watch(Model *m, bool on) {
    static const Tap none = { NULL, NULL }, tap = { lists_seen, NULL };
    watched = m;
    model_set_tap(m, on ? tap : none);
}

static void keep(const Branch *b) {
    CHECK(seen->n < KEPT, "more than %d rows of logits", KEPT);
    memcpy(seen->logits[seen->n], branch_logits(b), sizeof seen->logits[0]);
    seen->ratio[seen->n++] = branch_stats(b).pairs_ratio;
}

static void keep_rows(const Branch *b) {
    for (int i = 0; i < LAYERS * kv_heads(b->kv); i++) {
        const int32_t *pos;
        int n = branch_rows(b, i / kv_heads(b->kv), i % kv_heads(b->kv), &pos);
        ints_add(&seen->rows[i], pos, (size_t)n);
    }
}

static const int32_t *ids(int seed) {
    static int32_t id[FIRST];
    for (int i = 0; i < FIRST; i++)
        id[i] = (int32_t)(mix64((uint64_t)seed * 1000003u + (uint64_t)i) % VOCAB);
    return id;
}

static void feed(Model *m, Branch *b, int seed, int n, unsigned flags) {
    Err err;
    watch(m, kv_feed_sparse(b->kv, n) || (flags && n && b->method.prefill &&
                                          n >= b->method.prefill_size.dense_below));
    need(branch_feed(b, ids(seed), n, flags, &err), &err);
    watch(m, false);
    keep(b);
}

// a root or two requests on a context; one is forked; another feed; a token of each
static void play(Model *m, const Method *method, bool shared, Seen *to) {
    Err err;
    Context *c = NULL;
    Branch *b[2];
    Needs needs = { 0, 0, GROUP_MEAN };
    method_needs(method, &needs);
    seen = to;
    watch(m, true);
    if (shared) c = context_open_sparse(m, method, ids(1), FIRST, &needs, &err);
    if (shared && !c) need(-1, &err);
    watch(m, false);
    if (!(b[0] = branch_open(m, c, method, 16, &err))) need(-1, &err);
    feed(m, b[0], 1, shared ? 0 : FIRST, FEED_FIRST);
    if (!(b[1] = branch_fork(b[0], 4, &err))) need(-1, &err);
    feed(m, b[0], 2, LATER, 0);
    need(branches_step(b, ids(3), 2, &err), &err);
    keep(b[0]);
    keep(b[1]);
    keep_rows(b[0]);
    branch_drop(b[1]);
    branch_drop(b[0]);
    context_drop(c);
}

static Method method_of(const Case *c) {
    Method m;
    Err err;
    char name[32], value[32];
    need(method_find(c->name, &m, &err), &err);
    for (const char *p = c->set; sscanf(p, " %31[^=]=%31[^ ]", name, value) == 2;) {
        need(method_set(&m, name, value, &err), &err);
        p = strchr(p, '=') + 1;
        p += strlen(value);
    }
    if (c->file) {
        m.pattern_path = "planted";
        m.pattern = &pattern;
    }
    need(method_resolve(&m, PRESET_SCBENCH, FIRST, 0, -1, &err), &err);
    return m;
}

// worst difference of a row of logits, in units of the row's spread
static double apart(const float *a, const float *b) {
    double sum = 0, worst = 0;
    for (int i = 0; i < VOCAB; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d;
        sum += (double)b[i] * b[i];
    }
    return worst / sqrt(sum / VOCAB);
}

// numbers in one of two ascending lists and not in the other
static size_t alone(const IntVec *a, const IntVec *b) {
    size_t i = 0, j = 0, n = 0;
    while (i < a->n || j < b->n) {
        bool both = i < a->n && j < b->n && a->p[i] == b->p[j],
             first = j >= b->n || (i < a->n && a->p[i] < b->p[j]);
        n += !both;
        i += both || first;
        j += both || !first;
    }
    return n;
}

static void failed(bool bad, const char *what) {
    if (!bad) return;
    twin_failures++;
    printf("%s\n", what);
}

static void compare(Model *cpu, Model *gpu, const Case *c) {
    Method m = method_of(c);
    Seen *want = (Seen *)xrealloc(NULL, 3 * sizeof *want), *got = want + 1, *again = want + 2;
    double worst = 0, first = 0, ratio = 0;
    int other = 0, lists = 0;
    size_t differ = 0, kept = 0, rows = 0, moved = 0;
    bool evicts = method_evicts(&m), reads = method_in_cache(&m) && !evicts;
    memset(want, 0, 3 * sizeof *want);
    play(cpu, &m, c->shared, want);
    play(gpu, &m, c->shared, got);
    play(gpu, &m, c->shared, again);
    failed(want->n != got->n || want->n_lists != got->n_lists, "another number of feeds");
    twin_equal("logits when repeated", &again->logits[0][0], &got->logits[0][0],
               (size_t)got->n * VOCAB);
    twin_equal("pairs when repeated", again->ratio, got->ratio, (size_t)got->n);
    for (int i = 0; i < want->n; i++) {
        worst = fmax(worst, apart(got->logits[i], want->logits[i]));
        if (i == 0) first = worst;
        ratio = fmax(ratio, fabs(got->ratio[i] / want->ratio[i] - 1));
    }
    for (int i = 0; i < want->n_lists; i++) {
        size_t n = alone(&want->list[i], &got->list[i]);
        failed(want->len[i] != got->len[i], "lists over other numbers of keys");
        lists += want->list[i].n > 0;
        other += n > 0;
        differ += n;
        kept += want->list[i].n;
        failed(alone(&again->list[i], &got->list[i]) > 0, "other lists when repeated");
    }
    for (int i = 0; i < LAYERS * HEADS; i++) {
        moved += alone(&want->rows[i], &got->rows[i]);
        rows += want->rows[i].n;
    }
    printf("%s %s%s%s: logits within %.2g of the CPU's, pairs %.4f within %.2g; %d of %d lists "
           "differ, in %zu of %zu columns and distances; %zu of %zu rows\n", c->name, c->set,
           c->file ? " pattern" : "", c->shared ? " shared" : "", worst, got->ratio[1], ratio,
           other, lists, differ, kept, moved, rows);
    failed(!(first <= 0.05), "logits of the prefill are too far from the CPU's");
    // one row or page of another choice is seen in logits
    failed(!(worst <= (moved || reads ? 0.5 : 0.05)), "logits are too far from the CPU's");
    failed(moved * 20 > (evicts ? rows : 0), "rows are not the CPU's");
    failed(got->ratio[1] == 1, "the prefill was dense");
    failed(ratio > (c->estimated ? 0.02 : 0), "pairs are not the CPU's");
    failed((lists > 0) != c->estimated || differ * 50 > kept, "lists are not the CPU's");
    for (int i = 0; i < LAYERS * HEADS; i++) {
        free(want->rows[i].p);
        free(got->rows[i].p);
        free(again->rows[i].p);
    }
    for (int i = 0; i < MOST_LISTS; i++) {
        free(want->list[i].p);
        free(got->list[i].p);
        free(again->list[i].p);
    }
    free(want);
}

static Model *opened(bool device) {
    ModelOpts opts = { 100, false, 0, device };         // chunks of 128 rows
    Err err;
    Model *m = model_random(&shape, &opts, 5, &err);
    need(m ? 0 : -1, &err);
    return m;
}

int main(void) {
    int rc = twin_begin();
    Err err;
    if (rc) return rc;
    need(cpu_init(1, &err), &err);
    Model *cpu = opened(false), *gpu = opened(true);
    for (size_t i = 0; i < COUNTOF(cases); i++) compare(cpu, gpu, &cases[i]);
    model_close(cpu);
    model_close(gpu);
    return twin_end("prefill");
}
