// longbench.c - LongBench (Bai et al., arXiv 2308.14508): 21 data sets as tasks of one turn, and
// the 13 of LongBench-E, whose scores are split by the length of the record.
//
// A prompt is: text before the context, the context, text after it with the question in place. The
// wording is this program's own; task_templates takes another. The few-shot and code sets are
// never put in a chat template: they end where the answer has to go on.
#include "longbench.h"
#include <jansson.h>

// id, key, language, metric, new tokens, bare, first line, ends at a newline, in LongBench-E
#define SETS(X)                                                                                    \
    X("1-1", narrativeqa, "en", LB_F1_EN, 128, 0, 0, 0, 0)                                         \
    X("1-2", qasper, "en", LB_F1_EN, 128, 0, 0, 0, 1)                                              \
    X("1-3", multifieldqa_en, "en", LB_F1_EN, 64, 0, 0, 0, 1)                                      \
    X("1-4", multifieldqa_zh, "zh", LB_F1_ZH, 64, 0, 0, 0, 0)                                      \
    X("2-1", hotpotqa, "en", LB_F1_EN, 32, 0, 0, 0, 1)                                             \
    X("2-2", 2wikimqa, "en", LB_F1_EN, 32, 0, 0, 0, 1)                                             \
    X("2-3", musique, "en", LB_F1_EN, 32, 0, 0, 0, 0)                                              \
    X("2-4", dureader, "zh", LB_ROUGE_ZH, 128, 0, 0, 0, 0)                                         \
    X("3-1", gov_report, "en", LB_ROUGE, 512, 0, 0, 0, 1)                                          \
    X("3-2", qmsum, "en", LB_ROUGE, 512, 0, 0, 0, 0)                                               \
    X("3-3", multi_news, "en", LB_ROUGE, 512, 0, 0, 0, 1)                                          \
    X("3-4", vcsum, "zh", LB_ROUGE_ZH, 512, 0, 0, 0, 0)                                            \
    X("4-1", trec, "en", LB_CLASS, 64, 1, 1, 0, 1)                                                 \
    X("4-2", triviaqa, "en", LB_F1_EN, 32, 1, 1, 0, 1)                                             \
    X("4-3", samsum, "en", LB_ROUGE, 128, 1, 1, 1, 1)                                              \
    X("4-4", lsht, "zh", LB_CLASS, 64, 1, 1, 0, 0)                                                 \
    X("5-1", passage_count, "en", LB_COUNT, 32, 0, 0, 0, 1)                                        \
    X("5-2", passage_retrieval_en, "en", LB_RETRIEVAL_EN, 32, 0, 0, 0, 1)                          \
    X("5-3", passage_retrieval_zh, "zh", LB_RETRIEVAL_ZH, 32, 0, 0, 0, 0)                          \
    X("6-1", lcc, "code", LB_CODE, 64, 1, 0, 0, 1)                                                 \
    X("6-2", repobench-p, "code", LB_CODE, 64, 1, 0, 0, 1)

// ---------------------------------------------------------------------------
// Prompts, in the order of the sets

typedef struct { const char *before, *after; } Prompt;
#define PASSAGES                                                                                   \
    { "Use the passages to find the answer to the question at the end. Reply with the answer and " \
      "no other word.\n\nThe passages are these.\n",                                               \
      "\n\nUse the passages to find the answer to the question. Reply with the answer and no "     \
      "other word.\n\nQuestion: {input}\nAnswer:" }
static const Prompt prompt[] = {
    { "A story follows, taken from a book or a script, and then a question about it. Keep the "
      "answer as short as it can be, a phrase where one will do, and give no reasons.\n\nStory: ",
      "\n\nThe story ends here. Keep the answer as short as it can be, a phrase where one will do, "
      "and give no reasons.\n\nQuestion: {input}\n\nAnswer:" },
    { "An article from a journal follows, and then a question about it. Reply with a phrase or a "
      "sentence; with \"yes\" or \"no\" where that is what is asked; with \"unanswerable\" where "
      "the article does not tell. Give no reasons.\n\nArticle: ",
      "\n\nThe article ends here. Reply with a phrase or a sentence, with \"yes\", \"no\" or "
      "\"unanswerable\". Give no reasons.\n\nQuestion: {input}\n\nAnswer:" },
    { "After this text there is a question that the text answers.\n\n",
      "\n\nReply to the question with what the text says and no other word.\n\nQuestion: {input}\n"
      "Answer:" },
    { "读完下面的材料，再用简短的中文回答后面的问题。\n\n",
      "\n\n请只根据上面的材料作答，不要写别的话。\n\n问题：{input}\n回答：" },
    PASSAGES,
    PASSAGES,
    PASSAGES,
    { "下面有几篇文章，请根据它们回答最后的问题。\n\n文章：",
      "\n\n请根据上面的文章作答。\n\n问题：{input}\n回答：" },
    { "This is a report of a public office. Put what it says on one page.\n\nReport:\n",
      "\n\nPut what the report says on one page.\n\nSummary:" },
    { "These are the minutes of a meeting; a request about them comes at the end, to be met in a "
      "sentence or a few.\n\nTranscript:\n",
      "\n\nMeet this request in a sentence or a few.\n\nQuery: {input}\nAnswer:" },
    { "Here are several news reports. Put what all of them say on one page. \n\nNews:\n",
      "\n\nPut what all the reports say on one page.\n\nSummary:" },
    { "请把下面这次会议的内容写成总结。\n会议记录：\n", "\n\n会议总结：" },
    { "Say of what type each question is. The first ones show how it is done.\n\n", "\n{input}" },
    { "Reply to the question with what its passage says and no other word. The first ones show "
      "how it is done.\n\n",
      "\n\n{input}" },
    { "Tell each conversation in a sentence or two. The first ones show how it is done.\n\n",
      "\n\n{input}" },
    { "请判断新闻的类别，前面几条是例子。\n\n", "\n{input}" },
    { "Some numbered paragraphs follow, of which some may be copies of others. Read them, find "
      "out which are the same, and count how many there are when copies count once.\n\n",
      "\n\nReply with that number alone, such as 3 or 12.\n\nThe final answer is: " },
    { "Thirty paragraphs follow, and then a summary of one of them. Find out which one it "
      "is.\n\n",
      "\n\nThis is the summary.\n\n{input}\n\nReply with the paragraph's number, in the form "
      "\"Paragraph 1\".\n\nThe answer is: " },
    { "下面有若干段文字，最后是其中一段的摘要，请找出是哪一段。\n\n",
      "\n\n摘要如下：\n\n{input}\n\n请用\"段落1\"这样的格式回答。\n\n答案是：" },
    { "Go on with the program below by one line. \n", "Next line of code:\n" },
    { "Go on with the program below by one line. \n", "{input}Next line of code:\n" },
};

#define ROW(id, key, lang, metric, max_new, bare, first_line, newline, e)                          \
    { #key, id, lang, metric, bare, first_line, newline, NULL, NULL },
static const LbSet bare_set[] = { SETS(ROW) };
enum { N_SETS = COUNTOF(bare_set), N_EXTENDED = 13 };

static const int max_new_of[] = {
#define MAX_NEW(id, key, lang, metric, max_new, bare, first_line, newline, e) max_new,
    SETS(MAX_NEW)
};
static const bool extended[] = {
#define EXTENDED(id, key, lang, metric, max_new, bare, first_line, newline, e) e,
    SETS(EXTENDED)
};

// ---------------------------------------------------------------------------
// Tasks

static LbSet sets[N_SETS];
static Task tasks[N_SETS + N_EXTENDED];
static char names[N_SETS + N_EXTENDED][40];

// what a record's length counts: words, or characters of Chinese, in input, context and answers
static int length_of(const LbSet *lb, const TaskSession *s) {
    const TaskTurn *t = &s->turns[0];
    bool zh = !strcmp(lb->lang, "zh");
    int n = 0;
    for (int k = -2; k < t->n_labels; k++) {
        const char *p = k == -2 ? s->context.p : k == -1 ? t->input : t->label[k];
        size_t left = k == -2 ? s->context.n : strlen(p);
        bool in_word = false;
        for (int32_t c; left;) {
            size_t len = text_next(p, left, &c);
            bool space = text_space(c);
            n += zh ? !space : !space && !in_word;
            in_word = !space;
            p += len;
            left -= len;
        }
    }
    return n;
}

static int bucket_of(json_int_t length) { return length < 4000 ? 0 : length < 8000 ? 1 : 2; }

static void make_set(TaskSession *s, uint64_t seed, int n_units, int set, bool e) {
    lb_make(&sets[set], s, seed, n_units);
    s->turns[0].question = lb_question(sets[set].after, s->turns[0].input);
    if (e) s->turns[0].part = bucket_of(length_of(&sets[set], s));
}
// a generator knows its set by its address
#define MAKERS(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11) M(12) M(13) M(14) \
    M(15) M(16) M(17) M(18) M(19) M(20)
#define MAKER(i)                                                                                   \
    static void make_##i(TaskSession *s, uint64_t seed, int n_turns, int n_units) {                \
        (void)n_turns;                                                                             \
        make_set(s, seed, n_units, i, false);                                                      \
    }                                                                                              \
    static void make_e_##i(TaskSession *s, uint64_t seed, int n_turns, int n_units) {              \
        (void)n_turns;                                                                             \
        make_set(s, seed, n_units, i, true);                                                       \
    }
MAKERS(MAKER)
#define MAKER_NAMES(i) { make_##i, make_e_##i },
static void (*const makers[][2])(TaskSession *, uint64_t, int, int) = { MAKERS(MAKER_NAMES) };

static void task_fill(Task *t, int set, int at, bool e) {
    static const char *const category[] = { "single-doc", "multi-doc",  "summary",
                                            "few-shot",   "synthetic", "code" };
    static const char *const bucket[] = { "0-4k", "4-8k", "8k+" };
    const LbSet *lb = &sets[set];
    snprintf(names[at], sizeof names[at], "longbench/%s%s", lb->key, e ? "_e" : "");
    t->name = names[at];
    t->official = names[at] + strlen("longbench/");
    t->category = category[lb->id[0] - '1'];
    t->help = e ? "LongBench-E" : "LongBench";
    t->turns = 1;
    t->unit = "pieces";
    t->n_parts = e ? (int)COUNTOF(bucket) : 1;
    for (int p = 0; p < t->n_parts; p++)
        t->parts[p] = (TaskPart){ e ? bucket[p] : t->official, max_new_of[set], SCORE_LONGBENCH };
    t->instruction = lb->before;
    t->separator = "";
    t->min_units = 2;
    t->make = makers[set][e];
    t->lb = lb;
}

static void tasks_fill(void) {
    static bool done;
    if (done) return;
    done = true;
    CHECK(COUNTOF(prompt) == N_SETS && COUNTOF(makers) == N_SETS, "a LongBench table is short");
    for (int i = 0, e = N_SETS; i < N_SETS; i++) {
        sets[i] = bare_set[i];
        sets[i].before = prompt[i].before;
        sets[i].after = prompt[i].after;
        task_fill(&tasks[i], i, i, false);
        if (extended[i]) task_fill(&tasks[e], i, e, true), e++;
    }
}

int lb_n_sets(void) { return N_SETS; }
const LbSet *lb_set(int i) {
    tasks_fill();
    return i >= 0 && i < N_SETS ? &sets[i] : NULL;
}
const Task *lb_task_at(int i) {
    tasks_fill();
    return i >= 0 && i < N_SETS + N_EXTENDED ? &tasks[i] : NULL;
}
const Task *lb_task(const char *name) {
    const Task *t;
    for (int i = 0; (t = lb_task_at(i)); i++) if (!strcmp(name, t->name)) return t;
    return NULL;
}

char *lb_question(const char *after, const char *input) {
    StrBuf out = { 0 };
    const char *at = strstr(after, "{input}");
    if (at) {
        str_add(&out, after, (size_t)(at - after));
        str_puts(&out, input);
        str_puts(&out, at + strlen("{input}"));
    } else str_puts(&out, after);
    return out.p;
}

// ---------------------------------------------------------------------------
// Records

static char *want(json_t *o, const char *key, Err *err) {
    json_t *v = json_object_get(o, key);
    if (!json_is_string(v)) {
        FAIL(err, v ? "field '%s' is not a string" : "field '%s' is missing", key);
        return NULL;
    }
    return text_dup(json_string_value(v));
}

static int read_list(json_t *o, const char *key, char ***out, int *n, Err *err) {
    json_t *list = json_object_get(o, key), *v;
    size_t i;
    if (!json_is_array(list)) return FAIL(err, "field '%s' is not a list of strings", key);
    *out = (char **)xrealloc(NULL, (json_array_size(list) + 1) * sizeof **out);
    *n = 0;
    json_array_foreach(list, i, v) {
        if (!json_is_string(v)) return FAIL(err, "field '%s[%zu]' is not a string", key, i);
        (*out)[(*n)++] = text_dup(json_string_value(v));
    }
    return 0;
}

int lb_record_read(const Task *task, json_t *o, TaskSession *s, Err *err) {
    if (!json_is_object(o)) return FAIL(err, "not a JSON object");
    json_t *context = json_object_get(o, "context"), *length = json_object_get(o, "length");
    json_t *classes = json_object_get(o, "all_classes");
    if (!json_is_string(context)) return FAIL(err, "field 'context' is missing or not a string");
    str_add(&s->context, json_string_value(context), json_string_length(context));
    session_turns(s, 1);
    TaskTurn *t = &s->turns[0];
    t->depth = NAN;
    if (!(t->input = want(o, "input", err))) return -1;
    t->question = lb_question(task->lb->after, t->input);
    if (read_list(o, "answers", &t->label, &t->n_labels, err)) return -1;
    if (!t->n_labels) return FAIL(err, "field 'answers' is empty");
    t->answer = text_dup(t->label[0]);
    if (task->lb->metric == LB_CLASS && !json_is_array(classes))
        return FAIL(err, "field 'all_classes' is not a list of strings");
    if (json_is_array(classes) && read_list(o, "all_classes", &s->classes, &s->n_classes, err))
        return -1;
    if (task->n_parts == 1) return 0;
    if (!json_is_integer(length)) return FAIL(err, "field 'length' is missing or no integer");
    t->part = bucket_of(json_integer_value(length));
    return 0;
}

static void put_list(StrBuf *line, const char *key, char *const *list, int n) {
    str_fmt(line, ", \"%s\": ", key);
    for (int i = 0; i < n; i++) {
        str_puts(line, i ? ", " : "[");
        json_text(line, list[i], strlen(list[i]));
    }
    str_puts(line, n ? "]" : "null");
}

void lb_record_write(const Task *task, const TaskSession *s, StrBuf *line) {
    const TaskTurn *t = &s->turns[0];
    char id[17];
    snprintf(id, sizeof id, "%016llx",
             (unsigned long long)(text_hash(s->context.p, s->context.n) ^ (uint64_t)s->number));
    str_puts(line, "{\"input\": ");
    json_text(line, t->input, strlen(t->input));
    str_puts(line, ", \"context\": ");
    json_text(line, s->context.p, s->context.n);
    put_list(line, "answers", t->label, t->n_labels);
    str_fmt(line, ", \"length\": %d, \"dataset\": \"%s\", \"language\": \"%s\"", s->units,
            task->official, task->lb->lang);
    put_list(line, "all_classes", s->classes, s->n_classes);
    str_fmt(line, ", \"_id\": \"%s\"}", id);
}

// ---------------------------------------------------------------------------

static const Segmenter *words_of_chinese;
void lb_use_segmenter(const Segmenter *g) { words_of_chinese = g; }

double lb_score(const Task *task, const TaskSession *s, int turn, const char *answer, size_t n,
                Scorer which) {
    const TaskTurn *t = &s->turns[turn];
    double best = 0;
    if (task->lb->first_line) answer = lb_first_line(answer, &n);
    for (int i = 0; i < t->n_labels; i++) {
        double one = lb_metric(task->lb->metric, which, words_of_chinese, answer, n, t->label[i],
                               (const char *const *)s->classes, s->n_classes);
        if (one > best) best = one;
    }
    return best;
}

// ---------------------------------------------------------------------------
// Predictions of another program

typedef struct { json_t **row; size_t n; } Predictions;

static int predictions_read(const char *path, Predictions *p, Err *err) {
    FILE *f = fopen(path, "rb");
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rc = 0, number = 0;
    if (!f) return FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    while (!rc && (n = getline(&line, &cap, f)) > 0) {
        json_error_t je;
        number++;
        if (strspn(line, " \t\r\n") == (size_t)n) continue;
        json_t *o = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, &je);
        p->row = (json_t **)xrealloc(p->row, (p->n + 1) * sizeof *p->row);
        p->row[p->n++] = o;
        if (!o) rc = FAIL(err, "%s:%d: not valid JSON: %s", path, number, je.text);
        else if (!json_is_string(json_object_get(o, "pred")))
            rc = FAIL(err, "%s:%d: field 'pred' is missing or not a string", path, number);
        else if (!json_is_array(json_object_get(o, "answers")))
            rc = FAIL(err, "%s:%d: field 'answers' is not a list of strings", path, number);
        else if (json_array_size(json_object_get(o, "answers")) == 0)
            rc = FAIL(err, "%s:%d: field 'answers' is empty", path, number);
    }
    free(line);
    fclose(f);
    return !rc && !p->n ? FAIL(err, "%s: holds no prediction", path) : rc;
}

// the record as a session of one turn; its score
static int predictions_one(const Task *task, json_t *o, json_t *last, Scorer which, double *score,
                           Err *err) {
    TaskSession s = { 0 };
    json_t *pred = json_object_get(o, "pred");
    session_turns(&s, 1);
    int rc = read_list(o, "answers", &s.turns[0].label, &s.turns[0].n_labels, err);
    if (!rc && json_is_array(json_object_get(last, "all_classes")))
        rc = read_list(last, "all_classes", &s.classes, &s.n_classes, err);
    if (!rc)
        *score = lb_score(task, &s, 0, json_string_value(pred), json_string_length(pred), which);
    session_clear(&s);
    return rc;
}

int lb_predictions_score(FILE *out, const Task *task, const char *path, Scorer which, Err *err) {
    Predictions p = { NULL, 0 };
    double sum[3] = { 0, 0, 0 }, all = 0;
    int count[3] = { 0, 0, 0 }, rc = predictions_read(path, &p, err);
    for (size_t i = 0; i < p.n && !rc; i++) {
        double score = 0;
        int part = bucket_of(json_integer_value(json_object_get(p.row[i], "length")));
        rc = predictions_one(task, p.row[i], p.row[p.n - 1], which, &score, err);
        if (!rc) fprintf(out, "{\"record\": %zu, \"score\": %.17g}\n", i + 1, score);
        sum[part] += score;
        count[part]++;
        all += score;
    }
    if (!rc) {
        fprintf(out, "{\"task\": \"%s\", \"records\": %zu, \"scorer\": \"%s\", ", task->name, p.n,
                which == SCORER_HARNESS ? "harness" : "ours");
        for (int k = 0; k < task->n_parts && task->n_parts > 1; k++)
            if (count[k])
                fprintf(out, "\"%s\": %.2f, ", task->parts[k].name, 100 * sum[k] / count[k]);
            else fprintf(out, "\"%s\": null, ", task->parts[k].name);
        fprintf(out, "\"score\": %.2f}\n", 100 * all / (double)p.n);
    }
    for (size_t i = 0; i < p.n; i++) json_decref(p.row[i]);
    free(p.row);
    return rc ? -1 : fflush(out) ? FAIL(err, "the scores cannot be written") : 0;
}
