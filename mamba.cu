// mamba.cu - Mamba-2, the state space duality of Dao and Gu (arXiv 2405.21060), and
// Mamba-Codestral.
#include "kernels.h"
#include <omp.h>

enum { CHUNK = 64 };                    // tokens between two states S, absolute positions

// ---------------------------------------------------------------------------
// State of one layer

typedef struct {
    float *tail;                        // (K - 1, X) the newest inputs of the convolution
    float *s;                           // (J, N, P) S at the last multiple of 64 tokens
    char *rows;                         // (64, X) x|B|C of the tokens since, bf16 or fp32
    float *dt;                          // (64, J) of the same tokens
} State;

static size_t state_carve(const Config *c, char *base, State *s) {
    size_t X = (size_t)c->ssm_inner + 2 * (size_t)c->ssm_groups * c->ssm_state, at = 0;
    size_t elem = c->dtype == DT_F32 ? 4 : 2;
#define CARVE(field, type, count)                                                                  \
    (s->field = (type *)(base + at), at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(tail, float, (size_t)(c->ssm_conv - 1) * X);
    CARVE(s, float, (size_t)c->ssm_inner * c->ssm_state);
    CARVE(rows, char, CHUNK * X * elem);
    CARVE(dt, float, (size_t)CHUNK * c->ssm_heads);
#undef CARVE
    return at;
}

size_t mamba_state_bytes(const Config *c) {
    static char base[1];                // only offsets are wanted
    State s;
    return state_carve(c, base, &s);
}

// ---------------------------------------------------------------------------
// Weights: the one list of names and shapes (scb.h)

int mamba_bind(Weights *w, const Config *c, Loader *from, Err *err) {
    int E = c->dim, D = c->ssm_inner, J = c->ssm_heads, X = D + 2 * c->ssm_groups * c->ssm_state;
    char name[64];
#define MATRIX(field, key, n, k, rows)                                                             \
    if (from->matrix(from, &(field), key, n, k, rows, err)) return -1
#define VECTOR(field, key, n, k) if (from->vector(from, &(field), key, n, k, err)) return -1
#define NAME(key) (snprintf(name, sizeof name, "layers.%d." key, l), name)
    w->layer = (LlamaLayer *)xrealloc(NULL, sizeof *w->layer * (size_t)c->n_layers);
    memset(w->layer, 0, sizeof *w->layer * (size_t)c->n_layers);
    w->ssm = (SsmLayer *)xrealloc(NULL, sizeof *w->ssm * (size_t)c->n_layers);
    memset(w->ssm, 0, sizeof *w->ssm * (size_t)c->n_layers);
    MATRIX(w->embed, "embed", c->vocab_size, E, !c->tied);
    for (int l = 0; l < c->n_layers; l++) {
        SsmLayer *s = &w->ssm[l];
        VECTOR(w->layer[l].attn_norm, NAME("attn_norm"), E, 0);
        MATRIX(s->wz, NAME("wz"), D, E, false);
        MATRIX(s->wx, NAME("wx"), X, E, false);
        MATRIX(s->wdt, NAME("wdt"), J, E, false);
        VECTOR(s->conv, NAME("conv"), c->ssm_conv, X);
        VECTOR(s->conv_bias, NAME("conv_bias"), X, 0);
        VECTOR(s->dt_bias, NAME("dt_bias"), J, 0);
        VECTOR(s->a, NAME("a"), J, 0);
        VECTOR(s->d, NAME("d"), J, 0);
        VECTOR(s->gate_norm, NAME("gate_norm"), D, 0);
        MATRIX(s->wout, NAME("wout"), E, D, false);
    }
    VECTOR(w->final_norm, "final_norm", E, 0);
    if (c->tied) w->head = w->embed;
    else MATRIX(w->head, "lm_head", c->vocab_size, E, false);
#undef MATRIX
#undef VECTOR
#undef NAME
    return 0;
}

// ---------------------------------------------------------------------------
// Causal convolution

static const float *conv_input(const Conv *v, int t) {
    return t >= 0 ? v->x + (size_t)t * v->width : v->tail + (size_t)(v->taps - 1 + t) * v->width;
}

void conv_row(const Conv *v, int t, float *y) {
    memcpy(y, v->bias, (size_t)v->width * sizeof *y);
    for (int k = 0; k < v->taps; k++) {
        const float *w = v->w + (size_t)k * v->width, *x = conv_input(v, t - v->taps + 1 + k);
        for (int i = 0; i < v->width; i++) y[i] = fmaf(w[i], x[i], y[i]);
    }
    for (int i = 0; i < v->width; i++) y[i] = fsilu(y[i]);
}

void conv_keep(const Conv *v, int n) {
    for (int j = 0; j < v->taps - 1; j++)
        memmove(v->tail + (size_t)j * v->width, conv_input(v, n - v->taps + 1 + j),
                (size_t)v->width * sizeof *v->tail);
}

#ifdef SCB_CUDA
// input of channel c at token t, which may lie before the first
__device__ static float conv_at(const DeviceConv *a, const float *x, const float *tail, int t,
                                int c) {
    return t >= 0 ? x[(size_t)t * a->width + c] : tail[(size_t)(a->taps - 1 + t) * a->width + c];
}

__device__ static void conv_one(const DeviceConv *a, const float *x, const float *tail, int t,
                                int c, size_t to) {
    float y = a->bias[c];
    for (int k = 0; k < a->taps; k++)
        y = fmaf(a->w[(size_t)k * a->width + c], conv_at(a, x, tail, t - a->taps + 1 + k, c), y);
    y = fsilu(y);
    if (a->y) a->y[to * a->width + c] = y;
    else a->y16[to * a->width + c] = f32_bf16(y);
}

// one channel's tail after n tokens: entry j is read before any later one is written
__device__ static void conv_shift(const DeviceConv *a, const float *x, float *tail, int n, int c) {
    for (int j = 0; j < a->taps - 1; j++)
        tail[(size_t)j * a->width + c] = conv_at(a, x, tail, n - a->taps + 1 + j, c);
}

// grid (channels, n)
__global__ static void conv_k(DeviceConv a) {
    int c = (int)thread_item();
    if (c < a.width) conv_one(&a, a.x, a.tail, blockIdx.y, c, blockIdx.y);
}

__global__ static void conv_keep_k(DeviceConv a) {
    int c = (int)thread_item();
    if (c < a.width) conv_shift(&a, a.x, a.tail, a.n, c);
}

// grid (channels, n): a token of each of n texts; a thread has its channel to itself
__global__ static void conv_step_k(DeviceConv a) {
    int c = (int)thread_item();
    if (c >= a.width) return;
    const float *x = a.x + (size_t)blockIdx.y * a.width;
    float *tail = (float *)(a.each[blockIdx.y] + a.at);
    conv_one(&a, x, tail, 0, c, blockIdx.y);
    conv_shift(&a, x, tail, 1, c);
}

void cuda_conv(const DeviceConv *a, void *stream) {
    dim3 grid(blocks_for(a->width, 128), a->n);
    if (!a->n) return;
    if (a->each) {
        LAUNCH(conv_step_k, grid, 128, 0, stream, *a);
        return;
    }
    LAUNCH(conv_k, grid, 128, 0, stream, *a);
    LAUNCH(conv_keep_k, grid.x, 128, 0, stream, *a);
}
#endif

// ---------------------------------------------------------------------------
// SSD. Per head, with a < 0, step dt_l, input x_l (P), and B_l, C_l (N) of the head's group:
//   S_l = e^(a dt_l) S_{l-1} + dt_l x_l B_l^T,   y_l = S_l C_l + D x_l          (the recurrence)
// In a chunk of 64 tokens that begins at state S, with c_l = a (dt_0 + ... + dt_l):
//   y_l = sum_{s <= l} (C_l . B_s) e^(c_l - c_s) dt_s x_s + e^(c_l) S C_l + D x_l
//   S'  = e^(c_63) S + sum_s e^(c_63 - c_s) dt_s x_s B_s^T
// All four sums are products by the rule of matmul.cu, with operands rounded to bf16 (S too when it
// is read; S itself never is). Chunks begin at absolute multiples of 64, so a token's result does
// not depend on how it was fed. S is kept transposed, (N, P), as the products want it.

#define EXP(x) fexp2((x) * 1.44269504f)
enum { FEW = 4 };                       // tokens of a chunk up to which plain loops are faster

typedef struct {                        // tokens of one text in one layer
    const Config *c;
    const SsmLayer *w;
    MulKind kind;
    size_t elem;                        // bytes of a stored row element and of a tile element
    int J, P, N, G, X, D;
    const char *rows;                   // (at + n, X) x|B|C
    const float *dt;                    // (at + n, J)
    float *s;                           // (J, N, P)
    float *y;                           // (n, D)
    int at, n;                          // tokens of the first chunk fed before, tokens now
    char *group;                        // (chunks, G) GroupPart
    char *desks;                        // (threads) Desk
} Ssd;

static inline void load_row(const Ssd *q, int token, int column, int count, float *out) {
    size_t i = (size_t)token * q->X + (size_t)column;
    const uint16_t *h = (const uint16_t *)(const void *)q->rows + i;
    if (q->elem == 4) memcpy(out, (const float *)(const void *)q->rows + i, (size_t)count * 4);
    else for (int j = 0; j < count; j++) out[j] = bf16_f32(h[j]);
}

static inline void store_row(char *rows, size_t elem, size_t at, const float *x, int count) {
    uint16_t *h = (uint16_t *)(void *)rows + at;
    if (elem == 4) memcpy((float *)(void *)rows + at, x, (size_t)count * 4);
    else for (int j = 0; j < count; j++) h[j] = f32_bf16(x[j]);
}

static inline float rounded(MulKind kind, float x) { return kind == MUL_F32 ? x : round_bf16(x); }

typedef struct { float dt[CHUNK], c[CHUNK]; } Decay;   // of one head in one chunk

static void decay(const Ssd *q, int head, int first, int count, Decay *to) {
    float a = q->w->a[head], sum = 0;
    for (int s = 0; s < count; s++) {
        to->dt[s] = q->dt[(size_t)(first + s) * q->J + head];
        sum += a * to->dt[s];
        to->c[s] = sum;
    }
}

// (C_l . B_s) e^(c_l - c_s) dt_s of s = 0 .. l
static void mix_weights(const Decay *z, int l, const float *gram, float *m) {
    for (int s = 0; s <= l; s++) m[s] = gram[s] * EXP(z->c[l] - z->c[s]) * z->dt[s];
}

// y += sum over rows s of m[s] x_s by the product rule: blocks of 32 rows, even and odd chains.
// x (count, width) is rounded when read
static void sum_rows(MulKind kind, float *y, const float *m, const float *x, int count, int width) {
    enum { W = 64 };
    for (int p = 0; p < width; p += W) {
        int n = width - p < W ? width - p : W;
        for (int b = 0; b < count; b += BLK) {
            float chain[2][W] = { { 0 } };
            for (int s = b; s < count && s < b + BLK; s++) {
                const float *row = x + (size_t)s * width + p;
                float *to = chain[(s - b) & 1];
                for (int i = 0; i < n; i++) to[i] = fmaf(m[s], rounded(kind, row[i]), to[i]);
            }
            for (int i = 0; i < n; i++) y[p + i] += chain[0][i] + chain[1][i];
        }
    }
}

static float dot_rule(const float *a, const float *b, int n) {
    float sum = 0;
    for (int i = 0; i < n; i += BLK) {
        float even = 0, odd = 0;
        for (int j = i; j < n && j < i + BLK; j += 2) {
            even = fmaf(a[j], b[j], even);
            if (j + 1 < n) odd = fmaf(a[j + 1], b[j + 1], odd);
        }
        sum += even + odd;
    }
    return sum;
}

// ---------------------------------------------------------------------------
// Scratch: what the heads of a group share in one chunk, and one thread's operands

typedef struct {
    char *c_act;                        // (64, N) C of the chunk's new tokens
    char *bt_act;                       // (N, 64) B transposed
    float *gram;                        // (64, 64) C_l . B_s, rows are new tokens
} GroupPart;

typedef struct {
    float *x, *b;                       // (64, P) x of the chunk; (N, 64) B transposed
    float *row, *m;                     // (max(N, P)); (64)
    float *diag, *off, *add;            // (64, P) (64, P) (N, P) products
    char *tiles, *s_tiles, *act;        // x or B (64 tokens), S, one operand (64, 64)
} Desk;

static size_t tile_bytes(size_t elem, int columns, int k) {
    return (size_t)CEIL_DIV(columns, 32) * (size_t)CEIL_DIV(k, BLK) * 1024 * elem;
}

#define CARVE(field, type, count)                                                                  \
    (field = (type *)(base + at), at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
static size_t group_carve(const Config *c, char *base, GroupPart *g) {
    MulKind kind = mul_kind(c->dtype);
    size_t at = 0;
    CARVE(g->c_act, char, act_bytes(kind, CHUNK, c->ssm_state));
    CARVE(g->bt_act, char, act_bytes(kind, c->ssm_state, CHUNK));
    CARVE(g->gram, float, CHUNK * CHUNK);
    return at;
}

static size_t desk_carve(const Config *c, char *base, Desk *d) {
    MulKind kind = mul_kind(c->dtype);
    size_t N = (size_t)c->ssm_state, P = (size_t)c->ssm_head_dim, wide = N > P ? N : P, at = 0;
    size_t elem = c->dtype == DT_F32 ? 4 : 2;
    CARVE(d->x, float, CHUNK * P);
    CARVE(d->b, float, N * CHUNK);
    CARVE(d->row, float, wide);
    CARVE(d->m, float, CHUNK);
    CARVE(d->diag, float, CHUNK * P);
    CARVE(d->off, float, CHUNK * P);
    CARVE(d->add, float, N * P);
    size_t x = tile_bytes(elem, (int)P, CHUNK), b = tile_bytes(elem, CHUNK, (int)N);
    CARVE(d->tiles, char, x > b ? x : b);
    CARVE(d->s_tiles, char, tile_bytes(elem, (int)P, (int)N));
    CARVE(d->act, char, act_bytes(kind, CHUNK, CHUNK));
    return (at + 4095) & ~(size_t)4095;
}

static GroupPart group_part(const Ssd *q, int chunk, int g) {
    GroupPart p;
    size_t bytes = group_carve(q->c, q->group, &p);
    group_carve(q->c, q->group + bytes * ((size_t)chunk * q->G + (size_t)g), &p);
    return p;
}

static Desk my_desk(const Ssd *q) {
    Desk d;
    size_t bytes = desk_carve(q->c, q->desks, &d);
    desk_carve(q->c, q->desks + bytes * (size_t)omp_get_thread_num(), &d);
    return d;
}

// rows (R, W) fp32 -> tiles [W/32][R/32]: columns are W, pairs run over rows, zero padded
static void pack_pairs(size_t elem, char *tiles, const float *x, int R, int W) {
    static const float zero[16] = { 0 };
    int rb = CEIL_DIV(R, BLK);
    for (int c = 0; c < CEIL_DIV(W, 32) * 32; c += 16)
        for (int r = 0; r < rb * BLK; r += 2) {
            float part[2][16] = { { 0 } };
            const float *a = r < R ? x + (size_t)r * W + c : zero;
            const float *b = r + 1 < R ? x + (size_t)(r + 1) * W + c : zero;
            size_t at = ((size_t)(c / 32) * rb + (size_t)(r / BLK)) * 1024 +
                        (size_t)(c / 16 % 2) * 512 + (size_t)(r % BLK) * 16;
            if (W - c < 16) {
                size_t bytes = W > c ? (size_t)(W - c) * sizeof *a : 0;
                if (bytes && r < R) memcpy(part[0], a, bytes);
                if (bytes && r + 1 < R) memcpy(part[1], b, bytes);
                a = part[0];
                b = part[1];
            }
            if (elem == 4) {
                float *to = (float *)(void *)tiles + at;
                for (int i = 0; i < 16; i++) { to[2 * i] = a[i]; to[2 * i + 1] = b[i]; }
                continue;
            }
            uint32_t word[16];
            for (int i = 0; i < 16; i++)
                word[i] = (uint32_t)f32_bf16(a[i]) | (uint32_t)f32_bf16(b[i]) << 16;
            memcpy((uint16_t *)(void *)tiles + at, word, sizeof word);
        }
}

// ---------------------------------------------------------------------------
// One chunk as products. l0 .. l1: its tokens fed now; l1 = 64 completes it.

static void group_products(const Ssd *q, int chunk, int g, int l0, int l1) {
    GroupPart p = group_part(q, chunk, g);
    Desk d = my_desk(q);
    int N = q->N, first = chunk * CHUNK, nb = CEIL_DIV(N, BLK);
    int b_at = q->D + g * N, c_at = b_at + q->G * N;
    memset(d.b, 0, (size_t)N * CHUNK * sizeof *d.b);
    for (int s = 0; s < l1; s++) {
        load_row(q, first + s, b_at, N, d.row);
        for (int i = 0; i < N; i++) d.b[(size_t)i * CHUNK + s] = d.row[i];
    }
    for (int l = l0; l < l1; l++) {
        load_row(q, first + l, c_at, N, d.row);
        act_row(q->kind, p.c_act, l - l0, d.row, N);
    }
    pack_pairs(q->elem, d.tiles, d.b, N, CHUNK);
    mul_block(q->kind, p.gram, CHUNK, p.c_act, nb, l1 - l0, d.tiles, (size_t)nb * 1024 * q->elem,
              CHUNK, nb, false);
    if (l1 == CHUNK)
        for (int i = 0; i < N; i++)
            act_row(q->kind, p.bt_act, i, d.b + (size_t)i * CHUNK, CHUNK);
}

// S <- e^(c_63) S + B^T (64, N)^T by (e^(c_63 - c_s) dt_s x_s) (64, P)
static void state_advance(const Ssd *q, Desk *d, const GroupPart *p, int head, const Decay *z) {
    float last = EXP(z->c[CHUNK - 1]), *s = q->s + (size_t)head * q->N * q->P;
    for (int t = 0; t < CHUNK; t++) {
        float w = EXP(z->c[CHUNK - 1] - z->c[t]) * z->dt[t];
        for (int i = 0; i < q->P; i++) d->x[(size_t)t * q->P + i] *= w;
    }
    pack_pairs(q->elem, d->tiles, d->x, CHUNK, q->P);
    mul_block(q->kind, d->add, (size_t)q->P, p->bt_act, 2, q->N, d->tiles, 2048 * q->elem, q->P, 2,
              false);
    for (int i = 0; i < q->N * q->P; i++) s[i] = fmaf(last, s[i], d->add[i]);
}

static void load_x(const Ssd *q, Desk *d, int head, int first, int count) {
    for (int s = 0; s < count; s++)
        load_row(q, first + s, head * q->P, q->P, d->x + (size_t)s * q->P);
}

// y_l = (diag + e^(c_l) off) + D x_l
static void head_out(const Ssd *q, const Desk *d, int head, int token, int l, float c_l,
                     const float *diag, const float *off) {
    float *y = q->y + (size_t)(token - q->at) * q->D + (size_t)head * q->P;
    const float *x = d->x + (size_t)l * q->P;
    float e = EXP(c_l), D = q->w->d[head];
    for (int i = 0; i < q->P; i++) y[i] = fmaf(D, x[i], fmaf(e, off[i], diag[i]));
}

static void head_products(const Ssd *q, int chunk, int head, int l0, int l1) {
    GroupPart p = group_part(q, chunk, head / (q->J / q->G));
    Desk d = my_desk(q);
    int P = q->P, N = q->N, first = chunk * CHUNK, kb = CEIL_DIV(l1, BLK), nb = CEIL_DIV(N, BLK);
    float *s = q->s + (size_t)head * N * P;
    Decay z;
    decay(q, head, first, l1, &z);
    load_x(q, &d, head, first, l1);
    memset(d.m, 0, CHUNK * sizeof *d.m);
    for (int l = l0; l < l1; l++) {
        mix_weights(&z, l, p.gram + (size_t)(l - l0) * CHUNK, d.m);
        act_row(q->kind, d.act, l - l0, d.m, kb * BLK);
    }
    pack_pairs(q->elem, d.tiles, d.x, l1, P);
    pack_pairs(q->elem, d.s_tiles, s, N, P);
    mul_block(q->kind, d.diag, (size_t)P, d.act, kb, l1 - l0, d.tiles,
              (size_t)kb * 1024 * q->elem, P, kb, false);
    mul_block(q->kind, d.off, (size_t)P, p.c_act, nb, l1 - l0, d.s_tiles,
              (size_t)nb * 1024 * q->elem, P, nb, false);
    for (int l = l0; l < l1; l++)
        head_out(q, &d, head, first + l, l, z.c[l], d.diag + (size_t)(l - l0) * P,
                 d.off + (size_t)(l - l0) * P);
    if (l1 == CHUNK) state_advance(q, &d, &p, head, &z);
}

// ---------------------------------------------------------------------------
// A few tokens of one chunk by plain loops: the same sums without packing S

static void group_plain(const Ssd *q, int chunk, int g, int l0, int l1) {
    GroupPart p = group_part(q, chunk, g);
    Desk d = my_desk(q);
    int N = q->N, first = chunk * CHUNK, b_at = q->D + g * N, c_at = b_at + q->G * N;
    for (int l = l0; l < l1; l++) {
        load_row(q, first + l, c_at, N, d.row);
        for (int s = 0; s <= l; s++) {
            load_row(q, first + s, b_at, N, d.b);
            p.gram[(l - l0) * CHUNK + s] = dot_rule(d.row, d.b, N);
        }
    }
}

static void head_plain(const Ssd *q, int chunk, int head, int l0, int l1) {
    int g = head / (q->J / q->G), P = q->P, N = q->N, first = chunk * CHUNK;
    GroupPart p = group_part(q, chunk, g);
    Desk d = my_desk(q);
    const float *s = q->s + (size_t)head * N * P;
    Decay z;
    decay(q, head, first, l1, &z);
    load_x(q, &d, head, first, l1);
    for (int l = l0; l < l1; l++) {
        mix_weights(&z, l, p.gram + (size_t)(l - l0) * CHUNK, d.m);
        for (int t = 0; t <= l; t++) d.m[t] = rounded(q->kind, d.m[t]);
        memset(d.diag, 0, (size_t)P * sizeof *d.diag);
        memset(d.off, 0, (size_t)P * sizeof *d.off);
        sum_rows(q->kind, d.diag, d.m, d.x, l + 1, P);
        load_row(q, first + l, q->D + q->G * N + g * N, N, d.row);
        sum_rows(q->kind, d.off, d.row, s, N, P);
        head_out(q, &d, head, first + l, l, z.c[l], d.diag, d.off);
    }
}

static bool is_few(int l0, int l1) { return l1 - l0 <= FEW && l1 < CHUNK; }

// y of tokens at .. at + n; S advances by every chunk that completes
static void ssd(const Ssd *q) {
    int chunks = CEIL_DIV(q->at + q->n, CHUNK);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < chunks * q->G; i++) {
            int k = i / q->G, l0 = k ? 0 : q->at, l1 = q->at + q->n - k * CHUNK;
            if (l1 > CHUNK) l1 = CHUNK;
            (is_few(l0, l1) ? group_plain : group_products)(q, k, i % q->G, l0, l1);
        }
#pragma omp for schedule(dynamic, 1)
        for (int head = 0; head < q->J; head++)
            for (int k = 0; k < chunks; k++) {
                int l0 = k ? 0 : q->at, l1 = q->at + q->n - k * CHUNK;
                if (l1 > CHUNK) l1 = CHUNK;
                (is_few(l0, l1) ? head_plain : head_products)(q, k, head, l0, l1);
            }
    }
}

#ifdef SCB_CUDA
// ---------------------------------------------------------------------------
// SSD on the device. A feed: C_l . B_s of every chunk and group first, in parallel; then a block
// per head and 32 of its P channels walks the chunks with its part of S in registers, as
// accumulators of the product that advances it. All four sums are tensor-core products.

enum { SSD_THREADS = 128, SSD_P = 32, X_LD = SSD_P / 2 + 4 }; // words of a row of x, 16-byte pieces

typedef struct {                // a layer's state and shape as kernels see it
    float *tail, *s, *dt;
    uint16_t *rows;
    int J, P, N, G, D, X;
} Lane;

// offsets as in state_carve, bf16 rows
HD static size_t lane_align(size_t bytes) { return (bytes + 63) & ~(size_t)63; }
HD static Lane lane_of(const MambaMix *a, char *state) {
    Lane l;
    l.J = a->heads;
    l.P = a->head_dim;
    l.N = a->state;
    l.G = a->groups;
    l.D = l.J * l.P;
    l.X = l.D + 2 * l.G * l.N;
    size_t s = lane_align((size_t)(a->taps - 1) * l.X * 4),
           rows = s + lane_align((size_t)l.D * l.N * 4);
    l.tail = (float *)state;
    l.s = (float *)(state + s);
    l.rows = (uint16_t *)(state + rows);
    l.dt = (float *)(state + rows + lane_align((size_t)CHUNK * l.X * 2));
    return l;
}

// 64 rows of count bf16 columns into rows of ld words, zeros behind both; 16 bytes at a time where
// rows are whole pieces of them
__device__ static void load_tile(uint32_t *to, int ld, const uint16_t *from, size_t row, int rows,
                                 int count, int width) {
    if (row % 8 || count % 8 || (size_t)from % 16) {
        for (int i = threadIdx.x; i < CHUNK * width; i += SSD_THREADS) {
            int r = i / width, c = i % width;
            ((uint16_t *)(to + r * ld))[c] = r < rows && c < count ? from[r * row + c] : 0;
        }
        return;
    }
    for (int i = threadIdx.x; i < CHUNK * width / 8; i += SSD_THREADS) {
        int r = i / (width / 8), c = i % (width / 8);
        bool wanted = r < rows && c * 8 < count;
        cp_async16(to + r * ld + c * 4, wanted ? from + r * row + c * 8 : from, wanted);
    }
}

// fragments from rows of ld words; row0, k0 in elements. A (16 rows, 16 k): row-major rows, or with
// trans stored [k][row]. B of two neighbouring tiles of 8 columns: stored [column][k], or
// [k][column]
__device__ static void fragment_a(uint32_t a[4], const uint32_t *t, int ld, int row0, int k0) {
    int lane = threadIdx.x % 32, m = lane / 8, r = lane % 8;
    ldmatrix_x4(a, t + (row0 + m % 2 * 8 + r) * ld + (k0 + m / 2 * 8) / 2);
}
__device__ static void fragment_a_trans(uint32_t a[4], const uint32_t *t, int ld, int row0,
                                        int k0) {
    int lane = threadIdx.x % 32, m = lane / 8, r = lane % 8;
    ldmatrix_x4_trans(a, t + (k0 + m / 2 * 8 + r) * ld + (row0 + m % 2 * 8) / 2);
}
__device__ static void fragment_b(uint32_t b[4], const uint32_t *t, int ld, int column0, int k0) {
    int lane = threadIdx.x % 32, m = lane / 8, r = lane % 8;
    ldmatrix_x4(b, t + (column0 + m / 2 * 8 + r) * ld + (k0 + m % 2 * 8) / 2);
}
__device__ static void fragment_b_trans(uint32_t b[4], const uint32_t *t, int ld, int column0,
                                        int k0) {
    int lane = threadIdx.x % 32, m = lane / 8, r = lane % 8;
    ldmatrix_x4_trans(b, t + (k0 + m % 2 * 8 + r) * ld + (column0 + m / 2 * 8) / 2);
}

__device__ static int tokens_of(const MambaMix *a, int chunk) {        // of a chunk, after the feed
    int all = (int)(a->pos % CHUNK) + a->n - chunk * CHUNK;
    return all < CHUNK ? all : CHUNK;
}

// grid (chunks, G): gram (chunk, group, 64, 64), columns up to the end of a row's tile of 16
__global__ static void ssd_gram_k(MambaMix a) {
    DYN_SHARED(uint32_t, shared);
    Lane z = lane_of(&a, a.one);
    int chunk = blockIdx.x, wide = CEIL_DIV(z.N, 16) * 16, ld = wide / 2 + 4,
        lane = threadIdx.x % 32;
    int row0 = threadIdx.x / 32 * 16, rows = tokens_of(&a, chunk);
    uint32_t *c = shared, *b = shared + CHUNK * ld;
    const uint16_t *from = a.rows + (size_t)chunk * CHUNK * z.X + z.D + blockIdx.y * z.N;
    load_tile(b, ld, from, z.X, rows, z.N, wide);
    load_tile(c, ld, from + z.G * z.N, z.X, rows, z.N, wide);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    float d[8][4] = { { 0 } };
    for (int k = 0; k < wide; k += 16) {
        uint32_t x[4], y[4];
        fragment_a(x, c, ld, row0, k);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (n * 16 > row0) continue;
            fragment_b(y, b, ld, n * 16, k);
            mma_bf16(d[2 * n], x, y);
            mma_bf16(d[2 * n + 1], x, y + 2);
        }
    }
    float *to = a.gram + ((size_t)chunk * z.G + blockIdx.y) * CHUNK * CHUNK;
#pragma unroll
    for (int n = 0; n < 8; n++)
        for (int i = 0; i < 4 && n * 8 < row0 + 16; i++)
            to[(row0 + lane / 4 + i / 2 * 8) * CHUNK + n * 8 + lane % 4 * 2 + i % 2] = d[n][i];
}

typedef struct {                // shared memory of a block
    uint32_t *b, *c;            // (64, N) rows of ld words
    uint32_t *x, *w;            // (64, 32) inputs, and weighed ones; rows of X_LD words
    uint32_t *s;                // (N, 32) S rounded
    float *dt, *sum;            // (64) steps, and their cumulative a dt
    int wide, ld;               // N in whole tiles
} Board;

__device__ static Board board_at(uint32_t *shared, int N) {
    Board t;
    t.wide = CEIL_DIV(N, 16) * 16;
    t.ld = t.wide / 2 + 4;
    t.b = shared;
    t.c = t.b + CHUNK * t.ld;
    t.x = t.c + CHUNK * t.ld;
    t.w = t.x + CHUNK * X_LD;
    t.s = t.w + CHUNK * X_LD;
    t.dt = (float *)(t.s + t.wide * X_LD);
    t.sum = t.dt + CHUNK;
    return t;
}
static size_t board_bytes(int N) {
    size_t wide = (size_t)CEIL_DIV(N, 16) * 16;
    return (2 * CHUNK * (wide / 2 + 4) + (2 * CHUNK + wide) * X_LD + 2 * CHUNK) * 4;
}

// the decays of one head, and its inputs weighed for the next state once the chunk is complete
__device__ static void ssd_weigh(const Board *t, float a, int rows) {
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int s = 0; s < rows; s++) t->sum[s] = sum += a * t->dt[s];
    }
    __syncthreads();
    for (int i = threadIdx.x; rows == CHUNK && i < CHUNK * SSD_P; i += SSD_THREADS) {
        int s = i / SSD_P, p = i % SSD_P;
        float w = EXP(t->sum[CHUNK - 1] - t->sum[s]) * t->dt[s];
        ((uint16_t *)(t->w + s * X_LD))[p] =
            f32_bf16(bf16_f32(((const uint16_t *)(t->x + s * X_LD))[p]) * w);
    }
}

__device__ static uint32_t pair_bf16(float low, float high) {
    return (uint32_t)f32_bf16(low) | (uint32_t)f32_bf16(high) << 16;
}

// rows row0 .. row0 + 15 of a chunk: diag += mix x, off += C S
__device__ static void ssd_rows(const Board *t, const float *gram, int row0, int rows,
                                float diag[4][4], float off[4][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
    uint32_t m[4], x[4];
    for (int k = 0; k <= row0; k += 16) {       // tokens s
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int l = row0 + g + i % 2 * 8, s = k + c + i / 2 * 8;
            float v[2] = { 0, 0 };
            for (int j = 0; j < 2; j++)
                if (s + j <= l && l < rows)
                    v[j] = gram[l * CHUNK + s + j] * EXP(t->sum[l] - t->sum[s + j]) * t->dt[s + j];
            m[i] = pair_bf16(v[0], v[1]);
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            fragment_b_trans(x, t->x, X_LD, n * 16, k);
            mma_bf16(diag[2 * n], m, x);
            mma_bf16(diag[2 * n + 1], m, x + 2);
        }
    }
    for (int k = 0; k < t->wide; k += 16) {     // state channels
        fragment_a(m, t->c, t->ld, row0, k);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            fragment_b_trans(x, t->s, X_LD, n * 16, k);
            mma_bf16(off[2 * n], m, x);
            mma_bf16(off[2 * n + 1], m, x + 2);
        }
    }
}

// S <- e^(c_63) S + B^T w: state channels 16 (warp + 4 i) .. are in s[i]
template <int TILES>
__device__ static void ssd_advance(const Board *t, float s[TILES][4][4]) {
    float last = EXP(t->sum[CHUNK - 1]);
    uint32_t a[4], x[4];
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int n0 = (threadIdx.x / 32 + 4 * i) * 16;
        float add[4][4] = { { 0 } };
        if (n0 >= t->wide) continue;
        for (int k = 0; k < CHUNK; k += 16) {
            fragment_a_trans(a, t->b, t->ld, n0, k);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                fragment_b_trans(x, t->w, X_LD, n * 16, k);
                mma_bf16(add[2 * n], a, x);
                mma_bf16(add[2 * n + 1], a, x + 2);
            }
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
            for (int j = 0; j < 4; j++) s[i][n][j] = fmaf(last, s[i][n][j], add[n][j]);
    }
}

// S of a head between memory and registers; in shared memory it is rounded
enum { S_LOAD, S_STORE, S_ROUND };
template <int TILES, int WHAT>
__device__ static void ssd_state(const Board *t, float *from, int N, int P, int p0,
                                 float s[TILES][4][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < TILES; i++)
        for (int n = 0; n < 4; n++)
            for (int j = 0; j < 4; j++) {
                int at = (threadIdx.x / 32 + 4 * i) * 16 + lane / 4 + j / 2 * 8;
                int p = n * 8 + lane % 4 * 2 + j % 2;
                bool in = at < N && p0 + p < P;
                if (WHAT == S_LOAD) s[i][n][j] = in ? from[(size_t)at * P + p0 + p] : 0.0f;
                if (WHAT == S_STORE && in) from[(size_t)at * P + p0 + p] = s[i][n][j];
                if (WHAT == S_ROUND && at < t->wide && j % 2 == 0)
                    t->s[at * X_LD + p / 2] = pair_bf16(s[i][n][j], s[i][n][j + 1]);
            }
}

// grid (J, P / 32)
template <int TILES>
__global__ static void ssd_k(MambaMix a) {
    DYN_SHARED(uint32_t, shared);
    Lane z = lane_of(&a, a.one);
    Board t = board_at(shared, z.N);
    int head = blockIdx.x, p0 = blockIdx.y * SSD_P, group = head / (z.J / z.G);
    int at = (int)(a.pos % CHUNK), row0 = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    float s[TILES][4][4], *state = z.s + (size_t)head * z.N * z.P;
    ssd_state<TILES, S_LOAD>(&t, state, z.N, z.P, p0, s);
    for (int chunk = 0; chunk * CHUNK < at + a.n; chunk++) {
        int rows = tokens_of(&a, chunk), count = z.P - p0 < SSD_P ? z.P - p0 : SSD_P;
        const uint16_t *from = a.rows + (size_t)chunk * CHUNK * z.X;
        __syncthreads();                        // the tiles of the chunk before are read no more
        load_tile(t.b, t.ld, from + z.D + group * z.N, z.X, rows, z.N, t.wide);
        load_tile(t.c, t.ld, from + z.D + (z.G + group) * z.N, z.X, rows, z.N, t.wide);
        load_tile(t.x, X_LD, from + head * z.P + p0, z.X, rows, count, SSD_P);
        cp_async_commit();
        for (int i = threadIdx.x; i < rows; i += SSD_THREADS)
            t.dt[i] = a.row_dt[((size_t)chunk * CHUNK + i) * z.J + head];
        ssd_state<TILES, S_ROUND>(&t, NULL, z.N, z.P, p0, s);
        cp_async_wait<0>();
        __syncthreads();
        ssd_weigh(&t, a.a[head], rows);
        float diag[4][4] = { { 0 } }, off[4][4] = { { 0 } };
        if (row0 < rows)
            ssd_rows(&t, a.gram + ((size_t)chunk * z.G + group) * CHUNK * CHUNK, row0, rows, diag,
                     off);
#pragma unroll
        for (int n = 0; n < 4; n++)
            for (int j = 0; j < 4; j++) {
                int l = row0 + lane / 4 + j / 2 * 8, p = n * 8 + lane % 4 * 2 + j % 2;
                int token = chunk * CHUNK + l - at;
                if (l >= rows || token < 0 || p >= count) continue;
                float x = bf16_f32(((const uint16_t *)(t.x + l * X_LD))[p]);
                a.y[(size_t)token * z.D + head * z.P + p0 + p] =
                    fmaf(a.d[head], x, fmaf(EXP(t.sum[l]), off[n][j], diag[n][j]));
            }
        __syncthreads();                        // weighed inputs are complete
        if (rows == CHUNK) ssd_advance<TILES>(&t, s);
    }
    ssd_state<TILES, S_STORE>(&t, state, z.N, z.P, p0, s);
}

// grid (J, rows): dt of the new tokens behind those of the chunk begun
__global__ static void mamba_dt_k(MambaMix a, int at) {
    size_t i = thread_item();
    if (i >= (size_t)a.n * a.heads) return;
    a.row_dt[(size_t)at * a.heads + i] = fsoftplus(a.dt[i] + a.dt_bias[i % a.heads]);
}

template <int TILES>
static void ssd_launch(const MambaMix *a, void *stream) {
    size_t bytes = board_bytes(a->state);
    CUDA_OK(cudaFuncSetAttribute(ssd_k<TILES>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)bytes));
    LAUNCH(ssd_k<TILES>, dim3(a->heads, CEIL_DIV(a->head_dim, SSD_P)), SSD_THREADS, bytes, stream,
           *a);
}

static void copy_rows(void *to, const void *from, size_t bytes, void *stream) {
    if (bytes)
        CUDA_OK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, (cudaStream_t)stream));
}

void cuda_mamba_feed(const MambaMix *a, void *stream) {
    Lane z = lane_of(a, a->one);
    int at = (int)(a->pos % CHUNK), all = at + a->n, left = all % CHUNK,
        wide = CEIL_DIV(z.N, 16) * 16;
    size_t X = (size_t)z.X, J = (size_t)z.J, gram_bytes = 2 * CHUNK * ((size_t)wide / 2 + 4) * 4;
    DeviceConv conv = { a->conv, a->conv_bias, a->in, z.tail, NULL, 0, NULL, a->rows + at * X,
                        a->taps, z.X, a->n };
    if (!a->n) return;
    copy_rows(a->rows, z.rows, at * X * 2, stream);
    copy_rows(a->row_dt, z.dt, at * J * 4, stream);
    cuda_conv(&conv, stream);
    LAUNCH(mamba_dt_k, blocks_for(a->n * J, 128), 128, 0, stream, *a, at);
    CUDA_OK(cudaFuncSetAttribute(ssd_gram_k, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)gram_bytes));
    LAUNCH(ssd_gram_k, dim3(CEIL_DIV(all, CHUNK), z.G), SSD_THREADS, gram_bytes, stream, *a);
    if (z.N <= 64) ssd_launch<1>(a, stream);
    else if (z.N <= 128) ssd_launch<2>(a, stream);
    else ssd_launch<4>(a, stream);
    copy_rows(z.rows, a->rows + (size_t)(all - left) * X, left * X * 2, stream);
    copy_rows(z.dt, a->row_dt + (size_t)(all - left) * J, left * J * 4, stream);
}

// ---------------------------------------------------------------------------
// One token of each of n texts, by the sums of the plain loops: a thread takes a block of 32 terms
// of one sum, and the blocks are added in order.

// even and odd chain of up to 32 terms u v, which may name i
#define CHAIN(count, u, v)                                                                         \
    for (int i = 0; i < (count); i++) {                                                            \
        float *to = i % 2 ? &odd : &even;                                                          \
        *to = fmaf(u, v, *to);                                                                     \
    }

// weights m of tokens 0 .. l for the newest one, and the cumulative sums
__device__ static void step_mix(const MambaMix *a, const Lane *z, int head, int l, float *part,
                                float *dt, float *sum, float *m) {
    int group = head / (z->J / z->G), nb = CEIL_DIV(z->N, BLK);
    const uint16_t *b = z->rows + z->D + group * z->N, *c = b + (size_t)l * z->X + z->G * z->N;
    for (int i0 = threadIdx.x; i0 < nb * (l + 1); i0 += blockDim.x) {
        int s = i0 / nb, n0 = i0 % nb * BLK, n = z->N - n0 < BLK ? z->N - n0 : BLK;
        const uint16_t *x = b + (size_t)s * z->X + n0;
        float even = 0, odd = 0;
        CHAIN(n, bf16_f32(c[n0 + i]), bf16_f32(x[i]))
        part[i0] = even + odd;
    }
    for (int s = threadIdx.x; s < l; s += blockDim.x) dt[s] = z->dt[(size_t)s * z->J + head];
    __syncthreads();
    if (threadIdx.x == 0) {
        float y = 0;
        for (int s = 0; s <= l; s++) sum[s] = y += a->a[head] * dt[s];
    }
    __syncthreads();
    for (int s = threadIdx.x; s <= l; s += blockDim.x) {
        float y = 0;
        for (int k = 0; k < nb; k++) y += part[s * nb + k];
        m[s] = round_bf16(y * EXP(sum[l] - sum[s]) * dt[s]);
    }
    __syncthreads();
}

// S of a head whose chunk is complete
__device__ static void step_advance(const Lane *z, int head, const float *dt, const float *sum) {
    float last = EXP(sum[CHUNK - 1]), *s = z->s + (size_t)head * z->N * z->P;
    const uint16_t *x = z->rows + head * z->P, *b = z->rows + z->D + head / (z->J / z->G) * z->N;
    for (int at = threadIdx.x; at < z->N * z->P; at += blockDim.x) {
        int n = at / z->P, p = at % z->P;
        float add = 0;
        for (int t0 = 0; t0 < CHUNK; t0 += BLK) {
            float even = 0, odd = 0;
            CHAIN(BLK, bf16_f32(b[(size_t)(t0 + i) * z->X + n]),
                  round_bf16(bf16_f32(x[(size_t)(t0 + i) * z->X + p]) *
                             (EXP(sum[CHUNK - 1] - sum[t0 + i]) * dt[t0 + i])))
            add += even + odd;
        }
        s[at] = fmaf(last, s[at], add);
    }
}

enum { STEP_THREADS = 256 };
// grid (J, n), shared (2 + N / 32) P floats: the token's row of its chunk
__global__ static void ssd_step_k(MambaMix a) {
    DYN_SHARED(float, part);
    SHARED(float, grams, CHUNK * 8);
    SHARED(float, dt, CHUNK);
    SHARED(float, sum, CHUNK);
    SHARED(float, m, CHUNK);
    int head = blockIdx.x, text = blockIdx.y, l = (int)(a.each_pos[text] % CHUNK);
    Lane z = lane_of(&a, a.each[text] + a.at);
    int nb = CEIL_DIV(z.N, BLK), group = head / (z.J / z.G), P = z.P;
    const uint16_t *x = z.rows + head * P,
                   *c = z.rows + (size_t)l * z.X + z.D + (z.G + group) * z.N;
    const float *s = z.s + (size_t)head * z.N * P;
    if (threadIdx.x == 0) {
        dt[l] = fsoftplus(a.dt[(size_t)text * z.J + head] + a.dt_bias[head]);
        z.dt[(size_t)l * z.J + head] = dt[l];
    }
    step_mix(&a, &z, head, l, grams, dt, sum, m);
    for (int at = threadIdx.x; at < (2 + nb) * P; at += STEP_THREADS) {
        int k = at / P, p = at % P, first = (k < 2 ? k : k - 2) * BLK;
        int all = k < 2 ? l + 1 : z.N, n = all - first < BLK ? all - first : BLK;
        float even = 0, odd = 0;
        if (k < 2) CHAIN(n, m[first + i], bf16_f32(x[(size_t)(first + i) * z.X + p]))
        else CHAIN(n, bf16_f32(c[first + i]), round_bf16(s[(size_t)(first + i) * P + p]))
        part[at] = even + odd;
    }
    __syncthreads();
    for (int p = threadIdx.x; p < P; p += STEP_THREADS) {
        float diag = 0, off = 0;
        for (int k = 0; k < 2 && k * BLK <= l; k++) diag += part[k * P + p];
        for (int k = 0; k < nb; k++) off += part[(2 + k) * P + p];
        a.y[(size_t)text * z.D + head * P + p] =
            fmaf(a.d[head], bf16_f32(x[(size_t)l * z.X + p]), fmaf(EXP(sum[l]), off, diag));
    }
    if (l == CHUNK - 1) step_advance(&z, head, dt, sum);
}
#undef CHAIN

// grid (channels, n): conv of a token goes straight to its row of the state
__global__ static void mamba_conv_step_k(MambaMix a) {
    int c = (int)thread_item(), text = blockIdx.y;
    Lane z = lane_of(&a, a.each[text] + a.at);
    DeviceConv v = { a.conv, a.conv_bias, a.in + (size_t)text * z.X, z.tail, NULL, 0, NULL, z.rows,
                     a.taps, z.X, 1 };
    if (c >= z.X) return;
    conv_one(&v, v.x, z.tail, 0, c, (size_t)(a.each_pos[text] % CHUNK));
    conv_shift(&v, v.x, z.tail, 1, c);
}

void cuda_mamba_step(const MambaMix *a, void *stream) {
    Lane z = lane_of(a, NULL);
    size_t bytes = (size_t)(2 + CEIL_DIV(z.N, BLK)) * z.P * sizeof(float);
    CHECK(bytes <= 40 << 10, "heads of %d channels on the device", z.P);
    if (!a->n) return;
    LAUNCH(mamba_conv_step_k, dim3(blocks_for(z.X, 128), a->n), 128, 0, stream, *a);
    LAUNCH(ssd_step_k, dim3(z.J, a->n), STEP_THREADS, bytes, stream, *a);
}
#endif

// ---------------------------------------------------------------------------
// Forward of Mamba-Codestral. Per layer: x += W_out norm_g(y * silu(z)), norm_g an RMSNorm over
// each of norm_groups parts; y from (x|B|C) = conv(W_x norm(x)), dt = softplus(W_dt norm(x) + b).

typedef struct {
    FeedBuffers t;
    float *z, *y;                       // (C, D)
    float *in;                          // (C, X) inputs of the convolution
    float *dt;                          // (64 + C, J): tokens of the chunk begun, then the new ones
    char *rows;                         // (64 + C, X)
    char *group, *desks;
    // on a device alone, where of dt only the new ones are there
    float *row_dt;                      // (64 + C, J) steps of all
    float *gram;                        // (C / 64 + 2, G, 64, 64)
    char **each;                        // (C, at most 64) states of a step
    int64_t *each_pos;                  // and positions
} Work;

static int conv_width(const Config *c) { return c->ssm_inner + 2 * c->ssm_groups * c->ssm_state; }

static size_t work_carve(const Config *c, int n, int chunk, char *base, Work *b) {
    size_t at = buffers_carve(c, n, chunk, base, &b->t), C = (size_t)(n < chunk ? n : chunk);
    size_t X = (size_t)conv_width(c), D = (size_t)c->ssm_inner, parts = CEIL_DIV(C, CHUNK) + 1;
    size_t J = (size_t)c->ssm_heads, G = (size_t)c->ssm_groups, cpu = c->device ? 0 : 1;
    size_t device = 1 - cpu, texts = C < (size_t)STEP_BATCH ? C : (size_t)STEP_BATCH;
    GroupPart g;
    Desk d;
    CARVE(b->z, float, C * D);
    CARVE(b->y, float, C * D);
    CARVE(b->in, float, C * X);
    CARVE(b->dt, float, (CHUNK + C) * J);
    CARVE(b->rows, char, (CHUNK + C) * X * (c->dtype == DT_F32 ? 4 : 2));
    CARVE(b->group, char, cpu * parts * G * group_carve(c, base, &g));
    CARVE(b->desks, char, cpu * (size_t)cpu_threads() * desk_carve(c, base, &d));
    CARVE(b->row_dt, float, device * (CHUNK + C) * J);
    CARVE(b->gram, float, device * (C / CHUNK + 2) * G * CHUNK * CHUNK);
    CARVE(b->each, char *, device * texts);
    CARVE(b->each_pos, int64_t, device * texts);
    return at;
}
#undef CARVE

size_t mamba_scratch(const Config *c, int n, int chunk) {
    static char base[1];                // only offsets are wanted
    Work b;
    return work_carve(c, n < 1 ? 1 : n, chunk, base, &b);
}

// n tokens of one text from row first of the products on; the text is at pos and has this state
static void mix_tokens(Forward *f, const Work *b, int layer, char *state, int64_t pos, int first,
                       int n) {
    const Config *c = f->c;
    const SsmLayer *w = &f->w->ssm[layer];
    int X = conv_width(c), J = c->ssm_heads, D = c->ssm_inner, at = (int)(pos % CHUNK);
    size_t elem = c->dtype == DT_F32 ? 4 : 2;
    State st;
    state_carve(c, state, &st);
    Conv conv = { w->conv, w->conv_bias, b->in + (size_t)first * X, st.tail, c->ssm_conv, X };
    Ssd q = { c, w, f->shape->kind, elem, J, c->ssm_head_dim, c->ssm_state, c->ssm_groups, X, D,
              st.rows, st.dt, st.s, b->y + (size_t)first * D, at, n, b->group, b->desks };
    bool inside = at + n <= CHUNK;      // nothing goes beyond the chunk begun: work in place
    char *rows = inside ? st.rows : b->rows;
    float *dt = inside ? st.dt : b->dt;
    if (!inside) {
        memcpy(rows, st.rows, (size_t)at * X * elem);
        memcpy(dt, st.dt, (size_t)at * J * sizeof *dt);
    }
    // the new dt stand behind those of the chunk begun already when this is a feed
    for (int i = 0; i < n; i++) {
        float *to = dt + (size_t)(at + i) * J;
        const float *from = b->dt + (size_t)(CHUNK + first + i) * J;
        for (int j = 0; j < J; j++) to[j] = fsoftplus(from[j] + w->dt_bias[j]);
    }
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        float *y = thread_row(f, &b->t);
        conv_row(&conv, i, y);
        store_row(rows, elem, (size_t)(at + i) * X, y, X);
    }
    conv_keep(&conv, n);
    q.rows = rows;
    q.dt = dt;
    ssd(&q);
    int left = (at + n) % CHUNK, from = at + n - left;
    if (inside) return;
    memcpy(st.rows, rows + (size_t)from * X * elem, (size_t)left * X * elem);
    memcpy(st.dt, dt + (size_t)from * J, (size_t)left * J * sizeof *dt);
}

static void gated_out(Forward *f, const Work *b, int layer, int first, int n) {
    const Config *c = f->c;
    const SsmLayer *w = &f->w->ssm[layer];
    int D = c->ssm_inner, part = D / c->norm_groups;
    LinearJob out = { &w->wout, NULL, b->t.x + (size_t)first * c->dim, (size_t)c->dim, true, NULL };
#ifdef SCB_CUDA
    if (f->device) {
        RowNorm norm = { .x = b->y, .gate = b->z, .w = w->gate_norm, .act = (uint16_t *)b->t.act,
                         .ldx = (size_t)D, .ld_act = (size_t)padded(D), .dim = part,
                         .eps = c->norm_eps };
        cuda_norm(&norm, n, c->norm_groups, device_stream(f->device));
        products(f, &b->t, &out, 1, n);
        return;
    }
#endif
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) {
        float *y = b->y + (size_t)i * D, *t = thread_row(f, &b->t);
        const float *z = b->z + (size_t)i * D;
        for (int j = 0; j < D; j++) y[j] *= fsilu(z[j]);
        for (int j = 0; j < D; j += part)
            rmsnorm(t + j, y + j, w->gate_norm + j, part, c->norm_eps);
        act_row(f->shape->kind, b->t.act, i, t, D);
    }
    products(f, &b->t, &out, 1, n);
}

#ifdef SCB_CUDA
void device_states(const Forward *f, char **each, int64_t *each_pos) {
    char *state[STEP_BATCH];
    int64_t pos[STEP_BATCH];
    for (int i = 0; i < f->n; i++) {
        state[i] = f->of[i].state;
        pos[i] = f->of[i].pos;
    }
    mem_put(f->mem, each, state, (size_t)f->n * sizeof *each);
    if (each_pos) mem_put(f->mem, each_pos, pos, (size_t)f->n * sizeof *pos);
}

static void device_mix(const Forward *f, const Work *b, int layer, int first, int n) {
    const Config *c = f->c;
    const SsmLayer *w = &f->w->ssm[layer];
    size_t at = (size_t)layer * mamba_state_bytes(c);
    void *stream = device_stream(f->device);
    MambaMix a = { .conv = w->conv, .conv_bias = w->conv_bias, .dt_bias = w->dt_bias, .a = w->a,
                   .d = w->d, .in = b->in, .dt = b->dt + (size_t)CHUNK * c->ssm_heads, .y = b->y,
                   .n = n, .heads = c->ssm_heads, .head_dim = c->ssm_head_dim,
                   .state = c->ssm_state, .groups = c->ssm_groups, .taps = c->ssm_conv,
                   .pos = f->pos + first, .rows = (uint16_t *)b->rows, .row_dt = b->row_dt,
                   .gram = b->gram, .each = b->each, .each_pos = b->each_pos, .at = at };
    if (!f->of) a.one = f->state + at;
    if (f->of) cuda_mamba_step(&a, stream);
    else cuda_mamba_feed(&a, stream);
}
#endif

static void mix(Forward *f, const Work *b, int layer, int first, int n) {
    const Config *c = f->c;
    const SsmLayer *w = &f->w->ssm[layer];
    size_t bytes = mamba_state_bytes(c), J = (size_t)c->ssm_heads;
    LinearJob jobs[3] = {
        { &w->wz, NULL, b->z, (size_t)c->ssm_inner, false, NULL },
        { &w->wx, NULL, b->in, (size_t)conv_width(c), false, NULL },
        { &w->wdt, NULL, b->dt + CHUNK * J, J, false, NULL },
    };
    double t0 = now_s();
    norm_act(f, &b->t, b->t.x + (size_t)first * c->dim, f->w->layer[layer].attn_norm, n);
    products(f, &b->t, jobs, 3, n);
    double t1 = now_s();
#ifdef SCB_CUDA
    if (f->device) device_mix(f, b, layer, first, n);
    else
#endif
    if (f->of)
        for (int i = 0; i < n; i++)
            mix_tokens(f, b, layer, f->of[i].state + layer * bytes, f->of[i].pos, i, 1);
    else mix_tokens(f, b, layer, f->state + layer * bytes, f->pos + first, 0, n);
    double t2 = now_s();
    gated_out(f, b, layer, first, n);
    f->phases->attn_s += t2 - t1;
    f->phases->linear_s += now_s() - t2 + t1 - t0;
}

int feed_piece(const Forward *f, int first) {
    int n = f->n - first < f->chunk ? f->n - first : f->chunk;
    return first < f->keep_at && f->keep_at < first + n ? f->keep_at - first : n;
}

void feed_keep(const Forward *f, int first, size_t at, size_t bytes) {
    if (f->kept && first == f->keep_at) mem_copy(f->mem, f->kept + at, f->state + at, bytes);
}

int mamba_feed(Forward *f, Err *err) {
    Work b;
    double t0 = now_s();
    size_t bytes = mamba_state_bytes(f->c);
    work_carve(f->c, f->n < 1 ? 1 : f->n, f->chunk, (char *)f->scratch, &b);
    embed_rows(f, &b.t);
    for (int l = 0; l < f->c->n_layers; l++) {
        if (f->load) f->load(f->load_user, l);
        for (int i = 0, n; i < f->n; i += n) {
            n = feed_piece(f, i);
            feed_keep(f, i, (size_t)l * bytes, bytes);
            mix(f, &b, l, i, n);
            if (feed_report(f, l, i + n)) return FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
        }
        feed_keep(f, f->n, (size_t)l * bytes, bytes);
        feed_tap(f, l, &b.t);
    }
    feed_logits(f, &b.t);
    f->phases->total_s += now_s() - t0;
    return 0;
}

static void step_layers(Forward *f, void *work) {
    const Work *b = (const Work *)work;
    embed_rows(f, &b->t);
    for (int l = 0; l < f->c->n_layers; l++) {
        if (f->load) f->load(f->load_user, l);
        mix(f, b, l, 0, f->n);
        feed_tap(f, l, &b->t);
    }
    feed_logits(f, &b->t);
}

void mamba_step(Forward *f) {
    Work b;
    work_carve(f->c, f->n, f->n, (char *)f->scratch, &b);
#ifdef SCB_CUDA
    if (f->device) device_states(f, b.each, b.each_pos);
#endif
    step_run(f, &b.t, step_layers, &b);
}
