// kv_device.cu - the cache of cache.cu on a GPU. Rows, lists and policy state lie there. Between
// calls a Head is the truth, as on the host, and its pointers are device pointers. During a call it
// is an array of KeyLists (layers, caches of the call, lists), sent before and grown and thinned out
// by kernels, so that a step runs to its end without the host; lengths come back afterwards where a
// policy may have changed them.
#include "cache.h"
#include "kernels.h"

// ---------------------------------------------------------------------------
// Room for the lists of a sparse feed's layer, one block

typedef struct DeviceSparse {
    char *mem;
    size_t bytes;
    int chunk;                  // rows whose lists there is room for
    unsigned long long *pairs;  // computed in the feed under way
    HeadPattern *pattern;       // (L, H) of a pattern file, else (H)
    SparseLists lists;
} DeviceSparse;

// Offsets of lists of len entries, what stays for a feed first; returns the bytes.
static size_t sparse_carve(const AttnShape *s, const Method *m, int len, int chunk, uintptr_t base,
                           DeviceSparse *d) {
    SparseLists *l = &d->lists;
    SparsePlan *p = &l->plan;
    size_t H = (size_t)s->n_heads, words = (size_t)CEIL_DIV(len, 64), ld = words * 64, at = 0,
           items = H * (size_t)CEIL_DIV(chunk < len ? chunk : len, SPARSE_ROWS),
           lists = method_wide(m) ? H : (size_t)s->n_kv_heads,
           layers = m->pattern ? (size_t)m->pattern->n_layers : 1;
    int verticals = method_verticals(m) < len ? method_verticals(m) : len;
    size_t some = verticals > 0, marks = m->policy->every_query;
    memset(l, 0, sizeof *l);
    p->ld = ld;
    l->most_spans = verticals + (int)words + 2;
    l->most_columns = verticals + SPARSE_ROWS;
#define CARVE(field, type, count)                                                                  \
    ((field) = (type *)(base + at), at += carve_bytes((size_t)(count) * sizeof(type)))
    CARVE(d->pairs, unsigned long long, 1);
    CARVE(d->pattern, HeadPattern, layers * H);
    CARVE(p->head, HeadLists, H);
    CARVE(p->choice, Choice, 2 * H);
    CARVE(p->k_mean, uint16_t, lists * words * (size_t)s->head_dim);
    CARVE(p->vertical, int32_t, some * H * ld);
    CARVE(p->slash, uint64_t, some * H * words);
    CARVE(p->column, float, some * H * ld);
    CARVE(p->distance, float, some * H * ld);
    CARVE(p->lse2, float, some * H * SPARSE_ROWS);
    CARVE(p->parts, float, some * 2 * LOOK_SPLITS * H * SPARSE_ROWS);
    CARVE(p->diagonals, float, some * H * (size_t)CEIL_DIV(len, 128) * LOOK_DIAGONAL);
    CARVE(p->keep, uint8_t, some * H * ld);
    CARVE(l->span, KeySpan, items * (size_t)l->most_spans);
    CARVE(l->n_spans, int, items);
    CARVE(l->block, BlockTiles, items);
    CARVE(l->tile, int32_t, items * (words + 1));
    CARVE(l->column, int32_t, items * (size_t)l->most_columns);
    CARVE(l->score, float, items * words);
    CARVE(l->chosen, int32_t, items * words);
    CARVE(l->choice, Choice, items);
    CARVE(l->marks, uint64_t, marks * items * words);
#undef CARVE
    if (!marks) l->marks = NULL;
    return at;
}

size_t device_sparse_bytes(const AttnShape *s, const Method *m, int len, int chunk) {
    DeviceSparse d;                             // only offsets are wanted
    return sparse_carve(s, m, len, chunk, 0, &d);
}

#ifdef SCB_CUDA
template <class T> static void pinned_grow(T **p, size_t n) {
    CUDA_OK(cudaFreeHost(*p));
    CUDA_OK(cudaMallocHost(p, n * sizeof **p));
}

// room for the lists of a call
static void lists_room(KVWork *w, int n) {
    if (n <= w->d.room) return;
    device_wait(w->device);
    mem_give(w->mem, w->d.list, (size_t)w->d.room * sizeof *w->d.list);
    mem_give(w->mem, w->d.head, (size_t)w->d.room * sizeof *w->d.head);
    w->d.list = TAKE(w->mem, KeyList, n, "key lists");
    w->d.head = TAKE(w->mem, DeviceHead, n, "key lists");
    pinned_grow(&w->d.sent_list, (size_t)n);
    pinned_grow(&w->d.sent_head, (size_t)n);
    w->d.room = n;
}

void device_work_close(KVWork *w) {
    device_wait(w->device);
    mem_give(w->mem, w->d.list, (size_t)w->d.room * sizeof *w->d.list);
    mem_give(w->mem, w->d.head, (size_t)w->d.room * sizeof *w->d.head);
    mem_give(w->mem, w->d.inv_freq, (size_t)(w->s->rope_dim / 2) * sizeof(float));
    mem_give(w->mem, w->d.parts, w->d.parts_bytes);
    mem_give(w->mem, w->d.rule, w->d.rule_bytes);
    mem_give(w->mem, w->d.turned, w->d.turned_bytes);
    if (w->d.sparse) mem_give(w->mem, w->d.sparse->mem, w->d.sparse->bytes);
    free(w->d.sparse);
    CUDA_OK(cudaFreeHost(w->d.sent_list));
    CUDA_OK(cudaFreeHost(w->d.sent_head));
}

// a layer of cache i as its heads are now, into pinned memory
static void lists_fill(const KVCache *c, KVWork *w, int layer, int i) {
    size_t at = device_at(c, w, layer, i);
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        const Head *h = head_of(c, layer, g);
        DeviceHead head = { h->live, h->state, c->words, h->cap, h->own.n,
                            (uint16_t *)(void *)h->pages };
        w->d.sent_list[at + g] = head_list(c, h);
        w->d.sent_head[at + g] = head;
    }
}

static void lists_send(KVWork *w, size_t at, size_t n) {
    cudaStream_t stream = (cudaStream_t)stream_of(w);
    CUDA_OK(cudaMemcpyAsync(w->d.list + at, w->d.sent_list + at, n * sizeof *w->d.list,
                            cudaMemcpyHostToDevice, stream));
    CUDA_OK(cudaMemcpyAsync(w->d.head + at, w->d.sent_head + at, n * sizeof *w->d.head,
                            cudaMemcpyHostToDevice, stream));
}

// heads of a layer <- lengths as they have come back; they were len and lost what a rule named
static void lists_back(KVCache *c, const KVWork *w, int layer, int i, int more, int64_t t) {
    size_t at = device_at(c, w, layer, i);
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        int len = h->len + more, lost = len - w->d.sent_list[at + g].len,
            named = rows_named_of(c, layer, len, t);
        c->named += named < 0 ? lost : named;
        c->dropped += lost;
        h->len = len - lost;
        h->own.n += more;
    }
}

void device_fetch(KVCache *c, KVWork *w, int layer, int64_t t) {
    size_t at = device_at(c, w, layer, 0);
    mem_get(w->mem, w->d.sent_list + at, w->d.list + at,
            (size_t)c->s->n_kv_heads * sizeof *w->d.list);
    lists_back(c, w, layer, 0, 0, t);
}

// Lists whose keys are turned are read as others that the turned keys and the values are copied to;
// they stay until the next call.
const KeyList *device_lists(const KVCache *c, KVWork *w, int layer, int i, int n, int most) {
    const AttnShape *s = c->s;
    const KeyList *list = w->d.list + device_at(c, w, layer, i);
    int lists = n * s->n_kv_heads;
    size_t head = turned_lists(lists);
    if (!kv_turns(c)) return list;
    w->d.turned = (char *)work_grow(w, w->d.turned, &w->d.turned_bytes,
                                    kv_turned_bytes(s, &c->method, most, n), "keys at their places");
    cuda_turn_lists(list, lists, most, s->head_dim, s->rope_dim, w->d.inv_freq,
                    (uint16_t *)(void *)(w->d.turned + head), (KeyList *)(void *)w->d.turned,
                    stream_of(w));
    return (const KeyList *)(const void *)w->d.turned;
}

// ---------------------------------------------------------------------------
// A feed

void device_feed_begin(KVCache *c, KVWork *w, int layer) {
    int G = c->s->n_kv_heads;
    if (layer == w->d.from) {
        device_wait(w->device);                 // what was sent before has arrived
        w->d.caches = 1;
        lists_room(w, c->n_layers * G);
    }
    w->d.window_at = w->window_cap;
    for (int g = 0; g < G; g++) {
        Head *h = head_of(c, layer, g);
        device_pages_room(c, h, h->len + w->feed_n);
    }
    lists_fill(c, w, layer, 0);
    lists_send(w, device_at(c, w, layer, 0), (size_t)G);
}

void kv_device_append(KVCache *c, KVWork *w, int layer, RopeAppend *a) {
    size_t at = device_at(c, w, layer, 0);
    a->list = w->d.list + at;
    a->head = w->d.head + at;
    a->n_lists = c->s->n_kv_heads;
    a->by_index = kv_turns(c);
    a->inv_freq = w->d.inv_freq;
    cuda_rope_append(a, stream_of(w));
    for (int g = 0; a->k && !a->step && g < c->s->n_kv_heads; g++) {
        head_of(c, layer, g)->own.n += a->n;
        head_of(c, layer, g)->len += a->n;
    }
}

int layer_most(const KVCache *c, int layer) {
    int most = 0;
    for (int g = 0; g < c->s->n_kv_heads; g++)
        if (kv_len(c, layer, g) > most) most = kv_len(c, layer, g);
    return most;
}

float *parts_room(KVWork *w, size_t floats) {
    w->d.parts = (float *)work_grow(w, w->d.parts, &w->d.parts_bytes, floats * sizeof(float),
                                    "partial attention results");
    return floats ? w->d.parts : NULL;
}

// query rows of the feed that lie among its last window_cap go to the window buffer
static void window_keep(KVWork *w, const KVDeviceRows *r) {
    size_t row = (size_t)w->s->n_heads * w->s->head_dim;
    int start = w->feed_n > w->window_cap ? w->feed_n - w->window_cap : 0,
        from = r->first < start ? start - r->first : 0;
    if (from >= r->n) return;
    mem_copy(w->mem, window_row(w, w->window_cap + r->first + from - start),
             r->q16 + (size_t)from * row, (size_t)(r->n - from) * row * sizeof *r->q16);
    for (int i = from; i < r->n; i++)
        w->window_pos[r->first + i - start] = (int32_t)(r->pos + i);
    w->window_rows = r->first + r->n - start;
}

// ---------------------------------------------------------------------------
// A sparse feed

void device_sparse_reserve(KVWork *w, const Method *m, int len, int chunk) {
    size_t bytes = device_sparse_bytes(w->s, m, len, chunk), heads = (size_t)w->s->n_heads;
    DeviceSparse *d = w->d.sparse;
    if (!d) {
        d = w->d.sparse = (DeviceSparse *)xrealloc(NULL, sizeof *d);
        memset(d, 0, sizeof *d);
        w->sparse_head = (HeadPattern *)xrealloc(NULL, heads * sizeof *w->sparse_head);
    }
    d->chunk = chunk;
    if (bytes <= d->bytes) return;
    mem_give(w->mem, d->mem, d->bytes);
    d->bytes = bytes;
    d->mem = (char *)mem_take(w->mem, bytes, 1, "lists of sparse attention");
}

const SparseLists *device_sparse_lists(const KVWork *w) { return &w->d.sparse->lists; }

static bool some_head(const KVWork *w, HeadKind kind) {
    for (int h = 0; h < w->s->n_heads; h++) if (w->sparse_head[h].kind == kind) return true;
    return false;
}

void kv_device_plan(KVCache *c, KVWork *w, int layer, const uint16_t *q16, int rows) {
    const AttnShape *s = c->s;
    const Method *m = &c->method;
    DeviceSparse *d = w->d.sparse;
    SparsePlan *p = &d->lists.plan;
    size_t H = (size_t)s->n_heads, hd = (size_t)s->head_dim;
    int most = layer_most(c, layer), G = s->n_kv_heads;
    int64_t *all = c->building ? &c->base->all_pairs : &c->all_pairs;
    sparse_carve(w->s, m, most, d->chunk, (uintptr_t)d->mem, d);
    method_heads(m, layer, s->n_heads, w->sparse_head);
    if (layer == w->d.from) {
        const PatternFile *file = m->pattern;
        mem_put(w->mem, d->pattern, file ? file->head : w->sparse_head,
                (file ? (size_t)file->n_layers : 1) * H * sizeof *d->pattern);
        CUDA_OK(cudaMemsetAsync(d->pairs, 0, sizeof *d->pairs, (cudaStream_t)stream_of(w)));
        w->d.pairs = c->building ? &c->base->pairs : &c->pairs;
    }
    for (int g = 0; g < G; g++)
        *all += s->n_heads / G * sparse_all_pairs(kv_len(c, layer, g), w->feed_n);
    LookRows last = { .list = device_lists(c, w, layer, 0, 1, most), .max_len = most, .q = q16,
                      .q_row = H * hd, .q_head = hd, .rows = rows, .n_heads = s->n_heads,
                      .n_lists = G, .head_dim = s->head_dim, .scale = s->scale };
    p->rows = last;
    p->pattern = d->pattern + (m->pattern ? (size_t)layer * H : 0);
    p->n = w->feed_n;
    p->dense_rows = m->prefill_size.dense_rows;
    cuda_sparse_plan(p, some_head(w, HEAD_VERTICAL_SLASH), some_head(w, HEAD_BLOCK_SPARSE),
                     stream_of(w));
}

// the lists of a chunk's rows, and attention to them
static void sparse_attend(KVWork *w, const KVDeviceRows *r, CudaAttend *a) {
    SparseLists *l = &w->d.sparse->lists;
    CHECK(r->n <= w->d.sparse->chunk, "a chunk of %d rows in room for %d", r->n,
          w->d.sparse->chunk);
    l->q = r->q16;
    l->first = r->first;
    l->n = r->n;
    cuda_sparse_lists(l, some_head(w, HEAD_BLOCK_SPARSE), stream_of(w));
    a->after = w->feed_n - r->first - r->n;
    a->block = l->block;
    a->tile = l->tile;
    a->column = l->column;
    a->pairs = w->d.sparse->pairs;
}

void kv_device_counted(KVWork *w) {
    unsigned long long pairs;
    mem_get(w->mem, &pairs, w->d.sparse->pairs, sizeof pairs);
    *w->d.pairs += (int64_t)pairs;
}

void kv_device_chunk(KVCache *c, KVWork *w, int layer, const KVDeviceRows *r, bool sparse) {
    const AttnShape *s = c->s;
    int most = layer_most(c, layer);
    bool all = c->method.policy->every_query;
    if (w->window_cap) window_keep(w, r);
    if (!sparse && reads_chosen(c)) {
        device_read_rows(c, w, layer, r);
        return;
    }
    const KeyList *list =
        sparse ? device_lists_read(c, w, layer) : device_lists(c, w, layer, 0, 1, most);
    CudaAttend a = { .list = list, .most = most, .q = r->q, .n = r->n, .act = r->act,
                     .act_ld = (size_t)padded(s->n_heads * s->head_dim),
                     .lse2 = all ? w->lse2 + r->first : NULL, .lse_ld = (size_t)w->lse2_ld,
                     .parts = parts_room(w, cuda_attend_parts(s, r->n, most, sparse)) };
    if (sparse) sparse_attend(w, r, &a);
    cuda_attend(s, &a, stream_of(w));
    if (all) device_queries(c, w, layer, r, sparse);
}

// ---------------------------------------------------------------------------
// A step

// entries of every list of the call that name the same rows of one base
static int shared_entries(const StepOf *of, int n) {
    const KVCache *c = of[0].kv;
    int least = c->base && n > 1 ? INT_MAX : 0;
    for (int i = 0; least && i < n; i++) {
        const KVCache *o = of[i].kv;
        if (o->base != c->base) return 0;
        for (int h = 0; h < o->n_heads; h++) {
            if (o->head[h].live) return 0;
            if (base_rows(o, &o->head[h]) < least) least = base_rows(o, &o->head[h]);
        }
    }
    return least;
}

// lengths a step is split for: so few that a graph of it serves many steps
static int step_bucket(int len) {
    int unit = 64;
    while (unit * 16 < len) unit *= 2;
    return CEIL_DIV(len, unit) * unit;
}

size_t device_parts_bytes(const AttnShape *s, int len, int n, int batch) {
    enum { ROWS = 512 };                        // of a chunk, where nothing else is said
    size_t step = cuda_step_parts(s, batch, step_bucket(len + 1)),
           feed = n ? cuda_attend_parts(s, n < ROWS ? n : (int)ROWS, len, false) : 0;
    return (step > feed ? step : feed) * sizeof(float);
}

void kv_device_begin(const StepOf *of, int n, KVWork *w) {
    const KVCache *c = of[0].kv;
    int layers = c->n_layers, G = c->s->n_kv_heads, most = 0;
    size_t at;
    if (!layers) return;
    device_wait(w->device);
    w->d.caches = n;
    lists_room(w, layers * n * G);
    for (int i = 0; i < n; i++) {
        KVCache *o = of[i].kv;
        if (w->d.from == 0) o->named = o->dropped = 0;
        for (int h = w->d.from * G; h < w->d.to * G; h++) {
            head_room(o, &o->head[h], 1);
            device_pages_room(o, &o->head[h], o->head[h].len + 1);
        }
        for (int l = w->d.from; l < w->d.to; l++) lists_fill(o, w, l, i);
        if (kv_max_len(o) + 1 > most) most = kv_max_len(o) + 1;
    }
    w->d.most = step_bucket(most);
    w->d.shared = shared_entries(of, n);
    parts_room(w, cuda_step_parts(c->s, n, w->d.most));
    at = device_at(c, w, w->d.from, 0);
    lists_send(w, at, (size_t)(w->d.to - w->d.from) * n * G);
}

// keys are read in one way, or chosen by one rule
static bool reads_alike(const KVCache *a, const KVCache *b) {
    const Sizes *x = &a->method.size, *y = &b->method.size;
    if (reads_chosen(a) != reads_chosen(b) || kv_turns(a) != kv_turns(b)) return false;
    return !reads_chosen(a) || (a->method.policy == b->method.policy && x->budget == y->budget &&
                                x->page == y->page && x->group == y->group);
}

static bool steps_looked_at(const StepOf *of, int n) {
    for (int i = 0; i < n; i++) {
        const Method *m = &of[i].kv->method;
        if (policy_looks(m->policy) && (m->size.steps || m->policy->observe)) return true;
    }
    return false;
}

void kv_device_step(const StepOf *of, int n, KVWork *w, int layer, const KVDeviceRows *r) {
    const AttnShape *s = of[0].kv->s;
    size_t heads = (size_t)s->n_heads, row = heads * s->head_dim, ld = (size_t)w->scores_ld,
           act_ld = (size_t)padded((int)row);
    for (int i = 0, m; i < n; i += m) {
        int most = 0;
        for (m = 1; i + m < n && reads_alike(of[i].kv, of[i + m].kv);) m++;
        if (reads_chosen(of[i].kv)) {
            device_read_step(of, i, m, w, layer, r);
            continue;
        }
        bool looked_at = steps_looked_at(of + i, m);
        for (int j = i; j < i + m; j++)
            if (layer_most(of[j].kv, layer) + 1 > most) most = layer_most(of[j].kv, layer) + 1;
        CudaStep a = { .list = device_lists(of[i].kv, w, layer, i, m, most),
                       .most = w->d.most, .shared = w->d.shared, .q = r->q + i * row,
                       .parts = w->d.parts, .act = r->act + i * act_ld, .act_ld = act_ld,
                       .lse2 = looked_at ? w->all_scores + n * heads * ld + i * heads : NULL,
                       .scores = looked_at ? w->all_scores + i * heads * ld : NULL,
                       .ld_scores = ld, .n = m };
        cuda_step(s, &a, stream_of(w));
    }
    for (int i = 0; i < n; i++) device_policy_step(of[i].kv, w, layer, i, n, of[i].pos + 1);
}

size_t kv_device_end(const StepOf *of, int n, KVWork *w) {
    const KVCache *c = of[0].kv;
    int G = c->s->n_kv_heads;
    size_t read = 0, at = device_at(c, w, w->d.from, 0);
    bool came_back = false;
    for (int i = 0; i < n; i++) {
        KVCache *o = of[i].kv;
        bool steps = o->method.size.steps;
        if (steps && !came_back)
            mem_get(w->mem, w->d.sent_list + at, w->d.list + at,
                    (size_t)(w->d.to - w->d.from) * n * G * sizeof *w->d.list);
        came_back = came_back || steps;
        for (int l = w->d.from; steps && l < w->d.to; l++)
            lists_back(o, w, l, i, 1, of[i].pos + 1);
        for (int h = w->d.from * G; !steps && h < w->d.to * G; h++) {
            o->head[h].len++;
            o->head[h].own.n++;
        }
        for (int h = w->d.from * G; h < w->d.to * G; h++)
            read += (size_t)(o->head[h].len - (i ? w->d.shared : 0));
    }
    return read * kv_row_bytes(c->s);
}

bool kv_step_repeats(const KVCache *c) {
    const Policy *p = c->method.policy;
    return !c->method.size.steps && !p->observe && p->at_read == READ_ALL && !kv_turns(c);
}

void kv_device_key(const StepOf *of, const KVWork *w, int *lists, int *most, int *shared,
                   int *turns, const void **list, const void **parts) {
    *lists = of[0].kv->s->n_kv_heads;
    *most = w->d.most;
    *shared = w->d.shared;
    *turns = kv_turns(of[0].kv);
    *list = w->d.list;
    *parts = w->d.parts;
}

// ---------------------------------------------------------------------------
// Settling and release

// rows of n lists, those of list i to a block of its own, to[i] of lens[i] rows
static void gather(Mem *mem, const AttnShape *s, const KeyList *list, char *const *to, int n) {
    int most = 0;
    for (int i = 0; i < n; i++) most = list[i].len > most ? list[i].len : most;
    if (!most) return;
    KeyList *lists = TAKE(mem, KeyList, n, "key lists");
    char **places = TAKE(mem, char *, n, "key lists");
    mem_put(mem, lists, list, (size_t)n * sizeof *list);
    mem_put(mem, places, to, (size_t)n * sizeof *to);
    cuda_gather(lists, n, most, s->head_dim, places, device_stream((Device *)mem->device));
    mem_give(mem, lists, (size_t)n * sizeof *list);
    mem_give(mem, places, (size_t)n * sizeof *to);
}

void device_settle(KVCache *c, KVWork *w, int layer) {
    int G = c->s->n_kv_heads, n = 0;
    KeyList *list = (KeyList *)xrealloc(NULL, (size_t)G * sizeof *list);
    char **to = (char **)xrealloc(NULL, (size_t)G * sizeof *to);
    for (int g = 0; g < G; g++) {               // what was evicted from is copied ...
        Head *h = head_of(c, layer, g);
        if (!h->live || h->len == h->own.n) continue;
        Rows *base = base_of(c, h);
        *base = rows_take(c->base->rows, c->s, h->len);
        base->n = h->len;
        list[n] = head_list(c, h);
        list[n].split = 0;
        list[n].k[0] = list[n].v[0] = list[n].pos[0] = NULL;
        to[n++] = base->mem;
    }
    gather(c->mem, c->s, list, to, n);
    for (int g = 0; g < G; g++) {               // ... and all else moves
        Head *h = head_of(c, layer, g);
        Rows *base = base_of(c, h);
        if (h->len == h->own.n && c->base->rows != c->mem) {
            *base = rows_take(c->base->rows, c->s, h->len);
            base->n = h->len;
            if (h->len) rows_copy(c->mem, c->s, base, 0, &h->own, 0, h->len);
        }
        if (c->base->sums) {
            Sums kept = { h->state, h->cap };
            c->base->sums[h - c->head] = kept;
            h->state = NULL;
        }
        if (h->len == h->own.n && c->base->rows == c->mem) {
            *base = h->own;
            memset(&h->own, 0, sizeof h->own);
        } else {
            rows_give(c->mem, c->s, &h->own);
        }
        list_drop(c, h, false);
        if (h->state) list_trim(c, h);
        if (c->reserve) h->own = rows_take(c->mem, c->s, c->reserve);
    }
    (void)w;
    free(list);
    free(to);
}

typedef struct { int in_base, own; bool base_too, own_too; Rows base_to, own_to; } Release;

// what of one head goes where, and the lists that take it there
static Release release_plan(KVCache *c, Head *h, KeyList *list, char **to, int *n, IntVec *seen) {
    const Rows *base = base_of(c, h);
    Release r;
    memset(&r, 0, sizeof r);
    const int32_t *live = ints_seen(c->mem, h->live, h->len, seen);
    while (r.in_base < h->len && live[r.in_base] < base->n) r.in_base++;
    r.own = h->len - r.in_base;
    r.base_too = base_alone(c) && r.in_base < base->n;
    r.own_too = r.own < h->own.n || h->own.cap > r.own + c->reserve;
    if (r.base_too) {
        r.base_to = rows_take(c->base->rows, c->s, r.in_base);
        r.base_to.n = r.in_base;
        list[*n] = head_list(c, h);
        list[*n].len = r.in_base;
        to[(*n)++] = r.base_to.mem;
    }
    if (r.own_too) {
        r.own_to = rows_take(c->mem, c->s, r.own);
        r.own_to.n = r.own;
        list[*n] = head_list(c, h);
        list[*n].live += r.in_base;
        list[*n].len = r.own;
        to[(*n)++] = r.own_to.mem;
    }
    return r;
}

static void release_head(KVCache *c, Head *h, Release *r) {
    Rows *base = base_of(c, h);
    void *stream = device_stream((Device *)c->mem->device);
    if (r->base_too) {
        rows_give(c->base->rows, c->s, base);
        *base = r->base_to;
        cuda_count(h->live, 0, r->in_base, stream);
    }
    if (r->own_too) {                           // with room behind it
        int room = r->own + c->reserve;
        Rows roomy = rows_take(c->mem, c->s, room < h->own.cap ? room : h->own.cap);
        roomy.n = r->own;
        if (r->own) rows_copy(c->mem, c->s, &roomy, 0, &r->own_to, 0, r->own);
        rows_give(c->mem, c->s, &h->own);
        rows_give(c->mem, c->s, &r->own_to);
        h->own = roomy;
    }
    cuda_count(h->live + r->in_base, base->n, r->own, stream);
    if (r->in_base == base->n) list_drop(c, h, false);
    list_trim(c, h);
}

// heads from .. of one part of the device
static int part_end(const KVCache *c, int from) {
    const Device *d = (const Device *)c->mem->device;
    int G = c->s->n_kv_heads, part = device_part_of(d, from / G), end = from;
    while (end < c->n_heads && device_part_of(d, end / G) == part) end += G;
    return end;
}

void device_release(KVCache *c) {
    size_t most = 2 * (size_t)c->n_heads;
    IntVec seen = { 0 };
    KeyList *list = (KeyList *)xrealloc(NULL, most * sizeof *list);
    char **to = (char **)xrealloc(NULL, most * sizeof *to);
    Release *plan = (Release *)xrealloc(NULL, (size_t)c->n_heads * sizeof *plan);
    for (int from = 0, end; from < c->n_heads; from = end) {
        int n = 0;
        end = part_end(c, from);
        head_use(c, from);
        for (int i = from; i < end; i++)
            if (has_dead(c, &c->head[i]))
                plan[i] = release_plan(c, &c->head[i], list, to, &n, &seen);
        gather(c->mem, c->s, list, to, n);
        for (int i = from; i < end; i++)
            if (has_dead(c, &c->head[i])) release_head(c, &c->head[i], &plan[i]);
    }
    free(seen.p);
    free(list);
    free(to);
    free(plan);
}

void device_gather(const KVCache *c, const Head *h, char *mem) {
    size_t bytes = (size_t)h->len * kv_row_bytes(c->s);
    head_use(c, (int)(h - c->head));
    Rows there = rows_take(c->mem, c->s, h->len);
    KeyList list = head_list(c, h);
    gather(c->mem, c->s, &list, &there.mem, 1);
    mem_get(c->mem, mem, there.mem, bytes);
    rows_give(c->mem, c->s, &there);
}
#endif
