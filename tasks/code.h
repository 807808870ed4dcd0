// code.h - small algorithms in one notation, and their renderings in seven languages.
//
// data/code/*.txt holds entries: two function names, typed parameters, a description in four parts
// and a body. An entry is instantiated (constants drawn, modifiers added), parsed to a tree, varied
// (loop form, order, temporaries) and printed. Everything here is a function of its Rng.
#ifndef CODE_H
#define CODE_H
#include "tasks.h"

EXTERN_C_BEGIN

// a file compiled in; the path is relative to the repository root
#define EMBED(name, file) \
    __asm__(".section .rodata\n.balign 16\n.global " #name "_begin\n" #name "_begin:\n" \
            ".incbin \"" file "\"\n.global " #name "_end\n" #name "_end:\n.byte 0\n.previous\n"); \
    extern const char name##_begin[], name##_end[]

typedef enum {
    LANG_PYTHON, LANG_CPP, LANG_JAVA, LANG_PHP, LANG_RUST, LANG_GO, LANG_TS, N_LANGS
} CodeLang;
typedef enum {
    T_NONE, T_INT, T_BOOL, T_CHAR, T_STR, T_LIST, T_STRS, T_GRID, T_MAP, T_SMAP
} CodeType;

// kids: BIN a op b; NEG, NOT a; INDEX a[b]; SLICE a[b:c]; CALL op(a, a->next, ..); LITERAL [a, ..];
// SET a op= b; IF a {b} else {c}; WHILE a {c}; RANGE var from a to b {c}; EACH var in a {c};
// RETURN a
typedef enum {
    E_INT, E_CHAR, E_STR, E_BOOL, E_VAR, E_BIN, E_NEG, E_NOT, E_INDEX, E_SLICE, E_CALL, E_LITERAL,
    S_SET, S_IF, S_WHILE, S_RANGE, S_EACH, S_RETURN, S_BREAK, S_CONTINUE, S_CALL, S_NOTE
} NodeKind;
typedef enum {                          // binary operators, loosest first
    OP_NONE, OP_OR, OP_AND, OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_BOR, OP_XOR, OP_BAND,
    OP_SHL, OP_SHR, OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_MOD
} CodeOp;
typedef enum {
    F_LEN, F_ABS, F_MIN, F_MAX, F_ORD, F_CHR, F_DIGIT, F_STR, F_ISDIGIT, F_ISALPHA, F_ISUPPER,
    F_ISLOWER, F_LOWER, F_UPPER, F_HAS, F_CONTAINS, F_COPY, F_LAST, F_FILL, F_MAXOF, F_MINOF, F_MAP,
    F_SMAP, F_STRS, F_GRID, F_GET, F_PUSH, F_PUT, F_INC, F_SORT, F_SWAP, F_DROP, N_BUILTINS
} CodeBuiltin;

typedef struct Node {
    NodeKind kind;
    CodeType type;                      // of an expression
    int op;                             // CodeOp or CodeBuiltin
    int var;                            // E_VAR and loops
    long value;    // literals; step of a range: 1, k, or -1 (down to, inclusive)
    const char *text;                   // E_STR, S_NOTE
    struct Node *a, *b, *c, *next;      // next statement, next argument
    bool decl;                          // SET declares its variable here
} Node;

enum { MAX_VARS = 40, MAX_ENTRY_PARAMS = 4, MAX_ENTRY_CONSTS = 6 };

typedef struct {
    char base[24];                      // name in the notation
    CodeType type;
    bool param, mutated, used;
    int loops;                          // loops that bind it
    char *name;                         // identifier in the rendering
} CodeVar;

typedef struct {
    char letter;
    const char *options;
    int n_options;
    bool range;
    int lo, hi;
} CodeConst;

typedef struct {                        // pointers into the compiled-in text, parts without newline
    const char *names, *sig, *part[4], *body;
    size_t names_n, part_n[4], body_n;
    char param[MAX_ENTRY_PARAMS][24];
    CodeType type[MAX_ENTRY_PARAMS], ret;
    int n_params;
    CodeConst konst[MAX_ENTRY_CONSTS];
    int n_konst;
    bool plain;                         // the input may not be changed beforehand
    const char *tests;                  // first line of "? args = result", or NULL
} CodeEntry;

typedef struct {                        // one function before it has a language
    const CodeEntry *entry;
    StrBuf body;                        // notation, constants and modifiers in place
    StrBuf part[4];                     // description
    uint64_t key;                       // of entry and drawn constants; a session has each once
} CodeDraft;

typedef struct {                        // memory of one tree; reset between functions
    char *p;
    size_t n, cap;
} CodeArena;

typedef struct {
    const CodeEntry *entry;
    Node *body;
    CodeVar var[MAX_VARS];
    int n_vars;
    char *name;
    CodeArena *arena;
    const char *fault;                  // why the notation was not understood; NULL: it was
} CodeFn;

typedef struct {                        // how one repository is written
    CodeLang lang;
    int indent;                         // spaces, 0: a tab
    bool hints, brace_line, wide_int, capital, pre_inc;
    bool snake;                         // identifiers
} CodeStyle;

// what the printed code wants imported
enum {
    USES_ALGO = 1,
    USES_MAP = 2,
    USES_STRING = 4,
    USES_CTYPE = 8,
    USES_SLICES = 16,
    USES_SORT = 32,
    USES_ABS = 64,
    USES_ITOA = 128,
    USES_LIST = 256,
    USES_CONTAINS = 512
};

int code_n_entries(void);
const CodeEntry *code_entry(int i);     // NULL past the end
const char *code_lang_name(CodeLang lang);
// constants and n_mods modifiers for an entry; the draft owns its buffers until draft_free
void code_draft(CodeDraft *d, const CodeEntry *e, Rng *rng, int n_mods);
void code_draft_free(CodeDraft *d);
// the tree of a draft in a fresh arena state; f->fault names what is wrong with an entry
void code_parse(CodeFn *f, const CodeDraft *d, CodeArena *arena);
void code_vary(CodeFn *f, Rng *rng);    // loop forms, order, temporaries: the meaning stays
// one function, without a newline at the end; *uses is or-ed with what it needs imported
void code_print(StrBuf *out, const CodeFn *f, const CodeStyle *style, int depth, int *uses);
const char *code_type_name(const CodeStyle *s, CodeType t, bool param);
// a number below 1000 in words
void code_number(StrBuf *out, int n);
// identifier from words joined by '_', in the case of a style; capital: first letter upper
char *code_case(const char *words, bool snake, bool capital);

// identifier of a function and its variables, and the texts of its remarks, from nouns of a session
void code_name(CodeFn *f, const CodeStyle *s, const char *const *nouns, int n_nouns, Rng *rng);
// a description whose words are exchanged for others of the same meaning
void code_rephrase(StrBuf *out, const char *text, Rng *rng);

EXTERN_C_END
#endif
