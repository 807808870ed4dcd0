// sparse.c - attention of one layer's first feed, sparse against dense, in the same rounds: one KV
// head of the 135M shape with its three query heads. Queries and keys are random, or planted: some
// columns that everybody looks at and three bands of distances, so that MInference finds clustered
// diagonals. Sizes are the preset's, scaled by the length as a run scales them.
#include "../../scb.h"
#include <omp.h>

enum { GROUP = 3, WIDTH = 64, COLUMNS = 40 };

typedef struct {
    AttnShape s;
    Mem mem;
    int n;
    char *k, *v, *panels, *scratch;
    int32_t *pos;
    float *q, *out, *probe;     // (n, H, hd) (n, H, hd) (H, 64, hd)
    size_t per_thread;
    KeyList list;
    Sparse *sparse;
} Layer;

static float uniform(uint64_t i) { return (float)(mix64(i) >> 40) * 0x1p-23f - 1.0f; }

// distance band b is at its best where i - j = at[b]: slow waves in 20 channels each
static float planted(bool query, int64_t t, int head, int c, int n) {
    int64_t at[3] = { 0, n / 3, n / 2 + 999 };
    if (c < 4) {
        bool column = mix64((uint64_t)t) % (uint64_t)(n / COLUMNS) == 0;
        return query ? 2.0f : column ? 3.0f : 0.0f;
    }
    int band = (c - 4) / 20, wave = (c - 4) % 20 / 2;
    double w = 0.02 * pow(0.75, wave), x = w * (double)(query ? t : t + at[band]);
    return (query ? 2.4f : 1.6f) * (float)(c & 1 ? sin(x) : cos(x)) * (1.0f - 0.1f * (float)head);
}

static void layer_fill(Layer *l, bool plant) {
#pragma omp parallel for
    for (int i = 0; i < l->n; i++) {
        uint64_t at = (uint64_t)i * 4096;
        for (int c = 0; c < WIDTH; c++) {
            float noise = 0.3f * uniform(at + (uint64_t)c);
            float k = plant ? planted(false, i, 0, c, l->n) + noise : 2.0f * uniform(at + (uint64_t)c);
            ((uint16_t *)l->k)[(size_t)i * WIDTH + c] = f32_bf16(k);
            ((uint16_t *)l->v)[(size_t)i * WIDTH + c] = f32_bf16(uniform(at + 100 + (uint64_t)c));
        }
        for (int h = 0; h < GROUP; h++)
            for (int c = 0; c < WIDTH; c++)
                l->q[((size_t)i * GROUP + h) * WIDTH + c] =
                    plant ? planted(true, i, h, c, l->n)
                          : 2.0f * uniform(at + 200 + (uint64_t)(h * WIDTH + c));
        l->pos[i] = i;
    }
    for (int e = 0; e < l->n; e += PANEL)
        attn_pack(&l->s, l->panels, &l->list, e, e + PANEL < l->n ? e + PANEL : l->n, l->scratch);
    for (int h = 0; h < GROUP; h++)
        for (int i = 0; i < 64; i++)
            memcpy(l->probe + (h * 64 + i) * WIDTH,
                   l->q + ((size_t)(l->n - 64 + i) * GROUP + h) * WIDTH, WIDTH * sizeof(float));
}

static void layer_open(Layer *l, int n) {
    size_t rows = (size_t)n;
    memset(l, 0, sizeof *l);
    l->n = n;
    l->s.kind = mul_kind(DT_BF16);
    l->s.head_dim = l->s.rope_dim = WIDTH;
    l->s.n_heads = GROUP;
    l->s.n_kv_heads = 1;
    l->s.elem = 2;
    l->s.scale = (float)(1.4426950408889634 / sqrt((double)WIDTH));
    l->per_thread = (attn_scratch_bytes(&l->s) + 4095) & ~(size_t)4095;
    l->k = TAKE(&l->mem, char, rows * WIDTH * 2, "keys");
    l->v = TAKE(&l->mem, char, rows * WIDTH * 2, "values");
    l->pos = TAKE(&l->mem, int32_t, rows, "positions");
    l->q = TAKE(&l->mem, float, rows * GROUP * WIDTH, "queries");
    l->out = TAKE(&l->mem, float, rows * GROUP * WIDTH, "results");
    l->probe = TAKE(&l->mem, float, GROUP * 64 * WIDTH, "last queries");
    l->panels = TAKE(&l->mem, char, (size_t)CEIL_DIV(n, PANEL) * attn_panel_bytes(&l->s), "panels");
    l->scratch = TAKE(&l->mem, char, l->per_thread * (size_t)cpu_threads(), "scratch");
    l->list.k[0] = l->list.k[1] = l->k;
    l->list.v[0] = l->list.v[1] = l->v;
    l->list.pos[0] = l->list.pos[1] = l->pos;
    l->list.split = l->list.len = n;
    l->sparse = sparse_open(&l->mem, &l->s);
}

static void layer_close(Layer *l) {
    size_t rows = (size_t)l->n;
    sparse_close(l->sparse);
    mem_give(&l->mem, l->k, rows * WIDTH * 2);
    mem_give(&l->mem, l->v, rows * WIDTH * 2);
    mem_give(&l->mem, l->pos, rows * sizeof *l->pos);
    mem_give(&l->mem, l->q, rows * GROUP * WIDTH * sizeof *l->q);
    mem_give(&l->mem, l->out, rows * GROUP * WIDTH * sizeof *l->out);
    mem_give(&l->mem, l->probe, GROUP * 64 * WIDTH * sizeof *l->probe);
    mem_give(&l->mem, l->panels, (size_t)CEIL_DIV(l->n, PANEL) * attn_panel_bytes(&l->s));
    mem_give(&l->mem, l->scratch, l->per_thread * (size_t)cpu_threads());
}

// as a dense feed goes: 128 rows share a panel, longest work first
static double dense(Layer *l) {
    double t = now_s();
    int blocks = CEIL_DIV(l->n, ATTN_ROWS);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * GROUP; item++) {
        int r = (blocks - 1 - item / GROUP) * ATTN_ROWS;
        size_t at = ((size_t)r * GROUP + (size_t)(item % GROUP)) * WIDTH;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = l->panels;
        a.q = l->q + at;
        a.ldq = a.ldo = GROUP * WIDTH;
        a.rows = l->n - r < ATTN_ROWS ? l->n - r : ATTN_ROWS;
        a.vis0 = r + 1;
        a.vis_step = 1;
        a.out = l->out + at;
        attn_rows(&l->s, &a, l->scratch + l->per_thread * (size_t)omp_get_thread_num());
    }
    return now_s() - t;
}

// seconds to make every list of the layer once more, without using it
static double lists(const Layer *l) {
    double t = now_s();
    int blocks = CEIL_DIV(l->n, SPARSE_ROWS);
    int64_t sink = 0;
#pragma omp parallel reduction(+ : sink)
    {
        KeySpan *span = (KeySpan *)xrealloc(NULL, sizeof *span * (size_t)(l->n + 64));
        int32_t *chosen = (int32_t *)xrealloc(NULL, sizeof *chosen * (size_t)(blocks + 1));
#pragma omp for schedule(dynamic, 4)
        for (int item = 0; item < blocks * GROUP; item++)
            sink += attn_list(sparse_head(l->sparse, item % GROUP), item / GROUP, l->q, span, chosen);
        free(span);
        free(chosen);
    }
    CHECK(sink > 0, "no lists");
    return now_s() - t;
}

typedef struct { const char *name; const char *method, *set[3]; bool plant; } Way;
static const Way ways[] = {
    { "a-shape", "a-shape", { NULL }, false },
    { "tri-shape", "tri-shape", { NULL }, false },
    { "block-sparse", "minference", { "head", "block-sparse" }, false },
    { "minference planted", "minference", { NULL }, true },
    { "minference random", "minference", { NULL }, false },
};

typedef struct { double plan, list, attn, dense, ratio; } Times;

static Method method_of(const Way *w, int n) {
    Method m;
    Err err = { "", 0 };
    CHECK(!method_find(w->method, &m, &err) &&
          (!w->set[0] || !method_set(&m, w->set[0], w->set[1], &err)) &&
          !method_resolve(&m, PRESET_SCBENCH, n, 0, -1, &err), "%s", err.msg);
    return m;
}

static void measure(Layer *l, const Way *w, Times *best) {
    Method m = method_of(w, l->n);
    HeadPattern head[GROUP];
    const void *panels[1] = { l->panels };
    method_heads(&m, 0, GROUP, head);
    SparseLayer layer = { head, m.prefill_size.dense_rows, &l->s, &l->list, panels, l->n, l->probe, 64 };
    sparse_reserve(l->sparse, l->n, method_verticals(&m), 0);
    double t = now_s();
    sparse_plan(l->sparse, &layer, l->scratch, l->per_thread);
    double plan = now_s() - t;
    t = now_s();
    int64_t pairs = sparse_rows(l->sparse, 0, l->n, l->q, l->out, NULL, 0, l->scratch,
                                l->per_thread);
    double attn = now_s() - t, list = lists(l), all = dense(l);
    best->ratio = (double)pairs / (double)(GROUP * sparse_all_pairs(l->n, l->n));
    if (plan < best->plan) best->plan = plan;
    if (list < best->list) best->list = list;
    if (attn < best->attn) best->attn = attn;
    if (all < best->dense) best->dense = all;
}

int main(int argc, char **argv) {
    static const int lengths[] = { 8192, 32768, 131072 }, rounds[] = { 15, 3, 1 };
    Err err = { "", 0 };
    int most = argc > 1 ? atoi(argv[1]) : 131072;
    CHECK(!cpu_init(0, &err), "%s", err.msg);
    printf("attention of one layer, one KV head of smollm2-135m with its 3 query heads, %s, %d "
           "threads; best of the rounds\n", cpu_isa(), cpu_threads());
    printf("%7s %-20s %7s %9s %9s %9s %9s %8s %9s %8s\n", "tokens", "lists", "pairs", "plan s",
           "lists s", "attn s", "dense s", "speedup", "of bound", "index %");
    for (size_t i = 0; i < COUNTOF(lengths) && lengths[i] <= most; i++) {
        Layer l;
        layer_open(&l, lengths[i]);
        for (size_t w = 0; w < COUNTOF(ways); w++) {
            Times t = { INFINITY, INFINITY, INFINITY, INFINITY, 0 };
            if (i == 2 && w == COUNTOF(ways) - 1) continue;     // dense twice over, to no end
            if (w == 0 || ways[w].plant != ways[w - 1].plant) layer_fill(&l, ways[w].plant);
            for (int r = 0; r < rounds[i]; r++) measure(&l, &ways[w], &t);
            double index = t.plan + t.list;         // the lists' part is inside attn s as well
            printf("%7d %-20s %7.4f %9.4f %9.4f %9.4f %9.4f %7.2fx %9.3f %8.2f\n", l.n, ways[w].name,
                   t.ratio, t.plan, t.list, t.attn, t.dense, t.dense / (t.plan + t.attn),
                   (t.plan + t.attn) / (1.3 * t.ratio * t.dense + index),
                   100 * index / (t.plan + t.attn));
            fflush(stdout);
        }
        layer_close(&l);
    }
    return 0;
}
