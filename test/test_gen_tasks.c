// test_gen_tasks.c - what the list tasks and icl promise: lengths, targets, seeds, texts that do
// not repeat, speed; the table of tasks; and retr_kv, whose sessions must stay what they were.
#include "tasks/tasks.h"
#include <inttypes.h>
#include <xxhash.h>

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_gen_tasks.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static TaskSession session(const Task *task, uint64_t seed, int number, int turns, int units) {
    TaskSession s;
    memset(&s, 0, sizeof s);
    s.number = number;
    task->make(&s, seed, turns, units);
    return s;
}

// context, questions and answers as one text
static char *whole(const TaskSession *s) {
    StrBuf text = { 0 };
    str_puts(&text, s->context.p);
    for (int t = 0; t < s->n_turns; t++)
        str_fmt(&text, "\n%s\n%s\n%.6f", s->turns[t].question, s->turns[t].answer,
                s->turns[t].depth);
    return text.p;
}

// a turn is complete, and what is asked for is not in the question
static void test_turn(const Task *task, const TaskTurn *turn) {
    bool letter = task->parts[turn->part].rule == SCORE_LETTER;
    EXPECT(turn->input && turn->question && turn->answer && *turn->answer && turn->n_labels > 0,
           "%s: a turn lacks something", task->name);
    EXPECT(strstr(turn->question, turn->input) == turn->question,
           "%s: the question does not begin with its input", task->name);
    EXPECT(isnan(turn->depth) == letter && !(turn->depth < 0) && !(turn->depth > 1), "%s: depth %f",
           task->name, turn->depth);
    for (int k = 0; k < turn->n_labels; k++) {
        EXPECT(strstr(turn->answer, turn->label[k]), "%s: label %s is not in the answer",
               task->name, turn->label[k]);
        EXPECT(letter || !strstr(turn->question, turn->label[k]), "%s: the question holds %s",
               task->name, turn->label[k]);
    }
}

static void test_form(const Task *task) {
    static const int turns[] = { 1, 2, 5, 8, 13, 70 };
    for (size_t i = 0; i < COUNTOF(turns); i++) {
        TaskSession s = session(task, 3, 4, turns[i], task->min_units * turns[i]);
        EXPECT(s.n_turns == turns[i] && s.units == task->min_units * turns[i] && s.number == 4,
               "%s: %d turns, %d units, session %d", task->name, s.n_turns, s.units, s.number);
        EXPECT(strlen(s.context.p) == s.context.n, "%s: a NUL in %zu bytes", task->name,
               s.context.n);
        for (int t = 0; t < s.n_turns; t++) test_turn(task, &s.turns[t]);
        session_clear(&s);
        EXPECT(!s.turns && !s.context.p && !s.n_turns && !s.family,
               "%s: a cleared session is not empty", task->name);
    }
}

// a unit more is a longer text; questions and answers stay
static void test_growth(const Task *task) {
    int least = task->min_units * 3;
    TaskSession a = session(task, 9, 1, 3, least);
    for (int units = least + 1; units < least + 60; units++) {
        TaskSession b = session(task, 9, 1, 3, units);
        EXPECT(b.units == units && b.context.n > a.context.n,
               "%s: %d units are %zu bytes, %d are %zu", task->name, a.units, a.context.n, units,
               b.context.n);
        for (int t = 0; t < 3; t++)
            EXPECT(!strcmp(a.turns[t].question, b.turns[t].question) &&
                   !strcmp(a.turns[t].answer, b.turns[t].answer),
                   "%s: turn %d depends on the length", task->name, t + 1);
        session_clear(&a);
        a = b;
    }
    session_clear(&a);
}

// the same arguments give the same session; another seed or number shares no answer
static void test_seeds(const Task *task) {
    int units = task->min_units * task->turns + 40;
    TaskSession a = session(task, 1, 1, task->turns, units);
    char *first = whole(&a);
    static const int other[][2] = { { 1, 1 }, { 2, 1 }, { 1, 2 }, { 0, 1 }, { 1, 4 } };
    for (size_t i = 0; i < COUNTOF(other); i++) {
        TaskSession b = session(task, (uint64_t)other[i][0], other[i][1], task->turns, units);
        char *second = whole(&b);
        EXPECT(!strcmp(first, second) == (i == 0), "%s: seed %d, session %d: %s", task->name,
               other[i][0], other[i][1], i ? "nothing new" : "another text");
        for (int t = 0; t < b.n_turns && i && task->parts[0].rule == SCORE_SUBSTRING; t++)
            EXPECT(!strstr(first, b.turns[t].answer), "%s: seed %d, session %d shares %s",
                   task->name, other[i][0], other[i][1], b.turns[t].answer);
        free(second);
        session_clear(&b);
    }
    free(first);
    session_clear(&a);
}

static int by_depth(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// in the text the answer stands where the depth of its turn says
static void test_place(const Task *task, const TaskSession *s, const TaskTurn *turn) {
    if (s->numbers) {
        int i = 0;
        while (i < s->n_numbers && s->numbers[i] != atoi(turn->answer)) i++;
        EXPECT(fabs((i + 0.5) / s->units - turn->depth) < 1e-9,
               "%s: %s stands first at %d of %d, not at %.3f", task->name, turn->answer, i,
               s->units, turn->depth);
    } else {
        const char *at = strstr(s->context.p, turn->answer);
        double share = at ? (double)(at - s->context.p) / (double)s->context.n : -1;
        EXPECT(fabs(share - turn->depth) < 0.03 + 1.0 / s->units, "%s: %s is at %.3f, not at %.3f",
               task->name, turn->answer, share, turn->depth);
    }
}

// targets stand evenly over the list, and a turn does not always meet the same depth
static void test_depths(const Task *task) {
    int seen[5][5] = { { 0 } };
    for (int number = 0; number < 100; number++) {
        int units = task->min_units * 5 + 7 * number;
        double depth[5];
        TaskSession s = session(task, 6, number, 5, units);
        for (int t = 0; t < 5; t++) {
            test_place(task, &s, &s.turns[t]);
            depth[t] = s.turns[t].depth;
            seen[t][(int)(depth[t] * 5)]++;
        }
        qsort(depth, 5, sizeof *depth, by_depth);
        for (int j = 0; j < 5; j++)
            EXPECT(fabs(depth[j] - (j + 0.5) / 5) <= 0.5 / units + 1e-9,
                   "%s: session %d, target %d at %.3f", task->name, number, j, depth[j]);
        session_clear(&s);
    }
    for (int t = 0; t < 5; t++)
        for (int j = 0; j < 5; j++)
            EXPECT(seen[t][j] >= 8 && seen[t][j] <= 35,
                   "%s: turn %d stood %d times in fifth %d of 100", task->name, t + 1, seen[t][j],
                   j + 1);
}

// ---------------------------------------------------------------------------
// Repetition: of the words in 50 sessions, those that begin twelve words found in another session

enum { GRAM = 12, SESSIONS = 50, TABLE = 1 << 22 };
typedef struct { uint64_t hash; int first, n_positions; bool shared; } Gram;
static Gram table[TABLE];

static Gram *gram_of(uint64_t hash) {
    size_t i = hash % TABLE;
    while (table[i].n_positions && table[i].hash != hash) i = (i + 1) % TABLE;
    table[i].hash = hash;
    return &table[i];
}

static void test_repetition(const Task *task, int units) {
    int64_t positions = 0, repeated = 0;
    memset(table, 0, sizeof table);
    for (int number = 0; number < SESSIONS; number++) {
        TaskSession s = session(task, 21, number, task->turns, units);
        const char *start[GRAM], *p = s.context.p;
        for (int n = 0; *(p += strspn(p, " \n")); n++) {
            start[n % GRAM] = p;
            p += strcspn(p, " \n");
            if (n < GRAM - 1) continue;
            const char *from = start[(n + 1) % GRAM];
            Gram *g = gram_of(XXH3_64bits(from, (size_t)(p - from)));
            if (!g->n_positions) g->first = number;
            g->shared |= g->first != number;
            g->n_positions++;
            CHECK(++positions < TABLE / 2, "%s: too many words", task->name);
        }
        session_clear(&s);
    }
    for (size_t i = 0; i < TABLE; i++) repeated += table[i].shared ? table[i].n_positions : 0;
    double share = (double)repeated / (double)positions;
    printf("%s: %.3f %% of %" PRId64 " positions repeat\n", task->name, 100 * share, positions);
    EXPECT(positions > 1000 && share <= 0.01, "%s: %.3f of the 12-grams repeat", task->name, share);
}

// 4 MB, about a million tokens, in a small part of a second; the limit is far above that, but below
// what a generator needs that goes over its text again for every unit
static void test_speed(const Task *task) {
    TaskSession s = session(task, 1, 1, task->turns, 1000 + task->min_units * task->turns);
    int units = (int)(4e6 / (double)s.context.n * s.units);
    session_clear(&s);
    double began = (double)clock();
    s = session(task, 1, 1, task->turns, units);
    double took = ((double)clock() - began) / CLOCKS_PER_SEC;
    printf("%s: %d %s, %zu bytes, %.2f s\n", task->name, units, task->unit, s.context.n, took);
    EXPECT(s.context.n > 3000000 && took < 5, "%s: %zu bytes took %.1f s", task->name, s.context.n,
           took);
    session_clear(&s);
}

static void test_names(void) {
    static const char *const order[] = {
        "retr_kv", "retr_ps", "retr_mh", "repoqa", "en_qa", "zh_qa", "en_mc", "math_find", "icl",
        "en_sum", "mix_sum_niah", "mix_repoqa_kv", "retr_kv_compressible",
    };
    Err err = { "", 0 };
    for (int i = 0; i < (int)COUNTOF(order); i++) {
        const Task *t = task_at(i);
        EXPECT(t && !strcmp(t->name, order[i]), "task %d is %s", i, t ? t->name : "missing");
        EXPECT(t && task_find(t->name, &err) == t && task_find(t->official, &err) == t,
               "%s is not found", order[i]);
    }
    EXPECT(!task_at((int)COUNTOF(order)) && !task_at(-1), "tasks beyond the table");
    EXPECT(!task_find("math_fnd", &err) && strstr(err.msg, "did you mean math_find") &&
           err.code == EXIT_USAGE, "a misspelt name: %s", err.msg);
    EXPECT(!task_find("zzzzzzzzzzzz", &err) && strstr(err.msg, "scbench list tasks"),
           "no such name: %s", err.msg);
}

// results that people have rest on these bits
static void test_fixed(void) {
    TaskSession s = session(&task_retr_kv, 1, 0, 5, 2500);
    char *text = whole(&s);
    uint64_t hash = XXH3_64bits(text, strlen(text));
    EXPECT(s.context.n == 200000 && hash == 0x83b13b4adaa7e440,
           "retr_kv: %zu bytes, hash %016" PRIx64, s.context.n, hash);
    free(text);
    session_clear(&s);
}

int main(void) {
    static const struct { const Task *task; int units; } tasks[] = {
        { &task_retr_kv, 500 }, { &task_retr_kv_compressible, 200 }, { &task_retr_ps, 600 },
        { &task_retr_mh, 2000 }, { &task_math_find, 20000 }, { &task_icl, 150 },
        { &task_icl_wide, 150 },
    };
    for (size_t i = 0; i < COUNTOF(tasks); i++) {
        const Task *task = tasks[i].task;
        ScoreRule rule = task->parts[0].rule;
        test_form(task);
        test_growth(task);
        test_seeds(task);
        if (rule == SCORE_SUBSTRING || rule == SCORE_NUMBER) test_depths(task);
        test_repetition(task, tasks[i].units);
        test_speed(task);
    }
    test_names();
    test_fixed();
    for (int n = 1; n < 40; n++)
        for (int j = 0; j < n; j++)
            EXPECT(even_slot(j, n, INT_MAX) == (int)((2 * j + 1) * (double)INT_MAX / (2 * n)),
                   "slot %d of %d", j, n);
    printf("%d failures\n", failures);
    return failures != 0;
}
