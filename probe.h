// probe.h - what attention does in a model: the observations of CORM (Dai et al., arXiv 2404.15949,
// figures 1 to 4) and of SharedContextBench (Li et al. 2024, figure 5) on any model and text.
#ifndef PROBE_H
#define PROBE_H
#include "scb.h"

EXTERN_C_BEGIN

int probe_command(int argc, char **argv, Err *err);     // scbench probe

// The rows of one query head against the keys of one layer; k is (n, hd) in the cache's elements.
typedef struct {
    const AttnShape *shape;
    const float *q;             // (n, hd), row stride ldq
    size_t ldq;
    const void *k;
    int n;
} ProbeHead;
// a_t (t + 1): attention of query t, softmax of q_t . k_j / sqrt(hd) over j <= t
void probe_row(const ProbeHead *h, int t, float *a);
// share of the keys j <= t with a_tj < 1 / (t + 1), the mean over queries n-1, n-1-step, ... (CORM,
// eq. 2)
double probe_minor(const ProbeHead *h, int step, float *row);
// cosine of two query rows as attention meets them; content: as if both stood at one position,
// which takes out what the rotation alone does
double probe_cosine(const ProbeHead *h, int a, int b);
double probe_cosine_content(const ProbeHead *h, int a, int b);

EXTERN_C_END
#endif
