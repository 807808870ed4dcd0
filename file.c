// file.c - reading the model file: it is mapped, and every record is checked before anyone uses it.
//
// Layout and record structs are in scb.h. After file_open a caller may trust counts, names, shapes,
// sizes and offsets; what the numbers mean is the business of the model and the tokenizer. Writing
// is export.py's.
#include "scb.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

enum {
    ALIGN = 64,
    VERIFY_BELOW = 1000 * 1000 * 1000       // bytes: data checksums are always verified below
};

static_assert(sizeof(FilePrologue) == 64 && sizeof(FileParam) == 64 && sizeof(FileTensor) == 128 &&
              sizeof(Q8Block) == 34 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "the structs are the file's bytes");

typedef unsigned long long Ull;

static const char *const dtype_names[] = { "f32", "bf16", "q8", "u8", "i32" };

// ---------------------------------------------------------------------------
// What is it, if it is not ours? The usual mistakes, each with the way out.

static bool begins(const ModelFile *f, size_t at, const char *with) {
    size_t n = strlen(with);
    return at <= f->size && n <= f->size - at && !memcmp(f->p + at, with, n);
}

static int wrong_magic(const ModelFile *f, Err *err) {
    size_t at = begins(f, 0, "\xef\xbb\xbf") ? 3 : 0;       // a UTF-8 byte order mark
    while (at < f->size && at < 256 && strchr(" \t\r\n", f->p[at]) && f->p[at]) at++;
    const char *what = NULL;
    if (begins(f, at, "<"))
        what = "looks like a web page (HTML), not a model: the download went wrong";
    else if (begins(f, 0, "version https://git-lfs"))
        what = "is a git-lfs pointer, not the weights themselves: fetch them with 'git lfs pull'";
    else if (begins(f, 0, "GGUF"))
        what = "is a GGUF file: convert it with 'python export.py FILE.gguf OUT.bin'";
    else if (begins(f, 8, "{\"") && f->size > 10)
        what = "is a safetensors file: convert its directory with 'python export.py DIR OUT.bin'";
    else if (begins(f, at, "{") || begins(f, at, "["))
        what = "looks like JSON, not a model: did you mean the .bin file beside it?";
    else if (begins(f, 0, "PK\x03\x04") || begins(f, 0, "\x80\x02"))
        what = "is a zip archive or a PyTorch checkpoint: export.py reads safetensors and GGUF";
    if (what) return FAIL(err, "%s: %s", f->path, what);
    return FAIL(err, "%s: not a scbench model file (it begins with %02x %02x %02x %02x, not SCBM); "
                "make one with export.py", f->path, f->p[0], f->size > 1 ? f->p[1] : 0,
                f->size > 2 ? f->p[2] : 0, f->size > 3 ? f->p[3] : 0);
}

// ---------------------------------------------------------------------------
// Checks, in the order of the bytes. The record hash comes before the single records: a flipped bit
// is then called damage, and what follows speaks of files that were written wrongly.

// "PATH: sentence; what to do"
__attribute__((format(printf, 3, 4)))
static int bad(const ModelFile *f, Err *err, const char *fmt, ...) {
    char why[600];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    return FAIL(err, "%s: %s; copy or export it again", f->path, why);
}

static bool zeros(const void *p, size_t n) {
    const uint8_t *b = (const uint8_t *)p;
    for (size_t i = 0; i < n; i++)
        if (b[i]) return false;
    return true;
}

static int check_prologue(ModelFile *f, Err *err) {
    if (!begins(f, 0, "SCBM")) return wrong_magic(f, err);
    if (f->size < sizeof(FilePrologue))
        return bad(f, err, "truncated after %zu bytes, inside the prologue", f->size);
    const FilePrologue *h = f->head = (const FilePrologue *)f->p;
    if (h->version != FILE_VERSION)
        return FAIL(err, "%s: format version %u, this program reads version %d; export the model "
                    "again", f->path, h->version, FILE_VERSION);
    if (!zeros(h->reserved, sizeof h->reserved))
        return bad(f, err, "damaged: the reserved bytes of the prologue are not zero");

    uint64_t records = sizeof *h + (uint64_t)h->n_params * sizeof(FileParam) +
                       (uint64_t)h->n_tensors * sizeof(FileTensor);     // < 2^40: no overflow
    if (records > f->size)
        return bad(f, err, "truncated: %u parameters and %u tensors need %llu bytes, there are %zu",
                   h->n_params, h->n_tensors, (Ull)records, f->size);
    if (h->data_offset < records || h->data_offset % ALIGN)
        return bad(f, err, "damaged: data offset %llu (a multiple of %d from %llu on is legal)",
                   (Ull)h->data_offset, ALIGN, (Ull)records);
    if (h->data_offset > f->size || h->data_bytes != f->size - h->data_offset)
        return bad(f, err, "truncated or overlong: the header promises %llu bytes of data from "
                   "byte %llu on, the file has %zu bytes in all", (Ull)h->data_bytes,
                   (Ull)h->data_offset, f->size);

    f->params = (const FileParam *)(f->p + sizeof *h);
    f->tensors = (const FileTensor *)(f->params + h->n_params);
    if (XXH64(f->params, records - sizeof *h, 0) != h->hash)
        return bad(f, err, "damaged: the parameter and tensor records do not match their hash");
    if (!zeros(f->p + records, h->data_offset - records))
        return bad(f, err, "damaged: bytes between the records and the data are not zero");
    return 0;
}

// 1 to n-1 printable characters, then NULs to the end of the field
static bool good_name(const char *s, size_t n) {
    size_t len = strnlen(s, n);
    for (size_t i = 0; i < len; i++)
        if (s[i] <= ' ' || s[i] > '~') return false;
    return len > 0 && len < n && zeros(s + len, n - len);
}

static int check_param(const ModelFile *f, uint32_t i, Err *err) {
    const FileParam *p = f->params + i;
    const char *wrong = NULL;
    if (!good_name(p->key, sizeof p->key))
        return bad(f, err, "the key of parameter %u is empty, unprintable or not NUL-padded", i);
    if (p->type == PARAM_INT) {
        if (!zeros(p->v.s + 8, 8)) wrong = "bytes after the integer are not zero";
    } else if (p->type == PARAM_REAL) {
        if (!isfinite(p->v.f)) wrong = "the number is not finite";
        if (!zeros(p->v.s + 8, 8)) wrong = "bytes after the number are not zero";
    } else if (p->type == PARAM_STR) {
        size_t len = strnlen(p->v.s, sizeof p->v.s);
        if (!zeros(p->v.s + len, sizeof p->v.s - len)) wrong = "the string is not NUL-padded";
    } else {
        return bad(f, err, "parameter '%s': unknown type %u", p->key, p->type);
    }
    if (p->pad) wrong = "its reserved field is not zero";
    return wrong ? bad(f, err, "parameter '%s': %s", p->key, wrong) : 0;
}

// bytes of a tensor from dtype and shape; false: more than 2^64
static bool tensor_bytes(const FileTensor *t, uint64_t *bytes) {
    static const uint8_t size[] = { 4, 2, sizeof(Q8Block), 1, 4 };
    uint64_t n = size[t->dtype];
    for (uint32_t d = 0; d < t->ndim; d++) {
        uint64_t s = t->shape[d];
        if (t->dtype == DT_Q8 && d == t->ndim - 1) s = s / 32 + (s % 32 != 0);
        if (__builtin_mul_overflow(n, s, &n)) return false;
    }
    *bytes = n;
    return true;
}

static int check_tensor(const ModelFile *f, uint32_t i, Err *err) {
    const FileTensor *t = f->tensors + i;
    uint64_t bytes;
    if (!good_name(t->name, sizeof t->name))
        return bad(f, err, "the name of tensor %u is empty, unprintable or not NUL-padded", i);
    if (t->dtype >= COUNTOF(dtype_names))
        return bad(f, err, "tensor '%s': unknown dtype %u", t->name, t->dtype);
    if (t->ndim < 1 || t->ndim > 4)
        return bad(f, err, "tensor '%s': %u dimensions, 1 to 4 are legal", t->name, t->ndim);
    if (t->pad) return bad(f, err, "tensor '%s': its reserved field is not zero", t->name);
    for (uint32_t d = 0; d < 4; d++) {
        Ull s = t->shape[d];
        if (d >= t->ndim && s != 1)
            return bad(f, err, "tensor '%s': unused dimension %u is %llu, not 1", t->name, d, s);
        if (d < t->ndim && s > f->size)
            return bad(f, err, "tensor '%s': dimension %u is %llu, more than the file has bytes",
                       t->name, d, s);
    }
    if (!tensor_bytes(t, &bytes) || bytes != t->bytes)
        return bad(f, err,
                   "tensor '%s': %llu bytes do not fit the shape (%llu, %llu, %llu, %llu) "
                   "of %s",
                   t->name, (Ull)t->bytes, (Ull)t->shape[0], (Ull)t->shape[1], (Ull)t->shape[2],
                   (Ull)t->shape[3], dtype_names[t->dtype]);
    if (t->offset % ALIGN || t->offset < f->head->data_offset || t->offset > f->size ||
        bytes > f->size - t->offset)
        return bad(f, err, "tensor '%s': %llu bytes at offset %llu do not lie inside the data "
                   "(bytes %llu to %zu, multiples of %d)", t->name, (Ull)bytes, (Ull)t->offset,
                   (Ull)f->head->data_offset, f->size, ALIGN);
    return 0;
}

static int by_key(const void *a, const void *b) {
    return strcmp((*(const FileParam *const *)a)->key, (*(const FileParam *const *)b)->key);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const FileTensor *const *)a)->name, (*(const FileTensor *const *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const FileTensor *s = *(const FileTensor *const *)a, *t = *(const FileTensor *const *)b;
    if (s->offset != t->offset) return s->offset < t->offset ? -1 : 1;
    return s->bytes < t->bytes ? -1 : s->bytes > t->bytes;
}

// names are unique; tensors do not overlap and the lowest begins the data
static int check_between(const ModelFile *f, const void **list, Err *err) {
    uint32_t np = f->head->n_params, nt = f->head->n_tensors;

    for (uint32_t i = 0; i < np; i++) list[i] = f->params + i;
    qsort(list, np, sizeof *list, by_key);
    for (uint32_t i = 1; i < np; i++)
        if (!by_key(list + i - 1, list + i))
            return bad(f, err, "parameter '%s' is there twice", ((const FileParam *)list[i])->key);

    for (uint32_t i = 0; i < nt; i++) list[i] = f->tensors + i;
    qsort(list, nt, sizeof *list, by_name);
    for (uint32_t i = 1; i < nt; i++)
        if (!by_name(list + i - 1, list + i))
            return bad(f, err, "tensor '%s' is there twice", ((const FileTensor *)list[i])->name);

    qsort(list, nt, sizeof *list, by_place);
    uint64_t end = f->head->data_offset;
    for (uint32_t i = 0; i < nt; i++) {
        const FileTensor *t = (const FileTensor *)list[i];
        if (t->offset < end)
            return bad(f, err, "the data of tensor '%s' overlap those of another one", t->name);
        if (i == 0 && t->offset != end)
            return bad(f, err, "damaged: the data begin at byte %llu, the first tensor at %llu",
                       (Ull)end, (Ull)t->offset);
        end = t->offset + t->bytes;
    }
    return 0;
}

static int check_data(const ModelFile *f, Err *err) {
    for (uint32_t i = 0; i < f->head->n_tensors; i++) {
        const FileTensor *t = f->tensors + i;
        if (XXH64(f->p + t->offset, t->bytes, 0) != t->xxh)
            return bad(f, err, "damaged: tensor '%s' does not match its checksum", t->name);
    }
    return 0;
}

static int check_all(ModelFile *f, bool verify, Err *err) {
    if (check_prologue(f, err)) return -1;
    for (uint32_t i = 0; i < f->head->n_params; i++)
        if (check_param(f, i, err)) return -1;
    for (uint32_t i = 0; i < f->head->n_tensors; i++)
        if (check_tensor(f, i, err)) return -1;
    size_t n = (size_t)f->head->n_params + f->head->n_tensors + 1;
    const void **list = (const void **)xrealloc(NULL, n * sizeof *list);
    int rc = check_between(f, list, err);
    free(list);
    if (rc) return -1;
    return verify || f->size < VERIFY_BELOW ? check_data(f, err) : 0;
}

// ---------------------------------------------------------------------------
// Open, close

static int map_file(ModelFile *f, Err *err) {
    struct stat st;
    int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);      // a FIFO must not block here
    if (fd < 0) return FAIL(err, "%s: %s", f->path, strerror(errno));
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return FAIL(err, "%s: not a file; name the .bin made by export.py", f->path);
    }
    if (st.st_size == 0) {
        close(fd);
        return FAIL(err, "%s: the file is empty; copy or export it again", f->path);
    }
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    close(fd);
    if (p == MAP_FAILED)
        return FAIL_CODE(err, why == ENOMEM ? EXIT_MEMORY : EXIT_USER,
                         "%s: mapping %llu MB failed: %s", f->path, (Ull)st.st_size >> 20,
                         strerror(why));
    f->p = (const uint8_t *)p;
    f->size = (size_t)st.st_size;
    return 0;
}

static int open_checked(ModelFile *f, bool verify, Err *err) {
    if (check_all(f, verify, err)) {
        file_close(f);
        return -1;
    }
    size_t n = (size_t)f->head->n_params + f->head->n_tensors;
    f->used = (uint8_t *)xrealloc(NULL, n + 1);
    memset(f->used, 0, n + 1);
    return 0;
}

int file_open(ModelFile *f, const char *path, bool verify, Err *err) {
    memset(f, 0, sizeof *f);
    f->path = path;
    return map_file(f, err) ? -1 : open_checked(f, verify, err);
}

int file_open_bytes(ModelFile *f, const char *path, const void *p, size_t size, Err *err) {
    memset(f, 0, sizeof *f);
    f->path = path;
    f->p = (const uint8_t *)p;
    f->size = size;
    f->borrowed = true;
    return open_checked(f, true, err);
}

void file_close(ModelFile *f) {
    if (f->p && !f->borrowed) munmap((void *)f->p, f->size);
    free(f->used);
    memset(f, 0, sizeof *f);
}

// ---------------------------------------------------------------------------
// Records by name; who asks for one has used it

const FileTensor *file_find(ModelFile *f, const char *name) {
    for (uint32_t i = 0; i < f->head->n_tensors; i++)
        if (!strcmp(f->tensors[i].name, name)) {
            f->used[f->head->n_params + i] = 1;
            return f->tensors + i;
        }
    return NULL;
}

const void *file_data(const ModelFile *f, const FileTensor *t) { return f->p + t->offset; }

static const FileParam *want_param(ModelFile *f, const char *key, uint32_t type, Err *err) {
    static const char *const types[] = { "?", "an integer", "a real number", "a string" };
    for (uint32_t i = 0; i < f->head->n_params; i++) {
        const FileParam *p = f->params + i;
        if (strcmp(p->key, key)) continue;
        f->used[i] = 1;
        if (p->type == type) return p;
        (void)FAIL(err, "%s: parameter '%s' is %s, %s is wanted; export the model again", f->path,
                   key, types[p->type], types[type]);
        return NULL;
    }
    (void)FAIL(err, "%s: parameter '%s' is missing; export the model again", f->path, key);
    return NULL;
}

int file_int(ModelFile *f, const char *key, int64_t lo, int64_t hi, int64_t *out, Err *err) {
    const FileParam *p = want_param(f, key, PARAM_INT, err);
    if (!p) return -1;
    if (p->v.i < lo || p->v.i > hi)
        return FAIL(err, "%s: parameter '%s' is %lld, legal is %lld to %lld", f->path, key,
                    (long long)p->v.i, (long long)lo, (long long)hi);
    *out = p->v.i;
    return 0;
}

int file_real(ModelFile *f, const char *key, double *out, Err *err) {
    const FileParam *p = want_param(f, key, PARAM_REAL, err);
    if (!p) return -1;
    *out = p->v.f;
    return 0;
}

int file_str(ModelFile *f, const char *key, char out[17], Err *err) {
    const FileParam *p = want_param(f, key, PARAM_STR, err);
    if (!p) return -1;
    memcpy(out, p->v.s, 16);
    out[16] = 0;
    return 0;
}

static void wrong_shape(const ModelFile *f, const FileTensor *t, int64_t d0, int64_t d1, Err *err) {
    char have[96], first[24] = "any", second[24] = "";
    int n = 0;
    for (uint32_t d = 0; d < t->ndim; d++)
        n += snprintf(have + n, sizeof have - (size_t)n, "%s%llu", d ? ", " : "",
                      (Ull)t->shape[d]);
    if (d0 >= 0) snprintf(first, sizeof first, "%lld", (long long)d0);
    if (d1) snprintf(second, sizeof second, ", %lld", (long long)d1);
    (void)FAIL(err, "%s: tensor '%s' has shape (%s), (%s%s) is wanted; export the model again",
               f->path, t->name, have, first, second);
}

const FileTensor *file_want(ModelFile *f, const char *name, DType type, int64_t d0, int64_t d1,
                            Err *err) {
    const FileTensor *t = file_find(f, name);
    if (!t) {
        (void)FAIL(err, "%s: tensor '%s' is missing; export the model again", f->path, name);
        return NULL;
    }
    if (t->dtype != (uint32_t)type) {
        (void)FAIL(err, "%s: tensor '%s' is %s, %s is wanted; export the model again", f->path,
                   name, dtype_names[t->dtype], dtype_names[type]);
        return NULL;
    }
    if (t->ndim != (d1 ? 2u : 1u) || (d0 >= 0 && t->shape[0] != (uint64_t)d0) ||
        (d1 && t->shape[1] != (uint64_t)d1)) {
        wrong_shape(f, t, d0, d1, err);
        return NULL;
    }
    return t;
}

int file_all_used(const ModelFile *f, Err *err) {
    uint32_t np = f->head->n_params, left = 0;
    const char *kind = "", *name = "";
    char more[40] = " is";
    for (uint32_t i = np + f->head->n_tensors; i-- > 0;) {
        if (f->used[i]) continue;
        left++;
        kind = i < np ? "parameter" : "tensor";
        name = i < np ? f->params[i].key : f->tensors[i - np].name;
    }
    if (!left) return 0;
    if (left > 1) snprintf(more, sizeof more, " and %u more are", left - 1);
    return FAIL(err, "%s: %s '%s'%s unknown to this program; export the model again", f->path, kind,
                name, more);
}
