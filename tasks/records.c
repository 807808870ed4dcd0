// records.c - sessions in the official format: one JSON object per line, read and written.
//
//   all            multi_turns: list of { input, answer }; context: string
//   vt             the context is in input; answer: list of names
//   mf             context: list of integers; answer: integer
//   choice_eng     turns: options, a list of four; answer: the option's text
//   repoqa         lang, repo; turns: answer (the function's source), name
//   mixes          turns: task, the official name of the part
// id, index, length and unknown fields are not read.
#include "longbench.h"
#include <jansson.h>

int records_open(Records *r, const char *path, Err *err) {
    memset(r, 0, sizeof *r);
    r->path = path;
    r->f = fopen(path, "rb");
    return r->f ? 0 : FAIL(err, "%s: cannot be opened: %s", path, strerror(errno));
}

void records_close(Records *r) {
    if (r->f) fclose(r->f);
    free(r->text);
    memset(r, 0, sizeof *r);
}

// a string member; where: "" or "multi_turns[2]."
static int want_text(const json_t *o, const char *where, const char *key, char **out, Err *err) {
    const json_t *v = json_object_get(o, key);
    if (!v) return FAIL(err, "field '%s%s' is missing", where, key);
    if (!json_is_string(v)) return FAIL(err, "field '%s%s' is not a string", where, key);
    *out = text_dup(json_string_value(v));
    return 0;
}

static int read_numbers(TaskSession *s, const json_t *list, Err *err) {
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n == 0 || n > INT_MAX)
        return FAIL(err, "field 'context' is not a list of integers");
    s->numbers = (int64_t *)xrealloc(NULL, n * sizeof *s->numbers);
    s->n_numbers = (int)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v)) return FAIL(err, "field 'context[%zu]' is not an integer", i);
        s->numbers[i] = json_integer_value(v);
        str_fmt(&s->context, "%s%lld", i ? ", " : "[", (long long)s->numbers[i]);
    }
    str_puts(&s->context, "]");
    return 0;
}

static int read_context(const Task *task, const json_t *o, TaskSession *s, Err *err) {
    const char *key = json_object_get(o, "context") ? "context" : "input";
    const json_t *v = json_object_get(o, key);
    if (task->parts[0].rule == SCORE_NUMBER) return read_numbers(s, v, err);
    if (!v) return FAIL(err, "field 'context' is missing");
    if (!json_is_string(v)) return FAIL(err, "field '%s' is not a string", key);
    str_add(&s->context, json_string_value(v), json_string_length(v));
    return 0;
}

static int read_names(const json_t *list, const char *where, TaskTurn *t, Err *err) {
    StrBuf all = { 0 };
    size_t i;
    json_t *v;
    if (!json_is_array(list) || json_array_size(list) == 0)
        return FAIL(err, "field '%sanswer' is not a list of names", where);
    str_add(&all, NULL, 0);
    json_array_foreach(list, i, v) {
        const char *name = json_string_value(v);
        if (name) {
            str_fmt(&all, "%s%s", i ? ", " : "", name);
            turn_label(t, name);
        }
    }
    t->answer = all.p;
    if (t->n_labels == (int)json_array_size(list)) return 0;
    return FAIL(err, "field '%sanswer' holds something else than strings", where);
}

static int read_answer(ScoreRule rule, const json_t *o, const char *where, TaskTurn *t, Err *err) {
    const json_t *v = json_object_get(o, "answer");
    if (rule == SCORE_NAMES) return read_names(v, where, t, err);
    if ((rule == SCORE_NUMBER || rule == SCORE_PASSKEY) && json_is_integer(v))
        t->answer = text_fmt("%lld", (long long)json_integer_value(v));
    else if (rule == SCORE_NUMBER && json_is_real(v))
        t->answer = text_fmt("%.17g", json_real_value(v));
    else if (rule == SCORE_NUMBER && v)
        return FAIL(err, "field '%sanswer' is not a number", where);
    else if (want_text(o, where, "answer", &t->answer, err)) return -1;
    turn_label(t, t->answer);
    return 0;
}

// four options, and the letter of the right one behind its text among the labels
static int read_options(const json_t *o, const char *where, TaskTurn *t, Err *err) {
    const json_t *list = json_object_get(o, "options");
    int right = -1;
    if (!json_is_array(list) || json_array_size(list) != 4)
        return FAIL(err, "field '%soptions' is not a list of four", where);
    for (int i = 0; i < 4; i++) {
        const char *text = json_string_value(json_array_get(list, (size_t)i));
        if (!text) return FAIL(err, "field '%soptions[%d]' is not a string", where, i);
        t->options[i] = text_dup(text);
        if (right < 0 && !strcmp(text, t->answer)) right = i;
    }
    if (right < 0) return FAIL(err, "field '%sanswer' is none of the options", where);
    char letter[2] = { (char)('A' + right), 0 };
    turn_label(t, letter);
    return 0;
}

static int read_part(const Task *task, const json_t *o, const char *where, TaskTurn *t, Err *err) {
    const char *name = json_string_value(json_object_get(o, "task"));
    if (task->n_parts == 1) return 0;
    for (t->part = 0; name && t->part < task->n_parts; t->part++)
        if (!strcmp(name, task->parts[t->part].name)) return 0;
    t->part = 0;
    return FAIL(err, "field '%stask' is neither '%s' nor '%s'", where, task->parts[0].name,
                task->parts[1].name);
}

static int read_turn(const Task *task, const json_t *o, int number, TaskTurn *t, Err *err) {
    char where[32];
    snprintf(where, sizeof where, "multi_turns[%d].", number);
    t->depth = NAN;
    if (!json_is_object(o)) return FAIL(err, "field 'multi_turns[%d]' is not an object", number);
    if (want_text(o, where, "input", &t->input, err)) return -1;
    if (read_part(task, o, where, t, err)) return -1;
    ScoreRule rule = task->parts[t->part].rule;
    if (read_answer(rule, o, where, t, err)) return -1;
    if (rule == SCORE_CHOICE && read_options(o, where, t, err)) return -1;
    if (rule == SCORE_REPOQA && want_text(o, where, "name", &t->name, err)) return -1;
    bool novel = rule == SCORE_QA_EN || rule == SCORE_QA_ZH || rule == SCORE_CHOICE;
    t->question = novel ? reader_question(t, rule == SCORE_QA_ZH) : text_dup(t->input);
    t->forced = rule == SCORE_ROUGE_LSUM && task->n_parts == 1 && number > 0;
    return 0;
}

static int read_record(const Task *task, const json_t *o, TaskSession *s, Err *err) {
    const json_t *turns = json_object_get(o, "multi_turns");
    if (!json_is_object(o)) return FAIL(err, "not a JSON object");
    if (read_context(task, o, s, err)) return -1;
    if (task->parts[0].rule == SCORE_REPOQA &&
        (want_text(o, "", "lang", &s->lang, err) || want_text(o, "", "repo", &s->repo, err)))
        return -1;
    if (task->parts[0].rule == SCORE_LETTER && json_object_get(o, "task") &&
        want_text(o, "", "task", &s->family, err))
        return -1;
    if (!json_is_array(turns) || json_array_size(turns) == 0 || json_array_size(turns) > 1000)
        return FAIL(err, "field 'multi_turns' is not a list of 1 to 1000 turns");
    session_turns(s, (int)json_array_size(turns));
    for (int t = 0; t < s->n_turns; t++)
        if (read_turn(task, json_array_get(turns, (size_t)t), t, &s->turns[t], err)) return -1;
    return 0;
}

int record_parse(const Task *task, const char *text, size_t n, TaskSession *s, Err *err) {
    json_error_t je;
    json_t *o = json_loadb(text, n, 0, &je);
    memset(s, 0, sizeof *s);
    int rc = o ? task->lb ? lb_record_read(task, o, s, err) : read_record(task, o, s, err)
               : FAIL(err, "not valid JSON at column %d: %s", je.column, je.text);
    json_decref(o);
    if (rc) session_clear(s);
    else session_words(task, s);
    return rc;
}

int records_next(Records *r, const Task *task, bool skip_bad, TaskSession *s, Err *err) {
    ssize_t n;
    while ((n = getline(&r->text, &r->cap, r->f)) >= 0) {
        Err bad = { "", 0 };
        r->line++;
        while (n && memchr(" \t\r\n", r->text[n - 1], 4)) n--;
        if (n == 0) continue;
        if (!record_parse(task, r->text, (size_t)n, s, &bad)) {
            s->number = ++r->sessions;
            return 1;
        }
        if (!skip_bad)
            return FAIL(err, "%s:%d: %.700s; --skip-bad leaves such lines out", r->path, r->line,
                        bad.msg);
        fprintf(stderr, "%s:%d: %s; left out\n", r->path, r->line, bad.msg);
        r->skipped++;
    }
    return ferror(r->f) ? FAIL(err, "%s: cannot be read: %s", r->path, strerror(errno)) : 0;
}

// ---------------------------------------------------------------------------
// Writing

static void put_text(StrBuf *line, const char *key, const char *text, size_t n) {
    str_fmt(line, "%s\"%s\": ", line->n && line->p[line->n - 1] == '{' ? "" : ", ", key);
    json_text(line, text ? text : "", n);
}
static void put_string(StrBuf *line, const char *key, const char *text) {
    put_text(line, key, text, text ? strlen(text) : 0);
}

static void put_answer(const TaskTurn *t, ScoreRule rule, StrBuf *line) {
    if (rule == SCORE_NUMBER) {
        str_fmt(line, ", \"answer\": %s", t->answer);
        return;
    }
    if (rule != SCORE_NAMES) {
        put_string(line, "answer", t->answer);
        return;
    }
    str_puts(line, ", \"answer\": [");
    for (int i = 0; i < t->n_labels; i++) {
        str_puts(line, i ? ", " : "");
        json_text(line, t->label[i], strlen(t->label[i]));
    }
    str_puts(line, "]");
}

static void put_turn(const Task *task, const TaskTurn *t, StrBuf *line) {
    ScoreRule rule = task->parts[t->part].rule;
    str_puts(line, "{");
    put_string(line, "input", t->input);
    put_answer(t, rule, line);
    for (int i = 0; i < 4 && t->options[0]; i++) {
        str_puts(line, i ? ", " : ", \"options\": [");
        json_text(line, t->options[i], strlen(t->options[i]));
        str_puts(line, i == 3 ? "]" : "");
    }
    if (rule == SCORE_REPOQA) put_string(line, "name", t->name);
    if (task->n_parts > 1) put_string(line, "task", task->parts[t->part].name);
    str_puts(line, "}");
}

void record_write(const Task *task, const TaskSession *s, StrBuf *line) {
    if (task->lb) {
        lb_record_write(task, s, line);
        return;
    }
    ScoreRule rule = task->parts[0].rule;
    bool names = rule == SCORE_NAMES;
    str_fmt(line, "{\"%s\": %d", names ? "index" : "id", s->number - 1);
    if (rule == SCORE_REPOQA) {
        put_string(line, "lang", s->lang);
        put_string(line, "repo", s->repo);
    }
    if (s->family) put_string(line, "task", s->family);
    if (rule == SCORE_NUMBER) str_fmt(line, ", \"context\": %s", s->context.p);
    else put_text(line, names ? "input" : "context", s->context.p, s->context.n);
    if (names) str_fmt(line, ", \"length\": %zu", s->context.n);
    str_puts(line, ", \"multi_turns\": [");
    for (int t = 0; t < s->n_turns; t++) {
        str_puts(line, t ? ", " : "");
        put_turn(task, &s->turns[t], line);
    }
    str_puts(line, "]}");
}
