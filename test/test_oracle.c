// test_oracle.c - the runtime against its slow twin (oracle.h), through scb.h alone: equal logits
// and equal live rows after every feed and step. Models differ in every dimension that a tile, a
// panel or a head group can see; a first feed of each length that crosses an edge runs under every
// method, in chunks of 1, 7 and 256 tokens, alone and on shared contexts, followed by one script of
// turns. With chunks of 7 and 256 evicted rows are filled with NaN after every call.
//   test_oracle [CASE]      one case alone, when a report names it
#include "pair.h"

typedef struct {
    int first;                  // tokens of the first feed
    int group, hd;
    DType dtype;
    int kv_heads, layers, dim, hidden;
    bool tied, bias;
    RopeScaling scaling;
} Case;

// group, head_dim and dtype meet in all pairs; dim and hidden end inside a block of 32
static const Case cases[] = {
    { 1,    1, 32,  DT_BF16, 2, 2, 72,  136, false, false, ROPE_NONE },
    { 1,    4, 64,  DT_F32,  1, 1, 64,  96,  true,  true,  ROPE_LLAMA3 },
    { 31,   3, 64,  DT_Q8,   1, 2, 96,  160, true,  false, ROPE_LLAMA3 },
    { 31,   4, 80,  DT_BF16, 1, 2, 40,  72,  false, true,  ROPE_LINEAR },
    { 33,   4, 128, DT_BF16, 1, 1, 136, 104, true,  false, ROPE_LLAMA3 },
    { 33,   1, 80,  DT_Q8,   3, 2, 64,  100, false, true,  ROPE_NONE },
    { 64,   3, 80,  DT_F32,  1, 2, 56,  88,  false, false, ROPE_NONE },
    { 65,   1, 128, DT_F32,  2, 1, 72,  64,  true,  true,  ROPE_LINEAR },
    { 257,  4, 32,  DT_Q8,   2, 2, 64,  96,  false, false, ROPE_LLAMA3 },
    { 300,  3, 32,  DT_F32,  1, 3, 33,  65,  false, true,  ROPE_NONE },
    { 511,  4, 64,  DT_BF16, 1, 2, 48,  96,  true,  false, ROPE_NONE },
    { 511,  1, 32,  DT_F32,  1, 2, 64,  64,  false, true,  ROPE_LLAMA3 },
    { 512,  3, 32,  DT_BF16, 1, 2, 72,  136, false, true,  ROPE_LINEAR },
    { 512,  1, 64,  DT_Q8,   2, 1, 64,  72,  true,  false, ROPE_LLAMA3 },
    { 513,  1, 80,  DT_BF16, 1, 2, 40,  96,  true,  false, ROPE_LLAMA3 },
    { 513,  4, 32,  DT_F32,  1, 1, 64,  64,  false, false, ROPE_NONE },
    { 1100, 3, 64,  DT_BF16, 1, 1, 64,  96,  false, false, ROPE_LLAMA3 },
    { 1100, 1, 32,  DT_Q8,   2, 2, 48,  80,  true,  true,  ROPE_NONE },
    { 1100, 1, 32,  DT_F32,  1, 2, 32,  64,  false, false, ROPE_NONE },
};

static const int chunks[] = { 1, 7, 256 };

static int32_t some_id(Rng *r) { return (int32_t)rng_below(r, 256); }

static void some_ids(Rng *r, int32_t *ids, int n) {
    for (int i = 0; i < n; i++) ids[i] = some_id(r);
}

// sizes for a first feed of n tokens; window and lists below, at and above it
static NaiveMethod some_method(Rng *r, int kind, int n) {
    static const int budgets[] = { 32, 47, 64, 100, 520, 2000 }, windows[] = { 1, 5, 16, 40 };
    int big = n > 500 ? 6 : 4;
    NaiveMethod p = { .kind = (NaiveKind)kind };
    if (kind == NAIVE_KEEP_LAST) p.budget = budgets[rng_below(r, (uint64_t)big)];
    if (kind == NAIVE_STREAM) {
        p.sinks = 1 + (int)rng_below(r, 6);
        p.recent = budgets[rng_below(r, (uint64_t)big)];
        if (p.recent > 600) p.recent = 512;
        p.cache = rng_below(r, 3) > 0;
    }
    if (kind == NAIVE_CORM) {
        p.window = windows[rng_below(r, COUNTOF(windows))];
        p.protect = windows[rng_below(r, COUNTOF(windows))];
    }
    return p;
}

// turns after the first feed: feed, decode, golden history, requests on forks
static void script(Pair *p, Rng *r) {
    int32_t ids[80];
    some_ids(r, ids, 80);
    for (int i = 0; i < 3; i++) pair_step(p, naive_argmax(p->slow));
    pair_feed(p, ids, 1 + (int)rng_below(r, 50));

    PairMark golden = pair_mark(p);             // generate, forget, feed the golden answer
    for (int i = 0; i < 4; i++) pair_step(p, naive_argmax(p->slow));
    pair_rewind(p, golden);
    pair_feed(p, ids + 40, 1 + (int)rng_below(r, 40));

    PairMark outer = pair_mark(p);              // a mark within a mark, one dropped
    pair_feed(p, ids + 7, 5);
    PairMark inner = pair_mark(p);
    pair_step(p, some_id(r));
    pair_rewind(p, inner);
    pair_step(p, some_id(r));
    pair_rewind(p, outer);
    PairMark unused = pair_mark(p);
    pair_step(p, some_id(r));
    pair_mark_drop(p, unused);

    Pair a = pair_fork(p, 8), b = pair_fork(p, 0);      // two requests and their parent go on
    pair_feed(&a, ids + 3, 17);
    pair_feed(&b, ids + 11, 33);
    pair_step(p, some_id(r));
    pair_step(&a, some_id(r));
    Pair c = pair_fork(&a, 4);
    pair_drop(&a);
    pair_step(&b, some_id(r));
    pair_step(&c, some_id(r));
    pair_drop(&b);
    pair_feed(p, ids + 20, 2);
    pair_feed(&c, ids, 9);
    pair_drop(&c);
    for (int i = 0; i < 3; i++) pair_step(p, some_id(r));
}

static void run_method(PairModel *m, const NaiveBranch *base, const int32_t *ids, const char *name,
                       int kind, int variant, Rng *r) {
    static const char *const names[] = { "full", "keep-last", "streamingllm", "corm" };
    NaiveMethod method = some_method(r, kind, base->pos);
    // nothing shared, all but a few tokens, any cut; all: the first feed adds nothing
    int n = base->pos, any = (int)rng_below(r, (uint64_t)n + 1);
    int cut = variant == 0 ? 0 : variant == 1 ? n - n / 20 - 1 : any;
    char what[200];
    snprintf(what, sizeof what, "%s %s B %d S %d R %d w %d r %d%s, %d of %d shared, chunk %d", name,
             names[kind], method.budget, method.sinks, method.recent, method.window, method.protect,
             method.cache ? " cache" : "", cut, n, chunks[variant]);
    Err err = { 0 };
    Context *ctx = NULL;
    if (cut) {
        Method fast = pair_method(&method, n);
        Needs needs = { 0 };
        method_needs(&fast, &needs);
        ctx = context_open(m->fast, ids, cut, &needs, &err);
        pair_must(!ctx, &err, "context_open");
    }
    Pair p = pair_first(m, base, &method, ctx, ids, 16 * variant, what);
    if (ctx && rng_below(r, 2)) {               // branches hold their own reference
        context_drop(ctx);
        ctx = NULL;
    }
    script(&p, r);
    pair_drop(&p);
    if (ctx) context_drop(ctx);
}

static void run_case(int i) {
    const Case *c = &cases[i];
    TinySpec s = { .dim = c->dim, .hidden_dim = c->hidden, .n_layers = c->layers,
                   .n_heads = c->kv_heads * c->group, .n_kv_heads = c->kv_heads, .head_dim = c->hd,
                   .vocab_size = TINY_VOCAB + i, .dtype = c->dtype, .tied = c->tied,
                   .qkv_bias = c->bias, .rope_scaling = c->scaling, .seed = (uint64_t)i + 1 };
    static const char *const dtypes[] = { "f32", "bf16", "q8" };
    char name[100];
    snprintf(name, sizeof name, "case %d (%s, group %d, head_dim %d)", i, dtypes[c->dtype],
             c->group, c->hd);
    PairModel m;
    pair_open(&m, &s, chunks[0]);
    Rng r = { (uint64_t)i };
    int32_t *ids = (int32_t *)xrealloc(NULL, (size_t)c->first * sizeof *ids);
    some_ids(&r, ids, c->first);
    NaiveMethod full = { .kind = NAIVE_FULL };
    NaiveBranch *base = naive_branch(m.slow, full);
    naive_append(base, ids, c->first);
    for (int variant = 0; variant < (int)COUNTOF(chunks); variant++) {
        if (variant) pair_open_fast(&m, chunks[variant]);
        pair_poison = variant > 0;
        for (int kind = NAIVE_FULL; kind <= NAIVE_CORM; kind++)
            run_method(&m, base, ids, name, kind, variant, &r);
    }
    naive_drop(base);
    free(ids);
    pair_close(&m);
}

int main(int argc, char **argv) {
    pair_init();
    for (int i = 0; i < (int)COUNTOF(cases); i++)
        if (argc < 2 ? !SANITIZED || i % 12 == 0 : i == atoi(argv[1])) run_case(i);
    printf("%ld comparisons, %ld within 1e-5 but not equal (f32), %d differ\n", pair_checks,
           pair_near, pair_failures);
    return pair_failures ? 1 : 0;
}
