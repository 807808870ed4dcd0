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
// Metrics (longbench_score.c)
typedef enum {
    LB_F1_EN, LB_F1_ZH, LB_ROUGE, LB_ROUGE_ZH, LB_CLASS, LB_COUNT, LB_RETRIEVAL_EN,
    LB_RETRIEVAL_ZH, LB_CODE
} LbMetric;

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
