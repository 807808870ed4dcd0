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
// A list is dense here; A-shape, Tri-shape and MInference are other lists over the same core.
#include "scb.h"
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

typedef struct {                // keys rotated again when read (POSITIONS_CACHE)
    int shift;                  // the angle table's shift; neighbours in a list mostly share it
    float *sin, *cos;           // (rope_dim / 2)
    char *rows;                 // (32, hd)
} Turn;

// key rotated by shift = j - pos more positions, rounded once:
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

// pointers to the key or value rows of entries [32 e, 32 e + 32), NULL from len on
static void rows_of_block(const AttnShape *s, const void *const part[2], const KeyList *list, int e,
                          int len, const void **row) {
    enum {
        AHEAD = 16
    }; // rows; measured: 8 to 16 best, a step's attention 1.3 x faster than without
    size_t bytes = (size_t)s->head_dim * s->elem;
    for (int i = 0, j = e * BLK; i < BLK; i++, j++) {
        row[i] = j < len ? row_at(part, list, list->live ? list->live[j] : j, bytes) : NULL;
        for (size_t b = 0; row[i] && b < bytes; b += 64)
            __builtin_prefetch((const void *)((uintptr_t)row[i] + AHEAD * bytes + b));
    }
}

// keys of a block: kb tiles one after the other
static void pack_key_block(const AttnShape *s, char *dst, const KeyList *list, int e, int len,
                           Turn *turn) {
    const void *row[BLK];
    rows_of_block(s, list->k, list, e, len, row);
    for (int i = 0, j = e * BLK; list->by_index && i < BLK && j < len; i++, j++) {
        int number = list->live ? list->live[j] : j;
        int pos =
            *(const int32_t *)row_at((const void *const *)list->pos, list, number, sizeof(int32_t));
        if (pos == j) continue;
        char *turned = turn->rows + (size_t)i * s->head_dim * s->elem;
        key_rotate(s, turn, turned, row[i], j - pos);
        row[i] = turned;
    }
    for (int b = 0; b < channel_blocks(s); b++)
        pack_keys(s, dst + (size_t)b * tile_block(s), row, b);
}

// values of a block: one tile per 32 channels, step bytes apart
static void pack_value_block(const AttnShape *s, char *dst, size_t step, const KeyList *list, int e,
                             int len) {
    const void *row[BLK];
    rows_of_block(s, list->v, list, e, len, row);
    for (int b = 0; b < channel_blocks(s); b++) pack_values(s, dst + (size_t)b * step, row, b);
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
        pack_key_block(s, panel + at * kb, list, e, to, &w.turn);
        pack_value_block(s, panel + (PANEL / BLK) * (kb * block) + at, (PANEL / BLK) * block, list,
                         e, to);
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

// products q.k -> probabilities of one row: v of the first width entries are visible, width % 32 ==
// 0
static void softmax_row(MulKind kind, float *s, int v, int width, float scale, char *p, float *m,
                        float *l) {
    size_t step = (size_t)16 * BLK * act_elem(kind);
    float e[BLK] __attribute__((aligned(64))), lane[LANES] __attribute__((aligned(64))), max;
    for (int j = v; j < width; j++) s[j] = -INFINITY;
#if defined(__AVX512F__)
    __m512 c = _mm512_set1_ps(scale), top = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int j = 0; j < width; j += LANES)
        top = _mm512_max_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j), c), top);
    max = _mm512_reduce_max_ps(top);
    top = _mm512_set1_ps(max);
    for (int j = 0; j < width; j += BLK, p += step) {
        __m512 a = exp2_16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j), c), top));
        __m512 b = exp2_16(_mm512_sub_ps(_mm512_mul_ps(_mm512_loadu_ps(s + j + LANES), c), top));
        sum = _mm512_add_ps(_mm512_add_ps(sum, a), b);
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
    for (int j = 0; j < width; j += BLK, p += step) {
        for (int i = 0; i < BLK; i++) e[i] = fexp2(s[j + i] * scale - max);
        for (int i = 0; i < LANES; i++) lane[i] += e[i];
        for (int i = 0; i < LANES; i++) lane[i] += e[LANES + i];
        act_round(kind, p, e);
    }
#endif
    *m = max;
    *l = lanes_sum(lane);
}

// scores leave the strip scaled
static inline void scores_out(float *dst, const float *s, int n, float scale) {
    for (int j = 0; j < n; j++) dst[j] = s[j] * scale;
}

// rows of the q act over one panel: w->s, w->op, m, l of the strip; vis clipped to
// the panel. Rows that see nothing keep vis 0 and are left out.
static void strip_panel(const AttnShape *s, Work *w, const char *panel, const char *q, int rows,
                        const int *vis, bool values, float *m, float *l) {
    int kb = channel_blocks(s), most = 0;
    size_t block = tile_block(s), ae = act_elem(s->kind);
    for (int i = 0; i < rows; i++) if (vis[i] > most) most = vis[i];
    int width = CEIL_DIV(most, BLK) * BLK;
    mul_block(s->kind, w->s, S_LD, q, kb, rows, panel, (size_t)kb * block, width, kb, false);
    for (int i = 0; i < rows; i++) {
        char *p = w->p + ((size_t)(i / 16) * (PANEL / BLK) * 16 + (size_t)(i % 16)) * BLK * ae;
        if (vis[i])
            softmax_row(s->kind, w->s + (size_t)i * S_LD, vis[i], width, s->scale, p, &m[i], &l[i]);
        else for (int j = 0; j < width; j += BLK) memset(p + (size_t)j * 16 * ae, 0, BLK * ae);
    }
    if (!values) return;
    mul_block(s->kind, w->op, (size_t)kb * BLK, w->p, PANEL / BLK, rows,
              panel + (size_t)(PANEL / BLK) * kb * block, (size_t)(PANEL / BLK) * block,
              s->head_dim, width / BLK, false);
}

// (m, l, o) <- (m, l, o) folded with (mp, lp, op)
static inline void fold(float *m, float *l, float *o, float mp, float lp, const float *op, int hd) {
    float top = *m > mp ? *m : mp, a = fexp2(*m - top), b = fexp2(mp - top);
    for (int i = 0; i < hd; i++) o[i] = fmaf(o[i], a, op[i] * b);
    *l = fmaf(*l, a, lp * b);
    *m = top;
}

// ---------------------------------------------------------------------------
// attn_rows: up to 128 rows share each packed panel while it is in cache

static void rows_panel(const AttnShape *s, const AttnRows *a, Work *w, int p, bool *seen) {
    int kb = channel_blocks(s), vis[STRIP_ROWS];
    size_t dp = (size_t)kb * BLK;
    const char *panel = (const char *)a->panels + (size_t)p * attn_panel_bytes(s);
    for (int r = 0; r < a->rows; r += STRIP_ROWS) {
        int rows = a->rows - r < STRIP_ROWS ? a->rows - r : STRIP_ROWS, any = 0;
        float m[STRIP_ROWS], l[STRIP_ROWS];
        for (int i = 0; i < rows; i++) {
            int v = a->vis0 + (r + i) * a->vis_step - p * PANEL;
            vis[i] = v < 0 ? 0 : v > PANEL ? PANEL : v;
            any |= vis[i];
        }
        if (!any) continue;
        strip_panel(s, w, panel, w->q + (size_t)r * dp * act_elem(s->kind), rows, vis,
                    a->out != NULL, m, l);
        for (int i = 0; i < rows; i++) {
            int row = r + i;
            if (!vis[i]) continue;
            if (a->scores) scores_out(a->scores + (size_t)row * a->ld_scores + (size_t)p * PANEL,
                                      w->s + (size_t)i * S_LD, vis[i], s->scale);
            float *op = w->op + (size_t)i * dp, *o = w->o + (size_t)row * dp;
            if (seen[row])
                fold(&w->m[row], &w->l[row], o, m[i], l[i], op, a->out ? s->head_dim : 0);
            else {
                w->m[row] = m[i];
                w->l[row] = l[i];
                if (a->out) memcpy(o, op, (size_t)s->head_dim * sizeof *o);
                seen[row] = true;
            }
        }
    }
}

void attn_rows(const AttnShape *s, const AttnRows *a, void *scratch) {
    bool seen[ATTN_ROWS] = { false };
    size_t dp = (size_t)channel_blocks(s) * BLK;
    int last = a->vis0 + (a->rows - 1) * a->vis_step;
    Work w;
    work_at(s, scratch, &w);
    act_pack(s->kind, w.q, a->q, a->ldq, a->rows, s->head_dim);
    for (int p = 0; p * PANEL < last; p++) rows_panel(s, a, &w, p, seen);
    for (int i = 0; i < a->rows; i++) {
        if (a->out)
            for (int c = 0; c < s->head_dim; c++)
                a->out[(size_t)i * a->ldo + c] = w.o[(size_t)i * dp + c] / w.l[i];
        if (a->lse2) a->lse2[i] = w.m[i] + flog2(w.l[i]);
    }
}

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
    Work w;
    work_at(s, scratch, &w);
    for (int i = 0; i < rows; i++)
        act_row(s->kind, w.q, i, t[i / group].q + (size_t)(i % group) * hd, hd);
    for (int e = 0; e < blocks;
         e += STEP_BLOCKS) { // keys are packed where their product finds them in cache
        int m = blocks - e < STEP_BLOCKS ? blocks - e : STEP_BLOCKS;
        for (int b = 0; b < m; b++)
            pack_key_block(s, w.block + (size_t)(b * kb) * block, list, first + e + b, list->len,
                           &w.turn);
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
        softmax_row(s->kind, si, count, blocks * BLK, s->scale, pi, &of->part[h],
                    &of->part[group + h]);
    }
    for (int e = 0; e < blocks; e += STEP_BLOCKS) {
        int m = blocks - e < STEP_BLOCKS ? blocks - e : STEP_BLOCKS;
        for (int b = 0; b < m; b++)
            pack_value_block(s, w.block + (size_t)b * block, STEP_BLOCKS * block, list,
                             first + e + b, list->len);
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
