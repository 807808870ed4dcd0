// kernels.h - the launchers of every kernel but products and attention, and what those kernels
// share.
//
// All pointers are device pointers unless a comment says host; stream is a cudaStream_t. A launcher
// only enqueues. KV rows and the inputs of products are bf16, as in bf16 and q8 models; activations
// and statistics are fp32. Shape letters: scb.h.
//
// "Same bits" in a comment: bit-equal to the C loop of that name on the CPU, because each reduction
// has the same order, and exp2, silu and the like are the functions of base.h. That needs a build
// without contraction and with denormals flushed (nvcc -fmad=false -ftz=true). Where a sum comes
// from tensor cores the order differs and the comment gives the tolerance.
#ifndef KERNELS_H
#define KERNELS_H
#include "device.h"
#include "products.h"
#include "scb.h"

EXTERN_C_BEGIN

// ===========================================================================
// Rows of a cache on the device. KeyList (scb.h) is used as it is, with device pointers, in device
// memory: steps append and evict without the host. What a list does not say of its head:
typedef struct DeviceHead {
    int32_t *live;              // (cap) room for the list; KeyList.live is this or NULL
    uint32_t *state;            // (words, cap) the policy's words, parallel to the list
    int words, cap;
    int own;                    // rows in part 1
    uint16_t *pages;            // bounds of complete pages (cuda_pages), or NULL
} DeviceHead;

// ===========================================================================
// llama.cu
typedef struct {                // rows of parts of dim channels, each normalised on its own
    const float *x;             // row i, part p at x + i * ldx + p * dim
    const float *gate;          // as x: x * silu(gate) is normalised; NULL: x alone
    const float *w;             // (parts * dim)
    const float *bias;          // (parts * dim): LayerNorm; NULL: RMSNorm
    float *y;                   // row stride ldy, may be x; or NULL
    uint16_t *act;              // the same in bf16, the input of a product, zeros behind the parts;
                                // or NULL
    size_t ldx, ldy, ld_act;
    int dim;
    float eps;
} RowNorm;
void cuda_norm(const RowNorm *a, int rows, int parts, void *stream);   // a: host. Same bits.

// cos, sin (n, half) of pos (n), times amplitude. Same bits.
void cuda_rope_angles(const int32_t *pos, const float *inv_freq, float amplitude, float *cos,
                      float *sin, int n, int half, void *stream);

typedef struct RopeAppend {     // rotates n rows of q and k and stores k and v behind their lists
    float *q;                   // (n, H, hd), row stride ldq; rotated in place; NULL: none
    uint16_t *q16;              // (n, H, hd) the same in bf16, or NULL
    const float *k, *v;         // (n, G, hd), row strides ldk, ldv; NULL: nothing is stored
    size_t ldq, ldk, ldv;
    const float *cos, *sin;     // (n, rope_dim / 2) of the rows' positions
    const int32_t *pos;         // (n)
    KeyList *list;              // (n_lists) of a feed; (n, n_lists) of a step
    DeviceHead *head;           // parallel to list
    bool step;                  // every row is a token of another cache
    bool by_index;              // queries turn by their index in the list (SEMANTICS 6) ...
    int index0;                 // ... which is its length + index0 + row of the feed
    const float *inv_freq;      // for these
    float amplitude;
    int n, n_heads, n_kv_heads, n_lists, head_dim, rope_dim;
} RopeAppend;
// Lists have room, and have grown by the rows stored afterwards. Same bits.
void cuda_rope_append(const RopeAppend *a, void *stream);              // a: host

// act (rows, ld) <- bf16(silu(gate) * up) of rows of k, zeros behind them. Same bits.
void cuda_swiglu(const float *gate, const float *up, uint16_t *act, int rows, int k, int ld,
                 void *stream);
void cuda_round(const float *x, uint16_t *act, int rows, int k, int ld, void *stream); // of x
void cuda_add(float *x, const float *y, size_t n, void *stream);        // x += y
// out[i] <- index of the largest of row i of logits (rows, n), the lowest of equals. Same bits.
void cuda_argmax(const float *logits, int32_t *out, int rows, int n, void *stream);

// ===========================================================================
// evict.cu: what policies are shown. Keys are read as they are stored: where a list is read by
// index, cuda_turn_lists goes first.
typedef struct {                // query rows of a layer over the lists of its heads
    const KeyList *list;        // (n_lists)
    int max_len;                // host: no list is longer
    const uint16_t *q;          // rotated; row i of head h at q + i * q_row + h * q_head
    size_t q_row, q_head;       // multiples of 8
    int rows, n_heads, n_lists, head_dim;       // head_dim a multiple of 8
    float scale;                // log2(e) / sqrt(head_dim)
    int behind;                 // entries newer than the last row
    const int32_t *seen;        // (n_lists, rows) entries each row sees; NULL: all up to its own
    // after a sparse prefill only what was computed counts: bit j of row i is at
    // marks + ((h * mark_blocks + (row0 + i) / 64 - row0 / 64) * mark_words + j / 64
    const HeadLists *sparse;    // (H) or NULL
    const uint64_t *marks;
    int mark_blocks, mark_words, row0;
} LookRows;

// log2 of the softmax denominators, head h of row i at h * lse_ld + i. parts: LOOK_SPLITS * H *
// rows float pairs of scratch. Within 1e-5 of the plain loop: tensor-core products, another
// grouping of the keys.
enum { LOOK_SPLITS = 32, LOOK_DIAGONAL = 192 }; // sums of 128 keys under 64 rows
void cuda_look_lse(const LookRows *a, float *lse2, size_t lse_ld, float *parts, void *stream);

typedef enum {
    LOOK_SUM, LOOK_MOMENTS,     // add_sum, add_moments: one unit of state per list, or per head
    LOOK_MARKS, LOOK_LAST,      // mark_important, corm_observe
    LOOK_WINDOW,                // add_window: sums (H, sums_ld), which begin at zero
    LOOK_DIAGONALS              // the same, and sums along the diagonals: cuda_sparse_plan
} LookKind;
typedef struct {
    const float *lse2;          // of head h, row i at h * lse_ld + i
    size_t lse_ld;
    int64_t t;                  // 1-based step of the first row
    DeviceHead *head;           // (n_lists) state; NULL in the last two kinds
    float *sums;                // (H, sums_ld) columns of the last two kinds
    size_t sums_ld;
    float *diagonals;           // (H, keys / 128, LOOK_DIAGONAL) scratch of the last kind
    Group group;                // how the heads of a list are joined in the first two
    int units, history;         // units of state per list: 1, or its query heads
} Observed;
// One pass over the keys in blocks of 128, queries ascending in each: the sums of a key are added
// in the order of the plain loop, by one thread. Scores within 1e-5 of it, sums accordingly; a mark
// may differ where a score stands that close to its bound.
void cuda_look(LookKind kind, const LookRows *a, const Observed *o, void *stream);      // host
// the same for one query whose scores (H, scores_ld) its attention has left. Same bits.
void cuda_observe(LookKind kind, const LookRows *a, const Observed *o, const float *scores,
                  size_t scores_ld, void *stream);

typedef struct { int n, k, len; } Choice;       // of n entries the k best stay, those up to len too
typedef enum { SCORE_WINDOW, SCORE_LAYER, SCORE_STATE, SCORE_MARKS, SCORE_STEADY } ScoreKind;
typedef struct {                // numbers to choose by, of every list of a layer
    const KeyList *list;
    const DeviceHead *head;
    int n_lists, n_heads;
    int max_len;
    const float *sums;          // (H, sums_ld): SCORE_WINDOW (snapkv, pyramidkv: pooled), _LAYER
                                // (tova: one row of scores for all lists)
    size_t sums_ld;
    Group group;
    Pool pool;
    int kernel, protect;
    int budget, tail;           // the newest tail stay and count in the budget
    float *score;               // (n_lists, ld) out
    float *mean;                // (n_lists, ld) out, SCORE_STEADY (roco)
    size_t ld;
    Choice *choice;             // (n_lists) out
} Scoring;
void cuda_score(ScoreKind kind, const Scoring *a, void *stream);        // a: host. Same bits.

// keep (rows, ld) <- what keep_top marks; index (rows, ld) the same as ascending indices below
// n; either may be NULL. newer: of equals the higher index. Same bits.
void cuda_keep_top(const float *score, size_t ld, const Choice *choice, int rows, bool newer,
                   uint8_t *keep, int32_t *index, void *stream);
// keep (n_lists, ld) of roco, after its scores. Same bits.
void cuda_keep_roco(const Scoring *a, uint8_t *keep, void *stream);     // a: host
// keep (n_lists, ld) of policies that need no scores. Same bits.
void cuda_keep_ends(const KeyList *list, int n_lists, int max_len, int head, int tail,
                    uint8_t *keep, size_t ld, void *stream);
void cuda_keep_corm(const KeyList *list, const DeviceHead *state, int n_lists, int max_len,
                    int64_t t, int window, int protect, uint8_t *keep, size_t ld, void *stream);
typedef struct { int64_t seed, session, layer; } RandomKey;
void cuda_keep_random(const KeyList *list, int n_lists, const RandomKey *key, int budget,
                      uint8_t *keep, size_t ld, void *stream);          // key: host

// ===========================================================================
// cache.cu
void cuda_count(int32_t *to, int first, int n, void *stream);   // to (n) <- first, first + 1, ...
// lists and states lose the entries with keep (n_lists, ld) = 0. one: all lists follow row 0.
// Same bits.
void cuda_evict(KeyList *list, DeviceHead *head, int n_lists, const uint8_t *keep, size_t ld,
                bool one, void *stream);
// live rows of list l as rows of their own: to[l]: K (len, hd), V (len, hd), position (len).
// Same bits.
void cuda_gather(const KeyList *list, int n_lists, int max_len, int head_dim, char *const *to,
                 void *stream);
// sparse_attn.cu: lists with keys that are turned when read (POSITIONS_CACHE, SinkCache) as lists of
// rows as they are read: rows (n_lists, 2, room, hd) keys and values, no list is longer than room.
// Same bits.
void cuda_turn_lists(const KeyList *list, int n_lists, int room, int head_dim, int rope_dim,
                     const float *inv_freq, uint16_t *rows, KeyList *out, void *stream);

// ===========================================================================
// read.cu: rows of a list chosen anew for every one of n tokens, of which `behind` entries are
// newer. Row (i, l) of what follows: token i, list l.
typedef struct {
    const KeyList *list;        // (n_lists / share): as many read the rows of one, each by its own
    const DeviceHead *head;     // choice; parallel, with page bounds
    int n, behind, n_heads, n_lists, share, head_dim, max_len;
    int budget, page;           // quest: rows of a page; topk: 1
    Group group;
    float *score;               // (n, n_lists, ld)
    uint8_t *keep;              // (n, n_lists, ld)
    size_t ld;                  // at least the pages of the longest list
    Choice *choice;             // (n, n_lists)
    int32_t *rows;              // (n, n_lists, rows_ld)
    size_t rows_ld;             // at least the budget and 3 pages
    KeyList *out;               // (n, n_lists): what each token reads
} Reading;
// bounds (2, hd) of the complete pages [from, to) of every list. Same bits.
void cuda_pages(const KeyList *list, const DeviceHead *head, int n_lists, int page, int from,
                int to, int head_dim, void *stream);
// score and choice by page bounds, q (n, H, hd) bf16; by attention, scores (n, H, scores_ld) and
// lse2 (n, H). Same bits.
void cuda_read_bounds(const Reading *a, const uint16_t *q, void *stream);
void cuda_read_scores(const Reading *a, const float *scores, size_t scores_ld, const float *lse2,
                      void *stream);
void cuda_read_lists(const Reading *a, void *stream);   // keep, rows and out from both

// ===========================================================================
// sparse_lists.cu and sparse_attn.cu: which scores a head's lists hang on
enum { FORCED_COLUMNS = 30, FORCED_DISTANCES = 100, LEAST_VERTICALS = 30, LEAST_SLASHES = 50 };

HD static inline int at_least(int x, int least) { return x > least ? x : least; }

// Whether its lists hang on scores in a feed of n rows at the end of len entries. They do not, each
// is whole, where every distance or every column is kept, or where the forced distances reach back
// to the forced columns from the end e of the last block: of the band of w they keep at least
// [e - w - 63, e).
HD static inline bool estimated(const HeadPattern *p, int len, int n) {
    int columns = at_least(p->a, LEAST_VERTICALS), distances = at_least(p->b, LEAST_SLASHES);
    int band = distances < FORCED_DISTANCES ? distances : FORCED_DISTANCES;
    int e = len - n + CEIL_DIV(n, SPARSE_ROWS) * SPARSE_ROWS;
    return p->kind == HEAD_VERTICAL_SLASH && columns < len && distances < len &&
           e - band - (SPARSE_ROWS - 1) > FORCED_COLUMNS;
}

// tiles of keys that the first row of a block sees
HD static inline int list_tiles(const HeadLists *h, int block) {
    return (h->len - h->n + block * SPARSE_ROWS) / SPARSE_ROWS + 1;
}

// ===========================================================================
// sparse_lists.cu: what the heads of one layer of a sparse feed look at. Estimated sums are within
// 1e-5 of the plain loop's, everything made of them is the same.
typedef struct {
    LookRows rows;              // the last min(64, n) query rows, over the lists with all keys
    const HeadPattern *pattern; // (H)
    int n, dense_rows;          // rows of the feed; of a-shape
    size_t ld;                  // a multiple of 64, no list is longer
    HeadLists *head;            // (H) out, with pointers to the next two
    int32_t *vertical;          // (H, ld)
    uint64_t *slash;            // (H, ld / 64)
    uint16_t *k_mean;           // (G, ld / 64, hd) means of tiles of 64 keys
    float *column, *distance;   // (H, ld) scratch, as the next
    float *lse2, *parts;        // (H, 64); 2 * LOOK_SPLITS * H * 64
    float *diagonals;           // (H, keys / 128 rounded up, LOOK_DIAGONAL)
    uint8_t *keep;              // (H, ld)
    Choice *choice;             // (2, H)
} SparsePlan;
// a: host. estimates: sparse_estimates of any list; means: some head is block-sparse.
// Without estimates (without means) the buffers of that part may be NULL.
void cuda_sparse_plan(const SparsePlan *a, bool estimates, bool means, void *stream);

typedef struct SparseLists {    // lists of rows [first, first + n) of the feed, first % 64 = 0
    SparsePlan plan;
    const uint16_t *q;          // (n, H, hd), for means
    int first, n;
    KeySpan *span;              // (H, n / 64 rounded up, most_spans): verticals + ld / 64 + 2
    int *n_spans;               // (H, n / 64)
    BlockTiles *block;          // (H, n / 64) the same as attention wants it
    int32_t *tile, *column; // (H, n / 64, ld / 64 + 1) (H, n / 64, most_columns): verticals + 64
    int most_spans, most_columns;
    uint64_t *marks;            // (H, n / 64, ld / 64) as LookRows wants it, or NULL
    float *score;               // (H, n / 64, ld / 64) scratch of means, as the next two
    int32_t *chosen;
    Choice *choice;             // (H, n / 64)
} SparseLists;
void cuda_sparse_lists(const SparseLists *a, bool means, void *stream); // a: host

// ===========================================================================
// mamba.cu. Recurrent state lies on the device as on the host (mamba_state_bytes), so copying it is
// a fork there too.
typedef struct {                // one layer
    const float *conv, *conv_bias, *dt_bias, *a, *d;    // as in SsmLayer
    const float *in, *dt;       // (n, X), (n, J) products of the tokens
    float *y;                   // (n, D) out
    int n, heads, head_dim, state, groups, taps;        // n; J, P, N, G, K
    // a feed: tokens of one text, the first one at pos. Scratch: (64 + n, X), (64 + n, J) and
    // (n / 64 + 2, G, 64, 64)
    char *one;                  // the layer's state
    int64_t pos;
    uint16_t *rows;
    float *row_dt, *gram;
    // a step: token i of text i
    char *const *each;          // (n) states
    const int64_t *each_pos;    // (n)
    size_t at;                  // of this layer in a state
} MambaMix;
// Within 1e-4 of the plain loop relative to the largest y: tensor-core products.
void cuda_mamba_feed(const MambaMix *a, void *stream);                  // a: host
// Same bits, the advance of S included.
void cuda_mamba_step(const MambaMix *a, void *stream);                  // a: host

typedef struct {                // conv, silu and the newest inputs of one text, or of n texts
    const float *w, *bias, *x;  // (K, width), (width), (n, width)
    float *tail;                // (K - 1, width); of text i of a step at each[i] + at
    char *const *each;
    size_t at;
    float *y;                   // (n, width) fp32, or
    uint16_t *y16;              // bf16: the same rows
    int taps, width, n;
} DeviceConv;
void cuda_conv(const DeviceConv *a, void *stream);      // a: host; each NULL: a feed. Same bits.
// each (n) <- the states of a step's texts; each_pos (n) <- where they are, unless it is NULL
void device_states(const Forward *f, char **each, int64_t *each_pos);

// ===========================================================================
// jamba.cu
typedef struct {
    const float *a, *d;         // (N, D), (D)
    const float *p;             // (n, R + 2N) B at R, C at R + N
    const float *u, *gate;      // (n, D)
    float *y;                   // (n, D) in: dt before softplus; out: y
    float *h;                   // (N, D) of one text; of text i of a step at each[i] + at
    char *const *each;
    size_t at;
    int n, inner, state, rank;  // n; D, N, R
} DeviceScan;
void cuda_scan(const DeviceScan *a, void *stream);      // a: host; each NULL: a feed. Same bits.

typedef struct {                // rows to experts and back
    float *route;               // (n, X) in: logits, out: shares of the chosen, 0 elsewhere
    int *count, *first;         // (X) rows of each expert, and rows of those before it
    int *slot, *place;          // (n * used) rows in order of experts; (n, X) where a row is there
    int n, n_experts, used, dim;
    int ld;                     // of inputs of products: dim rounded up to 32
} Routing;
void cuda_route(const Routing *a, void *stream);                        // a: host. Same bits.
// to (n * used, ld) <- rows of x (n, ld), expert after expert
void cuda_experts_gather(const Routing *a, const uint16_t *x, uint16_t *to, void *stream);
// x (n, dim) += share * row of out (n * used, dim), experts ascending. Same bits.
void cuda_experts_combine(const Routing *a, const float *out, float *x, void *stream);

// ===========================================================================
// lingua.cu. Everything here: same bits. LayerNorm is cuda_norm.
// x (n, E) <- (word + type) + position; ids and places (n): rows of row-major bf16 tables
void cuda_lingua_embed(const uint16_t *word, const uint16_t *position, const float *type,
                       const int32_t *ids, const int32_t *places, float *x, int n, int dim,
                       void *stream);
void cuda_gelu(const float *x, uint16_t *act, int rows, int k, int ld, void *stream);
// q, k, v (n, H hd) -> to (3, H, n, hd) bf16
void cuda_split_heads(const float *q, const float *k, const float *v, uint16_t *to, int n,
                      int n_heads, int head_dim, void *stream);
void cuda_keep_probability(const float *z, float *p, int n, void *stream);      // z (n, 2)

EXTERN_C_END

#ifdef SCB_CUDA
// ===========================================================================
// Pieces of kernels

// sum over the 16 threads of half a warp by the tree of base.h; all of them get it
__device__ static inline float half_warp_sum(float x) {
    for (int s = LANES / 2; s; s >>= 1) x += __shfl_down_sync(0xffffffffu, x, s, LANES);
    return __shfl_sync(0xffffffffu, x, 0, LANES);
}

// blocks of one dimension for n items
static inline unsigned blocks_for(size_t n, unsigned block) {
    return (unsigned)CEIL_DIV(n, (size_t)block);
}

__device__ static inline size_t thread_item(void) {
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// place of each thread's flags among those of the block, in order of the threads, and how many
// there are: a in the low half of a word, b in the high one
enum { MOST_WARPS = 32 };
__device__ static inline uint32_t block_places(bool a, bool b, uint32_t *total) {
    SHARED(uint32_t, count, MOST_WARPS);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, below = (1u << lane) - 1, at = 0;
    uint32_t in_a = __ballot_sync(0xffffffffu, a), in_b = __ballot_sync(0xffffffffu, b);
    __syncthreads();                            // count is read no more
    if (lane == 0) count[warp] = __popc(in_a) | __popc(in_b) << 16;
    __syncthreads();
    *total = 0;
    for (uint32_t w = 0; w < blockDim.x / 32; w++) {
        at += w < warp ? count[w] : 0;
        *total += count[w];
    }
    return at + (__popc(in_a & below) | __popc(in_b & below) << 16);
}

// row of a list's entry; part: its keys, values (bytes of a row: 2 hd) or positions (4)
__device__ static inline const char *list_row(const KeyList *l, const void *const part[2],
                                              int entry, size_t bytes) {
    int row = l->live ? l->live[entry] : entry, own = row >= l->split;
    return (const char *)part[own] + (size_t)(row - (own ? l->split : 0)) * bytes;
}

// ---------------------------------------------------------------------------
// Scores of 64 rows by 128 keys, by a block of four warps. Rows of both lie in shared memory as
// pairs of bf16, so far apart that the fragments of a product fall into 32 different banks.
enum { TILE_ROWS = 64, TILE_KEYS = 128, TILE_THREADS = 128, SCORE_LD = TILE_KEYS + 1 };

HD static inline int tile_ld(int hd) { return CEIL_DIV(hd, 16) * 8 + 4; }

typedef struct { uint32_t *q, *k; float *s; } ScoreTile;
__device__ static inline ScoreTile score_tile_at(uint32_t *shared, int hd) {
    ScoreTile t;
    t.q = shared;
    t.k = shared + TILE_ROWS * tile_ld(hd);
    t.s = (float *)(t.k + TILE_KEYS * tile_ld(hd));
    return t;
}
static inline size_t score_tile_bytes(int hd) {
    return (size_t)(TILE_ROWS + TILE_KEYS) * tile_ld(hd) * 4 +
           (size_t)TILE_ROWS * SCORE_LD * sizeof(float);
}

// entries first .. of a list of len entries, zeros behind them
__device__ static inline void load_keys(uint32_t *to, const KeyList *l, int first, int len,
                                        int hd) {
    int pieces = CEIL_DIV(hd, 16) * 2;
    for (int i = threadIdx.x; i < TILE_KEYS * pieces; i += TILE_THREADS) {
        int r = i / pieces, c = i % pieces;
        bool wanted = first + r < len && c * 8 < hd;
        const char *from = wanted ? list_row(l, l->k, first + r, 2 * (size_t)hd) + 16 * c : NULL;
        cp_async16(to + r * tile_ld(hd) + c * 4, from, wanted);
    }
}

// s <- (q . k) scale of all rows and keys of the tile
__device__ static inline void score_tile(const ScoreTile *t, int hd, float scale) {
    int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4, row = threadIdx.x / 32 * 16 + g;
    int ld = tile_ld(hd);
    const uint32_t *q = t->q + row * ld + c;
    for (int half = 0; half < TILE_KEYS; half += TILE_KEYS / 2) {
        float d[8][4] = { { 0 } };
        for (int k = 0; k < CEIL_DIV(hd, 16); k++) {
            const uint32_t *x = q + k * 8, a[4] = { x[0], x[8 * ld], x[4], x[8 * ld + 4] };
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const uint32_t *y = t->k + (half + n * 8 + g) * ld + k * 8 + c;
                const uint32_t b[2] = { y[0], y[4] };
                mma_bf16(d[n], a, b);
            }
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
            for (int i = 0; i < 4; i++)
                t->s[(row + i / 2 * 8) * SCORE_LD + half + n * 8 + 2 * c + i % 2] = d[n][i] * scale;
    }
}
#endif
#endif
