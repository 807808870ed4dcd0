// wording.c - prompts in other words (--templates FILE.json): one text per task, under its short
// name or the data set's. In it {context} is the place of the context and {input} that of the
// question as a record holds it; {A} to {D} are the options of a choice. What stands before
// {context} is the instruction, white space behind it separates, the rest is the question.
#include "longbench.h"
#include <jansson.h>

// the pieces of a text that may stand for something else
static const char *slot_text(const char *at, const TaskTurn *t, size_t *n) {
    static const char *const option[] = { "{A}", "{B}", "{C}", "{D}" };
    *n = strlen("{input}");
    if (!strncmp(at, "{input}", *n)) return t->input;
    *n = strlen(option[0]);
    for (size_t i = 0; i < COUNTOF(option); i++)
        if (!strncmp(at, option[i], *n)) return t->options[i];
    return NULL;
}

// the wording with every slot filled; malloc'd
static char *question_words(const char *wording, const TaskTurn *t) {
    StrBuf out = { 0 };
    for (const char *at = wording; *at;) {
        size_t n;
        const char *text = *at == '{' ? slot_text(at, t, &n) : NULL;
        if (text) str_puts(&out, text);
        else str_add(&out, at, n = 1);
        at += n;
    }
    return out.p;
}

void session_words(const Task *task, TaskSession *s) {
    for (int i = 0; task->wording && i < s->n_turns; i++) {
        free(s->turns[i].question);
        s->turns[i].question = question_words(task->wording, &s->turns[i]);
    }
}

// a copy of the task that speaks as text does; gap: its {context}
static Task *reworded(const Task *task, const char *text, const char *gap) {
    Task *t = (Task *)xrealloc(NULL, sizeof *t);
    const char *after = gap + strlen("{context}");
    *t = *task;
    t->instruction = text_fmt("%.*s", (int)(gap - text), text);
    if (task->lb) {                     // joined as published: nothing is a separator
        LbSet *set = (LbSet *)xrealloc(NULL, sizeof *set);
        *set = *task->lb;
        set->before = t->instruction;
        set->after = text_dup(after);
        t->lb = set;
    } else {
        size_t blank = strspn(after, " \t\n");
        t->separator = text_fmt("%.*s", (int)blank, after);
        t->wording = text_dup(after + blank);
    }
    return t;
}

Task *task_templates(const Task *task, const char *path, Err *err) {
    json_error_t je;
    const char *key = task->lb ? task->lb->key : task->name;
    bool choice = task->parts[0].rule == SCORE_CHOICE;
    json_t *all = json_load_file(path, 0, &je);
    const char *text = json_string_value(json_object_get(all, key));
    const char *gap = text ? strstr(text, "{context}") : NULL;
    Task *t = NULL;
    if (!all) FAIL(err, "%s: not valid JSON, line %d: %s", path, je.line, je.text);
    else if (!text) FAIL(err, "%s: no text '%s' in it", path, key);
    else if (!gap) FAIL(err, "%s: '%s' has no {context}", path, key);
    else if (!task->lb && !strstr(gap, "{input}"))
        FAIL(err, "%s: '%s' has no {input} after its {context}", path, key);
    else if (choice && !(strstr(gap, "{A}") && strstr(gap, "{B}") && strstr(gap, "{C}") &&
                         strstr(gap, "{D}")))
        FAIL(err, "%s: '%s' has not all options {A} {B} {C} {D} after its {context}", path, key);
    else t = reworded(task, text, gap);
    json_decref(all);
    return t;
}
