// evict.cu - which rows of the cache go: the policies and the statistics they are shown.
//
//   full           keeps every row
//   keep-last      the newest B rows
//   streamingllm   the first S and the last R rows          Xiao et al., arXiv 2309.17453
//   corm           rows important to any of the last w queries, and the last r
//                                                           Dai et al., arXiv 2404.15949
//
// A policy is one row of the table: it sees one KV head, its list length, one int of state per row
// and scores; it knows no model.
#include "cache.h"

// ---------------------------------------------------------------------------
// Policies


// keeps [0, head) and [len - tail, len)
static int keep_ends(int head, int tail, int len, uint8_t *keep) {
    int dropped = len - head - tail;
    if (dropped <= 0) dropped = 0;
    memset(keep, 1, (size_t)len);
    memset(keep + head * (dropped > 0), 0, (size_t)dropped);
    return dropped;
}

static int keep_last(const Sizes *z, int len, int64_t t, const int32_t *state, uint8_t *keep) {
    (void)t; (void)state;
    return keep_ends(0, z->budget, len, keep);
}

static int keep_streaming(const Sizes *z, int len, int64_t t, const int32_t *state, uint8_t *keep) {
    (void)t; (void)state;
    return keep_ends(z->sinks, z->recent, len, keep);
}

// CORM. Key j is important to the query of step t iff a_tj >= 1/t, that is s_tj >= lse2_t - log2 t.
// The paper's matrix of the last w rows of such bits is one int per key: last_j, the latest step at
// which j was important (0: never). A key that no query of the last w found important, and that is
// not among the r newest, is dropped; nothing is before w queries gave rows.
static void corm_observe(int32_t *last, const float *s, int len, float lse2, int64_t t) {
    float bound = lse2 - flog2((float)t);
    for (int j = 0; j < len; j++)
        last[j] = s[j] >= bound && (int32_t)t > last[j] ? (int32_t)t : last[j];
}

static int keep_corm(const Sizes *z, int len, int64_t t, const int32_t *last, uint8_t *keep) {
    int dropped = 0;
    for (int j = 0; j < len; j++) {
        keep[j] = t < z->window || last[j] > t - z->window || j >= len - z->protect;
        dropped += !keep[j];
    }
    return dropped;
}

static int corm_window(const Sizes *z) { return z->window; }

static const Policy policies[] = {
    { "full", "every row is kept", "n", "n^2", "n", false, false, false, NULL, NULL, NULL },
    { "keep-last", "the newest B rows of each KV head", "B", "n^2", "B", true, true, false,
      keep_last, NULL, NULL },
    { "streamingllm", "the first S (sinks) and the last R rows (arXiv 2309.17453)", "S + R", "n^2",
      "S + R", true, true, false, keep_streaming, NULL, NULL },
    { "corm", "rows important to any of the last w queries, and the last r (arXiv 2404.15949)",
      "no bound", "n^2 + w n", "rows kept", true, false, true, keep_corm, corm_observe,
      corm_window },
};
const Policy *policy_at(int i) {
    return i >= 0 && i < (int)COUNTOF(policies) ? &policies[i] : NULL;
}

// ---------------------------------------------------------------------------
// Statistics of the last query rows, O(n) memory: one pass for lse2 of every (head, row), then one
// pass per (KV head, panel of keys) that shows the policy the scores, (query, head) ascending.


// puts rows of the shared context in front of the feed's own, returns how many rows there are
static int window_join(KVWork *w, int want, const void *ext, int ext_rows) {
    const AttnShape *s = w->s;
    size_t row = (size_t)s->n_heads * s->head_dim;
    int own = w->window_rows < want ? w->window_rows : want,
        add = want - own < ext_rows ? want - own : ext_rows;
    memmove(w->window + (size_t)add * row, w->window + (size_t)(w->window_rows - own) * row,
            (size_t)own * row * sizeof(float));
    for (size_t i = 0; i < (size_t)add * row; i++) {
        size_t at = (size_t)(ext_rows - add) * row + i;
        w->window[i] =
            s->elem == 4 ? ((const float *)ext)[at] : bf16_f32(((const uint16_t *)ext)[at]);
    }
    w->window_rows = own + add;
    return own + add;
}

static void observe_lse2(KVCache *c, KVWork *w, int layer, int rows) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, blocks = CEIL_DIV(rows, ATTN_ROWS);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < blocks * s->n_heads; item++) {
        int h = item % s->n_heads, r = item / s->n_heads * ATTN_ROWS;
        AttnRows a;
        memset(&a, 0, sizeof a);
        a.panels = panels_of(w, h / group);
        a.ldq = (size_t)s->n_heads * s->head_dim;
        a.q = w->window + (size_t)r * a.ldq + (size_t)h * s->head_dim;
        a.rows = rows - r < ATTN_ROWS ? rows - r : ATTN_ROWS;
        a.vis0 = head_of(c, layer, h / group)->len - rows + r + 1;
        a.vis_step = 1;
        a.lse2 = window_lse2(w) + (size_t)h * w->window_cap + r;
        attn_rows(s, &a, thread_scratch(w));
    }
}

// one panel of keys of KV head g under all window rows of its group
static void observe_panel(KVCache *c, KVWork *w, int layer, int g, int p, int rows, int64_t t) {
    const AttnShape *s = c->s;
    int group = s->n_heads / s->n_kv_heads, hd = s->head_dim, vis[STRIP_ROWS];
    Head *h = head_of(c, layer, g);
    char *scratch = thread_scratch(w);
    float *q = (float *)(void *)(scratch + attn_scratch_bytes(s)), *scores = q + STRIP_ROWS * hd;
    const char *panel = panels_of(w, g) + (size_t)p * attn_panel_bytes(s);
    for (int at = 0; at < rows * group; at += STRIP_ROWS) {
        int m = rows * group - at < STRIP_ROWS ? rows * group - at : STRIP_ROWS;
        for (int i = 0; i < m; i++) {
            int row = (at + i) / group, v = h->len - rows + row + 1 - p * PANEL;
            vis[i] = v < 0 ? 0 : v > PANEL ? PANEL : v;
            memcpy(q + (size_t)i * hd,
                   w->window + ((size_t)row * s->n_heads + g * group + (at + i) % group) * hd,
                   (size_t)hd * sizeof *q);
        }
        attn_panel_scores(s, panel, q, m, vis, scores, scratch);
        for (int i = 0; i < m; i++) {
            int row = (at + i) / group, head = g * group + (at + i) % group;
            if (vis[i])
                c->method.policy->observe(h->state + p * PANEL, scores + (size_t)i * PANEL, vis[i],
                                          window_lse2(w)[(size_t)head * w->window_cap + row],
                                          t - rows + 1 + row);
        }
    }
}

static void observe_window(KVCache *c, KVWork *w, int layer, int rows, int64_t t) {
    int G = c->s->n_kv_heads, most = 0;
    for (int g = 0; g < G; g++) if (kv_len(c, layer, g) > most) most = kv_len(c, layer, g);
    int panels = CEIL_DIV(most, PANEL);
    observe_lse2(c, w, layer, rows);
#pragma omp parallel for schedule(dynamic, 1)
    for (int item = 0; item < G * panels; item++)
        if (item % panels * PANEL < kv_len(c, layer, item / panels))
            observe_panel(c, w, layer, item / panels, item % panels, rows, t);
}
// ---------------------------------------------------------------------------
// When policies act

static void layer_evict(KVCache *c, KVWork *w, int layer, int64_t t) {
    const Policy *p = c->method.policy;
    for (int g = 0; g < c->s->n_kv_heads; g++) {
        Head *h = head_of(c, layer, g);
        int named = p->keep(&c->method.size, h->len, t, h->state, w->keep);
        c->named += named;
        head_evict(c, h, w->keep, named);
    }
}

void policy_feed_end(KVCache *c, KVWork *w, int layer, int64_t t, const void *window, int rows,
                     bool first) {
    const Policy *p = c->method.policy;
    if (p->observe) {
        int want = p->window(&c->method.size);
        if (w->feed_n == 0) pack_new(c, w, layer, 0, true);
        observe_window(c, w, layer, window_join(w, want, window, first ? rows : 0), t);
    }
    if (p->keep) layer_evict(c, w, layer, t);
}

void policy_step(KVCache *c, KVWork *w, int layer, int64_t t) {
    const Policy *p = c->method.policy;
    int group = c->s->n_heads / c->s->n_kv_heads;
    for (int h = 0; p->observe && h < c->s->n_heads; h++) {
        Head *head = head_of(c, layer, h / group);
        p->observe(head->state, w->scores + (size_t)h * w->scores_ld, head->len, window_lse2(w)[h],
                   t);
    }
    if (p->keep) layer_evict(c, w, layer, t);
}
