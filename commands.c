// commands.c - the commands of scbench that play no session: list, gen, score, report.
#include "tasks/longbench.h"

typedef struct {
    const char *task, *tokenizer, *ctx, *order, *out, *scorer;
    ReportOpts report;
    int sessions, turns;
    int64_t seed;
    bool no_chat, help;
} CommandOpts;

#define AT(field) offsetof(CommandOpts, field)
#define HELP { "--help", "-h", OPT_FLAG, AT(help), NULL, NULL, "this text" }

typedef struct {
    const char *usage;
    const OptSpec *opts;
    int n_opts, min_pos, max_pos;
    int (*run)(const CommandOpts *o, const StrList *pos, Err *err);
} Command;

static int command(const Command *c, int argc, char **argv, Err *err) {
    CommandOpts o;
    StrList pos;
    memset(&o, 0, sizeof o);
    int rc = opts_parse(c->opts, c->n_opts, argc, argv, &o, &pos, err);
    if (!rc && o.help) {
        printf("usage: scbench %s\n\n", c->usage);
        opts_help(stdout, c->opts, c->n_opts);
    } else if (!rc && (pos.n < c->min_pos || pos.n > c->max_pos)) {
        rc = FAIL_CODE(err, EXIT_USAGE, "usage: scbench %s; see --help", c->usage);
    } else if (!rc) rc = c->run(&o, &pos, err);
    free(pos.p);
    return rc;
}

int config_of(const char *shape, const StrList *pos, bool verify, ModelFile *file, Config *c,
              Err *err) {
    if ((pos->n == 1) == (shape != NULL))
        return FAIL_CODE(err, EXIT_USAGE, "give either a model file or --shape NAME");
    if (shape) return config_shape(shape, c, err);
    if (file_open(file, pos->p[0], verify, err)) return -1;
    return config_read(file, c, err);
}

// ---------------------------------------------------------------------------
// list

static void list_tasks(void) {
    int own = 0;
    while (task_at(own)) own++;
    for (int i = 0; i < own + lb_n_sets(); i++) {
        const Task *t = i < own ? task_at(i) : lb_task_at(i - own);
        char limits[24];
        if (t->n_parts == 2) snprintf(limits, sizeof limits, "%d/%d", t->parts[0].max_new,
                                      t->parts[1].max_new);
        else snprintf(limits, sizeof limits, "%d", t->parts[0].max_new);
        printf("%-30s %-28s %-13s %d turns, answers of %7s tokens; %s\n", t->name, t->official,
               t->category, t->turns, limits, t->help);
    }
}

static int list(const CommandOpts *o, const StrList *pos, Err *err) {
    static const char *const kinds[] = { "tasks", "methods", "shapes" };
    int only = pos->n ? opt_choose("scbench list", pos->p[0], kinds, 3, err) : 3;
    (void)o;
    if (only < 0) return -1;
    if (only == 3) puts("tasks");
    if (only == 0 || only == 3) list_tasks();
    if (only == 3) puts("\nmethods");
    if (only == 1 || only == 3) method_list(stdout);
    if (only == 3) puts("\nshapes");
    if (only == 2 || only == 3) config_shapes(stdout);
    return 0;
}

int list_command(int argc, char **argv, Err *err) {
    static const OptSpec opts[] = { HELP };
    static const Command c = { "list [tasks|methods|shapes]", opts, COUNTOF(opts), 0, 1, list };
    return command(&c, argc, argv, err);
}

// ---------------------------------------------------------------------------
// gen: sessions as records

static int gen_records(const CommandOpts *o, const Task *task, int ctx, const Tok *tok,
                       StrBuf *all, Err *err) {
    Prompter prompter;
    ChatPieces plain;
    int turns = o->turns ? o->turns : task->turns, guess = 0, rc = 0;
    Maker maker = { task, NULL, (uint64_t)o->seed, turns, turns, !strcmp(o->order, "paper") };
    if (!ctx && !task->paper_units)
        return FAIL_CODE(err, EXIT_USAGE, "the paper has no length for %s; give --ctx TOKENS",
                         task->name);
    prompter_open(&prompter, tok, o->no_chat, &plain);
    for (int i = 1; i <= o->sessions; i++) {
        Session s;
        rc = ctx ? session_fit(&prompter, &maker, i, ctx, guess, &s, err)
                 : session_make(&prompter, &maker, i, task->paper_units, &s, err);
        if (rc) break;
        if (i == 1) guess = s.s.units;
        record_write(task, &s.s, all);
        str_puts(all, "\n");
        session_free(&s);
    }
    free(plain.ids[CHAT_PREFIX].p);
    return rc;
}

static int gen(const CommandOpts *o, const StrList *pos, Err *err) {
    int64_t ctx = 0;
    const Task *task = task_find(o->task, err);
    ModelFile file;
    StrBuf all = { 0 };
    (void)pos;
    if (!task) return -1;
    if (!o->tokenizer || !o->out)
        return FAIL_CODE(err, EXIT_USAGE,
                         "scbench gen needs --tokenizer FILE.bin and --out FILE.jsonl");
    if (o->sessions < 1 || o->turns < 0)
        return FAIL_CODE(err, EXIT_USAGE, "--sessions wants at least 1, --turns at least 0");
    if (strcmp(o->ctx, "paper") && parse_int("--ctx", o->ctx, 1, INT_MAX / 2, &ctx, err)) return -1;
    if (strcmp(o->order, "paper") && strcmp(o->order, "shuffled"))
        return FAIL_CODE(err, EXIT_USAGE, "--order is 'shuffled' or 'paper', got '%s'", o->order);
    if (access(o->out, F_OK) == 0) return FAIL(err, "%s exists; choose another --out", o->out);
    if (file_open(&file, o->tokenizer, false, err)) return -1;
    Tok *tok = tok_open(&file, err);
    int rc = tok ? gen_records(o, task, (int)ctx, tok, &all, err) : -1;
    if (!rc) rc = write_whole(o->out, all.p, all.n, err);
    if (tok) tok_close(tok);
    file_close(&file);
    free(all.p);
    return rc;
}

int gen_command(int argc, char **argv, Err *err) {
    static const OptSpec opts[] = {
        { "--task", NULL, OPT_STR, AT(task), "retr_kv", "TASK", "one task" },
        { "--tokenizer", NULL, OPT_STR, AT(tokenizer), NULL, "FILE.bin",
          "whose tokens --ctx counts" },
        { "--ctx", NULL, OPT_STR, AT(ctx), "paper", "TOKENS|paper",
          "tokens of template, context and question 1" },
        { "--sessions", NULL, OPT_INT, AT(sessions), "20", "N", "contexts" },
        { "--turns", NULL, OPT_INT, AT(turns), "0", "N", "questions per context; 0: the task's" },
        { "--seed", NULL, OPT_INT64, AT(seed), "1", "S", "of contexts and questions" },
        { "--order", NULL, OPT_STR, AT(order), "shuffled", "shuffled|paper",
          "of the questions: paper is the order in which their answers stand in the text" },
        { "--no-chat", NULL, OPT_FLAG, AT(no_chat), NULL, NULL,
          "leave the chat template out of the count" },
        { "--out", NULL, OPT_STR, AT(out), NULL, "FILE.jsonl",
          "one session per line; must not exist" },
        HELP,
    };
    static const Command c = { "gen --tokenizer FILE.bin --out FILE.jsonl [options]", opts,
                               COUNTOF(opts), 0, 0, gen };
    return command(&c, argc, argv, err);
}

// ---------------------------------------------------------------------------
// score: predictions that another program wrote

static int score(const CommandOpts *o, const StrList *pos, Err *err) {
    static const char *const scorers[] = { "ours", "harness" };
    if (!o->task) return FAIL_CODE(err, EXIT_USAGE, "scbench score needs --task TASK");
    const Task *task = task_find(o->task, err);
    int scorer = opt_choose("--scorer", o->scorer, scorers, 2, err);
    if (!task || scorer < 0) return -1;
    return predictions_score(stdout, task, pos->p[0], (Scorer)scorer, err);
}

int score_command(int argc, char **argv, Err *err) {
    static const OptSpec opts[] = {
        { "--task", NULL, OPT_STR, AT(task), NULL, "TASK", "the task of the file; needed" },
        { "--scorer", NULL, OPT_STR, AT(scorer), "ours", "ours|harness",
          "scores as the paper means them or as the released program computes them" },
        HELP,
    };
    static const Command c = { "score --task TASK PREDICTIONS.jsonl [options]", opts,
                               COUNTOF(opts), 1, 1, score };
    return command(&c, argc, argv, err);
}

// ---------------------------------------------------------------------------
// report: tables of runs (tables.c)

static int report(const CommandOpts *o, const StrList *pos, Err *err) {
    return report_print(stdout, pos->p, pos->n, &o->report, err);
}

int report_command(int argc, char **argv, Err *err) {
    static const OptSpec opts[] = {
        { "--table", NULL, OPT_STR, AT(report.table), NULL, "NAME",
          "turns, tasks, categories, methods, query, reuse, history, depth, longbench, prompt, "
          "cost; default: those that say most" },
        { "--cases", NULL, OPT_INT, AT(report.cases), "0", "N",
          "example turns per method that scores otherwise than full" },
        { "--format", NULL, OPT_STR, AT(report.format), "text", "text|csv|md", "how to print" },
        HELP,
    };
    static const Command c = { "report DIR... [options]", opts, COUNTOF(opts), 1, INT_MAX, report };
    return command(&c, argc, argv, err);
}
