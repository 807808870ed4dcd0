// sparse_attn.cu - who attends to what: queries against a list of keys, one panel at a time.
//
// Attention (Vaswani et al., arXiv 1706.03762, eq. 1) in base 2 with a blockwise softmax (Milakov
// and Gimelshein, arXiv 1805.02867; Dao, arXiv 2307.08691). For one row q over the visible entries
// of panel p (512 entries of the list):
//   s_j = (q . k_j) c, c = log2(e) / sqrt(hd);   m_p = max s_j;   P_j = 2^(s_j - m_p)
//   l_p = sum P_j;   O_p = sum bf16(P_j) v_j
// and panels are folded from left to right:
//   m = max(m, m_p);  a = 2^(m_old - m);  b = 2^(m_p - m);  O = O a + O_p b;  l = l a + l_p b
//   out = O / l;   lse2 = m + log2 l
// A row's result depends on its list and on how much of it the row may see, on nothing else: not on
// the rows beside it, nor on threads or chunks. Keys and values are packed as tiles (scb.h) and
// both products are mul_block, so the matrix unit and plain C agree to the bit.
//
// Dense attention looks at a list as it is. In a sparse prefill every query head has, for every 64
// rows of the feed, a shorter one: A-shape and Tri-shape by rule, MInference's vertical-slash from
// an online estimation, block-sparse from pooled tiles. Whole pieces of such a list are used where
// the packed panels hold them, the rest is gathered; the products are the same.
#include "kernels.h"
#include <omp.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

static inline int channel_blocks(const AttnShape *s) { return CEIL_DIV(s->head_dim, BLK); }
static inline size_t tile_block(const AttnShape *s) { return 1024 * s->elem; }

// ---------------------------------------------------------------------------
// Packing. Keys: [key/32][hd/32] blocks (columns are keys, pairs run over channels).
// Values: [hd/32][key/32] blocks (columns are channels, pairs run over keys).

size_t attn_panel_bytes(const AttnShape *s) {
    return (size_t)2 * (PANEL / BLK) * channel_blocks(s) * tile_block(s);
}

static inline const void *row_at(const void *const part[2], const KeyList *list, int row,
                                 size_t bytes) {
    int own = row >= list->split;
    return (const char *)part[own] + (size_t)(row - (own ? list->split : 0)) * bytes;
}

typedef struct {                // keys rotated again when read (KeyList.by_index, turn)
    int shift;                  // the angle table's shift; neighbours in a list mostly share it
    float *sin, *cos;           // (rope_dim / 2)
    char *rows;                 // (32, hd)
} Turn;

// key rotated by so many more positions, rounded once:
//   x0' = x0 cos - x1 sin, x1' = x1 cos + x0 sin, angle = shift * inv_freq
static void key_rotate(const AttnShape *s, Turn *t, void *dst, const void *src, int shift) {
    int half = s->rope_dim / 2;
    if (t->shift != shift)
        for (int i = 0; i < half; i++)
            fsincos((float)shift * s->inv_freq[i], &t->sin[i], &t->cos[i]);
    t->shift = shift;
    memcpy(dst, src, (size_t)s->head_dim * s->elem);
    if (s->elem == 4) {
        const float *x = (const float *)src;
        float *y = (float *)dst;
        for (int i = 0; i < half; i++) {
            y[i] = fmaf(x[i], t->cos[i], -(x[i + half] * t->sin[i]));
            y[i + half] = fmaf(x[i + half], t->cos[i], x[i] * t->sin[i]);
        }
    } else {
        const uint16_t *x = (const uint16_t *)src;
        uint16_t *y = (uint16_t *)dst;
        for (int i = 0; i < half; i++) {
            float x0 = bf16_f32(x[i]), x1 = bf16_f32(x[i + half]);
            y[i] = f32_bf16(fmaf(x0, t->cos[i], -(x1 * t->sin[i])));
            y[i + half] = f32_bf16(fmaf(x1, t->cos[i], x0 * t->sin[i]));
        }
    }
}

#ifdef SCB_CUDA
// grid (entries, lists), a thread per channel pair or channel behind the rotary part
__global__ static void turn_lists_k(const KeyList *list, int hd, int rope_dim,
                                    const float *inv_freq, uint16_t *rows, int room, KeyList *out) {
    const KeyList *l = &list[blockIdx.y];
    int j = blockIdx.x, half = rope_dim / 2;
    uint16_t *k = rows + (size_t)blockIdx.y * room * 2 * hd, *v = k + (size_t)room * hd;
    if (j == 0 && threadIdx.x == 0) {
        KeyList turned = { { k, NULL }, { v, NULL }, { NULL, NULL }, room, NULL, l->len, false,
                           NULL };
        out[blockIdx.y] = turned;
    }
    if (j >= l->len) return;
    const uint16_t *x = (const uint16_t *)list_row(l, l->k, j, 2 * (size_t)hd);
    const uint32_t *value = (const uint32_t *)list_row(l, l->v, j, 2 * (size_t)hd);
    uint16_t *y = k + (size_t)j * hd;
    int shift = l->turn ? l->turn[j]
                        : j - *(const int32_t *)list_row(l, (const void *const *)l->pos, j, 4);
    for (int i = threadIdx.x; i < hd / 2; i += blockDim.x)
        ((uint32_t *)(v + (size_t)j * hd))[i] = value[i];
    for (int i = threadIdx.x; i < hd - half; i += blockDim.x) {
        if (i >= half || !shift) {
            y[i < half ? i : i + half] = x[i < half ? i : i + half];
            if (i < half) y[i + half] = x[i + half];
            continue;
        }
        float s, c, x0 = bf16_f32(x[i]), x1 = bf16_f32(x[i + half]);
        fsincos((float)shift * inv_freq[i], &s, &c);
        y[i] = f32_bf16(fmaf(x0, c, -(x1 * s)));
        y[i + half] = f32_bf16(fmaf(x1, c, x0 * s));
    }
}

void cuda_turn_lists(const KeyList *list, int n_lists, int room, int head_dim, int rope_dim,
                     const float *inv_freq, uint16_t *rows, KeyList *out, void *stream) {
    if (room)
        LAUNCH(turn_lists_k, dim3(room, n_lists), 64, 0, stream, list, head_dim, rope_dim, inv_freq,
               rows, room, out);
}
#endif

#if defined(__AVX512BW__)
// transpose of 16 x 16 32-bit words: row r of the result holds word r of the 16 inputs
static inline void transpose16(__m512i *x) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < 4; i++) {
            t[h * 8 + i] = _mm512_shuffle_i32x4(x[h * 8 + i], x[h * 8 + 4 + i], 0x88);
            t[h * 8 + 4 + i] = _mm512_shuffle_i32x4(x[h * 8 + i], x[h * 8 + 4 + i], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        x[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        x[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    }
}
#endif

// 32 key rows x 32 channels: word r of column n is channels (2r, 2r+1) of key n
static void pack_keys(const AttnShape *s, void *dst, const void *const *row, int block) {
    int count = s->head_dim - block * BLK;
    if (count > BLK) count = BLK;
#if defined(__AVX512BW__)
    if (s->elem == 2) {
        __mmask32 mask = count == BLK ? 0xffffffffu : (1u << count) - 1;
        for (int half = 0; half < 2; half++) {
            __m512i x[16];
            for (int n = 0; n < 16; n++) {
                const uint16_t *r = (const uint16_t *)row[half * 16 + n];
                x[n] = r ? _mm512_maskz_loadu_epi16(mask, r + block * BLK) : _mm512_setzero_si512();
            }
            transpose16(x);
            for (int r = 0; r < 16; r++)
                _mm512_storeu_si512((char *)dst + half * 1024 + r * 64, x[r]);
        }
        return;
    }
#endif
    for (int n = 0; n < 32; n++)
        for (int c = 0; c < BLK; c++) {
            int at = (n / 16) * 512 + (c / 2) * 32 + (n % 16) * 2 + (c & 1);
            bool in = row[n] && c < count;
            if (s->elem == 2)
                ((uint16_t *)dst)[at] = in ? ((const uint16_t *)row[n])[block * BLK + c] : 0;
            else ((float *)dst)[at] = in ? ((const float *)row[n])[block * BLK + c] : 0.0f;
        }
}

// 32 value rows x 32 channels: word of (pair r, column n) is keys (2r, 2r+1) of channel n
static void pack_values(const AttnShape *s, void *dst, const void *const *row, int block) {
    int count = s->head_dim - block * BLK;
    if (count > BLK) count = BLK;
#if defined(__AVX512BW__)
    if (s->elem == 2) {
        static const uint16_t lo[32] = { 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
            8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47 };
        __m512i idx0 = _mm512_loadu_si512(lo), idx1 = _mm512_add_epi16(idx0, _mm512_set1_epi16(16));
        __mmask32 mask = count == BLK ? 0xffffffffu : (1u << count) - 1;
        for (int r = 0; r < 16; r++) {
            const uint16_t *ra = (const uint16_t *)row[2 * r],
                           *rb = (const uint16_t *)row[2 * r + 1];
            __m512i a =
                ra ? _mm512_maskz_loadu_epi16(mask, ra + block * BLK) : _mm512_setzero_si512();
            __m512i b =
                rb ? _mm512_maskz_loadu_epi16(mask, rb + block * BLK) : _mm512_setzero_si512();
            _mm512_storeu_si512((char *)dst + r * 64, _mm512_permutex2var_epi16(a, idx0, b));
            _mm512_storeu_si512((char *)dst + 1024 + r * 64, _mm512_permutex2var_epi16(a, idx1, b));
        }
        return;
    }
#endif
    for (int j = 0; j < 32; j++)
        for (int n = 0; n < BLK; n++) {
            int at = (n / 16) * 512 + (j / 2) * 32 + (n % 16) * 2 + (j & 1);
            bool in = row[j] && n < count;
            if (s->elem == 2)
                ((uint16_t *)dst)[at] = in ? ((const uint16_t *)row[j])[block * BLK + n] : 0;
            else ((float *)dst)[at] = in ? ((const float *)row[j])[block * BLK + n] : 0.0f;
        }
}

enum { AHEAD = 16 }; // rows; measured: 8 to 16 best, a step's attention 1.3 x faster than without

// pointers to the key or value rows of 32 entries, NULL where entry is -1. Rows that lie side by
// side fetch those behind them, others the rows of the entries next.
static void rows_of_block(const AttnShape *s, const void *const part[2], const KeyList *list,
                          const int32_t *entry, const int32_t *next, const void **row) {
    size_t bytes = (size_t)s->head_dim * s->elem;
    int from = entry[0], to = entry[BLK - 1];
    if (!list->live && to == from + BLK - 1 && (from >= list->split || to < list->split)) {
        const char *r = (const char *)row_at(part, list, from, bytes);
        for (int i = 0; i < BLK; i++, r += bytes) {
            row[i] = r;
            for (size_t b = 0; b < bytes; b += 64)
                __builtin_prefetch((const void *)((uintptr_t)r + AHEAD * bytes + b));
        }
        return;
    }
    for (int i = 0; i < BLK; i++) {
        int j = entry[i];
        row[i] = j < 0 ? NULL : row_at(part, list, list->live ? list->live[j] : j, bytes);
    }
    for (int i = 0; i < BLK && next[i] >= 0; i++) {
        int k = list->live ? list->live[next[i]] : next[i];
        const char *r = (const char *)row_at(part, list, k, bytes);
        for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(r + b);
    }
}

// keys of a block: kb tiles one after the other
static void pack_key_block(const AttnShape *s, char *dst, const KeyList *list, const int32_t *entry,
                           const int32_t *next, Turn *turn) {
    const void *row[BLK];
    rows_of_block(s, list->k, list, entry, next, row);
    for (int i = 0; (list->by_index || list->turn) && i < BLK && entry[i] >= 0; i++) {
        int number = list->live ? list->live[entry[i]] : entry[i];
        int pos =
            *(const int32_t *)row_at((const void *const *)list->pos, list, number, sizeof(int32_t));
        int shift = list->turn ? list->turn[entry[i]] : entry[i] - pos;
        if (shift == 0) continue;
        char *turned = turn->rows + (size_t)i * s->head_dim * s->elem;
        key_rotate(s, turn, turned, row[i], shift);
        row[i] = turned;
    }
    for (int b = 0; b < channel_blocks(s); b++)
        pack_keys(s, dst + (size_t)b * tile_block(s), row, b);
}

// values of a block: one tile per 32 channels, step bytes apart
static void pack_value_block(const AttnShape *s, char *dst, size_t step, const KeyList *list,
                             const int32_t *entry, const int32_t *next) {
    const void *row[BLK];
    rows_of_block(s, list->v, list, entry, next, row);
    for (int b = 0; b < channel_blocks(s); b++) pack_values(s, dst + (size_t)b * step, row, b);
}

// entries [32 e, 32 e + 32) of the list itself, -1 from len on, and those AHEAD of them
static void entries_of_block(int32_t *entry, int32_t *next, int e, int len) {
    for (int i = 0, j = e * BLK; i < BLK; i++, j++) {
        entry[i] = j < len ? j : -1;
        next[i] = j + AHEAD < len ? j + AHEAD : -1;
    }
}

// ---------------------------------------------------------------------------
// One strip of <= 32 rows over one panel

enum {
    S_LD = PANEL + 16, // row stride of a strip's scores: not a multiple of the cache's set period
    STEP_BLOCKS = 4
}; // blocks of 32 entries a step packs at once

typedef struct {                // per thread; sizes for ATTN_ROWS rows, see scratch_at
    char *q, *p;                // act: queries (ATTN_ROWS, hd), probabilities (32, 512)
    float *s;                   // (32, S_LD)
    float *op;                  // (32, dp) of one panel
    float *o;                   // (ATTN_ROWS, dp) folded so far
    float *m, *l;               // (ATTN_ROWS)
    char *block;                // keys or values of STEP_BLOCKS * 32 entries, for steps
    char *panel;                // gathered entries of a sparse list
    Turn turn;
} Work;

static size_t work_at(const AttnShape *s, void *scratch, Work *w) {
    size_t dp = (size_t)channel_blocks(s) * BLK, at = 0, ae = act_elem(s->kind);
    char *p = (char *)scratch;
    Work skip;
    if (!w) w = &skip;
#define CARVE(field, type, bytes)                                                                  \
    (w->field = (type *)(p + at), at += ((size_t)(bytes) + 63) & ~(size_t)63)
    CARVE(q, char, ATTN_ROWS * dp * ae);
    CARVE(p, char, (size_t)STRIP_ROWS * PANEL * ae);
    CARVE(s, float, (size_t)STRIP_ROWS * S_LD * sizeof(float));
    CARVE(op, float, STRIP_ROWS * dp * sizeof(float));
    CARVE(o, float, ATTN_ROWS * dp * sizeof(float));
    CARVE(m, float, ATTN_ROWS * sizeof(float));
    CARVE(l, float, ATTN_ROWS * sizeof(float));
    CARVE(block, char, STEP_BLOCKS * (size_t)channel_blocks(s) * tile_block(s));
    CARVE(panel, char, attn_panel_bytes(s));
    CARVE(turn.rows, char, STRIP_ROWS * dp * s->elem);
    CARVE(turn.sin, float, dp * sizeof(float));
    CARVE(turn.cos, float, dp * sizeof(float));
#undef CARVE
    w->turn.shift = 0;
    return at;
}

size_t attn_scratch_bytes(const AttnShape *s) {
    static char base[1];                            // only offsets are wanted
    return work_at(s, base, NULL);
}

void attn_pack(const AttnShape *s, void *panels, const KeyList *list, int from, int to,
               void *scratch) {
    Work w;
    work_at(s, scratch, &w);
    size_t block = tile_block(s), kb = (size_t)channel_blocks(s);
    for (int e = from / BLK; e < CEIL_DIV(to, BLK); e++) {
        char *panel = (char *)panels + (size_t)(e / (PANEL / BLK)) * attn_panel_bytes(s);
        size_t at = (size_t)(e % (PANEL / BLK)) * block;
        int32_t entry[BLK], next[BLK];
        entries_of_block(entry, next, e, to);
        pack_key_block(s, panel + at * kb, list, entry, next, &w.turn);
        pack_value_block(s, panel + (PANEL / BLK) * (kb * block) + at, (PANEL / BLK) * block, list,
                         entry, next);
    }
}

#if defined(__AVX512F__)
// fexp2 of 16 arguments <= 0: the same operations, the same bits (tests compare the builds)
static inline __m512 exp2_16(__m512 x) {
    __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n),
           q = _mm512_set1_ps(1.5353349e-4f);
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(1.3398875e-3f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(9.6184378e-3f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(5.5503324e-2f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(2.4022648e-1f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(6.9314718e-1f));
    q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), q,
                                  n);
}
#endif

typedef struct { int from, to, end; } Sight;    // a row sees entries [0, from) and [to, end)

static inline int sees(const Sight *v) { return v->from + v->end - v->to; }
static inline int within(int j) { return j < 0 ? 0 : j > PANEL ? PANEL : j; }

static inline void hide_between(float *s, int from, int to) {
#if defined(__AVX512F__)
    for (; from < to; from += LANES)
        _mm512_mask_storeu_ps(s + from, to - from < LANES ? (__mmask16)((1u << (to - from)) - 1)
                                                          : 0xffff, _mm512_set1_ps(-INFINITY));
#else
    for (; from < to; from++) s[from] = -INFINITY;
#endif
}

static inline void hide(float *s, const Sight *v, int width) {
    hide_between(s, v->from, v->to);
    hide_between(s, v->end, width);
}

// products q.k -> probabilities p of one row over the first width entries, width % 32 == 0; p NULL:
// only their largest score and sum
static void softmax_row(MulKind kind, const float *s, int width, float scale, char *p, float *m,
                        float *l) {
    bool values = p != NULL;
    size_t step = (size_t)16 * BLK * act_elem(kind);
    float e[BLK] __attribute__((aligned(64))), lane[LANES] __attribute__((aligned(64))), max;
#if defined(__AVX512F__)
    __m512 c = _mm512_set1_ps(scale), top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int j = 0; j < width; j += LANES)
        top = _mm512_max_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j), c), top);
    max = _mm512_reduce_max_ps(top);
    top = _mm512_set1_ps(max);
    for (int j = 0; j < width; j += BLK, p += values ? step : 0) {
        __m512 a = exp2_16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j), c), top));
        __m512 b = exp2_16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j + LANES), c), top));
        sum = _mm512_add_ps(_mm512_add_ps(sum, a), b);
        if (!values) continue;
        _mm512_store_ps(e, a);
        _mm512_store_ps(e + LANES, b);
        act_round(kind, p, e);
    }
    _mm512_store_ps(lane, sum);
#else
    float top[LANES];
    for (int i = 0; i < LANES; i++) { top[i] = -INFINITY; lane[i] = 0.0f; }
    for (int j = 0; j < width; j += LANES)
        for (int i = 0; i < LANES; i++)
            top[i] = s[j + i] * scale > top[i] ? s[j + i] * scale : top[i];
    max = top[0];
    for (int i = 1; i < LANES; i++) max = top[i] > max ? top[i] : max;
    for (int j = 0; j < width; j += BLK, p += values ? step : 0) {
        for (int i = 0; i < BLK; i++) e[i] = fexp2(s[j + i] * scale - max);
        for (int i = 0; i < LANES; i++) lane[i] += e[i];
        for (int i = 0; i < LANES; i++) lane[i] += e[LANES + i];
        if (values) act_round(kind, p, e);
    }
#endif
    *m = max;
    *l = lanes_sum(lane);
}

// scores leave the strip scaled
static inline void scores_out(float *dst, const float *s, int n, float scale) {
    for (int j = 0; j < n; j++) dst[j] = s[j] * scale;
}

typedef struct {                // blocks of 32 entries of a list that lie side by side, packed
    const char *k, *v;          // v: columns of 32 channels are (PANEL / BLK) tiles apart
    int blocks;
} Run;
typedef struct { Run run[PANEL / BLK]; int n; } Runs;       // the blocks of one panel of a list

// rows of the q act over one panel: w->s, op (NULL: not wanted), m, l of the strip; sight clipped
// to the panel. Rows that see nothing are left out.
static void strip_panel(const AttnShape *s, Work *w, const Runs *runs, const char *q, int rows,
                        const Sight *sight, float *op, float *m, float *l) {
    int kb = channel_blocks(s), most = 0;
    size_t block = tile_block(s), ae = act_elem(s->kind);
    for (int i = 0; i < rows; i++)
        if (sees(&sight[i]) && sight[i].end > most) most = sight[i].end;
    int width = CEIL_DIV(most, BLK) * BLK, at = 0;
    for (int i = 0; at < width; at += runs->run[i++].blocks * BLK) {
        int n = runs->run[i].blocks * BLK < width - at ? runs->run[i].blocks * BLK : width - at;
        mul_block(s->kind, w->s + at, S_LD, q, kb, rows, runs->run[i].k, (size_t)kb * block, n, kb,
                  false);
    }
    for (int i = 0; i < rows; i++)      // all first: what is stored is not loaded at once
        if (sees(&sight[i])) hide(w->s + (size_t)i * S_LD, &sight[i], width);
    for (int i = 0; i < rows; i++) {
        char *p = w->p + ((size_t)(i / 16) * (PANEL / BLK) * 16 + (size_t)(i % 16)) * BLK * ae;
        if (sees(&sight[i]))
            softmax_row(s->kind, w->s + (size_t)i * S_LD, width, s->scale, op ? p : NULL, &m[i],
                        &l[i]);
        else for (int j = 0; j < width; j += BLK) memset(p + (size_t)j * 16 * ae, 0, BLK * ae);
    }
    at = 0;
    for (int i = 0; op && at < width; at += runs->run[i++].blocks * BLK) {
        int n = runs->run[i].blocks * BLK < width - at ? runs->run[i].blocks * BLK : width - at;
        mul_block(s->kind, op, (size_t)kb * BLK, w->p + (size_t)at * 16 * ae, PANEL / BLK, rows,
                  runs->run[i].v, (size_t)(PANEL / BLK) * block, s->head_dim, n / BLK, at > 0);
    }
}

// (m, l, o) <- (m, l, o) folded with (mp, lp, op)
static inline void fold(float *m, float *l, float *o, float mp, float lp, const float *op, int hd) {
    float top = *m > mp ? *m : mp, a = fexp2(*m - top), b = fexp2(mp - top);
    for (int i = 0; i < hd; i++) o[i] = fmaf(o[i], a, op[i] * b);
    *l = fmaf(*l, a, lp * b);
    *m = top;
}

// where a strip's results over a panel go: rows that saw nothing so far take them as they are
static float *strip_results(const AttnShape *s, const Work *w, int r, int rows, const bool *seen) {
    for (int i = 0; i < rows; i++)
        if (seen[r + i]) return w->op;
    return w->o + (size_t)r * channel_blocks(s) * BLK;
}

// a strip's rows, from row r on, are folded with what they saw in one panel; op NULL: (m, l) alone
static void strip_fold(const AttnShape *s, Work *w, int r, int rows, const Sight *sight,
                       const float *m, const float *l, const float *op, bool *seen) {
    size_t dp = (size_t)channel_blocks(s) * BLK;
    for (int i = 0; i < rows; i++) {
        float *o = w->o + (size_t)(r + i) * dp;
        const float *from = op ? op + (size_t)i * dp : o;
        if (!sees(&sight[i])) continue;
        if (seen[r + i])
            fold(&w->m[r + i], &w->l[r + i], o, m[i], l[i], from, op ? s->head_dim : 0);
        else {
            w->m[r + i] = m[i];
            w->l[r + i] = l[i];
            if (from != o) memcpy(o, from, (size_t)s->head_dim * sizeof *o);
            seen[r + i] = true;
        }
    }
}

static void rows_out(const AttnShape *s, const Work *w, int rows, float *out, size_t ldo,
                     float *lse2) {
    size_t dp = (size_t)channel_blocks(s) * BLK;
    for (int i = 0; i < rows; i++) {
        const float *o = w->o + (size_t)i * dp;
        float *y = out + (size_t)i * ldo, l = w->l[i];
        for (int c = 0; out && c < s->head_dim; c++) y[c] = o[c] / l;
        if (lse2) lse2[i] = w->m[i] + flog2(l);
    }
}

// ---------------------------------------------------------------------------
// attn_rows: up to 128 rows share each packed panel while it is in cache

static void rows_panel(const AttnShape *s, const AttnRows *a, Work *w, int p, bool *seen) {
    size_t dp = (size_t)channel_blocks(s) * BLK;
    const char *panel = (const char *)a->panels + (size_t)p * attn_panel_bytes(s);
    const Runs runs = { { { panel, panel + attn_panel_bytes(s) / 2, PANEL / BLK } }, 1 };
    for (int r = 0; r < a->rows; r += STRIP_ROWS) {
        int rows = a->rows - r < STRIP_ROWS ? a->rows - r : STRIP_ROWS, any = 0;
        float m[STRIP_ROWS], l[STRIP_ROWS];
        Sight sight[STRIP_ROWS];
        for (int i = 0; i < rows; i++) {
            int v = within(a->vis0 + (r + i) * a->vis_step - p * PANEL);
            sight[i].from = sight[i].to = sight[i].end = v;
            any |= v;
        }
        if (!any) continue;
        float *op = a->out ? strip_results(s, w, r, rows, seen) : NULL;
        strip_panel(s, w, &runs, w->q + (size_t)r * dp * act_elem(s->kind), rows, sight, op, m, l);
        for (int i = 0; a->scores && i < rows; i++)
            scores_out(a->scores + (size_t)(r + i) * a->ld_scores + (size_t)p * PANEL,
                       w->s + (size_t)i * S_LD, sight[i].end, s->scale);
        strip_fold(s, w, r, rows, sight, m, l, op, seen);
    }
}

void attn_rows(const AttnShape *s, const AttnRows *a, void *scratch) {
    bool seen[ATTN_ROWS] = { false };
    int last = a->vis0 + (a->rows - 1) * a->vis_step;
    Work w;
    work_at(s, scratch, &w);
    act_pack(s->kind, w.q, a->q, a->ldq, a->rows, s->head_dim);
    for (int p = 0; p * PANEL < last; p++) rows_panel(s, a, &w, p, seen);
    rows_out(s, &w, a->rows, a->out, a->ldo, a->lse2);
}

// ---------------------------------------------------------------------------
// attn_block: up to 64 rows over a list that skips. Blocks of 32 entries that lie in the packed
// panels of the whole list are used where they are; others are gathered and packed once for all
// rows. Both are runs of tiles under the same products.

typedef struct { int span, at; } Cursor;        // entries of span taken so far

static void run_add(Runs *runs, const char *k, const char *v, size_t k_bytes, size_t v_bytes) {
    Run *last = runs->n ? &runs->run[runs->n - 1] : NULL;
    if (last && last->k + last->blocks * k_bytes == k && last->v + last->blocks * v_bytes == v) {
        last->blocks++;
        return;
    }
    runs->run[runs->n].k = k;
    runs->run[runs->n].v = v;
    runs->run[runs->n++].blocks = 1;
}

// the next entries of the list, 32 or what is left (-1: none); returns the entry at which they lie
// aligned and side by side in the packed panels, or -1
static int next_entries(const AttnBlock *a, Cursor *c, int32_t *entry) {
    const KeySpan *at = &a->span[c->span];
    int first = c->span < a->n_spans ? at->at + c->at : 0, n = 0;
    bool last = c->span == a->n_spans - 1;
    bool whole = c->span < a->n_spans && first % BLK == 0 && (last || at->n - c->at >= BLK);
    while (n < BLK && c->span < a->n_spans) {
        at = &a->span[c->span];
        int take = at->n - c->at < BLK - n ? at->n - c->at : BLK - n;
        for (int i = 0; i < take; i++) entry[n + i] = at->at + c->at + i;
        n += take;
        c->at += take;
        if (c->at == at->n) { c->span++; c->at = 0; }
    }
    for (int i = n; i < BLK; i++) entry[i] = -1;
    return whole ? first : -1;
}

static void list_panel(const AttnShape *s, const AttnBlock *a, Work *w, Cursor *c, Runs *runs) {
    int32_t entry[PANEL];
    int aligned[PANEL / BLK], kb = channel_blocks(s);
    size_t block = tile_block(s), half = attn_panel_bytes(s) / 2;
    for (int e = 0; e < PANEL / BLK; e++) aligned[e] = next_entries(a, c, entry + e * BLK);
    runs->n = 0;
    for (int e = 0; e < PANEL / BLK && entry[e * BLK] >= 0; e++) {
        const int32_t *next = entry + (e + 1 < PANEL / BLK ? e + 1 : e) * BLK;
        const char *panel = w->panel;
        int at = e;
        if (aligned[e] >= 0) {
            panel = (const char *)a->panels + (size_t)(aligned[e] / PANEL) * attn_panel_bytes(s);
            at = aligned[e] % PANEL / BLK;
        } else {
            pack_key_block(s, w->panel + (size_t)e * kb * block, a->keys, entry + e * BLK, next,
                           &w->turn);
            pack_value_block(s, w->panel + half + (size_t)e * block, (PANEL / BLK) * block, a->keys,
                             entry + e * BLK, next);
        }
        run_add(runs, panel + (size_t)at * kb * block, panel + half + (size_t)at * block,
                (size_t)kb * block, block);
    }
}

// Entries of a panel that no row of a strip sees, whole blocks between sinks and windows, leave its
// runs; what the rows see moves up. Sums are the same without them (SEMANTICS 1).
static const Runs *runs_seen(const AttnShape *s, const Runs *all, Sight *view, int rows,
                             Runs *cut) {
    int from = 0, to = PANEL, at = 0;
    size_t v_bytes = tile_block(s), k_bytes = (size_t)channel_blocks(s) * v_bytes;
    for (int i = 0; i < rows; i++) {
        if (!sees(&view[i])) continue;
        if (view[i].from > from) from = view[i].from;
        if (view[i].to < to) to = view[i].to;
    }
    from = CEIL_DIV(from, BLK) * BLK;
    to -= to % BLK;
    if (from >= to) return all;
    cut->n = 0;
    for (int i = 0; i < all->n; i++)
        for (int b = 0; b < all->run[i].blocks; b++, at += BLK)
            if (at < from || at >= to)
                run_add(cut, all->run[i].k + b * k_bytes, all->run[i].v + b * v_bytes, k_bytes,
                        v_bytes);
    for (int i = 0; i < rows; i++) {
        view[i].to -= to - from;
        view[i].end -= to - from;
    }
    return cut;
}

typedef struct { int span, before; } Below;     // entries of the spans before that one

// entries of the list below j, which does not fall from call to call
static int entries_below(const AttnBlock *a, Below *b, int j) {
    for (; b->span < a->n_spans && a->span[b->span].at + a->span[b->span].n <= j; b->span++)
        b->before += a->span[b->span].n;
    return b->before + (b->span < a->n_spans && a->span[b->span].at < j ? j - a->span[b->span].at
                                                                        : 0);
}

int64_t attn_block(const AttnShape *s, const AttnBlock *a, void *scratch) {
    bool seen[SPARSE_ROWS] = { false };
    Sight sight[SPARSE_ROWS], view[STRIP_ROWS];
    size_t strip = (size_t)channel_blocks(s) * BLK * act_elem(s->kind);
    int64_t pairs = 0;
    int len = 0, sinks = 0;
    Cursor at = { 0, 0 };
    Below first = { 0, 0 }, window = { 0, 0 }, last = { 0, 0 };
    Runs runs, cut;
    Work w;
    work_at(s, scratch, &w);
    for (int i = 0; i < a->n_spans; i++) len += a->span[i].n;
    if (a->windowed > 0) sinks = entries_below(a, &first, a->sinks);
    for (int i = 0; i < a->rows; i++) {
        int own = a->own + i, below = own - a->local + 1;
        sight[i].from = sight[i].to = sight[i].end = entries_below(a, &last, own + 1);
        if (i >= a->windowed || below <= a->sinks) continue;
        sight[i].from = sinks;
        sight[i].to = entries_below(a, &window, below);
    }
    act_pack(s->kind, w.q, a->q, a->ldq, a->rows, s->head_dim);
    for (int p = 0; p < len; p += PANEL) {
        list_panel(s, a, &w, &at, &runs);
        for (int r = 0; r < a->rows; r += STRIP_ROWS) {
            int rows = a->rows - r < STRIP_ROWS ? a->rows - r : STRIP_ROWS, any = 0;
            float m[STRIP_ROWS], l[STRIP_ROWS];
            for (int i = 0; i < rows; i++) {
                view[i].from = within(sight[r + i].from - p);
                view[i].to = within(sight[r + i].to - p);
                view[i].end = within(sight[r + i].end - p);
                any |= sees(&view[i]);
            }
            pairs += (int64_t)rows * (len - p < PANEL ? len - p : PANEL);
            if (!any) continue;
            float *op = a->out ? strip_results(s, &w, r, rows, seen) : NULL;
            strip_panel(s, &w, runs_seen(s, &runs, view, rows, &cut), w.q + (size_t)r * strip, rows,
                        view, op, m, l);
            strip_fold(s, &w, r, rows, view, m, l, op, seen);
        }
    }
    for (int i = 0; i < a->rows; i++) CHECK(seen[i], "row %d of a sparse feed sees no key", i);
    rows_out(s, &w, a->rows, a->out, a->ldo, a->lse2);
    return pairs;
}

// ---------------------------------------------------------------------------
// Scores alone, for statistics

void attn_panel_scores(const AttnShape *s, const void *panel, const float *q, int rows,
                       const int *vis, float *scores, void *scratch) {
    int kb = channel_blocks(s), most = 0;
    Work w;
    work_at(s, scratch, &w);
    for (int i = 0; i < rows; i++) if (vis[i] > most) most = vis[i];
    act_pack(s->kind, w.q, q, (size_t)s->head_dim, rows, s->head_dim);
    mul_block(s->kind, scores, PANEL, w.q, kb, rows, panel, (size_t)kb * tile_block(s),
              CEIL_DIV(most, BLK) * BLK, kb, false);
    for (int i = 0; i < rows; i++)
        scores_out(scores + (size_t)i * PANEL, scores + (size_t)i * PANEL, vis[i], s->scale);
}

// ---------------------------------------------------------------------------
// One token: panels are independent until the fold, so threads split the keys

void attn_step_panel(const AttnShape *s, const KeyList *list, int p, const StepRows *t, int n,
                     void *scratch) {
    int group = s->n_heads / s->n_kv_heads, kb = channel_blocks(s), hd = s->head_dim,
        first = p * (PANEL / BLK), rows = n * group;
    int count = list->len - p * PANEL < PANEL ? list->len - p * PANEL : PANEL,
        blocks = CEIL_DIV(count, BLK);
    size_t block = tile_block(s), row = BLK * act_elem(s->kind), dp = (size_t)kb * BLK;
    int32_t entry[BLK], next[BLK];
    const Sight all = { count, count, count };
    Work w;
    work_at(s, scratch, &w);
    for (int i = 0; i < rows; i++)
        act_row(s->kind, w.q, i, t[i / group].q + (size_t)(i % group) * hd, hd);
    for (int e = 0; e < blocks;
         e += STEP_BLOCKS) { // keys are packed where their product finds them in cache
        int m = blocks - e < STEP_BLOCKS ? blocks - e : STEP_BLOCKS;
        for (int b = 0; b < m; b++) {
            entries_of_block(entry, next, first + e + b, list->len);
            pack_key_block(s, w.block + (size_t)(b * kb) * block, list, entry, next, &w.turn);
        }
        mul_block(s->kind, w.s + e * BLK, S_LD, w.q, kb, rows, w.block, (size_t)kb * block,
                  m * BLK, kb, false);
    }
    for (int i = 0; i < rows; i++) {
        const StepRows *of = &t[i / group];
        float *si = w.s + (size_t)i * S_LD;
        int h = i % group;
        if (of->scores)
            scores_out(of->scores + (size_t)h * of->ld_scores + (size_t)p * PANEL, si, count,
                       s->scale);
        char *pi = w.p + ((size_t)(i / 16) * (PANEL / BLK) * 16 + (size_t)(i % 16)) * row;
        hide(si, &all, blocks * BLK);
        softmax_row(s->kind, si, blocks * BLK, s->scale, pi, &of->part[h], &of->part[group + h]);
    }
    for (int e = 0; e < blocks; e += STEP_BLOCKS) {
        int m = blocks - e < STEP_BLOCKS ? blocks - e : STEP_BLOCKS;
        for (int b = 0; b < m; b++) {
            entries_of_block(entry, next, first + e + b, list->len);
            pack_value_block(s, w.block + (size_t)b * block, STEP_BLOCKS * block, list, entry,
                             next);
        }
        for (int i = 0; i < rows; i += 16)
            mul_block(s->kind, w.op + (size_t)i * dp, dp,
                      w.p + ((size_t)(i / 16) * (PANEL / BLK) + (size_t)e) * 16 * row, PANEL / BLK,
                      rows - i < 16 ? rows - i : 16, w.block, STEP_BLOCKS * block, hd, m, e > 0);
    }
    for (int i = 0; i < rows; i++)
        memcpy(t[i / group].part + 2 * group + (size_t)(i % group) * hd, w.op + (size_t)i * dp,
               (size_t)hd * sizeof(float));
}

void attn_fold(const AttnShape *s, const float *parts, int n, float *out, float *lse2) {
    int group = s->n_heads / s->n_kv_heads, hd = s->head_dim;
    size_t part = (size_t)group * ((size_t)hd + 2);
    for (int i = 0; i < group; i++) {
        float m = parts[i], l = parts[group + i], *o = out + (size_t)i * hd;
        memcpy(o, parts + 2 * group + (size_t)i * hd, (size_t)hd * sizeof *o);
        for (int p = 1; p < n; p++) {
            const float *x = parts + p * part;
            fold(&m, &l, o, x[i], x[group + i], x + 2 * group + (size_t)i * hd, hd);
        }
        for (int c = 0; c < hd; c++) o[c] /= l;
        if (lse2) lse2[i] = m + flog2(l);
    }
}

// ---------------------------------------------------------------------------
// MInference's online estimation (Jiang et al., arXiv 2407.02490, algorithm 2) from the last
// L <= 64 query rows of a feed. With P the softmax of their scores over everything they see:
//   column j scores sum_a P[a][j],  distance d scores sum_a P[a][len - L + a - d],  a ascending.
// The first 30 columns and the 100 smallest distances are always kept, then the largest scores,
// ties to the smaller index. P = 2^(s - lse2).

static int at_most(int x, int most) { return x < most ? x : most; }

bool sparse_estimates(const HeadPattern *pattern, int n_heads, int len, int n) {
    for (int h = 0; h < n_heads; h++)
        if (estimated(&pattern[h], len, n)) return true;
    return false;
}

// keys [at, at + n) of one panel under the probe's rows, which lie packed in w: column (n) gets
// their sums, diagonal[j - at + L - 1 - a] what row a gives key j, but for those below skip
static void estimate_keys(const AttnShape *s, Work *w, const AttnProbe *probe, int at, int n,
                          const float *lse2, float *column, float *diagonal, int skip) {
    int kb = channel_blocks(s);
    size_t block = (size_t)kb * tile_block(s);
    const char *keys = (const char *)probe->panels + (size_t)(at / PANEL) * attn_panel_bytes(s) +
                       (size_t)(at % PANEL / BLK) * block;
    for (int r = 0; r < probe->rows; r += STRIP_ROWS) {
        int rows = at_most(probe->rows - r, STRIP_ROWS);
        int first = probe->len - probe->rows + r + 1 - at;              // what row r sees of them
        int width = CEIL_DIV(at_most(within(first + rows - 1), n), BLK) * BLK;
        mul_block(s->kind, w->s, S_LD, w->q + (size_t)r * kb * BLK * act_elem(s->kind), kb, rows,
                  keys, block, width, kb, false);
        for (int i = 0; i < rows; i++) {
            const float *x = w->s + (size_t)i * S_LD;
            float *d = diagonal + probe->rows - 1 - (r + i), base = lse2[r + i];
            int j = at_least(skip - (probe->rows - 1 - (r + i)), 0);
            int see = at_most(within(first + i), n);
#if defined(__AVX512F__)
            __m512 scale = _mm512_set1_ps(s->scale), b = _mm512_set1_ps(base);
            for (; j + LANES <= see; j += LANES) {
                __m512 e = exp2_16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(x + j), scale), b));
                _mm512_storeu_ps(column + j, _mm512_add_ps(_mm512_loadu_ps(column + j), e));
                _mm512_storeu_ps(d + j, _mm512_add_ps(_mm512_loadu_ps(d + j), e));
            }
#endif
            for (; j < see; j++) {
                float e = fexp2(x[j] * s->scale - base);
                column[j] += e;
                d[j] += e;
            }
        }
    }
}

void attn_estimate(const AttnShape *s, const AttnProbe *probe, float *column, float *distance,
                   void *scratch) {
    float lse2[SPARSE_ROWS];
    int n = probe->len;
    AttnRows a;
    Work w;
    memset(&a, 0, sizeof a);
    work_at(s, scratch, &w);
    a.panels = probe->panels;
    a.q = probe->q;
    a.ldq = (size_t)s->head_dim;
    a.rows = probe->rows;
    a.vis0 = n - probe->rows + 1;
    a.vis_step = 1;
    a.lse2 = lse2;
    attn_rows(s, &a, scratch);          // leaves the rows packed
    memset(column, 0, (size_t)n * sizeof *column);
    memset(distance, 0, (size_t)n * sizeof *distance);
    for (int j = 0; j < n; j += PANEL)
        estimate_keys(s, &w, probe, j, PANEL, lse2, column + j, distance + j, 0);
    for (int i = 0, j = n - 1; i < j; i++, j--) {
        float t = distance[i];
        distance[i] = distance[j];
        distance[j] = t;
    }
}

int attn_select(float *column, float *distance, int n, int verticals, int slashes, int forced,
                int32_t *vertical, uint64_t *slash, int32_t *scratch) {
    for (int j = 0; j < at_most(n, FORCED_COLUMNS); j++) column[j] = INFINITY;
    for (int d = 0; d < at_most(n, forced); d++) distance[d] = INFINITY;
    int kept = top_k(distance, n, at_most(at_least(slashes, LEAST_SLASHES), n), scratch);
    memset(slash, 0, (size_t)CEIL_DIV(n, 64) * sizeof *slash);
    for (int i = 0; i < kept; i++) slash[scratch[i] / 64] |= 1ull << scratch[i] % 64;
    return top_k(column, n, at_most(at_least(verticals, LEAST_VERTICALS), n), vertical);
}

// Block-sparse pools 64 rows to their mean (missing ones count as zero), which is rounded as the
// input of a product, and scores a tile by the product of the means.
static void mean_round(const AttnShape *s, float *mean) {
    for (int i = 0; i < s->head_dim; i++) {
        float x = mean[i] * (1.0f / SPARSE_ROWS);
        mean[i] = s->kind == MUL_F32 ? x : round_bf16(x);
    }
}

// means of 32 tiles from tile first on, packed as keys are; scratch: rows (32, hd) elements, mean
static void mean_keys(const AttnShape *s, const KeyList *keys, int first, char *dst, char *rows,
                      float *mean) {
    const void *row[BLK];
    size_t bytes = (size_t)s->head_dim * s->elem;
    for (int t = 0; t < BLK; t++) {
        int from = (first + t) * SPARSE_ROWS, to = from + SPARSE_ROWS;
        row[t] = from < keys->len ? rows + (size_t)t * bytes : NULL;
        memset(mean, 0, (size_t)s->head_dim * sizeof *mean);
        for (int j = from; j < to && j < keys->len; j++) {
            const void *r = row_at(keys->k, keys, keys->live ? keys->live[j] : j, bytes);
            for (int i = 0; i < s->head_dim; i++)
                mean[i] +=
                    s->elem == 4 ? ((const float *)r)[i] : bf16_f32(((const uint16_t *)r)[i]);
        }
        mean_round(s, mean);
        for (int i = 0; i < s->head_dim; i++) {
            if (s->elem == 4) ((float *)(void *)(rows + (size_t)t * bytes))[i] = mean[i];
            else ((uint16_t *)(void *)(rows + (size_t)t * bytes))[i] = f32_bf16(mean[i]);
        }
    }
    for (int b = 0; b < channel_blocks(s); b++)
        pack_keys(s, dst + (size_t)b * tile_block(s), row, b);
}

// score (tiles) of the mean of rows queries against packed means; act: one row of (hd)
static void tile_scores(const AttnShape *s, const char *means, int tiles, const float *q,
                        size_t ldq, int rows, float *mean, void *act, float *score) {
    int kb = channel_blocks(s), hd = s->head_dim;
    for (int i = 0; i < hd; i += BLK) {
        float sum[BLK] = { 0 };
        uint16_t half[BLK];
        int n = at_most(BLK, hd - i);
        const float *x = q + i;
        for (int r = 0; r < rows; r++, x += ldq) {
            if (s->kind != MUL_F32 && n == BLK) {
                act_round(MUL_TILES, half, x);
                for (int c = 0; c < BLK; c++) sum[c] += bf16_f32(half[c]);
            } else {
                for (int c = 0; c < n; c++) sum[c] += s->kind == MUL_F32 ? x[c] : round_bf16(x[c]);
            }
        }
        memcpy(mean + i, sum, (size_t)n * sizeof *mean);
    }
    mean_round(s, mean);
    act_pack(s->kind, act, mean, (size_t)s->head_dim, 1, s->head_dim);
    mul_block(s->kind, score, (size_t)tiles, act, kb, 1, means, (size_t)kb * tile_block(s), tiles,
              kb, false);
}


// ---------------------------------------------------------------------------
// One layer of a sparse feed: the patterns of its heads, then row blocks against their lists

struct Sparse {
    Mem *mem;
    const AttnShape *s;
    int len, verticals, marks;  // room
    HeadLists *head;            // (H)
    int32_t *vertical;          // (H, verticals)
    uint64_t *slash;            // (H, len / 64)
    char *k_mean;               // (G) means of the keys of every tile, packed
    uint64_t *listed;           // (H, marks / 64, len / 64) entries of the lists of a chunk's rows
    float *sums;                // (H, per_head) of the estimation
    int first;                  // the chunk's first row
    char *thread;               // (threads) what a thread needs besides attention's scratch
    const AttnShape *layer_s;   // of the layer under way
    const KeyList *keys;        // (G)
    const void *const *panels;  // (G)
};

typedef struct { size_t vertical, slash, k_mean, head, listed, sums, thread; } SparseSizes;

typedef struct {                // of one thread
    float *distance, *score, *mean;             // (len) (len / 64) (hd)
    char *rows, *act;           // (32, hd) means, (16, hd) one of them
    int32_t *chosen;            // (len)
    KeySpan *span;                 // (verticals + len / 64 + 1, at least blocks)
} Scratch;

static size_t sparse_scratch(const AttnShape *s, int len, int verticals, char *base, Scratch *t) {
    size_t at = 0;
#define CARVE(field, type, count)                                                                  \
    (t->field = (type *)(void *)(base + at),                                                       \
     at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(distance, float, len);
    CARVE(score, float, CEIL_DIV(len, SPARSE_ROWS));
    CARVE(mean, float, s->head_dim);
    CARVE(rows, char, BLK * (size_t)s->head_dim * s->elem);
    CARVE(act, char, act_bytes(s->kind, 1, s->head_dim));
    CARVE(chosen, int32_t, len);
    CARVE(span, KeySpan, verticals + CEIL_DIV(len, SPARSE_ROWS) + 2);
#undef CARVE
    return at;
}

static size_t mean_bytes(const AttnShape *s, int len) {
    return (size_t)CEIL_DIV(CEIL_DIV(len, SPARSE_ROWS), BLK) * channel_blocks(s) * tile_block(s);
}

// What the estimation of a head needs: columns (len), log2 of the rows' sums (64), and diagonals,
// of which every part of the keys has those that begin with it and 63 of the next part's. Before
// that they are the largest score and sum of each row in each panel.
static size_t sums_of(int len) {
    return 2 * (size_t)len + SPARSE_ROWS * (size_t)(CEIL_DIV(len, PANEL) + 3);
}

static SparseSizes sparse_sizes(const AttnShape *s, int len, int verticals, int marks) {
    static char base[1];                        // only offsets are wanted
    size_t h = (size_t)s->n_heads, tiles = (size_t)CEIL_DIV(len, SPARSE_ROWS);
    Scratch t;
    SparseSizes z;
    z.head = h * sizeof(HeadLists);
    z.vertical = h * (size_t)verticals * sizeof(int32_t);
    z.slash = h * tiles * sizeof(uint64_t);
    z.k_mean = h * mean_bytes(s, len);                          // a cache may have H KV heads
    z.sums = verticals ? h * sums_of(len) * sizeof(float) : 0;
    z.listed = h * (size_t)CEIL_DIV(marks, SPARSE_ROWS) * tiles * sizeof(uint64_t);
    z.thread = sparse_scratch(s, len, verticals, base, &t) * (size_t)cpu_threads();
    return z;
}

size_t sparse_bytes(const AttnShape *s, int len, int verticals, int marks) {
    SparseSizes z = sparse_sizes(s, len, at_most(verticals, len), marks);
    return z.head + z.vertical + z.slash + z.k_mean + z.listed + z.sums + z.thread;
}

Sparse *sparse_open(Mem *mem, const AttnShape *s) {
    Sparse *p = (Sparse *)xrealloc(NULL, sizeof *p);
    memset(p, 0, sizeof *p);
    p->mem = mem;
    p->s = s;
    return p;
}

static void sparse_empty(Sparse *p) {
    SparseSizes z = sparse_sizes(p->s, p->len, p->verticals, p->marks);
    if (!p->head) return;
    mem_give(p->mem, p->head, z.head);
    mem_give(p->mem, p->vertical, z.vertical);
    mem_give(p->mem, p->slash, z.slash);
    mem_give(p->mem, p->k_mean, z.k_mean);
    mem_give(p->mem, p->listed, z.listed);
    mem_give(p->mem, p->sums, z.sums);
    mem_give(p->mem, p->thread, z.thread);
    p->head = NULL;
}

void sparse_close(Sparse *p) {
    if (!p) return;
    sparse_empty(p);
    free(p);
}

void sparse_reserve(Sparse *p, int len, int verticals, int marks) {
    if (verticals > len) verticals = len;
    if (p->head && len <= p->len && verticals <= p->verticals && marks <= p->marks) return;
    sparse_empty(p);
    p->len = len > p->len ? len : p->len;
    p->verticals = verticals > p->verticals ? verticals : p->verticals;
    p->marks = marks > p->marks ? marks : p->marks;
    SparseSizes z = sparse_sizes(p->s, p->len, p->verticals, p->marks);
    const char *what = "lists of sparse attention";
    p->head = (HeadLists *)mem_take(p->mem, z.head, 1, what);
    p->vertical = (int32_t *)mem_take(p->mem, z.vertical, 1, what);
    p->slash = (uint64_t *)mem_take(p->mem, z.slash, 1, what);
    p->k_mean = (char *)mem_take(p->mem, z.k_mean, 1, what);
    p->listed = (uint64_t *)mem_take(p->mem, z.listed, 1, what);
    p->sums = (float *)mem_take(p->mem, z.sums, 1, what);
    p->thread = (char *)mem_take(p->mem, z.thread, 1, what);
}

static Scratch thread_lists(const Sparse *p) {
    Scratch t;
    static char base[1];
    size_t each = sparse_scratch(p->s, p->len, p->verticals, base, &t);
    sparse_scratch(p->s, p->len, p->verticals, p->thread + each * (size_t)omp_get_thread_num(), &t);
    return t;
}

// ---------------------------------------------------------------------------
// attn_estimate for all heads at once, the same bits: threads share out parts of the keys, which
// the query heads of a group read one after the other. First every row's (m, l) in every panel,
// then their fold, then the sums of columns and diagonals. A diagonal that comes from the part
// before takes its first terms from that part's last 64 keys.

typedef struct { int number, from, to; } Part;  // keys [from, to)

typedef struct {                // of one head
    AttnProbe probe;
    float *column, *lse2, *ml, *diagonal;
} Estimate;

static Estimate estimate_of(const Sparse *p, const SparseLayer *layer, int h) {
    const AttnShape *s = p->layer_s;
    int g = h / (s->n_heads / s->n_kv_heads), len = p->keys[g].len;
    float *sums = p->sums + (size_t)h * sums_of(p->len);
    Estimate e = { { p->panels[g], len, layer->q + (size_t)h * layer->q_rows * s->head_dim,
                     layer->q_rows }, sums, sums + len, sums + len + SPARSE_ROWS,
                   sums + len + SPARSE_ROWS };
    return e;
}

static void part_scores(const AttnShape *s, const Part *part, const Estimate *e, Work *w) {
    int kb = channel_blocks(s), rows = e->probe.rows;
    for (int from = part->from; from < part->to; from += PANEL) {
        const char *keys = (const char *)e->probe.panels + from / PANEL * attn_panel_bytes(s);
        const Runs runs = { { { keys, NULL, PANEL / BLK } }, 1 };
        float *m = e->ml + (size_t)(from / PANEL) * 2 * SPARSE_ROWS, *l = m + SPARSE_ROWS;
        for (int r = 0; r < rows; r += STRIP_ROWS) {
            int n = at_most(rows - r, STRIP_ROWS);
            Sight sight[STRIP_ROWS];
            for (int i = 0; i < n; i++) {
                int see = within(e->probe.len - rows + r + i + 1 - from);
                sight[i].from = sight[i].to = sight[i].end = see;
                m[r + i] = -INFINITY;
                l[r + i] = 0;
            }
            strip_panel(s, w, &runs, w->q + (size_t)r * kb * BLK * act_elem(s->kind), n, sight,
                        NULL, m + r, l + r);
        }
    }
}

static void fold_scores(const Estimate *e) {
    float m[SPARSE_ROWS], l[SPARSE_ROWS];
    memcpy(m, e->ml, sizeof m);
    memcpy(l, e->ml + SPARSE_ROWS, sizeof l);
    for (int p = 1; p < CEIL_DIV(e->probe.len, PANEL); p++) {
        const float *next = e->ml + (size_t)p * 2 * SPARSE_ROWS;
        for (int i = 0; i < SPARSE_ROWS; i++) {
            float top = m[i] > next[i] ? m[i] : next[i], a = fexp2(m[i] - top);
            l[i] = fmaf(l[i], a, next[SPARSE_ROWS + i] * fexp2(next[i] - top));
            m[i] = top;
        }
    }
    for (int i = 0; i < e->probe.rows; i++) e->lse2[i] = m[i] + flog2(l[i]);
}

static void part_sums(const AttnShape *s, const Part *part, const Estimate *e, Work *w) {
    enum { BEFORE = SPARSE_ROWS };
    float *diagonal = e->diagonal + part->from + part->number * BEFORE, spent[BEFORE] = { 0 };
    memset(e->column + part->from, 0, (size_t)(part->to - part->from) * sizeof(float));
    memset(diagonal, 0, (size_t)(part->to - part->from + BEFORE) * sizeof(float));
    if (part->from)
        estimate_keys(s, w, &e->probe, part->from - BEFORE, BEFORE, e->lse2, spent,
                      diagonal - BEFORE, BEFORE);
    for (int j = part->from; j < part->to; j += PANEL)
        estimate_keys(s, w, &e->probe, j, PANEL, e->lse2, e->column + j,
                      diagonal + j - part->from, 0);
}

typedef struct { int parts, panels; } Split;    // of a list, of a part

// few panels for many threads, but no more than stay in cache from head to head
static Split split_of(const Sparse *p, int G) {
    int most = 0;
    for (int g = 0; g < G; g++) most = at_least(CEIL_DIV(p->keys[g].len, PANEL), most);
    Split split = { 0, at_most(at_least(most * G / (8 * cpu_threads()), 1), 8) };
    split.parts = CEIL_DIV(most, split.panels);
    return split;
}

// fn for the heads that are estimated of part number i
static void part_do(const Sparse *p, const SparseLayer *layer, const Split *split, int i,
                    void (*fn)(const AttnShape *, const Part *, const Estimate *, Work *),
                    void *scratch) {
    const AttnShape *s = layer->s;
    int g = i / split->parts, at = i % split->parts, size = split->panels * PANEL;
    int len = p->keys[g].len, group = s->n_heads / s->n_kv_heads;
    Part part = { at, at * size, at_most((at + 1) * size, len) };
    Work w;
    work_at(s, scratch, &w);
    for (int h = g * group; h < (g + 1) * group && part.from < len; h++) {
        if (!estimated(&layer->pattern[h], len, layer->n)) continue;
        Estimate e = estimate_of(p, layer, h);
        act_pack(s->kind, w.q, e.probe.q, (size_t)s->head_dim, e.probe.rows, s->head_dim);
        fn(s, &part, &e, &w);
    }
}

static void head_plan(Sparse *p, const SparseLayer *layer, int h, const Split *split) {
    const HeadPattern *pattern = &layer->pattern[h];
    HeadLists *l = &p->head[h];
    memset(l, 0, sizeof *l);
    l->kind = pattern->kind;
    l->len = p->keys[h / (layer->s->n_heads / layer->s->n_kv_heads)].len;
    l->n = layer->n;
    if (l->kind == HEAD_A_SHAPE) {
        l->sinks = pattern->a;
        l->local = pattern->b;
        l->dense_rows = layer->dense_rows;
    } else if (l->kind == HEAD_BLOCK_SPARSE) {
        l->blocks = pattern->a;
    } else {
        uint64_t *slash = p->slash + (size_t)h * CEIL_DIV(p->len, 64);
        l->slash = slash;
        if (!estimated(pattern, l->len, l->n)) {      // bits behind len are not looked at
            memset(slash, 0xff, (size_t)CEIL_DIV(l->len, 64) * sizeof *slash);
            return;
        }
        Scratch t = thread_lists(p);
        Estimate e = estimate_of(p, layer, h);
        int32_t *vertical = p->vertical + (size_t)h * p->verticals;
        for (int part = 0, i = 0; i < l->len; part++)
            for (int end = at_most(i + split->panels * PANEL, l->len); i < end; i++)
                t.distance[l->len - 1 - i] = e.diagonal[i + part * SPARSE_ROWS];
        l->n_vertical = attn_select(e.column, t.distance, l->len, pattern->a, pattern->b,
                                    FORCED_DISTANCES, vertical, slash, t.chosen);
        l->vertical = vertical;
    }
}

void sparse_plan(Sparse *p, const SparseLayer *layer, char *scratch, size_t per_thread) {
    const AttnShape *s = layer->s;
    int groups = 0;                     // of 32 tiles
    size_t kb = (size_t)channel_blocks(s) * tile_block(s);
    bool looks = false;
    p->layer_s = s;
    p->keys = layer->keys;
    p->panels = layer->panels;
    Split split = split_of(p, s->n_kv_heads);
    for (int h = 0; h < s->n_heads; h++) {
        int len = p->keys[h / (s->n_heads / s->n_kv_heads)].len, tiles = CEIL_DIV(len, SPARSE_ROWS);
        const HeadPattern *pattern = &layer->pattern[h];
        looks |= estimated(pattern, len, layer->n);
        if (pattern->kind == HEAD_BLOCK_SPARSE && tiles > pattern->a)
            groups = at_least(CEIL_DIV(tiles, BLK), groups);
    }
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 4) nowait
        for (int i = 0; i < s->n_kv_heads * groups; i++) {
            int g = i / groups, at = i % groups;
            Scratch t = thread_lists(p);
            if (at * BLK * SPARSE_ROWS < p->keys[g].len)
                mean_keys(s, &p->keys[g], at * BLK,
                          p->k_mean + (size_t)g * mean_bytes(s, p->len) + (size_t)at * kb, t.rows,
                          t.mean);
        }
        char *mine = scratch + per_thread * (size_t)omp_get_thread_num();
        if (looks) {
            int items = s->n_kv_heads * split.parts;
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < items; i++) part_do(p, layer, &split, i, part_scores, mine);
#pragma omp for schedule(dynamic, 1)
            for (int h = 0; h < s->n_heads; h++) {
                Estimate e = estimate_of(p, layer, h);
                if (estimated(&layer->pattern[h], e.probe.len, layer->n)) fold_scores(&e);
            }
#pragma omp for schedule(dynamic, 1)
            for (int i = 0; i < items; i++) part_do(p, layer, &split, i, part_sums, mine);
        }
#pragma omp for schedule(dynamic, 1)
        for (int h = 0; h < s->n_heads; h++) head_plan(p, layer, h, &split);
    }
}

const HeadLists *sparse_head(const Sparse *p, int h) { return &p->head[h]; }

static uint64_t *marks_of(const Sparse *p, int h, int block) {
    size_t words = (size_t)CEIL_DIV(p->len, 64), blocks = (size_t)CEIL_DIV(p->marks, SPARSE_ROWS);
    return p->listed + ((size_t)h * blocks + (size_t)(block - p->first / SPARSE_ROWS)) * words;
}

static void mark_list(const Sparse *p, int h, int block, const AttnBlock *a) {
    uint64_t *bits = marks_of(p, h, block);
    memset(bits, 0, (size_t)CEIL_DIV(p->len, 64) * sizeof *bits);
    for (int i = 0; i < a->n_spans; i++)
        for (int j = a->span[i].at; j < a->span[i].at + a->span[i].n; j++)
            bits[j / 64] |= 1ull << j % 64;
}

void sparse_hide(const Sparse *p, int h, int i, int from, int n, float *s) {
    const HeadLists *l = &p->head[h];
    int row = p->first + i, own = l->len - l->n + row;
    const uint64_t *bits = marks_of(p, h, row / SPARSE_ROWS) + from / 64;
    bool windowed = l->kind == HEAD_A_SHAPE && row < l->n - l->dense_rows;
    for (int j = 0; j < n; j++) {
        bool seen = bits[j / 64] >> j % 64 & 1;
        if (windowed) seen = seen && (from + j < l->sinks || from + j > own - l->local);
        if (!seen) s[j] = -INFINITY;
    }
}

const KeySpan *sparse_list(const Sparse *p, int h, int block, const float *q, size_t ld, int *n) {
    const AttnShape *s = p->layer_s;
    int g = h / (s->n_heads / s->n_kv_heads);
    const HeadLists *l = &p->head[h];
    Scratch t = thread_lists(p);
    if (l->kind == HEAD_BLOCK_SPARSE && list_tiles(l, block) > l->blocks)
        tile_scores(s, p->k_mean + (size_t)g * mean_bytes(s, p->len), list_tiles(l, block), q, ld,
                    at_most(l->n - block * SPARSE_ROWS, SPARSE_ROWS), t.mean, t.act, t.score);
    *n = attn_list(l, block, t.score, t.span, t.chosen);
    return t.span;
}

// rows [64 block, ..) of the feed, q and out those rows of one query head
static int64_t block_rows(const Sparse *p, int h, int block, const float *q, float *out, size_t ld,
                          float *lse2, void *scratch) {
    const AttnShape *s = p->layer_s;
    int g = h / (s->n_heads / s->n_kv_heads), first = block * SPARSE_ROWS;
    const HeadLists *l = &p->head[h];
    AttnBlock a;
    memset(&a, 0, sizeof a);
    a.keys = &p->keys[g];
    a.panels = p->panels[g];
    a.span = sparse_list(p, h, block, q, ld, &a.n_spans);
    a.q = q;
    a.ldq = a.ldo = ld;
    a.rows = at_most(l->n - first, SPARSE_ROWS);
    a.own = l->len - l->n + first;
    if (l->kind == HEAD_A_SHAPE) {
        a.sinks = l->sinks;
        a.local = l->local;
        a.windowed = l->n - l->dense_rows - first;
    }
    a.out = out;
    a.lse2 = lse2;
    if (p->marks) mark_list(p, h, block, &a);
    return attn_block(s, &a, scratch);
}

int64_t sparse_rows(Sparse *p, int first, int n, const float *q, float *out, float *lse2,
                    size_t lse_ld, char *scratch, size_t per_thread) {
    const AttnShape *s = p->layer_s;
    size_t ld = (size_t)s->n_heads * s->head_dim;
    int blocks = CEIL_DIV(n, SPARSE_ROWS);
    int64_t pairs = 0;
    CHECK(first % SPARSE_ROWS == 0, "rows of a sparse feed from %d", first);
    CHECK(!p->marks || n <= p->marks, "a chunk of %d rows in room for %d", n, p->marks);
    p->first = first;
#pragma omp parallel for schedule(dynamic, 1) reduction(+ : pairs)
    for (int item = 0; item < blocks * s->n_heads; item++) {
        int block = blocks - 1 - item % blocks, h = item / blocks;
        size_t at = (size_t)block * SPARSE_ROWS * ld + (size_t)h * s->head_dim;
        pairs += block_rows(p, h, first / SPARSE_ROWS + block, q + at, out + at, ld,
                            lse2 ? lse2 + (size_t)h * lse_ld + block * SPARSE_ROWS : NULL,
                            scratch + per_thread * (size_t)omp_get_thread_num());
    }
    return pairs;
}

int64_t sparse_all_pairs(int len, int n) {
    int64_t pairs = 0;
    for (int r = 0; r < n; r += SPARSE_ROWS) {
        int rows = at_most(n - r, SPARSE_ROWS);
        pairs += (int64_t)rows * (len - n + r + rows);
    }
    return pairs;
}
