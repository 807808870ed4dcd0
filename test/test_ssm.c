// test_ssm.c - Mamba-2 and the hybrid: a token's logits are the same bits whatever chunks, feeds,
// threads, marks, forks, cuts, contexts and batches it came through; the experts of a prefill
// compute the rows routed to them and no others, a step reads the experts it uses and no others.
#include "tinyssm.h"
#include <omp.h>

enum { N = 300, VOCAB = 270 };

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

static const struct { const char *name; Config c; } models[] = {
    { "mamba2, 1 group",
      { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 40, .n_layers = 2, .max_ctx = 4096,
        .norm_eps = 1e-5f, .ssm_inner = 72, .ssm_state = 20, .ssm_conv = 4, .ssm_heads = 3,
        .ssm_head_dim = 24, .ssm_groups = 1, .norm_groups = 1 } },
    { "mamba2, 8 groups, 8 norms",
      { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 64, .n_layers = 2, .max_ctx = 4096,
        .norm_eps = 1e-5f, .tied = true, .ssm_inner = 256, .ssm_state = 64, .ssm_conv = 3,
        .ssm_heads = 8, .ssm_head_dim = 32, .ssm_groups = 8, .norm_groups = 8 } },
    { "mamba2, wide state",
      { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 32, .n_layers = 1, .max_ctx = 4096,
        .norm_eps = 1e-5f, .ssm_inner = 96, .ssm_state = 130, .ssm_conv = 1, .ssm_heads = 2,
        .ssm_head_dim = 48, .ssm_groups = 2, .norm_groups = 1 } },
    { "jamba",
      { .arch = ARCH_JAMBA, .vocab_size = VOCAB, .dim = 48, .hidden_dim = 72, .n_layers = 5,
        .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .max_ctx = 4096, .norm_eps = 1e-6f,
        .attn_period = 2, .attn_offset = 1, .n_experts = 4, .n_experts_used = 2,
        .expert_period = 2, .expert_offset = 1, .ssm_inner = 96, .ssm_state = 16, .ssm_conv = 4,
        .ssm_dt_rank = 5 } },
    { "jamba, odd sizes",
      { .arch = ARCH_JAMBA, .vocab_size = VOCAB, .dim = 40, .hidden_dim = 56, .n_layers = 4,
        .n_heads = 3, .n_kv_heads = 1, .head_dim = 24, .max_ctx = 4096, .norm_eps = 1e-6f,
        .tied = true, .attn_period = 3, .attn_offset = 0, .n_experts = 16, .n_experts_used = 3,
        .expert_period = 1, .expert_offset = 0, .ssm_inner = 100, .ssm_state = 19, .ssm_conv = 2,
        .ssm_dt_rank = 7 } },
};

typedef struct { ModelFile file; Model *m; const char *name; } Opened;

static const char *path;
static int32_t ids[N];

static void open_again(Opened *o, int chunk) {
    Err err = { 0 };
    ModelOpts opts = { .chunk = chunk };
    if (o->m) model_close(o->m);
    o->m = model_open(&o->file, &opts, &err);
    CHECK(o->m, "%s", err.msg);
}

static Opened open_model(const char *name, const Config *c, DType dtype, uint64_t seed) {
    Config own = *c;
    Opened o = { .name = name };
    Err err = { 0 };
    own.dtype = dtype;
    ssm_write(&own, seed, path);
    must(file_open(&o.file, path, true, &err), &err);
    open_again(&o, 0);
    must(file_all_used(&o.file, &err) && false, &err);
    return o;
}

static void close_model(Opened *o) {
    model_close(o->m);
    file_close(&o->file);
}

static Method method_of(const char *name) {
    Method m;
    Err err = { 0 };
    must(method_find(name, &m, &err) ||
         method_resolve(&m, PRESET_SCBENCH, N, method_has_budget(&m) ? 70 : 0, -1, &err), &err);
    return m;
}

static Branch *root(Opened *o, Context *c, const char *method) {
    Err err = { 0 };
    Method m = method_of(method);
    Branch *b = branch_open(o->m, c, &m, 8, &err);
    CHECK(b, "%s", err.msg);
    return b;
}

static void feed(Branch *b, int from, int to, bool first) {
    Err err = { 0 };
    must(branch_feed(b, ids + from, to - from, first ? FEED_FIRST : 0, &err), &err);
}

static void step(Branch *b, int i) {
    Err err = { 0 };
    must(branch_step(b, ids[i], &err), &err);
}

static void expect(const Opened *o, const char *what, Branch *b, const float *want) {
    checks++;
    if (memcmp(branch_logits(b), want, VOCAB * sizeof *want))
        fail("%s: %s gives other logits", o->name, what);
}

// logits of the last of the first n ids in one feed
static void whole(Opened *o, int n, float *out) {
    Branch *b = root(o, NULL, "full");
    feed(b, 0, n, true);
    memcpy(out, branch_logits(b), VOCAB * sizeof *out);
    branch_drop(b);
}

// ---------------------------------------------------------------------------
// Bits

static void test_chunks(Opened *o, const float *want) {
    static const int chunks[] = { 1, 7, 64, 100, 256 };
    for (size_t i = 0; i < COUNTOF(chunks); i++) {
        open_again(o, chunks[i]);
        float got[VOCAB];
        whole(o, N, got);
        checks++;
        if (memcmp(got, want, sizeof got))
            fail("%s: chunks of %d give other logits", o->name, chunks[i]);
    }
    open_again(o, 0);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    float got[VOCAB];
    whole(o, N, got);
    checks++;
    if (memcmp(got, want, sizeof got)) fail("%s: one thread gives other logits", o->name);
    omp_set_num_threads(threads);
}

static void test_feeds(Opened *o, const float *want) {
    static const int cut[][4] = { { 1, 2, 3, 4 }, { 63, 64, 65, 128 }, { 70, 75, 192, 299 },
                                  { 5, 130, 131, 200 } };
    for (size_t i = 0; i < COUNTOF(cut); i++) {
        Branch *b = root(o, NULL, "full");
        feed(b, 0, cut[i][0], true);
        for (int k = 1; k < 4; k++) feed(b, cut[i][k - 1], cut[i][k], false);
        feed(b, cut[i][3], N, false);
        expect(o, "feeding in pieces", b, want);
        branch_drop(b);
    }
    Branch *b = root(o, NULL, "full");
    for (int i = 0; i < N; i++) step(b, i);
    expect(o, "stepping", b, want);
    branch_drop(b);
}

static void test_branches(Opened *o, const float *want) {
    Err err = { 0 };
    int at[] = { 60, 64, 129 };
    for (size_t i = 0; i < COUNTOF(at); i++) {
        Branch *b = root(o, NULL, "full");
        feed(b, 0, at[i], true);
        Mark *k = branch_mark(b), *k2;
        for (int j = 0; j < 9; j++) step(b, j);
        k2 = branch_mark(b);
        feed(b, 10, 90, false);
        branch_rewind(b, k2);
        step(b, 3);
        branch_rewind(b, k);
        feed(b, at[i], N - 3, false);
        Branch *f = branch_fork(b, 4, &err);
        CHECK(f, "%s", err.msg);
        feed(b, 0, 30, false);
        for (int j = N - 3; j < N; j++) step(f, j);
        expect(o, "a mark, a rewind and a fork", f, want);
        branch_drop(b);
        branch_drop(f);

        b = root(o, NULL, "full");              // kept at the cut
        branch_keep(b, at[i]);
        feed(b, 0, at[i] + 40, true);
        branch_cut(b, at[i]);
        feed(b, at[i], N, false);
        expect(o, "a cut", b, want);
        branch_drop(b);

        Context *c = context_open(o->m, ids, at[i], NULL, &err);
        CHECK(c, "%s", err.msg);
        Branch *r = root(o, c, "full"), *other = root(o, c, "full");
        context_drop(c);
        feed(r, at[i], at[i] + 20, true);       // one branch after the other, on the same context
        branch_keep(other, at[i]);
        feed(other, at[i], at[i] + 7, true);
        branch_cut(other, at[i]);
        feed(other, at[i], N, false);
        expect(o, "a context shared with another branch", other, want);
        feed(r, at[i] + 20, N, false);
        expect(o, "a shared context", r, want);
        branch_drop(r);
        branch_drop(other);
    }
}

// three branches of unlike lengths step together
static void test_batch(Opened *o) {
    enum { B = 3, STEPS = 70 };
    static const int len[B] = { 20, 63, 150 };
    Err err = { 0 };
    Branch *alone[B], *batch[B];
    for (int i = 0; i < B; i++) {
        alone[i] = root(o, NULL, "full");
        batch[i] = root(o, NULL, "full");
        feed(alone[i], 0, len[i], true);
        feed(batch[i], 0, len[i], true);
    }
    for (int s = 0; s < STEPS; s++) {
        int32_t next[B];
        for (int i = 0; i < B; i++) {
            next[i] = ids[(s + 40 * i) % N];
            must(branch_step(alone[i], next[i], &err), &err);
        }
        must(branches_step(batch, next, B, &err), &err);
    }
    for (int i = 0; i < B; i++) {
        expect(o, "a batch", batch[i], branch_logits(alone[i]));
        branch_drop(alone[i]);
        branch_drop(batch[i]);
    }
}

// a policy on rows of its own and on a shared context; a budget beyond the length is full
static void test_methods(Opened *o, const float *want) {
    static const char *const names[] = { "keep-last", "streamingllm", "corm" };
    Err err = { 0 };
    for (size_t i = 0; i < COUNTOF(names); i++) {
        Method m = method_of(names[i]);
        Branch *own = root(o, NULL, names[i]);
        feed(own, 0, 200, true);
        Needs needs = { 0, 0, GROUP_MEAN };
        method_needs(&m, &needs);
        Context *c = context_open(o->m, ids, 180, &needs, &err);
        CHECK(c, "%s", err.msg);
        Branch *on = root(o, c, names[i]);
        context_drop(c);
        feed(on, 180, 200, true);
        for (int j = 200; j < 210; j++) { step(own, j); step(on, j); }
        feed(own, 210, N, false);
        feed(on, 210, N, false);
        expect(o, names[i], on, branch_logits(own));
        BranchStats st = branch_stats(own);
        checks++;
        if (config_attn_layers(model_config(o->m)) ? st.rows_max >= N : st.rows_max || st.evictable)
            fail("%s: %s keeps %d rows", o->name, names[i], st.rows_max);
        if (!config_attn_layers(model_config(o->m))) expect(o, "a method without rows", own, want);
        branch_drop(own);
        branch_drop(on);
    }
}

// ---------------------------------------------------------------------------
// Work

// multiply-adds of the layers of one token, with n experts
static double layer_macs(const Config *c, int n) {
    double E = c->dim, D = c->ssm_inner, F = c->hidden_dim, hd = c->head_dim, total = 0;
    double attn = (2 * c->n_heads + 2 * c->n_kv_heads) * hd * E, R = c->ssm_dt_rank;
    double scan = 3 * D * E + D * (R + 2 * c->ssm_state) + R * D;
    for (int l = 0; l < c->n_layers; l++) {
        bool routes = l % c->expert_period == c->expert_offset;
        total += l % c->attn_period == c->attn_offset ? attn : scan;
        total += routes ? n * 3 * E * F + c->n_experts * E : 3 * E * F;
    }
    return total;
}

static void test_experts(Opened *o) {
    open_again(o, 100);
    const Config *c = model_config(o->m);
    double head = (double)c->vocab_size * c->dim, weights = (double)config_weight_bytes(c);
    Branch *b = root(o, NULL, "full");
    model_phases(o->m);
    feed(b, 0, N, true);
    Phases p = model_phases(o->m);
    double want = 2 * (N * layer_macs(c, c->n_experts_used) + head);
    checks += 3;
    if (p.linear_flops != want)
        fail("%s: %.0f flops of a prefill, %.0f with %d experts a token (%.0f with all)", o->name,
             p.linear_flops, want, c->n_experts_used, 2 * (N * layer_macs(c, c->n_experts) + head));
    if (p.weight_bytes > 3 * weights)
        fail("%s: %.0f bytes of weights read in 3 chunks, all of them once are %.0f", o->name,
             p.weight_bytes, weights);
    step(b, 0);
    p = model_phases(o->m);
    want = 2 * (layer_macs(c, c->n_experts_used) + head);
    if (p.linear_flops != want)
        fail("%s: %.0f flops of a step, not %.0f", o->name, p.linear_flops, want);
    double expert = 0, unused = 0;
    for (int l = 0; l < c->n_layers; l++) unused += config_routes(c, l);
    expert = (double)(2 * weight_bytes(c->dtype, c->hidden_dim, c->dim) +
                      weight_bytes(c->dtype, c->dim, c->hidden_dim));
    unused *= (c->n_experts - c->n_experts_used) * expert;
    checks++;
    if (p.weight_bytes > weights - unused || p.weight_bytes < 0.5 * (weights - unused))
        fail("%s: a step read %.0f bytes, all but the unused experts are %.0f", o->name,
             p.weight_bytes, weights - unused);
    branch_drop(b);
    open_again(o, 0);
}

static void test_model(size_t i, DType dtype) {
    static const char *const kinds[] = { "f32", "bf16", "q8" };
    char name[80];
    float want[VOCAB], before[VOCAB];
    snprintf(name, sizeof name, "%s, %s", models[i].name, kinds[dtype]);
    Opened o = open_model(name, &models[i].c, dtype, 11 + i);
    whole(&o, N, want);
    whole(&o, N - 1, before);
    checks++;
    for (int v = 0; v < VOCAB; v++)
        if (!(fabsf(want[v]) < 1e4f)) {
            fail("%s: logit %d is %g", name, v, (double)want[v]);
            break;
        }
    if (!memcmp(want, before, sizeof want)) fail("%s: the last token changes nothing", name);
    test_chunks(&o, want);
    test_feeds(&o, want);
    test_branches(&o, want);
    test_batch(&o);
    test_methods(&o, want);
    if (models[i].c.n_experts) test_experts(&o);
    float again[VOCAB];                         // B after A
    whole(&o, N, again);
    checks++;
    if (memcmp(want, again, sizeof want)) fail("%s: other logits after other work", name);
    close_model(&o);
}

int main(void) {
    Err err = { 0 };
    static char name[] = "/tmp/scbench-ssm-XXXXXX";
    must(cpu_init(2, &err), &err);
    int fd = mkstemp(name);
    CHECK(fd >= 0, "mkstemp: %s", strerror(errno));
    close(fd);
    path = name;
    Rng r = { 5 };
    for (int i = 0; i < N; i++) ids[i] = (int32_t)rng_below(&r, 256);
    for (size_t i = 0; i < COUNTOF(models); i += SANITIZED ? 3 : 1)
        for (int d = DT_F32; d <= DT_Q8; d++)
            if (!SANITIZED || d == (i ? DT_BF16 : DT_Q8)) test_model(i, (DType)d);
    unlink(path);
    printf("%d comparisons, %d failed\n", checks, failures);
    return failures != 0;
}
