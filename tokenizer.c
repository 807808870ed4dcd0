// tokenizer.c - byte-level BPE from the tok.* and chat.* records of a model file.
//
//   text -> added tokens -> NFC -> added tokens -> pieces at invalid bytes and digits
//        -> regex pre-tokens -> merges -> ids
//
// The pipeline and its order are those of Hugging Face tokenizers (models/bpe, pre_tokenizers,
// added_vocabulary). Letters: V tokens in the table, n bytes of text, k symbols of a pre-token.
// A Tok is immutable once open; everything an encode needs beside it lives in its own Enc.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>
#include <xxhash.h>
#include "scb.h"

enum { KIND_BPE = 1 };
enum { NORMAL, SPECIAL, ADDED, UNUSED };                        // tok.types
enum { LSTRIP = 1, RSTRIP = 2, SINGLE_WORD = 4, NORMALIZED = 8 };       // tok.added flags
enum { NO_RANK = INT32_MAX };
enum { REGEX_MAX = 1 << 16, BYTES_MAX = 1 << 28 };      // bytes of a pattern, of all tokens
enum { SHORT_MAX = 32 };            // symbols merged by plain scanning, more by a heap
enum { PIECE_MAX = 1 << 28 };       // bytes of one pre-token: positions in the heap are 31 bits

typedef struct { int32_t left, right, rank; } Pair;             // left -1: free slot
typedef struct { int32_t child, next, id; uint8_t byte; } Node; // id -1: no token ends here
typedef struct {                    // first child, next sibling; node 0 is unused
    Node *node;
    int n, cap;
    int32_t first[256];             // node of each first byte, 0 = none
} Trie;

struct Tok {
    int n;                          // V
    uint8_t *bytes, *types;         // token i is bytes[offsets[i] .. offsets[i + 1])
    int32_t *offsets;
    uint8_t *flags;                 // (V) tok.added flags
    int32_t byte_id[256];           // token of each single byte, -1: the byte is dropped
    int32_t *word;                  // hash of the strings that are looked up whole, -1 free
    uint64_t word_mask;
    Pair *pair;                     // hash of (left, right)
    uint64_t pair_mask;
    int32_t *result;                // by rank: the token a merge makes
    Trie raw, norm;                 // added tokens matched before and after NFC
    pcre2_code *re;                 // NULL: the whole piece is one pre-token
    bool nfc, digits, ignore_merges, add_bos;
    int bos;
    IntVec eos;
    ChatPieces chat;
};

typedef struct {                    // one tok_encode
    const Tok *t;
    unsigned flags;
    IntVec *out;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    // symbols of a long pre-token: a list over positions, the rank of each symbol's pair with its
    // successor, and a heap of rank << 32 | position
    int32_t *sym, *prev, *next, *rank;
    uint64_t *heap;
    size_t cap, n_heap;
} Enc;

static const uint8_t *token(const Tok *t, int id, size_t *n) {
    *n = (size_t)(t->offsets[id + 1] - t->offsets[id]);
    return t->bytes + t->offsets[id];
}

// ---------------------------------------------------------------------------
// Characters

// bytes of the character at s, 0 when no valid one starts there
static size_t char_at(const uint8_t *s, size_t n, int32_t *c) {
    if (n && *s < 0x80) {
        *c = *s;
        return 1;
    }
    utf8proc_ssize_t len = n ? utf8proc_iterate(s, n > 4 ? 4 : (utf8proc_ssize_t)n, c) : 0;
    return len > 0 ? (size_t)len : 0;
}

// bytes of the valid character that ends at s + n, 0 when there is none
static size_t char_before(const uint8_t *s, size_t n, int32_t *c) {
    for (size_t k = 1; k <= 4 && k <= n; k++)
        if ((s[n - k] & 0xc0) != 0x80) return char_at(s + n - k, k, c) == k ? k : 0;
    return 0;
}

// the Unicode property White_Space
static bool is_space(int32_t c) {
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

static int32_t pair_rank(const Tok *t, int32_t left, int32_t right) {
    uint64_t h = mix64((uint64_t)(uint32_t)left << 32 | (uint32_t)right) & t->pair_mask;
    for (;; h = (h + 1) & t->pair_mask) {
        const Pair *p = &t->pair[h];
        if (p->left == left && p->right == right) return p->rank;
        if (p->left < 0) return NO_RANK;
    }
}

static void pair_put(Tok *t, int32_t left, int32_t right, int32_t rank) {
    uint64_t h = mix64((uint64_t)(uint32_t)left << 32 | (uint32_t)right) & t->pair_mask;
    Pair *p = &t->pair[h];
    while (p->left >= 0 && (p->left != left || p->right != right)) {
        h = (h + 1) & t->pair_mask;
        p = &t->pair[h];
    }
    *p = (Pair){ left, right, rank };
}

// O(k^2) over arrays that stay in L1
static void merge_short(Enc *e, int32_t *sym, int k) {
    const Tok *t = e->t;
    int32_t rank[SHORT_MAX];
    for (int i = 0; i + 1 < k; i++) rank[i] = pair_rank(t, sym[i], sym[i + 1]);
    while (k > 1) {
        int at = 0;
        for (int i = 1; i + 1 < k; i++)
            if (rank[i] < rank[at]) at = i;
        if (rank[at] == NO_RANK) break;
        sym[at] = t->result[rank[at]];
        k--;
        for (int i = at + 1; i < k; i++) {
            sym[i] = sym[i + 1];
            rank[i - 1] = rank[i];
        }
        if (at > 0) rank[at - 1] = pair_rank(t, sym[at - 1], sym[at]);
        if (at + 1 < k) rank[at] = pair_rank(t, sym[at], sym[at + 1]);
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
    e->rank[i] = j < 0 ? NO_RANK : pair_rank(e->t, e->sym[i], e->sym[j]);
    if (e->rank[i] != NO_RANK) heap_push(e, e->rank[i], i);
}

// O(k log k). A heap entry whose rank is no longer its position's is stale. Each merge removes one
// symbol and pushes at most two entries for the one it popped, so 2k entries are enough.
static void merge_long(Enc *e, size_t k) {
    e->n_heap = 0;
    for (size_t i = 0; i < k; i++) {
        e->prev[i] = (int32_t)i - 1;
        e->next[i] = i + 1 < k ? (int32_t)i + 1 : -1;
        e->rank[i] = i + 1 < k ? pair_rank(e->t, e->sym[i], e->sym[i + 1]) : NO_RANK;
        if (e->rank[i] != NO_RANK) e->heap[e->n_heap++] = (uint64_t)e->rank[i] << 32 | i;
    }
    for (size_t i = e->n_heap / 2; i-- > 0;) sift_down(e->heap, e->n_heap, i);
    while (e->n_heap) {
        int32_t rank = (int32_t)(e->heap[0] >> 32), i = (int32_t)(uint32_t)e->heap[0];
        e->heap[0] = e->heap[--e->n_heap];
        if (e->n_heap) sift_down(e->heap, e->n_heap, 0);
        if (e->rank[i] != rank) continue;
        int32_t j = e->next[i];
        e->sym[i] = e->t->result[rank];
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

// one pre-token. Bytes without a token are dropped first, so that their neighbours can merge.
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
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (t->byte_id[s[i]] >= 0) sym[k++] = t->byte_id[s[i]];
    if (k > SHORT_MAX) merge_long(e, k);
    else if (k) merge_short(e, sym, (int)k);
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

static void encode_text(Enc *e, const uint8_t *s, size_t n, bool raw) {
    const Tok *t = e->t;
    StrBuf norm = {0};
    if (!raw && t->nfc && maybe_not_nfc(s, n)) {
        nfc(s, n, &norm);
        s = (const uint8_t *)norm.p;
        n = norm.n;
    }
    Cut c = {0};
    for (int32_t id = 0; id >= 0; c.done = c.stop) {
        id = next_added(e, raw ? &t->raw : &t->norm, s, n, &c);
        size_t stop = id < 0 ? n : c.start;
        if (raw && stop > c.done) encode_text(e, s + c.done, stop - c.done, false);
        else if (stop > c.done) split_pieces(e, s + c.done, stop - c.done);
        if (id >= 0) ints_push(e->out, id);
    }
    free(norm.p);
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
    free(e->heap);
}

void tok_encode(const Tok *t, const char *s, size_t n, unsigned flags, IntVec *out) {
    Enc e;
    enc_init(&e, t, flags, n, out);
    if (flags & TOK_BOS && t->add_bos) ints_push(out, t->bos);
    encode_text(&e, (const uint8_t *)s, n, true);
    enc_free(&e);
}

void tok_decode(const Tok *t, const int32_t *ids, size_t n, unsigned flags, StrBuf *out) {
    for (size_t i = 0; i < n; i++) {
        size_t len;
        if (ids[i] < 0 || ids[i] >= t->n || t->types[ids[i]] == UNUSED) {
            str_puts(out, "\xef\xbf\xbd");          // U+FFFD
        } else if (!(flags & TOK_SKIP_SPECIAL && t->types[ids[i]] == SPECIAL)) {
            const uint8_t *p = token(t, ids[i], &len);
            str_add(out, (const char *)p, len);
        }
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
    if (o->shape[0] < 2 || o->shape[0] > INT32_MAX)
        return FAIL(err, "%s: tok.offsets has %llu entries; it needs one more than the tokens",
                    f->path, (unsigned long long)o->shape[0]);
    t->n = (int)o->shape[0] - 1;
    const FileTensor *y = file_want(f, "tok.types", DT_U8, t->n, 0, err);
    if (!y) return -1;
    t->bytes = copy(file_data(f, b), b->bytes);
    t->offsets = copy(file_data(f, o), o->bytes);
    t->types = copy(file_data(f, y), y->bytes);
    t->flags = xrealloc(NULL, (size_t)t->n);
    memset(t->flags, 0, (size_t)t->n);
    memset(t->byte_id, -1, sizeof t->byte_id);
    if (t->offsets[0] != 0 || t->offsets[t->n] < 0 || (uint64_t)t->offsets[t->n] != b->bytes)
        return FAIL(err, "%s: tok.offsets runs from %d to %d, tok.bytes has %llu bytes", f->path,
                    t->offsets[0], t->offsets[t->n], (unsigned long long)b->bytes);
    for (int i = 0; i < t->n; i++) {
        if (t->offsets[i + 1] < t->offsets[i])
            return FAIL(err, "%s: tok.offsets decreases after token %d", f->path, i);
        if (t->types[i] > UNUSED)
            return FAIL(err, "%s: tok.types of token %d is %d, not 0 to 3", f->path, i,
                        t->types[i]);
    }
    for (int type = NORMAL; type <= ADDED; type++)
        for (int i = 0; i < t->n; i++) {
            int32_t *id = &t->byte_id[t->bytes[t->offsets[i]]];
            if (t->types[i] == type && t->offsets[i + 1] - t->offsets[i] == 1 && *id < 0) *id = i;
        }
    return 0;
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
    uint64_t size = slots(n);
    t->pair_mask = size - 1;
    t->pair = xrealloc(NULL, size * sizeof *t->pair);
    t->result = xrealloc(NULL, (n + 1) * sizeof *t->result);
    memset(t->pair, -1, size * sizeof *t->pair);
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
        pair_put(t, m[i][0], m[i][1], (int32_t)i);
        t->result[i] = m[i][2];
    }
    return 0;
}

// Strings that are their token without merging: all normal tokens when the tokenizer ignores merges
// for them, else those that merging makes from their own bytes: the table only saves work then.
static void read_words(Tok *t) {
    uint64_t size = slots((size_t)t->n);
    t->word_mask = size - 1;
    t->word = xrealloc(NULL, size * sizeof *t->word);
    memset(t->word, -1, size * sizeof *t->word);
    uint8_t *whole = xrealloc(NULL, (size_t)t->n);
    IntVec ids = {0};
    Enc e;
    enc_init(&e, t, 0, 0, &ids);
    for (int i = 0; i < t->n; i++) {
        size_t len;
        const uint8_t *p = token(t, i, &len);
        ids.n = 0;
        if (!t->ignore_merges && t->types[i] == NORMAL) encode_word(&e, p, len);
        whole[i] = t->types[i] == NORMAL && len
                && (t->ignore_merges || (ids.n == 1 && ids.p[0] == i));
    }
    for (int i = 0; i < t->n; i++) {
        size_t len;
        const uint8_t *p = token(t, i, &len);
        int32_t *slot = whole[i] ? word_slot(t, p, len) : NULL;
        if (slot && *slot < 0) *slot = i;
    }
    enc_free(&e);
    free(ids.p);
    free(whole);
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
        if (flags < 0 || flags > 15)
            return FAIL(err, "%s: tok.added row %zu has flags %d, not 0 to 15", f->path, i,
                        flags);
        if (t->types[id] != SPECIAL && t->types[id] != ADDED)
            return FAIL(err, "%s: token %d is in tok.added, but its tok.types is %d", f->path, id,
                        t->types[id]);
        const uint8_t *p = token(t, id, &len);
        if (!len) return FAIL(err, "%s: added token %d is empty", f->path, id);
        StrBuf norm = {0};
        t->flags[id] = (uint8_t)flags;
        if (flags & NORMALIZED && t->nfc) {
            nfc(p, len, &norm);
            p = (const uint8_t *)norm.p;
            len = norm.n;
        }
        trie_add(flags & NORMALIZED ? &t->norm : &t->raw, p, len, id);
        free(norm.p);
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

static int read_chat(Tok *t, ModelFile *f, Err *err) {
    struct { const char *name; IntVec *ids; } part[] = {
        { "chat.prefix", &t->chat.prefix },
        { "chat.user_open", &t->chat.user_open },
        { "chat.user_close", &t->chat.user_close },
        { "chat.assistant_open", &t->chat.assistant_open },
        { "chat.assistant_close", &t->chat.assistant_close },
    };
    for (size_t i = 0; i < COUNTOF(part); i++) {
        const FileTensor *r = t->chat.present ? file_want(f, part[i].name, DT_U8, -1, 0, err)
                                              : file_find(f, part[i].name);
        if (!r && t->chat.present) return -1;
        if (!r || !t->chat.present) continue;
        const char *s = file_data(f, r);
        if (r->bytes == 1 && !*s) continue;
        tok_encode(t, s, r->bytes, TOK_SPECIAL, part[i].ids);
    }
    return 0;
}

static int read_flag(ModelFile *f, const char *key, bool *out, Err *err) {
    int64_t v;
    if (file_int(f, key, 0, 1, &v, err)) return -1;
    *out = v;
    return 0;
}

static int tok_read(Tok *t, ModelFile *f, Err *err) {
    int64_t kind, bos;
    if (file_int(f, "tok_kind", 0, INT32_MAX, &kind, err)) return -1;
    if (kind != KIND_BPE)
        return FAIL(err, "%s: tok_kind is %lld, this program knows %d (byte-level BPE)", f->path,
                    (long long)kind, KIND_BPE);
    if (read_flag(f, "tok_nfc", &t->nfc, err) || read_flag(f, "tok_digits", &t->digits, err)
        || read_flag(f, "tok_ignore_merges", &t->ignore_merges, err)
        || read_flag(f, "tok_add_bos", &t->add_bos, err)
        || read_flag(f, "chat_present", &t->chat.present, err)
        || read_flag(f, "chat_trim", &t->chat.trim, err)) return -1;
    if (read_tokens(t, f, err) || read_merges(t, f, err) || read_regex(t, f, err)) return -1;
    if (file_int(f, "bos_id", -1, t->n - 1, &bos, err)) return -1;
    t->bos = (int)bos;
    if (t->add_bos && t->bos < 0)
        return FAIL(err, "%s: tok_add_bos is 1, but bos_id is -1", f->path);
    read_words(t);
    return read_added(t, f, err) || read_eos(t, f, err) || read_chat(t, f, err) ? -1 : 0;
}

Tok *tok_open(ModelFile *f, Err *err) {
    Tok *t = xrealloc(NULL, sizeof *t);
    memset(t, 0, sizeof *t);
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
    free(t->pair);
    free(t->result);
    free(t->raw.node);
    free(t->norm.node);
    pcre2_code_free(t->re);
    free(t->eos.p);
    free(t->chat.prefix.p);
    free(t->chat.user_open.p);
    free(t->chat.user_close.p);
    free(t->chat.assistant_open.p);
    free(t->chat.assistant_close.p);
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
