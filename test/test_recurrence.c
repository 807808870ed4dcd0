// test_recurrence.c - Mamba-2 and the hybrid against their recurrences in double, token by token,
// straight from the papers' equations: on fp32 models the chunked forms differ by at most 1e-4 of
// the logits' rms at every length around the edges of a chunk.
#include "tinyssm.h"

enum { VOCAB = 270, LONGEST = 600 };
static int failures, checks;
static double worst;

static const Config models[] = {
    { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 36, .n_layers = 2, .max_ctx = 4096,
      .norm_eps = 1e-5f, .dtype = DT_F32, .ssm_inner = 60, .ssm_state = 21, .ssm_conv = 4,
      .ssm_heads = 3, .ssm_head_dim = 20, .ssm_groups = 1, .norm_groups = 1 },
    { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 64, .n_layers = 2, .max_ctx = 4096,
      .norm_eps = 1e-5f, .dtype = DT_F32, .ssm_inner = 128, .ssm_state = 32, .ssm_conv = 4,
      .ssm_heads = 16, .ssm_head_dim = 8, .ssm_groups = 8, .norm_groups = 8 },
    { .arch = ARCH_MAMBA2, .vocab_size = VOCAB, .dim = 64, .n_layers = 2, .max_ctx = 4096,
      .norm_eps = 1e-5f, .dtype = DT_F32, .ssm_inner = 128, .ssm_state = 32, .ssm_conv = 4,
      .ssm_heads = 16, .ssm_head_dim = 8, .ssm_groups = 8, .norm_groups = 1 },
    { .arch = ARCH_JAMBA, .vocab_size = VOCAB, .dim = 48, .hidden_dim = 72, .n_layers = 5,
      .n_heads = 4, .n_kv_heads = 2, .head_dim = 16, .max_ctx = 4096, .norm_eps = 1e-6f,
      .dtype = DT_F32, .attn_period = 2, .attn_offset = 1, .n_experts = 4, .n_experts_used = 2,
      .expert_period = 2, .expert_offset = 0, .ssm_inner = 96, .ssm_state = 16, .ssm_conv = 4,
      .ssm_dt_rank = 5 },
    { .arch = ARCH_JAMBA, .vocab_size = VOCAB, .dim = 40, .hidden_dim = 56, .n_layers = 4,
      .n_heads = 3, .n_kv_heads = 1, .head_dim = 24, .max_ctx = 4096, .norm_eps = 1e-6f,
      .dtype = DT_F32, .attn_period = 3, .attn_offset = 0, .n_experts = 16, .n_experts_used = 3,
      .expert_period = 1, .expert_offset = 0, .ssm_inner = 100, .ssm_state = 19, .ssm_conv = 2,
      .ssm_dt_rank = 7 },
};

// ---------------------------------------------------------------------------
// The slow model: one layer's memory is its past inputs, its state, its keys and values

typedef struct {
    double *past;               // (tokens, X or D) inputs of the convolution
    double *state;              // (D, N)
    double *k, *v;              // (tokens, G hd)
} Memory;

typedef struct {
    const Config *c;
    ModelFile *f;
    Memory *layer;
    int n;                      // tokens so far
} Slow;

static double *zeros(size_t n) {
    double *p = (double *)calloc(n, sizeof *p);
    CHECK(p, "no memory");
    return p;
}

__attribute__((format(printf, 2, 3)))
static const float *tensor(const Slow *s, const char *fmt, ...) {
    char name[64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    const FileTensor *t = file_find(s->f, name);
    CHECK(t, "no tensor %s", name);
    return (const float *)file_data(s->f, t);
}

static void matvec(double *y, const float *w, const double *x, int n, int k) {
    for (int i = 0; i < n; i++) {
        y[i] = 0;
        for (int j = 0; j < k; j++) y[i] += (double)w[(size_t)i * (size_t)k + (size_t)j] * x[j];
    }
}

static void norm(double *y, const double *x, const float *w, int n, double eps) {
    double s = 0;
    for (int i = 0; i < n; i++) s += x[i] * x[i];
    for (int i = 0; i < n; i++) y[i] = x[i] / sqrt(s / n + eps) * (double)w[i];
}

static double silu(double x) { return x / (1 + exp(-x)); }
static double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }

// u of this token from the inputs of the last K; input is remembered
static void convolve(Slow *s, int l, const double *input, int width, double *u) {
    const float *w = tensor(s, "layers.%d.conv", l), *bias = tensor(s, "layers.%d.conv_bias", l);
    double *past = s->layer[l].past;
    int K = s->c->ssm_conv;
    memcpy(past + (size_t)s->n * (size_t)width, input, (size_t)width * sizeof *past);
    for (int i = 0; i < width; i++) {
        u[i] = (double)bias[i];
        for (int k = 0; k < K; k++)
            if (s->n - K + 1 + k >= 0)
                u[i] += (double)w[k * width + i] * past[(s->n - K + 1 + k) * width + i];
        u[i] = silu(u[i]);
    }
}

static void mamba2(Slow *s, int l, const double *a, double *out) {
    const Config *c = s->c;
    int D = c->ssm_inner, N = c->ssm_state, G = c->ssm_groups, X = D + 2 * G * N, J = c->ssm_heads;
    int P = c->ssm_head_dim;
    double *z = zeros((size_t)D), *in = zeros((size_t)X), *u = zeros((size_t)X),
        *dt = zeros((size_t)J);
    double *y = zeros((size_t)D), *state = s->layer[l].state;
    matvec(z, tensor(s, "layers.%d.wz", l), a, D, c->dim);
    matvec(in, tensor(s, "layers.%d.wx", l), a, X, c->dim);
    matvec(dt, tensor(s, "layers.%d.wdt", l), a, J, c->dim);
    convolve(s, l, in, X, u);
    for (int h = 0; h < J; h++) {
        const double *B = u + D + h / (J / G) * N, *C = B + G * N;
        double step = softplus(dt[h] + (double)tensor(s, "layers.%d.dt_bias", l)[h]);
        double keep = exp(step * (double)tensor(s, "layers.%d.a", l)[h]);
        for (int p = 0; p < P; p++) {
            double x = u[h * P + p], *S = state + (size_t)(h * P + p) * (size_t)N;
            y[h * P + p] = (double)tensor(s, "layers.%d.d", l)[h] * x;
            for (int n = 0; n < N; n++) {
                S[n] = keep * S[n] + step * x * B[n];
                y[h * P + p] += S[n] * C[n];
            }
        }
    }
    int part = D / c->norm_groups;
    for (int i = 0; i < D; i++) y[i] *= silu(z[i]);
    for (int i = 0; i < D; i += part)
        norm(y + i, y + i, tensor(s, "layers.%d.gate_norm", l) + i, part, (double)c->norm_eps);
    matvec(out, tensor(s, "layers.%d.wout", l), y, c->dim, D);
    free(z); free(in); free(u); free(dt); free(y);
}

static void mamba1(Slow *s, int l, const double *a, double *out) {
    const Config *c = s->c;
    int D = c->ssm_inner, N = c->ssm_state, R = c->ssm_dt_rank;
    double *in = zeros((size_t)D), *g = zeros((size_t)D), *u = zeros((size_t)D),
        *y = zeros((size_t)D);
    double *p = zeros((size_t)(R + 2 * N)), *dt = zeros((size_t)D), eps = (double)c->norm_eps;
    const float *A = tensor(s, "layers.%d.a", l);
    matvec(in, tensor(s, "layers.%d.wx", l), a, D, c->dim);
    matvec(g, tensor(s, "layers.%d.wz", l), a, D, c->dim);
    convolve(s, l, in, D, u);
    matvec(p, tensor(s, "layers.%d.wp", l), u, R + 2 * N, D);
    norm(p, p, tensor(s, "layers.%d.dt_norm", l), R, eps);
    norm(p + R, p + R, tensor(s, "layers.%d.b_norm", l), N, eps);
    norm(p + R + N, p + R + N, tensor(s, "layers.%d.c_norm", l), N, eps);
    matvec(dt, tensor(s, "layers.%d.wdt", l), p, D, R);
    for (int i = 0; i < D; i++) {
        double step = softplus(dt[i] + (double)tensor(s, "layers.%d.dt_bias", l)[i]);
        double *h = s->layer[l].state + (size_t)i * (size_t)N;
        y[i] = (double)tensor(s, "layers.%d.d", l)[i] * u[i];
        for (int n = 0; n < N; n++) {
            h[n] = exp(step * (double)A[n * D + i]) * h[n] + step * p[R + n] * u[i];
            y[i] += h[n] * p[R + N + n];
        }
        y[i] *= silu(g[i]);
    }
    matvec(out, tensor(s, "layers.%d.wout", l), y, c->dim, D);
    free(in); free(g); free(u); free(y); free(p); free(dt);
}

static void attention(Slow *s, int l, const double *a, double *out) {
    const Config *c = s->c;
    int H = c->n_heads, G = c->n_kv_heads, hd = c->head_dim;
    double *q = zeros((size_t)(H * hd)), *o = zeros((size_t)(H * hd)), *w = zeros((size_t)s->n + 1);
    double *k = s->layer[l].k, *v = s->layer[l].v;
    matvec(q, tensor(s, "layers.%d.wq", l), a, H * hd, c->dim);
    matvec(k + (size_t)(s->n * G * hd), tensor(s, "layers.%d.wk", l), a, G * hd, c->dim);
    matvec(v + (size_t)(s->n * G * hd), tensor(s, "layers.%d.wv", l), a, G * hd, c->dim);
    for (int h = 0; h < H; h++) {
        int g = h / (H / G);
        double sum = 0;
        for (int t = 0; t <= s->n; t++) {
            double dot = 0;
            for (int i = 0; i < hd; i++) dot += q[h * hd + i] * k[(t * G + g) * hd + i];
            sum += w[t] = exp(dot / sqrt(hd));
        }
        for (int t = 0; t <= s->n; t++)
            for (int i = 0; i < hd; i++) o[h * hd + i] += w[t] / sum * v[(t * G + g) * hd + i];
    }
    matvec(out, tensor(s, "layers.%d.wo", l), o, c->dim, H * hd);
    free(q); free(o); free(w);
}

// out += share * W_2 (silu(W_1 a) * W_3 a), weights named prefix.w1 ...
static void swiglu_net(Slow *s, const char *prefix, const double *a, double share, double *out) {
    int E = s->c->dim, F = s->c->hidden_dim;
    double *g = zeros((size_t)F), *u = zeros((size_t)F), *y = zeros((size_t)E);
    matvec(g, tensor(s, "%s.w1", prefix), a, F, E);
    matvec(u, tensor(s, "%s.w3", prefix), a, F, E);
    for (int i = 0; i < F; i++) u[i] *= silu(g[i]);
    matvec(y, tensor(s, "%s.w2", prefix), u, E, F);
    for (int i = 0; i < E; i++) out[i] += share * y[i];
    free(g); free(u); free(y);
}

static void net(Slow *s, int l, const double *a, double *out) {
    const Config *c = s->c;
    double p[64], sum = 0;
    char prefix[40];
    snprintf(prefix, sizeof prefix, "layers.%d", l);
    memset(out, 0, (size_t)c->dim * sizeof *out);
    if (l % c->expert_period != c->expert_offset) { swiglu_net(s, prefix, a, 1, out); return; }
    matvec(p, tensor(s, "layers.%d.router", l), a, c->n_experts, c->dim);
    for (int x = 0; x < c->n_experts; x++) sum += p[x] = exp(p[x]);
    for (int k = 0; k < c->n_experts_used; k++) {
        int best = 0;
        for (int x = 1; x < c->n_experts; x++) if (p[x] > p[best]) best = x;
        snprintf(prefix, sizeof prefix, "layers.%d.%d", l, best);
        swiglu_net(s, prefix, a, p[best] / sum, out);
        p[best] = -1;
    }
}

static void slow_token(Slow *s, int id, double *logits) {
    const Config *c = s->c;
    int E = c->dim;
    double *x = zeros((size_t)E), *a = zeros((size_t)E), *y = zeros((size_t)E),
        eps = (double)c->norm_eps;
    for (int i = 0; i < E; i++) x[i] = (double)tensor(s, "embed")[id * E + i];
    for (int l = 0; l < c->n_layers; l++) {
        norm(a, x, tensor(s, "layers.%d.attn_norm", l), E, eps);
        if (c->arch == ARCH_MAMBA2) mamba2(s, l, a, y);
        else (l % c->attn_period == c->attn_offset ? attention : mamba1)(s, l, a, y);
        for (int i = 0; i < E; i++) x[i] += y[i];
        if (c->arch == ARCH_MAMBA2) continue;
        norm(a, x, tensor(s, "layers.%d.ffn_norm", l), E, eps);
        net(s, l, a, y);
        for (int i = 0; i < E; i++) x[i] += y[i];
    }
    norm(a, x, tensor(s, "final_norm"), E, eps);
    matvec(logits, tensor(s, "lm_head"), a, c->vocab_size, E);
    s->n++;
    free(x); free(a); free(y);
}

// ---------------------------------------------------------------------------

static void compare(int model, int n, const float *ours, const double *want) {
    double square = 0, most = 0;
    for (int v = 0; v < VOCAB; v++) square += want[v] * want[v];
    for (int v = 0; v < VOCAB; v++) {
        double d = fabs((double)ours[v] - want[v]);
        if (!(d <= most)) most = d;
    }
    double share = most / sqrt(square / VOCAB);
    checks++;
    if (!(share <= worst)) worst = share;
    if (share <= 1e-4) return;
    failures++;
    printf("model %d, %d tokens: the recurrence differs by %.3g\n", model, n, share);
}

static void test_model(int i, const char *path) {
    static const int lengths[] = { 1, 3, 4, 5, 63, 64, 65, 128, 255, 256, 257, LONGEST };
    const Config *c = &models[i];
    ModelFile fast_file, slow_file;
    Err err = { 0 };
    double *logits = zeros(VOCAB), *want = zeros(COUNTOF(lengths) * VOCAB);
    int32_t ids[LONGEST];
    Method full;
    ssm_write(c, 3 + (uint64_t)i, path);
    CHECK(!file_open(&fast_file, path, true, &err) && !file_open(&slow_file, path, false, &err),
          "%s",
          err.msg);
    Slow s = { .c = c, .f = &slow_file };
    s.layer = (Memory *)calloc((size_t)c->n_layers, sizeof *s.layer);
    size_t width = (size_t)(c->ssm_inner + 2 * c->ssm_groups * c->ssm_state);
    for (int l = 0; l < c->n_layers; l++) {
        s.layer[l].past = zeros(LONGEST * width);
        s.layer[l].state = zeros((size_t)c->ssm_inner * (size_t)c->ssm_state);
        s.layer[l].k = zeros(LONGEST * (size_t)(c->n_kv_heads * c->head_dim));
        s.layer[l].v = zeros(LONGEST * (size_t)(c->n_kv_heads * c->head_dim));
    }
    Rng r = { 17 };
    for (int t = 0, k = 0; t < LONGEST; t++) {
        ids[t] = (int32_t)rng_below(&r, 256);
        slow_token(&s, ids[t], logits);
        if (t + 1 == lengths[k]) memcpy(want + VOCAB * k++, logits, VOCAB * sizeof *logits);
    }
    Model *m = model_open(&fast_file, NULL, &err);
    CHECK(m, "%s", err.msg);
    CHECK(!method_find("full", &full, &err) &&
          !method_resolve(&full, PRESET_SCBENCH, LONGEST, 0, -1, &err), "%s", err.msg);
    for (size_t k = 0; k < COUNTOF(lengths); k++) {
        Branch *b = branch_open(m, NULL, &full, 0, &err);
        CHECK(b && !branch_feed(b, ids, lengths[k], FEED_FIRST, &err), "%s", err.msg);
        compare(i, lengths[k], branch_logits(b), want + VOCAB * k);
        branch_drop(b);
    }
    model_close(m);
    for (int l = 0; l < c->n_layers; l++) {
        free(s.layer[l].past); free(s.layer[l].state); free(s.layer[l].k); free(s.layer[l].v);
    }
    free(s.layer);
    free(logits);
    free(want);
    file_close(&fast_file);
    file_close(&slow_file);
}

int main(void) {
    Err err = { 0 };
    char path[] = "/tmp/scbench-recurrence-XXXXXX";
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    int fd = mkstemp(path);
    CHECK(fd >= 0, "mkstemp: %s", strerror(errno));
    close(fd);
    for (int i = 0; i < (int)COUNTOF(models); i++) test_model(i, path);
    unlink(path);
    printf("%d comparisons, %d failed; worst difference %.2g of rms\n", checks, failures, worst);
    return failures != 0;
}
