// tasks.h - the contract between the benchmark's turn loop (turns.c) and the tasks.
//
// A task makes sessions: one long context and several questions with golden answers. Its generator
// is a function of (seed, session number, turns, units) alone; nothing here sees a tensor or a
// token. Prompt texts are this program's own. Official records fill the same structures.
#ifndef TASKS_H
#define TASKS_H
#include "../lingua.h"

EXTERN_C_BEGIN

typedef enum {
    SCORER_OURS,                // the paper's meaning
    SCORER_HARNESS              // the harness, bugs included
} Scorer;

// scorers by name; the rule of each stands in score.c
typedef enum {
    SCORE_SUBSTRING,            // the golden text occurs, case and all
    SCORE_NAMES,                // fraction of the listed names that occur, any case, 2 digits
    SCORE_NUMBER,               // first number of the prediction
    SCORE_PASSKEY,              // first run of digits, as text
    SCORE_CHOICE,               // option letter or option text
    SCORE_QA_EN,                // ours: token F1;      harness: substring, any case
    SCORE_QA_ZH,                // ours: character F1;  harness: the same, single label characters
    SCORE_LETTER,               // icl: ours: the parsed letter; harness: any letter, upper-cased
    SCORE_ROUGE_LSUM,           // F1
    SCORE_REPOQA,               // function name of the best BLEU among the needles, at least 0.8
    SCORE_LONGBENCH             // the data set's metric (longbench.h)
} ScoreRule;

typedef struct {                // strings are malloc'd and owned by the session
    char *name, *source;        // a function: its name and full text
    char *lang;                 // "python", "cpp", "java", "php", "rust", "go", "typescript"
} Needle;

typedef struct {
    char *input;                // the question as a record holds it
    char *question;             // the block that is fed: input plus options or cues, no separator
    char *answer;               // golden text fed back as history
    char **label;               // what the scorer compares with, in its order: names; option
                                // text, letter
    int n_labels;
    char *options[4];           // en_mc; NULL otherwise
    char *name;                 // repoqa: name of the function asked for
    int part;                   // index into Task.parts (0 unless a mix task)
    double depth;               // where in the context the answer stands, 0 .. 1; NAN: nowhere
    bool forced;                // harness preset: "This paper" follows the generation header
} TaskTurn;

typedef struct {
    int number, units, n_turns; // session number from 1; units it holds
    StrBuf context;
    TaskTurn *turns;
    char *lang, *repo, *family; // repoqa; icl's task name; NULL otherwise
    int64_t *numbers;           // math_find: the list (records keep numbers); NULL otherwise
    int n_numbers;
    char **classes;             // longbench: what a classification chooses from
    int n_classes;
    Needle *needles;            // repoqa: candidates a prediction is compared with
    int n_needles;
} TaskSession;

typedef struct { const char *name; int max_new; ScoreRule rule; } TaskPart;

typedef struct Task {
    const char *name, *official;    // "retr_kv", "scbench_kv"
    const char *category;           // "retr.string", "retr.semantic", "global", "multi"
    const char *help;
    int turns;                      // default number of turns (mix tasks 8, math_find 6, others 5)
    int paper_units;                // units of --ctx paper; 0: the paper gives none
    const char *unit;               // "pairs", "strings", "lines", "chapters", ...
    TaskPart parts[3];              // one; two for mix tasks; LongBench-E: buckets of length
    int n_parts;
    const char *instruction;        // stands before the context, may be ""
    const char *separator;          // between context and question, belongs to the question
    int min_units;                  // smallest n_units for n_turns turns is min_units * n_turns
    // fills everything of s but number; n_units of the task's unit. Context length must grow with
    // n_units; the questions may depend on n_units only through what is in the context.
    void (*make)(TaskSession *s, uint64_t seed, int n_turns, int n_units);
    const struct LbSet *lb;         // NULL: a task of SharedContextBench
    const char *wording;            // of a question, with {input}; NULL: the task's own
} Task;

// every generator file exports its rows; task_at walks them in the paper's order
extern const Task task_retr_kv, task_retr_kv_compressible, task_retr_ps, task_retr_mh;
extern const Task task_math_find;
extern const Task task_icl;                             // icl.c: four options, as in the paper
extern const Task task_icl_wide;                        // 5 to 7, as released; no row of task_at
extern const Task task_en_qa, task_zh_qa, task_en_mc;   // novel.c
extern const Task task_en_sum, task_mix_sum_niah;       // papers.c
extern const Task task_repoqa, task_mix_repoqa_kv;      // repo.c

const Task *task_at(int i);                             // NULL past the end
const Task *task_find(const char *name, Err *err);      // short or official name; did you mean

// The task with the prompt of FILE.json, {"retr_kv": "... {context} ... {input} ..."} (wording.c), a
// copy that stays for good; NULL with a sentence that names file and task.
Task *task_templates(const Task *task, const char *path, Err *err);
void session_words(const Task *task, TaskSession *s);   // its questions in the task's wording

void session_clear(TaskSession *s);                     // frees everything, s is empty then
// helpers of the generators: n_turns empty turns; a copy of text; one label
void session_turns(TaskSession *s, int n_turns);
char *text_dup(const char *s);
char *text_fmt(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void turn_label(TaskTurn *t, const char *label);        // appends a copy
// the random stream of one session: independent for different (seed, number, purpose)
Rng session_rng(uint64_t seed, int number, uint64_t purpose);
// evenly over the length: slot j of n stands at unit floor((2j + 1) units / 2n)
int even_slot(int j, int n, int units);

// the block that is fed for a question about a novel: input, cues, and the options if there are
char *reader_question(const TaskTurn *t, bool zh);

// repoqa over a local source tree: n_units functions of its main language, n_turns of them asked by
// their own comments (repo_tree.c). -1 if the tree holds too few
int repo_from_tree(TaskSession *s, const char *dir, uint64_t seed, int n_turns, int n_units,
                   Err *err);

// score of one turn in [0, 1]. RepoQA compares with s->needles.
double task_score(const Task *t, const TaskSession *s, int turn, const char *prediction, size_t n,
                  Scorer which);
// the scorers alone, for tests and longbench; text and labels are UTF-8
double score_rule(ScoreRule rule, Scorer which, const char *prediction, size_t n,
                  const char *const *label, int n_labels);
double rouge_lsum(const char *prediction, size_t n, const char *reference, size_t m);
double code_bleu(const char *candidate, size_t n, const char *reference, size_t m);
// the function a RepoQA answer holds: malloc'd; fenced block, first function of that language
char *code_extract(const char *lang, const char *answer, size_t n);
// Does the golden answer stand in a text, white space aside? All of a list of names, else one of
// the labels. 1, 0, or -1 where an answer is no text of its context: options, letters, summaries.
int  gold_stands(const Task *t, const TaskTurn *turn, const char *text, size_t n);
typedef struct { double best; int at; bool pass; } RepoMatch;
RepoMatch repoqa_match(const TaskSession *s, const char *asked, const char *lang,
                       const char *answer, size_t n, double threshold);

// ===========================================================================
// Prompts and turn loops (turns.c), SEMANTICS 2 to 5
typedef enum { MULTI_TURN, MULTI_REQUEST, SINGLE, N_MODES } Mode;
typedef enum { AWARE_NO, AWARE_FIRST, AWARE_EACH } Aware;   // which question is in the first feed
extern const char *const mode_name[N_MODES], *const aware_name[3], *const preset_name[3];

typedef struct {                // how texts become ids
    const Tok *tok;
    const ChatPieces *chat;     // of the model file, or only a BOS
    const ChatPieces *bare;     // only a BOS: for tasks that are never put in a template
    bool harness;               // that program's prompts: one tokenisation per prompt, a BOS more
    bool own_history;           // there, follow-ups hold no earlier answer
} Prompter;

typedef struct {
    IntVec answer;              // the golden answer as history (harness: part of next)
    IntVec first;               // separator, question, end of user turn, generation header
    IntVec next;                // end of answer, user header, question, end of user turn, header
} TurnIds;

typedef struct {
    TaskSession s;              // without its context text once that is ids, unless a method of
                                // the run compresses texts
    IntVec context;             // template prefix, user header, instruction and context, bare
    IntVec joint;               // harness: the first multi-turn prompt, one text; else empty
    TurnIds *turn;              // (s.n_turns)
    int whole;                  // tokens of the first prompt before its middle was cut; 0: not cut
    bool limited;               // its prompts were held to these many tokens
    int limit, request_limit;
} Session;

// questions in the order in which their answers stand in the text, part by part of a mix task
void session_by_depth(TaskSession *s);
// chat pieces of the file, or plain: at most a BOS
void prompter_open(Prompter *p, const Tok *tok, bool no_chat, ChatPieces *plain);
typedef struct {                // where generated sessions come from
    const Task *task;
    const char *repo;           // a source tree for repoqa (--repo); NULL: the task's generator
    uint64_t seed;
    int n_turns, n_play;        // turns made, of which the first n_play stay
    bool by_depth;              // questions in the order of the text instead of shuffled
} Maker;

// A session of n_units; fails only on a source tree. On failure *s is empty.
int  session_make(const Prompter *p, const Maker *m, int number, int n_units, Session *s, Err *err);
// The largest session whose first multi-turn prompt has at most ctx tokens. guess: units of a
// session of that size, or 0. On failure *s is empty.
int  session_fit(const Prompter *p, const Maker *m, int number, int ctx, int guess, Session *s,
                 Err *err);
// ids of a session whose texts are there (from a record); of its context alone
void session_ids(const Prompter *p, const Task *task, Session *s);
void session_context_ids(const Prompter *p, const Task *task, Session *s);
void session_keep_turns(TaskSession *s, int n);         // frees the turns behind the first n
int  session_first(const Session *s);                   // tokens of the first multi-turn prompt
// Keeps the first and the last limit / 2 ids of the first prompt, so that the cut is in the
// context; fails when question 1 alone is longer than the last half.
int  session_cut(Session *s, int limit, Err *err);
// LongBench: keeps the first and the last limit / 2 ids of the prompt, wherever the cut falls; BOS
// counts, what a chat template writes around the prompt does not and stays whole. The limit is
// lowered where all of it would have more than so many ids as most.
void session_cut_prompt(const Prompter *p, const Task *task, Session *s, int limit, int most);
// harness: multi-turn prompt and bare context are cut each to its own limit; below 0: no limit
void session_cut_harness(Session *s, int limit, int request_limit);
void session_free(Session *s);
int  harness_max_new(const Task *task, int part);       // that program's limits
int  harness_max_input(const Task *task, int max_seq, int n_turns, Mode mode);

typedef struct {
    Method method;              // before its sizes are resolved for a session
    Mode mode;
    Aware aware;
    int budget;                 // --budget, or 0
    double keep;                // --keep, or 0
    int follows;                // the arm whose mean rows are this one's budget; -1: none
    char label[64];             // the same in all rows of the arm
} Arm;

typedef struct {                // a run as the turn loops see it
    Model *model;
    Prompter prompter;
    Preset preset;
    Scorer scorer;
    int positions, group;       // -1: the method's default
    int every_turn;             // --compress every-turn
    int max_new;                // 0: the task's limits
    SaveDir save;               // --save-context
    Lingua *encoder;            // --encoder; NULL: no method compresses texts
    char compressed[1024];      // where compressed contexts are kept
    int n_compressed, n_read;   // of those: made, and found there
    double compress_s;          // what making took
    int batch;                  // requests of a session that decode together; 0: all
    int vocab, sessions;        // sessions: for the progress line
    int64_t seed;
    int norm_groups;            // --set mamba.norm_groups; 0: as the file says
    bool own_history, quiet;
    Arm *arms;
    int n_arms;
    FILE *rows, *prompts;       // prompts: NULL unless every feed is to be written
    Progress progress;
    bool nothing_evictable, all_but_dense;      // warned once
    int failures;               // arms; the first one's sentence
    char first_failure[512];
} Bench;

int  part_max_new(const Bench *b, const Task *task, int part);
typedef struct { int first, last; bool shared; } SharedBy;      // arms whose rows are equal
SharedBy arm_sharers(const Bench *b, const Arm *a, int n_turns);
// the arm's method with the sizes of a session of ctx tokens
int  arm_method(const Bench *b, const Arm *a, int ctx, Method *m, Err *err);
// what an arm's prompt stage is expected to leave of a session, for lengths alone: borrows from s
Session session_expected(const Session *s, const Arm *a);
// tokens: context, first feed, all that follows; branches that answer together on the context
typedef struct { int context, first, later, branches; } Lengths;
Lengths lengths_of(const Bench *b, const Task *task, const Session *s, const Arm *a);
// All arms of one session, one row per turn; ctx: the session's nominal length. A failed arm has
// written its error row and the others still run. -1: interrupted, or no context.
int  bench_session(Bench *b, const Task *task, const Session *s, int ctx, Err *err);

// ===========================================================================
// Records (tasks/records.c): sessions in the official format, one JSON object per line
typedef struct {
    const char *path;
    FILE *f;
    char *text;                 // the line read last
    size_t cap;
    int line, sessions, skipped;        // line: from 1; sessions read; malformed lines left out
} Records;

int  records_open(Records *r, const char *path, Err *err);
void records_close(Records *r);
// The next session, numbered from 1: 1, 0 at the end, -1 with a sentence that names file, line and
// field. skip_bad: such lines are told on stderr and left out.
int  records_next(Records *r, const Task *task, bool skip_bad, TaskSession *s, Err *err);
int  record_parse(const Task *task, const char *text, size_t n, TaskSession *s, Err *err);
void record_write(const Task *task, const TaskSession *s, StrBuf *line);    // no newline

// scbench score --task T FILE.jsonl (predictions.c): the released harness's prediction files, one
// record (session, turn) per line. Prints one JSON line per record, then one with the means.
int predictions_score(FILE *out, const Task *task, const char *path, Scorer which, Err *err);

EXTERN_C_END
#endif
