// test_goldens.c - random models against activations of the reference implementation
// (data/goldens/README.md). f32: max|a-b| / rms(b) <= 1e-4 after every layer and in the logits,
// 1e-3 where layers are recurrent.
// bf16: against fp32 on the rounded weights our error is at most 1.5 times that of the reference
// running in bf16. The same tokens in several feeds, after a mark and its rewind, and on a fork
// give the same bits.
#include "scb.h"
#include <glob.h>
#include <jansson.h>

enum { KEPT = 2 };                          // last rows that the goldens hold
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { LONGEST = 33 };                      // minutes otherwise; the oracle tests go to chunk edges
#else
enum { LONGEST = INT_MAX };
#endif
static const double F32_BOUND = 1e-4, SSM_BOUND = 1e-3, BF16_SHARE = 1.5;

static int failures, checks;
static const char *python;
static char dir[] = "/tmp/scb_goldens.XXXXXX";

// ---------------------------------------------------------------------------
// A golden file, read word by word

typedef struct {
    const char *path;
    FILE *f;
    int n_layers, dim, vocab, n_lengths;
} Gold;

static void words(Gold *g, void *dst, size_t n) {
    CHECK(fread(dst, 4, n, g->f) == n, "%s ends too early", g->path);
}

static int word(Gold *g) {
    int32_t x;
    words(g, &x, 1);
    return x;
}

static void gold_open(Gold *g, const char *path) {
    char magic[4];
    g->path = path;
    g->f = fopen(path, "rb");
    CHECK(g->f, "%s: %s", path, strerror(errno));
    words(g, magic, 1);
    CHECK(!memcmp(magic, "GOLD", 4) && word(g) == 1, "%s is not a golden file", path);
    g->n_layers = word(g);
    g->dim = word(g);
    g->vocab = word(g);
    g->n_lengths = word(g);
}

// per layer: rms and the last rows; logits
typedef struct { float *rms, *rows, *logits; } Acts;

static Acts acts_new(const Gold *g) {
    Acts a;
    a.rms = (float *)calloc((size_t)g->n_layers, sizeof *a.rms);
    a.rows = (float *)calloc((size_t)g->n_layers * KEPT * (size_t)g->dim, sizeof *a.rows);
    a.logits = (float *)calloc((size_t)g->vocab, sizeof *a.logits);
    return a;
}

static void acts_free(Acts *a) {
    free(a->rms);
    free(a->rows);
    free(a->logits);
}

static float *rows_of(const Acts *a, const Gold *g, int layer) {
    return a->rows + (size_t)layer * KEPT * (size_t)g->dim;
}

static void acts_read(Gold *g, Acts *a, int kept) {
    for (int l = 0; l < g->n_layers; l++) {
        words(g, a->rms + l, 1);
        words(g, rows_of(a, g, l), (size_t)kept * (size_t)g->dim);
    }
    words(g, a->logits, (size_t)g->vocab);
}

// ---------------------------------------------------------------------------
// The same from our model

typedef struct {
    const Gold *g;
    Acts *a;
    int n, kept;
    double *squares;                        // (L)
    int *seen;                              // (L) rows
} Collect;

static void collect(void *user, int layer, int first, int n, const float *x) {
    Collect *c = (Collect *)user;
    int E = c->g->dim;
    double squares = 0;
    for (size_t i = 0; i < (size_t)n * (size_t)E; i++) squares += (double)x[i] * (double)x[i];
    c->squares[layer] += squares;
    for (int i = 0; i < n; i++) {
        int row = first + i - (c->n - c->kept);
        float *to = rows_of(c->a, c->g, layer) + row * E;
        if (row >= 0) memcpy(to, x + i * E, (size_t)E * sizeof *x);
    }
    c->seen[layer] += n;
}

static Branch *open_full(Model *m, int n) {
    Err err = {0};
    Method full = {0};
    CHECK(!method_find("full", &full, &err), "%s", err.msg);
    CHECK(!method_resolve(&full, PRESET_SCBENCH, n, 0, -1, &err), "%s", err.msg);
    Branch *b = branch_open(m, NULL, &full, n, &err);
    CHECK(b, "%s", err.msg);
    return b;
}

static void feed(Branch *b, const int32_t *ids, int n, unsigned flags) {
    Err err = {0};
    if (n) CHECK(!branch_feed(b, ids, n, flags, &err), "%s", err.msg);
}

static void same_logits(const Gold *g, const char *how, int n, const Branch *b, const Acts *a) {
    checks++;
    if (!memcmp(branch_logits(b), a->logits, (size_t)g->vocab * sizeof *a->logits)) return;
    failures++;
    printf("%s, %d tokens: other logits %s than in one feed\n", g->path, n, how);
}

// a third, then other tokens that are taken back; the rest on a fork in two feeds, and on the
// branch itself with the last three as steps
static void other_ways(Model *m, const Gold *g, const int32_t *ids, int n, const Acts *a) {
    Err err = {0};
    int part = n / 3, mid = part + (n - part) / 2;
    Branch *b = open_full(m, n);
    feed(b, ids, part, FEED_FIRST);
    Mark *k = branch_mark(b);
    feed(b, ids + mid, n - mid, 0);
    branch_rewind(b, k);
    Branch *fork = branch_fork(b, 0, &err);
    CHECK(fork, "%s", err.msg);
    feed(fork, ids + part, mid - part, 0);
    feed(fork, ids + mid, n - mid, 0);
    same_logits(g, "on a fork in three feeds", n, fork, a);
    branch_drop(fork);
    feed(b, ids + part, n - part - 3, 0);
    for (int i = n - 3; i < n; i++) CHECK(!branch_step(b, ids[i], &err), "%s", err.msg);
    same_logits(g, "after a rewind, in steps", n, b, a);
    branch_drop(b);
}

static void run(Model *m, const Gold *g, uint64_t seed, int n, int kept, Acts *a) {
    IntVec ids = {0};
    Collect c = { .g = g, .a = a, .n = n, .kept = kept };
    c.squares = (double *)calloc((size_t)g->n_layers, sizeof *c.squares);
    c.seen = (int *)calloc((size_t)g->n_layers, sizeof *c.seen);
    for (int i = 0; i < n; i++)
        ints_push(&ids, (int32_t)(mix64(seed * 1000003 + (uint64_t)i) % 256));
    Branch *b = open_full(m, n);
    Tap tap = { collect, &c }, none = { NULL, NULL };
    model_set_tap(m, tap);
    feed(b, ids.p, n, FEED_FIRST);
    model_set_tap(m, none);
    memcpy(a->logits, branch_logits(b), (size_t)g->vocab * sizeof *a->logits);
    branch_drop(b);
    for (int l = 0; l < g->n_layers; l++) {
        CHECK(c.seen[l] == n, "the tap saw %d of %d rows of layer %d", c.seen[l], n, l);
        a->rms[l] = (float)sqrt(c.squares[l] / ((double)n * g->dim));
    }
    if (n > 30 && n < 600) other_ways(m, g, ids.p, n, a);
    free(c.squares);
    free(c.seen);
    free(ids.p);
}

// ---------------------------------------------------------------------------
// Comparison

static double worst(const float *a, const float *b, int n) {
    double w = 0;
    for (int i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= w)) w = d;               // a NaN stays
    }
    return w;
}

static double rms(const float *a, int n) {
    double s = 0;
    for (int i = 0; i < n; i++) s += (double)a[i] * (double)a[i];
    return sqrt(s / n);
}

// layer L: the logits; largest: the worst error as a share of its bound
static void expect(const char *what, int n, int layer, double err, double bound, double *largest) {
    checks++;
    if (!(err / bound <= *largest)) *largest = err / bound;
    if (err <= bound) return;
    failures++;
    printf("%s, %d tokens, layer %d: error %.3g, at most %.3g is allowed\n", what, n, layer, err,
           bound);
}

// f32: its bound; reference: its errors in bf16, or NULL for f32
static void compare(const Gold *g, const char *what, int n, int kept, const Acts *ours,
                    const Acts *want, double f32, const float *reference, double *largest) {
    for (int l = 0; l <= g->n_layers; l++) {
        double bound = reference ? BF16_SHARE * (double)reference[l] : f32;
        if (l == g->n_layers) {
            double err = worst(ours->logits, want->logits, g->vocab);
            expect(what, n, l, err / rms(want->logits, g->vocab), bound, largest);
            continue;
        }
        double scale = (double)want->rms[l];
        double err = worst(rows_of(ours, g, l), rows_of(want, g, l), kept * g->dim);
        expect(what, n, l, err / scale, bound, largest);
        expect(what, n, l, fabs((double)ours->rms[l] - scale) / scale, bound, largest);
    }
}

// ---------------------------------------------------------------------------
// Models

// the result must be looked at, even by clean
static int shell(const char *command) { return system(command); }

static const char *find_python(void) {
    static const char *const names[] = { ".venv/bin/python", "python3" };
    char command[128];
    for (size_t i = 0; i < COUNTOF(names); i++) {
        snprintf(command, sizeof command, "%s -c 'import numpy, xxhash' 2>/dev/null", names[i]);
        if (!shell(command)) return names[i];
    }
    return NULL;
}

static void clean(void) {
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    shell(command);
}

// what the shape file says to the test alone
static uint64_t golden_key(const char *shape, const char *key, uint64_t otherwise) {
    json_error_t why;
    json_t *j = json_load_file(shape, 0, &why);
    CHECK(j, "%s: %s", shape, why.text);
    json_t *v = json_object_get(j, key);
    uint64_t s = v ? (uint64_t)json_integer_value(v) : otherwise;
    json_decref(j);
    return s;
}

static Model *make_model(const char *shape, uint64_t seed, const char *dtype, ModelFile *f) {
    static char path[64];
    char command[512], max_ctx[40] = "";
    Err err = {0};
    uint64_t longest = golden_key(shape, "golden_max_ctx", 0);
    if (longest) snprintf(max_ctx, sizeof max_ctx, "--max-ctx %d", (int)longest);
    snprintf(path, sizeof path, "%s/%s.bin", dir, dtype);
    snprintf(command, sizeof command, "%s export.py --random %llu --shape %s --dtype %s %s %s",
             python, (unsigned long long)seed, shape, dtype, max_ctx, path);
    CHECK(!shell(command), "%s failed", command);
    ModelOpts opts = {0};
    CHECK(!file_open(f, path, true, &err), "%s", err.msg);
    Model *m = model_open(f, &opts, &err);
    CHECK(m, "%s", err.msg);
    return m;
}

static void test_shape(const char *path) {
    char shape[256], what[300];
    snprintf(shape, sizeof shape, "%.*s.json", (int)(strlen(path) - 5), path);
    uint64_t seed = golden_key(shape, "golden_seed", 0);
    CHECK(seed, "%s has no golden_seed", shape);
    static const char *const dtypes[] = { "f32", "bf16" };
    ModelFile file[2];
    Model *m[2];
    double largest[2] = { 0, 0 };
    for (int k = 0; k < 2; k++) m[k] = make_model(shape, seed, dtypes[k], file + k);

    double f32 = config_state_bytes(model_config(m[0])) ? SSM_BOUND : F32_BOUND;

    Gold g;
    gold_open(&g, path);
    Acts want[2] = { acts_new(&g), acts_new(&g) }, ours = acts_new(&g);
    float *reference = (float *)calloc((size_t)g.n_layers + 1, sizeof *reference);
    for (int i = 0; i < g.n_lengths; i++) {
        int n = word(&g), kept = n < KEPT ? n : KEPT;
        for (int k = 0; k < 2; k++) acts_read(&g, want + k, kept);
        words(&g, reference, (size_t)g.n_layers + 1);
        for (int k = 0; k < 2 && n <= LONGEST; k++) {
            snprintf(what, sizeof what, "%s, %s", shape, dtypes[k]);
            run(m[k], &g, seed, n, kept, &ours);
            compare(&g, what, n, kept, &ours, want + k, f32, k ? reference : NULL, largest + k);
        }
    }
    printf("%s: largest error as a share of its bound: f32 %.3f, bf16 %.3f\n", shape, largest[0],
           largest[1]);
    for (int k = 0; k < 2; k++) {
        model_close(m[k]);
        file_close(file + k);
        acts_free(want + k);
    }
    acts_free(&ours);
    free(reference);
    fclose(g.f);
}

// test_goldens [NAME]: one shape, or all
int main(int argc, char **argv) {
    Err err = {0};
    python = find_python();
    if (!python) {
        puts("no Python with numpy and xxhash to make the models with: run test/venv.sh");
        return 77;
    }
    CHECK(!cpu_init(0, &err), "%s", err.msg);
    CHECK(mkdtemp(dir), "%s: %s", dir, strerror(errno));
    atexit(clean);
    char which[128];
    glob_t found;
    snprintf(which, sizeof which, "data/goldens/%.64s.gold", argc > 1 ? argv[1] : "*");
    CHECK(!glob(which, 0, NULL, &found), "there are no %s", which);
    for (size_t i = 0; i < found.gl_pathc; i++) test_shape(found.gl_pathv[i]);
    globfree(&found);
    printf("%d comparisons, %d failed\n", checks, failures);
    return failures != 0;
}
