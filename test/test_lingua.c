// test_lingua.c - LLMLingua-2 against the package llmlingua 0.2.2: the selection with the toy
// tokenizers and probabilities of data/scorers/llmlingua2.json, then tokenizer, encoder and
// selection together with the small random encoders of data/lingua (test/make_lingua_vectors.py).
#include "lingua.h"
#include <jansson.h>

enum { MAX_SHOWN = 20, MAX_PIECES = 4096, FIRST_NEW = 1 << 20 };
static int failures, compared;
#define EXPECT(cond, ...) do { compared++; if (!(cond) && ++failures <= MAX_SHOWN) { \
    printf("test_lingua.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static const char *text(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    CHECK(json_is_string(v), "no text '%s' in a vector", key);
    return json_string_value(v);
}
static double number(json_t *o, const char *key) {
    json_t *v = json_object_get(o, key);
    CHECK(json_is_number(v), "no number '%s' in a vector", key);
    return json_number_value(v);
}

// ---------------------------------------------------------------------------
// Toy tokenizers: pieces are numbered as they come

typedef struct { char *piece[MAX_PIECES]; int n; bool wordpiece; json_t *counts; } Toy;

static int32_t number_of(Toy *t, const char *s, size_t n) {
    for (int i = 0; i < t->n; i++)
        if (strlen(t->piece[i]) == n && !memcmp(t->piece[i], s, n)) return i;
    CHECK(t->n < MAX_PIECES, "too many pieces");
    t->piece[t->n] = (char *)calloc(n + 1, 1);
    memcpy(t->piece[t->n], s, n);
    return t->n++;
}

static bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static bool digit(char c) { return c >= '0' && c <= '9'; }
static bool space(char c) { return c == ' ' || c == '\n' || c == '\t'; }
static size_t char_len(const char *s) {
    unsigned char c = (unsigned char)*s;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

// letters by up to four, digits by up to two, else single characters; words begin with U+2581
static void encode_sentence(Toy *t, const char *s, size_t n, IntVec *ids) {
    bool begin = true;
    for (size_t i = 0; i < n;) {
        char piece[32];
        size_t k = 0;
        if (space(s[i])) { begin = true, i++; continue; }
        while (i + k < n && k < 4 && letter(s[i]) && letter(s[i + k])) k++;
        while (!k || (digit(s[i]) && i + k < n && k < 2 && digit(s[i + k])))
            k += digit(s[i]) ? 1 : char_len(s + i);
        int m = snprintf(piece, sizeof piece, "%s%.*s", begin ? "\xe2\x96\x81" : "", (int)k, s + i);
        ints_push(ids, number_of(t, piece, (size_t)m));
        begin = false;
        i += k;
    }
}

// words of letters and digits, or single characters; slices of five, all but the first with ##
static void encode_words(Toy *t, const char *s, size_t n, IntVec *ids) {
    for (size_t i = 0; i < n;) {
        size_t k = 0;
        if (space(s[i])) { i++; continue; }
        while (i + k < n && (letter(s[i + k]) || digit(s[i + k]))) k++;
        if (!k) k = char_len(s + i);
        for (size_t a = 0; a < k; a += 5) {
            char piece[32];
            size_t len = k - a < 5 ? k - a : 5;
            int m = snprintf(piece, sizeof piece, "%s%.*s", a ? "##" : "", (int)len, s + i + a);
            ints_push(ids, number_of(t, piece, (size_t)m));
        }
        i += k;
    }
}

static void toy_encode(void *user, const char *s, size_t n, IntVec *ids) {
    Toy *t = (Toy *)user;
    if (t->wordpiece) encode_words(t, s, n, ids);
    else encode_sentence(t, s, n, ids);
}
static void toy_piece(void *user, int32_t id, StrBuf *out) {
    str_puts(out, ((Toy *)user)->piece[id]);
}
static int toy_weight(void *user, const char *s, size_t n) {
    char *key = (char *)calloc(n + 1, 1);
    memcpy(key, s, n);
    json_t *v = json_object_get(((Toy *)user)->counts, key);
    EXPECT(v, "no count of '%s'", key);
    free(key);
    return v ? (int)json_integer_value(v) : 1;
}

// p = (((sum of code points) 7 + 13 place) mod 97 + 1) / 100
static int toy_keep(void *user, const IntVec *seq, int n_seq, float *const *p, Err *err) {
    Toy *t = (Toy *)user;
    (void)err;
    for (int s = 0; s < n_seq; s++)
        for (size_t j = 0; j < seq[s].n; j++) {
            char name[16];
            const char *piece = name;
            long sum = 0;
            if (seq[s].p[j] >= FIRST_NEW) snprintf(name, sizeof name, "[NEW%d]",
                                                   seq[s].p[j] - FIRST_NEW);
            else piece = t->piece[seq[s].p[j]];
            for (const char *c = piece; *c; c += char_len(c)) {
                size_t n = char_len(c);
                long code = n == 1 ? *c : (unsigned char)*c & (0x7f >> n);
                for (size_t k = 1; k < n; k++) code = code << 6 | ((unsigned char)c[k] & 0x3f);
                sum += code;
            }
            p[s][j] = (float)((double)((sum * 7 + 13 * (long)j) % 97 + 1) / 100);
        }
    return 0;
}

static int list_of(json_t *o, const char *key, const char **out, int most) {
    json_t *list = json_object_get(o, key);
    int n = (int)json_array_size(list);
    CHECK(n <= most, "a long list in a vector");
    for (int i = 0; i < n; i++) out[i] = json_string_value(json_array_get(list, (size_t)i));
    return n;
}

static void compress_row(json_t *o, json_t *counts, int row) {
    Toy toy = { .wordpiece = !strcmp(text(o, "model"), "bert"), .counts = counts };
    json_t *kw = json_object_get(o, "kwargs"), *c = json_object_get(o, "context");
    const char *force[8], *context[8];
    size_t len[8];
    int n = 1, keep[8];
    LinguaSource src = { &toy, toy.wordpiece, 0, 0, FIRST_NEW, toy_encode, toy_piece, toy_weight,
                         toy_keep };
    LinguaOpts opts = { .force = force, .force_context = keep };
    LinguaResult r;
    Err err;
    src.open = number_of(&toy, toy.wordpiece ? "[CLS]" : "<unk>", 5);
    src.close = number_of(&toy, toy.wordpiece ? "[SEP]" : "<unk>", 5);
    opts.n_force = list_of(kw, "force_tokens", force, 8);
    opts.rate = json_number_value(json_object_get(kw, "rate"));
    opts.target_tokens = (int)json_integer_value(json_object_get(kw, "target_token"));
    opts.reserve_digits = json_is_true(json_object_get(kw, "force_reserve_digit"));
    opts.drop_consecutive = json_is_true(json_object_get(kw, "drop_consecutive"));
    opts.context_filter = json_is_true(json_object_get(kw, "use_context_level_filter"));
    opts.first_token = json_object_get(kw, "token_to_word") != NULL;
    opts.sequence = (int)number(o, "max_seq_len");
    json_t *ids = json_object_get(kw, "force_context_ids");
    opts.n_force_context = (int)json_array_size(ids);
    for (int i = 0; i < opts.n_force_context; i++)
        keep[i] = (int)json_integer_value(json_array_get(ids, (size_t)i));
    if (json_is_string(c)) context[0] = json_string_value(c);
    else for (n = 0; n < (int)json_array_size(c); n++)
        context[n] = json_string_value(json_array_get(c, (size_t)n));
    for (int i = 0; i < n; i++) len[i] = strlen(context[i]);
    int rc = lingua_compress(&src, &opts, context, len, n, &r, &err);
    EXPECT(!rc, "row %d: %s", row, err.msg);
    if (rc) return;
    EXPECT(!strcmp(r.text.p, text(o, "compressed_prompt")), "row %d: '%s' instead of '%s'", row,
           r.text.p, text(o, "compressed_prompt"));
    EXPECT(r.tokens_before == (int)number(o, "origin_tokens_cl100k"), "row %d: %d tokens before",
           row, r.tokens_before);
    EXPECT(r.tokens_after == (int)number(o, "compressed_tokens_cl100k"), "row %d: %d tokens after",
           row, r.tokens_after);
    json_t *labels = json_object_get(o, "labels");
    if (opts.rate < 1) {
        EXPECT(r.n_words == (int)json_array_size(labels), "row %d: %d words, not %zu", row,
               r.n_words, json_array_size(labels));
        for (int i = 0; i < r.n_words && i < (int)json_array_size(labels); i++)
            EXPECT(r.word[i].kept == (json_integer_value(json_array_get(labels, (size_t)i)) != 0),
                   "row %d: word %d '%s'", row, i, r.word[i].text);
    }
    lingua_result_free(&r);
    for (int i = 0; i < toy.n; i++) free(toy.piece[i]);
}

static void number_rows(json_t *all) {
    json_t *o, *v;
    size_t i, k;
    json_array_foreach(json_object_get(all, "percentile_linear"), i, o) {
        json_t *list = json_object_get(o, "values");
        double value[64];
        int weight[64];
        json_array_foreach(list, k, v) value[k] = json_number_value(v), weight[k] = 1;
        double got = lingua_percentile(value, weight, (int)json_array_size(list),
                                       (int)number(o, "q"));
        EXPECT(got == number(o, "out"), "percentile %zu: %.17g", i, got);
    }
    json_array_foreach(json_object_get(all, "threshold_q"), i, o)
        EXPECT(lingua_quantile(number(o, "rate")) == (int)number(o, "q_main"), "q of rate %g",
               number(o, "rate"));
    // a value that counts three times is the value three times
    double a[] = { 0.3, 0.1, 0.7 }, b[] = { 0.3, 0.1, 0.1, 0.1, 0.7, 0.7 };
    int wa[] = { 1, 3, 2 }, wb[] = { 1, 1, 1, 1, 1, 1 };
    for (int q = 0; q <= 100; q++)
        EXPECT(lingua_percentile(a, wa, 3, q) == lingua_percentile(b, wb, 6, q), "weights at %d",
               q);
}

static void text_rows(json_t *all) {
    json_t *o;
    size_t i;
    json_array_foreach(json_object_get(all, "decoders"), i, o) {
        const char *token[32];
        int n = list_of(o, "tokens", token, 32);
        StrBuf out = { 0 };
        lingua_decode(!strcmp(text(o, "decoder"), "wordpiece"), token, n, &out);
        EXPECT(!strcmp(out.p, text(o, "out")), "decoder %zu: '%s'", i, out.p);
        free(out.p);
    }
    json_array_foreach(json_object_get(all, "chunk_context"), i, o) {
        const char *token[32], *stop[8];
        int n = list_of(o, "tokens", token, 32), m = list_of(o, "chunk_end_tokens", stop, 8);
        bool end[32];
        IntVec cut = { 0 };
        json_t *want = json_object_get(o, "chunks");
        for (int k = 0; k < n; k++) {
            end[k] = false;
            for (int s = 0; s < m; s++) end[k] |= !strcmp(token[k], stop[s]);
        }
        lingua_chunks(end, n, (int)number(o, "max_seq_len"), &cut);
        EXPECT(cut.n == 2 * json_array_size(want), "chunks %zu: %zu", i, cut.n / 2);
        for (size_t k = 0; k < cut.n && k / 2 < json_array_size(want); k += 2) {
            StrBuf out = { 0 };
            lingua_decode(false, token + cut.p[k], cut.p[k + 1] - cut.p[k], &out);
            EXPECT(!strcmp(out.p, json_string_value(json_array_get(want, k / 2))),
                   "chunks %zu: '%s'", i, out.p);
            free(out.p);
        }
        free(cut.p);
    }
}

static void bad_options(void) {
    Toy toy = { .counts = NULL };
    LinguaSource src = { &toy, false, 0, 0, FIRST_NEW, toy_encode, toy_piece, toy_weight,
                         toy_keep };
    const char *none = "", *empty[] = { "" };
    size_t len = 0;
    LinguaResult r;
    LinguaOpts bad[] = { { .rate = 0 }, { .rate = 1.5 }, { .rate = NAN },
                         { .rate = 0.5, .sequence = 3 },
                         { .rate = 0.5, .force = empty, .n_force = 1 },
                         { .rate = 0.5, .n_force = LINGUA_FORCED + 1 } };
    for (size_t i = 0; i < COUNTOF(bad); i++) {
        Err err = { "", 0 };
        EXPECT(lingua_compress(&src, &bad[i], &none, &len, 1, &r, &err) && err.msg[0],
               "bad options %zu were taken", i);
    }
}

// ---------------------------------------------------------------------------
// Small encoders of both kinds

static void probability_row(Lingua *w, json_t *o, const char *name, double *worst) {
    json_t *ids = json_object_get(o, "ids"), *want = json_object_get(o, "p");
    IntVec seq = { 0 };
    float p[LINGUA_SEQUENCE], *out = p;
    Err err;
    for (size_t i = 0; i < json_array_size(ids); i++)
        ints_push(&seq, (int32_t)json_integer_value(json_array_get(ids, i)));
    EXPECT(!lingua_probabilities(w, &seq, 1, &out, &err), "%s: %s", name, err.msg);
    for (size_t i = 0; i < seq.n; i++) {
        double d = fabs((double)p[i] - json_number_value(json_array_get(want, i)));
        if (d > *worst) *worst = d;
        EXPECT(d < 2e-5, "%s: p of token %zu is %g, not %g", name, i, (double)p[i],
               json_number_value(json_array_get(want, i)));
    }
    free(seq.p);
}

static void package_row(Lingua *w, json_t *o, const char *name, int line) {
    json_t *kw = json_object_get(o, "options"), *list = json_object_get(o, "context");
    const char *force[8], *context[8];
    size_t len[8];
    int n = (int)json_array_size(list);
    LinguaOpts opts = { .force = force, .context_filter = true };
    LinguaResult r;
    Err err;
    opts.n_force = list_of(kw, "force_tokens", force, 8);
    opts.rate = json_number_value(json_object_get(kw, "rate"));
    opts.target_tokens = (int)json_integer_value(json_object_get(kw, "target_token"));
    opts.reserve_digits = json_is_true(json_object_get(kw, "force_reserve_digit"));
    opts.drop_consecutive = json_is_true(json_object_get(kw, "drop_consecutive"));
    opts.first_token = json_object_get(kw, "token_to_word") != NULL;
    opts.sequence = (int)number(o, "sequence");
    for (int i = 0; i < n; i++) {
        context[i] = json_string_value(json_array_get(list, (size_t)i));
        len[i] = strlen(context[i]);
    }
    int rc = lingua_run(w, &opts, false, context, len, n, &r, &err);
    EXPECT(!rc, "%s:%d: %s", name, line, err.msg);
    if (rc) return;
    const char *kept = text(o, "kept");
    bool whole = !r.n_words && strspn(kept, "1") == strlen(kept);   // nothing was to be left out
    bool same = whole || r.n_words == (int)strlen(kept);
    for (int i = 0; same && i < r.n_words; i++) same = r.word[i].kept == (kept[i] == '1');
    EXPECT(same, "%s:%d: other words are kept of %d", name, line, r.n_words);
    EXPECT(!strcmp(r.text.p, text(o, "text")), "%s:%d: '%.200s' instead of '%.200s'", name, line,
           r.text.p, text(o, "text"));
    EXPECT(r.tokens_before == (int)number(o, "before") && r.tokens_after == (int)number(o, "after"),
           "%s:%d: %d tokens became %d", name, line, r.tokens_before, r.tokens_after);
    lingua_result_free(&r);
}

// a sequence gives the same bits alone and in a batch
static void alone_and_together(Lingua *w) {
    IntVec seq[9];
    float *one[9], *all[9];
    Rng rng = { 3 };
    Err err;
    for (int s = 0; s < 9; s++) {
        int n = s == 8 ? LINGUA_SEQUENCE : 1 + (int)rng_below(&rng, 511);
        memset(&seq[s], 0, sizeof seq[s]);
        for (int i = 0; i < n; i++) ints_push(&seq[s], (int32_t)rng_below(&rng, 300));
        one[s] = (float *)xrealloc(NULL, (size_t)n * sizeof(float));
        all[s] = (float *)xrealloc(NULL, (size_t)n * sizeof(float));
        EXPECT(!lingua_probabilities(w, &seq[s], 1, &one[s], &err), "%s", err.msg);
    }
    EXPECT(!lingua_probabilities(w, seq, 9, all, &err), "%s", err.msg);
    for (int s = 0; s < 9; s++) {
        EXPECT(!memcmp(one[s], all[s], seq[s].n * sizeof(float)), "sequence %d differs in a batch",
               s);
        free(one[s]);
        free(all[s]);
        free(seq[s].p);
    }
}

static void encoder_rows(const char *kind) {
    char path[64], *line = NULL;
    size_t cap = 0;
    int number_ = 0, texts = 0;
    double worst = 0;
    ModelFile f;
    Err err;
    snprintf(path, sizeof path, "data/lingua/%s.bin", kind);
    CHECK(!file_open(&f, path, true, &err), "%s", err.msg);
    Lingua *w = lingua_open(&f, &err);
    CHECK(w, "%s", err.msg);
    snprintf(path, sizeof path, "data/lingua/%s.jsonl", kind);
    FILE *rows = fopen(path, "r");
    CHECK(rows, "%s is missing", path);
    while (getline(&line, &cap, rows) > 0) {
        json_t *o = json_loads(line, 0, NULL);
        CHECK(o, "%s:%d is no JSON", path, number_ + 1);
        number_++;
        if (json_object_get(o, "ids")) probability_row(w, o, path, &worst);
        else package_row(w, o, path, number_), texts++;
        json_decref(o);
    }
    EXPECT(texts >= 200, "%s has %d texts", path, texts);
    alone_and_together(w);
    printf("%s: %d texts as the package compresses them; p differs by at most %.1e\n", kind, texts,
           worst);
    free(line);
    fclose(rows);
    lingua_close(w);
    file_close(&f);
}

int main(void) {
    json_error_t e;
    Err err;
    CHECK(!cpu_init(0, &err), "%s", err.msg);
    json_t *all = json_load_file("data/scorers/llmlingua2.json", 0, &e), *o;
    size_t i;
    CHECK(all, "data/scorers/llmlingua2.json: %s", e.text);
    number_rows(all);
    text_rows(all);
    json_array_foreach(json_object_get(all, "compress_toy"), i, o)
        compress_row(o, json_object_get(all, "counts"), (int)i);
    bad_options();
    json_decref(all);
    encoder_rows("xlm");
    encoder_rows("bert");
    printf("%d comparisons, %d failed\n", compared, failures);
    return failures != 0;
}
