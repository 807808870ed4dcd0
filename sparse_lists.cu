// sparse_lists.cu - what a sparse prefill looks at: the k largest of many scores, and the list of a
// head for 64 rows by its pattern; below, the plan and the lists of a layer on the device. Attention
// to a list, and MInference's estimation, are in sparse_attn.cu.
#include "kernels.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// ---------------------------------------------------------------------------
// The k largest of n, ties to the lower index, in ascending order of index. The key of the k-th is
// found bit by bit. Of many values only those are looked at that reach the k-th largest maximum of
// groups: k groups have one such value each, so the k largest are among them.

enum { GROUPS = 4096 };

static inline uint32_t order_bits(float f) {    // the same order as the floats'; -0 = +0
    uint32_t u = f32_bits(f + 0.0f);
    return u >> 31 ? ~u : u | 0x80000000u;
}

static int count_from(const float *x, int n, uint32_t key) {
    int count = 0;
    for (int i = 0; i < n; i++) count += order_bits(x[i]) >= key;
    return count;
}

// the largest key that at least k values reach, or one that just k reach
static uint32_t key_of(const float *x, int n, int k) {
    uint32_t key = 0;
    for (int bit = 31; bit >= 0; bit--) {
        int count = count_from(x, n, key | 1u << bit);
        if (count >= k) key |= 1u << bit;
        if (count == k) break;
    }
    return key;
}

// number: what x (n) is called, NULL: 0, 1, ..
static int take_top(const float *x, const int32_t *number, int n, int k, int32_t *out) {
    uint32_t key = key_of(x, n, k);
    int ties = k - (key == UINT32_MAX ? 0 : count_from(x, n, key + 1)), at = 0;
    for (int i = 0; i < n; i++) {
        uint32_t u = order_bits(x[i]);
        if (u > key || (u == key && ties-- > 0)) out[at++] = number ? number[i] : i;
    }
    return at;
}

// those of x (n) that reach key, how many, or -1: more than there is room for
static int values_from(const float *x, int n, uint32_t key, float *value, int32_t *number) {
    int m = 0;
    for (int i = 0; i < n; i += LANES) {
        int end = i + LANES < n ? i + LANES : n;
        if (!count_from(x + i, end - i, key)) continue;
        if (m + LANES > GROUPS) return -1;
        for (int j = i; j < end; j++) {
            value[m] = x[j];
            number[m] = j;
            m += order_bits(x[j]) >= key;
        }
    }
    return m;
}

int top_k(const float *x, int n, int k, int32_t *out) {
    float value[GROUPS];
    int32_t number[GROUPS];
    int groups = 256, m = -1;
    if (k >= n) {
        for (int i = 0; i < n; i++) out[i] = i;
        return n;
    }
    while (groups < 2 * k) groups *= 2;
    if (groups <= GROUPS && n >= 8 * groups) {
        memcpy(value, x, (size_t)groups * sizeof *value);
        for (int i = groups; i < n; i += groups) {
            int end = groups < n - i ? groups : n - i;
            for (int j = 0; j < end; j++) value[j] = x[i + j] > value[j] ? x[i + j] : value[j];
        }
        m = values_from(x, n, key_of(value, groups, k), value, number);
    }
    return m < 0 ? take_top(x, NULL, n, k, out) : take_top(value, number, m, k, out);
}

// ---------------------------------------------------------------------------
// Lists. Row block b of a feed of n rows holds rows [64 b, 64 b + 64); in a KV head's list of len
// entries its first row is entry s = len - n + 64 b and its last e - 1, e = s + 64. A list ends
// with the last row of its block: no row sees more.
//
// A-shape (Xiao et al., arXiv 2309.17453, without renumbering): row i sees j <= i with j < sinks or
// i - j < local. The list holds whole tiles of 64 entries; what a row does not see of them is
// masked. Tri-shape (Li et al., arXiv 2412.10319): the last dense_rows rows see everything before
// them.

HD static int list_end(const HeadLists *h, int block) {
    int end = h->len - h->n + (block + 1) * SPARSE_ROWS;
    return end < h->len ? end : h->len;
}

HD static int a_shape_list(const HeadLists *h, int block, KeySpan *out) {
    int start = h->len - h->n + block * SPARSE_ROWS, end = list_end(h, block), n = 0;
    int below = start - h->local + 1;           // the first row's window begins here
    int window = below > 0 ? below / SPARSE_ROWS * SPARSE_ROWS : 0;
    int sinks = CEIL_DIV(h->sinks, SPARSE_ROWS) * SPARSE_ROWS;
    bool dense = end > h->len - h->dense_rows;
    if (dense || sinks >= window) window = 0;
    if (window && sinks) {
        out[n].at = 0;
        out[n++].n = sinks;
    }
    out[n].at = window;
    out[n++].n = end - window;
    return n;
}

// Vertical-slash (Jiang et al., arXiv 2407.02490): kept columns and kept distances. A distance d
// stands for the 64 entries before R = max(e - d, 64); going from the largest distance below e, an
// interval [A, E) grows by 64 for every R beyond E and ends where R is beyond E + 64. Columns that
// no interval covers stand alone, those from the last E on are left out.

HD static int top_bit(uint64_t bits) {      // number of the highest bit, some is set
#ifdef __CUDA_ARCH__
    return 63 - __clzll((long long)bits);
#else
    return 63 - __builtin_clzll(bits);
#endif
}

// the largest kept distance below d, or -1
HD static int next_distance(const uint64_t *slash, int d) {
    if (d <= 0) return -1;
    int w = (d - 1) / 64;
    uint64_t bits = slash[w] << (63 - (d - 1) % 64) >> (63 - (d - 1) % 64);
    while (!bits && w > 0) bits = slash[--w];
    return bits ? w * 64 + top_bit(bits) : -1;
}

// adds [at, end), which lies behind what is there; side by side is one span
HD static int span_add(KeySpan *out, int n, int at, int end) {
    if (at >= end) return n;
    if (n && out[n - 1].at + out[n - 1].n == at) {
        out[n - 1].n += end - at;
        return n;
    }
    out[n].at = at;
    out[n].n = end - at;
    return n + 1;
}

HD static int vertical_slash_list(const HeadLists *h, int block, KeySpan *out) {
    int e = h->len - h->n + (block + 1) * SPARSE_ROWS, end = list_end(h, block), n = 0, v = 0;
    int d = next_distance(h->slash, e < h->len ? e : h->len);
    if (d < 0) return 0;
    int to = e - d > SPARSE_ROWS ? e - d : SPARSE_ROWS, from = to - SPARSE_ROWS;
    while (true) {
        d = next_distance(h->slash, e - to);
        if (d >= 0 && e - d <= to + SPARSE_ROWS) {
            to += SPARSE_ROWS;
            continue;
        }
        for (; v < h->n_vertical && h->vertical[v] < from; v++)
            n = span_add(out, n, h->vertical[v], h->vertical[v] + 1);
        while (v < h->n_vertical && h->vertical[v] < to) v++;
        n = span_add(out, n, from, to < end ? to : end);
        if (d < 0) return n;
        to = e - d;
        from = to - SPARSE_ROWS;
    }
}

// Block-sparse: the tiles of 64 keys whose mean has the largest product with the mean query of the
// block, among those that its first row sees; ties keep the earlier tile. Nothing is forced, not
// even the block's own tile.
HD static int chosen_list(const HeadLists *h, int block, KeySpan *out, const int32_t *chosen) {
    int end = list_end(h, block), n = 0;
    if (list_tiles(h, block) <= h->blocks) {
        out[0].at = 0;
        out[0].n = end;
        return 1;
    }
    for (int i = 0; i < h->blocks; i++) {
        int at = chosen[i] * SPARSE_ROWS;
        n = span_add(out, n, at, at + SPARSE_ROWS < end ? at + SPARSE_ROWS : end);
    }
    return n;
}

static int block_sparse_list(const HeadLists *h, int block, const float *score, KeySpan *out,
                             int32_t *chosen) {
    int tiles = list_tiles(h, block);
    if (tiles > h->blocks) top_k(score, tiles, h->blocks, chosen);
    return chosen_list(h, block, out, chosen);
}

int attn_list(const HeadLists *h, int block, const float *score, KeySpan *out, int32_t *chosen) {
    int n = h->kind == HEAD_A_SHAPE          ? a_shape_list(h, block, out)
            : h->kind == HEAD_VERTICAL_SLASH ? vertical_slash_list(h, block, out)
                                             : block_sparse_list(h, block, score, out, chosen);
    CHECK(n > 0, "no distance is kept");
    return n;
}

#ifdef SCB_CUDA
// ---------------------------------------------------------------------------
// A sparse feed's lists on the device. They belong there: at 128K tokens a layer has 65,536 of up
// to 3,000 spans, which one thread each writes in the time the host would need to read the sums.

// grid (entries, H): diagonals of two neighbouring blocks of keys meet; index e is distance
// len - 1 - e. The first columns and smallest distances are forced, and how many stay is written.
__global__ static void estimate_k(SparsePlan a, int tiles) {
    int h = blockIdx.y, e = (int)thread_item(), l = h / (a.rows.n_heads / a.rows.n_lists);
    int len = a.rows.list[l].len, tile = e / TILE_KEYS, at = e % TILE_KEYS;
    const HeadPattern *p = &a.pattern[h];
    const float *part = a.diagonals + (size_t)h * tiles * LOOK_DIAGONAL;
    bool wanted = estimated(p, len, a.n);
    if (e == 0) {
        Choice columns = { wanted ? len : 0, at_least(p->a, LEAST_VERTICALS), wanted ? len : 0 },
               distances = { columns.n, at_least(p->b, LEAST_SLASHES), columns.n };
        a.choice[h] = columns;
        a.choice[a.rows.n_heads + h] = distances;
    }
    if (!wanted || e >= len) return;
    float sum = at < LOOK_DIAGONAL - TILE_KEYS && tile
                    ? part[(size_t)(tile - 1) * LOOK_DIAGONAL + TILE_KEYS + at] : 0.0f;
    int d = len - 1 - e;
    sum += part[(size_t)tile * LOOK_DIAGONAL + at];
    a.distance[h * a.ld + d] = d < FORCED_DISTANCES ? INFINITY : sum;
    if (e < FORCED_COLUMNS) a.column[h * a.ld + e] = INFINITY;
}

// grid (words, H): 64 marks to a word
__global__ static void slash_bits_k(SparsePlan a) {
    int h = blockIdx.y, w = (int)thread_item();
    int len = a.rows.list[h / (a.rows.n_heads / a.rows.n_lists)].len;
    bool wanted = estimated(&a.pattern[h], len, a.n);
    uint64_t bits = wanted ? 0 : ~0ull;
    if (w * 64 >= len || a.pattern[h].kind != HEAD_VERTICAL_SLASH) return;
    for (int i = 0; wanted && i < 64 && w * 64 + i < len; i++)
        bits |= (uint64_t)a.keep[h * a.ld + w * 64 + i] << i;
    a.slash[h * (a.ld / 64) + w] = bits;
}

// grid covers H
__global__ static void head_lists_k(SparsePlan a) {
    int h = (int)thread_item();
    if (h >= a.rows.n_heads) return;
    const HeadPattern *p = &a.pattern[h];
    int len = a.rows.list[h / (a.rows.n_heads / a.rows.n_lists)].len;
    HeadLists l = { p->kind, len, a.n, 0, 0, 0, 0, NULL, NULL, 0 };
    if (p->kind == HEAD_A_SHAPE) {
        l.sinks = p->a;
        l.local = p->b;
        l.dense_rows = a.dense_rows;
    } else if (p->kind == HEAD_BLOCK_SPARSE) {
        l.blocks = p->a;
    } else {
        l.n_vertical = estimated(p, len, a.n) ? at_least(p->a, LEAST_VERTICALS) : 0;
        l.vertical = a.vertical + h * a.ld;
        l.slash = a.slash + h * (a.ld / 64);
    }
    a.head[h] = l;
}

// grid (tiles, lists), a thread per channel: mean_keys
__global__ static void mean_keys_k(SparsePlan a) {
    const KeyList *l = &a.rows.list[blockIdx.y];
    int from = blockIdx.x * SPARSE_ROWS, hd = a.rows.head_dim;
    if (from >= l->len) return;
    for (int i = threadIdx.x; i < hd; i += blockDim.x) {
        float mean = 0;
        for (int j = from; j < from + SPARSE_ROWS && j < l->len; j++)
            mean += bf16_f32(((const uint16_t *)list_row(l, l->k, j, 2 * (size_t)hd))[i]);
        a.k_mean[((size_t)blockIdx.y * (a.ld / 64) + blockIdx.x) * hd + i] =
            f32_bf16(mean * (1.0f / SPARSE_ROWS));
    }
}

void cuda_sparse_plan(const SparsePlan *a, bool estimates, bool means, void *stream) {
    int H = a->rows.n_heads, tiles = CEIL_DIV(a->rows.max_len, TILE_KEYS);
    Observed o = { a->lse2, SPARSE_ROWS, 0, NULL, a->column, a->ld, a->diagonals, GROUP_SUM, 1, 0 };
    cudaStream_t s = (cudaStream_t)stream;
    if (!a->rows.max_len) return;
    CHECK(a->ld % 64 == 0, "rows of %zu entries are no whole words of marks", a->ld);
    if (estimates) {
        CUDA_OK(cudaMemsetAsync(a->column, 0, (size_t)H * a->ld * sizeof *a->column, s));
        cuda_look_lse(&a->rows, a->lse2, SPARSE_ROWS, a->parts, stream);
        cuda_look(LOOK_DIAGONALS, &a->rows, &o, stream);
        LAUNCH(estimate_k, dim3(blocks_for(a->rows.max_len, 256), H), 256, 0, stream, *a, tiles);
        cuda_keep_top(a->column, a->ld, a->choice, H, false, NULL, a->vertical, stream);
        cuda_keep_top(a->distance, a->ld, a->choice + H, H, false, a->keep, NULL, stream);
    }
    LAUNCH(slash_bits_k, dim3(blocks_for(a->ld / 64, 64), H), 64, 0, stream, *a);
    if (means)
        LAUNCH(mean_keys_k, dim3(CEIL_DIV(a->rows.max_len, SPARSE_ROWS), a->rows.n_lists), 128, 0,
               stream, *a);
    LAUNCH(head_lists_k, blocks_for(H, 32), 32, 0, stream, *a);
}

enum { MEAN_THREADS = 128, MEAN_MOST = 512 };

// grid (tiles / MEAN_THREADS, row blocks, H): tile_scores of block-sparse heads, and how many stay
__global__ static void tile_scores_k(SparseLists a) {
    SHARED(float, mean, MEAN_MOST);
    const SparsePlan *p = &a.plan;
    int h = blockIdx.z, block = a.first / SPARSE_ROWS + blockIdx.y, hd = p->rows.head_dim;
    int t = (int)thread_item(), from = blockIdx.y * SPARSE_ROWS;
    const HeadLists *l = &p->head[h];
    int tiles = list_tiles(l, block), item = h * gridDim.y + blockIdx.y;
    bool few = l->kind != HEAD_BLOCK_SPARSE || tiles <= l->blocks;
    if (t == 0) {
        Choice c = { few ? 0 : tiles, l->blocks, few ? 0 : tiles };
        a.choice[item] = c;
    }
    if (few) return;
    for (int i = threadIdx.x; i < hd; i += MEAN_THREADS) {
        float sum = 0;
        for (int r = from; r < from + SPARSE_ROWS && r < a.n; r++)
            sum += bf16_f32(a.q[((size_t)r * p->rows.n_heads + h) * hd + i]);
        mean[i] = round_bf16(sum * (1.0f / SPARSE_ROWS));
    }
    __syncthreads();
    if (t >= tiles) return;
    int g = h / (p->rows.n_heads / p->rows.n_lists);
    const uint16_t *k = p->k_mean + ((size_t)g * (p->ld / 64) + t) * hd;
    float score = 0;
    for (int b = 0; b < hd; b += BLK) {
        float even = 0, odd = 0;
        for (int i = b; i < hd && i < b + BLK; i += 2) {
            even = fmaf(mean[i], bf16_f32(k[i]), even);
            odd = fmaf(mean[i + 1], bf16_f32(k[i + 1]), odd);
        }
        score += even + odd;
    }
    a.score[(size_t)item * (p->ld / 64) + t] = score;
}

// grid covers (H, row blocks): one list each, as spans, as pieces and single entries, as marks
__global__ static void lists_k(SparseLists a, int blocks) {
    int item = (int)thread_item(), h = item / blocks, block = a.first / SPARSE_ROWS + item % blocks;
    const SparsePlan *p = &a.plan;
    if (h >= p->rows.n_heads) return;
    const HeadLists *l = &p->head[h];
    KeySpan *out = a.span + (size_t)item * a.most_spans;
    int words = (int)(p->ld / 64), n, tile = item * (words + 1), column = item * a.most_columns;
    n = l->kind == HEAD_A_SHAPE          ? a_shape_list(l, block, out)
        : l->kind == HEAD_VERTICAL_SLASH ? vertical_slash_list(l, block, out)
                                         : chosen_list(l, block, out,
                                                       a.chosen + (size_t)item * words);
    BlockTiles b;
    b.sinks = l->sinks;
    b.local = l->local;
    b.windowed = l->kind == HEAD_A_SHAPE ? l->n - l->dense_rows - block * SPARSE_ROWS : 0;
    block_tiles(out, n, a.tile, &tile, a.column, &column, &b);
    a.block[item] = b;
    a.n_spans[item] = n;
    if (!a.marks) return;
    uint64_t *bits = a.marks + (size_t)item * words;
    for (int w = 0; w < words; w++) bits[w] = 0;
    for (int i = 0; i < n; i++)
        for (int j = out[i].at; j < out[i].at + out[i].n; j++) bits[j / 64] |= 1ull << j % 64;
}

void cuda_sparse_lists(const SparseLists *a, bool means, void *stream) {
    int H = a->plan.rows.n_heads, blocks = CEIL_DIV(a->n, SPARSE_ROWS), hd = a->plan.rows.head_dim;
    int words = (int)(a->plan.ld / 64);
    CHECK(hd <= MEAN_MOST && hd % 2 == 0, "means of %d channels on the device", hd);
    if (!blocks) return;
    if (means) {
        LAUNCH(tile_scores_k, dim3(CEIL_DIV(words, MEAN_THREADS), blocks, H), MEAN_THREADS, 0,
               stream, *a);
        cuda_keep_top(a->score, (size_t)words, a->choice, H * blocks, false, NULL, a->chosen,
                      stream);
    }
    LAUNCH(lists_k, blocks_for((size_t)H * blocks, 64), 64, 0, stream, *a, blocks);
}
#endif
