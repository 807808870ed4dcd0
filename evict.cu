// evict.cu - what stays in memory: rows of K and V, lists of the live ones, and the policies.
//
// Rows are kept per (layer, KV head): K rotated at its own logical position, V, and that position.
// Eviction edits a list of row numbers, it never moves a row; release gathers the listed rows into
// a block of just that size and gives the old one back. Heads and layers may differ (CORM).
//
//   full           keeps every row
//   keep-last      the newest B rows
//   streamingllm   the first S and the last R rows          Xiao et al., arXiv 2309.17453
//   corm           rows important to any of the last w queries, and the last r
//                                                           Dai et al., arXiv 2404.15949
//
// A policy is one row of the table at the end: it sees one KV head, its list length, one int of
// state per row and scores; it knows no model.
#include "scb.h"
#include <omp.h>

// ---------------------------------------------------------------------------
// Policies

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

// keeps [0, head) and [len - tail, len)
static int keep_ends(int head, int tail, int len, uint8_t *keep) {
    int dropped = len - head - tail;
    if (dropped <= 0) dropped = 0;
    memset(keep, 1, (size_t)len);
    memset(keep + head * (dropped > 0), 0, (size_t)dropped);
    return dropped;
}

static int keep_last(const Sizes *z, int len, int64_t t, const int32_t *state, uint8_t *keep) {
    (void)t; (void)state;
    return keep_ends(0, z->budget, len, keep);
}

static int keep_streaming(const Sizes *z, int len, int64_t t, const int32_t *state, uint8_t *keep) {
    (void)t; (void)state;
    return keep_ends(z->sinks, z->recent, len, keep);
}

// CORM. Key j is important to the query of step t iff a_tj >= 1/t, that is s_tj >= lse2_t - log2 t.
// The paper's matrix of the last w rows of such bits is one int per key: last_j, the latest step at
// which j was important (0: never). A key that no query of the last w found important, and that is
// not among the r newest, is dropped; nothing is before w queries gave rows.
static void corm_observe(int32_t *last, const float *s, int len, float lse2, int64_t t) {
    float bound = lse2 - flog2((float)t);
    for (int j = 0; j < len; j++)
        last[j] = s[j] >= bound && (int32_t)t > last[j] ? (int32_t)t : last[j];
}

static int keep_corm(const Sizes *z, int len, int64_t t, const int32_t *last, uint8_t *keep) {
    int dropped = 0;
    for (int j = 0; j < len; j++) {
        keep[j] = t < z->window || last[j] > t - z->window || j >= len - z->protect;
        dropped += !keep[j];
    }
    return dropped;
}

static int corm_window(const Sizes *z) { return z->window; }

static const Policy policies[] = {
    { "full", "every row is kept", "n", "n^2", "n", false, false, false, NULL, NULL, NULL },
    { "keep-last", "the newest B rows of each KV head", "B", "n^2", "B", true, true, false,
      keep_last, NULL, NULL },
    { "streamingllm", "the first S (sinks) and the last R rows (arXiv 2309.17453)", "S + R", "n^2",
      "S + R", true, true, false, keep_streaming, NULL, NULL },
    { "corm", "rows important to any of the last w queries, and the last r (arXiv 2404.15949)",
      "no bound", "n^2 + w n", "rows kept", true, false, true, keep_corm, corm_observe,
      corm_window },
};

// ---------------------------------------------------------------------------
// Methods: names, sizes and presets (SEMANTICS 5)

static const Sizes sizes_unset = { -1, -1, -1, -1, -1, (Positions)-1, false };

const char *method_name_at(int i) {
    return i >= 0 && i < (int)COUNTOF(policies) ? policies[i].name : NULL;
}
bool method_has_budget(const Method *m) { return m->policy->has_budget; }
bool method_evicts(const Method *m) { return m->policy->evicts; }
bool method_at_steps(const Method *m) { return m->policy->evicts; }
int method_window(const Method *m) { return m->policy->window ? m->policy->window(&m->size) : 0; }

int method_find(const char *name, Method *m, Err *err) {
    const char *names[COUNTOF(policies)];
    for (size_t i = 0; i < COUNTOF(policies); i++) {
        names[i] = policies[i].name;
        if (strcmp(name, policies[i].name)) continue;
        memset(m, 0, sizeof *m);
        snprintf(m->name, sizeof m->name, "%s", name);
        m->policy = &policies[i];
        m->set = sizes_unset;
        return 0;
    }
    int near = did_you_mean(name, names, (int)COUNTOF(policies));
    if (near >= 0)
        return FAIL_CODE(err, EXIT_USAGE, "unknown method '%s', did you mean '%s'?", name,
                         names[near]);
    return FAIL_CODE(err, EXIT_USAGE, "unknown method '%s': see scbench list methods", name);
}

enum { SIZE_MAX_ROWS = 1 << 29 };       // sums of two sizes stay ints
typedef struct { const char *method, *name; size_t at; int min; } SizeOption;
static const SizeOption size_options[] = {
    { "keep-last", "budget", offsetof(Sizes, budget), 1 },
    { "streamingllm", "sinks", offsetof(Sizes, sinks), 0 },
    { "streamingllm", "recent", offsetof(Sizes, recent), 1 },
    { "streamingllm", "budget", offsetof(Sizes, budget), 2 },
    { "corm", "window", offsetof(Sizes, window), 1 },
    { "corm", "protect", offsetof(Sizes, protect), 1 },
};

int method_set(Method *m, const char *name, const char *value, Err *err) {
    char *end;
    errno = 0;
    long v = strtol(value, &end, 10);
    for (size_t i = 0; i < COUNTOF(size_options); i++) {
        const SizeOption *o = &size_options[i];
        if (strcmp(o->method, m->policy->name) || strcmp(o->name, name)) continue;
        if (end == value || *end || errno || v < o->min || v > SIZE_MAX_ROWS)
            return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s wants an integer from %d, got '%s'",
                             m->name, name, o->min, value);
        *(int *)(void *)((char *)&m->set + o->at) = (int)v;
        return 0;
    }
    if (!strcmp(name, "positions") && m->policy->evicts) {
        if (strcmp(value, "original") && strcmp(value, "cache"))
            return FAIL_CODE(err, EXIT_USAGE,
                             "--set %s.positions is 'original' or 'cache', got '%s'", m->name,
                             value);
        m->set.positions = value[0] == 'c' ? POSITIONS_CACHE : POSITIONS_ORIGINAL;
        return 0;
    }
    return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s: %s has no option '%s'", m->name, name, m->name,
                     name);
}

// sinks of a budget that no table names: the paper's share of 128 in 128 + 4096
static int sinks_of(Preset preset, int budget) {
    int share = (int)(((int64_t)budget * 128 + 2112) / 4224);
    return preset == PRESET_CORM ? 4 : share < 4 ? 4 : share;
}

static void resolve_budget(Method *m, Preset preset, int ctx, int budget) {
    const int ref_ctx = preset == PRESET_CORM ? 4096 : 131072,
              ref_budget = preset == PRESET_CORM ? 1024 : 4096;
    bool streaming = m->policy->keep == keep_streaming;
    Sizes *z = &m->size;
    if (m->set.budget >= 0) budget = m->set.budget;
    if (budget == 0 && ctx >= ref_ctx) {
        z->sinks = !streaming ? 0 : preset == PRESET_CORM ? 4 : 128;
        z->recent = !streaming ? ref_budget : preset == PRESET_CORM ? 1020 : 4096;
    } else {
        if (budget == 0) {
            int64_t b = (int64_t)ctx * ref_budget / ref_ctx;
            budget = b < 64 ? 64 : (int)b;
            z->scaled = true;
        }
        z->sinks = streaming ? sinks_of(preset, budget) : 0;
        if (z->sinks >= budget) z->sinks = budget - 1;
        z->recent = budget - z->sinks;
    }
    if (m->set.sinks >= 0) z->sinks = m->set.sinks;
    if (m->set.recent >= 0) z->recent = m->set.recent;
    z->budget = z->sinks + z->recent;
}

int method_resolve(Method *m, Preset preset, int ctx, int budget, int positions, Err *err) {
    Sizes *z = &m->size;
    memset(z, 0, sizeof *z);
    z->positions = POSITIONS_ORIGINAL;
    if (!m->policy->evicts) return 0;
    if (preset == PRESET_HARNESS)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--preset harness is not built for cache methods: use scbench or corm");
    if (m->policy->has_budget) {
        resolve_budget(m, preset, ctx, budget);
        if (m->policy->keep == keep_streaming) z->positions = POSITIONS_CACHE;
    } else {
        int w = ctx / 16 > 256 ? 256 : ctx / 16 < 1 ? 1 : ctx / 16;
        z->window = m->set.window >= 0 ? m->set.window : w;
        z->protect = m->set.protect >= 0 ? m->set.protect : w;
        z->scaled = w != 256 && (m->set.window < 0 || m->set.protect < 0);
    }
    if (positions >= 0) z->positions = (Positions)positions;
    if ((int)m->set.positions >= 0) z->positions = m->set.positions;
    return 0;
}

void method_params(const Method *m, StrBuf *json) {
    const Sizes *z = &m->size;
    str_puts(json, "{");
    if (m->policy->has_budget) str_fmt(json, "\"budget\": %d", z->budget);
    if (m->policy->keep == keep_streaming)
        str_fmt(json, ", \"sinks\": %d, \"recent\": %d", z->sinks, z->recent);
    if (m->policy->keep == keep_corm)
        str_fmt(json, "\"window\": %d, \"protect\": %d", z->window, z->protect);
    str_puts(json, "}");
}

void method_list(FILE *out) {
    fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", "method", "stage", "KV size", "prefill",
            "decode", "keeps");
    for (size_t i = 0; i < COUNTOF(policies); i++) {
        const Policy *p = &policies[i];
        fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", p->name, p->evicts ? "cache" : "-",
                p->kv_size, p->prefill_cost, p->decode_cost, p->help);
    }
    fprintf(out, "per KV head, n tokens so far; options: --set METHOD.name=value\n");
    for (size_t i = 0; i < COUNTOF(size_options); i++)
        fprintf(out, "  %s.%s\n", size_options[i].method, size_options[i].name);
}

// ---------------------------------------------------------------------------
// Rows: one block per (layer, KV head), K (cap, hd), V (cap, hd), position (cap)

typedef struct { char *mem; int n, cap; } Rows;

size_t kv_row_bytes(const AttnShape *s) {
    return 2 * (size_t)s->head_dim * s->elem + sizeof(int32_t);
}

static inline char *rows_k(const Rows *r) { return r->mem; }
static inline char *rows_v(const Rows *r, const AttnShape *s) {
    return r->mem + (size_t)r->cap * s->head_dim * s->elem;
}
static inline int32_t *rows_pos(const Rows *r, const AttnShape *s) {
    return (int32_t *)(void *)(r->mem + 2 * (size_t)r->cap * s->head_dim * s->elem);
}

static Rows rows_take(Mem *mem, const AttnShape *s, int cap) {
    Rows r = { NULL, 0, cap };
    r.mem = (char *)mem_take(mem, (size_t)cap, kv_row_bytes(s), "key and value rows");
    return r;
}
static void rows_give(Mem *mem, const AttnShape *s, Rows *r) {
    mem_give(mem, r->mem, (size_t)r->cap * kv_row_bytes(s));
    memset(r, 0, sizeof *r);
}

static void rows_copy(const AttnShape *s, Rows *dst, int at, const Rows *src, int row, int n) {
    size_t b = (size_t)s->head_dim * s->elem;
    memmove(rows_k(dst) + (size_t)at * b, rows_k(src) + (size_t)row * b, (size_t)n * b);
    memmove(rows_v(dst, s) + (size_t)at * b, rows_v(src, s) + (size_t)row * b, (size_t)n * b);
    memmove(rows_pos(dst, s) + at, rows_pos(src, s) + row, (size_t)n * sizeof(int32_t));
}

static void rows_grow(Mem *mem, const AttnShape *s, Rows *r, int cap) {
    Rows bigger = rows_take(mem, s, cap);
    if (r->n) rows_copy(s, &bigger, 0, r, 0, r->n);
    bigger.n = r->n;
    rows_give(mem, s, r);
    *r = bigger;
}

struct KVBase {                 // immutable once filled; shared by context and branches
    Mem *mem;
    const AttnShape *s;
    int refs, n_heads;
    Rows *head;                 // (A * G)
};

KVBase *kv_base_ref(KVBase *b) {
    if (b) b->refs++;
    return b;
}

void kv_base_drop(KVBase *b) {
    if (!b || --b->refs) return;
    for (int i = 0; i < b->n_heads; i++) rows_give(b->mem, b->s, &b->head[i]);
    free(b->head);
    free(b);
}

static KVBase *base_new(Mem *mem, const AttnShape *s, int n_heads) {
    KVBase *b = (KVBase *)xrealloc(NULL, sizeof *b);
    b->mem = mem;
    b->s = s;
    b->refs = 1;
    b->n_heads = n_heads;
    b->head = (Rows *)xrealloc(NULL, sizeof *b->head * (size_t)n_heads);
    memset(b->head, 0, sizeof *b->head * (size_t)n_heads);
    return b;
}

// ---------------------------------------------------------------------------
// The cache of one branch

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
KVBase *kv_base(KVCache *c) { return c->base; }
int kv_len(const KVCache *c, int layer, int g) { return head_of(c, layer, g)->len; }
bool kv_by_index(const KVCache *c) {
    return c->first_done && c->method.size.positions == POSITIONS_CACHE;
}

static size_t list_bytes(const Head *h) {
    return (size_t)h->cap * sizeof(int32_t) * (size_t)((h->live != NULL) + (h->state != NULL));
}

static int32_t *ints_resize(Mem *mem, int32_t *old, int used, int old_cap, int cap) {
    int32_t *p = TAKE(mem, int32_t, cap, "live lists and policy state");
    if (old && used) memcpy(p, old, (size_t)used * sizeof *p);
    if (old) mem_give(mem, old, (size_t)old_cap * sizeof *old);
    return p;
}

// room for cap entries in the arrays that exist; those asked for are made
static void list_room(KVCache *c, Head *h, int cap, bool live, bool state) {
    bool grow = cap > h->cap;
    int to = grow ? cap + cap / 8 + 64 : h->cap;
    if (h->live ? grow : live) {
        bool fresh = !h->live;
        h->live = ints_resize(c->mem, h->live, h->len, h->cap, to);
        if (fresh) for (int j = 0; j < h->len; j++) h->live[j] = j;
    }
    if (h->state ? grow : state) h->state = ints_resize(c->mem, h->state, h->len, h->cap, to);
    if (grow && (h->live || h->state)) h->cap = to;
}

static void list_drop(KVCache *c, Head *h, bool state_too) {
    if (h->live) mem_give(c->mem, h->live, (size_t)h->cap * sizeof(int32_t));
    h->live = NULL;
    if (state_too && h->state) {
        mem_give(c->mem, h->state, (size_t)h->cap * sizeof(int32_t));
        h->state = NULL;
    }
    if (!h->state) h->cap = 0;
}

// gives back the room of entries that were dropped
static void list_trim(KVCache *c, Head *h) {
    int cap = h->len + c->reserve + 64;
    if (h->cap <= cap + cap / 8) return;
    if (h->live) h->live = ints_resize(c->mem, h->live, h->len, h->cap, cap);
    if (h->state) h->state = ints_resize(c->mem, h->state, h->len, h->cap, cap);
    h->cap = cap;
}

KVCache *kv_open(Mem *mem, const AttnShape *s, int n_layers, KVBase *base, const Method *m,
                 int reserve) {
    KVCache *c = (KVCache *)xrealloc(NULL, sizeof *c);
    memset(c, 0, sizeof *c);
    c->mem = mem;
    c->s = s;
    c->method = *m;
    c->base = kv_base_ref(base);
    c->n_layers = n_layers;
    c->n_heads = n_layers * s->n_kv_heads;
    c->reserve = reserve;
    c->head = (Head *)xrealloc(NULL, sizeof *c->head * (size_t)c->n_heads);
    memset(c->head, 0, sizeof *c->head * (size_t)c->n_heads);
    for (int i = 0; i < c->n_heads; i++) {
        Head *h = &c->head[i];
        h->len = base_rows(c, h);
        if (base && reserve) h->own = rows_take(mem, s, reserve);
        if (m->policy->has_state) list_room(c, h, h->len + reserve, false, true);
    }
    return c;
}

void kv_close(KVCache *c) {
    if (!c) return;
    for (int i = 0; i < c->n_heads; i++) {
        list_drop(c, &c->head[i], true);
        rows_give(c->mem, c->s, &c->head[i].own);
    }
    kv_base_drop(c->base);
    free(c->head);
    free(c);
}

// copies list, state and length of one head into an empty one
static void list_copy(KVCache *c, Head *to, const Head *from) {
    to->len = 0;
    list_room(c, to, from->cap, from->live != NULL, from->state != NULL);
    to->len = from->len;
    if (from->live) memcpy(to->live, from->live, (size_t)from->len * sizeof(int32_t));
    if (from->state) memcpy(to->state, from->state, (size_t)from->len * sizeof(int32_t));
}

KVCache *kv_fork(KVCache *c, int reserve) {
    KVCache *f = kv_open(c->mem, c->s, c->n_layers, c->base, &c->method, 0);
    f->reserve = reserve;
    f->first_done = c->first_done;
    for (int i = 0; i < c->n_heads; i++) {
        Head *to = &f->head[i];
        const Head *from = &c->head[i];
        list_drop(f, to, true);
        list_copy(f, to, from);
        to->own = rows_take(f->mem, f->s, from->own.n + reserve);
        if (from->own.n) rows_copy(f->s, &to->own, 0, &from->own, 0, from->own.n);
        to->own.n = from->own.n;
    }
    return f;
}

struct KVMark {
    Head *head;                 // own.n is the number of rows then; own.mem is not a copy
    int64_t named;
};

KVMark *kv_mark(KVCache *c) {
    KVMark *k = (KVMark *)xrealloc(NULL, sizeof *k);
    k->head = (Head *)xrealloc(NULL, sizeof *k->head * (size_t)c->n_heads);
    memset(k->head, 0, sizeof *k->head * (size_t)c->n_heads);
    for (int i = 0; i < c->n_heads; i++) {
        list_copy(c, &k->head[i], &c->head[i]);
        k->head[i].own.n = c->head[i].own.n;
    }
    k->named = c->named;
    c->marks++;
    return k;
}

void kv_rewind(KVCache *c, KVMark *k) {
    for (int i = 0; i < c->n_heads; i++) {
        Head *h = &c->head[i], *was = &k->head[i];
        list_drop(c, h, true);
        h->live = was->live;
        h->state = was->state;
        h->cap = was->cap;
        h->len = was->len;
        h->own.n = was->own.n;
        was->live = was->state = NULL;
    }
    c->named = k->named;
    kv_mark_drop(c, k);
}

void kv_mark_drop(KVCache *c, KVMark *k) {
    for (int i = 0; i < c->n_heads; i++) list_drop(c, &k->head[i], true);
    free(k->head);
    free(k);
    c->marks--;
}

// rows of a block whose position is below pos: a prefix, positions ascend
static int rows_before(const Rows *r, const AttnShape *s, int64_t pos) {
    int n = r->mem ? r->n : 0;
    while (n && rows_pos(r, s)[n - 1] >= pos) n--;
    return n;
}

void kv_cut(KVCache *c, int64_t pos) {
    CHECK(c->marks == 0, "a cut under an open mark");
    for (int i = 0; i < c->n_heads; i++) {
        Head *h = &c->head[i];
        Rows *base = c->base ? &c->base->head[i] : NULL;
        int in_base = base ? base->n : 0, below = base ? rows_before(base, c->s, pos) : 0;
        int own = rows_before(&h->own, c->s, pos), len = below + own;
        if (h->live) {                          // row numbers: base rows, then own rows
            for (len = h->len; len; len--) {
                int row = h->live[len - 1];
                if (row < in_base ? row < below : row - in_base < own) break;
            }
        } else if (below < in_base && c->base->refs > 1) {
            list_room(c, h, h->len, true, false);       // others still read the rows behind the cut
        }
        h->len = len;
        h->own.n = own;
        if (below < in_base && c->base->refs == 1) base->n = below;
    }
}

static KeyList key_list(const KVCache *c, const Head *h) {
    const AttnShape *s = c->s;
    const Rows *b = c->base ? &c->base->head[h - c->head] : NULL;
    KeyList l;
    memset(&l, 0, sizeof l);
    if (b && b->n) {
        l.k[0] = rows_k(b);
        l.v[0] = rows_v(b, s);
        l.pos[0] = rows_pos(b, s);
        l.split = b->n;
    }
    if (h->own.mem) {
        l.k[1] = rows_k(&h->own);
        l.v[1] = rows_v(&h->own, s);
        l.pos[1] = rows_pos(&h->own, s);
    }
    l.live = h->live;
    l.len = h->len;
    l.by_index = kv_by_index(c);
    return l;
}

int kv_positions(KVCache *c, int layer, int g, const int32_t **pos) {
    Head *h = head_of(c, layer, g);
    KeyList l = key_list(c, h);
    static __thread IntVec out;                 // valid until the next call on this thread
    out.n = 0;
    for (int j = 0; j < h->len; j++) {
        int row = l.live ? l.live[j] : j, own = row >= l.split;
        ints_push(&out, l.pos[own][row - (own ? l.split : 0)]);
    }
    *pos = out.p;
    return h->len;
}

// ---------------------------------------------------------------------------
// Appending: fp32 rows are rounded once, here

static void row_store(const AttnShape *s, Rows *r, int at, int32_t pos, const float *k,
                      const float *v) {
    size_t b = (size_t)s->head_dim * s->elem;
    void *dk = rows_k(r) + (size_t)at * b, *dv = rows_v(r, s) + (size_t)at * b;
    for (int i = 0; i < s->head_dim; i++) {
        if (s->elem == 4) { ((float *)dk)[i] = k[i]; ((float *)dv)[i] = v[i]; }
        else { ((uint16_t *)dk)[i] = f32_bf16(k[i]); ((uint16_t *)dv)[i] = f32_bf16(v[i]); }
    }
    rows_pos(r, s)[at] = pos;
}

// room for n more rows of one head, and their entries
static void head_room(KVCache *c, Head *h, int n) {
    int want = h->own.n + n;            // beyond the reserve: half as much again
    if (want > h->own.cap)
        rows_grow(c->mem, c->s, &h->own, want + (h->own.n ? h->own.n / 2 : c->reserve));
    list_room(c, h, h->len + n, false, c->method.policy->has_state);
}

// n rows of k and v (n, G, hd) behind the rows of every head of a layer
static void layer_append(KVCache *c, int layer, int64_t pos, int n, const float *k,
                         const float *v) {
    const AttnShape *s = c->s;
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++)
        for (int g = 0; g < s->n_kv_heads; g++) {
            Head *h = head_of(c, layer, g);
            size_t at = ((size_t)i * s->n_kv_heads + g) * s->head_dim;
            row_store(s, &h->own, h->own.n + i, (int32_t)(pos + i), k + at, v + at);
            if (h->live) h->live[h->len + i] = base_rows(c, h) + h->own.n + i;
            if (h->state) h->state[h->len + i] = 0;
        }
    for (int g = 0; g < s->n_kv_heads; g++) {
        head_of(c, layer, g)->own.n += n;
        head_of(c, layer, g)->len += n;
    }
}

// drops the entries with keep = 0; the list comes into being with the first drop
static void head_evict(KVCache *c, Head *h, const uint8_t *keep, int named) {
    if (!named) return;
    int n = 0;
    list_room(c, h, h->len, true, false);
    for (int j = 0; j < h->len; j++) {
        if (!keep[j]) continue;
        h->live[n] = h->live[j];
        if (h->state) h->state[n] = h->state[j];
        n++;
    }
    c->dropped += h->len - n;
    h->len = n;
}

// ---------------------------------------------------------------------------
// Scratch of all branches of a model

struct KVWork {
    Mem *mem;
    const AttnShape *s;
    char *thread;               // (threads) attention scratch and statistics
    size_t per_thread;
    int threads;
    char *panels;               // (G) panels of one layer
    size_t panels_bytes;
    int panel_cap, feed_n;      // panels per head; tokens of the feed under way
    float *parts;               // (G, panels, group, hd + 2) of a step
    size_t parts_bytes;
    float *scores;              // (H, ld) of a step that is observed
    int scores_ld;
    uint8_t *keep;              // (ld) marks of the head under way
    int keep_ld;
    float *window;              // (W, H, hd) last query rows of the feed
    int window_cap, window_rows;
};

// per thread: attention scratch, then rows for one strip of statistics: q (32, hd), s (32, 512)
static size_t thread_bytes(const AttnShape *s) {
    size_t b = attn_scratch_bytes(s) + STRIP_ROWS * ((size_t)s->head_dim + PANEL) * sizeof(float);
    return (b + 4095) & ~(size_t)4095;
}
static char *thread_scratch(const KVWork *w) {
    return w->thread + w->per_thread * (size_t)omp_get_thread_num();
}

KVWork *kv_work_open(Mem *mem, const AttnShape *s) {
    KVWork *w = (KVWork *)xrealloc(NULL, sizeof *w);
    memset(w, 0, sizeof *w);
    w->mem = mem;
    w->s = s;
    w->per_thread = thread_bytes(s);
    w->threads = cpu_threads();
    w->thread = TAKE(mem, char, w->per_thread * (size_t)w->threads, "attention scratch");
    return w;
}

typedef struct { size_t panels, parts, scores, keep, window; } WorkSizes;

static WorkSizes work_sizes(const AttnShape *s, int len, int n, int window) {
    int panels = CEIL_DIV(len, PANEL) ? CEIL_DIV(len, PANEL) : 1;
    size_t ld = (size_t)panels * PANEL, h = (size_t)s->n_heads;
    WorkSizes z;
    z.panels = n ? (size_t)s->n_kv_heads * panels * attn_panel_bytes(s) : 0;
    z.parts = (size_t)panels * h * ((size_t)s->head_dim + 2) * sizeof(float);
    z.scores = window ? h * ld * sizeof(float) : 0;
    z.keep = ld;
    z.window = (size_t)window * h * ((size_t)s->head_dim + 1) * sizeof(float);
    return z;
}

size_t kv_work_bytes(const AttnShape *s, int len, int n, int window) {
    WorkSizes z = work_sizes(s, len, n, window);
    return thread_bytes(s) * (size_t)cpu_threads() + z.panels + z.parts + z.scores + z.keep +
           z.window;
}

static void *work_grow(KVWork *w, void *p, size_t *have, size_t want, const char *what) {
    if (want <= *have) return p;
    mem_give(w->mem, p, *have);
    *have = want;
    return mem_take(w->mem, want, 1, what);
}

void kv_work_reserve(KVWork *w, int len, int n, int window) {
    const AttnShape *s = w->s;
    WorkSizes z = work_sizes(s, len, n, window);
    int panels = CEIL_DIV(len, PANEL) ? CEIL_DIV(len, PANEL) : 1, ld = panels * PANEL;
    size_t h = (size_t)s->n_heads, had;
    w->panels = (char *)work_grow(w, w->panels, &w->panels_bytes, z.panels,
                                  "packed keys and values of a layer");
    w->panel_cap = (int)(w->panels_bytes / (size_t)s->n_kv_heads / attn_panel_bytes(s));
    w->parts =
        (float *)work_grow(w, w->parts, &w->parts_bytes, z.parts, "partial attention results");
    had = h * (size_t)w->scores_ld * sizeof(float);
    if (window && ld > w->scores_ld) {
        w->scores = (float *)work_grow(w, w->scores, &had, z.scores, "scores of a step");
        w->scores_ld = ld;
    }
    had = (size_t)w->keep_ld;
    if (ld > w->keep_ld) {
        w->keep = (uint8_t *)work_grow(w, w->keep, &had, z.keep, "eviction marks");
        w->keep_ld = ld;
    }
    if (window > w->window_cap) {
        had = (size_t)w->window_cap * h * ((size_t)s->head_dim + 1) * sizeof(float);
        w->window = (float *)work_grow(w, w->window, &had, z.window, "window rows");
        w->window_cap = window;
    }
}

void kv_work_close(KVWork *w) {
    if (!w) return;
    size_t h = (size_t)w->s->n_heads;
    mem_give(w->mem, w->thread, w->per_thread * (size_t)w->threads);
    mem_give(w->mem, w->panels, w->panels_bytes);
    mem_give(w->mem, w->parts, w->parts_bytes);
    mem_give(w->mem, w->scores, h * (size_t)w->scores_ld * sizeof(float));
    mem_give(w->mem, w->keep, (size_t)w->keep_ld);
    mem_give(w->mem, w->window,
             (size_t)w->window_cap * h * ((size_t)w->s->head_dim + 1) * sizeof(float));
    free(w);
}

static char *panels_of(const KVWork *w, int g) {
    return w->panels + (size_t)g * (size_t)w->panel_cap * attn_panel_bytes(w->s);
}

// ---------------------------------------------------------------------------
// A feed: the list of a head grows by the feed's rows; row i sees the entries up to its own

void kv_first_begin(KVCache *c) {
    CHECK(!c->base, "the first feed of a cache that has rows");
    c->base = base_new(c->mem, c->s, c->n_heads);
    c->building = true;
}

void kv_feed_begin(KVCache *c, KVWork *w, int layer, int n) {
    w->feed_n = n;
    w->window_rows = 0;
    c->named = layer == 0 ? 0 : c->named;
    c->dropped = layer == 0 ? 0 : c->dropped;
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        if (c->building) h->own = rows_take(c->mem, c->s, n);
        head_room(c, h, n);
    }
}

// query rows of the feed that lie among its last window_cap go to the window buffer
static void window_keep(KVWork *w, int first, int n, const float *q) {
    size_t row = (size_t)w->s->n_heads * w->s->head_dim;
    int start = w->feed_n > w->window_cap ? w->feed_n - w->window_cap : 0;
    for (int i = first < start ? start - first : 0; i < n; i++) {
        memcpy(w->window + (size_t)(first + i - start) * row, q + (size_t)i * row, row * sizeof *q);
        w->window_rows = first + i - start + 1;
    }
}

// packs the entries of every head from the feed's newest n rows on, or all of them
static void pack_new(KVCache *c, KVWork *w, int layer, int n, bool all) {
    int G = c->s->n_kv_heads, most = 0;
    for (int g = 0; g < G; g++) {
        int len = head_of(c, layer, g)->len, from = all ? 0 : len - n;
        if (CEIL_DIV(len, BLK) - from / BLK > most) most = CEIL_DIV(len, BLK) - from / BLK;
    }
#pragma omp parallel for schedule(dynamic, 4)
    for (int item = 0; item < G * most; item++) {
        Head *h = head_of(c, layer, item / most);
        int at = ((all ? 0 : h->len - n) / BLK + item % most) * BLK, to = at + BLK;
        KeyList list = key_list(c, h);
        if (at >= h->len) continue;
        attn_pack(c->s, panels_of(w, item / most), &list, at, to < h->len ? to : h->len,
                  thread_scratch(w));
    }
}

void kv_feed_chunk(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                   const float *q, const float *k, const float *v, float *out) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, blocks = CEIL_DIV(n, ATTN_ROWS);
    size_t ld = (size_t)s->n_heads * s->head_dim;
    layer_append(c, layer, pos, n, k, v);
    pack_new(c, w, layer, n, first == 0);
    if (w->window_cap) window_keep(w, first, n, q);
    // the last rows see most keys: longest work first
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * s->n_heads; item++) {
        int block = blocks - 1 - item / s->n_heads, h = item % s->n_heads, r = block * ATTN_ROWS;
        int g = h / group;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = panels_of(w, g);
        a.q = q + (size_t)r * ld + (size_t)h * s->head_dim;
        a.ldq = a.ldo = ld;
        a.rows = n - r < ATTN_ROWS ? n - r : ATTN_ROWS;
        a.vis0 = head_of(c, layer, g)->len - n + r + 1;
        a.vis_step = 1;
        a.out = out + (size_t)r * ld + (size_t)h * s->head_dim;
        attn_rows(s, &a, thread_scratch(w));
    }
}

// ---------------------------------------------------------------------------
// Statistics of the last query rows, O(n) memory: one pass for lse2 of every (head, row), then one
// pass per (KV head, panel of keys) that shows the policy the scores, (query, head) ascending.

static float *window_lse2(const KVWork *w) {
    return w->window + (size_t)w->window_cap * w->s->n_heads * w->s->head_dim;
}

// puts rows of the shared context in front of the feed's own, returns how many rows there are
static int window_join(KVWork *w, int want, const void *ext, int ext_rows) {
    const AttnShape *s = w->s;
    size_t row = (size_t)s->n_heads * s->head_dim;
    int own = w->window_rows < want ? w->window_rows : want,
        add = want - own < ext_rows ? want - own : ext_rows;
    memmove(w->window + (size_t)add * row, w->window + (size_t)(w->window_rows - own) * row,
            (size_t)own * row * sizeof(float));
    for (size_t i = 0; i < (size_t)add * row; i++) {
        size_t at = (size_t)(ext_rows - add) * row + i;
        w->window[i] =
            s->elem == 4 ? ((const float *)ext)[at] : bf16_f32(((const uint16_t *)ext)[at]);
    }
    w->window_rows = own + add;
    return own + add;
}

static void observe_lse2(KVCache *c, KVWork *w, int layer, int rows) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, blocks = CEIL_DIV(rows, ATTN_ROWS);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * s->n_heads; item++) {
        int h = item % s->n_heads, r = item / s->n_heads * ATTN_ROWS;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = panels_of(w, h / group);
        a.ldq = (size_t)s->n_heads * s->head_dim;
        a.q = w->window + (size_t)r * a.ldq + (size_t)h * s->head_dim;
        a.rows = rows - r < ATTN_ROWS ? rows - r : ATTN_ROWS;
        a.vis0 = head_of(c, layer, h / group)->len - rows + r + 1;
        a.vis_step = 1;
        a.lse2 = window_lse2(w) + (size_t)h * w->window_cap + r;
        attn_rows(s, &a, thread_scratch(w));
    }
}

// one panel of keys of KV head g under all window rows of its group
static void observe_panel(KVCache *c, KVWork *w, int layer, int g, int p, int rows, int64_t t) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, hd = s->head_dim, vis[STRIP_ROWS];
    Head *h = head_of(c, layer, g);
    char *scratch = thread_scratch(w);
    float *q = (float *)(void *)(scratch + attn_scratch_bytes(s)), *scores = q + STRIP_ROWS * hd;
    const char *panel = panels_of(w, g) + (size_t)p * attn_panel_bytes(s);
    for (int at = 0; at < rows * group; at += STRIP_ROWS) {
        int m = rows * group - at < STRIP_ROWS ? rows * group - at : STRIP_ROWS;
        for (int i = 0; i < m; i++) {
            int row = (at + i) / group, v = h->len - rows + row + 1 - p * PANEL;
            vis[i] = v < 0 ? 0 : v > PANEL ? PANEL : v;
            memcpy(q + (size_t)i * hd,
                   w->window + ((size_t)row * s->n_heads + g * group + (at + i) % group) * hd,
                   (size_t)hd * sizeof *q);
        }
        attn_panel_scores(s, panel, q, m, vis, scores, scratch);
        for (int i = 0; i < m; i++) {
            int row = (at + i) / group, head = g * group + (at + i) % group;
            if (vis[i])
                c->method.policy->observe(h->state + p * PANEL, scores + (size_t)i * PANEL, vis[i],
                                          window_lse2(w)[(size_t)head * w->window_cap + row],
                                          t - rows + 1 + row);
        }
    }
}

static void observe_window(KVCache *c, KVWork *w, int layer, int rows, int64_t t) {
    int G = c->s->n_kv_heads, most = 0;
    for (int g = 0; g < G; g++) if (kv_len(c, layer, g) > most) most = kv_len(c, layer, g);
    int panels = CEIL_DIV(most, PANEL);
    observe_lse2(c, w, layer, rows);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < G * panels; item++)
        if (item % panels * PANEL < kv_len(c, layer, item / panels))
            observe_panel(c, w, layer, item / panels, item % panels, rows, t);
}

// ---------------------------------------------------------------------------
// When policies act

static void layer_evict(KVCache *c, KVWork *w, int layer, int64_t t) {
    const Policy *p = c->method.policy;
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        int named = p->keep(&c->method.size, h->len, t, h->state, w->keep);
        c->named += named;
        head_evict(c, h, w->keep, named);
    }
}

// the rows of a layer become base rows; evicted ones are left behind (SEMANTICS 3, release)
static void layer_settle(KVCache *c, int layer) {
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        Rows *to = &c->base->head[h - c->head];
        if (!h->live) {
            *to = h->own;
            memset(&h->own, 0, sizeof h->own);
        } else {
            *to = rows_take(c->mem, c->s, h->len);
            to->n = h->len;
            for (int j = 0; j < h->len; j++) rows_copy(c->s, to, j, &h->own, h->live[j], 1);
            rows_give(c->mem, c->s, &h->own);
            list_drop(c, h, false);
            list_trim(c, h);
        }
        if (c->reserve) h->own = rows_take(c->mem, c->s, c->reserve);
    }
}

void kv_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                 bool first) {
    const Policy *p = c->method.policy;
    if (p->observe) {
        int want = p->window(&c->method.size);
        if (w->feed_n == 0) pack_new(c, w, layer, 0, true);
        observe_window(c, w, layer, window_join(w, want, window, first ? rows : 0), t);
    }
    if (p->keep) layer_evict(c, w, layer, t);
    if (c->building) layer_settle(c, layer);
    if (layer < c->n_layers - 1) return;
    c->building = false;
    c->first_done = c->first_done || first;
}

void kv_window_copy(const KVWork *w, int rows, void *dst) {
    size_t row = (size_t)w->s->n_heads * w->s->head_dim;
    const float *src = w->window + (size_t)(w->window_rows - rows) * row;
    CHECK(rows <= w->window_rows, "%d window rows wanted of %d", rows, w->window_rows);
    for (size_t i = 0; i < (size_t)rows * row; i++) {
        if (w->s->elem == 4) ((float *)dst)[i] = src[i];
        else ((uint16_t *)dst)[i] = f32_bf16(src[i]);
    }
}

void kv_step(KVCache *c, KVWork *w, int layer, int64_t pos, const float *q, const float *k,
             const float *v, float *out) {
    const AttnShape *s = c->s;
    const Policy *p = c->method.policy;
    int G = s->n_kv_heads, group = s->n_heads / G, hd = s->head_dim, panels = 0;
    size_t part = (size_t)group * ((size_t)hd + 2), per_head = (size_t)group * hd;
    if (layer == 0) c->named = c->dropped = 0;
    for (int g = 0; g < G; g++) {
        head_room(c, head_of(c, layer, g), 1);
        if (CEIL_DIV(kv_len(c, layer, g) + 1, PANEL) > panels)
            panels = CEIL_DIV(kv_len(c, layer, g) + 1, PANEL);
    }
    layer_append(c, layer, pos, 1, k, v);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (int item = 0; item < G * panels; item++) {
            int g = item / panels, at = item % panels;
            KeyList list = key_list(c, head_of(c, layer, g));
            if (at * PANEL >= list.len) continue;
            attn_step_panel(s, &list, at, q + g * per_head, w->parts + (size_t)item * part,
                            p->observe ? w->scores + (size_t)g * group * w->scores_ld : NULL,
                            (size_t)w->scores_ld, thread_scratch(w));
        }
#pragma omp for
        for (int g = 0; g < G; g++)
            attn_fold(s, w->parts + (size_t)g * panels * part, CEIL_DIV(kv_len(c, layer, g), PANEL),
                      out + g * per_head, p->observe ? window_lse2(w) + (size_t)g * group : NULL);
    }
    if (p->observe)
        for (int h = 0; h < s->n_heads; h++) {
            Head *head = head_of(c, layer, h / group);
            p->observe(head->state, w->scores + (size_t)h * w->scores_ld, head->len,
                       window_lse2(w)[h], pos + 1);
        }
    if (p->keep) layer_evict(c, w, layer, pos + 1);
}

// ---------------------------------------------------------------------------
// Release: rows nobody names any more are given back where this branch alone could name them

static void head_release(KVCache *c, Head *h) {
    Rows *base = &c->base->head[h - c->head];
    int old_base = base->n, in_base = 0, at = 0;
    while (in_base < h->len && h->live[in_base] < old_base) in_base++;
    if (c->base->refs == 1 && in_base < old_base) {
        Rows to = rows_take(c->mem, c->s, in_base);
        to.n = in_base;
        for (int j = 0; j < in_base; j++) rows_copy(c->s, &to, j, base, h->live[j], 1);
        rows_give(c->mem, c->s, base);
        *base = to;
        for (int j = 0; j < in_base; j++) h->live[j] = j;
    }
    for (int j = in_base; j < h->len; j++, at++) {
        if (h->live[j] - old_base != at)
            rows_copy(c->s, &h->own, at, &h->own, h->live[j] - old_base, 1);
        h->live[j] = base->n + at;
    }
    h->own.n = at;
    if (h->own.cap > at + c->reserve) {
        Rows to = rows_take(c->mem, c->s, at + c->reserve);
        if (at) rows_copy(c->s, &to, 0, &h->own, 0, at);
        to.n = at;
        rows_give(c->mem, c->s, &h->own);
        h->own = to;
    }
    if (in_base == base->n) list_drop(c, h, false);
    list_trim(c, h);
}

void kv_release(KVCache *c) {
    if (c->marks || !c->base) return;
    for (int i = 0; i < c->n_heads; i++) if (c->head[i].live) head_release(c, &c->head[i]);
}

static void rows_poison(const AttnShape *s, Rows *r, int row) {
    memset(rows_k(r) + (size_t)row * s->head_dim * s->elem, 0xff, (size_t)s->head_dim * s->elem);
    memset(rows_v(r, s) + (size_t)row * s->head_dim * s->elem, 0xff, (size_t)s->head_dim * s->elem);
}

void kv_poison(KVCache *c) {
    if (c->marks) return;
    for (int i = 0; i < c->n_heads; i++) {
        Head *h = &c->head[i];
        int base = base_rows(c, h), j = 0;
        if (!h->live) continue;
        for (int row = 0; row < base + h->own.n; row++) {
            while (j < h->len && h->live[j] < row) j++;
            if (j < h->len && h->live[j] == row) continue;
            if (row >= base) rows_poison(c->s, &h->own, row - base);
            else if (c->base->refs == 1) rows_poison(c->s, &c->base->head[i], row);
        }
    }
}

bool kv_check(const KVCache *c, Err *err) {
    if (c->named == c->dropped) return true;
    (void)FAIL(err, "internal error: method %s named %lld rows but %lld were dropped",
               c->method.name, (long long)c->named, (long long)c->dropped);
    return false;
}

int kv_max_len(const KVCache *c) {
    int most = 0;
    for (int i = 0; i < c->n_heads; i++) if (c->head[i].len > most) most = c->head[i].len;
    return most;
}

KVStats kv_stats(const KVCache *c) {
    KVStats st;
    size_t row = kv_row_bytes(c->s), rows = 0;
    memset(&st, 0, sizeof st);
    st.min = INT_MAX;
    for (int i = 0; i < c->n_heads; i++) {
        const Head *h = &c->head[i];
        if (h->len < st.min) st.min = h->len;
        if (h->len > st.max) st.max = h->len;
        rows += (size_t)h->len;
        st.alloc_bytes += ((size_t)(c->base ? c->base->head[i].cap : 0) + (size_t)h->own.cap) * row;
        st.policy_bytes += list_bytes(h);
        st.shared = st.shared || (h->live && c->base && c->base->refs > 1);
    }
    st.mean = c->n_heads ? (double)rows / c->n_heads : 0;
    st.live_bytes = rows * row;
    st.named = (size_t)c->named;
    return st;
}
