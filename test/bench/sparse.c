// sparse.c - attention of one layer's first feed, sparse against dense, in the same rounds: a layer
// of the 135M shape, three KV heads with nine query heads. Queries and keys are random, or planted:
// some columns that everybody looks at and three bands of distances, so that MInference finds
// clustered diagonals. Sizes are the preset's, scaled by the length as a run scales them. Beyond
// 64K tokens random diagonals, which cover nearly everything, are only counted.
//
// Attention is timed as a feed calls it: chunks of 512 rows, whose queries were just written and
// whose results lie in a buffer that the chunk before used.
//
//   sparse [TOKENS...]      default 8192 32768 131072
#include "../../scb.h"
#include <omp.h>

enum { KV_HEADS = 3, GROUP = 3, HEADS = KV_HEADS * GROUP, WIDTH = 64, COLUMNS = 40, CHUNK = 512 };

typedef struct {
    AttnShape s;
    Mem mem;
    int n;
    char *k, *v, *panels, *scratch;     // (G, n, hd) (G, n, hd) (G, panels)
    int32_t *pos;
    float *q, *probe;           // (n, H, hd) (H, 64, hd)
    float *now, *out;           // (512, H, hd) of a chunk
    size_t per_thread, panels_bytes;    // panels: of one KV head
    KeyList list[KV_HEADS];
    const void *at[KV_HEADS];   // its panels
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
        uint64_t seed = (uint64_t)i * 4096;
        for (int x = 0; x < KV_HEADS * WIDTH; x++) {
            int g = x / WIDTH, c = x % WIDTH;
            size_t at = ((size_t)g * l->n + (size_t)i) * WIDTH + (size_t)c;
            float noise = 0.3f * uniform(seed + (uint64_t)x);
            float k = 2.0f * uniform(seed + (uint64_t)x);
            ((uint16_t *)(void *)l->k)[at] =
                f32_bf16(plant ? planted(false, i, g, c, l->n) + noise : k);
            ((uint16_t *)(void *)l->v)[at] = f32_bf16(uniform(seed + 1000 + (uint64_t)x));
        }
        for (int x = 0; x < HEADS * WIDTH; x++)
            l->q[(size_t)i * HEADS * WIDTH + (size_t)x] =
                plant ? planted(true, i, x / WIDTH, x % WIDTH, l->n)
                      : 2.0f * uniform(seed + 2000 + (uint64_t)x);
        l->pos[i] = i;
    }
    for (int g = 0; g < KV_HEADS; g++)
        for (int e = 0; e < l->n; e += PANEL)
            attn_pack(&l->s, l->panels + (size_t)g * l->panels_bytes, &l->list[g], e,
                      e + PANEL < l->n ? e + PANEL : l->n, l->scratch);
    for (int h = 0; h < HEADS; h++)
        for (int i = 0; i < 64; i++)
            memcpy(l->probe + (h * 64 + i) * WIDTH,
                   l->q + ((size_t)(l->n - 64 + i) * HEADS + h) * WIDTH, WIDTH * sizeof(float));
}

static void layer_open(Layer *l, int n) {
    size_t rows = (size_t)n;
    memset(l, 0, sizeof *l);
    l->n = n;
    l->s.kind = mul_kind(DT_BF16);
    l->s.head_dim = l->s.rope_dim = WIDTH;
    l->s.n_heads = HEADS;
    l->s.n_kv_heads = KV_HEADS;
    l->s.elem = 2;
    l->s.scale = (float)(1.4426950408889634 / sqrt((double)WIDTH));
    l->per_thread = (attn_scratch_bytes(&l->s) + 4095) & ~(size_t)4095;
    l->k = TAKE(&l->mem, char, rows * KV_HEADS * WIDTH * 2, "keys");
    l->v = TAKE(&l->mem, char, rows * KV_HEADS * WIDTH * 2, "values");
    l->pos = TAKE(&l->mem, int32_t, rows, "positions");
    l->q = TAKE(&l->mem, float, rows * HEADS * WIDTH, "queries");
    l->now = TAKE(&l->mem, float, CHUNK * HEADS * WIDTH, "queries of a chunk");
    l->out = TAKE(&l->mem, float, CHUNK * HEADS * WIDTH, "results");
    l->probe = TAKE(&l->mem, float, HEADS * 64 * WIDTH, "last queries");
    l->panels_bytes = (size_t)CEIL_DIV(n, PANEL) * attn_panel_bytes(&l->s);
    l->panels = TAKE(&l->mem, char, KV_HEADS * l->panels_bytes, "panels");
    l->scratch = TAKE(&l->mem, char, l->per_thread * (size_t)cpu_threads(), "scratch");
    for (int g = 0; g < KV_HEADS; g++) {
        size_t at = (size_t)g * rows * WIDTH * 2;
        l->list[g].k[0] = l->list[g].k[1] = l->k + at;
        l->list[g].v[0] = l->list[g].v[1] = l->v + at;
        l->list[g].pos[0] = l->list[g].pos[1] = l->pos;
        l->list[g].split = l->list[g].len = n;
        l->at[g] = l->panels + (size_t)g * l->panels_bytes;
    }
    l->sparse = sparse_open(&l->mem, &l->s);
}

static void layer_close(Layer *l) {
    size_t rows = (size_t)l->n;
    sparse_close(l->sparse);
    mem_give(&l->mem, l->k, rows * KV_HEADS * WIDTH * 2);
    mem_give(&l->mem, l->v, rows * KV_HEADS * WIDTH * 2);
    mem_give(&l->mem, l->pos, rows * sizeof *l->pos);
    mem_give(&l->mem, l->q, rows * HEADS * WIDTH * sizeof *l->q);
    mem_give(&l->mem, l->now, CHUNK * HEADS * WIDTH * sizeof *l->now);
    mem_give(&l->mem, l->out, CHUNK * HEADS * WIDTH * sizeof *l->out);
    mem_give(&l->mem, l->probe, HEADS * 64 * WIDTH * sizeof *l->probe);
    mem_give(&l->mem, l->panels, KV_HEADS * l->panels_bytes);
    mem_give(&l->mem, l->scratch, l->per_thread * (size_t)cpu_threads());
}

// the queries of rows [first, first + n), as if a linear layer had just made them
static void make_queries(Layer *l, int first, int n) {
#pragma omp parallel for
    for (int i = 0; i < n; i++)
        memcpy(l->now + (size_t)i * HEADS * WIDTH, l->q + (size_t)(first + i) * HEADS * WIDTH,
               HEADS * WIDTH * sizeof(float));
}

// 128 rows share a panel, longest work first
static void dense_rows(Layer *l, int first, int n) {
    int blocks = CEIL_DIV(n, ATTN_ROWS);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * HEADS; item++) {
        int r = (blocks - 1 - item / HEADS) * ATTN_ROWS;
        size_t at = ((size_t)r * HEADS + (size_t)(item % HEADS)) * WIDTH;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = l->at[item % HEADS / GROUP];
        a.q = l->now + at;
        a.ldq = a.ldo = HEADS * WIDTH;
        a.rows = n - r < ATTN_ROWS ? n - r : ATTN_ROWS;
        a.vis0 = first + r + 1;
        a.vis_step = 1;
        a.out = l->out + at;
        attn_rows(&l->s, &a, l->scratch + l->per_thread * (size_t)omp_get_thread_num());
    }
}

// seconds of all chunks, and the pairs of a sparse one
static double attend(Layer *l, bool sparse, int64_t *pairs) {
    double sum = 0;
    for (int i = 0, n; i < l->n; i += n) {
        n = l->n - i < CHUNK ? l->n - i : CHUNK;
        make_queries(l, i, n);
        double t = now_s();
        if (sparse)
            *pairs += sparse_rows(l->sparse, i, n, l->now, l->out, NULL, 0, l->scratch,
                                  l->per_thread);
        else dense_rows(l, i, n);
        sum += now_s() - t;
    }
    return sum;
}

// pairs in the lists of rows [first, first + n)
static int64_t list_rows(const Layer *l, int first, int n) {
    int blocks = CEIL_DIV(n, SPARSE_ROWS);
    int64_t pairs = 0;
#pragma omp parallel for schedule(dynamic, 4) reduction(+ : pairs)
    for (int item = 0; item < blocks * HEADS; item++) {
        int r = item % blocks * SPARSE_ROWS, h = item / blocks, m;
        int64_t rows = n - r < SPARSE_ROWS ? n - r : SPARSE_ROWS;
        const KeySpan *span = sparse_list(l->sparse, h, (first + r) / SPARSE_ROWS,
                                          l->now + ((size_t)r * HEADS + (size_t)h) * WIDTH,
                                          HEADS * WIDTH, &m);
        for (int x = 0; x < m; x++) pairs += rows * span[x].n;
    }
    return pairs;
}

// seconds to make every list of the layer once more, without using it, and the pairs they hold.
// Queries are in cache, attention itself loads them.
static double lists(Layer *l, int64_t *pairs) {
    double sum = 0;
    *pairs = 0;
    for (int i = 0, n; i < l->n; i += n) {
        n = l->n - i < CHUNK ? l->n - i : CHUNK;
        make_queries(l, i, n);
        *pairs += list_rows(l, i, n);
        double t = now_s();
        int64_t again = list_rows(l, i, n);
        sum += now_s() - t;
        CHECK(again > 0, "lists without pairs");
    }
    return sum;
}

typedef struct {
    const char *name, *method, *set[2];
    bool plant;
    bool counted;                       // lists alone
} Way;
static Way ways[] = {             // those of equal queries and keys side by side
    { "a-shape", "a-shape", { NULL }, false, false },
    { "tri-shape", "tri-shape", { NULL }, false, false },
    { "block-sparse", "minference", { "head", "block-sparse" }, false, false },
    { "minference random", "minference", { NULL }, false, false },
    { "minference planted", "minference", { NULL }, true, false },
};
enum { WAYS = COUNTOF(ways), RANDOM = 3 };

typedef struct { double plan, list, attn, ratio; } Times;

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
    HeadPattern head[HEADS];
    method_heads(&m, 0, HEADS, head);
    SparseLayer layer = { head, m.prefill_size.dense_rows, &l->s, l->list, l->at, l->n, l->probe,
                          64 };
    sparse_reserve(l->sparse, l->n, method_verticals(&m), 0);
    double t = now_s();
    sparse_plan(l->sparse, &layer, l->scratch, l->per_thread);
    double plan = now_s() - t;
    int64_t pairs = 0, listed;
    double list = lists(l, &listed);
    if (w->counted) {
        best->ratio = (double)listed / (double)(HEADS * sparse_all_pairs(l->n, l->n));
        return;
    }
    double attn = attend(l, true, &pairs);
    CHECK(pairs == listed, "%lld pairs computed, %lld listed", (long long)pairs, (long long)listed);
    best->ratio = (double)pairs / (double)(HEADS * sparse_all_pairs(l->n, l->n));
    if (plan < best->plan) best->plan = plan;
    if (list < best->list) best->list = list;
    if (attn < best->attn) best->attn = attn;
}

static void print(const Layer *l, const Way *w, const Times *t, double all) {
    if (w->counted) {
        printf("%7d %-20s %7.4f  counted only\n", l->n, w->name, t->ratio);
        return;
    }
    double index = t->plan + t->list;           // the lists' part is inside attn s as well
    printf("%7d %-20s %7.4f %9.4f %9.4f %9.4f %9.4f %7.2fx %9.3f %8.2f\n", l->n, w->name, t->ratio,
           t->plan, t->list, t->attn, all, all / (t->plan + t->attn),
           (t->plan + t->attn) / (1.3 * t->ratio * all + index), 100 * index / (t->plan + t->attn));
    fflush(stdout);
}

// a round: every way, then dense attention over the same queries and keys
static void length(int n) {
    int rounds = n <= 8192 ? 15 : n <= 32768 ? 3 : 1;
    ways[RANDOM].counted = n > 65536;
    Layer l;
    layer_open(&l, n);
    for (int first = 0, end; first < WAYS; first = end) {
        Times best[WAYS];
        double all = INFINITY;
        for (end = first; end < WAYS && ways[end].plant == ways[first].plant; end++)
            best[end] = (Times){ INFINITY, INFINITY, INFINITY, 0 };
        layer_fill(&l, ways[first].plant);
        for (int r = 0; r < rounds; r++) {
            for (int w = first; w < end; w++) measure(&l, &ways[w], &best[w]);
            double t = attend(&l, false, NULL);
            if (t < all) all = t;
        }
        for (int w = first; w < end; w++) print(&l, &ways[w], &best[w], all);
    }
    layer_close(&l);
}

int main(int argc, char **argv) {
    static const int lengths[] = { 8192, 32768, 131072 };
    Err err = { "", 0 };
    CHECK(!cpu_init(0, &err), "%s", err.msg);
    printf("attention of one layer of smollm2-135m, 9 query heads on 3 KV heads, %s, %d threads; "
           "best of the rounds\n", cpu_isa(), cpu_threads());
    printf("of bound: (plan + attn) / (1.3 pairs dense + index); index: plan and lists, of plan + "
           "attn\n");
    printf("%7s %-20s %7s %9s %9s %9s %9s %8s %9s %8s\n", "tokens", "lists", "pairs", "plan s",
           "lists s", "attn s", "dense s", "speedup", "of bound", "index %");
    for (size_t i = 0; argc < 2 && i < COUNTOF(lengths); i++) length(lengths[i]);
    for (int i = 1; i < argc; i++) {
        int64_t n;
        CHECK(!parse_int("TOKENS", argv[i], 64, 1 << 20, &n, &err), "%s", err.msg);
        length((int)n);
    }
    return 0;
}
