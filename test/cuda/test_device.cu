// test_device.cu - whole models on the device against the same models on the CPU: logits of feeds
// and steps, alone, forked, marked, in a batch and on a shared context; the same bits when repeated.
#include "twin.h"
#include "model.h"                          // a model's device, to see what it replayed
#include "products.h"

static ModelFile file;
static int vocab;

static void need(int rc, const Err *err) {
    if (!rc) return;
    printf("%s\n", err->msg);
    exit(1);
}

static Model *opened(bool device) {
    ModelOpts opts = { 64, false, 0, device };
    Err err;
    Model *m = model_open(&file, &opts, &err);
    need(m ? 0 : -1, &err);
    vocab = model_config(m)->vocab_size;
    return m;
}

static int32_t id_at(int seed, int i) {
    return (int32_t)(mix64((uint64_t)seed * 1000003u + (uint64_t)i) % (uint64_t)vocab);
}

enum { KEPT = 64 };
typedef struct { float *p; int n; } Trace;      // logits (n, V) in the order they came

static void keep(Trace *t, const Branch *b) {
    CHECK(t->n < KEPT, "a trace of %d", t->n);
    memcpy(t->p + (size_t)t->n++ * vocab, branch_logits(b), (size_t)vocab * sizeof(float));
}

static void feed(Branch *b, int seed, int n, unsigned flags, Trace *t) {
    Err err;
    int32_t *ids = (int32_t *)xrealloc(NULL, ((size_t)n + 1) * sizeof *ids);
    for (int i = 0; i < n; i++) ids[i] = id_at(seed, i);
    need(branch_feed(b, ids, n, flags, &err), &err);
    if (!(flags & FEED_NO_LOGITS)) keep(t, b);
    free(ids);
}

static void steps(Branch *b, int seed, int n, Trace *t) {
    Err err;
    for (int i = 0; i < n; i++) {
        need(branch_step(b, id_at(seed, i), &err), &err);
        keep(t, b);
    }
}

static Method method_of(const char *name, int ctx, int budget) {
    Method m;
    Err err;
    need(method_find(name, &m, &err), &err);
    need(method_resolve(&m, PRESET_SCBENCH, ctx, budget, -1, &err), &err);
    return m;
}

// a root of its own: two feeds, steps, a mark that is rewound, a fork that goes its own way
static void root(Model *m, const Method *method, Trace *t) {
    Err err;
    Branch *b = branch_open(m, NULL, method, 8, &err);
    need(b ? 0 : -1, &err);
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
static void shared(Model *m, const Method *method, Trace *t) {
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

static Trace played(Model *m, Play play, const Method *method) {
    Trace t = { (float *)xrealloc(NULL, sizeof(float) * KEPT * (size_t)vocab), 0 };
    play(m, method, &t);
    return t;
}

// worst difference of a row of logits, in units of the row's spread
static double apart(const float *a, const float *b) {
    double sum = 0, worst = 0;
    for (int i = 0; i < vocab; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d;
        sum += (double)b[i] * b[i];
    }
    return worst / sqrt(sum / vocab);
}

static void compare(const char *path, const char *what, Model *cpu, Model *gpu, Play play,
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
        double d = apart(got.p + (size_t)i * vocab, want.p + (size_t)i * vocab);
        if (!(d <= worst)) worst = d;
    }
    twin_equal(what, again.p, got.p, (size_t)got.n * vocab);
    printf("%s, %s, %s: logits within %.2g of the CPU's (%d rows)\n", path, what, name, worst,
           want.n);
    if (!(worst <= tol)) twin_failures++;
    free(want.p);
    free(got.p);
    free(again.p);
}

static void seen(void *user, int layer, int first, int n, const float *x) {
    Trace *t = (Trace *)user;
    (void)layer; (void)first;
    memcpy(t->p, x + (size_t)(n - 1) * t->n, sizeof(float) * (size_t)t->n);
}

// the residual stream of the last layer as a tap sees it
static void tapped(Model *cpu, Model *gpu) {
    int E = model_config(cpu)->dim;
    Trace x[2] = { { (float *)xrealloc(NULL, sizeof(float) * (size_t)E), E },
                   { (float *)xrealloc(NULL, sizeof(float) * (size_t)E), E } };
    Method full = method_of("full", 160, 0);
    double worst = 0;
    for (int i = 0; i < 2; i++) {
        Tap tap = { seen, &x[i] }, none = { NULL, NULL };
        Model *m = i ? gpu : cpu;
        Err err;
        Trace t = { (float *)xrealloc(NULL, sizeof(float) * KEPT * (size_t)vocab), 0 };
        Branch *b = branch_open(m, NULL, &full, 8, &err);
        model_set_tap(m, tap);
        feed(b, 1, 20, FEED_FIRST, &t);
        steps(b, 2, 2, &t);
        model_set_tap(m, none);
        branch_drop(b);
        free(t.p);
    }
    double sum = 0;
    for (int i = 0; i < E; i++) {
        worst = fmax(worst, fabs((double)x[0].p[i] - x[1].p[i]));
        sum += (double)x[0].p[i] * x[0].p[i];
    }
    worst /= sqrt(sum / E);
    printf("tapped: the residual stream within %.2g of its size\n", worst);
    if (!(worst <= 0.05)) twin_failures++;
    free(x[0].p);
    free(x[1].p);
}

int main(void) {
    int rc = twin_begin();
    Err err;
    if (rc) return rc;
    need(cpu_init(1, &err), &err);
    static const char *const files[] = { "data/tiny_llama.bin" };
    for (size_t i = 0; i < COUNTOF(files); i++) {
        need(file_open(&file, files[i], false, &err), &err);
        Model *cpu = opened(false), *gpu = opened(true);
        compare(files[i], "root", cpu, gpu, root, "full", 0, 0.05);
        compare(files[i], "shared", cpu, gpu, shared, "full", 0, 0.05);
        tapped(cpu, gpu);
        Ceilings top = model_ceilings(gpu, 1 << 16, 0);
        if (!(top.tile_tflops > 0 && top.read_gbs > 0)) twin_failures++;
        model_close(cpu);
        model_close(gpu);
        file_close(&file);
    }
    return twin_end("device");
}
