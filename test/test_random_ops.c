// test_random_ops.c - random sequences of feed, step, mark, rewind, fork, cut and drop, on branches
// of every method, alone, in batches and on shared contexts that come and go, against the naive
// model of oracle.h where a mark and a fork are whole copies. Logits and live rows are compared
// after every one.
//   test_random_ops [OPERATIONS [SEED]]     SOAK=1 in the environment: 10 times as many
#include "pair.h"

enum { SLOTS = 6, MARKS = 3, CONTEXTS = 3, LONGEST = 900 };

typedef struct {
    bool used;
    Pair pair;
    PairMark mark[MARKS];
    int n_marks;
    char method[120], what[200];
} Slot;

typedef struct {
    Context *fast;              // NULL: free
    NaiveBranch *slow;
    NaiveGroup group;           // of its column sums
    int32_t ids[LONGEST];
} Shared;

typedef struct {
    PairModel m;
    Rng rng;
    uint64_t seed;
    int model, op;
    Slot slot[SLOTS];
    Shared shared[CONTEXTS];
} World;

static const TinySpec specs[] = {
    { .dim = 40, .hidden_dim = 72, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 32,
      .dtype = DT_BF16, .qkv_bias = true, .sharp = 3 },
    { .dim = 32, .hidden_dim = 64, .n_layers = 1, .n_heads = 3, .n_kv_heads = 1, .head_dim = 64,
      .dtype = DT_Q8, .tied = true, .rope_scaling = ROPE_LLAMA3, .sharp = 4 },
    { .dim = 48, .hidden_dim = 48, .n_layers = 2, .n_heads = 2, .n_kv_heads = 2, .head_dim = 32,
      .dtype = DT_BF16, .tied = true, .sharp = 6 },
};

static int below(World *w, int n) { return (int)rng_below(&w->rng, (uint64_t)n); }

static void random_ids(World *w, int32_t *ids, int n) {
    for (int i = 0; i < n; i++) ids[i] = below(w, TINY_VOCAB);
}

// mostly a few tokens, sometimes across a panel of 512
static int random_length(World *w) {
    int kind = below(w, 12);
    return kind == 0 ? 100 + below(w, 100) : kind < 4 ? 1 + below(w, 80) : 1 + below(w, 20);
}

static void say(World *w, Slot *s) {
    char text[sizeof s->what];
    snprintf(text, sizeof text, "seed %llu model %d operation %d slot %d (%s, %d marks)",
             (unsigned long long)w->seed, w->model, w->op, (int)(s - w->slot), s->method,
             s->n_marks);
    memcpy(s->what, text, sizeof text);
    s->pair.what = s->what;
}

// ---------------------------------------------------------------------------
// The operations

static void drop(Slot *s) {
    while (s->n_marks) pair_mark_drop(&s->pair, s->mark[--s->n_marks]);
    pair_drop(&s->pair);
    s->used = false;
}

static void close_shared(Shared *c) {
    context_drop(c->fast);
    naive_drop(c->slow);
    c->fast = NULL;
}

static void open_shared(World *w, Shared *c) {
    Err err = { 0 };
    NaiveMethod full = { .kind = NAIVE_FULL };
    int n = 1 + below(w, 8) * below(w, 70);
    random_ids(w, c->ids, n);
    c->group = (NaiveGroup)below(w, NAIVE_GROUPS);
    Needs needs = { NAIVE_HISTORY, 2, pair_groups[c->group] };
    c->fast = context_open(w->m.fast, c->ids, n, &needs, &err);
    pair_must(!c->fast, &err, "context_open");
    c->slow = naive_branch(w->m.slow, full);
    naive_append(c->slow, c->ids, n);
}

// a root with its first feed, half of them on a shared context
static void open_root(World *w, Slot *s) {
    int32_t ids[LONGEST];
    NaiveMethod full = { .kind = NAIVE_FULL }, method;
    Shared *c = &w->shared[below(w, CONTEXTS)];
    if (!c->fast) open_shared(w, c);
    bool on = below(w, 2);
    NaiveBranch *base = on ? naive_copy(c->slow) : naive_branch(w->m.slow, full);
    NaiveKind kind = (NaiveKind)below(w, NAIVE_KINDS);
    if (!pair_has(kind)) kind = NAIVE_FULL;
    method = pair_random_method(&w->rng, kind, 32 + below(w, 80));
    if (on && (method.kind == NAIVE_H2O || method.kind == NAIVE_ROCO))
        method.group = c->group;
    pair_describe(&method, s->method, sizeof s->method);
    int shared = base->pos, n = on && below(w, 3) == 0 ? 0 : random_length(w);
    memcpy(ids, c->ids, (size_t)shared * sizeof *ids);
    random_ids(w, ids + shared, n);
    naive_append(base, ids + shared, n);
    s->n_marks = 0;
    s->used = true;
    say(w, s);
    s->pair = pair_first(&w->m, base, &method, on ? c->fast : NULL, ids, below(w, 40), s->what);
    naive_drop(base);
}

static void fork_into_free(World *w, Slot *from) {
    for (Slot *s = w->slot; s < w->slot + SLOTS; s++) {
        if (s->used) continue;
        memcpy(s->method, from->method, sizeof s->method);
        s->n_marks = 0;
        s->used = true;
        s->pair = pair_fork(&from->pair, below(w, 30));
        say(w, s);
        return;
    }
}

// every branch that is open, at once
static void batch(World *w) {
    Pair *all[SLOTS];
    int32_t ids[SLOTS];
    int n = 0;
    for (int i = 0; i < SLOTS; i++) {
        if (!w->slot[i].used) continue;
        say(w, &w->slot[i]);
        all[n++] = &w->slot[i].pair;
    }
    random_ids(w, ids, n);
    pair_batch(all, ids, n);
}

static void operate(World *w) {
    Slot *s = &w->slot[below(w, SLOTS)];
    int32_t ids[LONGEST];
    int what = below(w, 100);
    pair_poison = below(w, 2);
    if (!s->used) {
        open_root(w, s);
        return;
    }
    say(w, s);
    if (s->pair.slow->pos > LONGEST - 300) drop(s);
    else if (what < 4) batch(w);
    else if (what < 6 && !s->n_marks && s->pair.slow->pos > 9) pair_cut(&s->pair, 1 + below(w, 8));
    else if (what < 40) pair_step(&s->pair, below(w, TINY_VOCAB));
    else if (what < 62) {
        int n = random_length(w);
        random_ids(w, ids, n);
        pair_feed(&s->pair, ids, n);
    }
    else if (what < 73 && s->n_marks < MARKS) s->mark[s->n_marks++] = pair_mark(&s->pair);
    else if (what < 84 && s->n_marks) pair_rewind(&s->pair, s->mark[--s->n_marks]);
    else if (what < 88 && s->n_marks) {         // any of them, the others stay good
        int i = below(w, s->n_marks);
        PairMark gone = s->mark[i];
        s->n_marks--;
        memmove(s->mark + i, s->mark + i + 1, (size_t)(s->n_marks - i) * sizeof *s->mark);
        pair_mark_drop(&s->pair, gone);
    }
    else if (what < 94) fork_into_free(w, s);
    else if (what < 98) drop(s);
    else if (w->shared[what - 98].fast) close_shared(&w->shared[what - 98]);
}

static void play(World *w, int count) {
    w->rng.s = mix64(w->seed * 8 + (uint64_t)w->model);
    for (w->op = 0; w->op < count && !pair_failures; w->op++) operate(w);
    for (int i = 0; i < SLOTS; i++)
        if (w->slot[i].used) drop(&w->slot[i]);
    for (int i = 0; i < CONTEXTS; i++)
        if (w->shared[i].fast) close_shared(&w->shared[i]);
}

static void run(int model, int count, uint64_t seed) {
    static const int chunk[] = { 1, 5, 64 };
    static World world;
    World *w = &world;
    memset(w, 0, sizeof *w);
    w->model = model;
    w->seed = seed;
    TinySpec spec = specs[model];
    spec.seed = seed;
    pair_open(&w->m, &spec, chunk[(seed + (uint64_t)model) % COUNTOF(chunk)]);
    size_t used[2];
    for (int i = 0; i < 2; i++) {       // the same again: every byte of it must have come back
        play(w, count / 10);
        used[i] = model_mem(w->m.fast)->used;
    }
    if (used[0] != used[1])
        pair_fail("seed %llu model %d: %zu bytes in use with no branch open, %zu after the same "
                  "again", (unsigned long long)seed, model, used[0], used[1]);
    play(w, count);
    pair_close(&w->m);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : SANITIZED ? 800 : 10000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    if (getenv("SOAK")) count *= 10;
    pair_init();
    for (int i = 0; i < (int)COUNTOF(specs); i++) run(i, count / (int)COUNTOF(specs), seed);
    printf("%d operations, %ld comparisons, %d differ\n", count, pair_checks, pair_failures);
    return pair_failures ? 1 : 0;
}
