// method.c - what the user calls a method: names, options, and the sizes a preset gives them.
#include "cache.h"

enum { SIZE_MAX_ROWS = 1 << 29 };       // sums of two sizes stay ints

static int at_most(int a, int b) { return a < b ? a : b; }

// sinks of a budget that no table names: the paper's share of 128 in 128 + 4096
static int sinks_of(Preset preset, int budget) {
    int share = (int)(((int64_t)budget * 128 + 2112) / 4224);
    return preset == PRESET_CORM ? 4 : share < 4 ? 4 : share;
}

// ---------------------------------------------------------------------------
// Prefill stage: who attends to what in the first feed (sparse_attn.cu)

struct Prefill {
    const char *name, *help, *prefill_cost;
    bool windows, dense_tail, heads;    // sizes it reads: sinks and local; dense_rows; minference's
};
static const Prefill prefills[] = {
    { "a-shape", "sinks and a local window per row, then dense over all rows (arXiv 2309.17453)",
      "k n", true, false, false },
    { "tri-shape", "a-shape, the last rows of the feed dense (arXiv 2412.10319)", "k n", true, true,
      false },
    { "minference", "per head: columns and diagonals found online, blocks, or a-shape "
      "(arXiv 2407.02490)", "k n", true, false, true },
};
static const PrefillSizes prefill_unset = { -1, -1, -1, -1, -1, -1, -1, -1, -1, 0 };

static const Prefill *prefill_named(const char *name, size_t n) {
    for (size_t i = 0; i < COUNTOF(prefills); i++)
        if (strlen(prefills[i].name) == n && !memcmp(prefills[i].name, name, n))
            return &prefills[i];
    return NULL;
}

static const char *prefill_name_at(int i) {
    return i >= 0 && i < (int)COUNTOF(prefills) ? prefills[i].name : NULL;
}

typedef struct {
    const char *name;
    size_t at;
    int min;
    bool windows, dense_tail, heads;    // methods that read such sizes have it
} PrefillOption;
#define PREFILL_OPTION(field, min, windows, tail, heads)                                           \
    { #field, offsetof(PrefillSizes, field), min, windows, tail, heads }
static const PrefillOption prefill_options[] = {
    PREFILL_OPTION(sinks, 0, true, false, false), PREFILL_OPTION(local, 1, true, false, false),
    PREFILL_OPTION(dense_rows, 0, false, true, false),
    PREFILL_OPTION(verticals, 1, false, false, true),
    PREFILL_OPTION(slashes, 1, false, false, true),
    PREFILL_OPTION(blocks, 1, false, false, true),
    PREFILL_OPTION(dense_below, 0, false, false, false),
};
static const char *const head_kinds[] = { "vertical-slash", "a-shape", "block-sparse" };

static bool option_of(const PrefillOption *o, const Prefill *p) {
    return (!o->windows || p->windows) && (!o->dense_tail || p->dense_tail) &&
           (!o->heads || p->heads);
}

static int set_choice(const Method *m, const char *name, const char *value,
                      const char *const *words, int n, int *out, Err *err) {
    for (int i = 0; i < n; i++) {
        if (strcmp(value, words[i])) continue;
        *out = i;
        return 0;
    }
    StrBuf all = { 0 };
    for (int i = 0; i < n; i++) str_fmt(&all, "%s'%s'", i ? " or " : "", words[i]);
    FAIL_CODE(err, EXIT_USAGE, "--set %s.%s is %s, got '%s'", m->prefill->name, name, all.p, value);
    free(all.p);
    return -1;
}

// 0, -1, or 1 where the prefill stage has no such option
static int prefill_set(Method *m, const char *name, const char *value, Err *err) {
    static const char *const feeds[] = { "first", "every" };
    int64_t v;
    char what[64];
    if (!m->prefill) return 1;
    if (!strcmp(name, "feeds"))
        return set_choice(m, name, value, feeds, 2, &m->prefill_set.every_feed, err);
    if (!strcmp(name, "head") && m->prefill->heads)
        return set_choice(m, name, value, head_kinds, 3, &m->prefill_set.head, err);
    if (!strcmp(name, "pattern") && m->prefill->heads) {
        m->pattern_path = value;
        return 0;
    }
    for (size_t i = 0; i < COUNTOF(prefill_options); i++) {
        const PrefillOption *o = &prefill_options[i];
        if (strcmp(o->name, name) || !option_of(o, m->prefill)) continue;
        snprintf(what, sizeof what, "--set %s.%s", m->prefill->name, name);
        if (parse_int(what, value, o->min, SIZE_MAX_ROWS, &v, err)) return -1;
        *(int *)(void *)((char *)&m->prefill_set + o->at) = (int)v;
        return 0;
    }
    return 1;
}

typedef struct {
    Preset preset;
    int ctx, budget;                    // budget: keys that a row looks at; 0: the preset's sizes
    bool scaled;                        // out: something was
} Scale;

// the given value; else the budget's share; else the preset's, scaled by ctx / 131072 to at least
// least (SEMANTICS 5)
static int prefill_size(int set, int share, int value, int least, Scale *s) {
    enum { REFERENCE = 131072 };
    if (set >= 0) return set;
    if (s->budget) return share;
    if (s->preset == PRESET_HARNESS || s->ctx >= REFERENCE) return value;
    int v = (int)((int64_t)value * s->ctx / REFERENCE);
    s->scaled = true;
    return v < least ? least : v;
}

// Sizes: a-shape and tri-shape 128 + 4096 and 128 dense rows (arXiv 2412.10319, table 9), in the
// released program 128 + 3968 and 100. minference without a file: what that program gives a head it
// finds no entry for, (1000, 6096); a-shape heads 1024 + 4096 and 100 tiles (table 9). A budget is
// divided as those sizes are; rows that are dense by rule stay.
static void prefill_resolve(Method *m, Scale *scale) {
    const Prefill *p = m->prefill;
    const PrefillSizes *set = &m->prefill_set;
    PrefillSizes *z = &m->prefill_size;
    bool harness = scale->preset == PRESET_HARNESS;
    int B = scale->budget, sinks = at_most(sinks_of(scale->preset, B), B - 1);
    memset(z, 0, sizeof *z);
    if (!p) return;
    z->budget = B;
    z->head = set->head >= 0 ? set->head : HEAD_VERTICAL_SLASH;
    z->every_feed = set->every_feed > 0;
    z->dense_below = set->dense_below > 0 ? set->dense_below : 0;
#define SIZE(field, share, value, least)                                                           \
    z->field = prefill_size(set->field, share, value, least, scale)
    if (!p->heads) {
        SIZE(sinks, sinks, 128, 64);
        SIZE(local, B - sinks, harness ? 3968 : 4096, 64);
        scale->budget = 0;
        if (p->dense_tail) SIZE(dense_rows, 0, harness ? 100 : 128, 64);
    } else if (m->pattern_path) {
        return;
    } else if (z->head == HEAD_A_SHAPE) {
        SIZE(sinks, B / 5, 1024, 64);
        SIZE(local, B - B / 5, 4096, 64);
    } else if (z->head == HEAD_BLOCK_SPARSE) {
        SIZE(blocks, B / SPARSE_ROWS > 1 ? B / SPARSE_ROWS : 1, 100, 4);
    } else {
        int columns = (int)((int64_t)B * 1000 / 7096);
        SIZE(verticals, columns, 1000, 64);
        SIZE(slashes, B - columns, 6096, 64);
    }
#undef SIZE
}

// the stage's object, as it stands in method_params
static void prefill_object(const Method *m, StrBuf *json) {
    const PrefillSizes *z = &m->prefill_size;
    str_fmt(json, "{\"method\": \"%s\"", m->prefill->name);
    if (m->pattern) str_fmt(json, ", \"pattern\": \"%s\"", m->pattern->hash);
    else if (m->prefill->heads) str_fmt(json, ", \"head\": \"%s\"", head_kinds[z->head]);
    if (z->local) str_fmt(json, ", \"sinks\": %d, \"local\": %d", z->sinks, z->local);
    if (m->prefill->dense_tail) str_fmt(json, ", \"dense_rows\": %d", z->dense_rows);
    if (z->slashes) str_fmt(json, ", \"verticals\": %d, \"slashes\": %d", z->verticals, z->slashes);
    if (z->blocks) str_fmt(json, ", \"blocks\": %d", z->blocks);
    if (z->dense_below) str_fmt(json, ", \"dense_below\": %d", z->dense_below);
    if (z->every_feed) str_puts(json, ", \"feeds\": \"every\"");
    str_puts(json, "}");
}

void method_prefill_key(const Method *m, StrBuf *key) {
    str_puts(key, "");
    if (m->prefill) prefill_object(m, key);
}

void method_heads(const Method *m, int layer, int n_heads, HeadPattern *out) {
    const PrefillSizes *z = &m->prefill_size;
    for (int h = 0; h < n_heads; h++) {
        if (m->pattern) {
            out[h] = m->pattern->head[(size_t)layer * n_heads + h];
            continue;
        }
        memset(&out[h], 0, sizeof out[h]);
        out[h].kind = m->prefill->heads ? (HeadKind)z->head : HEAD_A_SHAPE;
        out[h].a = out[h].kind == HEAD_VERTICAL_SLASH ? z->verticals
                   : out[h].kind == HEAD_A_SHAPE      ? z->sinks
                                                      : z->blocks;
        out[h].b = out[h].kind == HEAD_VERTICAL_SLASH ? z->slashes : z->local;
    }
}

static int most_of(const Method *m, int (*value)(const HeadPattern *)) {
    HeadPattern one;
    int most = 0;
    if (!m->prefill) return 0;
    if (!m->pattern) {
        method_heads(m, 0, 1, &one);
        return value(&one);
    }
    for (int i = 0; i < m->pattern->n_layers * m->pattern->n_heads; i++)
        if (value(&m->pattern->head[i]) > most) most = value(&m->pattern->head[i]);
    return most;
}
static int head_verticals(const HeadPattern *h) {
    enum { LEAST = 30 };                // the columns that are always kept
    return h->kind != HEAD_VERTICAL_SLASH ? 0 : h->a > LEAST ? h->a : LEAST;
}
static int head_window(const HeadPattern *h) {
    return h->kind == HEAD_A_SHAPE        ? h->a + h->b
           : h->kind == HEAD_BLOCK_SPARSE ? h->a * SPARSE_ROWS
                                          : h->b;
}
int method_verticals(const Method *m) { return most_of(m, head_verticals); }
int method_prefill_window(const Method *m) { return most_of(m, head_window); }

static void prefill_list(FILE *out) {
    for (size_t i = 0; i < COUNTOF(prefills); i++)
        fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", prefills[i].name, "prefill", "n",
                prefills[i].prefill_cost, "n", prefills[i].help);
}

static void prefill_list_options(FILE *out) {
    for (size_t i = 0; i < COUNTOF(prefills); i++) {
        const Prefill *p = &prefills[i];
        fprintf(out, "  %s:", p->name);
        for (size_t j = 0; j < COUNTOF(prefill_options); j++)
            if (option_of(&prefill_options[j], p)) fprintf(out, " %s", prefill_options[j].name);
        fprintf(out, " feeds%s\n", p->heads ? " head pattern" : "");
    }
}

// ---------------------------------------------------------------------------
// Prompt stage: which words of the context are left (lingua_words.c)

static const char lingua_name[] = "llmlingua2";

static bool is_lingua(const char *name, size_t n) {
    return n == strlen(lingua_name) && !memcmp(name, lingua_name, n);
}

static int set_switch(const char *what, const char *value, const char *off, const char *on,
                      bool *out, Err *err) {
    *out = !strcmp(value, on);
    if (*out || !strcmp(value, off)) return 0;
    return FAIL_CODE(err, EXIT_USAGE, "%s is '%s' or '%s', got '%s'", what, off, on, value);
}

// 0, -1, or 1 where the prompt stage has no such option
static int prompt_set(PromptStage *p, const char *name, const char *value, Err *err) {
    int64_t v;
    bool scbench;
    char what[64];
    if (!p->on) return 1;
    snprintf(what, sizeof what, "--set %s.%s", lingua_name, name);
    if (!strcmp(name, "specials"))
        return set_switch(what, value, "official", "fixed", &p->fixed_specials, err);
    if (!strcmp(name, "digits"))
        return set_switch(what, value, "free", "reserved", &p->reserve_digits, err);
    if (!strcmp(name, "repeats"))
        return set_switch(what, value, "kept", "dropped", &p->drop_consecutive, err);
    if (!strcmp(name, "word"))
        return set_switch(what, value, "mean", "first", &p->first_token, err);
    if (!strcmp(name, "target")) {
        if (parse_int(what, value, 1, SIZE_MAX_ROWS, &v, err)) return -1;
        p->target = (int)v;
        return 0;
    }
    if (!strcmp(name, "preset")) {
        p->preset = value;
        return set_switch(what, value, "scbench", "upstream", &scbench, err);
    }
    if (strcmp(name, "force")) return 1;
    p->force = value;
    return 0;
}

static bool upstream(const PromptStage *p) { return p->preset && !strcmp(p->preset, "upstream"); }

// the released program compresses to a third, the package to a half
double method_prompt_rate(const Method *m, int n) {
    const PromptStage *p = &m->prompt;
    if (!p->on) return 1;
    if (p->target) return p->target < n ? (double)p->target / n : 1;
    return p->rate > 0 ? p->rate : upstream(p) ? 0.5 : 1.0 / 3;
}

static bool same_text(const char *a, const char *b) {
    return (!a && !b) || (a && b && !strcmp(a, b));
}

bool method_same_prompt(const Method *a, const Method *b) {
    const PromptStage *p = &a->prompt, *q = &b->prompt;
    return p->on == q->on && p->rate == q->rate && p->target == q->target &&
           p->fixed_specials == q->fixed_specials && p->reserve_digits == q->reserve_digits &&
           p->drop_consecutive == q->drop_consecutive && p->first_token == q->first_token &&
           upstream(p) == upstream(q) && same_text(p->force, q->force);
}

static void prompt_object(const Method *m, StrBuf *json) {
    const PromptStage *p = &m->prompt;
    str_fmt(json, "{\"method\": \"%s\", \"preset\": \"%s\"", lingua_name,
            upstream(p) ? "upstream" : "scbench");
    if (p->target) str_fmt(json, ", \"target\": %d", p->target);
    else str_fmt(json, ", \"rate\": %.10g", method_prompt_rate(m, 0));
    str_fmt(json, ", \"specials\": \"%s\"", p->fixed_specials ? "fixed" : "official");
    if (p->force) {
        str_puts(json, ", \"force\": ");
        json_text(json, p->force, strlen(p->force));
    }
    if (p->reserve_digits) str_puts(json, ", \"digits\": \"reserved\"");
    if (p->drop_consecutive) str_puts(json, ", \"repeats\": \"dropped\"");
    if (p->first_token) str_puts(json, ", \"word\": \"first\"");
    str_puts(json, "}");
}

static void prompt_list(FILE *out) {
    fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", lingua_name, "prompt", "k", "k^2", "k",
            "the words of the context that an encoder would keep (arXiv 2403.12968); --encoder");
}

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
    int n = 0;
    for (; policy_at(n); n++) if (n == i) return policy_at(n)->name;
    if (i == n + (int)COUNTOF(prefills)) return lingua_name;
    return prefill_name_at(i - n);
}
bool method_has_budget(const Method *m) {
    return m->policy->has_budget || (m->prefill && !method_in_cache(m));
}
int method_budget(const Method *m) {
    return method_in_cache(m) ? m->size.budget : m->prefill_size.budget;
}
bool method_evicts(const Method *m) { return m->policy->evicts; }
bool method_in_cache(const Method *m) { return m->policy->evicts || m->policy->at_read; }
bool method_at_first(const Method *m) {
    return m->policy->at_first && m->size.positions != POSITIONS_SINKCACHE;
}
bool method_at_steps(const Method *m) { return m->policy->at_steps && m->size.steps; }
bool method_wide(const Method *m) {
    return m->policy->evicts && m->size.group == GROUP_QUERY_HEAD;
}
bool method_acts_once(const Method *m) { return m->policy->evicts && !m->policy->at_steps; }
bool method_groups(const Method *m) { return m->policy->groups == GROUPS_CHOICE; }
int method_window(const Method *m) { return m->policy->window ? m->policy->window(&m->size) : 0; }

// sinkcache: how much further a key is rotated
int method_words(const Method *m) {
    if (m->size.positions == POSITIONS_SINKCACHE) return 1;
    return m->policy->words ? m->policy->words(&m->size) : 0;
}

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

static const Policy *policy_named(const char *name, size_t n) {
    const Policy *p;
    for (int i = 0; (p = policy_at(i)); i++)
        if (strlen(p->name) == n && !memcmp(p->name, name, n)) return p;
    return NULL;
}

static int unknown_method(const char *name, size_t n, Err *err) {
    const char *names[MAX_POLICIES];
    char word[48];
    int count = 0;
    snprintf(word, sizeof word, "%.*s", (int)n, name);
    while (count < MAX_POLICIES && (names[count] = method_name_at(count))) count++;
    int near = did_you_mean(word, names, count);
    if (near >= 0)
        return FAIL_CODE(err, EXIT_USAGE, "unknown method '%s', did you mean '%s'?", word,
                         names[near]);
    return FAIL_CODE(err, EXIT_USAGE, "unknown method '%s': see scbench list methods", word);
}

// stages in any order, "snapkv+minference"; the name that is kept has the prompt stage in front,
// then the prefill stage
int method_find(const char *name, Method *m, Err *err) {
    memset(m, 0, sizeof *m);
    for (const char *at = name; at; at = strchr(at, '+') ? strchr(at, '+') + 1 : NULL) {
        size_t n = strcspn(at, "+");
        const Policy *policy = policy_named(at, n);
        const Prefill *prefill = prefill_named(at, n);
        bool lingua = is_lingua(at, n);
        if (!policy && !prefill && !lingua) return unknown_method(at, n, err);
        if (policy ? m->policy != NULL : prefill ? m->prefill != NULL : m->prompt.on)
            return FAIL_CODE(err, EXIT_USAGE, "method '%s' has two %s stages: one of each at most",
                             name, policy ? "cache" : prefill ? "prefill" : "prompt");
        if (policy) m->policy = policy;
        else if (prefill) m->prefill = prefill;
        else m->prompt.on = true;
    }
    if (!m->policy) m->policy = policy_named("full", 4);
    const char *stage[] = { m->prompt.on ? lingua_name : NULL, m->prefill ? m->prefill->name : NULL,
                            strcmp(m->policy->name, "full") ? m->policy->name : NULL };
    for (size_t i = 0; i < COUNTOF(stage); i++) {
        if (!stage[i]) continue;
        size_t n = strlen(m->name);
        snprintf(m->name + n, sizeof m->name - n, "%s%s", n ? "+" : "", stage[i]);
    }
    if (!*m->name) strcpy(m->name, "full");
    m->set = sizes_unset();
    m->prefill_set = prefill_unset;
    return 0;
}

bool method_is(const Method *m, const char *name) {
    return !strcmp(m->name, name) || !strcmp(m->policy->name, name) ||
           (m->prefill && !strcmp(m->prefill->name, name)) ||
           (m->prompt.on && !strcmp(lingua_name, name));
}

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
    SIZE("quest", budget, 1), SIZE("quest", page, 1), SIZE("topk", budget, 1),
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
    static const char *const positions[] = { "original", "cache", "sinkcache" };
    const SizeOption *o;
    char *end;
    int word, stage = prompt_set(&m->prompt, name, value, err);
    if (stage > 0) stage = prefill_set(m, name, value, err);
    if (stage <= 0) return stage;
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
        int words = is_policy(m, "streamingllm") ? 3 : 2;
        if (set_word(m, name, value, positions, words, &word, err)) return -1;
        m->set.positions = (Positions)word;
        return 0;
    }
    if (!strcmp(name, "prefill") && m->policy->evicts) {
        int64_t every;
        if (strncmp(value, "stream:", 7))
            return FAIL_CODE(err, EXIT_USAGE, "--set %s.prefill wants stream:TOKENS, got '%s'",
                             m->name, value);
        if (parse_int("--set prefill=stream", value + 7, 1, SIZE_MAX_ROWS, &every, err)) return -1;
        m->set.stream = (int)every;
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

int method_set_stage(Method *m, const char *stage, const char *name, const char *value, Err *err) {
    const Prefill *prefill = m->prefill;
    bool lingua = m->prompt.on && !strcmp(stage, lingua_name);
    if (!strcmp(stage, m->name)) return method_set(m, name, value, err);
    if (lingua || (prefill && !strcmp(stage, prefill->name))) {
        int rc = lingua ? prompt_set(&m->prompt, name, value, err)
                        : prefill_set(m, name, value, err);
        if (rc <= 0) return rc;
        return FAIL_CODE(err, EXIT_USAGE, "--set %s.%s: %s has no option '%s'", stage, name, stage,
                         name);
    }
    PromptStage prompt = m->prompt;
    m->prefill = NULL;
    m->prompt.on = false;
    int rc = method_set(m, name, value, err);
    m->prefill = prefill;
    m->prompt = prompt;
    return rc;
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
    if (z->stream && m->prefill)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s: a prompt that is evicted in parts has no sparse prefill of the "
                         "whole: leave prefill=stream out", m->name);
    if (z->positions == POSITIONS_CACHE && (m->policy->at_read || z->every_turn))
        return FAIL_CODE(err, EXIT_USAGE,
                         m->policy->at_read
                             ? "%s reads other rows for each token, each key at its own position: "
                               "--positions cache has no meaning there"
                             : "%s with --compress every-turn looks at queries of earlier feeds, "
                               "which --positions cache has turned away: leave one out", m->name);
    if (z->positions == POSITIONS_SINKCACHE && z->stream)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s: sinkcache keeps a prompt whole: leave prefill=stream out", m->name);
    if (tail && z->recent >= z->budget)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s keeps %d rows and the newest alone are %d: --set %s.recent below the "
                         "budget", m->name, z->budget, z->recent, m->name);
    return 0;
}

// what the released program has and we can say exactly
static bool harness_has(const Method *m) {
    return pools(m) || is_policy(m, "streamingllm") || is_policy(m, "quest");
}

int method_resolve(Method *m, Preset preset, int ctx, int budget, int positions, Err *err) {
    Sizes *z = &m->size;
    memset(z, 0, sizeof *z);
    z->positions = POSITIONS_ORIGINAL;
    Scale scale = { preset, ctx, method_in_cache(m) ? 0 : budget, false };
    if (scale.budget && m->prefill && m->pattern_path)
        return FAIL_CODE(err, EXIT_USAGE,
                         "%s: the heads of a pattern file have sizes of their own: leave --budget "
                         "and --keep out", m->name);
    prefill_resolve(m, &scale);
    z->scaled = scale.scaled;
    if (!method_in_cache(m)) return 0;
    bool harness = preset == PRESET_HARNESS;
    if (harness && !harness_has(m))
        return FAIL_CODE(err, EXIT_USAGE,
                         "--preset harness: that program has no %s, or none that can be told from "
                         "its paper's; it has streamingllm, snapkv, pyramidkv and quest", m->name);
    z->every_turn = pools(m) && m->set.every_turn > 0;
    z->steps = m->policy->at_steps && !harness;
    z->feeds = (m->policy->at_feeds && !harness) || z->every_turn;
    if (harness) z->group = GROUP_QUERY_HEAD;
    z->signs = harness && is_policy(m, "quest");
    if (m->policy->has_budget) resolve_budget(m, preset, ctx, budget);
    else resolve_corm(m, ctx);
    if (is_policy(m, "streamingllm") && !harness) z->positions = POSITIONS_CACHE;
    if (positions >= 0) z->positions = (Positions)positions;
    if ((int)m->set.positions >= 0) z->positions = m->set.positions;
    if (z->positions == POSITIONS_SINKCACHE) z->steps = z->feeds = false;   // it acts before a feed
    if ((int)m->set.group >= 0) z->group = m->set.group;
    if ((int)m->set.pool >= 0) z->pool = m->set.pool;
    if (m->set.stream >= 0) z->stream = m->set.stream;
    z->scaled = z->scaled || scale.scaled;
    return check_sizes(m, err);
}

void method_params(const Method *m, StrBuf *json) {
    const SizeOption *o;
    const char *comma = "";
    str_puts(json, "{");
    if (m->prompt.on) {
        str_puts(json, "\"prompt\": ");
        prompt_object(m, json);
        comma = ", ";
    }
    if (m->prefill) {
        str_fmt(json, "%s\"prefill\": ", comma);
        prefill_object(m, json);
        comma = ", ";
    }
    if (m->prefill_size.budget) str_fmt(json, ", \"budget\": %d", m->prefill_size.budget);
    for (size_t i = 0; (o = size_option(m->policy, &i)); comma = ", ")
        str_fmt(json, "%s\"%s\": %d", comma, o->name, size_get(&m->size, o));
    if (pools(m)) str_fmt(json, ", \"pool\": \"%s\"", pool_name[m->size.pool]);
    if (m->size.stream > 0)
        str_fmt(json, "%s\"prefill\": \"stream:%d\"", comma, m->size.stream);
    str_puts(json, "}");
}

void method_list(FILE *out) {
    const Policy *p;
    const SizeOption *o;
    fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", "method", "stage", "KV size", "prefill",
            "decode", "keeps");
    for (int i = 0; (p = policy_at(i)); i++) {
        fprintf(out, "%-14s %-7s %-10s %-10s %-10s %s\n", p->name, i ? "cache" : "-",
                p->kv_size, p->prefill_cost, p->decode_cost, p->help);
        if (p->differs) fprintf(out, "%16s%s\n", "", p->differs);
    }
    prefill_list(out);
    prompt_list(out);
    fprintf(out, "per KV head, n tokens so far, k of them kept; a prompt, a prefill and a cache "
                 "stage combine: llmlingua2+minference+snapkv; options: --set METHOD.name=value\n");
    for (int i = 0; (p = policy_at(i)); i++) {
        size_t at = 0;
        if (i == 0) continue;
        fprintf(out, "  %s:", p->name);
        while ((o = size_option(p, &at))) fprintf(out, " %s", o->name);
        fprintf(out, "%s%s%s\n", strstr("snapkv pyramidkv", p->name) ? " pool" : "",
                p->evicts ? " positions=original|cache" : "",
                strcmp(p->name, "streamingllm") ? p->evicts ? " prefill=stream:C" : ""
                                                : "|sinkcache prefill=stream:C");
    }
    prefill_list_options(out);
    fprintf(out, "  %s: target preset specials force digits repeats word; its rate is --rate\n",
            lingua_name);
}

int method_on_device(const Method *m, Err *err) {
    if (m->size.positions == POSITIONS_SINKCACHE)
        return FAIL_CODE(err, EXIT_USAGE, "method %s: positions=sinkcache, rows that move before "
                         "they come, runs on the CPU alone; use --device cpu", m->name);
    if (m->size.signs)
        return FAIL_CODE(err, EXIT_USAGE, "method %s: with --preset harness the queries of a whole "
                         "feed choose pages together, on the CPU alone; use --device cpu", m->name);
    return 0;
}
