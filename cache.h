// cache.h - the border between cache.cu (rows, lists, release), evict.cu (what to drop and when)
// and method.c (names and sizes): what a policy and the cache know of each other. No other file
// includes it.
#ifndef CACHE_H
#define CACHE_H
#include "scb.h"
#include <omp.h>

EXTERN_C_BEGIN

struct Policy {
    const char *name, *help, *kv_size, *prefill_cost, *decode_cost;
    bool evicts, has_budget, has_state;
    // marks rows to keep (1) or drop (0) of one head, entries in logical order; returns rows
    // dropped
    int (*keep)(const Sizes *z, int len, int64_t t, const int32_t *state, uint8_t *keep);
    // one query row: s (len) scores in base 2, lse2 of the row, t the query's 1-based step
    void (*observe)(int32_t *state, const float *s, int len, float lse2, int64_t t);
    int (*window)(const Sizes *z);              // query rows read at the end of a feed
};
const Policy *policy_at(int i);         // table order; NULL past the end

// ---------------------------------------------------------------------------
// Rows: one block per (layer, KV head), K (cap, hd), V (cap, hd), position (cap)

typedef struct { char *mem; int n, cap; } Rows;

static inline char *rows_k(const Rows *r) { return r->mem; }
static inline char *rows_v(const Rows *r, const AttnShape *s) {
    return r->mem + (size_t)r->cap * s->head_dim * s->elem;
}
static inline int32_t *rows_pos(const Rows *r, const AttnShape *s) {
    return (int32_t *)(void *)(r->mem + 2 * (size_t)r->cap * s->head_dim * s->elem);
}

struct KVBase {                 // immutable once filled; shared by context and branches
    Mem *mem;
    const AttnShape *s;
    int refs, n_heads;
    Rows *head;                 // (A * G)
};

typedef struct {
    Rows own;                   // rows appended by this branch; row number = base rows + index
    int32_t *live;              // (len) row numbers, ascending; NULL while every row is live
    int32_t *state;             // (len) the policy's int per live row, parallel to the list
    int len, cap;               // entries in live and state, and their room
} Head;

struct KVCache {
    Mem *mem;
    const AttnShape *s;
    Method method;
    KVBase *base;
    Head *head;                 // (A * G)
    int n_layers, n_heads, reserve, marks;
    int64_t named, dropped;     // rows the rule named and rows gone, in the last feed or step
    bool building, first_done; // inside the first feed of an empty cache; the policy has acted once
};

static inline Head *head_of(const KVCache *c, int layer, int g) {
    return &c->head[layer * c->s->n_kv_heads + g];
}
static inline int base_rows(const KVCache *c, const Head *h) {
    return c->base ? c->base->head[h - c->head].n : 0;
}

struct KVWork {
    Mem *mem;
    const AttnShape *s;
    char *thread;               // (threads) attention scratch and statistics
    size_t per_thread;
    int threads;
    char *panels;               // (G) panels of one layer
    size_t panels_bytes;
    int panel_cap, feed_n;      // panels per head; tokens of the feed under way
    float *parts;               // (batch, G, panels, group, hd + 2) of a step
    size_t parts_bytes;
    float *scores;              // (H, ld) of a step that is observed: one of the batch's
    float *all_scores;          // (batch, H, ld + 1): scores, then lse2
    size_t scores_bytes;
    int scores_ld;
    uint8_t *keep;              // (ld) marks of the head under way
    int keep_ld;
    float *window;              // (W, H, hd) last query rows of the feed
    int window_cap, window_rows;
};

static inline char *thread_scratch(const KVWork *w) {
    return w->thread + w->per_thread * (size_t)omp_get_thread_num();
}
static inline char *panels_of(const KVWork *w, int g) {
    return w->panels + (size_t)g * (size_t)w->panel_cap * attn_panel_bytes(w->s);
}

// cache.cu
// drops the entries with keep = 0, named of them; the list comes into being with the first drop
void head_evict(KVCache *c, Head *h, const uint8_t *keep, int named);
// packs the entries of every head from the feed's newest n rows on, or all of them
void pack_new(KVCache *c, KVWork *w, int layer, int n, bool all);

// evict.cu
// end of a layer's feed: statistics of the last query rows, then the rule. As kv_feed_end.
void policy_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                     bool first);
// end of a layer's step: scores of w->scores and their lse2, then the rule. t: logical tokens
void policy_step(KVCache *c, KVWork *w, int layer, int64_t t);
// lse2 of the last query rows (H, window_cap), or of a step (H)
static inline float *window_lse2(const KVWork *w) {
    return w->window + (size_t)w->window_cap * w->s->n_heads * w->s->head_dim;
}

EXTERN_C_END
#endif
