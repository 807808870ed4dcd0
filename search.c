// search.c - MInference's offline pattern search (Jiang et al., arXiv 2407.02490, section 3.2): one
// generated session of retr_kv is fed densely; in every layer each candidate pattern of each query
// head is compared with what dense attention does, and the best one is written.
//
//   recall    the share of attention's probability that a candidate's pairs hold, the mean over the
//             rows from 2,500 on; the most is best. Pairs one by one, without the fill of blocks.
//   output    |dense - sparse|^2 / |dense|^2 of the head's outputs; the least is best. The lists
//             and the kernel of a run.
// Columns and distances are estimated from the last 64 rows in both. Differs: the released search
// scores recall and stores the winners "a-shape" as (100, 800) and "block-sparse" as (1000, 6096)
// vertical-slash heads; so does --space released.
#include "tasks/tasks.h"
#include <omp.h>

typedef struct {
    const char *out, *space, *score;
    int ctx, threads, chunk;
    int64_t seed;
    bool verify, quiet, help;
} SearchOpts;

#define AT(field) offsetof(SearchOpts, field)
static const OptSpec search_opts[] = {
    { "--out", NULL, OPT_STR, AT(out), NULL, "PATTERN.json", "the file to write" },
    { "--ctx", NULL, OPT_INT, AT(ctx), "0", "TOKENS",
      "of the session; 0: 30000 or what the model takes, if that is less" },
    { "--space", NULL, OPT_STR, AT(space), "paper", "paper|released",
      "candidates: the paper's (arXiv 2412.10319, table 9) or the released program's" },
    { "--score", NULL, OPT_STR, AT(score), "recall", "recall|output",
      "what is compared: attention's probability, as released, or its output, as in the paper" },
    { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "of the session" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N", "tokens per prefill chunk; 0: 512" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores; changes no bit" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the model file's checksums (always below 1 GB)" },
    { "--quiet", NULL, OPT_FLAG, AT(quiet), NULL, NULL, "no progress" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};

enum { MOST_CANDIDATES = 8, FROM_ROW = 2500, FORCED = 30, RELEASED_TILE = 32, LENGTH = 30000 };

#define KEEP(k, x, y) { { k, x, y, 0 }, { k, x, y, 0 }, SPARSE_ROWS }
static const Candidate paper_space[] = {
    KEEP(HEAD_A_SHAPE, 1024, 4096),        KEEP(HEAD_VERTICAL_SLASH, 30, 2048),
    KEEP(HEAD_VERTICAL_SLASH, 100, 1800),  KEEP(HEAD_VERTICAL_SLASH, 500, 1500),
    KEEP(HEAD_VERTICAL_SLASH, 3000, 200),  KEEP(HEAD_BLOCK_SPARSE, 100, 0),
};
static const Candidate released_recall[] = {
    { { HEAD_A_SHAPE, 100, 801, 0 }, { HEAD_VERTICAL_SLASH, 100, 800, 0 }, SPARSE_ROWS },
    KEEP(HEAD_VERTICAL_SLASH, 30, 800),    KEEP(HEAD_VERTICAL_SLASH, 100, 750),
    KEEP(HEAD_VERTICAL_SLASH, 500, 700),   KEEP(HEAD_VERTICAL_SLASH, 3500, 100),
    { { HEAD_BLOCK_SPARSE, 0, 0, 0 }, { HEAD_VERTICAL_SLASH, 1000, 6096, 0 }, RELEASED_TILE },
};
static const Candidate released_output[] = {
    KEEP(HEAD_A_SHAPE, 100, 800),          KEEP(HEAD_VERTICAL_SLASH, 30, 800),
    KEEP(HEAD_VERTICAL_SLASH, 100, 800),   KEEP(HEAD_VERTICAL_SLASH, 100, 750),
    KEEP(HEAD_VERTICAL_SLASH, 500, 700),   KEEP(HEAD_VERTICAL_SLASH, 3500, 100),
    KEEP(HEAD_VERTICAL_SLASH, 1000, 4096), KEEP(HEAD_BLOCK_SPARSE, 100, 0),
};

typedef struct {                        // one layer as attention reads it
    const LayerSeen *seen;
    KeyList *keys;                      // (G)
    const void **panels;                // (G)
    float *probe;                       // (H, rows, hd)
    int probe_rows;
    char *scratch;
    size_t per_thread, panel_bytes;     // panels: of one KV head
} Layer;

static void *take(Search *s, size_t bytes) { return mem_take(&s->mem, bytes, 1, "the search"); }

static void layer_open(Search *s, const LayerSeen *seen, Layer *y) {
    const AttnShape *a = seen->shape;
    size_t hd = (size_t)a->head_dim, heads = (size_t)a->n_heads;
    int n = seen->n;
    memset(y, 0, sizeof *y);
    y->seen = seen;
    y->keys = (KeyList *)calloc((size_t)a->n_kv_heads, sizeof *y->keys);
    y->panels = (const void **)calloc((size_t)a->n_kv_heads, sizeof *y->panels);
    y->per_thread = (attn_scratch_bytes(a) + 4095) & ~(size_t)4095;
    y->scratch = (char *)take(s, y->per_thread * (size_t)cpu_threads());
    y->panel_bytes = (size_t)CEIL_DIV(n, PANEL) * attn_panel_bytes(a);
    for (int g = 0; g < a->n_kv_heads; g++) {
        char *panels = (char *)take(s, y->panel_bytes);
        y->keys[g].k[0] = y->keys[g].k[1] = seen->k[g];
        y->keys[g].v[0] = y->keys[g].v[1] = seen->v[g];
        y->keys[g].split = y->keys[g].len = n;
        y->panels[g] = panels;
        for (int e = 0; e < n; e += PANEL)
            attn_pack(a, panels, &y->keys[g], e, e + PANEL < n ? e + PANEL : n, y->scratch);
    }
    y->probe_rows = n < SPARSE_ROWS ? n : SPARSE_ROWS;
    y->probe = (float *)take(s, heads * (size_t)y->probe_rows * hd * sizeof(float));
    for (size_t h = 0; h < heads; h++)
        for (int i = 0; i < y->probe_rows; i++)
            memcpy(y->probe + (h * (size_t)y->probe_rows + (size_t)i) * hd,
                   seen->q + ((size_t)(n - y->probe_rows + i) * heads + h) * hd,
                   hd * sizeof(float));
}

static void layer_close(Search *s, Layer *y) {
    const AttnShape *a = y->seen->shape;
    size_t probe = (size_t)a->n_heads * (size_t)y->probe_rows * (size_t)a->head_dim;
    for (int g = 0; g < a->n_kv_heads; g++) mem_give(&s->mem, (void *)y->panels[g], y->panel_bytes);
    mem_give(&s->mem, y->probe, probe * sizeof(float));
    mem_give(&s->mem, y->scratch, y->per_thread * (size_t)cpu_threads());
    free(y->keys);
    free((void *)y->panels);
}

static char *scratch_of(const Layer *y) {
    return y->scratch + y->per_thread * (size_t)omp_get_thread_num();
}

// ---------------------------------------------------------------------------
// Recall

typedef struct {                        // what a candidate keeps of one head
    int32_t *vertical, *distance;       // ascending
    int n_vertical, n_distance;
    uint8_t *column;                    // (n) is a kept column
    uint8_t *tile;                      // (tiles, tiles) row tile r looks at tile c
} Kept;

static void kept_free(Kept *k) {
    free(k->vertical);
    free(k->distance);
    free(k->column);
    free(k->tile);
}

// column and distance sums are spent
static void keep_vertical_slash(const Candidate *c, float *column, float *distance, int n,
                                Kept *k) {
    uint64_t *slash = (uint64_t *)calloc((size_t)CEIL_DIV(n, 64), sizeof *slash);
    k->vertical = (int32_t *)calloc((size_t)n, sizeof *k->vertical);
    k->distance = (int32_t *)calloc((size_t)n, sizeof *k->distance);
    k->column = (uint8_t *)calloc((size_t)n, 1);
    k->n_vertical = attn_select(column, distance, n, c->pattern.a, c->pattern.b, FORCED,
                                k->vertical, slash, k->distance);
    for (int i = 0; i < k->n_vertical; i++) k->column[k->vertical[i]] = 1;
    k->n_distance = 0;
    for (int d = 0; d < n; d++)
        if (slash[d / 64] >> d % 64 & 1) k->distance[k->n_distance++] = d;
    free(slash);
}

// tiles by the product of the means; without scale, as released
static void keep_tiles(const Candidate *c, const Layer *y, int h, Kept *k) {
    const AttnShape *a = y->seen->shape;
    int n = y->seen->n, hd = a->head_dim, tiles = CEIL_DIV(n, c->tile);
    int keep = c->tile == RELEASED_TILE ? tiles / 8 : c->pattern.a;
    const char *key = (const char *)y->seen->k[h / (a->n_heads / a->n_kv_heads)];
    float *mean = (float *)calloc(2 * (size_t)tiles * (size_t)hd, sizeof *mean);
    float *score = (float *)calloc((size_t)tiles, sizeof *score);
    int32_t *chosen = (int32_t *)calloc((size_t)tiles, sizeof *chosen);
    k->tile = (uint8_t *)calloc((size_t)tiles * (size_t)tiles, 1);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < hd; i++) {
            size_t at = (size_t)j * hd + (size_t)i, to = (size_t)(j / c->tile) * hd + (size_t)i;
            mean[to] += y->seen->q[((size_t)j * a->n_heads + (size_t)h) * hd + (size_t)i];
            mean[(size_t)tiles * hd + to] += a->elem == 4
                ? ((const float *)(const void *)key)[at]
                : bf16_f32(((const uint16_t *)(const void *)key)[at]);
        }
    for (int r = 0; r < tiles; r++) {
        for (int t = 0; t <= r; t++) {
            float lane[LANES] = { 0 };
            for (int i = 0; i < hd; i++)
                lane[i % LANES] = fmaf(mean[(size_t)r * hd + i],
                                       mean[(size_t)(tiles + t) * hd + i], lane[i % LANES]);
            score[t] = lanes_sum(lane);
        }
        int m = top_k(score, r + 1, keep < 1 ? 1 : keep < r + 1 ? keep : r + 1, chosen);
        for (int i = 0; i < m; i++) k->tile[(size_t)r * tiles + chosen[i]] = 1;
    }
    free(mean);
    free(score);
    free(chosen);
}

static Kept keep(const Candidate *c, const Layer *y, int h) {
    const AttnShape *a = y->seen->shape;
    int n = y->seen->n;
    Kept k;
    memset(&k, 0, sizeof k);
    if (c->pattern.kind == HEAD_BLOCK_SPARSE) keep_tiles(c, y, h, &k);
    if (c->pattern.kind != HEAD_VERTICAL_SLASH) return k;
    float *sums = (float *)calloc((size_t)n * 2, sizeof *sums);
    AttnProbe probe = { y->panels[h / (a->n_heads / a->n_kv_heads)], n,
                        y->probe + (size_t)h * y->probe_rows * a->head_dim, y->probe_rows };
    attn_estimate(a, &probe, sums, sums + n, scratch_of(y));
    keep_vertical_slash(c, sums, sums + n, n, &k);
    free(sums);
    return k;
}

// probability p (i + 1) of row i within a candidate's pairs
static double recall_row(const Candidate *c, const Kept *k, const float *p, int i, int n) {
    double sum = 0;
    if (c->pattern.kind == HEAD_A_SHAPE) {
        int from = i - c->pattern.b + 1 > c->pattern.a ? i - c->pattern.b + 1 : c->pattern.a;
        for (int j = 0; j <= i && j < c->pattern.a; j++) sum += p[j];
        for (int j = from; j <= i; j++) sum += p[j];
    } else if (c->pattern.kind == HEAD_VERTICAL_SLASH) {
        for (int x = 0; x < k->n_vertical && k->vertical[x] <= i; x++) sum += p[k->vertical[x]];
        for (int x = 0; x < k->n_distance && k->distance[x] <= i; x++)
            if (!k->column[i - k->distance[x]]) sum += p[i - k->distance[x]];
    } else {
        int tiles = CEIL_DIV(n, c->tile);
        const uint8_t *row = k->tile + (size_t)(i / c->tile) * tiles;
        for (int t = 0; t <= i / c->tile; t++)
            for (int j = t * c->tile; row[t] && j <= i && j < (t + 1) * c->tile; j++) sum += p[j];
    }
    return sum;
}

// rows [first, first + rows) of one head under all candidates: recall (rows, candidates)
static void recall_strip(const Search *s, const Layer *y, int h, const Kept *kept, int first,
                         int rows, float *p, double *recall) {
    const AttnShape *a = y->seen->shape;
    float lse2[STRIP_ROWS];
    AttnRows r;
    memset(&r, 0, sizeof r);
    r.panels = y->panels[h / (a->n_heads / a->n_kv_heads)];
    r.ldq = (size_t)a->n_heads * a->head_dim;
    r.q = y->seen->q + (size_t)first * r.ldq + (size_t)h * a->head_dim;
    r.rows = rows;
    r.vis0 = first + 1;
    r.vis_step = 1;
    r.lse2 = lse2;
    r.scores = p;
    r.ld_scores = (size_t)s->n;
    attn_rows(a, &r, scratch_of(y));
    for (int i = 0; i < rows; i++) {
        float *row = p + (size_t)i * s->n;
        for (int j = 0; j <= first + i; j++) row[j] = fexp2(row[j] - lse2[i]);
        for (int c = 0; c < s->n_space; c++)
            recall[i * s->n_space + c] = recall_row(&s->space[c], &kept[c], row, first + i, s->n);
    }
}

// true: stop
static bool advance(const Search *s, const LayerSeen *seen, int done, int of) {
    double layer = seen->layer + (double)done / of;
    if (s->progress) progress_update(s->progress, s->n * layer / s->found.n_layers);
    return interrupted();
}

// score (candidates) of one head
static void head_recall(const Search *s, const Layer *y, int h, double *score) {
    int from = s->n > 2 * FROM_ROW ? FROM_ROW : s->n / 2;
    int strips = CEIL_DIV(s->n - from, STRIP_ROWS);
    Kept kept[MOST_CANDIDATES];
    double *recall = (double *)calloc((size_t)strips * STRIP_ROWS * s->n_space, sizeof *recall);
#pragma omp parallel
    {
        float *p = (float *)xrealloc(NULL, (size_t)STRIP_ROWS * (size_t)s->n * sizeof *p);
#pragma omp for schedule(dynamic, 1)
        for (int c = 0; c < s->n_space; c++) kept[c] = keep(&s->space[c], y, h);
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < strips; i++) {
            int at = strips - 1 - i, first = from + at * STRIP_ROWS;
            int rows = s->n - first < STRIP_ROWS ? s->n - first : STRIP_ROWS;
            recall_strip(s, y, h, kept, first, rows, p,
                         recall + (size_t)at * STRIP_ROWS * s->n_space);
        }
        free(p);
    }
    for (int c = 0; c < s->n_space; c++) {
        score[c] = 0;
        for (int i = 0; i < s->n - from; i++)
            score[c] += recall[(size_t)i * s->n_space + (size_t)c];
        score[c] /= s->n - from;
        kept_free(&kept[c]);
    }
    free(recall);
}

// ---------------------------------------------------------------------------
// Output

static void dense_output(const Layer *y, float *out) {
    const AttnShape *a = y->seen->shape;
    size_t ld = (size_t)a->n_heads * a->head_dim;
    int blocks = CEIL_DIV(y->seen->n, ATTN_ROWS);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * a->n_heads; item++) {
        int h = item % a->n_heads, first = (blocks - 1 - item / a->n_heads) * ATTN_ROWS;
        AttnRows r;
        memset(&r, 0, sizeof r);
        r.panels = y->panels[h / (a->n_heads / a->n_kv_heads)];
        r.ldq = r.ldo = ld;
        r.q = y->seen->q + (size_t)first * ld + (size_t)h * a->head_dim;
        r.out = out + (size_t)first * ld + (size_t)h * a->head_dim;
        r.rows = y->seen->n - first < ATTN_ROWS ? y->seen->n - first : ATTN_ROWS;
        r.vis0 = first + 1;
        r.vis_step = 1;
        attn_rows(a, &r, scratch_of(y));
    }
}

static void plan_all(Sparse *lists, const Layer *y, const HeadPattern *pattern) {
    SparseLayer layer = { pattern, 0, y->seen->shape, y->keys, y->panels, y->seen->n, y->probe,
                          y->probe_rows };
    sparse_plan(lists, &layer, y->scratch, y->per_thread);
}

// error (H, candidates) of all heads
static void heads_output(Search *s, const Layer *y, Sparse *lists, HeadPattern *pattern,
                         double *error) {
    const AttnShape *a = y->seen->shape;
    size_t ld = (size_t)a->n_heads * a->head_dim, bytes = (size_t)s->n * ld * sizeof(float);
    float *dense = (float *)take(s, bytes), *sparse = (float *)take(s, bytes);
    dense_output(y, dense);
    for (int c = 0; c < s->n_space && !advance(s, y->seen, c, s->n_space); c++) {
        for (int h = 0; h < a->n_heads; h++) pattern[h] = s->space[c].pattern;
        plan_all(lists, y, pattern);
        sparse_rows(lists, 0, s->n, y->seen->q, sparse, NULL, 0, y->scratch, y->per_thread);
#pragma omp parallel for
        for (int h = 0; h < a->n_heads; h++) {
            double off = 0, all = 0;
            for (int i = 0; i < s->n; i++)
                for (int x = 0; x < a->head_dim; x++) {
                    size_t at = (size_t)i * ld + (size_t)(h * a->head_dim + x);
                    double d = (double)dense[at] - sparse[at];
                    off += d * d;
                    all += (double)dense[at] * dense[at];
                }
            error[h * s->n_space + c] = off / all;
        }
    }
    mem_give(&s->mem, dense, bytes);
    mem_give(&s->mem, sparse, bytes);
}

// ---------------------------------------------------------------------------
// One layer: the best of every head, and what share of the pairs it computes at this length

static double pairs_share(const Sparse *lists, int h, int n, KeySpan *span, int32_t *chosen) {
    const HeadLists *l = sparse_head(lists, h);
    int64_t pairs = 0;
    for (int r = 0; r < n; r += SPARSE_ROWS) {
        int rows = n - r < SPARSE_ROWS ? n - r : SPARSE_ROWS, entries = 0;
        if (l->kind == HEAD_BLOCK_SPARSE) {
            entries = l->blocks * SPARSE_ROWS < r + rows ? l->blocks * SPARSE_ROWS : r + rows;
        } else {
            int m = attn_list(l, r / SPARSE_ROWS, NULL, span, chosen);
            for (int i = 0; i < m; i++) entries += span[i].n;
        }
        pairs += (int64_t)rows * entries;
    }
    return (double)pairs / (double)sparse_all_pairs(n, n);
}

// the best of every head by score (H, candidates)
static void choose(const Search *s, int heads, const double *score, HeadPattern *found) {
    for (int h = 0; h < heads; h++) {
        const double *x = score + (size_t)h * s->n_space;
        int best = 0;
        for (int c = 1; c < s->n_space; c++)
            if (s->output ? x[c] < x[best] : x[c] > x[best]) best = c;
        found[h] = s->space[best].stored;
        found[h].score = x[best];
    }
}

void search_layer(void *search, const LayerSeen *seen) {
    Search *s = (Search *)search;
    const AttnShape *a = seen->shape;
    int heads = a->n_heads, columns = 0;
    HeadPattern *found = s->found.head + (size_t)seen->layer * heads;
    if (interrupted()) return;
    double *score = (double *)calloc((size_t)heads * s->n_space, sizeof *score);
    Layer y;
    layer_open(s, seen, &y);
    for (int c = 0; c < s->n_space; c++) {
        const HeadPattern *p[2] = { &s->space[c].pattern, &s->space[c].stored };
        for (int i = 0; i < 2; i++)
            if (p[i]->kind == HEAD_VERTICAL_SLASH && p[i]->a > columns) columns = p[i]->a;
    }
    Sparse *lists = sparse_open(&s->mem, a);
    sparse_reserve(lists, s->n, columns, 0);
    if (s->output) heads_output(s, &y, lists, found, score);
    else for (int h = 0; h < heads && !advance(s, seen, h, heads); h++)
        head_recall(s, &y, h, score + (size_t)h * s->n_space);
    choose(s, heads, score, found);
    plan_all(lists, &y, found);
    KeySpan *span = (KeySpan *)calloc((size_t)s->n + SPARSE_ROWS, sizeof *span);
    int32_t *chosen = (int32_t *)calloc((size_t)s->n + 1, sizeof *chosen);
    for (int h = 0; h < heads; h++)
        s->share[(size_t)seen->layer * heads + (size_t)h] =
            pairs_share(lists, h, s->n, span, chosen);
    free(span);
    free(chosen);
    free(score);
    sparse_close(lists);
    layer_close(s, &y);
}

// ---------------------------------------------------------------------------
// The command

static int read_space(const SearchOpts *o, Search *s, Err *err) {
    static const char *const spaces[] = { "paper", "released" };
    static const char *const scores[] = { "recall", "output" };
    int released = opt_choose("--space", o->space, spaces, 2, err);
    int output = opt_choose("--score", o->score, scores, 2, err);
    if (released < 0 || output < 0) return -1;
    s->output = output;
    s->space = !released ? paper_space : output ? released_output : released_recall;
    s->n_space = (int)(!released ? COUNTOF(paper_space) : output ? COUNTOF(released_output)
                                                                 : COUNTOF(released_recall));
    return 0;
}

// a session of retr_kv and its first question
static int session_of(const SearchOpts *o, const Tok *tok, int ctx, IntVec *ids, Err *err) {
    Prompter prompter;
    ChatPieces plain;
    Session session;
    Maker maker = { .task = &task_retr_kv, .seed = (uint64_t)o->seed, .n_turns = 1, .n_play = 1 };
    prompter_open(&prompter, tok, false, &plain);
    int rc = session_fit(&prompter, &maker, 1, ctx, 0, &session, err);
    free(plain.ids[CHAT_PREFIX].p);
    if (rc) return -1;
    ints_add(ids, session.context.p, session.context.n);
    ints_add(ids, session.turn[0].first.p, session.turn[0].first.n);
    session_free(&session);
    return 0;
}

// what the search takes beside the model and its rows: a layer's queries and packed keys, for
// outputs two more of the former, rows of probabilities per thread
static size_t search_bytes(const Search *s, const Config *c) {
    size_t n = (size_t)s->n, heads = (size_t)c->n_heads * (size_t)c->head_dim * sizeof(float);
    size_t keys = 2 * (size_t)c->n_kv_heads * (size_t)c->head_dim * 2;
    return n * (heads * (s->output ? 3 : 1) + keys +
                (size_t)cpu_threads() * STRIP_ROWS * sizeof(float));
}

static int fits(const Search *s, const Config *c, const Method *full, int chunk, Err *err) {
    size_t have = memory_available();
    size_t need = plan_run(c, full, s->n, s->n, 0, false, -1, chunk).total + search_bytes(s, c);
    if (!have || need <= have) return 0;
    return FAIL_CODE(err, EXIT_MEMORY, "a search over %d tokens needs %zu MB, %zu MB are "
                     "available; try a smaller --ctx", s->n, need >> 20, have >> 20);
}

static bool stop(void *user, double share) {
    (void)user;
    (void)share;
    return interrupted();
}

static int feed(Search *s, Model *m, const IntVec *ids, int chunk, Err *err) {
    Method full;
    s->n = (int)ids->n;
    if (method_find("full", &full, err) ||
        method_resolve(&full, PRESET_SCBENCH, s->n, 0, -1, err) ||
        fits(s, model_config(m), &full, chunk, err))
        return -1;
    model_set_progress(m, stop, NULL);
    model_set_layer_look(m, search_layer, s);
    Branch *b = branch_open(m, NULL, &full, 0, err);
    int rc = b ? branch_feed(b, ids->p, s->n, FEED_FIRST | FEED_NO_LOGITS, err) : -1;
    branch_drop(b);
    model_set_layer_look(m, NULL, NULL);
    if (!rc && interrupted()) rc = FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
    return rc;
}

static void print_found(const Search *s) {
    static const char *const kind[] = { "vertical-slash", "a-shape", "block-sparse" };
    int heads = s->found.n_layers * s->found.n_heads;
    double all = 0;
    printf("%5s %4s  %-14s %6s %6s  %-8s %10s\n", "layer", "head", "pattern", "size", "size",
           s->output ? "error" : "recall", "sparsity %");
    for (int i = 0; i < heads; i++) {
        const HeadPattern *p = &s->found.head[i];
        printf("%5d %4d  %-14s %6d %6d  %-8.5f %10.2f\n", i / s->found.n_heads,
               i % s->found.n_heads, kind[p->kind], p->a, p->b, p->score,
               100 * (1 - s->share[i]));
        all += s->share[i];
    }
    printf("mean of %d heads at %d tokens: sparsity %.2f %%, %.2f %% of the pairs are computed\n",
           heads, s->n, 100 * (1 - all / heads), 100 * all / heads);
}

static int search_run(const SearchOpts *o, const char *path, Search *s, Err *err) {
    ModelFile file;
    ModelOpts opts = { .chunk = o->chunk };
    Progress progress;
    IntVec ids = { 0 };
    memset(&file, 0, sizeof file);
    if (cpu_init(o->threads, err) || file_open(&file, path, o->verify, err)) return -1;
    Tok *tok = tok_open(&file, err);
    Model *m = tok ? model_open(&file, &opts, err) : NULL;
    int rc = m ? 0 : -1;
    if (!rc) {
        const Config *c = model_config(m);
        int most = c->max_ctx < LENGTH ? c->max_ctx : LENGTH, ctx = o->ctx ? o->ctx : most;
        s->found.n_layers = config_attn_layers(c);
        s->found.n_heads = c->n_heads;
        if (!s->found.n_layers) rc = FAIL(err, "%s has no attention to search in", path);
        else if (ctx > c->max_ctx)
            rc = FAIL(err, "--ctx %d: %s takes %d tokens", ctx, path, c->max_ctx);
        else rc = session_of(o, tok, ctx, &ids, err);
    }
    if (!rc) {
        size_t heads = (size_t)s->found.n_layers * (size_t)s->found.n_heads;
        s->found.head = (HeadPattern *)calloc(heads, sizeof *s->found.head);
        s->share = (double *)calloc(heads, sizeof *s->share);
        interrupt_install();
        progress_begin(&progress, "search", (double)ids.n, o->quiet);
        s->progress = &progress;
        rc = feed(s, m, &ids, o->chunk, err);
        progress_end(&progress);
    }
    if (!rc) rc = pattern_write(&s->found, o->out, err);
    if (!rc) print_found(s);
    free(ids.p);
    model_close(m);
    if (tok) tok_close(tok);
    file_close(&file);
    return rc;
}

int search_command(int argc, char **argv, Err *err) {
    SearchOpts o;
    StrList pos;
    Search s;
    memset(&s, 0, sizeof s);
    int rc = opts_parse(search_opts, (int)COUNTOF(search_opts), argc, argv, &o, &pos, err);
    if (!rc && o.help) {
        puts("usage: scbench search MODEL.bin --out PATTERN.json [options]\n");
        opts_help(stdout, search_opts, (int)COUNTOF(search_opts));
    } else if (!rc && (pos.n != 1 || !o.out)) {
        rc = FAIL_CODE(err, EXIT_USAGE, "usage: scbench search MODEL.bin --out PATTERN.json "
                       "[options]; see --help");
    } else if (!rc && (o.ctx < 0 || o.chunk < 0 || o.threads < 0)) {
        rc = FAIL_CODE(err, EXIT_USAGE, "--ctx, --chunk and --threads cannot be negative");
    } else if (!rc && !(rc = read_space(&o, &s, err))) rc = search_run(&o, pos.p[0], &s, err);
    free(s.found.head);
    free(s.share);
    free(pos.p);
    return rc;
}
