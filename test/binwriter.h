// binwriter.h - a small writer of .bin files for the tests, after the layout in scb.h and nothing
// else: export.py's work a second time, so that the reader has two witnesses.
//
//     BinWriter w = { 0 };
//     bin_int(&w, "dim", 64);
//     bin_vector(&w, "norm", DT_F32, x, 64);
//     bin_save(&w, path);         bin_free(&w);
#ifndef BINWRITER_H
#define BINWRITER_H
#include "scb.h"
#include <xxhash.h>

typedef struct {
    FileParam *params;
    FileTensor *tensors;        // offset counts from the start of the data until bin_build
    uint32_t n_params, n_tensors;
    StrBuf data;
} BinWriter;

static inline FileParam *bin_param(BinWriter *w, const char *key, uint32_t type) {
    w->params = (FileParam *)xrealloc(w->params, (w->n_params + 1) * sizeof *w->params);
    FileParam *p = (FileParam *)memset(w->params + w->n_params++, 0, sizeof *p);
    CHECK(strlen(key) < sizeof p->key, "key %s is too long", key);
    strcpy(p->key, key);
    p->type = type;
    return p;
}
static inline void bin_int(BinWriter *w, const char *key, int64_t i) {
    bin_param(w, key, PARAM_INT)->v.i = i;
}
static inline void bin_real(BinWriter *w, const char *key, double f) {
    bin_param(w, key, PARAM_REAL)->v.f = f;
}
static inline void bin_str(BinWriter *w, const char *key, const char *s) {
    FileParam *p = bin_param(w, key, PARAM_STR);
    CHECK(strlen(s) <= sizeof p->v.s, "value of %s is too long", key);
    memcpy(p->v.s, s, strlen(s));
}

// data: the bytes of the tensor in the file's form
static inline FileTensor *bin_tensor(BinWriter *w, const char *name, DType type, uint32_t ndim,
                                     const uint64_t *shape, const void *data) {
    static const size_t size[] = { 4, 2, sizeof(Q8Block), 1, 4 };
    w->tensors = (FileTensor *)xrealloc(w->tensors, (w->n_tensors + 1) * sizeof *w->tensors);
    FileTensor *t = (FileTensor *)memset(w->tensors + w->n_tensors++, 0, sizeof *t);
    CHECK(strlen(name) < sizeof t->name, "name %s is too long", name);
    strcpy(t->name, name);
    t->dtype = type;
    t->ndim = ndim;
    t->bytes = size[type];
    for (uint32_t d = 0; d < 4; d++) {
        t->shape[d] = d < ndim ? shape[d] : 1;
        t->bytes *= type == DT_Q8 && d == ndim - 1 ? CEIL_DIV(shape[d], 32) : t->shape[d];
    }
    t->xxh = XXH64(data, t->bytes, 0);
    static const char zero[64] = { 0 };
    str_add(&w->data, zero, (64 - w->data.n % 64) % 64);
    t->offset = w->data.n;
    str_add(&w->data, (const char *)data, t->bytes);
    return t;
}
static inline void bin_vector(BinWriter *w, const char *name, DType type, const void *data,
                              uint64_t n) {
    bin_tensor(w, name, type, 1, &n, data);
}
static inline void bin_matrix(BinWriter *w, const char *name, DType type, const void *data,
                              uint64_t n, uint64_t k) {
    uint64_t shape[2] = { n, k };
    bin_tensor(w, name, type, 2, shape, data);
}

// the record hash of a file image, written into its prologue
static inline void bin_rehash(char *image) {
    FilePrologue *h = (FilePrologue *)(void *)image;
    h->hash = XXH64(image + sizeof *h, h->n_params * sizeof(FileParam) +
                    h->n_tensors * sizeof(FileTensor), 0);
}

// the whole file as bytes; free(image.p)
static inline StrBuf bin_build(const BinWriter *w) {
    FilePrologue h = { .magic = { 'S', 'C', 'B', 'M' }, .version = FILE_VERSION,
                       .n_params = w->n_params, .n_tensors = w->n_tensors };
    h.data_offset = sizeof h + w->n_params * sizeof(FileParam) + w->n_tensors * sizeof(FileTensor);
    h.data_bytes = w->data.n;
    StrBuf image = { 0 };
    str_add(&image, (const char *)&h, sizeof h);
    str_add(&image, (const char *)w->params, w->n_params * sizeof *w->params);
    for (uint32_t i = 0; i < w->n_tensors; i++) {
        FileTensor t = w->tensors[i];
        t.offset += h.data_offset;
        str_add(&image, (const char *)&t, sizeof t);
    }
    str_add(&image, w->data.p, w->data.n);
    bin_rehash(image.p);
    return image;
}

static inline void bin_write(const char *path, const void *bytes, size_t n) {
    FILE *out = fopen(path, "wb");
    CHECK(out && fwrite(bytes, 1, n, out) == n && !fclose(out), "%s: %s", path, strerror(errno));
}
static inline void bin_save(const BinWriter *w, const char *path) {
    StrBuf image = bin_build(w);
    bin_write(path, image.p, image.n);
    free(image.p);
}
static inline void bin_free(BinWriter *w) {
    free(w->params);
    free(w->tensors);
    free(w->data.p);
    memset(w, 0, sizeof *w);
}

#endif
