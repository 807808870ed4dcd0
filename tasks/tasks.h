// tasks.h - the contract between the benchmark's turn loop (scbench.c) and the tasks.
//
// A task makes sessions: one long context and several questions with golden answers. Its generator
// is a function of (seed, session number, turns, units) alone; nothing here sees a tensor or a token.
// Prompt texts are this program's own. Official records fill the same structures.
#ifndef TASKS_H
#define TASKS_H
#include "../scb.h"

EXTERN_C_BEGIN

typedef enum { SCORER_OURS, SCORER_HARNESS } Scorer;    // the paper's meaning | the harness, bugs included

// scorers by name; the rule of each stands in score.c
typedef enum {
    SCORE_SUBSTRING,            // the golden text occurs, case and all
    SCORE_NAMES,                // fraction of the listed names that occur (case-insensitive), 2 digits
    SCORE_NUMBER,               // first number of the prediction
    SCORE_PASSKEY,              // first run of digits, as text
    SCORE_CHOICE,               // option letter or option text
    SCORE_QA_EN,                // ours: token F1;      harness: case-insensitive substring
    SCORE_QA_ZH,                // ours: character F1;  harness: the same over single label characters
    SCORE_LETTER,               // icl: ours: the parsed letter; harness: letter anywhere, upper-cased
    SCORE_ROUGE_LSUM,           // F1
    SCORE_REPOQA                // function name of the best BLEU among the needles, at least 0.8
} ScoreRule;

typedef struct {                // strings are malloc'd and owned by the session
    char *name, *source;        // a function: its name and full text
    char *lang;                 // "python", "cpp", "java", "php", "rust", "go", "typescript"
} Needle;

typedef struct {
    char *input;                // the question as a record holds it
    char *question;             // the block that is fed: input plus options or cues, no separator
    char *answer;               // golden text fed back as history
    char **label;               // what the scorer compares with, in its order (names; option text, letter)
    int n_labels;
    char *options[4];           // en_mc; NULL otherwise
    char *name;                 // repoqa: name of the function asked for
    int part;                   // index into Task.parts (0 unless a mix task)
    double depth;               // where in the context the answer stands, 0 .. 1; NAN: nowhere
    bool forced;                // harness preset: "This paper" follows the generation header
} TaskTurn;

typedef struct {
    int number, units, n_turns; // session number from 0; units it holds
    StrBuf context;
    TaskTurn *turns;
    char *lang, *repo, *family; // repoqa; icl's task name; NULL otherwise
    int64_t *numbers;           // math_find: the list (official records keep numbers), NULL otherwise
    int n_numbers;
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
    TaskPart parts[2];              // one, or two for mix tasks
    int n_parts;
    const char *instruction;        // stands before the context, may be ""
    const char *separator;          // between context and question, belongs to the question
    int min_units;                  // smallest n_units for n_turns turns is min_units * n_turns
    // fills everything of s but number; n_units of the task's unit. Context length must grow with
    // n_units; the questions may depend on n_units only through what is in the context.
    void (*make)(TaskSession *s, uint64_t seed, int n_turns, int n_units);
} Task;

// every generator file exports its rows; task_at walks them in the paper's order
extern const Task task_retr_kv, task_retr_kv_compressible, task_retr_ps, task_retr_mh, task_math_find;
extern const Task task_icl;                             // icl.c: four options, as in the paper
extern const Task task_icl_wide;                        // 5 to 7, as in the released data; no row of task_at
extern const Task task_en_qa, task_zh_qa, task_en_mc;   // novel.c
extern const Task task_en_sum, task_mix_sum_niah;       // papers.c
extern const Task task_repoqa, task_mix_repoqa_kv;      // repo.c

const Task *task_at(int i);                             // NULL past the end
const Task *task_find(const char *name, Err *err);      // short or official name; did you mean

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
typedef struct { double best; int at; bool pass; } RepoMatch;
RepoMatch repoqa_match(const TaskSession *s, const char *asked, const char *lang, const char *answer,
                       size_t n, double threshold);

EXTERN_C_END
#endif
