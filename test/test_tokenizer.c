// test_tokenizer.c - the tokenizer against hand-worked examples, against a naive BPE on random
// merge tables, and against ids of the reference implementation (data/tokenizer).
#include "binwriter.h"
#include <jansson.h>

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define WORDS(numbers) "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 WORDS("\\p{N}{1,3}")
#define QWEN2 WORDS("\\p{N}")

enum { NORMAL, SPECIAL, ADDED, UNUSED, BYTE };
enum { LSTRIP = 1, RSTRIP = 2, SINGLE_WORD = 4, NORMALIZED = 8, AS_IS = 16 };
enum { BYTES = 1, CHARS, UNIGRAM, WORDPIECE };

static char path[] = "/tmp/scb_tokenizer.XXXXXX";
static int failures;

#define EXPECT(cond, ...) do { \
    if (!(cond)) { \
        failures++; \
        printf("%s:%d: ", __FILE__, __LINE__); \
        printf(__VA_ARGS__); \
        putchar('\n'); \
    } } while (0)

// ---------------------------------------------------------------------------
// A vocabulary being put together

typedef struct {
    StrBuf bytes, types;
    IntVec offsets, merges, added, eos;
    const char *regex;
    const char *chat[7];        // prefix, user open and close, assistant open and close, the others
    int kind, nfc, digits, ignore_merges, add_bos, bos, present;
    int prefix, strip, unk, words, word_max;
    double *scores;             // by token, or NULL
    const char *charsmap;
    size_t charsmap_bytes;
} Vocab;

static int add_token(Vocab *v, const char *s, size_t n, char type) {
    if (!v->offsets.n) ints_push(&v->offsets, 0);
    str_add(&v->bytes, s, n);
    str_add(&v->types, &type, 1);
    ints_push(&v->offsets, (int32_t)v->bytes.n);
    return (int)v->types.n - 1;
}

static int add_special(Vocab *v, const char *s, char type, int flags) {
    int id = add_token(v, s, strlen(s), type);
    ints_add(&v->added, (int32_t[]){ id, flags }, 2);
    return id;
}

static const char *token_of(const Vocab *v, int id, size_t *n) {
    *n = (size_t)(v->offsets.p[id + 1] - v->offsets.p[id]);
    return v->bytes.p + v->offsets.p[id];
}

static int find_token(const Vocab *v, const char *s, size_t n) {
    for (int i = 0; i < (int)v->types.n; i++) {
        size_t len;
        const char *p = token_of(v, i, &len);
        if (len == n && !memcmp(p, s, n) && v->types.p[i] == NORMAL) return i;
    }
    return -1;
}

// the next rank; the token of the two together is added when it is new
static int add_merge(Vocab *v, int left, int right) {
    StrBuf both = { 0 };
    size_t n;
    const char *p = token_of(v, left, &n);
    str_add(&both, p, n);
    p = token_of(v, right, &n);
    str_add(&both, p, n);
    int id = find_token(v, both.p, both.n);
    if (id < 0) id = add_token(v, both.p, both.n, NORMAL);
    ints_add(&v->merges, (int32_t[]){ left, right, id }, 3);
    free(both.p);
    return id;
}

// tokens 0 to 255 are the bytes
static Vocab new_vocab(const char *regex) {
    Vocab v = { .kind = BYTES, .bos = -1, .regex = regex };
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        add_token(&v, &c, 1, NORMAL);
    }
    return v;
}

static void write_vocab(const Vocab *v, BinWriter *w) {
    static const int32_t none[3] = { -1, -1, -1 };
    static const char *const pieces[] = { "chat.prefix", "chat.user_open", "chat.user_close",
        "chat.assistant_open", "chat.assistant_close", "chat.first_open", "chat.answer_open" };
    bin_int(w, "tok_kind", v->kind);
    if (v->kind == BYTES) {
        bin_int(w, "tok_nfc", v->nfc);
        bin_int(w, "tok_digits", v->digits);
    }
    if (v->kind == CHARS) {
        bin_int(w, "tok_prefix", v->prefix);
        bin_int(w, "tok_strip", v->strip);
    }
    if (v->kind <= CHARS) bin_int(w, "tok_ignore_merges", v->ignore_merges);
    if (v->kind >= CHARS) bin_int(w, "unk_id", v->unk);
    if (v->kind == UNIGRAM) bin_int(w, "tok_words", v->words);
    if (v->kind == WORDPIECE) bin_int(w, "tok_word_max", v->word_max);
    bin_int(w, "tok_add_bos", v->add_bos);
    bin_int(w, "bos_id", v->bos);
    bin_int(w, "chat_present", v->present);
    bin_int(w, "chat_trim", 1);
    bin_vector(w, "tok.bytes", DT_U8, v->bytes.p, v->bytes.n);
    bin_vector(w, "tok.offsets", DT_I32, v->offsets.p, v->offsets.n);
    bin_vector(w, "tok.types", DT_U8, v->types.p, v->types.n);
    if (v->scores) bin_matrix(w, "tok.scores", DT_I32, v->scores, v->types.n, 2);
    else if (v->kind <= CHARS)
        bin_matrix(w, "tok.merges", DT_I32, v->merges.n ? v->merges.p : none,
                   v->merges.n ? v->merges.n / 3 : 1, 3);
    if (v->charsmap) bin_vector(w, "tok.charsmap", DT_U8, v->charsmap, v->charsmap_bytes);
    bin_matrix(w, "tok.added", DT_I32, v->added.n ? v->added.p : none,
               v->added.n ? v->added.n / 2 : 1, 2);
    bin_vector(w, "tok.eos", DT_I32, v->eos.n ? v->eos.p : none, v->eos.n ? v->eos.n : 1);
    const char *regex = v->regex ? v->regex : "";
    if (v->kind == BYTES) bin_vector(w, "tok.regex", DT_U8, regex, *regex ? strlen(regex) : 1);
    for (int i = 0; i < 7; i++) {
        const char *s = v->chat[i] ? v->chat[i] : "";
        if (i >= 5 && !*s) continue;
        bin_vector(w, pieces[i], DT_U8, s, *s ? strlen(s) : 1);
    }
}

static Tok *open_path(const char *file, Err *err) {
    ModelFile f;
    if (file_open(&f, file, true, err)) return NULL;
    Tok *t = tok_open(&f, err);
    EXPECT(!t || !file_all_used(&f, err), "%s", err->msg);
    file_close(&f);
    return t;
}

static Tok *try_open(const Vocab *v, Err *err) {
    BinWriter w = { 0 };
    write_vocab(v, &w);
    bin_save(&w, path);
    bin_free(&w);
    return open_path(path, err);
}

static Tok *open_vocab(const Vocab *v) {
    Err err = { 0 };
    Tok *t = try_open(v, &err);
    CHECK(t, "%s", err.msg);
    return t;
}

static void free_vocab(Vocab *v) {
    free(v->bytes.p);
    free(v->types.p);
    free(v->offsets.p);
    free(v->merges.p);
    free(v->added.p);
    free(v->eos.p);
}

// ---------------------------------------------------------------------------
// Comparing

static void print_ids(const char *name, const int32_t *id, size_t n) {
    printf("   %s", name);
    for (size_t i = 0; i < n && i < 40; i++) printf(" %d", id[i]);
    printf(n > 40 ? " ...\n" : "\n");
}

static void expect_ids(int line, const Tok *t, const char *s, size_t n, unsigned flags,
                       const int32_t *want, size_t n_want) {
    IntVec got = { 0 };
    tok_encode(t, s, n, flags, &got);
    if (got.n != n_want || (n_want && memcmp(got.p, want, n_want * sizeof *want))) {
        failures++;
        printf("%s:%d: \"%.*s\" (%zu bytes)\n", __FILE__, line, n < 200 ? (int)n : 200, s, n);
        print_ids("wanted", want, n_want);
        print_ids("got   ", got.p, got.n);
    }
    free(got.p);
}

#define IDS(t, text, flags, ...) do { \
    static const int32_t want_[] = { __VA_ARGS__ }; \
    expect_ids(__LINE__, t, text, sizeof(text) - 1, flags, want_, COUNTOF(want_)); } while (0)

// decode(encode(s)) == want
static void expect_text(int line, const Tok *t, const char *s, size_t n, unsigned flags,
                        const char *want, size_t n_want) {
    IntVec ids = { 0 };
    StrBuf back = { 0 };
    tok_encode(t, s, n, flags, &ids);
    tok_decode(t, ids.p, ids.n, 0, &back);
    EXPECT(back.n == n_want && (!n_want || !memcmp(back.p, want, n_want)),
           "line %d: \"%.*s\" came back as \"%.*s\"", line, n < 200 ? (int)n : 200, s,
           back.n < 200 ? (int)back.n : 200, back.p ? back.p : "");
    free(ids.p);
    free(back.p);
}

#define BECOMES(t, s, want) \
    expect_text(__LINE__, t, s, sizeof(s) - 1, TOK_SPECIAL, want, sizeof(want) - 1)

// ---------------------------------------------------------------------------
// Hand-worked examples

static void test_merges(void) {
    Vocab v = new_vocab(NULL);
    int bc = add_merge(&v, 'b', 'c'), ab = add_merge(&v, 'a', 'b'), aa = add_merge(&v, 'a', 'a');
    int abab = add_merge(&v, ab, ab), aaa = add_merge(&v, 'a', aa), abc = add_merge(&v, 'a', bc);
    EXPECT(bc == 256 && ab == 257 && aa == 258 && abab == 259 && aaa == 260 && abc == 261, "ids");
    int xyz = add_token(&v, "xyz", 3, NORMAL);
    Tok *t = open_vocab(&v);
    EXPECT(tok_vocab(t) == 263 && tok_bos(t) == -1 && xyz == 262, "vocabulary");
    IDS(t, "", 0, );
    IDS(t, "ab", 0, 257);
    IDS(t, "abc", 0, 261);              // b c first, then a bc
    IDS(t, "ababc", 0, 257, 261);       // not ab ab c
    IDS(t, "abababab", 0, 259, 259);
    IDS(t, "aa", 0, 258);
    IDS(t, "aaa", 0, 258, 'a');         // leftmost; aa a is no pair
    IDS(t, "aaaa", 0, 258, 258);
    IDS(t, "aab", 0, 'a', 257);         // a b has the lower rank
    IDS(t, "xyz", 0, 'x', 'y', 'z');    // no merges lead there
    IDS(t, "c\0b", 0, 'c', 0, 'b');
    tok_close(t);

    v.ignore_merges = 1;
    t = open_vocab(&v);
    IDS(t, "xyz", 0, 262);              // the whole pre-token is in the vocabulary
    IDS(t, "aaa", 0, 260);
    IDS(t, "xyzx", 0, 'x', 'y', 'z', 'x');
    tok_close(t);
    free_vocab(&v);

    v = (Vocab){ .kind = BYTES, .bos = -1 };        // no token for x: its neighbours can merge
    add_token(&v, "a", 1, NORMAL);
    add_token(&v, "b", 1, NORMAL);
    add_merge(&v, 0, 1);
    t = open_vocab(&v);
    IDS(t, "axb", 0, 2);
    IDS(t, "xxaxbxa", 0, 2, 0);
    IDS(t, "xyz", 0, );
    tok_close(t);
    free_vocab(&v);
}

static void test_added(void) {
    Vocab v = new_vocab(LLAMA3);
    add_special(&v, "<s>", SPECIAL, 0);                 // 256
    add_special(&v, "<s>x", SPECIAL, 0);
    add_special(&v, "<tool>", ADDED, 0);
    add_special(&v, "<l>", SPECIAL, LSTRIP);
    add_special(&v, "<r>", SPECIAL, RSTRIP);            // 260
    add_special(&v, "<w>", SPECIAL, SINGLE_WORD);
    add_special(&v, "cafe\xcc\x81", ADDED, NORMALIZED);
    add_special(&v, "<s", ADDED, 0);
    add_special(&v, "[<tool>]", SPECIAL, 0);
    add_special(&v, "e\xcc\x81>", ADDED, 0);            // 265
    add_special(&v, "<s>", SPECIAL, 0);                 // a second one of that name is never found
    add_token(&v, "hole", 4, UNUSED);
    ints_add(&v.eos, (int32_t[]){ 256, 260 }, 2);
    v.bos = 256;
    v.add_bos = 1;
    Tok *t = open_vocab(&v);
    EXPECT(tok_bos(t) == 256 && tok_is_stop(t, 256) && tok_is_stop(t, 260) && !tok_is_stop(t, 257),
           "BOS and EOS");
    EXPECT(!tok_chat(t)->present, "no chat");
    IDS(t, "", TOK_BOS, 256);
    IDS(t, "a", TOK_BOS, 256, 'a');
    IDS(t, "a", 0, 'a');
    IDS(t, "a<s>b", TOK_SPECIAL, 'a', 256, 'b');
    IDS(t, "<s>xb<s>", TOK_SPECIAL, 257, 'b', 256);     // the longest
    IDS(t, "<s><s>", TOK_SPECIAL, 256, 256);
    IDS(t, "<s>", 0, '<', 's', '>');                    // off: and <s inside it stays hidden
    IDS(t, "<sb", TOK_SPECIAL, 263, 'b');
    IDS(t, "<tool>", 0, 258);                           // added, not special: always
    IDS(t, "[<tool>]", TOK_SPECIAL, 264);
    IDS(t, "[<tool>]", 0, '[', '<', 't', 'o', 'o', 'l', '>', ']');      // hidden again
    IDS(t, "a <l> b", TOK_SPECIAL, 'a', 259, ' ', 'b');
    IDS(t, "a <r> \n b", TOK_SPECIAL, 'a', ' ', 260, 'b');
    IDS(t, "<r> \xe3\x80\x80<l>", TOK_SPECIAL, 260, 259);       // the first takes the spaces
    IDS(t, " \xc2\xa0<l>", TOK_SPECIAL, 259);
    IDS(t, "a<w>", TOK_SPECIAL, 'a', '<', 'w', '>');
    IDS(t, "-<w>.", TOK_SPECIAL, '-', 261, '.');
    IDS(t, "<w>\xc3\xa9", TOK_SPECIAL, '<', 'w', '>', 0xc3, 0xa9);
    IDS(t, "caf\xc3\xa9", 0, 'c', 'a', 'f', 0xc3, 0xa9);
    tok_close(t);

    v.nfc = 1;                          // now text and token are composed before they are compared
    t = open_vocab(&v);
    IDS(t, "caf\xc3\xa9!", 0, 262, '!');
    IDS(t, "cafe\xcc\x81!", 0, 262, '!');
    IDS(t, "e\xcc\x81>", 0, 265);                       // this one as it stands
    IDS(t, "\xc3\xa9>", 0, 0xc3, 0xa9, '>');
    IDS(t, "<s>\xcc\xb8", TOK_SPECIAL, 256, 0xcc, 0xb8);        // before > and its slash compose
    tok_close(t);
    v.add_bos = 0;
    t = open_vocab(&v);
    IDS(t, "a", TOK_BOS, 'a');
    EXPECT(tok_bos(t) == 256, "BOS that is not added");
    tok_close(t);

    IntVec ids = { 0 };
    StrBuf text = { 0 };
    t = open_vocab(&v);
    ints_add(&ids, (int32_t[]){ 256, 'h', 258, -1, 'i', 267, 260, INT32_MAX, 268 }, 9);
    tok_decode(t, ids.p, ids.n, 0, &text);
    EXPECT(!strcmp(text.p, "<s>h<tool>\xef\xbf\xbdi\xef\xbf\xbd<r>\xef\xbf\xbd\xef\xbf\xbd"), "%s",
           text.p);
    text.n = 0;
    tok_decode(t, ids.p, 7, TOK_SKIP_SPECIAL, &text);
    EXPECT(!strcmp(text.p, "h<tool>\xef\xbf\xbdi\xef\xbf\xbd"), "%s", text.p);
    tok_close(t);
    free(ids.p);
    free(text.p);
    free_vocab(&v);
}

static void test_white_space(void) {
    static const char *const spaces[] = { "\t", "\n", "\v", "\f", "\r", " ", "\xc2\x85", "\xc2\xa0",
        "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x8a", "\xe2\x80\xa8", "\xe2\x80\xa9",
        "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80" };
    static const char *const others[] = { "\b", "\x0e", "\x1c", "\x1f", "\xe1\xa0\x8e",
        "\xe2\x80\x8b", "\xe2\x80\xae", "\xe2\x80\xb0", "\xe2\x81\xa0", "\xef\xbb\xbf", "\xff",
        "\x80\x80" };
    Vocab v = new_vocab(NULL);
    int id = add_special(&v, "<m>", SPECIAL, LSTRIP | RSTRIP);
    Tok *t = open_vocab(&v);
    for (size_t i = 0; i < COUNTOF(spaces) + COUNTOF(others); i++) {
        bool is_space = i < COUNTOF(spaces);
        const char *c = is_space ? spaces[i] : others[i - COUNTOF(spaces)];
        IntVec want = { 0 };
        StrBuf s = { 0 };
        str_fmt(&s, "%s <m> %s", c, c);
        for (size_t k = 0; !is_space && c[k]; k++) ints_push(&want, (uint8_t)c[k]);
        ints_push(&want, id);
        for (size_t k = 0; !is_space && c[k]; k++) ints_push(&want, (uint8_t)c[k]);
        expect_ids(__LINE__, t, s.p, s.n, TOK_SPECIAL, want.p, want.n);
        free(want.p);
        free(s.p);
    }
    tok_close(t);
    free_vocab(&v);
}

// several tokens of one string: single bytes are the normal token, merges say themselves which
static void test_twins(void) {
    Vocab v = { .kind = BYTES, .bos = -1 };
    add_special(&v, "a", SPECIAL, 0);
    add_token(&v, "a", 1, NORMAL);
    add_token(&v, "b", 1, NORMAL);
    add_token(&v, "ab", 2, NORMAL);                     // 3, which no merge makes
    add_token(&v, "ab", 2, NORMAL);
    ints_add(&v.merges, (int32_t[]){ 1, 2, 4 }, 3);
    Tok *t = open_vocab(&v);
    IDS(t, "ab", 0, 4);
    IDS(t, "aba", 0, 4, 1);
    IDS(t, "ba", TOK_SPECIAL, 2, 0);
    tok_close(t);
    v.ignore_merges = 1;
    t = open_vocab(&v);
    IDS(t, "ab", 0, 3);                                 // the first that is looked up
    tok_close(t);
    free_vocab(&v);
}

static void test_chat(void) {
    Vocab v = new_vocab(LLAMA3);
    add_special(&v, "<s>", SPECIAL, 0);                 // 256
    add_special(&v, "<user>", SPECIAL, 0);
    add_special(&v, "<end>", SPECIAL, 0);
    v.present = v.add_bos = 1;
    v.bos = 256;
    static const char *const chat[7] = { "<s>", "<user>\n", "<end>", "", "<end>", "", "" };
    memcpy(v.chat, chat, sizeof v.chat);
    Tok *t = open_vocab(&v);
    const ChatPieces *c = tok_chat(t);
    const IntVec *ids = c->ids;
    EXPECT(c->present && c->trim, "there");
    EXPECT(ids[CHAT_PREFIX].n == 1 && ids[CHAT_PREFIX].p[0] == 256, "prefix");
    EXPECT(ids[CHAT_USER_OPEN].n == 2 && ids[CHAT_USER_OPEN].p[0] == 257
           && ids[CHAT_USER_OPEN].p[1] == '\n', "user");
    EXPECT(ids[CHAT_FIRST_OPEN].n == 2 && !memcmp(ids[CHAT_FIRST_OPEN].p, ids[CHAT_USER_OPEN].p, 8),
           "first");
    EXPECT(ids[CHAT_USER_CLOSE].n == 1 && ids[CHAT_ASSISTANT_CLOSE].n == 1
           && ids[CHAT_ASSISTANT_CLOSE].p[0] == 258, "close");
    EXPECT(ids[CHAT_ASSISTANT_OPEN].n == 0, "an empty piece");
    tok_close(t);
    free_vocab(&v);
}

static void test_nfc(void) {
    Vocab v = new_vocab(QWEN2);
    v.nfc = 1;
    Tok *t = open_vocab(&v);
    BECOMES(t, "plain\r\n\0text", "plain\r\n\0text");
    BECOMES(t, "cafe\xcc\x81", "caf\xc3\xa9");
    BECOMES(t, "caf\xc3\xa9\xcc\x81", "caf\xc3\xa9\xcc\x81");
    BECOMES(t, "\xe2\x84\xab" "A\xcc\x8a", "\xc3\x85\xc3\x85");                 // Angstrom
    BECOMES(t, "\xe1\x84\x80\xe1\x85\xa1", "\xea\xb0\x80");                     // Hangul jamo
    BECOMES(t, "\xea\xb0\x80\xe1\x86\xa8", "\xea\xb0\x81");
    BECOMES(t, "q\xcc\x87\xcc\xa3", "q\xcc\xa3\xcc\x87");                       // marks reordered
    BECOMES(t, "e\xcc\xa3\xcc\x81", "\xe1\xba\xb9\xcc\x81");
    BECOMES(t, "\xe0\xa5\x98", "\xe0\xa4\x95\xe0\xa4\xbc");                     // excluded
    BECOMES(t, "e\xff\xcc\x81", "e\xff\xcc\x81");                               // invalid between
    BECOMES(t, "e\xcc\x81\xcc", "\xc3\xa9\xcc");
    BECOMES(t, "\xef\xac\x81 \xe2\x91\xa0", "\xef\xac\x81 \xe2\x91\xa0");       // no NFKC

    enum { N = 200000 };                // marks of two classes in turn: sorting must not be O(n^2)
    char *s = xrealloc(NULL, 4 * N + 1), *want = xrealloc(NULL, 4 * N + 1);
    for (int i = 0; i < N; i++) {
        memcpy(s + 4 * i, "\xcc\x87\xcc\xa3", 4);
        memcpy(want + 2 * i, "\xcc\xa3", 2);
        memcpy(want + 2 * (N + i), "\xcc\x87", 2);
    }
    expect_text(__LINE__, t, s, 4 * N, 0, want, 4 * N);
    free(s);
    free(want);
    tok_close(t);
    free_vocab(&v);
}

// ---------------------------------------------------------------------------
// Pre-tokens. Each pair of bytes has a merge and each expected piece is a token that is looked up
// whole, so the ids of a text are those of its pieces exactly when it was split as expected.

static void expect_split(int line, const char *regex, int digits, const char *pieces) {
    Vocab v = new_vocab(regex);
    v.digits = digits;
    v.ignore_merges = 1;
    StrBuf text = { 0 };
    IntVec want = { 0 };
    for (const char *s = pieces; *s; s++)
        if (*s != '|') str_add(&text, s, 1);
    for (size_t i = 1; i < text.n; i++)
        add_merge(&v, (uint8_t)text.p[i - 1], (uint8_t)text.p[i]);
    for (const char *s = pieces; *s;) {
        size_t n = strcspn(s, "|");
        int id = find_token(&v, s, n);
        ints_push(&want, id < 0 ? add_token(&v, s, n, NORMAL) : id);
        s += n + (s[n] == '|');
    }
    Tok *t = open_vocab(&v);
    expect_ids(line, t, text.p, text.n, 0, want.p, want.n);
    tok_close(t);
    free(text.p);
    free(want.p);
    free_vocab(&v);
}

#define SPLIT(llama3, qwen2, gpt2, smollm) do { \
    expect_split(__LINE__, LLAMA3, 0, llama3); \
    expect_split(__LINE__, QWEN2, 0, qwen2); \
    expect_split(__LINE__, GPT2, 0, gpt2); \
    expect_split(__LINE__, GPT2, 1, smollm); } while (0)
#define SPLIT2(words, gpt2) SPLIT(words, words, gpt2, gpt2)

static void test_splits(void) {
    SPLIT2("Hello| world", "Hello| world");
    SPLIT(" | two| | spaces|\n\n|\tTab| don|'t| DON|'T| |123|45| |3|.|14",
          " | two| | spaces|\n\n|\tTab| don|'t| DON|'T| |1|2|3|4|5| |3|.|1|4",
          " | two| | spaces|\n\n|\t|Tab| don|'t| DON|'|T| 12345| 3|.|14",
          " | two| | spaces|\n\n|\t|Tab| don|'t| DON|'|T| |1|2|3|4|5| |3|.|1|4");
    SPLIT("a|  | |5", "a|  | |5", "a|  | 5", "a|   |5");
    SPLIT("x|\xc2\xbd\xe2\x85\xa7" "3|4", "x|\xc2\xbd|\xe2\x85\xa7|3|4",    // one half, roman 8
          "x|\xc2\xbd\xe2\x85\xa7" "34", "x|\xc2\xbd|\xe2\x85\xa7|3|4");
    SPLIT("v|1|.|234|5|!", "v|1|.|2|3|4|5|!", "v|1|.|2345|!", "v|1|.|2|3|4|5|!");
    SPLIT2("a|\r\n|b", "a|\r|\n|b");
    SPLIT2("a|!\r\n\n| b", "a|!|\r\n\n| b");
    SPLIT2(" \r\n| x", " \r\n| x");
    SPLIT2("  \n\n| | x", "  \n\n | x");
    SPLIT2("a|  ", "a|  ");
    SPLIT2("a|\n", "a|\n");
    SPLIT2("he|'ll| THEY|'VE", "he|'ll| THEY|'|VE");
    SPLIT2("(foo|)", "(|foo|)");
    SPLIT2("x|_y|=\"|z|\";", "x|_|y|=\"|z|\";");
    SPLIT2("if| (!|x|)| {\n|    | return|;\n|}", "if| (!|x|)| {|\n   | return|;|\n|}");
    SPLIT2("\xe4\xbd\xa0\xe5\xa5\xbd|\xef\xbc\x8c\xe4\xb8\x96",
           "\xe4\xbd\xa0\xe5\xa5\xbd|\xef\xbc\x8c|\xe4\xb8\x96");
    SPLIT2("a|\xe3\x80\x80" "b", "a|\xe3\x80\x80|b");                       // ideographic space
    SPLIT2("e|\xcc\x81x", "e|\xcc\x81|x");                                  // combining mark
    SPLIT2("a|\xe2\x80\xa8" "b", "a|\xe2\x80\xa8|b");                       // line separator
    SPLIT2("!\xe1\xa0\x8e!", "!\xe1\xa0\x8e!");                             // U+180E is no space
    SPLIT2("\xe2\x80\x8b\xef\xbb\xbf", "\xe2\x80\x8b\xef\xbb\xbf");         // nor U+200B, U+FEFF
    SPLIT2("hi| \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7| x",
           "hi| \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7| x");
    SPLIT2("ab|\xff\xfe|cd", "ab|\xff\xfe|cd");                             // invalid bytes
    SPLIT2("ab| |\xe4\xbd| cd", "ab| |\xe4\xbd| cd");
    expect_split(__LINE__, "", 0, "one two\n3|\xff");
    expect_split(__LINE__, "b", 0, "a|b|a|b|b|cc");     // what does not match is a pre-token too
    expect_split(__LINE__, "b*", 0, "a|bb|c|\xc3\xa9|d");               // empty matches part
    expect_split(__LINE__, "[\\s,]+|[^\\s,]+", 0, "a| ,\t|b\xe1\xa0\x8e|\xe3\x80\x80|c");
    expect_split(__LINE__, "[^\\S\\n]+|[^\\s]+|\\n", 0, "a|  |\n|\xc2\xa0|b");
    expect_split(__LINE__, "[]\\s]+|[[:alpha:]\\s]\\S", 0, "] ]|ab|c| ");
}

// ---------------------------------------------------------------------------
// A naive BPE on random tables: scan for the lowest rank, leftmost; merge; scan again

static void naive(const Vocab *v, const char *s, size_t n, IntVec *out) {
    int32_t *sym = xrealloc(NULL, (n + 1) * sizeof *sym);
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if ((sym[k] = find_token(v, s + i, 1)) >= 0) k++;
    for (;;) {
        size_t best = SIZE_MAX, at = 0;
        for (size_t i = 0; i + 1 < k; i++)
            for (size_t m = 0; m < v->merges.n / 3 && m < best; m++)
                if (v->merges.p[3 * m] == sym[i] && v->merges.p[3 * m + 1] == sym[i + 1]) {
                    best = m;
                    at = i;
                }
        if (best == SIZE_MAX) break;
        sym[at] = v->merges.p[3 * best + 2];
        memmove(sym + at + 1, sym + at + 2, (k - at - 2) * sizeof *sym);
        k--;
    }
    ints_add(out, sym, k);
    free(sym);
}

static bool has_pair(const Vocab *v, int left, int right) {
    for (size_t m = 0; m < v->merges.n; m += 3)
        if (v->merges.p[m] == left && v->merges.p[m + 1] == right) return true;
    return false;
}

// tables over few letters, so that pairs compete; each third text has letters without a token
static void test_random(void) {
    Rng r = { 1 };
    for (int table = 0; table < 120; table++) {
        int letters = 1 + (int)rng_below(&r, 4);
        Vocab v = { .kind = BYTES, .bos = -1 };
        for (int i = 0; i < letters; i++) add_token(&v, (char[]){ (char)('a' + i) }, 1, NORMAL);
        for (int m = (int)rng_below(&r, 40); m > 0; m--) {
            int left = (int)rng_below(&r, v.types.n), right = (int)rng_below(&r, v.types.n);
            if (!has_pair(&v, left, right)) add_merge(&v, left, right);
        }
        Tok *t = open_vocab(&v);
        for (int k = 0; k < 50; k++) {
            char s[400];
            IntVec want = { 0 };
            size_t n = rng_below(&r, k % 10 ? 70 : sizeof s);
            uint64_t range = (uint64_t)letters + (k % 3 == 0);
            for (size_t i = 0; i < n; i++) s[i] = (char)('a' + rng_below(&r, range));
            naive(&v, s, n, &want);
            expect_ids(__LINE__, t, s, n, 0, want.p, want.n);
            free(want.p);
        }
        tok_close(t);
        free_vocab(&v);
        if (failures > 10) return;
    }
}

// ---------------------------------------------------------------------------
// BPE over characters

static Vocab new_kind(int kind) {
    return (Vocab){ .kind = kind, .bos = -1, .unk = -1, .strip = 1, .words = 1, .word_max = 5 };
}

// words, separated by blanks; _ is a space inside one, a type may follow: <s>:1
static void add_words(Vocab *v, const char *words) {
    for (const char *s = words; *s;) {
        char text[40];
        size_t n = strcspn(s, " "), k = n;
        int type = n > 2 && s[n - 2] == ':' ? s[n - 1] - '0' : NORMAL;
        if (type != NORMAL) k -= 2;
        for (size_t i = 0; i < k; i++) text[i] = s[i] == '_' ? ' ' : s[i];
        text[k] = 0;
        if (type == SPECIAL || type == ADDED) add_special(v, text, (char)type, 0);
        else add_token(v, text, k, (char)type);
        s += n + (s[n] == ' ');
    }
}

static void test_prefix(void) {
    Vocab v = new_kind(CHARS);
    add_words(&v, "<u>:1 <s>:1 _ a b _a ab _ab");          // 0 to 7
    ints_add(&v.merges, (int32_t[]){ 2, 3, 5, 5, 4, 7, 3, 4, 6 }, 9);
    v.unk = 0;
    Tok *t;
    for (v.prefix = 0; v.prefix < 4; v.prefix++) {
        t = open_vocab(&v);
        int p = v.prefix;
        if (p == 0) IDS(t, "ab", 0, 6);
        if (p > 0) IDS(t, "ab", 0, 7);
        if (p == 1) IDS(t, " ab", 0, 2, 7);                 // one more
        if (p != 1) IDS(t, " ab", 0, 7);                    // it has one
        if (p == 1 || p == 2) IDS(t, "a<s>b", TOK_SPECIAL, 5, 1, 2, 4);
        if (p == 3) IDS(t, "a<s>b", TOK_SPECIAL, 5, 1, 4);
        if (p == 3) IDS(t, "<s>ab", TOK_SPECIAL, 1, 6);     // not the start of the text
        if (p == 1) IDS(t, "<s>ab", TOK_SPECIAL, 1, 7);
        IDS(t, "ab", TOK_MIDDLE, 6);
        IDS(t, "ab", TOK_MIDDLE | TOK_SPACE, 7);
        IDS(t, "\xe2\x96\x81" "ab", TOK_MIDDLE, 7);         // the mark is a space
        IDS(t, "", 0, );
        IDS(t, "axyb", TOK_MIDDLE, 3, 0, 4);                // unknown neighbours are one
        tok_close(t);
    }
    v.prefix = 1;
    t = open_vocab(&v);
    StrBuf text = { 0 };
    tok_decode(t, (int32_t[]){ 7, 7 }, 2, 0, &text);        // one space in front goes
    tok_decode(t, (int32_t[]){ 7 }, 1, TOK_MIDDLE, &text);
    EXPECT(!strcmp(text.p, "ab ab ab"), "%s", text.p);
    free(text.p);
    tok_close(t);
    free_vocab(&v);
}

static void test_byte_fallback(void) {
    Vocab v = new_kind(CHARS);
    for (int b = 0; b < 256; b++) add_token(&v, (char[]){ (char)b }, 1, BYTE);
    add_words(&v, "a b ab");                                // 256 to 258
    add_token(&v, "\xc3\xa9", 2, NORMAL);
    ints_add(&v.merges, (int32_t[]){ 256, 257, 258 }, 3);
    Tok *t = open_vocab(&v);
    IDS(t, "ab\xc3\xa9", 0, 258, 259);
    IDS(t, "a\xc3\xa8" "b", 0, 256, 0xc3, 0xa8, 257);
    IDS(t, "a\0b\n", 0, 256, 0, 257, 10);
    IDS(t, "\xff" "a\xc3", 0, 0xff, 256, 0xc3);             // invalid bytes are bytes
    BECOMES(t, "\xf0\x9f\x98\x80 \xff\xc3", "\xf0\x9f\x98\x80 \xff\xc3");
    tok_close(t);
    free_vocab(&v);
}

// SentencePiece's rule, naively: of all neighbours that are a token together the one of the highest
// score, leftmost; what has no token then is unknown
static void naive_scores(const Vocab *v, const char *s, size_t n, IntVec *out) {
    size_t from[500], k = 0;
    for (size_t i = 0; i < n; i++) from[k++] = i;
    from[k] = n;
    for (;;) {
        int best = -1;
        size_t at = 0;
        for (size_t i = 0; i + 1 < k; i++) {
            int id = find_token(v, s + from[i], from[i + 2] - from[i]);
            if (id >= 0 && (best < 0 || v->scores[id] > v->scores[best])) best = id, at = i;
        }
        if (best < 0) break;
        memmove(from + at + 1, from + at + 2, (k - at - 1) * sizeof *from);
        k--;
    }
    for (size_t i = 0; i < k; i++) {
        int id = find_token(v, s + from[i], from[i + 1] - from[i]);
        if (id >= 0 || !out->n || out->p[out->n - 1] != 0) ints_push(out, id < 0 ? 0 : id);
    }
}

// few letters, tokens of random strings over them and one letter more, scores that tie
static void test_scores(void) {
    Rng r = { 6 };
    for (int table = 0; table < 150 && failures < 10; table++) {
        Vocab v = new_kind(CHARS);
        int letters = 1 + (int)rng_below(&r, 3), n_tokens = (int)rng_below(&r, 30);
        add_words(&v, "<u>:1");
        v.unk = 0;
        for (int i = 0; i < letters; i++) add_token(&v, (char[]){ (char)('a' + i) }, 1, NORMAL);
        for (int i = 0; i < n_tokens; i++) {
            char s[6];
            size_t n = 2 + rng_below(&r, 4);
            for (size_t j = 0; j < n; j++)
                s[j] = table % 3 && j ? (char)('a' + rng_below(&r, (uint64_t)letters + 1)) : ' ';
            if (find_token(&v, s, n) < 0) add_token(&v, s, n, NORMAL);
        }
        if (table % 2) add_words(&v, "_");
        double scores[64];
        for (size_t i = 0; i < v.types.n; i++) scores[i] = -(double)rng_below(&r, 20);
        v.scores = scores;
        Tok *t = open_vocab(&v);
        for (int k = 0; k < 60; k++) {
            char s[300];
            IntVec want = { 0 };
            size_t n = rng_below(&r, k % 10 ? 50 : sizeof s);
            for (size_t i = 0; i < n; i++) {
                uint64_t c = rng_below(&r, (uint64_t)letters + 2);
                s[i] = c ? (char)('a' + c - 1) : ' ';
            }
            naive_scores(&v, s, n, &want);
            expect_ids(__LINE__, t, s, n, 0, want.p, want.n);
            free(want.p);
        }
        tok_close(t);
        free_vocab(&v);
    }
}

// ---------------------------------------------------------------------------
// Unigram and WordPiece

static void spans_are(int line, const Tok *t, const char *s, const int32_t *want, size_t n) {
    IntVec ids = { 0 }, spans = { 0 };
    tok_encode_offsets(t, s, strlen(s), TOK_SPECIAL, &ids, &spans);
    EXPECT(spans.n == n && ids.n * 2 == n && !memcmp(spans.p, want, n * sizeof *want),
           "line %d: spans of \"%s\"", line, s);
    free(ids.p);
    free(spans.p);
}
#define SPANS(t, text, ...) do { \
    static const int32_t want_[] = { __VA_ARGS__ }; \
    spans_are(__LINE__, t, text, want_, COUNTOF(want_)); } while (0)

static void test_unigram(void) {
    Vocab v = new_kind(UNIGRAM);
    add_words(&v, "<u>:1 <m>:1 _ a b _a ab _ab aba");       // 0 to 8
    double scores[] = { 0, 0, -3, -2, -2, -3, -3, -9, -4 };
    uint32_t map[52] = { 50 * 4, [1 + '1'] = '1' | 1u << 8 | 1u << 10 };
    memcpy(&map[51], "b\xc2\xa0", 4);
    v.scores = scores;
    v.unk = 0;
    Tok *t = open_vocab(&v);
    IDS(t, "ab", 0, 5, 4);              // -3 -2, against -3 -3 and -9
    IDS(t, "aba", 0, 2, 8);             // -7 either way: the one found first stays
    IDS(t, "  ab\t a\n", 0, 5, 4, 5);
    IDS(t, "xyb", 0, 2, 0, 4);
    IDS(t, "x", TOK_SPECIAL, 2, 0);
    IDS(t, "a<m>b", TOK_SPECIAL, 5, 1, 2, 4);
    IDS(t, "", 0, );
    SPANS(t, " ab  xyb", 1, 2, 2, 3, 5, 6, 5, 7, 7, 8);
    SPANS(t, "b<m>", 0, 1, 0, 1, 1, 4);
    tok_close(t);
    v.charsmap = (const char *)map;     // 1 becomes b and a no-break space
    v.charsmap_bytes = sizeof map;
    t = open_vocab(&v);
    IDS(t, "a1a", 0, 5, 4, 5);
    SPANS(t, "a1a", 0, 1, 1, 2, 2, 3);
    IDS(t, "1\xcc\x81" "a", 0, 2, 4, 5);        // a short cluster goes with its first character
    IDS(t, "1\xcc\x81\xcc\x81\xcc\x81" "b", 0, 2, 4, 2, 0, 4);
    IDS(t, "\xff" "b", 0, 2, 0, 4);
    tok_close(t);
    v.words = 0;                        // white space but at the end stays, runs are one
    v.charsmap = NULL;
    t = open_vocab(&v);
    IDS(t, "a   b  ", 0, 5, 2, 4);
    IDS(t, " \ta", 0, 2, 0, 3);
    StrBuf text = { 0 };
    tok_decode(t, (int32_t[]){ 2, 5, 4, 2, 4 }, 5, 0, &text);
    EXPECT(!strcmp(text.p, " ab b"), "\"%s\"", text.p);
    free(text.p);
    tok_close(t);
    free_vocab(&v);
}

static void test_wordpiece(void) {
    Vocab v = new_kind(WORDPIECE);
    add_words(&v, "[U]:1 [C]:1 a ab b ##b ##bc ##c . # \xe4\xb8\x96");      // 0 to 10
    v.unk = 0;
    v.bos = 1;
    v.add_bos = 1;
    Tok *t = open_vocab(&v);
    IDS(t, "abbc ab", TOK_BOS, 1, 3, 6, 3);
    IDS(t, "abc", 0, 3, 7);
    IDS(t, "abd b", 0, 0, 4);           // one unknown token
    IDS(t, "abbbb", 0, 3, 5, 5, 5);
    IDS(t, "abbbbb", 0, 0);             // longer than word_max
    IDS(t, "a.b", 0, 2, 8, 4);
    IDS(t, "##b", 0, 9, 9, 4);
    IDS(t, "a\xe4\xb8\x96" "b", 0, 2, 10, 4);
    IDS(t, "a\0\xef\xbf\xbd\xff" "b\xc2\xad" "b", 0, 3, 5);    // dropped inside a word
    IDS(t, "a[C]b", TOK_SPECIAL, 2, 1, 4);
    SPANS(t, " abbc.\xe4\xb8\x96[U]abd", 1, 3, 3, 5, 5, 6, 6, 9, 9, 12, 12, 15);
    StrBuf text = { 0 };
    tok_decode(t, (int32_t[]){ 1, 3, 6, 8, 2, 7, 10 }, 7, 0, &text);
    tok_decode(t, (int32_t[]){ 1, 2, 8 }, 3, TOK_SKIP_SPECIAL | TOK_MIDDLE, &text);
    EXPECT(!strcmp(text.p, "[C] abbc. ac \xe4\xb8\x96 a."), "\"%s\"", text.p);
    free(text.p);
    tok_close(t);
    free_vocab(&v);
}

// ---------------------------------------------------------------------------
// Templates: pieces and messages encoded on their own are the ids of the whole rendering

static void add_piece(const Tok *t, ChatPiece piece, IntVec *out, StrBuf *whole) {
    const ChatPieces *c = tok_chat(t);
    ints_add(out, c->ids[piece].p, c->ids[piece].n);
    str_add(whole, c->text[piece].p, c->text[piece].n);
}

static void expect_joins(int line, const Tok *t) {
    static const char *const says[] = { "ab a", "b", "a" };
    const ChatPieces *c = tok_chat(t);
    IntVec ids = { 0 };
    StrBuf whole = { 0 };
    add_piece(t, CHAT_PREFIX, &ids, &whole);
    for (int i = 0; i < 3; i++) {
        add_piece(t, i == 0 ? CHAT_FIRST_OPEN : i == 1 ? CHAT_ANSWER_OPEN : CHAT_USER_OPEN, &ids,
                  &whole);
        unsigned flags = i == 0 ? c->first_text : i == 1 ? c->answer_text : c->user_text;
        tok_encode(t, says[i], strlen(says[i]), flags, &ids);
        str_puts(&whole, says[i]);
        add_piece(t, i == 1 ? CHAT_ASSISTANT_CLOSE : CHAT_USER_CLOSE, &ids, &whole);
        if (i != 1) add_piece(t, CHAT_ASSISTANT_OPEN, &ids, &whole);
    }
    expect_ids(line, t, whole.p, whole.n, TOK_SPECIAL, ids.p, ids.n);
    free(ids.p);
    free(whole.p);
}

static void test_joins(void) {
    static const char *const chats[][7] = {
        { "", "<s>[I] ", " [/I]", "", " </s>", "", " " },           // Llama-2
        { "", "<s>[I] ", " [/I]", "", " </s>", "<s>[I] ba\n\n", " " },
        { "<s>", "[I] ", "[/I]", "", "</s>", "", " " },             // Mistral
        { "<s>", "<b> ", "</s>", "<b>", "</s>", "", " " },          // Jamba
        { "<s>", "<b>\n", "", "<b>", "", "", "\n" },                // GLM-4
        { "", "ab: ", "\n", "ba:", "\n", "", " " },                 // no special tokens
    };
    for (int prefix = 0; prefix < 4; prefix++)
        for (size_t k = 0; k < COUNTOF(chats); k++) {
            Vocab v = new_kind(CHARS);
            add_words(&v, "<u>:1 <s>:1 </s>:1 <b>:1 _ a b _a ab _ab [ ] I / _[ [I [/ _[I _[/");
            ints_add(&v.merges, (int32_t[]){ 4, 5, 7, 7, 6, 9, 5, 6, 8, 4, 10, 14, 14, 12, 17, 14,
                                             13, 18, 10, 12, 15, 10, 13, 16 }, 24);
            v.prefix = prefix;
            v.unk = 0;
            v.present = 1;
            memcpy(v.chat, chats[k], sizeof v.chat);
            Tok *t = open_vocab(&v);
            expect_joins(1000 * prefix + (int)k, t);
            tok_close(t);
            free_vocab(&v);
        }
}

// ---------------------------------------------------------------------------
// Round trips, long texts, threads

// merges learned nowhere: random ones over all bytes, letters preferred
static Vocab busy_vocab(const char *regex, uint64_t seed) {
    Vocab v = new_vocab(regex);
    Rng r = { seed };
    while (v.merges.n < 3 * 500) {
        int left = (int)rng_below(&r, v.types.n), right = (int)rng_below(&r, v.types.n);
        if (left < 256 && rng_below(&r, 4)) left = ' ' + left % 90;
        if (right < 256 && rng_below(&r, 4)) right = 'a' + right % 26;
        if (!has_pair(&v, left, right)) add_merge(&v, left, right);
    }
    return v;
}

static void test_round_trips(void) {
    static const char *const regexes[] = { NULL, LLAMA3, QWEN2, GPT2 };
    Rng r = { 2 };
    for (int k = 0; k < 8; k++) {
        Vocab v = busy_vocab(regexes[k / 2], (uint64_t)k);
        v.digits = k & 1;
        v.ignore_merges = k % 3 == 0;
        Tok *t = open_vocab(&v);
        for (int i = 0; i < 300; i++) {
            char s[300];
            size_t n = rng_below(&r, sizeof s);
            static const char some[] = " \n\r\t'0aZ<\xc3\xe4\xf0\x80\xbd\xa0\xff";
            for (size_t j = 0; j < n; j++)
                s[j] = i % 3 == 0 ? (char)rng_next(&r) : i % 3 == 1
                     ? (char)(32 + rng_below(&r, 95)) : some[rng_below(&r, sizeof some)];
            expect_text(__LINE__, t, s, n, 0, s, n);
        }
        tok_close(t);
        free_vocab(&v);
    }
}

static void test_long(void) {
    enum { N = 1 << 20 };
    Vocab v = busy_vocab(NULL, 3);
    int a = 'a', spaces = ' ';
    for (int k = 0; k < 6; k++) {
        a = add_merge(&v, a, a);
        spaces = add_merge(&v, spaces, spaces);
    }
    char *s = xrealloc(NULL, N);
    Rng r = { 4 };
    for (int k = 0; k < 3; k++) {       // "(*NO_JIT)": the interpreter must manage as well
        v.regex = (const char *[]){ LLAMA3, GPT2, "(*NO_JIT)" LLAMA3 }[k];
        Tok *t = open_vocab(&v);
        IntVec ids = { 0 };
        memset(s, 'a', N);
        tok_encode(t, s, N, 0, &ids);
        EXPECT(ids.n == N / 64 && ids.p[0] == a && ids.p[ids.n - 1] == a, "one letter: %zu", ids.n);
        memset(s, ' ', N);
        ids.n = 0;
        tok_encode(t, s, N, 0, &ids);
        EXPECT(ids.n == N / 64 && ids.p[0] == spaces, "spaces: %zu", ids.n);
        s[N - 1] = 'x';
        expect_text(__LINE__, t, s, N, 0, s, N);
        memset(s, '\n', N);
        expect_text(__LINE__, t, s, N, 0, s, N);
        memset(s, '!', N);
        expect_text(__LINE__, t, s, N, 0, s, N);
        memset(s, '\xbf', N);
        expect_text(__LINE__, t, s, N, 0, s, N);
        for (int i = 0; i < N; i++) s[i] = (char)('a' + rng_below(&r, 26));
        expect_text(__LINE__, t, s, N, 0, s, N);
        free(ids.p);
        tok_close(t);
    }
    v.regex = "(?:[a-m]|[n-z])+";       // a step back for every letter: more than the JIT's stack
    v.ignore_merges = 1;
    add_token(&v, s, N / 8, NORMAL);
    Tok *t = open_vocab(&v);
    expect_ids(__LINE__, t, s, N / 8, 0, (int32_t[]){ tok_vocab(t) - 1 }, 1);
    tok_close(t);
    free(s);
    free_vocab(&v);
}

static void test_threads(void) {
    Vocab v = busy_vocab(GPT2, 5);
    v.nfc = v.digits = 1;
    add_special(&v, "<s>", SPECIAL, LSTRIP);
    Tok *t = open_vocab(&v);
    static const char s[] = "It's 1024 caf\xc3\xa9s, e\xcc\x81, \xff and <s> what is left.\n";
    IntVec want = { 0 };
    int wrong = 0;
    tok_encode(t, s, sizeof s, TOK_SPECIAL, &want);
    #pragma omp parallel for num_threads(4) reduction(+ : wrong)
    for (int i = 0; i < 400; i++) {
        IntVec got = { 0 };
        tok_encode(t, s, sizeof s, TOK_SPECIAL, &got);
        wrong += got.n != want.n || memcmp(got.p, want.p, want.n * sizeof *want.p);
        free(got.p);
    }
    EXPECT(!wrong, "%d of 400 encodes on four threads differ", wrong);
    free(want.p);
    tok_close(t);
    free_vocab(&v);
}

// ---------------------------------------------------------------------------
// Files that must be refused, and by which word

static void refuse(int line, Vocab *v, const char *word) {
    Err err = { 0 };
    Tok *t = try_open(v, &err);
    EXPECT(!t && strstr(err.msg, word) && !strncmp(err.msg, path, strlen(path)),
           "line %d: wanted an error with \"%s\", got \"%s\"", line, word, err.msg);
    tok_close(t);
}
#define REFUSE(word, ...) do { \
    Vocab v = new_vocab(LLAMA3); \
    add_merge(&v, 'a', 'b'); \
    add_special(&v, "<s>", SPECIAL, 0); \
    ints_push(&v.eos, 257); \
    __VA_ARGS__; \
    refuse(__LINE__, &v, word); \
    free_vocab(&v); } while (0)

static void test_refusals(void) {
    REFUSE("tok_kind", v.kind = 9);
    REFUSE("tok_nfc", v.nfc = 2);
    REFUSE("bos_id", v.bos = 258);
    REFUSE("tok_add_bos", v.add_bos = 1);
    REFUSE("tok.offsets", v.offsets.p[0] = 1);
    REFUSE("tok.offsets", v.offsets.p[7] = 5);
    REFUSE("tok.offsets", v.offsets.p[258]--);
    REFUSE("tok.offsets", v.offsets.n = 1);
    REFUSE("tok.types", v.types.p[3] = 4);
    REFUSE("tok.types", v.types.n--);
    REFUSE("tok.merges", v.merges.p[0] = -1);
    REFUSE("tok.merges", v.merges.p[1] = 258);
    REFUSE("tok.merges", v.merges.p[1] = 'c');
    REFUSE("tok.merges", v.merges.p[2] = 257);
    REFUSE("tok.added", v.added.p[0] = 258);
    REFUSE("tok.added", v.added.p[1] = 32);
    REFUSE("tok.types", v.added.p[0] = 'a');
    REFUSE("empty", add_special(&v, "", SPECIAL, 0));
    REFUSE("tok.eos", v.eos.p[0] = 258);
    REFUSE("tok.regex", v.regex = "(a");
    REFUSE("tok.regex", v.regex = "\\C");

    static double nan_scores[3] = { 0, NAN, 0 }, scores[3];
    static const char map[16] = { 13 };
    for (int i = 0; i < 8; i++) {       // the other kinds' own tables
        Vocab v = new_kind(i < 2 ? CHARS : i < 6 ? UNIGRAM : WORDPIECE);
        add_words(&v, "<u>:1 a b");
        v.unk = 0;
        v.scores = v.kind == UNIGRAM ? scores : NULL;
        if (i == 0) v.prefix = 4;
        if (i == 1) v.types.p[0] = BYTE;
        if (i == 2) v.unk = 3;
        if (i == 3) v.scores = nan_scores;
        if (i == 4) v.types.p[1] = BYTE;
        if (i == 5) v.charsmap = map, v.charsmap_bytes = sizeof map;
        if (i == 6) v.unk = -1;
        if (i == 7) v.word_max = 0;
        refuse(__LINE__, &v, (const char *[]){ "tok_prefix", "tok.types", "unk_id", "tok.scores",
                                               "tok.types", "tok.charsmap", "unk_id",
                                               "tok_word_max" }[i]);
        free_vocab(&v);
    }

    // a record that is missing, or has another type
    Vocab v = new_vocab(LLAMA3);
    BinWriter w = { 0 };
    write_vocab(&v, &w);
    for (uint32_t i = 0; i < w.n_params + w.n_tensors; i++) {
        char *name = i < w.n_params ? w.params[i].key : w.tensors[i - w.n_params].name;
        char was = *name;
        Err err = { 0 };
        if (!strncmp(name, "chat.", 5)) continue;
        *name = 'X';
        bin_save(&w, path);
        *name = was;
        Tok *t = open_path(path, &err);
        EXPECT(!t && strstr(err.msg, name), "without %s: \"%s\"", name, err.msg);
        tok_close(t);
    }
    bin_free(&w);
    free_vocab(&v);
}

// ---------------------------------------------------------------------------
// The references: one JSON object per line, {"text", "ids"} and, where they say so, "special":
// false (special strings are plain text), "bos": true, "back": what the ids are decoded to where
// that is not the text, "spans": two byte positions per id

static void read_ints(const json_t *j, IntVec *out) {
    out->n = 0;
    for (size_t i = 0; i < json_array_size(j); i++)
        ints_push(out, (int32_t)json_integer_value(json_array_get(j, i)));
}

static bool equal(const IntVec *a, const IntVec *b) {
    return a->n == b->n && (!a->n || !memcmp(a->p, b->p, a->n * sizeof *a->p));
}

// true: text -> ids, ids -> text and the spans are the reference's
static bool check_vector(const Tok *t, const char *file, int line, const json_t *j) {
    const json_t *text = json_object_get(j, "text"), *back = json_object_get(j, "back");
    IntVec want = { 0 }, spans = { 0 }, got = { 0 }, at = { 0 };
    StrBuf s = { 0 };
    CHECK(text && json_object_get(j, "ids"), "%s: line %d is no vector", file, line);
    unsigned flags = json_is_false(json_object_get(j, "special")) ? 0 : TOK_SPECIAL;
    if (json_is_true(json_object_get(j, "bos"))) flags |= TOK_BOS;
    read_ints(json_object_get(j, "ids"), &want);
    read_ints(json_object_get(j, "spans"), &spans);
    int before = failures;
    expect_ids(line, t, json_string_value(text), json_string_length(text), flags, want.p, want.n);
    if (spans.n && failures == before) {
        tok_encode_offsets(t, json_string_value(text), json_string_length(text), flags, &got, &at);
        EXPECT(equal(&got, &want) && equal(&at, &spans), "line %d: spans of \"%s\"", line,
               json_string_value(text));
        if (!equal(&at, &spans)) {
            print_ids("wanted", spans.p, spans.n);
            print_ids("got   ", at.p, at.n);
        }
    }
    if (!back) back = text;
    tok_decode(t, want.p, want.n, 0, &s);
    const char *p = json_string_value(back);
    EXPECT(json_is_null(back)
           || (s.n == json_string_length(back) && (!s.n || !memcmp(s.p, p, s.n))),
           "line %d: decoded as \"%s\", wanted \"%s\"", line, s.p, json_string_value(back));
    free(want.p);
    free(spans.p);
    free(got.p);
    free(at.p);
    free(s.p);
    return failures == before;
}

static void test_vectors(const char *name) {
    char file[200];
    Err err = { 0 };
    snprintf(file, sizeof file, "data/tokenizer/%s/vocab.bin", name);
    Tok *t = open_path(file, &err);
    EXPECT(t, "%s", err.msg);
    snprintf(file, sizeof file, "data/tokenizer/%s/vectors.jsonl", name);
    FILE *in = fopen(file, "r");
    EXPECT(in, "%s: %s", file, strerror(errno));
    int n = 0, wrong = 0;
    char *line = NULL;
    size_t cap = 0;
    while (t && in && getline(&line, &cap, in) > 0) {
        json_t *j = json_loads(line, JSON_ALLOW_NUL, NULL);
        n++;
        if (wrong < 5) wrong += !check_vector(t, file, n, j);
        json_decref(j);
    }
    EXPECT(n >= 300, "%s: %d vectors", file, n);
    if (wrong) printf("%s: %d or more of %d differ\n", file, wrong, n);
    free(line);
    if (in) fclose(in);
    tok_close(t);
}

int main(void) {
    int fd = mkstemp(path);
    CHECK(fd >= 0, "mkstemp: %s", strerror(errno));
    close(fd);
    test_merges();
    test_added();
    test_white_space();
    test_twins();
    test_chat();
    test_nfc();
    test_splits();
    test_random();
    test_prefix();
    test_byte_fallback();
    test_scores();
    test_unigram();
    test_wordpiece();
    test_joins();
    test_round_trips();
    test_long();
    test_threads();
    test_refusals();
    static const char *const families[] = { "llama3", "qwen2.5", "smollm2", "llama2", "llama2-sp",
        "mistral", "mistral-sp", "jamba-sp", "glm4", "xlm-r", "xlm-r-2", "mbert" };
    for (size_t i = 0; i < COUNTOF(families); i++) test_vectors(families[i]);
    unlink(path);
    if (failures) printf("%d failures\n", failures);
    return failures != 0;
}
