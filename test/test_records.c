// test_records.c - official records: what is written is read again, every field is asked for by
// name, files go line by line.
#include "tasks/tasks.h"

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_records.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static TaskSession generated(const Task *task, int n_turns) {
    TaskSession s;
    memset(&s, 0, sizeof s);
    s.number = 3;
    task->make(&s, 7, n_turns, task->min_units * n_turns + 3);
    return s;
}

static bool same_text(const char *a, const char *b) {
    return a && b ? !strcmp(a, b) : a == b;
}

// all that a prompt or a scorer reads; a novel's record has one wording of each answer
static void same_turn(const Task *task, const TaskTurn *a, const TaskTurn *b, int t) {
    ScoreRule rule = task->parts[a->part].rule;
    bool novel = rule == SCORE_QA_EN || rule == SCORE_QA_ZH;
    EXPECT(same_text(a->input, b->input) && same_text(a->question, b->question) &&
           same_text(a->name, b->name),
           "%s, turn %d: %s became %s", task->name, t, a->question, b->question);
    EXPECT(same_text(a->answer, b->answer), "%s, turn %d: %s became %s", task->name, t, a->answer,
           b->answer);
    EXPECT(a->part == b->part && a->forced == b->forced, "%s, turn %d: part or beginning",
           task->name, t);
    EXPECT(novel ? b->n_labels == 1 : a->n_labels == b->n_labels, "%s, turn %d: %d labels, %d read",
           task->name, t,
           a->n_labels, b->n_labels);
    for (int i = 0; i < b->n_labels; i++)
        EXPECT(same_text(a->label[i], b->label[i]), "%s, turn %d: label %s became %s", task->name,
               t, a->label[i],
               b->label[i]);
    for (int i = 0; i < 4; i++)
        EXPECT(same_text(a->options[i], b->options[i]), "%s: option %d", task->name, i);
    EXPECT(isnan(b->depth), "a record says no depth");
}

static void test_round(const Task *task) {
    TaskSession a = generated(task, 4), b;
    Err err = { "", 0 };
    StrBuf line = { 0 };
    record_write(task, &a, &line);
    EXPECT(!strchr(line.p, '\n'), "%s: more than one line", task->name);
    if (record_parse(task, line.p, line.n, &b, &err)) {
        EXPECT(false, "%s: written and not read: %s", task->name, err.msg);
    } else {
        EXPECT(a.n_turns == b.n_turns && same_text(a.context.p, b.context.p),
               "%s: turns or context", task->name);
        EXPECT(same_text(a.lang, b.lang) && same_text(a.repo, b.repo) &&
               same_text(a.family, b.family),
               "%s: lang, repo or family", task->name);
        EXPECT(a.n_numbers == b.n_numbers && (!a.n_numbers || !memcmp(a.numbers, b.numbers,
               (size_t)a.n_numbers * sizeof *a.numbers)), "%s: numbers", task->name);
        for (int t = 0; t < b.n_turns; t++) same_turn(task, &a.turns[t], &b.turns[t], t + 1);
        session_clear(&b);
    }
    session_clear(&a);
    free(line.p);
}

static void refused(const char *task, const char *line, const char *words) {
    TaskSession s;
    Err err = { "", 0 };
    int rc = record_parse(task_find(task, &err), line, strlen(line), &s, &err);
    EXPECT(rc && strstr(err.msg, words), "%s: '%s' expected for %s, got '%s'", task, words, line,
           err.msg);
    if (!rc) session_clear(&s);
}

static void test_fields(void) {
    refused("retr_kv", "{\"context\": \"x\", \"multi_turns\": [", "not valid JSON at column");
    refused("retr_kv", "[]", "not a JSON object");
    refused("retr_kv", "{\"multi_turns\": []}", "field 'context' is missing");
    refused("retr_kv", "{\"context\": 3}", "field 'context' is not a string");
    refused("retr_kv", "{\"context\": \"x\"}", "field 'multi_turns' is not a list");
    refused("retr_kv", "{\"context\": \"x\", \"multi_turns\": []}",
            "field 'multi_turns' is not a list of 1");
    refused("retr_kv", "{\"context\": \"x\", \"multi_turns\": [3]}",
            "field 'multi_turns[0]' is not an object");
    refused("retr_kv", "{\"context\": \"x\", \"multi_turns\": [{\"answer\": \"a\"}]}",
            "field 'multi_turns[0].input' is missing");
    refused("retr_kv", "{\"context\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": \"a\"}, {\"input\": \"q\"}]}",
            "field 'multi_turns[1].answer' is missing");
    refused("retr_kv", "{\"context\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": 3}]}",
            "field 'multi_turns[0].answer' is not a string");
    refused("retr_mh",
            "{\"input\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": \"A\"}]}",
            "not a list of names");
    refused("retr_mh",
            "{\"input\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": [\"A\", 3]}]}",
            "something else");
    refused("math_find", "{\"context\": \"1\", \"multi_turns\": []}",
            "field 'context' is not a list of integers");
    refused("math_find", "{\"context\": [1, 2.5], \"multi_turns\": []}",
            "field 'context[1]' is not an integer");
    refused("math_find",
            "{\"context\": [1], \"multi_turns\": [{\"input\": \"q\", \"answer\": \"1\"}]}",
            "is not a number");
    refused("en_mc", "{\"context\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": \"a\", \"options\": [\"a\"]}]}",
            "'multi_turns[0].options' is not a list of four");
    refused("en_mc", "{\"context\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": \"a\", "
            "\"options\": [\"b\", \"c\", \"d\", \"e\"]}]}", "is none of the options");
    refused("repoqa", "{\"context\": \"x\", \"repo\": \"r\", \"multi_turns\": []}",
            "field 'lang' is missing");
    refused("repoqa", "{\"context\": \"x\", \"lang\": \"go\", \"repo\": \"r\", \"multi_turns\": [{\"input\": \"q\", "
            "\"answer\": \"a\"}]}", "'multi_turns[0].name' is missing");
    refused("mix_sum_niah",
            "{\"context\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": \"a\", "
            "\"task\": \"scbench_kv\"}]}",
            "field 'multi_turns[0].task' is neither 'scbench_summary'");
}

static void expect_next(Records *r, bool skip, int rc, int number, const char *words) {
    TaskSession s;
    Err err = { "", 0 };
    int got = records_next(r, &task_retr_kv, skip, &s, &err);
    EXPECT(got == rc, "record %d: %d, not %d (%s)", number, got, rc, err.msg);
    EXPECT(got < 0 ? strstr(err.msg, words) != NULL : true, "'%s' expected, got '%s'", words,
           err.msg);
    if (got != 1) return;
    EXPECT(s.number == number, "session %d, not %d", s.number, number);
    session_clear(&s);
}

static void test_file(void) {
    static const char good[] =
        "{\"context\": \"x\", \"multi_turns\": [{\"input\": \"q\", \"answer\": \"a\"}]}";
    char path[] = "/tmp/recordsXXXXXX", where[64];
    FILE *f = fdopen(mkstemp(path), "w");
    fprintf(f, "%s\r\n\n%s\n{\"context\"\n%s", good, good, good);
    fclose(f);
    Records r;
    Err err = { "", 0 };
    EXPECT(!records_open(&r, path, &err), "open: %s", err.msg);
    expect_next(&r, false, 1, 1, "");
    expect_next(&r, false, 1, 2, "");
    snprintf(where, sizeof where, "%s:4: not valid JSON", path);
    expect_next(&r, false, -1, 3, where);
    expect_next(&r, false, 1, 3, "");
    expect_next(&r, false, 0, 4, "");
    records_close(&r);
    fflush(stderr);
    int keep = dup(2);
    EXPECT(freopen("/dev/null", "w", stderr), "no /dev/null");
    EXPECT(!records_open(&r, path, &err), "open: %s", err.msg);
    for (int i = 1; i <= 3; i++) expect_next(&r, true, 1, i, "");
    expect_next(&r, true, 0, 4, "");
    EXPECT(r.skipped == 1 && r.line == 5, "%d left out, %d lines", r.skipped, r.line);
    records_close(&r);
    fflush(stderr);
    dup2(keep, 2);
    close(keep);
    remove(path);
    EXPECT(records_open(&r, path, &err) && strstr(err.msg, "cannot be opened"),
           "a missing file: %s", err.msg);
}

int main(void) {
    for (int i = 0; task_at(i); i++) test_round(task_at(i));
    test_fields();
    test_file();
    printf("%d failures\n", failures);
    return failures != 0;
}
