// jamba.cu - Jamba (arXiv 2403.19887, 2408.12570): layers that attend, without positions, among
// Mamba-1 layers (arXiv 2312.00752), and experts in the place of some feed-forward nets.
#include "scb.h"

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
