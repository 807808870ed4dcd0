// test_report.c - result rows and what is read out of them: schema, escapes, resume, manifest.
#include "scb.h"
#include <jansson.h>
#include <sys/stat.h>

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_report.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static char dir[64], rows_path[96], manifest_path[128];

static void spill(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0, "cannot write %s", path);
}
static void slurp_into(const char *path, StrBuf *out) {
    char buf[4096];
    FILE *f = fopen(path, "rb");
    out->n = 0;
    str_add(out, "", 0);
    if (!f) return;
    for (size_t n; (n = fread(buf, 1, sizeof buf, f)) > 0;) str_add(out, buf, n);
    fclose(f);
}

static const char *const keys[] = {
    "session", "turn", "task", "depth", "mode", "preset", "method", "params", "scaled", "history",
    "compress",
    "query_aware", "group", "positions", "seed", "ctx", "chat", "n_prompt", "n_new", "stop",
    "ids_hash",
    "prediction", "gold", "score", "error", "evictable", "rows_min_q", "rows_mean_q", "rows_max_q",
    "kv_live_bytes_q", "kv_alloc_bytes_q", "rows_min_end", "rows_mean_end", "rows_max_end",
    "kv_live_bytes_end",
    "kv_alloc_bytes_end", "shared", "policy_bytes", "ssm_bytes", "pairs_ratio", "prefill_s",
    "shared_prefill_s",
    "first_token_s", "decode_tok_s", "peak_bytes", "logits_hash", "batch", "root_s", "decode_s",
    "policy_s",
    "shared_policy_s", "restored", "turns", "part", "arm", "scorer", "lang", "similarity",
    "matched",
    "tokens_before", "tokens_after", "compress_s", "compress_read", "gold_kept", "question",
};

static Row sample(int session, int turn) {
    static const RowsAt q = { 3, 9, 4.5, 2000000, 3000000 };
    Row r;
    row_clear(&r);
    r.session = session;
    r.turn = turn;
    r.task = "retr_kv";
    r.mode = "multi-turn";
    r.preset = "scbench";
    r.method = "full";
    r.history = "golden";
    r.query_aware = "first";
    r.params = "{\"budget\": 32}";
    r.prediction = "p";
    r.prediction_len = 1;
    r.gold = "g";
    r.score = 1;
    r.q = q;
    r.prefill_s = 2;
    r.decode_tok_s = 10;
    r.ctx = 64;
    return r;
}

static json_t *parse_row(const Row *r) {
    StrBuf line = { 0 };
    row_json(r, &line);
    EXPECT(!strchr(line.p, '\n'), "a row of two lines");
    json_t *row = json_loadb(line.p, line.n, JSON_ALLOW_NUL, NULL);
    EXPECT(row, "no JSON: %s", line.p);
    free(line.p);
    return row;
}

static void test_schema(void) {
    static const char *const never_null[] = { "session", "turn", "params", "scaled", "seed", "ctx",
                                              "chat" };
    Row r = sample(1, 1);
    json_t *row = parse_row(&r), *value;
    const char *key;
    size_t i = 0;
    json_object_foreach(row, key, value) {
        EXPECT(i < COUNTOF(keys) && !strcmp(key, keys[i]), "key %zu is %s, not %s", i, key,
               i < COUNTOF(keys) ? keys[i] : "-");
        i++;
    }
    EXPECT(i == COUNTOF(keys), "%zu keys", i);
    EXPECT(json_integer_value(json_object_get(row, "kv_alloc_bytes_q")) == 3000000,
           "bytes are integers");
    json_decref(row);
    row_clear(&r);
    r.params = "{}";
    row = parse_row(&r);
    json_object_foreach(row, key, value) {
        bool known = false;
        for (size_t k = 0; k < COUNTOF(never_null); k++)
            known = known || !strcmp(key, never_null[k]);
        EXPECT(known || json_is_null(value), "%s of an empty row is not null", key);
    }
    json_decref(row);
}

static void test_text(void) {
    static const char odd[] = "a\"b\\c\nd\te\x7f\x01\0z\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80|\xff|\xc3|\xed\xa0\x80|\xc0\xaf|\xe2\x82";
    static const char clean[] =
        "a\"b\\c\nd\te\x7f\x01\0z\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80|\xef\xbf\xbd|\xef\xbf\xbd|"
                                "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd\xef\xbf\xbd";
    Row r = sample(1, 1);
    r.prediction = odd;
    r.prediction_len = sizeof odd - 1;
    json_t *row = parse_row(&r), *p = json_object_get(row, "prediction");
    EXPECT(json_string_length(p) == sizeof clean - 1 &&
           !memcmp(json_string_value(p), clean, sizeof clean - 1),
           "the prediction came back as %zu bytes: %s", json_string_length(p),
           json_string_value(p));
    json_decref(row);
    r.score = NAN;
    r.prefill_s = INFINITY;
    r.prediction_len = 0;
    row = parse_row(&r);
    EXPECT(json_is_null(json_object_get(row, "score")) &&
           json_is_null(json_object_get(row, "prefill_s")), "NAN and inf are null");
    EXPECT(!strcmp(json_string_value(json_object_get(row, "prediction")), ""),
           "an empty prediction is no null");
    json_decref(row);
}

static void add_line(StrBuf *b, const Row *r) {
    row_json(r, b);
    str_puts(b, "\n");
}

static void test_resume(void) {
    static const char *const tasks[] = { "retr_kv" };
    static const int two[3] = { 2, 2, 2 }, one[3] = { 1, 1, 1 }, shard[3] = { 2, 0, 2 };
    bool done[3] = { false };
    StrBuf b = { 0 }, whole = { 0 }, left = { 0 };
    Err err = { "", 0 };
    for (int s = 1; s <= 3; s++) {
        for (int t = 1; t <= 2; t++) {
            Row r = sample(s, t);
            if (s == 2 && t == 2) r.error = "it broke";
            if (s == 3 && t == 2) continue;
            add_line(&b, &r);
            if (s == 1) add_line(&whole, &r);
        }
    }
    str_puts(&b, "{\"session\": 3, \"turn\": 2, \"ta");
    spill(rows_path, b.p);
    EXPECT(!report_resume(dir, tasks, 1, 3, two, done, &err), "%s", err.msg);
    EXPECT(done[0] && !done[1] && !done[2], "done: %d %d %d", done[0], done[1], done[2]);
    slurp_into(rows_path, &left);
    EXPECT(!strcmp(left.p, whole.p), "left:\n%s", left.p);
    EXPECT(!report_resume(dir, tasks, 1, 3, two, done, &err) && done[0], "a second time: %s",
           err.msg);
    EXPECT(report_resume(dir, tasks, 1, 3, one, done, &err) && strstr(err.msg, "repeats"),
           "too many rows: %s", err.msg);
    static const char *const others[] = { "qa" };
    EXPECT(report_resume(dir, others, 1, 3, two, done, &err) && strstr(err.msg, "another run"),
           "other task: %s", err.msg);
    unlink(rows_path);
    memset(done, 0, sizeof done);
    EXPECT(!report_resume(dir, tasks, 1, 3, two, done, &err) && !done[0], "no rows yet: %s",
           err.msg);
    spill(rows_path, b.p);
    EXPECT(report_resume(dir, tasks, 1, 3, shard, done, &err) &&
           strstr(err.msg, "line 3 belongs to another run"),
           "a session of another shard: %s", err.msg);
    free(b.p);
    free(whole.p);
    free(left.p);
}

// tasks, modes and arms of different numbers of rows: a session is done when all of its own are
// there
static void test_resume_many(void) {
    static const char *const tasks[] = { "retr_kv", "mix_sum_niah" };
    static const char *const modes[] = { "multi-turn", "multi-request" },
        *const methods[] = { "full", "corm" };
    // sessions 1 and 3 of this shard; the mix task has 3 turns in session 1 and 2 in session 3
    static const int want[6] = { 8, 0, 8, 12, 0, 8 };
    bool done[6] = { false };
    StrBuf b = { 0 }, whole = { 0 }, left = { 0 };
    Err err = { "", 0 };
    for (int k = 0; k < 2; k++) {
        for (int s = 1; s <= 3; s += 2) {
            for (int arm = 0; arm < 4; arm++) {
                for (int t = 1; t <= want[k * 3 + s - 1] / 4; t++) {
                    // one answer is missing
                    if (k == 0 && s == 3 && arm == 3 && t == 2) continue;
                    Row r = sample(s, t);
                    r.task = tasks[k];
                    r.mode = modes[arm / 2];
                    r.method = methods[arm % 2];
                    add_line(&b, &r);
                    if (k == 1 || s == 1) add_line(&whole, &r);
                }
            }
        }
    }
    spill(rows_path, b.p);
    EXPECT(!report_resume(dir, tasks, 2, 3, want, done, &err), "%s", err.msg);
    EXPECT(done[0] && !done[1] && !done[2] && done[3] && !done[4] && done[5],
           "done: %d %d %d, %d %d %d", done[0],
           done[1], done[2], done[3], done[4], done[5]);
    slurp_into(rows_path, &left);
    EXPECT(!strcmp(left.p, whole.p), "left:\n%s", left.p);
    // torn anywhere in the last line: that session is played again, nothing else changes
    size_t last = whole.n - 1;
    while (whole.p[last - 1] != '\n') last--;
    for (size_t cut = last + 1; cut < whole.n; cut += 97) {
        char *torn = strndup(whole.p, cut);
        spill(rows_path, torn);
        memset(done, 0, sizeof done);
        EXPECT(!report_resume(dir, tasks, 2, 3, want, done, &err), "%s", err.msg);
        EXPECT(done[0] && !done[2] && done[3] && !done[5], "torn at %zu: %d %d, %d %d", cut,
               done[0], done[2], done[3],
               done[5]);
        slurp_into(rows_path, &left);
        EXPECT(left.n < cut && !memcmp(left.p, whole.p, left.n) && left.p[left.n - 1] == '\n',
               "torn at %zu", cut);
        free(torn);
    }
    unlink(rows_path);
    free(b.p);
    free(whole.p);
    free(left.p);
}

static void test_manifest(void) {
    static const char *const text =
        "{\"options\": {\"seed\": 1, \"ctx\": 64}, \"model\": {\"hash\": \"ab\"}}";
    Err err = { "", 0 };
    char sub[96];
    snprintf(sub, sizeof sub, "%s/a/b", dir);
    EXPECT(!report_begin(sub, text, false, &err), "%s", err.msg);
    snprintf(manifest_path, sizeof manifest_path, "%s/manifest.json", sub);
    json_t *m = json_load_file(manifest_path, 0, NULL);
    EXPECT(json_is_string(json_object_get(m, "started")) &&
           json_is_null(json_object_get(m, "ended")), "dates");
    json_decref(m);
    EXPECT(report_begin(sub, text, false, &err), "an existing directory is refused");
    EXPECT(!report_begin(sub, text, true, &err), "the same run goes on: %s", err.msg);
    EXPECT(!report_end(sub, &err), "%s", err.msg);
    m = json_load_file(manifest_path, 0, NULL);
    EXPECT(json_is_string(json_object_get(m, "ended")), "the end date");
    json_decref(m);
    EXPECT(report_begin(sub,
                        "{\"options\": {\"seed\": 1, \"ctx\": 65}, \"model\": {\"hash\": \"ab\"}}",
                        true, &err) &&
           strstr(err.msg, "another ctx: 64, not 65"), "other options: %s", err.msg);
    EXPECT(report_begin(sub,
                        "{\"options\": {\"seed\": 1, \"ctx\": 64}, \"model\": {\"hash\": \"cd\"}}",
                        true, &err) &&
           strstr(err.msg, "another model hash: \"ab\", not \"cd\""), "other model: %s", err.msg);
    EXPECT(report_begin(sub, "{\"options\": {\"seed\": 1}, \"model\": {\"hash\": \"ab\"}}", true,
                        &err) &&
           strstr(err.msg, "another ctx: 64, not none"), "an option less: %s", err.msg);
    EXPECT(report_begin(dir, text, true, &err) && strstr(err.msg, "there is no run"),
           "no manifest: %s", err.msg);
    EXPECT(report_begin("/proc/none/x", text, false, &err) && strstr(err.msg, "/proc/none"),
           "no place: %s", err.msg);
    unlink(manifest_path);
    rmdir(sub);
    snprintf(sub, sizeof sub, "%s/a", dir);
    rmdir(sub);
    EXPECT(write_whole("/dev/full/x", "a", 1, &err) && strstr(err.msg, "cannot be written"),
           "no file: %s", err.msg);
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/test_report.XXXXXX");
    CHECK(mkdtemp(dir), "no temporary directory");
    snprintf(rows_path, sizeof rows_path, "%s/results.jsonl", dir);
    test_schema();
    test_text();
    test_resume();
    test_resume_many();
    test_manifest();
    unlink(rows_path);
    EXPECT(rmdir(dir) == 0, "something was left in %s", dir);
    printf("%d failures\n", failures);
    return failures != 0;
}
