// tinymodel.h - writes small llama model files: random weights from a seed, or weights by hand.
// The tokenizer records are the least a file may have: 256 bytes, <bos>, <eos>, unused ids.
#ifndef TINYMODEL_H
#define TINYMODEL_H
#include "binwriter.h"

// Under a sanitizer a test takes some of its cases: the same paths in bearable time.
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { TINY_BOS = 256, TINY_EOS = 257, TINY_VOCAB = 258 };      // TINY_VOCAB: the smallest

typedef struct {
    int dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim;
    int vocab_size;             // 0: TINY_VOCAB
    int rope_dim;               // 0: head_dim
    DType dtype;                // DT_F32, DT_BF16, DT_Q8 (then embed is bf16 unless tied)
    bool tied, qkv_bias;
    RopeScaling rope_scaling;   // ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3
    double rope_theta;          // 0: 10000
    uint64_t seed;
    float sharp;                // scale of wq and wk, 0: 2; larger attends to fewer rows
    // (row, col) of a tensor by its name, vectors have col 0; NULL: random. Not for DT_Q8.
    float (*weight)(const char *name, int row, int col);
} TinySpec;

// uniform in [-1, 1) from (seed, tensor name, element)
static inline float tiny_uniform(const TinySpec *s, const char *name, size_t i) {
    uint64_t h = mix64(s->seed ^ XXH64(name, strlen(name), 0)) + i;
    return (float)(mix64(h) >> 40) * 0x1p-23f - 1.0f;
}

// the bound of the uniform weights: variance 1/k, times sharp for wq and wk
static inline float tiny_bound(const TinySpec *s, const char *name, int k) {
    const char *part = strrchr(name, '.');
    bool qk = part && (!strcmp(part, ".wq") || !strcmp(part, ".wk"));
    if (!strcmp(name, "embed")) return 1.0f;
    return sqrtf(3.0f / (float)k) * (qk ? s->sharp ? s->sharp : 2.0f : 1.0f);
}

static inline void tiny_vector(BinWriter *w, const TinySpec *s, const char *name, int n,
                               float mean) {
    float *x = (float *)xrealloc(NULL, (size_t)n * sizeof *x);
    for (int i = 0; i < n; i++)
        x[i] = s->weight ? s->weight(name, i, 0) : mean + 0.2f * tiny_uniform(s, name, (size_t)i);
    bin_vector(w, name, DT_F32, x, (uint64_t)n);
    free(x);
}

// scale with a random mantissa in [1, 2) / 128 * 2^e, random quants: about the bound of the others
static inline Q8Block tiny_block(const TinySpec *s, const char *name, size_t block, float bound,
                                 int n) {
    Q8Block b = { 0 };
    int e;
    frexpf(bound, &e);
    uint64_t r = mix64(s->seed ^ mix64(block ^ XXH64(name, strlen(name), 1)));
    b.scale = (uint16_t)((uint64_t)(e - 1 - 7 + 15) << 10 | (r & 1023));
    for (int i = 0; i < n; i++)
        b.q[i] = (int8_t)rintf(127.0f * tiny_uniform(s, name, block * 32 + (size_t)i));
    return b;
}

static inline void tiny_matrix(BinWriter *w, const TinySpec *s, const char *name, int n, int k) {
    DType dtype = s->dtype == DT_Q8 && !s->tied && !strcmp(name, "embed") ? DT_BF16 : s->dtype;
    size_t count = (size_t)n * (size_t)k, per_row = (size_t)CEIL_DIV(k, 32);
    float bound = tiny_bound(s, name, k);
    void *p = xrealloc(NULL, ((size_t)n * per_row + count) * sizeof(Q8Block));
    if (dtype == DT_Q8) {
        for (size_t i = 0; i < (size_t)n * per_row; i++) {
            int left = k - (int)(i % per_row) * 32;
            ((Q8Block *)p)[i] = tiny_block(s, name, i, bound, left < 32 ? left : 32);
        }
    } else {
        for (size_t i = 0; i < count; i++) {
            float x = s->weight ? s->weight(name, (int)(i / (size_t)k), (int)(i % (size_t)k))
                                : bound * tiny_uniform(s, name, i);
            if (dtype == DT_F32) ((float *)p)[i] = x;
            else ((uint16_t *)p)[i] = f32_bf16(x);
        }
    }
    bin_matrix(w, name, dtype, p, (uint64_t)n, (uint64_t)k);
    free(p);
}

static inline void tiny_tokenizer(BinWriter *w, int vocab) {
    static const char *const no_text[] = { "tok.regex", "chat.prefix", "chat.user_open",
        "chat.user_close", "chat.assistant_open", "chat.assistant_close" };
    static const char *const zero[] = { "tok_nfc", "tok_digits", "tok_ignore_merges", "tok_add_bos",
        "chat_present", "chat_trim" };
    uint8_t bytes[266];
    int32_t *offsets = (int32_t *)xrealloc(NULL, (size_t)(vocab + 1) * sizeof *offsets);
    uint8_t *types = (uint8_t *)xrealloc(NULL, (size_t)vocab);
    int32_t none[3] = { -1, -1, -1 }, eos = TINY_EOS;
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    memcpy(bytes + 256, "<bos><eos>", 10);
    for (int i = 0; i <= vocab; i++)
        offsets[i] = i <= 256 ? i : i == 257 ? 261 : 266;
    for (int i = 0; i < vocab; i++) types[i] = i < 256 ? 0 : i < TINY_VOCAB ? 1 : 3;
    bin_int(w, "tok_kind", 1);
    bin_int(w, "bos_id", TINY_BOS);
    for (size_t i = 0; i < COUNTOF(zero); i++) bin_int(w, zero[i], 0);
    bin_vector(w, "tok.bytes", DT_U8, bytes, sizeof bytes);
    bin_vector(w, "tok.offsets", DT_I32, offsets, (uint64_t)vocab + 1);
    bin_vector(w, "tok.types", DT_U8, types, (uint64_t)vocab);
    bin_matrix(w, "tok.merges", DT_I32, none, 1, 3);
    bin_matrix(w, "tok.added", DT_I32, none, 1, 2);
    bin_vector(w, "tok.eos", DT_I32, &eos, 1);
    for (size_t i = 0; i < COUNTOF(no_text); i++) bin_vector(w, no_text[i], DT_U8, "", 1);
    free(offsets);
    free(types);
}

static inline void tiny_params(BinWriter *w, const TinySpec *s, int vocab) {
    bin_str(w, "arch", "llama");
    bin_int(w, "vocab_size", vocab);
    bin_int(w, "dim", s->dim);
    bin_int(w, "hidden_dim", s->hidden_dim);
    bin_int(w, "n_layers", s->n_layers);
    bin_int(w, "n_heads", s->n_heads);
    bin_int(w, "n_kv_heads", s->n_kv_heads);
    bin_int(w, "head_dim", s->head_dim);
    bin_int(w, "max_ctx", 65536);
    bin_real(w, "norm_eps", 1e-5);
    bin_real(w, "rope_theta", s->rope_theta ? s->rope_theta : 10000.0);
    bin_int(w, "rope_dim", s->rope_dim ? s->rope_dim : s->head_dim);
    bin_int(w, "rope_scaling", s->rope_scaling);
    bin_real(w, "rope_factor", s->rope_scaling == ROPE_NONE ? 1.0 : 4.0);
    bin_real(w, "rope_low_freq_factor", 1.0);
    bin_real(w, "rope_high_freq_factor", 4.0);
    bin_int(w, "rope_orig_ctx", 128);
    bin_int(w, "qkv_bias", s->qkv_bias);
    bin_int(w, "tied", s->tied);
    bin_int(w, "dtype", s->dtype);
}

static inline void tiny_write(const TinySpec *s, const char *path) {
    BinWriter w = { 0 };
    int vocab = s->vocab_size ? s->vocab_size : TINY_VOCAB;
    int E = s->dim, F = s->hidden_dim;
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    struct { const char *part; int n, k; float mean; } t[] = {
        { "attn_norm", E, 0, 1 }, { "ffn_norm", E, 0, 1 },
        { "wq", q, E, 0 }, { "wk", kv, E, 0 }, { "wv", kv, E, 0 }, { "wo", E, q, 0 },
        { "w1", F, E, 0 }, { "w3", F, E, 0 }, { "w2", E, F, 0 },
        { "bq", q, 0, 0 }, { "bk", kv, 0, 0 }, { "bv", kv, 0, 0 },      // last: only with qkv_bias
    };
    tiny_params(&w, s, vocab);
    tiny_tokenizer(&w, vocab);
    tiny_matrix(&w, s, "embed", vocab, E);
    for (int l = 0; l < s->n_layers; l++)
        for (size_t i = 0; i < COUNTOF(t) - (s->qkv_bias ? 0 : 3); i++) {
            char name[56];
            snprintf(name, sizeof name, "layers.%d.%s", l, t[i].part);
            if (t[i].k) tiny_matrix(&w, s, name, t[i].n, t[i].k);
            else tiny_vector(&w, s, name, t[i].n, t[i].mean);
        }
    tiny_vector(&w, s, "final_norm", E, 1);
    if (!s->tied) tiny_matrix(&w, s, "lm_head", vocab, E);
    bin_save(&w, path);
    bin_free(&w);
}

#endif
