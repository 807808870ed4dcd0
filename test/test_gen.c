// test_gen.c - the generators: lengths, targets, seeds; every question can be answered from the text
// alone. Tokenizers are made up here, from one id per byte to pieces that ignore word borders.
#include "scb.h"
#include <ctype.h>
#include <jansson.h>

typedef enum { BYTES, RUNS, DIGITS_APART, FIVES, N_KINDS } Kind;
static Kind kind;

// BYTES: a byte; RUNS: letters and digits together; DIGITS_APART: digits alone, letters in runs of
// at most three; FIVES: five bytes, whatever they are. Ids are the first byte.
static void fake_tok_encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out) {
    (void)t; (void)flags;
    for (size_t i = 0, len; i < n; i += len) {
        len = 1;
        if (kind == FIVES) len = n - i < 5 ? n - i : 5;
        while (kind == RUNS && isalnum((unsigned char)s[i]) && i + len < n && isalnum((unsigned char)s[i + len])) len++;
        while (kind == DIGITS_APART && isalpha((unsigned char)s[i]) && len < 3 && i + len < n &&
               isalpha((unsigned char)s[i + len])) len++;
        ints_push(out, (unsigned char)s[i]);
    }
}

#define main scbench_main
#define tok_encode fake_tok_encode
#include "scbench.c"
#undef main

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_gen.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static ChatPieces plain;
static Prompter prompter = { NULL, &plain };

// the sizes of --ctx hold within one pair, for every tokenizer
static void test_lengths(const Task *task) {
    static const int sizes[] = { 700, 1500, 4097, 20011 };
    for (int k = 0; k < N_KINDS; k++) {
        kind = (Kind)k;
        for (size_t i = 0; i < COUNTOF(sizes); i++) {
            int guess = 0;
            for (int number = 1; number <= 3; number++) {
                Session s, next;
                Err err = { "", 0 };
                if (session_fit(&prompter, task, 5, number, 3, sizes[i], guess, &s, &err)) {
                    EXPECT(false, "tokenizer %d, ctx %d: %s", k, sizes[i], err.msg);
                    continue;
                }
                session_make(&prompter, task, 5, number, 3, s.units + 1, &next);
                int have = first_tokens(&s), pair = first_tokens(&next) - have;
                EXPECT(have <= sizes[i] && sizes[i] - have < pair, "tokenizer %d: %d tokens for ctx %d, one pair is %d",
                       k, have, sizes[i], pair);
                guess = s.units;
                session_free(&s);
                session_free(&next);
            }
        }
    }
    Session s;
    Err err = { "", 0 };
    kind = BYTES;
    int rc = session_fit(&prompter, task, 5, 1, 3, 100, 0, &s, &err);
    EXPECT(rc && err.code == EXIT_USAGE && strstr(err.msg, "--ctx 100 is too small"), "too small: %s", err.msg);
    session_free(&s);
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// reads the context as JSON, checks that keys differ, answers each question by its quoted key
static void solve(const Session *s) {
    json_error_t je;
    json_t *table = json_loadb(s->context.p, s->context.n, JSON_REJECT_DUPLICATES, &je), *value;
    EXPECT(table, "context: %s", je.text);
    EXPECT((int)json_object_size(table) == s->units, "%zu pairs, %d wanted", json_object_size(table), s->units);
    const char *key;
    int n = 0;
    const char **all = (const char **)calloc(2 * (size_t)s->units, sizeof *all);
    json_object_foreach(table, key, value) {
        all[n++] = key;
        all[n++] = json_string_value(value);
        EXPECT(strlen(key) == 36 && json_string_length(value) == 36, "not 36 characters: %s", key);
    }
    qsort(all, (size_t)n, sizeof *all, by_text);
    for (int i = 1; i < n; i++) EXPECT(strcmp(all[i - 1], all[i]), "%s occurs twice", all[i]);
    for (int t = 0; t < s->n_turns; t++) {
        char asked[37];
        const Turn *turn = &s->turns[t];
        EXPECT(sscanf(strchr(turn->input, '"'), "\"%36[0-9a-f-]\"", asked) == 1, "no key in %s", turn->input);
        const char *found = json_string_value(json_object_get(table, asked));
        EXPECT(found && !strcmp(found, turn->answer), "turn %d: %s holds %s", t, asked, found ? found : "nothing");
        EXPECT(!strstr(turn->input, turn->answer), "the question holds its answer");
    }
    free(all);
    json_decref(table);
}

static void test_content(const Task *task) {
    kind = RUNS;
    for (int turns = 1; turns <= 9; turns += 2) {
        for (int units = turns; units < 300; units = units * 2 + 1) {
            Session s;
            session_make(&prompter, task, 11, 2, turns, units, &s);
            solve(&s);
            // depths: one per slot, the middle of the turns-th parts of the list to half a pair
            for (int j = 0; j < turns; j++) {
                int hits = 0;
                for (int t = 0; t < turns; t++)
                    hits += fabs(s.turns[t].depth - (j + 0.5) / turns) <= 0.5 / units + 1e-9;
                EXPECT(hits >= 1, "%d turns, %d pairs: no target near depth %.3f", turns, units, (j + 0.5) / turns);
            }
            session_free(&s);
        }
    }
}

static void test_seeds(const Task *task) {
    Session a, b;
    session_make(&prompter, task, 1, 1, 5, 40, &a);
    session_make(&prompter, task, 1, 1, 5, 40, &b);
    EXPECT(!strcmp(a.context.p, b.context.p) && !strcmp(a.turns[3].input, b.turns[3].input), "the same seed differs");
    session_free(&b);
    static const int other[][2] = { { 2, 1 }, { 1, 2 }, { 0, 1 } };
    for (size_t i = 0; i < COUNTOF(other); i++) {
        session_make(&prompter, task, (uint64_t)other[i][0], other[i][1], 5, 40, &b);
        for (int t = 0; t < 5; t++) {
            EXPECT(strcmp(a.turns[t].input, b.turns[t].input), "seed %d session %d asks the same", other[i][0], other[i][1]);
            EXPECT(!strstr(b.context.p, a.turns[t].answer), "seed %d session %d shares a pair", other[i][0], other[i][1]);
        }
        session_free(&b);
    }
    session_make(&prompter, task, 1, 1, 5, 400, &b);    // a longer context asks the same questions
    for (int t = 0; t < 5; t++) {
        EXPECT(!strcmp(a.turns[t].input, b.turns[t].input), "question %d depends on the length", t + 1);
        EXPECT(fabs(a.turns[t].depth - b.turns[t].depth) < 0.02, "the depth of turn %d depends on the length", t + 1);
    }
    session_free(&a);
    session_free(&b);
    int seen[5][5] = { { 0 } };                         // every turn meets every depth
    for (int number = 1; number <= 100; number++) {
        session_make(&prompter, task, 1, number, 5, 50, &a);
        for (int t = 0; t < 5; t++) seen[t][(int)(a.turns[t].depth * 5)]++;
        session_free(&a);
    }
    for (int t = 0; t < 5; t++)
        for (int j = 0; j < 5; j++) EXPECT(seen[t][j] >= 8 && seen[t][j] <= 35, "turn %d stood %d times in fifth %d of 100", t + 1, seen[t][j], j + 1);
}

static bool ids_are(const IntVec *v, const char *expected) {     // ids above 255 print as <id>
    StrBuf text = { 0 };
    str_puts(&text, "");
    str_add(&text, "", 0);
    for (size_t i = 0; i < v->n; i++) {
        if (v->p[i] > 255) str_fmt(&text, "<%d>", v->p[i]);
        else str_fmt(&text, "%c", v->p[i]);
    }
    bool same = !strcmp(text.p, expected);
    EXPECT(same, "expected %s\n     got %s", expected, text.p);
    free(text.p);
    return same;
}

static void one_turn(Session *s, uint64_t seed, int n_turns, int n_units) {
    (void)seed; (void)n_units;
    s->n_turns = n_turns;
    s->turns = (Turn *)calloc((size_t)n_turns, sizeof *s->turns);
    s->turns[0].input = strdup("Q? ");
    s->turns[0].answer = strdup(" A\n");
    str_puts(&s->context, " text ");
}

// the pieces are joined in this order; a trimming template loses white space at message ends only
static void test_prompt(void) {
    static const Task toy = { "toy", "toy", "", "", 1, 1, " Read. ", "\n\n", one_turn, score_substring };
    ChatPieces chat;
    Prompter p = { NULL, &chat };
    Session s;
    memset(&chat, 0, sizeof chat);
    ints_push(&chat.prefix, 301);
    ints_push(&chat.user_open, 302);
    ints_push(&chat.user_close, 303);
    ints_push(&chat.assistant_open, 304);
    ints_push(&chat.assistant_close, 305);
    kind = BYTES;
    for (int trim = 0; trim < 2; trim++) {
        chat.trim = trim;
        session_make(&p, &toy, 1, 1, 1, 1, &s);
        ids_are(&s.ids, trim ? "<301><302>Read.  text " : "<301><302> Read.  text ");
        ids_are(&s.turns[0].first, trim ? "\n\nQ?<303><304>" : "\n\nQ? <303><304>");
        ids_are(&s.turns[0].next, trim ? "<305><302>Q?<303><304>" : "<305><302>\n\nQ? <303><304>");
        ids_are(&s.turns[0].answer_ids, trim ? "A" : " A\n");
        session_free(&s);
    }
    free(chat.prefix.p);
    free(chat.user_open.p);
    free(chat.user_close.p);
    free(chat.assistant_open.p);
    free(chat.assistant_close.p);
}

static void test_score(void) {
    EXPECT(score_substring("xx ab-1 yy", 10, "ab-1") == 1, "inside");
    EXPECT(score_substring("xx AB-1 yy", 10, "ab-1") == 0, "another case");
    EXPECT(score_substring("ab-", 3, "ab-1") == 0, "cut");
    EXPECT(score_substring("a\0ab-1", 6, "ab-1") == 1, "behind a NUL");
    EXPECT(score_substring("", 0, "ab-1") == 0, "empty");
}

int main(void) {
    for (size_t i = 0; i < COUNTOF(task_table); i++) {
        test_lengths(&task_table[i]);
        test_seeds(&task_table[i]);
    }
    test_content(task_find("scbench_kv", NULL));
    test_prompt();
    test_score();
    printf("%d failures\n", failures);
    return failures != 0;
}
