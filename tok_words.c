// tok_words.c - Unigram (XLM-R) and WordPiece (BERT): text is normalised, cut into words, and every
// word is covered with pieces: the likeliest ones, or the longest ones from the left.
//
// Kudo and Richardson 2018, arXiv 1808.06226; Schuster and Nakajima 2012. The rules and their order
// are those of Hugging Face tokenizers (models/unigram, models/wordpiece, normalizers/precompiled,
// normalizers/bert). A space stands for the piece marker U+2581 in tokens and in text.
#include "tok.h"

// ---------------------------------------------------------------------------
// Pieces as a tree: node 0 is the root

static int32_t child(const Tok *t, int32_t node, uint8_t byte) {
    return map_find(&t->map, node, byte)->id;
}

static void grow(Tok *t) {
    t->ends = xrealloc(t->ends, (size_t)(t->n_nodes + 1) * sizeof *t->ends);
    t->ends[t->n_nodes++] = -1;
}

static void plant(Tok *t, const uint8_t *s, size_t n, int32_t id) {
    int32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t next = child(t, at, s[i]);
        if (next < 0) {
            next = t->n_nodes;
            map_put(&t->map, (Pair){ at, s[i], 0, next });
            grow(t);
        }
        at = next;
    }
    if (t->ends[at] < 0) t->ends[at] = id;
}

static void plant_all(Tok *t) {
    grow(t);
    for (int i = 0; i < t->n; i++) {
        size_t n;
        const uint8_t *p = token(t, i, &n);
        if (t->types[i] == NORMAL && n) plant(t, p, n, i);
    }
}

static int read_unk(Tok *t, ModelFile *f, Err *err) {
    int64_t unk;
    if (file_int(f, "unk_id", 0, t->n - 1, &unk, err)) return -1;
    t->unk = (int)unk;
    return 0;
}

// ---------------------------------------------------------------------------
// The charsmap: a double array of replacements. Unit u: bit 8 has a value below, bits 31 and 7..0
// label, the others the offset of its children; a value is a position in the replacements.

static uint32_t unit_at(const Tok *t, uint32_t i) {
    uint32_t u, trie;
    memcpy(&trie, t->charsmap, 4);
    if (i >= trie / 4) return 1u << 31;         // no byte has this label
    memcpy(&u, t->charsmap + 4 + 4 * (size_t)i, 4);
    return u;
}

static uint32_t unit_offset(uint32_t u) { return (u >> 10) << ((u & (1u << 9)) >> 6); }

// The replacement of the shortest key that s begins with, NULL when there is none. Differs:
// SentencePiece takes the longest; the reference and so the models' users take this one.
static const char *replacement(const Tok *t, const uint8_t *s, size_t n) {
    uint32_t trie, at = unit_offset(unit_at(t, 0));
    memcpy(&trie, t->charsmap, 4);
    for (size_t i = 0; i < n && s[i]; i++) {
        at ^= s[i];
        uint32_t u = unit_at(t, at);
        if ((u & (1u << 31 | 0xff)) != s[i]) return NULL;
        at ^= unit_offset(u);
        if (!(u >> 8 & 1)) continue;
        size_t value = unit_at(t, at) & 0x7fffffff;
        return value < t->charsmap_bytes - 4 - trie ? (char *)t->charsmap + 4 + trie + value : NULL;
    }
    return NULL;
}

// the part's characters become those of the replacement one by one; more of them stand where its
// last one stood
static void replace(const char *by, const uint8_t *s, size_t n, size_t at, Norm *out) {
    int32_t c;
    size_t from = 0, to = 0;
    for (const uint8_t *p = (const uint8_t *)by; *p;) {
        size_t len = char_at(p, strlen((const char *)p), &c);
        if (!len) len = 1;
        if (to < n) {
            size_t old = char_at(s + to, n - to, &c);
            from = to;
            to += old ? old : 1;
        }
        norm_add(out, p, len, at + from, at + to);
        p += len;
    }
}

static void map_characters(const Tok *t, const uint8_t *s, size_t n, size_t at, Norm *out) {
    for (size_t i = 0, len; i < n; i += len) {
        int32_t c;
        len = char_at(s + i, n - i, &c);
        const char *by = len ? replacement(t, s + i, len) : NULL;
        if (!len) len = 1;
        if (by) replace(by, s + i, len, at + i, out);
        else norm_add(out, s + i, len, at + i, at + i + len);
    }
}

// bytes of the grapheme cluster at s: no break is inside it (Unicode Standard Annex 29)
static size_t cluster(const uint8_t *s, size_t n) {
    int32_t c, next, state = 0;
    size_t at = char_at(s, n, &c), len;
    if (!at) return 1;
    for (; (len = char_at(s + at, n - at, &next)); at += len, c = next)
        if (utf8proc_grapheme_break_stateful(c, next, &state)) break;
    return at;
}

// A short cluster is looked up as a whole, the characters of a long or unknown one singly. Where
// words do not separate by white space, it goes at the end and runs of spaces become one.
void unigram_normalise(const Tok *t, const uint8_t *s, size_t n, size_t at, Norm *out) {
    enum { SHORT = 6 };
    for (size_t i = 0, len; i < n; i += len) {
        if (s[i] < 0x80 && (i + 1 == n || s[i + 1] < 0x80) && s[i] != '\r') len = 1;
        else len = cluster(s + i, n - i);
        const char *by = t->charsmap && len < SHORT ? replacement(t, s + i, len) : NULL;
        if (by) replace(by, s + i, len, at + i, out);
        else if (t->charsmap) map_characters(t, s + i, len, at + i, out);
        else norm_add(out, s + i, len, at + i, at + i + len);
    }
    if (t->words) return;
    size_t end = out->s.n, k = 0, len;
    for (int32_t c; (len = char_before((uint8_t *)out->s.p, end, &c)) && is_space(c);) end -= len;
    for (size_t i = 0; i < end; i++) {
        if (out->s.p[i] == ' ' && i + 1 < end && out->s.p[i + 1] == ' ') continue;
        out->s.p[k] = out->s.p[i];
        out->from.p[k] = out->from.p[i];
        out->to.p[k++] = out->to.p[i];
    }
    out->s.n = out->from.n = out->to.n = k;
}

// ---------------------------------------------------------------------------
// Unigram: the pieces with the largest sum of scores

// bytes a to b of x, a word that begins with a space
static void likeliest(Enc *e, const Norm *x, size_t a, size_t b) {
    const Tok *t = e->t;
    const uint8_t *s = (const uint8_t *)x->s.p + a;
    size_t n = b - a;
    if (n >= e->best_cap) e->best = xrealloc(e->best, (e->best_cap = 2 * n + 2) * sizeof *e->best);
    Best *best = e->best;
    for (size_t i = 0; i <= n; i++) best[i] = (Best){ .from = -1 };
    for (size_t i = 0, len; i < n; i += len) {
        int32_t c, node = 0;
        bool alone = false;             // there is a piece of just this character
        len = char_at(s + i, n - i, &c);
        if (!len) len = 1;
        for (size_t j = i; j < n && (node = child(t, node, s[j])) >= 0; j++) {
            int32_t id = t->ends[node];
            if (id < 0) continue;
            Best *to = &best[j + 1];
            double score = t->score[id] + best[i].score;
            if (to->from < 0 || score > to->score) *to = (Best){ score, (int32_t)i, id, 0 };
            alone |= j + 1 == i + len;
        }
        double score = t->unk_score + best[i].score;
        if (!alone && (best[i + len].from < 0 || score > best[i + len].score))
            best[i + len] = (Best){ score, (int32_t)i, t->unk, 0 };
    }
    for (size_t i = n; i; i = (size_t)best[i].from) best[best[i].from].to = (int32_t)i;
    for (size_t i = 0, j; i < n; i = j) {           // unknown neighbours are one piece
        j = (size_t)best[i].to;
        int32_t id = best[j].id;
        while (id == t->unk && j < n && best[best[j].to].id == id) j = (size_t)best[j].to;
        emit(e, id, (size_t)x->from.p[a + i], (size_t)x->to.p[a + j - 1]);
    }
}

// Bytes a to b of x, with marks as spaces and one in front, are cut before every space. to: scratch
static void marked(Enc *e, const Norm *x, size_t a, size_t b, Norm *to) {
    static const char mark[3] = "\xe2\x96\x81";
    to->s.n = to->from.n = to->to.n = 0;
    bool has = x->s.p[a] == ' ' || (b - a >= 3 && !memcmp(x->s.p + a, mark, 3));
    if (!has) norm_add(to, " ", 1, (size_t)x->from.p[a], (size_t)x->to.p[a]);
    for (size_t i = a, len; i < b; i += len) {
        bool is_mark = b - i >= 3 && !memcmp(x->s.p + i, mark, 3);
        len = is_mark ? 3 : 1;
        norm_add(to, is_mark ? " " : x->s.p + i, 1, (size_t)x->from.p[i], (size_t)x->to.p[i]);
    }
    for (size_t i = 0, j; i < to->s.n; i = j) {
        for (j = i + 1; j < to->s.n && to->s.p[j] != ' ';) j++;
        likeliest(e, to, i, j);
    }
}

void unigram_encode(Enc *e, const Norm *x, size_t a, size_t b) {
    Norm scratch = { 0 };
    const uint8_t *s = (const uint8_t *)x->s.p;
    for (size_t i = a, word = a; i <= b && a < b;) {
        int32_t c = 0;
        size_t len = i < b ? char_at(s + i, b - i, &c) : 1;
        if (!len) len = 1;
        if (i == b || (e->t->words && is_space(c))) {
            if (i > word) marked(e, x, word, i, &scratch);
            word = i + len;
        }
        i += len;
    }
    norm_free(&scratch);
}

static int read_charsmap(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *r = file_find(f, "tok.charsmap");
    uint32_t trie = 0;
    if (!r) return 0;
    if (r->dtype != DT_U8 || r->ndim != 1 || r->bytes < 8)
        return FAIL(err, "%s: tok.charsmap is not a row of 8 or more bytes", f->path);
    memcpy(&trie, file_data(f, r), 4);
    if (trie % 4 || trie < 4 || trie > r->bytes - 4)
        return FAIL(err, "%s: tok.charsmap has %llu bytes, its trie says %u", f->path,
                    (unsigned long long)r->bytes, trie);
    t->charsmap_bytes = r->bytes;
    t->charsmap = xrealloc(NULL, r->bytes + 1);
    memcpy(t->charsmap, file_data(f, r), r->bytes);
    t->charsmap[r->bytes] = 0;
    return 0;
}

int unigram_read(Tok *t, ModelFile *f, Err *err) {
    enum { UNKNOWN_PENALTY = 10 };
    int64_t words;
    if (file_int(f, "tok_words", 0, 1, &words, err) || read_unk(t, f, err)
        || read_scores(t, f, err) || read_charsmap(t, f, err)) return -1;
    t->words = words;
    double least = 0;
    for (int i = 0; i < t->n; i++) least = t->score[i] < least ? t->score[i] : least;
    t->unk_score = least - UNKNOWN_PENALTY;
    plant_all(t);
    return 0;
}

// ---------------------------------------------------------------------------
// WordPiece

static bool in(int32_t c, const int32_t (*range)[2], size_t n) {
    for (size_t i = 0; i < n; i++)
        if (range[i][0] <= c && c <= range[i][1]) return true;
    return false;
}

// The reference's tables of categories are those of Unicode 8: what was punctuation then is, what
// became punctuation since is not.
static bool is_punctuation(int32_t c) {
    static const int32_t then[][2] = { { 0x166d, 0x166d }, { 0x111c9, 0x111c9 } };
    static const int32_t since[][2] = {
        { 0x61d, 0x61d }, { 0x9fd, 0x9fd }, { 0xa76, 0xa76 }, { 0xc77, 0xc77 }, { 0xc84, 0xc84 },
        { 0x1b4e, 0x1b4f }, { 0x1b7d, 0x1b7f }, { 0x2e43, 0x2e5d }, { 0x10d6e, 0x10d6e },
        { 0x10ead, 0x10ead }, { 0x10ed0, 0x10ed0 }, { 0x10f55, 0x10f59 }, { 0x10f86, 0x10f89 },
        { 0x113d4, 0x113d8 }, { 0x1144b, 0x1144f }, { 0x1145a, 0x1145b }, { 0x1145d, 0x1145d },
        { 0x11660, 0x1166c }, { 0x116b9, 0x116b9 }, { 0x1183b, 0x1183b }, { 0x11944, 0x11946 },
        { 0x119e2, 0x119e2 }, { 0x11a3f, 0x11a46 }, { 0x11a9a, 0x11a9c }, { 0x11a9e, 0x11aa2 },
        { 0x11b00, 0x11b09 }, { 0x11be1, 0x11be1 }, { 0x11c41, 0x11c45 }, { 0x11c70, 0x11c71 },
        { 0x11ef7, 0x11ef8 }, { 0x11f43, 0x11f4f }, { 0x11fff, 0x11fff }, { 0x12ff1, 0x12ff2 },
        { 0x16d6d, 0x16d6f }, { 0x16e97, 0x16e9a }, { 0x16fe2, 0x16fe2 }, { 0x1e5ff, 0x1e5ff },
        { 0x1e95e, 0x1e95f },
    };
    if (c < 0x80) return (c >= 0x21 && c <= 0x2f) || (c >= 0x3a && c <= 0x40)
                      || (c >= 0x5b && c <= 0x60) || (c >= 0x7b && c <= 0x7e);
    utf8proc_category_t g = utf8proc_category(c);
    bool now = g >= UTF8PROC_CATEGORY_PC && g <= UTF8PROC_CATEGORY_PO;
    return (now && !in(c, since, COUNTOF(since))) || in(c, then, COUNTOF(then));
}

// control characters, which are dropped: Cc, Cf, Co as of Unicode 8, and U+FFFD
static bool is_control(int32_t c) {
    static const int32_t since[][2] = { { 0x890, 0x891 }, { 0x8e2, 0x8e2 }, { 0x110cd, 0x110cd },
                                        { 0x13430, 0x1343f } };
    utf8proc_category_t g = utf8proc_category(c);
    return c == 0xfffd || ((g == UTF8PROC_CATEGORY_CC || g == UTF8PROC_CATEGORY_CF
                            || g == UTF8PROC_CATEGORY_CO) && !in(c, since, COUNTOF(since)));
}

// a word of its own
static bool is_ideograph(int32_t c) {
    static const int32_t range[][2] = { { 0x3400, 0x4dbf }, { 0x4e00, 0x9fff }, { 0xf900, 0xfaff },
        { 0x20000, 0x2a6df }, { 0x2a700, 0x2b81f }, { 0x2b920, 0x2ceaf }, { 0x2f800, 0x2fa1f } };
    return in(c, range, COUNTOF(range));
}

// Control characters and invalid bytes go, white space becomes a space, ideographs get spaces.
void wordpiece_normalise(const uint8_t *s, size_t n, size_t at, Norm *out) {
    for (size_t i = 0, len; i < n; i += len) {
        int32_t c;
        len = char_at(s + i, n - i, &c);
        size_t from = at + i, to = at + i + len;
        if (!len) {
            len = 1;
        } else if (c == '\t' || c == '\n' || c == '\r') {
            norm_add(out, " ", 1, from, to);
        } else if (!is_control(c)) {
            bool alone = is_ideograph(c);
            if (alone) norm_add(out, " ", 1, from, to);
            if (is_space(c)) norm_add(out, " ", 1, from, to);
            else norm_add(out, s + i, len, from, to);
            if (alone) norm_add(out, " ", 1, from, to);
        }
    }
}

// bytes a to b of x: a word that no sequence of pieces covers is one unknown token
static void longest(Enc *e, const Norm *x, size_t a, size_t b, int chars) {
    const Tok *t = e->t;
    size_t n_out = e->out->n, n_spans = e->spans ? e->spans->n : 0;
    int32_t start = 0;
    for (size_t i = a, stop; i < b; i = stop) {
        int32_t id = -1, node = start;
        stop = i;
        for (size_t j = i; j < b && node >= 0; j++) {
            node = child(t, node, (uint8_t)x->s.p[j]);
            if (node < 0 || t->ends[node] < 0) continue;
            id = t->ends[node];
            stop = j + 1;
        }
        if (id < 0 || chars > t->word_max) {
            e->out->n = n_out;
            if (e->spans) e->spans->n = n_spans;
            id = t->unk;
            i = a;
            stop = b;
        }
        emit(e, id, (size_t)x->from.p[i], (size_t)x->to.p[stop - 1]);
        start = t->inside;
    }
}

void wordpiece_encode(Enc *e, const Norm *x, size_t a, size_t b) {
    const uint8_t *s = (const uint8_t *)x->s.p;
    size_t word = a;
    int chars = 0;
    for (size_t i = a, len; i <= b && a < b; i += len) {
        int32_t c = ' ';
        len = i < b ? char_at(s + i, b - i, &c) : 1;
        bool space = is_space(c), alone = space || is_punctuation(c);
        if (alone && i > word) longest(e, x, word, i, chars);
        if (alone && !space) longest(e, x, i, i + len, 1);
        chars = alone ? 0 : chars + 1;
        if (alone) word = i + len;
    }
}

int wordpiece_read(Tok *t, ModelFile *f, Err *err) {
    int64_t word_max;
    if (read_unk(t, f, err) || file_int(f, "tok_word_max", 1, INT32_MAX, &word_max, err)) return -1;
    t->word_max = (int)word_max;
    plant_all(t);
    t->inside = child(t, 0, '#');
    if (t->inside >= 0) t->inside = child(t, t->inside, '#');
    return 0;
}
