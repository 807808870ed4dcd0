// oracle_policies.h - what a policy keeps, by plain loops over rows of scores: no panel, no running
// sum that could be shared, no partial sort. It is written from the papers' rules and SEMANTICS.md
// alone and knows no model. Scores s are in base 2, lse2 is log2 of the softmax denominator, so the
// probability of key j is p = 2^(s_j - lse2); -INFINITY is a pair that was never computed.
//
// Every sum has one order: queries ascending, inside a query heads ascending, fp32. Of two equal
// rows the older stays; under scissorhands the newer.
#ifndef ORACLE_POLICIES_H
#define ORACLE_POLICIES_H
#include "base.h"
#include <xxhash.h>

enum { NAIVE_HISTORY = 64 };    // longest history and window of a test

typedef enum {
    NAIVE_FULL, NAIVE_KEEP_LAST, NAIVE_STREAM, NAIVE_CORM, NAIVE_SNAPKV, NAIVE_PYRAMIDKV, NAIVE_H2O,
    NAIVE_SCISSORHANDS, NAIVE_TOVA, NAIVE_ROCO, NAIVE_QUEST, NAIVE_TOPK, NAIVE_RANDOM, NAIVE_KINDS
} NaiveKind;
static const char *const naive_names[] = {
    "full", "keep-last", "streamingllm", "corm", "snapkv", "pyramidkv", "h2o",
    "scissorhands", "tova", "roco", "quest", "topk", "random",
};
typedef enum { NAIVE_MEAN, NAIVE_MAX, NAIVE_SUM, NAIVE_QUERY_HEAD, NAIVE_GROUPS } NaiveGroup;
static const char *const naive_groups[] = { "mean", "max", "sum", "query-head" };

typedef struct {
    NaiveKind kind;
    int budget;                 // rows per head; streamingllm: sinks + recent
    int sinks, recent;          // streamingllm; recent: h2o, scissorhands; roco: never feasible
    int window;                 // corm, snapkv, pyramidkv; scissorhands: its history
    int protect;                // corm: newest rows; roco: of endless deviation
    int kernel, beta;           // snapkv, pyramidkv: odd width of the pool, steepness
    bool pool_max;              // max in place of the mean
    int page;                   // quest
    NaiveGroup group;
    bool every_turn;            // snapkv, pyramidkv: act at the end of each feed
    bool one_cut;               // streamingllm: act at the end of the first feed alone
    bool cache;                 // positions cache
    bool sink;                  // streamingllm: positions sinkcache
    bool signs;                 // quest: as SharedContextBench's released code chooses
    uint64_t seed, session;     // random
} NaiveMethod;

typedef struct {
    int pos, turn;              // turn: sinkcache reads the key so much further
    int last;                   // corm: newest step it was important to, 0 never
    int seen;                   // roco: queries that looked at it
    float sum, squares;         // h2o, roco: of its probabilities
    uint8_t hit[NAIVE_HISTORY]; // scissorhands: was it important to step t, at t mod history
} NaiveRow;

typedef struct {                // where and when a policy acts
    int layer, layers, head;
    int t;                      // logical tokens so far
    bool first, step;           // at the end of the first feed; of a step
} NaiveMoment;

// ---------------------------------------------------------------------------
// Statistics

// s_j is important to the query of 1-based step t when p_j >= 1/t
static inline bool naive_important(float s, float lse2, int t) {
    return s >= lse2 - flog2((float)t);
}

// one number from one per query head, x (heads) apart by stride
static inline float naive_reduce(NaiveGroup rule, const float *x, size_t stride, int heads) {
    float y = x[0];
    for (int h = 1; h < heads; h++) {
        float z = x[(size_t)h * stride];
        y = rule != NAIVE_MAX ? y + z : z > y ? z : y;
    }
    return rule == NAIVE_MEAN ? y * (1.0f / (float)heads) : y;
}

// the query of step t of one KV head: s (heads, n), lse2 (heads)
static inline void naive_observe(const NaiveMethod *p, NaiveRow *row, int n, const float *s,
                                 const float *lse2, int heads, int t) {
    float prob[64];
    for (int j = 0; j < n; j++) {
        bool important = false, computed = false;
        for (int h = 0; h < heads; h++) {
            float s_hj = s[(size_t)h * (size_t)n + (size_t)j];
            important |= naive_important(s_hj, lse2[h], t);
            computed |= s_hj > -INFINITY;
            prob[h] = fexp2(s_hj - lse2[h]);
        }
        if (important && t > row[j].last) row[j].last = t;      // a cut may have gone back
        if (p->kind == NAIVE_SCISSORHANDS) row[j].hit[t % p->window] = important;
        if (!computed) continue;
        row[j].seen++;
        float a = naive_reduce(p->group, prob, 1, heads);
        row[j].sum = row[j].sum + a;
        row[j].squares = row[j].squares + a * a;
    }
}

// Window scores of the rows before the window: probabilities prob (heads, rows, n) summed over the
// query rows, then the group, then pooled along the rows with zeros (mean) or nothing (max) beyond
// both ends. score (n - window).
static inline void naive_window_scores(const NaiveMethod *p, const float *prob, int heads, int rows,
                                       int n, float *score) {
    int m = n - p->window;
    float *sum = (float *)xrealloc(NULL, (size_t)(heads + 1) * (size_t)m * sizeof *sum);
    float *one = sum + (size_t)heads * (size_t)m;
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < m; j++) {
            float c = 0;
            for (int a = 0; a < rows; a++)
                c = c + prob[((size_t)h * (size_t)rows + (size_t)a) * (size_t)n + (size_t)j];
            sum[(size_t)h * (size_t)m + (size_t)j] = c;
        }
    for (int j = 0; j < m; j++) one[j] = naive_reduce(p->group, sum + j, (size_t)m, heads);
    for (int j = 0; j < m; j++) {
        float total = 0, max = -INFINITY;
        for (int i = j - p->kernel / 2; i <= j + p->kernel / 2; i++) {
            if (i < 0 || i >= m) continue;
            total = total + one[i];
            max = one[i] > max ? one[i] : max;
        }
        score[j] = p->pool_max ? max : total / (float)p->kernel;
    }
    free(sum);
}

// ---------------------------------------------------------------------------
// Rules

typedef struct { float score; int j, tie; } NaiveRank;

static inline int naive_rank(const void *a, const void *b) {     // highest first, then least tie
    const NaiveRank *x = (const NaiveRank *)a, *y = (const NaiveRank *)b;
    return x->score > y->score ? -1 : x->score < y->score ? 1 : x->tie - y->tie;
}

// marks the k highest of n scores; equal ones from the front, or from the back
static inline void naive_top(const float *score, int n, int k, bool newer, uint8_t *keep) {
    NaiveRank *rank = (NaiveRank *)xrealloc(NULL, ((size_t)n + 1) * sizeof *rank);
    for (int j = 0; j < n; j++) rank[j] = (NaiveRank){ score[j], j, newer ? -j : j };
    qsort(rank, (size_t)n, sizeof *rank, naive_rank);
    for (int i = 0; i < n; i++) keep[rank[i].j] = i < k;
    free(rank);
}

// rows beside the window that a layer keeps of n tokens
//   c = cap - w, min = c / beta, max = 2c - min, rows = max - layer * ((max - min) / (L - 1))
static inline int naive_pyramid(const NaiveMethod *p, int layer, int layers, int n) {
    int c = p->budget - p->window, min = c / p->beta, max = 2 * c - min;
    if (layers == 1 || n < 2 * c) return c;
    if (max >= n - p->window) {
        max = n - p->window;
        min = 2 * c - max;
    }
    return max - layer * ((max - min) / (layers - 1));
}

// row j of n stays under corm; t: tokens so far, so many queries gave statistics
static inline bool naive_corm_keeps(const NaiveMethod *p, int j, int n, int last, int t) {
    return t < p->window || last > t - p->window || j >= n - p->protect;
}

// RoCo drops one row: of the B - R rows of least deviation, where the newest r have an endless one,
// that of least mean (the paper's R = 0.3 B, r = 10). alive (n) marks the rows still there.
static inline void naive_roco_drop(const NaiveMethod *p, const NaiveRow *row, int n,
                                   uint8_t *alive) {
    int feasible = p->budget - p->recent, left = 0, out = -1;
    NaiveRank *rank = (NaiveRank *)xrealloc(NULL, (size_t)n * sizeof *rank);
    for (int j = n - 1; j >= 0; j--) {
        if (!alive[j]) continue;
        float c = (float)row[j].seen, mean = row[j].sum / c, var = row[j].squares / c - mean * mean;
        float std = left < p->protect ? 1e9f : sqrtf(var > 0 ? var : 0);
        rank[left++] = (NaiveRank){ -std, j, j };
    }
    qsort(rank, (size_t)left, sizeof *rank, naive_rank);
    for (int i = 0; i < left && i < feasible; i++) {
        int j = rank[i].j;
        float mean = row[j].sum / (float)row[j].seen;
        float least = out < 0 ? INFINITY : row[out].sum / (float)row[out].seen;
        if (mean < least || (mean == least && j > out)) out = j;
    }
    alive[out] = 0;
    free(rank);
}

// the bits by which `random` orders rows: the least go
static inline uint64_t naive_random(const NaiveMethod *p, const NaiveMoment *at, int pos) {
    uint64_t of[] = { p->seed, p->session, (uint64_t)at->layer, (uint64_t)at->head, (uint64_t)pos };
    return XXH64(of, sizeof of, 0);
}

static inline bool naive_acts(const NaiveMethod *p, const NaiveMoment *at) {
    switch (p->kind) {
    case NAIVE_FULL: case NAIVE_QUEST: case NAIVE_TOPK: return false;
    case NAIVE_SNAPKV: case NAIVE_PYRAMIDKV: return at->first || (p->every_turn && !at->step);
    case NAIVE_STREAM: return !p->sink && (at->first || !p->one_cut);
    default: return true;
    }
}

// keep (n): which rows of one head stay. score: of the rows before the window (snapkv, pyramidkv),
// of all rows (tova)
static inline void naive_keep(const NaiveMethod *p, const NaiveMoment *at, const NaiveRow *row,
                              int n, const float *score, uint8_t *keep) {
    bool newer = p->kind == NAIVE_SCISSORHANDS;
    float *x = (float *)xrealloc(NULL, ((size_t)n + 1) * sizeof *x);
    int k = 0, left = n;
    memset(keep, 1, (size_t)n);
    switch (p->kind) {
    case NAIVE_FULL: case NAIVE_QUEST: case NAIVE_TOPK: case NAIVE_KINDS: break;
    case NAIVE_KEEP_LAST:
        for (int j = 0; j < n; j++) keep[j] = j >= n - p->budget;
        break;
    case NAIVE_STREAM:
        for (int j = 0; j < n; j++) keep[j] = j < p->sinks || j >= n - p->recent;
        break;
    case NAIVE_CORM:
        for (int j = 0; j < n; j++) keep[j] = naive_corm_keeps(p, j, n, row[j].last, at->t);
        break;
    case NAIVE_SNAPKV: case NAIVE_PYRAMIDKV:
        k = p->kind == NAIVE_SNAPKV ? p->budget - p->window
                                    : naive_pyramid(p, at->layer, at->layers, at->t);
        if ((p->kind == NAIVE_PYRAMIDKV && at->t < p->budget) || n <= k + p->window) break;
        naive_top(score, n - p->window, k, false, keep);
        break;
    case NAIVE_H2O: case NAIVE_SCISSORHANDS:
        if (n <= p->budget) break;
        for (int j = 0; j < n; j++) {
            x[j] = p->kind == NAIVE_H2O ? row[j].sum : 0;
            for (int i = 0; newer && i < p->window; i++) x[j] += row[j].hit[i];
        }
        naive_top(x, n - p->recent, p->budget - p->recent, newer, keep);
        break;
    case NAIVE_TOVA:
        naive_top(score, n, p->budget, false, keep);
        break;
    case NAIVE_ROCO:
        for (; left > p->budget; left--) naive_roco_drop(p, row, n, keep);
        break;
    case NAIVE_RANDOM:
        for (int j = 0; j < n; j++) {
            int lower = 0;
            for (int i = 0; i < n; i++)
                lower += naive_random(p, at, row[i].pos) < naive_random(p, at, row[j].pos);
            keep[j] = lower >= n - p->budget;
        }
        break;
    }
    free(x);
}

// ---------------------------------------------------------------------------
// Selection at read time: which of n rows one token of one KV head looks at

// k (n, hd) keys, q (heads, hd) rotated and rounded. A page is `page` consecutive rows; its score
// is the bound sum_i max(q_i max_i, q_i min_i) over the keys it holds now. max(3, B / page) pages
// are read whole: the one the token itself is in, and the best others. Lists of up to B rows are
// read to the end.
static inline void naive_quest(const NaiveMethod *p, const float *k, int n, const float *q,
                               int heads, int hd, uint8_t *keep) {
    int pages = CEIL_DIV(n, p->page), count = p->budget / p->page > 3 ? p->budget / p->page : 3;
    float *score = (float *)xrealloc(NULL, (size_t)pages * sizeof *score), of_head[64];
    uint8_t *read = (uint8_t *)xrealloc(NULL, (size_t)pages);
    for (int g = 0; g < pages; g++) {
        int end = (g + 1) * p->page < n ? (g + 1) * p->page : n;
        for (int h = 0; h < heads; h++) {
            float lane[LANES] = { 0 };
            for (int i = 0; i < hd; i++) {
                float max = -INFINITY, min = INFINITY, x = q[h * hd + i];
                for (int j = g * p->page; j < end; j++) {
                    float y = k[(size_t)j * (size_t)hd + (size_t)i];
                    max = y > max ? y : max;
                    min = y < min ? y : min;
                }
                lane[i % LANES] += x * max > x * min ? x * max : x * min;
            }
            of_head[h] = lanes_sum(lane);
        }
        score[g] = naive_reduce(p->group, of_head, 1, heads);
    }
    score[pages - 1] = INFINITY;
    naive_top(score, pages, n <= p->budget ? pages : count, false, read);
    for (int j = 0; j < n; j++) keep[j] = read[j / p->page];
    free(score);
    free(read);
}

// SharedContextBench's code: row i of a feed of n_rows queries q, ld apart, of one query head, over
// the n keys k (n, hd) there are when the whole feed is stored. With S_c the sum of the queries'
// signs in channel c (0 is -1) a page scores sum_c (q_c S_c) max_j (k_jc S_c); min(n, B) / page
// pages, at least 3, are read, of these the rows the query may see: the first `sees`. None: those
// of its own page.
static inline void naive_signs(const NaiveMethod *p, const float *k, int n, const float *q,
                               size_t ld, int n_rows, int i, int sees, int hd, uint8_t *keep) {
    int pages = CEIL_DIV(n, p->page), budget = p->budget < n ? p->budget : n, any = 0;
    int count = budget / p->page > 3 ? budget / p->page : 3;
    float *score = (float *)xrealloc(NULL, (size_t)pages * sizeof *score);
    uint8_t *read = (uint8_t *)xrealloc(NULL, (size_t)pages);
    for (int g = 0; g < pages; g++) {
        float lane[LANES] = { 0 };
        for (int c = 0; c < hd; c++) {
            float sum = 0, top = -INFINITY;
            for (int r = 0; r < n_rows; r++) sum += q[(size_t)r * ld + (size_t)c] > 0 ? 1 : -1;
            for (int j = g * p->page; j < (g + 1) * p->page && j < n; j++) {
                float y = k[(size_t)j * (size_t)hd + (size_t)c] * sum;
                top = y > top ? y : top;
            }
            lane[c % LANES] += (q[(size_t)i * ld + (size_t)c] * sum) * top;
        }
        score[g] = lanes_sum(lane);
    }
    naive_top(score, pages, count, false, read);
    for (int j = 0; j < n; j++) any += keep[j] = j < sees && read[j / p->page];
    for (int j = 0; j < sees && !any; j++) keep[j] = j / p->page == (sees - 1) / p->page;
    free(score);
    free(read);
}

// prob (heads, n): the B rows of most attention
static inline void naive_topk(const NaiveMethod *p, const float *prob, int n, int heads,
                              uint8_t *keep) {
    float *score = (float *)xrealloc(NULL, (size_t)n * sizeof *score);
    for (int j = 0; j < n; j++) score[j] = naive_reduce(p->group, prob + j, (size_t)n, heads);
    naive_top(score, n, p->budget, false, keep);
    free(score);
}

#endif
