// oracle.h - the slow twin of the llama runtime: plain C, one thread, one token at a time, one
// array per (layer, KV head), full copies for marks and forks. It is written from SEMANTICS.md
// alone and must give the same bits as the runtime: no chunk, no packing, no shared row, no list.
//
// Shape letters: V vocab, E dim, F hidden_dim, L layers, H query heads, G KV heads, hd head_dim.
// Every function ends the process on a bad file: tests have no other use for the error.
#ifndef ORACLE_H
#define ORACLE_H
#include "oracle_policies.h"
#include "scb.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { NAIVE_PANEL = 512, NAIVE_BLOCK = 32 };

typedef struct { int n, k; float *w; } NaiveMat;        // (n, k) row-major
typedef struct {
    float *attn_norm, *ffn_norm;                        // (E)
    float *bq, *bk, *bv;                                // (H*hd), (G*hd), (G*hd); NULL: no bias
    NaiveMat wq, wk, wv, wo, w1, w3, w2;
} NaiveLayer;
typedef struct {
    int V, E, F, L, H, G, hd, rope_dim;
    bool rounded;               // inputs of products are rounded to bf16: all but f32 models
    float eps, *inv;            // inv (rope_dim/2): angle per position
    NaiveMat embed, lm_head;    // lm_head.w == embed.w when tied
    float *final_norm;
    NaiveLayer *layer;          // (L)
} NaiveModel;

typedef struct {                // the rows of one (layer, stored head), ascending by position
    int n, cap;
    NaiveRow *row;              // (n)
    float *k, *v;               // (n, hd)
} NaiveHead;
typedef struct {                // what the queries of one layer left behind
    int n_fed, fed_pos[NAIVE_HISTORY];
    float *fed;                 // (n_fed, H, hd) the newest queries of feeds, rotated and rounded
    float *now;                 // (H, hd) the newest query
    int n, cap;                 // first feed: queries whose scores are kept
    float *s;                   // (n rows, H, row + 1 scores), one after another
    float *lse2;                // (n, H)
} NaiveQueries;
typedef struct {
    const NaiveModel *m;
    NaiveMethod method;
    int heads;                  // stored per layer: G, or H when each query head keeps its own rows
    int pos;                    // tokens so far
    bool first_done;            // the first feed has ended
    int turn;                   // sinkcache: of the rows of the feed or step under way
    NaiveHead *head;            // (L, heads)
    NaiveQueries *query;        // (L)
    float *x, *logits;          // (E) residual stream of the newest token, (V)
} NaiveBranch;

// ---------------------------------------------------------------------------
// Numbers

// denormals are zero, in and out
static inline void naive_ftz(void) {
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
    uint64_t r;
    __asm__ volatile("mrs %0, fpcr" : "=r"(r));
    __asm__ volatile("msr fpcr, %0" : : "r"(r | (1ull << 24)));
#endif
}

// one dot product: blocks of 32, an even and an odd chain from zero, even + odd, blocks ascending
static inline float naive_dot(const float *a, const float *b, int k) {
    float sum = 0;
    for (int i = 0; i < k; i += NAIVE_BLOCK) {
        int end = k < i + NAIVE_BLOCK ? k : i + NAIVE_BLOCK, j = i;
        float even = 0, odd = 0;
        for (; j + 1 < end; j += 2) {
            even = fmaf(a[j], b[j], even);
            odd = fmaf(a[j + 1], b[j + 1], odd);
        }
        if (j < end) even = fmaf(a[j], b[j], even);
        sum = sum + (even + odd);
    }
    return sum;
}

static inline float naive_round(const NaiveModel *m, float x) {
    return m->rounded ? round_bf16(x) : x;
}

static inline float *naive_floats(size_t n) {
    float *p = (float *)xrealloc(NULL, (n + 1) * sizeof *p);
    memset(p, 0, (n + 1) * sizeof *p);
    return p;
}

// y (n) = W x + b, x rounded
static inline void naive_linear(const NaiveModel *m, const NaiveMat *w, const float *x,
                                const float *bias, float *y) {
    float *xr = naive_floats((size_t)w->k);
    for (int i = 0; i < w->k; i++) xr[i] = naive_round(m, x[i]);
    for (int i = 0; i < w->n; i++) {
        y[i] = naive_dot(xr, w->w + (size_t)i * w->k, w->k);
        if (bias) y[i] = y[i] + bias[i];
    }
    free(xr);
}

// y = x / rms(x) * w
static inline void naive_norm(const float *x, const float *w, int n, float eps, float *y) {
    float lane[LANES] = { 0 };
    for (int j = 0; j < n; j++) lane[j % LANES] = fmaf(x[j], x[j], lane[j % LANES]);
    float r = 1.0f / sqrtf(lanes_sum(lane) / (float)n + eps);
    for (int j = 0; j < n; j++) y[j] = (x[j] * r) * w[j];
}

// rotates one head in place by `steps` positions, half-split pairs (i, i + rope_dim/2)
static inline void naive_rope(const NaiveModel *m, float *x, int steps) {
    int half = m->rope_dim / 2;
    for (int i = 0; i < half; i++) {
        float s, c, x0 = x[i], x1 = x[i + half];
        fsincos((float)steps * m->inv[i], &s, &c);
        x[i] = fmaf(x0, c, -(x1 * s));
        x[i + half] = fmaf(x1, c, x0 * s);
    }
}

// ---------------------------------------------------------------------------
// The file

static inline double naive_real(ModelFile *f, const char *key) {
    Err err = { 0 };
    double x = 0;
    if (file_real(f, key, &x, &err)) die_code(EXIT_USER, "oracle: %s", err.msg);
    return x;
}
static inline int naive_int(ModelFile *f, const char *key) {
    Err err = { 0 };
    int64_t x = 0;
    if (file_int(f, key, 0, INT_MAX, &x, &err)) die_code(EXIT_USER, "oracle: %s", err.msg);
    return (int)x;
}

// a tensor of any dtype as fp32 values; n rows of k, a vector has k = 1
static inline NaiveMat naive_mat(ModelFile *f, const char *name, int n, int k) {
    const FileTensor *t = file_find(f, name);
    CHECK(t, "oracle: no tensor %s", name);
    CHECK(t->shape[0] == (uint64_t)n && (k == 1 || t->shape[1] == (uint64_t)k),
          "oracle: %s is %d x %d", name, (int)t->shape[0], (int)t->shape[1]);
    const void *p = file_data(f, t);
    NaiveMat a = { n, k, naive_floats((size_t)n * (size_t)k) };
    int per_row = CEIL_DIV(k, 32);
    for (int r = 0; r < n; r++)
        for (int c = 0; c < k; c++) {
            size_t at = (size_t)r * (size_t)k + (size_t)c;
            const Q8Block *q = (const Q8Block *)p + (size_t)r * (size_t)per_row + c / 32;
            a.w[at] = t->dtype == DT_F32 ? ((const float *)p)[at]
                    : t->dtype == DT_BF16 ? bf16_f32(((const uint16_t *)p)[at])
                    : round_bf16(f16_f32(q->scale) * (float)q->q[c % 32]);
        }
    return a;
}

static inline NaiveMat naive_layer_mat(ModelFile *f, int layer, const char *part, int n, int k) {
    char name[56];
    snprintf(name, sizeof name, "layers.%d.%s", layer, part);
    return naive_mat(f, name, n, k);
}

// angle per position of each rotary pair; 1 = linear, 2 = llama3 scaling of the frequencies
static inline void naive_frequencies(NaiveModel *m, ModelFile *f) {
    int scaling = naive_int(f, "rope_scaling");
    double theta = naive_real(f, "rope_theta"), factor = 1, low = 1, high = 1, orig = 1;
    CHECK(scaling == ROPE_NONE || scaling == ROPE_LINEAR || scaling == ROPE_LLAMA3,
          "oracle: rope_scaling %d", scaling);
    if (scaling != ROPE_NONE) factor = naive_real(f, "rope_factor");
    if (scaling == ROPE_LLAMA3) {
        low = naive_real(f, "rope_low_freq_factor");
        high = naive_real(f, "rope_high_freq_factor");
        orig = naive_int(f, "rope_orig_ctx");
    }
    m->inv = naive_floats((size_t)m->rope_dim / 2);
    for (int i = 0; i < m->rope_dim / 2; i++) {
        double inv = dexp2(-(2.0 * i / m->rope_dim) * dlog2(theta));
        double wavelen = 2 * 3.14159265358979323846 / inv;
        if (scaling == ROPE_LINEAR) inv = inv / factor;
        if (scaling == ROPE_LLAMA3 && wavelen > orig / low) inv = inv / factor;
        else if (scaling == ROPE_LLAMA3 && wavelen >= orig / high) {
            double s = (orig / wavelen - low) / (high - low);
            inv = (1 - s) * inv / factor + s * inv;
        }
        m->inv[i] = (float)inv;
    }
}

static inline NaiveModel *naive_open(ModelFile *f) {
    NaiveModel *m = (NaiveModel *)xrealloc(NULL, sizeof *m);
    memset(m, 0, sizeof *m);
    naive_ftz();
    m->V = naive_int(f, "vocab_size");
    m->E = naive_int(f, "dim");
    m->F = naive_int(f, "hidden_dim");
    m->L = naive_int(f, "n_layers");
    m->H = naive_int(f, "n_heads");
    m->G = naive_int(f, "n_kv_heads");
    m->hd = naive_int(f, "head_dim");
    m->rope_dim = naive_int(f, "rope_dim");
    m->eps = (float)naive_real(f, "norm_eps");
    m->rounded = naive_int(f, "dtype") != DT_F32;
    naive_frequencies(m, f);
    m->embed = naive_mat(f, "embed", m->V, m->E);
    m->lm_head = naive_int(f, "tied") ? m->embed : naive_mat(f, "lm_head", m->V, m->E);
    m->final_norm = naive_mat(f, "final_norm", m->E, 1).w;
    m->layer = (NaiveLayer *)xrealloc(NULL, (size_t)m->L * sizeof *m->layer);
    bool bias = naive_int(f, "qkv_bias") != 0;
    int q_dim = m->H * m->hd, kv_dim = m->G * m->hd;
    for (int l = 0; l < m->L; l++)
        m->layer[l] = (NaiveLayer){
            .attn_norm = naive_layer_mat(f, l, "attn_norm", m->E, 1).w,
            .ffn_norm = naive_layer_mat(f, l, "ffn_norm", m->E, 1).w,
            .bq = bias ? naive_layer_mat(f, l, "bq", q_dim, 1).w : NULL,
            .bk = bias ? naive_layer_mat(f, l, "bk", kv_dim, 1).w : NULL,
            .bv = bias ? naive_layer_mat(f, l, "bv", kv_dim, 1).w : NULL,
            .wq = naive_layer_mat(f, l, "wq", q_dim, m->E),
            .wk = naive_layer_mat(f, l, "wk", kv_dim, m->E),
            .wv = naive_layer_mat(f, l, "wv", kv_dim, m->E),
            .wo = naive_layer_mat(f, l, "wo", m->E, q_dim),
            .w1 = naive_layer_mat(f, l, "w1", m->F, m->E),
            .w3 = naive_layer_mat(f, l, "w3", m->F, m->E),
            .w2 = naive_layer_mat(f, l, "w2", m->E, m->F),
        };
    return m;
}

static inline void naive_close(NaiveModel *m) {
    if (m->lm_head.w != m->embed.w) free(m->lm_head.w);
    free(m->embed.w);
    free(m->final_norm);
    free(m->inv);
    for (int l = 0; l < m->L; l++) {
        NaiveLayer *y = &m->layer[l];
        float *all[] = { y->attn_norm, y->ffn_norm, y->bq, y->bk, y->bv, y->wq.w, y->wk.w, y->wv.w,
                         y->wo.w, y->w1.w, y->w3.w, y->w2.w };
        for (size_t i = 0; i < COUNTOF(all); i++) free(all[i]);
    }
    free(m->layer);
    free(m);
}

// ---------------------------------------------------------------------------
// Branches: a copy is a mark, a fork and a context

static inline bool naive_reads(const NaiveMethod *p) {
    return p->kind == NAIVE_QUEST || p->kind == NAIVE_TOPK;
}

static inline NaiveBranch *naive_branch(const NaiveModel *m, NaiveMethod method) {
    NaiveBranch *b = (NaiveBranch *)xrealloc(NULL, sizeof *b);
    *b = (NaiveBranch){ .m = m, .method = method, .heads = m->G };
    if (method.group == NAIVE_QUERY_HEAD && !naive_reads(&method)) b->heads = m->H;
    size_t heads = (size_t)m->L * (size_t)b->heads, query = (size_t)m->H * (size_t)m->hd;
    b->head = (NaiveHead *)xrealloc(NULL, heads * sizeof *b->head);
    memset(b->head, 0, heads * sizeof *b->head);
    b->query = (NaiveQueries *)xrealloc(NULL, (size_t)m->L * sizeof *b->query);
    memset(b->query, 0, (size_t)m->L * sizeof *b->query);
    for (int l = 0; l < m->L; l++) {
        b->query[l].fed = naive_floats(NAIVE_HISTORY * query);
        b->query[l].now = naive_floats(query);
    }
    b->x = naive_floats((size_t)m->E);
    b->logits = naive_floats((size_t)m->V);
    return b;
}

static inline void naive_drop(NaiveBranch *b) {
    for (int i = 0; i < b->m->L * b->heads; i++) {
        free(b->head[i].row);
        free(b->head[i].k);
        free(b->head[i].v);
    }
    for (int l = 0; l < b->m->L; l++) {
        free(b->query[l].fed);
        free(b->query[l].now);
        free(b->query[l].s);
        free(b->query[l].lse2);
    }
    free(b->head);
    free(b->query);
    free(b->x);
    free(b->logits);
    free(b);
}

static inline void naive_reserve(NaiveHead *a, int n, int hd) {
    if (n <= a->cap) return;
    a->cap = 2 * n;
    a->row = (NaiveRow *)xrealloc(a->row, (size_t)a->cap * sizeof *a->row);
    a->k = (float *)xrealloc(a->k, (size_t)a->cap * (size_t)hd * sizeof *a->k);
    a->v = (float *)xrealloc(a->v, (size_t)a->cap * (size_t)hd * sizeof *a->v);
}

static inline void naive_copy_head(NaiveHead *to, const NaiveHead *from, int hd) {
    if (from->n <= 0) return;
    naive_reserve(to, from->n, hd);
    to->n = from->n;
    memcpy(to->row, from->row, (size_t)from->n * sizeof *to->row);
    memcpy(to->k, from->k, (size_t)from->n * (size_t)hd * sizeof *to->k);
    memcpy(to->v, from->v, (size_t)from->n * (size_t)hd * sizeof *to->v);
}

// room for the scores of n queries of the first feed
static inline void naive_reserve_scores(NaiveQueries *a, int n, int H) {
    if (n <= a->cap) return;
    a->cap = 2 * n;
    size_t rows = (size_t)a->cap, all = rows * (rows + 1) / 2 * (size_t)H;
    a->s = (float *)xrealloc(a->s, all * sizeof *a->s);
    a->lse2 = (float *)xrealloc(a->lse2, rows * (size_t)H * sizeof *a->lse2);
}

static inline void naive_copy_queries(NaiveQueries *to, const NaiveQueries *from, int H, int hd) {
    size_t query = (size_t)H * (size_t)hd, n = (size_t)from->n;
    to->n_fed = from->n_fed;
    memcpy(to->fed_pos, from->fed_pos, sizeof to->fed_pos);
    memcpy(to->fed, from->fed, (size_t)from->n_fed * query * sizeof *to->fed);
    memcpy(to->now, from->now, query * sizeof *to->now);
    if (from->n == 0) return;
    naive_reserve_scores(to, from->n, H);
    to->n = from->n;
    memcpy(to->s, from->s, n * (n + 1) / 2 * (size_t)H * sizeof *to->s);
    memcpy(to->lse2, from->lse2, n * (size_t)H * sizeof *to->lse2);
}

// a copy that goes on under another method; each query head gets its own rows if that asks for it
static inline NaiveBranch *naive_adopt(const NaiveBranch *b, NaiveMethod method) {
    const NaiveModel *m = b->m;
    NaiveBranch *c = naive_branch(m, method);
    CHECK(c->heads % b->heads == 0, "oracle: %d heads from %d", c->heads, b->heads);
    c->pos = b->pos;
    c->first_done = b->first_done;
    memcpy(c->x, b->x, (size_t)m->E * sizeof *c->x);
    memcpy(c->logits, b->logits, (size_t)m->V * sizeof *c->logits);
    for (int l = 0; l < m->L; l++) {
        naive_copy_queries(&c->query[l], &b->query[l], m->H, m->hd);
        for (int g = 0; g < c->heads; g++)
            naive_copy_head(&c->head[l * c->heads + g],
                            &b->head[l * b->heads + g / (c->heads / b->heads)], m->hd);
    }
    return c;
}

static inline NaiveBranch *naive_copy(const NaiveBranch *b) { return naive_adopt(b, b->method); }

// ---------------------------------------------------------------------------
// Attention

// key j of the list as the query sees it: stored, or moved to its place in the list, or moved on
static inline void naive_key(const NaiveModel *m, const NaiveHead *a, int j, bool cache, float *k) {
    int turn = cache ? j - a->row[j].pos : a->row[j].turn;
    memcpy(k, a->k + (size_t)j * (size_t)m->hd, (size_t)m->hd * sizeof *k);
    if (!turn) return;
    naive_rope(m, k, turn);
    for (int i = 0; i < m->hd; i++) k[i] = naive_round(m, k[i]);
}

// o (hd) = sum over n rows of p_j v_j: naive_dot of every column of v (n, hd), all channels at once
static inline void naive_rows_dot(const float *p, const float *v, int n, int hd, float *o) {
    float *chain = naive_floats(2 * (size_t)hd);
    memset(o, 0, (size_t)hd * sizeof *o);
    for (int first = 0; first < n; first += NAIVE_BLOCK) {
        memset(chain, 0, 2 * (size_t)hd * sizeof *chain);
        for (int j = first; j < n && j < first + NAIVE_BLOCK; j++) {
            const float *row = v + (size_t)j * (size_t)hd;
            float *c = chain + (j & 1 ? hd : 0);
            for (int i = 0; i < hd; i++) c[i] = fmaf(p[j], row[i], c[i]);
        }
        for (int i = 0; i < hd; i++) o[i] = o[i] + (chain[i] + chain[hd + i]);
    }
    free(chain);
}

// one panel: s (n) -> m = max, l = sum of P, o (hd) = sum of bf16(P) v; v (n, hd)
static inline void naive_panel(const NaiveModel *m, const float *s, const float *v, int n,
                               float *max, float *l, float *o) {
    float lane[LANES] = { 0 }, *p = naive_floats((size_t)n);
    *max = s[0];
    for (int j = 1; j < n; j++) *max = s[j] > *max ? s[j] : *max;
    for (int j = 0; j < n; j++) {
        float e = fexp2(s[j] - *max);
        lane[j % LANES] += e;
        p[j] = naive_round(m, e);
    }
    *l = lanes_sum(lane);
    naive_rows_dot(p, v, n, m->hd, o);
    free(p);
}

// q (hd) against all rows of one KV head, the query's own included -> out (hd), s (rows), lse2
static inline float naive_attend(const NaiveModel *m, const NaiveHead *a, const float *q,
                                 bool cache, float *out, float *s) {
    float c = (float)(1.4426950408889634 / sqrt((double)m->hd)), max = 0, l = 0;
    float *key = naive_floats((size_t)m->hd), *o = naive_floats((size_t)m->hd);
    for (int j = 0; j < a->n; j++) {
        naive_key(m, a, j, cache, key);
        s[j] = naive_dot(q, key, m->hd) * c;
    }
    for (int first = 0; first < a->n; first += NAIVE_PANEL) {
        int n = a->n - first < NAIVE_PANEL ? a->n - first : NAIVE_PANEL;
        float m_p, l_p;
        naive_panel(m, s + first, a->v + (size_t)first * (size_t)m->hd, n, &m_p, &l_p, o);
        if (first == 0) {
            max = m_p;
            l = l_p;
            memcpy(out, o, (size_t)m->hd * sizeof *out);
            continue;
        }
        float m_new = m_p > max ? m_p : max, fa = fexp2(max - m_new), fb = fexp2(m_p - m_new);
        for (int i = 0; i < m->hd; i++) out[i] = fmaf(out[i], fa, o[i] * fb);
        l = fmaf(l, fa, l_p * fb);
        max = m_new;
    }
    for (int i = 0; i < m->hd; i++) out[i] = out[i] / l;
    free(key);
    free(o);
    return max + flog2(l);
}

// ---------------------------------------------------------------------------
// One token through the model. In the first feed every score is kept, so that a policy can read
// them at its end; later queries are observed as they come.

// row j leaves before the rest is read: kept rows move together
static inline void naive_gather(NaiveHead *a, const uint8_t *keep, int hd) {
    int kept = 0;
    for (int j = 0; j < a->n; j++) {
        if (!keep[j]) continue;
        a->row[kept] = a->row[j];
        memmove(a->k + (size_t)kept * (size_t)hd, a->k + (size_t)j * (size_t)hd,
                (size_t)hd * sizeof *a->k);
        memmove(a->v + (size_t)kept * (size_t)hd, a->v + (size_t)j * (size_t)hd,
                (size_t)hd * sizeof *a->v);
        kept++;
    }
    a->n = kept;
}

// quest and topk: the rows that q (heads, hd) reads, as a head of their own
static inline NaiveHead naive_selected(const NaiveModel *m, const NaiveMethod *p,
                                       const NaiveHead *a, const float *q, int heads) {
    NaiveHead few = { 0 };
    float *prob = naive_floats((size_t)heads * (size_t)a->n), *out = naive_floats((size_t)m->hd);
    uint8_t *keep = (uint8_t *)xrealloc(NULL, (size_t)a->n);
    for (int h = 0; h < heads; h++) {
        float *of = prob + h * a->n, lse2 = naive_attend(m, a, q + h * m->hd, false, out, of);
        for (int j = 0; j < a->n; j++) of[j] = fexp2(of[j] - lse2);
    }
    if (p->kind == NAIVE_QUEST) naive_quest(p, a->k, a->n, q, heads, m->hd, keep);
    else naive_topk(p, prob, a->n, heads, keep);
    naive_copy_head(&few, a, m->hd);
    naive_gather(&few, keep, m->hd);
    free(prob);
    free(out);
    free(keep);
    return few;
}

// the newest queries of feeds; those of steps are never window rows
static inline void naive_fed(NaiveQueries *a, const float *q, int pos, size_t query) {
    if (a->n_fed == NAIVE_HISTORY) {
        a->n_fed--;
        memmove(a->fed, a->fed + query, (size_t)a->n_fed * query * sizeof *a->fed);
        memmove(a->fed_pos, a->fed_pos + 1, (size_t)a->n_fed * sizeof *a->fed_pos);
    }
    memcpy(a->fed + (size_t)a->n_fed * query, q, query * sizeof *a->fed);
    a->fed_pos[a->n_fed++] = pos;
}

// k and v (G, hd) of the newest token, not rotated yet, as a row of stored head g
static inline NaiveHead *naive_row(NaiveBranch *b, int layer, int g, const float *k, const float *v,
                                   int pos) {
    const NaiveModel *m = b->m;
    NaiveHead *a = &b->head[layer * b->heads + g];
    int hd = m->hd, kv = g / (b->heads / m->G);
    naive_reserve(a, a->n + 1, hd);
    float *k_row = a->k + (size_t)a->n * (size_t)hd, *v_row = a->v + (size_t)a->n * (size_t)hd;
    memcpy(k_row, k + kv * hd, (size_t)hd * sizeof *k_row);
    naive_rope(m, k_row, pos);
    for (int i = 0; i < hd; i++) k_row[i] = naive_round(m, k_row[i]);
    for (int i = 0; i < hd; i++) v_row[i] = naive_round(m, v[kv * hd + i]);
    a->row[a->n++] = (NaiveRow){ .pos = pos, .turn = b->turn };
    return a;
}

// q (hd) rotated to a position and rounded -> out (hd)
static inline void naive_query(const NaiveModel *m, const float *q, int at, float *out) {
    memcpy(out, q, (size_t)m->hd * sizeof *out);
    naive_rope(m, out, at);
    for (int i = 0; i < m->hd; i++) out[i] = naive_round(m, out[i]);
}

// q (H, hd), k and v (G, hd) of the newest token, not rotated yet -> out (H, hd)
static inline void naive_attention(NaiveBranch *b, int layer, const float *q, const float *k,
                                   const float *v, float *out, bool step) {
    const NaiveModel *m = b->m;
    const NaiveMethod *p = &b->method;
    NaiveQueries *seen = &b->query[layer];
    int hd = m->hd, group = m->H / b->heads, n = b->head[layer * b->heads].n;
    bool cache = p->cache && b->first_done, reads = naive_reads(p) && b->first_done;
    int choosers = reads && p->group == NAIVE_QUERY_HEAD ? group : 1, of = group / choosers;
    float *lse2 = naive_floats((size_t)m->H);
    if (!b->first_done) naive_reserve_scores(seen, n + 1, m->H);
    for (int g = 0; g < b->heads; g++) {
        NaiveHead *a = naive_row(b, layer, g, k, v, b->pos);
        float *s = naive_floats((size_t)group * (size_t)a->n), *now = seen->now + g * group * hd;
        for (int h = 0; h < group; h++)
            naive_query(m, q + (g * group + h) * hd, cache ? a->n - 1 : b->pos + b->turn,
                        now + h * hd);
        for (int z = 0; z < choosers; z++) {
            NaiveHead few = { 0 };
            if (reads) few = naive_selected(m, p, a, now + z * of * hd, of);
            for (int h = z * of; h < (z + 1) * of; h++)
                lse2[g * group + h] = naive_attend(m, few.n ? &few : a, now + h * hd, cache,
                                                   out + (g * group + h) * hd, s + h * a->n);
            free(few.row);
            free(few.k);
            free(few.v);
        }
        if (b->first_done)
            naive_observe(p, a->row, a->n, s, lse2 + g * group, group, b->pos + 1);
        else
            memcpy(seen->s + ((size_t)n * ((size_t)n + 1) / 2 * (size_t)m->H) +
                       (size_t)(g * group) * (size_t)a->n, s,
                   (size_t)group * (size_t)a->n * sizeof *s);
        free(s);
    }
    if (!b->first_done) memcpy(seen->lse2 + (size_t)seen->n++ * (size_t)m->H, lse2,
                               (size_t)m->H * sizeof *lse2);
    if (!step) naive_fed(seen, seen->now, b->pos, (size_t)m->H * (size_t)hd);
    free(lse2);
}

// x (E) -> q (H, hd), k and v (G, hd)
static inline void naive_project(const NaiveModel *m, int layer, const float *x, float *q, float *k,
                                 float *v) {
    const NaiveLayer *w = &m->layer[layer];
    float *y = naive_floats((size_t)m->E);
    naive_norm(x, w->attn_norm, m->E, m->eps, y);
    naive_linear(m, &w->wq, y, w->bq, q);
    naive_linear(m, &w->wk, y, w->bk, k);
    naive_linear(m, &w->wv, y, w->bv, v);
    free(y);
}

// x (E) += attention's output projection, then += the feed-forward layer
static inline void naive_close_layer(const NaiveModel *m, int layer, const float *att, float *x) {
    const NaiveLayer *w = &m->layer[layer];
    float *y = naive_floats((size_t)m->E);
    float *gate = naive_floats((size_t)m->F), *up = naive_floats((size_t)m->F);
    naive_linear(m, &w->wo, att, NULL, y);
    for (int i = 0; i < m->E; i++) x[i] = x[i] + y[i];
    naive_norm(x, w->ffn_norm, m->E, m->eps, y);
    naive_linear(m, &w->w1, y, NULL, gate);
    naive_linear(m, &w->w3, y, NULL, up);
    for (int i = 0; i < m->F; i++)      // silu(gate) * up
        gate[i] = (gate[i] / (1.0f + fexp2(gate[i] * -1.44269504f))) * up[i];
    naive_linear(m, &w->w2, gate, NULL, y);
    for (int i = 0; i < m->E; i++) x[i] = x[i] + y[i];
    free(y);
    free(gate);
    free(up);
}

static inline void naive_token(NaiveBranch *b, int32_t id, bool step) {
    const NaiveModel *m = b->m;
    size_t q_dim = (size_t)(m->H * m->hd), kv_dim = (size_t)(m->G * m->hd);
    float *q = naive_floats(q_dim), *k = naive_floats(kv_dim), *v = naive_floats(kv_dim);
    float *att = naive_floats(q_dim);
    memcpy(b->x, m->embed.w + (size_t)id * (size_t)m->E, (size_t)m->E * sizeof *b->x);
    for (int l = 0; l < m->L; l++) {
        naive_project(m, l, b->x, q, k, v);
        naive_attention(b, l, q, k, v, att, step);
        naive_close_layer(m, l, att, b->x);
    }
    b->pos++;
    free(q);
    free(k);
    free(v);
    free(att);
}

// ---------------------------------------------------------------------------
// Policies and the calls of a branch

// the rows of one head up to a logical position
static inline int naive_until(const NaiveHead *a, int pos) {
    int n = 0;
    while (n < a->n && a->row[n].pos <= pos) n++;
    return n;
}

// scores of a query of the past, q (group, hd), against the n live rows it may see: s (group, n)
static inline void naive_look(const NaiveBranch *b, const NaiveHead *a, const float *q, int n,
                              float *s, float *lse2) {
    const NaiveModel *m = b->m;
    NaiveHead view = *a;
    float *out = naive_floats((size_t)m->hd);
    view.n = n;
    for (int h = 0; h < m->H / b->heads; h++)
        lse2[h] = naive_attend(m, &view, q + h * m->hd, b->method.cache && b->first_done, out,
                               s + h * n);
    free(out);
}

// at the end of the first feed: h2o and roco read what every query computed, corm and scissorhands
// the last `window` queries against all live rows
static inline void naive_observe_first(NaiveBranch *b, int layer) {
    const NaiveModel *m = b->m;
    const NaiveMethod *p = &b->method;
    NaiveQueries *a = &b->query[layer];
    int group = m->H / b->heads;
    for (int g = 0; g < b->heads; g++) {
        NaiveHead *head = &b->head[layer * b->heads + g];
        float *s = naive_floats((size_t)group * (size_t)head->n), lse2[64];
        if (p->kind == NAIVE_H2O || p->kind == NAIVE_ROCO)
            for (int i = 0; i < a->n; i++)
                naive_observe(p, head->row, i + 1, a->s + (size_t)i * ((size_t)i + 1) / 2 *
                              (size_t)m->H + (size_t)(g * group) * ((size_t)i + 1),
                              a->lse2 + i * m->H + g * group, group, i + 1);
        else
            for (int i = a->n_fed > p->window ? a->n_fed - p->window : 0; i < a->n_fed; i++) {
                int n = naive_until(head, a->fed_pos[i]);
                naive_look(b, head, a->fed + (i * m->H + g * group) * m->hd, n, s, lse2);
                naive_observe(p, head->row, n, s, lse2, group, a->fed_pos[i] + 1);
            }
        free(s);
    }
}

// snapkv, pyramidkv: the newest `window` fed queries
static inline void naive_score_window(const NaiveBranch *b, int layer, int g, float *score) {
    const NaiveModel *m = b->m;
    const NaiveMethod *p = &b->method;
    const NaiveQueries *a = &b->query[layer];
    const NaiveHead *head = &b->head[layer * b->heads + g];
    int group = m->H / b->heads, rows = a->n_fed < p->window ? a->n_fed : p->window;
    float *prob = naive_floats((size_t)group * (size_t)rows * (size_t)head->n);
    float *s = naive_floats((size_t)group * (size_t)head->n), lse2[64];
    for (int r = 0; r < rows; r++) {
        int i = a->n_fed - rows + r, n = naive_until(head, a->fed_pos[i]);
        naive_look(b, head, a->fed + (i * m->H + g * group) * m->hd, n, s, lse2);
        for (int h = 0; h < group; h++)
            for (int j = 0; j < n; j++)
                prob[(h * rows + r) * head->n + j] = fexp2(s[h * n + j] - lse2[h]);
    }
    naive_window_scores(p, prob, group, rows, head->n, score);
    free(prob);
    free(s);
}

// tova: the newest query, all heads of the layer, whose lists are all alike
static inline void naive_score_newest(const NaiveBranch *b, int layer, float *score) {
    const NaiveModel *m = b->m;
    int group = m->H / b->heads, n = b->head[layer * b->heads].n;
    float *prob = naive_floats((size_t)m->H * (size_t)n), lse2[64];
    NaiveGroup rule = b->method.group == NAIVE_QUERY_HEAD ? NAIVE_MEAN : b->method.group;
    for (int g = 0; g < b->heads; g++) {
        const NaiveHead *head = &b->head[layer * b->heads + g];
        float *p = prob + g * group * n;
        CHECK(head->n == n, "oracle: tova's heads hold %d and %d rows", n, head->n);
        naive_look(b, head, b->query[layer].now + g * group * m->hd, n, p, lse2);
        for (int i = 0; i < group * n; i++) p[i] = fexp2(p[i] - lse2[i / n]);
    }
    for (int j = 0; j < n; j++) score[j] = naive_reduce(rule, prob + j, (size_t)n, m->H);
    free(prob);
}

static inline void naive_evict(NaiveBranch *b, bool step) {
    const NaiveMethod *p = &b->method;
    bool observes = p->kind == NAIVE_CORM || p->kind == NAIVE_SCISSORHANDS ||
                    p->kind == NAIVE_H2O || p->kind == NAIVE_ROCO;
    for (int l = 0; l < b->m->L; l++) {
        if (!b->first_done && observes) naive_observe_first(b, l);
        NaiveMoment at = { l, b->m->L, 0, b->pos, !b->first_done, step };
        b->query[l].n = 0;
        if (!naive_acts(p, &at)) continue;
        float *score = naive_floats((size_t)b->head[l * b->heads].n);
        if (p->kind == NAIVE_TOVA) naive_score_newest(b, l, score);
        for (at.head = 0; at.head < b->heads; at.head++) {
            NaiveHead *a = &b->head[l * b->heads + at.head];
            bool window = p->kind == NAIVE_SNAPKV || p->kind == NAIVE_PYRAMIDKV;
            uint8_t *keep = (uint8_t *)xrealloc(NULL, (size_t)a->n + 1);
            if (window && a->n > p->window) naive_score_window(b, l, at.head, score);
            naive_keep(p, &at, a->row, a->n, score, keep);
            naive_gather(a, keep, b->m->hd);
            free(keep);
        }
        free(score);
    }
}

// rows without a policy: what a context is, and a feed before its end
static inline void naive_append(NaiveBranch *b, const int32_t *ids, int n) {
    for (int i = 0; i < n; i++) naive_token(b, ids[i], false);
}

// the policy acts, the logits of the last token
static inline void naive_end(NaiveBranch *b, bool step) {
    naive_evict(b, step);
    b->first_done = true;
    float *y = naive_floats((size_t)b->m->E);
    naive_norm(b->x, b->m->final_norm, b->m->E, b->m->eps, y);
    naive_linear(b->m, &b->m->lm_head, y, NULL, b->logits);
    free(y);
}

// SinkCache (W = budget, S = sinks) before n tokens come: what reaches W makes room for them, and
// all but the sinks move n down. Their positions go on from the rows that were there.
static inline void naive_sinks(NaiveBranch *b, int n) {
    const NaiveMethod *p = &b->method;
    b->turn = 0;
    for (int i = 0; p->sink && b->first_done && i < b->m->L * b->heads; i++) {
        NaiveHead *a = &b->head[i];
        int len = a->n, stay = p->budget - p->sinks - n;
        b->turn = len - b->pos;
        if (len + n < p->budget) continue;
        uint8_t *keep = (uint8_t *)xrealloc(NULL, (size_t)len + 1);
        for (int j = 0; j < len; j++) {
            keep[j] = j < p->sinks || j >= len - stay;
            if (j >= p->sinks) a->row[j].turn -= n;
        }
        naive_gather(a, keep, b->m->hd);
        free(keep);
    }
}

// quest as SharedContextBench's code has it looks at all queries of a feed at once: the layer is
// outside, the tokens within. q (n, H, hd), k and v (n, G, hd) of one layer -> out (n, H, hd)
static inline void naive_attend_signs(NaiveBranch *b, int layer, float *q, const float *k,
                                      const float *v, int n, float *out) {
    const NaiveModel *m = b->m;
    size_t hd = (size_t)m->hd, ld = (size_t)m->H * hd, ld_kv = (size_t)m->G * hd;
    for (int i = 0; i < n; i++) {
        for (int g = 0; g < m->G; g++)
            naive_row(b, layer, g, k + (size_t)i * ld_kv, v + (size_t)i * ld_kv, b->pos + i);
        for (int h = 0; h < m->H; h++) {
            float *x = q + (size_t)i * ld + (size_t)h * hd;
            naive_rope(m, x, b->pos + i);
            for (size_t c = 0; c < hd; c++) x[c] = naive_round(m, x[c]);
        }
    }
    for (int i = 0; i < n * m->H; i++) {
        int h = i % m->H, t = i / m->H;
        const NaiveHead *a = &b->head[layer * m->G + h / (m->H / m->G)];
        NaiveHead few = { 0 };
        uint8_t *keep = (uint8_t *)xrealloc(NULL, (size_t)a->n);
        float *s = naive_floats((size_t)a->n);
        naive_signs(&b->method, a->k, a->n, q + (size_t)h * hd, ld, n, t, a->n - n + t + 1, m->hd,
                    keep);
        naive_copy_head(&few, a, m->hd);
        naive_gather(&few, keep, m->hd);
        naive_attend(m, &few, q + (size_t)t * ld + (size_t)h * hd, false,
                     out + (size_t)t * ld + (size_t)h * hd, s);
        free(few.row);
        free(few.k);
        free(few.v);
        free(keep);
        free(s);
    }
}

static inline void naive_append_signs(NaiveBranch *b, const int32_t *ids, int n) {
    const NaiveModel *m = b->m;
    size_t E = (size_t)m->E, ld = (size_t)(m->H * m->hd), kv = (size_t)(m->G * m->hd),
           rows = (size_t)n;
    float *x = naive_floats(rows * E), *q = naive_floats(rows * ld), *k = naive_floats(rows * kv),
          *v = naive_floats(rows * kv), *out = naive_floats(rows * ld);
    for (int i = 0; i < n; i++)
        memcpy(x + (size_t)i * E, m->embed.w + (size_t)ids[i] * E, E * sizeof *x);
    for (int l = 0; l < m->L; l++) {
        for (size_t i = 0; i < rows; i++)
            naive_project(m, l, x + i * E, q + i * ld, k + i * kv, v + i * kv);
        naive_attend_signs(b, l, q, k, v, n, out);
        for (size_t i = 0; i < rows; i++) naive_close_layer(m, l, out + i * ld, x + i * E);
    }
    memcpy(b->x, x + (rows - 1) * E, E * sizeof *b->x);
    b->pos += n;
    free(x);
    free(q);
    free(k);
    free(v);
    free(out);
}

static inline void naive_feed(NaiveBranch *b, const int32_t *ids, int n) {
    naive_sinks(b, n);
    if (b->method.signs && b->first_done) naive_append_signs(b, ids, n);
    else naive_append(b, ids, n);
    b->turn = 0;
    naive_end(b, false);
}

static inline void naive_step(NaiveBranch *b, int32_t id) {
    naive_sinks(b, 1);
    if (b->method.signs && b->first_done) naive_append_signs(b, &id, 1);
    else naive_token(b, id, true);
    b->turn = 0;
    naive_end(b, true);
}

// forgets what stands at pos and after it, but not what the policy has seen of it
static inline void naive_cut(NaiveBranch *b, int pos) {
    for (int i = 0; i < b->m->L * b->heads; i++) b->head[i].n = naive_until(&b->head[i], pos - 1);
    for (int l = 0; l < b->m->L; l++) {
        NaiveQueries *a = &b->query[l];
        while (a->n_fed && a->fed_pos[a->n_fed - 1] >= pos) a->n_fed--;
    }
    b->pos = pos;
}

static inline int naive_argmax(const NaiveBranch *b) {
    int best = 0;
    for (int i = 1; i < b->m->V; i++)
        if (b->logits[i] > b->logits[best]) best = i;
    return best;
}

#endif
