// speed.c - how fast and how large: time per phase against the limits of this machine, measured in
// the same rounds; bytes at the peak; decoding together against one by one.
#include "scb.h"
#include <jansson.h>

// ---------------------------------------------------------------------------
// Work and limits. P weights of the layers that a token meets, L (E (H + 2G) hd + H hd E + 3 E F)
// in the dense family, Ph = V E of the head. Recurrent layers count under attention.
//   prefill of T:  2 P T + 2 Ph flops in linear layers, 4 H hd L T (T + 1) / 2 in attention
//   step at c:     2 (P + Ph) and 4 H hd L c flops; reads every weight and every live row once
// limit = max(flops / peak of the matrix unit, bytes / read bandwidth)
// A step of n branches does n times the flops; weights are read once, rows as often as they were.

typedef struct { double flops, bytes; } Work;
enum { PREFILL_LINEAR, PREFILL_ATTN, PREFILL_REST,
       DECODE_LINEAR, DECODE_ATTN, DECODE_REST, N_PHASES };
static const char *const phase_name[N_PHASES] = {
    "prefill linear", "prefill attention", "prefill rest",
    "decode linear",  "decode attention",  "decode rest",
};

// weights of one layer that a token meets when it goes to n experts
static double layer_weights(const Config *c, int layer, int n) {
    double E = c->dim, D = c->ssm_inner, N = c->ssm_state, R = c->ssm_dt_rank;
    double net = 3 * E * c->hidden_dim;
    double attn = E * (2.0 * c->n_heads + 2.0 * c->n_kv_heads) * c->head_dim;
    double mixer = c->arch == ARCH_MAMBA2 ? E * (3 * D + 2 * c->ssm_groups * N + c->ssm_heads)
                                          : 3 * E * D + D * (R + 2 * N) + R * D;
    if (config_routes(c, layer)) net = n * net + c->n_experts * E;
    return (config_attends(c, layer) ? attn : mixer) + net;
}

// flops of one token in a recurrent layer: Mamba-2 in chunks of 64 (C.B per group, then per head P
// by 64 and twice P by N), Mamba-1 six per channel and state
static double mixer_flops(const Config *c) {
    double D = c->ssm_inner, N = c->ssm_state;
    if (c->arch != ARCH_MAMBA2) return 6 * D * N;
    return 2 * (64 * c->ssm_groups * N + D * 64 + 2 * D * N);
}

static void work_of(const Config *c, double T, double at, Work w[N_PHASES]) {
    double H = c->n_heads, G = c->n_kv_heads, hd = c->head_dim, A = config_attn_layers(c);
    double P = 0, all = 0, Ph = (double)c->vocab_size * c->dim, mixers = c->n_layers - A;
    double weight = c->dtype == DT_F32 ? 4 : c->dtype == DT_BF16 ? 2 : sizeof(Q8Block) / 32.0;
    double token = (double)config_row_bytes(c) * A * G, state = (double)config_state_bytes(c);
    for (int l = 0; l < c->n_layers; l++) {
        P += layer_weights(c, l, c->n_experts_used);
        all += layer_weights(c, l, c->n_experts);
    }
    double mix = mixers > 0 ? mixers * mixer_flops(c) : 0;
    memset(w, 0, N_PHASES * sizeof *w);
    w[PREFILL_LINEAR] = (Work){ 2 * P * T + 2 * Ph, weight * (all + Ph) };
    w[PREFILL_ATTN] = (Work){ 2 * H * hd * A * T * (T + 1) + mix * T, token * T };
    w[DECODE_LINEAR] = (Work){ 2 * (P + Ph), weight * (P + Ph) };
    w[DECODE_ATTN] = (Work){ 4 * H * hd * A * at + mix, token * at + state };
}

// a buffer of the bytes one step reads, so that a cache holding them counts; beyond 1 GB none does
static size_t step_buffer(const Config *c, const Work w[N_PHASES]) {
    double bytes = fmin(w[DECODE_LINEAR].bytes + w[DECODE_ATTN].bytes, 1e9);
    size_t have = config_memory(c);
    if (have) bytes = fmin(bytes, (double)(have / 4));
    return (size_t)bytes;
}

static double limit_s(const Work *w, const Ceilings *top) {
    double compute = w->flops / (1e12 * top->tile_tflops);
    double memory = w->bytes / (1e9 * top->read_gbs);
    return compute > memory ? compute : memory;
}

void plan_seconds(FILE *out, const Config *c, int ctx) {
    Work w[N_PHASES];
    work_of(c, ctx, ctx, w);
    Ceilings top = cpu_ceilings(step_buffer(c, w), 1.0);
    fprintf(out, "at the ceilings measured now (%.2f TF/s, %.1f GB/s): prefill of %d tokens at "
            "least %.2f s, a dense step there at least %.1f ms\n", top.tile_tflops, top.read_gbs,
            ctx,
            limit_s(&w[PREFILL_LINEAR], &top) + limit_s(&w[PREFILL_ATTN], &top),
            1e3 * (limit_s(&w[DECODE_LINEAR], &top) + limit_s(&w[DECODE_ATTN], &top)));
}

// ---------------------------------------------------------------------------
// One round. All of it is doubles, so that a median over rounds is one per number.

enum { MAX_ROUNDS = 9 };
typedef struct {
    double time[N_PHASES], limit[N_PHASES], share[N_PHASES];    // seconds; decode per step
    double prefill_s, prefill_share, step_s, step_share;
    double alone_s;                             // a step's ids one by one
    double rows, live, alloc, policy;           // of one branch when the steps begin; rows, bytes
    double peak, resident;                      // bytes: of the account; of the process
    double step_bytes;                          // rows that a step read; 0: not counted
    Ceilings top;
} Round;

typedef struct {
    const char *name, *unit;                    // of the model; what computes it
    Method method;
    int ctx, batch, n_decode, rounds;
    Plan plan;
    int32_t *ids;                               // (ctx)
} Race;

static int double_order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static Round median_round(const Round *r, int n) {
    Round out;
    double *to = (double *)(void *)&out, x[MAX_ROUNDS];
    for (size_t k = 0; k < sizeof out / sizeof *to; k++) {
        for (int i = 0; i < n; i++) x[i] = ((const double *)(const void *)&r[i])[k];
        qsort(x, (size_t)n, sizeof *x, double_order);
        to[k] = 0.5 * (x[(n - 1) / 2] + x[n / 2]);
    }
    return out;
}

// highest resident bytes of the process since resident_reset, else since its start; 0: unknown
static double resident_peak(void) {
    char line[256];
    double kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f)) if (sscanf(line, "VmHWM: %lf", &kb) == 1) break;
    if (f) fclose(f);
    return kb * 1024;
}

static void resident_reset(void) {
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (!f) return;
    fputs("5", f);
    fclose(f);
}

// rows that attention reads in a step, per KV head: those kept, or those a token chooses
static double rows_read(const Race *o, double rows) {
    bool chosen = method_in_cache(&o->method) && !method_evicts(&o->method);
    return chosen ? fmin(o->method.size.budget, rows) : rows;
}

// what the machine allows, with the rows that were really there
static void round_limits(const Race *o, const Config *c, double pairs, Work w[N_PHASES], Round *r) {
    work_of(c, o->ctx, rows_read(o, r->rows) + 0.5 * (o->n_decode + 1), w);
    w[PREFILL_ATTN].flops *= pairs;
    w[DECODE_LINEAR].flops *= o->batch;
    w[DECODE_ATTN].flops *= o->batch;
    w[DECODE_ATTN].bytes = r->step_bytes > 0 ? r->step_bytes + o->batch *
                           (double)config_state_bytes(c) : o->batch * w[DECODE_ATTN].bytes;
    for (int i = 0; i < N_PHASES; i++) {
        r->limit[i] = limit_s(&w[i], &r->top);
        r->share[i] = r->limit[i] / r->time[i];
    }
    r->prefill_s = r->time[PREFILL_LINEAR] + r->time[PREFILL_ATTN] + r->time[PREFILL_REST];
    r->prefill_share = (r->limit[PREFILL_LINEAR] + r->limit[PREFILL_ATTN]) / r->prefill_s;
    r->step_s = r->time[DECODE_LINEAR] + r->time[DECODE_ATTN] + r->time[DECODE_REST];
    r->step_share = (r->limit[DECODE_LINEAR] + r->limit[DECODE_ATTN]) / r->step_s;
}

static void round_phases(const Phases *p, double *time, int n) {
    time[0] = p->linear_s / n;
    time[1] = p->attn_s / n;
    time[2] = (p->total_s - p->linear_s - p->attn_s) / n;
}

// All branches step together; then, set back, one after the other.
static int round_steps(const Race *o, Model *m, Branch **b, Round *r, Err *err) {
    Mark *mark[STEP_BATCH];
    int32_t id[STEP_BATCH];
    int rc = 0;
    for (int i = 0; o->batch > 1 && i < o->batch; i++) mark[i] = branch_mark(b[i]);
    model_phases(m);
    for (int k = 0; !rc && k < o->n_decode; k++) {
        for (int i = 0; i < o->batch; i++) id[i] = o->ids[(k + i) % o->ctx];
        rc = branches_step(b, id, o->batch, err);
    }
    Phases p = model_phases(m);
    round_phases(&p, r->time + DECODE_LINEAR, o->n_decode);
    r->step_bytes = p.kv_bytes / o->n_decode;
    r->peak = (double)model_mem(m)->high;
    r->resident = resident_peak();
    r->alone_s = (r->time[DECODE_LINEAR] + r->time[DECODE_ATTN] + r->time[DECODE_REST]);
    if (o->batch == 1) return rc;
    for (int i = 0; i < o->batch; i++) branch_rewind(b[i], mark[i]);
    double t = now_s();
    for (int i = 0; i < o->batch; i++)
        for (int k = 0; !rc && k < o->n_decode; k++)
            rc = branch_step(b[i], o->ids[(k + i) % o->ctx], err);
    r->alone_s = (now_s() - t) / o->n_decode;
    return rc;
}

// prefill and steps of one round; *pairs: share of the causal pairs that were computed
static int round_play(const Race *o, Model *m, Round *r, double *pairs, Err *err) {
    Branch *b[STEP_BATCH] = { NULL };
    b[0] = branch_open(m, NULL, &o->method, o->n_decode, err);
    if (!b[0]) return -1;
    model_phases(m);
    int rc = branch_feed(b[0], o->ids, o->ctx, FEED_FIRST, err);
    Phases p = model_phases(m);
    round_phases(&p, r->time + PREFILL_LINEAR, 1);
    BranchStats s = branch_stats(b[0]);
    r->rows = s.rows_mean;
    r->live = (double)s.kv_live_bytes;
    r->alloc = (double)s.kv_alloc_bytes;
    r->policy = (double)s.policy_bytes;
    *pairs = s.pairs_ratio;
    for (int i = 1; !rc && i < o->batch; i++)
        if (!(b[i] = branch_fork(b[0], o->n_decode, err))) rc = -1;
    if (!rc) rc = round_steps(o, m, b, r, err);
    for (int i = o->batch - 1; i >= 0; i--) branch_drop(b[i]);
    return rc;
}

// A GPU's phases are told apart by waiting for each, which costs time and takes graphs away: the
// whole is measured without, and what it is more than products and attention is the rest.
static void phases_from(const double *timed, double *time) {
    double all = time[0] + time[1] + time[2], known = timed[0] + timed[1];
    double scale = known > all ? all / known : 1;
    time[0] = scale * timed[0];
    time[1] = scale * timed[1];
    time[2] = all - time[0] - time[1];
}

static int speed_round(const Race *o, Model *m, Work w[N_PHASES], Round *r, Err *err) {
    const Config *c = model_config(m);
    Round timed;
    double pairs;
    memset(r, 0, sizeof *r);
    work_of(c, o->ctx, o->ctx, w);
    r->top = model_ceilings(m, step_buffer(c, w), 0.5);
    model_mem(m)->high = model_mem(m)->used;
    resident_reset();
    if (c->device) {
        memset(&timed, 0, sizeof timed);
        model_set_timed(m, true);
        int rc = round_play(o, m, &timed, &pairs, err);
        model_set_timed(m, false);
        if (rc) return -1;
    }
    if (round_play(o, m, r, &pairs, err)) return -1;
    if (c->device) {
        phases_from(timed.time + PREFILL_LINEAR, r->time + PREFILL_LINEAR);
        phases_from(timed.time + DECODE_LINEAR, r->time + DECODE_LINEAR);
    }
    round_limits(o, c, pairs, w, r);
    return 0;
}

// ---------------------------------------------------------------------------
// What is printed; r: medians, w: work of the last round

static void speed_text(FILE *out, const Race *o, const Round *r, const Work *w) {
    StrBuf size = { 0 };
    method_params(&o->method, &size);
    fprintf(out, "%s, %s, %d thread%s, ctx %d, %d steps; medians of %d round%s, decode per step",
            o->name, o->unit, cpu_threads(), cpu_threads() == 1 ? "" : "s", o->ctx, o->n_decode,
            o->rounds, o->rounds == 1 ? "" : "s");
    if (o->batch > 1) fprintf(out, " of %d branches", o->batch);
    if (o->plan.host) fprintf(out, "\nsettled rows, %zu MB, lie in host memory", o->plan.host >> 20);
    fprintf(out, "\nmethod %s%s%s\n", o->method.name, size.n > 2 ? " " : "",
            size.n > 2 ? size.p : "");
    fprintf(out, "ceilings in the same rounds: matrix unit %.2f TF/s, own matrix product %.2f "
            "TF/s, read %.1f GB/s\n\n", r->top.tile_tflops, r->top.gemm_tflops, r->top.read_gbs);
    int width = fprintf(out, "%-18s %11s %10s %9s %8s %8s %11s %7s %8s\n", "phase", "ms", "GFLOP",
                        "MB", "TF/s", "GB/s", "limit ms", "bound", "% limit");
    for (int i = 0; i < width - 1; i++) fputc('-', out);
    fputc('\n', out);
    for (int i = 0; i < N_PHASES; i++) {
        double t = r->time[i];
        fprintf(out, "%-18s %11.3f", phase_name[i], 1e3 * t);
        if (w[i].flops == 0) {
            fprintf(out, "%11s%10s%9s%9s%12s%8s%9s\n", "-", "-", "-", "-", "-", "-", "-");
            continue;
        }
        double compute = w[i].flops / (1e12 * r->top.tile_tflops);
        double memory = w[i].bytes / (1e9 * r->top.read_gbs);
        fprintf(out, " %10.2f %9.1f %8.3f %8.2f %11.3f %7s %8.1f\n", 1e-9 * w[i].flops,
                1e-6 * w[i].bytes, 1e-12 * w[i].flops / t, 1e-9 * w[i].bytes / t, 1e3 * r->limit[i],
                compute > memory ? "compute" : "memory", 100 * r->share[i]);
    }
    fprintf(out, "\nprefill %10.1f tok/s %8.3f s       %5.1f %% of limit\n", o->ctx / r->prefill_s,
            r->prefill_s, 100 * r->prefill_share);
    fprintf(out, "decode  %10.1f tok/s %8.3f ms/%s %5.1f %% of limit\n", o->batch / r->step_s,
            1e3 * r->step_s, o->batch > 1 ? "step" : "tok ", 100 * r->step_share);
    if (o->batch > 1)
        fprintf(out, "        %10.1f tok/s one by one: together %.2f times as fast\n",
                o->batch / r->alone_s, r->alone_s / r->step_s);
    fprintf(out, "rows    %10.1f per KV head; KV %.2f MB live, %.2f allocated, policy %.2f MB\n",
            r->rows, 1e-6 * r->live, 1e-6 * r->alloc, 1e-6 * r->policy);
    fprintf(out, "peak    %10.2f MB of the account, planned %s%.2f; %.2f MB resident\n",
            1e-6 * r->peak, o->plan.upper_bound ? "at most " : "", 1e-6 * (double)o->plan.total,
            1e-6 * r->resident);
    free(size.p);
}

static int speed_json(FILE *out, const Race *o, const Round *r, const Work *w, Err *err) {
    StrBuf size = { 0 };
    method_params(&o->method, &size);
    json_t *phases = json_array();
    for (int i = 0; i < N_PHASES; i++) {
        json_t *p = json_pack("{s:s, s:f, s:f, s:f, s:f}", "phase", phase_name[i], "seconds",
                              r->time[i], "flops", w[i].flops, "bytes", w[i].bytes, "limit_s",
                              r->limit[i]);
        json_object_set_new(p, "share", w[i].flops > 0 ? json_real(r->share[i]) : json_null());
        json_array_append_new(phases, p);
    }
    json_t *all = json_pack(
        "{s:s, s:s, s:i, s:s, s:o, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:o, s:f, s:f, s:f, s:f, "
        "s:f}",
        "model", o->name, "isa", o->unit, "threads", cpu_threads(), "method", o->method.name,
        "params", json_loads(size.p, 0, NULL), "ctx", o->ctx, "batch", o->batch, "n_decode",
        o->n_decode, "rounds", o->rounds, "tile_tflops", r->top.tile_tflops, "gemm_tflops",
        r->top.gemm_tflops, "read_gbs", r->top.read_gbs, "phases", phases, "prefill_s",
        r->prefill_s, "prefill_share", r->prefill_share, "step_s", r->step_s, "step_share",
        r->step_share, "one_by_one_s", r->alone_s);
    free(size.p);
    if (!all) return FAIL(err, "internal error: a number of this run is not finite");
    json_object_set_new(all, "rows_mean", json_real(r->rows));
    json_object_set_new(all, "kv_live_bytes", json_integer((json_int_t)r->live));
    json_object_set_new(all, "kv_alloc_bytes", json_integer((json_int_t)r->alloc));
    json_object_set_new(all, "policy_bytes", json_integer((json_int_t)r->policy));
    json_object_set_new(all, "peak_bytes", json_integer((json_int_t)r->peak));
    json_object_set_new(all, "plan_bytes", json_integer((json_int_t)o->plan.total));
    json_object_set_new(all, "resident_bytes", json_integer((json_int_t)r->resident));
    char *text = json_dumps(all, JSON_REAL_PRECISION(9));
    fprintf(out, "%s\n", text ? text : "null");
    free(text);
    json_decref(all);
    return 0;
}

// ---------------------------------------------------------------------------
// Options

typedef struct {
    const char *shape, *method;
    int ctx, budget, batch, n_decode, rounds, chunk, threads, gpus;
    const char *device;
    StrList set;
    bool json, verify, help;
} SpeedOpts;

#define AT(field) offsetof(SpeedOpts, field)
static const OptSpec speed_opts[] = {
    { "--shape", NULL, OPT_STR, AT(shape), NULL, "NAME",
      "random weights of a known model's shape instead of a file" },
    { "--ctx", NULL, OPT_INT, AT(ctx), "2048", "TOKENS", "ids to prefill, where the steps begin" },
    { "--method", NULL, OPT_STR, AT(method), "full", "NAME", "what prefills and what stays" },
    { "--budget", NULL, OPT_INT, AT(budget), "0", "ROWS", "kept per KV head; 0: the method's" },
    { "--set", NULL, OPT_LIST, AT(set), NULL, "METHOD.name=value",
      "one size of the method; may be repeated" },
    { "--batch", NULL, OPT_INT, AT(batch), "1", "N",
      "branches that go on from there, together and then one by one" },
    { "--n-decode", NULL, OPT_INT, AT(n_decode), "64", "N", "steps per round" },
    { "--rounds", NULL, OPT_INT, AT(rounds), "3", "N", "medians are over so many, at most 9" },
    { "--json", NULL, OPT_FLAG, AT(json), NULL, NULL, "one JSON object instead of text" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N", "tokens per prefill chunk; 0: 512" },
    { "--device", NULL, OPT_STR, AT(device), "cpu", "cpu|cuda", "where to compute" },
    { "--gpus", NULL, OPT_INT, AT(gpus), "1", "N",
      "GPUs that share the layers of a transformer" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the model file's checksums (always below 1 GB)" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};

static int speed_check(const SpeedOpts *o, Err *err) {
    if (o->ctx < 1 || o->n_decode < 1 || o->chunk < 0 || o->threads < 0 || o->budget < 0)
        return FAIL_CODE(err, EXIT_USAGE, "--ctx and --n-decode want at least 1, --budget, --chunk "
                         "and --threads at least 0");
    if (o->batch < 1 || o->batch > STEP_BATCH)
        return FAIL_CODE(err, EXIT_USAGE, "--batch wants 1 to %d branches", STEP_BATCH);
    if (o->rounds < 1 || o->rounds > MAX_ROUNDS)
        return FAIL_CODE(err, EXIT_USAGE, "--rounds wants 1 to %d", MAX_ROUNDS);
    return 0;
}

static int speed_method(const SpeedOpts *o, Method *m, Err *err) {
    if (method_find(o->method, m, err)) return -1;
    if (m->prompt.on)
        return FAIL_CODE(err, EXIT_USAGE, "--method %s: llmlingua2 changes no prompt of given "
                         "length; for its own speed see scbench compress --stats", o->method);
    for (int i = 0; i < o->set.n; i++) {
        const char *text = o->set.p[i], *dot = strchr(text, '.'), *eq = strchr(text, '=');
        char stage[64], name[64];
        if (!dot || !eq || dot > eq)
            return FAIL_CODE(err, EXIT_USAGE, "--set wants METHOD.name=value, got '%s'", text);
        snprintf(stage, sizeof stage, "%.*s", (int)(dot - text), text);
        snprintf(name, sizeof name, "%.*s", (int)(eq - dot - 1), dot + 1);
        if (!method_is(m, stage))
            return FAIL_CODE(err, EXIT_USAGE, "--set %s acts on no method of this run", text);
        if (method_set_stage(m, stage, name, eq + 1, err)) return -1;
    }
    return method_resolve(m, PRESET_SCBENCH, o->ctx, o->budget, -1, err);
}

static void speed_name(const SpeedOpts *o, const char *path, char *out, size_t n) {
    if (o->shape) {
        snprintf(out, n, "%s (random weights)", o->shape);
        return;
    }
    path_stem(path, out, n);
}

// the sizes that a run has before it begins; refuses what does not fit
static Plan race_plan(const SpeedOpts *o, const Config *c, const Method *m) {
    Plan p = plan_run(c, m, o->ctx, o->ctx, o->n_decode, false, -1, o->chunk);
    if (o->batch > 1)
        plan_more(&p, c, m, o->ctx, o->ctx, o->n_decode, false, -1, o->batch - 1);
    return p;
}

static int race_open(const SpeedOpts *o, Config *c, Race *race, Err *err) {
    int64_t tokens = (int64_t)o->ctx + o->n_decode;
    if (o->shape && tokens > c->max_ctx)        // random weights take any length
        c->max_ctx = (int)tokens;
    if (tokens > c->max_ctx)
        return FAIL(err, "--ctx %d and %d steps are more than the model's %d tokens", o->ctx,
                    o->n_decode, c->max_ctx);
    if (speed_method(o, &race->method, err)) return -1;
    Method *m = &race->method;
    if (m->pattern_path && !(m->pattern = pattern_open(m->pattern_path, c, err))) return -1;
    race->ctx = o->ctx;
    race->batch = o->batch;
    race->n_decode = o->n_decode;
    race->rounds = o->rounds;
    race->plan = race_plan(o, c, m);
    size_t have = config_memory(c);
    if (!have || race->plan.upper_bound || race->plan.total <= have) return 0;
    c->offload = c->device;                     // rows on the host, if that is enough
    if (c->offload) race->plan = race_plan(o, c, m);
    if (c->offload && race->plan.total <= have) return 0;
    return FAIL_CODE(err, EXIT_MEMORY, "needs %zu MB, %zu MB are available; try a smaller --ctx",
                     race->plan.total >> 20, have >> 20);
}

static int race_run(FILE *out, Model *m, Race *o, bool json, Err *err) {
    Round r[MAX_ROUNDS];
    Work w[N_PHASES];
    Rng rng = { 1 };
    int rc = 0;
    o->ids = (int32_t *)xrealloc(NULL, (size_t)o->ctx * sizeof *o->ids);
    for (int i = 0; i < o->ctx; i++)
        o->ids[i] = (int32_t)rng_below(&rng, (uint64_t)model_config(m)->vocab_size);
    for (int k = 0; !rc && k < o->rounds; k++) rc = speed_round(o, m, w, &r[k], err);
    free(o->ids);
    if (rc) return -1;
    Round mid = median_round(r, o->rounds);
    if (json) return speed_json(out, o, &mid, w, err);
    speed_text(out, o, &mid, w);
    return 0;
}

static int speed_run(const SpeedOpts *o, const StrList *pos, Err *err) {
    ModelFile file;
    Model *m = NULL;
    Config c;
    Race race;
    ModelOpts opts = { .chunk = o->chunk };
    char name[80];
    memset(&file, 0, sizeof file);
    memset(&race, 0, sizeof race);
    if (speed_check(o, err) || cpu_init(o->threads, err)) return -1;
    if (device_choice(o->device, o->gpus, &opts.device, err)) return -1;
    opts.gpus = o->gpus;
    int rc = config_of(o->shape, pos, o->verify, &file, &c, err);
    c.device = opts.device;
    c.gpus = opts.gpus;
    if (!rc) rc = race_open(o, &c, &race, err);
    opts.offload = c.offload;
    if (!rc) m = o->shape ? model_random(&c, &opts, 1, err) : model_open(&file, &opts, err);
    speed_name(o, pos->n ? pos->p[0] : "", name, sizeof name);
    race.name = name;
    race.unit = m ? model_unit(m) : NULL;
    rc = m ? race_run(stdout, m, &race, o->json, err) : -1;
    model_close(m);
    if (race.method.pattern) pattern_close(race.method.pattern);
    if (file.p) file_close(&file);
    return rc;
}

int speed_command(int argc, char **argv, Err *err) {
    SpeedOpts o;
    StrList pos;
    if (opts_parse(speed_opts, (int)COUNTOF(speed_opts), argc, argv, &o, &pos, err)) return -1;
    int rc = 0;
    if (o.help) {
        puts("usage: scbench speed MODEL.bin | --shape NAME [options]\n");
        opts_help(stdout, speed_opts, (int)COUNTOF(speed_opts));
    } else rc = speed_run(&o, &pos, err);
    free(pos.p);
    free(o.set.p);
    return rc;
}
