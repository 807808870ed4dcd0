// model.c - the heart: a model's hyperparameters and weights, contexts, and branches on them.
//
// A Context is the dense prefill of shared tokens: rows, positions and the last query rows,
// immutable, held by reference. A Branch is one continuation: a KVCache over those rows plus its
// own tail. A root without a context owns everything it feeds, so what its policy evicts in the
// first feed is released layer by layer. Rules: SEMANTICS 3.
#include "model.h"
#include "products.h"
#include <sys/resource.h>

// ---------------------------------------------------------------------------
// Architectures

typedef struct {
    const char *name;           // as in the file
    int (*bind)(Weights *w, const Config *c, Loader *from, Err *err);
    size_t (*scratch)(const Config *c, int n, int chunk);
    int (*feed)(Forward *f, Err *err);  // n >= 0 tokens at once
    void (*step)(Forward *f);           // one token each of n branches
    size_t (*state)(const Config *c);   // bytes of a layer that does not attend
} Arch;
static const Arch archs[N_ARCHS] = {
    { NULL, NULL, NULL, NULL, NULL, NULL },
    { "llama", llama_bind, llama_scratch, llama_feed, llama_step, NULL },
    { "mamba2", mamba_bind, mamba_scratch, mamba_feed, mamba_step, mamba_state_bytes },
    { "jamba", jamba_bind, jamba_scratch, jamba_feed, jamba_step, jamba_state_bytes },
};
static const Arch *arch_of(const Config *c) { return &archs[c->arch]; }

// ---------------------------------------------------------------------------
// Hyperparameters

enum { MAX_ROPE = 1024, MAX_EXPERTS = 256 };

enum { LLAMAS = 1 << ARCH_LLAMA, MAMBAS = 1 << ARCH_MAMBA2, JAMBAS = 1 << ARCH_JAMBA,
       ATTENDS = LLAMAS | JAMBAS, MIXES = MAMBAS | JAMBAS, ALL_ARCHS = ATTENDS | MIXES };

typedef struct { const char *key; size_t at; int archs; int64_t lo, hi; } IntKey;
#define INT_KEY(field, archs, lo, hi) { #field, offsetof(Config, field), archs, lo, hi }
static const IntKey int_keys[] = {
    INT_KEY(vocab_size, ALL_ARCHS, 1, 1 << 24), INT_KEY(dim, ALL_ARCHS, 1, 1 << 20),
    INT_KEY(n_layers, ALL_ARCHS, 1, 1 << 12), INT_KEY(max_ctx, ALL_ARCHS, 1, 1 << 30),
    INT_KEY(hidden_dim, ATTENDS, 1, 1 << 22), INT_KEY(n_heads, ATTENDS, 1, 1 << 12),
    INT_KEY(n_kv_heads, ATTENDS, 1, 1 << 12), INT_KEY(head_dim, ATTENDS, 2, 1 << 12),
    INT_KEY(rope_dim, LLAMAS, 2, MAX_ROPE), INT_KEY(rope_orig_ctx, LLAMAS, 0, 1 << 30),
    INT_KEY(attn_period, JAMBAS, 1, 1 << 12), INT_KEY(attn_offset, JAMBAS, 0, 1 << 12),
    INT_KEY(n_experts, JAMBAS, 1, MAX_EXPERTS), INT_KEY(n_experts_used, JAMBAS, 1, MAX_EXPERTS),
    INT_KEY(expert_period, JAMBAS, 1, 1 << 12), INT_KEY(expert_offset, JAMBAS, 0, 1 << 12),
    INT_KEY(ssm_inner, MIXES, 1, 1 << 20), INT_KEY(ssm_state, MIXES, 1, 256),
    INT_KEY(ssm_conv, MIXES, 1, 64), INT_KEY(ssm_dt_rank, JAMBAS, 1, 1 << 16),
    INT_KEY(ssm_heads, MAMBAS, 1, 1 << 16), INT_KEY(ssm_head_dim, MAMBAS, 1, 1 << 12),
    INT_KEY(ssm_groups, MAMBAS, 1, 1 << 12), INT_KEY(norm_groups, MAMBAS, 1, 1 << 12),
};

bool config_attends(const Config *c, int layer) {
    if (c->arch == ARCH_JAMBA) return layer % c->attn_period == c->attn_offset;
    return c->arch != ARCH_MAMBA2;
}
bool config_routes(const Config *c, int layer) {
    return c->arch == ARCH_JAMBA && layer % c->expert_period == c->expert_offset;
}
int config_attn_layers(const Config *c) {
    int n = 0;
    for (int l = 0; l < c->n_layers; l++) n += config_attends(c, l);
    return n;
}

static int ssm_check(const Config *c, const char *path, Err *err) {
    if (c->arch == ARCH_JAMBA && (c->attn_offset >= c->attn_period ||
                                  c->expert_offset >= c->expert_period))
        return FAIL(err, "%s: attn_offset and expert_offset must be below their periods", path);
    if (c->arch == ARCH_JAMBA && c->n_experts_used > c->n_experts)
        return FAIL(err, "%s: n_experts_used %d of n_experts %d", path, c->n_experts_used,
                    c->n_experts);
    if (c->arch != ARCH_MAMBA2) return 0;
    if ((int64_t)c->ssm_heads * c->ssm_head_dim != c->ssm_inner)
        return FAIL(err, "%s: ssm_inner %d is not ssm_heads %d x ssm_head_dim %d", path,
                    c->ssm_inner, c->ssm_heads, c->ssm_head_dim);
    if (c->ssm_heads % c->ssm_groups)
        return FAIL(err, "%s: ssm_heads %d is not a multiple of ssm_groups %d", path, c->ssm_heads,
                    c->ssm_groups);
    if (c->ssm_inner % c->norm_groups)
        return FAIL(err, "%s: ssm_inner %d is not a multiple of norm_groups %d", path,
                    c->ssm_inner, c->norm_groups);
    return 0;
}

static int config_check(const Config *c, const char *path, Err *err) {
    if (!(c->norm_eps > 0)) return FAIL(err, "%s: norm_eps must be positive", path);
    if (ssm_check(c, path, err)) return -1;
    if (c->arch == ARCH_MAMBA2) return 0;
    if (c->n_heads % c->n_kv_heads)
        return FAIL(err, "%s: n_heads %d is not a multiple of n_kv_heads %d", path, c->n_heads,
                    c->n_kv_heads);
    if (c->n_heads / c->n_kv_heads > STRIP_ROWS)
        return FAIL(err, "%s: more than %d query heads share a KV head", path, STRIP_ROWS);
    if (c->head_dim % 2 || c->rope_dim % 2 || c->rope_dim > c->head_dim)
        return FAIL(err, "%s: head_dim %d and rope_dim %d do not fit together", path, c->head_dim,
                    c->rope_dim);
    if (c->arch == ARCH_JAMBA) return 0;
    if (!(c->rope_theta > 1)) return FAIL(err, "%s: rope_theta must be above 1", path);
    if (c->rope_scaling == ROPE_LLAMA3 && !(c->rope_factor > 0 && c->rope_low_freq_factor > 0 &&
        c->rope_high_freq_factor > c->rope_low_freq_factor && c->rope_orig_ctx > 0))
        return FAIL(err,
                    "%s: rope_scaling llama3 needs rope_factor, rope_orig_ctx and "
                    "rope_low_freq_factor < rope_high_freq_factor",
                    path);
    if (c->rope_scaling == ROPE_LINEAR && !(c->rope_factor > 0))
        return FAIL(err, "%s: rope_factor must be positive", path);
    if ((c->rope_scaling == ROPE_YARN || c->rope_scaling == ROPE_DYNAMIC) &&
        !(c->rope_factor >= 1 && c->rope_orig_ctx > 0 && c->rope_dim > 2))
        return FAIL(err,
                    "%s: rope_scaling yarn and dynamic need rope_factor >= 1, rope_orig_ctx and a "
                    "rope_dim above 2",
                    path);
    return 0;
}

static int read_rope(ModelFile *f, Config *c, Err *err) {
    int64_t v;
    if (file_int(f, "rope_scaling", ROPE_NONE, ROPE_DYNAMIC, &v, err)) return -1;
    c->rope_scaling = (RopeScaling)v;
    if (file_int(f, "qkv_bias", 0, 1, &v, err)) return -1;
    c->qkv_bias = v != 0;
    if (file_real(f, "rope_theta", &c->rope_theta, err) ||
        file_real(f, "rope_factor", &c->rope_factor, err) ||
        file_real(f, "rope_low_freq_factor", &c->rope_low_freq_factor, err) ||
        file_real(f, "rope_high_freq_factor", &c->rope_high_freq_factor, err)) return -1;
    return 0;
}

int config_read(ModelFile *f, Config *c, Err *err) {
    char arch[17];
    int64_t v;
    double eps;
    int a = 1;
    memset(c, 0, sizeof *c);
    if (file_str(f, "arch", arch, err)) return -1;
    while (a < N_ARCHS && strcmp(arch, archs[a].name)) a++;
    if (a == N_ARCHS)
        return FAIL(err,
                    "%s: architecture '%s' is not built into this program (it runs llama, mamba2 "
                    "and jamba)",
                    f->path, arch);
    c->arch = (ArchId)a;
    for (size_t i = 0; i < COUNTOF(int_keys); i++) {
        if (!(int_keys[i].archs & 1 << a)) continue;
        if (file_int(f, int_keys[i].key, int_keys[i].lo, int_keys[i].hi, &v, err)) return -1;
        *(int *)(void *)((char *)c + int_keys[i].at) = (int)v;
    }
    if (file_int(f, "tied", 0, 1, &v, err)) return -1;
    c->tied = v != 0;
    if (file_int(f, "dtype", DT_F32, DT_Q8, &v, err)) return -1;
    c->dtype = (DType)v;
    if (file_real(f, "norm_eps", &eps, err)) return -1;
    c->norm_eps = (float)eps;
    if (c->arch == ARCH_LLAMA && read_rope(f, c, err)) return -1;
    return config_check(c, f->path, err);
}

typedef struct { const char *name; Config c; } Shape;
// widths, heads, context; then what a family has of its own: eps, theta, rotary width, scaling,
// biases, a tied head
#define DENSE(v, e, f, l, h, g, d, ctx, eps, theta, rot, scaling, bias, tied)                      \
    {                                                                                              \
        ARCH_LLAMA, v, e, f, l, h, g, d, ctx, eps, theta, rot, scaling, 8, 1, 4, 8192, bias, tied, \
            .dtype = DT_BF16                                                                       \
    }
#define JAMBA(e, f, l, h, rank)                                                                    \
    {                                                                                              \
        .arch = ARCH_JAMBA, .vocab_size = 65536, .dim = e, .hidden_dim = f, .n_layers = l,         \
        .n_heads = h, .n_kv_heads = 8, .head_dim = 128, .max_ctx = 262144, .norm_eps = 1e-6f,      \
        .dtype = DT_BF16, .attn_period = 8, .attn_offset = 4, .n_experts = 16,                     \
        .n_experts_used = 2, .expert_period = 2, .expert_offset = 1, .ssm_inner = 2 * (e),         \
        .ssm_state = 16, .ssm_conv = 4, .ssm_dt_rank = rank                                        \
    }
#define LLAMA(v, e, f, l, h, g, d, ctx, theta, scaling, tied)                                      \
    DENSE(v, e, f, l, h, g, d, ctx, 1e-5f, theta, d, scaling, false, tied)
#define QWEN(v, e, f, l, h, g, d, tied)                                                            \
    DENSE(v, e, f, l, h, g, d, 32768, 1e-6f, 1e6, d, ROPE_NONE, true, tied)
static const Shape shapes[] = {
    { "smollm2-135m", LLAMA(49152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, ROPE_NONE, true) },
    { "llama2-7b", LLAMA(32000, 4096, 11008, 32, 32, 32, 128, 4096, 1e4, ROPE_NONE, false) },
    { "llama3-8b-262k",
      LLAMA(128256, 4096, 14336, 32, 32, 8, 128, 262144, 283461213.0, ROPE_NONE, false) },
    { "llama3.1-8b", LLAMA(128256, 4096, 14336, 32, 32, 8, 128, 131072, 5e5, ROPE_LLAMA3, false) },
    { "llama3.1-70b", LLAMA(128256, 8192, 28672, 80, 64, 8, 128, 131072, 5e5, ROPE_LLAMA3, false) },
    { "mistral-7b", LLAMA(32000, 4096, 14336, 32, 32, 8, 128, 32768, 1e6, ROPE_NONE, false) },
    { "qwen2.5-0.5b", QWEN(151936, 896, 4864, 24, 14, 2, 64, true) },
    { "qwen2.5-7b", QWEN(152064, 3584, 18944, 28, 28, 4, 128, false) },
    { "qwen2.5-32b", QWEN(152064, 5120, 27648, 64, 40, 8, 128, false) },
    { "qwen2.5-72b", QWEN(152064, 8192, 29568, 80, 64, 8, 128, false) },
    { "glm-4-9b-1m",
      DENSE(151552, 4096, 13696, 40, 32, 4, 128, 1048576, 1.5625e-7f, 1e8, 64, ROPE_NONE, true,
            false) },
    { "mamba-codestral-7b",
      { .arch = ARCH_MAMBA2, .vocab_size = 32768, .dim = 4096, .n_layers = 64, .max_ctx = 262144,
        .norm_eps = 1e-5f, .dtype = DT_BF16, .ssm_inner = 8192, .ssm_state = 128, .ssm_conv = 4,
        .ssm_heads = 128, .ssm_head_dim = 64, .ssm_groups = 8, .norm_groups = 8 } },
    { "jamba-1.5-mini", JAMBA(4096, 14336, 32, 32, 256) },
    { "jamba-1.5-large", JAMBA(8192, 24576, 72, 64, 512) },
};

int config_shape(const char *name, Config *c, Err *err) {
    const char *names[COUNTOF(shapes)];
    for (size_t i = 0; i < COUNTOF(shapes); i++) {
        names[i] = shapes[i].name;
        if (strcmp(name, shapes[i].name)) continue;
        *c = shapes[i].c;
        return 0;
    }
    int near = did_you_mean(name, names, (int)COUNTOF(shapes));
    if (near >= 0)
        return FAIL_CODE(err, EXIT_USAGE, "unknown shape '%s', did you mean '%s'?", name,
                         names[near]);
    return FAIL_CODE(err, EXIT_USAGE, "unknown shape '%s': see scbench list shapes", name);
}

void config_shapes(FILE *out) {
    fprintf(out, "%-18s %6s %7s %7s %9s %6s %8s %9s\n", "shape", "layers", "dim", "hidden", "heads",
            "head", "vocab", "max ctx");
    for (size_t i = 0; i < COUNTOF(shapes); i++) {
        const Config *c = &shapes[i].c;
        char heads[24];
        snprintf(heads, sizeof heads, "%d/%d", c->n_heads, c->n_kv_heads);
        fprintf(out, "%-18s %6d %7d %7d %9s %6d %8d %9d\n", shapes[i].name, c->n_layers, c->dim,
                c->hidden_dim, heads, c->head_dim, c->vocab_size, c->max_ctx);
    }
}

size_t config_state_bytes(const Config *c) {
    int mixers = c->n_layers - config_attn_layers(c);
    return mixers ? (size_t)mixers * arch_of(c)->state(c) : 0;
}

// ---------------------------------------------------------------------------
// Weights: the list of an architecture's bind walked by three loaders

static int weights_bind(Weights *w, const Config *c, Loader *from, Err *err) {
    memset(w, 0, sizeof *w);
    return arch_of(c)->bind(w, c, from, err);
}

static void weights_free(Weights *w) {  // the tables, not the weights' memory
    free(w->layer);
    free(w->ssm);
    free(w->moe);
    free(w->experts);
}

static size_t aligned64(size_t b) { return (b + 63) & ~(size_t)63; }

typedef struct Streamed { Weight *w; const FileTensor *t; int layer; } Streamed;

typedef struct {
    Loader l;
    DType dtype;
    ModelFile *file;
    uint64_t seed;
    bool device;                // every matrix row-major, as CudaWeight has it
    size_t widest;              // bytes of the largest q8 matrix as bf16, on a device
    int parts, n_layers;        // of a device
    char *part[MAX_GPUS];       // their arenas
    size_t part_at[MAX_GPUS];
    const Mem *mem;             // of the arena
    char *arena, *slot;         // NULL: only count
    size_t at;
    bool one_layer;             // matrices of every layer share the same bytes, the slot
    int layer;                  // whose come into the slot now
    size_t slot_at, slot_bytes;
    Model *model;               // gets the list of streamed matrices
} Source;

static int layer_of(const char *name) { // "layers.3.wq" -> 3, -1: of no layer
    return strncmp(name, "layers.", 7) ? -1 : atoi(name + 7);
}

// where a tensor goes on a device: the part of its layer, the first for the embedding, the last for
// what comes after all layers. NULL while counting.
static char *device_place(Source *s, const char *name, size_t bytes) {
    int layer = layer_of(name), last = s->parts - 1,
        p = layer >= 0 ? layer * s->parts / s->n_layers : strcmp(name, "embed") ? last : 0;
    size_t at = s->part_at[p];
    s->part_at[p] += aligned64(bytes);
    return s->part[p] ? s->part[p] + at : NULL;
}

// where a packed matrix goes: behind the others, or in the slot
static size_t place(Source *s, const char *name, size_t bytes, bool *in_slot) {
    int layer = layer_of(name);
    *in_slot = s->one_layer && layer >= 0;
    size_t *at = *in_slot ? &s->slot_at : &s->at;
    if (*in_slot && layer != s->layer) {
        s->layer = layer;
        s->slot_at = 0;
    }
    size_t here = *at;
    *at += aligned64(bytes);
    if (s->slot_at > s->slot_bytes) s->slot_bytes = s->slot_at;
    return here;
}

// of a table that is read row by row, the embedding: bf16 in a q8 model
static DType matrix_dtype(const Source *s, bool rows) {
    return rows && s->dtype == DT_Q8 ? DT_BF16 : s->dtype;
}
static size_t matrix_bytes(const Source *s, DType dtype, int n, int k) {
    return s->device ? cuda_weight_bytes(dtype, n, k) : weight_bytes(dtype, n, k);
}

static int count_matrix(Loader *l, Weight *w, const char *name, int n, int k, bool rows, Err *err) {
    Source *s = (Source *)l;
    DType dtype = matrix_dtype(s, rows);
    size_t unpacked = (size_t)n * (size_t)padded(k) * 2;
    bool in_slot;
    (void)w; (void)err;
    if (s->device) device_place(s, name, matrix_bytes(s, dtype, n, k));
    else if (!rows || s->seed) place(s, name, matrix_bytes(s, dtype, n, k), &in_slot);
    if (s->device && dtype == DT_Q8 && unpacked > s->widest) s->widest = unpacked;
    return 0;
}
static size_t vector_len(int n, int k) { return (size_t)n * (size_t)(k ? k : 1); }
static int count_vector(Loader *l, float **v, const char *name, int n, int k, Err *err) {
    Source *s = (Source *)l;
    (void)v; (void)err;
    if (s->device) device_place(s, name, vector_len(n, k) * sizeof(float));
    else s->at += aligned64(vector_len(n, k) * sizeof(float));
    return 0;
}

static int config_parts(const Config *c) { return c->gpus > 1 ? c->gpus : 1; }

// bytes of the arena; *slot: those at its end that all layers share; *unpacked: see Source.widest;
// parts (MAX_GPUS): of each part of a device
static size_t arena_size(const Config *c, size_t *slot, size_t *unpacked, size_t *parts) {
    Source s = { .l = { count_matrix, count_vector }, .dtype = c->dtype, .device = c->device,
                 .parts = config_parts(c), .n_layers = c->n_layers, .one_layer = c->stream,
                 .layer = -1 };
    Weights w;
    Err err;
    weights_bind(&w, c, &s.l, &err);
    weights_free(&w);
    *slot = s.slot_bytes;
    *unpacked = s.widest;
    memcpy(parts, s.part_at, sizeof s.part_at);
    for (int p = 0; p < MAX_GPUS; p++) s.at += parts[p];
    return s.at + s.slot_bytes;
}

// the embedding once more, for a head that lies elsewhere
static size_t tied_bytes(const Config *c) {
    return c->tied && config_parts(c) > 1 ? cuda_weight_bytes(c->dtype, c->vocab_size, c->dim) : 0;
}

size_t config_weight_bytes(const Config *c) {
    size_t slot, unpacked, parts[MAX_GPUS], arena = arena_size(c, &slot, &unpacked, parts),
           n = (size_t)config_parts(c);
    return arena + tied_bytes(c) + (c->device ? n * device_products_bytes(unpacked) : 0);
}

static void advise(const ModelFile *f, const FileTensor *t, int advice) {
    uintptr_t page = 4095, a = (uintptr_t)(f->p + t->offset), b = (a + t->bytes) & ~page;
    a = (a + page) & ~page;
    if (b > a) madvise((void *)a, b - a, advice);
}

static void pack_and_drop(const ModelFile *f, Weight *w, const FileTensor *t) {
    weight_pack(w, file_data(f, t));
    advise(f, t, MADV_DONTNEED);        // the packed copy replaces them
}

static void stream_note(Model *m, Weight *w, const FileTensor *t, int layer) {
    Streamed one = { w, t, layer };
    m->streamed = (Streamed *)xrealloc(m->streamed,
                                       sizeof *m->streamed * (size_t)(m->n_streamed + 1));
    m->streamed[m->n_streamed++] = one;
}

// Packs a layer's matrices into the slot and asks the system for the next layer's pages.
static void stream_layer(void *user, int layer) {
    Model *m = (Model *)user;
    int next = (layer + 1) % m->c.n_layers;
    if (m->in_slot == layer) return;
    for (int i = 0; i < m->n_streamed; i++)
        if (m->streamed[i].layer == next) advise(m->file, m->streamed[i].t, MADV_WILLNEED);
    for (int i = 0; i < m->n_streamed; i++)
        if (m->streamed[i].layer == layer)
            pack_and_drop(m->file, m->streamed[i].w, m->streamed[i].t);
    m->in_slot = layer;
}

// a row-major matrix of the file's layout into its place on the device
static void device_matrix(Source *s, Weight *w, const char *name, const void *rows) {
    size_t bytes = matrix_bytes(s, w->dtype, w->n, w->k);
    char *to = device_place(s, name, bytes);
    void *laid = xrealloc(NULL, bytes);
    CudaWeight there;
    cuda_weight_lay(&there, w->dtype, w->n, w->k, rows, laid, to);
    mem_put(s->mem, to, laid, bytes);
    free(laid);
    w->rows = there.rows;
    w->scale = there.scale;
    w->tiles = NULL;
}

static int file_matrix(Loader *l, Weight *w, const char *name, int n, int k, bool rows, Err *err) {
    Source *s = (Source *)l;
    DType dtype = matrix_dtype(s, rows);
    const FileTensor *t = file_want(s->file, name, dtype, n, k, err);
    if (!t) return -1;
    w->dtype = dtype;
    w->n = n;
    w->k = k;
    w->rows = rows ? file_data(s->file, t) : NULL;
    w->tiles = NULL;
    if (s->device) {
        device_matrix(s, w, name, file_data(s->file, t));
        advise(s->file, t, MADV_DONTNEED);
        return 0;
    }
    if (rows) return 0;
    bool in_slot;
    size_t at = place(s, name, weight_bytes(dtype, n, k), &in_slot);
    w->tiles = (in_slot ? s->slot : s->arena) + at;
    if (in_slot) stream_note(s->model, w, t, layer_of(name));
    else pack_and_drop(s->file, w, t);
    return 0;
}
static float *vector_place(Source *s, const char *name, size_t n) {
    size_t at = s->at, bytes = n * sizeof(float);
    if (s->device) return (float *)(void *)device_place(s, name, bytes);
    s->at += aligned64(bytes);
    return (float *)(void *)(s->arena + at);
}
static int file_vector(Loader *l, float **v, const char *name, int n, int k, Err *err) {
    Source *s = (Source *)l;
    const FileTensor *t = file_want(s->file, name, DT_F32, n, k, err);
    if (!t) return -1;
    *v = vector_place(s, name, vector_len(n, k));
    mem_put(s->mem, *v, file_data(s->file, t), vector_len(n, k) * sizeof(float));
    return 0;
}

static uint16_t random_weight(uint64_t key, float span) {
    return f32_bf16(((float)(mix64(key) >> 40) * 5.9604645e-8f - 0.5f) * span);
}

// uniform with standard deviation 1/sqrt(k): activations neither vanish nor blow up
static int random_matrix(Loader *l, Weight *w, const char *name, int n, int k, bool rows,
                         Err *err) {
    Source *s = (Source *)l;
    (void)rows; (void)err;
    w->dtype = DT_BF16;
    w->n = n;
    w->k = k;
    w->rows = NULL;
    w->tiles = s->arena + s->at;
    size_t count = weight_bytes(DT_BF16, n, k) / 2;
    uint64_t key = s->seed;
    for (const char *c = name; *c; c++) key = mix64(key ^ (uint64_t)(unsigned char)*c);
    float span = 2.0f * sqrtf(3.0f / (float)k);
    if (s->device) {                            // the same numbers in the file's order
        uint16_t *m = (uint16_t *)xrealloc(NULL, (size_t)n * k * sizeof *m);
        size_t kb = CEIL_DIV((size_t)k, BLK);
#pragma omp parallel for
        for (int r = 0; r < n; r++)
            for (int c = 0; c < k; c++) {
                size_t block = (size_t)(r / BLK) * kb + (size_t)(c / BLK),
                       at = block * 1024 + (size_t)(r % BLK / 16 * 512 + c % BLK / 2 * 32 +
                                                    r % 16 * 2 + c % 2);
                m[(size_t)r * k + c] = random_weight(key + at, span);
            }
        device_matrix(s, w, name, m);
        free(m);
        return 0;
    }
    uint16_t *d = (uint16_t *)w->tiles;
#pragma omp parallel for
    for (size_t i = 0; i < count; i++) d[i] = random_weight(key + i, span);
    s->at += aligned64(count * 2);
    return 0;
}
// norms and D are 1, biases 0; A as Mamba starts it, steps between 0.001 and 0.1
static int random_vector(Loader *l, float **v, const char *name, int n, int k, Err *err) {
    Source *s = (Source *)l;
    const char *part = strrchr(name, '.');
    (void)err;
    *v = vector_place(s, name, vector_len(n, k));
    float *x = (float *)xrealloc(NULL, vector_len(n, k) * sizeof *x);
    for (size_t i = 0; i < vector_len(n, k); i++) {
        float u = (float)(mix64(s->seed + i) >> 40) * 5.9604645e-8f;
        x[i] = !part                                              ? 1.0f
                  : !strcmp(part, ".a") && k                   ? -1.0f - (float)(i / (size_t)k)
                  : !strcmp(part, ".a")                              ? -1.0f - 15.0f * u
                  : !strcmp(part, ".dt_bias")                        ? -6.9f + 4.6f * u
                  : !strcmp(part, ".conv")                           ? u - 0.5f
                  : !strcmp(part, ".conv_bias") || !strcmp(part, ".bq") ||
                            !strcmp(part, ".bk") || !strcmp(part, ".bv") ? 0.0f
                                                                         : 1.0f;
    }
    mem_put(s->mem, *v, x, vector_len(n, k) * sizeof *x);
    free(x);
    return 0;
}

// an arena of what bind asks for, and what the source puts there
static char *weights_fill(Source *s, WeightList bind, void *user, Mem *mem, size_t *bytes,
                          Err *err) {
    Source count = { .l = { count_matrix, count_vector }, .dtype = s->dtype, .seed = s->seed };
    bind(user, &count.l, err);
    if (mem->limit && count.at > mem->limit) {
        FAIL_CODE(err, EXIT_MEMORY, "the weights need %zu MB and %zu MB are free", count.at >> 20,
                  mem->limit >> 20);
        return NULL;
    }
    s->arena = TAKE(mem, char, count.at, "the weights");
    s->mem = mem;
    *bytes = count.at;
    if (!bind(user, &s->l, err)) return s->arena;
    mem_give(mem, s->arena, count.at);
    return NULL;
}

char *weights_open(ModelFile *f, DType dtype, WeightList bind, void *user, Mem *mem, size_t *bytes,
                   Err *err) {
    Source s = { .l = { file_matrix, file_vector }, .dtype = dtype, .file = f };
    return weights_fill(&s, bind, user, mem, bytes, err);
}

char *weights_random(uint64_t seed, WeightList bind, void *user, Mem *mem, size_t *bytes,
                     Err *err) {
    Source s = { .l = { random_matrix, random_vector }, .dtype = DT_BF16,
                 .seed = seed ? seed : 1 };
    return weights_fill(&s, bind, user, mem, bytes, err);
}

// first number in a file of the kernel, SIZE_MAX when it is absent or says "max"
static size_t kernel_number(const char *path, const char *format) {
    char line[256];
    size_t v = SIZE_MAX;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) if (sscanf(line, format, &v) == 1) break;
    if (f) fclose(f);
    return v;
}

// the least of: free memory, what the control group leaves, what the address space limit leaves
size_t memory_available(void) {
    size_t kb = kernel_number("/proc/meminfo", "MemAvailable: %zu"),
           have = kb == SIZE_MAX ? SIZE_MAX : kb * 1024;
    size_t max = kernel_number("/sys/fs/cgroup/memory.max", "%zu"),
           used = kernel_number("/sys/fs/cgroup/memory.current", "%zu");
    struct rlimit as;
    if (max != SIZE_MAX && used != SIZE_MAX) {
        size_t left = max > used ? max - used : 0;
        if (left < have) have = left;
    }
    if (!getrlimit(RLIMIT_AS, &as) && as.rlim_cur != RLIM_INFINITY) {
        size_t pages = kernel_number("/proc/self/statm", "%zu");
        size_t mapped = pages == SIZE_MAX ? 0 : pages * (size_t)sysconf(_SC_PAGESIZE);
        size_t left = as.rlim_cur > mapped ? (size_t)as.rlim_cur - mapped : 0;
        if (left < have) have = left;
    }
    return have == SIZE_MAX ? 0 : have;
}

size_t config_memory(const Config *c) {
    Err none;                                   // said by who opened the device
    return c->device ? device_memory_available(config_parts(c), &none) : memory_available();
}

static Model *model_new(const Config *c, const ModelOpts *opts) {
    Model *m = (Model *)xrealloc(NULL, sizeof *m);
    memset(m, 0, sizeof *m);
    m->c = *c;
    m->mem.limit = memory_available();
    m->chunk = opts && opts->chunk > 0 ? opts->chunk : 512;
    m->in_slot = -1;
    m->inv_freq = (float *)xrealloc(NULL, sizeof(float) * (size_t)c->rope_dim / 2);
    rope_frequencies(c, m->inv_freq);
    m->shape.kind = mul_kind(c->dtype);
    m->shape.head_dim = c->head_dim;
    // one head of nothing where no layer attends: the cache has no layers then
    m->shape.n_heads = c->n_heads ? c->n_heads : 1;
    m->shape.n_kv_heads = c->n_kv_heads ? c->n_kv_heads : 1;
    m->shape.elem = c->dtype == DT_F32 ? 4 : 2;
    m->shape.scale = (float)(1.4426950408889634 / sqrt((double)c->head_dim));
    m->shape.rope_dim = c->rope_dim;
    m->shape.inv_freq = m->inv_freq;
    m->shape.device = c->device;
    return m;
}

// a model that computes on a GPU; without one nothing happens
static int model_device(Model *m, const char *path, Err *err) {
    const Config *c = &m->c;
    if (!c->device) return 0;
    if (c->dtype == DT_F32)
        return FAIL_CODE(err, EXIT_USAGE, "%s: a GPU computes bf16 and q8 models; export this one "
                         "with --dtype bf16, or use --device cpu", path);
    if (c->stream)
        return FAIL_CODE(err, EXIT_USAGE, "--stream-weights is for the CPU alone");
    if (c->arch == ARCH_MAMBA2 && c->ssm_head_dim > 1024)
        return FAIL_CODE(err, EXIT_USAGE, "%s: a GPU computes state space heads of up to 1024 "
                         "channels, not of %d; use --device cpu", path, c->ssm_head_dim);
    if (c->n_heads && c->head_dim != 64 && c->head_dim != 80 && c->head_dim != 96 &&
        c->head_dim != 128 && c->head_dim != 256)
        return FAIL_CODE(err, EXIT_USAGE, "%s: a GPU computes heads of 64, 80, 96, 128 or 256 "
                         "channels, not of %d; use --device cpu", path, c->head_dim);
    if (c->gpus > 1 && c->arch != ARCH_LLAMA)
        return FAIL_CODE(err, EXIT_USAGE, "%s: --gpus shares out the layers of a transformer; this "
                         "model runs on one GPU", path);
    if (c->gpus > c->n_layers)
        return FAIL_CODE(err, EXIT_USAGE, "--gpus %d: %s has %d layers", c->gpus, path,
                         c->n_layers);
    size_t slot, unpacked, parts[MAX_GPUS];
    arena_size(c, &slot, &unpacked, parts);
    m->device = device_open(&m->mem, config_parts(c), c->n_layers, unpacked, err);
    if (!m->device) return -1;
    float *there = TAKE(&m->mem, float, c->rope_dim / 2, "rotary frequencies");
    mem_put(&m->mem, there, m->inv_freq, (size_t)(c->rope_dim / 2) * sizeof *there);
    free(m->inv_freq);
    m->inv_freq = there;
    m->shape.inv_freq = there;
    if (!c->offload) return 0;
    device_pinned(m->device, &m->pinned);
    m->pinned.limit = memory_available();
    m->shape.settled = &m->pinned;
    return 0;
}

static void model_tied_head(Model *m) {
    Weight *w = &m->w.head;
    const char *from = (const char *)w->rows;
    device_use(m->device, config_parts(&m->c) - 1);
    m->tied_head = TAKE(&m->mem, char, m->tied_bytes, "the weights");
    mem_copy(&m->mem, m->tied_head, from, m->tied_bytes);
    w->rows = m->tied_head;
    if (w->scale)
        w->scale = (const uint16_t *)(const void *)(m->tied_head + ((const char *)(const void *)
                                                                    w->scale - from));
}

static int model_bind(Model *m, Source *s, Err *err) {
    size_t slot, unpacked;
    m->arena_bytes = arena_size(&m->c, &slot, &unpacked, m->arenas_bytes);
    s->device = m->c.device;
    s->mem = &m->mem;
    s->parts = config_parts(&m->c);
    s->n_layers = m->c.n_layers;
    if (s->seed && !m->c.tied && !s->device)
        m->arena_bytes += aligned64(weight_bytes(DT_BF16, m->c.vocab_size, m->c.dim));
    for (int p = 0; s->device && p < s->parts; p++) {
        device_use(m->device, p);
        m->arenas[p] = s->part[p] = TAKE(&m->mem, char, m->arenas_bytes[p], "the weights");
    }
    if (!s->device) m->arena = TAKE(&m->mem, char, m->arena_bytes, "the weights");
    s->arena = m->arena;
    s->slot = m->arena + m->arena_bytes - slot;
    if (weights_bind(&m->w, &m->c, &s->l, err)) return -1;
    if ((m->tied_bytes = tied_bytes(&m->c))) model_tied_head(m);
    int layers = config_attn_layers(&m->c);
    for (int p = 0, from = 0, to; layers && p < s->parts; p++, from = to) {
        for (to = from; to < layers && device_part_of(m->device, to) == p;) to++;
        device_use(m->device, p);
        m->works[p] = kv_work_open(&m->mem, &m->shape, m->device, from, to);
    }
    device_use(m->device, 0);
    m->work = m->works[0];
    return 0;
}

Model *model_open(ModelFile *f, const ModelOpts *opts, Err *err) {
    Config c;
    if (config_read(f, &c, err)) return NULL;
    c.stream = opts && opts->stream;
    c.device = opts && opts->device;
    c.offload = c.device && opts->offload;
    c.gpus = c.device ? opts->gpus : 0;
    if (opts && opts->norm_groups) {
        if (c.arch != ARCH_MAMBA2 || c.ssm_inner % opts->norm_groups) {
            FAIL_CODE(err, EXIT_USAGE, "mamba.norm_groups=%d: %s", opts->norm_groups,
                      c.arch != ARCH_MAMBA2 ? "this model is no Mamba-2"
                                            : "the inner width does not divide into so many parts");
            return NULL;
        }
        c.norm_groups = opts->norm_groups;
    }
    Model *m = model_new(&c, opts);
    Source s = { .l = { file_matrix, file_vector }, .dtype = c.dtype, .file = f,
                 .one_layer = c.stream, .layer = -1, .model = m };
    if (model_device(m, f->path, err)) { model_close(m); return NULL; }
    size_t need = config_weight_bytes(&c);
    if (m->mem.limit && need > m->mem.limit) {
        FAIL_CODE(err, EXIT_MEMORY, "%s: the weights need %zu MB and %zu MB are free; %s", f->path,
                  need >> 20, m->mem.limit >> 20,
                  c.stream || c.device ? "see --plan"
                                       : "--stream-weights holds one layer at a time");
        model_close(m);
        return NULL;
    }
    m->hash = f->head->hash;
    if (opts && opts->norm_groups) m->hash = mix64(m->hash ^ (uint64_t)opts->norm_groups);
    m->file = c.stream ? f : NULL;
    if (model_bind(m, &s, err)) { model_close(m); return NULL; }
    return m;
}

Model *model_random(const Config *c, const ModelOpts *opts, uint64_t seed, Err *err) {
    Config bf16 = *c;
    bf16.dtype = DT_BF16;
    bf16.stream = false;
    bf16.device = opts && opts->device;
    bf16.offload = bf16.device && opts->offload;
    bf16.gpus = bf16.device ? opts->gpus : 0;
    if (config_check(&bf16, "shape", err)) return NULL;
    Model *m = model_new(&bf16, opts);
    Source s = { .l = { random_matrix, random_vector }, .dtype = DT_BF16,
                 .seed = seed ? seed : 1 };
    m->hash = mix64(s.seed);
    if (model_device(m, "shape", err)) { model_close(m); return NULL; }
    if (model_bind(m, &s, err)) { model_close(m); return NULL; }
    return m;
}

void model_close(Model *m) {
    if (!m) return;
    for (int p = 0; p < MAX_GPUS; p++) kv_work_close(m->works[p]);
    weights_free(&m->w);
    free(m->streamed);
    mem_give(&m->mem, m->arena, m->arena_bytes);
    for (int p = 0; p < MAX_GPUS; p++) mem_give(&m->mem, m->arenas[p], m->arenas_bytes[p]);
    mem_give(&m->mem, m->tied_head, m->tied_bytes);
    for (int p = 0; p < MAX_GPUS; p++) mem_give(&m->mem, m->scratches[p], m->scratch_bytes);
    if (m->device) mem_give(&m->mem, m->inv_freq, (size_t)(m->c.rope_dim / 2) * sizeof(float));
    else free(m->inv_freq);
    device_close(m->device);
    free(m);
}

const Config *model_config(const Model *m) { return &m->c; }
Mem *model_mem(Model *m) { return &m->mem; }
size_t model_weight_bytes(const Model *m) { return m->arena_bytes; }
uint64_t model_hash(const Model *m) { return m->hash; }
void model_set_tap(Model *m, Tap tap) { m->tap = tap; }
void model_set_progress(Model *m, bool (*fn)(void *user, double share), void *user) {
    m->progress = fn;
    m->progress_user = user;
}
void model_set_layer_look(Model *m, LayerLook fn, void *user) {
    m->look = fn != NULL;
    kv_work_look(m->work, fn, user);
}
void model_set_timed(Model *m, bool on) { m->timed = on; }
const char *model_unit(const Model *m) { return m->device ? device_name(m->device) : cpu_isa(); }
Ceilings model_ceilings(Model *m, size_t bytes, double seconds) {
    return m->device ? device_ceilings(m->device, bytes, seconds) : cpu_ceilings(bytes, seconds);
}
Phases model_phases(Model *m) {
    Phases p = m->phases;
    memset(&m->phases, 0, sizeof m->phases);
    return p;
}

// ---------------------------------------------------------------------------
// Context and branch

struct Mark { KVMark *kv; int64_t pos; char *state; };

// chunks of a sparse feed are whole blocks of rows
static int feed_chunk(bool sparse, int chunk) {
    return sparse ? CEIL_DIV(chunk, SPARSE_ROWS) * SPARSE_ROWS : chunk;
}

static void work_reserve(Model *m, const Method *of, int len, int n, int window, int batch) {
    for (int p = 0; m->work && p < config_parts(&m->c); p++) {
        device_use(m->device, p);
        kv_work_reserve(m->works[p], of, len, n, window, batch);
    }
    device_use(m->device, 0);
}

static void sparse_reserve_all(Model *m, const Method *of, int len) {
    for (int p = 0; m->work && p < config_parts(&m->c); p++) {
        device_use(m->device, p);
        kv_work_sparse(m->works[p], of, len, feed_chunk(true, m->chunk));
    }
    device_use(m->device, 0);
}

static Forward forward_of(Model *m, KVCache *kv, const int32_t *ids, int n, int64_t pos,
                          int chunk) {
    Forward f;
    memset(&f, 0, sizeof f);
    f.c = &m->c;
    f.w = &m->w;
    f.shape = &m->shape;
    f.kv = kv;
    f.work = m->work;
    f.ids = ids;
    f.n = n;
    f.sparse = kv && m->work && kv_feed_sparse(kv, n);
    if (kv && m->work && n > chunk && kv_feed_whole(kv)) chunk = n;
    f.chunk = chunk = feed_chunk(f.sparse, chunk);
    f.pos = pos;
    f.device = m->device;
    f.timed = m->timed;
    f.mem = &m->mem;
    f.tap = m->tap;
    f.progress = m->progress;
    f.progress_user = m->progress_user;
    f.load = m->file ? stream_layer : NULL;
    f.load_user = m;
    f.phases = &m->phases;
    size_t want = arch_of(&m->c)->scratch(&m->c, n, chunk);
    for (int p = 0; want > m->scratch_bytes && p < config_parts(&m->c); p++) {
        device_use(m->device, p);
        mem_give(&m->mem, m->scratches[p], m->scratch_bytes);
        m->scratches[p] = mem_take(&m->mem, want, 1, "activations of a feed");
    }
    if (want > m->scratch_bytes) m->scratch_bytes = want;
    device_use(m->device, 0);
    f.scratch = m->scratches[0];
    f.scratches = m->scratches;
    f.works = m->works;
    return f;
}

static int check_ids(const Model *m, const int32_t *ids, int n, int64_t pos, Err *err) {
    if (pos + n > m->c.max_ctx)
        return FAIL(err,
                    "%lld tokens are more than the model's maximum of %d: choose a smaller --ctx "
                    "or fewer new tokens",
                    (long long)(pos + n), m->c.max_ctx);
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->c.vocab_size)
            return FAIL(err, "token id %d at position %lld is outside the vocabulary of %d", ids[i],
                        (long long)(pos + i), m->c.vocab_size);
    return 0;
}

// full with the prefill stage of a method; NULL: dense
static int context_method(const Method *of, Method *m, Err *err) {
    if (method_find("full", m, err)) return -1;
    if (!of) return 0;
    m->prefill = of->prefill;
    m->prefill_size = of->prefill_size;
    m->pattern = of->pattern;
    return 0;
}

Context *context_open(Model *m, const int32_t *ids, int n, const Needs *needs, Err *err) {
    return context_open_sparse(m, NULL, ids, n, needs, err);
}

Context *context_open_sparse(Model *m, const Method *method, const int32_t *ids, int n,
                             const Needs *needs, Err *err) {
    static const Needs nothing;
    Method full;
    if (n < 1) { FAIL(err, "a context needs at least one token"); return NULL; }
    if (check_ids(m, ids, n, 0, err) || context_method(method, &full, err)) return NULL;
    Context *c = (Context *)xrealloc(NULL, sizeof *c);
    memset(c, 0, sizeof *c);
    c->m = m;
    c->refs = 1;
    c->n = n;
    if (!needs) needs = &nothing;
    int layers = config_attn_layers(&m->c);
    c->window_rows = needs->window < n ? needs->window : n;
    c->window_bytes = (size_t)layers * c->window_rows * window_row_bytes(m);
    c->window = TAKE(&m->mem, char, c->window_bytes, "window rows of the context");
    method_prefill_key(&full, &c->prefill);
    if (full.prefill) c->logits = TAKE(logits_mem(m), float, m->c.vocab_size, "logits");
    c->state = state_take(m, NULL);
    KVCache *kv = needs->sums ? kv_open_sums(&m->mem, &m->shape, layers, needs, &full)
                              : kv_open(&m->mem, &m->shape, layers, NULL, &full, 0);
    if (!needs->sums) kv_first_begin(kv);
    work_reserve(m, kv_method(kv), n, n, needs->window, 1);
    sparse_reserve_all(m, kv_method(kv), n);
    Forward f = forward_of(m, kv, ids, n, 0, m->chunk);
    f.first = true;
    f.logits = c->logits;
    f.window_out = c->window;
    f.window_out_rows = c->window_rows;
    f.state = c->state;
    int bad = arch_of(&m->c)->feed(&f, err);
    if (!bad) c->base = kv_base_ref(kv_base(kv));
    kv_close(kv);
    if (!bad) return c;
    context_drop(c);
    return NULL;
}

int context_len(const Context *c) { return c->n; }

void context_drop(Context *c) {
    if (!c || --c->refs) return;
    kv_base_drop(c->base);
    mem_give(&c->m->mem, c->window, c->window_bytes);
    state_give(c->m, c->state);
    mem_give(logits_mem(c->m), c->logits, (size_t)c->m->c.vocab_size * sizeof(float));
    free(c->prefill.p);
    free(c);
}

Branch *branch_new(Model *m, Context *ctx, const Method *method) {
    Branch *b = (Branch *)xrealloc(NULL, sizeof *b);
    memset(b, 0, sizeof *b);
    b->m = m;
    b->ctx = ctx;
    b->method = *method;
    if (ctx) ctx->refs++;
    b->logits = TAKE(logits_mem(m), float, m->c.vocab_size, "logits");
    return b;
}

Branch *branch_open(Model *m, Context *ctx, const Method *method, int reserve, Err *err) {
    if (ctx && method_window(method) > ctx->window_rows && ctx->window_rows < ctx->n) {
        FAIL(err, "internal error: the context kept %d window rows, method %s reads %d",
             ctx->window_rows, method->name, method_window(method));
        return NULL;
    }
    Needs needs = { 0, 0, GROUP_MEAN };
    method_needs(method, &needs);
    if (ctx && needs.sums && !kv_base_sums(ctx->base, needs.sums)) {
        FAIL(err, "internal error: the context kept no column sums, method %s goes on from them",
             method->name);
        return NULL;
    }
    StrBuf key = { 0 };
    method_prefill_key(method, &key);
    bool same = !ctx || !strcmp(key.p, ctx->prefill.p);
    if (!same)
        FAIL(err, "internal error: the context's prefill is '%s', that of method %s '%s'",
             ctx->prefill.p, method->name, key.p);
    free(key.p);
    if (!same) return NULL;
    if (m->device && method_on_device(method, err)) return NULL;
    Branch *b = branch_new(m, ctx, method);
    b->kv = kv_open(&m->mem, &m->shape, config_attn_layers(&m->c), ctx ? ctx->base : NULL,
                    &b->method, reserve);
    b->pos = ctx ? ctx->n : 0;
    b->state = state_take(m, ctx ? ctx->state : NULL);
    return b;
}

// the first feed in parts, the policy acting after each as at a prompt's end
static int stream_feed(Branch *b, const int32_t *ids, int n, unsigned flags, Err *err) {
    int part = b->method.size.stream, rc = 0;
    if (b->ctx)
        return FAIL(err, "internal error: %s evicts within the prompt and shares no context",
                    b->method.name);
    b->streaming = true;
    kv_streaming(b->kv, true);
    for (int i = 0; !rc && i < n; i += part) {
        bool last = n - i <= part;
        rc = branch_feed(b, ids + i, last ? n - i : part,
                         FEED_FIRST | (last ? flags : FEED_NO_LOGITS), err);
    }
    kv_streaming(b->kv, false);
    b->streaming = false;
    return rc;
}

int branch_feed(Branch *b, const int32_t *ids, int n, unsigned flags, Err *err) {
    Model *m = b->m;
    bool first = (flags & FEED_FIRST) != 0;
    CHECK(!b->stopped, "a feed on an interrupted branch");
    if (n < 1 && !(first && b->ctx && n == 0))
        return FAIL(err, "internal error: a feed of %d tokens", n);
    if (check_ids(m, ids, n, b->pos, err)) return -1;
    if (first && b->method.size.stream > 0 && !b->streaming)
        return stream_feed(b, ids, n, flags, err);
    if (first && n && b->ctx && b->ctx->logits)
        return FAIL(err, "internal error: a sparse context is the whole first feed");
    int window = method_window(&b->method);
    if (window > b->pos + n) window = (int)b->pos + n;
    work_reserve(m, &b->method, kv_max_len(b->kv) + n, n ? n : 1,
                 m->look && n > window ? n : window, 1);
    sparse_reserve_all(m, &b->method, kv_max_len(b->kv) + n);
    if (!b->ctx && !b->fed) kv_first_begin(b->kv);
    Forward f = forward_of(m, b->kv, ids, n, b->pos, m->chunk);
    f.first = first;
    f.logits = flags & FEED_NO_LOGITS ? NULL : b->logits;
    if (first && b->ctx) {
        f.window = b->ctx->window;
        f.window_rows = b->ctx->window_rows;
    }
    f.state = b->state;
    if (b->kept && b->kept_pos >= b->pos && b->kept_pos <= b->pos + n) {
        f.kept = b->kept;
        f.keep_at = (int)(b->kept_pos - b->pos);
    }
    b->fed = true;
    if (arch_of(&m->c)->feed(&f, err)) { b->stopped = true; return -1; }
    b->pos += n;
    if (n == 0 && b->ctx->logits)
        memcpy(b->logits, b->ctx->logits, (size_t)m->c.vocab_size * sizeof(float));
    double t = now_s();
    kv_release(b->kv);
    m->phases.evict_s += now_s() - t;
    return kv_check(b->kv, err) ? 0 : -1;
}

static int step_batch(Branch *const *b, const int32_t *ids, int n, Err *err) {
    Model *m = b[0]->m;
    StepOf of[STEP_BATCH];
    int len = 0;
    for (int i = 0; i < n; i++) {
        StepOf row = { b[i]->kv, b[i]->state, b[i]->pos, b[i]->logits };
        of[i] = row;
        if (kv_max_len(b[i]->kv) > len) len = kv_max_len(b[i]->kv);
    }
    for (int i = 0; i < n; i++) work_reserve(m, &b[i]->method, len + 1, 0, 0, n);
    Forward f = forward_of(m, NULL, ids, n, 0, n);
    f.of = of;
    arch_of(&m->c)->step(&f);
    for (int i = 0; i < n; i++) b[i]->pos++;
    for (int i = 0; i < n; i++) if (!kv_check(b[i]->kv, err)) return -1;
    return 0;
}

int branches_step(Branch *const *b, const int32_t *id, int n, Err *err) {
    for (int i = 0; i < n; i++) {
        CHECK(!b[i]->stopped, "a step on an interrupted branch");
        CHECK(b[i]->m == b[0]->m && (b[i]->ctx || b[i]->fed), "a batch step on an empty branch");
        for (int j = 0; j < i; j++) CHECK(b[i] != b[j], "a branch twice in one step");
        if (check_ids(b[i]->m, &id[i], 1, b[i]->pos, err)) return -1;
    }
    for (int i = 0, m = 0; i < n; i += m) {             // lists per KV head or per query head
        for (m = 1; i + m < n && m < STEP_BATCH; m++)
            if (kv_heads(b[i + m]->kv) != kv_heads(b[i]->kv)) break;
        if (step_batch(b + i, id + i, m, err)) return -1;
    }
    return 0;
}

int branch_step(Branch *b, int32_t id, Err *err) {
    CHECK(!b->stopped, "a step on an interrupted branch");
    if (!b->ctx && !b->fed) return branch_feed(b, &id, 1, FEED_FIRST, err);
    return branches_step(&b, &id, 1, err);
}

const float *branch_logits(const Branch *b) { return b->logits; }

int branch_finite(const Branch *b, Err *err) {
    for (int i = 0; i < b->m->c.vocab_size; i++)
        if (!isfinite(b->logits[i]))
            return FAIL(err, "the logit of token id %d is not a number: the weights are damaged or "
                        "overflow; run with --verify", i);
    return 0;
}

int branch_argmax(const Branch *b) {
    int best = 0;
    for (int i = 1; i < b->m->c.vocab_size; i++) if (b->logits[i] > b->logits[best]) best = i;
    return best;
}

Branch *branch_fork(Branch *b, int reserve, Err *err) {
    if (b->stopped || (!b->ctx && !b->fed)) {
        FAIL(err, "internal error: a fork of an empty branch");
        return NULL;
    }
    Branch *f = branch_new(b->m, b->ctx, &b->method);
    f->kv = kv_fork(b->kv, reserve);
    f->pos = b->pos;
    f->fed = true;
    f->state = state_take(b->m, b->state);
    memcpy(f->logits, b->logits, (size_t)b->m->c.vocab_size * sizeof(float));
    return f;
}

void branch_cut(Branch *b, int64_t pos) {
    CHECK(pos >= 0 && pos <= b->pos, "a cut at %lld of %lld tokens", (long long)pos,
          (long long)b->pos);
    kv_cut(b->kv, pos);
    if (b->state && pos < b->pos) {
        CHECK(b->kept && b->kept_pos == pos, "no recurrent state is kept at %lld", (long long)pos);
        state_give(b->m, b->state);
        b->state = b->kept;
        b->kept = NULL;
    }
    b->pos = pos;
}

void branch_keep(Branch *b, int64_t pos) {
    CHECK(pos >= b->pos && !b->kept, "recurrent state is kept once, ahead of its position");
    if (!b->state) return;
    b->kept = state_take(b->m, NULL);
    b->kept_pos = pos;
}

void branch_drop(Branch *b) {
    if (!b) return;
    Model *m = b->m;
    kv_close(b->kv);
    context_drop(b->ctx);
    mem_give(logits_mem(m), b->logits, (size_t)m->c.vocab_size * sizeof(float));
    state_give(m, b->state);
    state_give(m, b->kept);
    free(b);
}

Mark *branch_mark(Branch *b) {
    CHECK(b->ctx || b->fed, "a mark on an empty branch");
    Mark *k = (Mark *)xrealloc(NULL, sizeof *k);
    k->kv = kv_mark(b->kv);
    k->pos = b->pos;
    k->state = state_take(b->m, b->state);
    return k;
}

void branch_rewind(Branch *b, Mark *k) {
    kv_rewind(b->kv, k->kv);
    b->pos = k->pos;
    state_give(b->m, b->state);
    b->state = k->state;
    free(k);
}

void mark_drop(Branch *b, Mark *k) {
    kv_mark_drop(b->kv, k->kv);
    state_give(b->m, k->state);
    free(k);
}

BranchStats branch_stats(const Branch *b) {
    KVStats k = kv_stats(b->kv);
    BranchStats s = { b->pos,        k.min,          k.max,   k.mean,  k.live_bytes,
                      k.alloc_bytes, k.policy_bytes, k.named, k.shared,
                      config_state_bytes(&b->m->c), k.pairs_ratio };
    return s;
}

int branch_rows(const Branch *b, int layer, int kv_head, const int32_t **pos) {
    return kv_positions(b->kv, layer, kv_head, pos);
}

void branch_poison(Branch *b) { kv_poison(b->kv); }

// ---------------------------------------------------------------------------
// Plan: the formulas of the allocations above, summed at the moment of the peak

size_t config_row_bytes(const Config *c) {
    AttnShape s;
    if (!config_attn_layers(c)) return 0;
    memset(&s, 0, sizeof s);
    s.head_dim = c->head_dim;
    s.elem = c->dtype == DT_F32 ? 4 : 2;
    return kv_row_bytes(&s);
}

static AttnShape shape_of(const Config *c) {
    AttnShape s;
    memset(&s, 0, sizeof s);
    s.kind = mul_kind(c->dtype);
    s.head_dim = c->head_dim;
    s.n_heads = c->n_heads ? c->n_heads : 1;
    s.n_kv_heads = c->n_kv_heads ? c->n_kv_heads : 1;
    s.elem = c->dtype == DT_F32 ? 4 : 2;
    s.rope_dim = c->rope_dim;
    s.device = c->device;
    return s;
}

// activations of a feed of n tokens, scratch for lists of up to rows entries, logits
static size_t scratch_bytes(const Config *c, const Method *m, int n, int rows, int chunk) {
    AttnShape s = shape_of(c);
    bool sparse = m->prefill && config_attn_layers(c);
    int window = method_window(m) < rows ? method_window(m) : rows;
    chunk = feed_chunk(sparse, chunk ? chunk : 512);
    size_t one = arch_of(c)->scratch(c, n, chunk) +
           (config_attn_layers(c) ? kv_work_bytes(&s, m, rows, n, window, 1) : 0) +
           (sparse ? kv_sparse_bytes(&s, m, m->prefill_size.every_feed ? rows : n, chunk) : 0);
    return (size_t)config_parts(c) * one + (size_t)c->vocab_size * sizeof(float);
}

// rows of a head after the first feed, at most
static size_t plan_kept(const Method *m, int n_first, int64_t rows_kept) {
    if (rows_kept >= 0) return (size_t)rows_kept;
    bool fixed = method_evicts(m) && method_has_budget(m) && method_at_first(m) &&
                 m->size.budget < n_first;
    return (size_t)(fixed ? m->size.budget : n_first);
}

// heads that hold rows: a cache of query heads has more
static size_t plan_heads(const Config *c, const Method *m) {
    return (size_t)config_attn_layers(c) * (size_t)(method_wide(m) ? c->n_heads : c->n_kv_heads);
}

// live lists and policy state, or bounds of pages
static size_t plan_lists(const Config *c, const Method *m, size_t rows) {
    size_t page = m->size.page > 0 ? rows / (size_t)m->size.page : 0;
    AttnShape s = shape_of(c);
    if (!method_evicts(m)) return plan_heads(c, m) * page * 2 * (size_t)s.head_dim * s.elem;
    return (size_t)(1 + method_words(m)) * plan_heads(c, m) * rows * sizeof(int32_t);
}

static size_t window_bytes_of(const Config *c, int rows) {
    return (size_t)config_attn_layers(c) * rows * c->n_heads * c->head_dim *
           (c->dtype == DT_F32 ? 4 : 2);
}

Plan plan_run(const Config *c, const Method *m, int n_ctx, int n_first, int n_later, bool shared,
              int64_t rows_kept, int chunk) {
    Plan p;
    size_t attn = (size_t)config_attn_layers(c), row = config_row_bytes(c),
           heads = plan_heads(c, m), first = (size_t)n_first, base = attn * c->n_kv_heads;
    int window = method_window(m), part = m->size.stream;
    size_t kept = plan_kept(m, n_first, rows_kept), lists = attn ? heads / attn : 0;
    if (part > 0 && part < n_first) {           // the prompt is never there whole
        if (kept + (size_t)part < first) first = kept + (size_t)part;
        n_first = part;
    }
    memset(&p, 0, sizeof p);
    p.upper_bound = rows_kept < 0 && method_evicts(m) && !method_has_budget(m);
    p.weights = config_weight_bytes(c);
    size_t longest = kept + (size_t)n_later > first ? kept + (size_t)n_later : first; // of any list
    AttnShape s = shape_of(c);
    p.scratch = scratch_bytes(c, m, n_first, (int)longest, chunk);
    if (attn) p.scratch += kv_turned_bytes(&s, m, (int)kept + n_later, 1);
    if (c->offload) {                           // on the device: the layer under way, and tails
        size_t under_way = attn ? first * (shared ? base / attn : lists) : 0;
        p.host = (shared ? first * base : kept * heads) * row;
        p.kv = (under_way + (size_t)n_later * heads) * row;
        if (shared) p.kv += window_bytes_of(c, window < n_ctx ? window : n_ctx);
    } else if (shared) {
        // the context, its window rows, and a tail for question 1 and all that follows
        p.kv = (first * base + (size_t)n_later * heads) * row;
        p.kv += window_bytes_of(c, window < n_ctx ? window : n_ctx);
    } else {
        // all layers settled but the last one, whose rows are all there; or everything settled
        size_t settled = (kept + (size_t)n_later) * row, last = first * row;
        size_t during = (heads - lists) * settled + lists * last;
        size_t after = (heads - 1) * settled + last + (kept < first ? kept * row : 0);
        p.kv = during > after ? during : after;
        if (heads * settled > p.kv) p.kv = heads * settled;
    }
    // recurrent state: of the branch, of its mark or fork, of the shared context
    p.kv += (shared ? 3 : 2) * config_state_bytes(c);
    p.policy = plan_lists(c, m, kept + (size_t)n_later);
    Needs needs = { 0, 0, GROUP_MEAN };
    method_needs(m, &needs);
    if (shared) p.policy += (size_t)needs.sums * heads * (size_t)n_ctx * sizeof(float);
    p.total = p.weights + p.kv + p.scratch + p.policy;
    return p;
}

void plan_more(Plan *p, const Config *c, const Method *m, int n_ctx, int n_first, int n_later,
               bool shared, int64_t rows_kept, int more) {
    AttnShape s = shape_of(c);
    size_t heads = (size_t)config_attn_layers(c) * c->n_kv_heads, row = config_row_bytes(c),
           kept = plan_kept(m, n_first, rows_kept), later = (size_t)n_later, n = (size_t)more,
           tails = heads * ((c->offload ? 0 : kept) + (n + 1) * later) * row;
    int longest = (int)kept + n_later > n_first ? (int)kept + n_later : n_first,
        window = method_window(m);
    if (shared) p->kv += n * ((size_t)(n_first - n_ctx) + later) * row * heads;
    else if (tails > p->kv) p->kv = tails;
    p->scratch += n * (size_t)c->vocab_size * sizeof(float) +
                  kv_work_bytes(&s, m, longest, n_first, window, more + 1) -
                  kv_work_bytes(&s, m, longest, n_first, window, 1) +
                  kv_turned_bytes(&s, m, (int)kept + n_later, more + 1) -
                  kv_turned_bytes(&s, m, (int)kept + n_later, 1);
    p->policy += n * plan_lists(c, m, kept + later);
    p->total = p->weights + p->kv + p->scratch + p->policy;
}
