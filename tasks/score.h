// score.h - what the files of the scorers share: text as Python sees it, and the function scanner.
//
// The reference scorers are Python programs, so strings are sequences of code points, white space
// and case are Unicode's, and bytes that are not UTF-8 are U+FFFD.
#ifndef SCORE_H
#define SCORE_H
#include "tasks.h"
#include <utf8proc.h>

EXTERN_C_BEGIN

// One code point of n > 0 bytes; *code is -1 for bytes that are no UTF-8, and the length is that of
// the longest beginning of a valid sequence (what Python replaces by one U+FFFD).
static inline size_t text_next(const char *s, size_t n, int32_t *code) {
    const uint8_t *u = (const uint8_t *)s;
    static const uint8_t low[] = { 0xa0, 0x80, 0x90, 0x80 };    // second byte after E0, ED, F0, F4
    static const uint8_t high[] = { 0xbf, 0x9f, 0xbf, 0x8f };
    size_t len = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    int special = u[0] == 0xe0 ? 0 : u[0] == 0xed ? 1 : u[0] == 0xf0 ? 2 : u[0] == 0xf4 ? 3 : -1;
    *code = len == 1 ? u[0] : -1;
    if (len == 1 || u[0] < 0xc2 || u[0] > 0xf4) return 1;
    int32_t c = u[0] & (0x7f >> len);
    for (size_t i = 1; i < len; i++) {
        bool first = i == 1 && special >= 0;
        uint8_t from = first ? low[special] : 0x80, to = first ? high[special] : 0xbf;
        if (i == n || u[i] < from || u[i] > to) return i;
        c = c << 6 | (u[i] & 0x3f);
    }
    *code = c;
    return len;
}

// str.isspace and \s: bidirectional type WS, B, S or category Zs
static inline bool text_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

// bytes of white space at the beginning of s
static inline size_t text_spaces(const char *s, size_t n) {
    size_t i = 0;
    int32_t c;
    while (i < n) {
        size_t len = text_next(s + i, n - i, &c);
        if (!text_space(c)) break;
        i += len;
    }
    return i;
}

// s without white space at both ends; *n becomes its length
static inline const char *text_strip(const char *s, size_t *n) {
    size_t a = text_spaces(s, *n), b = a;
    int32_t c;
    for (size_t i = a; i < *n;) {
        i += text_next(s + i, *n - i, &c);
        if (!text_space(c)) b = i;
    }
    *n = b - a;
    return s + a;
}

static inline uint64_t text_hash(const char *s, size_t n) {
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = mix64(h ^ (uint8_t)s[i]);
    return h;
}

// text.c: repaired text has no invalid bytes; the caller frees p of a StrBuf
void   text_put(StrBuf *out, int32_t c);                // below 0: U+FFFD
StrBuf text_repaired(const char *s, size_t n);          // invalid bytes become U+FFFD
StrBuf text_lowered(const char *s, size_t n);           // full lower case of repaired text
StrBuf text_uppered(const char *s, size_t n);           // full upper case
bool   text_word(int32_t c);                            // \w
bool   text_punct(int32_t c);                           // ASCII punctuation
bool   text_digit(int32_t c);                           // \d
int    text_digit_value(int32_t c);

// texts as small numbers, equal for equal texts; {0} is empty. The texts must outlive the table.
typedef struct {
    const char **text;
    size_t *len;
    int32_t *slot;          // hash of the texts, -1 free; mask + 1 slots
    size_t mask;
    int n;
} WordIds;
int    word_id(WordIds *w, const char *s, size_t n);
void   words_free(WordIds *w);
// sum over words of min(count in a, count in b), ids below n_words
size_t words_overlap(const IntVec *a, const IntVec *b, int n_words);
double f1_of(size_t same, size_t n, size_t m);          // 2PR / (P + R), P = same / n, R = same / m

// The source text of the first function of a piece of code: bytes at .. at + len of s. False: none.
typedef struct { size_t at, len; } Span;
bool first_function(const char *lang, const char *s, size_t n, Span *out);

EXTERN_C_END
#endif
