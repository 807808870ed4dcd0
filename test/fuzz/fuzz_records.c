// fuzz_records.c - the reader of official records: any line is a session or one sentence.
#include "fuzz.h"
#include "tasks/tasks.h"

static void one_line(const Task *task, const char *text, size_t n) {
    TaskSession s, again;
    Err err = { "", 0 };
    StrBuf line = { 0 };
    if (record_parse(task, text, n, &s, &err)) {
        CHECK(*err.msg, "no sentence");
        return;
    }
    CHECK(s.n_turns > 0, "a session without turns");
    for (int t = 0; t < s.n_turns; t++)
        CHECK(s.turns[t].question && s.turns[t].answer && s.turns[t].n_labels > 0 &&
              s.turns[t].part < task->n_parts, "turn %d lacks something", t);
    record_write(task, &s, &line);      // what was read can be written and read again
    CHECK(!record_parse(task, line.p, line.n, &again, &err), "written and not read: %s", err.msg);
    CHECK(again.n_turns == s.n_turns && again.context.n == s.context.n &&
          !strcmp(again.turns[0].question, s.turns[0].question), "read otherwise");
    session_clear(&again);
    session_clear(&s);
    free(line.p);
}

// lines; the first byte of each says which task it is for
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *text = (const char *)data, *end = text + size;
    int n = 0;
    while (task_at(n)) n++;
    while (text < end) {
        const char *stop = (const char *)memchr(text, '\n', (size_t)(end - text));
        size_t len = (size_t)((stop ? stop : end) - text);
        if (len) one_line(task_at((uint8_t)*text % n), text + 1, len - 1);
        text += len + 1;
    }
    return 0;
}

#ifndef LIBFUZZER
static StrBuf seed_input(void) {
    StrBuf lines = { 0 };
    for (int i = 0; task_at(i); i++) {
        const Task *task = task_at(i);
        TaskSession s;
        char which = (char)(4 * 13 + i);        // printable, the same modulo 13
        memset(&s, 0, sizeof s);
        s.number = 1;
        task->make(&s, 1, 2, task->min_units * 2);
        if (s.context.n > 200) {                // mutations should meet the fields
            s.context.n = s.numbers ? strcspn(s.context.p + 40, ",") + 40 : 200;
            s.context.p[s.context.n] = 0;
            if (s.numbers) str_puts(&s.context, "]");
        }
        str_add(&lines, &which, 1);
        record_write(task, &s, &lines);
        str_puts(&lines, "\n");
        session_clear(&s);
    }
    return lines;
}
FUZZ_MAIN(seed_input)
#endif
