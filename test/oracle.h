// oracle.h - the slow twin of the llama runtime: plain C, one thread, one token at a time, one
// array per (layer, KV head), full copies for marks and forks. It is written from SEMANTICS.md
// alone and must give the same bits as the runtime: no chunk, no packing, no shared row, no list.
//
// Shape letters: V vocab, E dim, F hidden_dim, L layers, H query heads, G KV heads, hd head_dim.
// Every function ends the process on a bad file: tests have no other use for the error.
#ifndef ORACLE_H
#define ORACLE_H
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

typedef enum { NAIVE_FULL, NAIVE_KEEP_LAST, NAIVE_STREAM, NAIVE_CORM } NaiveKind;
typedef struct {
    NaiveKind kind;
    int budget;                 // keep-last
    int sinks, recent;          // streamingllm
    int window, protect;        // corm
    bool cache;                 // positions cache
} NaiveMethod;

typedef struct { int pos, last; } NaiveRow;     // last: newest query it mattered to, 0 never
typedef struct {                // the rows of one (layer, KV head), ascending by position
    int n, cap;
    NaiveRow *row;              // (n)
    float *k, *v;               // (n, hd)
} NaiveHead;
typedef struct {
    const NaiveModel *m;
    NaiveMethod method;
    int pos;                    // tokens so far
    bool first_done;            // the first feed has ended
    NaiveHead *head;            // (L, G)
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

static inline NaiveBranch *naive_branch(const NaiveModel *m, NaiveMethod method) {
    NaiveBranch *b = (NaiveBranch *)xrealloc(NULL, sizeof *b);
    *b = (NaiveBranch){ .m = m, .method = method };
    size_t heads = (size_t)m->L * (size_t)m->G;
    b->head = (NaiveHead *)xrealloc(NULL, heads * sizeof *b->head);
    memset(b->head, 0, heads * sizeof *b->head);
    b->x = naive_floats((size_t)m->E);
    b->logits = naive_floats((size_t)m->V);
    return b;
}

static inline void naive_drop(NaiveBranch *b) {
    for (int i = 0; i < b->m->L * b->m->G; i++) {
        free(b->head[i].row);
        free(b->head[i].k);
        free(b->head[i].v);
    }
    free(b->head);
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

static inline NaiveBranch *naive_copy(const NaiveBranch *b) {
    const NaiveModel *m = b->m;
    NaiveBranch *c = naive_branch(m, b->method);
    c->pos = b->pos;
    c->first_done = b->first_done;
    memcpy(c->x, b->x, (size_t)m->E * sizeof *c->x);
    memcpy(c->logits, b->logits, (size_t)m->V * sizeof *c->logits);
    for (int i = 0; i < m->L * m->G; i++) {
        const NaiveHead *from = &b->head[i];
        NaiveHead *to = &c->head[i];
        if (from->n == 0) continue;
        naive_reserve(to, from->n, m->hd);
        to->n = from->n;
        memcpy(to->row, from->row, (size_t)from->n * sizeof *to->row);
        memcpy(to->k, from->k, (size_t)from->n * (size_t)m->hd * sizeof *to->k);
        memcpy(to->v, from->v, (size_t)from->n * (size_t)m->hd * sizeof *to->v);
    }
    return c;
}

// ---------------------------------------------------------------------------
// Attention

// key j of the list as the query sees it: stored, or moved to its place in the list
static inline void naive_key(const NaiveModel *m, const NaiveHead *a, int j, bool cache, float *k) {
    memcpy(k, a->k + (size_t)j * (size_t)m->hd, (size_t)m->hd * sizeof *k);
    if (!cache || a->row[j].pos == j) return;
    naive_rope(m, k, j - a->row[j].pos);
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

// corm: s_j is important to the query of 1-based step t when p_j >= 1/t
static inline bool naive_important(float s, float lse2, int t) {
    return s >= lse2 - flog2((float)t);
}

// ---------------------------------------------------------------------------
// One token through the model; statistics of every query are kept, those beyond a window are
// older than any window asks for

static inline void naive_attention(NaiveBranch *b, int layer, const float *q, const float *k,
                                   const float *v, float *out) {
    const NaiveModel *m = b->m;
    int hd = m->hd, group = m->H / m->G;
    bool cache = b->method.cache && b->first_done;
    float *qr = naive_floats((size_t)hd);
    for (int g = 0; g < m->G; g++) {
        NaiveHead *a = &b->head[layer * m->G + g];
        naive_reserve(a, a->n + 1, hd);
        float *k_row = a->k + (size_t)a->n * (size_t)hd, *v_row = a->v + (size_t)a->n * (size_t)hd;
        memcpy(k_row, k + g * hd, (size_t)hd * sizeof *k_row);
        naive_rope(m, k_row, b->pos);
        for (int i = 0; i < hd; i++) k_row[i] = naive_round(m, k_row[i]);
        for (int i = 0; i < hd; i++) v_row[i] = naive_round(m, v[g * hd + i]);
        a->row[a->n] = (NaiveRow){ .pos = b->pos };
        a->n++;
        float *s = naive_floats((size_t)a->n);
        for (int h = g * group; h < (g + 1) * group; h++) {
            memcpy(qr, q + h * hd, (size_t)hd * sizeof *qr);
            naive_rope(m, qr, cache ? a->n - 1 : b->pos);
            for (int i = 0; i < hd; i++) qr[i] = naive_round(m, qr[i]);
            float lse2 = naive_attend(m, a, qr, cache, out + h * hd, s);
            for (int j = 0; j < a->n; j++)
                if (naive_important(s[j], lse2, b->pos + 1)) a->row[j].last = b->pos + 1;
        }
        free(s);
    }
    free(qr);
}

static inline void naive_token(NaiveBranch *b, int32_t id) {
    const NaiveModel *m = b->m;
    int q_dim = m->H * m->hd, kv_dim = m->G * m->hd;
    float *y = naive_floats((size_t)m->E), *q = naive_floats((size_t)q_dim);
    float *k = naive_floats((size_t)kv_dim), *v = naive_floats((size_t)kv_dim);
    float *att = naive_floats((size_t)q_dim);
    float *gate = naive_floats((size_t)m->F), *up = naive_floats((size_t)m->F);
    for (int i = 0; i < m->E; i++) b->x[i] = m->embed.w[(size_t)id * (size_t)m->E + (size_t)i];
    for (int l = 0; l < m->L; l++) {
        const NaiveLayer *w = &m->layer[l];
        naive_norm(b->x, w->attn_norm, m->E, m->eps, y);
        naive_linear(m, &w->wq, y, w->bq, q);
        naive_linear(m, &w->wk, y, w->bk, k);
        naive_linear(m, &w->wv, y, w->bv, v);
        naive_attention(b, l, q, k, v, att);
        naive_linear(m, &w->wo, att, NULL, y);
        for (int i = 0; i < m->E; i++) b->x[i] = b->x[i] + y[i];
        naive_norm(b->x, w->ffn_norm, m->E, m->eps, y);
        naive_linear(m, &w->w1, y, NULL, gate);
        naive_linear(m, &w->w3, y, NULL, up);
        for (int i = 0; i < m->F; i++)      // silu(gate) * up
            gate[i] = (gate[i] / (1.0f + fexp2(gate[i] * -1.44269504f))) * up[i];
        naive_linear(m, &w->w2, gate, NULL, y);
        for (int i = 0; i < m->E; i++) b->x[i] = b->x[i] + y[i];
    }
    b->pos++;
    float *all[] = { y, q, k, v, att, gate, up };
    for (size_t i = 0; i < COUNTOF(all); i++) free(all[i]);
}

// ---------------------------------------------------------------------------
// Policies and the calls of a branch

// row j of n stays; t_now: tokens so far, so many queries gave statistics
static inline bool naive_keeps(const NaiveMethod *p, int j, int n, int last, int t_now) {
    bool seen = last > t_now - p->window || t_now < p->window;
    switch (p->kind) {
    case NAIVE_FULL:      return true;
    case NAIVE_KEEP_LAST: return j >= n - p->budget;
    case NAIVE_STREAM:    return j < p->sinks || j >= n - p->recent;
    case NAIVE_CORM:      return seen || j >= n - p->protect;
    }
    return true;
}

static inline void naive_evict(NaiveBranch *b) {
    size_t hd = (size_t)b->m->hd;
    for (int i = 0; i < b->m->L * b->m->G; i++) {
        NaiveHead *a = &b->head[i];
        int kept = 0;
        for (int j = 0; j < a->n; j++) {
            if (!naive_keeps(&b->method, j, a->n, a->row[j].last, b->pos)) continue;
            a->row[kept] = a->row[j];
            memmove(a->k + (size_t)kept * hd, a->k + (size_t)j * hd, hd * sizeof *a->k);
            memmove(a->v + (size_t)kept * hd, a->v + (size_t)j * hd, hd * sizeof *a->v);
            kept++;
        }
        a->n = kept;
    }
}

// rows without a policy: what a context is, and a feed before its end
static inline void naive_append(NaiveBranch *b, const int32_t *ids, int n) {
    for (int i = 0; i < n; i++) naive_token(b, ids[i]);
}

// n ids at once, then the policy and the logits of the last token
static inline void naive_feed(NaiveBranch *b, const int32_t *ids, int n) {
    naive_append(b, ids, n);
    naive_evict(b);
    b->first_done = true;
    float *y = naive_floats((size_t)b->m->E);
    naive_norm(b->x, b->m->final_norm, b->m->E, b->m->eps, y);
    naive_linear(b->m, &b->m->lm_head, y, NULL, b->logits);
    free(y);
}

static inline void naive_step(NaiveBranch *b, int32_t id) { naive_feed(b, &id, 1); }

static inline int naive_argmax(const NaiveBranch *b) {
    int best = 0;
    for (int i = 1; i < b->m->V; i++)
        if (b->logits[i] > b->logits[best]) best = i;
    return best;
}

#endif
