// Recurrences on the device: convolution, Mamba-2 fed and stepped, Mamba-1's scan.
// mamba.cu is included under other names for its static functions, which are what the kernels are
// held to.
#include "kernels.h"
#include "test/cuda/twin.h"

#define mamba_state_bytes plain_mamba_state_bytes
#define mamba_bind plain_mamba_bind
#define conv_row plain_conv_row
#define conv_keep plain_conv_keep
#define mamba_scratch plain_mamba_scratch
#define feed_piece plain_feed_piece
#define feed_keep plain_feed_keep
#define mamba_feed plain_mamba_feed
#define mamba_step plain_mamba_step
#define cuda_conv plain_cuda_conv
#define cuda_mamba_feed plain_cuda_mamba_feed
#define cuda_mamba_step plain_cuda_mamba_step
#define device_states plain_device_states
#include "mamba.cu"
#undef cuda_conv
#undef cuda_mamba_feed
#undef cuda_mamba_step

static float *filled(size_t n, uint64_t seed, float scale, float shift) {
    float *x = (float *)xrealloc(NULL, (n + 1) * sizeof *x);
    twin_fill(x, n, seed);
    for (size_t i = 0; i < n; i++) x[i] = x[i] * scale + shift;
    return x;
}
template <class T> static T *fetched(T *device, size_t n) {
    T *p = (T *)xrealloc(NULL, (n + 1) * sizeof *p);
    from_device(p, device, n);
    return p;
}

// ---------------------------------------------------------------------------
// Mamba-2: one layer, a text of `begun` tokens fed, then pieces, then steps

typedef struct {
    Config c;
    SsmLayer w;
    Weights weights;
    AttnShape shape;
    Forward f;
    Work b;
    char *base;
    MambaMix mix;               // weights and shape on the device
    int X, J, D;
} Layer2;

enum { MOST = 200 };            // tokens of a piece

static void layer_make(Layer2 *l, int J, int P, int N, int G) {
    memset(l, 0, sizeof *l);
    Config *c = &l->c;
    c->dtype = DT_BF16;
    c->dim = 32;
    c->ssm_heads = J;
    c->ssm_head_dim = P;
    c->ssm_inner = J * P;
    c->ssm_state = N;
    c->ssm_groups = G;
    c->ssm_conv = 4;
    l->X = conv_width(c);
    l->J = J;
    l->D = J * P;
    size_t X = (size_t)l->X;
    l->w.conv = filled(4 * X, 1, 0.6f, 0);
    l->w.conv_bias = filled(X, 2, 0.3f, 0);
    l->w.dt_bias = filled((size_t)J, 3, 2.5f, -3.5f);
    l->w.a = filled((size_t)J, 4, 7.5f, -8.5f);
    l->w.d = filled((size_t)J, 5, 1, 0);
    l->weights.ssm = &l->w;
    l->shape.kind = mul_kind(DT_BF16);
    l->f.c = c;
    l->f.w = &l->weights;
    l->f.shape = &l->shape;
    static char nowhere[1];
    size_t bytes = work_carve(c, MOST, MOST, nowhere, &l->b);
    l->base = (char *)aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
    work_carve(c, MOST, MOST, l->base, &l->b);
    l->mix.conv = to_device(l->w.conv, 4 * X);
    l->mix.conv_bias = to_device(l->w.conv_bias, X);
    l->mix.dt_bias = to_device(l->w.dt_bias, (size_t)J);
    l->mix.a = to_device(l->w.a, (size_t)J);
    l->mix.d = to_device(l->w.d, (size_t)J);
    l->mix.heads = J;
    l->mix.head_dim = P;
    l->mix.state = N;
    l->mix.groups = G;
    l->mix.taps = 4;
}

static void layer_free(Layer2 *l) {
    const float *host[5] = { l->w.conv, l->w.conv_bias, l->w.dt_bias, l->w.a, l->w.d },
                *device[5] = { l->mix.conv, l->mix.conv_bias, l->mix.dt_bias, l->mix.a, l->mix.d };
    for (int i = 0; i < 5; i++) {
        free((void *)host[i]);
        cudaFree((void *)device[i]);
    }
    free(l->base);
}

// states of the CPU and the device: the parts that hold something
static void states_near(const Layer2 *l, char *plain, char *device, int64_t pos, double tol) {
    size_t bytes = plain_mamba_state_bytes(&l->c), left = (size_t)(pos % CHUNK), X = (size_t)l->X;
    char *got = fetched(device, bytes);
    State want, have;
    state_carve(&l->c, plain, &want);
    state_carve(&l->c, got, &have);
    twin_equal("newest inputs", have.tail, want.tail, 3 * X);
    twin_equal("rows of the chunk begun", (uint16_t *)have.rows, (uint16_t *)want.rows, left * X);
    twin_equal("its steps", have.dt, want.dt, left * (size_t)l->J);
    size_t n = (size_t)l->D * l->c.ssm_state;
    if (tol > 0) twin_near("the state", have.s, want.s, n, tol);
    else twin_equal("the state", have.s, want.s, n);
    free(got);
}

// n tokens behind pos: both sides, y compared
static void feed(Layer2 *l, char *plain, char *device, int64_t pos, int n, uint64_t seed) {
    size_t X = (size_t)l->X, J = (size_t)l->J, D = (size_t)l->D, all = CHUNK + (size_t)n;
    float *in = filled(n * X, seed, 1, 0), *dt = filled(n * J, seed + 1, 1, 0);
    memcpy(l->b.in, in, n * X * sizeof *in);
    memcpy(l->b.dt + CHUNK * J, dt, n * J * sizeof *dt);
    mix_tokens(&l->f, &l->b, 0, plain, pos, 0, n);
    MambaMix m = l->mix;
    m.in = to_device(in, n * X);
    m.dt = to_device(dt, n * J);
    m.y = device_array<float>(n * D);
    m.n = n;
    m.one = device;
    m.pos = pos;
    m.rows = device_array<uint16_t>(all * X);
    m.row_dt = device_array<float>(all * J);
    m.gram = device_array<float>(((size_t)n / CHUNK + 2) * (size_t)l->c.ssm_groups * CHUNK * CHUNK);
    size_t bytes = plain_mamba_state_bytes(&l->c);
    char *before = fetched(device, bytes);
    cuda_mamba_feed(&m, twin_stream());
    float *y = fetched(m.y, n * D), *again;
    char *after = fetched(device, bytes), *after_again;
    CUDA_OK(cudaMemcpy(device, before, bytes, cudaMemcpyHostToDevice));
    cuda_mamba_feed(&m, twin_stream());
    again = fetched(m.y, n * D);
    after_again = fetched(device, bytes);
    twin_equal("a feed twice", again, y, n * D);
    twin_equal("its state twice", after_again, after, bytes);
    free(before); free(after); free(again); free(after_again);
    twin_near("a feed", y, l->b.y, n * D, 4e-3);        // a weight may round the other way
    states_near(l, plain, device, pos + n, 1e-5);
    cudaFree((void *)m.in); cudaFree((void *)m.dt); cudaFree(m.y); cudaFree(m.rows);
    cudaFree(m.row_dt); cudaFree(m.gram);
    free(in); free(dt); free(y);
}

// one token of two texts at different positions: same bits
static void step(Layer2 *l, char *const plain[2], char *const device[2], const int64_t pos[2],
                 uint64_t seed) {
    size_t X = (size_t)l->X, J = (size_t)l->J, D = (size_t)l->D;
    float *in = filled(2 * X, seed, 1, 0), *dt = filled(2 * J, seed + 1, 1, 0);
    memcpy(l->b.in, in, 2 * X * sizeof *in);
    memcpy(l->b.dt + CHUNK * J, dt, 2 * J * sizeof *dt);
    for (int i = 0; i < 2; i++) mix_tokens(&l->f, &l->b, 0, plain[i], pos[i], i, 1);
    MambaMix m = l->mix;
    m.in = to_device(in, 2 * X);
    m.dt = to_device(dt, 2 * J);
    m.y = device_array<float>(2 * D);
    m.n = 2;
    m.each = to_device(device, 2);
    m.each_pos = to_device(pos, 2);
    cuda_mamba_step(&m, twin_stream());
    float *y = fetched(m.y, 2 * D);
    twin_equal("a step", y, l->b.y, 2 * D);
    cudaFree((void *)m.in); cudaFree((void *)m.dt); cudaFree(m.y); cudaFree((void *)m.each);
    cudaFree((void *)m.each_pos);
    free(in); free(dt); free(y);
}

static void mamba2(int J, int P, int N, int G) {
    Layer2 l;
    layer_make(&l, J, P, N, G);
    size_t bytes = plain_mamba_state_bytes(&l.c);
    char *plain[2], *device[2];
    int64_t pos[2] = { 0, 0 };
    static const int piece[2][4] = { { 1, 62, 70, 0 }, { 59, 5, 130, 3 } };
    for (int i = 0; i < 2; i++) {
        plain[i] = (char *)aligned_alloc(64, bytes);
        memset(plain[i], 0, bytes);
        device[i] = to_device(plain[i], bytes);
        for (int k = 0; k < 4; k++) {
            feed(&l, plain[i], device[i], pos[i], piece[i][k], 10 + 10 * (uint64_t)k);
            pos[i] += piece[i][k];
        }
        // steps go on from one state, so that what a feed may round otherwise does not count
        CUDA_OK(cudaMemcpy(device[i], plain[i], bytes, cudaMemcpyHostToDevice));
    }
    pos[0] -= pos[0] % CHUNK; // a completed chunk lies ahead of the second text: 61, 62 ..
    for (int k = 0; k < 3; k++) {
        pos[1] = pos[1] / CHUNK * CHUNK + 61 + k;
        step(&l, plain, device, pos, 90 + 10 * (uint64_t)k);
        pos[0]++;
    }
    for (int i = 0; i < 2; i++) states_near(&l, plain[i], device[i], i ? 64 : pos[0], 0);
    for (int i = 0; i < 2; i++) {
        free(plain[i]);
        cudaFree(device[i]);
    }
    layer_free(&l);
}

// ---------------------------------------------------------------------------
// Convolution: conv_row and conv_keep, fed and stepped, in fp32

static void convolution(int width, int taps, int n) {
    size_t W = (size_t)width, K = (size_t)taps - 1;
    float *w = filled(W * taps, 1, 0.6f, 0), *bias = filled(W, 2, 1, 0),
          *x = filled(W * n, 3, 1, 0), *tail = filled(W * K, 4, 1, 0),
          *each = filled(W * K * n, 5, 1, 0), *want = filled(W * n, 6, 1, 0);
    Conv v = { w, bias, x, tail, taps, width };
    float *dw = to_device(w, W * taps), *db = to_device(bias, W), *dx = to_device(x, W * n),
          *dt = to_device(tail, W * K), *de = to_device(each, W * K * n),
          *dy = device_array<float>(W * n);
    char **at = (char **)xrealloc(NULL, sizeof *at * (size_t)n), **dat;
    for (int i = 0; i < n; i++) at[i] = (char *)(de + W * K * (size_t)i) - 64;
    dat = to_device(at, (size_t)n);
    DeviceConv a = { dw, db, dx, dt, NULL, 0, dy, NULL, taps, width, n };
    cuda_conv(&a, twin_stream());
    for (int i = 0; i < n; i++) plain_conv_row(&v, i, want + W * (size_t)i);
    plain_conv_keep(&v, n);
    float *got = fetched(dy, W * n), *kept = fetched(dt, W * K);
    twin_equal("convolution", got, want, W * n);
    twin_equal("its newest inputs", kept, tail, W * K);
    free(got); free(kept);
    a.each = dat;
    a.at = 64;
    cuda_conv(&a, twin_stream());
    for (int i = 0; i < n; i++) {
        Conv one = { w, bias, x + W * (size_t)i, each + W * K * (size_t)i, taps, width };
        plain_conv_row(&one, 0, want + W * (size_t)i);
        plain_conv_keep(&one, 1);
    }
    got = fetched(dy, W * n);
    kept = fetched(de, W * K * n);
    twin_equal("convolution of steps", got, want, W * n);
    twin_equal("newest inputs of steps", kept, each, W * K * n);
    cudaFree(dw);
    cudaFree(db);
    cudaFree(dx);
    cudaFree(dt);
    cudaFree(de);
    cudaFree(dy);
    cudaFree(dat);
    free(w);
    free(bias);
    free(x);
    free(tail);
    free(each);
    free(want);
    free(at);
    free(got);
    free(kept);
}

// ---------------------------------------------------------------------------
// Mamba-1's scan, in the order of jamba.cu's scan_block

typedef struct { int D, N, R, n; const float *a, *d, *p, *u, *gate; } Plain1;

static void plain_scan(const Plain1 *q, float *y, float *h, int from, int n) {
    for (int t = from; t < from + n; t++)
        for (int c = 0; c < q->D; c++) {
            size_t at = (size_t)t * q->D + c;
            const float *B = q->p + (size_t)t * (q->R + 2 * q->N) + q->R, *C = B + q->N;
            float dt = fsoftplus(y[at]), du = dt * q->u[at], lane[LANES] = { 0 };
            for (int j = 0; j < q->N; j++) {
                float *s = &h[(size_t)j * q->D + c];
                *s = fmaf(fexp2(dt * (q->a[(size_t)j * q->D + c] * 1.44269504f)), *s, du * B[j]);
                lane[j % LANES] = fmaf(*s, C[j], lane[j % LANES]);
            }
            y[at] = fmaf(q->d[c], q->u[at], lanes_sum(lane)) * fsilu(q->gate[at]);
        }
}

static void scans(int D, int N, int R, int n) {
    size_t nd = (size_t)n * D, np = (size_t)n * (R + 2 * N), s = (size_t)N * D;
    float *a = filled(s, 1, 7.5f, -8.5f), *d = filled((size_t)D, 2, 1, 0), *p = filled(np, 3, 1, 0),
          *u = filled(nd, 4, 1, 0), *gate = filled(nd, 5, 2, 0), *y = filled(nd, 6, 2, -2),
          *h = filled(s, 7, 1, 0), *each = filled(s * n, 8, 1, 0);
    float *da = to_device(a, s), *dd = to_device(d, (size_t)D), *dp = to_device(p, np),
          *du = to_device(u, nd), *dg = to_device(gate, nd), *dy = to_device(y, nd),
          *dh = to_device(h, s), *de = to_device(each, s * n);
    char **at = (char **)xrealloc(NULL, sizeof *at * (size_t)n), **dat;
    for (int i = 0; i < n; i++) at[i] = (char *)(de + s * (size_t)i) - 128;
    dat = to_device(at, (size_t)n);
    DeviceScan q = { da, dd, dp, du, dg, dy, dh, NULL, 0, n, D, N, R };
    Plain1 plain = { D, N, R, n, a, d, p, u, gate };
    cuda_scan(&q, twin_stream());
    float *got = fetched(dy, nd), *state = fetched(dh, s);
    CUDA_OK(cudaMemcpy(dy, y, nd * sizeof *y, cudaMemcpyHostToDevice));
    float *again = (float *)xrealloc(NULL, nd * sizeof *y);
    memcpy(again, y, nd * sizeof *y);
    plain_scan(&plain, y, h, 0, n);
    twin_equal("a scan", got, y, nd);
    twin_equal("its state", state, h, s);
    free(got); free(state);
    q.each = dat;
    q.at = 128;
    cuda_scan(&q, twin_stream());
    for (int i = 0; i < n; i++) plain_scan(&plain, again, each + s * (size_t)i, i, 1);
    got = fetched(dy, nd);
    state = fetched(de, s * n);
    twin_equal("scans of steps", got, again, nd);
    twin_equal("states of steps", state, each, s * n);
    float *all[] = { da, dd, dp, du, dg, dy, dh, de };
    for (size_t i = 0; i < COUNTOF(all); i++) cudaFree(all[i]);
    cudaFree(dat);
    free(a); free(d); free(p); free(u); free(gate); free(y); free(h); free(each); free(at);
    free(got); free(state); free(again);
}

// make try K=states: a layer of Mamba-Codestral 7B and one of Jamba 1.5 Mini; a token, two feeds
static void times(void) {
    enum { J = 128, P = 64, N = 128, G = 8, D = J * P, X = D + 2 * G * N, RANK = 256, STATES = 16,
           LONGEST = 4096 };
    const int rows[] = { 1, 512, LONGEST };
    size_t all = CHUNK + LONGEST, D1 = D, p = RANK + 2 * STATES;
    Config c;
    memset(&c, 0, sizeof c);
    c.dtype = DT_BF16;
    c.ssm_heads = J;
    c.ssm_head_dim = P;
    c.ssm_inner = D;
    c.ssm_state = N;
    c.ssm_groups = G;
    c.ssm_conv = 4;
    float *zero = device_zeros<float>(all * X);         // weights and inputs of all
    char *state = device_zeros<char>(plain_mamba_state_bytes(&c)), **each = to_device(&state, 1);
    int64_t *pos = device_zeros<int64_t>(1);
    MambaMix m;
    memset(&m, 0, sizeof m);
    m.conv = m.conv_bias = m.dt_bias = m.a = m.d = m.in = m.dt = zero;
    m.y = device_zeros<float>(LONGEST * D1);
    m.heads = J;
    m.head_dim = P;
    m.state = N;
    m.groups = G;
    m.taps = 4;
    m.one = state;
    m.each = each;
    m.each_pos = pos;
    m.rows = device_zeros<uint16_t>(all * X);
    m.row_dt = device_zeros<float>(all * J);
    m.gram = device_zeros<float>((size_t)(LONGEST / CHUNK + 2) * G * CHUNK * CHUNK);
    DeviceScan q = { zero, zero, zero, zero, zero, m.y, device_zeros<float>(STATES * D1), NULL, 0,
                     0, D, STATES, RANK };
    CHECK(p <= X, "inputs of %zu channels", p);
    for (int i = 0; i < 3; i++) {
        char label[48];
        m.n = q.n = rows[i];
        snprintf(label, sizeof label, "mamba2, %d tokens", rows[i]);
        twin_time(label, [&] {
            if (rows[i] == 1) cuda_mamba_step(&m, twin_stream());
            else cuda_mamba_feed(&m, twin_stream());
        });
        snprintf(label, sizeof label, "scan of %d tokens", rows[i]);
        twin_time(label, [&] { cuda_scan(&q, twin_stream()); });
    }
    cudaFree(zero); cudaFree(state); cudaFree(each); cudaFree(pos); cudaFree(m.y);
    cudaFree(m.rows); cudaFree(m.row_dt); cudaFree(m.gram); cudaFree(q.h);
}

int main(void) {
    Err err;
    if (twin_begin()) return 77;
    if (twin_timing()) { times(); return 0; }
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    convolution(130, 4, 5);
    convolution(7, 4, 2);               // fewer tokens than the tail holds
    convolution(3, 2, 1);
    scans(19, 16, 5, 33);
    scans(4, 24, 0, 3);                 // states beyond 16
    scans(3, 70, 2, 2);
    mamba2(2, 32, 64, 1);
    mamba2(4, 40, 24, 2);               // a part of 32 channels, and of a tile of states
    mamba2(2, 10, 12, 2);               // rows that are no whole pieces of 16 bytes
    mamba2(1, 8, 72, 1);                // states of two turns of the warps, and of three
    mamba2(1, 16, 136, 1);
    return twin_end("states");
}
