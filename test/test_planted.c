// test_planted.c - policies on attention that was worked out by hand. The model is two layers of
// written weights, so that every score is either 0 or far above all others:
//   .  a filler: its key and its queries are 0; it looks at all rows alike
//   N  M  needles: their keys lie along channel 8 and channel 9, queries 0
//   n  m  seekers: keys 0; which needle each head looks for:
//            layer 0   n: N M | N N    m: M M | M M         (heads 0 1 | 2 3 on KV heads 0 | 1)
//            layer 1   n: M M | - -    m: nothing
// A needle that is found takes all attention: everything else is minor. When it is not among the
// live rows, or nothing is sought, attention is uniform and every row important (1/l >= 1/t).
// Rotary frequencies fall to nothing before channel 8, so positions do not matter.
#include "pair.h"

enum { NEEDLE_N = 8, NEEDLE_M = 9, WIDTH = 32 };

static int token(int id) {
    static const char names[] = ".NMnm";
    const char *at = id && id < 256 ? strchr(names, id) : NULL;
    return at ? (int)(at - names) : -1;
}

static float weight(const char *name, int row, int col) {
    static const int seek[2][2][4] = {      // layer, n or m, head
        { { NEEDLE_N, NEEDLE_M, NEEDLE_N, NEEDLE_N }, { NEEDLE_M, NEEDLE_M, NEEDLE_M, NEEDLE_M } },
        { { NEEDLE_M, NEEDLE_M, -1, -1 }, { -1, -1, -1, -1 } },
    };
    const char *part = strrchr(name, '.');
    if (strstr(name, "norm")) return 1;
    if (!strcmp(name, "embed")) return token(row) == col ? 1 : 0;
    int ch = row % WIDTH;
    if (!strcmp(part, ".wk"))
        return (col == 1 && ch == NEEDLE_N) || (col == 2 && ch == NEEDLE_M) ? 2 : 0;
    if (!strcmp(part, ".wq") && (col == 3 || col == 4))
        return seek[name[7] - '0'][col - 3][row / WIDTH] == ch ? 2 : 0;
    return 0;
}

// "1 3 8-10" against the live rows of one head; the runtime was compared with the oracle before
static void expect(const Pair *p, int layer, int g, const char *want) {
    const int32_t *pos;
    int n = branch_rows(p->fast, layer, g, &pos);
    StrBuf got = { 0 };
    for (int i = 0, j; i < n; i = j + 1) {
        for (j = i; j + 1 < n && pos[j + 1] == pos[j] + 1; j++) {}
        str_fmt(&got, "%s%d", i ? " " : "", pos[i]);
        if (j > i) str_fmt(&got, "%s%d", j > i + 1 ? "-" : " ", pos[j]);
    }
    if (strcmp(got.p ? got.p : "", want))
        pair_fail("%s at %d tokens, layer %d, KV head %d: rows %s, by hand %s", p->what,
                  p->slow->pos, layer, g, got.p, want);
    free(got.p);
}

static void expect_all(const Pair *p, const char *l0g0, const char *l0g1, const char *l1g0,
                       const char *l1g1) {
    expect(p, 0, 0, l0g0);
    expect(p, 0, 1, l0g1);
    expect(p, 1, 0, l1g0);
    expect(p, 1, 1, l1g1);
}

static void ids_of(const char *text, int32_t *ids) {
    for (int i = 0; text[i]; i++) ids[i] = text[i];
}

static Pair first(PairModel *m, const NaiveMethod *method, const char *text, int shared,
                  const char *what) {
    int32_t ids[64];
    Err err = { 0 };
    NaiveMethod full = { .kind = NAIVE_FULL };
    NaiveBranch *base = naive_branch(m->slow, full);
    ids_of(text, ids);
    naive_append(base, ids, (int)strlen(text));
    Context *ctx = NULL;
    if (shared) {
        Method fast = pair_method(method, base->pos);
        Needs needs = { 0 };
        method_needs(&fast, &needs);
        ctx = context_open(m->fast, ids, shared, &needs, &err);
        pair_must(!ctx, &err, "context_open");
    }
    Pair p = pair_first(m, base, method, ctx, ids, 4, what);
    if (ctx) context_drop(ctx);
    naive_drop(base);
    return p;
}

static void feed(Pair *p, const char *text) {
    int32_t ids[64];
    ids_of(text, ids);
    pair_feed(p, ids, (int)strlen(text));
}

// w = 4, r = 2; shared: tokens of the first feed that come from a context
static void corm(PairModel *m, int shared) {
    char what[40];
    snprintf(what, sizeof what, "corm w 4 r 2, %d of 10 shared", shared);
    NaiveMethod method = { .kind = NAIVE_CORM, .window = 4, .protect = 2 };
    Pair p = first(m, &method, ".N.M..nnnn", shared, what);
    expect_all(&p, "1 3 8 9", "1 8 9", "3 8 9", "0-9");             // the last 4 queries are n
    pair_step(&p, 'n');
    expect_all(&p, "1 3 9 10", "1 9 10", "3 9 10", "0-10");
    pair_step(&p, '.');                                             // t = 12: all live rows matter
    expect_all(&p, "1 3 9-11", "1 9-11", "3 9-11", "0-11");

    PairMark k = pair_mark(&p);
    pair_step(&p, 'n');
    pair_step(&p, 'n');
    expect_all(&p, "1 3 9-13", "1 9-13", "3 9-13", "0-13");
    pair_step(&p, 'n');                                             // 12 leaves the last two rows
    expect_all(&p, "1 3 9-11 13 14", "1 9-11 13 14", "3 9-11 13 14", "0-14");
    pair_step(&p, 'n');                                             // t = 16: step 12 is too old
    expect_all(&p, "1 3 14 15", "1 14 15", "3 14 15", "0-15");

    feed(&p, "mm");         // layer 0, KV head 1 has no M any more: uniform, all rows matter
    expect_all(&p, "1 3 16 17", "1 14-17", "3 14-17", "0-17");
    pair_step(&p, 'm');     // t = 19: N was last wanted at step 16, 3 steps ago
    expect_all(&p, "1 3 17 18", "1 14-18", "3 14-18", "0-18");
    pair_step(&p, 'm');     // t = 20: 4 steps ago
    expect_all(&p, "3 18 19", "1 14-19", "3 14-19", "0-19");

    pair_rewind(&p, k);                                             // N lives again
    expect_all(&p, "1 3 9-11", "1 9-11", "3 9-11", "0-11");
    feed(&p, "nnnnn");      // t = 17: rows 9 to 11 mattered at 12 <= 17 - 4
    expect_all(&p, "1 3 15 16", "1 15 16", "3 15 16", "0-16");
    pair_drop(&p);
}

// nothing leaves before w queries gave rows; the context is shorter than the window
static void corm_short(PairModel *m, int shared) {
    char what[40];
    snprintf(what, sizeof what, "corm w 4 r 1, %d of 3 shared", shared);
    NaiveMethod method = { .kind = NAIVE_CORM, .window = 4, .protect = 1 };
    Pair p = first(m, &method, "Nnn", shared, what);
    expect_all(&p, "0-2", "0-2", "0-2", "0-2");
    pair_step(&p, 'n');     // t = 4; no M anywhere: head 1 and layer 1 look at everything
    expect_all(&p, "0-3", "0 3", "0-3", "0-3");
    pair_drop(&p);
}

static void lengths(PairModel *m, bool cache) {
    NaiveMethod stream = { .kind = NAIVE_STREAM, .sinks = 2, .recent = 32, .cache = cache };
    NaiveMethod last = { .kind = NAIVE_KEEP_LAST, .budget = 32 };
    const char *text = "N...............................M..n.n..";      // 40 tokens
    Pair p = first(m, &stream, text, 20, cache ? "streamingllm 2+32 cache" : "streamingllm 2+32");
    for (int i = 0; i < 4; i++) expect(&p, i / 2, i % 2, "0 1 8-39");
    pair_step(&p, 'n');
    for (int i = 0; i < 4; i++) expect(&p, i / 2, i % 2, "0 1 9-40");
    feed(&p, "nm.");
    for (int i = 0; i < 4; i++) expect(&p, i / 2, i % 2, "0 1 12-43");
    pair_drop(&p);
    p = first(m, &last, text, 0, "keep-last 32");
    for (int i = 0; i < 4; i++) expect(&p, i / 2, i % 2, "8-39");
    pair_step(&p, 'n');
    for (int i = 0; i < 4; i++) expect(&p, i / 2, i % 2, "9-40");
    feed(&p, "nm.");
    for (int i = 0; i < 4; i++) expect(&p, i / 2, i % 2, "12-43");
    pair_drop(&p);
}

int main(void) {
    pair_init();
    TinySpec s = { .dim = 32, .hidden_dim = 32, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2,
                   .head_dim = WIDTH, .dtype = DT_BF16, .tied = true, .rope_theta = 1e30,
                   .weight = weight };
    PairModel m;
    pair_open(&m, &s, 3);
    static const int shared[] = { 0, 3, 7, 9, 10 };
    for (size_t i = 0; i < COUNTOF(shared); i++) corm(&m, shared[i]);
    for (int i = 0; i < 4; i++) corm_short(&m, i);
    lengths(&m, false);
    lengths(&m, true);
    pair_close(&m);
    printf("%ld comparisons, %d differ\n", pair_checks, pair_failures);
    return pair_failures ? 1 : 0;
}
