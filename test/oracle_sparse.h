// oracle_sparse.h - sparse prefill by definition: for every (query head, block of 64 rows) the list
// of keys it may look at, for every row of the block which of them it sees, and attention over
// exactly these. Written from the papers' rules (A-shape and Tri-shape of SCBench, arXiv
// 2412.10319; MInference, arXiv 2407.02490) and SEMANTICS.md alone.
//
// N tokens of the feed, which begins at position 0; block r holds rows 64r .. 64r + 63. A distance
// d = i - j is a slash, a column j a vertical. Selections: highest first, of equal ones the lowest.
#ifndef ORACLE_SPARSE_H
#define ORACLE_SPARSE_H
#include "oracle.h"

enum { NAIVE_TILE = 64, NAIVE_PROBES = 64,
       NAIVE_COLUMNS = 30, NAIVE_BAND = 100,    // first columns, shortest distances: always chosen
       NAIVE_LEAST_SLASHES = 50 };

typedef enum {
    NAIVE_DENSE, NAIVE_A_SHAPE, NAIVE_TRI_SHAPE, NAIVE_SLASHES, NAIVE_BLOCKS
} NaiveShape;
typedef struct {                // of one query head
    NaiveShape shape;
    int sinks, local;           // a-shape, tri-shape: first columns; nearest keys, own included
    int dense;                  // tri-shape: last rows
    int verticals, slashes;     // vertical-slash, before clamping
    int blocks;                 // block-sparse
} NaivePattern;

typedef struct {                // chosen once per head: ascending columns and distances
    int n_vertical, n_slash, *vertical, *slash;
    uint8_t *block;             // block-sparse (n, n): row block r looks at column block c
} NaiveIndex;

static inline void naive_index_free(NaiveIndex *x) {
    free(x->vertical);
    free(x->slash);
    free(x->block);
}

static inline int *naive_ints(int n) {
    int *p = (int *)xrealloc(NULL, ((size_t)n + 1) * sizeof *p);
    memset(p, 0, ((size_t)n + 1) * sizeof *p);
    return p;
}

// the k highest of n as ascending numbers
static inline int *naive_pick(const float *score, int n, int k) {
    uint8_t *keep = (uint8_t *)xrealloc(NULL, (size_t)n + 1);
    int *out = naive_ints(k), at = 0;
    naive_top(score, n, k, false, keep);
    for (int j = 0; j < n; j++)
        if (keep[j]) out[at++] = j;
    free(keep);
    return out;
}

// ---------------------------------------------------------------------------
// What a head chooses: q, k (N, hd) of one head, rotated and rounded

// log2 of the softmax denominator of s (n), all visible, in panels as attention takes them
static inline float naive_lse2(const float *s, int n) {
    float max = 0, l = 0;
    for (int first = 0; first < n; first += NAIVE_PANEL) {
        float lane[LANES] = { 0 }, m_p = s[first];
        int end = n < first + NAIVE_PANEL ? n : first + NAIVE_PANEL;
        for (int j = first; j < end; j++) m_p = s[j] > m_p ? s[j] : m_p;
        for (int j = first; j < end; j++) lane[(j - first) % LANES] += fexp2(s[j] - m_p);
        float l_p = lanes_sum(lane), m_new = first && max > m_p ? max : m_p;
        l = first ? fmaf(l, fexp2(max - m_new), l_p * fexp2(m_p - m_new)) : l_p;
        max = m_new;
    }
    return max + flog2(l);
}

// sums of the probabilities of the last min(64, N) rows: by column and by distance, (N) each
static inline void naive_probe(const NaiveModel *m, const float *q, const float *k, int N,
                               float *column, float *distance) {
    float c = (float)(1.4426950408889634 / sqrt((double)m->hd)), *s = naive_floats((size_t)N);
    int probes = N < NAIVE_PROBES ? N : NAIVE_PROBES;
    for (int j = 0; j < N; j++) column[j] = distance[j] = 0;
    for (int i = N - probes; i < N; i++) {
        for (int j = 0; j <= i; j++)
            s[j] = naive_dot(q + i * m->hd, k + j * m->hd, m->hd) * c;
        float lse2 = naive_lse2(s, i + 1);
        for (int j = 0; j <= i; j++) {
            float p = fexp2(s[j] - lse2);
            column[j] = column[j] + p;
            distance[i - j] = distance[i - j] + p;
        }
    }
    free(s);
}

static inline void naive_choose_slashes(NaiveIndex *x, const NaivePattern *p, float *column,
                                        float *distance, int N) {
    x->n_vertical = p->verticals > NAIVE_COLUMNS ? p->verticals : NAIVE_COLUMNS;
    x->n_slash = p->slashes > NAIVE_LEAST_SLASHES ? p->slashes : NAIVE_LEAST_SLASHES;
    x->n_vertical = x->n_vertical < N ? x->n_vertical : N;
    x->n_slash = x->n_slash < N ? x->n_slash : N;
    for (int j = 0; j < NAIVE_COLUMNS && j < N; j++) column[j] = INFINITY;
    for (int d = 0; d < NAIVE_BAND && d < N; d++) distance[d] = INFINITY;
    x->vertical = naive_pick(column, N, x->n_vertical);
    x->slash = naive_pick(distance, N, x->n_slash);
}

// Means of 64 rows, the last block as if zeros filled it up; the score of (row block, column block)
// is their product. A row block takes its best blocks, all of them while there are no more; none is
// forced.
static inline void naive_choose_blocks(const NaiveModel *m, NaiveIndex *x, const NaivePattern *p,
                                       const float *q, const float *k, int N) {
    int n = CEIL_DIV(N, NAIVE_TILE), hd = m->hd, top = N / NAIVE_TILE + 1;
    float *mean[2] = { naive_floats((size_t)(n * hd)), naive_floats((size_t)(n * hd)) };
    const float *from[2] = { q, k };
    float *score = naive_floats((size_t)n);
    top = p->blocks < top ? p->blocks : top;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < n * hd; i++) {
            float sum = 0;
            for (int j = i / hd * NAIVE_TILE; j < (i / hd + 1) * NAIVE_TILE && j < N; j++)
                sum = sum + from[side][j * hd + i % hd];
            mean[side][i] = naive_round(m, sum / NAIVE_TILE);
        }
    x->block = (uint8_t *)xrealloc(NULL, (size_t)(n * n));
    memset(x->block, 0, (size_t)(n * n));
    for (int r = 0; r < n; r++) {
        for (int c = 0; c <= r; c++) score[c] = naive_dot(mean[0] + r * hd, mean[1] + c * hd, hd);
        naive_top(score, r + 1, top, false, x->block + r * n);
    }
    free(mean[0]);
    free(mean[1]);
    free(score);
}

// ---------------------------------------------------------------------------
// The list of a block: listed (N)

// From columns and distances: with e the end of the block, R(d) = max(e - d, 64) for every distance
// below e, ascending. The first opens an interval [R - 64, R). A later R beyond the end by more
// than 64 opens a new one, by less makes the last one 64 longer. Listed are the intervals, and the
// columns left of the last interval's end. Returns the number of 64-key pieces; starts, if not
// NULL: where they begin. in_interval (N), *last_end: where the last interval ends.
static inline int naive_slash_intervals(const NaiveIndex *x, int r, int N, int *starts,
                                        uint8_t *in_interval, int *last_end) {
    int e = (r + 1) * NAIVE_TILE, from = -1, to = -1, pieces = 0;
    memset(in_interval, 0, (size_t)N);
    for (int i = x->n_slash - 1; i >= -1; i--) {
        if (i >= 0 && x->slash[i] >= e) continue;
        int R = i < 0 ? INT_MAX : e - x->slash[i] > NAIVE_TILE ? e - x->slash[i] : NAIVE_TILE;
        if (from >= 0 && R <= to + NAIVE_TILE) {
            if (R > to) to += NAIVE_TILE;
            continue;
        }
        for (int at = from; from >= 0 && at < to; at += NAIVE_TILE) {
            if (starts) starts[pieces] = at;
            pieces++;
            for (int j = at; j < at + NAIVE_TILE && j < N; j++) in_interval[j] = 1;
        }
        to = i < 0 ? to : R;
        from = to - NAIVE_TILE;
    }
    *last_end = to;
    return pieces;
}

static inline bool naive_dense_row(const NaivePattern *p, int i, int N) {
    int dense = p->dense < N - 1 ? p->dense : N - 1;
    return p->shape == NAIVE_DENSE || N < 2 || (p->shape == NAIVE_TRI_SHAPE && i >= N - dense);
}

static inline void naive_list(const NaivePattern *p, const NaiveIndex *x, int r, int N,
                              uint8_t *listed) {
    int end = (r + 1) * NAIVE_TILE < N ? (r + 1) * NAIVE_TILE : N, n = CEIL_DIV(N, NAIVE_TILE), to;
    bool all = naive_dense_row(p, end - 1, N);
    memset(listed, all, (size_t)N);
    for (int j = end; j < N; j++) listed[j] = 0;
    if (all) return;
    if (p->shape == NAIVE_A_SHAPE || p->shape == NAIVE_TRI_SHAPE) {
        int first = r * NAIVE_TILE - p->local + 1;
        int tile = first > 0 ? first / NAIVE_TILE : 0, sink_tiles = CEIL_DIV(p->sinks, NAIVE_TILE);
        for (int j = 0; j < end; j++)
            listed[j] = j / NAIVE_TILE < sink_tiles || j / NAIVE_TILE >= tile;
    }
    if (p->shape == NAIVE_SLASHES) {
        naive_slash_intervals(x, r, N, NULL, listed, &to);
        for (int i = 0; i < x->n_vertical; i++)
            if (x->vertical[i] < to) listed[x->vertical[i]] = 1;
        for (int j = end; j < N; j++) listed[j] = 0;        // what no row of the block sees
    }
    if (p->shape == NAIVE_BLOCKS)
        for (int j = 0; j < end; j++) listed[j] = x->block[r * n + j / NAIVE_TILE];
}

// row i sees the listed key j
static inline bool naive_sees(const NaivePattern *p, int i, int j, int N) {
    if (j > i) return false;
    if (p->shape != NAIVE_A_SHAPE && p->shape != NAIVE_TRI_SHAPE) return true;
    return naive_dense_row(p, i, N) || i - j < p->local || j < p->sinks;
}

static inline NaiveIndex naive_choose(const NaiveModel *m, const NaivePattern *p, const float *q,
                                      const float *k, int N) {
    NaiveIndex x = { 0 };
    if (p->shape == NAIVE_BLOCKS && N > 1) naive_choose_blocks(m, &x, p, q, k, N);
    if (p->shape != NAIVE_SLASHES || N < 2) return x;
    float *column = naive_floats((size_t)N), *distance = naive_floats((size_t)N);
    naive_probe(m, q, k, N, column, distance);
    naive_choose_slashes(&x, p, column, distance, N);
    free(column);
    free(distance);
    return x;
}

// ---------------------------------------------------------------------------
// Attention of one row over a list: entries in panels of 512, those the row does not see stay in
// their place with P = 0. s (N): -INFINITY where no score was computed. Returns lse2.
static inline float naive_attend_list(const NaiveModel *m, const NaiveHead *a, const float *q,
                                      const int *list, int n, const uint8_t *sees, float *out,
                                      float *s) {
    float c = (float)(1.4426950408889634 / sqrt((double)m->hd)), max = 0, l = 0;
    size_t hd = (size_t)m->hd;
    float *o = naive_floats(hd), *p = naive_floats(NAIVE_PANEL);
    float *v = naive_floats(NAIVE_PANEL * hd);
    bool merged = false;
    for (int first = 0; first < n; first += NAIVE_PANEL) {
        int len = n - first < NAIVE_PANEL ? n - first : NAIVE_PANEL;
        float m_p = -INFINITY, lane[LANES] = { 0 };
        for (int e = 0; e < len; e++) {
            int j = list[first + e];
            memcpy(v + (size_t)e * hd, a->v + (size_t)j * hd, hd * sizeof *v);
            if (!sees[j]) continue;
            s[j] = naive_dot(q, a->k + (size_t)j * hd, m->hd) * c;
            m_p = s[j] > m_p ? s[j] : m_p;
        }
        if (m_p == -INFINITY) continue;
        for (int e = 0; e < len; e++) {
            float y = sees[list[first + e]] ? fexp2(s[list[first + e]] - m_p) : 0;
            lane[e % LANES] += y;
            p[e] = naive_round(m, y);
        }
        float l_p = lanes_sum(lane), m_new = merged && max > m_p ? max : m_p;
        float fa = fexp2(max - m_new), fb = fexp2(m_p - m_new);
        naive_rows_dot(p, v, len, m->hd, o);
        for (size_t i = 0; i < hd; i++) out[i] = merged ? fmaf(out[i], fa, o[i] * fb) : o[i];
        l = merged ? fmaf(l, fa, l_p * fb) : l_p;
        max = m_new;
        merged = true;
    }
    CHECK(merged, "oracle: a row without a visible key");
    for (size_t i = 0; i < hd; i++) out[i] = out[i] / l;
    free(o);
    free(p);
    free(v);
    return max + flog2(l);
}

// ---------------------------------------------------------------------------
// A first feed under patterns, layer by layer

typedef struct {
    const NaivePattern *pattern;        // (L, H)
    uint64_t pairs;                     // out: (row, listed key) up to the row, all heads
    uint64_t listed;                    // out: rows of a block times its list
} NaiveSparse;

// q, k rotated and rounded: q (N, H, hd); rows of the layer are in place. out (N, H, hd)
static inline void naive_sparse_layer(NaiveBranch *b, NaiveSparse *x, int layer, int N,
                                      const float *q, float *out) {
    const NaiveModel *m = b->m;
    NaiveQueries *seen = &b->query[layer];
    size_t hd = (size_t)m->hd, H = (size_t)m->H, rows = (size_t)N;
    float *own = naive_floats(rows * hd);
    uint8_t *listed = (uint8_t *)xrealloc(NULL, rows), *sees = (uint8_t *)xrealloc(NULL, rows);
    int *list = naive_ints(N);
    naive_reserve_scores(seen, N, m->H);
    for (size_t i = 0; i < rows * (rows + 1) / 2 * H; i++) seen->s[i] = -INFINITY;
    seen->n = N;
    for (int h = 0; h < m->H; h++) {
        const NaivePattern *p = &x->pattern[layer * m->H + h];
        const NaiveHead *a = &b->head[layer * m->G + h / (m->H / m->G)];
        float *s = naive_floats(rows);
        for (size_t i = 0; i < rows; i++)
            memcpy(own + i * hd, q + (i * H + (size_t)h) * hd, hd * sizeof *own);
        NaiveIndex chosen = naive_choose(m, p, own, a->k, N);
        for (int i = 0; i < N; i++) {
            int n = 0;
            if (i % NAIVE_TILE == 0) naive_list(p, &chosen, i / NAIVE_TILE, N, listed);
            for (int j = 0; j < N; j++) {
                s[j] = -INFINITY;
                sees[j] = naive_sees(p, i, j, N);
                if (listed[j]) list[n++] = j;
                x->pairs += listed[j] && sees[j];
            }
            x->listed += (uint64_t)n;
            size_t at = (size_t)i * ((size_t)i + 1) / 2 * H + (size_t)h * ((size_t)i + 1);
            seen->lse2[(size_t)i * H + (size_t)h] =
                naive_attend_list(m, a, own + (size_t)i * hd, list, n, sees,
                                  out + ((size_t)i * H + (size_t)h) * hd, s);
            memcpy(seen->s + at, s, ((size_t)i + 1) * sizeof *s);
        }
        naive_index_free(&chosen);
        free(s);
    }
    free(own);
    free(listed);
    free(sees);
    free(list);
}

// n ids on an empty branch without a policy, as naive_append
static inline void naive_append_sparse(NaiveBranch *b, const int32_t *ids, int n, NaiveSparse *x) {
    const NaiveModel *m = b->m;
    size_t E = (size_t)m->E, q_dim = (size_t)(m->H * m->hd), kv_dim = (size_t)(m->G * m->hd);
    float *xs = naive_floats((size_t)n * E), *q = naive_floats((size_t)n * q_dim);
    float *att = naive_floats((size_t)n * q_dim), *one = naive_floats(q_dim);
    float *k = naive_floats(kv_dim), *v = naive_floats(kv_dim);
    CHECK(b->pos == 0 && b->heads == m->G, "oracle: a sparse feed is the first");
    for (int i = 0; i < n; i++)
        memcpy(xs + (size_t)i * E, m->embed.w + (size_t)ids[i] * E, E * sizeof *xs);
    for (int l = 0; l < m->L; l++) {
        for (int i = 0; i < n; i++) {
            naive_project(m, l, xs + (size_t)i * E, one, k, v);
            for (int g = 0; g < m->G; g++) naive_row(b, l, g, k, v, i);
            float *now = q + (size_t)i * q_dim;
            for (int h = 0; h < m->H; h++) naive_query(m, one + h * m->hd, i, now + h * m->hd);
            naive_fed(&b->query[l], now, i, q_dim);
            memcpy(b->query[l].now, now, q_dim * sizeof *now);
        }
        naive_sparse_layer(b, x, l, n, q, att);
        for (int i = 0; i < n; i++)
            naive_close_layer(m, l, att + (size_t)i * q_dim, xs + (size_t)i * E);
    }
    memcpy(b->x, xs + (size_t)(n - 1) * E, E * sizeof *b->x);
    b->pos = n;
    float *all[] = { xs, q, att, one, k, v };
    for (size_t i = 0; i < COUNTOF(all); i++) free(all[i]);
}

#endif
