// tinyssm.h - small Mamba-2 and Jamba files for the tests: the program's own list of tensors,
// walked by a loader that writes random weights.
#ifndef TINYSSM_H
#define TINYSSM_H
#include "tinymodel.h"

typedef struct {
    Loader l;
    BinWriter w;
    TinySpec spec;              // dtype, tied, seed
} SsmWriter;

static inline int ssm_write_matrix(Loader *l, Weight *w, const char *name, int n, int k, bool rows,
                                   Err *err) {
    SsmWriter *s = (SsmWriter *)l;
    (void)w; (void)rows; (void)err;
    tiny_matrix(&s->w, &s->spec, name, n, k);
    return 0;
}

// norms around 1, steps around 0.05 and less, A in -1 .. -16, the rest within 1
static inline int ssm_write_vector(Loader *l, float **v, const char *name, int n, int k, Err *err) {
    SsmWriter *s = (SsmWriter *)l;
    const char *part = strrchr(name, '.');
    size_t count = (size_t)n * (size_t)(k ? k : 1);
    float *x = (float *)xrealloc(NULL, count * sizeof *x);
    (void)v; (void)err;
    for (size_t i = 0; i < count; i++) {
        float u = tiny_uniform(&s->spec, name, i);
        x[i] = strstr(name, "norm") ? 1.0f + 0.2f * u : 0.6f * u;
        if (part && !strcmp(part, ".a")) x[i] = -8.5f - 7.5f * u;
        if (part && !strcmp(part, ".dt_bias")) x[i] = -3.5f + 2.5f * u;
    }
    uint64_t shape[2] = { (uint64_t)n, (uint64_t)k };
    bin_tensor(&s->w, name, DT_F32, k ? 2 : 1, shape, x);
    free(x);
    return 0;
}

static inline void ssm_params(BinWriter *w, const Config *c) {
    struct { const char *key; int value; bool mamba2, jamba; } p[] = {
        { "vocab_size", c->vocab_size, true, true }, { "dim", c->dim, true, true },
        { "n_layers", c->n_layers, true, true }, { "max_ctx", c->max_ctx, true, true },
        { "ssm_inner", c->ssm_inner, true, true }, { "ssm_state", c->ssm_state, true, true },
        { "ssm_conv", c->ssm_conv, true, true }, { "tied", c->tied, true, true },
        { "dtype", (int)c->dtype, true, true },
        { "ssm_heads", c->ssm_heads, true, false }, { "ssm_groups", c->ssm_groups, true, false },
        { "ssm_head_dim", c->ssm_head_dim, true, false },
        { "norm_groups", c->norm_groups, true, false },
        { "hidden_dim", c->hidden_dim, false, true }, { "n_heads", c->n_heads, false, true },
        { "n_kv_heads", c->n_kv_heads, false, true }, { "head_dim", c->head_dim, false, true },
        { "attn_period", c->attn_period, false, true },
        { "attn_offset", c->attn_offset, false, true }, { "n_experts", c->n_experts, false, true },
        { "n_experts_used", c->n_experts_used, false, true },
        { "expert_period", c->expert_period, false, true },
        { "expert_offset", c->expert_offset, false, true },
        { "ssm_dt_rank", c->ssm_dt_rank, false, true },
    };
    bool jamba = c->arch == ARCH_JAMBA;
    bin_str(w, "arch", jamba ? "jamba" : "mamba2");
    bin_real(w, "norm_eps", (double)c->norm_eps);
    for (size_t i = 0; i < COUNTOF(p); i++)
        if (jamba ? p[i].jamba : p[i].mamba2) bin_int(w, p[i].key, p[i].value);
}

// matrices of a wider spread than usual: routers decide, states matter
static inline void ssm_write(const Config *c, uint64_t seed, const char *path) {
    SsmWriter s;
    Weights w;
    Err err = { 0 };
    memset(&s, 0, sizeof s);
    memset(&w, 0, sizeof w);
    s.l.matrix = ssm_write_matrix;
    s.l.vector = ssm_write_vector;
    s.spec.dtype = c->dtype;
    s.spec.tied = c->tied;
    s.spec.seed = seed;
    ssm_params(&s.w, c);
    tiny_tokenizer(&s.w, c->vocab_size);
    int rc = c->arch == ARCH_JAMBA ? jamba_bind(&w, c, &s.l, &err) : mamba_bind(&w, c, &s.l, &err);
    CHECK(!rc, "%s", err.msg);
    bin_save(&s.w, path);
    bin_free(&s.w);
    free(w.layer);
    free(w.ssm);
    free(w.moe);
    free(w.experts);
}

#endif
