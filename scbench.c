// scbench.c - SharedContextBench (Li et al. 2024): options, the run, its plan.
//
// Prompts and turn loops are in turns.c, tasks in tasks/, rows and tables in report.c, the commands
// that play no session in commands.c.
#include "tasks/longbench.h"
#include "lingua.h"
#include "probe.h"
#include <jansson.h>
#include <sys/stat.h>
#include <xxhash.h>

// ---------------------------------------------------------------------------
// Options and the run they describe

typedef struct {
    const char *task, *method, *mode, *ctx, *budget, *keep, *query_aware, *history, *positions,
        *group, *compress, *preset, *scorer, *data, *shard, *repo, *templates, *jieba, *encoder,
        *rate;
    const char *out, *device, *shape, *save_context;
    int64_t save_limit, seed;
    int sessions, turns, max_new, batch, chunk, threads, gpus;
    StrList set;
    bool no_baselines, plan, verify, quiet, dump_prompts, chat, no_chat, resume, skip_bad, stream,
        help;
} Opts;

enum { MAX_TASKS = 40, LONGBENCH_CTX = 4096, HARNESS_TURNS = 5, HARNESS_MAX_SEQ = 131072 };

typedef struct {                // one task of a run
    const Task *task;
    int ctx;                    // 0: each session's own length (--ctx paper, --data)
    int n_sessions;             // of all shards
    Session *sessions;          // (n_sessions); another shard's have no turns
    char data_hash[17];         // of the file of its records
} TaskRun;

typedef struct {
    Opts o;
    Bench b;
    ModelFile file, encoder;
    Config config;
    Tok *tok;
    ChatPieces plain;           // no template: at most a BOS
    Segmenter *words;           // of Chinese; NULL: characters
    TaskRun tasks[MAX_TASKS];
    int n_tasks;
    int shard, n_shards;        // this one, from 0
    double done, left;          // estimated seconds of sessions played and to be played
} Run;

#define AT(field) offsetof(Opts, field)
static const OptSpec run_opts[] = {
    { "--task", NULL, OPT_STR, AT(task), "retr_kv", "LIST",
      "tasks, by comma; all: the paper's twelve; longbench, longbench_e: all sets of LongBench" },
    { "--method", NULL, OPT_STR, AT(method), "full", "LIST",
      "methods, by comma, or all; see scbench list" },
    { "--mode", NULL, OPT_STR, AT(mode), "multi-turn", "LIST",
      "multi-turn, multi-request, single (every question a prompt of its own)" },
    { "--sessions", NULL, OPT_INT, AT(sessions), "0", "N",
      "contexts per task; 0: 20, or all records of --data" },
    { "--turns", NULL, OPT_INT, AT(turns), "0", "N", "questions per context; 0: the task's" },
    { "--ctx", NULL, OPT_STR, AT(ctx), NULL, "TOKENS|paper",
      "tokens of template, context and question 1; default: the paper's length, or what the model "
      "and memory allow; with --data: longer prompts lose their middle, those of LongBench are "
      "measured without the template" },
    { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "of contexts, questions and random choices" },
    { "--max-new", NULL, OPT_INT, AT(max_new), "0", "N", "tokens per answer; 0: the task's limit" },
    { "--batch", NULL, OPT_INT, AT(batch), "0", "N",
      "requests of a session that decode together; 0: all; changes no bit" },
    { "--data", NULL, OPT_STR, AT(data), NULL, "FILE.jsonl|DIR",
      "official records instead of generated sessions; DIR: one file per task, scbench_kv.jsonl "
      "..." },
    { "--skip-bad", NULL, OPT_FLAG, AT(skip_bad), NULL, NULL,
      "leave malformed records out instead of stopping" },
    { "--repo", NULL, OPT_STR, AT(repo), NULL, "DIR",
      "repoqa asks for functions of this source tree, by their own comments" },
    { "--budget", NULL, OPT_STR, AT(budget), NULL, "LIST",
      "rows kept per KV head or, in a sparse prefill alone, keys a row looks at; one run of a "
      "method per value" },
    { "--keep", NULL, OPT_STR, AT(keep), NULL, "LIST", "the same as shares of --ctx" },
    { "--encoder", NULL, OPT_STR, AT(encoder), NULL, "FILE.bin",
      "what llmlingua2 compresses contexts with, questions unseen; see scbench compress" },
    { "--rate", NULL, OPT_STR, AT(rate), NULL, "LIST",
      "shares of a context's tokens that llmlingua2 keeps; one run per value; default 1/3" },
    { "--query-aware", NULL, OPT_STR, AT(query_aware), NULL, "no|first|each",
      "the question in the first feed: none, the first one, in multi-request each; default first "
      "in multi-turn, no in multi-request; single is always each" },
    { "--history", NULL, OPT_STR, AT(history), "golden", "golden|own",
      "what a follow-up turn sees as earlier answers" },
    { "--set", NULL, OPT_LIST, AT(set), NULL, "METHOD.name=value",
      "one size of a method; may be repeated. mamba.norm_groups=1: the gated norm of a Mamba-2 "
      "over its whole width, as runs through the transformers library have it" },
    { "--positions", NULL, OPT_STR, AT(positions), NULL, "original|cache",
      "rotate a kept key at its own position or at its place in the cache; default: the method's" },
    { "--group", NULL, OPT_STR, AT(group), NULL, "mean|max|sum|query-head",
      "how the query heads of a KV head choose rows; query-head: each keeps its own, as the "
      "released program stores them; default mean" },
    { "--compress", NULL, OPT_STR, AT(compress), NULL, "once|every-turn",
      "snapkv and pyramidkv choose after the first feed alone, or after every feed; default once" },
    { "--preset", NULL, OPT_STR, AT(preset), NULL, "scbench|corm|harness",
      "whose default sizes; default scbench, corm for LongBench; harness: prompts, limits, cuts, "
      "caches and scores as the released program has them" },
    { "--scorer", NULL, OPT_STR, AT(scorer), NULL, "ours|harness",
      "scores as the paper means them or as the released program computes them; default ours, "
      "harness with --preset harness and for LongBench" },
    { "--templates", NULL, OPT_STR, AT(templates), NULL, "FILE.json",
      "prompts in other words: one text per task, with {context}, {input} and, for choices, {A} to "
      "{D}" },
    { "--jieba", NULL, OPT_STR, AT(jieba), NULL, "DIR",
      "where jieba's dict.txt and finalseg/prob_emit.py are, for scores of Chinese; default: where "
      "Debian's python3-jieba puts them, else Chinese is scored by characters" },
    { "--chat", NULL, OPT_FLAG, AT(chat), NULL, NULL,
      "demand the model's chat template (used when there is one)" },
    { "--no-chat", NULL, OPT_FLAG, AT(no_chat), NULL, NULL, "leave the chat template out" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N",
      "tokens per prefill chunk; 0: 512; changes no bit" },
    { "--stream-weights", NULL, OPT_FLAG, AT(stream), NULL, NULL,
      "hold one layer at a time: for a model larger than the memory; changes no bit" },
    { "--out", NULL, OPT_STR, AT(out), NULL, "DIR",
      "rows and manifest; default out/MODEL-METHOD-DATE; must not exist" },
    { "--resume", NULL, OPT_FLAG, AT(resume), NULL, NULL, "go on with the run in --out" },
    { "--shard", NULL, OPT_STR, AT(shard), NULL, "I/N",
      "play every N-th session, from the I-th on, into DIR/shard-I" },
    { "--no-baselines", NULL, OPT_FLAG, AT(no_baselines), NULL, NULL,
      "do not add full and keep-last to a sweep, nor keep-last at corm's rows to corm" },
    { "--plan", NULL, OPT_FLAG, AT(plan), NULL, NULL, "print the bytes this run needs and stop" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the model file's checksums (always below 1 GB)" },
    { "--save-context", NULL, OPT_STR, AT(save_context), NULL, "DIR",
      "keep prefilled contexts and compressed roots there, and read those that are there" },
    { "--save-limit", NULL, OPT_INT64, AT(save_limit), "0", "MB",
      "what the files of --save-context may take together; what does not fit is not saved; 0: no "
      "limit" },
    { "--dump-prompts", NULL, OPT_FLAG, AT(dump_prompts), NULL, NULL,
      "write every feed to DIR/prompts.jsonl" },
    { "--device", NULL, OPT_STR, AT(device), "cpu", "cpu|cuda",
      "where the model computes; the encoder of llmlingua2 stays on the CPU" },
    { "--gpus", NULL, OPT_INT, AT(gpus), "1", "N",
      "GPUs that share the layers of a transformer; changes no bit" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores; changes no bit" },
    { "--quiet", NULL, OPT_FLAG, AT(quiet), NULL, NULL, "no progress" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};
static const OptSpec plan_opts[] = {
    { "--shape", NULL, OPT_STR, AT(shape), NULL, "NAME",
      "a known model's shape instead of a file; see scbench list shapes" },
    { "--ctx", NULL, OPT_STR, AT(ctx), NULL, "TOKENS", "tokens of the first feed" },
    { "--method", NULL, OPT_STR, AT(method), "full", "LIST", "methods, by comma, or all" },
    { "--budget", NULL, OPT_STR, AT(budget), NULL, "LIST", "rows kept per KV head" },
    { "--keep", NULL, OPT_STR, AT(keep), NULL, "LIST", "the same as shares of --ctx" },
    { "--rate", NULL, OPT_STR, AT(rate), NULL, "LIST",
      "shares of a context's tokens that llmlingua2 keeps" },
    { "--set", NULL, OPT_LIST, AT(set), NULL, "METHOD.name=value",
      "one size of a method; may be repeated" },
    { "--positions", NULL, OPT_STR, AT(positions), NULL, "original|cache",
      "default: the method's" },
    { "--preset", NULL, OPT_STR, AT(preset), "scbench", "scbench|corm", "whose default sizes" },
    { "--max-new", NULL, OPT_INT, AT(max_new), "80", "N", "tokens after the first feed" },
    { "--stream-weights", NULL, OPT_FLAG, AT(stream), NULL, NULL, "hold one layer at a time" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N", "tokens per prefill chunk; 0: 512" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};
enum { MAX_LIST = 64, NAME = 48 };
typedef struct { char p[MAX_LIST][NAME]; int n; } Names;

static int names_of(const char *option, const char *list, Names *out, Err *err) {
    const char *cursor = list;
    char item[NAME];
    out->n = 0;
    while (list_next(&cursor, item, sizeof item)) {
        if (!*item || out->n == MAX_LIST)
            return FAIL_CODE(err, EXIT_USAGE, "%s wants names separated by commas, got '%s'",
                             option, list);
        for (int i = 0; i < out->n; i++)
            if (!strcmp(out->p[i], item))
                return FAIL_CODE(err, EXIT_USAGE, "%s names '%s' twice", option, item);
        strcpy(out->p[out->n++], item);
    }
    return 0;
}

// methods in run order: a sweep gains full in front and keep-last at the end
static int method_names(Run *r, Names *names, Err *err) {
    const Opts *o = &r->o;
    int evicting = 0, budgets = 0;
    Method m;
    names->n = 0;
    if (!strcmp(o->method, "all")) {
        const char *name;
        for (int i = 0; (name = method_name_at(i)) != NULL; i++) {
            if (method_find(name, &m, err)) return -1;
            if (!m.prompt.on || o->encoder) strcpy(names->p[names->n++], name);
        }
    } else if (names_of("--method", o->method, names, err)) return -1;
    for (int i = 0; i < names->n; i++) {
        if (method_find(names->p[i], &m, err)) return -1;
        evicting += method_in_cache(&m);
        budgets += method_has_budget(&m);
    }
    if ((o->budget || o->keep) && !budgets)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s acts on no method here: %s keeps no fixed number of rows",
                         o->budget ? "--budget" : "--keep", o->method);
    if (evicting < 2 || o->no_baselines) return 0;
    bool full = false, keep_last = false;
    for (int i = 0; i < names->n; i++) {
        full = full || !strcmp(names->p[i], "full");
        keep_last = keep_last || !strcmp(names->p[i], "keep-last");
    }
    if (!full && names->n < MAX_LIST) {
        memmove(names->p[1], names->p[0], sizeof names->p[0] * (size_t)names->n++);
        strcpy(names->p[0], "full");
    }
    if (!keep_last && strcmp(o->preset ? o->preset : "", "harness") && names->n < MAX_LIST)
        strcpy(names->p[names->n++], "keep-last");
    return 0;
}

// -1, or the arm's number: an equal one is not added twice; rate 0: none given
static int arm_add(Run *r, const char *name, Mode mode, int budget, double keep, double rate,
                   int follows, Err *err) {
    Bench *b = &r->b;
    Arm a = { .mode = mode, .budget = budget, .keep = keep, .follows = follows };
    if (method_find(name, &a.method, err)) return -1;
    if (a.method.prompt.on) a.method.prompt.rate = rate;
    if (!method_has_budget(&a.method)) a.budget = 0, a.keep = 0;
    for (int i = 0; i < b->n_arms; i++) {
        Arm *c = &b->arms[i];
        if (c->mode == a.mode && c->budget == a.budget && c->keep == a.keep &&
            c->follows == a.follows && c->method.prompt.rate == a.method.prompt.rate &&
            !strcmp(c->method.name, a.method.name)) return i;
    }
    int n = snprintf(a.label, sizeof a.label, "%.40s", a.method.name);
    if (follows >= 0) snprintf(a.label + n, sizeof a.label - (size_t)n, " at corm's rows");
    if (a.budget) snprintf(a.label + n, sizeof a.label - (size_t)n, " %d", a.budget);
    if (a.keep > 0) snprintf(a.label + n, sizeof a.label - (size_t)n, " keep %g", a.keep);
    n = (int)strlen(a.label);
    if (a.method.prompt.rate > 0)
        snprintf(a.label + n, sizeof a.label - (size_t)n, " rate %g", a.method.prompt.rate);
    b->arms = (Arm *)xrealloc(b->arms, (size_t)(b->n_arms + 1) * sizeof *b->arms);
    b->arms[b->n_arms] = a;
    return b->n_arms++;
}

// one method in one mode at every rate and size asked for; corm brings keep-last at its mean rows
static int arms_of(Run *r, const char *name, Mode mode, const Names *sizes, const Names *rates,
                   Err *err) {
    const Opts *o = &r->o;
    int last = -1, n_sizes = sizes->n ? sizes->n : 1, n_rates = rates->n ? rates->n : 1;
    for (int j = 0; j < n_sizes * n_rates; j++) {
        int64_t budget = 0;
        double keep = 0, rate = 0;
        const char *size = sizes->p[j % n_sizes];
        if (o->budget && parse_int("--budget", size, 32, INT_MAX, &budget, err)) return -1;
        if (o->keep && parse_real("--keep", size, 1e-6, 1, &keep, err)) return -1;
        if (o->rate && parse_real("--rate", rates->p[j / n_sizes], 1e-3, 1, &rate, err)) return -1;
        if ((last = arm_add(r, name, mode, (int)budget, keep, rate, -1, err)) < 0) return -1;
    }
    if (strcmp(name, "corm") || o->no_baselines) return 0;
    return arm_add(r, "keep-last", mode, 0, 0, 0, last, err) < 0 ? -1 : 0;
}

static int arm_sets(Run *r, const char *text, Err *err) {
    const char *dot = strchr(text, '.'), *eq = strchr(text, '=');
    char name[NAME], size[NAME];
    int used = 0;
    if (!dot || !eq || dot > eq)
        return FAIL_CODE(err, EXIT_USAGE, "--set wants METHOD.name=value, got '%s'", text);
    snprintf(name, sizeof name, "%.*s", (int)(dot - text), text);
    snprintf(size, sizeof size, "%.*s", (int)(eq - dot - 1), dot + 1);
    if (!strcmp(name, "mamba") && !strcmp(size, "norm_groups")) {
        int64_t v;
        if (parse_int("--set mamba.norm_groups", eq + 1, 1, 1 << 20, &v, err)) return -1;
        r->b.norm_groups = (int)v;
        return 0;
    }
    for (int i = 0; i < r->b.n_arms; i++) {
        Arm *a = &r->b.arms[i];
        if (!method_is(&a->method, name) || a->follows >= 0) continue;
        if (method_set_stage(&a->method, name, size, eq + 1, err)) return -1;
        if (!strcmp(size, "prefill")) {         // such an arm shares no context: its name says so
            size_t n = strlen(a->label);
            snprintf(a->label + n, sizeof a->label - n, " %.20s", eq + 1);
        }
        used++;
    }
    if (used) return 0;
    return FAIL_CODE(err, EXIT_USAGE, "--set %s acts on no method of this run", text);
}

static bool compresses(const Run *r) {
    for (int i = 0; i < r->b.n_arms; i++) if (r->b.arms[i].method.prompt.on) return true;
    return false;
}

// --rate, and the options of every prompt stage
static int prompts_resolve(const Run *r, Err *err) {
    if (r->o.rate && !compresses(r))
        return FAIL_CODE(err, EXIT_USAGE, "--rate acts on no method here: %s compresses no text; "
                         "llmlingua2 does", r->o.method);
    for (int i = 0; i < r->b.n_arms; i++) {
        LinguaSet set;
        if (lingua_set(&r->b.arms[i].method.prompt, &set, err)) return -1;
        lingua_set_free(&set);
    }
    return 0;
}

static int arms_resolve(Run *r, Err *err) {
    const Opts *o = &r->o;
    const char *list = o->budget ? o->budget : o->keep;
    Names methods, modes, sizes = { .n = 0 }, rates = { .n = 0 };
    if (o->budget && o->keep)
        return FAIL_CODE(err, EXIT_USAGE, "--budget and --keep exclude each other");
    if (method_names(r, &methods, err) ||
        names_of("--mode", o->mode ? o->mode : mode_name[0], &modes, err))
        return -1;
    if (list && names_of(o->budget ? "--budget" : "--keep", list, &sizes, err)) return -1;
    if (o->rate && names_of("--rate", o->rate, &rates, err)) return -1;
    for (int k = 0; k < modes.n; k++) {
        int mode = opt_choose("--mode", modes.p[k], mode_name, N_MODES, err);
        if (mode < 0) return -1;
        for (int i = 0; i < methods.n; i++)
            if (arms_of(r, methods.p[i], (Mode)mode, &sizes, &rates, err)) return -1;
    }
    for (int k = 0; k < o->set.n; k++)
        if (arm_sets(r, o->set.p[k], err)) return -1;
    return prompts_resolve(r, err);
}

static bool has_mode(const Run *r, Mode mode) {
    for (int i = 0; i < r->b.n_arms; i++)
        if (r->b.arms[i].mode == mode) return true;
    return false;
}

// which question every arm's first feed holds
static int aware_resolve(Run *r, Err *err) {
    const char *given = r->o.query_aware;
    int aware = given ? opt_choose("--query-aware", given, aware_name, 3, err) : 0;
    if (aware < 0) return -1;
    if (given && aware == AWARE_EACH && has_mode(r, MULTI_TURN))
        return FAIL_CODE(err, EXIT_USAGE, "--query-aware each is for multi-request: a dialogue has "
                         "one first feed; use first or no, or --mode single");
    if (given && aware != AWARE_EACH && !has_mode(r, MULTI_TURN) && !has_mode(r, MULTI_REQUEST))
        return FAIL_CODE(err, EXIT_USAGE, "--query-aware %s acts on no mode here: in --mode single "
                         "every question is in its own first feed", given);
    for (int i = 0; i < r->b.n_arms; i++) {
        Arm *a = &r->b.arms[i];
        a->aware = a->mode == SINGLE ? AWARE_EACH : given ? (Aware)aware
                 : a->mode == MULTI_TURN ? AWARE_FIRST : AWARE_NO;
    }
    return 0;
}

// what only that program does, and what it does not have
static int harness_resolve(Run *r, Err *err) {
    Bench *b = &r->b;
    if (b->preset != PRESET_HARNESS) return 0;
    if (r->o.scorer && b->scorer != SCORER_HARNESS)
        return FAIL_CODE(err, EXIT_USAGE, "--preset harness scores as that program does; leave "
                         "--scorer out, or use --preset scbench");
    b->scorer = SCORER_HARNESS;
    if (r->o.query_aware || has_mode(r, SINGLE))
        return FAIL_CODE(err, EXIT_USAGE, "--preset harness has multi-turn with question 1 in the "
                         "first feed and multi-request without; leave --query-aware and --mode "
                         "single out");
    Method m;
    if (b->positions == POSITIONS_CACHE || b->group >= 0 || b->every_turn)
        return FAIL_CODE(err, EXIT_USAGE, "--preset harness keeps rows per query head, at their "
                         "own positions, chosen once; leave --positions, --group and --compress "
                         "out");
    for (int i = 0; i < b->n_arms; i++)
        if (arm_method(b, &b->arms[i], HARNESS_MAX_SEQ, &m, err)) return -1;
    return 0;
}

static int shard_resolve(Run *r, Err *err) {
    const char *text = r->o.shard;
    char end;
    int i, n;
    r->n_shards = 1;
    if (!text) return 0;
    if (sscanf(text, "%d/%d%c", &i, &n, &end) != 2 || i < 1 || n < i || n > 10000)
        return FAIL_CODE(err, EXIT_USAGE, "--shard wants I/N, 1 <= I <= N, got '%s'", text);
    if (!r->o.out)
        return FAIL_CODE(err, EXIT_USAGE, "--shard needs --out DIR, the same for all shards");
    r->shard = i - 1;
    r->n_shards = n;
    return 0;
}

// --group and --compress: each must act on some method of the run
static int choices_resolve(Run *r, Err *err) {
    static const char *const groups[] = { "mean", "max", "sum", "query-head" };
    static const char *const compress[] = { "once", "every-turn" };
    const Opts *o = &r->o;
    Bench *b = &r->b;
    bool grouped = false, cached = false, once = false;
    for (int i = 0; i < b->n_arms; i++) {
        const Method *m = &b->arms[i].method;
        grouped = grouped || method_groups(m);
        cached = cached || method_in_cache(m);
        once = once || method_acts_once(m);
    }
    b->group = -1;
    if (o->group && (b->group = opt_choose("--group", o->group, groups, 4, err)) < 0) return -1;
    if (o->group && !(b->group == GROUP_QUERY_HEAD ? cached : grouped))
        return FAIL_CODE(err, EXIT_USAGE, "--group %s acts on no method here: %s joins no query "
                         "heads by a choice", o->group, o->method);
    if (o->compress &&
        (b->every_turn = opt_choose("--compress", o->compress, compress, 2, err)) < 0)
        return -1;
    if (o->compress && !once)
        return FAIL_CODE(err, EXIT_USAGE, "--compress acts on no method here: %s evicts while it "
                         "decodes, or never", o->method);
    return 0;
}

// what a GPU cannot do is said before anything is read
static int device_resolve(Run *r, Err *err) {
    Method m;
    for (int i = 0; r->config.device && i < r->b.n_arms; i++)
        if (arm_method(&r->b, &r->b.arms[i], HARNESS_MAX_SEQ, &m, err) ||
            method_on_device(&m, err))
            return -1;
    return 0;
}

static int switches_resolve(Run *r, Err *err) {
    static const char *const histories[] = { "golden", "own" };
    static const char *const positions[] = { "original", "cache" };
    static const char *const scorers[] = { "ours", "harness" };
    const Opts *o = &r->o;
    Bench *b = &r->b;
    bool lb = r->tasks[0].task && r->tasks[0].task->lb; // a plan has no task
    int preset = lb ? PRESET_CORM : PRESET_SCBENCH, k = 0;
    if (o->preset && (preset = opt_choose("--preset", o->preset, preset_name, 3, err)) < 0)
        return -1;
    if (lb && preset == PRESET_HARNESS)
        return FAIL_CODE(err, EXIT_USAGE, "--preset harness is SharedContextBench's program; for "
                         "LongBench use --templates and --scorer harness");
    b->preset = (Preset)preset;
    b->positions = -1;
    if (o->positions &&
        (b->positions = opt_choose("--positions", o->positions, positions, 2, err)) < 0)
        return -1;
    if (choices_resolve(r, err)) return -1;
    r->config.gpus = o->device ? o->gpus : 1;   // a plan of a shape asks for none
    if (device_choice(o->device, r->config.gpus, &r->config.device, err)) return -1;
    if (o->scorer && (k = opt_choose("--scorer", o->scorer, scorers, 2, err)) < 0) return -1;
    b->scorer = o->scorer ? (Scorer)k : lb ? SCORER_HARNESS : SCORER_OURS;
    if (o->chunk < 0 || o->max_new < 0 || o->threads < 0 || o->sessions < 0 || o->turns < 0 ||
        o->batch < 0)
        return FAIL_CODE(err, EXIT_USAGE, "--chunk, --max-new, --threads, --sessions, --turns and "
                         "--batch cannot be negative");
    if (o->history) {
        if ((k = opt_choose("--history", o->history, histories, 2, err)) < 0) return -1;
        b->own_history = k == 1;
        if (b->own_history && !has_mode(r, MULTI_TURN))
            return FAIL_CODE(err, EXIT_USAGE,
                             "--history own needs --mode multi-turn: other modes share no history");
    }
    b->max_new = o->max_new;
    b->batch = o->batch;
    if (o->save_limit < 0 || (o->save_limit && !o->save_context))
        return FAIL_CODE(err, EXIT_USAGE, "--save-limit is a number of MB for --save-context");
    if (o->save_context && r->config.gpus > 1)
        return FAIL_CODE(err, EXIT_USAGE, "--save-context is for one GPU");
    if (o->save_context && b->preset == PRESET_HARNESS)
        return FAIL_CODE(err, EXIT_USAGE, "--save-context has nothing to keep with --preset "
                         "harness, which shares nothing");
    b->save.dir = o->save_context;
    b->save.limit = o->save_limit << 20;
    b->seed = o->seed;
    b->quiet = o->quiet;
    return aware_resolve(r, err) || harness_resolve(r, err) || shard_resolve(r, err) ||
                   device_resolve(r, err)
               ? -1
               : 0;
}

static int task_add(Run *r, const Task *task, Err *err) {
    if (r->n_tasks == MAX_TASKS)
        return FAIL_CODE(err, EXIT_USAGE, "--task takes at most %d tasks", MAX_TASKS);
    for (int k = 0; k < r->n_tasks; k++)
        if (r->tasks[k].task == task)
            return FAIL_CODE(err, EXIT_USAGE, "--task names %s twice", task->name);
    if (r->n_tasks && !task->lb != !r->tasks[0].task->lb)
        return FAIL_CODE(err, EXIT_USAGE, "--task mixes %s and %s: run LongBench and "
                         "SharedContextBench apart", r->tasks[0].task->name, task->name);
    r->tasks[r->n_tasks++].task = task;
    return 0;
}

// the twelve of the paper, the sets of LongBench, or those named
static int tasks_resolve(Run *r, Err *err) {
    const Task *t;
    Names names;
    int rc = 0;
    if (names_of("--task", r->o.task, &names, err)) return -1;
    for (int i = 0; i < names.n && !rc; i++) {
        bool all = !strcmp(names.p[i], "all"), lb = !strcmp(names.p[i], "longbench"),
             extended = !strcmp(names.p[i], "longbench_e");
        for (int k = 0; all && !rc && (t = task_at(k)); k++)
            if (t != &task_retr_kv_compressible) rc = task_add(r, t, err);
        for (int k = 0; (lb || extended) && !rc && (t = lb_task_at(k)); k++)
            if ((t->n_parts > 1) == extended) rc = task_add(r, t, err);
        if (all || lb || extended) continue;
        rc = (t = task_find(names.p[i], err)) ? task_add(r, t, err) : -1;
    }
    for (int i = 0; !rc && r->o.templates && i < r->n_tasks; i++) {
        rc = (t = task_templates(r->tasks[i].task, r->o.templates, err)) ? 0 : -1;
        if (!rc && strstr(t->instruction, "{target}") &&
            (!r->o.preset || strcmp(r->o.preset, preset_name[PRESET_HARNESS])))
            return FAIL_CODE(err, EXIT_USAGE, "%s: '%s' has {target} before its {context}, which "
                             "only --preset harness fills", r->o.templates, t->name);
        if (!rc) r->tasks[i].task = t;
    }
    return rc;
}

// scores of Chinese count words where there is a dictionary
static int words_open(Run *r, Err *err) {
    bool chinese = false;
    Err why = { "", 0 };
    for (int i = 0; i < r->n_tasks; i++)
        chinese = chinese || (r->tasks[i].task->lb && !strcmp(r->tasks[i].task->lb->lang, "zh"));
    if (r->o.jieba && !chinese)
        return FAIL_CODE(err, EXIT_USAGE, "--jieba acts on no task of this run");
    if (!chinese) return 0;
    r->words = segmenter_open(r->o.jieba, &why);
    lb_use_segmenter(r->words);
    if (!r->words && (r->o.jieba || why.msg[0])) return FAIL(err, "%s", why.msg);
    if (!r->words && !r->o.quiet)
        fprintf(stderr, "no jieba dictionary found: Chinese is scored by characters, which is not "
                        "what published numbers are; see --jieba\n");
    return 0;
}

// ---------------------------------------------------------------------------
// Lengths and memory

static int arm_plan(const Run *r, const Arm *a, Lengths l, int ctx, bool shared, PlanLine *line,
                    Err *err) {
    Method m;
    char budget[16] = "";
    if (arm_method(&r->b, a, ctx, &m, err)) return -1;
    if (method_budget(&m)) snprintf(budget, sizeof budget, " %d", method_budget(&m));
    snprintf(line->label, sizeof line->label, "%.30s%s %s", m.name, budget, mode_name[a->mode]);
    line->plan = plan_run(&r->config, &m, l.context, l.first, l.later, shared, -1, r->o.chunk);
    plan_more(&line->plan, &r->config, &m, l.context, l.first, l.later, shared, -1,
              l.branches - 1);
    return 0;
}

// adds the rows that other arms share and that are there while arm i plays
static int rows_beside(const Run *r, const Session *s, int i, int longer, Plan *plan, Err *err) {
    for (int j = 0; j < r->b.n_arms; j++) {
        const Arm *a = &r->b.arms[j];
        SharedBy by = arm_sharers(&r->b, a, s->s.n_turns);
        size_t n = session_expected(s, a).context.n;
        if (!by.shared || by.first != j || by.first >= i || by.last <= i) continue;
        if (arm_sharers(&r->b, &r->b.arms[i], s->s.n_turns).first == j) continue;
        if (a->method.prefill && a->aware == AWARE_FIRST) n += s->turn[0].first.n;
        Method m;
        if (arm_method(&r->b, a, session_first(s) + longer, &m, err)) return -1;
        Plan beside = plan_run(&r->config, &m, (int)n + longer, (int)n + longer, 0, true, -1, 0);
        plan->kv += beside.kv;
        plan->total += beside.kv;
    }
    return 0;
}

// Plans of all arms of a session whose first prompt is by that many tokens longer, into lines
// (n_arms; *n of them: keep-last at corm's rows needs no more than corm); *worst needs most.
static int run_plan(const Run *r, const TaskRun *k, const Session *s, int longer, PlanLine *lines,
                    int *n, const PlanLine **worst, Err *err) {
    *worst = lines;
    *n = 0;
    for (int i = 0; i < r->b.n_arms; i++) {
        const Arm *a = &r->b.arms[i];
        if (a->follows >= 0) continue;
        Session seen = session_expected(s, a);
        Lengths l = lengths_of(&r->b, k->task, &seen, a);
        l.context = l.context + longer > 1 ? l.context + longer : 1;
        l.first = l.first + longer > 1 ? l.first + longer : 1;
        if (arm_plan(r, a, l, session_first(s) + longer,
                     arm_sharers(&r->b, a, s->s.n_turns).shared, &lines[*n], err) ||
            rows_beside(r, s, i, longer, &lines[*n].plan, err))
            return -1;
        if (lines[*n].plan.total > (*worst)->plan.total) *worst = &lines[*n];
        ++*n;
    }
    return 0;
}

// the most logical tokens a session reaches beyond its first prompt
static int tokens_after(const Run *r, const Task *task, const Session *s) {
    int most = 0;
    for (int i = 0; i < r->b.n_arms; i++) {
        Lengths l = lengths_of(&r->b, task, s, &r->b.arms[i]);
        if (l.first + l.later - session_first(s) > most)
            most = l.first + l.later - session_first(s);
    }
    return most;
}

static int turns_made(const Run *r, const Task *task) {
    return r->o.turns ? r->o.turns : task->turns;
}

// of the turns made or read, the first so many are played; that program plays five
static int turns_played(const Run *r, int had) {
    int most = r->o.turns ? r->o.turns : r->b.preset == PRESET_HARNESS ? HARNESS_TURNS : had;
    return most < had ? most : had;
}

static Maker maker_of(const Run *r, const TaskRun *k) {
    int n = turns_made(r, k->task);
    Maker m = { k->task, k->task == &task_repoqa ? r->o.repo : NULL, (uint64_t)r->o.seed, n,
                turns_played(r, n), false };
    return m;
}

// --ctx left out: the paper's length, cut to what the model and the memory allow
static int default_ctx(Run *r, TaskRun *k, Err *err) {
    const Task *task = k->task;
    Session s;
    int n_turns = turns_made(r, task), n, rc = 0;
    int units = task->paper_units ? task->paper_units : task->min_units * n_turns;
    Maker maker = maker_of(r, k);
    maker.repo = NULL;
    session_make(&r->b.prompter, &maker, 1, units, &s, err);
    int paper = task->paper_units ? session_first(&s) : task->lb ? LONGBENCH_CTX : INT_MAX;
    int model = r->config.max_ctx - tokens_after(r, task, &s);
    int most = paper < model ? paper : model, lo = 0, hi = most;
    size_t have = config_memory(&r->config);
    PlanLine *lines = (PlanLine *)calloc((size_t)r->b.n_arms, sizeof *lines);
    const PlanLine *worst;
    while (have && !rc && lo < hi) {
        int ctx = hi == most ? hi : lo + (hi - lo + 1) / 2;
        rc = run_plan(r, k, &s, ctx - session_first(&s), lines, &n, &worst, err);
        if (!rc && worst->plan.total <= have) lo = ctx;
        else hi = ctx - 1;
    }
    k->ctx = have ? lo : hi;
    free(lines);
    session_free(&s);
    if (rc) return -1;
    if (k->ctx < 1)
        return FAIL_CODE(err, most < 1 ? EXIT_USER : EXIT_MEMORY,
                         "no context of %s with %d turns fits: %s takes %d "
                         "tokens in all, %zu MB of memory are available",
                         task->name, n_turns, r->file.path, r->config.max_ctx, have >> 20);
    if (!r->o.quiet) {
        fprintf(stderr, "%s: ctx %d tokens (", task->name, k->ctx);
        if (task->paper_units)
            fprintf(stderr, "the paper's %d %s are %d, ", task->paper_units, task->unit, paper);
        fprintf(stderr, "the model allows %d, memory %s)\n", model,
                k->ctx < most ? "less" : "as many");
    }
    return 0;
}

// ---------------------------------------------------------------------------
// Sessions of a run: generated, or read from records

static bool in_shard(const Run *r, const TaskRun *k, int i) {
    return ((int)(k - r->tasks) + i) % r->n_shards == r->shard;
}

// room for n sessions, those from n_sessions on empty
static void sessions_room(TaskRun *k, int n) {
    k->sessions = (Session *)xrealloc(k->sessions, (size_t)n * sizeof *k->sessions);
    memset(k->sessions + k->n_sessions, 0, (size_t)(n - k->n_sessions) * sizeof *k->sessions);
    k->n_sessions = n;
}

// texts that are ids now
static void text_drop(const Run *r, TaskSession *s) {
    free(s->numbers);
    s->numbers = NULL;
    s->n_numbers = 0;
    if (compresses(r)) return;
    free(s->context.p);
    memset(&s->context, 0, sizeof s->context);
}

static int make_one(const Run *r, const TaskRun *k, int number, int guess, Session *s, Err *err) {
    Maker maker = maker_of(r, k);
    if (k->ctx) return session_fit(&r->b.prompter, &maker, number, k->ctx, guess, s, err);
    if (!k->task->paper_units)
        return FAIL_CODE(err, EXIT_USAGE, "the paper has no length for %s; give --ctx TOKENS",
                         k->task->name);
    return session_make(&r->b.prompter, &maker, number, k->task->paper_units, s, err);
}

static void needle_add(TaskSession *s, const char *name, const char *source, const char *lang) {
    s->needles = (Needle *)xrealloc(s->needles, (size_t)(s->n_needles + 1) * sizeof *s->needles);
    Needle *n = &s->needles[s->n_needles++];
    n->name = text_dup(name);
    n->source = text_dup(source);
    n->lang = text_dup(lang);
}

static void needles_free(TaskSession *s) {
    TaskSession rest = { .needles = s->needles, .n_needles = s->n_needles };
    session_clear(&rest);
    s->needles = NULL;
    s->n_needles = 0;
}

// adds the functions that the turns of another session ask for
static void needles_asked(TaskSession *s, const TaskSession *of) {
    for (int t = 0; t < of->n_turns; t++)
        if (of->turns[t].name)
            needle_add(s, of->turns[t].name, of->turns[t].label[0], of->lang ? of->lang : "");
}

// the length of session 1 is the first guess for all others, in every shard
static int sessions_generate(Run *r, TaskRun *k, Err *err) {
    int n = r->o.sessions ? r->o.sessions : 20, guess = 0;
    if (!r->o.ctx && default_ctx(r, k, err)) return -1;
    sessions_room(k, n);
    for (int i = 0; i < n; i++) {
        Session *s = &k->sessions[i];
        if (i && !in_shard(r, k, i)) continue;
        if (make_one(r, k, i + 1, guess, s, err)) return -1;
        if (i == 0) guess = s->s.units;
        text_drop(r, &s->s);
        if (r->b.scorer == SCORER_HARNESS && s->s.n_needles) {      // its candidates are fewer
            needles_free(&s->s);
            needles_asked(&s->s, &s->s);
        }
        if (!in_shard(r, k, i)) session_free(s);
    }
    return 0;
}

// a record's predictions are compared with all functions asked for in its repository
static void needles_share(TaskRun *k) {
    for (int i = 0; i < k->n_sessions; i++) {
        TaskSession *s = &k->sessions[i].s;
        for (int j = 0; s->repo && j < k->n_sessions; j++) {
            const TaskSession *other = &k->sessions[j].s;
            if (other->repo && !strcmp(s->repo, other->repo)) needles_asked(s, other);
        }
    }
}

static void data_path(const Run *r, const Task *task, StrBuf *path) {
    struct stat st;
    path->n = 0;
    str_puts(path, r->o.data);
    if (stat(r->o.data, &st) == 0 && S_ISDIR(st.st_mode))
        str_fmt(path, "/%s.jsonl", task->official);
}

static int hash_file(const char *path, char out[17], Err *err) {
    char part[1 << 16];
    XXH64_state_t *state = XXH64_createState();
    FILE *f = fopen(path, "rb");
    size_t n;
    if (f && state) {
        XXH64_reset(state, 0);
        while ((n = fread(part, 1, sizeof part, f)) > 0) XXH64_update(state, part, n);
        snprintf(out, 17, "%016llx", (unsigned long long)XXH64_digest(state));
    }
    int rc = f && !ferror(f) ? 0 : FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    if (f) fclose(f);
    XXH64_freeState(state);
    return rc;
}

// cuts a record's prompts to what is asked for and what the model takes
static int record_fit(Run *r, const TaskRun *k, Session *s, int first_turns, int ctx, Err *err) {
    const Task *task = k->task;
    int model = r->config.max_ctx;
    if (r->b.preset == PRESET_HARNESS) {
        int seq = ctx ? ctx : model < HARNESS_MAX_SEQ ? model : HARNESS_MAX_SEQ;
        session_cut_harness(s, harness_max_input(task, seq, first_turns, MULTI_TURN),
                            harness_max_input(task, seq, first_turns, MULTI_REQUEST));
        return 0;
    }
    int most = model - tokens_after(r, task, s);
    if (most < 2)
        return FAIL(err, "%s takes %d tokens, too few for the questions and answers of session %d "
                    "of %s; give --turns or --max-new", r->file.path, model, s->s.number,
                    task->name);
    if (!task->lb) return session_cut(s, ctx && ctx < most ? ctx : most, err);
    session_cut_prompt(&r->b.prompter, task, s, ctx ? ctx : INT_MAX, most);
    return 0;
}

static int sessions_read(Run *r, TaskRun *k, int ctx, Err *err) {
    StrBuf path = { 0 };
    Records records;
    int rc = 0, turns = 0;
    data_path(r, k->task, &path);
    if (hash_file(path.p, k->data_hash, err) || records_open(&records, path.p, err)) {
        free(path.p);
        return -1;
    }
    bool cut = true;            // that program looks at the first record alone
    int most = r->o.sessions ? r->o.sessions : INT_MAX;
    TaskSession text;
    while (k->n_sessions < most &&
           (rc = records_next(&records, k->task, r->o.skip_bad, &text, err)) > 0) {
        int n_play = turns_played(r, text.n_turns);
        if (!k->n_sessions) {
            turns = n_play;
            cut = r->b.preset != PRESET_HARNESS || n_play < text.n_turns;
        }
        if (cut) session_keep_turns(&text, n_play);
        sessions_room(k, k->n_sessions + 1);
        Session *s = &k->sessions[k->n_sessions - 1];
        s->s = text;
        session_ids(&r->b.prompter, k->task, s);
        text_drop(r, &s->s);
        if ((rc = record_fit(r, k, s, turns, ctx, err)) < 0) break;
    }
    rc = rc > 0 ? 0 : rc;
    records_close(&records);
    if (!rc && !k->n_sessions) rc = FAIL(err, "%s holds no record", path.p);
    if (!rc) needles_share(k);
    for (int i = 0; !rc && i < k->n_sessions; i++)
        if (!in_shard(r, k, i)) session_free(&k->sessions[i]);
    if (!rc && records.skipped && !r->o.quiet)
        fprintf(stderr, "%s: %d malformed records left out\n", path.p, records.skipped);
    free(path.p);
    return rc;
}

// some arm sees contexts as they are; what compression leaves is checked when it is known
static bool sees_whole(const Run *r) {
    for (int i = 0; i < r->b.n_arms; i++) if (!r->b.arms[i].method.prompt.on) return true;
    return false;
}

static int sessions_make(Run *r, Err *err) {
    const Opts *o = &r->o;
    int64_t ctx = 0;
    struct stat st;
    if (o->sessions > 100000 || o->turns > 1000)
        return FAIL_CODE(err, EXIT_USAGE, "--sessions and --turns want at most 100000 and 1000");
    if (o->ctx && strcmp(o->ctx, "paper") && parse_int("--ctx", o->ctx, 1, INT_MAX / 2, &ctx, err))
        return -1;
    if (o->data && r->n_tasks > 1 && stat(o->data, &st) == 0 && !S_ISDIR(st.st_mode))
        return FAIL_CODE(err, EXIT_USAGE, "--data %s is one file; with several tasks give the "
                         "directory that holds a file for each", o->data);
    for (int i = 0; i < r->n_tasks; i++) {
        TaskRun *k = &r->tasks[i];
        k->ctx = o->data ? 0 : (int)ctx;
        if (o->data ? sessions_read(r, k, (int)ctx, err) : sessions_generate(r, k, err)) return -1;
        if (k->n_sessions > r->b.sessions) r->b.sessions = k->n_sessions;
        for (int j = 0; j < k->n_sessions; j++) {
            const Session *s = &k->sessions[j];
            if (!s->s.n_turns) continue;
            int first = session_first(s), later = tokens_after(r, k->task, s);
            if (first + later > r->config.max_ctx && sees_whole(r))
                return FAIL(err,
                            "session %d of %s needs %d + %d tokens (first feed; later turns and "
                            "answers) but %s takes %d; choose a smaller --ctx or --turns",
                            j + 1, k->task->name, first, later, r->file.path, r->config.max_ctx);
        }
    }
    return 0;
}

// the session that reaches most tokens; NULL: this shard has none
static const Session *longest_session(const Run *r, const TaskRun **of) {
    const Session *best = NULL;
    int most = -1;
    for (int i = 0; i < r->n_tasks; i++)
        for (int j = 0; j < r->tasks[i].n_sessions; j++) {
            const Session *s = &r->tasks[i].sessions[j];
            if (!s->s.n_turns) continue;
            int tokens = session_first(s) + tokens_after(r, r->tasks[i].task, s);
            if (tokens <= most) continue;
            most = tokens;
            best = s;
            *of = &r->tasks[i];
        }
    return best;
}

static int plan_refuse(const Run *r, const PlanLine *worst, size_t have, Err *err) {
    const Plan *p = &worst->plan;
    bool stream = p->weights > have && !r->o.stream && !r->config.device;
    return FAIL_CODE(err, EXIT_MEMORY,
                     "%s does not fit%s: weights %zu + KV %zu + scratch %zu + policy %zu = %zu MB, "
                     "%zu MB are available; try %s",
                     worst->label, r->config.device ? " the GPU" : "", p->weights >> 20,
                     p->kv >> 20, p->scratch >> 20, p->policy >> 20, p->total >> 20, have >> 20,
                     stream ? "--stream-weights" : "a smaller --ctx or --budget");
}

// Rows that a GPU has no room for stay on the host, where that is enough.
static int plan_offload(Run *r, const TaskRun *of, const Session *s, PlanLine *lines, size_t have,
                        const PlanLine **worst, Err *err) {
    size_t host = memory_available(), want = 0;
    PlanLine before = **worst;
    int n;
    r->config.offload = true;
    if (run_plan(r, of, s, 0, lines, &n, worst, err)) return -1;
    for (int i = 0; i < n; i++) want = lines[i].plan.host > want ? lines[i].plan.host : want;
    if ((*worst)->plan.total > have || (host && want > host)) {
        r->config.offload = false;
        return plan_refuse(r, &before, have, err);
    }
    if (!r->o.quiet)
        fprintf(stderr, "%s needs %zu MB and the GPU has %zu MB: settled keys and values, %zu MB, "
                "stay in host memory, which it reads\n", before.label, before.plan.total >> 20,
                have >> 20, want >> 20);
    return 0;
}

static int plan_check(Run *r, Err *err) {
    const TaskRun *of;
    const Session *s = longest_session(r, &of);
    if (!s) return 0;
    PlanLine *lines = (PlanLine *)calloc((size_t)r->b.n_arms, sizeof *lines);
    const PlanLine *worst;
    size_t have = config_memory(&r->config);
    int n, rc = run_plan(r, of, s, 0, lines, &n, &worst, err);
    bool over = !rc && have && worst->plan.total > have;
    if (over && r->config.device && config_attn_layers(&r->config))
        rc = plan_offload(r, of, s, lines, have, &worst, err);
    else if (over) rc = plan_refuse(r, worst, have, err);
    if ((!rc || over) && r->o.plan) {
        plan_print(stdout, &r->config, lines, n, session_first(s));
        if (r->encoder.p) printf("beside these the encoder of llmlingua2, %zu MB\n",
                                 r->encoder.size >> 20);
    }
    free(lines);
    return rc;
}

// ---------------------------------------------------------------------------
// The run: directory, manifest, sessions, table

static void stamp(char out[24], const char *format) {
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 24, format, &tm);
}

static json_t *manifest_tasks(const Run *r) {
    json_t *tasks = json_array();
    for (int i = 0; i < r->n_tasks; i++) {
        const TaskRun *k = &r->tasks[i];
        json_t *max_new = json_array();
        for (int p = 0; p < k->task->n_parts; p++)
            json_array_append_new(max_new, json_integer(part_max_new(&r->b, k->task, p)));
        json_t *t = json_pack("{s:s, s:o, s:i, s:o}", "task", k->task->name, "max_new", max_new,
                              "sessions", k->n_sessions, "ctx",
                              k->ctx ? json_integer(k->ctx) : json_null());
        if (*k->data_hash) json_object_set_new(t, "data", json_string(k->data_hash));
        json_array_append_new(tasks, t);
    }
    return tasks;
}

// what a resumed run must have in common with the first one
static json_t *manifest_options(const Run *r) {
    const Opts *o = &r->o;
    const Bench *b = &r->b;
    json_t *arms = json_array(), *set = json_array();
    for (int i = 0; i < b->n_arms; i++) {
        const Arm *a = &b->arms[i];
        json_array_append_new(
            arms, json_pack("{s:s, s:s, s:s, s:s}", "arm", a->label, "method", a->method.name,
                            "mode", mode_name[a->mode], "query_aware", aware_name[a->aware]));
    }
    for (int i = 0; i < o->set.n; i++) json_array_append_new(set, json_string(o->set.p[i]));
    return json_pack("{s:o, s:o, s:i, s:s, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:o}",
                     "tasks", manifest_tasks(r), "arms", arms, "turns", o->turns, "ctx",
                     o->ctx ? o->ctx : "default", "seed", (json_int_t)o->seed, "history",
                     b->own_history ? "own" : "golden", "preset", preset_name[b->preset], "scorer",
                     b->scorer == SCORER_HARNESS ? "harness" : "ours", "positions",
                     b->positions < 0 ? "default" : b->positions ? "cache" : "original", "group",
                     o->group ? o->group : "default", "compress",
                     o->compress ? o->compress : "once", "chat",
                     (int)b->prompter.chat->present, "shard", o->shard ? o->shard : "1/1", "set",
                     set);
}

// hash of the prompt texts that were used instead of the program's own
static json_t *manifest_words(const Run *r) {
    StrBuf all = { 0 };
    char hash[17];
    for (int i = 0; i < r->n_tasks; i++) {
        const Task *t = r->tasks[i].task;
        str_fmt(&all, "%s%c%s%c%s%c", t->instruction, 0, t->separator, 0,
                t->wording ? t->wording : t->lb->after, 0);
    }
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH64(all.p, all.n, 0));
    free(all.p);
    return json_string(hash);
}

// the sizes every arm resolves to in the first session of the first task
static json_t *manifest_methods(const Run *r, const TaskRun *k, const Session *s) {
    json_t *list = json_array();
    for (int i = 0; s && i < r->b.n_arms; i++) {
        const Arm *a = &r->b.arms[i];
        Method m;
        Err err = { 0 };
        StrBuf params = { 0 };
        if (a->follows >= 0 || arm_method(&r->b, a, k->ctx ? k->ctx : session_first(s), &m, &err))
            continue;
        method_params(&m, &params);
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:b}", "arm", a->label, "mode",
                                              mode_name[a->mode], "params",
                                              json_loads(params.p, 0, NULL), "scaled",
                                              (int)m.size.scaled));
        free(params.p);
    }
    return list;
}

// prompts that lost their middle
static json_t *manifest_cuts(const Run *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->n_tasks; i++)
        for (int j = 0; j < r->tasks[i].n_sessions; j++) {
            const Session *s = &r->tasks[i].sessions[j];
            if (!s->s.n_turns || !s->whole) continue;
            json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:i}", "task",
                                                  r->tasks[i].task->name, "session", s->s.number,
                                                  "tokens", s->whole, "kept", session_first(s)));
        }
    return list;
}

static char *manifest_text(const Run *r) {
    static const char *const dtypes[] = { "f32", "bf16", "q8", "u8", "i32" };
    const Config *c = &r->config;
    const TaskRun *of = NULL;
    const Session *s = longest_session(r, &of);
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)r->file.head->hash);
    json_t *m = json_pack("{s:s, s:o, s:o}", "program", "scbench", "options", manifest_options(r),
                          "methods", manifest_methods(r, of, s));
    json_object_set_new(m, "model", json_pack("{s:s, s:s, s:I, s:s, s:i, s:i, s:i, s:i, s:i, s:i}",
        "path", r->file.path, "hash", hash, "bytes", (json_int_t)r->file.size,
        "dtype", dtypes[c->dtype], "layers", c->n_layers, "dim", c->dim, "heads", c->n_heads,
        "kv_heads", c->n_kv_heads, "vocab", c->vocab_size, "max_ctx", c->max_ctx));
    json_object_set_new(m, "tokenizer", json_pack("{s:i, s:b, s:i}", "vocab", tok_vocab(r->tok),
        "chat", (int)tok_chat(r->tok)->present, "bos", tok_bos(r->tok)));
    json_object_set_new(m, "machine", json_pack("{s:s, s:i, s:i, s:i, s:s}", "isa",
        r->b.model ? model_unit(r->b.model) : cpu_isa(), "threads", cpu_threads(), "chunk",
        r->o.chunk, "batch", r->o.batch, "compiler", __VERSION__));
    if (r->o.data) json_object_set_new(m, "data", json_string(r->o.data));
    if (r->o.templates)
        json_object_set_new(json_object_get(m, "options"), "templates", manifest_words(r));
    if (r->encoder.p) {
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)r->encoder.head->hash);
        json_object_set_new(m, "encoder", json_pack("{s:s, s:s, s:I}", "path", r->encoder.path,
            "hash", hash, "bytes", (json_int_t)r->encoder.size));
        json_object_set_new(json_object_get(m, "options"), "encoder", json_string(hash));
    }
    if (r->o.repo)
        json_object_set_new(json_object_get(m, "options"), "repo", json_string(r->o.repo));
    json_object_set_new(m, "cut", manifest_cuts(r));
#ifdef GIT_REVISION
    json_object_set_new(m, "revision", json_string(GIT_REVISION));
#endif
    char *text = json_dumps(m, JSON_COMPACT);
    json_decref(m);
    return text;
}

static FILE *open_in(const char *dir, const char *name, Err *err) {
    StrBuf path = { 0 };
    str_fmt(&path, "%s/%s", dir, name);
    FILE *f = fopen(path.p, "ab");
    if (!f) FAIL(err, "%s: cannot be written: %s", path.p, strerror(errno));
    free(path.p);
    return f;
}

// the files of --set minference.pattern=FILE
static int arms_patterns(Run *r, Err *err) {
    for (int i = 0; i < r->b.n_arms; i++) {
        Method *m = &r->b.arms[i].method;
        if (m->pattern_path && !(m->pattern = pattern_open(m->pattern_path, &r->config, err)))
            return -1;
    }
    return 0;
}

// the encoder of llmlingua2, which is there before the bytes of the run are planned
static int encoder_prepare(Run *r, Err *err) {
    const char *path = r->o.encoder;
    if (path && !compresses(r))
        return FAIL_CODE(err, EXIT_USAGE, "--encoder acts on no method here: %s compresses no "
                         "text; llmlingua2 does", r->o.method);
    if (!path && compresses(r))
        return FAIL_CODE(err, EXIT_USAGE, "llmlingua2 compresses texts with an encoder: give "
                         "--encoder FILE.bin, which export.py makes of an LLMLingua-2 checkpoint");
    if (!path) return 0;
    if (file_open(&r->encoder, path, r->o.verify, err)) return -1;
    if (r->o.plan) return 0;
    if (!(r->b.encoder = lingua_open(&r->encoder, err))) return -1;
    if (!lingua_weighs(r->b.encoder, err)) return 0;
    Err why = *err;
    return FAIL(err, "%s: %.900s", path, why.msg);
}

// all that can be refused before the weights are read
static int run_prepare(Run *r, const char *model, Err *err) {
    if (tasks_resolve(r, err) || arms_resolve(r, err) || switches_resolve(r, err)) return -1;
    if (r->o.chat && r->o.no_chat)
        return FAIL_CODE(err, EXIT_USAGE, "--chat and --no-chat exclude each other");
    if (r->o.skip_bad && !r->o.data)
        return FAIL_CODE(err, EXIT_USAGE, "--skip-bad acts on the records of --data");
    bool repoqa = false;
    for (int i = 0; i < r->n_tasks; i++) repoqa = repoqa || r->tasks[i].task == &task_repoqa;
    if (r->o.repo && (r->o.data || !repoqa))
        return FAIL_CODE(err, EXIT_USAGE, "--repo is for the sessions of --task repoqa; give it "
                         "without --data");
    if (words_open(r, err)) return -1;
    if (cpu_init(r->o.threads, err) || file_open(&r->file, model, r->o.verify, err)) return -1;
    bool device = r->config.device;
    int gpus = r->config.gpus;
    if (config_read(&r->file, &r->config, err) || !(r->tok = tok_open(&r->file, err))) return -1;
    r->config.stream = r->o.stream;
    r->config.device = device;
    r->config.gpus = gpus;
    if (arms_patterns(r, err) || encoder_prepare(r, err)) return -1;
    if (r->o.chat && !tok_chat(r->tok)->present)
        return FAIL(err, "%s has no chat template; leave --chat out", model);
    prompter_open(&r->b.prompter, r->tok, r->o.no_chat, &r->plain);
    r->b.prompter.harness = r->b.preset == PRESET_HARNESS;
    r->b.prompter.own_history = r->b.own_history;
    r->b.vocab = r->config.vocab_size;
    return sessions_make(r, err) || plan_check(r, err) ? -1 : 0;
}

// ---------------------------------------------------------------------------
// How long it will take: floating point operations of feeds and bytes read by steps, at rates that
// a short probe of this model measured

typedef struct { double flops, bytes; } Work;

static void work_feed(const Config *c, double n, double pos, Work *w) {
    double params = (double)c->n_layers * c->dim *
                    (2.0 * c->n_heads * c->head_dim + 2.0 * c->n_kv_heads * c->head_dim +
                     3.0 * c->hidden_dim);
    double pairs = n * pos + n * n / 2;
    w->flops += 2 * params * n + 4.0 * c->n_layers * c->n_heads * c->head_dim * pairs;
}

static void work_steps(const Config *c, double n, double pos, Work *w) {
    double rows = (double)config_row_bytes(c) * c->n_layers * c->n_kv_heads;
    w->bytes += n * ((double)config_weight_bytes(c) + rows * pos);
}

// every answer as long as it may be, every row kept
static Work session_work(const Run *r, const Task *task, const Session *s) {
    const Config *c = &r->config;
    Work w = { 0, 0 };
    for (int i = 0; i < r->b.n_arms; i++) {
        const Arm *a = &r->b.arms[i];
        double context = (double)session_expected(s, a).context.n, pos = context;
        SharedBy by = arm_sharers(&r->b, a, s->s.n_turns);
        bool shared = by.shared;
        if (shared && by.first == i) work_feed(c, context, 0, &w);
        if (!shared && a->aware != AWARE_EACH) work_feed(c, context, 0, &w);
        for (int t = 0; t < s->s.n_turns; t++) {
            const TurnIds *ids = &s->turn[t];
            double n = (double)(t && a->mode == MULTI_TURN ? ids->answer.n + ids->next.n
                                                           : ids->first.n);
            if (!shared && a->aware == AWARE_EACH) work_feed(c, context, 0, &w);
            work_feed(c, n, pos, &w);
            work_steps(c, part_max_new(&r->b, task, s->s.turns[t].part), pos + n, &w);
            if (a->mode == MULTI_TURN) pos += n;
        }
    }
    return w;
}

// seconds a unit of work takes: one short feed and some steps
static int probe(Run *r, const Session *s, double *per_flop, double *per_byte, Err *err) {
    enum { FEED = 256, STEPS = 4 };
    Method full;
    Work feed = { 0, 0 }, steps = { 0, 0 };
    int n = (int)s->context.n < FEED ? (int)s->context.n : FEED;
    if (method_find("full", &full, err) || method_resolve(&full, PRESET_SCBENCH, n, 0, -1, err))
        return -1;
    Branch *b = branch_open(r->b.model, NULL, &full, STEPS, err);
    if (!b) return -1;
    double t = now_s();
    int rc = branch_feed(b, s->context.p, n, FEED_FIRST, err);
    work_feed(&r->config, n, 0, &feed);
    *per_flop = (now_s() - t) / feed.flops;
    t = now_s();
    for (int i = 0; !rc && i < STEPS; i++) rc = branch_step(b, s->context.p[0], err);
    work_steps(&r->config, STEPS, n, &steps);
    *per_byte = (now_s() - t) / steps.bytes;
    branch_drop(b);
    return rc;
}

static void put_time(char out[32], double s) {
    if (s < 90) snprintf(out, 32, "%.0f s", s);
    else if (s < 5400) snprintf(out, 32, "%.0f min", s / 60);
    else snprintf(out, 32, "%.1f h", s / 3600);
}

static bool is_done(const Run *r, const bool *done, int most, int k, int i) {
    return done[k * most + i] || !r->tasks[k].sessions[i].s.n_turns;
}

// estimates into r->left; says them before a run of several tasks
static int estimate(Run *r, const bool *done, int most, double *cost, Err *err) {
    double per_flop = 1e-11, per_byte = 1e-10;
    bool probed = false;
    int sessions = 0;
    for (int k = 0; k < r->n_tasks; k++)
        for (int i = 0; i < r->tasks[k].n_sessions; i++) {
            const Session *s = &r->tasks[k].sessions[i];
            if (is_done(r, done, most, k, i)) continue;
            if (!probed && r->n_tasks > 1 && !r->o.quiet &&
                probe(r, s, &per_flop, &per_byte, err))
                return -1;
            probed = true;
            Work w = session_work(r, r->tasks[k].task, s);
            cost[k * most + i] = w.flops * per_flop + w.bytes * per_byte;
            r->left += cost[k * most + i];
            sessions++;
        }
    char text[32];
    put_time(text, r->left);
    if (r->n_tasks > 1 && !r->o.quiet && sessions)
        fprintf(stderr, "%d sessions of %d tasks in %d ways: %s if every answer is as long as it "
                "may be\n", sessions, r->n_tasks, r->b.n_arms, text);
    return 0;
}

static bool on_progress(void *user, double share) {
    Run *r = (Run *)user;
    progress_update(&r->b.progress, share * r->b.progress.total);
    return interrupted();
}

static int run_sessions(Run *r, const bool *done, int most, Err *err) {
    double *cost = (double *)calloc((size_t)(r->n_tasks * most) + 1, sizeof *cost), started;
    int rc = estimate(r, done, most, cost, err);
    model_set_progress(r->b.model, on_progress, r);
    if (r->b.encoder) lingua_set_progress(r->b.encoder, on_progress, r);
    started = now_s();
    for (int at = 0; !rc && at < r->n_tasks * most; at++) {
        TaskRun *k = &r->tasks[at / most];
        if (at % most >= k->n_sessions || is_done(r, done, most, at / most, at % most)) continue;
        Session *s = &k->sessions[at % most];
        r->b.sessions = k->n_sessions;
        double t = now_s();
        int ctx = k->ctx ? k->ctx : session_first(s);
        rc = interrupted() ? FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted")
                           : bench_session(&r->b, k->task, s, ctx, err);
        r->done += cost[at];
        r->left -= cost[at];
        char left[32];
        put_time(left, (now_s() - started) * r->left / r->done);
        if (!rc && !r->o.quiet)
            fprintf(stderr, "session %d/%d of %s: %.1f s, about %s left\n", s->s.number,
                    k->n_sessions, k->task->name, now_s() - t, left);
    }
    free(cost);
    if (r->b.encoder && !r->o.quiet)
        fprintf(stderr, "llmlingua2: %d contexts compressed in %.1f s, %d read from %s\n",
                r->b.n_compressed, r->b.compress_s, r->b.n_read, r->b.compressed);
    return rc;
}

// done (tasks, most): sessions whose rows are all there
static int resume_find(const Run *r, const char *dir, bool *done, int most, Err *err) {
    const char *tasks[MAX_TASKS];
    int *rows = (int *)calloc((size_t)(r->n_tasks * most), sizeof *rows);
    for (int k = 0; k < r->n_tasks; k++) {
        tasks[k] = r->tasks[k].task->name;
        for (int i = 0; i < r->tasks[k].n_sessions; i++)
            rows[k * most + i] = r->tasks[k].sessions[i].s.n_turns * r->b.n_arms;
    }
    int rc = report_resume(dir, tasks, r->n_tasks, most, rows, done, err);
    free(rows);
    return rc;
}

static int run_in_dir(Run *r, const char *dir, Err *err) {
    int most = r->b.sessions;
    bool *done = (bool *)calloc((size_t)(r->n_tasks * most), sizeof *done);
    char *manifest = manifest_text(r);
    int rc = report_begin(dir, manifest, r->o.resume, err);
    if (!rc && r->o.resume) rc = resume_find(r, dir, done, most, err);
    if (!rc && !(r->b.rows = open_in(dir, "results.jsonl", err))) rc = -1;
    if (!rc && r->o.dump_prompts && !(r->b.prompts = open_in(dir, "prompts.jsonl", err))) rc = -1;
    if (!rc) {
        rc = run_sessions(r, done, most, err);
        if (rc && err->code == EXIT_INTERRUPTED)
            FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted; finished sessions are in %s, go on with "
                      "the same options and --out %s --resume", dir, r->o.out ? r->o.out : dir);
    }
    if (!rc) rc = report_end(dir, err);
    if (r->b.rows) fclose(r->b.rows);
    if (r->b.prompts) fclose(r->b.prompts);
    const ReportOpts tables = { NULL, NULL, 0 };
    if (!rc) rc = report_print(stdout, &dir, 1, &tables, err);
    if (!rc) printf("rows: %s/results.jsonl\n", dir);
    if (!rc && r->b.failures)
        rc = FAIL(err, "%d arm%s failed, the first with: %s", r->b.failures,
                  r->b.failures == 1 ? "" : "s", r->b.first_failure);
    free(manifest);
    free(done);
    return rc;
}

static void run_free(Run *r) {
    for (int k = 0; k < r->n_tasks; k++) {
        for (int i = 0; i < r->tasks[k].n_sessions; i++) session_free(&r->tasks[k].sessions[i]);
        free(r->tasks[k].sessions);
    }
    for (int i = 0; i < r->b.n_arms; i++) pattern_close(r->b.arms[i].method.pattern);
    free(r->b.arms);
    free(r->o.set.p);
    free(r->plain.ids[CHAT_PREFIX].p);
    if (r->b.model) model_close(r->b.model);
    lingua_close(r->b.encoder);
    if (r->encoder.p) file_close(&r->encoder);
    if (r->tok) tok_close(r->tok);
    if (r->file.p) file_close(&r->file);
}

// the run's directory: a shard's lies in that of all
static int run_dir(const Run *r, const char *model, StrBuf *dir, Err *err) {
    char name[64], date[24];
    path_stem(model, name, sizeof name);
    stamp(date, "%Y%m%d-%H%M%S");
    if (r->o.out) str_puts(dir, r->o.out);
    else str_fmt(dir, "out/%s-%.64s-%s", name, r->o.method, date);
    for (char *c = dir->p; !r->o.out && *c; c++) *c = *c == ',' ? '+' : *c;
    if (r->o.shard) str_fmt(dir, "/shard-%d", r->shard + 1);
    if (r->o.resume && !r->o.out) return FAIL_CODE(err, EXIT_USAGE, "--resume needs --out DIR");
    if (!r->o.resume && access(dir->p, F_OK) == 0)
        return FAIL(err, "%s exists; choose another --out, or go on with that run by --resume",
                    dir->p);
    return 0;
}

static int cmd_run(Run *r, const char *model, Err *err) {
    StrBuf dir = { 0 };
    int rc = run_prepare(r, model, err);
    if (rc || r->o.plan) return rc;
    rc = run_dir(r, model, &dir, err);
    if (!rc && r->o.save_context && mkdir(r->o.save_context, 0755) && errno != EEXIST)
        rc = FAIL(err, "--save-context %s cannot be made: %s", r->o.save_context, strerror(errno));
    size_t room = sizeof r->b.compressed;
    if (!rc && snprintf(r->b.compressed, room, "%s/compressed", r->o.save_context
                        ? r->o.save_context : dir.p) >= (int)room)
        rc = FAIL(err, "%s: this path is too long", dir.p);
    ModelOpts opts = { r->o.chunk, r->o.stream, r->b.norm_groups, r->config.device,
                       r->config.offload, r->config.gpus };
    if (!rc && !(r->b.model = model_open(&r->file, &opts, err))) rc = -1;
    if (!rc) rc = file_all_used(&r->file, err);
    if (!rc) {
        interrupt_install();
        rc = run_in_dir(r, dir.p, err);
    }
    free(dir.p);
    return rc;
}

// ---------------------------------------------------------------------------
// The plan without a run, and main

static int cmd_plan(Run *r, const StrList *pos, Err *err) {
    int64_t n;
    if (!r->o.ctx) return FAIL_CODE(err, EXIT_USAGE, "scbench plan needs --ctx TOKENS");
    if (parse_int("--ctx", r->o.ctx, 1, INT_MAX / 2, &n, err)) return -1;
    if (arms_resolve(r, err) || switches_resolve(r, err)) return -1;
    if (cpu_init(r->o.threads, err) ||
        config_of(r->o.shape, pos, false, &r->file, &r->config, err) || arms_patterns(r, err))
        return -1;
    r->config.stream = r->o.stream;
    PlanLine *lines = (PlanLine *)calloc((size_t)r->b.n_arms, sizeof *lines);
    int rc = 0, ctx = (int)n, n_lines = 0;
    for (int i = 0; !rc && i < r->b.n_arms; i++) {
        PlanLine *line = &lines[n_lines];
        Method m;
        if (r->b.arms[i].follows >= 0) continue;
        if ((rc = arm_method(&r->b, &r->b.arms[i], ctx, &m, err))) break;
        snprintf(line->label, sizeof line->label, method_budget(&m) ? "%s %d" : "%s", m.name,
                 method_budget(&m));
        int seen = (int)ceil(method_prompt_rate(&m, ctx) * ctx);
        line->plan = plan_run(&r->config, &m, seen, seen, r->o.max_new, false, -1, r->o.chunk);
        n_lines++;
    }
    if (!rc) plan_print(stdout, &r->config, lines, n_lines, ctx);
    if (!rc) plan_seconds(stdout, &r->config, ctx);
    free(lines);
    return rc;
}

static const struct Command {   // what a run and its plan have in common
    const char *name, *usage;
    const OptSpec *opts;
    int n_opts;
} run_command = { "", "MODEL.bin [options]", run_opts, COUNTOF(run_opts) },
  plan_command = { "plan ", "MODEL.bin | --shape NAME, --ctx TOKENS [options]", plan_opts,
                   COUNTOF(plan_opts) };

static const struct {           // commands with a table of options of their own
    const char *name, *usage;
    int (*run)(int argc, char **argv, Err *err);
} programs[] = {
    { "list", "[tasks|methods|shapes]", list_command },
    { "gen", "--tokenizer FILE.bin --out FILE.jsonl [options]", gen_command },
    { "speed", "MODEL.bin | --shape NAME [options]", speed_command },
    { "score", "--task TASK PREDICTIONS.jsonl [options]", score_command },
    { "report", "DIR... [options]", report_command },
    { "compress", "ENCODER.bin --text FILE [options]", lingua_command },
    { "probe", "MODEL.bin --what W --out FILE.csv [options]", probe_command },
    { "search", "MODEL.bin --out PATTERN.json [options]", search_command },
};

static void print_help(const struct Command *c) {
    if (c == &plan_command) printf("usage: scbench %s%s\n\n", c->name, c->usage);
    else {
        puts("scbench: how much does a long-context method lose when the KV cache is reused?\n");
        printf("usage: scbench %s\n", c->usage);
        printf("       scbench %s%s\n", plan_command.name, plan_command.usage);
        for (size_t i = 0; i < COUNTOF(programs); i++)
            printf("       scbench %s %s\n", programs[i].name, programs[i].usage);
        puts("");
    }
    opts_help(stdout, c->opts, c->n_opts);
}

static int run_or_plan(const struct Command *c, int argc, char **argv, Err *err) {
    Run run;
    StrList pos;
    memset(&run, 0, sizeof run);
    bool plan = c == &plan_command;
    int rc = opts_parse(c->opts, c->n_opts, argc, argv, &run.o, &pos, err);
    if (!rc && (run.o.help || (argc == 1 && !plan))) print_help(c);
    else if (!rc && (plan ? pos.n > 1 : pos.n != 1))
        rc = FAIL_CODE(err, EXIT_USAGE, "usage: scbench %s%s; see --help", c->name, c->usage);
    else if (!rc) rc = plan ? cmd_plan(&run, &pos, err) : cmd_run(&run, pos.p[0], err);
    run_free(&run);
    free(pos.p);
    return rc;
}

int main(int argc, char **argv) {
    Err err = { "", 0 };
    const char *name = argc > 1 ? argv[1] : "";
    size_t i = 0;
    int rc;
    while (i < COUNTOF(programs) && strcmp(name, programs[i].name)) i++;
    if (i < COUNTOF(programs)) rc = programs[i].run(argc - 1, argv + 1, &err);
    else if (!strcmp(name, "plan")) rc = run_or_plan(&plan_command, argc - 1, argv + 1, &err);
    else rc = run_or_plan(&run_command, argc, argv, &err);
    if (fflush(stdout) && !rc) rc = FAIL(&err, "the output cannot be written: %s", strerror(errno));
    if (rc) fprintf(stderr, "scbench: %s\n", err.msg);
    return rc ? err.code ? err.code : EXIT_USER : 0;
}
