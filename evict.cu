// evict.cu - which rows of the cache go: the policies and the statistics they are shown.
//
//   full           keeps every row
//   keep-last      the newest B rows
//   random         B rows by a hash of their position
//   streamingllm   the first S and the last R rows            Xiao et al., arXiv 2309.17453
//   snapkv         rows the last w queries attend to          Li et al., arXiv 2404.14469
//   pyramidkv      the same, lower layers keep more           Cai et al., arXiv 2406.02069
//   h2o            rows of most accumulated attention         Zhang et al., arXiv 2306.14048
//   scissorhands   rows important to most recent queries      Liu et al., arXiv 2305.17118
//   tova           rows the last query attends to             Oren et al., arXiv 2401.06104
//   roco           steady rows of least mean attention go     Ren and Zhu, arXiv 2402.06262
//   corm           rows important to any of the last w queries, and the last r
//                                                             Dai et al., arXiv 2404.15949
//
// A policy is one row of the table: it sees one KV head when it acts (Acting) and one query of the
// heads that share it (Query); it knows no model. a_ij = 2^(s_ij - lse2_i) is the attention of
// query i to row j. Ties keep the lower index.
#include "cache.h"
#include "kernels.h"
#include <xxhash.h>

// ---------------------------------------------------------------------------
// Choosing

// the query heads' numbers x (heads, ld) of n rows become one each, heads ascending; the mean is
// their sum times 1 / heads. Where query heads keep rows of their own, a policy that joins some all
// the same (tova, a whole layer) takes the mean.
void group_join(Group rule, const float *x, size_t ld, int heads, int n, float *out) {
    float share = 1.0f / (float)heads;
    memcpy(out, x, (size_t)n * sizeof *out);
    for (int h = 1; h < heads; h++) {
        const float *y = x + (size_t)h * ld;
        if (rule == GROUP_MAX) for (int j = 0; j < n; j++) out[j] = y[j] > out[j] ? y[j] : out[j];
        else for (int j = 0; j < n; j++) out[j] += y[j];
    }
    if (rule == GROUP_MEAN || rule == GROUP_QUERY_HEAD)
        for (int j = 0; j < n; j++) out[j] *= share;
}

// integers that order like the floats; -0 is +0
static void rank_floats(uint32_t *rank, const float *x, int n) {
    for (int j = 0; j < n; j++) {
        uint32_t u = f32_bits(x[j] + 0.0f);
        rank[j] = u & 0x80000000u ? ~u : u | 0x80000000u;
    }
}

// the k-th largest of n ranks, 1 <= k <= n, by radix: one byte at a time; *above: how many are
// larger
static uint32_t kth_largest(const uint32_t *rank, int n, int k, int *above) {
    uint32_t prefix = 0, known = 0;
    *above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int count[256] = { 0 }, digit = 255;
        for (int j = 0; j < n; j++) count[rank[j] >> shift & 255] += (rank[j] & known) == prefix;
        while (*above + count[digit] < k) *above += count[digit--];
        prefix |= (uint32_t)digit << shift;
        known |= 255u << shift;
    }
    return prefix;
}

// marks the k of n rows with the largest score; of equal ones the lower index, or the newer.
// Returns how many go.
int keep_top(const float *score, uint32_t *rank, int n, int k, bool newer, uint8_t *keep) {
    int above, ties;
    if (k >= n || k <= 0) {
        memset(keep, k > 0, (size_t)n);
        return k > 0 ? 0 : n;
    }
    rank_floats(rank, score, n);
    uint32_t edge = kth_largest(rank, n, k, &above);
    ties = k - above;
    for (int i = 0; i < n; i++) {
        int j = newer ? n - 1 - i : i;
        keep[j] = rank[j] > edge || (rank[j] == edge && ties-- > 0);
    }
    return n - k;
}

// the tail stays, and of the rows before it those of largest score, B in all
static int keep_budget(const Acting *a, const float *score, int tail, bool newer, uint8_t *keep) {
    int budget = a->z->budget, head = a->len - tail;
    memset(keep, 1, (size_t)a->len);
    if (a->len <= budget) return 0;
    return keep_top(score, a->rank, head, budget - tail, newer, keep);
}

#ifdef SCB_CUDA
enum { KEEP_THREADS = 512 };

// what is chosen by: scores, or hashes; larger stays
typedef struct {
    typedef uint32_t Bits;
    const float *score;
    __device__ uint32_t operator()(int j) const {
        uint32_t u = f32_bits(score[j] + 0.0f);
        return u & 0x80000000u ? ~u : u | 0x80000000u;
    }
} ByScore;

// The bin, counted from the largest, in which the left-th entry lies, and how many are left in it:
// 32 lanes take eight bins each.
__device__ static void edge_bin(const unsigned *count, int left, unsigned *bin, int *rest) {
    int lane = threadIdx.x, top = 255 - 8 * lane, mine = 0, upto;
    for (int b = 0; b < 8; b++) mine += (int)count[top - b];
    upto = mine;
    for (int s = 1; s < 32; s <<= 1) {
        int x = __shfl_up_sync(0xffffffffu, upto, s);
        upto += lane >= s ? x : 0;
    }
    if (upto < left || upto - mine >= left) return;
    int more = left - (upto - mine), b = 0;
    for (; (int)count[top - b] < more; b++) more -= (int)count[top - b];
    *bin = (unsigned)(top - b);
    *rest = more;
}

// the k-th largest of n, 1 <= k < n, by a block; *ties: how many of its equals stay
template <class Keys>
__device__ static typename Keys::Bits block_kth(const Keys &key, int n, int k, int *ties) {
    typedef typename Keys::Bits Bits;
    SHARED(unsigned, count, 256);
    SHARED(unsigned, bin, 1);
    SHARED(int, left, 1);
    Bits prefix = 0, known = 0;
    for (int shift = 8 * (int)sizeof(Bits) - 8; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += KEEP_THREADS) count[i] = 0;
        if (threadIdx.x == 0 && !known) left[0] = k;
        __syncthreads();
        for (int at = 0; at < n; at += KEEP_THREADS) {
            int j = at + threadIdx.x;
            Bits u = j < n ? key(j) : 0;
            bool in = j < n && (u & known) == prefix;
            unsigned digit = in ? (unsigned)(u >> shift & 255) : 256u;
            unsigned same = __match_any_sync(0xffffffffu, digit);   // neighbours often share a bin
            if (in && __ffs(same) - 1 == (int)threadIdx.x % 32)
                atomicAdd(&count[digit], __popc(same));
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            int rest = left[0];
            __syncwarp();
            edge_bin(count, rest, bin, left);
        }
        __syncthreads();
        prefix |= (Bits)bin[0] << shift;
        known |= (Bits)255 << shift;
    }
    *ties = left[0];
    return prefix;
}

// one row, by a block: keep (len) marks, index those of the first n that stay, ascending
template <class Keys>
__device__ static void block_keep_top(const Keys &key, Choice c, bool newer, uint8_t *keep,
                                      int32_t *index) {
    bool all = c.k >= c.n, none = c.k <= 0;
    int ties = 0, stay = all ? c.n : none ? 0 : c.k;
    uint32_t before = 0, total;         // larger ones in the low half, equals in the high one
    typename Keys::Bits edge = 0;
    for (int j = c.n + threadIdx.x; keep && j < c.len; j += KEEP_THREADS) keep[j] = 1;
    if (!all && !none) edge = block_kth(key, c.n, c.k, &ties);
    int above = 0, equal = 0;           // so far, in the order of the ties
    for (int at = 0; at < c.n; at += KEEP_THREADS) {
        int i = at + threadIdx.x, j = newer ? c.n - 1 - i : i;
        typename Keys::Bits u = i < c.n && !all && !none ? key(j) : 0;
        bool larger = i < c.n && (all || (!none && u > edge)), tie = i < c.n && u == edge && ties;
        before = block_places(larger, tie, &total);
        int eq = equal + (int)(before >> 16), place = above + (int)(before & 0xffffu);
        place += eq < ties ? eq : ties;
        bool stays = larger || (tie && eq < ties);
        if (keep && i < c.n) keep[j] = stays;
        if (index && stays) index[newer ? stay - 1 - place : place] = j;
        above += (int)(total & 0xffffu);
        equal += (int)(total >> 16);
    }
}

// grid rows
__global__ static void keep_top_k(const float *score, size_t ld, const Choice *choice, bool newer,
                                  uint8_t *keep, int32_t *index) {
    size_t row = blockIdx.x * ld;
    ByScore key = { score + row };
    block_keep_top(key, choice[blockIdx.x], newer, keep ? keep + row : NULL,
                   index ? index + row : NULL);
}

void cuda_keep_top(const float *score, size_t ld, const Choice *choice, int rows, bool newer,
                   uint8_t *keep, int32_t *index, void *stream) {
    if (rows)
        LAUNCH(keep_top_k, rows, KEEP_THREADS, 0, stream, score, ld, choice, newer, keep, index);
}
#endif

// ---------------------------------------------------------------------------
// By place

// keeps [0, head) and [len - tail, len)
static int keep_ends(int head, int tail, int len, uint8_t *keep) {
    int dropped = len - head - tail;
    if (dropped <= 0) dropped = 0;
    memset(keep, 1, (size_t)len);
    memset(keep + head * (dropped > 0), 0, (size_t)dropped);
    return dropped;
}

static int keep_last(const Acting *a, uint8_t *keep) {
    return keep_ends(0, a->z->budget, a->len, keep);
}

static int keep_streaming(const Acting *a, uint8_t *keep) {
    return keep_ends(a->z->sinks, a->z->recent, a->len, keep);
}

// the rows of smallest xxh64(seed, session, layer, KV head, position) go: the upper halves of the
// hashes decide, the lower ones where the edge falls between equals
static int keep_random(const Acting *a, uint8_t *keep) {
    int64_t key[5] = { a->seed, a->session, a->layer, a->kv_head, 0 };
    int k = a->z->budget, above;
    uint32_t *low = (uint32_t *)(void *)a->score;
    if (a->len <= k) return keep_ends(a->len, 0, a->len, keep);
    for (int j = 0; j < a->len; j++) {
        key[4] = a->pos[j];
        uint64_t hash = XXH64(key, sizeof key, 0);
        a->rank[j] = (uint32_t)(hash >> 32);
        low[j] = (uint32_t)hash;
    }
    uint32_t edge = kth_largest(a->rank, a->len, k, &above);
    for (int j = 0; j < a->len; j++) keep[j] = a->rank[j] > edge;
    for (; above < k; above++) {
        int best = -1;
        for (int j = 0; j < a->len; j++)
            if (a->rank[j] == edge && !keep[j] && (best < 0 || low[j] > low[best])) best = j;
        keep[best] = 1;
    }
    return a->len - k;
}

#ifdef SCB_CUDA
// grid (entries, lists)
__global__ static void keep_ends_k(const KeyList *list, int head, int tail, uint8_t *keep,
                                   size_t ld) {
    int j = (int)thread_item(), len = list[blockIdx.y].len;
    if (j < len) keep[blockIdx.y * ld + j] = j < head || j >= len - tail;
}

void cuda_keep_ends(const KeyList *list, int n_lists, int max_len, int head, int tail,
                    uint8_t *keep, size_t ld, void *stream) {
    if (max_len)
        LAUNCH(keep_ends_k, dim3(blocks_for(max_len, 256), n_lists), 256, 0, stream, list, head,
               tail, keep, ld);
}

// xxh64, seed 0, of five 64-bit words (xxHash, doc/xxhash_spec.md: one stripe of four, then one)
__device__ static uint64_t xxh64_words(const uint64_t *word) {
    const uint64_t P1 = 0x9e3779b185ebca87ull, P2 = 0xc2b2ae3d27d4eb4full,
                   P3 = 0x165667b19e3779f9ull, P4 = 0x85ebca77c2b2ae63ull,
                   P5 = 0x27d4eb2f165667c5ull;
#define ROTATE(x, r) ((x) << (r) | (x) >> (64 - (r)))
#define ROUND(acc, x) (ROTATE((acc) + (x) * P2, 31) * P1)
    uint64_t v[4] = { P1 + P2, P2, 0, 0 - P1 }, h;
    for (int i = 0; i < 4; i++) v[i] = ROUND(v[i], word[i]);
    h = ROTATE(v[0], 1) + ROTATE(v[1], 7) + ROTATE(v[2], 12) + ROTATE(v[3], 18);
    for (int i = 0; i < 4; i++) h = (h ^ ROUND(0, v[i])) * P1 + P4;
    h += 40;
    h = ROTATE(h ^ ROUND(0, word[4]), 27) * P1 + P4;
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    (void)P5;                           // of inputs below 32 bytes
    return h ^ h >> 32;
#undef ROTATE
#undef ROUND
}

typedef struct {
    typedef uint64_t Bits;
    const KeyList *list;
    RandomKey key;
    int64_t kv_head;
    __device__ uint64_t operator()(int j) const {
        int64_t pos = *(const int32_t *)list_row(list, (const void *const *)list->pos, j, 4);
        const uint64_t word[5] = { (uint64_t)key.seed, (uint64_t)key.session, (uint64_t)key.layer,
                                   (uint64_t)kv_head, (uint64_t)pos };
        return xxh64_words(word);
    }
} ByHash;

// grid lists
__global__ static void keep_random_k(const KeyList *list, RandomKey key, int budget, uint8_t *keep,
                                     size_t ld) {
    ByHash hash = { list + blockIdx.x, key, (int64_t)blockIdx.x };
    Choice c = { list[blockIdx.x].len, budget, list[blockIdx.x].len };
    block_keep_top(hash, c, false, keep + blockIdx.x * ld, NULL);
}

void cuda_keep_random(const KeyList *list, int n_lists, const RandomKey *key, int budget,
                      uint8_t *keep, size_t ld, void *stream) {
    LAUNCH(keep_random_k, n_lists, KEEP_THREADS, 0, stream, list, *key, budget, keep, ld);
}
#endif

// ---------------------------------------------------------------------------
// By the attention of the last w queries, kept rows chosen once

// SnapKV: c_j = sum of a_ij over the last w queries i, per query head; joined over the group,
// pooled over k neighbours, and the B - w largest stay with the last w rows.
// Differs: the released code pools every query head on its own and keeps rows per query head; that
// is --group query-head.
static void pool_scores(const Sizes *z, const float *x, int n, float *out) {
    int half = z->kernel / 2;
    for (int j = 0; j < n; j++) {
        int from = j < half ? 0 : j - half, to = j + half < n ? j + half : n - 1;
        float y = x[from];
        if (z->pool == POOL_MAX) for (int i = from + 1; i <= to; i++) y = x[i] > y ? x[i] : y;
        else for (int i = from + 1; i <= to; i++) y += x[i];
        out[j] = z->pool == POOL_MAX ? y : y / (float)z->kernel;
    }
}

// keeps `count` of the rows before the window
static int keep_window(const Acting *a, int count, uint8_t *keep) {
    const Sizes *z = a->z;
    int n = a->len - z->window;
    float *joined = a->score, *pooled = a->score + a->ld;
    memset(keep, 1, (size_t)a->len);
    if (n <= count) return 0;
    group_join(z->group, a->sums + (size_t)a->head * a->sums_ld, a->sums_ld, a->group, n, joined);
    pool_scores(z, joined, n, pooled);
    return keep_top(pooled, a->rank, n, count, false, keep);
}

static int keep_snapkv(const Acting *a, uint8_t *keep) {
    return keep_window(a, a->z->budget - a->z->window, keep);
}

// PyramidKV: layer l of L keeps max - l (max - min) / (L - 1) rows beside the window, integer
// divisions, min = c / beta, max = 2c - min, c = B - w; both are clipped to what there is.
static int pyramid_rows(const Sizes *z, int layer, int n_layers, int64_t n) {
    int64_t c = z->budget - z->window, min = c / z->beta, max = 2 * c - min;
    if (n < 2 * c || n_layers < 2) return (int)c;
    if (max >= n - z->window) {
        max = n - z->window;
        min = 2 * c - max;
    }
    return (int)(max - layer * ((max - min) / (n_layers - 1)));
}

static int keep_pyramid(const Acting *a, uint8_t *keep) {
    return keep_window(a, pyramid_rows(a->z, a->layer, a->n_layers, a->t), keep);
}

static int window_size(const Sizes *z) { return z->window; }

// TOVA: the B rows with most attention of the last query, all heads of the layer joined; every KV
// head of the layer keeps the same rows, and the newest is not protected.
static int keep_tova(const Acting *a, uint8_t *keep) {
    group_join(a->z->group, a->sums, a->sums_ld, a->n_heads, a->len, a->score);
    return keep_budget(a, a->score, 0, false, keep);
}

static int window_one(const Sizes *z) {
    (void)z;
    return 1;
}

// ---------------------------------------------------------------------------
// By the attention of all queries so far. A query's heads are joined first, then a_i is added,
// queries ascending. State of a row: S = sum of a_i; for RoCo also the sum of squares and how many
// queries there were.

static int words_one(const Sizes *z) { (void)z; return 1; }
static int words_moments(const Sizes *z) { (void)z; return 3; }

// the heads [first, first + heads) of a query into one unit of state; p (heads, PANEL)
static void add_unit(const Query *q, int first, int heads, int words, uint32_t *state, float *p) {
    float a[PANEL], *sum = (float *)(void *)state;
    for (int h = 0; h < heads; h++) {
        const float *s = q->s + (size_t)(first + h) * q->ld;
        float lse2 = q->lse2[(size_t)(first + h) * q->lse_ld], *x = p + (size_t)h * PANEL;
        for (int j = 0; j < q->len; j++) x[j] = fexp2(s[j] - lse2);
    }
    group_join(q->z->group, p, PANEL, heads, q->len, a);
    for (int j = 0; j < q->len; j++) sum[j] += a[j];
    if (words == 1) return;
    float *square = sum + q->plane, *count = square + q->plane;
    for (int j = 0; j < q->len; j++) square[j] += a[j] * a[j];
    for (int j = 0; j < q->len; j++) count[j] += 1.0f;
}

// one unit of state per KV head, or per query head where those keep rows of their own
static void add_attention(const Query *q, int words) {
    int units = q->z->group == GROUP_QUERY_HEAD ? q->heads : 1, heads = q->heads / units;
    float p[STRIP_ROWS * PANEL];
    for (int u = 0; u < units; u++)
        add_unit(q, u * heads, heads, words, q->state + (size_t)(u * words) * q->plane, p);
}
static void add_sum(const Query *q) { add_attention(q, 1); }
static void add_moments(const Query *q) { add_attention(q, 3); }

// H2O: the R newest rows, and of the others those of largest S.
// Differs: the released code adds in fp16, where a sink's sum stops growing at 2048; ours is fp32.
static int keep_h2o(const Acting *a, uint8_t *keep) {
    return keep_budget(a, (const float *)(const void *)a->state, a->z->recent, false, keep);
}

// RoCo: of the B - R rows with the smallest deviation of their attention the one of least mean
// goes, again and again until B are left; of equals the newer. Mean and deviation are over the
// queries since the row came; the newest rows count as unsteady. In the end the len - R - 1
// steadiest have been looked at, and of these the ones of largest mean are left: whichever row comes
// into the set next, what leaves it is the least of all there were.
// Differs: in the released code the budget is of generated rows alone, and R is 0.3 B whatever the
// user says.
static int keep_roco(const Acting *a, uint8_t *keep) {
    const Sizes *z = a->z;
    const float *sum = (const float *)(const void *)a->state, *square = sum + a->plane,
                *count = square + a->plane;
    float *mean = a->score, *steady = a->score + a->ld;
    if (a->len <= z->budget) return keep_ends(a->len, 0, a->len, keep);
    for (int j = 0; j < a->len; j++) {
        mean[j] = sum[j] / count[j];
        float var = square[j] / count[j] - mean[j] * mean[j];
        steady[j] = j >= a->len - z->protect ? -1e9f : -sqrtf(var > 0 ? var : 0);
    }
    keep_top(steady, a->rank, a->len, a->len - z->recent - 1, false, keep);
    for (int j = 0; j < a->len; j++) mean[j] = keep[j] ? mean[j] : INFINITY;
    return keep_top(mean, a->rank, a->len, z->budget, false, keep);
}

// ---------------------------------------------------------------------------
// By importance: row j is important to the query of step t iff a_tj >= 1/t for any head of the
// group, that is s_tj >= lse2_t - log2 t

// Scissorhands: one bit per row and query of the last `history`, the R newest rows stay, and of the
// others those important to most; the newer of equals. A fixed budget as the CORM paper's baseline.
// Differs: the released code has no budget and keeps what any query of its window found important.
static int words_marks(const Sizes *z) { return CEIL_DIV(z->history, 32); }
static int window_history(const Sizes *z) { return z->history; }

static void mark_important(const Query *q) {
    int at = (int)(q->t % q->z->history);
    uint32_t *word = q->state + (size_t)(at / 32) * q->plane, bit = 1u << (at % 32);
    float log_t = flog2((float)q->t);
    for (int h = 0; h < q->heads; h++) {
        const float *s = q->s + (size_t)h * q->ld;
        float bound = q->lse2[(size_t)h * q->lse_ld] - log_t;
        for (int j = 0; j < q->len; j++) {
            uint32_t old = h ? word[j] : word[j] & ~bit;
            word[j] = s[j] >= bound ? old | bit : old;
        }
    }
}

static int keep_scissorhands(const Acting *a, uint8_t *keep) {
    int words = words_marks(a->z);
    for (int j = 0; j < a->len; j++) a->score[j] = 0;
    for (int i = 0; i < words; i++)
        for (int j = 0; j < a->len; j++)
            a->score[j] += (float)__builtin_popcount(a->state[(size_t)i * a->plane + j]);
    return keep_budget(a, a->score, a->z->recent, true, keep);
}

// CORM. The paper's matrix of the last w rows of such bits is one int per key: last_j, the latest
// step at which j was important (0: never). A key that no query of the last w found important, and
// that is not among the r newest, is dropped; nothing is before w queries gave rows.
static void corm_observe(const Query *q) {
    int32_t *last = (int32_t *)(void *)q->state, t = (int32_t)q->t;
    float log_t = flog2((float)q->t);
    for (int h = 0; h < q->heads; h++) {
        const float *s = q->s + (size_t)h * q->ld;
        float bound = q->lse2[(size_t)h * q->lse_ld] - log_t;
        for (int j = 0; j < q->len; j++) last[j] = s[j] >= bound && t > last[j] ? t : last[j];
    }
}

static int keep_corm(const Acting *a, uint8_t *keep) {
    const int32_t *last = (const int32_t *)(const void *)a->state;
    int dropped = 0, w = a->z->window;
    for (int j = 0; j < a->len; j++) {
        keep[j] = a->t < w || last[j] > a->t - w || j >= a->len - a->z->protect;
        dropped += !keep[j];
    }
    return dropped;
}

#ifdef SCB_CUDA
// grid (entries, lists)
__global__ static void keep_corm_k(const KeyList *list, const DeviceHead *head, int64_t t,
                                   int window, int protect, uint8_t *keep, size_t ld) {
    int j = (int)thread_item(), len = list[blockIdx.y].len;
    const int32_t *last = (const int32_t *)head[blockIdx.y].state;
    if (j < len)
        keep[blockIdx.y * ld + j] = t < window || last[j] > t - window || j >= len - protect;
}

void cuda_keep_corm(const KeyList *list, const DeviceHead *state, int n_lists, int max_len,
                    int64_t t, int window, int protect, uint8_t *keep, size_t ld, void *stream) {
    if (max_len)
        LAUNCH(keep_corm_k, dim3(blocks_for(max_len, 256), n_lists), 256, 0, stream, list, state, t,
               window, protect, keep, ld);
}

// ---------------------------------------------------------------------------
// Numbers to choose by, on the device: one thread per entry

// group_join of one entry
__device__ static float join_entry(Group rule, const float *x, size_t ld, int heads, int j) {
    float y = x[j];
    for (int h = 1; h < heads; h++) {
        float v = x[(size_t)h * ld + j];
        y = rule == GROUP_MAX ? (v > y ? v : y) : y + v;
    }
    bool mean = rule == GROUP_MEAN || rule == GROUP_QUERY_HEAD;
    return mean ? y * (1.0f / (float)heads) : y;
}

// pool_scores of one entry of n
__device__ static float pool_entry(const Scoring *a, const float *x, int heads, int n, int j) {
    int half = a->kernel / 2, from = j < half ? 0 : j - half, to = j + half < n ? j + half : n - 1;
    float y = join_entry(a->group, x, a->sums_ld, heads, from);
    for (int i = from + 1; i <= to; i++) {
        float v = join_entry(a->group, x, a->sums_ld, heads, i);
        y = a->pool == POOL_MAX ? (v > y ? v : y) : y + v;
    }
    return a->pool == POOL_MAX ? y : y / (float)a->kernel;
}

// roco: minus the deviation, which is what stays when it is large; the newest count as unsteady
__device__ static float steady_entry(const Scoring *a, const DeviceHead *h, int len, int j,
                                     float *mean) {
    const float *sum = (const float *)h->state, *square = sum + h->cap, *count = square + h->cap;
    *mean = sum[j] / count[j];
    float var = square[j] / count[j] - *mean * *mean;
    return j >= len - a->protect ? -1e9f : -sqrtf(var > 0 ? var : 0);
}

// grid (entries, rows)
__global__ static void score_k(ScoreKind kind, Scoring a) {
    int row = blockIdx.y, j = (int)thread_item(), len = a.list[row].len, n = len - a.tail;
    int group = kind == SCORE_LAYER ? a.n_heads : a.n_heads / a.n_lists;
    const DeviceHead *h = a.head + row;
    const float *sums = a.sums ? a.sums + (size_t)row * group * a.sums_ld : NULL;
    float *to = a.score + row * a.ld + j;
    if (n < 0) n = 0;
    if (j == 0) {
        Choice c = { len <= a.budget ? 0 : n, a.budget - a.tail, len };
        if (kind == SCORE_STEADY && len > a.budget) c.n = len, c.k = len - a.tail - 1;
        a.choice[row] = c;
    }
    if (j >= (kind == SCORE_STEADY ? len : n)) return;
    if (kind == SCORE_WINDOW) *to = pool_entry(&a, sums, group, n, j);
    if (kind == SCORE_LAYER) *to = join_entry(a.group, sums, a.sums_ld, group, j);
    if (kind == SCORE_STATE) *to = ((const float *)h->state)[j];
    if (kind == SCORE_STEADY) *to = steady_entry(&a, h, len, j, a.mean + row * a.ld + j);
    if (kind != SCORE_MARKS) return;
    *to = 0;
    for (int i = 0; i < h->words; i++) *to += (float)__popc(h->state[(size_t)i * h->cap + j]);
}

void cuda_score(ScoreKind kind, const Scoring *a, void *stream) {
    int rows = kind == SCORE_LAYER ? 1 : a->n_lists;
    if (a->max_len)
        LAUNCH(score_k, dim3(blocks_for(a->max_len, 256), rows), 256, 0, stream, kind, *a);
}

// grid (entries, rows): what is not among the steadiest stays
__global__ static void mean_k(Scoring a, const uint8_t *keep) {
    int row = blockIdx.y, j = (int)thread_item(), len = a.list[row].len;
    if (j == 0) {
        Choice c = { len <= a.budget ? 0 : len, a.budget, len };
        a.choice[row] = c;
    }
    if (j < len && len > a.budget && !keep[row * a.ld + j]) a.mean[row * a.ld + j] = INFINITY;
}

void cuda_keep_roco(const Scoring *a, uint8_t *keep, void *stream) {
    cuda_keep_top(a->score, a->ld, a->choice, a->n_lists, false, keep, NULL, stream);
    if (a->max_len)
        LAUNCH(mean_k, dim3(blocks_for(a->max_len, 256), a->n_lists), 256, 0, stream, *a, keep);
    cuda_keep_top(a->mean, a->ld, a->choice, a->n_lists, false, keep, NULL, stream);
}
#endif

// ---------------------------------------------------------------------------
// The table

static const Policy policies[] = {
    { .name = "full", .help = "every row is kept", .kv_size = "n", .prefill_cost = "n^2",
      .decode_cost = "n" },
    { .name = "keep-last", .help = "the newest B rows of each KV head", .kv_size = "B",
      .prefill_cost = "n^2", .decode_cost = "B", .evicts = true, .has_budget = true,
      .at_first = true, .at_steps = true, .at_feeds = true, .keep = keep_last },
    { .name = "random", .help = "B rows by a hash of seed, session, layer, KV head and position",
      .kv_size = "B", .prefill_cost = "n^2", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .at_steps = true, .at_feeds = true,
      .keep = keep_random, .wants_pos = true },
    { .name = "streamingllm", .help = "the first S (sinks) and the last R rows (arXiv 2309.17453)",
      .differs = "paper: slides for ever, keys turned to their place in the cache; SCBench: in its "
                 "paper SinkCache of transformers (positions=sinkcache), whose new queries stand "
                 "before the rows of a long prompt; in its code one cut after the first feed, own "
                 "positions, then it grows (--preset harness)",
      .kv_size = "S + R", .prefill_cost = "n^2", .decode_cost = "S + R", .evicts = true,
      .has_budget = true, .at_first = true, .at_steps = true, .at_feeds = true,
      .keep = keep_streaming },
    { .name = "snapkv", .help = "rows the last w queries of the prompt attend to, pooled, and the "
                                "last w (arXiv 2404.14469)",
      .differs = "paper: B 2048; SCBench's code: B 4096, chosen and stored per query head, w times "
                 "the group's memory (--preset harness); both once, after the first feed",
      .kv_size = "B", .prefill_cost = "n^2 + w n", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .groups = GROUPS_CHOICE, .keep = keep_snapkv,
      .sums = true, .window = window_size },
    { .name = "pyramidkv", .help = "snapkv with more rows in lower layers (arXiv 2406.02069)",
      .differs = "integer steps between layers as in the released code: a little over B on average",
      .kv_size = "B", .prefill_cost = "n^2 + w n", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .groups = GROUPS_CHOICE, .keep = keep_pyramid,
      .sums = true, .window = window_size },
    { .name = "h2o", .help = "rows of most accumulated attention, and the last R "
                             "(arXiv 2306.14048)",
      .differs = "released code: query heads without groups only, sums in fp16 that stop at 2048; "
                 "ours in fp32",
      .kv_size = "B", .prefill_cost = "2 n^2", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .at_steps = true, .at_feeds = true,
      .groups = GROUPS_CHOICE, .keep = keep_h2o, .words = words_one, .observe = add_sum,
      .every_query = true },
    { .name = "scissorhands", .help = "rows important to most of the last queries, and the last R "
                                      "(arXiv 2305.17118)",
      .differs = "a fixed budget as the CORM paper's baseline; the released code has none and "
                 "keeps what any query of its window found important",
      .kv_size = "B", .prefill_cost = "n^2 + w n", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .at_steps = true, .at_feeds = true,
      .groups = GROUPS_ANY, .keep = keep_scissorhands, .words = words_marks,
      .observe = mark_important, .window = window_history },
    { .name = "tova", .help = "rows the last query attends to, the same in all heads of a layer "
                              "(arXiv 2401.06104)",
      .kv_size = "B", .prefill_cost = "n^2 + n", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .at_steps = true, .at_feeds = true,
      .groups = GROUPS_CHOICE, .keep = keep_tova, .one_for_all = true, .sums = true,
      .window = window_one },
    { .name = "roco", .help = "of the steadiest rows the one of least mean attention goes "
                              "(arXiv 2402.06262)",
      .differs = "released code: the budget counts generated rows alone",
      .kv_size = "B", .prefill_cost = "2 n^2", .decode_cost = "B", .evicts = true,
      .has_budget = true, .at_first = true, .at_steps = true, .at_feeds = true,
      .groups = GROUPS_CHOICE, .keep = keep_roco, .words = words_moments, .observe = add_moments,
      .every_query = true },
    { .name = "quest", .help = "all rows stay; each token reads the pages whose bounds on its "
                               "scores are largest, B rows (arXiv 2406.10774)",
      .differs = "paper: two dense layers, its own page forced; SCBench's code: all layers, none "
                 "forced, one choice for all tokens of a feed; ours: all layers, own page forced, "
                 "each token its own",
      .kv_size = "n + 2n/page", .prefill_cost = "n^2", .decode_cost = "n/page + B",
      .has_budget = true, .groups = GROUPS_CHOICE, .at_read = READ_PAGES },
    { .name = "topk", .help = "all rows stay; each token reads the B rows it attends to most, "
                              "found by reading all", .kv_size = "n", .prefill_cost = "n^2",
      .decode_cost = "n + B", .has_budget = true, .groups = GROUPS_CHOICE, .at_read = READ_TOP },
    { .name = "corm", .help = "rows important to any of the last w queries, and the last r "
                              "(arXiv 2404.15949)",
      .differs = "the paper's bits of w queries per row are one step number; the prompt is judged "
                 "once by its last w queries, or every C tokens (prefill=stream:C)",
      .kv_size = "no bound", .prefill_cost = "n^2 + w n", .decode_cost = "rows kept",
      .evicts = true, .at_first = true, .at_steps = true, .at_feeds = true, .groups = GROUPS_ANY,
      .keep = keep_corm, .words = words_one, .observe = corm_observe, .window = window_size },
};
const Policy *policy_at(int i) {
    return i >= 0 && i < (int)COUNTOF(policies) ? &policies[i] : NULL;
}

const Policy *policy_columns(int words) {
    static const Policy columns[] = {
        { .name = "sum", .groups = GROUPS_CHOICE, .words = words_one, .observe = add_sum,
          .every_query = true },
        { .name = "moments", .groups = GROUPS_CHOICE, .words = words_moments,
          .observe = add_moments, .every_query = true },
    };
    return &columns[words > 1];
}

// ---------------------------------------------------------------------------
// Statistics in O(n) memory per head: the scores of some queries are made again, one panel of keys
// at a time, and shown to the policy, (query, head) ascending. Every query counts with its own
// causal prefix and with the denominator that attention gave it.

typedef struct {                // rows of queries
    const float *q;             // (rows, H, hd)
    int rows;
    const float *lse2;          // head h of row i at h * lse_ld + i
    size_t lse_ld;
    int64_t t;                  // 1-based step of the first
    int behind;                 // rows of the cache that are newer than the last query
    bool sparse;                // they computed what their lists hold
    const int32_t *seen;        // (KV heads, rows) entries each sees; NULL: all up to its own row
} Queries;

// puts earlier rows, of the shared context or of the branch's last feeds, in front of the feed's
// own; returns how many rows there are
static int window_join(KVWork *w, int want, const void *ext, const int32_t *pos, int ext_rows) {
    const AttnShape *s = w->s;
    size_t row = (size_t)s->n_heads * s->head_dim;
    int own = w->window_rows < want ? w->window_rows : want,
        add = want - own < ext_rows ? want - own : ext_rows;
    memmove(w->window_pos + add, w->window_pos + w->window_rows - own, (size_t)own * sizeof *pos);
    memcpy(w->window_pos, pos + ext_rows - add, (size_t)add * sizeof *pos);
    if (w->device) {                            // its own stay: what comes before them has room
        w->d.window_at += w->window_rows - own - add;
        mem_copy(w->mem, window_row(w, w->d.window_at),
                 (const uint16_t *)ext + (size_t)(ext_rows - add) * row,
                 (size_t)add * row * sizeof(uint16_t));
        return w->window_rows = own + add;
    }
    memmove(w->window + (size_t)add * row, w->window + (size_t)(w->window_rows - own) * row,
            (size_t)own * row * sizeof(float));
    for (size_t i = 0; i < (size_t)add * row; i++) {
        size_t at = (size_t)(ext_rows - add) * row + i;
        w->window[i] =
            s->elem == 4 ? ((const float *)ext)[at] : bf16_f32(((const uint16_t *)ext)[at]);
    }
    w->window_rows = own + add;
    return own + add;
}

static void window_denominators(KVCache *c, KVWork *w, int layer, int rows, const int32_t *seen) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, most = seen ? 1 : ATTN_ROWS,
        blocks = CEIL_DIV(rows, most);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * s->n_heads; item++) {
        int h = item % s->n_heads, r = item / s->n_heads * most;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = panels_of(c, w, h / group);
        a.ldq = (size_t)s->n_heads * s->head_dim;
        a.q = w->window + (size_t)r * a.ldq + (size_t)h * s->head_dim;
        a.rows = rows - r < most ? rows - r : most;
        a.vis0 = seen ? seen[(size_t)(h / group) * rows + r]
                      : head_of(c, layer, h / group)->len - rows + r + 1;
        a.vis_step = 1;
        a.lse2 = window_lse2(w) + (size_t)h * w->window_cap + r;
        attn_rows(s, &a, thread_scratch(w));
    }
}

// window sums of one panel: each query's attention is added to what its head has
static void add_window(const Query *q, float *sums, size_t ld) {
    for (int h = 0; h < q->heads; h++) {
        const float *s = q->s + (size_t)h * q->ld;
        float lse2 = q->lse2[(size_t)h * q->lse_ld], *sum = sums + (size_t)h * ld;
        for (int j = 0; j < q->len; j++) sum[j] += fexp2(s[j] - lse2);
    }
}

// one panel of keys of KV head g under all queries of its group, whole queries at a time
static void look_panel(KVCache *c, KVWork *w, int layer, int g, int p, const Queries *rows) {
    const AttnShape *s = c->s;
    const Policy *policy = c->method.policy;
    int group = s->n_heads / s->n_kv_heads, hd = s->head_dim, vis[STRIP_ROWS];
    int strip = STRIP_ROWS / group;
    Head *h = head_of(c, layer, g);
    char *scratch = thread_scratch(w);
    float *q = (float *)(void *)(scratch + attn_scratch_bytes(s)), *scores = q + STRIP_ROWS * hd;
    const char *panel = panels_of(c, w, g) + (size_t)p * attn_panel_bytes(s);
    float *sums = w->scores + (size_t)(g * group) * w->scores_ld + (size_t)p * PANEL;
    int first = p * PANEL - (h->len - rows->behind - rows->rows);   // first query to see it
    for (int at = first < 0 || rows->seen ? 0 : first; at < rows->rows; at += strip) {
        int n = rows->rows - at < strip ? rows->rows - at : strip;
        for (int i = 0; i < n * group; i++) {
            int v = at + i / group + 1 - first;
            if (rows->seen) v = rows->seen[(size_t)g * rows->rows + at + i / group] - p * PANEL;
            vis[i] = v < 0 ? 0 : v > PANEL ? PANEL : v;
        }
        for (int i = 0; i < n; i++)
            memcpy(q + (size_t)i * group * hd,
                   rows->q + ((size_t)(at + i) * s->n_heads + g * group) * hd,
                   (size_t)group * hd * sizeof *q);
        attn_panel_scores(s, panel, q, n * group, vis, scores, scratch);
        for (int i = 0; rows->sparse && i < n * group; i++)
            sparse_hide(w->sparse, g * group + i % group, at + i / group, p * PANEL, vis[i],
                        scores + (size_t)i * PANEL);
        for (int i = 0; i < n; i++) {
            Query one = { &c->method.size, group, vis[i * group],
                          scores + (size_t)i * group * PANEL, PANEL,
                          rows->lse2 + (size_t)(g * group) * rows->lse_ld + at + i, rows->lse_ld,
                          rows->t + at + i, h->state + (size_t)p * PANEL, (size_t)h->cap };
            if (policy->sums) add_window(&one, sums, (size_t)w->scores_ld);
            else policy->observe(&one);
        }
    }
}

static void look(KVCache *c, KVWork *w, int layer, const Queries *rows) {
    int G = c->s->n_kv_heads, most = 0;
    for (int g = 0; g < G; g++) if (kv_len(c, layer, g) > most) most = kv_len(c, layer, g);
    int panels = CEIL_DIV(most, PANEL);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < G * panels; item++)
        if (item % panels * PANEL < kv_len(c, layer, item / panels))
            look_panel(c, w, layer, item / panels, item % panels, rows);
}

void policy_queries(KVCache *c, KVWork *w, int layer, int first, int n, int64_t pos,
                    const float *q, bool sparse) {
    Queries rows = { q, n, w->lse2 + first, (size_t)w->lse2_ld, pos + 1,
                     sparse ? w->feed_n - first - n : 0, sparse, NULL };
    look(c, w, layer, &rows);
}

// how many entries of every KV head each of n window rows sees: those up to its own position
static void entries_seen(KVCache *c, KVWork *w, int layer, int n, int32_t *seen) {
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        const int32_t *pos;
        int at = kv_positions(c, layer, g, &pos);
        for (int i = n - 1; i >= 0; i--) {
            while (at && pos[at - 1] > w->window_pos[i]) at--;
            seen[(size_t)g * n + i] = at;
        }
    }
}

// the last n query rows of the feeds, t tokens in all; apart: there may be tokens between them
static void look_back(KVCache *c, KVWork *w, int layer, int n, int64_t t, bool apart) {
    Queries rows = { w->window, n, window_lse2(w), (size_t)w->window_cap, t - n + 1, 0, false,
                     apart ? window_seen(w) : NULL };
    if (apart) entries_seen(c, w, layer, n, window_seen(w));
    if (w->feed_n == 0) pack_new(c, w, layer, 0, true);
    if (c->method.policy->sums)
        memset(w->scores, 0, (size_t)c->s->n_heads * w->scores_ld * sizeof *w->scores);
    window_denominators(c, w, layer, n, rows.seen);
    look(c, w, layer, &rows);
}

#ifdef SCB_CUDA
// The same on the device. A block holds 128 keys of a list and walks the queries in ascending
// order, 64 rows (query, head) at a time: the products leave a tile of scores in shared memory,
// then every thread adds the column of its own key, so a key's sums have the order of the plain
// loop and no two blocks write to one place.

// entries that row i sees of list l
__device__ static int row_sees(const LookRows *a, int l, int i) {
    return a->seen ? a->seen[(size_t)l * a->rows + i]
                   : a->list[l].len - a->behind - a->rows + i + 1;
}

// a sparse prefill did not look at entry j for row i of head h
__device__ static bool row_skips(const LookRows *a, int h, int i, int j) {
    if (!a->sparse) return false;
    const HeadLists *l = &a->sparse[h];
    int row = a->row0 + i, own = l->len - l->n + row,
        block = row / SPARSE_ROWS - a->row0 / SPARSE_ROWS;
    uint64_t bits = a->marks[((size_t)h * a->mark_blocks + block) * a->mark_words + j / 64];
    bool windowed = l->kind == HEAD_A_SHAPE && row < l->n - l->dense_rows;
    return !(bits >> j % 64 & 1) || (windowed && j >= l->sinks && j <= own - l->local);
}

// rows at .. at + n of heads .. of a tile: row i * heads + k is head first + k of query at + i
__device__ static void load_queries(uint32_t *to, const LookRows *a, int at, int n, int first,
                                    int heads) {
    int hd = a->head_dim, pieces = CEIL_DIV(hd, 16) * 2;
    for (int i = threadIdx.x; i < TILE_ROWS * pieces; i += TILE_THREADS) {
        int r = i / pieces, c = i % pieces;
        bool wanted = r < n * heads && c * 8 < hd;
        const uint16_t *from = wanted ? a->q + (size_t)(at + r / heads) * a->q_row +
                                            (size_t)(first + r % heads) * a->q_head + 8 * c : NULL;
        cp_async16(to + r * tile_ld(hd) + c * 4, from, wanted);
    }
}

// one unit of a key's statistics, in registers while its block walks
typedef struct { float sum, square, count; int last; } Column;

template <LookKind KIND>
__device__ static Column column_load(const uint32_t *state, size_t plane) {
    Column c = { 0, 0, 0, 0 };
    if (KIND == LOOK_SUM || KIND == LOOK_MOMENTS) c.sum = bits_f32(state[0]);
    if (KIND == LOOK_MOMENTS) c.square = bits_f32(state[plane]);
    if (KIND == LOOK_MOMENTS) c.count = bits_f32(state[2 * plane]);
    if (KIND == LOOK_LAST) c.last = (int)state[0];
    return c;
}

template <LookKind KIND>
__device__ static void column_store(uint32_t *state, size_t plane, const Column *c) {
    if (KIND == LOOK_SUM || KIND == LOOK_MOMENTS) state[0] = f32_bits(c->sum);
    if (KIND == LOOK_MOMENTS) state[plane] = f32_bits(c->square);
    if (KIND == LOOK_MOMENTS) state[2 * plane] = f32_bits(c->count);
    if (KIND == LOOK_LAST) state[0] = (uint32_t)c->last;
}

// One query's heads, s at s[k * ld], lse2 at lse2[k * lse_ld], leave their trace in a column. seen:
// bit k: head k looked at this key
template <LookKind KIND>
__device__ static void column_add(Column *c, const Observed *o, uint32_t *state, size_t plane,
                                  const float *s, size_t ld, const float *lse2, int heads,
                                  uint32_t seen, int64_t t) {
    if (KIND == LOOK_MARKS || KIND == LOOK_LAST) {
        float log_t = flog2((float)t);
        bool any = false;
        for (int k = 0; k < heads; k++)
            any |= (seen >> k & 1) && s[k * ld] >= lse2[k * o->lse_ld] - log_t;
        if (KIND == LOOK_LAST) c->last = any && (int)t > c->last ? (int)t : c->last;
        if (KIND == LOOK_LAST) return;
        int at = (int)(t % o->history);
        uint32_t *word = state + (size_t)(at / 32) * plane, bit = 1u << at % 32;
        *word = any ? *word | bit : *word & ~bit;
        return;
    }
    float a = 0;
    for (int k = 0; k < heads; k++) {
        float p = seen >> k & 1 ? fexp2(s[k * ld] - lse2[k * o->lse_ld]) : 0.0f;
        a = k == 0 ? p : o->group == GROUP_MAX ? (p > a ? p : a) : a + p;
    }
    if (o->group == GROUP_MEAN && KIND != LOOK_WINDOW && KIND != LOOK_DIAGONALS)
        a *= 1.0f / (float)heads;
    c->sum += a;
    if (KIND == LOOK_MOMENTS) c->square += a * a;
    if (KIND == LOOK_MOMENTS) c->count += 1.0f;
}

// sums of one head's tile, rows from `at` on, along its diagonals: key first + j under row i adds
// to number j + rows - 1 - i
__device__ static void add_diagonals(const LookRows *a, const Observed *o, const float *s, int head,
                                     int first, int at) {
    const float *lse2 = o->lse2 + (size_t)head * o->lse_ld;
    int l = head / (a->n_heads / a->n_lists);
    float *to = o->diagonals + ((size_t)head * gridDim.x + blockIdx.x) * LOOK_DIAGONAL;
    for (int e = threadIdx.x; e < LOOK_DIAGONAL; e += TILE_THREADS) {
        float sum = 0;
        for (int i = at; i < a->rows; i++) {
            int j = e - (a->rows - 1 - i);
            if (j < 0 || j >= TILE_KEYS || first + j >= row_sees(a, l, i)) continue;
            sum += fexp2(s[(i - at) * SCORE_LD + j] - lse2[i]);
        }
        to[e] = sum;
    }
}

// grid (key tiles, lists * units), block TILE_THREADS: the heads of one unit over 128 keys
template <LookKind KIND>
__global__ static void look_k(LookRows a, Observed o) {
    DYN_SHARED(uint32_t, shared);
    ScoreTile tile = score_tile_at(shared, a.head_dim);
    int group = a.n_heads / a.n_lists, heads = group / o.units, l = blockIdx.y / o.units,
        unit = blockIdx.y % o.units, h = l * group + unit * heads, len = a.list[l].len;
    int first = blockIdx.x * TILE_KEYS, strip = TILE_ROWS / heads, j = first + threadIdx.x, at = 0;
    if (first >= len) return;
    if (!a.seen) at = first - (len - a.behind - a.rows);        // the first query to see a key
    if (at < 0) at = 0;
    load_keys(tile.k, &a.list[l], first, len, a.head_dim);
    const bool sums = KIND == LOOK_WINDOW || KIND == LOOK_DIAGONALS;
    size_t plane = sums ? 0 : (size_t)o.head[l].cap;
    uint32_t *state = sums ? (uint32_t *)o.sums + (size_t)h * o.sums_ld
                           : o.head[l].state + (size_t)unit * (o.head[l].words / o.units) * plane;
    Column c = { 0, 0, 0, 0 };
    if (j < len) c = column_load<sums ? LOOK_SUM : KIND>(state + j, plane);
    for (; at < a.rows; at += strip) {
        int n = a.rows - at < strip ? a.rows - at : strip;
        load_queries(tile.q, &a, at, n, h, heads);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        score_tile(&tile, a.head_dim, a.scale);
        __syncthreads();
        for (int i = 0; i < n; i++) {
            uint32_t seen = 0;
            if (j >= row_sees(&a, l, at + i) || j >= len) continue;
            for (int k = 0; k < heads; k++) seen |= (uint32_t)!row_skips(&a, h + k, at + i, j) << k;
            column_add<KIND>(&c, &o, state + j, plane,
                             tile.s + i * heads * SCORE_LD + threadIdx.x, SCORE_LD,
                             o.lse2 + (size_t)h * o.lse_ld + at + i, heads, seen, o.t + at + i);
        }
        if (KIND == LOOK_DIAGONALS) add_diagonals(&a, &o, tile.s, h, first, at);
    }
    if (j < len) column_store<sums ? LOOK_SUM : KIND>(state + j, plane, &c);
}

// kernels that want more shared memory than 48 KB say so before a launch
template <class Kernel>
static size_t tile_shared(Kernel *kernel, int hd) {
    size_t bytes = score_tile_bytes(hd);
    CUDA_OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    return bytes;
}

template <LookKind KIND>
static void look_launch(const LookRows *a, const Observed *o, void *stream) {
    LAUNCH(look_k<KIND>, dim3(CEIL_DIV(a->max_len, TILE_KEYS), a->n_lists * o->units), TILE_THREADS,
           tile_shared(look_k<KIND>, a->head_dim), stream, *a, *o);
}

void cuda_look(LookKind kind, const LookRows *a, const Observed *o, void *stream) {
    Observed by_head = *o;
    by_head.units = a->n_heads / a->n_lists;
    CHECK(a->head_dim % 8 == 0, "keys of %d channels on the device", a->head_dim);
    CHECK(kind != LOOK_DIAGONALS || a->rows <= TILE_ROWS, "diagonals of %d rows", a->rows);
    if (!a->rows || !a->max_len) return;
    if (kind == LOOK_SUM) look_launch<LOOK_SUM>(a, o, stream);
    if (kind == LOOK_MOMENTS) look_launch<LOOK_MOMENTS>(a, o, stream);
    if (kind == LOOK_MARKS) look_launch<LOOK_MARKS>(a, o, stream);
    if (kind == LOOK_LAST) look_launch<LOOK_LAST>(a, o, stream);
    if (kind == LOOK_WINDOW) look_launch<LOOK_WINDOW>(a, &by_head, stream);
    if (kind == LOOK_DIAGONALS) look_launch<LOOK_DIAGONALS>(a, &by_head, stream);
}

// grid (entries, lists * units): one query whose scores are there
template <LookKind KIND>
__global__ static void observe_k(LookRows a, Observed o, const float *scores, size_t scores_ld) {
    int group = a.n_heads / a.n_lists, heads = group / o.units, l = blockIdx.y / o.units,
        unit = blockIdx.y % o.units, h = l * group + unit * heads, j = (int)thread_item();
    if (j >= a.list[l].len) return;
    const bool sums = KIND == LOOK_WINDOW;
    size_t plane = sums ? 0 : (size_t)o.head[l].cap;
    uint32_t *state =
        (sums ? (uint32_t *)o.sums + (size_t)h * o.sums_ld
              : o.head[l].state + (size_t)unit * (o.head[l].words / o.units) * plane) +
        j;
    Column c = { 0, 0, 0, 0 };
    if (!sums) c = column_load<KIND>(state, plane);
    column_add<KIND>(&c, &o, state, plane, scores + (size_t)h * scores_ld + j, scores_ld,
                     o.lse2 + (size_t)h * o.lse_ld, heads, 0xffffffffu, o.t);
    column_store<sums ? LOOK_SUM : KIND>(state, plane, &c);
}

template <LookKind KIND>
static void observe_launch(const LookRows *a, const Observed *o, const float *scores, size_t ld,
                           void *stream) {
    LAUNCH(observe_k<KIND>, dim3(blocks_for(a->max_len, 128), a->n_lists * o->units), 128, 0,
           stream, *a, *o, scores, ld);
}

void cuda_observe(LookKind kind, const LookRows *a, const Observed *o, const float *scores,
                  size_t scores_ld, void *stream) {
    Observed by_head = *o;
    by_head.units = a->n_heads / a->n_lists;
    if (!a->max_len) return;
    if (kind == LOOK_SUM) observe_launch<LOOK_SUM>(a, o, scores, scores_ld, stream);
    if (kind == LOOK_MOMENTS) observe_launch<LOOK_MOMENTS>(a, o, scores, scores_ld, stream);
    if (kind == LOOK_MARKS) observe_launch<LOOK_MARKS>(a, o, scores, scores_ld, stream);
    if (kind == LOOK_LAST) observe_launch<LOOK_LAST>(a, o, scores, scores_ld, stream);
    if (kind == LOOK_WINDOW) observe_launch<LOOK_WINDOW>(a, &by_head, scores, scores_ld, stream);
}

// Denominators of a few rows over all keys: blocks share the keys in LOOK_SPLITS pieces of whole
// tiles, each leaves (m, l) of its rows, and the pieces are folded in order. Two threads hold a
// row.

// grid (pieces, row tiles, lists), block TILE_THREADS
__global__ static void look_lse_k(LookRows a, float *parts) {
    DYN_SHARED(uint32_t, shared);
    ScoreTile tile = score_tile_at(shared, a.head_dim);
    int l = blockIdx.z, heads = a.n_heads / a.n_lists, len = a.list[l].len,
        strip = TILE_ROWS / heads, at = blockIdx.y * strip,
        n = a.rows - at < strip ? a.rows - at : strip;
    int tiles = CEIL_DIV(CEIL_DIV(a.max_len, TILE_KEYS), LOOK_SPLITS);
    int row = threadIdx.x / 2, side = threadIdx.x % 2 * (TILE_KEYS / 2), i = at + row / heads;
    int sees = row < n * heads ? row_sees(&a, l, i) : 0, most = row_sees(&a, l, at + n - 1);
    float m = -INFINITY, sum = 0;
    load_queries(tile.q, &a, at, n, l * heads, heads);
    for (int k = 0; k < tiles; k++) {
        int first = ((int)blockIdx.x * tiles + k) * TILE_KEYS, end = sees - first - side;
        if (first >= len || first >= most) break;
        load_keys(tile.k, &a.list[l], first, len, a.head_dim);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        score_tile(&tile, a.head_dim, a.scale);
        __syncthreads();
        const float *s = tile.s + row * SCORE_LD + side;
        float top = m;
        if (end > TILE_KEYS / 2) end = TILE_KEYS / 2;
        for (int j = 0; j < end; j++) top = s[j] > top ? s[j] : top;
        sum = m > -INFINITY ? sum * fexp2(m - top) : 0.0f;
        for (int j = 0; j < end; j++) sum += fexp2(s[j] - top);
        m = top;
    }
    float m2 = __shfl_xor_sync(0xffffffffu, m, 1), sum2 = __shfl_xor_sync(0xffffffffu, sum, 1);
    float top = m > m2 ? m : m2;
    if (side || row >= n * heads) return;
    size_t to = ((size_t)blockIdx.x * a.n_heads + l * heads + row % heads) * a.rows + i;
    parts[2 * to] = top;
    parts[2 * to + 1] = (m > -INFINITY ? sum * fexp2(m - top) : 0.0f) +
                        (m2 > -INFINITY ? sum2 * fexp2(m2 - top) : 0.0f);
}

// grid covers (H, rows)
__global__ static void look_fold_k(const float *parts, int n_heads, int rows, float *lse2,
                                   size_t lse_ld) {
    int item = (int)thread_item();
    if (item >= n_heads * rows) return;
    float m = -INFINITY, sum = 0;
    for (int p = 0; p < LOOK_SPLITS; p++) {
        const float *x = parts + 2 * ((size_t)p * n_heads * rows + item);
        float top = x[0] > m ? x[0] : m;
        if (x[0] == -INFINITY) continue;
        sum = (m > -INFINITY ? sum * fexp2(m - top) : 0.0f) + x[1] * fexp2(x[0] - top);
        m = top;
    }
    lse2[(size_t)(item / rows) * lse_ld + item % rows] = m + flog2(sum);
}

void cuda_look_lse(const LookRows *a, float *lse2, size_t lse_ld, float *parts, void *stream) {
    int heads = a->n_heads / a->n_lists, all = a->n_heads * a->rows;
    CHECK(a->head_dim % 8 == 0, "keys of %d channels on the device", a->head_dim);
    if (!a->rows) return;
    LAUNCH(look_lse_k, dim3(LOOK_SPLITS, CEIL_DIV(a->rows, TILE_ROWS / heads), a->n_lists),
           TILE_THREADS, tile_shared(look_lse_k, a->head_dim), stream, *a, parts);
    LAUNCH(look_fold_k, blocks_for(all, 128), 128, 0, stream, parts, a->n_heads, a->rows, lse2,
           lse_ld);
}
#endif

// ---------------------------------------------------------------------------
// When policies act

#ifdef SCB_CUDA
// On a device a policy acts on the lists of the call. Its scratch, for lists of up to ld entries:
typedef struct {
    float *score, *mean;        // (lists, ld); mean: roco
    uint8_t *keep;              // (lists, ld)
    Choice *choice;             // (lists)
    float *parts;               // of cuda_look_lse
    size_t ld;
} Rule;

static size_t rule_at(const AttnShape *s, const Policy *p, int lists, int len, int window,
                      char *base, Rule *r) {
    size_t ld = (size_t)CEIL_DIV(len, PANEL) * PANEL, n = (size_t)lists, at = 0;
    size_t scores = policy_looks(p) ? n * ld : 0;
    r->ld = ld;
#define CARVE(field, type, count)                                                                  \
    (r->field = (type *)(void *)(base + at),                                                       \
     at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(score, float, scores);
    CARVE(mean, float, p->observe == add_moments ? scores : 0);
    CARVE(keep, uint8_t, p->evicts ? n * ld : 0);
    CARVE(choice, Choice, n);
    CARVE(parts, float, (size_t)2 * LOOK_SPLITS * s->n_heads * window);
#undef CARVE
    return at;
}

size_t device_rule_bytes(const AttnShape *s, const Method *m, int len, int window) {
    static char base[1];                        // only offsets are wanted
    Rule r;
    if (!m->policy->evicts) return 0;
    return rule_at(s, m->policy, method_wide(m) ? s->n_heads : s->n_kv_heads, len, window, base,
                   &r);
}

static Rule rule_of(const KVCache *c, const KVWork *w, int len, int window) {
    Rule r;
    size_t bytes = rule_at(c->s, c->method.policy, c->s->n_kv_heads, len, window, w->d.rule, &r);
    CHECK(bytes <= w->d.rule_bytes, "a rule of %zu bytes where there are %zu", bytes,
          w->d.rule_bytes);
    return r;
}

static LookKind look_kind(const Policy *p) {
    return p->sums                        ? LOOK_WINDOW
           : p->observe == add_sum        ? LOOK_SUM
           : p->observe == add_moments    ? LOOK_MOMENTS
           : p->observe == mark_important ? LOOK_MARKS
                                          : LOOK_LAST;
}

static LookRows look_rows(const KVCache *c, const KeyList *list, int most, const uint16_t *q,
                          int n) {
    const AttnShape *s = c->s;
    LookRows a = { .list = list, .max_len = most, .q = q,
                   .q_row = (size_t)s->n_heads * s->head_dim, .q_head = (size_t)s->head_dim,
                   .rows = n, .n_heads = s->n_heads, .n_lists = s->n_kv_heads,
                   .head_dim = s->head_dim, .scale = s->scale };
    return a;
}

// head h of row i: lse2[h * lse_ld + i]; t: step of the first row
static Observed observed_of(const KVCache *c, const KVWork *w, int layer, int i, const float *lse2,
                            size_t lse_ld, int64_t t) {
    const Sizes *z = &c->method.size;
    bool alone = z->group == GROUP_QUERY_HEAD;
    Observed o = { .lse2 = lse2, .lse_ld = lse_ld, .t = t,
                   .head = w->d.head + device_at(c, w, layer, i), .sums = w->scores,
                   .sums_ld = (size_t)w->scores_ld, .group = z->group,
                   .units = alone ? c->s->n_heads / c->s->n_kv_heads : 1, .history = z->history };
    return o;
}

void device_queries(KVCache *c, KVWork *w, int layer, const KVDeviceRows *r, bool sparse) {
    int most = layer_most(c, layer);
    LookRows a = look_rows(c, device_lists_read(c, w, layer), most, r->q16, r->n);
    if (sparse) {
        const SparseLists *l = device_sparse_lists(w);
        a.behind = w->feed_n - r->first - r->n;
        a.sparse = l->plan.head;
        a.marks = l->marks;
        a.mark_blocks = CEIL_DIV(r->n, SPARSE_ROWS);
        a.mark_words = (int)(l->plan.ld / 64);
        a.row0 = r->first;
    }
    Observed o = observed_of(c, w, layer, 0, w->lse2 + r->first, (size_t)w->lse2_ld, r->pos + 1);
    cuda_look(look_kind(c->method.policy), &a, &o, stream_of(w));
}

static void device_look_back(KVCache *c, KVWork *w, int layer, int n, int64_t t, bool apart) {
    int most = layer_most(c, layer);
    cudaStream_t stream = (cudaStream_t)stream_of(w);
    Rule r = rule_of(c, w, most, n);
    LookRows a = look_rows(c, device_lists_read(c, w, layer), most,
                           window_row(w, w->d.window_at), n);
    Observed o = observed_of(c, w, layer, 0, window_lse2(w), (size_t)w->window_cap, t - n + 1);
    if (apart) {
        size_t bytes = (size_t)c->s->n_kv_heads * n * sizeof(int32_t);
        int32_t *seen = (int32_t *)xrealloc(NULL, bytes + 1);
        entries_seen(c, w, layer, n, seen);
        mem_put(w->mem, window_seen(w), seen, bytes);
        a.seen = window_seen(w);
        free(seen);
    }
    if (c->method.policy->sums)
        CUDA_OK(cudaMemsetAsync(w->scores, 0,
                                (size_t)c->s->n_heads * w->scores_ld * sizeof *w->scores, stream));
    cuda_look_lse(&a, window_lse2(w), (size_t)w->window_cap, r.parts, stream);
    cuda_look(look_kind(c->method.policy), &a, &o, stream);
}

// budget and tail of a rule that chooses by scores
static void rule_sizes(const KVCache *c, int layer, int64_t t, int *budget, int *tail) {
    const Sizes *z = &c->method.size;
    const Policy *p = c->method.policy;
    *budget = z->budget;
    *tail = z->recent;
    if (p->keep == keep_tova) *tail = 0;
    if (p->keep != keep_snapkv && p->keep != keep_pyramid) return;
    *tail = z->window;
    if (p->keep == keep_pyramid)
        *budget = z->window + pyramid_rows(z, layer, c->n_layers, t);
}

int rows_named_of(const KVCache *c, int layer, int len, int64_t t) {
    const Policy *p = c->method.policy;
    int budget, tail;
    if (!p->has_budget) return -1;
    rule_sizes(c, layer, t, &budget, &tail);
    return len > budget ? len - budget : 0;
}

// marks of a rule that chooses by scores
static void device_keep_scores(const KVCache *c, const KVWork *w, int layer, int i, int most,
                               int64_t t, const Rule *r) {
    const Sizes *z = &c->method.size;
    const Policy *p = c->method.policy;
    size_t at = device_at(c, w, layer, i), scores = (size_t)i * c->s->n_heads * w->scores_ld;
    ScoreKind kind = p->keep == keep_h2o            ? SCORE_STATE
                     : p->keep == keep_scissorhands ? SCORE_MARKS
                     : p->keep == keep_tova         ? SCORE_LAYER
                     : p->keep == keep_roco         ? SCORE_STEADY
                                                    : SCORE_WINDOW;
    Scoring a = { .list = w->d.list + at, .head = w->d.head + at, .n_lists = c->s->n_kv_heads,
                  .n_heads = c->s->n_heads, .max_len = most,
                  .sums = p->sums ? w->all_scores + scores : NULL, .sums_ld = (size_t)w->scores_ld,
                  .group = z->group, .pool = z->pool, .kernel = z->kernel, .protect = z->protect,
                  .score = r->score, .mean = r->mean, .ld = r->ld, .choice = r->choice };
    rule_sizes(c, layer, t, &a.budget, &a.tail);
    int rows = kind == SCORE_LAYER ? 1 : a.n_lists;
    cuda_score(kind, &a, stream_of(w));
    if (kind == SCORE_STEADY) cuda_keep_roco(&a, r->keep, stream_of(w));
    else
        cuda_keep_top(r->score, r->ld, r->choice, rows, kind == SCORE_MARKS, r->keep, NULL,
                      stream_of(w));
}

// the rule acts on the lists of cache i, none of which is longer than most
static void device_evict(KVCache *c, KVWork *w, int layer, int i, int most, int64_t t) {
    const Sizes *z = &c->method.size;
    const Policy *p = c->method.policy;
    int lists = c->s->n_kv_heads;
    KeyList *list = w->d.list + device_at(c, w, layer, i);
    DeviceHead *head = w->d.head + device_at(c, w, layer, i);
    void *stream = stream_of(w);
    Rule r = rule_of(c, w, most, 0);
    if (p->keep == keep_last) {
        cuda_keep_ends(list, lists, most, 0, z->budget, r.keep, r.ld, stream);
    } else if (p->keep == keep_streaming) {
        cuda_keep_ends(list, lists, most, z->sinks, z->recent, r.keep, r.ld, stream);
    } else if (p->keep == keep_random) {
        RandomKey key = { c->method.seed, c->method.session, layer };
        cuda_keep_random(list, lists, &key, z->budget, r.keep, r.ld, stream);
    } else if (p->keep == keep_corm) {
        cuda_keep_corm(list, head, lists, most, t, z->window, z->protect, r.keep, r.ld, stream);
    } else {
        device_keep_scores(c, w, layer, i, most, t, &r);
    }
    cuda_evict(list, head, lists, r.keep, r.ld, p->one_for_all, stream);
}

void device_policy_step(KVCache *c, KVWork *w, int layer, int i, int n, int64_t t) {
    const Policy *p = c->method.policy;
    size_t heads = (size_t)c->s->n_heads, ld = (size_t)w->scores_ld;
    int most = layer_most(c, layer) + 1;
    if (!c->method.size.steps && !p->observe) return;
    if (policy_looks(p)) {
        float *scores = w->all_scores + i * heads * ld;
        LookRows a = look_rows(c, w->d.list + device_at(c, w, layer, i), most, NULL, 1);
        Observed o = observed_of(c, w, layer, i, w->all_scores + n * heads * ld + i * heads, 1, t);
        o.sums = scores;                        // the attention of the one query, in their place
        cuda_observe(look_kind(p), &a, &o, scores, ld, stream_of(w));
    }
    if (c->method.size.steps) device_evict(c, w, layer, i, most, t);
}
#endif

static void layer_evict(KVCache *c, KVWork *w, int layer, int64_t t) {
    const Policy *p = c->method.policy;
#ifdef SCB_CUDA
    if (w->device) {
        device_evict(c, w, layer, 0, layer_most(c, layer), t);
        device_fetch(c, w, layer, t);
        return;
    }
#endif
    int G = c->s->n_kv_heads, group = c->s->n_heads / G, named = 0;
    size_t ld = w->rank_bytes / (4 * sizeof *w->rank);
    for (int g = 0; g < G; g++) {
        Head *h = head_of(c, layer, g);
        Acting a = { .z = &c->method.size, .layer = layer, .n_layers = c->n_layers,
                     .head = g * group, .group = group, .n_heads = c->s->n_heads, .kv_head = g,
                     .len = h->len, .t = t, .seed = c->method.seed, .session = c->method.session,
                     .state = h->state, .plane = (size_t)h->cap, .sums = w->scores,
                     .sums_ld = (size_t)w->scores_ld, .ld = ld, .score = w->rank,
                     .rank = (uint32_t *)(void *)(w->rank + 3 * ld) };
        if (p->wants_pos) kv_positions(c, layer, g, &a.pos);
        if (g == 0 || !p->one_for_all) named = p->keep(&a, w->keep);
        c->named += named;
        head_evict(c, h, w->keep, named);
    }
}

// the window rows of this feed stay for the next one: a block of its own, filled layer by layer
static void window_store(KVCache *c, KVWork *w, int layer, int rows) {
    size_t one = (size_t)rows * w->s->n_heads * w->s->head_dim * w->s->elem;
    if (layer == 0) {
        WindowRows *b = (WindowRows *)xrealloc(NULL, sizeof *b);
        b->mem = c->mem;
        b->refs = 1;
        b->rows = rows;
        b->bytes = one * (size_t)c->n_layers;
        b->q = (char *)mem_take(c->mem, b->bytes, 1, "window rows of a branch");
        b->pos = (int32_t *)xrealloc(NULL, (size_t)rows * sizeof *b->pos);
        memcpy(b->pos, w->window_pos, (size_t)rows * sizeof *b->pos);
        window_block_drop(c->next);
        c->next = b;
    }
    kv_window_copy(w, rows, c->next->q + one * (size_t)layer);
    if (layer < c->n_layers - 1) return;
    window_block_drop(c->block);
    c->block = c->next;
    c->next = NULL;
}

// Rows in front of the feed's own: the shared context's, or those of the branch's earlier feeds for
// a policy that acts after each. Positions of the context's rows: the ones before the feed.
static int window_gather(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                         bool first) {
    int want = c->method.policy->window(&c->method.size);
    size_t one = (size_t)w->s->n_heads * w->s->head_dim * w->s->elem;
    const WindowRows *b = first || !c->method.policy->sums ? NULL : c->block;
    if (b) {                                    // rows behind a cut are no rows any more
        int n = b->rows;
        while (n && b->pos[n - 1] >= t - w->feed_n) n--;
        return window_join(w, want, b->q + one * (size_t)b->rows * layer, b->pos, n);
    }
    rows = first ? rows : 0;
    int32_t *pos = (int32_t *)xrealloc(NULL, ((size_t)rows + 1) * sizeof *pos);
    for (int i = 0; i < rows; i++) pos[i] = (int32_t)(t - w->feed_n - rows + i);
    int n = window_join(w, want, window, pos, rows);
    free(pos);
    return n;
}

void policy_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                     bool first) {
    const Policy *p = c->method.policy;
    bool acts = first ? method_at_first(&c->method) : c->method.size.feeds;
    if (p->window && (acts || p->observe)) {
        int n = window_gather(c, w, layer, t, window, rows, first);
#ifdef SCB_CUDA
        if (w->device) device_look_back(c, w, layer, n, t, c->block && p->sums);
        else
#endif
            look_back(c, w, layer, n, t, c->block && p->sums);
        if (c->method.size.every_turn > 0) window_store(c, w, layer, n);
    }
    if (acts) layer_evict(c, w, layer, t);
}

void policy_step(KVCache *c, KVWork *w, int layer, int64_t t) {
    const Policy *p = c->method.policy;
    int G = c->s->n_kv_heads, group = c->s->n_heads / G;
    const float *lse2 = w->scores ? w->scores + (size_t)c->s->n_heads * w->scores_ld : NULL;
    if (!c->method.size.steps && !p->observe) return;
    for (int g = 0; policy_looks(p) && g < G; g++) {
        Head *h = head_of(c, layer, g);
        float *scores = w->scores + (size_t)(g * group) * w->scores_ld;
        for (int p0 = 0; p->observe && p0 < h->len; p0 += PANEL) {
            Query one = { &c->method.size, group, h->len - p0 < PANEL ? h->len - p0 : PANEL,
                          scores + p0, (size_t)w->scores_ld, lse2 + g * group, 1, t,
                          h->state + p0, (size_t)h->cap };
            p->observe(&one);
        }
        for (int i = 0; p->sums && i < group; i++)          // the attention of the one query
            for (int j = 0; j < h->len; j++)
                scores[(size_t)i * w->scores_ld + j] =
                    fexp2(scores[(size_t)i * w->scores_ld + j] - lse2[g * group + i]);
    }
    if (c->method.size.steps) layer_evict(c, w, layer, t);
}
