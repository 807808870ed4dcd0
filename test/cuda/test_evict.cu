// What policies are shown and what they keep, on the device: statistics of queries, numbers to
// choose by, choices, eviction, gathering, and the rows a token chooses to read.
#include "cache.h"
#include "kernels.h"
#include "test/cuda/twin.h"

template <class T> static T *zeros(size_t n) {
    T *p = (T *)xrealloc(NULL, (n + 1) * sizeof *p);
    memset(p, 0, (n + 1) * sizeof *p);
    return p;
}
static float *filled(size_t n, uint64_t seed) {
    float *x = zeros<float>(n);
    twin_fill(x, n, seed);
    return x;
}
template <class T> static T *fetched(T *device, size_t n) {
    T *p = zeros<T>(n);
    from_device(p, device, n);
    return p;
}
template <class T> static void same(const char *what, T *device, const T *want, size_t n) {
    T *got = fetched(device, n);
    twin_equal(what, got, want, n);
    free(got);
}
static const Policy *policy(const char *name) {
    for (int i = 0; policy_at(i); i++) if (!strcmp(policy_at(i)->name, name)) return policy_at(i);
    return NULL;
}

// ---------------------------------------------------------------------------
// Lists of a layer: rows in two parts, some of them live, the same on both sides

enum { MOST_LISTS = 4 };
typedef struct {
    int lists, hd, cap, words;
    uint16_t *rows;             // (lists, K and V, cap, hd)
    int32_t *pos, *live;        // (lists, cap)
    uint32_t *state;            // (lists, words, cap)
    KeyList list[MOST_LISTS], at[MOST_LISTS];   // host's, the device's as the host knows them
    uint16_t *d_rows;
    int32_t *d_pos, *d_live;
    uint32_t *d_state;
    KeyList *d_list;
    DeviceHead *d_head;
    int max_len;
} Layer;

// list l has len - 7 l entries; whole: every row is live
static Layer layer_make(int lists, int len, int hd, int words, bool whole, uint64_t seed) {
    Layer y;
    memset(&y, 0, sizeof y);
    y.lists = lists;
    y.hd = hd;
    y.cap = 2 * len + 70;
    y.words = words;
    size_t each = (size_t)y.cap * hd, cap = (size_t)y.cap, n = (size_t)lists;
    float *x = filled(n * 2 * each, seed);
    y.rows = zeros<uint16_t>(n * 2 * each);
    for (size_t i = 0; i < n * 2 * each; i++) y.rows[i] = f32_bf16(2 * x[i]);
    y.pos = zeros<int32_t>(n * cap);
    y.live = zeros<int32_t>(n * cap);
    y.state = zeros<uint32_t>(n * (size_t)words * cap);
    y.d_rows = to_device(y.rows, n * 2 * each);
    y.d_state = to_device(y.state, n * (size_t)words * cap + 1);
    DeviceHead head[MOST_LISTS];
    for (size_t l = 0; l < n; l++) {
        int left = len - 7 * (int)l, row = 0;
        KeyList *k = &y.list[l];
        k->len = left > 0 ? left : 0;
        k->split = len / 3;
        for (int j = 0; j < k->len; j++, row += 1 + (!whole && mix64(seed + (uint64_t)j) % 2))
            y.live[l * cap + (size_t)j] = row;
        for (int j = 0; j < y.cap; j++) y.pos[l * cap + (size_t)j] = 3 * j + (int)l;
    }
    y.d_pos = to_device(y.pos, n * cap);
    y.d_live = to_device(y.live, n * cap);
    for (size_t l = 0; l < n; l++) {
        KeyList *k = &y.list[l], *d = &y.at[l];
        size_t r = l * 2 * each, part = (size_t)k->split * hd;
        k->live = whole ? NULL : y.live + l * cap;
        *d = *k;
        for (int p = 0; p < 2; p++) {
            k->k[p] = y.rows + r + p * part;
            k->v[p] = y.rows + r + each + p * part;
            k->pos[p] = y.pos + l * cap + p * k->split;
            d->k[p] = y.d_rows + r + p * part;
            d->v[p] = y.d_rows + r + each + p * part;
            d->pos[p] = y.d_pos + l * cap + p * k->split;
        }
        d->live = whole ? NULL : y.d_live + l * cap;
        DeviceHead h = { y.d_live + l * cap, y.d_state + l * (size_t)words * cap, words, y.cap, 0 };
        head[l] = h;
        if (k->len > y.max_len) y.max_len = k->len;
    }
    y.d_list = to_device(y.at, n);
    y.d_head = to_device(head, n);
    free(x);
    return y;
}

static void layer_free(Layer *y) {
    cudaFree(y->d_rows); cudaFree(y->d_pos); cudaFree(y->d_live); cudaFree(y->d_state);
    cudaFree(y->d_list); cudaFree(y->d_head);
    free(y->rows); free(y->pos); free(y->live); free(y->state);
}

static int row_number(const KeyList *l, int j) { return l->live ? l->live[j] : j; }
static const uint16_t *key_of(const KeyList *l, int j, int hd) {
    int row = row_number(l, j), own = row >= l->split;
    return (const uint16_t *)l->k[own] + (size_t)(row - (own ? l->split : 0)) * hd;
}
static int pos_of(const KeyList *l, int j) {
    int row = row_number(l, j), own = row >= l->split;
    return ((const int32_t *)l->pos[own])[row - (own ? l->split : 0)];
}

// ---------------------------------------------------------------------------
// The k largest

static void top(int n, int len, int k, bool newer, int kind) {
    enum { ROWS = 2 };
    size_t ld = (size_t)len + 5;
    float *x = filled(ROWS * ld, (uint64_t)(n + k));
    for (size_t i = 0; i < ROWS * ld; i++) {
        if (kind == 1) x[i] = (float)(int)(x[i] * 3) * 0.0f + (float)(int)(x[i] * 2);  // ties, -0
        if (kind == 2) x[i] = i % 7 == 3 ? INFINITY : i % 5 == 1 ? -INFINITY : x[i];
        if (kind == 3) x[i] = 0.25f;
    }
    Choice c[ROWS] = { { n, k, len }, { n / 2, k / 2, n / 2 } };
    float *dx = to_device(x, ROWS * ld);
    Choice *dc = to_device(c, ROWS);
    uint8_t *keep = device_array<uint8_t>(ROWS * ld), *want = zeros<uint8_t>(ld);
    int32_t *index = device_array<int32_t>(ROWS * ld), *list = zeros<int32_t>(ld);
    uint32_t *rank = zeros<uint32_t>(ld);
    cuda_keep_top(dx, ld, dc, ROWS, newer, keep, index, twin_stream());
    for (int r = 0; r < ROWS; r++) {
        int stay = 0;
        memset(want, 1, ld);
        keep_top(x + r * ld, rank, c[r].n, c[r].k, newer, want);
        for (int j = 0; j < c[r].n; j++) if (want[j]) list[stay++] = j;
        same("choice", keep + r * ld, want, (size_t)c[r].len);
        same("indices of a choice", index + r * ld, list, (size_t)stay);
    }
    cudaFree(dx); cudaFree(dc); cudaFree(keep); cudaFree(index);
    free(x); free(want); free(list); free(rank);
}

// ---------------------------------------------------------------------------
// Rules: what the policy of that name keeps, on the same numbers

typedef struct {
    const char *name;
    int heads, len, budget;
    Group group;
    Pool pool;
    int layer_budget;           // pyramidkv: what it comes to in layer 7 of 9, or 0
} Rule;

static void rule(Rule r) {
    const Policy *p = policy(r.name);
    int G = 2, words = 3, group = r.heads / G;
    Layer y = layer_make(G, r.len, 8, words, false, 31);
    Sizes z;
    memset(&z, 0, sizeof z);
    z.budget = r.budget;
    z.sinks = 4;
    z.recent = z.protect = z.window = 9;
    if (!strcmp(r.name, "streamingllm")) z.recent = r.budget - 4;
    z.history = 96;
    z.kernel = 5;
    z.beta = 20;
    z.group = r.group;
    z.pool = r.pool;
    size_t cap = (size_t)y.cap, sums_ld = cap + 3, ld = cap;
    float *sums = filled((size_t)r.heads * sums_ld, 32);
    for (size_t i = 0; i < (size_t)r.heads * sums_ld; i++) sums[i] = floorf(sums[i] * 16) / 16;
    for (size_t l = 0; l < (size_t)G; l++)
        for (size_t w = 0; w < 3; w++)
            for (size_t j = 0; j < cap; j++) {
                float u = fabsf(floorf(twin_value(33 + l, w * cap + j) * 64) / 64);
                uint32_t *to = &y.state[(l * 3 + w) * cap + j];
                *to = !strcmp(r.name, "corm") ? (uint32_t)(100 * u)
                      : !strcmp(r.name, "scissorhands") ? (uint32_t)mix64(j % 50 + w)
                      : f32_bits(w == 2 ? 1 + floorf(9 * u) : w == 1 ? 2 + u : u);
            }
    CUDA_OK(cudaMemcpy(y.d_state, y.state, 3 * G * cap * 4, cudaMemcpyHostToDevice));
    float *d_sums = to_device(sums, (size_t)r.heads * sums_ld),
          *score = device_array<float>(G * ld), *mean = device_array<float>(G * ld),
          *scratch = zeros<float>(4 * ld);
    Choice *choice = device_array<Choice>((size_t)G);
    uint8_t *keep = device_array<uint8_t>(G * ld), *want = zeros<uint8_t>(G * ld);
    Scoring a = { y.d_list, y.d_head, G, r.heads, y.max_len, d_sums, sums_ld, r.group, r.pool, 5, 9,
                  r.layer_budget ? r.layer_budget : r.budget, 9, score, mean, ld, choice };
    int64_t t = 100, named = 0;
    bool one = !strcmp(r.name, "tova");
    void *s = twin_stream();
    if (!strcmp(r.name, "streamingllm"))
        cuda_keep_ends(y.d_list, G, y.max_len, z.sinks, z.recent, keep, ld, s);
    else if (!strcmp(r.name, "keep-last"))
        cuda_keep_ends(y.d_list, G, y.max_len, 0, r.budget, keep, ld, s);
    else if (!strcmp(r.name, "corm"))
        cuda_keep_corm(y.d_list, y.d_head, G, y.max_len, t, z.window, z.protect, keep, ld, s);
    else if (!strcmp(r.name, "random")) {
        RandomKey key = { 5, 6, 7 };
        cuda_keep_random(y.d_list, G, &key, r.budget, keep, ld, s);
    } else {
        ScoreKind kind = strstr("snapkv pyramidkv", r.name) ? SCORE_WINDOW : one ? SCORE_LAYER
                         : !strcmp(r.name, "h2o") ? SCORE_STATE
                         : !strcmp(r.name, "roco") ? SCORE_STEADY : SCORE_MARKS;
        if (one) a.tail = 0;
        cuda_score(kind, &a, s);
        if (kind == SCORE_STEADY) cuda_keep_roco(&a, keep, s);
        else cuda_keep_top(score, ld, choice, one ? 1 : G, kind == SCORE_MARKS, keep, NULL, s);
    }
    int lists = one ? 1 : G;
    for (int g = 0; g < lists; g++) {
        int32_t *pos = zeros<int32_t>(cap);
        for (int j = 0; j < y.list[g].len; j++) pos[j] = pos_of(&y.list[g], j);
        Acting act = { .z = &z,
                       .layer = 7,
                       .n_layers = 9,
                       .head = g * group,
                       .group = group,
                       .n_heads = r.heads,
                       .kv_head = g,
                       .len = y.list[g].len,
                       .t = t,
                       .seed = 5,
                       .session = 6,
                       .state = y.state + 3 * cap * (size_t)g,
                       .plane = cap,
                       .pos = pos,
                       .sums = sums,
                       .sums_ld = sums_ld,
                       .ld = ld,
                       .score = scratch,
                       .rank = (uint32_t *)(void *)(scratch + 3 * ld) };
        named += p->keep(&act, want + g * ld);
        same(r.name, keep + g * ld, want + g * ld, (size_t)y.list[g].len);
        free(pos);
    }
    CHECK(named > 0 || r.budget >= r.len, "%s keeps everything", r.name);
    cudaFree(d_sums); cudaFree(score); cudaFree(mean); cudaFree(choice); cudaFree(keep);
    free(sums); free(scratch); free(want);
    layer_free(&y);
}

// ---------------------------------------------------------------------------
// Queries

typedef struct {
    int heads, lists, len, hd, rows, behind;
    bool whole, seen, per_head, skips;
} Asked;

typedef struct {                // what the plain loops need of them
    uint16_t *q;                // (rows, H, hd)
    float *lse2;                // (H, rows)
    int32_t *sees;              // (lists, rows)
    uint64_t *marks;            // (H, 2, words) of blocks of 64 rows
    HeadLists sparse[16];
    int words;
    Sizes z;
} Plain;

static float score_of(const Asked *k, const Plain *p, const Layer *y, int h, int i, int j) {
    const uint16_t *q = p->q + ((size_t)i * k->heads + h) * k->hd,
                   *x = key_of(&y->list[h / (k->heads / k->lists)], j, k->hd);
    double s = 0;
    for (int c = 0; c < k->hd; c++) s += (double)bf16_f32(q[c]) * bf16_f32(x[c]);
    return (float)(s * 1.4426950408889634 / sqrt((double)k->hd));
}

static bool skipped(const Asked *k, const Plain *p, int h, int i, int j) {
    const HeadLists *l = &p->sparse[h];
    int own = l->len - l->n + i;
    if (!k->skips) return false;
    if (!(p->marks[((size_t)h * 2 + i / 64) * p->words + j / 64] >> j % 64 & 1)) return true;
    return l->kind == HEAD_A_SHAPE && i < l->n - l->dense_rows && j >= l->sinks &&
           j <= own - l->local;
}

static void plain_make(const Asked *k, const Layer *y, Plain *p, LookRows *a) {
    size_t n = (size_t)k->rows * k->heads * k->hd;
    int group = k->heads / k->lists;
    float *x = filled(n, 41);
    memset(p, 0, sizeof *p);
    p->q = zeros<uint16_t>(n);
    for (size_t i = 0; i < n; i++) p->q[i] = f32_bf16(2 * x[i]);
    p->sees = zeros<int32_t>((size_t)k->lists * k->rows);
    for (int l = 0; l < k->lists; l++)
        for (int i = 0; i < k->rows; i++) {
            int v = y->list[l].len - k->behind - k->rows + i + 1;
            p->sees[l * k->rows + i] = k->seen ? v / 2 + 1 : v;
        }
    p->words = CEIL_DIV(y->cap, 64);
    p->marks = zeros<uint64_t>((size_t)k->heads * 2 * p->words);
    for (size_t i = 0; i < (size_t)k->heads * 2 * p->words; i++)
        p->marks[i] = mix64(i) | mix64(i + 99);
    for (int h = 0; h < k->heads; h++) {
        HeadLists *s = &p->sparse[h];
        s->kind = h % 2 ? HEAD_A_SHAPE : HEAD_VERTICAL_SLASH;
        s->len = y->list[h / group].len;
        s->n = k->rows + 3;
        s->sinks = 5;
        s->local = 20;
        s->dense_rows = 6;
    }
    p->lse2 = zeros<float>((size_t)k->heads * k->rows);
    for (int h = 0; h < k->heads; h++)
        for (int i = 0; i < k->rows; i++) {
            double sum = 0;
            for (int j = 0; j < p->sees[h / group * k->rows + i]; j++)
                sum += exp2((double)score_of(k, p, y, h, i, j));
            p->lse2[h * k->rows + i] = (float)log2(sum);
        }
    p->z.group = k->per_head ? GROUP_QUERY_HEAD : GROUP_MEAN;
    p->z.history = 40;
    LookRows rows = { y->d_list, y->max_len, to_device(p->q, n), (size_t)k->heads * k->hd,
                      (size_t)k->hd, k->rows, k->heads, k->lists, k->hd,
                      (float)(1.4426950408889634 / sqrt((double)k->hd)), k->behind,
                      k->seen ? to_device(p->sees, (size_t)k->lists * k->rows) : NULL,
                      k->skips ? to_device(p->sparse, 16) : NULL,
                      k->skips ? to_device(p->marks, (size_t)k->heads * 2 * p->words) : NULL, 2,
                      p->words, 0 };
    *a = rows;
    free(x);
}

static void plain_free(Plain *p, LookRows *a) {
    cudaFree((void *)a->q); cudaFree((void *)a->seen); cudaFree((void *)a->sparse);
    cudaFree((void *)a->marks);
    free(p->q); free(p->lse2); free(p->sees); free(p->marks);
}

// the policy's observe over all queries; near[l * cap + j]: a score stands close to its bound
static void observe_all(const Asked *k, const Plain *p, Layer *y, const Policy *of, uint8_t *near) {
    int group = k->heads / k->lists;
    float *s = zeros<float>((size_t)group * y->cap);
    for (int l = 0; l < k->lists; l++)
        for (int i = 0; i < k->rows; i++) {
            int v = p->sees[l * k->rows + i];
            float log_t = flog2((float)(i + 1));
            for (int h = 0; h < group; h++)
                for (int j = 0; j < v; j++) {
                    int head = l * group + h;
                    float x = score_of(k, p, y, head, i, j);
                    if (fabsf(x - p->lse2[head * k->rows + i] + log_t) < 1e-4f)
                        near[(size_t)l * y->cap + j] = 1;
                    s[(size_t)h * y->cap + j] = skipped(k, p, head, i, j) ? -INFINITY : x;
                }
            for (int j = 0; j < v; j += PANEL) {
                Query q = { &p->z, group, v - j < PANEL ? v - j : PANEL, s + j, (size_t)y->cap,
                            p->lse2 + (size_t)l * group * k->rows + i, (size_t)k->rows, i + 1,
                            y->state + (size_t)l * y->words * y->cap + j, (size_t)y->cap };
                of->observe(&q);
            }
        }
    free(s);
}

static void look_state(const Asked *k, LookKind kind) {
    int group = k->heads / k->lists, units = k->per_head && kind <= LOOK_MOMENTS ? group : 1;
    int words = kind == LOOK_MOMENTS ? 3 : kind == LOOK_MARKS ? 2 : 1;
    Layer y = layer_make(k->lists, k->len, k->hd, words * units, k->whole, 40);
    Plain p;
    LookRows a;
    plain_make(k, &y, &p, &a);
    float *lse = to_device(p.lse2, (size_t)k->heads * k->rows);
    Observed o = {
        lse, (size_t)k->rows, 1, y.d_head, NULL, 0, NULL, p.z.group, units, p.z.history
    };
    size_t cap = (size_t)y.cap, all = (size_t)k->lists * y.words * cap;
    uint8_t *near = zeros<uint8_t>((size_t)k->lists * cap);
    const Policy *of = kind == LOOK_SUM ? policy("h2o") : kind == LOOK_MOMENTS ? policy("roco")
                       : kind == LOOK_MARKS ? policy("scissorhands") : policy("corm");
    cuda_look(kind, &a, &o, twin_stream());
    uint32_t *got = fetched(y.d_state, all), *again;
    observe_all(k, &p, &y, of, near);
    if (kind <= LOOK_MOMENTS)
        twin_near("sums of columns", (float *)got, (float *)y.state, all, 1e-5);
    for (size_t i = 0, far = 0; kind > LOOK_MOMENTS && i < all; i++) {
        size_t entry = i / ((size_t)y.words * cap) * cap + i % cap;
        if (got[i] == y.state[i] || near[entry] || far++) continue;
        twin_failures++;
        printf("marks: %08x at %zu, on the CPU %08x\n", got[i], i, y.state[i]);
    }
    CUDA_OK(cudaMemset(y.d_state, 0, all * 4));
    cuda_look(kind, &a, &o, twin_stream());
    again = fetched(y.d_state, all);
    twin_equal("the same twice", again, got, all);
    cudaFree(lse);
    free(near); free(got); free(again);
    plain_free(&p, &a);
    layer_free(&y);
}

// window sums, diagonals, denominators
static void look_window(const Asked *k) {
    Layer y = layer_make(k->lists, k->len, k->hd, 1, k->whole, 42);
    Plain p;
    LookRows a;
    plain_make(k, &y, &p, &a);
    int group = k->heads / k->lists, tiles = CEIL_DIV(y.max_len, TILE_KEYS);
    size_t cap = (size_t)y.cap, nl = (size_t)k->heads * k->rows, ns = (size_t)k->heads * cap;
    float *zero = zeros<float>(ns), *lse = device_array<float>(nl), *sums = to_device(zero, ns),
          *parts = device_array<float>(2 * LOOK_SPLITS * nl),
          *blank = zeros<float>((size_t)k->heads * tiles * 192),
          *diagonals = to_device(blank, (size_t)k->heads * tiles * 192),
          *want = zeros<float>(ns), *slant = zeros<float>(ns);
    cuda_look_lse(&a, lse, (size_t)k->rows, parts, twin_stream());
    float *got = fetched(lse, nl);
    if (!k->skips) twin_near("denominators", got, p.lse2, nl, 1e-5);
    free(got);
    CUDA_OK(cudaMemcpy(lse, p.lse2, nl * sizeof *lse, cudaMemcpyHostToDevice));
    bool slants = k->rows <= TILE_ROWS && !k->seen && !k->behind && !k->skips;
    Observed o = { lse, (size_t)k->rows, 1, NULL, sums, cap, diagonals, GROUP_MEAN, 1, 0 };
    cuda_look(slants ? LOOK_DIAGONALS : LOOK_WINDOW, &a, &o, twin_stream());
    for (int h = 0; h < k->heads; h++)
        for (int i = 0; i < k->rows; i++)
            for (int j = 0; j < p.sees[h / group * k->rows + i]; j++) {
                float e = fexp2(score_of(k, &p, &y, h, i, j) - p.lse2[h * k->rows + i]);
                if (skipped(k, &p, h, i, j)) e = 0;
                want[h * cap + j] += e;
                slant[h * cap + j + k->rows - 1 - i] += e;
            }
    got = fetched(sums, ns);
    twin_near("sums of a window", got, want, ns, 1e-5);
    free(got);
    got = slants ? fetched(diagonals, (size_t)k->heads * tiles * 192) : NULL;
    for (int h = 0; slants && h < k->heads; h++) {
        int len = y.list[h / group].len, mine = CEIL_DIV(len, TILE_KEYS);
        float *sum = zeros<float>(cap);
        for (int t = 0; t < mine; t++)
            for (int e = 0; e < 192 && t * TILE_KEYS + e < (int)cap; e++)
                sum[t * TILE_KEYS + e] += got[((size_t)h * tiles + t) * 192 + e];
        twin_near("sums of diagonals", sum, slant + h * cap, (size_t)len, 1e-5);
        free(sum);
    }
    free(got);
    cudaFree(lse); cudaFree(sums); cudaFree(parts); cudaFree(diagonals);
    free(zero); free(blank); free(want); free(slant);
    plain_free(&p, &a);
    layer_free(&y);
}

// one query, given scores
static void observe_one(LookKind kind, int heads, int lists, int len, bool per_head) {
    int group = heads / lists, units = per_head && kind <= LOOK_MOMENTS ? group : 1;
    int words = (kind == LOOK_MOMENTS ? 3 : kind == LOOK_MARKS ? 2 : 1) * units;
    Layer y = layer_make(lists, len, 8, words, true, 50);
    size_t cap = (size_t)y.cap, all = (size_t)lists * words * cap, ld = cap + 1;
    float *s = filled((size_t)heads * ld, 51), *lse = filled((size_t)heads, 52);
    for (size_t i = 0; i < (size_t)heads * ld; i++) s[i] *= 6;
    for (size_t i = 0; i < all; i++)
        y.state[i] = kind == LOOK_LAST    ? (uint32_t)(mix64(i) % 90)
                     : kind == LOOK_MARKS ? (uint32_t)mix64(i)
                                          : f32_bits(fabsf(twin_value(53, i)));
    CUDA_OK(cudaMemcpy(y.d_state, y.state, all * 4, cudaMemcpyHostToDevice));
    Sizes z;
    memset(&z, 0, sizeof z);
    z.group = per_head ? GROUP_QUERY_HEAD : GROUP_MAX;
    z.history = 40;
    float *ds = to_device(s, (size_t)heads * ld), *dl = to_device(lse, (size_t)heads);
    float *sums = device_array<float>((size_t)heads * ld), *want = zeros<float>((size_t)heads * ld);
    LookRows a;
    memset(&a, 0, sizeof a);
    a.list = y.d_list;
    a.max_len = y.max_len;
    a.n_heads = heads;
    a.n_lists = lists;
    Observed o = { dl, 1, 77, y.d_head, sums, ld, NULL, z.group, units, z.history };
    cuda_observe(kind, &a, &o, ds, ld, twin_stream());
    const Policy *of = kind == LOOK_SUM ? policy("h2o") : kind == LOOK_MOMENTS ? policy("roco")
                       : kind == LOOK_MARKS ? policy("scissorhands") : policy("corm");
    for (int l = 0; l < lists; l++) {
        for (int j = 0; kind != LOOK_WINDOW && j < y.list[l].len; j += PANEL) {
            int n = y.list[l].len - j < PANEL ? y.list[l].len - j : PANEL;
            Query q = { &z, group, n, s + (size_t)l * group * ld + j, ld, lse + l * group, 1, 77,
                        y.state + (size_t)l * words * cap + j, cap };
            of->observe(&q);
        }
        for (int h = l * group; kind == LOOK_WINDOW && h < (l + 1) * group; h++) {
            for (int j = 0; j < y.list[l].len; j++)
                want[h * ld + j] = fexp2(s[h * ld + j] - lse[h]);
            same("attention of one query", sums + h * ld, want + h * ld, (size_t)y.list[l].len);
        }
    }
    if (kind != LOOK_WINDOW) same("state after one query", y.d_state, y.state, all);
    cudaFree(ds); cudaFree(dl); cudaFree(sums);
    free(s); free(lse); free(want);
    layer_free(&y);
}

// ---------------------------------------------------------------------------
// Lists: eviction, gathering, turned keys, rows chosen per token

static void lists(int len, int hd, int words, bool whole) {
    Layer y = layer_make(2, len, hd, words, whole, 60);
    size_t cap = (size_t)y.cap, one = cap * (size_t)(4 * hd + 4), n = (size_t)len;
    for (size_t i = 0; i < 2 * words * cap; i++) y.state[i] = (uint32_t)mix64(i);
    CUDA_OK(cudaMemcpy(y.d_state, y.state, 2 * words * cap * 4 + !words, cudaMemcpyHostToDevice));
    uint8_t *keep = zeros<uint8_t>(2 * n), *d_keep;
    for (size_t j = 0; j < 2 * n; j++) keep[j] = mix64(j) % 3 != 0;
    d_keep = to_device(keep, 2 * n);
    cuda_evict(y.d_list, y.d_head, 2, d_keep, n, false, twin_stream());
    KeyList got[2];
    from_device(got, y.d_list, 2);
    for (size_t l = 0; l < 2; l++) {
        KeyList *k = &y.list[l];
        int stay = 0;
        for (int j = 0; j < k->len; j++) {
            if (!keep[l * n + j]) continue;
            y.live[l * cap + stay] = row_number(k, j);
            for (size_t w = 0; w < (size_t)words; w++)
                y.state[(l * words + w) * cap + stay] = y.state[(l * words + w) * cap + j];
            stay++;
        }
        k->len = stay;
        k->live = y.live + l * cap;
        if (got[l].len != stay) {
            twin_failures++;
            printf("%d entries stay, on the CPU %d\n", got[l].len, stay);
        }
        same("live list", y.d_live + l * cap, y.live + l * cap, (size_t)stay);
        for (size_t w = 0; w < (size_t)words; w++)
            same("packed state", y.d_state + (l * words + w) * cap, y.state + (l * words + w) * cap,
                 (size_t)stay);
    }
    char *to[2] = { device_array<char>(one), device_array<char>(one) }, **d_to = to_device(to, 2);
    size_t room = (size_t)y.max_len;
    uint16_t *turned = device_array<uint16_t>(4 * room * hd), *want = zeros<uint16_t>(cap * hd);
    KeyList *out = zeros<KeyList>(2), *d_out = to_device(out, 2);
    float inv[8] = { 1, 0.5f, 0.2f, 0.05f, 0.01f, 1e-3f, 1e-4f, 1e-5f }, *d_inv = to_device(inv, 8);
    int rope = hd < 16 ? hd / 2 * 2 : 16, half = rope / 2;
    cuda_gather(y.d_list, 2, y.max_len, hd, d_to, twin_stream());
    cuda_turn_lists(y.d_list, 2, y.max_len, hd, rope, d_inv, turned, d_out, twin_stream());
    from_device(out, d_out, 2);
    for (int l = 0; l < 2; l++) {
        const KeyList *k = &y.list[l];
        size_t row = (size_t)hd * 2, m = (size_t)k->len;
        char *block = zeros<char>(one);
        for (int j = 0; j < k->len; j++) {
            const uint16_t *x = key_of(k, j, hd);
            int number = row_number(k, j), own = number >= k->split, p = pos_of(k, j);
            memcpy(block + j * row, x, row);
            memcpy(block + (m + j) * row, (const uint16_t *)k->v[own] +
                   (size_t)(number - (own ? k->split : 0)) * hd, row);
            memcpy(block + 2 * m * row + 4 * (size_t)j, &p, 4);
            memcpy(want + (size_t)j * hd, x, row);
            for (int i = 0; i < half && j != p; i++) {
                float s, c, x0 = bf16_f32(x[i]), x1 = bf16_f32(x[i + half]);
                fsincos((float)(j - p) * inv[i], &s, &c);
                want[(size_t)j * hd + i] = f32_bf16(fmaf(x0, c, -(x1 * s)));
                want[(size_t)j * hd + i + half] = f32_bf16(fmaf(x1, c, x0 * s));
            }
        }
        same("gathered rows", to[l], block, m * (2 * row + 4));
        same("turned keys", (uint16_t *)(uintptr_t)out[l].k[0], want, m * hd);
        same("values of turned keys", (char *)(uintptr_t)out[l].v[0], block + m * row, m * row);
        if (out[l].len != k->len || out[l].live || out[l].split < k->len) {
            twin_failures++;
            printf("a turned list of %d entries, not %d\n", out[l].len, k->len);
        }
        cudaFree(to[l]);
        free(block);
    }
    cudaFree(d_keep); cudaFree(d_to); cudaFree(turned); cudaFree(d_out); cudaFree(d_inv);
    free(keep); free(want); free(out);
    layer_free(&y);
}

// quest (page > 1, over real keys) and topk (page 1, over given scores): n newest tokens
static void reads(int heads, int len, int hd, int page, int budget, int n, bool whole) {
    enum { G = 2 };
    Layer y = layer_make(G, len, hd, 1, whole, 70);
    int group = heads / G;
    size_t ld = (size_t)y.cap, rows = (size_t)n * G, nq = (size_t)n * heads * hd;
    float *x = filled(nq, 71), *score = zeros<float>(ld), *join = zeros<float>((size_t)group * ld),
          *s = filled((size_t)n * heads * ld, 72), *lse = filled((size_t)n * heads, 73);
    uint16_t *q = zeros<uint16_t>(nq), *bounds[G], *d_bounds[G];
    for (size_t i = 0; i < nq; i++) q[i] = f32_bf16(x[i]);
    for (size_t i = 0; i < (size_t)n * heads * ld; i++) s[i] = floorf(s[i] * 30) / 8;
    for (int l = 0; l < G; l++) {
        size_t m = (size_t)(len / page + 1) * 2 * hd;
        bounds[l] = zeros<uint16_t>(m);
        d_bounds[l] = device_array<uint16_t>(m);
        for (int p = 0; (p + 1) * page <= y.list[l].len; p++)
            for (int i = 0; i < hd; i++) {
                float high = -INFINITY, low = INFINITY;
                for (int j = p * page; j < (p + 1) * page; j++) {
                    float v = bf16_f32(key_of(&y.list[l], j, hd)[i]);
                    high = v > high ? v : high;
                    low = v < low ? v : low;
                }
                bounds[l][(size_t)p * 2 * hd + i] = f32_bf16(high);
                bounds[l][(size_t)p * 2 * hd + hd + i] = f32_bf16(low);
            }
    }
    DeviceHead head[G] = { { .pages = d_bounds[0] }, { .pages = d_bounds[1] } },
               *d_paged = to_device(head, G);
    uint16_t *dq = to_device(q, nq);
    int rows_ld = budget > 3 * page ? budget : 3 * page, behind = n > 1 ? 2 : 0;
    float *ds = to_device(s, (size_t)n * heads * ld), *dl = to_device(lse, (size_t)n * heads);
    Reading a = { y.d_list, d_paged, n, behind, heads, G, 1, hd, y.max_len, budget, page,
                  GROUP_MEAN, device_array<float>(rows * ld), device_array<uint8_t>(rows * ld), ld,
                  device_array<Choice>(rows), device_array<int32_t>(rows * rows_ld),
                  (size_t)rows_ld, to_device(zeros<KeyList>(rows), rows) };
    if (page > 1) {
        cuda_pages(y.d_list, d_paged, G, page, 0, len / page, hd, twin_stream());
        for (int l = 0; l < G; l++)
            same("bounds of pages", d_bounds[l], bounds[l],
                 (size_t)(y.list[l].len / page) * 2 * hd);
        cuda_read_bounds(&a, dq, twin_stream());
    } else cuda_read_scores(&a, ds, ld, dl, twin_stream());
    cuda_read_lists(&a, twin_stream());
    KeyList *out = fetched(a.out, rows);        // padding and all
    uint8_t *keep = zeros<uint8_t>(ld);
    uint32_t *rank = zeros<uint32_t>(ld);
    int32_t *want = zeros<int32_t>(ld);
    for (int r = 0; r < (int)rows; r++) {
        int i = r / G, l = r % G, seen = y.list[l].len - behind - n + i + 1, m = 0;
        int pages = CEIL_DIV(seen, page), k = page > 1 && budget / page < 3 ? 3 : budget / page;
        bool all = seen <= budget || pages <= k;
        int of = page > 1 ? pages - 1 : seen;
        for (int g = 0; g < group; g++)
            for (int p = 0; p < of; p++) {
                size_t h = (size_t)i * heads + l * group + g;
                float lane[LANES] = { 0 };
                for (int c = 0; page > 1 && c < hd; c++) {
                    float v = bf16_f32(q[h * hd + c]),
                          u = v * bf16_f32(bounds[l][(size_t)p * 2 * hd + c]),
                          w = v * bf16_f32(bounds[l][(size_t)p * 2 * hd + hd + c]);
                    lane[c % LANES] += u > w ? u : w;
                }
                join[g * ld + p] = page > 1 ? lanes_sum(lane) : fexp2(s[h * ld + p] - lse[h]);
            }
        group_join(GROUP_MEAN, join, ld, group, of, score);
        keep_top(score, rank, of, page > 1 ? k - 1 : budget, false, keep);
        keep[of] = 1;
        for (int j = 0; j < seen; j++)
            if (all || keep[j / page]) want[m++] = row_number(&y.list[l], j);
        if (out[r].len != m || (all && out[r].live != y.at[l].live)) {
            twin_failures++;
            printf("token %d reads %d rows, on the CPU %d\n", i, out[r].len, m);
        } else if (!all) same("rows of a token", (int32_t *)out[r].live, want, (size_t)m);
    }
    for (int l = 0; l < G; l++) {
        free(bounds[l]);
        cudaFree(d_bounds[l]);
    }
    cudaFree(d_paged); cudaFree(dq); cudaFree(ds); cudaFree(dl); cudaFree(a.score); cudaFree(a.keep);
    cudaFree(a.choice); cudaFree(a.rows); cudaFree(a.out);
    free(x);
    free(score);
    free(join);
    free(s);
    free(lse);
    free(q);
    free(out);
    free(keep);
    free(rank);
    free(want);
    layer_free(&y);
}

static void choices(void) {
    for (int kind = 0; kind < 4; kind++) {
        top(1, 4, 1, false, kind);
        top(511, 512, 200, kind % 2, kind);
        top(513, 600, 512, !(kind % 2), kind);
        top(1300, 1300, 2, false, kind);
        top(40, 40, 40, true, kind);            // everything
        top(40, 45, 0, false, kind);            // nothing of the first 40
    }
    rule({ "streamingllm", 4, 300, 90, GROUP_MEAN, POOL_AVG });
    rule({ "streamingllm", 4, 80, 90, GROUP_MEAN, POOL_AVG });
    rule({ "keep-last", 4, 300, 64, GROUP_MEAN, POOL_AVG });
    rule({ "random", 4, 700, 64, GROUP_MEAN, POOL_AVG });
    rule({ "snapkv", 4, 700, 64, GROUP_MEAN, POOL_AVG });
    rule({ "snapkv", 6, 200, 64, GROUP_MAX, POOL_MAX });
    rule({ "snapkv", 2, 60, 64, GROUP_SUM, POOL_AVG });
    // 100 tokens, c = B - 9: 31 gives 61 - 7 (60 / 8), 50 is clipped to 91 - 7 (82 / 8), 61 stays
    rule({ "pyramidkv", 4, 700, 40, GROUP_MEAN, POOL_AVG, 9 + 12 });
    rule({ "pyramidkv", 6, 200, 59, GROUP_MAX, POOL_MAX, 9 + 21 });
    rule({ "pyramidkv", 2, 300, 70, GROUP_SUM, POOL_AVG, 9 + 61 });
    rule({ "tova", 6, 500, 100, GROUP_MEAN, POOL_AVG });
    rule({ "tova", 2, 500, 100, GROUP_QUERY_HEAD, POOL_AVG });
    rule({ "h2o", 4, 5, 60, GROUP_MEAN, POOL_AVG });            // the second list is empty
    rule({ "snapkv", 4, 6, 60, GROUP_MEAN, POOL_AVG });
    rule({ "random", 4, 7, 60, GROUP_MEAN, POOL_AVG });
    rule({ "h2o", 4, 600, 60, GROUP_MEAN, POOL_AVG });
    rule({ "scissorhands", 4, 600, 60, GROUP_MEAN, POOL_AVG });
    rule({ "corm", 4, 600, 0, GROUP_MEAN, POOL_AVG });
    rule({ "roco", 4, 61, 60, GROUP_MEAN, POOL_AVG });          // one row over, and none
    rule({ "roco", 4, 300, 60, GROUP_MEAN, POOL_AVG });
    rule({ "roco", 2, 601, 600, GROUP_MEAN, POOL_AVG });
}

static void statistics(void) {
    static const Asked asked[] = {      // heads lists len hd rows behind whole seen per_head skips
        { 4, 2, 300, 64, 21, 0, true, false, false, false },   // more rows x heads than a tile
        { 6, 2, 130, 72, 11, 5, false, false, false, false },  // hd no multiple of 16, groups of 3
        { 2, 2, 257, 16, 64, 0, false, false, false, false },
        { 4, 1, 129, 32, 70, 0, false, false, true, true },
        { 2, 1, 200, 128, 3, 0, true, true, false, false },
    };
    for (size_t i = 0; i < COUNTOF(asked); i++) {
        for (int kind = LOOK_SUM; kind <= LOOK_LAST; kind++) look_state(&asked[i], (LookKind)kind);
        look_window(&asked[i]);
    }
    for (int kind = LOOK_SUM; kind <= LOOK_WINDOW; kind++) {
        observe_one((LookKind)kind, 6, 2, 600, false);
        observe_one((LookKind)kind, 6, 2, 30, true);
        observe_one((LookKind)kind, 2, 2, 3, true);
    }
}

// make try K=evict: the end of a prompt in one layer of an 8B model: the attention of its last 32
// queries, the choice of 1024 rows, what is left of the lists
static void times(void) {
    enum { DIM = 128, H = 32, G = 8, WINDOW = 32, BUDGET = 1024 };
    const int lens[] = { 4096, 32768, 131072 };
    for (int i = 0; i < 3; i++) {
        size_t n = (size_t)lens[i], ld = n + 64;
        uint16_t *k = device_zeros<uint16_t>(G * n * DIM),
                 *q = device_zeros<uint16_t>((size_t)WINDOW * H * DIM);
        KeyList list[G];
        DeviceHead head[G];
        int32_t *live = device_zeros<int32_t>(G * n);
        memset(list, 0, sizeof list);
        memset(head, 0, sizeof head);
        for (int g = 0; g < G; g++) {
            list[g].k[1] = list[g].v[1] = k + (size_t)g * n * DIM;
            list[g].len = lens[i];
            head[g].live = live + (size_t)g * n;
            head[g].cap = lens[i];
        }
        KeyList *whole = to_device(list, G), *lists = to_device(list, G);
        DeviceHead *heads = to_device(head, G);
        float *lse = device_zeros<float>(H * WINDOW), *sums = device_zeros<float>(H * ld),
              *parts = device_zeros<float>((size_t)2 * LOOK_SPLITS * H * WINDOW),
              *score = device_zeros<float>(G * ld), *x = filled(G * ld, 90);
        uint8_t *keep = device_zeros<uint8_t>(G * ld);
        Choice *choice = device_zeros<Choice>(G), pick[G];
        LookRows a = { whole, lens[i], q, (size_t)H * DIM, DIM, WINDOW, H, G, DIM, 0.1f, 0, NULL,
                       NULL, NULL, 0, 0, 0 };
        Observed o = { lse, WINDOW, 1, NULL, sums, ld, NULL, GROUP_MEAN, 1, 0 };
        Scoring s = { whole, heads, G, H, lens[i], sums, ld, GROUP_MEAN, POOL_AVG, 5, 9, BUDGET,
                      WINDOW, score, NULL, ld, choice };
        char label[48];
        snprintf(label, sizeof label, "a window over %d", lens[i]);
        twin_time(label, [&] {
            cuda_look_lse(&a, lse, WINDOW, parts, twin_stream());
            cuda_look(LOOK_WINDOW, &a, &o, twin_stream());
            cuda_score(SCORE_WINDOW, &s, twin_stream());
        });
        for (int g = 0; g < G; g++) {
            Choice c = { lens[i] - WINDOW, BUDGET - WINDOW, lens[i] };
            pick[g] = c;
        }
        CUDA_OK(cudaMemcpy(score, x, G * ld * sizeof *x, cudaMemcpyHostToDevice));
        CUDA_OK(cudaMemcpy(choice, pick, sizeof pick, cudaMemcpyHostToDevice));
        snprintf(label, sizeof label, "the best of %d", lens[i]);
        twin_time(label, [&] {
            cuda_keep_top(score, ld, choice, G, false, keep, NULL, twin_stream());
        });
        snprintf(label, sizeof label, "eviction of %d", lens[i]);
        twin_time(label, [&] {
            CUDA_OK(cudaMemcpyAsync(lists, whole, sizeof list, cudaMemcpyDeviceToDevice,
                                    twin_stream()));
            cuda_evict(lists, heads, G, keep, ld, false, twin_stream());
        });
        void *all[] = { k, q, live, whole, lists, heads, lse, sums, parts, score, keep, choice };
        for (size_t j = 0; j < COUNTOF(all); j++) cudaFree(all[j]);
        free(x);
    }
}

int main(void) {
    Err err;
    if (twin_begin()) return 77;
    if (twin_timing()) { times(); return 0; }
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    choices();
    statistics();
    lists(700, 16, 2, true);
    lists(513, 12, 1, false);
    lists(40, 64, 0, true);
    lists(4, 16, 1, true);                      // the second list is empty
    reads(4, 300, 16, 16, 64, 3, true);
    reads(6, 330, 20, 16, 32, 2, false);        // at least three pages
    reads(2, 60, 16, 16, 64, 2, true);          // all of it
    reads(4, 600, 16, 1, 50, 3, false);
    return twin_end("evict");
}
