// cache.h - the border between cache.cu (rows, lists, release), evict.cu (what to drop and when)
// method.c (names and sizes) and context_file.c (rows on disk): what a policy and the cache know of
// each other. No other file includes it.
#ifndef CACHE_H
#define CACHE_H
#include "device.h"
#include "scb.h"
#include <omp.h>

EXTERN_C_BEGIN

typedef struct {                // one KV head of one layer, when a policy acts
    const Sizes *z;
    int layer, n_layers;        // attention layers
    int head, group, n_heads;   // its first query head, how many it has, all of the layer
    int kv_head;
    int len;                    // entries of its list, in logical order
    int64_t t;                  // logical tokens so far
    int64_t seed, session;
    const uint32_t *state;      // word i of entry j at state[i * plane + j]
    size_t plane;
    const int32_t *pos;         // (len) logical positions, for a policy that wants them
    const float *sums;          // (H, sums_ld) attention of the window, per query head and entry
    size_t sums_ld, ld;
    float *score;               // (3, ld) scratch
    uint32_t *rank;             // (ld) scratch
} Acting;

typedef struct {                // one query, the heads of its group over some entries it sees
    const Sizes *z;
    int heads, len;
    const float *s;             // (heads, ld) scores, base 2
    size_t ld;
    const float *lse2;          // head h at h * lse_ld
    size_t lse_ld;
    int64_t t;                  // its 1-based step
    uint32_t *state;            // of the first of these entries, word i at i * plane
    size_t plane;
} Query;

typedef enum { GROUPS_NOT, GROUPS_ANY, GROUPS_CHOICE } Groups;
typedef enum { READ_ALL, READ_PAGES, READ_TOP } Reads;      // what a token attends to
struct Policy {
    const char *name, *help, *differs; // differs: paper against released code, where they do
    const char *kv_size, *prefill_cost, *decode_cost;
    bool evicts, has_budget;
    bool at_first, at_steps, at_feeds; // acts at the end of the first feed, every step, later feeds
    Groups groups;
    // marks rows to keep (1) or drop (0); returns how many go
    int (*keep)(const Acting *a, uint8_t *keep);
    bool one_for_all;           // what the first KV head keeps, all of the layer keep
    bool wants_pos;
    int (*words)(const Sizes *z); // 32-bit words of state per row and unit; NULL: none
    void (*observe)(const Query *q);            // one query leaves its trace in the state
    bool every_query;           // observe wants each query of a feed, not only the window's
    bool sums;                  // keep wants Acting.sums
    int (*window)(const Sizes *z);              // query rows read at the end of a feed
    Reads at_read;
};
const Policy *policy_at(int i);         // table order; NULL past the end
const Policy *policy_columns(int words);        // of a context that keeps column sums

// ---------------------------------------------------------------------------
// Rows: one block per (layer, KV head), K (cap, hd), V (cap, hd), position (cap)

typedef struct { char *mem; int n, cap; bool mapped; } Rows;     // mapped: mem lies in a file's map

static inline char *rows_k(const Rows *r) { return r->mem; }
static inline char *rows_v(const Rows *r, const AttnShape *s) {
    return r->mem + (size_t)r->cap * s->head_dim * s->elem;
}
static inline int32_t *rows_pos(const Rows *r, const AttnShape *s) {
    return (int32_t *)(void *)(r->mem + 2 * (size_t)r->cap * s->head_dim * s->elem);
}

typedef struct { uint32_t *p; int cap; } Sums;      // (words, cap), as Head.state

struct KVBase {                 // immutable once filled; shared by context and branches
    Mem *mem, *rows;            // of sums; of rows, which may lie elsewhere
    const AttnShape *s;
    int refs, n_heads;
    Rows *head;                 // (A * G)
    Sums *sums;                 // (A * G) column sums of attention, or NULL
    int sum_words, sum_units;   // words of one unit; units: 1, or the query heads of a KV head
    int64_t pairs, all_pairs;   // computed for these rows by a sparse prefill; by a dense one
    Group sum_group;            // how heads were joined
    char *map;                  // the file the first rows lie in, or NULL
    size_t map_bytes;
};

typedef struct {
    Rows own;                   // rows appended by this branch; row number = base rows + index
    int32_t *live;              // (len) row numbers, ascending; NULL while every row is live
    uint32_t *state;            // (words, cap) the policy's words per live row, parallel to it
    int len, cap;               // entries in live and state, and their room
    char *pages;                // (page_cap, 2, hd) K elements: bounds of complete pages
    int n_pages, page_cap;
} Head;

typedef struct {                // the last query rows of a branch's feeds; marks and forks share it
    Mem *mem;
    int refs, rows;
    int32_t *pos;               // (rows) logical positions, ascending
    char *q;                    // (A, rows, H, hd) K/V elements
    size_t bytes;
} WindowRows;

struct KVCache {
    Mem *mem;
    const AttnShape *s, *model_s;       // as stored here, as the model has it
    Method method;
    KVBase *base;
    Head *head;                 // (A * G)
    int n_layers, n_heads, reserve, marks;
    int words;                  // of state per row
    int copies;                 // heads here per KV head of the model: 1, or the group if each
                                // query head keeps rows of its own
    int spread;                 // heads here per head of the base: 1, or the group on a context
    AttnShape wide;             // the shape of a cache of query heads
    int64_t named, dropped;     // rows the rule named and rows gone, in the last feed or step
    int64_t pairs, all_pairs;   // as the base's, of later feeds
    int arrive, fed;            // of the layer under way: rows it had when the feed or step came
                                // (sinkcache); rows of that which are stored
    bool building, first_done; // inside the first feed of an empty cache; the policy has acted once
    bool streaming;             // inside a prompt fed in parts
    WindowRows *block;          // query rows of the last feeds, for a policy that looks back
    WindowRows *next;           // of the feed under way
};

static inline Head *head_of(const KVCache *c, int layer, int g) {
    return &c->head[layer * c->s->n_kv_heads + g];
}
static inline Rows *base_of(const KVCache *c, const Head *h) {
    return &c->base->head[(h - c->head) / c->spread];
}
static inline int base_rows(const KVCache *c, const Head *h) {
    return c->base ? base_of(c, h)->n : 0;
}
// rows that its list does not name: a list may be there before anything was dropped
static inline bool has_dead(const KVCache *c, const Head *h) {
    return h->len < base_rows(c, h) + h->own.n;
}
// the base's rows are this cache's alone: it may give them back
static inline bool base_alone(const KVCache *c) { return c->base->refs == 1 && c->spread == 1; }

typedef struct {                // of a call on a device: (layers, caches of the call, lists)
    struct KeyList *list, *sent_list;   // there, and as they were sent, in pinned memory
    struct DeviceHead *head, *sent_head;
    int room, caches;           // entries; caches of the call
    int from, to;               // layers that this scratch is of
    float *inv_freq;            // rotary frequencies on this device
    int most, shared;           // of a step: longest list; entries that all caches name alike
    float *parts;               // of attention that is split over the keys
    size_t parts_bytes;
    char *rule;                 // scores, marks and choices of the policy that acts
    size_t rule_bytes;
    char *turned;               // lists that POSITIONS_CACHE reads, their keys and values
    size_t turned_bytes;
    int window_at;              // row of the window buffer, of 2 W in bf16, where its rows begin
    struct DeviceSparse *sparse;        // NULL until a feed wants it
    int64_t *pairs;             // where that feed's count belongs
} DeviceWork;

struct KVWork {
    Mem *mem;
    const AttnShape *s;
    Device *device;             // where mem's blocks lie, or NULL
    DeviceWork d;
    char *thread;               // (threads) attention scratch and statistics
    size_t per_thread;
    int threads;
    char *panels;               // (G) panels of one layer
    size_t panels_bytes;
    int feed_n;                 // tokens of the feed under way
    float *parts;               // (batch, G, panels, group, hd + 2) of a step
    size_t parts_bytes;
    float *scores;              // (H, ld) of a step that is observed: one of the batch's; sums over
                                // a window
    float *all_scores;          // (batch, H, ld + 1): scores, then lse2
    size_t scores_bytes;
    int scores_ld;
    float *lse2;                // (H, lse2_ld) of the queries of a feed, when all are looked at
    int lse2_ld;
    uint8_t *keep;              // (ld) marks of the head under way
    float *rank;                // (4, ld) its scores
    size_t rank_bytes;
    int keep_ld;
    float *window;              // (W, H, hd) last query rows of the feed, then their lse2 (H, W)
                                // and entries seen (H, W)
    int32_t *window_pos;        // (W) their positions
    int window_cap, window_rows;
    char *readers;              // (threads) scratch of read.cu
    size_t reader_bytes;
    LayerLook look;             // NULL: nobody looks on
    void *look_user;
    Sparse *sparse;             // NULL until a feed wants it
    KeyList *sparse_keys;       // (G) of the layer under way
    const void **sparse_panels; // (G)
    HeadPattern *sparse_head;   // (H)
    float *probe;               // (H, 64, hd) last query rows of the layer
    double policy_s;            // see kv_policy_time
};

static inline char *thread_scratch(const KVWork *w) {
    return w->thread + w->per_thread * (size_t)omp_get_thread_num();
}
static inline char *panels_of(const KVCache *c, const KVWork *w, int g) {
    size_t one = attn_panel_bytes(c->s), n = w->panels_bytes / one / (size_t)c->s->n_kv_heads;
    return w->panels + (size_t)g * n * one;
}
// the policy looks at scores
static inline bool policy_looks(const Policy *p) { return p->observe || p->sums; }

// cache.cu
// a block of cap rows, none used; its end; n rows of src from row on to dst at (disjoint blocks, or
// on the host any)
Rows rows_take(Mem *mem, const AttnShape *s, int cap);
void rows_give(Mem *mem, const AttnShape *s, Rows *r);
void rows_copy(const Mem *mem, const AttnShape *s, Rows *dst, int at, const Rows *src, int row,
               int n);
void list_drop(KVCache *c, Head *h, bool state_too);    // every row is live
void list_trim(KVCache *c, Head *h);    // gives back the room of entries that were dropped
void head_room(KVCache *c, Head *h, int n);     // for n more rows and entries
KVBase *base_new(Mem *mem, const AttnShape *s, int n_heads);
// head i of the base is n rows at mem, inside the base's map; they count as memory in use
void base_map_rows(KVBase *b, int i, char *mem, int n);
// copies the live rows of head i to mem: K (len, hd), V (len, hd), position (len)
void cache_gather(const KVCache *c, int i, char *mem);
// drops the entries with keep = 0, named of them; the list comes into being with the first drop
void head_evict(KVCache *c, Head *h, const uint8_t *keep, int named);
// packs the entries of every head from the feed's newest n rows on, or all of them
void pack_new(KVCache *c, KVWork *w, int layer, int n, bool all);

KeyList head_list(const KVCache *c, const Head *h);
void window_block_drop(WindowRows *b);
// p, or a block of at least want bytes in its place, whose contents are nobody's
void *work_grow(KVWork *w, void *p, size_t *have, size_t want, const char *what);
static inline bool on_device(const KVCache *c) { return c->mem->ops != NULL; }
// n numbers of the account's memory for the host to read: p itself, or a copy in *to
const int32_t *ints_seen(const Mem *mem, const int32_t *p, int n, IntVec *to);
size_t device_sparse_bytes(const AttnShape *s, const Method *m, int len, int chunk);
// the device that a head's layer lies on is in use
static inline void head_use(const KVCache *c, int i) {
    Device *d = (Device *)c->mem->device;
    if (d) device_use(d, device_part_of(d, i / c->s->n_kv_heads));
}
#ifdef SCB_CUDA
// the lists of cache i of the call in a layer, and what heads they have
static inline size_t device_at(const KVCache *c, const KVWork *w, int layer, int i) {
    return ((size_t)layer * w->d.caches + i) * c->s->n_kv_heads;
}

// kv_device.cu
static inline void *stream_of(const KVWork *w) { return device_stream(w->device); }
// heads <- the lengths of their lists on the device, after everything launched; t: logical tokens
void device_fetch(KVCache *c, KVWork *w, int layer, int64_t t);
int layer_most(const KVCache *c, int layer);            // entries of its longest list
float *parts_room(KVWork *w, size_t floats);            // of attention that is split over the keys
// bytes of n lists in front of the keys that are turned for them
static inline size_t turned_lists(int n) { return ((size_t)n * sizeof(KeyList) + 63) & ~(size_t)63; }
// the lists of n caches of the call from i on as attention reads them, none longer than most
const struct KeyList *device_lists(const KVCache *c, KVWork *w, int layer, int i, int n, int most);
// a feed's lists as they were read last
static inline const struct KeyList *device_lists_read(const KVCache *c, const KVWork *w,
                                                      int layer) {
    return kv_turns(c) ? (const struct KeyList *)(const void *)w->d.turned
                       : w->d.list + device_at(c, w, layer, 0);
}
void device_sparse_reserve(KVWork *w, const Method *m, int len, int chunk);     // kv_work_sparse
// of the layer and chunk last planned and attended to; marks where the policy looks at every query
const struct SparseLists *device_sparse_lists(const KVWork *w);
void device_feed_begin(KVCache *c, KVWork *w, int layer);       // sends the lists of a layer
void device_settle(KVCache *c, KVWork *w, int layer);           // layer_settle, kv_release and
void device_release(KVCache *c);                                // cache_gather there
void device_gather(const KVCache *c, const Head *h, char *mem);
void device_work_close(KVWork *w);
// partial results of attention: feeds of n tokens, steps of batch caches, lists of up to len
size_t device_parts_bytes(const AttnShape *s, int len, int n, int batch);
#endif

// read.cu: n newest tokens of a layer, q and out (n, H, hd), each over rows of its own choice
void read_rows(KVCache *c, KVWork *w, int layer, int n, const float *q, float *out);
size_t reader_bytes(const AttnShape *s, int group, int len);    // scratch of one thread
#ifdef SCB_CUDA
// The same of a chunk on a device, and of caches i .. i + n of a step, which choose alike
void device_read_rows(KVCache *c, KVWork *w, int layer, const KVDeviceRows *rows);
void device_read_step(const StepOf *of, int i, int n, KVWork *w, int layer,
                      const KVDeviceRows *rows);
size_t device_read_bytes(const AttnShape *s, const Method *m, int len, int n, int batch);
void device_pages_room(KVCache *c, Head *h, int len);   // for the bounds of a list of len
#endif
// query heads that choose rows together
static inline int reader_heads(const Method *m, const AttnShape *s) {
    return m->size.group == GROUP_QUERY_HEAD ? 1 : s->n_heads / s->n_kv_heads;
}
static inline size_t page_bytes(const AttnShape *s) { return 2 * (size_t)s->head_dim * s->elem; }
// keys are read where SinkCache has them
static inline bool sinks_turn(const KVCache *c) {
    return c->first_done && c->method.size.positions == POSITIONS_SINKCACHE;
}
// reads by choice now
static inline bool reads_chosen(const KVCache *c) {
    return c->method.policy->at_read != READ_ALL && c->first_done && !c->streaming;
}

// evict.cu
// joins the numbers x (heads, ld) of the query heads for n rows by the group's rule
void group_join(Group rule, const float *x, size_t ld, int heads, int n, float *out);
// marks the k of n rows with the largest score, of equal ones the lower index, or the newer
int keep_top(const float *score, uint32_t *rank, int n, int k, bool newer, uint8_t *keep);
// n queries q (n, H, hd) of a feed, first the index of the first one, with their lse2 in w->lse2:
// for policies that look at every query; sparse: at what it computed, as w->sparse knows
void policy_queries(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                    const float *q, bool sparse);
// end of a layer's feed: statistics of the last query rows, then the rule. As kv_feed_end.
void policy_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                     bool first);
// end of a layer's step: scores of w->scores and their lse2, then the rule. t: logical tokens
void policy_step(KVCache *c, KVWork *w, int layer, int64_t t);
#ifdef SCB_CUDA
// The same on a device. Queries of a chunk, with their lse2 in w->lse2; the step of cache i of n.
void device_queries(KVCache *c, KVWork *w, int layer, const KVDeviceRows *r, bool sparse);
void device_policy_step(KVCache *c, KVWork *w, int layer, int i, int n, int64_t t);
// rows that a rule with a budget names of a list of len; -1: only its marks say
int rows_named_of(const KVCache *c, int layer, int len, int64_t t);
size_t device_rule_bytes(const AttnShape *s, const Method *m, int len, int window);
#endif
static inline size_t window_bytes(const AttnShape *s, int rows) {
    return (size_t)rows * s->n_heads * ((size_t)s->head_dim + 2) * sizeof(float);
}
// lse2 of the last query rows (H, window_cap)
static inline float *window_lse2(const KVWork *w) {
    return w->window + (size_t)w->window_cap * w->s->n_heads * w->s->head_dim;
}
static inline int32_t *window_seen(const KVWork *w) {
    return (int32_t *)(void *)(window_lse2(w) + (size_t)w->s->n_heads * w->window_cap);
}
// on a device, where rows are bf16: row i of the 2 W that fit, of the feed's own from W on
static inline uint16_t *window_row(const KVWork *w, int i) {
    return (uint16_t *)(void *)w->window + (size_t)i * w->s->n_heads * w->s->head_dim;
}

EXTERN_C_END
#endif
