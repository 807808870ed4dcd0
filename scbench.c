// scbench.c - SharedContextBench (Li et al. 2024): tasks, prompts, the two turn loops, the run.
//
// One session is one long context and several questions. Multi-turn: the questions are one dialogue
// over a growing history. Multi-request: every question is asked of the bare context. An arm is one
// (method, budget, mode) of a run; all arms of a session start from the same ids.
// Prompt texts are this program's own; nothing here sees a tensor.
#include "scb.h"
#include <jansson.h>
#include <sys/stat.h>
#define XXH_STATIC_LINKING_ONLY     // the state as a value: forks copy it
#include <xxhash.h>

typedef enum { MULTI_TURN, MULTI_REQUEST, N_MODES } Mode;
static const char *const mode_name[N_MODES] = { "multi-turn", "multi-request" };

// ---------------------------------------------------------------------------
// Sessions and tasks

typedef struct {
    char *input, *answer;       // the question without its separator; the golden answer
    double depth;               // where in the context the answer stands, 0 .. 1
    IntVec answer_ids;
    IntVec first;               // separator + question, end of user turn, generation header
    IntVec next;                // end of answer, user header, question, end of user turn, header
} Turn;

typedef struct {
    int number, units, n_turns;
    StrBuf context;
    Turn *turns;
    IntVec ids; // template prefix, user header, instruction and context: the bare context
} Session;

typedef struct Task {
    const char *name, *official, *category, *help;
    int max_new, paper_units;
    const char *instruction;    // stands before the context
    const char *separator;      // between context and question, belongs to the question
    // fills context and turns with n_units of the task's unit; a function of its arguments alone
    void (*make)(Session *s, uint64_t seed, int n_turns, int n_units);
    double (*score)(const char *prediction, size_t n, const char *gold);
} Task;

static void session_free(Session *s) {
    for (int t = 0; t < s->n_turns; t++) {
        Turn *turn = &s->turns[t];
        free(turn->input);
        free(turn->answer);
        free(turn->answer_ids.p);
        free(turn->first.p);
        free(turn->next.p);
    }
    free(s->turns);
    free(s->context.p);
    free(s->ids.p);
    memset(s, 0, sizeof *s);
}

// the gold text occurs in the prediction, case and all
static double score_substring(const char *prediction, size_t n, const char *gold) {
    return memmem(prediction, n, gold, strlen(gold)) ? 1 : 0;
}

// ---------------------------------------------------------------------------
// retr_kv: one JSON object of random identifiers; each turn asks for the value of one key.
// The pairs asked for and the others come from streams that do not know the number of pairs: the
// questions stay the same at any length and a longer context only gains pairs.

enum { UUID_CHARS = 36 };

// a version 4 UUID from two random words
static void uuid_text(uint64_t a, uint64_t b, char out[UUID_CHARS + 1]) {
    a = (a & ~0xf000ull) | 0x4000ull;
    b = (b & 0x3fffffffffffffffull) | 0x8000000000000000ull;
    snprintf(out, UUID_CHARS + 1, "%08llx-%04llx-%04llx-%04llx-%012llx",
             (unsigned long long)(a >> 32), (unsigned long long)(a >> 16 & 0xffff),
             (unsigned long long)(a & 0xffff), (unsigned long long)(b >> 48),
             (unsigned long long)(b & 0xffffffffffffull));
}

typedef struct { char key[UUID_CHARS + 1], value[UUID_CHARS + 1]; } Pair;

static Pair kv_pair(uint64_t stream, uint64_t i) {
    Pair p;
    uint64_t at = stream + 4 * i;
    uuid_text(mix64(at), mix64(at + 1), p.key);
    uuid_text(mix64(at + 2), mix64(at + 3), p.value);
    return p;
}

static void kv_make(Session *s, uint64_t seed, int n_turns, int n_units) {
    uint64_t base = mix64(mix64(seed) ^ (uint64_t)s->number);
    uint64_t asked = mix64(base ^ 1), others = mix64(base ^ 2);
    Rng rng = { mix64(base ^ 3) };
    int *slot_turn = (int *)xrealloc(NULL, (size_t)n_turns * sizeof *slot_turn);
    for (int t = 0; t < n_turns; t++) {         // which turn asks for slot j: a seeded shuffle
        int j = (int)rng_below(&rng, (uint64_t)t + 1);
        slot_turn[t] = slot_turn[j];
        slot_turn[j] = t;
    }
    s->units = n_units;
    s->n_turns = n_turns;
    s->turns = (Turn *)xrealloc(NULL, (size_t)n_turns * sizeof *s->turns);
    memset(s->turns, 0, (size_t)n_turns * sizeof *s->turns);
    s->context.n = 0;
    str_puts(&s->context, "{");
    for (int i = 0, slot = 0, other = 0; i < n_units; i++) {
        // slot j stands at pair floor((2j + 1) n / 2T): evenly over the length
        bool here = slot < n_turns && i == (int)((2 * slot + 1) * (int64_t)n_units / (2 * n_turns));
        Pair p =
            here ? kv_pair(asked, (uint64_t)slot_turn[slot]) : kv_pair(others, (uint64_t)other++);
        str_fmt(&s->context, "%s\"%s\": \"%s\"", i ? ", " : "", p.key, p.value);
        if (!here) continue;
        Turn *turn = &s->turns[slot_turn[slot++]];
        StrBuf q = { 0 };
        str_fmt(&q,
                "Which value does the JSON object hold for the key \"%s\"? Write only that value.\n"
                "\"%s\":",
                p.key, p.key);
        turn->input = q.p;
        turn->answer = strdup(p.value);
        turn->depth = (i + 0.5) / n_units;
    }
    str_puts(&s->context, "}");
    free(slot_turn);
}

static const Task task_table[] = {
    { "retr_kv", "scbench_kv", "retr.string",
      "find the value of a key in a JSON object of random pairs", 80, 2500,
      "Here is a JSON object. Its keys and values are random identifiers; questions about single "
      "keys follow.\n\n",
      "\n\n", kv_make, score_substring },
};

static const Task *task_find(const char *name, Err *err) {
    const char *names[COUNTOF(task_table)];
    for (size_t i = 0; i < COUNTOF(task_table); i++) {
        names[i] = task_table[i].name;
        if (!strcmp(name, task_table[i].name) || !strcmp(name, task_table[i].official))
            return &task_table[i];
    }
    int near = did_you_mean(name, names, (int)COUNTOF(names));
    if (near >= 0)
        FAIL_CODE(err, EXIT_USAGE, "unknown task '%s'; did you mean %s?", name, names[near]);
    else FAIL_CODE(err, EXIT_USAGE, "unknown task '%s'; see scbench list tasks", name);
    return NULL;
}

// ---------------------------------------------------------------------------
// Prompts: template pieces, context, question and answer become ids on their own and are joined

typedef struct {
    const Tok *tok;
    const ChatPieces *chat;     // of the model file, or only a BOS
} Prompter;

enum { LEFT = 1, RIGHT = 2 };

// ids of the text; a template that trims its messages loses white space at the named ends
static void add_text(const Prompter *p, const char *s, size_t n, int ends, IntVec *out) {
    static const char space[] = " \t\r\n\v\f";
    if (p->chat->trim && (ends & LEFT))
        while (n && memchr(space, *s, 6)) s++, n--;
    if (p->chat->trim && (ends & RIGHT))
        while (n && memchr(space, s[n - 1], 6)) n--;
    tok_encode(p->tok, s, n, 0, out);
}
static void add_ids(IntVec *out, const IntVec *ids) { ints_add(out, ids->p, ids->n); }

static void context_ids(const Prompter *p, const Task *task, Session *s) {
    StrBuf text = { 0 };
    str_puts(&text, task->instruction);
    str_add(&text, s->context.p, s->context.n);
    s->ids.n = 0;
    add_ids(&s->ids, &p->chat->prefix);
    add_ids(&s->ids, &p->chat->user_open);
    add_text(p, text.p, text.n, LEFT, &s->ids);
    free(text.p);
}

static void turn_ids(const Prompter *p, const Task *task, Turn *t) {
    const ChatPieces *c = p->chat;
    StrBuf q = { 0 };
    str_fmt(&q, "%s%s", task->separator, t->input);
    t->first.n = t->next.n = t->answer_ids.n = 0;
    add_text(p, q.p, q.n, RIGHT, &t->first);
    add_ids(&t->first, &c->user_close);
    add_ids(&t->first, &c->assistant_open);
    add_ids(&t->next, &c->assistant_close);
    add_ids(&t->next, &c->user_open);
    add_text(p, q.p, q.n, LEFT | RIGHT, &t->next);
    add_ids(&t->next, &c->user_close);
    add_ids(&t->next, &c->assistant_open);
    add_text(p, t->answer, strlen(t->answer), LEFT | RIGHT, &t->answer_ids);
    free(q.p);
}

// chat pieces of the file, or plain: at most a BOS
static void prompter_open(Prompter *p, const Tok *tok, bool no_chat, ChatPieces *plain) {
    memset(plain, 0, sizeof *plain);
    tok_encode(tok, "", 0, TOK_BOS, &plain->prefix);
    p->tok = tok;
    p->chat = tok_chat(tok)->present && !no_chat ? tok_chat(tok) : plain;
}

// tokens of the first multi-turn feed
static int first_tokens(const Session *s) { return (int)(s->ids.n + s->turns[0].first.n); }

static void session_make(const Prompter *p, const Task *task, uint64_t seed, int number,
                         int n_turns, int n_units, Session *s) {
    memset(s, 0, sizeof *s);
    s->number = number;
    task->make(s, seed, n_turns, n_units);
    context_ids(p, task, s);
    for (int t = 0; t < n_turns; t++) turn_ids(p, task, &s->turns[t]);
}

// The largest session whose first feed has at most ctx tokens, found by the secant rule on whole
// tokenisations (three or four of them); guess: units of a session of that size, or 0.
static int session_fit(const Prompter *p, const Task *task, uint64_t seed, int number, int n_turns,
                       int ctx, int guess, Session *s, Err *err) {
    session_make(p, task, seed, number, n_turns, n_turns, s);
    int lo = n_turns, hi = INT_MAX, have = first_tokens(s);
    double per_unit = (double)s->ids.n / lo;
    if (have > ctx)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--ctx %d is too small: %d turns of %s need at least %d tokens", ctx,
                         n_turns, task->name, have);
    while (hi - lo > 1 && ctx - have >= per_unit / 2) {
        int n = lo + (int)((ctx - have) / per_unit);
        if (guess > lo) n = guess;
        if (n <= lo) n = lo + 1;
        if (n >= hi) n = hi - 1;
        guess = 0;
        Session next;
        session_make(p, task, seed, number, n_turns, n, &next);
        int got = first_tokens(&next);
        if (n - lo >= 8) per_unit = (double)(got - have) / (n - lo);
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

// ---------------------------------------------------------------------------
// Options and the run they describe

typedef struct {
    const char *task, *method, *mode, *ctx, *budget, *keep, *query_aware, *history, *positions,
        *preset;
    const char *out, *device, *shape, *tokenizer;
    int sessions, turns, max_new, chunk, threads, n_decode;
    int64_t seed;
    StrList set;
    ReportOpts report;
    bool no_baselines, plan, verify, quiet, dump_prompts, chat, no_chat, resume, json, help;
} Opts;

typedef struct {
    Method method;              // before its sizes are resolved for a session
    Mode mode;
    int budget;                 // --budget, or 0
    double keep;                // --keep, or 0
} Arm;

typedef struct {
    Opts o;
    Preset preset;
    int positions;              // -1: the method's default
    int ctx;                    // 0: each session's own length (--ctx paper)
    bool context_first;         // --query-aware no: multi-turn feeds the context alone
    bool own_history;
    ModelFile file;
    Config config;
    Tok *tok;
    ChatPieces plain;           // no template: at most a BOS
    Prompter prompter;
    const Task *tasks[COUNTOF(task_table)];
    int n_tasks, n_arms;
    Arm *arms;
    Session *sessions;          // (tasks, sessions)
    Model *model;
    FILE *rows, *prompts;
    Progress progress;
    double progress_tokens;
    bool nothing_evictable;     // warned once
    int failures;
    char first_failure[512];
} Run;

#define AT(field) offsetof(Opts, field)
static const OptSpec run_opts[] = {
    { "--task", NULL, OPT_STR, AT(task), "retr_kv", "LIST", "tasks, by comma, or all" },
    { "--method", NULL, OPT_STR, AT(method), "full", "LIST",
      "methods, by comma, or all; see scbench list" },
    { "--mode", NULL, OPT_STR, AT(mode), "multi-turn", "LIST", "multi-turn, multi-request" },
    { "--sessions", NULL, OPT_INT, AT(sessions), "20", "N", "contexts per task" },
    { "--turns", NULL, OPT_INT, AT(turns), "5", "N", "questions per context" },
    { "--ctx", NULL, OPT_STR, AT(ctx), NULL, "TOKENS|paper",
      "tokens of template, context and question 1; default: the paper's length, or what the model "
      "and memory allow" },
    { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "of contexts, questions and random choices" },
    { "--max-new", NULL, OPT_INT, AT(max_new), "0", "N", "tokens per answer; 0: the task's limit" },
    { "--budget", NULL, OPT_STR, AT(budget), NULL, "LIST",
      "rows kept per KV head; one run of a method per value" },
    { "--keep", NULL, OPT_STR, AT(keep), NULL, "LIST", "the same as shares of --ctx" },
    { "--query-aware", NULL, OPT_STR, AT(query_aware), NULL, "no|first",
      "whether question 1 is in the first feed; default first in multi-turn, no in multi-request" },
    { "--history", NULL, OPT_STR, AT(history), "golden", "golden|own",
      "what a follow-up turn sees as earlier answers" },
    { "--set", NULL, OPT_LIST, AT(set), NULL, "METHOD.name=value",
      "one size of a method; may be repeated" },
    { "--positions", NULL, OPT_STR, AT(positions), NULL, "original|cache",
      "rotate a kept key at its own position or at its place in the cache; default: the method's" },
    { "--preset", NULL, OPT_STR, AT(preset), "scbench", "scbench|corm", "whose default sizes" },
    { "--chat", NULL, OPT_FLAG, AT(chat), NULL, NULL,
      "demand the model's chat template (used when there is one)" },
    { "--no-chat", NULL, OPT_FLAG, AT(no_chat), NULL, NULL, "leave the chat template out" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N",
      "tokens per prefill chunk; 0: 512; changes no bit" },
    { "--out", NULL, OPT_STR, AT(out), NULL, "DIR",
      "rows and manifest; default out/MODEL-METHOD-DATE; must not exist" },
    { "--resume", NULL, OPT_FLAG, AT(resume), NULL, NULL, "go on with the run in --out" },
    { "--no-baselines", NULL, OPT_FLAG, AT(no_baselines), NULL, NULL,
      "do not add full and keep-last to a sweep" },
    { "--plan", NULL, OPT_FLAG, AT(plan), NULL, NULL, "print the bytes this run needs and stop" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the model file's checksums (always below 1 GB)" },
    { "--dump-prompts", NULL, OPT_FLAG, AT(dump_prompts), NULL, NULL,
      "write every feed to DIR/prompts.jsonl" },
    { "--device", NULL, OPT_STR, AT(device), "cpu", "cpu|cuda", "where to compute" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores; changes no bit" },
    { "--quiet", NULL, OPT_FLAG, AT(quiet), NULL, NULL, "no progress" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};
static const OptSpec gen_opts[] = {
    { "--task", NULL, OPT_STR, AT(task), "retr_kv", "TASK", "one task" },
    { "--tokenizer", NULL, OPT_STR, AT(tokenizer), NULL, "FILE.bin", "whose tokens --ctx counts" },
    { "--ctx", NULL, OPT_STR, AT(ctx), "paper", "TOKENS|paper",
      "tokens of template, context and question 1" },
    { "--sessions", NULL, OPT_INT, AT(sessions), "20", "N", "contexts" },
    { "--turns", NULL, OPT_INT, AT(turns), "5", "N", "questions per context" },
    { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "of contexts and questions" },
    { "--no-chat", NULL, OPT_FLAG, AT(no_chat), NULL, NULL,
      "leave the chat template out of the count" },
    { "--out", NULL, OPT_STR, AT(out), NULL, "FILE.jsonl", "one session per line; must not exist" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};
static const OptSpec plan_opts[] = {
    { "--shape", NULL, OPT_STR, AT(shape), NULL, "NAME",
      "a known model's shape instead of a file; see scbench list shapes" },
    { "--ctx", NULL, OPT_STR, AT(ctx), NULL, "TOKENS", "tokens of the first feed" },
    { "--method", NULL, OPT_STR, AT(method), "full", "LIST", "methods, by comma, or all" },
    { "--budget", NULL, OPT_STR, AT(budget), NULL, "LIST", "rows kept per KV head" },
    { "--keep", NULL, OPT_STR, AT(keep), NULL, "LIST", "the same as shares of --ctx" },
    { "--set", NULL, OPT_LIST, AT(set), NULL, "METHOD.name=value",
      "one size of a method; may be repeated" },
    { "--positions", NULL, OPT_STR, AT(positions), NULL, "original|cache",
      "default: the method's" },
    { "--preset", NULL, OPT_STR, AT(preset), "scbench", "scbench|corm", "whose default sizes" },
    { "--max-new", NULL, OPT_INT, AT(max_new), "80", "N", "tokens after the first feed" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N", "tokens per prefill chunk; 0: 512" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};
static const OptSpec speed_opts[] = {
    { "--shape", NULL, OPT_STR, AT(shape), NULL, "NAME",
      "random weights of a known model's shape instead of a file" },
    { "--ctx", NULL, OPT_STR, AT(ctx), "2048", "TOKENS", "ids to prefill, where the steps begin" },
    { "--n-decode", NULL, OPT_INT, AT(n_decode), "64", "N", "steps per round" },
    { "--json", NULL, OPT_FLAG, AT(json), NULL, NULL, "one JSON object instead of text" },
    { "--chunk", NULL, OPT_INT, AT(chunk), "0", "N", "tokens per prefill chunk; 0: 512" },
    { "--threads", NULL, OPT_INT, AT(threads), "0", "N", "0: all cores" },
    { "--verify", NULL, OPT_FLAG, AT(verify), NULL, NULL,
      "check the model file's checksums (always below 1 GB)" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};

// the index of value among n names; usage error naming the option otherwise
static int choose(const char *option, const char *value, const char *const *names, int n,
                  Err *err) {
    StrBuf all = { 0 };
    for (int i = 0; i < n; i++) {
        if (!strcmp(value, names[i])) {
            free(all.p);
            return i;
        }
        str_fmt(&all, "%s%s", i ? ", " : "", names[i]);
    }
    FAIL_CODE(err, EXIT_USAGE, "%s wants one of %s, got '%s'", option, all.p, value);
    free(all.p);
    return -1;
}

static int arm_add(Run *r, const char *name, Mode mode, int budget, double keep, Err *err) {
    Arm a = { .mode = mode, .budget = budget, .keep = keep };
    if (method_find(name, &a.method, err)) return -1;
    if (!method_has_budget(&a.method)) a.budget = 0, a.keep = 0;
    for (int i = 0; i < r->n_arms; i++) {
        Arm *b = &r->arms[i];
        if (b->mode == a.mode && b->budget == a.budget && b->keep == a.keep &&
            !strcmp(b->method.name, a.method.name)) return 0;
    }
    r->arms = (Arm *)xrealloc(r->arms, (size_t)(r->n_arms + 1) * sizeof *r->arms);
    r->arms[r->n_arms++] = a;
    return 0;
}

enum { MAX_LIST = 64, NAME = 48 };
typedef struct { char p[MAX_LIST][NAME]; int n; } Names;

static int names_of(const char *option, const char *list, Names *out, Err *err) {
    const char *cursor = list;
    char item[NAME];
    out->n = 0;
    while (list_next(&cursor, item, sizeof item)) {
        if (!*item || out->n == MAX_LIST)
            return FAIL_CODE(err, EXIT_USAGE, "%s wants names separated by commas, got '%s'",
                             option, list);
        for (int i = 0; i < out->n; i++)
            if (!strcmp(out->p[i], item))
                return FAIL_CODE(err, EXIT_USAGE, "%s names '%s' twice", option, item);
        strcpy(out->p[out->n++], item);
    }
    return 0;
}

// methods in run order: a sweep gains full in front and keep-last at the end
static int method_names(Run *r, Names *names, Err *err) {
    const Opts *o = &r->o;
    int evicting = 0, budgets = 0;
    Method m;
    names->n = 0;
    if (!strcmp(o->method, "all")) {
        for (const char *name; (name = method_name_at(names->n)) != NULL;)
            strcpy(names->p[names->n++], name);
    } else if (names_of("--method", o->method, names, err)) return -1;
    for (int i = 0; i < names->n; i++) {
        if (method_find(names->p[i], &m, err)) return -1;
        evicting += method_evicts(&m);
        budgets += method_has_budget(&m);
    }
    if ((o->budget || o->keep) && !budgets)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s acts on no method here: %s keeps no fixed number of rows",
                         o->budget ? "--budget" : "--keep", o->method);
    if (evicting < 2 || o->no_baselines) return 0;
    bool full = false, keep_last = false;
    for (int i = 0; i < names->n; i++) {
        full = full || !strcmp(names->p[i], "full");
        keep_last = keep_last || !strcmp(names->p[i], "keep-last");
    }
    if (!full && names->n < MAX_LIST) {
        memmove(names->p[1], names->p[0], sizeof names->p[0] * (size_t)names->n++);
        strcpy(names->p[0], "full");
    }
    if (!keep_last && names->n < MAX_LIST) strcpy(names->p[names->n++], "keep-last");
    return 0;
}

static int arms_resolve(Run *r, Err *err) {
    const Opts *o = &r->o;
    const char *list = o->budget ? o->budget : o->keep, *option = o->budget ? "--budget" : "--keep";
    Names methods, modes, sizes = { .n = 0 };
    if (o->budget && o->keep)
        return FAIL_CODE(err, EXIT_USAGE, "--budget and --keep exclude each other");
    if (method_names(r, &methods, err) ||
        names_of("--mode", o->mode ? o->mode : mode_name[0], &modes, err))
        return -1;
    if (list && names_of(option, list, &sizes, err)) return -1;
    for (int k = 0; k < modes.n; k++) {
        int mode = choose("--mode", modes.p[k], mode_name, N_MODES, err);
        if (mode < 0) return -1;
        for (int i = 0; i < methods.n; i++) {
            for (int j = 0; j < (sizes.n ? sizes.n : 1); j++) {
                int64_t budget = 0;
                double keep = 0;
                if (o->budget && parse_int(option, sizes.p[j], 32, INT_MAX, &budget, err))
                    return -1;
                if (o->keep && parse_real(option, sizes.p[j], 1e-6, 1, &keep, err)) return -1;
                if (arm_add(r, methods.p[i], (Mode)mode, (int)budget, keep, err)) return -1;
            }
        }
    }
    for (int k = 0; k < o->set.n; k++) {
        const char *text = o->set.p[k], *dot = strchr(text, '.'), *eq = strchr(text, '=');
        if (!dot || !eq || dot > eq)
            return FAIL_CODE(err, EXIT_USAGE, "--set wants METHOD.name=value, got '%s'", text);
        char name[NAME], size[NAME];
        snprintf(name, sizeof name, "%.*s", (int)(dot - text), text);
        snprintf(size, sizeof size, "%.*s", (int)(eq - dot - 1), dot + 1);
        int used = 0;
        for (int i = 0; i < r->n_arms; i++) {
            if (strcmp(r->arms[i].method.name, name)) continue;
            if (method_set(&r->arms[i].method, size, eq + 1, err)) return -1;
            used++;
        }
        if (!used)
            return FAIL_CODE(err, EXIT_USAGE, "--set %s acts on no method of this run", text);
    }
    return 0;
}

// the arm's method with the sizes of a session of that many tokens
static int arm_method(const Run *r, const Arm *a, int ctx, Method *m, Err *err) {
    int budget = a->keep > 0 ? (int)(a->keep * ctx) : a->budget;
    if (a->keep > 0 && budget < 32)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--keep %g of %d tokens are %d rows; at least 32 are needed", a->keep, ctx,
                         budget);
    *m = a->method;
    return method_resolve(m, r->preset, ctx, budget, r->positions, err);
}

static int switches_resolve(Run *r, Err *err) {
    static const char *const presets[] = { "scbench", "corm" }, *const aware[] = { "no", "first" };
    static const char *const histories[] = { "golden", "own" }, *const positions[] = { "original",
                                                                                       "cache" };
    static const char *const devices[] = { "cpu", "cuda" };
    const Opts *o = &r->o;
    int preset = choose("--preset", o->preset, presets, 2, err);
    if (preset < 0) return -1;
    r->preset = preset ? PRESET_CORM : PRESET_SCBENCH;
    r->positions = -1;
    if (o->positions && (r->positions = choose("--positions", o->positions, positions, 2, err)) < 0)
        return -1;
    if (o->device) {
        int device = choose("--device", o->device, devices, 2, err);
        if (device < 0) return -1;
        if (device == 1) return FAIL(err, "this build computes on the CPU only; use --device cpu");
    }
    if (o->chunk < 0 || o->max_new < 0 || o->threads < 0)
        return FAIL_CODE(err, EXIT_USAGE, "--chunk, --max-new and --threads cannot be negative");
    bool turn = false, request = false;
    for (int i = 0; i < r->n_arms; i++) *(r->arms[i].mode == MULTI_TURN ? &turn : &request) = true;
    if (o->history) {
        int history = choose("--history", o->history, histories, 2, err);
        if (history < 0) return -1;
        r->own_history = history == 1;
        if (r->own_history && !turn)
            return FAIL_CODE(err, EXIT_USAGE,
                             "--history own needs --mode multi-turn: requests share no history");
    }
    if (o->query_aware) {
        int k = choose("--query-aware", o->query_aware, aware, 2, err);
        if (k < 0) return -1;
        if (k == 1 && request)
            return FAIL_CODE(err, EXIT_USAGE,
                             "--query-aware first is for --mode multi-turn alone: requests share "
                             "the bare context");
        r->context_first = k == 0;
    }
    return 0;
}

// ---------------------------------------------------------------------------
// Sessions of a run, lengths, memory

static int max_new_of(const Run *r, const Task *task) {
    return r->o.max_new ? r->o.max_new : task->max_new;
}

typedef struct {                // tokens of one session
    int context, first_turn;    // the bare context; context and question 1
    int first[N_MODES];         // the first feed of an arm
    int later[N_MODES]; // all that follows it, at most: questions, earlier answers, the answer
} Lengths;

static void lengths_first(const Run *r, Lengths *l, int context, int question) {
    l->context = context;
    l->first_turn = context + question;
    l->first[MULTI_TURN] = r->context_first ? context : l->first_turn;
    l->first[MULTI_REQUEST] = context;
}

static Lengths lengths_of(const Run *r, const Session *s, int max_new) {
    Lengths l;
    int sum = max_new, longest = 0;
    for (int t = 0; t < s->n_turns; t++) {
        int first = (int)s->turns[t].first.n;
        if (first > longest) longest = first;
        if (t)
            sum += (int)s->turns[t].next.n +
                   (r->own_history ? max_new : (int)s->turns[t - 1].answer_ids.n);
    }
    lengths_first(r, &l, (int)s->ids.n, (int)s->turns[0].first.n);
    l.later[MULTI_TURN] = sum + l.first_turn - l.first[MULTI_TURN];
    l.later[MULTI_REQUEST] = longest + max_new;
    return l;
}

// the most logical tokens a session reaches
static int lengths_end(const Lengths *l) {
    int end[N_MODES];
    for (int k = 0; k < N_MODES; k++) end[k] = l->first[k] + l->later[k];
    return end[MULTI_TURN] > end[MULTI_REQUEST] ? end[MULTI_TURN] : end[MULTI_REQUEST];
}

static int arm_plan(const Run *r, const Arm *a, const Lengths *l, PlanLine *line, Err *err) {
    Method m;
    char budget[16] = "";
    if (arm_method(r, a, r->ctx ? r->ctx : l->first_turn, &m, err)) return -1;
    if (m.size.budget > 0) snprintf(budget, sizeof budget, " %d", m.size.budget);
    snprintf(line->label, sizeof line->label, "%.30s%s %s", m.name, budget,
             mode_name[a->mode]);
    line->plan = plan_run(&r->config, &m, l->context, l->first[a->mode], l->later[a->mode],
                          r->n_arms > 1, -1, r->o.chunk);
    return 0;
}

// plans of all arms into lines (n_arms); *worst is the one that needs most
static int run_plan(const Run *r, const Lengths *l, PlanLine *lines, const PlanLine **worst,
                    Err *err) {
    *worst = lines;
    for (int i = 0; i < r->n_arms; i++) {
        if (arm_plan(r, &r->arms[i], l, &lines[i], err)) return -1;
        if (lines[i].plan.total > (*worst)->plan.total) *worst = &lines[i];
    }
    return 0;
}

// --ctx left out: the paper's length, cut to what the model and the memory allow
static int default_ctx(Run *r, const Task *task, Err *err) {
    const Opts *o = &r->o;
    Session s;
    int max_new = max_new_of(r, task), rc = 0;
    session_make(&r->prompter, task, (uint64_t)o->seed, 1, o->turns, task->paper_units, &s);
    Lengths l = lengths_of(r, &s, max_new);
    int paper = l.first_turn, question = l.first_turn - l.context;
    int model = r->config.max_ctx - (lengths_end(&l) - l.first_turn);
    int most = paper < model ? paper : model, lo = 0, hi = most;
    size_t have = memory_available();
    PlanLine *lines = (PlanLine *)calloc((size_t)r->n_arms, sizeof *lines);
    const PlanLine *worst;
    session_free(&s);
    while (have && !rc && lo < hi) {
        r->ctx = hi == most ? hi : lo + (hi - lo + 1) / 2;
        lengths_first(r, &l, r->ctx > question ? r->ctx - question : 1, question);
        rc = run_plan(r, &l, lines, &worst, err);
        if (!rc && worst->plan.total <= have) lo = r->ctx;
        else hi = r->ctx - 1;
    }
    r->ctx = have ? lo : hi;
    free(lines);
    if (rc) return -1;
    if (r->ctx < 1)
        return FAIL_CODE(err, most < 1 ? EXIT_USER : EXIT_MEMORY,
                         "no context of %s with %d turns fits: %s takes %d "
                         "tokens in all, %zu MB of memory are available",
                         task->name, o->turns, r->file.path, r->config.max_ctx, have >> 20);
    if (!o->quiet)
        fprintf(stderr,
                "ctx %d tokens (the paper's %d pairs are %d, the model allows %d, memory %s)\n",
                r->ctx, task->paper_units, paper, model, r->ctx < most ? "less" : "as many");
    return 0;
}

static int sessions_make(Run *r, Err *err) {
    const Opts *o = &r->o;
    int64_t ctx = 0;
    if (o->sessions < 1 || o->turns < 1 || o->sessions > 100000 || o->turns > 1000)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--sessions and --turns want at least 1 and at most 100000 and 1000");
    if (o->ctx && strcmp(o->ctx, "paper")) {
        if (parse_int("--ctx", o->ctx, 1, INT_MAX / 2, &ctx, err)) return -1;
        r->ctx = (int)ctx;
    } else if (!o->ctx && default_ctx(r, r->tasks[0], err)) return -1;
    r->sessions = (Session *)calloc((size_t)r->n_tasks * (size_t)o->sessions, sizeof *r->sessions);
    for (int k = 0; k < r->n_tasks; k++) {
        const Task *task = r->tasks[k];
        int guess = 0, max_new = max_new_of(r, task);
        for (int i = 0; i < o->sessions; i++) {
            Session *s = &r->sessions[k * o->sessions + i];
            if (!r->ctx) {
                session_make(&r->prompter, task, (uint64_t)o->seed, i + 1, o->turns,
                             task->paper_units, s);
            } else if (session_fit(&r->prompter, task, (uint64_t)o->seed, i + 1, o->turns, r->ctx,
                                   guess, s, err)) {
                return -1;
            }
            guess = s->units;
            Lengths l = lengths_of(r, s, max_new);
            if (lengths_end(&l) > r->config.max_ctx)
                return FAIL(err,
                            "session %d of %s needs %d + %d tokens (first feed; later turns and "
                            "answers) but "
                            "%s takes %d; choose a smaller --ctx or --turns",
                            i + 1, task->name, l.first_turn, lengths_end(&l) - l.first_turn,
                            r->file.path, r->config.max_ctx);
            free(s->context.p);
            memset(&s->context, 0, sizeof s->context);
        }
    }
    return 0;
}

static const Session *longest_session(const Run *r, const Task **task) {
    const Session *best = &r->sessions[0];
    *task = r->tasks[0];
    for (int i = 1; i < r->n_tasks * r->o.sessions; i++) {
        if (first_tokens(&r->sessions[i]) <= first_tokens(best)) continue;
        best = &r->sessions[i];
        *task = r->tasks[i / r->o.sessions];
    }
    return best;
}

static int plan_check(Run *r, Err *err) {
    const Task *task;
    const Session *s = longest_session(r, &task);
    Lengths l = lengths_of(r, s, max_new_of(r, task));
    PlanLine *lines = (PlanLine *)calloc((size_t)r->n_arms, sizeof *lines);
    const PlanLine *worst;
    size_t have = memory_available();
    int rc = run_plan(r, &l, lines, &worst, err);
    const Plan *p = &worst->plan;
    if (!rc && r->o.plan) plan_print(stdout, &r->config, lines, r->n_arms, l.first_turn);
    if (!rc && have && p->total > have)
        rc = FAIL_CODE(err, EXIT_MEMORY,
                       "%s does not fit: weights %zu + KV %zu + scratch %zu + policy %zu = %zu MB, "
                       "%zu MB are available; try a smaller --ctx or --budget",
                       worst->label, p->weights >> 20, p->kv >> 20, p->scratch >> 20,
                       p->policy >> 20, p->total >> 20, have >> 20);
    free(lines);
    return rc;
}

// ---------------------------------------------------------------------------
// Playing one arm of one session

typedef struct {
    Run *run;
    const Task *task;
    const Session *s;
    Mode mode;
    Method method;              // sizes resolved
    StrBuf params;
    Context *shared;            // the bare context when the run has several arms, else NULL
    double shared_s;            // its prefill
    int ctx, max_new;
    XXH64_state_t ids;          // all ids fed to the branch that answers
} Play;

static bool on_progress(void *user, double share) {
    Run *r = (Run *)user;
    progress_update(&r->progress, share * r->progress.total);
    return interrupted();
}

static int write_line(FILE *f, StrBuf *line, const char *what, Err *err) {
    str_puts(line, "\n");
    if (fwrite(line->p, 1, line->n, f) == line->n && fflush(f) == 0) return 0;
    return FAIL(err, "%s cannot be written: %s; free some space and go on with --resume", what,
                strerror(errno));
}

static int dump_feed(const Play *p, int turn, const char *method, const IntVec *ids, Err *err) {
    StrBuf line = { 0 }, text = { 0 };
    tok_decode(p->run->tok, ids->p, ids->n, 0, &text);
    str_fmt(&line,
            "{\"task\": \"%s\", \"session\": %d, \"turn\": %d, \"mode\": \"%s\", \"method\": "
            "\"%s\", \"text\": ",
            p->task->name, p->s->number, turn, mode_name[p->mode], method);
    json_text(&line, text.p ? text.p : "", text.n);
    str_puts(&line, ", \"ids\": [");
    for (size_t i = 0; i < ids->n; i++) str_fmt(&line, "%s%d", i ? ", " : "", ids->p[i]);
    str_puts(&line, "]}");
    int rc = write_line(p->run->prompts, &line, "prompts.jsonl", err);
    free(line.p);
    free(text.p);
    return rc;
}

static void progress_of(const Play *p, const char *what, size_t tokens) {
    char label[64];
    Run *r = p->run;
    snprintf(label, sizeof label, "session %d/%d %s", p->s->number, r->o.sessions, what);
    progress_begin(&r->progress, label, (double)tokens, r->o.quiet);
}

// one feed; *seconds is what it took
static int feed(Play *p, Branch *b, const IntVec *ids, unsigned flags, int turn, double *seconds,
                Err *err) {
    if (p->run->prompts && dump_feed(p, turn, p->method.name, ids, err)) return -1;
    XXH64_update(&p->ids, ids->p, ids->n * sizeof *ids->p);
    progress_of(p, p->method.name, ids->n);
    double t = now_s();
    int rc = branch_feed(b, ids->p, (int)ids->n, flags, err);
    *seconds = now_s() - t;
    progress_end(&p->run->progress);
    return rc;
}

static RowsAt rows_at(const BranchStats *s) {
    RowsAt a = { s->rows_min, s->rows_max, s->rows_mean, (int64_t)s->kv_live_bytes,
                 (int64_t)s->kv_alloc_bytes };
    return a;
}

static void row_begin(const Play *p, int turn, Row *row) {
    static const char *const presets[] = { "scbench", "corm", "harness" };
    const Run *r = p->run;
    row_clear(row);
    row->session = p->s->number;
    row->turn = turn + 1;
    row->task = p->task->name;
    row->depth = p->s->turns[turn].depth;
    row->mode = mode_name[p->mode];
    row->preset = presets[r->preset];
    row->method = p->method.name;
    row->params = p->params.p;
    row->scaled = p->method.size.scaled;
    if (p->mode == MULTI_TURN) row->history = r->own_history ? "own" : "golden";
    if (method_evicts(&p->method) && !method_at_steps(&p->method)) row->compress = "once";
    row->query_aware = p->mode == MULTI_TURN && !r->context_first ? "first" : "no";
    row->positions = p->method.size.positions == POSITIONS_CACHE ? "cache" : "original";
    row->seed = r->o.seed;
    row->ctx = p->ctx;
    row->chat = r->prompter.chat->present;
    row->gold = p->s->turns[turn].answer;
}

// A method that should have dropped rows in the first feed and did not is an error; one that had
// nothing to drop is worth one sentence per run.
static int check_first_feed(Play *p, const BranchStats *st, Err *err) {
    Run *r = p->run;
    if (!method_evicts(&p->method)) return 0;
    if (method_has_budget(&p->method) && st->pos > p->method.size.budget && st->rows_max >= st->pos)
        return FAIL(err, "internal error: %s with a budget of %d rows kept all %lld",
                    p->method.name, p->method.size.budget, (long long)st->pos);
    if (st->evictable == 0 && !r->nothing_evictable) {
        fprintf(stderr,
                "warning: %s found nothing to evict in session %d (%lld tokens): its rows say "
                "evictable 0\n",
                p->method.name, p->s->number, (long long)st->pos);
        r->nothing_evictable = true;
    }
    return 0;
}

static int check_logits(const float *x, int n, Err *err) {
    for (int i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return FAIL(
                err,
                "the logit of token id %d is not a number: the weights are damaged or overflow; "
                "run with --verify",
                i);
    return 0;
}

// Greedy decoding after a feed: at most max_new choices, a stop id is chosen but neither kept nor
// fed, the last id of an answer cut by the limit is not fed. own: the ids stay in the history.
static int generate(Play *p, Branch *b, double feed_started, bool own, Row *row, IntVec *out,
                    Err *err) {
    const Run *r = p->run;
    int vocab = r->config.vocab_size;
    XXH64_state_t hash;
    double steps_s = 0;
    XXH64_reset(&hash, 0);
    for (row->stop = "length";;) {
        const float *logits = branch_logits(b);
        int id = branch_argmax(b);
        if (out->n == 0) row->first_token_s = now_s() - feed_started;
        if (check_logits(logits, vocab, err)) return -1;
        XXH64_update(&hash, logits, (size_t)vocab * sizeof *logits);
        if (tok_is_stop(r->tok, id)) {
            row->stop = "eos";
            break;
        }
        ints_push(out, id);
        if ((int)out->n == p->max_new) break;
        if (interrupted()) return FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
        double t = now_s();
        if (branch_step(b, id, err)) return -1;
        steps_s += now_s() - t;
        if (own) XXH64_update(&p->ids, &id, sizeof id);
    }
    size_t steps = out->n - (strcmp(row->stop, "length") == 0);
    if (steps) row->decode_tok_s = (double)steps / steps_s;
    row->n_new = (int)out->n;
    snprintf(row->logits_hash, sizeof row->logits_hash, "%016llx",
             (unsigned long long)XXH64_digest(&hash));
    return 0;
}

// from the fed question to the written row; a failed turn writes its row with the error
static int answer(Play *p, Branch *b, int turn, int fed, double feed_started, bool own, Row *row,
                  IntVec *out, Err *err) {
    Run *r = p->run;
    StrBuf text = { 0 }, line = { 0 };
    int rc = fed;
    out->n = 0;
    if (!rc) {
        BranchStats st = branch_stats(b);
        row->q = rows_at(&st);
        row->n_prompt = (int)st.pos;
        if (method_evicts(&p->method)) row->evictable = (int64_t)st.evictable;
        snprintf(row->ids_hash, sizeof row->ids_hash, "%016llx",
                 (unsigned long long)XXH64_digest(&p->ids));
        rc = generate(p, b, feed_started, own, row, out, err);
    }
    if (!rc) {
        BranchStats st = branch_stats(b);
        row->end = rows_at(&st);
        row->shared = st.shared;
        row->policy_bytes = (int64_t)st.policy_bytes;
        row->peak_bytes = (int64_t)model_mem(r->model)->high;
        tok_decode(r->tok, out->p, out->n, TOK_SKIP_SPECIAL, &text);
        str_add(&text, "", 0);
        row->prediction = text.p;
        row->prediction_len = text.n;
        row->score = p->task->score(text.p, text.n, p->s->turns[turn].answer);
    } else if (interrupted()) {
        return -1;
    } else {
        row->error = err->msg;
    }
    row_json(row, &line);
    Err io = { 0 };
    if (write_line(r->rows, &line, "results.jsonl", &io)) die_code(EXIT_USER, "%s", io.msg);
    free(text.p);
    free(line.p);
    return rc;
}

// Golden history: feed, mark, generate, rewind, feed (golden answer + next question). Own history
// takes no mark; the id the limit cut off goes in front of the next feed.
static int play_multi_turn(Play *p, Err *err) {
    const Run *r = p->run;
    const Session *s = p->s;
    Lengths l = lengths_of(r, s, p->max_new);
    int tail = l.later[MULTI_TURN] + (p->shared ? l.first[MULTI_TURN] - l.context : 0);
    Branch *b = branch_open(r->model, p->shared, &p->method, tail, err);
    if (!b) return -1;
    IntVec ids = { 0 }, out = { 0 };
    int rc = 0;
    double root_s = 0;
    bool cut = false;
    for (int t = 0; !rc && t < s->n_turns; t++) {
        Row row;
        unsigned flags = t ? 0 : FEED_FIRST;
        row_begin(p, t, &row);
        ids.n = 0;
        if (t == 0 && !p->shared) add_ids(&ids, &s->ids);
        if (t == 0 && r->context_first) {
            rc = feed(p, b, &ids, FEED_FIRST | FEED_NO_LOGITS, 0, &root_s, err);
            if (!rc) {
                BranchStats st = branch_stats(b);
                rc = check_first_feed(p, &st, err);
            }
            flags = 0;
            ids.n = 0;
        }
        if (t && r->own_history && cut) ints_push(&ids, out.p[out.n - 1]);
        if (t && !r->own_history) add_ids(&ids, &s->turns[t - 1].answer_ids);
        add_ids(&ids, t ? &s->turns[t].next : &s->turns[0].first);
        double started = now_s();
        if (!rc) rc = feed(p, b, &ids, flags, t + 1, &row.prefill_s, err);
        if (!rc && flags) {
            BranchStats st = branch_stats(b);
            rc = check_first_feed(p, &st, err);
        }
        if (t == 0 && (p->shared || r->context_first)) row.shared_prefill_s = p->shared_s + root_s;
        Mark *mark = rc || r->own_history ? NULL : branch_mark(b);
        rc = answer(p, b, t, rc, started, r->own_history, &row, &out, err);
        if (mark) branch_rewind(b, mark);
        cut = !rc && !strcmp(row.stop, "length");
    }
    branch_drop(b);
    free(ids.p);
    free(out.p);
    return rc;
}

// One root fed the context; per request a fork is fed the question, answers and is dropped.
static int play_multi_request(Play *p, Err *err) {
    const Run *r = p->run;
    const Session *s = p->s;
    IntVec context = { 0 }, out = { 0 };
    double root_s = 0;
    Branch *root = branch_open(r->model, p->shared, &p->method, 0, err);
    if (!root) return -1;
    if (!p->shared) add_ids(&context, &s->ids);
    int rc = feed(p, root, &context, FEED_FIRST | FEED_NO_LOGITS, 0, &root_s, err);
    if (!rc) {
        BranchStats st = branch_stats(root);
        rc = check_first_feed(p, &st, err);
    }
    XXH64_state_t root_ids = p->ids;
    for (int t = 0; t < s->n_turns; t++) {
        Row row;
        row_begin(p, t, &row);
        if (t == 0) row.shared_prefill_s = p->shared_s + root_s;
        p->ids = root_ids;
        Branch *fork = rc ? NULL : branch_fork(root, (int)s->turns[t].first.n + p->max_new, err);
        if (!fork) rc = -1;
        double started = now_s();
        if (!rc) rc = feed(p, fork, &s->turns[t].first, 0, t + 1, &row.prefill_s, err);
        rc = answer(p, fork, t, rc, started, false, &row, &out, err);
        if (fork) branch_drop(fork);
        if (rc) break;
    }
    branch_drop(root);
    free(context.p);
    free(out.p);
    return rc;
}

static int play_arm(Run *r, const Task *task, const Session *s, const Arm *a, Context *shared,
                    double shared_s, Err *err) {
    Play p = {
        .run = r, .task = task, .s = s, .mode = a->mode, .shared = shared, .shared_s = shared_s
    };
    p.ctx = r->ctx ? r->ctx : first_tokens(s);
    p.max_new = max_new_of(r, task);
    if (arm_method(r, a, p.ctx, &p.method, err)) return -1;
    method_params(&p.method, &p.params);
    XXH64_reset(&p.ids, 0);
    if (shared) XXH64_update(&p.ids, s->ids.p, s->ids.n * sizeof *s->ids.p);
    int rc = (a->mode == MULTI_TURN ? play_multi_turn : play_multi_request)(&p, err);
    free(p.params.p);
    return rc;
}

// All arms of one session. A failed arm has written its error row; the others still run.
static int play_session(Run *r, const Task *task, const Session *s, Err *err) {
    Mem *mem = model_mem(r->model);
    Context *shared = NULL;
    double shared_s = 0;
    mem->high = mem->used;
    if (r->n_arms > 1) {
        int window = 0;
        for (int i = 0; i < r->n_arms; i++) {
            Method m;
            if (arm_method(r, &r->arms[i], r->ctx ? r->ctx : first_tokens(s), &m, err)) return -1;
            if (method_window(&m) > window) window = method_window(&m);
        }
        Play p = { .run = r, .task = task, .s = s };
        if (r->prompts && dump_feed(&p, 0, "context", &s->ids, err)) return -1;
        progress_of(&p, "context", s->ids.n);
        double t = now_s();
        shared = context_open(r->model, s->ids.p, (int)s->ids.n, window, err);
        shared_s = now_s() - t;
        progress_end(&r->progress);
        if (!shared) return -1;
    }
    for (int i = 0; i < r->n_arms && !interrupted(); i++) {
        Err failed = { 0 };
        if (!play_arm(r, task, s, &r->arms[i], shared, shared_s, &failed) || interrupted())
            continue;
        if (!r->failures++)
            snprintf(r->first_failure, sizeof r->first_failure, "%.500s", failed.msg);
    }
    if (shared) context_drop(shared);
    return interrupted() ? FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted") : 0;
}

// ---------------------------------------------------------------------------
// The run: directory, manifest, sessions, table

static void stamp(char out[24], const char *format) {
    time_t t = time(NULL);
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(out, 24, format, &tm);
}

static void base_name(const char *path, char *out, size_t n) {
    const char *slash = strrchr(path, '/');
    snprintf(out, n, "%s", slash ? slash + 1 : path);
    char *dot = strrchr(out, '.');
    if (dot && dot != out) *dot = 0;
}

// what a resumed run must have in common with the first one
static json_t *manifest_options(const Run *r) {
    const Opts *o = &r->o;
    json_t *tasks = json_array(), *arms = json_array(), *set = json_array();
    for (int i = 0; i < r->n_tasks; i++) {
        json_array_append_new(tasks, json_pack("{s:s, s:i}", "task", r->tasks[i]->name, "max_new",
                                               max_new_of(r, r->tasks[i])));
    }
    for (int i = 0; i < r->n_arms; i++) {
        const Arm *a = &r->arms[i];
        json_array_append_new(arms,
                              json_pack("{s:s, s:s, s:o, s:o}", "method", a->method.name, "mode",
                                        mode_name[a->mode], "budget",
                                        a->budget ? json_integer(a->budget) : json_null(), "keep",
                                        a->keep > 0 ? json_real(a->keep) : json_null()));
    }
    for (int i = 0; i < o->set.n; i++) json_array_append_new(set, json_string(o->set.p[i]));
    return json_pack("{s:o, s:o, s:i, s:i, s:o, s:I, s:s, s:s, s:s, s:s, s:b, s:o}", "tasks", tasks,
                     "arms", arms, "sessions", o->sessions, "turns", o->turns, "ctx",
                     r->ctx ? json_integer(r->ctx) : json_string("paper"), "seed",
                     (json_int_t)o->seed, "query_aware", r->context_first ? "no" : "default",
                     "history", r->own_history ? "own" : "golden", "preset",
                     r->preset == PRESET_CORM ? "corm" : "scbench", "positions",
                     r->positions < 0 ? "default"
                     : r->positions   ? "cache"
                                      : "original",
                     "chat", (int)r->prompter.chat->present, "set", set);
}

// the sizes every arm resolves to in the first session
static json_t *manifest_methods(const Run *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->n_arms; i++) {
        Method m;
        Err err = { 0 };
        StrBuf params = { 0 };
        if (arm_method(r, &r->arms[i], r->ctx ? r->ctx : first_tokens(&r->sessions[0]), &m, &err))
            continue;
        method_params(&m, &params);
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:b}", "method", m.name, "mode",
                                              mode_name[r->arms[i].mode], "params",
                                              json_loads(params.p, 0, NULL), "scaled",
                                              (int)m.size.scaled));
        free(params.p);
    }
    return list;
}

static char *manifest_text(const Run *r) {
    static const char *const dtypes[] = { "f32", "bf16", "q8", "u8", "i32" };
    const Config *c = &r->config;
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)r->file.head->hash);
    json_t *m = json_pack("{s:s, s:o, s:o}", "program", "scbench", "options", manifest_options(r),
                          "methods", manifest_methods(r));
    json_object_set_new(m, "model", json_pack("{s:s, s:s, s:I, s:s, s:i, s:i, s:i, s:i, s:i, s:i}",
        "path", r->file.path, "hash", hash, "bytes", (json_int_t)r->file.size,
        "dtype", dtypes[c->dtype], "layers", c->n_layers, "dim", c->dim, "heads", c->n_heads,
        "kv_heads", c->n_kv_heads, "vocab", c->vocab_size, "max_ctx", c->max_ctx));
    json_object_set_new(m, "tokenizer", json_pack("{s:i, s:b, s:i}", "vocab", tok_vocab(r->tok),
        "chat", (int)tok_chat(r->tok)->present, "bos", tok_bos(r->tok)));
    json_object_set_new(m, "machine", json_pack("{s:s, s:i, s:i, s:s}", "isa", cpu_isa(),
        "threads", cpu_threads(), "chunk", r->o.chunk, "compiler", __VERSION__));
#ifdef GIT_REVISION
    json_object_set_new(m, "revision", json_string(GIT_REVISION));
#endif
    char *text = json_dumps(m, JSON_COMPACT);
    json_decref(m);
    return text;
}

static FILE *open_in(const char *dir, const char *name, Err *err) {
    StrBuf path = { 0 };
    str_fmt(&path, "%s/%s", dir, name);
    FILE *f = fopen(path.p, "ab");
    if (!f) FAIL(err, "%s: cannot be written: %s", path.p, strerror(errno));
    free(path.p);
    return f;
}

// all that can be refused before the weights are read
static int run_prepare(Run *r, const char *model, Err *err) {
    if (arms_resolve(r, err) || switches_resolve(r, err)) return -1;
    if (r->o.chat && r->o.no_chat)
        return FAIL_CODE(err, EXIT_USAGE, "--chat and --no-chat exclude each other");
    Names names;
    if (!strcmp(r->o.task, "all")) {
        for (size_t i = 0; i < COUNTOF(task_table); i++) r->tasks[r->n_tasks++] = &task_table[i];
    } else {
        if (names_of("--task", r->o.task, &names, err)) return -1;
        for (int i = 0; i < names.n && r->n_tasks < (int)COUNTOF(task_table); i++)
            if (!(r->tasks[r->n_tasks++] = task_find(names.p[i], err))) return -1;
    }
    if (cpu_init(r->o.threads, err) || file_open(&r->file, model, r->o.verify, err)) return -1;
    if (config_read(&r->file, &r->config, err) || !(r->tok = tok_open(&r->file, err))) return -1;
    if (r->o.chat && !tok_chat(r->tok)->present)
        return FAIL(err, "%s has no chat template; leave --chat out", model);
    prompter_open(&r->prompter, r->tok, r->o.no_chat, &r->plain);
    return sessions_make(r, err) || plan_check(r, err) ? -1 : 0;
}

static int run_sessions(Run *r, const bool *done, Err *err) {
    int total = r->n_tasks * r->o.sessions;
    double started = now_s();
    for (int i = 0; i < total; i++) {
        if (done[i]) continue;
        double t = now_s();
        if (interrupted()) return FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted");
        if (play_session(r, r->tasks[i / r->o.sessions], &r->sessions[i], err)) return -1;
        if (!r->o.quiet)
            fprintf(stderr, "session %d/%d of %s: %.1f s, %.0f s in all\n", r->sessions[i].number,
                    r->o.sessions, r->tasks[i / r->o.sessions]->name, now_s() - t,
                    now_s() - started);
    }
    return 0;
}

static int run_in_dir(Run *r, const char *dir, Err *err) {
    const char *tasks[COUNTOF(task_table)];
    int total = r->n_tasks * r->o.sessions;
    bool *done = (bool *)calloc((size_t)total, sizeof *done);
    int *rows = (int *)calloc((size_t)total, sizeof *rows);
    char *manifest = manifest_text(r);
    for (int i = 0; i < r->n_tasks; i++) tasks[i] = r->tasks[i]->name;
    for (int i = 0; i < total; i++) rows[i] = r->n_arms * r->sessions[i].n_turns;
    int rc = report_begin(dir, manifest, r->o.resume, err);
    if (!rc && r->o.resume)
        rc = report_resume(dir, tasks, r->n_tasks, r->o.sessions, rows, done, err);
    if (!rc && !(r->rows = open_in(dir, "results.jsonl", err))) rc = -1;
    if (!rc && r->o.dump_prompts && !(r->prompts = open_in(dir, "prompts.jsonl", err))) rc = -1;
    if (!rc) {
        model_set_progress(r->model, on_progress, r);
        rc = run_sessions(r, done, err);
        if (rc && err->code == EXIT_INTERRUPTED)
            FAIL_CODE(err, EXIT_INTERRUPTED, "interrupted; finished sessions are in %s, go on with "
                      "the same options and --out %s --resume", dir, dir);
    }
    if (!rc) rc = report_end(dir, err);
    if (r->rows) fclose(r->rows);
    if (r->prompts) fclose(r->prompts);
    if (!rc) {
        const char *dirs[] = { dir };
        static const ReportOpts plain;
        rc = report_print(stdout, dirs, 1, &plain, err);
    }
    if (!rc) printf("rows: %s/results.jsonl\n", dir);
    if (!rc && r->failures)
        rc = FAIL(err, "%d arm%s failed, the first with: %s", r->failures,
                  r->failures == 1 ? "" : "s", r->first_failure);
    free(manifest);
    free(done);
    free(rows);
    return rc;
}

static void run_free(Run *r) {
    for (int i = 0; r->sessions && i < r->n_tasks * r->o.sessions; i++)
        session_free(&r->sessions[i]);
    free(r->sessions);
    free(r->arms);
    free(r->o.set.p);
    free(r->plain.prefix.p);
    if (r->model) model_close(r->model);
    if (r->tok) tok_close(r->tok);
    if (r->file.p) file_close(&r->file);
}

static int cmd_run(Run *r, const char *model, Err *err) {
    StrBuf dir = { 0 };
    char name[64], date[24];
    int rc = run_prepare(r, model, err);
    if (rc || r->o.plan) return rc;
    base_name(model, name, sizeof name);
    stamp(date, "%Y%m%d-%H%M%S");
    if (r->o.out) str_puts(&dir, r->o.out);
    else str_fmt(&dir, "out/%s-%.64s-%s", name, r->o.method, date);
    for (char *c = dir.p; !r->o.out && *c; c++) *c = *c == ',' ? '+' : *c;
    if (r->o.resume && !r->o.out) rc = FAIL_CODE(err, EXIT_USAGE, "--resume needs --out DIR");
    else if (!r->o.resume && access(dir.p, F_OK) == 0)
        rc =
            FAIL(err, "%s exists; choose another --out, or go on with that run by --resume", dir.p);
    ModelOpts opts = { r->o.chunk };
    if (!rc && !(r->model = model_open(&r->file, &opts, err))) rc = -1;
    if (!rc) rc = file_all_used(&r->file, err);
    if (!rc) {
        interrupt_install();
        rc = run_in_dir(r, dir.p, err);
    }
    free(dir.p);
    return rc;
}

// ---------------------------------------------------------------------------
// list, gen, plan, speed, report

static int cmd_list(const StrList *pos, Err *err) {
    static const char *const kinds[] = { "tasks", "methods", "shapes" };
    int only = pos->n ? choose("scbench list", pos->p[0], kinds, 3, err) : 3;
    if (only < 0) return -1;
    if (only == 0 || only == 3) {
        if (only == 3) puts("tasks");
        for (size_t i = 0; i < COUNTOF(task_table); i++)
            printf("%-10s %-12s %-12s answers of %3d tokens; %s\n", task_table[i].name,
                   task_table[i].official, task_table[i].category, task_table[i].max_new,
                   task_table[i].help);
    }
    if (only == 3) puts("\nmethods");
    if (only == 1 || only == 3) method_list(stdout);
    if (only == 3) puts("\nshapes");
    if (only == 2 || only == 3) config_shapes(stdout);
    return 0;
}

static void gen_line(const Session *s, StrBuf *line) {
    line->n = 0;
    str_fmt(line, "{\"id\": %d, \"context\": ", s->number - 1);
    json_text(line, s->context.p, s->context.n);
    str_puts(line, ", \"multi_turns\": [");
    for (int t = 0; t < s->n_turns; t++) {
        str_puts(line, t ? ", {\"input\": " : "{\"input\": ");
        json_text(line, s->turns[t].input, strlen(s->turns[t].input));
        str_puts(line, ", \"answer\": ");
        json_text(line, s->turns[t].answer, strlen(s->turns[t].answer));
        str_puts(line, "}");
    }
    str_puts(line, "]}");
}

static int cmd_gen(Run *r, Err *err) {
    const Opts *o = &r->o;
    int64_t ctx = 0;
    const Task *task = task_find(o->task, err);
    if (!task) return -1;
    if (!o->tokenizer || !o->out)
        return FAIL_CODE(err, EXIT_USAGE,
                         "scbench gen needs --tokenizer FILE.bin and --out FILE.jsonl");
    if (o->sessions < 1 || o->turns < 1)
        return FAIL_CODE(err, EXIT_USAGE, "--sessions and --turns want at least 1");
    if (strcmp(o->ctx, "paper") && parse_int("--ctx", o->ctx, 1, INT_MAX / 2, &ctx, err)) return -1;
    if (access(o->out, F_OK) == 0) return FAIL(err, "%s exists; choose another --out", o->out);
    if (file_open(&r->file, o->tokenizer, false, err) || !(r->tok = tok_open(&r->file, err)))
        return -1;
    prompter_open(&r->prompter, r->tok, o->no_chat, &r->plain);
    StrBuf line = { 0 }, all = { 0 };
    int guess = 0, rc = 0;
    for (int i = 0; !rc && i < o->sessions; i++) {
        Session s;
        if (ctx)
            rc = session_fit(&r->prompter, task, (uint64_t)o->seed, i + 1, o->turns, (int)ctx,
                             guess, &s, err);
        else
            session_make(&r->prompter, task, (uint64_t)o->seed, i + 1, o->turns, task->paper_units,
                         &s);
        guess = s.units;
        gen_line(&s, &line);
        str_fmt(&all, "%s\n", line.p);
        session_free(&s);
    }
    if (!rc) rc = write_whole(o->out, all.p, all.n, err);
    free(line.p);
    free(all.p);
    return rc;
}

// the Config of --shape or of the model file
static int config_of(Run *r, const StrList *pos, Err *err) {
    if ((pos->n == 1) == (r->o.shape != NULL))
        return FAIL_CODE(err, EXIT_USAGE, "give either a model file or --shape NAME");
    if (r->o.shape) return config_shape(r->o.shape, &r->config, err);
    if (file_open(&r->file, pos->p[0], r->o.verify, err)) return -1;
    return config_read(&r->file, &r->config, err);
}

static int cmd_plan(Run *r, const StrList *pos, Err *err) {
    int64_t ctx;
    if (!r->o.ctx) return FAIL_CODE(err, EXIT_USAGE, "scbench plan needs --ctx TOKENS");
    if (parse_int("--ctx", r->o.ctx, 1, INT_MAX / 2, &ctx, err)) return -1;
    r->ctx = (int)ctx;
    if (arms_resolve(r, err) || switches_resolve(r, err)) return -1;
    if (cpu_init(r->o.threads, err) || config_of(r, pos, err)) return -1;
    PlanLine *lines = (PlanLine *)calloc((size_t)r->n_arms, sizeof *lines);
    int rc = 0;
    for (int i = 0; !rc && i < r->n_arms; i++) {
        Method m;
        rc = arm_method(r, &r->arms[i], r->ctx, &m, err);
        if (rc) break;
        snprintf(lines[i].label, sizeof lines[i].label, m.size.budget ? "%s %d" : "%s", m.name,
                 m.size.budget);
        lines[i].plan =
            plan_run(&r->config, &m, r->ctx, r->ctx, r->o.max_new, false, -1, r->o.chunk);
    }
    if (!rc) plan_print(stdout, &r->config, lines, r->n_arms, r->ctx);
    if (!rc) plan_seconds(stdout, &r->config, r->ctx);
    free(lines);
    return rc;
}

static int cmd_speed(Run *r, const StrList *pos, Err *err) {
    int64_t ctx;
    Method full;
    char name[64];
    if (parse_int("--ctx", r->o.ctx, 1, INT_MAX / 2, &ctx, err)) return -1;
    if (r->o.n_decode < 1 || r->o.chunk < 0 || r->o.threads < 0)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--n-decode wants at least 1, --chunk and --threads at least 0");
    if (cpu_init(r->o.threads, err) || config_of(r, pos, err)) return -1;
    if (ctx + r->o.n_decode > r->config.max_ctx)
        return FAIL(err, "--ctx %lld and %d steps are more than the model's %d tokens",
                    (long long)ctx, r->o.n_decode, r->config.max_ctx);
    if (method_find("full", &full, err) ||
        method_resolve(&full, PRESET_SCBENCH, (int)ctx, 0, -1, err))
        return -1;
    Plan p = plan_run(&r->config, &full, (int)ctx, (int)ctx, r->o.n_decode, false, -1, r->o.chunk);
    size_t have = memory_available();
    if (have && p.total > have)
        return FAIL_CODE(err, EXIT_MEMORY,
                         "needs %zu MB, %zu MB are available; try a smaller --ctx", p.total >> 20,
                         have >> 20);
    ModelOpts opts = { r->o.chunk };
    r->model =
        r->o.shape ? model_random(&r->config, &opts, 1, err) : model_open(&r->file, &opts, err);
    if (!r->model) return -1;
    base_name(r->o.shape ? r->o.shape : pos->p[0], name, sizeof name);
    if (r->o.shape) snprintf(name, sizeof name, "%s (random weights)", r->o.shape);
    return speed_run(stdout, r->model, name, (int)ctx, r->o.n_decode, r->o.json, err);
}

static const OptSpec report_opts[] = {
    { "--table", NULL, OPT_STR, AT(report.table), NULL, "NAME",
      "turns, tasks, categories, methods, query, reuse, history, depth; default: those that say "
      "most" },
    { "--cases", NULL, OPT_INT, AT(report.cases), "0", "N",
      "example turns per method that scores otherwise than full" },
    { "--format", NULL, OPT_STR, AT(report.format), "text", "text|csv|md", "how to print" },
    { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" },
};

static const OptSpec help_opts[] = { { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL,
                                       "this text" } };

static const struct Command {
    const char *name, *usage;
    const OptSpec *opts;
    int n_opts, min_pos, max_pos;
} commands[] = {
    { NULL, "MODEL.bin [options]", run_opts, COUNTOF(run_opts), 1, 1 },
    { "list", "[tasks|methods|shapes]", help_opts, COUNTOF(help_opts), 0, 1 },
    { "gen", "--tokenizer FILE.bin --out FILE.jsonl [options]", gen_opts, COUNTOF(gen_opts), 0, 0 },
    { "plan", "MODEL.bin | --shape NAME, --ctx TOKENS [options]", plan_opts, COUNTOF(plan_opts), 0,
      1 },
    { "speed", "MODEL.bin | --shape NAME [options]", speed_opts, COUNTOF(speed_opts), 0, 1 },
    { "report", "DIR... [options]", report_opts, COUNTOF(report_opts), 1, INT_MAX },
};

static void print_help(const struct Command *c) {
    if (c->name) printf("usage: scbench %s %s\n\n", c->name, c->usage);
    else {
        puts("scbench: how much does a long-context method lose when the KV cache is reused?\n");
        for (size_t i = 0; i < COUNTOF(commands); i++)
            printf("%s scbench %s%s%s\n",
                   i ? "      " : "usage:", commands[i].name ? commands[i].name : "",
                   commands[i].name ? " " : "", commands[i].usage);
        puts("");
    }
    opts_help(stdout, c->opts, c->n_opts);
}

static int dispatch(const struct Command *c, Run *r, const StrList *pos, Err *err) {
    if (pos->n < c->min_pos || pos->n > c->max_pos)
        return FAIL_CODE(err, EXIT_USAGE, "usage: scbench %s%s%s; see --help",
                         c->name ? c->name : "", c->name ? " " : "", c->usage);
    if (!c->name) return cmd_run(r, pos->p[0], err);
    if (!strcmp(c->name, "list")) return cmd_list(pos, err);
    if (!strcmp(c->name, "gen")) return cmd_gen(r, err);
    if (!strcmp(c->name, "plan")) return cmd_plan(r, pos, err);
    if (!strcmp(c->name, "speed")) return cmd_speed(r, pos, err);
    return report_print(stdout, pos->p, pos->n, &r->o.report, err);
}

int main(int argc, char **argv) {
    const struct Command *c = &commands[0];
    Run run;
    StrList pos;
    Err err = { "", 0 };
    memset(&run, 0, sizeof run);
    for (size_t i = 1; argc > 1 && i < COUNTOF(commands); i++)
        if (!strcmp(argv[1], commands[i].name)) c = &commands[i];
    int skip = c->name != NULL;
    int rc = opts_parse(c->opts, c->n_opts, argc - skip, argv + skip, &run.o, &pos, &err);
    if (!rc && (run.o.help || argc == 1)) print_help(c);
    else if (!rc) rc = dispatch(c, &run, &pos, &err);
    if (fflush(stdout) && !rc) rc = FAIL(&err, "the output cannot be written: %s", strerror(errno));
    run_free(&run);
    free(pos.p);
    if (rc) fprintf(stderr, "scbench: %s\n", err.msg);
    return rc ? err.code ? err.code : EXIT_USER : 0;
}
