// score_code.c - finds the first function in a piece of code, in seven languages.
//
// RepoQA (Liu et al. 2024) parses an answer with tree-sitter and takes the first node of
//     python function_definition     java method_declaration     typescript function_declaration
//     rust function_item             go function_declaration
//     cpp  function_definition whose declarator is a function declarator around a plain identifier
// in document order. Here a lexer makes words, numbers, texts and marks of the code (comments,
// preprocessor lines and strings cannot mislead what follows), brackets are paired, and a scanner
// per language recognises the declaration at each word. For code that parses, the text found is the
// node's. Where code is broken tree-sitter weighs repairs; here one rule stands per language
// (forgive). Added: php function_definition and method_declaration.
#include "score.h"

typedef enum { WORD, NUMBER, TEXT, MARK, NOTE } LexKind;    // NOTE: a comment, kept in python
enum { BLOCK, CLASS, ENUM, ANNOTATION };                    // what a brace opens
typedef struct {
    size_t at, end;     // bytes
    int kind;           // LexKind
    int pair;           // brackets: index of the partner, -1 none
    int up;             // innermost bracket that is open here, -1 none
    int body;           // braces: what they open
    bool line;          // first of its line (python: of its logical line)
    bool directive;     // cpp: a preprocessor line stands between this and the piece before
} Lex;

enum {                  // what the lexers of the languages differ in
    NESTED = 1,         // block comments nest
    DIRECTIVES = 2,     // # lines are the preprocessor's
    HASH = 4,           // # comments, <<< texts
    TEMPLATES = 8,      // `..${..}..` and regular expressions
    RAW_TICKS = 16,     // `..` without escapes
    TRIPLE = 32,        // """ texts
    LIFETIMES = 64,     // ' may begin a lifetime; r#".."#
    LONG_TEXT = 128,    // strings run over lines
    DIGIT_TICKS = 256   // 1'000; R"x(..)x"
};

typedef struct Code Code;
typedef struct {
    const char *name;
    unsigned flags;
    int forgive;    // so many brackets may be open for a body that nothing closes to reach the end
    int (*step)(Code *c, int i, Span *out);     // -1: found; else the piece to go on with
} Language;
struct Code {
    const Language *lang;
    const char *s;
    size_t n;
    Lex *t;
    int count, cap, unclosed;
    bool broke;         // a line or directive ended before the next piece
    bool directive;
};

// ---------------------------------------------------------------------------
// pieces

static bool is(const Code *c, int i, const char *text) {
    if (i < 0 || i >= c->count || c->t[i].kind == TEXT || c->t[i].kind == NOTE) return false;
    size_t n = strlen(text);
    return c->t[i].end - c->t[i].at == n && !memcmp(c->s + c->t[i].at, text, n);
}

static bool mark(const Code *c, int i, char m) {
    return i >= 0 && i < c->count && c->t[i].kind == MARK && c->s[c->t[i].at] == m;
}

static bool word(const Code *c, int i) { return i >= 0 && i < c->count && c->t[i].kind == WORD; }

// the word is one of a list: " if for while "
static bool one_of(const Code *c, int i, const char *list) {
    if (!word(c, i)) return false;
    size_t n = c->t[i].end - c->t[i].at;
    for (const char *p = list; *p;) {
        size_t m = strcspn(p, " ");
        if (m == n && !memcmp(p, c->s + c->t[i].at, n)) return true;
        p += m + (p[m] == ' ');
    }
    return false;
}

// marks i and i + 1 are a and b without a gap: "->", "::"
static bool both(const Code *c, int i, char a, char b) {
    return mark(c, i, a) && mark(c, i + 1, b) && c->t[i].end == c->t[i + 1].at;
}

// the piece after the bracket at i closes; -1 if it never does
static int past(const Code *c, int i) {
    return i < c->count && c->t[i].pair > i ? c->t[i].pair + 1 : -1;
}

static bool opens(const Code *c, int i) {
    return mark(c, i, '(') || mark(c, i, '[') || mark(c, i, '{');
}

// the piece after <...> at i, -1 if it does not close
static int past_angles(const Code *c, int i) {
    int depth = 0;
    while (i >= 0 && i < c->count) {
        if (opens(c, i)) {
            i = past(c, i);
            continue;
        }
        if (mark(c, i, ';') || mark(c, i, '}') || mark(c, i, ')')) return -1;
        if (mark(c, i, '<')) depth++;
        if (mark(c, i, '>') && !both(c, i - 1, '-', '>') && !both(c, i - 1, '=', '>') &&
            --depth == 0)
            return i + 1;
        i++;
    }
    return -1;
}

static bool found(const Code *c, int first, int last, Span *out) {
    out->at = c->t[first].at;
    out->len = c->t[last].end - out->at;
    return true;
}

// A function from piece first whose body opens at brace: true if the body ends, or ends with the
// code after a whole statement.
static bool with_body(const Code *c, int first, int brace, Span *out) {
    int last = c->t[brace].pair;
    int end = c->count - 1;
    bool brace_last = mark(c, end, '{');
    bool whole = c->lang->flags & RAW_TICKS ? !brace_last
                 : brace_last || mark(c, end, ';') || mark(c, end, '}') || mark(c, end, ')');
    if (last < 0 && (!whole || c->unclosed > c->lang->forgive)) return false;
    return found(c, first, last < 0 ? end : last, out);
}

// the piece after a parameter list at i; an unclosed list ends before the first brace that closes
static int past_params(const Code *c, int i) {
    int k = past(c, i);
    if (k >= 0) return k;
    for (k = i + 1; k < c->count; k++)
        if (mark(c, k, '{') && c->t[k].pair >= 0) return k;
    return -1;
}

// ---------------------------------------------------------------------------
// lexer of the brace languages

static void lex_add(Code *c, int kind, size_t at, size_t end) {
    if (c->count == c->cap) {
        c->cap = c->cap * 2 + 256;
        c->t = (Lex *)xrealloc(c->t, (size_t)c->cap * sizeof *c->t);
    }
    c->t[c->count++] = (Lex){ .at = at, .end = end, .kind = kind, .pair = -1, .up = -1,
                              .line = c->broke || c->count == 1, .directive = c->directive };
    c->broke = c->directive = false;
}

static char at(const Code *c, size_t i) { return i < c->n ? c->s[i] : 0; }
static bool starts(const Code *c, size_t i, const char *text) {
    size_t n = strlen(text);
    return i <= c->n && c->n - i >= n && !memcmp(c->s + i, text, n);
}
static bool digit(char ch) { return ch >= '0' && ch <= '9'; }
static bool name_start(char ch) {
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || ch == '_' || ch == '$' ||
           (uint8_t)ch >= 0x80;
}
static bool name_char(char ch) { return name_start(ch) || digit(ch); }
static size_t name_end(const Code *c, size_t i) {
    while (i < c->n && name_char(c->s[i])) i++;
    return i;
}

static size_t line_end(const Code *c, size_t i) {
    while (i < c->n && c->s[i] != '\n') i++;
    return i;
}

// the byte after a backslash at i, or the \n of \r\n
static size_t escaped(const Code *c, size_t i) { return starts(c, i + 1, "\r\n") ? i + 2 : i + 1; }

// end of a quoted text that begins with the quote at i
static size_t quoted(const Code *c, size_t i, bool lines) {
    char q = c->s[i++];
    for (; i < c->n; i++) {
        if (c->s[i] == '\\') i = escaped(c, i);
        else if (c->s[i] == q) return i + 1;
        else if (c->s[i] == '\n' && !lines) return i;
    }
    return c->n;
}

// end of a text that runs to the given closing string
static size_t until(const Code *c, size_t i, const char *close, size_t n, bool escapes) {
    for (; i + n <= c->n; i++) {
        if (escapes && c->s[i] == '\\') i++;
        else if (!memcmp(c->s + i, close, n)) return i + n;
    }
    return c->n;
}

// `a ${ b + `c` } d`
static size_t template_end(const Code *c, size_t i) {
    int depth[64], level = 0;           // braces open in each ${ }
    bool text[65] = { true };
    for (i++; i < c->n; i++) {
        char ch = c->s[i];
        if (text[level]) {
            if (ch == '\\') i++;
            else if (ch == '`' && level == 0) return i + 1;
            else if (ch == '`') level--;
            else if (ch == '$' && at(c, i + 1) == '{' && level < 63) {
                depth[level] = 0;
                text[++level] = false;
                i++;
            }
        } else if (ch == '`' && level < 63) {
            depth[level] = 0;
            text[++level] = true;
        } else if (ch == '\'' || ch == '"') i = quoted(c, i, false) - 1;
        else if (ch == '{') depth[level - 1]++;
        else if (ch == '}' && depth[level - 1]-- == 0) level--;
    }
    return c->n;
}

// a / here begins a regular expression: no value stands before it
static bool regex_follows(const Code *c) {
    int p = c->count - 1;
    if (p < 0) return true;
    if (c->t[p].kind == WORD)
        return one_of(c, p, "return typeof case in of void delete instanceof new do else throw "
                            "await yield");
    if (c->t[p].kind != MARK || mark(c, p, ']')) return false;
    if (mark(c, p, ')')) {
        int depth = 0, k = p;
        for (; k >= 0; k--) {
            depth += mark(c, k, ')') - mark(c, k, '(');
            if (!depth) break;
        }
        return one_of(c, k - 1, "if while for with");
    }
    if (both(c, p - 1, '+', '+') || both(c, p - 1, '-', '-')) return false;
    if (mark(c, p, '!') && p > 0 && c->t[p - 1].end == c->t[p].at)
        return !(word(c, p - 1) || mark(c, p - 1, ')') || mark(c, p - 1, ']'));
    return true;
}

static size_t regex_end(const Code *c, size_t i) {
    bool set = false;
    for (size_t j = i + 1; j < c->n && c->s[j] != '\n'; j++) {
        if (c->s[j] == '\\') j++;
        else if (c->s[j] == '[') set = true;
        else if (c->s[j] == ']') set = false;
        else if (c->s[j] == '/' && !set) return name_end(c, j + 1);
    }
    return i;
}

// rust: r"..", r#".."#, br, cr; cpp: R"x(..)x" with its prefixes. 0: no raw text here
static size_t raw_end(const Code *c, size_t i) {
    char close[32];
    size_t k = i, n = 0;
    if (c->lang->flags & LIFETIMES) {
        if (at(c, k) == 'b' || at(c, k) == 'c') k++;
        if (at(c, k) != 'r') return 0;
        close[n++] = '"';
        for (k++; at(c, k) == '#' && n < sizeof close; k++) close[n++] = '#';
        return at(c, k) == '"' ? until(c, k + 1, close, n, false) : 0;
    }
    if (starts(c, k, "u8")) k += 2;
    else if (at(c, k) == 'u' || at(c, k) == 'U' || at(c, k) == 'L') k++;
    if (!starts(c, k, "R\"")) return 0;
    close[n++] = ')';
    for (k += 2; k < c->n && c->s[k] != '(' && n < 20; k++) close[n++] = c->s[k];
    close[n++] = '"';
    return at(c, k) == '(' ? until(c, k + 1, close, n, false) : 0;
}

// rust: 'a is a lifetime unless a quote follows the one character
static size_t tick_end(const Code *c, size_t i) {
    if (!(c->lang->flags & LIFETIMES)) return quoted(c, i, c->lang->flags & LONG_TEXT);
    if (at(c, i + 1) == '\\') return quoted(c, i, false);
    int32_t code;
    size_t len = i + 1 < c->n ? text_next(c->s + i + 1, c->n - i - 1, &code) : 0;
    if (at(c, i + 1 + len) == '\'') return i + len + 2;
    return name_end(c, i + 1);
}

// php: <<<NAME or <<<'NAME' up to a line whose first word is NAME. i: at the <<<
static size_t heredoc_end(const Code *c, size_t i) {
    size_t a = i + 3;
    while (at(c, a) == ' ' || at(c, a) == '"' || at(c, a) == '\'') a++;
    size_t n = name_end(c, a) - a;
    if (!n) return i + 3;
    for (size_t k = line_end(c, a); k < c->n; k = line_end(c, k + 1)) {
        size_t b = k + 1;
        while (at(c, b) == ' ' || at(c, b) == '\t') b++;
        if (b + n <= c->n && !memcmp(c->s + b, c->s + a, n) && !name_char(at(c, b + n)))
            return b + n;
    }
    return c->n;
}

// end of a comment or preprocessor line at i; i where there is none
static size_t comment_end(Code *c, size_t i) {
    unsigned f = c->lang->flags;
    if (starts(c, i, "//")) return line_end(c, i);
    if ((f & HASH) && c->s[i] == '#' && at(c, i + 1) != '[') return line_end(c, i);
    if (starts(c, i, "/*")) {
        int depth = 1;
        for (i += 2; i < c->n && depth; i++) {
            bool open = (f & NESTED) && starts(c, i, "/*"), close = starts(c, i, "*/");
            depth += open - close;
            i += open || close;
        }
        return i < c->n ? i : c->n;
    }
    if ((f & DIRECTIVES) && c->s[i] == '#' && (c->broke || c->count == 0)) {
        c->directive = true;
        for (i = line_end(c, i); i < c->n; i = line_end(c, i + 1)) {
            size_t b = i - (c->s[i - 1] == '\r');
            if (c->s[b - 1] != '\\') break;
        }
    }
    return i;
}

static size_t number_end(const Code *c, size_t i) {
    for (; i < c->n; i++) {
        bool tick = (c->lang->flags & DIGIT_TICKS) && c->s[i] == '\'' && name_char(at(c, i + 1));
        bool dot = c->s[i] == '.' && digit(at(c, i + 1));
        if (!name_char(c->s[i]) && !tick && !dot) break;
    }
    return i;
}

// end of the quoted text at i, i if none begins there
static size_t text_end(const Code *c, size_t i) {
    unsigned f = c->lang->flags;
    char ch = c->s[i];
    if ((f & TRIPLE) && starts(c, i, "\"\"\"")) return until(c, i + 3, "\"\"\"", 3, true);
    if (ch == '"') return quoted(c, i, f & LONG_TEXT);
    if (ch == '\'') return tick_end(c, i);
    if (ch == '`' && (f & TEMPLATES)) return template_end(c, i);
    if (ch == '`' && (f & RAW_TICKS)) return until(c, i + 1, "`", 1, false);
    if (ch == '/' && (f & TEMPLATES) && regex_follows(c)) return regex_end(c, i);
    if ((f & HASH) && starts(c, i, "<<<")) return heredoc_end(c, i);
    if (f & (LIFETIMES | DIGIT_TICKS)) {
        size_t end = raw_end(c, i);
        if (end) return end;
    }
    return i;
}

static void lex_braces(Code *c) {
    c->broke = true;
    for (size_t i = 0; i < c->n;) {
        char ch = c->s[i];
        size_t end = comment_end(c, i);
        if (end > i) {
            c->broke |= memchr(c->s + i, '\n', end - i) != NULL;
            i = end;
            continue;
        }
        if (ch == ' ' || (ch >= 9 && ch <= 13)) {
            c->broke |= ch == '\n';
            i++;
            continue;
        }
        int kind = TEXT;
        end = text_end(c, i);
        if (end == i) {
            kind = digit(ch) ? NUMBER : name_start(ch) ? WORD : MARK;
            end = kind == NUMBER ? number_end(c, i) : kind == WORD ? name_end(c, i) : i + 1;
            if ((c->lang->flags & LIFETIMES) && starts(c, i, "r#") && name_start(at(c, i + 2)))
                end = name_end(c, i + 2);
        }
        lex_add(c, kind, i, end);
        i = end;
    }
}

// Pairs ( [ {. A closing brace ends the round and square brackets that are open inside it; a
// closing round or square bracket never ends a brace.
static void pair_brackets(Code *c) {
    IntVec open = { 0 };
    for (int i = 0; i < c->count; i++) {
        c->t[i].up = open.n ? open.p[open.n - 1] : -1;
        if (c->t[i].kind != MARK) continue;
        char ch = c->s[c->t[i].at], want = ch == ')' ? '(' : ch == ']' ? '[' : ch == '}' ? '{' : 0;
        if (opens(c, i)) ints_push(&open, i);
        size_t k = want ? open.n : 0;
        while (k && !mark(c, open.p[k - 1], want) && (want == '{' || !mark(c, open.p[k - 1], '{')))
            k--;
        if (!k || !mark(c, open.p[k - 1], want)) continue;
        c->unclosed += (int)(open.n - k);
        open.n = k - 1;
        c->t[i].pair = open.p[open.n];
        c->t[open.p[open.n]].pair = i;
        c->t[i].up = c->t[open.p[open.n]].up;
    }
    c->unclosed += (int)open.n;
    free(open.p);
}

// ---------------------------------------------------------------------------
// go: func NAME [types](params) result { body }; the body may be missing

static int go_type(const Code *c, int k) {
    while (k >= 0 && k < c->count) {
        if (mark(c, k, '*') || mark(c, k, '<') || mark(c, k, '-') || is(c, k, "chan") ||
            is(c, k, "map"))
            k++;
        else if (mark(c, k, '[')) k = past(c, k);
        else break;
    }
    if (k < 0 || k >= c->count) return k;
    if (mark(c, k, '(')) return past(c, k);
    if (is(c, k, "interface") || is(c, k, "struct"))
        return mark(c, k + 1, '{') ? past(c, k + 1) : k + 1;
    if (is(c, k, "func")) {
        k = mark(c, k + 1, '(') ? past(c, k + 1) : -1;
        bool result = k >= 0 && k < c->count && !c->t[k].line &&
                      (word(c, k) || mark(c, k, '(') || mark(c, k, '*') || mark(c, k, '[') ||
                       mark(c, k, '<'));
        return result ? go_type(c, k) : k;
    }
    if (!word(c, k)) return k;
    for (k++; mark(c, k, '.') && word(c, k + 1);) k += 2;
    return mark(c, k, '[') && c->t[k - 1].end == c->t[k].at ? past(c, k) : k;
}

static int go_step(Code *c, int i, Span *out) {
    if (!is(c, i, "func") || !word(c, i + 1)) return i + 1;
    int k = i + 2;
    if (mark(c, k, '[')) k = past(c, k);
    if (k < 0 || !mark(c, k, '(')) return i + 1;
    k = past_params(c, k);
    if (k < 0 && c->unclosed > c->lang->forgive) return i + 1;
    if (k < 0) k = c->count;
    int last = k - 1;
    if (k < c->count && !c->t[k].line && !mark(c, k, '{') && !mark(c, k, ';')) {
        int end = go_type(c, k);
        if (end > k) {
            k = end;
            last = k - 1;
        }
    }
    if (mark(c, k, '{') && !c->t[k].line && with_body(c, i, k, out)) return -1;
    found(c, i, last, out);
    return -1;
}

// ---------------------------------------------------------------------------
// rust: pub(..) const async unsafe extern ".." fn NAME <types>(params) -> type where .. { body }

static int rust_step(Code *c, int i, Span *out) {
    if (mark(c, i, '#') && (mark(c, i + 1, '[') || (mark(c, i + 1, '!') && mark(c, i + 2, '[')))) {
        int k = past(c, mark(c, i + 1, '[') ? i + 1 : i + 2);
        return k < 0 ? i + 1 : k;                       // an attribute
    }
    if (word(c, i) && mark(c, i + 1, '!')) {            // a macro's tokens are not parsed
        int k = i + 2 + (is(c, i, "macro_rules") && word(c, i + 2));
        k = opens(c, k) ? past(c, k) : -1;
        return k < 0 ? i + 1 : k;
    }
    int k = i;
    if (is(c, k, "pub")) {
        k++;
        if (mark(c, k, '(') && one_of(c, k + 1, "crate self super in")) k = past(c, k);
        if (k < 0) return i + 1;
    }
    while (one_of(c, k, "const async unsafe default extern gen safe"))
        k += is(c, k, "extern") && k + 1 < c->count && c->t[k + 1].kind == TEXT ? 2 : 1;
    if (!is(c, k, "fn") || !word(c, k + 1)) return i + 1;
    k += 2;
    if (mark(c, k, '<')) k = past_angles(c, k);
    if (k < 0 || !mark(c, k, '(')) return i + 1;
    for (k = past_params(c, k); k >= 0 && k < c->count && !mark(c, k, '{');) {
        if (mark(c, k, ';') || mark(c, k, '}')) return i + 1;   // a signature
        k = mark(c, k, '<') ? past_angles(c, k) : opens(c, k) ? past(c, k) : k + 1;
    }
    return k >= 0 && k < c->count && with_body(c, i, k, out) ? -1 : i + 1;
}

// ---------------------------------------------------------------------------
// typescript: async function NAME <types>(params): type { body } where a statement may stand

// After : of a return type, the piece where a body would open. A brace where a type is due is an
// object type; after a complete type it is the body.
static int ts_type(const Code *c, int k) {
    bool due = true;
    while (k >= 0 && k < c->count) {
        if (mark(c, k, '{') && !due) return k;
        if (opens(c, k) || mark(c, k, '<')) {
            k = opens(c, k) ? past(c, k) : past_angles(c, k);
            due = false;
        } else if (both(c, k, '=', '>')) {
            k += 2;
            due = true;
        } else if (c->t[k].kind == MARK) {
            if (!strchr("|&?:.-", c->s[c->t[k].at])) return -1;
            due = true;
            k++;
        } else {
            if (!due && c->t[k].line && !one_of(c, k, "is extends")) return -1;
            due = one_of(c, k, "keyof typeof is extends readonly unique infer new asserts "
                               "abstract");
            k++;
        }
    }
    return -1;
}

// the colon before piece i ends "case x" or a label, and not a property name or half of ? :
static bool ts_label(const Code *c, int p) {
    if (is(c, p - 1, "default")) return true;
    if (word(c, p - 1) && (p < 2 || mark(c, p - 2, ';') || mark(c, p - 2, '}'))) return true;
    if (word(c, p - 1) && mark(c, p - 2, '{'))
        return !(p >= 3 && c->t[p - 3].kind == MARK && strchr("=(,:[?>", c->s[c->t[p - 3].at]));
    for (int k = p - 1; k >= 0; k--) {
        if (c->t[k].pair >= 0 && c->t[k].pair < k) k = c->t[k].pair;
        else if (is(c, k, "case")) return true;
        else if (c->t[k].kind == MARK && strchr("?;{}(,[", c->s[c->t[k].at])) return false;
    }
    return false;
}

// a statement may begin at piece i
static bool ts_statement(const Code *c, int i) {
    int p = i - 1;
    if (p < 0) return true;
    if (c->t[p].kind == MARK) {
        char m = c->s[c->t[p].at];
        if (m == ':') return ts_label(c, p);
        if (m == '>') return c->t[i].line && !both(c, p - 1, '=', '>');
        return strchr(";{})]", m) != NULL;
    }
    if (one_of(c, p, "return await yield") && !(p && mark(c, p - 1, '.'))) return c->t[i].line;
    return !one_of(c, p, "typeof new void delete throw in of instanceof case extends async");
}

// A comment on the line of the closing brace belongs to the node when a semicolon is inserted after
// it: the line ends there and the next piece cannot go on with an expression.
static void ts_comment(Code *c, int next, Span *out) {
    size_t i = out->at + out->len, end = i;
    while (i < c->n && c->s[i] != '\n') {
        bool space = c->s[i] == ' ' || c->s[i] == '\t' || c->s[i] == '\r';
        size_t to = space ? i + 1 : comment_end(c, i);
        if (to == i || memchr(c->s + i, '\n', to - i)) return;
        i = to;
        if (!space) end = i;
    }
    bool sign = both(c, next, '+', '+') || both(c, next, '-', '-');
    char begin = next < c->count ? c->s[c->t[next].at] : 0;
    bool goes_on = (begin && strchr(",;.:*%><=[(?^|&/+-`", begin)) || both(c, next, '!', '=') ||
                   one_of(c, next, "in instanceof");
    if (sign || !goes_on) out->len = end - out->at;
}

static int ts_step(Code *c, int i, Span *out) {
    int f = is(c, i, "async") && i + 1 < c->count && !c->t[i + 1].line ? i + 1 : i;
    if (!is(c, f, "function") || !word(c, f + 1) || !ts_statement(c, i)) return i + 1;
    int k = f + 2;
    if (mark(c, k, '<')) k = past_angles(c, k);
    if (k < 0 || !mark(c, k, '(')) return f + 1;
    k = past_params(c, k);
    if (k >= 0 && mark(c, k, ':')) k = ts_type(c, k + 1);
    if (k < 0 || !mark(c, k, '{') || !with_body(c, i, k, out)) return f + 1;
    ts_comment(c, c->t[k].pair + 1, out);
    return -1;
}

// ---------------------------------------------------------------------------
// php: #[..] modifiers function &NAME(params): type { body }

static int php_step(Code *c, int i, Span *out) {
    int k = i;
    while (mark(c, k, '#') && mark(c, k + 1, '[')) {
        k = past(c, k + 1);
        if (k < 0) return i + 1;
    }
    while (one_of(c, k, "abstract final public private protected static readonly var")) k++;
    if (!is(c, k, "function")) return i + 1;
    k += 1 + mark(c, k + 1, '&');
    if (!word(c, k) || c->s[c->t[k].at] == '$' || !mark(c, k + 1, '(')) return i + 1;
    for (k = past_params(c, k + 1); k >= 0 && k < c->count && !mark(c, k, '{'); k++) {
        if (mark(c, k, ';')) {
            found(c, i, k, out);
            return -1;
        }
        if (mark(c, k, '}')) return i + 1;
    }
    return k >= 0 && k < c->count && with_body(c, i, k, out) ? -1 : i + 1;
}

// ---------------------------------------------------------------------------
// java: modifiers <types> type NAME(params)[] throws A, B { body } or ; as a member or at the top

static int java_annotations(const Code *c, int k) {
    while (k >= 0 && mark(c, k, '@') && word(c, k + 1) && !is(c, k + 1, "interface")) {
        for (k += 2; mark(c, k, '.') && word(c, k + 1);) k += 2;
        if (mark(c, k, '(')) k = past(c, k);
    }
    return k;
}

static int java_dims(const Code *c, int k) {
    for (;;) {
        k = java_annotations(c, k);
        if (k < 0 || !mark(c, k, '[') || !mark(c, k + 1, ']')) return k;
        k += 2;
    }
}

static const char java_never[] =
    "return new throw else case assert package import goto if while for do switch try catch "
    "finally class interface enum record break continue this super yield instanceof extends "
    "implements throws";
static const char java_modifiers[] =
    "public protected private abstract static final strictfp default synchronized native "
    "transient volatile";

// the piece after a type at k, -1 if none stands there
static int java_type(const Code *c, int k) {
    k = java_annotations(c, k);
    if (k < 0 || !word(c, k) || one_of(c, k, java_never)) return -1;
    for (;;) {
        if (mark(c, ++k, '<')) k = past_angles(c, k);
        if (k < 0) return -1;
        int next = mark(c, k, '.') ? java_annotations(c, k + 1) : -1;
        if (next < 0 || !word(c, next)) break;
        k = next;
    }
    return java_dims(c, k);
}

// the word at k names an enum constant
static bool java_constant(const Code *c, int k) {
    return word(c, k) && (mark(c, k - 1, '{') || mark(c, k - 1, ',') || mark(c, k - 1, ')'));
}

// what the brace at b opens
static int java_brace(const Code *c, int b) {
    int p = b - 1;
    bool in_enum = c->t[b].up >= 0 && c->t[c->t[b].up].body == ENUM;
    if (in_enum && java_constant(c, p)) return CLASS;
    if (mark(c, p, ')') && c->t[p].pair >= 0) {         // new Type<..>(..) {   or   CONSTANT(..) {
        int k = c->t[p].pair - 1;
        if (in_enum && java_constant(c, k)) return CLASS;
        for (; k >= 0; k--) {
            if (is(c, k, "new")) return CLASS;
            bool mark_of_type = c->t[k].kind == MARK && strchr("<>.,?&@[]", c->s[c->t[k].at]);
            if (!word(c, k) && !mark_of_type) break;
        }
    }
    for (; p >= 0; p--) {
        if (c->t[p].pair >= 0 && c->t[p].pair < p && !mark(c, p, '}')) p = c->t[p].pair;
        else if (mark(c, p, ';') || mark(c, p, '{') || mark(c, p, '}') || mark(c, p, '=')) break;
        else if (mark(c, p - 1, '.')) continue;
        else if (is(c, p, "interface")) return mark(c, p - 1, '@') ? ANNOTATION : CLASS;
        else if (is(c, p, "enum")) return ENUM;
        else if (is(c, p, "class") || (is(c, p, "record") && word(c, p + 1))) return CLASS;
    }
    return BLOCK;
}

static int java_step(Code *c, int i, Span *out) {
    if (mark(c, i, '{')) c->t[i].body = java_brace(c, i);
    int up = c->t[i].up, body = up < 0 ? CLASS : c->t[up].body;
    if (!word(c, i) && !mark(c, i, '@') && !mark(c, i, '<')) return i + 1;
    if (body == BLOCK || body == ANNOTATION) return i + 1;
    if (i && !mark(c, i - 1, ';') && !mark(c, i - 1, '{') && !mark(c, i - 1, '}')) return i + 1;
    int k = i;
    while (k >= 0 && (mark(c, k, '@') || one_of(c, k, java_modifiers))) {
        int next = mark(c, k, '@') ? java_annotations(c, k) : k + 1;
        if (next == k) return i + 1;
        k = next;
    }
    if (k >= 0 && mark(c, k, '<')) k = past_angles(c, k);
    k = k < 0 ? -1 : java_type(c, k);
    if (k < 0 || !word(c, k) || !mark(c, k + 1, '(')) return i + 1;
    k = past_params(c, k + 1);
    k = k < 0 ? -1 : java_dims(c, k);
    if (k >= 0 && is(c, k, "throws")) {
        do k = java_type(c, k + 1);
        while (k >= 0 && mark(c, k, ','));
    }
    if (k >= 0 && mark(c, k, ';')) {
        found(c, i, k, out);
        return -1;
    }
    return k >= 0 && mark(c, k, '{') && with_body(c, i, k, out) ? -1 : i + 1;
}

// ---------------------------------------------------------------------------
// cpp: specifiers type NAME(params) qualifiers { body }. A pointer or reference in the type, a
// qualified name, an operator or a destructor wrap the declarator, and a method inside a class body
// is a field: none of these counts. A constructor inside a class body is a plain identifier.

static const char cpp_plain[] =
    "static inline constexpr consteval constinit virtual extern register thread_local "
    "mutable volatile const typename export";
static const char cpp_types[] =
    "int char void bool float double long short unsigned signed auto size_t wchar_t "
    "char8_t char16_t char32_t";
static const char cpp_after[] =
    "const volatile override final mutable noexcept throw requires try __attribute__";
static const char cpp_never[] =
    "if else for while switch return do case default goto throw new delete using namespace "
    "typedef static_assert operator sizeof catch try co_return co_await co_yield break "
    "continue concept public private protected this";

// the brace of a class whose keyword stands at k, -1 none
static int cpp_class(const Code *c, int k) {
    for (k++; k >= 0 && k < c->count; k++) {
        if (mark(c, k, '{')) return k;
        if (mark(c, k, ':') && !both(c, k, ':', ':') && !both(c, k - 1, ':', ':')) break;
        if (mark(c, k, '<')) k = past_angles(c, k) - 1;
        else if (mark(c, k, '(') || mark(c, k, '[')) k = past(c, k) - 1;
        else if (!word(c, k) && !mark(c, k, ':')) return -1;
        if (k < 0) return -1;
    }
    for (; k >= 0 && k < c->count; k++) {               // bases
        if (mark(c, k, '{')) return k;
        if (mark(c, k, ';') || mark(c, k, '=')) return -1;
        if (mark(c, k, '<')) k = past_angles(c, k) - 1;
        if (k < 0) return -1;
    }
    return -1;
}

// template <..> requires .. at k: the piece after
static int cpp_template(const Code *c, int k) {
    k = mark(c, k + 1, '<') ? past_angles(c, k + 1) : k + 1;
    if (k < 0 || !is(c, k, "requires")) return k;
    for (k++; k >= 0 && k < c->count;) {
        if (is(c, k, "requires")) {
            k++;
            if (mark(c, k, '(')) k = past(c, k);
            if (k >= 0 && mark(c, k, '{')) k = past(c, k);
        } else if (mark(c, k, '(')) k = past(c, k);
        else {
            while (word(c, k) || both(c, k, ':', ':')) {
                bool name = word(c, k);
                k += name ? 1 : 2;
                if (name && mark(c, k, '<')) k = past_angles(c, k);
                if (k < 0 || (name && !both(c, k, ':', ':'))) break;
            }
        }
        if (k < 0 || (!both(c, k, '&', '&') && !both(c, k, '|', '|'))) return k;
        k += 2;
    }
    return k;
}

// pieces a .. b can be a parameter list: no arithmetic, number or text outside of defaults
static bool cpp_params(const Code *c, int a, int b) {
    bool value = false;
    for (int k = a; k < b; k++) {
        if (c->t[k].pair > k) {
            k = c->t[k].pair;
            continue;
        }
        if (mark(c, k, ',')) value = false;
        if (mark(c, k, '=')) value = true;
        if (value) continue;
        if (mark(c, k, '<')) {
            int end = past_angles(c, k);
            if (end < 0 || end > b) return false;
            k = end - 1;
            continue;
        }
        if (both(c, k, '.', '.') && both(c, k + 1, '.', '.')) {
            k += 2;
            continue;
        }
        if (c->t[k].kind == NUMBER || c->t[k].kind == TEXT) return false;
        if (c->t[k].kind == MARK && !strchr(",=*&:", c->s[c->t[k].at])) return false;
    }
    return true;
}

// a(x), b{y} after the colon at k: the piece where the body opens
static int cpp_initialisers(const Code *c, int k) {
    for (k++; k >= 0 && k < c->count; k++) {
        while (k >= 0 && (word(c, k) || mark(c, k, ':') || mark(c, k, '<')))
            k = mark(c, k, '<') ? past_angles(c, k) : k + 1;
        if (k < 0 || (!mark(c, k, '(') && !mark(c, k, '{'))) return -1;
        k = past(c, k);
        while (k >= 0 && mark(c, k, '.')) k++;
        if (k < 0 || !mark(c, k, ',')) return k;
    }
    return -1;
}

// the body at k (with its catch blocks when it is a try block)
static bool cpp_body(const Code *c, int first, int k, bool tried, bool typed, Span *out) {
    if (!mark(c, k, '{') || !with_body(c, first, k, out)) return false;
    int last = c->t[k].pair;
    bool variable = typed && last == k + 1 && mark(c, last + 1, ';');   // int f() {};
    if (!tried) return !variable;
    while (last >= 0 && is(c, last + 1, "catch") && mark(c, last + 2, '(')) {
        k = past(c, last + 2);
        last = k >= 0 && mark(c, k, '{') ? c->t[k].pair : -1;
        if (last >= 0) found(c, first, last, out);
    }
    return true;
}

// the piece after a type that follows ->
static int cpp_trailing(const Code *c, int k) {
    while (k >= 0 && k < c->count) {
        if (mark(c, k, '<')) k = past_angles(c, k);
        else if (mark(c, k, '(') && is(c, k - 1, "decltype")) k = past(c, k);
        else if (word(c, k) || mark(c, k, ':') || mark(c, k, '*') || mark(c, k, '&')) k++;
        else break;
    }
    return k;
}

// after the parameters at k: qualifiers, trailing type, initialisers, body
static bool cpp_tail(const Code *c, int first, int k, bool typed, bool in_class, Span *out) {
    while (k >= 0 && k < c->count && !mark(c, k, '{')) {
        if (is(c, k, "try")) {
            k++;
            if (mark(c, k, ':')) k = cpp_initialisers(c, k);
            return k >= 0 && cpp_body(c, first, k, true, typed, out);
        }
        if (both(c, k, '-', '>')) {
            k = cpp_trailing(c, k + 2);
        } else if (is(c, k, "requires")) {
            while (k >= 0 && k < c->count && !mark(c, k, '{') && !mark(c, k, ';'))
                k = mark(c, k, '(') ? past(c, k) : k + 1;
        } else if (one_of(c, k, "noexcept throw __attribute__")) {
            k = mark(c, k + 1, '(') ? past(c, k + 1) : k + 1;
        } else if (mark(c, k, ':') && !typed) {
            k = cpp_initialisers(c, k);
            if (k < 0 || !mark(c, k, '{')) return false;
        } else if (mark(c, k, '=') && one_of(c, k + 1, "default delete") && mark(c, k + 2, ';')) {
            return in_class && !typed && found(c, first, k + 2, out);
        } else if (one_of(c, k, "const volatile override final mutable") || mark(c, k, '&') ||
                   (word(c, k) && mark(c, k + 1, '{'))) {
            k++;
        } else return false;
    }
    return k >= 0 && k < c->count && cpp_body(c, first, k, false, typed, out);
}

typedef struct { int first, name; bool typed, friendly; } CppHead;

// specifiers and type from piece k up to NAME ( ; false if this is no such beginning
static bool cpp_head(const Code *c, int k, CppHead *h) {
    *h = (CppHead){ .first = k };
    while (k >= 0 && (is(c, k, "template") || is(c, k, "friend") ||
                      (is(c, k, "extern") && k + 1 < c->count && c->t[k + 1].kind == TEXT))) {
        h->friendly |= is(c, k, "friend");
        k = is(c, k, "template") ? cpp_template(c, k) : is(c, k, "extern") ? k + 2 : k + 1;
        h->first = k;
    }
    for (; k >= 0 && k < c->count;) {
        if (mark(c, k, '[') && mark(c, k + 1, '[')) k = past(c, k);
        else if (both(c, k, ':', ':')) k += 2;
        else if (one_of(c, k, "__attribute__ __declspec alignas decltype explicit") &&
                 mark(c, k + 1, '(')) {
            h->typed |= is(c, k, "decltype");
            k = past(c, k + 1);
        } else if (one_of(c, k, "class struct union enum"))
            k++;
        else if (one_of(c, k, cpp_plain) || is(c, k, "explicit")) k++;
        else if (!word(c, k) || one_of(c, k, cpp_never)) return false;
        else if (mark(c, k + 1, '(')) {
            h->name = k;
            return !both(c, k - 2, ':', ':') && !one_of(c, k, cpp_types);
        } else {
            h->typed = true;
            if (mark(c, ++k, '<')) k = past_angles(c, k);
        }
    }
    return false;
}

static int cpp_step(Code *c, int i, Span *out) {
    if (one_of(c, i, "class struct union") && !is(c, i - 1, "enum") && !mark(c, i - 1, '<') &&
        !mark(c, i - 1, ',')) {
        int b = cpp_class(c, i);
        if (b >= 0) c->t[b].body = CLASS;
    }
    int p = i - 1, up = c->t[i].up;
    bool begins = p < 0 || c->t[i].directive || mark(c, p, ';') || mark(c, p, '{') ||
                  mark(c, p, '}') ||
                  (mark(c, p, ':') && one_of(c, p - 1, "public private protected signals slots"));
    bool in_class = up >= 0 && c->t[up].body == CLASS;
    CppHead h;
    for (int k = i; begins && cpp_head(c, k, &h);) {
        if (h.typed ? in_class && !h.friendly : h.friendly) break;
        int end = past_params(c, h.name + 1), close = c->t[h.name + 1].pair;
        if (end < 0) break;
        if (word(c, end) && close >= 0 && !mark(c, end + 1, '{') &&
            !one_of(c, end, cpp_after)) {
            k = end;                                    // MACRO(x) int f()
            continue;
        }
        if (close >= 0 && !cpp_params(c, h.name + 2, close)) break;
        if (cpp_tail(c, h.first, end, h.typed, in_class, out)) return -1;
        break;
    }
    return i + 1;
}

// ---------------------------------------------------------------------------
// python: async def NAME[types](params) -> type: and one line or an indented block. Only a line at
// bracket depth 0 that no backslash continues has an indent (tab 8, form feed back to 0).

static size_t python_text(const Code *c, size_t i, bool fields);

// end of the field {expression!r:{width}} that begins at i
static size_t python_field(const Code *c, size_t i, bool lines) {
    int depth = 0;
    bool format = false;
    for (i++; i < c->n; i++) {
        char ch = c->s[i];
        if (ch == '\n' && !lines) return i;
        if (!format && (ch == '\'' || ch == '"')) i = python_text(c, i, false) - 1;
        else if (ch == '{' && format) i = python_field(c, i, lines) - 1;
        else if (ch == '{' || ch == '(' || ch == '[') depth++;
        else if (ch == ')' || ch == ']' || (ch == '}' && depth)) depth--;
        else if (ch == '}') return i + 1;
        else if (ch == ':' && !depth) format = true;
    }
    return c->n;
}

// end of the text whose first quote is at i
static size_t python_text(const Code *c, size_t i, bool fields) {
    char q = c->s[i];
    bool triple = at(c, i + 1) == q && at(c, i + 2) == q;
    for (i += triple ? 3 : 1; i < c->n; i++) {
        if (c->s[i] == '\\') i = escaped(c, i);
        else if (c->s[i] == q && (!triple || (at(c, i + 1) == q && at(c, i + 2) == q)))
            return i + (triple ? 3 : 1);
        else if (c->s[i] == '\n' && !triple) return i;
        else if (fields && starts(c, i, "{{")) i++;
        else if (fields && c->s[i] == '{') i = python_field(c, i, triple) - 1;
    }
    return c->n;
}

static void lex_python(Code *c) {
    int depth = 0;
    c->broke = true;
    for (size_t i = 0; i < c->n;) {
        char ch = c->s[i];
        size_t end = i + 1;
        int kind = MARK;
        if (ch == '\n' || ch == '\r') {
            c->broke |= depth == 0;
            i++;
            continue;
        }
        if (ch == '\\' && (at(c, i + 1) == '\n' || at(c, i + 1) == '\r')) {
            i += starts(c, i + 1, "\r\n") ? 3 : 2;
            continue;
        }
        if (ch == ' ' || ch == '\t' || ch == '\f' || starts(c, i, "\xef\xbb\xbf")) {
            i += ch == '\xef' ? 3 : 1;
            continue;
        }
        if (ch == '#') {
            kind = NOTE;
            end = line_end(c, i);
        } else if (digit(ch)) {
            kind = NUMBER;
            end = number_end(c, i);
        } else if (name_start(ch)) {
            kind = WORD;
            end = name_end(c, i);
            bool prefix = end - i <= 2 && (at(c, end) == '\'' || at(c, end) == '"');
            for (size_t k = i; k < end && prefix; k++)
                prefix = strchr("rRbBuUfFtT", c->s[k]) != NULL;
            if (prefix) {
                char a = c->s[i], b = c->s[end - 1];
                kind = TEXT;
                end = python_text(c, end, a == 'f' || a == 'F' || b == 'f' || b == 'F');
            }
        } else if (ch == '\'' || ch == '"') {
            kind = TEXT;
            end = python_text(c, i, false);
        } else if (strchr("([{", ch)) depth++;
        else if (strchr(")]}", ch) && depth) depth--;
        lex_add(c, kind, i, end < c->n ? end : c->n);
        i = end;
    }
}

static int python_indent(const Code *c, int i) {
    size_t a = c->t[i].at;
    while (a && c->s[a - 1] != '\n' && c->s[a - 1] != '\r') a--;
    int col = 0;
    for (; a < c->t[i].at; a++)
        col = c->s[a] == '\f' ? 0 : c->s[a] == '\t' ? col + 8 : c->s[a] == ' ' ? col + 1 : col;
    return col;
}

// The indent that the body of a def at piece i must exceed: that of its line, but 0 as long as no
// line before stands further left.
static int python_level(const Code *c, int i) {
    while (i && (!c->t[i].line || c->t[i].kind == NOTE)) i--;
    int indent = python_indent(c, i);
    for (int k = 0; k < i; k++)
        if (c->t[k].line && c->t[k].kind != NOTE && python_indent(c, k) < indent) return indent;
    return 0;
}

// The last piece of the block whose first statement is piece b: lines indented as b or more, and
// the comments after them while these are indented so.
static int python_block(const Code *c, int b) {
    int indent = python_indent(c, b), last = b;
    bool over = false;
    for (int k = b; k < c->count; k++) {
        bool note = c->t[k].kind == NOTE;
        if (c->t[k].line && k > b && python_indent(c, k) < indent) {
            if (!note) break;
            over = true;
        }
        if (!note) over = false;
        if (!over) last = k;
    }
    return last;
}

static int python_step(Code *c, int i, Span *out) {
    if (!is(c, i, "def") || !word(c, i + 1) || c->t[i].up >= 0) return i + 1;
    int k = i + 2, first = is(c, i - 1, "async") && !c->t[i].line ? i - 1 : i;
    if (mark(c, k, '[')) k = past(c, k);
    k = k >= 0 && mark(c, k, '(') ? past(c, k) : -1;
    if (k >= 0 && both(c, k, '-', '>')) {
        for (k += 2; k >= 0 && k < c->count && !mark(c, k, ':') && !c->t[k].line;)
            k = opens(c, k) ? past(c, k) : k + 1;
    }
    if (k < 0 || !mark(c, k, ':')) return i + 1;
    int last = k, b = k + 1;
    for (; b < c->count && c->t[b].kind == NOTE; b++)
        if (!c->t[b].line) last = b;
    if (b < c->count && !c->t[b].line) {
        for (last = b; last + 1 < c->count && !c->t[last + 1].line;) last++;
    } else if (b < c->count && python_indent(c, b) > python_level(c, first)) {
        last = python_block(c, b);
    }
    found(c, first, last, out);
    return -1;
}

// ---------------------------------------------------------------------------

static const Language languages[] = {
    { "python", 0, 0, python_step },
    { "java", TRIPLE, 2, java_step },
    { "typescript", TEMPLATES, 0, ts_step },
    { "rust", NESTED | LIFETIMES | LONG_TEXT, 0, rust_step },
    { "cpp", DIRECTIVES | DIGIT_TICKS, 1, cpp_step },
    { "go", RAW_TICKS, 1, go_step },
    { "php", HASH | LONG_TEXT, 1, php_step },
};

// True and the bytes of the first function in s (n bytes); false if there is none or the language
// is unknown.
bool first_function(const char *lang, const char *s, size_t n, Span *out) {
    Code c = { .s = s, .n = n };
    for (size_t i = 0; i < COUNTOF(languages); i++)
        if (!strcmp(lang, languages[i].name)) c.lang = &languages[i];
    if (!c.lang || n > INT32_MAX / 2) return false;
    if (c.lang->step == python_step) lex_python(&c);
    else lex_braces(&c);
    pair_brackets(&c);
    int i = 0;
    while (i >= 0 && i < c.count) i = c.lang->step(&c, i, out);
    free(c.t);
    return i < 0;
}
