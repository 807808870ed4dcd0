// test_methods.c - sizes that presets and budgets give each method, against the table they were
// specified in; a prompt evicted in parts against the same feeds one by one; and bytes of a cache
// of query heads.
#include "tinymodel.h"

static int failures, checks;

__attribute__((format(printf, 2, 3)))
static void expect(bool ok, const char *fmt, ...) {
    va_list ap;
    checks++;
    if (ok) return;
    failures++;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    puts("");
    va_end(ap);
}

static Method method_of(const char *name, Preset preset, int ctx, int budget, const char *set,
                        const char *value) {
    Method m;
    Err err = { 0 };
    CHECK(!method_find(name, &m, &err), "%s", err.msg);
    if (set) CHECK(!method_set(&m, set, value, &err), "%s", err.msg);
    CHECK(!method_resolve(&m, preset, ctx, budget, -1, &err), "%s", err.msg);
    return m;
}

// ---------------------------------------------------------------------------
// Sizes

static const struct {
    const char *name;
    Preset preset;
    int ctx, budget;
    bool scaled;
    const char *params;
} sizes[] = {
    { "streamingllm", PRESET_SCBENCH, 131072, 0, false,
      "{\"budget\": 4224, \"sinks\": 128, \"recent\": 4096}" },
    { "streamingllm", PRESET_SCBENCH, 65536, 0, true,
      "{\"budget\": 2048, \"sinks\": 62, \"recent\": 1986}" },
    { "streamingllm", PRESET_CORM, 4096, 0, false,
      "{\"budget\": 1024, \"sinks\": 4, \"recent\": 1020}" },
    { "streamingllm", PRESET_HARNESS, 900, 0, false,
      "{\"budget\": 4096, \"sinks\": 128, \"recent\": 3968}" },
    { "snapkv", PRESET_SCBENCH, 131072, 0, false,
      "{\"budget\": 2048, \"window\": 32, \"kernel\": 5, \"pool\": \"avg\"}" },
    { "snapkv", PRESET_SCBENCH, 1000, 0, true,
      "{\"budget\": 64, \"window\": 16, \"kernel\": 5, \"pool\": \"avg\"}" },
    { "snapkv", PRESET_HARNESS, 1000, 0, false,
      "{\"budget\": 4096, \"window\": 32, \"kernel\": 5, \"pool\": \"avg\"}" },
    { "pyramidkv", PRESET_SCBENCH, 200000, 0, false,
      "{\"budget\": 2048, \"window\": 32, \"kernel\": 5, \"beta\": 20, \"pool\": \"avg\"}" },
    { "quest", PRESET_SCBENCH, 131072, 0, false, "{\"budget\": 1024, \"page\": 16}" },
    { "topk", PRESET_SCBENCH, 131072, 0, false, "{\"budget\": 4096}" },
    { "h2o", PRESET_CORM, 4096, 0, false, "{\"budget\": 1024, \"recent\": 256}" },
    { "h2o", PRESET_SCBENCH, 131072, 0, false, "{\"budget\": 4096, \"recent\": 1024}" },
    { "scissorhands", PRESET_CORM, 4096, 0, false,
      "{\"budget\": 1024, \"recent\": 256, \"history\": 256}" },
    { "scissorhands", PRESET_CORM, 4096, 200, false,
      "{\"budget\": 200, \"recent\": 50, \"history\": 50}" },
    { "roco", PRESET_SCBENCH, 131072, 1000, false,
      "{\"budget\": 1000, \"recent\": 300, \"protect\": 10}" },
    { "tova", PRESET_CORM, 2048, 0, true, "{\"budget\": 512}" },
    { "random", PRESET_CORM, 8192, 0, false, "{\"budget\": 1024}" },
    { "corm", PRESET_SCBENCH, 131072, 0, false, "{\"window\": 256, \"protect\": 256}" },
    { "corm", PRESET_SCBENCH, 1600, 0, true, "{\"window\": 100, \"protect\": 100}" },
};

static void check_sizes(void) {
    for (size_t i = 0; i < COUNTOF(sizes); i++) {
        Method m = method_of(sizes[i].name, sizes[i].preset, sizes[i].ctx, sizes[i].budget, NULL,
                             NULL);
        StrBuf text = { 0 };
        method_params(&m, &text);
        expect(!strcmp(text.p, sizes[i].params) && m.size.scaled == sizes[i].scaled,
               "%s, preset %d, ctx %d, budget %d: %s scaled %d, expected %s", sizes[i].name,
               (int)sizes[i].preset, sizes[i].ctx, sizes[i].budget, text.p, m.size.scaled,
               sizes[i].params);
        free(text.p);
    }
    static const char *const lacks[] = { "corm", "h2o", "scissorhands", "tova", "roco" };
    for (size_t i = 0; i < COUNTOF(lacks); i++) {
        Method m;
        Err err = { 0 };
        CHECK(!method_find(lacks[i], &m, &err), "%s", err.msg);
        expect(method_resolve(&m, PRESET_HARNESS, 4096, 0, -1, &err) && err.code == EXIT_USAGE,
               "the harness has no %s and its preset took it", lacks[i]);
    }
    Method quest = method_of("quest", PRESET_HARNESS, 900, 0, NULL, NULL);
    expect(quest.size.signs && quest.size.budget == 1024 && quest.size.page == 16 &&
               !method_wide(&quest),
           "the harness's quest chooses by signs and keeps a row per KV head");
    Method once = method_of("streamingllm", PRESET_HARNESS, 900, 0, NULL, NULL);
    expect(!once.size.steps && !once.size.feeds && once.size.positions == POSITIONS_ORIGINAL &&
               once.size.group == GROUP_QUERY_HEAD,
           "the harness cuts once, per query head, at original positions");
}

// ---------------------------------------------------------------------------
// Caches

enum { PROMPT = 230, PART = 60, STEPS = 6 };

static const TinySpec spec = { .dim = 48, .hidden_dim = 64, .n_layers = 3, .n_heads = 6,
    .n_kv_heads = 2, .head_dim = 32, .dtype = DT_BF16, .sharp = 6, .seed = 9 };

static void feed(Branch *b, const int32_t *ids, int n, unsigned flags) {
    Err err = { 0 };
    CHECK(!branch_feed(b, ids, n, flags, &err), "%s", err.msg);
}

static bool same(const Branch *a, const Branch *b, int vocab) {
    return !memcmp(branch_logits(a), branch_logits(b), (size_t)vocab * sizeof(float)) &&
           branch_stats(a).rows_mean == branch_stats(b).rows_mean;
}

// a method that acts at the end of every feed sees no difference between a prompt in parts and
// several feeds
static void check_stream(Model *m, const int32_t *ids) {
    static const char *const names[] = { "keep-last", "h2o", "roco", "tova", "scissorhands",
                                         "corm" };
    Err err = { 0 };
    char part[24];
    int vocab = model_config(m)->vocab_size;
    snprintf(part, sizeof part, "stream:%d", PART);
    for (size_t i = 0; i < COUNTOF(names); i++) {
        int budget = strcmp(names[i], "corm") ? 40 : 0;
        Method parts = method_of(names[i], PRESET_SCBENCH, PROMPT, budget, "prefill", part),
               whole = method_of(names[i], PRESET_SCBENCH, PROMPT, budget, NULL, NULL);
        Branch *a = branch_open(m, NULL, &parts, 0, &err),
               *b = branch_open(m, NULL, &whole, 0, &err);
        CHECK(a && b, "%s", err.msg);
        feed(a, ids, PROMPT, FEED_FIRST);
        for (int at = 0; at < PROMPT; at += PART)
            feed(b, ids + at, PROMPT - at < PART ? PROMPT - at : PART, at ? 0 : FEED_FIRST);
        expect(same(a, b, vocab), "%s: a prompt in parts is not its feeds", names[i]);
        expect(branch_stats(a).rows_max < PROMPT, "%s kept everything", names[i]);
        for (int s = 0; s < STEPS; s++) {
            int id = branch_argmax(a);
            CHECK(!branch_step(a, id, &err) && !branch_step(b, id, &err), "%s", err.msg);
        }
        expect(same(a, b, vocab), "%s: steps behind a prompt in parts differ", names[i]);
        branch_drop(a);
        branch_drop(b);
    }
}

// three query heads share a KV head here: their own rows are three times as many
static void check_query_heads(Model *m, const int32_t *ids) {
    Err err = { 0 };
    const Config *c = model_config(m);
    Method narrow = method_of("snapkv", PRESET_SCBENCH, PROMPT, 80, NULL, NULL), wide = narrow;
    wide.set.group = GROUP_QUERY_HEAD;
    CHECK(!method_resolve(&wide, PRESET_SCBENCH, PROMPT, 80, -1, &err), "%s", err.msg);
    Branch *a = branch_open(m, NULL, &narrow, 10, &err), *b = branch_open(m, NULL, &wide, 10, &err);
    CHECK(a && b, "%s", err.msg);
    feed(a, ids, PROMPT, FEED_FIRST);
    feed(b, ids, PROMPT, FEED_FIRST);
    size_t want = (size_t)c->n_layers * c->n_heads * 90 * config_row_bytes(c);
    BranchStats st = branch_stats(b);
    expect(st.kv_alloc_bytes == want && st.kv_live_bytes == want / 90 * 80 && !st.shared,
           "rows per query head: %zu bytes of %zu, expected %zu", st.kv_live_bytes,
           st.kv_alloc_bytes, want);
    expect(3 * branch_stats(a).kv_alloc_bytes == want, "rows per KV head are a third");
    branch_drop(a);
    branch_drop(b);
}

int main(void) {
    char path[] = P_tmpdir "/scbench-methods-XXXXXX";
    int32_t ids[PROMPT];
    ModelFile f;
    Err err = { 0 };
    int fd = mkstemp(path);
    CHECK(fd >= 0 && !cpu_init(1, &err), "%s", err.msg);
    close(fd);
    for (int i = 0; i < PROMPT; i++) ids[i] = (int32_t)(mix64((uint64_t)i + 5) % 250);
    tiny_write(&spec, path);
    CHECK(!file_open(&f, path, true, &err), "%s", err.msg);
    unlink(path);
    Model *m = model_open(&f, NULL, &err);
    CHECK(m, "%s", err.msg);
    check_sizes();
    check_stream(m, ids);
    check_query_heads(m, ids);
    model_close(m);
    file_close(&f);
    printf("%d checks, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
