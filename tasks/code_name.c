// code_name.c - words: identifiers from roles and nouns, remarks, and synonyms for descriptions.
#include "code.h"
#include <ctype.h>
#include <strings.h>

EMBED(code_text_roles, "data/code/roles.txt");

// names that no variable may have: keywords and what the printed code calls
static const char *const reserved[] = {
    "abs",     "and",     "append",  "array",    "as",        "assert",  "async",   "auto",
    "await",   "bool",    "box",     "break",    "byte",      "case",    "catch",   "char",
    "chr",     "class",   "const",   "continue", "def",       "default", "del",     "do",
    "double",  "echo",    "elif",    "else",     "end",       "enum",    "except",  "export",
    "extern",  "finally", "global",  "nonlocal", "raise",     "false",   "final",   "float",
    "fn",      "for",     "from",    "func",     "function",  "go",      "goto",    "if",
    "impl",    "import",  "in",      "int",      "interface", "is",      "lambda",  "len",
    "let",     "list",    "long",    "loop",     "map",       "match",   "max",     "min",
    "mod",     "move",    "mut",     "new",      "nil",       "not",     "null",    "or",
    "ord",     "package", "pass",    "print",    "range",     "ref",     "return",  "self",
    "short",   "slices",  "sort",    "static",   "str",       "string",  "strings", "struct",
    "super",   "switch",  "this",    "throw",    "trait",     "true",    "try",     "type",
    "unicode", "union",   "use",     "var",      "vec",       "void",    "while",   "with",
    "xor",     "yield",   "strconv",
};

static bool is_reserved(const char *name) {
    for (size_t i = 0; i < COUNTOF(reserved); i++) if (!strcmp(reserved[i], name)) return true;
    return false;
}

// one of the words for a role; the role itself if the table lacks it
static void put_role(StrBuf *out, const char *base, Rng *rng) {
    size_t k = strlen(base);
    const char *p = code_text_roles_begin, *end = code_text_roles_end;
    while (p < end) {
        const char *e = (const char *)memchr(p, '\n', (size_t)(end - p));
        if (!e) e = end;
        if ((size_t)(e - p) > k && !memcmp(p, base, k) && p[k] == ' ') {
            const char *word[12];
            int n = 0;
            for (const char *q = p + k; q < e && n < 12; q++) if (*q == ' ') word[n++] = q + 1;
            const char *w = word[rng_below(rng, (uint64_t)n)];
            while (w < e && *w != ' ') str_add(out, w++, 1);
            return;
        }
        p = e + 1;
    }
    str_puts(out, base);
}

static const char *pick(const char *const *nouns, int n, Rng *rng) {
    return nouns[rng_below(rng, (uint64_t)n)];
}

static char *var_name(const CodeVar *v, const CodeStyle *s, const char *const theme[2],
                      const char *const *nouns, int n_nouns, Rng *rng) {
    StrBuf words = { 0 };
    int form = (int)rng_below(rng, 100);
    const char *noun = rng_below(rng, 3) ? theme[rng_below(rng, 2)] : pick(nouns, n_nouns, rng);
    if (form < (v->loops ? 30 : 12)) put_role(&words, v->base, rng);
    else if (form < 75) {
        str_fmt(&words, "%s_", noun);
        put_role(&words, v->base, rng);
    } else {
        put_role(&words, v->base, rng);
        str_fmt(&words, "_%s", noun);
    }
    char *name = code_case(words.p, s->snake, false);
    free(words.p);
    return name;
}

static char *arena_name(CodeFn *f, const char *name) {
    size_t n = strlen(name) + 1;
    CHECK(f->arena->n + n + 8 <= f->arena->cap, "code notation: too many names");
    char *p = f->arena->p + f->arena->n;
    f->arena->n += (n + 7) & ~(size_t)7;
    return (char *)memcpy(p, name, n);
}

static void fn_name(CodeFn *f, const CodeStyle *s, const char *const theme[2], Rng *rng) {
    static const char *const verb[] = { "compute", "find", "get",       "calc",  "derive",
                                        "resolve", "eval", "determine", "fetch", "build" };
    static const char *const link[] = { "for", "of", "in", "by", "on", "at", "from", "per" };
    const CodeEntry *e = f->entry;
    const char *stem = e->names, *end = e->names + e->names_n;
    const char *second = (const char *)memchr(stem, ' ', (size_t)(end - stem)) + 1;
    if (second < end && rng_below(rng, 2)) stem = second;
    int n = 0;
    while (stem + n < end && stem[n] != ' ') n++;
    StrBuf words = { 0 };
    switch (rng_below(rng, 5)) {
    case 0: str_fmt(&words, "%.*s_%s", n, stem, theme[0]); break;
    case 1: str_fmt(&words, "%s_%.*s", theme[0], n, stem); break;
    case 2:
        str_fmt(&words, "%s_%s_%.*s", verb[rng_below(rng, COUNTOF(verb))], theme[0], n, stem);
        break;
    case 3:
        str_fmt(&words, "%.*s_%s_%s", n, stem, link[rng_below(rng, COUNTOF(link))], theme[0]);
        break;
    default: str_fmt(&words, "%s_%s_%.*s", theme[0], theme[1], n, stem);
    }
    char *name = code_case(words.p, s->snake, s->capital);
    f->name = arena_name(f, name);
    free(name);
    free(words.p);
}

static void note_text(CodeFn *f, Node *note, const char *const *nouns, int n_nouns) {
    static const char *const form[] = {
        "same rule as in the %s %s",
        "the %s team asked for the %s case",
        "%s before %s, as agreed",
        "see the %s notes on %s",
        "kept simple for the %s %s",
        "mirrors what the %s does with its %s",
        "%s first, then the %s",
        "needed since the %s release of %s",
        "the %s side relies on %s here",
        "cheap enough for %s and %s",
        "order matters to the %s and the %s",
        "watch the %s when %s changes",
        "no %s without a %s",
        "ported from %s to %s",
        "tuned on the %s set of the %s",
        "%s may be empty, %s may not",
        "as the %s expects from a %s",
        "twin of the step in %s and %s",
    };
    Rng rng = { (uint64_t)note->value };
    StrBuf t = { 0 };
    const char *f0 = form[rng_below(&rng, COUNTOF(form))];
    const char *a = pick(nouns, n_nouns, &rng), *b = pick(nouns, n_nouns, &rng);
    for (const char *p = f0; *p; p++)
        if (*p == '%') {
            str_puts(&t, a);
            a = b;
            p++;
        } else str_add(&t, p, 1);
    note->text = arena_name(f, t.p);
    free(t.p);
}

static void name_notes(CodeFn *f, Node *s, const char *const *nouns, int n_nouns) {
    for (; s; s = s->next) {
        if (s->kind == S_NOTE) note_text(f, s, nouns, n_nouns);
        if (s->kind == S_IF) name_notes(f, s->b, nouns, n_nouns);
        if (s->kind >= S_IF && s->kind <= S_EACH) name_notes(f, s->c, nouns, n_nouns);
    }
}

void code_name(CodeFn *f, const CodeStyle *s, const char *const *nouns, int n_nouns, Rng *rng) {
    const char *theme[2] = { pick(nouns, n_nouns, rng), pick(nouns, n_nouns, rng) };
    fn_name(f, s, theme, rng);
    for (int i = 0; i < f->n_vars; i++) {
        for (int tries = 0; ; tries++) {
            char *name = var_name(&f->var[i], s, theme, nouns, n_nouns, rng);
            bool taken = is_reserved(name) || !strcmp(name, f->name);
            for (int j = 0; j < i && !taken; j++) taken = !strcmp(name, f->var[j].name);
            if (!taken) f->var[i].name = arena_name(f, name);
            free(name);
            if (!taken) break;
            CHECK(tries < 1000, "code notation: no free identifier for '%s'", f->var[i].base);
        }
    }
    name_notes(f, f->body, nouns, n_nouns);
}

// ---------------------------------------------------------------------------
// Descriptions

// groups of words that may stand for each other; '|' between them, the grammar stays
static const char *const synonyms[] = {
    "whole numbers|integers", "a whole number|an integer", "biggest|greatest|largest",
    "smallest|least|lowest", "counts|tallies", "finds|determines|works out|looks for",
    "tells|reports|says", "decides whether|checks whether|tests whether",
    "measures|quantifies|gauges", "computes|calculates|works out", "adds up|sums up|totals",
    "list|sequence", "a text|a string", "the text|the string", "entries|elements|items",
    "entry|element|item", "characters|symbols", "one by one|in turn", "true if|yes if|true when",
    "from left to right|from first to last|from front to back", "remembers|keeps|holds on to",
    "position|spot", "keeps|maintains|holds", "compares|contrasts",
    "goes over|runs through|passes over", "until|up to the moment when",
    "neighbours|adjacent ones", "neighbouring|adjacent", "that number|this number",
    "that value|this value", "the result|the outcome", "zero for|nought for",
    "minus one|negative one", "the number of|how many there are of",
    "returned|handed back|given back", "several|many", "replaces|substitutes",
    "produces|creates|makes", "joins|connects|puts together", "for each|for every",
    "of each|of every", "rounded down|cut to whole units", "bigger|larger|greater",
    "smaller|lesser", "separated by|divided by", "shows|displays", "hides|conceals",
    "reads|scans", "writes|puts down", "two lists|a pair of lists", "two texts|a pair of texts",
    "equal|identical", "thrown away|discarded|ignored", "dropped|removed|left aside",
    "skipped|passed over", "at once|immediately|right away",
    "beforehand|before that|as a preparation", "the answer|the reply",
    "the value found|the value obtained", "converts|translates",
    "simulates|plays through|acts out", "flag|marker", "lengths|sizes", "distance|gap",
    "whichever is|the one that is", "the amount|the quantity",
};

static size_t phrase_at(const char *t, const char *p, size_t n) {
    if (strncasecmp(t, p, n) || isalnum((unsigned char)t[n]) || t[n] == '-') return 0;
    return n;
}

// the group with the longest phrase at t; 0: none
static size_t group_at(const char *t, int *group) {
    size_t best = 0;
    for (size_t g = 0; g < COUNTOF(synonyms); g++)
        for (const char *p = synonyms[g]; *p; ) {
            size_t n = strcspn(p, "|");
            if (phrase_at(t, p, n) > best) {
                best = n;
                *group = (int)g;
            }
            p += n + (p[n] == '|');
        }
    return best;
}

void code_rephrase(StrBuf *out, const char *text, Rng *rng) {
    for (const char *t = text; *t; ) {
        int g = 0;
        bool word = t == text || (!isalnum((unsigned char)t[-1]) && t[-1] != '\'' && t[-1] != '-');
        size_t n = word ? group_at(t, &g) : 0;
        if (!n) {
            str_add(out, t++, 1);
            continue;
        }
        const char *p = synonyms[g];
        int many = 1;
        for (const char *q = p; *q; q++) many += *q == '|';
        for (int k = (int)rng_below(rng, (uint64_t)many); k > 0; k--) p = strchr(p, '|') + 1;
        size_t from = out->n;
        str_add(out, p, strcspn(p, "|"));
        if (isupper((unsigned char)*t)) out->p[from] = (char)toupper((unsigned char)out->p[from]);
        t += n;
    }
}
