// tokenizer.c - text and ids: the tok.* and chat.* records of a model file. BPE is here, Unigram
// and WordPiece are in tok_words.c.
//
//   text -> added tokens -> normaliser -> added tokens -> pieces -> the kind's model -> ids
//
// normaliser and pieces of BPE over bytes: NFC; cuts at invalid bytes and digits, regex pre-tokens
//                        over characters:  a space in front; words, where no token crosses them
//
// The pipeline and its order are those of Hugging Face tokenizers (models/bpe, pre_tokenizers,
// added_vocabulary). Letters: V tokens in the table, n bytes of text, k symbols of a pre-token.
// A Tok is immutable once open; everything an encode needs beside it lives in its own Enc.
#include "tok.h"
#include <xxhash.h>

enum { LSTRIP = 1, RSTRIP = 2, SINGLE_WORD = 4, NORMALIZED = 8, AS_IS = 16 };   // tok.added flags
enum { REGEX_MAX = 1 << 16, BYTES_MAX = 1 << 28 };      // bytes of a pattern, of all tokens
enum { TOKENS_MAX = 1 << 26 };
enum { SHORT_MAX = 32 };            // symbols merged by plain scanning, more by a heap
enum { PIECE_MAX = 1 << 28 };       // bytes of one pre-token: positions in the heap are 31 bits
static const char MARK[] = "\xe2\x96\x81";     // U+2581, SentencePiece's space: a space here

const uint8_t *token(const Tok *t, int id, size_t *n) {
    *n = (size_t)(t->offsets[id + 1] - t->offsets[id]);
    return t->bytes + t->offsets[id];
}

// ---------------------------------------------------------------------------
// Characters

size_t char_at(const uint8_t *s, size_t n, int32_t *c) {
    if (n && *s < 0x80) {
        *c = *s;
        return 1;
    }
    utf8proc_ssize_t len = n ? utf8proc_iterate(s, n > 4 ? 4 : (utf8proc_ssize_t)n, c) : 0;
    return len > 0 ? (size_t)len : 0;
}

size_t char_before(const uint8_t *s, size_t n, int32_t *c) {
    for (size_t k = 1; k <= 4 && k <= n; k++)
        if ((s[n - k] & 0xc0) != 0x80) return char_at(s + n - k, k, c) == k ? k : 0;
    return 0;
}

bool is_space(int32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680
        || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f
        || c == 0x205f || c == 0x3000;
}

static bool is_number(int32_t c) {                              // \p{N}
    utf8proc_category_t g = utf8proc_category(c);
    return g == UTF8PROC_CATEGORY_ND || g == UTF8PROC_CATEGORY_NL || g == UTF8PROC_CATEGORY_NO;
}

// \w of UTS 18: Alphabetic, marks, decimal digits, connectors, the two joiners
static bool is_word(int32_t c) {
    utf8proc_category_t g = utf8proc_category(c);
    return (g >= UTF8PROC_CATEGORY_LU && g <= UTF8PROC_CATEGORY_NL) || g == UTF8PROC_CATEGORY_PC
        || c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9)
        || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169)
        || (c >= 0x1f170 && c <= 0x1f189);
}

// ---------------------------------------------------------------------------
// NFC: decompose, order marks by combining class, compose (Unicode Standard Annex 15)

// stable order of every run of marks; a counting sort, since the run can be the whole text
static void order_marks(int32_t *c, size_t n, int32_t *tmp) {
    for (size_t a = 0, b; a < n; a = b) {
        bool ordered = true;
        int last = 0;
        for (b = a; b < n; b++) {
            int ccc = utf8proc_get_property(c[b])->combining_class;
            if (!ccc) break;
            ordered = ordered && ccc >= last;
            last = ccc;
        }
        if (!ordered) {
            size_t at[257] = {0};
            for (size_t i = a; i < b; i++) at[utf8proc_get_property(c[i])->combining_class + 1]++;
            for (int k = 0; k < 256; k++) at[k + 1] += at[k];
            for (size_t i = a; i < b; i++)
                tmp[at[utf8proc_get_property(c[i])->combining_class]++] = c[i];
            memcpy(c + a, tmp, (b - a) * sizeof *c);
        }
        if (b == a) b++;
    }
}

// composes the decomposed characters of v, appends them to out and empties v
static void compose(IntVec *v, IntVec *tmp, StrBuf *out) {
    if (!v->n) return;
    tmp->n = 0;
    ints_add(tmp, v->p, v->n);
    order_marks(v->p, v->n, tmp->p);
    utf8proc_ssize_t n = utf8proc_normalize_utf32(v->p, (utf8proc_ssize_t)v->n,
                                                  UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < n; i++) {
        utf8proc_uint8_t u[4];
        str_add(out, (const char *)u, (size_t)utf8proc_encode_char(v->p[i], u));
    }
    v->n = 0;
}

// invalid bytes are kept and separate what is normalised
static void nfc(const uint8_t *s, size_t n, StrBuf *out) {
    IntVec v = {0}, tmp = {0};
    for (size_t i = 0; i < n;) {
        int32_t c, parts[32];
        size_t len = char_at(s + i, n - i, &c);
        if (len) {
            int bound = 0;
            ints_add(&v, parts, (size_t)utf8proc_decompose_char(c, parts, COUNTOF(parts),
                                                                UTF8PROC_DECOMPOSE, &bound));
        } else {
            len = 1;
            compose(&v, &tmp, out);
            str_add(out, (const char *)s + i, 1);
        }
        i += len;
    }
    compose(&v, &tmp, out);
    free(v.p);
    free(tmp.p);
}

// characters below U+0300 (lead bytes below 0xcc) are their own NFC
static bool maybe_not_nfc(const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i] >= 0xcc) return true;
    return false;
}

// ---------------------------------------------------------------------------
// Merging: repeatedly the adjacent pair of lowest rank, leftmost on ties

const Pair *map_find(const PairMap *m, int32_t left, int32_t right) {
    uint64_t h = mix64((uint64_t)(uint32_t)left << 32 | (uint32_t)right) & m->mask;
    const Pair *p = &m->slot[h];
    while (p->left >= 0 && (p->left != left || p->right != right)) {
        h = (h + 1) & m->mask;
        p = &m->slot[h];
    }
    return p;
}

static void map_resize(PairMap *m, uint64_t slots) {
    PairMap old = *m;
    m->mask = slots - 1;
    m->slot = xrealloc(NULL, slots * sizeof *m->slot);
    for (uint64_t i = 0; i < slots; i++) m->slot[i] = (Pair){ -1, -1, NO_RANK, -1 };
    for (uint64_t i = 0; old.slot && i <= old.mask; i++)
        if (old.slot[i].left >= 0)
            *(Pair *)map_find(m, old.slot[i].left, old.slot[i].right) = old.slot[i];
    free(old.slot);
}

// at most two thirds of the slots are taken
void map_put(PairMap *m, Pair p) {
    if (m->n + m->n / 2 >= m->mask) map_resize(m, 2 * (m->mask + 1));
    Pair *at = (Pair *)map_find(m, p.left, p.right);
    m->n += at->left < 0;
    *at = p;
}

// O(k^2) over arrays that stay in L1
static void merge_short(Enc *e, int32_t *sym, int k) {
    const PairMap *m = &e->t->map;
    const Pair *pair[SHORT_MAX];
    int32_t rank[SHORT_MAX];
    for (int i = 0; i + 1 < k; i++) rank[i] = (pair[i] = map_find(m, sym[i], sym[i + 1]))->rank;
    while (k > 1) {
        int at = 0;
        for (int i = 1; i + 1 < k; i++)
            if (rank[i] < rank[at]) at = i;
        if (rank[at] == NO_RANK) break;
        sym[at] = pair[at]->id;
        k--;
        for (int i = at + 1; i < k; i++) {
            sym[i] = sym[i + 1];
            rank[i - 1] = rank[i];
            pair[i - 1] = pair[i];
        }
        if (at > 0) rank[at - 1] = (pair[at - 1] = map_find(m, sym[at - 1], sym[at]))->rank;
        if (at + 1 < k) rank[at] = (pair[at] = map_find(m, sym[at], sym[at + 1]))->rank;
    }
    ints_add(e->out, sym, (size_t)k);
}

static void sift_down(uint64_t *h, size_t n, size_t i) {
    uint64_t x = h[i];
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && h[c + 1] < h[c]) c++;
        if (h[c] >= x) break;
        h[i] = h[c];
    }
    h[i] = x;
}

static void heap_push(Enc *e, int32_t rank, int32_t at) {
    size_t i = e->n_heap++;
    uint64_t x = (uint64_t)rank << 32 | (uint32_t)at;
    for (; i && e->heap[(i - 1) / 2] > x; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = x;
}

// the pair that starts at position i changed
static void pair_changed(Enc *e, int32_t i) {
    int32_t j = e->next[i];
    e->rank[i] = NO_RANK;
    if (j < 0) return;
    const Pair *p = map_find(&e->t->map, e->sym[i], e->sym[j]);
    e->rank[i] = p->rank;
    e->made[i] = p->id;
    if (p->rank != NO_RANK) heap_push(e, p->rank, i);
}

// O(k log k). A heap entry whose rank is no longer its position's is stale. Each merge removes one
// symbol and pushes at most two entries for the one it popped, so 2k entries are enough.
static void merge_long(Enc *e, size_t k) {
    e->n_heap = 0;
    for (size_t i = 0; i < k; i++) {
        const Pair *p = i + 1 < k ? map_find(&e->t->map, e->sym[i], e->sym[i + 1]) : NULL;
        e->prev[i] = (int32_t)i - 1;
        e->next[i] = p ? (int32_t)i + 1 : -1;
        e->rank[i] = p ? p->rank : NO_RANK;
        e->made[i] = p ? p->id : -1;
        if (e->rank[i] != NO_RANK) e->heap[e->n_heap++] = (uint64_t)e->rank[i] << 32 | i;
    }
    for (size_t i = e->n_heap / 2; i-- > 0;) sift_down(e->heap, e->n_heap, i);
    while (e->n_heap) {
        int32_t rank = (int32_t)(e->heap[0] >> 32), i = (int32_t)(uint32_t)e->heap[0];
        e->heap[0] = e->heap[--e->n_heap];
        if (e->n_heap) sift_down(e->heap, e->n_heap, 0);
        if (e->rank[i] != rank) continue;
        int32_t j = e->next[i];
        e->sym[i] = e->made[i];
        e->next[i] = e->next[j];
        e->rank[j] = NO_RANK;
        if (e->next[j] >= 0) e->prev[e->next[j]] = i;
        pair_changed(e, i);
        if (e->prev[i] >= 0) pair_changed(e, e->prev[i]);
    }
    for (int32_t i = 0; i >= 0; i = e->next[i]) ints_push(e->out, e->sym[i]);
}

static void enc_reserve(Enc *e, size_t k) {
    if (k <= e->cap) return;
    e->cap = k * 2;
    e->sym = xrealloc(e->sym, e->cap * sizeof *e->sym);
    e->prev = xrealloc(e->prev, e->cap * sizeof *e->prev);
    e->next = xrealloc(e->next, e->cap * sizeof *e->next);
    e->rank = xrealloc(e->rank, e->cap * sizeof *e->rank);
    e->made = xrealloc(e->made, e->cap * sizeof *e->made);
    e->heap = xrealloc(e->heap, 2 * e->cap * sizeof *e->heap);
}

// the slot of a whole string: its token's, or the free one where it belongs
static int32_t *word_slot(const Tok *t, const uint8_t *s, size_t n) {
    uint64_t h = XXH3_64bits(s, n) & t->word_mask;
    for (; t->word[h] >= 0; h = (h + 1) & t->word_mask) {
        size_t len;
        const uint8_t *p = token(t, t->word[h], &len);
        if (len == n && !memcmp(p, s, n)) break;
    }
    return &t->word[h];
}

// the bytes' tokens of a character that has none, or the unknown token
static size_t spell(const Tok *t, const uint8_t *s, size_t n, int32_t *sym, size_t k) {
    bool all = true;
    for (size_t i = 0; i < n; i++) all = all && t->byte_id[s[i]] >= 0;
    for (size_t i = 0; all && i < n; i++) sym[k++] = t->byte_id[s[i]];
    if (!all && t->unk >= 0 && !(k && sym[k - 1] == t->unk)) sym[k++] = t->unk;     // runs are one
    return k;
}

// The symbols a pre-token starts from. Bytes without a token are dropped, so that their neighbours
// can merge. By score, a character without a token is V + character until the merging is done.
static size_t symbols(const Tok *t, const uint8_t *s, size_t n, int32_t *sym) {
    size_t k = 0;
    for (size_t i = 0, len; i < n; i += len) {
        int32_t c = 0, id;
        len = t->kind == KIND_BYTES ? 0 : char_at(s + i, n - i, &c);
        id = len ? map_find(&t->map, c, -1)->id : t->byte_id[s[i]];
        if (id >= 0) sym[k++] = id;
        else if (len && t->by_score) sym[k++] = t->n + c;
        else if (t->kind == KIND_CHARS) k = spell(t, s + i, len ? len : 1, sym, k);
        if (!len) len = 1;
    }
    return k;
}

// out[from ..]: characters that found no token become their bytes
static void spell_rest(Enc *e, size_t from) {
    const Tok *t = e->t;
    size_t i = from;
    while (i < e->out->n && e->out->p[i] < t->n) i++;
    if (i == e->out->n) return;
    IntVec rest = { 0 };
    ints_add(&rest, e->out->p + i, e->out->n - i);
    e->out->n = i;
    for (size_t j = 0; j < rest.n; j++) {
        int32_t ids[5], last = e->out->n > from ? e->out->p[e->out->n - 1] : -1;
        uint8_t u[4];
        if (rest.p[j] < t->n) {
            ints_push(e->out, rest.p[j]);
            continue;
        }
        ids[0] = last;
        size_t len = (size_t)utf8proc_encode_char(rest.p[j] - t->n, u);
        size_t k = spell(t, u, len, ids, 1);
        ints_add(e->out, ids + 1, k - 1);
    }
    free(rest.p);
}

static void encode_word(Enc *e, const uint8_t *s, size_t n) {
    const Tok *t = e->t;
    for (; n > PIECE_MAX; s += PIECE_MAX, n -= PIECE_MAX) encode_word(e, s, PIECE_MAX);
    int32_t id = *word_slot(t, s, n), few[SHORT_MAX];
    if (id >= 0) {
        ints_push(e->out, id);
        return;
    }
    if (n > SHORT_MAX) enc_reserve(e, n);
    int32_t *sym = n > SHORT_MAX ? e->sym : few;
    size_t k = symbols(t, s, n, sym), from = e->out->n;
    if (k > SHORT_MAX) merge_long(e, k);
    else if (k) merge_short(e, sym, (int)k);
    if (t->by_score && t->kind == KIND_CHARS) spell_rest(e, from);
}

// ---------------------------------------------------------------------------
// Pre-tokens

// A match at or after `at` as span[0] .. span[1]. Where JIT code runs out of its stack, the
// interpreter repeats the match: it has the heap. An error (the match limit) counts as no match.
static bool next_match(Enc *e, const uint8_t *s, size_t n, size_t at, size_t span[2]) {
    int rc = pcre2_match(e->t->re, s, n, at, PCRE2_NO_UTF_CHECK, e->match, e->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(e->t->re, s, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, e->match,
                         e->limits);
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(e->match);
    span[0] = v[0];
    span[1] = v[1];
    return rc >= 0 && at <= v[0] && v[0] <= v[1];
}

// Valid UTF-8: each match of the regex and each gap between matches is a pre-token. An empty match
// parts what is left and right of it.
static void split_regex(Enc *e, const uint8_t *s, size_t n) {
    size_t done = 0, at = 0, m[2];
    while (e->t->re && at < n && next_match(e, s, n, at, m)) {
        if (m[0] > done) encode_word(e, s + done, m[0] - done);
        if (m[1] > m[0]) encode_word(e, s + m[0], m[1] - m[0]);
        done = at = m[1];
        if (m[1] == m[0])
            for (at++; at < n && (s[at] & 0xc0) == 0x80;) at++;
    }
    if (done < n) encode_word(e, s + done, n - done);
}

// A run of invalid bytes is a pre-token, and so is, if the tokenizer says so, every digit. The
// regex sees the pieces between them as texts of their own.
static void split_pieces(Enc *e, const uint8_t *s, size_t n) {
    size_t from = 0, i = 0, len;
    for (int32_t c; i < n; i += len) {
        len = char_at(s + i, n - i, &c);
        if (len && !(e->t->digits && is_number(c))) continue;
        split_regex(e, s + from, i - from);
        from = i;
        if (len) {
            split_regex(e, s + i, len);
        } else {
            for (len = 1; i + len < n && !char_at(s + i + len, n - i - len, &c);) len++;
            encode_word(e, s + i, len);
        }
        from = i + len;
    }
    split_regex(e, s + from, n - from);
}

// BPE over characters: bytes a to b of s, at the start of the text or not
static void split_words(Enc *e, const uint8_t *s, size_t n, bool at_start) {
    const Tok *t = e->t;
    StrBuf with = { 0 };
    bool wanted = t->prefix == PREFIX_MISSING || (t->prefix == PREFIX_FIRST && at_start);
    if (wanted && *s != ' ' && !(at_start && e->flags & TOK_MIDDLE)) {
        str_puts(&with, " ");
        str_add(&with, (const char *)s, n);
        s = (const uint8_t *)with.p;
        n = with.n;
    }
    size_t from = 0;
    for (size_t i = 1; t->split_words && i < n; i++)
        if (s[i] == ' ' && s[i - 1] != ' ') {
            encode_word(e, s + from, i - from);
            from = i;
        }
    encode_word(e, s + from, n - from);
    free(with.p);
}

// ---------------------------------------------------------------------------
// Added tokens: leftmost, then longest

static int32_t *trie_child(const Trie *r, int32_t *head, uint8_t b) {
    while (*head && r->node[*head].byte != b) head = &r->node[*head].next;
    return head;
}

static void trie_add(Trie *r, const uint8_t *s, size_t n, int32_t id) {
    if (r->n + (int)n + 1 > r->cap) {
        r->cap = (r->n + (int)n + 1) * 2;
        r->node = xrealloc(r->node, (size_t)r->cap * sizeof *r->node);
    }
    if (!r->n) r->node[r->n++] = (Node){ .id = -1 };
    int32_t *head = &r->first[*s], at = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t *link = trie_child(r, head, s[i]);
        if (!*link) {
            *link = r->n;
            r->node[r->n++] = (Node){ .id = -1, .byte = s[i] };
        }
        at = *link;
        head = &r->node[at].child;
    }
    if (r->node[at].id < 0) r->node[at].id = id;
}

static int32_t trie_longest(const Trie *r, const uint8_t *s, size_t n, size_t *len) {
    int32_t id = -1, at = r->first[*s];
    for (size_t i = 1; at; i++) {
        const Node *d = &r->node[at];
        if (d->id >= 0) {
            id = d->id;
            *len = i;
        }
        if (i == n) break;
        for (at = d->child; at && r->node[at].byte != s[i];) at = r->node[at].next;
    }
    return id;
}

typedef struct { size_t scan, done, start, stop; } Cut;     // a walk over added tokens in a text

// The next added token in text s at or after c->scan, -1 when there is none; it covers c->start ..
// c->stop, white space that it strips included. As in the reference, a rejected match still hides
// what it covers, and an added token of white space is found even where the one before stripped it.
static int32_t next_added(const Enc *e, const Trie *r, const uint8_t *s, size_t n, Cut *c) {
    const Tok *t = e->t;
    for (size_t i = r->n ? c->scan : n, len; i < n; i++) {
        int32_t ch, id = trie_longest(r, s + i, n - i, &len);
        if (id < 0) continue;
        c->start = i;
        c->stop = c->scan = i + len;
        i += len - 1;
        if (t->types[id] == SPECIAL && !(e->flags & TOK_SPECIAL)) continue;
        if (t->flags[id] & SINGLE_WORD
            && ((char_before(s, c->start, &ch) && is_word(ch))
                || (char_at(s + c->stop, n - c->stop, &ch) && is_word(ch)))) continue;
        if (t->flags[id] & LSTRIP)
            while (c->start > c->done && (len = char_before(s, c->start, &ch)) && is_space(ch))
                c->start -= len;
        if (t->flags[id] & RSTRIP)
            while ((len = char_at(s + c->stop, n - c->stop, &ch)) && is_space(ch)) c->stop += len;
        return id;
    }
    return -1;
}

void norm_add(Norm *x, const void *p, size_t n, size_t from, size_t to) {
    str_add(&x->s, p, n);
    for (size_t i = 0; i < n; i++) {
        ints_push(&x->from, (int32_t)from);
        ints_push(&x->to, (int32_t)to);
    }
}

void norm_free(Norm *x) {
    free(x->s.p);
    free(x->from.p);
    free(x->to.p);
}

void emit(Enc *e, int32_t id, size_t from, size_t to) {
    ints_push(e->out, id);
    if (e->spans) ints_add(e->spans, (int32_t[]){ (int32_t)from, (int32_t)to }, 2);
}

// marks become spaces
static void add_unmarked(StrBuf *out, const uint8_t *s, size_t n) {
    const char *p = (const char *)s, *end = p + n;
    for (const char *m; (m = memmem(p, (size_t)(end - p), MARK, 3)); p = m + 3) {
        str_add(out, p, (size_t)(m - p));
        str_puts(out, " ");
    }
    str_add(out, p, (size_t)(end - p));
}

// bytes [at, at + n) of the text, no added token in them; false: they are their own normal form
static bool normalise(const Enc *e, const uint8_t *s, size_t n, size_t at, Norm *out) {
    const Tok *t = e->t;
    if (t->kind == KIND_BYTES) {
        if (!t->nfc || !maybe_not_nfc(s, n)) return false;
        nfc(s, n, &out->s);
    } else if (t->kind == KIND_CHARS) {
        bool space = t->prefix == PREFIX_EVERY && !(at == 0 && e->flags & TOK_MIDDLE);
        if (!space && !memmem(s, n, MARK, 3)) return false;
        if (space) str_puts(&out->s, " ");
        add_unmarked(&out->s, s, n);
    } else if (t->kind == KIND_UNIGRAM) {
        unigram_normalise(t, s, n, at, out);
    } else {
        wordpiece_normalise(s, n, at, out);
    }
    return true;
}

// bytes [at, at + n) of the text as normalised in s, with x where the kind maps bytes
static void encode_normal(Enc *e, const uint8_t *s, size_t n, const Norm *x, size_t at) {
    Cut c = { 0 };
    for (int32_t id = 0; id >= 0; c.done = c.stop) {
        id = next_added(e, &e->t->norm, s, n, &c);
        size_t a = c.done, b = id < 0 ? n : c.start;
        if (a < b) switch (e->t->kind) {
            case KIND_BYTES: split_pieces(e, s + a, b - a); break;
            case KIND_CHARS: split_words(e, s + a, b - a, at + a == 0); break;
            case KIND_UNIGRAM: unigram_encode(e, x, a, b); break;
            case KIND_WORDPIECE: wordpiece_encode(e, x, a, b); break;
        }
        if (id >= 0 && e->spans)
            emit(e, id, (size_t)x->from.p[c.start], (size_t)x->to.p[c.stop - 1]);
        else if (id >= 0)
            ints_push(e->out, id);
    }
}

static void encode_text(Enc *e, const uint8_t *s, size_t n) {
    Cut c = { 0 };
    for (int32_t id = 0; id >= 0; c.done = c.stop) {
        id = next_added(e, &e->t->raw, s, n, &c);
        size_t stop = id < 0 ? n : c.start;
        Norm x = { 0 };
        if (stop > c.done) {
            const uint8_t *p = s + c.done;
            size_t k = stop - c.done;
            if (normalise(e, p, k, c.done, &x)) {
                p = (const uint8_t *)x.s.p;
                k = x.s.n;
            }
            if (k) encode_normal(e, p, k, &x, c.done);
        }
        norm_free(&x);
        if (id >= 0) emit(e, id, c.start, c.stop);
    }
}

// match_limit: beyond it the rest of a piece is one pre-token; no pattern in use comes near
static void enc_init(Enc *e, const Tok *t, unsigned flags, size_t n, IntVec *out) {
    *e = (Enc){ .t = t, .flags = flags, .out = out };
    if (!t->re) return;
    e->match = pcre2_match_data_create(1, NULL);
    e->limits = pcre2_match_context_create(NULL);
    if (!e->match || !e->limits)
        die_code(EXIT_MEMORY, "not enough memory to match the tokenizer's regex");
    pcre2_set_match_limit(e->limits, n < 1 << 26 ? 10000000u + 32u * (uint32_t)n : UINT32_MAX);
    pcre2_set_depth_limit(e->limits, UINT32_MAX);
}

static void enc_free(Enc *e) {
    pcre2_match_data_free(e->match);
    pcre2_match_context_free(e->limits);
    free(e->sym);
    free(e->prev);
    free(e->next);
    free(e->rank);
    free(e->made);
    free(e->heap);
    free(e->best);
}

static void encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out,
                   IntVec *spans) {
    Enc e;
    StrBuf with = { 0 };
    if (flags & TOK_SPACE) {
        str_puts(&with, " ");
        str_add(&with, s, n);
        s = with.p;
        n = with.n;
    }
    enc_init(&e, t, flags, n, out);
    e.spans = spans;
    for (size_t i = 0; flags & TOK_BOS && t->add_bos && i < t->bos_ids.n; i++)
        emit(&e, t->bos_ids.p[i], 0, 0);
    encode_text(&e, (const uint8_t *)s, n);
    enc_free(&e);
    free(with.p);
}

void tok_encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out) {
    encode(t, s, n, flags, out, NULL);
}

void tok_encode_offsets(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out,
                        IntVec *spans) {
    CHECK(t->kind >= KIND_UNIGRAM && !(flags & TOK_SPACE), "no offsets of this tokenizer");
    encode(t, s, n, flags, out, spans);
}

// WordPiece: "##" joins, and so do marks and suffixes that follow a word; else a space is between
static void add_wordpiece(const char *p, size_t n, bool first, StrBuf *out) {
    static const char *const tight[] = { ".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re" };
    bool joined = first;
    bool inside = !first && n >= 2 && !memcmp(p, "##", 2);
    for (size_t i = 0; i < COUNTOF(tight); i++) {
        size_t k = strlen(tight[i]);
        joined |= k <= n && !memcmp(p, tight[i], k);
    }
    if (!inside && !joined) str_puts(out, " ");
    str_add(out, p + 2 * inside, n - 2 * inside);
}

void tok_piece(const Tok *t, int id, StrBuf *out) {
    size_t len;
    if (id < 0 || id >= t->n) return;
    const char *p = (const char *)token(t, id, &len);
    for (size_t i = 0; i < len; i++) {
        bool mark = t->kind == KIND_UNIGRAM && t->types[id] == NORMAL && p[i] == ' ';
        str_add(out, mark ? MARK : p + i, mark ? sizeof MARK - 1 : 1);
    }
}

void tok_decode(const Tok *t, const int32_t *ids, size_t n, unsigned flags, StrBuf *out) {
    bool first = !(flags & TOK_MIDDLE);
    for (size_t i = 0; i < n; i++) {
        size_t len;
        int id = ids[i];
        if (id < 0 || id >= t->n || t->types[id] == UNUSED) {
            str_puts(out, "\xef\xbf\xbd");          // U+FFFD
            continue;
        }
        if (flags & TOK_SKIP_SPECIAL && t->types[id] == SPECIAL) continue;
        const char *p = (const char *)token(t, id, &len);
        if (t->kind == KIND_WORDPIECE) {
            add_wordpiece(p, len, first, out);
        } else {
            bool spaces = first && t->kind == KIND_UNIGRAM && t->types[id] == NORMAL;
            size_t most = spaces ? len : first && t->strip ? 1 : 0, k = 0;
            for (; k < most && k < len && p[k] == ' ';) k++;
            str_add(out, p + k, len - k);
        }
        first = false;
    }
}

// ---------------------------------------------------------------------------
// Reading

// with a zero byte behind it
static void *copy(const void *p, size_t bytes) {
    uint8_t *q = xrealloc(NULL, bytes + 1);
    memcpy(q, p, bytes);
    q[bytes] = 0;
    return q;
}

static int read_tokens(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *b = file_want(f, "tok.bytes", DT_U8, -1, 0, err);
    const FileTensor *o = b ? file_want(f, "tok.offsets", DT_I32, -1, 0, err) : NULL;
    if (!o) return -1;
    if (b->bytes > BYTES_MAX)
        return FAIL(err, "%s: tok.bytes has %llu bytes, at most %d are allowed", f->path,
                    (unsigned long long)b->bytes, BYTES_MAX);
    if (o->shape[0] < 2 || o->shape[0] > TOKENS_MAX)
        return FAIL(err, "%s: tok.offsets has %llu entries; it needs one more than the tokens, of "
                    "which %d are allowed", f->path, (unsigned long long)o->shape[0], TOKENS_MAX);
    t->n = (int)o->shape[0] - 1;
    const FileTensor *y = file_want(f, "tok.types", DT_U8, t->n, 0, err);
    if (!y) return -1;
    t->bytes = copy(file_data(f, b), b->bytes);
    t->offsets = copy(file_data(f, o), o->bytes);
    t->types = copy(file_data(f, y), y->bytes);
    t->flags = xrealloc(NULL, (size_t)t->n);
    memset(t->flags, 0, (size_t)t->n);
    if (t->offsets[0] != 0 || t->offsets[t->n] < 0 || (uint64_t)t->offsets[t->n] != b->bytes)
        return FAIL(err, "%s: tok.offsets runs from %d to %d, tok.bytes has %llu bytes", f->path,
                    t->offsets[0], t->offsets[t->n], (unsigned long long)b->bytes);
    for (int i = 0; i < t->n; i++) {
        if (t->offsets[i + 1] < t->offsets[i])
            return FAIL(err, "%s: tok.offsets decreases after token %d", f->path, i);
        int max = t->kind == KIND_CHARS ? BYTE : UNUSED;
        if (t->types[i] > max)
            return FAIL(err, "%s: tok.types of token %d is %d, not 0 to %d", f->path, i,
                        t->types[i], max);
        if (t->types[i] == BYTE && t->offsets[i + 1] - t->offsets[i] != 1)
            return FAIL(err, "%s: tok.types says that token %d is a byte, but it has %d", f->path,
                        i, t->offsets[i + 1] - t->offsets[i]);
    }
    return 0;
}

// the tokens of single bytes; over bytes any kind of token will do, a normal one first
static void read_bytes(Tok *t) {
    bool chars = t->kind == KIND_CHARS;
    for (int type = chars ? BYTE : NORMAL; type <= (chars ? BYTE : ADDED); type++)
        for (int i = 0; i < t->n; i++) {
            int32_t *id = &t->byte_id[t->bytes[t->offsets[i]]];
            if (t->types[i] == type && t->offsets[i + 1] - t->offsets[i] == 1 && *id < 0) *id = i;
        }
}

// characters with a token of their own: the pair (character, -1)
static void read_characters(Tok *t) {
    for (int i = 0; i < t->n; i++) {
        size_t n;
        int32_t c;
        const uint8_t *p = token(t, i, &n);
        bool one = t->types[i] == NORMAL && n && char_at(p, n, &c) == n;
        if (one && map_find(&t->map, c, -1)->id < 0)
            map_put(&t->map, (Pair){ c, -1, 0, i });
    }
}

static uint64_t slots(size_t n) {
    uint64_t s = 16;
    while (s < n + n / 2) s *= 2;
    return s;
}

// a pair that is listed twice has its later rank, as in the reference
static int read_merges(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *r = file_want(f, "tok.merges", DT_I32, -1, 3, err);
    if (!r) return -1;
    const int32_t (*m)[3] = file_data(f, r);
    size_t n = r->shape[0];
    if (n == 1 && m[0][0] == -1 && m[0][1] == -1 && m[0][2] == -1) n = 0;
    if (n >= NO_RANK) return FAIL(err, "%s: tok.merges has %zu rows", f->path, n);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *p[3];
        size_t len[3];
        for (int k = 0; k < 3; k++) {
            if (m[i][k] < 0 || m[i][k] >= t->n)
                return FAIL(err, "%s: tok.merges row %zu names token %d, the vocabulary has %d",
                            f->path, i, m[i][k], t->n);
            p[k] = token(t, m[i][k], &len[k]);
        }
        if (len[0] + len[1] != len[2] || memcmp(p[0], p[2], len[0])
            || memcmp(p[1], p[2] + len[0], len[1]))
            return FAIL(err, "%s: tok.merges row %zu: token %d is not tokens %d and %d together",
                        f->path, i, m[i][2], m[i][0], m[i][1]);
        map_put(&t->map, (Pair){ m[i][0], m[i][1], (int32_t)i, m[i][2] });
    }
    return 0;
}

// (V, 2): the halves of doubles
int read_scores(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *r = file_want(f, "tok.scores", DT_I32, t->n, 2, err);
    if (!r) return -1;
    t->score = copy(file_data(f, r), r->bytes);
    for (int i = 0; i < t->n; i++)
        if (!(t->score[i] > -1e30 && t->score[i] < 1e30))
            return FAIL(err, "%s: tok.scores of token %d is not a number", f->path, i);
    return 0;
}

static void index_words(Tok *t, const uint8_t *chosen) {
    uint64_t size = slots((size_t)t->n);
    t->word_mask = size - 1;
    t->word = xrealloc(t->word, size * sizeof *t->word);
    memset(t->word, -1, size * sizeof *t->word);
    for (int i = 0; i < t->n; i++) {
        size_t len;
        const uint8_t *p = token(t, i, &len);
        int32_t *slot = chosen[i] ? word_slot(t, p, len) : NULL;
        if (slot && *slot < 0) *slot = i;
    }
}

// what a pre-token's stretch can be while it is merged: a token or a character without one
static int32_t symbol(const Tok *t, const uint8_t *s, size_t n) {
    int32_t id = *word_slot(t, s, n), c;
    if (id >= 0 || t->kind == KIND_BYTES) return id;
    return char_at(s, n, &c) == n ? t->n + c : -1;
}

typedef struct { double score; int32_t id; } Ranked;
static int by_score(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

// SentencePiece and tiktoken: any two neighbours merge that are a token together, the token of the
// highest score first. Equal scores have one rank, so that the leftmost goes first.
static int merges_from_scores(Tok *t, ModelFile *f, Err *err) {
    if (read_scores(t, f, err)) return -1;
    uint8_t *chosen = xrealloc(NULL, (size_t)t->n);
    Ranked *order = xrealloc(NULL, (size_t)t->n * sizeof *order);
    int n = 0, rank = 0;
    for (int i = 0; i < t->n; i++) {
        chosen[i] = t->types[i] == NORMAL && t->offsets[i + 1] > t->offsets[i];
        if (chosen[i]) order[n++] = (Ranked){ t->score[i], i };
    }
    index_words(t, chosen);
    qsort(order, (size_t)n, sizeof *order, by_score);
    for (int i = 0; i < n; i++) {
        size_t len;
        const uint8_t *p = token(t, order[i].id, &len);
        rank += i && order[i].score < order[i - 1].score;
        if (symbol(t, p, len) != order[i].id) continue;         // the second of two equal tokens
        for (size_t k = 1; k < len; k++) {
            if (t->kind == KIND_CHARS && (p[k] & 0xc0) == 0x80) continue;
            int32_t left = symbol(t, p, k), right = symbol(t, p + k, len - k);
            if (left >= 0 && right >= 0)
                map_put(&t->map, (Pair){ left, right, rank, order[i].id });
        }
    }
    free(order);
    free(chosen);
    free(t->score);
    t->score = NULL;
    return 0;
}

// Strings that are their token without merging: all normal tokens when the tokenizer ignores merges
// for them, else those that merging makes from their own bytes: the table only saves work then.
static void read_words(Tok *t) {
    uint8_t *whole = xrealloc(NULL, (size_t)t->n);
    IntVec ids = {0};
    Enc e;
    memset(whole, 0, (size_t)t->n);
    index_words(t, whole);
    enc_init(&e, t, 0, 0, &ids);
    for (int i = 0; i < t->n; i++) {
        size_t len;
        const uint8_t *p = token(t, i, &len);
        ids.n = 0;
        if (!t->ignore_merges && t->types[i] == NORMAL) encode_word(&e, p, len);
        whole[i] = t->types[i] == NORMAL && len
                && (t->ignore_merges || (ids.n == 1 && ids.p[0] == i));
    }
    index_words(t, whole);
    enc_free(&e);
    free(ids.p);
    free(whole);
}

// no token has a space behind another character, so that merges stay inside words
static bool words_apart(const Tok *t) {
    if (map_find(&t->map, ' ', -1)->id < 0) return false;
    for (int i = 0; i < t->n; i++) {
        size_t len;
        const uint8_t *p = token(t, i, &len);
        for (size_t k = 1; t->types[i] == NORMAL && k < len; k++)
            if (p[k] == ' ' && p[k - 1] != ' ') return false;
    }
    return true;
}

// \s as the Unicode property White_Space: PCRE2's own includes U+180E, which left the property in
// Unicode 6.3. Inside a class the ranges stand for themselves.
static void white_space(const char *s, size_t n, StrBuf *out) {
    static const char *const yes = "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}"
        "\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
    static const char *const no = "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}"
        "\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}"
        "\\x{2060}-\\x{2fff}\\x{3001}-\\x{d7ff}\\x{e000}-\\x{10ffff}";
    bool in_class = false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\\' && i + 1 < n && (s[i + 1] == 's' || s[i + 1] == 'S')) {
            str_puts(out, in_class ? "" : "[");
            str_puts(out, s[++i] == 's' ? yes : no);
            str_puts(out, in_class ? "" : "]");
            continue;
        }
        str_add(out, s + i, 1);
        if (s[i] == '\\' && i + 1 < n) {
            str_add(out, s + ++i, 1);
        } else if (s[i] == '[' && !in_class) {
            in_class = true;
            while (i + 1 < n && (s[i + 1] == '^' || s[i + 1] == ']')) str_add(out, s + ++i, 1);
        } else if (s[i] == ']') {
            in_class = false;
        } else if (in_class && s[i] == '[' && i + 1 < n && s[i + 1] == ':') {
            do str_add(out, s + ++i, 1);
            while (i + 1 < n && s[i] != ']');
        }
    }
}

static int read_regex(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *r = file_want(f, "tok.regex", DT_U8, -1, 0, err);
    if (!r) return -1;
    const char *s = file_data(f, r);
    if (r->bytes == 1 && !*s) return 0;
    if (r->bytes > REGEX_MAX)
        return FAIL(err, "%s: tok.regex has %llu bytes, at most %d are allowed", f->path,
                    (unsigned long long)r->bytes, REGEX_MAX);
    StrBuf pattern = {0};
    int code;
    PCRE2_SIZE at;
    white_space(s, r->bytes, &pattern);
    t->re = pcre2_compile((PCRE2_SPTR)pattern.p, pattern.n,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    free(pattern.p);
    if (!t->re) {
        PCRE2_UCHAR why[200];
        pcre2_get_error_message(code, why, sizeof why);
        return FAIL(err, "%s: tok.regex does not compile: %s", f->path, (char *)why);
    }
    pcre2_jit_compile(t->re, PCRE2_JIT_COMPLETE);       // refused: the interpreter, same matches
    return 0;
}

static int read_added(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *r = file_want(f, "tok.added", DT_I32, -1, 2, err);
    if (!r) return -1;
    const int32_t (*a)[2] = file_data(f, r);
    size_t n = r->shape[0];
    if (n == 1 && a[0][0] == -1 && a[0][1] == -1) return 0;
    for (size_t i = 0; i < n; i++) {
        int32_t id = a[i][0], flags = a[i][1];
        size_t len;
        if (id < 0 || id >= t->n)
            return FAIL(err, "%s: tok.added row %zu names token %d, the vocabulary has %d",
                        f->path, i, id, t->n);
        if (flags < 0 || flags > 31)
            return FAIL(err, "%s: tok.added row %zu has flags %d, not 0 to 31", f->path, i,
                        flags);
        if (t->types[id] != SPECIAL && t->types[id] != ADDED)
            return FAIL(err, "%s: token %d is in tok.added, but its tok.types is %d", f->path, id,
                        t->types[id]);
        const uint8_t *p = token(t, id, &len);
        if (!len) return FAIL(err, "%s: added token %d is empty", f->path, id);
        Norm x = {0};
        t->flags[id] = (uint8_t)flags;
        if (flags & NORMALIZED && normalise(&(Enc){ .t = t }, p, len, 0, &x)) {
            p = (const uint8_t *)x.s.p;
            len = x.s.n;
        }
        if (len) trie_add(flags & (NORMALIZED | AS_IS) ? &t->norm : &t->raw, p, len, id);
        norm_free(&x);
    }
    return 0;
}

static int read_eos(Tok *t, ModelFile *f, Err *err) {
    const FileTensor *r = file_want(f, "tok.eos", DT_I32, -1, 0, err);
    if (!r) return -1;
    const int32_t *id = file_data(f, r);
    for (size_t i = 0; i < r->shape[0]; i++) {
        if (id[i] < -1 || id[i] >= t->n)
            return FAIL(err, "%s: tok.eos names token %d, the vocabulary has %d", f->path, id[i],
                        t->n);
        if (id[i] >= 0) ints_push(&t->eos, id[i]);
    }
    return 0;
}

// BOS is one id, or the ids of tok.bos
static int read_bos(Tok *t, ModelFile *f, Err *err) {
    int64_t bos;
    if (file_int(f, "bos_id", -1, t->n - 1, &bos, err)) return -1;
    t->bos = (int)bos;
    if (t->add_bos && t->bos < 0)
        return FAIL(err, "%s: tok_add_bos is 1, but bos_id is -1", f->path);
    const FileTensor *r = file_find(f, "tok.bos");
    if (r && !(r = file_want(f, "tok.bos", DT_I32, -1, 0, err))) return -1;
    const int32_t *id = r ? file_data(f, r) : NULL;
    if (!r) ints_push(&t->bos_ids, t->bos);
    for (size_t i = 0; r && i < r->shape[0]; i++) {
        if (id[i] < 0 || id[i] >= t->n)
            return FAIL(err, "%s: tok.bos names token %d, the vocabulary has %d", f->path, id[i],
                        t->n);
        ints_push(&t->bos_ids, id[i]);
    }
    return 0;
}

static const char *const piece_name[N_CHAT_PIECES] = {
    [CHAT_PREFIX] = "chat.prefix", [CHAT_FIRST_OPEN] = "chat.first_open",
    [CHAT_USER_OPEN] = "chat.user_open", [CHAT_USER_CLOSE] = "chat.user_close",
    [CHAT_ASSISTANT_OPEN] = "chat.assistant_open", [CHAT_ANSWER_OPEN] = "chat.answer_open",
    [CHAT_ASSISTANT_CLOSE] = "chat.assistant_close",
};

// The ids of a piece behind a text that `before` describes in flags of tok_encode; returns the
// flags of what stands behind it. A space at the end of an opening belongs to the text that
// follows, as in the whole rendering: "[INST] " and "Hi" are "[INST]" and " Hi".
static unsigned read_piece(Tok *t, ChatPiece piece, unsigned before) {
    const StrBuf *s = &t->chat.text[piece];
    IntVec *ids = &t->chat.ids[piece];
    bool opens = piece == CHAT_FIRST_OPEN || piece == CHAT_USER_OPEN || piece == CHAT_ANSWER_OPEN;
    bool space = opens && s->n && s->p[s->n - 1] == ' ';
    tok_encode(t, s->p, s->n - space, TOK_SPECIAL | before, ids);
    if (ids->n) {
        int last = ids->p[ids->n - 1], type = last == t->unk ? NORMAL : t->types[last];
        bool restart = (type == SPECIAL || type == ADDED) && t->prefix != PREFIX_FIRST;
        before = restart ? 0 : TOK_MIDDLE;
    }
    return before | (space ? TOK_SPACE : 0);
}

static int read_chat(Tok *t, ModelFile *f, Err *err) {
    ChatPieces *c = &t->chat;
    for (int i = 0; i < N_CHAT_PIECES; i++) {
        bool optional = !c->present || i == CHAT_FIRST_OPEN || i == CHAT_ANSWER_OPEN;
        const FileTensor *r = file_find(f, piece_name[i]);
        if ((r || !optional) && !(r = file_want(f, piece_name[i], DT_U8, -1, 0, err))) return -1;
        const char *s = r ? file_data(f, r) : "";
        bool empty = !r || (r->bytes == 1 && !*s);
        str_add(&c->text[i], s, empty || !c->present ? 0 : r->bytes);
    }
    StrBuf *first = &c->text[CHAT_FIRST_OPEN], *user = &c->text[CHAT_USER_OPEN];
    if (!first->n) str_add(first, user->p, user->n);
    c->first_text = read_piece(t, CHAT_FIRST_OPEN, read_piece(t, CHAT_PREFIX, 0));
    unsigned closed = read_piece(t, CHAT_USER_CLOSE, TOK_MIDDLE);
    unsigned opened = read_piece(t, CHAT_ASSISTANT_OPEN, closed);
    c->answer_text = read_piece(t, CHAT_ANSWER_OPEN, opened);
    c->user_text = read_piece(t, CHAT_USER_OPEN, read_piece(t, CHAT_ASSISTANT_CLOSE, TOK_MIDDLE));
    return 0;
}

static int read_flag(ModelFile *f, const char *key, bool *out, Err *err) {
    int64_t v;
    if (file_int(f, key, 0, 1, &v, err)) return -1;
    *out = v;
    return 0;
}

static int read_bpe(Tok *t, ModelFile *f, Err *err) {
    bool chars = t->kind == KIND_CHARS;
    int64_t prefix = 0, unk = -1;
    if (read_flag(f, "tok_ignore_merges", &t->ignore_merges, err)) return -1;
    if (chars && (file_int(f, "tok_prefix", 0, PREFIX_FIRST, &prefix, err)
                  || file_int(f, "unk_id", -1, t->n - 1, &unk, err)
                  || read_flag(f, "tok_strip", &t->strip, err))) return -1;
    t->prefix = (Prefix)prefix;
    t->unk = (int)unk;
    if (!chars && (read_flag(f, "tok_nfc", &t->nfc, err)
                   || read_flag(f, "tok_digits", &t->digits, err) || read_regex(t, f, err)))
        return -1;
    read_bytes(t);
    t->by_score = file_find(f, "tok.scores");
    if (t->by_score ? merges_from_scores(t, f, err) : read_merges(t, f, err)) return -1;
    if (chars) read_characters(t);
    if (chars) t->split_words = words_apart(t);
    read_words(t);
    return 0;
}

static int read_kind(Tok *t, ModelFile *f, Err *err) {
    int64_t kind;
    if (file_int(f, "tok_kind", 0, INT32_MAX, &kind, err)) return -1;
    t->kind = (TokKind)kind;
    switch (kind) {
    case KIND_BYTES: case KIND_CHARS: case KIND_UNIGRAM: case KIND_WORDPIECE: return 0;
    default:
        return FAIL(err, "%s: tok_kind is %lld, this program knows %d (BPE over bytes), %d (BPE "
                    "over characters), %d (Unigram) and %d (WordPiece)", f->path, (long long)kind,
                    KIND_BYTES, KIND_CHARS, KIND_UNIGRAM, KIND_WORDPIECE);
    }
}

static int tok_read(Tok *t, ModelFile *f, Err *err) {
    if (read_kind(t, f, err) || read_flag(f, "tok_add_bos", &t->add_bos, err)
        || read_flag(f, "chat_present", &t->chat.present, err)
        || read_flag(f, "chat_trim", &t->chat.trim, err) || read_tokens(t, f, err)) return -1;
    int bad = t->kind == KIND_UNIGRAM ? unigram_read(t, f, err)
            : t->kind == KIND_WORDPIECE ? wordpiece_read(t, f, err) : read_bpe(t, f, err);
    return bad || read_bos(t, f, err) || read_added(t, f, err) || read_eos(t, f, err)
        || read_chat(t, f, err) ? -1 : 0;
}

Tok *tok_open(ModelFile *f, Err *err) {
    Tok *t = xrealloc(NULL, sizeof *t);
    memset(t, 0, sizeof *t);
    memset(t->byte_id, -1, sizeof t->byte_id);
    map_resize(&t->map, 16);
    if (!tok_read(t, f, err)) return t;
    tok_close(t);
    return NULL;
}

void tok_close(Tok *t) {
    if (!t) return;
    free(t->bytes);
    free(t->offsets);
    free(t->types);
    free(t->flags);
    free(t->word);
    free(t->map.slot);
    free(t->ends);
    free(t->score);
    free(t->charsmap);
    free(t->raw.node);
    free(t->norm.node);
    pcre2_code_free(t->re);
    free(t->eos.p);
    free(t->bos_ids.p);
    for (int i = 0; i < N_CHAT_PIECES; i++) {
        free(t->chat.ids[i].p);
        free(t->chat.text[i].p);
    }
    free(t);
}

int tok_vocab(const Tok *t) { return t->n; }
int tok_bos(const Tok *t) { return t->bos; }
const ChatPieces *tok_chat(const Tok *t) { return &t->chat; }

bool tok_is_stop(const Tok *t, int id) {
    for (size_t i = 0; i < t->eos.n; i++)
        if (t->eos.p[i] == id) return true;
    return false;
}
