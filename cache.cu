// cache.cu - what stays in memory: rows of K and V, lists of the live ones, and release.
//
// Rows are kept per (layer, KV head): K rotated at its own logical position, V, and that position.
// Eviction edits a list of row numbers, it never moves a row; release gathers the listed rows into
// a block of just that size and gives the old one back. Heads and layers may differ (CORM).
// Which rows go, and when, is evict.cu.
#include "cache.h"
#include "kernels.h"

// ---------------------------------------------------------------------------
// Rows: one block per (layer, KV head), K (cap, hd), V (cap, hd), position (cap)


size_t kv_row_bytes(const AttnShape *s) {
    return 2 * (size_t)s->head_dim * s->elem + sizeof(int32_t);
}


Rows rows_take(Mem *mem, const AttnShape *s, int cap) {
    Rows r = { NULL, 0, cap, false };
    r.mem = (char *)mem_take(mem, (size_t)cap, kv_row_bytes(s), "key and value rows");
    return r;
}
void rows_give(Mem *mem, const AttnShape *s, Rows *r) {
    size_t bytes = (size_t)r->cap * kv_row_bytes(s), page = 4095;
    if (r->mapped) {                            // the map stays, its pages go
        char *from = (char *)(((uintptr_t)r->mem + page) & ~page),
             *to = (char *)(((uintptr_t)r->mem + bytes) & ~page);
        if (to > from) madvise(from, (size_t)(to - from), MADV_DONTNEED);
        mem->used -= bytes;
    } else {
        mem_give(mem, r->mem, bytes);
    }
    memset(r, 0, sizeof *r);
}

void rows_copy(const Mem *mem, const AttnShape *s, Rows *dst, int at, const Rows *src, int row,
               int n) {
    size_t b = (size_t)s->head_dim * s->elem;
    mem_copy(mem, rows_k(dst) + (size_t)at * b, rows_k(src) + (size_t)row * b, (size_t)n * b);
    mem_copy(mem, rows_v(dst, s) + (size_t)at * b, rows_v(src, s) + (size_t)row * b, (size_t)n * b);
    mem_copy(mem, rows_pos(dst, s) + at, rows_pos(src, s) + row, (size_t)n * sizeof(int32_t));
}

const int32_t *ints_seen(const Mem *mem, const int32_t *p, int n, IntVec *to) {
    if (!mem->ops || !p) return p;
    if (to->cap < (size_t)n) {
        to->cap = (size_t)n + (size_t)n / 2;
        to->p = (int32_t *)xrealloc(to->p, to->cap * sizeof *to->p);
    }
    mem_get(mem, to->p, p, (size_t)n * sizeof *p);
    return to->p;
}

static void rows_grow(Mem *mem, const AttnShape *s, Rows *r, int cap) {
    Rows bigger = rows_take(mem, s, cap);
    if (r->n) rows_copy(mem, s, &bigger, 0, r, 0, r->n);
    bigger.n = r->n;
    rows_give(mem, s, r);
    *r = bigger;
}


KVBase *kv_base_ref(KVBase *b) {
    if (b) b->refs++;
    return b;
}

void kv_base_drop(KVBase *b) {
    if (!b || --b->refs) return;
    for (int i = 0; i < b->n_heads; i++) rows_give(b->rows, b->s, &b->head[i]);
    for (int i = 0; b->sums && i < b->n_heads; i++)
        mem_give(b->mem, b->sums[i].p,
                 (size_t)b->sums[i].cap * b->sum_words * b->sum_units * sizeof(uint32_t));
    free(b->sums);
    if (b->map) munmap(b->map, b->map_bytes);
    free(b->head);
    free(b);
}

KVBase *base_new(Mem *mem, const AttnShape *s, int n_heads) {
    KVBase *b = (KVBase *)xrealloc(NULL, sizeof *b);
    memset(b, 0, sizeof *b);
    b->mem = mem;
    b->rows = s->settled ? s->settled : mem;
    b->s = s;
    b->refs = 1;
    b->n_heads = n_heads;
    b->pairs = b->all_pairs = 0;
    b->head = (Rows *)xrealloc(NULL, sizeof *b->head * (size_t)n_heads);
    memset(b->head, 0, sizeof *b->head * (size_t)n_heads);
    return b;
}

void base_map_rows(KVBase *b, int i, char *mem, int n) {
    Rows r = { mem, n, n, true };
    if (b->rows->ops) {                         // a device has them as its own
        b->head[i] = rows_take(b->rows, b->s, n);
        b->head[i].n = n;
        mem_put(b->rows, b->head[i].mem, mem, (size_t)n * kv_row_bytes(b->s));
        return;
    }
    b->head[i] = r;
    b->mem->used += (size_t)n * kv_row_bytes(b->s);
    if (b->mem->used > b->mem->high) b->mem->high = b->mem->used;
}

// ---------------------------------------------------------------------------
// The cache of one branch



KVBase *kv_base(KVCache *c) { return c->base; }
const Method *kv_method(const KVCache *c) { return &c->method; }
bool kv_base_sums(const KVBase *b, int words) { return b->sum_words >= words; }
int kv_len(const KVCache *c, int layer, int g) { return head_of(c, layer, g)->len; }
static bool by_index(const KVCache *c) {
    return c->first_done && !c->streaming && c->method.size.positions == POSITIONS_CACHE;
}
bool kv_turns(const KVCache *c) { return by_index(c) || sinks_turn(c); }
int64_t kv_query_at(const KVCache *c, int layer, int list, int stored, int fed, bool step) {
    if (!sinks_turn(c) || step) return kv_len(c, layer, list) - stored + fed;
    return c->arrive + fed;
}

double kv_policy_time(KVWork *w) {
    double t = w->policy_s;
    w->policy_s = 0;
    return t;
}

static size_t list_bytes(const KVCache *c, const Head *h) {
    size_t words = (size_t)(h->live != NULL) + (size_t)(h->state ? c->words : 0);
    return (size_t)h->cap * words * sizeof(int32_t);
}

static int32_t *ints_resize(Mem *mem, int32_t *old, int used, int old_cap, int cap) {
    int32_t *p = TAKE(mem, int32_t, cap, "live lists and policy state");
    if (old && used) mem_copy(mem, p, old, (size_t)used * sizeof *p);
    if (old) mem_give(mem, old, (size_t)old_cap * sizeof *old);
    return p;
}

static uint32_t *state_resize(const KVCache *c, uint32_t *old, int used, int old_cap, int cap) {
    uint32_t *p = TAKE(c->mem, uint32_t, (size_t)cap * c->words, "live lists and policy state");
    for (int i = 0; old && used && i < c->words; i++)
        mem_copy(c->mem, p + (size_t)i * cap, old + (size_t)i * old_cap, (size_t)used * sizeof *p);
    if (old) mem_give(c->mem, old, (size_t)old_cap * c->words * sizeof *old);
    return p;
}

#ifdef SCB_CUDA
__global__ static void count_k(int32_t *to, int first, int n) {
    int i = (int)thread_item();
    if (i < n) to[i] = first + i;
}
void cuda_count(int32_t *to, int first, int n, void *stream) {
    if (n) LAUNCH(count_k, blocks_for(n, 256), 256, 0, stream, to, first, n);
}
#endif

// live (n) <- first, first + 1, ...
static void live_count(const KVCache *c, int32_t *live, int first, int n) {
#ifdef SCB_CUDA
    if (on_device(c)) {
        cuda_count(live, first, n, device_stream((Device *)c->mem->device));
        return;
    }
#endif
    (void)c;
    for (int j = 0; j < n; j++) live[j] = first + j;
}

// room for cap entries in the arrays that exist; those asked for are made
static void list_room(KVCache *c, Head *h, int cap, bool live, bool state) {
    bool grow = cap > h->cap;
    int to = grow ? cap + cap / 8 + 64 : h->cap;
    if (h->live ? grow : live) {
        bool fresh = !h->live;
        h->live = ints_resize(c->mem, h->live, h->len, h->cap, to);
        if (fresh) live_count(c, h->live, 0, h->len);
    }
    if (h->state ? grow : state) h->state = state_resize(c, h->state, h->len, h->cap, to);
    if (grow && (h->live || h->state)) h->cap = to;
}

void list_drop(KVCache *c, Head *h, bool state_too) {
    if (h->live) mem_give(c->mem, h->live, (size_t)h->cap * sizeof(int32_t));
    h->live = NULL;
    if (state_too && h->state) {
        mem_give(c->mem, h->state, (size_t)h->cap * c->words * sizeof *h->state);
        h->state = NULL;
    }
    if (!h->state) h->cap = 0;
}

// gives back the room of entries that were dropped
void list_trim(KVCache *c, Head *h) {
    int cap = h->len + c->reserve + 64;
    if (h->cap <= cap + cap / 8) return;
    if (h->live) h->live = ints_resize(c->mem, h->live, h->len, h->cap, cap);
    if (h->state) h->state = state_resize(c, h->state, h->len, h->cap, cap);
    h->cap = cap;
}

// the state of a policy that goes on from the column sums of a context
static void state_from_base(KVCache *c, int i) {
    const KVBase *b = c->base;
    const Sums *from = &b->sums[i / c->spread];
    int unit = b->sum_units > 1 ? i % c->spread : 0;
    for (int k = 0; k < c->words; k++)
        mem_copy(c->mem, c->head[i].state + (size_t)k * c->head[i].cap,
                 from->p + (size_t)(unit * b->sum_words + k) * from->cap,
                 (size_t)c->head[i].len * sizeof(uint32_t));
}

// a cache whose heads are all empty
static KVCache *kv_new(Mem *mem, const AttnShape *s, int n_layers, KVBase *base, const Method *m,
                       int reserve) {
    KVCache *c = (KVCache *)xrealloc(NULL, sizeof *c);
    memset(c, 0, sizeof *c);
    c->mem = mem;
    c->s = c->model_s = s;
    c->method = *m;
    c->copies = c->spread = 1;
    if (method_wide(m)) {
        c->copies = s->n_heads / s->n_kv_heads;
        c->wide = *s;
        c->wide.n_kv_heads = s->n_heads;
        c->s = &c->wide;
    }
    c->base = kv_base_ref(base);
    c->n_layers = n_layers;
    c->n_heads = n_layers * c->s->n_kv_heads;
    if (base && base->n_heads) c->spread = c->n_heads / base->n_heads;
    c->words = method_words(m);
    c->reserve = reserve;
    c->head = (Head *)xrealloc(NULL, sizeof *c->head * (size_t)c->n_heads);
    memset(c->head, 0, sizeof *c->head * (size_t)c->n_heads);
    return c;
}

KVCache *kv_open(Mem *mem, const AttnShape *s, int n_layers, KVBase *base, const Method *m,
                 int reserve) {
    KVCache *c = kv_new(mem, s, n_layers, base, m, reserve);
    c->first_done = c->n_heads == 0;            // without layers there is nothing to settle
    for (int i = 0; i < c->n_heads; i++) {
        Head *h = &c->head[i];
        head_use(c, i);
        h->len = base_rows(c, h);
        if (base && reserve) h->own = rows_take(mem, s, reserve);
        if (c->words) list_room(c, h, h->len + reserve, false, true);
        if (base && base->sums && m->policy->every_query) state_from_base(c, i);
    }
    return c;
}

KVCache *kv_open_sums(Mem *mem, const AttnShape *s, int n_layers, const Needs *needs,
                      const Method *prefill) {
    Method m = *prefill;
    m.policy = policy_columns(needs->sums);
    m.size.group = needs->group;
    KVCache *c = kv_open(mem, s, n_layers, NULL, &m, 0);
    int units = needs->group == GROUP_QUERY_HEAD ? s->n_heads / s->n_kv_heads : 1;
    c->words *= units;
    kv_first_begin(c);
    c->base->sums = (Sums *)xrealloc(NULL, (size_t)c->n_heads * sizeof *c->base->sums);
    memset(c->base->sums, 0, (size_t)c->n_heads * sizeof *c->base->sums);
    c->base->sum_group = needs->group;
    c->base->sum_words = c->words / units;
    c->base->sum_units = units;
    return c;
}

void window_block_drop(WindowRows *b) {
    if (!b || --b->refs) return;
    mem_give(b->mem, b->q, b->bytes);
    free(b->pos);
    free(b);
}

void kv_close(KVCache *c) {
    if (!c) return;
    window_block_drop(c->block);
    window_block_drop(c->next);
    for (int i = 0; i < c->n_heads; i++) {
        mem_give(c->mem, c->head[i].pages, (size_t)c->head[i].page_cap * page_bytes(c->s));
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
    if (from->live) mem_copy(c->mem, to->live, from->live, (size_t)from->len * sizeof(int32_t));
    for (int i = 0; from->state && i < c->words; i++)
        mem_copy(c->mem, to->state + (size_t)i * to->cap, from->state + (size_t)i * from->cap,
                 (size_t)from->len * sizeof *to->state);
}

KVCache *kv_fork(KVCache *c, int reserve) {
    KVCache *f = kv_new(c->mem, c->model_s, c->n_layers, c->base, &c->method, reserve);
    f->first_done = c->first_done;
    f->pairs = c->pairs;
    f->all_pairs = c->all_pairs;
    f->block = c->block;
    if (f->block) f->block->refs++;
    for (int i = 0; i < c->n_heads; i++) {
        Head *to = &f->head[i];
        const Head *from = &c->head[i];
        head_use(c, i);
        list_copy(f, to, from);
        if (from->n_pages) {
            to->pages = (char *)mem_take(f->mem, (size_t)from->n_pages, page_bytes(f->s),
                                         "bounds of pages");
            to->n_pages = to->page_cap = from->n_pages;
            mem_copy(f->mem, to->pages, from->pages, (size_t)from->n_pages * page_bytes(f->s));
        }
        to->own = rows_take(f->mem, f->s, from->own.n + reserve);
        if (from->own.n) rows_copy(f->mem, f->s, &to->own, 0, &from->own, 0, from->own.n);
        to->own.n = from->own.n;
    }
    return f;
}

struct KVMark {
    Head *head;                 // own.n is the number of rows then; own.mem is not a copy
    int64_t named;
    WindowRows *block;
};

// pages that reach beyond the list are none any more
static void pages_cut(const KVCache *c, Head *h) {
    int most = c->method.size.page ? h->len / c->method.size.page : 0;
    if (h->n_pages > most) h->n_pages = most;
}

KVMark *kv_mark(KVCache *c) {
    KVMark *k = (KVMark *)xrealloc(NULL, sizeof *k);
    k->head = (Head *)xrealloc(NULL, sizeof *k->head * (size_t)c->n_heads);
    memset(k->head, 0, sizeof *k->head * (size_t)c->n_heads);
    for (int i = 0; i < c->n_heads; i++) {
        head_use(c, i);
        list_copy(c, &k->head[i], &c->head[i]);
        k->head[i].own.n = c->head[i].own.n;
    }
    k->named = c->named;
    k->block = c->block;
    if (k->block) k->block->refs++;
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
        pages_cut(c, h);
        was->live = NULL;
        was->state = NULL;
    }
    c->named = k->named;
    window_block_drop(c->block);
    c->block = k->block;
    k->block = NULL;
    kv_mark_drop(c, k);
}

void kv_mark_drop(KVCache *c, KVMark *k) {
    for (int i = 0; i < c->n_heads; i++) list_drop(c, &k->head[i], true);
    window_block_drop(k->block);
    free(k->head);
    free(k);
    c->marks--;
}

// rows of a block whose position is below pos: a prefix, positions ascend
static int rows_before(const Mem *mem, const Rows *r, const AttnShape *s, int64_t pos) {
    IntVec copy = { 0 };
    int n = r->mem ? r->n : 0;
    const int32_t *at = n ? ints_seen(mem, rows_pos(r, s), n, &copy) : NULL;
    while (n && at[n - 1] >= pos) n--;
    free(copy.p);
    return n;
}

void kv_cut(KVCache *c, int64_t pos) {
    IntVec copy = { 0 };
    CHECK(c->marks == 0, "a cut under an open mark");
    for (int i = 0; i < c->n_heads; i++) {
        head_use(c, i);
        Head *h = &c->head[i];
        Rows *base = c->base ? base_of(c, h) : NULL;
        int in_base = base ? base->n : 0, below = base ? rows_before(c->mem, base, c->s, pos) : 0;
        int own = rows_before(c->mem, &h->own, c->s, pos), len = below + own;
        if (h->live) {                          // row numbers: base rows, then own rows
            const int32_t *live = ints_seen(c->mem, h->live, h->len, &copy);
            for (len = h->len; len; len--) {
                int row = live[len - 1];
                if (row < in_base ? row < below : row - in_base < own) break;
            }
        } else if (below < in_base && !base_alone(c)) {
            list_room(c, h, h->len, true, false);       // others still read the rows behind the cut
        }
        h->len = len;
        h->own.n = own;
        pages_cut(c, h);
        if (below < in_base && base_alone(c)) base->n = below;
    }
    free(copy.p);
}

KeyList head_list(const KVCache *c, const Head *h) {
    const AttnShape *s = c->s;
    const Rows *b = c->base ? base_of(c, h) : NULL;
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
    l.by_index = by_index(c);
    if (sinks_turn(c)) l.turn = (const int32_t *)(const void *)h->state;
    return l;
}

int kv_positions(KVCache *c, int layer, int g, const int32_t **pos) {
    Head *h = head_of(c, layer, g);
    KeyList l = head_list(c, h);
    static __thread IntVec out;                 // valid until the next call on this thread
    static __thread IntVec live, part[2];       // what the host sees of a device
    const int32_t *at[2];
    out.n = 0;
    l.live = ints_seen(c->mem, l.live, l.len, &live);
    at[0] = ints_seen(c->mem, l.pos[0], l.split, &part[0]);
    at[1] = ints_seen(c->mem, l.pos[1], h->own.n, &part[1]);
    for (int j = 0; j < h->len; j++) {
        int row = l.live ? l.live[j] : j, own = row >= l.split;
        ints_push(&out, at[own][row - (own ? l.split : 0)]);
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

// room for n more rows of one head, and their entries; on a device also for a list, which a policy
// could not make there
void head_room(KVCache *c, Head *h, int n) {
    int want = h->own.n + n;            // beyond the reserve: half as much again
    if (want > h->own.cap)
        rows_grow(c->mem, c->s, &h->own, want + (h->own.n ? h->own.n / 2 : c->reserve));
    list_room(c, h, h->len + n, on_device(c) && method_evicts(&c->method), c->words > 0);
}

// SinkCache, before n rows come to a layer. If these and what is there reach W, the S sinks and the
// last W - S - n rows stay, and all but the sinks are read n positions further down. The code it
// follows goes wrong for n >= W - S; here only the sinks stay then.
static void sinks_shift(KVCache *c, KVWork *w, int layer, int n) {
    const Sizes *z = &c->method.size;
    double t = now_s();
    for (int g = 0; sinks_turn(c) && g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        int len = c->arrive = h->len, sinks = z->sinks < len ? z->sinks : len,
            tail = z->budget - z->sinks - n;
        if (len + n < z->budget) continue;
        if (tail < 0) tail = 0;
        int named = len - sinks - tail;
        memset(w->keep, 1, (size_t)len);
        memset(w->keep + sinks, 0, (size_t)named);
        head_evict(c, h, w->keep, named);
        c->named += named;
        int32_t *turn = (int32_t *)(void *)h->state;
        for (int j = sinks; j < h->len; j++) turn[j] -= n;
    }
    w->policy_s += now_s() - t;
}

// n rows of k and v (n, G, hd) behind the rows of every head of a layer, or of its copies
static void layer_append(KVCache *c, int layer, int64_t pos, int n, const float *k,
                         const float *v) {
    const AttnShape *s = c->s;
    uint32_t turn = sinks_turn(c) ? (uint32_t)(c->arrive - (int32_t)(pos - c->fed)) : 0;
    c->fed += n;
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++)
        for (int g = 0; g < s->n_kv_heads; g++) {
            Head *h = head_of(c, layer, g);
            size_t at = ((size_t)i * s->n_kv_heads + g) / c->copies * s->head_dim;
            row_store(s, &h->own, h->own.n + i, (int32_t)(pos + i), k + at, v + at);
            if (h->live) h->live[h->len + i] = base_rows(c, h) + h->own.n + i;
            for (int j = 0; j < c->words; j++)
                h->state[(size_t)j * h->cap + h->len + i] = turn;
        }
    for (int g = 0; g < s->n_kv_heads; g++) {
        head_of(c, layer, g)->own.n += n;
        head_of(c, layer, g)->len += n;
    }
}

void head_evict(KVCache *c, Head *h, const uint8_t *keep, int named) {
    if (!named) return;
    int n = 0;
    list_room(c, h, h->len, true, false);
    for (int j = 0; j < h->len; j++) {
        if (!keep[j]) continue;
        h->live[n] = h->live[j];
        for (int i = 0; i < c->words; i++)
            h->state[(size_t)i * h->cap + n] = h->state[(size_t)i * h->cap + j];
        n++;
    }
    c->dropped += h->len - n;
    h->len = n;
}

#ifdef SCB_CUDA
enum { EVICT_THREADS = 512 };

// grid lists: packs list and state in place, block by block of entries. A packed entry never lies
// behind where it came from, so it is enough that a block is read before it is written.
__global__ static void evict_k(KeyList *list, DeviceHead *head, const uint8_t *keep, size_t ld) {
    KeyList *l = &list[blockIdx.x];
    DeviceHead *h = &head[blockIdx.x];
    const int32_t *live = l->live;
    const uint8_t *stays = keep + blockIdx.x * ld;
    int len = l->len, n = 0;
    for (int at = 0; at < len; at += EVICT_THREADS) {
        int j = at + threadIdx.x, row = j < len && live ? live[j] : j;
        bool kept = j < len && stays[j];
        uint32_t total, to = n + block_places(kept, false, &total);
        if (kept) h->live[to] = row;
        for (int i = 0; i < h->words; i++) {
            uint32_t *plane = h->state + (size_t)i * h->cap, x = j < len ? plane[j] : 0;
            __syncthreads();
            if (kept) plane[to] = x;
        }
        n += (int)total;
    }
    if (threadIdx.x || n == len) return;
    l->live = h->live;
    l->len = n;
}

void cuda_evict(KeyList *list, DeviceHead *head, int n_lists, const uint8_t *keep, size_t ld,
                bool one, void *stream) {
    if (n_lists)
        LAUNCH(evict_k, n_lists, EVICT_THREADS, 0, stream, list, head, keep, one ? 0 : ld);
}

enum { GATHER_ROWS = 32, GATHER_THREADS = 256 };

// grid (rows / GATHER_ROWS, lists): 16 bytes a thread where rows are whole pieces of them
template <class Piece>
__global__ static void gather_k(const KeyList *list, int hd, char *const *to) {
    const KeyList *l = &list[blockIdx.y];
    size_t bytes = 2 * (size_t)hd;
    int pieces = (int)(bytes / sizeof(Piece)), first = blockIdx.x * GATHER_ROWS;
    Piece *k = (Piece *)to[blockIdx.y], *v = k + (size_t)l->len * pieces;
    int32_t *pos = (int32_t *)(v + (size_t)l->len * pieces);
    for (int i = threadIdx.x; i < GATHER_ROWS * pieces; i += GATHER_THREADS) {
        int j = first + i / pieces, c = i % pieces;
        if (j >= l->len) break;
        k[(size_t)j * pieces + c] = ((const Piece *)list_row(l, l->k, j, bytes))[c];
        v[(size_t)j * pieces + c] = ((const Piece *)list_row(l, l->v, j, bytes))[c];
        if (c == 0) pos[j] = *(const int32_t *)list_row(l, (const void *const *)l->pos, j, 4);
    }
}

void cuda_gather(const KeyList *list, int n_lists, int max_len, int head_dim, char *const *to,
                 void *stream) {
    dim3 grid(CEIL_DIV(max_len, GATHER_ROWS), n_lists);
    if (!max_len) return;
    if (head_dim % 8 == 0)
        LAUNCH(gather_k<uint4>, grid, GATHER_THREADS, 0, stream, list, head_dim, to);
    else LAUNCH(gather_k<uint32_t>, grid, GATHER_THREADS, 0, stream, list, head_dim, to);
}
#endif
// ---------------------------------------------------------------------------
// Scratch of all branches of a model


// per thread: attention scratch, then rows for one strip of statistics: q (32, hd), s (32, 512)
static size_t thread_bytes(const AttnShape *s) {
    size_t b = attn_scratch_bytes(s) + STRIP_ROWS * ((size_t)s->head_dim + PANEL) * sizeof(float);
    return (b + 4095) & ~(size_t)4095;
}

KVWork *kv_work_open(Mem *mem, const AttnShape *s, Device *device, int from, int to) {
    KVWork *w = (KVWork *)xrealloc(NULL, sizeof *w);
    memset(w, 0, sizeof *w);
    w->mem = mem;
    w->s = s;
    w->device = device;
    w->d.from = from;
    w->d.to = to;
    if (device) {
        w->d.inv_freq = TAKE(mem, float, s->rope_dim / 2, "rotary frequencies");
        mem_copy(mem, w->d.inv_freq, s->inv_freq, (size_t)(s->rope_dim / 2) * sizeof(float));
        return w;
    }
    w->per_thread = thread_bytes(s);
    w->threads = cpu_threads();
    w->thread = TAKE(mem, char, w->per_thread * (size_t)w->threads, "attention scratch");
    return w;
}

typedef struct { size_t panels, parts, scores, lse2, keep, rank, window, readers, rule; } WorkSizes;

static WorkSizes work_sizes(const AttnShape *s, const Method *m, int len, int n, int window,
                            int batch) {
    int panels = CEIL_DIV(len, PANEL) ? CEIL_DIV(len, PANEL) : 1;
    size_t ld = (size_t)panels * PANEL, h = (size_t)s->n_heads;
    bool wide = method_wide(m);
    WorkSizes z;
    bool packs = n && !s->device, looks = policy_looks(m->policy);
    z.panels = packs ? (wide ? h : (size_t)s->n_kv_heads) * panels * attn_panel_bytes(s) : 0;
    z.parts = s->device ? 0 : (size_t)batch * panels * h * ((size_t)s->head_dim + 2) * sizeof(float);
    z.scores = looks ? (size_t)batch * h * (ld + 1) * sizeof(float) : 0;
    z.lse2 = m->policy->every_query ? h * (size_t)n * sizeof(float) : 0;
    z.keep = s->device ? 0 : ld;
    z.rank = !s->device && (looks || m->policy->wants_pos) ? 4 * ld * sizeof(float) : 0;
    z.window = window_bytes(s, window);
    z.readers = z.rule = 0;
#ifdef SCB_CUDA
    if (s->device)
        z.rule = m->policy->at_read == READ_ALL ? device_rule_bytes(s, m, len, window)
                                                : device_read_bytes(s, m, len, n, batch);
#endif
    if (m->policy->at_read != READ_ALL && !s->device)
        z.readers = (size_t)cpu_threads() *
                    reader_bytes(s, reader_heads(m, s), len);
    return z;
}

size_t kv_work_bytes(const AttnShape *s, const Method *m, int len, int n, int window, int batch) {
    WorkSizes z = work_sizes(s, m, len, n, window, batch);
    size_t threads = s->device ? 0 : (size_t)cpu_threads();
#ifdef SCB_CUDA
    if (s->device) z.parts = device_parts_bytes(s, len, n, batch);
#endif
    return thread_bytes(s) * threads + z.panels + z.parts + z.scores + z.lse2 +
           z.keep + z.rank + z.window + z.readers + z.rule;
}

size_t kv_turned_bytes(const AttnShape *s, const Method *m, int rows, int batch) {
#ifdef SCB_CUDA
    int lists = batch * (method_wide(m) ? s->n_heads : s->n_kv_heads);
    if (s->device && method_evicts(m) && m->size.positions == POSITIONS_CACHE)
        return turned_lists(lists) + (size_t)lists * rows * 2 * s->head_dim * s->elem;
#endif
    (void)s; (void)m; (void)rows; (void)batch;
    return 0;
}

void *work_grow(KVWork *w, void *p, size_t *have, size_t want, const char *what) {
    if (want <= *have) return p;
    mem_give(w->mem, p, *have);
    *have = want;
    return mem_take(w->mem, want, 1, what);
}

void kv_work_reserve(KVWork *w, const Method *m, int len, int n, int window, int batch) {
    const AttnShape *s = w->s;
    WorkSizes z = work_sizes(s, m, len, n, window, batch);
    int panels = CEIL_DIV(len, PANEL) ? CEIL_DIV(len, PANEL) : 1, ld = panels * PANEL;
    size_t h = (size_t)s->n_heads, had;
    w->panels = (char *)work_grow(w, w->panels, &w->panels_bytes, z.panels,
                                  "packed keys and values of a layer");
    w->parts =
        (float *)work_grow(w, w->parts, &w->parts_bytes, z.parts, "partial attention results");
    w->all_scores =
        (float *)work_grow(w, w->all_scores, &w->scores_bytes, z.scores, "scores of a step");
    w->scores = w->all_scores;
    w->scores_ld = (int)(w->scores_bytes / sizeof(float) / h / (size_t)batch) - 1;
    had = h * (size_t)w->lse2_ld * sizeof(float);
    if (z.lse2 > had) {
        w->lse2 = (float *)work_grow(w, w->lse2, &had, z.lse2, "denominators of a feed");
        w->lse2_ld = n;
    }
    had = (size_t)w->keep_ld;
    if (z.keep > had) {
        w->keep = (uint8_t *)work_grow(w, w->keep, &had, z.keep, "eviction marks");
        w->keep_ld = ld;
    }
    w->rank = (float *)work_grow(w, w->rank, &w->rank_bytes, z.rank, "scores of the rows");
    w->readers =
        (char *)work_grow(w, w->readers, &w->reader_bytes, z.readers, "lists of a token's rows");
    if (window > w->window_cap) {
        had = window_bytes(s, w->window_cap);
        w->window = (float *)work_grow(w, w->window, &had, z.window, "window rows");
        w->window_pos = (int32_t *)xrealloc(w->window_pos, (size_t)window * sizeof *w->window_pos);
        w->window_cap = window;
    }
    w->d.rule = (char *)work_grow(w, w->d.rule, &w->d.rule_bytes, z.rule, "choices of rows");
}

static size_t probe_bytes(const AttnShape *s) {
    return (size_t)s->n_heads * SPARSE_ROWS * s->head_dim * sizeof(float);
}

// policies that look at every query want to know what it computed
static int sparse_marks(const Method *m, int chunk) {
    return m->policy->every_query ? chunk : 0;
}

size_t kv_sparse_bytes(const AttnShape *s, const Method *m, int len, int chunk) {
    if (!m->prefill) return 0;
    if (s->device) return device_sparse_bytes(s, m, len, chunk);
    return probe_bytes(s) + sparse_bytes(s, len, method_verticals(m), sparse_marks(m, chunk));
}

void kv_work_sparse(KVWork *w, const Method *m, int len, int chunk) {
    size_t heads = (size_t)w->s->n_heads;
    if (!m->prefill) return;
#ifdef SCB_CUDA
    if (w->device) {
        device_sparse_reserve(w, m, len, chunk);
        return;
    }
#endif
    if (!w->sparse) {
        w->sparse = sparse_open(w->mem, w->s);
        w->sparse_keys = (KeyList *)xrealloc(NULL, heads * sizeof *w->sparse_keys);
        w->sparse_panels = (const void **)xrealloc(NULL, heads * sizeof *w->sparse_panels);
        w->sparse_head = (HeadPattern *)xrealloc(NULL, heads * sizeof *w->sparse_head);
        w->probe = (float *)mem_take(w->mem, probe_bytes(w->s), 1, "query rows of the estimation");
    }
    sparse_reserve(w->sparse, len, method_verticals(m), sparse_marks(m, chunk));
}

void kv_work_close(KVWork *w) {
    if (!w) return;
    size_t h = (size_t)w->s->n_heads;
#ifdef SCB_CUDA
    if (w->device) device_work_close(w);
#endif
    mem_give(w->mem, w->thread, w->per_thread * (size_t)w->threads);
    mem_give(w->mem, w->panels, w->panels_bytes);
    mem_give(w->mem, w->parts, w->parts_bytes);
    mem_give(w->mem, w->all_scores, w->scores_bytes);
    mem_give(w->mem, w->lse2, h * (size_t)w->lse2_ld * sizeof(float));
    mem_give(w->mem, w->rank, w->rank_bytes);
    mem_give(w->mem, w->keep, (size_t)w->keep_ld);
    mem_give(w->mem, w->readers, w->reader_bytes);
    mem_give(w->mem, w->window, window_bytes(w->s, w->window_cap));
    if (w->sparse) mem_give(w->mem, w->probe, probe_bytes(w->s));
    sparse_close(w->sparse);
    free(w->window_pos);
    free(w->sparse_keys);
    free(w->sparse_panels);
    free(w->sparse_head);
    free(w);
}

// ---------------------------------------------------------------------------
// A feed: the list of a head grows by the feed's rows; row i sees the entries up to its own

void kv_first_begin(KVCache *c) {
    CHECK(!c->base, "the first feed of a cache that has rows");
    c->base = base_new(c->mem, c->model_s, c->n_heads);
    c->building = c->n_heads > 0;
}

void kv_feed_begin(KVCache *c, KVWork *w, int layer, int n) {
    w->feed_n = n;
    w->window_rows = 0;
    c->named = layer == 0 ? 0 : c->named;
    c->dropped = layer == 0 ? 0 : c->dropped;
    sinks_shift(c, w, layer, n);
    c->fed = 0;
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        if (c->building) h->own = rows_take(c->mem, c->s, n);
        head_room(c, h, n);
    }
#ifdef SCB_CUDA
    if (w->device) device_feed_begin(c, w, layer);
#endif
}

// query rows of the feed that lie among its last window_cap go to the window buffer
static void window_keep(KVWork *w, int first, int n, int64_t pos, const float *q) {
    size_t row = (size_t)w->s->n_heads * w->s->head_dim;
    int start = w->feed_n > w->window_cap ? w->feed_n - w->window_cap : 0;
    for (int i = first < start ? start - first : 0; i < n; i++) {
        memcpy(w->window + (size_t)(first + i - start) * row, q + (size_t)i * row, row * sizeof *q);
        w->window_pos[first + i - start] = (int32_t)(pos + i);
        w->window_rows = first + i - start + 1;
    }
}

void pack_new(KVCache *c, KVWork *w, int layer, int n, bool all) {
    int G = c->s->n_kv_heads, most = 0;
    for (int g = 0; g < G; g++) {
        int len = head_of(c, layer, g)->len, from = all ? 0 : len - n;
        if (CEIL_DIV(len, BLK) - from / BLK > most) most = CEIL_DIV(len, BLK) - from / BLK;
    }
#pragma omp parallel for schedule(dynamic, 4)
    for (int item = 0; item < G * most; item++) {
        Head *h = head_of(c, layer, item / most);
        int at = ((all ? 0 : h->len - n) / BLK + item % most) * BLK, to = at + BLK;
        KeyList list = head_list(c, h);
        if (at >= h->len) continue;
        attn_pack(c->s, panels_of(c, w, item / most), &list, at, to < h->len ? to : h->len,
                  thread_scratch(w));
    }
}

static void see_queries(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                        const float *q, bool sparse) {
    double t = now_s();
    policy_queries(c, w, layer, first, n, pos, q, sparse);
    w->policy_s += now_s() - t;
}

void kv_feed_chunk(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                   const float *q, const float *k, const float *v, float *out) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, blocks = CEIL_DIV(n, ATTN_ROWS);
    size_t ld = (size_t)s->n_heads * s->head_dim;
    bool all = c->method.policy->every_query;
    layer_append(c, layer, pos, n, k, v);
    if (!reads_chosen(c)) pack_new(c, w, layer, n, first == 0);
    if (w->window_cap) window_keep(w, first, n, pos, q);
    if (reads_chosen(c)) {
        read_rows(c, w, layer, n, q, out);
        return;
    }
    // the last rows see most keys: longest work first
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * s->n_heads; item++) {
        int block = blocks - 1 - item / s->n_heads, h = item % s->n_heads, r = block * ATTN_ROWS;
        int g = h / group;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = panels_of(c, w, g);
        a.q = q + (size_t)r * ld + (size_t)h * s->head_dim;
        a.ldq = a.ldo = ld;
        a.rows = n - r < ATTN_ROWS ? n - r : ATTN_ROWS;
        a.vis0 = head_of(c, layer, g)->len - n + r + 1;
        a.vis_step = 1;
        a.out = out + (size_t)r * ld + (size_t)h * s->head_dim;
        if (all) a.lse2 = w->lse2 + (size_t)h * w->lse2_ld + first + r;
        attn_rows(s, &a, thread_scratch(w));
    }
    if (all) see_queries(c, w, layer, first, n, pos, q, false);
}
// ---------------------------------------------------------------------------
// A sparse feed: all keys of a layer first, because what its rows look at depends on them

bool kv_feed_sparse(const KVCache *c, int n) {
    const Method *m = &c->method;
    return m->prefill && n > 0 && (c->building || m->prefill_size.every_feed) &&
           kv_max_len(c) + n >= m->prefill_size.dense_below;
}

bool kv_feed_whole(const KVCache *c) { return c->method.size.signs && reads_chosen(c); }

void kv_feed_keys(KVCache *c, int layer, int n, int64_t pos, const float *k, const float *v) {
    layer_append(c, layer, pos, n, k, v);
}

void kv_feed_plan(KVCache *c, KVWork *w, int layer, const float *q, int rows) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, most = 0;
    size_t hd = (size_t)s->head_dim;
    int64_t *all = c->building ? &c->base->all_pairs : &c->all_pairs;
    pack_new(c, w, layer, 0, true);
    for (int g = 0; g < s->n_kv_heads; g++) {
        w->sparse_keys[g] = head_list(c, head_of(c, layer, g));
        w->sparse_panels[g] = panels_of(c, w, g);
        *all += group * sparse_all_pairs(w->sparse_keys[g].len, w->feed_n);
        if (w->sparse_keys[g].len > most) most = w->sparse_keys[g].len;
    }
    method_heads(&c->method, layer, s->n_heads, w->sparse_head);
    bool looks = sparse_estimates(w->sparse_head, s->n_heads, most, w->feed_n);
    for (int h = 0; looks && h < s->n_heads; h++)
        for (int i = 0; i < rows; i++)
            memcpy(w->probe + ((size_t)h * rows + i) * hd, q + ((size_t)i * s->n_heads + h) * hd,
                   hd * sizeof *q);
    SparseLayer plan = { w->sparse_head, c->method.prefill_size.dense_rows, s, w->sparse_keys,
                         w->sparse_panels, w->feed_n, w->probe, rows };
    sparse_plan(w->sparse, &plan, w->thread, w->per_thread);
}

void kv_feed_queries(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                     const float *q, float *out) {
    int64_t *pairs = c->building ? &c->base->pairs : &c->pairs;
    bool all = c->method.policy->every_query;
    if (w->window_cap) window_keep(w, first, n, pos, q);
    *pairs += sparse_rows(w->sparse, first, n, q, out, all ? w->lse2 + first : NULL,
                          (size_t)w->lse2_ld, w->thread, w->per_thread);
    if (all) see_queries(c, w, layer, first, n, pos, q, true);
}
// ---------------------------------------------------------------------------
// The end of a feed, and a step


// the rows of a layer become base rows; evicted ones are left behind (SEMANTICS 3, release)
static void layer_settle(KVCache *c, KVWork *w, int layer) {
#ifdef SCB_CUDA
    if (w->device) {
        device_settle(c, w, layer);
        return;
    }
#endif
    (void)w;
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        Rows *to = base_of(c, h);
        if (c->base->sums) {
            Sums kept = { h->state, h->cap };
            c->base->sums[h - c->head] = kept;
            h->state = NULL;
            h->cap = 0;
        }
        if (!h->live) {
            *to = h->own;
            memset(&h->own, 0, sizeof h->own);
        } else {
            *to = rows_take(c->mem, c->s, h->len);
            to->n = h->len;
            for (int j = 0; j < h->len; j++) rows_copy(c->mem, c->s, to, j, &h->own, h->live[j], 1);
            rows_give(c->mem, c->s, &h->own);
            list_drop(c, h, false);
            list_trim(c, h);
        }
        if (c->reserve) h->own = rows_take(c->mem, c->s, c->reserve);
    }
}

void kv_work_look(KVWork *w, LayerLook fn, void *user) {
    w->look = fn;
    w->look_user = user;
}

static void layer_look(KVCache *c, KVWork *w, int layer) {
    int G = c->s->n_kv_heads;
    const void **k = (const void **)xrealloc(NULL, 2 * (size_t)G * sizeof *k), **v = k + G;
    LayerSeen l = { c->s, layer, w->feed_n, w->window, k, v };
    CHECK(w->window_rows == w->feed_n, "%d queries kept of %d", w->window_rows, w->feed_n);
    for (int g = 0; g < G; g++) {
        k[g] = rows_k(&head_of(c, layer, g)->own);
        v[g] = rows_v(&head_of(c, layer, g)->own, c->s);
    }
    w->look(w->look_user, &l);
    free((void *)k);
}

void kv_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                 bool first) {
    if (w->look && c->building) layer_look(c, w, layer);
    policy_feed_end(c, w, layer, t, window, rows, first);
    if (c->building) layer_settle(c, w, layer);
    if (layer < c->n_layers - 1) return;
    c->building = false;
    c->first_done = c->first_done || first;
}

void kv_window_copy(const KVWork *w, int rows, void *dst) {
    size_t row = (size_t)w->s->n_heads * w->s->head_dim;
    CHECK(rows <= w->window_rows, "%d window rows wanted of %d", rows, w->window_rows);
    if (w->device) {
        mem_copy(w->mem, dst, window_row(w, w->d.window_at + w->window_rows - rows),
                 (size_t)rows * row * sizeof(uint16_t));
        return;
    }
    const float *src = w->window + (size_t)(w->window_rows - rows) * row;
    for (size_t i = 0; i < (size_t)rows * row; i++) {
        if (w->s->elem == 4) ((float *)dst)[i] = src[i];
        else ((uint16_t *)dst)[i] = f32_bf16(src[i]);
    }
}

// whether panel p of both lists is 512 entries of the same rows of one shared base
static bool same_panel(const KeyList *a, const KeyList *b, int p) {
    int from = p * PANEL, end = from + PANEL;
    if (a->k[0] != b->k[0] || a->by_index != b->by_index || a->len < end || b->len < end ||
        a->turn || b->turn)
        return false;
    if (!a->live && !b->live) return end <= a->split;
    if (a->live && b->live)
        return a->live[end - 1] < a->split &&
               !memcmp(a->live + from, b->live + from, PANEL * sizeof *a->live);
    const int32_t *live = a->live ? a->live : b->live;      // ascending: its ends tell
    return end <= a->split && live[from] == from && live[end - 1] == end - 1;
}

// Panel p of one KV head under the token of every cache that reaches it; returns the rows read. A
// shared panel that serves more rows than a strip has is read from cache again for the next strip.
static size_t step_panel(const AttnShape *s, int n, const KVWork *w, int p, const KeyList *list,
                         const StepRows *rows) {
    int group = s->n_heads / s->n_kv_heads, most = STRIP_ROWS / group;
    bool done[STEP_BATCH] = { false };
    size_t read = 0;
    for (int i = 0; i < n; i++) {
        StepRows same[STEP_BATCH];
        int m = 0;
        if (done[i] || p * PANEL >= list[i].len) continue;
        for (int j = i; j < n; j++) {
            if (done[j] || (j > i && !same_panel(&list[i], &list[j], p))) continue;
            done[j] = true;
            same[m++] = rows[j];
        }
        for (int j = 0; j < m; j += most)
            attn_step_panel(s, &list[i], p, same + j, m - j < most ? m - j : most,
                            thread_scratch(w));
        read += (size_t)(list[i].len - p * PANEL < PANEL ? list[i].len - p * PANEL : PANEL);
    }
    return read;
}

// where a step leaves the scores (H, ld) and lse2 (H) of cache i of its batch
static float *step_scores(const KVWork *w, int i) {
    return w->all_scores + (size_t)i * w->s->n_heads * ((size_t)w->scores_ld + 1);
}
static float *step_lse2(const KVWork *w, int i) {
    return step_scores(w, i) + (size_t)w->s->n_heads * w->scores_ld;
}

// room for the token of every cache, and its row; returns the panels of the longest list
static int step_append(const StepOf *of, int n, KVWork *w, int layer, const float *k,
                       const float *v) {
    int panels = 0;
    for (int i = 0; i < n; i++) {
        KVCache *c = of[i].kv;
        size_t at = (size_t)i * c->model_s->n_kv_heads * c->s->head_dim;
        if (layer == 0) c->named = c->dropped = 0;
        sinks_shift(c, w, layer, 1);
        c->fed = 0;
        for (int g = 0; g < c->s->n_kv_heads; g++) head_room(c, head_of(c, layer, g), 1);
        layer_append(c, layer, of[i].pos, 1, k + at, v + at);
        for (int g = 0; g < c->s->n_kv_heads; g++)
            if (CEIL_DIV(kv_len(c, layer, g), PANEL) > panels)
                panels = CEIL_DIV(kv_len(c, layer, g), PANEL);
    }
    return panels;
}

size_t kv_step(const StepOf *of, int n, KVWork *w, int layer, const float *q, const float *k,
               const float *v, float *out) {
    const AttnShape *s = of[0].kv->s;
    int G = s->n_kv_heads, group = s->n_heads / G, panels = step_append(of, n, w, layer, k, v);
    size_t part = (size_t)group * ((size_t)s->head_dim + 2), per_head = (size_t)group * s->head_dim,
           read = 0;
    CHECK(n <= STEP_BATCH, "a step of %d branches", n);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1) reduction(+ : read)
        for (int item = 0; item < G * panels; item++) {
            int g = item / panels, p = item % panels;
            KeyList list[STEP_BATCH];
            StepRows rows[STEP_BATCH];
            for (int i = 0; i < n; i++) {
                bool observed = policy_looks(of[i].kv->method.policy);
                list[i] = head_list(of[i].kv, head_of(of[i].kv, layer, g));
                if (reads_chosen(of[i].kv)) list[i].len = 0;
                rows[i].q = q + ((size_t)i * G + g) * per_head;
                rows[i].part = w->parts + (((size_t)i * G + g) * panels + p) * part;
                rows[i].scores =
                    observed ? step_scores(w, i) + (size_t)g * group * w->scores_ld : NULL;
                rows[i].ld_scores = (size_t)w->scores_ld;
            }
            read += step_panel(s, n, w, p, list, rows);
        }
#pragma omp for
        for (int item = 0; item < n * G; item++) {
            const KVCache *c = of[item / G].kv;
            bool observed = policy_looks(c->method.policy);
            if (reads_chosen(c)) continue;
            attn_fold(s, w->parts + (size_t)item * panels * part,
                      CEIL_DIV(kv_len(c, layer, item % G), PANEL), out + item * per_head,
                      observed ? step_lse2(w, item / G) + (size_t)(item % G) * group : NULL);
        }
    }
    for (int i = 0; i < n; i++) {
        w->scores = step_scores(w, i);
        if (reads_chosen(of[i].kv))
            read_rows(of[i].kv, w, layer, 1, q + i * G * per_head, out + i * G * per_head);
        double t = now_s();
        policy_step(of[i].kv, w, layer, of[i].pos + 1);
        w->policy_s += now_s() - t;
    }
    return read * kv_row_bytes(s);
}

// ---------------------------------------------------------------------------
// Release: rows nobody names any more are given back where this branch alone could name them

static void head_release(KVCache *c, Head *h) {
    Rows *base = base_of(c, h);
    int old_base = base->n, in_base = 0, at = 0;
    while (in_base < h->len && h->live[in_base] < old_base) in_base++;
    if (base_alone(c) && in_base < old_base) {
        Rows to = rows_take(c->mem, c->s, in_base);
        to.n = in_base;
        for (int j = 0; j < in_base; j++) rows_copy(c->mem, c->s, &to, j, base, h->live[j], 1);
        rows_give(c->mem, c->s, base);
        *base = to;
        for (int j = 0; j < in_base; j++) h->live[j] = j;
    }
    for (int j = in_base; j < h->len; j++, at++) {
        if (h->live[j] - old_base != at)
            rows_copy(c->mem, c->s, &h->own, at, &h->own, h->live[j] - old_base, 1);
        h->live[j] = base->n + at;
    }
    h->own.n = at;
    if (h->own.cap > at + c->reserve) {
        Rows to = rows_take(c->mem, c->s, at + c->reserve);
        if (at) rows_copy(c->mem, c->s, &to, 0, &h->own, 0, at);
        to.n = at;
        rows_give(c->mem, c->s, &h->own);
        h->own = to;
    }
    if (in_base == base->n) list_drop(c, h, false);
    list_trim(c, h);
}

void cache_gather(const KVCache *c, int i, char *mem) {
    const Head *h = &c->head[i];
#ifdef SCB_CUDA
    if (on_device(c)) {
        device_gather(c, h, mem);
        return;
    }
#endif
    Rows to = { mem, h->len, h->len, false };
    int split = base_rows(c, h);
    for (int j = 0; j < h->len; j++) {
        int row = h->live ? h->live[j] : j;
        rows_copy(c->mem, c->s, &to, j, row < split ? base_of(c, h) : &h->own,
                  row < split ? row : row - split, 1);
    }
}

void kv_release(KVCache *c) {
    if (c->marks || !c->base) return;
#ifdef SCB_CUDA
    if (on_device(c)) {
        device_release(c);
        return;
    }
#endif
    for (int i = 0; i < c->n_heads; i++) if (c->head[i].live) head_release(c, &c->head[i]);
}

static void rows_poison(const Mem *mem, const AttnShape *s, Rows *r, int row) {
    size_t b = (size_t)s->head_dim * s->elem;
    char *nan = (char *)xrealloc(NULL, b);
    memset(nan, 0xff, b);
    mem_put(mem, rows_k(r) + (size_t)row * b, nan, b);
    mem_put(mem, rows_v(r, s) + (size_t)row * b, nan, b);
    free(nan);
}

void kv_poison(KVCache *c) {
    IntVec copy = { 0 };
    if (c->marks) return;
    for (int i = 0; i < c->n_heads; i++) {
        Head *h = &c->head[i];
        int base = base_rows(c, h), j = 0;
        if (!h->live) continue;
        const int32_t *live = ints_seen(c->mem, h->live, h->len, &copy);
        for (int row = 0; row < base + h->own.n; row++) {
            while (j < h->len && live[j] < row) j++;
            if (j < h->len && live[j] == row) continue;
            if (row >= base) rows_poison(c->mem, c->s, &h->own, row - base);
            else if (base_alone(c)) rows_poison(c->mem, c->s, base_of(c, h), row);
        }
    }
    free(copy.p);
}

bool kv_check(const KVCache *c, Err *err) {
    if (c->named == c->dropped) return true;
    (void)FAIL(err, "internal error: method %s named %lld rows but %lld were dropped",
               c->method.name, (long long)c->named, (long long)c->dropped);
    return false;
}

void kv_streaming(KVCache *c, bool on) { c->streaming = on; }

int kv_heads(const KVCache *c) { return c->s->n_kv_heads; }

int kv_max_len(const KVCache *c) {
    int most = 0;
    for (int i = 0; i < c->n_heads; i++) if (c->head[i].len > most) most = c->head[i].len;
    return most;
}

// rows of head i of the base that its lists name, each once
static size_t rows_named(const KVCache *c, int i) {
    int n = c->base->head[i].n;
    size_t count = 0;
    IntVec copy = { 0 };
    uint8_t *named = (uint8_t *)xrealloc(NULL, (size_t)n + 1);
    memset(named, 0, (size_t)n + 1);
    for (int j = i * c->spread; j < (i + 1) * c->spread; j++) {
        const Head *h = &c->head[j];
        const int32_t *live = ints_seen(c->mem, h->live, h->len, &copy);
        if (!h->live) memset(named, 1, (size_t)(h->len < n ? h->len : n));
        else for (int k = 0; k < h->len && live[k] < n; k++) named[live[k]] = 1;
    }
    free(copy.p);
    for (int k = 0; k < n; k++) count += named[k];
    free(named);
    return count;
}

// rows of the base in the list of one head
static size_t rows_in_base(const KVCache *c, const Head *h) {
    int n = base_rows(c, h), k = h->len;
    IntVec copy = { 0 };
    const int32_t *live = ints_seen(c->mem, h->live, h->len, &copy);
    if (!live) k = k < n ? k : n;
    while (live && k && live[k - 1] >= n) k--;
    free(copy.p);
    return (size_t)k;
}

KVStats kv_stats(const KVCache *c) {
    KVStats st;
    size_t row = kv_row_bytes(c->s), rows = 0, named = 0;
    memset(&st, 0, sizeof st);
    st.min = INT_MAX;
    for (int i = 0; i < c->n_heads; i++) {
        const Head *h = &c->head[i];
        if (h->len < st.min) st.min = h->len;
        if (h->len > st.max) st.max = h->len;
        rows += (size_t)h->len;
        named += (size_t)h->len - (c->spread > 1 ? rows_in_base(c, h) : 0);
        st.alloc_bytes += (size_t)h->own.cap * row;
        st.policy_bytes += list_bytes(c, h) + (size_t)h->page_cap * page_bytes(c->s);
        st.shared = st.shared || (has_dead(c, h) && c->base && c->base->refs > 1);
    }
    for (int i = 0; c->spread > 1 && i < c->base->n_heads; i++) named += rows_named(c, i);
    for (int i = 0; c->base && i < c->base->n_heads; i++)
        st.alloc_bytes += (size_t)c->base->head[i].cap * row;
    st.mean = c->n_heads ? (double)rows / c->n_heads : 0;
    if (!c->n_heads) st.min = 0;
    if (c->block) st.policy_bytes += c->block->bytes;
    st.live_bytes = named * row;
    st.named = (size_t)c->named;
    int64_t all = c->all_pairs + (c->base ? c->base->all_pairs : 0);
    int64_t pairs = c->pairs + (c->base ? c->base->pairs : 0);
    st.pairs_ratio = all ? (double)pairs / (double)all : 1.0;
    return st;
}
