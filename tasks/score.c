// score.c - how an answer is scored.
//
// Two scorers stand side by side. SCORER_OURS is what the paper (Li et al. 2024,
// SharedContextBench) means; SCORER_HARNESS is what the published harness computes, its slips
// included, so that numbers can be compared with its tables. They differ in five rules:
//
//     rule      ours                                     harness
//     number    sign and fraction count                  sign ignored, truncated towards zero
//     choice    parsed letter, else the option text      the answer's first letter, prefix rules
//     qa_en     F1 of words, best label                  case-insensitive substring
//     qa_zh     F1 of characters, best label             each character of the label as a label
//     letter    parsed letter                            a label character anywhere
//
// Text is code points (score.h). A is the answer, R a reference; n and m count tokens of them.
#include "longbench.h"

enum { NGRAM = 4 };             // BLEU-4

static bool occurs(const char *needle, size_t m, const char *text, size_t n) {
    return m == 0 || (n >= m && memmem(text, n, needle, m) != NULL);
}

// ---------------------------------------------------------------------------
// Answers in a text: white space may stand anywhere between the bytes of one, or nowhere, as the
// decoders of prompt compression put it; but an answer ends where a word or a number ends

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_alnum(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool stands_at(const char *gold, const char *text, size_t n, size_t at) {
    const char *last = gold;
    if (at && is_alnum(text[at - 1]) && is_alnum(text[at])) return false;
    for (const char *g = gold; *g; g++) {
        if (is_space(*g)) continue;
        while (at < n && is_space(text[at])) at++;
        if (at == n || text[at++] != *g) return false;
        last = g;
    }
    return at == n || !is_alnum(text[at]) || !is_alnum(*last);
}

static bool stands(const char *gold, const char *text, size_t n) {
    while (is_space(*gold)) gold++;
    if (!*gold) return false;
    for (const char *at = text; n && (at = (const char *)memchr(at, *gold, n - (size_t)(at - text)));
         at++)
        if (stands_at(gold, text, n, (size_t)(at - text))) return true;
    return false;
}

int gold_stands(const Task *task, const TaskTurn *t, const char *text, size_t n) {
    ScoreRule rule = task->parts[t->part].rule;
    int found = 0;
    if (rule == SCORE_CHOICE || rule == SCORE_LETTER || rule == SCORE_ROUGE_LSUM || !t->n_labels ||
        (task->lb && task->lb->metric == LB_COUNT)) return -1;
    for (int i = 0; i < t->n_labels; i++) found += stands(t->label[i], text, n);
    return rule == SCORE_NAMES ? found == t->n_labels : found > 0;
}

// ---------------------------------------------------------------------------
// ROUGE-Lsum (Lin 2004): for each reference sentence the union of its longest common subsequences
// with all answer sentences; lower-case runs of [a-z0-9] are the tokens, lines the sentences.

typedef struct { IntVec id, first; StrBuf text; } Sentences;    // first: start of each, and the end

static Sentences sentences(const char *s, size_t n) {
    Sentences out = { 0 };
    StrBuf fixed = text_repaired(s, n);
    out.text = text_lowered(fixed.p, fixed.n);
    free(fixed.p);
    return out;
}

static void tokenise_lines(Sentences *out, WordIds *w) {
    const char *s = out->text.p;
    size_t n = out->text.n;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\n') continue;
        ints_push(&out->first, (int32_t)out->id.n);
        for (; i < n && s[i] != '\n'; i++) {
            size_t a = i;
            while (i < n && ((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= '0' && s[i] <= '9'))) i++;
            if (i > a) ints_push(&out->id, word_id(w, s + a, i - a));
            if (i == n || s[i] == '\n') break;
        }
    }
    ints_push(&out->first, (int32_t)out->id.n);
}

// One answer sentence of n tokens as bits: for each of its words the places where it stands.
typedef struct {
    int n, words;           // tokens; 64-bit words that hold as many bits
    int32_t *local;         // (V) number of a word among those of the sentence, -1 none
    uint64_t *mask;         // (distinct, words)
    uint64_t *row;          // (rows, words) scratch of lcs_mark
    size_t mask_cap, row_cap;
} BitSentence;

static void bits_set(BitSentence *b, const int32_t *id, int n) {
    int distinct = 0;
    b->n = n;
    b->words = CEIL_DIV(n, 64);
    for (int j = 0; j < n; j++)
        if (b->local[id[j]] < 0) b->local[id[j]] = distinct++;
    size_t want = (size_t)distinct * (size_t)b->words;
    if (want > b->mask_cap) {
        b->mask_cap = want * 2;
        b->mask = (uint64_t *)xrealloc(b->mask, b->mask_cap * sizeof *b->mask);
    }
    if (want) memset(b->mask, 0, want * sizeof *b->mask);
    for (int j = 0; j < n; j++) b->mask[b->local[id[j]] * b->words + j / 64] |= 1ull << (j % 64);
}

// zeros among the first j bits of a row: t[i][j]
static int zeros(const uint64_t *row, int j) {
    int n = 0;
    for (int w = 0; w < j / 64; w++) n += __builtin_popcountll(~row[w]);
    return j % 64 ? n + __builtin_popcountll(~row[j / 64] & ((1ull << (j % 64)) - 1)) : n;
}

// Marks the places of r (m tokens) on one LCS with the sentence of b. Row i holds t[i][j] -
// t[i][j-1] as zero bits (Hyyro 2004): V' = (V + (V & M)) | (V & ~M). The walk back from (m, n)
// goes up unless t[i][j-1] > t[i-1][j], as the reference's does.
static void lcs_mark(BitSentence *b, const int32_t *r, int m, bool *hit) {
    size_t words = (size_t)b->words, want = ((size_t)m + 1) * words;
    if (want > b->row_cap) {
        b->row_cap = want * 2;
        b->row = (uint64_t *)xrealloc(b->row, b->row_cap * sizeof *b->row);
    }
    memset(b->row, 0xff, words * sizeof *b->row);
    for (int i = 0; i < m; i++) {
        const uint64_t *v = b->row + (size_t)i * words;
        uint64_t *next = b->row + ((size_t)i + 1) * words, carry = 0;
        int local = b->local[r[i]];
        for (size_t w = 0; w < words; w++) {
            uint64_t u = local < 0 ? 0 : v[w] & b->mask[(size_t)local * words + w];
            unsigned __int128 sum = (unsigned __int128)v[w] + u + carry;
            carry = (uint64_t)(sum >> 64);
            next[w] = (uint64_t)sum | (v[w] & ~u);
        }
    }
    for (int i = m, j = b->n; i > 0 && j > 0;) {
        const uint64_t *row = b->row + (size_t)i * words, *up = row - words;
        int local = b->local[r[i - 1]], here = zeros(row, j), above = zeros(up, j);
        for (; j > 0; j--) {                            // left along row i
            if (local >= 0 &&
                b->mask[(size_t)local * words + (size_t)(j - 1) / 64] >> ((j - 1) % 64) & 1) {
                hit[i - 1] = true;
                j--;
                break;
            }
            int left = here - !(row[(j - 1) / 64] >> ((j - 1) % 64) & 1);
            if (left <= above) break;
            above -= !(up[(j - 1) / 64] >> ((j - 1) % 64) & 1);
            here = left;
        }
        i--;
    }
}

// F1 of ROUGE-Lsum in [0, 1]; texts of n and m bytes
double rouge_lsum(const char *prediction, size_t n, const char *reference, size_t m) {
    WordIds words = { 0 };
    Sentences a = sentences(prediction, n), r = sentences(reference, m);
    tokenise_lines(&a, &words);
    tokenise_lines(&r, &words);
    double score = 0;
    if (a.id.n && r.id.n) {
        BitSentence b = { 0 };
        size_t v = (size_t)words.n, hits = 0;
        bool *hit = (bool *)calloc(r.id.n, sizeof *hit);
        int32_t *count[2] = { (int32_t *)calloc(v, 4), (int32_t *)calloc(v, 4) };
        b.local = (int32_t *)xrealloc(NULL, v * sizeof *b.local);
        CHECK(hit && count[0] && count[1], "no memory to compare two texts");
        memset(b.local, 0xff, v * sizeof *b.local);
        for (size_t c = 0; c + 1 < a.first.n; c++) {
            int from = a.first.p[c], len = a.first.p[c + 1] - from;
            if (!len) continue;
            bits_set(&b, a.id.p + from, len);
            for (size_t s = 0; s + 1 < r.first.n; s++)
                if (r.first.p[s + 1] > r.first.p[s])
                    lcs_mark(&b, r.id.p + r.first.p[s], r.first.p[s + 1] - r.first.p[s],
                             hit + r.first.p[s]);
            for (int j = 0; j < len; j++) b.local[a.id.p[from + j]] = -1;
        }
        for (size_t i = 0; i < a.id.n; i++) count[0][a.id.p[i]]++;
        for (size_t i = 0; i < r.id.n; i++) count[1][r.id.p[i]]++;
        for (size_t i = 0; i < r.id.n; i++) {
            int id = r.id.p[i];
            if (hit[i] && count[0][id] > 0 && count[1][id] > 0) {
                hits++;
                count[0][id]--;
                count[1][id]--;
            }
        }
        score = f1_of(hits, a.id.n, r.id.n);
        free(b.local);
        free(b.mask);
        free(b.row);
        free(hit);
        free(count[0]);
        free(count[1]);
    }
    words_free(&words);
    free(a.id.p);
    free(a.first.p);
    free(a.text.p);
    free(r.id.p);
    free(r.first.p);
    free(r.text.p);
    return score;
}

// ---------------------------------------------------------------------------
// BLEU-4 of two pieces of code (Papineni et al. 2002), smoothed by method 4 of Chen and Cherry 2014

// the text between runs of white space, after strip; an empty text is one empty token
static void split_code(const char *s, size_t n, WordIds *w, IntVec *out) {
    s = text_strip(s, &n);
    for (size_t i = 0;;) {
        size_t a = i;
        int32_t c;
        while (i < n) {
            size_t len = text_next(s + i, n - i, &c);
            if (text_space(c)) break;
            i += len;
        }
        ints_push(out, word_id(w, s + a, i - a));
        if (i >= n) return;
        i += text_spaces(s + i, n - i);
    }
}

typedef struct { int32_t id[NGRAM]; } Gram;
static int gram_order(const void *x, const void *y) { return memcmp(x, y, sizeof(Gram)); }

// sorted k-grams of a; their number
static size_t grams(const IntVec *a, int k, Gram *out) {
    size_t n = a->n >= (size_t)k ? a->n - (size_t)k + 1 : 0;
    for (size_t i = 0; i < n; i++) {
        memset(&out[i], 0, sizeof *out);
        memcpy(out[i].id, a->p + i, (size_t)k * sizeof *a->p);
    }
    if (n) qsort(out, n, sizeof *out, gram_order);
    return n;
}

// k-grams of a that also stand in r, each counted no more often than r has it; *total of a
static size_t gram_matches(const IntVec *a, const IntVec *r, int k, Gram *x, Gram *y,
                           size_t *total) {
    size_t n = grams(a, k, x), m = grams(r, k, y), same = 0;
    for (size_t i = 0, j = 0; i < n && j < m;) {
        int order = gram_order(&x[i], &y[j]);
        same += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    *total = n;
    return same;
}

// BP exp(sum_k 1/4 ln p_k), p_k the share of k-grams that match. A p_k without a match is
// ln(h) / (5 * 2^s) / total for the s-th such k if h > 1, else it is left out.
static double bleu_tokens(const IntVec *a, const IntVec *r) {
    size_t size = (a->n > r->n ? a->n : r->n) * sizeof(Gram);
    Gram *x = (Gram *)xrealloc(NULL, size), *y = (Gram *)xrealloc(NULL, size);
    double h = (double)a->n, sum = 0, smoothed = 1;
    bool any = false;
    for (int k = 1; k <= NGRAM; k++) {
        size_t total, same = gram_matches(a, r, k, x, y, &total);
        if (k == 1) any = same > 0;
        if (!any) break;
        double p = (double)same / (total ? (double)total : 1);
        if (!same && a->n > 1) {
            smoothed *= 2;
            p = 1 / (smoothed * 5 / log(h)) / (total ? (double)total : 1);
        }
        if (p > 0) sum += 0.25 * log(p);
    }
    free(x);
    free(y);
    if (!any) return 0;
    double bp = a->n > r->n ? 1 : exp(1 - (double)r->n / h), score = bp * exp(sum);
    return score > 1 ? 1 : score;
}

// BLEU in [0, 1] of a candidate against one reference; texts of n and m bytes
double code_bleu(const char *candidate, size_t n, const char *reference, size_t m) {
    WordIds w = { 0 };
    IntVec a = { 0 }, r = { 0 };
    StrBuf x = text_repaired(candidate, n), y = text_repaired(reference, m);
    split_code(x.p, x.n, &w, &a);
    split_code(y.p, y.n, &w, &r);
    double score = bleu_tokens(&a, &r);
    words_free(&w);
    free(a.p);
    free(r.p);
    free(x.p);
    free(y.p);
    return score;
}

// ---------------------------------------------------------------------------
// RepoQA: the function in an answer, and which needle it resembles most

static bool fence_at(const char *s, size_t n, size_t i) {
    return i + 3 <= n && !memcmp(s + i, "```", 3) && (i == 0 || s[i - 1] == '\n');
}

// The next fenced block from byte *i on: ``` at the start of a line, word characters, white space
// with a line break in it, then everything up to the next ``` at the start of a line. The body
// begins after the last line break of that white space.
static bool next_block(const char *s, size_t n, size_t *i, Span *body) {
    for (size_t a = *i; a < n; a++) {
        if (!fence_at(s, n, a)) continue;
        size_t k = a + 3, start = 0;
        int32_t c;
        while (k < n) {
            size_t len = text_next(s + k, n - k, &c);
            if (!text_word(c)) break;
            k += len;
        }
        for (size_t end = k + text_spaces(s + k, n - k); k < end; k++)
            if (s[k] == '\n') start = k + 1;
        if (!start) continue;
        for (k = start; k < n && !fence_at(s, n, k);) k++;
        if (k >= n) continue;
        *body = (Span){ start, k - start };
        *i = k + 3;
        return true;
    }
    return false;
}

// the answer's function as text that may hold NUL bytes; the caller frees p
static StrBuf extract(const char *lang, const char *answer, size_t n) {
    StrBuf fixed = text_repaired(answer, n), out = { 0 };
    const char *s = text_strip(fixed.p, &fixed.n);
    Span body, first = { 0, fixed.n }, f;
    bool any = false, done = false;
    for (size_t i = 0; !done && next_block(s, fixed.n, &i, &body);) {
        if (!any) first = body;
        any = true;
        done = lang && first_function(lang, s + body.at, body.len, &f);
    }
    str_add(&out, "", 0);
    if (done) str_add(&out, s + body.at + f.at, f.len);
    else str_add(&out, s + first.at, first.len);
    free(fixed.p);
    return out;
}

// Malloc'd text of the function that an answer of n bytes holds: the first function of the first
// fenced block that has one, else the first block, else the stripped answer.
char *code_extract(const char *lang, const char *answer, size_t n) {
    return extract(lang, answer, n).p;
}

// The needle of s most like the function in the answer; at -1: none has a word in common. It passes
// if that needle's name is the one asked for and its BLEU reaches the threshold.
RepoMatch repoqa_match(const TaskSession *s, const char *asked, const char *lang,
                       const char *answer, size_t n, double threshold) {
    RepoMatch best = { 0, -1, false };
    StrBuf code = extract(lang, answer, n);
    for (int i = 0; i < s->n_needles; i++) {
        const char *source = s->needles[i].source;
        double bleu = code_bleu(code.p, code.n, source, strlen(source));
        if (bleu > best.best) {
            best.best = bleu;
            best.at = i;
        }
    }
    free(code.p);
    best.pass = best.at >= 0 && asked && best.best >= threshold &&
                !strcmp(s->needles[best.at].name, asked);
    return best;
}

// ---------------------------------------------------------------------------
// F1 over tokens and characters

// English tokens: lower case, no ASCII punctuation, no articles. text receives what the ids name.
static void tokens_en(const char *s, size_t n, WordIds *w, IntVec *out, StrBuf *text) {
    StrBuf low = text_lowered(s, n), plain = { 0 };
    for (size_t i = 0; i < low.n; i++)
        if (!text_punct((uint8_t)low.p[i])) str_add(&plain, low.p + i, 1);
    str_add(text, "", 0);
    for (size_t i = 0; i < plain.n;) {
        size_t a = i;
        int32_t c;
        while (i < plain.n) {
            size_t len = text_next(plain.p + i, plain.n - i, &c);
            if (!text_word(c)) break;
            i += len;
        }
        size_t len = i - a;
        bool article = (len == 1 && plain.p[a] == 'a') ||
                       (len == 2 && !memcmp(plain.p + a, "an", 2)) ||
                       (len == 3 && !memcmp(plain.p + a, "the", 3));
        if (!len) i += len = text_next(plain.p + i, plain.n - i, &c);
        if (article) str_add(text, " ", 1);
        else str_add(text, plain.p + a, len);
    }
    size_t left = text->n;
    const char *t = text_strip(text->p, &left);
    if (left) split_code(t, left, w, out);
    free(low.p);
    free(plain.p);
}

// Chinese characters: lower case, without punctuation and white space
static void characters(const char *s, size_t n, IntVec *out) {
    static const int32_t gone[][2] = {
        { 0x2013, 0x2014 }, { 0x2018, 0x2019 }, { 0x201b, 0x201f }, { 0x2026, 0x2027 },
        { 0x3001, 0x3003 }, { 0x300b, 0x3011 }, { 0x3014, 0x301f }, { 0x3030, 0x3030 },
        { 0x303e, 0x303f }, { 0xfe4f, 0xfe4f }, { 0xff01, 0xff0d }, { 0xff0f, 0xff0f },
        { 0xff1a, 0xff20 }, { 0xff3b, 0xff40 }, { 0xff5b, 0xff64 },
    };
    StrBuf low = text_lowered(s, n);
    for (size_t i = 0; i < low.n;) {
        int32_t c;
        i += text_next(low.p + i, low.n - i, &c);
        bool drop = text_space(c) || text_punct(c);
        for (size_t k = 0; k < COUNTOF(gone); k++) drop |= c >= gone[k][0] && c <= gone[k][1];
        if (!drop) ints_push(out, c);
    }
    free(low.p);
}

static int code_order(const void *x, const void *y) {
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    return (a > b) - (a < b);
}

static double character_f1(const IntVec *sorted, const char *label, size_t n) {
    IntVec b = { 0 };
    characters(label, n, &b);
    if (b.n) qsort(b.p, b.n, sizeof *b.p, code_order);
    size_t same = 0;
    for (size_t i = 0, j = 0; i < sorted->n && j < b.n;) {
        int order = code_order(&sorted->p[i], &b.p[j]);
        same += order == 0;
        i += order <= 0;
        j += order >= 0;
    }
    double score = f1_of(same, sorted->n, b.n);
    free(b.p);
    return score;
}

// ---------------------------------------------------------------------------
// rules. Each takes the repaired prediction and its labels.

typedef struct { const char *s; size_t n; } View;
typedef struct { View p; View *label; int n; Scorer which; } Case;

static View stripped(View v) {
    View out = v;
    out.s = text_strip(v.s, &out.n);
    return out;
}
static bool same_view(View a, View b) { return a.n == b.n && !memcmp(a.s, b.s, a.n); }
static bool begins(View text, View with) {
    return text.n >= with.n && !memcmp(text.s, with.s, with.n);
}

static double rule_substring(const Case *c) {
    return c->n && occurs(c->label[0].s, c->label[0].n, c->p.s, c->p.n);
}

// share of the names that occur, case aside, to two digits (ties to even)
static double rule_names(const Case *c) {
    int hits = 0;
    char text[32];
    StrBuf p = text_lowered(c->p.s, c->p.n);
    for (int i = 0; i < c->n; i++) {
        StrBuf name = text_lowered(c->label[i].s, c->label[i].n);
        hits += occurs(name.p, name.n, p.p, p.n);
        free(name.p);
    }
    free(p.p);
    if (!c->n) return 0;
    snprintf(text, sizeof text, "%.2f", (double)hits / c->n);
    return strtod(text, NULL);
}

// appends the number at byte i of v to text in ASCII digits: \d+\.\d+ or \d+
static void copy_number(View v, size_t i, StrBuf *text) {
    bool point = false;
    while (i < v.n) {
        int32_t c, next;
        size_t len = text_next(v.s + i, v.n - i, &c);
        if (text_digit(c)) {
            str_fmt(text, "%d", text_digit_value(c));
        } else {
            if (c != '.' || point || i + 1 >= v.n) break;
            text_next(v.s + i + 1, v.n - i - 1, &next);
            if (!text_digit(next)) break;
            point = true;
            str_puts(text, ".");
        }
        i += len;
    }
}

// [+-]digits as an integer without leading zeros; false if v is anything else
static bool integer_text(const char *s, StrBuf *out) {
    bool minus = *s == '-';
    s += *s == '-' || *s == '+';
    size_t n = strspn(s, "0123456789"), zeros = strspn(s, "0");
    if (!n || s[n]) return false;
    if (zeros == n) zeros--;
    if (minus && strcmp(s + zeros, "0")) str_puts(out, "-");
    str_puts(out, s + zeros);
    return true;
}

// int(float(match)) == label for an integer label, float(match) == label for another
static bool number_harness(const char *match, const char *label) {
    StrBuf want = { 0 }, got = { 0 };
    char *end;
    double value = strtod(match, NULL), real = strtod(label, &end);
    bool same = end > label && !*end && value == real;
    if (integer_text(label, &want)) {
        str_fmt(&got, "%.0f", trunc(value));
        same = !strcmp(got.p, want.p);
    }
    free(want.p);
    free(got.p);
    return same;
}

// the same number: integers digit by digit, others as doubles
static bool number_ours(const char *match, const char *label) {
    StrBuf want = { 0 }, got = { 0 };
    char *end;
    double real = strtod(label, &end);
    bool same = end > label && !*end && strtod(match, NULL) == real;
    if (integer_text(label, &want) && integer_text(match, &got)) same = !strcmp(got.p, want.p);
    free(want.p);
    free(got.p);
    return same;
}

// The first number. The harness sees no sign and takes a missing number for wrong. Ours: a minus
// right before the digits counts unless a digit or letter stands before it.
static double rule_number(const Case *c) {
    StrBuf text = { 0 };
    int32_t code, before[2] = { ' ', ' ' };             // the two code points in front
    size_t at = 0;
    while (at < c->p.n) {
        size_t len = text_next(c->p.s + at, c->p.n - at, &code);
        if (text_digit(code)) break;
        before[0] = before[1];
        before[1] = code;
        at += len;
    }
    if (at >= c->p.n || !c->n) return 0;
    bool minus = (before[1] == '-' || before[1] == 0x2212) && !text_word(before[0]);
    if (minus && c->which == SCORER_OURS) str_puts(&text, "-");
    copy_number(c->p, at, &text);
    bool same = c->which == SCORER_OURS ? number_ours(text.p, c->label[0].s)
                                        : number_harness(text.p, c->label[0].s);
    free(text.p);
    return same;
}

// the first run of ASCII digits equals the label as text
static double rule_passkey(const Case *c) {
    size_t a = 0;
    while (a < c->p.n && !(c->p.s[a] >= '0' && c->p.s[a] <= '9')) a++;
    size_t b = a;
    while (b < c->p.n && c->p.s[b] >= '0' && c->p.s[b] <= '9') b++;
    return c->n && b > a && same_view((View){ c->p.s + a, b - a }, c->label[0]);
}

static double rule_rouge(const Case *c) {
    return c->n ? rouge_lsum(c->p.s, c->p.n, c->label[0].s, c->label[0].n) : 0;
}

// without a session there is one needle: similar enough or not
static double rule_repoqa(const Case *c) {
    return c->n && code_bleu(c->p.s, c->p.n, c->label[0].s, c->label[0].n) >= 0.8;
}

// upper(label) occurs in upper(strip(prediction))
static bool occurs_upper(View p, View label) {
    View s = stripped(p);
    StrBuf up = text_uppered(s.s, s.n), what = text_uppered(label.s, label.n);
    bool hit = occurs(what.p, what.n, up.p, up.n);
    free(up.p);
    free(what.p);
    return hit;
}

static double rule_qa_en(const Case *c) {
    double best = 0;
    for (int i = 0; i < c->n; i++) {
        if (c->which == SCORER_HARNESS) {
            best = occurs_upper(c->p, c->label[i]) ? 1 : best;
            continue;
        }
        WordIds w = { 0 };
        IntVec a = { 0 }, r = { 0 };
        StrBuf x = { 0 }, y = { 0 };
        tokens_en(c->p.s, c->p.n, &w, &a, &x);
        tokens_en(c->label[i].s, c->label[i].n, &w, &r, &y);
        double score = f1_of(words_overlap(&a, &r, w.n), a.n, r.n);
        best = score > best ? score : best;
        words_free(&w);
        free(a.p);
        free(r.p);
        free(x.p);
        free(y.p);
    }
    return best;
}

// The harness hands a string where a list of labels is due, so each of its characters is a label.
static double rule_qa_zh(const Case *c) {
    IntVec a = { 0 };
    double best = 0;
    characters(c->p.s, c->p.n, &a);
    if (a.n) qsort(a.p, a.n, sizeof *a.p, code_order);
    for (int i = 0; i < c->n; i++) {
        View l = c->label[i];
        if (c->which == SCORER_HARNESS && i > 0) break;
        for (size_t k = 0; k < l.n || (k == 0 && l.n == 0);) {
            int32_t code;
            size_t len = c->which == SCORER_OURS || !l.n ? l.n : text_next(l.s + k, l.n - k, &code);
            double score = character_f1(&a, l.s + k, len);
            best = score > best ? score : best;
            k += len ? len : 1;
        }
    }
    free(a.p);
    return best;
}

// A letter stands at byte i of v: one ASCII letter, no word character after it. A capital counts
// unless it begins a sentence of its own ("A man", "I think"): then it must be followed by a mark
// or end the text. A small letter counts only if it is the last of the text or a bracket closes it.
static int letter_at(View v, size_t i) {
    int ch = i < v.n ? (uint8_t)v.s[i] : 0, up = ch & ~0x20;
    int32_t next = ' ', after = ' ';
    if (up < 'A' || up > 'Z') return 0;
    if (i + 1 < v.n) text_next(v.s + i + 1, v.n - i - 1, &next);
    if (text_word(next) || next == '\'' || next == 0x2019 || next == '-') return 0;
    if (ch != up) return i + 1 == v.n || next == ')' || next == ']' ? up : 0;
    size_t k = i + 1 + text_spaces(v.s + i + 1, v.n - i - 1);
    if (k < v.n) text_next(v.s + k, v.n - k, &after);
    bool alone = k >= v.n || k == i + 1 || memchr(v.s + i, '\n', k - i) || !text_word(after);
    return alone || (up != 'A' && up != 'I') ? up : 0;
}

// bytes of white space, quotes, opening brackets and emphasis at i
static size_t decoration(View v, size_t i) {
    size_t a = i;
    for (; i < v.n; i++)
        if (!strchr(" \t\r\n\"'`*_:([{$", v.s[i]) || !v.s[i]) break;
    return i - a;
}

// The letter that an answer chooses, 0 if none. In this order: at its beginning ("B", "(B)",
// "B. x", "**b)"); after answer, option or choice ("The answer is (B).", "Answer: B"); the first
// letter in brackets; the first capital that stands alone.
static int parse_letter(View p) {
    static const char *const cue[] = { "answer is", "answer", "option", "choice", "choose" };
    View v = stripped(p);
    int ch = letter_at(v, decoration(v, 0));
    for (size_t k = 0; k < COUNTOF(cue) && !ch; k++) {
        size_t len = strlen(cue[k]);
        for (size_t i = 0; i + len <= v.n && !ch; i++) {
            if (strncasecmp(v.s + i, cue[k], len)) continue;
            ch = letter_at(v, i + len + decoration(v, i + len));
        }
    }
    for (size_t i = 0; i + 2 < v.n && !ch; i++)
        if ((v.s[i] == '(' && v.s[i + 2] == ')') || (v.s[i] == '[' && v.s[i + 2] == ']'))
            ch = letter_at(v, i + 1);
    for (size_t i = 0; i < v.n && !ch;) {
        int32_t c;
        size_t len = text_next(v.s + i, v.n - i, &c);
        if (text_word(c)) {
            if (c < 'a') ch = letter_at(v, i);
            while (i < v.n && text_word(c)) {
                i += len;
                len = i < v.n ? text_next(v.s + i, v.n - i, &c) : 0;
            }
        } else i += len;
    }
    return ch;
}

static double rule_letter(const Case *c) {
    if (!c->n) return 0;
    View l = c->label[0];
    if (c->which == SCORER_OURS) {
        int want = parse_letter(l);
        return want && parse_letter(c->p) == want;
    }
    for (size_t i = 0; i < l.n;) {
        int32_t code;
        size_t len = text_next(l.s + i, l.n - i, &code);
        if (occurs_upper(c->p, (View){ l.s + i, len })) return 1;
        i += len;
    }
    return 0;
}

// Ours: the letter that the answer chooses; without one, the option's text somewhere in the answer,
// case aside.
static double choice_ours(View p, View text, View letter) {
    int got = parse_letter(p);
    if (got >= 'A' && got <= 'D') return parse_letter(letter) == got;
    return text.n && occurs_upper(p, stripped(text));
}

// the words of a choice answer: marks as spaces, double spaces collapsed
static StrBuf choice_words(View p) {
    StrBuf out = { 0 };
    str_add(&out, "", 0);
    for (size_t i = 0; i < p.n; i++) {
        bool gone = p.s[i] && strchr("\n\"'.,?!{}", p.s[i]);
        char ch = gone ? ' ' : p.s[i];
        if (ch != ' ' || !out.n || out.p[out.n - 1] != ' ') str_add(&out, &ch, 1);
    }
    return out;
}

// the first word of A B C D AB BC CD ABC BCD ABCD decides
static double choice_first_word(View w, View text, View letter) {
    for (size_t i = 0; i < w.n;) {
        i += text_spaces(w.s + i, w.n - i);
        size_t a = i;
        int32_t c;
        while (i < w.n) {
            size_t len = text_next(w.s + i, w.n - i, &c);
            if (text_space(c)) break;
            i += len;
        }
        View one = { w.s + a, i - a };
        if (one.n && occurs(one.s, one.n, "ABCD", 4))
            return same_view(one, text) || same_view(one, letter);
    }
    return 0;
}

static double choice_harness(View p, View text, View letter) {
    static const char *const prefix[] = { "answer is:", "answer:", "answer is", "option is" };
    p = stripped(p);
    if (!p.n) return 0;
    View first = { p.s, 1 };
    if (p.s[0] >= 'A' && p.s[0] <= 'D') return same_view(first, letter) || same_view(first, text);
    if (same_view(p, text) || same_view(p, letter)) return 1;
    StrBuf words = choice_words(p);
    View w = { words.p, words.n };
    double score = -1;
    for (size_t k = 0; k < COUNTOF(prefix) && score < 0; k++) {
        const char *hit = (const char *)memmem(w.s, w.n, prefix[k], strlen(prefix[k]));
        if (!hit) continue;
        View rest = { hit + strlen(prefix[k]), 0 };
        rest.n = w.n - (size_t)(rest.s - w.s);
        int32_t skipped;
        size_t len = rest.n ? text_next(rest.s, rest.n, &skipped) : 0;
        score = rest.n && (begins((View){ rest.s + len, rest.n - len }, text) ||
                           begins((View){ rest.s + len, rest.n - len }, letter));
    }
    if (score < 0) score = choice_first_word(w, text, letter);
    free(words.p);
    return score;
}

static double rule_choice(const Case *c) {
    View none = { "", 0 }, text = c->n ? c->label[0] : none, letter = c->n > 1 ? c->label[1] : text;
    if (!c->n) return 0;
    return c->which == SCORER_OURS ? choice_ours(c->p, text, letter)
                                   : choice_harness(c->p, text, letter);
}

// Score in [0, 1] of a prediction of n bytes against its labels. Labels: names; option text and
// letter; the first alone where a rule knows one label.
double score_rule(ScoreRule rule, Scorer which, const char *prediction, size_t n,
                  const char *const *label, int n_labels) {
    static double (*const rules[])(const Case *) = {
        rule_substring, rule_names, rule_number, rule_passkey, rule_choice,
        rule_qa_en, rule_qa_zh, rule_letter, rule_rouge, rule_repoqa,
    };
    CHECK((size_t)rule < COUNTOF(rules), "there is no score rule %d", (int)rule);
    StrBuf p = text_repaired(prediction, n);
    StrBuf *fixed = (StrBuf *)xrealloc(NULL, ((size_t)n_labels + 1) * sizeof *fixed);
    View *views = (View *)xrealloc(NULL, ((size_t)n_labels + 1) * sizeof *views);
    for (int i = 0; i < n_labels; i++) {
        fixed[i] = text_repaired(label[i] ? label[i] : "", label[i] ? strlen(label[i]) : 0);
        views[i] = (View){ fixed[i].p, fixed[i].n };
    }
    Case c = { { p.p, p.n }, views, n_labels, which };
    double score = rules[rule](&c);
    for (int i = 0; i < n_labels; i++) free(fixed[i].p);
    free(fixed);
    free(views);
    free(p.p);
    return score;
}

// Score of turn number turn of session s, by the rule of the task's part that the turn belongs to.
double task_score(const Task *t, const TaskSession *s, int turn, const char *prediction, size_t n,
                  Scorer which) {
    const TaskTurn *q = &s->turns[turn];
    ScoreRule rule = t->parts[q->part].rule;
    if (t->lb) return lb_score(t, s, turn, prediction, n, which);
    if (rule == SCORE_REPOQA) return repoqa_match(s, q->name, s->lang, prediction, n, 0.8).pass;
    return score_rule(rule, which, prediction, n, (const char *const *)q->label, q->n_labels);
}
