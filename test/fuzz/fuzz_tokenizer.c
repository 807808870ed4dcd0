// fuzz_tokenizer.c - any tables as a vocabulary: refused with a sentence, or every text is encoded
// to ids of the vocabulary, the same ones each time, and any ids are decoded. The input is the
// content of the records; the file around them is always well formed (fuzz_file.c is about that):
//
//     14 bytes of parameters | per table: u16 entries, entries | the text
//
// and is a vocabulary of every kind in turn.
#include "test/binwriter.h"
#include "fuzz.h"

typedef struct { const uint8_t *p; size_t n; } Input;

static const struct { const char *name; DType type; unsigned cols; } tables[] = {
    { "tok.bytes", DT_U8, 1 }, { "tok.offsets", DT_I32, 1 }, { "tok.types", DT_U8, 1 },
    { "tok.merges", DT_I32, 3 }, { "tok.regex", DT_U8, 1 }, { "tok.added", DT_I32, 2 },
    { "tok.eos", DT_I32, 1 }, { "chat.prefix", DT_U8, 1 }, { "chat.user_open", DT_U8, 1 },
    { "chat.user_close", DT_U8, 1 }, { "chat.assistant_open", DT_U8, 1 },
    { "chat.assistant_close", DT_U8, 1 }, { "tok.scores", DT_I32, 2 }, { "tok.charsmap", DT_U8, 1 },
    { "tok.bos", DT_I32, 1 }, { "chat.first_open", DT_U8, 1 }, { "chat.answer_open", DT_U8, 1 },
};
enum { BYTES = 1, CHARS, UNIGRAM, WORDPIECE, N_KINDS };
enum { N_PARAMS = 14, FIRST_OPTIONAL = 12 };    // tables from there on may be missing

static const uint8_t *take(Input *in, size_t n) {
    const uint8_t *p = in->p;
    in->p += n;
    in->n -= n;
    return p;
}

// single bytes that are no character are byte tokens where the kind has them
static void mark_bytes(StrBuf *types, const uint8_t *bytes, size_t n_bytes, const int32_t *at) {
    for (size_t i = 0; i < types->n; i++)
        if (at[i] >= 0 && (size_t)at[i] < n_bytes && at[i + 1] - (int64_t)at[i] == 1
            && bytes[at[i]] >= 0x80) types->p[i] = 4;
}

static void read_tables(Input in, int kind, BinWriter *w, Input *text) {
    static const char *const flags[] = { "tok_nfc", "tok_digits", "tok_ignore_merges",
        "tok_add_bos", "chat_present", "chat_trim", "tok_strip", "tok_words" };
    const uint8_t *p = take(&in, N_PARAMS), *bytes = NULL;
    size_t n_bytes = 0;
    int32_t at[300] = { 0 };
    for (size_t i = 0; i < COUNTOF(flags); i++) bin_int(w, flags[i], p[i]);
    bin_int(w, "tok_kind", kind);
    bin_int(w, "bos_id", (int16_t)(p[8] | p[9] << 8));
    bin_int(w, "tok_prefix", p[10]);
    bin_int(w, "unk_id", (int8_t)p[11]);
    bin_int(w, "tok_word_max", p[12]);
    bool merges = p[13] & 1;
    for (size_t i = 0; i < COUNTOF(tables); i++) {
        size_t row = tables[i].cols * (tables[i].type == DT_I32 ? 4 : 1), n = 0;
        if (in.n >= 2) {
            p = take(&in, 2);
            n = (size_t)(p[0] | p[1] << 8);
        }
        if (n > in.n / row) n = in.n / row;
        p = take(&in, n * row);
        StrBuf own = { 0 };
        if (i == 0) bytes = p, n_bytes = n;
        if (i == 1) memcpy(at, p, n < 300 ? n * 4 : sizeof at);
        str_add(&own, (const char *)p, n * row);
        if (i == 2 && kind == CHARS && n < 299) mark_bytes(&own, bytes, n_bytes, at);
        bool scores = !strcmp(tables[i].name, "tok.scores");
        if ((i >= FIRST_OPTIONAL && !n) || (scores && merges && kind <= CHARS)) { }
        else if (tables[i].cols > 1)
            bin_matrix(w, tables[i].name, tables[i].type, own.p, n, tables[i].cols);
        else bin_vector(w, tables[i].name, tables[i].type, own.p, n);
        free(own.p);
    }
    *text = in;
}

static void check_spans(const Tok *t, const char *s, size_t n, unsigned flags, const IntVec *want) {
    IntVec a = { 0 }, spans = { 0 };
    tok_encode_offsets(t, s, n, flags, &a, &spans);
    CHECK(a.n == want->n && spans.n == 2 * a.n, "%zu ids, %zu spans", a.n, spans.n);
    for (size_t i = 0; i < spans.n; i += 2)
        CHECK(0 <= spans.p[i] && spans.p[i] <= spans.p[i + 1] && (size_t)spans.p[i + 1] <= n,
              "token %zu from %d to %d of %zu bytes", i / 2, spans.p[i], spans.p[i + 1], n);
    free(a.p);
    free(spans.p);
}

static void use(const Tok *t, int kind, const char *s, size_t n) {
    for (unsigned k = 0; k < 8; k++) {
        unsigned flags = (k & 3) | (k & 4 ? TOK_MIDDLE | (kind <= CHARS ? TOK_SPACE : 0) : 0);
        IntVec a = { 0 }, b = { 0 };
        StrBuf text = { 0 };
        tok_encode(t, s, n, flags, &a);
        tok_encode(t, s, n, flags, &b);
        CHECK(a.n == b.n && (!a.n || !memcmp(a.p, b.p, a.n * sizeof *a.p)), "another result");
        for (size_t i = 0; i < a.n; i++)
            CHECK(a.p[i] >= 0 && a.p[i] < tok_vocab(t), "id %d of %d", a.p[i], tok_vocab(t));
        if (kind >= UNIGRAM) check_spans(t, s, n, flags, &a);
        tok_decode(t, a.p, a.n, k << 2, &text);
        free(a.p);
        free(b.p);
        free(text.p);
    }
    int32_t ids[64];
    StrBuf text = { 0 };
    memset(ids, 0, sizeof ids);
    memcpy(ids, s, n < sizeof ids ? n : sizeof ids);
    tok_decode(t, ids, COUNTOF(ids), TOK_SKIP_SPECIAL, &text);
    free(text.p);
    (void)tok_is_stop(t, tok_bos(t));
}

static void try_kind(const uint8_t *data, size_t size, int kind) {
    enum { TEXT_MAX = 400 };
    static int fd = -1;
    char path[32];
    if (fd < 0) fd = memfd_create("fuzz", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    Input in;
    BinWriter w = { 0 };
    read_tables((Input){ data, size }, kind, &w, &in);
    StrBuf image = bin_build(&w);
    bin_free(&w);
    CHECK(!ftruncate(fd, (off_t)image.n) && pwrite(fd, image.p, image.n, 0) == (ssize_t)image.n,
          "memfd");
    free(image.p);

    ModelFile f;
    Err err = { 0 };
    CHECK(!file_open(&f, path, false, &err), "%s", err.msg);
    Tok *t = tok_open(&f, &err);
    file_close(&f);
    CHECK(t || err.msg[0], "refused without a word");
    if (t) use(t, kind, (const char *)in.p, in.n < TEXT_MAX ? in.n : TEXT_MAX);
    tok_close(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < N_PARAMS) return 0;
    for (int kind = BYTES; kind <= N_KINDS; kind++) try_kind(data, size, kind);
    return 0;
}

static void put(StrBuf *s, size_t n, const void *p, size_t bytes) {
    uint8_t count[2] = { (uint8_t)n, (uint8_t)(n >> 8) };
    str_add(s, (const char *)count, 2);
    str_add(s, p, bytes);
}

__attribute__((unused))
static StrBuf seed_input(void) {
    static const struct { const char *s; uint8_t type; } words[] = {
        { "a", 0 }, { "b", 0 }, { "e", 0 }, { " ", 0 }, { "\n", 0 }, { "1", 0 }, { "\xcc", 0 },
        { "\x81", 0 }, { "\xc3", 0 }, { "\xa9", 0 }, { "<", 0 }, { ">", 0 }, { "ab", 0 },
        { " a", 0 }, { "\xc3\xa9", 0 }, { "aab", 0 }, { "<s>", 1 }, { "<t>", 2 },
        { "e\xcc\x81!", 2 }, { "aa", 0 }, { "aaaa", 0 }, { "<u", 1 }, { "", 3 }, { "##a", 0 },
        { "##b", 0 }, { "\xe2\x96\x81", 0 }, { " aab", 0 }, { "\xff", 0 },
    };
    static const int32_t merges[][3] = { { 0, 1, 12 }, { 3, 0, 13 }, { 8, 9, 14 }, { 0, 12, 15 },
                                         { 0, 0, 19 }, { 19, 19, 20 } };
    static const int32_t added[][2] = { { 16, 1 }, { 17, 2 }, { 18, 8 }, { 21, 4 } };
    static const int32_t eos[] = { 16, 17 };
    static const char regex[] = "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    static const char text[] = "ab aab <s> 11 \n\xcc\x81 e\xcc\x81! caf\xc3\xa9 <t>  <u aaaaaaa'S"
        " aaaaaaaaaaaaaaaaaaaaaabaaaaaaaaaaaaaaaaaaaaa \xff \xf0\x9f";
    StrBuf s = { 0 }, bytes = { 0 };
    int32_t offsets[COUNTOF(words) + 1] = { 0 };
    uint8_t types[COUNTOF(words)];
    for (size_t i = 0; i < COUNTOF(words); i++) {
        str_puts(&bytes, words[i].s);
        types[i] = words[i].type;
        offsets[i + 1] = (int32_t)bytes.n;
    }
    str_add(&s, "\1\0\0\1\1\1\1\0\20\0\1\12\144\0", N_PARAMS);
    put(&s, bytes.n, bytes.p, bytes.n);
    put(&s, COUNTOF(offsets), offsets, sizeof offsets);
    put(&s, COUNTOF(types), types, sizeof types);
    put(&s, COUNTOF(merges), merges, sizeof merges);
    put(&s, sizeof regex - 1, regex, sizeof regex - 1);
    put(&s, COUNTOF(added), added, sizeof added);
    put(&s, COUNTOF(eos), eos, sizeof eos);
    put(&s, 3, "<s>", 3);
    put(&s, 4, "<t>\n", 4);
    for (int i = 0; i < 3; i++) put(&s, 1, "", 1);
    double scores[COUNTOF(words)];
    for (size_t i = 0; i < COUNTOF(words); i++) scores[i] = -(double)(i / 2) - 0.5 * (i % 3);
    put(&s, COUNTOF(scores), scores, sizeof scores);
    uint32_t map[52] = { 50 * 4, [1 + '1'] = '1' | 1u << 8 | 1u << 10 };     // 1 becomes aab
    memcpy(&map[51], "aab", 4);
    put(&s, sizeof map, map, sizeof map);
    put(&s, 2, eos, 8);
    put(&s, 6, "<s>ab ", 6);
    put(&s, 1, " ", 1);
    str_add(&s, text, sizeof text);
    free(bytes.p);
    return s;
}

FUZZ_MAIN(seed_input)
