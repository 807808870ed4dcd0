// longbench_score.c - the metrics of LongBench (Bai et al., arXiv 2308.14508).
//
// Two scorers, as in score.c. SCORER_HARNESS is what the published scripts and the packages they
// call compute, slips included; SCORER_OURS what they mean:
//
//     metric     ours                              harness
//     rouge      any length                        0 once the package's recursion would overflow
//     class      1 / classes named, substrings     the removal loop skips the class behind each
//                of the right one aside            removed one
//     code       2 LCS / (|a| + |b|)               difflib's ratio, with its junk heuristic
//
// Both are rounded where the scripts round. Text is code points (score.h).
#include "longbench.h"

// ---------------------------------------------------------------------------
// F1 (Rajpurkar et al. 2016): lower case, no punctuation, no articles, words or characters

StrBuf lb_normalize_en(const char *s, size_t n) {
    StrBuf fixed = text_repaired(s, n), low = text_lowered(fixed.p, fixed.n), plain = { 0 };
    StrBuf out = { 0 };
    for (size_t i = 0; i < low.n; i++)
        if (!text_punct((uint8_t)low.p[i])) str_add(&plain, low.p + i, 1);
    str_add(&out, "", 0);
    for (size_t i = 0; i < plain.n;) {                  // words of \w, and what lies between
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
        if (len && !article) { str_add(&out, plain.p + a, len); continue; }
        if (!len) i += len = text_next(plain.p + i, plain.n - i, &c);
        else c = ' ';
        if (!text_space(c)) str_add(&out, plain.p + a, len);
        else if (out.n && out.p[out.n - 1] != ' ') str_add(&out, " ", 1);
    }
    if (out.n && out.p[out.n - 1] == ' ') out.p[--out.n] = 0;
    free(fixed.p);
    free(low.p);
    free(plain.p);
    return out;
}

static bool zh_punct(int32_t c) {
    static const int32_t range[][2] = {
        { 0x2013, 0x2014 }, { 0x2018, 0x2019 }, { 0x201b, 0x201f }, { 0x2026, 0x2027 },
        { 0x3001, 0x3003 }, { 0x300b, 0x3011 }, { 0x3014, 0x301f }, { 0x3030, 0x3030 },
        { 0x303e, 0x303f }, { 0xfe4f, 0xfe4f }, { 0xff01, 0xff0d }, { 0xff0f, 0xff0f },
        { 0xff1a, 0xff20 }, { 0xff3b, 0xff40 }, { 0xff5b, 0xff64 },
    };
    for (size_t i = 0; i < COUNTOF(range); i++)
        if (c >= range[i][0] && c <= range[i][1]) return true;
    return text_punct(c);
}

StrBuf lb_normalize_zh(const char *s, size_t n) {
    StrBuf fixed = text_repaired(s, n), low = text_lowered(fixed.p, fixed.n), out = { 0 };
    str_add(&out, "", 0);
    for (size_t i = 0; i < low.n;) {
        int32_t c;
        size_t len = text_next(low.p + i, low.n - i, &c);
        if (!zh_punct(c) && !text_space(c)) str_add(&out, low.p + i, len);
        i += len;
    }
    free(fixed.p);
    free(low.p);
    return out;
}

typedef struct { StrBuf *text; size_t n; IntVec id; } Tokens;   // text: what the ids name

static void tokens_free(Tokens *t) {
    for (size_t i = 0; i < t->n; i++) free(t->text[i].p);
    free(t->text);
    free(t->id.p);
}

static void add_token(Tokens *t, StrBuf text, WordIds *w) {
    t->text = (StrBuf *)xrealloc(t->text, (t->n + 1) * sizeof *t->text);
    t->text[t->n++] = text;
    ints_push(&t->id, word_id(w, text.p, text.n));
}

static Tokens words_en(const char *s, size_t n, WordIds *w) {
    Tokens t = { 0 };
    StrBuf text = lb_normalize_en(s, n);
    for (size_t i = 0; i < text.n;) {
        size_t a = i;
        StrBuf word = { 0 };
        while (i < text.n && text.p[i] != ' ') i++;
        str_add(&word, text.p + a, i - a);
        add_token(&t, word, w);
        i++;
    }
    free(text.p);
    return t;
}

static Tokens words_zh(const Segmenter *g, const char *s, size_t n, WordIds *w) {
    Tokens t = { 0 };
    size_t count;
    Span *span = segment(g, s, n, &count);
    for (size_t i = 0; i < count; i++) {
        StrBuf word = lb_normalize_zh(s + span[i].at, span[i].len);
        if (word.n) add_token(&t, word, w);
        else free(word.p);
    }
    free(span);
    return t;
}

static double token_f1(Tokens a, Tokens b, WordIds *w) {
    double score = f1_of(words_overlap(&a.id, &b.id, w->n), a.id.n, b.id.n);
    tokens_free(&a);
    tokens_free(&b);
    words_free(w);
    return score;
}

// ---------------------------------------------------------------------------
// ROUGE-L (Lin 2004) as the package `rouge` has it: parts between full stops, the union over all
// pairs of parts of the set of words on one longest common subsequence, against distinct words.
//   P = |U| / n, R = |U| / m, F = 2 P R / (P + R + 1e-8)

typedef struct { IntVec id, first; } Parts;     // word ids; where each part begins, and the end

// white space in a part is one space; a part of nothing else is one empty word
static Parts parts_of(const char *s, size_t n, WordIds *w) {
    Parts out = { { 0 }, { 0 } };
    for (size_t i = 0; i < n; i++) {
        size_t a = i;
        while (i < n && s[i] != '.') i++;
        if (i == a) continue;
        size_t len = i - a, k = 0;
        const char *p = text_strip(s + a, &len);
        ints_push(&out.first, (int32_t)out.id.n);
        do {
            size_t b = k;
            int32_t c;
            while (k < len) {
                size_t step = text_next(p + k, len - k, &c);
                if (text_space(c)) break;
                k += step;
            }
            ints_push(&out.id, word_id(w, p + b, k - b));
            k += text_spaces(p + k, len - k);
        } while (k < len);
    }
    ints_push(&out.first, (int32_t)out.id.n);
    return out;
}

// Marks the words of r on one longest common subsequence with h, walking back from the ends: equal
// words both back, else up if it is strictly longer, else left. Returns the steps of the walk.
static int mark_lcs(const int32_t *r, int m, const int32_t *h, int n, uint8_t *hit) {
    size_t ld = (size_t)n + 1;
    int32_t *t = (int32_t *)xrealloc(NULL, ((size_t)m + 1) * ld * sizeof *t);
    int steps = 0;
    memset(t, 0, ld * sizeof *t);
    for (int i = 1; i <= m; i++) {
        int32_t *row = t + (size_t)i * ld, *up = row - ld;
        row[0] = 0;
        for (int j = 1; j <= n; j++)
            row[j] = r[i - 1] == h[j - 1] ? up[j - 1] + 1 : up[j] > row[j - 1] ? up[j] : row[j - 1];
    }
    for (int i = m, j = n; i && j; steps++) {
        if (r[i - 1] == h[j - 1]) hit[r[i - 1]] = 1, i--, j--;
        else if (t[(size_t)(i - 1) * ld + (size_t)j] > t[(size_t)i * ld + (size_t)j - 1]) i--;
        else j--;
    }
    free(t);
    return steps;
}

static int distinct(const IntVec *ids, int words) {
    uint8_t *seen = (uint8_t *)calloc((size_t)words + 1, 1);
    int n = 0;
    CHECK(seen, "no memory to count %d words", words);
    for (size_t i = 0; i < ids->n; i++)
        if (!seen[ids->p[i]]) seen[ids->p[i]] = 1, n++;
    free(seen);
    return n;
}

// deepest: calls the package's recursion may need; beyond that it fails and the score is 0
static double rouge_l(const char *answer, size_t n, const char *reference, size_t m, int deepest) {
    WordIds w = { 0 };
    Parts h = parts_of(answer, n, &w), r = parts_of(reference, m, &w);
    double score = 0;
    bool overflow = false;
    if (h.first.n > 1 && r.first.n > 1) {
        uint8_t *hit = (uint8_t *)calloc((size_t)w.n + 1, 1);
        CHECK(hit, "no memory to compare two texts");
        for (size_t i = 0; i + 1 < r.first.n; i++)
            for (size_t j = 0; j + 1 < h.first.n; j++) {
                int a = r.first.p[i], b = h.first.p[j];
                int steps = mark_lcs(r.id.p + a, r.first.p[i + 1] - a, h.id.p + b,
                                     h.first.p[j + 1] - b, hit);
                overflow |= steps + 1 > deepest;
            }
        int u = 0;
        for (int i = 0; i < w.n; i++) u += hit[i];
        double p = (double)u / distinct(&h.id, w.n), q = (double)u / distinct(&r.id, w.n);
        score = overflow ? 0 : 2.0 * ((p * q) / (p + q + 1e-8));
        free(hit);
    }
    words_free(&w);
    free(h.id.p);
    free(h.first.p);
    free(r.id.p);
    free(r.first.p);
    return score;
}

static double rouge_zh(const Segmenter *g, const char *s, size_t n, const char *r, size_t m,
                       int deepest) {
    StrBuf text[2] = { { 0 }, { 0 } };
    const char *in[2] = { s, r };
    size_t len[2] = { n, m };
    for (int k = 0; k < 2; k++) {
        size_t count;
        Span *span = segment(g, in[k], len[k], &count);
        str_add(&text[k], "", 0);
        for (size_t i = 0; i < count; i++) {
            if (i) str_add(&text[k], " ", 1);
            str_add(&text[k], in[k] + span[i].at, span[i].len);
        }
        free(span);
    }
    double score = rouge_l(text[0].p, text[0].n, text[1].p, text[1].n, deepest);
    free(text[0].p);
    free(text[1].p);
    return score;
}

// ---------------------------------------------------------------------------
// Numbers and classes

// share of the digit runs of a text that equal the digits d
static double share_equal(const char *s, size_t n, const char *d, size_t m) {
    int runs = 0, equal = 0;
    for (size_t i = 0; i < n;) {
        size_t a = i, b = i;
        int32_t c;
        while (i < n) {
            size_t len = text_next(s + i, n - i, &c);
            i += len;
            if (!text_digit(c)) break;
            b = i;
        }
        if (b == a) continue;
        runs++;
        equal += b - a == m && !memcmp(s + a, d, m);
    }
    return runs ? (double)equal / runs : 0;
}

// share of the numbers that are the one behind the label in the reference
static double retrieval(const char *s, size_t n, const char *reference, const char *label) {
    const char *p = reference;
    while ((p = strstr(p, label))) {
        p += strlen(label);
        size_t len = 0, left = strlen(p);
        int32_t c;
        while (len < left) {
            size_t one = text_next(p + len, left - len, &c);
            if (!text_digit(c)) break;
            len += one;
        }
        if (len) return share_equal(s, n, p, len);
    }
    return 0;
}

// 1 / (classes named in the answer), without those that are part of the right one's name, if the
// right one is named. The scripts delete from the list they walk: the next element is passed over.
static double classification(Scorer which, const char *s, size_t n, const char *right,
                             const char *const *classes, int n_classes) {
    const char **named = (const char **)xrealloc(NULL, ((size_t)n_classes + 1) * sizeof *named);
    int count = 0;
    bool found = false;
    for (int i = 0; i < n_classes; i++)
        if (!classes[i][0] || memmem(s, n, classes[i], strlen(classes[i])))
            named[count++] = classes[i];
    for (int k = 0; k < count; k++) {
        if (!strstr(right, named[k]) || !strcmp(right, named[k])) continue;
        memmove((void *)(named + k), (void *)(named + k + 1),
                (size_t)(count - k - 1) * sizeof *named);
        count--;
        if (which == SCORER_OURS) k--;
    }
    for (int k = 0; k < count; k++) found |= !strcmp(named[k], right);
    free((void *)named);
    return found ? 1.0 / count : 0;
}

// ---------------------------------------------------------------------------
// Code: similarity of one line

typedef struct { int32_t *p; int n; } Codes;

static Codes codes_of(const char *s, size_t n) {
    Codes c = { (int32_t *)xrealloc(NULL, (n + 1) * sizeof(int32_t)), 0 };
    for (size_t i = 0; i < n;) i += text_next(s + i, n - i, &c.p[c.n++]);
    return c;
}

static int lcs_length(Codes a, Codes b) {
    int *row = (int *)calloc((size_t)b.n + 1, sizeof *row);
    CHECK(row, "no memory to compare two lines");
    for (int i = 0; i < a.n; i++)
        for (int j = 1, corner = 0; j <= b.n; j++) {
            int up = row[j];
            row[j] = a.p[i] == b.p[j - 1] ? corner + 1 : up > row[j - 1] ? up : row[j - 1];
            corner = up;
        }
    int n = row[b.n];
    free(row);
    return n;
}

// Characters that both lines share in matching blocks, difflib's way: the longest common block of
// a[a0, a1) and b[b0, b1) (ties: earliest in a, then in b), then left and right of it. Popular
// characters of b (more often than 1 + |b| / 100 where |b| >= 200) begin no block, but extend one.
typedef struct { Codes a, b; uint8_t *popular; int *run, *next; } Matcher;

static int matched(Matcher *m, int a0, int a1, int b0, int b1) {
    int best_a = a0, best_b = b0, best = 0;
    if (a0 >= a1 || b0 >= b1) return 0;
    memset(m->run, 0, ((size_t)m->b.n + 1) * sizeof *m->run);
    for (int i = a0; i < a1; i++) {
        memset(m->next, 0, ((size_t)m->b.n + 1) * sizeof *m->next);
        for (int j = b0; j < b1; j++) {
            if (m->b.p[j] != m->a.p[i] || m->popular[j]) continue;
            int k = m->next[j + 1] = (j > b0 ? m->run[j] : 0) + 1;
            if (k > best) best_a = i - k + 1, best_b = j - k + 1, best = k;
        }
        int *swap = m->run;
        m->run = m->next;
        m->next = swap;
    }
    while (best_a > a0 && best_b > b0 && m->a.p[best_a - 1] == m->b.p[best_b - 1])
        best_a--, best_b--, best++;
    while (best_a + best < a1 && best_b + best < b1 &&
           m->a.p[best_a + best] == m->b.p[best_b + best]) best++;
    if (!best) return 0;
    return best + matched(m, a0, best_a, b0, best_b) +
           matched(m, best_a + best, a1, best_b + best, b1);
}

static int difflib_matches(Codes a, Codes b) {
    size_t room = (size_t)b.n + 1;
    Matcher m = { a, b, (uint8_t *)calloc(room, 1), (int *)calloc(room, sizeof(int)),
                  (int *)calloc(room, sizeof(int)) };
    CHECK(m.popular && m.run && m.next, "no memory to compare two lines");
    for (int j = 0; b.n >= 200 && j < b.n; j++) {
        int count = 0;
        for (int k = 0; k < b.n; k++) count += b.p[k] == b.p[j];
        m.popular[j] = count > b.n / 100 + 1;
    }
    int n = matched(&m, 0, a.n, 0, b.n);
    free(m.popular);
    free(m.run);
    free(m.next);
    return n;
}

int lb_fuzz_ratio(Scorer which, const char *s, size_t n, const char *t, size_t m) {
    Codes a = codes_of(s, n), b = codes_of(t, m);
    int ratio = n == 0 && m == 0 ? 100 : 0;
    if (a.n && b.n) {
        int same = which == SCORER_HARNESS ? difflib_matches(a, b) : lcs_length(a, b);
        ratio = (int)nearbyint(100.0 * (2.0 * same / (a.n + b.n)));
    }
    free(a.p);
    free(b.p);
    return ratio;
}

const char *lb_first_line(const char *s, size_t *n) {
    while (*n && *s == '\n') s++, --*n;
    const char *end = (const char *)memchr(s, '\n', *n);
    if (end) *n = (size_t)(end - s);
    return s;
}

const char *lb_code_line(const char *s, size_t *n) {
    size_t left = *n;
    while (left && *s == '\n') s++, left--;
    for (;; s++, left--) {
        const char *end = (const char *)memchr(s, '\n', left);
        size_t len = end ? (size_t)(end - s) : left;
        if (!memchr(s, '`', len) && !memchr(s, '#', len) && !memmem(s, len, "//", 2)) {
            *n = len;
            return s;
        }
        *n = 0;
        if (!end) return s;
        s += len;
        left -= len;
    }
}

double lb_metric(LbMetric which, Scorer scorer, const Segmenter *g, const char *answer, size_t n,
                 const char *reference, const char *const *classes, int n_classes) {
    size_t m = strlen(reference);
    bool harness = scorer == SCORER_HARNESS;
    WordIds w = { 0 };
    switch (which) {
    case LB_F1_EN: {
        Tokens a = words_en(answer, n, &w), b = words_en(reference, m, &w);
        return token_f1(a, b, &w);
    }
    case LB_F1_ZH: {
        Tokens a = words_zh(g, answer, n, &w), b = words_zh(g, reference, m, &w);
        return token_f1(a, b, &w);
    }
    case LB_ROUGE: return rouge_l(answer, n, reference, m, harness ? 991 : INT_MAX);
    case LB_ROUGE_ZH: return rouge_zh(g, answer, n, reference, m, harness ? 990 : INT_MAX);
    case LB_CLASS: return classification(scorer, answer, n, reference, classes, n_classes);
    case LB_COUNT: return share_equal(answer, n, reference, m);
    case LB_RETRIEVAL_EN: return retrieval(answer, n, reference, "Paragraph ");
    case LB_RETRIEVAL_ZH: return retrieval(answer, n, reference, "\xe6\xae\xb5\xe8\x90\xbd");
    case LB_CODE: {
        const char *line = lb_code_line(answer, &n);
        return lb_fuzz_ratio(scorer, line, n, reference, m) / 100.0;
    }
    }
    return 0;
}
