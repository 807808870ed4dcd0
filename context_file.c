// context_file.c - contexts and roots on disk: written once, mapped ever after (SEMANTICS 3).
//
//   head (FileHead) | parts (n_parts x FilePart) | pad | data, every part 64-byte aligned
// A part is ids, the rows of one KV head as they lie in memory (K, V, positions), query rows,
// column sums, policy state, recurrent state or logits. A root is stored compressed: its live rows
// alone, whosever they are, become the rows of the loaded one. Every byte stands under an xxh64,
// every size is checked against the file before use, and a file bears its name only once it is
// whole.
#include "cache.h"
#include "model.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

enum { SAVE_VERSION = 1, KIND_CONTEXT = 1, KIND_ROOT = 2 };     // any other bit: a new version
enum { PART_IDS, PART_ROWS, PART_WINDOW, PART_SUMS, PART_POLICY, PART_STATE, PART_LOGITS };
static const char *const part_name[] = { "ids", "rows", "query rows", "column sums", "policy state",
                                         "recurrent state", "logits" };

typedef struct {
    char magic[4];              // "SCBC"
    uint32_t version, kind, n_parts;
    uint64_t hash;              // of head and parts, with 0 here
    uint64_t bytes;             // of the file
    uint64_t model, how;        // model_hash; how the rows came about: prefill or cache method
    int64_t pos, named;         // of a root: logical tokens, rows its rule named last
    uint32_t n_ids, n_heads, window_rows;
    uint32_t sum_words, sum_units, sum_group;   // of a context's column sums
    int64_t pairs, all_pairs;   // computed by a sparse prefill, and there by a dense one
    uint8_t device;             // 1: the rows were computed on a GPU
    uint8_t reserved[23];       // zero
} FileHead;

typedef struct {
    uint32_t what, index;       // PART_, KV head
    uint64_t count;             // tokens or rows
    uint64_t offset, bytes, hash;
} FilePart;

typedef struct {
    FilePart *part;
    const void **from;          // NULL: gathered
    int n;
    const Mem *mem;             // where all but ids and logits lie
} Parts;

// ---------------------------------------------------------------------------
// What is saved

static uint64_t text_hash(const char *s) { return XXH64(s, strlen(s), 0); }

// everything about a method that its cache depends on
static uint64_t method_how(const Method *m) {
    const Sizes *z = &m->size;
    StrBuf s = { 0 };
    str_fmt(&s, "%s %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d %d", m->policy->name, z->budget,
            z->sinks, z->recent, z->window, z->protect, z->history, z->kernel, z->beta, z->page,
            z->stream, z->every_turn, (int)z->pool, (int)z->group, (int)z->positions, z->steps,
            z->feeds);
    str_fmt(&s, " %lld %lld", (long long)m->seed, (long long)m->session);
    method_prefill_key(m, &s);
    uint64_t h = text_hash(s.p);
    free(s.p);
    return h;
}

// the prefill stage of a method; NULL: dense
static uint64_t prefill_how(const Method *m) {
    StrBuf s = { 0 };
    str_puts(&s, "prefill ");
    if (m && m->prefill) method_prefill_key(m, &s);
    uint64_t h = text_hash(s.p);
    free(s.p);
    return h;
}

static void part_add(Parts *l, uint32_t what, int index, int64_t count, size_t bytes,
                     const void *from) {
    l->part = (FilePart *)xrealloc(l->part, (size_t)(l->n + 1) * sizeof *l->part);
    l->from = (const void **)xrealloc(l->from, (size_t)(l->n + 1) * sizeof *l->from);
    FilePart p = { what, (uint32_t)index, (uint64_t)count, 0, bytes, 0 };
    l->part[l->n] = p;
    l->from[l->n++] = from;
}

static void parts_free(Parts *l) {
    free(l->part);
    free(l->from);
}

static FileHead head_of_file(const Model *m, uint32_t kind, uint64_t how, int n_ids, int n_heads) {
    FileHead h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "SCBC", 4);
    h.version = SAVE_VERSION;
    h.kind = kind;
    h.model = m->hash;
    h.device = m->device != NULL;
    h.how = how;
    h.n_ids = (uint32_t)n_ids;
    h.n_heads = (uint32_t)n_heads;
    return h;
}

static size_t sums_bytes(const KVBase *b, int i) {
    return (size_t)b->sums[i].cap * b->sum_words * b->sum_units * sizeof(uint32_t);
}

static FileHead parts_of_context(const Context *c, const int32_t *ids, Parts *l) {
    StrBuf key = { 0 };
    str_fmt(&key, "prefill %s", c->logits ? c->prefill.p : "");
    FileHead h = head_of_file(c->m, KIND_CONTEXT, text_hash(key.p), c->n, c->base->n_heads);
    free(key.p);
    size_t row = kv_row_bytes(&c->m->shape);
    l->mem = &c->m->mem;
    part_add(l, PART_IDS, 0, c->n, (size_t)c->n * sizeof *ids, ids);
    for (int i = 0; i < c->base->n_heads; i++) {
        const Rows *r = &c->base->head[i];
        CHECK(r->n == r->cap, "a context with room for %d rows holds %d", r->cap, r->n);
        part_add(l, PART_ROWS, i, r->n, (size_t)r->n * row, r->mem);
    }
    part_add(l, PART_WINDOW, 0, c->window_rows, c->window_bytes, c->window);
    for (int i = 0; c->base->sums && i < c->base->n_heads; i++)
        part_add(l, PART_SUMS, i, c->base->sums[i].cap, sums_bytes(c->base, i), c->base->sums[i].p);
    if (c->state) part_add(l, PART_STATE, 0, 1, config_state_bytes(&c->m->c), c->state);
    if (c->logits)
        part_add(l, PART_LOGITS, 0, 1, (size_t)c->m->c.vocab_size * sizeof(float), c->logits);
    h.pairs = c->base->pairs;
    h.all_pairs = c->base->all_pairs;
    h.sum_words = (uint32_t)c->base->sum_words;
    h.sum_units = (uint32_t)c->base->sum_units;
    h.sum_group = (uint32_t)c->base->sum_group;
    h.pos = c->n;
    h.window_rows = (uint32_t)c->window_rows;
    return h;
}

static FileHead parts_of_root(const Branch *b, const int32_t *ids, int n, Parts *l) {
    const KVCache *c = b->kv;
    FileHead h = head_of_file(b->m, KIND_ROOT, method_how(&b->method), n, c->n_heads);
    l->mem = &b->m->mem;
    part_add(l, PART_IDS, 0, n, (size_t)n * sizeof *ids, ids);
    for (int i = 0; i < c->n_heads; i++) {
        int len = c->head[i].len;
        part_add(l, PART_ROWS, i, len, (size_t)len * kv_row_bytes(c->s), NULL);
        if (c->head[i].state)
            part_add(l, PART_POLICY, i, len, (size_t)len * c->words * sizeof(uint32_t), NULL);
    }
    if (b->state) part_add(l, PART_STATE, 0, 1, config_state_bytes(&b->m->c), b->state);
    part_add(l, PART_LOGITS, 0, 1, (size_t)b->m->c.vocab_size * sizeof(float), b->logits);
    h.pos = b->pos;
    h.named = c->named;
    h.pairs = c->base->pairs;
    h.all_pairs = c->base->all_pairs;
    return h;
}

// ---------------------------------------------------------------------------
// Writing

static uint64_t aligned(uint64_t at) { return (at + 63) & ~(uint64_t)63; }

// offsets of all parts; the bytes of the file
static uint64_t parts_place(Parts *l) {
    uint64_t at = aligned(sizeof(FileHead) + (uint64_t)l->n * sizeof(FilePart));
    for (int i = 0; i < l->n; i++) {
        l->part[i].offset = at;
        at = aligned(at + l->part[i].bytes);
    }
    return at;
}

static uint64_t head_hash(const FileHead *h, const FilePart *part) {
    FileHead bare = *h;
    bare.hash = 0;
    uint64_t x = XXH64(&bare, sizeof bare, 0);
    return XXH64(part, (size_t)h->n_parts * sizeof *part, x);
}

static int write_at(int fd, const void *p, size_t n, uint64_t at) {
    const char *from = (const char *)p;
    while (n) {
        ssize_t k = pwrite(fd, from, n, (off_t)at);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return -1;
        from += k;
        n -= (size_t)k;
        at += (uint64_t)k;
    }
    return 0;
}

// the policy's words (words, len) of a head between the cache, where rows have room, and a block
static void state_copy(const KVCache *c, int i, char *block, bool out) {
    const Head *h = &c->head[i];
    size_t bytes = (size_t)h->len * sizeof(uint32_t);
    for (int k = 0; k < c->words; k++) {
        char *in = (char *)(h->state + (size_t)k * h->cap), *at = block + (size_t)k * bytes;
        if (out) mem_get(c->mem, at, in, bytes);
        else mem_put(c->mem, in, at, bytes);
    }
}

static int write_parts(int fd, FileHead *h, Parts *l, const KVCache *gather) {
    size_t most = 0;
    for (int i = 0; i < l->n; i++)
        if ((l->mem->ops || !l->from[i]) && l->part[i].bytes > most) most = l->part[i].bytes;
    char *buf = (char *)xrealloc(NULL, most + 1);
    int rc = 0;
    h->n_parts = (uint32_t)l->n;
    h->bytes = parts_place(l);
    for (int i = 0; !rc && i < l->n; i++) {
        FilePart *p = &l->part[i];
        if (!l->from[i] && p->bytes && p->what == PART_ROWS)
            cache_gather(gather, (int)p->index, buf);
        if (p->what == PART_POLICY) state_copy(gather, (int)p->index, buf, true);
        const void *from = l->from[i] ? l->from[i] : buf;
        if (from != buf && l->mem->ops && p->what != PART_IDS && p->what != PART_LOGITS) {
            mem_get(l->mem, buf, from, p->bytes);
            from = buf;
        }
        p->hash = XXH64(from, p->bytes, 0);
        rc = write_at(fd, from, p->bytes, p->offset);
    }
    free(buf);
    h->hash = head_hash(h, l->part);
    return rc || ftruncate(fd, (off_t)h->bytes) ||
           write_at(fd, l->part, (size_t)l->n * sizeof *l->part, sizeof *h) ||
           write_at(fd, h, sizeof *h, 0) || fsync(fd);
}

// Opens path.tmp for one writer. One that a killed run left is taken over; -1 with errno
// EWOULDBLOCK while another run writes it.
static int tmp_open(const char *tmp) {
    struct stat mine, there;
    int fd = open(tmp, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return -1;
    if (!flock(fd, LOCK_EX | LOCK_NB)) {        // renamed meanwhile: then it is not ours to empty
        if (!fstat(fd, &mine) && !stat(tmp, &there) && mine.st_ino == there.st_ino &&
            !ftruncate(fd, 0)) return fd;
        errno = EWOULDBLOCK;
    }
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static int save(FileHead *h, Parts *l, const KVCache *gather, const char *path, Err *err) {
    StrBuf tmp = { 0 };
    str_fmt(&tmp, "%s.tmp", path);
    int fd = tmp_open(tmp.p), rc = 0;
    if (fd < 0) {
        rc = errno == EWOULDBLOCK ? FAIL(err, "%s: another run is writing it", tmp.p)
                                  : FAIL(err, "%s: cannot be written: %s", tmp.p, strerror(errno));
    } else if (write_parts(fd, h, l, gather) || rename(tmp.p, path)) {
        rc = FAIL(err, "%s: cannot be written: %s", tmp.p, strerror(errno));
        unlink(tmp.p);
    }
    if (fd >= 0) close(fd);
    free(tmp.p);
    parts_free(l);
    return rc;
}

int context_save(const Context *c, const int32_t *ids, const char *path, Err *err) {
    Parts l = { NULL, NULL, 0, NULL };
    FileHead h = parts_of_context(c, ids, &l);
    return save(&h, &l, NULL, path, err);
}

int branch_save(const Branch *b, const int32_t *ids, int n, const char *path, Err *err) {
    Parts l = { NULL, NULL, 0, NULL };
    CHECK(b->kv->first_done && !b->kv->marks && !b->stopped, "only a settled root is saved");
    FileHead h = parts_of_root(b, ids, n, &l);
    return save(&h, &l, b->kv, path, err);
}

// ---------------------------------------------------------------------------
// Reading

typedef struct {
    const char *path;
    char *p;                    // private map of the whole file
    size_t size;
    const FileHead *head;
    const FilePart *part;
} Saved;

static int map_file(Saved *f, const char *path, Err *err) {
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    memset(f, 0, sizeof *f);
    f->path = path;
    if (fd < 0) return FAIL(err, "%s: cannot be read: %s", path, strerror(errno));
    if (fstat(fd, &st) || (size_t)st.st_size < sizeof(FileHead)) {
        close(fd);
        return FAIL(err, "%s is cut short: remove it", path);
    }
    f->size = (size_t)st.st_size;
    void *p = mmap(NULL, f->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    close(fd);
    if (p == MAP_FAILED) return FAIL(err, "%s: cannot be mapped: %s", path, strerror(errno));
    f->p = (char *)p;
    f->head = (const FileHead *)p;
    f->part = (const FilePart *)(const void *)(f->p + sizeof(FileHead));
    madvise(p, f->size, MADV_WILLNEED);
    return 0;
}

static void unmap(Saved *f) {
    if (f->p) munmap(f->p, f->size);
    memset(f, 0, sizeof *f);
}

// head and table against the file
static int check_table(const Saved *f, Err *err) {
    const FileHead *h = f->head;
    if (memcmp(h->magic, "SCBC", 4)) return FAIL(err, "%s is no saved context", f->path);
    if (h->version != SAVE_VERSION)
        return FAIL(err, "%s has format %u, this program writes %d", f->path, h->version,
                    SAVE_VERSION);
    if (h->bytes != f->size || h->n_parts > (f->size - sizeof *h) / sizeof *f->part)
        return FAIL(err, "%s is cut short: %zu bytes of %llu", f->path, f->size,
                    (unsigned long long)h->bytes);
    if (h->hash != head_hash(h, f->part)) return FAIL(err, "%s: its head is damaged", f->path);
    for (uint32_t i = 0; i < h->n_parts; i++) {
        const FilePart *p = &f->part[i];
        if (p->what >= COUNTOF(part_name) || p->offset % 64 || p->offset > f->size ||
            p->bytes > f->size - p->offset || p->count > INT32_MAX)
            return FAIL(err, "%s: part %u lies outside the file", f->path, i);
    }
    return 0;
}

static int check_data(const Saved *f, Err *err) {
    int n = (int)f->head->n_parts, bad = n;
#pragma omp parallel for schedule(dynamic, 1) reduction(min : bad)
    for (int i = 0; i < n; i++) {
        const FilePart *p = &f->part[i];
        if (XXH64(f->p + p->offset, p->bytes, 0) != p->hash && i < bad) bad = i;
    }
    if (bad == n) return 0;
    return FAIL(err, "%s: the %s of part %d are damaged", f->path, part_name[f->part[bad].what],
                bad);
}

static int check_key(const Saved *f, const Model *m, uint32_t kind, uint64_t how,
                     const int32_t *ids, int n, int n_heads, Err *err) {
    const FileHead *h = f->head;
    if (h->kind != kind || h->how != how || h->n_ids != (uint32_t)n)
        return FAIL(err, "%s was saved for other tokens or another method", f->path);
    if (h->device != (m->device != NULL))
        return FAIL(err, "%s was computed on %s: its rows are other bits than those of this run",
                    f->path, h->device ? "a GPU" : "a CPU");
    if (h->model != m->hash || h->n_heads != (uint32_t)n_heads)
        return FAIL(err, "%s was saved with another model", f->path);
    const FilePart *p = f->part;                // ids come first
    if (!h->n_parts || p->what != PART_IDS || p->bytes != (size_t)n * sizeof *ids ||
        memcmp(f->p + p->offset, ids, p->bytes))
        return FAIL(err, "%s was saved for other tokens", f->path);
    if (h->pos < 1 || h->pos > m->c.max_ctx || h->window_rows > h->pos)
        return FAIL(err, "%s: %lld tokens in its head are out of range", f->path,
                    (long long)h->pos);
    return 0;
}

// the part of that kind and head with count x unit bytes, count in [lo, hi]; NULL with err
static const FilePart *part_want(const Saved *f, uint32_t what, int index, int64_t lo, int64_t hi,
                                 size_t unit, Err *err) {
    for (uint32_t i = 0; i < f->head->n_parts; i++) {
        const FilePart *p = &f->part[i];
        if (p->what != what || p->index != (uint32_t)index) continue;
        if ((int64_t)p->count >= lo && (int64_t)p->count <= hi && p->bytes == p->count * unit)
            return p;
        FAIL(err, "%s: the %s of head %d have the wrong size", f->path, part_name[what], index);
        return NULL;
    }
    FAIL(err, "%s holds no %s of head %d", f->path, part_name[what], index);
    return NULL;
}

// positions ascend and lie before pos
static bool positions_good(const int32_t *at, int n, int64_t pos) {
    for (int j = 0; j < n; j++)
        if (at[j] < (j ? at[j - 1] + 1 : 0) || at[j] >= pos) return false;
    return true;
}

// the rows of all heads, lo to hi of them each, as a base that lies in the map
static KVBase *base_of_file(Model *m, Saved *f, int64_t lo, int64_t hi, Err *err) {
    const AttnShape *s = &m->shape;
    int heads = (int)f->head->n_heads;
    size_t row = kv_row_bytes(s);
    for (int i = 0; i < heads; i++) {
        const FilePart *p = part_want(f, PART_ROWS, i, lo, hi, row, err);
        if (!p) return NULL;
        const char *at = f->p + p->offset + p->count * 2 * (size_t)s->head_dim * s->elem;
        if (!positions_good((const int32_t *)(const void *)at, (int)p->count, f->head->pos)) {
            FAIL(err, "%s: the positions of head %d are out of order", f->path, i);
            return NULL;
        }
    }
    KVBase *b = base_new(&m->mem, s, heads);
    for (int i = 0; i < heads; i++) {
        const FilePart *p = part_want(f, PART_ROWS, i, lo, hi, row, err);
        base_map_rows(b, i, f->p + p->offset, (int)p->count);
    }
    b->pairs = f->head->pairs;
    b->all_pairs = f->head->all_pairs;
    b->map = f->p;
    b->map_bytes = f->size;
    f->p = NULL;                                // the base's now
    return b;
}

// lists of all layers; how: of a context (NULL) or of a method's cache
static int heads_of(const Model *m, const Method *how) {
    bool wide = how && how->size.group == GROUP_QUERY_HEAD && method_in_cache(how);
    return config_attn_layers(&m->c) * (wide ? m->c.n_heads : m->c.n_kv_heads);
}

static int file_good(Saved *f, const Model *m, uint32_t kind, const Method *method,
                     const int32_t *ids, int n, Err *err) {
    bool root = kind == KIND_ROOT;
    uint64_t how = root ? method_how(method) : prefill_how(method);
    return check_table(f, err) ||
           check_key(f, m, kind, how, ids, n, heads_of(m, root ? method : NULL), err) ||
           check_data(f, err);
}

// the recurrent state of a model that has one, checked: NULL at *at without; false with err
static bool state_part(const Saved *f, const Model *m, const char **at, Err *err) {
    size_t bytes = config_state_bytes(&m->c);
    const FilePart *p = bytes ? part_want(f, PART_STATE, 0, 1, 1, bytes, err) : NULL;
    *at = p ? f->p + p->offset : NULL;
    return p || !bytes;
}

static char *state_of_file(Model *m, const char *from) {
    char *s = state_take(m, NULL);
    if (s) mem_put(&m->mem, s, from, config_state_bytes(&m->c));
    return s;
}

// query rows and column sums that a run reads and the file has, checked; NULL with err
static const FilePart *context_parts(const Saved *f, const Model *m, int n, const Needs *needs,
                                     Err *err) {
    const FileHead *h = f->head;
    int rows = (int)h->window_rows;
    if (rows < needs->window && rows < n) {
        FAIL(err, "%s kept %d query rows, this run reads %d", f->path, rows, needs->window);
        return NULL;
    }
    bool sums = (int)h->sum_words >= needs->sums && h->sum_group == (uint32_t)needs->group;
    if (needs->sums && !sums) {
        FAIL(err, "%s kept no column sums as this run reads them", f->path);
        return NULL;
    }
    if (h->sum_words > 16 || h->sum_units > (uint32_t)m->shape.n_heads) {
        FAIL(err, "%s: the size of its column sums is out of range", f->path);
        return NULL;
    }
    for (int i = 0; h->sum_words && i < (int)h->n_heads; i++)
        if (!part_want(f, PART_SUMS, i, n, INT32_MAX,
                       (size_t)h->sum_words * h->sum_units * sizeof(uint32_t), err))
            return NULL;
    return part_want(f, PART_WINDOW, 0, rows, rows,
                     (size_t)config_attn_layers(&m->c) * window_row_bytes(m), err);
}

static void sums_of_file(Model *m, const Saved *f, KVBase *b) {
    Err none;
    if (!f->head->sum_words) return;
    b->sum_words = (int)f->head->sum_words;
    b->sum_units = (int)f->head->sum_units;
    b->sum_group = (Group)f->head->sum_group;
    b->sums = (Sums *)xrealloc(NULL, (size_t)b->n_heads * sizeof *b->sums);
    for (int i = 0; i < b->n_heads; i++) {
        size_t unit = (size_t)b->sum_words * b->sum_units * sizeof(uint32_t);
        const FilePart *p = part_want(f, PART_SUMS, i, 0, INT32_MAX, unit, &none);
        b->sums[i].cap = (int)p->count;
        b->sums[i].p = TAKE(&m->mem, uint32_t, p->bytes / sizeof(uint32_t), "column sums");
        mem_put(&m->mem, b->sums[i].p, f->p + p->offset, p->bytes);
    }
}

Context *context_load(Model *m, const Method *method, const int32_t *ids, int n,
                      const Needs *needs, const char *path, Err *err) {
    static const Needs nothing;
    Saved f;
    if (map_file(&f, path, err)) return NULL;
    const FilePart *w = NULL, *logits = NULL;
    const char *state = NULL;
    bool sparse = method && method->prefill;
    size_t v = (size_t)m->c.vocab_size * sizeof(float);
    if (!file_good(&f, m, KIND_CONTEXT, method, ids, n, err) && state_part(&f, m, &state, err) &&
        (!sparse || (logits = part_want(&f, PART_LOGITS, 0, 1, 1, v, err)) != NULL))
        w = context_parts(&f, m, n, needs ? needs : &nothing, err);
    Saved in = f;                               // stays mapped as long as the base does
    KVBase *base = w ? base_of_file(m, &f, n, n, err) : NULL;
    unmap(&f);
    if (!base) return NULL;
    sums_of_file(m, &in, base);
    Context *c = (Context *)xrealloc(NULL, sizeof *c);
    memset(c, 0, sizeof *c);
    c->m = m;
    c->refs = 1;
    c->n = n;
    c->base = base;
    c->window_rows = (int)in.head->window_rows;
    c->window_bytes = w->bytes;
    c->window = TAKE(&m->mem, char, w->bytes, "window rows of the context");
    mem_put(&m->mem, c->window, in.p + w->offset, w->bytes);
    c->state = state_of_file(m, state);
    if (sparse) {
        method_prefill_key(method, &c->prefill);
        c->logits = TAKE(logits_mem(m), float, m->c.vocab_size, "logits");
        memcpy(c->logits, in.p + logits->offset, v);
    } else {
        Method full;
        Err none;
        if (!method_find("full", &full, &none)) method_prefill_key(&full, &c->prefill);
    }
    return c;
}

// state and logits of a root, checked; false with err
static bool root_parts(const Saved *f, const Model *m, const KVCache *c, Err *err) {
    if (!part_want(f, PART_LOGITS, 0, 1, 1, (size_t)m->c.vocab_size * sizeof(float), err))
        return false;
    for (int i = 0; i < c->n_heads; i++)
        if (c->head[i].state && !part_want(f, PART_POLICY, i, c->head[i].len, c->head[i].len,
                                           (size_t)c->words * sizeof(uint32_t), err))
            return false;
    return true;
}

Branch *branch_load(Model *m, const Method *method, const int32_t *ids, int n, int reserve,
                    const char *path, Err *err) {
    Saved f;
    if (map_file(&f, path, err)) return NULL;
    const char *state = NULL;
    if (file_good(&f, m, KIND_ROOT, method, ids, n, err) || !state_part(&f, m, &state, err)) {
        unmap(&f);
        return NULL;
    }
    Saved in = f;                               // stays mapped as long as the base does
    KVBase *base = base_of_file(m, &f, 0, f.head->pos, err);
    unmap(&f);
    if (!base) return NULL;
    Branch *b = branch_new(m, NULL, method);
    b->kv = kv_open(&m->mem, &m->shape, config_attn_layers(&m->c), base, &b->method, reserve);
    kv_base_drop(base);
    if (!root_parts(&in, m, b->kv, err)) {
        branch_drop(b);
        return NULL;
    }
    KVCache *c = b->kv;
    for (int i = 0; i < c->n_heads; i++) {
        if (!c->head[i].state) continue;
        const FilePart *p = part_want(&in, PART_POLICY, i, 0, INT32_MAX,
                                      (size_t)c->words * sizeof(uint32_t), err);
        state_copy(c, i, in.p + p->offset, false);
    }
    memcpy(b->logits, in.p + part_want(&in, PART_LOGITS, 0, 1, 1,
                                       (size_t)m->c.vocab_size * sizeof(float), err)->offset,
           (size_t)m->c.vocab_size * sizeof(float));
    c->first_done = true;
    c->named = c->dropped = in.head->named;
    b->pos = in.head->pos;
    b->state = state_of_file(m, state);
    b->fed = true;
    return b;
}

// ---------------------------------------------------------------------------
// A directory of them

// DIR/xxxxxxxxxxxxxxxx.ctx, the key: model and device, kind, how, ids
static void path_of(const SaveDir *d, const Model *m, uint32_t kind, uint64_t how,
                    const int32_t *ids, int n, StrBuf *path) {
    uint64_t key[4] = { m->device ? mix64(m->hash) : m->hash, kind, how, XXH64(ids, (size_t)n * sizeof *ids, 0) };
    str_fmt(path, "%s/%016llx.ctx", d->dir, (unsigned long long)XXH64(key, sizeof key, 0));
}

// bytes of the saved files; one of the name path counts as gone, it would be replaced
static int64_t bytes_in(const char *dir, const char *path) {
    DIR *d = opendir(dir);
    int64_t sum = 0;
    struct stat st;
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        StrBuf one = { 0 };
        str_fmt(&one, "%s/%s", dir, e->d_name);
        if (strstr(e->d_name, ".ctx") && strcmp(one.p, path) && !stat(one.p, &st))
            sum += st.st_size;
        free(one.p);
    }
    if (d) closedir(d);
    return sum;
}

// Whether a file of these parts has room; says once that it has not.
static bool has_room(SaveDir *d, const char *path, Parts *l) {
    int64_t bytes = (int64_t)parts_place(l), held = d->limit ? bytes_in(d->dir, path) : 0;
    if (!d->limit || held + bytes <= d->limit) return true;
    if (!d->said)
        fprintf(stderr,
                "warning: %s holds %lld MB and %lld MB more would pass the limit of %lld MB: not "
                "saved\n",
                d->dir, (long long)held >> 20, (long long)bytes >> 20, (long long)d->limit >> 20);
    d->said = true;
    return false;
}

// saves if there is room; what goes wrong is said, the run goes on without the file
static void keep(SaveDir *d, FileHead *h, Parts *l, const KVCache *gather, const char *path) {
    Err err = { 0 };
    if (!has_room(d, path, l)) parts_free(l);
    else if (save(h, l, gather, path, &err)) fprintf(stderr, "warning: not saved: %s\n", err.msg);
}

Context *context_get(Model *m, SaveDir *d, const Method *method, const int32_t *ids, int n,
                     const Needs *needs, bool *restored, double *seconds, Err *err) {
    StrBuf path = { 0 };
    Err bad = { 0 };
    Context *c = NULL;
    double t = now_s();
    *restored = false;
    if (!d->dir) {
        c = context_open_sparse(m, method, ids, n, needs, err);
        *seconds = now_s() - t;
        return c;
    }
    path_of(d, m, KIND_CONTEXT, prefill_how(method), ids, n, &path);
    if (!access(path.p, F_OK) && !(c = context_load(m, method, ids, n, needs, path.p, &bad)))
        fprintf(stderr, "warning: %s; computed again\n", bad.msg);
    *restored = c != NULL;
    bool fresh = !c && (c = context_open_sparse(m, method, ids, n, needs, err)) != NULL;
    *seconds = now_s() - t;
    if (fresh) {
        Parts l = { NULL, NULL, 0, NULL };
        FileHead h = parts_of_context(c, ids, &l);
        keep(d, &h, &l, NULL, path.p);
    }
    free(path.p);
    return c;
}

bool root_saved(const SaveDir *d, Model *m, const Method *method, const int32_t *ids, int n) {
    StrBuf path = { 0 };
    if (!d->dir) return false;
    path_of(d, m, KIND_ROOT, method_how(method), ids, n, &path);
    bool there = access(path.p, F_OK) == 0;
    free(path.p);
    return there;
}

Branch *root_get(Model *m, const SaveDir *d, const Method *method, const int32_t *ids, int n,
                 int reserve) {
    StrBuf path = { 0 };
    Err bad = { 0 };
    if (!root_saved(d, m, method, ids, n)) return NULL;
    path_of(d, m, KIND_ROOT, method_how(method), ids, n, &path);
    Branch *b = branch_load(m, method, ids, n, reserve, path.p, &bad);
    if (!b) fprintf(stderr, "warning: %s; computed again\n", bad.msg);
    free(path.p);
    return b;
}

void root_keep(SaveDir *d, const Branch *b, const int32_t *ids, int n) {
    StrBuf path = { 0 };
    Parts l = { NULL, NULL, 0, NULL };
    if (!d->dir) return;
    path_of(d, b->m, KIND_ROOT, method_how(&b->method), ids, n, &path);
    FileHead h = parts_of_root(b, ids, n, &l);
    keep(d, &h, &l, b->kv, path.p);
    free(path.p);
}
