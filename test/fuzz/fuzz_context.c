// fuzz_context.c - saved contexts and roots: any bytes are read or refused, nothing else. Half of
// the inputs get their checksums put right, so that what lies behind them is reached.
#include "context_file.c"
#include "../tinymodel.h"
#include "fuzz.h"

enum { N = 40 };
static const Needs needs = { 8, 1, GROUP_MEAN };
static Model *model;
static Method corm;
static int32_t ids[N];
static char path[] = "/tmp/scbench-fuzz-context-XXXXXX";
static size_t context_bytes = 12288;    // of the context in an input, the root follows

static void clean_up(void) { unlink(path); }

static void setup(void) {
    static ModelFile file;
    const TinySpec spec = { .dim = 32, .hidden_dim = 32, .n_layers = 1, .n_heads = 2,
                            .n_kv_heads = 1, .head_dim = 32, .dtype = DT_BF16, .tied = true };
    Err err = { 0 };
    int fd = mkstemp(path);
    CHECK(fd >= 0 && !cpu_init(1, &err), "%s", err.msg);
    close(fd);
    atexit(clean_up);
    tiny_write(&spec, path);
    CHECK(!file_open(&file, path, false, &err), "%s", err.msg);
    CHECK((model = model_open(&file, NULL, &err)) != NULL, "%s", err.msg);
    CHECK(!method_find("corm", &corm, &err) && !method_set(&corm, "window", "4", &err) &&
              !method_resolve(&corm, PRESET_SCBENCH, N, 0, -1, &err), "%s", err.msg);
    for (int i = 0; i < N; i++) ids[i] = i * 7 % 256;
}

// checksums of whatever table the bytes hold
static void put_right(char *p, size_t size) {
    FileHead h;
    if (size < sizeof h) return;
    memcpy(&h, p, sizeof h);
    if (h.n_parts > (size - sizeof h) / sizeof(FilePart)) return;
    FilePart *part = (FilePart *)xrealloc(NULL, h.n_parts * sizeof *part + 1);
    memcpy(part, p + sizeof h, h.n_parts * sizeof *part);
    for (uint32_t i = 0; i < h.n_parts; i++)
        if (part[i].offset <= size && part[i].bytes <= size - part[i].offset)
            part[i].hash = XXH64(p + part[i].offset, part[i].bytes, 0);
    memcpy(p + sizeof h, part, h.n_parts * sizeof *part);
    h.bytes = size;
    h.hash = head_hash(&h, part);
    memcpy(p, &h, sizeof h);
    free(part);
}

static void spill(const uint8_t *data, size_t size) {
    static unsigned turn;
    char *p = (char *)xrealloc(NULL, size + 1);
    memcpy(p, data, size);
    if (turn++ % 4 < 2) put_right(p, size);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(p, 1, size, f) == size && !fclose(f), "%s", path);
    free(p);
}

// a context, then a root; both are used if they are read
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Err err = { 0 };
    if (!model) setup();
    size_t first = size < context_bytes ? size : context_bytes;
    spill(data, first);
    Context *c = context_load(model, NULL, ids, N, &needs, path, &err);
    Branch *b = c ? branch_open(model, c, &corm, 2, &err) : NULL;
    if (b) branch_feed(b, ids, 3, FEED_FIRST, &err);
    branch_drop(b);
    context_drop(c);
    spill(data + first, size - first);
    b = branch_load(model, &corm, ids, N, 2, path, &err);
    if (b) branch_step(b, 1, &err);
    branch_drop(b);
    return 0;
}

static void add_file(StrBuf *out) {
    char part[4096];
    FILE *f = fopen(path, "rb");
    CHECK(f, "%s", path);
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) str_add(out, part, n);
    fclose(f);
}

static StrBuf seed_input(void) {
    StrBuf out = { 0 };
    Err err = { 0 };
    setup();
    Context *c = context_open(model, ids, N, &needs, &err);
    CHECK(c && !context_save(c, ids, path, &err), "%s", err.msg);
    add_file(&out);
    context_bytes = out.n;
    Branch *b = branch_open(model, c, &corm, 2, &err);
    CHECK(!branch_feed(b, ids, 0, FEED_FIRST, &err) && !branch_save(b, ids, N, path, &err), "%s",
          err.msg);
    add_file(&out);
    branch_drop(b);
    context_drop(c);
    return out;
}

FUZZ_MAIN(seed_input)
