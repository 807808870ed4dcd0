// test_score.c - scorers against the vectors of data/scorers (test/make_scorer_vectors.py), bounds
// on random bytes, and the time of ROUGE-Lsum.
#include <jansson.h>
#include "tasks/score.h"

enum { MAX_SHOWN = 12 };
static int failures;
#define EXPECT(cond, ...) do { if (!(cond) && ++failures <= MAX_SHOWN) { \
    printf("test_score.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static const char *const rule_name[] = { "substring", "names", "number", "passkey", "choice",
                                         "qa_en",     "qa_zh", "letter", "rouge",   "repoqa" };

// calls row(object, line number) for every line of a file of data/scorers; their number
static int each_row(const char *name, void (*row)(json_t *o, int line)) {
    char path[256], *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int count = 0;
    snprintf(path, sizeof path, "data/scorers/%s", name);
    FILE *f = fopen(path, "r");
    EXPECT(f, "%s is missing", path);
    while (f && (n = getline(&line, &cap, f)) > 0) {
        json_error_t e;
        json_t *o = json_loadb(line, (size_t)n, JSON_ALLOW_NUL, &e);
        count++;
        EXPECT(o, "%s:%d: %s", path, count, e.text);
        if (o) row(o, count);
        json_decref(o);
    }
    free(line);
    if (f) fclose(f);
    EXPECT(count > 50, "%s holds %d rows", path, count);
    return count;
}

typedef struct { const char *s; size_t n; } Bytes;
static Bytes field(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    return (Bytes){ json_is_string(v) ? json_string_value(v) : "",
                    json_is_string(v) ? json_string_length(v) : 0 };
}

// a copy that ends where its block ends, so that the sanitizer sees a byte too far
static char *exact(Bytes b) {
    char *p = (char *)malloc(b.n ? b.n : 1);
    CHECK(p, "no memory");
    memcpy(p, b.s, b.n);
    return p;
}

static Bytes from_hex(Bytes hex, char *to) {
    for (size_t i = 0; i + 1 < hex.n; i += 2) {
        unsigned v;
        sscanf(hex.s + i, "%2x", &v);
        to[i / 2] = (char)v;
    }
    return (Bytes){ to, hex.n / 2 };
}

static void rule_row(json_t *o, int line) {
    const char *label[16], *rule = field(o, "r").s, *which = field(o, "w").s;
    char bytes[64];
    json_t *labels = json_object_get(o, "l");
    int n = (int)json_array_size(labels), r = 0;
    Bytes p = json_object_get(o, "x") ? from_hex(field(o, "x"), bytes) : field(o, "p");
    double want = json_number_value(json_object_get(o, "s"));
    for (int i = 0; i < n && i < 16; i++)
        label[i] = json_string_value(json_array_get(labels, (size_t)i));
    while (strcmp(rule_name[r], rule)) r++;
    char *copy = exact(p);
    for (int w = SCORER_OURS; w <= (int)SCORER_HARNESS; w++) {
        if (!strcmp(which, w == SCORER_OURS ? "harness" : "ours")) continue;
        double got = score_rule((ScoreRule)r, (Scorer)w, copy, p.n, label, n);
        bool counts = want == 0 || want == 1 || r == SCORE_NAMES;
        EXPECT(counts ? got == want : fabs(got - want) < 1e-12,
               "rules.jsonl:%d %s %s: '%.*s' against '%s' is %.17g, not %.17g", line, which, rule,
               (int)p.n, p.s, n ? label[0] : "", got, want);
    }
    free(copy);
}

static void rouge_row(json_t *o, int line) {
    Bytes p = field(o, "p"), r = field(o, "r");
    char *a = exact(p), *b = exact(r);
    double got = rouge_lsum(a, p.n, b, r.n), want = json_number_value(json_object_get(o, "s"));
    EXPECT(fabs(got - want) < 1e-12, "rouge.jsonl:%d: %.17g, not %.17g", line, got, want);
    free(a);
    free(b);
}

static void bleu_row(json_t *o, int line) {
    Bytes p = field(o, "p"), r = field(o, "r");
    char *a = exact(p), *b = exact(r);
    double got = code_bleu(a, p.n, b, r.n), want = json_number_value(json_object_get(o, "s"));
    EXPECT(fabs(got - want) < 1e-12, "bleu.jsonl:%d: %.17g, not %.17g", line, got, want);
    free(a);
    free(b);
}

// code that parses must give the very node; of broken code nine in ten
static int n_sound, n_broken, differ_broken;
static void code_row(json_t *o, int line) {
    Bytes c = field(o, "c"), lang = field(o, "g");
    json_t *f = json_object_get(o, "f");
    bool broken = json_object_get(o, "e") != NULL, want = json_is_array(f), got;
    long long at = want ? json_integer_value(json_array_get(f, 0)) : 0,
              len = want ? json_integer_value(json_array_get(f, 1)) : 0;
    char *copy = exact(c);
    Span span = { 0, 0 };
    got = first_function(lang.s, copy, c.n, &span);
    bool same = got == want && (!got || ((long long)span.at == at && (long long)span.len == len));
    n_sound += !broken;
    n_broken += broken;
    differ_broken += broken && !same;
    EXPECT(broken || same, "code_extract.jsonl:%d %s: found %d %zu+%zu, not %d %lld+%lld", line,
           lang.s, got, span.at, span.len, want, at, len);
    free(copy);
}

static void fence_row(json_t *o, int line) {
    Bytes p = field(o, "p"), f = field(o, "f");
    char *copy = exact(p), *got = code_extract(field(o, "g").s, copy, p.n);
    EXPECT(!strcmp(got, f.s), "fences.jsonl:%d: '%s', not '%s'", line, got, f.s);
    free(got);
    free(copy);
}

static void test_repoqa(void) {
    Needle needles[] = {
        { (char *)"add", (char *)"def add(a, b):\n    return a + b", (char *)"python" },
        { (char *)"plus", (char *)"def add(a, b):\n    return a + b", (char *)"python" },
        { (char *)"sub", (char *)"def sub(a, b):\n    return a - b", (char *)"python" },
    };
    TaskSession s = { .needles = needles, .n_needles = 3, .lang = (char *)"python" };
    static const struct { const char *answer, *asked; int at; bool pass; } rows[] = {
        { "```python\ndef add(a, b):\n    return a + b\n```", "add", 0, true },
        { "```python\ndef add(a, b):\n    return a + b\n```", "plus", 0, false },
        { "It is\n```python\nimport x\n@d\ndef sub(a, b):\n    return a - b\n```\nas asked", "sub",
          2, true },
        { "def sub(a, b):\n    return a - b", "sub", 2, true },
        { "nothing of the kind", "add", -1, false },
        { "", "add", -1, false },
        { "return a - b", "sub", 2, false },
    };
    for (size_t i = 0; i < COUNTOF(rows); i++) {
        const char *answer = rows[i].answer;
        RepoMatch m = repoqa_match(&s, rows[i].asked, "python", answer, strlen(answer), 0.8);
        EXPECT(m.at == rows[i].at && m.pass == rows[i].pass,
               "repoqa row %zu: needle %d, pass %d, %g", i, m.at, m.pass, m.best);
    }
    RepoMatch m = repoqa_match(&s, "sub", "python", "return a - b", 12, 0.0);
    EXPECT(m.pass && m.best > 0 && m.best < 0.8, "threshold 0 passes the best needle");
    TaskTurn turns[2] = { { .name = (char *)"add" }, { .part = 1 } };
    Task t = { .parts = { { "repoqa", 1024, SCORE_REPOQA }, { "kv", 80, SCORE_SUBSTRING } },
               .n_parts = 2 };
    char *label = (char *)"v1";
    turns[1].label = &label;
    turns[1].n_labels = 1;
    s.turns = turns;
    s.n_turns = 2;
    EXPECT(task_score(&t, &s, 0, rows[0].answer, strlen(rows[0].answer), SCORER_HARNESS) == 1,
           "a repoqa turn");
    EXPECT(task_score(&t, &s, 1, "is v1.", 6, SCORER_OURS) == 1 &&
               task_score(&t, &s, 1, "v2", 2, SCORER_OURS) == 0,
           "a kv turn of a mix task");
}

// random bytes, text-like and raw: scores stay in [0, 1], spans inside the text
static void test_bounds(void) {
    static const char *const lang[] = { "python", "java", "typescript", "rust",
                                        "cpp",    "go",   "php",        "cobol" };
    static const char *const bits[] = {
        "def f(", "func ", "fn ", "function ", "class ", "template<", "{", "}", "(", ")", "[", "]",
        "<", ">", "\"", "'", "`", "```", "\n", "    ", "\t", "/*", "*/", "//", "#", "r#\"",
        "R\"(", "${", "$", "<<<E", "=>", "->", "::", ":", ";", ",", "@", "\\", "f'{", "async ",
        "public ", "new ", "enum ", "try ", "=", "x", "int ", "A", "answer is ", "12.5",
        "\xe5\x8c\x97", "\xce\xa3", "\xc4\xb0", "\xff", "\r\n", "new A() {", "void f() {", "#if\n",
        "operator", "where ", "requires ", "interface{",
    };
    Rng r = { 5 };
    for (int k = 0; k < 6000; k++) {
        StrBuf b = { 0 };
        str_add(&b, "", 0);
        int n = (int)rng_below(&r, k % 100 ? 40 : 400);
        for (int i = 0; i < n; i++) {
            char raw = (char)rng_next(&r);
            if (k % 3 == 0) str_add(&b, &raw, 1);
            else str_puts(&b, bits[rng_below(&r, COUNTOF(bits))]);
        }
        char *p = exact((Bytes){ b.p, b.n });
        char *text = strndup(b.p, b.n / 2);
        const char *label[] = { text, "A", bits[rng_below(&r, COUNTOF(bits))], "" };
        for (int rule = 0; rule <= (int)SCORE_REPOQA; rule++)
            for (int w = 0; w < 2; w++) {
                int labels = (int)rng_below(&r, 5);
                double s = score_rule((ScoreRule)rule, (Scorer)w, p, b.n, label, labels);
                EXPECT(s >= 0 && s <= 1, "%s of random bytes is %g", rule_name[rule], s);
            }
        double same = rouge_lsum(p, b.n, p, b.n), bleu = code_bleu(p, b.n, p, b.n);
        EXPECT((same == 0 || fabs(same - 1) < 1e-12) && bleu >= 0 && bleu <= 1,
               "a text against itself: %g %g", same, bleu);
        for (size_t g = 0; g < COUNTOF(lang); g++) {
            Span f = { 0, 0 };
            if (first_function(lang[g], p, b.n, &f))
                EXPECT(f.len && f.at + f.len <= b.n, "%s: a function beyond the text", lang[g]);
            free(code_extract(lang[g], p, b.n));
        }
        free(p);
        free(text);
        free(b.p);
    }
}

// 1,000 pairs of 2,000-token texts in lines of 20 words; the bound is loose, for busy machines
static void test_time(int pairs) {
    StrBuf text[8] = { { 0 } };
    Rng r = { 9 };
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 2000; i++)
            str_fmt(&text[k], "w%d%c", (int)rng_below(&r, 400), i % 20 == 19 ? '\n' : ' ');
    double start = now_s(), sum = 0;
    for (int i = 0; i < pairs; i++) {
        const StrBuf *a = &text[i % 8], *b = &text[(i / 8 + i + 1) % 8];
        sum += rouge_lsum(a->p, a->n, b->p, b->n);
    }
    double took = now_s() - start;
    printf("rouge_lsum: %d pairs of 2000 tokens in %.2f s, mean %.3f\n", pairs, took, sum / pairs);
    EXPECT(took < pairs * 0.1, "%.2f s for %d pairs", took, pairs);
    for (int k = 0; k < 8; k++) free(text[k].p);
}

int main(int argc, char **argv) {
    each_row("rules.jsonl", rule_row);
    each_row("rouge.jsonl", rouge_row);
    each_row("bleu.jsonl", bleu_row);
    each_row("code_extract.jsonl", code_row);
    each_row("fences.jsonl", fence_row);
    printf("code: %d sound, all must agree; %d broken, %d differ\n", n_sound, n_broken,
           differ_broken);
    EXPECT(n_sound >= 300, "only %d sound pieces of code", n_sound);
    EXPECT(differ_broken * 10 <= n_broken, "%d of %d broken pieces of code differ", differ_broken,
           n_broken);
    test_repoqa();
    test_bounds();
    test_time(argc > 1 ? atoi(argv[1]) : 100);
    if (failures) printf("test_score: %d failures\n", failures);
    return failures != 0;
}
