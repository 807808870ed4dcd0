// test_longbench.c - the metrics of LongBench and the cut of long prompts against the vectors of
// data/scorers/longbench.json.
#include <jansson.h>
#include "tasks/longbench.h"

enum { MAX_SHOWN = 20 };
static int failures, compared;
#define EXPECT(cond, ...) do { compared++; if (!(cond) && ++failures <= MAX_SHOWN) { \
    printf("test_longbench.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static const char *text(json_t *o, const char *key, size_t *n) {
    json_t *v = json_object_get(o, key);
    CHECK(json_is_string(v), "no text '%s' in a vector", key);
    if (n) *n = json_string_length(v);
    return json_string_value(v);
}
static double number(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    CHECK(json_is_number(v), "no number '%s' in a vector", key);
    return json_number_value(v);
}

static int classes_of(json_t *o, const char **out, int most) {
    json_t *list = json_object_get(o, "all_classes");
    int n = (int)json_array_size(list);
    CHECK(n <= most, "too many classes in a vector");
    for (int i = 0; i < n; i++) out[i] = json_string_value(json_array_get(list, (size_t)i));
    return n;
}

static void metric_rows(json_t *all, const char *name, LbMetric m, const Segmenter *g,
                        Scorer which, const char *score) {
    json_t *list = json_object_get(all, name), *o;
    size_t i;
    EXPECT(json_array_size(list) > 0, "no vectors of %s", name);
    json_array_foreach(list, i, o) {
        const char *classes[64], *p, *r;
        size_t n;
        int k = classes_of(o, classes, 64);
        p = text(o, "prediction", &n);
        r = text(o, "ground_truth", NULL);
        double got = lb_metric(m, which, g, p, n, r, classes, k), want = number(o, score);
        EXPECT(fabs(got - want) < 1e-12, "%s %zu: '%s' against '%s' is %.17g, not %.17g", name, i,
               p,
               r, got, want);
    }
}

static void normal_rows(json_t *all, const char *name, StrBuf (*fn)(const char *, size_t)) {
    json_t *o;
    size_t i, n, m;
    json_array_foreach(json_object_get(all, name), i, o) {
        const char *in = text(o, "in", &n), *out = text(o, "out", &m);
        StrBuf got = fn(in, n);
        EXPECT(got.n == m && !memcmp(got.p, out, m), "%s: '%s' became '%s'", name, in, got.p);
        free(got.p);
    }
}

static void line_rows(json_t *all, const char *name, const char *(*fn)(const char *, size_t *)) {
    json_t *o;
    size_t i, n, m;
    json_array_foreach(json_object_get(all, name), i, o) {
        const char *in = text(o, "in", &n), *out = text(o, "out", &m), *got = fn(in, &n);
        EXPECT(n == m && !memcmp(got, out, m), "%s: '%s' became '%.*s'", name, in, (int)n, got);
    }
}

static void ratio_rows(json_t *all) {
    json_t *o;
    size_t i, n, m;
    json_array_foreach(json_object_get(all, "fuzz_ratio"), i, o) {
        const char *a = text(o, "a", &n), *b = text(o, "b", &m);
        int d = lb_fuzz_ratio(SCORER_HARNESS, a, n, b, m),
            l = lb_fuzz_ratio(SCORER_OURS, a, n, b, m);
        EXPECT(d == (int)number(o, "ratio_difflib"), "difflib '%s' '%s': %d", a, b, d);
        EXPECT(l == (int)number(o, "ratio_levenshtein"), "levenshtein '%s' '%s': %d", a, b, l);
    }
}

static void cut_row(json_t *o, const Segmenter *g) {
    size_t n, count;
    const char *in = text(o, "in", &n);
    json_t *out = json_object_get(o, "out");
    Span *span = segment(g, in, n, &count);
    bool same = count == json_array_size(out);
    for (size_t k = 0; same && k < count; k++) {
        json_t *w = json_array_get(out, k);
        same = json_string_length(w) == span[k].len &&
               !memcmp(json_string_value(w), in + span[k].at, span[k].len);
    }
    EXPECT(same, "'%s' is cut into %zu words, not as expected", in, count);
    free(span);
}

// the vectors, and texts that test/make_jieba_vectors.py made
static void cut_rows(json_t *all, const Segmenter *g) {
    json_t *o;
    json_error_t je;
    size_t i;
    int made = 0;
    json_array_foreach(json_object_get(all, "jieba_cut"), i, o) cut_row(o, g);
    FILE *f = fopen("data/scorers/jieba.jsonl", "rb");
    CHECK(f, "data/scorers/jieba.jsonl cannot be read");
    while ((o = json_loadf(f, JSON_DISABLE_EOF_CHECK, &je)) != NULL) {
        cut_row(o, g);
        made++;
        json_decref(o);
    }
    fclose(f);
    EXPECT(made == 180, "%d texts in data/scorers/jieba.jsonl", made);
}

// what holds without a dictionary: the same words on both sides, whatever they are
static void plain_rows(void) {
    static const char a[] = "会议在2023年5月。", b[] = "2023年5月会议，";
    size_t count;
    Span *span = segment(NULL, a, sizeof a - 1, &count);
    EXPECT(count == 8, "%zu words without a dictionary", count);
    free(span);
    double f = lb_metric(LB_F1_ZH, SCORER_OURS, NULL, a, sizeof a - 1, b, NULL, 0);
    EXPECT(fabs(f - 12.0 / 13) < 1e-12, "F1 of characters is %.17g", f);
}

// random bytes: bounds, no fault; equal lines are equal
static void noise(const Segmenter *g) {
    Rng rng = { 7 };
    for (int i = 0; i < 400; i++) {
        char s[97], r[97];
        size_t n = rng_below(&rng, 96), m = rng_below(&rng, 96);
        for (size_t k = 0; k < n; k++)
            s[k] = (char)(rng_below(&rng, i % 2 ? 256 : 96) + (i % 2 ? 0 : 32));
        for (size_t k = 0; k < m; k++) r[k] = (char)(1 + rng_below(&rng, 255));
        r[m] = 0;
        const char *classes[2] = { "a", r };
        for (int w = 0; w < 2; w++)
            for (int k = LB_F1_EN; k <= LB_CODE; k++) {
                double got = lb_metric((LbMetric)k, (Scorer)w, g, s, n, r, classes, 2);
                EXPECT(got >= 0 && got <= 1, "metric %d of noise is %g", k, got);
            }
    }
    // the recursion that overflows: 990 equal words pass, 991 do not
    StrBuf t = { 0 };
    for (int i = 0; i < 991; i++) {
        if (i == 990) {
            double f = lb_metric(LB_ROUGE, SCORER_HARNESS, g, t.p, t.n, t.p, NULL, 0);
            EXPECT(f > 0.99, "990 equal words give %g", f);
        }
        str_fmt(&t, "w%d ", i);
    }
    double lost = lb_metric(LB_ROUGE, SCORER_HARNESS, g, t.p, t.n, t.p, NULL, 0),
           kept = lb_metric(LB_ROUGE, SCORER_OURS, g, t.p, t.n, t.p, NULL, 0);
    EXPECT(lost == 0 && kept > 0.99, "991 equal words give %g and %g", lost, kept);
    free(t.p);
}

// whole files: the published scorer's means; a group of lines, then the summary line
static double file_mean(const char *name, json_t *o, const char *length, json_t **summary) {
    char path[] = "/tmp/longbenchXXXXXX";
    int fd = mkstemp(path);
    json_t *pred, *last = NULL;
    size_t i;
    Err err;
    CHECK(fd >= 0, "no temporary file");
    FILE *f = fdopen(fd, "w"), *out = tmpfile();
    json_array_foreach(json_object_get(o, "predictions"), i, pred) {
        json_t *row = json_pack("{sOsOsOsi}", "pred", pred, "answers",
                                json_array_get(json_object_get(o, "answers"), i), "all_classes",
                                json_object_get(o, "all_classes") ?
                                json_object_get(o, "all_classes") : json_null(), "length", 1);
        if (length)
            json_object_set(row, "length", json_array_get(json_object_get(o, length), i));
        json_dumpf(row, f, JSON_COMPACT);
        fputc('\n', f);
        json_decref(row);
    }
    fclose(f);
    const Task *task = lb_task(name);
    CHECK(task && out, "no task %s", name);
    EXPECT(!lb_predictions_score(out, task, path, SCORER_HARNESS, &err), "%s", err.msg);
    rewind(out);
    char line[4096];
    while (fgets(line, sizeof line, out)) {
        json_decref(last);
        last = json_loads(line, 0, NULL);
    }
    double mean = number(last, "score");
    *summary = last;
    fclose(out);
    unlink(path);
    return mean;
}

static void scorer_rows(json_t *all) {
    json_t *o, *summary, *v;
    const char *key;
    char name[64];
    size_t i;
    json_array_foreach(json_object_get(all, "scorer"), i, o) {
        snprintf(name, sizeof name, "longbench/%s", text(o, "dataset", NULL));
        double got = file_mean(name, o, NULL, &summary);
        EXPECT(fabs(got - number(o, "score")) < 1e-9, "%s: mean %g", name, got);
        json_decref(summary);
    }
    json_array_foreach(json_object_get(all, "scorer_e"), i, o) {
        snprintf(name, sizeof name, "longbench/%s_e", text(o, "dataset", NULL));
        file_mean(name, o, "lengths", &summary);
        json_object_foreach(json_object_get(o, "scores"), key, v) {
            json_t *got = json_object_get(summary, key);
            EXPECT(json_equal(got, v), "%s, %s: %g", name, key, json_number_value(got));
        }
        json_decref(summary);
    }
}

static void count_up(IntVec *v, int from, int n) {
    for (int i = 0; i < n; i++) ints_push(v, from + i);
}

// the ids that are left of a prompt of n, each named by its number, whatever part of it is context:
// the published cut; a template around it, numbered from -1 and -9 down, stays whole
static void cut_rows_of_prompts(json_t *all) {
    json_t *o;
    size_t i;
    ChatPieces bare, chat;
    memset(&bare, 0, sizeof bare);
    memset(&chat, 0, sizeof chat);
    count_up(&chat.ids[CHAT_PREFIX], -2, 2);
    count_up(&chat.ids[CHAT_USER_CLOSE], -9, 1);
    json_array_foreach(json_object_get(all, "middle_truncation"), i, o)
        for (int way = 0; way < 8; way++) {
            Prompter p = { .chat = way & 1 ? &chat : &bare, .bare = &bare };
            const Task *task = lb_task(way & 2 ? "longbench/repobench-p" : "longbench/qasper");
            int n = (int)number(o, "n_tokens"), limit = (int)number(o, "max_length");
            int context = way & 4 ? n / 10 : n - 1, extra = way & 1 && !(way & 2) ? 3 : 0;
            json_t *first = json_object_get(o, "first"), *last = json_object_get(o, "last");
            Session s;
            IntVec got = { 0 };
            memset(&s, 0, sizeof s);
            session_turns(&s.s, 1);
            s.turn = (TurnIds *)calloc(1, sizeof *s.turn);
            if (extra) count_up(&s.context, -2, 2);
            count_up(&s.context, 0, context);
            count_up(&s.turn[0].first, context, n - context);
            if (extra) count_up(&s.turn[0].first, -9, 1);
            // by the limit of the run, or by the model's
            session_cut_prompt(&p, task, &s, i % 2 ? limit : INT_MAX,
                               i % 2 ? 1 << 20 : limit + extra);
            ints_add(&got, s.context.p, s.context.n);
            ints_add(&got, s.turn[0].first.p, s.turn[0].first.n);
            int want = extra, at = extra ? 2 : 0;
            for (int half = 0; half < 2; half++) {
                json_t *range = half ? last : first;
                if (!json_is_array(range)) continue;
                int a = (int)json_integer_value(json_array_get(range, 0)),
                    b = (int)json_integer_value(json_array_get(range, 1));
                for (want += b - a; a < b && at < (int)got.n && got.p[at] == a; a++) at++;
                EXPECT(a == b, "%d tokens cut to %d, way %d: token %d is missing", n, limit, way,
                       a);
            }
            EXPECT((int)got.n == want, "%d tokens cut to %d, way %d: %zu are left, not %d", n,
                   limit, way,
                   got.n, want);
            EXPECT(!extra || (got.p[0] == -2 && got.p[got.n - 1] == -9), "the template was cut");
            EXPECT(!!s.whole == json_is_true(json_object_get(o, "truncated")), "whole is %d",
                   s.whole);
            free(got.p);
            session_free(&s);
        }
    free(chat.ids[CHAT_PREFIX].p);
    free(chat.ids[CHAT_USER_CLOSE].p);
}

// every set: what is generated reads back from its record, and its golden answer scores full marks
static void made_rows(void) {
    const Task *task;
    Err err;
    for (int k = 0; (task = lb_task_at(k)); k++)
        for (int number_ = 1; number_ <= 3; number_++) {
            TaskSession s = { .number = number_ }, same = { .number = number_ }, back;
            StrBuf line = { 0 };
            int units = number_ * 17;
            task->make(&s, 5, 1, units);
            task->make(&same, 5, 1, units);
            EXPECT(s.context.n == same.context.n &&
                   !memcmp(s.context.p, same.context.p, s.context.n),
                   "%s is not a function of its seed", task->name);
            const char *gold = s.turns[0].answer;
            double score = task_score(task, &s, 0, gold, strlen(gold), SCORER_OURS);
            EXPECT(score > 0.999, "%s: its own answer '%s' scores %g", task->name, gold, score);
            EXPECT(task_score(task, &s, 0, "", 0, SCORER_OURS) == 0, "%s: silence scores",
                   task->name);
            EXPECT(task->lb->metric == LB_COUNT || task->lb->metric == LB_RETRIEVAL_EN ||
                   task->lb->metric == LB_RETRIEVAL_ZH || task->lb->metric == LB_CLASS ||
                   task->lb->metric == LB_CODE || task->lb->metric == LB_ROUGE ||
                   task->lb->metric == LB_ROUGE_ZH || strstr(s.context.p, gold) ||
                   !strcmp(task->lb->key, "triviaqa") ||
                   strstr(s.turns[0].input, gold), "%s: '%s' is not in the text", task->name, gold);
            record_write(task, &s, &line);
            EXPECT(!record_parse(task, line.p, line.n, &back, &err), "%s: %s", task->name, err.msg);
            EXPECT(back.context.n == s.context.n && !strcmp(back.turns[0].question,
                   s.turns[0].question) && back.n_classes == s.n_classes &&
                   back.turns[0].part == s.turns[0].part, "%s: the record reads otherwise",
                   task->name);
            free(line.p);
            session_clear(&back);
            session_clear(&s);
            session_clear(&same);
        }
}

// no two sets hold the same record
static void sets_differ(void) {
    uint64_t seen[32];
    for (int i = 0; i < lb_n_sets(); i++) {
        TaskSession s = { .number = 1 };
        lb_task_at(i)->make(&s, 5, 1, 12);
        seen[i] = text_hash(s.context.p, s.context.n);
        for (int k = 0; k < i; k++)
            EXPECT(seen[k] != seen[i], "%s has the text of %s", lb_set(i)->key, lb_set(k)->key);
        session_clear(&s);
    }
}

static void bad_records(void) {
    static const struct { const char *set, *text, *says; } bad[] = {
        { "longbench/qasper", "[]", "not a JSON object" },
        { "longbench/qasper", "{\"context\": 1}", "'context'" },
        { "longbench/qasper", "{\"context\": \"\"}", "'input' is missing" },
        { "longbench/qasper", "{\"context\": \"\", \"input\": \"\"}", "'answers'" },
        { "longbench/qasper", "{\"context\": \"\", \"input\": \"\", \"answers\": []}", "empty" },
        { "longbench/trec", "{\"context\": \"\", \"input\": \"\", \"answers\": [\"a\"]}",
          "all_classes" },
        { "longbench/trec_e", "{\"context\": \"\", \"input\": \"\", \"answers\": [\"a\"], "
          "\"all_classes\": [\"a\"]}", "'length'" },
        { "longbench/lcc", "{\"context\": \"\", \"input\": \"\", \"answers\": [3]}",
          "'answers[0]'" },
    };
    for (size_t i = 0; i < COUNTOF(bad); i++) {
        TaskSession s;
        Err err = { "", 0 };
        int rc = record_parse(lb_task(bad[i].set), bad[i].text, strlen(bad[i].text), &s, &err);
        EXPECT(rc && strstr(err.msg, bad[i].says), "%s: '%s'", bad[i].text, err.msg);
    }
}

int main(void) {
    json_error_t e;
    Err err;
    json_t *file = json_load_file("data/scorers/longbench.json", JSON_ALLOW_NUL, &e);
    CHECK(file, "data/scorers/longbench.json: %s", e.text);
    json_t *all = json_object_get(file, "longbench");
    double began = now_s();
    Segmenter *g = segmenter_open(NULL, &err);
    if (g) printf("the dictionary was read in %.2f s\n", now_s() - began);
    normal_rows(all, "normalize_answer", lb_normalize_en);
    normal_rows(all, "normalize_zh_answer", lb_normalize_zh);
    line_rows(all, "first_line_fewshot", lb_first_line);
    line_rows(all, "code_line_selection", lb_code_line);
    metric_rows(all, "qa_f1_score", LB_F1_EN, g, SCORER_HARNESS, "score");
    metric_rows(all, "rouge_score", LB_ROUGE, g, SCORER_HARNESS, "score");
    metric_rows(all, "count_score", LB_COUNT, g, SCORER_HARNESS, "score");
    metric_rows(all, "retrieval_score", LB_RETRIEVAL_EN, g, SCORER_HARNESS, "score");
    metric_rows(all, "retrieval_zh_score", LB_RETRIEVAL_ZH, g, SCORER_HARNESS, "score");
    metric_rows(all, "classification_score", LB_CLASS, g, SCORER_HARNESS, "score");
    metric_rows(all, "code_sim_score", LB_CODE, g, SCORER_HARNESS, "score_difflib");
    metric_rows(all, "code_sim_score", LB_CODE, g, SCORER_OURS, "score_levenshtein");
    ratio_rows(all);
    plain_rows();
    noise(g);
    lb_use_segmenter(g);
    scorer_rows(all);
    made_rows();
    sets_differ();
    bad_records();
    cut_rows_of_prompts(all);
    if (g) {
        cut_rows(all, g);
        metric_rows(all, "qa_f1_zh_score", LB_F1_ZH, g, SCORER_HARNESS, "score");
        metric_rows(all, "rouge_zh_score", LB_ROUGE_ZH, g, SCORER_HARNESS, "score");
    } else printf("no jieba dictionary on this machine: its vectors are left out\n");
    segmenter_close(g);
    json_decref(file);
    printf("%d comparisons, %d failed\n", compared, failures);
    return failures != 0;
}
