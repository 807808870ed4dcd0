// text.c - text as the scorers see it: code points, case, classes, words as numbers (score.h).
#include "score.h"

// ---------------------------------------------------------------------------
// text: repaired, lower, upper

void text_put(StrBuf *out, int32_t c) {
    utf8proc_uint8_t u[4];
    str_add(out, (const char *)u, (size_t)utf8proc_encode_char(c < 0 ? 0xfffd : c, u));
}

// a copy of s whose invalid bytes are U+FFFD; the caller frees p
StrBuf text_repaired(const char *s, size_t n) {
    StrBuf out = { 0 };
    str_add(&out, "", 0);
    for (size_t i = 0; i < n;) {
        int32_t c;
        size_t len = text_next(s + i, n - i, &c);
        if (c < 0) text_put(&out, c);
        else str_add(&out, s + i, len);
        i += len;
    }
    return out;
}

// the properties Cased and Case_Ignorable, which decide how a final sigma is written
static bool cased(int32_t c) {
    static const int32_t range[][2] = {
        { 0xaa, 0xaa },     { 0xba, 0xba },       { 0x2b0, 0x2b8 },     { 0x2c0, 0x2c1 },
        { 0x2e0, 0x2e4 },   { 0x345, 0x345 },     { 0x37a, 0x37a },     { 0x10fc, 0x10fc },
        { 0x1d2c, 0x1d6a }, { 0x1d78, 0x1d78 },   { 0x1d9b, 0x1dbf },   { 0x2071, 0x2071 },
        { 0x207f, 0x207f }, { 0x2090, 0x209c },   { 0x2160, 0x217f },   { 0x24b6, 0x24e9 },
        { 0x2c7c, 0x2c7d }, { 0xa69c, 0xa69d },   { 0xa770, 0xa770 },   { 0xa7f8, 0xa7f9 },
        { 0xab5c, 0xab5f }, { 0x1f130, 0x1f149 }, { 0x1f150, 0x1f169 }, { 0x1f170, 0x1f189 },
    };
    utf8proc_category_t g = utf8proc_category(c);
    if (g == UTF8PROC_CATEGORY_LU || g == UTF8PROC_CATEGORY_LL || g == UTF8PROC_CATEGORY_LT)
        return true;
    for (size_t i = 0; i < COUNTOF(range); i++)
        if (c >= range[i][0] && c <= range[i][1]) return true;
    return false;
}
static bool case_ignorable(int32_t c) {
    utf8proc_category_t g = utf8proc_category(c);
    if (g == UTF8PROC_CATEGORY_MN || g == UTF8PROC_CATEGORY_ME || g == UTF8PROC_CATEGORY_CF ||
        g == UTF8PROC_CATEGORY_LM || g == UTF8PROC_CATEGORY_SK) return true;
    return c == '\'' || c == '.' || c == ':' || c == 0xb7 || c == 0x387 || c == 0x55f ||
           c == 0x5f4 || c == 0x2018 || c == 0x2019 || c == 0x2024 || c == 0x2027 || c == 0xfe13 ||
           c == 0xfe52 || c == 0xfe55 || c == 0xff07 || c == 0xff0e;
}

// the sigma at byte i of s ends a word: a cased letter before it and none after, ignorables aside
static bool final_sigma(const char *s, size_t n, size_t i) {
    int32_t c;
    size_t k = i;
    bool before = false;
    while (k) {
        for (k--; k && ((uint8_t)s[k] & 0xc0) == 0x80;) k--;
        text_next(s + k, n - k, &c);
        if (case_ignorable(c)) continue;
        before = cased(c);
        break;
    }
    for (k = i + 2; before && k < n;) {
        k += text_next(s + k, n - k, &c);
        if (!case_ignorable(c)) return !cased(c);
    }
    return before;
}

// full lower case of repaired text
StrBuf text_lowered(const char *s, size_t n) {
    StrBuf out = { 0 };
    str_add(&out, "", 0);
    for (size_t i = 0; i < n;) {
        int32_t c;
        size_t len = text_next(s + i, n - i, &c);
        if (c == 0x130) str_add(&out, "i\xcc\x87", 3);
        else if (c == 0x3a3) text_put(&out, final_sigma(s, n, i) ? 0x3c2 : 0x3c3);
        else text_put(&out, utf8proc_tolower(c));
        i += len;
    }
    return out;
}

// Full upper case. What maps to several letters is what folds to several (U+00DF, ligatures, iota
// subscripts), except capitals, which stay.
StrBuf text_uppered(const char *s, size_t n) {
    StrBuf out = { 0 };
    str_add(&out, "", 0);
    for (size_t i = 0; i < n;) {
        int32_t c, fold[8];
        int last;
        i += text_next(s + i, n - i, &c);
        utf8proc_ssize_t k = utf8proc_category(c) == UTF8PROC_CATEGORY_LU
            ? 1 : utf8proc_decompose_char(c, fold, COUNTOF(fold), UTF8PROC_CASEFOLD, &last);
        if (k <= 1 || k > (utf8proc_ssize_t)COUNTOF(fold)) {
            fold[0] = c;
            k = 1;
        }
        for (utf8proc_ssize_t j = 0; j < k; j++) text_put(&out, utf8proc_toupper(fold[j]));
    }
    return out;
}

bool text_word(int32_t c) {       // \w
    if (c == '_') return true;
    utf8proc_category_t g = utf8proc_category(c);
    return (g >= UTF8PROC_CATEGORY_LU && g <= UTF8PROC_CATEGORY_LO) ||
           (g >= UTF8PROC_CATEGORY_ND && g <= UTF8PROC_CATEGORY_NO);
}
bool text_punct(int32_t c) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
}
bool text_digit(int32_t c) { return c >= 0 && utf8proc_category(c) == UTF8PROC_CATEGORY_ND; }

// value of a decimal digit: Unicode gives them in runs that begin with zero
int text_digit_value(int32_t c) {
    int k = 0;
    while (text_digit(c - k - 1)) k++;
    return k % 10;
}

// ---------------------------------------------------------------------------
// words: texts to small numbers, equal for equal texts. The texts must outlive the table.

void words_free(WordIds *w) {
    free((void *)w->text);
    free(w->len);
    free(w->slot);
}

static void words_grow(WordIds *w) {
    size_t size = w->slot ? (w->mask + 1) * 2 : 256;
    w->mask = size - 1;
    w->text = (const char **)xrealloc((void *)w->text, size * sizeof *w->text);
    w->len = (size_t *)xrealloc(w->len, size * sizeof *w->len);
    w->slot = (int32_t *)xrealloc(w->slot, size * sizeof *w->slot);
    for (size_t i = 0; i < size; i++) w->slot[i] = -1;
    for (int id = 0; id < w->n; id++) {
        size_t at = text_hash(w->text[id], w->len[id]) & w->mask;
        while (w->slot[at] >= 0) at = (at + 1) & w->mask;
        w->slot[at] = id;
    }
}

int word_id(WordIds *w, const char *s, size_t n) {
    if (!w->slot || (size_t)w->n * 2 > w->mask) words_grow(w);
    size_t at = text_hash(s, n) & w->mask;
    for (; w->slot[at] >= 0; at = (at + 1) & w->mask) {
        int id = w->slot[at];
        if (w->len[id] == n && !memcmp(w->text[id], s, n)) return id;
    }
    w->text[w->n] = s;
    w->len[w->n] = n;
    w->slot[at] = w->n;
    return w->n++;
}

// sum over words of min(count in a, count in b)
size_t words_overlap(const IntVec *a, const IntVec *b, int n_words) {
    int32_t *left = (int32_t *)calloc((size_t)n_words + 1, sizeof *left);
    CHECK(left, "no memory to count %d words", n_words);
    size_t same = 0;
    for (size_t i = 0; i < b->n; i++) left[b->p[i]]++;
    for (size_t i = 0; i < a->n; i++)
        if (left[a->p[i]]-- > 0) same++;
    free(left);
    return same;
}

// F1 = 2PR / (P + R), P = same / n, R = same / m
double f1_of(size_t same, size_t n, size_t m) {
    if (!same) return 0;
    double p = (double)same / (double)n, r = (double)same / (double)m;
    return 2 * p * r / (p + r);
}
