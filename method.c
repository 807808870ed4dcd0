// method.c - what the user calls a method: names, options, and the sizes a preset gives them.
#include "cache.h"

// ---------------------------------------------------------------------------
// Methods: names, sizes and presets (SEMANTICS 5)

enum { MAX_POLICIES = 64 };
static bool is_policy(const Method *m, const char *name) { return !strcmp(m->policy->name, name); }

static const Sizes sizes_unset = { -1, -1, -1, -1, -1, (Positions)-1, false };

const char *method_name_at(int i) {
    const Policy *p = policy_at(i);
    return p ? p->name : NULL;
}
bool method_has_budget(const Method *m) { return m->policy->has_budget; }
bool method_evicts(const Method *m) { return m->policy->evicts; }
bool method_at_steps(const Method *m) { return m->policy->evicts; }
int method_window(const Method *m) { return m->policy->window ? m->policy->window(&m->size) : 0; }

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
        m->set = sizes_unset;
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
static const SizeOption size_options[] = {
    { "keep-last", "budget", offsetof(Sizes, budget), 1 },
    { "streamingllm", "sinks", offsetof(Sizes, sinks), 0 },
    { "streamingllm", "recent", offsetof(Sizes, recent), 1 },
    { "streamingllm", "budget", offsetof(Sizes, budget), 2 },
    { "corm", "window", offsetof(Sizes, window), 1 },
    { "corm", "protect", offsetof(Sizes, protect), 1 },
};

int method_set(Method *m, const char *name, const char *value, Err *err) {
    char *end;
    errno = 0;
    long v = strtol(value, &end, 10);
    for (size_t i = 0; i < COUNTOF(size_options); i++) {
        const SizeOption *o = &size_options[i];
        if (strcmp(o->method, m->policy->name) || strcmp(o->name, name)) continue;
        if (end == value || *end || errno || v < o->min || v > SIZE_MAX_ROWS)
            return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s wants an integer from %d, got '%s'",
                             m->name, name, o->min, value);
        *(int *)(void *)((char *)&m->set + o->at) = (int)v;
        return 0;
    }
    if (!strcmp(name, "positions") && m->policy->evicts) {
        if (strcmp(value, "original") && strcmp(value, "cache"))
            return FAIL_CODE(err, EXIT_USAGE,
                             "--set %s.positions is 'original' or 'cache', got '%s'", m->name,
                             value);
        m->set.positions = value[0] == 'c' ? POSITIONS_CACHE : POSITIONS_ORIGINAL;
        return 0;
    }
    return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s: %s has no option '%s'", m->name, name, m->name,
                     name);
}

// sinks of a budget that no table names: the paper's share of 128 in 128 + 4096
static int sinks_of(Preset preset, int budget) {
    int share = (int)(((int64_t)budget * 128 + 2112) / 4224);
    return preset == PRESET_CORM ? 4 : share < 4 ? 4 : share;
}

static void resolve_budget(Method *m, Preset preset, int ctx, int budget) {
    const int ref_ctx = preset == PRESET_CORM ? 4096 : 131072,
              ref_budget = preset == PRESET_CORM ? 1024 : 4096;
    bool streaming = is_policy(m, "streamingllm");
    Sizes *z = &m->size;
    if (m->set.budget >= 0) budget = m->set.budget;
    if (budget == 0 && ctx >= ref_ctx) {
        z->sinks = !streaming ? 0 : preset == PRESET_CORM ? 4 : 128;
        z->recent = !streaming ? ref_budget : preset == PRESET_CORM ? 1020 : 4096;
    } else {
        if (budget == 0) {
            int64_t b = (int64_t)ctx * ref_budget / ref_ctx;
            budget = b < 64 ? 64 : (int)b;
            z->scaled = true;
        }
        z->sinks = streaming ? sinks_of(preset, budget) : 0;
        if (z->sinks >= budget) z->sinks = budget - 1;
        z->recent = budget - z->sinks;
    }
    if (m->set.sinks >= 0) z->sinks = m->set.sinks;
    if (m->set.recent >= 0) z->recent = m->set.recent;
    z->budget = z->sinks + z->recent;
}

int method_resolve(Method *m, Preset preset, int ctx, int budget, int positions, Err *err) {
    Sizes *z = &m->size;
    memset(z, 0, sizeof *z);
    z->positions = POSITIONS_ORIGINAL;
    if (!m->policy->evicts) return 0;
    if (preset == PRESET_HARNESS)
        return FAIL_CODE(err, EXIT_USAGE,
                         "--preset harness is not built for cache methods: use scbench or corm");
    if (m->policy->has_budget) {
        resolve_budget(m, preset, ctx, budget);
        if (is_policy(m, "streamingllm")) z->positions = POSITIONS_CACHE;
    } else {
        int w = ctx / 16 > 256 ? 256 : ctx / 16 < 1 ? 1 : ctx / 16;
        z->window = m->set.window >= 0 ? m->set.window : w;
        z->protect = m->set.protect >= 0 ? m->set.protect : w;
        z->scaled = w != 256 && (m->set.window < 0 || m->set.protect < 0);
    }
    if (positions >= 0) z->positions = (Positions)positions;
    if ((int)m->set.positions >= 0) z->positions = m->set.positions;
    return 0;
}

void method_params(const Method *m, StrBuf *json) {
    const Sizes *z = &m->size;
    str_puts(json, "{");
    if (m->policy->has_budget) str_fmt(json, "\"budget\": %d", z->budget);
    if (is_policy(m, "streamingllm"))
        str_fmt(json, ", \"sinks\": %d, \"recent\": %d", z->sinks, z->recent);
    if (is_policy(m, "corm"))
        str_fmt(json, "\"window\": %d, \"protect\": %d", z->window, z->protect);
    str_puts(json, "}");
}

void method_list(FILE *out) {
    const Policy *p;
    fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", "method", "stage", "KV size", "prefill",
            "decode", "keeps");
    for (int i = 0; (p = policy_at(i)); i++) {
        fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", p->name, p->evicts ? "cache" : "-",
                p->kv_size, p->prefill_cost, p->decode_cost, p->help);
    }
    fprintf(out, "per KV head, n tokens so far; options: --set METHOD.name=value\n");
    for (size_t i = 0; i < COUNTOF(size_options); i++)
        fprintf(out, "  %s.%s\n", size_options[i].method, size_options[i].name);
}
