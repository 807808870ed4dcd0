// test_plan.c - bytes: the plan against the measured peak of the model's account, and what a branch
// holds after its first feed, to the byte. Models small enough that rows, not weights, decide.
#include "tinyssm.h"

#ifdef __SANITIZE_ADDRESS__
enum { FIRST = 700, LATER = 60, STEPS = 6 };      // the same paths in bearable time
#else
enum { FIRST = 3000, LATER = 120, STEPS = 40 };
#endif

static int failures;
static void expect(bool ok, const char *what, double got, double want) {
    if (ok) return;
    failures++;
    printf("%s: %.0f, expected %.0f\n", what, got, want);
}

static const TinySpec spec_small = { .dim = 64,
                                     .hidden_dim = 96,
                                     .n_layers = SANITIZED ? 3 : 12,
                                     .n_heads = 6,
                                     .n_kv_heads = 2,
                                     .head_dim = 64,
                                     .dtype = DT_BF16,
                                     .tied = true,
                                     .sharp = 8,
                                     .seed = 3 };
static const TinySpec spec_f32 = { .dim = 48,
                                   .hidden_dim = 64,
                                   .n_layers = 7,
                                   .n_heads = 4,
                                   .n_kv_heads = 4,
                                   .head_dim = 32,
                                   .dtype = DT_F32,
                                   .sharp = 8,
                                   .seed = 4 };

typedef struct {
    const TinySpec *spec;
    const char *method;
    int n_first, budget;
    bool shared;
} Point;
static const Point points[] = {         // (model, context, method)
    { &spec_small, "full", FIRST, 0, false }, { &spec_small, "keep-last", FIRST, 256, false },
    { &spec_small, "streamingllm", FIRST, 400, false }, { &spec_f32, "full", 1000, 0, false },
    { &spec_f32, "keep-last", FIRST, 1500, false }, { &spec_small, "full", FIRST, 0, true },
    { &spec_small, "corm", FIRST, 0, false }, { &spec_f32, "corm", FIRST / 2, 0, false },
    { &spec_small, "snapkv", FIRST, 400, false }, { &spec_small, "snapkv", FIRST, 300, true },
    { &spec_small, "h2o", FIRST, 400, false }, { &spec_f32, "tova", FIRST, 300, false },
};

static void ids_of(int32_t *ids, int n) {
    for (int i = 0; i < n; i++) ids[i] = (int32_t)(mix64((uint64_t)i) % 250);
}

static Method method_of(const Point *p) {
    Method m;
    Err err;
    CHECK(!method_find(p->method, &m, &err), "%s", err.msg);
    if (!strcmp(p->method, "corm"))
        CHECK(!method_set(&m, "window", "96", &err) && !method_set(&m, "protect", "32", &err), "%s",
              err.msg);
    CHECK(!method_resolve(&m, PRESET_SCBENCH, p->n_first, p->budget, POSITIONS_ORIGINAL, &err),
          "%s", err.msg);
    return m;
}

static int64_t rows_of(const Branch *b, const Config *c) {
    return (int64_t)(branch_stats(b).rows_mean * c->n_layers * c->n_kv_heads + 0.5);
}

// requests of one session that answer together: a context, a root and a fork per request
typedef struct { const char *method; int budget, forks; } BatchPoint;
static const BatchPoint batch_points[] = {
    { "full", 0, 5 }, { "keep-last", 300, 5 }, { "snapkv", 300, 4 }, { "h2o", 400, 3 },
};
// models with recurrent state, alone: a mark during the answer, a second feed
static const struct { const char *name; Config c; const char *method; } recurrent[] = {
    { "mamba2",
      { .arch = ARCH_MAMBA2, .vocab_size = TINY_VOCAB, .dim = 64, .n_layers = 6, .max_ctx = 8192,
        .norm_eps = 1e-5f, .ssm_inner = 256, .ssm_state = 64, .ssm_conv = 4, .ssm_heads = 8,
        .ssm_head_dim = 32, .ssm_groups = 8, .norm_groups = 8, .dtype = DT_BF16 }, "full" },
    { "jamba",
      { .arch = ARCH_JAMBA, .vocab_size = TINY_VOCAB, .dim = 48, .hidden_dim = 72, .n_layers = 8,
        .n_heads = 4, .n_kv_heads = 2, .head_dim = 32, .max_ctx = 8192, .norm_eps = 1e-6f,
        .attn_period = 4, .attn_offset = 2, .n_experts = 4, .n_experts_used = 2,
        .expert_period = 2, .expert_offset = 1, .ssm_inner = 96, .ssm_state = 16, .ssm_conv = 4,
        .ssm_dt_rank = 5, .dtype = DT_BF16 }, "full" },
};

// what corm keeps is ragged over heads and layers, and the block of a head is just its rows +
// reserve
static void check_after_first_feed(const Point *p, const Branch *b, const Config *c, int reserve) {
    BranchStats st = branch_stats(b);
    int64_t heads = (int64_t)c->n_layers * c->n_kv_heads, rows = rows_of(b, c);
    size_t row = config_row_bytes(c), want = (size_t)(rows + heads * reserve) * row;
    if (p->shared)
        want = (size_t)(heads * (p->n_first - 100) + heads * (reserve > 100 ? reserve : 100)) * row;
    expect(st.kv_alloc_bytes == want, "allocated bytes after the first feed",
           (double)st.kv_alloc_bytes, (double)want);
    if (strcmp(p->method, "corm")) return;
    expect(st.rows_min < st.rows_max, "corm keeps as many rows in every head", st.rows_min,
           st.rows_max);
    expect(st.rows_max < p->n_first, "corm kept everything", st.rows_max, p->n_first);
}

static void run_point(const Point *p, const char *dir) {
    static int32_t ids[FIRST + LATER];
    char path[512];
    ModelFile f;
    Err err;
    Method m = method_of(p);
    snprintf(path, sizeof path, "%s/m.bin", dir);
    tiny_write(p->spec, path);
    ids_of(ids, FIRST + LATER);
    CHECK(!file_open(&f, path, false, &err), "%s", err.msg);
    Model *model = model_open(&f, NULL, &err);
    CHECK(model, "%s", err.msg);
    const Config *c = model_config(model);
    int reserve = LATER + STEPS, n_ctx = p->n_first - 100;
    Needs needs = { 0 };
    method_needs(&m, &needs);
    Context *ctx = p->shared ? context_open(model, ids, n_ctx, &needs, &err) : NULL;
    Branch *b = branch_open(model, ctx, &m, p->shared ? reserve + 100 : reserve, &err);
    int at = p->shared ? n_ctx : 0;
    CHECK(!branch_feed(b, ids + at, p->n_first - at, FEED_FIRST, &err), "%s", err.msg);
    check_after_first_feed(p, b, c, p->shared ? reserve + 100 : reserve);
    int64_t heads = (int64_t)c->n_layers * c->n_kv_heads, kept = CEIL_DIV(rows_of(b, c), heads);
    Mark *k = branch_mark(b);
    for (int i = 0; i < STEPS; i++) CHECK(!branch_step(b, ids[i], &err), "%s", err.msg);
    branch_rewind(b, k);
    CHECK(!branch_feed(b, ids + p->n_first, LATER, 0, &err), "%s", err.msg);
    size_t peak = model_mem(model)->high;
    bool corm = !strcmp(p->method, "corm");
    Plan plan = plan_run(c, &m, n_ctx, p->n_first, reserve, p->shared, corm ? kept : -1, 512);
    Plan bound = plan_run(c, &m, n_ctx, p->n_first, reserve, p->shared, -1, 512);
    char what[120];
    snprintf(what, sizeof what, "plan of %s at %d, %s (measured peak first)", p->method, p->n_first,
             p->shared ? "shared" : "alone");
    expect(fabs((double)plan.total / (double)peak - 1) <= 0.03, what, (double)peak,
           (double)plan.total);
    if (corm)
        expect(bound.upper_bound && bound.total >= peak, "corm's plan is no upper bound",
               (double)bound.total, (double)peak);
    printf("%-13s %5d %-6s rows %7.1f  peak %9zu  plan %9zu  %+.2f %%\n", p->method, p->n_first,
           p->shared ? "shared" : "alone", branch_stats(b).rows_mean, peak, plan.total,
           100.0 * ((double)plan.total / (double)peak - 1));
    branch_drop(b);
    context_drop(ctx);
    model_close(model);
    file_close(&f);
    unlink(path);
}

static void expect_plan(const char *what, const Plan *plan, size_t peak) {
    expect(fabs((double)plan->total / (double)peak - 1) <= 0.03, what, (double)peak,
           (double)plan->total);
    printf("%-28s peak %9zu  plan %9zu  %+.2f %%\n", what, peak, plan->total,
           100.0 * ((double)plan->total / (double)peak - 1));
}

static void run_batch(const BatchPoint *p, const char *dir) {
    static int32_t ids[FIRST + LATER];
    Point one = { &spec_small, p->method, FIRST, p->budget, true };
    char path[512], what[64];
    ModelFile f;
    Err err;
    Method m = method_of(&one);
    Branch *b[8];
    snprintf(path, sizeof path, "%s/m.bin", dir);
    tiny_write(&spec_small, path);
    ids_of(ids, FIRST + LATER);
    CHECK(!file_open(&f, path, false, &err), "%s", err.msg);
    Model *model = model_open(&f, NULL, &err);
    CHECK(model, "%s", err.msg);
    Needs needs = { 0 };
    method_needs(&m, &needs);
    Context *ctx = context_open(model, ids, FIRST, &needs, &err);
    Branch *root = branch_open(model, ctx, &m, 0, &err);
    CHECK(!branch_feed(root, ids, 0, FEED_FIRST | FEED_NO_LOGITS, &err), "%s", err.msg);
    for (int i = 0; i < p->forks; i++) {
        b[i] = branch_fork(root, LATER + STEPS, &err);
        CHECK(!branch_feed(b[i], ids + FIRST, LATER, 0, &err), "%s", err.msg);
    }
    for (int k = 0; k < STEPS; k++)
        CHECK(!branches_step(b, ids + k, p->forks, &err), "%s", err.msg);
    const Config *c = model_config(model);
    Plan plan = plan_run(c, &m, FIRST, FIRST, LATER + STEPS, true, -1, 512);
    plan_more(&plan, c, &m, FIRST, FIRST, LATER + STEPS, true, -1, p->forks - 1);
    snprintf(what, sizeof what, "%s, %d requests", p->method, p->forks);
    expect_plan(what, &plan, model_mem(model)->high);
    for (int i = 0; i < p->forks; i++) branch_drop(b[i]);
    branch_drop(root);
    context_drop(ctx);
    model_close(model);
    file_close(&f);
    unlink(path);
}

static void run_recurrent(int at, const char *dir) {
    static int32_t ids[FIRST + LATER];
    Point one = { NULL, recurrent[at].method, FIRST, 0, false };
    char path[512];
    ModelFile f;
    Err err;
    Method m = method_of(&one);
    snprintf(path, sizeof path, "%s/m.bin", dir);
    ssm_write(&recurrent[at].c, 3, path);
    ids_of(ids, FIRST + LATER);
    CHECK(!file_open(&f, path, false, &err), "%s", err.msg);
    Model *model = model_open(&f, NULL, &err);
    CHECK(model, "%s", err.msg);
    Branch *b = branch_open(model, NULL, &m, LATER + STEPS, &err);
    CHECK(!branch_feed(b, ids, FIRST, FEED_FIRST, &err), "%s", err.msg);
    Mark *k = branch_mark(b);
    for (int i = 0; i < STEPS; i++) CHECK(!branch_step(b, ids[i], &err), "%s", err.msg);
    branch_rewind(b, k);
    CHECK(!branch_feed(b, ids + FIRST, LATER, 0, &err), "%s", err.msg);
    Plan plan = plan_run(model_config(model), &m, FIRST, FIRST, LATER + STEPS, false, -1, 512);
    expect_plan(recurrent[at].name, &plan, model_mem(model)->high);
    branch_drop(b);
    model_close(model);
    file_close(&f);
    unlink(path);
}

// no query of the last w exists yet: nothing may be dropped and the logits are those of full
static void corm_wide_is_full(const char *dir) {
    static int32_t ids[700];
    char path[512];
    ModelFile f;
    Err err;
    snprintf(path, sizeof path, "%s/m.bin", dir);
    tiny_write(&spec_small, path);
    ids_of(ids, 700);
    CHECK(!file_open(&f, path, false, &err), "%s", err.msg);
    Model *model = model_open(&f, NULL, &err);
    CHECK(model, "%s", err.msg);
    Method full, corm;
    CHECK(!method_find("full", &full, &err) && !method_find("corm", &corm, &err), "%s", err.msg);
    CHECK(!method_set(&corm, "window", "800", &err) && !method_set(&corm, "protect", "1", &err),
          "%s", err.msg);
    CHECK(!method_resolve(&full, PRESET_SCBENCH, 700, 0, -1, &err) &&
              !method_resolve(&corm, PRESET_SCBENCH, 700, 0, -1, &err),
          "%s", err.msg);
    Branch *a = branch_open(model, NULL, &full, 0, &err),
           *b = branch_open(model, NULL, &corm, 0, &err);
    for (int turn = 0; turn < 2; turn++) {
        CHECK(!branch_feed(a, ids + turn * 600, turn ? 60 : 600, turn ? 0 : FEED_FIRST, &err), "%s",
              err.msg);
        CHECK(!branch_feed(b, ids + turn * 600, turn ? 60 : 600, turn ? 0 : FEED_FIRST, &err), "%s",
              err.msg);
        for (int i = 0; i < 8; i++) {
            expect(!memcmp(branch_logits(a), branch_logits(b),
                           sizeof(float) * (size_t)model_config(model)->vocab_size),
                   "corm with window >= length differs from full at step", i, 0);
            int id = branch_argmax(a);
            CHECK(!branch_step(a, id, &err) && !branch_step(b, id, &err), "%s", err.msg);
        }
    }
    branch_drop(a);
    branch_drop(b);
    model_close(model);
    file_close(&f);
    unlink(path);
}

// a feed longer than the reserve, most of whose rows the policy drops: they are given back at its
// end
static void later_feed_is_released(const char *dir) {
    static int32_t ids[1700];
    char path[512];
    ModelFile f;
    Err err;
    Method m;
    snprintf(path, sizeof path, "%s/m.bin", dir);
    tiny_write(&spec_small, path);
    ids_of(ids, 1700);
    CHECK(!file_open(&f, path, false, &err), "%s", err.msg);
    Model *model = model_open(&f, NULL, &err);
    CHECK(model, "%s", err.msg);
    CHECK(!method_find("keep-last", &m, &err) &&
              !method_resolve(&m, PRESET_SCBENCH, 1000, 64, -1, &err),
          "%s", err.msg);
    Branch *b = branch_open(model, NULL, &m, 0, &err);
    CHECK(!branch_feed(b, ids, 1000, FEED_FIRST, &err) && !branch_feed(b, ids + 1000, 700, 0, &err),
          "%s", err.msg);
    BranchStats st = branch_stats(b);
    expect(st.rows_max == 64 && st.kv_alloc_bytes == st.kv_live_bytes,
           "allocated bytes after a long later feed", (double)st.kv_alloc_bytes,
           (double)st.kv_live_bytes);
    branch_drop(b);
    model_close(model);
    file_close(&f);
    unlink(path);
}

int main(void) {
    char dir[] = "/tmp/scbench-plan-XXXXXX";
    Err err;
    CHECK(mkdtemp(dir), "no temporary directory");
    CHECK(!cpu_init(0, &err), "%s", err.msg);
    for (size_t i = 0; i < COUNTOF(points); i += SANITIZED ? 9 : 1) run_point(&points[i], dir);
    for (size_t i = 0; i < COUNTOF(batch_points); i += SANITIZED ? 4 : 1)
        run_batch(&batch_points[i], dir);
    for (size_t i = SANITIZED; i < COUNTOF(recurrent); i++) run_recurrent((int)i, dir);
    corm_wide_is_full(dir);
    later_feed_is_released(dir);
    rmdir(dir);
    printf("%d failures\n", failures);
    return failures != 0;
}
