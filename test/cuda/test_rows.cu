// Kernels that work on rows: embedding, norms, rotation and appending, SwiGLU, argmax, the
// router and its gathering, the encoder's pieces. All give the bits of the plain loops.
#include "kernels.h"
#include "lingua.h"
#include "test/cuda/twin.h"

static float *filled(size_t n, uint64_t seed) {
    float *x = (float *)xrealloc(NULL, (n + 1) * sizeof *x);
    twin_fill(x, n, seed);
    return x;
}
static uint16_t *rounded(const float *x, size_t n) {
    uint16_t *y = (uint16_t *)xrealloc(NULL, (n + 1) * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = f32_bf16(x[i]);
    return y;
}
template <class T> static T *zeros(size_t n) {
    T *p = (T *)xrealloc(NULL, (n + 1) * sizeof *p);
    memset(p, 0, (n + 1) * sizeof *p);
    return p;
}
// fetches n elements, compares, frees both
template <class T> static void same(const char *what, T *device, const T *want, size_t n) {
    T *got = zeros<T>(n);
    from_device(got, device, n);
    twin_equal(what, got, want, n);
    free(got);
    cudaFree(device);
}

// parts of dim channels, with a gate or not, into fp32 and bf16
static void norms(int rows, int dim, int parts, bool gated) {
    int all = dim * parts, ld = CEIL_DIV(all, 32) * 32;
    size_t n = (size_t)rows * all;
    float *x = filled(n, 1), *gate = filled(n, 2), *w = filled((size_t)all, 3),
          *want = zeros<float>(n);
    uint16_t *act = zeros<uint16_t>((size_t)rows * ld);
    for (int i = 0; i < rows; i++) {
        float *row = zeros<float>((size_t)all);
        for (int j = 0; j < all; j++)
            row[j] = gated ? x[(size_t)i * all + j] * fsilu(gate[(size_t)i * all + j])
                           : x[(size_t)i * all + j];
        for (int p = 0; p < all; p += dim)
            rmsnorm(want + (size_t)i * all + p, row + p, w + p, dim, 1e-5f);
        for (int j = 0; j < all; j++) act[(size_t)i * ld + j] = f32_bf16(want[(size_t)i * all + j]);
        free(row);
    }
    float *dx = to_device(x, n), *dg = to_device(gate, n), *dw = to_device(w, (size_t)all);
    float *y = device_array<float>(n);
    uint16_t *dact = device_array<uint16_t>((size_t)rows * ld);
    RowNorm a = { dx, gated ? dg : NULL, dw, NULL, y, dact, (size_t)all, (size_t)all, (size_t)ld,
                  dim, 1e-5f };
    cuda_norm(&a, rows, parts, twin_stream());
    same("norm", y, want, n);
    same("norm in bf16", dact, act, (size_t)rows * ld);
    a.y = dx;                           // in place
    a.act = NULL;
    cuda_norm(&a, rows, parts, twin_stream());
    same("norm in place", dx, want, n);
    cudaFree(dg); cudaFree(dw);
    free(x); free(gate); free(w); free(want); free(act);
}

static float plain_sum(const float *x, int n, float center, bool square) {
    float lane[LANES] = { 0 };
    for (int i = 0; i < n; i++)
        lane[i % LANES] = square ? fmaf(x[i] - center, x[i] - center, lane[i % LANES])
                                 : lane[i % LANES] + x[i];
    return lanes_sum(lane);
}

static void layer_norm(int rows, int dim) {
    size_t n = (size_t)rows * dim;
    float *x = filled(n, 4), *w = filled((size_t)dim, 5), *b = filled((size_t)dim, 6),
          *want = zeros<float>(n);
    for (int i = 0; i < rows; i++) {
        const float *row = x + (size_t)i * dim;
        float mean = plain_sum(row, dim, 0, false) / (float)dim;
        float r = 1.0f / sqrtf(plain_sum(row, dim, mean, true) / (float)dim + 1e-5f);
        for (int j = 0; j < dim; j++) want[(size_t)i * dim + j] = (row[j] - mean) * r * w[j] + b[j];
    }
    float *dx = to_device(x, n), *dw = to_device(w, (size_t)dim), *db = to_device(b, (size_t)dim);
    RowNorm a = { dx, NULL, dw, db, dx, NULL, (size_t)dim, (size_t)dim, 0, dim, 1e-5f };
    cuda_norm(&a, rows, 1, twin_stream());
    same("layer norm", dx, want, n);
    cudaFree(dw); cudaFree(db);
    free(x); free(w); free(b); free(want);
}

static void elementwise(int rows, int k) {
    int ld = CEIL_DIV(k, 32) * 32;
    size_t n = (size_t)rows * k, m = (size_t)rows * ld;
    float *g = filled(n, 7), *u = filled(n, 8), *sum = zeros<float>(n);
    uint16_t *want = zeros<uint16_t>(m), *round = zeros<uint16_t>(m);
    for (size_t i = 0; i < n; i++) {
        g[i] *= 9;
        want[i / k * ld + i % k] = f32_bf16(fsilu(g[i]) * u[i]);
        round[i / k * ld + i % k] = f32_bf16(g[i]);
        sum[i] = g[i] + u[i];
    }
    float *dg = to_device(g, n), *du = to_device(u, n);
    uint16_t *act = device_array<uint16_t>(m), *act2 = device_array<uint16_t>(m);
    cuda_swiglu(dg, du, act, rows, k, ld, twin_stream());
    cuda_round(dg, act2, rows, k, ld, twin_stream());
    cuda_add(dg, du, n, twin_stream());
    same("swiglu", act, want, m);
    same("round", act2, round, m);
    same("add", dg, sum, n);
    cudaFree(du);
    free(g); free(u); free(sum); free(want); free(round);
}

static void argmax(int rows, int n) {
    float *x = filled((size_t)rows * n, 9);
    int32_t *want = zeros<int32_t>((size_t)rows);
    for (int i = 0; i < rows; i++) {
        float *r = x + (size_t)i * n;
        if (i == 1) for (int j = 0; j < n; j++) r[j] = 1.0f;           // all equal
        if (i == 2 && n > 9) r[n - 1] = r[n / 2] = r[9] = 5.0f;        // the lowest of three
        if (i == 3) for (int j = 0; j < n; j++) r[j] = -INFINITY;
        if (i == 4 && n > 2) r[1] = NAN;                               // is never the largest
        if (i == 5) r[0] = NAN;                                        // never beaten either
        for (int j = 1; j < n; j++) if (r[j] > r[want[i]]) want[i] = j;
    }
    float *dx = to_device(x, (size_t)rows * n);
    int32_t *out = device_array<int32_t>((size_t)rows);
    cuda_argmax(dx, out, rows, n, twin_stream());
    same("argmax", out, want, (size_t)rows);
    cudaFree(dx);
    free(x); free(want);
}

static void embed(int n, int dim) {
    enum { V = 50 };
    float *t = filled((size_t)V * dim, 10), *want = zeros<float>((size_t)n * dim);
    uint16_t *table = rounded(t, (size_t)V * dim);
    int32_t *ids = zeros<int32_t>((size_t)n);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)(mix64((uint64_t)i) % V);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < dim; j++)
            want[(size_t)i * dim + j] = bf16_f32(table[(size_t)ids[i] * dim + j]);
    uint16_t *dt = to_device(table, (size_t)V * dim);
    int32_t *di = to_device(ids, (size_t)n);
    float *x = device_array<float>((size_t)n * dim);
    if (dim % BLK == 0) {               // rows as they lie in a file
        CudaWeight rows = { DT_BF16, V, dim, dim, dt, NULL };
        cuda_embed(&rows, di, x, n, twin_stream());
        same("embed", x, want, (size_t)n * dim);
        x = device_array<float>((size_t)n * dim);
    }
    // the encoder's: word + type + position
    float *type = filled((size_t)dim, 11), *dtype = to_device(type, (size_t)dim);
    for (int i = 0; i < n * dim; i++)
        want[i] = want[i] + type[i % dim] + bf16_f32(table[ids[i / dim] * dim + i % dim]);
    x = device_array<float>((size_t)n * dim);
    cuda_lingua_embed(dt, dt, dtype, di, di, x, n, dim, twin_stream());
    same("the encoder's embedding", x, want, (size_t)n * dim);
    cudaFree(dt); cudaFree(di); cudaFree(dtype);
    free(t); free(table); free(ids); free(want); free(type);
}

// rows of a table in the layout of a model's weights
static void embed_weight(DType dtype, int n, int dim) {
    enum { V = 37 };
    size_t blocks = (size_t)V * CEIL_DIV(dim, BLK), bytes = cuda_weight_bytes(dtype, V, dim);
    float *want = zeros<float>((size_t)n * dim), *x = device_array<float>((size_t)n * dim);
    char *file = zeros<char>(blocks * BLK * 2 + blocks * sizeof(Q8Block)), *lay = zeros<char>(bytes);
    for (size_t i = 0; dtype == DT_BF16 && i < (size_t)V * dim; i++)
        ((uint16_t *)file)[i] = f32_bf16(twin_value(12, i));
    for (size_t i = 0; dtype == DT_Q8 && i < blocks; i++) {
        Q8Block *q = (Q8Block *)file + i;
        q->scale = (uint16_t)(0x2000 + mix64(i) % 0x400);
        for (int k = 0; k < BLK; k++) {
            bool in = (int)(i % CEIL_DIV(dim, BLK)) * BLK + k < dim;
            q->q[k] = in ? (int8_t)(mix64(i * BLK + k) % 255 - 127) : (int8_t)0;
        }
    }
    Weight w = { dtype, V, dim, NULL, zeros<char>(weight_bytes(dtype, V, dim) + 64), NULL };
    void *unaligned = w.tiles;
    w.tiles = (void *)(((uintptr_t)w.tiles + 63) & ~(uintptr_t)63);
    weight_pack(&w, file);
    int32_t *ids = zeros<int32_t>((size_t)n);
    for (int i = 0; i < n; i++) {
        ids[i] = (int32_t)(mix64((uint64_t)i) % V);
        weight_row(&w, ids[i], want + (size_t)i * dim);
    }
    CudaWeight table;
    char *dw = device_array<char>(bytes);
    cuda_weight_lay(&table, dtype, V, dim, file, lay, dw);
    CUDA_OK(cudaMemcpy(dw, lay, bytes, cudaMemcpyHostToDevice));
    int32_t *di = to_device(ids, (size_t)n);
    cuda_embed(&table, di, x, n, twin_stream());
    same("embed of a weight", x, want, (size_t)n * dim);
    cudaFree(dw); cudaFree(di);
    free(want); free(file); free(lay); free(unaligned); free(ids);
}

// ---------------------------------------------------------------------------
// RoPE and appending

enum { LEN = 7, OWN = 3, SPLIT = 11, CAP = 40 };        // of every list before
typedef struct {
    int n, H, G, lists, hd, rope, words;
    bool step, by_index, live;
    bool apart;                 // keys first, then queries, as a sparse feed makes them
} RopeCase;

typedef struct {                // what the plain loops start from and leave
    float *q, *k, *v, inv[64];
    int32_t *pos, *row_pos, *live;
    uint16_t *rows;             // (lists, K and V, CAP, hd)
    uint32_t *state;            // (lists, words, CAP)
} RopeRows;

static void turn(float *x, const float *cs, const float *sn, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = fmaf(a, cs[i], -(b * sn[i]));
        x[i + half] = fmaf(b, cs[i], a * sn[i]);
    }
}

static void angles(const RopeRows *r, int half, int at, float *cs, float *sn) {
    for (int j = 0; j < half; j++) {
        fsincos((float)at * r->inv[j], &sn[j], &cs[j]);
        cs[j] *= 1.25f;
        sn[j] *= 1.25f;
    }
}

static void plain_rope(const RopeCase *c, RopeRows *r) {
    int half = c->rope / 2, hd = c->hd;
    float cs[64], sn[64], own_cs[64], own_sn[64];
    for (int i = 0; i < c->n; i++) {
        int ahead = c->step ? 0 : i, row = OWN + ahead, base = c->step ? i * c->lists : 0;
        angles(r, half, r->pos[i], cs, sn);
        angles(r, half, LEN + ahead, own_cs, own_sn);
        for (int h = 0; h < c->H; h++)
            turn(r->q + ((size_t)i * c->H + h) * hd, c->by_index ? own_cs : cs,
                 c->by_index ? own_sn : sn, half);
        for (int g = 0; g < c->G; g++) turn(r->k + ((size_t)i * c->G + g) * hd, cs, sn, half);
        for (int l = base; l < base + c->lists; l++) {
            size_t from = ((size_t)i * c->G + (l - base) / (c->lists / c->G)) * hd;
            uint16_t *key = r->rows + ((size_t)l * 2 * CAP + row) * hd, *value = key + CAP * hd;
            for (int j = 0; j < hd; j++) {
                key[j] = f32_bf16(r->k[from + j]);
                value[j] = f32_bf16(r->v[from + j]);
            }
            r->row_pos[l * CAP + row] = r->pos[i];
            if (c->live) r->live[l * CAP + LEN + ahead] = SPLIT + row;
            for (int w = 0; w < c->words; w++) r->state[(l * c->words + w) * CAP + LEN + ahead] = 0;
        }
    }
}

static void rope(RopeCase c) {
    int half = c.rope / 2;
    size_t lists = (size_t)(c.step ? c.n : 1) * c.lists, n = (size_t)c.n, each = (size_t)CAP * c.hd;
    size_t nq = n * c.H * c.hd, nk = n * c.G * c.hd, words = lists * c.words * CAP;
    RopeRows r = { filled(nq, 12), filled(nk, 13), filled(nk, 14), { 0 },
                   zeros<int32_t>(n), zeros<int32_t>(lists * CAP), zeros<int32_t>(lists * CAP),
                   zeros<uint16_t>(lists * 2 * each), zeros<uint32_t>(words) };
    memset(r.state, 0xff, words * sizeof *r.state);
    for (int i = 0; i < half; i++) r.inv[i] = (float)dexp2(-(double)i / half * 13.3);
    for (int i = 0; i < c.n; i++) r.pos[i] = c.step ? 1000 * i + 77 : 500 + i;
    float *q = to_device(r.q, nq), *k = to_device(r.k, nk), *v = to_device(r.v, nk),
          *inv = to_device(r.inv, 64), *cs = device_array<float>(n * half + 1),
          *sn = device_array<float>(n * half + 1);
    int32_t *pos = to_device(r.pos, n), *row_pos = to_device(r.row_pos, lists * CAP),
            *live = to_device(r.live, lists * CAP);
    uint16_t *rows = to_device(r.rows, lists * 2 * each), *q16 = device_array<uint16_t>(nq);
    uint32_t *state = to_device(r.state, words + 1);
    KeyList *list = zeros<KeyList>(lists), *d_list;
    DeviceHead *head = zeros<DeviceHead>(lists), *d_head;
    for (size_t i = 0; i < lists; i++) {
        list[i].k[1] = rows + i * 2 * each;
        list[i].v[1] = rows + (i * 2 + 1) * each;
        list[i].pos[1] = row_pos + i * CAP;
        list[i].split = SPLIT;
        list[i].len = LEN;
        list[i].live = c.live ? live + i * CAP : NULL;
        DeviceHead h = { live + i * CAP, state + i * c.words * CAP, c.words, CAP, OWN };
        head[i] = h;
    }
    d_list = to_device(list, lists);
    d_head = to_device(head, lists);
    RopeAppend a = { c.apart ? NULL : q, q16, k, v, (size_t)c.H * c.hd, (size_t)c.G * c.hd,
                     (size_t)c.G * c.hd, cs, sn, pos, d_list, d_head, c.step, c.by_index, 0, inv,
                     1.25f, c.n, c.H, c.G, c.lists, c.hd, c.rope };
    cuda_rope_angles(pos, inv, 1.25f, cs, sn, c.n, half, twin_stream());
    cuda_rope_append(&a, twin_stream());
    a.q = q;
    a.k = NULL;
    a.index0 = -c.n;
    if (c.apart) cuda_rope_append(&a, twin_stream());
    plain_rope(&c, &r);
    uint16_t *want16 = rounded(r.q, nq);
    same("rotated queries", q, r.q, nq);
    same("rotated queries in bf16", q16, want16, nq);
    same("appended rows", rows, r.rows, lists * 2 * each);
    same("appended positions", row_pos, r.row_pos, lists * CAP);
    same("appended entries", live, r.live, lists * CAP);
    same("cleared state", state, r.state, words);
    from_device(list, d_list, lists);
    from_device(head, d_head, lists);
    for (size_t i = 0; i < lists; i++) {
        int grown = c.step ? 1 : c.n;
        if (list[i].len == LEN + grown && head[i].own == OWN + grown) continue;
        twin_failures++;
        printf("list %zu has %d entries, %d rows\n", i, list[i].len, head[i].own);
    }
    void *device[] = { k, v, inv, cs, sn, pos, d_list, d_head };
    void *host[] = { r.q, r.k, r.v, r.pos, r.row_pos, r.live, r.rows, r.state, list, head, want16 };
    for (size_t i = 0; i < COUNTOF(device); i++) cudaFree(device[i]);
    for (size_t i = 0; i < COUNTOF(host); i++) free(host[i]);
}

// ---------------------------------------------------------------------------
// Experts

static void route_row(float *p, int n, int used) {      // as jamba.cu has it
    float top = p[0], lane[LANES] = { 0 };
    bool chosen[256] = { false };
    for (int x = 1; x < n; x++) top = p[x] > top ? p[x] : top;
    for (int x = 0; x < n; x++) lane[x % LANES] += p[x] = fexp2((p[x] - top) * 1.44269504f);
    float sum = lanes_sum(lane);
    for (int x = 0; x < n; x++) p[x] /= sum;
    for (int k = 0; k < used; k++) {
        int best = -1;
        for (int x = 0; x < n; x++) if (!chosen[x] && (best < 0 || p[x] > p[best])) best = x;
        chosen[best] = true;
    }
    for (int x = 0; x < n; x++) if (!chosen[x]) p[x] = 0.0f;
}

static void experts(int n, int X, int used, int E) {
    size_t nr = (size_t)n * X, ne = (size_t)n * E, rows = (size_t)n * used, ld = padded(E);
    float *route = filled(nr, 15), *x = filled(ne, 16), *out = filled(rows * E, 17);
    uint16_t *act = zeros<uint16_t>(n * ld), *gathered = zeros<uint16_t>(rows * ld);
    for (size_t i = 0; i < ne; i++) act[i / E * ld + i % E] = f32_bf16(x[i]);
    for (size_t i = 0; i < nr; i++) {
        route[i] *= 3;
        if (i / X % 5 == 1) route[i] = 0.5f;                    // all equal: the lowest ids
        if (i / X % 5 == 2 && i % X) route[i] = -300.0f;        // the second share vanishes
    }
    Routing a = { to_device(route, nr), device_array<int>(X), device_array<int>(X),
                  device_array<int>(rows), device_array<int>(nr), n, X, used, E,
                  (int)ld };
    uint16_t *dact = to_device(act, n * ld), *dto = to_device(gathered, rows * ld);
    float *dx = to_device(x, ne), *dout = to_device(out, rows * E);
    cuda_route(&a, twin_stream());
    cuda_experts_gather(&a, dact, dto, twin_stream());
    cuda_experts_combine(&a, dout, dx, twin_stream());
    int *count = zeros<int>((size_t)X), at = 0;
    for (int i = 0; i < n; i++) route_row(route + (size_t)i * X, X, used);
    for (int e = 0; e < X; e++)
        for (int i = 0; i < n; i++) {
            float share = route[(size_t)i * X + e];
            if (!(share > 0)) continue;
            count[e]++;
            for (int j = 0; j < E; j++) {
                gathered[at * ld + j] = act[i * ld + j];
                x[(size_t)i * E + j] = fmaf(share, out[(size_t)at * E + j], x[(size_t)i * E + j]);
            }
            at++;
        }
    same("shares of experts", a.route, route, nr);
    same("rows of experts", a.count, count, (size_t)X);
    same("gathered rows", dto, gathered, rows * ld);
    same("combined rows", dx, x, ne);
    cudaFree(a.first); cudaFree(a.slot); cudaFree(a.place); cudaFree(dact); cudaFree(dout);
    free(route); free(x); free(out); free(act); free(gathered); free(count);
}

// ---------------------------------------------------------------------------
// The encoder

static void encoder(int n, int H, int hd) {
    int E = H * hd;
    size_t all = (size_t)n * E;
    float *q = filled(all, 18), *k = filled(all, 19), *v = filled(all, 20),
          *z = filled(2 * (size_t)n, 21);
    uint16_t *want = zeros<uint16_t>(3 * all);
    float *p = zeros<float>((size_t)n);
    const float *part[3] = { q, k, v };
    for (int w = 0; w < 3; w++)
        for (int i = 0; i < n; i++)
            for (int j = 0; j < E; j++)
                want[(((size_t)w * H + j / hd) * n + i) * hd + j % hd] =
                    f32_bf16(part[w][(size_t)i * E + j]);
    for (int i = 0; i < n; i++) {
        float d = (z[2 * i] - z[2 * i + 1]) * 1.44269504f, e = fexp2(d < 0 ? d : -d);
        p[i] = d < 0 ? 1.0f / (1.0f + e) : e / (1.0f + e);
    }
    float *dq = to_device(q, all), *dk = to_device(k, all), *dv = to_device(v, all),
          *dz = to_device(z, 2 * (size_t)n);
    uint16_t *to = device_array<uint16_t>(3 * all);
    float *dp = device_array<float>((size_t)n);
    cuda_split_heads(dq, dk, dv, to, n, H, hd, twin_stream());
    cuda_keep_probability(dz, dp, n, twin_stream());
    same("split heads", to, want, 3 * all);
    same("probabilities", dp, p, (size_t)n);
    // gelu within 2e-7 of the library's, rounded to bf16
    int ld = CEIL_DIV(E, 32) * 32;
    uint16_t *act = device_array<uint16_t>((size_t)n * ld), *got = zeros<uint16_t>((size_t)n * ld);
    cuda_gelu(dq, act, n, E, ld, twin_stream());
    from_device(got, act, (size_t)n * ld);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < ld; j++) {
            double x = j < E ? q[(size_t)i * E + j] : 0, y = x / 2 * (1 + erf(x / sqrt(2.0)));
            if (fabs(bf16_f32(got[(size_t)i * ld + j]) - y) <= fabs(y) / 250 + 1e-6) continue;
            twin_failures++;
            printf("gelu of %g is %g\n", x, (double)bf16_f32(got[(size_t)i * ld + j]));
        }
    cudaFree(dq); cudaFree(dk); cudaFree(dv); cudaFree(dz); cudaFree(act);
    free(q); free(k); free(v); free(z); free(want); free(p); free(got);
}

// make try K=rows: RMSNorm of a step, of a short and of a long chunk of an 8B model
static void times(void) {
    enum { DIM = 4096 };
    const int rows[] = { 1, 512, 8192 };
    float *w = device_array<float>(DIM), *x = device_array<float>((size_t)8192 * DIM);
    uint16_t *act = device_array<uint16_t>((size_t)8192 * DIM);
    CUDA_OK(cudaMemset(w, 0, DIM * sizeof *w));
    CUDA_OK(cudaMemset(x, 0, (size_t)8192 * DIM * sizeof *x));
    for (int i = 0; i < 3; i++) {
        RowNorm a = { x, NULL, w, NULL, NULL, act, DIM, 0, DIM, DIM, 1e-5f };
        char label[32];
        snprintf(label, sizeof label, "norm %d x %d", rows[i], (int)DIM);
        twin_time(label, [&] { cuda_norm(&a, rows[i], 1, twin_stream()); });
    }
    cudaFree(w); cudaFree(x); cudaFree(act);
}

static void counting(void) {
    int32_t want[300], *to = device_array<int32_t>(300);
    for (int i = 0; i < 300; i++) want[i] = 7 + i;
    cuda_count(to, 7, 300, twin_stream());
    same("counting", to, want, 300);
}

int main(void) {
    Err err;
    if (twin_begin()) return 77;
    if (twin_timing()) { times(); return 0; }
    CHECK(!cpu_init(1, &err), "%s", err.msg);
    norms(3, 64, 1, false);
    norms(2, 4096 + 19, 1, false);      // more than one part of shared memory, odd
    norms(2, 7, 1, false);
    norms(2, 33, 3, true);              // groups with a gate
    layer_norm(2, 100);
    layer_norm(1, 5);
    elementwise(3, 48);
    elementwise(2, 259);
    argmax(6, 2500);
    argmax(6, 3);
    argmax(1, 1);
    embed(5, 40);
    embed(1, 300);
    embed(3, 64);
    counting();
    embed_weight(DT_BF16, 5, 72);
    embed_weight(DT_Q8, 9, 288);
    embed_weight(DT_Q8, 2, 40);
    rope({ 5, 4, 2, 2, 16, 16, 1, false, false, true, false });
    rope({ 3, 4, 2, 4, 12, 8, 3, false, true, false, false }); // query heads keep their own rows
    rope({ 4, 6, 1, 1, 80, 64, 0, true, true, true, false });  // a step of four caches
    rope({ 2, 2, 2, 2, 20, 0, 2, true, false, false, false }); // no rotation
    rope({ 9, 4, 2, 2, 24, 16, 1, false, true, true, true });
    experts(37, 16, 2, 24);
    experts(300, 3, 2, 8);
    experts(1, 40, 3, 300);
    encoder(9, 3, 20);
    return twin_end("rows");
}
