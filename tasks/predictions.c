// predictions.c - scores for predictions that the released harness wrote.
//
// Its files, prediction_TASK_multi_turn.jsonl and prediction_TASK_scdq.jsonl, hold one object per
// record and turn: id, turn_idx, prediction, ground_truth; in mix tasks the subtask's name in task;
// where functions are looked for, lang, repo and func_name. It aggregates them like this:
//
//     multi-turn      one mean per turn_idx, as they first appear; in mix tasks one per part
//     _scdq           (multi-request) one mean over all lines; in mix tasks one per part
//     functions       an answer is compared with every function that the file asks for in its
//                     repository, so the file is read twice
//
// The score of the whole is the paper's: the mean over turn numbers, in mix tasks of each part and
// then over the parts. Two slips are kept under SCORER_HARNESS: in _scdq files of repoqa_and_kv the
// kv part is 0, and a part that a turn has no line of is reported as 0 (no mean counts it).
#include <jansson.h>
#include "longbench.h"

enum { REPO_STEPS = 11 };       // thresholds 0.0, 0.1 .. 1.0

typedef struct { double sum; int n; } Mean;
static void mean_add(Mean *m, double v) { m->sum += v, m->n++; }
static double mean_of(const Mean *m) { return m->n ? m->sum / m->n : NAN; }

typedef struct { int64_t turn; Mean part[2]; } TurnMean;
typedef struct { char *name; Mean found; } LangMean;

typedef struct {
    const Task *task;
    const char *path;
    Scorer which;
    bool requests;              // an _scdq file
    TaskSession *repos;         // one per repository: the candidates of its functions
    int n_repos;
    TurnMean *turns;
    int n_turns;
    Mean part[2];               // over all lines
    Mean step[REPO_STEPS];      // functions found at each threshold
    LangMean *langs;
    int n_langs;
    int records, malformed, first_bad;
    char first_error[256];
} Score;

typedef struct {                // one line, borrowed from its JSON
    const json_t *id;
    int64_t turn;
    int part;
    const char *prediction, *lang, *repo, *func;
    size_t prediction_len;
    const char **label;         // (n_labels); those that are numbers in text
    char **text;
    int n_labels;
} Record;

static void record_free(Record *r) {
    for (int i = 0; i < r->n_labels; i++) free(r->text[i]);
    free(r->text);
    free(r->label);
}

// ---------------------------------------------------------------------------
// Reading a line

static int label_add(Record *r, const json_t *v, Err *err) {
    char *text = NULL;
    if (!json_is_string(v) && !json_is_number(v))
        return FAIL(err, "ground_truth is neither text nor a number nor a list of them");
    text = json_is_string(v) ? text_dup(json_string_value(v))
                             : json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    size_t n = (size_t)r->n_labels + 1;
    r->text = (char **)xrealloc(r->text, n * sizeof *r->text);
    r->label = (const char **)xrealloc(r->label, n * sizeof *r->label);
    r->text[r->n_labels] = text;
    r->label[r->n_labels++] = text;
    return 0;
}

static const char *text_of(const json_t *row, const char *key) {
    return json_string_value(json_object_get(row, key));
}

static int record_fields(const Score *s, const json_t *row, Record *r, Err *err) {
    const json_t *turn = json_object_get(row, "turn_idx"), *p = json_object_get(row, "prediction");
    const json_t *gold = json_object_get(row, "ground_truth"), *v;
    const char *part = text_of(row, "task");
    size_t i;
    if (!json_is_object(row)) return FAIL(err, "the line is no object");
    if (!json_is_integer(turn)) return FAIL(err, "turn_idx is missing or no whole number");
    if (!json_is_string(p)) return FAIL(err, "prediction is missing or no text");
    if (!gold) return FAIL(err, "ground_truth is missing");
    r->id = json_object_get(row, "id");
    r->turn = json_integer_value(turn);
    r->prediction = json_string_value(p);
    r->prediction_len = json_string_length(p);
    if (json_is_array(gold)) {
        if (!json_array_size(gold)) return FAIL(err, "ground_truth is an empty list");
        json_array_foreach(gold, i, v) if (label_add(r, v, err)) return -1;
    } else if (label_add(r, gold, err)) return -1;
    if (s->task->n_parts > 1) {
        if (!part) return FAIL(err, "task, the name of the subtask, is missing");
        while (r->part < s->task->n_parts && strcmp(s->task->parts[r->part].name, part)) r->part++;
        if (r->part == s->task->n_parts)
            return FAIL(err, "task is '%.60s', which is no part of %s", part, s->task->name);
    }
    if (s->task->parts[r->part].rule != SCORE_REPOQA) return 0;
    r->lang = text_of(row, "lang");
    r->repo = text_of(row, "repo");
    r->func = text_of(row, "func_name");
    if (!r->lang || !r->repo || !r->func)
        return FAIL(err, "lang, repo or func_name is missing or no text");
    return 0;
}

// Parses the line into *r and returns its JSON, which r borrows from; NULL with what is wrong.
static json_t *record_read(const Score *s, const char *text, size_t n, Record *r, Err *err) {
    json_error_t je;
    memset(r, 0, sizeof *r);
    json_t *row = json_loadb(text, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &je);
    if (!row) FAIL(err, "no JSON: %s", je.text);
    else if (!record_fields(s, row, r, err)) return row;
    record_free(r);
    json_decref(row);
    return NULL;
}

// the repository's candidates, made when it is new
static TaskSession *repo_of(Score *s, const char *name) {
    for (int i = 0; i < s->n_repos; i++)
        if (!strcmp(s->repos[i].repo, name)) return &s->repos[i];
    size_t n = (size_t)s->n_repos + 1;
    s->repos = (TaskSession *)xrealloc(s->repos, n * sizeof *s->repos);
    TaskSession *repo = &s->repos[s->n_repos++];
    memset(repo, 0, sizeof *repo);
    repo->repo = text_dup(name);
    return repo;
}

static void candidate_add(Score *s, const Record *r) {
    TaskSession *repo = repo_of(s, r->repo);
    size_t n = (size_t)repo->n_needles + 1;
    repo->needles = (Needle *)xrealloc(repo->needles, n * sizeof *repo->needles);
    Needle *needle = &repo->needles[repo->n_needles++];
    needle->name = text_dup(r->func);
    needle->source = text_dup(r->label[0]);
    needle->lang = text_dup(r->lang);
}

// ---------------------------------------------------------------------------
// Scoring and means

static TurnMean *turn_of(Score *s, int64_t turn) {
    for (int i = 0; i < s->n_turns; i++)
        if (s->turns[i].turn == turn) return &s->turns[i];
    size_t n = (size_t)s->n_turns + 1;
    s->turns = (TurnMean *)xrealloc(s->turns, n * sizeof *s->turns);
    TurnMean *m = &s->turns[s->n_turns++];
    memset(m, 0, sizeof *m);
    m->turn = turn;
    return m;
}

static Mean *lang_of(Score *s, const char *name) {
    for (int i = 0; i < s->n_langs; i++)
        if (!strcmp(s->langs[i].name, name)) return &s->langs[i].found;
    size_t n = (size_t)s->n_langs + 1;
    s->langs = (LangMean *)xrealloc(s->langs, n * sizeof *s->langs);
    s->langs[s->n_langs] = (LangMean){ text_dup(name), { 0, 0 } };
    return &s->langs[s->n_langs++].found;
}

static void put_score(StrBuf *out, double v) {
    if (isnan(v)) str_puts(out, "null");
    else str_fmt(out, "%.9g", v);
}

static void score_record(Score *s, int line, const Record *r, StrBuf *out) {
    const Task *t = s->task;
    ScoreRule rule = t->parts[r->part].rule;
    char *id = r->id ? json_dumps(r->id, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    double score;
    str_fmt(out, "{\"line\": %d, \"id\": %s, \"turn_idx\": %lld", line, id ? id : "null",
            (long long)r->turn);
    free(id);
    if (t->n_parts > 1) str_fmt(out, ", \"part\": \"%s\"", t->parts[r->part].name);
    if (rule == SCORE_REPOQA) {
        const TaskSession *repo = repo_of(s, r->repo);
        RepoMatch m = repoqa_match(repo, r->func, r->lang, r->prediction, r->prediction_len, 0);
        score = m.pass && m.best >= 0.8;
        for (int i = 0; i < REPO_STEPS; i++)
            mean_add(&s->step[i], m.pass && m.best >= i / 10.0);
        mean_add(lang_of(s, r->lang), score);
        str_puts(out, ", \"best\": ");
        if (m.at < 0) str_puts(out, "null");
        else json_text(out, repo->needles[m.at].name, strlen(repo->needles[m.at].name));
        str_fmt(out, ", \"similarity\": %.9g", m.best);
    } else {
        score = score_rule(rule, s->which, r->prediction, r->prediction_len, r->label, r->n_labels);
        // the harness hands this scorer whole records here, in which no value occurs
        if (s->which == SCORER_HARNESS && s->requests && t->n_parts > 1 && rule == SCORE_SUBSTRING)
            score = 0;
    }
    str_fmt(out, ", \"score\": %.9g}\n", score);
    s->records++;
    mean_add(&turn_of(s, r->turn)->part[r->part], score);
    mean_add(&s->part[r->part], score);
}

// mean over turn numbers, or over all lines
static double part_score(const Score *s, int part) {
    Mean m = { 0, 0 };
    if (s->requests) return mean_of(&s->part[part]);
    for (int i = 0; i < s->n_turns; i++)
        if (s->turns[i].part[part].n) mean_add(&m, mean_of(&s->turns[i].part[part]));
    return mean_of(&m);
}

static void put_turns(const Score *s, StrBuf *out) {
    int n_parts = s->task->n_parts;
    str_puts(out, ", \"turns\": [");
    for (int i = 0; i < s->n_turns; i++) {
        const TurnMean *t = &s->turns[i];
        str_fmt(out, "%s{\"turn_idx\": %lld, \"n\": %d, \"score\": ", i ? ", " : "",
                (long long)t->turn, t->part[0].n + t->part[1].n);
        for (int k = 0; k < n_parts; k++) {
            double v = mean_of(&t->part[k]);
            str_puts(out, k ? ", " : n_parts > 1 ? "[" : "");
            put_score(out, isnan(v) && s->which == SCORER_HARNESS ? 0 : v);
        }
        str_puts(out, n_parts > 1 ? "]}" : "}");
    }
    str_puts(out, "]");
}

static void put_summary(const Score *s, StrBuf *out) {
    const Task *t = s->task;
    Mean whole = { 0, 0 };
    str_fmt(out, "{\"task\": \"%s\", \"scorer\": \"%s\", \"mode\": \"%s\", \"records\": %d, "
            "\"malformed\": %d", t->name, s->which == SCORER_HARNESS ? "harness" : "ours",
            s->requests ? "multi-request" : "multi-turn", s->records, s->malformed);
    if (!s->requests) put_turns(s, out);
    if (t->n_parts > 1) str_puts(out, ", \"parts\": {");
    for (int k = 0; k < t->n_parts; k++) {
        double v = part_score(s, k);
        if (!isnan(v)) mean_add(&whole, v);
        if (t->n_parts == 1) continue;
        str_fmt(out, "%s\"%s\": ", k ? ", " : "", t->parts[k].name);
        put_score(out, v);
    }
    if (t->n_parts > 1) str_puts(out, "}");
    if (s->step[0].n) {
        str_puts(out, ", \"thresholds\": [");
        for (int i = 0; i < REPO_STEPS; i++)
            str_fmt(out, "%s%.9g", i ? ", " : "", mean_of(&s->step[i]));
        str_puts(out, "], \"languages\": {");
        for (int i = 0; i < s->n_langs; i++) {
            str_puts(out, i ? ", " : "");
            json_text(out, s->langs[i].name, strlen(s->langs[i].name));
            str_fmt(out, ": %.9g", mean_of(&s->langs[i].found));
        }
        str_puts(out, "}");
    }
    str_puts(out, ", \"score\": ");
    put_score(out, mean_of(&whole));
    str_puts(out, "}\n");
}

// ---------------------------------------------------------------------------
// The file

static void bad_line(Score *s, int line, const char *what, StrBuf *out) {
    str_fmt(out, "{\"line\": %d, \"error\": ", line);
    json_text(out, what, strlen(what));
    str_puts(out, "}\n");
    if (s->malformed++) return;
    s->first_bad = line;
    snprintf(s->first_error, sizeof s->first_error, "%.250s", what);
}

// One pass: candidates of functions to find (out NULL), or scores. Blank lines are none.
static int pass(Score *s, FILE *in, FILE *out, Err *err) {
    StrBuf text = { 0 };
    char *line = NULL;
    size_t cap = 0;
    int rc = 0, number = 0;
    for (ssize_t n; !rc && (n = getline(&line, &cap, in)) > 0;) {
        Record r;
        Err why = { "", 0 };
        number++;
        if (strspn(line, " \t\r\n") == (size_t)n) continue;
        json_t *row = record_read(s, line, (size_t)n, &r, &why);
        text.n = 0;
        if (!out) {
            if (row && s->task->parts[r.part].rule == SCORE_REPOQA) candidate_add(s, &r);
        } else {
            if (row) score_record(s, number, &r, &text);
            else bad_line(s, number, why.msg, &text);
            if (fwrite(text.p, 1, text.n, out) != text.n)
                rc = FAIL(err, "the scores cannot be written: %s", strerror(errno));
        }
        if (row) record_free(&r);
        json_decref(row);
    }
    if (!rc && ferror(in)) rc = FAIL(err, "%s: cannot be read: %s", s->path, strerror(errno));
    free(line);
    free(text.p);
    return rc;
}

int predictions_score(FILE *out, const Task *task, const char *path, Scorer which, Err *err) {
    if (task->lb) return lb_predictions_score(out, task, path, which, err);
    const char *slash = strrchr(path, '/');
    Score s = { .task = task, .path = path, .which = which };
    StrBuf last = { 0 };
    bool functions = false;
    s.requests = strstr(slash ? slash : path, "_scdq") != NULL;
    for (int k = 0; k < task->n_parts; k++)
        functions = functions || task->parts[k].rule == SCORE_REPOQA;
    FILE *in = fopen(path, "rb");
    if (!in) return FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    int rc = functions ? pass(&s, in, NULL, err) : 0;
    if (!rc && functions && fseeko(in, 0, SEEK_SET))
        rc = FAIL(err, "%s: is read twice and cannot be: give a file, not a pipe", path);
    if (!rc) rc = pass(&s, in, out, err);
    fclose(in);
    if (!rc && !s.records && !s.malformed) rc = FAIL(err, "%s: holds no prediction", path);
    if (!rc) {
        put_summary(&s, &last);
        if (fwrite(last.p, 1, last.n, out) != last.n)
            rc = FAIL(err, "the scores cannot be written: %s", strerror(errno));
    }
    if (!rc && s.malformed)
        rc = FAIL(err, "%s: %d malformed line%s in no mean; line %d: %s", path, s.malformed,
                  s.malformed == 1 ? " counts" : "s count", s.first_bad, s.first_error);
    for (int i = 0; i < s.n_repos; i++) session_clear(&s.repos[i]);
    for (int i = 0; i < s.n_langs; i++) free(s.langs[i].name);
    free(s.repos);
    free(s.langs);
    free(s.turns);
    free(last.p);
    return rc;
}
