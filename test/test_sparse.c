// test_sparse.c - sparse prefill: lists against plain loops over every pair, attention over a list
// against the rule of one row to the bit, the estimation against double sums, and whole feeds.
#include "../scb.h"
#include "tinymodel.h"
#include <omp.h>

static int failures;

__attribute__((format(printf, 2, 3)))
static void expect(bool ok, const char *fmt, ...) {
    va_list ap;
    if (ok) return;
    va_start(ap, fmt);
    if (failures++ < 20) {
        vprintf(fmt, ap);
        printf("\n");
    }
    va_end(ap);
}

static float uniform(Rng *r) { return (float)(rng_next(r) >> 40) * 0x1p-23f - 1.0f; }
static int below(Rng *r, int n) { return (int)rng_below(r, (uint64_t)n); }

// ---------------------------------------------------------------------------
// Lists. What a head keeps, as plain marks, and the list of a block from their definitions.

enum { MAX_LEN = 2600, MAX_SPANS = MAX_LEN + 100 };

typedef struct {
    HeadLists l;
    int32_t vertical[MAX_LEN];
    uint64_t slash[MAX_LEN / 64 + 1];
    bool column[MAX_LEN], distance[MAX_LEN];
    float score[MAX_LEN / 64 + 1];          // of the tiles
} Kept;

static void keep_column(Kept *k, int j) { k->column[j] = true; }
static void keep_distance(Kept *k, int d) { k->distance[d] = true; }

static void kept_settle(Kept *k) {
    memset(k->slash, 0, sizeof k->slash);
    k->l.n_vertical = 0;
    for (int j = 0; j < k->l.len; j++) {
        if (k->column[j]) k->vertical[k->l.n_vertical++] = j;
        if (k->distance[j]) k->slash[j / 64] |= 1ull << j % 64;
    }
    k->l.vertical = k->vertical;
    k->l.slash = k->slash;
}

// the interval rule of the published converter: largest distance first, every kept one looked at
static void vertical_slash_plain(const Kept *k, int block, uint8_t *in) {
    int e = k->l.len - k->l.n + 64 * (block + 1), last = 0, A = -1, E = -1;
    memset(in, 0, MAX_LEN + 64);
    for (int d = k->l.len - 1; d >= 0; d--) {
        if (!k->distance[d] || d >= e) continue;
        int R = e - d > 64 ? e - d : 64;
        if (A < 0) { A = R - 64; E = R; }
        else if (R > E + 64) {
            for (int j = A; j < E; j++) in[j] = 1;
            A = R - 64;
            E = R;
        } else if (R > E) E += 64;
    }
    for (int j = A; j < E; j++) in[j] = 1;
    last = E;
    for (int j = 0; j < k->l.len && j < last; j++) in[j] |= k->column[j];
}

static void a_shape_plain(const Kept *k, int block, uint8_t *in) {
    int first = k->l.len - k->l.n + 64 * block;
    memset(in, 0, MAX_LEN + 64);
    for (int i = first; i < first + 64 && i < k->l.len; i++)
        for (int j = 0; j <= i; j++) {
            bool sees = j < k->l.sinks || i - j < k->l.local || i >= k->l.len - k->l.dense_rows;
            for (int x = j / 64 * 64; sees && x < j / 64 * 64 + 64; x++) in[x] = 1;
        }
}

static void block_sparse_plain(const Kept *k, int block, uint8_t *in) {
    int first = k->l.len - k->l.n + 64 * block, tiles = first / 64 + 1;
    const float *score = k->score;
    memset(in, tiles <= k->l.blocks, MAX_LEN + 64);
    for (int t = 0; t < tiles; t++) {
        int before = 0;
        for (int u = 0; u < tiles; u++)
            before += score[u] > score[t] || (score[u] == score[t] && u < t);
        for (int j = 64 * t; before < k->l.blocks && j < 64 * t + 64; j++) in[j] = 1;
    }
}

static void check_list(const Kept *k, int block, const uint8_t *in, const char *what) {
    static KeySpan span[MAX_SPANS];
    static int32_t chosen[MAX_LEN];
    static uint8_t got[MAX_LEN + 64];
    int n = attn_list(&k->l, block, k->score, span, chosen);
    int end = k->l.len - k->l.n + 64 * (block + 1), at = 0;
    if (end > k->l.len) end = k->l.len;
    memset(got, 0, sizeof got);
    for (int i = 0; i < n; i++) {
        expect(span[i].at >= at && span[i].n > 0 && span[i].at + span[i].n <= end,
               "%s: span %d is [%d, %d) behind %d, the list ends at %d", what, i, span[i].at,
               span[i].at + span[i].n, at, end);
        at = span[i].at + span[i].n;
        for (int j = span[i].at; j < at; j++) got[j] = 1;
    }
    for (int j = 0; j < end; j++)
        if (got[j] != in[j]) {
            expect(false, "%s, len %d, n %d, block %d: entry %d %s", what, k->l.len, k->l.n, block,
                   j, got[j] ? "should not be there" : "is missing");
            return;
        }
}

static void random_kept(Rng *r, Kept *k) {
    memset(k, 0, sizeof *k);
    k->l.kind = (HeadKind)below(r, 3);
    k->l.len = 1 + below(r, below(r, 3) ? 700 : MAX_LEN - 1);
    k->l.n = below(r, 2) ? k->l.len : 1 + below(r, k->l.len);
    k->l.sinks = below(r, 200);
    k->l.local = 1 + below(r, 600);
    k->l.dense_rows = below(r, 2) ? 0 : below(r, 150);
    if (k->l.dense_rows > k->l.n) k->l.dense_rows = k->l.n;
    k->l.blocks = 1 + below(r, 12);
    for (int j = below(r, 40); j < k->l.len; j += 1 + below(r, 120)) keep_column(k, j);
    int band = below(r, 120);
    for (int d = 0; d < k->l.len; d++)
        if (d <= band || below(r, 200) == 0) keep_distance(k, d);
    for (size_t i = 0; i < COUNTOF(k->score); i++) k->score[i] = (float)below(r, 20) - 10;
    kept_settle(k);
}

static void random_lists(int cases) {
    static Kept k;
    static uint8_t in[MAX_LEN + 64];
    static const char *const what[] = { "vertical-slash", "a-shape", "block-sparse" };
    Rng r = { 11 };
    for (int c = 0; c < cases; c++) {
        random_kept(&r, &k);
        int block = below(&r, CEIL_DIV(k.l.n, 64));
        if (k.l.kind == HEAD_VERTICAL_SLASH) vertical_slash_plain(&k, block, in);
        else if (k.l.kind == HEAD_A_SHAPE) a_shape_plain(&k, block, in);
        else block_sparse_plain(&k, block, in);
        check_list(&k, block, in, what[k.l.kind]);
    }
}

// the published converter's output on given sets (facts 7): blocks of 64 from these offsets
static void published_vectors(void) {
    static const int columns[] = { 0, 1, 2, 3, 130, 250, 300 }, distances[] = { 0, 1, 2, 100, 101,
        200 };
    static const struct { int n, block, blocks, from[4], columns; } cases[] = {
        { 512, 5, 4, { 120, 219, 283, 347 }, 4 },
        { 13000, 0, 1, { 0 }, 0 }, { 13000, 1, 2, { 0, 64 }, 0 },
        { 13000, 2, 3, { 29, 93, 157 }, 29 },
        { 13000, 3, 3, { 93, 157, 221 }, 30 }, { 13000, 200, 3, { 12701, 12765, 12829 }, 30 },
    };
    static int32_t vertical[64];
    static uint64_t slash[13000 / 64 + 1];
    for (size_t c = 0; c < COUNTOF(cases); c++) {
        HeadLists l = { .kind = HEAD_VERTICAL_SLASH, .len = cases[c].n, .n = cases[c].n,
                        .vertical = vertical, .slash = slash };
        KeySpan span[400];
        int end = 64 * (cases[c].block + 1), at = 0, n_in = 0;
        memset(slash, 0, sizeof slash);
        if (c == 0) {
            for (size_t i = 0; i < COUNTOF(columns); i++) vertical[l.n_vertical++] = columns[i];
            for (size_t i = 0; i < COUNTOF(distances); i++)
                slash[distances[i] / 64] |= 1ull << distances[i] % 64;
        } else {
            for (int i = 0; i < 30; i++) vertical[l.n_vertical++] = i;
            for (int d = 0; d < 100; d++) slash[d / 64] |= 1ull << d % 64;
        }
        int n = attn_list(&l, cases[c].block, NULL, span, NULL), listed = 0;
        for (int i = 0; i < n; i++) listed += span[i].n;
        uint8_t in[13064] = { 0 };
        for (int i = 0; i < cases[c].columns; i++) in[i] = 1;
        for (int i = 0; i < cases[c].blocks; i++)
            for (int j = cases[c].from[i]; j < cases[c].from[i] + 64; j++) in[j] = 1;
        for (int j = 0; j < end; j++) n_in += in[j];
        for (int i = 0; i < n; i++)
            for (int j = span[i].at; j < span[i].at + span[i].n; j++) at += in[j];
        expect(listed == n_in && at == n_in, "published vector %zu: %d entries, %d of them right, "
               "wanted %d", c, listed, at, n_in);
    }
}

static void top_k_ties(void) {
    Rng r = { 3 };
    float x[500];
    int32_t got[500];
    for (int c = 0; c < 400; c++) {
        int n = 1 + below(&r, 500), k = 1 + below(&r, n), at = 0;
        for (int i = 0; i < n; i++)
            x[i] = below(&r, 9) == 0   ? INFINITY
                   : below(&r, 5) == 0 ? -0.0f
                                       : (float)(below(&r, 7) - 3) * 0.5f;
        int m = top_k(x, n, k, got);
        expect(m == k, "top %d of %d gave %d", k, n, m);
        for (int i = 0; i < n; i++) {
            int before = 0;
            for (int j = 0; j < n; j++) before += x[j] > x[i] || (x[j] == x[i] && j < i);
            bool in = at < m && got[at] == i;
            at += in;
            expect(in == (before < k), "top %d of %d: entry %d", k, n, i);
        }
    }
}

static const float *ranked;             // of by_rank

static int by_rank(const void *a, const void *b) {
    int i = *(const int32_t *)a, j = *(const int32_t *)b;
    return ranked[i] != ranked[j] ? (ranked[i] < ranked[j] ? 1 : -1) : i - j;
}

static int by_number(const void *a, const void *b) {
    return *(const int32_t *)a - *(const int32_t *)b;
}

// many values: alike, in clusters, or so that most of them reach what is looked for in groups
static void top_k_many(Rng *r, int cases) {
    enum { MOST = 40000 };
    static float x[MOST];
    static int32_t order[MOST], got[MOST];
    for (int c = 0; c < cases; c++) {
        int n = 1 + below(r, MOST), k = 1 + below(r, c % 3 ? 1 + n / 20 : n);
        int height = 1 + below(r, 8);
        for (int i = 0; i < n; i++) {
            x[i] = c % 4 == 0 ? (float)below(r, height) : uniform(r);
            if (c % 4 == 1) x[i] = expf(30 * x[i]);
            if (c % 4 == 2 && i / 300 % 7 == 0) x[i] += 2;
            if (c % 4 == 3 && i % 256 < 200) x[i] = (float)(i % 256 < below(r, 256));
            order[i] = i;
        }
        ranked = x;
        qsort(order, (size_t)n, sizeof *order, by_rank);
        qsort(order, (size_t)k, sizeof *order, by_number);
        expect(top_k(x, n, k, got) == k && !memcmp(got, order, (size_t)k * sizeof *got),
               "the largest %d of %d, kind %d", k, n, c % 4);
    }
}

// ---------------------------------------------------------------------------
// Attention over a list: one row at a time, the rule of SEMANTICS 1 as it is written

typedef struct {
    AttnShape s;
    Mem mem;
    int len;
    char *k, *v;                // (len, hd) elements
    int32_t *pos, *live;
    float *inv_freq;
    KeyList list;
    char *panels;
    void *scratch;
} Keys;

static float *floats(size_t n) { return (float *)xrealloc(NULL, n * sizeof(float)); }

static void keys_make(Rng *r, Keys *k, MulKind kind, int hd, int len, bool live, bool by_index) {
    int rows = live ? len + len / 2 + 3 : len, kept = 0;
    memset(k, 0, sizeof *k);
    k->inv_freq = floats((size_t)hd / 2);
    for (int i = 0; i < hd / 2; i++) k->inv_freq[i] = 1.0f / (float)(1 + i);
    k->s.kind = kind;
    k->s.head_dim = hd;
    k->s.n_heads = k->s.n_kv_heads = 1;
    k->s.elem = kind == MUL_F32 ? 4 : 2;
    k->s.scale = (float)(1.4426950408889634 / sqrt((double)hd));
    k->s.rope_dim = hd;
    k->s.inv_freq = k->inv_freq;
    k->len = len;
    k->k = (char *)xrealloc(NULL, (size_t)rows * hd * k->s.elem);
    k->v = (char *)xrealloc(NULL, (size_t)rows * hd * k->s.elem);
    k->pos = (int32_t *)xrealloc(NULL, (size_t)rows * sizeof *k->pos);
    k->live = (int32_t *)xrealloc(NULL, (size_t)rows * sizeof *k->live);
    for (int i = 0; i < rows * hd; i++) {
        float a = uniform(r) * 4, b = uniform(r);
        if (k->s.elem == 4) { ((float *)k->k)[i] = a; ((float *)k->v)[i] = b; }
        else { ((uint16_t *)k->k)[i] = f32_bf16(a); ((uint16_t *)k->v)[i] = f32_bf16(b); }
    }
    for (int i = 0; i < rows; i++) {
        k->pos[i] = i;
        if (kept < len && (below(r, 3) || rows - i <= len - kept)) k->live[kept++] = i;
    }
    KeyList list = { .split = rows / 2, .live = live ? k->live : NULL, .len = len,
                     .by_index = by_index };
    list.k[0] = k->k;
    list.v[0] = k->v;
    list.pos[0] = k->pos;
    list.k[1] = k->k + (size_t)list.split * hd * k->s.elem;
    list.v[1] = k->v + (size_t)list.split * hd * k->s.elem;
    list.pos[1] = k->pos + list.split;
    k->list = list;
    k->panels =
        (char *)mem_take(&k->mem, (size_t)CEIL_DIV(len, PANEL), attn_panel_bytes(&k->s), "");
    k->scratch = mem_take(&k->mem, 1, attn_scratch_bytes(&k->s), "");
    attn_pack(&k->s, k->panels, &k->list, 0, len, k->scratch);
}

static void keys_free(Keys *k) {
    free(k->k);
    free(k->v);
    free(k->pos);
    free(k->live);
    free(k->inv_freq);
    mem_give(&k->mem, k->panels, (size_t)CEIL_DIV(k->len, PANEL) * attn_panel_bytes(&k->s));
    mem_give(&k->mem, k->scratch, attn_scratch_bytes(&k->s));
}

static float rounded(const Keys *k, float x) { return k->s.kind == MUL_F32 ? x : round_bf16(x); }

// channel i of entry j's key (turned to its place in the list) or value
static float element(const Keys *k, bool value, int j, int i) {
    const char *base = value ? k->v : k->k;
    int row = k->list.live ? k->list.live[j] : j, hd = k->s.head_dim, half = hd / 2;
    size_t at = (size_t)row * hd;
#define AT(c) (k->s.elem == 4 ? ((const float *)base)[at + (c)]                                    \
                              : bf16_f32(((const uint16_t *)base)[at + (c)]))
    if (value || !k->list.by_index || row == j) return AT(i);
    float sn, cs, a = AT(i % half), b = AT(i % half + half);
    fsincos((float)(j - row) * k->inv_freq[i % half], &sn, &cs);
    return rounded(k, i < half ? fmaf(a, cs, -(b * sn)) : fmaf(b, cs, a * sn));
#undef AT
}

static float dot32(const float *a, const float *b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i += 32) {
        float c[2] = { 0, 0 };
        for (int j = i; j < n && j < i + 32; j++) c[j & 1] = fmaf(a[j], b[j], c[j & 1]);
        sum += c[0] + c[1];
    }
    return sum;
}

// entries j[0..n) of a list, seen[] of them visible -> out (hd), lse2
static float plain_row(const Keys *k, const float *q, const int *j, const bool *seen, int n,
                       float *out) {
    int hd = k->s.head_dim;
    float m = 0, l = 0, *key = floats((size_t)hd), *qr = floats((size_t)hd);
    float p[PANEL], e[PANEL], col[PANEL];
    bool any = false;
    for (int i = 0; i < hd; i++) qr[i] = rounded(k, q[i]);
    for (int first = 0; first < n; first += PANEL) {
        int c = n - first < PANEL ? n - first : PANEL;
        float mp = -INFINITY, lane[LANES] = { 0 };
        for (int x = 0; x < c; x++) {
            for (int i = 0; i < hd; i++) key[i] = element(k, false, j[first + x], i);
            e[x] = seen[first + x] ? dot32(qr, key, hd) * k->s.scale : -INFINITY;
            mp = e[x] > mp ? e[x] : mp;
        }
        if (mp == -INFINITY) continue;
        for (int x = 0; x < c; x++) {
            float v = fexp2(e[x] - mp);
            lane[x % LANES] += v;
            p[x] = rounded(k, v);
        }
        float lp = lanes_sum(lane), top = !any || mp > m ? mp : m;
        float a = any ? fexp2(m - top) : 0, b = fexp2(mp - top);
        for (int i = 0; i < hd; i++) {
            for (int x = 0; x < c; x++) col[x] = element(k, true, j[first + x], i);
            float o = dot32(p, col, c);
            out[i] = any ? fmaf(out[i], a, o * b) : o;
        }
        l = any ? fmaf(l, a, lp * b) : lp;
        m = top;
        any = true;
    }
    for (int i = 0; i < hd; i++) out[i] /= l;
    free(key);
    free(qr);
    return m + flog2(l);
}

// f32 models: levels may differ by 1e-5
static bool equal(const Keys *k, float a, float b) {
    return a == b || (k->s.kind == MUL_F32 && fabsf(a - b) <= 1e-5f * (1 + fabsf(b)));
}

static void attention_case(Rng *r, MulKind kind) {
    static Kept kept;
    static KeySpan span[MAX_SPANS];
    static int32_t chosen[MAX_LEN];
    static int j[MAX_LEN];
    static bool seen[MAX_LEN];
    int hd = 8 * (1 + below(r, 12));
    bool live = below(r, 3) == 0;
    Keys k;
    random_kept(r, &kept);
    HeadLists *l = &kept.l;
    keys_make(r, &k, kind, hd, l->len, live, live && below(r, 2));
    int block = below(r, CEIL_DIV(l->n, 64)), len = 0;
    int rows = l->n - 64 * block < 64 ? l->n - 64 * block : 64, own = l->len - l->n + 64 * block;
    float *q = floats((size_t)rows * hd), *out = floats((size_t)rows * hd), lse2[64];
    float *want = floats((size_t)hd);
    for (int i = 0; i < rows * hd; i++) q[i] = uniform(r);
    AttnBlock a = { .keys = &k.list, .panels = k.panels, .span = span, .q = q, .ldq = (size_t)hd,
                    .rows = rows, .own = own, .out = out, .ldo = (size_t)hd, .lse2 = lse2 };
    a.n_spans = attn_list(l, block, kept.score, span, chosen);
    if (l->kind == HEAD_A_SHAPE) {
        a.sinks = l->sinks;
        a.local = l->local;
        a.windowed = l->n - l->dense_rows - 64 * block;
    }
    for (int i = 0; i < a.n_spans; i++)
        for (int x = 0; x < span[i].n; x++) j[len++] = span[i].at + x;
    int64_t pairs = attn_block(&k.s, &a, k.scratch);
    expect(pairs == (int64_t)rows * len, "%lld pairs computed, %d rows of %d entries",
           (long long)pairs, rows, len);
    for (int i = below(r, 7); i < rows; i += 7) {
        for (int x = 0; x < len; x++)
            seen[x] = j[x] <= own + i && (i >= a.windowed || j[x] < a.sinks ||
                                          j[x] > own + i - a.local);
        float lse = plain_row(&k, q + (size_t)i * hd, j, seen, len, want);
        int bad = 0;
        for (int c = 0; c < hd; c++) bad += !equal(&k, out[(size_t)i * hd + c], want[c]);
        expect(bad == 0 && equal(&k, lse2[i], lse),
               "kind %d, pattern %d, hd %d, len %d, block %d, row %d: %d channels differ, lse2 "
               "%.9g and %.9g", kind, l->kind, hd, l->len, block, i, bad, (double)lse2[i],
               (double)lse);
    }
    free(q);
    free(out);
    free(want);
    keys_free(&k);
}

// a list that holds everything gives the bits of dense attention
static void whole_list_is_dense(Rng *r, MulKind kind) {
    enum { LEN = 1337, WIDTH = 64 };
    Keys k;
    keys_make(r, &k, kind, WIDTH, LEN, false, false);
    float *q = floats(64 * WIDTH), *a = floats(64 * WIDTH), *b = floats(64 * WIDTH), la[64], lb[64];
    for (int i = 0; i < 64 * WIDTH; i++) q[i] = uniform(r);
    const KeySpan pieces[] = { { 0, 3 }, { 3, 61 }, { 64, 700 }, { 764, LEN - 764 } };
    AttnRows dense = { .panels = k.panels, .q = q, .ldq = WIDTH, .rows = 64, .vis0 = LEN - 63,
                       .vis_step = 1, .out = a, .ldo = WIDTH, .lse2 = la };
    AttnBlock list = { .keys = &k.list, .panels = k.panels, .span = pieces, .n_spans = 4, .q = q,
                       .ldq = WIDTH, .rows = 64, .own = LEN - 64, .out = b, .ldo = WIDTH,
                       .lse2 = lb };
    attn_rows(&k.s, &dense, k.scratch);
    attn_block(&k.s, &list, k.scratch);
    expect(!memcmp(a, b, 64 * WIDTH * sizeof *a) && !memcmp(la, lb, sizeof la),
           "kind %d: a whole list in pieces is not dense", kind);
    free(q);
    free(a);
    free(b);
    keys_free(&k);
}

// ---------------------------------------------------------------------------
// The estimation against sums in double precision

static void estimation(Rng *r, int len, int rows) {
    enum { WIDTH = 32 };
    Keys k;
    keys_make(r, &k, mul_kind(DT_BF16), WIDTH, len, false, false);
    float *q = floats((size_t)rows * WIDTH), *column = floats((size_t)len), key[WIDTH], qr[WIDTH];
    float *distance = floats((size_t)len);
    double *c = (double *)calloc((size_t)len, sizeof *c);
    double *d = (double *)calloc((size_t)len, sizeof *d);
    double *p = (double *)calloc((size_t)len, sizeof *p), sums[2] = { 0, 0 };
    for (int i = 0; i < rows * WIDTH; i++) q[i] = uniform(r);
    for (int a = 0; a < rows; a++) {
        int own = len - rows + a;
        double sum = 0;
        for (int i = 0; i < WIDTH; i++) qr[i] = round_bf16(q[a * WIDTH + i]);
        for (int j = 0; j <= own; j++) {
            double s = 0;
            for (int i = 0; i < WIDTH; i++) key[i] = element(&k, false, j, i);
            for (int i = 0; i < WIDTH; i++) s += (double)qr[i] * key[i];
            sum += p[j] = exp(s / sqrt(WIDTH));
        }
        for (int j = 0; j <= own; j++) {
            c[j] += p[j] / sum;
            d[own - j] += p[j] / sum;
        }
    }
    AttnProbe probe = { k.panels, len, q, rows };
    attn_estimate(&k.s, &probe, column, distance, k.scratch);
    for (int j = 0; j < len; j++) {
        expect(fabs(column[j] - c[j]) <= 1e-5 + 1e-4 * c[j] &&
               fabs(distance[j] - d[j]) <= 1e-5 + 1e-4 * d[j],
               "len %d, %d rows: column %d %g (%g), distance %g (%g)", len, rows, j,
               (double)column[j], c[j], (double)distance[j], d[j]);
        sums[0] += column[j];
        sums[1] += distance[j];
    }
    expect(fabs(sums[0] - rows) < 1e-3 && fabs(sums[1] - rows) < 1e-3,
           "len %d: columns sum to %g, distances to %g, not to %d rows", len, sums[0], sums[1],
           rows);
    free(q); free(column); free(distance); free(c); free(d); free(p);
    keys_free(&k);
}

// forced columns and distances come first, then scores; a set that is too small keeps the smallest
static void selection(void) {
    enum { N = 400 };
    float column[N], distance[N];
    int32_t vertical[N], scratch[N];
    uint64_t slash[N / 64 + 1];
    for (int i = 0; i < N; i++) { column[i] = (float)(i % 50); distance[i] = (float)(N - i); }
    int n = attn_select(column, distance, N, 35, 60, 100, vertical, slash, scratch), kept = 0;
    static const int more[] = { 49, 99, 149, 199, 249 };
    expect(n == 35 && vertical[0] == 0 && vertical[29] == 29, "the first 30 columns are kept");
    for (int i = 0; i < 5; i++)
        expect(vertical[30 + i] == more[i], "column %d, not %d", vertical[30 + i], more[i]);
    for (int d = 0; d < N; d++) kept += slash[d / 64] >> d % 64 & 1;
    expect(kept == 60 && slash[0] >> 59 == 1, "60 of 100 forced distances: the smallest");
    n = attn_select(column, distance, 20, 35, 60, 100, vertical, slash, scratch);
    expect(n == 20 && slash[0] == (1u << 20) - 1, "more wanted than there are");
}

// Where sizes alone make every list whole nothing is estimated: no query is there to look at. The
// lists are those that the estimation gives.
static void whole_by_size(Rng *r, int cases) {
    enum { WIDTH = 32 };
    for (int c = 0; c < cases; c++) {
        int len = 1 + below(r, c % 2 ? 130 : 700), n = below(r, 2) ? len : 1 + below(r, len);
        int rows = n < 64 ? n : 64, a = below(r, 2) ? len + below(r, 9) : below(r, len);
        int b = a >= len ? 1 + below(r, len) : len + below(r, 90);
        if (c % 2) { a = below(r, 60); b = below(r, 200); }
        HeadPattern p = { HEAD_VERTICAL_SLASH, a, b, 0 };
        Keys k;
        if (c % 2 && sparse_estimates(&p, 1, len, n)) continue;
        keys_make(r, &k, mul_kind(DT_BF16), WIDTH, len, below(r, 2), false);
        const void *panels = k.panels;
        SparseLayer layer = { &p, 0, &k.s, &k.list, &panels, n, NULL, rows };
        Sparse *sparse = sparse_open(&k.mem, &k.s);
        sparse_reserve(sparse, len, a, 0);
        expect(!sparse_estimates(&p, 1, len, n), "%d columns, %d distances of %d: estimated", a, b,
               len);
        sparse_plan(sparse, &layer, (char *)k.scratch, attn_scratch_bytes(&k.s));

        float *q = floats((size_t)rows * WIDTH), *sums = floats(2 * (size_t)len);
        int32_t vertical[700], spent[700];
        uint64_t slash[11] = { 0 };
        for (int i = 0; i < rows * WIDTH; i++) q[i] = uniform(r);
        AttnProbe probe = { k.panels, len, q, rows };
        HeadLists slow = { .kind = p.kind, .len = len, .n = n, .vertical = vertical,
                           .slash = slash };
        attn_estimate(&k.s, &probe, sums, sums + len, k.scratch);
        slow.n_vertical = attn_select(sums, sums + len, len, a, b, 100, vertical, slash, spent);
        for (int block = 0; block < CEIL_DIV(n, 64); block++) {
            KeySpan got[800], want[800];
            int m = attn_list(sparse_head(sparse, 0), block, NULL, got, spent);
            expect(m == attn_list(&slow, block, NULL, want, spent) && m == 1 &&
                   !memcmp(got, want, sizeof *got), "%d columns, %d distances of %d, block %d: "
                   "%d spans, the first [%d, %d), not [0, %d)", a, b, len, block, m, got->at,
                   got->at + got->n, want->n);
        }
        free(q);
        free(sums);
        sparse_close(sparse);
        keys_free(&k);
    }
    HeadPattern few = { HEAD_VERTICAL_SLASH, 250, 260, 0 }, tiles = { HEAD_BLOCK_SPARSE, 1, 0, 0 };
    expect(sparse_estimates(&few, 1, 261, 261) && !sparse_estimates(&few, 1, 260, 260) &&
           !sparse_estimates(&few, 1, 250, 64) && !sparse_estimates(&tiles, 1, 900, 900),
           "what is estimated");
    HeadPattern band = { HEAD_VERTICAL_SLASH, 64, 64, 0 };      // 128 - 64 - 63 <= 30
    expect(!sparse_estimates(&band, 1, 128, 128) && sparse_estimates(&band, 1, 129, 129),
           "a band that reaches the first columns");
}

// However many threads share out the keys, all heads' estimations at once are one head's alone
static void estimated_in_parts(Rng *r, int len, int n) {
    enum { WIDTH = 32, H = 4, MOST = 9000 };
    static const int threads[] = { 1, 2, 5, 40 };
    const HeadPattern p[H] = { { HEAD_VERTICAL_SLASH, 60, 70, 0 }, { HEAD_A_SHAPE, 9, 99, 0 },
                               { HEAD_VERTICAL_SLASH, 10, len, 0 },
                               { HEAD_VERTICAL_SLASH, 40, 300, 0 } };
    static int32_t vertical[MOST], spent[MOST];
    uint64_t slash[MOST / 64 + 1];
    int rows = n < 64 ? n : 64;
    size_t each = (size_t)rows * WIDTH;
    Keys k[2];
    KeyList list[2];
    const void *panels[2];
    for (int g = 0; g < 2; g++) {       // the second list is shorter, as after an eviction
        keys_make(r, &k[g], mul_kind(DT_BF16), WIDTH, g ? len - len / 3 : len, g, false);
        list[g] = k[g].list;
        panels[g] = k[g].panels;
    }
    AttnShape s = k[0].s;
    s.n_heads = H;
    s.n_kv_heads = 2;
    float *q = floats(H * each), *sums = floats(2 * (size_t)len);
    for (size_t i = 0; i < H * each; i++) q[i] = uniform(r);
    SparseLayer layer = { p, 0, &s, list, panels, n, q, rows };
    for (size_t t = 0; t < COUNTOF(threads) - SANITIZED; t++) {
        omp_set_num_threads(threads[t]);
        size_t scratch = (attn_scratch_bytes(&s) + 4095) & ~(size_t)4095;
        char *all = (char *)mem_take(&k[0].mem, (size_t)threads[t], scratch, "");
        Sparse *sparse = sparse_open(&k[0].mem, &s);
        sparse_reserve(sparse, len, 60, 0);
        sparse_plan(sparse, &layer, all, scratch);
        for (int h = 0; h < H; h++) {
            int m = list[h / 2].len;
            const HeadLists *l = sparse_head(sparse, h);
            if (!sparse_estimates(&p[h], 1, m, n)) continue;
            AttnProbe probe = { panels[h / 2], m, q + (size_t)h * each, rows };
            attn_estimate(&s, &probe, sums, sums + m, k[0].scratch);
            int kept = attn_select(sums, sums + m, m, p[h].a, p[h].b, 100, vertical, slash, spent);
            expect(l->n_vertical == kept &&
                   !memcmp(l->vertical, vertical, (size_t)kept * sizeof *vertical) &&
                   !memcmp(l->slash, slash, (size_t)CEIL_DIV(m, 64) * sizeof *slash),
                   "%d keys, %d rows, %d threads, head %d: other columns or distances", m, rows,
                   threads[t], h);
        }
        sparse_close(sparse);
        mem_give(&k[0].mem, all, (size_t)threads[t] * scratch);
    }
    omp_set_num_threads(1);
    free(q);
    free(sums);
    keys_free(&k[0]);
    keys_free(&k[1]);
}

// ---------------------------------------------------------------------------
// Whole feeds on a small model

static const TinySpec spec = { .dim = 48, .hidden_dim = 64, .n_layers = 2, .n_heads = 6,
                               .n_kv_heads = 2, .head_dim = 32, .dtype = DT_BF16, .seed = 9,
                               .sharp = 6 };
enum { FEED = SANITIZED ? 333 : 777, MORE = 90 };
static int32_t ids[FEED + MORE];

// set: "name=value name=value"
static Method method_of(const char *name, const char *set) {
    Method m;
    Err err = { 0 };
    char text[256], *save = NULL;
    CHECK(!method_find(name, &m, &err), "%s", err.msg);
    snprintf(text, sizeof text, "%s", set);
    for (char *s = strtok_r(text, " ", &save); s; s = strtok_r(NULL, " ", &save)) {
        char *eq = strchr(s, '=');
        *eq = 0;
        CHECK(!method_set(&m, s, eq + 1, &err), "%s", err.msg);
    }
    CHECK(!method_resolve(&m, PRESET_SCBENCH, FEED, 0, -1, &err), "%s", err.msg);
    return m;
}

typedef struct {
    float logits[3][TINY_VOCAB];        // after a feed, a feed, a step
    double ratio[2], rows;              // after the feeds; after the first
} Played;

static Played play(Model *model, const Method *m, bool shared) {
    Played p;
    Err err = { 0 };
    Needs needs = { 0, 0, GROUP_MEAN };
    method_needs(m, &needs);
    Context *c = shared ? context_open_sparse(model, m, ids, FEED, &needs, &err) : NULL;
    CHECK(c || !shared, "%s", err.msg);
    Branch *b = branch_open(model, c, m, 0, &err);
    CHECK(b, "%s", err.msg);
    CHECK(!branch_feed(b, ids, shared ? 0 : FEED, FEED_FIRST, &err), "%s", err.msg);
    memcpy(p.logits[0], branch_logits(b), sizeof p.logits[0]);
    p.ratio[0] = branch_stats(b).pairs_ratio;
    p.rows = branch_stats(b).rows_mean;
    CHECK(!branch_feed(b, ids + FEED, MORE, 0, &err), "%s", err.msg);
    memcpy(p.logits[1], branch_logits(b), sizeof p.logits[1]);
    p.ratio[1] = branch_stats(b).pairs_ratio;
    CHECK(!branch_step(b, 7, &err), "%s", err.msg);
    memcpy(p.logits[2], branch_logits(b), sizeof p.logits[2]);
    branch_drop(b);
    if (c) context_drop(c);
    return p;
}

static bool same(const Played *a, const Played *b) {
    return !memcmp(a->logits, b->logits, sizeof a->logits);
}

static const struct { const char *name, *set; bool whole; } methods[] = {
    { "a-shape", "sinks=64 local=100", false },
    { "a-shape", "sinks=10 local=2000", true },
    { "a-shape", "dense_below=5000", true },
    { "tri-shape", "sinks=64 local=100 dense_rows=70", false },
    { "tri-shape", "sinks=64 local=64 dense_rows=2000", true },
    { "minference", "verticals=40 slashes=100", false },
    { "minference", "verticals=1 slashes=900", true },
    { "minference", "head=block-sparse blocks=4", false },
    { "minference", "head=block-sparse blocks=13", true },
    { "minference", "head=a-shape", false },
    { "a-shape", "sinks=64 local=100 feeds=every", false },
    { "minference", "verticals=40 slashes=60 feeds=every", false },
    { "minference", "head=block-sparse blocks=4 feeds=every", false },
    { "minference", "verticals=1 slashes=900 feeds=every", true },
    { "minference+corm", "verticals=40 slashes=100 window=32", false },
    { "h2o+minference", "verticals=40 slashes=60 budget=200", false },
    { "a-shape+roco", "budget=128", false },
    { "minference+snapkv", "head=block-sparse blocks=4 budget=128", false },
    { "streamingllm+a-shape", "feeds=every local=128", false },
};

// every cache stage behind every pattern: the prefill is that of the pattern alone, the cache stage
// finds the same rows on a shared context, and keeps as many as it does after a dense prefill
static void combinations(Model *model) {
    static const struct { const char *name, *set; } prefills[] = {
        { "a-shape", "sinks=64 local=100" }, { "tri-shape", "sinks=64 local=100 dense_rows=70" },
        { "minference", "verticals=40 slashes=100" },
        { "minference", "head=block-sparse blocks=4" }, { "minference", "head=a-shape" },
    };
    const char *name;
    Err err = { 0 };
    for (size_t i = 0; i < COUNTOF(prefills); i++) {
        Method alone = method_of(prefills[i].name, prefills[i].set), cache;
        Played sparse = play(model, &alone, false);
        for (int c = 0; (name = method_name_at(c)); c++) {
            if (SANITIZED && (size_t)c % 9 != i) continue;
            char both[64];
            CHECK(!method_find(name, &cache, &err), "%s", err.msg);
            if (!method_in_cache(&cache)) continue;
            snprintf(both, sizeof both, "%s+%s", prefills[i].name, name);
            Method m;
            CHECK(!method_find(both, &m, &err), "%s", err.msg);
            m.prefill_set = alone.prefill_set;
            CHECK(!method_resolve(&m, PRESET_SCBENCH, FEED, 0, -1, &err), "%s", err.msg);
            cache = method_of(name, "");
            Played p = play(model, &m, false), shared = play(model, &m, true);
            Played dense = play(model, &cache, false);
            expect(same(&p, &shared), "%s: alone and on a shared context", both);
            expect(!memcmp(p.logits[0], sparse.logits[0], sizeof p.logits[0]),
                   "%s: the cache stage changes the prefill", both);
            expect(p.ratio[0] == sparse.ratio[0], "%s: pairs ratio %g, alone %g", both, p.ratio[0],
                   sparse.ratio[0]);
            expect(!same(&p, &dense), "%s: the prefill was dense", both);
            expect(!method_has_budget(&cache) || p.rows == dense.rows,
                   "%s: %g rows, after a dense prefill %g", both, p.rows, dense.rows);
        }
    }
}

static double apart(const float *a, const float *b) {
    double sum = 0;
    for (int i = 0; i < TINY_VOCAB; i++) sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum);
}

// A window does not know where a feed begins: with the pattern on every feed two feeds see the keys
// that one feed sees; with the pattern on the first alone the second one is dense.
static void every_feed(Model *model) {
    Err err = { 0 };
    Method first = method_of("a-shape", "sinks=16 local=64"),
           every = method_of("a-shape", "sinks=16 local=64 feeds=every");
    Branch *b = branch_open(model, NULL, &first, 0, &err);
    CHECK(b && !branch_feed(b, ids, FEED + MORE, FEED_FIRST, &err), "%s", err.msg);
    Played a = play(model, &first, false), e = play(model, &every, false);
    double near = apart(e.logits[1], branch_logits(b)), far = apart(a.logits[1], branch_logits(b));
    expect(near < 0.1 * far, "two feeds are %g from one, with a dense second one %g", near, far);
    expect(a.ratio[1] == a.ratio[0] && e.ratio[1] < e.ratio[0],
           "pairs ratio %g of every feed, %g of the first", e.ratio[1], a.ratio[1]);
    printf("window on every feed: %.3g from one feed; on the first alone: %.3g\n", near, far);
    branch_drop(b);
}

static void feeds(void) {
    static const int chunks[] = { 512, 7, 64, 100, 5000 };
    char path[] = P_tmpdir "/scbench-sparse-XXXXXX";
    Err err = { 0 };
    ModelFile f;
    Rng r = { 4 };
    int fd = mkstemp(path);
    CHECK(fd >= 0, "mkstemp: %s", strerror(errno));
    close(fd);
    tiny_write(&spec, path);
    CHECK(!file_open(&f, path, true, &err), "%s", err.msg);
    unlink(path);
    for (int i = 0; i < FEED + MORE; i++) ids[i] = below(&r, 256);
    static Played first[COUNTOF(methods)], full;
    for (size_t c = 0; c < (SANITIZED ? 1 : COUNTOF(chunks)); c++) {
        ModelOpts opts = { .chunk = chunks[c] };
        Model *model = model_open(&f, &opts, &err);
        CHECK(model, "%s", err.msg);
        Method dense = method_of("full", "");
        if (c == 0) full = play(model, &dense, false);
        for (size_t i = 0; i < COUNTOF(methods); i += SANITIZED ? 4 : 1) {
            Method m = method_of(methods[i].name, methods[i].set);
            Played p = play(model, &m, false), shared = play(model, &m, true);
            if (c == 0) first[i] = p;
            expect(same(&p, &first[i]), "%s %s: chunks of %d change the logits", methods[i].name,
                   methods[i].set, chunks[c]);
            expect(same(&p, &shared) && p.ratio[1] == shared.ratio[1],
                   "%s %s: on a shared context the logits or pairs differ", methods[i].name,
                   methods[i].set);
            expect(same(&p, &full) == methods[i].whole, "%s %s: %s", methods[i].name,
                   methods[i].set,
                   methods[i].whole ? "whole lists are not dense" : "same as dense");
            expect(methods[i].whole ? p.ratio[0] == 1 : p.ratio[0] < 1 && p.ratio[0] > 0,
                   "%s %s: pairs ratio %g", methods[i].name, methods[i].set, p.ratio[0]);
        }
        if (c == 0) {
            combinations(model);
            every_feed(model);
        }
        model_close(model);
    }
    file_close(&f);
}

int main(void) {
    Err err = { 0 };
    Rng r = { 5 };
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    random_lists(SANITIZED ? 200 : 2000);
    published_vectors();
    top_k_ties();
    top_k_many(&r, SANITIZED ? 4 : 200);
    selection();
    const MulKind kinds[] = { mul_kind(DT_BF16), MUL_BF16, MUL_F32 };
    for (int i = 0; i < (SANITIZED ? 6 : 90); i++) attention_case(&r, kinds[i % 3]);
    whole_list_is_dense(&r, mul_kind(DT_BF16));
    whole_list_is_dense(&r, MUL_BF16);
    whole_list_is_dense(&r, MUL_F32);
    estimation(&r, 700, 64);
    estimation(&r, 1025, 64);
    estimation(&r, 64, 64);
    estimation(&r, 17, 17);
    estimation(&r, 530, 1);
    static const int lengths[][2] = { { 700, 700 }, { 1030, 1030 }, { 1100, 30 }, { 4608, 4608 },
                                      { 8777, 1000 } };
    for (size_t i = 0; i < (SANITIZED ? 2 : COUNTOF(lengths)); i++)
        estimated_in_parts(&r, lengths[i][0], lengths[i][1]);
    whole_by_size(&r, SANITIZED ? 10 : 400);
    feeds();
    printf("%d failures\n", failures);
    return failures != 0;
}
