// jamba.cu - Jamba (arXiv 2403.19887, 2408.12570): layers that attend, without positions, among
// Mamba-1 layers (arXiv 2312.00752), and experts in the place of some feed-forward nets.
#include "kernels.h"

// ---------------------------------------------------------------------------
// State of one Mamba-1 layer: (K - 1, D) the newest inputs of the convolution, then h (N, D)

size_t jamba_state_bytes(const Config *c) {
    size_t floats = (size_t)(c->ssm_conv - 1 + c->ssm_state) * c->ssm_inner;
    return (floats * sizeof(float) + 63) & ~(size_t)63;
}

// ---------------------------------------------------------------------------
// Weights: the one list of names and shapes (scb.h)

#define MATRIX(field, key, n, k, rows)                                                             \
    if (from->matrix(from, &(field), key, n, k, rows, err)) return -1
#define VECTOR(field, key, n, k) if (from->vector(from, &(field), key, n, k, err)) return -1
#define NAME(key) (snprintf(name, sizeof name, "layers.%d." key, l), name)

static int bind_attention(LlamaLayer *y, const Config *c, int l, Loader *from, Err *err) {
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    char name[64];
    MATRIX(y->wq, NAME("wq"), q, c->dim, false);
    MATRIX(y->wk, NAME("wk"), kv, c->dim, false);
    MATRIX(y->wv, NAME("wv"), kv, c->dim, false);
    MATRIX(y->wo, NAME("wo"), c->dim, q, false);
    return 0;
}

static int bind_mixer(SsmLayer *s, const Config *c, int l, Loader *from, Err *err) {
    int E = c->dim, D = c->ssm_inner, N = c->ssm_state, R = c->ssm_dt_rank;
    char name[64];
    MATRIX(s->wx, NAME("wx"), D, E, false);
    MATRIX(s->wz, NAME("wz"), D, E, false);
    VECTOR(s->conv, NAME("conv"), c->ssm_conv, D);
    VECTOR(s->conv_bias, NAME("conv_bias"), D, 0);
    MATRIX(s->wp, NAME("wp"), R + 2 * N, D, false);
    VECTOR(s->dt_norm, NAME("dt_norm"), R, 0);
    VECTOR(s->b_norm, NAME("b_norm"), N, 0);
    VECTOR(s->c_norm, NAME("c_norm"), N, 0);
    MATRIX(s->wdt, NAME("wdt"), D, R, false);
    VECTOR(s->dt_bias, NAME("dt_bias"), D, 0);
    VECTOR(s->a, NAME("a"), N, D);
    VECTOR(s->d, NAME("d"), D, 0);
    MATRIX(s->wout, NAME("wout"), E, D, false);
    return 0;
}

static int bind_experts(MoeLayer *m, const Config *c, int l, Loader *from, Err *err) {
    char name[64];
    MATRIX(m->router, NAME("router"), c->n_experts, c->dim, false);
#undef NAME
#define NAME(key) (snprintf(name, sizeof name, "layers.%d.%d." key, l, x), name)
    for (int x = 0; x < c->n_experts; x++) {
        MATRIX(m->expert[x].w1, NAME("w1"), c->hidden_dim, c->dim, false);
        MATRIX(m->expert[x].w3, NAME("w3"), c->hidden_dim, c->dim, false);
        MATRIX(m->expert[x].w2, NAME("w2"), c->dim, c->hidden_dim, false);
    }
#undef NAME
#define NAME(key) (snprintf(name, sizeof name, "layers.%d." key, l), name)
    return 0;
}

static int bind_layer(Weights *w, const Config *c, int l, Loader *from, Err *err) {
    LlamaLayer *y = &w->layer[l];
    char name[64];
    VECTOR(y->attn_norm, NAME("attn_norm"), c->dim, 0);
    if (config_attends(c, l) ? bind_attention(y, c, l, from, err)
                             : bind_mixer(&w->ssm[l], c, l, from, err)) return -1;
    VECTOR(y->ffn_norm, NAME("ffn_norm"), c->dim, 0);
    if (config_routes(c, l)) return bind_experts(&w->moe[l], c, l, from, err);
    MATRIX(y->w1, NAME("w1"), c->hidden_dim, c->dim, false);
    MATRIX(y->w3, NAME("w3"), c->hidden_dim, c->dim, false);
    MATRIX(y->w2, NAME("w2"), c->dim, c->hidden_dim, false);
    return 0;
}

int jamba_bind(Weights *w, const Config *c, Loader *from, Err *err) {
    size_t L = (size_t)c->n_layers, routed = 0;
    for (int l = 0; l < c->n_layers; l++) routed += config_routes(c, l);
    w->layer = (LlamaLayer *)xrealloc(NULL, sizeof *w->layer * L);
    memset(w->layer, 0, sizeof *w->layer * L);
    w->ssm = (SsmLayer *)xrealloc(NULL, sizeof *w->ssm * L);
    memset(w->ssm, 0, sizeof *w->ssm * L);
    w->moe = (MoeLayer *)xrealloc(NULL, sizeof *w->moe * L);
    memset(w->moe, 0, sizeof *w->moe * L);
    w->experts = (Expert *)xrealloc(NULL, sizeof *w->experts * (routed * (size_t)c->n_experts + 1));
    Expert *next = w->experts;
    MATRIX(w->embed, "embed", c->vocab_size, c->dim, !c->tied);
    for (int l = 0; l < c->n_layers; l++) {
        w->moe[l].expert = next;
        if (config_routes(c, l)) next += c->n_experts;
        if (bind_layer(w, c, l, from, err)) return -1;
    }
    VECTOR(w->final_norm, "final_norm", c->dim, 0);
    if (c->tied) w->head = w->embed;
    else MATRIX(w->head, "lm_head", c->vocab_size, c->dim, false);
    return 0;
}
#undef MATRIX
#undef VECTOR
#undef NAME

// ---------------------------------------------------------------------------
// Selective scan (Mamba-1). Per channel c, a (N) < 0, all in fp32:
//   h_n <- e^(dt a_n) h_n + dt B_n u,   y = sum_n C_n h_n + d u,   then y silu(gate)
// B and C are the token's, dt = softplus of the channel's. 16 channels at a time: their states lie
// side by side, and sums over n go to 16 lanes and down the tree of base.h.

typedef struct {
    const SsmLayer *w;
    int D, N, R;
    const float *p;                     // (n, R + 2N): B at R, C at R + N, normalised
    const float *u, *gate;              // (n, D)
    float *y;                           // (n, D) in: dt before softplus; out: y
    float *h;                           // (N, D)
} Scan;

enum { MAX_STATE = 256 };               // config_check

__attribute__((always_inline))
static inline void scan_block(const Scan *q, int N, int first, int count, int n) {
    float h[MAX_STATE][LANES], a[MAX_STATE][LANES], d[LANES] = { 0 };
    for (int j = 0; j < N; j++)
        for (int c = 0; c < LANES; c++) {
            size_t at = (size_t)j * q->D + (size_t)first + (size_t)c;
            h[j][c] = c < count ? q->h[at] : 0.0f;
            a[j][c] = c < count ? q->w->a[at] * 1.44269504f : 0.0f;
        }
    memcpy(d, q->w->d + first, (size_t)count * sizeof *d);
    for (int t = 0; t < n; t++) {
        size_t at = (size_t)t * q->D + (size_t)first;
        const float *B = q->p + (size_t)t * (q->R + 2 * q->N) + q->R, *C = B + q->N;
        float u[LANES] = { 0 }, g[LANES] = { 0 }, dt[LANES] = { 0 }, du[LANES], lane[LANES][LANES];
        memcpy(u, q->u + at, (size_t)count * sizeof *u);
        memcpy(g, q->gate + at, (size_t)count * sizeof *g);
        memcpy(dt, q->y + at, (size_t)count * sizeof *dt);
        for (int c = 0; c < LANES; c++) dt[c] = fsoftplus(dt[c]);
        for (int c = 0; c < LANES; c++) du[c] = dt[c] * u[c];
        for (int j = 0; j < LANES; j++) for (int c = 0; c < LANES; c++) lane[j][c] = 0.0f;
        for (int j = 0; j < N; j++)
            for (int c = 0; c < LANES; c++) {
                h[j][c] = fmaf(fexp2(dt[c] * a[j][c]), h[j][c], du[c] * B[j]);
                lane[j % LANES][c] = fmaf(h[j][c], C[j], lane[j % LANES][c]);
            }
        for (int s = LANES / 2; s; s >>= 1)
            for (int j = 0; j < s; j++)
                for (int c = 0; c < LANES; c++) lane[j][c] += lane[j + s][c];
        for (int c = 0; c < LANES; c++) u[c] = fmaf(d[c], u[c], lane[0][c]) * fsilu(g[c]);
        memcpy(q->y + at, u, (size_t)count * sizeof *u);
    }
    for (int j = 0; j < N; j++)
        memcpy(q->h + (size_t)j * q->D + first, h[j], (size_t)count * sizeof *h[j]);
}

static void scan(const Scan *q, int n) {
    int blocks = CEIL_DIV(q->D, LANES);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < blocks; i++) {
        int first = i * LANES, count = q->D - first < LANES ? q->D - first : LANES;
        if (q->N == 16) scan_block(q, 16, first, count, n);
        else scan_block(q, q->N, first, count, n);
    }
}

#ifdef SCB_CUDA
// On the device 16 threads hold the states of a channel and a block 16 channels. What depends on
// the token alone is computed once for 16 tokens, a thread each; then the block walks them.
enum { SCAN_CHANNELS = 16, SCAN_TOKENS = 16, SCAN_THREADS = SCAN_CHANNELS * LANES };

typedef struct { float dt, du, skip, gate; } ScanToken;

// grid (channels / 16, texts): STATES of the N states to a thread
template <int STATES>
__global__ static void scan_k(DeviceScan q, int n) {
    SHARED(ScanToken, token, SCAN_TOKENS * SCAN_CHANNELS);
    SHARED(float, bc, SCAN_TOKENS * 2 * LANES * STATES);
    SHARED(float, out, SCAN_TOKENS * SCAN_CHANNELS);
    int lane = threadIdx.x % LANES, mine = threadIdx.x / LANES, first = blockIdx.x * SCAN_CHANNELS;
    int c = first + mine, D = q.inner, N = q.state, other = first + lane;   // other: when loading
    float *hold = q.each ? (float *)(q.each[blockIdx.y] + q.at) : q.h, h[STATES], a[STATES];
    size_t row0 = q.each ? blockIdx.y : 0;
#pragma unroll
    for (int k = 0; k < STATES; k++) {
        int j = k * LANES + lane;
        bool in = j < N && c < D;
        h[k] = in ? hold[(size_t)j * D + c] : 0.0f;
        a[k] = in ? q.a[(size_t)j * D + c] * 1.44269504f : 0.0f;
    }
    for (int at = 0; at < n; at += SCAN_TOKENS) {
        int count = n - at < SCAN_TOKENS ? n - at : SCAN_TOKENS;
        size_t row = (row0 + at + mine) * D + other;
        bool load = mine < count && other < D;          // token mine, channel other
        ScanToken x = { 0, 0, 0, 0 };
        if (load) {
            x.dt = fsoftplus(q.y[row]);
            x.du = x.dt * q.u[row];
            x.skip = q.u[row];
            x.gate = fsilu(q.gate[row]);
        }
        token[threadIdx.x] = x;
        for (int i = threadIdx.x; i < count * 2 * N; i += SCAN_THREADS) {
            int t = i / (2 * N), j = i % (2 * N);
            bc[t * 2 * LANES * STATES + (j < N ? j : LANES * STATES + j - N)] =
                q.p[(row0 + at + t) * (q.rank + 2 * N) + q.rank + j];
        }
        __syncthreads();
        for (int t = 0; t < count; t++) {
            ScanToken v = token[t * SCAN_CHANNELS + mine];
            const float *B = bc + t * 2 * LANES * STATES, *C = B + LANES * STATES;
            float sum = 0;
#pragma unroll
            for (int k = 0; k < STATES; k++) {
                int j = k * LANES + lane;
                if (j >= N) continue;
                h[k] = fmaf(fexp2(v.dt * a[k]), h[k], v.du * B[j]);
                sum = fmaf(h[k], C[j], sum);
            }
            sum = half_warp_sum(sum);
            if (lane == 0) out[t * SCAN_CHANNELS + mine] = sum;
        }
        __syncthreads();
        if (load) q.y[row] = fmaf(q.d[other], x.skip, out[threadIdx.x]) * x.gate;
    }
#pragma unroll
    for (int k = 0; k < STATES; k++) {
        int j = k * LANES + lane;
        if (j < N && c < D) hold[(size_t)j * D + c] = h[k];
    }
}

void cuda_scan(const DeviceScan *a, void *stream) {
    dim3 grid(CEIL_DIV(a->inner, SCAN_CHANNELS), a->each ? a->n : 1);
    int n = a->each ? 1 : a->n;
    if (!a->n) return;
    if (a->state <= LANES) LAUNCH(scan_k<1>, grid, SCAN_THREADS, 0, stream, *a, n);
    else if (a->state <= 4 * LANES) LAUNCH(scan_k<4>, grid, SCAN_THREADS, 0, stream, *a, n);
    else LAUNCH(scan_k<16>, grid, SCAN_THREADS, 0, stream, *a, n);
}
#endif

// ---------------------------------------------------------------------------
// Forward. Per layer: x += mixer(norm(x)), x += net(norm(x)); the mixer attends or scans, the net
// is dense or routes every token to n_experts_used of n_experts.

typedef struct {
    FeedBuffers t;
    float *in, *gate, *u, *y;           // (C, D)
    float *p;                           // (C, R + 2N) dt | B | C
    float *hidden, *out;                // (C, E) normalised input of the experts; a result
    float *route;                       // (C, n_experts) logits, then shares
    int *slot;                          // (C, n_experts) rows of each expert, expert after expert
    int *count;                         // (n_experts)
    // on a device alone, where out is (C * used, E) and hidden is not used
    uint16_t *gathered;                 // (C * used, E rounded up to 32) inputs in order of slot
    int *first, *place;                 // as Routing has them
    char **each;                        // (C, at most 64) states of a step
} Work;

static size_t work_carve(const Config *c, int n, int chunk, char *base, Work *b) {
    size_t at = buffers_carve(c, n, chunk, base, &b->t), C = (size_t)(n < chunk ? n : chunk);
    size_t D = (size_t)c->ssm_inner, X = (size_t)c->n_experts, cpu = c->device ? 0 : 1;
    size_t device = 1 - cpu, chosen = cpu ? C : C * (size_t)c->n_experts_used;
#define CARVE(field, type, count)                                                                  \
    (field = (type *)(base + at), at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(b->in, float, C * D);
    CARVE(b->gate, float, C * D);
    CARVE(b->u, float, C * D);
    CARVE(b->y, float, C * D);
    CARVE(b->p, float, C * (size_t)(c->ssm_dt_rank + 2 * c->ssm_state));
    CARVE(b->hidden, float, cpu * C * (size_t)c->dim);
    CARVE(b->out, float, chosen * (size_t)c->dim);
    CARVE(b->route, float, C * X);
    CARVE(b->slot, int, C * X);
    CARVE(b->count, int, X);
    CARVE(b->gathered, uint16_t, device * chosen * (size_t)padded(c->dim));
    CARVE(b->first, int, device * X);
    CARVE(b->place, int, device * C * X);
    CARVE(b->each, char *, device * (C < (size_t)STEP_BATCH ? C : (size_t)STEP_BATCH));
#undef CARVE
    return at;
}

size_t jamba_scratch(const Config *c, int n, int chunk) {
    static char base[1];                // only offsets are wanted
    Work b;
    return work_carve(c, n < 1 ? 1 : n, chunk, base, &b);
}

// u <- conv of n tokens of one text, rows first .. of the products; the state's tail moves on
static void convolve_text(Forward *f, const Work *b, int layer, char *state, int first, int n) {
    const SsmLayer *w = &f->w->ssm[layer];
    int D = f->c->ssm_inner;
    Conv conv = { w->conv, w->conv_bias, b->in + (size_t)first * D, (float *)(void *)state,
                  f->c->ssm_conv, D };
#pragma omp parallel for if (n > 4)
    for (int i = 0; i < n; i++) conv_row(&conv, i, b->u + (size_t)(first + i) * D);
    conv_keep(&conv, n);
}

// the same for the n tokens of a feed or step; at: the layer's place in a state
static void convolve(Forward *f, const Work *b, int layer, size_t at, int n) {
#ifdef SCB_CUDA
    const SsmLayer *w = &f->w->ssm[layer];
    if (f->device) {
        DeviceConv a = { w->conv, w->conv_bias, b->in, NULL, b->each, at, b->u, NULL,
                         f->c->ssm_conv, f->c->ssm_inner, n };
        if (!f->of) a.tail = (float *)(f->state + at);
        if (!f->of) a.each = NULL;
        cuda_conv(&a, device_stream(f->device));
        return;
    }
#endif
    for (int i = 0; f->of && i < n; i++) convolve_text(f, b, layer, f->of[i].state + at, i, 1);
    if (!f->of) convolve_text(f, b, layer, f->state + at, 0, n);
}

// act <- x (n, D)
static void inner_act(const Forward *f, const Work *b, const float *x, int n) {
    int D = f->c->ssm_inner;
#ifdef SCB_CUDA
    if (f->device) {
        cuda_round(x, (uint16_t *)b->t.act, n, D, padded(D), device_stream(f->device));
        return;
    }
#endif
    act_pack(f->shape->kind, b->t.act, x, (size_t)D, n, D);
}

// act <- dt part of p; B and C parts in place: each has its own norm
static void inner_norms(Forward *f, const Work *b, const SsmLayer *w, int n) {
    const Config *c = f->c;
    int R = c->ssm_dt_rank, N = c->ssm_state;
#ifdef SCB_CUDA
    if (f->device) {
        void *stream = device_stream(f->device);
        size_t ld = (size_t)(R + 2 * N);
        RowNorm dt = { .x = b->p, .w = w->dt_norm, .act = (uint16_t *)b->t.act, .ldx = ld,
                       .ld_act = (size_t)padded(R), .dim = R, .eps = c->norm_eps };
        cuda_norm(&dt, n, 1, stream);
        for (int k = 0; k < 2; k++) {
            float *part = b->p + R + k * N;
            RowNorm own = { .x = part, .w = k ? w->c_norm : w->b_norm, .y = part, .ldx = ld,
                            .ldy = ld, .dim = N, .eps = c->norm_eps };
            cuda_norm(&own, n, 1, stream);
        }
        return;
    }
#endif
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++) {
        float *p = b->p + (size_t)i * (R + 2 * N), *row = thread_row(f, &b->t);
        rmsnorm(row, p, w->dt_norm, R, c->norm_eps);
        act_row(f->shape->kind, b->t.act, i, row, R);
        rmsnorm(p + R, p + R, w->b_norm, N, c->norm_eps);
        rmsnorm(p + R + N, p + R + N, w->c_norm, N, c->norm_eps);
    }
}

static void scan_text(Forward *f, const Work *b, int layer, char *state, int first, int n) {
    const Config *c = f->c;
    int D = c->ssm_inner, N = c->ssm_state, R = c->ssm_dt_rank;
    size_t at = (size_t)first * D;
    Scan q = { &f->w->ssm[layer], D, N, R, b->p + (size_t)first * (R + 2 * N), b->u + at,
               b->gate + at, b->y + at, (float *)(void *)state + (size_t)(c->ssm_conv - 1) * D };
    scan(&q, n);
}

// y <- the scan of the n tokens of a feed or step
static void scan_tokens(Forward *f, const Work *b, int layer, size_t at, int n) {
#ifdef SCB_CUDA
    const Config *c = f->c;
    const SsmLayer *w = &f->w->ssm[layer];
    size_t tail = (size_t)(c->ssm_conv - 1) * c->ssm_inner * sizeof(float);
    if (f->device) {
        DeviceScan a = { w->a, w->d, b->p, b->u, b->gate, b->y, NULL, b->each, at + tail, n,
                         c->ssm_inner, c->ssm_state, c->ssm_dt_rank };
        if (!f->of) a.h = (float *)(f->state + at + tail);
        if (!f->of) a.each = NULL;
        cuda_scan(&a, device_stream(f->device));
        return;
    }
#endif
    for (int i = 0; f->of && i < n; i++) scan_text(f, b, layer, f->of[i].state + at, i, 1);
    if (!f->of) scan_text(f, b, layer, f->state + at, 0, n);
}

// ssm: which of the layers that scan this is
static void mix(Forward *f, const Work *b, int layer, int ssm, int first, int n) {
    const Config *c = f->c;
    const SsmLayer *w = &f->w->ssm[layer];
    size_t D = (size_t)c->ssm_inner, at = (size_t)ssm * jamba_state_bytes(c);
    LinearJob in[2] = { { &w->wx, NULL, b->in, D, false, NULL },
                        { &w->wz, NULL, b->gate, D, false, NULL } };
    LinearJob p = { &w->wp, NULL, b->p, (size_t)(c->ssm_dt_rank + 2 * c->ssm_state), false, NULL };
    LinearJob dt = { &w->wdt, w->dt_bias, b->y, D, false, NULL };
    LinearJob out = { &w->wout, NULL, b->t.x + (size_t)first * c->dim, (size_t)c->dim, true, NULL };
    double t0 = now_s(), seq = 0, t;
    norm_act(f, &b->t, b->t.x + (size_t)first * c->dim, f->w->layer[layer].attn_norm, n);
    products(f, &b->t, in, 2, n);
    t = now_s();
    convolve(f, b, layer, at, n);
    seq += now_s() - t;
    inner_act(f, b, b->u, n);
    products(f, &b->t, &p, 1, n);
    inner_norms(f, b, w, n);
    products(f, &b->t, &dt, 1, n);
    t = now_s();
    scan_tokens(f, b, layer, at, n);
    seq += now_s() - t;
    inner_act(f, b, b->y, n);
    products(f, &b->t, &out, 1, n);
    f->phases->attn_s += seq;
    f->phases->linear_s += now_s() - t0 - seq;
}

// ---------------------------------------------------------------------------
// Mixture of experts: shares = softmax of the router over all experts; a token goes to the
// n_experts_used largest (the lower id where equal), whose shares are used as they are.
//   x += sum over its experts, ascending, of share * expert(norm(x))
// The rows of one expert are gathered, so every expert is read at most once per chunk and computes
// only the rows routed to it.

// logits (n) -> shares of the chosen, 0 elsewhere
static void route_row(float *p, int n, int used) {
    float top = p[0], lane[LANES] = { 0 };
    bool chosen[256] = { false };
    for (int x = 1; x < n; x++) top = p[x] > top ? p[x] : top;
    for (int x = 0; x < n; x++) {
        p[x] = fexp2((p[x] - top) * 1.44269504f);
        lane[x % LANES] += p[x];
    }
    float sum = lanes_sum(lane);
    for (int x = 0; x < n; x++) p[x] /= sum;
    for (int k = 0; k < used; k++) {
        int best = -1;
        for (int x = 0; x < n; x++)
            if (!chosen[x] && (best < 0 || p[x] > p[best])) best = x;
        chosen[best] = true;
    }
    for (int x = 0; x < n; x++) if (!chosen[x]) p[x] = 0.0f;
}

#ifdef SCB_CUDA
enum { ROUTE_THREADS = 128, MOST_EXPERTS = 256 };

// the largest of a warp's p (n) that are not chosen yet, the lowest of equals
__device__ static int route_best(const float *p, const bool *chosen, int n) {
    int best = -1;
    float top = 0;
    for (int x = threadIdx.x % 32; x < n; x += 32)
        if (!chosen[x] && (best < 0 || p[x] > top)) {
            best = x;
            top = p[x];
        }
    for (int s = 16; s; s >>= 1) {
        float y = __shfl_xor_sync(0xffffffffu, top, s);
        int x = __shfl_xor_sync(0xffffffffu, best, s);
        bool take = x >= 0 && (best < 0 || y > top || (y == top && x < best));
        top = take ? y : top;
        best = take ? x : best;
    }
    return best;
}

// grid covers the rows, a warp each
__global__ static void route_k(Routing a) {
    SHARED(float, share, ROUTE_THREADS / 32 * MOST_EXPERTS);
    SHARED(bool, taken, ROUTE_THREADS / 32 * MOST_EXPERTS);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, X = a.n_experts;
    int row = blockIdx.x * (ROUTE_THREADS / 32) + warp;
    float *p = share + warp * MOST_EXPERTS, top = -INFINITY, sum = 0;
    bool *chosen = taken + warp * MOST_EXPERTS;
    if (row >= a.n) return;
    float *to = a.route + (size_t)row * X;
    for (int x = lane; x < X; x += 32) top = to[x] > top ? to[x] : top;
    for (int s = 16; s; s >>= 1) {
        float y = __shfl_xor_sync(0xffffffffu, top, s);
        top = y > top ? y : top;
    }
    for (int x = lane; x < X && lane < LANES; x += LANES)
        sum += p[x] = fexp2((to[x] - top) * 1.44269504f);
    sum = __shfl_sync(0xffffffffu, half_warp_sum(sum), 0);
    __syncwarp();
    for (int x = lane; x < X; x += 32) {
        p[x] /= sum;
        chosen[x] = false;
    }
    for (int k = 0; k < a.used; k++) {
        int best = route_best(p, chosen, X);
        __syncwarp();
        if (lane == 0) chosen[best] = true;
        __syncwarp();
    }
    for (int x = lane; x < X; x += 32) to[x] = chosen[x] ? p[x] : 0.0f;
}

enum { SLOT_THREADS = 256 };

// grid X: how many rows an expert has
__global__ static void route_count_k(Routing a) {
    int n = 0;
    for (int at = 0; at < a.n; at += SLOT_THREADS) {
        int i = at + threadIdx.x;
        n += __syncthreads_count(i < a.n && a.route[(size_t)i * a.n_experts + blockIdx.x] > 0);
    }
    if (threadIdx.x == 0) a.count[blockIdx.x] = n;
}

// grid X: its rows, ascending, behind those of the experts before it
__global__ static void route_slots_k(Routing a) {
    int x = blockIdx.x, first = 0, n = 0;
    for (int e = 0; e < x; e++) first += a.count[e];
    if (threadIdx.x == 0) a.first[x] = first;
    for (int at = 0; at < a.n; at += SLOT_THREADS) {
        int i = at + threadIdx.x;
        bool mine = i < a.n && a.route[(size_t)i * a.n_experts + x] > 0;
        uint32_t total, place = block_places(mine, false, &total) + n;
        if (mine) {
            a.slot[first + place] = i;
            a.place[(size_t)i * a.n_experts + x] = first + (int)place;
        }
        n += (int)total;
    }
}

void cuda_route(const Routing *a, void *stream) {
    CHECK(a->n_experts <= MOST_EXPERTS, "%d experts on the device", a->n_experts);
    if (a->n)
        LAUNCH(route_k, CEIL_DIV(a->n, ROUTE_THREADS / 32), ROUTE_THREADS, 0, stream, *a);
    LAUNCH(route_count_k, a->n_experts, SLOT_THREADS, 0, stream, *a);
    LAUNCH(route_slots_k, a->n_experts, SLOT_THREADS, 0, stream, *a);
}

// grid n * used: those of a row whose second share vanished have no slot
__global__ static void experts_gather_k(Routing a, const uint16_t *x, uint16_t *to) {
    int last = a.n_experts - 1, i = blockIdx.x;
    if (i >= a.first[last] + a.count[last]) return;
    const uint16_t *from = x + (size_t)a.slot[i] * a.ld;
    for (int j = threadIdx.x; j < a.ld; j += blockDim.x) to[(size_t)i * a.ld + j] = from[j];
}

void cuda_experts_gather(const Routing *a, const uint16_t *x, uint16_t *to, void *stream) {
    if (a->n) LAUNCH(experts_gather_k, a->n * a->used, 128, 0, stream, *a, x, to);
}

// grid (channels, n)
__global__ static void experts_combine_k(Routing a, const float *out, float *x) {
    int j = (int)thread_item();
    size_t row = blockIdx.y;
    if (j >= a.dim) return;
    float y = x[row * a.dim + j];
    for (int e = 0; e < a.n_experts; e++) {
        float share = a.route[row * a.n_experts + e];
        if (share > 0)
            y = fmaf(share, out[(size_t)a.place[row * a.n_experts + e] * a.dim + j], y);
    }
    x[row * a.dim + j] = y;
}

void cuda_experts_combine(const Routing *a, const float *out, float *x, void *stream) {
    if (a->n)
        LAUNCH(experts_combine_k, dim3(blocks_for(a->dim, 256), a->n), 256, 0, stream, *a, out, x);
}
#endif

// hidden <- norm(x), route, slot and count of n rows
static void route(Forward *f, const Work *b, int layer, const float *x, int n) {
    const Config *c = f->c;
    int E = c->dim, X = c->n_experts;
    LinearJob job = { &f->w->moe[layer].router, NULL, b->route, (size_t)X, false, NULL };
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++) {
        float *y = b->hidden + (size_t)i * E;
        rmsnorm(y, x + (size_t)i * E, f->w->layer[layer].ffn_norm, E, c->norm_eps);
        act_row(f->shape->kind, b->t.act, i, y, E);
    }
    products(f, &b->t, &job, 1, n);
    memset(b->count, 0, (size_t)X * sizeof *b->count);
    for (int i = 0; i < n; i++) {
        float *p = b->route + (size_t)i * X;
        route_row(p, X, c->n_experts_used);
        for (int e = 0; e < X; e++) if (p[e] > 0) b->slot[(size_t)e * n + b->count[e]++] = i;
    }
}

static void experts(Forward *f, const Work *b, int layer, int first, int n) {
    const Config *c = f->c;
    int E = c->dim, X = c->n_experts;
    float *x = b->t.x + (size_t)first * E;
    route(f, b, layer, x, n);
    for (int e = 0; e < X; e++) {
        const Expert *w = &f->w->moe[layer].expert[e];
        const int *rows = b->slot + (size_t)e * n, m = b->count[e];
        LinearJob up[2] = { { &w->w1, NULL, b->t.gate, (size_t)c->hidden_dim, false, NULL },
                            { &w->w3, NULL, b->t.up, (size_t)c->hidden_dim, false, NULL } };
        LinearJob down = { &w->w2, NULL, b->out, (size_t)E, false, NULL };
        if (!m) continue;
#pragma omp parallel for if (m > 16)
        for (int i = 0; i < m; i++)
            act_row(f->shape->kind, b->t.act, i, b->hidden + (size_t)rows[i] * E, E);
        products(f, &b->t, up, 2, m);
        swiglu_act(f, &b->t, m);
        products(f, &b->t, &down, 1, m);
#pragma omp parallel for if (m > 16)
        for (int i = 0; i < m; i++) {
            float share = b->route[(size_t)rows[i] * X + e], *to = x + (size_t)rows[i] * E;
            const float *from = b->out + (size_t)i * E;
            for (int j = 0; j < E; j++) to[j] = fmaf(share, from[j], to[j]);
        }
    }
}

#ifdef SCB_CUDA
// How many rows an expert has decides which product it is, so the counts come to the host: the one
// wait of a layer. Experts without rows are not read.
static void device_experts(Forward *f, const Work *b, int layer, int first, int n) {
    const Config *c = f->c;
    int E = c->dim, X = c->n_experts, ld = padded(E), count[MOST_EXPERTS];
    float *x = b->t.x + (size_t)first * E;
    void *stream = device_stream(f->device);
    LinearJob router = { &f->w->moe[layer].router, NULL, b->route, (size_t)X, false, NULL };
    Routing a = { b->route, b->count, b->first, b->slot, b->place, n, X, c->n_experts_used, E, ld };
    FeedBuffers in = b->t;
    norm_act(f, &b->t, x, f->w->layer[layer].ffn_norm, n);
    products(f, &b->t, &router, 1, n);
    cuda_route(&a, stream);
    cuda_experts_gather(&a, (const uint16_t *)b->t.act, b->gathered, stream);
    mem_get(f->mem, count, b->count, (size_t)X * sizeof *count);
    for (int e = 0, at = 0; e < X; at += count[e++]) {
        const Expert *w = &f->w->moe[layer].expert[e];
        LinearJob up[2] = { { &w->w1, NULL, b->t.gate, (size_t)c->hidden_dim, false, NULL },
                            { &w->w3, NULL, b->t.up, (size_t)c->hidden_dim, false, NULL } };
        LinearJob down = { &w->w2, NULL, b->out + (size_t)at * E, (size_t)E, false, NULL };
        if (!count[e]) continue;
        in.act = (char *)(b->gathered + (size_t)at * ld);
        products(f, &in, up, 2, count[e]);
        swiglu_act(f, &b->t, count[e]);
        products(f, &b->t, &down, 1, count[e]);
    }
    cuda_experts_combine(&a, b->out, x, stream);
}
#endif

static void net(Forward *f, const Work *b, int layer, int first, int n) {
    double t0 = now_s();
    if (!config_routes(f->c, layer)) {
        ffn(f, &b->t, layer, first, n);
        return;
    }
#ifdef SCB_CUDA
    if (f->device) device_experts(f, b, layer, first, n);
    else
#endif
    experts(f, b, layer, first, n);
    f->phases->linear_s += now_s() - t0;
}

int jamba_feed(Forward *f, Err *err) {
    Work b;
    double t0 = now_s();
    size_t bytes = jamba_state_bytes(f->c), at;
    work_carve(f->c, f->n < 1 ? 1 : f->n, f->chunk, (char *)f->scratch, &b);
    embed_rows(f, &b.t);
    for (int l = 0, kv = 0; l < f->c->n_layers; l++) {
        bool attends = config_attends(f->c, l);
        if (f->load) f->load(f->load_user, l);
        at = (size_t)(l - kv) * bytes;
        if (attends) feed_attend_begin(f, &b.t, l, kv);
        for (int i = 0, n; i < f->n; i += n) {
            n = !attends || !f->sparse ? feed_piece(f, i)      // a sparse feed's are whole blocks
                : f->n - i < f->chunk      ? f->n - i
                                           : f->chunk;
            if (!attends) feed_keep(f, i, at, bytes);
            if (attends) feed_attend(f, &b.t, l, kv, i, n);
            else mix(f, &b, l, l - kv, i, n);
            net(f, &b, l, i, n);
            if (feed_report(f, l, i + n)) return FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
        }
        if (attends) feed_attend_end(f, kv++);
        else feed_keep(f, f->n, at, bytes);
        feed_tap(f, l, &b.t);
    }
    feed_logits(f, &b.t);
    f->phases->total_s += now_s() - t0;
    return 0;
}

static void step_layers(Forward *f, void *work) {
    const Work *b = (const Work *)work;
    embed_rows(f, &b->t);
    for (int l = 0, kv = 0; l < f->c->n_layers; l++) {
        if (f->load) f->load(f->load_user, l);
        if (config_attends(f->c, l)) feed_attend(f, &b->t, l, kv++, 0, f->n);
        else mix(f, b, l, l - kv, 0, f->n);
        net(f, b, l, 0, f->n);
        feed_tap(f, l, &b->t);
    }
    feed_logits(f, &b->t);
}

void jamba_step(Forward *f) {
    Work b;
    work_carve(f->c, f->n, f->n, (char *)f->scratch, &b);
#ifdef SCB_CUDA
    if (f->device) device_states(f, b.each, NULL);
#endif
    step_run(f, &b.t, step_layers, &b);
}
