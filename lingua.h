// lingua.h - LLMLingua-2 (Pan et al., arXiv 2403.12968): an encoder says of every token how likely
// it is worth keeping; the words below a threshold are left out of the prompt.
#ifndef LINGUA_H
#define LINGUA_H
#include "scb.h"

EXTERN_C_BEGIN

enum { LINGUA_SEQUENCE = 512, LINGUA_FORCED = 100 };

// ---------------------------------------------------------------------------
// The encoder (lingua.cu)
typedef struct Lingua Lingua;
Lingua *lingua_open(ModelFile *f, Err *err);    // f stays open while the encoder is
// random weights without a tokenizer, to measure speed with
Lingua *lingua_random(int dim, int hidden_dim, int n_layers, int n_heads, int vocab_size,
                      uint64_t seed, Err *err);
void lingua_close(Lingua *w);
// fails where the file holds no tokenizer that weighs words
int  lingua_weighs(const Lingua *w, Err *err);
uint64_t lingua_hash(const Lingua *w);          // of the file
Mem *lingua_mem(Lingua *w);
typedef struct {                // of the network so far: products, attention, all; and its tokens
    double linear_s, attn_s, total_s, linear_flops, attn_flops;
    int64_t tokens;
} LinguaPhases;
LinguaPhases lingua_phases(const Lingua *w);
// called between batches with the share done; returning true stops the work (interrupted)
void lingua_set_progress(Lingua *w, bool (*fn)(void *user, double share), void *user);
// p[s] (seq[s].n): probability that each token of a sequence of at most 512 is worth keeping. A
// sequence's values depend on it alone, not on its batch.
int lingua_probabilities(Lingua *w, const IntVec *seq, int n_seq, float *const *p, Err *err);

// ---------------------------------------------------------------------------
// The selection (lingua_words.c). What it needs from tokenizers and encoder:
typedef struct {
    void *user;
    bool wordpiece;             // pieces continue a word with "##"; else begin one with U+2581
    int32_t open, close;        // ids around a sequence
    int32_t placeholder;        // id of [NEW0]; [NEWi] is i further
    // ids of a text without placeholders; special tokens spelled in it become their ids
    void (*encode)(void *user, const char *s, size_t n, IntVec *ids);
    void (*piece)(void *user, int32_t id, StrBuf *out);     // appends the text of a token
    // tokens of the tokenizer that weighs words and counts prompts
    int (*weight)(void *user, const char *s, size_t n);
    // p[i] (seq[i].n): probability that a token is worth keeping
    int (*keep)(void *user, const IntVec *seq, int n_seq, float *const *p, Err *err);
} LinguaSource;

typedef struct {                // zero: absent
    double rate;                // share of tokens to keep, (0, 1]
    int target_tokens;          // instead of a rate
    const char *const *force;   // (n_force) texts that are always kept
    int n_force;
    const char *const *chunk_end;       // (n_chunk_end) where a sequence may end; none: "." and \n
    int n_chunk_end;
    int sequence;               // tokens of a sequence with its two specials; 0: 512
    bool reserve_digits;        // words with a digit are kept
    bool drop_consecutive;      // of forced texts that follow each other the first one
    bool first_token;           // a word is worth what its first token is; else their mean
    // several contexts: whole ones are left out first, unless all these are off
    bool context_filter;
    int target_contexts, context_target_tokens;
    double context_rate;        // (0, 1); 0: from the rate
    const int *force_context;   // (n_force_context) numbers of contexts that stay
    int n_force_context;
} LinguaOpts;

typedef struct { char *text; bool kept; } LinguaWord;
typedef struct {
    StrBuf text;                // what is left of all contexts, two line ends between them
    LinguaWord *word;           // (n_words) in order; none is kept of a context that was left out,
                                // none is listed where everything stays
    int n_words;
    int tokens_before, tokens_after;    // of the weighing tokenizer
    double network_s, total_s;
    bool read;                  // an earlier call's, see lingua_cached
} LinguaResult;

// Compresses n contexts; -1 with a sentence when the encoder fails or an option makes no sense.
int  lingua_compress(const LinguaSource *src, const LinguaOpts *o, const char *const *context,
                     const size_t *len, int n, LinguaResult *out, Err *err);
void lingua_result_free(LinguaResult *r);

// the same with an encoder. fixed_specials: the ids around a sequence are those it was trained
// with; else those the package feeds, which for XLM-R are two unknown tokens
int  lingua_run(Lingua *w, const LinguaOpts *o, bool fixed_specials, const char *const *context,
                const size_t *len, int n, LinguaResult *out, Err *err);

// ---------------------------------------------------------------------------
// Runs and the command (compress.c)
typedef struct {
    LinguaOpts o;
    bool fixed_specials;
    char *text[LINGUA_FORCED];  // o.force
} LinguaSet;
// What a prompt stage asks for, over the defaults of its preset: "scbench" (rate 1/3, line ends and
// question marks stay) or "upstream" (rate 0.5, nothing forced). On failure nothing is to be freed.
int  lingua_set(const PromptStage *p, LinguaSet *s, Err *err);
void lingua_set_free(LinguaSet *s);
// Compresses a context, or takes what an earlier call left in dir (NULL: keeps nothing); no words.
int  lingua_cached(Lingua *w, const LinguaSet *set, const char *dir, const char *s, size_t n,
                   LinguaResult *out, Err *err);
int  lingua_command(int argc, char **argv, Err *err);   // scbench compress

// ---------------------------------------------------------------------------
// Parts of the selection that have vectors of their own
// text of tokens or words, as the tokenizer's decoder writes it
void lingua_decode(bool wordpiece, const char *const *token, int n, StrBuf *out);
// NumPy's linear percentile of n > 0 values, value i counted weight[i] times; sorts in place
double lingua_percentile(double *value, int *weight, int n, int q);
int  lingua_quantile(double rate);      // 100 (1 - rate) + 1, as the package computes it
// [from, to) of every sequence, in pairs; end[i]: token i may end one
void lingua_chunks(const bool *end, int n, int sequence, IntVec *out);

EXTERN_C_END
#endif
