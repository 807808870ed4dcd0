// test_turns.c - the turn loops against sequences written by hand: which ids are fed, where the
// branch is marked, rewound, forked and dropped. The runtime is a recorder; the ids are
//   context 1 2 3, question t: 10t 10t+1, as a follow-up: 10t+5 10t+6, golden answer t: 10t+9
// and the recorder answers 500, 501, ... until a stop id or the limit.
#include "scb.h"
#include <jansson.h>

enum { VOCAB = 600, STOP = 599 };
static StrBuf calls;
static int stop_after, bad_logits_at, no_compression, interrupt_at, n_calls;
static float out_logits[VOCAB];

struct Context { int n; };
struct Branch { int64_t pos; int budget, n_asked; };
struct Mark { int64_t pos; };

static bool fake_interrupted(void) { return interrupt_at && n_calls >= interrupt_at; }
static void call(const char *what) { str_fmt(&calls, "%s", what); n_calls++; }
static void call_ids(const int32_t *ids, int n) {
    for (int i = 0; i < n; i++) str_fmt(&calls, " %d", ids[i]);
    str_puts(&calls, "\n");
}

static Context *fake_context_open(Model *m, const int32_t *ids, int n, const Needs *needs,
                                  Err *err) {
    static Context c;
    (void)m; (void)needs; (void)err;
    call("context");
    call_ids(ids, n);
    c.n = n;
    return &c;
}
static Context *fake_context_get(Model *m, SaveDir *d, const Method *method, const int32_t *ids,
                                 int n,
                                 const Needs *needs, bool *restored, double *seconds, Err *err) {
    (void)d; (void)method;
    *restored = false;
    *seconds = 0.5;
    return fake_context_open(m, ids, n, needs, err);
}
static void fake_context_drop(Context *c) { (void)c; call("context drop\n"); }

static Branch *fake_branch_open(Model *m, Context *ctx, const Method *method, int reserve,
                                Err *err) {
    Branch *b = (Branch *)calloc(1, sizeof *b);
    (void)m; (void)err;
    call(ctx ? "open on context" : "open");
    str_fmt(&calls, " %s tail %d\n", method->name, reserve);
    b->pos = ctx ? ctx->n : 0;
    b->budget = method->size.budget;
    return b;
}
static int fake_branch_feed(Branch *b, const int32_t *ids, int n, unsigned flags, Err *err) {
    (void)err;
    call("feed");
    str_puts(&calls, flags & FEED_FIRST ? " first" : "");
    str_puts(&calls, flags & FEED_NO_LOGITS ? " silent" : "");
    call_ids(ids, n);
    b->pos += n;
    b->n_asked = 0;
    return 0;
}
static int fake_branches_step(Branch *const *b, const int32_t *id, int n, Err *err) {
    (void)err;
    call("step");
    call_ids(id, n);
    for (int i = 0; i < n; i++) b[i]->pos++;
    return 0;
}
static const float *fake_branch_logits(const Branch *b) {
    memset(out_logits, 0, sizeof out_logits);
    out_logits[b->n_asked % VOCAB] = 1.0f + (float)b->pos;
    if (bad_logits_at && b->n_asked == bad_logits_at) out_logits[3] = NAN;
    return out_logits;
}
static int fake_branch_finite(const Branch *b, Err *err) {     // of the logits last asked for
    (void)b;
    return isnan(out_logits[3]) ? FAIL(err, "the logit of token id 3 is not a number") : 0;
}
static int fake_branch_argmax(const Branch *b) {
    Branch *asked = (Branch *)(uintptr_t)b;
    return asked->n_asked++ == stop_after ? STOP : 499 + asked->n_asked;
}
static Branch *fake_branch_fork(Branch *b, int reserve, Err *err) {
    Branch *f = (Branch *)malloc(sizeof *f);
    (void)err;
    call("fork");
    str_fmt(&calls, " tail %d\n", reserve);
    *f = *b;
    return f;
}
static void fake_branch_drop(Branch *b) {
    if (b) call("drop\n");
    free(b);
}
static void fake_branch_keep(Branch *b, int64_t pos) { (void)b; (void)pos; }

static void fake_branch_cut(Branch *b, int64_t pos) {
    call("cut");
    str_fmt(&calls, " %d\n", (int)pos);
    b->pos = pos;
}
static Mark *fake_branch_mark(Branch *b) {
    Mark *k = (Mark *)malloc(sizeof *k);
    call("mark\n");
    k->pos = b->pos;
    return k;
}
static void fake_branch_rewind(Branch *b, Mark *k) {
    call("rewind\n");
    b->pos = k->pos;
    free(k);
}
static BranchStats fake_branch_stats(const Branch *b) {
    BranchStats s;
    memset(&s, 0, sizeof s);
    s.pos = b->pos;
    s.rows_max = s.rows_min = b->budget && !no_compression &&
        b->budget < b->pos ? b->budget : (int)b->pos;
    s.rows_mean = s.rows_max;
    s.evictable = (size_t)(b->pos - s.rows_max);
    s.kv_live_bytes = 10 * (size_t)s.rows_max;
    s.kv_alloc_bytes = 20 * (size_t)s.rows_max;
    return s;
}
static Phases fake_model_phases(Model *m) { Phases p = { .evict_s = 0.25 }; (void)m; return p; }
static Mem *fake_model_mem(Model *m) { static Mem mem = { 7, 1000, 0, NULL,
                                                          NULL }; (void)m; return &mem; }
static bool fake_tok_is_stop(const Tok *t, int id) { (void)t; return id == STOP; }
static void fake_tok_decode(const Tok *t, const int32_t *ids, size_t n, unsigned flags,
                            StrBuf *out) {
    (void)t; (void)flags;
    for (size_t i = 0; i < n; i++) str_fmt(out, "<%d>", ids[i]);
}

static int newline_id;          // what a line end is encoded as
static void fake_tok_encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out) {
    (void)t; (void)s; (void)n; (void)flags;
    ints_push(out, newline_id);
}

#define interrupted fake_interrupted
#define context_get fake_context_get
#define context_drop fake_context_drop
#define branch_open fake_branch_open
#define branch_feed fake_branch_feed
#define branches_step fake_branches_step
#define branch_logits fake_branch_logits
#define branch_argmax fake_branch_argmax
#define branch_finite fake_branch_finite
#define branch_fork fake_branch_fork
#define branch_drop fake_branch_drop
#define branch_cut fake_branch_cut
#define branch_keep fake_branch_keep
#define branch_mark fake_branch_mark
#define branch_rewind fake_branch_rewind
#define branch_stats fake_branch_stats
#define model_mem fake_model_mem
#define model_phases fake_model_phases
#define tok_is_stop fake_tok_is_stop
#define tok_decode fake_tok_decode
#define tok_encode fake_tok_encode
#include "turns.c"

static int failures;
#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_turns.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

enum { TURNS = 2 };
static Session session;
static Bench bench;
static ChatPieces plain;
static char *rows_text;
static size_t rows_size;
static json_t *rows[16];
static int n_rows, ctx;

static void set_ids(IntVec *v, int a, int b) {
    ints_push(v, a);
    if (b) ints_push(v, b);
}

static void session_build(void) {
    memset(&session, 0, sizeof session);
    session.s.number = 3;
    session_turns(&session.s, TURNS);
    session.turn = (TurnIds *)calloc(TURNS, sizeof *session.turn);
    for (int i = 1; i <= 3; i++) ints_push(&session.context, i);
    for (int t = 0; t < TURNS; t++) {
        TurnIds *u = &session.turn[t];
        TaskTurn *turn = &session.s.turns[t];
        int at = 10 * (t + 1);
        set_ids(&u->first, at, at + 1);
        set_ids(&u->next, at + 5, at + 6);
        set_ids(&u->answer, at + 9, 0);
        turn->input = strdup("?");
        turn->question = strdup("?");
        turn->answer = strdup(t ? "<77>" : "<500>");
        turn_label(turn, turn->answer);
        turn->depth = 0.25 + 0.5 * t;
    }
}

static Arm *arm_aware(const char *name, Mode mode, Aware aware) {
    Err err = { "", 0 };
    bench.arms = (Arm *)xrealloc(bench.arms, (size_t)(bench.n_arms + 1) * sizeof *bench.arms);
    Arm *a = &bench.arms[bench.n_arms++];
    memset(a, 0, sizeof *a);
    a->mode = mode;
    a->aware = aware;
    a->follows = -1;
    snprintf(a->label, sizeof a->label, "%s", name);
    if (method_find(name, &a->method, &err)) die_code(1, "%s", err.msg);
    return a;
}
static Arm *arm(const char *name, Mode mode) {
    return arm_aware(name, mode,
                     mode == MULTI_TURN ? AWARE_FIRST : mode == SINGLE ? AWARE_EACH : AWARE_NO);
}

static void begin(int stop, int max_new) {
    free(bench.arms);
    memset(&bench, 0, sizeof bench);
    ctx = 5;
    bench.positions = -1;
    bench.sessions = 9;
    bench.max_new = max_new;
    bench.seed = 4;
    bench.quiet = true;
    bench.vocab = VOCAB;
    bench.prompter.chat = &plain;
    bench.nothing_evictable = true;
    stop_after = stop;
    bad_logits_at = no_compression = interrupt_at = n_calls = 0;
    calls.n = 0;
}

static void rows_open(void) {
    free(rows_text);
    rows_text = NULL;
    bench.rows = open_memstream(&rows_text, &rows_size);
}

// plays the session, compares the calls, parses the rows
static int play(const char *expected, const char *what) {
    Err err = { "", 0 };
    for (int i = 0; i < n_rows; i++) json_decref(rows[i]);
    n_rows = 0;
    rows_open();
    int rc = bench_session(&bench, &task_retr_kv, &session, ctx, &err);
    fclose(bench.rows);
    str_add(&calls, "", 0);
    EXPECT(!expected || !strcmp(calls.p, expected), "%s: expected\n%sgot\n%s", what, expected,
           calls.p);
    for (char *line = rows_text, *end; (end = strchr(line, '\n')) != NULL &&
         n_rows < 16; line = end + 1)
        rows[n_rows++] = json_loadb(line, (size_t)(end - line), 0, NULL);
    for (int i = 0; i < n_rows; i++) EXPECT(rows[i], "%s: row %d is no JSON", what, i);
    return rc;
}

static const char *text_of(int row, const char *key) {
    const char *s = json_string_value(json_object_get(rows[row], key));
    return s ? s : "null";
}
static int int_of(int row, const char *key) {
    return (int)json_integer_value(json_object_get(rows[row], key));
}
static double real_of(int row, const char *key) {
    return json_number_value(json_object_get(rows[row], key));
}

// LongBench's samsum: a line end is a stop id, and neither it nor another one may come first. The
// recorder's first logits are highest at id 0.
static void test_line_end(void) {
    static const struct { const char *task; int stop, newline; const char *want, *why; } t[] = {
        { "longbench/samsum", 9, 502, "<0><501>", "eos" },
        { "longbench/samsum", 9, 0, "<1><501><502><503>", "length" },
        { "longbench/samsum", 0, 590, "<0><501><502><503>", "length" },
        { "longbench/samsum", 0, 502, "<0><501>", "eos" },
        { "longbench/triviaqa", 9, 502, "<500><501><502><503>", "length" },
        { "longbench/triviaqa", 0, 502, "", "eos" },
    };
    for (size_t i = 0; i < COUNTOF(t); i++) {
        Err err = { "", 0 };
        begin(t[i].stop, 4);
        newline_id = t[i].newline;
        arm("full", SINGLE);
        for (int k = 0; k < n_rows; k++) json_decref(rows[k]);
        rows_open();
        EXPECT(!bench_session(&bench, lb_task(t[i].task), &session, ctx, &err), "%s", err.msg);
        fclose(bench.rows);
        rows[0] = json_loads(rows_text, JSON_DISABLE_EOF_CHECK, NULL);
        n_rows = 1;
        EXPECT(!strcmp(text_of(0, "prediction"), t[i].want) &&
               !strcmp(text_of(0, "stop"), t[i].why),
               "%s, line end %d, stop after %d: %s, %s", t[i].task, t[i].newline, t[i].stop,
               text_of(0, "prediction"), text_of(0, "stop"));
    }
}

static void test_multi_turn(void) {
    begin(2, 80);
    arm("full", MULTI_TURN);
    play("open full tail 83\nfeed first 1 2 3 10 11\nmark\nstep 500\nstep 501\nrewind\n"
         "feed 19 25 26\nmark\nstep 500\nstep 501\nrewind\ndrop\n", "golden");
    EXPECT(n_rows == 2, "%d rows", n_rows);
    EXPECT(!strcmp(text_of(0, "prediction"), "<500><501>") && !strcmp(text_of(0, "stop"), "eos"),
           "prediction %s stop %s", text_of(0, "prediction"), text_of(0, "stop"));
    EXPECT(real_of(0, "score") == 1 && real_of(1, "score") == 0, "scores");
    EXPECT(int_of(0, "n_prompt") == 5 && int_of(1, "n_prompt") == 8 && int_of(1, "n_new") == 2,
           "lengths");
    EXPECT(real_of(0, "policy_s") == 0.75 && real_of(1, "policy_s") == 0.75,
           "a feed and two steps: %g s",
           real_of(0, "policy_s"));
    EXPECT(int_of(0, "rows_max_q") == 5 && int_of(0, "rows_max_end") == 7, "rows at q and end");
    EXPECT(int_of(0, "session") == 3 && int_of(1, "turn") == 2 && real_of(1, "depth") == 0.75,
           "names");
    EXPECT(!strcmp(text_of(0, "history"), "golden") && !strcmp(text_of(0, "query_aware"), "first"),
           "switches");
    EXPECT(json_is_null(json_object_get(rows[0], "evictable")), "full has nothing evictable");
    EXPECT(json_is_null(json_object_get(rows[0], "shared_prefill_s")) &&
           json_is_null(json_object_get(rows[0], "root_s")), "no context was shared");
    int32_t fed[8] = { 1, 2, 3, 10, 11, 19, 25, 26 };
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH64(fed, sizeof fed, 0));
    EXPECT(!strcmp(text_of(1, "ids_hash"), hash), "ids_hash %s, by hand %s", text_of(1, "ids_hash"),
           hash);
    XXH64_state_t state;
    XXH64_reset(&state, 0);
    for (int k = 1; k <= 3; k++) {      // the recorder's logits: chosen after argmax counts on
        float x[VOCAB] = { 0 };
        x[k - 1] = 1.0f + (float)(5 + k - 1);
        XXH64_update(&state, x, sizeof x);
    }
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH64_digest(&state));
    EXPECT(!strcmp(text_of(0, "logits_hash"), hash), "logits_hash %s, by hand %s",
           text_of(0, "logits_hash"), hash);

    begin(2, 2);        // the limit comes before the stop id: its last id is not fed
    arm("full", MULTI_TURN);
    play("open full tail 5\nfeed first 1 2 3 10 11\nmark\nstep 500\nrewind\n"
         "feed 19 25 26\nmark\nstep 500\nrewind\ndrop\n", "limit");
    EXPECT(!strcmp(text_of(0, "stop"), "length") && int_of(0, "n_new") == 2, "stop at the limit");

    begin(0, 80);       // a stop id at once
    arm("full", MULTI_TURN);
    play("open full tail 83\nfeed first 1 2 3 10 11\nmark\nrewind\nfeed 19 25 26\nmark\nrewind\ndrop\n", "empty");
    EXPECT(int_of(0, "n_new") == 0 && json_is_null(json_object_get(rows[0], "decode_tok_s")) &&
           !strcmp(text_of(0, "prediction"), ""), "an empty answer");
}

static void test_own_history(void) {
    begin(2, 80);
    bench.own_history = true;
    arm("full", MULTI_TURN);
    play("open full tail 162\nfeed first 1 2 3 10 11\nstep 500\nstep 501\nfeed 25 26\nstep 500\nstep 501\ndrop\n", "own");
    int32_t fed[9] = { 1, 2, 3, 10, 11, 500, 501, 25, 26 };
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH64(fed, sizeof fed, 0));
    EXPECT(!strcmp(text_of(1, "ids_hash"), hash), "ids_hash of own history");

    begin(9, 2);        // cut by the limit: the last id goes in front of the next feed
    bench.own_history = true;
    arm("full", MULTI_TURN);
    play("open full tail 6\nfeed first 1 2 3 10 11\nstep 500\nfeed 501 25 26\nstep 500\ndrop\n",
         "own, cut");
    EXPECT(!strcmp(text_of(1, "history"), "own"), "history own");
}

static void test_query_aware_no(void) {
    begin(1, 80);
    arm_aware("full", MULTI_TURN, AWARE_NO);
    play("open full tail 85\nfeed first silent 1 2 3\nfeed 10 11\nmark\nstep 500\nrewind\n"
         "feed 19 25 26\nmark\nstep 500\nrewind\ndrop\n", "query-aware no");
    EXPECT(!strcmp(text_of(0, "query_aware"), "no"), "query_aware no");
    EXPECT(json_is_number(json_object_get(rows[0], "shared_prefill_s")) &&
           json_is_null(json_object_get(rows[1], "shared_prefill_s")),
           "the context's prefill, once");
}

static void test_multi_request(void) {
    begin(1, 80);
    arm("full", MULTI_REQUEST);
    play("open full tail 0\nfeed first silent 1 2 3\nfork tail 82\nfeed 10 11\nfork tail 82\n"
           "feed 20 21\nstep 500 500\ndrop\ndrop\ndrop\n", "multi-request");
    EXPECT(int_of(0, "n_prompt") == 5 && int_of(1, "n_prompt") == 5,
           "every request sees the bare context");
    int32_t fed[5] = { 1, 2, 3, 20, 21 };
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH64(fed, sizeof fed, 0));
    EXPECT(!strcmp(text_of(1, "ids_hash"), hash), "request 2 hashes ids of request 1");
    EXPECT(json_is_null(json_object_get(rows[0], "history")), "requests share no history");
    EXPECT(int_of(0, "batch") == 2 && int_of(1, "batch") == 2, "batch");
    EXPECT(!strcmp(text_of(0, "mode"), "multi-request"), "mode");
}

// --batch 1: one request after the other
static void test_one_by_one(void) {
    begin(1, 80);
    arm("full", MULTI_REQUEST);
    bench.batch = 1;
    play("open full tail 0\nfeed first silent 1 2 3\nfork tail 82\nfeed 10 11\nstep 500\ndrop\n"
         "fork tail 82\nfeed 20 21\nstep 500\ndrop\ndrop\n", "--batch 1");
    EXPECT(int_of(0, "batch") == 1, "batch 1 is not in the row");
}

static void test_sweep(void) {
    static const char *const turn =
        "feed first 10 11\nmark\nstep 500\nrewind\nfeed 19 25 26\nmark\n"
                                    "step 500\nrewind\ndrop\n";
    static const char *const request = "feed first silent\nfork tail 82\nfeed 10 11\nfork tail 82\n"
           "feed 20 21\nstep 500 500\ndrop\ndrop\ndrop\n";
    StrBuf expected = { 0 };
    char alone[2][17];
    for (int mode = 0; mode < 2; mode++) {
        begin(1, 80);
        arm("full", (Mode)mode);
        play(NULL, "alone");
        snprintf(alone[mode], sizeof alone[mode], "%s", text_of(1, "ids_hash"));
    }
    begin(1, 80);
    arm("full", MULTI_TURN);
    arm("keep-last", MULTI_TURN);
    arm("full", MULTI_REQUEST);
    bench.arms[1].budget = 32;
    str_fmt(&expected,
            "context 1 2 3\nopen on context full tail 85\n%sopen on context keep-last tail 85\n%s"
            "open on context full tail 0\n%scontext drop\n", turn, turn, request);
    play(expected.p, "sweep");
    EXPECT(n_rows == 6, "%d rows in a sweep", n_rows);
    EXPECT(!strcmp(text_of(1, "ids_hash"), alone[0]) && !strcmp(text_of(5, "ids_hash"), alone[1]),
           "a shared context changes the ids hash");
    EXPECT(json_is_number(json_object_get(rows[0], "shared_prefill_s")) &&
           json_is_null(json_object_get(rows[1], "shared_prefill_s")),
           "the context's prefill, once");
    free(expected.p);
}

// the context and question 1 go in, the policy acts, and the root is cut back to the context's end
static void test_request_aware(void) {
    begin(1, 80);
    arm_aware("full", MULTI_REQUEST, AWARE_FIRST);
    play("open full tail 0\nfeed first silent 1 2 3 10 11\ncut 3\nfork tail 82\nfeed 10 11\nfork tail 82\n"
           "feed 20 21\nstep 500 500\ndrop\ndrop\ndrop\n", "query-aware first");
    EXPECT(!strcmp(text_of(0, "query_aware"), "first"), "query_aware %s",
           text_of(0, "query_aware"));
    int32_t fed[5] = { 1, 2, 3, 20, 21 };
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)XXH64(fed, sizeof fed, 0));
    EXPECT(!strcmp(text_of(1, "ids_hash"), hash), "the hash holds the ids that were cut");
    begin(1, 80);
    arm_aware("full", MULTI_REQUEST, AWARE_FIRST);
    arm_aware("full", MULTI_REQUEST, AWARE_NO);
    play("context 1 2 3\nopen on context full tail 2\nfeed first silent 10 11\ncut 3\nfork tail 82\nfeed 10 11\nfork tail 82\n"
           "feed 20 21\nstep 500 500\ndrop\ndrop\ndrop\nopen on context full tail 0\n"
         "feed first silent\nfork tail 82\nfeed 10 11\nfork tail 82\n"
           "feed 20 21\nstep 500 500\ndrop\ndrop\ndrop\ncontext drop\n",
           "query-aware first on a shared context");
    EXPECT(!strcmp(text_of(1, "ids_hash"), hash), "the same hash on a shared context");
}

// a root per question, on the context that the questions share
static void test_single(void) {
    static const char *const calls_of_both =
        "context 1 2 3\nopen on context full tail 82\nfeed first 10 11\n"
        "open on context full tail 82\nfeed first 20 21\nstep 500 500\ndrop\ndrop\ncontext drop\n";
    begin(1, 80);
    arm("full", SINGLE);
    play(calls_of_both, "single");
    EXPECT(!strcmp(text_of(1, "query_aware"), "each") && !strcmp(text_of(1, "mode"), "single"),
           "names of single");
    EXPECT(json_is_null(json_object_get(rows[1], "history")), "no history in single");
    EXPECT(int_of(0, "n_prompt") == 5 && int_of(1, "n_prompt") == 5,
           "every prompt is the context and its question");
    begin(1, 80);
    arm_aware("full", MULTI_REQUEST, AWARE_EACH);
    play(calls_of_both, "query-aware each");
    session.s.n_turns = 1;
    begin(1, 80);
    arm("full", SINGLE);
    play("open full tail 80\nfeed first 1 2 3 10 11\nstep 500\ndrop\n",
         "one question owns its rows");
    session.s.n_turns = TURNS;
}

// keep-last follows corm with its mean rows: the recorder says 5 and 8 in two turns
static void test_follower(void) {
    begin(1, 80);
    arm("corm", MULTI_TURN);
    arm("keep-last", MULTI_TURN)->follows = 0;
    play(NULL, "follower");
    EXPECT(n_rows == 4 && bench.failures == 0, "%d rows, %d failures: %s", n_rows, bench.failures,
           bench.first_failure);
    json_t *params = json_object_get(rows[2], "params");
    EXPECT(json_integer_value(json_object_get(params, "budget")) == 7,
           "budget %d, the mean of 5 and 8 is 6.5",
           (int)json_integer_value(json_object_get(params, "budget")));
}

// the harness: one prompt from the start, an end id where the limit cut the answer
static void test_harness(void) {
    begin(1, 80);
    bench.preset = PRESET_HARNESS;
    bench.prompter.harness = true;
    for (int i = 1; i <= 6; i++) ints_push(&session.joint, i);
    arm("full", MULTI_TURN);
    arm("full", MULTI_REQUEST);
    play("open full tail 83\nfeed first 1 2 3 4 5 6\nmark\nstep 500\nrewind\nfeed 19 25 26\nmark\nstep 500\n"
         "rewind\ndrop\nopen full tail 0\nfeed first silent 1 2 3\nfork tail 82\nfeed 10 11\nfork tail 82\n"
           "feed 20 21\nstep 500 500\ndrop\ndrop\ndrop\n", "harness: nothing is shared");
    begin(9, 2);
    bench.preset = PRESET_HARNESS;
    bench.prompter.harness = bench.own_history = true;
    ints_push(&plain.ids[CHAT_ASSISTANT_CLOSE], STOP);
    arm("full", MULTI_TURN);
    play("open full tail 6\nfeed first 1 2 3 4 5 6\nstep 500\nfeed 599 25 26\nstep 500\ndrop\n",
         "harness, own, cut");
    plain.ids[CHAT_ASSISTANT_CLOSE].n = session.joint.n = 0;
}

static Lengths lengths_in(const Bench *b, const Task *task, const Session *s, Mode mode,
                          Aware aware) {
    const Arm a = { .mode = mode, .aware = aware };
    return lengths_of(b, task, s, &a);
}

static void test_lengths(void) {
    begin(1, 80);
    arm("full", MULTI_TURN);
    Lengths l = lengths_in(&bench, &task_retr_kv, &session, MULTI_TURN, AWARE_NO);
    EXPECT(l.context == 3 && l.first == 3 && l.later == 85, "alone: %d %d %d", l.context, l.first,
           l.later);
    l = lengths_in(&bench, &task_retr_kv, &session, MULTI_REQUEST, AWARE_FIRST);
    EXPECT(l.first == 5 && l.later == 82, "first: %d %d", l.first, l.later);
    l = lengths_in(&bench, &task_retr_kv, &session, SINGLE, AWARE_EACH);
    EXPECT(l.first == 5 && l.later == 80, "each: %d %d", l.first, l.later);
    bench.max_new = 0;          // a mix: the limit of each turn's part
    session.s.turns[1].part = 1;
    l = lengths_in(&bench, &task_mix_sum_niah, &session, MULTI_TURN, AWARE_FIRST);
    EXPECT(l.later == 800, "golden history after a long answer: %d", l.later);
    bench.own_history = true;
    l = lengths_in(&bench, &task_mix_sum_niah, &session, MULTI_TURN, AWARE_FIRST);
    EXPECT(l.later == 800 + 2 + 15, "own history: %d", l.later);
    session.s.turns[1].part = 0;
    EXPECT(harness_max_input(&task_retr_kv, 131072, 5, MULTI_TURN) == 130322, "retr_kv");
    EXPECT(harness_max_input(&task_mix_sum_niah, 131072, 5, MULTI_TURN) == 129035, "mix_sum_niah");
    EXPECT(harness_max_input(&task_mix_repoqa_kv, 131072, 5, MULTI_REQUEST) == 127312,
           "mix_repoqa_kv");
    EXPECT(harness_max_input(&task_math_find, 131072, 5, MULTI_TURN) == 131047, "math_find");
}

static void cut_check(int limit, const char *expected) {
    Session s;
    Err err = { "", 0 };
    StrBuf got = { 0 };
    memset(&s, 0, sizeof s);
    session_turns(&s.s, 1);
    s.turn = (TurnIds *)calloc(1, sizeof *s.turn);
    for (int i = 0; i < 10; i++) ints_push(&s.context, i);
    set_ids(&s.turn[0].first, 91, 92);
    str_add(&got, NULL, 0);
    if (session_cut(&s, limit, &err)) str_puts(&got, "refused");
    else for (size_t i = 0; i < s.context.n; i++) str_fmt(&got, "%d", s.context.p[i]);
    EXPECT(!strcmp(got.p, expected), "a cut to %d leaves %s, not %s", limit, got.p, expected);
    EXPECT((s.whole == 12) == (limit < 12 && strcmp(expected, "refused")), "cut to %d: whole %d",
           limit, s.whole);
    for (int i = 0; i < 12; i++) ints_push(&s.joint, i);
    session_cut_harness(&s, limit, -1);
    size_t want = limit < 12 ? (size_t)(limit / 2 * 2) : 12;
    EXPECT(s.joint.n == want && (limit >= 12 || s.joint.p[want / 2] == 12 - limit / 2),
           "harness cut to %d", limit);
    session_free(&s);
    free(got.p);
}

static void test_failures(void) {
    begin(5, 80);
    arm("full", MULTI_TURN);
    arm("full", MULTI_REQUEST);
    bad_logits_at = 1;
    int rc = play(NULL, "NaN");
    EXPECT(rc == 0 && bench.failures == 2 && n_rows == 2, "NaN logits: rc %d, %d failures, %d rows",
           rc,
           bench.failures, n_rows);
    EXPECT(strstr(text_of(0, "error"), "not a number"), "error says %s", text_of(0, "error"));
    EXPECT(json_is_null(json_object_get(rows[0], "score")), "a failed turn has no score");

    begin(1, 80);
    arm("keep-last", MULTI_TURN);
    ctx = 64;
    bench.arms[0].budget = 32;
    no_compression = 1;
    for (int i = 0; i < 60; i++) ints_push(&session.context, 1);
    play(NULL, "no compression");
    session.context.n = 3;
    EXPECT(bench.failures == 1 && strstr(text_of(0, "error"), "internal error: keep-last"),
           "no compression: %s",
           text_of(0, "error"));

    begin(5, 80);
    arm("full", MULTI_TURN);
    arm("full", MULTI_REQUEST);
    interrupt_at = 10;
    Err err = { "", 0 };
    rows_open();
    rc = bench_session(&bench, &task_retr_kv, &session, ctx, &err);
    fclose(bench.rows);
    EXPECT(rc && err.code == EXIT_INTERRUPTED, "interrupted: rc %d code %d", rc, err.code);
    EXPECT(!strstr(rows_text, "error\": \"") && strchr(rows_text, '\n') == strrchr(rows_text, '\n'),
           "an interrupted turn writes no row: %s", rows_text);
    EXPECT(!strstr(calls.p, "context drop") == false, "the context is dropped after an interrupt");
}

int main(void) {
    session_build();
    test_multi_turn();
    test_own_history();
    test_query_aware_no();
    test_multi_request();
    test_one_by_one();
    test_sweep();
    test_request_aware();
    test_single();
    test_follower();
    test_harness();
    test_lengths();
    test_line_end();
    cut_check(12, "0123456789");
    cut_check(11, "01234789");
    cut_check(10, "01234789");
    cut_check(6, "0129");
    cut_check(4, "01");
    cut_check(2, "refused");
    test_failures();
    for (int i = 0; i < n_rows; i++) json_decref(rows[i]);
    free(rows_text);
    free(bench.arms);
    free(calls.p);
    free(plain.ids[CHAT_ASSISTANT_CLOSE].p);
    session_free(&session);
    printf("%d failures\n", failures);
    return failures != 0;
}
