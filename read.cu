// read.cu - rows chosen anew for every token: quest and topk evict nothing and read little.
//
//   quest   pages of rows by a bound on their scores          Tang et al., arXiv 2406.10774
//   topk    the B rows of most attention, found by reading all: what any choice can reach
//
// From the second feed on every token has a list of its own per KV head, or per query head
// (--group query-head; the rows stay where they are). SCBench's code (--preset harness) lets the
// queries of a feed score pages with the sum of their signs.
#include "cache.h"
#include "kernels.h"

// Per thread, for a list of len entries: choices and what leads to them
typedef struct {
    float *scores;              // (group, ld)
    float *score;               // (ld) joined over the group
    uint32_t *rank;             // (ld)
    int32_t *live;              // (ld) rows chosen
    float *parts;               // (panels, group, hd + 2)
    float *out;                 // (group, hd)
    float *q, *sign;            // (group, hd) as products see it; sum of signs of a feed's queries
    uint8_t *keep;              // (ld)
    size_t ld;
} Reader;

static size_t reader_at(const AttnShape *s, int group, int len, char *base, Reader *r) {
    size_t panels = (size_t)CEIL_DIV(len, PANEL) + 1, ld = panels * PANEL, at = 0;
    size_t hd = (size_t)s->head_dim, heads = (size_t)group;
    r->ld = ld;
#define CARVE(field, type, count)                                                                  \
    (r->field = (type *)(void *)(base + at),                                                       \
     at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(scores, float, heads * ld);
    CARVE(score, float, ld);
    CARVE(rank, uint32_t, ld);
    CARVE(live, int32_t, ld);
    CARVE(parts, float, panels * heads * (hd + 2));
    CARVE(out, float, heads * hd);
    CARVE(q, float, heads * hd);
    CARVE(sign, float, heads * hd);
    CARVE(keep, uint8_t, ld);
#undef CARVE
    return at;
}

size_t reader_bytes(const AttnShape *s, int group, int len) {
    static char base[1];                        // only offsets are wanted
    Reader r;
    return reader_at(s, group, len, base, &r);
}

// ---------------------------------------------------------------------------
// Pages: element-wise max and min of the keys of `page` consecutive entries. Complete ones are
// kept; a token always reads the one it is in.

static float element(const AttnShape *s, const void *row, int i) {
    return s->elem == 4 ? ((const float *)row)[i] : bf16_f32(((const uint16_t *)row)[i]);
}
static void element_set(const AttnShape *s, void *row, int i, float x) {
    if (s->elem == 4) ((float *)row)[i] = x;
    else ((uint16_t *)row)[i] = f32_bf16(x);    // exact: x is such an element
}

// entries [from, to) of a list -> max (hd), min (hd)
static void page_make(const AttnShape *s, const KeyList *list, int from, int to, char *page) {
    size_t row = (size_t)s->head_dim * s->elem;
    for (int j = from; j < to; j++) {
        int number = list->live ? list->live[j] : j, own = number >= list->split;
        size_t at = (size_t)(number - (own ? list->split : 0)) * row;
        const char *k = (const char *)list->k[own] + at;
        for (int i = 0; i < s->head_dim; i++) {
            float x = element(s, k, i);
            if (j == from || x > element(s, page, i)) element_set(s, page, i, x);
            if (j == from || x < element(s, page + row, i)) element_set(s, page + row, i, x);
        }
    }
}

void pages_complete(KVCache *c, Head *h) {
    int size = c->method.size.page, want = h->len / size, room = want + c->method.size.signs;
    size_t one = page_bytes(c->s);
    KeyList list = head_list(c, h);
    if (room > h->page_cap) {
        int cap = want + want / 8 + 8;
        char *more = (char *)mem_take(c->mem, (size_t)cap, one, "bounds of pages");
        if (h->n_pages) memcpy(more, h->pages, (size_t)h->n_pages * one);
        mem_give(c->mem, h->pages, (size_t)h->page_cap * one);
        h->pages = more;
        h->page_cap = cap;
    }
    for (; h->n_pages < want; h->n_pages++)
        page_make(c->s, &list, h->n_pages * size, (h->n_pages + 1) * size,
                  h->pages + (size_t)h->n_pages * one);
    if (c->method.size.signs && want * size < h->len)   // of the page that is not full, for now
        page_make(c->s, &list, want * size, h->len, h->pages + (size_t)want * one);
}

// the largest q . k a page can hold: sum over channels of max(q max, q min)
static float page_bound(const AttnShape *s, const float *q, const char *page) {
    const char *low = page + (size_t)s->head_dim * s->elem;
    float lane[LANES] = { 0 };
    for (int i = 0; i < s->head_dim; i++) {
        float a = q[i] * element(s, page, i), b = q[i] * element(s, low, i);
        lane[i % LANES] += a > b ? a : b;
    }
    return lanes_sum(lane);
}

// The page that holds the token is read, and of the others those of the largest bounds, B / page in
// all and at least 3. Differs: the paper's kernel forces that page, SCBench's code none.
static int choose_pages(const KVCache *c, const Head *h, int seen, int group, Reader *r) {
    const Sizes *z = &c->method.size;
    size_t one = page_bytes(c->s);
    int pages = CEIL_DIV(seen, z->page), k = z->budget / z->page, n = 0;
    if (k < 3) k = 3;
    if (seen <= z->budget || pages <= k) return seen;
    for (int g = 0; g < group; g++)
        for (int p = 0; p < pages - 1; p++)
            r->scores[(size_t)g * r->ld + p] =
                page_bound(c->s, r->q + (size_t)g * c->s->head_dim, h->pages + (size_t)p * one);
    group_join(z->group, r->scores, r->ld, group, pages - 1, r->score);
    keep_top(r->score, r->rank, pages - 1, k - 1, false, r->keep);
    r->keep[pages - 1] = 1;
    for (int p = 0; p < pages; p++)
        for (int j = p * z->page; r->keep[p] && j < (p + 1) * z->page && j < seen; j++)
            r->live[n++] = j;
    return n;
}

#ifdef SCB_CUDA
// grid (pages, lists), a thread per channel
__global__ static void pages_k(const KeyList *list, const DeviceHead *head, int page, int from,
                               int hd) {
    const KeyList *l = &list[blockIdx.y];
    int p = from + blockIdx.x;
    if ((p + 1) * page > l->len) return;
    uint16_t *to = head[blockIdx.y].pages + (size_t)p * 2 * hd;
    for (int i = threadIdx.x; i < hd; i += blockDim.x) {
        float high = 0, low = 0;
        for (int j = p * page; j < (p + 1) * page; j++) {
            float x = bf16_f32(((const uint16_t *)list_row(l, l->k, j, 2 * (size_t)hd))[i]);
            high = j == p * page || x > high ? x : high;
            low = j == p * page || x < low ? x : low;
        }
        to[i] = f32_bf16(high);
        to[hd + i] = f32_bf16(low);
    }
}

void cuda_pages(const KeyList *list, const DeviceHead *head, int n_lists, int page, int from,
                int to, int head_dim, void *stream) {
    if (to > from)
        LAUNCH(pages_k, dim3(to - from, n_lists), 128, 0, stream, list, head, page, from, head_dim);
}

// one query head's numbers join those of the heads before it
__device__ static float join_next(Group rule, float y, float x, int k, int heads) {
    y = k == 0 ? x : rule == GROUP_MAX ? (x > y ? x : y) : y + x;
    bool mean = rule == GROUP_MEAN || rule == GROUP_QUERY_HEAD;
    return k == heads - 1 && mean ? y * (1.0f / (float)heads) : y;
}

enum { READ_THREADS = 256 };

// entries that token i sees of the list that list l reads
__device__ static int token_sees(const Reading *a, int l, int i) {
    return a->list[l / a->share].len - a->behind - a->n + i + 1;
}

// grid (pages / 16, n * lists): half a warp holds a page, its 16 lanes as page_bound does
__global__ static void read_bounds_k(Reading a, const uint16_t *q) {
    int row = blockIdx.y, i = row / a.n_lists, l = row % a.n_lists, lane = threadIdx.x % LANES;
    int p = blockIdx.x * (READ_THREADS / LANES) + threadIdx.x / LANES, hd = a.head_dim;
    int seen = token_sees(&a, l, i), n = CEIL_DIV(seen, a.page), k = a.budget / a.page;
    int heads = a.n_heads / a.n_lists;
    if (k < 3) k = 3;
    bool all = seen <= a.budget || n <= k;
    if (p == 0 && lane == 0) {
        Choice c = { all ? 0 : n - 1, k - 1, n };
        a.choice[row] = c;
    }
    float y = 0;
    const uint16_t *high = a.head[l / a.share].pages + (size_t)(p < n - 1 ? p : 0) * 2 * hd,
                   *low = high + hd;
    for (int h = 0; h < heads && !all; h++) {
        const uint16_t *x = q + ((size_t)i * a.n_heads + l * heads + h) * hd;
        float sum = 0;
        for (int c = lane; c < hd && p < n - 1; c += LANES) {
            float u = bf16_f32(x[c]) * bf16_f32(high[c]), v = bf16_f32(x[c]) * bf16_f32(low[c]);
            sum += u > v ? u : v;
        }
        y = join_next(a.group, y, half_warp_sum(sum), h, heads);
    }
    if (lane == 0 && !all && p < n - 1) a.score[row * a.ld + p] = y;
}

void cuda_read_bounds(const Reading *a, const uint16_t *q, void *stream) {
    int most = CEIL_DIV(a->max_len, a->page);
    if (a->n)
        LAUNCH(read_bounds_k, dim3(CEIL_DIV(most, READ_THREADS / LANES), a->n * a->n_lists),
               READ_THREADS, 0, stream, *a, q);
}
#endif

// SCBench's code: with S the sum of the signs of a query head's n queries in the feed (0 counts as
// -1), a page's score under query q is sum over channels of q S max_j(k_j S), its keys up to the
// feed's end. The min(B, len) / page best, at least 3, are read as far as the token may see them.
// Where it could see none of them, that code reads everything alike, what is to come included; here
// the token's own page is read.
static int choose_signs(const KVCache *c, const Head *h, int seen, Reader *r) {
    const Sizes *z = &c->method.size;
    size_t one = page_bytes(c->s), low = (size_t)c->s->head_dim * c->s->elem;
    int pages = CEIL_DIV(h->len, z->page), k = (h->len < z->budget ? h->len : z->budget) / z->page,
        n = 0;
    if (k < 3) k = 3;
    if (k >= pages) return seen;
    for (int p = 0; p < pages; p++) {
        const char *page = h->pages + (size_t)p * one;
        float lane[LANES] = { 0 };
        for (int i = 0; i < c->s->head_dim; i++) {
            float s = r->sign[i], top = s * element(c->s, s < 0 ? page + low : page, i);
            lane[i % LANES] += (r->q[i] * s) * top;
        }
        r->score[p] = lanes_sum(lane);
    }
    keep_top(r->score, r->rank, pages, k, false, r->keep);
    for (int p = 0; p * z->page < seen; p++)
        for (int j = p * z->page; r->keep[p] && j < (p + 1) * z->page && j < seen; j++)
            r->live[n++] = j;
    for (int j = (seen - 1) / z->page * z->page; !n && j < seen; j++) r->live[j % z->page] = j;
    return n ? n : (seen - 1) % z->page + 1;
}

// sum (hd) of the signs of n queries of one head, ld apart, as products see them
static void add_signs(const AttnShape *s, const float *q, size_t ld, int n, float *sum) {
    for (int i = 0; i < s->head_dim; i++) sum[i] = 0;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < s->head_dim; i++) {
            float x = q[(size_t)j * ld + i];
            sum[i] += (s->kind == MUL_F32 ? x : round_bf16(x)) > 0 ? 1 : -1;
        }
}

// ---------------------------------------------------------------------------
// One token under one KV head, or one query head of it

// attention of q (group, hd) over a list: parts, then out and lse2; scores (group, ld) or NULL
static void read_list(const AttnShape *s, const KeyList *list, const float *q, Reader *r,
                      float *scores, float *out, float *lse2, void *scratch) {
    int group = s->n_heads / s->n_kv_heads, panels = CEIL_DIV(list->len, PANEL);
    size_t part = (size_t)group * ((size_t)s->head_dim + 2);
    for (int p = 0; p < panels; p++) {
        StepRows t = { q, r->parts + (size_t)p * part, scores, r->ld };
        attn_step_panel(s, list, p, &t, 1, scratch);
    }
    attn_fold(s, r->parts, panels, out, lse2);
}

// the B rows of largest joined attention
static int choose_rows(const KVCache *c, const AttnShape *s, const KeyList *list, const float *q,
                       int group, Reader *r, void *scratch) {
    const Sizes *z = &c->method.size;
    float lse2[STRIP_ROWS];
    int n = 0;
    if (list->len <= z->budget) return list->len;
    read_list(s, list, q, r, r->scores, r->out, lse2, scratch);
    for (int g = 0; g < group; g++)
        for (int j = 0; j < list->len; j++)
            r->scores[(size_t)g * r->ld + j] = fexp2(r->scores[(size_t)g * r->ld + j] - lse2[g]);
    group_join(z->group, r->scores, r->ld, group, list->len, r->score);
    keep_top(r->score, r->rank, list->len, z->budget, false, r->keep);
    for (int j = 0; j < list->len; j++) if (r->keep[j]) r->live[n++] = j;
    return n;
}

#ifdef SCB_CUDA
// grid (entries, n * lists)
__global__ static void read_scores_k(Reading a, const float *scores, size_t scores_ld,
                                     const float *lse2) {
    int row = blockIdx.y, i = row / a.n_lists, l = row % a.n_lists, j = (int)thread_item();
    int seen = token_sees(&a, l, i), heads = a.n_heads / a.n_lists;
    bool all = seen <= a.budget;
    float y = 0;
    if (j == 0) {
        Choice c = { all ? 0 : seen, a.budget, seen };
        a.choice[row] = c;
    }
    if (all || j >= seen) return;
    for (int k = 0; k < heads; k++) {
        size_t h = (size_t)i * a.n_heads + l * heads + k;
        y = join_next(a.group, y, fexp2(scores[h * scores_ld + j] - lse2[h]), k, heads);
    }
    a.score[row * a.ld + j] = y;
}

void cuda_read_scores(const Reading *a, const float *scores, size_t scores_ld, const float *lse2,
                      void *stream) {
    if (a->n)
        LAUNCH(read_scores_k, dim3(blocks_for(a->max_len, 256), a->n * a->n_lists), 256, 0, stream,
               *a, scores, scores_ld, lse2);
}

// grid n * lists: the rows of kept pages in order; a list that is read whole stays as it is
__global__ static void read_lists_k(Reading a) {
    int row = blockIdx.x, i = row / a.n_lists, l = row % a.n_lists, pages = 0;
    Choice c = a.choice[row];
    KeyList list = a.list[l / a.share];
    int seen = token_sees(&a, l, i);
    int32_t *to = a.rows + row * a.rows_ld;
    const uint8_t *keep = a.keep + row * a.ld;
    for (int at = 0; c.n && at < c.len; at += READ_THREADS) {
        int p = at + threadIdx.x;
        uint32_t total, place = block_places(p < c.len && keep[p], false, &total) + pages;
        for (int j = p * a.page; p < c.len && keep[p] && j < (p + 1) * a.page && j < seen; j++)
            to[place * a.page + j - p * a.page] = list.live ? list.live[j] : j;
        pages += (int)total;
    }
    if (threadIdx.x) return;
    list.len = seen;
    if (c.n) {
        list.live = to;
        // only the newest page, which is always read, may be incomplete
        list.len = pages * a.page - (c.len * a.page - seen);
    }
    a.out[row] = list;
}

void cuda_read_lists(const Reading *a, void *stream) {
    if (!a->n) return;
    cuda_keep_top(a->score, a->ld, a->choice, a->n * a->n_lists, false, a->keep, NULL, stream);
    LAUNCH(read_lists_k, a->n * a->n_lists, READ_THREADS, 0, stream, *a);
}
#endif

static void read_token(KVCache *c, const AttnShape *s, const Head *h, int seen, const float *q,
                       float *out, Reader *r, void *scratch) {
    int group = s->n_heads / s->n_kv_heads, n;
    KeyList list = head_list(c, h);
    list.len = seen;
    for (int i = 0; i < group * s->head_dim; i++)
        r->q[i] = s->kind == MUL_F32 ? q[i] : round_bf16(q[i]);
    n = c->method.size.signs                      ? choose_signs(c, h, seen, r)
        : c->method.policy->at_read == READ_PAGES ? choose_pages(c, h, seen, group, r)
                                                  : choose_rows(c, s, &list, q, group, r, scratch);
    if (n < seen) {
        for (int j = 0; list.live && j < n; j++) r->live[j] = list.live[r->live[j]];
        list.live = r->live;
        list.len = n;
    }
    read_list(s, &list, q, r, NULL, out, NULL, scratch);
}

void read_rows(KVCache *c, KVWork *w, int layer, int n, const float *q, float *out) {
    const AttnShape *s = c->s;
    int G = s->n_kv_heads, group = reader_heads(&c->method, s), longest = 0;
    int lists = s->n_heads / group;             // KV heads, or query heads that choose alone
    size_t row = (size_t)s->n_heads * s->head_dim, one = w->reader_bytes / (size_t)w->threads;
    AttnShape shape = *s;
    shape.n_kv_heads = lists;
    for (int g = 0; g < G; g++) {
        Head *h = head_of(c, layer, g);
        if (c->method.policy->at_read == READ_PAGES) pages_complete(c, h);
        if (h->len > longest) longest = h->len;
    }
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < n * lists; item++) {
        int i = item / lists, g = item % lists;
        const Head *h = head_of(c, layer, g / (lists / G));
        size_t at = (size_t)i * row + (size_t)(g * group) * s->head_dim;
        Reader r;
        reader_at(s, group, longest, w->readers + one * (size_t)omp_get_thread_num(), &r);
        if (c->method.size.signs) add_signs(s, q + (size_t)g * s->head_dim, row, n, r.sign);
        read_token(c, &shape, h, h->len - n + i + 1, q + at, out + at, &r, thread_scratch(w));
    }
}

#ifdef SCB_CUDA
// ---------------------------------------------------------------------------
// The same on the device: lists of rows are made for a few tokens at a time, and a token then
// attends to its lists as a branch of a step does.
enum { READ_TOKENS = 8 };

typedef struct {                // for `tokens` tokens, of which `at_once` choose together
    KeyList *out;               // (tokens, lists)
    int32_t *rows;              // (tokens, lists, rows_ld)
    KeyList *whole;             // (at_once, lists) all that a token sees, for topk as the last two
    float *score;               // (at_once, lists, ld) by page, or by row
    uint8_t *keep;
    Choice *choice;             // (at_once, lists)
    float *scores;              // (at_once, H, ld)
    float *lse2;                // (at_once, H)
    size_t ld, rows_ld;
} DeviceReader;

static size_t device_reader_at(const AttnShape *s, const Method *m, int len, int tokens,
                               int at_once, char *base, DeviceReader *r) {
    const Sizes *z = &m->size;
    bool pages = m->policy->at_read == READ_PAGES;
    size_t lists = (size_t)(s->n_heads / reader_heads(m, s)), heads = (size_t)s->n_heads,
           n = (size_t)at_once, whole = pages ? 0 : n, at = 0;
    int least = pages ? 3 * z->page : 1, most = z->budget > least ? z->budget : least;
    r->rows_ld = (size_t)(most < len ? most : len);
    r->ld = (size_t)(pages ? CEIL_DIV(len, z->page) : len);
#define CARVE(field, type, count)                                                                  \
    (r->field = (type *)(void *)(base + at),                                                       \
     at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(out, KeyList, (size_t)tokens * lists);
    CARVE(rows, int32_t, (size_t)tokens * lists * r->rows_ld);
    CARVE(whole, KeyList, whole * lists);
    CARVE(score, float, n * lists * r->ld);
    CARVE(keep, uint8_t, n * lists * r->ld);
    CARVE(choice, Choice, n * lists);
    CARVE(scores, float, whole * heads * r->ld);
    CARVE(lse2, float, whole * heads);
#undef CARVE
    return at;
}

size_t device_read_bytes(const AttnShape *s, const Method *m, int len, int n, int batch) {
    static char base[1];                        // only offsets are wanted
    DeviceReader r;
    return device_reader_at(s, m, len, n ? READ_TOKENS : batch, n ? READ_TOKENS : 1, base, &r);
}

static DeviceReader device_reader(const KVCache *c, const KVWork *w, int len, int tokens,
                                  int at_once) {
    DeviceReader r;
    size_t bytes = device_reader_at(c->s, &c->method, len, tokens, at_once, w->d.rule, &r);
    CHECK(bytes <= w->d.rule_bytes, "lists of %zu bytes where there are %zu", bytes,
          w->d.rule_bytes);
    return r;
}

void device_pages_room(KVCache *c, Head *h, int len) {
    size_t one = page_bytes(c->s);
    if (c->method.policy->at_read != READ_PAGES || !reads_chosen(c)) return;
    int want = len / c->method.size.page, cap = want + want / 8 + 8;
    if (want <= h->page_cap) return;
    char *more = (char *)mem_take(c->mem, (size_t)cap, one, "bounds of pages");
    mem_copy(c->mem, more, h->pages, (size_t)h->n_pages * one);
    mem_give(c->mem, h->pages, (size_t)h->page_cap * one);
    h->pages = more;
    h->page_cap = cap;
}

// bounds of the pages that are complete when the lists of cache i have up to len entries
static void device_pages(KVCache *c, KVWork *w, int layer, int i, int len) {
    size_t at = device_at(c, w, layer, i);
    int page = c->method.size.page, from = INT_MAX;
    if (c->method.policy->at_read != READ_PAGES) return;
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        if (h->n_pages < from) from = h->n_pages;
        h->n_pages = len / page;
    }
    cuda_pages(w->d.list + at, w->d.head + at, c->s->n_kv_heads, page, from, len / page,
               c->s->head_dim, stream_of(w));
}

static AttnShape read_shape(const KVCache *c) {
    AttnShape s = *c->s;
    s.n_kv_heads = s.n_heads / reader_heads(&c->method, c->s);
    return s;
}

// lists of n tokens of cache i, whose longest list has len entries, to r->out and r->rows from
// token `slot` on
static void device_choose(KVCache *c, KVWork *w, int layer, int i, int len, int n, int behind,
                          const float *q, const uint16_t *q16, const DeviceReader *r, int slot) {
    const Sizes *z = &c->method.size;
    AttnShape s = read_shape(c);
    size_t at = device_at(c, w, layer, i), to = (size_t)slot * s.n_kv_heads;
    bool pages = c->method.policy->at_read == READ_PAGES;
    cudaStream_t stream = (cudaStream_t)stream_of(w);
    Reading a = { .list = w->d.list + at, .head = w->d.head + at, .n = n, .behind = behind,
                  .n_heads = s.n_heads, .n_lists = s.n_kv_heads,
                  .share = s.n_kv_heads / c->s->n_kv_heads, .head_dim = s.head_dim, .max_len = len,
                  .budget = z->budget, .page = pages ? z->page : 1, .group = z->group,
                  .score = r->score, .keep = r->keep, .ld = r->ld, .choice = r->choice,
                  .rows = r->rows + to * r->rows_ld, .rows_ld = r->rows_ld, .out = r->out + to };
    if (pages) {
        cuda_read_bounds(&a, q16, stream);
    } else {
        a.out = r->whole;
        CUDA_OK(cudaMemsetAsync(a.choice, 0, (size_t)n * a.n_lists * sizeof *a.choice, stream));
        cuda_read_lists(&a, stream);
        CudaStep all = { .list = r->whole, .most = len, .q = q,
                         .parts = parts_room(w, cuda_step_parts(&s, n, len)), .lse2 = r->lse2,
                         .scores = r->scores, .ld_scores = r->ld, .n = n };
        cuda_step(&s, &all, stream);
        a.out = r->out + to;
        cuda_read_scores(&a, r->scores, r->ld, r->lse2, stream);
    }
    cuda_read_lists(&a, stream);
}

// tokens [from, from + n) of rows over the lists of r
static void device_read(const KVCache *c, KVWork *w, const DeviceReader *r, int len, int from,
                        int n, const KVDeviceRows *rows) {
    AttnShape s = read_shape(c);
    size_t row = (size_t)s.n_heads * s.head_dim, act_ld = (size_t)padded((int)row);
    int most = (int)r->rows_ld < len ? (int)r->rows_ld : len;
    CudaStep a = { .list = r->out, .most = most, .q = rows->q + (size_t)from * row,
                   .parts = parts_room(w, cuda_step_parts(&s, n, most)),
                   .act = rows->act + (size_t)from * act_ld, .act_ld = act_ld, .n = n };
    cuda_step(&s, &a, stream_of(w));
}

void device_read_rows(KVCache *c, KVWork *w, int layer, const KVDeviceRows *rows) {
    size_t row = (size_t)c->s->n_heads * c->s->head_dim;
    int len = layer_most(c, layer);
    DeviceReader r = device_reader(c, w, len, READ_TOKENS, READ_TOKENS);
    device_pages(c, w, layer, 0, len);
    for (int i = 0, n; i < rows->n; i += n) {
        n = rows->n - i < READ_TOKENS ? rows->n - i : READ_TOKENS;
        device_choose(c, w, layer, 0, len, n, rows->n - i - n, rows->q + (size_t)i * row,
                      rows->q16 + (size_t)i * row, &r, 0);
        device_read(c, w, &r, len, i, n, rows);
    }
}

void device_read_step(const StepOf *of, int i, int n, KVWork *w, int layer,
                      const KVDeviceRows *rows) {
    const KVCache *c = of[i].kv;
    size_t row = (size_t)c->s->n_heads * c->s->head_dim;
    int len = 0;
    for (int j = i; j < i + n; j++)
        if (layer_most(of[j].kv, layer) + 1 > len) len = layer_most(of[j].kv, layer) + 1;
    DeviceReader r = device_reader(c, w, len, n, 1);
    for (int j = i; j < i + n; j++) {
        device_pages(of[j].kv, w, layer, j, layer_most(of[j].kv, layer) + 1);
        device_choose(of[j].kv, w, layer, j, len, 1, 0, rows->q + (size_t)j * row,
                      rows->q16 + (size_t)j * row, &r, j - i);
    }
    device_read(c, w, &r, len, i, n, rows);
}
#endif
