// test_cut.c - a branch cut back to an earlier position: which rows stay, that nothing of what was
// cut is read again, that forks and the shared context keep their own rows.
#include "scb.h"

enum { CONTEXT = 90, QUESTION = 20, NEXT = 15, VOCAB = 258 };

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_cut.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static Model *model;
// context, the question that is cut, the next one
static int32_t ids[CONTEXT + QUESTION + NEXT];

static void must(int bad, const Err *err) {
    if (bad) die_code(1, "%s", err->msg);
}

static Method method(const char *name, const char *a, int x, const char *b, int y) {
    Method m;
    Err err = { "", 0 };
    char text[16];
    must(method_find(name, &m, &err), &err);
    snprintf(text, sizeof text, "%d", x);
    if (a) must(method_set(&m, a, text, &err), &err);
    snprintf(text, sizeof text, "%d", y);
    if (b) must(method_set(&m, b, text, &err), &err);
    must(method_resolve(&m, PRESET_SCBENCH, CONTEXT, 0, -1, &err), &err);
    return m;
}

static void feed(Branch *b, int from, int n, unsigned flags) {
    Err err = { "", 0 };
    must(branch_feed(b, ids + from, n, flags, &err), &err);
}

// the root that has seen context and question 1
static Branch *aware_root(const Method *m, Context *ctx) {
    Err err = { "", 0 };
    Branch *b = branch_open(model, ctx, m, ctx ? QUESTION : 0, &err);
    must(!b, &err);
    if (ctx) feed(b, CONTEXT, QUESTION, FEED_FIRST | FEED_NO_LOGITS);
    else feed(b, 0, CONTEXT + QUESTION, FEED_FIRST | FEED_NO_LOGITS);
    return b;
}

// live positions of all heads as text
static StrBuf rows_text(Branch *b, int below) {
    StrBuf out = { 0 };
    str_puts(&out, "");
    const Config *c = model_config(model);
    for (int l = 0; l < c->n_layers; l++)
        for (int g = 0; g < c->n_kv_heads; g++) {
            const int32_t *pos;
            int n = branch_rows(b, l, g, &pos);
            for (int i = 0; i < n; i++)
                if (pos[i] < below) str_fmt(&out, " %d", pos[i]);
            str_puts(&out, ";");
        }
    return out;
}

static bool same_rows(Branch *b, const StrBuf *wanted) {
    StrBuf got = rows_text(b, INT_MAX);
    bool same = !strcmp(got.p, wanted->p);
    free(got.p);
    return same;
}

static bool same_logits(const Branch *b, const float *x) {
    return !memcmp(branch_logits(b), x, VOCAB * sizeof *x);
}

// context + question 1, cut, next question, a step: the same rows and logits from owned rows, from
// a shared context, and with what is dead turned into NaN
static void test_method(const Method *m, Context *ctx) {
    float first[VOCAB], second[VOCAB];
    for (int way = 0; way < 4; way++) {
        Err err = { "", 0 };
        Branch *b = aware_root(m, way & 1 ? ctx : NULL);
        StrBuf wanted = rows_text(b, CONTEXT);
        branch_cut(b, CONTEXT);
        if (way & 2) branch_poison(b);
        EXPECT(same_rows(b, &wanted), "%s, way %d: other rows than those before the cut", m->name,
               way);
        EXPECT(branch_stats(b).pos == CONTEXT, "%s: stands at %lld", m->name,
               (long long)branch_stats(b).pos);
        Branch *f = branch_fork(b, NEXT, &err);
        must(!f, &err);
        feed(f, CONTEXT + QUESTION, NEXT, 0);
        if (way == 0) memcpy(first, branch_logits(f), sizeof first);
        EXPECT(same_logits(f, first), "%s, way %d: other logits", m->name, way);
        must(branch_step(f, 65, &err), &err);
        if (way == 0) memcpy(second, branch_logits(f), sizeof second);
        EXPECT(same_logits(f, second), "%s, way %d: other logits of the step", m->name, way);
        branch_drop(f);
        EXPECT(same_rows(b, &wanted), "%s, way %d: the fork changed the root", m->name, way);
        feed(b, CONTEXT + QUESTION, NEXT, 0);
        EXPECT(same_logits(b, first), "%s, way %d: the root itself has other logits", m->name, way);
        branch_drop(b);
        free(wanted.p);
    }
}

// full: as if question 1 had never been fed
static void test_full(const Method *full, Context *ctx) {
    Err err = { "", 0 };
    Branch *plain = branch_open(model, NULL, full, 0, &err);
    must(!plain, &err);
    feed(plain, 0, CONTEXT, FEED_FIRST | FEED_NO_LOGITS);
    feed(plain, CONTEXT + QUESTION, NEXT, 0);
    for (int shared = 0; shared < 2; shared++) {
        Branch *b = aware_root(full, shared ? ctx : NULL);
        branch_cut(b, CONTEXT);
        feed(b, CONTEXT + QUESTION, NEXT, 0);
        EXPECT(same_logits(b, branch_logits(plain)), "full, shared %d: question 1 is still there",
               shared);
        branch_drop(b);
    }
    branch_drop(plain);
}

// a fork holds the rows that its parent cuts away
static void test_fork(const Method *m) {
    Err err = { "", 0 };
    Branch *b = aware_root(m, NULL), *f = branch_fork(b, NEXT, &err), *alone = aware_root(m, NULL);
    must(!f, &err);
    StrBuf all = rows_text(f, INT_MAX), before = rows_text(f, CONTEXT);
    branch_cut(b, CONTEXT);
    branch_poison(b);
    EXPECT(same_rows(f, &all), "%s: the fork lost rows", m->name);
    EXPECT(same_rows(b, &before), "%s: the root kept rows", m->name);
    feed(f, CONTEXT + QUESTION, NEXT, 0);
    feed(alone, CONTEXT + QUESTION, NEXT, 0);
    EXPECT(same_logits(f, branch_logits(alone)), "%s: the fork's logits changed", m->name);
    branch_drop(f);
    branch_cut(alone, CONTEXT + QUESTION + NEXT);       // nothing to cut
    EXPECT(branch_stats(alone).pos == CONTEXT + QUESTION + NEXT, "a cut at the end moved");
    feed(b, CONTEXT + QUESTION, NEXT, 0);
    Branch *other = aware_root(m, NULL);
    branch_cut(other, CONTEXT);
    feed(other, CONTEXT + QUESTION, NEXT, 0);
    EXPECT(same_logits(b, branch_logits(other)), "%s: a cut under a fork gives other logits",
           m->name);
    branch_drop(other);
    branch_drop(alone);
    branch_drop(b);
    free(all.p);
    free(before.p);
}

int main(void) {
    Err err = { "", 0 };
    Config c = { .arch = ARCH_LLAMA, .vocab_size = VOCAB, .dim = 64, .hidden_dim = 96,
                 .n_layers = 2,
                 .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .max_ctx = 512, .norm_eps = 1e-5f,
                 .rope_theta = 10000, .rope_dim = 16, .tied = true, .dtype = DT_BF16 };
    ModelOpts opts = { .chunk = 32 };
    must(cpu_init(2, &err), &err);
    must(!(model = model_random(&c, &opts, 5, &err)), &err);
    for (size_t i = 0; i < COUNTOF(ids); i++) ids[i] = (int32_t)(mix64(i) % 256);
    Needs needs = { .window = 8 };
    Context *ctx = context_open(model, ids, CONTEXT, &needs, &err);
    must(!ctx, &err);
    Method methods[] = { method("full", NULL, 0, NULL, 0),
                         method("keep-last", "budget", 40, NULL, 0),
                         method("keep-last", "budget", 12, NULL, 0),
                         method("streamingllm", "sinks", 4, "recent", 30),
                         method("corm", "window", 8, "protect", 8) };
    for (size_t i = 0; i < COUNTOF(methods); i++) {
        test_method(&methods[i], ctx);
        test_fork(&methods[i]);
    }
    test_full(&methods[0], ctx);
    context_drop(ctx);
    model_close(model);
    printf("%d failures\n", failures);
    return failures != 0;
}
