// Attention on the device against the CPU's, on the same rows and lists: a step of several branches
// (split keys, shared rows), a dense feed, a sparse feed over the same lists, fp32 models.
#include "products.h"
#include "test/cuda/twin.h"
#include <vector>

// bf16: P is rounded relative to the largest score of all so far, on the CPU to that of its panel,
// so probabilities differ by up to 2^-8 each way; they average over the keys. Scores differ by the
// order of additions alone, and so does everything in fp32 models.
static const double TOLERANCE = 1.5e-2, EXACT = 2e-5;

static Rng rng = { 1 };
static int below(int n) { return (int)rng_below(&rng, (uint64_t)n); }

typedef struct {                // rows of one KV head of one branch and their list, twice
    std::vector<char> k[2], v[2];
    std::vector<int32_t> live;
    KeyList host, device;
} Rows;

static std::vector<char> random_rows(const AttnShape *s, int n, uint64_t seed) {
    std::vector<char> x((size_t)n * (size_t)s->head_dim * s->elem);
    for (size_t i = 0; i < (size_t)n * (size_t)s->head_dim; i++) {
        float f = twin_value(seed, i);
        if (s->elem == 4) ((float *)(void *)x.data())[i] = f;
        else ((uint16_t *)(void *)x.data())[i] = f32_bf16(f);
    }
    return x;
}

enum { ALL, GAPS, SOME };       // live lists: none, rows left out here and there, a few rows

// base: whose shared rows these are too, or NULL; the last `newest` rows are live
static void rows_make(Rows *r, const AttnShape *s, const Rows *base, int shared, int own, int lives,
                      int newest, uint64_t seed) {
    memset(&r->host, 0, sizeof r->host);
    if (!base) {
        r->k[0] = random_rows(s, shared, seed);
        r->v[0] = random_rows(s, shared, seed + 1);
    }
    const Rows *from = base ? base : r;
    r->k[1] = random_rows(s, own, seed + 2);
    r->v[1] = random_rows(s, own, seed + 3);
    r->host.split = shared;
    r->host.len = shared + own;
    for (int i = 0; i < shared + own && lives != ALL; i++)
        if ((lives == GAPS ? below(8) : below(50) == 0) || i >= shared + own - newest)
            r->live.push_back(i);
    if (lives != ALL) r->host.len = (int)r->live.size();
    r->device = r->host;
    for (int p = 0; p < 2; p++) {
        const std::vector<char> &k = p ? r->k[1] : from->k[0], &v = p ? r->v[1] : from->v[0];
        if (k.empty()) continue;
        r->host.k[p] = k.data();
        r->host.v[p] = v.data();
        r->device.k[p] = p == 0 && base ? base->device.k[0] : to_device(k.data(), k.size());
        r->device.v[p] = p == 0 && base ? base->device.v[0] : to_device(v.data(), v.size());
    }
    if (lives == ALL || r->live.empty()) return;
    r->host.live = r->live.data();
    r->device.live = to_device(r->live.data(), r->live.size());
}

static void rows_free(Rows *r, bool shared) {
    for (int p = shared ? 1 : 0; p < 2; p++) {
        cudaFree((void *)r->device.k[p]);
        cudaFree((void *)r->device.v[p]);
    }
    cudaFree((void *)r->device.live);
}

static AttnShape shape_of(int hd, int heads, int kv_heads, bool wide) {
    AttnShape s;
    memset(&s, 0, sizeof s);
    s.kind = mul_kind(wide ? DT_F32 : DT_BF16);
    s.head_dim = hd;
    s.n_heads = heads;
    s.n_kv_heads = kv_heads;
    s.elem = wide ? 4 : 2;
    s.scale = 1.44269504f / sqrtf((float)hd) * 3.0f;            // a spread of a few bits
    return s;
}
static double tolerance(const AttnShape *s) { return s->elem == 4 ? EXACT : TOLERANCE; }

static std::vector<float> widen(const std::vector<uint16_t> &x) {
    std::vector<float> y(x.size());
    for (size_t i = 0; i < x.size(); i++) y[i] = bf16_f32(x[i]);
    return y;
}

// lse2 near, and -inf in the same places
static void lse_near(const char *what, const std::vector<float> &got,
                     const std::vector<float> &want) {
    for (size_t i = 0; i < got.size(); i++)
        if (got[i] != want[i] && !(fabsf(got[i] - want[i]) < 1e-4f)) {
            twin_failures++;
            printf("%s: lse2 of row %zu is %g, on the CPU %g\n", what, i, (double)got[i],
                   (double)want[i]);
            return;
        }
}

// ---------------------------------------------------------------------------
// A step

// n branches; shared rows are the same in all up to there; a list may be empty
static void step(const AttnShape *s, int n, int shared, const int *own, int lives,
                 bool name_shared) {
    int H = s->n_heads, G = s->n_kv_heads, group = H / G, hd = s->head_dim, most = 0, same = shared;
    std::vector<Rows> rows((size_t)(n * G));
    std::vector<KeyList> lists;
    std::vector<char> scratch(attn_scratch_bytes(s) + 64);
    void *work = (void *)(((uintptr_t)scratch.data() + 63) & ~(uintptr_t)63);
    for (int i = 0; i < n * G; i++) {
        rows_make(&rows[(size_t)i], s, i >= G ? &rows[(size_t)(i % G)] : NULL, shared, own[i / G],
                  lives, lives == GAPS, 100 + 7 * (uint64_t)i);
        lists.push_back(rows[(size_t)i].device);
        if (rows[(size_t)i].host.len > most) most = rows[(size_t)i].host.len;
    }
    if (lives != ALL || !name_shared) same = 0;
    size_t cells = (size_t)(n * H * hd), ld = (size_t)CEIL_DIV(most ? most : 1, PANEL) * PANEL;
    std::vector<float> q(cells), out(cells), lse((size_t)(n * H), -INFINITY);
    std::vector<float> scores((size_t)(n * H) * ld);
    twin_fill(q.data(), cells, 5);
    for (int i = 0; i < n * G; i++) {
        const KeyList *l = &rows[(size_t)i].host;
        size_t part = (size_t)group * (size_t)(hd + 2);
        std::vector<float> parts(part * (size_t)CEIL_DIV(l->len, PANEL) + 1);
        for (int p = 0; p * PANEL < l->len; p++) {
            StepRows t = { q.data() + (size_t)i * group * hd, parts.data() + (size_t)p * part,
                           scores.data() + (size_t)i * group * ld, ld };
            attn_step_panel(s, l, p, &t, 1, work);
        }
        if (l->len)
            attn_fold(s, parts.data(), CEIL_DIV(l->len, PANEL), out.data() + (size_t)i * group * hd,
                      lse.data() + (size_t)i * group);
    }
    KeyList *on_device = to_device(lists.data(), lists.size());
    int act_ld = padded(H * hd);
    CudaStep a;
    memset(&a, 0, sizeof a);
    a.list = on_device;
    a.most = most;
    a.shared = same;
    a.n = n;
    float *dq = to_device(q.data(), cells);
    a.q = dq;
    a.parts = device_array<float>(cuda_step_parts(s, n, most));
    a.out = device_array<float>(cells);
    a.act_ld = (size_t)act_ld;
    std::vector<uint16_t> act((size_t)(n * act_ld), 0), zero(act);
    a.act = to_device(zero.data(), zero.size());
    a.lse2 = device_array<float>((size_t)(n * H));
    a.ld_scores = ld;
    std::vector<float> nothing(scores.size(), 0.0f);
    a.scores = to_device(nothing.data(), nothing.size());
    std::vector<float> got(cells), again(cells), got_lse((size_t)(n * H));
    std::vector<float> got_scores(scores.size());
    cuda_step(s, &a, twin_stream());
    from_device(got.data(), a.out, cells);
    from_device(got_lse.data(), a.lse2, got_lse.size());
    from_device(got_scores.data(), a.scores, scores.size());
    from_device(act.data(), a.act, act.size());
    cuda_step(s, &a, twin_stream());
    from_device(again.data(), a.out, cells);
    char what[160];
    snprintf(what, sizeof what,
             "step, hd %d, %d:%d heads, %d branches, %d shared (%d), lives %d, most %d", hd, H,
             G, n, shared, same, lives, most);
    twin_near(what, got.data(), out.data(), cells, tolerance(s));
    twin_equal(what, again.data(), got.data(), cells);
    lse_near(what, got_lse, lse);
    twin_near(what, got_scores.data(), scores.data(), scores.size(), EXACT);
    std::vector<float> flat = widen(act);
    for (int i = 0; i < n; i++)
        twin_near(what, flat.data() + (size_t)i * act_ld, out.data() + (size_t)i * H * hd,
                  (size_t)(H * hd), tolerance(s) + 1e-2);
    for (int i = 0; i < n * G; i++) rows_free(&rows[(size_t)i], i >= G);
    cudaFree(on_device); cudaFree(dq); cudaFree(a.parts); cudaFree(a.out); cudaFree(a.act);
    cudaFree(a.lse2); cudaFree(a.scores);
}

static void steps(void) {
    const int dims[] = { 64, 80, 96, 128, 256 }, groups[] = { 1, 3, 4, 8, 16 };
    for (int i = 0; i < 5; i++) {
        AttnShape s = shape_of(dims[i], 2 * groups[(i + 2) % 5], 2, false);
        const int lens[] = { 0, 1, 15, 16, 17, 63, 64, 65, 129 };
        for (int j = i % 2; j < (int)COUNTOF(lens); j += 2) step(&s, 1, 0, &lens[j], ALL, false);
        const int own[] = { 5, 0, 17, 40, 1 };
        step(&s, 5, 70, own, ALL, true);
        step(&s, 3, 70, own, GAPS, false);
    }
    AttnShape one = shape_of(64, 3, 1, false), wide = shape_of(80, 4, 2, true);
    const int longer[] = { 300, 700 }, few[] = { 90, 0, 33 };
    step(&one, 2, 1040, longer, ALL, true);
    step(&one, 2, 1040, longer, GAPS, false);
    step(&one, 2, 400, longer, SOME, false);
    step(&wide, 3, 0, few, ALL, false);
    step(&wide, 3, 40, few, GAPS, false);
}

// ---------------------------------------------------------------------------
// A feed

typedef struct { std::vector<float> q, out, lse; std::vector<Rows> rows; int64_t pairs; } Feed;

static void feed_on_device(const AttnShape *s, const char *what, const Feed *f, int n, int after,
                           const std::vector<BlockTiles> *blocks, const std::vector<int32_t> *tile,
                           const std::vector<int32_t> *column) {
    int H = s->n_heads, hd = s->head_dim, act_ld = padded(H * hd), most = 0;
    size_t cells = f->out.size();
    std::vector<KeyList> lists;
    for (size_t g = 0; g < f->rows.size(); g++) {
        lists.push_back(f->rows[g].device);
        if (f->rows[g].device.len > most) most = f->rows[g].device.len;
    }
    CudaAttend a;
    memset(&a, 0, sizeof a);
    unsigned long long pairs = 0;
    std::vector<uint16_t> act((size_t)n * (size_t)act_ld, 0);
    a.list = to_device(lists.data(), lists.size());
    a.most = most;
    a.q = to_device(f->q.data(), cells);
    a.n = n;
    a.after = after;
    if (blocks) {
        a.block = to_device(blocks->data(), blocks->size());
        a.tile = to_device(tile->data(), tile->size());
        a.column = to_device(column->data(), column->size());
    }
    a.out = device_array<float>(cells);
    if (s->elem == 2) a.act = to_device(act.data(), act.size());
    a.act_ld = (size_t)act_ld;
    a.lse_ld = (size_t)n + 1;
    std::vector<float> lse((size_t)H * a.lse_ld, 0.0f);
    a.lse2 = to_device(lse.data(), lse.size());
    size_t parts = cuda_attend_parts(s, n, most, blocks != NULL);
    if (parts) a.parts = device_array<float>(parts);
    a.pairs = to_device(&pairs, 1);
    std::vector<float> got(cells), again(cells);
    cuda_attend(s, &a, twin_stream());
    from_device(got.data(), a.out, cells);
    from_device(lse.data(), a.lse2, lse.size());
    from_device(&pairs, a.pairs, 1);
    if (a.act) from_device(act.data(), a.act, act.size());
    cuda_attend(s, &a, twin_stream());
    from_device(again.data(), a.out, cells);
    twin_near(what, got.data(), f->out.data(), cells, tolerance(s));
    twin_equal(what, again.data(), got.data(), cells);
    lse_near(what, lse, f->lse);
    if (blocks && (int64_t)pairs != f->pairs) {
        twin_failures++;
        printf("%s: %llu pairs computed, in the lists are %lld\n", what, pairs,
               (long long)f->pairs);
    }
    std::vector<float> flat = widen(act);
    for (int i = 0; a.act && i < n; i++)
        twin_near(what, flat.data() + (size_t)i * act_ld, f->out.data() + (size_t)i * H * hd,
                  (size_t)(H * hd), 2 * tolerance(s) + 1e-2);
    cudaFree((void *)a.list); cudaFree((void *)a.q); cudaFree((void *)a.block);
    cudaFree((void *)a.tile); cudaFree((void *)a.column); cudaFree(a.out); cudaFree(a.act);
    cudaFree(a.lse2); cudaFree(a.parts); cudaFree(a.pairs);
}

// packed panels of every KV head
static std::vector<std::vector<char>> pack(const AttnShape *s, const Feed *f, void *work) {
    std::vector<std::vector<char>> panels;
    for (size_t g = 0; g < f->rows.size(); g++) {
        int len = f->rows[g].host.len;
        panels.emplace_back((size_t)(CEIL_DIV(len, PANEL) + 1) * attn_panel_bytes(s) + 64);
        char *at = (char *)(((uintptr_t)panels.back().data() + 63) & ~(uintptr_t)63);
        attn_pack(s, at, &f->rows[g].host, 0, len, work);
    }
    return panels;
}
static const char *aligned(const std::vector<char> &x) {
    return (const char *)(((uintptr_t)x.data() + 63) & ~(uintptr_t)63);
}

static void feed_make(Feed *f, const AttnShape *s, int n, int shared, int own, int lives,
                      int newest) {
    f->rows.resize((size_t)s->n_kv_heads);
    for (int g = 0; g < s->n_kv_heads; g++)
        rows_make(&f->rows[(size_t)g], s, NULL, shared, own, lives, newest, 300 + 9 * (uint64_t)g);
    f->q.resize((size_t)n * (size_t)(s->n_heads * s->head_dim));
    f->out.resize(f->q.size());
    f->lse.assign((size_t)s->n_heads * (size_t)(n + 1), 0.0f);
    f->pairs = 0;
    twin_fill(f->q.data(), f->q.size(), 17);
}

// the last n rows of lists of shared + own rows, or those `after` before them
static void dense(const AttnShape *s, int n, int after, int shared, int own, int lives) {
    Feed f;
    int H = s->n_heads, group = H / s->n_kv_heads, hd = s->head_dim;
    std::vector<char> scratch(attn_scratch_bytes(s) + 64);
    void *work = (void *)aligned(scratch);
    char what[160];
    feed_make(&f, s, n, shared, own, lives, n + after);
    std::vector<std::vector<char>> panels = pack(s, &f, work);
    for (int h = 0; h < H; h++)
        for (int r = 0; r < n; r += ATTN_ROWS) {
            AttnRows a;
            memset(&a, 0, sizeof a);
            a.panels = aligned(panels[(size_t)(h / group)]);
            a.q = f.q.data() + ((size_t)r * H + h) * hd;
            a.ldq = a.ldo = (size_t)(H * hd);
            a.rows = n - r < ATTN_ROWS ? n - r : ATTN_ROWS;
            a.vis0 = f.rows[(size_t)(h / group)].host.len - after - n + r + 1;
            a.vis_step = 1;
            a.out = f.out.data() + ((size_t)r * H + h) * hd;
            a.lse2 = f.lse.data() + (size_t)h * (size_t)(n + 1) + r;
            attn_rows(s, &a, work);
        }
    snprintf(what, sizeof what, "dense, hd %d, %d:%d heads, %d rows, %d behind, %d + %d, lives %d",
             hd, H, s->n_kv_heads, n, after, shared, own, lives);
    feed_on_device(s, what, &f, n, after, NULL, NULL, NULL);
    for (size_t g = 0; g < f.rows.size(); g++) rows_free(&f.rows[g], false);
}

static void denses(void) {
    const int dims[] = { 64, 80, 96, 128, 256 }, groups[] = { 1, 3, 4, 8 };
    const int rows[] = { 1, 15, 16, 17, 63, 64, 65, 127, 128, 129 };
    for (int i = 0; i < 5; i++)
        for (int j = i % 3; j < (int)COUNTOF(rows); j += 3) {
            AttnShape s = shape_of(dims[i], groups[(i + j) % 4], 1, false);
            dense(&s, rows[j], 0, j % 2 ? 0 : 37, rows[j] + j % 3 * 20, j % 4 == 3 ? GAPS : ALL);
        }
    AttnShape s = shape_of(64, 4, 2, false), one = shape_of(64, 2, 1, false),
              wide = shape_of(80, 4, 2, true);
    dense(&s, 40, 30, 64, 100, ALL);            // a chunk with rows of the feed behind it
    dense(&one, 5, 0, 1500, 50, ALL);           // split over the keys
    dense(&one, 5, 0, 1400, 300, GAPS);
    dense(&wide, 17, 3, 20, 40, ALL);
    dense(&wide, 33, 0, 20, 70, GAPS);
}

// a list per query head and 64 rows, of every kind
static void random_lists(HeadLists *l, HeadKind kind, int len, int n,
                         std::vector<int32_t> *vertical, std::vector<uint64_t> *slash) {
    memset(l, 0, sizeof *l);
    l->kind = kind;
    l->len = len;
    l->n = n;
    l->sinks = 1 + below(90);
    l->local = 1 + below(150);
    l->dense_rows = below(2) ? 0 : below(n + 1);
    l->blocks = 1 + below(4);
    vertical->clear();
    slash->assign((size_t)CEIL_DIV(len, 64), 0);
    for (int j = 0; j < len; j++) {
        if (below(12) == 0) vertical->push_back(j);
        if (j < 100 || below(150) == 0) (*slash)[(size_t)(j / 64)] |= 1ull << j % 64;
    }
    l->vertical = vertical->data();
    l->n_vertical = (int)vertical->size();
    l->slash = slash->data();
}

static void sparse(const AttnShape *s, int first, int n, int feed, int shared, int own, int lives) {
    Feed f;
    int H = s->n_heads, group = H / s->n_kv_heads, hd = s->head_dim, after = feed - first - n;
    std::vector<char> scratch(attn_scratch_bytes(s) + 64);
    void *work = (void *)aligned(scratch);
    std::vector<BlockTiles> blocks;
    char what[160];
    feed_make(&f, s, n, shared, own, lives, feed);
    std::vector<std::vector<char>> panels = pack(s, &f, work);
    std::vector<int32_t> tile(1 << 16), column(1 << 16), chosen(1 << 12), vertical;
    std::vector<uint64_t> slash;
    int tiles = 0, columns = 0;
    for (int h = 0; h < H; h++) {
        const Rows &r = f.rows[(size_t)(h / group)];
        int len = r.host.len;
        HeadLists l;
        random_lists(&l, (HeadKind)((h + hd) % 3), len, feed, &vertical, &slash);
        for (int at = 0; at < n; at += SPARSE_ROWS) {
            std::vector<KeySpan> span((size_t)(l.n_vertical + len / 64 + 66));
            std::vector<float> score((size_t)(len / 64 + 2));
            AttnBlock a;
            BlockTiles b;
            twin_fill(score.data(), score.size(), 23 + (uint64_t)at);
            score[(size_t)((len - feed + first + at) / 64)] = 2;    // every row sees something
            memset(&a, 0, sizeof a);
            memset(&b, 0, sizeof b);
            a.keys = &r.host;
            a.panels = aligned(panels[(size_t)(h / group)]);
            a.n_spans = attn_list(&l, (first + at) / SPARSE_ROWS, score.data(), span.data(),
                                  chosen.data());
            a.span = span.data();
            a.q = f.q.data() + ((size_t)at * H + h) * hd;
            a.ldq = a.ldo = (size_t)(H * hd);
            a.rows = n - at < SPARSE_ROWS ? n - at : SPARSE_ROWS;
            a.own = len - feed + first + at;
            if (l.kind == HEAD_A_SHAPE) {
                a.sinks = b.sinks = l.sinks;
                a.local = b.local = l.local;
                a.windowed = b.windowed = feed - l.dense_rows - first - at;
            }
            a.out = f.out.data() + ((size_t)at * H + h) * hd;
            a.lse2 = f.lse.data() + (size_t)h * (size_t)(n + 1) + at;
            f.pairs += attn_block(s, &a, work);
            block_tiles(a.span, a.n_spans, tile.data(), &tiles, column.data(), &columns, &b);
            blocks.push_back(b);
        }
    }
    snprintf(what, sizeof what, "sparse, hd %d, %d:%d heads, rows %d + %d of %d, %d + %d, lives %d",
             hd, H, s->n_kv_heads, first, n, feed, shared, own, lives);
    feed_on_device(s, what, &f, n, after, &blocks, &tile, &column);
    for (size_t g = 0; g < f.rows.size(); g++) rows_free(&f.rows[g], false);
}

static void sparses(void) {
    const int dims[] = { 64, 80, 96, 128, 256 };
    for (int i = 0; i < 5; i++) {
        AttnShape s = shape_of(dims[i], 3, i % 2 ? 1 : 3, false);
        sparse(&s, 0, 65 + 31 * i, 65 + 31 * i, 0, 65 + 31 * i, ALL);
        sparse(&s, 64, 64, 180, 90, 230, i % 2 ? GAPS : ALL);
    }
    AttnShape s = shape_of(64, 6, 2, false), wide = shape_of(64, 3, 1, true);
    sparse(&s, 0, 129, 129, 611, 129, ALL);
    sparse(&s, 128, 1, 129, 700, 129, GAPS);
    sparse(&wide, 0, 65, 65, 130, 65, ALL);
}

// make try K=attention: one layer of an 8B model, a token and a chunk behind 4K, 32K and 128K keys
// a whole prompt over itself: what test/bench/gpu.sh holds against PyTorch's
static void time_causal(int n) {
    enum { DIM = 128, H = 32, G = 8 };
    AttnShape s = shape_of(DIM, H, G, false);
    size_t cells = (size_t)n * H * DIM, rows = (size_t)n * DIM;
    float *q = device_zeros<float>(cells);
    uint16_t *act = device_zeros<uint16_t>(cells), *kv = device_zeros<uint16_t>(2 * G * rows);
    KeyList list[G];
    memset(list, 0, sizeof list);
    for (int g = 0; g < G; g++) {
        list[g].k[1] = kv + (size_t)g * 2 * rows;
        list[g].v[1] = kv + (size_t)(g * 2 + 1) * rows;
        list[g].len = n;
    }
    KeyList *lists = to_device(list, G);
    size_t split = cuda_attend_parts(&s, n, n, false);
    float *scratch = device_zeros<float>(split);
    CudaAttend all;
    char label[48];
    memset(&all, 0, sizeof all);
    all.list = lists;
    all.most = all.n = n;
    all.q = q;
    all.act = act;
    all.act_ld = (size_t)H * DIM;
    all.parts = split ? scratch : NULL;
    snprintf(label, sizeof label, "%d causal rows", n);
    twin_time(label, [&] { cuda_attend(&s, &all, twin_stream()); });
    cudaFree(q);
    cudaFree(act);
    cudaFree(kv);
    cudaFree(lists);
    cudaFree(scratch);
}

static void times(void) {
    enum { DIM = 128, H = 32, G = 8, CHUNK_ROWS = 512 };
    const int lens[] = { 4096, 32768, 131072 };
    AttnShape s = shape_of(DIM, H, G, false);
    size_t cells = (size_t)CHUNK_ROWS * H * DIM;
    float *q = device_zeros<float>(cells), *out = device_zeros<float>(cells);
    for (int i = 0; i < 3; i++) {
        size_t rows = (size_t)lens[i] * DIM;
        uint16_t *kv = device_zeros<uint16_t>(2 * G * rows);
        KeyList list[G];
        memset(list, 0, sizeof list);
        for (int g = 0; g < G; g++) {
            list[g].k[1] = kv + (size_t)g * 2 * rows;
            list[g].v[1] = kv + (size_t)(g * 2 + 1) * rows;
            list[g].len = lens[i];
        }
        KeyList *lists = to_device(list, G);
        size_t parts = cuda_step_parts(&s, 1, lens[i]),
               split = cuda_attend_parts(&s, CHUNK_ROWS, lens[i], false);
        float *scratch = device_zeros<float>(parts > split ? parts : split);
        CudaStep step_of;
        CudaAttend chunk;
        char label[48];
        memset(&step_of, 0, sizeof step_of);
        memset(&chunk, 0, sizeof chunk);
        step_of.list = chunk.list = lists;
        step_of.most = chunk.most = lens[i];
        step_of.q = chunk.q = q;
        step_of.out = chunk.out = out;
        step_of.parts = scratch;
        chunk.parts = split ? scratch : NULL;
        step_of.n = 1;
        chunk.n = CHUNK_ROWS;
        snprintf(label, sizeof label, "a token behind %d", lens[i]);
        twin_time(label, [&] { cuda_step(&s, &step_of, twin_stream()); });
        snprintf(label, sizeof label, "%d rows behind %d", (int)CHUNK_ROWS, lens[i]);
        twin_time(label, [&] { cuda_attend(&s, &chunk, twin_stream()); });
        cudaFree(kv);
        cudaFree(lists);
        cudaFree(scratch);
    }
    cudaFree(q);
    cudaFree(out);
}

int main(void) {
    Err err;
    int none = twin_begin();
    if (none) return none;
    if (twin_timing()) {
        times();
        time_causal(16384);
        return 0;
    }
    if (cpu_init(1, &err)) die_code(EXIT_USER, "%s", err.msg);
    steps();
    denses();
    sparses();
    return twin_end("test_attention");
}
