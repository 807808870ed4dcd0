// llama.cu - the transformer's pieces and the forward pass of the dense family: Llama 2, 3, 3.1,
// SmolLM2 (arXiv 2302.13971, 2407.21783), Mistral (2310.06825), Qwen2.5 (2412.15115), GLM-4
// (2406.12793). They differ in widths, biases and the rotary part alone. Per layer, for the
// residual stream x (n, E):
//   q, k, v = W_{q,k,v} norm(x)     rotated by position (arXiv 2104.09864)
//   x += W_o attention(q, k, v)     sparse_attn.cu, cache.cu
//   x += W_2 (silu(W_1 norm(x)) * W_3 norm(x))
// A feed runs layer by layer over the whole feed and, inside a layer, chunk by chunk: only x is as
// long as the feed, and a layer's keys are complete before its policy acts.
#include "kernels.h"
#include <omp.h>

// ---------------------------------------------------------------------------
// RMSNorm (arXiv 1910.07467): y_i = x_i / sqrt(mean(x^2) + eps) * w_i

void rmsnorm(float *y, const float *x, const float *w, int dim, float eps) {
    float lane[LANES] = { 0 };
    int i = 0;
    for (; i + LANES <= dim; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] = fmaf(x[i + j], x[i + j], lane[j]);
    for (int j = 0; i + j < dim; j++) lane[j] = fmaf(x[i + j], x[i + j], lane[j]);
    float r = 1.0f / sqrtf(lanes_sum(lane) / (float)dim + eps);
    for (i = 0; i < dim; i++) y[i] = (x[i] * r) * w[i];
}

#ifdef SCB_CUDA
enum { NORM_THREADS = 256, NORM_PART = 4096 };

// One row, by a block: sum of (x - center)^2, or of x, where x is x * silu(gate). The row passes
// through shared memory; 16 threads add it up in the order of the plain loop, which costs as many
// cycles as a row has quarters of channels and gives its bits.
template <bool SQUARE>
__device__ static float row_sum(const float *x, const float *gate, int dim, float center) {
    SHARED(float, part, NORM_PART);
    SHARED(float, sum, 1);
    float lane = 0;
    for (int at = 0; at < dim; at += NORM_PART) {
        int n = dim - at < NORM_PART ? dim - at : NORM_PART;
        __syncthreads();                        // part is read no more
        for (int i = threadIdx.x; i < n; i += NORM_THREADS)
            part[i] = gate ? x[at + i] * fsilu(gate[at + i]) : x[at + i];
        __syncthreads();
        if (threadIdx.x >= LANES) continue;
#pragma unroll 8
        for (int i = threadIdx.x; i < n; i += LANES) {
            float d = part[i] - center;
            lane = SQUARE ? fmaf(d, d, lane) : lane + d;
        }
    }
    if (threadIdx.x < 32) {
        lane = half_warp_sum(lane);
        if (threadIdx.x == 0) sum[0] = lane;
    }
    __syncthreads();
    return sum[0];
}

// grid (rows, parts), block NORM_THREADS
__global__ static void norm_k(RowNorm a) {
    size_t part = (size_t)blockIdx.y * a.dim, at = blockIdx.x * a.ldx + part;
    const float *x = a.x + at, *gate = a.gate ? a.gate + at : NULL, *w = a.w + part;
    float mean = a.bias ? row_sum<false>(x, gate, a.dim, 0.0f) / (float)a.dim : 0.0f;
    float r = 1.0f / sqrtf(row_sum<true>(x, gate, a.dim, mean) / (float)a.dim + a.eps);
    for (int i = threadIdx.x; i < a.dim; i += NORM_THREADS) {
        float v = gate ? x[i] * fsilu(gate[i]) : x[i];
        v = a.bias ? (v - mean) * r * w[i] + a.bias[part + i] : (v * r) * w[i];
        if (a.y) a.y[blockIdx.x * a.ldy + part + i] = v;
        if (a.act) a.act[blockIdx.x * a.ld_act + part + i] = f32_bf16(v);
    }
    if (!a.act || blockIdx.y + 1 < gridDim.y) return;
    for (size_t i = part + a.dim + threadIdx.x; i < a.ld_act; i += NORM_THREADS)
        a.act[blockIdx.x * a.ld_act + i] = 0;
}

void cuda_norm(const RowNorm *a, int rows, int parts, void *stream) {
    if (rows) LAUNCH(norm_k, dim3(rows, parts), NORM_THREADS, 0, stream, *a);
}
#endif

// ---------------------------------------------------------------------------
// RoPE, half-split: pair (x_i, x_{i + R/2}) turns by angle pos * inv_i,  inv_i = theta^(-2i/R).

// llama3 (Llama 3.1): wavelengths above orig/low are stretched by the factor, those below orig/high
// stay, between them the two are blended by s = (orig/wavelength - low) / (high - low)
static double llama3_scale(const Config *c, double inv) {
    double wave = 6.28318530717958647692 / inv, orig = c->rope_orig_ctx;
    if (wave > orig / c->rope_low_freq_factor) return inv / c->rope_factor;
    if (wave < orig / c->rope_high_freq_factor) return inv;
    double s = (orig / wave - c->rope_low_freq_factor) /
               (c->rope_high_freq_factor - c->rope_low_freq_factor);
    return (1.0 - s) * inv / c->rope_factor + s * inv;
}

// YaRN (arXiv 2309.00071, 3.2): frequencies that turn less than once in the original context are
// divided by the factor, those that turn more than 32 times stay, a ramp over the indices between
static double yarn_scale(const Config *c, double inv, int i) {
    double edge[2], turns[2] = { 32, 1 };
    for (int k = 0; k < 2; k++) {
        double at = c->rope_dim *
                    dlog2(c->rope_orig_ctx / (turns[k] * 6.28318530717958647692)) /
                    (2 * dlog2(c->rope_theta));
        edge[k] = k ? fmin(ceil(at), c->rope_dim - 1) : fmax(floor(at), 0);
    }
    if (edge[0] == edge[1]) edge[1] += 0.001;
    double ramp = fmin(fmax((i - edge[0]) / (edge[1] - edge[0]), 0), 1);
    return inv / c->rope_factor * ramp + inv * (1 - ramp);
}

// dynamic NTK: theta grows with the length S beyond the original M. S is the model's longest
// context, not the length of the moment: rows must not depend on how they were fed.
static double ntk_theta(const Config *c) {
    double R = c->rope_dim, S = c->max_ctx, M = c->rope_orig_ctx;
    if (c->rope_scaling != ROPE_DYNAMIC || S <= M) return c->rope_theta;
    return c->rope_theta * dexp2(R / (R - 2) * dlog2(c->rope_factor * S / M - c->rope_factor + 1));
}

void rope_frequencies(const Config *c, float *inv) {
    double theta = dlog2(ntk_theta(c));
    for (int i = 0; i < c->rope_dim / 2; i++) {
        double f = dexp2(-(2.0 * i / c->rope_dim) * theta);
        if (c->rope_scaling == ROPE_LINEAR) f /= c->rope_factor;
        else if (c->rope_scaling == ROPE_LLAMA3) f = llama3_scale(c, f);
        else if (c->rope_scaling == ROPE_YARN) f = yarn_scale(c, f, i);
        inv[i] = (float)f;
    }
}

// YaRN sharpens attention: cos and sin are multiplied by 1 + ln(factor) / 10
static float rope_amplitude(const Config *c) {
    if (c->rope_scaling != ROPE_YARN || c->rope_factor <= 1) return 1.0f;
    return (float)(0.1 * 0.69314718055994530942 * dlog2(c->rope_factor) + 1);
}

static void rope_angles(float *cs, float *sn, const Forward *f, int64_t pos) {
    float amplitude = rope_amplitude(f->c);
    for (int i = 0; i < f->c->rope_dim / 2; i++) {
        fsincos((float)pos * f->shape->inv_freq[i], &sn[i], &cs[i]);
        cs[i] *= amplitude;
        sn[i] *= amplitude;
    }
}

static void rope_head(float *x, const float *cs, const float *sn, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = fmaf(a, cs[i], -(b * sn[i]));
        x[i + half] = fmaf(b, cs[i], a * sn[i]);
    }
}

#ifdef SCB_CUDA
// grid covers (n, half)
__global__ static void rope_angles_k(const int32_t *pos, const float *inv_freq, float amplitude,
                                     float *cs, float *sn, int n, int half) {
    size_t at = thread_item();
    if (at >= (size_t)n * half) return;
    float s, c;
    fsincos((float)pos[at / half] * inv_freq[at % half], &s, &c);
    cs[at] = c * amplitude;
    sn[at] = s * amplitude;
}

void cuda_rope_angles(const int32_t *pos, const float *inv_freq, float amplitude, float *cs,
                      float *sn, int n, int half, void *stream) {
    size_t all = (size_t)n * half;
    if (all)
        LAUNCH(rope_angles_k, blocks_for(all, 128), 128, 0, stream, pos, inv_freq, amplitude, cs,
               sn, n, half);
}

enum { ROPE_THREADS = 256, ROPE_MOST = 512 };   // half of the widest rotary part

// channels j and j + half of a head's row of a, rotated; channels behind the pairs are as they are
__device__ static void rope_pair(const float *x, int j, int half, const float *cs, const float *sn,
                                 float *u, float *v) {
    *u = fmaf(x[j], cs[j], -(x[j + half] * sn[j]));
    *v = fmaf(x[j + half], cs[j], x[j] * sn[j]);
}

// a warp: one query row, in place and in bf16
__device__ static void rope_query(float *x, uint16_t *to, int hd, int half, const float *cs,
                                  const float *sn) {
    for (int j = threadIdx.x % 32; j < half; j += 32) {
        float u, v;
        rope_pair(x, j, half, cs, sn, &u, &v);
        x[j] = u;
        x[j + half] = v;
        if (to) to[j] = f32_bf16(u);
        if (to) to[j + half] = f32_bf16(v);
    }
    for (int j = 2 * half + threadIdx.x % 32; to && j < hd; j += 32) to[j] = f32_bf16(x[j]);
}

// a warp: one key row, or with half = 0 a value row
__device__ static void rope_store(const float *x, uint16_t *to, int hd, int half, const float *cs,
                                  const float *sn) {
    for (int j = threadIdx.x % 32; j < half; j += 32) {
        float u, v;
        rope_pair(x, j, half, cs, sn, &u, &v);
        to[j] = f32_bf16(u);
        to[j + half] = f32_bf16(v);
    }
    for (int j = 2 * half + threadIdx.x % 32; j < hd; j += 32) to[j] = f32_bf16(x[j]);
}

// grid (n, n_lists): row i under list l. The warps take its query heads, its key and its value.
__global__ static void rope_append_k(RopeAppend a) {
    SHARED(float, own_cs, ROPE_MOST);
    SHARED(float, own_sn, ROPE_MOST);
    int i = blockIdx.x, l = blockIdx.y, half = a.rope_dim / 2, hd = a.head_dim;
    int share = a.n_heads / a.n_lists, ahead = a.step ? 0 : i;
    KeyList *list = &a.list[a.step ? i * a.n_lists + l : l];
    DeviceHead *head = &a.head[a.step ? i * a.n_lists + l : l];
    int entry = list->len + ahead, row = head->own + ahead;
    const float *cs = a.cos + (size_t)i * half, *sn = a.sin + (size_t)i * half;
    for (int j = threadIdx.x; a.by_index && j < half; j += ROPE_THREADS) {
        float s, c;
        fsincos((float)(entry + a.index0) * a.inv_freq[j], &s, &c);
        own_cs[j] = c * a.amplitude;
        own_sn[j] = s * a.amplitude;
    }
    __syncthreads();
    for (int w = threadIdx.x / 32; w < share + 2; w += ROPE_THREADS / 32) {
        size_t h = (size_t)l * share + w, g = (size_t)(l / (a.n_lists / a.n_kv_heads)) * hd;
        if (w < share && a.q)
            rope_query(a.q + i * a.ldq + h * hd,
                       a.q16 ? a.q16 + ((size_t)i * a.n_heads + h) * hd : NULL, hd, half,
                       a.by_index ? own_cs : cs, a.by_index ? own_sn : sn);
        if (w == share && a.k)
            rope_store(a.k + i * a.ldk + g, (uint16_t *)list->k[1] + (size_t)row * hd, hd, half, cs,
                       sn);
        if (w == share + 1 && a.k)
            rope_store(a.v + i * a.ldv + g, (uint16_t *)list->v[1] + (size_t)row * hd, hd, 0, cs,
                       sn);
    }
    if (threadIdx.x || !a.k) return;
    ((int32_t *)list->pos[1])[row] = a.pos[i];
    if (list->live) head->live[entry] = list->split + row;
    for (int k = 0; k < head->words; k++) head->state[(size_t)k * head->cap + entry] = 0;
    if (!a.step) return;
    list->len = entry + 1;
    head->own = row + 1;
}

// grid covers the lists
__global__ static void lists_grow_k(KeyList *list, DeviceHead *head, int n_lists, int n) {
    int l = (int)thread_item();
    if (l >= n_lists) return;
    list[l].len += n;
    head[l].own += n;
}

void cuda_rope_append(const RopeAppend *a, void *stream) {
    CHECK(a->rope_dim <= 2 * ROPE_MOST, "a rotary part of %d channels", a->rope_dim);
    if (!a->n) return;
    LAUNCH(rope_append_k, dim3(a->n, a->n_lists), ROPE_THREADS, 0, stream, *a);
    if (!a->step && a->k)
        LAUNCH(lists_grow_k, blocks_for(a->n_lists, 32), 32, 0, stream, a->list, a->head,
               a->n_lists, a->n);
}
#endif

// ---------------------------------------------------------------------------
// SwiGLU (arXiv 2002.05202): silu(g) u

static void swiglu(float *y, const float *g, const float *u, int n) {
    for (int i = 0; i < n; i++) y[i] = fsilu(g[i]) * u[i];
}

#ifdef SCB_CUDA
// grid (channels, rows): channels from k to ld are zero
__global__ static void swiglu_k(const float *gate, const float *up, uint16_t *act, int k, int ld) {
    size_t i = thread_item(), row = blockIdx.y;
    if (i >= (size_t)ld) return;
    act[row * ld + i] =
        i < (size_t)k ? f32_bf16(fsilu(gate[row * k + i]) * up[row * k + i]) : (uint16_t)0;
}

void cuda_swiglu(const float *gate, const float *up, uint16_t *act, int rows, int k, int ld,
                 void *stream) {
    if (rows)
        LAUNCH(swiglu_k, dim3(blocks_for(ld, 256), rows), 256, 0, stream, gate, up, act, k, ld);
}

__global__ static void round_k(const float *x, uint16_t *act, int k, int ld) {
    size_t i = thread_item(), row = blockIdx.y;
    if (i < (size_t)ld)
        act[row * ld + i] = i < (size_t)k ? f32_bf16(x[row * k + i]) : (uint16_t)0;
}

void cuda_round(const float *x, uint16_t *act, int rows, int k, int ld, void *stream) {
    if (rows) LAUNCH(round_k, dim3(blocks_for(ld, 256), rows), 256, 0, stream, x, act, k, ld);
}

// grid covers the elements
__global__ static void add_k(float *x, const float *y, size_t n) {
    size_t i = thread_item();
    if (i < n) x[i] += y[i];
}

void cuda_add(float *x, const float *y, size_t n, void *stream) {
    if (n) LAUNCH(add_k, blocks_for(n, 256), 256, 0, stream, x, y, n);
}

enum { ARGMAX_THREADS = 1024 };

// the larger, or the lower index of equals; NaN is never larger
__device__ static void argmax_take(float *best, int *at, float x, int i) {
    bool take = x > *best || (x == *best && i < *at);
    *best = take ? x : *best;
    *at = take ? i : *at;
}

// grid rows
__global__ static void argmax_k(const float *logits, int32_t *out, int n) {
    SHARED(float, best, 32);
    SHARED(int, where, 32);
    const float *x = logits + (size_t)blockIdx.x * n;
    float b = -INFINITY;
    int at = INT_MAX, warp = threadIdx.x / 32;
    for (int i = threadIdx.x; i < n; i += ARGMAX_THREADS) argmax_take(&b, &at, x[i], i);
    for (int round = 0; round < 2; round++) {
        for (int s = 16; s; s >>= 1)
            argmax_take(&b, &at, __shfl_down_sync(0xffffffffu, b, s),
                        __shfl_down_sync(0xffffffffu, at, s));
        if (round) break;
        if (threadIdx.x % 32 == 0) {
            best[warp] = b;
            where[warp] = at;
        }
        __syncthreads();
        if (warp) return;
        b = best[threadIdx.x];
        at = where[threadIdx.x];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = x[0] != x[0] || at >= n ? 0 : at;
}

void cuda_argmax(const float *logits, int32_t *out, int rows, int n, void *stream) {
    if (rows) LAUNCH(argmax_k, rows, ARGMAX_THREADS, 0, stream, logits, out, n);
}
#endif

// ---------------------------------------------------------------------------
// Weights: the one list of names and shapes (a file, a seed and a byte count all walk it)

int llama_bind(Weights *w, const Config *c, Loader *from, Err *err) {
    int q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    char name[64];
#define MATRIX(field, key, n, k, rows)                                                             \
    if (from->matrix(from, &(field), key, n, k, rows, err)) return -1
#define VECTOR(field, key, n) if (from->vector(from, &(field), key, n, 0, err)) return -1
#define NAME(key) (snprintf(name, sizeof name, "layers.%d." key, l), name)
    w->layer = (LlamaLayer *)xrealloc(NULL, sizeof *w->layer * (size_t)c->n_layers);
    memset(w->layer, 0, sizeof *w->layer * (size_t)c->n_layers);
    MATRIX(w->embed, "embed", c->vocab_size, c->dim, !c->tied);
    for (int l = 0; l < c->n_layers; l++) {
        LlamaLayer *y = &w->layer[l];
        VECTOR(y->attn_norm, NAME("attn_norm"), c->dim);
        MATRIX(y->wq, NAME("wq"), q, c->dim, false);
        MATRIX(y->wk, NAME("wk"), kv, c->dim, false);
        MATRIX(y->wv, NAME("wv"), kv, c->dim, false);
        if (c->qkv_bias) {
            VECTOR(y->bq, NAME("bq"), q);
            VECTOR(y->bk, NAME("bk"), kv);
            VECTOR(y->bv, NAME("bv"), kv);
        }
        MATRIX(y->wo, NAME("wo"), c->dim, q, false);
        VECTOR(y->ffn_norm, NAME("ffn_norm"), c->dim);
        MATRIX(y->w1, NAME("w1"), c->hidden_dim, c->dim, false);
        MATRIX(y->w3, NAME("w3"), c->hidden_dim, c->dim, false);
        MATRIX(y->w2, NAME("w2"), c->dim, c->hidden_dim, false);
    }
    VECTOR(w->final_norm, "final_norm", c->dim);
    if (c->tied) w->head = w->embed;
    else MATRIX(w->head, "lm_head", c->vocab_size, c->dim, false);
#undef MATRIX
#undef VECTOR
#undef NAME
    return 0;
}

// ---------------------------------------------------------------------------
// Scratch of one feed of n tokens in chunks of C

// widest input of a product
static size_t widest(const Config *c) {
    size_t wide = (size_t)c->n_heads * c->head_dim;
    if ((size_t)c->dim > wide) wide = (size_t)c->dim;
    if ((size_t)c->hidden_dim > wide) wide = (size_t)c->hidden_dim;
    size_t mixed = (size_t)c->ssm_inner + 2 * (size_t)c->ssm_groups * c->ssm_state;
    if (mixed > wide) wide = mixed;
    if ((size_t)c->ssm_dt_rank > wide) wide = (size_t)c->ssm_dt_rank;
    return wide;
}

size_t buffers_carve(const Config *c, int n, int chunk, char *base, FeedBuffers *b) {
    size_t C = (size_t)(n < chunk ? n : chunk), at = 0, half = (size_t)c->rope_dim / 2;
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    size_t wide = widest(c), cpu = c->device ? 0 : 1, device = 1 - cpu;
#define CARVE(field, type, count)                                                                  \
    (b->field = (type *)(base + at), at += carve_bytes((size_t)(count) * sizeof(type)))
    CARVE(x, float, (size_t)n * c->dim);
    CARVE(q, float, C * q);
    CARVE(k, float, C * kv);
    CARVE(v, float, C * kv);
    CARVE(att, float, cpu * C * q);
    CARVE(gate, float, C * c->hidden_dim);
    CARVE(up, float, C * c->hidden_dim);
    CARVE(act, char, cpu ? act_bytes(mul_kind(c->dtype), (int)C, (int)wide)
                         : C * (size_t)padded((int)wide) * sizeof(uint16_t));
    CARVE(cos, float, (size_t)n * half);
    CARVE(sin, float, (size_t)n * half);
    CARVE(row, float, cpu * (size_t)cpu_threads() * ((wide + 31) & ~(size_t)31));
    CARVE(ids, int32_t, device * n);
    CARVE(pos, int32_t, device * n);
    CARVE(q16, uint16_t, device * C * q);
    CARVE(logits, float, device * (C < (size_t)STEP_BATCH ? C : (size_t)STEP_BATCH) * c->vocab_size);
#undef CARVE
    return at;
}

size_t llama_scratch(const Config *c, int n, int chunk) {
    static char base[1];                // only offsets are wanted
    FeedBuffers b;
    return buffers_carve(c, n < 1 ? 1 : n, chunk, base, &b);
}

// ---------------------------------------------------------------------------
// Forward

double phase_s(const Forward *f) {
#ifdef SCB_CUDA
    if (f->device && f->timed) device_wait(f->device);
#endif
    (void)f;
    return now_s();
}

float *thread_row(const Forward *f, const FeedBuffers *b) {
    return b->row + (size_t)omp_get_thread_num() * ((widest(f->c) + 31) & ~(size_t)31);
}

void norm_act(const Forward *f, const FeedBuffers *b, const float *x, const float *w, int n) {
    const Config *c = f->c;
#ifdef SCB_CUDA
    if (f->device) {
        RowNorm a = { .x = x, .w = w, .act = (uint16_t *)b->act, .ldx = (size_t)c->dim,
                      .ld_act = (size_t)padded(c->dim), .dim = c->dim, .eps = c->norm_eps };
        cuda_norm(&a, n, 1, device_stream(f->device));
        return;
    }
#endif
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++) {
        float *y = thread_row(f, b);
        rmsnorm(y, x + (size_t)i * c->dim, w, c->dim, c->norm_eps);
        act_row(f->shape->kind, b->act, i, y, c->dim);
    }
}

void swiglu_act(const Forward *f, const FeedBuffers *b, int n) {
    const Config *c = f->c;
#ifdef SCB_CUDA
    if (f->device) {
        cuda_swiglu(b->gate, b->up, (uint16_t *)b->act, n, c->hidden_dim, padded(c->hidden_dim),
                    device_stream(f->device));
        return;
    }
#endif
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++) {
        float *y = thread_row(f, b);
        swiglu(y, b->gate + (size_t)i * c->hidden_dim, b->up + (size_t)i * c->hidden_dim,
               c->hidden_dim);
        act_row(f->shape->kind, b->act, i, y, c->hidden_dim);
    }
}

enum { MAKE_Q = 1, MAKE_KV = 2 };       // which rows of a chunk are made

// rotates n rows of q and k; first: index of the rows in the feed. Queries of a cache that turns
// its keys turn to the place of their own row there. In a step every row is another cache's.
// On a device the same kernel stores the keys and values behind their lists.
static void rope_rows(const Forward *f, const FeedBuffers *b, int kv_layer, int first, int n,
                      int make, int stored) {
    const Config *c = f->c;
    int half = c->rope_dim / 2;
#ifdef SCB_CUDA
    if (f->device) {
        size_t at = (size_t)first * half, q = (size_t)c->n_heads * c->head_dim,
               kv = (size_t)c->n_kv_heads * c->head_dim;
        RopeAppend a = { .q = make & MAKE_Q ? b->q : NULL, .q16 = make & MAKE_Q ? b->q16 : NULL,
                         .k = make & MAKE_KV ? b->k : NULL, .v = make & MAKE_KV ? b->v : NULL,
                         .ldq = q, .ldk = kv, .ldv = kv, .cos = b->cos + at, .sin = b->sin + at,
                         .pos = b->pos + first, .step = f->of != NULL,
                         .index0 = f->of ? 0 : first - stored, .inv_freq = f->shape->inv_freq,
                         .amplitude = rope_amplitude(c), .n = n, .n_heads = c->n_heads,
                         .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim,
                         .rope_dim = c->rope_dim };
        kv_device_append(f->of ? f->of[0].kv : f->kv, f->work, kv_layer, &a);
        return;
    }
#endif
    if (!half) return;
#pragma omp parallel for if (n > 16)
    for (int i = 0; i < n; i++) {
        const KVCache *kv = f->of ? f->of[i].kv : f->kv;
        int fed = f->of ? 0 : first + i;
        bool turns = kv_turns(kv) && (make & MAKE_Q);
        const float *cs = b->cos + (size_t)(first + i) * half,
                    *sn = b->sin + (size_t)(first + i) * half;
        float own_cs[512], own_sn[512];
        int64_t at = -1;
        int share = c->n_heads / kv_heads(kv);          // query heads of one list
        for (int g = 0; (make & MAKE_KV) && g < c->n_kv_heads; g++)
            rope_head(b->k + ((size_t)i * c->n_kv_heads + g) * c->head_dim, cs, sn, half);
        for (int h = 0; (make & MAKE_Q) && h < c->n_heads; h++) {
            int64_t own =
                turns ? kv_query_at(kv, kv_layer, h / share, stored, fed, f->of != NULL) : 0;
            if (turns && own != at) {
                at = own;
                rope_angles(own_cs, own_sn, f, at);
            }
            rope_head(b->q + ((size_t)i * c->n_heads + h) * c->head_dim, turns ? own_cs : cs,
                      turns ? own_sn : sn, half);
        }
    }
}

#ifdef SCB_CUDA
// what the host has for a call: ids, positions, and the lists of a step
static void device_send(const Forward *f, const FeedBuffers *b) {
    int32_t *pos = (int32_t *)xrealloc(NULL, ((size_t)f->n + 1) * sizeof *pos);
    for (int i = 0; i < f->n; i++) pos[i] = (int32_t)(f->of ? f->of[i].pos : f->pos + i);
    mem_put(f->mem, b->ids, f->ids, (size_t)f->n * sizeof *b->ids);
    mem_put(f->mem, b->pos, pos, (size_t)f->n * sizeof *pos);
    free(pos);
    for (int p = 0; f->of && f->work && p < device_parts(f->device); p++) {
        device_use(f->device, p);
        kv_device_begin(f->of, f->n, f->works[p]);
    }
    device_use(f->device, 0);
}
#endif

void layer_enter(Forward *f, FeedBuffers *b, int layer) {
    int part = device_part_of(f->device, layer);
    size_t n = (size_t)f->n, turns = n * (f->c->rope_dim / 2) * sizeof(float);
    FeedBuffers to;
    if (f->load) f->load(f->load_user, layer);
    if (part == f->part) return;
    device_use(f->device, part);
    f->part = part;
    f->scratch = f->scratches[part];
    f->work = f->works[part];
    buffers_carve(f->c, f->n < 1 ? 1 : f->n, f->of ? f->n : f->chunk, (char *)f->scratch, &to);
    mem_copy(f->mem, to.x, b->x, n * f->c->dim * sizeof(float));
    mem_copy(f->mem, to.cos, b->cos, turns);
    mem_copy(f->mem, to.sin, b->sin, turns);
    mem_copy(f->mem, to.pos, b->pos, n * sizeof *b->pos);
    *b = to;
}

void embed_rows(const Forward *f, const FeedBuffers *b) {
#ifdef SCB_CUDA
    if (f->device) {
        CudaWeight table = cuda_weight(&f->w->embed);
        void *stream = device_stream(f->device);
        if (!f->of) device_send(f, b);
        cuda_embed(&table, b->ids, b->x, f->n, stream);
        cuda_rope_angles(b->pos, f->shape->inv_freq, rope_amplitude(f->c), b->cos, b->sin, f->n,
                         f->c->rope_dim / 2, stream);
        return;
    }
#endif
#pragma omp parallel for if (f->n > 16)
    for (int i = 0; i < f->n; i++) {
        weight_row(&f->w->embed, f->ids[i], b->x + (size_t)i * f->c->dim);
        size_t at = (size_t)i * (f->c->rope_dim / 2);
        rope_angles(b->cos + at, b->sin + at, f, f->of ? f->of[i].pos : f->pos + i);
    }
}

void products(Forward *f, const FeedBuffers *b, const LinearJob *jobs, int n_jobs, int n) {
#ifdef SCB_CUDA
    if (f->device)
        cuda_linear(device_gemm(f->device), jobs, n_jobs, b->act, n, device_stream(f->device));
    else
#endif
        linear(f->shape->kind, jobs, n_jobs, b->act, n);
    for (int j = 0; j < n_jobs; j++) {
        const Weight *w = jobs[j].w;
        f->phases->weight_bytes += (double)weight_bytes(w->dtype, w->n, w->k);
        f->phases->linear_flops += 2.0 * n * w->n * w->k;
    }
}

static void qkv(Forward *f, const FeedBuffers *b, int layer, int kv_layer, int first, int n,
                int make, int stored) {
    const Config *c = f->c;
    const LlamaLayer *w = &f->w->layer[layer];
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    LinearJob jobs[3] = { { &w->wq, w->bq, b->q, q, false, NULL },
                          { &w->wk, w->bk, b->k, kv, false, NULL },
                          { &w->wv, w->bv, b->v, kv, false, NULL } };
    double t = phase_s(f);
    norm_act(f, b, b->x + (size_t)first * c->dim, w->attn_norm, n);
    products(f, b, jobs + !(make & MAKE_Q), !!(make & MAKE_Q) + 2 * !!(make & MAKE_KV), n);
    f->phases->linear_s += phase_s(f) - t;
    rope_rows(f, b, kv_layer, first, n, make, stored);
}

static void attn_out(Forward *f, const FeedBuffers *b, int layer, int first, int n) {
    const Config *c = f->c;
    LinearJob wo = { &f->w->layer[layer].wo, NULL, b->x + (size_t)first * c->dim, (size_t)c->dim,
                     true, NULL };
    double t = phase_s(f);
    if (!f->device)
        act_pack(f->shape->kind, b->act, b->att, (size_t)c->n_heads * c->head_dim, n,
                 c->n_heads * c->head_dim);
    products(f, b, &wo, 1, n);
    f->phases->linear_s += phase_s(f) - t;
}

void ffn(Forward *f, const FeedBuffers *b, int layer, int first, int n) {
    const Config *c = f->c;
    const LlamaLayer *w = &f->w->layer[layer];
    float *x = b->x + (size_t)first * c->dim;
    LinearJob w2 = { &w->w2, NULL, x, (size_t)c->dim, true, NULL };
    LinearJob up[2] = { { &w->w1, NULL, b->gate, (size_t)c->hidden_dim, false, NULL },
                        { &w->w3, NULL, b->up, (size_t)c->hidden_dim, false, NULL } };
    double t = phase_s(f);
    norm_act(f, b, x, w->ffn_norm, n);
    products(f, b, up, 2, n);
    swiglu_act(f, b, n);
    products(f, b, &w2, 1, n);
    f->phases->linear_s += phase_s(f) - t;
}

// logits of n rows of x, each to its own place
static void logits_of(Forward *f, const FeedBuffers *b, const float *x, float *const *to, int n) {
    LinearJob head = { &f->w->head, NULL, to[0], (size_t)f->c->vocab_size, false,
                       n > 1 ? to : NULL };
    double t = phase_s(f);
    if (f->device) {
        head.y = b->logits;
        head.rows = NULL;
    }
    norm_act(f, b, x, f->w->final_norm, n);
    products(f, b, &head, 1, n);
    f->device_logits = b->logits;
    f->phases->linear_s += phase_s(f) - t;
}

// window rows of one layer of all that attend
static const void *layer_rows(const Forward *f, const char *all, int rows, int layer) {
    size_t row = (size_t)f->c->n_heads * f->c->head_dim * f->shape->elem;
    return all ? all + (size_t)layer * rows * row : NULL;
}

void feed_attend_end(Forward *f, int kv_layer) {
    double t = phase_s(f);
    if (f->window_out)
        kv_window_copy(f->work, f->window_out_rows,
                       (void *)layer_rows(f, f->window_out, f->window_out_rows, kv_layer));
    kv_feed_end(f->kv, f->work, kv_layer, f->pos + f->n,
                layer_rows(f, f->window, f->window_rows, kv_layer), f->window_rows, f->first);
    f->phases->evict_s += phase_s(f) - t;
}

// In a sparse feed the keys of all chunks come first, then the last query rows, from which the
// lists are made. Queries are cheaper to make again when they are wanted than to keep.
void feed_attend_begin(Forward *f, const FeedBuffers *b, int layer, int kv_layer) {
    int last = f->n < SPARSE_ROWS ? f->n : SPARSE_ROWS;
    double t;
    kv_feed_begin(f->kv, f->work, kv_layer, f->n);
    for (int i = 0, n; f->sparse && i < f->n; i += n) {
        n = f->n - i < f->chunk ? f->n - i : f->chunk;
        qkv(f, b, layer, kv_layer, i, n, MAKE_KV, i);
        t = phase_s(f);
        if (!f->device) kv_feed_keys(f->kv, kv_layer, n, f->pos + i, b->k, b->v);
        f->phases->attn_s += phase_s(f) - t;
    }
    if (!f->sparse) return;
    qkv(f, b, layer, kv_layer, f->n - last, last, MAKE_Q, f->n);
    t = phase_s(f);
#ifdef SCB_CUDA
    if (f->device) kv_device_plan(f->kv, f->work, kv_layer, b->q16, last);
    else
#endif
    kv_feed_plan(f->kv, f->work, kv_layer, b->q, last);
    f->phases->attn_s += phase_s(f) - t;
}

void feed_attend(Forward *f, const FeedBuffers *b, int layer, int kv_layer, int first, int n) {
    qkv(f, b, layer, kv_layer, first, n, f->sparse ? MAKE_Q : MAKE_Q | MAKE_KV,
        f->of ? 0 : f->sparse ? f->n : first);
    double t = phase_s(f);
#ifdef SCB_CUDA
    if (f->device) {
        KVDeviceRows rows = { b->q, b->q16, (uint16_t *)b->act, first, n, f->pos + first };
        if (f->of) kv_device_step(f->of, n, f->work, kv_layer, &rows);
        else kv_device_chunk(f->kv, f->work, kv_layer, &rows, f->sparse);
    } else
#endif
    if (f->of)
        f->phases->kv_bytes +=
            (double)kv_step(f->of, n, f->work, kv_layer, b->q, b->k, b->v, b->att);
    else if (f->sparse)
        kv_feed_queries(f->kv, f->work, kv_layer, first, n, f->pos + first, b->q, b->att);
    else
        kv_feed_chunk(f->kv, f->work, kv_layer, first, n, f->pos + first, b->q, b->k, b->v, b->att);
    double policy = kv_policy_time(f->work);
    f->phases->attn_s += phase_s(f) - t - policy;
    f->phases->evict_s += policy;
    attn_out(f, b, layer, first, n);
}

bool feed_report(Forward *f, int layer, int done) {
    double share =
        f->n ? (layer + (double)done / f->n) / f->c->n_layers : (layer + 1.0) / f->c->n_layers;
    return f->progress && f->progress(f->progress_user, share);
}

void feed_logits(Forward *f, const FeedBuffers *b) {
    float *to[STEP_BATCH];
    size_t V = (size_t)f->c->vocab_size;
    if (f->of) {
        for (int i = 0; i < f->n; i++) to[i] = f->of[i].logits;
        logits_of(f, b, b->x, to, f->n);
    } else if (f->logits && f->n) {
        logits_of(f, b, b->x + (size_t)(f->n - 1) * f->c->dim, &f->logits, 1);
        if (f->device) mem_get(f->mem, f->logits, b->logits, V * sizeof(float));
    }
#ifdef SCB_CUDA
    for (int p = 0; f->device && f->sparse && p < device_parts(f->device); p++)
        kv_device_counted(f->works[p]);
#endif
}

#ifdef SCB_CUDA
// Whether a step's launches depend on nothing but what is sent before it. Policies that act or look
// at steps are told the time, experts are launched by how many rows they have.
static bool step_repeats(const Forward *f) {
    if (f->tap.fn || f->timed || f->c->n_experts || device_parts(f->device) > 1) return false;
    for (int i = 0; i < f->n; i++) if (!kv_step_repeats(f->of[i].kv)) return false;
    return true;
}

// what the launches of a step depend on
typedef struct {
    int n, lists, most, shared, turns, pad;
    const void *scratch, *list, *parts;
} StepKey;

static void device_step(Forward *f, const FeedBuffers *b, void (*body)(Forward *f, void *of),
                        void *of) {
    StepKey key;
    Phases done = *f->phases;
    device_send(f, b);
    memset(&key, 0, sizeof key);
    key.n = f->n;
    key.scratch = f->scratch;
    if (f->work) kv_device_key(f->of, f->work, &key.lists, &key.most, &key.shared, &key.turns,
                               &key.list, &key.parts);
    if (!step_repeats(f)) {
        body(f, of);
    } else if (device_replay(f->device, &key, sizeof key, f->phases)) {
        f->device_logits = b->logits;
    } else {
        device_record(f->device);
        body(f, of);
        device_recorded(f->device, &key, sizeof key, &done, f->phases);
    }
    for (int i = 0; i < f->n; i++)              // waits for all of the step
        mem_get(f->mem, f->of[i].logits, f->device_logits + (size_t)i * f->c->vocab_size,
                (size_t)f->c->vocab_size * sizeof(float));
    for (int p = 0; f->work && p < device_parts(f->device); p++)
        f->phases->kv_bytes += (double)kv_device_end(f->of, f->n, f->works[p]);
}
#endif

void step_run(Forward *f, const FeedBuffers *b, void (*body)(Forward *f, void *of), void *of) {
    double t0 = now_s();
#ifdef SCB_CUDA
    if (f->device) device_step(f, b, body, of);
    else
#endif
        body(f, of);
    (void)b;
    f->phases->total_s += now_s() - t0;
}

void feed_tap(const Forward *f, int layer, const FeedBuffers *b) {
    size_t n = (size_t)f->n * f->c->dim;
    if (!f->tap.fn || !f->n) return;
    float *x = f->device ? (float *)xrealloc(NULL, n * sizeof *x) : b->x;
    if (f->device) mem_get(f->mem, x, b->x, n * sizeof *x);
    f->tap.fn(f->tap.user, layer, 0, f->n, x);
    if (f->device) free(x);
}

int llama_feed(Forward *f, Err *err) {
    FeedBuffers b;
    double t0 = now_s();
    buffers_carve(f->c, f->n < 1 ? 1 : f->n, f->chunk, (char *)f->scratch, &b);
    embed_rows(f, &b);
    for (int l = 0; l < f->c->n_layers; l++) {
        layer_enter(f, &b, l);
        feed_attend_begin(f, &b, l, l);
        for (int i = 0; i < f->n; i += f->chunk) {
            int n = f->n - i < f->chunk ? f->n - i : f->chunk;
            feed_attend(f, &b, l, l, i, n);
            ffn(f, &b, l, i, n);
            if (feed_report(f, l, i + n)) return FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
        }
        feed_attend_end(f, l);
        feed_tap(f, l, &b);
    }
    feed_logits(f, &b);
    f->phases->total_s += now_s() - t0;
    return 0;
}

static void step_layers(Forward *f, void *buffers) {
    FeedBuffers *b = (FeedBuffers *)buffers;
    embed_rows(f, b);
    for (int l = 0; l < f->c->n_layers; l++) {
        layer_enter(f, b, l);
        feed_attend(f, b, l, l, 0, f->n);
        ffn(f, b, l, 0, f->n);
        feed_tap(f, l, b);
    }
    feed_logits(f, b);
}

void llama_step(Forward *f) {
    FeedBuffers b;
    buffers_carve(f->c, f->n, f->n, (char *)f->scratch, &b);
    step_run(f, &b, step_layers, &b);
}
