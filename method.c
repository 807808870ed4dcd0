// method.c - what the user calls a method: names, options, and the sizes a preset gives them.
#include "cache.h"

// ---------------------------------------------------------------------------
// Methods: names, sizes and presets (SEMANTICS 5)

enum { MAX_POLICIES = 64 };
static bool is_policy(const Method *m, const char *name) { return !strcmp(m->policy->name, name); }

static Sizes sizes_unset(void) {
    Sizes z;
    memset(&z, 0, sizeof z);
    z.budget = z.sinks = z.recent = z.window = z.protect = z.history = z.kernel = z.beta = -1;
    z.page = z.stream = z.every_turn = -1;
    z.pool = (Pool)-1;
    z.group = (Group)-1;
    z.positions = (Positions)-1;
    return z;
}

const char *method_name_at(int i) {
    const Policy *p = policy_at(i);
    return p ? p->name : NULL;
}
bool method_has_budget(const Method *m) { return m->policy->has_budget; }
bool method_evicts(const Method *m) { return m->policy->evicts; }
bool method_in_cache(const Method *m) { return m->policy->evicts; }
bool method_at_steps(const Method *m) { return m->policy->at_steps && m->size.steps; }
bool method_groups(const Method *m) { return m->policy->groups == GROUPS_CHOICE; }
int method_window(const Method *m) { return m->policy->window ? m->policy->window(&m->size) : 0; }

int method_words(const Method *m) { return m->policy->words ? m->policy->words(&m->size) : 0; }

static const char *const group_name[] = { "mean", "max", "sum", "query-head" };
static const char *const pool_name[] = { "avg", "max" };

const char *method_group(const Method *m) {
    if (m->size.group == GROUP_QUERY_HEAD && method_in_cache(m)) return "query-head";
    if (m->policy->groups == GROUPS_ANY) return "any";
    return method_groups(m) ? group_name[m->size.group] : NULL;
}

void method_needs(const Method *m, Needs *n) {
    int window = method_window(m);
    if (window > n->window) n->window = window;
    if (!m->policy->every_query) return;
    if (method_words(m) > n->sums) n->sums = method_words(m);
    n->group = m->size.group;
}

int method_find(const char *name, Method *m, Err *err) {
    const char *names[MAX_POLICIES];
    const Policy *p;
    int n = 0;
    for (; (p = policy_at(n)); n++) {
        names[n] = p->name;
        if (strcmp(name, p->name)) continue;
        memset(m, 0, sizeof *m);
        snprintf(m->name, sizeof m->name, "%s", name);
        m->policy = p;
        m->set = sizes_unset();
        return 0;
    }
    int near = did_you_mean(name, names, n);
    if (near >= 0)
        return FAIL_CODE(err, EXIT_USAGE, "unknown method '%s', did you mean '%s'?", name,
                         names[near]);
    return FAIL_CODE(err, EXIT_USAGE, "unknown method '%s': see scbench list methods", name);
}

enum { SIZE_MAX_ROWS = 1 << 29 };       // sums of two sizes stay ints
typedef struct { const char *method, *name; size_t at; int min; } SizeOption;
#define SIZE(method, field, min) { method, #field, offsetof(Sizes, field), min }
static const SizeOption size_options[] = {
    SIZE("keep-last", budget, 1), SIZE("random", budget, 1),
    SIZE("streamingllm", budget, 2), SIZE("streamingllm", sinks, 0),
    SIZE("streamingllm", recent, 1),
    SIZE("snapkv", budget, 2), SIZE("snapkv", window, 1), SIZE("snapkv", kernel, 1),
    SIZE("pyramidkv", budget, 2), SIZE("pyramidkv", window, 1), SIZE("pyramidkv", kernel, 1),
    SIZE("pyramidkv", beta, 1),
    SIZE("h2o", budget, 2), SIZE("h2o", recent, 0),
    SIZE("scissorhands", budget, 2), SIZE("scissorhands", recent, 0),
    SIZE("scissorhands", history, 1),
    SIZE("tova", budget, 1),
    SIZE("roco", budget, 2), SIZE("roco", recent, 0), SIZE("roco", protect, 0),
    SIZE("corm", window, 1), SIZE("corm", protect, 1),
};

// the next option of a policy from *at on, NULL at the end
static const SizeOption *size_option(const Policy *p, size_t *at) {
    while (*at < COUNTOF(size_options))
        if (!strcmp(size_options[(*at)++].method, p->name)) return &size_options[*at - 1];
    return NULL;
}
static int size_get(const Sizes *z, const SizeOption *o) {
    return *(const int *)(const void *)((const char *)z + o->at);
}

static int set_word(const Method *m, const char *name, const char *value, const char *const *words,
                    int n, int *out, Err *err) {
    for (*out = 0; *out < n; ++*out) if (!strcmp(value, words[*out])) return 0;
    StrBuf all = { 0 };
    for (int i = 0; i < n; i++) str_fmt(&all, "%s'%s'", i ? " or " : "", words[i]);
    FAIL_CODE(err, EXIT_USAGE, "--set %s.%s is %s, got '%s'", m->name, name, all.p, value);
    free(all.p);
    return -1;
}

static bool pools(const Method *m) { return is_policy(m, "snapkv") || is_policy(m, "pyramidkv"); }

int method_set(Method *m, const char *name, const char *value, Err *err) {
    static const char *const positions[] = { "original", "cache" };
    const SizeOption *o;
    char *end;
    int word;
    errno = 0;
    long v = strtol(value, &end, 10);
    for (size_t i = 0; (o = size_option(m->policy, &i));) {
        if (strcmp(o->name, name)) continue;
        if (end == value || *end || errno || v < o->min || v > SIZE_MAX_ROWS)
            return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s wants an integer from %d, got '%s'",
                             m->name, name, o->min, value);
        if (!strcmp(name, "kernel") && v % 2 == 0)
            return FAIL_CODE(err, EXIT_USAGE,
                             "--set %s.kernel wants an odd number, so that a row is in the middle "
                             "of its neighbours, got '%s'", m->name, value);
        *(int *)(void *)((char *)&m->set + o->at) = (int)v;
        return 0;
    }
    if (!strcmp(name, "positions") && m->policy->evicts) {
        if (set_word(m, name, value, positions, 2, &word, err)) return -1;
        m->set.positions = (Positions)word;
        return 0;
    }
    if (!strcmp(name, "pool") && pools(m)) {
        if (set_word(m, name, value, pool_name, 2, &word, err)) return -1;
        m->set.pool = (Pool)word;
        return 0;
    }
    return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s: %s has no option '%s'", m->name, name, m->name,
                     name);
}

// ---------------------------------------------------------------------------
// Sizes. Each preset has a reference length and budget, and the sizes its paper names; whatever a
// paper does not name follows from the budget.

typedef struct { int ctx, budget; } Reference;
static const Reference references[] = { { 131072, 4096 }, { 4096, 1024 }, { 0, 4096 } };

// a row: sizes a preset names at its reference length; 0: as any budget
typedef struct { Preset preset; const char *method; int budget, sinks, recent, window; } Named;
static const Named named[] = {
    { PRESET_SCBENCH, "streamingllm", 4224, 128, 4096, 0 },
    { PRESET_SCBENCH, "snapkv", 2048, 0, 0, 32 },
    { PRESET_SCBENCH, "pyramidkv", 2048, 0, 0, 32 },
    { PRESET_SCBENCH, "quest", 1024, 0, 0, 0 },
    { PRESET_CORM, "streamingllm", 1024, 4, 1020, 0 },
    { PRESET_CORM, "h2o", 1024, 0, 256, 0 },
    { PRESET_CORM, "scissorhands", 1024, 0, 256, 0 },
    { PRESET_HARNESS, "streamingllm", 4096, 128, 3968, 0 },
    { PRESET_HARNESS, "snapkv", 4096, 0, 0, 32 },
    { PRESET_HARNESS, "pyramidkv", 4096, 0, 0, 32 },
    { PRESET_HARNESS, "quest", 1024, 0, 0, 0 },
};

static const Named *named_of(const Method *m, Preset preset) {
    for (size_t i = 0; i < COUNTOF(named); i++)
        if (named[i].preset == preset && is_policy(m, named[i].method)) return &named[i];
    return NULL;
}

static int at_most(int a, int b) { return a < b ? a : b; }

// sinks of a budget that no table names: the paper's share of 128 in 128 + 4096
static int sinks_of(Preset preset, int budget) {
    int share = (int)(((int64_t)budget * 128 + 2112) / 4224);
    return preset == PRESET_CORM ? 4 : share < 4 ? 4 : share;
}

// every size as it follows from the budget, or from the preset's row
static void sizes_of(const Method *m, Preset preset, const Named *row, Sizes *z) {
    int B = z->budget;
    if (is_policy(m, "keep-last")) z->recent = B;
    if (is_policy(m, "streamingllm")) {
        z->sinks = row ? row->sinks : at_most(sinks_of(preset, B), B - 1);
        z->recent = B - z->sinks;
    }
    if (pools(m)) {
        z->window = row ? row->window : at_most(32, B / 4 > 1 ? B / 4 : 1);
        z->kernel = 5;
        z->beta = 20;
    }
    if (is_policy(m, "h2o") || is_policy(m, "scissorhands")) {
        z->recent = row ? row->recent : B / 4;
        z->history = at_most(256, B / 4 > 1 ? B / 4 : 1);
    }
    if (is_policy(m, "roco")) {         // EasyKV: 0.3 B, and the last 10 rows are unsteady
        z->recent = (int)((int64_t)B * 3 / 10);
        z->protect = 10;
    }
    if (is_policy(m, "quest")) z->page = 16;
}

static void resolve_budget(Method *m, Preset preset, int ctx, int budget) {
    const Reference *ref = &references[preset];
    const Named *row = named_of(m, preset);
    const SizeOption *o;
    Sizes *z = &m->size;
    if (m->set.budget >= 0) budget = m->set.budget;
    if (budget == 0 && ctx < ref->ctx) {
        int64_t b = (int64_t)ctx * ref->budget / ref->ctx;
        budget = b < 64 ? 64 : (int)b;
        z->scaled = true;
    }
    z->budget = budget ? budget : row ? row->budget : ref->budget;
    sizes_of(m, preset, row && row->budget == z->budget ? row : NULL, z);
    for (size_t i = 0; (o = size_option(m->policy, &i));)
        if (size_get(&m->set, o) >= 0)
            *(int *)(void *)((char *)z + o->at) = size_get(&m->set, o);
    if (is_policy(m, "streamingllm")) z->budget = z->sinks + z->recent;
}

static void resolve_corm(Method *m, int ctx) {
    Sizes *z = &m->size;
    int w = ctx / 16 > 256 ? 256 : ctx / 16 < 1 ? 1 : ctx / 16;
    z->window = m->set.window >= 0 ? m->set.window : w;
    z->protect = m->set.protect >= 0 ? m->set.protect : w;
    z->scaled = w != 256 && (m->set.window < 0 || m->set.protect < 0);
}

static int check_sizes(const Method *m, Err *err) {
    const Sizes *z = &m->size;
    bool tail = is_policy(m, "h2o") || is_policy(m, "scissorhands") || is_policy(m, "roco");
    if (pools(m) && z->window >= z->budget)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s keeps %d rows and its window alone is %d: --set %s.window below the "
                         "budget", m->name, z->budget, z->window, m->name);
    if (tail && z->recent >= z->budget)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s keeps %d rows and the newest alone are %d: --set %s.recent below the "
                         "budget", m->name, z->budget, z->recent, m->name);
    return 0;
}

int method_resolve(Method *m, Preset preset, int ctx, int budget, int positions, Err *err) {
    Sizes *z = &m->size;
    memset(z, 0, sizeof *z);
    z->positions = POSITIONS_ORIGINAL;
    if (!method_in_cache(m)) return 0;
    if (preset == PRESET_HARNESS)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--preset harness is not built for cache methods: use scbench or corm");
    z->steps = m->policy->at_steps;
    z->feeds = m->policy->at_feeds;
    if (m->policy->has_budget) resolve_budget(m, preset, ctx, budget);
    else resolve_corm(m, ctx);
    if (is_policy(m, "streamingllm")) z->positions = POSITIONS_CACHE;
    if (positions >= 0) z->positions = (Positions)positions;
    if ((int)m->set.positions >= 0) z->positions = m->set.positions;
    if ((int)m->set.group >= 0) z->group = m->set.group;
    if ((int)m->set.pool >= 0) z->pool = m->set.pool;
    return check_sizes(m, err);
}

void method_params(const Method *m, StrBuf *json) {
    const SizeOption *o;
    const char *comma = "";
    str_puts(json, "{");
    for (size_t i = 0; (o = size_option(m->policy, &i)); comma = ", ")
        str_fmt(json, "%s\"%s\": %d", comma, o->name, size_get(&m->size, o));
    if (pools(m)) str_fmt(json, ", \"pool\": \"%s\"", pool_name[m->size.pool]);
    str_puts(json, "}");
}

void method_list(FILE *out) {
    const Policy *p;
    const SizeOption *o;
    fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", "method", "stage", "KV size", "prefill",
            "decode", "keeps");
    for (int i = 0; (p = policy_at(i)); i++) {
        fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", p->name, p->evicts ? "cache" : "-",
                p->kv_size, p->prefill_cost, p->decode_cost, p->help);
        if (p->differs) fprintf(out, "%16s%s\n", "", p->differs);
    }
    fprintf(out, "per KV head, n tokens so far; options: --set METHOD.name=value\n");
    for (int i = 0; (p = policy_at(i)); i++) {
        size_t at = 0;
        if (!p->evicts) continue;
        fprintf(out, "  %s:", p->name);
        while ((o = size_option(p, &at))) fprintf(out, " %s", o->name);
        fprintf(out, "%s positions\n", !strcmp(p->name, "snapkv") ? " pool" : "");
    }
}
