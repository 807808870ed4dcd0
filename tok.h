// tok.h - what the files of the tokenizer share. tokenizer.c: interface, BPE; tok_words.c: Unigram
// and WordPiece. Everybody else uses scb.h.
#ifndef TOK_H
#define TOK_H
#include "scb.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

// BPE over bytes, BPE over characters (SentencePiece), Unigram, WordPiece
typedef enum { KIND_BYTES = 1, KIND_CHARS, KIND_UNIGRAM, KIND_WORDPIECE } TokKind;
enum { NORMAL, SPECIAL, ADDED, UNUSED, BYTE };                  // tok.types
enum { NO_RANK = INT32_MAX };

typedef struct { int32_t left, right, rank, id; } Pair;         // left -1: free slot, NO_RANK
typedef struct { Pair *slot; uint64_t mask; size_t n; } PairMap;
typedef struct { int32_t child, next, id; uint8_t byte; } Node; // id -1: no token ends here
typedef struct {                    // first child, next sibling; node 0 is unused
    Node *node;
    int n, cap;
    int32_t first[256];             // node of each first byte, 0 = none
} Trie;

// When a space is put in front of a text, so that its first word is like any other: to every
// stretch between special tokens; there, but not to one that has a space; only to the text's start
typedef enum { PREFIX_NONE, PREFIX_EVERY, PREFIX_MISSING, PREFIX_FIRST } Prefix;

struct Tok {
    TokKind kind;
    int n;                          // V
    uint8_t *bytes, *types;         // token i is bytes[offsets[i] .. offsets[i + 1])
    int32_t *offsets;
    uint8_t *flags;                 // (V) tok.added flags
    Trie raw, norm;                 // added tokens matched before and after the normaliser
    bool add_bos;
    int bos, unk;                   // -1: none
    IntVec bos_ids, eos;
    ChatPieces chat;
    // BPE. map: (left, right) -> rank and token of a merge, (character, -1) -> its token
    PairMap map;
    int32_t byte_id[256];           // token of each single byte, -1: the byte is dropped
    int32_t *word;                  // hash of the strings that are looked up whole, -1 free
    uint64_t word_mask;
    pcre2_code *re;                 // NULL: the whole piece is one pre-token
    bool nfc, digits, ignore_merges;
    bool by_score;                  // characters without a token take part in merges
    bool split_words;               // no token reaches over the start of a word
    bool strip;                     // decoding drops the prefix
    Prefix prefix;
    // Unigram and WordPiece. map: (node, byte) -> id is the child node, 0 the root
    int32_t *ends;                  // (nodes) the token that ends there, -1: none
    int n_nodes;
    double *score, unk_score;       // (V) log probabilities
    uint8_t *charsmap;              // u32 bytes of the trie, trie, replacements; NULL: none
    size_t charsmap_bytes;
    bool words;                     // Unigram: white space separates words and is lost
    int word_max;                   // characters of a word that WordPiece tries
    int32_t inside;                 // node of "##"
};

typedef struct {                    // best way to a byte of a word
    double score;
    int32_t from, id;               // the last piece; from -1: not reached
    int32_t to;                     // end of the piece that begins here, on the best way
} Best;

typedef struct {                    // one tok_encode
    const Tok *t;
    unsigned flags;
    IntVec *out, *spans;            // spans NULL: nobody asked
    pcre2_match_data *match;
    pcre2_match_context *limits;
    // symbols of a long pre-token: a list over positions, rank and result of each symbol's pair
    // with its successor, and a heap of rank << 32 | position
    int32_t *sym, *prev, *next, *rank, *made;
    uint64_t *heap;
    size_t cap, n_heap;
    Best *best;                     // Unigram: (bytes of the word + 1)
    size_t best_cap;
} Enc;

// Normalised text and, for every byte of it, where in the source its character begins and ends
typedef struct { StrBuf s; IntVec from, to; } Norm;
void norm_add(Norm *x, const void *p, size_t n, size_t from, size_t to);
void norm_free(Norm *x);

size_t char_at(const uint8_t *s, size_t n, int32_t *c);     // bytes, 0: no valid character
size_t char_before(const uint8_t *s, size_t n, int32_t *c); // the same of the one that ends at n
bool is_space(int32_t c);                                   // the property White_Space
const uint8_t *token(const Tok *t, int id, size_t *n);
const Pair *map_find(const PairMap *m, int32_t left, int32_t right);    // rank NO_RANK: not there
void map_put(PairMap *m, Pair p);                           // replaces
void emit(Enc *e, int32_t id, size_t from, size_t to);

int  read_scores(Tok *t, ModelFile *f, Err *err);
int  unigram_read(Tok *t, ModelFile *f, Err *err);
void unigram_normalise(const Tok *t, const uint8_t *s, size_t n, size_t at, Norm *out);
void unigram_encode(Enc *e, const Norm *x, size_t a, size_t b);         // bytes a to b of x
int  wordpiece_read(Tok *t, ModelFile *f, Err *err);
void wordpiece_normalise(const uint8_t *s, size_t n, size_t at, Norm *out);
void wordpiece_encode(Enc *e, const Norm *x, size_t a, size_t b);

#endif
