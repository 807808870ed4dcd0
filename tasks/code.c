// code.c - the notation of data/code/*.txt: entries, constants, modifiers, parser, variations.
//
// An entry:
//     @ widest_jump steepest_gap (xs:L k:i) i $a=3..20 $o=>~largest|<~smallest [plain]
//     1 purpose   2 input   3 output   4 procedure (one line each)
//     statements: x = e, x += e, xs[i] = e, if e { } elif e { } else { }, while e { },
//                 for i in a..b [by k] { }, for i in a downto b { }, for x in xs { },
//                 return e, push(xs, e) ..
//     ? [3, 9, 1], 4 = 8
// Types: i integer, b truth value, c character, s text, L integers, S texts, G rows of integers.
// $a is drawn from a range, $o from options "code~words~other words" ($o, $o2 name the words in the
// description). "plain" entries get no change of their input.
#include "code.h"
#include <ctype.h>

EMBED(code_text_lists, "data/code/lists.txt");
EMBED(code_text_numbers, "data/code/numbers.txt");
EMBED(code_text_strings, "data/code/strings.txt");
EMBED(code_text_grids, "data/code/grids.txt");
EMBED(code_text_worlds, "data/code/worlds.txt");


enum { MAX_ENTRIES = 400 };

static bool is_word(int c) { return isalnum((unsigned char)c) || c == '_'; }

const char *code_lang_name(CodeLang lang) {
    static const char *const name[N_LANGS] = { "python", "cpp", "java",      "php",
                                               "rust",   "go",  "typescript" };
    return name[lang];
}

// ---------------------------------------------------------------------------
// Entries

static CodeType type_of_letter(char c) {
    static const char letters[] = "ibcsLSG";
    const char *at = strchr(letters, c);
    return c && at ? (CodeType)(T_INT + (at - letters)) : T_NONE;
}

static const char *line_end(const char *p, const char *end) {
    const char *e = (const char *)memchr(p, '\n', (size_t)(end - p));
    return e ? e : end;
}

// "(xs:L k:i) i $a=3..20 plain" between p and end
static void entry_head(CodeEntry *e, const char *p, const char *end) {
    for (p++; *p != ')' && p < end; ) {
        if (*p == ' ') { p++; continue; }
        char *name = e->param[e->n_params];
        int n = 0;
        while (is_word(*p) && n < 23) name[n++] = *p++;
        CHECK(*p == ':' && e->n_params < MAX_ENTRY_PARAMS,
              "code corpus: bad parameter near '%.30s'", p);
        e->type[e->n_params++] = type_of_letter(p[1]);
        p += 2;
    }
    for (p++; *p == ' '; p++) ;
    e->ret = type_of_letter(*p++);
    while (p < end) {
        if (*p == ' ') { p++; continue; }
        const char *q = p;
        while (q < end && *q != ' ') q++;
        if (*p == '$') {
            CHECK(e->n_konst < MAX_ENTRY_CONSTS, "code corpus: too many constants near '%.30s'", p);
            CodeConst *k = &e->konst[e->n_konst++];
            k->letter = p[1];
            k->options = p + 3;
            k->n_options = (int)(q - p - 3);
            k->range = sscanf(p + 3, "%d..%d", &k->lo, &k->hi) == 2;
        } else {
            e->plain = q - p == 5 && !memcmp(p, "plain", 5);
        }
        p = q;
    }
}

static int parse_corpus(CodeEntry *all, int n, const char *p, const char *end) {
    while (p < end) {
        const char *e = line_end(p, end);
        if (*p == '@') {
            CHECK(n < MAX_ENTRIES, "code corpus: more than %d entries", MAX_ENTRIES);
            CodeEntry *t = &all[n++];
            memset(t, 0, sizeof *t);
            t->names = p + 2;
            t->sig = (const char *)memchr(p, '(', (size_t)(e - p));
            CHECK(t->sig, "code corpus: no parameters near '%.30s'", p);
            t->names_n = (size_t)(t->sig - t->names);
            entry_head(t, t->sig, e);
            for (int i = 0; i < 4; i++) {
                p = e + 1;
                e = line_end(p, end);
                CHECK(p[0] == '1' + i && p[1] == ' ', "code corpus: part %d missing near '%.40s'",
                      i + 1, p);
                t->part[i] = p + 2;
                t->part_n[i] = (size_t)(e - p - 2);
            }
            t->body = e + 1;
        } else if (n > 0 && *p == '?') {
            if (!all[n - 1].tests) all[n - 1].tests = p;
        } else if (n > 0 && *p != '#') {
            CHECK(!all[n - 1].tests || p == e, "code corpus: text after tests near '%.40s'", p);
            if (!all[n - 1].tests) all[n - 1].body_n = (size_t)(e - all[n - 1].body);
        }
        p = e + 1;
    }
    return n;
}

typedef struct { CodeEntry e[MAX_ENTRIES]; int n; } Corpus;
static Corpus corpus;
__attribute__((constructor))
static void corpus_load(void) {
    int n = 0;
    n = parse_corpus(corpus.e, n, code_text_lists_begin, code_text_lists_end);
    n = parse_corpus(corpus.e, n, code_text_numbers_begin, code_text_numbers_end);
    n = parse_corpus(corpus.e, n, code_text_strings_begin, code_text_strings_end);
    n = parse_corpus(corpus.e, n, code_text_grids_begin, code_text_grids_end);
    corpus.n = parse_corpus(corpus.e, n, code_text_worlds_begin, code_text_worlds_end);
}

int code_n_entries(void) { return corpus.n; }
const CodeEntry *code_entry(int i) { return i >= 0 && i < corpus.n ? &corpus.e[i] : NULL; }

// ---------------------------------------------------------------------------
// Drafts: constants drawn, modifiers written into the notation and the description

void code_number(StrBuf *out, int n) {
    static const char *const small[] = {
        "zero",     "one",     "two",     "three",     "four",     "five",    "six",
        "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",  "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"
    };
    static const char *const tens[] = { "",      "",      "twenty",  "thirty", "forty",
                                        "fifty", "sixty", "seventy", "eighty", "ninety" };
    if (n >= 100) {
        str_fmt(out, "%s hundred", small[n / 100 % 10]);
        if (n % 100 == 0) return;
        str_puts(out, " and ");
        n %= 100;
    }
    if (n < 20) str_puts(out, small[n]);
    else if (n % 10 == 0) str_puts(out, tens[n / 10]);
    else str_fmt(out, "%s-%s", tens[n / 10], small[n % 10]);
}

typedef enum { MOD_PRE, MOD_POST, MOD_GUARD } ModKind;
// in code and words: $c, $d numbers, $q, $r letters; in code: @ the parameter, ~ its replacement,
// ^ the returned expression
typedef struct {
    ModKind kind;
    char param, ret;                    // types it fits; 0: any
    int lo, hi;                         // of $c; 0: none
    const char *code, *words;
} CodeMod;

static const CodeMod mods[] = {
    { MOD_PRE, 'L', 0, 3, 60, "~ = []; for zitem in @ { if zitem > $c { push(~, zitem) } }",
      "Entries that are not above $c are thrown away first." },
    { MOD_PRE, 'L', 0, 20, 99, "~ = []; for zitem in @ { if zitem < $c { push(~, zitem) } }",
      "Entries of $c and more are dropped at the start." },
    { MOD_PRE, 'L', 0, 3, 90, "~ = []; for zitem in @ { push(~, zitem + $c) }",
      "Beforehand every entry is raised by $c." },
    { MOD_PRE, 'L', 0, 3, 90, "~ = []; for zitem in @ { push(~, zitem - $c) }",
      "Beforehand $c is taken off every entry." },
    { MOD_PRE, 'L', 0, 3, 40, "~ = []; for zitem in @ { push(~, zitem * $c) }",
      "Each entry counts $c times its size." },
    { MOD_PRE, 'L', 0, 3, 19, "~ = []; for zitem in @ { if zitem % $c != 0 { push(~, zitem) } }",
      "Multiples of $c are left out from the start." },
    { MOD_PRE, 'L', 0, 3, 9, "~ = []; for zat in 0..len(@) by $c { push(~, @[zat]) }",
      "Only entries at positions divisible by $c, counted from zero, take part." },
    { MOD_PRE, 'L', 0, 3, 12, "~ = []; for zat in $c..len(@) { push(~, @[zat]) }",
      "The leading $c entries are skipped." },
    { MOD_PRE, 'L', 0, 5, 60, "~ = []; for zat in 0..min(len(@), $c) { push(~, @[zat]) }",
      "Nothing behind the first $c entries is looked at." },
    { MOD_PRE, 'L', 0, 3, 90, "~ = copy(@); push(~, $c)",
      "The number $c is added as an extra last entry before the work begins." },
    { MOD_PRE, 'L', 0, 3, 90, "~ = []; for zitem in @ { push(~, abs(zitem - $c)) }",
      "Each entry is first replaced by its distance from $c." },
    { MOD_PRE, 'L', 0, 9, 99, "~ = []; for zitem in @ { push(~, min(zitem, $c)) }",
      "Entries beyond $c are first lowered to $c." },
    { MOD_PRE, 'L', 0, 3, 60, "~ = []; for zitem in @ { push(~, max(zitem, $c)) }",
      "Entries short of $c are first lifted to $c." },
    { MOD_PRE, 'L', 0, 0, 0, "~ = []; for zat in len(@) - 1 downto 0 { push(~, @[zat]) }",
      "The entries are taken in backward order." },
    { MOD_PRE, 's', 0, 0, 0, "~ = \"\"; for zch in @ { if zch != '$q' { ~ += zch } }",
      "The letter '$q' is ignored wherever it stands." },
    { MOD_PRE, 's', 0, 0, 0,
      "~ = \"\"; for zch in @ { if zch == '$q' { ~ += '$r' } else { ~ += zch } }",
      "Each letter '$q' is first read as '$r'." },
    { MOD_PRE, 's', 0, 5, 70, "~ = \"\"; for zat in 0..min(len(@), $c) { ~ += @[zat] }",
      "Nothing behind the first $c characters is looked at." },
    { MOD_PRE, 's', 0, 3, 12, "~ = \"\"; for zat in $c..len(@) { ~ += @[zat] }",
      "The leading $c characters are skipped." },
    { MOD_PRE, 's', 0, 0, 0, "~ = @ + \"$q$r\"",
      "The letters '$q' and '$r' are put behind the text before the work begins." },
    { MOD_PRE, 'i', 0, 3, 90, "~ = @ + $c", "The first number is raised by $c beforehand." },
    { MOD_PRE, 'i', 0, 3, 40, "~ = @ * $c", "The first number counts $c times its size." },
    { MOD_PRE, 'i', 0, 100, 990, "~ = @ % $c",
      "Of the first number only the remainder after division by $c is used." },
    { MOD_PRE, 'i', 0, 3, 40, "~ = max(@, $c)", "A first number short of $c is lifted to $c." },
    { MOD_PRE, 'i', 0, 50, 990, "~ = min(@, $c)", "A first number beyond $c is lowered to $c." },
    { MOD_PRE, 'i', 0, 3, 90, "~ = abs(@ - $c)",
      "The first number is replaced by its distance from $c." },
    { MOD_POST, 0, 'i', 3, 90, "zres = ^; return zres * $c",
      "The value found is multiplied by $c at the end." },
    { MOD_POST, 0, 'i', 3, 90, "zres = ^; return zres + $c",
      "At the end $c is added to the value found." },
    { MOD_POST, 0, 'i', 3, 90, "zres = ^; return zres - $c",
      "At the end $c is subtracted from the value found." },
    { MOD_POST, 0, 'i', 5, 400, "zres = ^; return zres % $c",
      "Only the remainder of the value found after division by $c is handed back." },
    { MOD_POST, 0, 'i', 9, 400, "zres = ^; if zres > $c { return $c }; return zres",
      "The answer never exceeds $c; what would be more is cut to it." },
    { MOD_POST, 0, 'i', 3, 60, "zres = ^; if zres < $c { return $c }; return zres",
      "The answer is never less than $c." },
    { MOD_POST, 0, 'i', 3, 90, "return abs($c - (^))",
      "What comes back is how far the value found lies from $c." },
    { MOD_POST, 0, 'b', 0, 0, "return not (^)",
      "Finally the verdict is turned into its opposite." },
    { MOD_POST, 0, 's', 0, 0, "zres = ^; zres += \"$q$r\"; return zres",
      "The letters '$q' and '$r' are appended to what is handed back." },
    { MOD_POST, 0, 's', 0, 0, "return \"$q$r\" + (^)",
      "What is handed back begins with the extra letters '$q' and '$r'." },
    { MOD_POST, 0, 'L', 3, 90, "zres = ^; push(zres, $c); return zres",
      "The number $c is appended to the finished list." },
    { MOD_POST, 0, 'L', 3, 90,
      "zres = ^; for zat in 0..len(zres) { zres[zat] += $c }; return zres",
      "Every number of the finished list is raised by $c." },
    { MOD_POST, 0, 'L', 3, 60,
      "zres = ^; for zat in 0..len(zres) { zres[zat] *= $c }; return zres",
      "Every number of the finished list is multiplied by $c." },
    { MOD_GUARD, 'L', 'i', 3, 12, "if len(@) < $c { return $d }",
      "With fewer than $c entries the answer is $d at once." },
    { MOD_GUARD, 'L', 'b', 3, 12, "if len(@) < $c { return false }",
      "With fewer than $c entries the verdict is no at once." },
    { MOD_GUARD, 'L', 'b', 13, 60, "if len(@) > $c { return true }",
      "With more than $c entries the verdict is yes at once." },
    { MOD_GUARD, 'L', 'L', 3, 12, "if len(@) < $c { return [$d] }",
      "With fewer than $c entries the answer is a list holding $d alone." },
    { MOD_GUARD, 'L', 's', 3, 12, "if len(@) < $c { return \"$q$r\" }",
      "With fewer than $c entries the answer is the text '$q$r'." },
    { MOD_GUARD, 's', 'i', 3, 12, "if len(@) < $c { return $d }",
      "Texts shorter than $c characters give $d at once." },
    { MOD_GUARD, 's', 'b', 3, 12, "if len(@) < $c { return false }",
      "Texts shorter than $c characters give no at once." },
    { MOD_GUARD, 's', 'b', 20, 80, "if len(@) > $c { return true }",
      "Texts longer than $c characters give yes at once." },
    { MOD_GUARD, 's', 's', 3, 12, "if len(@) < $c { return \"$q$r\" }",
      "Texts shorter than $c characters give '$q$r' at once." },
    { MOD_GUARD, 's', 'L', 3, 12, "if len(@) < $c { return [$d] }",
      "Texts shorter than $c characters give a list holding $d alone." },
    { MOD_GUARD, 'i', 'i', 100, 990, "if @ > $c { return $d }",
      "A first number above $c gives $d at once." },
    { MOD_GUARD, 'i', 'b', 100, 990, "if @ > $c { return false }",
      "A first number above $c gives no at once." },
    { MOD_GUARD, 'i', 'L', 100, 990, "if @ > $c { return [$d] }",
      "A first number above $c gives a list holding $d alone." },
    { MOD_GUARD, 'i', 's', 100, 990, "if @ > $c { return \"$q$r\" }",
      "A first number above $c gives the text '$q$r' at once." },
    { MOD_GUARD, 'G', 'i', 5, 40, "if len(@) > $c { return $d }",
      "More than $c rows give $d at once." },
    { MOD_GUARD, 'G', 'b', 5, 40, "if len(@) > $c { return false }",
      "More than $c rows give no at once." },
    { MOD_GUARD, 'G', 'L', 5, 40, "if len(@) > $c { return [$d] }",
      "More than $c rows give a list holding $d alone." },
    { MOD_GUARD, 'S', 'i', 3, 40, "if len(@) > $c { return $d }",
      "More than $c texts give $d at once." },
    { MOD_GUARD, 'S', 's', 3, 40, "if len(@) > $c { return \"$q$r\" }",
      "More than $c texts give '$q$r' at once." },
};

typedef struct { long num[12]; int n; char q, r; int c, d; } ModDraw;

// copies text with $c $d $q $r replaced, numbers in words where the text is prose
static void put_drawn(StrBuf *out, const char *t, const ModDraw *m, bool prose) {
    for (; *t; t++) {
        if (*t != '$') { str_add(out, t, 1); continue; }
        t++;
        if (*t == 'q' || *t == 'r') str_add(out, *t == 'q' ? &m->q : &m->r, 1);
        else if (prose) code_number(out, *t == 'c' ? m->c : m->d);
        else str_fmt(out, "%d", *t == 'c' ? m->c : m->d);
    }
}

// draws what the modifier's text mentions and notes it for the key
static void mod_draw(const CodeMod *m, ModDraw *d, Rng *rng) {
    d->c = m->hi ? m->lo + (int)rng_below(rng, (uint64_t)(m->hi - m->lo + 1)) : 0;
    d->d = 13 + (int)rng_below(rng, 80);
    d->q = (char)('a' + rng_below(rng, 26));
    d->r = (char)('a' + (d->q - 'a' + 1 + (int)rng_below(rng, 25)) % 26);
    if (m->hi) d->num[d->n++] = d->c;
    if (strstr(m->code, "$d")) d->num[d->n++] = d->d;
    if (strstr(m->code, "$q")) d->num[d->n++] = 1000 + d->q;
    if (strstr(m->code, "$r")) d->num[d->n++] = 1000 + d->r;
}

// text with every word `from` outside quotes replaced by `to`
static void put_renamed(StrBuf *out, const char *t, size_t n, const char *from, const char *to) {
    size_t k = strlen(from);
    char quote = 0;
    for (size_t i = 0; i < n; ) {
        if (!quote && i + k <= n && !memcmp(t + i, from, k) && (i == 0 || !is_word(t[i - 1])) &&
            (i + k == n || !is_word(t[i + k]))) {
            str_puts(out, to);
            i += k;
            continue;
        }
        if (quote ? t[i] == quote : t[i] == '\'' || t[i] == '"') quote = quote ? 0 : t[i];
        str_add(out, t + i++, 1);
    }
}

// every "return e" becomes the modifier's code with ^ = e
static void put_returns(StrBuf *out, const char *t, size_t n, const char *code) {
    for (size_t i = 0; i < n; ) {
        if (n - i < 7 || memcmp(t + i, "return ", 7) || (i && is_word(t[i - 1]))) {
            str_add(out, t + i++, 1);
            continue;
        }
        size_t from = i += 7;
        char quote = 0;
        int depth = 0;
        for (; i < n && (quote || depth || !strchr(";\n}", t[i])); i++) {
            if (quote) { if (t[i] == quote) quote = 0; }
            else if (t[i] == '\'' || t[i] == '"') quote = t[i];
            else depth += (t[i] == '(' || t[i] == '[') - (t[i] == ')' || t[i] == ']');
        }
        while (i > from && t[i - 1] == ' ') i--;
        for (const char *c = code; *c; c++)
            if (*c == '^') str_add(out, t + from, i - from);
            else str_add(out, c, 1);
    }
}

// option j of "a~x|b~y": piece 0 the code, 1.. the words (the last given one if there are fewer)
static void put_option(StrBuf *out, const CodeConst *k, int j, int piece) {
    bool prose = piece > 0;
    const char *p = k->options, *end = p + k->n_options;
    for (; j > 0; j--) p = (const char *)memchr(p, '|', (size_t)(end - p)) + 1;
    const char *stop = (const char *)memchr(p, '|', (size_t)(end - p));
    if (!stop) stop = end;
    for (; piece > 0; piece--) {
        const char *q = (const char *)memchr(p, '~', (size_t)(stop - p));
        if (!q) break;
        p = q + 1;
    }
    const char *q = (const char *)memchr(p, '~', (size_t)(stop - p));
    for (const char *e = q ? q : stop; p < e; p++) str_add(out, prose && *p == '_' ? " " : p, 1);
}

static void put_consts(StrBuf *out, const char *t, size_t n, const CodeEntry *e, const int *drawn,
                       bool prose) {
    for (size_t i = 0; i < n; i++) {
        int at = -1;
        if (t[i] == '$' && i + 1 < n)
            for (int k = 0; k < e->n_konst; k++) if (e->konst[k].letter == t[i + 1]) at = k;
        if (at < 0) { str_add(out, t + i, 1); continue; }
        i++;
        if (e->konst[at].range) {
            if (prose) code_number(out, drawn[at]);
            else str_fmt(out, "%d", drawn[at]);
        } else {
            int piece = prose;
            if (prose && i + 1 < n && isdigit((unsigned char)t[i + 1])) piece = t[++i] - '0';
            put_option(out, &e->konst[at], drawn[at], piece);
        }
    }
}

static void sentence(StrBuf *part, const char *words, const ModDraw *d) {
    str_puts(part, " ");
    put_drawn(part, words, d, true);
}

static char type_letter(CodeType t) { return "?ibcsLSG??"[t]; }

// applies one modifier to the draft; false if it does not fit the entry
static bool mod_apply(CodeDraft *d, const CodeMod *m, ModDraw *draw, Rng *rng) {
    const CodeEntry *e = d->entry;
    if (m->ret && m->ret != type_letter(e->ret)) return false;
    if (m->kind == MOD_PRE && e->plain) return false;
    if (m->param && (!e->n_params || type_letter(e->type[0]) != m->param)) return false;
    mod_draw(m, draw, rng);
    StrBuf code = { 0 }, body = { 0 };
    put_drawn(&code, m->code, draw, false);
    if (m->kind == MOD_POST) {
        put_returns(&body, d->body.p, d->body.n, code.p);
        sentence(&d->part[2], m->words, draw);
    } else {
        const char *fresh = m->param == 'L' ? "zkept" : m->param == 's' ? "ztext" : "znum";
        for (const char *c = code.p; *c; c++)
            if (*c == '@') str_puts(&body, e->param[0]);
            else if (*c == '~') str_puts(&body, fresh);
            else str_add(&body, c, 1);
        str_puts(&body, "\n");
        if (m->kind == MOD_PRE) put_renamed(&body, d->body.p, d->body.n, e->param[0], fresh);
        else str_add(&body, d->body.p, d->body.n);
        sentence(&d->part[m->kind == MOD_GUARD ? 3 : rng_below(rng, 2) ? 1 : 3], m->words, draw);
    }
    free(code.p);
    free(d->body.p);
    d->body = body;
    return true;
}

void code_draft(CodeDraft *d, const CodeEntry *e, Rng *rng, int n_mods) {
    int drawn[MAX_ENTRY_CONSTS] = { 0 };
    ModDraw draw = { 0 };
    memset(d, 0, sizeof *d);
    d->entry = e;
    for (int k = 0; k < e->n_konst; k++) {
        const CodeConst *c = &e->konst[k];
        int n = 1;
        for (int i = 0; i < c->n_options; i++) n += c->options[i] == '|';
        drawn[k] = c->range ? c->lo + (int)rng_below(rng, (uint64_t)(c->hi - c->lo + 1))
                            : (int)rng_below(rng, (uint64_t)n);
        if (c->range) draw.num[draw.n++] = drawn[k];
    }
    put_consts(&d->body, e->body, e->body_n, e, drawn, false);
    for (int i = 0; i < 4; i++) put_consts(&d->part[i], e->part[i], e->part_n[i], e, drawn, true);
    // the order matters: results are changed in the entry's own returns, guards come before all
    bool want[3] = { false, false, false };
    for (int i = 0; i < n_mods; i++) want[rng_below(rng, 3)] = true;
    static const ModKind order[3] = { MOD_POST, MOD_PRE, MOD_GUARD };
    for (int k = 0; k < 3; k++) {
        if (!want[k]) continue;
        for (int tries = 0; tries < 400; tries++) {
            const CodeMod *m = &mods[rng_below(rng, COUNTOF(mods))];
            if (m->kind == order[k] && mod_apply(d, m, &draw, rng)) break;
        }
    }
    for (int i = 1; i < draw.n; i++)
        for (int j = i; j > 0 && draw.num[j - 1] > draw.num[j]; j--) {
            long t = draw.num[j];
            draw.num[j] = draw.num[j - 1];
            draw.num[j - 1] = t;
        }
    d->key = mix64((uint64_t)(e - corpus.e));
    for (int i = 0; i < draw.n; i++) d->key = mix64(d->key + (uint64_t)draw.num[i]);
}

void code_draft_free(CodeDraft *d) {
    free(d->body.p);
    for (int i = 0; i < 4; i++) free(d->part[i].p);
    memset(d, 0, sizeof *d);
}

// ---------------------------------------------------------------------------
// Parser: recursive descent, one token of lookahead in the text itself

typedef struct { const char *p, *end; CodeFn *f; } Parser;

static void *arena_take(CodeArena *a, size_t n) {
    n = (n + 7) & ~(size_t)7;
    CHECK(a->n + n <= a->cap, "code notation: tree larger than %zu bytes", a->cap);
    void *p = a->p + a->n;
    a->n += n;
    return memset(p, 0, n);
}

static Node *node(CodeFn *f, NodeKind kind, Node *a, Node *b) {
    Node *n = (Node *)arena_take(f->arena, sizeof *n);
    n->kind = kind;
    n->a = a;
    n->b = b;
    n->var = -1;
    return n;
}

static int var_find(const CodeFn *f, const char *name, size_t n) {
    for (int i = 0; i < f->n_vars; i++)
        if (strlen(f->var[i].base) == n && !memcmp(f->var[i].base, name, n)) return i;
    return -1;
}

static int var_add(CodeFn *f, const char *name, size_t n, CodeType type, bool param) {
    int at = var_find(f, name, n);
    if (at >= 0) {
        if (f->var[at].type != type) f->fault = "a variable changes its type";
        return at;
    }
    CHECK(f->n_vars < MAX_VARS && n < sizeof f->var[0].base, "code notation: too many variables");
    CodeVar *v = &f->var[f->n_vars];
    memset(v, 0, sizeof *v);
    memcpy(v->base, name, n);
    v->type = type;
    v->param = param;
    return f->n_vars++;
}

static Node *fault(Parser *p, const char *why) {
    if (!p->f->fault) p->f->fault = why;
    p->p = p->end;
    return node(p->f, E_INT, NULL, NULL);
}

static void skip(Parser *p) {
    while (p->p < p->end && (isspace((unsigned char)*p->p) || *p->p == ';')) p->p++;
}
static bool eat(Parser *p, const char *t) {
    skip(p);
    size_t n = strlen(t);
    if ((size_t)(p->end - p->p) < n || memcmp(p->p, t, n)) return false;
    if (is_word(t[0]) && p->p + n < p->end && is_word(p->p[n])) return false;
    p->p += n;
    return true;
}
static size_t word_at(Parser *p) {
    skip(p);
    const char *q = p->p;
    while (q < p->end && is_word(*q)) q++;
    return (size_t)(q - p->p);
}

static const struct { const char *name; CodeBuiltin f; CodeType type;
} builtins[] = {
    { "len", F_LEN, T_INT },          { "abs", F_ABS, T_INT },
    { "min", F_MIN, T_INT },          { "max", F_MAX, T_INT },
    { "ord", F_ORD, T_INT },          { "chr", F_CHR, T_CHAR },
    { "digit", F_DIGIT, T_INT },      { "str", F_STR, T_STR },
    { "isdigit", F_ISDIGIT, T_BOOL }, { "isalpha", F_ISALPHA, T_BOOL },
    { "isupper", F_ISUPPER, T_BOOL }, { "islower", F_ISLOWER, T_BOOL },
    { "lower", F_LOWER, T_NONE },     { "upper", F_UPPER, T_NONE },
    { "has", F_HAS, T_BOOL },         { "contains", F_CONTAINS, T_BOOL },
    { "copy", F_COPY, T_LIST },       { "last", F_LAST, T_NONE },
    { "fill", F_FILL, T_LIST },       { "maxof", F_MAXOF, T_INT },
    { "minof", F_MINOF, T_INT },      { "map", F_MAP, T_MAP },
    { "smap", F_SMAP, T_SMAP },       { "strs", F_STRS, T_STRS },
    { "grid", F_GRID, T_GRID },       { "get", F_GET, T_INT },
    { "push", F_PUSH, T_NONE },       { "put", F_PUT, T_NONE },
    { "inc", F_INC, T_NONE },         { "sort", F_SORT, T_NONE },
    { "swap", F_SWAP, T_NONE },       { "drop", F_DROP, T_NONE },
};

static CodeType element(CodeType t) {
    return t == T_STR    ? T_CHAR
           : t == T_LIST ? T_INT
           : t == T_STRS ? T_STR
           : t == T_GRID ? T_LIST
                         : T_NONE;
}

static Node *expr(Parser *p, int level);

static Node *args(Parser *p, const char *close) {
    Node *first = NULL, **tail = &first;
    if (eat(p, close)) return NULL;
    do {
        *tail = expr(p, 0);
        tail = &(*tail)->next;
    } while (eat(p, ","));
    if (!eat(p, close)) fault(p, "a closing bracket is missing");
    return first;
}

static Node *call(Parser *p, size_t n) {
    for (size_t i = 0; i < COUNTOF(builtins); i++) {
        if (strlen(builtins[i].name) != n || memcmp(builtins[i].name, p->p, n)) continue;
        p->p += n + 1;
        Node *c = node(p->f, E_CALL, args(p, ")"), NULL);
        c->op = builtins[i].f;
        c->type = builtins[i].type;
        if (c->op == F_LAST && c->a) c->type = element(c->a->type);
        if (c->op == F_LOWER || c->op == F_UPPER) c->type = T_CHAR;
        if (!c->a && c->op != F_MAP && c->op != F_SMAP && c->op != F_STRS && c->op != F_GRID)
            return fault(p, "a function is called without arguments");
        return c;
    }
    return fault(p, "an unknown function is called");
}

static char *arena_text(CodeFn *f, const char *s, size_t n) {
    char *t = (char *)arena_take(f->arena, n + 1);
    memcpy(t, s, n);
    return t;
}

static Node *primary(Parser *p) {
    size_t n = word_at(p);
    if (p->p >= p->end) return fault(p, "the text ends in an expression");
    char c = *p->p;
    Node *e;
    if (isdigit((unsigned char)c)) {
        e = node(p->f, E_INT, NULL, NULL);
        e->type = T_INT;
        e->value = strtol(p->p, NULL, 10);
        while (isdigit((unsigned char)*p->p)) p->p++;
        return e;
    }
    if (c == '\'') {
        e = node(p->f, E_CHAR, NULL, NULL);
        e->type = T_CHAR;
        e->value = p->p[1];
        if (p->p[2] != '\'') return fault(p, "a character is not closed");
        p->p += 3;
        return e;
    }
    if (c == '"') {
        const char *q = (const char *)memchr(p->p + 1, '"', (size_t)(p->end - p->p - 1));
        if (!q) return fault(p, "a text is not closed");
        e = node(p->f, E_STR, NULL, NULL);
        e->type = T_STR;
        e->text = arena_text(p->f, p->p + 1, (size_t)(q - p->p - 1));
        p->p = q + 1;
        return e;
    }
    if (eat(p, "(")) {
        e = expr(p, 0);
        return eat(p, ")") ? e : fault(p, "a parenthesis is not closed");
    }
    if (eat(p, "[")) {
        e = node(p->f, E_LITERAL, args(p, "]"), NULL);
        e->type = e->a && e->a->type == T_STR ? T_STRS : T_LIST;
        return e;
    }
    if (eat(p, "true") || eat(p, "false")) {
        e = node(p->f, E_BOOL, NULL, NULL);
        e->type = T_BOOL;
        e->value = p->p[-2] == 'u';
        return e;
    }
    if (!n) return fault(p, "an expression is missing");
    if (p->p[n] == '(') return call(p, n);
    int v = var_find(p->f, p->p, n);
    if (v < 0) return fault(p, "a variable is read before it is set");
    e = node(p->f, E_VAR, NULL, NULL);
    e->var = v;
    e->type = p->f->var[v].type;
    p->p += n;
    return e;
}

static Node *postfix(Parser *p) {
    Node *e = primary(p);
    while (eat(p, "[")) {
        Node *i = expr(p, 0);
        if (eat(p, ":")) {
            Node *s = node(p->f, E_SLICE, e, i);
            s->c = expr(p, 0);
            s->type = e->type;
            e = s;
        } else {
            Node *s = node(p->f, E_INDEX, e, i);
            s->type = element(e->type);
            if (s->type == T_NONE) return fault(p, "something without elements is indexed");
            e = s;
        }
        if (!eat(p, "]")) return fault(p, "an index is not closed");
    }
    return e;
}

static Node *unary(Parser *p) {
    if (eat(p, "-")) {
        Node *e = node(p->f, E_NEG, unary(p), NULL);
        e->type = T_INT;
        return e;
    }
    return postfix(p);
}

typedef struct { const char *t; CodeOp op; int level; } OpRow;
static const OpRow op_rows[] = {
    // longer spellings first
    { "or", OP_OR, 0 },  { "and", OP_AND, 1 }, { "==", OP_EQ, 3 },  { "!=", OP_NE, 3 },
    { "<=", OP_LE, 3 },  { ">=", OP_GE, 3 },   { "<<", OP_SHL, 7 }, { ">>", OP_SHR, 7 },
    { "<", OP_LT, 3 },   { ">", OP_GT, 3 },    { "|", OP_BOR, 4 },  { "^", OP_XOR, 5 },
    { "&", OP_BAND, 6 }, { "+", OP_ADD, 8 },   { "-", OP_SUB, 8 },  { "*", OP_MUL, 9 },
    { "/", OP_DIV, 9 },  { "%", OP_MOD, 9 },
};

static const OpRow *op_at(Parser *p, int level) {
    skip(p);
    for (size_t i = 0; i < COUNTOF(op_rows); i++) {
        size_t n = strlen(op_rows[i].t);
        if ((size_t)(p->end - p->p) < n || memcmp(p->p, op_rows[i].t, n)) continue;
        if (is_word(op_rows[i].t[0]) && is_word(p->p[n])) continue;
        bool assigns = op_rows[i].level >= 4 && p->p[n] == '=';         // x += e
        return op_rows[i].level == level && !assigns ? &op_rows[i] : NULL;
    }
    return NULL;
}

static Node *expr(Parser *p, int level) {
    if (level == 10) return unary(p);
    if (level == 2) {
        if (!eat(p, "not")) return expr(p, 3);
        Node *e = node(p->f, E_NOT, expr(p, 2), NULL);
        e->type = T_BOOL;
        return e;
    }
    Node *e = expr(p, level + 1);
    for (const OpRow *o; (o = op_at(p, level)); ) {
        p->p += strlen(o->t);
        Node *b = node(p->f, E_BIN, e, expr(p, level + 1));
        b->op = o->op;
        bool text = b->a->type == T_STR || b->b->type == T_STR;
        b->type = level <= 3 ? T_BOOL : o->op == OP_ADD && text ? T_STR : T_INT;
        if (o->op == OP_ADD && b->a->type == T_CHAR && b->b->type == T_CHAR)
            fault(p, "two characters are added");
        e = b;
    }
    return e;
}

static Node *block(Parser *p);

static Node *if_rest(Parser *p) {
    Node *s = node(p->f, S_IF, expr(p, 0), NULL);
    s->b = block(p);
    if (eat(p, "elif")) s->c = if_rest(p);
    else if (eat(p, "else")) s->c = block(p);
    return s;
}

static Node *for_rest(Parser *p) {
    size_t n = word_at(p);
    const char *name = p->p;
    p->p += n;
    if (!eat(p, "in")) return fault(p, "a loop lacks 'in'");
    Node *a = expr(p, 0), *s;
    bool up = eat(p, ".."), down = !up && eat(p, "downto");
    if (up || down) {
        s = node(p->f, S_RANGE, a, expr(p, 0));
        s->value = up ? 1 : -1;
        if (eat(p, "by")) {
            s->value = strtol((skip(p), p->p), NULL, 10);
            p->p += word_at(p);
        }
        s->var = var_add(p->f, name, n, T_INT, false);
    } else {
        s = node(p->f, S_EACH, a, NULL);
        s->var = var_add(p->f, name, n, element(a->type), false);
    }
    s->c = block(p);
    return s;
}

static CodeOp assign_op(Parser *p) {
    static const struct { const char *t; CodeOp op; } row[] = { { "+=", OP_ADD }, { "-=", OP_SUB },
        { "*=", OP_MUL }, { "/=", OP_DIV }, { "%=", OP_MOD }, { "^=", OP_XOR }, { "|=", OP_BOR },
        { "&=", OP_BAND } };
    for (size_t i = 0; i < COUNTOF(row); i++) if (eat(p, row[i].t)) return row[i].op;
    return OP_NONE;
}

static Node *statement(Parser *p) {
    if (eat(p, "if")) return if_rest(p);
    if (eat(p, "for")) return for_rest(p);
    if (eat(p, "while")) {
        Node *s = node(p->f, S_WHILE, expr(p, 0), NULL);
        s->c = block(p);
        return s;
    }
    if (eat(p, "return")) return node(p->f, S_RETURN, expr(p, 0), NULL);
    if (eat(p, "break")) return node(p->f, S_BREAK, NULL, NULL);
    if (eat(p, "continue")) return node(p->f, S_CONTINUE, NULL, NULL);
    size_t n = word_at(p);
    if (n && p->p[n] == '(') return node(p->f, S_CALL, call(p, n), NULL);
    const char *name = p->p;
    Node *target;
    if (n && var_find(p->f, name, n) < 0) {             // a new variable
        p->p += n;
        if (!eat(p, "=")) return fault(p, "a statement is not understood");
        Node *value = expr(p, 0);
        target = node(p->f, E_VAR, NULL, NULL);
        target->var = var_add(p->f, name, n, value->type, false);
        target->type = value->type;
        return node(p->f, S_SET, target, value);
    }
    target = postfix(p);
    int op = assign_op(p);
    if (!op && !eat(p, "=")) return fault(p, "an assignment is not understood");
    Node *s = node(p->f, S_SET, target, expr(p, 0));
    s->op = op;
    if (!op && target->type != s->b->type) fault(p, "an assignment mixes types");
    return s;
}

static Node *statements(Parser *p) {
    Node *first = NULL, **tail = &first;
    for (skip(p); p->p < p->end && *p->p != '}'; skip(p)) {
        *tail = statement(p);
        tail = &(*tail)->next;
    }
    return first;
}

static Node *block(Parser *p) {
    if (!eat(p, "{")) return fault(p, "a block does not begin");
    Node *b = statements(p);
    return eat(p, "}") ? b : fault(p, "a block does not end");
}

void code_parse(CodeFn *f, const CodeDraft *d, CodeArena *arena) {
    const CodeEntry *e = d->entry;
    memset(f, 0, sizeof *f);
    arena->n = 0;
    f->entry = e;
    f->arena = arena;
    for (int i = 0; i < e->n_params; i++)
        var_add(f, e->param[i], strlen(e->param[i]), e->type[i], true);
    Parser p = { d->body.p, d->body.p + d->body.n, f };
    f->body = statements(&p);
    if (!f->fault && p.p < p.end) f->fault = "a block closes that never began";
    if (!f->fault && e->ret == T_NONE) f->fault = "the result has no type";
}
