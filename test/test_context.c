// test_context.c - contexts and roots on disk: what is read is bit for bit what was saved; damaged,
// foreign and half-written files are refused with a sentence, and writing survives a kill, a full
// disk and a limit.
#include "tinyssm.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { CONTEXT = 600, QUESTION = 30, STEPS = 6, WINDOW = 24 };
static const Needs window_only = { WINDOW, 0, GROUP_MEAN };

static int failures, checks;
static char dir[] = "/tmp/scbench-context-XXXXXX";

__attribute__((format(printf, 2, 3)))
static void expect(bool ok, const char *fmt, ...) {
    va_list ap;
    checks++;
    if (ok) return;
    va_start(ap, fmt);
    if (failures++ < 20) {
        vprintf(fmt, ap);
        puts("");
    }
    va_end(ap);
}
static void must(int rc, const Err *err) { if (rc) die_code(EXIT_USER, "%s", err->msg); }

typedef struct { ModelFile file; Model *m; } Tiny;

// the model of a spec, or a recurrent one
static void model_of(Tiny *t, const TinySpec *spec, const Config *ssm) {
    char path[64];
    Err err = { 0 };
    snprintf(path, sizeof path, "%s/model.bin", dir);
    if (ssm) ssm_write(ssm, 11, path);
    else tiny_write(spec, path);
    must(file_open(&t->file, path, false, &err), &err);
    unlink(path);
    CHECK((t->m = model_open(&t->file, NULL, &err)) != NULL, "%s", err.msg);
}
static void tiny_open(Tiny *t, const TinySpec *spec) { model_of(t, spec, NULL); }
static void tiny_close(Tiny *t) {
    model_close(t->m);
    file_close(&t->file);
}

static Method method_of(const char *name) {
    Method m;
    Err err = { 0 };
    must(method_find(name, &m, &err), &err);
    if (!strcmp(name, "corm")) {
        must(method_set(&m, "window", "24", &err), &err);
        must(method_set(&m, "protect", "8", &err), &err);
    }
    must(method_resolve(&m, PRESET_SCBENCH, CONTEXT, method_has_budget(&m) ? 300 : 0, -1, &err),
         &err);
    return m;
}

static void ids_of(int32_t *ids, int n, uint64_t seed) {
    Rng r = { seed };
    for (int i = 0; i < n; i++) ids[i] = (int32_t)rng_below(&r, TINY_VOCAB);
}

// a question, some steps, a rewind and another feed on both: the same bits
static void compare(const char *what, Branch *a, Branch *b, const Config *c) {
    int32_t question[QUESTION];
    Err err = { 0 };
    Branch *of[2] = { a, b };
    Mark *k[2];
    size_t bytes = sizeof(float) * (size_t)c->vocab_size;
    ids_of(question, QUESTION, 5);
    for (int i = 0; i < 2; i++) must(branch_feed(of[i], question, QUESTION, 0, &err), &err);
    expect(!memcmp(branch_logits(a), branch_logits(b), bytes), "%s: other logits of a feed", what);
    for (int i = 0; i < 2; i++) k[i] = branch_mark(of[i]);
    for (int s = 0; s < STEPS; s++) {
        int32_t id = branch_argmax(a);
        for (int i = 0; i < 2; i++) must(branch_step(of[i], id, &err), &err);
        expect(!memcmp(branch_logits(a), branch_logits(b), bytes), "%s: other logits of step %d",
               what, s);
    }
    for (int i = 0; i < 2; i++) {
        branch_rewind(of[i], k[i]);
        branch_poison(of[i]);
        must(branch_feed(of[i], question, 9, 0, &err), &err);
    }
    BranchStats x = branch_stats(a), y = branch_stats(b);
    expect(!memcmp(branch_logits(a), branch_logits(b), bytes) && x.pos == y.pos &&
               x.rows_min == y.rows_min && x.rows_max == y.rows_max && x.rows_mean == y.rows_mean,
           "%s: other logits or rows after a rewind", what);
}

// a context of a sparse prefill is the whole first feed
static void sparse(Model *m, const Method *method, const char *name, const int32_t *ids) {
    char path[64];
    Err err = { 0 };
    Needs needs = { 0, 0, GROUP_MEAN };
    Branch *b[2];
    method_needs(method, &needs);
    snprintf(path, sizeof path, "%s/%s.ctx", dir, name);
    Context *c = context_open_sparse(m, method, ids, CONTEXT, &needs, &err);
    CHECK(c, "%s", err.msg);
    must(context_save(c, ids, path, &err), &err);
    Context *dense = context_load(m, NULL, ids, CONTEXT, &needs, path, &err);
    expect(!dense, "%s: a sparse context was read as a dense one", name);
    Context *d = context_load(m, method, ids, CONTEXT, &needs, path, &err);
    CHECK(d, "%s", err.msg);
    for (int i = 0; i < 2; i++) {
        b[i] = branch_open(m, i ? d : c, method, 40, &err);
        CHECK(b[i], "%s", err.msg);
        must(branch_feed(b[i], ids, 0, FEED_FIRST, &err), &err);
    }
    expect(!memcmp(branch_logits(b[0]), branch_logits(b[1]),
                   sizeof(float) * (size_t)model_config(m)->vocab_size) &&
               branch_stats(b[0]).pairs_ratio == branch_stats(b[1]).pairs_ratio,
           "%s: other logits or pairs", name);
    compare(name, b[0], b[1], model_config(m));
    branch_drop(b[0]);
    branch_drop(b[1]);
    context_drop(c);
    context_drop(d);
    context_drop(dense);
    unlink(path);
}

// a context and a root of every method, saved, dropped and read
static void round_trip(const TinySpec *spec, const Config *ssm) {
    int32_t ids[CONTEXT];
    char path[64];
    Err err = { 0 };
    Tiny t;
    model_of(&t, spec, ssm);
    bool attends = config_attn_layers(model_config(t.m)) > 0;
    size_t used = model_mem(t.m)->used;
    ids_of(ids, CONTEXT, 3);
    snprintf(path, sizeof path, "%s/a.ctx", dir);
    Needs needs = { 0, 0, GROUP_MEAN };         // of all methods
    const char *name;
    for (int k = 0; (name = method_name_at(k)) != NULL; k++) {
        Method m = method_of(name);
        if (!m.prefill) method_needs(&m, &needs);
    }
    Context *c = context_open(t.m, ids, CONTEXT, &needs, &err);
    must(context_save(c, ids, path, &err), &err);
    Context *d = context_load(t.m, NULL, ids, CONTEXT, &needs, path, &err);
    CHECK(d, "%s", err.msg);
    for (int k = 0; (name = method_name_at(k)) != NULL; k++) {
        Method m = method_of(name);
        if (m.prefill) {
            if (attends) sparse(t.m, &m, name, ids);
            continue;
        }
        Branch *a = branch_open(t.m, c, &m, 4, &err), *b = branch_open(t.m, d, &m, 4, &err);
        must(branch_feed(a, ids, 40, FEED_FIRST, &err), &err);
        must(branch_feed(b, ids, 40, FEED_FIRST, &err), &err);
        char root[64], what[64];
        snprintf(root, sizeof root, "%s/%s.ctx", dir, name);
        snprintf(what, sizeof what, "root of %s", name);
        must(branch_save(a, ids, CONTEXT, root, &err), &err);
        Branch *r = branch_load(t.m, &m, ids, CONTEXT, 20, root, &err);
        CHECK(r, "%s", err.msg);
        BranchStats s = branch_stats(r);
        expect(s.kv_live_bytes == branch_stats(a).kv_live_bytes && !s.shared, "%s: its rows", what);
        expect(s.evictable == branch_stats(a).evictable, "%s: evictable", what);
        Branch *a2 = branch_fork(a, 10, &err);
        compare(name, a, b, model_config(t.m));
        compare(what, a2, r, model_config(t.m));
        branch_drop(a);
        branch_drop(a2);
        branch_drop(b);
        branch_drop(r);
        struct stat st;
        expect(!stat(root, &st) &&
               (size_t)st.st_size < s.kv_live_bytes * 5 / 4 + s.ssm_bytes + 65536,
               "%s: %zu live bytes take %lld on disk", what, s.kv_live_bytes,
               (long long)st.st_size);
        unlink(root);
    }
    context_drop(c);
    context_drop(d);
    size_t scratch = model_mem(t.m)->used;
    c = context_load(t.m, NULL, ids, CONTEXT, &needs, path, &err);
    context_drop(c);
    expect(c && model_mem(t.m)->used == scratch && scratch >= used, "memory of a read context");
    unlink(path);
    tiny_close(&t);
}

// ---------------------------------------------------------------------------
// Files that are refused

static StrBuf slurp(const char *path) {
    StrBuf s = { 0 };
    char part[4096];
    FILE *f = fopen(path, "rb");
    CHECK(f, "%s", path);
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) str_add(&s, part, n);
    fclose(f);
    return s;
}
static void spill(const char *path, const char *p, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(p, 1, n, f) == n && !fclose(f), "%s", path);
}

static void refused(Model *m, const int32_t *ids, int n, int window, const char *path,
                    const char *what) {
    Err err = { 0 };
    const Needs these = { window, 0, GROUP_MEAN };
    Context *c = context_load(m, NULL, ids, n, &these, path, &err);
    expect(!c && strstr(err.msg, path), "%s: %s", what, c ? "it was read" : err.msg);
    context_drop(c);
}

static void damage(const TinySpec *spec) {
    int32_t ids[200];
    char path[64];
    Err err = { 0 };
    Tiny t, other;
    TinySpec foreign = *spec;
    foreign.seed += 1;
    tiny_open(&t, spec);
    tiny_open(&other, &foreign);
    ids_of(ids, 200, 9);
    snprintf(path, sizeof path, "%s/b.ctx", dir);
    Context *c = context_open(t.m, ids, 200, &window_only, &err);
    must(context_save(c, ids, path, &err), &err);
    context_drop(c);
    refused(other.m, ids, 200, WINDOW, path, "another model");
    refused(t.m, ids, 199, WINDOW, path, "fewer tokens");
    refused(t.m, ids, 200, WINDOW + 1, path, "too few query rows");
    ids[77] ^= 1;
    refused(t.m, ids, 200, WINDOW, path, "other tokens");
    ids[77] ^= 1;
    StrBuf whole = slurp(path);
    for (size_t n = 0; n < whole.n; n += 1 + whole.n / 37) {
        spill(path, whole.p, n);
        refused(t.m, ids, 200, WINDOW, path, "cut short");
    }
    Rng r = { 4 };
    for (int i = 0; i < 300; i++) {             // the head densely, then anywhere; padding is free
        size_t at = i < 128 ? (size_t)i : rng_below(&r, whole.n);
        char old = whole.p[at];
        whole.p[at] ^= (char)(1 << rng_below(&r, 8));
        spill(path, whole.p, whole.n);
        c = context_load(t.m, NULL, ids, 200, &window_only, path, &err);
        if (c) {
            Method full = method_of("full");
            Branch *b = branch_open(t.m, c, &full, 4, &err);
            Context *fresh = context_open(t.m, ids, 200, &window_only, &err);
            Branch *a = branch_open(t.m, fresh, &full, 4, &err);
            compare("a flipped bit that was not found", a, b, model_config(t.m));
            branch_drop(a);
            branch_drop(b);
            context_drop(fresh);
        }
        expect(!c || at >= 128, "a flipped bit of byte %zu was not found", at);
        context_drop(c);
        whole.p[at] = old;
    }
    spill(path, whole.p, whole.n);
    c = context_load(t.m, NULL, ids, 200, &window_only, path, &err);
    expect(c != NULL, "the whole file again: %s", err.msg);
    context_drop(c);
    unlink(path);
    free(whole.p);
    tiny_close(&t);
    tiny_close(&other);
}

// ---------------------------------------------------------------------------
// Writing that goes wrong

// a child saves over and over and is killed: the file is absent or whole, the next save works
static void killed(const TinySpec *spec) {
    int32_t ids[400];
    char path[64];
    Err err = { 0 };
    Tiny t;
    tiny_open(&t, spec);
    ids_of(ids, 400, 9);
    snprintf(path, sizeof path, "%s/c.ctx", dir);
    Context *c = context_open(t.m, ids, 400, &window_only, &err);
    for (int i = 0; i < 12; i++) {
        pid_t child = fork();
        CHECK(child >= 0, "fork");
        if (!child) for (;;) context_save(c, ids, path, &err);
        usleep(300 + 700 * (unsigned)i);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        if (access(path, F_OK)) continue;
        Context *d = context_load(t.m, NULL, ids, 400, &window_only, path, &err);
        expect(d != NULL, "killed while saving: %s", err.msg);
        context_drop(d);
    }
    expect(!context_save(c, ids, path, &err), "after the kills: %s", err.msg);
    unlink(path);
    pid_t child = fork();                       // a full disk: no file may grow beyond 8 KB
    CHECK(child >= 0, "fork");
    if (!child) {
        struct rlimit few = { 8192, 8192 };
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &few);
        _exit(context_save(c, ids, path, &err) == -1 && strstr(err.msg, "cannot be written") ? 0
                                                                                            : 1);
    }
    int status;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && !WEXITSTATUS(status), "a full disk");
    strcat(path, ".tmp");
    expect(access(path, F_OK) != 0, "a full disk leaves %s", path);
    context_drop(c);
    tiny_close(&t);
}

// the second context does not fit: the first stays, the run has its context all the same
static void limited(const TinySpec *spec) {
    int32_t ids[200];
    Err err = { 0 };
    Tiny t;
    bool read;
    double seconds;
    SaveDir d = { dir, 1 << 20, true };         // said: no line on stderr
    tiny_open(&t, spec);
    for (int i = 0; i < 40; i++) {
        ids_of(ids, 200, 50 + (uint64_t)i);
        Context *c = context_get(t.m, &d, NULL, ids, 200, &window_only, &read, &seconds, &err);
        expect(c && !read, "context %d under a limit", i);
        context_drop(c);
    }
    ids_of(ids, 200, 50);
    Context *c = context_get(t.m, &d, NULL, ids, 200, &window_only, &read, &seconds, &err);
    expect(c && read, "the first context was given up for a later one");
    context_drop(c);
    ids_of(ids, 200, 50 + 39);
    c = context_get(t.m, &d, NULL, ids, 200, &window_only, &read, &seconds, &err);
    expect(c && !read, "the limit did not refuse");
    context_drop(c);
    tiny_close(&t);
}

int main(void) {
    static const TinySpec specs[] = {
        { .dim = 48, .hidden_dim = 64, .n_layers = 2, .n_heads = 6, .n_kv_heads = 2, .head_dim = 32,
          .dtype = DT_BF16, .qkv_bias = true, .sharp = 3, .seed = 1 },
        { .dim = 32, .hidden_dim = 40, .n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 48,
          .dtype = DT_F32, .tied = true, .sharp = 5, .seed = 2 },
        { .dim = 32, .hidden_dim = 64, .n_layers = 1, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64,
          .dtype = DT_Q8, .tied = true, .sharp = 4, .seed = 3 },
    };
    static const Config recurrent[] = {
        { .arch = ARCH_MAMBA2, .vocab_size = TINY_VOCAB, .dim = 48, .n_layers = 2, .max_ctx = 4096,
          .norm_eps = 1e-5f, .dtype = DT_BF16, .ssm_inner = 96, .ssm_state = 24, .ssm_conv = 4,
          .ssm_heads = 6, .ssm_head_dim = 16, .ssm_groups = 2, .norm_groups = 2 },
        { .arch = ARCH_JAMBA, .vocab_size = TINY_VOCAB, .dim = 48, .hidden_dim = 56, .n_layers = 4,
          .n_heads = 4, .n_kv_heads = 2, .head_dim = 24, .max_ctx = 4096, .norm_eps = 1e-5f,
          .dtype = DT_BF16, .attn_period = 2, .attn_offset = 1, .n_experts = 4, .n_experts_used = 2,
          .expert_period = 2, .expert_offset = 1, .ssm_inner = 80, .ssm_state = 16, .ssm_conv = 4,
          .ssm_dt_rank = 5 },
    };
    Err err = { 0 };
    must(cpu_init(1, &err), &err);
    CHECK(mkdtemp(dir), "no temporary directory");
    for (size_t s = 0; s < (SANITIZED ? 1 : COUNTOF(specs)); s++) round_trip(&specs[s], NULL);
    for (size_t s = 0; s < COUNTOF(recurrent); s++) round_trip(NULL, &recurrent[s]);
    damage(&specs[0]);
    killed(&specs[0]);
    limited(&specs[0]);
    char clean[64];
    snprintf(clean, sizeof clean, "rm -rf %s", dir);
    if (system(clean)) return 1;
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
