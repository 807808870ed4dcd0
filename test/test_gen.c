// test_gen.c - from texts to prompts: sessions of a wanted length, the order of the pieces, the
// prompts of the harness. Tokenizers are made up here, from one id per byte to pieces that ignore
// word borders.
#include "tasks/tasks.h"
#include <ctype.h>

typedef enum { BYTES, RUNS, DIGITS_APART, FIVES, N_KINDS } Kind;
static Kind kind;

// BYTES: a byte; RUNS: letters and digits together; DIGITS_APART: digits alone, letters in runs of
// at most three; FIVES: five bytes, whatever they are. Ids are the first byte.
static void fake_tok_encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out) {
    (void)t; (void)flags;
    for (size_t i = 0, len; i < n; i += len) {
        len = 1;
        if (kind == FIVES) len = n - i < 5 ? n - i : 5;
        while (kind == RUNS && isalnum((unsigned char)s[i]) && i + len < n &&
               isalnum((unsigned char)s[i + len])) len++;
        while (kind == DIGITS_APART && isalpha((unsigned char)s[i]) && len < 3 && i + len < n &&
               isalpha((unsigned char)s[i + len])) len++;
        ints_push(out, (unsigned char)s[i]);
    }
}

static void fake_tok_decode(const Tok *t, const int32_t *ids, size_t n, unsigned flags,
                            StrBuf *out) {
    (void)t; (void)flags;
    for (size_t i = 0; i < n; i++) str_fmt(out, ids[i] > 255 ? "<%d>" : "%c", ids[i]);
}

#define tok_encode fake_tok_encode
#define tok_decode fake_tok_decode
#include "turns.c"

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_gen.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)


static ChatPieces plain;
static Prompter prompter = { .chat = &plain };

// --ctx holds within one unit (one to three where units differ in length), for every tokenizer, and
// whatever length was guessed
static void test_lengths(const Task *task, int size, int slack) {
    Err err = { "", 0 };
    Session s, next;
    Maker maker = { .task = task, .seed = 5, .n_turns = 2, .n_play = 2 };
    for (int k = 0; k < N_KINDS; k++) {
        kind = (Kind)k;
        int guess = 0;
        for (int number = 1; number <= 2; number++) {
            if (session_fit(&prompter, &maker, number, size, guess, &s, &err)) {
                EXPECT(false, "%s, tokenizer %d, ctx %d: %s", task->name, k, size, err.msg);
                continue;
            }
            session_make(&prompter, &maker, number, s.s.units + slack, &next, &err);
            int have = session_first(&s), more = session_first(&next);
            EXPECT(have <= size && size < more,
                   "%s, tokenizer %d: %d tokens for ctx %d, %d more units are %d",
                   task->name, k, have, size, slack, more);
            guess = s.s.units;
            session_free(&s);
            session_free(&next);
        }
    }
    kind = BYTES;
    int rc = session_fit(&prompter, &maker, 1, 100, 0, &s, &err);
    EXPECT(rc && err.code == EXIT_USAGE && strstr(err.msg, "--ctx 100 is too small"),
           "too small: %s", err.msg);
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

static void two_turns(TaskSession *s, uint64_t seed, int n_turns, int n_units) {
    (void)seed; (void)n_units;
    session_turns(s, n_turns);
    for (int t = 0; t < n_turns; t++) {
        TaskTurn *turn = &s->turns[t];
        turn->input = text_dup(t ? "The last is" : " The first is");
        turn->question = text_dup(t ? "Q2" : "Q? ");
        turn->answer = text_dup(t ? "B" : " A\n");
        turn_label(turn, t ? "C" : "A");
        turn_label(turn, "B");
        turn->forced = t > 0;
    }
    str_puts(&s->context, " text ");
}

static void chat_pieces(ChatPieces *chat, bool present) {
    static const int id[N_CHAT_PIECES] = { [CHAT_PREFIX] = 301, [CHAT_FIRST_OPEN] = 302,
        [CHAT_USER_OPEN] = 302, [CHAT_USER_CLOSE] = 303, [CHAT_ASSISTANT_OPEN] = 304,
        [CHAT_ASSISTANT_CLOSE] = 305 };
    memset(chat, 0, sizeof *chat);
    chat->present = present;
    for (int i = 0; i < N_CHAT_PIECES; i++) {
        if (!id[i]) continue;
        ints_push(&chat->ids[i], id[i]);
        str_fmt(&chat->text[i], "<%d>", id[i]);
    }
}
static void chat_free(ChatPieces *chat) {
    for (int i = 0; i < N_CHAT_PIECES; i++) {
        free(chat->ids[i].p);
        free(chat->text[i].p);
    }
}

static Task toy_task(ScoreRule rule) {
    Task t = { .name = "toy", .official = "toy", .parts = { { "toy", 1, rule } }, .n_parts = 1,
               .instruction = " Read. ", .separator = "\n\n", .min_units = 1, .make = two_turns };
    return t;
}

static void toy_session(const Prompter *p, const Task *task, int n_play, Session *s) {
    Maker m = { .task = task, .seed = 1, .n_turns = 2, .n_play = n_play };
    Err err = { "", 0 };
    session_make(p, &m, 1, 1, s, &err);
}

// the pieces are joined in this order; a trimming template loses white space at message ends only
static void test_prompt(void) {
    Task toy = toy_task(SCORE_SUBSTRING);
    ChatPieces chat;
    Prompter p = { .chat = &chat };
    Session s;
    chat_pieces(&chat, true);
    kind = BYTES;
    for (int trim = 0; trim < 2; trim++) {
        chat.trim = trim;
        toy_session(&p, &toy, 1, &s);
        EXPECT(s.s.n_turns == 1, "%d turns kept of 2", s.s.n_turns);
        ids_are(&s.context, trim ? "<301><302>Read.  text " : "<301><302> Read.  text ");
        ids_are(&s.turn[0].first, trim ? "\n\nQ?<303><304>" : "\n\nQ? <303><304>");
        ids_are(&s.turn[0].next, trim ? "<305><302>Q?<303><304>" : "<305><302>\n\nQ? <303><304>");
        ids_are(&s.turn[0].answer, trim ? "A" : " A\n");
        session_free(&s);
    }
    chat_free(&chat);
}

// the harness renders pieces to text: <301> is five letters here
static void test_harness(void) {
    Task names = toy_task(SCORE_NAMES), math = toy_task(SCORE_NUMBER);
    ChatPieces chat, none;
    Prompter p = { .chat = &chat, .harness = true };
    Session s;
    chat_pieces(&chat, true);
    memset(&none, 0, sizeof none);
    toy_session(&p, &names, 2, &s);
    ids_are(&s.joint, "<301><302> Read.  text \n\nQ? <303><304>");
    ids_are(&s.context, "<301><302> Read.  text ");
    ids_are(&s.turn[0].first, "Q? <303><304>");
    ids_are(&s.turn[1].first, "Q2<303><304>");
    ids_are(&s.turn[1].next, "['A', 'B']<305><302>Q2<303><304>This paper");
    EXPECT(s.turn[0].answer.n == 0, "the answer is part of the follow-up");
    session_free(&s);
    p.own_history = true;
    toy_session(&p, &names, 2, &s);
    ids_are(&s.turn[1].next, "<302>Q2<303><304>This paper");
    session_free(&s);
    p.own_history = false;
    // its shared context holds question 1; the last target everywhere
    toy_session(&p, &math, 2, &s);
    ids_are(&s.joint, "<301><302>Find the first.\n\n text \n\nQ? <303><304>");
    ids_are(&s.context, "<301><302> The first is\n\n text ");
    ids_are(&s.turn[0].first, "Find the first.\n\nQ? <303><304>");
    ids_are(&s.turn[1].next, " A\n<305><302>Find the last.\n\nQ2<303><304>This paper");
    session_free(&s);
    p.chat = &none;
    toy_session(&p, &names, 2, &s);    // no template
    ids_are(&s.joint, " Read.  text \n\nQ? ");
    ids_are(&s.turn[1].next, "['A', 'B']\n\nQ2");
    session_free(&s);
    chat_free(&chat);
}

int main(void) {
    // bytes that two turns of every task need, and units that may differ in length
    for (int i = 0; task_at(i); i++) {
        const Task *t = task_at(i);
        bool even = !strcmp(t->category, "retr.string") && t != &task_retr_mh &&
                    t != &task_retr_kv_compressible;
        test_lengths(t, 9001, even ? 1 : 12);
    }
    test_lengths(&task_retr_kv, 700, 1);
    test_lengths(&task_retr_kv, 20011, 1);
    test_prompt();
    test_harness();
    printf("%d failures\n", failures);
    return failures != 0;
}
