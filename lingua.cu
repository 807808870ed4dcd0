// lingua.cu - the encoder of LLMLingua-2 (Pan et al., arXiv 2403.12968): XLM-RoBERTa or BERT with a
// classifier of two labels on every token.
//
//   h = LN(word[id] + type + pos[p + offset])
//   layer:  a = LN(Wo attention(Wq h, Wk h, Wv h) + h),  h = LN(W2 gelu(W1 a) + a)    all with bias
//   p(keep) = softmax(Wc h)_1 = 1 / (1 + exp(z_0 - z_1))
//   LN(x) = (x - mean) / sqrt(var + eps) * w + b;   gelu(z) = z/2 (1 + erf(z / sqrt 2))
//
// Every token of a sequence sees every other one: the list of keys is the sequence, dense, and no
// row has a causal limit. Sequences are independent; those that fit a batch share the products, so
// that weights are read once per batch. Products and attention are those of matmul.cu and
// sparse_attn.cu: the result depends on the sequence alone.
#include "lingua.h"
#include "kernels.h"
#include <omp.h>

enum { BATCH_ROWS = 2048 };             // tokens of a batch
enum { ACT_CACHE = 1 << 20 };           // bytes of a product's input at a time

typedef struct {
    float *bq, *bk, *bv, *bo, *b1, *b2;                 // biases
    float *norm1, *norm1_bias, *norm2, *norm2_bias;     // (E)
    Weight wq, wk, wv, wo, w1, w2;                      // (E, E) x 4, (F, E), (E, F)
} Layer;

typedef struct { int vocab_size, dim, hidden_dim, n_layers, n_heads, positions, offset; } Size;

struct Lingua {
    Size c;
    float eps;
    DType dtype;
    bool wordpiece;
    int32_t special[2][2];              // [official, fixed][open, close]
    int32_t placeholder;
    uint64_t hash;
    Mem mem;
    char *arena;
    size_t arena_bytes;
    Weight embed, pos, classifier;      // rows; (2, E) tiles
    float *type, *norm, *norm_bias, *classifier_bias;
    Layer *layer;
    AttnShape shape;
    Tok *tok, *weigher;                 // its own tokenizer; the one that weighs words, or NULL
    LinguaPhases phases;
    bool (*progress)(void *user, double share);
    void *progress_user;
};

// ---------------------------------------------------------------------------
// File: keys of Size and eps, dtype, wordpiece, open_official, close_official, open, close,
// placeholder; tensors below; tok.* the tokenizer, weigher: the one that weighs words

static int bind(void *user, Loader *from, Err *err) {
    Lingua *w = (Lingua *)user;
    int E = w->c.dim, F = w->c.hidden_dim;
    char name[64];
#define MATRIX(field, key, n, k, rows)                                                             \
    if (from->matrix(from, &(field), key, n, k, rows, err)) return -1
#define VECTOR(field, key, n) if (from->vector(from, &(field), key, n, 0, err)) return -1
#define NAME(key) (snprintf(name, sizeof name, "layers.%d." key, l), name)
    MATRIX(w->embed, "embed", w->c.vocab_size, E, true);
    MATRIX(w->pos, "pos", w->c.positions, E, true);
    VECTOR(w->type, "type", E);
    VECTOR(w->norm, "embed_norm", E);
    VECTOR(w->norm_bias, "embed_norm_bias", E);
    for (int l = 0; l < w->c.n_layers; l++) {
        Layer *y = &w->layer[l];
        MATRIX(y->wq, NAME("wq"), E, E, false);
        MATRIX(y->wk, NAME("wk"), E, E, false);
        MATRIX(y->wv, NAME("wv"), E, E, false);
        MATRIX(y->wo, NAME("wo"), E, E, false);
        MATRIX(y->w1, NAME("w1"), F, E, false);
        MATRIX(y->w2, NAME("w2"), E, F, false);
        VECTOR(y->bq, NAME("bq"), E);
        VECTOR(y->bk, NAME("bk"), E);
        VECTOR(y->bv, NAME("bv"), E);
        VECTOR(y->bo, NAME("bo"), E);
        VECTOR(y->b1, NAME("b1"), F);
        VECTOR(y->b2, NAME("b2"), E);
        VECTOR(y->norm1, NAME("norm1"), E);
        VECTOR(y->norm1_bias, NAME("norm1_bias"), E);
        VECTOR(y->norm2, NAME("norm2"), E);
        VECTOR(y->norm2_bias, NAME("norm2_bias"), E);
    }
    MATRIX(w->classifier, "classifier", 2, E, false);
    VECTOR(w->classifier_bias, "classifier_bias", 2);
#undef MATRIX
#undef VECTOR
#undef NAME
    return 0;
}

static int read_int(ModelFile *f, const char *key, int64_t lo, int64_t hi, int *out, Err *err) {
    int64_t v;
    if (file_int(f, key, lo, hi, &v, err)) return -1;
    *out = (int)v;
    return 0;
}

static int read_config(ModelFile *f, Lingua *w, Err *err) {
    static const char *const ids[2][2] = { { "open_official", "close_official" },
                                           { "open", "close" } };
    char arch[17];
    double eps;
    int dtype, wordpiece, id;
    if (file_str(f, "arch", arch, err)) return -1;
    if (strcmp(arch, "encoder"))
        return FAIL(err, "%s: is a model of architecture '%s'; prompt compression wants an encoder "
                    "that export.py made of an LLMLingua-2 checkpoint", f->path, arch);
    if (read_int(f, "vocab_size", 1, 1 << 24, &w->c.vocab_size, err) ||
        read_int(f, "dim", 1, 1 << 16, &w->c.dim, err) ||
        read_int(f, "hidden_dim", 1, 1 << 18, &w->c.hidden_dim, err) ||
        read_int(f, "n_layers", 1, 1 << 10, &w->c.n_layers, err) ||
        read_int(f, "n_heads", 1, 1 << 10, &w->c.n_heads, err) ||
        read_int(f, "positions", 4, 1 << 20, &w->c.positions, err) ||
        read_int(f, "pos_offset", 0, 1 << 10, &w->c.offset, err) ||
        read_int(f, "dtype", DT_F32, DT_BF16, &dtype, err) ||
        read_int(f, "wordpiece", 0, 1, &wordpiece, err) ||
        file_real(f, "norm_eps", &eps, err)) return -1;
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++) {
            if (read_int(f, ids[i][k], 0, w->c.vocab_size - 1, &id, err)) return -1;
            w->special[i][k] = id;
        }
    if (read_int(f, "placeholder", 0, w->c.vocab_size - LINGUA_FORCED, &id, err)) return -1;
    w->placeholder = id;
    w->wordpiece = wordpiece;
    w->dtype = (DType)dtype;
    w->eps = (float)eps;
    if (w->c.dim % w->c.n_heads || w->c.dim / w->c.n_heads % 2)
        return FAIL(err, "%s: dim %d and n_heads %d do not fit together", f->path, w->c.dim,
                    w->c.n_heads);
    if (w->c.positions - w->c.offset < 4)
        return FAIL(err, "%s: positions %d are too few", f->path, w->c.positions);
    return eps > 0 ? 0 : FAIL(err, "%s: norm_eps must be positive", f->path);
}

// the tokenizer that weighs words is a model file of its own, in a tensor
static int open_weigher(ModelFile *f, Lingua *w, Err *err) {
    ModelFile inner;
    char name[512];
    const FileTensor *t = file_find(f, "weigher");
    if (!t) return 0;
    if (!(t = file_want(f, "weigher", DT_U8, -1, 0, err))) return -1;
    snprintf(name, sizeof name, "%s, tensor weigher", f->path);
    if (file_open_bytes(&inner, name, file_data(f, t), t->bytes, err)) return -1;
    w->weigher = tok_open(&inner, err);
    file_close(&inner);
    return w->weigher ? 0 : -1;
}

static void shape_set(Lingua *w) {
    w->shape.kind = mul_kind(w->dtype);
    w->shape.head_dim = w->c.dim / w->c.n_heads;
    w->shape.n_heads = w->shape.n_kv_heads = w->c.n_heads;
    w->shape.elem = w->dtype == DT_F32 ? 4 : 2;
    w->shape.scale = (float)(1.4426950408889634 / sqrt((double)w->shape.head_dim));
    w->layer = (Layer *)xrealloc(NULL, (size_t)w->c.n_layers * sizeof *w->layer);
    memset(w->layer, 0, (size_t)w->c.n_layers * sizeof *w->layer);
}

Lingua *lingua_open(ModelFile *f, Err *err) {
    Lingua *w = (Lingua *)xrealloc(NULL, sizeof *w);
    memset(w, 0, sizeof *w);
    w->mem.limit = memory_available();
    w->hash = f->head->hash;
    if (read_config(f, w, err)) goto failed;
    shape_set(w);
    if (!(w->arena = weights_open(f, w->dtype, bind, w, &w->mem, &w->arena_bytes, err)))
        goto failed;
    if (!(w->tok = tok_open(f, err)) || open_weigher(f, w, err) || file_all_used(f, err))
        goto failed;
    return w;
failed:
    lingua_close(w);
    return NULL;
}

Lingua *lingua_random(int dim, int hidden_dim, int n_layers, int n_heads, int vocab_size,
                      uint64_t seed, Err *err) {
    Lingua *w = (Lingua *)xrealloc(NULL, sizeof *w);
    memset(w, 0, sizeof *w);
    w->mem.limit = memory_available();
    w->c = (Size){ vocab_size, dim, hidden_dim, n_layers, n_heads, LINGUA_SEQUENCE + 2, 2 };
    w->eps = 1e-5f;
    w->dtype = DT_BF16;
    w->hash = mix64(seed);
    w->placeholder = vocab_size - LINGUA_FORCED;
    shape_set(w);
    w->arena = weights_random(seed, bind, w, &w->mem, &w->arena_bytes, err);
    if (w->arena) return w;
    lingua_close(w);
    return NULL;
}

void lingua_close(Lingua *w) {
    if (!w) return;
    tok_close(w->tok);
    tok_close(w->weigher);
    mem_give(&w->mem, w->arena, w->arena_bytes);
    free(w->layer);
    free(w);
}

int lingua_weighs(const Lingua *w, Err *err) {
    if (w->weigher) return 0;
    return FAIL(err, "the encoder has no tokenizer that weighs words, which the threshold needs: "
                "export it again with --weights-bpe FILE (cl100k_base.tiktoken for the published "
                "numbers)");
}

uint64_t lingua_hash(const Lingua *w) { return w->hash; }
Mem *lingua_mem(Lingua *w) { return &w->mem; }
LinguaPhases lingua_phases(const Lingua *w) { return w->phases; }
void lingua_set_progress(Lingua *w, bool (*fn)(void *user, double share), void *user) {
    w->progress = fn;
    w->progress_user = user;
}

// ---------------------------------------------------------------------------
// Pieces of a layer

// erf by Abramowitz and Stegun 7.1.26, |error| < 1.5e-7
HD static inline float erf_small(float x) {
    float a = fabsf(x), t = 1.0f / fmaf(0.3275911f, a, 1.0f);
    float p = fmaf(t, 1.061405429f, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f) * t;
    return copysignf(1.0f - p * fexp2(a * a * -1.44269504f), x);
}

static void gelu_row(float *y, int n) {
    for (int i = 0; i < n; i++) y[i] = 0.5f * y[i] * (1.0f + erf_small(y[i] * 0.70710678f));
}

static void layer_norm(float *y, const float *x, const float *w, const float *b, int dim,
                       float eps) {
    float sum[LANES] = { 0 }, square[LANES] = { 0 };
    int i = 0;
    for (; i + LANES <= dim; i += LANES)
        for (int j = 0; j < LANES; j++) sum[j] += x[i + j];
    for (int j = 0; i + j < dim; j++) sum[j] += x[i + j];
    float mean = lanes_sum(sum) / (float)dim;
    for (i = 0; i + LANES <= dim; i += LANES)
        for (int j = 0; j < LANES; j++)
            square[j] = fmaf(x[i + j] - mean, x[i + j] - mean, square[j]);
    for (int j = 0; i + j < dim; j++)
        square[j] = fmaf(x[i + j] - mean, x[i + j] - mean, square[j]);
    float r = 1.0f / sqrtf(lanes_sum(square) / (float)dim + eps);
    for (i = 0; i < dim; i++) y[i] = (x[i] - mean) * r * w[i] + b[i];
}

#ifdef SCB_CUDA
// grid (channels, rows): channels from k to ld are zero
__global__ static void gelu_k(const float *x, uint16_t *act, int k, int ld) {
    size_t i = thread_item(), row = blockIdx.y;
    if (i >= (size_t)ld) return;
    float y = i < (size_t)k ? x[row * k + i] : 0.0f;
    act[row * ld + i] = f32_bf16(0.5f * y * (1.0f + erf_small(y * 0.70710678f)));
}

void cuda_gelu(const float *x, uint16_t *act, int rows, int k, int ld, void *stream) {
    if (rows) LAUNCH(gelu_k, dim3(blocks_for(ld, 256), rows), 256, 0, stream, x, act, k, ld);
}

// grid n
__global__ static void lingua_embed_k(const uint16_t *word, const uint16_t *position,
                                      const float *type, const int32_t *ids, const int32_t *places,
                                      float *x, int dim) {
    const uint16_t *w = word + (size_t)ids[blockIdx.x] * dim,
                   *p = position + (size_t)places[blockIdx.x] * dim;
    for (int i = threadIdx.x; i < dim; i += blockDim.x)
        x[(size_t)blockIdx.x * dim + i] = bf16_f32(w[i]) + type[i] + bf16_f32(p[i]);
}

void cuda_lingua_embed(const uint16_t *word, const uint16_t *position, const float *type,
                       const int32_t *ids, const int32_t *places, float *x, int n, int dim,
                       void *stream) {
    if (n) LAUNCH(lingua_embed_k, n, 128, 0, stream, word, position, type, ids, places, x, dim);
}

// grid (n, 3): a row of q, k or v
__global__ static void split_heads_k(const float *q, const float *k, const float *v, uint16_t *to,
                                     int n, int n_heads, int hd) {
    const float *from = blockIdx.y == 0 ? q : blockIdx.y == 1 ? k : v;
    for (int i = threadIdx.x; i < n_heads * hd; i += blockDim.x) {
        size_t row = ((size_t)blockIdx.y * n_heads + i / hd) * n + blockIdx.x;
        to[row * hd + i % hd] = f32_bf16(from[(size_t)blockIdx.x * n_heads * hd + i]);
    }
}

void cuda_split_heads(const float *q, const float *k, const float *v, uint16_t *to, int n,
                      int n_heads, int head_dim, void *stream) {
    if (n)
        LAUNCH(split_heads_k, dim3(n, 3), 256, 0, stream, q, k, v, to, n, n_heads, head_dim);
}

// grid covers n: softmax of the second of two logits, as in batch below
__global__ static void keep_probability_k(const float *z, float *p, int n) {
    int i = (int)thread_item();
    if (i >= n) return;
    float d = (z[2 * i] - z[2 * i + 1]) * 1.44269504f, e = fexp2(d < 0 ? d : -d);
    p[i] = d < 0 ? 1.0f / (1.0f + e) : e / (1.0f + e);
}

void cuda_keep_probability(const float *z, float *p, int n, void *stream) {
    if (n) LAUNCH(keep_probability_k, blocks_for(n, 128), 128, 0, stream, z, p, n);
}
#endif

typedef struct {                        // scratch of a batch of up to `rows` tokens
    float *x, *q, *k, *v, *att, *ffn;   // (rows, E); ffn (rows, F)
    char *act, *kv;                     // kv: K and V (H, rows, hd) each
    char *thread;                       // (threads) attention scratch and one panel
    size_t per_thread;
    float *z;                           // (rows, 2)
} Buffers;

static size_t carve(const Lingua *w, int rows, char *base, Buffers *b) {
    size_t n = (size_t)rows, E = (size_t)w->c.dim, F = (size_t)w->c.hidden_dim, at = 0;
    int wide = w->c.dim > w->c.hidden_dim ? w->c.dim : w->c.hidden_dim;
#define CARVE(field, type, count)                                                                  \
    (b->field = (type *)(void *)(base + at),                                                       \
     at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(x, float, n * E);
    CARVE(q, float, n * E);
    CARVE(k, float, n * E);
    CARVE(v, float, n * E);
    CARVE(att, float, n * E);
    CARVE(ffn, float, n * F);
    CARVE(act, char, act_bytes(w->shape.kind, rows, wide));
    CARVE(kv, char, 2 * n * E * w->shape.elem);
    CARVE(z, float, n * 2);
    b->per_thread = (attn_scratch_bytes(&w->shape) + attn_panel_bytes(&w->shape) + 4095) &
                    ~(size_t)4095;
    CARVE(thread, char, b->per_thread * (size_t)cpu_threads());
#undef CARVE
    return at;
}

// x <- LN(x + add), add NULL: nothing
static void norm_rows(const Lingua *w, float *x, const float *add, const float *scale,
                      const float *bias, int rows) {
    int E = w->c.dim;
#pragma omp parallel for if (rows > 16)
    for (int i = 0; i < rows; i++) {
        float *row = x + (size_t)i * E;
        for (int k = 0; add && k < E; k++) row[k] += add[(size_t)i * E + k];
        layer_norm(row, row, scale, bias, E, w->eps);
    }
}

static void embed(const Lingua *w, const Buffers *b, const IntVec *seq, int n_seq) {
    int E = w->c.dim, at = 0;
    for (int s = 0; s < n_seq; s++) {
        int n = (int)seq[s].n;
#pragma omp parallel for if (n > 16)
        for (int i = 0; i < n; i++) {
            float *x = b->x + (size_t)(at + i) * E, *p = b->q + (size_t)(at + i) * E;
            weight_row(&w->embed, seq[s].p[i], x);
            weight_row(&w->pos, i + w->c.offset, p);
            for (int k = 0; k < E; k++) x[k] = x[k] + w->type[k] + p[k];
        }
        at += n;
    }
    norm_rows(w, b->x, NULL, w->norm, w->norm_bias, at);
}

// K and V of all heads as rows of their own, in the elements of a cache
static void split_heads(const Lingua *w, const Buffers *b, int rows) {
    int H = w->c.n_heads, hd = w->shape.head_dim, E = w->c.dim;
#pragma omp parallel for if (rows > 16)
    for (int i = 0; i < rows; i++)
        for (int part = 0; part < 2; part++)
            for (int h = 0; h < H; h++) {
                const float *src = (part ? b->v : b->k) + (size_t)i * E + (size_t)h * hd;
                size_t at = (((size_t)part * H + h) * (size_t)rows + (size_t)i) * (size_t)hd;
                for (int c = 0; c < hd; c++) {
                    if (w->shape.elem == 4) ((float *)(void *)b->kv)[at + c] = src[c];
                    else ((uint16_t *)(void *)b->kv)[at + c] = f32_bf16(src[c]);
                }
            }
}

// attention of one head within one sequence of n tokens from row `at` of the batch
static void attend(const Lingua *w, const Buffers *b, int rows, int at, int n, int h) {
    const AttnShape *s = &w->shape;
    char *scratch = b->thread + b->per_thread * (size_t)omp_get_thread_num();
    char *panel = scratch + ((attn_scratch_bytes(s) + 63) & ~(size_t)63);
    size_t head = (size_t)rows * s->head_dim * s->elem, from = (size_t)at * s->head_dim * s->elem;
    KeyList list;
    memset(&list, 0, sizeof list);
    list.k[1] = b->kv + (size_t)h * head + from;
    list.v[1] = b->kv + (size_t)(w->c.n_heads + h) * head + from;
    list.len = n;
    attn_pack(s, panel, &list, 0, n, scratch);
    for (int r = 0; r < n; r += ATTN_ROWS) {
        AttnRows a;
        memset(&a, 0, sizeof a);
        size_t row = (size_t)(at + r) * w->c.dim + (size_t)h * s->head_dim;
        a.panels = panel;
        a.q = b->q + row;
        a.out = b->att + row;
        a.ldq = a.ldo = (size_t)w->c.dim;
        a.rows = n - r < ATTN_ROWS ? n - r : ATTN_ROWS;
        a.vis0 = n;
        attn_rows(s, &a, scratch);
    }
}

// Products of rows of k values each; they go on the account. So many rows at a time that they stay
// in a core's second cache while all weights pass over them.
static void multiply(Lingua *w, const Buffers *b, const LinearJob *jobs, int n_jobs, const float *x,
                     int rows) {
    double t = now_s();
    int k = jobs->w->k, most = (int)(ACT_CACHE / act_bytes(w->shape.kind, 16, k)) * 16;
    LinearJob part[3];
    if (most < 128) most = 128;
    for (int at = 0; at < rows; at += most) {
        int n = rows - at < most ? rows - at : most;
        for (int i = 0; i < n_jobs; i++) {
            part[i] = jobs[i];
            part[i].y += (size_t)at * jobs[i].ldy;
        }
        act_pack(w->shape.kind, b->act, x + (size_t)at * k, (size_t)k, n, k);
        linear(w->shape.kind, part, n_jobs, b->act, n);
    }
    w->phases.linear_s += now_s() - t;
    for (int i = 0; i < n_jobs; i++)
        w->phases.linear_flops += 2.0 * rows * jobs[i].w->n * jobs[i].w->k;
}

static void layer(Lingua *w, const Layer *y, const Buffers *b, const IntVec *seq, int n_seq,
                  int rows) {
    int F = w->c.hidden_dim, H = w->c.n_heads;
    size_t e = (size_t)w->c.dim, f = (size_t)F;
    LinearJob qkv[3] = { { &y->wq, y->bq, b->q, e, false, NULL }, { &y->wk, y->bk, b->k, e, false,
                         NULL }, { &y->wv, y->bv, b->v, e, false, NULL } };
    LinearJob o = { &y->wo, y->bo, b->q, e, false, NULL }, up = { &y->w1, y->b1, b->ffn, f, false,
              NULL }, down = { &y->w2, y->b2, b->q, e, false, NULL };
    multiply(w, b, qkv, 3, b->x, rows);
    double t = now_s();
    split_heads(w, b, rows);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < n_seq * H; item++) {
        int s = item / H, at = 0;
        for (int i = 0; i < s; i++) at += (int)seq[i].n;
        attend(w, b, rows, at, (int)seq[s].n, item % H);
    }
    w->phases.attn_s += now_s() - t;
    for (int i = 0; i < n_seq; i++)
        w->phases.attn_flops += 4.0 * w->c.dim * (double)seq[i].n * (double)seq[i].n;
    multiply(w, b, &o, 1, b->att, rows);
    norm_rows(w, b->x, b->q, y->norm1, y->norm1_bias, rows);
    multiply(w, b, &up, 1, b->x, rows);
#pragma omp parallel for if (rows > 16)
    for (int i = 0; i < rows; i++) gelu_row(b->ffn + (size_t)i * f, F);
    multiply(w, b, &down, 1, b->ffn, rows);
    norm_rows(w, b->x, b->q, y->norm2, y->norm2_bias, rows);
}

static void batch(Lingua *w, const Buffers *b, const IntVec *seq, int n_seq, int rows,
                  float *const *p) {
    LinearJob last = { &w->classifier, w->classifier_bias, b->z, 2, false, NULL };
    double t = now_s();
    embed(w, b, seq, n_seq);
    for (int l = 0; l < w->c.n_layers; l++) layer(w, &w->layer[l], b, seq, n_seq, rows);
    multiply(w, b, &last, 1, b->x, rows);
    for (int s = 0, at = 0; s < n_seq; s++)
        for (size_t i = 0; i < seq[s].n; i++, at++) {
            float z = (b->z[2 * at] - b->z[2 * at + 1]) * 1.44269504f;
            // the larger logit in front keeps exp2 in range
            float e = fexp2(z < 0 ? z : -z);
            p[s][i] = z < 0 ? 1.0f / (1.0f + e) : e / (1.0f + e);
        }
    w->phases.total_s += now_s() - t;
    w->phases.tokens += rows;
}

int lingua_probabilities(Lingua *w, const IntVec *seq, int n_seq, float *const *p, Err *err) {
    int most = 0, rc = 0;
    for (int s = 0; s < n_seq; s++) {
        if ((int)seq[s].n > LINGUA_SEQUENCE || (int)seq[s].n + w->c.offset > w->c.positions)
            return FAIL(err, "a sequence of %zu tokens is longer than the encoder takes",
                        seq[s].n);
        for (size_t i = 0; i < seq[s].n; i++)
            if (seq[s].p[i] < 0 || seq[s].p[i] >= w->c.vocab_size)
                return FAIL(err, "token id %d is outside the encoder's vocabulary of %d",
                            seq[s].p[i], w->c.vocab_size);
        most += (int)seq[s].n;
    }
    if (!n_seq) return 0;
    Buffers b;
    static char nowhere[1];             // only offsets are wanted
    int rows = most < BATCH_ROWS ? most : BATCH_ROWS;
    size_t bytes = carve(w, rows, nowhere, &b);
    char *scratch = TAKE(&w->mem, char, bytes, "activations of the encoder");
    carve(w, rows, scratch, &b);
    for (int s = 0; s < n_seq;) {
        int k = s, n = 0;
        while (k < n_seq && n + (int)seq[k].n <= rows) n += (int)seq[k++].n;
        batch(w, &b, seq + s, k - s, n, p + s);
        s = k;
        if (w->progress && w->progress(w->progress_user, (double)s / n_seq)) {
            rc = FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
            break;
        }
    }
    mem_give(&w->mem, scratch, bytes);
    return rc;
}

// ---------------------------------------------------------------------------
// The encoder as what the selection asks

typedef struct { Lingua *w; } Seen;

static void seen_encode(void *user, const char *s, size_t n, IntVec *ids) {
    tok_encode(((Seen *)user)->w->tok, s, n, TOK_SPECIAL, ids);
}
static void seen_piece(void *user, int32_t id, StrBuf *out) {
    tok_piece(((Seen *)user)->w->tok, id, out);
}
static int seen_weight(void *user, const char *s, size_t n) {
    IntVec ids = { 0 };
    tok_encode(((Seen *)user)->w->weigher, s, n, 0, &ids);
    int count = (int)ids.n;
    free(ids.p);
    return count;
}
static int seen_keep(void *user, const IntVec *seq, int n_seq, float *const *p, Err *err) {
    return lingua_probabilities(((Seen *)user)->w, seq, n_seq, p, err);
}

int lingua_run(Lingua *w, const LinguaOpts *o, bool fixed_specials, const char *const *context,
               const size_t *len, int n, LinguaResult *out, Err *err) {
    Seen seen = { w };
    LinguaSource src = { &seen, w->wordpiece, w->special[fixed_specials][0],
                         w->special[fixed_specials][1], w->placeholder, seen_encode, seen_piece,
                         seen_weight, seen_keep };
    memset(out, 0, sizeof *out);
    if (lingua_weighs(w, err)) return -1;
    return lingua_compress(&src, o, context, len, n, out, err);
}
