// test_predictions.c - the released harness's prediction files: scores per line, means as it makes
// them and as the paper means them, malformed lines by number.
#include "tasks/tasks.h"
#include <sys/stat.h>

static int failures;
static char dir[64];

static char *scores(const char *name, const char *task, Scorer which, const char *lines,
                    int want_rc) {
    char path[128], *text = NULL;
    size_t n;
    Err err = { "", 0 };
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fputs(lines, f) >= 0 && !fclose(f), "cannot write %s", path);
    FILE *out = open_memstream(&text, &n);
    int rc = predictions_score(out, task_find(task, &err), path, which, &err);
    fputs(rc ? err.msg : "", out);
    fclose(out);
    unlink(path);
    if (rc != want_rc) failures++, printf("%s: returned %d: %s\n", name, rc, err.msg);
    return text;
}

static void expect(int line, const char *name, const char *task, Scorer which, int rc,
                   const char *lines,
                   const char *want) {
    char *got = scores(name, task, which, lines, rc);
    if (!strstr(got, want)) failures++, printf("line %d: '%s' is not in\n%s\n", line, want, got);
    free(got);
}
#define EXPECT(...) expect(__LINE__, __VA_ARGS__)

static void test_turns(void) {
    // three records; the third has no turn 2: mean of turn means is not the mean of all lines
    static const char lines[] =
        "{\"id\": 0, \"turn_idx\": 0, \"prediction\": \"it is abc.\", \"ground_truth\": \"abc\"}\n"
        "{\"id\": 0, \"turn_idx\": 1, \"prediction\": \"no\", \"ground_truth\": \"abd\"}\n"
        "{\"id\": 1, \"turn_idx\": 0, \"prediction\": \"ABC\", \"ground_truth\": \"abc\"}\n"
        "{\"id\": 1, \"turn_idx\": 1, \"prediction\": \"abd\", \"ground_truth\": \"abd\"}\n"
        "\n"
        "{\"id\": \"x\", \"turn_idx\": 0, \"prediction\": \"\\u0000abc\", \"ground_truth\": \"abc\"}";
    EXPECT("prediction_scbench_kv_multi_turn.jsonl", "scbench_kv", SCORER_HARNESS, 0, lines,
           "{\"line\": 1, \"id\": 0, \"turn_idx\": 0, \"score\": 1}\n"
           "{\"line\": 2, \"id\": 0, \"turn_idx\": 1, \"score\": 0}\n"
           "{\"line\": 3, \"id\": 1, \"turn_idx\": 0, \"score\": 0}\n"
           "{\"line\": 4, \"id\": 1, \"turn_idx\": 1, \"score\": 1}\n"
           "{\"line\": 6, \"id\": \"x\", \"turn_idx\": 0, \"score\": 1}\n"
           "{\"task\": \"retr_kv\", \"scorer\": \"harness\", \"mode\": \"multi-turn\", \"records\": 5, "
           "\"malformed\": 0, \"turns\": [{\"turn_idx\": 0, \"n\": 3, \"score\": 0.666666667}, "
           "{\"turn_idx\": 1, \"n\": 2, \"score\": 0.5}], \"score\": 0.583333333}\n");
    EXPECT("prediction_scbench_kv_scdq.jsonl", "retr_kv", SCORER_OURS, 0, lines,
           "\"mode\": \"multi-request\", \"records\": 5, \"malformed\": 0, \"score\": 0.6}\n");
    EXPECT("p.jsonl", "retr_mh", SCORER_OURS, 0,
           "{\"turn_idx\": 0, \"prediction\": \"AAAAA bbbbb\", \"ground_truth\": [\"AAAAA\", \"BBBBB\", \"CCCCC\"]}\n",
           "\"id\": null, \"turn_idx\": 0, \"score\": 0.67}");
    EXPECT("p.jsonl", "math_find", SCORER_HARNESS, 0,
           "{\"id\": 1, \"turn_idx\": 0, \"prediction\": \"-12.5\", \"ground_truth\": 12}\n",
           "\"score\": 1}");
}

static void test_mix(void) {
    static const char lines[] =
        "{\"id\": 0, \"turn_idx\": 0, \"task\": \"scbench_summary\", \"prediction\": \"a b\", \"ground_truth\": \"a b\"}\n"
        "{\"id\": 0, \"turn_idx\": 1, \"task\": \"scbench_passkey\", \"prediction\": \"12\", \"ground_truth\": \"13\"}\n"
        "{\"id\": 0, \"turn_idx\": 2, \"task\": \"scbench_passkey\", \"prediction\": \"13\", \"ground_truth\": \"13\"}\n";
    EXPECT("m.jsonl", "scbench_summary_with_needles", SCORER_HARNESS, 0, lines,
           "\"turns\": [{\"turn_idx\": 0, \"n\": 1, \"score\": [1, 0]}, {\"turn_idx\": 1, \"n\": 1, "
           "\"score\": [0, 0]}, {\"turn_idx\": 2, \"n\": 1, \"score\": [0, 1]}], \"parts\": "
           "{\"scbench_summary\": 1, \"scbench_passkey\": 0.5}, \"score\": 0.75}\n");
    EXPECT("m.jsonl", "mix_sum_niah", SCORER_OURS, 0, lines,
           "{\"turn_idx\": 0, \"n\": 1, \"score\": [1, null]}, {\"turn_idx\": 1, \"n\": 1, \"score\": [null, 0]}");
}

static void test_functions(void) {
    // the answer of line 2 is the function of line 1: found, but not the one asked for. Line 3 lies
    // in another repository, where nothing else is a candidate.
    static const char lines[] =
        "{\"id\": 0, \"turn_idx\": 0, \"task\": \"scbench_repoqa\", \"lang\": \"python\", \"repo\": \"a/b\", "
        "\"func_name\": \"add\", \"prediction\": \"```python\\ndef add(a, b):\\n    return a + b\\n```\", "
        "\"ground_truth\": \"def add(a, b):\\n    return a + b\"}\n"
        "{\"id\": 0, \"turn_idx\": 1, \"task\": \"scbench_repoqa\", \"lang\": \"python\", \"repo\": \"a/b\", "
        "\"func_name\": \"mul\", \"prediction\": \"def add(a, b):\\n    return a + b\", "
        "\"ground_truth\": \"def mul(x, y):\\n    return x * y\"}\n"
        "{\"id\": 1, \"turn_idx\": 0, \"task\": \"scbench_repoqa\", \"lang\": \"go\", \"repo\": \"c/d\", "
        "\"func_name\": \"f\", \"prediction\": \"func f() int { return a - b }\", "
        "\"ground_truth\": \"func f() int { return a + b }\"}\n"
        "{\"id\": 1, \"turn_idx\": 1, \"task\": \"scbench_kv\", \"prediction\": \"xyz\", \"ground_truth\": \"xyz\"}\n";
    EXPECT("r.jsonl", "scbench_repoqa_and_kv", SCORER_OURS, 0, lines,
           "\"turn_idx\": 1, \"part\": \"scbench_repoqa\", \"best\": \"add\", \"similarity\": 1, \"score\": 0}\n");
    // turn 1: the pair add, f at 0.8: one of two; turn 2: mul is not found
    EXPECT("r.jsonl", "scbench_repoqa_and_kv", SCORER_OURS, 0, lines,
           "\"thresholds\": [0.666666667, 0.666666667, 0.666666667, 0.666666667, 0.666666667, 0.666666667, "
           "0.666666667, 0.333333333, 0.333333333, 0.333333333, 0.333333333], \"languages\": {\"python\": 0.5, "
           "\"go\": 0}");
    EXPECT("r.jsonl", "scbench_repoqa_and_kv", SCORER_OURS, 0, lines,
           "\"parts\": {\"scbench_repoqa\": 0.25, \"scbench_kv\": 1}");
    EXPECT("r_scdq.jsonl", "scbench_repoqa_and_kv", SCORER_OURS, 0, lines, "\"scbench_kv\": 1}");
    EXPECT("r_scdq.jsonl", "scbench_repoqa_and_kv", SCORER_HARNESS, 0, lines, "\"scbench_kv\": 0}");
}

static void test_malformed(void) {
    EXPECT("bad.jsonl", "retr_kv", SCORER_OURS, -1,
           "{\"turn_idx\": 0, \"prediction\": \"a\", \"ground_truth\": \"a\"}\n"
           "{\"turn_idx\": 0, \"prediction\": \"a\"}\n{\"turn\n[1]\n"
           "{\"turn_idx\": 0, \"prediction\": 5, \"ground_truth\": \"a\"}\n",
           "bad.jsonl: 4 malformed lines count in no mean; line 2: ground_truth is missing");
    EXPECT("bad.jsonl", "retr_kv", SCORER_OURS, -1,
           "{\"turn_idx\": 0, \"prediction\": \"a\", \"ground_truth\": \"a\"}\n{\"turn\n",
           "{\"line\": 2, \"error\": \"no JSON: ");
    EXPECT("bad.jsonl", "retr_kv", SCORER_OURS, -1,
           "{\"turn_idx\": 0, \"prediction\": \"a\", \"ground_truth\": \"a\"}\n[]\n",
           "\"records\": 1, \"malformed\": 1, \"turns\": [{\"turn_idx\": 0, \"n\": 1, \"score\": 1}], \"score\": 1}");
    EXPECT("bad.jsonl", "mix_sum_niah", SCORER_OURS, -1,
           "{\"turn_idx\": 0, \"task\": \"kv\", \"prediction\": \"a\", \"ground_truth\": \"a\"}\n",
           "task is 'kv', which is no part of mix_sum_niah");
    EXPECT("bad.jsonl", "repoqa", SCORER_OURS, -1,
           "{\"turn_idx\": 0, \"lang\": \"go\", \"prediction\": \"a\", \"ground_truth\": \"a\"}\n",
           "lang, repo or func_name is missing");
    EXPECT("empty.jsonl", "repoqa", SCORER_OURS, -1, "\n", "holds no prediction");
    Err err = { "", 0 };
    if (predictions_score(stdout, task_find("icl", &err), "/none/x.jsonl", SCORER_OURS,
                          &err) == 0 ||
        !strstr(err.msg, "/none/x.jsonl: cannot be read")) failures++,
        printf("no file: %s\n", err.msg);
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/test_predictions.XXXXXX");
    CHECK(mkdtemp(dir), "no temporary directory");
    test_turns();
    test_mix();
    test_functions();
    test_malformed();
    if (rmdir(dir)) failures++, printf("something was left in %s\n", dir);
    printf("%d failures\n", failures);
    return failures != 0;
}
