// longbench.h - LongBench (Bai et al., arXiv 2308.14508): 21 data sets, their metrics.
//
// Scores are in [0, 1] unless a name says percent. SCORER_HARNESS is what the published scripts
// compute; SCORER_OURS leaves out their slips (see longbench_score.c).
#ifndef LONGBENCH_H
#define LONGBENCH_H
#include "score.h"

EXTERN_C_BEGIN

// ---------------------------------------------------------------------------
// Chinese words (segment.c)
typedef struct Segmenter Segmenter;
// Reads the dictionary and the emission table of jieba 0.42.1 from a directory. dir NULL: the
// places where Debian's python3-jieba puts them; NULL without error when there is none there.
Segmenter *segmenter_open(const char *dir, Err *err);
void segmenter_close(Segmenter *g);
// Spans of the words of n bytes of UTF-8; out is the caller's to free, *n_out spans. g NULL: every
// Chinese character, every run of letters and digits, and everything else by itself is a word.
Span *segment(const Segmenter *g, const char *s, size_t n, size_t *n_out);

// ---------------------------------------------------------------------------
// The data sets (longbench.c)
typedef enum {
    LB_F1_EN, LB_F1_ZH, LB_ROUGE, LB_ROUGE_ZH, LB_CLASS, LB_COUNT, LB_RETRIEVAL_EN,
    LB_RETRIEVAL_ZH, LB_CODE
} LbMetric;

typedef struct LbSet {
    const char *key, *id;           // "narrativeqa", "1-1" as the paper's figure numbers them
    const char *lang;               // "en", "zh", "code"
    LbMetric metric;
    bool bare;                      // never in a chat template: the prompt shows how to go on
    bool first_line;                // the answer is its first line
    bool newline_stops;             // and decoding ends there, after at least one id
    const char *before, *after;     // prompt around the context; {input} in after
} LbSet;

int lb_n_sets(void);
const LbSet *lb_set(int i);                 // the order of the paper; NULL past the end
const Task *lb_task(const char *name);      // "longbench/qasper", "longbench/qasper_e"; or NULL
const Task *lb_task_at(int i);              // all of them, the 13 of LongBench-E last
// the question of a record: after with {input} replaced in one pass; malloc'd
char *lb_question(const char *after, const char *input);
// reads and writes { input, context, answers, length, dataset, language, all_classes, _id }
int  lb_record_read(const Task *task, struct json_t *o, TaskSession *s, Err *err);
void lb_record_write(const Task *task, const TaskSession *s, StrBuf *line);
// the score of an answer: the best over the references
double lb_score(const Task *task, const TaskSession *s, int turn, const char *answer, size_t n,
                Scorer which);
// Scores FILE.jsonl of { pred, answers, all_classes, length }, as the published scripts write it:
// one JSON line per record, then the mean, for LongBench-E by length. As they do, the classes are
// those of the last line.
int lb_predictions_score(FILE *out, const Task *task, const char *path, Scorer which, Err *err);
// The dictionary all scores of Chinese use from now on (NULL: none); the caller keeps owning it.
void lb_use_segmenter(const Segmenter *g);
// context, input, answers and classes of a generated record (longbench_make.c)
void lb_make(const LbSet *set, TaskSession *s, uint64_t seed, int n_units);

// ---------------------------------------------------------------------------
// Metrics (longbench_score.c)
// one answer against one reference; classes only for LB_CLASS. *bad: the reference holds no number
double lb_metric(LbMetric m, Scorer which, const Segmenter *g, const char *answer, size_t n,
                 const char *reference, const char *const *classes, int n_classes);
// the text that is scored: the first line where the data set says so
const char *lb_first_line(const char *answer, size_t *n);
// what F1 compares; the caller frees p
StrBuf lb_normalize_en(const char *s, size_t n);
StrBuf lb_normalize_zh(const char *s, size_t n);
// the line of a completion that is compared: the first one that is no comment and no fence
const char *lb_code_line(const char *answer, size_t *n);
// 0 .. 100: difflib's ratio (harness) or 2 LCS / (|a| + |b|) (ours), rounded half to even
int lb_fuzz_ratio(Scorer which, const char *a, size_t n, const char *b, size_t m);

EXTERN_C_END
#endif
