// turns.c - prompts and the turn loops of SharedContextBench (Li et al. 2024).
//
// One session is one long context and several questions. Multi-turn: the questions are one dialogue
// over a growing history. Multi-request: every question is asked of the bare context. Single: every
// question is a prompt of its own. An arm is one (method, budget, mode) of a run; all arms of a
// session start from the same ids. Nothing here sees a tensor.
#include "tasks/longbench.h"
#define XXH_STATIC_LINKING_ONLY     // the state as a value: forks copy it
#include <xxhash.h>

const char *const mode_name[N_MODES] = { "multi-turn", "multi-request", "single" };
const char *const aware_name[3] = { "no", "first", "each" };
const char *const preset_name[3] = { "scbench", "corm", "harness" };

// ---------------------------------------------------------------------------
// Prompts: template pieces, context, question and answer become ids on their own and are joined

enum { LEFT = 1, RIGHT = 2 };

// what is left of a text when a template that trims its messages loses white space at these ends
static const char *trimmed(const Prompter *p, const char *s, size_t *n, int ends) {
    static const char space[] = " \t\r\n\v\f";
    if (p->chat->trim && (ends & LEFT))
        while (*n && memchr(space, *s, 6)) s++, --*n;
    if (p->chat->trim && (ends & RIGHT))
        while (*n && memchr(space, s[*n - 1], 6)) --*n;
    return s;
}

static void add_text(const Prompter *p, const char *s, size_t n, int ends, unsigned flags,
                     IntVec *out) {
    s = trimmed(p, s, &n, ends);
    tok_encode(p->tok, s, n, flags, out);
}
static void add_piece(const Prompter *p, ChatPiece piece, IntVec *out) {
    ints_add(out, p->chat->ids[piece].p, p->chat->ids[piece].n);
}
static void add_ids(IntVec *out, const IntVec *ids) { ints_add(out, ids->p, ids->n); }

static void context_ids(const Prompter *p, const Task *task, Session *s) {
    StrBuf text = { 0 };
    str_puts(&text, task->instruction);
    str_add(&text, s->s.context.p, s->s.context.n);
    add_piece(p, CHAT_PREFIX, &s->context);
    add_piece(p, CHAT_FIRST_OPEN, &s->context);
    add_text(p, text.p, text.n, LEFT, p->chat->first_text, &s->context);
    free(text.p);
}

static void turn_ids(const Prompter *p, const Task *task, const TaskTurn *turn, TurnIds *t) {
    StrBuf q = { 0 };
    str_fmt(&q, "%s%s", task->separator, turn->question);
    add_text(p, q.p, q.n, RIGHT, TOK_MIDDLE, &t->first);
    add_piece(p, CHAT_USER_CLOSE, &t->first);
    add_piece(p, CHAT_ASSISTANT_OPEN, &t->first);
    add_piece(p, CHAT_ASSISTANT_CLOSE, &t->next);
    add_piece(p, CHAT_USER_OPEN, &t->next);
    add_text(p, q.p, q.n, LEFT | RIGHT, p->chat->user_text, &t->next);
    add_piece(p, CHAT_USER_CLOSE, &t->next);
    add_piece(p, CHAT_ASSISTANT_OPEN, &t->next);
    add_piece(p, CHAT_ANSWER_OPEN, &t->answer);
    add_text(p, turn->answer, strlen(turn->answer), LEFT | RIGHT, p->chat->answer_text, &t->answer);
    free(q.p);
}

void prompter_open(Prompter *p, const Tok *tok, bool no_chat, ChatPieces *plain) {
    memset(p, 0, sizeof *p);
    memset(plain, 0, sizeof *plain);
    plain->user_text = plain->answer_text = TOK_MIDDLE;
    tok_encode(tok, "", 0, TOK_BOS, &plain->ids[CHAT_PREFIX]);
    p->tok = tok;
    p->bare = plain;
    p->chat = tok_chat(tok)->present && !no_chat ? tok_chat(tok) : plain;
}

// ---------------------------------------------------------------------------
// The harness's prompts: every prompt is rendered to one text and tokenised at once, special tokens
// in it included; the first one gets the tokenizer's BOS although the template has written one.

static void put_piece(const Prompter *p, ChatPiece piece, StrBuf *out) {
    const StrBuf *s = &p->chat->text[piece];
    if (p->chat->present) str_add(out, s->p, s->n);
}

static void put_message(const Prompter *p, const char *s, int ends, StrBuf *out) {
    size_t n = strlen(s);
    s = trimmed(p, s, &n, ends);
    str_add(out, s, n);
}

static void encode_prompt(const Prompter *p, StrBuf *text, unsigned flags, IntVec *out) {
    tok_encode(p->tok, text->p ? text->p : "", text->n, TOK_SPECIAL | flags, out);
    free(text->p);
}

// What math_find's sentence asks for: the text from "The " to the last " is" of a line of the
// question, else the question.
static char *math_target(const TaskTurn *t) {
    const char *from = strstr(t->input, "The "), *last = NULL;
    size_t line = from ? strcspn(from, "\n") : 0;
    for (size_t i = 5; from && i + 3 <= line; i++)
        if (!memcmp(from + i, " is", 3)) last = from + i;
    if (!last) return text_dup(t->input);
    char *out = text_fmt("%.*s", (int)(last - from), from);
    out[0] = 't';
    return out;
}

// the sentence about it: ours, or that of --templates, which stands before its {context}
static char *math_sentence(const Task *task, const TaskTurn *t) {
    char *target = math_target(t), *out;
    const char *own = task->wording ? task->instruction : "Find {target}.\n\n",
               *gap = strstr(own, "{target}");
    if (!gap) out = text_dup(own);
    else if (strncmp(target, "the ", 4)) out = text_fmt("%s\n\n", target);
    else out = text_fmt("%.*s%s%s", (int)(gap - own), own, target, gap + strlen("{target}"));
    free(target);
    return out;
}

static bool is_math(const Task *task) { return task->parts[0].rule == SCORE_NUMBER; }

// the question block of turn t; math_find has the sentence of turn target in front of it
static char *harness_question(const Task *task, const TaskSession *s, int t, int target) {
    if (!is_math(task)) return text_dup(s->turns[t].question);
    char *head = math_sentence(task, &s->turns[target]);
    char *text = text_fmt("%s%s", head, s->turns[t].question);
    free(head);
    return text;
}

// a list of names is fed back as Python prints it
static char *harness_answer(const Task *task, const TaskTurn *t) {
    StrBuf out = { 0 };
    if (task->parts[t->part].rule != SCORE_NAMES) return text_dup(t->answer);
    for (int i = 0; i < t->n_labels; i++) str_fmt(&out, "%s'%s'", i ? ", " : "[", t->label[i]);
    str_puts(&out, t->n_labels ? "]" : "[]");
    return out.p;
}

// what stands before and in the context slot; leak: math_find's shared context holds question 1
static void put_context(const Prompter *p, const Task *task, const TaskSession *s, bool leak,
                        StrBuf *out) {
    StrBuf body = { 0 };
    if (!is_math(task)) str_puts(&body, task->instruction);
    else if (leak) str_fmt(&body, "%s\n\n", s->turns[0].input);
    else {
        char *sentence = math_sentence(task, &s->turns[0]);
        str_puts(&body, sentence);
        free(sentence);
    }
    str_add(&body, s->context.p ? s->context.p : "", s->context.n);
    put_piece(p, CHAT_PREFIX, out);
    put_piece(p, CHAT_FIRST_OPEN, out);
    put_message(p, body.p, LEFT, out);
    free(body.p);
}

static void put_generation(const Prompter *p, StrBuf *out) {
    put_piece(p, CHAT_USER_CLOSE, out);
    put_piece(p, CHAT_ASSISTANT_OPEN, out);
}

static void harness_turn(const Prompter *p, const Task *task, const TaskSession *s, int t,
                         TurnIds *ids) {
    StrBuf first = { 0 }, next = { 0 };
    bool chat = p->chat->present;
    char *q = harness_question(task, s, t, t);
    put_message(p, q, RIGHT, &first);
    put_generation(p, &first);
    encode_prompt(p, &first, 0, &ids->first);
    free(q);
    if (t == 0) return;
    // its chat follow-ups all name the last turn's target
    q = harness_question(task, s, t, chat ? s->n_turns - 1 : t);
    if (!p->own_history) {
        char *a = harness_answer(task, &s->turns[t - 1]);
        put_piece(p, CHAT_ANSWER_OPEN, &next);
        put_message(p, a, LEFT | RIGHT, &next);
        if (chat) put_piece(p, CHAT_ASSISTANT_CLOSE, &next);
        else str_puts(&next, "\n\n");
        free(a);
    }
    put_piece(p, CHAT_USER_OPEN, &next);
    put_message(p, q, LEFT | RIGHT, &next);
    put_generation(p, &next);
    if (chat && s->turns[t].forced) str_puts(&next, "This paper");
    encode_prompt(p, &next, 0, &ids->next);
    free(q);
}

static void harness_context_ids(const Prompter *p, const Task *task, Session *s) {
    StrBuf context = { 0 }, joint = { 0 };
    put_context(p, task, &s->s, true, &context);
    encode_prompt(p, &context, TOK_BOS, &s->context);
    put_context(p, task, &s->s, false, &joint);
    str_puts(&joint, "\n\n");
    put_message(p, s->s.turns[0].question, RIGHT, &joint);
    put_generation(p, &joint);
    encode_prompt(p, &joint, TOK_BOS, &s->joint);
}

int harness_max_new(const Task *task, int part) {
    static const struct { const char *official; int max_new[2]; } limits[] = {
        { "scbench_kv", { 150, 0 } }, { "scbench_kv_compressible", { 150, 0 } },
        { "scbench_prefix_suffix", { 150, 0 } }, { "scbench_vt", { 30, 0 } },
        { "scbench_repoqa", { 1024, 0 } }, { "scbench_qa_eng", { 40, 0 } },
        { "scbench_qa_chn", { 40, 0 } }, { "scbench_choice_eng", { 40, 0 } },
        { "scbench_mf", { 5, 0 } }, { "scbench_many_shot", { 10, 0 } },
        { "scbench_summary", { 200, 0 } }, { "scbench_summary_with_needles", { 800, 15 } },
        { "scbench_repoqa_and_kv", { 1024, 80 } },
    };
    for (size_t i = 0; i < COUNTOF(limits); i++)
        if (!strcmp(task->official, limits[i].official)) return limits[i].max_new[part];
    return task->parts[part].max_new;
}

int harness_max_input(const Task *task, int max_seq, int n_turns, Mode mode) {
    int most = max_seq - harness_max_new(task, 0) * n_turns;
    if (task->n_parts == 2)
        most = max_seq - (harness_max_new(task, 0) + harness_max_new(task, 1)) * n_turns / 2;
    return mode == MULTI_REQUEST ? most - 1000 : most;
}

// ---------------------------------------------------------------------------
// Sessions

void session_free(Session *s) {
    for (int t = 0; s->turn && t < s->s.n_turns; t++) {
        free(s->turn[t].answer.p);
        free(s->turn[t].first.p);
        free(s->turn[t].next.p);
    }
    free(s->turn);
    free(s->context.p);
    free(s->joint.p);
    session_clear(&s->s);
    memset(s, 0, sizeof *s);
}

int session_first(const Session *s) {
    return (int)(s->joint.n ? s->joint.n : s->context.n + s->turn[0].first.n);
}

void session_keep_turns(TaskSession *s, int n) {
    if (n >= s->n_turns) return;
    TaskSession rest = { .n_turns = s->n_turns - n };
    rest.turns = (TaskTurn *)xrealloc(NULL, (size_t)rest.n_turns * sizeof *rest.turns);
    memcpy(rest.turns, s->turns + n, (size_t)rest.n_turns * sizeof *rest.turns);
    session_clear(&rest);
    s->n_turns = n;
}

void session_by_depth(TaskSession *s) {
    for (int i = 0; i < s->n_turns; i++)
        for (int j = i + 1; j < s->n_turns; j++) {
            TaskTurn *a = &s->turns[i], *b = &s->turns[j], t = *a;
            bool forced = b->forced;            // stays with the place, not with the question
            if (a->part != b->part || !(b->depth < a->depth)) continue;
            *a = *b;
            a->forced = t.forced;
            *b = t;
            b->forced = forced;
        }
}

// some tasks are never put in a template
static Prompter prompter_of(const Prompter *p, const Task *task) {
    Prompter own = *p;
    if (!p->harness && task->lb && task->lb->bare) own.chat = p->bare;
    return own;
}

void session_context_ids(const Prompter *p, const Task *task, Session *s) {
    Prompter own = prompter_of(p, task);
    if (p->harness) harness_context_ids(&own, task, s);
    else context_ids(&own, task, s);
}

void session_ids(const Prompter *p, const Task *task, Session *s) {
    Prompter own = prompter_of(p, task);
    s->turn = (TurnIds *)xrealloc(NULL, (size_t)s->s.n_turns * sizeof *s->turn);
    memset(s->turn, 0, (size_t)s->s.n_turns * sizeof *s->turn);
    session_context_ids(p, task, s);
    for (int t = 0; t < s->s.n_turns; t++) {
        if (p->harness) harness_turn(&own, task, &s->s, t, &s->turn[t]);
        else turn_ids(&own, task, &s->s.turns[t], &s->turn[t]);
    }
}

int session_make(const Prompter *p, const Maker *m, int number, int n_units, Session *s, Err *err) {
    memset(s, 0, sizeof *s);
    s->s.number = number;
    if (!m->repo) m->task->make(&s->s, m->seed, m->n_turns, n_units);
    else if (repo_from_tree(&s->s, m->repo, m->seed, m->n_turns, n_units, err)) {
        session_clear(&s->s);
        return -1;
    }
    session_words(m->task, &s->s);
    session_keep_turns(&s->s, m->n_play);
    if (m->by_depth) session_by_depth(&s->s);
    session_ids(p, m->task, s);
    return 0;
}

// The smallest session; its units, or -1. In a source tree the first functions may have no comment
// to be asked by.
static int session_smallest(const Prompter *p, const Maker *m, int number, Session *s, Err *err) {
    int units = m->task->min_units * m->n_turns;
    if (!session_make(p, m, number, units, s, err)) return units;
    for (Err other; m->repo && units < 1 << 13;)
        if (!session_make(p, m, number, units *= 2, s, &other)) return units;
    return -1;
}

// the secant rule on whole tokenisations, three or four of them
int session_fit(const Prompter *p, const Maker *m, int number, int ctx, int guess, Session *s,
                Err *err) {
    int lo = session_smallest(p, m, number, s, err), hi = INT_MAX;
    if (lo < 0) return -1;
    int have = session_first(s);
    double per_unit = (double)s->context.n / lo;
    if (have > ctx) {
        session_free(s);
        return FAIL_CODE(err, EXIT_USAGE,
                         "--ctx %d is too small: %d turns of %s need at least %d tokens", ctx,
                         m->n_turns, m->task->name, have);
    }
    while (hi - lo > 1 && ctx - have >= per_unit / 2) {
        int n = lo + (int)((ctx - have) / per_unit);
        if (guess > lo) n = guess;
        if (n <= lo) n = lo + 1;
        if (n >= hi) n = hi - 1;
        guess = 0;
        Session next;
        Err none;               // a tree that ends
        int got = session_make(p, m, number, n, &next, &none) ? INT_MAX : session_first(&next);
        if (n - lo >= 8 && got < INT_MAX) per_unit = (double)(got - have) / (n - lo);
        if (got > ctx) {
            hi = n;
            session_free(&next);
            continue;
        }
        lo = n, have = got;
        session_free(s);
        *s = next;
    }
    return 0;
}

// the first and the last n / 2 ids of a list longer than n
static void cut_middle(IntVec *v, int n) {
    size_t half = (size_t)(n / 2);
    if (n < 0 || v->n <= (size_t)n) return;
    memmove(v->p + half, v->p + v->n - half, half * sizeof *v->p);
    v->n = 2 * half;
}

int session_cut(Session *s, int limit, Err *err) {
    int have = session_first(s), question = (int)s->turn[0].first.n, tail = limit / 2 - question;
    s->limited = true;
    s->limit = limit;
    if (have <= limit) return 0;
    if (tail < 0 || limit / 2 > (int)s->context.n)
        return FAIL(err, "session %d cannot be cut to %d tokens: its first question alone has %d; "
                    "choose a larger --ctx or a model that takes more", s->s.number, limit,
                    question);
    s->whole = have;
    memmove(s->context.p + limit / 2, s->context.p + s->context.n - tail,
            (size_t)tail * sizeof *s->context.p);
    s->context.n = (size_t)(limit / 2 + tail);
    return 0;
}

// takes the ids from a up to b out of a list; both may lie beyond its ends
static void cut_range(IntVec *v, int a, int b) {
    int n = (int)v->n;
    a = a < 0 ? 0 : a > n ? n : a;
    b = b < a ? a : b > n ? n : b;
    if (b < n) memmove(v->p + a, v->p + b, (size_t)(n - b) * sizeof *v->p);
    v->n -= (size_t)(b - a);
}

void session_cut_prompt(const Prompter *p, const Task *task, Session *s, int limit, int most) {
    const ChatPieces *chat = task->lb->bare ? p->bare : p->chat;
    int have = session_first(s), context = (int)s->context.n;
    int open = (int)(chat->ids[CHAT_PREFIX].n + chat->ids[CHAT_FIRST_OPEN].n -
                     p->bare->ids[CHAT_PREFIX].n);
    int close = (int)(chat->ids[CHAT_USER_CLOSE].n + chat->ids[CHAT_ASSISTANT_OPEN].n);
    if (limit > most - open - close) limit = most - open - close;
    if (have - open - close <= limit) return;
    s->whole = have;
    int from = open + limit / 2, to = have - close - limit / 2;
    cut_range(&s->context, from, to);
    cut_range(&s->turn[0].first, from - context, to - context);
}

void session_cut_harness(Session *s, int limit, int request_limit) {
    s->limited = true;
    s->limit = limit;
    s->request_limit = request_limit;
    if (limit >= 0 && (int)s->joint.n > limit) s->whole = (int)s->joint.n;
    cut_middle(&s->joint, limit);
    cut_middle(&s->context, request_limit);
}

// ---------------------------------------------------------------------------
// Arms and lengths

int part_max_new(const Bench *b, const Task *task, int part) {
    if (b->max_new) return b->max_new;
    return b->preset == PRESET_HARNESS ? harness_max_new(task, part) : task->parts[part].max_new;
}

static int turn_max_new(const Bench *b, const Task *task, const Session *s, int t) {
    return part_max_new(b, task, s->s.turns[t].part);
}

int arm_method(const Bench *b, const Arm *a, int ctx, Method *m, Err *err) {
    int budget = a->keep > 0 ? (int)(a->keep * ctx) : a->budget;
    if (a->keep > 0 && budget < 32)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--keep %g of %d tokens are %d rows; at least 32 are needed", a->keep, ctx,
                         budget);
    *m = a->method;
    m->seed = b->seed;
    if (b->group >= 0 && (method_groups(m) || b->group == GROUP_QUERY_HEAD))
        m->set.group = (Group)b->group;
    m->set.every_turn = b->every_turn;
    return method_resolve(m, b->preset, ctx, budget, b->positions, err);
}

// evicts within the prompt: what is left of it is the method's alone
static bool streams(const Arm *a) { return a->method.set.stream > 0; }

// The rows of a dense prefill are those of the bare context; a sparse one depends on the whole
// first feed, so its rows also depend on the question in it.
static bool same_rows(const Arm *a, const Arm *b) {
    const Method *m = &a->method, *n = &b->method;
    if (streams(a) || streams(b)) return a == b;
    if (m->prefill != n->prefill || !method_same_prompt(m, n)) return false;
    if (!m->prefill) return true;
    if (!m->pattern_path != !n->pattern_path ||
        (m->pattern_path && strcmp(m->pattern_path, n->pattern_path))) return false;
    if (a->aware != b->aware || (a->aware == AWARE_FIRST && a->mode != b->mode)) return false;
    bool a_sized = !method_in_cache(m), b_sized = !method_in_cache(n);  // by --budget or --keep
    return (a_sized ? a->budget : 0) == (b_sized ? b->budget : 0) &&
           (a_sized ? a->keep : 0) == (b_sized ? b->keep : 0) &&
           !memcmp(&m->prefill_set, &n->prefill_set, sizeof m->prefill_set);
}

static bool is_whole(const Arm *a) { return a->method.prefill != NULL; }

SharedBy arm_sharers(const Bench *b, const Arm *a, int n_turns) {
    SharedBy by = { -1, -1, false };
    int users = 0;
    for (int i = 0; i < b->n_arms; i++) {
        const Arm *c = &b->arms[i];
        if (!same_rows(a, c)) continue;
        users += c->aware == AWARE_EACH && n_turns > 1 ? 2 : 1;
        if (by.first < 0) by.first = i;
        by.last = i;
    }
    // a root that is cut back to the context's end makes its rows itself: recurrent state is kept
    // there while it is fed
    bool alone = is_whole(a) && (a->aware == AWARE_EACH ||
                                 (a->mode == MULTI_REQUEST && a->aware == AWARE_FIRST));
    by.shared = (users > 1 || b->save.dir) && b->preset != PRESET_HARNESS && !alone && !streams(a);
    return by;
}

Session session_expected(const Session *s, const Arm *a) {
    Session e = *s;
    double rate = method_prompt_rate(&a->method, (int)s->context.n);
    e.context.n = (size_t)ceil(rate * (double)s->context.n);
    e.joint.n = (size_t)ceil(rate * (double)s->joint.n);
    return e;
}

// how many requests of a session decode together
static int batch_of(const Bench *b, int n_turns) {
    return b->batch && b->batch < n_turns ? b->batch : n_turns;
}

Lengths lengths_of(const Bench *b, const Task *task, const Session *s, const Arm *a) {
    Mode mode = a->mode;
    Aware aware = a->aware;
    int context = (int)s->context.n, first = session_first(s), history = 0;
    Lengths l = { context, aware == AWARE_NO ? context : first, 0, 1 };
    if (mode != MULTI_TURN && (aware != AWARE_EACH || arm_sharers(b, a, s->s.n_turns).shared))
        l.branches = batch_of(b, s->s.n_turns);
    for (int t = 0; t < s->s.n_turns; t++) {
        int question = (int)s->turn[t].first.n, answer = turn_max_new(b, task, s, t), later = 0;
        if (mode == MULTI_TURN) {
            if (t == 0) history = first - l.first;
            else history += (int)s->turn[t].next.n +
                            (b->own_history ? turn_max_new(b, task, s, t - 1)
                                            : (int)s->turn[t - 1].answer.n);
            later = history + answer;
        } else if (aware == AWARE_EACH) {
            if (context + question > l.first) l.first = context + question;
            later = answer;
        } else {
            later = question + answer;
        }
        if (later > l.later) l.later = later;
    }
    return l;
}

// ---------------------------------------------------------------------------
// Playing one arm of one session

typedef struct {                // a session as the arms of one prompt stage see it
    Session s;                  // context and joint are its own, the rest the whole session's
    int before, after;          // tokens of the tokenizer that weighs words
    double seconds;
    bool read;                  // the compressed context was there
    int *gold;                  // (n_turns) the answer stands in it: 0, 1; -1: nor in the whole one
} Compressed;

typedef struct {
    Bench *b;
    const Task *task;
    const Session *s;           // what z has left of it
    const Compressed *z;        // NULL: a whole context
    const Arm *arm;
    Method method;              // sizes resolved
    StrBuf params;
    Context *shared;            // rows that have several users, else NULL
    bool whole;                 // of the whole first feed; else of the bare context
    double shared_s;            // their prefill, or reading them
    double shared_policy_s;     // of that, policies
    bool restored;              // they were read
    int ctx;
    XXH64_state_t ids;          // all ids fed to the branch that answers
    double policy_s;            // of the feeds since the last row
    double rows_sum;            // mean live rows at the end of the questions, over n_rows turns
    int n_rows;
} Play;

static int write_line(FILE *f, StrBuf *line, const char *what, Err *err) {
    str_puts(line, "\n");
    if (fwrite(line->p, 1, line->n, f) == line->n && fflush(f) == 0) return 0;
    return FAIL(err, "%s cannot be written: %s; free some space and go on with --resume", what,
                strerror(errno));
}

static int dump_feed(const Play *p, int turn, const char *method, const IntVec *ids, Err *err) {
    StrBuf line = { 0 }, text = { 0 };
    tok_decode(p->b->prompter.tok, ids->p, ids->n, 0, &text);
    str_fmt(&line,
            "{\"task\": \"%s\", \"session\": %d, \"turn\": %d, \"mode\": \"%s\", \"method\": "
            "\"%s\", \"text\": ",
            p->task->name, p->s->s.number, turn, p->arm ? mode_name[p->arm->mode] : "all", method);
    json_text(&line, text.p ? text.p : "", text.n);
    str_puts(&line, ", \"ids\": [");
    for (size_t i = 0; i < ids->n; i++) str_fmt(&line, "%s%d", i ? ", " : "", ids->p[i]);
    str_puts(&line, "]}");
    int rc = write_line(p->b->prompts, &line, "prompts.jsonl", err);
    free(line.p);
    free(text.p);
    return rc;
}

static void progress_of(const Play *p, const char *what, size_t tokens) {
    char label[64];
    snprintf(label, sizeof label, "%s %d/%d %.30s", p->task->name, p->s->s.number, p->b->sessions,
             what);
    progress_begin(&p->b->progress, label, (double)tokens, p->b->quiet);
}

// one feed; *seconds is what it took
static int feed(Play *p, Branch *b, const IntVec *ids, unsigned flags, int turn, double *seconds,
                Err *err) {
    if (p->b->prompts && dump_feed(p, turn, p->method.name, ids, err)) return -1;
    XXH64_update(&p->ids, ids->p, ids->n * sizeof *ids->p);
    progress_of(p, p->method.name, ids->n);
    model_phases(p->b->model);
    double t = now_s();
    int rc = branch_feed(b, ids->p, (int)ids->n, flags, err);
    *seconds = now_s() - t;
    p->policy_s += model_phases(p->b->model).evict_s;
    progress_end(&p->b->progress);
    return rc;
}

static int check_first_feed(Play *p, const Branch *root, Err *err);

// A root whose first feed ids are, behind the shared context if there is one; a saved one takes its
// place. *seconds is what that took.
static Branch *first_feed(Play *p, const IntVec *ids, int reserve, unsigned flags, int turn,
                          double *seconds, int *restored, Err *err) {
    IntVec all = { 0 };
    // one that chooses after every feed looks at query rows that a saved root has not
    bool saves = p->b->save.dir && method_evicts(&p->method) && !p->method.size.every_turn;
    if (p->shared) add_ids(&all, &p->s->context);
    if (p->whole && p->arm->aware == AWARE_FIRST) add_ids(&all, &p->s->turn[0].first);
    add_ids(&all, ids);
    double t = now_s();
    Branch *b = saves ? root_get(p->b->model, &p->b->save, &p->method, all.p, (int)all.n, reserve)
                      : NULL;
    *seconds = now_s() - t;
    *restored = b != NULL;
    int rc = 0;
    if (b) {
        if (p->b->prompts) rc = dump_feed(p, turn, p->method.name, ids, err);
        XXH64_update(&p->ids, ids->p, ids->n * sizeof *ids->p);
    } else {
        b = branch_open(p->b->model, p->shared, &p->method, reserve, err);
        rc = b ? feed(p, b, ids, FEED_FIRST | flags, turn, seconds, err) : -1;
    }
    if (!rc) rc = check_first_feed(p, b, err);
    if (!rc && saves && !*restored) root_keep(&p->b->save, b, all.p, (int)all.n);
    free(all.p);
    if (!rc) return b;
    branch_drop(b);
    return NULL;
}

static RowsAt rows_at(const BranchStats *s) {
    RowsAt a = { s->rows_min, s->rows_max, s->rows_mean, (int64_t)s->kv_live_bytes,
                 (int64_t)s->kv_alloc_bytes };
    return a;
}

static void row_begin(const Play *p, int turn, Row *row) {
    static const char *const positions[] = { "original", "cache", "sinkcache" };
    const Bench *b = p->b;
    const TaskTurn *t = &p->s->s.turns[turn];
    row_clear(row);
    row->session = p->s->s.number;
    row->turn = turn + 1;
    row->turns = p->s->s.n_turns;
    row->task = p->task->name;
    row->depth = t->depth;
    row->mode = mode_name[p->arm->mode];
    row->preset = preset_name[b->preset];
    row->method = p->method.name;
    row->arm = p->arm->label;
    row->params = p->params.p;
    row->scaled = p->method.size.scaled;
    if (p->arm->mode == MULTI_TURN) row->history = b->own_history ? "own" : "golden";
    if (method_at_first(&p->method) && !method_at_steps(&p->method))
        row->compress = p->method.size.feeds ? "every-turn" : "once";
    row->group = method_group(&p->method);
    row->query_aware = aware_name[p->arm->aware];
    row->positions = positions[p->method.size.positions];
    row->scorer = b->scorer == SCORER_HARNESS ? "harness" : "ours";
    if (p->task->n_parts > 1) row->part = p->task->parts[t->part].name;
    if (p->task->parts[t->part].rule == SCORE_REPOQA) row->lang = p->s->s.lang;
    row->seed = b->seed;
    row->ctx = p->ctx;
    row->restored = 0;
    row->chat = b->prompter.chat->present;
    row->question = t->question;
    row->gold = t->answer;
    if (!p->z) return;
    row->tokens_before = p->z->before;
    row->tokens_after = p->z->after;
    row->compress_s = p->z->seconds;
    row->compress_read = p->z->read;
    row->gold_kept = p->z->gold[turn];
}

// A method that should have dropped rows in the first feed and did not is an error; one that had
// nothing to drop is worth one sentence per run.
static int check_first_feed(Play *p, const Branch *root, Err *err) {
    BranchStats st = branch_stats(root);
    if (st.pairs_ratio > 0.95 && p->method.prefill && !p->b->all_but_dense &&
        st.pos > method_prefill_window(&p->method)) {
        fprintf(stderr, "warning: %s computed %.1f %% of all pairs in session %d (%lld tokens): "
                "its rows say pairs_ratio\n", p->method.name, 100 * st.pairs_ratio, p->s->s.number,
                (long long)st.pos);
        p->b->all_but_dense = true;
    }
    if (!method_at_first(&p->method)) return 0;
    if (method_has_budget(&p->method) && st.pos > p->method.size.budget && st.rows_max >= st.pos)
        return FAIL(err, "internal error: %s with a budget of %d rows kept all %lld",
                    p->method.name, p->method.size.budget, (long long)st.pos);
    if (st.evictable == 0 && !p->b->nothing_evictable) {
        fprintf(stderr,
                "warning: %s found nothing to evict in session %d (%lld tokens): its rows say "
                "evictable 0\n",
                p->method.name, p->s->s.number, (long long)st.pos);
        p->b->nothing_evictable = true;
    }
    return 0;
}

// the last id of a line end, where a line ends the answer; else -1
static int line_end(const Play *p) {
    IntVec ids = { 0 };
    int id = -1;
    if (!p->task->lb || !p->task->lb->newline_stops) return -1;
    tok_encode(p->b->prompter.tok, "\n", 1, 0, &ids);
    if (ids.n) id = ids.p[ids.n - 1];
    free(ids.p);
    return id;
}

// The largest logit's id. newline >= 0: it ends the answer, and the first id is no end.
static int pick_id(const Play *p, const Branch *b, int newline, bool first) {
    const float *x = branch_logits(b);
    int best = branch_argmax(b);
    if (newline < 0 || !first) return best;
    for (int i = 0, seen = 0; i < p->b->vocab; i++) {
        if (i == newline || tok_is_stop(p->b->prompter.tok, i)) continue;
        if (!seen++ || x[i] > x[best]) best = i;
    }
    return best;
}

typedef struct {                // one question under way
    Branch *b;
    Row row;
    IntVec out;                 // ids chosen, without a stop id
    XXH64_state_t hash;         // of the logits they were chosen from
    double started, steps_s;    // when its feed began; time of the steps it took part in
    int turn, max_new, newline, steps, rc;      // newline: the id that ends an answer, or -1
    bool running;               // wants another step with the last id of out
    Err err;                    // of rc
} Request;

static void request_begin(const Play *p, int turn, Request *r) {
    memset(r, 0, sizeof *r);
    r->turn = turn;
    r->max_new = turn_max_new(p->b, p->task, p->s, turn);
    r->newline = line_end(p);
    XXH64_reset(&r->hash, 0);
    row_begin(p, turn, &r->row);
}

static void request_end(Request *r) {
    branch_drop(r->b);
    free(r->out.p);
    memset(r, 0, sizeof *r);
}

// The next id of a greedy answer: at most max_new choices, a stop id is chosen but neither kept nor
// fed, the last id of an answer cut by the limit is not fed.
static void choose_id(const Play *p, Request *r) {
    const float *logits = branch_logits(r->b);
    int id = pick_id(p, r->b, r->newline, r->out.n == 0);
    if (r->out.n == 0) r->row.first_token_s = now_s() - r->started;
    r->running = false;
    if ((r->rc = branch_finite(r->b, &r->err))) return;
    XXH64_update(&r->hash, logits, (size_t)p->b->vocab * sizeof *logits);
    bool stop = tok_is_stop(p->b->prompter.tok, id) || id == r->newline;
    r->row.stop = stop ? "eos" : "length";
    if (stop) return;
    ints_push(&r->out, id);
    r->running = (int)r->out.n < r->max_new;
}

// after the question was fed (r->rc: how that went): what the row says of it, and the first id
static void request_asked(Play *p, Request *r) {
    if (r->rc) return;
    BranchStats st = branch_stats(r->b);
    r->row.q = rows_at(&st);
    r->row.n_prompt = (int)st.pos;
    if (method_evicts(&p->method)) r->row.evictable = (int64_t)st.evictable;
    r->row.pairs_ratio = st.pairs_ratio;
    snprintf(r->row.ids_hash, sizeof r->row.ids_hash, "%016llx",
             (unsigned long long)XXH64_digest(&p->ids));
    r->row.policy_s = p->policy_s;
    r->row.decode_s = 0;
    p->policy_s = 0;
    p->rows_sum += st.rows_mean;
    p->n_rows++;
    choose_id(p, r);
}

// Steps n requests together until each has its answer. own: the ids stay in the history.
static void decode(Play *p, Request *r, int n, bool own) {
    Branch **b = (Branch **)xrealloc(NULL, (size_t)n * sizeof *b);
    Request **who = (Request **)xrealloc(NULL, (size_t)n * sizeof *who);
    int32_t *id = (int32_t *)xrealloc(NULL, (size_t)n * sizeof *id);
    for (;;) {
        Err err = { 0 };
        int k = 0;
        for (int i = 0; i < n; i++) {
            if (!r[i].running) continue;
            who[k] = &r[i];
            b[k] = r[i].b;
            id[k++] = r[i].out.p[r[i].out.n - 1];
        }
        if (!k) break;
        model_phases(p->b->model);
        double t = now_s();
        int rc = interrupted() ? FAIL_CODE(&err, EXIT_INTERRUPTED, "interrupted")
                               : branches_step(b, id, k, &err);
        t = now_s() - t;
        double policy_s = model_phases(p->b->model).evict_s;
        for (int i = 0; i < k; i++) {
            who[i]->rc = rc;
            who[i]->err = err;
            who[i]->running = false;
            if (rc) continue;
            who[i]->steps++;
            who[i]->steps_s += t;
            who[i]->row.decode_s += t / k;
            who[i]->row.policy_s += policy_s / k;
            if (own) XXH64_update(&p->ids, &id[i], sizeof id[i]);
            choose_id(p, who[i]);
        }
    }
    free(b);
    free(who);
    free(id);
}

static void score(const Play *p, int turn, const StrBuf *text, Row *row) {
    const TaskSession *s = &p->s->s;
    const TaskTurn *t = &s->turns[turn];
    row->score = task_score(p->task, s, turn, text->p, text->n, p->b->scorer);
    if (p->task->parts[t->part].rule != SCORE_REPOQA) return;
    RepoMatch m = repoqa_match(s, t->name, s->lang, text->p, text->n, 0);
    row->similarity = m.best;
    row->matched = m.at >= 0 && m.pass;
}

// the row of an answered question; a failed turn writes its row with the error
static int request_row(const Play *p, Request *r, Err *err) {
    StrBuf text = { 0 }, line = { 0 };
    Row *row = &r->row;
    if (r->rc && interrupted()) {
        *err = r->err;
        return -1;
    }
    if (!r->rc) {
        BranchStats st = branch_stats(r->b);
        row->end = rows_at(&st);
        row->shared = st.shared;
        row->policy_bytes = (int64_t)st.policy_bytes;
        if (st.ssm_bytes) row->ssm_bytes = (int64_t)st.ssm_bytes;
        row->peak_bytes = (int64_t)model_mem(p->b->model)->high;
        if (r->steps) row->decode_tok_s = r->steps / r->steps_s;
        row->n_new = (int)r->out.n;
        snprintf(row->logits_hash, sizeof row->logits_hash, "%016llx",
                 (unsigned long long)XXH64_digest(&r->hash));
        unsigned flags = p->b->prompter.harness ? 0 : TOK_SKIP_SPECIAL;
        StrBuf raw = { 0 };
        tok_decode(p->b->prompter.tok, r->out.p, r->out.n, flags, &raw);
        utf8_add(&text, raw.p ? raw.p : "", raw.n);     // what is scored is what the row shows
        free(raw.p);
        str_add(&text, "", 0);
        row->prediction = text.p;
        row->prediction_len = text.n;
        score(p, r->turn, &text, row);
    } else {
        *err = r->err;
        row->error = err->msg;
    }
    row_json(row, &line);
    Err io = { 0 };
    if (write_line(p->b->rows, &line, "results.jsonl", &io)) die_code(EXIT_USER, "%s", io.msg);
    free(text.p);
    free(line.p);
    return r->rc;
}

// the harness's end of a turn that its limit cut off: an end id stands before the next prompt
static int32_t end_id(const Prompter *p) {
    const IntVec *close = &p->chat->ids[CHAT_ASSISTANT_CLOSE];
    if (close->n && tok_is_stop(p->tok, close->p[0])) return close->p[0];
    for (int id = 0; id < tok_vocab(p->tok); id++)
        if (tok_is_stop(p->tok, id)) return id;
    return -1;
}

// the shared context's time stands in one row of an arm: its prefill, the root's, or reading them
static void share_row(const Play *p, Row *row, double root_s) {
    row->shared_prefill_s = p->shared_s + root_s;
    row->root_s = root_s;
    row->shared_policy_s = p->shared_policy_s;
    row->restored = row->restored || p->restored;
}

// what the first feed adds to a root: the context unless it is shared, the question unless the
// context goes alone or the shared rows hold it, which p->ids is told
static void first_ids(Play *p, bool question, IntVec *ids) {
    const Session *s = p->s;
    const IntVec *first = &s->turn[0].first;
    ids->n = 0;
    if (s->joint.n) add_ids(ids, &s->joint);
    else if (!p->shared) add_ids(ids, &s->context);
    if (s->joint.n || !question) return;
    if (p->whole) XXH64_update(&p->ids, first->p, first->n * sizeof *first->p);
    else add_ids(ids, first);
}

// what turn t > 0 of a dialogue feeds; cut: the limit ended the answer out
static void next_ids(const Play *p, int t, bool cut, const IntVec *out, IntVec *ids) {
    const Prompter *prompter = &p->b->prompter;
    ids->n = 0;
    if (p->b->own_history && cut) {
        int32_t id = prompter->harness ? end_id(prompter) : out->p[out->n - 1];
        if (id >= 0) ints_push(ids, id);
    }
    if (!p->b->own_history) add_ids(ids, &p->s->turn[t - 1].answer);
    add_ids(ids, &p->s->turn[t].next);
}

// Golden history: feed, mark, generate, rewind, feed (golden answer + next question). Own history
// takes no mark; the id the limit cut off goes in front of the next feed.
static int play_multi_turn(Play *p, Err *err) {
    const Session *s = p->s;
    Lengths l = lengths_of(p->b, p->task, s, p->arm);
    Branch *b = NULL;
    IntVec ids = { 0 }, out = { 0 };
    int rc = 0;
    double root_s = 0;
    int room = l.later + (p->shared && !p->whole ? l.first - l.context : 0);
    bool cut = false, own = p->b->own_history, alone = p->arm->aware == AWARE_NO;
    for (int t = 0; !rc && t < s->s.n_turns; t++) {
        Request r;
        request_begin(p, t, &r);
        if (t == 0) first_ids(p, !alone, &ids);
        else next_ids(p, t, cut, &out, &ids);
        if (t == 0 && alone) {
            b = first_feed(p, &ids, room, FEED_NO_LOGITS, 0, &root_s, &r.row.restored, &r.err);
            r.rc = b ? 0 : -1;
            ids.n = 0;
            add_ids(&ids, &s->turn[0].first);
        }
        r.started = now_s();
        if (!r.rc && b) r.rc = feed(p, b, &ids, 0, t + 1, &r.row.prefill_s, &r.err);
        else if (!r.rc) {
            b = first_feed(p, &ids, room, 0, 1, &r.row.prefill_s, &r.row.restored, &r.err);
            r.rc = b ? 0 : -1;
        }
        r.b = b;
        if (t == 0 && (p->shared || alone)) share_row(p, &r.row, root_s);
        Mark *mark = r.rc || own ? NULL : branch_mark(b);
        request_asked(p, &r);
        decode(p, &r, 1, own);
        rc = request_row(p, &r, err);
        if (mark) branch_rewind(b, mark);
        cut = !rc && !strcmp(r.row.stop, "length");
        free(out.p);
        out = r.out;
    }
    branch_drop(b);
    free(ids.p);
    free(out.p);
    return rc;
}

typedef struct {                // of multi-request
    Branch *b;
    double seconds;             // of its feed, or of reading it
    int restored;
    XXH64_state_t ids;
} Root;

// The root of multi-request: fed the context, or the context and question 1 and then cut back to
// the context's end, so that the policy has seen a question.
static Branch *request_root(Play *p, Root *r, Err *err) {
    const Session *s = p->s;
    IntVec ids = { 0 };
    Branch *b = NULL;
    if (!p->shared) add_ids(&ids, &s->context);
    if (p->arm->aware == AWARE_NO) {
        b = first_feed(p, &ids, 0, FEED_NO_LOGITS, 0, &r->seconds, &r->restored, err);
        r->ids = p->ids;
    } else {
        XXH64_update(&p->ids, ids.p, ids.n * sizeof *ids.p);
        r->ids = p->ids;
        add_ids(&ids, &s->turn[0].first);
        b = branch_open(p->b->model, p->shared, &p->method,
                        p->shared ? (int)s->turn[0].first.n : 0, err);
        if (b) branch_keep(b, (int64_t)s->context.n);
        int rc = b ? feed(p, b, &ids, FEED_FIRST | FEED_NO_LOGITS, 0, &r->seconds, err) : -1;
        if (!rc) rc = check_first_feed(p, b, err);
        if (!rc) branch_cut(b, (int64_t)s->context.n);
        if (rc) branch_drop(b);
        b = rc ? NULL : b;
    }
    free(ids.p);
    return b;
}

// Requests from..from + n - 1 are all asked, answered together, written in their order and dropped.
// ask: gives request r its branch with the question fed, or r->rc.
static int play_batch(Play *p, int from, int n, void (*ask)(Play *p, Request *r, void *user),
                      void *user, Err *err) {
    Request *r = (Request *)xrealloc(NULL, (size_t)n * sizeof *r);
    int rc = 0, asked = 0;
    while (asked < n && (!asked || !r[asked - 1].rc)) {
        request_begin(p, from + asked, &r[asked]);
        r[asked].row.batch = n;
        ask(p, &r[asked], user);
        request_asked(p, &r[asked++]);
    }
    decode(p, r, asked, false);
    for (int i = 0; i < asked; i++) {
        if (!rc) rc = request_row(p, &r[i], err);
        request_end(&r[i]);
    }
    free(r);
    return rc;
}

static void ask_fork(Play *p, Request *r, void *user) {
    const Root *root = (const Root *)user;
    const IntVec *question = &p->s->turn[r->turn].first;
    r->row.restored = root->restored;
    if (r->turn == 0) share_row(p, &r->row, root->seconds);
    p->ids = root->ids;
    r->b = branch_fork(root->b, (int)question->n + r->max_new, &r->err);
    r->started = now_s();
    r->rc = r->b ? feed(p, r->b, question, 0, r->turn + 1, &r->row.prefill_s, &r->err) : -1;
}

// One root fed the context; per request a fork is fed the question and answers.
static int play_multi_request(Play *p, Err *err) {
    int n = p->s->s.n_turns, batch = batch_of(p->b, n), rc = 0;
    Root root = { NULL, 0, 0, p->ids };
    root.b = request_root(p, &root, err);
    if (!root.b) {                              // the first request's row says why
        Request r;
        request_begin(p, 0, &r);
        r.rc = -1;
        r.err = *err;
        return request_row(p, &r, err);
    }
    for (int t = 0; !rc && t < n; t += batch)
        rc = play_batch(p, t, n - t < batch ? n - t : batch, ask_fork, &root, err);
    branch_drop(root.b);
    return rc;
}

static void ask_root(Play *p, Request *r, void *user) {
    const IntVec *question = &p->s->turn[r->turn].first;
    IntVec ids = { 0 };
    if (r->turn == 0 && p->shared) share_row(p, &r->row, 0);
    p->ids = *(const XXH64_state_t *)user;
    if (!p->shared) add_ids(&ids, &p->s->context);
    add_ids(&ids, question);
    int room = r->max_new + (p->shared ? (int)ids.n : 0);
    r->started = now_s();
    r->b = first_feed(p, &ids, room, 0, r->turn + 1, &r->row.prefill_s, &r->row.restored, &r->err);
    r->rc = r->b ? 0 : -1;
    free(ids.p);
}

// A root per question, fed the context and that question: single, and multi-request with
// --query-aware each. Roots that own all their rows are played one by one.
static int play_roots(Play *p, Err *err) {
    int n = p->s->s.n_turns, batch = p->shared ? batch_of(p->b, n) : 1, rc = 0;
    XXH64_state_t start = p->ids;
    for (int t = 0; !rc && t < n; t += batch)
        rc = play_batch(p, t, n - t < batch ? n - t : batch, ask_root, &start, err);
    return rc;
}

typedef struct { Context *c; double seconds, policy_s; bool restored; } Rows;   // shared by arms

// *mean: mean live rows at the end of the questions; unchanged where there were none
static int play_arm(Bench *b, const Task *task, const Session *s, const Compressed *z, const Arm *a,
                    int ctx, const Rows *shared, double *mean, Err *err) {
    Play p = { .b = b, .task = task, .s = s, .z = z, .arm = a, .shared = shared->c,
               .whole = shared->c && is_whole(a), .shared_s = shared->seconds,
               .shared_policy_s = shared->policy_s,
               .restored = shared->restored, .ctx = ctx };
    if (arm_method(b, a, ctx, &p.method, err)) return -1;
    p.method.session = s->s.number;
    method_params(&p.method, &p.params);
    if (b->norm_groups) {                       // a switch of the model stands beside the method's
        p.params.p[--p.params.n] = 0;
        str_fmt(&p.params, "%s\"mamba.norm_groups\": %d}", p.params.n > 1 ? ", " : "",
                b->norm_groups);
    }
    XXH64_reset(&p.ids, 0);
    if (p.shared) XXH64_update(&p.ids, s->context.p, s->context.n * sizeof *s->context.p);
    int rc = a->mode == MULTI_TURN          ? play_multi_turn(&p, err)
             : a->aware == AWARE_EACH       ? play_roots(&p, err)
                                            : play_multi_request(&p, err);
    if (p.n_rows) *mean = p.rows_sum / p.n_rows;
    free(p.params.p);
    return rc;
}

// the rows that an arm has in common with others: of the bare context, or of the whole first feed.
// needs: of all their methods
static int rows_shared(Bench *b, const Task *task, const Session *s, const Arm *a, int ctx,
                       Rows *rows, Err *err) {
    Play p = { .b = b, .task = task, .s = s };
    IntVec ids = { 0 };
    Needs needs = { 0, 0, GROUP_MEAN };
    Method m;
    for (int i = 0; i < b->n_arms; i++) {
        if (!same_rows(a, &b->arms[i])) continue;
        if (arm_method(b, &b->arms[i], ctx, &m, err)) return -1;
        method_needs(&m, &needs);
    }
    if (arm_method(b, a, ctx, &m, err)) return -1;
    add_ids(&ids, &s->context);
    if (is_whole(a) && a->aware == AWARE_FIRST) add_ids(&ids, &s->turn[0].first);
    int rc = b->prompts ? dump_feed(&p, 0, is_whole(a) ? m.name : "context", &ids, err) : 0;
    progress_of(&p, is_whole(a) ? m.name : "context", ids.n);
    model_phases(b->model);
    if (!rc) rows->c = context_get(b->model, &b->save, is_whole(a) ? &m : NULL, ids.p, (int)ids.n,
                                   &needs, &rows->restored, &rows->seconds, err);
    rows->policy_s = model_phases(b->model).evict_s;
    progress_end(&b->progress);
    free(ids.p);
    return rows->c ? 0 : -1;
}

static void note_failure(Bench *b, const Err *failed) {
    if (!b->failures++)
        snprintf(b->first_failure, sizeof b->first_failure, "%.500s", failed->msg);
}

// ---------------------------------------------------------------------------
// Prompt stage: the context's text loses words before it is tokenized, questions unseen; template
// and questions stay whole. Arms of one prompt stage share what is left.

// the text of a context as the released program hands it over: its end marks taken out
static void text_without_ends(const StrBuf *s, StrBuf *out) {
    static const char end[] = "<|endoftext|>";
    str_add(out, "", 0);
    for (size_t i = 0; i < s->n;) {
        const char *at = (const char *)memmem(s->p + i, s->n - i, end, sizeof end - 1);
        size_t n = at ? (size_t)(at - s->p) - i : s->n - i;
        str_add(out, s->p + i, n);
        i += n + (at ? sizeof end - 1 : 0);
    }
}

// ids of the context that is left, held to what the whole one was held to
static int compressed_ids(const Bench *b, const Task *task, const Session *s, const StrBuf *text,
                          Session *out, Err *err) {
    out->s.context = *text;
    out->whole = 0;
    session_context_ids(&b->prompter, task, out);
    out->s.context = s->s.context;
    if (s->limited && b->prompter.harness) session_cut_harness(out, s->limit, s->request_limit);
    return s->limited && !b->prompter.harness ? session_cut(out, s->limit, err) : 0;
}

static int compress(Bench *b, const Task *task, const Session *s, const Arm *a, Compressed *z,
                    Err *err) {
    LinguaSet set;
    LinguaResult r;
    StrBuf text = { 0 };
    Play p = { .b = b, .task = task, .s = s };
    if (lingua_set(&a->method.prompt, &set, err)) return -1;
    text_without_ends(&s->s.context, &text);
    z->s = *s;
    memset(&z->s.context, 0, sizeof z->s.context);
    memset(&z->s.joint, 0, sizeof z->s.joint);
    progress_of(&p, "compression", s->context.n);
    double t = now_s();
    int rc = lingua_cached(b->encoder, &set, b->compressed, text.p, text.n, &r, err);
    z->seconds = now_s() - t;
    progress_end(&b->progress);
    lingua_set_free(&set);
    if (!rc) {
        z->before = r.tokens_before;
        z->after = r.tokens_after;
        z->read = r.read;
        *(r.read ? &b->n_read : &b->n_compressed) += 1;
        b->compress_s += r.read ? 0 : z->seconds;
        z->gold = (int *)xrealloc(NULL, (size_t)s->s.n_turns * sizeof *z->gold);
        for (int i = 0; i < s->s.n_turns; i++) {
            const TaskTurn *turn = &s->s.turns[i];
            bool there = gold_stands(task, turn, text.p, text.n) == 1;
            z->gold[i] = there ? gold_stands(task, turn, r.text.p, r.text.n) : -1;
        }
        rc = compressed_ids(b, task, s, &r.text, &z->s, err);
        lingua_result_free(&r);
    }
    free(text.p);
    return rc;
}

// What an arm sees instead of the whole session; stage (n_arms): what was made so far, at the
// first arm of each prompt stage. NULL: failed.
static const Compressed *arm_compressed(Bench *b, const Task *task, const Session *s, const Arm *a,
                                        Compressed *stage, Err *err) {
    int k = 0, max = model_config(b->model)->max_ctx;
    while (!method_same_prompt(&b->arms[k].method, &a->method)) k++;
    Compressed *z = &stage[k];
    if (!z->gold && compress(b, task, s, a, z, err)) return NULL;
    Lengths l = lengths_of(b, task, &z->s, a);
    if (l.first + l.later <= max) return z;
    FAIL(err, "session %d of %s still needs %d + %d tokens (first feed; later turns and "
         "answers) after %s, but the model takes %d; choose a smaller --ctx or --rate",
         s->s.number, task->name, l.first, l.later, a->method.name, max);
    return NULL;
}

// arms in order; rows that several of them share live from the first of these to the last
int bench_session(Bench *b, const Task *task, const Session *s, int ctx, Err *err) {
    Mem *mem = model_mem(b->model);
    mem->high = mem->used;
    double *mean = (double *)xrealloc(NULL, (size_t)b->n_arms * sizeof *mean);
    Rows *rows = (Rows *)xrealloc(NULL, (size_t)b->n_arms * sizeof *rows);  // at the first user
    Compressed *stage = (Compressed *)xrealloc(NULL, (size_t)b->n_arms * sizeof *stage);
    int rc = 0;
    memset(rows, 0, (size_t)b->n_arms * sizeof *rows);
    memset(stage, 0, (size_t)b->n_arms * sizeof *stage);
    for (int i = 0; !rc && i < b->n_arms && !interrupted(); i++) {
        SharedBy by = arm_sharers(b, &b->arms[i], s->s.n_turns);
        Err failed = { 0 };
        Arm a = b->arms[i];
        mean[i] = NAN;
        const Compressed *z = NULL;
        if (a.method.prompt.on && !(z = arm_compressed(b, task, s, &a, stage, err))) {
            rc = -1;
            break;
        }
        const Session *seen = z ? &z->s : s;
        if (by.shared && by.first == i && (rc = rows_shared(b, task, seen, &a, ctx, &rows[i], err)))
            break;
        if (a.follows >= 0) a.budget = mean[a.follows] >= 1 ? (int)lround(mean[a.follows]) : 1;
        if (play_arm(b, task, seen, z, &a, ctx, &rows[by.shared ? by.first : i], &mean[i],
                     &failed) && !interrupted())
            note_failure(b, &failed);
        if (by.shared && by.last == i) {
            context_drop(rows[by.first].c);
            rows[by.first].c = NULL;
        }
    }
    for (int i = 0; i < b->n_arms; i++) if (rows[i].c) context_drop(rows[i].c);
    for (int i = 0; i < b->n_arms; i++) {
        free(stage[i].gold);
        free(stage[i].s.context.p);
        free(stage[i].s.joint.p);
    }
    free(stage);
    free(rows);
    free(mean);
    return interrupted() ? FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted") : rc;
}
