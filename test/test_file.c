// test_file.c - the reader of model files: what is legal is read, anything else is one sentence.
#include "binwriter.h"
#include <sys/stat.h>

static char dir[64], path[96];
static int failures;

#define EXPECT(cond, ...) do { if (!(cond)) { \
    failures++; \
    printf("test_file.c:%d: ", __LINE__); \
    printf(__VA_ARGS__); \
    putchar('\n'); } } while (0)

static void clean_up(void) {
    unlink(path);
    rmdir(dir);
}

// opens the bytes as a file; "" when they are accepted, else the sentence
static const char *verdict(const void *bytes, size_t n) {
    static Err err;
    ModelFile f;
    memset(&err, 0, sizeof err);
    bin_write(path, bytes, n);
    if (file_open(&f, path, false, &err) == 0) {
        file_close(&f);
        return "";
    }
    EXPECT(!strncmp(err.msg, path, strlen(path)), "the path does not come first: %s", err.msg);
    EXPECT(f.p == NULL && f.used == NULL, "a failed open left something behind");
    return err.msg;
}

static void expect_message(const void *bytes, size_t n, const char *wanted) {
    const char *said = verdict(bytes, n);
    EXPECT(strstr(said, wanted), "'%s' expected, got '%s'", wanted, said);
}

static BinWriter small_model(void) {
    static const float norm[5] = { 1, -2, 3.5f, 0, 4 };
    static const uint16_t w[3 * 7] = { 0x3f80, 0x4000, 0x4040 };
    static const Q8Block q[2 * 2] = { { .scale = 0x3c00, .q = { 1, -1 } } };
    static const int32_t ids[3] = { 7, -1, 1 << 30 };
    BinWriter b = { 0 };
    bin_int(&b, "dim", 64);
    bin_int(&b, "negative", INT64_MIN);
    bin_real(&b, "norm_eps", 1e-5);
    bin_str(&b, "arch", "llama");
    bin_str(&b, "sixteen", "0123456789abcdef");
    bin_vector(&b, "norm", DT_F32, norm, 5);
    bin_matrix(&b, "w", DT_BF16, w, 3, 7);
    bin_matrix(&b, "q", DT_Q8, q, 2, 33);
    bin_vector(&b, "text", DT_U8, "hello", 5);
    bin_vector(&b, "none", DT_I32, ids, 0);
    bin_vector(&b, "ids", DT_I32, ids, 3);
    return b;
}

// ---------------------------------------------------------------------------

static void test_valid(const BinWriter *b) {
    ModelFile f;
    Err err = { 0 };
    int64_t i = 0;
    double r = 0;
    char s[17];
    bin_save(b, path);
    if (file_open(&f, path, true, &err)) {
        EXPECT(false, "%s", err.msg);
        return;
    }
    EXPECT(file_all_used(&f, &err) && strstr(err.msg, "parameter 'dim' and 10 more are unknown"),
           "nothing used yet, but: %s", err.msg);
    EXPECT(!file_int(&f, "dim", 1, 64, &i, &err) && i == 64, "dim");
    EXPECT(!file_int(&f, "negative", INT64_MIN, 0, &i, &err) && i == INT64_MIN, "negative");
    EXPECT(!file_real(&f, "norm_eps", &r, &err) && r == 1e-5, "norm_eps");
    EXPECT(!file_str(&f, "arch", s, &err) && !strcmp(s, "llama"), "arch");
    EXPECT(!file_str(&f, "sixteen", s, &err) && !strcmp(s, "0123456789abcdef"), "sixteen");

    const FileTensor *t = file_want(&f, "norm", DT_F32, 5, 0, &err);
    EXPECT(t && ((const float *)file_data(&f, t))[2] == 3.5f, "norm");
    t = file_want(&f, "w", DT_BF16, 3, 7, &err);
    EXPECT(t && ((const uint16_t *)file_data(&f, t))[1] == 0x4000, "w");
    t = file_want(&f, "q", DT_Q8, -1, 33, &err);
    EXPECT(t && ((const Q8Block *)file_data(&f, t))->q[1] == -1 && t->bytes == 4 * 34, "q");
    t = file_want(&f, "text", DT_U8, -1, 0, &err);
    EXPECT(t && !memcmp(file_data(&f, t), "hello", 5), "text");
    t = file_want(&f, "none", DT_I32, -1, 0, &err);
    EXPECT(t && t->shape[0] == 0, "none");
    EXPECT(file_all_used(&f, &err) && strstr(err.msg, "tensor 'ids' is unknown"), "%s", err.msg);
    t = file_find(&f, "ids");
    EXPECT(t && ((const int32_t *)file_data(&f, t))[2] == 1 << 30, "ids");
    EXPECT(((uintptr_t)file_data(&f, t) & 63) == 0, "alignment");
    EXPECT(file_all_used(&f, &err) == 0, "all used, but: %s", err.msg);
    file_close(&f);
    file_close(&f);
}

static void test_requests(const BinWriter *b) {
    ModelFile f;
    Err err = { 0 };
    int64_t i = 42;
    double r = 42;
    char s[17];
    bin_save(b, path);
    if (file_open(&f, path, false, &err)) {
        EXPECT(false, "%s", err.msg);
        return;
    }
#define SAYS(call, ...) do { \
    err.msg[0] = 0; \
    EXPECT(call, "%s should have failed", #call); \
    EXPECT(strstr(err.msg, __VA_ARGS__) && strstr(err.msg, path), "%s: %s", #call, err.msg); \
    } while (0)
    SAYS(file_int(&f, "dimm", 0, 100, &i, &err), "parameter 'dimm' is missing");
    SAYS(file_int(&f, "dim", 65, 100, &i, &err), "parameter 'dim' is 64, legal is 65 to 100");
    SAYS(file_int(&f, "dim", 0, 63, &i, &err), "parameter 'dim' is 64");
    SAYS(file_int(&f, "arch", 0, 100, &i, &err), "'arch' is a string, an integer is wanted");
    SAYS(file_real(&f, "dim", &r, &err), "'dim' is an integer, a real number is wanted");
    SAYS(file_str(&f, "norm_eps", s, &err), "'norm_eps' is a real number, a string is wanted");
    SAYS(!file_want(&f, "nrm", DT_F32, 5, 0, &err), "tensor 'nrm' is missing");
    SAYS(!file_want(&f, "norm", DT_BF16, 5, 0, &err), "tensor 'norm' is f32, bf16 is wanted");
    SAYS(!file_want(&f, "norm", DT_F32, 6, 0, &err), "'norm' has shape (5), (6) is wanted");
    SAYS(!file_want(&f, "norm", DT_F32, 5, 1, &err), "'norm' has shape (5), (5, 1) is wanted");
    SAYS(!file_want(&f, "w", DT_BF16, -1, 0, &err), "'w' has shape (3, 7), (any) is wanted");
    SAYS(!file_want(&f, "w", DT_BF16, 7, 3, &err), "'w' has shape (3, 7), (7, 3) is wanted");
    EXPECT(i == 42 && r == 42, "a failed getter wrote its result");
    EXPECT(!file_find(&f, "nrm"), "found what is not there");
    file_close(&f);
}

// one bit or all bits of each byte before the data: the prologue by its rules, the rest by the hash
static void test_flips(const BinWriter *b) {
    StrBuf image = bin_build(b);
    size_t head = ((FilePrologue *)(void *)image.p)->data_offset;
    for (size_t i = 0; i < head; i++)
        for (int bit = 0; bit < 9; bit++) {
            uint8_t mask = bit == 8 ? 0xff : (uint8_t)(1 << bit);
            image.p[i] = (char)(image.p[i] ^ mask);
            EXPECT(verdict(image.p, image.n)[0], "byte %zu xor %02x was accepted", i, mask);
            image.p[i] = (char)(image.p[i] ^ mask);
        }
    // and every byte of the data, in the name of its tensor
    const FileTensor *t = (const FileTensor *)(const void *)
                          (image.p + sizeof(FilePrologue) + b->n_params * sizeof(FileParam));
    for (uint32_t k = 0; k < b->n_tensors; k++)
        for (uint64_t i = 0; i < t[k].bytes; i++) {
            char want[96];
            snprintf(want, sizeof want, "tensor '%s' does not match its checksum", t[k].name);
            image.p[t[k].offset + i] ^= 0x10;
            expect_message(image.p, image.n, want);
            image.p[t[k].offset + i] ^= 0x10;
        }
    EXPECT(!verdict(image.p, image.n)[0], "the restored image was refused");
    free(image.p);
}

static void test_lengths(const BinWriter *b) {
    StrBuf image = bin_build(b);
    expect_message(image.p, 0, "the file is empty");
    expect_message(image.p, 3, "not a scbench model file");
    expect_message(image.p, 4, "truncated after 4 bytes, inside the prologue");
    expect_message(image.p, 64, "truncated: 5 parameters and 6 tensors need");
    for (size_t n = 0; n < image.n; n++)
        EXPECT(verdict(image.p, n)[0], "accepted when cut to %zu of %zu bytes", n, image.n);
    expect_message(image.p, image.n - 1, "truncated or overlong");
    str_add(&image, "x", 1);
    expect_message(image.p, image.n, "truncated or overlong");
    free(image.p);
}

static void test_foreign(void) {
    static const struct { const char *bytes, *says; } foreign[] = {
        { "\n <!DOCTYPE html><html><body>404</body></html>", "looks like a web page" },
        { "<html>", "looks like a web page" },
        { "\xef\xbb\xbf<?xml version=\"1.0\"?>", "looks like a web page" },
        { "{\"error\": \"Repository not found\"}", "looks like JSON" },
        { "  [1, 2, 3]", "looks like JSON" },
        { "version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a git-lfs pointer" },
        { "GGUF\x03", "is a GGUF file" },
        { "PK\x03\x04", "is a zip archive" },
        { "abcd", "begins with 61 62 63 64" },
        { "SCBX", "begins with 53 43 42 58" },
        { "S", "begins with 53 00 00 00" },
    };
    for (size_t i = 0; i < COUNTOF(foreign); i++)
        expect_message(foreign[i].bytes, strlen(foreign[i].bytes), foreign[i].says);
    static const char safetensors[] = "\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}";
    expect_message(safetensors, sizeof safetensors - 1, "is a safetensors file");

    Err err = { 0 };
    ModelFile f;
    EXPECT(file_open(&f, "/nonexistent/x.bin", false, &err) && strstr(err.msg, "No such file"),
           "%s", err.msg);
    EXPECT(file_open(&f, dir, false, &err) && strstr(err.msg, "not a file"), "%s", err.msg);
    unlink(path);
    EXPECT(!mkfifo(path, 0600) && file_open(&f, path, false, &err) && strstr(err.msg, "not a file"),
           "%s", err.msg);
    unlink(path);
}

// files whose hash is right but whose records are not
static void test_records(void) {
    enum { NORM, W, Q, TEXT, NONE, IDS };
    BinWriter b;
    StrBuf image;
#define WRONG(change, ...) do { \
    b = small_model(); \
    change; \
    image = bin_build(&b); \
    expect_message(image.p, image.n, __VA_ARGS__); \
    free(image.p); \
    bin_free(&b); } while (0)
#define WRONG_HEAD(change, ...) do { \
    b = small_model(); \
    image = bin_build(&b); \
    FilePrologue *h = (FilePrologue *)(void *)image.p; \
    change; \
    expect_message(image.p, image.n, __VA_ARGS__); \
    free(image.p); \
    bin_free(&b); } while (0)
    WRONG_HEAD(h->version = 2, "format version 2, this program reads version 1");
    WRONG_HEAD(h->n_params = UINT32_MAX, "truncated: 4294967295 parameters");
    WRONG_HEAD(h->n_tensors = UINT32_MAX, "and 4294967295 tensors");
    WRONG_HEAD(h->n_params--, "do not match their hash");
    WRONG_HEAD(h->data_offset += 64, "truncated or overlong");
    WRONG_HEAD((h->data_offset += 64, h->data_bytes -= 64), "are not zero");
    WRONG_HEAD(h->data_offset++, "damaged: data offset");
    WRONG_HEAD(h->data_offset = UINT64_MAX - 63, "truncated or overlong");
    WRONG_HEAD(h->data_bytes = UINT64_MAX, "truncated or overlong");
    WRONG_HEAD(h->reserved[23] = 1, "reserved bytes");

    WRONG(b.params[1].key[0] = 0, "the key of parameter 1");
    WRONG(b.params[1].key[2] = '\n', "the key of parameter 1");
    WRONG(b.params[1].key[39] = 'x', "the key of parameter 1");
    WRONG(memset(b.params[1].key, 'x', 40), "the key of parameter 1");
    WRONG(memcpy(b.params[1].key, b.params[0].key, 40), "parameter 'dim' is there twice");
    WRONG(b.params[0].type = 0, "parameter 'dim': unknown type 0");
    WRONG(b.params[0].type = 4, "parameter 'dim': unknown type 4");
    WRONG(b.params[0].pad = 1, "parameter 'dim': its reserved field");
    WRONG(b.params[0].v.s[15] = 1, "parameter 'dim': bytes after the integer");
    WRONG(b.params[2].v.s[8] = 1, "parameter 'norm_eps': bytes after the number");
    WRONG(b.params[2].v.f = INFINITY, "parameter 'norm_eps': the number is not finite");
    WRONG(b.params[3].v.s[9] = 1, "parameter 'arch': the string is not NUL-padded");

    WRONG(b.tensors[NORM].name[0] = 0, "the name of tensor 0");
    WRONG(b.tensors[W].name[0] = 0, "the name of tensor 1");
    WRONG(memset(b.tensors[W].name, 'x', 56), "the name of tensor 1");
    WRONG(memcpy(b.tensors[W].name, b.tensors[NORM].name, 56), "tensor 'norm' is there twice");
    WRONG(b.tensors[W].dtype = 5, "tensor 'w': unknown dtype 5");
    WRONG(b.tensors[W].ndim = 0, "tensor 'w': 0 dimensions");
    WRONG(b.tensors[W].ndim = 5, "tensor 'w': 5 dimensions");
    WRONG(b.tensors[W].ndim = 1, "tensor 'w': unused dimension 1 is 7");
    WRONG(b.tensors[W].pad = 1, "tensor 'w': its reserved field");
    WRONG(b.tensors[W].shape[0]++, "tensor 'w': 42 bytes do not fit");
    WRONG(b.tensors[W].bytes++, "tensor 'w': 43 bytes do not fit");
    WRONG(b.tensors[W].shape[0] = UINT64_MAX, "tensor 'w': dimension 0 is 18446744073709551615");
    WRONG((b.tensors[W].ndim = 4, b.tensors[W].shape[0] = b.tensors[W].shape[1] =
           b.tensors[W].shape[2] = b.tensors[W].shape[3] = 1 << 10), "'w': 42 bytes do not fit");
    WRONG(b.tensors[Q].shape[1] = 65, "tensor 'q': 136 bytes do not fit");
    WRONG(b.tensors[IDS].offset++, "do not lie inside the data");
    WRONG(b.tensors[IDS].offset += 64, "tensor 'ids': 12 bytes at offset");
    WRONG(b.tensors[IDS].offset = UINT64_MAX - 4095, "tensor 'ids': 12 bytes at offset");
    WRONG(b.tensors[IDS].offset = 0 - (uint64_t)1024, "tensor 'ids': 12 bytes at offset");
    WRONG(b.tensors[W].offset = 0, "the data of tensor");
    WRONG(b.tensors[NORM].offset = b.tensors[W].offset, "damaged: the data begin at byte");
    WRONG(b.tensors[NORM].xxh ^= 1, "tensor 'norm' does not match its checksum");
    WRONG(b.tensors[IDS].xxh ^= 1, "tensor 'ids' does not match its checksum");
    b = (BinWriter){ 0 };
    image = bin_build(&b);
    EXPECT(!verdict(image.p, image.n)[0], "a file without records is legal");
    free(image.p);
}

// a tensor beyond 2^32: offsets and lengths of 64 bits all the way. The file is sparse.
static void test_far(void) {
    const uint64_t far_at = (4ull << 30) + 4096, size = 5ull << 30;
    struct { FilePrologue h; FileTensor far, hole; } head;
    const int32_t values[4] = { 11, 22, 33, 44 };
    memset(&head, 0, sizeof head);
    head.h = (FilePrologue){ .magic = { 'S', 'C', 'B', 'M' }, .version = FILE_VERSION,
                             .n_tensors = 2, .data_offset = sizeof head,
                             .data_bytes = size - sizeof head };
    head.far = (FileTensor){ .name = "far", .dtype = DT_I32, .ndim = 1, .shape = { 4, 1, 1, 1 },
                             .offset = far_at, .bytes = 16, .xxh = XXH64(values, 16, 0) };
    head.hole = (FileTensor){ .name = "hole", .dtype = DT_U8, .ndim = 2, .shape = { 1, 1, 1, 1 },
                              .offset = sizeof head };
    head.hole.shape[1] = head.hole.bytes = (4ull << 30) + 1;
    bin_rehash((char *)&head);
    bin_write(path, &head, sizeof head);
    FILE *out = fopen(path, "r+b");
    if (!out || ftruncate(fileno(out), (off_t)size)) {
        printf("no sparse file of 5 GB here (%s): far offsets are not tested\n", strerror(errno));
        if (out) fclose(out);
        return;
    }
    CHECK(!fseeko(out, (off_t)far_at, SEEK_SET) && fwrite(values, 16, 1, out) == 1, "write");
    fclose(out);

    ModelFile f;
    Err err = { 0 };
    EXPECT(!file_open(&f, path, false, &err), "%s", err.msg);
    if (f.p) {
        const FileTensor *t = file_want(&f, "far", DT_I32, 4, 0, &err);
        EXPECT(t && !memcmp(file_data(&f, t), values, 16), "far data: %s", err.msg);
        EXPECT(file_want(&f, "hole", DT_U8, 1, (4ll << 30) + 1, &err), "%s", err.msg);
        file_close(&f);
    }
    // a wrong byte passes unless verification is asked for
    out = fopen(path, "r+b");
    CHECK(out && !fseeko(out, (off_t)far_at, SEEK_SET) && fputc(12, out) == 12, "write");
    fclose(out);
    EXPECT(!file_open(&f, path, false, &err), "%s", err.msg);
    file_close(&f);
    EXPECT(file_open(&f, path, true, &err) && strstr(err.msg, "'far' does not match"), "%s",
           err.msg);
    // its neighbour lies in bytes that a 32-bit end would call free
    head.hole.shape[1] = head.hole.bytes = far_at - sizeof head + 1;
    bin_rehash((char *)&head);
    out = fopen(path, "r+b");
    CHECK(out && fwrite(&head, sizeof head, 1, out) == 1 && !fclose(out), "write");
    EXPECT(file_open(&f, path, false, &err) && strstr(err.msg, "tensor 'far' overlap"), "%s",
           err.msg);
}

int main(void) {
    // thousands of files are written: in memory where that is possible
    snprintf(dir, sizeof dir, "%s/scb_file.XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    CHECK(mkdtemp(dir), "mkdtemp: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/x.bin", dir);
    atexit(clean_up);
    BinWriter b = small_model();
    test_valid(&b);
    test_requests(&b);
    test_flips(&b);
    test_lengths(&b);
    test_foreign();
    test_records();
    test_far();
    bin_free(&b);
    return failures != 0;
}
