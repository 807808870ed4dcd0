// probe.c - what attention does in a model (probe.h). A text is fed once; after each layer the
// queries and keys of that layer are looked at, head by head, and forgotten: memory is that of the
// feed and O(n) per head.
//
//   sparsity      share of minor keys per layer and head: a_tj < 1/t    CORM figure 1
//   similarity    cosine of a query and the one d tokens before; keys that are important to a query
//                 and to the earlier query most like it                 CORM figures 2 and 3
//   compression   rows corm keeps, by length and window                 CORM figure 4
//   attention     where the answers' first tokens look, by turn         SharedContextBench figure 5
#include "probe.h"
#include "tasks/tasks.h"
#include <omp.h>

typedef struct {
    const char *text, *out, *what, *windows, *lengths;
    int ctx, turns, queries, threads, chunk;
    int64_t seed;
    bool verify, quiet, help;
} ProbeOpts;

#define AT(field) offsetof(ProbeOpts, field)
static const OptSpec probe_opts[] = {
    { "--what", NULL, OPT_STR, AT(what), NULL, "sparsity|similarity|compression|attention",
      "what to look at" },
    { "--text", NULL, OPT_STR, AT(text), NULL, "FILE",
      "prose to read; attention makes sessions of retr_kv instead" },
    { "--out", NULL, OPT_STR, AT(out), NULL, "FILE.csv", "one line per measured value" },
    { "--ctx", NULL, OPT_INT, AT(ctx), "0", "TOKENS",
      "how much of the text; 0: all of it, at most what the model takes" },
    { "--windows", NULL, OPT_STR, AT(windows), "64,128,256", "LIST",
      "compression: corm's window and protected rows" },
    { "--lengths", NULL, OPT_STR, AT(lengths), NULL, "LIST",
      "compression: tokens fed; default: doubling from 1024 to --ctx" },
    { "--queries", NULL, OPT_INT, AT(queries), "0", "N",
      "sparsity: so many queries, evenly spread over the text; 0: every one, in time O(n^2)" },
    { "--turns", NULL, OPT_INT, AT(turns), "5", "N", "attention: questions" },
    { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "attention: of the session" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N", "tokens per prefill chunk; 0: 512" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores; changes no bit" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the model file's checksums (always below 1 GB)" },
    { "--quiet", NULL, OPT_FLAG, AT(quiet), NULL, NULL, "no progress" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};

// ---------------------------------------------------------------------------
// One head

static float key_dot(const AttnShape *s, const float *q, const void *k, int j) {
    float lane[LANES] = { 0 };
    const size_t at = (size_t)j * s->head_dim;
    for (int i = 0; i < s->head_dim; i++) {
        float x = s->elem == 4 ? ((const float *)k)[at + i]
                               : bf16_f32(((const uint16_t *)k)[at + i]);
        lane[i % LANES] = fmaf(q[i], x, lane[i % LANES]);
    }
    return lanes_sum(lane);
}

void probe_row(const ProbeHead *h, int t, float *a) {
    const float *q = h->q + (size_t)t * h->ldq;
    float top = -INFINITY;
    double sum = 0;
    for (int j = 0; j <= t; j++) {
        a[j] = key_dot(h->shape, q, h->k, j) * h->shape->scale;
        if (a[j] > top) top = a[j];
    }
    for (int j = 0; j <= t; j++) sum += (double)(a[j] = fexp2(a[j] - top));
    for (int j = 0; j <= t; j++) a[j] = (float)((double)a[j] / sum);
}

double probe_minor(const ProbeHead *h, int step, float *row) {
    double share = 0;
    int rows = 0;
    for (int t = h->n - 1; t >= 0; t -= step, rows++) {
        int minor = 0;
        probe_row(h, t, row);
        for (int j = 0; j <= t; j++) minor += row[j] * (float)(t + 1) < 1.0f;
        share += (double)minor / (t + 1);
    }
    return share / rows;
}

// x . y / |x| |y|, y rotated on by so many positions
static double cosine(const ProbeHead *h, int a, int b, int turn) {
    const AttnShape *s = h->shape;
    const float *x = h->q + (size_t)a * h->ldq, *y = h->q + (size_t)b * h->ldq;
    int half = turn ? s->rope_dim / 2 : 0;
    double xy = 0, xx = 0, yy = 0;
    for (int i = 0; i < s->head_dim; i++) {
        xx += (double)x[i] * x[i];
        yy += (double)y[i] * y[i];
        if (i >= 2 * half) xy += (double)x[i] * y[i];
    }
    for (int i = 0; i < half; i++) {            // channel i and i + half are one plane
        double c = cos((double)s->inv_freq[i] * turn), sn = sin((double)s->inv_freq[i] * turn);
        xy += x[i] * (y[i] * c - y[i + half] * sn) + x[i + half] * (y[i] * sn + y[i + half] * c);
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
}
double probe_cosine(const ProbeHead *h, int a, int b) { return cosine(h, a, b, 0); }
double probe_cosine_content(const ProbeHead *h, int a, int b) { return cosine(h, a, b, a - b); }

// ---------------------------------------------------------------------------
// What is looked at in every layer. Lines of the table are kept per head and written in order.

typedef struct Probe Probe;
struct Probe {
    void (*head)(const Probe *p, const ProbeHead *h, int layer, int head, float *row, StrBuf *out);
    StrBuf csv;
    int n;                      // tokens
    int step;                   // sparsity: every so many-th query is looked at
    const int32_t *rows;        // attention: (n_rows) queries that are looked at, and their needles
    const int32_t *needle;      // (n_rows) first token of each value asked for; its length beside
    const int32_t *needle_n;
    int n_rows, n_context;
};

static void look(void *user, const LayerSeen *l) {
    Probe *p = (Probe *)user;
    const AttnShape *s = l->shape;
    int H = s->n_heads, group = H / s->n_kv_heads;
    StrBuf *part = (StrBuf *)calloc((size_t)H, sizeof *part);
    float *rows = (float *)xrealloc(NULL, (size_t)cpu_threads() * (size_t)l->n * sizeof *rows);
    CHECK(part, "no memory for %d heads", H);
#pragma omp parallel for schedule(dynamic, 1)
    for (int h = 0; h < H; h++) {
        ProbeHead head = { s, l->q + (size_t)h * s->head_dim, (size_t)H * s->head_dim,
                           l->k[h / group], l->n };
        p->head(p, &head, l->layer, h, rows + (size_t)omp_get_thread_num() * (size_t)l->n,
                &part[h]);
    }
    for (int h = 0; h < H; h++) {
        str_add(&p->csv, part[h].p ? part[h].p : "", part[h].n);
        free(part[h].p);
    }
    free(part);
    free(rows);
}

static void sparsity_head(const Probe *p, const ProbeHead *h, int layer, int head, float *row,
                          StrBuf *out) {
    str_fmt(out, "%d,%d,%.6f\n", layer, head, probe_minor(h, p->step, row));
}

enum { SAMPLES_SIMILAR = 32 };

// Of the keys 0..last, those important to both of two queries as a share of those important to
// either (CORM, eq. 2); both must see them
static double shared_keys(const ProbeHead *h, int t, int i, int last, float *row,
                          uint8_t *important) {
    int either = 0, both = 0;
    probe_row(h, t, row);
    for (int j = 0; j <= last; j++) important[j] = row[j] * (float)(t + 1) >= 1.0f;
    probe_row(h, i, row);
    for (int j = 0; j <= last; j++) {
        bool too = row[j] * (float)(i + 1) >= 1.0f;
        both += important[j] && too;
        either += important[j] || too;
    }
    return either ? (double)both / either : NAN;
}

static void pair_line(const ProbeHead *h, const char *kind, int layer, int head, int t, int i,
                      int last, float *row, uint8_t *important, StrBuf *out) {
    str_fmt(out, "%s,%d,%d,%d,%.6f,%.6f,%.6f\n", kind, layer, head, t - i, probe_cosine(h, t, i),
            probe_cosine_content(h, t, i), shared_keys(h, t, i, last, row, important));
}

// distance   queries d apart, the mean over the text
// similar    a sampled query and the earlier one most like it: their distance, cosine, and the
//            important keys they have in common; then two controls, over the same keys:
// apart      another two queries at that distance
// any        that query and an earlier one drawn blindly from the half of the text before it
static void similarity_head(const Probe *p, const ProbeHead *h, int layer, int head, float *row,
                            StrBuf *out) {
    uint8_t *important = (uint8_t *)xrealloc(NULL, (size_t)h->n);
    Rng rng = { mix64((uint64_t)layer << 32 | (uint64_t)head) };
    (void)p;
    for (int d = 1; d < h->n; d *= 2) {
        double sum = 0, content = 0;
        int step = h->n / 512 + 1, count = 0;
        for (int t = d; t < h->n; t += step, count++) {
            sum += probe_cosine(h, t, t - d);
            content += probe_cosine_content(h, t, t - d);
        }
        str_fmt(out, "distance,%d,%d,%d,%.6f,%.6f,\n", layer, head, d, sum / count,
                content / count);
    }
    for (int k = 0; k < SAMPLES_SIMILAR; k++) {
        int t = h->n / 2 + (int)((int64_t)k * (h->n - h->n / 2 - 1) / SAMPLES_SIMILAR), best = 0;
        double like = -2;
        if (t < 2) break;
        for (int i = 0; i < t; i++) {
            double c = probe_cosine(h, t, i);
            if (c > like) like = c, best = i;
        }
        int d = t - best, from = d > h->n / 2 ? d : h->n / 2,
            other = from + (int)rng_below(&rng, (uint64_t)(h->n - from)),
            any = t / 2 + (int)rng_below(&rng, (uint64_t)(t - t / 2)),
            last = best < any ? best : any;
        pair_line(h, "similar", layer, head, t, best, last, row, important, out);
        pair_line(h, "apart", layer, head, other, other - d, other - d < last ? other - d : last,
                  row, important, out);
        pair_line(h, "any", layer, head, t, any, last, row, important, out);
    }
    free(important);
}

enum { BINS_ATTENTION = 64 };

// attention of each answer's first query over the context in bins; on the value asked for, with the
// bin where it begins; for comparison on a value that another turn asks for, their mean
static void attention_head(const Probe *p, const ProbeHead *h, int layer, int head, float *row,
                           StrBuf *out) {
    for (int r = 0; r < p->n_rows; r++) {
        double bin[BINS_ATTENTION] = { 0 }, needle = 0, other = 0, outside = 0;
        probe_row(h, p->rows[r], row);
        for (int j = 0; j <= p->rows[r]; j++) {
            if (j >= p->n_context) outside += (double)row[j];
            else bin[(int64_t)j * BINS_ATTENTION / p->n_context] += (double)row[j];
            for (int v = 0; v < p->n_rows; v++)
                if (j >= p->needle[v] && j < p->needle[v] + p->needle_n[v])
                    *(v == r ? &needle : &other) += (double)row[j];
        }
        str_fmt(out, "needle,%d,%d,%d,%d,%.6f\n", layer, head, r + 1,
                (int)((int64_t)p->needle[r] * BINS_ATTENTION / p->n_context), needle);
        if (p->n_rows > 1)
            str_fmt(out, "other,%d,%d,%d,,%.6f\n", layer, head, r + 1, other / (p->n_rows - 1));
        str_fmt(out, "outside,%d,%d,%d,,%.6f\n", layer, head, r + 1, outside);
        for (int b = 0; b < BINS_ATTENTION; b++)
            str_fmt(out, "bin,%d,%d,%d,%d,%.6f\n", layer, head, r + 1, b, bin[b]);
    }
}

// ---------------------------------------------------------------------------
// Runs

typedef struct { ModelFile file; Tok *tok; Model *model; Progress progress; } Opened;

static bool show(void *user, double share) {
    progress_update((Progress *)user, share);
    return interrupted();
}

static int open_all(const ProbeOpts *o, const char *path, Opened *m, Err *err) {
    ModelOpts opts = { .chunk = o->chunk };
    if (cpu_init(o->threads, err) || file_open(&m->file, path, o->verify, err)) return -1;
    if (!(m->tok = tok_open(&m->file, err))) return -1;
    if (!(m->model = model_open(&m->file, &opts, err))) return -1;
    interrupt_install();
    progress_begin(&m->progress, o->what, 1, o->quiet);
    model_set_progress(m->model, show, &m->progress);
    return 0;
}

static void close_all(Opened *m) {
    progress_end(&m->progress);
    model_close(m->model);
    tok_close(m->tok);
    file_close(&m->file);
}

static int read_ids(const ProbeOpts *o, const Opened *m, IntVec *ids, Err *err) {
    FILE *f = fopen(o->text, "rb");
    StrBuf text = { 0 };
    char part[1 << 16];
    size_t n;
    while (f && (n = fread(part, 1, sizeof part, f)) > 0) str_add(&text, part, n);
    if (!f || ferror(f)) {
        if (f) fclose(f);
        free(text.p);
        return FAIL(err, "%s: cannot be read: %s", o->text, strerror(errno));
    }
    fclose(f);
    tok_encode(m->tok, text.p ? text.p : "", text.n, TOK_BOS, ids);
    free(text.p);
    size_t most = (size_t)model_config(m->model)->max_ctx;
    if (o->ctx > 0 && ids->n < (size_t)o->ctx)
        return FAIL(err, "%s has %zu tokens, --ctx asks for %d", o->text, ids->n, o->ctx);
    if (o->ctx > 0) most = (size_t)o->ctx;
    if (ids->n > most) ids->n = most;
    return ids->n >= 2 ? 0 : FAIL(err, "%s is too short", o->text);
}

// every query of a layer beside what any feed of n tokens takes
static size_t feed_bytes(const Opened *m, const Method *full, int n) {
    const Config *c = model_config(m->model);
    return plan_run(c, full, n, n, 0, false, -1, 0).total - model_weight_bytes(m->model) +
           (size_t)n * (size_t)(c->n_heads * c->head_dim + cpu_threads()) * sizeof(float);
}

static int feed_fits(const Opened *m, const Method *full, int n, Err *err) {
    size_t have = memory_available(), need = feed_bytes(m, full, n);
    int most = n;
    if (!have || need <= have) return 0;
    while (most > 1 && feed_bytes(m, full, most) > have) most -= (most + 63) / 64;
    return FAIL_CODE(err, EXIT_MEMORY, "%d tokens need %zu MB beside the weights, %zu MB are "
                     "available; --ctx %d fits", n, need >> 20, have >> 20, most);
}

// one feed of ids with the layers looked at
static int feed_seen(Opened *m, Probe *p, const int32_t *ids, int n, Err *err) {
    Method full;
    if (method_find("full", &full, err) || method_resolve(&full, PRESET_SCBENCH, n, 0, -1, err))
        return -1;
    model_set_layer_look(m->model, look, p);
    p->n = n;
    if (feed_fits(m, &full, n, err)) return -1;
    Branch *b = branch_open(m->model, NULL, &full, 0, err);
    int rc = b ? branch_feed(b, ids, n, FEED_FIRST | FEED_NO_LOGITS, err) : -1;
    branch_drop(b);
    model_set_layer_look(m->model, NULL, NULL);
    return rc;
}

static int numbers_of(const char *option, const char *list, int most, int *out, int cap, Err *err) {
    const char *cursor = list;
    char item[32];
    int n = 0;
    int64_t v;
    while (list_next(&cursor, item, sizeof item)) {
        if (n == cap) return FAIL_CODE(err, EXIT_USAGE, "%s takes at most %d numbers", option, cap);
        if (parse_int(option, item, 1, most, &v, err)) return -1;
        out[n++] = (int)v;
    }
    return n;
}

// corm on the rows of a context with w = r = window: one line of the table
static int compression_of(Model *m, Context *ctx, int window, StrBuf *csv, Err *err) {
    const Config *c = model_config(m);
    int n = context_len(ctx), heads = c->n_kv_heads * config_attn_layers(c);
    Method corm;
    char value[16];
    snprintf(value, sizeof value, "%d", window);
    if (method_find("corm", &corm, err) || method_set(&corm, "window", value, err) ||
        method_set(&corm, "protect", value, err) ||
        method_resolve(&corm, PRESET_CORM, n, 0, -1, err))
        return -1;
    Branch *b = branch_open(m, ctx, &corm, 0, err);
    int rc = b ? branch_feed(b, NULL, 0, FEED_FIRST | FEED_NO_LOGITS, err) : -1;
    if (!rc) {
        BranchStats s = branch_stats(b);
        double share = s.rows_mean / n;
        size_t all = (size_t)n * config_row_bytes(c) * (size_t)heads,
               state = (size_t)(s.rows_mean * heads + 0.5) * sizeof(int32_t) *
                       (size_t)method_words(&corm);
        str_fmt(csv, "%d,%d,%.1f,%.4f,%.4f,%zu,%zu\n", window, n, s.rows_mean, share, 1 - share,
                state, all - s.kv_live_bytes);
    }
    branch_drop(b);
    return rc;
}

// rows corm keeps of texts of several lengths, and what its state of these rows weighs beside what
// it saves: one prefill per length, whose last queries serve all windows
static int compression(const ProbeOpts *o, Opened *m, StrBuf *csv, Err *err) {
    int window[16], length[32], n_windows, n_lengths = 0;
    Needs needs = { 0, 0, GROUP_MEAN };
    IntVec ids = { 0 };
    if (read_ids(o, m, &ids, err)) return -1;
    int rc = n_windows = numbers_of("--windows", o->windows, 1 << 20, window, 16, err);
    if (rc >= 0 && o->lengths)
        rc = n_lengths = numbers_of("--lengths", o->lengths, (int)ids.n, length, 32, err);
    else for (int n = 1024; n <= (int)ids.n && n_lengths < 32; n *= 2) length[n_lengths++] = n;
    for (int w = 0; w < n_windows; w++) if (window[w] > needs.window) needs.window = window[w];
    str_puts(csv, "window,tokens,kept_rows,kept_share,compression,policy_bytes,saved_bytes\n");
    for (int i = 0; rc >= 0 && i < n_lengths; i++) {
        Context *ctx = context_open(m->model, ids.p, length[i], &needs, err);
        rc = ctx ? 0 : -1;
        for (int w = 0; !rc && w < n_windows; w++)
            rc = compression_of(m->model, ctx, window[w], csv, err);
        context_drop(ctx);
    }
    free(ids.p);
    return rc < 0 ? -1 : 0;
}

// A multi-turn session of retr_kv with golden answers, fed at once. A row is the last token before
// an answer; its needle the tokens of the value in the context.
static int attention(const ProbeOpts *o, Opened *m, Probe *p, Err *err) {
    Prompter prompter;
    ChatPieces plain;
    Session s;
    IntVec ids = { 0 }, rows = { 0 }, needle = { 0 }, length = { 0 };
    int turns = o->turns, ctx = o->ctx > 0 ? o->ctx : 1024;
    Maker maker = { .task = &task_retr_kv, .seed = (uint64_t)o->seed, .n_turns = turns,
                    .n_play = turns };
    prompter_open(&prompter, m->tok, false, &plain);
    if (session_fit(&prompter, &maker, 1, ctx, 0, &s, err)) return -1;
    ints_add(&ids, s.context.p, s.context.n);
    for (int t = 0; t < turns; t++) {
        const IntVec *ask = t ? &s.turn[t].next : &s.turn[t].first, *a = &s.turn[t].answer;
        size_t at = 0, same = 0;
        if (t) ints_add(&ids, s.turn[t - 1].answer.p, s.turn[t - 1].answer.n);
        ints_add(&ids, ask->p, ask->n);
        // the longest run of the answer's ids within the context
        for (size_t i = 0; i < s.context.n; i++) {
            size_t k = 0;
            while (k < a->n && i + k < s.context.n && s.context.p[i + k] == a->p[k]) k++;
            if (k > same) same = k, at = i;
        }
        ints_push(&rows, (int32_t)ids.n - 1);
        ints_push(&needle, (int32_t)at);
        ints_push(&length, (int32_t)same);
    }
    p->head = attention_head;
    p->rows = rows.p;
    p->needle = needle.p;
    p->needle_n = length.p;
    p->n_rows = turns;
    p->n_context = (int)s.context.n;
    str_puts(&p->csv, "kind,layer,head,turn,bin,share\n");
    int rc = feed_seen(m, p, ids.p, (int)ids.n, err);
    free(ids.p);
    free(rows.p);
    free(needle.p);
    free(length.p);
    session_free(&s);
    return rc;
}

static int text_seen(const ProbeOpts *o, Opened *m, Probe *p, Err *err) {
    IntVec ids = { 0 };
    int rc = read_ids(o, m, &ids, err);
    p->step = o->queries && (size_t)o->queries < ids.n ? (int)(ids.n / (size_t)o->queries) : 1;
    if (!rc) rc = feed_seen(m, p, ids.p, (int)ids.n, err);
    free(ids.p);
    return rc;
}

static int probe_run(const ProbeOpts *o, const char *path, Err *err) {
    static const char *const kinds[] = { "sparsity", "similarity", "compression", "attention" };
    int what = -1;
    Opened m;
    Probe p;
    memset(&m, 0, sizeof m);
    memset(&p, 0, sizeof p);
    for (int i = 0; i < 4; i++) if (!strcmp(o->what, kinds[i])) what = i;
    if (what < 0)
        return FAIL_CODE(err, EXIT_USAGE, "--what is sparsity, similarity, compression or "
                         "attention, not '%s'", o->what);
    if ((what == 3) != !o->text)
        return FAIL_CODE(err, EXIT_USAGE, what == 3 ? "--what attention makes its own sessions; "
                         "leave --text out" : "--what %s needs --text FILE", o->what);
    if (o->ctx < 0 || o->turns < 1 || o->turns > 1000 || o->queries < 0)
        return FAIL_CODE(err, EXIT_USAGE, "--ctx, --turns and --queries want positive numbers");
    if (o->queries && what)
        return FAIL_CODE(err, EXIT_USAGE, "--queries is for --what sparsity");
    int rc = open_all(o, path, &m, err);
    if (!rc && what != 2 && !config_attn_layers(model_config(m.model)))
        rc = FAIL(err, "%s has no attention to look at", path);
    if (!rc && what == 0) {
        p.head = sparsity_head;
        str_puts(&p.csv, "layer,head,minor\n");
        rc = text_seen(o, &m, &p, err);
    } else if (!rc && what == 1) {
        p.head = similarity_head;
        str_puts(&p.csv, "kind,layer,head,distance,cosine,content,shared\n");
        rc = text_seen(o, &m, &p, err);
    } else if (!rc && what == 2) rc = compression(o, &m, &p.csv, err);
    else if (!rc) rc = attention(o, &m, &p, err);
    if (!rc) rc = write_whole(o->out, p.csv.p, p.csv.n, err);
    close_all(&m);
    free(p.csv.p);
    return rc;
}

int probe_command(int argc, char **argv, Err *err) {
    ProbeOpts o;
    StrList pos;
    if (opts_parse(probe_opts, (int)COUNTOF(probe_opts), argc, argv, &o, &pos, err)) return -1;
    int rc = 0;
    if (o.help) {
        puts("usage: scbench probe MODEL.bin --what W --out FILE.csv [--text FILE] [options]\n");
        opts_help(stdout, probe_opts, (int)COUNTOF(probe_opts));
    } else if (pos.n != 1 || !o.what || !o.out) {
        rc = FAIL_CODE(err, EXIT_USAGE, "usage: scbench probe MODEL.bin --what W --out FILE.csv "
                       "[--text FILE]; see --help");
    } else rc = probe_run(&o, pos.p[0], err);
    free(pos.p);
    return rc;
}
