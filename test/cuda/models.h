// models.h - what the tests of whole models on the device share: a play of feeds and steps on one
// model, its logits on the CPU and on the device, and how far they are apart.
#ifndef MODELS_H
#define MODELS_H
#ifdef __cplusplus
#include "twin.h"
#include "model.h"                          // a model's device, to see what it replayed
#include "products.h"

static ModelFile file;
static int n_vocab;

static inline void need(int rc, const Err *err) {
    if (!rc) return;
    printf("%s\n", err->msg);
    exit(1);
}

static inline Model *opened(bool device) {
    ModelOpts opts = { 64, false, 0, device, false };
    Err err;
    Model *m = model_open(&file, &opts, &err);
    need(m ? 0 : -1, &err);
    n_vocab = model_config(m)->vocab_size;
    return m;
}

static inline int32_t id_at(int seed, int i) {
    return (int32_t)(mix64((uint64_t)seed * 1000003u + (uint64_t)i) % (uint64_t)n_vocab);
}

enum { KEPT = 64 };
typedef struct { float *p; int n; } Trace;      // logits (n, V) in the order they came

static inline void keep(Trace *t, const Branch *b) {
    CHECK(t->n < KEPT, "a trace of %d", t->n);
    memcpy(t->p + (size_t)t->n++ * n_vocab, branch_logits(b), (size_t)n_vocab * sizeof(float));
}

static inline void feed(Branch *b, int seed, int n, unsigned flags, Trace *t) {
    Err err;
    int32_t *ids = (int32_t *)xrealloc(NULL, ((size_t)n + 1) * sizeof *ids);
    for (int i = 0; i < n; i++) ids[i] = id_at(seed, i);
    need(branch_feed(b, ids, n, flags, &err), &err);
    if (!(flags & FEED_NO_LOGITS)) keep(t, b);
    free(ids);
}

static inline void steps(Branch *b, int seed, int n, Trace *t) {
    Err err;
    for (int i = 0; i < n; i++) {
        need(branch_step(b, id_at(seed, i), &err), &err);
        keep(t, b);
    }
}

static inline Method method_of(const char *name, int ctx, int budget) {
    Method m;
    Err err;
    need(method_find(name, &m, &err), &err);
    need(method_resolve(&m, PRESET_SCBENCH, ctx, budget, -1, &err), &err);
    return m;
}

// a root of its own: feeds, steps, a mark that is rewound, a fork that goes its own way, a cut
static inline void root(Model *m, const Method *method, Trace *t) {
    Err err;
    Branch *b = branch_open(m, NULL, method, 8, &err);
    need(b ? 0 : -1, &err);
    branch_keep(b, 120);
    feed(b, 1, 150, FEED_FIRST, t);
    steps(b, 2, 3, t);
    Mark *k = branch_mark(b);
    feed(b, 3, 40, 0, t);
    steps(b, 4, 2, t);
    branch_rewind(b, k);
    feed(b, 5, 17, 0, t);
    Branch *f = branch_fork(b, 4, &err);
    need(f ? 0 : -1, &err);
    steps(f, 6, 2, t);
    steps(b, 7, 2, t);
    branch_cut(b, 120);
    feed(b, 8, 9, 0, t);
    branch_drop(f);
    branch_drop(b);
}

// three requests on one context, that answer together
static inline void shared(Model *m, const Method *method, Trace *t) {
    enum { N = 3 };
    Err err;
    Branch *b[N];
    int32_t ids[100];
    Needs needs = { 0, 0, GROUP_MEAN };
    method_needs(method, &needs);
    for (int i = 0; i < 100; i++) ids[i] = id_at(11, i);
    Context *c = context_open(m, ids, 100, &needs, &err);
    need(c ? 0 : -1, &err);
    for (int i = 0; i < N; i++) {
        b[i] = branch_open(m, c, method, 16, &err);
        need(b[i] ? 0 : -1, &err);
        feed(b[i], 12 + i, 7 + 5 * i, FEED_FIRST, t);
    }
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < N; i++) ids[i] = id_at(20 + i, k);
        need(branches_step(b, ids, N, &err), &err);
        for (int i = 0; i < N; i++) keep(t, b[i]);
    }
    for (int i = 0; i < N; i++) branch_drop(b[i]);
    context_drop(c);
}

typedef void (*Play)(Model *m, const Method *method, Trace *t);

static inline Trace played(Model *m, Play play, const Method *method) {
    Trace t = { (float *)xrealloc(NULL, sizeof(float) * KEPT * (size_t)n_vocab), 0 };
    play(m, method, &t);
    return t;
}

// worst difference of a row of logits, in units of the row's spread
static inline double apart(const float *a, const float *b) {
    double sum = 0, worst = 0;
    for (int i = 0; i < n_vocab; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d;
        sum += (double)b[i] * b[i];
    }
    return worst / sqrt(sum / n_vocab);
}

static inline void compare(const char *path, const char *what, Model *cpu, Model *gpu, Play play,
                    const char *name, int budget, double tol) {
    Method method = method_of(name, 160, budget);
    int64_t replayed = device_replays(gpu->device);
    bool replays = !method_at_steps(&method) && !gpu->c.n_experts;
    Trace want = played(cpu, play, &method), got = played(gpu, play, &method),
          again = played(gpu, play, &method);
    double worst = 0;
    if (replays && device_replays(gpu->device) == replayed) {
        printf("%s, %s, %s: no step was replayed\n", path, what, name);
        twin_failures++;
    }
    for (int i = 0; i < want.n; i++) {
        double d = apart(got.p + (size_t)i * n_vocab, want.p + (size_t)i * n_vocab);
        if (!(d <= worst)) worst = d;
    }
    twin_equal(what, again.p, got.p, (size_t)got.n * n_vocab);
    printf("%s, %s, %s: logits within %.2g of the CPU's (%d rows)\n", path, what, name, worst,
           want.n);
    if (!(worst <= tol)) twin_failures++;
    free(want.p);
    free(got.p);
    free(again.p);
}

// a model file under method full: a context that is shared, and a root too
static inline void model_plays(const char *path, const char *name, bool root_too, double tol) {
    Err err;
    need(file_open(&file, path, false, &err), &err);
    Model *cpu = opened(false), *gpu = opened(true);
    if (root_too) compare(name, "root", cpu, gpu, root, "full", 0, tol);
    compare(name, "shared", cpu, gpu, shared, "full", 0, tol);
    model_close(cpu);
    model_close(gpu);
    file_close(&file);
}
#endif
#endif
