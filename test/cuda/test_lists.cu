// Lists of a sparse prefill on the device: MInference's estimation, pooled tiles, choices, and the
// spans, pieces and marks made of them.
#include "kernels.h"
#include "test/cuda/twin.h"

template <class T> static T *zeros(size_t n) {
    T *p = (T *)xrealloc(NULL, (n + 1) * sizeof *p);
    memset(p, 0, (n + 1) * sizeof *p);
    return p;
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
static uint16_t *halves(size_t n, uint64_t seed) {
    uint16_t *x = zeros<uint16_t>(n);
    for (size_t i = 0; i < n; i++) x[i] = f32_bf16(2 * twin_value(seed, i));
    return x;
}

typedef struct {                // a feed of n rows behind len - n entries, list 1 is 70 shorter
    int heads, lists, hd, len, n, first, chunk, dense_rows;
    HeadPattern pattern[4];
} Feed;

typedef struct {
    const Feed *f;
    AttnShape shape;
    uint16_t *k[2], *q;         // keys of a list (len, hd); all queries (n, H, hd)
    KeyList list[2];
    SparsePlan plan;
    SparseLists lists;
    int blocks, words;
    uint16_t *d_k[2], *d_q;
    char *scratch;
} Both;

// device buffers of the size that the header asks for, zero where a test reads all of them
template <class T> static T *blank(size_t n) {
    T *zero = zeros<T>(n), *p = to_device(zero, n + 1);
    free(zero);
    return p;
}

static void both_make(Both *b, const Feed *f) {
    memset(b, 0, sizeof *b);
    b->f = f;
    size_t H = (size_t)f->heads, ld = (size_t)CEIL_DIV(f->len, 64) * 64, hd = (size_t)f->hd;
    int probe = f->n < 64 ? f->n : 64;
    b->blocks = CEIL_DIV(f->chunk, SPARSE_ROWS);
    b->words = (int)(ld / 64);
    b->shape.kind = mul_kind(DT_BF16);
    b->shape.head_dim = f->hd;
    b->shape.n_heads = f->heads;
    b->shape.n_kv_heads = f->lists;
    b->shape.elem = 2;
    b->shape.scale = (float)(1.4426950408889634 / sqrt((double)f->hd));
    b->q = halves((size_t)f->n * H * hd, 80);
    b->d_q = to_device(b->q, (size_t)f->n * H * hd);
    KeyList list[2];
    for (int l = 0; l < f->lists; l++) {
        b->k[l] = halves((size_t)f->len * hd, 81 + (uint64_t)l);
        b->d_k[l] = to_device(b->k[l], (size_t)f->len * hd);
        memset(&b->list[l], 0, sizeof b->list[l]);
        b->list[l].k[1] = b->list[l].v[1] = b->k[l];
        b->list[l].len = f->len - 70 * l;
        list[l] = b->list[l];
        list[l].k[1] = list[l].v[1] = b->d_k[l];
    }
    SparsePlan *p = &b->plan;
    p->rows.list = to_device(list, (size_t)f->lists);
    p->rows.max_len = f->len;
    p->rows.q_row = H * hd;
    p->rows.q_head = hd;
    p->rows.q = b->d_q + (size_t)(f->n - probe) * H * hd;
    p->rows.rows = probe;
    p->rows.n_heads = f->heads;
    p->rows.n_lists = f->lists;
    p->rows.head_dim = f->hd;
    p->rows.scale = b->shape.scale;
    p->pattern = to_device(f->pattern, H);
    p->n = f->n;
    p->dense_rows = f->dense_rows;
    p->ld = ld;
    p->head = blank<HeadLists>(H);
    p->vertical = device_array<int32_t>(H * ld);
    p->slash = blank<uint64_t>(H * ld / 64);
    p->k_mean = device_array<uint16_t>((size_t)f->lists * ld / 64 * hd);
    p->column = device_array<float>(H * ld);
    p->distance = device_array<float>(H * ld);
    p->lse2 = device_array<float>(H * 64);
    p->parts = device_array<float>(2 * LOOK_SPLITS * H * 64);
    p->diagonals = device_array<float>(H * (size_t)CEIL_DIV(f->len, 128) * LOOK_DIAGONAL);
    p->keep = device_array<uint8_t>(H * ld);
    p->choice = device_array<Choice>(2 * H);
    SparseLists *s = &b->lists;
    size_t items = H * (size_t)b->blocks;
    s->plan = *p;
    s->q = b->d_q + (size_t)f->first * H * hd;
    s->first = f->first;
    s->n = f->chunk;
    s->most_columns = f->len + 64;
    s->most_spans = f->len + b->words + 2;
    s->span = device_array<KeySpan>(items * (size_t)s->most_spans);
    s->n_spans = device_array<int>(items);
    s->block = device_array<BlockTiles>(items);
    s->tile = device_array<int32_t>(items * (size_t)(b->words + 1));
    s->column = device_array<int32_t>(items * (size_t)s->most_columns);
    s->marks = device_array<uint64_t>(items * (size_t)b->words);
    s->score = device_array<float>(items * (size_t)b->words);
    s->chosen = device_array<int32_t>(items * (size_t)b->words);
    s->choice = device_array<Choice>(items);
    b->scratch = zeros<char>(attn_scratch_bytes(&b->shape) + 64);
}

static void both_free(Both *b) {
    SparsePlan *p = &b->plan;
    SparseLists *s = &b->lists;
    const void *all[] = { p->rows.list, p->pattern, p->head, p->vertical, p->slash, p->k_mean,
                          p->column, p->distance, p->lse2, p->parts, p->diagonals, p->keep,
                          p->choice, s->span, s->n_spans, s->block, s->tile, s->column, s->marks,
                          s->score, s->chosen, s->choice, b->d_k[0], b->d_k[1], b->d_q };
    for (size_t i = 0; i < COUNTOF(all); i++) cudaFree((void *)all[i]);
    free(b->k[0]);
    free(b->k[1]);
    free(b->q);
    free(b->scratch);
}

// sums near those of the CPU; what is chosen by the device's own sums is what the CPU chooses by
// them. The head's lists then are the CPU's. vertical, slash: room
static HeadLists head_plan(Both *b, int h, int32_t *vertical, uint64_t *slash) {
    const Feed *f = b->f;
    int l = h / (f->heads / f->lists), len = b->list[l].len, probe = b->plan.rows.rows;
    const HeadPattern *p = &f->pattern[h];
    HeadLists out = { p->kind, len, f->n, 0, 0, 0, 0, NULL, NULL, 0 };
    if (p->kind == HEAD_BLOCK_SPARSE) out.blocks = p->a;
    if (p->kind == HEAD_A_SHAPE) {
        out.sinks = p->a;
        out.local = p->b;
        out.dense_rows = f->dense_rows;
    }
    if (p->kind != HEAD_VERTICAL_SLASH) return out;
    if (!sparse_estimates(p, 1, len, f->n)) {   // every list is whole
        memset(slash, 0xff, (size_t)b->words * sizeof *slash);
        out.vertical = vertical;
        out.slash = slash;
        return out;
    }
    size_t n = (size_t)len, panel = attn_panel_bytes(&b->shape);
    char *panels = zeros<char>(panel * (size_t)CEIL_DIV(len, PANEL));
    float *q = zeros<float>((size_t)probe * f->hd), *column = zeros<float>(n),
          *distance = zeros<float>(n);
    int32_t *scratch = zeros<int32_t>(n);
    for (int i = 0; i < probe * f->hd; i++)
        q[i] = bf16_f32(b->q[((size_t)(f->n - probe + i / f->hd) * f->heads + h) * f->hd +
                             i % f->hd]);
    attn_pack(&b->shape, panels, &b->list[l], 0, len, b->scratch);
    AttnProbe a = { panels, len, q, probe };
    attn_estimate(&b->shape, &a, column, distance, b->scratch);
    float *got = fetched(b->plan.column + (size_t)h * b->plan.ld, n),
          *far = fetched(b->plan.distance + (size_t)h * b->plan.ld, n);
    if (len > 30) twin_near("columns", got + 30, column + 30, n - 30, 1e-5);
    if (len > 100) twin_near("distances", far + 100, distance + 100, n - 100, 1e-5);
    out.n_vertical = attn_select(got, far, len, p->a, p->b, 100, vertical, slash, scratch);
    out.vertical = vertical;
    out.slash = slash;
    free(panels); free(q); free(column); free(distance); free(scratch);
    free(got); free(far);
    return out;
}

// scores of the tiles for a block's mean query, by the plain rules
static void tile_scores(const Both *b, int h, int block, int tiles, float *score) {
    const Feed *f = b->f;
    int l = h / (f->heads / f->lists), from = block * SPARSE_ROWS, end = f->first + f->chunk;
    float *q = zeros<float>((size_t)f->hd), *k = zeros<float>((size_t)f->hd);
    for (int i = 0; i < f->hd; i++) {
        for (int r = from; r < from + SPARSE_ROWS && r < end; r++)
            q[i] += bf16_f32(b->q[((size_t)r * f->heads + h) * f->hd + i]);
        q[i] = round_bf16(q[i] * (1.0f / SPARSE_ROWS));
    }
    for (int t = 0; t < tiles; t++) {
        score[t] = 0;
        for (int i = 0; i < f->hd; i++) {
            k[i] = 0;
            for (int j = t * 64; j < t * 64 + 64 && j < b->list[l].len; j++)
                k[i] += bf16_f32(b->k[l][(size_t)j * f->hd + i]);
            k[i] = round_bf16(k[i] * (1.0f / SPARSE_ROWS));
        }
        for (int c = 0; c < f->hd; c += BLK) {
            float sum[2] = { 0, 0 };
            for (int i = c; i < f->hd && i < c + BLK; i++)
                sum[i % 2] = fmaf(q[i], k[i], sum[i % 2]);
            score[t] += sum[0] + sum[1];
        }
    }
    free(q);
    free(k);
}

static void check_list(Both *b, const HeadLists *l, int h, int block, float *score, KeySpan *span,
                       int32_t *chosen) {
    const Feed *f = b->f;
    SparseLists *s = &b->lists;
    int item = h * b->blocks + block - f->first / SPARSE_ROWS, tile = 0, column = 0;
    int tiles = (l->len - l->n + block * SPARSE_ROWS) / SPARSE_ROWS + 1;
    if (l->kind == HEAD_BLOCK_SPARSE && tiles > l->blocks) {
        tile_scores(b, h, block, tiles, score);
        same("scores of tiles", s->score + (size_t)item * b->words, score, (size_t)tiles);
    }
    int n = attn_list(l, block, score, span, chosen), *n_spans = fetched(s->n_spans + item, 1);
    if (*n_spans != n) {
        twin_failures++;
        printf("head %d, block %d: %d spans, on the CPU %d\n", h, block, *n_spans, n);
    } else {
        same("spans", s->span + (size_t)item * s->most_spans, span, (size_t)n);
        int32_t *want = zeros<int32_t>((size_t)(b->words + 1)),
                *single = zeros<int32_t>((size_t)s->most_columns);
        uint64_t *bits = zeros<uint64_t>((size_t)b->words);
        BlockTiles t, *got = fetched(s->block + item, 1);
        block_tiles(span, n, want, &tile, single, &column, &t);
        if (got->n_tiles != t.n_tiles || got->n_columns != t.n_columns || got->sinks != l->sinks ||
            got->local != l->local) {
            twin_failures++;
            printf("head %d, block %d: %d pieces and %d entries, on the CPU %d and %d\n", h, block,
                   got->n_tiles, got->n_columns, t.n_tiles, t.n_columns);
        } else {
            same("pieces", s->tile + got->tile, want, (size_t)tile);
            same("entries", s->column + got->column, single, (size_t)column);
        }
        for (int i = 0; i < n; i++)
            for (int j = span[i].at; j < span[i].at + span[i].n; j++)
                bits[j / 64] |= 1ull << j % 64;
        same("marks", s->marks + (size_t)item * b->words, bits, (size_t)b->words);
        free(want); free(single); free(bits); free(got);
    }
    free(n_spans);
}

static void feed(const Feed *f) {
    Both b;
    both_make(&b, f);
    bool estimates = false, means = false;
    for (int h = 0; h < f->heads; h++) means |= f->pattern[h].kind == HEAD_BLOCK_SPARSE;
    for (int l = 0, group = f->heads / f->lists; l < f->lists; l++)
        estimates |= sparse_estimates(f->pattern + l * group, group, b.list[l].len, f->n);
    cuda_sparse_plan(&b.plan, estimates, means, twin_stream());
    cuda_sparse_lists(&b.lists, means, twin_stream());
    size_t n = (size_t)f->len;
    int32_t *vertical = zeros<int32_t>(n), *chosen = zeros<int32_t>(n);
    uint64_t *slash = zeros<uint64_t>(n);
    float *score = zeros<float>(n);
    KeySpan *span = zeros<KeySpan>((size_t)b.lists.most_spans);
    for (int h = 0; h < f->heads; h++) {
        HeadLists l = head_plan(&b, h, vertical, slash);
        if (l.kind == HEAD_VERTICAL_SLASH) {
            same("columns kept", b.plan.vertical + (size_t)h * b.plan.ld, vertical,
                 (size_t)l.n_vertical);
            same("distances kept", b.plan.slash + (size_t)h * b.words, slash,
                 (size_t)CEIL_DIV(l.len, 64));
        }
        for (int k = 0; k < b.blocks; k++)
            check_list(&b, &l, h, f->first / SPARSE_ROWS + k, score, span, chosen);
    }
    free(vertical); free(chosen); free(slash); free(score); free(span);
    both_free(&b);
}

// make try K=lists: the estimation of a feed, and the lists of its last 512 rows
static void times(void) {
    const int lens[] = { 4096, 32768, 131072 };
    for (int i = 0; i < 3; i++) {
        Feed f = { 4, 2, 128, lens[i], lens[i], lens[i] - 512, 512, 0,
                   { { HEAD_VERTICAL_SLASH, 1000, 6096, 0 }, { HEAD_BLOCK_SPARSE, 100, 0, 0 },
                     { HEAD_VERTICAL_SLASH, 30, 800, 0 }, { HEAD_A_SHAPE, 128, 4096, 0 } } };
        Both b;
        char label[48];
        both_make(&b, &f);
        snprintf(label, sizeof label, "estimation at %d", lens[i]);
        twin_time(label, [&] { cuda_sparse_plan(&b.plan, true, true, twin_stream()); });
        snprintf(label, sizeof label, "lists of 512 rows at %d", lens[i]);
        twin_time(label, [&] { cuda_sparse_lists(&b.lists, true, twin_stream()); });
        both_free(&b);
    }
}

int main(void) {
    Err err;
    if (twin_begin()) return 77;
    if (twin_timing()) { times(); return 0; }
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    static const Feed feeds[] = {       // heads lists hd len n first chunk dense_rows
        { 4, 2, 32, 700, 500, 64, 256, 40,
          { { HEAD_VERTICAL_SLASH, 60, 80, 0 }, { HEAD_A_SHAPE, 70, 130, 0 },
            { HEAD_BLOCK_SPARSE, 3, 0, 0 }, { HEAD_VERTICAL_SLASH, 0, 0, 0 } } },
        { 2, 1, 64, 333, 333, 192, 141, 0,      // the last rows, no whole block
          { { HEAD_VERTICAL_SLASH, 400, 400, 0 }, { HEAD_BLOCK_SPARSE, 2, 0, 0 } } },
        { 2, 2, 20 + 4, 200, 33, 0, 33, 33,     // fewer rows than a block
          { { HEAD_VERTICAL_SLASH, 40, 60, 0 }, { HEAD_BLOCK_SPARSE, 50, 0, 0 } } },
        { 1, 1, 16, 1100, 300, 256, 44, 10, { { HEAD_A_SHAPE, 5, 100, 0 } } },
        { 3, 1, 32, 190, 190, 64, 64, 0,        // nothing to estimate: all columns, all distances
          { { HEAD_VERTICAL_SLASH, 190, 50, 0 }, { HEAD_VERTICAL_SLASH, 30, 190, 0 },
            { HEAD_BLOCK_SPARSE, 3, 0, 0 } } },
    };
    for (size_t i = 0; i < COUNTOF(feeds); i++) feed(&feeds[i]);
    return twin_end("lists");
}
