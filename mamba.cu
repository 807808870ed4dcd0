// mamba.cu - Mamba-2, the state space duality of Dao and Gu (arXiv 2405.21060), and
// Mamba-Codestral.
#include "scb.h"

enum { CHUNK = 64 };                    // tokens between two states S, absolute positions

// ---------------------------------------------------------------------------
// State of one layer

typedef struct {
    float *tail;                        // (K - 1, X) the newest inputs of the convolution
    float *s;                           // (J, N, P) S at the last multiple of 64 tokens
    char *rows;                         // (64, X) x|B|C of the tokens since, bf16 or fp32
    float *dt;                          // (64, J) of the same tokens
} State;

static size_t state_carve(const Config *c, char *base, State *s) {
    size_t X = (size_t)c->ssm_inner + 2 * (size_t)c->ssm_groups * c->ssm_state, at = 0;
    size_t elem = c->dtype == DT_F32 ? 4 : 2;
#define CARVE(field, type, count)                                                                  \
    (s->field = (type *)(base + at), at += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63)
    CARVE(tail, float, (size_t)(c->ssm_conv - 1) * X);
    CARVE(s, float, (size_t)c->ssm_inner * c->ssm_state);
    CARVE(rows, char, CHUNK * X * elem);
    CARVE(dt, float, (size_t)CHUNK * c->ssm_heads);
#undef CARVE
    return at;
}

size_t mamba_state_bytes(const Config *c) {
    static char base[1];                // only offsets are wanted
    State s;
    return state_carve(c, base, &s);
}

// ---------------------------------------------------------------------------
// Weights: the one list of names and shapes (scb.h)

int mamba_bind(Weights *w, const Config *c, Loader *from, Err *err) {
    int E = c->dim, D = c->ssm_inner, J = c->ssm_heads, X = D + 2 * c->ssm_groups * c->ssm_state;
    char name[64];
#define MATRIX(field, key, n, k, rows)                                                             \
    if (from->matrix(from, &(field), key, n, k, rows, err)) return -1
#define VECTOR(field, key, n, k) if (from->vector(from, &(field), key, n, k, err)) return -1
#define NAME(key) (snprintf(name, sizeof name, "layers.%d." key, l), name)
    w->layer = (LlamaLayer *)xrealloc(NULL, sizeof *w->layer * (size_t)c->n_layers);
    memset(w->layer, 0, sizeof *w->layer * (size_t)c->n_layers);
    w->ssm = (SsmLayer *)xrealloc(NULL, sizeof *w->ssm * (size_t)c->n_layers);
    memset(w->ssm, 0, sizeof *w->ssm * (size_t)c->n_layers);
    MATRIX(w->embed, "embed", c->vocab_size, E, !c->tied);
    for (int l = 0; l < c->n_layers; l++) {
        SsmLayer *s = &w->ssm[l];
        VECTOR(w->layer[l].attn_norm, NAME("attn_norm"), E, 0);
        MATRIX(s->wz, NAME("wz"), D, E, false);
        MATRIX(s->wx, NAME("wx"), X, E, false);
        MATRIX(s->wdt, NAME("wdt"), J, E, false);
        VECTOR(s->conv, NAME("conv"), c->ssm_conv, X);
        VECTOR(s->conv_bias, NAME("conv_bias"), X, 0);
        VECTOR(s->dt_bias, NAME("dt_bias"), J, 0);
        VECTOR(s->a, NAME("a"), J, 0);
        VECTOR(s->d, NAME("d"), J, 0);
        VECTOR(s->gate_norm, NAME("gate_norm"), D, 0);
        MATRIX(s->wout, NAME("wout"), E, D, false);
    }
    VECTOR(w->final_norm, "final_norm", E, 0);
    if (c->tied) w->head = w->embed;
    else MATRIX(w->head, "lm_head", c->vocab_size, E, false);
#undef MATRIX
#undef VECTOR
#undef NAME
    return 0;
}
