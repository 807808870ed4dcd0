// fuzz_report.c - any bytes as a results.jsonl: refused with a sentence, or every table can be
// printed in every format, and resume leaves whole lines. The last byte of the input chooses.
#include "fuzz.h"

static char dir[64], path[96];

static void clean(void) {
    unlink(path);
    rmdir(dir);
}

static void spill(const uint8_t *data, size_t size) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size && !fclose(f), "cannot write %s", path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const tables[] = { NULL, "turns", "tasks", "categories", "methods", "query",
                                          "reuse",
                                          "history", "depth" };
    static const char *const formats[] = { "text", "csv", "md" };
    static const char *const tasks[] = { "retr_kv", "mix_sum_niah" };
    static const int rows[4] = { 4, 4, 4, 4 };
    static FILE *nowhere;
    bool done[4];
    Err err = { "", 0 };
    if (size == 0) return 0;
    if (!nowhere) {
        snprintf(dir, sizeof dir, "/tmp/fuzz_report.XXXXXX");
        CHECK(mkdtemp(dir), "no temporary directory");
        snprintf(path, sizeof path, "%s/results.jsonl", dir);
        atexit(clean);
        nowhere = fopen("/dev/null", "wb");
    }
    spill(data, size - 1);
    uint8_t pick = data[size - 1];
    ReportOpts o = { tables[pick % COUNTOF(tables)], formats[pick / 16 % COUNTOF(formats)], 2 };
    const char *const dirs[] = { dir };
    FILE *loud = stderr;
    stderr = nowhere;                   // where the notes of csv reports go
    int rc = report_print(nowhere, dirs, 1, &o, &err);
    stderr = loud;
    CHECK(!rc || err.msg[0], "refused without a word");
    err.msg[0] = 0;
    if (report_resume(dir, tasks, 2, 2, rows, done, &err)) {
        CHECK(err.msg[0], "refused without a word");
        return 0;
    }
    FILE *f = fopen(path, "rb");
    CHECK(f, "resume left no file");
    if (!fseek(f, -1, SEEK_END)) CHECK(fgetc(f) == '\n', "resume left a torn line");
    fclose(f);
    return 0;
}

__attribute__((unused))
static StrBuf seed_input(void) {
    static const char *const names[][3] = {
        { "retr_kv", "multi-turn", "full" }, { "retr_kv", "multi-turn", "corm" },
        { "mix_sum_niah", "multi-request", "full" }, { "mix_sum_niah", "single", "keep-last" },
    };
    StrBuf s = { 0 };
    for (int i = 0; i < 24; i++) {
        Row r;
        row_clear(&r);
        r.task = names[i % 4][0];
        r.mode = names[i % 4][1];
        r.method = names[i % 4][2];
        r.session = 1 + i / 12;
        r.turn = 1 + i / 4 % 3;
        r.preset = "scbench";
        r.params = "{\"budget\": 64}";
        r.part = i % 4 < 2 ? NULL : r.turn == 1 ? "a" : "b";
        r.history = i % 5 ? "golden" : "own";
        r.query_aware = i % 3 ? "first" : "no";
        r.score = i % 7 / 7.0;
        r.depth = i / 24.0;
        r.prediction = "\xe5\x8c\x97 \x1b x";
        r.prediction_len = strlen(r.prediction);
        r.gold = "gold";
        row_json(&r, &s);
        str_puts(&s, "\n");
    }
    str_add(&s, "\x00", 1);
    return s;
}

FUZZ_MAIN(seed_input)
