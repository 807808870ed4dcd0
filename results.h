// results.h - what reports are made of: the rows of many runs in one order, and means over them.
//
// Everything is a mean of turn scores. For one task, one arm (a method with its sizes and switches)
// and one mode, with x[s][t] the score of turn t of session s:
//
//     multi-turn          mean over turn numbers t of (mean over sessions s of x[s][t])
//     other modes         mean over all x[s][t]
//     task of two parts   each part so, then the mean of the two; a turn of one part is no zero of
//                         the other
//     category            mean of its tasks; AVG: mean of the categories, not of the tasks
//
// as in SharedContextBench (Li et al. 2024, tables 4 and 10 to 12) and its released harness.
// Intervals are 95 % percentile bootstraps over sessions: SAMPLES resamples, each task drawn
// independently of the others, from a seed that depends on nothing but the task's name. Two arms
// that are compared draw the same sessions, those that both finished.
#ifndef RESULTS_H
#define RESULTS_H
#include "scb.h"

EXTERN_C_BEGIN

enum { SAMPLES = 2000, MIN_SESSIONS = 4, BINS = 10 };
enum { MULTI_TURN, MULTI_REQUEST, SINGLE, MODES };
extern const char *const mode_names[MODES];

// categories of the paper; columns: its tables 11 and 12;
// then LongBench's, numbered as CORM (Dai et al. 2024) does in its tables 1 and 2
enum { STRING, SEMANTIC, GLOBAL, MULTI, LB_SINGLE, LB_MULTI, LB_SUMMARY, LB_SHOTS, LB_SYNTHETIC,
       LB_PROGRAM, OTHER, CATEGORIES };
extern const char *const category_names[CATEGORIES];
typedef struct { const char *task, *heading; int category; } Column;

// what tells arms apart
enum { F_MODEL, F_CTX, F_PRESET, F_METHOD, F_SIZES, F_POSITIONS, F_COMPRESS, F_GROUP, F_CHAT,
       F_SCORER, F_HISTORY, F_QUERY, FIELDS };
extern const char *const field_names[FIELDS];

typedef struct {
    char *field[FIELDS];            // "": missing; history, query_aware: at the mode's default
    int64_t budget_lo, budget_hi;   // over its rows; -1: none
    int base;                       // the arm of method full to compare with; -1: none
} ArmRows;

typedef struct {
    char *name;
    const Column *column;           // NULL: not in the paper
    char **part;                    // (n_parts); one "" for a task without parts
    int n_parts, turns, n_sessions; // turns: the highest number seen
    bool similarity;                // rows say how like a function an answer is
} TaskRows;

typedef struct {
    int task, arm, mode, session, turn;     // the order of the array; session from 0 per task
    int part, lang, source, line, turns;
    int64_t at, seed;                       // at: byte offset of its line
    double score, depth, rows, tokens, live, alloc, prefill, tok_s, similarity;
    double before, after, compress; // a compressed context's tokens and seconds, or NAN
    int kept;                       // the answer stands in it: 0, 1; -1: missing
    double context, feeds, steps, policy, shared_policy;    // seconds; 0 where there was none
    bool matched, failed;
} Rec;

typedef struct { size_t from, n; } Cell;    // the rows of one (task, arm, mode)
typedef struct {                // a results.jsonl and what the manifest beside it says
    char *dir, *path, *model;
    char *ctx;                  // where it is no number, else NULL
    struct json_t *set;         // the --set options
} Source;

typedef struct {
    Source *source;
    ArmRows *arm;
    TaskRows *task;             // in the order of the paper's columns, then of appearance
    Rec *rec;                   // (n): turns of whole sessions
    size_t n, cap;
    Cell *cell;                 // (tasks, arms, modes)
    char **lang;
    int n_sources, n_arms, n_tasks, n_langs, reading;
    bool shown[FIELDS];         // fields that tell the arms of this report apart
    StrBuf notes;               // lines for below the tables
} Results;

typedef struct { int arm, mode; } Key;      // arm -1: nothing to compare with

// reads and merges directories and their shards; free in any case
int  results_read(Results *d, const char *const *dirs, int n_dirs, Err *err);
void results_free(Results *d);
Cell *cell_of(const Results *d, int task, Key k);
bool has(const Results *d, int task, Key k);
int  rec_order(const void *x, const void *y);
int  category_of(const Results *d, int task);
const char *query_default(int mode);        // where a mode's own --query-aware stands
// an arm that differs from a in field f alone, has this value there and rows in that mode; -1: none
int  sibling(const Results *d, int a, int mode, int f, const char *value);
Key  base_key(const Results *d, Key k);     // full in the same mode

typedef struct {                // a mean of scores, all of it in [0, 1]
    double at;                  // NAN: nothing to average
    double *boot;               // (SAMPLES) the same mean of every resample; NULL: too few sessions
    int sessions, n;            // n scores
} Stat;
typedef struct { Stat score, diff; } Pair;      // diff: to the arm it is compared with

// which rows count; -1 (threshold: NAN) leaves a choice open. threshold: functions matched with at
// least that similarity instead of scores. kept: questions whose answer compression left out or
// left in, or the share of these instead of scores
enum { ANSWER_OUT, ANSWER_IN, ANSWER_SHARE };
typedef struct { int part, turn, bin, lang, kept; double threshold; } Pick;
#define ALL_ROWS ((Pick){ -1, -1, -1, -1, -1, NAN })
#define NOBODY ((Key){ -1, 0 })

typedef struct { int n, *task; } Tasks;
Tasks tasks_seen(const Results *d, int mode);           // that some arm has; free(x.task)
Tasks tasks_of_both(const Results *d, Key a, Key b);    // that both have
Tasks tasks_in(const Results *d, Tasks list, int category);

// score: of a over all its sessions; diff: a - b over the sessions both have
Pair pair_of(const Results *d, int task, Key a, Key b, Pick pick);
// mean over tasks, only of an arm that has them all: a mean of others compares with nothing
Pair mean_over(const Results *d, Tasks l, Key a, Key b, Pick pick);
// AVG: mean over the categories of the list
Pair average(const Results *d, Tasks l, Key a, Key b, Pick pick);
void pair_free(Pair *p);
void interval(const Stat *s, double *lo, double *hi);   // 95 %; NAN without resamples

typedef struct { double rows, tokens, live, alloc, prefill, tok_s; } Cost;  // means; tokens: fed up
                                // to the question's end; prefill per session
Cost cost_of(const Results *d, Tasks list, Key k);
typedef struct { double context, feeds, steps, policy, shared_policy; int contexts; } Seconds;
// sums over the rows of a mode, of one arm or (arm -1) of all, where a context of several counts
// once
Seconds seconds_of(const Results *d, int arm, int mode);

EXTERN_C_END
#endif
