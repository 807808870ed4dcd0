// fuzz_file.c - any bytes as a model file: refused with a sentence, or everything that file_open
// promises of an accepted file holds. The last byte of the input says which of the checksums are
// put right first; without that nearly every mutation would end at the first hash.
#include "test/binwriter.h"
#include "fuzz.h"

enum { FIX_SIZE = 1, FIX_HASH = 2, FIX_DATA = 4 };

static void repair(uint8_t *p, size_t size, unsigned what) {
    FilePrologue h;
    if (size < sizeof h) return;
    memcpy(&h, p, sizeof h);
    if (what & FIX_SIZE) h.data_bytes = size - h.data_offset;
    uint64_t params = (uint64_t)h.n_params * sizeof(FileParam);
    uint64_t tensors = (uint64_t)h.n_tensors * sizeof(FileTensor);
    if (sizeof h + params + tensors <= size) {
        for (uint32_t i = 0; i < h.n_tensors && what & FIX_DATA; i++) {
            uint8_t *at = p + sizeof h + params + i * sizeof(FileTensor);
            FileTensor t;
            memcpy(&t, at, sizeof t);
            if (t.offset > size || t.bytes > size - t.offset) continue;
            t.xxh = XXH64(p + t.offset, t.bytes, 0);
            memcpy(at, &t, sizeof t);
        }
        if (what & FIX_HASH) h.hash = XXH64(p + sizeof h, params + tensors, 0);
    }
    memcpy(p, &h, sizeof h);
}

static void look_at_everything(ModelFile *f) {
    Err err;
    char s[17];
    int64_t i;
    double r;
    for (uint32_t k = 0; k < f->head->n_params; k++) {
        const FileParam *p = f->params + k;
        int ok = p->type == PARAM_INT ? file_int(f, p->key, INT64_MIN, INT64_MAX, &i, &err)
               : p->type == PARAM_REAL ? file_real(f, p->key, &r, &err)
               : file_str(f, p->key, s, &err);
        CHECK(ok == 0, "%s", err.msg);
    }
    unsigned sum = 0;
    for (uint32_t k = 0; k < f->head->n_tensors; k++) {
        const FileTensor *t = file_find(f, f->tensors[k].name);
        CHECK(t == f->tensors + k, "tensor %u is not the one of its name", k);
        const uint8_t *b = (const uint8_t *)file_data(f, t);
        for (uint64_t j = 0; j < t->bytes; j++) sum += b[j];
        CHECK(b >= f->p + f->head->data_offset && t->bytes <= (uint64_t)(f->p + f->size - b) &&
              !((uintptr_t)b & 63) && (t->bytes == 0 || t->bytes >= t->shape[0]), "tensor %u", k);
        (void)file_want(f, t->name, DT_F32, -1, sum % 2, &err);
    }
    CHECK(file_all_used(f, &err) == 0, "%s", err.msg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    static int fd = -1;
    char path[32];
    if (fd < 0) fd = memfd_create("fuzz", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    size_t n = size - 1;
    uint8_t *copy = (uint8_t *)xrealloc(NULL, size);
    memcpy(copy, data, size);
    repair(copy, n, data[n]);
    CHECK(!ftruncate(fd, (off_t)n) && pwrite(fd, copy, n, 0) == (ssize_t)n, "memfd");
    free(copy);

    ModelFile f;
    Err err = { 0 };
    if (file_open(&f, path, false, &err)) CHECK(err.msg[0], "refused without a word");
    else look_at_everything(&f);
    file_close(&f);
    return 0;
}

__attribute__((unused))
static StrBuf seed_input(void) {
    static const float x[6] = { 1, 2, 3, 4, 5, 6 };
    static const Q8Block q[4];
    BinWriter b = { 0 };
    bin_int(&b, "dim", 64);
    bin_real(&b, "eps", 1e-5);
    bin_str(&b, "arch", "llama");
    bin_matrix(&b, "w", DT_F32, x, 2, 3);
    bin_matrix(&b, "q", DT_Q8, q, 2, 33);
    bin_vector(&b, "text", DT_U8, "hello", 5);
    StrBuf image = bin_build(&b);
    str_add(&image, "\x07", 1);
    bin_free(&b);
    return image;
}

FUZZ_MAIN(seed_input)
