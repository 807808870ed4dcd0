// grammar.h - prose from rules: word lists and sentence patterns in data/words/*.txt, compiled in.
//
// A file of rules holds, line by line:
//   # remark
//   = name        the lines that follow are the alternatives of rule "name"
//   : name        the words that follow, split at blanks, are its alternatives (_ is a blank)
// Within an alternative {name} stands for a variable or else an alternative of that rule, and
// [one|another|] for one of the texts between the bars.
#ifndef GRAMMAR_H
#define GRAMMAR_H
#include "tasks.h"

EXTERN_C_BEGIN

typedef struct { const char *s; int n; } Piece;         // a slice of the rule file
typedef struct { Piece name, *alt; int n_alt, cap; bool words; } Rule;
typedef struct { Rule *rule; int n_rules; } Grammar;    // sorted by name
typedef struct { const char *name, *text; } Var;

// text stays the caller's and must outlive the grammar; a malformed file is an internal error
Grammar grammar_read(const char *text, size_t n);
void grammar_free(Grammar *g);

const Rule *grammar_rule(const Grammar *g, const char *name);
// alternative i of a rule as it stands, with _ as blanks: malloc'd
char *grammar_word(const Grammar *g, const char *rule, int i);
int grammar_count(const Grammar *g, const char *rule);

// appends one expansion of the rule; vars ends with a NULL name. English: see prose_polish.
void grammar_expand(const Grammar *g, const char *rule, const Var *vars, Rng *r, StrBuf *out);

// English spelling of everything from byte `from` on: capitals at the beginnings of sentences, "a"
// before a vowel becomes "an"
void prose_polish(StrBuf *s, size_t from);

// 0 .. 9999 in words: "forty-seven"; Chinese "四十七". buf holds 64 bytes; returns buf.
const char *number_en(int n, char *buf);
const char *number_zh(int n, char *buf);

// a rule file of data/words as a symbol: RULES(novel_en) declares novel_en_rules[] and its end
#define RULES(name) \
    __asm__(".section .rodata\n" \
            ".global " #name "_rules\n" \
            ".global " #name "_rules_end\n" \
            #name "_rules:\n" \
            ".incbin \"data/words/" #name ".txt\"\n" \
            #name "_rules_end:\n" \
            ".byte 0\n" \
            ".previous\n"); \
    extern const char name##_rules[], name##_rules_end[]

EXTERN_C_END
#endif
