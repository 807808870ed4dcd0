// test_saved.cu - contexts and roots on disk from the device: what is read there is bit for bit
// what was saved, and neither device takes rows that the other computed.
#include "models.h"
#include "test/tinyssm.h"
#include <sys/stat.h>

enum { CONTEXT = 100, WINDOW = 16 };
static Needs needs = { WINDOW, 0, GROUP_MEAN };
static char dir[] = "/tmp/scbench_saved_XXXXXX", path[64];
static int32_t ids[CONTEXT];

static Trace trace_new(void) {
    Trace t = { (float *)xrealloc(NULL, sizeof(float) * KEPT * (size_t)n_vocab), 0 };
    return t;
}

static void same(const char *what, Trace *got, Trace *want) {
    CHECK(got->n == want->n && got->n, "traces of %d and %d", got->n, want->n);
    twin_equal(what, got->p, want->p, (size_t)got->n * n_vocab);
    free(got->p);
    free(want->p);
}

static void answer(Model *m, Context *c, const Method *method, Trace *t) {
    Err err;
    Branch *b = branch_open(m, c, method, 16, &err);
    need(b ? 0 : -1, &err);
    feed(b, 3, 20, FEED_FIRST, t);
    steps(b, 4, 3, t);
    branch_drop(b);
}

static Context *opened_context(Model *m) {
    Err err;
    Context *c = context_open(m, ids, CONTEXT, &needs, &err);
    need(c ? 0 : -1, &err);
    return c;
}

// a context as the method wants it
static void contexts(Model *m, const char *name, int budget) {
    Err err;
    Method method = method_of(name, 160, budget);
    method_needs(&method, &needs);
    Context *c = opened_context(m), *d;
    Trace want = trace_new(), got = trace_new();
    need(context_save(c, ids, path, &err), &err);
    need((d = context_load(m, NULL, ids, CONTEXT, &needs, path, &err)) ? 0 : -1, &err);
    twin_equal("windows of a context", &d->window_bytes, &c->window_bytes, 1);
    char *a = (char *)xrealloc(NULL, c->window_bytes + 1),
         *b = (char *)xrealloc(NULL, c->window_bytes + 1);
    mem_get(&m->mem, a, c->window, c->window_bytes);
    mem_get(&m->mem, b, d->window, c->window_bytes);
    twin_equal("its query rows", b, a, c->window_bytes);
    answer(m, c, &method, &want);
    context_drop(c);
    answer(m, d, &method, &got);
    context_drop(d);
    same("a context that was read", &got, &want);
    needs.sums = 0;
    free(a);
    free(b);
}

static void roots(Model *m, const char *name, int budget) {
    Err err;
    Method method = method_of(name, 160, budget);
    Trace want = trace_new(), got = trace_new();
    Branch *b = branch_open(m, NULL, &method, 8, &err), *r;
    need(b ? 0 : -1, &err);
    need(branch_feed(b, ids, CONTEXT, FEED_FIRST, &err), &err);
    need(branch_save(b, ids, CONTEXT, path, &err), &err);
    need((r = branch_load(m, &method, ids, CONTEXT, 8, path, &err)) ? 0 : -1, &err);
    keep(&want, b);
    keep(&got, r);
    for (int i = 0; i < 2; i++) {
        steps(i ? r : b, 5, 3, i ? &got : &want);
        feed(i ? r : b, 6, 12, 0, i ? &got : &want);
        branch_drop(i ? r : b);
    }
    same(name, &got, &want);
}

// what one device saved is nothing to the other
static void refused(Model *from, Model *to, const char *device) {
    Err err;
    Context *c = opened_context(from);
    need(context_save(c, ids, path, &err), &err);
    Context *d = context_load(to, NULL, ids, CONTEXT, &needs, path, &err);
    context_drop(c);
    if (!d && strstr(err.msg, device)) return;
    twin_failures++;
    printf("a context computed on %s: %s\n", device, d ? "taken" : err.msg);
    context_drop(d);
}

// one directory for both: each finds its own
static void found(Model *cpu, Model *gpu) {
    SaveDir d = { dir, 0, false };
    for (int i = 0; i < 4; i++) {
        bool restored;
        double seconds;
        Err err;
        Context *c = context_get(i % 2 ? gpu : cpu, &d, NULL, ids, CONTEXT, &needs, &restored,
                                 &seconds, &err);
        need(c ? 0 : -1, &err);
        if (restored != (i > 1)) {
            twin_failures++;
            printf("context %d was%s restored\n", i, restored ? "" : " not");
        }
        context_drop(c);
    }
}

static void plays(const Config *c) {
    Err err;
    ssm_write(c, 5, path);
    need(file_open(&file, path, false, &err), &err);
    unlink(path);
    Model *cpu = opened(false), *gpu = opened(true);
    for (int i = 0; i < CONTEXT; i++) ids[i] = id_at(1, i);
    contexts(gpu, "full", 0);
    contexts(gpu, "h2o", 40);
    roots(gpu, "full", 0);
    roots(gpu, "snapkv", 48);
    roots(gpu, "h2o", 40);
    refused(cpu, gpu, "a CPU");
    refused(gpu, cpu, "a GPU");
    found(cpu, gpu);
    model_close(cpu);
    model_close(gpu);
    file_close(&file);
}

int main(void) {
    static const Config jamba = {
        .arch = ARCH_JAMBA, .vocab_size = 260, .dim = 32, .hidden_dim = 32, .n_layers = 3,
        .n_heads = 2, .n_kv_heads = 1, .head_dim = 64, .max_ctx = 4096, .norm_eps = 1e-6f,
        .dtype = DT_BF16, .attn_period = 3, .attn_offset = 1, .n_experts = 3, .n_experts_used = 1,
        .expert_period = 2, .expert_offset = 1, .ssm_inner = 32, .ssm_state = 8, .ssm_conv = 4,
        .ssm_dt_rank = 4 };
    static const Config mamba2 = {
        .arch = ARCH_MAMBA2, .vocab_size = 260, .dim = 32, .n_layers = 2, .max_ctx = 4096,
        .norm_eps = 1e-5f, .dtype = DT_BF16, .ssm_inner = 64, .ssm_state = 16, .ssm_conv = 4,
        .ssm_heads = 2, .ssm_head_dim = 32, .ssm_groups = 1, .norm_groups = 1 };
    int rc = twin_begin();
    Err err;
    if (rc) return rc;
    need(cpu_init(1, &err), &err);
    CHECK(mkdtemp(dir), "%s: %s", dir, strerror(errno));
    snprintf(path, sizeof path, "%s/one", dir);
    plays(&jamba);
    plays(&mamba2);
    char command[96];
    snprintf(command, sizeof command, "rm -r %s", dir);
    CHECK(!system(command), "%s", command);
    return twin_end("saved");
}
