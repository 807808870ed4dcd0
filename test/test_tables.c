// test_tables.c - reports over hand-made runs: literal tables, the paper's averages, intervals that
// can be worked out, merging of runs and shards, what is left out and what is refused.
#include "scb.h"
#include <jansson.h>
#include <sys/stat.h>

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_tables.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static char root[64];
static StrBuf rows;

// run NAME of the test: rows so far, and a manifest unless its options are NULL
static const char *run_make(const char *name, const char *hash, const char *options) {
    static char dir[16][160];
    static int next;
    char path[200];
    char *at = dir[next++ % 16];
    snprintf(at, 160, "%s/%s", root, name);
    mkdir(at, 0777);
    snprintf(path, sizeof path, "%s/results.jsonl", at);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(rows.p ? rows.p : "", 1, rows.n, f) == rows.n && !fclose(f),
          "cannot write %s", path);
    snprintf(path, sizeof path, "%s/manifest.json", at);
    if (options) {
        f = fopen(path, "wb");
        CHECK(f, "cannot write %s", path);
        fprintf(f, "{\"model\": {\"path\": \"m/tiny.bin\", \"hash\": \"%s\"}, \"options\": %s}",
                hash, options);
        fclose(f);
    }
    rows.n = 0;
    return at;
}

static Row row_of(const char *task, const char *mode, const char *method, int session, int turn,
                  double score) {
    static const RowsAt q = { 3, 9, 4.5, 2000000, 3000000 };
    Row r;
    row_clear(&r);
    r.task = task;
    r.mode = mode;
    r.method = method;
    r.session = session;
    r.turn = turn;
    r.score = score;
    r.preset = "scbench";
    r.params = strcmp(method, "keep-last") ? "{}" : "{\"budget\": 64}";
    r.history = strcmp(mode, "multi-turn") ? NULL : "golden";
    r.query_aware = !strcmp(mode, "multi-turn") ? "first" : !strcmp(mode, "single") ? "each" : "no";
    r.ctx = 128;
    r.prediction = "p";
    r.prediction_len = 1;
    r.gold = "g";
    r.q = q;
    r.n_prompt = 9;
    r.prefill_s = 2;
    r.decode_tok_s = 10;
    return r;
}

static void put(const Row *r) {
    row_json(r, &rows);
    str_puts(&rows, "\n");
}
static void add(const char *task, const char *mode, const char *method, int session, int turn,
                double score) {
    Row r = row_of(task, mode, method, session, turn, score);
    put(&r);
}

static char *report(const char *const *dirs, int n, const char *table, const char *format,
                    int cases) {
    char *text = NULL;
    size_t size;
    Err err = { "", 0 };
    ReportOpts o = { table, format, cases };
    FILE *out = open_memstream(&text, &size);
    int rc = report_print(out, dirs, n, &o, &err);
    if (rc) fprintf(out, "error: %s", err.msg);
    fclose(out);
    return text;
}

static void same(int line, const char *dir, const char *table, const char *format,
                 const char *want) {
    char *got = report(&dir, 1, table, format, 0);
    if (strcmp(got, want))
        failures++, printf("line %d: --table %s:\n%s---- instead of\n%s", line, table, got, want);
    free(got);
}
#define SAME(...) same(__LINE__, __VA_ARGS__)

static void holds(int line, char *got, const char *const *wanted) {
    for (; *wanted; wanted++)
        if (!strstr(got, *wanted))
            failures++, printf("line %d: '%s' is not in\n%s\n", line, *wanted, got);
    free(got);
}
#define HOLDS(got, ...) holds(__LINE__, got, (const char *const[]){ __VA_ARGS__, NULL })
#define REPORT(dir, ...) report((const char *const[]){ dir }, 1, __VA_ARGS__)

// Four sessions, two turns. full is right but in session 4's turn 2. corm loses sessions 3 and 4
// whole: of four sessions that score 1 1 0 0 a resample is all zeros or all ones in one case of 16
// each, so the interval is 0 to 100.
static const char *small_run(void) {
    for (int s = 1; s <= 4; s++) {
        for (int t = 1; t <= 2; t++) {
            add("retr_kv", "multi-turn", "full", s, t, s < 4 || t < 2);
            add("retr_kv", "multi-turn", "keep-last", s, t, s <= 2);
            add("retr_kv", "multi-request", "full", s, t, 1);
            add("retr_kv", "multi-request", "keep-last", s, t, s <= 2);
        }
    }
    return run_make("small", "ab", "{\"ctx\": 128}");
}

static void test_small(void) {
    const char *dir = small_run();
    SAME(dir, "turns", "text",
"retr_kv: accuracy in % by turn, 4 sessions\n"
"                     multi-turn           multi-request\n"
"method     budget       t1    t2  mean       t1     t2   mean\n"
"-------------------------------------------------------------\n"
"full       -         100.0  75.0  87.5    100.0  100.0  100.0\n"
"keep-last  64         50.0  50.0  50.0     50.0   50.0   50.0\n"
"\n"
"retr_kv: mean, 95 % interval over sessions; difference to full, paired by session\n"
"                     multi-turn                                    multi-request\n"
"method     budget    mean      interval  - full  interval of it     mean       interval  - full  interval of it\n"
"---------------------------------------------------------------------------------------------------------------\n"
"full       -         87.5  62.5 - 100.0       -               -    100.0  100.0 - 100.0       -               -\n"
"keep-last  64        50.0   0.0 - 100.0   -37.5    -75.0 .. 0.0     50.0    0.0 - 100.0   -50.0   -100.0 .. 0.0\n");
    SAME(dir, "methods", "md",
"overall score in % (AVG of the categories) and cost\n"
"\n"
"| method | budget | mode | score AVG | score interval | score - full | score interval of it | kept rows | kept KV MB | kept alloc | time prefill s | time tok/s |\n"
"| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
"| full | - | multi-turn | 87.5 | 62.5 - 100.0 | - | - | 4.5 | 2.00 | 3.00 | 4.00 | 10.0 |\n"
"| keep-last | 64 | multi-turn | 50.0 | 0.0 - 100.0 | -37.5 | -75.0 .. 0.0 | 4.5 | 2.00 | 3.00 | 4.00 | 10.0 |\n"
"| full | - | multi-request | 100.0 | 100.0 - 100.0 | - | - | 4.5 | 2.00 | 3.00 | 4.00 | 10.0 |\n"
"| keep-last | 64 | multi-request | 50.0 | 0.0 - 100.0 | -50.0 | -100.0 .. 0.0 | 4.5 | 2.00 | 3.00 | 4.00 | 10.0 |\n");
    SAME(dir, "categories", "text",
"score per category in %; AVG: mean of the categories\n"
"                     multi-turn           multi-request\n"
"method     budget    Retr.String   AVG    Retr.String    AVG\n"
"------------------------------------------------------------\n"
"full       -                87.5  87.5          100.0  100.0\n"
"keep-last  64               50.0  50.0           50.0   50.0\n"
"\n"
"AVG: 95 % interval over sessions; difference to full, paired by session\n"
"                     multi-turn                                    multi-request\n"
"method     budget     AVG      interval  - full  interval of it      AVG       interval  - full  interval of it\n"
"---------------------------------------------------------------------------------------------------------------\n"
"full       -         87.5  62.5 - 100.0       -               -    100.0  100.0 - 100.0       -               -\n"
"keep-last  64        50.0   0.0 - 100.0   -37.5    -75.0 .. 0.0     50.0    0.0 - 100.0   -50.0   -100.0 .. 0.0\n");
    SAME(dir, "tasks", "csv",
"kind,model,ctx,preset,method,budget,sizes,positions,compress,group,chat,scorer,history,query_aware,mode,category,task,part,turn,depth_from,depth_to,language,threshold,sessions,n,mean,lo,hi,against,diff,diff_lo,diff_hi,rows,kv_live_bytes,kv_alloc_bytes,prefill_s,tok_s,tokens\n"
"task,tiny,128,scbench,full,,{},,,,no,,golden,first,multi-turn,Retr.String,retr_kv,,,,,,,4,8,87.5,62.5,100,,,,,4.5,2e+06,3e+06,4,10,9\n"
"task,tiny,128,scbench,keep-last,64,\"{\"\"budget\"\":64}\",,,,no,,golden,first,multi-turn,Retr.String,retr_kv,,,,,,,4,8,50,0,100,full,-37.5,-75,0,4.5,2e+06,3e+06,4,10,9\n"
"task,tiny,128,scbench,full,,{},,,,no,,,no,multi-request,Retr.String,retr_kv,,,,,,,4,8,100,100,100,,,,,4.5,2e+06,3e+06,4,10,9\n"
"task,tiny,128,scbench,keep-last,64,\"{\"\"budget\"\":64}\",,,,no,,,no,multi-request,Retr.String,retr_kv,,,,,,,4,8,50,0,100,full,-50,-100,0,4.5,2e+06,3e+06,4,10,9\n");
    char *a = REPORT(dir, NULL, NULL, 0), *b = REPORT(dir, NULL, NULL, 0);
    EXPECT(!strcmp(a, b), "two reports of one run differ");
    HOLDS(a, "accuracy in % by turn", "overall score in % (AVG of the categories) and cost");
    free(b);
}

// Rows of the paper's tables 11 and 12 (Llama-3.1-8B, Qwen2.5-72B full) and what its tables 4 and
// 10 make of them. A mix task's cell is the mean of its parts, here 3 points around it.
static const char *const paper_tasks[12] = {
    "retr_kv", "retr_ps", "retr_mh", "repoqa", "en_qa", "zh_qa", "en_mc", "icl", "en_sum",
    "math_find",
    "mix_sum_niah", "mix_repoqa_kv",
};
static const struct { const char *method, *mode; double cell[12], want[5]; } paper[] = {
    { "full", "multi-turn",
      { 80.8, 42.8, 47.6, 40.4, 29.3, 21.1, 57.0, 42.6, 40.7, 22.0, 60.7, 70.7 },
      { 57.1, 36.9, 35.1, 65.7, 48.7 } },
    { "full", "multi-request",
      { 56.2, 16.8, 15.5, 45.0, 25.1, 9.8, 65.9, 54.1, 38.3, 38.4, 55.4, 23.0 },
      { 29.5, 36.4, 43.6, 39.2, 37.2 } },
    { "minference", "multi-turn",
      { 70.8, 15.6, 30.8, 48.2, 30.1, 22.5, 57.9, 49.3, 39.8, 14.2, 56.3, 59.3 },
      { 39.1, 39.7, 34.4, 57.8, 42.7 } },
    { "minference", "multi-request",
      { 48.6, 15.6, 22.5, 43.2, 23.6, 12.5, 62.9, 62.6, 36.6, 51.0, 45.9, 15.9 },
      { 28.9, 35.6, 50.1, 30.9, 36.4 } },
    { "qwen-full", "multi-turn",
      { 40.8, 62.2, 51.5, 65.5, 40.0, 10.9, 65.7, 66.7, 37.9, 12.2, 71.9, 82.0 },
      { 51.5, 45.5, 38.9, 77.0, 53.2 } },
    { "qwen-full", "multi-request",
      { 37.8, 45.2, 10.2, 64.3, 37.0, 3.8, 82.1, 74.1, 41.6, 43.2, 71.1, 33.6 },
      { 31.1, 46.8, 53.0, 52.4, 45.8 } },
};

static double csv_mean(const char *csv, const char *kind, const char *method, const char *mode,
                       const char *category) {
    double mean = NAN;
    for (const char *line = csv; (line = strchr(line, '\n')) != NULL && line[1];) {
        char text[512], *field[40], *at = text;
        size_t n = strcspn(++line, "\n");
        int k = 0;
        snprintf(text, sizeof text, "%.*s", (int)(n < 511 ? n : 511), line);
        while (k < 40 && (field[k] = strsep(&at, ",")) != NULL) k++;
        if (k > 26 && !strcmp(field[0], kind) && !strcmp(field[4], method) &&
            !strcmp(field[14], mode) &&
            !strcmp(field[15], category)) mean = strtod(field[25], NULL);
    }
    return mean;
}

static void test_paper(void) {
    static const char *const categories[] = { "Retr.String", "Retr.Semantic", "Global",
                                              "Multi-task" };
    for (size_t i = 0; i < COUNTOF(paper); i++) {
        for (int t = 0; t < 12; t++) {
            Row r = row_of(paper_tasks[t], paper[i].mode, paper[i].method, 1, 1,
                           paper[i].cell[t] / 100);
            r.turns = t < 10 ? 1 : 2;
            for (int k = 0; k < r.turns; k++) {
                if (t >= 10)
                    r.part = k ? "b" : "a", r.score = (paper[i].cell[t] + (k ? 3 : -3)) / 100;
                r.turn = k + 1;
                put(&r);
            }
        }
    }
    const char *dir = run_make("paper", "ab", NULL);
    char *csv = REPORT(dir, "categories", "csv", 0);
    for (size_t i = 0; i < COUNTOF(paper); i++) {
        for (int c = 0; c < 5; c++) {
            double got = csv_mean(csv, c < 4 ? "category" : "average", paper[i].method,
                                  paper[i].mode,
                                  c < 4 ? categories[c] : "");
            EXPECT(fabs(got - paper[i].want[c]) < 0.0501, "%s, %s, %s: %.3f, not %.1f",
                   paper[i].method,
                   paper[i].mode, c < 4 ? categories[c] : "AVG", got, paper[i].want[c]);
        }
    }
    free(csv);
    HOLDS(REPORT(dir, "tasks", "text", 0),
          "method      budget  Retr.KV  Retr.PS  Retr.MH  RepoQA  En.QA  Zh.QA  En.MC   ICL  En.Sum  Math.Find"
          "  Mix.Sum+NIAH  Mix.RepoQA+KV  mean\n",
          "full        -          80.8     42.8     47.6    40.4   29.3   21.1   57.0  42.6    40.7       22.0"
          "          60.7           70.7  46.3\n",
          "minference  -         -10.0    -27.2    -16.8    +7.8",
          "full        -         57.7    63.7    67.7     73.7",
          "multi-request: parts of the mix tasks in %");
}

// cell of a Markdown table: the line of a method, counted from the end, 0 the last
static double md_cell(const char *md, const char *method, int from_end) {
    char head[64];
    double cell[64];
    int n = 0;
    snprintf(head, sizeof head, "\n| %s |", method);
    const char *at = strstr(md, head);
    if (!at) return NAN;
    for (at += strlen(head); *at && *at != '\n' && n < 64; at++)
        if (*at == '|') cell[n++] = strtod(at + 1, NULL);
    return n - 2 - from_end >= 0 ? cell[n - 2 - from_end] : NAN;    // behind the last | is no cell
}

// CORM's tables 1 and 2: the overall scores that the paper prints are those of its cells
static void test_corm_tables(void) {
    static const char *const key[] = { "EN", "ZH", "All" };
    static const struct { const char *task, *id; } set[] = {
        { "narrativeqa", "1-1" }, { "qasper", "1-2" }, { "multifieldqa_en", "1-3" },
        { "multifieldqa_zh", "1-4" }, { "hotpotqa", "2-1" }, { "2wikimqa", "2-2" },
        { "musique", "2-3" }, { "dureader", "2-4" }, { "gov_report", "3-1" }, { "qmsum", "3-2" },
        { "multi_news", "3-3" }, { "vcsum", "3-4" }, { "trec", "4-1" }, { "triviaqa", "4-2" },
        { "samsum", "4-3" }, { "lsht", "4-4" }, { "passage_count", "5-1" },
        { "passage_retrieval_en", "5-2" }, { "passage_retrieval_zh", "5-3" }, { "lcc", "6-1" },
        { "repobench-p", "6-2" },
    };
    json_error_t je;
    json_t *file = json_load_file("data/scorers/longbench.json", JSON_ALLOW_NUL, &je), *o;
    json_t *all = json_object_get(file, "corm_overall");
    size_t i;
    CHECK(json_array_size(all) == 5, "data/scorers/longbench.json: no corm_overall");
    json_array_foreach(all, i, o)
        for (size_t t = 0; t < COUNTOF(set); t++) {
            char task[64];
            json_t *cell = json_object_get(json_object_get(o, "scores"), set[t].id);
            snprintf(task, sizeof task, "longbench/%s", set[t].task);
            add(task, "multi-turn", json_string_value(json_object_get(o, "method")), 1, 1,
                json_number_value(cell) / 100);
        }
    const char *dir = run_make("corm", "ab", NULL);
    char *md = REPORT(dir, "longbench", "md", 0);
    json_array_foreach(all, i, o) {
        const char *method = json_string_value(json_object_get(o, "method"));
        json_t *printed = json_object_get(o, "paper_rounded");
        for (int k = 0; k < 3; k++) {
            double got = md_cell(md, method, 4 - k),
                   want = json_number_value(json_object_get(printed, key[k]));
            EXPECT(fabs(got - want) < 1e-9, "%s, %s: %.1f, the paper has %.1f", method, key[k], got,
                   want);
        }
        EXPECT(md_cell(md, method, 1) == 4.5 && md_cell(md, method, 0) == 50,
               "%s: %g rows, %g %% dropped",
               method, md_cell(md, method, 1), md_cell(md, method, 0));
    }
    json_decref(file);
    free(md);
}

// LongBench-E: a column per length, whatever the order of the records; an empty one says so
static void test_lengths(void) {
    static const struct { const char *part; double score; } rec[] = {
        { "8k+", 1 }, { "0-4k", 0.5 }, { "8k+", 0 }, { "0-4k", 0 }, { "8k+", 0.25 },
    };
    for (int i = 0; i < (int)COUNTOF(rec); i++) {
        Row r = row_of("longbench/qasper_e", "multi-turn", "full", i + 1, 1, rec[i].score);
        r.part = rec[i].part;
        put(&r);
    }
    const char *dir = run_make("lengths", "ab", NULL);
    HOLDS(REPORT(dir, "longbench", "text", 0),
          "LongBench-E, multi-turn: score per set in % by words",
          "                  qasper_e\nmethod  budget    0-4k  4-8k   8k+\n",
          "full    -         25.0     -  41.7\n");
    HOLDS(REPORT(dir, NULL, "text", 0), "LongBench-E, multi-turn");
}

// turns of one part are no zeros of the other; a question count per session; teams of unequal turns
static void test_means(void) {
    for (int s = 1; s <= 2; s++) {
        for (int t = 1; t <= 3; t++) {
            if (s == 2 && t == 3) continue;                 // session 2 has two turns
            Row r = row_of("en_qa", "multi-turn", "full", s, t, t == 3 ? 0 : s == 1);
            r.turns = s == 1 ? 3 : 2;
            put(&r);
            r.mode = "multi-request";
            r.query_aware = "no";
            put(&r);
        }
    }
    const char *dir = run_make("means", "ab", NULL);
    // turns 50 50 0: their mean is 33.3; of all five answers two are right
    HOLDS(REPORT(dir, "tasks", "text", 0), "full    -        33.3  33.3",
          "full    -        40.0  40.0");
}

static void test_pairs(void) {
    for (int s = 1; s <= 4; s++) {
        for (int t = 1; t <= 2; t++) {
            static const char *const methods[] = { "full", "corm" };
            for (int m = 0; m < 2; m++) {
                add("retr_kv", "multi-turn", methods[m], s, t, 1);
                add("retr_kv", "multi-request", methods[m], s, t, m == 0);
                add("retr_kv", "single", methods[m], s, t, m == 0 || t == 1);
                Row r = row_of("retr_kv", "multi-turn", methods[m], s, t, m == 0 || t == 1);
                r.history = "own";
                put(&r);
                r.history = "golden";
                r.query_aware = "no";
                r.score = m == 0;
                put(&r);
            }
        }
    }
    const char *dir = run_make("pairs", "ab", NULL);
    SAME(dir, "history", "text",
"retr_kv: score in % with the model's own answers as history (difference to golden ones)\n"
"method  budget  query_aware           t1            t2          mean  interval of the difference\n"
"------------------------------------------------------------------------------------------------\n"
"full    -       default      100.0 (0.0)   100.0 (0.0)   100.0 (0.0)                  0.0 .. 0.0\n"
"corm    -       default      100.0 (0.0)  0.0 (-100.0)  50.0 (-50.0)              -50.0 .. -50.0\n");
    SAME(dir, "query", "text",
"multi-turn: score in % with / without the question in the first feed\n"
"method  budget  history   with    Retr.String            AVG  difference    interval of it\n"
"------------------------------------------------------------------------------------------\n"
"full    -       golden   first  100.0 / 100.0  100.0 / 100.0         0.0        0.0 .. 0.0\n"
"corm    -       golden   first    100.0 / 0.0    100.0 / 0.0      +100.0  +100.0 .. +100.0\n");
    SAME(dir, "reuse", "text",
"retr_kv: score in % by reuse, and the difference to single, paired by session\n"
"                                        score                                difference\n"
"method  budget  history  query_aware    single  multi-turn  multi-request    multi-turn        interval  multi-request        interval\n"
"--------------------------------------------------------------------------------------------------------------------------------------\n"
"full    -       golden   default         100.0       100.0          100.0           0.0      0.0 .. 0.0            0.0      0.0 .. 0.0\n"
"corm    -       golden   default          50.0       100.0            0.0         +50.0  +50.0 .. +50.0          -50.0  -50.0 .. -50.0\n");
    HOLDS(REPORT(dir, "turns", "text", 0), "method  budget  history  query_aware",
          "corm    -       own      default",
          "corm    -       golden   no");
    HOLDS(REPORT(small_run(), "history", NULL, 0),
          "error: --table history: no method was run with both histories");
    HOLDS(REPORT(small_run(), "query", NULL, 0), "error: --table query: no method was run both");
}

// two arms on one context of 10 s, of which 2 s are column sums; the second has a root of its own
static void test_cost(void) {
    Row a = row_of("retr_kv", "multi-request", "full", 1, 1, 1);
    Row b = row_of("retr_kv", "multi-request", "h2o", 1, 1, 1);
    a.shared_prefill_s = 10, a.root_s = 0, a.shared_policy_s = 2, a.prefill_s = 1;
    a.decode_s = 3, a.policy_s = 0;
    b.shared_prefill_s = 10.3, b.root_s = 0.3, b.shared_policy_s = 2, b.prefill_s = 1.2;
    b.decode_s = 2, b.policy_s = 0.5;
    put(&a);
    put(&b);
    HOLDS(REPORT(run_make("cost", "ab", NULL), "cost", "md", 0),
          "| full | - | multi-request | 1 | 10.00 | 1.00 | 3.00 | 2.00 | 14.00 | 1.167 |",
          "| h2o | - | multi-request | 1 | 10.00 | 1.50 | 2.00 | 2.50 | 13.50 | 1.227 |",
          "| 2 arms |  | multi-request | 1 | 10.00 | 2.50 | 5.00 | 2.50 | 17.50 | 1.167 |");
}

static void test_left_out(void) {
    for (int s = 1; s <= 5; s++) {
        for (int t = 1; t <= 2; t++) {
            Row r = row_of("retr_kv", "multi-turn", "full", s, t, 1);
            r.turns = 2;
            if (s == 4 && t == 2) continue;
            if (s == 5 && t == 2) r.error = "it broke", r.score = NAN;
            put(&r);
        }
    }
    str_puts(&rows, "{\"session\": 6, \"tur");
    const char *dir = run_make("cut", "ab", NULL);
    HOLDS(REPORT(dir, "methods", NULL, 0),
          "results.jsonl: the last line is torn and was left out\n",
          "1 session with a failed turn counts in no mean", "1 unfinished session is left out\n",
          "100.0");
    str_puts(&rows, "{\"session\": 6}\n");
    HOLDS(REPORT(run_make("bad", "ab", NULL), NULL, NULL, 0),
          "bad/results.jsonl: line 1 is no result row");
    HOLDS(REPORT(run_make("empty", "ab", NULL), NULL, NULL, 0),
          "empty/results.jsonl: holds no whole row yet");
    HOLDS(REPORT(root, NULL, NULL, 0), "holds neither results.jsonl nor shard-*/results.jsonl");
    add("retr_kv", "upside-down", "full", 1, 1, 1);
    HOLDS(REPORT(run_make("mode", "ab", NULL), NULL, NULL, 0),
          "line 1 has the unknown mode 'upside-down'");
    HOLDS(REPORT(dir, "turn", NULL, 0), "unknown --table 'turn'; did you mean turns?");
    HOLDS(REPORT(dir, NULL, "html", 0), "unknown --format 'html'; it is one of text, csv, md");
}

static void test_merge(void) {
    for (int s = 1; s <= 4; s++) add("retr_kv", "multi-turn", "full", s, 1, s % 2);
    const char *all = run_make("all", "ab", "{\"ctx\": 128}");
    char *whole = REPORT(all, "turns", NULL, 0);
    char sub[200];
    snprintf(sub, sizeof sub, "%s/run", root);
    mkdir(sub, 0777);
    for (int i = 1; i <= 2; i++) {
        char name[32];
        for (int s = i; s <= 4; s += 2) add("retr_kv", "multi-turn", "full", s, 1, s % 2);
        snprintf(name, sizeof name, "run/shard-%d", i);
        snprintf(sub, sizeof sub, "{\"ctx\": 128, \"shard\": \"%d/2\"}", i);
        run_make(name, "ab", sub);
    }
    snprintf(sub, sizeof sub, "%s/run", root);
    char *merged = REPORT(sub, "turns", NULL, 0);
    EXPECT(!strcmp(whole, merged), "two shards:\n%s---- one run:\n%s", merged, whole);
    free(whole);
    free(merged);
    const char *const twice[] = { all, sub };
    HOLDS(report(twice, 2, NULL, NULL, 0), "all/results.jsonl line 1 and ",
          "run/shard-1/results.jsonl line 1 are the same turn "
          "(retr_kv, full, multi-turn, turn 1)");
    for (int s = 5; s <= 8; s++) add("retr_kv", "multi-turn", "full", s, 1, 1);
    const char *const more[] = { all, run_make("more", "ab", "{\"ctx\": 128}") };
    HOLDS(report(more, 2, "turns", NULL, 0), "retr_kv: accuracy in % by turn, 8 sessions",
          "full    -         75.0  75.0");
    add("retr_kv", "multi-turn", "full", 1, 1, 1);
    const char *const models[] = { all, run_make("other", "cd", "{\"ctx\": 128}") };
    HOLDS(report(models, 2, "turns", NULL, 0), "model    method  budget", "tiny ab  full",
          "tiny cd  full");
    run_make("run/shard-2", "ab", "{\"ctx\": 129, \"shard\": \"2/2\"}");
    HOLDS(REPORT(sub, NULL, NULL, 0),
          "shard-2/manifest.json: the run there has another ctx: 129, not 128; only shards "
          "of one run lie together");
}

static void test_cases(void) {
    static const char gold[] = "北京 is\x1b[31m red\n";
    for (int t = 1; t <= 2; t++) {
        Row r = row_of("zh_qa", "multi-turn", "full", 1, t, 1);
        r.gold = gold;
        r.question = "谁?";
        r.prediction = "a\xff";
        r.prediction_len = 2;
        put(&r);
        r.method = "corm";
        r.score = t == 1 ? 0.25 : 1;
        put(&r);
    }
    const char *dir = run_make("cases", "ab", NULL);
    HOLDS(REPORT(dir, NULL, NULL, 3),
          "\ncorm, zh_qa, multi-turn, session 1, turn 1: 25.0, full 100.0\n"
          "    question    谁?\n"
          "    gold        北京 is\\u001b[31m red\\n\n"
          "    prediction  a\xef\xbf\xbd\n"
          "    full        a\xef\xbf\xbd\n");
    for (int s = 1; s <= 4; s++) {
        add("retr_kv", "multi-turn", "full", s, 1, 0);
        add("retr_kv", "multi-turn", "北京", s, 1, s > 1);
    }
    dir = run_make("better", "ab", NULL);
    // 0 to 1 in three of four: a resample without any is one in 256, so the interval begins at 25
    HOLDS(REPORT(dir, "turns", NULL, 0),
          "warning: 北京 beats full on Retr.KV, multi-turn, by 75.0 points (95 % interval "
          "25.0 to 100.0)", "method  budget", "full    - ", "北京    - ");
}

int main(void) {
    snprintf(root, sizeof root, "/tmp/test_tables.XXXXXX");
    CHECK(mkdtemp(root), "no temporary directory");
    test_small();
    test_paper();
    test_corm_tables();
    test_lengths();
    test_means();
    test_pairs();
    test_cost();
    test_left_out();
    test_merge();
    test_cases();
    char clean[96];
    snprintf(clean, sizeof clean, "rm -rf %s", root);
    if (system(clean)) failures++;
    free(rows.p);
    printf("%d failures\n", failures);
    return failures != 0;
}
