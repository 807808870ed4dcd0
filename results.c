// results.c - result rows of one or many runs, merged, and means with intervals over them.
#include "results.h"
#include <dirent.h>
#include <jansson.h>

enum { MAX_TURNS = 1000 };      // what a run takes

const char *const mode_names[MODES] = { "multi-turn", "multi-request", "single" };
const char *const category_names[CATEGORIES] = { "Retr.String", "Retr.Semantic", "Global",
                                                 "Multi-task", "Single-Doc", "Multi-Doc", "Summary",
                                                 "Few-shot", "Synthetic", "Code", "Other" };
const char *const field_names[FIELDS] = {
    "model", "ctx", "preset", "method", "sizes", "positions", "compress", "group", "chat",
    "scorer", "history", "query_aware",
};
// a column only where one method was run with several values
static const bool per_method[FIELDS] = { [F_SIZES] = true, [F_POSITIONS] = true,
                                         [F_COMPRESS] = true, [F_GROUP] = true };

static const Column columns[] = {
    { "retr_kv", "Retr.KV", STRING },      { "retr_ps", "Retr.PS", STRING },
    { "retr_mh", "Retr.MH", STRING },      { "repoqa", "RepoQA", SEMANTIC },
    { "en_qa", "En.QA", SEMANTIC },        { "zh_qa", "Zh.QA", SEMANTIC },
    { "en_mc", "En.MC", SEMANTIC },        { "icl", "ICL", GLOBAL },
    { "en_sum", "En.Sum", GLOBAL },        { "math_find", "Math.Find", GLOBAL },
    { "mix_sum_niah", "Mix.Sum+NIAH", MULTI }, { "mix_repoqa_kv", "Mix.RepoQA+KV", MULTI },
    { "longbench/narrativeqa", "1-1", LB_SINGLE }, { "longbench/qasper", "1-2", LB_SINGLE },
    { "longbench/multifieldqa_en", "1-3", LB_SINGLE },
    { "longbench/multifieldqa_zh", "1-4", LB_SINGLE }, { "longbench/hotpotqa", "2-1", LB_MULTI },
    { "longbench/2wikimqa", "2-2", LB_MULTI },      { "longbench/musique", "2-3", LB_MULTI },
    { "longbench/dureader", "2-4", LB_MULTI },      { "longbench/gov_report", "3-1", LB_SUMMARY },
    { "longbench/qmsum", "3-2", LB_SUMMARY },       { "longbench/multi_news", "3-3", LB_SUMMARY },
    { "longbench/vcsum", "3-4", LB_SUMMARY },       { "longbench/trec", "4-1", LB_SHOTS },
    { "longbench/triviaqa", "4-2", LB_SHOTS },      { "longbench/samsum", "4-3", LB_SHOTS },
    { "longbench/lsht", "4-4", LB_SHOTS }, { "longbench/passage_count", "5-1", LB_SYNTHETIC },
    { "longbench/passage_retrieval_en", "5-2", LB_SYNTHETIC },
    { "longbench/passage_retrieval_zh", "5-3", LB_SYNTHETIC },
    { "longbench/lcc", "6-1", LB_PROGRAM },         { "longbench/repobench-p", "6-2", LB_PROGRAM },
};

Cell *cell_of(const Results *d, int task, Key k) {
    return &d->cell[(task * d->n_arms + k.arm) * MODES + k.mode];
}
bool has(const Results *d, int task, Key k) { return k.arm >= 0 && cell_of(d, task, k)->n > 0; }

void results_free(Results *d) {
    for (int i = 0; i < d->n_sources; i++) {
        free(d->source[i].dir);
        free(d->source[i].path);
        free(d->source[i].model);
        free(d->source[i].ctx);
        json_decref(d->source[i].set);
    }
    for (int i = 0; i < d->n_arms; i++) {
        for (int f = 0; f < FIELDS; f++) free(d->arm[i].field[f]);
    }
    for (int i = 0; i < d->n_tasks; i++) {
        for (int k = 0; k < d->task[i].n_parts; k++) free(d->task[i].part[k]);
        free(d->task[i].part);
        free(d->task[i].name);
    }
    for (int i = 0; i < d->n_langs; i++) free(d->lang[i]);
    free(d->lang);
    free(d->source);
    free(d->arm);
    free(d->task);
    free(d->rec);
    free(d->cell);
    free(d->notes.p);
}

// ---------------------------------------------------------------------------
// Reading

static const char *get_str(const json_t *row, const char *key) {
    const char *s = json_string_value(json_object_get(row, key));
    return s ? s : "";
}
static double get_real(const json_t *row, const char *key) {
    json_t *v = json_object_get(row, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}
static int get_int(const json_t *row, const char *key) {
    return (int)json_integer_value(json_object_get(row, key));
}

static char *copy(const char *s) {
    size_t n = strlen(s) + 1;
    return (char *)memcpy(xrealloc(NULL, n), s, n);
}

static int index_of(char ***list, int *n, const char *s) {
    for (int i = 0; i < *n; i++)
        if (!strcmp((*list)[i], s)) return i;
    *list = (char **)xrealloc(*list, (size_t)(*n + 1) * sizeof **list);
    (*list)[*n] = copy(s);
    return (*n)++;
}

static int task_index(Results *d, const char *name) {
    for (int i = 0; i < d->n_tasks; i++)
        if (!strcmp(d->task[i].name, name)) return i;
    d->task = (TaskRows *)xrealloc(d->task, (size_t)(d->n_tasks + 1) * sizeof *d->task);
    TaskRows *t = &d->task[d->n_tasks];
    memset(t, 0, sizeof *t);
    t->name = copy(name);
    for (size_t i = 0; i < COUNTOF(columns); i++)
        if (!strcmp(columns[i].task, name)) t->column = &columns[i];
    return d->n_tasks++;
}

// where a mode's own switch stands, nothing tells an arm from its other modes
const char *query_default(int mode) {
    static const char *const value[MODES] = { "first", "no", "each" };
    return value[mode];
}

// What an arm's sizes come from: its label and the --set of its method, since the sizes themselves
// may differ by session; without a label the sizes.
static char *sizes_of(const Source *from, const json_t *row) {
    const char *method = get_str(row, "method");
    StrBuf b = { 0 };
    if (!*get_str(row, "arm"))
        return json_dumps(json_object_get(row, "params"), JSON_COMPACT | JSON_ENCODE_ANY);
    str_puts(&b, get_str(row, "arm"));
    for (size_t i = 0; i < json_array_size(from->set); i++) {
        const char *set = json_string_value(json_array_get(from->set, i));
        size_t n = strlen(method);
        if (set && !strncmp(set, method, n) && set[n] == '.') str_fmt(&b, " %s", set + n + 1);
    }
    return b.p;
}

static int arm_index(Results *d, const json_t *row, int mode) {
    const Source *from = &d->source[d->reading];
    const json_t *budget = json_object_get(json_object_get(row, "params"), "budget");
    char ctx[24], *sizes = sizes_of(from, row);
    const char *history = get_str(row, "history"), *query = get_str(row, "query_aware");
    snprintf(ctx, sizeof ctx, "%d", get_int(row, "ctx"));
    const char *f[FIELDS] = {
        [F_MODEL] = from->model, [F_CTX] = from->ctx ? from->ctx : ctx,
        [F_PRESET] = get_str(row, "preset"), [F_METHOD] = get_str(row, "method"),
        [F_SIZES] = sizes ? sizes : "", [F_POSITIONS] = get_str(row, "positions"),
        [F_COMPRESS] = get_str(row, "compress"), [F_GROUP] = get_str(row, "group"),
        [F_CHAT] = json_is_true(json_object_get(row, "chat")) ? "yes" : "no",
        [F_SCORER] = get_str(row, "scorer"),
        [F_HISTORY] = !strcmp(history, "golden") ? "" : history,
        [F_QUERY] = !strcmp(query, query_default(mode)) ? "" : query,
    };
    int64_t rows = json_is_integer(budget) ? (int64_t)json_integer_value(budget) : -1;
    int at = 0, same = 0;
    for (; at < d->n_arms; at++) {
        for (same = 0; same < FIELDS && !strcmp(d->arm[at].field[same], f[same]);) same++;
        if (same == FIELDS) break;
    }
    if (at == d->n_arms) {
        d->arm = (ArmRows *)xrealloc(d->arm, (size_t)(d->n_arms + 1) * sizeof *d->arm);
        ArmRows *a = &d->arm[d->n_arms++];
        for (int i = 0; i < FIELDS; i++) a->field[i] = copy(f[i]);
        a->budget_lo = a->budget_hi = rows;
        a->base = -1;
    }
    ArmRows *a = &d->arm[at];
    if (rows < a->budget_lo) a->budget_lo = rows;
    if (rows > a->budget_hi) a->budget_hi = rows;
    free(sizes);
    return at;
}

static int part_index(TaskRows *t, const char *name) {
    for (int i = 0; i < t->n_parts; i++)
        if (!strcmp(t->part[i], name)) return i;
    return index_of(&t->part, &t->n_parts, name);
}

static double real_or_0(const json_t *row, const char *key) {
    double v = get_real(row, key);
    return isnan(v) ? 0 : v;
}

static int read_row(void *user, const RowLine *l, Err *err) {
    Results *d = (Results *)user;
    int mode = 0;
    while (mode < MODES && strcmp(mode_names[mode], get_str(l->row, "mode"))) mode++;
    if (mode == MODES)
        return FAIL(err, "%s: line %d has the unknown mode '%.60s'", d->source[d->reading].path,
                    l->line, get_str(l->row, "mode"));
    if (get_int(l->row, "turn") > MAX_TURNS)
        return FAIL(err, "%s: line %d is turn %d; sessions have at most %d",
                    d->source[d->reading].path, l->line, get_int(l->row, "turn"), MAX_TURNS);
    if (d->n == d->cap) {
        d->cap = d->cap ? 2 * d->cap : 256;
        d->rec = (Rec *)xrealloc(d->rec, d->cap * sizeof *d->rec);
    }
    Rec *r = &d->rec[d->n++];
    double shared = get_real(l->row, "shared_prefill_s"), prefill = get_real(l->row, "prefill_s");
    r->task = task_index(d, get_str(l->row, "task"));
    TaskRows *t = &d->task[r->task];
    r->arm = arm_index(d, l->row, mode);
    r->mode = mode;
    r->session = get_int(l->row, "session");
    r->turn = get_int(l->row, "turn");
    r->part = part_index(t, get_str(l->row, "part"));
    const char *lang = get_str(l->row, "lang");
    r->lang = *lang ? index_of(&d->lang, &d->n_langs, lang) : -1;
    r->source = d->reading;
    r->line = l->line;
    r->turns = get_int(l->row, "turns");
    r->at = l->at;
    r->seed = json_integer_value(json_object_get(l->row, "seed"));
    r->score = get_real(l->row, "score");
    r->depth = get_real(l->row, "depth");
    r->rows = get_real(l->row, "rows_mean_q");
    r->tokens = get_real(l->row, "n_prompt");
    r->live = get_real(l->row, "kv_live_bytes_q");
    r->alloc = get_real(l->row, "kv_alloc_bytes_q");
    r->prefill = (isnan(prefill) ? 0 : prefill) + (isnan(shared) ? 0 : shared);
    r->tok_s = get_real(l->row, "decode_tok_s");
    r->steps = real_or_0(l->row, "decode_s");
    r->policy = real_or_0(l->row, "policy_s");
    r->shared_policy = real_or_0(l->row, "shared_policy_s");
    r->context = (isnan(shared) ? 0 : shared) - real_or_0(l->row, "root_s");
    r->feeds = r->prefill - r->context;
    r->similarity = get_real(l->row, "similarity");
    r->matched = json_is_true(json_object_get(l->row, "matched"));
    r->before = get_real(l->row, "tokens_before");
    r->after = get_real(l->row, "tokens_after");
    r->compress = get_real(l->row, "compress_s");
    const json_t *kept = json_object_get(l->row, "gold_kept");
    r->kept = json_is_boolean(kept) ? json_is_true(kept) : -1;
    r->failed = json_is_string(json_object_get(l->row, "error"));
    if (r->turn > t->turns) t->turns = r->turn;
    if (!isnan(r->similarity)) t->similarity = true;
    return 0;
}

// the directory's own rows and those of its shards, each with what its manifest says
static void source_add(Results *d, const char *dir) {
    StrBuf path = { 0 };
    d->source = (Source *)xrealloc(d->source, (size_t)(d->n_sources + 1) * sizeof *d->source);
    Source *s = &d->source[d->n_sources++];
    memset(s, 0, sizeof *s);
    str_fmt(&path, "%s/manifest.json", dir);
    json_t *m = json_load_file(path.p, 0, NULL);
    const json_t *model = json_object_get(m, "model");
    const json_t *ctx = json_object_get(json_object_get(m, "options"), "ctx");
    const char *name = get_str(model, "path"), *slash = strrchr(name, '/');
    s->dir = copy(dir);
    s->model = copy(slash ? slash + 1 : name);
    char *dot = strrchr(s->model, '.');
    if (dot && !strcmp(dot, ".bin")) *dot = 0;
    if (*get_str(model, "hash")) {      // two files of one name are two models
        char *full = (char *)xrealloc(s->model, strlen(s->model) + 24);
        sprintf(full + strlen(full), "\n%.16s", get_str(model, "hash"));
        s->model = full;
    }
    if (json_is_string(ctx)) s->ctx = copy(json_string_value(ctx));
    s->set = json_incref(json_object_get(json_object_get(m, "options"), "set"));
    path.n = 0;
    str_fmt(&path, "%s/results.jsonl", dir);
    s->path = path.p;
    json_decref(m);
}

// the hash behind a model's name goes where the name alone tells the models apart
static void sources_name(Results *d) {
    bool *twice = (bool *)calloc((size_t)d->n_sources + 1, sizeof *twice);
    for (int i = 0; i < d->n_sources; i++) {
        const char *name = d->source[i].model;
        size_t n = strcspn(name, "\n");
        for (int k = 0; k < d->n_sources; k++) {
            const char *other = d->source[k].model;
            bool same = strcspn(other, "\n") == n && !strncmp(other, name, n);
            twice[i] = twice[i] || (same && strcmp(other, name));
        }
    }
    for (int i = 0; i < d->n_sources; i++) {
        char *hash = strchr(d->source[i].model, '\n');
        if (!hash) continue;
        if (strlen(hash) > 7) hash[7] = 0;
        *hash = twice[i] ? ' ' : 0;
    }
    free(twice);
}

static int is_shard(const struct dirent *e) { return !strncmp(e->d_name, "shard-", 6); }

static int sources_of(Results *d, const char *dir, Err *err) {
    StrBuf path = { 0 };
    struct dirent **shard = NULL;
    int first = d->n_sources, rc = 0, n = scandir(dir, &shard, is_shard, versionsort);
    if (n < 0) return FAIL(err, "%s: cannot be read: %s", dir, strerror(errno));
    str_fmt(&path, "%s/results.jsonl", dir);
    if (access(path.p, F_OK) == 0) source_add(d, dir);
    for (int i = 0; i < n; i++) {
        path.n = 0;
        str_fmt(&path, "%s/%s/results.jsonl", dir, shard[i]->d_name);
        if (!rc && access(path.p, F_OK) == 0) {
            path.n -= strlen("/results.jsonl");
            path.p[path.n] = 0;
            if (d->n_sources > first)
                rc = report_same_run(d->source[first].dir, path.p, err);
            source_add(d, path.p);
        }
        free(shard[i]);
    }
    if (!rc && d->n_sources == first)
        rc = FAIL(err, "%s: holds neither results.jsonl nor shard-*/results.jsonl; give the --out "
                  "directory of a run", dir);
    free(shard);
    free(path.p);
    return rc;
}

int rec_order(const void *x, const void *y) {
    const Rec *a = (const Rec *)x, *b = (const Rec *)y;
    int ka[] = { a->task, a->arm, a->mode, a->session, a->turn, a->source, a->line };
    int kb[] = { b->task, b->arm, b->mode, b->session, b->turn, b->source, b->line };
    for (size_t i = 0; i < COUNTOF(ka); i++)
        if (ka[i] != kb[i]) return ka[i] < kb[i] ? -1 : 1;
    return 0;
}

typedef struct { int task, session; int64_t seed; } SessionId;
static int session_order(const void *x, const void *y) {
    const SessionId *a = (const SessionId *)x, *b = (const SessionId *)y;
    if (a->task != b->task) return a->task < b->task ? -1 : 1;
    if (a->seed != b->seed) return a->seed < b->seed ? -1 : 1;
    return (a->session > b->session) - (a->session < b->session);
}

// a session is (task, seed, number): its place among the task's sessions replaces the number
static void sessions_number(Results *d) {
    SessionId *id = (SessionId *)xrealloc(NULL, (d->n + 1) * sizeof *id);
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++)
        id[i] = (SessionId){ d->rec[i].task, d->rec[i].session, d->rec[i].seed };
    qsort(id, d->n, sizeof *id, session_order);
    for (size_t i = 0; i < d->n; i++)
        if (!n || session_order(&id[n - 1], &id[i])) id[n++] = id[i];
    for (size_t i = 0; i < d->n; i++) {
        Rec *r = &d->rec[i];
        SessionId want = { r->task, r->session, r->seed };
        const SessionId *at = (const SessionId *)bsearch(&want, id, n, sizeof *id, session_order);
        size_t first = (size_t)(at - id), head = first;
        while (head && id[head - 1].task == r->task) head--;
        r->session = (int)(first - head);
        if (r->session >= d->task[r->task].n_sessions) d->task[r->task].n_sessions = r->session + 1;
    }
    free(id);
}

// task numbers follow the paper's columns, then the order of appearance
static void tasks_sort(Results *d) {
    int *to = (int *)xrealloc(NULL, (size_t)(d->n_tasks + 1) * sizeof *to), next = 0;
    TaskRows *sorted = (TaskRows *)xrealloc(NULL, (size_t)(d->n_tasks + 1) * sizeof *sorted);
    for (size_t c = 0; c <= COUNTOF(columns); c++)
        for (int t = 0; t < d->n_tasks; t++)
            if (c < COUNTOF(columns) ? d->task[t].column == &columns[c] : !d->task[t].column) {
                to[t] = next;
                sorted[next++] = d->task[t];
            }
    for (size_t i = 0; i < d->n; i++) d->rec[i].task = to[d->rec[i].task];
    free(d->task);
    free(to);
    d->task = sorted;
}

static int duplicates(const Results *d, Err *err) {
    for (size_t i = 1; i < d->n; i++) {
        const Rec *a = &d->rec[i - 1], *b = &d->rec[i];
        if (a->task != b->task || a->arm != b->arm || a->mode != b->mode ||
            a->session != b->session || a->turn != b->turn) continue;
        return FAIL(err, "%s line %d and %s line %d are the same turn (%s, %s, %s, turn %d): "
                    "report one of the runs (--no-baselines keeps full and keep-last out of a run)",
                    d->source[a->source].path, a->line, d->source[b->source].path, b->line,
                    d->task[a->task].name, d->arm[a->arm].field[F_METHOD], mode_names[a->mode],
                    a->turn);
    }
    return 0;
}

// Sessions of which an arm has not every turn count in none of its means. Those are cut out of the
// sorted rows; the rest is what the cells name.
static void sessions_complete(Results *d) {
    size_t kept = 0;
    int failed = 0, unfinished = 0;
    for (size_t i = 0, end; i < d->n; i = end) {
        const Rec *a = &d->rec[i];
        int turns = a->turns > 0 ? a->turns : d->task[a->task].turns;
        bool bad = false;
        for (end = i; end < d->n; end++) {
            const Rec *b = &d->rec[end];
            if (b->task != a->task || b->arm != a->arm || b->mode != a->mode ||
                b->session != a->session) break;
            bad = bad || b->failed;
        }
        if (bad) failed++;
        else if ((int)(end - i) < turns) unfinished++;
        else {
            memmove(&d->rec[kept], &d->rec[i], (end - i) * sizeof *d->rec);
            kept += end - i;
        }
    }
    d->n = kept;
    if (failed)
        str_fmt(&d->notes, "%d session%s with a failed turn count%s in no mean: see the rows' "
                "error field\n", failed, failed == 1 ? "" : "s", failed == 1 ? "s" : "");
    if (unfinished)
        str_fmt(&d->notes, "%d unfinished session%s left out\n", unfinished,
                unfinished == 1 ? " is" : "s are");
}

static void cells_fill(Results *d) {
    size_t n = (size_t)d->n_tasks * (size_t)d->n_arms * MODES;
    d->cell = (Cell *)calloc(n ? n : 1, sizeof *d->cell);
    for (size_t i = 0; i < d->n; i++) {
        Cell *c = cell_of(d, d->rec[i].task, (Key){ d->rec[i].arm, d->rec[i].mode });
        if (!c->n++) c->from = i;
    }
}

// The arm of method full that differs from arm a in nothing but the method; where a was run with a
// switch that full was not, full without it.
static int base_of(const Results *d, int a) {
    static const int must[] = { F_MODEL, F_CTX, F_PRESET, F_CHAT, F_SCORER };
    static const int should[] = { F_HISTORY, F_QUERY };
    int best = -1, best_same = -1;
    if (!strcmp(d->arm[a].field[F_METHOD], "full")) return -1;
    for (int i = 0; i < d->n_arms; i++) {
        bool fits = !strcmp(d->arm[i].field[F_METHOD], "full");
        int same = 0;
        for (size_t k = 0; k < COUNTOF(must); k++)
            fits = fits && !strcmp(d->arm[i].field[must[k]], d->arm[a].field[must[k]]);
        for (size_t k = 0; k < COUNTOF(should); k++)
            same += !strcmp(d->arm[i].field[should[k]], d->arm[a].field[should[k]]);
        if (fits && same > best_same) best = i, best_same = same;
    }
    return best;
}

static void arms_compare(Results *d) {
    for (int i = 0; i < d->n_arms; i++) {
        d->arm[i].base = base_of(d, i);
        if (d->arm[i].budget_lo != d->arm[i].budget_hi) d->shown[F_SIZES] = true;
        for (int k = 0; k < i; k++) {
            bool method = !strcmp(d->arm[i].field[F_METHOD], d->arm[k].field[F_METHOD]);
            bool budget = d->arm[i].budget_lo == d->arm[k].budget_lo &&
                          d->arm[i].budget_hi == d->arm[k].budget_hi;
            for (int f = 0; f < FIELDS; f++) {
                if (per_method[f] && !method) continue;
                if (f == F_SIZES && !budget) continue;          // its own column tells them apart
                if (strcmp(d->arm[i].field[f], d->arm[k].field[f])) d->shown[f] = true;
            }
        }
    }
    d->shown[F_METHOD] = true;
}

int results_read(Results *d, const char *const *dirs, int n_dirs, Err *err) {
    int rc = 0;
    memset(d, 0, sizeof *d);
    str_puts(&d->notes, "");
    for (int i = 0; !rc && i < n_dirs; i++) rc = sources_of(d, dirs[i], err);
    sources_name(d);
    for (int i = 0; !rc && i < d->n_sources; i++) {
        bool torn = false;
        d->reading = i;
        rc = rows_each(d->source[i].path, read_row, d, &torn, err);
        if (!rc && torn)
            str_fmt(&d->notes, "%s: the last line is torn and was left out\n", d->source[i].path);
    }
    if (!rc && d->n == 0) rc = FAIL(err, "%s: holds no whole row yet", d->source[0].path);
    if (rc) return rc;
    tasks_sort(d);
    sessions_number(d);
    qsort(d->rec, d->n, sizeof *d->rec, rec_order);
    if (duplicates(d, err)) return -1;
    sessions_complete(d);
    cells_fill(d);
    arms_compare(d);
    return 0;
}

// ---------------------------------------------------------------------------
// Means and intervals

typedef struct {                // the sessions a mean is drawn from
    int n, *session;
    uint16_t *times;            // (SAMPLES, n): how often resample b holds session i
} Draw;

static const Stat no_stat = { NAN, NULL, 0, 0 };
static void stat_free(Stat *s) { free(s->boot); }
void pair_free(Pair *p) {
    stat_free(&p->score);
    stat_free(&p->diff);
}

static bool session_in(const Results *d, const Cell *c, int session) {
    size_t lo = c->from, hi = c->from + c->n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (d->rec[mid].session < session) lo = mid + 1;
        else hi = mid;
    }
    return lo < c->from + c->n && d->rec[lo].session == session;
}

// the sessions of a, and of b where b is given
static Draw draw_make(const Results *d, int task, const Cell *a, const Cell *b) {
    Draw w = { 0, (int *)xrealloc(NULL, (a->n + 1) * sizeof(int)), NULL };
    Rng rng = { 1 };
    for (const char *c = d->task[task].name; *c; c++) rng.s = mix64(rng.s ^ (uint8_t)*c);
    for (size_t i = a->from; i < a->from + a->n; i++) {
        int s = d->rec[i].session;
        if ((!w.n || w.session[w.n - 1] != s) && (!b || session_in(d, b, s))) w.session[w.n++] = s;
    }
    if (w.n < MIN_SESSIONS) return w;
    w.times = (uint16_t *)calloc((size_t)SAMPLES * (size_t)w.n, sizeof *w.times);
    for (int b2 = 0; b2 < SAMPLES; b2++)
        for (int i = 0; i < w.n; i++)
            w.times[(size_t)b2 * (size_t)w.n + rng_below(&rng, (uint64_t)w.n)]++;
    return w;
}
static void draw_free(Draw *w) {
    free(w->session);
    free(w->times);
}

static int bin_of(double depth) {
    if (isnan(depth)) return -1;
    return depth <= 0 ? 0 : depth >= 1 ? BINS - 1 : (int)(depth * BINS);
}

// repoqa at another threshold; the best match of an empty answer is none at all
static double value_of(const Rec *r, const Pick *p) {
    if ((p->part >= 0 && r->part != p->part) || (p->turn >= 0 && r->turn != p->turn) ||
        (p->bin >= 0 && bin_of(r->depth) != p->bin) || (p->lang >= 0 && r->lang != p->lang))
        return NAN;
    if (p->kept == ANSWER_SHARE) return r->kept < 0 ? NAN : r->kept;
    if (p->kept >= 0 && r->kept != p->kept) return NAN;
    if (isnan(p->threshold)) return r->score;
    return isnan(r->similarity) ? NAN : r->matched && r->similarity >= p->threshold;
}

// mean over all picked rows of the drawn sessions
static Stat pool(const Results *d, const Cell *c, const Draw *w, Pick pick) {
    Stat s = no_stat;
    double *sum = (double *)calloc((size_t)w->n + 1, sizeof *sum), total = 0;
    double *count = (double *)calloc((size_t)w->n + 1, sizeof *count);
    int k = 0;
    for (size_t i = c->from; i < c->from + c->n; i++) {
        const Rec *r = &d->rec[i];
        while (k < w->n && w->session[k] < r->session) k++;
        if (k == w->n) break;
        double v = value_of(r, &pick);
        if (w->session[k] != r->session || isnan(v)) continue;
        s.sessions += count[k] == 0;
        s.n++;
        sum[k] += v;
        count[k]++;
        total += v;
    }
    if (s.n) s.at = total / s.n;
    if (s.n && w->times) {
        s.boot = (double *)xrealloc(NULL, SAMPLES * sizeof *s.boot);
        for (int b = 0; b < SAMPLES; b++) {
            const uint16_t *times = w->times + (size_t)b * (size_t)w->n;
            double num = 0, den = 0;
            for (int i = 0; i < w->n; i++) num += times[i] * sum[i], den += times[i] * count[i];
            s.boot[b] = den > 0 ? num / den : NAN;
        }
    }
    free(sum);
    free(count);
    return s;
}

// mean of the means that exist; takes them
static Stat stat_mean(Stat *list, int n) {
    Stat m = no_stat;
    double sum = 0;
    int seen = 0;
    bool boot = true;
    for (int i = 0; i < n; i++) {
        if (isnan(list[i].at)) continue;
        sum += list[i].at;
        seen++;
        m.n += list[i].n;
        if (list[i].sessions > m.sessions) m.sessions = list[i].sessions;
        boot = boot && list[i].boot;
    }
    if (seen) m.at = sum / seen;
    if (seen && boot) {
        m.boot = (double *)xrealloc(NULL, SAMPLES * sizeof *m.boot);
        for (int b = 0; b < SAMPLES; b++) {
            double total = 0;
            int have = 0;
            for (int i = 0; i < n; i++)
                if (list[i].boot && !isnan(list[i].boot[b])) total += list[i].boot[b], have++;
            m.boot[b] = have ? total / have : NAN;
        }
    }
    for (int i = 0; i < n; i++) stat_free(&list[i]);
    return m;
}

// a - b of the same resamples; takes both
static Stat stat_minus(Stat a, Stat b) {
    Stat m = a;
    m.at = a.at - b.at;
    for (int i = 0; i < SAMPLES && a.boot && b.boot; i++) m.boot[i] -= b.boot[i];
    if (!b.boot) stat_free(&m), m.boot = NULL;
    stat_free(&b);
    return m;
}

static int real_order(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

// 95 %: the 2.5 and 97.5 percentiles
void interval(const Stat *s, double *lo, double *hi) {
    double sorted[SAMPLES];
    int n = 0;
    *lo = *hi = NAN;
    for (int b = 0; s->boot && b < SAMPLES; b++)
        if (!isnan(s->boot[b])) sorted[n++] = s->boot[b];
    if (!n) return;
    qsort(sorted, (size_t)n, sizeof *sorted, real_order);
    *lo = sorted[(size_t)n * 25 / 1000];
    *hi = sorted[(size_t)n * 975 / 1000 - (n * 975 / 1000 > 0)];
}

// one task, as the head of this file says
static Stat score_of(const Results *d, int task, Key k, const Draw *w, Pick pick) {
    const TaskRows *t = &d->task[task];
    const Cell *c = cell_of(d, task, k);
    bool by_turn = k.mode == MULTI_TURN && pick.turn < 0 && pick.bin < 0 && pick.lang < 0 &&
                   pick.kept < 0;
    int turns = by_turn ? t->turns : 1;
    Stat *part = (Stat *)xrealloc(NULL, (size_t)t->n_parts * sizeof *part);
    Stat *turn = (Stat *)xrealloc(NULL, (size_t)turns * sizeof *turn);
    for (int p = 0; p < t->n_parts; p++) {
        Pick here = pick;
        here.part = p;
        if (pick.part >= 0 && pick.part != p) {
            part[p] = no_stat;
            continue;
        }
        for (int i = 0; i < turns; i++) {
            if (by_turn) here.turn = i + 1;
            turn[i] = pool(d, c, w, here);
        }
        part[p] = stat_mean(turn, turns);
    }
    Stat s = stat_mean(part, t->n_parts);
    free(part);
    free(turn);
    if (s.n) s.sessions = w->n;
    return s;
}

Pair pair_of(const Results *d, int task, Key a, Key b, Pick pick) {
    Pair p = { no_stat, no_stat };
    if (!has(d, task, a)) return p;
    Draw own = draw_make(d, task, cell_of(d, task, a), NULL);
    p.score = score_of(d, task, a, &own, pick);
    draw_free(&own);
    if (!has(d, task, b)) return p;
    Draw both = draw_make(d, task, cell_of(d, task, a), cell_of(d, task, b));
    p.diff = stat_minus(score_of(d, task, a, &both, pick), score_of(d, task, b, &both, pick));
    draw_free(&both);
    return p;
}

Pair mean_over(const Results *d, Tasks l, Key a, Key b, Pick pick) {
    Pair p = { no_stat, no_stat };
    Stat *score = (Stat *)xrealloc(NULL, (size_t)(l.n + 1) * sizeof *score);
    Stat *diff = (Stat *)xrealloc(NULL, (size_t)(l.n + 1) * sizeof *diff);
    bool whole = l.n > 0, paired = true;
    for (int i = 0; i < l.n; i++) whole = whole && has(d, l.task[i], a);
    for (int i = 0; i < l.n; i++) paired = paired && has(d, l.task[i], b);
    for (int i = 0; whole && i < l.n; i++) {
        Pair one = pair_of(d, l.task[i], a, paired ? b : NOBODY, pick);
        score[i] = one.score;
        diff[i] = one.diff;
    }
    if (whole) p.score = stat_mean(score, l.n);
    if (whole) p.diff = stat_mean(diff, l.n);
    free(score);
    free(diff);
    return p;
}

int category_of(const Results *d, int task) {
    return d->task[task].column ? d->task[task].column->category : OTHER;
}

Tasks tasks_in(const Results *d, Tasks list, int category) {
    Tasks l = { 0, (int *)xrealloc(NULL, (size_t)(list.n + 1) * sizeof(int)) };
    for (int i = 0; i < list.n; i++)
        if (category_of(d, list.task[i]) == category) l.task[l.n++] = list.task[i];
    return l;
}

Pair average(const Results *d, Tasks list, Key a, Key b, Pick pick) {
    Pair p = { no_stat, no_stat };
    Stat score[CATEGORIES], diff[CATEGORIES];
    int n = 0;
    bool whole = true;
    for (int i = 0; i < list.n; i++)
        if (!has(d, list.task[i], b)) b = NOBODY;
    for (int c = 0; c < CATEGORIES; c++) {
        Tasks l = tasks_in(d, list, c);
        if (l.n) {
            Pair one = mean_over(d, l, a, b, pick);
            whole = whole && !isnan(one.score.at);
            score[n] = one.score;
            diff[n++] = one.diff;
        }
        free(l.task);
    }
    p.score = stat_mean(score, n);
    p.diff = stat_mean(diff, n);
    if (whole) return p;
    pair_free(&p);
    return (Pair){ no_stat, no_stat };
}

Tasks tasks_seen(const Results *d, int mode) {
    Tasks l = { 0, (int *)xrealloc(NULL, (size_t)(d->n_tasks + 1) * sizeof(int)) };
    for (int t = 0; t < d->n_tasks; t++) {
        bool seen = false;
        for (int a = 0; a < d->n_arms; a++) seen = seen || has(d, t, (Key){ a, mode });
        if (seen) l.task[l.n++] = t;
    }
    return l;
}
Tasks tasks_of_both(const Results *d, Key a, Key b) {
    Tasks l = { 0, (int *)xrealloc(NULL, (size_t)(d->n_tasks + 1) * sizeof(int)) };
    for (int t = 0; t < d->n_tasks; t++)
        if (has(d, t, a) && has(d, t, b)) l.task[l.n++] = t;
    return l;
}
Key base_key(const Results *d, Key k) {
    return d->arm[k.arm].base < 0 ? NOBODY : (Key){ d->arm[k.arm].base, k.mode };
}

Cost cost_of(const Results *d, Tasks list, Key k) {
    double sum[5] = { 0 }, n[5] = { 0 }, prefill = 0;
    int sessions = 0;
    for (int i = 0; i < list.n; i++) {
        const Cell *c = cell_of(d, list.task[i], k);
        for (size_t j = c->from; j < c->from + c->n; j++) {
            const Rec *r = &d->rec[j];
            double v[5] = { r->rows, r->tokens, r->live, r->alloc, r->tok_s };
            for (int f = 0; f < 5; f++)
                if (!isnan(v[f])) sum[f] += v[f], n[f]++;
            prefill += r->prefill;
            sessions += j == c->from || r->session != d->rec[j - 1].session;
        }
    }
    return (Cost){ sum[0] / n[0], sum[1] / n[1], sum[2] / n[2], sum[3] / n[3], prefill / sessions,
                   sum[4] / n[4] };
}

// an earlier row of the mode has this context: the same session and the same seconds, but for the
// digits that a sum of two loses
static bool context_counted(const Results *d, size_t at, int arm) {
    const Rec *r = &d->rec[at];
    for (size_t j = 0; j < at; j++) {
        const Rec *o = &d->rec[j];
        if (o->mode == r->mode && o->task == r->task && o->session == r->session &&
            fabs(o->context - r->context) <= 1e-6 * r->context && (arm < 0 || o->arm == arm))
            return true;
    }
    return false;
}

Seconds seconds_of(const Results *d, int arm, int mode) {
    Seconds s;
    memset(&s, 0, sizeof s);
    for (size_t i = 0; i < d->n; i++) {
        const Rec *r = &d->rec[i];
        if (r->mode != mode || (arm >= 0 && r->arm != arm)) continue;
        s.feeds += r->feeds;
        s.steps += r->steps;
        s.policy += r->policy;
        if (r->context <= 0 || context_counted(d, i, arm)) continue;
        s.contexts++;
        s.context += r->context;
        s.shared_policy += r->shared_policy;
    }
    return s;
}

int sibling(const Results *d, int a, int mode, int f, const char *value) {
    for (int i = 0; i < d->n_arms; i++) {
        bool same = !strcmp(d->arm[i].field[f], value);
        for (int k = 0; k < FIELDS; k++)
            same = same && (k == f || !strcmp(d->arm[i].field[k], d->arm[a].field[k]));
        for (int t = 0; same && t < d->n_tasks; t++)
            if (has(d, t, (Key){ i, mode })) return i;
    }
    return -1;
}
