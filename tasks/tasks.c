// tasks.c - the list of tasks, and what every generator leans on.
#include "longbench.h"

// the order of the paper's Table 2; what the paper does not run stands behind it
static const Task *const task_list[] = {
    &task_retr_kv, &task_retr_ps, &task_retr_mh, &task_repoqa, &task_en_qa, &task_zh_qa,
    &task_en_mc, &task_math_find, &task_icl, &task_en_sum, &task_mix_sum_niah,
    &task_mix_repoqa_kv, &task_retr_kv_compressible,
};

const Task *task_at(int i) {
    return i >= 0 && i < (int)COUNTOF(task_list) ? task_list[i] : NULL;
}

const Task *task_find(const char *name, Err *err) {
    const char *names[COUNTOF(task_list)];
    if (lb_task(name)) return lb_task(name);
    for (size_t i = 0; i < COUNTOF(task_list); i++) {
        names[i] = task_list[i]->name;
        if (!strcmp(name, task_list[i]->name) || !strcmp(name, task_list[i]->official))
            return task_list[i];
    }
    int near = did_you_mean(name, names, (int)COUNTOF(names));
    if (near >= 0)
        FAIL_CODE(err, EXIT_USAGE, "unknown task '%s'; did you mean %s?", name, names[near]);
    else FAIL_CODE(err, EXIT_USAGE, "unknown task '%s'; see scbench list tasks", name);
    return NULL;
}

void session_clear(TaskSession *s) {
    for (int t = 0; t < s->n_turns; t++) {
        TaskTurn *turn = &s->turns[t];
        for (int i = 0; i < turn->n_labels; i++) free(turn->label[i]);
        for (size_t i = 0; i < COUNTOF(turn->options); i++) free(turn->options[i]);
        free(turn->label);
        free(turn->input);
        free(turn->question);
        free(turn->answer);
        free(turn->name);
    }
    for (int i = 0; i < s->n_needles; i++) {
        free(s->needles[i].name);
        free(s->needles[i].source);
        free(s->needles[i].lang);
    }
    for (int i = 0; i < s->n_classes; i++) free(s->classes[i]);
    free(s->classes);
    free(s->needles);
    free(s->turns);
    free(s->numbers);
    free(s->lang);
    free(s->repo);
    free(s->family);
    free(s->context.p);
    memset(s, 0, sizeof *s);
}

void session_turns(TaskSession *s, int n_turns) {
    s->turns = (TaskTurn *)xrealloc(NULL, (size_t)n_turns * sizeof *s->turns);
    memset(s->turns, 0, (size_t)n_turns * sizeof *s->turns);
    s->n_turns = n_turns;
}

char *text_dup(const char *s) {
    size_t n = strlen(s) + 1;
    return (char *)memcpy(xrealloc(NULL, n), s, n);
}

char *text_fmt(const char *fmt, ...) {
    char *text;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) die_code(EXIT_MEMORY, "not enough memory for a text");
    return text;
}

void turn_label(TaskTurn *t, const char *label) {
    t->label = (char **)xrealloc(t->label, (size_t)(t->n_labels + 1) * sizeof *t->label);
    t->label[t->n_labels++] = text_dup(label);
}

Rng session_rng(uint64_t seed, int number, uint64_t purpose) {
    Rng rng = { mix64(mix64(mix64(seed) ^ (uint64_t)number) ^ purpose) };
    return rng;
}

int even_slot(int j, int n, int units) {
    return (int)((2 * (int64_t)j + 1) * units / (2 * (int64_t)n));
}
