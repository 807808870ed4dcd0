// grammar.c - reads rule files and expands them; the few spelling rules English needs; number words
#include "grammar.h"

static int piece_cmp(Piece a, Piece b) {
    int n = a.n < b.n ? a.n : b.n, c = memcmp(a.s, b.s, (size_t)n);
    return c ? c : a.n - b.n;
}
static int rule_cmp(const void *a, const void *b) {
    return piece_cmp(((const Rule *)a)->name, ((const Rule *)b)->name);
}

static void rule_add(Rule *r, const char *s, size_t n) {
    if (r->n_alt == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 16;
        r->alt = (Piece *)xrealloc(r->alt, (size_t)r->cap * sizeof *r->alt);
    }
    r->alt[r->n_alt++] = (Piece){ s, (int)n };
}

Grammar grammar_read(const char *text, size_t n) {
    Grammar g = { NULL, 0 };
    int cap = 0;
    for (const char *s = text, *end = text + n, *eol; s < end; s = eol + 1) {
        eol = (const char *)memchr(s, '\n', (size_t)(end - s));
        if (!eol) eol = end;
        if (s == eol || *s == '#') continue;
        if (eol - s > 2 && (*s == '=' || *s == ':') && s[1] == ' ') {
            if (g.n_rules == cap) {
                cap = cap ? 2 * cap : 64;
                g.rule = (Rule *)xrealloc(g.rule, (size_t)cap * sizeof *g.rule);
            }
            g.rule[g.n_rules++] = (Rule){ { s + 2, (int)(eol - s - 2) }, NULL, 0, 0, *s == ':' };
            continue;
        }
        CHECK(g.n_rules, "rule file: line before the first rule: %.40s", s);
        Rule *r = &g.rule[g.n_rules - 1];
        if (!r->words) rule_add(r, s, (size_t)(eol - s));
        for (const char *w = s, *e; r->words && w < eol; w = e + 1) {
            e = (const char *)memchr(w, ' ', (size_t)(eol - w));
            if (!e) e = eol;
            if (e > w) rule_add(r, w, (size_t)(e - w));
        }
    }
    qsort(g.rule, (size_t)g.n_rules, sizeof *g.rule, rule_cmp);
    for (int i = 0; i + 1 < g.n_rules; i++)
        CHECK(rule_cmp(&g.rule[i], &g.rule[i + 1]), "rule file: rule %.*s stands twice",
              g.rule[i].name.n, g.rule[i].name.s);
    return g;
}

void grammar_free(Grammar *g) {
    for (int i = 0; i < g->n_rules; i++) free(g->rule[i].alt);
    free(g->rule);
    memset(g, 0, sizeof *g);
}

static const Rule *rule_find(const Grammar *g, Piece name) {
    Rule key = { name, NULL, 0, 0, false };
    return (const Rule *)bsearch(&key, g->rule, (size_t)g->n_rules, sizeof key, rule_cmp);
}

const Rule *grammar_rule(const Grammar *g, const char *name) {
    const Rule *r = rule_find(g, (Piece){ name, (int)strlen(name) });
    CHECK(r && r->n_alt, "rule file: no rule %s", name);
    return r;
}

int grammar_count(const Grammar *g, const char *rule) { return grammar_rule(g, rule)->n_alt; }

static void add_words(StrBuf *out, Piece p) {
    size_t at = out->n;
    CHECK(p.n > 0, "rule file: empty word");
    str_add(out, p.s, (size_t)p.n);
    for (; at < out->n; at++) if (out->p[at] == '_') out->p[at] = ' ';
}

char *grammar_word(const Grammar *g, const char *rule, int i) {
    StrBuf b = { NULL, 0, 0 };
    add_words(&b, grammar_rule(g, rule)->alt[i]);
    return b.p;
}

// end of the group that opens at s: the matching bracket
static const char *group_end(const char *s, const char *end) {
    int depth = 0;
    for (; s < end; s++) {
        if (*s == '[') depth++;
        if (*s == ']' && --depth == 0) return s;
    }
    CHECK(false, "rule file: [ without ]");
    return end;
}

// the text between bars number k of the group s..end (both brackets outside); k < 0: counts them
static int group_part(const char *s, const char *end, int k, Piece *part) {
    int depth = 0, n = 0;
    const char *from = s;
    for (;; s++) {
        if (s == end || (*s == '|' && depth == 0)) {
            if (n++ == k) *part = (Piece){ from, (int)(s - from) };
            from = s + 1;
            if (s == end) return n;
        } else if (*s == '[') {
            depth++;
        } else if (*s == ']') {
            depth--;
        }
    }
}

static void expand(const Grammar *g, Piece text, const Var *vars, Rng *r, StrBuf *out);

static void expand_name(const Grammar *g, Piece name, const Var *vars, Rng *r, StrBuf *out) {
    for (const Var *v = vars; v->name; v++)
        if ((int)strlen(v->name) == name.n && !memcmp(v->name, name.s, (size_t)name.n)) {
            str_puts(out, v->text);
            return;
        }
    const Rule *rule = rule_find(g, name);
    CHECK(rule && rule->n_alt, "rule file: nothing is called {%.*s}", name.n, name.s);
    Piece alt = rule->alt[rng_below(r, (uint64_t)rule->n_alt)];
    if (rule->words) add_words(out, alt);
    else expand(g, alt, vars, r, out);
}

static void expand(const Grammar *g, Piece text, const Var *vars, Rng *r, StrBuf *out) {
    const char *s = text.s, *end = s + text.n;
    while (s < end) {
        const char *from = s;
        while (s < end && *s != '{' && *s != '[') s++;
        str_add(out, from, (size_t)(s - from));
        if (s == end) return;
        if (*s == '{') {
            const char *e = (const char *)memchr(s, '}', (size_t)(end - s));
            CHECK(e, "rule file: { without }: %.*s", text.n, text.s);
            expand_name(g, (Piece){ s + 1, (int)(e - s - 1) }, vars, r, out);
            s = e + 1;
        } else {
            const char *e = group_end(s, end);
            Piece part = { NULL, 0 };
            int n = group_part(s + 1, e, -1, &part);
            group_part(s + 1, e, (int)rng_below(r, (uint64_t)n), &part);
            expand(g, part, vars, r, out);
            s = e + 1;
        }
    }
}

void grammar_expand(const Grammar *g, const char *rule, const Var *vars, Rng *r, StrBuf *out) {
    str_add(out, NULL, 0);
    expand_name(g, (Piece){ rule, (int)strlen(rule) }, vars, r, out);
}

// ---------------------------------------------------------------------------
// English spelling

static const char open_quote[] = "\xe2\x80\x9c", close_quote[] = "\xe2\x80\x9d";

static bool is_letter(char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }

// does a sentence begin at byte i? After . ? ! and a blank, or a full stop and a closing quote;
// what follows a question inside quotes goes on ("Why?" she asked).
static bool sentence_begins(const StrBuf *s, size_t from, size_t i) {
    if (i >= from + 3 && !memcmp(s->p + i - 3, open_quote, 3)) {
        i -= 3;
        if (i >= from + 2 && s->p[i - 1] == ' ' && s->p[i - 2] == ':') return true;
    }
    if (i == from || s->p[i - 1] == '\n') return true;
    if (s->p[i - 1] != ' ') return false;
    i--;
    if (i >= from + 4 && !memcmp(s->p + i - 3, close_quote, 3)) return s->p[i - 4] == '.';
    return i > from && strchr(".?!", s->p[i - 1]);
}

void prose_polish(StrBuf *s, size_t from) {
    StrBuf out = { NULL, 0, 0 };
    for (size_t i = from; i < s->n; i++) {
        char c = s->p[i];
        bool first = is_letter(c) && c >= 'a' && sentence_begins(s, from, i);
        bool alone = (c | 32) == 'a' && s->p[i + 1] == ' ' &&
                     (i == from || !is_letter(s->p[i - 1]));
        bool article = alone && s->p[i + 2] && strchr("aeiouAEIOU", s->p[i + 2]);
        if (first) c = (char)(c - 32);
        str_add(&out, &c, 1);
        if (article) str_add(&out, "n", 1);
    }
    s->n = from;
    str_add(s, out.p, out.n);
    free(out.p);
}

// ---------------------------------------------------------------------------
// Numbers in words

const char *number_en(int n, char *buf) {
    static const char *const small[] = {
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
        "nineteen" };
    static const char *const tens[] = { "", "", "twenty", "thirty", "forty", "fifty", "sixty",
                                        "seventy", "eighty", "ninety" };
    int at = 0;
    bool more = n >= 100;
    buf[0] = 0;
    if (n >= 1000) at += sprintf(buf + at, "%s thousand ", small[n / 1000 % 10]);
    n %= 1000;
    if (n >= 100) at += sprintf(buf + at, "%s hundred ", small[n / 100]);
    n %= 100;
    if (more && n) at += sprintf(buf + at, "and ");
    if (n >= 20) at += sprintf(buf + at, n % 10 ? "%s-%s" : "%s", tens[n / 10], small[n % 10]);
    else if (n || !more) at += sprintf(buf + at, "%s", small[n]);
    if (at && buf[at - 1] == ' ') buf[at - 1] = 0;
    return buf;
}

const char *number_zh(int n, char *buf) {
    static const char *const digit[] = { "零", "一", "二", "三", "四",
                                         "五", "六", "七", "八", "九" };
    static const char *const unit[] = { "", "十", "百", "千" };
    int at = 0, div = 1000;
    bool begun = false, gap = false;
    buf[0] = 0;
    if (n == 0) return strcpy(buf, digit[0]);
    for (int place = 3; place >= 0; place--, div /= 10) {
        int d = n / div % 10;
        if (!d) { gap = begun; continue; }
        if (gap) at += sprintf(buf + at, "%s", digit[0]);
        bool plain_ten = place == 1 && d == 1 && !begun;
        at += sprintf(buf + at, "%s%s", plain_ten ? "" : digit[d], unit[place]);
        begun = true, gap = false;
    }
    return buf;
}
